//! Exemptions: who may, until when, and what becomes of the object after. First the question alone,
//! then the router that asks a real API server, then people and controllers against it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::SystemTime,
};

use anyhow::{Context as _, Result, anyhow};

use axum_server::{
    Handle,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use gangplank::{
    cluster::{self, access::Access},
    exempt::{Grant, Rights},
    facts::Facts,
    finding::{Level, Verdict},
    metrics::Metrics,
    policy::Policy,
    review::{Review, review},
    subject::{Door, Operation, Subject},
    tls::{self, Resolver, authority::Authority},
    webhook::{
        self, Desk,
        registration::{FailurePolicy, Reach, Registration},
    },
};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use kube::{Client, config::KubeConfigOptions};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    enforce::{denied_by, deployment, guard, guarded, hpa, queue},
    fixtures::now,
    harness::{Assets, Cluster, Kubectl, SOON, eventually},
    serve::get,
};

const RULE: &str = "gpu-utilization-signal";
const KEY: &str = "exempt.gangplank.dev/gpu-utilization-signal";
const BAD: &str = "DCGM_FI_DEV_GPU_UTIL";
const WORSE: &str = "DCGM_FI_PROF_SM_ACTIVE";
const FINE: &str = "vllm:num_requests_waiting";

const VALID: &str = "until=2027-01-31; owner=team-llm; reason=load test; legacy model";
const OVER: &str = "until=2026-10-31; owner=team-llm; reason=load test; legacy model";
const UNREADABLE: &str = "until=soon";

fn annotated(mut object: Value, key: &str, text: &str) -> Value {
    if !text.is_empty() {
        object["metadata"]["annotations"][key] = json!(text);
    }
    object
}

/// An HPA in a namespace, with an exemption where the text is not empty.
fn scaler(metric: &str, text: &str) -> Value {
    let mut hpa = hpa("llm", metric);
    hpa["metadata"]["namespace"] = json!("inference");
    annotated(hpa, KEY, text)
}

fn policy(members: &Value) -> Policy {
    let mut document = json!({"apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy"});
    let members = members.as_object().unwrap().clone();
    document.as_object_mut().unwrap().extend(members);
    Policy::from_document(&document).unwrap()
}

fn judge(policy: &Policy, rights: Rights, old: Option<&Value>, new: &Value) -> Review {
    let mut subject = Subject::from_manifest(Arc::new(new.clone())).unwrap();
    subject.door = Door::Validate;
    subject.user = "bob".to_owned();
    if let Some(old) = old {
        subject.operation = Operation::Update;
        subject.old = Some(Arc::new(old.clone()));
    }
    review(policy, &Facts::unknown().with_rights(rights), &subject, now())
}

fn answered(grant: Grant) -> Rights {
    Rights {
        askable: true,
        answers: BTreeMap::from([(RULE, grant)]),
        owner: None,
    }
}

/// The verdict of a rule on a change: what it denies, what it warns of, what is exempt.
fn outcome(review: &Review, rule: &str) -> &'static str {
    let of_rule = || review.findings.iter().filter(|finding| finding.rule == rule);
    match of_rule().map(|finding| finding.level).max() {
        _ if review.skipped.is_some() => "skipped",
        Some(Level::Deny) => "denied",
        Some(Level::Warn) => "warned",
        _ if of_rule().any(|finding| finding.exempted.is_some()) => "exempt",
        _ => "silent",
    }
}

/// The object changed in something beside the fault, so that it is looked at.
fn touched(mut object: Value) -> Value {
    object["spec"]["maxReplicas"] = json!(9);
    object
}

#[test]
fn what_an_exemption_carried_is_no_existing_violation() {
    let default = policy(&json!({}));
    let strict = policy(&json!({"existingViolations": "deny"}));
    let mut wrong = Vec::new();
    // The exemption and the metric before and after, who may, and what becomes of the change.
    for (before, old, after, new, grant, wanted, wanted_strict) in [
        // Never exempt.
        ("", BAD, "", BAD, None, "warned", "denied"),
        ("", BAD, "", WORSE, None, "denied", "denied"),
        ("", FINE, "", BAD, None, "denied", "denied"),
        // An unchanged exemption is good whoever writes, and covers what its rule finds.
        (VALID, BAD, VALID, BAD, None, "exempt", "exempt"),
        (VALID, BAD, VALID, WORSE, None, "exempt", "exempt"),
        (VALID, BAD, VALID, BAD, Some(Grant::Refused), "exempt", "exempt"),
        // Once it is gone, over or unreadable, what it carried is denied like anything new.
        (VALID, BAD, "", BAD, None, "denied", "denied"),
        (OVER, BAD, OVER, BAD, None, "denied", "denied"),
        (OVER, BAD, "", BAD, None, "denied", "denied"),
        (UNREADABLE, BAD, UNREADABLE, BAD, None, "denied", "denied"),
        (UNREADABLE, BAD, "", BAD, None, "denied", "denied"),
        (VALID, BAD, OVER, BAD, None, "denied", "denied"),
        // Mended, the annotation may stay or go.
        (OVER, BAD, "", FINE, None, "silent", "silent"),
        (VALID, BAD, VALID, FINE, None, "silent", "silent"),
        // A new or changed one takes the right.
        ("", BAD, VALID, BAD, Some(Grant::Allowed), "exempt", "exempt"),
        (OVER, BAD, VALID, BAD, Some(Grant::Allowed), "exempt", "exempt"),
        (OVER, BAD, VALID, BAD, Some(Grant::Refused), "denied", "denied"),
        (OVER, BAD, VALID, BAD, Some(Grant::Unanswered), "denied", "denied"),
        // Without it, the annotation is not let in for the sake of an existing violation: it would be
        // good from then on.
        ("", BAD, VALID, BAD, Some(Grant::Refused), "denied", "denied"),
        ("", BAD, VALID, BAD, Some(Grant::Unanswered), "denied", "denied"),
        ("", BAD, VALID, BAD, Some(Grant::ReviewRequired), "denied", "denied"),
        ("", BAD, VALID, BAD, None, "denied", "denied"),
        // One that lay ready on an object without fault was let in unasked.
        (VALID, FINE, VALID, BAD, Some(Grant::Refused), "denied", "denied"),
        (VALID, FINE, VALID, BAD, Some(Grant::Allowed), "exempt", "exempt"),
    ] {
        for (policy, wanted) in [(&default, wanted), (&strict, wanted_strict)] {
            let rights = grant.map_or_else(Rights::default, answered);
            let (old, new) = (scaler(old, before), touched(scaler(new, after)));
            let review = judge(policy, rights, Some(&old), &new);
            let found = outcome(&review, RULE);
            if found != wanted {
                wrong.push(format!(
                    "{:?}: {before:?} -> {after:?} ({grant:?}): {found}, not {wanted}",
                    policy.existing_violations
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Neither does it help to change the order of a list or a name.
#[test]
fn order_and_names_make_no_difference() {
    let policy = policy(&json!({}));
    let two = |first: &str, second: &str, text: &str| {
        let mut both = scaler(first, text);
        let other = scaler(second, "")["spec"]["metrics"][0].clone();
        both["spec"]["metrics"].as_array_mut().unwrap().push(other);
        touched(both)
    };
    for (before, after, wanted) in [
        ("", "", "warned"),
        (VALID, VALID, "exempt"),
        (VALID, "", "denied"),
        (OVER, OVER, "denied"),
    ] {
        let review = judge(
            &policy,
            Rights::default(),
            Some(&two(BAD, WORSE, before)),
            &two(WORSE, BAD, after),
        );
        assert_eq!(outcome(&review, RULE), wanted, "{before} -> {after}");
        let of_rule = review.findings.iter().filter(|one| one.rule == RULE);
        assert_eq!(of_rule.count(), 2);
    }
    let server = |container: &str, text: &str| {
        let mut server = deployment("llm", 7, 1, &["--tensor-parallel-size=8"]);
        server["spec"]["template"]["spec"]["containers"][0]["name"] = json!(container);
        let sidecar = json!({"name": "sidecar", "image": "proxy"});
        let containers = server["spec"]["template"]["spec"]["containers"].as_array_mut();
        let place = usize::from(container == "vllm");
        containers.unwrap().insert(place, sidecar);
        annotated(server, "exempt.gangplank.dev/parallelism-fits-pod", text)
    };
    for (before, after, wanted) in [
        ("", "", "warned"),
        (VALID, VALID, "exempt"),
        (VALID, "", "denied"),
        (OVER, OVER, "denied"),
        (UNREADABLE, UNREADABLE, "denied"),
    ] {
        let (old, new) = (server("vllm", before), server("engine", after));
        let review = judge(&policy, Rights::default(), Some(&old), &new);
        let found = outcome(&review, "parallelism-fits-pod");
        assert_eq!(found, wanted, "{before} -> {after}");
    }
}

#[test]
fn an_update_of_nothing_but_an_exemption_is_judged() {
    let policy = policy(&json!({}));
    for (before, after, wanted) in [
        ("", "yes", "denied"),
        (VALID, "yes", "denied"),
        ("yes", "yes", "skipped"),
        (VALID, VALID, "skipped"),
    ] {
        let (old, new) = (scaler(FINE, before), scaler(FINE, after));
        let review = judge(&policy, Rights::default(), Some(&old), &new);
        let found = outcome(&review, "exemption-malformed");
        assert_eq!(found, wanted, "{before} -> {after}");
    }
    // What stands there already warns.
    let (old, new) = (scaler(FINE, "yes"), touched(scaler(FINE, "yes")));
    let review = judge(&policy, Rights::default(), Some(&old), &new);
    assert_eq!(outcome(&review, "exemption-malformed"), "warned");
    // No object is let in with one in the first place, in whatever kind.
    let review = judge(&policy, Rights::default(), None, &scaler(FINE, "yes"));
    assert_eq!(outcome(&review, "exemption-malformed"), "denied");
}

#[test]
fn a_right_is_asked_for_only_where_it_matters() {
    let policy = policy(&json!({}));
    let asks = |old: Option<&Value>, new: &Value| {
        judge(&policy, Rights::askable(), old, new).asks
    };
    assert_eq!(asks(None, &scaler(BAD, VALID)), [RULE]);
    assert!(asks(None, &scaler(FINE, VALID)).is_empty(), "nothing is found");
    assert!(asks(None, &scaler(BAD, "")).is_empty());
    assert!(asks(None, &scaler(BAD, OVER)).is_empty());
    assert!(asks(None, &scaler(BAD, UNREADABLE)).is_empty());
    let unchanged = asks(Some(&scaler(BAD, VALID)), &touched(scaler(BAD, VALID)));
    assert!(unchanged.is_empty());
    let review = judge(&policy, answered(Grant::Refused), None, &scaler(BAD, VALID));
    assert!(review.asks.is_empty(), "asked once");
}

/// A forged reference to some object gives no right; that of an owner whose own exemption was asked
/// for does.
#[test]
fn a_childs_exemption_is_good_where_its_owners_is() {
    let policy = policy(&json!({}));
    let owned = |text: &str, owner: Value| {
        let rights = Rights {
            owner: Some(Arc::new(owner)),
            ..answered(Grant::Refused)
        };
        let review = judge(&policy, rights, None, &scaler(BAD, text));
        outcome(&review, RULE)
    };
    assert_eq!(owned(VALID, scaler(BAD, VALID)), "exempt");
    assert_eq!(owned(VALID, scaler(BAD, "")), "denied");
    let other = VALID.replace("team-llm", "team-b");
    assert_eq!(owned(VALID, scaler(BAD, &other)), "denied", "byte by byte");
    assert_eq!(
        owned(VALID, scaler(FINE, VALID)),
        "denied",
        "nobody was asked for the owner's"
    );
    let stranger = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "x", "annotations": {KEY: VALID}},
    });
    assert_eq!(owned(VALID, stranger), "denied");
}

#[test]
fn namespaces_are_exempt_by_the_policy_until_its_date() {
    let with = |until: &str| {
        let exempt = json!({
            "namespaces": ["infer*"], "rules": [RULE, "gang-scheduling"], "until": until,
            "owner": "team-llm", "reason": "migration",
        });
        policy(&json!({"exemptions": {"namespaces": [exempt]}}))
    };
    let create = |policy: &Policy, namespace: &str| {
        let mut object = scaler(BAD, "");
        object["metadata"]["namespace"] = json!(namespace);
        let review = judge(policy, Rights::askable(), None, &object);
        assert!(review.asks.is_empty());
        outcome(&review, RULE)
    };
    assert_eq!(create(&with("2026-11-23"), "inference"), "exempt");
    assert_eq!(create(&with("2026-11-23"), "other"), "denied");
    assert_eq!(create(&with("2026-11-22"), "inference"), "denied");
    // What it carried is not forgiven after.
    let (old, new) = (scaler(BAD, ""), touched(scaler(BAD, "")));
    let update = |policy: &Policy| {
        let review = judge(policy, Rights::default(), Some(&old), &new);
        (outcome(&review, RULE), review.findings[0].exemption.clone())
    };
    assert_eq!(update(&with("2026-11-22")).0, "denied");
    assert_eq!(
        update(&with("2026-11-22")).1,
        "the policy's exemptions.namespaces[0] ended with 2026-11-22 (owner team-llm)"
    );
    assert_eq!(
        with("2026-11-22").exemptions().ending(now()),
        [
            "the policy's exemptions.namespaces[0] (gpu-utilization-signal, gang-scheduling; owner team-llm) ended with 2026-11-22 and exempts nothing"
        ]
    );
    assert_eq!(
        with("2026-12-01").exemptions().ending(now()),
        [
            "the policy's exemptions.namespaces[0] (gpu-utilization-signal, gang-scheduling; owner team-llm) ends with 2026-12-01"
        ]
    );
    assert!(with("2027-12-01").exemptions().ending(now()).is_empty());
    // It needs no date within maxDays: whoever writes the policy may do anything.
    assert_eq!(create(&with("2031-01-01"), "inference"), "exempt");
}

/// What the rule says must not be, the rule does not fill in either.
#[test]
fn what_is_exempt_from_a_rule_is_not_filled_by_it() {
    let fills = |object: &Value, policy: &Policy| {
        let subject = Subject::from_manifest(Arc::new(object.clone())).unwrap();
        let subject = Subject {
            door: Door::Mutate,
            ..subject
        };
        let review = review(policy, &Facts::unknown(), &subject, now());
        serde_json::to_string(&review.patch).unwrap()
    };
    let queues = json!({"gangScheduler": {"queues": {"*": "llm"}}});
    let server = deployment("llm", 8, 1, &["--tensor-parallel-size=8"]);
    assert!(fills(&server, &policy(&queues)).contains("schedulerName"));
    let with = |text: &str| annotated(server.clone(), "exempt.gangplank.dev/gang-scheduling", text);
    assert!(!fills(&with(VALID), &policy(&queues)).contains("schedulerName"));
    assert!(fills(&with(OVER), &policy(&queues)).contains("schedulerName"));
    assert!(fills(&with("yes"), &policy(&queues)).contains("schedulerName"));
}

#[test]
fn children_that_a_controller_writes_are_never_refused() {
    let child = |text: &str| {
        let mut server = deployment("llm", 7, 1, &["--tensor-parallel-size=8"]);
        server["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "name": "llm",
            "uid": "u", "controller": true,
        }]);
        annotated(server, "exempt.gangplank.dev/parallelism-fits-pod", text)
    };
    for text in ["", VALID, OVER, UNREADABLE] {
        let rights = answered(Grant::Refused);
        let review = judge(&policy(&json!({})), rights, None, &child(text));
        assert_eq!(review.verdict(), Verdict::Warn, "{text}");
    }
}

/// What people read, in every case.
#[test]
fn the_text_of_every_answer() {
    let mut text = String::new();
    let default = policy(&json!({}));
    let exempt = json!({
        "namespaces": ["inference"], "rules": [RULE], "until": "2026-11-22",
        "owner": "team-llm", "reason": "migration",
    });
    let over = policy(&json!({"exemptions": {"namespaces": [exempt]}}));
    let warns = policy(&json!({"rules": {RULE: {"level": "warn"}}}));
    let none = Rights::default;
    for (what, policy, rights, old, new) in [
        ("may", &default, answered(Grant::Allowed), None, scaler(BAD, VALID)),
        ("may not", &default, answered(Grant::Refused), None, scaler(BAD, VALID)),
        ("review", &default, answered(Grant::ReviewRequired), None, scaler(BAD, VALID)),
        ("no answer", &default, answered(Grant::Unanswered), None, scaler(BAD, VALID)),
        ("no cluster", &default, none(), None, scaler(BAD, VALID)),
        ("over", &default, none(), None, scaler(BAD, OVER)),
        ("unreadable", &default, none(), None, scaler(BAD, UNREADABLE)),
        ("too far", &default, none(), None, scaler(BAD, "until=2028-01-31; owner=a; reason=b")),
        ("how", &default, Rights::askable(), None, scaler(BAD, "")),
        ("removed", &default, none(), Some(scaler(BAD, VALID)), touched(scaler(BAD, ""))),
        ("beside", &default, answered(Grant::Refused), Some(scaler(BAD, "")), scaler(BAD, VALID)),
        ("policy over", &over, none(), None, scaler(BAD, "")),
        ("a warning", &warns, answered(Grant::Refused), None, scaler(BAD, VALID)),
        ("a warning exempt", &warns, answered(Grant::Allowed), None, scaler(BAD, VALID)),
    ] {
        let review = judge(policy, rights, old.as_ref(), &new);
        let subject = Subject::from_manifest(Arc::new(new)).unwrap();
        let subject = Subject {
            door: Door::Validate,
            ..subject
        };
        let answer = webhook::answer::answer(policy, "u", &subject, &review);
        let response = &answer["response"];
        text.push_str(&format!("== {what}\n"));
        if let Some(message) = response["status"]["message"].as_str() {
            text.push_str(&format!("{message}\n"));
        }
        for warning in response["warnings"].as_array().into_iter().flatten() {
            text.push_str(&format!("Warning: {}\n", warning.as_str().unwrap()));
        }
        let audit = &response["auditAnnotations"];
        text.push_str(&format!(
            "audit: {} {} {}\n",
            audit["verdict"], audit["rules"], audit["exemptions"]
        ));
    }
    insta::assert_snapshot!("exemptions", text);
}
