//! gang-scheduling: see the declaration.

use serde_json::{Map, Value, json};

use crate::{
    catalog::schedulers::{External, Scheduler, Schedulers},
    declare_rule,
    facts::{KAI_GROUP, Known, Watched},
    finding::{Confidence, FieldPath, Finding, Level, Segment},
    policy::{SchedulerName, SchedulerVersion, SinglePod},
    provenance::{DefaultBlock, carry_over, of_field},
    rules::{Context, Edits, Findings, NoParams, kinds},
    subject::{
        Operation, at,
        pod_template::Count,
        workload::{Kind, PodSet, Serving, Spread},
    },
};

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
    /// Ranks are read off the engine's own command line and environment; what cannot be read is
    /// unknown, and nothing is denied for it. A parallelism that cannot start at all is the business
    /// of `parallelism-fits-pod`.
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
            "scheduling.volcano.sh/group-min-member",
        ],
        level: Deny,
        fills: Some("schedulerName, queue and minimum of the declared gang scheduler, and Recreate for a gang, on CREATE"),
        params: NoParams,
        check: check,
        fill: fill
    }
}

/// What the API server puts where a schedulerName is silent.
const DEFAULT_SCHEDULER: &str = "default-scheduler";

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let Some(case) = Case::of(cx) else { return };
    match case.serving.spread {
        Spread::SinglePod => case.single_pod(out),
        Spread::Group(pods) => case.group(pods, out),
        Spread::One | Spread::Misfit { .. } | Spread::Unknown => {}
    }
}

fn fill(cx: &Context<'_, NoParams>, edits: &mut Edits) {
    let Some(case) = Case::of(cx) else { return };
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
}

impl<'c, 'a> Case<'c, 'a> {
    fn of(cx: &'c Context<'a, NoParams>) -> Option<Self> {
        let declared = &cx.policy.gang_scheduler;
        if declared.name == SchedulerName::None {
            return None;
        }
        let serving = cx.serving()?;
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

    fn fingerprint(&self, fault: &str, members: u64) -> String {
        format!(
            "{fault}:{:?}:{}:{members}:{}",
            self.kind(),
            if self.grouped { "group" } else { "pod" },
            self.wanted
        )
    }

    /// Pod sets that are part of the instance, those without accelerators included: a gang without
    /// its leader is none.
    fn sets(&self) -> impl Iterator<Item = &PodSet<'a>> {
        self.serving
            .workload
            .pods
            .iter()
            .filter(|set| set.count > 0)
    }

    fn scheduler_path(set: &PodSet<'_>) -> FieldPath {
        set.template.spec_path().key("schedulerName")
    }

    /// The first pod set that goes to another scheduler, and the one that it names.
    fn elsewhere(&self) -> Option<(FieldPath, &'a str)> {
        self.sets().find_map(|set| {
            let named = set
                .template
                .spec_text("schedulerName")
                .unwrap_or(DEFAULT_SCHEDULER);
            (named != self.wanted).then(|| (Self::scheduler_path(set), named))
        })
    }

    fn queue_key(&self) -> Option<FieldPath> {
        let label = self.scheduler.queue.as_ref()?.label.as_ref()?;
        Some(FieldPath::of(&["metadata", "labels", label]))
    }

    fn queue(&self) -> QueueState<'a> {
        let Some(queue) = &self.scheduler.queue else {
            return QueueState::Settled;
        };
        let workload = &self.serving.workload;
        let named = queue.label.iter().chain(&queue.also).find_map(|key| {
            workload
                .label(key)
                .or_else(|| self.serving.set.template.label(key))
                .filter(|name| !name.is_empty())
        });
        let known = |name: &str| self.cx.facts.queue(name);
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
            Kind::LeaderWorkerSet | Kind::Ray => return None,
        };
        self.scheduler.minimum(kind, self.version)
    }

    fn mechanism(&self) -> Mechanism<'a> {
        let scheduler = self.scheduler;
        if let Some(external) = &scheduler.external
            && self.kind().is_flat()
            && (self.skips_grouping(external)
                || self
                    .serving
                    .set
                    .template
                    .annotation(&external.group)
                    .is_some())
        {
            return Mechanism::External(external);
        }
        if !self.kind().is_flat() {
            return if matches!(scheduler.name.as_str(), "kai" | "volcano" | "runai") {
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
        if !self.placement(level, 1, &why, hint, out)
            && let Some(key) = self.minimum_key()
            && let Some(found) = self.serving.workload.annotation(key)
        {
            self.single_pod_minimum(key, found, out);
        }
    }

    fn single_pod_minimum(&self, key: &str, found: &str, out: &mut Findings) {
        let path = FieldPath::of(&["metadata", "annotations", key]);
        let replicas = self.serving.workload.size();
        let finding = |message: String| {
            Finding::new(path.clone(), message)
                .value(found)
                .instead(yaml(&json!({"metadata": {"annotations": {key: "1"}}})))
                .fingerprint(self.fingerprint("coupled", 1))
        };
        match minimum(found) {
            Some(1) => {}
            Some(number) if number > replicas && replicas > 0 => out.report(
                finding(format!(
                    "The minimum {number} is above the {replicas} pods there are: \
                     {} never schedules one of them.",
                    self.scheduler.title
                ))
                .severity(severity(number)),
            ),
            Some(number) => out.report_at(
                Level::Warn,
                finding(format!(
                    "Each pod is an instance of its own ({}), but the minimum {number} lets none \
                     start until {number} can: replicas that could serve wait for one another.",
                    self.ranks()
                ))
                .severity(severity(number)),
            ),
            None if self.scheduler.name == "volcano" => {}
            None => out.report(finding(format!(
                "\"{found}\" is no number of pods: {} refuses to group the pods and they stay \
                 Pending.",
                self.scheduler.title
            ))),
        }
    }

    /// Scheduler and queue. Whether something was found.
    fn placement(
        &self,
        level: Level,
        members: u64,
        why: &str,
        hint: &str,
        out: &mut Findings,
    ) -> bool {
        let queue = self.queue();
        let elsewhere = self.elsewhere();
        let place = match &elsewhere {
            Some((_, named)) if self.grouped => format!(
                "{named} places them one by one: some can hold their GPUs for ever while the rest \
                 stay Pending"
            ),
            Some((_, named)) => format!(
                "{named} places it past {}'s queues, and takes GPUs from under gangs that wait for \
                 them",
                self.scheduler.title
            ),
            None => String::new(),
        };
        let queue_path = self.queue_key().unwrap_or_default();
        let queue_label = self
            .scheduler
            .queue
            .as_ref()
            .and_then(|queue| queue.label.as_deref())
            .unwrap_or_default();
        let (path, value, message) = match (&elsewhere, &queue) {
            (Some((_, DEFAULT_SCHEDULER)), QueueState::Missing) => (
                queue_path,
                None,
                format!(
                    "{why}, but {place}. No queue is known for {}: name one with the label \
                     {queue_label}, or map the namespace in the policy's gangScheduler.queues, and \
                     the rest is filled in{hint}.",
                    self.namespace()
                ),
            ),
            (Some((path, named)), _) => (
                path.clone(),
                path.lookup(&self.cx.subject.value)
                    .map(|_| Value::from(*named)),
                format!("{why}, but {place}{hint}."),
            ),
            (None, QueueState::Missing | QueueState::Mapped(_)) => (
                queue_path,
                None,
                format!(
                    "{why} and goes to {}, but into no named queue: it falls into \"{}\", which may \
                     not exist, or into somebody else's quota.",
                    self.scheduler.title,
                    self.default_queue()
                ),
            ),
            (None, QueueState::Nowhere(name)) => (
                queue_path,
                Some(Value::from(*name)),
                format!("There is no queue \"{name}\": its pods are never scheduled."),
            ),
            (None, QueueState::Settled) => return false,
        };
        let finding = Finding::new(path, message)
            .instead(self.instead(members, &queue))
            .fingerprint(self.fingerprint("placement", members))
            .severity(1);
        out.report_at(level, Finding { value, ..finding });
        true
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
        let workload = &self.serving.workload;
        let have = workload.size();
        if self.kind().is_flat() && have != members && have != 0 {
            self.shape(members, have, out);
            return;
        }
        let mechanism = self.mechanism();
        if matches!(mechanism, Mechanism::None) {
            self.inexpressible(members, out);
            return;
        }
        let why = format!(
            "{} spans {members} pods that only serve together",
            self.ranks()
        );
        let placed = !self.placement(Level::Deny, members, &why, "", out);
        match mechanism {
            Mechanism::Annotation(key) => self.minimum(key, members, placed, out),
            Mechanism::External(external) => self.external(external, members, out),
            Mechanism::Native => self.native(members, out),
            Mechanism::Reference(named) if placed => self.reference(&named, members, out),
            Mechanism::TaskGroups if placed => self.task_groups(members, out),
            Mechanism::Reference(_) | Mechanism::TaskGroups | Mechanism::None => {}
        }
        if self.kind() == Kind::StatefulSet
            && at(&self.cx.subject.value, &["spec", "podManagementPolicy"])
                != Some(&Value::from("Parallel"))
        {
            out.report(
                Finding::new(
                    FieldPath::of(&["spec", "podManagementPolicy"]),
                    format!(
                        "OrderedReady makes each pod wait for the one before it to be Ready, but none \
                         of the {members} is Ready before all of them run."
                    ),
                )
                .instead(yaml(&json!({"spec": {"podManagementPolicy": "Parallel"}})))
                .fingerprint(self.fingerprint("ordered", members)),
            );
        }
        if self.kind() == Kind::Deployment {
            self.strategy(members, out);
        }
    }

    /// The replicas are not one group.
    fn shape(&self, members: u64, have: u64, out: &mut Findings) {
        let field = if self.kind() == Kind::Job {
            "parallelism"
        } else {
            "replicas"
        };
        let kind = &self.cx.subject.kind;
        let ranks = self.ranks();
        let message = if have < members {
            format!(
                "{ranks} needs {members} pods of {} GPUs, but this {kind} has {have}: no instance is \
                 ever complete, and what runs holds its GPUs for nothing.",
                self.units()
            )
        } else if have.is_multiple_of(members) {
            format!(
                "{ranks} makes {} groups of {members} pods, and a {kind} cannot tell its pods' groups \
                 apart: a scheduler may start half of each.",
                have / members
            )
        } else {
            format!(
                "{ranks} needs groups of {members} pods, and {have} pods are no whole number of \
                 groups: the rest holds GPUs for nothing."
            )
        };
        out.report(
            Finding::new(FieldPath::of(&["spec", field]), message)
                .value(have)
                .instead(self.skeleton(members, have.div_ceil(members.max(1)).max(1)))
                .fingerprint(self.fingerprint("shape", members))
                .severity(severity(have % members.max(1)).max(1)),
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
        let finding = Finding::new(
            path,
            format!(
                "{} spans {members} pods that only serve together, and {} makes no gang of a {kind}'s \
                 pods: some can hold their GPUs for ever while the rest stay Pending.",
                self.ranks(),
                self.title()
            ),
        )
        .instead(self.skeleton(members, 1))
        .fingerprint(self.fingerprint("inexpressible", members));
        let finding = Finding { value, ..finding };
        if self.kind().is_flat() {
            out.report(finding);
        } else {
            out.report(finding.confidence(Confidence::Unknown));
        }
    }

    /// The minimum of a gang of `members`.
    fn minimum(&self, key: &str, members: u64, placed: bool, out: &mut Findings) {
        let path = FieldPath::of(&["metadata", "annotations", key]);
        let found = self.serving.workload.annotation(key);
        let report = |out: &mut Findings, message: String, lacking: u64| {
            let finding = Finding::new(path.clone(), message)
                .instead(yaml(
                    &json!({"metadata": {"annotations": {key: members.to_string()}}}),
                ))
                .fingerprint(self.fingerprint("minimum", members))
                .severity(severity(lacking));
            let value = found.map(Value::from);
            out.report(Finding { value, ..finding });
        };
        let title = &self.scheduler.title;
        let Some(text) = found else {
            if placed {
                report(
                    out,
                    format!(
                        "{} spans {members} pods, but {title} takes a silent minimum for 1: it starts \
                         them one by one, and some can hold their GPUs for ever while the rest stay \
                         Pending.",
                        self.ranks()
                    ),
                    members,
                );
            }
            return;
        };
        match minimum(text) {
            Some(number) if number == members => {}
            Some(number) if number < members => report(
                out,
                format!(
                    "The gang may start with {number} of the {members} pods that {} needs: {number} \
                     pods hold their GPUs and serve nothing until the rest find a place.",
                    self.ranks()
                ),
                members - number,
            ),
            Some(number) => report(
                out,
                format!(
                    "The minimum {number} is above the {members} pods there are: none is ever scheduled."
                ),
                members,
            ),
            None if self.scheduler.name == "volcano" => report(
                out,
                format!("\"{text}\" is no number, and Volcano takes it for 1: there is no gang."),
                members,
            ),
            None => report(
                out,
                format!(
                    "\"{text}\" is no number of pods: {title} refuses to group the pods and they stay Pending."
                ),
                members,
            ),
        }
    }

    /// A group made by somebody else: three things have to come together.
    fn external(&self, external: &External, members: u64, out: &mut Findings) {
        let template = &self.serving.set.template;
        let annotations = template.path().clone().keys(&["metadata", "annotations"]);
        let named = template
            .annotation(&external.group)
            .filter(|name| !name.is_empty());
        let finding = |path: FieldPath, message: String| {
            Finding::new(path, message)
                .instead(yaml(&json!({
                    "metadata": {"annotations": {external.skip.as_str(): "true"}},
                    "spec": {"template": {"metadata": {"annotations": {
                        external.group.as_str(): named.unwrap_or(&self.cx.subject.name)
                    }}}}
                })))
                .fingerprint(self.fingerprint("external", members))
        };
        if self.version < Some(external.since) {
            out.report(finding(
                annotations.key(&external.group),
                format!(
                    "{} knows no groups made by others: it makes its own, of one pod each.",
                    self.title()
                ),
            ));
            return;
        }
        let Some(name) = named else {
            out.report(finding(
                annotations.key(&external.group),
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
                    annotations.key(&external.group),
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
        let path = annotations.key(&external.group);
        match self.cx.facts.pod_group(KAI_GROUP, namespace, name) {
            Known::Unknown => out.report(
                finding(
                    path,
                    format!(
                        "Whether the PodGroup \"{name}\" is there with a minMember of {members} cannot be \
                         seen from here; without it the pods are never scheduled."
                    ),
                )
                .value(name)
                .confidence(Confidence::Unknown),
            ),
            Known::Absent => out.report(
                finding(path, format!("There is no PodGroup \"{name}\": the pods are never scheduled."))
                    .value(name),
            ),
            Known::Present(group) => {
                let minimum = group.minimum;
                if minimum != Some(members) {
                    let found = minimum.map_or_else(|| "none".to_owned(), |n| n.to_string());
                    out.report(
                        finding(
                            path,
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
        if self.kind() == Kind::Ray {
            for set in self.sets().filter(|set| set.role == "worker") {
                let Some(group) = set.template.path().parent() else {
                    continue;
                };
                let size = |key: &str| group.clone().key(key).lookup(value)?.as_u64();
                if let (Some(least), Some(replicas)) = (size("minReplicas"), size("replicas"))
                    && (1..replicas).contains(&least)
                {
                    out.report(
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
                        .fingerprint(self.fingerprint("ray-minimum", members))
                        .severity(severity(replicas - least)),
                    );
                }
            }
        }
    }

    /// Schedulers whose gangs need a group object that the pods name.
    fn reference(&self, named: &str, members: u64, out: &mut Findings) {
        let Some(group) = &self.scheduler.group else {
            return;
        };
        let template = &self.serving.set.template;
        let (path, name) = if group.label.is_some() {
            let path = template.path().clone().keys(&["metadata", "labels", named]);
            (path, template.label(named))
        } else {
            let keys: Vec<&str> = named.split('.').collect();
            let path = template.spec_path().keys(&keys);
            let name = path.lookup(&self.cx.subject.value).and_then(Value::as_str);
            (path, name)
        };
        let api = &group.api_group;
        let finding = |message: String| {
            Finding::new(path.clone(), message)
                .instead(format!(
                    "# a PodGroup of {api} with a minimum of {members}, and in the pod template:\n\
                     {named}: {}\n",
                    self.cx.subject.name
                ))
                .fingerprint(self.fingerprint("reference", members))
        };
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            out.report(finding(format!(
                "{} spans {members} pods that only serve together, but they name no PodGroup of {api}: \
                 each is placed alone.",
                self.ranks()
            )));
            return;
        };
        let namespace = self.cx.subject.namespace.as_deref();
        match self.cx.facts.pod_group(api, namespace, name) {
            Known::Present(group) => {
                if group.minimum != Some(members) {
                    out.report(
                        finding(format!(
                            "The minimum of PodGroup \"{name}\" is not the {members} pods that {} needs.",
                            self.ranks()
                        ))
                        .value(name),
                    );
                }
            }
            Known::Absent => out.report(
                finding(format!(
                    "There is no PodGroup \"{name}\": the pods stay Pending."
                ))
                .value(name),
            ),
            Known::Unknown => {}
        }
    }

    /// YuniKorn's task groups, which only bind in Hard style.
    fn task_groups(&self, members: u64, out: &mut Findings) {
        let Some(keys) = &self.scheduler.task_groups else {
            return;
        };
        let template = &self.serving.set.template;
        let annotations = template.path().clone().keys(&["metadata", "annotations"]);
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
        if minimum == Some(members) && hard {
            return;
        }
        let message = if minimum == Some(members) {
            "YuniKorn's gangs are Soft unless they say otherwise: when the time is up the pods are \
             placed one by one."
                .to_owned()
        } else {
            format!(
                "{} spans {members} pods that only serve together, but no task group with that \
                 minMember holds them.",
                self.ranks()
            )
        };
        let groups = json!([{"name": own, "minMember": members}]).to_string();
        out.report(
            Finding::new(annotations.key(&keys.groups), message)
                .instead(yaml(
                    &json!({"spec": {"template": {"metadata": {"annotations": {
                        keys.name.as_str(): if own.is_empty() { "ranks" } else { own },
                        keys.groups.as_str(): groups,
                        keys.parameters.as_str(): "gangSchedulingStyle=Hard",
                    }}}}}),
                ))
                .fingerprint(self.fingerprint("task-groups", members))
                .severity(severity(members.saturating_sub(minimum.unwrap_or(0)))),
        );
    }

    /// A rolling update of a gang.
    fn strategy(&self, members: u64, out: &mut Findings) {
        let Some(rolling) = Rolling::of(&self.cx.subject.value, self.serving.workload.size())
        else {
            return;
        };
        let instead = yaml(&json!({"spec": {"strategy": {"type": "Recreate"}}}));
        let finding = |message: String| {
            Finding::new(rolling.path.clone(), message)
                .instead(instead.clone())
                .fingerprint(self.fingerprint("strategy", members))
        };
        let Rolling {
            unavailable, surge, ..
        } = rolling;
        if unavailable >= 1 {
            out.report(
                finding(format!(
                    "A rollout takes {unavailable} of {members} pods away at once: the gang falls below its \
                     minimum, {}.",
                    if self.scheduler.surge {
                        "and the new one never reaches it"
                    } else {
                        "and the scheduler evicts the rest of it"
                    }
                ))
                .severity(severity(unavailable)),
            );
        } else if self.scheduler.surge && surge < members {
            out.report(finding(format!(
                "A new revision is a gang of its own and needs {members} pods at once, but a rollout \
                 surges by {surge}: it never starts."
            )));
        } else if !self.scheduler.surge {
            out.report_at(
                Level::Warn,
                finding(format!(
                    "During a rollout the old pods satisfy the gang's minimum: the {members} new ones are \
                     placed one by one, not as a gang."
                )),
            );
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
                let whole = !self.kind().is_flat()
                    || matches!(self.serving.workload.size(), 0)
                    || self.serving.workload.size() == members;
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
            if set.template.spec_text("schedulerName") == Some(self.wanted) {
                continue;
            }
            let path = Self::scheduler_path(set);
            let steps = steps(&path);
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
            QueueState::Settled => None,
            QueueState::Mapped(name) => Some(name),
            QueueState::Missing | QueueState::Nowhere(_) => return,
        };
        let key = self.minimum_key();
        let minimum_silent = match key.map(|key| (self.serving.workload.annotation(key), key)) {
            None if self.grouped && self.kind().is_flat() => return,
            Some((Some(text), _)) if self.grouped && minimum(text) != Some(members) => return,
            Some((None, _)) => true,
            None | Some(_) => false,
        };
        let recreate = if self.grouped && self.kind() == Kind::Deployment {
            match self.recreate() {
                Some(recreate) => recreate,
                None => return,
            }
        } else {
            false
        };
        if self.grouped && self.ray_falls_short() {
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

    /// Whether the strategy is to be filled with Recreate; `None` where somebody wrote one that
    /// breaks the gang.
    fn recreate(&self) -> Option<bool> {
        let subject = self.cx.subject;
        let Some(rolling) = Rolling::of(&subject.value, self.serving.workload.size()) else {
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
        let harmless = rolling.unavailable == 0
            && (!self.scheduler.surge || rolling.surge >= self.serving.workload.size());
        harmless.then_some(false)
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
                let steps = steps(&path);
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

    /// The members that are wrong or missing, with their values.
    fn instead(&self, members: u64, queue: &QueueState<'_>) -> String {
        let mut metadata = Map::new();
        if let Some(label) = self
            .scheduler
            .queue
            .as_ref()
            .and_then(|queue| queue.label.as_ref())
        {
            let name = match queue {
                QueueState::Mapped(name) => Some(*name),
                QueueState::Missing | QueueState::Nowhere(_) => Some("<leaf queue>"),
                QueueState::Settled => None,
            };
            if let Some(name) = name {
                metadata.insert("labels".into(), json!({label.as_str(): name}));
            }
        }
        if let Some(key) = self.minimum_key()
            && (self.grouped || self.elsewhere().is_some())
        {
            metadata.insert("annotations".into(), json!({key: members.to_string()}));
        }
        let mut out = Value::Null;
        for (key, value) in metadata {
            put(&mut out, &FieldPath::of(&["metadata", &key]), value);
        }
        if self.grouped
            && self.kind() == Kind::Deployment
            && Rolling::of(&self.cx.subject.value, members).is_some()
        {
            put(
                &mut out,
                &FieldPath::of(&["spec", "strategy"]),
                recreate_strategy(),
            );
        }
        for set in self.sets() {
            put(
                &mut out,
                &Self::scheduler_path(set),
                Value::from(self.wanted),
            );
        }
        yaml(&out)
    }

    /// A LeaderWorkerSet that runs the same pods in groups.
    fn skeleton(&self, members: u64, groups: u64) -> String {
        let subject = self.cx.subject;
        let mut metadata = Map::new();
        metadata.insert("name".into(), Value::from(subject.name.as_str()));
        if let Some(namespace) = &subject.namespace {
            metadata.insert("namespace".into(), Value::from(namespace.as_str()));
        }
        if let Some(label) = self
            .scheduler
            .queue
            .as_ref()
            .and_then(|queue| queue.label.as_ref())
        {
            let name = match self.queue() {
                QueueState::Mapped(name) => name,
                QueueState::Settled => self.serving.workload.label(label).unwrap_or("<leaf queue>"),
                QueueState::Missing | QueueState::Nowhere(_) => "<leaf queue>",
            };
            metadata.insert("labels".into(), json!({label.as_str(): name}));
        }
        let template = |role: &str| {
            let mut spec = Map::new();
            spec.insert("schedulerName".into(), Value::from(self.wanted));
            for key in [
                "terminationGracePeriodSeconds",
                "nodeSelector",
                "tolerations",
                "volumes",
            ] {
                if let Some(value) = self.serving.set.template.spec(key) {
                    spec.insert(key.into(), value.clone());
                }
            }
            let containers: Vec<Value> = self
                .serving
                .set
                .template
                .containers()
                .map(|container| group_container(container.value))
                .collect();
            spec.insert("containers".into(), Value::from(containers));
            let mut labels = at(self.serving.set.template.value(), &["metadata", "labels"])
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default();
            labels.insert("role".into(), Value::from(role));
            json!({"metadata": {"labels": labels}, "spec": spec})
        };
        let object = json!({
            "apiVersion": "leaderworkerset.x-k8s.io/v1",
            "kind": "LeaderWorkerSet",
            "metadata": metadata,
            "spec": {
                "replicas": groups,
                "leaderWorkerTemplate": {
                    "size": members,
                    "leaderTemplate": template("leader"),
                    "workerTemplate": template("worker"),
                }
            }
        });
        yaml(&object)
    }
}

/// A rolling update, its bounds resolved for the number of replicas as the Deployment controller
/// does (k8s.io/kubectl, deployment `ResolveFenceposts`).
struct Rolling {
    unavailable: u64,
    surge: u64,
    path: FieldPath,
}

impl Rolling {
    /// `None` for Recreate.
    fn of(object: &Value, replicas: u64) -> Option<Self> {
        let strategy = FieldPath::of(&["spec", "strategy"]);
        if at(object, &["spec", "strategy", "type"]) == Some(&Value::from("Recreate")) {
            return None;
        }
        let bound = |key: &str, up: bool| {
            let path = strategy.clone().keys(&["rollingUpdate", key]);
            let value = path.lookup(object).filter(|value| !value.is_null());
            let silent = Value::from("25%");
            int_or_percent(value.unwrap_or(&silent), replicas, up).unwrap_or(0)
        };
        let surge = bound("maxSurge", true);
        let mut unavailable = bound("maxUnavailable", false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        let written = strategy.clone().keys(&["rollingUpdate", "maxUnavailable"]);
        let path = if written.lookup(object).is_some() {
            written
        } else {
            strategy
        };
        Some(Self {
            unavailable,
            surge,
            path,
        })
    }
}

fn int_or_percent(value: &Value, of: u64, up: bool) -> Option<u64> {
    if let Some(number) = value.as_u64() {
        return Some(number);
    }
    let text = value.as_str()?;
    let Some(percent) = text.strip_suffix('%') else {
        return text.parse().ok();
    };
    let scaled = percent.parse::<u64>().ok()?.checked_mul(of)?;
    Some(if up {
        scaled.div_ceil(100)
    } else {
        scaled / 100
    })
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

fn steps(path: &FieldPath) -> Vec<String> {
    path.segments()
        .iter()
        .map(|segment| match segment {
            Segment::Key(key) => key.clone(),
            Segment::Index(index) => index.to_string(),
        })
        .collect()
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

/// A container for a group's pod: rank and leader address come from the LeaderWorkerSet.
fn group_container(container: &Value) -> Value {
    const KEPT: [&str; 10] = [
        "name",
        "image",
        "command",
        "args",
        "env",
        "envFrom",
        "ports",
        "resources",
        "volumeMounts",
        "lifecycle",
    ];
    let mut kept = Map::new();
    for key in KEPT {
        if let Some(value) = container.get(key) {
            kept.insert(key.into(), value.clone());
        }
    }
    for list in ["command", "args"] {
        let Some(Value::Array(words)) = kept.get_mut(list) else {
            continue;
        };
        let mut role = None;
        for word in words {
            let Some(text) = word.as_str() else { continue };
            if let Some(role) = role.take() {
                *word = Value::from(address(role, text));
                continue;
            }
            match text.split_once('=') {
                Some((flag, old)) => {
                    if let Some(role) = rank_flag(flag) {
                        *word = Value::from(format!("{flag}={}", address(role, old)));
                    }
                }
                None => role = rank_flag(text),
            }
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

fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_default()
}

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
        let child = owned("serving.kserve.io/v1beta1", "InferenceService");
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
        let denied = ask(Door::Validate, &arrived(object), None);
        let finding = denied
            .findings
            .iter()
            .find(|one| one.rule == GANG_SCHEDULING.id)
            .unwrap();
        let set: Value = serde_saphyr::from_str(&finding.instead).unwrap();
        assert_eq!(set["kind"], "LeaderWorkerSet");
        assert_eq!(set["spec"]["replicas"], 2);
        assert_eq!(set["spec"]["leaderWorkerTemplate"]["size"], 8);
        // And it is what it says: accepted, unchanged, clean.
        let again = ask(Door::Check, &set, None);
        assert!(
            again
                .findings
                .iter()
                .all(|one| one.rule != GANG_SCHEDULING.id),
            "{again:?}"
        );
    }

    #[test]
    fn rolling_bounds_are_resolved_as_the_controller_does() {
        let bounds = |rolling: Value, replicas: u64| {
            let object = json!({"spec": {"strategy": {"rollingUpdate": rolling}}});
            Rolling::of(&object, replicas).map(|rolling| (rolling.unavailable, rolling.surge))
        };
        assert_eq!(bounds(json!({}), 8), Some((2, 2)));
        assert_eq!(bounds(json!({}), 2), Some((0, 1)));
        assert_eq!(
            bounds(json!({"maxUnavailable": 0, "maxSurge": 0}), 8),
            Some((1, 0))
        );
        assert_eq!(
            bounds(json!({"maxUnavailable": "0%", "maxSurge": "100%"}), 8),
            Some((0, 8))
        );
        assert_eq!(
            bounds(
                json!({"maxUnavailable": u64::MAX, "maxSurge": "99999999999999999999%"}),
                8
            ),
            Some((u64::MAX, 0))
        );
        assert!(Rolling::of(&json!({"spec": {"strategy": {"type": "Recreate"}}}), 8).is_none());
    }
}
