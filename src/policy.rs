//! The policy: what a platform team decided, read strictly.
//!
//! A policy file is one document of `apiVersion: gangplank.dev/v1alpha1`, `kind: Policy`. Unknown
//! members, rules and values are errors that name the place; nothing is ignored silently. What the
//! file leaves out has the value that `policies/default.yaml` documents.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    catalog::{Catalog, engines::Engines, instances::InstanceCatalog, metrics::MetricCatalog},
    facts::Facts,
    finding::{FieldPath, Level},
    rules::{self, Kind, Params, RULES, Rule},
    subject::Subject,
    text::{hash, nearest},
};

mod effective;
mod exemptions;
mod file;
mod namespaces;
mod restore;
#[cfg(test)]
mod tests;
mod tolerated;

pub use exemptions::{Exemptions, NamespacesExempted};
pub use file::{
    CatalogFile, ExemptionsFile, ExistingViolations, GangScheduler, LabelSelector, Mode,
    NamespaceExemption, NamespacesFile, OverrideFile, PolicyFile, RestoreFile, RuleFile, RuleLevel,
    SchedulerName, SchedulerVersion, SinglePod,
};
use namespaces::{Namespaces, Pattern, WarmPool};
pub use restore::RESTORE_DAYS;
use restore::Restore;
pub use tolerated::{Excluding, RegistrationFile, Tolerated, ToleratedFile};

/// The API version of the policy file.
pub const API_VERSION: &str = "gangplank.dev/v1alpha1";

/// The policy that holds where no file is given.
pub const DEFAULT: &str = include_str!("../policies/default.yaml");

/// Why a policy could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct PolicyError {
    /// The member that it is about.
    pub path: FieldPath,
    /// What is wrong with it.
    pub message: String,
}

/// Reads a value strictly; the error names the member.
///
/// # Errors
/// Where the value is not of the type: a wrong type, an unknown member, a value out of range.
pub fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, PolicyError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let mut path = FieldPath::new();
        for segment in error.path() {
            path = match segment {
                serde_path_to_error::Segment::Seq { index } => path.index(*index),
                serde_path_to_error::Segment::Map { key } => path.key(key),
                serde_path_to_error::Segment::Enum { variant } => path.key(variant),
                serde_path_to_error::Segment::Unknown => path,
            };
        }
        PolicyError {
            path,
            message: with_nearest(error.into_inner().to_string()),
        }
    })
}

/// Adds the word that may have been meant where serde says which ones it knows: "unknown field `a`,
/// expected `b` or `c`", "unknown variant `a`, expected one of `b`, `c`".
fn with_nearest(message: String) -> String {
    let quoted = |text: &str| -> Vec<String> {
        text.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    let Some((unknown, known)) = message
        .strip_prefix("unknown ")
        .and_then(|rest| rest.split_once(", expected "))
    else {
        return message;
    };
    let (unknown, known) = (quoted(unknown), quoted(known));
    match unknown
        .first()
        .and_then(|word| nearest(word, known.iter().map(String::as_str)))
    {
        Some(meant) => format!("{message}; did you mean `{meant}`?"),
        None => message,
    }
}

/// A policy that was read and checked.
#[derive(Debug)]
pub struct Policy {
    /// Whether anything is denied or filled at all.
    pub mode: Mode,
    /// What becomes of a violation that the old object already had.
    pub existing_violations: ExistingViolations,
    /// The scheduler that places groups of pods all or nothing.
    pub gang_scheduler: GangScheduler,
    /// As it was written.
    file: PolicyFile,
    settings: BTreeMap<&'static str, Setting>,
    overrides: Vec<Override>,
    restores: Vec<Restore>,
    production: Namespaces,
    queues: Vec<(Pattern, String)>,
    warm_pools: Vec<WarmPool>,
    exemptions: Exemptions,
    tolerated: Vec<Tolerated>,
    catalog: Catalog,
    hash: String,
}

#[derive(Clone)]
struct Setting {
    level: RuleLevel,
    params: Params,
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setting")
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Override {
    namespaces: Namespaces,
    mode: Option<Mode>,
    settings: BTreeMap<&'static str, (Option<RuleLevel>, Option<Params>)>,
}

/// What holds for one rule on one object.
#[derive(Clone)]
pub struct Effective<'p> {
    /// The level.
    pub level: RuleLevel,
    /// The parameters.
    pub params: &'p Params,
}

impl Policy {
    /// Checks a policy document.
    ///
    /// # Errors
    /// Names the member that is wrong, and why.
    pub fn from_document(document: &Value) -> Result<Self, PolicyError> {
        let file: PolicyFile = from_value(document)?;
        let wrong = |path: FieldPath, message: String| PolicyError { path, message };
        if file.api_version != API_VERSION {
            return Err(wrong(
                FieldPath::of(&["apiVersion"]),
                format!("is \"{}\", expected \"{API_VERSION}\"", file.api_version),
            ));
        }
        if file.kind != "Policy" {
            return Err(wrong(
                FieldPath::of(&["kind"]),
                format!("is \"{}\", expected \"Policy\"", file.kind),
            ));
        }
        let mut settings: BTreeMap<&'static str, Setting> = RULES
            .iter()
            .map(|rule| {
                let level = match rule.level {
                    Level::Deny => RuleLevel::Deny,
                    Level::Warn => RuleLevel::Warn,
                    Level::Audit | Level::Info => RuleLevel::Audit,
                };
                (
                    rule.id,
                    Setting {
                        level,
                        params: (rule.params.default)(),
                    },
                )
            })
            .collect();
        for (rule, level, params) in read_rules(&FieldPath::of(&["rules"]), &file.rules)? {
            if let Some(setting) = settings.get_mut(rule.id) {
                setting.level = level.unwrap_or(setting.level);
                if let Some(params) = params {
                    setting.params = params;
                }
            }
        }
        let mut overrides = Vec::new();
        for (index, written) in file.overrides.iter().enumerate() {
            let path = FieldPath::of(&["overrides"]).index(index);
            let namespaces =
                Namespaces::read(&path, &written.namespaces, &written.namespace_selector)?;
            if namespaces.patterns.is_empty() && namespaces.labels.is_empty() {
                return Err(wrong(
                    path,
                    "names no namespace: give it namespaces or a namespaceSelector".to_owned(),
                ));
            }
            let settings = read_rules(&path.key("rules"), &written.rules)?
                .into_iter()
                .map(|(rule, level, params)| (rule.id, (level, params)))
                .collect();
            overrides.push(Override {
                namespaces,
                mode: written.mode,
                settings,
            });
        }
        let production = Namespaces::read(
            &FieldPath::of(&["production"]),
            &file.production.namespaces,
            &file.production.namespace_selector,
        )?;
        let mut queues = Vec::new();
        for (namespace, queue) in &file.gang_scheduler.queues {
            let path = FieldPath::of(&["gangScheduler", "queues"]).key(namespace);
            if queue.is_empty() {
                return Err(wrong(path, "names no queue".to_owned()));
            }
            let pattern = Pattern::new(namespace).map_err(|message| wrong(path, message))?;
            queues.push((pattern, queue.clone()));
        }
        // An exact name first, then the longest pattern.
        queues.sort_by_key(|(pattern, _)| {
            (!pattern.is_exact(), std::cmp::Reverse(pattern.text.len()))
        });
        let exemptions = Exemptions::read(&file.exemptions)?;
        let tolerated = Tolerated::read(&file.registration)?;
        let restores = file.restore.iter().enumerate();
        let restores = restores
            .map(|(index, written)| Restore::read(index, written))
            .collect::<Result<_, _>>()?;
        let warm_pools = file
            .warm_pools
            .iter()
            .enumerate()
            .map(|(index, text)| {
                WarmPool::read(text)
                    .map_err(|message| wrong(FieldPath::of(&["warmPools"]).index(index), message))
            })
            .collect::<Result<_, _>>()?;
        let mut catalog = Catalog {
            instances: InstanceCatalog::with_site_rows(&file.catalog.instances)?,
            ..Catalog::default()
        };
        if !file.catalog.engines.is_empty() {
            for (index, engine) in file.catalog.engines.iter().enumerate() {
                let path = FieldPath::of(&["catalog", "engines"]).index(index);
                engine
                    .validate()
                    .map_err(|(member, message)| wrong(path.key(member), message))?;
            }
            catalog.site_engines = Some(Arc::new(Engines::with(&file.catalog.engines)));
        }
        if !file.catalog.metrics.is_empty() {
            let metrics =
                MetricCatalog::with_site(&file.catalog.metrics).map_err(|(index, error)| {
                    let path = FieldPath::of(&["catalog", "metrics"]).index(index);
                    wrong(path, error.to_string())
                })?;
            catalog.site_metrics = Some(metrics);
        }
        Ok(Self {
            mode: file.mode,
            existing_violations: file.existing_violations,
            gang_scheduler: file.gang_scheduler.clone(),
            file,
            settings,
            overrides,
            restores,
            production,
            queues,
            warm_pools,
            exemptions,
            tolerated,
            catalog,
            hash: hash(&document.to_string()),
        })
    }

    /// What holds for a rule on an object, by its namespace.
    pub fn effective(
        &self,
        rule: &Rule,
        subject: &Subject,
        facts: &Facts,
    ) -> Option<Effective<'_>> {
        self.effective_in(rule, subject.namespace.as_deref(), facts)
    }

    /// What holds for a rule in a namespace; without one, for cluster-scoped objects.
    fn effective_in(
        &self,
        rule: &Rule,
        namespace: Option<&str>,
        facts: &Facts,
    ) -> Option<Effective<'_>> {
        let setting = self.settings.get(rule.id)?;
        let mut effective = Effective {
            level: setting.level,
            params: &setting.params,
        };
        if let Some(namespace) = namespace {
            for one in self
                .overrides
                .iter()
                .filter(|one| one.settings.contains_key(rule.id))
            {
                if one.namespaces.contain(namespace, facts)
                    && let Some((level, params)) = one.settings.get(rule.id)
                {
                    effective.level = level.unwrap_or(effective.level);
                    effective.params = params.as_ref().unwrap_or(effective.params);
                }
            }
        }
        Some(effective)
    }

    /// Whether anything is denied or filled in a namespace at a moment; without one, for cluster-scoped
    /// objects, which no override and no restore concerns.
    pub fn mode_in(&self, namespace: Option<&str>, facts: &Facts, now: Timestamp) -> Mode {
        let Some(namespace) = namespace else {
            return self.mode;
        };
        if self.restores_in(namespace, now).next().is_some() {
            return Mode::DryRun;
        }
        let overrides = self.overrides.iter().rev();
        overrides
            .filter_map(|one| Some((one.mode?, &one.namespaces)))
            .find(|(_, namespaces)| namespaces.contain(namespace, facts))
            .map_or(self.mode, |(mode, _)| mode)
    }

    /// The restores that hold in a namespace at a moment.
    fn restores_in(&self, namespace: &str, now: Timestamp) -> impl Iterator<Item = &Restore> {
        let restores = self.restores.iter();
        restores.filter(move |restore| restore.holds(now) && restore.covers(namespace))
    }

    /// Checks what a clock has a say in: that every restore ends within [`RESTORE_DAYS`] days. To be asked
    /// wherever a policy is read; [`Self::mode_in`] takes no restore into account that ends later.
    ///
    /// # Errors
    /// Names the member whose date is too far ahead.
    pub fn check_dates(&self, now: Timestamp) -> Result<(), PolicyError> {
        let mut restores = self.restores.iter();
        restores.try_for_each(|restore| restore.check(now))
    }

    /// A line for each restore, and for each exemption of namespaces that has ended or ends soon: what
    /// whoever reads the policy has to be told.
    pub fn reminders(&self, now: Timestamp) -> Vec<String> {
        let restores = self.restores.iter().map(|restore| restore.told(now));
        restores.chain(self.exemptions.ending(now)).collect()
    }

    /// Whether the policy is enforced on some object of a kind, now or once a restore has ended.
    pub fn may_enforce(&self, kind: &Kind) -> bool {
        let anywhere = || {
            self.overrides
                .iter()
                .any(|one| one.mode == Some(Mode::Enforce))
        };
        self.mode == Mode::Enforce || (kind.namespaced && anywhere())
    }

    /// Whether this rule may be at deny for some object of a kind: what decides whether the kind goes
    /// to the webhook that may block a write.
    pub fn may_deny(&self, rule: &Rule, kind: &Kind) -> bool {
        self.may_enforce(kind) && self.may(rule, kind, |level| level == RuleLevel::Deny)
    }

    /// Whether this rule looks at some object of a kind.
    pub fn may_run(&self, rule: &Rule, kind: &Kind) -> bool {
        self.may(rule, kind, |level| level != RuleLevel::Off)
    }

    fn may(&self, rule: &Rule, kind: &Kind, is: impl Fn(RuleLevel) -> bool) -> bool {
        self.settings.get(rule.id).is_some_and(|setting| is(setting.level))
            // Cluster-scoped objects match no override.
            || kind.namespaced
                && self.overrides.iter().any(|one| {
                    one.settings
                        .get(rule.id)
                        .is_some_and(|(level, _)| level.is_some_and(&is))
                })
    }

    /// Kind and name of the workloads that keep capacity warm for a namespace.
    pub fn warm_pools(&self, namespace: &str) -> impl Iterator<Item = (&str, &str)> {
        self.warm_pools
            .iter()
            .filter(move |pool| pool.namespace.matches(namespace))
            .map(|pool| (pool.kind.as_str(), pool.name.as_str()))
    }

    /// Whether a namespace serves production traffic.
    pub fn is_production(&self, namespace: &str, facts: &Facts) -> bool {
        self.production.contain(namespace, facts)
    }

    /// The gang scheduler's queue for a namespace, by the policy's map.
    pub fn queue_for(&self, namespace: &str) -> Option<&str> {
        self.queues
            .iter()
            .find(|(pattern, _)| pattern.matches(namespace))
            .map(|(_, queue)| queue.as_str())
    }

    /// What others may add to the namespace selectors of the webhook entries.
    pub fn tolerated(&self) -> &[Tolerated] {
        &self.tolerated
    }

    /// What it says of exemptions.
    pub const fn exemptions(&self) -> &Exemptions {
        &self.exemptions
    }

    /// The catalogues, with what this site adds.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Tells policies apart: the same text gives the same hash on every replica.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

impl Default for Policy {
    /// The embedded default policy.
    fn default() -> Self {
        static DOCUMENT: std::sync::LazyLock<Value> =
            std::sync::LazyLock::new(|| serde_saphyr::from_str(DEFAULT).unwrap_or_default());
        // A test reads the embedded policy, so that this can only be the first branch.
        Self::from_document(&DOCUMENT).unwrap_or_else(|_| Self {
            mode: Mode::default(),
            existing_violations: ExistingViolations::default(),
            gang_scheduler: GangScheduler::default(),
            file: PolicyFile::default(),
            settings: BTreeMap::new(),
            overrides: Vec::new(),
            restores: Vec::new(),
            production: Namespaces::default(),
            warm_pools: Vec::new(),
            queues: Vec::new(),
            exemptions: Exemptions::default(),
            tolerated: Vec::new(),
            catalog: Catalog::default(),
            hash: String::new(),
        })
    }
}

type RuleSetting = (&'static Rule, Option<RuleLevel>, Option<Params>);

fn read_rules(
    path: &FieldPath,
    written: &BTreeMap<String, RuleFile>,
) -> Result<Vec<RuleSetting>, PolicyError> {
    written
        .iter()
        .map(|(id, setting)| {
            let path = path.clone().key(id);
            let rule = rules::find(id).map_err(|message| PolicyError {
                path: path.clone(),
                message,
            })?;
            let params = setting.params.as_ref().map(rule.params.parse).transpose();
            let params = params.map_err(|error| {
                let place = path.key("params").join(&error.path);
                PolicyError {
                    path: place,
                    message: error.message,
                }
            })?;
            Ok((rule, setting.level, params))
        })
        .collect()
}

/// A policy shared between the edges.
pub type Shared = Arc<Policy>;
