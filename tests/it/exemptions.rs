//! Exemptions: who may, until when, and what becomes of the object after. First the question alone,
//! then the router that asks a real API server, then people and controllers against it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use axum::{body::Body, http::Request};

use gangplank::{
    cluster::{self, access::Access},
    exempt::{Grant, Hint, Rights, annotations},
    facts::Facts,
    finding::{Level, Verdict},
    metrics::Metrics,
    policy::Policy,
    report::{
        ObjectName,
        exemptions::{Entry, Ledger},
    },
    review::{Review, review},
    subject::{Door, Operation, Subject},
    webhook::{self, Desk},
};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    enforce::{CLIENTS, denied_by, deployment, evicting, guarded, hpa, node_pool},
    fixtures::now,
    harness::{Answer, Assets, Cluster, Gangplank, Kubectl, SOON, client, eventually},
    overheard::Serving,
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
    "bob".clone_into(&mut subject.user);
    if let Some(old) = old {
        subject.operation = Operation::Update;
        subject.old = Some(Arc::new(old.clone()));
    }
    review(
        policy,
        &Facts::unknown().with_rights(rights),
        &subject,
        now(),
    )
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
    let of_rule = || {
        review
            .findings
            .iter()
            .filter(|finding| finding.rule == rule)
    };
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
        (
            VALID,
            BAD,
            VALID,
            BAD,
            Some(Grant::Refused),
            "exempt",
            "exempt",
        ),
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
        (
            "",
            BAD,
            VALID,
            BAD,
            Some(Grant::Allowed),
            "exempt",
            "exempt",
        ),
        (
            OVER,
            BAD,
            VALID,
            BAD,
            Some(Grant::Allowed),
            "exempt",
            "exempt",
        ),
        (
            OVER,
            BAD,
            VALID,
            BAD,
            Some(Grant::Refused),
            "denied",
            "denied",
        ),
        (
            OVER,
            BAD,
            VALID,
            BAD,
            Some(Grant::Unanswered),
            "denied",
            "denied",
        ),
        // Without it, the annotation is not let in for the sake of an existing violation: it would be
        // good from then on.
        (
            "",
            BAD,
            VALID,
            BAD,
            Some(Grant::Refused),
            "denied",
            "denied",
        ),
        (
            "",
            BAD,
            VALID,
            BAD,
            Some(Grant::Unanswered),
            "denied",
            "denied",
        ),
        (
            "",
            BAD,
            VALID,
            BAD,
            Some(Grant::ReviewRequired),
            "denied",
            "denied",
        ),
        ("", BAD, VALID, BAD, None, "denied", "denied"),
        // One that lay ready on an object without fault was let in unasked.
        (
            VALID,
            FINE,
            VALID,
            BAD,
            Some(Grant::Refused),
            "denied",
            "denied",
        ),
        (
            VALID,
            FINE,
            VALID,
            BAD,
            Some(Grant::Allowed),
            "exempt",
            "exempt",
        ),
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
    let asks = |old: Option<&Value>, new: &Value| judge(&policy, Rights::askable(), old, new).asks;
    assert_eq!(asks(None, &scaler(BAD, VALID)), [RULE]);
    assert!(
        asks(None, &scaler(FINE, VALID)).is_empty(),
        "nothing is found"
    );
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
        (outcome(&review, RULE), review.findings[0].hint.clone())
    };
    assert_eq!(update(&with("2026-11-22")).0, "denied");
    assert_eq!(
        update(&with("2026-11-22")).1,
        Some(Hint::Void(
            "the policy's exemptions.namespaces[0] ended with 2026-11-22 (owner team-llm)"
                .to_owned()
        ))
    );
    assert_eq!(
        with("2026-11-22").reminders(now()),
        [
            "the policy's exemptions.namespaces[0] (gpu-utilization-signal, gang-scheduling; owner team-llm) ended with 2026-11-22 and exempts nothing"
        ]
    );
    assert_eq!(
        with("2026-12-01").reminders(now()),
        [
            "the policy's exemptions.namespaces[0] (gpu-utilization-signal, gang-scheduling; owner team-llm) ends with 2026-12-01"
        ]
    );
    assert!(with("2027-12-01").reminders(now()).is_empty());
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
        let mut server = deployment("llm-predictor", 7, 1, &["--tensor-parallel-size=8"]);
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

/// KEDA copies the annotations of a ScaledObject to its HorizontalPodAutoscaler, and would try again for
/// ever.
#[test]
fn a_controller_may_copy_what_its_owner_carries() {
    let mut copy = scaler(FINE, UNREADABLE);
    copy["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "llm", "uid": "u",
        "controller": true,
    }]);
    let review = judge(&policy(&json!({})), answered(Grant::Refused), None, &copy);
    assert_eq!(outcome(&review, "exemption-malformed"), "warned");
}

/// What lay ready is no older than the write that needs it, and bounded like it.
#[test]
fn a_date_beyond_the_limit_is_not_used_later() {
    let far = "until=2031-01-31; owner=team-llm; reason=load test";
    let (old, new) = (scaler(FINE, far), scaler(BAD, far));
    let change = |rights| judge(&policy(&json!({})), rights, Some(&old), &new);
    assert_eq!(outcome(&change(answered(Grant::Allowed)), RULE), "denied");
    assert!(change(Rights::askable()).asks.is_empty());
    // In use it stays good, though the policy now allows less.
    let old = scaler(BAD, VALID);
    let less = policy(&json!({"exemptions": {"maxDays": 7}}));
    let review = judge(&less, Rights::default(), Some(&old), &touched(old.clone()));
    assert_eq!(outcome(&review, RULE), "exempt");
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
        (
            "may",
            &default,
            answered(Grant::Allowed),
            None,
            scaler(BAD, VALID),
        ),
        (
            "may not",
            &default,
            answered(Grant::Refused),
            None,
            scaler(BAD, VALID),
        ),
        (
            "review",
            &default,
            answered(Grant::ReviewRequired),
            None,
            scaler(BAD, VALID),
        ),
        (
            "no answer",
            &default,
            answered(Grant::Unanswered),
            None,
            scaler(BAD, VALID),
        ),
        ("no cluster", &default, none(), None, scaler(BAD, VALID)),
        ("over", &default, none(), None, scaler(BAD, OVER)),
        (
            "unreadable",
            &default,
            none(),
            None,
            scaler(BAD, UNREADABLE),
        ),
        (
            "too far",
            &default,
            none(),
            None,
            scaler(BAD, "until=2028-01-31; owner=a; reason=b"),
        ),
        ("how", &default, Rights::askable(), None, scaler(BAD, "")),
        (
            "removed",
            &default,
            none(),
            Some(scaler(BAD, VALID)),
            touched(scaler(BAD, "")),
        ),
        (
            "beside",
            &default,
            answered(Grant::Refused),
            Some(scaler(BAD, "")),
            scaler(BAD, VALID),
        ),
        ("policy over", &over, none(), None, scaler(BAD, "")),
        (
            "a warning",
            &warns,
            answered(Grant::Refused),
            None,
            scaler(BAD, VALID),
        ),
        (
            "a warning exempt",
            &warns,
            answered(Grant::Allowed),
            None,
            scaler(BAD, VALID),
        ),
    ] {
        let review = judge(policy, rights, old.as_ref(), &new);
        let subject = Subject::from_manifest(Arc::new(new)).unwrap();
        let subject = Subject {
            door: Door::Validate,
            ..subject
        };
        let answer = webhook::answer::answer(policy, "u", &subject, &review);
        let response = &answer["response"];
        writeln!(text, "== {what}").unwrap();
        if let Some(message) = response["status"]["message"].as_str() {
            writeln!(text, "{message}").unwrap();
        }
        for warning in response["warnings"].as_array().into_iter().flatten() {
            writeln!(text, "Warning: {}", warning.as_str().unwrap()).unwrap();
        }
        let audit = &response["auditAnnotations"];
        writeln!(
            text,
            "audit: {} {} {}",
            audit["verdict"], audit["rules"], audit["exemptions"]
        )
        .unwrap();
    }
    insta::assert_snapshot!("exemptions", text);
}

/// The time of the tests that move it, in seconds.
static CLOCK: AtomicI64 = AtomicI64::new(0);

fn clock() -> Timestamp {
    Timestamp::from_second(CLOCK.load(Ordering::SeqCst)).unwrap()
}

fn set_clock(text: &str) {
    let time: Timestamp = text.parse().unwrap();
    CLOCK.store(time.as_second(), Ordering::SeqCst);
}

fn desk(client: Client, policy: Policy) -> Desk {
    let metrics = Arc::new(Metrics::new());
    let access = Access::new(client, Arc::clone(&metrics));
    Desk {
        clock: now,
        ..Desk::new(policy, metrics).with_access(access)
    }
}

/// What the webhook answers to a CREATE by a user.
async fn ask(desk: &Arc<Desk>, user: &str, object: &Value) -> Result<Value> {
    let namespace = &object["metadata"]["namespace"];
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "operation": "CREATE", "namespace": namespace,
            "kind": {"group": "autoscaling", "version": "v2", "kind": "HorizontalPodAutoscaler"},
            "object": object,
            "userInfo": {"username": user, "groups": ["system:authenticated"]},
        },
    });
    let request = Request::post("/validate")
        .header("content-type", "application/json")
        .body(Body::from(review.to_string()))?;
    let response = webhook::router(Arc::clone(desk)).oneshot(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    let answer: Value = serde_json::from_slice(&body)?;
    Ok(answer["response"].clone())
}

/// Roles in a namespace: alice, bob and the account `controller` may write everything, some of them may
/// exempt, too.
fn grant(kubectl: &Kubectl, exempters: &[&str]) -> Result<()> {
    let namespace = kubectl.namespace();
    let role = |name: &str, rules: Value, users: &[&str]| {
        let subjects: Vec<Value> = users
            .iter()
            .map(|user| json!({"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}))
            .collect();
        json!({"apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
                "metadata": {"name": name}, "rules": [rules],
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": name}, "subjects": subjects,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            },
        ]})
    };
    let everything = json!({"apiGroups": ["*"], "resources": [
        "horizontalpodautoscalers", "deployments", "statefulsets", "replicasets", "configmaps",
    ], "verbs": ["*"]});
    let controller = format!("system:serviceaccount:{namespace}:controller");
    let writers = role("writers", everything, &["alice", "bob", &controller]);
    kubectl.create(&writers.to_string())?.success()?;
    let exempt = json!({
        "apiGroups": ["gangplank.dev"], "resources": ["rules"], "verbs": ["exempt"],
        "resourceNames": [RULE, "parallelism-fits-pod"],
    });
    kubectl
        .create(&role("exempters", exempt, exempters).to_string())?
        .success()?;
    eventually("the roles are in force", SOON, || {
        let may = |user: &str, attributes: Value| is_allowed(&kubectl.as_user(user), attributes);
        let update = |group: &str, resource: &str| json!({"verb": "update", "group": group, "resource": resource});
        (may("bob", update("autoscaling", "horizontalpodautoscalers"))
            && may(&controller, update("apps", "deployments"))
            && exempters.iter().all(|user| {
                may(user, json!({
                    "verb": "exempt", "group": "gangplank.dev", "resource": "rules", "name": RULE,
                }))
            }))
        .then_some(())
    })
}

/// Whether the authorizer knows already, by its watches, that a user may do something.
fn is_allowed(user: &Kubectl, mut attributes: Value) -> bool {
    attributes["namespace"] = json!(user.namespace());
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    });
    // kubectl would validate it by the CRDs, which not everybody may list.
    let args = [
        "create",
        "--validate=false",
        "--filename=-",
        "--output=jsonpath={.status.allowed}",
    ];
    user.run(&args, Some(&review.to_string()))
        .is_ok_and(|answer| answer.stdout == "true")
}

/// What was said, whatever the lines.
fn said(answer: &Answer) -> String {
    answer
        .stderr
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// An exemption that is good on the day of the test's run.
fn valid() -> String {
    let until = gangplank::exempt::latest(Timestamp::now(), 30);
    format!("until={until}; owner=team-llm; reason=load test; legacy model")
}

#[test]
fn who_may_exempt_does_and_who_may_not_does_not() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("exempt")?;
    grant(&kubectl, &["alice"])?;
    let controller = format!("system:serviceaccount:{}:controller", kubectl.namespace());
    let [alice, bob, controller] =
        ["alice", "bob", controller.as_str()].map(|user| kubectl.as_user(user));
    let exempt = annotated(hpa("llm", BAD), KEY, &valid()).to_string();

    for (_, create) in CLIENTS {
        let answer = create(&bob, &exempt)?;
        denied_by(&answer, RULE);
        let says = "user \"bob\" may not exempt from gpu-utilization-signal in namespace exempt-";
        assert!(said(&answer).contains(says), "{}", answer.stderr);
    }
    let answer = alice.apply(&exempt)?;
    assert!(answer.accepted(), "{}", answer.stderr);
    let until = format!("{RULE}: exempt until ");
    let warned = |answer: &Answer| {
        answer
            .warnings()
            .iter()
            .any(|line| line.starts_with(&until))
    };
    assert!(warned(&answer), "{}", answer.stderr);

    // From then on anybody's writes keep it.
    let change = |replicas: u32| json!({"spec": {"maxReplicas": replicas}});
    for (replicas, user) in [(5, &bob), (6, &controller), (7, &alice)] {
        let answer = user.patch("hpa/llm", &change(replicas))?;
        assert!(answer.accepted() && warned(&answer), "{}", answer.stderr);
    }
    assert!(bob.apply(&exempt)?.accepted());

    // But not a longer one, or none.
    let longer = valid().replace("load test", "and another load test");
    for user in [&bob, &controller] {
        denied_by(&user.annotate("hpa/llm", &format!("{KEY}={longer}"))?, RULE);
        let answer = user.annotate("hpa/llm", &format!("{KEY}-"))?;
        denied_by(&answer, RULE);
        assert!(said(&answer).contains("it was exempt before this change"));
    }
    assert!(
        alice
            .annotate("hpa/llm", &format!("{KEY}={longer}"))?
            .accepted()
    );

    // Nor one that cannot be read.
    let answer = alice.annotate("hpa/llm", &format!("{KEY}=until=soon"))?;
    assert!(
        said(&answer).contains("exemption-malformed: "),
        "{}",
        answer.stderr
    );
    assert!(!answer.accepted());
    let misspelt = "exempt.gangplank.dev/gpu-utilisation-signal";
    let answer = alice.annotate("hpa/llm", &format!("{misspelt}={}", valid()))?;
    assert!(
        said(&answer).contains("did you mean gpu-utilization-signal?"),
        "{}",
        answer.stderr
    );

    let metrics = get(&guarded()?.gangplank, "/metrics")?.1;
    let used =
        "gangplank_exemptions_used_total{rule=\"gpu-utilization-signal\",source=\"annotation\"}";
    assert!(metrics.contains(used), "{metrics}");
    assert!(metrics.contains("gangplank_exemption_access_reviews_total{result=\"refused\"}"));
    Ok(())
}

#[test]
fn an_exemption_does_not_travel_into_another_namespace() -> Result<()> {
    let cluster = &guarded()?.cluster;
    let (here, there) = (cluster.namespace("chart")?, cluster.namespace("copy")?);
    grant(&here, &["alice"])?;
    let exempt = annotated(hpa("llm", BAD), KEY, &valid());
    here.as_user("alice")
        .create(&exempt.to_string())?
        .success()?;
    // Whoever renders the same chart there may write there, and alice may exempt here only.
    grant(&there, &[])?;
    for user in ["alice", "bob"] {
        let user = there.as_user(user);
        denied_by(&user.create(&exempt.to_string())?, RULE);
        denied_by(&user.apply_server_side(&exempt.to_string())?, RULE);
        // Prepared beforehand, on an object without fault, it is worth nothing either.
        let ready = annotated(hpa("ready", FINE), KEY, &valid());
        let _ = user.create(&ready.to_string())?;
        let metrics = hpa("ready", BAD)["spec"]["metrics"].clone();
        denied_by(
            &user.patch("hpa/ready", &json!({"spec": {"metrics": metrics}}))?,
            RULE,
        );
    }
    Ok(())
}

#[test]
fn a_controllers_child_is_exempt_like_its_owner() -> Result<()> {
    const FITS: &str = "parallelism-fits-pod";
    let key = format!("exempt.gangplank.dev/{FITS}");
    let kubectl = guarded()?.cluster.namespace("owner")?;
    grant(&kubectl, &["alice"])?;
    let server = |kind: &str, text: &str| {
        let mut server = deployment("llm", 7, 1, &["--tensor-parallel-size=8"]);
        server["kind"] = json!(kind);
        if kind == "StatefulSet" {
            server["spec"]["serviceName"] = json!("llm");
        }
        annotated(server, &key, text)
    };
    kubectl
        .as_user("alice")
        .create(&server("Deployment", &valid()).to_string())?
        .success()?;
    let owner = kubectl.get("deployment/llm")?;
    let uid = owner["metadata"]["uid"].as_str().context("a uid")?;
    let controller = format!("system:serviceaccount:{}:controller", kubectl.namespace());
    let controller = kubectl.as_user(&controller);
    let child = |uid: &str, text: &str| {
        let mut child = server("StatefulSet", text);
        child["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "Deployment", "name": "llm", "uid": uid,
            "controller": true,
        }]);
        child.to_string()
    };
    let forged = "11111111-2222-3333-4444-555555555555";
    denied_by(&controller.create(&child(forged, &valid()))?, FITS);
    let other = valid().replace("team-llm", "team-b");
    denied_by(&controller.create(&child(uid, &other))?, FITS);
    let answer = controller.create(&child(uid, &valid()))?;
    assert!(answer.accepted(), "{}", answer.stderr);
    Ok(())
}

/// What lives outside of namespaces takes a right outside of namespaces.
#[test]
fn a_node_pool_is_exempt_by_a_cluster_role() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    let roles = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "pools"}, "rules": [
                {"apiGroups": ["karpenter.sh"], "resources": ["nodepools"], "verbs": ["*"]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "pool-exempter"}, "rules": [{
                "apiGroups": ["gangplank.dev"], "resources": ["rules"], "verbs": ["exempt"],
                "resourceNames": ["gpu-pool-consolidation"],
            }],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "pools"}, "subjects": [
                {"kind": "User", "name": "carol", "apiGroup": "rbac.authorization.k8s.io"},
                {"kind": "User", "name": "dave", "apiGroup": "rbac.authorization.k8s.io"},
            ],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "pools"},
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "pool-exempter"}, "subjects": [
                {"kind": "User", "name": "carol", "apiGroup": "rbac.authorization.k8s.io"},
            ],
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                "name": "pool-exempter",
            },
        },
    ]});
    kubectl.create(&roles.to_string())?.success()?;
    let pool = node_pool("exempt-pool", Some(evicting()));
    let rule = "gpu-pool-consolidation";
    let pool = annotated(pool, &format!("exempt.gangplank.dev/{rule}"), &valid()).to_string();
    let accepted = eventually("carol may exempt", SOON, || {
        let answer = kubectl.as_user("carol").create(&pool);
        answer.ok().filter(Answer::accepted)
    })?;
    assert!(
        accepted
            .warnings()
            .iter()
            .any(|line| line.contains("exempt until"))
    );
    kubectl.delete("nodepool/exempt-pool")?.success()?;
    let answer = kubectl.as_user("dave").create(&pool)?;
    denied_by(&answer, rule);
    assert!(
        said(&answer).contains("user \"dave\" may not exempt"),
        "{}",
        answer.stderr
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_yes_is_remembered_and_a_no_is_not() -> Result<()> {
    let guarded = tokio::task::spawn_blocking(guarded).await??;
    let kubectl = guarded.cluster.namespace("memory")?;
    grant(&kubectl, &["alice"])?;
    let mut object = scaler(BAD, VALID);
    object["metadata"]["namespace"] = json!(kubectl.namespace());
    let desk = Arc::new(desk(
        client(guarded.cluster.kubeconfig()).await?,
        policy(&json!({})),
    ));
    for (user, allowed) in [("alice", true), ("bob", false)] {
        for _ in 0..3 {
            let response = ask(&desk, user, &object).await?;
            assert_eq!(response["allowed"], allowed, "{response}");
        }
    }
    let metrics = desk.metrics.encode();
    for line in [
        "gangplank_exemption_access_reviews_total{result=\"allowed\"} 1",
        "gangplank_exemption_access_reviews_total{result=\"remembered\"} 2",
        "gangplank_exemption_access_reviews_total{result=\"refused\"} 3",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    Ok(())
}

/// An API server that answers nothing, and one that cannot be reached.
#[tokio::test]
async fn without_an_answer_the_exemption_is_refused_and_the_rest_is_judged() -> Result<()> {
    let silent = Client::new(
        tower::service_fn(|_: Request<kube::client::Body>| {
            std::future::pending::<Result<axum::http::Response<kube::client::Body>, kube::Error>>()
        }),
        "default",
    );
    let closed = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse()?))?;
    for (what, client) in [("silent", silent), ("closed", closed)] {
        let desk = Arc::new(desk(client, policy(&json!({}))));
        let mut object = scaler(BAD, VALID);
        // Beside it, something else that is wrong and has nothing to do with it.
        let other = scaler("DCGM_FI_DEV_FB_USED", "")["spec"]["metrics"][0].clone();
        object["spec"]["metrics"]
            .as_array_mut()
            .unwrap()
            .push(other);
        // The API server waits no longer.
        let limit = std::time::Duration::from_secs(5);
        let response = tokio::time::timeout(limit, ask(&desk, "alice", &object)).await??;
        assert_eq!(response["allowed"], false, "{what}: {response}");
        let message = response["status"]["message"]
            .as_str()
            .context("a message")?;
        assert!(message.contains("did not say in time"), "{what}: {message}");
        let causes = response["status"]["details"]["causes"].as_array();
        let rules: Vec<_> = causes
            .into_iter()
            .flatten()
            .map(|cause| &cause["reason"])
            .collect();
        assert_eq!(rules, [RULE, "gpu-memory-signal"], "{what}");
        // What needs no answer gets its own as ever.
        let response = ask(&desk, "alice", &scaler(FINE, VALID)).await?;
        assert_eq!(response["allowed"], true, "{what}: {response}");
        let unanswered = "exemption_access_reviews_total{result=\"unanswered\"} 1";
        assert!(desk.metrics.encode().contains(unanswered), "{what}");
    }
    Ok(())
}

/// A cluster guarded by the library's own server, whose clock the test holds.
#[tokio::test(flavor = "multi_thread")]
async fn an_exemption_ends_with_its_last_day() -> Result<()> {
    set_clock("2026-11-23T12:00:00Z");
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(&Assets::find()?)).await??;
    let client = client(cluster.kubeconfig()).await?;
    let policy = policy(&json!({"exemptions": {"reviewRequired": ["gitops", "bots"]}}));
    let desk = Arc::new(Desk {
        clock,
        ..desk(client.clone(), policy)
    });
    let serving = Serving::start(webhook::router(Arc::clone(&desk)))?;
    let wanted = serving.registration().configurations(&desk.policy.load());
    cluster::register(&client, wanted, &cluster::Registered::default()).await?;

    let asked = tokio::task::spawn_blocking(move || -> Result<()> {
        let kubectl = cluster.namespace("clock")?;
        eventually("the API server asks", SOON, || {
            let answer = kubectl.create(&hpa("probe", BAD).to_string());
            let accepted = answer.is_ok_and(|answer| answer.accepted());
            let _ = kubectl.delete("hpa/probe");
            (!accepted).then_some(())
        })?;
        let all = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "gitops"},
            "subjects": [{"kind": "User", "name": "gitops", "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin",
            },
        });
        kubectl.create(&all.to_string())?.success()?;
        let gitops = kubectl.as_user("gitops");
        eventually("the role is in force", SOON, || {
            let exempt = json!({"verb": "exempt", "group": "gangplank.dev", "resource": "rules"});
            is_allowed(&gitops, exempt).then_some(())
        })?;

        let exempt = annotated(
            hpa("llm", BAD),
            KEY,
            "until=2027-01-31; owner=team-llm; reason=load test",
        );
        let answer = gitops.apply(&exempt.to_string())?;
        denied_by(&answer, RULE);
        assert!(
            said(&answer).contains("exemptions.reviewRequired"),
            "{}",
            answer.stderr
        );
        let too_far = annotated(
            hpa("llm", BAD),
            KEY,
            "until=2027-02-22; owner=team-llm; reason=load test",
        );
        let answer = kubectl.apply(&too_far.to_string())?;
        assert!(
            said(&answer).contains("more than 90 days ahead"),
            "{}",
            answer.stderr
        );
        assert!(!answer.accepted());
        let answer = kubectl.apply(&exempt.to_string())?;
        assert!(answer.accepted(), "{}", answer.stderr);

        // Somebody who may has written it: from then on the GitOps account keeps it.
        let change = |replicas: u32| json!({"spec": {"maxReplicas": replicas}});
        set_clock("2027-01-31T23:59:59Z");
        let answer = gitops.patch("hpa/llm", &change(5))?;
        assert!(answer.accepted(), "{}", answer.stderr);
        let until =
            "gpu-utilization-signal: exempt until 2027-01-31 (team-llm); denied from then on";
        assert_eq!(answer.warnings(), [until]);

        set_clock("2027-02-01T00:00:00Z");
        for user in [&gitops, &kubectl] {
            let answer = user.patch("hpa/llm", &change(6))?;
            denied_by(&answer, RULE);
            assert!(
                said(&answer).contains("ended with 2027-01-31"),
                "{}",
                answer.stderr
            );
        }
        // What does not touch the object's content is let through: controllers are not locked out.
        assert!(
            kubectl
                .annotate("hpa/llm", "example.com/checked=yes")?
                .accepted()
        );
        assert!(kubectl.label("hpa/llm", "team=llm")?.accepted());
        // It is mended and the annotation removed in one change, or its end is moved.
        let longer = "until=2027-03-31; owner=team-llm; reason=load test";
        assert!(
            kubectl
                .annotate("hpa/llm", &format!("{KEY}={longer}"))?
                .accepted()
        );
        set_clock("2027-04-01T00:00:00Z");
        let mut mended = hpa("llm", FINE);
        mended["metadata"]["annotations"] = json!({KEY: null});
        let answer = kubectl.patch("hpa/llm", &mended)?;
        assert!(answer.accepted(), "{}", answer.stderr);
        Ok(())
    });
    asked.await??;
    drop(serving);
    Ok(())
}

/// `gangplank exemptions` with these arguments: exit code, output, standard error.
fn list(folder: &std::path::Path, args: &[&str], stdin: &str) -> (i32, String, String) {
    let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_gangplank"))
        .current_dir(folder)
        .env_clear()
        .arg("exemptions")
        .args(args)
        .write_stdin(stdin)
        .output()
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// A date so many days from the day of the test's run.
fn in_days(days: i64) -> String {
    let today = gangplank::exempt::today(Timestamp::now());
    today
        .saturating_add(jiff::Span::new().days(days))
        .to_string()
}

#[test]
fn exemptions_are_listed_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, object: &Value| {
        let text = format!("# a comment\n{object}\n");
        std::fs::write(folder.path().join(name), text).unwrap();
    };
    let with = |name: &str, metric: &str, text: &str| {
        let mut object = scaler(metric, text);
        object["metadata"]["name"] = json!(name);
        object
    };
    let terms = |days: i64| format!("until={}; owner=team-llm; reason=load test", in_days(days));
    write("good.yaml", &with("good", BAD, &terms(60)));
    write("none.yaml", &with("none", FINE, ""));
    let json = |args: &[&str]| {
        let (code, text, complaint) = list(folder.path(), &[&["--output=json"], args].concat(), "");
        (
            code,
            serde_json::from_str::<Value>(&text).unwrap(),
            complaint,
        )
    };
    let (code, report, complaint) = json(&["."]);
    assert_eq!((code, complaint.as_str()), (0, ""));
    assert_eq!(
        report["exemptions"],
        json!([{
            "rule": RULE, "state": "valid", "unused": false, "until": in_days(60), "daysLeft": 60,
            "owner": "team-llm", "reason": "load test", "source": "annotation",
            "object": {
                "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
                "namespace": "inference", "name": "good",
            },
            "namespaces": [], "file": "./good.yaml", "line": 2, "error": null,
        }])
    );

    // One that ends soon or is unused is no failure; one that has ended or cannot be read is.
    write("soon.yaml", &with("soon", BAD, &terms(14)));
    write("unused.yaml", &with("unused", FINE, &terms(15)));
    let (code, report, _) = json(&["."]);
    assert_eq!(code, 0);
    assert_eq!(
        report["summary"],
        json!({
            "exemptions": 3, "valid": 2, "expiring": 1, "expired": 0, "malformed": 0, "unused": 1,
            "errors": 0,
        })
    );
    for (name, text) in [("over", terms(-1)), ("unreadable", "soon".to_owned())] {
        write("void.yaml", &with(name, BAD, &text));
        assert_eq!(json(&["."]).0, 1, "{name}");
        assert_eq!(
            json(&["void.yaml"]).1["exemptions"][0]["object"]["name"],
            name
        );
    }
    // What cannot be looked at is worse than either.
    std::fs::write(folder.path().join("broken.yaml"), "a: [").unwrap();
    let (code, report, _) = json(&["."]);
    assert_eq!((code, &report["summary"]["errors"]), (2, &json!(1)));
    assert_eq!(json(&["missing.yaml"]).0, 2);

    let (code, text, _) = list(folder.path(), &["-"], &scaler(FINE, "").to_string());
    assert_eq!(code, 0);
    assert_eq!(
        text,
        "0 exemptions: 0 valid, 0 ending within 14 days, 0 expired, 0 malformed; 0 unused\n"
    );
    // Without a path it is a cluster that is asked.
    let (code, _, complaint) = list(folder.path(), &["--kubeconfig=none"], "");
    assert_eq!(code, 2);
    assert!(complaint.contains("no access to a cluster"), "{complaint}");
    let (code, _, complaint) = list(folder.path(), &["--kubeconfig=none", "."], "");
    assert_eq!(code, 2);
    assert!(complaint.contains("cannot be used with"), "{complaint}");
}

#[test]
fn the_table_of_exemptions() {
    let exempt = json!([{
        "namespaces": ["team-*", "batch"], "rules": ["gang-scheduling"], "until": "2026-11-22",
        "owner": "platform", "reason": "migration\nto KAI",
    }]);
    let policy = policy(&json!({"exemptions": {"namespaces": exempt}}));
    let mut ledger = Ledger::default();
    for (name, text, unused) in [
        (
            "last-day",
            "until=2026-11-23; owner=team-llm; reason=load test; legacy model",
            false,
        ),
        ("valid", VALID, true),
        ("over", OVER, false),
        ("unreadable", UNREADABLE, false),
    ] {
        let mut object = scaler(BAD, text);
        object["metadata"]["name"] = json!(name);
        let subject = Subject::from_manifest(Arc::new(object)).unwrap();
        ledger
            .entries
            .extend(annotations(&subject.value).map(|annotation| Entry {
                object: Some(ObjectName::from(&subject)),
                unused: Some(unused),
                ..Entry::of_annotation(&annotation, false, now(), 90)
            }));
    }
    for exempted in policy.exemptions().namespaces() {
        let entry = Entry::of_namespaces(exempted, "gang-scheduling", now());
        ledger.entries.push(entry);
    }
    ledger
        .errors
        .push("the API server refused to list nodepools.karpenter.sh".to_owned());
    ledger.sort();
    assert_eq!(ledger.exit_code(), 2);
    insta::assert_snapshot!("exemptions-table", ledger.text());

    let metrics = Metrics::new();
    metrics.exemptions(ledger.entries.iter().cloned());
    let text = metrics.encode();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("gangplank_exemptions{") || line.contains("next_end"))
        .collect();
    insta::assert_snapshot!("exemptions-metrics", {
        let mut lines = lines;
        lines.sort_unstable();
        lines.join("\n")
    });
}

#[test]
fn exemptions_are_listed_and_counted_from_a_cluster() -> Result<()> {
    let cluster = &guarded()?.cluster;
    let kubectl = cluster.namespace("ledger")?;
    let create =
        |object: &Value| -> Result<()> { kubectl.create(&object.to_string())?.success().map(drop) };
    create(&annotated(hpa("used", BAD), KEY, &valid()))?;
    create(&annotated(hpa("unused", FINE), KEY, &valid()))?;
    let server = deployment("llm", 7, 1, &["--tensor-parallel-size=8"]);
    create(&annotated(
        server,
        "exempt.gangplank.dev/parallelism-fits-pod",
        &valid(),
    ))?;
    let folder = tempfile::tempdir()?;
    let policy = folder.path().join("policy.yaml");
    let exempted = |rule: &str| {
        json!({
            "namespaces": [kubectl.namespace()], "rules": [rule], "until": in_days(3),
            "owner": "platform", "reason": "migration",
        })
    };
    let document = json!({
        "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
        "exemptions": {"namespaces": [exempted(RULE), exempted("gpu-memory-signal")]},
    });
    std::fs::write(&policy, document.to_string())?;
    let kubeconfig = format!("--kubeconfig={}", cluster.kubeconfig().display());
    let policy = format!("--policy={}", policy.display());
    let (_, text, complaint) = list(folder.path(), &["--output=json", &kubeconfig, &policy], "");
    let report: Value = serde_json::from_str(&text).with_context(|| complaint.clone())?;
    let mut found: Vec<String> = report["exemptions"]
        .as_array()
        .context("exemptions")?
        .iter()
        .filter(|one| {
            one["source"] == "policy" || one["object"]["namespace"] == kubectl.namespace()
        })
        .map(|one| {
            let name = one["object"]["name"].as_str().unwrap_or("-");
            format!("{name} {} {} {}", one["rule"], one["state"], one["unused"])
        })
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            "- \"gpu-memory-signal\" \"expiring\" true",
            "- \"gpu-utilization-signal\" \"expiring\" false",
            "llm \"parallelism-fits-pod\" \"valid\" false",
            "unused \"gpu-utilization-signal\" \"valid\" true",
            "used \"gpu-utilization-signal\" \"valid\" false",
        ],
        "{complaint}"
    );

    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_gangplank"));
    let gangplank = Gangplank::start(binary, &["--watch", &kubeconfig, &policy])?;
    assert!(gangplank.log().contains("ends with"), "{}", gangplank.log());
    eventually("the exemptions are counted", SOON, || {
        let (_, metrics) = get(&gangplank, "/metrics").ok()?;
        let of_policy = "gangplank_exemptions{rule=\"gpu-memory-signal\",source=\"policy\",state=\"expiring\"} 1";
        let of_objects = "gangplank_exemptions{rule=\"parallelism-fits-pod\",source=\"annotation\",state=\"valid\"}";
        (metrics.contains(of_policy) && metrics.contains(of_objects)).then_some(())
    })
}

/// In a file an exemption counts as granted, and its end is told.
#[test]
fn check_lets_in_what_is_exempt_and_says_until_when() {
    let folder = tempfile::tempdir().unwrap();
    let write = |days: i64| {
        let until = in_days(days);
        let text = format!(
            "apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: llm
  namespace: inference
  annotations:
    {KEY}: \"until={until}; owner=team-llm; reason=load test; legacy model\"
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: llm}}
  maxReplicas: 4
  metrics:
    - type: Pods
      pods:
        metric:
          name: {BAD}
        target: {{type: AverageValue, averageValue: \"70\"}}
"
        );
        std::fs::write(folder.path().join("hpa.yaml"), text).unwrap();
    };
    let check = |args: &[&str]| {
        let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_gangplank"))
            .current_dir(folder.path())
            .env_clear()
            .args(["check", "hpa.yaml"])
            .args(args)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    };
    write(30);
    let (code, text) = check(&[]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("check-exempt", text.replace(&in_days(30), "<in 30 days>"));
    let (_, text) = check(&["--output=json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["summary"]["exempted"], 1);
    assert_eq!(report["summary"]["allowed"], 1);
    let finding = &report["results"][0]["findings"][0];
    assert_eq!(
        (&finding["rule"], &finding["level"], &finding["exempted"]),
        (
            &json!(RULE),
            &json!("audit"),
            &json!({
                "until": in_days(30), "owner": "team-llm", "reason": "load test; legacy model",
                "source": "annotation",
            })
        )
    );
    // Over, or further ahead than the policy allows, it exempts from nothing.
    for days in [-1, 91] {
        write(days);
        let (code, text) = check(&["--output=json"]);
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &report["summary"]["denied"]), (1, &json!(1)));
    }
}
