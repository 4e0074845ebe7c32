//! What is wrong with how a server's pods are placed.

use serde_json::Value;

use super::{
    Case, DEFAULT_SCHEDULER, DYNAMO_QUEUE, Harm, Mechanism, QueueState, minimum, severity,
};
use crate::catalog::schedulers::External;
use crate::finding::{Confidence, FieldPath, Finding, Level};
use crate::policy::SinglePod;
use crate::rules::{Findings, kinds};
use crate::subject::Operation;
use crate::subject::pod_template::Count;
use crate::subject::rollout::Rolling;
use crate::subject::workload::Kind;

impl Case<'_, '_> {
    /// One pod holds all ranks.
    pub(super) fn single_pod(&self, out: &mut Findings) {
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
    pub(super) fn if_read(&self, fault: &str) -> String {
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
    pub(super) fn group(&self, members: u64, out: &mut Findings) {
        if self.is_misshapen(members) {
            self.shape(members, out);
            if !self.tells_each() {
                return;
            }
        }
        if self.pods().is_none() && !self.joins_a_group() {
            self.unsaid(members, out);
        }
        let mechanism = self.mechanism();
        if matches!(mechanism, Mechanism::None) {
            self.inexpressible(members, out);
            // Where its controller may make one all the same, nothing else is denied for it either.
            let doubtful = !self.kind().is_flat() && !self.is_in_two();
            if !self.tells_each() || doubtful {
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

    /// Nobody says how many pods there are to be: one, unless an autoscaler that is not seen here
    /// makes it more.
    fn unsaid(&self, members: u64, out: &mut Findings) {
        let finding = Finding::new(
            FieldPath::of(&["spec", "replicas"]),
            format!(
                "{} needs {members} pods, and a {} that is silent about replicas has one unless an \
                 autoscaler keeps it at more; none is seen here.",
                self.ranks(),
                self.cx.subject.kind
            ),
        )
        .instead(format!(
            "spec:\n  replicas: {members}   # or an autoscaler with that minimum\n"
        ))
        .confidence(Confidence::Unknown)
        .fingerprint(self.fingerprint("too-few", members));
        out.report(finding);
    }

    /// The replicas are not one group.
    fn shape(&self, members: u64, out: &mut Findings) {
        let have = self.pods().unwrap_or_else(|| self.serving.workload.size());
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
                    "{ranks} needs {members} pods of {}, but this {kind} has {have}: what it runs \
                     holds its GPUs for nothing until the rest runs too, and nothing places them \
                     together.",
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
        let path = FieldPath::of(&["spec", field]);
        let value = path.lookup(&self.cx.subject.value).cloned();
        let finding = Finding::new(path, message)
            .instead(self.remedy(members))
            .mends_all()
            .fingerprint(self.fingerprint(fault, members));
        out.report(Finding { value, ..finding });
    }

    fn units(&self) -> String {
        match self.serving.accelerators.units {
            Count::Known(1) => "1 GPU".to_owned(),
            Count::Known(units) => format!("{units} GPUs"),
            Count::Unknown => "their GPUs".to_owned(),
        }
    }

    /// This scheduler makes no gang of this kind's pods.
    fn inexpressible(&self, members: u64, out: &mut Findings) {
        let set = &self.serving.set;
        let path = Self::scheduler_path(set);
        let value = path.lookup(&self.cx.subject.value).cloned();
        let kind = &self.cx.subject.kind;
        let in_two = self.is_in_two();
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
                            } else if self.scheduler.name == "kai" {
                                "and the scheduler evicts the rest of it"
                            } else {
                                "and the rest of it holds its GPUs and serves nothing"
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

    /// Whether every fault has to be told by itself. A change is excused by what the old object had
    /// already, fault by fault; for a new object the cause that the others follow from is enough.
    pub(super) fn tells_each(&self) -> bool {
        self.cx.subject.operation == Operation::Update
    }
}
