//! gang-scheduling: see the declaration.

use std::cell::OnceCell;

use serde_json::{Map, Value, json};

use crate::{
    catalog::schedulers::{External, GroupReference, Scheduler, Schedulers},
    declare_rule,
    facts::{KAI_GROUP, Known, Watched},
    finding::{Confidence, FieldPath, Finding, Level, Segment},
    policy::{SchedulerName, SchedulerVersion, SinglePod},
    provenance::{DefaultBlock, carry_over, of_field},
    rules::{Context, Edits, Findings, NoParams, kinds},
    subject::{
        Operation, at,
        pod_template::Count,
        rollout::Rolling,
        workload::{Kind, PodSet, Serving, Spread},
    },
};

mod skeleton;
mod unknown;

use skeleton::group_container;

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

    /// Whether the pods that are asked for cannot be one group, or none.
    fn is_misshapen(&self, members: u64) -> bool {
        let have = self.serving.workload.size();
        self.kind().is_flat() && have != members && have != 0
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
            let grouped = self.serving.workload.grouped;
            return if grouped && matches!(scheduler.name.as_str(), "kai" | "volcano" | "runai") {
                Mechanism::Native
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

    // ---- judging ----

    /// Whether every fault has to be told by itself. A change is excused by what the old object had
    /// already, fault by fault; for a new object the cause that the others follow from is enough.
    fn tells_each(&self) -> bool {
        self.cx.subject.operation == Operation::Update
    }

    /// One pod holds all ranks.
    fn single_pod(&self, out: &mut Findings) {
        let level = match self.cx.policy.gang_scheduler.single_pod {
            SinglePod::Allow => return,
            SinglePod::Warn => Level::Warn,
            SinglePod::Auto if self.is_not_served() => Level::Warn,
            SinglePod::Auto | SinglePod::Require => Level::Deny,
        };
        let gpus = match self.serving.accelerators.units {
            Count::Known(1) => "1 accelerator".to_owned(),
            Count::Known(units) => format!("{units} accelerators"),
            Count::Unknown => "its accelerators".to_owned(),
        };
        let why = format!("{} fills one pod of {gpus}", self.ranks());
        let hint = " (gangScheduler.singlePod in the policy can relax this for single pods)";
        self.placement(level, 1, &why, hint, out);
        if let Mechanism::External(external) = self.mechanism() {
            self.skipped_alone(level, external, out);
            return;
        }
        if let Some(key) = self.minimum_key()
            && let Some(found) = self.serving.workload.annotation(key)
        {
            // Another scheduler does not read it.
            let level = if self.is_placed() { Level::Deny } else { level };
            self.single_pod_minimum(level, key, found, out);
        }
    }

    /// The grouping is turned off, and nothing is put in its place. (A group that is named without
    /// that is overwritten with one of the pod's own, which is all that it needs.)
    fn skipped_alone(&self, level: Level, external: &External, out: &mut Findings) {
        let template = &self.serving.set.template;
        let named = template
            .annotation(&external.group)
            .is_some_and(|name| !name.is_empty());
        if named || !self.skips_grouping(external) || self.version < Some(external.since) {
            return;
        }
        let owner = FieldPath::of(&["metadata", "annotations", &external.skip]);
        let own = template.path().clone();
        let own = own.keys(&["metadata", "annotations", &external.skip]);
        let path = [owner, own]
            .into_iter()
            .find(|path| path.lookup(&self.cx.subject.value).is_some())
            .unwrap_or_default();
        // Another scheduler does not read it.
        let level = if self.is_placed() { Level::Deny } else { level };
        out.report_at(
            level,
            Finding::new(
                path,
                format!(
                    "{} turns the grouping off, but the pods name no group: they are never scheduled.",
                    external.skip
                ),
            )
            .value("true")
            .instead(format!("{}: \"false\"   # a pod that serves by itself needs no group\n", external.skip))
            .fingerprint(self.fingerprint(&self.if_read("external-unnamed"), 1)),
        );
    }

    fn single_pod_minimum(&self, level: Level, key: &str, found: &str, out: &mut Findings) {
        let path = FieldPath::of(&["metadata", "annotations", key]);
        let replicas = self.serving.workload.size();
        let title = &self.scheduler.title;
        let mut report = |level: Level, fault: &str, severity: u32, message: String| {
            out.report_at(
                level,
                Finding::new(path.clone(), message)
                    .value(found)
                    .instead(self.remedy(1))
                    .mends_all()
                    .fingerprint(self.fingerprint(fault, 1))
                    .severity(severity),
            );
        };
        match minimum(found) {
            Some(1) => {}
            Some(number) if number > replicas && replicas > 0 => report(
                level,
                &self.if_read("minimum-above"),
                severity(number),
                format!(
                    "The minimum {number} is above the {replicas} pods there are: {title} never \
                     schedules one of them."
                ),
            ),
            Some(number) => report(
                Level::Warn,
                "coupled",
                severity(number),
                format!(
                    "Each pod is an instance of its own ({}), but the minimum {number} lets none \
                     start until {number} can: replicas that could serve wait for one another.",
                    self.ranks()
                ),
            ),
            None if self.scheduler.name == "volcano" => {}
            None => report(
                level,
                &self.if_read("minimum-unreadable"),
                0,
                format!(
                    "\"{found}\" is no number of pods: {title} refuses to group the pods and they \
                     stay Pending."
                ),
            ),
        }
    }

    /// A fault that does nothing as long as the pods go to a scheduler that does not read it is
    /// another one than the same where it is read.
    fn if_read(&self, fault: &str) -> String {
        if self.is_placed() {
            fault.to_owned()
        } else {
            format!("{fault}-unread")
        }
    }

    /// Scheduler and queue, each a finding of its own: one that was there before excuses no other.
    fn placement(&self, level: Level, members: u64, why: &str, hint: &str, out: &mut Findings) {
        let queue = self.queue();
        let label = self
            .scheduler
            .queue
            .as_ref()
            .and_then(|queue| queue.label.as_deref())
            .unwrap_or_default();
        let queue_missing = format!(
            "No queue is known for {}: name one with the label {label}, or map the namespace in the \
             policy's gangScheduler.queues",
            self.namespace()
        );
        let mut elsewhere = self.elsewhere();
        let first = elsewhere.next();
        let placed = first.is_none();
        if let Some((path, named)) = first {
            let place = if self.grouped {
                format!(
                    "{named} places them one by one: some can hold their GPUs for ever while the rest \
                     stay Pending"
                )
            } else {
                format!(
                    "{named} places it past {}'s queues, and takes GPUs from under gangs that wait for \
                     them",
                    self.scheduler.title
                )
            };
            if !self.tells_each()
                && named == DEFAULT_SCHEDULER
                && kinds::is_filled(self.cx.subject.group(), &self.cx.subject.kind)
                && matches!(queue, QueueState::Missing)
            {
                let message = format!(
                    "{why}, but {place}. {queue_missing}, and the rest is filled in{hint}."
                );
                let finding = Finding::new(self.queue_key().unwrap_or_default(), message)
                    .instead(self.remedy(members))
                    .mends_all();
                out.report_at(level, finding);
                return;
            }
            let value = path
                .lookup(&self.cx.subject.value)
                .map(|_| Value::from(named));
            let finding = Finding::new(path, format!("{why}, but {place}{hint}."))
                .instead(self.remedy(members))
                .mends_all()
                .fingerprint(self.fingerprint("elsewhere", members))
                .severity(severity(1 + elsewhere.count() as u64));
            out.report_at(level, Finding { value, ..finding });
        }
        let (value, message, worse) = match queue {
            QueueState::Settled => return,
            // What is applied together may arrive in any order, and a watch is a moment behind.
            QueueState::Nowhere(name) => {
                let message = format!(
                    "There is no queue \"{name}\" yet: without it the pods are never scheduled."
                );
                let key = if self.kind() == Kind::DynamoGraph {
                    Some(FieldPath::of(&["metadata", "annotations", DYNAMO_QUEUE]))
                } else {
                    self.queue_key()
                };
                let finding = Finding::new(key.unwrap_or_default(), message)
                    .value(name)
                    .fingerprint(self.fingerprint("queue-absent", members));
                return out.report_at(level.min(Level::Warn), finding);
            }
            QueueState::Missing | QueueState::Mapped(_) if placed => (
                None,
                format!(
                    "{why} and goes to {}, but into no named queue: it falls into \"{}\", which may \
                     not exist, or into somebody else's quota.",
                    self.scheduler.title,
                    self.default_queue()
                ),
                1,
            ),
            QueueState::Mapped(name) => (
                None,
                format!(
                    "No queue is named; the policy maps {} to \"{name}\".",
                    self.namespace()
                ),
                1,
            ),
            QueueState::Missing => (None, format!("{queue_missing}."), 1),
        };
        let finding = Finding::new(self.queue_key().unwrap_or_default(), message)
            .instead(self.remedy(members))
            .mends_all()
            .fingerprint(self.fingerprint("queue", members))
            .severity(worse);
        out.report_at(level, Finding { value, ..finding });
    }

    fn default_queue(&self) -> &str {
        self.scheduler
            .queue
            .as_ref()
            .and_then(|queue| queue.default.as_deref())
            .unwrap_or_default()
    }

    /// Several pods hold the ranks of one instance.
    fn group(&self, members: u64, out: &mut Findings) {
        if self.is_misshapen(members) {
            self.shape(members, out);
            if !self.tells_each() {
                return;
            }
        }
        let mechanism = self.mechanism();
        if matches!(mechanism, Mechanism::None) {
            self.inexpressible(members, out);
            if !self.tells_each() {
                return;
            }
        }
        let why = format!(
            "{} spans {members} pods that only serve together",
            self.ranks()
        );
        self.placement(Level::Deny, members, &why, "", out);
        match mechanism {
            Mechanism::Annotation(key) => self.minimum(key, members, out),
            Mechanism::External(external) => self.external(external, members, out),
            Mechanism::Native => self.native(members, out),
            Mechanism::None => return,
            _ if !self.is_placed() && !self.tells_each() => {}
            Mechanism::Reference(named) => self.reference(&named, members, out),
            Mechanism::TaskGroups => self.task_groups(members, out),
        }
        if self.is_ordered() {
            out.report(
                Finding::new(
                    FieldPath::of(&["spec", "podManagementPolicy"]),
                    format!(
                        "OrderedReady makes each pod wait for the one before it to be Ready, but none \
                         of the {members} is Ready before all of them run."
                    ),
                )
                .instead(self.remedy(members))
.mends_all()
                .fingerprint(self.fingerprint("ordered", members)),
            );
        }
        if self.kind() == Kind::Deployment {
            self.strategy(members, out);
        }
    }

    /// The replicas are not one group.
    fn shape(&self, members: u64, out: &mut Findings) {
        let have = self.serving.workload.size();
        let field = if self.kind() == Kind::Job {
            "parallelism"
        } else {
            "replicas"
        };
        let kind = &self.cx.subject.kind;
        let ranks = self.ranks();
        let (fault, message) = if have < members {
            (
                "too-few",
                format!(
                    "{ranks} needs {members} pods of {} GPUs, but this {kind} has {have}: no instance \
                     is ever complete, and what runs holds its GPUs for nothing.",
                    self.units()
                ),
            )
        } else if have.is_multiple_of(members) {
            (
                "several",
                format!(
                    "{ranks} makes {} groups of {members} pods, and a {kind} cannot tell its pods' \
                     groups apart: a scheduler may start half of each.",
                    have / members
                ),
            )
        } else {
            (
                "several",
                format!(
                    "{ranks} needs groups of {members} pods, and {have} pods are no whole number of \
                     groups: the rest holds GPUs for nothing."
                ),
            )
        };
        out.report(
            Finding::new(FieldPath::of(&["spec", field]), message)
                .value(have)
                .instead(self.remedy(members))
                .mends_all()
                .fingerprint(self.fingerprint(fault, members)),
        );
    }

    fn units(&self) -> String {
        self.serving
            .accelerators
            .units
            .known()
            .map_or_else(|| "their".to_owned(), |units| units.to_string())
    }

    /// This scheduler makes no gang of this kind's pods.
    fn inexpressible(&self, members: u64, out: &mut Findings) {
        let set = &self.serving.set;
        let path = Self::scheduler_path(set);
        let value = path.lookup(&self.cx.subject.value).cloned();
        let kind = &self.cx.subject.kind;
        let in_two = self.kind() == Kind::InferenceService && self.serving.workload.pods.len() > 1;
        let pods = if in_two {
            "the two Deployments, head and workers, that KServe makes of them".to_owned()
        } else {
            format!("a {kind}'s pods")
        };
        let finding = Finding::new(
            path,
            format!(
                "{} spans {members} pods that only serve together, and {} makes no gang of {pods}: \
                 some can hold their GPUs for ever while the rest stay Pending.",
                self.ranks(),
                self.title()
            ),
        )
        .instead(self.remedy(members))
        .mends_all()
        .fingerprint(self.fingerprint("inexpressible", members));
        let finding = Finding { value, ..finding };
        if self.kind().is_flat() || in_two {
            out.report(finding);
        } else {
            out.report(finding.confidence(Confidence::Unknown));
        }
    }

    /// The minimum of a gang of `members`.
    fn minimum(&self, key: &str, members: u64, out: &mut Findings) {
        let title = &self.scheduler.title;
        let ranks = self.ranks();
        let found = self.serving.workload.annotation(key);
        let (fault, lacking, message) = match found.map(minimum) {
            None if !self.is_placed() && !self.tells_each() => return,
            None => (
                "minimum-below".to_owned(),
                members.saturating_sub(1),
                format!(
                    "{ranks} spans {members} pods, but {title} takes a silent minimum for 1: it starts \
                     them one by one, and some can hold their GPUs for ever while the rest stay \
                     Pending."
                ),
            ),
            Some(Some(number)) if number == members => return,
            Some(Some(number)) if number < members => (
                "minimum-below".to_owned(),
                members - number,
                format!(
                    "The gang may start with {number} of the {members} pods that {ranks} needs: \
                     {number} pods hold their GPUs and serve nothing until the rest find a place."
                ),
            ),
            Some(Some(number)) => (
                self.if_read("minimum-above"),
                0,
                if number > self.serving.workload.size().max(members) {
                    format!(
                        "The minimum {number} is above the {members} pods of the gang: none is ever \
                         scheduled."
                    )
                } else {
                    format!(
                        "The minimum {number} is above the {members} pods of one instance: instances \
                         wait for one another."
                    )
                },
            ),
            Some(None) if self.scheduler.name == "volcano" => (
                "minimum-below".to_owned(),
                members.saturating_sub(1),
                format!(
                    "\"{}\" is no number, and Volcano takes it for 1: there is no gang.",
                    found.unwrap_or_default()
                ),
            ),
            Some(None) => (
                self.if_read("minimum-unreadable"),
                0,
                format!(
                    "\"{}\" is no number of pods: {title} refuses to group the pods and they stay \
                     Pending.",
                    found.unwrap_or_default()
                ),
            ),
        };
        let finding = Finding::new(FieldPath::of(&["metadata", "annotations", key]), message)
            .instead(self.remedy(members))
            .mends_all()
            .fingerprint(self.fingerprint(&fault, members))
            .severity(severity(lacking));
        let value = found.map(Value::from);
        out.report(Finding { value, ..finding });
    }

    /// A group made by somebody else: three things have to come together.
    fn external(&self, external: &External, members: u64, out: &mut Findings) {
        let template = &self.serving.set.template;
        let annotations = template.metadata_path().key("annotations");
        let named = self.group_named(external).filter(|name| !name.is_empty());
        let path = annotations.key(&external.group);
        let finding = |fault: &str, message: String| {
            Finding::new(path.clone(), message)
                .instead(self.remedy(members))
                .mends_all()
                .fingerprint(self.fingerprint(fault, members))
        };
        if self.version < Some(external.since) {
            out.report(finding(
                "external-unknown",
                format!(
                    "{} knows no groups made by others: it makes its own, of one pod each.",
                    self.title()
                ),
            ));
            return;
        }
        let Some(name) = named else {
            out.report(finding(
                "external-unnamed",
                format!(
                    "{} turns the grouping off, but the pods name no group: they are never scheduled.",
                    external.skip
                ),
            ));
            return;
        };
        if !self.skips_grouping(external) {
            out.report(
                finding(
                    "external-overwritten",
                    format!(
                        "Without {}: \"true\" {} overwrites the group \"{name}\" with one of its own: \
                         this is no gang.",
                        external.skip, self.scheduler.title
                    ),
                )
                .value(name),
            );
            return;
        }
        let namespace = self.cx.subject.namespace.as_deref();
        match self.cx.facts.pod_group(KAI_GROUP, namespace, name) {
            Known::Unknown => out.report(
                finding(
                    "external-unseen",
                    format!(
                        "Whether the PodGroup \"{name}\" is there with a minMember of {members} cannot be \
                         seen from here; without it the pods are never scheduled."
                    ),
                )
                .value(name)
                .confidence(Confidence::Unknown),
            ),
            // What is applied together may arrive in any order, and a watch is a moment behind.
            Known::Absent => out.report_at(
                Level::Warn,
                finding("external-absent", format!("There is no PodGroup \"{name}\" yet: without it the pods are never scheduled."))
                    .value(name),
            ),
            Known::Present(group) => {
                let minimum = group.minimum;
                if minimum != Some(members) {
                    let above = minimum.is_some_and(|minimum| minimum > members);
                    let found = minimum.map_or_else(|| "none".to_owned(), |n| n.to_string());
                    out.report(
                        finding(
                            if above { "external-above" } else { "external-below" },
                            format!(
                                "The minMember of PodGroup \"{name}\" is {found}, but {} needs all \
                                 {members} pods.",
                                self.ranks()
                            ),
                        )
                        .value(name)
                        .severity(severity(members.saturating_sub(minimum.unwrap_or(0)))),
                    );
                }
            }
        }
    }

    /// Kinds whose groups the scheduler knows: what can still break them.
    fn native(&self, members: u64, out: &mut Findings) {
        let value = &self.cx.subject.value;
        if self.kind() == Kind::LeaderWorkerSet
            && at(value, &["spec", "startupPolicy"]) == Some(&Value::from("LeaderReady"))
        {
            out.report_at(
                Level::Warn,
                Finding::new(
                    FieldPath::of(&["spec", "startupPolicy"]),
                    format!(
                        "Under LeaderReady the leader is placed alone, with a minimum of 1, and may hold \
                         its GPUs while the other {} pods find no place.",
                        members.saturating_sub(1)
                    ),
                )
                .value("LeaderReady")
                .instead(yaml(&json!({"spec": {"startupPolicy": "LeaderCreated"}})))
                .fingerprint(self.fingerprint("leader-ready", members)),
            );
        }
        if self.kind() == Kind::PodCliqueSet {
            self.cliques(members, out);
        }
        if self.kind() == Kind::Ray {
            // An autoscaler that has started more than the minimum must be let do so.
            let autoscales = self.sets().any(|set| set.resizes);
            let level = if autoscales { Level::Warn } else { Level::Deny };
            for set in self.sets().filter(|set| set.role == "worker") {
                let Some(group) = set.template.path().parent() else {
                    continue;
                };
                let size = |key: &str| group.clone().key(key).lookup(value)?.as_u64();
                if let (Some(least), Some(replicas)) = (size("minReplicas"), size("replicas"))
                    && (1..replicas).contains(&least)
                {
                    let name = group.clone().key("groupName");
                    let name = name.lookup(value).and_then(Value::as_str);
                    let fault = format!("ray-minimum-{}", name.unwrap_or_default());
                    out.report_at(
                        level,
                        Finding::new(
                            group.clone().key("minReplicas"),
                            format!(
                                "{} counts minReplicas into the gang: with {least} of {replicas} workers \
                                 it may start short of {}.",
                                self.scheduler.title,
                                self.ranks()
                            ),
                        )
                        .value(least)
                        .instead(format!("minReplicas: {replicas}"))
                        .fingerprint(self.fingerprint(&fault, members))
                        .severity(severity(replicas - least)),
                    );
                }
            }
        }
    }

    /// What Grove makes its gangs of: each clique's `minAvailable`, its replicas where it is silent.
    fn cliques(&self, members: u64, out: &mut Findings) {
        let value = &self.cx.subject.value;
        for set in self.sets() {
            let Some(spec) = set.template.path().parent() else {
                continue;
            };
            let path = spec.key("minAvailable");
            // A scaling group's replica is one instance; a clique alone may hold several.
            let needed = if set.role == "member" {
                set.count
            } else {
                members.min(set.count)
            };
            let least = path.lookup(value).and_then(Value::as_u64);
            let Some(least) = least.filter(|least| *least < needed) else {
                continue;
            };
            let name = set.template.path().parent().and_then(|spec| spec.parent());
            let name = name.and_then(|clique| clique.key("name").lookup(value)?.as_str());
            let fault = format!("clique-minimum-{}", name.unwrap_or_default());
            out.report(
                Finding::new(
                    path,
                    format!(
                        "The gang may start with {least} of the {needed} pods of this clique that {} \
                         needs: they hold their GPUs and serve nothing until the rest find a place.",
                        self.ranks()
                    ),
                )
                .value(least)
                .instead(format!("minAvailable: {needed}\n"))
                .fingerprint(self.fingerprint(&fault, members))
                .severity(severity(needed - least)),
            );
        }
        if self.is_left_to_controller() {
            out.report_at(
                Level::Warn,
                Finding::new(
                    Self::scheduler_path(&self.serving.set),
                    format!(
                        "{} spans {members} pods that only serve together, and where no scheduler is \
                         named Grove's own configuration decides it: its default places pods one by one.",
                        self.ranks()
                    ),
                )
                .instead(format!("podSpec:\n  schedulerName: {}\n", self.wanted))
                .confidence(Confidence::Unknown)
                .fingerprint(self.fingerprint("unnamed", members)),
            );
        }
    }

    /// Schedulers whose gangs need a group object that the pods name.
    fn reference(&self, named: &str, members: u64, out: &mut Findings) {
        let Some(group) = &self.scheduler.group else {
            return;
        };
        let template = &self.serving.set.template;
        let (path, name) = if group.label.is_some() {
            let path = template.metadata_path().keys(&["labels", named]);
            (path, template.label(named))
        } else {
            let keys: Vec<&str> = named.split('.').collect();
            let path = template.spec_path().keys(&keys);
            let name = path.lookup(&self.cx.subject.value).and_then(Value::as_str);
            (path, name)
        };
        let api = &group.api_group;
        let wanted = name
            .filter(|name| !name.is_empty())
            .unwrap_or(&self.cx.subject.name);
        let instead = self.group_object(group, wanted, members, &path);
        let finding = |fault: &str, message: String| {
            Finding::new(path.clone(), message)
                .instead(instead.clone())
                .fingerprint(self.fingerprint(fault, members))
        };
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            out.report(finding(
                "reference-unnamed",
                format!(
                    "{} spans {members} pods that only serve together, but they name no PodGroup of \
                     {api}: each is placed alone.",
                    self.ranks()
                ),
            ));
            return;
        };
        let namespace = self.cx.subject.namespace.as_deref();
        match self.cx.facts.pod_group(api, namespace, name) {
            Known::Present(group) => {
                if group.minimum != Some(members) {
                    out.report(
                        finding(
                            "reference-minimum",
                            format!(
                                "The minimum of PodGroup \"{name}\" is not the {members} pods that {} \
                                 needs.",
                                self.ranks()
                            ),
                        )
                        .value(name),
                    );
                }
            }
            Known::Absent => out.report_at(
                Level::Warn,
                finding(
                    "reference-absent",
                    format!(
                        "There is no PodGroup \"{name}\" yet: without it the pods stay Pending."
                    ),
                )
                .value(name),
            ),
            Known::Unknown => {}
        }
    }

    /// The group object that a gang needs, and how its pods name it.
    fn group_object(
        &self,
        group: &GroupReference,
        name: &str,
        members: u64,
        path: &FieldPath,
    ) -> String {
        // The versions that are served without a feature gate of their own: scheduler-plugins'
        // v1alpha1, and Kubernetes 1.37's v1beta1.
        let (version, spec) = if group.field.is_some() {
            let policy = json!({"gang": {"minCount": members}});
            ("v1beta1", json!({"schedulingPolicy": policy}))
        } else {
            ("v1alpha1", json!({"minMember": members}))
        };
        let mut metadata = Map::new();
        metadata.insert("name".into(), Value::from(name));
        if let Some(namespace) = &self.cx.subject.namespace {
            metadata.insert("namespace".into(), Value::from(namespace.as_str()));
        }
        let object = json!({
            "apiVersion": format!("{}/{version}", group.api_group), "kind": "PodGroup",
            "metadata": metadata, "spec": spec,
        });
        let mut pods = Value::Null;
        put(&mut pods, path, Value::from(name));
        format!("{}---\n{}", yaml(&object), yaml(&pods))
    }

    /// YuniKorn's task groups, which only bind in Hard style.
    fn task_groups(&self, members: u64, out: &mut Findings) {
        let Some(keys) = &self.scheduler.task_groups else {
            return;
        };
        let template = &self.serving.set.template;
        let annotations = template.metadata_path().key("annotations");
        let own = template.annotation(&keys.name).unwrap_or_default();
        let minimum = template
            .annotation(&keys.groups)
            .and_then(|text| serde_json::from_str::<Vec<Value>>(text).ok())
            .and_then(|groups| {
                groups
                    .iter()
                    .find(|group| group.get("name").and_then(Value::as_str) == Some(own))?
                    .get("minMember")?
                    .as_u64()
            });
        let hard = template.annotation(&keys.parameters).is_some_and(|text| {
            text.split_whitespace()
                .any(|part| part == "gangSchedulingStyle=Hard")
        });
        let groups = json!([{"name": own, "minMember": members}]).to_string();
        let instead = yaml(&json!({"spec": {"template": {"metadata": {"annotations": {
            keys.name.as_str(): if own.is_empty() { "ranks" } else { own },
            keys.groups.as_str(): groups,
            keys.parameters.as_str(): "gangSchedulingStyle=Hard",
        }}}}}));
        let mut report = |key: &str, fault: &str, lacking: u64, message: String| {
            out.report(
                Finding::new(annotations.clone().key(key), message)
                    .instead(instead.clone())
                    .fingerprint(self.fingerprint(fault, members))
                    .severity(severity(lacking)),
            );
        };
        if minimum != Some(members) {
            let above = minimum.is_some_and(|minimum| minimum > members);
            report(
                &keys.groups,
                if above {
                    "task-group-above"
                } else {
                    "task-group-below"
                },
                members.saturating_sub(minimum.unwrap_or(0)),
                format!(
                    "{} spans {members} pods that only serve together, but no task group with that \
                     minMember holds them.",
                    self.ranks()
                ),
            );
        }
        if !hard {
            report(
                &keys.parameters,
                "task-group-soft",
                0,
                "YuniKorn's gangs are Soft unless they say otherwise: when the time is up the pods \
                 are placed one by one."
                    .to_owned(),
            );
        }
    }

    /// A rolling update of a gang. Its bounds are those of the whole gang, however many pods there
    /// are just now.
    fn strategy(&self, members: u64, out: &mut Findings) {
        let Some(rolling) = Rolling::of_deployment(&self.cx.subject.value, members) else {
            return;
        };
        let finding = |fault: &str, message: String| {
            Finding::new(rolling.path.clone(), message)
                .instead(self.remedy(members))
                .mends_all()
                .fingerprint(self.fingerprint(fault, members))
        };
        match Harm::of(&rolling, self.scheduler, members) {
            Harm::Shrinks => {
                let unavailable = rolling.unavailable;
                out.report(
                    finding(
                        "rollout-shrinks",
                        format!(
                            "A rollout takes {unavailable} of {members} pods away at once: the gang \
                             falls below its minimum, {}.",
                            if self.scheduler.surge {
                                "and the new one never reaches it"
                            } else {
                                "and the scheduler evicts the rest of it"
                            }
                        ),
                    )
                    .severity(severity(unavailable)),
                );
            }
            Harm::Hangs => out.report(finding(
                "rollout-hangs",
                format!(
                    "A new revision is a gang of its own and needs {members} pods at once, but a \
                     rollout surges by {}: it never starts.",
                    rolling.surge
                ),
            )),
            Harm::Dissolves => out.report_at(
                Level::Warn,
                finding(
                    "rollout-dissolves",
                    format!(
                        "During a rollout the old pods satisfy the gang's minimum: the {members} new \
                         ones are placed one by one, not as a gang."
                    ),
                ),
            ),
            Harm::None => {}
        }
    }

    // ---- filling ----

    /// The gang's size, where filling is in question at all.
    fn fillable_members(&self) -> Option<u64> {
        match self.serving.spread {
            Spread::SinglePod => matches!(
                self.cx.policy.gang_scheduler.single_pod,
                SinglePod::Auto | SinglePod::Require
            )
            .then_some(1),
            Spread::Group(members) => {
                let mechanism = self.mechanism();
                let possible = matches!(mechanism, Mechanism::Annotation(_) | Mechanism::Native);
                // What was filled is put back whatever a scaler made of the replicas since.
                let whole =
                    self.cx.subject.operation == Operation::Update || !self.is_misshapen(members);
                (possible && whole).then_some(members)
            }
            Spread::One | Spread::Misfit { .. } | Spread::Unknown => None,
        }
    }

    fn complete(&self, members: u64, edits: &mut Edits) {
        let subject = self.cx.subject;
        if matches!(self.mechanism(), Mechanism::External(_)) {
            return;
        }
        let mut schedulers = Vec::new();
        for set in self.sets() {
            let named = set.template.spec_text("schedulerName");
            if named.unwrap_or(DEFAULT_SCHEDULER) == self.wanted {
                continue;
            }
            let path = Self::scheduler_path(set);
            let steps = path.steps();
            let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
            let default = Value::from(DEFAULT_SCHEDULER);
            let block = [(steps.as_slice(), default.clone())];
            let block = DefaultBlock { fields: &block };
            if !of_field(subject, &steps, &default, Some(&block)).fillable() {
                return;
            }
            schedulers.push(path);
        }
        let queue = match self.queue() {
            QueueState::Settled | QueueState::Nowhere(_) => None,
            QueueState::Mapped(name) => Some(name),
            QueueState::Missing => return,
        };
        let key = self.minimum_key();
        let minimum_silent = match key.map(|key| (self.serving.workload.annotation(key), key)) {
            None if self.grouped && self.kind().is_flat() => return,
            Some((Some(text), _)) if !self.is_met_by(text, members) => return,
            Some((None, _)) => true,
            None | Some(_) => false,
        };
        let recreate = if self.grouped && self.kind() == Kind::Deployment {
            match self.recreate(members) {
                Some(recreate) => recreate,
                None => return,
            }
        } else {
            false
        };
        if self.grouped && (self.ray_falls_short() || self.is_ordered()) {
            return;
        }
        let anything =
            !schedulers.is_empty() || queue.is_some() || (minimum_silent && self.grouped);
        if !anything && !recreate {
            return;
        }
        for path in schedulers {
            edits.set(path, self.wanted, self.scheduler_message());
        }
        if let (Some(name), Some(path)) = (queue, self.queue_key()) {
            edits.set(path, name, self.queue_message(name));
        }
        if let (true, Some(key)) = (minimum_silent, key) {
            let path = FieldPath::of(&["metadata", "annotations", key]);
            edits.set(path, members.to_string(), self.minimum_message(members));
        }
        if recreate {
            edits.set(
                FieldPath::of(&["spec", "strategy"]),
                recreate_strategy(),
                Self::recreate_message(),
            );
        }
    }

    /// Whether the pods are scheduled at all under a minimum that somebody wrote.
    fn is_met_by(&self, text: &str, members: u64) -> bool {
        match minimum(text) {
            Some(number) if self.grouped => number == members,
            Some(number) => {
                let replicas = self.serving.workload.size();
                number == 1 || number <= replicas || replicas == 0
            }
            // Volcano takes it for 1.
            None => !self.grouped && self.scheduler.name == "volcano",
        }
    }

    /// Whether the strategy is to be filled with Recreate; `None` where somebody wrote one that
    /// breaks the gang.
    fn recreate(&self, members: u64) -> Option<bool> {
        let subject = self.cx.subject;
        let Some(rolling) = Rolling::of_deployment(&subject.value, members) else {
            return Some(false);
        };
        let fields = default_strategy();
        let block = DefaultBlock { fields: &fields };
        let silent = fields
            .iter()
            .all(|(path, default)| of_field(subject, path, default, Some(&block)).fillable());
        if silent {
            return Some(true);
        }
        let harm = Harm::of(&rolling, self.scheduler, members);
        matches!(harm, Harm::Dissolves | Harm::None).then_some(false)
    }

    fn ray_falls_short(&self) -> bool {
        self.kind() == Kind::Ray
            && self.sets().filter(|set| set.role == "worker").any(|set| {
                let Some(group) = set.template.path().parent() else {
                    return false;
                };
                let size = |key: &str| {
                    group
                        .clone()
                        .key(key)
                        .lookup(&self.cx.subject.value)?
                        .as_u64()
                };
                matches!(
                    (size("minReplicas"), size("replicas")),
                    (Some(least), Some(replicas)) if (1..replicas).contains(&least)
                )
            })
    }

    /// On UPDATE: puts back what was filled when the object was made, and nothing else.
    fn carry(&self, members: u64, edits: &mut Edits) {
        let subject = self.cx.subject;
        let mut restore =
            |path: FieldPath, fill: Value, default: Option<&Value>, message: String| {
                let steps = path.steps();
                let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
                if carry_over(subject, &steps, &fill, default) {
                    edits.set(path, fill, message);
                }
            };
        for set in self.sets() {
            restore(
                Self::scheduler_path(set),
                Value::from(self.wanted),
                Some(&Value::from(DEFAULT_SCHEDULER)),
                self.scheduler_message(),
            );
        }
        let namespace = subject.namespace.as_deref().unwrap_or_default();
        if let (Some(path), Some(name)) = (self.queue_key(), self.cx.policy.queue_for(namespace)) {
            restore(path, Value::from(name), None, self.queue_message(name));
        }
        if let Some(key) = self.minimum_key() {
            restore(
                FieldPath::of(&["metadata", "annotations", key]),
                Value::from(members.to_string()),
                None,
                self.minimum_message(members),
            );
        }
        if self.grouped && self.kind() == Kind::Deployment {
            restore(
                FieldPath::of(&["spec", "strategy"]),
                recreate_strategy(),
                Some(&json!({
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}
                })),
                Self::recreate_message(),
            );
        }
    }

    fn scheduler_message(&self) -> String {
        format!("{} goes to the declared gang scheduler", self.ranks())
    }

    fn queue_message(&self, name: &str) -> String {
        format!(
            "the policy maps {} to the queue \"{name}\"",
            self.namespace()
        )
    }

    fn minimum_message(&self, members: u64) -> String {
        if self.grouped {
            format!("{} needs all {members} pods at once", self.ranks())
        } else {
            "each pod is an instance of its own".to_owned()
        }
    }

    fn recreate_message() -> String {
        "a rolling update would break the gang".to_owned()
    }

    // ---- what to write instead ----

    /// All that is wrong or missing, with the right values; where the kind cannot hold the gang, one
    /// that can.
    fn remedy(&self, members: u64) -> String {
        self.remedy
            .get_or_init(|| self.compose_remedy(members))
            .clone()
    }

    fn compose_remedy(&self, members: u64) -> String {
        let mechanism = self.mechanism();
        let misshapen = self.is_misshapen(members);
        if self.grouped && (misshapen || matches!(mechanism, Mechanism::None)) {
            let have = if misshapen {
                self.serving.workload.size()
            } else {
                members
            };
            return match self.kind() {
                Kind::InferenceService => self.outside_group(members),
                Kind::LlmInferenceService => self.with_workers(members),
                _ => self.skeleton(members, have.div_ceil(members.max(1)).max(1)),
            };
        }
        let object = &self.cx.subject.value;
        let mut out = Value::Null;
        if let Some(path) = self.queue_key() {
            let name = match self.queue() {
                QueueState::Mapped(name) => Some(name),
                QueueState::Missing => Some("<leaf queue>"),
                QueueState::Settled | QueueState::Nowhere(_) => None,
            };
            if let Some(name) = name {
                put(&mut out, &path, Value::from(name));
            }
        }
        let annotation = |key: &str| FieldPath::of(&["metadata", "annotations", key]);
        match mechanism {
            Mechanism::External(external) if self.grouped => {
                let template = &self.serving.set.template;
                let name = self
                    .group_named(external)
                    .filter(|name| !name.is_empty())
                    .unwrap_or(&self.cx.subject.name);
                let named = template.metadata_path().key("annotations");
                put(&mut out, &annotation(&external.skip), Value::from("true"));
                put(&mut out, &named.key(&external.group), Value::from(name));
            }
            _ => {
                if let Some(key) = self.minimum_key() {
                    let found = self.serving.workload.annotation(key);
                    let right = found.is_some_and(|text| minimum(text) == Some(members));
                    // The minimum of a single pod is 1 where it is silent, too.
                    let silent = found.is_none() && !self.grouped && self.is_placed();
                    if !right && !silent {
                        put(&mut out, &annotation(key), Value::from(members.to_string()));
                    }
                }
            }
        }
        if self.grouped
            && self.kind() == Kind::Deployment
            && Rolling::of_deployment(object, members)
                .is_some_and(|rolling| Harm::of(&rolling, self.scheduler, members) != Harm::None)
        {
            let path = FieldPath::of(&["spec", "strategy"]);
            put(&mut out, &path, recreate_strategy());
        }
        if self.grouped && self.is_ordered() {
            let path = FieldPath::of(&["spec", "podManagementPolicy"]);
            put(&mut out, &path, Value::from("Parallel"));
        }
        for (path, _) in self.elsewhere() {
            put(&mut out, &path, Value::from(self.wanted));
        }
        yaml(&out)
    }

    /// A PodGroup made beside an InferenceService, which joins the pods of its two Deployments.
    fn outside_group(&self, members: u64) -> String {
        let Some(external) = &self.scheduler.external else {
            return format!(
                "# an LLMInferenceService with spec.worker and spec.parallelism.pipeline: {members}, which \
                 KServe runs as a LeaderWorkerSet\n"
            );
        };
        let subject = self.cx.subject;
        let queue = match self.queue() {
            QueueState::Mapped(name) => name,
            QueueState::Settled => self
                .queue_key()
                .and_then(|key| key.lookup(&subject.value)?.as_str())
                .unwrap_or("<leaf queue>"),
            QueueState::Missing | QueueState::Nowhere(_) => "<leaf queue>",
        };
        let predictor = json!({
            "annotations": {external.skip.as_str(): "true", external.group.as_str(): subject.name},
            "schedulerName": self.wanted,
            "workerSpec": {"schedulerName": self.wanted},
        });
        let group = json!({
            "apiVersion": "scheduling.run.ai/v2alpha2", "kind": "PodGroup",
            "metadata": {"name": subject.name, "namespace": subject.namespace},
            "spec": {"minMember": members, "queue": queue},
        });
        format!(
            "{}---\n{}# or an LLMInferenceService with spec.worker, which KServe runs as a LeaderWorkerSet\n",
            yaml(&json!({"spec": {"predictor": predictor}})),
            yaml(&group),
        )
    }

    /// The part of an LLMInferenceService that makes KServe run it as a LeaderWorkerSet.
    fn with_workers(&self, members: u64) -> String {
        let set = &self.serving.set;
        let mut out = Value::Null;
        let Some(part) = set.template.path().parent() else {
            return String::new();
        };
        let containers: Vec<Value> = set
            .template
            .containers()
            .map(|container| group_container(container.value, "worker"))
            .collect();
        let worker = json!({"schedulerName": self.wanted, "containers": containers});
        let pipeline = part.clone().keys(&["parallelism", "pipeline"]);
        put(&mut out, &pipeline, Value::from(members));
        put(
            &mut out,
            &Self::scheduler_path(set),
            Value::from(self.wanted),
        );
        put(&mut out, &part.key("worker"), worker);
        yaml(&out)
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

fn default_strategy() -> [(&'static [&'static str], Value); 3] {
    [
        (&["spec", "strategy", "type"], Value::from("RollingUpdate")),
        (
            &["spec", "strategy", "rollingUpdate", "maxSurge"],
            Value::from("25%"),
        ),
        (
            &["spec", "strategy", "rollingUpdate", "maxUnavailable"],
            Value::from("25%"),
        ),
    ]
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

/// Puts a value into a sketch of an object. A list cannot be written in part: the place in it is
/// named instead.
fn put(sketch: &mut Value, path: &FieldPath, value: Value) {
    let mut at = sketch;
    for step in path.segments() {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let key = match step {
            Segment::Key(key) => key.clone(),
            Segment::Index(index) => format!("[{index}]"),
        };
        let Some(members) = at.as_object_mut() else {
            return;
        };
        at = members.entry(key).or_insert(Value::Null);
    }
    *at = value;
}

fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod vectors;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::*;
    use crate::{
        facts::Facts,
        finding::Verdict,
        policy::Policy,
        provenance::LAST_APPLIED,
        review::{Review, Skip, review},
        subject::{Door, Subject},
    };

    const MINIMUM: &str = "kai.scheduler/batch-min-member";

    /// A gang of eight as its author wrote it.
    fn written() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": "llm", "namespace": "inference",
                "labels": {"kai.scheduler/queue": "llm"}, "annotations": {}
            },
            "spec": {
                "replicas": 8,
                "selector": {"matchLabels": {"app": "llm"}},
                "template": {"metadata": {"labels": {"app": "llm"}}, "spec": {"containers": [{
                    "name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
                    "args": ["--model=m", "-tp=8", "-pp=8", "--nnodes=8"],
                    "resources": {"limits": {"nvidia.com/gpu": 8}}
                }]}}
            }
        })
    }

    /// With what the API server puts where the author was silent.
    fn arrived(mut object: Value) -> Value {
        let spec = &mut object["spec"];
        if spec["strategy"].is_null() {
            spec["strategy"] = json!({
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}
            });
        }
        let pod = &mut spec["template"]["spec"];
        if pod["schedulerName"].is_null() {
            pod["schedulerName"] = json!("default-scheduler");
        }
        if pod["terminationGracePeriodSeconds"].is_null() {
            pod["terminationGracePeriodSeconds"] = json!(30);
        }
        object
    }

    fn ask(door: Door, new: &Value, old: Option<&Value>) -> Review {
        let mut subject = Subject::from_manifest(Arc::new(new.clone())).unwrap();
        subject.door = door;
        if let Some(old) = old {
            subject.operation = Operation::Update;
            subject.old = Some(Arc::new(old.clone()));
        }
        review(
            &Policy::default(),
            &Facts::unknown(),
            &subject,
            Timestamp::UNIX_EPOCH,
        )
    }

    fn mutated(new: &Value, old: Option<&Value>) -> Value {
        let mut value = new.clone();
        json_patch::patch(&mut value, &ask(Door::Mutate, new, old).patch).unwrap();
        value
    }

    fn verdict(new: &Value, old: Option<&Value>) -> Verdict {
        ask(Door::Validate, new, old).verdict()
    }

    fn created() -> Value {
        mutated(&arrived(written()), None)
    }

    fn with_minimum(number: u64) -> Value {
        let mut object = created();
        object["metadata"]["annotations"][MINIMUM] = json!(number.to_string());
        object
    }

    #[test]
    fn a_created_gang_is_completed_and_then_judged_clean() {
        let made = created();
        assert_eq!(
            made["spec"]["template"]["spec"]["schedulerName"],
            "kai-scheduler"
        );
        assert_eq!(made["metadata"]["annotations"][MINIMUM], "8");
        assert_eq!(made["spec"]["strategy"], json!({"type": "Recreate"}));
        let findings = ask(Door::Validate, &made, None).findings;
        assert!(
            findings
                .iter()
                .all(|finding| finding.rule != GANG_SCHEDULING.id),
            "{findings:?}"
        );
        assert!(ask(Door::Mutate, &made, None).patch.0.is_empty());
        // Had the fill been lost, the unsafe default is denied.
        assert_eq!(verdict(&arrived(written()), None), Verdict::Deny);
    }

    #[test]
    fn replacing_with_the_file_that_was_created_changes_nothing() {
        let made = created();
        let mut expected = made.clone();
        expected["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(30);
        assert_eq!(mutated(&arrived(written()), Some(&made)), expected);
    }

    #[test]
    fn lowering_a_minimum_is_denied_and_raising_it_again_is_not() {
        assert_eq!(verdict(&with_minimum(7), Some(&created())), Verdict::Deny);
        assert_eq!(
            verdict(&with_minimum(6), Some(&with_minimum(7))),
            Verdict::Deny
        );
        assert_eq!(
            verdict(&with_minimum(7), Some(&with_minimum(6))),
            Verdict::Warn
        );
        let mut touched = with_minimum(7);
        touched["spec"]["revisionHistoryLimit"] = json!(3);
        assert_eq!(verdict(&touched, Some(&with_minimum(7))), Verdict::Warn);
        assert_ne!(verdict(&created(), Some(&with_minimum(7))), Verdict::Deny);
    }

    fn single(replicas: u64) -> Value {
        let mut object = written();
        object["spec"]["replicas"] = json!(replicas);
        let container = &mut object["spec"]["template"]["spec"]["containers"][0];
        container["args"] = json!(["--model=m", "-tp=8"]);
        arrived(object)
    }

    #[test]
    fn what_sleeps_at_no_replicas_is_filled_judged_and_kept() {
        let mut gang = arrived(written());
        gang["spec"]["replicas"] = json!(0);
        for (asleep, minimum) in [(single(0), "1"), (gang, "8")] {
            assert_eq!(verdict(&asleep, None), Verdict::Deny);
            let made = mutated(&asleep, None);
            assert_eq!(made["metadata"]["annotations"][MINIMUM], minimum);
            assert_ne!(
                verdict(&made, None),
                Verdict::Deny,
                "KEDA wakes it as it is"
            );
            // The file that was created is put again, and again when it was scaled meanwhile.
            for replicas in [0, 3, 8, 16] {
                let mut held = made.clone();
                held["spec"]["replicas"] = json!(replicas);
                let mut file = asleep.clone();
                file["spec"]["replicas"] = json!(replicas);
                let put = mutated(&file, Some(&held));
                let pods = |object: &Value| object["spec"]["template"]["spec"].clone();
                assert_eq!(pods(&put)["schedulerName"], pods(&held)["schedulerName"]);
                assert_eq!(put["metadata"], held["metadata"]);
                assert_eq!(put["spec"]["strategy"], held["spec"]["strategy"]);
            }
        }
    }

    #[test]
    fn a_violator_that_was_scaled_to_nothing_may_come_back() {
        assert_eq!(verdict(&single(1), Some(&single(0))), Verdict::Warn);
        let mut gang = arrived(written());
        gang["spec"]["replicas"] = json!(16);
        assert_eq!(
            verdict(&arrived(written()), Some(&gang)),
            Verdict::Warn,
            "an HPA made it 16"
        );
    }

    #[test]
    fn one_old_fault_excuses_no_other() {
        let without_queue = |mut object: Value| {
            object["metadata"]["labels"] = json!({});
            object
        };
        let dissolved = |mut object: Value| {
            object["metadata"]["annotations"] = json!({});
            object["spec"]["template"]["spec"]["schedulerName"] = json!("default-scheduler");
            object
        };
        let old = without_queue(created());
        assert_eq!(verdict(&old, None), Verdict::Deny);
        assert_eq!(verdict(&dissolved(old.clone()), Some(&old)), Verdict::Deny);
        // The minimum alone, while the pods are elsewhere anyway.
        let mut old = created();
        old["spec"]["template"]["spec"]["schedulerName"] = json!("default-scheduler");
        assert_eq!(verdict(&dissolved(old.clone()), Some(&old)), Verdict::Deny);
        // A shape that a scaler left behind.
        let mut old = created();
        old["spec"]["replicas"] = json!(7);
        assert_eq!(verdict(&dissolved(old.clone()), Some(&old)), Verdict::Deny);
        // A queue that is there, and one that is not.
        let mut touched = without_queue(created());
        touched["spec"]["revisionHistoryLimit"] = json!(3);
        let old = without_queue(created());
        assert_eq!(verdict(&touched, Some(&old)), Verdict::Warn);
    }

    #[test]
    fn each_fault_of_a_group_made_by_others_is_its_own() {
        let with = |owner: Value, template: Value| {
            let mut object = created();
            object["metadata"]["annotations"] = owner;
            object["spec"]["template"]["metadata"]["annotations"] = template;
            object
        };
        let skip = "kai.scheduler/skip-podgrouper";
        let whole = with(json!({skip: "true"}), json!({"pod-group-name": "llm"}));
        assert_eq!(
            verdict(&whole, None),
            Verdict::Warn,
            "the group is not seen"
        );
        let overwritten = with(json!({}), json!({"pod-group-name": "llm"}));
        let nameless = with(json!({skip: "true"}), json!({}));
        for (old, new) in [
            (&whole, &overwritten),
            (&whole, &nameless),
            (&overwritten, &nameless),
            (&nameless, &overwritten),
        ] {
            assert_eq!(verdict(new, Some(old)), Verdict::Deny, "{new}");
        }
    }

    #[test]
    fn a_minimum_of_single_pods_that_gets_worse_is_denied() {
        let with = |minimum: &str, replicas: u64| {
            let mut object = mutated(&single(replicas), None);
            object["metadata"]["annotations"][MINIMUM] = json!(minimum);
            object
        };
        assert_eq!(verdict(&with("4", 4), None), Verdict::Warn);
        assert_eq!(verdict(&with("x", 4), Some(&with("4", 4))), Verdict::Deny);
        assert_eq!(verdict(&with("5", 4), Some(&with("4", 4))), Verdict::Deny);
        assert_eq!(verdict(&with("x", 4), Some(&with("5", 4))), Verdict::Deny);
    }

    #[test]
    fn rays_autoscaler_is_never_locked_out() {
        let ray = |replicas: u64, scheduler: &str| {
            let pod = |args: &[&str]| {
                json!({"spec": {"schedulerName": scheduler, "containers": [{
                    "name": "ray", "image": "vllm/vllm-openai:v0.11.0",
                    "command": ["sh", "-c", args.join(" ")],
                    "resources": {"limits": {"nvidia.com/gpu": 8}}
                }]}})
            };
            json!({
                "apiVersion": "ray.io/v1", "kind": "RayCluster",
                "metadata": {"name": "llm", "labels": {"kai.scheduler/queue": "llm"}},
                "spec": {
                    "enableInTreeAutoscaling": true,
                    "headGroupSpec": {"template": pod(&["ray start --head && vllm serve m -tp 8 -pp 2"])},
                    "workerGroupSpecs": [{
                        "groupName": "gpu", "replicas": replicas,
                        "minReplicas": 1, "maxReplicas": 8,
                        "template": pod(&["ray start --block"])
                    }]
                }
            })
        };
        let clean = |replicas| ray(replicas, "kai-scheduler");
        let bad = |replicas| ray(replicas, "default-scheduler");
        assert_ne!(verdict(&clean(2), Some(&clean(1))), Verdict::Deny);
        assert_eq!(verdict(&bad(1), None), Verdict::Deny);
        assert_eq!(verdict(&bad(3), Some(&bad(1))), Verdict::Warn);
        let mut asleep = bad(0);
        asleep["spec"]["workerGroupSpecs"][0]["minReplicas"] = json!(0);
        assert_eq!(verdict(&bad(1), Some(&asleep)), Verdict::Warn);
    }

    #[test]
    fn nothing_that_somebody_wrote_is_filled_over() {
        for (change, keys) in [
            (
                json!("default-scheduler"),
                ["template", "spec", "schedulerName"].as_slice(),
            ),
            (
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%"}}),
                ["strategy"].as_slice(),
            ),
        ] {
            let mut object = written();
            object["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(300);
            let mut at = &mut object["spec"];
            for key in keys {
                at = &mut at[*key];
            }
            *at = change;
            let document = object.to_string();
            object["metadata"]["annotations"][LAST_APPLIED] = json!(document);
            let object = arrived(object);
            assert_eq!(mutated(&object, None), object, "{keys:?}");
            assert_eq!(verdict(&object, None), Verdict::Deny, "{keys:?}");
        }
        let mut lowered = arrived(written());
        lowered["metadata"]["annotations"][MINIMUM] = json!("7");
        assert_eq!(mutated(&lowered, None), lowered);
    }

    #[test]
    fn a_running_fleet_is_not_restarted() {
        let old = arrived(written());
        let mut new = old.clone();
        new["spec"]["revisionHistoryLimit"] = json!(3);
        assert_eq!(mutated(&new, Some(&old)), new);
        assert_eq!(
            verdict(&new, Some(&old)),
            Verdict::Warn,
            "it was there before"
        );
    }

    #[test]
    fn children_are_judged_at_their_parent_and_never_filled() {
        let owned = |api: &str, kind: &str| {
            let mut object = arrived(written());
            object["metadata"]["ownerReferences"] = json!([{
                "apiVersion": api, "kind": kind, "name": "llm", "uid": "u", "controller": true
            }]);
            object
        };
        let mut child = owned("serving.kserve.io/v1beta1", "InferenceService");
        assert_eq!(
            verdict(&child, None),
            Verdict::Deny,
            "no name that KServe gives"
        );
        child["metadata"]["name"] = json!("llm-predictor");
        assert_eq!(mutated(&child, None), child);
        assert_eq!(verdict(&child, None), Verdict::Warn);
        let mut set = owned("apps/v1", "Deployment");
        set["kind"] = json!("ReplicaSet");
        assert_eq!(ask(Door::Validate, &set, None).skipped, Some(Skip::Child));
        let claimed = owned("example.dev/v1", "Anything");
        assert_eq!(verdict(&claimed, None), Verdict::Deny);
    }

    #[test]
    fn the_skeleton_is_a_complete_leader_worker_set() {
        let mut object = written();
        object["spec"]["replicas"] = json!(16);
        object["spec"]["template"]["metadata"]["annotations"] =
            json!({"prometheus.io/scrape": "true", "pod-group-name": "old"});
        let pod = &mut object["spec"]["template"]["spec"];
        pod["serviceAccountName"] = json!("llm");
        pod["dnsPolicy"] = json!("ClusterFirst");
        pod["restartPolicy"] = json!("Always");
        pod["affinity"] = json!({"nodeAffinity": {}});
        pod["initContainers"] = json!([{"name": "fetch", "image": "fetch"}]);
        pod["volumes"] = json!([{"name": "shm", "emptyDir": {"medium": "Memory"}}]);
        let container = &mut pod["containers"][0];
        container["args"] = json!([
            "--model=m",
            "-tp=8",
            "-pp=8",
            "--nnodes=8",
            "--node-rank",
            "0",
            "--master-addr=llm-0.llm",
        ]);
        container["readinessProbe"] = json!({"httpGet": {"path": "/health", "port": 8000}});
        container["workingDir"] = json!("/srv");
        container["imagePullPolicy"] = json!("IfNotPresent");
        container["volumeMounts"] = json!([{"name": "shm", "mountPath": "/dev/shm"}]);
        let denied = ask(Door::Validate, &arrived(object), None);
        let finding = denied
            .findings
            .iter()
            .find(|one| one.rule == GANG_SCHEDULING.id)
            .unwrap();
        let set: Value = serde_saphyr::from_str(&finding.instead).unwrap();
        assert_eq!(set["kind"], "LeaderWorkerSet");
        assert_eq!(set["spec"]["replicas"], 2);
        let group = &set["spec"]["leaderWorkerTemplate"];
        assert_eq!(group["size"], 8);
        let leader = json!({
            "metadata": {
                "labels": {"app": "llm", "role": "leader"},
                "annotations": {"prometheus.io/scrape": "true"},
            },
            "spec": {
                "schedulerName": "kai-scheduler",
                "serviceAccountName": "llm",
                "affinity": {"nodeAffinity": {}},
                "initContainers": [{"name": "fetch", "image": "fetch"}],
                "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
                "containers": [{
                    "name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
                    "args": [
                        "--model=m", "-tp=8", "-pp=8", "--nnodes=8",
                        "--node-rank", "$(LWS_WORKER_INDEX)",
                        "--master-addr=$(LWS_LEADER_ADDRESS)",
                    ],
                    "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}},
                    "workingDir": "/srv",
                    "resources": {"limits": {"nvidia.com/gpu": 8}},
                    "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
                }],
            },
        });
        assert_eq!(group["leaderTemplate"], leader);
        // Only the leader answers requests.
        let mut worker = leader;
        worker["metadata"]["labels"]["role"] = json!("worker");
        let container = worker["spec"]["containers"][0].as_object_mut().unwrap();
        container.remove("readinessProbe");
        assert_eq!(group["workerTemplate"], worker);
        // And it is what it says: accepted, unchanged, clean, as sure of its GPUs as it was.
        let again = ask(Door::Check, &set, None);
        assert!(
            again
                .findings
                .iter()
                .all(|one| !one.rule.starts_with("gang-")),
            "{again:?}"
        );
    }
}
