//! What an autoscaler scales: `spec.scaleTargetRef` of a HorizontalPodAutoscaler or ScaledObject.

use serde_json::Value;

use super::{Subject, at, group_of};

/// The workload that a reference names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleTarget<'a> {
    /// The API group; empty for the core group.
    pub group: &'a str,
    /// The kind.
    pub kind: &'a str,
    /// The name; targets live in the namespace of their autoscaler.
    pub name: &'a str,
}

impl<'a> ScaleTarget<'a> {
    /// What an autoscaler scales; `None` where it names nothing.
    pub fn of(subject: &'a Subject) -> Option<Self> {
        Self::read(at(&subject.value, &["spec", "scaleTargetRef"])?)
    }

    /// Reads a reference. Where it is silent KEDA takes a Deployment of `apps/v1` (kedacore/keda
    /// apis/keda/v1alpha1/scaledobject_types.go); `extensions` is what Deployments were in once.
    pub fn read(reference: &'a Value) -> Option<Self> {
        let text = |key: &str| {
            reference
                .get(key)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
        };
        let kind = text("kind").unwrap_or("Deployment");
        let group = match text("apiVersion") {
            None | Some("extensions/v1beta1") => "apps",
            Some(version) => group_of(version),
        };
        Some(Self {
            group,
            kind,
            name: text("name")?,
        })
    }
}

impl std::fmt::Display for ScaleTarget<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} \"{}\"", self.kind, self.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn silence_means_a_deployment() {
        let read = |reference: &Value| {
            ScaleTarget::read(reference)
                .map(|it| (it.group.to_owned(), it.kind.to_owned(), it.name.to_owned()))
        };
        let found =
            |group: &str, kind: &str| Some((group.to_owned(), kind.to_owned(), "chat".to_owned()));
        assert_eq!(read(&json!({"name": "chat"})), found("apps", "Deployment"));
        assert_eq!(
            read(&json!({"name": "chat", "kind": "StatefulSet"})),
            found("apps", "StatefulSet")
        );
        assert_eq!(
            read(
                &json!({"name": "chat", "kind": "Deployment", "apiVersion": "extensions/v1beta1"})
            ),
            found("apps", "Deployment")
        );
        assert_eq!(
            read(&json!({"name": "chat", "kind": "LeaderWorkerSet",
                "apiVersion": "leaderworkerset.x-k8s.io/v1"})),
            found("leaderworkerset.x-k8s.io", "LeaderWorkerSet")
        );
        assert_eq!(read(&json!({"kind": "Deployment"})), None);
        assert_eq!(read(&json!({"name": 5})), None);
    }
}
