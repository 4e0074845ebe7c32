//! The services of KServe, Grove and Dynamo, Argo's Rollouts and ReplicaSets that nobody owns, on a
//! real API server: what is denied, what passes as it was written, and what is not even asked about.

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    enforce::{CLIENTS, denied_by, guarded, hpa, reference, reviews_of},
    harness::{Answer, Kubectl, SOON, eventually},
};

fn gpus(number: u32) -> Value {
    json!({"limits": {"nvidia.com/gpu": number}})
}

/// A service whose head and workers KServe makes two Deployments of.
fn in_two_deployments(name: &str) -> Value {
    json!({
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {
            "name": name,
            "labels": {"kai.scheduler/queue": "llm"},
            "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
        },
        "spec": {"predictor": {
            "model": {
                "modelFormat": {"name": "huggingface"}, "storageUri": "pvc://models/llm",
                "resources": gpus(8),
            },
            "workerSpec": {
                "tensorParallelSize": 8, "pipelineParallelSize": 2,
                "containers": [{"name": "worker-container", "resources": gpus(8)}],
            },
        }},
    })
}

/// A service that scikit-learn runs on CPUs.
fn on_cpus(name: &str) -> Value {
    json!({
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": {
            "minReplicas": 1,
            "model": {
                "modelFormat": {"name": "sklearn"}, "storageUri": "gs://models/iris",
                "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
            },
        }},
    })
}

/// Two sets of a leader and seven workers.
fn cliques(name: &str, scheduler: &str, least: u32) -> Value {
    let clique = |role: &str, replicas: u32, least: u32| {
        json!({
            "name": role, "labels": {"kai.scheduler/queue": "llm"},
            "spec": {
                "roleName": role, "replicas": replicas, "minAvailable": least,
                "podSpec": {
                    "schedulerName": scheduler,
                    "containers": [{
                        "name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
                        "args": ["--model=m", "-tp=8", "-pp=8", "--nnodes=8"],
                        "resources": gpus(8),
                    }],
                },
            },
        })
    };
    json!({
        "apiVersion": "grove.io/v1alpha1", "kind": "PodCliqueSet",
        "metadata": {"name": name},
        "spec": {"replicas": 1, "template": {
            "cliques": [clique("leader", 1, 1), clique("workers", 7, least)],
            "podCliqueScalingGroups": [
                {"name": "decode", "replicas": 2, "cliqueNames": ["leader", "workers"]},
            ],
        }},
    })
}

/// A graph whose decoder has this tensor parallelism on two nodes of eight GPUs.
fn graph(name: &str, tensor: &str) -> Value {
    json!({
        "apiVersion": "nvidia.com/v1alpha1", "kind": "DynamoGraphDeployment",
        "metadata": {"name": name},
        "spec": {"services": {"Decode": {
            "componentType": "worker", "replicas": 1,
            "multinode": {"nodeCount": 2},
            "resources": {"limits": {"gpu": "8"}},
            "extraPodSpec": {"mainContainer": {
                "image": "nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.0.0",
                "command": ["python3", "-m", "dynamo.vllm"],
                "args": ["--model", "m", "--tensor-parallel-size", tensor],
            }},
        }}},
    })
}

fn told(answer: &Answer, parts: &[&str]) {
    let text: Vec<&str> = answer.stderr.split_whitespace().collect();
    let text = text.join(" ");
    for part in parts {
        assert!(text.contains(part), "{part}: {}", answer.stderr);
    }
}

/// No client gets the object in.
fn is_denied(kubectl: &Kubectl, object: &Value, rule: &str, parts: &[&str]) -> Result<()> {
    for (_, create) in CLIENTS {
        let answer = create(kubectl, &object.to_string())?;
        denied_by(&answer, rule);
        told(&answer, parts);
    }
    assert!(kubectl.get(&reference(object)).is_err());
    Ok(())
}

/// The object is taken without a word of this rule, and as it was written.
fn passes(kubectl: &Kubectl, object: &Value, rule: &str) -> Result<()> {
    let answer = kubectl.create(&object.to_string())?;
    assert!(!answer.stderr.contains(rule), "{}", answer.stderr);
    answer.success()?;
    assert_eq!(
        kubectl.get(&reference(object))?["spec"],
        object["spec"],
        "nothing is filled"
    );
    Ok(())
}

/// The object as a child of another one's controller.
fn owned(mut object: Value, api: &str, kind: &str, name: &str, owner: &Value) -> Value {
    object["metadata"]["name"] = json!(name);
    object["metadata"]["ownerReferences"] = json!([{
        "apiVersion": api, "kind": kind, "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": true,
    }]);
    object
}

#[test]
fn inference_services_of_one_and_of_several_pods() -> Result<()> {
    let guarded = guarded()?;
    let kubectl = guarded.cluster.namespace("inference-services")?;
    let asked = || reviews_of(&guarded.gangplank, "InferenceService");

    // What asks for no accelerator stays within the API server.
    let before = asked()?;
    kubectl.create(&on_cpus("iris").to_string())?.success()?;
    let more = json!({"spec": {"predictor": {"minReplicas": 2}}});
    kubectl.patch("isvc/iris", &more)?.success()?;
    assert_eq!(asked()?, before);

    is_denied(
        &kubectl,
        &in_two_deployments("llm"),
        "gang-scheduling",
        &[
            "the two Deployments, head and workers",
            "pod-group-name: llm",
            "minMember: 2",
        ],
    )?;
    assert!(asked()? > before);

    // With the group that the denial names it is a gang.
    let mut joined = in_two_deployments("llm");
    let predictor = &mut joined["spec"]["predictor"];
    predictor["annotations"] =
        json!({"kai.scheduler/skip-podgrouper": "true", "pod-group-name": "llm"});
    predictor["schedulerName"] = json!("kai-scheduler");
    predictor["workerSpec"]["schedulerName"] = json!("kai-scheduler");
    let group = json!({
        "apiVersion": "scheduling.run.ai/v2alpha2", "kind": "PodGroup",
        "metadata": {"name": "llm"}, "spec": {"minMember": 2, "queue": "llm"},
    });
    kubectl.create(&group.to_string())?.success()?;
    let clean = || {
        let dry = ["create", "--dry-run=server", "--filename=-"];
        let answer = kubectl.run(&dry, Some(&joined.to_string())).ok()?;
        (answer.accepted() && !answer.stderr.contains("gang-scheduling")).then_some(())
    };
    eventually("the PodGroup is known", SOON, clean)?;
    passes(&kubectl, &joined, "gang-scheduling")?;
    let alone = json!({"spec": {"predictor": {"annotations": {"pod-group-name": null}}}});
    denied_by(&kubectl.patch("isvc/llm", &alone)?, "gang-scheduling");

    // What a runtime makes of it is not known: it is said, and nobody is stopped.
    let mut runtime = in_two_deployments("runtime");
    let predictor = &mut runtime["spec"]["predictor"];
    predictor["model"]["resources"] = json!({});
    predictor["workerSpec"] = json!({"tensorParallelSize": 8, "pipelineParallelSize": 2});
    let answer = kubectl.create(&runtime.to_string())?;
    told(&answer, &["gang-scheduling"]);
    answer.success()?;
    Ok(())
}

#[test]
fn children_of_kserve_are_warned_of_and_whoever_claims_to_be_one_is_denied() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("kserve-children")?;
    kubectl.create(&on_cpus("chat").to_string())?.success()?;
    let service = kubectl.get("isvc/chat")?;
    let of_service = |object: Value, name: &str| {
        let api = "serving.kserve.io/v1beta1";
        owned(object, api, "InferenceService", name, &service)
    };
    // As KServe's controller writes them: neither filled nor refused, and still judged.
    let server = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "chat"}},
            "template": {"metadata": {"labels": {"app": "chat"}}, "spec": {"containers": [{
                "name": "kserve-container", "image": "vllm/vllm-openai:v0.11.0",
                "args": ["--model=m", "--tensor-parallel-size=8"], "resources": gpus(8),
            }]}},
        },
    });
    let child = of_service(server.clone(), "chat-predictor");
    let answer = kubectl.create(&child.to_string())?;
    told(&answer, &["gang-scheduling"]);
    answer.success()?;
    let held = kubectl.get("deployment/chat-predictor")?;
    assert_eq!(
        held["spec"]["template"]["spec"]["schedulerName"],
        "default-scheduler"
    );
    // A rule on workloads says nothing of what its HPA scales on.
    let bad = || hpa("any", "DCGM_FI_DEV_GPU_UTIL");
    let answer = kubectl.create(&of_service(bad(), "chat-predictor").to_string())?;
    told(&answer, &["gpu-utilization-signal"]);
    answer.success()?;
    // Under names that KServe does not give, and so does not write over, the reference is nothing.
    denied_by(
        &kubectl.create(&of_service(bad(), "chat-mine").to_string())?,
        "gpu-utilization-signal",
    );
    let forged = of_service(server, "chat-mine");
    let answer = kubectl.create(&forged.to_string())?;
    denied_by(&answer, "gang-scheduling");
    Ok(())
}

#[test]
fn llm_inference_services_of_both_versions() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("llm-inference-services")?;
    for (version, name) in [("v1alpha1", "older"), ("v1alpha2", "newer")] {
        let pod = json!({"containers": [{"name": "main", "resources": gpus(8)}]});
        let mut object = json!({
            "apiVersion": format!("serving.kserve.io/{version}"), "kind": "LLMInferenceService",
            "metadata": {"name": name},
            "spec": {
                "model": {"uri": "hf://org/model"}, "labels": {"kai.scheduler/queue": "llm"},
                "parallelism": {"tensor": 1, "data": 16, "dataLocal": 8},
                "template": pod, "worker": pod,
            },
        });
        let elsewhere = ["spec.template.schedulerName", "spans 2 pods"];
        is_denied(&kubectl, &object, "gang-scheduling", &elsewhere)?;
        for part in ["template", "worker"] {
            object["spec"][part]["schedulerName"] = json!("kai-scheduler");
        }
        passes(&kubectl, &object, "gang-scheduling")?;
    }
    Ok(())
}

#[test]
fn pod_clique_sets_whose_gangs_are_whole() -> Result<()> {
    let guarded = guarded()?;
    let kubectl = guarded.cluster.namespace("cliques")?;
    is_denied(
        &kubectl,
        &cliques("llm", "kai-scheduler", 6),
        "gang-scheduling",
        &["6 of the 7 pods", "minAvailable: 7"],
    )?;
    is_denied(
        &kubectl,
        &cliques("llm", "default-scheduler", 7),
        "gang-scheduling",
        &["spec.template.cliques[0].spec.podSpec.schedulerName"],
    )?;
    let good = cliques("llm", "kai-scheduler", 7);
    let answer = kubectl.create(&good.to_string())?;
    assert!(
        !answer.stderr.contains("gang-scheduling"),
        "{}",
        answer.stderr
    );
    answer.success()?;
    // The minimum cannot be lowered later.
    let lowered = json!({"spec": cliques("llm", "kai-scheduler", 6)["spec"]});
    denied_by(&kubectl.patch("pcs/llm", &lowered)?, "gang-scheduling");
    kubectl
        .run(&["scale", "pcs/llm", "--replicas=2"], None)?
        .success()?;

    let before = reviews_of(&guarded.gangplank, "PodCliqueSet")?;
    let mut web = cliques("web", "default-scheduler", 1);
    for clique in web["spec"]["template"]["cliques"].as_array_mut().unwrap() {
        clique["spec"]["podSpec"]["containers"][0]["resources"] = json!({"limits": {"cpu": 1}});
    }
    let kubectl = guarded.cluster.namespace("cliques-on-cpus")?;
    kubectl.create(&web.to_string())?.success()?;
    let after = reviews_of(&guarded.gangplank, "PodCliqueSet")?;
    assert_eq!(after, before, "it stays within the API server");
    Ok(())
}

#[test]
fn graphs_of_dynamo_and_what_its_operator_makes_of_them() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("graphs")?;
    is_denied(
        &kubectl,
        &graph("llm", "32"),
        "parallelism-fits-pod",
        &["spec.services.Decode.resources.limits.gpu", "nodeCount: 4"],
    )?;
    passes(&kubectl, &graph("llm", "16"), "parallelism-fits-pod")?;
    let parent = kubectl.get("dgd/llm")?;
    let child = |name: &str| {
        let set = cliques(name, "default-scheduler", 6);
        owned(
            set,
            "nvidia.com/v1alpha1",
            "DynamoGraphDeployment",
            name,
            &parent,
        )
    };
    let mut made = child("llm");
    made["metadata"]["labels"] = json!({"nvidia.com/dynamo-graph-deployment-name": "llm"});
    let answer = kubectl.create(&made.to_string())?;
    told(&answer, &["gang-scheduling"]);
    answer.success()?;
    denied_by(
        &kubectl.create(&child("mine").to_string())?,
        "gang-scheduling",
    );
    Ok(())
}

#[test]
fn a_replica_set_that_nobody_owns_is_judged_and_one_of_a_deployment_is_not() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("replica-sets")?;
    let set = |name: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name},
            "spec": {
                "replicas": 1, "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{
                    "name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
                    "args": ["--model=m", "--tensor-parallel-size=8"], "resources": gpus(7),
                }]}},
            },
        })
    };
    is_denied(
        &kubectl,
        &set("llm"),
        "parallelism-fits-pod",
        &["nvidia.com/gpu: 8"],
    )?;
    let owner = json!({"metadata": {"name": "llm", "uid": "c0ffee"}});
    let child = owned(set("llm"), "apps/v1", "Deployment", "llm-5d8f", &owner);
    kubectl.create(&child.to_string())?.success()?;
    Ok(())
}
