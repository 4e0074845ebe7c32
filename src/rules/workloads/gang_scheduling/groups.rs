//! What makes a gang under each scheduler: the owner's minimum, groups made by others, kinds whose groups
//! the scheduler knows, named group objects, task groups.

use serde_json::{Map, Value, json};

use super::remedy::put;
use super::{Case, minimum, severity, yaml};
use crate::catalog::schedulers::{External, GroupReference};
use crate::facts::{KAI_GROUP, Known};
use crate::finding::{Confidence, FieldPath, Finding, Level};
use crate::rules::Findings;
use crate::subject::at;
use crate::subject::workload::Kind;

impl Case<'_, '_> {
    /// The minimum of a gang of `members`.
    pub(super) fn minimum(&self, key: &str, members: u64, out: &mut Findings) {
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
    pub(super) fn external(&self, external: &External, members: u64, out: &mut Findings) {
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
    pub(super) fn native(&self, members: u64, out: &mut Findings) {
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
                         its GPUs while the rest of the {members} pods find no place."
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
    pub(super) fn reference(&self, named: &str, members: u64, out: &mut Findings) {
        let Some(group) = &self.scheduler.group else {
            return;
        };
        let (path, name) = self.reference_named(named);
        let api = &group.api_group;
        let wanted = name.unwrap_or(&self.cx.subject.name);
        let instead = self.group_object(group, wanted, members, &path);
        let finding = |fault: &str, message: String| {
            Finding::new(path.clone(), message)
                .instead(instead.clone())
                .fingerprint(self.fingerprint(fault, members))
        };
        let Some(name) = name else {
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

    /// Where the pods name their group object, by a label or a member of their spec, and its name.
    pub(super) fn reference_named(&self, named: &str) -> (FieldPath, Option<&str>) {
        let template = &self.serving.set.template;
        let by_label = self
            .scheduler
            .group
            .as_ref()
            .is_some_and(|group| group.label.is_some());
        let (path, name) = if by_label {
            let path = template.metadata_path().keys(&["labels", named]);
            (path, template.label(named))
        } else {
            let keys: Vec<&str> = named.split('.').collect();
            let path = template.spec_path().keys(&keys);
            let name = path.lookup(&self.cx.subject.value).and_then(Value::as_str);
            (path, name)
        };
        (path, name.filter(|name| !name.is_empty()))
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
}
