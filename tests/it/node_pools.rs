//! NodePools through every client: what was written stays, what nobody wrote is filled, and doing
//! the same again changes nothing.

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    enforce::guarded,
    harness::{Answer, Kubectl},
};

type Create = fn(&Kubectl, &str) -> Result<Answer>;

/// The clients that leave a trace of what was written, and one that does not.
const CLIENTS: [(&str, Create); 3] = [
    ("apply", Kubectl::apply),
    ("server-side", Kubectl::apply_server_side),
    ("create", Kubectl::create),
];

/// A pool of one GPU family without taint or limit; `spec` is merged in.
fn pool(name: &str, spec: &Value) -> Value {
    let mut pool = json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {"template": {"spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "n"},
            "requirements": [
                {"key": "karpenter.k8s.aws/instance-family", "operator": "In", "values": ["p5"]},
            ],
        }}},
    });
    let members = spec.as_object().cloned().unwrap_or_default();
    if let Some(spec) = pool["spec"].as_object_mut() {
        spec.extend(members);
    }
    pool
}

fn evicting() -> Value {
    json!({"disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "5m"}})
}

/// Karpenter's defaults, written out.
fn defaults() -> Value {
    json!({"disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized",
                          "consolidateAfter": "0s", "budgets": [{"nodes": "10%"}]}})
}

fn policy(object: &Value) -> (&Value, &Value) {
    let disruption = &object["spec"]["disruption"];
    (
        &disruption["consolidationPolicy"],
        &disruption["consolidateAfter"],
    )
}

fn safe() -> (Value, Value) {
    (json!("WhenEmpty"), json!("1h"))
}

fn denied(answer: &Answer) {
    assert!(!answer.accepted(), "it was let in: {}", answer.stderr);
    assert!(
        answer.stderr.contains("gpu-pool-consolidation"),
        "{}",
        answer.stderr
    );
}

#[test]
fn the_taint_is_filled_once_and_no_client_loses_it_again() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    for taints in [
        json!(null),
        json!([{"key": "team", "effect": "PreferNoSchedule"}]),
    ] {
        for (client, create) in CLIENTS {
            let soft = if taints.is_null() { "none" } else { "soft" };
            let name = format!("taint-{soft}-{client}");
            let mut manifest = pool(&name, &json!({}));
            if !taints.is_null() {
                manifest["spec"]["template"]["spec"]["taints"] = taints.clone();
            }
            let manifest = manifest.to_string();
            create(kubectl, &manifest)?.success()?;
            let object = format!("nodepool/{name}");
            let first = kubectl.get(&object)?;
            let held = first["spec"]["template"]["spec"]["taints"].as_array();
            let last = held.and_then(|held| held.last());
            let wanted =
                json!({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"});
            assert_eq!(last, Some(&wanted), "{name}");
            let mut again: Vec<(&str, Answer)> = Vec::new();
            if client != "create" {
                again.push(("again", create(kubectl, &manifest)?));
            }
            again.push(("replace", kubectl.replace(&manifest)?));
            for (how, answer) in again {
                answer.success()?;
                let now = kubectl.get(&object)?;
                assert_eq!(now["spec"], first["spec"], "{name}, {how}");
                let generation = |object: &Value| object["metadata"]["generation"].clone();
                assert_eq!(generation(&now), generation(&first), "{name}, {how}");
            }
        }
    }
    Ok(())
}

#[test]
fn defaults_that_somebody_wrote_are_denied_where_that_can_be_told() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    denied(&kubectl.apply(&pool("wrote-apply", &defaults()).to_string())?);
    denied(&kubectl.apply_server_side(&pool("wrote-ssa", &defaults()).to_string())?);
    // Nothing tells: the whole block of defaults is taken for nobody's writing.
    kubectl
        .create(&pool("wrote-create", &defaults()).to_string())?
        .success()?;
    let made = kubectl.get("nodepool/wrote-create")?;
    assert_eq!(policy(&made), (&safe().0, &safe().1));
    Ok(())
}

#[test]
fn half_a_block_is_filled_by_evidence_only() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    let half =
        |name: &str| pool(name, &json!({"disruption": {"consolidateAfter": "2h"}})).to_string();
    for (client, create) in CLIENTS.into_iter().take(2) {
        let name = format!("half-{client}");
        create(kubectl, &half(&name))?.success()?;
        let made = kubectl.get(&format!("nodepool/{name}"))?;
        assert_eq!(
            policy(&made),
            (&json!("WhenEmpty"), &json!("2h")),
            "{client}"
        );
        kubectl.replace(&half(&name))?.success()?;
        let replaced = kubectl.get(&format!("nodepool/{name}"))?;
        assert_eq!(replaced["spec"], made["spec"], "{client}");
        // Another file that goes back to the default means it.
        denied(&kubectl.replace(&pool(&name, &evicting()).to_string())?);
    }
    denied(&kubectl.create(&half("half-create"))?);
    Ok(())
}

#[test]
fn an_applier_that_drops_the_policy_gets_the_safe_one() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    let careful =
        json!({"disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "2h"}});
    for (client, create) in CLIENTS.into_iter().take(2) {
        let name = format!("dropped-{client}");
        create(kubectl, &pool(&name, &careful).to_string())?.success()?;
        create(kubectl, &pool(&name, &json!({})).to_string())?.success()?;
        let object = format!("nodepool/{name}");
        assert_eq!(
            policy(&kubectl.get(&object)?),
            (&safe().0, &safe().1),
            "{client}"
        );
        // And one that writes the evicting policy instead means it.
        denied(&create(kubectl, &pool(&name, &evicting()).to_string())?);
        denied(&create(kubectl, &pool(&name, &defaults()).to_string())?);
    }
    Ok(())
}

#[test]
fn a_chart_upgraded_by_three_way_merge_keeps_the_fill() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    let object = "nodepool/chart";
    kubectl
        .create(&pool("chart", &json!({})).to_string())?
        .success()?;
    // What Helm 3 sends for a value that changed between two releases of the chart.
    kubectl
        .patch(
            object,
            &json!({"spec": {"limits": {"nvidia.com/gpu": "8"}}}),
        )?
        .success()?;
    assert_eq!(policy(&kubectl.get(object)?), (&safe().0, &safe().1));
    denied(&kubectl.patch(object, &evicting_patch())?);
    denied(&kubectl.patch(object, &json!({"spec": defaults()}))?);
    Ok(())
}

fn evicting_patch() -> Value {
    json!({"spec": {"disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized"}}})
}

#[test]
fn a_gitops_tool_that_applies_over_and_over_owns_nothing_of_the_fill() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    let manifest = pool("gitops", &json!({})).to_string();
    let sync = [
        "apply",
        "--server-side",
        "--field-manager=gitops",
        "--force-conflicts",
        "--filename=-",
    ];
    kubectl.run(&sync, Some(&manifest))?.success()?;
    let first = kubectl.get("nodepool/gitops")?;
    for _ in 0..3 {
        kubectl.run(&sync, Some(&manifest))?.success()?;
    }
    let last = kubectl.get("nodepool/gitops")?;
    assert_eq!(
        last["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let owned = last["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let applied = owned.iter().find(|entry| entry["operation"] == "Apply");
    let disruption = applied.and_then(|entry| entry.pointer("/fieldsV1/f:spec/f:disruption"));
    assert_eq!(disruption, None, "the applier owns what was filled in");
    // Another manager may take the field without a conflict.
    let other = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "gitops"},
                       "spec": {"disruption": {"consolidateAfter": "3h", "consolidationPolicy": "WhenEmpty"}}});
    let take = [
        "apply",
        "--server-side",
        "--field-manager=platform",
        "--filename=-",
    ];
    let answer = kubectl.run(&take, Some(&other.to_string()))?;
    assert!(answer.accepted(), "{}", answer.stderr);
    kubectl.run(&sync, Some(&manifest))?.success()?;
    assert_eq!(
        policy(&kubectl.get("nodepool/gitops")?),
        (&json!("WhenEmpty"), &json!("3h"))
    );
    Ok(())
}

#[test]
fn an_update_adds_nothing_to_the_template_of_a_running_pool() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    // It becomes a GPU pool, or its taint goes, by an update.
    let family = |name: &str, family: &str| {
        let mut pool = pool(
            name,
            &json!({"disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "1h"}}),
        );
        pool["spec"]["template"]["spec"]["requirements"][0]["values"] = json!([family]);
        pool.to_string()
    };
    kubectl.apply(&family("becomes", "m7i"))?.success()?;
    let answer = kubectl.apply(&family("becomes", "p5"))?;
    assert!(
        answer
            .warnings()
            .iter()
            .any(|line| line.starts_with("gpu-pool-taint: ")),
        "{}",
        answer.stderr
    );
    answer.success()?;
    let held = kubectl.get("nodepool/becomes")?;
    assert_eq!(held["spec"]["template"]["spec"].get("taints"), None);
    Ok(())
}

#[test]
fn pools_that_may_buy_gpus_and_pools_that_do_not_are_left_alone() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    for (name, requirement, warned) in [
        (
            "may",
            json!({"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}),
            true,
        ),
        (
            "cpu",
            json!({"key": "karpenter.k8s.aws/instance-category", "operator": "In", "values": ["c", "m"]}),
            false,
        ),
    ] {
        let mut manifest = pool(&format!("gpu-{name}"), &json!({}));
        manifest["spec"]["template"]["spec"]["requirements"] = json!([requirement]);
        let answer = kubectl.apply(&manifest.to_string())?;
        let said = answer
            .warnings()
            .iter()
            .any(|line| line.starts_with("gpu-capable-pool: "));
        assert_eq!(said, warned, "{name}: {}", answer.stderr);
        assert_eq!(
            answer.warnings().len(),
            usize::from(warned),
            "{name}: {}",
            answer.stderr
        );
        answer.success()?;
        let made = kubectl.get(&format!("nodepool/gpu-{name}"))?;
        assert_eq!(
            policy(&made),
            (&json!("WhenEmptyOrUnderutilized"), &json!("0s")),
            "{name}"
        );
        assert_eq!(
            made["spec"]["template"]["spec"].get("taints"),
            None,
            "{name}"
        );
        // Nor is what somebody wrote of disruption theirs to answer for.
        manifest["metadata"]["name"] = json!(format!("gpu-{name}-evicting"));
        manifest["spec"]["disruption"] = evicting()["disruption"].clone();
        kubectl.apply(&manifest.to_string())?.success()?;
        let made = kubectl.get(&format!("nodepool/gpu-{name}-evicting"))?;
        assert_eq!(
            policy(&made),
            (&json!("WhenEmptyOrUnderutilized"), &json!("5m")),
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn a_static_pool_is_neither_filled_nor_denied_and_scales_freely() -> Result<()> {
    let kubectl = guarded()?.cluster.kubectl();
    kubectl
        .create(&pool("static", &json!({"replicas": 1})).to_string())?
        .success()?;
    let made = kubectl.get("nodepool/static")?;
    assert_eq!(
        policy(&made),
        (&json!("WhenEmptyOrUnderutilized"), &json!("0s"))
    );
    kubectl
        .run(&["scale", "nodepool/static", "--replicas=3"], None)?
        .success()?;
    assert_eq!(kubectl.get("nodepool/static")?["spec"]["replicas"], 3);
    Ok(())
}
