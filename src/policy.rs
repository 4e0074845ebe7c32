//! The policy: what a platform team decided, read strictly.
//!
//! A policy file is one document of `apiVersion: gangplank.dev/v1alpha1`, `kind: Policy`. Unknown
//! members, rules and values are errors that name the place; nothing is ignored silently. What the
//! file leaves out has the value that `policies/default.yaml` documents.

use std::{collections::BTreeMap, sync::Arc};

use globset::{GlobBuilder, GlobMatcher};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    catalog::{
        Catalog,
        engines::{Engine, Engines},
        instances::InstanceCatalog,
        metrics::{MetricCatalog, MetricRow},
    },
    exempt::{self, Terms},
    facts::Facts,
    finding::{FieldPath, Level},
    rules::{self, Kind, Params, RULES, Rule},
    subject::Subject,
    text::{hash, nearest},
};

mod effective;
mod tolerated;

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

/// The policy file as it is written.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyFile {
    /// `gangplank.dev/v1alpha1`.
    pub api_version: String,
    /// `Policy`.
    pub kind: String,
    /// Whether anything is denied or filled at all.
    pub mode: Mode,
    /// What becomes of a violation that the old object already had.
    pub existing_violations: ExistingViolations,
    /// Levels and parameters by rule id.
    pub rules: BTreeMap<String, RuleFile>,
    /// Levels and parameters for some namespaces; the last one that matches wins.
    pub overrides: Vec<OverrideFile>,
    /// Which namespaces serve production traffic.
    pub production: NamespacesFile,
    /// The scheduler that places groups of pods all or nothing.
    pub gang_scheduler: GangScheduler,
    /// Workloads that keep spare capacity warm for their namespace, as `<namespace>/<kind>/<name>`;
    /// the namespace may be a pattern.
    pub warm_pools: Vec<String>,
    /// Bounds of what exemptions may do.
    pub exemptions: ExemptionsFile,
    /// The webhook configurations of Gangplank itself.
    pub registration: RegistrationFile,
    /// What this site adds to the catalogues.
    pub catalog: CatalogFile,
}

/// Whether anything is denied or filled at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Denials deny, fills fill.
    #[default]
    Enforce,
    /// Everything is evaluated; denials become warnings and nothing is filled.
    DryRun,
}

impl Mode {
    /// As in the policy file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::DryRun => "dryRun",
        }
    }
}

/// What becomes of a violation that the old object already had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExistingViolations {
    /// It warns.
    #[default]
    Warn,
    /// It is denied like any other.
    Deny,
}

/// The level that a policy gives a rule.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "lowercase", from = "WrittenLevel")]
#[schemars(!from)]
pub enum RuleLevel {
    /// The rule is not run.
    Off,
    /// Reports and metrics only.
    Audit,
    /// A warning to whoever writes the object.
    Warn,
    /// The object is refused.
    Deny,
}

/// A level as it stands in a file: YAML 1.1, which Kubernetes reads, takes a bare `off` for `false`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a level is deny, warn, audit or off")]
enum WrittenLevel {
    Word(LevelWord),
    Flag(OffFlag),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum LevelWord {
    Off,
    Audit,
    Warn,
    Deny,
}

/// `false`, and not `true`.
#[derive(Deserialize)]
#[serde(try_from = "bool")]
struct OffFlag;

impl TryFrom<bool> for OffFlag {
    type Error = &'static str;

    fn try_from(flag: bool) -> Result<Self, Self::Error> {
        if flag {
            Err("true is no level")
        } else {
            Ok(Self)
        }
    }
}

impl From<WrittenLevel> for RuleLevel {
    fn from(written: WrittenLevel) -> Self {
        match written {
            WrittenLevel::Word(LevelWord::Off) | WrittenLevel::Flag(OffFlag) => Self::Off,
            WrittenLevel::Word(LevelWord::Audit) => Self::Audit,
            WrittenLevel::Word(LevelWord::Warn) => Self::Warn,
            WrittenLevel::Word(LevelWord::Deny) => Self::Deny,
        }
    }
}

impl RuleLevel {
    /// As in the policy file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Audit => "audit",
            Self::Warn => "warn",
            Self::Deny => "deny",
        }
    }

    /// The level of a finding; none where the rule is off.
    pub const fn level(self) -> Option<Level> {
        match self {
            Self::Off => None,
            Self::Audit => Some(Level::Audit),
            Self::Warn => Some(Level::Warn),
            Self::Deny => Some(Level::Deny),
        }
    }
}

/// What a policy says of a rule.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleFile {
    /// Instead of the rule's default level.
    pub level: Option<RuleLevel>,
    /// The rule's parameters; what is left out keeps its default.
    pub params: Option<Value>,
}

/// Levels and parameters for some namespaces.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct OverrideFile {
    /// Names and patterns (`team-*`) of namespaces.
    pub namespaces: Vec<String>,
    /// Labels of namespaces.
    pub namespace_selector: LabelSelector,
    /// Whether anything is denied or filled there.
    pub mode: Option<Mode>,
    /// Levels and parameters by rule id.
    pub rules: BTreeMap<String, RuleFile>,
}

/// Namespaces, by name or label.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespacesFile {
    /// Names and patterns of namespaces.
    pub namespaces: Vec<String>,
    /// Labels of namespaces.
    pub namespace_selector: LabelSelector,
}

/// Labels that all have to be there.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Keys and values.
    pub match_labels: BTreeMap<String, String>,
}

/// The scheduler that places groups of pods all or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct GangScheduler {
    /// Which one.
    pub name: SchedulerName,
    /// Its version, as `0.18`; one that is not declared counts as older than every feature.
    pub version: Option<SchedulerVersion>,
    /// The `schedulerName` its pods carry; the project's own default where left out.
    pub scheduler_name: Option<String>,
    /// Whether a model server whose ranks all fit one pod has to go there too.
    pub single_pod: SinglePod,
    /// The queue by namespace: a name or a pattern; an exact name wins, then the longest pattern.
    pub queues: BTreeMap<String, String>,
}

impl Default for GangScheduler {
    fn default() -> Self {
        Self {
            name: SchedulerName::Kai,
            version: Some(SchedulerVersion {
                major: 0,
                minor: 18,
            }),
            scheduler_name: None,
            single_pod: SinglePod::Auto,
            queues: BTreeMap::new(),
        }
    }
}

/// The gang schedulers known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SchedulerName {
    /// KAI Scheduler.
    Kai,
    /// Volcano.
    Volcano,
    /// The native `PodGroup`s of Kubernetes.
    Kubernetes,
    /// Apache YuniKorn.
    Yunikorn,
    /// The coscheduling plugin of scheduler-plugins.
    Coscheduling,
    /// NVIDIA Run:ai.
    Runai,
    /// Whichever the cluster serves.
    Auto,
    /// None: groups cannot be placed all or nothing here.
    None,
}

impl SchedulerName {
    /// As in the policy file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kai => "kai",
            Self::Volcano => "volcano",
            Self::Kubernetes => "kubernetes",
            Self::Yunikorn => "yunikorn",
            Self::Coscheduling => "coscheduling",
            Self::Runai => "runai",
            Self::Auto => "auto",
            Self::None => "none",
        }
    }
}

/// A version of a scheduler, by its first two numbers.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct SchedulerVersion {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl TryFrom<String> for SchedulerVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut numbers = text.strip_prefix('v').unwrap_or(&text).split('.');
        let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
        match (next(), next()) {
            (Some(major), Some(minor)) => Ok(Self { major, minor }),
            _ => Err(format!("\"{text}\" is no version; write it as \"0.18\"")),
        }
    }
}

impl From<SchedulerVersion> for String {
    fn from(version: SchedulerVersion) -> Self {
        format!("{}.{}", version.major, version.minor)
    }
}

/// Whether a model server whose ranks all fit one pod has to go to the gang scheduler too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SinglePod {
    /// Yes, except that where the cluster is known not to serve that scheduler it is a warning.
    #[default]
    Auto,
    /// Yes.
    Require,
    /// A warning.
    Warn,
    /// No: any scheduler places one pod as a whole.
    Allow,
}

/// Bounds of what exemptions may do.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ExemptionsFile {
    /// How many days ahead a new exemption may end.
    pub max_days: u32,
    /// Exemptions of whole namespaces.
    pub namespaces: Vec<NamespaceExemption>,
    /// Users and groups whose own right to exempt does not count, such as the account of a GitOps
    /// controller that writes for everybody.
    pub review_required: Vec<String>,
}

impl Default for ExemptionsFile {
    fn default() -> Self {
        Self {
            max_days: 90,
            namespaces: Vec::new(),
            review_required: Vec::new(),
        }
    }
}

/// An exemption of whole namespaces from some rules.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceExemption {
    /// Names and patterns of namespaces; cluster-scoped objects match none.
    pub namespaces: Vec<String>,
    /// The ids of the rules.
    pub rules: Vec<String>,
    /// The last day (UTC) it holds, as `2027-01-31`.
    pub until: String,
    /// Who answers for it.
    pub owner: String,
    /// Why.
    pub reason: String,
}

/// What this site adds to the catalogues.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct CatalogFile {
    /// Metric names and what they mean.
    pub metrics: Vec<MetricRow>,
    /// Model servers and their flags.
    pub engines: Vec<Engine>,
    /// Instance types and families and what they hold.
    pub instances: Vec<Value>,
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

/// A set of namespaces.
#[derive(Debug, Default)]
struct Namespaces {
    patterns: Vec<Pattern>,
    labels: BTreeMap<String, String>,
}

/// A workload that keeps spare capacity warm.
#[derive(Clone, Debug)]
struct WarmPool {
    namespace: Pattern,
    kind: String,
    name: String,
}

impl WarmPool {
    fn read(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let [namespace, kind, name] = parts.as_slice() else {
            return Err(format!("\"{text}\" is not <namespace>/<kind>/<name>"));
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(format!("\"{text}\" is not <namespace>/<kind>/<name>"));
        }
        Ok(Self {
            namespace: Pattern::new(namespace)?,
            kind: (*kind).to_owned(),
            name: (*name).to_owned(),
        })
    }
}

/// What a policy says of exemptions.
#[derive(Clone, Debug, Default)]
pub struct Exemptions {
    /// How many days ahead a new exemption may end.
    pub max_days: u32,
    namespaces: Vec<NamespacesExempted>,
    review_required: Vec<String>,
}

/// Namespaces that are exempt from some rules.
#[derive(Clone, Debug)]
pub struct NamespacesExempted {
    /// The position in `exemptions.namespaces`.
    pub index: usize,
    /// The names and patterns as they are written.
    pub namespaces: Vec<String>,
    /// The rules.
    pub rules: Vec<&'static str>,
    /// Until when, on whose account and why.
    pub terms: Terms,
    patterns: Vec<Pattern>,
}

impl NamespacesExempted {
    fn read(index: usize, written: &NamespaceExemption) -> Result<Self, PolicyError> {
        let path = FieldPath::of(&["exemptions", "namespaces"]).index(index);
        let wrong = |path: FieldPath, message: String| PolicyError { path, message };
        if written.namespaces.is_empty() {
            let message = "names no namespace".to_owned();
            return Err(wrong(path.key("namespaces"), message));
        }
        if written.rules.is_empty() {
            return Err(wrong(path.key("rules"), "names no rule".to_owned()));
        }
        for (member, text) in [("owner", &written.owner), ("reason", &written.reason)] {
            if text.trim().is_empty() {
                let message = format!("is empty; every exemption has its {member}");
                return Err(wrong(path.key(member), message));
            }
        }
        let patterns = Namespaces::read(&path, &written.namespaces, &LabelSelector::default())?;
        let mut rules = Vec::new();
        for (position, id) in written.rules.iter().enumerate() {
            let place = || path.clone().key("rules").index(position);
            let rule = rules::find(id).map_err(|message| wrong(place(), message))?;
            if !exempt::is_exemptable(rule) {
                let message = format!("nobody is exempt from {id}");
                return Err(wrong(place(), message));
            }
            rules.push(rule.id);
        }
        let until = exempt::date(written.until.trim()).map_err(|fault| {
            let message = format!("{fault}; write it as 2027-01-31");
            wrong(path.clone().key("until"), message)
        })?;
        Ok(Self {
            index,
            namespaces: written.namespaces.clone(),
            rules,
            terms: Terms {
                until,
                owner: written.owner.trim().to_owned(),
                reason: written.reason.trim().to_owned(),
            },
            patterns: patterns.patterns,
        })
    }

    /// Whether a namespace is one of them.
    pub fn covers(&self, namespace: &str) -> bool {
        let mut patterns = self.patterns.iter();
        patterns.any(|pattern| pattern.matches(namespace))
    }

    /// Where it stands in the policy file.
    pub fn path(&self) -> FieldPath {
        FieldPath::of(&["exemptions", "namespaces"]).index(self.index)
    }
}

impl Exemptions {
    /// The exemptions of whole namespaces, in the order of the file.
    pub fn namespaces(&self) -> &[NamespacesExempted] {
        &self.namespaces
    }

    /// The exemption of a namespace from a rule that holds longest, over or not.
    pub fn of_namespace(&self, namespace: Option<&str>, rule: &str) -> Option<&NamespacesExempted> {
        let namespace = namespace?;
        self.namespaces
            .iter()
            .filter(|exempted| exempted.rules.contains(&rule) && exempted.covers(namespace))
            .max_by_key(|exempted| exempted.terms.until)
    }

    /// Whether the right of this user to exempt does not count.
    pub fn is_review_required(&self, user: &str, groups: &[String]) -> bool {
        self.review_required
            .iter()
            .any(|listed| listed == user || groups.contains(listed))
    }

    /// A line for each exemption that has ended, or ends soon.
    pub fn ending(&self, now: Timestamp) -> Vec<String> {
        self.namespaces
            .iter()
            .filter_map(|exempted| {
                let Terms { until, owner, .. } = &exempted.terms;
                let (path, rules) = (exempted.path(), exempted.rules.join(", "));
                let what = format!("the policy's {path} ({rules}; owner {owner})");
                if exempted.terms.is_over(now) {
                    Some(format!("{what} ended with {until} and exempts nothing"))
                } else if exempted.terms.ends_soon(now) {
                    Some(format!("{what} ends with {until}"))
                } else {
                    None
                }
            })
            .collect()
    }
}

/// A name, or a pattern with `*` and `?`.
#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    matcher: Option<GlobMatcher>,
}

impl Pattern {
    fn new(text: &str) -> Result<Self, String> {
        let matcher = if text.contains(['*', '?', '[', '{']) {
            let glob = GlobBuilder::new(text)
                .literal_separator(false)
                .build()
                .map_err(|error| format!("\"{text}\" is no pattern: {}", error.kind()))?;
            Some(glob.compile_matcher())
        } else {
            None
        };
        Ok(Self {
            text: text.to_owned(),
            matcher,
        })
    }

    fn matches(&self, name: &str) -> bool {
        self.matcher
            .as_ref()
            .map_or(self.text == name, |matcher| matcher.is_match(name))
    }
}

impl Namespaces {
    fn read(
        path: &FieldPath,
        names: &[String],
        selector: &LabelSelector,
    ) -> Result<Self, PolicyError> {
        let patterns = names
            .iter()
            .enumerate()
            .map(|(index, name)| {
                Pattern::new(name).map_err(|message| PolicyError {
                    path: path.clone().key("namespaces").index(index),
                    message,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            patterns,
            labels: selector.match_labels.clone(),
        })
    }

    /// A namespace whose labels are not known matches no selector.
    fn contain(&self, namespace: &str, facts: &Facts) -> bool {
        if self
            .patterns
            .iter()
            .any(|pattern| pattern.matches(namespace))
        {
            return true;
        }
        if self.labels.is_empty() {
            return false;
        }
        self.labels
            .iter()
            .all(|(key, value)| facts.namespace_label(namespace, key) == Some(value))
    }
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
            (
                pattern.matcher.is_some(),
                std::cmp::Reverse(pattern.text.len()),
            )
        });
        let exempted = file.exemptions.namespaces.iter().enumerate();
        let exemptions = Exemptions {
            max_days: file.exemptions.max_days,
            namespaces: exempted
                .map(|(index, written)| NamespacesExempted::read(index, written))
                .collect::<Result<_, _>>()?,
            review_required: file.exemptions.review_required.clone(),
        };
        let warm_pools = file
            .warm_pools
            .iter()
            .enumerate()
            .map(|(index, text)| {
                WarmPool::read(text)
                    .map_err(|message| wrong(FieldPath::of(&["warmPools"]).index(index), message))
            })
            .collect::<Result<_, _>>()?;
        let tolerated = Tolerated::read(&file.registration)?;
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

    /// Whether anything is denied or filled in a namespace; without one, for cluster-scoped objects.
    pub fn mode_in(&self, namespace: Option<&str>, facts: &Facts) -> Mode {
        let Some(namespace) = namespace else {
            return self.mode;
        };
        let overrides = self.overrides.iter().rev();
        overrides
            .filter_map(|one| Some((one.mode?, &one.namespaces)))
            .find(|(_, namespaces)| namespaces.contain(namespace, facts))
            .map_or(self.mode, |(mode, _)| mode)
    }

    /// Whether the policy is enforced on some object of a kind.
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

    /// What it says of exemptions.
    pub const fn exemptions(&self) -> &Exemptions {
        &self.exemptions
    }

    /// What others may add to the namespace selectors of the webhook entries.
    pub fn tolerated(&self) -> &[Tolerated] {
        &self.tolerated
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

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use serde_json::json;

    use super::*;

    fn with(members: Value) -> Result<Policy, PolicyError> {
        let Value::Object(members) = members else {
            panic!("members")
        };
        let mut document = json!({"apiVersion": API_VERSION, "kind": "Policy"});
        document.as_object_mut().unwrap().extend(members);
        Policy::from_document(&document)
    }

    fn error(members: Value) -> (String, String) {
        let error = with(members).unwrap_err();
        (error.path.to_string(), error.message)
    }

    #[test]
    fn the_embedded_default_is_valid_and_says_what_silence_means() {
        let document: Value = serde_saphyr::from_str(DEFAULT).unwrap();
        let written = Policy::from_document(&document).unwrap();
        let silent = with(json!({})).unwrap();
        assert_eq!(written.mode, silent.mode);
        assert_eq!(written.existing_violations, silent.existing_violations);
        assert_eq!(written.gang_scheduler, silent.gang_scheduler);
        for rule in RULES {
            assert_eq!(
                written.settings[rule.id].level, silent.settings[rule.id].level,
                "{}",
                rule.id
            );
        }
    }

    #[test]
    fn errors_name_the_place() {
        assert_eq!(error(json!({"mod": "enforce"})).0, "mod");
        assert_eq!(error(json!({"mode": "enforcing"})).0, "mode");
        assert_eq!(
            error(json!({"rules": {"no-such-rule": {}}})).0,
            "rules.no-such-rule"
        );
        assert_eq!(
            error(json!({"gangScheduler": {"version": "new"}})).0,
            "gangScheduler.version"
        );
        assert_eq!(
            error(json!({"overrides": [{"rules": {}}]})).0,
            "overrides[0]"
        );
        assert_eq!(
            error(json!({"overrides": [{"namespaces": ["a{"]}]})).0,
            "overrides[0].namespaces[0]"
        );
        assert_eq!(error(json!({"kind": "Policies"})).0, "kind");
        assert_eq!(
            error(json!({"catalog": {"metrics": [{"names": ["x"]}]}})).0,
            "catalog.metrics[0]"
        );
    }

    #[test]
    fn errors_name_the_word_that_may_have_been_meant() {
        let said = |members: Value, meant: &str| {
            let (_, message) = error(members);
            let says = format!("did you mean {meant}?");
            assert!(message.ends_with(&says), "{message}");
        };
        said(json!({"existingViolation": "warn"}), "`existingViolations`");
        said(json!({"mode": "dry-run"}), "`dryRun`");
        said(
            json!({"gangScheduler": {"single_pod": "auto"}}),
            "`singlePod`",
        );
        said(
            json!({"rules": {"gpu-utilisation-signal": {}}}),
            "gpu-utilization-signal",
        );
        said(
            json!({"rules": {"termination-grace": {"params": {"minimum-seconds": 5}}}}),
            "`minimumSeconds`",
        );
        let (_, far) = error(json!({"xyz": 1}));
        assert!(!far.contains("did you mean"), "{far}");
        let (_, far) = error(json!({"rules": {"xyz": {}}}));
        assert!(
            far.contains("the rules are gpu-utilization-signal, "),
            "{far}"
        );
    }

    #[test]
    fn parameters_out_of_bounds_are_refused() {
        let with_grace = |seconds: i64| json!({"rules": {"termination-grace": {"params": {"minimumSeconds": seconds}}}});
        let path = "rules.termination-grace.params.minimumSeconds".to_owned();
        let refused = |seconds, why: &str| {
            assert_eq!(error(with_grace(seconds)), (path.clone(), why.to_owned()));
        };
        refused(0, "is 0; the least is 1");
        refused(100_000, "is 100000; the most is 86400");
        assert!(error(with_grace(-1)).1.contains("invalid value"), "no u64");
        assert!(with(with_grace(1)).is_ok());
    }

    #[test]
    fn an_exemption_of_namespaces_is_read_strictly() {
        let good = json!({
            "namespaces": ["team-*"], "rules": ["gang-scheduling"], "until": "2027-01-31",
            "owner": "team-llm", "reason": "migration",
        });
        let with_member = |key: &str, value: Value| {
            let mut one = good.clone();
            one[key] = value;
            json!({"exemptions": {"namespaces": [good.clone(), one]}})
        };
        let policy = with(with_member("until", json!("2027-12-31"))).unwrap();
        let exempted = policy
            .exemptions()
            .of_namespace(Some("team-a"), "gang-scheduling")
            .unwrap();
        assert_eq!(
            exempted.terms.until.to_string(),
            "2027-12-31",
            "the longest"
        );
        let of = |namespace, rule| policy.exemptions().of_namespace(namespace, rule).is_some();
        assert!(!of(Some("other"), "gang-scheduling"));
        assert!(!of(Some("team-a"), "gpu-utilization-signal"));
        assert!(!of(None, "gang-scheduling"), "cluster-scoped");
        let mut text = String::new();
        for (key, value) in [
            ("until", json!("31.01.2027")),
            ("until", json!("2027-02-30")),
            ("until", json!(20_270_131)),
            ("until", json!("")),
            ("namespaces", json!([])),
            ("namespaces", json!(["a{"])),
            ("rules", json!([])),
            ("rules", json!(["gang-schedulling"])),
            ("rules", json!(["exemption-malformed"])),
            ("owner", json!(" ")),
            ("reason", json!("")),
            ("rule", json!("gang-scheduling")),
        ] {
            let (path, message) = error(with_member(key, value));
            writeln!(text, "{path}: {message}").unwrap();
        }
        let without = json!({"exemptions": {"namespaces": [{"namespaces": ["a"]}]}});
        let (path, message) = error(without);
        writeln!(text, "{path}: {message}").unwrap();
        insta::assert_snapshot!(text);
    }

    #[test]
    fn an_exact_namespace_wins_over_patterns_and_longer_patterns_over_shorter() {
        let queues = json!({"*": "rest", "team-*": "teams", "team-a": "a"});
        let policy = with(json!({"gangScheduler": {"queues": queues}})).unwrap();
        assert_eq!(policy.queue_for("team-a"), Some("a"));
        assert_eq!(policy.queue_for("team-b"), Some("teams"));
        assert_eq!(policy.queue_for("other"), Some("rest"));
        assert_eq!(with(json!({})).unwrap().queue_for("team-a"), None);
    }

    #[test]
    fn a_bare_off_is_off_and_not_a_boolean() {
        let rule = RULES[0];
        for level in [json!("off"), json!(false)] {
            let policy = with(json!({"rules": {rule.id: {"level": level}}})).unwrap();
            assert_eq!(policy.settings[rule.id].level, RuleLevel::Off);
        }
        for level in [json!("loud"), json!(true), json!(1)] {
            let (path, message) = error(json!({"rules": {rule.id: {"level": level}}}));
            assert_eq!(path, format!("rules.{}.level", rule.id));
            assert!(message.contains("deny, warn, audit or off"), "{message}");
        }
    }

    #[test]
    fn the_examples_are_policies() {
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/examples");
        let mut seen = 0;
        for file in std::fs::read_dir(examples).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let document: Value = serde_saphyr::from_str(&text).unwrap();
            if let Err(error) = Policy::from_document(&document) {
                panic!("{}: {error}", path.display());
            }
            seen += 1;
        }
        assert!(seen > 0);
    }

    #[test]
    fn a_namespace_may_be_enforced_before_the_others() {
        let policy = with(json!({"mode": "dryRun", "overrides": [
            {"namespaces": ["team-*"], "mode": "enforce"},
            {"namespaces": ["team-late"], "mode": "dryRun"},
            {"namespaces": ["team-a"], "rules": {}},
        ]}))
        .unwrap();
        let mode = |namespace| policy.mode_in(namespace, &Facts::unknown());
        assert_eq!(mode(Some("team-a")), Mode::Enforce);
        assert_eq!(mode(Some("team-late")), Mode::DryRun, "the last one wins");
        assert_eq!(mode(Some("other")), Mode::DryRun);
        assert_eq!(
            mode(None),
            Mode::DryRun,
            "cluster-scoped objects match none"
        );
        let gang = rules::rule("gang-scheduling").unwrap();
        let pools = rules::rule("gpu-pool-consolidation").unwrap();
        assert!(gang.kinds.iter().all(|kind| policy.may_deny(gang, kind)));
        assert!(!pools.kinds.iter().any(|kind| policy.may_deny(pools, kind)));
    }

    #[test]
    fn the_hash_follows_the_content() {
        let hash = |members| with(members).unwrap().hash().to_owned();
        assert_eq!(hash(json!({})), hash(json!({})));
        assert_ne!(hash(json!({})), hash(json!({"mode": "dryRun"})));
    }
}
