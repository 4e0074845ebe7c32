//! The policy file as it is written: its members, and what each of them may say.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RegistrationFile;
use crate::{
    catalog::{engines::Engine, metrics::MetricRow},
    finding::Level,
};

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
    /// Namespaces that are being restored from a backup: in dryRun for a few days, whatever the rest of the
    /// policy says.
    pub restore: Vec<RestoreFile>,
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

/// Namespaces that are being restored from a backup.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreFile {
    /// Names and patterns of namespaces; cluster-scoped objects match none.
    pub namespaces: Vec<String>,
    /// The last day (UTC) it holds, as `2027-01-31`: at most seven days ahead of today.
    pub until: String,
    /// Who answers for it.
    pub owner: String,
    /// Why.
    pub reason: String,
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
