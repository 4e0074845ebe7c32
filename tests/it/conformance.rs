//! The admission contract, sentence by sentence, against a real API server: what it asks, what it gets
//! for an answer, and what it makes of that.
//!
//! The endpoints are the library's own behind a listener that keeps a copy of every question and
//! answer. The contract is Kubernetes' "Dynamic Admission Control" and `AdmissionReview` in k8s.io/api
//! admission/v1.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::{Arc, Mutex, OnceLock},
    time::SystemTime,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{StreamExt as _, stream};
use gangplank::{
    cluster,
    metrics::Metrics,
    policy::Policy,
    rules::{Kind, kinds},
    source,
    tls::{
        self, Resolver,
        authority::{Authority, Lives},
    },
    webhook::{
        self, Desk,
        registration::{Configurations, FailurePolicy, Reach, Registration},
    },
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

use crate::{
    admission::places,
    enforce::{
        CLIENTS, at, denied_by, deployment, evicting, gang, guarded, hpa, node_pool, queue,
        reference, scaled_object,
    },
    harness::{Answer, Assets, Cluster, SOON, client, eventually},
};

const BAD: &str = "DCGM_FI_DEV_GPU_UTIL";
const GOOD: &str = "vllm:num_requests_waiting";

/// What the API server passes on of one warning and of all, in characters (k8s.io/apiserver,
/// pkg/endpoints/filters/warning.go).
const WARNING: usize = 256;
const WARNINGS: usize = 4096;

/// A question of the API server and the answer it got.
#[derive(Clone, Debug)]
struct Exchange {
    path: String,
    question: Value,
    answer: Value,
}

impl Exchange {
    fn request(&self) -> &Value {
        &self.question["request"]
    }

    fn response(&self) -> &Value {
        &self.answer["response"]
    }

    fn patch(&self) -> Result<Value> {
        let patch = self.response()["patch"].as_str().context("a patch")?;
        Ok(serde_json::from_slice(&BASE64_STANDARD.decode(patch)?)?)
    }
}

type Heard = Arc<Mutex<Vec<Exchange>>>;

/// A cluster whose API server asks a listener that keeps what it hears.
struct Overheard {
    cluster: Cluster,
    heard: Heard,
    url: String,
    authority: Vec<u8>,
    /// Where the listener runs; a static is never dropped.
    runtime: Runtime,
}

#[derive(Clone)]
struct Listener {
    /// None says yes to everything.
    desk: Option<Arc<Desk>>,
    heard: Heard,
}

async fn answer(State(listener): State<Listener>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut question: Value = serde_json::from_slice(&body).unwrap();
    let name = question["request"]["name"].as_str().unwrap_or_default();
    if name.starts_with("unanswered") && path == format!("/{}", name.rsplit('.').next().unwrap()) {
        return pending().await;
    }
    let response = match listener.desk {
        Some(desk) if path != "/other" => {
            let request = Request::from_parts(parts, Body::from(body));
            webhook::router(desk).oneshot(request).await.unwrap()
        }
        Some(_) => Response::new(Body::from(other(&question).to_string())),
        None => {
            // What is asked about is large and many, and not looked at.
            for member in ["object", "oldObject"] {
                question["request"][member].take();
            }
            Response::new(Body::from(other(&question).to_string()))
        }
    };
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let answer = serde_json::from_slice(&body).unwrap();
    listener.heard.lock().unwrap().push(Exchange {
        path,
        question,
        answer,
    });
    Response::from_parts(parts, Body::from(body))
}

/// Somebody else's mutating webhook, as service meshes have one: it labels what has no such label.
fn other(question: &Value) -> Value {
    let request = &question["request"];
    let mut response = json!({"uid": request["uid"], "allowed": true});
    if request["object"]["metadata"]["labels"]["other"] == "asked" {
        let patch = json!([{"op": "replace", "path": "/metadata/labels/other", "value": "done"}]);
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(BASE64_STANDARD.encode(patch.to_string()));
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

impl Overheard {
    /// The cluster, with the configurations as they are generated. Unless it judges, the listener says
    /// yes to everything.
    fn start(judges: bool, crds: impl FnOnce(&Cluster) -> Result<()>) -> Result<Self> {
        let audit = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "Metadata", "verbs": ["create"], "resources": [{"group": "autoscaling"}]},
                {"level": "None"},
            ],
        });
        let cluster = Cluster::start_audited(&Assets::find()?, &audit.to_string())?;
        crds(&cluster)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let desk = Arc::new(Desk::new(Policy::default(), Arc::new(Metrics::new())));
        // Another test may have done it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority = Authority::new(SystemTime::now(), Lives::default())?;
        let identity = authority.sign(&["127.0.0.1".to_owned()], SystemTime::now())?;
        let config = tls::server_config(Arc::new(Resolver::new(Some(identity))), None)?;
        let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
        socket.set_nonblocking(true)?;
        let started = Self {
            cluster,
            heard: Heard::default(),
            url: format!("https://{}", socket.local_addr()?),
            authority: authority.certificate_pem().into_bytes(),
            runtime,
        };
        let listener = Listener {
            desk: judges.then_some(desk),
            heard: Arc::clone(&started.heard),
        };
        let router = Router::new().fallback(answer).with_state(listener);
        started.runtime.block_on(async {
            let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(config));
            let server = axum_server::from_tcp(socket)?.acceptor(acceptor);
            tokio::spawn(server.serve(router.into_make_service()));
            let wanted = started.configurations();
            let client = client(started.cluster.kubeconfig()).await?;
            cluster::register(&client, wanted, &cluster::Registered::default()).await?;
            anyhow::Ok(())
        })?;
        let kubectl = started.cluster.namespace("probe")?;
        let is_asked = |object: Value| {
            eventually("the API server asks", SOON, || {
                let args = ["create", "--dry-run=server", "--filename=-"];
                let _ = kubectl.run(&args, Some(&object.to_string()));
                let about = started.about(&reference(&object));
                let paths: BTreeSet<&str> = about.iter().map(|one| one.path.as_str()).collect();
                paths.contains("/validate").then_some(())
            })
        };
        is_asked(hpa("probe", BAD))?;
        let mut silent = node_pool("probe", None);
        silent["metadata"]["name"] = json!("filled-probe");
        eventually("the API server asks /mutate", SOON, || {
            let args = ["create", "--dry-run=server", "--filename=-"];
            let _ = kubectl.run(&args, Some(&silent.to_string()));
            let about = started.about(&reference(&silent));
            about.iter().any(|one| one.path == "/mutate").then_some(())
        })?;
        Ok(started)
    }

    fn configurations(&self) -> Configurations {
        let registration = Registration {
            name: "gangplank".to_owned(),
            reach: Reach::Url(self.url.clone()),
            ca_bundle: Some(self.authority.clone()),
            annotations: BTreeMap::new(),
            failure_policy: FailurePolicy::Fail,
            owner: None,
        };
        registration.configurations(&Policy::default())
    }

    /// What was said about the objects of this kind and name, wherever they are: names in these tests
    /// are nobody else's.
    fn about(&self, reference: &str) -> Vec<Exchange> {
        let (kind, name) = reference.split_once('/').unwrap();
        let heard = self.heard.lock().unwrap();
        let is_about = |exchange: &&Exchange| {
            let request = exchange.request();
            let object = [&request["object"], &request["oldObject"]];
            let named = object
                .iter()
                .any(|object| object["metadata"]["name"] == name);
            let kind_of = request["kind"]["kind"].as_str().unwrap_or_default();
            (named || request["name"] == name) && kind_of.to_lowercase() == kind
        };
        heard.iter().filter(is_about).cloned().collect()
    }

    /// The same from one path.
    fn at(&self, path: &str, reference: &str) -> Vec<Exchange> {
        let mut about = self.about(reference);
        about.retain(|exchange| exchange.path == path);
        about
    }

    /// How the API server reaches a path of the listener.
    fn client_config(&self, path: &str) -> Value {
        json!({
            "url": format!("{}{path}", self.url),
            "caBundle": BASE64_STANDARD.encode(&self.authority),
        })
    }
}

fn overheard() -> Result<&'static Overheard> {
    static OVERHEARD: OnceLock<Result<Overheard, String>> = OnceLock::new();
    OVERHEARD
        .get_or_init(|| {
            let crds = |cluster: &Cluster| {
                cluster.install_crds()?;
                queue(cluster, "llm")
            };
            Overheard::start(true, crds).map_err(|error| format!("{error:#}"))
        })
        .as_ref()
        .map_err(|error| anyhow!("{error}"))
}

/// A member of two objects is the same in both.
fn same(left: &Value, right: &Value, member: &str) {
    assert_eq!(left[member], right[member], "{member}");
}

#[test]
fn the_answer_carries_the_uid_of_the_question() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("uid")?;
    kubectl
        .create(&hpa("uid-good", GOOD).to_string())?
        .success()?;
    denied_by(
        &kubectl.create(&hpa("uid-bad", BAD).to_string())?,
        "gpu-utilization-signal",
    );
    kubectl.create(&gang("uid-gang").to_string())?.success()?;
    let mut all = Vec::new();
    for reference in [
        "horizontalpodautoscaler/uid-good",
        "horizontalpodautoscaler/uid-bad",
        "deployment/uid-gang",
    ] {
        let about = overheard.about(reference);
        ensure!(!about.is_empty(), "{reference} was not asked about");
        all.extend(about);
    }
    let mut uids = BTreeSet::new();
    for Exchange {
        question, answer, ..
    } in &all
    {
        for member in ["apiVersion", "kind"] {
            same(question, answer, member);
        }
        same(&question["request"], &answer["response"], "uid");
        let members: Vec<&String> = answer.as_object().context("an object")?.keys().collect();
        assert_eq!(
            members,
            ["apiVersion", "kind", "response"],
            "no more comes back"
        );
        uids.insert(question["request"]["uid"].to_string());
    }
    // Each question has its own.
    assert_eq!(uids.len(), all.len());
    Ok(())
}

#[test]
fn a_patch_is_json_patch_and_declared_so() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("patch")?;
    kubectl.create(&gang("patched").to_string())?.success()?;
    let exchanges = overheard.at("/mutate", "deployment/patched");
    let [exchange] = exchanges.as_slice() else {
        return Err(anyhow!("{exchanges:?}"));
    };
    assert_eq!(exchange.response()["patchType"], "JSONPatch");
    let patch = exchange.patch()?;
    for operation in patch.as_array().context("a list")? {
        // Nothing that is there is taken away.
        assert!(["add", "replace", "test"].contains(&operation["op"].as_str().context("op")?));
    }
    // What is held is what the patch makes of the question.
    let mut made = exchange.request()["object"].clone();
    let patch: json_patch::Patch = serde_json::from_value(patch)?;
    json_patch::patch(&mut made, &patch)?;
    let held = kubectl.get("deployment/patched")?;
    same(&held, &made, "spec");
    same(&held["metadata"], &made["metadata"], "annotations");
    // Without a patch there is no word of one.
    kubectl.replace(&held.to_string())?.success()?;
    kubectl
        .patch(
            "deployment/patched",
            &json!({"spec": {"minReadySeconds": 3}}),
        )?
        .success()?;
    let later = overheard.at("/mutate", "deployment/patched");
    ensure!(later.len() > 1, "{later:?}");
    for exchange in &later[1..] {
        assert_eq!(exchange.response().get("patch"), None);
        assert_eq!(exchange.response().get("patchType"), None);
    }
    // The endpoints that judge never patch.
    for exchange in overheard.at("/validate", "deployment/patched") {
        assert_eq!(exchange.response().get("patch"), None);
    }
    Ok(())
}

#[test]
fn a_denial_is_a_status_with_code_reason_and_causes() -> Result<()> {
    let overheard = overheard()?;
    let error = overheard.runtime.block_on(async {
        let client = client(overheard.cluster.kubeconfig()).await?;
        let kind = kube::core::GroupVersionKind::gvk("karpenter.sh", "v1", "NodePool");
        let pools = kube::Api::<kube::core::DynamicObject>::all_with(
            client,
            &kube::core::ApiResource::from_gvk(&kind),
        );
        let bad = serde_json::from_value(node_pool("causes", Some(evicting())))?;
        let refused = pools.create(&kube::api::PostParams::default(), &bad).await;
        anyhow::Ok(refused.err())
    })?;
    let Some(kube::Error::Api(status)) = error else {
        return Err(anyhow!("{error:?}"));
    };
    assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"));
    let details = status.details.context("details")?;
    let cause = details.causes.first().context("a cause")?;
    assert_eq!(
        (cause.reason.as_str(), cause.field.as_str()),
        (
            "gpu-pool-consolidation",
            "spec.disruption.consolidationPolicy"
        )
    );
    Ok(())
}

#[test]
fn dry_run_has_no_side_effects_and_the_same_answer() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("dry")?;
    let dry = ["create", "--dry-run=server", "--filename=-"];
    for (object, allowed) in [
        (gang("dry-filled"), true),
        (hpa("dry-denied", BAD), false),
        (node_pool("dry-pool", None), true),
    ] {
        let (object, text) = (reference(&object), object.to_string());
        assert_eq!(
            kubectl.run(&dry, Some(&text))?.accepted(),
            allowed,
            "{object}"
        );
        let first = overheard.about(&object);
        ensure!(kubectl.get(&object).is_err(), "{object} is there");
        assert_eq!(kubectl.create(&text)?.accepted(), allowed, "{object}");
        let second = overheard.about(&object).split_off(first.len());
        assert_eq!(first.len(), second.len(), "{object}");
        ensure!(!first.is_empty());
        for (dry, wet) in first.iter().zip(&second) {
            assert_eq!(dry.path, wet.path);
            assert_eq!(dry.request()["dryRun"], true);
            assert_eq!(wet.request()["dryRun"], false);
            let without_uid = |exchange: &Exchange| {
                let mut response = exchange.response().clone();
                response["uid"].take();
                response
            };
            assert_eq!(without_uid(dry), without_uid(wet), "{object}");
        }
    }
    // The API server lets a dry run through to those alone that say so.
    for kind in ["mutating", "validating"] {
        let held = kubectl.get(&format!("{kind}webhookconfiguration/gangplank"))?;
        for entry in held["webhooks"].as_array().context("entries")? {
            assert_eq!(entry["sideEffects"], "None");
        }
    }
    Ok(())
}

#[test]
fn reinvocation_changes_nothing_more() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("again")?;
    // Configurations are asked in the order of their names: this one comes after ours.
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "zz-other"},
        "webhooks": [{
            "name": "other.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": overheard.client_config("/other"),
            "objectSelector": {"matchExpressions": [{"key": "other", "operator": "Exists"}]},
            "rules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["deployments"], "scope": "Namespaced"}],
        }],
    });
    kubectl.create(&configuration.to_string())?.success()?;
    let mut number = 0;
    let (object, exchanges) = eventually("the other webhook is asked as well", SOON, || {
        number += 1;
        let mut object = gang(&format!("again-{number}"));
        object["metadata"]["labels"]["other"] = json!("asked");
        kubectl.create(&object.to_string()).ok()?.success().ok()?;
        let about = overheard.about(&reference(&object));
        about
            .iter()
            .any(|exchange| exchange.path == "/other")
            .then_some((object, about))
    })?;
    kubectl
        .delete("mutatingwebhookconfiguration/zz-other")?
        .success()?;
    let paths: Vec<&str> = exchanges.iter().map(|one| one.path.as_str()).collect();
    assert_eq!(paths[..3], ["/mutate", "/other", "/mutate"], "{paths:?}");
    let (first, again) = (&exchanges[0], &exchanges[2]);
    // What is asked again is what was filled, with what the other made of it.
    let mut made = first.request()["object"].clone();
    let patch: json_patch::Patch = serde_json::from_value(first.patch()?)?;
    json_patch::patch(&mut made, &patch)?;
    made["metadata"]["labels"]["other"] = json!("done");
    for member in ["spec", "metadata"] {
        same(&made, &again.request()["object"], member);
    }
    assert_eq!(again.response()["allowed"], true);
    assert_eq!(again.response().get("patch"), None, "{again:?}");
    let held = kubectl.get(&reference(&object))?;
    same(&held, &made, "spec");
    Ok(())
}

#[test]
fn match_policy_equivalent_sees_old_versions() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("old-version")?;
    let metrics = json!([{"type": "Pods", "pods": {
        "metricName": BAD, "targetAverageValue": "70",
    }}]);
    let old = json!({
        "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "v1", "annotations": {"autoscaling.alpha.kubernetes.io/metrics": metrics.to_string()}},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"}, "maxReplicas": 4},
    });
    denied_by(&kubectl.create(&old.to_string())?, "gpu-utilization-signal");
    let exchanges = overheard.at("/validate", "horizontalpodautoscaler/v1");
    let [exchange] = exchanges.as_slice() else {
        return Err(anyhow!("{exchanges:?}"));
    };
    let request = exchange.request();
    assert_eq!(request["requestKind"]["version"], "v1", "what was written");
    assert_eq!(
        request["kind"]["version"], "v2",
        "what we are registered for"
    );
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v2");
    assert_eq!(
        request["object"]["spec"]["metrics"][0]["pods"]["metric"]["name"],
        BAD
    );
    Ok(())
}

#[test]
fn a_timeout_is_the_failure_policy_of_the_entry() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("unanswered")?;
    // The last part of the name is the endpoint that never answers.
    let mut advised = hpa("unanswered.validate", "any");
    advised["metadata"]["name"] = json!("unanswered.advise");
    advised["spec"]["metrics"] = json!([{"type": "Resource", "resource": {
        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80},
    }}]);
    let silent = node_pool("unanswered.mutate", None);
    let (enforced, advised, filled) = std::thread::scope(|scope| {
        let create = |object: Value| {
            let kubectl = &kubectl;
            scope.spawn(move || kubectl.create(&object.to_string()))
        };
        let all = (
            create(hpa("unanswered.validate", GOOD)),
            create(advised),
            create(silent),
        );
        let join = |handle: std::thread::ScopedJoinHandle<'_, Result<Answer>>| {
            handle.join().expect("no panic")
        };
        anyhow::Ok((join(all.0)?, join(all.1)?, join(all.2)?))
    })?;
    // Fail: nobody said that it is right.
    assert!(!enforced.accepted());
    let says = "failed calling webhook \"enforce.gangplank.dev\"";
    assert!(enforced.stderr.contains(says), "{}", enforced.stderr);
    assert!(
        enforced.stderr.contains("timeout=5s"),
        "{}",
        enforced.stderr
    );
    // Ignore: what cannot be denied must not block.
    assert!(advised.accepted(), "{}", advised.stderr);
    // Ignore: and an unsafe default that was not filled is judged as it stands.
    denied_by(&filled, "gpu-pool-consolidation");
    Ok(())
}

#[test]
fn warnings_reach_the_client_and_are_short_enough() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("warned")?;
    let mut object = scaled_object("warned", "{__name__=~\".+\"}");
    let trigger = object["spec"]["triggers"][0].clone();
    object["spec"]["triggers"] = (0..60)
        .map(|index| {
            let mut trigger = trigger.clone();
            let query = format!(
                "{{__name__=~\".+\", service=\"{}{index}\"}}",
                "é".repeat(100)
            );
            trigger["metadata"]["query"] = json!(query);
            trigger
        })
        .collect();
    let answer = kubectl.create(&object.to_string())?;
    let exchanges = overheard.about("scaledobject/warned");
    let said: BTreeSet<&str> = exchanges
        .iter()
        .filter_map(|exchange| exchange.response()["warnings"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    ensure!(said.len() > 10, "{said:?}");
    let seen: BTreeSet<&str> = answer.warnings().into_iter().collect();
    assert_eq!(seen, said, "what we say is what the client reads, whole");
    let length = |text: &&str| text.chars().count();
    assert!(said.iter().map(length).all(|length| length <= WARNING));
    assert!(said.iter().map(length).sum::<usize>() <= WARNINGS);
    assert!(said.iter().any(|text| text.contains(" more; ")), "{said:?}");
    Ok(())
}

#[test]
fn audit_annotations_stand_in_the_audit_log_under_the_name_of_the_entry() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("audited")?;
    denied_by(
        &kubectl.create(&hpa("audited", BAD).to_string())?,
        "gpu-utilization-signal",
    );
    let log = overheard.cluster.audit_log();
    let event = eventually("the event is in the audit log", SOON, || {
        let text = std::fs::read_to_string(&log).ok()?;
        let mut events = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.find(|event| event["objectRef"]["namespace"] == kubectl.namespace())
    })?;
    let annotations = &event["annotations"];
    assert_eq!(
        annotations["enforce.gangplank.dev/verdict"], "deny",
        "{event}"
    );
    assert_eq!(
        annotations["enforce.gangplank.dev/rules"],
        "gpu-utilization-signal"
    );
    Ok(())
}

#[test]
fn subresources_scale_and_status_are_never_asked_about() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("subresources")?;
    let mut server = deployment("scaled", 8, 1, &["--tensor-parallel-size=8"]);
    server["metadata"]["labels"] = json!({"kai.scheduler/queue": "llm"});
    kubectl.create(&server.to_string())?.success()?;
    kubectl
        .create(&hpa("scaled", GOOD).to_string())?
        .success()?;
    let count = || overheard.heard.lock().unwrap().len();
    let of_here = |from: usize| -> Vec<Exchange> {
        let heard = overheard.heard.lock().unwrap();
        let here = |one: &&Exchange| one.request()["namespace"] == kubectl.namespace();
        heard[from..].iter().filter(here).cloned().collect()
    };
    let before = count();
    kubectl
        .run(&["scale", "deployment/scaled", "--replicas=0"], None)?
        .success()?;
    for object in ["deployment/scaled", "hpa/scaled"] {
        let status = format!("--patch={}", json!({"status": {"observedGeneration": 7}}));
        let args = [
            "patch",
            object,
            "--type=merge",
            "--subresource=status",
            &status,
        ];
        kubectl.run(&args, None)?.success()?;
    }
    assert_eq!(kubectl.get("deployment/scaled")?["spec"]["replicas"], 0);
    assert_eq!(
        kubectl.get("hpa/scaled")?["status"]["observedGeneration"],
        7
    );
    let asked = of_here(before);
    assert!(asked.is_empty(), "{asked:?}");
    Ok(())
}

#[test]
fn a_delete_is_never_asked() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("deleted")?;
    // With a finalizer it takes two steps; neither is ours, nor is what a controller writes between.
    let mut object = hpa("deleted", GOOD);
    object["metadata"]["finalizers"] = json!(["example.com/held"]);
    kubectl.create(&object.to_string())?.success()?;
    kubectl
        .create(&hpa("deleted-too", GOOD).to_string())?
        .success()?;
    let asked = || {
        overheard.about("horizontalpodautoscaler/deleted").len()
            + overheard.about("horizontalpodautoscaler/deleted-too").len()
    };
    let before = asked();
    kubectl.delete("hpa/deleted")?.success()?;
    assert!(kubectl.get("hpa/deleted")?["metadata"]["deletionTimestamp"].is_string());
    kubectl
        .patch("hpa/deleted", &json!({"metadata": {"finalizers": null}}))?
        .success()?;
    kubectl
        .run(&["delete", "hpa", "--all", "--wait=false"], None)?
        .success()?;
    assert!(kubectl.get("hpa/deleted").is_err());
    assert!(kubectl.get("hpa/deleted-too").is_err());
    assert_eq!(asked(), before);
    Ok(())
}

/// Whoever registers us for everything gets an answer to everything.
#[test]
fn every_operation_create_update_delete_connect_has_an_answer() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("everything")?;
    let namespace = kubectl.namespace().to_owned();
    kubectl
        .label(&format!("namespace/{namespace}"), "conformance=everything")?
        .success()?;
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "everything"},
        "webhooks": [{
            "name": "everything.example.com", "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "clientConfig": overheard.client_config("/validate"),
            "namespaceSelector": {"matchLabels": {"conformance": "everything"}},
            "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"],
                "resources": ["*/*"], "scope": "Namespaced"}],
        }],
    });
    kubectl.create(&configuration.to_string())?.success()?;
    let heard = || -> Vec<Exchange> {
        let heard = overheard.heard.lock().unwrap();
        let here =
            |one: &&Exchange| one.request()["namespace"] == *namespace && one.path == "/validate";
        heard.iter().filter(here).cloned().collect()
    };
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "any"}});
    eventually("everything is asked", SOON, || {
        kubectl.apply(&map.to_string()).ok()?;
        let patch = json!({"data": {"tries": heard().len().to_string()}});
        kubectl.patch("configmap/any", &patch).ok()?;
        (!heard().is_empty()).then_some(())
    })?;

    let raw = |verb: &str, path: &str, body: Option<&Value>| {
        let path = format!("--raw=/api/v1/namespaces/{namespace}/{path}");
        let mut args = vec![verb, path.as_str()];
        let body = body.map(Value::to_string);
        if body.is_some() {
            args.push("--filename=-");
        }
        kubectl.run(&args, body.as_deref())
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"},
        "spec": {"containers": [{"name": "a", "image": "vllm/vllm-openai",
            "args": ["--tensor-parallel-size=8"], "resources": {"limits": {"nvidia.com/gpu": 8}}}]},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "any"},
        "spec": {"ports": [{"port": 80}]},
    });
    kubectl.create(&pod.to_string())?.success()?;
    kubectl.create(&service.to_string())?.success()?;
    kubectl
        .run(&["create", "serviceaccount", "any"], None)?
        .success()?;
    kubectl.run(&["create", "token", "any"], None)?.success()?;
    kubectl.create(&hpa("every", GOOD).to_string())?.success()?;
    kubectl
        .patch("hpa/every", &json!({"spec": {"maxReplicas": 5}}))?
        .success()?;
    kubectl
        .create(&deployment("every", 1, 1, &[]).to_string())?
        .success()?;
    kubectl
        .run(&["scale", "deployment/every", "--replicas=2"], None)?
        .success()?;
    let status = format!("--patch={}", json!({"status": {"observedGeneration": 7}}));
    let args = [
        "patch",
        "deployment/every",
        "--type=merge",
        "--subresource=status",
        &status,
    ];
    kubectl.run(&args, None)?.success()?;
    // Nobody listens behind it: what counts is that admission let it pass.
    let connected = raw("get", "services/any/proxy", None)?;
    assert!(
        !connected.stderr.contains("webhook"),
        "{}",
        connected.stderr
    );
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "pod"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node"}});
    raw("create", "pods/pod/binding", Some(&binding))?.success()?;
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "pod"}});
    raw("create", "pods/pod/eviction", Some(&eviction))?.success()?;
    kubectl
        .run(
            &[
                "delete",
                "hpa,deployment,configmap",
                "--all",
                "--wait=false",
            ],
            None,
        )?
        .success()?;
    kubectl
        .delete("validatingwebhookconfiguration/everything")?
        .success()?;

    let asked = heard();
    let mut seen = BTreeSet::new();
    for exchange in &asked {
        same(exchange.request(), exchange.response(), "uid");
        assert_eq!(exchange.response()["allowed"], true, "{exchange:?}");
        let request = exchange.request();
        let text = |member: &str| request[member].as_str().unwrap_or_default().to_owned();
        seen.insert(format!(
            "{} {}/{}",
            text("operation"),
            request["resource"]["resource"].as_str().unwrap_or_default(),
            text("subResource")
        ));
    }
    for wanted in [
        "CREATE pods/",
        "CREATE pods/binding",
        "CREATE pods/eviction",
        "CREATE serviceaccounts/token",
        "CREATE horizontalpodautoscalers/",
        "UPDATE horizontalpodautoscalers/",
        "UPDATE deployments/scale",
        "UPDATE deployments/status",
        "CONNECT services/proxy",
        "DELETE horizontalpodautoscalers/",
        "DELETE deployments/",
        "DELETE configmaps/",
    ] {
        assert!(seen.contains(wanted), "{wanted} is not among {seen:?}");
    }
    Ok(())
}

#[test]
fn generate_name_is_as_good_as_a_name() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("generated")?;
    let nameless = |mut object: Value| {
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.remove("name");
        metadata.insert("generateName".to_owned(), json!("generated-"));
        object.to_string()
    };
    denied_by(
        &kubectl.create(&nameless(hpa("", BAD)))?,
        "gpu-utilization-signal",
    );
    denied_by(
        &kubectl.create(&nameless(node_pool("", Some(evicting()))))?,
        "gpu-pool-consolidation",
    );
    kubectl.create(&nameless(hpa("", GOOD)))?.success()?;
    let args = ["create", "--filename=-", "--output=json"];
    let filled = kubectl
        .run(&args, Some(&nameless(gang("gang"))))?
        .success()?;
    let filled: Value = serde_json::from_str(&filled)?;
    assert!(
        filled["metadata"]["name"]
            .as_str()
            .context("a name")?
            .starts_with("generated-")
    );
    assert_eq!(
        at(&filled, "/spec/template/spec/schedulerName"),
        "kai-scheduler"
    );
    Ok(())
}

/// A way to write, by its name.
type Way<'a> = (&'static str, &'a dyn Fn(&str) -> Result<Answer>);

/// Every way to write gets the whole object to us, before and after, and the same verdict.
#[test]
fn server_side_apply_patch_and_strategic_merge_are_judged_by_what_they_make() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("patches")?;
    let object = "deployment/patches";
    let reference = "deployment/patches";
    let create = gang("patches").to_string();
    kubectl.apply_server_side(&create)?.success()?;
    let created = overheard.at("/validate", reference);
    let last = created.last().context("it was asked about")?;
    // A PATCH that creates is asked about as what it does.
    assert_eq!(last.request()["operation"], "CREATE");
    assert_eq!(last.request()["options"]["kind"], "CreateOptions");
    assert_eq!(last.request()["oldObject"], Value::Null);
    let minimum = "kai.scheduler/batch-min-member";
    let to = |count: &str| json!({"metadata": {"annotations": {minimum: count}}});
    let pointer = "/metadata/annotations/kai.scheduler~1batch-min-member";
    let by_json = |count: &str| json!([{"op": "replace", "path": pointer, "value": count}]);
    let patch = |kind: &str, patch: Value| {
        let (kind, patch) = (format!("--type={kind}"), format!("--patch={patch}"));
        kubectl.run(&["patch", object, &kind, &patch], None)
    };
    let apply = |count: &str| {
        let mut object = gang("patches");
        object["metadata"]["annotations"] = json!({minimum: count});
        let args = [
            "apply",
            "--server-side",
            "--field-manager=another",
            "--force-conflicts",
            "--filename=-",
        ];
        kubectl.run(&args, Some(&object.to_string()))
    };
    let put = |count: &str| -> Result<Answer> {
        let mut held = kubectl.get(object)?;
        held["metadata"]["annotations"][minimum] = json!(count);
        kubectl.replace(&held.to_string())
    };
    let ways: [Way<'_>; 5] = [
        ("strategic merge patch", &|count| {
            patch("strategic", to(count))
        }),
        ("merge patch", &|count| patch("merge", to(count))),
        ("JSON patch", &|count| patch("json", by_json(count))),
        ("server-side apply", &apply),
        ("PUT", &put),
    ];
    for (way, write) in ways {
        let before = overheard.at("/validate", reference).len();
        denied_by(&write("7")?, "gang-scheduling");
        let exchanges = overheard.at("/validate", reference);
        let [exchange] = &exchanges[before..] else {
            return Err(anyhow!("{way}: {exchanges:?}"));
        };
        let request = exchange.request();
        assert_eq!(request["operation"], "UPDATE", "{way}");
        assert_eq!(request["options"]["kind"], "UpdateOptions", "{way}");
        assert_eq!(at(&request["object"], pointer), "7", "{way}");
        assert_eq!(at(&request["oldObject"], pointer), "8", "{way}");
        assert!(
            request["object"]["spec"]["template"]["spec"]["containers"].is_array(),
            "{way}"
        );
        write("8")?.success().context(way)?;
        assert_eq!(at(&kubectl.get(object)?, pointer), "8", "{way}");
    }
    Ok(())
}

/// Every way to create an object that people use leads to the same verdict.
#[test]
fn every_client_is_denied_alike() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("clients")?;
    let mut answers = BTreeSet::new();
    for (index, (client, create)) in CLIENTS.into_iter().enumerate() {
        let name = format!("client-{index}");
        denied_by(
            &create(&kubectl, &hpa(&name, BAD).to_string())?,
            "gpu-utilization-signal",
        );
        let exchanges = overheard.at("/validate", &format!("horizontalpodautoscaler/{name}"));
        let [exchange] = exchanges.as_slice() else {
            return Err(anyhow!("{client}: {exchanges:?}"));
        };
        answers.insert(exchange.response()["status"]["message"].to_string());
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    Ok(())
}

/// Conditions inside the API server decide what is sent. An error in one would refuse the write, so
/// they have to hold for objects with any optional member absent and for very large ones.
#[test]
fn match_conditions_send_what_may_matter_and_nothing_else() -> Result<()> {
    let guarded = guarded()?;
    let kubectl = guarded.cluster.namespace("conditions")?;
    let plain = |name: &str| {
        let mut object = deployment(name, 1, 1, &[]);
        object["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({});
        object
    };
    let container = |index: usize| json!({"name": format!("c{index}"), "image": "app"});
    let mut claims = plain("sent-claims");
    claims["spec"]["template"]["spec"]["resourceClaims"] =
        json!([{"name": "gpu", "resourceClaimTemplateName": "gpu"}]);
    let mut init = plain("sent-init");
    init["spec"]["template"]["spec"]["initContainers"] = json!([
        {"name": "warm", "image": "app", "resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}},
    ]);
    let mut requests = plain("sent-requests");
    requests["spec"]["template"]["spec"]["containers"] = json!([
        container(0),
        {"name": "x", "image": "app", "resources": {"requests": {"amd.com/gpu": 1}, "limits": {"amd.com/gpu": 1}}},
    ]);
    let mut many = plain("sent-many");
    many["spec"]["template"]["spec"]["containers"] = (0..65).map(container).collect();
    let mut labelled = plain("sent-labelled");
    labelled["metadata"]["labels"] = json!({"gangplank.dev/model-server": "true"});
    let mut share = plain("sent-share");
    share["spec"]["template"]["metadata"]["annotations"] = json!({"gpu-fraction": "0.5"});
    let mut few = plain("quiet-few");
    few["spec"]["template"]["spec"]["containers"] = (0..64).map(container).collect();
    for object in [
        &share,
        &claims,
        &init,
        &requests,
        &many,
        &labelled,
        &few,
        &plain("quiet-plain"),
    ] {
        kubectl
            .create(&object.to_string())?
            .success()
            .with_context(|| reference(object))?;
    }
    let log = guarded.gangplank.log();
    for name in [
        "sent-share",
        "sent-claims",
        "sent-init",
        "sent-requests",
        "sent-many",
        "sent-labelled",
    ] {
        assert!(
            log.contains(&format!("\"name\":\"{name}\"")),
            "{name} was not sent"
        );
    }
    assert!(!log.contains("\"name\":\"quiet-"), "{log}");
    // Updates are looked at as well: new labels, annotations that come and go.
    let sent = || {
        guarded
            .gangplank
            .log()
            .matches("\"name\":\"quiet-plain\"")
            .count()
    };
    let exempt = format!(
        "exempt.gangplank.dev/gang-scheduling=until={}; owner=team-llm; reason=load test",
        gangplank::exempt::latest(jiff::Timestamp::now(), 30)
    );
    let steps: [(&str, &str, bool); 6] = [
        ("label", "gangplank.dev/model-server=true", true),
        ("annotate", "kai.scheduler/batch-min-member=1", true),
        ("annotate", "kai.scheduler/batch-min-member-", true),
        ("annotate", &exempt, true),
        ("annotate", "exempt.gangplank.dev/gang-scheduling-", true),
        ("annotate", "example.com/revision=1", false),
    ];
    for (verb, what, is_ours) in steps {
        let before = sent();
        kubectl
            .run(&[verb, "--overwrite", "deployment/quiet-plain", what], None)?
            .success()?;
        assert_eq!(sent() > before, is_ours, "{verb} {what}");
    }
    // What KEDA makes is advised on. Among too many owners nobody looks for KEDA, and it is judged, once.
    for (name, more, endpoint) in [("kedas", 0, "advise"), ("crowded", 64, "validate")] {
        let owner = |index: usize| {
            json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "llm",
                "uid": format!("u{index}"), "controller": index == more})
        };
        let owners: Vec<Value> = (0..=more).map(owner).collect();
        let selector = json!({"matchLabels": {"scaledobject.keda.sh/name": "llm"}});
        let hpa = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name, "ownerReferences": owners},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"},
                "maxReplicas": 2,
                "metrics": [{"type": "External", "external": {
                    "metric": {"name": "s0-prometheus", "selector": selector},
                    "target": {"type": "Value", "value": "1"}}}],
            },
        });
        kubectl.create(&hpa.to_string())?.success()?;
        let log = guarded.gangplank.log();
        let asked: Vec<&str> = log
            .lines()
            .filter(|line| line.contains(&format!("\"name\":\"{name}\"")))
            .collect();
        assert_eq!(asked.len(), 1, "{asked:?}");
        let endpoint = format!("\"endpoint\":\"{endpoint}\"");
        assert!(asked[0].contains(&endpoint), "{asked:?}");
    }
    // An HPA that says no more than it has to.
    let bare = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "bare"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"}, "maxReplicas": 2},
    });
    kubectl.create(&bare.to_string())?.success()?;
    Ok(())
}

/// A kind that API servers know by themselves.
fn is_built_in(kind: &Kind) -> bool {
    ["apps", "autoscaling", "batch"].contains(&kind.group)
}

/// Every custom kind that we are registered for, without a schema: whatever is written arrives at the
/// conditions as it was written.
fn without_schemas(cluster: &Cluster) -> Result<()> {
    for kind in kinds::ALL.iter().filter(|kind| !is_built_in(kind)) {
        let Kind {
            group, resource, ..
        } = kind;
        let name = kind.kind;
        let versions: Vec<Value> = (kind.versions.iter().enumerate())
            .map(|(index, version)| {
                let schema =
                    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
                json!({"name": version, "served": true, "storage": index == 0,
                    "schema": {"openAPIV3Schema": schema}})
            })
            .collect();
        let crd = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{resource}.{group}"),
                "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
            "spec": {
                "group": group, "versions": versions,
                "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
                "names": {"kind": name, "plural": resource, "singular": name.to_lowercase()},
            },
        });
        cluster.kubectl().create(&crd.to_string())?.success()?;
    }
    let args = [
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        "--all",
    ];
    cluster.kubectl().run(&args, None)?.success()?;
    Ok(())
}

/// An object of each kind that says as much as it may: the seeds of the fuzz target that reads them.
fn specimens() -> Result<Vec<(&'static Kind, Value)>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/seeds/yaml");
    let mut found: BTreeMap<&str, (&'static Kind, Value)> = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        let is_hostile =
            (path.file_name()).is_some_and(|name| name.to_string_lossy().starts_with("hostile"));
        for document in source::read(&text)
            .into_iter()
            .flatten()
            .filter(|_| !is_hostile)
        {
            let value = Value::clone(&document.value);
            let kind = kinds::ALL.iter().find(|kind| {
                let version = value["apiVersion"].as_str().unwrap_or_default();
                let ours = |known: &&str| version == format!("{}/{known}", kind.group);
                kind.kind == value["kind"] && kind.versions.iter().any(ours)
            });
            let Some(kind) = kind else { continue };
            let size = |value: &Value| value.to_string().len();
            let known = found.get(kind.kind).map_or(0, |(_, known)| size(known));
            if size(&value) > known {
                found.insert(kind.kind, (*kind, value));
            }
        }
    }
    for kind in kinds::ALL {
        ensure!(
            found.contains_key(kind.kind),
            "{} has no seed in {folder}",
            kind.kind
        );
    }
    Ok(found.into_values().collect())
}

fn without(value: &Value, place: &str) -> Value {
    let mut value = value.clone();
    let (parent, key) = place.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    match value.pointer_mut(parent) {
        Some(Value::Object(members)) => _ = members.remove(&key),
        Some(Value::Array(list)) => _ = list.remove(key.parse().unwrap()),
        _ => {}
    }
    value
}

/// What is written, to which kind, and what it is.
type Write = (&'static Kind, String, Value);

impl Overheard {
    /// Writes all of them without keeping any; an error where a condition had one. Those that the API
    /// server itself refuses have passed the conditions of the mutating entry at least. Says how many
    /// it took.
    fn dry_writes(&self, namespace: &str, writes: &[Write]) -> Result<usize> {
        let errors = "apiserver_admission_match_condition_evaluation_errors_total";
        let write = async |client: &kube::Client, (kind, what, value): &Write| -> Result<bool> {
            let Kind { resource, .. } = kind;
            let version = value["apiVersion"].as_str().context("a version")?;
            let within = if kind.namespaced {
                format!("namespaces/{namespace}/")
            } else {
                String::new()
            };
            let held = value["metadata"]["resourceVersion"].is_string();
            let name = value["metadata"]["name"].as_str().context("a name")?;
            let (method, name) = if held {
                ("PUT", format!("/{name}"))
            } else {
                ("POST", String::new())
            };
            let path = format!(
                "/apis/{version}/{within}{resource}{name}?dryRun=All&fieldValidation=Ignore"
            );
            let request = axum::http::Request::builder()
                .method(method)
                .uri(path)
                .header("content-type", "application/json")
                .body(value.to_string().into_bytes())?;
            match client.request_text(request).await {
                Ok(_) => Ok(true),
                // Bad request, conflict with its own schema, too large.
                Err(kube::Error::Api(status)) if [400, 413, 422].contains(&status.code) => {
                    Ok(false)
                }
                Err(error) => Err(anyhow!("{}: {what}: {error:?}", kind.kind)),
            }
        };
        let taken = self.runtime.block_on(async {
            let client = client(self.cluster.kubeconfig()).await?;
            let all = stream::iter(writes).map(|one| write(&client, one));
            let all: Vec<Result<bool>> = all.buffer_unordered(4).collect().await;
            let mut taken = 0;
            for one in all {
                taken += usize::from(one?);
            }
            anyhow::Ok(taken)
        })?;
        // Under Ignore an error shows here alone.
        let metrics = self
            .cluster
            .kubectl()
            .run(&["get", "--raw=/metrics"], None)?;
        for line in metrics.success()?.lines() {
            ensure!(!line.starts_with(errors), "{line}");
        }
        Ok(taken)
    }
}

/// A condition that fails refuses the write, or under Ignore lets it by unseen. So none may, for any
/// object of any kind, whichever of its members is absent: on CREATE, and on an UPDATE to and from it.
#[test]
fn match_conditions_hold_with_every_optional_member_absent_and_with_ten_thousand_containers()
-> Result<()> {
    let overheard = Overheard::start(false, without_schemas)?;
    let kubectl = overheard.cluster.namespace("conditions")?;
    let namespace = kubectl.namespace().to_owned();
    let mut writes: Vec<Write> = Vec::new();
    for (kind, mut full) in specimens()? {
        full["metadata"] = json!({
            "name": "full", "labels": {"gangplank.dev/model-server": "true"},
            "annotations": {"kai.scheduler/batch-min-member": "7",
                "exempt.gangplank.dev/gang-scheduling": "until=2026-12-31; owner=a; reason=b"},
            "ownerReferences": [{"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
                "name": "full", "uid": "u", "controller": true}],
        });
        if is_built_in(kind) && full["spec"]["template"].is_object() {
            // What the API server itself asks of it.
            full["spec"]["template"]["metadata"]["labels"] = json!({"app": "chat"});
            if kind.kind == "Job" {
                full["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
            }
        }
        if kind.namespaced {
            full["metadata"]["namespace"] = json!(namespace);
        }
        let mut bare = json!({"apiVersion": full["apiVersion"], "kind": kind.kind,
            "metadata": {"name": "bare"}});
        let held = |object: &Value| -> Result<Value> {
            kubectl.create(&object.to_string())?.success()?;
            let of = format!(
                "{}.{}.{}/{}",
                kind.resource,
                kind.versions[0],
                kind.group,
                object["metadata"]["name"].as_str().context("a name")?
            );
            kubectl.get(&of)
        };
        let mut all = Vec::new();
        places(&full, "", &mut all);
        let fixed = [
            "",
            "/apiVersion",
            "/kind",
            "/metadata",
            "/metadata/name",
            "/metadata/namespace",
        ];
        all.retain(|place| !fixed.contains(&place.as_str()));
        let stored = held(&full).with_context(|| kind.kind)?;
        for place in &all {
            let less = without(&full, place);
            let mut update = less.clone();
            update["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
            let mut create = less;
            create["metadata"]["name"] = json!("new");
            writes.push((kind, format!("CREATE without {place}"), create));
            writes.push((kind, format!("UPDATE without {place}"), update));
        }
        // From nothing to all of it; what the API server itself knows cannot be so bare.
        if !is_built_in(kind) {
            let stored = held(&bare).with_context(|| kind.kind)?;
            let mut update = full.clone();
            update["metadata"]["name"] = json!("bare");
            update["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
            writes.push((kind, "UPDATE of nothing".to_owned(), update));
            bare["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
            bare["metadata"]["labels"] = json!({"a": "b"});
            writes.push((kind, "UPDATE of nothing to a label".to_owned(), bare));
        }
        crowds(kind, &full, &stored, &all, &mut writes);
    }
    let count = writes.len();
    let taken = overheard.dry_writes(&namespace, &writes)?;
    println!("{taken} of {count} writes were taken");
    ensure!(
        taken > count / 2,
        "the API server itself refuses most of them: {taken} of {count}"
    );
    // All three entries had their say.
    let heard = overheard.heard.lock().unwrap();
    for path in ["/mutate", "/validate", "/validate/advise"] {
        ensure!(heard.iter().any(|exchange| exchange.path == path), "{path}");
    }
    Ok(())
}

/// Every list and every map of an object with more members than a condition looks through, and with as
/// many as it does. Containers and limits are so many that conditions would fail if they looked.
fn crowds(
    kind: &'static Kind,
    full: &Value,
    stored: &Value,
    all: &[String],
    writes: &mut Vec<Write>,
) {
    const CONTAINERS: usize = 10_000;
    const LIMITS: usize = 100_000;
    const LOOKED_THROUGH: usize = 64;
    // Of what a container asks for.
    const RESOURCES: usize = 16;
    // What an UPDATE is compared by as a whole: the same words for every kind, so one stands for all. So it
    // is with limits, and the API server itself takes seconds over them.
    let whole =
        ["/labels", "/annotations", "/ownerReferences"].map(|end| format!("/metadata{end}"));
    for place in all {
        let is_whole = whole.contains(place);
        let many = if place.ends_with("ontainers") || (is_whole && kind.kind == "Deployment") {
            CONTAINERS
        } else if place.ends_with("/limits") && kind.kind == "InferenceService" {
            LIMITS
        } else {
            LOOKED_THROUGH + 1
        };
        let fillers: Vec<Value> = match full.pointer(place) {
            Some(Value::Array(list)) if list.first().is_some_and(Value::is_object) => {
                let first = &list[0];
                let small = if first.to_string().len() < 130 {
                    first.clone()
                } else {
                    let kept = ["name", "image", "type"].into_iter();
                    kept.filter_map(|key| Some((key.to_owned(), first.get(key)?.clone())))
                        .collect()
                };
                let filled = |count: usize, element: &Value| -> Value {
                    (0..count)
                        .map(|index| {
                            let mut element = element.clone();
                            if element.get("name").is_some_and(Value::is_string) {
                                element["name"] = json!(format!("c{index}"));
                            }
                            // Of owners with one uid the API server keeps one, and of several controllers
                            // it complains one by one, each time with all of them.
                            if element.get("controller").is_some() {
                                element["uid"] = json!(format!("u{index}"));
                                element["controller"] = json!(index + 1 == count);
                            }
                            element
                        })
                        .collect()
                };
                vec![filled(many, &small), filled(LOOKED_THROUGH, first)]
            }
            Some(Value::Object(members))
                if members
                    .values()
                    .all(|value| !value.is_object() && !value.is_array()) =>
            {
                let filled = |count: usize| -> Value {
                    (0..count)
                        .map(|index| (format!("k{index}"), json!("1")))
                        .collect()
                };
                let looked_through = if place.contains("/resources/") {
                    RESOURCES
                } else {
                    LOOKED_THROUGH
                };
                vec![filled(many), filled(looked_through)]
            }
            _ => continue,
        };
        for filler in fillers {
            let count = match &filler {
                Value::Array(list) => list.len(),
                other => other.as_object().map_or(0, serde_json::Map::len),
            };
            let mut create = full.clone();
            create["metadata"]["name"] = json!("new");
            *create.pointer_mut(place).expect("a place") = filler.clone();
            writes.push((kind, format!("CREATE with {count} in {place}"), create));
            if is_whole || place.ends_with("ontainers") {
                let mut update = full.clone();
                *update.pointer_mut(place).expect("a place") = filler;
                update["metadata"]["resourceVersion"] =
                    stored["metadata"]["resourceVersion"].clone();
                writes.push((kind, format!("UPDATE with {count} in {place}"), update));
            }
        }
    }
}
