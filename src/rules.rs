//! The rules: one file each below this module, declared once with [`declare_rule!`]. What is said
//! there feeds the documentation, the policy's schema, reports, and the webhook configurations.

use std::{any::Any, cell::OnceCell, collections::BTreeSet, fmt, sync::Arc};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    budget::Budget,
    edit::Edit,
    facts::Facts,
    finding::{Confidence, FieldPath, Finding, Level},
    policy::Policy,
    signal::{self, Source},
    subject::{Subject, workload::Serving},
    text::nearest,
};

pub mod exemptions;
pub mod kinds;
pub mod node_pools;
pub mod objects;
pub mod page;
pub mod signals;
pub mod workloads;

/// Every rule, in the order in which findings of one field are shown.
pub static RULES: &[&Rule] = &[
    &signals::gpu_utilization_signal::GPU_UTILIZATION_SIGNAL,
    &signals::gpu_memory_signal::GPU_MEMORY_SIGNAL,
    &signals::opaque_signal::OPAQUE_SIGNAL,
    &signals::host_resource_signal::HOST_RESOURCE_SIGNAL,
    &signals::scale_to_zero::SCALE_TO_ZERO,
    &signals::short_scale_down::SHORT_SCALE_DOWN,
    &signals::shared_role_scaler::SHARED_ROLE_SCALER,
    &node_pools::gpu_pool_consolidation::GPU_POOL_CONSOLIDATION,
    &node_pools::gpu_pool_consolidate_after::GPU_POOL_CONSOLIDATE_AFTER,
    &node_pools::gpu_pool_taint::GPU_POOL_TAINT,
    &node_pools::gpu_pool_expiry::GPU_POOL_EXPIRY,
    &node_pools::gpu_pool_limits::GPU_POOL_LIMITS,
    &node_pools::gpu_pool_spot_only::GPU_POOL_SPOT_ONLY,
    &node_pools::gpu_pool_single_node::GPU_POOL_SINGLE_NODE,
    &node_pools::mig_mixed_pool::MIG_MIXED_POOL,
    &node_pools::gpu_capable_pool::GPU_CAPABLE_POOL,
    &workloads::gang_scheduling::GANG_SCHEDULING,
    &workloads::parallelism_fits_pod::PARALLELISM_FITS_POD,
    &workloads::stranded_gpus::STRANDED_GPUS,
    &workloads::termination_grace::TERMINATION_GRACE,
    &workloads::drain_hook::DRAIN_HOOK,
    &workloads::readiness_probe::READINESS_PROBE,
    &workloads::model_load_budget::MODEL_LOAD_BUDGET,
    &workloads::gang_priority::GANG_PRIORITY,
    &workloads::gang_scaling_floor::GANG_SCALING_FLOOR,
    &workloads::gang_topology::GANG_TOPOLOGY,
    &workloads::rollout_capacity::ROLLOUT_CAPACITY,
    &workloads::shared_memory::SHARED_MEMORY,
    &workloads::gpu_toleration::GPU_TOLERATION,
    &workloads::disruption_annotation::DISRUPTION_ANNOTATION,
    &workloads::gpu_requests_equal_limits::GPU_REQUESTS_EQUAL_LIMITS,
    // After all that reads the object.
    &objects::object_too_complex::OBJECT_TOO_COMPLEX,
    // Last: they look at what the others have found.
    &exemptions::exemption_malformed::EXEMPTION_MALFORMED,
    &exemptions::exemption_expired::EXEMPTION_EXPIRED,
    &exemptions::exemption_unused::EXEMPTION_UNUSED,
];

/// The rule of that id.
pub fn rule(id: &str) -> Option<&'static Rule> {
    RULES.iter().copied().find(|rule| rule.id == id)
}

/// The rule of that id.
///
/// # Errors
/// Says that there is none, and which one may have been meant.
pub fn find(id: &str) -> Result<&'static Rule, String> {
    let known = || RULES.iter().map(|rule| rule.id);
    rule(id).ok_or_else(|| match nearest(id, known()) {
        Some(meant) => format!("there is no rule \"{id}\"; did you mean {meant}?"),
        None => format!(
            "there is no rule \"{id}\"; the rules are {}",
            known().collect::<Vec<_>>().join(", ")
        ),
    })
}

/// Which part of the product a rule belongs to; also its folder below `rules/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// What autoscalers scale on.
    Signals,
    /// Karpenter NodePools.
    NodePools,
    /// Model servers.
    Workloads,
    /// Objects of any kind, as a whole.
    Objects,
    /// Exceptions from rules.
    Exemptions,
}

/// A kind that a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// The plural that the API server routes by.
    pub resource: &'static str,
    /// The versions that the webhook is registered for. Others reach it converted
    /// (`matchPolicy: Equivalent`), and files are read in any version.
    pub versions: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// How the API server tells, by itself, an object of this kind that we have no say in.
    pub relevance: kinds::Relevance,
}

/// Everything that is known of a rule. Made by [`declare_rule!`].
pub struct Rule {
    /// Kebab-case, as in the policy file and every output.
    pub id: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Which part of the product it belongs to.
    pub group: Group,
    /// The kinds it speaks of.
    pub kinds: &'static [&'static Kind],
    /// The labels of the object that it reads.
    pub labels: &'static [&'static str],
    /// The annotations of the object that it reads.
    pub annotations: &'static [&'static str],
    /// Its level where the policy says nothing. A finding that the rule itself makes weaker stays
    /// weaker whatever the policy's level.
    pub level: Level,
    /// What it may fill in, in words; `None` for a rule that only judges.
    pub fills: Option<&'static str>,
    /// The doc comment of its declaration, a line each.
    pub docs: &'static [&'static str],
    /// Its parameters.
    pub params: ParamsType,
    /// Judges an object.
    pub check: fn(&Context<'_>, &mut Findings),
    /// Fills silence.
    pub fill: Option<fn(&Context<'_>, &mut Edits)>,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Rule {
    /// Whether the rule speaks of that kind, in any version.
    pub fn covers(&self, group: &str, kind: &str) -> bool {
        self.kinds
            .iter()
            .any(|covered| covered.group == group && covered.kind == kind)
    }

    /// Where its page is found.
    pub fn help(&self) -> String {
        format!(
            "{}/blob/main/policies/RULES.md#{}",
            env!("CARGO_PKG_REPOSITORY"),
            self.id
        )
    }

    /// The doc comment as Markdown.
    pub fn documentation(&self) -> String {
        let mut out = String::new();
        for line in self.docs {
            out.push_str(line.strip_prefix(' ').unwrap_or(line));
            out.push('\n');
        }
        out
    }
}

/// Parameters of a rule, after they were read and checked.
pub type Params = Arc<dyn Any + Send + Sync>;

/// How a rule's parameters are read.
#[derive(Clone, Copy)]
pub struct ParamsType {
    /// Reads them; the error names the member it is about.
    pub parse: fn(&Value) -> Result<Params, ParamsError>,
    /// What holds where the policy says nothing.
    pub default: fn() -> Params,
    /// Writes them out whole, defaults included.
    pub write: fn(&Params) -> Value,
    /// Their JSON Schema.
    pub schema: fn() -> Value,
}

/// Why parameters could not be read.
#[derive(Debug)]
pub struct ParamsError {
    /// The member below `params`.
    pub path: FieldPath,
    /// What is wrong with it.
    pub message: String,
}

/// Rules without parameters.
#[derive(Clone, Copy, Debug, Default, Deserialize, serde::Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

impl ParamsType {
    /// The functions for one parameter type.
    pub const fn of<P>() -> Self
    where
        P: DeserializeOwned + serde::Serialize + Default + JsonSchema + Send + Sync + 'static,
    {
        Self {
            parse: |value| {
                let params =
                    crate::policy::from_value::<P>(value).map_err(|error| ParamsError {
                        path: error.path,
                        message: error.message,
                    })?;
                within(
                    &schemars::schema_for!(P).to_value(),
                    value,
                    &FieldPath::new(),
                )?;
                Ok(Arc::new(params))
            },
            default: || Arc::new(P::default()),
            write: |params| {
                params
                    .downcast_ref::<P>()
                    .and_then(|params| serde_json::to_value(params).ok())
                    .unwrap_or_default()
            },
            schema: || schemars::schema_for!(P).to_value(),
        }
    }
}

/// Whether numbers lie within the bounds that the schema gives them.
fn within(schema: &Value, value: &Value, path: &FieldPath) -> Result<(), ParamsError> {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    if let Some(number) = value.as_f64() {
        let wrong = match (bound("minimum"), bound("maximum")) {
            (Some(least), _) if number < least => Some(format!("the least is {least}")),
            (_, Some(most)) if number > most => Some(format!("the most is {most}")),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(ParamsError {
                path: path.clone(),
                message: format!("is {value}; {wrong}"),
            });
        }
    }
    let members = schema.get("properties").and_then(Value::as_object);
    for (name, member) in members.into_iter().flatten() {
        if let Some(value) = value.get(name) {
            within(member, value, &path.clone().key(name))?;
        }
    }
    if let (Some(each), Some(items)) = (schema.get("items"), value.as_array()) {
        for (index, item) in items.iter().enumerate() {
            within(each, item, &path.clone().index(index))?;
        }
    }
    Ok(())
}

/// What a rule sees. `P` are its parameters.
#[derive(Debug)]
pub struct Context<'a, P: ?Sized = dyn Any + Send + Sync> {
    /// The object under review.
    pub subject: &'a Subject,
    /// What else is known.
    pub facts: &'a Facts,
    /// The policy in force, with the catalogues.
    pub policy: &'a Policy,
    /// The rule's parameters, as they hold for this object's namespace.
    pub params: &'a P,
    /// The time of the review.
    pub now: Timestamp,
    /// What other rules have read off this object already.
    pub memo: &'a Memo<'a>,
}

/// What several rules read off one object, read once.
#[derive(Debug, Default)]
pub struct Memo<'a> {
    /// What reading it has cost.
    pub budget: Budget,
    pool: OnceCell<Option<node_pools::Judged<'a>>>,
    servings: OnceCell<Vec<Serving<'a>>>,
    sources: OnceCell<Vec<Source>>,
    fired: OnceCell<BTreeSet<&'static str>>,
}

impl Memo<'_> {
    /// Keeps the ids of the rules that have found something, for the rules about exemptions.
    pub fn keep_fired(&self, rules: BTreeSet<&'static str>) {
        // Set once, before the first rule that asks.
        let _ = self.fired.set(rules);
    }

    /// Whether a rule has found something; none where not all of them were asked.
    pub fn fired(&self, rule: &str) -> Option<bool> {
        Some(self.fired.get()?.contains(rule))
    }
}

impl<'a, P: ?Sized> Context<'a, P> {
    /// What the object serves: a model server on accelerators, several for a kind that holds
    /// several workloads.
    pub fn servings(&self) -> &'a [Serving<'a>] {
        self.memo.servings.get_or_init(|| {
            let engines = self.policy.catalog().engines();
            Serving::all(self.subject, self.facts, engines, &self.memo.budget)
        })
    }

    /// Judges what the object serves, as pods: one model server for each of its workloads, the one that
    /// decides how they are placed. What is found of one of several is told apart from the same fault
    /// of another; what something unseen may change is doubtful.
    pub fn each_serving(
        &self,
        out: &mut Findings,
        mut check: impl FnMut(&'a Serving<'a>, &mut Findings),
    ) {
        for serving in self.servings() {
            judged(serving, out, &mut check);
        }
    }

    /// Judges each model server by itself, those in further containers of the same pods as well.
    pub fn each_server(
        &self,
        out: &mut Findings,
        mut check: impl FnMut(&'a Serving<'a>, &mut Findings),
    ) {
        for serving in self.servings() {
            let first = std::iter::once(serving)
                .chain(&serving.beside)
                .map(|one| one.server.path.to_string())
                .min();
            for one in std::iter::once(serving).chain(&serving.beside) {
                let before = out.list.len();
                judged(one, out, &mut check);
                if first.as_ref() == Some(&one.server.path.to_string()) {
                    continue;
                }
                let name = one.server.container.name();
                for finding in out.list.iter_mut().skip(before) {
                    finding.fingerprint = format!("{}:{name}", finding.fingerprint);
                }
            }
        }
    }

    /// The object as a NodePool whose machines are known; none for other kinds, and for one that costs
    /// more than it may.
    fn pool(&self) -> Option<&'a node_pools::Judged<'a>> {
        let catalog = &self.policy.catalog().instances;
        self.memo
            .pool
            .get_or_init(|| node_pools::Judged::of(self.subject, catalog, &self.memo.budget))
            .as_ref()
    }

    /// Reads all of the object that costs more than its bytes, as the rules do, each part once.
    pub fn measure(&self) {
        self.sources();
        self.servings();
        self.pool();
    }

    /// What the object scales on, if it is an autoscaler.
    pub fn sources(&self) -> &'a [Source] {
        self.memo.sources.get_or_init(|| {
            let catalog = self.policy.catalog().metrics();
            signal::sources(catalog, self.subject, &self.memo.budget)
        })
    }
}

impl<'a> Context<'a> {
    /// With the parameters under their own type; used by [`declare_rule!`].
    pub fn typed<P: Send + Sync + 'static>(&self) -> Option<Context<'a, P>> {
        Some(Context {
            subject: self.subject,
            facts: self.facts,
            policy: self.policy,
            params: self.params.downcast_ref::<P>()?,
            now: self.now,
            memo: self.memo,
        })
    }
}

/// Judges one server, and says of what is found how sure it is and which workload it is of.
fn judged<'a>(
    serving: &'a Serving<'a>,
    out: &mut Findings,
    check: &mut impl FnMut(&'a Serving<'a>, &mut Findings),
) {
    let before = out.list.len();
    check(serving, out);
    let workload = &serving.workload;
    for finding in out.list.iter_mut().skip(before) {
        if !workload.component.is_empty() {
            let component = workload.component;
            finding.fingerprint = format!("{component}:{}", finding.fingerprint);
        }
        if !workload.certain {
            finding.confidence = Confidence::Unknown;
            finding
                .message
                .push_str(" What its controller adds to it cannot be seen from here.");
        }
    }
}

/// Takes what a rule finds.
#[derive(Debug)]
pub struct Findings {
    rule: &'static Rule,
    list: Vec<Finding>,
}

impl Findings {
    /// For the findings of one rule.
    pub fn new(rule: &'static Rule) -> Self {
        Self {
            rule,
            list: Vec::new(),
        }
    }

    /// Reports at the rule's full level.
    pub fn report(&mut self, finding: Finding) {
        self.report_at(self.rule.level, finding);
    }

    /// Reports at a level of its own, weaker than the rule's.
    pub fn report_at(&mut self, level: Level, finding: Finding) {
        self.list.push(Finding {
            rule: self.rule.id,
            level,
            ..finding
        });
    }

    /// What was reported.
    pub fn into_vec(self) -> Vec<Finding> {
        self.list
    }
}

/// Takes what a rule fills. The edits of one rule are made together or not at all.
#[derive(Debug)]
pub struct Edits {
    list: Vec<Fill>,
}

/// One value filled in, and what to say of it.
#[derive(Clone, Debug)]
pub struct Fill {
    /// The edit.
    pub edit: Edit,
    /// Why that value.
    pub message: String,
}

impl Edits {
    /// None yet.
    pub const fn new() -> Self {
        Self { list: Vec::new() }
    }

    /// Gives a silent member its value.
    pub fn set(&mut self, path: FieldPath, value: impl Into<Value>, message: impl Into<String>) {
        let edit = Edit::Set {
            path,
            value: value.into(),
        };
        self.list.push(Fill {
            edit,
            message: message.into(),
        });
    }

    /// Appends an element to a list.
    pub fn append(&mut self, path: FieldPath, value: impl Into<Value>, message: impl Into<String>) {
        let edit = Edit::Append {
            path,
            value: value.into(),
        };
        self.list.push(Fill {
            edit,
            message: message.into(),
        });
    }

    /// Whether nothing is filled.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What is to be filled.
    pub fn into_vec(self) -> Vec<Fill> {
        self.list
    }
}

impl Default for Edits {
    fn default() -> Self {
        Self::new()
    }
}

/// The labels and annotations that some rule reads on objects of a kind.
pub fn metadata_read(group: &str, kind: &str) -> MetadataRead {
    let mut read = MetadataRead::default();
    for rule in RULES.iter().filter(|rule| rule.covers(group, kind)) {
        for label in rule.labels {
            read.labels.insert(*label);
        }
        for annotation in rule.annotations {
            read.annotations.insert(*annotation);
        }
    }
    read
}

/// Keys of labels and annotations, sorted.
#[derive(Clone, Debug, Default)]
pub struct MetadataRead {
    /// Label keys.
    pub labels: BTreeSet<&'static str>,
    /// Annotation keys.
    pub annotations: BTreeSet<&'static str>,
}

/// Declares a rule: its documentation as a doc comment under the headings *What it finds*, *Why it
/// hurts*, *Example* (a YAML block that the rule reports), *Instead* (one that it does not) and
/// *Sources*, then its facts.
#[macro_export]
macro_rules! declare_rule {
    (
        $(#[doc = $doc:literal])+
        $vis:vis static $name:ident = Rule {
            id: $id:literal,
            summary: $summary:literal,
            group: $group:ident,
            kinds: $kinds:expr,
            labels: $labels:expr,
            annotations: $annotations:expr,
            level: $level:ident,
            fills: $fills:expr,
            params: $params:ty,
            check: $check:path
            $(, fill: $fill:path)?
            $(,)?
        }
    ) => {
        $(#[doc = $doc])+
        $vis static $name: $crate::rules::Rule = $crate::rules::Rule {
            id: $id,
            summary: $summary,
            group: $crate::rules::Group::$group,
            kinds: $kinds,
            labels: $labels,
            annotations: $annotations,
            level: $crate::finding::Level::$level,
            fills: $fills,
            docs: &[$($doc),+],
            params: $crate::rules::ParamsType::of::<$params>(),
            check: |context, findings| {
                if let Some(context) = context.typed::<$params>() {
                    $check(&context, findings);
                }
            },
            fill: $crate::declare_rule!(@fill $params $(, $fill)?),
        };
    };
    (@fill $params:ty) => { None };
    (@fill $params:ty, $fill:path) => {
        Some(|context, edits| {
            if let Some(context) = context.typed::<$params>() {
                $fill(&context, edits);
            }
        })
    };
}
