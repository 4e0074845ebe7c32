//! Gang schedulers: where each reads the minimum of a gang, its queue and its groups. The rows
//! stand in `policies/catalog/schedulers.yaml`.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::policy::SchedulerVersion;

/// One scheduler.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scheduler {
    /// As in the policy's `gangScheduler.name`.
    pub name: String,
    /// Name as people write it.
    pub title: String,
    /// The `schedulerName` of its pods unless it is installed under another.
    pub scheduler_name: String,
    /// Annotations of the owner that hold a gang's minimum, by kind.
    #[serde(default)]
    pub minimum: Vec<Minimum>,
    /// How a queue is named.
    #[serde(default)]
    pub queue: Option<Queue>,
    /// A group object that somebody else made may stand in for its own grouping.
    #[serde(default)]
    pub external: Option<External>,
    /// Every gang needs a group object of its own.
    #[serde(default)]
    pub group: Option<GroupReference>,
    /// Gangs are written as task groups in the pod template's annotations.
    #[serde(default)]
    pub task_groups: Option<TaskGroups>,
    /// Each revision is a gang of its own: a rolling update must surge by the whole gang.
    #[serde(default)]
    pub surge: bool,
    /// Where this was read: project, file or document, version.
    pub source: String,
    /// When, as YYYY-MM.
    pub checked: String,
}

/// Where the minimum of a gang is read for one kind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Minimum {
    /// The owner's kind.
    pub kind: String,
    /// The annotation of the owner.
    pub annotation: String,
    /// The first version that reads it.
    #[serde(default)]
    pub since: Option<SchedulerVersion>,
}

/// How a queue is named.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Queue {
    /// A label of the owner or the pod template.
    #[serde(default)]
    pub label: Option<String>,
    /// An annotation of the pod template.
    #[serde(default)]
    pub annotation: Option<String>,
    /// Other labels that name one.
    #[serde(default)]
    pub also: Vec<String>,
    /// The queue that silence means.
    #[serde(default)]
    pub default: Option<String>,
    /// That queue is there on every installation.
    #[serde(default)]
    pub optional: bool,
}

/// A group object made by somebody else.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct External {
    /// Annotation of the owner or the template that turns the scheduler's own grouping off.
    pub skip: String,
    /// Annotation of the template that names the group.
    pub group: String,
    /// The first version with it.
    pub since: SchedulerVersion,
}

/// How a pod names its group object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GroupReference {
    /// A label of the pod template.
    #[serde(default)]
    pub label: Option<String>,
    /// A member of the pod spec, dotted.
    #[serde(default)]
    pub field: Option<String>,
    /// The API group of the group object.
    pub api_group: String,
}

/// Annotations of the pod template that describe task groups.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskGroups {
    /// The name of the pod's own group.
    pub name: String,
    /// The groups, as JSON.
    pub groups: String,
    /// Further parameters.
    pub parameters: String,
    /// Labels that name the application, whose groups are one gang together; the first is read as an
    /// annotation, too.
    pub application: Vec<String>,
}

/// The catalogue of gang schedulers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedulers {
    /// The rows.
    pub schedulers: Vec<Scheduler>,
}

static BUILTIN: LazyLock<Schedulers> = LazyLock::new(|| {
    serde_saphyr::from_str(include_str!("../../policies/catalog/schedulers.yaml"))
        .unwrap_or_default()
});

impl Schedulers {
    /// The rows that are built in.
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// The row of this name.
    pub fn find(&self, name: &str) -> Option<&Scheduler> {
        self.schedulers.iter().find(|row| row.name == name)
    }
}

impl Scheduler {
    /// The annotation that holds the minimum for an owner of this kind, where this version reads
    /// one. A version that is not known counts as older than any that matters.
    pub fn minimum(&self, kind: &str, version: Option<SchedulerVersion>) -> Option<&str> {
        self.minimum
            .iter()
            .find(|row| row.kind == kind && row.since.is_none_or(|since| version >= Some(since)))
            .map(|row| row.annotation.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_rows_are_read_and_carry_their_source() {
        let rows: Schedulers =
            serde_saphyr::from_str(include_str!("../../policies/catalog/schedulers.yaml")).unwrap();
        assert!(rows.schedulers.iter().all(|row| !row.source.is_empty()));
        assert_eq!(Schedulers::builtin(), &rows);
    }

    #[test]
    fn kai_reads_a_deployments_minimum_from_0_18_on() {
        let kai = Schedulers::builtin().find("kai").unwrap();
        let version = |minor| Some(SchedulerVersion { major: 0, minor });
        assert_eq!(kai.minimum("Deployment", version(17)), None);
        assert_eq!(
            kai.minimum("Deployment", version(18)),
            Some("kai.scheduler/batch-min-member")
        );
        assert_eq!(kai.minimum("Deployment", None), None);
        assert!(kai.minimum("Job", version(15)).is_some());
        assert_eq!(kai.minimum("StatefulSet", version(18)), None);
    }
}
