//! Every rule on a real API server, through the clients that people use.
//!
//! One cluster with Gangplank registered serves the tests of verdicts and fills; those that stop
//! Gangplank or begin without it have a cluster of their own.

use std::{path::Path, sync::OnceLock};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::harness::{
    Answer, Assets, Cluster, Gangplank, Kubectl, SOON, eventually, leash::Signal,
};

use crate::serve::get;

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

/// A cluster that Gangplank guards.
pub(crate) struct Guarded {
    pub(crate) cluster: Cluster,
    pub(crate) gangplank: Gangplank,
}

impl Guarded {
    fn start(args: &[&str]) -> Result<Self> {
        let cluster = Cluster::start(&Assets::find()?)?;
        cluster.install_crds()?;
        queue(&cluster, "llm")?;
        let gangplank = guard(&cluster, args)?;
        Ok(Self { cluster, gangplank })
    }
}

/// Makes a queue of KAI's: a workload that names one that is not there is warned of it.
pub(crate) fn queue(cluster: &Cluster, name: &str) -> Result<()> {
    let queue = json!({
        "apiVersion": "scheduling.run.ai/v2", "kind": "Queue", "metadata": {"name": name},
        "spec": {"resources": {"gpu": {"quota": -1, "limit": -1, "overQuotaWeight": 1}}},
    });
    cluster.kubectl().create(&queue.to_string())?.success()?;
    Ok(())
}

/// Starts and registers Gangplank, and waits until the API server asks it.
pub(crate) fn guard(cluster: &Cluster, args: &[&str]) -> Result<Gangplank> {
    let gangplank = Gangplank::register(Path::new(BINARY), cluster, args)?;
    let asked = || {
        let dry = ["create", "--dry-run=server", "--filename=-"];
        let probe = hpa("gangplank-probe", "DCGM_FI_DEV_GPU_UTIL").to_string();
        let denied = cluster
            .kubectl()
            .run(&dry, Some(&probe))
            .is_ok_and(|answer| !answer.accepted());
        let silent = node_pool("gangplank-probe", None).to_string();
        let filled = cluster
            .kubectl()
            .run(&dry, Some(&silent))
            .is_ok_and(|answer| !answer.warnings().is_empty());
        (denied && filled).then_some(())
    };
    eventually("the API server asks Gangplank", SOON, asked)?;
    Ok(gangplank)
}

/// The cluster of the tests of verdicts and fills.
pub(crate) fn guarded() -> Result<&'static Guarded> {
    static GUARDED: OnceLock<Result<Guarded, String>> = OnceLock::new();
    GUARDED
        // What is let through is told at debug only.
        .get_or_init(|| {
            let args = ["--log-level=info,gangplank=debug"];
            Guarded::start(&args).map_err(|error| format!("{error:#}"))
        })
        .as_ref()
        .map_err(|error| anyhow!("{error}"))
}

/// How often the API server asked about objects of a kind.
pub(crate) fn reviews_of(gangplank: &Gangplank, kind: &str) -> Result<usize> {
    let metrics = get(gangplank, "/metrics")?.1;
    let named = format!("\"{kind}\"");
    let of_kind = metrics.lines().filter(|line| {
        line.starts_with("gangplank_admission_reviews_total") && line.contains(&named)
    });
    of_kind
        .map(|line| {
            Ok(line
                .rsplit(' ')
                .next()
                .context("a count")?
                .parse::<usize>()?)
        })
        .sum()
}

pub(crate) fn hpa(name: &str, metric: &str) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
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

pub(crate) fn scaled_object(name: &str, query: &str) -> Value {
    json!({
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"name": "llm"},
            "minReplicaCount": 1,
            "triggers": [{"type": "prometheus", "metadata": {
                "serverAddress": "http://prometheus.monitoring:9090", "query": query, "threshold": "5",
            }}],
        },
    })
}

/// A GPU pool with a taint, and this disruption.
pub(crate) fn node_pool(name: &str, disruption: Option<Value>) -> Value {
    let mut pool = json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {"template": {"spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"},
            "requirements": [
                {"key": "karpenter.k8s.aws/instance-family", "operator": "In", "values": ["p5"]},
            ],
            "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
        }}},
    });
    if let Some(disruption) = disruption {
        pool["spec"]["disruption"] = disruption;
    }
    pool
}

pub(crate) fn evicting() -> Value {
    json!({"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "5m"})
}

/// A vLLM server: GPUs a pod, replicas, arguments beyond the model.
pub(crate) fn deployment(name: &str, gpus: u32, replicas: u32, args: &[&str]) -> Value {
    let mut all = vec!["--model=meta-llama/Llama-3.1-70B-Instruct"];
    all.extend(args);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{
                    "name": "vllm",
                    "image": "vllm/vllm-openai:v0.11.0",
                    "args": all,
                    "resources": {"limits": {"nvidia.com/gpu": gpus}},
                }]},
            },
        },
    })
}

/// A gang of eight pods with one GPU each, with a queue.
pub(crate) fn gang(name: &str) -> Value {
    let args = [
        "--tensor-parallel-size=8",
        "--nnodes=8",
        "--master-addr=gang",
    ];
    let mut deployment = deployment(name, 1, 8, &args);
    deployment["metadata"]["labels"] = json!({"kai.scheduler/queue": "llm"});
    deployment
}

const MINIMUM: &str = "/metadata/annotations/kai.scheduler~1batch-min-member";
const SCHEDULER: &str = "/spec/template/spec/schedulerName";
const GRACE: &str = "/spec/template/spec/terminationGracePeriodSeconds";

pub(crate) fn at<'v>(object: &'v Value, pointer: &str) -> &'v Value {
    object.pointer(pointer).unwrap_or(&Value::Null)
}

/// The object's identity for kubectl, `kind/name`.
pub(crate) fn reference(object: &Value) -> String {
    format!(
        "{}/{}",
        object["kind"].as_str().unwrap().to_lowercase(),
        object["metadata"]["name"].as_str().unwrap()
    )
}

pub(crate) fn denied_by(answer: &Answer, rule: &str) {
    assert!(!answer.accepted(), "{}", answer.stdout);
    let says = format!(".gangplank.dev\" denied the request: {rule}: ");
    let told = answer
        .stderr
        .find(&says)
        .and_then(|end| answer.stderr.get(..end));
    let entry = told.and_then(|told| told.rsplit_once("admission webhook \""));
    assert!(
        entry.is_some_and(|(_, entry)| entry.starts_with("enforce-") || entry.starts_with("advise-")),
        "{}",
        answer.stderr
    );
    assert!(answer.stderr.contains("(Forbidden)"), "{}", answer.stderr);
}

pub(crate) type Create = fn(&Kubectl, &str) -> Result<Answer>;

/// The ways in which people create objects.
pub(crate) const CLIENTS: [(&str, Create); 4] = [
    ("create", Kubectl::create),
    ("apply", Kubectl::apply),
    ("apply --server-side", Kubectl::apply_server_side),
    ("create --dry-run=server", |kubectl, manifest| {
        kubectl.run(
            &["create", "--dry-run=server", "--filename=-"],
            Some(manifest),
        )
    }),
];

/// Every rule that denies: an object that it denies, the path in the denial, and one that passes.
fn cases() -> Vec<(&'static str, &'static str, Value, Value)> {
    let good_pool = Some(json!({"consolidationPolicy": "WhenEmpty", "consolidateAfter": "1h"}));
    let mut seven = gang("seven");
    seven["metadata"]["annotations"] = json!({"kai.scheduler/batch-min-member": "7"});
    vec![
        (
            "gpu-utilization-signal",
            "spec.metrics[0].pods.metric.name is \"DCGM_FI_DEV_GPU_UTIL\"",
            hpa("utilization", "DCGM_FI_DEV_GPU_UTIL"),
            hpa("utilization", "vllm:num_requests_waiting"),
        ),
        (
            "gpu-utilization-signal",
            "spec.triggers[0].metadata.query is ",
            scaled_object("duty-cycle", "avg(nvidia_gpu_duty_cycle)"),
            scaled_object(
                "duty-cycle",
                "sum(vllm:num_requests_waiting{gpu=\"DCGM_FI_DEV_GPU_UTIL\"})",
            ),
        ),
        (
            "gpu-memory-signal",
            "spec.metrics[0].pods.metric.name is \"DCGM_FI_DEV_FB_USED\"",
            hpa("memory", "DCGM_FI_DEV_FB_USED"),
            hpa("memory", "vllm:gpu_cache_usage_perc"),
        ),
        (
            "gpu-memory-signal",
            "spec.triggers[0].metadata.query is ",
            scaled_object("frame-buffer", "max(DCGM_FI_DEV_FB_USED) / 80000"),
            scaled_object("frame-buffer", "max(vllm:gpu_cache_usage_perc)"),
        ),
        (
            "gpu-pool-consolidation",
            "spec.disruption.consolidationPolicy is \"WhenEmptyOrUnderutilized\"",
            node_pool("evicting", Some(evicting())),
            node_pool("evicting", good_pool),
        ),
        (
            "gang-scheduling",
            "",
            deployment("no-queue", 8, 1, &["--tensor-parallel-size=8"]),
            deployment("no-queue", 8, 1, &[]),
        ),
        (
            "parallelism-fits-pod",
            "",
            deployment("too-few", 7, 1, &["--tensor-parallel-size=8"]),
            deployment("too-few", 7, 1, &[]),
        ),
        (
            "gang-scheduling",
            "metadata.annotations[kai.scheduler/batch-min-member] is \"7\"",
            seven,
            gang("seven"),
        ),
    ]
}

#[test]
fn what_a_rule_denies_is_denied_to_every_client() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("denied")?;
    for (rule, says, bad, _) in cases() {
        for (client, create) in CLIENTS {
            let answer = create(&kubectl, &bad.to_string()).context(client)?;
            denied_by(&answer, rule);
            assert!(answer.stderr.contains(says), "{client}: {}", answer.stderr);
            assert!(
                answer.stderr.contains("write instead:"),
                "{client}: {}",
                answer.stderr
            );
            assert!(
                kubectl.get(&reference(&bad)).is_err(),
                "{client}: {rule} left something"
            );
        }
    }
    Ok(())
}

#[test]
fn what_is_right_passes_and_cannot_be_made_wrong_later() -> Result<()> {
    for (client, create) in CLIENTS.into_iter().take(3) {
        let kubectl = guarded()?.cluster.namespace("passes")?;
        for (rule, _, mut bad, mut good) in cases() {
            // NodePools live outside namespaces.
            let name = format!(
                "{}-{}",
                good["metadata"]["name"].as_str().unwrap(),
                client.replace([' ', '-'], "")
            );
            for object in [&mut bad, &mut good] {
                object["metadata"]["name"] = json!(name);
            }
            create(&kubectl, &good.to_string())?
                .success()
                .with_context(|| format!("{client}: {rule}"))?;
            denied_by(&kubectl.replace(&bad.to_string())?, rule);
            let forced = [
                "apply",
                "--server-side",
                "--force-conflicts",
                "--filename=-",
            ];
            denied_by(&kubectl.run(&forced, Some(&bad.to_string()))?, rule);
            let mut patch = json!({"spec": bad["spec"]});
            if let Some(annotations) = bad["metadata"].get("annotations") {
                patch = json!({"metadata": {"annotations": annotations}});
            }
            denied_by(&kubectl.patch(&reference(&bad), &patch)?, rule);
            kubectl.delete(&reference(&good))?;
        }
    }
    Ok(())
}

#[test]
fn a_silent_gpu_pool_is_filled_by_every_client_and_stays_so() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    for (client, create) in CLIENTS.into_iter().take(3) {
        let name = format!("silent-{}", client.replace(' ', ""));
        let manifest = node_pool(&name, None).to_string();
        let answer = create(kubectl, &manifest)?;
        let warnings = answer.warnings().join("\n");
        assert!(warnings.contains("gpu-pool-consolidation: filled spec.disruption.consolidationPolicy with \"WhenEmpty\""), "{client}: {warnings}");
        answer.success()?;
        let object = format!("nodepool/{name}");
        let first = kubectl.get(&object)?;
        assert_eq!(
            first["spec"]["disruption"]["consolidationPolicy"], "WhenEmpty",
            "{client}"
        );
        assert_eq!(
            first["spec"]["disruption"]["consolidateAfter"], "1h",
            "{client}"
        );
        assert_eq!(
            first["spec"]["disruption"]["budgets"],
            json!([{"nodes": "10%"}]),
            "{client}"
        );
        // Again by the same client, and by a bare PUT: nothing changes.
        if client != "create" {
            create(kubectl, &manifest)?.success()?;
            assert_eq!(
                kubectl.get(&object)?["metadata"]["resourceVersion"],
                first["metadata"]["resourceVersion"],
                "{client}"
            );
        }
        kubectl.replace(&manifest)?.success()?;
        let replaced = kubectl.get(&object)?;
        assert_eq!(replaced["spec"], first["spec"], "{client}");
        assert_eq!(
            replaced["metadata"]["generation"], first["metadata"]["generation"],
            "{client}"
        );
        // Somebody who asks for eviction afterwards means it.
        let evict =
            json!({"spec": {"disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized"}}});
        denied_by(&kubectl.patch(&object, &evict)?, "gpu-pool-consolidation");
    }
    Ok(())
}

#[test]
fn what_is_written_is_never_rewritten() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    let short = json!({"consolidationPolicy": "WhenEmpty", "consolidateAfter": "30s"});
    let answer = kubectl.apply(&node_pool("short", Some(short.clone())).to_string())?;
    let warnings = answer.warnings().join("\n");
    assert!(
        warnings.contains("gpu-pool-consolidate-after: spec.disruption.consolidateAfter"),
        "{warnings}"
    );
    answer.success()?;
    let disruption = &kubectl.get("nodepool/short")?["spec"]["disruption"];
    assert_eq!(
        (
            &disruption["consolidateAfter"],
            &disruption["consolidationPolicy"]
        ),
        (&short["consolidateAfter"], &short["consolidationPolicy"])
    );
    Ok(())
}

#[test]
fn a_gang_of_eight_is_made_one_and_stays_one() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("gang")?;
    for (client, create) in CLIENTS.into_iter().take(3) {
        let name = format!("gang-{}", client.replace(' ', ""));
        let manifest = gang(&name).to_string();
        create(&kubectl, &manifest)?.success()?;
        let object = format!("deployment/{name}");
        let first = kubectl.get(&object)?;
        assert_eq!(at(&first, MINIMUM), "8", "{client}");
        assert_eq!(at(&first, SCHEDULER), "kai-scheduler", "{client}");
        assert_eq!(first["spec"]["strategy"]["type"], "Recreate", "{client}");
        if client != "create" {
            create(&kubectl, &manifest)?.success()?;
            assert_eq!(
                kubectl.get(&object)?["metadata"]["generation"],
                first["metadata"]["generation"],
                "{client}"
            );
        }
        kubectl.replace(&manifest)?.success()?;
        let replaced = kubectl.get(&object)?;
        assert_eq!(replaced["spec"], first["spec"], "{client}");
        assert_eq!(at(&replaced, MINIMUM), "8", "{client}");
        // Seven of eight is what this product is for.
        denied_by(
            &kubectl.annotate(&object, "kai.scheduler/batch-min-member=7")?,
            "gang-scheduling",
        );
        assert_eq!(at(&kubectl.get(&object)?, MINIMUM), "8", "{client}");
    }
    Ok(())
}

#[test]
fn a_single_pod_goes_to_the_gang_scheduler_with_a_minimum_of_one() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("single")?;
    let mut server = deployment("llm", 8, 3, &["--tensor-parallel-size=8"]);
    server["metadata"]["labels"] = json!({"kai.scheduler/queue": "llm"});
    kubectl.apply(&server.to_string())?.success()?;
    let held = kubectl.get("deployment/llm")?;
    assert_eq!(
        (at(&held, MINIMUM), at(&held, SCHEDULER)),
        (&json!("1"), &json!("kai-scheduler"))
    );
    assert_eq!(
        held["spec"]["strategy"]["type"], "RollingUpdate",
        "independent replicas roll as before"
    );
    Ok(())
}

#[test]
fn a_silent_grace_period_is_filled_where_silence_is_known() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("grace")?;
    let manifest = |name: &str| deployment(name, 1, 1, &[]).to_string();
    for (client, create, grace) in [
        ("apply", Kubectl::apply as Create, 180),
        ("apply --server-side", Kubectl::apply_server_side, 180),
        // 30 may be somebody's choice: nothing tells.
        ("create", Kubectl::create, 30),
    ] {
        let name = client.replace(' ', "");
        let answer = create(&kubectl, &manifest(&name))?;
        let warned = answer
            .warnings()
            .iter()
            .any(|line| line.starts_with("termination-grace: "));
        assert!(warned, "{client}: {}", answer.stderr);
        answer.success()?;
        let object = format!("deployment/{name}");
        let first = kubectl.get(&object)?;
        assert_eq!(at(&first, GRACE), grace, "{client}");
        if client != "create" {
            create(&kubectl, &manifest(&name))?.success()?;
            let again = kubectl.get(&object)?;
            assert_eq!(
                again["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"],
                "{client}"
            );
        }
        // Another client adds its annotation and changes nothing else.
        kubectl.apply(&manifest(&name))?.success()?;
        assert_eq!(kubectl.get(&object)?["spec"], first["spec"], "{client}");
    }
    // A fill on UPDATE would restart a running fleet.
    kubectl.create(&manifest("running"))?.success()?;
    kubectl.apply(&manifest("running"))?.success()?;
    assert_eq!(at(&kubectl.get("deployment/running")?, GRACE), 30);
    // Replacing what apply created changes nothing.
    kubectl.replace(&manifest("apply"))?.success()?;
    assert_eq!(at(&kubectl.get("deployment/apply")?, GRACE), 180);
    // Thirty seconds that somebody writes stay.
    let thirty = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 30}}}});
    kubectl.patch("deployment/apply", &thirty)?.success()?;
    assert_eq!(at(&kubectl.get("deployment/apply")?, GRACE), 30);
    Ok(())
}

#[test]
fn workloads_without_accelerators_are_never_sent() -> Result<()> {
    let guarded = guarded()?;
    let kubectl = guarded.cluster.namespace("cpu")?;
    let mut cpu = deployment("web", 1, 2, &["--tensor-parallel-size=8"]);
    cpu["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}});
    kubectl.create(&cpu.to_string())?.success()?;
    kubectl
        .patch("deployment/web", &json!({"spec": {"replicas": 3}}))?
        .success()?;
    assert!(
        !guarded.gangplank.log().contains("\"name\":\"web\""),
        "{}",
        guarded.gangplank.log()
    );
    Ok(())
}

/// What holds when Gangplank comes to a cluster that has violations, goes away, and is removed.
#[test]
fn a_life_among_existing_violations_and_without_the_server() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds()?;
    let kubectl = cluster.namespace("life")?;
    kubectl
        .create(&node_pool("before", Some(evicting())).to_string())?
        .success()?;
    kubectl
        .create(&hpa("before", "DCGM_FI_DEV_GPU_UTIL").to_string())?
        .success()?;
    kubectl
        .create(&deployment("before", 8, 1, &["--tensor-parallel-size=8"]).to_string())?
        .success()?;
    let mut gangplank = guard(&cluster, &[])?;

    // Karpenter writes its hash to the object itself; that is none of our business.
    let asked = |gangplank: &Gangplank| reviews_of(gangplank, "NodePool");
    // Nor is what it writes to the status, and a finalizer.
    let own_writes = |number: u32| -> Result<()> {
        let hash = format!("karpenter.sh/nodepool-hash={number}");
        kubectl.annotate("nodepool/before", &hash)?.success()?;
        for (subresource, patch) in [
            ("--subresource=status", json!({"status": {"nodes": number}})),
            (
                "--subresource=",
                json!({"metadata": {"finalizers": [format!("karpenter.sh/{number}")]}}),
            ),
            ("--subresource=", json!({"metadata": {"finalizers": null}})),
        ] {
            let patch = format!("--patch={patch}");
            let args = [
                "patch",
                "nodepool/before",
                "--type=merge",
                subresource,
                &patch,
            ];
            kubectl.run(&args, None)?.success()?;
        }
        let held = kubectl.get("nodepool/before")?;
        assert_eq!(held["status"]["nodes"], number);
        Ok(())
    };
    let before = asked(&gangplank)?;
    own_writes(1234)?;
    assert_eq!(asked(&gangplank)?, before, "nobody asked us");
    // What was there before warns; what is new is denied.
    let answer = kubectl.patch(
        "nodepool/before",
        &json!({"spec": {"limits": {"nvidia.com/gpu": "64"}}}),
    )?;
    assert!(
        answer
            .warnings()
            .iter()
            .any(|line| line.starts_with("gpu-pool-consolidation: ")
                && line.contains("as before this change")),
        "{}",
        answer.stderr
    );
    answer.success()?;
    kubectl
        .patch("hpa/before", &json!({"spec": {"maxReplicas": 8}}))?
        .success()?;
    kubectl
        .patch(
            "deployment/before",
            &json!({"spec": {"minReadySeconds": 5}}),
        )?
        .success()?;
    let memory = hpa("before", "DCGM_FI_DEV_FB_USED")["spec"]["metrics"].clone();
    denied_by(
        &kubectl.patch("hpa/before", &json!({"spec": {"metrics": memory}}))?,
        "gpu-memory-signal",
    );
    // A scaler that takes it to nothing locks nobody out.
    kubectl
        .run(&["scale", "deployment/before", "--replicas=0"], None)?
        .success()?;
    let answer = kubectl.patch("deployment/before", &json!({"spec": {"replicas": 1}}))?;
    assert!(
        answer.stderr.contains("as before this change"),
        "{}",
        answer.stderr
    );
    answer.success()?;
    // A template is not touched on UPDATE.
    let held = kubectl.get("deployment/before")?;
    assert_eq!(
        (at(&held, SCHEDULER), at(&held, GRACE)),
        (&json!("default-scheduler"), &json!(30))
    );

    gangplank.kill()?;
    // Nothing that we have no say in waits for us.
    let unrelated = ["create", "configmap", "unrelated", "--from-literal=a=b"];
    kubectl.run(&unrelated, None)?.success()?;
    let mut cpu = deployment("web", 1, 1, &[]);
    cpu["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({});
    kubectl.create(&cpu.to_string())?.success()?;
    let mut on_cpu = hpa("web", "any");
    on_cpu["spec"]["metrics"] = json!([{"type": "Resource", "resource": {
        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80},
    }}]);
    kubectl.create(&on_cpu.to_string())?.success()?;
    own_writes(5678)?;
    kubectl
        .run(&["scale", "deployment/before", "--replicas=2"], None)?
        .success()?;
    kubectl.delete("hpa/before")?.success()?;
    // What may have to be denied does.
    let answer = kubectl.create(&hpa("after", "DCGM_FI_DEV_GPU_UTIL").to_string())?;
    assert!(
        !answer.accepted() && answer.stderr.contains("failed calling webhook"),
        "{}",
        answer.stderr
    );
    // Whoever claims an owner gains nothing by it; what KEDA itself would write goes on.
    let mut claimed = hpa("claimed", "DCGM_FI_DEV_GPU_UTIL");
    claimed["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "chat", "uid": "c0ffee",
        "controller": true,
    }]);
    let answer = kubectl.create(&claimed.to_string())?;
    assert!(
        !answer.accepted() && answer.stderr.contains("failed calling webhook"),
        "{}",
        answer.stderr
    );
    claimed["spec"]["metrics"] = json!([{"type": "External", "external": {
        "metric": {"name": "s0-prometheus",
            "selector": {"matchLabels": {"scaledobject.keda.sh/name": "chat"}}},
        "target": {"type": "AverageValue", "averageValue": "5"},
    }}]);
    kubectl.create(&claimed.to_string())?.success()?;

    let kubeconfig = cluster.kubeconfig().display().to_string();
    let removed = std::process::Command::new(BINARY)
        .args(["serve", "--unregister", "--kubeconfig", &kubeconfig])
        .output()?;
    ensure!(
        removed.status.success(),
        "{}",
        String::from_utf8_lossy(&removed.stderr)
    );
    let passes = || {
        let answer = kubectl
            .apply(&hpa("after", "DCGM_FI_DEV_GPU_UTIL").to_string())
            .ok()?;
        answer.accepted().then_some(())
    };
    eventually("nobody is asked any more", SOON, passes)
}

#[test]
fn a_dry_run_policy_warns_and_blocks_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let policy = folder.path().join("policy.yaml");
    std::fs::write(
        &policy,
        "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\nmode: dryRun\n",
    )?;
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds()?;
    let policy = format!("--policy={}", policy.display());
    let mut gangplank = Gangplank::register(Path::new(BINARY), &cluster, &[&policy])?;
    let kubectl = cluster.kubectl();
    let dry = ["create", "--dry-run=server", "--filename=-"];
    let bad = node_pool("dry", Some(evicting())).to_string();
    let warned = || {
        let answer = kubectl.run(&dry, Some(&bad)).ok()?;
        let says = "gpu-pool-consolidation: would be denied: spec.disruption.consolidationPolicy: ";
        (answer.accepted() && answer.stderr.contains(says)).then_some(())
    };
    eventually("the API server asks Gangplank", SOON, warned)?;
    // What enforcement would fill is not what it would deny.
    let silent = kubectl.create(&node_pool("dry", None).to_string())?;
    let would_fill =
        "gpu-pool-consolidation: would fill spec.disruption.consolidationPolicy with \"WhenEmpty\"";
    ensure!(
        silent.stderr.contains(would_fill) && !silent.stderr.contains("would be denied"),
        "{}",
        silent.stderr
    );
    silent.success()?;
    let metrics = get(&gangplank, "/metrics")?.1;
    for line in [
        "gangplank_admission_reviews_total{endpoint=\"advise\",kind=\"NodePool\",operation=\"CREATE\",verdict=\"would-deny\"}",
        "gangplank_findings_total{endpoint=\"advise\",rule=\"gpu-pool-consolidation\",level=\"would-deny\"}",
        "gangplank_findings_total{endpoint=\"advise\",rule=\"gpu-pool-consolidation\",level=\"would-fill\"}",
    ] {
        ensure!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let held = kubectl.get("nodepool/dry")?;
    assert_eq!(
        held["spec"]["disruption"]["consolidationPolicy"], "WhenEmptyOrUnderutilized",
        "nothing is filled"
    );
    let webhooks = kubectl.get("validatingwebhookconfiguration/gangplank")?;
    for webhook in webhooks["webhooks"].as_array().context("webhooks")? {
        assert_eq!(webhook["failurePolicy"], "Ignore", "{}", webhook["name"]);
    }
    gangplank.kill()?;
    kubectl
        .create(&node_pool("dead", Some(evicting())).to_string())?
        .success()?;
    Ok(())
}

#[test]
fn registering_again_changes_nothing_and_what_was_removed_comes_back() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds()?;
    let folder = tempfile::tempdir()?;
    let key = rcgen::KeyPair::generate()?;
    let signed = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?.self_signed(&key)?;
    let (cert, secret) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&cert, signed.pem())?;
    std::fs::write(&secret, key.serialize_pem())?;
    let args = [
        format!("--tls-cert={}", cert.display()),
        format!("--tls-key={}", secret.display()),
        "--url=https://127.0.0.1:9".to_owned(),
    ];
    let version = |kind: &str| -> Result<Value> {
        Ok(
            cluster.kubectl().get(&format!("{kind}/gangplank"))?["metadata"]["resourceVersion"]
                .clone(),
        )
    };
    let mut first = Gangplank::register(Path::new(BINARY), &cluster, &args)?;
    let before = (
        version("mutatingwebhookconfiguration")?,
        version("validatingwebhookconfiguration")?,
    );
    first.signal(Signal::Terminate)?;
    first.wait(SOON)?;
    let mut second = args.to_vec();
    second.push("--registration-period=200ms".to_owned());
    let _second = Gangplank::register(Path::new(BINARY), &cluster, &second)?;
    let after = (
        version("mutatingwebhookconfiguration")?,
        version("validatingwebhookconfiguration")?,
    );
    assert_eq!(before, after);
    let object = "validatingwebhookconfiguration/gangplank";
    cluster.kubectl().delete(object)?.success()?;
    // It comes back empty, a moment before its entries do.
    let back = || {
        let held = cluster.kubectl().get(object).ok()?;
        held["webhooks"][0].is_object().then_some(())
    };
    eventually("what was removed comes back", SOON, back)?;
    let ignore = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
    let patch = format!("--patch={ignore}");
    let by_hand = ["patch", object, "--type=json", &patch];
    cluster.kubectl().run(&by_hand, None)?.success()?;
    let mended = || {
        let held = cluster.kubectl().get(object).ok()?;
        (held["webhooks"][0]["failurePolicy"] == "Fail").then_some(())
    };
    eventually("what was changed by hand is put right", SOON, mended)?;
    Ok(())
}
