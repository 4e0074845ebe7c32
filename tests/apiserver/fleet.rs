//! Many objects of many kinds, as a large cluster has them: most are as they should be, and of each it
//! is known by its making what is to be said.

use std::path::Path;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PostParams},
};
use serde_json::{Value, json};

use super::client;

/// Objects in each namespace.
pub(crate) const PER_NAMESPACE: usize = 200;

/// Creations that are under way at the same time.
const AT_ONCE: usize = 32;

/// What each was made to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// Nothing is to be said.
    Clean,
    /// This rule is to deny it.
    Denied(&'static str),
}

/// The object of this number, and what it was made to be.
pub(crate) fn object(number: usize) -> (Value, Made) {
    let name = format!("o-{number:06}");
    let (mut object, made) = match number % 100 {
        0..40 => (web(&name), Made::Clean),
        40..50 => (server(&name, 1, 1), Made::Clean),
        50..52 => (server(&name, 7, 8), Made::Denied("parallelism-fits-pod")),
        52..68 => (hpa(&name, "vllm:num_requests_waiting"), Made::Clean),
        68..72 => (
            hpa(&name, "DCGM_FI_DEV_GPU_UTIL"),
            Made::Denied("gpu-utilization-signal"),
        ),
        72..84 => (job(&name), Made::Clean),
        84..92 => (
            scaled_object(&name, "sum(vllm:num_requests_waiting)"),
            Made::Clean,
        ),
        92..94 => (
            scaled_object(&name, "avg(nvidia_gpu_memory_used_bytes)"),
            Made::Denied("gpu-memory-signal"),
        ),
        94..98 => (leader_worker_set(&name), Made::Clean),
        98 => (node_pool(&name, "WhenEmpty", "2h"), Made::Clean),
        _ => (
            node_pool(&name, "WhenEmptyOrUnderutilized", "5m"),
            Made::Denied("gpu-pool-consolidation"),
        ),
    };
    if object["kind"] != "NodePool" {
        object["metadata"]["namespace"] = json!(namespace(number / PER_NAMESPACE));
    }
    (object, made)
}

/// The namespace of this number.
pub(crate) fn namespace(number: usize) -> String {
    format!("fleet-{number:04}")
}

/// Makes the objects of these numbers, and their namespaces.
pub(crate) async fn populate(kubeconfig: &Path, numbers: std::ops::Range<usize>) -> Result<()> {
    let first = numbers.start.div_ceil(PER_NAMESPACE);
    let namespaces = (first..numbers.end.div_ceil(PER_NAMESPACE)).map(|number| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(number)}})
    });
    create(kubeconfig, namespaces).await?;
    create(kubeconfig, numbers.map(|number| object(number).0)).await
}

/// Makes these objects, many at a time.
pub(crate) async fn create(
    kubeconfig: &Path,
    objects: impl IntoIterator<Item = Value>,
) -> Result<()> {
    let client = client(kubeconfig).await?;
    let mut results = stream::iter(objects)
        .map(|object| one(client.clone(), object))
        .buffer_unordered(AT_ONCE);
    while let Some(result) = results.next().await {
        result?;
    }
    Ok(())
}

async fn one(client: Client, object: Value) -> Result<()> {
    let api_version = object["apiVersion"].as_str().context("apiVersion")?;
    let kind = object["kind"].as_str().context("kind")?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_lowercase()),
    };
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let object = serde_json::from_value(object)?;
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

fn labels(name: &str) -> Value {
    json!({
        "app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "fleet",
        "app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/version": "1.4.2",
    })
}

/// What has nothing to do with GPUs.
fn web(name: &str) -> Value {
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 5});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": labels(name), "annotations": {
            "meta.helm.sh/release-name": "shop", "meta.helm.sh/release-namespace": "shop",
        }},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
            "template": {
                "metadata": {"labels": labels(name), "annotations": {
                    "checksum/config": "4f2b1c0e9d8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c",
                }},
                "spec": {
                    "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [{
                        "name": "web",
                        "image": "registry.example.com/shop/web:1.4.2",
                        "args": ["--listen=:8080", "--log-format=json"],
                        "env": [
                            {"name": "DATABASE_HOST", "value": "postgres.shop.svc"},
                            {"name": "DATABASE_USER", "valueFrom": {"secretKeyRef": {"name": "db", "key": "user"}}},
                            {"name": "DATABASE_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}},
                            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        ],
                        "ports": [{"name": "http", "containerPort": 8080}],
                        "readinessProbe": probe,
                        "livenessProbe": probe,
                        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                        "volumeMounts": [{"name": "config", "mountPath": "/etc/web"}],
                    }],
                    "volumes": [{"name": "config", "configMap": {"name": name}}],
                },
            },
        },
    })
}

/// A model server with all that the rules ask of one.
fn server(name: &str, gpus: u32, ranks: u32) -> Value {
    let health = json!({"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 10});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": labels(name)},
                "spec": {
                    "terminationGracePeriodSeconds": 300,
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                    "containers": [{
                        "name": "vllm",
                        "image": "vllm/vllm-openai:v0.11.0",
                        "args": ["--model=meta-llama/Llama-3.1-8B-Instruct", "--port=8000",
                            format!("--tensor-parallel-size={ranks}")],
                        "ports": [{"containerPort": 8000}],
                        "startupProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 10, "failureThreshold": 180},
                        "readinessProbe": health,
                        "livenessProbe": health,
                        "lifecycle": {"preStop": {"sleep": {"seconds": 20}}},
                        "resources": {"requests": {"cpu": "4", "memory": "32Gi"}, "limits": {"memory": "64Gi", "nvidia.com/gpu": gpus}},
                        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
                    }],
                    "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}],
                },
            },
        },
    })
}

fn hpa(name: &str, metric: &str) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 1, "maxReplicas": 8,
            "metrics": [{"type": "Pods", "pods": {
                "metric": {"name": metric},
                "target": {"type": "AverageValue", "averageValue": "5"},
            }}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
        },
    })
}

fn scaled_object(name: &str, query: &str) -> Value {
    json!({
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "scaleTargetRef": {"name": name},
            "minReplicaCount": 1, "maxReplicaCount": 8, "cooldownPeriod": 600,
            "triggers": [{"type": "prometheus", "metadata": {
                "serverAddress": "http://prometheus.monitoring:9090", "query": query, "threshold": "5",
            }}],
        },
    })
}

fn job(name: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {"backoffLimit": 2, "template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "migrate", "image": "registry.example.com/shop/migrate:1.4.2",
                "command": ["sh", "-c", "set -e; migrate up; migrate verify"],
                "env": [{"name": "DATABASE_HOST", "value": "postgres.shop.svc"}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            }],
        }}},
    })
}

/// A group without GPUs.
fn leader_worker_set(name: &str) -> Value {
    json!({
        "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 2, "workerTemplate": {"spec": {
            "containers": [{
                "name": "index", "image": "registry.example.com/search/index:2.0",
                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
            }],
        }}}},
    })
}

fn node_pool(name: &str, policy: &str, after: &str) -> Value {
    json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "disruption": {"consolidationPolicy": policy, "consolidateAfter": after},
            "limits": {"nvidia.com/gpu": "64"},
            "template": {"spec": {
                "expireAfter": "Never",
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"},
                "requirements": [
                    {"key": "karpenter.k8s.aws/instance-family", "operator": "In", "values": ["p5", "p4d"]},
                    {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["on-demand"]},
                ],
                "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
            }},
        },
    })
}
