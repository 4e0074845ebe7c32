//! What a log has told so far of the objects that it speaks of: what was there before a change, and
//! what an autoscaler scales.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::Value;

use crate::{rules::Kind, subject::at};

/// Identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) group: &'static str,
    pub(super) kind: &'static str,
    /// Empty where there is none.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn new(kind: &'static Kind, namespace: &str, name: &str) -> Self {
        Self {
            group: kind.group,
            kind: kind.kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// What an object was before it was written.
#[derive(Clone, Debug)]
pub(super) enum Before {
    /// It was not there.
    Nothing,
    /// This.
    Object(Arc<Value>),
    /// The log does not tell.
    Unknown,
}

/// An object as it was last seen.
#[derive(Debug)]
struct State {
    /// JSON: a third of what it takes as a tree.
    text: Box<[u8]>,
    version: Option<u64>,
    /// Its place in the order of use.
    used: u64,
}

/// The objects as they were last seen, the most recent ones within a bound.
#[derive(Debug)]
pub(super) struct World {
    states: HashMap<Key, State>,
    order: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
    limit: usize,
    /// Objects that were given up for the bound.
    pub(super) forgotten: u64,
}

/// etcd's revision, of which the API server makes the resourceVersion. Objects of one cluster only
/// are compared, and only with themselves.
fn version(value: &Value) -> Option<u64> {
    let version = at(value, &["metadata", "resourceVersion"])?.as_str()?;
    version.parse().ok()
}

fn generation(value: &Value) -> Option<u64> {
    at(value, &["metadata", "generation"])?.as_u64()
}

impl World {
    /// An empty world that keeps at most so many bytes of objects.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            states: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            bytes: 0,
            limit,
            forgotten: 0,
        }
    }

    /// What the objects take.
    #[cfg(test)]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The object as it was last seen.
    pub(super) fn get(&self, key: &Key) -> Option<Value> {
        serde_json::from_slice(&self.states.get(key)?.text).ok()
    }

    /// What a change found there. Unknown where the log is silent of it, out of order, or has not
    /// got all that happened to the object in between.
    pub(super) fn before(&self, key: &Key, now: &Value) -> Before {
        let Some(old) = self.get(key) else {
            return Before::Unknown;
        };
        let same = |keys: &[&str]| match (at(&old, keys), at(now, keys)) {
            (Some(old), Some(now)) => old == now,
            _ => true,
        };
        // Another version of the API writes the same otherwise.
        if !same(&["metadata", "uid"]) || !same(&["apiVersion"]) {
            return Before::Unknown;
        }
        let late = matches!((version(&old), version(now)), (Some(old), Some(now)) if old > now);
        // A change raises the generation by one, whatever it changes.
        let missed = matches!((generation(&old), generation(now)),
            (Some(old), Some(now)) if now > old.saturating_add(1));
        if late || missed {
            return Before::Unknown;
        }
        Before::Object(Arc::new(old))
    }

    /// The object is so now.
    pub(super) fn remember(&mut self, key: Key, value: &Value) {
        let version = version(value);
        let known = self.states.get(&key).and_then(|state| state.version);
        if matches!((known, version), (Some(known), Some(now)) if known > now) {
            // It came late.
            return;
        }
        self.forget(&key);
        let mut value = value.clone();
        if let Some(members) = value.as_object_mut() {
            members.remove("status");
        }
        let text = serde_json::to_vec(&value).unwrap_or_default();
        self.clock += 1;
        self.bytes += text.len();
        self.order.insert(self.clock, key.clone());
        let state = State {
            text: text.into(),
            version,
            used: self.clock,
        };
        self.states.insert(key, state);
        while self.bytes > self.limit
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            let oldest = oldest.clone();
            self.forget(&oldest);
            self.forgotten += 1;
        }
    }

    /// The object has been scaled by its subresource, of which this is the answer. Without one
    /// nobody knows how the object is now.
    pub(super) fn scaled(&mut self, key: &Key, scale: Option<&Value>) {
        let Some(mut value) = self.get(key) else {
            return;
        };
        let replicas = scale.and_then(|scale| at(scale, &["spec", "replicas"]));
        let count = value.pointer_mut("/spec/replicas");
        let (Some(count), Some(replicas)) = (count, replicas) else {
            self.forget(key);
            return;
        };
        if count == replicas {
            return;
        }
        *count = replicas.clone();
        if let Some(generation) = value.pointer_mut("/metadata/generation")
            && let Some(now) = generation.as_u64()
        {
            *generation = now.saturating_add(1).into();
        }
        let changed = scale.and_then(|scale| at(scale, &["metadata", "resourceVersion"]));
        if let (Some(version), Some(changed)) =
            (value.pointer_mut("/metadata/resourceVersion"), changed)
        {
            *version = changed.clone();
        }
        self.remember(key.clone(), &value);
    }

    /// The object is gone, or has become something that the log does not tell.
    pub(super) fn forget(&mut self, key: &Key) {
        if let Some(state) = self.states.remove(key) {
            self.order.remove(&state.used);
            self.bytes -= state.text.len();
        }
    }
}
