//! What happens to a release in years, under a steady stream of writes. Nothing may be let in that is
//! wrong, nothing that was taken may be lost, and all of it mends without hands.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    enforce::hpa,
    harness::{Kubectl, SOON, eventually, leash::Signal},
    release::{BAD, GOOD, NAME, Release, Writes},
};

fn values() -> Value {
    json!({
        "audit": {"enabled": false},
        "extraArgs": ["--registration-period=1s"],
    })
}

fn dry_run(kubectl: &Kubectl, manifest: &Value) -> Result<crate::harness::Answer> {
    let args = ["create", "--dry-run=server", "--filename=-"];
    kubectl.run(&args, Some(&manifest.to_string()))
}

#[test]
fn replicas_die_one_by_one() -> Result<()> {
    let mut release = Release::install(&values())?;
    let kubectl = release.cluster.namespace("die")?;

    // One of two, as a failing node takes it. Until its endpoint is gone a call may fail, and then the
    // write is refused, with the reason.
    let writes = Writes::begin(&release.cluster)?;
    release.kill(0)?;
    writes.more(3)?;
    release.lead();
    let (refused, all) = writes.end_refused_at_most()?;
    ensure!(refused < all, "all {all} were refused");
    // From then on the other one answers everything.
    let writes = Writes::begin(&release.cluster)?;
    writes.more(12)?;
    writes.end_well()?;

    // Both: what may have to be denied is refused, and nothing else is touched.
    release.kill(0)?;
    release.lead();
    let refused = kubectl.create(&hpa("wrong", BAD).to_string())?;
    ensure!(
        refused
            .stderr
            .contains("failed calling webhook \"enforce.gangplank.dev\""),
        "{}",
        refused.stderr
    );
    for (name, manifest) in unrelated() {
        let answer = kubectl.create(&manifest.to_string())?;
        ensure!(answer.accepted(), "{name}: {}", answer.stderr);
    }

    // One comes back, and that is all it takes.
    release.start()?;
    release.asked()?;
    release.start()?;
    let writes = Writes::begin(&release.cluster)?;
    writes.more(12)?;
    writes.end_well()?;
    Ok(())
}

/// Writes that no rule can deny.
fn unrelated() -> [(&'static str, Value); 4] {
    let pod = |resources: Value| {
        json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{
                "name": "web", "image": "example.com/web:1", "resources": resources,
            }]},
        })
    };
    let deployment = |name: &str, template: Value| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template},
        })
    };
    let mut by_cpu = hpa("by-cpu", GOOD);
    by_cpu["spec"]["metrics"] = json!([{"type": "Resource", "resource": {
        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70},
    }}]);
    [
        (
            "a ConfigMap",
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "any"},
            }),
        ),
        (
            "a Deployment without resources",
            deployment("plain", pod(json!({}))),
        ),
        (
            "a Deployment on CPUs",
            deployment("cpus", pod(json!({"limits": {"cpu": "1"}}))),
        ),
        ("an HPA on cpu", by_cpu),
    ]
}

#[test]
fn configurations_are_deleted_and_edited() -> Result<()> {
    let release = Release::install(&values())?;
    let kubectl = release.cluster.kubectl();
    let validating = format!("validatingwebhookconfiguration/{NAME}");
    let mutating = format!("mutatingwebhookconfiguration/{NAME}");

    for configuration in [&validating, &mutating] {
        kubectl.delete(configuration)?.success()?;
        release.asked()?;
    }
    let spec = |object: &str| -> Result<Value> { Ok(kubectl.get(object)?["webhooks"].clone()) };
    for (configuration, patch) in [
        (
            &validating,
            json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]),
        ),
        (
            &validating,
            json!([{"op": "remove", "path": "/webhooks/0/rules/0"}]),
        ),
        (
            &validating,
            json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]),
        ),
        (
            &mutating,
            json!([{"op": "replace", "path": "/webhooks/0/matchPolicy", "value": "Exact"}]),
        ),
    ] {
        let before = spec(configuration)?;
        let patch = patch.to_string();
        let args = [
            "patch",
            configuration.as_str(),
            "--type=json",
            "--patch",
            &patch,
        ];
        kubectl.run(&args, None)?.success()?;
        eventually(format_args!("{patch} is undone"), SOON, || {
            (spec(configuration).ok()? == before).then_some(())
        })?;
    }
    release.asked()?;
    Ok(())
}

#[test]
fn the_api_server_and_its_store_stall_and_come_back() -> Result<()> {
    let mut release = Release::install(&values())?;
    let kubectl = release.cluster.kubectl().clone();

    let writes = Writes::begin(&release.cluster)?;
    release.cluster.signal_etcd(Signal::Stop)?;
    eventually("the API server misses its store", SOON, || {
        let asked = kubectl.run(&["get", "--raw=/readyz/etcd"], None);
        (!asked.ok()?.accepted()).then_some(())
    })?;
    release.cluster.signal_etcd(Signal::Continue)?;
    writes.more(9)?;
    writes.end_refused_at_most()?;

    let writes = Writes::begin(&release.cluster)?;
    release.cluster.restart_apiserver()?;
    release.asked()?;
    writes.more(9)?;
    writes.end_refused_at_most()?;

    // Not a single one goes wrong when all is back, and the replicas have not been restarted.
    let writes = Writes::begin(&release.cluster)?;
    writes.more(12)?;
    writes.end_well()?;
    for pod in &mut release.pods {
        ensure!(pod.gangplank.ended().is_none(), "{}", pod.gangplank.log());
    }
    let answer = dry_run(&kubectl, &hpa("wrong", BAD))?;
    ensure!(
        answer.stderr.contains("gpu-utilization-signal"),
        "{}",
        answer.stderr
    );
    Ok(())
}
