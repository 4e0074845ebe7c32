//! Autoscalers on a real API server: those that KEDA makes must never be stuck, and those of AIBrix
//! and kthena are judged like every other.

use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};

use crate::{
    enforce::{CLIENTS, denied_by, guard, guarded, reference},
    harness::{Answer, Assets, Cluster, Gangplank, Kubectl, SOON, eventually},
};

const GPU: &str = "DCGM_FI_DEV_GPU_UTIL";
const QUEUE: &str = "vllm:num_requests_waiting";
const FINALIZER: &str = "finalizer.keda.sh";
const UTILIZATION: &str = "gpu-utilization-signal";

fn scaled_object(query: &str) -> Value {
    json!({
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "chat"},
        "spec": {"scaleTargetRef": {"name": "chat"}, "minReplicaCount": 1, "triggers": [
            {"type": "prometheus", "metadata": {
                "serverAddress": "http://prometheus.monitoring:9090", "query": query, "threshold": "5"}},
        ]},
    })
}

fn hpa(name: &str, metrics: &[Value]) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "minReplicas": 1, "maxReplicas": 4, "metrics": metrics,
        },
    })
}

fn pods(metric: &str) -> Value {
    json!({"type": "Pods", "pods": {"metric": {"name": metric},
        "target": {"type": "AverageValue", "averageValue": "70"}}})
}

fn cpu() -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": 70}}})
}

/// An external metric as KEDA writes it for a trigger of a ScaledObject.
fn of_trigger(metric: &str, scaled_object: &str) -> Value {
    json!({"type": "External", "external": {
        "metric": {"name": metric,
            "selector": {"matchLabels": {"scaledobject.keda.sh/name": scaled_object}}},
        "target": {"type": "AverageValue", "averageValue": "5"}}})
}

/// The HPA that KEDA makes for a ScaledObject that the API server holds.
fn kedas(owner: &Value, metrics: &[Value]) -> Value {
    let mut hpa = hpa("keda-hpa-chat", metrics);
    hpa["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "keda-operator",
        "scaledobject.keda.sh/name": "chat"});
    hpa["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
        "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true}]);
    hpa
}

/// A cluster in which objects that would be denied stood before Gangplank came.
struct Before {
    _gangplank: Gangplank,
    /// With an HPA on the GPU, called as KEDA's own would be.
    hpa: Kubectl,
    /// With a ScaledObject on the GPU.
    scaled_object: Kubectl,
    _cluster: Cluster,
}

fn before() -> Result<&'static Before> {
    static BEFORE: OnceLock<Result<Before, String>> = OnceLock::new();
    let start = || -> Result<Before> {
        let cluster = Cluster::start(&Assets::find()?)?;
        cluster.install_crds()?;
        let (users, kedas) = (cluster.namespace("before")?, cluster.namespace("before")?);
        let old = hpa("keda-hpa-chat", &[pods(GPU)]);
        users.create(&old.to_string())?.success()?;
        kedas.create(&scaled_object(GPU).to_string())?.success()?;
        let gangplank = guard(&cluster, &[])?;
        Ok(Before {
            _gangplank: gangplank,
            hpa: users,
            scaled_object: kedas,
            _cluster: cluster,
        })
    };
    BEFORE
        .get_or_init(|| start().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("{error}"))
}

fn passes(answer: Answer, what: &str) -> Result<()> {
    answer.success().context(what.to_owned())?;
    Ok(())
}

/// Denied by whichever entry it went to: what has the shape that a controller gives its children is
/// asked about by the one that never blocks while we are away, and denied by it all the same.
fn refused_by(answer: &Answer, rule: &str) {
    assert!(!answer.accepted(), "{}", answer.stdout);
    let says = format!("gangplank.dev\" denied the request: {rule}: ");
    assert!(answer.stderr.contains(&says), "{}", answer.stderr);
}

#[test]
fn kedas_own_hpa_is_made_changed_and_made_again() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("keda")?;
    passes(
        kubectl.create(&scaled_object(QUEUE).to_string())?,
        "the ScaledObject",
    )?;
    let owner = kubectl.get("scaledobject/chat")?;
    // Names of metrics and scalers that people choose surface in those that KEDA makes.
    for names in [
        &["s0-prometheus"][..],
        &["s0-prometheus", "s1-metric-api-gpu_utilization"],
        &["s0-azure-monitor-GPUUtilization"],
        &["composite-metric"],
    ] {
        let metrics: Vec<Value> = names.iter().map(|name| of_trigger(name, "chat")).collect();
        let made = kedas(&owner, &metrics).to_string();
        passes(kubectl.create(&made)?, "creation")?;
        // KEDA adds cpu metrics of the ScaledObject beside the external ones.
        let with_cpu: Vec<Value> = metrics.iter().cloned().chain([cpu()]).collect();
        passes(
            kubectl.replace(&kedas(&owner, &with_cpu).to_string())?,
            "with cpu",
        )?;
        passes(
            kubectl.patch("hpa/keda-hpa-chat", &json!({"spec": {"maxReplicas": 9}}))?,
            "another maximum",
        )?;
        passes(kubectl.delete("hpa/keda-hpa-chat")?, "deletion")?;
        passes(
            kubectl.create(&kedas(&owner, &with_cpu).to_string())?,
            "made again",
        )?;
        passes(kubectl.delete("hpa/keda-hpa-chat")?, "deletion")?;
    }
    // An HPA of nothing but cpu.
    passes(
        kubectl.create(&kedas(&owner, &[cpu()]).to_string())?,
        "cpu alone",
    )
}

#[test]
fn an_owner_that_is_claimed_gains_nothing() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("forged")?;
    passes(
        kubectl.create(&scaled_object(QUEUE).to_string())?,
        "the ScaledObject",
    )?;
    let owner = kubectl.get("scaledobject/chat")?;
    let external = |metric: &str| {
        let mut metric = of_trigger(metric, "chat");
        metric["external"]["metric"]["selector"] = Value::Null;
        metric
    };
    for (what, metrics) in [
        ("another type of metric", vec![pods(GPU)]),
        (
            "beside KEDA's own",
            vec![of_trigger("s0-prometheus", "chat"), pods(GPU)],
        ),
        (
            "without the selector",
            vec![external("s0-DCGM_FI_DEV_GPU_UTIL")],
        ),
        (
            "of another ScaledObject",
            vec![of_trigger("s0-gpu_utilization", "other")],
        ),
        ("by no name of KEDA's", vec![of_trigger(GPU, "chat")]),
    ] {
        let answer = kubectl.create(&kedas(&owner, &metrics).to_string())?;
        refused_by(&answer, UTILIZATION);
        assert!(kubectl.get("hpa/keda-hpa-chat").is_err(), "{what}");
    }
    // The same as an UPDATE of KEDA's own.
    let made = kedas(&owner, &[of_trigger("s0-prometheus", "chat")]);
    passes(kubectl.create(&made.to_string())?, "KEDA's own")?;
    let forged = json!({"spec": {"metrics": [pods(GPU)]}});
    refused_by(&kubectl.patch("hpa/keda-hpa-chat", &forged)?, UTILIZATION);
    Ok(())
}

#[test]
fn an_owner_of_aibrix_takes_no_hpa_out_of_sight() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("aibrix")?;
    passes(
        kubectl.create(&pod_autoscaler("gpu_cache_usage_perc").to_string())?,
        "the PodAutoscaler",
    )?;
    let owner = kubectl.get("podautoscaler/chat")?;
    let claimed = |name: &str| {
        let mut hpa = hpa(name, &[pods(GPU)]);
        hpa["metadata"]["ownerReferences"] = json!([{
            "apiVersion": owner["apiVersion"], "kind": owner["kind"],
            "name": "chat", "uid": owner["metadata"]["uid"], "controller": true}]);
        hpa.to_string()
    };
    denied_by(&kubectl.create(&claimed("mine"))?, UTILIZATION);
    // By the name that AIBrix gives it may be AIBrix's own: refusing would make it try for ever.
    let answer = kubectl.create(&claimed("chat-hpa"))?;
    assert!(answer.stderr.contains(UTILIZATION), "{}", answer.stderr);
    passes(answer, "AIBrix's own")
}

#[test]
fn a_users_hpa_goes_over_to_keda() -> Result<()> {
    let kubectl = &before()?.hpa;
    let mut object = scaled_object(QUEUE);
    object["metadata"]["annotations"] =
        json!({"scaledobject.keda.sh/transfer-hpa-ownership": "true"});
    object["spec"]["advanced"] =
        json!({"horizontalPodAutoscalerConfig": {"name": "keda-hpa-chat"}});
    passes(kubectl.create(&object.to_string())?, "the ScaledObject")?;
    let owner = kubectl.get("scaledobject/chat")?;
    // KEDA overwrites it in place; first the owner alone, as a controller that is interrupted would.
    let owners = kedas(&owner, &[])["metadata"]["ownerReferences"].clone();
    let claimed = json!({"metadata": {"ownerReferences": owners}});
    passes(kubectl.patch("hpa/keda-hpa-chat", &claimed)?, "the owner")?;
    let metrics = [of_trigger("s0-prometheus", "chat"), cpu()];
    passes(
        kubectl.replace(&kedas(&owner, &metrics).to_string())?,
        "the transfer",
    )?;
    // Back again is a change for the worse.
    let back = json!({"spec": {"metrics": [pods(GPU)]}});
    refused_by(&kubectl.patch("hpa/keda-hpa-chat", &back)?, UTILIZATION);
    Ok(())
}

#[test]
fn a_scaled_object_that_is_denied_now_can_still_be_served_and_removed() -> Result<()> {
    let kubectl = &before()?.scaled_object;
    let so = "scaledobject/chat";
    // KEDA puts its finalizer on objects that it finds, and writes the status.
    passes(
        kubectl.patch(so, &json!({"metadata": {"finalizers": [FINALIZER]}}))?,
        "the finalizer",
    )?;
    let status = json!({"status": {"hpaName": "keda-hpa-chat"}}).to_string();
    let patch = format!("--patch={status}");
    passes(
        kubectl.run(
            &["patch", so, "--subresource=status", "--type=merge", &patch],
            None,
        )?,
        "the status",
    )?;
    passes(
        kubectl.annotate(so, "autoscaling.keda.sh/paused=true")?,
        "a pause",
    )?;
    passes(
        kubectl.patch(so, &json!({"spec": {"maxReplicaCount": 20}}))?,
        "a change of something else",
    )?;
    // It goes away: deletion waits for the finalizer, and nothing may keep KEDA from removing it.
    passes(kubectl.delete(so)?, "deletion")?;
    let held = kubectl.get(so)?;
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    passes(
        kubectl.patch(so, &json!({"metadata": {"finalizers": null}}))?,
        "removal of the finalizer",
    )?;
    assert!(kubectl.get(so).is_err(), "it is gone");
    // Anew it is a new object.
    refused_by(
        &kubectl.create(&scaled_object(GPU).to_string())?,
        UTILIZATION,
    );
    Ok(())
}

#[test]
fn the_denial_names_the_metric_of_the_engine_that_the_target_runs() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("teaches")?;
    let bad = hpa("chat", &[pods(GPU)]).to_string();
    let dry = ["create", "--dry-run=server", "--filename=-"];
    let says = |text: &str| -> Result<()> {
        let said = || {
            let answer = kubectl.run(&dry, Some(&bad)).ok()?;
            (!answer.accepted() && answer.stderr.contains(text)).then_some(())
        };
        eventually(format_args!("the denial says {text:?}"), SOON, said)
    };
    says("name: vllm:num_requests_waiting")?;
    let server = |image: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "chat"},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "chat"}}, "template": {
                "metadata": {"labels": {"app": "chat", "llm-d.ai/role": "decode"}},
                "spec": {"containers": [{"name": "server", "image": image,
                    "resources": {"limits": {"nvidia.com/gpu": 1}}}]}}},
        })
        .to_string()
    };
    // Known from the watch: the engine, its version, and the phase that it serves.
    kubectl
        .create(&server("vllm/vllm-openai:v0.8.5"))?
        .success()?;
    says("name: vllm:gpu_cache_usage_perc")?;
    kubectl
        .replace(&server("lmsysorg/sglang:v0.5.4"))?
        .success()?;
    says("name: sglang:token_usage")
}

/// AIBrix's PodAutoscaler, scaling by itself.
fn pod_autoscaler(metric: &str) -> Value {
    json!({
        "apiVersion": "autoscaling.aibrix.ai/v1alpha1", "kind": "PodAutoscaler",
        "metadata": {"name": "chat"},
        "spec": {
            "scalingStrategy": "KPA", "minReplicas": 1, "maxReplicas": 8,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "metricsSources": [{"metricSourceType": "pod", "protocolType": "http", "port": "8000",
                "path": "/metrics", "targetMetric": metric, "targetValue": "1"}],
        },
    })
}

/// kthena's AutoscalingPolicy with a query.
fn autoscaling_policy(query: &str) -> Value {
    json!({
        "apiVersion": "workload.serving.volcano.sh/v1alpha1", "kind": "AutoscalingPolicy",
        "metadata": {"name": "chat"},
        "spec": {
            "metrics": [{"name": "load", "targetValue": "1"}],
            "homogeneousTarget": {"minReplicas": 1, "maxReplicas": 8, "target": {
                "targetRef": {"kind": "ModelServing", "name": "chat"},
                "metricSources": {"load": {"prometheus": {
                    "serverURL": "http://prometheus.monitoring:9090", "query": query}}}}},
        },
    })
}

#[test]
fn autoscalers_of_aibrix_and_kthena_are_judged_by_every_client() -> Result<()> {
    for (client, create) in CLIENTS {
        let kubectl = guarded()?.cluster.namespace("others")?;
        for (rule, path, bad, good) in [
            (
                UTILIZATION,
                "spec.metricsSources[0].targetMetric is \"gpu_busy_time_ratio\"",
                pod_autoscaler("gpu_busy_time_ratio"),
                pod_autoscaler("gpu_cache_usage_perc"),
            ),
            (
                "gpu-memory-signal",
                "spec.homogeneousTarget.target.metricSources.load.prometheus.query is ",
                autoscaling_policy("max(DCGM_FI_DEV_FB_USED)"),
                autoscaling_policy("sum(vllm:num_requests_waiting)"),
            ),
        ] {
            let answer = create(&kubectl, &bad.to_string()).context(client)?;
            denied_by(&answer, rule);
            assert!(answer.stderr.contains(path), "{client}: {}", answer.stderr);
            assert!(
                answer.stderr.contains("write instead:"),
                "{client}: {}",
                answer.stderr
            );
            passes(create(&kubectl, &good.to_string())?, client)?;
            if client.contains("dry-run") {
                continue;
            }
            let spec = json!({"spec": bad["spec"]});
            denied_by(&kubectl.patch(&reference(&bad), &spec)?, rule);
        }
    }
    Ok(())
}
