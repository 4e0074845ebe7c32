//! YuniKorn's task groups: the groups of all pods of one application, each with a minimum, are one gang
//! together. Every pod carries the whole list and the name of its own group
//! (apache/yunikorn-k8shim pkg/cache/application.go, `onReservationStateChange`).

use serde_json::{Map, Value, json};

use super::remedy::put;
use super::{Case, severity, yaml};
use crate::catalog::schedulers::TaskGroups;
use crate::finding::{Confidence, FieldPath, Finding};
use crate::rules::Findings;
use crate::subject::pod_template::{Count, PodTemplate};
use crate::subject::workload::PodSet;

/// What ends the id of an application that each pod is by itself (pkg/common/utils/utils.go).
const OF_ITS_OWN: &str = "-uniqueautogen";

/// The groups that a pod's annotation lists.
struct Listed {
    /// The minimum of each, by name.
    groups: Vec<(String, u64)>,
}

impl Listed {
    /// As YuniKorn reads them: one group without name, minimum or resources, and it takes none
    /// (pkg/cache/utils.go, `GetTaskGroupsFromAnnotation`).
    fn read(text: &str) -> Option<Self> {
        let groups = serde_json::from_str::<Vec<Value>>(text)
            .ok()?
            .iter()
            .map(|group| {
                let name = group
                    .get("name")?
                    .as_str()
                    .filter(|name| !name.is_empty())?;
                let minimum = group
                    .get("minMember")?
                    .as_u64()
                    .filter(|number| *number > 0)?;
                group.get("minResource")?.as_object()?;
                Some((name.to_owned(), minimum))
            })
            .collect::<Option<Vec<_>>>()?;
        Some(Self { groups })
    }

    fn minimum(&self, name: &str) -> Option<u64> {
        let group = self.groups.iter().find(|(group, _)| group == name);
        group.map(|(_, minimum)| *minimum)
    }

    fn total(&self) -> u64 {
        let minimums = self.groups.iter().map(|(_, minimum)| *minimum);
        minimums.fold(0, u64::saturating_add)
    }
}

impl Case<'_, '_> {
    /// Whether any of the pods says to which groups it belongs.
    pub(super) fn names_task_groups(&self) -> bool {
        self.scheduler.task_groups.as_ref().is_some_and(|keys| {
            self.sets()
                .any(|set| set.template.annotation(&keys.groups).is_some())
        })
    }

    /// Whether the pods' own group is one of several, which the pods of other owners may fill.
    pub(super) fn has_task_groups_of_others(&self) -> bool {
        let template = &self.serving.set.template;
        let Some(keys) = &self.scheduler.task_groups else {
            return false;
        };
        let listed = template.annotation(&keys.groups).and_then(Listed::read);
        let own = template.annotation(&keys.name).unwrap_or_default();
        let shared = application(keys, template).is_none_or(|id| !id.ends_with(OF_ITS_OWN));
        shared && listed.is_some_and(|all| all.groups.len() > 1 && all.minimum(own).is_some())
    }

    /// What is wrong with the groups of each template.
    pub(super) fn task_groups(&self, members: u64, out: &mut Findings) {
        let Some(keys) = &self.scheduler.task_groups else {
            return;
        };
        for set in self.sets() {
            self.task_groups_of(set, keys, members, out);
        }
    }

    fn task_groups_of(
        &self,
        set: &PodSet<'_>,
        keys: &TaskGroups,
        members: u64,
        out: &mut Findings,
    ) {
        let template = &set.template;
        let annotations = template.metadata_path().key("annotations");
        let own = template.annotation(&keys.name).unwrap_or_default();
        let text = template.annotation(&keys.groups);
        let listed = text.and_then(Listed::read);
        let wanted = self.own_members(set, keys, members);
        let minimum = listed.as_ref().and_then(|all| all.minimum(own));
        let total = listed.as_ref().map_or(0, Listed::total);
        let hard = template.annotation(&keys.parameters).is_some_and(|text| {
            text.split_whitespace()
                .any(|part| part == "gangSchedulingStyle=Hard")
        });
        let have = self.serving.workload.size();
        let short = self.kind().is_flat() && have > 0 && have < wanted;
        let filled = if short { have } else { wanted };
        let instead = self.task_groups_instead(set, keys, filled, members);
        let mut report = |key: &str, fault: &str, lacking: u64, message: String| {
            let path = annotations.clone().key(key);
            let value = path.lookup(&self.cx.subject.value).cloned();
            let finding = Finding::new(path, message)
                .instead(instead.clone())
                .fingerprint(self.fingerprint(fault, members))
                .severity(severity(lacking));
            out.report(Finding { value, ..finding });
        };
        let ranks = self.ranks();
        match minimum {
            None if text.is_some() && listed.is_none() => report(
                &keys.groups,
                "task-group-below",
                members,
                format!(
                    "YuniKorn reads no task groups of which one lacks its name, minMember or \
                     minResource: there is no gang, and {ranks} spans {members} pods that only serve \
                     together."
                ),
            ),
            None => report(
                &keys.groups,
                "task-group-below",
                members,
                format!(
                    "{ranks} spans {members} pods that only serve together, but no task group holds \
                     these."
                ),
            ),
            Some(minimum) if minimum != wanted => report(
                &keys.groups,
                if minimum > wanted {
                    "task-group-above"
                } else {
                    "task-group-below"
                },
                wanted.saturating_sub(minimum),
                format!(
                    "{ranks} spans {members} pods that only serve together, and {wanted} of them are \
                     of the task group \"{own}\", whose minMember is {minimum}."
                ),
            ),
            Some(_) if total < members => report(
                &keys.groups,
                "task-group-below",
                members - total,
                format!(
                    "The task groups of this application hold {total} pods together, but {ranks} \
                     spans {members} that only serve together."
                ),
            ),
            Some(_) if short && self.is_shared(members) => report(
                &keys.groups,
                "task-group-unfilled",
                wanted - have,
                format!(
                    "The task group \"{own}\" waits for {wanted} pods, and there are {have} of them: the \
                     gang never starts."
                ),
            ),
            Some(_) => {}
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
        if minimum.is_some() && self.is_shared(members) && application(keys, template).is_none() {
            let label = keys.application.first().map_or("", String::as_str);
            let mut pods = Value::Null;
            let path = template.metadata_path().keys(&["labels", label]);
            put(&mut pods, &path, Value::from("<the same for all of them>"));
            out.report(
                Finding::new(
                    path,
                    format!(
                        "The other pods that {ranks} needs have another owner, and are of the same \
                         gang only under the same application id; none is named here."
                    ),
                )
                .instead(yaml(&pods))
                .confidence(Confidence::Unknown)
                .fingerprint(self.fingerprint("task-group-application", members)),
            );
        }
    }

    /// Whether other owners have the rest of the group's pods.
    fn is_shared(&self, members: u64) -> bool {
        self.kind().is_flat() && self.serving.workload.size() < members && self.joins_a_group()
    }

    /// How many pods the group of a template has to hold.
    fn own_members(&self, set: &PodSet<'_>, keys: &TaskGroups, members: u64) -> u64 {
        let own = set.template.annotation(&keys.name);
        if !self.kind().is_flat() {
            let alike = |other: &&PodSet<'_>| other.template.annotation(&keys.name) == own;
            let alike = self.sets().filter(alike);
            return alike.map(|set| set.count).fold(0, u64::saturating_add);
        }
        // Of a group that other owners' pods complete, only the sum is known. What it says is judged
        // whatever an autoscaler makes of the replicas.
        if self.has_task_groups_of_others() {
            let text = set.template.annotation(&keys.groups);
            let listed = text.and_then(Listed::read);
            let minimum = listed.and_then(|all| all.minimum(own.unwrap_or_default()));
            return minimum.unwrap_or(members).min(members);
        }
        members
    }

    fn task_groups_instead(
        &self,
        set: &PodSet<'_>,
        keys: &TaskGroups,
        wanted: u64,
        members: u64,
    ) -> String {
        let template = &set.template;
        let named = template
            .annotation(&keys.name)
            .filter(|name| !name.is_empty());
        let own = named.unwrap_or(if set.role == "pod" { "ranks" } else { set.role });
        let listed = template.annotation(&keys.groups);
        let mut groups: Vec<Value> = listed
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        let mut write = |group: Value| {
            let same = |other: &&mut Value| other.get("name") == group.get("name");
            match groups.iter_mut().find(same) {
                Some(other) => *other = group,
                None => groups.push(group),
            }
        };
        write(self.task_group(template, own, wanted));
        for other in self.sets().filter(|other| other.role != set.role) {
            let name = other.template.annotation(&keys.name).unwrap_or(other.role);
            let count = self.own_members(other, keys, members);
            write(self.task_group(&other.template, name, count));
        }
        // Another owner's group has the rest, where there is but one.
        if let ([first, second], true) = (groups.as_mut_slice(), self.is_shared(members)) {
            let is_own = first.get("name").is_some_and(|name| name == own);
            let other = if is_own { second } else { first };
            if let Some(minimum) = other.get_mut("minMember") {
                *minimum = Value::from(members.saturating_sub(wanted));
            }
        }
        let mut pods = Value::Null;
        let annotations = template.metadata_path().key("annotations");
        let mut write = |key: &str, text: &str| {
            put(&mut pods, &annotations.clone().key(key), Value::from(text));
        };
        write(&keys.name, own);
        write(&keys.groups, &Value::from(groups).to_string());
        write(&keys.parameters, "gangSchedulingStyle=Hard");
        yaml(&pods)
    }

    /// A group with the resources of one of its pods, which its places are reserved by.
    fn task_group(&self, template: &PodTemplate<'_>, name: &str, minimum: u64) -> Value {
        let mut resources = Map::new();
        let containers: Vec<_> = template.long_running().collect();
        for resource in ["cpu", "memory"] {
            let asked: Vec<&Value> = containers
                .iter()
                .filter_map(|container| {
                    let of = |kind: &str| {
                        let path = FieldPath::of(&["resources", kind, resource]);
                        path.lookup(container.value)
                    };
                    of("requests").or_else(|| of("limits"))
                })
                .collect();
            match asked.as_slice() {
                [] => {}
                [one] => {
                    resources.insert(resource.into(), (*one).clone());
                }
                _ => {
                    let sum = format!("<the pod's {resource}>");
                    resources.insert(resource.into(), Value::from(sum));
                }
            }
        }
        let engines = self.cx.policy.catalog().engines();
        if let Some(asked) = template.accelerators(engines)
            && let Count::Known(units) = asked.units
        {
            resources.insert(asked.resource, Value::from(units));
        }
        json!({"name": name, "minMember": minimum, "minResource": resources})
    }
}

/// The application that a template names (pkg/common/utils/utils.go, `GetApplicationIDFromPod`).
fn application<'a>(keys: &TaskGroups, template: &PodTemplate<'a>) -> Option<&'a str> {
    let by_label = |key: &String| template.label(key);
    let (first, others) = keys.application.split_first()?;
    by_label(first)
        .or_else(|| template.annotation(first))
        .or_else(|| others.iter().find_map(by_label))
        .filter(|id| !id.is_empty())
}
