//! shared-memory: see the declaration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    rules::{Context, Findings, Kind, kinds},
    subject::{
        at,
        pod_template::{Container, Count, PodTemplate},
        quantity::Quantity,
        workload::{PodSet, Serving, Spread},
    },
};

declare_rule! {
    /// # What it finds
    ///
    /// Model servers with several ranks in one pod whose container has the /dev/shm of the container
    /// runtime, 64 MiB, or one of less than `minimumMebibytes`. A volume in memory at /dev/shm, the
    /// host's IPC namespace, a size given to CRI-O and `NCCL_SHM_DISABLE` all count as care taken. Ray
    /// clusters are left alone: KubeRay mounts one by itself.
    ///
    /// # Why it hurts
    ///
    /// Ranks of one pod talk through shared memory: NCCL's and RCCL's buffers, vLLM's message queue
    /// (160 MiB by itself). When /dev/shm is full, the engine dies with a bus error or an NCCL system
    /// error, while loading or under the first real load.
    ///
    /// # Example
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: { name: llama, namespace: inference, labels: { kai.scheduler/queue: inference } }
    /// spec:
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-70B-Instruct, --tensor-parallel-size=4]
    ///           resources: { limits: { nvidia.com/gpu: 4 } }
    /// ```
    ///
    /// # Instead
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: { name: llama, namespace: inference, labels: { kai.scheduler/queue: inference } }
    /// spec:
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-70B-Instruct, --tensor-parallel-size=4]
    ///           resources: { limits: { nvidia.com/gpu: 4 } }
    ///           volumeMounts: [{ name: shm, mountPath: /dev/shm }]
    ///       volumes: [{ name: shm, emptyDir: { medium: Memory } }]
    /// ```
    ///
    /// # Sources
    ///
    /// - vLLM, `vllm/distributed/device_communicators/shm_broadcast.py` and
    ///   `VLLM_MQ_MAX_CHUNK_BYTES_MB`; its Kubernetes guide mounts 2Gi.
    /// - NVIDIA/nccl issues 290 and 525; sgl-project.github.io issue 5; production-stack pull request
    ///   994; text-generation-inference asks for 1 GiB.
    /// - KubeRay, `ray-operator/controllers/ray/common/pod.go`; CRI-O's `shm-size.crio.io`.
    pub static SHARED_MEMORY = Rule {
        id: "shared-memory",
        summary: "Several ranks in one pod share 64 MiB of memory",
        group: Workloads,
        kinds: KINDS,
        labels: &["gangplank.dev/model-server"],
        annotations: &[],
        level: Warn,
        fills: None,
        params: Params,
        check: check
    }
}

static KINDS: &[&Kind] = &[
    &kinds::DEPLOYMENT,
    &kinds::STATEFUL_SET,
    &kinds::REPLICA_SET,
    &kinds::JOB,
    &kinds::ROLLOUT,
    &kinds::LEADER_WORKER_SET,
];

/// Parameters of the rule.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Params {
    /// The least size of /dev/shm that is not warned about, in MiB.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub minimum_mebibytes: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            minimum_mebibytes: 1024,
        }
    }
}

/// What the pod of a container says of its shared memory.
enum Shared<'a> {
    /// Somebody has taken care of it, or may have.
    Cared,
    /// Nothing: the runtime's 64 MiB.
    Default,
    /// A volume in memory with this limit.
    Limited(FieldPath, &'a Value, Quantity),
    /// A volume on the node's disk.
    Disk(FieldPath),
}

fn check(cx: &Context<'_, Params>, out: &mut Findings) {
    let [serving] = cx.servings() else {
        return;
    };
    let engines = cx.policy.catalog().engines();
    for set in serving.workload.live_sets() {
        let Some(accelerators) = set.template.accelerators(engines) else {
            continue;
        };
        // NCCL and RCCL; the ranks of other makers' devices meet elsewhere.
        let gpu = accelerators.resource == "resourceClaims"
            || engines
                .accelerator(&accelerators.resource)
                .is_some_and(|row| row.whole);
        let Some(ranks) = ranks(serving, accelerators.gpus).filter(|ranks| gpu && *ranks > 1)
        else {
            continue;
        };
        let Some(container) = container(serving, set, engines) else {
            continue;
        };
        let name = serving.server.title();
        let path = set.template.container_path(&container).key("volumeMounts");
        let least = Quantity::parse(&format!("{}Mi", cx.params.minimum_mebibytes));
        let (path, value, message) = match shared(&set.template, &container) {
            Shared::Cared => continue,
            Shared::Default => (
                path,
                None,
                format!(
                    "{ranks} ranks of {name} share the 64 MiB of /dev/shm that a container gets when \
                     nothing is mounted there: when it is full the engine dies with a bus error."
                ),
            ),
            Shared::Limited(path, value, limit) => {
                if least.is_none_or(|least| limit >= least) {
                    continue;
                }
                (
                    path,
                    Some(value.clone()),
                    format!(
                        "{ranks} ranks of {name} share this much of /dev/shm, less than the {} MiB \
                         that is asked for: when it is full the engine dies with a bus error.",
                        cx.params.minimum_mebibytes
                    ),
                )
            }
            Shared::Disk(path) => (
                path,
                None,
                format!(
                    "{ranks} ranks of {name} share a /dev/shm on the node's disk: without `medium: \
                     Memory` every message between them may be written there."
                ),
            ),
        };
        let finding = Finding::new(path, message)
            .instead(instead(&container))
            .confidence(serving.server.confidence)
            .fingerprint(format!("shm:{}", set.role));
        out.report(Finding { value, ..finding });
    }
}

/// Ranks that one pod of these many GPUs holds, where that is known.
fn ranks(serving: &Serving<'_>, gpus: Count) -> Option<u64> {
    serving.server.engine?;
    let all = serving.server.parallelism.world.known()?;
    match serving.spread {
        Spread::SinglePod => Some(all),
        Spread::Group(_) => Some(all.min(gpus.known()?)),
        Spread::One | Spread::Misfit { .. } | Spread::Unknown => None,
    }
}

/// The container that holds the ranks.
fn container<'a>(
    serving: &Serving<'a>,
    set: &PodSet<'a>,
    engines: &crate::catalog::engines::Engines,
) -> Option<Container<'a>> {
    if set.template.path() == serving.set.template.path() {
        return Some(serving.server.container);
    }
    set.template
        .containers()
        .find(|container| set.template.container_has_accelerator(engines, container))
}

fn shared<'a>(template: &PodTemplate<'a>, container: &Container<'a>) -> Shared<'a> {
    if template.spec("hostIPC") == Some(&Value::Bool(true))
        || template.annotation("io.kubernetes.cri-o.ShmSize").is_some()
        || template.annotation("shm-size.crio.io").is_some()
    {
        return Shared::Cared;
    }
    let list = |value: &'a Value, key: &str| {
        value
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let says = |value: &'a Value, key: &str| value.get(key).and_then(Value::as_str);
    if list(container.value, "env").any(|env| says(env, "name") == Some("NCCL_SHM_DISABLE")) {
        return Shared::Cared;
    }
    // A privileged script may mount one itself.
    if ["command", "args"]
        .into_iter()
        .flat_map(|key| container.texts(key))
        .any(|word| word.contains("/dev/shm"))
    {
        return Shared::Cared;
    }
    let mount = list(container.value, "volumeMounts").find(|mount| {
        says(mount, "mountPath")
            .is_some_and(|path| matches!(path.trim_end_matches('/'), "/dev/shm" | "/dev"))
    });
    let Some(mount) = mount else {
        return Shared::Default;
    };
    let volumes = template
        .spec("volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let Some((index, volume)) = volumes
        .enumerate()
        .find(|(_, volume)| volume.get("name") == mount.get("name"))
    else {
        return Shared::Cared;
    };
    let Some(directory) = volume.get("emptyDir") else {
        return Shared::Cared;
    };
    let path = template
        .spec_path()
        .key("volumes")
        .index(index)
        .key("emptyDir");
    if at(directory, &["medium"]).and_then(Value::as_str) != Some("Memory") {
        return Shared::Disk(path);
    }
    match at(directory, &["sizeLimit"]).and_then(|value| Some((value, Quantity::of(value)?))) {
        Some((value, limit)) => Shared::Limited(path.key("sizeLimit"), value, limit),
        None => Shared::Cared,
    }
}

fn instead(container: &Container<'_>) -> String {
    format!(
        "containers:\n- name: {}\n  volumeMounts:\n  - name: shm\n    mountPath: /dev/shm\nvolumes:\n\
         - name: shm\n  emptyDir:\n    medium: Memory   # counts against the container's memory limit\n",
        container.name()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(spec: &Value, annotations: &Value) -> &'static str {
        let value = json!({"metadata": {"annotations": annotations}, "spec": spec});
        let template = PodTemplate::new(&value, FieldPath::new());
        let container = template.containers().next().unwrap();
        match shared(&template, &container) {
            Shared::Cared => "cared",
            Shared::Default => "default",
            Shared::Limited(..) => "limited",
            Shared::Disk(_) => "disk",
        }
    }

    #[test]
    fn every_way_to_take_care_counts() {
        let mounted = |path: &str, volume: Value| {
            json!({
                "containers": [{"volumeMounts": [{"name": "shm", "mountPath": path}]}],
                "volumes": [volume],
            })
        };
        let memory = |limit: Value| json!({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": limit}});
        for (spec, says) in [
            (json!({"containers": [{}]}), "default"),
            (json!({"hostIPC": true, "containers": [{}]}), "cared"),
            (json!({"hostIPC": false, "containers": [{}]}), "default"),
            (mounted("/dev/shm", memory(Value::Null)), "cared"),
            (mounted("/dev/shm/", memory(json!("2Gi"))), "limited"),
            (
                mounted("/dev/shm", json!({"name": "shm", "emptyDir": {}})),
                "disk",
            ),
            (
                mounted(
                    "/dev/shm",
                    json!({"name": "shm", "hostPath": {"path": "/dev/shm"}}),
                ),
                "cared",
            ),
            (
                mounted("/cache", json!({"name": "shm", "emptyDir": {}})),
                "default",
            ),
            (
                json!({"containers": [{"env": [{"name": "NCCL_SHM_DISABLE", "value": "1"}]}]}),
                "cared",
            ),
            (
                json!({"containers": [{"command": ["sh", "-c", "mount -o remount,size=8G /dev/shm; x"]}]}),
                "cared",
            ),
        ] {
            assert_eq!(of(&spec, &json!({})), says, "{spec}");
        }
        let plain = json!({"containers": [{}]});
        assert_eq!(of(&plain, &json!({"shm-size.crio.io": "8Gi"})), "cared");
    }
}
