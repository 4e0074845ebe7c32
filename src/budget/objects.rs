//! The costs of objects, in steps.

use std::{fs, path::Path, sync::Arc};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Budget;
use crate::{
    facts::Facts,
    finding::{Finding, Level, Verdict},
    policy::Policy,
    review::{Review, review},
    rules::{RULES, kinds::AUTOSCALERS, objects::object_too_complex::OBJECT_TOO_COMPLEX},
    source,
    subject::{Door, Operation, Subject},
};

#[path = "../../tests/bench/giants.rs"]
mod giants;

/// The part of the budget that one honest object may take.
const HONEST: u64 = Budget::STEPS / 50;

/// The steps by which an object may exceed the budget: a list that is begun is read to its end, and what is left is
/// still looked up by name, for eight steps a byte. With this, too, a review takes less than 200 ms
/// (`cargo bench --bench budget`).
const BEYOND: u64 = Budget::STEPS + 10 * giants::LARGEST as u64;

fn subject(value: &Value, door: Door) -> Subject {
    let subject = Subject::from_manifest(Arc::new(value.clone())).unwrap();
    Subject { door, ..subject }
}

/// A change of the object that leaves what costs as it is.
fn update(value: &Value) -> Subject {
    let mut changed = value.clone();
    changed["spec"]["paused"] = json!(true);
    Subject {
        operation: Operation::Update,
        old: Some(Arc::new(value.clone())),
        ..subject(&changed, Door::Validate)
    }
}

fn judge(policy: &Policy, subject: &Subject) -> Review {
    review(policy, &Facts::unknown(), subject, Timestamp::UNIX_EPOCH)
}

fn judged(value: &Value) -> Review {
    judge(&Policy::default(), &subject(value, Door::Validate))
}

#[allow(clippy::needless_pass_by_value, reason = "json!() is an expression")]
fn policy(members: Value) -> Policy {
    let mut file = json!({"apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy"});
    let all = file.as_object_mut().unwrap();
    all.extend(members.as_object().unwrap().clone());
    Policy::from_document(&file).unwrap()
}

fn of_rule<'r>(review: &'r Review, rule: &str) -> Vec<&'r Finding> {
    let all = review.findings.iter();
    all.filter(|finding| finding.rule == rule).collect()
}

fn too_complex(review: &Review) -> Option<&Finding> {
    of_rule(review, OBJECT_TOO_COMPLEX.id).first().copied()
}

/// Nine thousand triggers that try patterns on every metric that is known.
fn patterns() -> Value {
    giants::queries(9_000, |index| {
        giants::REGEX.replace("x1", &format!("x{index}"))
    })
}

/// The dearest objects of these kinds exceed the budget by no more than they may, and are too complex where
/// they exceed it.
fn dearest(is_wanted: impl Fn(&str) -> bool) {
    let mut wrong = Vec::new();
    for (name, make) in giants::giants() {
        if !is_wanted(make(1)["kind"].as_str().unwrap()) {
            continue;
        }
        let value = giants::sized(make, giants::LARGEST);
        let review = judged(&value);
        println!("{name}: {} steps", review.steps);
        let denied = too_complex(&review).map(|finding| finding.level) == Some(Level::Deny);
        if denied != (review.steps > Budget::STEPS) || review.steps > Budget::STEPS + BEYOND {
            wrong.push(format!(
                "{name}: {} steps, too complex: {denied}",
                review.steps
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn is_autoscaler(kind: &str) -> bool {
    AUTOSCALERS.iter().any(|one| one.kind == kind)
}

// Three tests, which run at a time.
#[test]
fn the_dearest_autoscalers_stay_within_the_budget_or_are_too_complex() {
    dearest(is_autoscaler);
}

#[test]
fn the_dearest_node_pools_stay_within_the_budget_or_are_too_complex() {
    dearest(|kind| kind == "NodePool");
}

#[test]
fn the_dearest_workloads_stay_within_the_budget_or_are_too_complex() {
    dearest(|kind| kind != "NodePool" && !is_autoscaler(kind));
}

#[test]
fn ten_times_as_much_takes_ten_times_the_steps() {
    // Each of one list has to be looked for in the other; the budget bounds both.
    const PAIRED: [&str; 5] = [
        "bounds",
        "torchrun",
        "mpirun",
        "mounts and paths",
        "worker groups",
    ];
    let mut wrong = Vec::new();
    for (name, make) in giants::giants() {
        if PAIRED.contains(&name) {
            continue;
        }
        let (few, many) = (judged(&make(40)).steps, judged(&make(400)).steps);
        if many > 11 * few.max(1) && many < Budget::STEPS {
            wrong.push(format!("{name}: {few} and {many}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn honest_objects_take_less_than_a_fiftieth() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts: Vec<(String, String)> = Vec::new();
    for folder in fs::read_dir(root.join("tests/fixtures")).unwrap() {
        let folder = folder.unwrap().path();
        if folder.ends_with(OBJECT_TOO_COMPLEX.id) {
            continue;
        }
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            texts.push((path.display().to_string(), text));
        }
    }
    for rule in RULES.iter().filter(|rule| rule.id != OBJECT_TOO_COMPLEX.id) {
        for block in rule.documentation().split("```yaml\n").skip(1) {
            let yaml = block.split("```").next().unwrap();
            texts.push((rule.id.to_owned(), yaml.to_owned()));
        }
    }
    let mut dearest = (0, String::new());
    for (name, text) in &texts {
        let values: Vec<Arc<Value>> = source::read(text)
            .into_iter()
            .map(|document| document.unwrap().value)
            .collect();
        let facts = Facts::from_documents(&values);
        for value in values {
            if let Some(subject) = Subject::from_manifest(value) {
                let policy = Policy::default();
                let steps = review(&policy, &facts, &subject, Timestamp::UNIX_EPOCH).steps;
                dearest = dearest.max((steps, name.clone()));
            }
        }
    }
    println!("{dearest:?} of {HONEST}");
    assert!(texts.len() > 300 && dearest.0 > 10_000, "{dearest:?}");
    assert!(dearest.0 <= HONEST, "{dearest:?}");
}

#[test]
fn nine_thousand_triggers_with_patterns_are_too_complex() {
    let review = judged(&patterns());
    let found = too_complex(&review).unwrap();
    assert_eq!(found.path.to_string(), "spec.triggers");
    assert!(found.message.contains("9,000 entries"), "{}", found.message);
    assert!(found.instead.contains("fewer"), "{}", found.instead);
    assert_eq!(review.verdict(), Verdict::Deny);
    // Equal patterns are tried once; to read and compile those of each query still costs.
    let equal = |count| judged(&giants::queries(count, |_| giants::REGEX.to_owned())).steps;
    let different = |count| {
        judged(&giants::queries(count, |index| {
            giants::REGEX.replace("x1", &format!("x{index}"))
        }))
        .steps
    };
    let (equal, different) = (equal(50), different(50));
    assert!(equal + 49 * 20_000 < different, "{equal} {different}");
}

#[test]
fn a_node_pool_with_twenty_five_thousand_values() {
    many_values(25_000);
}

#[test]
fn a_node_pool_with_sixty_thousand_values() {
    many_values(60_000);
}

fn many_values(count: usize) {
    let review = judged(&giants::instance_types(count));
    let few = judged(&giants::instance_types(count / 1_000)).steps;
    assert!(review.steps <= Budget::STEPS + BEYOND, "{}", review.steps);
    assert!(review.steps <= 1_100 * few, "{} {few}", review.steps);
    if let Some(found) = too_complex(&review) {
        let path = found.path.to_string();
        assert_eq!(path, "spec.template.spec.requirements[0].values");
        assert_eq!(found.level, Level::Deny);
    }
}

#[test]
fn one_dear_field_is_named_exactly() {
    let value = giants::sized(
        |n| {
            let mut object = giants::queries(2, |_| "sum(a)".to_owned());
            object["spec"]["triggers"][1] =
                json!({"type": "mine", "metadata": {"query": "a", "profile": "gpu "}});
            let keys = object["spec"]["triggers"][1]["metadata"]
                .as_object_mut()
                .unwrap();
            keys.extend((0..n).map(|index| (format!("gpu_util_{index}"), json!("5"))));
            object
        },
        giants::LARGEST,
    );
    let found = judged(&value);
    let path = too_complex(&found).unwrap().path.to_string();
    assert_eq!(path, "spec.triggers[1].metadata");
}

#[test]
fn a_name_of_a_device_metric_is_found_whatever_spent_the_budget() {
    let mut value = patterns();
    for (query, rule) in [
        ("DCGM_FI_DEV_GPU_UTIL", "gpu-utilization-signal"),
        (" DCGM_FI_DEV_FB_USED ", "gpu-memory-signal"),
    ] {
        value["spec"]["triggers"][8_999]["metadata"]["query"] = json!(query);
        let review = judged(&value);
        assert!(too_complex(&review).is_some());
        let found = of_rule(&review, rule);
        let last = found.last().unwrap();
        assert_eq!(last.path.to_string(), "spec.triggers[8999].metadata.query");
        assert_eq!(last.level, Level::Deny);
    }
    // A query behind the point where the budget was spent is not reported as opaque.
    value["spec"]["triggers"][8_999]["metadata"]["query"] = json!("sum(a)");
    let opaque = of_rule(&judged(&value), "opaque-signal")
        .iter()
        .any(|finding| finding.path.to_string().contains("[8999]"));
    assert!(!opaque);
}

#[test]
fn so_it_is_among_metrics_by_name() {
    let mut value = giants::giants()
        .into_iter()
        .find(|(name, _)| *name == "words")
        .map(|(_, make)| giants::sized(make, giants::LARGEST))
        .unwrap();
    let last = value["spec"]["metrics"].as_array().unwrap().len() - 1;
    value["spec"]["metrics"][last]["pods"]["metric"]["name"] = json!("DCGM_FI_DEV_GPU_UTIL");
    let review = judged(&value);
    assert!(too_complex(&review).is_some());
    let path = format!("spec.metrics[{last}].pods.metric.name");
    let found = of_rule(&review, "gpu-utilization-signal");
    assert!(found.iter().any(|finding| finding.path.to_string() == path));
}

#[test]
fn what_was_stored_before_may_be_updated() {
    let value = patterns();
    let review = judge(&Policy::default(), &update(&value));
    let found = too_complex(&review).unwrap();
    assert_eq!((found.level, found.ratcheted), (Level::Warn, true));
    assert_ne!(review.verdict(), Verdict::Deny);
    // What comes with the update is denied all the same.
    let mut worse = update(&value);
    let mut changed = value.clone();
    changed["spec"]["triggers"][8_999]["metadata"]["query"] = json!("DCGM_FI_DEV_GPU_UTIL");
    worse.value = Arc::new(changed);
    assert_eq!(judge(&Policy::default(), &worse).verdict(), Verdict::Deny);
    // And so is what becomes too complex.
    let grown = Subject {
        old: Some(Arc::new(giants::queries(2, |_| "sum(a)".to_owned()))),
        ..update(&value)
    };
    assert_eq!(judge(&Policy::default(), &grown).verdict(), Verdict::Deny);
    let strict = policy(json!({"existingViolations": "deny"}));
    assert_eq!(judge(&strict, &update(&value)).verdict(), Verdict::Deny);
}

#[test]
fn it_is_a_rule_like_any_other() {
    let value = patterns();
    let seen = |policy: &Policy, value: &Value| {
        let review = judge(policy, &subject(value, Door::Validate));
        too_complex(&review).map(|finding| (finding.level, finding.exempted.is_some(), finding.dry))
    };
    let level = |level: &str| policy(json!({"rules": {"object-too-complex": {"level": level}}}));
    assert_eq!(
        seen(&Policy::default(), &value),
        Some((Level::Deny, false, false))
    );
    assert_eq!(
        seen(&level("warn"), &value),
        Some((Level::Warn, false, false))
    );
    assert_eq!(seen(&level("off"), &value), None);
    let dry = policy(json!({"mode": "dryRun"}));
    assert_eq!(seen(&dry, &value), Some((Level::Warn, false, true)));
    let exempt = policy(json!({"exemptions": {"namespaces": [{"namespaces": ["a"],
        "rules": ["object-too-complex"], "until": "2027-01-31", "owner": "team", "reason": "load test"}]}}));
    assert_eq!(seen(&exempt, &value), Some((Level::Audit, true, false)));
}

#[test]
fn every_caller_gets_the_same_answer_and_nothing_is_filled() {
    let value = giants::giants()
        .into_iter()
        .find(|(name, _)| *name == "a variable again and again")
        .map(|(_, make)| make(300))
        .unwrap();
    for door in [Door::Check, Door::Audit, Door::Validate] {
        let review = judge(&Policy::default(), &subject(&value, door));
        assert_eq!(
            too_complex(&review).map(|finding| finding.level),
            Some(Level::Deny)
        );
        assert!(review.patch.0.is_empty());
    }
    let review = judge(&Policy::default(), &subject(&value, Door::Mutate));
    assert!(review.findings.is_empty() && review.patch.0.is_empty());
}
