//! The continuous audit of `serve`: one of two replicas, reports, Events and metrics.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    enforce::{evicting, hpa, node_pool},
    harness::{Assets, Cluster, Gangplank, Kubectl, SOON, eventually, leash::Signal},
    serve::get,
};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

/// A Lease that nobody renews is free after fifteen seconds.
const TAKEOVER: Duration = Duration::from_secs(60);

fn replica(cluster: &Cluster) -> Result<Gangplank> {
    let kubeconfig = format!("--kubeconfig={}", cluster.kubeconfig().display());
    let args = ["--audit", "--watch", &kubeconfig];
    Gangplank::start(Path::new(BINARY), &args)
}

fn metrics(gangplank: &Gangplank) -> String {
    get(gangplank, "/metrics").map_or_else(|_| String::new(), |answer| answer.1)
}

fn leads(gangplank: &Gangplank) -> bool {
    metrics(gangplank).contains("\ngangplank_audit_leading 1")
}

/// The report of an object, by the uid that its name ends with.
fn report(kubectl: &Kubectl, resource: &str, of: &str) -> Option<Value> {
    let uid = kubectl.get(of).ok()?["metadata"]["uid"].clone();
    kubectl
        .get(&format!("{resource}/gangplank-{}", uid.as_str()?))
        .ok()
}

fn events(kubectl: &Kubectl) -> Result<Vec<String>> {
    let listed = kubectl.run(
        &[
            "get",
            "events",
            "--output=json",
            "--field-selector=reportingComponent=gangplank.dev/audit",
        ],
        None,
    )?;
    let listed: Value = serde_json::from_str(&listed.success()?)?;
    let items = listed["items"].as_array().context("items")?;
    let mut told: Vec<String> = items
        .iter()
        .map(|event| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let of = &event["involvedObject"];
            format!(
                "{} {} {}",
                text(&event["reason"]),
                text(&of["kind"]),
                text(&of["name"])
            )
        })
        .collect();
    told.sort();
    Ok(told)
}

#[test]
fn one_of_two_replicas_audits_and_the_other_takes_over() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds()?;
    cluster.install_crds_of("crds-openreports")?;
    let kubectl = cluster.namespace("patrol")?;
    kubectl
        .create(&hpa("old", "DCGM_FI_DEV_GPU_UTIL").to_string())?
        .success()?;
    kubectl
        .create(&node_pool("evicting", Some(evicting())).to_string())?
        .success()?;

    let mut first = replica(&cluster)?;
    eventually("the first leads", SOON, || leads(&first).then_some(()))?;
    let second = replica(&cluster)?;
    let of_old = || report(&kubectl, "reports.openreports.io", "hpa/old");
    eventually("what was there is reported", SOON, of_old)?;
    let of_pool = || {
        report(
            &kubectl,
            "clusterreports.openreports.io",
            "nodepool/evicting",
        )
    };
    eventually("what is in no namespace is, too", SOON, of_pool)?;
    ensure!(!leads(&second), "only one audits");

    // What comes, changes and goes is seen without another look at everything.
    kubectl
        .create(&hpa("new", "DCGM_FI_DEV_FB_USED").to_string())?
        .success()?;
    let of_new = || report(&kubectl, "reports.openreports.io", "hpa/new");
    eventually("what is new is reported", SOON, of_new)?;
    let counted = |rule: &str, count: usize| {
        let line = format!(
            "gangplank_audit_findings{{rule=\"{rule}\",level=\"deny\",namespace=\"{}\"}} {count}",
            kubectl.namespace()
        );
        metrics(&first).contains(&line).then_some(())
    };
    eventually("it is counted", SOON, || counted("gpu-memory-signal", 1))?;
    counted("gpu-utilization-signal", 1).context("the old one is, too")?;
    // Told once, however often it is written.
    let once = [
        "GpuMemorySignal HorizontalPodAutoscaler new",
        "GpuUtilizationSignal HorizontalPodAutoscaler old",
    ];
    eventually("both are told", SOON, || {
        (events(&kubectl).ok()? == once).then_some(())
    })?;
    kubectl
        .patch("hpa/new", &json!({"spec": {"maxReplicas": 7}}))?
        .success()?;
    let mended = hpa("old", "vllm:num_requests_waiting")["spec"].clone();
    kubectl
        .patch("hpa/old", &json!({"spec": mended}))?
        .success()?;
    eventually("what is mended is reported no more", SOON, || {
        of_old().is_none().then_some(())
    })?;
    eventually("nor counted", SOON, || {
        (!metrics(&first).contains("rule=\"gpu-utilization-signal\"")).then_some(())
    })?;
    assert_eq!(events(&kubectl)?, once);

    // The holder dies without a word; the other does not tell again what was told.
    first.kill()?;
    eventually("the second leads", TAKEOVER, || {
        leads(&second).then_some(())
    })?;
    kubectl.delete("hpa/new")?.success()?;
    kubectl
        .create(&hpa("newer", "DCGM_FI_DEV_FB_USED").to_string())?
        .success()?;
    let of_newer = || report(&kubectl, "reports.openreports.io", "hpa/newer");
    eventually("the second reports", SOON, of_newer)?;
    eventually("it tells what is new", SOON, || {
        let told = events(&kubectl).ok()?;
        told.contains(&"GpuMemorySignal HorizontalPodAutoscaler newer".to_owned())
            .then_some(())
    })?;
    let of_pools = events(&kubectl.in_namespace("default"))?;
    let pools: Vec<&String> = of_pools
        .iter()
        .filter(|told| told.starts_with("GpuPoolConsolidation "))
        .collect();
    assert_eq!(
        pools,
        ["GpuPoolConsolidation NodePool evicting"],
        "once in all"
    );
    Ok(())
}

#[test]
fn whoever_stops_lets_go_and_what_is_missing_disturbs_nobody() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds()?;
    let kubectl = cluster.namespace("patrol")?;
    kubectl
        .create(&hpa("old", "DCGM_FI_DEV_GPU_UTIL").to_string())?
        .success()?;
    let mut first = replica(&cluster)?;
    let counted = |of: &Gangplank| {
        metrics(of)
            .contains("rule=\"gpu-utilization-signal\",level=\"deny\"")
            .then_some(())
    };
    eventually("without reports it counts all the same", SOON, || {
        counted(&first)
    })?;
    ensure!(
        first
            .log()
            .contains("no reports: the cluster serves no reports"),
        "{}",
        first.log()
    );
    first.signal(Signal::Terminate)?;
    first.wait(SOON)?;
    let lease = cluster
        .kubectl()
        .in_namespace("default")
        .get("lease/gangplank-audit")?;
    assert_eq!(lease["spec"]["holderIdentity"], "");
    let second = replica(&cluster)?;
    eventually("nobody waits for who let go", SOON, || counted(&second))
}
