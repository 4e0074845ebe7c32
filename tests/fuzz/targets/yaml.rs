//! The reader of manifests, what `check` makes of them, and what `--fix` writes into them.

use std::sync::Arc;

use gangplank::{
    facts::Facts,
    finding::FieldPath,
    review::review,
    source::{
        self, Document,
        edit::{self, Change},
    },
    subject::{Door, Subject},
};
use serde_json::Value;

pub(crate) fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let documents = source::read(text);
    for (index, document) in documents.iter().enumerate() {
        match document {
            Ok(document) => {
                assert_eq!(document.index, index);
                placed(text, document, &document.value, &FieldPath::new());
            }
            Err(error) => {
                assert_eq!(error.index, index);
                assert!(!error.message.is_empty() && !error.message.contains('\n'));
                let lines = 1..=super::lines(text) + 1;
                assert!(error.line.is_none_or(|line| lines.contains(&line)));
            }
        }
    }
    as_json(text, &documents);
    fixed(text, &documents);
}

/// Every value has a place in the text that can be shown.
fn placed(text: &str, document: &Document, value: &Value, path: &FieldPath) {
    let (place, exact) = document.marks.locate(path);
    let exact = exact.unwrap_or_else(|| panic!("{path} has no place"));
    for range in [place, exact] {
        assert!(text.get(range.clone()).is_some(), "{path} at {range:?}");
    }
    match value {
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                placed(text, document, value, &path.clone().index(index));
            }
        }
        Value::Object(members) => {
            for (key, value) in members {
                placed(text, document, value, &path.clone().key(key));
            }
        }
        _ => {}
    }
}

/// A text that is JSON says the same to us as to the API server.
fn as_json(text: &str, documents: &[Result<Document, source::SourceError>]) {
    let Ok(json) = serde_json::from_str::<Value>(text) else {
        return;
    };
    if let [Ok(document)] = documents {
        assert_eq!(*document.value, json);
    }
}

/// What would be filled can be written; then the text says what was meant and nothing is left to
/// fill, and nothing that was not to be filled is another.
fn fixed(text: &str, documents: &[Result<Document, source::SourceError>]) {
    let values: Vec<Arc<Value>> = (documents.iter().flatten())
        .map(|document| Arc::clone(&document.value))
        .collect();
    let facts = Facts::from_documents(&values);
    let mut changes = Vec::new();
    for document in documents.iter().flatten() {
        // As `check` takes a List.
        let items = document.value.get("items").and_then(Value::as_array);
        let kind = document.value.get("kind").and_then(Value::as_str);
        let items = items.filter(|_| kind.is_some_and(|kind| kind.ends_with("List")));
        let objects = match items {
            Some(items) => (items.iter().enumerate())
                .map(|(item, value)| (Some(item), Arc::new(value.clone())))
                .collect(),
            None => vec![(None, Arc::clone(&document.value))],
        };
        for (item, value) in objects {
            let Some(subject) = Subject::from_manifest(value) else {
                continue;
            };
            let subject = Subject {
                door: Door::Check,
                ..subject
            };
            let review = review(super::policy(), &facts, &subject, super::now());
            for finding in &review.findings {
                assert!(!finding.message.is_empty(), "{finding:?}");
            }
            let mut after = (*subject.value).clone();
            json_patch::patch(&mut after, &review.patch).expect("the patch applies");
            if !review.patch.0.is_empty() {
                changes.push(Change {
                    document: document.index,
                    item,
                    patch: review.patch,
                });
            }
        }
    }
    // An editor that cannot do it safely says so and does nothing.
    let Ok(edited) = edit::apply(text, &changes) else {
        return;
    };
    if changes.is_empty() {
        assert_eq!(edited.text, text);
        return;
    }
    let again = source::read(&edited.text);
    assert_eq!(again.len(), documents.len());
    for (old, new) in documents.iter().zip(&again) {
        let (Ok(old), Ok(new)) = (old, new) else {
            assert!(old.is_err() && new.is_err());
            continue;
        };
        let mut wanted = (*old.value).clone();
        let mine = (changes.iter().enumerate()).filter(|(position, change)| {
            change.document == old.index && edited.left.iter().all(|left| left.change != *position)
        });
        for (_, change) in mine {
            let object = match change.item {
                Some(item) => &mut wanted["items"][item],
                None => &mut wanted,
            };
            json_patch::patch(object, &change.patch).expect("the patch applies");
        }
        assert_eq!(*new.value, wanted);
    }
}
