//! The LeaderWorkerSet that holds a gang which its own kind cannot: complete, to be applied as it is.

use serde_json::{Map, Value, json};

use super::{Case, QueueState, yaml};
use crate::engine::is_script;
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
        let note = own_ranks(group.get("leaderTemplate").and_then(|pod| pod.get("spec")));
        let set = yaml(&json!({
            "apiVersion": "leaderworkerset.x-k8s.io/v1",
            "kind": "LeaderWorkerSet",
            "metadata": metadata,
            "spec": {"replicas": groups, "leaderWorkerTemplate": group},
        }));
        format!("{note}{set}")
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
    let worker_flag = worker_flag.filter(|_| role == "worker");
    for list in ["command", "args"] {
        let Some(Value::Array(words)) = kept.get_mut(list) else {
            continue;
        };
        let mut flag_before = None;
        let mut ranked = false;
        for word in words.iter_mut() {
            let Some(text) = word.as_str() else { continue };
            if text.contains(char::is_whitespace) {
                *word = Value::from(group_script(text, worker_flag));
                continue;
            }
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
        if let Some(flag) = worker_flag.filter(|_| ranked)
            && !words.iter().any(|word| word == flag)
        {
            words.push(Value::from(flag));
        }
    }
    Value::Object(kept)
}

#[derive(Clone, Copy, PartialEq)]
enum RankFlag {
    Rank,
    Leader,
}

/// Flags that take a rank or the leader's address: vLLM's, SGLang's and torchrun's.
const RANK_FLAGS: [(&str, RankFlag); 11] = [
    ("--node-rank", RankFlag::Rank),
    ("--node_rank", RankFlag::Rank),
    ("--master-addr", RankFlag::Leader),
    ("--master_addr", RankFlag::Leader),
    ("--dist-init-addr", RankFlag::Leader),
    ("--dist_init_addr", RankFlag::Leader),
    ("--nccl-init-addr", RankFlag::Leader),
    ("--data-parallel-address", RankFlag::Leader),
    ("-dpa", RankFlag::Leader),
    ("--rdzv-endpoint", RankFlag::Leader),
    ("--rdzv_endpoint", RankFlag::Leader),
];

fn rank_flag(flag: &str) -> Option<RankFlag> {
    if flag == "-r" {
        return Some(RankFlag::Rank);
    }
    let known = RANK_FLAGS.iter().find(|(known, _)| *known == flag);
    known.map(|(_, role)| *role)
}

fn address(role: RankFlag, old: &str) -> String {
    match role {
        RankFlag::Rank => "$(LWS_WORKER_INDEX)".to_owned(),
        RankFlag::Leader => match old.trim_matches(['"', '\'']).rsplit_once(':') {
            Some((_, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
                format!("$(LWS_LEADER_ADDRESS):{port}")
            }
            _ => "$(LWS_LEADER_ADDRESS)".to_owned(),
        },
    }
}

/// A script for a group's pod. A flag is given its value from the LeaderWorkerSet where it stands
/// once, and before a word that ends where it seems to; a script with branches is left alone.
fn group_script(script: &str, worker_flag: Option<&str>) -> String {
    let mut out = script.to_owned();
    for (flag, role) in RANK_FLAGS {
        let mut all = flags_in(&out, flag);
        let (Some(from), None) = (all.next(), all.next()) else {
            continue;
        };
        drop(all);
        let (Some(before), Some(after)) = (out.get(..from), out.get(from..)) else {
            continue;
        };
        let Some(length) = shell_word(after) else {
            continue;
        };
        let (old, rest) = after.split_at(length);
        let mut new = address(role, old);
        if let Some(flag) = worker_flag
            && role == RankFlag::Rank
            && flags_in(script, flag).next().is_none()
        {
            new = format!("{new} {flag}");
        }
        out = format!("{before}{new}{rest}");
    }
    out
}

/// Where the values of a flag begin in a script.
fn flags_in<'s>(script: &'s str, flag: &'s str) -> impl Iterator<Item = usize> + 's {
    script.match_indices(flag).filter_map(move |(at, _)| {
        let before = script.get(..at)?.chars().next_back();
        let end = at + flag.len();
        let next = script.get(end..)?.chars().next();
        let starts = before.is_none_or(char::is_whitespace);
        match next {
            Some('=' | ' ') if starts => Some(end + 1),
            Some('\t' | '\n') | None if starts => Some(end),
            _ => None,
        }
    })
}

/// The length of the shell word that begins here; `None` where that cannot be told at a glance.
fn shell_word(text: &str) -> Option<usize> {
    let mut open: Vec<char> = Vec::new();
    for (at, c) in text.char_indices() {
        match (c, open.last()) {
            (_, Some(close)) if c == *close => {
                open.pop();
            }
            (_, Some('\'')) => {}
            ('\\' | '`', _) => return None,
            ('"' | '\'', None) => open.push(c),
            ('(', _) => open.push(')'),
            ('{', _) => open.push('}'),
            (' ' | '\t' | '\n' | ';' | '&' | '|' | '<' | '>' | ')' | '}', None) => {
                return (at > 0).then_some(at);
            }
            _ => {}
        }
    }
    (open.is_empty() && !text.is_empty()).then_some(text.len())
}

/// What in a command line or environment tells of a rank, an address or a number of nodes that the
/// pods find out by themselves.
const OWN: [&str; 13] = [
    "ray start",
    "--address",
    "RAY_ADDRESS",
    "VLLM_HOST_IP",
    "MASTER_ADDR",
    "MASTER_IP",
    "NODE_RANK",
    "POD_INDEX",
    "{HOSTNAME##",
    "{POD_NAME##",
    "multi-node-serving",
    "--nnodes $",
    "--nnodes=$",
];

/// A comment for the containers whose command line, script or environment keeps a rank, an address or
/// a number of nodes of its own; empty where none does.
pub(super) fn own_ranks(spec: Option<&Value>) -> String {
    let containers = spec
        .and_then(|spec| spec.get("containers")?.as_array())
        .into_iter()
        .flatten();
    let names: Vec<&str> = containers
        .filter(|container| keeps_its_own(container))
        .filter_map(|container| container.get("name")?.as_str())
        .collect();
    if names.is_empty() {
        return String::new();
    }
    let names = names.join(", ");
    format!(
        "# rank, leader and number of nodes that {names} finds by itself: take them from\n# \
         LWS_WORKER_INDEX, LWS_LEADER_ADDRESS and LWS_GROUP_SIZE, which each of these pods has\n"
    )
}

fn keeps_its_own(container: &Value) -> bool {
    let list = |key: &str| container.get(key).and_then(Value::as_array);
    let words = || ["command", "args"].into_iter().filter_map(list).flatten();
    let line: Vec<&str> = words().filter_map(Value::as_str).collect();
    let own = |text: &str| {
        let values: Vec<&str> = RANK_FLAGS
            .iter()
            .flat_map(|(flag, _)| flags_in(text, flag))
            .filter_map(|from| text.get(from..))
            .collect();
        let given = |value: &&str| value.trim_start_matches('"').starts_with("$(LWS_");
        let kept = !values.iter().all(given);
        // One that knows of the group, beside what was put here, takes what it has from it; and a
        // pod's own address is right in every group.
        let knows = text.matches("LWS_").count() > values.len();
        let of_the_pod = |own: &str| own == "VLLM_HOST_IP" && text.contains("POD_IP");
        let own = OWN.iter().any(|own| text.contains(own) && !of_the_pod(own));
        kept || !knows && own
    };
    let in_file = line
        .iter()
        .any(|word| is_script(word) && !word.contains(char::is_whitespace));
    let set = list("env").into_iter().flatten().any(|variable| {
        let name = variable.get("name").and_then(Value::as_str);
        let own = ["MASTER_ADDR", "MASTER_IP", "NODE_RANK", "POD_INDEX"];
        let value = variable.get("value").and_then(Value::as_str);
        name.is_some_and(|name| own.iter().any(|own| name.contains(own)))
            && !value.is_some_and(|value| value.contains("LWS_"))
    });
    set || in_file || own(&line.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_given_the_ranks_and_addresses_of_its_group() {
        for (script, worker, new) in [
            (
                "exec vllm serve m --nnodes 2 --node-rank $RANK --master-addr=\"llm-0.llm\"\n",
                None,
                "exec vllm serve m --nnodes 2 --node-rank $(LWS_WORKER_INDEX) \
                 --master-addr=$(LWS_LEADER_ADDRESS)\n",
            ),
            (
                "vllm serve m --node-rank=${HOSTNAME##*-};",
                Some("--headless"),
                "vllm serve m --node-rank=$(LWS_WORKER_INDEX) --headless;",
            ),
            (
                "sglang serve --node-rank $(hostname | cut -d- -f2) --dist-init-addr $H:20000",
                None,
                "sglang serve --node-rank $(LWS_WORKER_INDEX) \
                 --dist-init-addr $(LWS_LEADER_ADDRESS):20000",
            ),
            // In branches, in quotes, or with an end that is not to be seen.
            ("a --node-rank 0 || b --node-rank 1", None, ""),
            ("sh -c \"vllm serve m --node-rank $R\"", None, ""),
            ("vllm serve m --node-rank \\\n 1", None, ""),
            ("vllm serve m --node-rank `rank`", None, ""),
            ("echo no--node-rank 1 --node-ranks 2", None, ""),
            ("vllm serve m --node-rank", None, ""),
        ] {
            let new = if new.is_empty() { script } else { new };
            assert_eq!(group_script(script, worker), new, "{script}");
        }
    }

    #[test]
    fn what_stays_its_own_is_said() {
        let note = |words: &[&str], env: Value| {
            let container = json!({"name": "llm", "command": words, "env": env});
            let container = group_container(&container, "leader", None);
            own_ranks(Some(&json!({"containers": [container]})))
        };
        let silent = || json!([]);
        for words in [
            &["bash", "-c", "ray start --address=llm-0:6379 --block"][..],
            &[
                "bash",
                "-c",
                "export VLLM_HOST_IP=10.0.0.1; vllm serve m -tp 16",
            ],
            &[
                "bash",
                "-c",
                "N=${HOSTNAME##*-}; vllm serve m --node-rank $N --master-addr a",
            ],
            &["sh", "-c", "a --node-rank 0 || b --node-rank 1"],
            &["bash", "/scripts/run.sh"],
            &["ray", "start", "--address", "llm-0:6379"],
            &["bash", "-c", "vllm serve m --nnodes $N"],
        ] {
            let said = note(words, silent());
            assert!(
                said.starts_with("# rank, leader and number of nodes that llm finds"),
                "{words:?}: {said}"
            );
            assert!(said.contains("LWS_LEADER_ADDRESS"), "{said}");
        }
        for words in [
            &[
                "vllm",
                "serve",
                "m",
                "--nnodes=2",
                "--node-rank=0",
                "--master-addr=a",
            ][..],
            &[
                "bash",
                "-c",
                "vllm serve m --nnodes 2 --node-rank $R --master-addr $A",
            ],
            &[
                "bash",
                "-c",
                "ray start --address=$LWS_LEADER_ADDRESS:6379 --block",
            ],
            &[
                "bash",
                "-c",
                "export VLLM_HOST_IP=$POD_IP; vllm serve m --node-rank $R",
            ],
        ] {
            assert_eq!(note(words, silent()), "", "{words:?}");
        }
        let address = |value: &str| json!([{"name": "MASTER_ADDR", "value": value}]);
        assert_ne!(note(&["vllm"], address("llm-0")), "");
        assert_eq!(note(&["vllm"], address("$(LWS_LEADER_ADDRESS)")), "");
    }
}
