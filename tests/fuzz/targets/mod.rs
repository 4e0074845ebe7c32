//! What is fuzzed: each target takes any bytes and panics where a property does not hold.
//!
//! Two drivers run them: libFuzzer, which looks for bytes that reach further (`.ci/fuzz`), and
//! `cargo test`, which takes the seeds and a settled number of damaged seeds (tests/it/fuzz.rs).

// A library of the fuzz package, and a module of the integration tests.
#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a property that does not hold panics"
)]

mod argv;
mod envelope;
mod exemption;
mod policy;
mod query;
mod yaml;

use std::sync::{Arc, LazyLock};

use gangplank::{
    exempt::{Grant, Rights},
    facts::Facts,
    policy::Policy,
    review::{Review, review},
    rules::RULES,
    subject::{Door, Subject},
    webhook::answer::answer,
};
use jiff::Timestamp;
use serde_json::{Value, json};

/// A target: any bytes.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its seeds' folder as well.
pub const TARGETS: [(&str, Target); 6] = [
    ("argv", argv::target),
    ("envelope", envelope::target),
    ("exemption", exemption::target),
    ("policy", policy::target),
    ("query", query::target),
    ("yaml", yaml::target),
];

/// Runs the target of that name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("a target's name").1(data);
}

/// What the API server passes on of one warning, and of all (k8s.io/apiserver, filters/warning.go).
const WARNING: usize = 256;
const WARNINGS: usize = 4096;

/// 2026-11-23, so that seeds can hold exemptions that are good and that are over.
fn now() -> Timestamp {
    Timestamp::from_second(1_795_392_000).expect("a time of this age")
}

fn policy() -> &'static Policy {
    static POLICY: LazyLock<Policy> = LazyLock::new(Policy::default);
    &POLICY
}

/// As little and as much as may be known beside an object: nothing; and that whoever asks may exempt.
fn worlds() -> &'static [Facts; 2] {
    static WORLDS: LazyLock<[Facts; 2]> = LazyLock::new(|| {
        let answers = RULES.iter().map(|rule| (rule.id, Grant::Allowed)).collect();
        let rights = Rights {
            askable: true,
            answers,
            owner: None,
        };
        [Facts::unknown(), Facts::unknown().with_rights(rights)]
    });
    &WORLDS
}

/// What holds for every review of every object: the same question has the same answer, the mutating
/// door never denies, the patch applies, and what it makes is filled no further and judged no worse.
fn examine(facts: &Facts, subject: &Subject) -> Review {
    let ask = |subject: &Subject| review(policy(), facts, subject, now());
    let once = ask(subject);
    let told = |review: &Review| format!("{:?} {:?}", review.findings, review.patch);
    assert_eq!(told(&once), told(&ask(subject)), "another answer");
    assert!(
        subject.door != Door::Mutate || once.findings.iter().all(|finding| finding.filled),
        "/mutate judges: {once:?}"
    );
    let answer = answer(policy(), "uid", subject, &once);
    let patch = answered(&answer, "uid");
    assert!(
        patch.is_none() || subject.door == Door::Mutate,
        "a patch at {:?}",
        subject.door
    );
    let mut after = (*subject.value).clone();
    json_patch::patch(&mut after, &once.patch).expect("the patch applies");
    if let Some(patch) = patch {
        let mut same = (*subject.value).clone();
        json_patch::patch(&mut same, &patch).expect("the patch of the answer applies");
        assert_eq!(same, after, "the answer holds another patch");
    }
    if !once.patch.0.is_empty() {
        let filled = subject.with_value(after);
        let again = ask(&filled);
        assert!(
            again.patch.0.is_empty(),
            "{:?} after {:?}",
            again.patch,
            once.patch
        );
        let judge = |subject: &Subject| {
            let subject = Subject {
                door: Door::Validate,
                ..subject.clone()
            };
            ask(&subject).verdict()
        };
        assert!(
            judge(&filled) <= judge(subject),
            "worse after {:?}",
            once.patch
        );
    }
    once
}

/// What the API server asks of an answer: it drops one that breaks any of this, and the write fails.
/// Gives the patch.
fn answered(answer: &Value, uid: &str) -> Option<json_patch::Patch> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};

    let text = serde_json::to_vec(answer).expect("JSON");
    let answer: Value = serde_json::from_slice(&text).expect("what is written can be read");
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    let response = &answer["response"];
    assert_eq!(response["uid"], uid);
    let allowed = response["allowed"].as_bool().expect("allowed");
    assert_eq!(!allowed, response.get("status").is_some());
    if let Some(status) = response.get("status") {
        assert!(status["code"].as_u64().is_some_and(|code| code >= 400));
        assert!(!status["reason"].as_str().expect("a reason").is_empty());
        let message = status["message"].as_str().expect("a message");
        assert!(!message.is_empty());
        let odd = |letter: char| letter.is_control() && letter != '\n';
        assert!(!message.contains(odd), "{message:?}");
    }
    let warnings = response.get("warnings").and_then(Value::as_array);
    let mut length = 0;
    for warning in warnings.into_iter().flatten() {
        let warning = warning.as_str().expect("a warning is text");
        assert!(!warning.is_empty());
        assert!(!warning.contains(char::is_control), "{warning:?}");
        assert!(warning.chars().count() <= WARNING, "{warning:?}");
        length += warning.len();
    }
    assert!(length <= WARNINGS, "{length} bytes of warnings");
    for (key, value) in response
        .get("auditAnnotations")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        assert!(value.is_string(), "{key} is {value}");
    }
    let patch = response.get("patch")?;
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = BASE64_STANDARD
        .decode(patch.as_str().expect("base64 text"))
        .expect("base64");
    Some(serde_json::from_slice(&patch).expect("a JSON patch"))
}

/// How many lines YAML counts in a text: a carriage return alone ends one too (YAML 1.2, 5.4).
fn lines(text: &str) -> usize {
    text.replace("\r\n", "\n").split(['\n', '\r']).count()
}

/// An object as it is created.
fn created(value: Value, door: Door) -> Option<Subject> {
    let subject = Subject::from_manifest(Arc::new(value))?;
    Some(Subject { door, ..subject })
}

/// An HPA that scales on this metric.
fn hpa(metric: &str) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "chat", "namespace": "llm"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "minReplicas": 1, "maxReplicas": 4,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": metric},
                "target": {"type": "AverageValue", "averageValue": "70"}}}],
        },
    })
}
