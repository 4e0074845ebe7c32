//! The policy file changes under a running server: nothing is dropped, and nothing is judged by two
//! policies at once.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Result, ensure};
use axum::{body::Body, http::Request};
use gangplank::{
    metrics::Metrics,
    policy::Policy,
    webhook::{self, Desk},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    enforce::{denied_by, deployment, guard},
    harness::{Assets, Cluster, Gangplank, SOON, eventually},
    serve::get,
};

const UTILIZATION: &str = "gpu-utilization-signal";
const MEMORY: &str = "gpu-memory-signal";

/// A policy under which only one of the two rules denies.
fn denying(rule: &str, mode: &str) -> String {
    let other = if rule == MEMORY { UTILIZATION } else { MEMORY };
    json!({
        "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy", "mode": mode,
        "rules": {rule: {"level": "deny"}, other: {"level": "off"}},
    })
    .to_string()
}

/// An HPA that both rules find something in.
fn hpa(name: &str) -> Value {
    let pods = |metric: &str| {
        json!({"type": "Pods", "pods": {"metric": {"name": metric},
            "target": {"type": "AverageValue", "averageValue": "70"}}})
    };
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": "a"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "maxReplicas": 4,
            "metrics": [pods("DCGM_FI_DEV_GPU_UTIL"), pods("DCGM_FI_DEV_FB_USED")],
        },
    })
}

fn policy(text: &str) -> Policy {
    Policy::from_document(&serde_json::from_str(text).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_answer_is_of_one_policy() {
    let desk = Arc::new(Desk::new(
        policy(&denying(UTILIZATION, "enforce")),
        Arc::new(Metrics::new()),
    ));
    let body = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "operation": "CREATE", "object": hpa("chat"), "namespace": "a",
            "kind": {"group": "autoscaling", "version": "v2", "kind": "HorizontalPodAutoscaler"},
            "resource": {"group": "autoscaling", "version": "v2",
                "resource": "horizontalpodautoscalers"},
            "userInfo": {"username": "somebody"},
        },
    })
    .to_string();
    let asked = |desk: Arc<Desk>, body: String| async move {
        let mut seen = [0_usize; 2];
        for _ in 0..500 {
            let request = Request::post("/validate")
                .header("content-type", "application/json")
                .body(Body::from(body.clone()))
                .unwrap();
            let answer = webhook::router(Arc::clone(&desk)).oneshot(request).await;
            let bytes = answer.unwrap().into_body().collect().await.unwrap();
            let answer: Value = serde_json::from_slice(&bytes.to_bytes()).unwrap();
            let response = &answer["response"];
            let causes: Vec<&str> = response["status"]["details"]["causes"]
                .as_array()
                .expect("always denied")
                .iter()
                .map(|cause| cause["reason"].as_str().unwrap())
                .collect();
            assert_eq!(causes.len(), 1, "{response}");
            seen[usize::from(causes[0] == MEMORY)] += 1;
            // What it says of the policy is what it was judged by.
            let by = policy(&denying(causes[0], "enforce"));
            assert_eq!(response["auditAnnotations"]["policy"], by.hash());
        }
        seen
    };
    let tasks: Vec<_> = (0..3)
        .map(|_| tokio::spawn(asked(Arc::clone(&desk), body.clone())))
        .collect();
    let mut turn = 0_usize;
    while tasks.iter().any(|task| !task.is_finished()) {
        turn += 1;
        let rule = [UTILIZATION, MEMORY][turn % 2];
        desk.adopt(policy(&denying(rule, "enforce")));
        tokio::task::yield_now().await;
    }
    let mut seen = [0; 2];
    for task in tasks {
        let of_task = task.await.unwrap();
        seen = [seen[0] + of_task[0], seen[1] + of_task[1]];
    }
    assert!(
        seen.iter().all(|count| *count > 0),
        "both policies judged: {seen:?}"
    );
}

/// A folder that looks like a ConfigMap's volume: the file is a link through a link that is swapped.
struct Volume {
    folder: tempfile::TempDir,
    version: usize,
}

impl Volume {
    fn new(text: &str) -> Result<Self> {
        let mut volume = Self {
            folder: tempfile::tempdir()?,
            version: 0,
        };
        volume.swap(text)?;
        symlink("..data/policy.yaml", volume.file())?;
        Ok(volume)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("policy.yaml")
    }

    fn swap(&mut self, text: &str) -> Result<()> {
        self.version += 1;
        let version = format!("..{}", self.version);
        let folder = self.folder.path();
        fs::create_dir(folder.join(&version))?;
        fs::write(folder.join(&version).join("policy.yaml"), text)?;
        symlink(&version, folder.join("..data_tmp"))?;
        fs::rename(folder.join("..data_tmp"), folder.join("..data"))?;
        Ok(())
    }
}

fn readyz(gangplank: &Gangplank) -> String {
    get(gangplank, "/readyz?verbose").map_or_else(|error| error.to_string(), |answer| answer.1)
}

fn says(gangplank: &Gangplank, line: &str) -> Option<()> {
    readyz(gangplank).contains(line).then_some(())
}

fn stale(gangplank: &Gangplank) -> Result<bool> {
    let metrics = get(gangplank, "/metrics")?.1;
    ensure!(metrics.contains("\ngangplank_policy_stale "), "{metrics}");
    Ok(metrics.contains("\ngangplank_policy_stale 1"))
}

#[test]
fn a_swapped_policy_takes_effect_under_load_and_a_bad_one_does_not() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds()?;
    let default = "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\n";
    let mut volume = Volume::new(default)?;
    let file = format!("--policy={}", volume.file().display());
    let gangplank = guard(&cluster, &[&file])?;
    let kubectl = cluster.namespace("reload")?;
    let create = |name: &str| kubectl.create(&hpa_without_namespace(name).to_string());
    denied_by(&create("chat")?, UTILIZATION);

    // Under a steady stream of writes, each of which is denied by one rule or the other.
    let (over, writes) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| -> Result<()> {
        let tasks: Vec<_> = (0..2)
            .map(|writer| {
                let (create, over, writes) = (&create, &over, &writes);
                scope.spawn(move || -> Result<()> {
                    while !over.load(Ordering::Relaxed) {
                        let answer = create(&format!("chat-{writer}"))?;
                        let of = |rule: &str| answer.stderr.contains(&format!("{rule}: spec"));
                        ensure!(
                            !answer.accepted() && (of(UTILIZATION) || of(MEMORY)),
                            "a write was answered by nobody: {}",
                            answer.stderr
                        );
                        writes.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let mut swaps = || -> Result<()> {
            for rule in [MEMORY, UTILIZATION, MEMORY] {
                let before = writes.load(Ordering::Relaxed);
                volume.swap(&denying(rule, "enforce"))?;
                let by = policy(&denying(rule, "enforce")).hash().to_owned();
                eventually(format!("{rule} denies"), SOON, || {
                    says(&gangplank, &format!("policy: ok, {by}"))
                })?;
                eventually("writes go on", SOON, || {
                    (writes.load(Ordering::Relaxed) > before + 2).then_some(())
                })?;
            }
            Ok(())
        };
        let swapped = swaps();
        over.store(true, Ordering::Relaxed);
        for task in tasks {
            task.join().expect("a writer")?;
        }
        swapped
    })?;
    denied_by(&create("chat")?, MEMORY);
    ensure!(!stale(&gangplank)?, "the last one was taken");

    // Whatever is wrong with the file, what is in force stays, and everything says so.
    for (text, complaint) in [
        (
            "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\nmod: dryRun\n",
            "did you mean `mode`?",
        ),
        (
            "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\nrules: {",
            "policy.yaml:3",
        ),
        (
            "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\nrestore: [{namespaces: ['*'], \
             until: '9999-12-31', owner: sre, reason: far}]",
            "restore[0].until: 9999-12-31 is more than 7 days ahead",
        ),
        ("", "is empty"),
    ] {
        volume.swap(text)?;
        eventually(complaint, SOON, || says(&gangplank, complaint))?;
        denied_by(&create("chat")?, MEMORY);
        ensure!(stale(&gangplank)?, "{text:?}");
    }
    fs::remove_file(volume.file())?;
    eventually("it is missed", SOON, || says(&gangplank, "cannot read"))?;
    denied_by(&create("chat")?, MEMORY);
    ensure!(get(&gangplank, "/readyz")?.0 == 200, "ready all the same");

    // A namespace that is restored is warned, until its day has passed; what may be denied elsewhere, and
    // here after that day, goes on to wait.
    symlink("..data/policy.yaml", volume.file())?;
    let day = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(5 * 24);
    let mut restoring: Value = serde_json::from_str(&denying(UTILIZATION, "enforce"))?;
    restoring["restore"] = json!([{"namespaces": [kubectl.namespace()], "owner": "sre",
        "until": day.strftime("%Y-%m-%d").to_string(), "reason": "rebuilt from the backup"}]);
    volume.swap(&restoring.to_string())?;
    eventually("what is restored is warned of", SOON, || {
        let answer = create("restored").ok()?;
        let says = format!("{UTILIZATION}: would be denied: ");
        (answer.accepted() && answer.stderr.contains(&says)).then_some(())
    })?;
    let elsewhere = cluster.namespace("elsewhere")?;
    let other = hpa_without_namespace("chat").to_string();
    denied_by(&elsewhere.create(&other)?, UTILIZATION);
    let held = kubectl.get("validatingwebhookconfiguration/gangplank")?;
    ensure!(held["webhooks"][0]["failurePolicy"] == "Fail", "{held}");

    // What the new policy makes of the webhook configurations is written at once.
    volume.swap(&denying(UTILIZATION, "dryRun"))?;
    let warned = || {
        let answer = create("dry").ok()?;
        let warned = answer.accepted() && answer.stderr.contains(UTILIZATION);
        if answer.accepted() && !warned {
            let _ = kubectl.delete("hpa/dry");
        }
        warned.then_some(())
    };
    eventually("nothing is denied any more", SOON, warned)?;
    eventually("nothing can block any more", SOON, || {
        let configuration = kubectl
            .get("validatingwebhookconfiguration/gangplank")
            .ok()?;
        let webhooks = configuration["webhooks"].as_array()?;
        let ignored = |webhook: &Value| webhook["failurePolicy"] == "Ignore";
        (!webhooks.is_empty() && webhooks.iter().all(ignored)).then_some(())
    })
}

fn hpa_without_namespace(name: &str) -> Value {
    let mut hpa = hpa(name);
    hpa["metadata"]
        .as_object_mut()
        .expect("metadata")
        .remove("namespace");
    hpa
}

#[test]
fn engines_that_a_new_policy_brings_read_what_is_known_already_anew() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds()?;
    let folder = tempfile::tempdir()?;
    let file: &Path = &folder.path().join("policy.yaml");
    fs::write(file, "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\n")?;
    let kubectl = cluster.namespace("engines")?;
    let mut server = deployment("chat", 1, 1, &[]);
    let container = &mut server["spec"]["template"]["spec"]["containers"][0];
    container["image"] = json!("registry.example/chat-engine:1");
    container["args"] = json!([]);
    kubectl.create(&server.to_string())?.success()?;
    let argument = format!("--policy={}", file.display());
    let _gangplank = guard(&cluster, &[&argument])?;
    let mut on_cpu = hpa_without_namespace("chat");
    on_cpu["spec"]["metrics"] = json!([{"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": 70}}}]);
    let dry = ["create", "--dry-run=server", "--filename=-"];
    let denied = || {
        let answer = kubectl.run(&dry, Some(&on_cpu.to_string())).ok()?;
        (!answer.accepted() && answer.stderr.contains("host-resource-signal")).then_some(())
    };
    ensure!(denied().is_none(), "nobody knows that engine");
    fs::write(
        file,
        json!({
            "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
            "catalog": {"engines": [
                {"name": "chat-engine", "title": "Chat Engine", "like": "vllm",
                    "images": ["chat-engine"]},
            ]},
        })
        .to_string(),
    )?;
    eventually("the engine is known", SOON, denied)
}
