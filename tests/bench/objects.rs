//! Objects of every kind and size that Gangplank is asked about, and the requests that an API server
//! makes of them. Benchmarks measure on them, and `tests/allocations.rs` counts on them.

use serde_json::{Value, json};

/// What is sized to be 10 KB is: within 2 %.
pub(crate) const LARGE: usize = 10 * 1024;

/// What is sized to be 1 MiB is.
pub(crate) const HUGE: usize = 1024 * 1024;

/// The names of all objects, in the order in which they are told.
pub(crate) const NAMES: [&str; 14] = [
    "hpa",
    "hpa-denied",
    "scaled-object",
    "scaled-object-200-triggers",
    "node-pool",
    "node-pool-denied",
    "web-deployment",
    "gang-deployment",
    "gang-deployment-silent",
    "gang-deployment-denied",
    "leader-worker-set",
    "deployment-10k",
    "deployment-10k-denied",
    "deployment-1m",
];

/// The object of this name.
///
/// # Panics
/// Where there is none.
#[allow(clippy::panic, reason = "the names are those above")]
pub(crate) fn object(name: &str) -> Value {
    match name {
        "hpa" => hpa("vllm:num_requests_waiting"),
        "hpa-denied" => hpa("DCGM_FI_DEV_GPU_UTIL"),
        "scaled-object" => scaled_object(1),
        "scaled-object-200-triggers" => scaled_object(200),
        "node-pool" => node_pool("WhenEmpty"),
        "node-pool-denied" => node_pool("WhenEmptyOrUnderutilized"),
        "web-deployment" => web(),
        "gang-deployment" => server(8, 8, Placed::AsGang),
        "gang-deployment-silent" => server(8, 8, Placed::InQueue),
        "gang-deployment-denied" => server(7, 8, Placed::Anywhere),
        "leader-worker-set" => leader_worker_set(),
        "deployment-10k" => sized(server(8, 8, Placed::AsGang), LARGE),
        "deployment-10k-denied" => sized(server(7, 8, Placed::AsGang), LARGE),
        "deployment-1m" => sized(server(8, 8, Placed::AsGang), HUGE),
        other => panic!("there is no object {other}"),
    }
}

/// The `AdmissionReview` of its creation, as an API server 1.33 writes one.
pub(crate) fn review_of(object: &Value) -> Value {
    let text = |pointer: &str| {
        let value = object.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_default()
    };
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let gvk = json!({"group": group, "version": version, "kind": kind});
    let resource = format!("{}s", kind.to_lowercase());
    let gvr = json!({"group": group, "version": version, "resource": resource});
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "0df28fbd-5f5f-11e8-bc74-36e6bb280816",
            "kind": gvk,
            "resource": gvr,
            "requestKind": gvk,
            "requestResource": gvr,
            "name": text("/metadata/name"),
            "namespace": text("/metadata/namespace"),
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:argocd:argocd-application-controller",
                "uid": "8f1b1d9c-4f5e-4a53-9a56-0c3a6c0b7a11",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:argocd", "system:authenticated"],
                "extra": {"authentication.kubernetes.io/pod-name": ["argocd-application-controller-0"]},
            },
            "object": object,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "argocd-controller"},
        },
    })
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name, "namespace": "inference",
        "uid": "5d0c9cc1-3c46-4a3f-8c4c-6c2f3f0c8f7e",
        "creationTimestamp": "2026-11-23T09:00:00Z", "generation": 1,
        "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "chat"},
        "managedFields": [{
            "manager": "argocd-controller", "operation": "Update", "apiVersion": "v1",
            "time": "2026-11-23T09:00:00Z", "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {".": {}, "f:app.kubernetes.io/name": {}, "f:app.kubernetes.io/part-of": {}}},
                "f:spec": {"f:replicas": {}},
            },
        }],
    })
}

fn hpa(metric: &str) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": metadata("chat"),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "minReplicas": 1, "maxReplicas": 8,
            "metrics": [{"type": "Pods", "pods": {
                "metric": {"name": metric},
                "target": {"type": "AverageValue", "averageValue": "5"},
            }}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
        },
    })
}

fn scaled_object(triggers: usize) -> Value {
    let trigger = |number: usize| {
        let query = format!(
            "sum(rate(vllm:num_requests_waiting{{namespace=\"inference\",model=\"m{number}\"}}[2m]))"
        );
        json!({"type": "prometheus", "metadata": {
            "serverAddress": "http://prometheus.monitoring:9090", "query": query, "threshold": "5",
        }})
    };
    json!({
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
        "metadata": metadata("chat"),
        "spec": {
            "scaleTargetRef": {"name": "chat"},
            "minReplicaCount": 1, "maxReplicaCount": 8, "cooldownPeriod": 600,
            "triggers": (0..triggers).map(trigger).collect::<Vec<_>>(),
        },
    })
}

fn node_pool(policy: &str) -> Value {
    let mut object = json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": metadata("gpu"),
        "spec": {
            "disruption": {"consolidationPolicy": policy, "consolidateAfter": "2h", "budgets": [{"nodes": "10%"}]},
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
    });
    if let Some(members) = object["metadata"].as_object_mut() {
        members.remove("namespace");
    }
    object
}

/// What has nothing to do with GPUs.
fn web() -> Value {
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 5});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": metadata("web"),
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app.kubernetes.io/name": "web"}},
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/name": "web"}},
                "spec": {"containers": [{
                    "name": "web", "image": "registry.example.com/shop/web:1.4.2",
                    "args": ["--listen=:8080", "--log-format=json"],
                    "ports": [{"name": "http", "containerPort": 8080}],
                    "readinessProbe": probe, "livenessProbe": probe,
                    "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "256Mi"}},
                }]},
            },
        },
    })
}

/// What a model server says of its placement.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// All that KAI reads.
    AsGang,
    /// Only its queue: the rest is filled.
    InQueue,
    /// Nothing.
    Anywhere,
}

/// A model server with all that the rules ask of one, but for what `placed` says.
fn server(gpus: u32, ranks: u32, placed: Placed) -> Value {
    let health = json!({"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 10});
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": metadata("chat"),
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app.kubernetes.io/name": "chat"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/name": "chat"}},
                "spec": {
                    "terminationGracePeriodSeconds": 300,
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                    "containers": [{
                        "name": "vllm",
                        "image": "vllm/vllm-openai:v0.11.0",
                        "args": ["--model=meta-llama/Llama-3.1-405B-Instruct-FP8", "--port=8000",
                            format!("--tensor-parallel-size={ranks}")],
                        "ports": [{"containerPort": 8000}],
                        "startupProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 10, "failureThreshold": 180},
                        "readinessProbe": health,
                        "livenessProbe": health,
                        "lifecycle": {"preStop": {"sleep": {"seconds": 20}}},
                        "resources": {"requests": {"cpu": "4", "memory": "32Gi"}, "limits": {"memory": "64Gi", "nvidia.com/gpu": gpus.to_string()}},
                        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
                    }],
                    "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}],
                },
            },
        },
    });
    if placed != Placed::Anywhere {
        object["metadata"]["labels"]["kai.scheduler/queue"] = json!("inference");
    }
    if placed == Placed::AsGang {
        object["metadata"]["annotations"] = json!({"kai.scheduler/batch-min-member": "1"});
        object["spec"]["template"]["spec"]["schedulerName"] = json!("kai-scheduler");
    }
    object
}

fn leader_worker_set() -> Value {
    let container = json!({
        "name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
        "args": ["--model=deepseek-ai/DeepSeek-R1", "--tensor-parallel-size=8", "--pipeline-parallel-size=2"],
        "resources": {"limits": {"nvidia.com/gpu": "8"}},
    });
    let mut spec = server(8, 8, Placed::AsGang)["spec"]["template"]["spec"].take();
    spec["containers"] = json!([container]);
    let mut metadata = metadata("chat");
    metadata["labels"]["kai.scheduler/queue"] = json!("inference");
    json!({
        "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet",
        "metadata": metadata,
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 2, "workerTemplate": {"spec": spec}}},
    })
}

/// A Deployment that grows to a size, in bytes of JSON: half of it by variables of its server, half by
/// containers beside it, up to 32.
fn sized(mut object: Value, size: usize) -> Value {
    let container = |number: usize| {
        json!({
            "name": format!("exporter-{number}"),
            "image": "registry.example.com/platform/metrics-exporter:2.7.1",
            "args": ["--listen=:9400", "--source=http://127.0.0.1:8000/metrics", "--interval=15s"],
            "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "ports": [{"name": "metrics", "containerPort": 9400}],
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true},
        })
    };
    let variable = |number: usize| json!({"name": format!("SETTING_{number:05}"), "value": "0123456789abcdef0123456789abcdef"});
    let length = |value: &Value| value.to_string().len() + 1;
    let mut missing = size.saturating_sub(object.to_string().len() + "\"env\":[],".len());
    let half = missing / 2;
    let containers = &mut object["spec"]["template"]["spec"]["containers"];
    let mut number = 0;
    while number < 32 && missing > half {
        let next = container(number);
        missing = missing.saturating_sub(length(&next));
        if let Some(list) = containers.as_array_mut() {
            list.push(next);
        }
        number += 1;
    }
    let variables = (0..missing / length(&variable(0))).map(variable);
    containers[0]["env"] = variables.collect();
    object
}
