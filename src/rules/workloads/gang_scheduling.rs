//! gang-scheduling: see the declaration.

use std::cell::OnceCell;

use serde_json::{Value, json};

use crate::{
    catalog::schedulers::{External, Scheduler, Schedulers},
    declare_rule,
    facts::{Known, Watched},
    finding::FieldPath,
    policy::{SchedulerName, SchedulerVersion},
    provenance::{Provenance, of_field},
    rules::{Context, Edits, Findings, NoParams, kinds},
    subject::{
        Operation, at,
        rollout::Rolling,
        scale_target::ScaleTarget,
        workload::{Kind, PodSet, Serving, Spread},
    },
};

mod fill;
mod groups;
mod judge;
mod remedy;
mod skeleton;
mod task_groups;
mod unknown;

declare_rule! {
    /// # What it finds
    ///
    /// Model servers with tensor, pipeline, context or in-engine data parallelism above one whose
    /// pods are not placed as one gang. Where one instance spans several pods, all of them have to
    /// belong to one scheduling group whose minimum is exactly their number, on a scheduler that
    /// enforces it. Where all ranks fit one pod, any scheduler places it whole, but it still belongs
    /// on the gang scheduler and in a queue (`gangScheduler.singlePod` in the policy decides); its
    /// minimum is 1, never the number of replicas, which are independent of each other.
    ///
    /// KServe's, Grove's and Dynamo's services are judged part by part and never filled. KServe runs the
    /// head and the workers of an `InferenceService` as two Deployments, which only a PodGroup made
    /// beside them joins; of an `LLMInferenceService` with `worker` it makes a LeaderWorkerSet. A
    /// `PodCliqueSet` is as much of a gang as its cliques' `minAvailable` says. What a runtime, a base
    /// configuration or an operator adds is not seen, and nothing is denied for it.
    ///
    /// Ranks are read off the engine's own command line and environment, and off the ConfigMaps of the
    /// same world; what cannot be read is unknown, and nothing is denied for it. Nor is anything denied for a queue or a group object that
    /// is not there, or not to be seen: what is applied together arrives in any order, so that is
    /// warned about. A parallelism that cannot start at all is the business of `parallelism-fits-pod`.
    ///
    /// # Why it hurts
    ///
    /// Seven of eight pods of a group serve nothing and hold seven GPUs, or seven nodes, until the
    /// eighth finds a place; two such groups can hold each other's last place for ever. Pods that
    /// bypass the gang scheduler take GPUs from under the groups that wait for them, and no quota
    /// counts them.
    ///
    /// # Example
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata:
    ///   name: llama-405b
    ///   namespace: inference
    ///   labels: { kai.scheduler/queue: inference }
    ///   annotations: { kai.scheduler/batch-min-member: "7" }
    /// spec:
    ///   replicas: 8
    ///   strategy: { type: Recreate }
    ///   selector: { matchLabels: { app: llama-405b } }
    ///   template:
    ///     metadata: { labels: { app: llama-405b } }
    ///     spec:
    ///       schedulerName: kai-scheduler
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-405B, -tp=8, -pp=8, --nnodes=8]
    ///           resources: { limits: { nvidia.com/gpu: 8 } }
    /// ```
    ///
    /// # Instead
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata:
    ///   name: llama-405b
    ///   namespace: inference
    ///   labels: { kai.scheduler/queue: inference }
    ///   annotations: { kai.scheduler/batch-min-member: "8" }
    /// spec:
    ///   replicas: 8
    ///   strategy: { type: Recreate }
    ///   selector: { matchLabels: { app: llama-405b } }
    ///   template:
    ///     metadata: { labels: { app: llama-405b } }
    ///     spec:
    ///       schedulerName: kai-scheduler
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-405B, -tp=8, -pp=8, --nnodes=8]
    ///           resources: { limits: { nvidia.com/gpu: 8 } }
    /// ```
    ///
    /// # Sources
    ///
    /// - KAI Scheduler v0.18.0, `pkg/podgrouper/podgrouper/plugins`: a Deployment becomes one
    ///   PodGroup whose minimum is the annotation `kai.scheduler/batch-min-member`, 1 where it is
    ///   silent; a group below its minimum for 60 s is evicted as a whole (`stalegangeviction`).
    /// - Volcano, `pkg/controllers/podgroup/pg_controller_handler.go`, and issue 4739 on rolling
    ///   updates of gangs.
    /// - LeaderWorkerSet v0.10; kubernetes/enhancements KEP-4671 and KEP-6276.
    /// - KServe, `pkg/controller/v1beta1/inferenceservice/components/predictor.go` and
    ///   `pkg/controller/v1alpha2/llmisvc`; Grove, `operator/api/core/v1alpha1`; Dynamo,
    ///   `deploy/operator/internal/dynamo/grove.go` (2026-08).
    pub static GANG_SCHEDULING = Rule {
        id: "gang-scheduling",
        summary: "A model whose ranks span pods is not placed all or nothing, or bypasses the gang scheduler",
        group: Workloads,
        kinds: kinds::WORKLOADS,
        labels: &["kai.scheduler/queue", "project", "runai/queue", "yunikorn.apache.org/queue", "queue", "gangplank.dev/model-server"],
        annotations: &[
            "kai.scheduler/batch-min-member",
            "kai.scheduler/skip-podgrouper",
            "nvidia.com/kai-scheduler-queue",
            "pod-group-name",
            "serving.kserve.io/deploymentMode",
            "scheduling.volcano.sh/group-min-member",
        ],
        level: Deny,
        fills: Some("schedulerName, queue and minimum of the declared gang scheduler, and Recreate for a gang, on CREATE"),
        params: NoParams,
        check: check,
        fill: fill
    }
}

/// The annotation by which a DynamoGraphDeployment names its KAI queue (ai-dynamo/dynamo
/// deploy/operator/internal/consts/consts.go).
const DYNAMO_QUEUE: &str = "nvidia.com/kai-scheduler-queue";

/// What the API server puts where a schedulerName is silent.
const DEFAULT_SCHEDULER: &str = "default-scheduler";

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    cx.each_serving(out, |serving, out| {
        let Some(case) = Case::of(cx, serving) else {
            return;
        };
        match serving.spread {
            Spread::SinglePod => case.single_pod(out),
            Spread::Group(pods) => case.group(pods, out),
            Spread::Unknown => case.unknown(out),
            Spread::One | Spread::Misfit { .. } => {}
        }
    });
}

fn fill(cx: &Context<'_, NoParams>, edits: &mut Edits) {
    // Kinds of several workloads are never filled.
    let [serving] = cx.servings() else { return };
    let Some(case) = Case::of(cx, serving) else {
        return;
    };
    let Some(members) = case.fillable_members() else {
        return;
    };
    if cx.subject.operation == Operation::Update {
        case.carry(members, edits);
    } else {
        case.complete(members, edits);
    }
}

/// What is known of the queue that a workload goes to.
enum QueueState<'a> {
    /// One is named, or none needs to be.
    Settled,
    /// One is named that is known not to exist.
    Nowhere(&'a str),
    /// None is named, and the policy maps the namespace to this one.
    Mapped(&'a str),
    /// None is named, and none is known.
    Missing,
}

/// What makes a gang of a kind's pods under a scheduler.
enum Mechanism<'a> {
    /// An annotation of the owner holds the minimum.
    Annotation(&'a str),
    /// A group object that somebody makes.
    External(&'a External),
    /// The scheduler knows the kind's groups by itself.
    Native,
    /// A group object that every gang needs; its label or pod spec member.
    Reference(String),
    /// Task groups in the template's annotations.
    TaskGroups,
    /// Nothing.
    None,
}

/// A server with several ranks and the scheduler that the policy declares.
struct Case<'c, 'a> {
    cx: &'c Context<'a, NoParams>,
    serving: &'a Serving<'a>,
    scheduler: &'a Scheduler,
    /// The `schedulerName` it is installed under.
    wanted: &'a str,
    version: Option<SchedulerVersion>,
    /// Whether ranks span pods.
    grouped: bool,
    /// What to write instead, the same for every fault.
    remedy: OnceCell<String>,
}

impl<'c, 'a> Case<'c, 'a> {
    fn of(cx: &'c Context<'a, NoParams>, serving: &'a Serving<'a>) -> Option<Self> {
        let declared = &cx.policy.gang_scheduler;
        if declared.name == SchedulerName::None {
            return None;
        }
        let grouped = matches!(serving.spread, Spread::Group(_));
        let catalog = Schedulers::builtin();
        let (scheduler, version) = if declared.name == SchedulerName::Auto {
            // What the object itself asks for is the best sign of what the cluster serves.
            let asked = serving.set.template.spec_text("schedulerName")?;
            let row = catalog
                .schedulers
                .iter()
                .find(|row| row.scheduler_name == asked)?;
            (row, declared.version)
        } else {
            (catalog.find(declared.name.as_str())?, declared.version)
        };
        let wanted = declared
            .scheduler_name
            .as_deref()
            .unwrap_or(&scheduler.scheduler_name);
        Some(Self {
            cx,
            serving,
            scheduler,
            wanted,
            version,
            grouped,
            remedy: OnceCell::new(),
        })
    }

    fn kind(&self) -> Kind {
        self.serving.workload.kind
    }

    /// `vLLM's TP 8 × PP 2`.
    fn ranks(&self) -> String {
        format!(
            "{}'s {}",
            self.serving.server.title(),
            self.serving.server.parallelism.describe()
        )
    }

    fn namespace(&self) -> String {
        match &self.cx.subject.namespace {
            Some(namespace) => format!("namespace \"{namespace}\""),
            None => "its namespace".to_owned(),
        }
    }

    /// The scheduler in words, with the version where it matters.
    fn title(&self) -> String {
        let versioned = self.scheduler.minimum.iter().any(|row| row.since.is_some());
        if !versioned {
            return self.scheduler.title.clone();
        }
        match self.version {
            Some(version) => format!("{} {}", self.scheduler.title, String::from(version)),
            None => format!(
                "{} (version not declared, taken for an old one)",
                self.scheduler.title
            ),
        }
    }

    /// What a fault is recognised by on another version of the object. The number of replicas, which
    /// autoscalers move, is no part of it.
    fn fingerprint(&self, fault: &str, members: u64) -> String {
        // Ray's workers come and go by its autoscaler, and with them the group.
        let group = if self.kind() == Kind::Ray {
            "cluster".to_owned()
        } else if self.grouped {
            format!("group of {members}")
        } else {
            "pod".to_owned()
        };
        format!("{fault}:{:?}:{group}:{}", self.kind(), self.wanted)
    }

    /// Pod sets that are part of the instance, those without accelerators included: a gang without
    /// its leader is none.
    fn sets(&self) -> impl Iterator<Item = &PodSet<'a>> {
        self.serving.workload.live_sets()
    }

    fn scheduler_path(set: &PodSet<'_>) -> FieldPath {
        set.template.spec_path().key("schedulerName")
    }

    /// The pod sets that go to another scheduler, and the one that each names.
    fn elsewhere(&self) -> impl Iterator<Item = (FieldPath, &'a str)> {
        self.sets().filter_map(|set| {
            let named = match set.template.spec_text("schedulerName") {
                None if self.kind().picks_scheduler() => return None,
                named => named.unwrap_or(DEFAULT_SCHEDULER),
            };
            (named != self.wanted).then(|| (Self::scheduler_path(set), named))
        })
    }

    fn is_placed(&self) -> bool {
        self.elsewhere().next().is_none()
    }

    /// The pods that are asked for. Where the object is silent about replicas an autoscaler of the
    /// same world tells, and where none is seen nobody does: `None`.
    fn pods(&self) -> Option<u64> {
        let workload = &self.serving.workload;
        let have = workload.size();
        let scaled = self.kind().is_flat() && self.kind() != Kind::Job;
        // Silence means one.
        if !scaled || have != 1 {
            return Some(have);
        }
        let subject = self.cx.subject;
        let written = of_field(subject, &["spec", "replicas"], &json!(1), None);
        if written == Provenance::Explicit {
            return Some(have);
        }
        let target = ScaleTarget {
            group: subject.group(),
            kind: &subject.kind,
            name: &subject.name,
        };
        let facts = self.cx.facts;
        facts.least_replicas(&target, subject.namespace.as_deref())
    }

    /// Whether the pods that are asked for cannot be one group, or none.
    fn is_misshapen(&self, members: u64) -> bool {
        let Some(have) = self.pods() else {
            return false;
        };
        let partly = have < members && self.joins_a_group();
        self.kind().is_flat() && have != members && have != 0 && !partly
    }

    /// Whether the pods name a group object, which may hold the pods of other owners, too: a head
    /// and its workers as two Deployments.
    fn joins_a_group(&self) -> bool {
        match self.mechanism() {
            Mechanism::External(external) => {
                self.version >= Some(external.since)
                    && self.skips_grouping(external)
                    && self
                        .group_named(external)
                        .is_some_and(|name| !name.is_empty())
            }
            Mechanism::Reference(named) => self.reference_named(&named).1.is_some(),
            Mechanism::TaskGroups => self.has_task_groups_of_others(),
            _ => false,
        }
    }

    /// Whether the controller, which we do not see, decides where the pods go.
    fn is_left_to_controller(&self) -> bool {
        self.kind().picks_scheduler()
            && self
                .sets()
                .any(|set| set.template.spec_text("schedulerName").is_none())
    }

    fn queue_key(&self) -> Option<FieldPath> {
        let label = self.scheduler.queue.as_ref()?.label.as_ref()?;
        Some(match self.kind() {
            // Where the controller surely takes it to the pods.
            Kind::LlmInferenceService | Kind::PodCliqueSet => {
                let template = &self.serving.set.template;
                template.metadata_path().keys(&["labels", label])
            }
            _ => FieldPath::of(&["metadata", "labels", label]),
        })
    }

    /// One of the owner's labels, where it reaches the pods.
    fn owner_label(&self, key: &str) -> Option<&'a str> {
        let workload = &self.serving.workload;
        let passed_on = self.kind().passes_labels_on();
        workload.label(key).filter(|_| passed_on)
    }

    fn queue(&self) -> QueueState<'a> {
        let Some(queue) = &self.scheduler.queue else {
            return QueueState::Settled;
        };
        let known = |name: &str| self.cx.facts.queue(name);
        if self.kind() == Kind::DynamoGraph {
            // Dynamo's operator puts the label itself, with a queue of its own where none is named.
            let named = self.serving.workload.annotation(DYNAMO_QUEUE);
            return match named {
                Some(name) if self.scheduler.name == "kai" && known(name) == Known::Absent => {
                    QueueState::Nowhere(name)
                }
                _ => QueueState::Settled,
            };
        }
        if self.is_left_to_controller() {
            return QueueState::Settled;
        }
        let named = queue.label.iter().chain(&queue.also).find_map(|key| {
            self.owner_label(key)
                .or_else(|| self.serving.set.template.label(key))
                .filter(|name| !name.is_empty())
        });
        match named {
            Some(name) if self.scheduler.name == "kai" && known(name) == Known::Absent => {
                QueueState::Nowhere(name)
            }
            Some(_) => QueueState::Settled,
            None if queue.optional => QueueState::Settled,
            None => {
                let namespace = self.cx.subject.namespace.as_deref().unwrap_or_default();
                if let Some(mapped) = self.cx.policy.queue_for(namespace) {
                    return QueueState::Mapped(mapped);
                }
                let default = queue.default.as_deref().map(known);
                if default == Some(Known::Present(())) {
                    QueueState::Settled
                } else {
                    QueueState::Missing
                }
            }
        }
    }

    fn minimum_key(&self) -> Option<&'a str> {
        let kind = match self.kind() {
            Kind::Deployment => "Deployment",
            Kind::StatefulSet => "StatefulSet",
            Kind::ReplicaSet => "ReplicaSet",
            Kind::Rollout => "Rollout",
            Kind::Job => "Job",
            _ => return None,
        };
        self.scheduler.minimum(kind, self.version)
    }

    fn mechanism(&self) -> Mechanism<'a> {
        let scheduler = self.scheduler;
        if let Some(external) = &scheduler.external
            && (self.kind().is_flat() || self.kind() == Kind::InferenceService)
            && (self.skips_grouping(external) || self.group_named(external).is_some())
        {
            return Mechanism::External(external);
        }
        if !self.kind().is_flat() {
            let workload = &self.serving.workload;
            let grouped = workload.grouped;
            return if grouped && matches!(scheduler.name.as_str(), "kai" | "volcano" | "runai") {
                Mechanism::Native
            } else if grouped && workload.groups <= 1 && self.names_task_groups() {
                // Several groups of one template would be one application, and one gang.
                Mechanism::TaskGroups
            } else {
                Mechanism::None
            };
        }
        if let Some(key) = self.minimum_key() {
            return Mechanism::Annotation(key);
        }
        if let Some(group) = &scheduler.group {
            let named = group
                .label
                .clone()
                .or_else(|| group.field.clone())
                .unwrap_or_default();
            return Mechanism::Reference(named);
        }
        if scheduler.task_groups.is_some() {
            return Mechanism::TaskGroups;
        }
        Mechanism::None
    }

    /// The group object that the pods name. KServe takes an InferenceService's annotations to them.
    fn group_named(&self, external: &External) -> Option<&'a str> {
        let template = self.serving.set.template.annotation(&external.group);
        template.or_else(|| {
            let passed_on = self.kind() == Kind::InferenceService;
            let owner = self.serving.workload.annotation(&external.group);
            owner.filter(|_| passed_on)
        })
    }

    fn skips_grouping(&self, external: &External) -> bool {
        let key = &external.skip;
        self.serving.workload.annotation(key) == Some("true")
            || self.serving.set.template.annotation(key) == Some("true")
    }

    /// Whether the cluster is known not to run the scheduler.
    fn is_not_served(&self) -> bool {
        self.scheduler.name == "kai"
            && self.cx.facts.cluster().serves(Watched::Queue) == Some(false)
    }

    /// Whether KServe makes two Deployments of it.
    fn is_in_two(&self) -> bool {
        self.kind() == Kind::InferenceService && self.serving.workload.pods.len() > 1
    }

    /// Whether pods start one after the other.
    fn is_ordered(&self) -> bool {
        self.kind() == Kind::StatefulSet
            && at(&self.cx.subject.value, &["spec", "podManagementPolicy"])
                != Some(&Value::from("Parallel"))
    }
}

/// What a rolling update does to a gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// It takes pods from the running gang.
    Shrinks,
    /// The new gang never gets enough pods.
    Hangs,
    /// The new pods are no gang.
    Dissolves,
    /// None.
    None,
}

impl Harm {
    fn of(rolling: &Rolling, scheduler: &Scheduler, members: u64) -> Self {
        if rolling.unavailable >= 1 {
            Self::Shrinks
        } else if !scheduler.surge {
            Self::Dissolves
        } else if rolling.surge < members {
            Self::Hangs
        } else {
            Self::None
        }
    }
}

fn recreate_strategy() -> Value {
    json!({"type": "Recreate"})
}

/// A minimum as the schedulers read it: a positive number of 31 bits.
fn minimum(text: &str) -> Option<u64> {
    text.parse::<i32>()
        .ok()
        .filter(|number| *number >= 1)
        .and_then(|number| u64::try_from(number).ok())
}

fn severity(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod vectors;

#[cfg(test)]
mod tests;
