//! What is filled, and put back, so that pods become a gang.

use serde_json::{Value, json};

use super::{Case, DEFAULT_SCHEDULER, Harm, Mechanism, QueueState, minimum, recreate_strategy};
use crate::finding::FieldPath;
use crate::policy::SinglePod;
use crate::provenance::{DefaultBlock, carry_over, of_field};
use crate::rules::Edits;
use crate::subject::Operation;
use crate::subject::rollout::Rolling;
use crate::subject::workload::{Kind, Spread};

impl Case<'_, '_> {
    /// The gang's size, where filling is in question at all.
    pub(super) fn fillable_members(&self) -> Option<u64> {
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

    pub(super) fn complete(&self, members: u64, edits: &mut Edits) {
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
    pub(super) fn carry(&self, members: u64, edits: &mut Edits) {
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
