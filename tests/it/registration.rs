//! The webhook configurations that rules and policy make.

use std::fmt::Write as _;

use gangplank::{
    policy::Policy,
    webhook::registration::{Configurations, FailurePolicy, Reach, Registration},
};
use k8s_openapi::api::admissionregistration::v1::{MatchCondition, RuleWithOperations};
use serde_json::{Value, json};

fn registration() -> Registration {
    Registration {
        name: "gangplank".to_owned(),
        reach: Reach::Service {
            namespace: "gangplank-system".to_owned(),
            name: "gangplank".to_owned(),
            port: 443,
        },
        ca_bundle: Some(b"PEM".to_vec()),
        annotations: std::collections::BTreeMap::new(),
        failure_policy: FailurePolicy::Fail,
        owner: None,
    }
}

fn policy(members: &Value) -> Policy {
    let mut document = json!({"apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy"});
    document
        .as_object_mut()
        .unwrap()
        .extend(members.as_object().unwrap().clone());
    Policy::from_document(&document).unwrap()
}

fn configurations(members: &Value) -> Configurations {
    registration().configurations(&policy(members))
}

/// Entry and resource of every rule of the validating configuration.
fn validating(configurations: &Configurations) -> Vec<String> {
    let mut all: Vec<String> = configurations
        .validating
        .webhooks
        .iter()
        .flatten()
        .flat_map(|webhook| {
            let name = webhook.name.split('-').next().unwrap().to_owned();
            let failure = webhook.failure_policy.clone().unwrap();
            webhook.rules.iter().flatten().flat_map(move |rule| {
                let (name, failure) = (name.clone(), failure.clone());
                let resources = rule.resources.clone().unwrap();
                resources
                    .into_iter()
                    .map(move |resource| format!("{name} {failure} {resource}"))
            })
        })
        .collect();
    all.sort();
    all
}

#[test]
fn the_configurations_under_the_default_policy() {
    let configurations = configurations(&json!({}));
    let mut text = String::new();
    for (name, failure, rules, conditions) in entries(&configurations) {
        writeln!(text, "{name} {failure}").unwrap();
        assert!(conditions.len() <= 4, "{name}");
        for rule in rules {
            let (groups, versions) = (rule.api_groups.unwrap(), rule.api_versions.unwrap());
            let (resources, scope) = (rule.resources.unwrap(), rule.scope.unwrap());
            writeln!(
                text,
                "  {} {} {} {} {scope}",
                rule.operations.unwrap().join(","),
                groups.join(","),
                versions.join(","),
                resources.join(",")
            )
            .unwrap();
        }
        for condition in conditions {
            // The API server prints a condition that fails: nobody reads more than this.
            let most = if failure == "Fail" { 4096 } else { 8192 };
            let length = condition.expression.len();
            assert!(length < most, "{name}: {}: {length}", condition.name);
            writeln!(text, "  {}:\n    {}", condition.name, condition.expression).unwrap();
        }
    }
    insta::assert_snapshot!("configurations", text);
}

type Entry = (String, String, Vec<RuleWithOperations>, Vec<MatchCondition>);

/// Name, failure policy, rules and conditions of every entry.
fn entries(configurations: &Configurations) -> Vec<Entry> {
    let mutating = configurations
        .mutating
        .webhooks
        .iter()
        .flatten()
        .map(|webhook| {
            (
                &webhook.name,
                &webhook.failure_policy,
                &webhook.rules,
                &webhook.match_conditions,
            )
        });
    let validating = configurations
        .validating
        .webhooks
        .iter()
        .flatten()
        .map(|webhook| {
            (
                &webhook.name,
                &webhook.failure_policy,
                &webhook.rules,
                &webhook.match_conditions,
            )
        });
    mutating
        .chain(validating)
        .map(|(name, failure, rules, conditions)| {
            (
                name.clone(),
                failure.clone().unwrap(),
                rules.clone().unwrap(),
                conditions.clone().unwrap(),
            )
        })
        .collect()
}

#[test]
fn under_dry_run_nothing_can_block_and_nothing_is_filled() {
    let configurations = configurations(&json!({"mode": "dryRun"}));
    assert_eq!(configurations.mutating.webhooks, Some(Vec::new()));
    let entries = validating(&configurations);
    assert!(
        !entries.is_empty()
            && entries
                .iter()
                .all(|entry| entry.starts_with("advise Ignore ")),
        "{entries:?}"
    );
}

#[test]
fn a_kind_without_a_deny_rule_is_advised_on_and_one_without_any_rule_is_not_asked_about() {
    let of_scaled_objects = |level: &str| -> serde_json::Map<String, Value> {
        gangplank::rules::RULES
            .iter()
            .filter(|rule| rule.covers("keda.sh", "ScaledObject"))
            .map(|rule| (rule.id.to_owned(), json!({"level": level})))
            .collect()
    };
    let mut rules = of_scaled_objects("warn");
    rules.insert("gpu-memory-signal".to_owned(), json!({"level": "audit"}));
    let soft = json!({"rules": rules});
    let entries = validating(&configurations(&soft));
    assert!(
        entries.contains(&"advise Ignore scaledobjects".to_owned()),
        "{entries:?}"
    );
    assert!(
        !entries.contains(&"enforce Fail scaledobjects".to_owned()),
        "{entries:?}"
    );
    let off: serde_json::Map<String, Value> = gangplank::rules::RULES
        .iter()
        .filter(|rule| rule.covers("karpenter.sh", "NodePool"))
        .map(|rule| (rule.id.to_owned(), json!({"level": "off"})))
        .collect();
    let configurations = configurations(&json!({"rules": off}));
    let entries = validating(&configurations);
    assert!(
        entries.iter().all(|entry| !entry.ends_with("nodepools")),
        "{entries:?}"
    );
    // A namespace where a rule denies is enough to ask.
    let team = json!({
        "rules": of_scaled_objects("off"),
        "overrides": [{"namespaces": ["team-a"], "rules": {"gpu-memory-signal": {"level": "deny"}}}],
    });
    assert!(
        validating(&self::configurations(&team)).contains(&"enforce Fail scaledobjects".to_owned())
    );
}

#[test]
fn our_own_namespace_and_kube_system_stay_out() {
    let configurations = configurations(&json!({}));
    let selectors = configurations
        .mutating
        .webhooks
        .iter()
        .flatten()
        .map(|webhook| &webhook.namespace_selector)
        .chain(
            configurations
                .validating
                .webhooks
                .iter()
                .flatten()
                .map(|webhook| &webhook.namespace_selector),
        );
    for selector in selectors {
        let expression = &selector
            .as_ref()
            .unwrap()
            .match_expressions
            .as_ref()
            .unwrap()[0];
        assert_eq!(expression.operator, "NotIn");
        assert_eq!(
            expression.values.as_ref().unwrap(),
            &["kube-system", "gangplank-system"]
        );
    }
}
