//! The body of an admission request, from any bytes to the bytes of the answer, at every endpoint.

use gangplank::{
    subject::{Door, Operation},
    webhook::{
        answer,
        envelope::{open, salvage_uid},
    },
};
use serde_json::Value;

pub(crate) fn target(data: &[u8]) {
    for door in [Door::Mutate, Door::Validate] {
        let envelope = match open(data, door) {
            Ok(envelope) => envelope,
            Err(refusal) => {
                assert_eq!(refusal.code, 400, "{refusal}");
                // What is JSON and has a uid gets it back, whatever else is wrong.
                let sent: Value = serde_json::from_slice(data).unwrap_or_default();
                let uid = sent.pointer("/request/uid").and_then(Value::as_str);
                assert!(uid.is_none_or(|uid| uid == refusal.uid), "{refusal:?}");
                let answer = answer::refuse(&refusal);
                assert!(super::answered(&answer, &refusal.uid).is_none());
                assert_eq!(answer["response"]["allowed"], false);
                continue;
            }
        };
        assert!(!envelope.uid.is_empty());
        assert_eq!(
            salvage_uid(data),
            envelope.uid,
            "a broken body loses its uid"
        );
        let subject = &envelope.subject;
        assert!(!subject.kind.is_empty() && !subject.version().is_empty());
        assert_eq!(
            subject.operation == Operation::Update,
            subject.old.is_some()
        );
        for facts in super::worlds() {
            let review = super::examine(facts, subject);
            let is_asked = matches!(subject.operation, Operation::Create | Operation::Update)
                && subject.subresource.is_empty();
            if !is_asked {
                assert!(review.skipped.is_some() && review.findings.is_empty());
            }
        }
    }
}
