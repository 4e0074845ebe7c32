//! Workloads that serve a model over several GPUs, of every kind, on a real API server: what is
//! denied, what is filled, and that doing the same again changes nothing.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    enforce::{CLIENTS, at, denied_by, guarded, reference},
    harness::{Kubectl, SOON, eventually},
};

const MINIMUM: &str = "/metadata/annotations/kai.scheduler~1batch-min-member";
const SCHEDULER: &str = "/spec/template/spec/schedulerName";
const LEADER: &str = "/spec/leaderWorkerTemplate/leaderTemplate/spec/schedulerName";
const WORKER: &str = "/spec/leaderWorkerTemplate/workerTemplate/spec/schedulerName";

/// A pod template whose server has these arguments and eight GPUs.
fn template(args: &[&str]) -> Value {
    let mut all = vec!["--model=meta-llama/Llama-3.1-405B-Instruct"];
    all.extend(args);
    json!({
        "metadata": {"labels": {"app": "llm"}},
        "spec": {
            "terminationGracePeriodSeconds": 300,
            "containers": [{
                "name": "vllm",
                "image": "vllm/vllm-openai:v0.11.0",
                "args": all,
                "resources": {"limits": {"nvidia.com/gpu": 8}},
            }],
        },
    })
}

/// Eight ranks in one pod.
const ONE_POD: &[&str] = &["--tensor-parallel-size=8"];

/// Sixteen ranks in two.
const TWO_PODS: &[&str] = &["-tp=8", "-pp=2", "--nnodes=2", "--master-addr=llm-0.llm"];

/// A workload in the queue `llm`.
fn workload(api: &str, kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": api, "kind": kind,
        "metadata": {"name": name, "labels": {"kai.scheduler/queue": "llm"}},
        "spec": spec,
    })
}

fn deployment(name: &str, replicas: u64, args: &[&str]) -> Value {
    let selector = json!({"matchLabels": {"app": "llm"}});
    let spec = json!({"replicas": replicas, "selector": selector, "template": template(args)});
    workload("apps/v1", "Deployment", name, &spec)
}

fn stateful_set(name: &str, replicas: u64, args: &[&str]) -> Value {
    let mut object = deployment(name, replicas, args);
    object["kind"] = json!("StatefulSet");
    object["spec"]["serviceName"] = json!("llm");
    object["spec"]["podManagementPolicy"] = json!("Parallel");
    object
}

fn job(name: &str, pods: u64, args: &[&str]) -> Value {
    let mut template = template(args);
    template["spec"]["restartPolicy"] = json!("Never");
    let spec = json!({
        "parallelism": pods, "completions": pods, "completionMode": "Indexed",
        "template": template,
    });
    workload("batch/v1", "Job", name, &spec)
}

fn leader_worker_set(name: &str, groups: u64) -> Value {
    let args = ["-tp=8", "-pp=2", "--distributed-executor-backend=ray"];
    let spec = json!({
        "replicas": groups,
        "leaderWorkerTemplate": {
            "size": 2, "leaderTemplate": template(&args), "workerTemplate": template(&args),
        },
    });
    workload(
        "leaderworkerset.x-k8s.io/v1",
        "LeaderWorkerSet",
        name,
        &spec,
    )
}

fn without_queue(mut object: Value) -> Value {
    object["metadata"]["labels"] = json!({});
    object
}

fn named(mut object: Value, client: &str) -> Value {
    object["metadata"]["name"] = json!(client.replace([' ', '=', '-'], ""));
    object
}

/// An object that is filled, and the values that it is filled with.
type Filled = (Value, Vec<(&'static str, Value)>);

/// Creates the object by every client: it is filled, and stays so when the same is written again.
fn is_filled_and_stays_so(kubectl: &Kubectl, (object, fills): &Filled) -> Result<()> {
    for (client, create) in CLIENTS.into_iter().take(3) {
        let object = named(object.clone(), client);
        let (manifest, name) = (object.to_string(), reference(&object));
        let context = || format!("{client} {name}");
        let says = create(kubectl, &manifest)?;
        for (pointer, value) in fills {
            let filled = format!("gang-scheduling: filled {}", dotted(pointer));
            let told = says.warnings().iter().any(|line| line.contains(&filled));
            assert!(told, "{}: {value}: {}", context(), says.stderr);
        }
        says.success().with_context(context)?;
        let first = kubectl.get(&name)?;
        for (pointer, value) in fills {
            assert_eq!(at(&first, pointer), value, "{}", context());
        }
        if client != "create" {
            create(kubectl, &manifest)?
                .success()
                .with_context(context)?;
            let again = kubectl.get(&name)?;
            assert_eq!(
                again["metadata"]["resourceVersion"],
                first["metadata"]["resourceVersion"],
                "{}",
                context()
            );
        }
        // The API server lets nobody put a Job's file again: its selector would be gone.
        if object["kind"] != "Job" {
            kubectl
                .replace(&manifest)?
                .success()
                .with_context(context)?;
            let replaced = kubectl.get(&name)?;
            assert_eq!(replaced["spec"], first["spec"], "{}", context());
            for (pointer, value) in fills {
                assert_eq!(at(&replaced, pointer), value, "{}", context());
            }
        }
    }
    Ok(())
}

/// A pointer as messages write the field.
fn dotted(pointer: &str) -> String {
    pointer
        .split('/')
        .skip(1)
        .map(|step| step.replace("~1", "/"))
        .fold(String::new(), |path, step| match path.as_str() {
            "" => step,
            _ if step.contains('/') => format!("{path}[{step}]"),
            _ => format!("{path}.{step}"),
        })
}

/// No client gets the object in.
fn is_denied(kubectl: &Kubectl, object: &Value, rule: &str, says: &[&str]) -> Result<String> {
    let mut text = String::new();
    for (client, create) in CLIENTS {
        let answer = create(kubectl, &object.to_string())?;
        denied_by(&answer, rule);
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in says {
            assert!(
                one_line(&answer.stderr).contains(part),
                "{client}: {part}: {}",
                answer.stderr
            );
        }
        text = answer.stderr;
    }
    assert!(kubectl.get(&reference(object)).is_err());
    Ok(text)
}

/// The YAML that the last cause of a denial says to write.
fn instead(denial: &str) -> String {
    let (_, rest) = denial.rsplit_once("write instead:\n").unwrap();
    let lines = rest.lines().map_while(|line| line.strip_prefix("    "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn deployments_of_one_pod_and_of_a_gang() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("deployments")?;
    let kai = |minimum: &str| {
        vec![
            (SCHEDULER, json!("kai-scheduler")),
            (MINIMUM, json!(minimum)),
        ]
    };
    let recreate = ("/spec/strategy", json!({"type": "Recreate"}));
    let mut gang = kai("2");
    gang.push(recreate);
    is_filled_and_stays_so(&kubectl, &(deployment("", 3, ONE_POD), kai("1")))?;
    let kubectl = guarded()?.cluster.namespace("gangs")?;
    is_filled_and_stays_so(&kubectl, &(deployment("", 2, TWO_PODS), gang.clone()))?;
    // Asleep: whoever wakes it writes the scale subresource.
    let kubectl = guarded()?.cluster.namespace("asleep")?;
    is_filled_and_stays_so(&kubectl, &(deployment("", 0, ONE_POD), kai("1")))?;
    let kubectl = guarded()?.cluster.namespace("gangs-asleep")?;
    is_filled_and_stays_so(&kubectl, &(deployment("", 0, TWO_PODS), gang))?;

    is_denied(
        &kubectl,
        &without_queue(deployment("bad", 2, TWO_PODS)),
        "gang-scheduling",
        &[
            "kai.scheduler/queue: <leaf queue>",
            "batch-min-member: \"2\"",
        ],
    )?;
    let denial = is_denied(
        &kubectl,
        &deployment("bad", 4, TWO_PODS),
        "gang-scheduling",
        &["spec.replicas is 4", "kind: LeaderWorkerSet"],
    )?;
    // What it says to write instead is taken as it is.
    kubectl.apply(&instead(&denial))?.success()?;
    let set = kubectl.get("leaderworkerset/bad")?;
    assert_eq!(
        (&set["spec"]["replicas"], at(&set, LEADER)),
        (&json!(2), &json!("kai-scheduler"))
    );
    is_denied(
        &kubectl,
        &deployment("bad", 2, &["-tp=16"]),
        "parallelism-fits-pod",
        &["nvidia.com/gpu] is \"8\"", "nvidia.com/gpu: 16"],
    )?;
    Ok(())
}

/// Applies what a denial says to write: it is accepted as it stands, and no gang rule has anything to
/// add. The object that it became.
fn what_it_says_to_write_is_clean(kubectl: &Kubectl, denial: &str) -> Result<Value> {
    let set = instead(denial);
    let answer = kubectl.apply(&set)?;
    let gang: Vec<String> = answer
        .warnings()
        .into_iter()
        .map(str::to_owned)
        .filter(|line| line.contains("gang-"))
        .collect();
    assert!(gang.is_empty(), "{gang:?}");
    answer.success().context(set)?;
    kubectl.get("leaderworkerset/bad")
}

#[test]
fn the_leader_worker_set_that_a_denial_says_to_write_is_complete() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("skeletons")?;
    let mut rich = deployment("bad", 4, TWO_PODS);
    let pod = &mut rich["spec"]["template"]["spec"];
    pod["serviceAccountName"] = json!("llm");
    pod["tolerations"] = json!([{"key": "sku", "operator": "Exists"}]);
    pod["volumes"] = json!([{"name": "shm", "emptyDir": {"medium": "Memory"}}]);
    pod["initContainers"] = json!([{"name": "fetch", "image": "example/fetch:1"}]);
    let container = &mut pod["containers"][0];
    container["volumeMounts"] = json!([{"name": "shm", "mountPath": "/dev/shm"}]);
    container["readinessProbe"] = json!({"httpGet": {"path": "/health", "port": 8000}});
    container["env"] = json!([{"name": "HF_HOME", "value": "/models"}]);
    let denial = is_denied(
        &kubectl,
        &rich,
        "gang-scheduling",
        &["spec.replicas is 4", "kind: LeaderWorkerSet"],
    )?;
    let set = what_it_says_to_write_is_clean(&kubectl, &denial)?;
    assert_eq!(set["spec"]["replicas"], 2);
    let group = &set["spec"]["leaderWorkerTemplate"];
    assert_eq!(group["size"], 2);
    for role in ["leader", "worker"] {
        let spec = &group[format!("{role}Template")]["spec"];
        assert_eq!(spec["schedulerName"], "kai-scheduler", "{role}");
        for (pointer, value) in [
            ("/serviceAccountName", json!("llm")),
            ("/volumes/0/name", json!("shm")),
            ("/initContainers/0/image", json!("example/fetch:1")),
            ("/containers/0/volumeMounts/0/mountPath", json!("/dev/shm")),
            ("/containers/0/env/0/name", json!("HF_HOME")),
            ("/containers/0/resources/limits/nvidia.com~1gpu", json!("8")),
        ] {
            assert_eq!(at(spec, pointer), &value, "{role} {pointer}");
        }
        let probed = spec.pointer("/containers/0/readinessProbe").is_some();
        assert_eq!(probed, role == "leader");
    }
    // A StatefulSet's claims go with its pods.
    let kubectl = guarded()?.cluster.namespace("skeletons-claimed")?;
    let mut claimed = stateful_set("bad", 2, TWO_PODS);
    claimed["spec"]["volumeClaimTemplates"] = json!([{
        "metadata": {"name": "models"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Ti"}},
        },
    }]);
    let denial = is_denied(&kubectl, &claimed, "gang-scheduling", &["makes no gang"])?;
    let set = what_it_says_to_write_is_clean(&kubectl, &denial)?;
    let claims = "/spec/leaderWorkerTemplate/volumeClaimTemplates/0/metadata/name";
    assert_eq!(at(&set, claims), &json!("models"));
    Ok(())
}

#[test]
fn what_was_filled_asleep_wakes_as_a_gang_and_cannot_be_undone() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("wakes")?;
    kubectl
        .apply(&deployment("llm", 0, TWO_PODS).to_string())?
        .success()?;
    kubectl
        .run(&["scale", "deployment/llm", "--replicas=2"], None)?
        .success()?;
    let woken = kubectl.get("deployment/llm")?;
    assert_eq!(
        (at(&woken, SCHEDULER), at(&woken, MINIMUM)),
        (&json!("kai-scheduler"), &json!("2"))
    );
    // At a number that is no gang, nothing else may go wrong beside it.
    kubectl
        .run(&["scale", "deployment/llm", "--replicas=1"], None)?
        .success()?;
    let elsewhere = json!({
        "metadata": {"annotations": {"kai.scheduler/batch-min-member": null}},
        "spec": {"template": {"spec": {"schedulerName": "default-scheduler"}}},
    });
    denied_by(
        &kubectl.patch("deployment/llm", &elsewhere)?,
        "gang-scheduling",
    );
    let again = json!({"spec": {"replicas": 2, "minReadySeconds": 1}});
    kubectl.patch("deployment/llm", &again)?.success()?;
    Ok(())
}

/// A gang of eight that runs: what keeps it one is let in, what breaks it is not.
#[test]
fn a_running_gang_is_updated_as_long_as_it_stays_one() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("updates")?;
    let eight = ["-tp=8", "-pp=8", "--nnodes=8", "--master-addr=llm-0.llm"];
    let gang = deployment("llm", 8, &eight);
    kubectl.apply(&gang.to_string())?.success()?;
    let run = |args: &[&str]| kubectl.run(args, None);
    let minimum = |number: &str| {
        let set = format!("kai.scheduler/batch-min-member={number}");
        run(&["annotate", "--overwrite", "deployment/llm", &set])
    };
    let elsewhere = json!({"spec": {"template": {"spec": {"schedulerName": "default-scheduler"}}}});
    let stays_a_gang = |image: &str, replicas: u64| -> Result<()> {
        let held = kubectl.get("deployment/llm")?;
        assert_eq!(at(&held, MINIMUM), &json!("8"));
        assert_eq!(at(&held, SCHEDULER), &json!("kai-scheduler"));
        assert_eq!(at(&held, "/spec/strategy"), &json!({"type": "Recreate"}));
        assert_eq!(
            at(&held, "/spec/template/spec/containers/0/image"),
            &json!(image)
        );
        assert_eq!(at(&held, "/spec/replicas"), &json!(replicas));
        Ok(())
    };
    stays_a_gang("vllm/vllm-openai:v0.11.0", 8)?;

    let image = |image: &str| run(&["set", "image", "deployment/llm", &format!("vllm={image}")]);
    let answer = image("vllm/vllm-openai:v0.11.1")?;
    assert!(
        !answer.stderr.contains("gang-scheduling"),
        "{}",
        answer.stderr
    );
    answer.success()?;
    stays_a_gang("vllm/vllm-openai:v0.11.1", 8)?;

    denied_by(&minimum("7")?, "gang-scheduling");
    denied_by(&minimum("9")?, "gang-scheduling");
    denied_by(
        &kubectl.patch("deployment/llm", &elsewhere)?,
        "gang-scheduling",
    );
    stays_a_gang("vllm/vllm-openai:v0.11.1", 8)?;

    // An autoscaler, or somebody with `kubectl scale`, writes a subresource, which nothing holds up.
    run(&["scale", "deployment/llm", "--replicas=7"])?.success()?;
    stays_a_gang("vllm/vllm-openai:v0.11.1", 7)?;
    // What is short of a pod already is warned about, and another image makes it no worse.
    let answer = image("vllm/vllm-openai:v0.11.2")?;
    let warned = answer
        .warnings()
        .iter()
        .any(|line| line.contains("gang-scheduling"));
    assert!(warned, "{}", answer.stderr);
    answer.success()?;
    // But no second fault comes beside the first.
    denied_by(&minimum("7")?, "gang-scheduling");
    denied_by(
        &kubectl.patch("deployment/llm", &elsewhere)?,
        "gang-scheduling",
    );
    stays_a_gang("vllm/vllm-openai:v0.11.2", 7)?;
    // Written into the object, seven pods are no gang.
    run(&["scale", "deployment/llm", "--replicas=8"])?.success()?;
    denied_by(
        &kubectl.patch("deployment/llm", &json!({"spec": {"replicas": 7}}))?,
        "gang-scheduling",
    );
    stays_a_gang("vllm/vllm-openai:v0.11.2", 8)
}

#[test]
fn stateful_sets_of_one_pod_and_of_a_gang_that_kai_cannot_make() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("statefulsets")?;
    let kai = vec![(SCHEDULER, json!("kai-scheduler"))];
    is_filled_and_stays_so(&kubectl, &(stateful_set("", 2, ONE_POD), kai))?;

    let bad = stateful_set("bad", 2, TWO_PODS);
    let denial = is_denied(
        &kubectl,
        &bad,
        "gang-scheduling",
        &[
            "makes no gang of a StatefulSet's pods",
            "kind: LeaderWorkerSet",
        ],
    )?;
    kubectl.apply(&instead(&denial))?.success()?;
    // With a group that somebody else makes it is one.
    let mut external = bad;
    external["metadata"]["annotations"] = json!({"kai.scheduler/skip-podgrouper": "true"});
    external["spec"]["template"]["metadata"]["annotations"] = json!({"pod-group-name": "llm"});
    external["spec"]["template"]["spec"]["schedulerName"] = json!("kai-scheduler");
    let group = json!({
        "apiVersion": "scheduling.run.ai/v2alpha2", "kind": "PodGroup",
        "metadata": {"name": "llm"}, "spec": {"minMember": 2, "queue": "llm"},
    });
    kubectl.create(&group.to_string())?.success()?;
    let known = || {
        let answer = kubectl.apply(&external.to_string()).ok()?;
        answer.accepted().then_some(())
    };
    eventually("the PodGroup is known", SOON, known)?;
    denied_by(
        &kubectl.annotate("statefulset/bad", "kai.scheduler/skip-podgrouper-")?,
        "gang-scheduling",
    );
    is_denied(
        &kubectl,
        &without_queue(stateful_set("worse", 2, ONE_POD)),
        "gang-scheduling",
        &["kai.scheduler/queue: <leaf queue>"],
    )?;
    Ok(())
}

#[test]
fn rollouts_of_one_pod_and_of_a_gang_that_no_scheduler_makes() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("rollouts")?;
    let rollout = |name: &str, args: &[&str]| {
        let mut object = deployment(name, 2, args);
        object["apiVersion"] = json!("argoproj.io/v1alpha1");
        object["kind"] = json!("Rollout");
        object
    };
    let kai = vec![(SCHEDULER, json!("kai-scheduler"))];
    is_filled_and_stays_so(&kubectl, &(rollout("", ONE_POD), kai))?;
    let denial = is_denied(
        &kubectl,
        &rollout("bad", TWO_PODS),
        "gang-scheduling",
        &["makes no gang of a Rollout's pods", "kind: LeaderWorkerSet"],
    )?;
    kubectl.apply(&instead(&denial))?.success()?;
    // Its pods are those of the Deployment that it names.
    let mut by_reference = rollout("by-reference", TWO_PODS);
    let spec = by_reference["spec"].as_object_mut().context("a spec")?;
    spec.remove("template");
    by_reference["spec"]["workloadRef"] =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"});
    kubectl.create(&by_reference.to_string())?.success()?;
    Ok(())
}

#[test]
fn jobs_of_one_pod_and_of_a_gang() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("jobs")?;
    let kai = |minimum: &str| {
        vec![
            (SCHEDULER, json!("kai-scheduler")),
            (MINIMUM, json!(minimum)),
        ]
    };
    is_filled_and_stays_so(&kubectl, &(job("", 2, TWO_PODS), kai("2")))?;
    let kubectl = guarded()?.cluster.namespace("jobs")?;
    is_filled_and_stays_so(&kubectl, &(job("", 2, ONE_POD), kai("1")))?;

    let mut one_of_two = job("bad", 2, TWO_PODS);
    one_of_two["metadata"]["annotations"] = json!({"kai.scheduler/batch-min-member": "1"});
    is_denied(
        &kubectl,
        &one_of_two,
        "gang-scheduling",
        &["metadata.annotations[kai.scheduler/batch-min-member] is \"1\""],
    )?;
    is_denied(
        &kubectl,
        &job("bad", 3, TWO_PODS),
        "gang-scheduling",
        &["spec.parallelism is 3"],
    )?;
    is_denied(
        &kubectl,
        &job("bad", 1, &["-tp=9"]),
        "parallelism-fits-pod",
        &["starts 9 ranks, and the pod has 8 GPUs"],
    )?;
    Ok(())
}

#[test]
fn leader_worker_sets_with_both_templates() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("sets")?;
    let kai = json!("kai-scheduler");
    let both = vec![(LEADER, kai.clone()), (WORKER, kai.clone())];
    is_filled_and_stays_so(&kubectl, &(leader_worker_set("", 2), both.clone()))?;
    let kubectl = guarded()?.cluster.namespace("sets-asleep")?;
    is_filled_and_stays_so(&kubectl, &(leader_worker_set("", 0), both))?;
    // A gang without its leader is none.
    let kubectl = guarded()?.cluster.namespace("sets-led")?;
    let mut led = leader_worker_set("", 1);
    led["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["schedulerName"] = kai.clone();
    is_filled_and_stays_so(&kubectl, &(led, vec![(LEADER, kai)]))?;
    let elsewhere = json!({"spec": {"leaderWorkerTemplate": {"leaderTemplate": {"spec": {
        "schedulerName": "default-scheduler",
    }}}}});
    denied_by(
        &kubectl.patch("leaderworkerset/apply", &elsewhere)?,
        "gang-scheduling",
    );

    is_denied(
        &kubectl,
        &without_queue(leader_worker_set("bad", 1)),
        "gang-scheduling",
        &["kai.scheduler/queue: <leaf queue>"],
    )?;
    let mut small = leader_worker_set("bad", 1);
    small["spec"]["leaderWorkerTemplate"]["size"] = json!(1);
    is_denied(
        &kubectl,
        &small,
        "parallelism-fits-pod",
        &["starts 16 ranks, and a group of 1 pods has 8 GPUs"],
    )?;
    Ok(())
}
