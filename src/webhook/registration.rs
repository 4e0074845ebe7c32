//! The webhook configurations, generated from the rules and the policy.
//!
//! Three entries: `defaults` fills and never blocks; `enforce` may block a write, and so sees only
//! what some rule can deny; `advise` sees the rest and blocks nothing. Every object goes to exactly
//! one of the last two.
//!
//! Their `matchConditions` keep objects that no rule has a say in inside the API server. An error in
//! one of them refuses the write under `failurePolicy: Fail`, so each is total: every optional member
//! is asked for with `has()` before it is read, and an object too large to look through cheaply is
//! sent to us instead.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{
        MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations,
        ServiceReference, ValidatingWebhook, ValidatingWebhookConfiguration, WebhookClientConfig,
    },
    apimachinery::pkg::apis::meta::v1::{
        LabelSelector, LabelSelectorRequirement, ObjectMeta, OwnerReference,
    },
};

use crate::{
    catalog::controllers::{Controller, Controllers, ParentKind},
    exempt::PREFIX,
    policy::Policy,
    rules::{
        Group, Kind, RULES,
        kinds::{self, PodTemplates, Relevance, SCALED_OBJECT, Shape},
        metadata_read,
    },
    subject::{MODEL_SERVER_LABEL, hpa::KEDA_SELECTOR},
    webhook::TIMEOUT_SECONDS,
};

/// Who writes the configurations, as their managed fields tell.
pub const FIELD_MANAGER: &str = "gangplank";

/// The name of both configurations where no other is asked for.
pub const DEFAULT_NAME: &str = "gangplank";

/// Beyond this many members a condition looks through no list and no map: what it takes counts against a
/// budget, beyond which the condition has failed, and grows with the square of a map (100,000 limits of
/// one container took the API server over 30 s).
const CHEAP: usize = 64;

/// And beyond this many through no map of resources: there are two for each of these containers, in each of
/// these templates, and no container asks for as many.
const FEW: usize = 16;

/// How the API server reaches us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// At this URL, without a path.
    Url(String),
    /// Through a Service of the cluster.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its port.
        port: u16,
    },
}

/// What a failing call to `enforce` does to the write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum FailurePolicy {
    /// Refuses it.
    #[default]
    Fail,
    /// Lets it through.
    Ignore,
}

/// What the configurations are made from, besides rules and policy.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The name of both configurations.
    pub name: String,
    /// How the API server reaches us.
    pub reach: Reach,
    /// The certificates that it trusts us by, PEM; none where somebody else writes them.
    pub ca_bundle: Option<Vec<u8>>,
    /// Annotations of both configurations.
    pub annotations: BTreeMap<String, String>,
    /// Of the entry `enforce`.
    pub failure_policy: FailurePolicy,
    /// What the configurations belong to: the garbage collector removes them with it.
    pub owner: Option<OwnerReference>,
}

/// The configurations under one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Configurations {
    /// The entry `defaults`; without entries where nothing is to be filled.
    pub mutating: MutatingWebhookConfiguration,
    /// The entries `enforce` and `advise`, where they have anything to see.
    pub validating: ValidatingWebhookConfiguration,
}

/// One entry: kinds, each with the conditions under which its objects are sent.
struct Entry {
    kinds: Vec<(&'static Kind, Vec<String>)>,
}

impl Registration {
    /// Generates the configurations.
    pub fn configurations(&self, policy: &Policy) -> Configurations {
        let metadata = ObjectMeta {
            name: Some(self.name.clone()),
            labels: Some([("app.kubernetes.io/name".to_owned(), "gangplank".to_owned())].into()),
            annotations: (!self.annotations.is_empty()).then(|| self.annotations.clone()),
            owner_references: self.owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        };
        let (defaults, enforce, advise) = entries(policy);
        let mutating = defaults.map(|entry| MutatingWebhook {
            admission_review_versions: vec!["v1".to_owned()],
            client_config: self.client("/mutate"),
            failure_policy: Some("Ignore".to_owned()),
            match_conditions: Some(entry.conditions()),
            match_policy: Some("Equivalent".to_owned()),
            name: "defaults.gangplank.dev".to_owned(),
            namespace_selector: Some(self.namespaces()),
            object_selector: None,
            reinvocation_policy: Some("IfNeeded".to_owned()),
            rules: Some(entry.rules()),
            side_effects: "None".to_owned(),
            timeout_seconds: Some(TIMEOUT_SECONDS),
        });
        let validating = |entry: Option<Entry>, name: &str, path: &str, failure: FailurePolicy| {
            entry.map(|entry| ValidatingWebhook {
                admission_review_versions: vec!["v1".to_owned()],
                client_config: self.client(path),
                failure_policy: Some(format!("{failure:?}")),
                match_conditions: Some(entry.conditions()),
                match_policy: Some("Equivalent".to_owned()),
                name: format!("{name}.gangplank.dev"),
                namespace_selector: Some(self.namespaces()),
                object_selector: None,
                rules: Some(entry.rules()),
                side_effects: "None".to_owned(),
                timeout_seconds: Some(TIMEOUT_SECONDS),
            })
        };
        let enforce = validating(enforce, "enforce", "/validate", self.failure_policy);
        let advise = validating(advise, "advise", "/validate/advise", FailurePolicy::Ignore);
        Configurations {
            mutating: MutatingWebhookConfiguration {
                metadata: metadata.clone(),
                webhooks: Some(mutating.into_iter().collect()),
            },
            validating: ValidatingWebhookConfiguration {
                metadata,
                webhooks: Some(enforce.into_iter().chain(advise).collect()),
            },
        }
    }

    fn client(&self, path: &str) -> WebhookClientConfig {
        let ca_bundle = self.ca_bundle.clone().map(ByteString);
        match &self.reach {
            Reach::Url(base) => WebhookClientConfig {
                ca_bundle,
                service: None,
                url: Some(format!("{}{path}", base.trim_end_matches('/'))),
            },
            Reach::Service {
                namespace,
                name,
                port,
            } => WebhookClientConfig {
                ca_bundle,
                service: Some(ServiceReference {
                    name: name.clone(),
                    namespace: namespace.clone(),
                    path: Some(path.to_owned()),
                    port: Some(i32::from(*port)),
                }),
                url: None,
            },
        }
    }

    /// A cluster must be able to start again while we are down: its own namespace and ours stay out.
    fn namespaces(&self) -> LabelSelector {
        let mut values = vec!["kube-system".to_owned()];
        if let Reach::Service { namespace, .. } = &self.reach
            && namespace != "kube-system"
        {
            values.push(namespace.clone());
        }
        LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "kubernetes.io/metadata.name".to_owned(),
                operator: "NotIn".to_owned(),
                values: Some(values),
            }]),
            match_labels: None,
        }
    }
}

/// The entries `defaults`, `enforce` and `advise` under a policy.
fn entries(policy: &Policy) -> (Option<Entry>, Option<Entry>, Option<Entry>) {
    let mut kinds: Vec<&'static Kind> = Vec::new();
    for kind in RULES.iter().flat_map(|rule| rule.kinds) {
        if !kinds.contains(kind) {
            kinds.push(kind);
        }
    }
    let (mut defaults, mut enforce, mut advise) = (Vec::new(), Vec::new(), Vec::new());
    for kind in kinds {
        // The rules about exemptions speak of every kind; that one is malformed matters no more than
        // the rule that it is about. So does the one about an object's size, which only stands in for
        // rules that had too much to read.
        let of_kind = || {
            RULES.iter().filter(|rule| {
                rule.kinds.contains(&kind)
                    && !matches!(rule.group, Group::Objects | Group::Exemptions)
            })
        };
        let ours = ours(kind);
        if policy.may_enforce(kind)
            && kinds::is_filled(kind.group, kind.kind)
            && of_kind().any(|rule| rule.fill.is_some() && policy.may_run(rule, kind))
        {
            defaults.push((kind, ours.clone()));
        }
        if of_kind().any(|rule| policy.may_deny(rule, kind)) {
            // What cannot be denied must not block: it is advised on only.
            match harmless(kind) {
                Some(harmless) => {
                    let with = |part: String| ours.iter().cloned().chain([part]).collect();
                    enforce.push((kind, with(format!("!({harmless})"))));
                    advise.push((kind, with(format!("({harmless})"))));
                }
                None => enforce.push((kind, ours)),
            }
        } else if of_kind().any(|rule| policy.may_run(rule, kind)) {
            advise.push((kind, ours));
        }
    }
    let entry = |kinds: Vec<_>| (!kinds.is_empty()).then_some(Entry { kinds });
    (entry(defaults), entry(enforce), entry(advise))
}

impl Entry {
    fn rules(&self) -> Vec<RuleWithOperations> {
        self.kinds
            .iter()
            .map(|(kind, _)| RuleWithOperations {
                api_groups: Some(vec![kind.group.to_owned()]),
                api_versions: Some(
                    kind.versions
                        .iter()
                        .map(|&version| version.to_owned())
                        .collect(),
                ),
                operations: Some(vec!["CREATE".to_owned(), "UPDATE".to_owned()]),
                resources: Some(vec![kind.resource.to_owned()]),
                scope: Some(
                    if kind.namespaced {
                        "Namespaced"
                    } else {
                        "Cluster"
                    }
                    .to_owned(),
                ),
            })
            .collect()
    }

    /// What holds for every kind, then what holds for its own kind: all in one condition, of which the API
    /// server comes to the part of that kind alone. It evaluates every condition of an entry, even where
    /// one has failed (k8s.io/apiserver 0.36, pkg/admission/plugin/webhook/matchconditions/matcher.go),
    /// and with one for each kind that took longer than the call that it may spare.
    fn conditions(&self) -> Vec<MatchCondition> {
        let named = |name: &str, expression: String| MatchCondition {
            name: name.to_owned(),
            expression,
        };
        let mut conditions = vec![
            named(
                "is-not-going-away",
                "!has(object.metadata.deletionTimestamp)".to_owned(),
            ),
            named(
                "is-new-or-changed",
                changed(self.kinds.iter().map(|(kind, _)| *kind)),
            ),
        ];
        let mut by_kind = String::new();
        for (kind, parts) in &self.kinds {
            if !parts.is_empty() {
                let _ = writeln!(
                    by_kind,
                    "request.resource.resource == '{}' && request.resource.group == '{}' ? ({}) :",
                    kind.resource,
                    kind.group,
                    parts.join(" && ")
                );
            }
        }
        if !by_kind.is_empty() {
            by_kind.push_str("true");
            conditions.push(named("may-matter", by_kind));
        }
        conditions
    }
}

/// When we have a say in an object of a kind, as conditions that all have to hold.
fn ours(kind: &Kind) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some(child) = child_of_judged(kind) {
        parts.push(format!("!{child}"));
    }
    match kind.relevance {
        Relevance::Always | Relevance::Metrics => {}
        Relevance::Accelerator(specs) => parts.push(format!("({})", accelerator(specs))),
    }
    parts
}

/// Whether an object is new, or an UPDATE touched anything that a rule reads on one of the kinds;
/// the twin of the skip in [`crate::review`], which then looks at the one kind.
fn changed(kinds: impl Iterator<Item = &'static Kind>) -> String {
    let mut labels = BTreeSet::new();
    let mut annotations = BTreeSet::new();
    for kind in kinds {
        let read = metadata_read(kind.group, kind.kind);
        labels.extend(read.labels);
        annotations.extend(read.annotations);
    }
    let mut parts = vec![
        "request.operation == 'CREATE'".to_owned(),
        "has(object.spec) != has(oldObject.spec)".to_owned(),
        "(has(object.spec) && has(oldObject.spec) && object.spec != oldObject.spec)".to_owned(),
    ];
    for (map, keys) in [("labels", labels), ("annotations", annotations)] {
        if !keys.is_empty() {
            let keys: Vec<String> = keys.iter().map(|key| format!("'{key}'")).collect();
            let (new, old) = (
                value_of("object", map, "k"),
                value_of("oldObject", map, "k"),
            );
            parts.push(format!("[{}].exists(k, {new} != {old})", keys.join(", ")));
        }
    }
    for object in ["object", "oldObject"] {
        let owners = format!("{object}.metadata.ownerReferences");
        parts.push(format!("(has({owners}) && size({owners}) > {CHEAP})"));
    }
    let controller = |object: &str| {
        let owners = format!("{object}.metadata.ownerReferences");
        format!("(has({owners}) ? {owners}.filter(o, has(o.controller) && o.controller) : [])")
    };
    parts.push(format!(
        "{} != {}",
        controller("object"),
        controller("oldObject")
    ));
    for (here, there) in [("object", "oldObject"), ("oldObject", "object")] {
        let (new, old) = (
            value_of(here, "annotations", "k"),
            value_of(there, "annotations", "k"),
        );
        parts.push(format!(
            "(has({here}.metadata.annotations) && (size({here}.metadata.annotations) > {CHEAP} || \
             {here}.metadata.annotations.exists(k, k.startsWith('{PREFIX}') && {new} != {old})))"
        ));
    }
    parts.join(" || ")
}

/// A label or annotation as a list of none or one, so that an empty value differs from none.
fn value_of(object: &str, map: &str, key: &str) -> String {
    let map = format!("{object}.metadata.{map}");
    format!("(has({map}) && {key} in {map} ? [{map}[{key}]] : [])")
}

/// Whether an object or one of its pod templates calls itself a model server, or one of these asks
/// for an accelerator.
fn accelerator(templates: &[PodTemplates]) -> String {
    let mut parts = vec![held("object.metadata.labels", MODEL_SERVER_LABEL)];
    parts.extend(templates.iter().map(|templates| {
        let (guard, path) = guarded("object", templates.list);
        if templates.list.is_empty() {
            return shaped("object", templates);
        }
        let each = shaped("g", templates);
        format!("({guard}(size({path}) > {CHEAP} || {path}.exists(g, {each})))")
    }));
    parts.join(" || ")
}

/// Whether a map that may be missing has a key.
fn held(map: &str, key: &str) -> String {
    format!("(has({map}) && '{key}' in {map})")
}

/// The member at a path, and what asks for it step by step.
fn guarded(object: &str, path: &[&str]) -> (String, String) {
    let mut guard = String::new();
    let mut whole = object.to_owned();
    for member in path {
        let _ = write!(whole, ".{member}");
        let _ = write!(guard, "has({whole}) && ");
    }
    (guard, whole)
}

/// Whether what stands at a path below `object` may ask for an accelerator.
fn shaped(object: &str, templates: &PodTemplates) -> String {
    let (guard, at) = guarded(object, templates.path);
    let condition = match templates.shape {
        Shape::Template => return template(object, templates.path),
        Shape::Spec => pod_spec(&at),
        Shape::Container => format!("(has({at}.resources) && {})", asks(&at)),
        Shape::Metadata => metadata(&at),
        Shape::Any => return format!("({})", guard.trim_end_matches(" && ")),
    };
    format!("({guard}({condition}))")
}

/// Whether a pod asks for an extended resource, a device claim or a share of a GPU, calls itself a
/// model server, or has too many containers to look through. Extended resources are the ones with a
/// domain (kubernetes.io/docs/concepts/configuration/manage-resources-containers); shares are asked
/// for by annotation (KAI Scheduler, pkg/common/constants/constants.go).
fn template(object: &str, path: &[&str]) -> String {
    let (guard, template) = guarded(object, path);
    let metadata = format!(
        "(has({template}.metadata) && ({}))",
        metadata(&format!("{template}.metadata"))
    );
    let spec = format!("{template}.spec");
    let pod = pod_spec(&spec);
    format!("({guard}({metadata} || (has({spec}) && ({pod}))))")
}

/// Whether labels or annotations call a pod a model server or ask for a share of a GPU.
fn metadata(metadata: &str) -> String {
    format!(
        "{} || {} || {}",
        held(&format!("{metadata}.labels"), MODEL_SERVER_LABEL),
        held(&format!("{metadata}.annotations"), "gpu-fraction"),
        held(&format!("{metadata}.annotations"), "gpu-memory"),
    )
}

/// Whether a container that has resources asks for one with a domain, or for a claim.
fn asks(container: &str) -> String {
    format!(
        "({} || {} || has({container}.resources.claims))",
        names_device(&format!("{container}.resources.limits")),
        names_device(&format!("{container}.resources.requests")),
    )
}

/// Whether a map of resources that may be missing names one with a domain.
fn names_device(map: &str) -> String {
    format!("(has({map}) && (size({map}) > {FEW} || {map}.exists(r, r.contains('/'))))")
}

/// Whether something in a pod spec asks for an accelerator.
fn pod_spec(path: &str) -> String {
    let containers = |list: &str| {
        format!(
            "(has({path}.{list}) && (size({path}.{list}) > {CHEAP} || {path}.{list}.exists(c, \
             has(c.resources) && {})))",
            asks("c"),
        )
    };
    // Resources of the pod as a whole count like a container's (KEP-2837).
    let pod_level = format!(
        "(has({path}.resources) && {})",
        names_device(&format!("{path}.resources.limits")),
    );
    format!(
        "{} || {} || {pod_level} || has({path}.resourceClaims)",
        containers("containers"),
        containers("initContainers"),
    )
}

/// Which objects of a kind no rule denies, though a rule may say something of them.
fn harmless(kind: &Kind) -> Option<String> {
    let mut parts = Vec::new();
    if let Relevance::Metrics = kind.relevance {
        parts.push(only_host_resources());
    }
    // A controller would write it again for ever; what it is made from is where to say no. Whoever
    // forges such a reference is still denied while we answer.
    parts.extend(controlled_by(rows_making(kind)));
    if kind.relevance == Relevance::Metrics {
        parts.push(made_by_keda());
    }
    (!parts.is_empty()).then(|| parts.join(" || "))
}

/// The controllers that make objects of a kind.
fn rows_making(kind: &Kind) -> impl Iterator<Item = &'static Controller> {
    Controllers::builtin()
        .controllers
        .iter()
        .filter(move |row| row.children.iter().any(|child| child == kind.kind))
}

/// Whether an object's controller is of a kind that one of these rows names, and the object called
/// as that controller calls it.
fn controlled_by(rows: impl Iterator<Item = &'static Controller>) -> Option<String> {
    let mut parents = Vec::new();
    let mut pods = false;
    for row in rows {
        let ParentKind { group, kind } = &row.parent;
        let mut shape = String::new();
        let names: Vec<String> = if row.same_name {
            vec!["o.name".to_owned()]
        } else {
            let behind = |suffix| format!("o.name + '{suffix}'");
            row.suffixes.iter().map(behind).collect()
        };
        if !names.is_empty() {
            let _ = write!(
                shape,
                " && has(object.metadata.name) && object.metadata.name in [{}]",
                names.join(", ")
            );
        }
        if let Some(label) = &row.label {
            let labels = "object.metadata.labels";
            let held = held(labels, label);
            let _ = write!(shape, " && {held} && {labels}['{label}'] == o.name");
        }
        parents.push(format!(
            "(o.apiVersion.startsWith('{group}/') && o.kind == '{kind}'{shape})"
        ));
        pods |= row.pod_owner;
    }
    if pods {
        parents.push("(!o.apiVersion.contains('/') && o.kind == 'Pod')".to_owned());
    }
    (!parents.is_empty()).then(|| owned(&parents.join(" || ")))
}

/// Whether an object has a controller of which this holds, called `o` in it. Among too many owners nobody
/// looks for it here: the object is sent to us.
fn owned(condition: &str) -> String {
    let owners = "object.metadata.ownerReferences";
    format!(
        "(has({owners}) && size({owners}) <= {CHEAP} && {owners}.exists(o, has(o.controller) && \
         o.controller && ({condition})))"
    )
}

/// Whether an object's controller made it from an object that our rules judge, by the reference
/// alone: the children that are left alone without a closer look.
fn child_of_judged(kind: &Kind) -> Option<String> {
    controlled_by(rows_making(kind).filter(|row| {
        row.judged
            && row.label.is_none()
            && row.suffixes.is_empty()
            && !row.same_name
            && !row.pod_owner
    }))
}

/// Whether an HPA has the shape that KEDA gives it: besides cpu and memory, which no rule denies
/// there, every metric is one that only the ScaledObject it belongs to can answer
/// ([`crate::subject::hpa`] looks closer).
fn made_by_keda() -> String {
    let labels = "m.external.metric.selector.matchLabels";
    let answered = format!(
        "(has(m.external) && has(m.external.metric) && has(m.external.metric.selector) && \
         has({labels}) && '{KEDA_SELECTOR}' in {labels} && {labels}['{KEDA_SELECTOR}'] == o.name)"
    );
    owned(&format!(
        "o.apiVersion.startsWith('{}/') && o.kind == '{}' && has(object.spec) && \
         has(object.spec.metrics) && size(object.spec.metrics) <= {CHEAP} && \
         object.spec.metrics.all(m, {} || {answered})",
        SCALED_OBJECT.group,
        SCALED_OBJECT.kind,
        host_resource(),
    ))
}

/// Whether an HPA scales on nothing but cpu and memory, which no rule denies at the door.
fn only_host_resources() -> String {
    format!(
        "!has(object.spec) || !has(object.spec.metrics) || (size(object.spec.metrics) <= {CHEAP} && \
         object.spec.metrics.all(m, {}))",
        host_resource(),
    )
}

/// Whether a metric, called `m`, is cpu or memory.
fn host_resource() -> String {
    ["resource", "containerResource"]
        .map(|member| {
            format!(
                "(has(m.{member}) && has(m.{member}.name) && m.{member}.name in ['cpu', 'memory'])"
            )
        })
        .join(" || ")
}

/// The resources that some entry is registered for, as `<plural>.<group>`.
pub fn resources(configurations: &Configurations) -> BTreeSet<String> {
    let mutating = configurations
        .mutating
        .webhooks
        .iter()
        .flatten()
        .map(|entry| &entry.rules);
    let validating = configurations
        .validating
        .webhooks
        .iter()
        .flatten()
        .map(|entry| &entry.rules);
    mutating
        .chain(validating)
        .flatten()
        .flatten()
        .flat_map(|rule| {
            let groups = rule.api_groups.iter().flatten();
            groups.flat_map(|group| {
                rule.resources
                    .iter()
                    .flatten()
                    .map(move |resource| format!("{resource}.{group}"))
            })
        })
        .collect()
}
