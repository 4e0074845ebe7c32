//! Edits that fill silence, and the minimal JSON patch (RFC 6902) they make on the raw object.

use json_patch::{
    AddOperation, Patch, PatchOperation, ReplaceOperation,
    jsonptr::{PointerBuf, Token},
};
use serde_json::{Map, Value};

use crate::finding::{FieldPath, Segment};

/// One default to put where the object is silent.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// Give the member at `path` this value, making the objects above it where they are missing.
    Set {
        /// The member.
        path: FieldPath,
        /// Its value.
        value: Value,
    },
    /// Append an element to the list at `path`, making it where it is missing.
    Append {
        /// The list.
        path: FieldPath,
        /// The element.
        value: Value,
    },
}

impl Edit {
    /// The place that the edit is about.
    pub fn path(&self) -> &FieldPath {
        match self {
            Self::Set { path, .. } | Self::Append { path, .. } => path,
        }
    }
}

/// What came of an edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The object changed.
    Made,
    /// It held the value already.
    Same,
    /// A step of the path meets a value of another type.
    Impossible,
}

/// Applies edits one after another to a copy of an object and records the operations that lead
/// from the one to the other.
#[derive(Clone, Debug)]
pub struct Patcher {
    value: Value,
    operations: Vec<PatchOperation>,
}

impl Patcher {
    /// Starts from the raw object.
    pub fn new(value: Value) -> Self {
        Self {
            value,
            operations: Vec::new(),
        }
    }

    /// Makes one edit.
    pub fn apply(&mut self, edit: &Edit) -> Outcome {
        let made = match edit {
            Edit::Set { path, value } => self.set(path, value.clone()),
            Edit::Append { path, value } => match path.lookup(&self.value) {
                None | Some(Value::Null) => self.set(path, Value::Array(vec![value.clone()])),
                Some(_) => self.append(path, value),
            },
        };
        made.unwrap_or(Outcome::Impossible)
    }

    fn append(&mut self, path: &FieldPath, value: &Value) -> Option<Outcome> {
        lookup_mut(&mut self.value, path.segments())?
            .as_array_mut()?
            .push(value.clone());
        self.operations
            .push(add(pointer(path.segments(), Some("-")), value.clone()));
        Some(Outcome::Made)
    }

    fn set(&mut self, path: &FieldPath, value: Value) -> Option<Outcome> {
        let segments = path.segments();
        // The deepest object that is there; what is missing below it goes into one operation.
        let mut depth = 0;
        let mut at = &self.value;
        while depth + 1 < segments.len() {
            let next = match segments.get(depth)? {
                Segment::Key(key) => at.as_object()?.get(key.as_str()),
                Segment::Index(index) => at.as_array()?.get(*index),
            };
            match next {
                None | Some(Value::Null) => break,
                Some(below) => at = below,
            }
            depth += 1;
        }
        let Segment::Key(key) = segments.get(depth)? else {
            return None;
        };
        let existing = at.as_object()?.get(key.as_str());
        let mut wrapped = value;
        for segment in segments.iter().skip(depth + 1).rev() {
            let Segment::Key(key) = segment else {
                return None;
            };
            wrapped = Value::Object(Map::from_iter([(key.to_string(), wrapped)]));
        }
        if existing == Some(&wrapped) {
            return Some(Outcome::Same);
        }
        let target = pointer(segments.get(..=depth)?, None);
        let operation = if existing.is_some() {
            PatchOperation::Replace(ReplaceOperation {
                path: target,
                value: wrapped.clone(),
            })
        } else {
            add(target, wrapped.clone())
        };
        lookup_mut(&mut self.value, segments.get(..depth)?)?
            .as_object_mut()?
            .insert(key.to_string(), wrapped);
        self.operations.push(operation);
        Some(Outcome::Made)
    }

    /// The object with every edit made, and the patch that leads there.
    pub fn finish(self) -> (Value, Patch) {
        (self.value, Patch(self.operations))
    }
}

fn add(path: PointerBuf, value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path, value })
}

fn pointer(segments: &[Segment], last: Option<&str>) -> PointerBuf {
    let tokens = segments.iter().map(|segment| match segment {
        Segment::Key(key) => Token::new(key.to_string()),
        Segment::Index(index) => Token::from(*index),
    });
    PointerBuf::from_tokens(tokens.chain(last.map(|token| Token::new(token.to_owned()))))
}

fn lookup_mut<'v>(value: &'v mut Value, segments: &[Segment]) -> Option<&'v mut Value> {
    segments
        .iter()
        .try_fold(value, |at, segment| match segment {
            Segment::Key(key) => at.as_object_mut()?.get_mut(key.as_str()),
            Segment::Index(index) => at.as_array_mut()?.get_mut(*index),
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(object: Value, edits: &[Edit]) -> (Value, Value) {
        let mut patcher = Patcher::new(object.clone());
        for edit in edits {
            patcher.apply(edit);
        }
        let (after, patch) = patcher.finish();
        let mut applied = object;
        json_patch::patch(&mut applied, &patch).unwrap();
        assert_eq!(
            applied, after,
            "the patch leads to the object that was edited"
        );
        (after, serde_json::to_value(&patch).unwrap())
    }

    fn set(keys: &[&str], value: Value) -> Edit {
        Edit::Set {
            path: FieldPath::of(keys),
            value,
        }
    }

    #[test]
    fn missing_parents_come_in_one_operation_and_are_shared_by_later_edits() {
        let (after, patch) = patched(
            json!({"spec": {}}),
            &[
                set(
                    &["spec", "disruption", "consolidationPolicy"],
                    json!("WhenEmpty"),
                ),
                set(&["spec", "disruption", "consolidateAfter"], json!("1h")),
            ],
        );
        assert_eq!(
            after,
            json!({"spec": {"disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "1h"}}})
        );
        assert_eq!(
            patch,
            json!([
                {"op": "add", "path": "/spec/disruption", "value": {"consolidationPolicy": "WhenEmpty"}},
                {"op": "add", "path": "/spec/disruption/consolidateAfter", "value": "1h"},
            ])
        );
    }

    #[test]
    fn keys_with_slashes_and_null_parents_are_handled() {
        let (after, patch) = patched(
            json!({"metadata": {"annotations": null}}),
            &[set(
                &["metadata", "annotations", "kai.scheduler/batch-min-member"],
                json!("8"),
            )],
        );
        assert_eq!(
            after["metadata"]["annotations"]["kai.scheduler/batch-min-member"],
            "8"
        );
        assert_eq!(patch[0]["path"], "/metadata/annotations");
        let (_, patch) = patched(
            json!({"a": {"b/c~d": 1}}),
            &[set(&["a", "b/c~d"], json!(2))],
        );
        assert_eq!(
            patch,
            json!([{"op": "replace", "path": "/a/b~1c~0d", "value": 2}])
        );
    }

    #[test]
    fn an_edit_against_another_type_or_without_effect_is_not_made() {
        let mut patcher = Patcher::new(json!({"spec": "text", "same": {"a": 1}}));
        assert_eq!(
            patcher.apply(&set(&["spec", "a"], json!({}))),
            Outcome::Impossible
        );
        assert_eq!(patcher.apply(&set(&["same", "a"], json!(1))), Outcome::Same);
        let append = Edit::Append {
            path: FieldPath::of(&["spec"]),
            value: json!(1),
        };
        assert_eq!(patcher.apply(&append), Outcome::Impossible);
        assert_eq!(patcher.apply(&set(&[], json!(1))), Outcome::Impossible);
        assert!(patcher.finish().1.0.is_empty());
    }

    #[test]
    fn appending_makes_the_list_or_adds_to_its_end() {
        let append = Edit::Append {
            path: FieldPath::of(&["taints"]),
            value: json!({"key": "k"}),
        };
        assert_eq!(
            patched(json!({}), std::slice::from_ref(&append)).0,
            json!({"taints": [{"key": "k"}]})
        );
        let (after, patch) = patched(json!({"taints": [1]}), &[append]);
        assert_eq!(after, json!({"taints": [1, {"key": "k"}]}));
        assert_eq!(patch[0]["path"], "/taints/-");
    }
}
