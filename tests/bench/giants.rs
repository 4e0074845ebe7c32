//! Objects that are written to cost much, of every kind, with so many of something.

use serde_json::{Value, json};

/// An object with so many of something.
pub(crate) type Giant = fn(usize) -> Value;

/// Bytes of JSON that etcd takes as one object, and so the most that an API server stores.
pub(crate) const LARGEST: usize = 1536 * 1024;

/// The query of a tenant who meant harm.
pub(crate) const REGEX: &str = r#"avg({__name__=~"[a-z]+.*x1",__name__=~"(.*)_1"})"#;

/// With as many as `bytes` have room for, or a little fewer.
pub(crate) fn sized(make: Giant, bytes: usize) -> Value {
    let length = |object: &Value| object.to_string().len();
    let each = (length(&make(1_100)) - length(&make(100))).div_ceil(1_000);
    let mut count = bytes / each.max(1);
    loop {
        let object = make(count);
        let length = length(&object);
        if length <= bytes || count <= 1 {
            return object;
        }
        // A little less than would fit if all were equal: later ones are longer.
        count = (count * (bytes - bytes / 256) / length).min(count - 1);
    }
}

fn list(count: usize, element: impl Fn(usize) -> Value) -> Value {
    Value::Array((0..count).map(element).collect())
}

fn map(count: usize, member: impl Fn(usize) -> (String, Value)) -> Value {
    Value::Object((0..count).map(member).collect())
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "texts and numbers alike, as they come"
)]
fn text(value: impl ToString) -> Value {
    Value::String(value.to_string())
}

fn scaled(triggers: &Value) -> Value {
    json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
        "metadata": {"name": "chat", "namespace": "a"},
        "spec": {"scaleTargetRef": {"name": "chat"}, "maxReplicaCount": 8, "triggers": triggers}})
}

/// A ScaledObject with these queries.
pub(crate) fn queries(count: usize, query: impl Fn(usize) -> String) -> Value {
    scaled(&list(count, |index| {
        json!({"type": "prometheus", "metadata": {"serverAddress": "http://p:9090",
            "query": query(index), "threshold": "5"}})
    }))
}

fn triggers(kind: &str, count: usize, member: impl Fn(usize) -> (String, Value)) -> Value {
    scaled(&json!([{"type": kind, "metadata": map(count, member)}]))
}

fn hpa(count: usize, name: impl Fn(usize) -> String) -> Value {
    json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "chat", "namespace": "a"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "maxReplicas": 8, "metrics": list(count, |index| json!({"type": "Pods", "pods": {
                "metric": {"name": name(index)}}}))}})
}

fn pool(requirements: &Value, change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": "p"}, "spec": {"template": {"spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "d"},
            "requirements": requirements}}}});
    change(&mut object["spec"]);
    object
}

/// A NodePool that lists so many instance types.
pub(crate) fn instance_types(count: usize) -> Value {
    let values = list(count, |index| text(format!("p5.{index}xlarge")));
    pool(
        &json!([{"key": "node.kubernetes.io/instance-type", "operator": "In", "values": values}]),
        |_| {},
    )
}

fn server(change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": "a"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "chat"}}, "template": {
            "metadata": {"labels": {"app": "chat"}},
            "spec": {"containers": [{"name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
                "args": ["--tensor-parallel-size=8"],
                "resources": {"limits": {"nvidia.com/gpu": 8}}}]}}}});
    change(&mut object["spec"]["template"]["spec"]);
    object
}

fn container(change: impl FnOnce(&mut Value)) -> Value {
    server(|pod| change(&mut pod["containers"][0]))
}

fn script(text: &str) -> Value {
    container(|one| one["command"] = json!(["sh", "-c", text]))
}

/// A name for each, and how it is made.
pub(crate) fn giants() -> Vec<(&'static str, Giant)> {
    vec![
        ("equal patterns", |n| queries(n, |_| REGEX.to_owned())),
        ("patterns", |n| {
            queries(n, |index| REGEX.replace("x1", &format!("x{index}")))
        }),
        ("queries", |n| {
            queries(n, |index| {
                format!("sum(rate(a{index}_total[5m])) / count(b{index})")
            })
        }),
        ("device queries", |n| {
            queries(n, |index| format!("avg(DCGM_FI_DEV_GPU_UTIL_{index})"))
        }),
        ("long sums", |n| {
            queries(n.div_ceil(40), |index| {
                format!("a{index}{}", "+a".repeat(180))
            })
        }),
        ("long queries", |n| {
            queries(n.div_ceil(100), |index| {
                format!("my_gpu_{index} ").repeat(900)
            })
        }),
        ("opaque queries", |n| {
            queries(n, |index| format!("{{a=\"{index}\"}}"))
        }),
        ("searches", |n| {
            scaled(&list(n, |index| {
                json!({"type": "mysql", "metadata": {
                "query": format!("select gpu_util, 'gpu util {index}' from a where b in (1, 2, 3)")}})
            }))
        }),
        ("host triggers", |n| {
            scaled(&list(n, |_| json!({"type": "cpu", "metadata": {}})))
        }),
        ("foreign keys", |n| {
            triggers("mine", n, |index| {
                (format!("gpu_util_{index}"), text("a b"))
            })
        }),
        ("logic keys", |n| {
            triggers("sumologic", n, |index| {
                (format!("query.{index}"), text("metric=gpu_util"))
            })
        }),
        ("device metrics", |n| {
            hpa(n, |_| "DCGM_FI_DEV_GPU_UTIL".to_owned())
        }),
        ("metrics", |n| hpa(n, |index| format!("requests_{index}"))),
        ("words", |n| {
            hpa(n, |index| format!("my_gpu_memory_used_by_{index}"))
        }),
        ("metrics in one annotation", |n| {
            let listed = list(
                n,
                |index| json!({"type": "Pods", "pods": {"metricName": format!("gpu_{index}")}}),
            );
            json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "chat", "annotations": {
                    "autoscaling.alpha.kubernetes.io/metrics": listed.to_string()}},
                "spec": {"maxReplicas": 8}})
        }),
        ("metrics and their sources", |n| {
            json!({"apiVersion": "workload.serving.volcano.sh/v1alpha1", "kind": "AutoscalingPolicy",
                "metadata": {"name": "chat"}, "spec": {
                    "metrics": list(n, |index| json!({"name": format!("k{index}")})),
                    "homogeneousTarget": {"target": {"metricSources": map(n, |index| (
                        format!("k{index}"), json!({"pod": {"name": format!("gpu_util_{index}")}})))}}}})
        }),
        ("metric sources", |n| {
            json!({"apiVersion": "autoscaling.aibrix.ai/v1alpha1", "kind": "PodAutoscaler",
                "metadata": {"name": "chat"}, "spec": {"metricsSources": list(n, |index| json!({
                    "metricSourceType": "pod", "targetMetric": format!("gpu_util_{index}")}))}})
        }),
        ("a name of brackets", |n| {
            hpa(1, |_| format!("a>{}", "<".repeat(n)))
        }),
        ("a name of domains", |n| {
            let mut object = hpa(1, |_| "kubernetes.io/".repeat(n));
            object["spec"]["metrics"][0] =
                json!({"type": "Resource", "resource": {"name": "kubernetes.io/".repeat(n)}});
            object
        }),
        ("instance types", instance_types),
        ("instance types and GPUs", |n| {
            let values = |prefix: &str| list(n, |index| text(format!("{prefix}{index}")));
            pool(
                &json!([
                    {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": values("p5.a")},
                    {"key": "karpenter.k8s.aws/instance-gpu-name", "operator": "In", "values": values("h")},
                    {"key": "karpenter.k8s.aws/instance-gpu-count", "operator": "In", "values": values("x")},
                ]),
                |_| {},
            )
        }),
        ("requirements", |n| {
            pool(
                &list(n, |index| {
                    json!({"key": "node.kubernetes.io/instance-type",
                "operator": "NotIn", "values": [format!("p{index}.a")]})
                }),
                |_| {},
            )
        }),
        ("bounds", |n| {
            let values = list(n, |index| text(index + 1));
            let many = json!({"key": "karpenter.k8s.aws/instance-gpu-count", "operator": "In", "values": values});
            let more = json!({"key": "karpenter.k8s.aws/instance-gpu-count", "operator": "Gt", "values": ["0"]});
            let mut rows = vec![many];
            rows.extend(std::iter::repeat_n(more, n));
            pool(&Value::Array(rows), |_| {})
        }),
        ("limits", |n| {
            let values = list(n, |index| text(format!("p5.{index}xlarge")));
            let rows = json!([{"key": "node.kubernetes.io/instance-type", "operator": "In", "values": values}]);
            pool(&rows, |spec| {
                spec["limits"] = map(n, |index| (format!("nvidia.com/mig-{index}"), text("0")));
            })
        }),
        ("taints", |n| {
            let rows = json!([{"key": "karpenter.k8s.aws/instance-family", "operator": "In", "values": ["p5"]}]);
            pool(&rows, |spec| {
                spec["template"]["spec"]["taints"] = list(n, |index| {
                    json!({
                    "key": format!("t{index}"), "effect": "NoSchedule"})
                });
            })
        }),
        ("disruption budgets", |n| {
            let rows = json!([{"key": "karpenter.k8s.aws/instance-family", "operator": "In", "values": ["p5"]}]);
            pool(&rows, |spec| {
                spec["disruption"] =
                    json!({"budgets": list(n, |_| json!({"nodes": "0", "schedule": "0 0 * * *"}))});
            })
        }),
        ("template labels", |n| {
            pool(&json!([]), |spec| {
                spec["template"]["metadata"] =
                    json!({"labels": map(n, |index| (format!("l{index}"), text("a")))});
            })
        }),
        ("containers", |n| {
            server(|pod| {
                pod["containers"] = list(n, |index| {
                    json!({"name": format!("c{index}"),
                    "image": "vllm/vllm-openai", "args": ["-tp=8"],
                    "resources": {"limits": {"nvidia.com/gpu": 1}}})
                });
            })
        }),
        ("init containers", |n| {
            server(|pod| {
                pod["initContainers"] = list(
                    n,
                    |index| json!({"name": format!("c{index}"), "image": "a"}),
                );
            })
        }),
        ("partitions", |n| {
            server(|pod| {
                pod["containers"] = list(n, |index| {
                    json!({"name": "a", "resources": {
                    "limits": {format!("nvidia.com/mig-{index}"): 1}}})
                });
            })
        }),
        ("arguments", |n| {
            container(|one| one["args"] = list(n, |index| text(format!("--x{index}={index}"))))
        }),
        ("torchrun", |n| {
            container(|one| one["command"] = list(n, |_| text("torchrun")))
        }),
        ("mpirun", |n| {
            container(|one| one["command"] = list(n, |_| text("mpirun")))
        }),
        ("python", |n| {
            container(|one| one["command"] = list(n, |index| text(["python3", "-u"][index % 2])))
        }),
        ("a long script", |n| {
            script(&"vllm serve m -tp 8 & ".repeat(n.min(3_000)))
        }),
        ("references that are not closed", |n| {
            script(&"$(".repeat(n))
        }),
        ("scripts", |n| {
            server(|pod| {
                pod["containers"] = list(n.div_ceil(3_000), |index| {
                    json!({"name": format!("c{index}"),
                    "command": ["sh", "-c", "vllm serve m -tp 8 & ".repeat(3_000)],
                    "resources": {"limits": {"nvidia.com/gpu": 1}}})
                });
            })
        }),
        ("a variable in a script", |n| {
            container(|one| {
                one["env"] = json!([{"name": "A", "value": "a".repeat(200_000)}]);
                one["command"] = json!(["sh", "-c", "echo \"$A\";".repeat(n.min(6_000))]);
            })
        }),
        ("a variable again and again", |n| {
            container(|one| {
                one["env"] = json!([{"name": "A", "value": "a".repeat(200_000)}]);
                one["args"] = list(n, |_| text("$(A)"));
            })
        }),
        ("variables of variables", |n| {
            container(|one| {
                one["env"] = list(n, |index| match index {
                    0 => json!({"name": "A0", "value": "a".repeat(200_000)}),
                    _ => {
                        json!({"name": format!("A{index}"), "value": format!("$(A{})", index - 1)})
                    }
                });
            })
        }),
        ("mounts and paths", |n| {
            server(|pod| {
                pod["volumes"] = list(
                    n,
                    |index| json!({"name": format!("v{index}"), "emptyDir": {}}),
                );
                pod["containers"][0]["volumeMounts"] = list(n, |index| {
                    json!({
                    "name": format!("v{index}"), "mountPath": format!("/m{index}")})
                });
                pod["containers"][0]["command"] = json!(["sh", "-c", "/a;".repeat(n.min(20_000))]);
            })
        }),
        ("tolerations", |n| {
            server(|pod| {
                pod["tolerations"] = list(
                    n,
                    |index| json!({"key": format!("k{index}"), "operator": "Exists"}),
                );
            })
        }),
        ("exemptions", |n| {
            let mut object = server(|_| {});
            object["metadata"]["annotations"] = map(n, |index| {
                (format!("exempt.gangplank.dev/r{index}"), text("until=soon"))
            });
            object
        }),
        ("owners", |n| {
            let mut object = server(|_| {});
            object["metadata"]["ownerReferences"] = list(n, |index| {
                json!({
                "apiVersion": "a/v1", "kind": "A", "name": format!("o{index}"), "uid": "u"})
            });
            object
        }),
        ("worker groups", |n| {
            json!({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "r"}, "spec": {
            "headGroupSpec": {"template": {"spec": {"containers": []}}},
            "workerGroupSpecs": list(n, |index| {
                let one = |name: String| json!({"name": name, "image": "vllm/vllm-openai",
                    "resources": {"limits": {"nvidia.com/gpu": 1}}});
                json!({"template": {"spec": {"containers": [
                    one(format!("a{index}")), one(format!("b{index}"))]}}})
            })}})
        }),
        ("cliques", |n| {
            json!({"apiVersion": "grove.io/v1alpha1", "kind": "PodCliqueSet", "metadata": {"name": "g"},
                "spec": {"template": {"cliques": list(n, |index| json!({"name": format!("c{index}"),
                    "spec": {"replicas": 8, "podSpec": {"containers": [{"name": "a",
                        "image": "vllm/vllm-openai", "args": ["-tp=8"],
                        "resources": {"limits": {"nvidia.com/gpu": 1}}}]}}}))}}})
        }),
        ("services", |n| {
            json!({"apiVersion": "nvidia.com/v1alpha1", "kind": "DynamoGraphDeployment", "metadata": {"name": "d"},
                "spec": {"services": map(n, |index| (format!("s{index}"), json!({"componentType": "worker",
                    "multinode": {"nodeCount": 2}, "resources": {"limits": {"gpu": "8"}},
                    "extraPodSpec": {"mainContainer": {"image": "x/vllm-runtime", "args": ["-tp", "16"]}}})))}})
        }),
    ]
}
