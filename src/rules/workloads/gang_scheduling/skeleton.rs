//! The LeaderWorkerSet that holds a gang which its own kind cannot: complete, to be applied as it is.

use serde_json::{Map, Value, json};

use super::{Case, QueueState, yaml};
use crate::subject::{at, workload::Kind};

/// What a pod of a LeaderWorkerSet gets from it, or from nobody.
const NOT_CARRIED: [&str; 6] = [
    "schedulerName",
    "restartPolicy",
    "hostname",
    "subdomain",
    "containers",
    "initContainers",
];

/// Defaults that the API server puts into a pod spec: nobody needs to read them.
fn is_pod_default(key: &str, value: &Value) -> bool {
    match key {
        "dnsPolicy" => value == "ClusterFirst",
        "securityContext" => value == &json!({}),
        "terminationGracePeriodSeconds" => value == 30,
        "serviceAccount" => true,
        _ => value.is_null(),
    }
}

/// The same for a container.
fn is_container_default(key: &str, value: &Value) -> bool {
    match key {
        "terminationMessagePath" => value == "/dev/termination-log",
        "terminationMessagePolicy" => value == "File",
        "imagePullPolicy" => matches!(value.as_str(), Some("IfNotPresent" | "Always")),
        _ => value.is_null(),
    }
}

/// Labels and annotations that speak of the group that the pods had before.
const OF_THE_OLD_GROUP: [&str; 3] = [
    "pod-group-name",
    "scheduling.x-k8s.io/pod-group",
    "scheduling.k8s.io/group-name",
];

/// Only the leader answers requests.
const PROBES: [&str; 3] = ["readinessProbe", "startupProbe", "livenessProbe"];

impl Case<'_, '_> {
    /// A LeaderWorkerSet that runs the same pods in groups.
    pub(super) fn skeleton(&self, members: u64, groups: u64) -> String {
        let subject = self.cx.subject;
        let kai = self.scheduler.name == "kai";
        let mut metadata = Map::new();
        let name = match subject.name.as_str() {
            "" => "<name>",
            name => name,
        };
        metadata.insert("name".into(), Value::from(name));
        if let Some(namespace) = &subject.namespace {
            metadata.insert("namespace".into(), Value::from(namespace.as_str()));
        }
        let mut labels = Map::new();
        if let Some(label) = self
            .scheduler
            .queue
            .as_ref()
            .and_then(|queue| queue.label.as_ref())
        {
            let template = &self.serving.set.template;
            let name = match self.queue() {
                QueueState::Mapped(name) => name,
                QueueState::Settled => self
                    .owner_label(label)
                    .or_else(|| template.label(label))
                    .unwrap_or("<leaf queue>"),
                QueueState::Missing | QueueState::Nowhere(_) => "<leaf queue>",
            };
            labels.insert(label.clone(), Value::from(name));
        }
        if kai {
            // To KAI a Deployment serves, and everything else trains and may be evicted.
            for key in ["priorityClassName", "kai.scheduler/preemptibility"] {
                if let Some(value) = self.serving.workload.label(key) {
                    labels.insert(key.into(), Value::from(value));
                }
            }
            let template = &self.serving.set.template;
            let classed = labels.len() > 1
                || template.label("priorityClassName").is_some()
                || template.spec("priorityClassName").is_some();
            if !classed {
                labels.insert("priorityClassName".into(), Value::from("inference"));
            }
        }
        if !labels.is_empty() {
            metadata.insert("labels".into(), Value::from(labels));
        }
        let mut group = Map::new();
        group.insert("size".into(), Value::from(members));
        for (key, role) in [("leaderTemplate", "leader"), ("workerTemplate", "worker")] {
            group.insert(key.into(), self.group_template(role));
        }
        // Its pods own their claims as a StatefulSet's do (LWS 0.8 and later).
        if self.kind() == Kind::StatefulSet
            && let Some(claims) = at(&subject.value, &["spec", "volumeClaimTemplates"])
        {
            group.insert("volumeClaimTemplates".into(), claims.clone());
        }
        yaml(&json!({
            "apiVersion": "leaderworkerset.x-k8s.io/v1",
            "kind": "LeaderWorkerSet",
            "metadata": metadata,
            "spec": {"replicas": groups, "leaderWorkerTemplate": group},
        }))
    }

    /// What an engine's workers are told beside their rank: vLLM's start an API server, and wait for
    /// an engine that is not theirs, unless they are headless (vllm-project/vllm
    /// docs/serving/parallelism_scaling.md).
    pub(super) fn worker_flag(&self) -> Option<&'static str> {
        let engine = self.serving.server.engine?;
        (engine.name == "vllm").then_some("--headless")
    }

    fn group_template(&self, role: &str) -> Value {
        let template = &self.serving.set.template;
        let mut spec = Map::new();
        let object = &self.cx.subject.value;
        let all = template.spec_path().lookup(object);
        let all = all.and_then(Value::as_object);
        for (key, value) in all.into_iter().flatten() {
            if !NOT_CARRIED.contains(&key.as_str()) && !is_pod_default(key, value) {
                spec.insert(key.clone(), value.clone());
            }
        }
        spec.insert("schedulerName".into(), Value::from(self.wanted));
        for list in ["initContainers", "containers"] {
            let containers: Vec<Value> = template
                .list(list)
                .map(|container| group_container(container.value, role, self.worker_flag()))
                .collect();
            if !containers.is_empty() {
                spec.insert(list.into(), Value::from(containers));
            }
        }
        let texts = |map: &str| {
            let path = template.metadata_path().key(map);
            let mut texts = path
                .lookup(object)
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default();
            texts.retain(|key, _| !OF_THE_OLD_GROUP.contains(&key.as_str()));
            texts
        };
        let mut metadata = Map::new();
        let mut labels = texts("labels");
        labels.insert("role".into(), Value::from(role));
        metadata.insert("labels".into(), Value::from(labels));
        let annotations = texts("annotations");
        if !annotations.is_empty() {
            metadata.insert("annotations".into(), Value::from(annotations));
        }
        json!({"metadata": metadata, "spec": spec})
    }
}

/// A container for a group's pod: rank and leader address come from the LeaderWorkerSet, and what
/// only a worker is told comes behind its rank.
pub(super) fn group_container(container: &Value, role: &str, worker_flag: Option<&str>) -> Value {
    let mut kept = container.as_object().cloned().unwrap_or_default();
    kept.retain(|key, value| {
        !is_container_default(key, value) && (role == "leader" || !PROBES.contains(&key.as_str()))
    });
    for list in ["command", "args"] {
        let Some(Value::Array(words)) = kept.get_mut(list) else {
            continue;
        };
        let mut flag_before = None;
        let mut ranked = false;
        for word in words.iter_mut() {
            let Some(text) = word.as_str() else { continue };
            let flag = text.split('=').next().and_then(rank_flag);
            ranked |= matches!(flag, Some(RankFlag::Rank));
            if let Some(flag) = flag_before.take() {
                *word = Value::from(address(flag, text));
                continue;
            }
            match text.split_once('=') {
                Some((flag, old)) => {
                    if let Some(known) = rank_flag(flag) {
                        *word = Value::from(format!("{flag}={}", address(known, old)));
                    }
                }
                None => flag_before = rank_flag(text),
            }
        }
        if let Some(flag) = worker_flag.filter(|_| ranked && role == "worker")
            && !words.iter().any(|word| word == flag)
        {
            words.push(Value::from(flag));
        }
    }
    Value::Object(kept)
}

#[derive(Clone, Copy)]
enum RankFlag {
    Rank,
    Leader,
}

fn rank_flag(flag: &str) -> Option<RankFlag> {
    match flag {
        "--node-rank" | "--node_rank" | "-r" => Some(RankFlag::Rank),
        "--master-addr" | "--dist-init-addr" | "--nccl-init-addr" => Some(RankFlag::Leader),
        _ => None,
    }
}

fn address(role: RankFlag, old: &str) -> String {
    match role {
        RankFlag::Rank => "$(LWS_WORKER_INDEX)".to_owned(),
        RankFlag::Leader => match old.rsplit_once(':') {
            Some((_, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
                format!("$(LWS_LEADER_ADDRESS):{port}")
            }
            _ => "$(LWS_LEADER_ADDRESS)".to_owned(),
        },
    }
}
