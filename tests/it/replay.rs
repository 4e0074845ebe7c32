//! `gangplank replay` on the audit log of a real API server: it says of writes that nobody judged what
//! the webhook says of the same writes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    check::gangplank,
    enforce::{at, deployment, evicting, gang, hpa, node_pool, queue, scaled_object},
    harness::{Assets, Cluster, Gangplank, Kubectl, SOON, eventually},
};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");
const BAD: &str = "DCGM_FI_DEV_GPU_UTIL";
const GOOD: &str = "vllm:num_requests_waiting";

/// Exit code, standard output and standard error of a run.
fn replay(args: &[&str], stdin: &str) -> (i32, String, String) {
    let output = gangplank(Path::new("."))
        .arg("replay")
        .args(args)
        .write_stdin(stdin)
        .output()
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// A write that was logged without its objects.
fn bare(group: &str, resource: &str) -> String {
    json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata",
        "stage": "ResponseComplete", "verb": "create", "requestURI": "/",
        "user": {"username": "alice"}, "responseStatus": {"code": 201},
        "objectRef": {"resource": resource, "apiGroup": group, "namespace": "llm", "name": "x"},
        "requestReceivedTimestamp": "2026-11-20T10:00:00.000000Z",
        "stageTimestamp": "2026-11-20T10:00:00.100000Z",
    })
    .to_string()
}

/// The kinds that the test writes, at level Metadata.
fn bare_log() -> String {
    [
        ("autoscaling", "horizontalpodautoscalers"),
        ("keda.sh", "scaledobjects"),
        ("apps", "deployments"),
        ("karpenter.sh", "nodepools"),
    ]
    .map(|(group, resource)| bare(group, resource))
    .join("\n")
}

#[test]
fn a_log_without_objects_says_how_to_get_them() {
    let (code, out, err) = replay(&["-"], &bare_log());
    assert_eq!(code, 2, "nothing was judged: {out}");
    assert!(err.contains("none of the writes could be judged"), "{err}");
    insta::assert_snapshot!("replay-metadata", out);
}

#[test]
fn what_is_no_log_is_said() {
    for (text, says) in [
        ("", "the logs hold no request that was answered"),
        ("apiVersion: v1\n", "-: holds no audit event"),
        ("{}\n{}\n", "-: holds no audit event"),
    ] {
        let (code, _, err) = replay(&["-"], text);
        assert_eq!(code, 2, "{text:?}");
        assert!(err.contains(says), "{text:?}: {err}");
    }
    let (code, _, err) = replay(&["/nowhere/audit.log"], "");
    assert_eq!(code, 2);
    assert!(err.contains("cannot read /nowhere/audit.log: "), "{err}");
    // The end of a log may be half written.
    let mut text = bare_log().replace("\"create\"", "\"list\"");
    text.push_str("\n{\"kind\":\"Event\",\"apiV");
    let (code, out, _) = replay(&["-"], &text);
    assert_eq!(code, 0);
    assert!(out.contains("passed over: -:5: "), "{out}");
}

/// What people do in a namespace, with every client; the number of writes that are logged.
fn live(kubectl: &Kubectl, pool: &str) -> Result<usize> {
    let mut writes = 0;
    let mut done = |answer: crate::harness::Answer, accepted: bool| -> Result<()> {
        ensure!(answer.accepted() == accepted, "{}", answer.stderr);
        writes += 1;
        Ok(())
    };
    // An HPA that is made well and then worse, by every kind of update.
    done(kubectl.create(&hpa("patched", GOOD).to_string())?, true)?;
    let metrics = json!({"spec": {"metrics": hpa("x", BAD)["spec"]["metrics"]}});
    done(kubectl.patch("hpa/patched", &metrics)?, true)?;
    let more = json!({"spec": {"maxReplicas": 5}});
    done(kubectl.patch("hpa/patched", &more)?, true)?;
    done(kubectl.create(&hpa("replaced", GOOD).to_string())?, true)?;
    done(kubectl.replace(&hpa("replaced", BAD).to_string())?, true)?;
    done(kubectl.replace(&hpa("replaced", GOOD).to_string())?, true)?;
    done(kubectl.apply(&hpa("applied", BAD).to_string())?, true)?;
    let mut more = hpa("applied", BAD);
    more["spec"]["maxReplicas"] = json!(5);
    done(kubectl.apply(&more.to_string())?, true)?;
    let apply = |query: &str| {
        let manifest = scaled_object("server-side", query).to_string();
        kubectl.apply_server_side(&manifest)
    };
    let (bad, good) = (
        "avg(nvidia_gpu_duty_cycle)",
        "sum(vllm:num_requests_waiting)",
    );
    for query in [bad, bad, good, bad] {
        done(apply(query)?, true)?;
    }
    // A name that the API server makes.
    let mut generated = hpa("", BAD);
    generated["metadata"] = json!({"generateName": "generated-"});
    done(kubectl.create(&generated.to_string())?, true)?;
    // A workload that is scaled, labelled and rolled out.
    let seven = deployment("seven", 7, 1, &["--tensor-parallel-size=8"]);
    done(kubectl.apply(&seven.to_string())?, true)?;
    done(
        kubectl.run(&["scale", "deployment/seven", "--replicas=2"], None)?,
        true,
    )?;
    done(kubectl.label("deployment/seven", "team=llm")?, true)?;
    let image = json!({"spec": {"template": {"metadata": {"labels": {"again": "yes"}}}}});
    done(kubectl.patch("deployment/seven", &image)?, true)?;
    // What would be filled, and is then annotated wrongly.
    done(kubectl.apply_server_side(&gang("gang").to_string())?, true)?;
    let seven = "kai.scheduler/batch-min-member=7";
    done(kubectl.annotate("deployment/gang", seven)?, true)?;
    done(
        kubectl.create(&node_pool(&format!("{pool}-silent"), None).to_string())?,
        true,
    )?;
    let evicting = node_pool(&format!("{pool}-evicting"), Some(evicting()));
    done(kubectl.create(&evicting.to_string())?, true)?;
    // Nothing comes of these.
    done(kubectl.create(&hpa("applied", BAD).to_string())?, false)?;
    let dry = ["create", "--dry-run=server", "--filename=-"];
    let tried = hpa("tried", BAD).to_string();
    done(kubectl.run(&dry, Some(&tried))?, true)?;
    // Another user, and an object that goes away and comes again.
    let lead = kubectl.as_user("lead");
    done(lead.create(&hpa("again", BAD).to_string())?, true)?;
    done(kubectl.delete("hpa/again")?, true)?;
    done(lead.create(&hpa("again", BAD).to_string())?, true)?;
    Ok(writes)
}

struct Log(PathBuf);

impl Log {
    /// What was answered of the objects of a phase: those in its namespace, and its NodePools.
    fn events(&self, namespace: &str) -> Vec<Value> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let events = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events
            .filter(|event| {
                let reference = &event["objectRef"];
                let pool = at(event, "/responseObject/metadata/name");
                let ours = reference["namespace"] == namespace
                    || (reference["resource"] == "nodepools"
                        && pool
                            .as_str()
                            .is_some_and(|name| name.starts_with(namespace)));
                ours && event["stage"] == "ResponseComplete"
            })
            .collect()
    }

    fn wait(&self, namespace: &str, count: usize) -> Result<Vec<Value>> {
        let what = format!("{count} writes in {namespace} are logged");
        eventually(what, SOON, || {
            let events = self.events(namespace);
            (events.len() >= count).then_some(events)
        })
    }
}

/// How many writes of each object the webhook says it would have denied, by what it leaves in the audit
/// log itself.
fn said_by_the_webhook(events: &[Value]) -> BTreeMap<String, u64> {
    let mut said = BTreeMap::new();
    for event in events {
        let verdicts = event["annotations"].as_object().into_iter().flatten();
        let mut verdicts = verdicts.filter(|(key, _)| key.ends_with("gangplank.dev/verdict"));
        let would_deny = verdicts.any(|(_, verdict)| verdict == "would-deny");
        let dry = event["requestURI"].as_str().unwrap().contains("dryRun");
        let failed = event["responseStatus"]["code"].as_u64().unwrap() >= 400;
        if would_deny && !dry && !failed {
            let object = &event["responseObject"];
            let name = format!(
                "{} {}",
                object["kind"].as_str().unwrap(),
                object["metadata"]["name"].as_str().unwrap()
            );
            *said.entry(name).or_default() += 1;
        }
    }
    said
}

/// The same by a replay. Names that the API server made, and those of NodePools, differ by phase.
fn told(report: &Value) -> BTreeMap<String, u64> {
    let mut told = BTreeMap::new();
    for row in report["objects"].as_array().unwrap() {
        let denied = row["denied"].as_u64().unwrap();
        if denied > 0 {
            let object = &row["object"];
            let name = format!(
                "{} {}",
                object["kind"].as_str().unwrap(),
                object["name"].as_str().unwrap()
            );
            told.insert(name, denied);
        }
    }
    told
}

fn written(folder: &Path, name: &str, events: &[Value]) -> Result<String> {
    let lines: Vec<String> = events.iter().map(ToString::to_string).collect();
    let path = folder.join(name);
    fs::write(&path, lines.join("\n"))?;
    Ok(path.display().to_string())
}

#[test]
fn a_replay_says_of_a_log_what_the_webhook_says_of_the_same_writes() -> Result<()> {
    // The API server logs by the rule that a replay asks for.
    let (_, asked, _) = replay(&["-"], &bare_log());
    let rule: Vec<&str> = asked
        .lines()
        .filter(|line| line.starts_with("    "))
        .collect();
    let audit_policy = format!(
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n{}\n    - level: None\n",
        rule.join("\n")
    );
    let cluster = Cluster::start_audited(&Assets::find()?, &audit_policy)?;
    cluster.install_crds()?;
    queue(&cluster, "llm")?;
    let log = Log(cluster.audit_log());
    let admin = cluster.kubectl();
    let phase = |namespace: &str| -> Result<Kubectl> {
        admin
            .run(&["create", "namespace", namespace], None)?
            .success()?;
        let kubectl = admin.in_namespace(namespace);
        let binding = [
            "create",
            "rolebinding",
            "lead",
            "--clusterrole=cluster-admin",
            "--user=lead",
        ];
        kubectl.run(&binding, None)?.success()?;
        Ok(kubectl)
    };

    // First nobody judges.
    let writes = live(&phase("alone")?, "alone")?;
    let alone = log.wait("alone", writes)?;
    assert!(said_by_the_webhook(&alone).is_empty(), "nobody judges");

    // Then the webhook says what it would deny of the same writes.
    let folder = tempfile::tempdir()?;
    let policy = folder.path().join("policy.yaml");
    fs::write(
        &policy,
        "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\nmode: dryRun\n",
    )?;
    let policy = format!("--policy={}", policy.display());
    let args = [policy.as_str(), "--watch=false"];
    let _gangplank = Gangplank::register(Path::new(BINARY), &cluster, &args)?;
    let dry = ["create", "--dry-run=server", "--filename=-"];
    let probe = node_pool("probe", Some(evicting())).to_string();
    eventually("the API server asks Gangplank", SOON, || {
        let answer = admin.run(&dry, Some(&probe)).ok()?;
        answer.stderr.contains("would be denied").then_some(())
    })?;
    let writes = live(&phase("asked")?, "asked")?;
    let events = log.wait("asked", writes)?;
    let said = said_by_the_webhook(&events);

    let report = |namespace: &str, events: &[Value], more: &[&str]| -> Result<Value> {
        let path = written(folder.path(), namespace, events)?;
        let args = [&["--output=json", path.as_str()], more].concat();
        let (code, out, err) = replay(&args, "");
        ensure!(code == 1 && err.is_empty(), "{code}: {err}");
        serde_json::from_str(&out).context(out)
    };
    let judged = report("asked", &events, &[])?;
    assert_eq!(told(&judged), said);
    // By hand: HPAs patched, replaced, applied and generated, that of the lead twice, the ScaledObject
    // twice, the Deployment with seven GPUs and a NodePool. The gang was none before it was annotated.
    assert_eq!(said.values().sum::<u64>(), 10, "{said:?}");
    assert_eq!(judged["total"]["denied"], 10);
    assert_eq!(
        judged["total"]["perhaps"], 0,
        "the log begins with the objects"
    );
    assert_eq!(
        judged["total"],
        report("dry", &events, &[&policy])?["total"],
        "a policy in dryRun is replayed as if it were enforced"
    );
    // And of the writes that nobody judged the same.
    let unjudged = report("alone", &alone, &[])?;
    for part in ["total", "rules", "writes"] {
        assert_eq!(unjudged[part], judged[part], "{part}");
    }
    assert_eq!(unjudged["writes"]["failed"], 1);
    assert_eq!(unjudged["writes"]["dryRun"], 1);
    let lead = unjudged["users"].as_array().context("users")?;
    let lead = lead.iter().find(|row| row["user"] == "lead");
    assert_eq!(lead.context("lead")?["denied"], 2);

    // A log that begins later does not tell what was there before, and is never sure of more.
    let later: Vec<Value> = alone
        .iter()
        .filter(|it| it["verb"] != "create")
        .cloned()
        .collect();
    let later = report("later", &later, &[])?;
    let count = |report: &Value, what: &str| report["total"][what].as_u64().unwrap();
    assert!(count(&later, "denied") < count(&unjudged, "denied"));
    assert!(count(&later, "perhaps") > 0);

    // Without the answers patches cannot be judged; the rest is as before.
    let mut requests = alone;
    for event in &mut requests {
        event["level"] = json!("Request");
        event.as_object_mut().unwrap().remove("responseObject");
    }
    let requests = report("requests", &requests, &[])?;
    assert_eq!(
        told(&requests),
        BTreeMap::from(
            [
                ("HorizontalPodAutoscaler replaced", 1),
                ("HorizontalPodAutoscaler applied", 1),
                ("HorizontalPodAutoscaler generated-*", 1),
                ("HorizontalPodAutoscaler again", 2),
                ("Deployment seven", 1),
                ("NodePool alone-evicting", 1),
            ]
            .map(|(name, count)| (name.to_owned(), count))
        )
    );

    let path = folder.path().join("alone").display().to_string();
    let (_, text, _) = replay(&[&path], "");
    insta::assert_snapshot!("replay-text", settled(&text));
    Ok(())
}

/// The text without what differs by run: times, and what the API server named.
fn settled(text: &str) -> String {
    let word = |word: &str| -> String {
        let bare = word.trim_end_matches(':');
        if bare.parse::<jiff::Timestamp>().is_ok() {
            word.replace(bare, "<time>")
        } else if let Some((before, _)) = bare.split_once("generated-") {
            word.replace(bare, &format!("{before}generated-<random>"))
        } else {
            word.to_owned()
        }
    };
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = text.lines().map(line).collect();
    lines.join("\n")
}
