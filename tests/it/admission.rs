//! The admission contract at the router: what goes in, what comes out.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
    response::Response,
};
use gangplank::{
    catalog::engines::Engines,
    facts::{Facts, Watched},
    metrics::Metrics,
    policy::Policy,
    review::Review,
    subject::Subject,
    webhook::{self, BODY_LIMIT, Desk},
};
use http_body_util::BodyExt;
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt;

fn desk() -> Desk {
    Desk::new(Policy::default(), Arc::new(Metrics::new()))
}

async fn send(desk: &Arc<Desk>, path: &str, request: Request<Body>) -> Response {
    let (mut parts, body) = request.into_parts();
    parts.uri = path.parse().unwrap();
    webhook::router(Arc::clone(desk))
        .oneshot(Request::from_parts(parts, body))
        .await
        .unwrap()
}

async fn read(response: Response) -> (StatusCode, Value) {
    let code = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn post(desk: &Arc<Desk>, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
    let request = Request::post("/")
        .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
        .body(body.into())
        .unwrap();
    read(send(desk, path, request).await).await
}

fn review_of(operation: &str, object: &Value, old: &Value) -> Value {
    let api_version = object["apiVersion"]
        .as_str()
        .or(old["apiVersion"].as_str())
        .unwrap();
    let (group, version) = api_version.split_once('/').unwrap();
    let kind = object["kind"].as_str().or(old["kind"].as_str()).unwrap();
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": group, "version": version, "kind": kind},
            "resource": {"group": group, "version": version, "resource": "any"},
            "operation": operation,
            "object": object,
            "oldObject": old,
            "dryRun": false,
            "userInfo": {"username": "somebody"},
        },
    })
}

fn hpa(metric: &str) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "llm", "namespace": "inference"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"},
            "maxReplicas": 4,
            "metrics": [{"type": "Pods", "pods": {
                "metric": {"name": metric},
                "target": {"type": "AverageValue", "averageValue": "70"},
            }}],
        },
    })
}

#[tokio::test]
async fn a_denial_is_a_403_with_a_cause_and_a_uid() {
    let desk = Arc::new(desk());
    let review = review_of("CREATE", &hpa("DCGM_FI_DEV_GPU_UTIL"), &Value::Null);
    for path in ["/validate", "/validate/advise"] {
        let (code, answer) = post(&desk, path, review.to_string()).await;
        assert_eq!(code, StatusCode::OK);
        let response = &answer["response"];
        assert_eq!(response["uid"], review["request"]["uid"]);
        assert_eq!(response["allowed"], false);
        assert_eq!(
            (&response["status"]["code"], &response["status"]["reason"]),
            (&json!(403), &json!("Forbidden"))
        );
        let cause = &response["status"]["details"]["causes"][0];
        assert_eq!(cause["reason"], "gpu-utilization-signal");
        assert_eq!(cause["field"], "spec.metrics[0].pods.metric.name");
        assert_eq!(response["auditAnnotations"]["verdict"], "deny");
        assert_eq!(
            answer.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["apiVersion", "kind", "response"]
        );
    }
    let (_, answer) = post(&desk, "/mutate", review.to_string()).await;
    assert_eq!(
        answer["response"]["allowed"], true,
        "the mutating door never denies"
    );
}

#[tokio::test]
async fn under_dry_run_nothing_is_denied_and_the_audit_log_tells_what_would_be() {
    let document = json!({"apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
        "mode": "dryRun", "overrides": [{"namespaces": ["ready"], "mode": "enforce"}]});
    let policy = Policy::from_document(&document).unwrap();
    let desk = Arc::new(Desk::new(policy, Arc::new(Metrics::new())));
    let bad = hpa("DCGM_FI_DEV_GPU_UTIL");
    let answer = async |path: &str, namespace: &str| {
        let mut review = review_of("CREATE", &bad, &Value::Null);
        review["request"]["namespace"] = json!(namespace);
        post(&desk, path, review.to_string()).await.1["response"].clone()
    };
    let response = answer("/validate", "other").await;
    assert_eq!(response["allowed"], true);
    let annotations = &response["auditAnnotations"];
    assert_eq!(annotations["verdict"], "would-deny");
    assert_eq!(annotations["rules"], "gpu-utilization-signal");
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("gpu-utilization-signal: would be denied: spec.metrics[0]"));
    assert!(answer("/mutate", "other").await.get("patch").is_none());
    assert_eq!(answer("/validate", "ready").await["allowed"], false);
}

/// A restore is a dry run with an end: the same answers, warnings and audit annotations.
#[tokio::test]
async fn what_is_restored_is_warned_of_until_its_day_has_passed() {
    let restoring = |days: i64| {
        let until = Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
        let document = json!({"apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
            "overrides": [{"namespaces": ["team-*"], "mode": "enforce"}],
            "restore": [{"namespaces": ["team-*"], "until": until.strftime("%Y-%m-%d").to_string(),
                "owner": "sre", "reason": "rebuilt from the backup"}]});
        let policy = Policy::from_document(&document).unwrap();
        Arc::new(Desk::new(policy, Arc::new(Metrics::new())))
    };
    let bad = hpa("DCGM_FI_DEV_GPU_UTIL");
    let answer = async |desk: &Arc<Desk>, path: &str, namespace: &str| {
        let mut review = review_of("CREATE", &bad, &Value::Null);
        review["request"]["namespace"] = json!(namespace);
        review["request"]["object"]["metadata"]["namespace"] = json!(namespace);
        post(desk, path, review.to_string()).await.1["response"].clone()
    };
    let now = restoring(5);
    let response = answer(&now, "/validate", "team-a").await;
    assert_eq!(response["allowed"], true);
    assert_eq!(response["auditAnnotations"]["verdict"], "would-deny");
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("gpu-utilization-signal: would be denied: spec.metrics[0]"));
    assert!(
        answer(&now, "/mutate", "team-a")
            .await
            .get("patch")
            .is_none()
    );
    assert_eq!(answer(&now, "/validate", "other").await["allowed"], false);
    for days in [-2, 30] {
        let response = answer(&restoring(days), "/validate", "team-a").await;
        assert_eq!(response["allowed"], false, "{days} days ahead");
    }
}

#[tokio::test]
async fn what_is_going_away_or_not_ours_or_unchanged_is_let_through() {
    let desk = Arc::new(desk());
    let bad = hpa("DCGM_FI_DEV_GPU_UTIL");
    let mut going = bad.clone();
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut annotated = bad.clone();
    annotated["metadata"]["annotations"] = json!({"example.com/hash": "1"});
    let mut scale = review_of("UPDATE", &bad, &hpa("vllm:num_requests_waiting"));
    scale["request"]["subResource"] = json!("status");
    let mut other = bad.clone();
    other["kind"] = json!("Widget");
    for (what, review) in [
        ("DELETE", review_of("DELETE", &bad, &bad)),
        ("CONNECT", review_of("CONNECT", &bad, &Value::Null)),
        (
            "deletionTimestamp",
            review_of("UPDATE", &going, &hpa("vllm:num_requests_waiting")),
        ),
        ("another kind", review_of("CREATE", &other, &Value::Null)),
        (
            "an annotation nobody reads",
            review_of("UPDATE", &annotated, &bad),
        ),
        ("a subresource", scale),
    ] {
        let (code, answer) = post(&desk, "/validate", review.to_string()).await;
        assert_eq!(
            (code, &answer["response"]["allowed"]),
            (StatusCode::OK, &json!(true)),
            "{what}: {answer}"
        );
    }
}

#[tokio::test]
async fn what_the_old_object_had_warns_and_what_is_new_denies() {
    let desk = Arc::new(desk());
    let old = hpa("DCGM_FI_DEV_GPU_UTIL");
    let mut same = old.clone();
    same["spec"]["maxReplicas"] = json!(9);
    let (_, answer) = post(
        &desk,
        "/validate",
        review_of("UPDATE", &same, &old).to_string(),
    )
    .await;
    assert_eq!(answer["response"]["allowed"], true, "{answer}");
    assert!(
        answer["response"]["warnings"][0]
            .as_str()
            .unwrap()
            .contains("as before this change")
    );
    let mut worse = same.clone();
    let more = hpa("DCGM_FI_DEV_FB_USED")["spec"]["metrics"][0].clone();
    worse["spec"]["metrics"]
        .as_array_mut()
        .unwrap()
        .insert(0, more);
    let (_, answer) = post(
        &desk,
        "/validate",
        review_of("UPDATE", &worse, &old).to_string(),
    )
    .await;
    let causes = answer["response"]["status"]["details"]["causes"]
        .as_array()
        .unwrap();
    assert_eq!(causes.len(), 1, "{answer}");
    assert_eq!(causes[0]["reason"], "gpu-memory-signal");
}

/// A vLLM server over the GPUs of one pod on the default scheduler.
fn server() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "llm-predictor", "namespace": "inference"},
        "spec": {"replicas": 1, "template": {"spec": {"schedulerName": "default-scheduler", "containers": [{
            "name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
            "args": ["--model=m", "--tensor-parallel-size=8"],
            "resources": {"limits": {"nvidia.com/gpu": "8"}},
        }]}}},
    })
}

fn owned_by(kind: &str, api_version: &str, mut object: Value) -> Value {
    object["metadata"]["ownerReferences"] = json!([
        {"apiVersion": api_version, "kind": kind, "name": "llm", "uid": "u", "controller": true},
    ]);
    object
}

#[tokio::test]
async fn a_child_that_loses_its_controller_is_judged_in_its_own_right() {
    let desk = Arc::new(desk());
    let child = owned_by("InferenceService", "serving.kserve.io/v1beta1", server());
    let allowed = async |review: Value| {
        let (_, answer) = post(&desk, "/validate", review.to_string()).await;
        answer["response"]["allowed"].as_bool().unwrap()
    };
    assert!(
        allowed(review_of("CREATE", &child, &Value::Null)).await,
        "its parent is not judged"
    );
    assert!(
        !allowed(review_of("UPDATE", &server(), &child)).await,
        "the owner alone is dropped"
    );
    let mut changed = server();
    changed["spec"]["replicas"] = json!(2);
    assert!(
        !allowed(review_of("UPDATE", &changed, &child)).await,
        "and with a change beside it"
    );
    // Orphaning is the garbage collector's work, and it would never stop trying.
    let mut orphaned = review_of("UPDATE", &server(), &child);
    orphaned["request"]["userInfo"]["username"] =
        json!("system:serviceaccount:kube-system:generic-garbage-collector");
    assert!(allowed(orphaned).await);
    // Standing alone for longer it is an existing violation like any other.
    assert!(allowed(review_of("UPDATE", &changed, &server())).await);
}

#[tokio::test]
async fn what_only_warned_before_forgives_nothing() {
    let desk = Arc::new(desk());
    let mut old = server();
    old["spec"]["template"]["spec"]["schedulerName"] = json!("kai-scheduler");
    old["spec"]["replicas"] = json!(4);
    old["metadata"]["labels"] = json!({"kai.scheduler/queue": "llm"});
    old["metadata"]["annotations"] = json!({"kai.scheduler/batch-min-member": "4"});
    let mut new = old.clone();
    new["metadata"]["annotations"] = json!({"kai.scheduler/batch-min-member": "x"});
    let (_, answer) = post(
        &desk,
        "/validate",
        review_of("CREATE", &old, &Value::Null).to_string(),
    )
    .await;
    assert_eq!(answer["response"]["allowed"], true, "{answer}");
    assert!(
        answer["response"]["warnings"]
            .to_string()
            .contains("gang-scheduling"),
        "{answer}"
    );
    let (_, answer) = post(
        &desk,
        "/validate",
        review_of("UPDATE", &new, &old).to_string(),
    )
    .await;
    assert_eq!(answer["response"]["allowed"], false, "{answer}");
}

#[tokio::test]
async fn malformed_requests_get_a_definite_answer() {
    let desk = Arc::new(desk());
    let good = review_of("CREATE", &hpa("up"), &Value::Null).to_string();
    let truncated = good[..good.len() - 40].to_owned();
    let v1beta1 = good.replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1");
    let no_uid = good.replace("\"uid\"", "\"uids\"");
    for (body, code, says) in [
        (String::new(), StatusCode::BAD_REQUEST, "not JSON"),
        (truncated, StatusCode::BAD_REQUEST, "not JSON"),
        ("[1]".to_owned(), StatusCode::BAD_REQUEST, "a list"),
        (v1beta1, StatusCode::BAD_REQUEST, "v1beta1"),
        (no_uid, StatusCode::BAD_REQUEST, "no uid"),
        (
            "[".repeat(100_000),
            StatusCode::BAD_REQUEST,
            "recursion limit",
        ),
    ] {
        let (got, answer) = post(&desk, "/validate", body).await;
        let message = answer["response"]["status"]["message"].as_str().unwrap();
        assert_eq!(got, code);
        assert!(message.contains(says), "{message}");
        assert_eq!(answer["response"]["allowed"], false);
        assert!(answer["response"]["uid"].is_string());
    }
}

#[tokio::test]
async fn media_type_size_and_method_are_held_to() {
    let desk = Arc::new(desk());
    let good = review_of("CREATE", &hpa("up"), &Value::Null);
    for media in ["application/yaml", "text/plain; charset=utf-8", ""] {
        let request = Request::post("/")
            .header(header::CONTENT_TYPE, media)
            .body(good.to_string().into());
        let (code, answer) = read(send(&desk, "/validate", request.unwrap()).await).await;
        assert_eq!(code, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(answer["response"]["uid"], good["request"]["uid"]);
    }
    let large = vec![b' '; BODY_LIMIT + 1];
    assert_eq!(
        post(&desk, "/mutate", large.clone()).await.0,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    // Without a length the limit holds all the same.
    let chunks = large
        .chunks(1 << 20)
        .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()));
    let chunks: Vec<_> = chunks.collect();
    let stream = Body::from_stream(futures_util::stream::iter(chunks));
    assert_eq!(
        post(&desk, "/mutate", stream).await.0,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    let response = send(
        &desk,
        "/validate",
        Request::get("/").body(Body::empty()).unwrap(),
    )
    .await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    let response = send(
        &desk,
        "/other",
        Request::post("/").body(Body::empty()).unwrap(),
    )
    .await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(
        post(
            &desk,
            "/validate",
            review_of("CREATE", &hpa("up"), &Value::Null).to_string()
        )
        .await
        .0,
        StatusCode::OK
    );
}

#[tokio::test]
async fn fields_of_the_wrong_type_are_no_crash_and_no_denial() {
    let desk = Arc::new(desk());
    for (kind, spec) in [
        (
            "autoscaling/v2 HorizontalPodAutoscaler",
            json!({"metrics": "many"}),
        ),
        (
            "autoscaling/v2 HorizontalPodAutoscaler",
            json!({"metrics": [1, null, {"pods": []}]}),
        ),
        (
            "keda.sh/v1alpha1 ScaledObject",
            json!({"triggers": {"type": "prometheus"}}),
        ),
        (
            "keda.sh/v1alpha1 ScaledObject",
            json!({"triggers": [{"type": 1, "metadata": "x"}]}),
        ),
        (
            "karpenter.sh/v1 NodePool",
            json!({"disruption": [], "template": {"spec": {"requirements": {}}}}),
        ),
        (
            "apps/v1 Deployment",
            json!({"template": {"spec": {"containers": {"name": "x"}}}}),
        ),
        ("apps/v1 Deployment", json!([])),
    ] {
        let (api_version, kind) = kind.split_once(' ').unwrap();
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, "spec": spec});
        for path in ["/mutate", "/validate"] {
            let (code, answer) = post(
                &desk,
                path,
                review_of("CREATE", &object, &Value::Null).to_string(),
            )
            .await;
            assert_eq!(
                (code, &answer["response"]["allowed"]),
                (StatusCode::OK, &json!(true)),
                "{object}: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_panic_is_an_error_of_its_request_alone() {
    fn reviewer(policy: &Policy, facts: &Facts, subject: &Subject, now: Timestamp) -> Review {
        assert_ne!(subject.name, "explosive", "as asked");
        gangplank::review::review(policy, facts, subject, now)
    }
    let desk = Arc::new(Desk { reviewer, ..desk() });
    let mut explosive = hpa("up");
    explosive["metadata"]["name"] = json!("explosive");
    let (code, answer) = post(
        &desk,
        "/validate",
        review_of("CREATE", &explosive, &Value::Null).to_string(),
    )
    .await;
    assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        answer["response"]["uid"],
        "705ab4f5-6393-11e8-b7cc-42010a800002"
    );
    assert!(desk.metrics.encode().contains("gangplank_panics_total 1"));
    let (code, answer) = post(
        &desk,
        "/validate",
        review_of("CREATE", &hpa("up"), &Value::Null).to_string(),
    )
    .await;
    assert_eq!(
        (code, &answer["response"]["allowed"]),
        (StatusCode::OK, &json!(true))
    );
}

/// Any JSON, biased towards the members that the views read.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,24}".prop_map(Value::from),
        prop_oneof![
            Just("nvidia.com/gpu"),
            Just("DCGM_FI_DEV_GPU_UTIL"),
            Just("--tensor-parallel-size"),
            Just("8"),
            Just("WhenEmptyOrUnderutilized"),
            Just("Pods"),
            Just("prometheus"),
            Just("p5"),
            Just("In"),
            Just("vllm/vllm-openai"),
            Just("sh"),
            Just("-c"),
            Just("$(TP)"),
        ]
        .prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("spec"),
        Just("metadata"),
        Just("template"),
        Just("containers"),
        Just("resources"),
        Just("limits"),
        Just("nvidia.com/gpu"),
        Just("args"),
        Just("command"),
        Just("env"),
        Just("name"),
        Just("value"),
        Just("metrics"),
        Just("pods"),
        Just("metric"),
        Just("triggers"),
        Just("type"),
        Just("query"),
        Just("requirements"),
        Just("key"),
        Just("operator"),
        Just("values"),
        Just("disruption"),
        Just("consolidationPolicy"),
        Just("annotations"),
        Just("labels"),
        Just("strategy"),
        Just("replicas"),
        Just("managedFields"),
        Just("advanced"),
        Just("scalingModifiers"),
        Just("formula"),
    ]
    .prop_map(str::to_owned);
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Every object of every fixture.
fn specimens() -> Vec<Value> {
    let texts = gangplank::rules::RULES
        .iter()
        .flat_map(|rule| crate::fixtures::fixtures(rule.id));
    texts
        .flat_map(|(_, text)| gangplank::source::read(&text))
        .map(|document| (*document.unwrap().value).clone())
        .collect()
}

/// The pointers of every value in a value.
pub(crate) fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    let step = |key: &str| format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
    match value {
        Value::Object(members) => {
            members
                .iter()
                .for_each(|(key, value)| places(value, &step(key), all));
        }
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(index, value)| places(value, &step(&index.to_string()), all));
        }
        _ => {}
    }
}

/// The value with something else at some of its places.
fn damaged(value: &Value, damage: &[(prop::sample::Index, Value)]) -> Value {
    let mut value = value.clone();
    for (index, other) in damage {
        let mut all = Vec::new();
        places(&value, "", &mut all);
        let place = index.get(&all);
        // The kind stays: another one is another specimen.
        if !["", "/apiVersion", "/kind"].contains(&place.as_str()) {
            *value.pointer_mut(place).unwrap() = other.clone();
        }
    }
    value
}

/// Real objects with a few values replaced by anything: nothing panics, patches apply, what was
/// filled is not filled again, and what the patch does not name stays as it was.
#[test]
fn any_damage_to_any_object_is_answered_and_patches_apply() {
    use gangplank::subject::{Door, Operation};
    use proptest::test_runner::{Config, TestRunner};
    use std::cell::Cell;

    let specimens = specimens();
    let policy = Policy::default();
    let world: Vec<Arc<Value>> = specimens.iter().cloned().map(Arc::new).collect();
    let facts = Facts::from_documents(&world);
    let patched = Cell::new(0);
    let damage = || prop::collection::vec((any::<prop::sample::Index>(), any_json()), 0..4);
    let strategy = (
        any::<prop::sample::Index>(),
        damage(),
        damage(),
        any::<bool>(),
    );
    let config = Config {
        cases: 1024,
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&strategy, |(index, new, old, update)| {
        let specimen = index.get(&specimens);
        let object = damaged(specimen, &new);
        let base = Subject::from_manifest(Arc::new(object)).unwrap();
        // A watch may bring it as well.
        if let Some(watched) = Watched::of(base.group(), &base.kind) {
            prop_assert!(watched.fact(&base.value, Engines::builtin()).is_some());
        }
        for door in [Door::Mutate, Door::Validate, Door::Check, Door::Audit] {
            let mut subject = Subject {
                door,
                ..base.clone()
            };
            if update {
                subject.operation = Operation::Update;
                subject.old = Some(Arc::new(damaged(specimen, &old)));
            }
            let ask = |subject: &Subject| {
                gangplank::review::review(&policy, &facts, subject, Timestamp::UNIX_EPOCH)
            };
            let once = ask(&subject);
            let mut after = (*subject.value).clone();
            json_patch::patch(&mut after, &once.patch).unwrap();
            let again = ask(&subject.with_value(after.clone()));
            prop_assert!(
                again.patch.0.is_empty(),
                "{:?} after {:?}",
                again.patch,
                once.patch
            );
            prop_assert!(
                door != Door::Mutate || once.findings.iter().all(|finding| finding.filled)
            );
            // Nothing that was there is gone or another, but for the places that the patch names.
            let mut all = Vec::new();
            places(&subject.value, "", &mut all);
            let named: Vec<String> = once
                .patch
                .0
                .iter()
                .map(|operation| operation.path().to_string())
                .collect();
            for place in all {
                let touched = named.iter().any(|path| {
                    path.starts_with(&place) || place.starts_with(path.trim_end_matches("/-"))
                });
                if !touched {
                    prop_assert_eq!(subject.value.pointer(&place), after.pointer(&place));
                }
            }
            patched.set(patched.get() + usize::from(!once.patch.0.is_empty()));
        }
        Ok(())
    });
    result.unwrap();
    assert!(
        patched.get() > 50,
        "only {} of the objects were filled",
        patched.get()
    );
}
