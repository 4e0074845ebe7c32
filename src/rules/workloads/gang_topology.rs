//! gang-topology: see the declaration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{desired_replicas, may_go_to};
use crate::{
    catalog::schedulers::Schedulers,
    declare_rule,
    facts::Known,
    finding::{Confidence, FieldPath, Finding},
    policy::SchedulerName,
    rules::{Context, Findings, kinds},
    subject::workload::{Kind, PodSet, Serving, Spread},
};

declare_rule! {
    /// # What it finds
    ///
    /// Demands on the place of a model's pods that work against the model: one that puts the pods of a
    /// tensor parallel group into different zones or racks (spread constraints, anti-affinity, LWS
    /// subgroups or KAI segments smaller than the group); one that no node can meet, because the whole
    /// group has to be on one that has `gpusPerNode` at most; one that binds replicas which serve by
    /// themselves to a single domain; and one that names a KAI Topology, or a level of it, that is not
    /// there, or none at all.
    ///
    /// # Why it hurts
    ///
    /// The ranks of a tensor parallel group exchange data for every token, at the speed of the slowest
    /// link between them. A demand that cannot be met keeps the whole gang Pending; one domain for all
    /// replicas fails, and fills up, as one.
    ///
    /// # Example
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata:
    ///   name: llama
    ///   namespace: inference
    ///   labels: { kai.scheduler/queue: inference }
    ///   annotations:
    ///     kai.scheduler/topology: cluster
    ///     kai.scheduler/topology-required-placement: example.com/rack
    /// spec:
    ///   replicas: 4
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       schedulerName: kai-scheduler
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-70B-Instruct, -tp=8]
    ///           resources: { limits: { nvidia.com/gpu: 8 } }
    /// ```
    ///
    /// # Instead
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata:
    ///   name: llama
    ///   namespace: inference
    ///   labels: { kai.scheduler/queue: inference }
    ///   annotations:
    ///     kai.scheduler/topology: cluster
    ///     kai.scheduler/topology-preferred-placement: example.com/rack
    /// spec:
    ///   replicas: 4
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       schedulerName: kai-scheduler
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-70B-Instruct, -tp=8]
    ///           resources: { limits: { nvidia.com/gpu: 8 } }
    /// ```
    ///
    /// # Sources
    ///
    /// - KAI Scheduler, `docs/topology/{README,segments}.md` and
    ///   `pkg/scheduler/plugins/topology/job_filtering.go`: a Topology or level that is not there makes
    ///   the group unschedulable, and without a Topology the placement is ignored. From v0.18.0 a
    ///   Deployment is one group, and the placement holds for all of it.
    /// - LeaderWorkerSet v0.10, `subGroupPolicy` and `subgroup-exclusive-topology`.
    pub static GANG_TOPOLOGY = Rule {
        id: "gang-topology",
        summary: "A demand on the place of a model's pods that works against the model",
        group: Workloads,
        kinds: kinds::TEMPLATED,
        labels: &["gangplank.dev/model-server"],
        annotations: &[
            "kai.scheduler/topology",
            "kai.scheduler/topology-required-placement",
            "kai.scheduler/topology-preferred-placement",
            "kai.scheduler/segment-size",
            "leaderworkerset.sigs.k8s.io/subgroup-exclusive-topology",
        ],
        level: Warn,
        fills: None,
        params: Params,
        check: check
    }
}

/// Parameters of the rule.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Params {
    /// Most whole GPUs that a node of the cluster has.
    #[schemars(range(min = 1, max = 1024))]
    pub gpus_per_node: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self { gpus_per_node: 8 }
    }
}

const TOPOLOGY: &str = "kai.scheduler/topology";
const REQUIRED: &str = "kai.scheduler/topology-required-placement";
const PREFERRED: &str = "kai.scheduler/topology-preferred-placement";
const SEGMENT: &str = "kai.scheduler/segment-size";
const SEGMENT_PLACEMENTS: [&str; 2] = [
    "kai.scheduler/segment-topology-required-placement",
    "kai.scheduler/segment-topology-preferred-placement",
];
const EXCLUSIVE_SUBGROUPS: &str = "leaderworkerset.sigs.k8s.io/subgroup-exclusive-topology";
const HOSTNAME: &str = "kubernetes.io/hostname";

fn check(cx: &Context<'_, Params>, out: &mut Findings) {
    let [serving] = cx.servings() else {
        return;
    };
    if let Some(pods) = tensor_pods(serving) {
        spread(cx, serving, pods, out);
        segments(cx, serving, pods, out);
    }
    placement(cx, serving, out);
}

/// The pods that one tensor parallel group lies over, where they are several.
fn tensor_pods(serving: &Serving<'_>) -> Option<u64> {
    if !matches!(serving.spread, Spread::Group(_)) {
        return None;
    }
    let ranks = serving.server.parallelism.tensor.count.known()?;
    let gpus = serving.own.gpus.known().filter(|gpus| *gpus > 0)?;
    Some(ranks.div_ceil(gpus)).filter(|pods| *pods > 1)
}

/// `rack` of `example.com/rack`.
fn short(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// Constraints of the pods that part a tensor parallel group.
fn spread(cx: &Context<'_, Params>, serving: &Serving<'_>, pods: u64, out: &mut Findings) {
    let engines = cx.policy.catalog().engines();
    for set in serving.workload.live_sets() {
        if set.template.accelerators(engines).is_none() {
            continue;
        }
        let spec = set.template.spec_path();
        let list = |path: &FieldPath| {
            path.lookup(&cx.subject.value)
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let constraints = spec.clone().key("topologySpreadConstraints");
        let parts = |row: &Value| {
            let skew = row.get("maxSkew").and_then(Value::as_u64).unwrap_or(1);
            row.get("whenUnsatisfiable") != Some(&Value::from("ScheduleAnyway")) && skew < pods
        };
        let terms = spec.keys(&[
            "affinity",
            "podAntiAffinity",
            "requiredDuringSchedulingIgnoredDuringExecution",
        ]);
        let rows = list(&constraints)
            .into_iter()
            .enumerate()
            .filter(|(_, row)| parts(row))
            .map(|(index, row)| (constraints.clone().index(index), row))
            .chain(
                list(&terms)
                    .into_iter()
                    .enumerate()
                    .map(|(index, row)| (terms.clone().index(index), row)),
            );
        for (path, row) in rows {
            let Some(key) = row.get("topologyKey").and_then(Value::as_str) else {
                continue;
            };
            if key == HOSTNAME || !selects(&row, set) {
                continue;
            }
            out.report(
                Finding::new(
                    path.key("topologyKey"),
                    format!(
                        "The {pods} pods of {}'s tensor parallel group ({}) may not share a {}: for every \
                         token they exchange data over the slowest link between them.",
                        serving.server.title(),
                        serving.server.parallelism.describe(),
                        short(key)
                    ),
                )
                .value(key)
                .instead(format!(
                    "topologyKey: {HOSTNAME}   # or spread whole groups: a LeaderWorkerSet's replicas\n"
                ))
                .fingerprint(format!("spread:{key}:{}", set.role)),
            );
        }
    }
}

/// Whether a constraint's selector selects the pods that carry it, by plain labels.
fn selects(row: &Value, set: &PodSet<'_>) -> bool {
    let Some(selector) = row.get("labelSelector").and_then(Value::as_object) else {
        return false;
    };
    let labels = selector.get("matchLabels").and_then(Value::as_object);
    selector
        .get("matchExpressions")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
        && labels.is_some_and(|labels| {
            !labels.is_empty()
                && labels
                    .iter()
                    .all(|(key, value)| set.template.label(key) == value.as_str())
        })
}

/// Subgroups of a LeaderWorkerSet, each with a domain of its own, that cut a tensor parallel group.
fn segments(cx: &Context<'_, Params>, serving: &Serving<'_>, pods: u64, out: &mut Findings) {
    if serving.workload.kind != Kind::LeaderWorkerSet {
        return;
    }
    let worker = FieldPath::of(&["spec", "leaderWorkerTemplate", "workerTemplate"])
        .keys(&["metadata", "annotations"]);
    let written = |path: &FieldPath| path.lookup(&cx.subject.value).cloned();
    let placed = cx.subject.annotation(EXCLUSIVE_SUBGROUPS).is_some()
        || SEGMENT_PLACEMENTS
            .iter()
            .any(|key| written(&worker.clone().key(*key)).is_some());
    if !placed {
        return;
    }
    // KAI's order: the LWS's own field, its annotation, the workers' annotation.
    let found = [
        FieldPath::of(&[
            "spec",
            "leaderWorkerTemplate",
            "subGroupPolicy",
            "subGroupSize",
        ]),
        FieldPath::of(&["metadata", "annotations", SEGMENT]),
        worker.key(SEGMENT),
    ]
    .into_iter()
    .find_map(|path| {
        let value = written(&path)?;
        let size = value
            .as_u64()
            .or_else(|| value.as_str()?.parse::<u64>().ok())?;
        Some((path, value, size))
    });
    let Some((path, value, size)) = found else {
        return;
    };
    if size == 0 || size.is_multiple_of(pods) {
        return;
    }
    let right = if path.to_string().ends_with("subGroupSize") {
        format!("subGroupSize: {pods}\n")
    } else {
        format!("{SEGMENT}: \"{pods}\"\n")
    };
    out.report(
        Finding::new(
            path,
            format!(
                "Each {size} pods get a domain of their own, but {}'s tensor parallel group ({}) lies \
                 over {pods}: it is cut, and exchanges data for every token between domains.",
                serving.server.title(),
                serving.server.parallelism.describe()
            ),
        )
        .value(value)
        .instead(right)
        .fingerprint("segment"),
    );
}

/// The placement that KAI is asked for.
fn placement(cx: &Context<'_, Params>, serving: &Serving<'_>, out: &mut Findings) {
    let declared = &cx.policy.gang_scheduler;
    if !matches!(declared.name, SchedulerName::Kai | SchedulerName::Auto) {
        return;
    }
    let Some(kai) = Schedulers::builtin().find("kai") else {
        return;
    };
    let wanted = declared
        .scheduler_name
        .as_deref()
        .unwrap_or(&kai.scheduler_name);
    if !may_go_to(&serving.set.template, wanted) {
        return;
    }
    let says = |key: &str| cx.subject.annotation(key).filter(|text| !text.is_empty());
    let path = |key: &str| FieldPath::of(&["metadata", "annotations", key]);
    let (required, preferred) = (says(REQUIRED), says(PREFERRED));
    match says(TOPOLOGY) {
        None => {
            if let Some((key, level)) = required
                .map(|level| (REQUIRED, level))
                .or(preferred.map(|level| (PREFERRED, level)))
            {
                out.report(
                    Finding::new(
                        path(key),
                        format!("Without {TOPOLOGY} KAI ignores the placement, and says nothing."),
                    )
                    .value(level)
                    .instead(format!(
                        "metadata:\n  annotations:\n    {TOPOLOGY}: <name of the Topology>\n"
                    ))
                    .fingerprint("topology-unnamed"),
                );
            }
            return;
        }
        Some(name) => match cx.facts.topology(name) {
            Known::Absent => out.report(
                Finding::new(
                    path(TOPOLOGY),
                    format!("There is no Topology \"{name}\" yet: without it the pods are never scheduled."),
                )
                .value(name)
                .fingerprint("topology-absent"),
            ),
            Known::Present(topology) => {
                for (key, level) in [(REQUIRED, required), (PREFERRED, preferred)] {
                    let Some(level) = level.filter(|level| !topology.has(level)) else {
                        continue;
                    };
                    out.report(
                        Finding::new(
                            path(key),
                            format!(
                                "Topology \"{name}\" has no level \"{level}\": the pods are never \
                                 scheduled."
                            ),
                        )
                        .value(level)
                        .instead(match topology.levels().split_first() {
                            Some((first, rest)) => {
                                format!("{key}: {first}   # of: {first}, {}\n", rest.join(", "))
                            }
                            None => String::new(),
                        })
                        .fingerprint(format!("level-absent:{key}")),
                    );
                }
            }
            Known::Unknown => {}
        },
    }
    let Some(level) = required else { return };
    if let Spread::Group(pods) = serving.spread {
        let most = cx.params.gpus_per_node;
        let needed = serving
            .accelerators
            .gpus
            .known()
            .and_then(|gpus| gpus.checked_mul(pods));
        if let Some(needed) = needed.filter(|needed| level == HOSTNAME && *needed > most) {
            out.report(
                Finding::new(
                    path(REQUIRED),
                    format!(
                        "All {pods} pods of the group have to be on one node, which would need {needed} \
                         GPUs; no node has more than {most} (gpusPerNode): they are never scheduled."
                    ),
                )
                .value(level)
                .instead(format!(
                    "{REQUIRED}: <a level above the node, as the rack>\n{PREFERRED}: {HOSTNAME}\n"
                ))
                .confidence(Confidence::Presumed)
                .fingerprint("one-node"),
            );
        }
        return;
    }
    // One PodGroup for all pods, which serve by themselves.
    let one_group = match serving.workload.kind {
        Kind::StatefulSet | Kind::ReplicaSet | Kind::Rollout => true,
        Kind::Deployment => kai.minimum("Deployment", declared.version).is_some(),
        _ => false,
    };
    let independent = matches!(serving.spread, Spread::One | Spread::SinglePod);
    let Some((replicas, confidence)) =
        desired_replicas(cx.subject).filter(|(replicas, _)| *replicas > 1)
    else {
        return;
    };
    if !one_group || !independent {
        return;
    }
    let domain = short(level);
    out.report(
        Finding::new(
            path(REQUIRED),
            format!(
                "The {replicas} replicas serve by themselves, and KAI has to put all of them into one \
                 {domain}: none is scheduled beyond what that one holds, and all fail with it."
            ),
        )
        .value(level)
        .instead(format!("{PREFERRED}: {level}   # in place of {REQUIRED}\n"))
        .confidence(confidence)
        .fingerprint("bound"),
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{
        facts::{Facts, Listed, Watched},
        policy::Policy,
        review::review,
        subject::Subject,
    };

    #[test]
    fn a_topology_is_missed_only_where_all_of_them_are_known() {
        let object = Arc::new(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": "llm", "namespace": "inference",
                "labels": {"kai.scheduler/queue": "llm"},
                "annotations": {TOPOLOGY: "cluster", PREFERRED: "rack"},
            },
            "spec": {"replicas": 1, "template": {"spec": {"containers": [{
                "name": "vllm", "image": "vllm/vllm-openai", "args": ["--model=m"],
                "resources": {"limits": {"nvidia.com/gpu": 1}},
            }]}}},
        }));
        let found = |facts: &Facts| {
            let subject = Subject::from_manifest(Arc::clone(&object)).unwrap();
            let review = review(&Policy::default(), facts, &subject, Timestamp::UNIX_EPOCH);
            review
                .findings
                .into_iter()
                .filter(|finding| finding.rule == GANG_TOPOLOGY.id)
                .map(|finding| finding.fingerprint)
                .collect::<Vec<_>>()
        };
        let known = |levels: Option<Value>| {
            let mut listed = Listed::default();
            if let Some(levels) = levels {
                let topology = json!({"spec": {"levels": levels}});
                let engines = crate::catalog::engines::Engines::builtin();
                let fact = Watched::Topology.fact(&topology, engines).unwrap();
                listed.add("", "cluster", fact);
            }
            Facts::unknown().with_cluster(|cluster| cluster.replace(Watched::Topology, &listed))
        };
        assert_eq!(found(&Facts::unknown()), [""; 0]);
        assert_eq!(found(&known(None)), ["topology-absent"]);
        let rack = json!([{"nodeLabel": "example.com/rack", "alias": "rack"}]);
        assert_eq!(found(&known(Some(rack))), [""; 0]);
        let zone = json!([{"nodeLabel": "topology.kubernetes.io/zone"}]);
        assert_eq!(
            found(&known(Some(zone))),
            ["level-absent:kai.scheduler/topology-preferred-placement"]
        );
    }
}
