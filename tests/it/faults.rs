//! What happens to a release in years, under a steady stream of writes. Nothing may be let in that is
//! wrong, nothing that was taken may be lost, and all of it mends without hands.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use gangplank::tls::bundle::{self, Anchor};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    certificates::{Stream, connect, metric, shown},
    enforce::{deployment, hpa},
    harness::{Kubectl, SOON, eventually, leash::Signal},
    release::{BAD, GOOD, NAME, NAMESPACE, Pod, Release, Writes},
    serve::{get, review},
};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

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
        refused.stderr.contains("failed calling webhook \"enforce-"),
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

    let spec = |object: &str| -> Result<Value> { Ok(kubectl.get(object)?["webhooks"].clone()) };
    let restored = |configuration: &str, before: &Value| -> Result<()> {
        eventually(format_args!("{configuration} is as it was"), SOON, || {
            (spec(configuration).ok()? == *before).then_some(())
        })
    };

    // Whoever may delete them may let in whatever they like, for a moment. What nobody filled meanwhile is
    // denied; nothing is held up.
    let writes = Writes::begin(&release.cluster)?;
    for configuration in [&validating, &mutating] {
        let before = spec(configuration)?;
        kubectl.delete(configuration)?.success()?;
        // The API server may still ask by the one that was deleted. The new one is made without entries first.
        restored(configuration, &before)?;
        release.asked()?;
    }
    writes.more(3)?;
    let (wrong, _) = writes.end()?;
    let explained = [
        "let in",
        "not filled",
        "denied the request: gpu-pool-consolidation: ",
    ];
    let refused = (wrong.iter()).find(|text| !explained.iter().any(|why| text.contains(why)));
    ensure!(refused.is_none(), "{refused:?}");
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
        restored(configuration, &before).with_context(|| patch.clone())?;
    }
    release.asked()?;
    let writes = Writes::begin(&release.cluster)?;
    writes.more(12)?;
    writes.end_well()?;
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

/// What the API server's entries trust, each.
fn published(release: &Release) -> Result<Vec<BTreeSet<Anchor>>> {
    let mut all = Vec::new();
    for kind in ["mutating", "validating"] {
        let kubectl = release.cluster.kubectl();
        let found = kubectl.get(&format!("{kind}webhookconfiguration/{NAME}"))?;
        for entry in found["webhooks"].as_array().context("webhooks")? {
            let text = entry["clientConfig"]["caBundle"].as_str();
            let pem = STANDARD.decode(text.context("caBundle")?)?;
            all.push(bundle::read(&pem)?.into_iter().collect());
        }
    }
    ensure!(all.len() > 3, "{} entries", all.len());
    Ok(all)
}

/// Every entry trusts what every pod shows. Shown first, then read: whoever served it had seen its authority
/// published, and nobody takes an authority away while its leaves hold.
fn all_verify(release: &Release) -> Result<()> {
    let chains = release
        .pods
        .iter()
        .map(|pod| shown(pod.gangplank.webhook()));
    let chains = chains.collect::<Result<Vec<_>>>()?;
    for entry in published(release)? {
        let anchors: Vec<Anchor> = entry.into_iter().collect();
        for chain in &chains {
            let name = format!("{NAME}.{NAMESPACE}.svc");
            bundle::verify(&anchors, chain, &name, SystemTime::now())
                .map_err(|error| anyhow!("{error}"))?;
        }
    }
    Ok(())
}

/// How often a step about the authority was made by any pod.
fn steps(release: &Release, step: &str) -> Result<u64> {
    let name = format!("gangplank_ca_steps_total{{step=\"{step}\"}}");
    let mut sum = 0;
    for pod in &release.pods {
        sum += metric(&pod.gangplank, &name)?.map_or(Ok(0), |value| value.parse::<u64>())?;
    }
    Ok(sum)
}

/// Asks over a connection that stays open.
fn ask_on(stream: &mut Stream) -> Result<()> {
    let body = review("still open");
    write!(
        stream,
        "POST /validate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()?;
    let (mut text, mut part) = (String::new(), [0; 4096]);
    while !text.contains("\"still open\"") {
        let count = stream.read(&mut part)?;
        ensure!(count > 0, "it broke off: {text}");
        text.push_str(std::str::from_utf8(&part[..count])?);
    }
    ensure!(text.starts_with("HTTP/1.1 200 "), "{text}");
    Ok(())
}

/// What the certificates go through in a year, and what else may go wrong meanwhile, in a minute and a half.
#[test]
fn certificates_clocks_connections_and_policies_change_under_writes() -> Result<()> {
    let values = json!({
        "audit": {"enabled": false},
        "extraArgs": ["--registration-period=1s", "--ca-life=45s", "--leaf-life=15s", "--ca-grace=3s",
            "--ca-period=500ms"],
    });
    let mut release = Release::install(&values)?;
    let system = release.cluster.kubectl().in_namespace(NAMESPACE);
    let secret = || system.get("secret/gangplank-ca");
    let signer = |secret: &Value| -> Result<Anchor> {
        let pem = STANDARD.decode(secret["data"]["tls.crt"].as_str().context("tls.crt")?)?;
        bundle::read(&pem)?.pop().context("a certificate")
    };
    let first = signer(&secret()?)?;
    let writes = Writes::begin(&release.cluster)?;
    let mut open = connect(
        release.pods[0].gangplank.webhook(),
        None,
        &rustls::version::TLS13,
    )?;
    ask_on(&mut open)?;

    // Another authority signs, and the first is trusted by nobody any more. Halfway the Secret is deleted.
    let mut both = false;
    eventually("the authority is replaced", 3 * SOON, || {
        let mut round = || -> Result<bool> {
            all_verify(&release)?;
            ask_on(&mut open)?;
            let published = published(&release)?;
            let side_by_side = published
                .iter()
                .all(|entry| entry.contains(&first) && entry.len() > 1);
            if side_by_side && !both {
                both = true;
                system.delete("secret/gangplank-ca")?.success()?;
            }
            Ok(published.iter().all(|entry| !entry.contains(&first)))
        };
        round().map(|gone| gone.then_some(())).transpose()
    })??;
    ensure!(both, "old and new were never trusted side by side");
    for step in ["restore", "prepare", "promote", "drop"] {
        ensure!(steps(&release, step)? >= 1, "{step}");
    }
    ensure!(
        steps(&release, "sign")? >= 6,
        "leaves were replaced meanwhile"
    );
    ensure!(signer(&secret()?)? != first);

    // The pods' own clocks leap. The API server's clock counts: it is the one that verifies.
    for days in [3, -30] {
        release.clock.leap(days * 86_400)?;
        let there = Timestamp::now() + SignedDuration::from_hours(24 * days);
        let day = there.strftime("%Y-%m-%dT").to_string();
        eventually("a denial is logged on another day", SOON, || {
            let mut logs = release.pods.iter().map(|pod| pod.gangplank.log());
            logs.any(|log| log.contains(&day)).then_some(())
        })?;
        writes.more(6)?;
        all_verify(&release)?;
    }
    release.clock.leap(0)?;

    // Connections to the API server break off, all at once, and for a while there is none.
    for _ in 0..3 {
        release.relay.cut();
        writes.more(3)?;
    }
    release.relay.lead_to(Vec::new());
    release.relay.cut();
    for pod in &release.pods {
        eventually("it is told", SOON, || {
            let name = "gangplank_watch_synced{resource=\"deployments.apps\"}";
            (metric(&pod.gangplank, name).ok()?? == "0").then_some(())
        })?;
        ensure!(get(&pod.gangplank, "/readyz")?.0 == 200, "it serves on");
    }
    writes.more(6)?;
    release
        .relay
        .lead_to(vec![release.cluster.apiserver_address()]);
    let kubectl = release.cluster.namespace("cut")?;
    let objects = |pod: &Pod| -> Option<u64> {
        let name = "gangplank_watch_objects{resource=\"deployments.apps\"}";
        metric(&pod.gangplank, name).ok()??.parse().ok()
    };
    let before = release
        .pods
        .iter()
        .map(|pod| objects(pod).context("a count"));
    let before = before.collect::<Result<Vec<_>>>()?;
    let server = deployment("llm", 1, 1, &[]).to_string();
    kubectl.create(&server)?.success()?;
    for (pod, before) in release.pods.iter().zip(before) {
        eventually("what is new is known", SOON, || {
            (objects(pod)? == before + 1).then_some(())
        })?;
    }

    // The policy's ConfigMap is replaced.
    let mut stricter = values.clone();
    stricter["policy"] = json!({"rules": {"short-scale-down": {"level": "deny"}}});
    for values in [&stricter, &values] {
        release.upgrade(values)?.success()?;
        release.sync_policy()?;
        writes.more(6)?;
    }

    writes.end_well()?;
    all_verify(&release)?;
    for pod in &mut release.pods {
        ensure!(pod.gangplank.ended().is_none(), "{}", pod.gangplank.log());
    }
    // The Secret is found by the Service that is registered.
    let told = Command::new(BINARY)
        .args(["certs", "--kubeconfig"])
        .arg(release.cluster.kubeconfig())
        .output()?;
    let text = String::from_utf8_lossy(&told.stdout);
    ensure!(told.status.code() == Some(0), "{told:?}");
    ensure!(text.contains(&format!("{NAMESPACE}/{NAME}-ca")), "{text}");
    Ok(())
}
