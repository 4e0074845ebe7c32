//! What others change in the webhook configurations, and installs that share a name.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    harness::{Assets, Cluster, Gangplank, SOON, eventually},
    serve::get,
};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

const VALIDATING: &str = "validatingwebhookconfiguration/gangplank";
const MUTATING: &str = "mutatingwebhookconfiguration/gangplank";

/// Nothing but the watch makes Gangplank look.
const RARELY: &str = "--registration-period=1h";

fn start<S: AsRef<str>>(cluster: &Cluster, args: &[S]) -> Result<Gangplank> {
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    Gangplank::register(Path::new(BINARY), cluster, &args)
}

fn cluster() -> Result<Cluster> {
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds()?;
    Ok(cluster)
}

fn webhooks(cluster: &Cluster, object: &str) -> Result<Vec<Value>> {
    let held = cluster.kubectl().get(object)?;
    Ok(held["webhooks"].as_array().cloned().unwrap_or_default())
}

/// How often the entries of a configuration were written with another content.
fn generation(cluster: &Cluster, object: &str) -> Result<i64> {
    let held = cluster.kubectl().get(object)?;
    held["metadata"]["generation"]
        .as_i64()
        .context("generation")
}

fn patch(cluster: &Cluster, object: &str, manager: &str, patch: &Value) -> Result<()> {
    let patch = format!("--patch={patch}");
    let manager = format!("--field-manager={manager}");
    let args = ["patch", object, "--type=json", &patch, &manager];
    cluster.kubectl().run(&args, None)?.success()?;
    Ok(())
}

fn says(gangplank: &Gangplank, path: &str, text: &str) -> bool {
    get(gangplank, path).is_ok_and(|(_, body)| body.contains(text))
}

/// Waits until Gangplank says so.
fn said(gangplank: &Gangplank, path: &str, text: &str) -> Result<()> {
    let said = eventually(format_args!("{path} says {text:?}"), SOON, || {
        says(gangplank, path, text).then_some(())
    });
    said.with_context(|| format!("{:?}\n{}", get(gangplank, path), gangplank.log()))
}

/// Waits until there is an Event of that reason about a configuration whose note holds all of these.
fn event(cluster: &Cluster, reason: &str, kind: &str, parts: &[&str]) -> Result<()> {
    let kubectl = cluster.kubectl().in_namespace("default");
    eventually(
        format_args!("an Event {reason} has {parts:?}"),
        SOON,
        || {
            let all = kubectl.get("events.events.k8s.io").ok()?;
            let found = all["items"].as_array()?.iter().any(|event| {
                event["reason"] == reason
                    && event["regarding"]["kind"] == kind
                    && event["regarding"]["name"] == "gangplank"
                    && parts.iter().all(|part| {
                        event["note"]
                            .as_str()
                            .is_some_and(|note| note.contains(part))
                    })
            });
            found.then_some(())
        },
    )
}

/// Waits until the entries of a configuration are again what they were.
fn is_undone(cluster: &Cluster, object: &str, before: &[Value]) -> Result<()> {
    eventually(format_args!("{object} is as it was"), SOON, || {
        (webhooks(cluster, object).ok()? == before).then_some(())
    })
}

/// The place of an entry that may refuse a write.
fn blocking(entries: &[Value]) -> Result<usize> {
    let blocks = |entry: &Value| entry["failurePolicy"] == "Fail";
    entries.iter().position(blocks).context("no entry blocks")
}

#[test]
fn what_others_change_is_put_right_at_once_and_told() -> Result<()> {
    let cluster = cluster()?;
    let gangplank = start(&cluster, &[RARELY])?;
    said(
        &gangplank,
        "/readyz?verbose",
        "watch of the validating webhook configuration: ok",
    )?;
    said(
        &gangplank,
        "/metrics",
        "gangplank_registration_watched{configuration=\"mutating\"} 1",
    )?;
    let before = webhooks(&cluster, VALIDATING)?;
    let filling = webhooks(&cluster, MUTATING)?;
    ensure!(before.len() > 1 && !filling.is_empty());
    let at = blocking(&before)?;
    let mut selector = before[at]["namespaceSelector"].clone();
    selector["matchExpressions"]
        .as_array_mut()
        .context("expressions")?
        .push(json!({"key": "team", "operator": "NotIn", "values": ["a"]}));

    let within = |pointer: &str| format!("/webhooks/{at}/{pointer}");
    let put = |pointer: &str, value: Value| json!([{"op": "add", "path": within(pointer), "value": value}]);
    for (manager, field, change) in [
        (
            "narrower",
            "matchConditions",
            put(
                "matchConditions/-",
                json!({"name": "zzz", "expression": "false"}),
            ),
        ),
        (
            "labels",
            "objectSelector",
            put("objectSelector", json!({"matchLabels": {"asked": "yes"}})),
        ),
        (
            "operations",
            "rules",
            put("rules/0/operations", json!(["DELETE"])),
        ),
        (
            "versions",
            "rules",
            put("rules/0/apiVersions", json!(["v9"])),
        ),
        ("unknown", "rules", put("rules", json!([]))),
        (
            "teams",
            "namespaceSelector",
            put("namespaceSelector", selector),
        ),
        (
            "all-spaces",
            "namespaceSelector",
            put("namespaceSelector", json!({})),
        ),
        ("exact", "matchPolicy", put("matchPolicy", json!("Exact"))),
        (
            "ignoring",
            "failurePolicy",
            put("failurePolicy", json!("Ignore")),
        ),
        ("hasty", "timeoutSeconds", put("timeoutSeconds", json!(1))),
        (
            "elsewhere",
            "clientConfig",
            put("clientConfig/url", json!("https://127.0.0.1:1/")),
        ),
        (
            "unknown",
            "clientConfig",
            json!([{"op": "remove", "path": within("clientConfig/caBundle")}]),
        ),
    ] {
        let name = before[at]["name"].as_str().context("name")?;
        let by = if manager == "unknown" {
            "silent"
        } else {
            manager
        };
        patch(&cluster, VALIDATING, by, &change)?;
        is_undone(&cluster, VALIDATING, &before)
            .with_context(|| format!("{change}\n{}", gangplank.log()))?;
        let told = format!("{field}, by {manager:?}");
        said(&gangplank, "/readyz?verbose", &told)?;
        let counted = format!(
            "gangplank_registration_drift_put_right_total{{configuration=\"validating\",field={field:?}}}"
        );
        said(&gangplank, "/metrics", &counted)?;
        let kind = "ValidatingWebhookConfiguration";
        event(&cluster, "DriftPutRight", kind, &[name, &told])?;
    }

    let once = json!([
        {"op": "replace", "path": "/webhooks/0/reinvocationPolicy", "value": "Never"},
    ]);
    patch(&cluster, MUTATING, "once", &once)?;
    eventually("what fills is called again", SOON, || {
        (webhooks(&cluster, MUTATING).ok()? == filling).then_some(())
    })?;
    let kind = "MutatingWebhookConfiguration";
    event(
        &cluster,
        "DriftPutRight",
        kind,
        &["reinvocationPolicy, by \"once\""],
    )?;
    said(&gangplank, "/readyz?verbose", "webhook configurations: ok")?;
    said(&gangplank, "/metrics", "gangplank_webhooks_registered 1")?;
    Ok(())
}

#[test]
fn what_one_manager_changes_again_and_again_is_left_and_told() -> Result<()> {
    let cluster = cluster()?;
    // Two processes that want the same.
    let folder = tempfile::tempdir()?;
    let (cert, secret) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let key = rcgen::KeyPair::generate()?;
    let signed = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?.self_signed(&key)?;
    fs::write(&cert, signed.pem())?;
    fs::write(&secret, key.serialize_pem())?;
    let args = [
        RARELY.to_owned(),
        "--url=https://127.0.0.1:9".to_owned(),
        format!("--tls-cert={}", cert.display()),
        format!("--tls-key={}", secret.display()),
    ];
    let gangplank = start(&cluster, &args)?;
    let before = webhooks(&cluster, VALIDATING)?;
    let at = blocking(&before)?;
    let narrow = json!([{
        "op": "add", "path": format!("/webhooks/{at}/objectSelector"),
        "value": {"matchLabels": {"asked": "yes"}},
    }]);
    for _ in 0..3 {
        patch(&cluster, VALIDATING, "stubborn", &narrow)?;
        is_undone(&cluster, VALIDATING, &before)?;
    }
    patch(&cluster, VALIDATING, "stubborn", &narrow)?;
    said(
        &gangplank,
        "/readyz?verbose",
        "webhook configurations: failing: not as they should be",
    )?;
    said(
        &gangplank,
        "/readyz?verbose",
        "objectSelector, by \"stubborn\"; undone 3 times",
    )?;
    said(&gangplank, "/metrics", "gangplank_webhooks_registered 0")?;
    let left = "gangplank_registration_drift{configuration=\"validating\",field=\"objectSelector\",state=\"left\"} 1";
    said(&gangplank, "/metrics", left)?;
    event(
        &cluster,
        "DriftLeft",
        "ValidatingWebhookConfiguration",
        &["objectSelector", "stubborn"],
    )?;

    // Others are undone all the same, and what is left stays.
    let generation = generation(&cluster, VALIDATING)?;
    let narrowed = webhooks(&cluster, VALIDATING)?;
    assert_eq!(
        narrowed[at]["objectSelector"],
        json!({"matchLabels": {"asked": "yes"}})
    );
    let ignoring = json!([{
        "op": "add", "path": format!("/webhooks/{at}/failurePolicy"), "value": "Ignore",
    }]);
    patch(&cluster, VALIDATING, "other", &ignoring)?;
    is_undone(&cluster, VALIDATING, &narrowed)?;
    // Another process knows as much.
    let second = start(&cluster, &args)?;
    said(
        &second,
        "/readyz?verbose",
        "left as others changed it: validating",
    )?;
    assert_eq!(self::generation(&cluster, VALIDATING)?, generation + 2);
    Ok(())
}

#[test]
fn what_clouds_and_the_policy_add_to_namespace_selectors_stays() -> Result<()> {
    let cluster = cluster()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("policy.yaml");
    let policy = |rows: &str| {
        let head = "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\n";
        fs::write(
            &path,
            format!("{head}registration: {{tolerated: [{rows}]}}\n"),
        )
    };
    policy("{key: site/managed}")?;
    let gangplank = start(&cluster, &[RARELY, &format!("--policy={}", path.display())])?;
    let before = webhooks(&cluster, VALIDATING)?;
    let at = blocking(&before)?;
    // The enforcer of AKS writes the selector of every entry.
    let mut changes = Vec::new();
    let mut wanted = before;
    for (index, entry) in wanted.iter_mut().enumerate() {
        let selector = &mut entry["namespaceSelector"];
        let expressions = selector["matchExpressions"]
            .as_array_mut()
            .context("expressions")?;
        expressions.extend([
            json!({"key": "control-plane", "operator": "NotIn", "values": ["true"]}),
            json!({"key": "kubernetes.azure.com/managedby", "operator": "NotIn", "values": ["aks"]}),
            json!({"key": "site/managed", "operator": "DoesNotExist"}),
            json!({"key": "kubernetes.io/metadata.name", "operator": "NotIn",
                "values": ["kube-system", "gke-gmp-system", "gke-managed-cim"]}),
        ]);
        changes.push(json!({
            "op": "replace", "path": format!("/webhooks/{index}/namespaceSelector"),
            "value": selector,
        }));
    }
    patch(
        &cluster,
        VALIDATING,
        "admissionsenforcer",
        &Value::Array(changes),
    )?;
    let generation = generation(&cluster, VALIDATING)?;
    said(
        &gangplank,
        "/readyz?verbose",
        "namespaceSelector control-plane NotIn [true]",
    )?;
    said(&gangplank, "/readyz?verbose", "webhook configurations: ok")?;
    said(
        &gangplank,
        "/metrics",
        "gangplank_registration_drift{configuration=\"validating\",field=\"namespaceSelector\",state=\"tolerated\"}",
    )?;
    // What has to be put right is, and leaves them alone: two writes, no more.
    let ignoring = json!([{
        "op": "add", "path": format!("/webhooks/{at}/failurePolicy"), "value": "Ignore",
    }]);
    patch(&cluster, VALIDATING, "other", &ignoring)?;
    is_undone(&cluster, VALIDATING, &wanted)?;
    assert_eq!(self::generation(&cluster, VALIDATING)?, generation + 2);

    // Nor does another policy; without the row that one goes.
    policy("{key: site/other}")?;
    for entry in &mut wanted {
        let selector = &mut entry["namespaceSelector"];
        let expressions = selector["matchExpressions"]
            .as_array_mut()
            .context("expressions")?;
        expressions.retain(|expression| expression["key"] != "site/managed");
    }
    eventually("it goes with its row", SOON, || {
        (webhooks(&cluster, VALIDATING).ok()? == wanted).then_some(())
    })?;
    Ok(())
}

#[test]
fn entries_of_others_are_told_of_and_left() -> Result<()> {
    let cluster = cluster()?;
    let gangplank = start(&cluster, &[RARELY])?;
    let mut wanted = webhooks(&cluster, VALIDATING)?;
    let theirs = json!({
        "name": "theirs.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": "https://127.0.0.1:1/"}, "failurePolicy": "Ignore",
        "rules": [{"apiGroups": ["example.com"], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["things"]}],
    });
    let add = json!([{"op": "add", "path": "/webhooks/-", "value": theirs}]);
    patch(&cluster, VALIDATING, "neighbour", &add)?;
    said(
        &gangplank,
        "/readyz?verbose",
        "not ours and left alone: validating theirs.example.com",
    )?;
    event(
        &cluster,
        "ForeignEntry",
        "ValidatingWebhookConfiguration",
        &["theirs.example.com"],
    )?;
    // One that is called like ours is no rule's any more.
    let mut old = theirs;
    old["name"] = json!("old.gangplank.dev");
    let add = json!([{"op": "add", "path": "/webhooks/-", "value": old}]);
    patch(&cluster, VALIDATING, "remnant", &add)?;
    let all = eventually("ours goes", SOON, || {
        let all = webhooks(&cluster, VALIDATING).ok()?;
        (all.len() == wanted.len() + 1).then_some(all)
    })?;
    let last = all.last().context("entries")?;
    assert_eq!(last["name"], "theirs.example.com");
    wanted.push(last.clone());
    assert_eq!(all, wanted);
    Ok(())
}

#[test]
fn what_is_deleted_comes_back_at_once_whatever_the_api_server_did() -> Result<()> {
    let mut cluster = cluster()?;
    let gangplank = start(&cluster, &[RARELY])?;
    let before = [MUTATING, VALIDATING].map(|object| webhooks(&cluster, object).unwrap());
    // An entry that is missing, and entries in another order; nobody knows by whom.
    for (field, change) in [
        ("entry", json!([{"op": "remove", "path": "/webhooks/0"}])),
        (
            "order",
            json!([{"op": "move", "from": "/webhooks/0", "path": "/webhooks/1"}]),
        ),
    ] {
        patch(&cluster, VALIDATING, "silent", &change)?;
        said(
            &gangplank,
            "/readyz?verbose",
            &format!("{field}, by \"unknown\""),
        )?;
        assert_eq!(webhooks(&cluster, VALIDATING)?, before[1]);
    }
    for restarts in [false, true] {
        if restarts {
            cluster.restart_apiserver()?;
            let ok = "watch of the validating webhook configuration: ok";
            said(&gangplank, "/readyz?verbose", ok)?;
        }
        for (object, before) in [MUTATING, VALIDATING].iter().zip(&before) {
            cluster.kubectl().delete(object)?.success()?;
            eventually(format_args!("{object} is back"), SOON, || {
                (webhooks(&cluster, object).ok()? == *before).then_some(())
            })
            .with_context(|| gangplank.log())?;
        }
    }
    event(
        &cluster,
        "DriftPutRight",
        "MutatingWebhookConfiguration",
        &["configuration"],
    )?;
    Ok(())
}

#[test]
fn two_installs_of_one_name_notice_each_other() -> Result<()> {
    let cluster = cluster()?;
    let mut first = start(&cluster, &[RARELY])?;
    let before = webhooks(&cluster, VALIDATING)?;
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let args = [
        "--register",
        "--kubeconfig",
        &kubeconfig,
        "--registration-period=1s",
    ];
    let mut second = Gangplank::launch(Path::new(BINARY), &args, &[])?;
    said(&second, "/readyz?verbose", "belong to another install")?;
    said(
        &second,
        "/metrics",
        "gangplank_registration_of_another_install 1",
    )?;
    said(&second, "/metrics", "gangplank_webhooks_registered 0")?;
    let ours = second.webhook().to_string();
    event(
        &cluster,
        "AnotherInstall",
        "MutatingWebhookConfiguration",
        &[&ours, "--registration-name"],
    )?;
    assert_eq!(webhooks(&cluster, VALIDATING)?, before);
    said(&first, "/readyz?verbose", "webhook configurations: ok")?;

    // It takes over from one that is gone, and the one that was first would notice.
    first.kill()?;
    second.wait_for("ready")?;
    let log = second.log();
    assert_eq!(log.matches("belong to another install").count(), 1, "{log}");
    for entry in webhooks(&cluster, VALIDATING)? {
        let url = entry["clientConfig"]["url"].as_str().context("url")?;
        ensure!(url.contains(&ours), "{url}");
    }
    said(
        &second,
        "/metrics",
        "gangplank_registration_of_another_install 0",
    )?;

    // An annotation alone makes them nobody else's.
    let annotation = "/metadata/annotations/gangplank.dev~1instance";
    let forged = json!([{"op": "replace", "path": annotation, "value": "service other/gangplank"}]);
    patch(&cluster, VALIDATING, "forger", &forged)?;
    said(&second, "/readyz?verbose", "metadata, by \"forger\"")?;
    said(&second, "/readyz?verbose", "webhook configurations: ok")?;
    let held = cluster.kubectl().get(VALIDATING)?;
    let instance = &held["metadata"]["annotations"]["gangplank.dev/instance"];
    assert_eq!(instance, &json!(format!("url https://{ours}")));

    // Entries that ask a Service do. Of a Service nobody knows that it is gone: it is told, and left.
    second.kill()?;
    for object in [VALIDATING, MUTATING] {
        let service = json!({"service": {"namespace": "other", "name": "gangplank"}});
        let elsewhere = (0..webhooks(&cluster, object)?.len()).map(|index| {
            let path = format!("/webhooks/{index}/clientConfig");
            json!({"op": "replace", "path": path, "value": service})
        });
        let changes = [forged[0].clone()].into_iter().chain(elsewhere).collect();
        patch(&cluster, object, "other", &changes)?;
    }
    let third = Gangplank::launch(Path::new(BINARY), &args, &[])?;
    said(&third, "/readyz?verbose", "service other/gangplank")?;
    let dry = json!([{"op": "replace", "path": "/webhooks/0/timeoutSeconds", "value": 1}]);
    patch(&cluster, VALIDATING, "other", &dry)?;
    let generation = generation(&cluster, VALIDATING)?;
    // Until they are let go.
    for object in [MUTATING, VALIDATING] {
        let annotate = ["annotate", object, "gangplank.dev/instance-"];
        assert_eq!(self::generation(&cluster, VALIDATING)?, generation);
        cluster.kubectl().run(&annotate, None)?.success()?;
    }
    said(&third, "/readyz?verbose", "webhook configurations: ok")?;
    Ok(())
}

#[test]
fn what_is_replaced_again_and_again_is_left_whoever_it_says_wrote_it() -> Result<()> {
    let cluster = cluster()?;
    let gangplank = start(&cluster, &[RARELY])?;
    let before = webhooks(&cluster, VALIDATING)?;
    let at = blocking(&before)?;
    // All that says what we wrote, and what was undone, goes with the object.
    let mut forged = cluster.kubectl().get(VALIDATING)?;
    forged["webhooks"][at]["objectSelector"] = json!({"matchLabels": {"asked": "yes"}});
    forged["metadata"]["annotations"]["gangplank.dev/content"] = json!("forged");
    let metadata = forged["metadata"].as_object_mut().context("metadata")?;
    for member in ["resourceVersion", "uid", "managedFields", "generation"] {
        metadata.remove(member);
    }
    let replace = || {
        let args = ["replace", "--filename=-", "--field-manager=restorer"];
        let answer = cluster.kubectl().run(&args, Some(&forged.to_string()))?;
        answer.success().map(drop)
    };
    for _ in 0..3 {
        replace()?;
        is_undone(&cluster, VALIDATING, &before).with_context(|| gangplank.log())?;
    }
    replace()?;
    for field in ["objectSelector", "metadata"] {
        let left = format!("{field}, by \"restorer\"; undone 3 times");
        said(&gangplank, "/readyz?verbose", &left)?;
    }
    said(&gangplank, "/metrics", "gangplank_webhooks_registered 0")?;
    let kind = "ValidatingWebhookConfiguration";
    event(&cluster, "DriftLeft", kind, &["objectSelector", "restorer"])?;
    assert_eq!(json!(webhooks(&cluster, VALIDATING)?), forged["webhooks"]);
    Ok(())
}

#[test]
fn what_is_written_in_the_name_of_a_replica_is_told_and_put_right_soon() -> Result<()> {
    let cluster = cluster()?;
    let gangplank = start(&cluster, &[RARELY])?;
    let before = webhooks(&cluster, VALIDATING)?;
    let at = blocking(&before)?;
    let forged = json!([
        {"op": "replace", "path": "/metadata/annotations/gangplank.dev~1content", "value": "newer"},
        {"op": "add", "path": format!("/webhooks/{at}/objectSelector"),
            "value": {"matchLabels": {"asked": "yes"}}},
    ]);
    patch(&cluster, VALIDATING, "gangplank", &forged)?;
    is_undone(&cluster, VALIDATING, &before).with_context(|| gangplank.log())?;
    said(&gangplank, "/readyz?verbose", "webhook configurations: ok")?;
    let kind = "ValidatingWebhookConfiguration";
    let told = "objectSelector, by \"gangplank\"";
    let name = "another replica wrote it, or somebody in its name";
    event(&cluster, "DriftLeft", kind, &[told, name])?;
    event(&cluster, "DriftPutRight", kind, &[told])?;
    Ok(())
}

#[test]
fn metadata_is_put_right_and_left_like_entries() -> Result<()> {
    let cluster = cluster()?;
    let gangplank = start(&cluster, &[RARELY])?;
    let before = webhooks(&cluster, MUTATING)?;
    let label = || -> Result<Value> {
        let held = cluster.kubectl().get(MUTATING)?;
        Ok(held["metadata"]["labels"]["app.kubernetes.io/name"].clone())
    };
    let path = "/metadata/labels/app.kubernetes.io~1name";
    let change = json!([{"op": "replace", "path": path, "value": "other"}]);
    for _ in 0..3 {
        patch(&cluster, MUTATING, "labeller", &change)?;
        eventually("it is undone", SOON, || {
            (label().ok()? == "gangplank").then_some(())
        })?;
    }
    let told = "metadata, by \"labeller\"";
    let kind = "MutatingWebhookConfiguration";
    event(&cluster, "DriftPutRight", kind, &[told])?;
    let counted = "gangplank_registration_drift_put_right_total{configuration=\"mutating\",field=\"metadata\"} 3";
    said(&gangplank, "/metrics", counted)?;
    patch(&cluster, MUTATING, "labeller", &change)?;
    let left = format!("{told}; undone 3 times");
    said(&gangplank, "/readyz?verbose", &left)?;
    event(&cluster, "DriftLeft", kind, &[told])?;

    // Others are undone all the same, and what is left stays.
    let once = json!([
        {"op": "replace", "path": "/webhooks/0/reinvocationPolicy", "value": "Never"},
    ]);
    patch(&cluster, MUTATING, "once", &once)?;
    is_undone(&cluster, MUTATING, &before)?;
    assert_eq!(label()?, "other");
    said(&gangplank, "/readyz?verbose", &left)?;
    Ok(())
}

#[test]
fn replicas_with_different_policies_do_not_write_over_each_other() -> Result<()> {
    let cluster = cluster()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("policy.yaml");
    fs::write(
        &path,
        "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\nmode: dryRun\n",
    )?;
    let url = "--url=https://127.0.0.1:9";
    let older = start(&cluster, &[RARELY, url])?;
    let newer = start(
        &cluster,
        &[RARELY, url, &format!("--policy={}", path.display())],
    )?;
    let before = webhooks(&cluster, VALIDATING)?;
    ensure!(blocking(&before).is_err(), "the newer one's are there");
    let kind = "ValidatingWebhookConfiguration";
    let told = "by \"gangplank\"; another replica wrote it";
    event(&cluster, "DriftLeft", kind, &[told])?;
    // They take turns, and then no more of them than the period gives.
    eventually("they took three turns", SOON, || {
        let held = cluster.kubectl().get(VALIDATING).ok()?;
        let undone = &held["metadata"]["annotations"]["gangplank.dev/undone"];
        let times = undone.as_str()?.matches("\"gangplank\"").count();
        (times == 3).then_some(())
    })
    .with_context(|| older.log() + &newer.log())?;
    said(&older, "/readyz?verbose", "webhook configurations: ok")?;
    said(
        &newer,
        "/readyz?verbose",
        "by \"gangplank\"; another replica wrote it",
    )?;
    let before = webhooks(&cluster, VALIDATING)?;
    let generation = generation(&cluster, VALIDATING)?;
    let hasty = json!([{"op": "replace", "path": "/webhooks/0/timeoutSeconds", "value": 1}]);
    patch(&cluster, VALIDATING, "other", &hasty)?;
    is_undone(&cluster, VALIDATING, &before)?;
    said(&older, "/readyz?verbose", "timeoutSeconds, by \"other\"")?;
    assert_eq!(self::generation(&cluster, VALIDATING)?, generation + 2);
    Ok(())
}
