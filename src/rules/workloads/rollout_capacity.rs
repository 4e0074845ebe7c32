//! rollout-capacity: see the declaration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{desired_replicas, may_go_to};
use crate::{
    catalog::schedulers::Schedulers,
    declare_rule,
    finding::{Confidence, FieldPath, Finding},
    policy::SchedulerName,
    rules::{Context, Findings, Kind as CoveredKind, kinds},
    subject::{
        at,
        pod_template::PodTemplate,
        rollout::Rolling,
        workload::{Kind, Serving, Spread},
    },
};

declare_rule! {
    /// # What it finds
    ///
    /// Rollouts of model servers that take all replicas, or more than `maximumUnavailablePercent` of
    /// them, away at once; that need a second set of GPUs on the one node that the pods are bound to,
    /// which has `gpusPerNode` at most; and that a minimum of the gang scheduler brings to a halt.
    ///
    /// One replica that goes before its successor comes is left alone where nothing surges: without a
    /// spare GPU there is no other way. So are gangs of several pods, which have to go together.
    ///
    /// # Why it hurts
    ///
    /// A model server answers nothing until it has loaded its weights, for minutes. A rollout that
    /// takes the replicas away together is an outage that long, on every change of the template; one
    /// that waits for a GPU that never comes stops half done.
    ///
    /// # Example
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: { name: llama, namespace: inference }
    /// spec:
    ///   replicas: 4
    ///   strategy: { type: Recreate }
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-8B-Instruct]
    ///           resources: { limits: { nvidia.com/gpu: 1 } }
    /// ```
    ///
    /// # Instead
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: { name: llama, namespace: inference }
    /// spec:
    ///   replicas: 4
    ///   strategy: { type: RollingUpdate, rollingUpdate: { maxSurge: 0, maxUnavailable: 1 } }
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-8B-Instruct]
    ///           resources: { limits: { nvidia.com/gpu: 1 } }
    /// ```
    ///
    /// # Sources
    ///
    /// - Kubernetes, Deployment strategies; LeaderWorkerSet v0.10, `rollingUpdateConfiguration`.
    /// - Rollouts that waited for a GPU that their own old pods held: defilantech/LLMKube issue 192,
    ///   ai-runway/airunway issue 400, cortexlabs/cortex issue 644.
    /// - Volcano issue 4739 and KEP-6276: a new ReplicaSet is a gang of its own. KAI Scheduler,
    ///   `stalegangeviction`: a gang below its minimum for 60 s is evicted.
    pub static ROLLOUT_CAPACITY = Rule {
        id: "rollout-capacity",
        summary: "A rollout that takes the serving capacity away, or stops half done",
        group: Workloads,
        kinds: KINDS,
        labels: &["gangplank.dev/model-server"],
        annotations: &[
            "kai.scheduler/batch-min-member",
            "scheduling.volcano.sh/group-min-member",
        ],
        level: Warn,
        fills: None,
        params: Params,
        check: check
    }
}

static KINDS: &[&CoveredKind] = &[
    &kinds::DEPLOYMENT,
    &kinds::STATEFUL_SET,
    &kinds::ROLLOUT,
    &kinds::LEADER_WORKER_SET,
];

/// Parameters of the rule.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Params {
    /// The share of the replicas that a rollout may take away at once, in percent. One replica is
    /// always let go.
    #[schemars(range(min = 1, max = 100))]
    pub maximum_unavailable_percent: u64,
    /// Most whole GPUs that a node of the cluster has.
    #[schemars(range(min = 1, max = 1024))]
    pub gpus_per_node: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            maximum_unavailable_percent: 50,
            gpus_per_node: 8,
        }
    }
}

fn check(cx: &Context<'_, Params>, out: &mut Findings) {
    let [serving] = cx.servings() else {
        return;
    };
    let Some(case) = Case::of(cx, serving) else {
        return;
    };
    if case.is_coupled(out) {
        return;
    }
    case.capacity(out);
    case.pinned(out);
}

struct Case<'c, 'a> {
    cx: &'c Context<'a, Params>,
    serving: &'a Serving<'a>,
    /// Instances that are wanted, and how sure it is that somebody wants just as many. None where
    /// nobody says: an autoscaler may.
    replicas: Option<(u64, Confidence)>,
    /// None for `Recreate` and what is replaced by hand.
    rolling: Option<Rolling>,
}

impl<'c, 'a> Case<'c, 'a> {
    fn of(cx: &'c Context<'a, Params>, serving: &'a Serving<'a>) -> Option<Self> {
        let kind = serving.workload.kind;
        let parallelism = &serving.server.parallelism;
        // What spans pods goes and comes as a whole; a LeaderWorkerSet's replica is such a whole.
        let whole = kind == Kind::LeaderWorkerSet
            || !matches!(serving.spread, Spread::Group(_) | Spread::Misfit { .. })
                && parallelism.multi_node.is_none()
                && parallelism.nodes.is_none();
        if !whole {
            return None;
        }
        let object = &cx.subject.value;
        let replicas = desired_replicas(cx.subject);
        let number = replicas.map_or(1, |(number, _)| number);
        let bounds = |path: &[&str], unavailable: Value, surge: Value| {
            let path = FieldPath::of(path);
            Some(Rolling::of(object, &path, &(unavailable, surge), number))
        };
        let rolling = match kind {
            Kind::Deployment => Rolling::of_deployment(object, number),
            Kind::StatefulSet => {
                if at(object, &["spec", "updateStrategy", "type"]) == Some(&Value::from("OnDelete"))
                {
                    return None;
                }
                let path = ["spec", "updateStrategy", "rollingUpdate"];
                bounds(&path, json!(1), json!(0))
            }
            Kind::Rollout => {
                at(object, &["spec", "strategy", "canary"])?;
                let path = ["spec", "strategy", "canary"];
                bounds(&path, json!("25%"), json!("25%"))
            }
            Kind::LeaderWorkerSet => {
                let path = ["spec", "rolloutStrategy", "rollingUpdateConfiguration"];
                bounds(&path, json!(1), json!(0))
            }
            _ => return None,
        };
        Some(Self {
            cx,
            serving,
            replicas,
            rolling,
        })
    }

    fn things(&self) -> &'static str {
        if self.serving.workload.kind == Kind::LeaderWorkerSet {
            "groups"
        } else {
            "replicas"
        }
    }

    /// All or most of the replicas go at once.
    fn capacity(&self, out: &mut Findings) {
        let Some((replicas, confidence)) = self.replicas.filter(|(replicas, _)| *replicas > 0)
        else {
            return;
        };
        let name = self.serving.server.title();
        let things = self.things();
        let report =
            |path: FieldPath, gone: u64, message: String, instead: String, out: &mut Findings| {
                let value = path
                    .lookup(&self.cx.subject.value)
                    .filter(|value| !value.is_object())
                    .cloned();
                let finding = Finding::new(path, message)
                    .instead(instead)
                    .confidence(confidence)
                    .fingerprint("capacity")
                    .severity(
                        u32::try_from(gone.saturating_mul(100) / replicas).unwrap_or(u32::MAX),
                    );
                out.report(Finding { value, ..finding });
            };
        let Some(rolling) = &self.rolling else {
            if replicas > 1 {
                report(
                    FieldPath::of(&["spec", "strategy", "type"]),
                    replicas,
                    format!(
                        "A rollout takes all {replicas} replicas of {name} away at once and serves \
                         nothing until their successors have loaded the model; one after the other \
                         needs no spare GPU either."
                    ),
                    ONE_BY_ONE.to_owned(),
                    out,
                );
            }
            return;
        };
        let gone = rolling.unavailable.min(replicas);
        let bounds = |unavailable: u64, surge: u64| {
            format!("maxUnavailable: {unavailable}\nmaxSurge: {surge}\n")
        };
        // One that goes before its successor comes is the only way without a spare GPU; with one, it
        // is an outage for nothing.
        if gone == replicas && replicas == 1 {
            if rolling.surge > 0 && self.serving.workload.kind.is_flat() {
                report(
                    rolling.path.clone(),
                    gone,
                    format!(
                        "A rollout takes the only replica of {name} away while its successor still \
                         loads the model, although it is let surge by {}: nothing serves meanwhile.",
                        rolling.surge
                    ),
                    bounds(0, rolling.surge),
                    out,
                );
            }
            return;
        }
        let most = self.cx.params.maximum_unavailable_percent;
        if gone > 1 && gone.saturating_mul(100) > most.saturating_mul(replicas) {
            let within = (most.saturating_mul(replicas) / 100).max(1);
            let least = if gone == replicas && rolling.surge > 0 {
                bounds(0, rolling.surge)
            } else {
                bounds(within.min(replicas - 1), rolling.surge)
            };
            report(
                rolling.path.clone(),
                gone,
                if gone == replicas {
                    format!(
                        "A rollout takes all {replicas} {things} of {name} away at once: nothing serves \
                         until their successors have loaded the model."
                    )
                } else {
                    format!(
                        "A rollout takes {gone} of {replicas} {things} of {name} away at once: the rest \
                         has to serve everything until their successors have loaded the model."
                    )
                },
                least,
                out,
            );
        }
    }

    /// The pods are bound to one node, and it cannot hold old and new at once.
    fn pinned(&self, out: &mut Findings) {
        let Some(rolling) = &self.rolling else { return };
        let flat = self.serving.workload.kind.is_flat();
        if rolling.unavailable > 0 || rolling.surge == 0 || !flat {
            return;
        }
        let template = &self.serving.set.template;
        let (Some(gpus), Some((path, node))) =
            (self.serving.accelerators.gpus.known(), one_node(template))
        else {
            return;
        };
        let replicas = self.replicas.map_or(1, |(replicas, _)| replicas).max(1);
        let most = self.cx.params.gpus_per_node;
        let (old, both) = (
            gpus.saturating_mul(replicas),
            gpus.saturating_mul(replicas.saturating_add(rolling.surge)),
        );
        if old > most || both <= most {
            return;
        }
        out.report(
            Finding::new(
                path,
                format!(
                    "The pods may only run on {node}, and before a rollout lets an old pod go it needs \
                     {both} GPUs there at once: no node has more than {most} (gpusPerNode), so it never \
                     gets anywhere."
                ),
            )
            .value(node)
            .instead(if self.serving.workload.kind == Kind::Deployment {
                ONE_BY_ONE
            } else {
                "maxSurge: 0\nmaxUnavailable: 1\n"
            })
            .confidence(Confidence::Presumed)
            .fingerprint("pinned")
            .severity(u32::try_from(both - most).unwrap_or(u32::MAX)),
        );
    }

    /// Independent replicas that the gang scheduler is told to keep together.
    fn is_coupled(&self, out: &mut Findings) -> bool {
        let declared = &self.cx.policy.gang_scheduler;
        if self.serving.workload.kind != Kind::Deployment
            || matches!(declared.name, SchedulerName::None | SchedulerName::Auto)
        {
            return false;
        }
        let Some(scheduler) = Schedulers::builtin().find(declared.name.as_str()) else {
            return false;
        };
        let wanted = declared
            .scheduler_name
            .as_deref()
            .unwrap_or(&scheduler.scheduler_name);
        if !may_go_to(&self.serving.set.template, wanted) {
            return false;
        }
        let Some(key) = scheduler.minimum("Deployment", declared.version) else {
            return false;
        };
        let minimum = self
            .serving
            .workload
            .annotation(key)
            .and_then(|text| text.parse::<u32>().ok())
            .map_or(0, u64::from);
        let Some((replicas, confidence)) = self.replicas else {
            return minimum > 1;
        };
        if minimum < 2 || minimum > replicas {
            return minimum > 1;
        }
        let Some(rolling) = &self.rolling else {
            return true;
        };
        let title = &scheduler.title;
        let message = if scheduler.surge {
            let room = rolling.surge.saturating_add(rolling.unavailable);
            if room >= minimum {
                return true;
            }
            format!(
                "To {title} the new revision is a gang of its own that starts with {minimum} pods, and \
                 a rollout makes {room} of them before it waits: it never gets any further."
            )
        } else {
            let left = replicas.saturating_sub(rolling.unavailable);
            if left >= minimum {
                return true;
            }
            format!(
                "A rollout leaves {left} of {replicas} pods, fewer than the minimum of {minimum}: \
                 {title} evicts the rest of them after 60 s."
            )
        };
        out.report(
            Finding::new(rolling.path.clone(), message)
                .instead(format!(
                    "metadata:\n  annotations:\n    {key}: \"1\"   # each replica serves by itself\n"
                ))
                .confidence(confidence)
                .fingerprint("coupled"),
        );
        true
    }
}

/// A Deployment's rollout that needs no spare GPU.
const ONE_BY_ONE: &str =
    "strategy:\n  type: RollingUpdate\n  rollingUpdate:\n    maxSurge: 0\n    maxUnavailable: 1\n";

const HOSTNAME: &str = "kubernetes.io/hostname";

/// The one node that the pods may run on, where they are bound to one.
fn one_node<'a>(template: &PodTemplate<'a>) -> Option<(FieldPath, &'a str)> {
    let spec = template.spec_path();
    if let Some(node) = template
        .spec("nodeSelector")
        .and_then(|labels| at(labels, &[HOSTNAME])?.as_str())
    {
        return Some((spec.keys(&["nodeSelector", HOSTNAME]), node));
    }
    let keys = [
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
        "nodeSelectorTerms",
    ];
    let path = spec.key("affinity").keys(&keys);
    let terms = template
        .spec("affinity")
        .and_then(|affinity| at(affinity, &keys)?.as_array())
        .filter(|terms| terms.len() == 1)?;
    let rows = terms.first()?.get("matchExpressions")?.as_array()?;
    rows.iter().enumerate().find_map(|(index, row)| {
        let says = |key: &str| row.get(key).and_then(Value::as_str);
        let values = row.get("values")?.as_array()?;
        let single =
            says("key") == Some(HOSTNAME) && says("operator") == Some("In") && values.len() == 1;
        let node = values.first()?.as_str().filter(|_| single)?;
        let path = path.clone().index(0).key("matchExpressions").index(index);
        Some((path.key("values").index(0), node))
    })
}
