//! The way out, command by command as docs/security.md has it, against a real API server and the chart.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    enforce::hpa,
    harness::{SOON, eventually},
    release::{BAD, NAME, NAMESPACE, Release, chart},
};

/// A command as it stands on a line of its own in the section "Break-glass".
fn documented(command: &str) -> Result<&str> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md");
    let text = std::fs::read_to_string(path)?;
    let (_, section) = text.split_once("## Break-glass").context("the section")?;
    let (section, _) = section.split_once("\n## ").context("its end")?;
    let there = section
        .lines()
        .any(|line| line.strip_prefix("    ") == Some(command));
    ensure!(there, "docs/security.md does not have: {command}");
    Ok(command)
}

/// Runs a documented command by a shell, as a person would.
fn run(release: &Release, command: &str) -> Result<String> {
    let kubectl = release.cluster.kubectl();
    let folder = kubectl.program().parent().context("a folder")?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH")?);
    let output = Command::new("sh")
        .args(["-c", documented(command)?])
        .env("KUBECONFIG", kubectl.kubeconfig())
        .env("HOME", release.cluster.dir())
        .env("PATH", path)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command}: {said}{error}");
    Ok(said)
}

/// What becomes of a write that a rule denies.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Denied,
    Waits,
    Passes,
}

fn fate(release: &Release) -> Result<Fate> {
    let args = ["create", "--dry-run=server", "--filename=-"];
    let bad = hpa("bad", BAD).to_string();
    let answer = release.cluster.kubectl().run(&args, Some(&bad))?;
    if answer.accepted() {
        return Ok(Fate::Passes);
    }
    // The beginning of both messages is in the documentation too.
    if answer.stderr.contains("denied the request: ") {
        return Ok(Fate::Denied);
    }
    ensure!(
        answer.stderr.contains("failed calling webhook \"enforce")
            && answer
                .stderr
                .contains("failed to call webhook: Post \"https://gangplank.gangplank-system.svc:"),
        "{}",
        answer.stderr
    );
    Ok(Fate::Waits)
}

/// Waits until a wrong write is denied, by an entry that blocks.
fn enforces(release: &Release) -> Result<()> {
    blocks(release, true)?;
    comes_to(release, &Fate::Denied)
}

fn comes_to(release: &Release, expected: &Fate) -> Result<()> {
    eventually(format_args!("a wrong write is {expected:?}"), SOON, || {
        fate(release)
            .is_ok_and(|fate| fate == *expected)
            .then_some(())
    })
}

const DELETE: &str = "kubectl delete validatingwebhookconfiguration gangplank";
const DRY_RUN: &str = "kubectl --namespace gangplank-system patch configmap gangplank-policy --type merge --patch \
                       '{\"data\":{\"policy.yaml\":\"{apiVersion: gangplank.dev/v1alpha1, kind: Policy, mode: dryRun}\"}}'";
const SCALE: &str = "kubectl --namespace gangplank-system scale deployment/gangplank --replicas=0";
const BACK: &str = "kubectl --namespace gangplank-system scale deployment/gangplank --replicas=2";
const WAIT: &str = "kubectl --namespace gangplank-system wait --for=delete pod --selector \
                    app.kubernetes.io/name=gangplank --timeout=120s";
const DELETE_BOTH: &str =
    "kubectl delete validatingwebhookconfiguration,mutatingwebhookconfiguration gangplank";
const CONFIGURATIONS: &str = "kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations --selector \
                              app.kubernetes.io/name=gangplank";
const DEPLOYMENTS: &str =
    "kubectl get deployments --all-namespaces --selector app.kubernetes.io/name=gangplank";
const DELETE_ROLE: &str = "kubectl delete clusterrole,clusterrolebinding gangplank";
const UPGRADE: &str =
    "helm upgrade gangplank charts/gangplank --namespace gangplank-system --reuse-values ";

/// Runs a documented `helm upgrade`.
fn upgrade(release: &Release, more: &str) -> Result<()> {
    let command = format!("{UPGRADE}{more}");
    let chart = chart();
    let chart = chart.to_str().context("a path of letters")?;
    let words = documented(&command)?.split(' ').skip(1);
    let words: Vec<&str> = words
        .map(|word| word.trim_matches('\''))
        .map(|word| {
            if word == "charts/gangplank" {
                chart
            } else {
                word
            }
        })
        .collect();
    release.helm.run(&words)?.success()?;
    Ok(())
}

fn kill_all(release: &mut Release) -> Result<()> {
    while !release.pods.is_empty() {
        release.kill(0)?;
    }
    release.lead();
    Ok(())
}

#[test]
fn the_way_out_is_what_the_documentation_says() -> Result<()> {
    let values = json!({
        "audit": {"enabled": false}, "extraArgs": ["--registration-period=1s"],
        "policy": {"overrides": [{"namespaces": ["default"], "mode": "enforce"}]},
    });
    let mut release = Release::install(&values)?;
    release.cluster.start_controllers(&[
        "deployment-controller",
        "garbage-collector-controller",
        "namespace-controller",
        "replicaset-controller",
        "resourcequota-controller",
    ])?;
    assert_eq!(fate(&release)?, Fate::Denied);

    // No replica lives.
    kill_all(&mut release)?;
    comes_to(&release, &Fate::Waits)?;
    ensure!(run(&release, DEPLOYMENTS)?.contains(NAME));
    run(&release, DELETE)?;
    comes_to(&release, &Fate::Passes)?;
    release.start()?;
    comes_to(&release, &Fate::Denied)?;

    // One lives: what is deleted is registered again, and the policy is what stops it.
    run(&release, DELETE)?;
    comes_to(&release, &Fate::Denied)?;
    run(&release, DRY_RUN)?;
    release.sync_policy()?;
    comes_to(&release, &Fate::Passes)?;
    blocks(&release, false)?;
    upgrade(&release, "--force-conflicts")?;
    release.sync_policy()?;
    enforces(&release)?;
    upgrade(
        &release,
        "--set policy.mode=dryRun --set-json 'policy.overrides=[]'",
    )?;
    release.sync_policy()?;
    comes_to(&release, &Fate::Passes)?;
    blocks(&release, false)?;
    release.upgrade(&values)?.success()?;
    release.sync_policy()?;
    enforces(&release)?;

    // It is taken away. What ends the pod of the Deployment ends ours.
    run(&release, SCALE)?;
    run(&release, WAIT)?;
    kill_all(&mut release)?;
    assert_eq!(
        fate(&release)?,
        Fate::Waits,
        "a scale to zero is no way out"
    );
    run(&release, DELETE_BOTH)?;
    comes_to(&release, &Fate::Passes)?;

    run(&release, BACK)?;

    // Nothing waits the next time.
    upgrade(&release, "--set failurePolicy=Ignore")?;
    release.start()?;
    comes_to(&release, &Fate::Denied)?;
    kill_all(&mut release)?;
    comes_to(&release, &Fate::Passes)?;
    release
        .upgrade(&json!({"failurePolicy": "Fail"}))?
        .success()?;
    release.start()?;
    enforces(&release)?;

    // The namespace is deleted.
    kill_all(&mut release)?;
    let kubectl = release.cluster.kubectl();
    kubectl
        .delete(&format!("namespace/{NAMESPACE}"))?
        .success()?;
    eventually("the namespace is gone", SOON, || {
        kubectl
            .get(&format!("namespace/{NAMESPACE}"))
            .is_err()
            .then_some(())
    })?;
    let webhooks = kubectl.get(&format!("validatingwebhookconfiguration/{NAME}"))?;
    ensure!(webhooks["webhooks"].is_array(), "the registration stays");
    ensure!(run(&release, CONFIGURATIONS)?.contains(NAME));
    run(&release, DELETE_BOTH)?;
    comes_to(&release, &Fate::Passes)?;
    run(&release, DELETE_ROLE)?;
    let kinds = "validatingwebhookconfigurations,mutatingwebhookconfigurations";
    let listed = kubectl.run(&["get", kinds, "--output=name"], None)?;
    ensure!(listed.stdout.trim().is_empty(), "{}", listed.stdout);
    comes_to(&release, &Fate::Passes)
}

/// Waits until some entry of the registration can refuse a write, or none can.
fn blocks(release: &Release, some: bool) -> Result<()> {
    eventually(format_args!("some entry blocks: {some}"), SOON, || {
        let object = format!("validatingwebhookconfiguration/{NAME}");
        let held: Value = release.cluster.kubectl().get(&object).ok()?;
        let entries = held["webhooks"].as_array()?;
        let fail = |entry: &Value| entry["failurePolicy"] == "Fail";
        (!entries.is_empty() && entries.iter().any(fail) == some).then_some(())
    })
}

/// The command of docs/platforms.md, and of the notes of `helm install`.
#[test]
fn the_addresses_of_the_api_server_can_be_listed() -> Result<()> {
    const COMMAND: &str =
        "--namespace default get endpointslices --selector kubernetes.io/service-name=kubernetes";
    for file in ["docs/platforms.md", "charts/gangplank/templates/NOTES.txt"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(path)?;
        ensure!(text.contains(&format!("kubectl {COMMAND}")), "{file}");
    }
    let words: Vec<&str> = COMMAND.split(' ').collect();
    crate::harness::shared_cluster()?
        .kubectl()
        .run(&words, None)?
        .success()?;
    Ok(())
}
