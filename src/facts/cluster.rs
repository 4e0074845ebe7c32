//! What the watches of a cluster know: digests by kind and name, in maps whose old versions stay as
//! they were. A snapshot is cloned for the price of a few reference counts, and looking something up
//! takes no lock.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use imbl::OrdMap;
use serde_json::Value;

use super::{Digest, Facts, KAI_GROUP, Known, TOPOLOGY_GROUP};
use crate::{catalog::engines::Engines, subject::at};

/// A kind of objects that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Watched {
    /// apps/v1.
    Deployment,
    /// apps/v1.
    StatefulSet,
    /// leaderworkerset.x-k8s.io/v1.
    LeaderWorkerSet,
    /// keda.sh/v1alpha1.
    ScaledObject,
    /// v1.
    Namespace,
    /// KAI's, scheduling.run.ai/v2.
    Queue,
    /// KAI's, scheduling.run.ai/v2alpha2.
    PodGroup,
    /// KAI's, kai.scheduler/v1alpha1.
    Topology,
}

impl Watched {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::LeaderWorkerSet,
        Self::ScaledObject,
        Self::Namespace,
        Self::Queue,
        Self::PodGroup,
        Self::Topology,
    ];

    /// The kind's name.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::LeaderWorkerSet => "LeaderWorkerSet",
            Self::ScaledObject => "ScaledObject",
            Self::Namespace => "Namespace",
            Self::Queue => "Queue",
            Self::PodGroup => "PodGroup",
            Self::Topology => "Topology",
        }
    }

    /// Whether its objects live in namespaces.
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Queue)
    }

    /// API group, version and plural.
    pub const fn resource(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Deployment => ("apps", "v1", "deployments"),
            Self::StatefulSet => ("apps", "v1", "statefulsets"),
            Self::LeaderWorkerSet => ("leaderworkerset.x-k8s.io", "v1", "leaderworkersets"),
            Self::ScaledObject => ("keda.sh", "v1alpha1", "scaledobjects"),
            Self::Namespace => ("", "v1", "namespaces"),
            Self::Queue => (KAI_GROUP, "v2", "queues"),
            Self::PodGroup => (KAI_GROUP, "v2alpha2", "podgroups"),
            Self::Topology => (TOPOLOGY_GROUP, "v1alpha1", "topologies"),
        }
    }

    /// The watched kind of that name.
    pub fn of(group: &str, kind: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|it| it.kind() == kind && it.resource().0 == group)
    }

    /// What is kept of an object. It needs its metadata and spec only.
    pub fn fact(self, value: &Value, engines: &Engines) -> Option<Fact> {
        Some(match self {
            Self::Deployment | Self::StatefulSet | Self::LeaderWorkerSet => {
                let (group, ..) = self.resource();
                let nothing = Facts::unknown();
                let digest = Digest::of(group, self.kind(), value, &nothing, engines);
                // Something of that name is there, whatever it is.
                Fact::Workload(Arc::new(digest.unwrap_or_default()))
            }
            Self::Namespace => Fact::Labels(Arc::new(labels(value))),
            Self::PodGroup => Fact::PodGroup(PodGroup::of(value)),
            Self::Topology => Fact::Topology(Topology::of(value)),
            Self::ScaledObject | Self::Queue => Fact::Exists,
        })
    }
}

/// An object's labels.
pub(super) fn labels(value: &Value) -> BTreeMap<String, String> {
    at(value, &["metadata", "labels"])
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// What is kept of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Of a workload.
    Workload(Arc<Digest>),
    /// Of a namespace.
    Labels(Arc<BTreeMap<String, String>>),
    /// Of a pod group.
    PodGroup(PodGroup),
    /// Of a topology.
    Topology(Topology),
    /// That it is there.
    Exists,
}

/// A group of pods that a scheduler places together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodGroup {
    /// The pods that it must have; none where it is silent or counts subgroups.
    pub minimum: Option<u64>,
}

impl PodGroup {
    /// Reads the group objects of KAI, Volcano, coscheduling (`minMember`) and Kubernetes
    /// (`schedulingPolicy.gang.minCount`).
    pub fn of(value: &Value) -> Self {
        Self {
            minimum: at(value, &["spec", "minMember"])
                .or_else(|| at(value, &["spec", "schedulingPolicy", "gang", "minCount"]))
                .and_then(Value::as_u64),
        }
    }
}

/// The levels of a KAI Topology, widest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    levels: Arc<[Level]>,
}

/// One level: the nodes' label, and another name for it (KAI 0.17 and later).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level {
    label: Box<str>,
    alias: Option<Box<str>>,
}

impl Topology {
    /// Reads the object.
    pub fn of(value: &Value) -> Self {
        let levels = at(value, &["spec", "levels"])
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|level| {
                let text = |key: &str| level.get(key)?.as_str().map(Into::into);
                Some(Level {
                    label: text("nodeLabel")?,
                    alias: text("alias"),
                })
            })
            .collect();
        Self { levels }
    }

    /// Whether it has a level of that name.
    pub fn has(&self, name: &str) -> bool {
        self.levels
            .iter()
            .any(|level| &*level.label == name || level.alias.as_deref() == Some(name))
    }

    /// Its levels by the nodes' labels.
    pub fn levels(&self) -> Vec<&str> {
        self.levels.iter().map(|level| &*level.label).collect()
    }
}

/// Whether a kind's objects are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Knowledge {
    /// Not now: not watched, not listed yet, or what was known is too old.
    #[default]
    None,
    /// All of them.
    All,
    /// The cluster does not serve the kind.
    Unserved,
}

/// The objects of one kind, by `namespace/name`.
#[derive(Clone, Debug, Default)]
struct Shelf {
    knowledge: Knowledge,
    objects: OrdMap<Arc<str>, Fact>,
}

/// What the watches of a cluster know.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    shelves: BTreeMap<Watched, Shelf>,
}

/// An object's place among those of its kind; the namespace is empty where there is none.
fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

impl Cluster {
    /// What is known of an object. Where the kind is not served, or not known, nobody can tell.
    pub fn get(&self, watched: Watched, namespace: &str, name: &str) -> Known<&Fact> {
        match self.shelves.get(&watched) {
            Some(kept) if kept.knowledge == Knowledge::All => {
                match kept.objects.get(key(namespace, name).as_str()) {
                    Some(fact) => Known::Present(fact),
                    None => Known::Absent,
                }
            }
            _ => Known::Unknown,
        }
    }

    /// Whether the cluster is known to serve a kind, or known not to.
    pub fn serves(&self, watched: Watched) -> Option<bool> {
        match self.shelves.get(&watched)?.knowledge {
            Knowledge::All => Some(true),
            Knowledge::Unserved => Some(false),
            Knowledge::None => None,
        }
    }

    /// How many objects of a kind are kept.
    pub fn count(&self, watched: Watched) -> usize {
        self.shelves
            .get(&watched)
            .map_or(0, |kept| kept.objects.len())
    }

    /// Whether exactly this is kept of an object already.
    pub fn holds(&self, watched: Watched, namespace: &str, name: &str, fact: &Fact) -> bool {
        self.shelves
            .get(&watched)
            .is_some_and(|kept| kept.objects.get(key(namespace, name).as_str()) == Some(fact))
    }

    /// An object is there, or has changed.
    pub fn put(&mut self, watched: Watched, namespace: &str, name: &str, fact: Fact) {
        let kept = self.shelves.entry(watched).or_default();
        kept.objects.insert(key(namespace, name).into(), fact);
    }

    /// An object is gone.
    pub fn remove(&mut self, watched: Watched, namespace: &str, name: &str) {
        if let Some(kept) = self.shelves.get_mut(&watched) {
            kept.objects.remove(key(namespace, name).as_str());
        }
    }

    /// These are all objects of a kind. What has not changed since keeps its place in memory: nothing
    /// as large as the cluster is copied, or dropped by whoever held the last snapshot.
    pub fn replace(&mut self, watched: Watched, listed: &Listed) {
        let kept = self.shelves.entry(watched).or_default();
        kept.knowledge = Knowledge::All;
        let gone: Vec<Arc<str>> = kept
            .objects
            .keys()
            .filter(|key| !listed.objects.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            kept.objects.remove(&key);
        }
        // In any order: the map sorts.
        #[allow(clippy::iter_over_hash_type)]
        for (key, fact) in &listed.objects {
            if kept.objects.get(key) != Some(fact) {
                kept.objects.insert(Arc::clone(key), fact.clone());
            }
        }
    }

    /// Nothing is known of a kind for now. Its objects are kept, so that little changes when they are
    /// listed again.
    pub fn forget(&mut self, watched: Watched) {
        if let Some(kept) = self.shelves.get_mut(&watched) {
            kept.knowledge = Knowledge::None;
        }
    }

    /// The cluster does not serve a kind.
    pub fn unserved(&mut self, watched: Watched) {
        let kept = Shelf {
            knowledge: Knowledge::Unserved,
            objects: OrdMap::new(),
        };
        self.shelves.insert(watched, kept);
    }
}

/// The objects of one kind as a list gave them.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    objects: HashMap<Arc<str>, Fact>,
}

impl Listed {
    /// One of them.
    pub fn add(&mut self, namespace: &str, name: &str, fact: Fact) {
        self.objects.insert(key(namespace, name).into(), fact);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn queue(cluster: &Cluster, name: &str) -> Known<()> {
        match cluster.get(Watched::Queue, "", name) {
            Known::Present(_) => Known::Present(()),
            Known::Absent => Known::Absent,
            Known::Unknown => Known::Unknown,
        }
    }

    fn listed(names: &[&str]) -> Listed {
        let mut listed = Listed::default();
        for name in names {
            listed.add("", name, Fact::Exists);
        }
        listed
    }

    #[test]
    fn only_a_whole_list_makes_anything_absent() {
        let mut cluster = Cluster::default();
        assert_eq!(queue(&cluster, "a"), Known::Unknown);
        cluster.put(Watched::Queue, "", "a", Fact::Exists);
        assert_eq!(queue(&cluster, "a"), Known::Unknown, "not all are known");
        cluster.replace(Watched::Queue, &listed(&["a", "b"]));
        assert_eq!(queue(&cluster, "a"), Known::Present(()));
        assert_eq!(queue(&cluster, "c"), Known::Absent);
        cluster.remove(Watched::Queue, "", "a");
        assert_eq!(queue(&cluster, "a"), Known::Absent);
        cluster.replace(Watched::Queue, &listed(&["c"]));
        assert_eq!(
            (queue(&cluster, "b"), queue(&cluster, "c")),
            (Known::Absent, Known::Present(()))
        );
    }

    #[test]
    fn what_is_too_old_is_unknown_and_not_lost() {
        let mut cluster = Cluster::default();
        cluster.replace(Watched::Queue, &listed(&["a"]));
        cluster.forget(Watched::Queue);
        assert_eq!(queue(&cluster, "a"), Known::Unknown);
        assert_eq!(
            (
                cluster.count(Watched::Queue),
                cluster.serves(Watched::Queue)
            ),
            (1, None)
        );
        cluster.unserved(Watched::Queue);
        assert_eq!(queue(&cluster, "a"), Known::Unknown);
        assert_eq!(
            (
                cluster.count(Watched::Queue),
                cluster.serves(Watched::Queue)
            ),
            (0, Some(false))
        );
    }

    #[test]
    fn a_snapshot_stays_as_it_was() {
        let mut cluster = Cluster::default();
        cluster.replace(Watched::Queue, &listed(&["a"]));
        let before = cluster.clone();
        cluster.remove(Watched::Queue, "", "a");
        assert_eq!(queue(&before, "a"), Known::Present(()));
        assert_eq!(queue(&cluster, "a"), Known::Absent);
    }

    #[test]
    fn an_object_becomes_what_the_rules_ask_for() {
        let engines = Engines::builtin();
        let of = |watched: Watched, value: &Value| watched.fact(value, engines).unwrap();
        let group = json!({"metadata": {"name": "g"}, "spec": {"minMember": 8}});
        assert_eq!(
            of(Watched::PodGroup, &group),
            Fact::PodGroup(PodGroup { minimum: Some(8) })
        );
        let namespace = json!({"metadata": {"name": "n", "labels": {"a": "b"}}});
        let Fact::Labels(labels) = of(Watched::Namespace, &namespace) else {
            panic!("labels")
        };
        assert_eq!(labels.get("a").map(String::as_str), Some("b"));
        let broken = json!({"metadata": {"name": "d"}, "spec": 5});
        assert_eq!(
            of(Watched::Deployment, &broken),
            Fact::Workload(Arc::new(Digest::default()))
        );
        for watched in Watched::ALL {
            assert_eq!(
                Watched::of(watched.resource().0, watched.kind()),
                Some(watched)
            );
        }
    }
}
