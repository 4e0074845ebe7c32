//! NodePools of Karpenter v0.32 to v1.0, whose API server refuses half of a safe policy: the policy
//! and the wait are coupled, so that a fill must set both in one patch.

use std::{path::Path, sync::OnceLock};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use crate::harness::{Answer, Assets, Cluster, Gangplank, Kubectl, SOON, eventually};

/// A cluster whose NodePools are v1beta1 only, guarded by Gangplank.
fn kubectl() -> Result<&'static Kubectl> {
    static GUARDED: OnceLock<Result<(Cluster, Gangplank), String>> = OnceLock::new();
    GUARDED
        .get_or_init(|| start().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map(|(cluster, _)| cluster.kubectl())
        .map_err(|error| anyhow!("{error}"))
}

fn start() -> Result<(Cluster, Gangplank)> {
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds_of("crds-v1beta1")?;
    let binary = Path::new(env!("CARGO_BIN_EXE_gangplank"));
    let gangplank = Gangplank::register::<&str>(binary, &cluster, &[])?;
    let explicit = pool("probe", &evicting()).to_string();
    eventually("the API server asks Gangplank", SOON, || {
        let dry = ["apply", "--server-side", "--dry-run=server", "--filename=-"];
        let asked = |answer: Answer| answer.stderr.contains("gpu-pool-consolidation");
        let answer = cluster.kubectl().run(&dry, Some(&explicit));
        answer.is_ok_and(asked).then_some(())
    })?;
    Ok((cluster, gangplank))
}

/// A tainted pool of one GPU family; `disruption` is left out where it is null.
fn pool(name: &str, disruption: &Value) -> Value {
    let mut pool = json!({
        "apiVersion": "karpenter.sh/v1beta1", "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {"template": {"spec": {
            "nodeClassRef": {"apiVersion": "karpenter.k8s.aws/v1beta1", "kind": "EC2NodeClass", "name": "n"},
            "requirements": [
                {"key": "karpenter.k8s.aws/instance-family", "operator": "In", "values": ["p5"]},
            ],
            "taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
        }}},
    });
    if !disruption.is_null() {
        pool["spec"]["disruption"] = disruption.clone();
    }
    pool
}

fn evicting() -> Value {
    json!({"consolidationPolicy": "WhenUnderutilized"})
}

type Create = fn(&Kubectl, &str) -> Result<Answer>;

const CLIENTS: [(&str, Create); 3] = [
    ("apply", Kubectl::apply),
    ("server-side", Kubectl::apply_server_side),
    ("create", Kubectl::create),
];

fn denied(answer: &Answer) {
    assert!(
        !answer.accepted()
            && answer
                .stderr
                .contains("denied the request: gpu-pool-consolidation: "),
        "{}",
        answer.stderr
    );
}

/// Refused by the API server itself.
fn invalid(answer: &Answer, why: &str) {
    assert!(
        !answer.accepted() && answer.stderr.contains(why),
        "{}",
        answer.stderr
    );
    assert!(!answer.stderr.contains("gangplank"), "{}", answer.stderr);
}

fn disruption(kubectl: &Kubectl, name: &str) -> Result<Value> {
    Ok(kubectl.get(&format!("nodepool/{name}"))?["spec"]["disruption"].clone())
}

#[test]
fn silence_gets_both_of_the_coupled_fields_from_every_client() -> Result<()> {
    let kubectl = kubectl()?;
    for (client, create) in CLIENTS {
        let name = format!("silent-{client}");
        let manifest = pool(&name, &json!(null)).to_string();
        let answer = create(kubectl, &manifest)?;
        // It is v1beta1 that says so: the age stands under disruption.
        assert!(
            answer
                .warnings()
                .iter()
                .any(|line| line.contains("spec.disruption.expireAfter")),
            "{client}: {}",
            answer.stderr
        );
        answer.success()?;
        let safe = json!({"consolidationPolicy": "WhenEmpty", "consolidateAfter": "1h",
                          "expireAfter": "720h", "budgets": [{"nodes": "10%"}]});
        assert_eq!(disruption(kubectl, &name)?, safe, "{client}");
        if client != "create" {
            create(kubectl, &manifest)?.success()?;
            assert_eq!(disruption(kubectl, &name)?, safe, "{client}, again");
        }
        kubectl.replace(&manifest)?.success()?;
        assert_eq!(disruption(kubectl, &name)?, safe, "{client}, replace");
        let held = kubectl.get(&format!("nodepool/{name}"))?;
        assert_eq!(held["metadata"]["generation"], 1, "{client}");
    }
    Ok(())
}

#[test]
fn half_of_the_safe_policy_is_made_whole() -> Result<()> {
    let kubectl = kubectl()?;
    for (client, create) in CLIENTS {
        // Alone the API server would refuse it.
        let name = format!("policy-{client}");
        let half = json!({"consolidationPolicy": "WhenEmpty"});
        create(kubectl, &pool(&name, &half).to_string())?.success()?;
        assert_eq!(
            disruption(kubectl, &name)?["consolidateAfter"],
            "1h",
            "{client}"
        );
    }
    let wait = json!({"consolidateAfter": "2h"});
    for (client, create) in CLIENTS.into_iter().take(2) {
        let name = format!("wait-{client}");
        create(kubectl, &pool(&name, &wait).to_string())?.success()?;
        let held = disruption(kubectl, &name)?;
        assert_eq!(
            (&held["consolidationPolicy"], &held["consolidateAfter"]),
            (&json!("WhenEmpty"), &json!("2h")),
            "{client}"
        );
    }
    // Nothing tells that the policy is a default: it is left to the API server, which refuses it.
    let answer = kubectl.create(&pool("wait-create", &wait).to_string())?;
    invalid(&answer, "WhenUnderutilized has no consolidateAfter");
    Ok(())
}

#[test]
fn an_explicit_evicting_policy_is_denied_and_not_rewritten() -> Result<()> {
    let kubectl = kubectl()?;
    for (client, create) in CLIENTS.into_iter().take(2) {
        denied(&create(
            kubectl,
            &pool(&format!("evicting-{client}"), &evicting()).to_string(),
        )?);
    }
    // Nothing tells in a create, but that more was written than the defaults.
    let written = json!({"consolidationPolicy": "WhenUnderutilized", "expireAfter": "24h"});
    denied(&kubectl.create(&pool("evicting-create", &written).to_string())?);

    let safe = json!({"consolidationPolicy": "WhenEmpty", "consolidateAfter": "2h"});
    kubectl
        .apply(&pool("turned", &safe).to_string())?
        .success()?;
    let patch =
        |fields: Value| kubectl.patch("nodepool/turned", &json!({"spec": {"disruption": fields}}));
    invalid(
        &patch(evicting())?,
        "WhenUnderutilized has no consolidateAfter",
    );
    denied(&patch(
        json!({"consolidationPolicy": "WhenUnderutilized", "consolidateAfter": null}),
    )?);
    denied(&kubectl.apply(&pool("turned", &evicting()).to_string())?);
    let held = disruption(kubectl, "turned")?;
    assert_eq!(
        (&held["consolidationPolicy"], &held["consolidateAfter"]),
        (&json!("WhenEmpty"), &json!("2h"))
    );
    Ok(())
}

#[test]
fn what_never_consolidates_is_let_be() -> Result<()> {
    let kubectl = kubectl()?;
    for (name, fields) in [
        (
            "never",
            json!({"consolidationPolicy": "WhenUnderutilized", "consolidateAfter": "Never"}),
        ),
        (
            "zero-budget",
            json!({"consolidationPolicy": "WhenUnderutilized", "budgets": [{"nodes": "0"}]}),
        ),
    ] {
        kubectl.apply(&pool(name, &fields).to_string())?.success()?;
        let held = disruption(kubectl, name)?;
        assert_eq!(
            held["consolidationPolicy"], "WhenUnderutilized",
            "{name}: {held}"
        );
        assert_eq!(held.get("consolidateAfter"), fields.get("consolidateAfter"));
    }
    Ok(())
}
