//! The webhook configurations, generated from the rules and the policy.
//!
//! For each kind up to three entries: `defaults-<plural>` fills and never blocks; `enforce-<plural>` may
//! block a write while we do not answer, and so sees only what some rule can deny for what stands in the
//! object itself; `advise-<plural>` sees the rest and blocks nothing. Every object goes to exactly one of
//! the last two, and both deny while we answer. The API server evaluates only the conditions of the
//! entries whose kind it is, so that one kind's conditions cost another's writes nothing.
//!
//! Their `matchConditions` ([`conditions`]) keep objects that no rule has a say in inside the API server.

use std::collections::{BTreeMap, BTreeSet};

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
    cel::Test,
    policy::Policy,
    rules::{Kind, kinds},
    webhook::TIMEOUT_SECONDS,
};

mod conditions;
mod node_pools;
mod pods;
mod signals;

/// Who writes the configurations, as their managed fields tell.
pub const FIELD_MANAGER: &str = "gangplank";

/// The name of both configurations where no other is asked for.
pub const DEFAULT_NAME: &str = "gangplank";

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

/// What a failing call to an `enforce` entry does to the write.
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
    /// Of the `enforce` entries.
    pub failure_policy: FailurePolicy,
    /// What the configurations belong to: the garbage collector removes them with it.
    pub owner: Option<OwnerReference>,
}

/// The configurations under one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Configurations {
    /// The `defaults` entries; none where nothing is to be filled.
    pub mutating: MutatingWebhookConfiguration,
    /// The `enforce` and `advise` entries, where they have anything to see.
    pub validating: ValidatingWebhookConfiguration,
}

/// One entry of a configuration: a kind and the conditions under which its objects are sent.
struct Entry {
    name: &'static str,
    kind: &'static Kind,
    conditions: Vec<MatchCondition>,
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
        let entries = entries(policy);
        let mutating = entries.defaults.into_iter().map(|entry| MutatingWebhook {
            admission_review_versions: vec!["v1".to_owned()],
            client_config: self.client("/mutate"),
            failure_policy: Some("Ignore".to_owned()),
            match_policy: Some("Equivalent".to_owned()),
            name: entry.full_name(),
            namespace_selector: Some(self.namespaces()),
            object_selector: None,
            reinvocation_policy: Some("IfNeeded".to_owned()),
            rules: Some(vec![entry.rule()]),
            match_conditions: Some(entry.conditions),
            side_effects: "None".to_owned(),
            timeout_seconds: Some(TIMEOUT_SECONDS),
        });
        let validating = |path: &'static str, failure: FailurePolicy| {
            move |entry: Entry| ValidatingWebhook {
                admission_review_versions: vec!["v1".to_owned()],
                client_config: self.client(path),
                failure_policy: Some(format!("{failure:?}")),
                match_policy: Some("Equivalent".to_owned()),
                name: entry.full_name(),
                namespace_selector: Some(self.namespaces()),
                object_selector: None,
                rules: Some(vec![entry.rule()]),
                match_conditions: Some(entry.conditions),
                side_effects: "None".to_owned(),
                timeout_seconds: Some(TIMEOUT_SECONDS),
            }
        };
        let enforce = validating("/validate", self.failure_policy);
        let advise = validating("/validate/advise", FailurePolicy::Ignore);
        let enforce = entries.enforce.into_iter().map(enforce);
        let advise = entries.advise.into_iter().map(advise);
        Configurations {
            mutating: MutatingWebhookConfiguration {
                metadata: metadata.clone(),
                webhooks: Some(mutating.collect()),
            },
            validating: ValidatingWebhookConfiguration {
                metadata,
                webhooks: Some(enforce.chain(advise).collect()),
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

/// The entries under a policy.
#[derive(Default)]
struct Entries {
    defaults: Vec<Entry>,
    enforce: Vec<Entry>,
    advise: Vec<Entry>,
}

/// The entries under a policy: for each kind that a rule speaks of one that fills, one that may block, and
/// one for the rest, where they have anything to see.
fn entries(policy: &Policy) -> Entries {
    let mut entries = Entries::default();
    for &kind in kinds::ALL {
        let changed = || named("changes-what-rules-read", conditions::changed(kind));
        let relevant = || named("concerns-a-rule", conditions::relevant(kind));
        let mut rules = conditions::rules_of(kind);
        if policy.may_enforce(kind)
            && kinds::is_filled(kind.group, kind.kind)
            && rules.any(|rule| rule.fill.is_some() && policy.may_run(rule, kind))
        {
            let conditions = vec![is_staying(), changed(), relevant()];
            entries
                .defaults
                .push(Entry::new("defaults", kind, conditions));
        }
        let deniable = conditions::deniable(kind, policy);
        let may = Test::all(deniable.iter().map(|(_, test)| test.clone()));
        if may != Test::Constant(false) {
            let parts = deniable.into_iter().map(|(name, test)| named(name, test));
            let conditions = [is_staying(), changed()].into_iter().chain(parts).collect();
            entries
                .enforce
                .push(Entry::new("enforce", kind, conditions));
        }
        let mut rules = conditions::rules_of(kind);
        if may != Test::Constant(true) && rules.any(|rule| policy.may_run(rule, kind)) {
            let rest = named("may-not-be-denied", may.not());
            let conditions = vec![is_staying(), changed(), relevant(), rest];
            entries.advise.push(Entry::new("advise", kind, conditions));
        }
    }
    entries
}

/// Whether the object is not being deleted.
fn is_staying() -> MatchCondition {
    MatchCondition {
        name: "is-not-being-deleted".to_owned(),
        expression: "!has(object.metadata.deletionTimestamp)".to_owned(),
    }
}

fn named(name: &str, test: Test) -> MatchCondition {
    MatchCondition {
        name: name.to_owned(),
        expression: test.into_text(),
    }
}

impl Entry {
    /// An entry with those of its conditions that do not always hold.
    fn new(name: &'static str, kind: &'static Kind, mut conditions: Vec<MatchCondition>) -> Self {
        conditions.retain(|condition| condition.expression != "true");
        Self {
            name,
            kind,
            conditions,
        }
    }

    /// The name in the configuration. The plurals of the kinds differ.
    fn full_name(&self) -> String {
        format!("{}-{}.gangplank.dev", self.name, self.kind.resource)
    }

    fn rule(&self) -> RuleWithOperations {
        let versions = self.kind.versions.iter();
        let scope = if self.kind.namespaced {
            "Namespaced"
        } else {
            "Cluster"
        };
        RuleWithOperations {
            api_groups: Some(vec![self.kind.group.to_owned()]),
            api_versions: Some(versions.map(|&version| version.to_owned()).collect()),
            operations: Some(vec!["CREATE".to_owned(), "UPDATE".to_owned()]),
            resources: Some(vec![self.kind.resource.to_owned()]),
            scope: Some(scope.to_owned()),
        }
    }
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
