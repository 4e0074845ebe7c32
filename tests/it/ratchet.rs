//! What a change is denied for: the faults that it brings, whatever was wrong before. Every fixture
//! of a rule is changed into every other of its kind.

use std::{collections::BTreeMap, sync::Arc};

use gangplank::{
    facts::Facts,
    finding::{Finding, Level},
    policy::Policy,
    review::review,
    rules::{self, Group, RULES, Rule},
    source,
    subject::{Door, Operation, Subject},
};
use serde_json::{Value, json};

use crate::fixtures::{fixtures, now, policy};

/// An object of a fixture, under the name that all of its kind share.
struct Written {
    fixture: String,
    value: Value,
}

/// The objects of a rule's fixtures, by kind.
fn written(rule: &Rule) -> BTreeMap<String, Vec<Written>> {
    let mut all: BTreeMap<String, Vec<Written>> = BTreeMap::new();
    for (fixture, text) in fixtures(rule.id) {
        for document in source::read(&text) {
            let mut value = (*document.unwrap().value).clone();
            value["metadata"]["name"] = json!("same");
            value["metadata"]["namespace"] = json!("inference");
            if value["kind"] == "Deployment" && value["spec"]["strategy"].is_null() {
                // As the API server would have it.
                value["spec"]["strategy"] = json!({
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}
                });
            }
            let subject = Subject::from_manifest(Arc::new(value.clone())).unwrap();
            if rule.covers(subject.group(), &subject.kind) {
                let kind = format!("{} {}", subject.api_version, subject.kind);
                let fixture = fixture.clone();
                all.entry(kind)
                    .or_default()
                    .push(Written { fixture, value });
            }
        }
    }
    all
}

/// What the validating webhook denies of an object, or of a change to it.
fn denied(rule: &Rule, policy: &Policy, old: Option<&Value>, new: &Value) -> Vec<Finding> {
    let mut subject = Subject::from_manifest(Arc::new(new.clone())).unwrap();
    subject.door = Door::Validate;
    if let Some(old) = old {
        subject.operation = Operation::Update;
        subject.old = Some(Arc::new(old.clone()));
    }
    let found = review(policy, &Facts::unknown(), &subject, now()).findings;
    found
        .into_iter()
        .filter(|finding| finding.rule == rule.id && finding.level == Level::Deny)
        .collect()
}

/// All that is wrong with an object: what a change is denied for that makes it out of nothing.
fn faults(rule: &Rule, policy: &Policy, value: &Value) -> Vec<Finding> {
    let mut empty = value.clone();
    empty["metadata"] = json!({"name": "same", "namespace": "inference"});
    empty["spec"] = json!({});
    let found = denied(rule, policy, Some(&empty), value);
    let created = denied(rule, policy, None, value);
    assert_eq!(found.is_empty(), created.is_empty(), "{value}");
    found
}

/// With a change that no rule reads, so that the object is looked at.
fn touched(value: &Value) -> Value {
    let mut touched = value.clone();
    touched["spec"]["somethingElse"] = json!(true);
    touched
}

/// The faults of a change's new object that are not among those of the old one. Faults of one
/// field are told apart by their fingerprints; faults of different fields of a workload are
/// different ones. (Items of lists may change their places.)
fn brought<'f>(rule: &Rule, before: &[Finding], now: &'f [Finding]) -> Vec<&'f Finding> {
    let had = |finding: &Finding| {
        before.iter().any(|old| {
            old.fingerprint == finding.fingerprint
                && (rule.group != Group::Workloads || old.path == finding.path)
        })
    };
    now.iter().filter(|finding| !had(finding)).collect()
}

#[test]
fn an_update_is_denied_for_what_it_makes_worse_and_for_nothing_else() {
    let mut wrong = Vec::new();
    for rule in RULES.iter().filter(|rule| rule.level == Level::Deny) {
        for (kind, objects) in written(rule) {
            for new in &objects {
                let policy = policy(rule.id, &new.fixture);
                let changed = touched(&new.value);
                let again = denied(rule, &policy, Some(&new.value), &changed);
                if !again.is_empty() {
                    wrong.push(format!(
                        "{}/{}: locked out: {again:?}",
                        rule.id, new.fixture
                    ));
                }
                let now = faults(rule, &policy, &new.value);
                if now.is_empty() {
                    continue;
                }
                for old in &objects {
                    let before = faults(rule, &policy, &old.value);
                    let refused = denied(rule, &policy, Some(&old.value), &changed);
                    for fault in brought(rule, &before, &now) {
                        if !refused.iter().any(|one| one.path == fault.path) {
                            wrong.push(format!(
                                "{}/{kind}: {} -> {} lets {} pass ({})",
                                rule.id, old.fixture, new.fixture, fault.path, fault.fingerprint
                            ));
                        }
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Scalers write the scale subresource, which is not judged.
#[test]
fn what_a_scaler_left_behind_excuses_nothing_and_locks_nobody_out() {
    let rule = rules::rule("gang-scheduling").unwrap();
    let scaled = |value: &Value, replicas: u64| {
        let mut value = value.clone();
        value["spec"]["replicas"] = json!(replicas);
        value
    };
    // What is wrong with the number itself is another matter.
    let whatever_the_number = |mut found: Vec<Finding>| {
        found.retain(|finding| {
            finding.path.to_string() != "spec.replicas"
                && !finding.fingerprint.starts_with("minimum-above:")
        });
        found
    };
    let mut wrong = Vec::new();
    for (kind, objects) in written(rule) {
        if !kind.starts_with("apps/") {
            continue;
        }
        for new in &objects {
            let policy = policy(rule.id, &new.fixture);
            let now = whatever_the_number(faults(rule, &policy, &new.value));
            if now.is_empty() {
                continue;
            }
            for moved in [0, 1, 2, 7, 16] {
                let asleep = scaled(&new.value, moved);
                let back = denied(rule, &policy, Some(&asleep), &new.value);
                let back = whatever_the_number(back);
                if !back.is_empty() {
                    wrong.push(format!("{}: {moved} locks out: {back:?}", new.fixture));
                }
            }
            for old in &objects {
                let before = whatever_the_number(faults(rule, &policy, &old.value));
                let brought = brought(rule, &before, &now);
                if brought.is_empty() {
                    continue;
                }
                for moved in [0, 7, 16] {
                    let asleep = scaled(&old.value, moved);
                    let refused = denied(rule, &policy, Some(&asleep), &touched(&new.value));
                    for fault in &brought {
                        if !refused.iter().any(|one| one.path == fault.path) {
                            wrong.push(format!(
                                "{} at {moved} -> {} lets {} pass",
                                old.fixture, new.fixture, fault.path
                            ));
                        }
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
