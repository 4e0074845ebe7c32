//! What to write instead.

use serde_json::{Map, Value, json};

use super::skeleton::{group_container, own_ranks};
use super::{Case, Harm, Mechanism, QueueState, minimum, recreate_strategy, yaml};
use crate::finding::{FieldPath, Segment};
use crate::subject::rollout::Rolling;
use crate::subject::workload::Kind;

impl Case<'_, '_> {
    /// All that is wrong or missing, with the right values; where the kind cannot hold the gang, one
    /// that can.
    pub(super) fn remedy(&self, members: u64) -> String {
        self.remedy
            .get_or_init(|| self.compose_remedy(members))
            .clone()
    }

    fn compose_remedy(&self, members: u64) -> String {
        let mechanism = self.mechanism();
        let misshapen = self.is_misshapen(members);
        if self.grouped && (misshapen || matches!(mechanism, Mechanism::None)) {
            let have = if misshapen {
                self.pods().unwrap_or(members)
            } else {
                members
            };
            return match self.kind() {
                Kind::InferenceService if self.is_in_two() => self.outside_group(members),
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
        let external = self.scheduler.external.as_ref();
        let Some(external) = external.filter(|external| self.version >= Some(external.since))
        else {
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
        let mut group = json!({
            "apiVersion": "scheduling.run.ai/v2alpha2", "kind": "PodGroup",
            "metadata": {"name": subject.name},
            "spec": {"minMember": members, "queue": queue},
        });
        if let Some(namespace) = &subject.namespace {
            let path = FieldPath::of(&["metadata", "namespace"]);
            put(&mut group, &path, Value::from(namespace.as_str()));
        }
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
            .map(|container| group_container(container.value, "worker", self.worker_flag()))
            .collect();
        let worker = json!({"schedulerName": self.wanted, "containers": containers});
        let note = own_ranks(Some(&worker));
        let pipeline = part.clone().keys(&["parallelism", "pipeline"]);
        put(&mut out, &pipeline, Value::from(members));
        put(
            &mut out,
            &Self::scheduler_path(set),
            Value::from(self.wanted),
        );
        put(&mut out, &part.key("worker"), worker);
        format!("{note}{}", yaml(&out))
    }
}

/// Puts a value into a sketch of an object. A list cannot be written in part: the place in it is
/// named instead.
pub(super) fn put(sketch: &mut Value, path: &FieldPath, value: Value) {
    let mut at = sketch;
    for step in path.segments() {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let key = match step {
            Segment::Key(key) => key.to_string(),
            Segment::Index(index) => format!("[{index}]"),
        };
        let Some(members) = at.as_object_mut() else {
            return;
        };
        at = members.entry(key).or_insert(Value::Null);
    }
    *at = value;
}
