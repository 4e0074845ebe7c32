//! The object under review, as it came, and lenient read-only views over it.

use std::sync::Arc;

use serde_json::Value;

pub mod autoscaling_policy;
pub mod duration;
pub mod gpu;
pub mod hpa;
pub mod node_pool;
pub mod pod_autoscaler;
pub mod pod_template;
pub mod quantity;
pub mod requirement;
pub mod rollout;
pub mod scale_target;
pub mod scaled_object;
pub mod workload;

/// The label by which a workload says that it serves a model (`"true"`), or that it does not.
pub const MODEL_SERVER_LABEL: &str = "gangplank.dev/model-server";

/// The label by which a workload or scaler says which phase of inference it serves: `prefill` or
/// `decode`.
pub const ROLE_LABEL: &str = "gangplank.dev/role";

/// The annotation by which an autoscaler, or what it scales, names the workload that keeps capacity
/// warm for it, as `Deployment/warm` or `inference/Deployment/warm`.
pub const WARM_POOL_ANNOTATION: &str = "gangplank.dev/warm-pool";

/// Where the question comes from. The answer is the same; what counts as evidence of somebody's
/// writing differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    /// `/mutate`: only fills are asked for.
    Mutate,
    /// `/validate`: the final object is judged, whoever wrote its values.
    Validate,
    /// A file: a key that is absent was not written, and defaults have not been applied.
    Check,
    /// An object that lives in a cluster.
    Audit,
}

/// What is being done to the object (`admission.k8s.io/v1` operations).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// It is new, or is judged as if it were.
    Create,
    /// It replaces [`Subject::old`].
    Update,
    /// It goes away.
    Delete,
    /// A connection to it, such as `exec`.
    Connect,
}

impl Operation {
    /// As `admission.k8s.io/v1` spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// One object under review.
#[derive(Clone, Debug)]
pub struct Subject {
    /// As the object says, or as the request does where it does not.
    pub api_version: String,
    /// As the object says, or as the request does where it does not.
    pub kind: String,
    /// The namespace; none for cluster-scoped objects, and for files that leave it open.
    pub namespace: Option<String>,
    /// The name; empty where the API server is to generate it.
    pub name: String,
    /// The raw object.
    pub value: Arc<Value>,
    /// What it replaces, on UPDATE.
    pub old: Option<Arc<Value>>,
    /// Where the question comes from.
    pub door: Door,
    /// What is being done.
    pub operation: Operation,
    /// The subresource written to, as `scale`; empty for the object itself.
    pub subresource: String,
    /// Who asks; empty where nobody does, as for files.
    pub user: String,
}

impl Subject {
    /// The subject of a manifest: a CREATE of what the file says. `None` where the value is not an
    /// object with `apiVersion` and `kind`.
    pub fn from_manifest(value: Arc<Value>) -> Option<Self> {
        let api_version = value.get("apiVersion")?.as_str()?.to_owned();
        let kind = value.get("kind")?.as_str()?.to_owned();
        let text = |key: &str| {
            value
                .pointer("/metadata")
                .and_then(|metadata| metadata.get(key)?.as_str().map(str::to_owned))
        };
        Some(Self {
            api_version,
            kind,
            namespace: text("namespace").filter(|namespace| !namespace.is_empty()),
            name: text("name").unwrap_or_default(),
            old: None,
            door: Door::Check,
            operation: Operation::Create,
            subresource: String::new(),
            user: String::new(),
            value,
        })
    }

    /// The API group; empty for the core group.
    pub fn group(&self) -> &str {
        group_of(&self.api_version)
    }

    /// The version within the group.
    pub fn version(&self) -> &str {
        self.api_version.rsplit('/').next().unwrap_or_default()
    }

    /// What stands at nested members of the object.
    pub fn at(&self, keys: &[&str]) -> Option<&Value> {
        at(&self.value, keys)
    }

    /// A label of the object.
    pub fn label(&self, key: &str) -> Option<&str> {
        metadata_text(&self.value, "labels", key)
    }

    /// An annotation of the object.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        metadata_text(&self.value, "annotations", key)
    }

    /// Whether the object is already being deleted.
    pub fn is_going_away(&self) -> bool {
        at(&self.value, &["metadata", "deletionTimestamp"]).is_some_and(|stamp| !stamp.is_null())
    }

    /// Whether the control plane itself asks: it adopts, releases and orphans objects, and would try
    /// again for ever if it were refused.
    pub fn is_from_control_plane(&self) -> bool {
        self.user.starts_with("system:kube-controller-manager")
            || self.user.starts_with("system:serviceaccount:kube-system:")
    }

    /// The same question about another value, such as the object after its fills.
    #[must_use]
    pub fn with_value(&self, value: Value) -> Self {
        Self {
            value: Arc::new(value),
            ..self.clone()
        }
    }

    /// The object that this one replaces, judged as it stood.
    pub fn as_it_stood(&self) -> Option<Self> {
        let old = self.old.clone()?;
        Some(Self {
            value: old,
            old: None,
            door: Door::Validate,
            ..self.clone()
        })
    }
}

/// The API group of an `apiVersion`; empty for the core group.
pub fn group_of(api_version: &str) -> &str {
    api_version.rsplit_once('/').map_or("", |(group, _)| group)
}

/// What stands at nested members of a value.
pub fn at<'v>(value: &'v Value, keys: &[&str]) -> Option<&'v Value> {
    keys.iter()
        .try_fold(value, |at, key| at.as_object()?.get(*key))
}

/// A label or annotation (`map`) of an object.
pub fn metadata_text<'v>(value: &'v Value, map: &str, key: &str) -> Option<&'v str> {
    at(value, &["metadata", map, key])?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_group_and_version() {
        let subject = |api: &str| {
            Subject::from_manifest(Arc::new(json!({"apiVersion": api, "kind": "X"}))).unwrap()
        };
        assert_eq!((subject("v1").group(), subject("v1").version()), ("", "v1"));
        assert_eq!(
            (subject("apps/v1").group(), subject("apps/v1").version()),
            ("apps", "v1")
        );
    }

    #[test]
    fn fields_of_the_wrong_type_are_absent() {
        let value =
            json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": 5, "labels": ["a"]}});
        let subject = Subject::from_manifest(Arc::new(value)).unwrap();
        assert_eq!((subject.name.as_str(), subject.label("a")), ("", None));
        assert!(Subject::from_manifest(Arc::new(json!({"apiVersion": 1, "kind": "X"}))).is_none());
        assert!(Subject::from_manifest(Arc::new(json!([]))).is_none());
    }
}
