//! What else is known when an object is reviewed: an immutable snapshot, gathered at the edges.
//! Whatever is not in it is unknown, and a rule never denies on an unknown.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use crate::subject::{at, group_of};

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

/// Identifies an object: API group, kind, namespace (empty where cluster-scoped), name.
type Key = (String, String, String, String);

/// A snapshot of what else is known.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    objects: BTreeMap<Key, Arc<Value>>,
}

impl Facts {
    /// Nothing is known.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// What the documents of one `check` run say: they are one world. What is not among them is
    /// unknown rather than absent, for a folder is seldom the whole cluster.
    pub fn from_documents<'v>(documents: impl IntoIterator<Item = &'v Arc<Value>>) -> Self {
        let mut objects = BTreeMap::new();
        for value in documents {
            let text = |keys: &[&str]| at(value, keys).and_then(Value::as_str).unwrap_or_default();
            let key = (
                group_of(text(&["apiVersion"])).to_owned(),
                text(&["kind"]).to_owned(),
                text(&["metadata", "namespace"]).to_owned(),
                text(&["metadata", "name"]).to_owned(),
            );
            objects.insert(key, Arc::clone(value));
        }
        Self { objects }
    }

    /// What is known of an object. A namespace that the documents leave open matches any that the
    /// asker leaves open.
    pub fn object(
        &self,
        group: &str,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Known<&Value> {
        let key = (
            group.to_owned(),
            kind.to_owned(),
            namespace.unwrap_or_default().to_owned(),
            name.to_owned(),
        );
        self.objects
            .get(&key)
            .map_or(Known::Unknown, |value| Known::Present(value.as_ref()))
    }

    /// The known objects of a kind, in any namespace.
    pub fn objects_of<'f>(
        &'f self,
        group: &'f str,
        kind: &'f str,
    ) -> impl Iterator<Item = &'f Value> {
        self.objects
            .iter()
            .filter(move |(key, _)| key.0 == group && key.1 == kind)
            .map(|(_, value)| value.as_ref())
    }

    /// The labels of a namespace.
    pub fn namespace_labels(&self, namespace: &str) -> Known<BTreeMap<String, String>> {
        match self.object("", "Namespace", None, namespace) {
            Known::Present(value) => Known::Present(
                at(value, &["metadata", "labels"])
                    .and_then(Value::as_object)
                    .into_iter()
                    .flatten()
                    .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                    .collect(),
            ),
            Known::Absent => Known::Absent,
            Known::Unknown => Known::Unknown,
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
        assert_eq!(facts.objects_of("scheduling.run.ai", "Queue").count(), 1);
    }
}
