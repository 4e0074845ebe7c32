//! `gangplank audit --report`: report objects on a real API server, in whichever API it serves.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    enforce::{evicting, hpa, node_pool},
    harness::{Assets, Cluster, Kubectl, SOON, eventually},
};

fn audit(kubeconfig: &Path, args: &[&str]) -> Result<(i32, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_gangplank"))
        .args(["audit", "--report", "--output=json"])
        .args(args)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .env_clear()
        .output()?;
    let code = output.status.code().context("a code")?;
    Ok((code, String::from_utf8(output.stderr)?))
}

fn counts(written: usize, unchanged: usize, removed: usize) -> String {
    format!("gangplank: reports: {written} written, {unchanged} unchanged, {removed} removed\n")
}

/// The report of an object, by the uid that its name ends with.
fn report(kubectl: &Kubectl, resource: &str, of: &str) -> Result<Option<Value>> {
    let uid = kubectl.get(of)?["metadata"]["uid"].clone();
    let name = format!("{resource}/gangplank-{}", uid.as_str().context("a uid")?);
    Ok(kubectl.get(&name).ok())
}

fn goes_through_its_life(crds: &str, namespaced: &str, cluster_wide: &str) -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds()?;
    let kubeconfig = cluster.kubeconfig();
    let (code, said) = audit(kubeconfig, &[])?;
    assert!(
        code == 2 && said.contains("openreports.io or wgpolicyk8s.io"),
        "{said}"
    );
    cluster.install_crds_of(crds)?;
    let kubectl = cluster.namespace("reports")?;
    let until = (jiff::Zoned::now().date() + jiff::ToSpan::days(30)).to_string();
    let mut exempt = hpa("exempt", "DCGM_FI_DEV_GPU_UTIL");
    exempt["metadata"]["annotations"] = json!({
        "exempt.gangplank.dev/gpu-utilization-signal":
            format!("until={until}; owner=team-llm; reason=load test"),
    });
    for object in [
        hpa("bad", "DCGM_FI_DEV_GPU_UTIL"),
        hpa("fine", "vllm:num_requests_waiting"),
        exempt,
        node_pool("evicting", Some(evicting())),
    ] {
        kubectl.create(&object.to_string())?.success()?;
    }

    // Nobody writes what nobody asked for.
    let only_looked = Command::new(env!("CARGO_BIN_EXE_gangplank"))
        .args(["audit", "--kubeconfig"])
        .arg(kubeconfig)
        .env_clear()
        .output()?;
    assert_eq!(only_looked.status.code(), Some(1));
    assert!(report(&kubectl, namespaced, "hpa/bad")?.is_none());
    assert!(report(&kubectl, cluster_wide, "nodepool/evicting")?.is_none());

    assert_eq!(audit(kubeconfig, &[])?, (1, counts(3, 0, 0)));
    let bad = report(&kubectl, namespaced, "hpa/bad")?.context("a report")?;
    assert_eq!(bad["scope"]["name"], "bad");
    assert_eq!(
        bad["metadata"]["ownerReferences"][0]["kind"],
        "HorizontalPodAutoscaler"
    );
    assert_eq!(
        bad["summary"],
        json!({"pass": 0, "fail": 1, "warn": 0, "error": 0, "skip": 0})
    );
    let result = &bad["results"][0];
    assert_eq!(
        (&result["rule"], &result["result"], &result["severity"]),
        (
            &json!("gpu-utilization-signal"),
            &json!("fail"),
            &json!("high")
        )
    );
    assert_eq!(
        result["properties"]["path"],
        "spec.metrics[0].pods.metric.name"
    );
    let skipped = report(&kubectl, namespaced, "hpa/exempt")?.context("a report")?;
    assert_eq!(skipped["results"][0]["result"], "skip");
    assert_eq!(
        skipped["results"][0]["properties"]["exemptOwner"],
        "team-llm"
    );
    assert!(
        report(&kubectl, namespaced, "hpa/fine")?.is_none(),
        "nothing is found in it"
    );
    let pool = report(&kubectl, cluster_wide, "nodepool/evicting")?.context("a report")?;
    assert_eq!(pool["summary"]["fail"], 1);

    // Only what has changed is written.
    let version = |of: &str| -> Result<Value> {
        let report = report(&kubectl, namespaced, of)?.context("a report")?;
        Ok(report["metadata"]["resourceVersion"].clone())
    };
    let before = version("hpa/exempt")?;
    assert_eq!(audit(kubeconfig, &[])?, (1, counts(0, 3, 0)));
    let memory = hpa("bad", "DCGM_FI_DEV_FB_USED")["spec"].clone();
    kubectl
        .patch("hpa/bad", &json!({"spec": memory}))?
        .success()?;
    assert_eq!(audit(kubeconfig, &[])?, (1, counts(1, 2, 0)));
    let bad = report(&kubectl, namespaced, "hpa/bad")?.context("a report")?;
    assert_eq!(bad["results"][0]["rule"], "gpu-memory-signal");
    assert_eq!(
        bad["results"].as_array().map(Vec::len),
        Some(1),
        "nothing old is left"
    );
    assert_eq!(version("hpa/exempt")?, before);

    // Reports of others are none of our business; those of clean objects go, and a look at a part
    // takes nothing away from the rest.
    let others = json!({
        "apiVersion": bad["apiVersion"], "kind": bad["kind"],
        "metadata": {"name": "of-somebody-else"}, "results": [],
    });
    kubectl.create(&others.to_string())?.success()?;
    let mended = hpa("bad", "vllm:num_requests_waiting")["spec"].clone();
    kubectl
        .patch("hpa/bad", &json!({"spec": mended}))?
        .success()?;
    assert_eq!(
        audit(kubeconfig, &["--kind", "NodePool"])?,
        (1, counts(0, 1, 0))
    );
    let namespace = kubectl.namespace();
    assert_eq!(audit(kubeconfig, &["-n", namespace])?, (0, counts(0, 1, 1)));
    assert!(report(&kubectl, namespaced, "hpa/bad")?.is_none());
    kubectl.get(&format!("{namespaced}/of-somebody-else"))?;

    // What is gone takes its report along, by its owner or by the next look at everything.
    let uid = kubectl.get("hpa/exempt")?["metadata"]["uid"].clone();
    kubectl.delete("hpa/exempt")?.success()?;
    assert_eq!(audit(kubeconfig, &[])?, (1, counts(0, 1, 1)));
    let name = format!("{namespaced}/gangplank-{}", uid.as_str().context("a uid")?);
    eventually("the report is gone", SOON, || {
        kubectl.get(&name).is_err().then_some(())
    })
}

#[test]
fn reports_of_openreports_go_through_their_life() -> Result<()> {
    goes_through_its_life(
        "crds-openreports",
        "reports.openreports.io",
        "clusterreports.openreports.io",
    )
}

#[test]
fn reports_of_the_policy_working_group_go_through_their_life() -> Result<()> {
    goes_through_its_life(
        "crds-wgpolicy",
        "policyreports.wgpolicyk8s.io",
        "clusterpolicyreports.wgpolicyk8s.io",
    )
}
