//! The rules at the doors of the webhook, where defaults have arrived before the question.

use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    facts::Facts,
    finding::{Level, Verdict},
    policy::{API_VERSION, Policy},
    provenance::LAST_APPLIED,
    review::{Review, Skip, review},
    subject::{Door, Operation, Subject},
};

const POLICY: &str = "/spec/disruption/consolidationPolicy";
const AFTER: &str = "/spec/disruption/consolidateAfter";

/// A pool of H100 nodes with everything written but what `spec.disruption` is to be.
fn pool(disruption: Value) -> Value {
    json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": "inference", "uid": "u-1"},
        "spec": {
            "disruption": disruption,
            "limits": {"nvidia.com/gpu": "16"},
            "template": {"spec": {
                "expireAfter": "Never",
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "n"},
                "requirements": [{"key": "karpenter.k8s.aws/instance-family", "operator": "In", "values": ["p5"]}],
                "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
            }}
        }
    })
}

fn defaults() -> Value {
    json!({"budgets": [{"nodes": "10%"}], "consolidateAfter": "0s",
           "consolidationPolicy": "WhenEmptyOrUnderutilized"})
}

fn filled() -> Value {
    json!({"budgets": [{"nodes": "10%"}], "consolidateAfter": "1h", "consolidationPolicy": "WhenEmpty"})
}

fn evicting() -> Value {
    json!({"budgets": [{"nodes": "10%"}], "consolidateAfter": "5m",
           "consolidationPolicy": "WhenEmptyOrUnderutilized"})
}

fn asked(policy: &Policy, door: Door, value: &Value, old: Option<&Value>) -> Review {
    let mut subject = Subject::from_manifest(Arc::new(value.clone())).unwrap();
    subject.door = door;
    subject.operation = if old.is_some() {
        Operation::Update
    } else {
        Operation::Create
    };
    subject.old = old.cloned().map(Arc::new);
    review(policy, &Facts::unknown(), &subject, Timestamp::UNIX_EPOCH)
}

/// What the object becomes at /mutate.
fn mutated(value: &Value, old: Option<&Value>) -> Value {
    let policy = Policy::default();
    let patch = asked(&policy, Door::Mutate, value, old).patch;
    let mut after = value.clone();
    json_patch::patch(&mut after, &patch).unwrap();
    let again = asked(&policy, Door::Mutate, &after, old).patch;
    assert!(again.0.is_empty(), "asked again it changes more: {again:?}");
    after
}

fn validated(value: &Value, old: Option<&Value>) -> Review {
    asked(&Policy::default(), Door::Validate, value, old)
}

fn with_last_applied(mut value: Value, document: &Value) -> Value {
    value["metadata"]["annotations"][LAST_APPLIED] = json!(document.to_string());
    value
}

#[test]
fn silence_becomes_when_empty_with_an_hour_in_one_patch() {
    let after = mutated(&pool(defaults()), None);
    assert_eq!(after, pool(filled()));
    assert_eq!(validated(&after, None).verdict(), Verdict::Allow);
}

#[test]
fn silence_in_v1beta1_gets_both_of_its_coupled_fields() {
    let mut silent = pool(json!({"budgets": [{"nodes": "10%"}], "expireAfter": "720h",
                                 "consolidationPolicy": "WhenUnderutilized"}));
    silent["apiVersion"] = json!("karpenter.sh/v1beta1");
    let after = mutated(&silent, None);
    assert_eq!(after.pointer(POLICY), Some(&json!("WhenEmpty")));
    assert_eq!(after.pointer(AFTER), Some(&json!("1h")));
    // Written out, the policy stays alone, for the CRD refuses a wait beside it.
    let mut written =
        pool(json!({"consolidationPolicy": "WhenUnderutilized", "expireAfter": "24h"}));
    written["apiVersion"] = json!("karpenter.sh/v1beta1");
    assert_eq!(mutated(&written, None), written);
    assert_eq!(validated(&written, None).verdict(), Verdict::Deny);
    // Also where the rule for the wait is off.
    let policy = Policy::from_document(&json!({"apiVersion": API_VERSION, "kind": "Policy",
        "rules": {"gpu-pool-consolidate-after": {"level": "off"}}}))
    .unwrap();
    assert_eq!(asked(&policy, Door::Mutate, &silent, None).patch.0.len(), 2);
}

#[test]
fn an_explicit_evicting_policy_is_never_rewritten_but_denied() {
    for disruption in [
        evicting(),
        json!({"consolidationPolicy": "Balanced", "consolidateAfter": "1h"}),
    ] {
        let value = pool(disruption);
        assert_eq!(mutated(&value, None), value);
        let review = validated(&value, None);
        assert_eq!(review.verdict(), Verdict::Deny);
        let finding = &review.findings[0];
        assert_eq!(finding.rule, "gpu-pool-consolidation");
        assert_eq!(
            finding.path.to_string(),
            "spec.disruption.consolidationPolicy"
        );
        for way in ["WhenEmpty", "Never", "Underutilized"] {
            assert!(finding.instead.contains(way), "{way}");
        }
    }
    // The exact defaults, but written: last-applied says so.
    let value = with_last_applied(pool(defaults()), &pool(defaults()));
    assert_eq!(mutated(&value, None), value);
    assert_eq!(validated(&value, None).verdict(), Verdict::Deny);
}

#[test]
fn an_unsafe_default_is_denied_where_the_mutating_call_was_lost() {
    assert_eq!(validated(&pool(defaults()), None).verdict(), Verdict::Deny);
}

#[test]
fn a_lone_default_without_evidence_is_not_filled() {
    let value = pool(
        json!({"consolidationPolicy": "WhenEmpty", "consolidateAfter": "0s",
                            "budgets": [{"nodes": "10%"}]}),
    );
    assert_eq!(mutated(&value, None), value);
    assert_eq!(validated(&value, None).verdict(), Verdict::Warn);
    let document = pool(json!({"consolidationPolicy": "WhenEmpty"}));
    let applied = mutated(&with_last_applied(value, &document), None);
    assert_eq!(applied.pointer(AFTER), Some(&json!("1h")));
}

#[test]
fn a_patch_that_sets_the_evicting_policy_after_a_fill_is_denied_and_not_filled_over() {
    let mut patched = filled();
    patched["consolidationPolicy"] = json!("WhenEmptyOrUnderutilized");
    let (value, old) = (pool(patched), pool(filled()));
    assert_eq!(mutated(&value, Some(&old)), value);
    assert_eq!(validated(&value, Some(&old)).verdict(), Verdict::Deny);
}

#[test]
fn putting_the_file_again_that_the_pool_was_created_from_changes_nothing() {
    let mut file = pool(defaults());
    file["metadata"] = json!({"name": "inference"});
    file["spec"]["template"]["spec"]
        .as_object_mut()
        .unwrap()
        .remove("taints");
    let created = mutated(&file, None);
    assert_eq!(created["spec"], pool(filled())["spec"]);
    assert_eq!(mutated(&file, Some(&created))["spec"], created["spec"]);
    // And with another soft taint that the file does name.
    file["spec"]["template"]["spec"]["taints"] =
        json!([{"key": "gpu", "effect": "PreferNoSchedule"}]);
    let created = mutated(&file, None);
    assert_eq!(
        created["spec"]["template"]["spec"]["taints"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(mutated(&file, Some(&created))["spec"], created["spec"]);
}

#[test]
fn a_taint_of_the_users_own_is_not_put_back() {
    let mut silent = pool(filled());
    silent["spec"]["template"]["spec"]
        .as_object_mut()
        .unwrap()
        .remove("taints");
    let own = with_last_applied(pool(filled()), &pool(filled()));
    let value = with_last_applied(silent.clone(), &silent);
    assert_eq!(mutated(&value, Some(&own)), value);
    let filled_in = with_last_applied(pool(filled()), &silent);
    assert_ne!(mutated(&silent, Some(&filled_in)), silent);
}

#[test]
fn an_update_never_touches_the_template() {
    let mut old = pool(filled());
    old["spec"]["template"]["spec"]
        .as_object_mut()
        .unwrap()
        .remove("taints");
    let mut value = old.clone();
    value["spec"]["limits"]["nvidia.com/gpu"] = json!("24");
    assert_eq!(mutated(&value, Some(&old)), value);
    assert_eq!(validated(&value, Some(&old)).verdict(), Verdict::Warn);
}

#[test]
fn what_the_old_pool_had_already_warns_and_what_is_worse_is_denied() {
    let old = pool(evicting());
    let mut value = old.clone();
    value["spec"]["limits"]["nvidia.com/gpu"] = json!("24");
    let review = validated(&value, Some(&old));
    assert_eq!(review.verdict(), Verdict::Warn);
    assert!(review.findings.iter().any(|finding| finding.ratcheted));
    // Another wait does not make it another violation.
    let mut other = old.clone();
    other["spec"]["disruption"]["consolidateAfter"] = json!("10m");
    assert_eq!(validated(&other, Some(&old)).verdict(), Verdict::Warn);

    let balanced = pool(json!({"consolidationPolicy": "Balanced", "consolidateAfter": "5m"}));
    assert_eq!(validated(&old, Some(&balanced)).verdict(), Verdict::Deny);
    assert_eq!(validated(&balanced, Some(&old)).verdict(), Verdict::Warn);

    let mut capable = old.clone();
    capable["spec"]["template"]["spec"]["requirements"] = json!([]);
    capable["spec"]["template"]["spec"]["taints"] = json!([]);
    assert_eq!(
        validated(&old, Some(&capable)).verdict(),
        Verdict::Deny,
        "it became a GPU pool"
    );
    assert_eq!(validated(&capable, Some(&old)).verdict(), Verdict::Allow);
}

#[test]
fn karpenters_own_writes_are_not_looked_at() {
    let old = pool(evicting());
    let mut value = old.clone();
    value["metadata"]["annotations"] = json!({"karpenter.sh/nodepool-hash": "1"});
    value["status"] = json!({"nodes": 3});
    assert_eq!(validated(&value, Some(&old)).skipped, Some(Skip::Unchanged));
}

#[test]
fn effect_counts_and_not_spelling() {
    let verdict = |disruption: Value| {
        let value = pool(disruption);
        assert_eq!(mutated(&value, None), value);
        validated(&value, None).verdict()
    };
    let all = "WhenEmptyOrUnderutilized";
    let budget = |budget: Value| json!({"consolidationPolicy": all, "consolidateAfter": "1h", "budgets": [budget]});
    assert_eq!(
        verdict(json!({"consolidationPolicy": all, "consolidateAfter": "Never"})),
        Verdict::Allow
    );
    assert_eq!(
        verdict(budget(json!({"nodes": "0", "reasons": ["Underutilized"]}))),
        Verdict::Allow
    );
    assert_eq!(verdict(budget(json!({"nodes": "0%"}))), Verdict::Allow);
    let hours = json!({"nodes": "0", "schedule": "0 9 * * 1-5", "duration": "8h"});
    assert_eq!(verdict(budget(hours)), Verdict::Deny);
    assert_eq!(
        verdict(budget(json!({"nodes": "0", "reasons": ["Drifted"]}))),
        Verdict::Deny
    );
    let future = json!({"consolidationPolicy": "WhenTheMoonIsFull", "consolidateAfter": "1h"});
    assert_eq!(verdict(future), Verdict::Warn);
    let mut fixed = pool(defaults());
    fixed["spec"]["replicas"] = json!(2);
    assert_eq!(mutated(&fixed, None), fixed);
    assert_eq!(validated(&fixed, None).verdict(), Verdict::Allow);
}

#[test]
fn nothing_is_filled_where_it_would_have_no_effect() {
    // Nobody chose the policy, but it cannot evict.
    for disruption in [
        json!({"consolidateAfter": "Never"}),
        json!({"budgets": [{"nodes": "0"}]}),
    ] {
        let mut value = defaults();
        value
            .as_object_mut()
            .unwrap()
            .extend(disruption.as_object().unwrap().clone());
        let value = with_last_applied(pool(value), &pool(disruption));
        assert_eq!(mutated(&value, None), value);
    }
}

#[test]
fn balanced_can_be_let_be() {
    let value = pool(json!({"consolidationPolicy": "Balanced", "consolidateAfter": "1h"}));
    let verdict = |balanced: &str| {
        let policy = Policy::from_document(&json!({"apiVersion": API_VERSION, "kind": "Policy",
            "rules": {"gpu-pool-consolidation": {"params": {"balanced": balanced}}}}))
        .unwrap();
        asked(&policy, Door::Validate, &value, None).verdict()
    };
    assert_eq!(verdict("deny"), Verdict::Deny);
    assert_eq!(verdict("warn"), Verdict::Warn);
    assert_eq!(verdict("allow"), Verdict::Allow);
}

#[test]
fn the_wait_can_be_set_and_is_read_strictly() {
    let with = |at_least: Value| {
        Policy::from_document(&json!({"apiVersion": API_VERSION, "kind": "Policy",
        "rules": {"gpu-pool-consolidate-after": {"params": {"atLeast": at_least}}}}))
    };
    let policy = with(json!("30m")).unwrap();
    let mut after = pool(defaults());
    let patch = asked(&policy, Door::Mutate, &after, None).patch;
    json_patch::patch(&mut after, &patch).unwrap();
    assert_eq!(after.pointer(AFTER), Some(&json!("30m")));
    assert_eq!(
        asked(&policy, Door::Validate, &after, None).verdict(),
        Verdict::Allow
    );
    let error = with(json!("1d")).unwrap_err();
    assert_eq!(
        error.path.to_string(),
        "rules.gpu-pool-consolidate-after.params.atLeast"
    );
}

#[test]
fn a_pool_that_may_buy_gpus_is_warned_about_once_and_never_filled() {
    let mut value = pool(defaults());
    value["spec"]["template"]["spec"]["requirements"] = json!([]);
    value["spec"]["template"]["spec"]
        .as_object_mut()
        .unwrap()
        .remove("taints");
    assert_eq!(mutated(&value, None), value);
    let review = validated(&value, None);
    let said: Vec<_> = review
        .findings
        .iter()
        .map(|finding| (finding.rule, finding.level))
        .collect();
    assert_eq!(said, [("gpu-capable-pool", Level::Warn)]);
    let mut changed = value.clone();
    changed["spec"]["weight"] = json!(5);
    assert_eq!(validated(&changed, Some(&value)).verdict(), Verdict::Allow);
}

#[test]
fn the_taint_is_named_for_the_accelerator_and_left_out_where_that_is_not_one() {
    let taint = |requirement: Value, node: Value| {
        let mut value = pool(filled());
        let spec = value["spec"]["template"]["spec"].as_object_mut().unwrap();
        spec.remove("taints");
        spec["requirements"] = json!([requirement]);
        spec.extend(node.as_object().unwrap().clone());
        mutated(&value, None)
            .pointer("/spec/template/spec/taints")
            .cloned()
    };
    let aws = |key: &str, values: &[&str]| json!({"key": format!("karpenter.k8s.aws/{key}"), "operator": "In", "values": values});
    let of = |key: &str| Some(json!([{"key": key, "value": "present", "effect": "NoSchedule"}]));
    assert_eq!(
        taint(aws("instance-category", &["inf", "trn"]), json!({})),
        of("aws.amazon.com/neuron")
    );
    assert_eq!(
        taint(aws("instance-gpu-manufacturer", &["amd"]), json!({})),
        of("amd.com/gpu")
    );
    // The limits of the pool say that NVIDIA's are meant.
    assert_eq!(
        taint(aws("instance-category", &["g"]), json!({})),
        of("nvidia.com/gpu")
    );
    // Two vendors in one pool: either taint would keep the other's pods off.
    assert_eq!(
        taint(aws("instance-family", &["inf2", "g4ad"]), json!({})),
        None
    );
    let starting = json!({"startupTaints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]});
    assert_eq!(taint(aws("instance-family", &["p5"]), starting), None);
    let gke = json!({"nodeClassRef": {"group": "karpenter.k8s.gcp", "kind": "GCENodeClass", "name": "n"}});
    let a3 =
        json!({"key": "karpenter.k8s.gcp/instance-family", "operator": "In", "values": ["a3"]});
    assert_eq!(taint(a3, gke), None);
}

#[test]
fn a_server_side_apply_that_says_nothing_of_the_policy_is_filled_and_stays_so() {
    let applied = |disruption: Value, time: &str, owned: Value| {
        let mut value = pool(disruption);
        value["metadata"]["managedFields"] = json!([{
            "manager": "flux", "operation": "Apply", "apiVersion": "karpenter.sh/v1", "time": time,
            "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:disruption": owned}}}]);
        value
    };
    let created = mutated(&applied(defaults(), "t1", json!({})), None);
    assert_eq!(created["spec"], pool(filled())["spec"]);
    // What its applier does not own keeps its value when it applies again.
    assert_eq!(
        mutated(&applied(filled(), "t2", json!({})), Some(&created))["spec"],
        created["spec"]
    );
    // It used to write the policy and drops it.
    let old = applied(
        filled(),
        "t2",
        json!({"f:consolidationPolicy": {}, "f:consolidateAfter": {}}),
    );
    let dropped = applied(defaults(), "t3", json!({}));
    assert_eq!(mutated(&dropped, Some(&old))["spec"], created["spec"]);
    let written = applied(
        defaults(),
        "t3",
        json!({"f:consolidationPolicy": {}, "f:consolidateAfter": {}}),
    );
    assert_eq!(mutated(&written, Some(&old)), written);
}

/// Members that a file may or may not hold, now and then of the wrong type.
fn written() -> impl Strategy<Value = Value> {
    let one_of = |values: Vec<Value>| prop::option::weighted(0.6, prop::sample::select(values));
    (
        one_of(vec![json!("WhenEmpty"), json!("WhenEmptyOrUnderutilized"), json!("Balanced"), json!("Later"), json!(5), json!(null)]),
        one_of(vec![json!("0s"), json!("30s"), json!("2h"), json!("Never"), json!("soon"), json!(null), json!([])]),
        one_of(vec![json!([{"nodes": "10%"}]), json!([{"nodes": "0"}]), json!([{"nodes": "0", "reasons": ["Underutilized"]}]), json!("none"), json!([5])]),
        one_of(vec![json!([]), json!([{"key": "a", "effect": "PreferNoSchedule"}]), json!([{"key": "a", "effect": "NoExecute"}]), json!("none"), json!(null)]),
        one_of(vec![json!("karpenter.k8s.aws"), json!("karpenter.k8s.gcp"), json!("karpenter.kwok.sh"), json!("x")]),
        one_of(vec![json!([{"key": "karpenter.k8s.aws/instance-category", "operator": "In", "values": ["p"]}]),
                    json!([{"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g4ad.xlarge", "m5.large"]}]), json!({})]),
        one_of(vec![json!(1), json!(null)]),
        prop::sample::select(vec!["karpenter.sh/v1", "karpenter.sh/v1beta1"]),
    )
        .prop_map(|(policy, after, budgets, taints, group, requirements, replicas, version)| {
            let members = |pairs: Vec<(&str, Option<Value>)>| -> Value {
                pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect::<serde_json::Map<_, _>>().into()
            };
            let disruption = members(vec![("consolidationPolicy", policy), ("consolidateAfter", after), ("budgets", budgets)]);
            let node = members(vec![
                ("taints", taints),
                ("nodeClassRef", group.map(|group| json!({"group": group}))),
                ("requirements", requirements),
            ]);
            let disruption = (disruption != json!({})).then_some(disruption);
            let spec = members(vec![("disruption", disruption), ("replicas", replicas), ("template", Some(json!({"spec": node})))]);
            json!({"apiVersion": version, "kind": "NodePool", "metadata": {"name": "p"}, "spec": spec})
        })
}

/// Whether whatever was written before still stands.
fn kept(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Null, _) => true,
        (Value::Object(before), Value::Object(after)) => before.iter().all(|(key, value)| {
            value.is_null() || after.get(key).is_some_and(|after| kept(value, after))
        }),
        (Value::Array(before), Value::Array(after)) => after.starts_with(before),
        _ => before == after,
    }
}

/// What the API server makes of a file before it asks anybody.
fn with_crd_defaults(mut file: Value) -> Value {
    let defaults = if file["apiVersion"] == "karpenter.sh/v1" {
        defaults()
    } else {
        json!({"budgets": [{"nodes": "10%"}], "expireAfter": "720h",
               "consolidationPolicy": "WhenUnderutilized"})
    };
    let disruption = &mut file["spec"]["disruption"];
    if disruption.is_null() {
        *disruption = defaults;
    } else if let Some(disruption) = disruption.as_object_mut() {
        for (key, default) in defaults.as_object().unwrap() {
            if disruption.get(key).is_none_or(Value::is_null) {
                disruption.insert(key.clone(), default.clone());
            }
        }
    }
    file
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fills_touch_silence_only_and_settle_at_once(file in written()) {
        let policy = Policy::default();
        let first = asked(&policy, Door::Check, &file, None);
        let mut after = file.clone();
        json_patch::patch(&mut after, &first.patch).unwrap();
        prop_assert!(kept(&file, &after), "{file} became {after}");
        let second = asked(&policy, Door::Check, &after, None);
        prop_assert!(second.patch.0.is_empty(), "{:?}", second.patch);
        let judged = |review: &Review| -> Vec<(&'static str, String)> {
            let left = review.findings.iter().filter(|finding| !finding.filled);
            left.map(|finding| (finding.rule, finding.path.to_string())).collect()
        };
        prop_assert_eq!(judged(&first), judged(&second));
        // At the door the same file, with defaults and its document, ends the same way.
        let live = with_last_applied(with_crd_defaults(file.clone()), &file);
        let created = mutated(&live, None);
        prop_assert_eq!(&created["spec"], &with_crd_defaults(after)["spec"]);
        let again = mutated(&created, Some(&created));
        prop_assert_eq!(again, created);
    }
}
