//! What else is known when an object is reviewed: an immutable snapshot, gathered at the edges.
//! Whatever is not in it is unknown, and a rule never denies on an unknown.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use serde_json::Value;

use crate::{
    catalog::engines::Engines,
    exempt::Rights,
    subject::{at, group_of, metadata_text, scale_target::ScaleTarget},
};

mod cluster;
mod digest;

pub use cluster::{Cluster, Fact, Listed, PodGroup, Topology, Watched};
pub use digest::{Digest, Gang, Roles, Served, labelled_roles};

/// What is known of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known<T> {
    /// It is there.
    Present(T),
    /// It is known not to be there.
    Absent,
    /// Nobody looked, or nobody could.
    Unknown,
}

impl<T> Known<T> {
    /// What is there, where something is known to be.
    pub fn present(self) -> Option<T> {
        match self {
            Self::Present(value) => Some(value),
            Self::Absent | Self::Unknown => None,
        }
    }
}

/// The API group of KAI's queues and pod groups.
pub const KAI_GROUP: &str = "scheduling.run.ai";

/// The API group of KAI's topologies.
pub const TOPOLOGY_GROUP: &str = "kai.scheduler";

/// Identifies an object: API group, kind, namespace (empty where cluster-scoped), name.
type Key = (String, String, String, String);

/// A document of the world, and what it comes down to as a workload once somebody asks.
#[derive(Clone, Debug)]
struct Document {
    value: Arc<Value>,
    digest: OnceLock<Option<Box<Digest>>>,
}

/// A snapshot of what else is known.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    documents: BTreeMap<Key, Document>,
    /// What tells a model server in the documents; the built-in rows without it.
    engines: Option<Arc<Engines>>,
    cluster: Cluster,
    rights: Rights,
}

impl Facts {
    /// Nothing is known.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// What the documents of one `check` run say: they are one world. What is not among them is
    /// unknown rather than absent, for a folder is seldom the whole cluster.
    pub fn from_documents<'v>(documents: impl IntoIterator<Item = &'v Arc<Value>>) -> Self {
        let mut all = BTreeMap::new();
        for value in documents {
            let text = |keys: &[&str]| at(value, keys).and_then(Value::as_str).unwrap_or_default();
            let key = (
                group_of(text(&["apiVersion"])).to_owned(),
                text(&["kind"]).to_owned(),
                text(&["metadata", "namespace"]).to_owned(),
                text(&["metadata", "name"]).to_owned(),
            );
            let document = Document {
                value: Arc::clone(value),
                digest: OnceLock::new(),
            };
            all.insert(key, document);
        }
        Self {
            documents: all,
            ..Self::default()
        }
    }

    /// Tells model servers in the documents by these rows.
    #[must_use]
    pub fn with_engines(mut self, engines: Arc<Engines>) -> Self {
        self.engines = Some(engines);
        self
    }

    /// What the watches of a cluster know.
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The same facts after the cluster has changed.
    #[must_use]
    pub fn with_cluster(&self, change: impl FnOnce(&mut Cluster)) -> Self {
        let mut changed = self.clone();
        change(&mut changed.cluster);
        changed
    }

    /// What is known of the requester's right to exempt.
    pub const fn rights(&self) -> &Rights {
        &self.rights
    }

    /// The same facts with what is known of the requester's right to exempt.
    #[must_use]
    pub fn with_rights(&self, rights: Rights) -> Self {
        Self {
            rights,
            ..self.clone()
        }
    }

    fn document(
        &self,
        group: &str,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Option<&Document> {
        if self.documents.is_empty() {
            return None;
        }
        self.documents.get(&(
            group.to_owned(),
            kind.to_owned(),
            namespace.unwrap_or_default().to_owned(),
            name.to_owned(),
        ))
    }

    /// A document of that name. A namespace that the documents leave open matches any that the asker
    /// leaves open.
    pub fn object(
        &self,
        group: &str,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Known<&Value> {
        self.document(group, kind, namespace, name)
            .map_or(Known::Unknown, |document| {
                Known::Present(document.value.as_ref())
            })
    }

    /// What is known of a workload that an autoscaler in this namespace names.
    pub fn target(&self, target: &ScaleTarget<'_>, namespace: Option<&str>) -> Known<&Digest> {
        self.workload(target.group, target.kind, namespace, target.name)
    }

    /// What is known of a workload.
    pub fn workload(
        &self,
        group: &str,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Known<&Digest> {
        if let Some(document) = self.document(group, kind, namespace, name) {
            return match self.digest(document, group, kind, namespace) {
                Some(digest) => Known::Present(digest),
                None => Known::Unknown,
            };
        }
        match self.watched(group, kind, namespace, name) {
            Known::Present(Fact::Workload(digest)) => Known::Present(digest),
            Known::Absent => Known::Absent,
            Known::Present(_) | Known::Unknown => Known::Unknown,
        }
    }

    /// What is kept of a document; made when it is first asked for.
    fn digest<'f>(
        &'f self,
        document: &'f Document,
        group: &str,
        kind: &str,
        namespace: Option<&str>,
    ) -> Option<&'f Digest> {
        // A Rollout may leave its pods to a Deployment (argoproj/argo-rollouts, spec.workloadRef).
        if let ("argoproj.io", Some(reference)) =
            (group, at(&document.value, &["spec", "workloadRef"]))
            && let Some(target) = ScaleTarget::read(reference)
            && target.group != group
        {
            return self.target(&target, namespace).present();
        }
        let made = document.digest.get_or_init(|| {
            let engines = self.engines.as_deref().unwrap_or(Engines::builtin());
            Digest::of(group, kind, &document.value, self, engines).map(Box::new)
        });
        made.as_deref()
    }

    fn watched(
        &self,
        group: &str,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Known<&Fact> {
        match Watched::of(group, kind) {
            Some(watched) => self
                .cluster
                .get(watched, namespace.unwrap_or_default(), name),
            None => Known::Unknown,
        }
    }

    /// Whether an object is there.
    fn exists(&self, group: &str, kind: &str, namespace: Option<&str>, name: &str) -> Known<()> {
        if self.document(group, kind, namespace, name).is_some() {
            return Known::Present(());
        }
        match self.watched(group, kind, namespace, name) {
            Known::Present(_) => Known::Present(()),
            Known::Absent => Known::Absent,
            Known::Unknown => Known::Unknown,
        }
    }

    /// Whether KAI has a queue of that name.
    pub fn queue(&self, name: &str) -> Known<()> {
        self.exists(KAI_GROUP, "Queue", None, name)
    }

    /// What is known of a KAI Topology.
    pub fn topology(&self, name: &str) -> Known<Topology> {
        if let Some(document) = self.document(TOPOLOGY_GROUP, "Topology", None, name) {
            return Known::Present(Topology::of(&document.value));
        }
        match self.watched(TOPOLOGY_GROUP, "Topology", None, name) {
            Known::Present(Fact::Topology(topology)) => Known::Present(topology.clone()),
            Known::Absent => Known::Absent,
            Known::Present(_) | Known::Unknown => Known::Unknown,
        }
    }

    /// Whether KEDA has a ScaledObject of that name.
    pub fn scaled_object(&self, namespace: Option<&str>, name: &str) -> Known<()> {
        self.exists("keda.sh", "ScaledObject", namespace, name)
    }

    /// The least replicas that an autoscaler among the documents keeps a workload at, while there is
    /// something to do; `None` where none is known. Silence means 1 for an HPA (k8s.io/api
    /// autoscaling/v2) and 0 for a ScaledObject (kedacore/keda
    /// apis/keda/v1alpha1/scaledobject_types.go).
    pub fn least_replicas(&self, target: &ScaleTarget<'_>, namespace: Option<&str>) -> Option<u64> {
        [
            ("autoscaling", "HorizontalPodAutoscaler", "minReplicas", 1),
            ("keda.sh", "ScaledObject", "minReplicaCount", 0),
        ]
        .into_iter()
        .flat_map(|(group, kind, key, silent)| {
            let namespace = namespace.unwrap_or_default().to_owned();
            let first: Key = (group.to_owned(), kind.to_owned(), namespace, String::new());
            self.documents
                .range(first.clone()..)
                .take_while(move |((group, kind, namespace, _), _)| {
                    (group, kind, namespace) == (&first.0, &first.1, &first.2)
                })
                .map(move |(_, document)| (document, key, silent))
        })
        .filter(|(document, ..)| {
            let named = at(&document.value, &["spec", "scaleTargetRef"]);
            named.and_then(ScaleTarget::read).as_ref() == Some(target)
        })
        .map(|(document, key, silent)| {
            let least = at(&document.value, &["spec", key]).and_then(Value::as_u64);
            least.unwrap_or(silent)
        })
        .max()
    }

    /// What is known of a group of pods; `group` is the API group that its kind stands in.
    pub fn pod_group(&self, group: &str, namespace: Option<&str>, name: &str) -> Known<PodGroup> {
        if let Some(document) = self.document(group, "PodGroup", namespace, name) {
            return Known::Present(PodGroup::of(&document.value));
        }
        match self.watched(group, "PodGroup", namespace, name) {
            Known::Present(Fact::PodGroup(group)) => Known::Present(*group),
            Known::Absent => Known::Absent,
            Known::Present(_) | Known::Unknown => Known::Unknown,
        }
    }

    /// A label of a namespace, where both are known.
    pub fn namespace_label(&self, namespace: &str, key: &str) -> Option<&str> {
        if let Known::Present(value) = self.object("", "Namespace", None, namespace) {
            return metadata_text(value, "labels", key);
        }
        match self.watched("", "Namespace", None, namespace) {
            Known::Present(Fact::Labels(labels)) => labels.get(key).map(String::as_str),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_one_world_and_the_rest_is_unknown() {
        let queue = Arc::new(json!({
            "apiVersion": "scheduling.run.ai/v2", "kind": "Queue", "metadata": {"name": "team-a"}
        }));
        let facts = Facts::from_documents([&queue]);
        assert_eq!(
            facts.object("scheduling.run.ai", "Queue", None, "team-a"),
            Known::Present(queue.as_ref())
        );
        assert_eq!(
            facts.object("scheduling.run.ai", "Queue", None, "team-b"),
            Known::Unknown
        );
        assert_eq!(facts.queue("team-a"), Known::Present(()));
        assert_eq!(facts.queue("team-b"), Known::Unknown);
    }

    #[test]
    fn an_autoscaler_among_the_documents_keeps_replicas() {
        let scaler = |version: &str, kind: &str, namespace: &str, spec: Value| {
            let name = format!("{kind}-{namespace}").to_lowercase();
            Arc::new(json!({
                "apiVersion": version, "kind": kind,
                "metadata": {"name": name, "namespace": namespace}, "spec": spec,
            }))
        };
        let target =
            |name: &str| json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name});
        let hpa = |namespace: &str, name: &str, least: Value| {
            let spec = json!({"scaleTargetRef": target(name), "minReplicas": least});
            scaler("autoscaling/v2", "HorizontalPodAutoscaler", namespace, spec)
        };
        let keda = json!({"scaleTargetRef": {"name": "chat"}, "minReplicaCount": 3});
        let asleep = json!({"scaleTargetRef": {"name": "sleepy"}});
        let documents = [
            hpa("a", "llm", json!(2)),
            hpa("b", "llm", json!(4)),
            hpa("c", "llm", json!(null)),
            scaler("keda.sh/v1alpha1", "ScaledObject", "a", keda),
            scaler("keda.sh/v1alpha1", "ScaledObject", "b", asleep),
        ];
        let facts = Facts::from_documents(&documents);
        let least = |namespace: &str, kind: &str, name: &str| {
            let target = ScaleTarget {
                group: "apps",
                kind,
                name,
            };
            facts.least_replicas(&target, Some(namespace))
        };
        assert_eq!(least("a", "Deployment", "llm"), Some(2));
        assert_eq!(least("b", "Deployment", "llm"), Some(4));
        assert_eq!(least("c", "Deployment", "llm"), Some(1));
        assert_eq!(least("a", "Deployment", "chat"), Some(3));
        assert_eq!(least("b", "Deployment", "sleepy"), Some(0));
        assert_eq!(least("a", "StatefulSet", "llm"), None);
        assert_eq!(least("d", "Deployment", "llm"), None);
    }

    #[test]
    fn a_watch_makes_the_rest_absent_and_documents_come_first() {
        let engines = Engines::builtin();
        let queue = Arc::new(json!({
            "apiVersion": "scheduling.run.ai/v2", "kind": "Queue", "metadata": {"name": "team-a"}
        }));
        let mut listed = Listed::default();
        listed.add(
            "a",
            "chat",
            Watched::Deployment.fact(&json!({}), engines).unwrap(),
        );
        let facts = Facts::from_documents([&queue]).with_cluster(|cluster| {
            cluster.replace(Watched::Queue, &Listed::default());
            cluster.replace(Watched::Deployment, &listed);
        });
        assert_eq!(facts.queue("team-a"), Known::Present(()));
        assert_eq!(facts.queue("team-b"), Known::Absent);
        let workload = |kind: &str, name: &str| facts.workload("apps", kind, Some("a"), name);
        assert_eq!(
            workload("Deployment", "chat"),
            Known::Present(&Digest::default())
        );
        assert_eq!(workload("Deployment", "other"), Known::Absent);
        assert_eq!(
            workload("StatefulSet", "chat"),
            Known::Unknown,
            "not watched"
        );
        assert_eq!(workload("Rollout", "chat"), Known::Unknown, "never watched");
        assert_eq!(facts.scaled_object(Some("a"), "chat"), Known::Unknown);
    }

    #[test]
    fn a_rollout_may_leave_its_pods_to_a_deployment() {
        let deployment = Arc::new(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "chat"},
            "spec": {"template": {"spec": {"containers": [{
                "image": "vllm/vllm-openai", "resources": {"limits": {"nvidia.com/gpu": 1}}
            }]}}}
        }));
        let rollout = Arc::new(json!({
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": "roll"},
            "spec": {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}}
        }));
        let facts = Facts::from_documents([&deployment, &rollout]);
        let digest = facts
            .workload("argoproj.io", "Rollout", None, "roll")
            .present();
        assert!(digest.is_some_and(|digest| digest.served.is_some()));
    }
}
