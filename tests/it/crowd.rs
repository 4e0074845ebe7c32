//! `gangplank audit` where there is much: thousands of objects, a list that the API server forgets in
//! between, reports that are cut off half way, and a terminal on which all that is watched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, anyhow, ensure};
use gangplank::{
    audit::{self, ByPolicy, Plan, Progress},
    facts::Facts,
    policy::Policy,
    rules::{Kind, kinds},
};
use jiff::Timestamp;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde_json::{Value, json};

use crate::{
    enforce::hpa,
    harness::{
        Assets, Cluster, SOON, client, eventually,
        fleet::{self, Made},
    },
};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

/// Objects of all kinds.
const CROWD: usize = 3_200;

/// A cluster with a crowd in it, and with report objects.
fn crowd() -> Result<&'static Cluster> {
    static CROWDED: OnceLock<Result<Cluster, String>> = OnceLock::new();
    let start = || -> Result<Cluster> {
        let cluster = Cluster::start(&Assets::find()?)?;
        cluster.install_crds()?;
        cluster.install_crds_of("crds-openreports")?;
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(fleet::populate(cluster.kubeconfig(), 0..CROWD))?;
        Ok(cluster)
    };
    CROWDED
        .get_or_init(|| start().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("{error}"))
}

/// What names an object: kind, namespace, name.
type Name = (String, String, String);

fn name(object: &Value, namespace: &Value, name: &Value) -> Name {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&object["kind"]), text(namespace), text(name))
}

/// The rules that are to deny, by the objects that they are to deny; by how these were made.
fn planned() -> BTreeMap<Name, &'static str> {
    (0..CROWD)
        .filter_map(|number| match fleet::object(number) {
            (_, Made::Clean) => None,
            (object, Made::Denied(rule)) => {
                let metadata = &object["metadata"];
                Some((
                    name(&object, &metadata["namespace"], &metadata["name"]),
                    rule,
                ))
            }
        })
        .collect()
}

#[test]
fn of_thousands_each_is_counted_once_and_judged_as_it_was_made() -> Result<()> {
    let cluster = crowd()?;
    let output = Command::new(BINARY)
        .args(["audit", "--output=json", "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .env_clear()
        .output()?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        output.stderr.is_empty(),
        "no bar where there is no terminal"
    );
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let planned = planned();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..CROWD {
        let kind = fleet::object(number).0["kind"].as_str().unwrap().to_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    let mut seen = BTreeSet::new();
    let mut denied = BTreeMap::new();
    for result in report["results"].as_array().context("results")? {
        let object = &result["object"];
        let name = name(object, &object["namespace"], &object["name"]);
        *kinds.get_mut(&name.0).context("no such kind was made")? -= 1;
        let findings = result["findings"].as_array().context("findings")?;
        match result["verdict"].as_str() {
            Some("allow") => assert!(findings.is_empty(), "{result}"),
            Some("deny") => {
                let rule = findings[0]["rule"].as_str().context("a rule")?.to_owned();
                denied.insert(name.clone(), rule);
            }
            _ => panic!("{result}"),
        }
        assert!(seen.insert(name), "twice: {object}");
    }
    assert!(kinds.values().all(|left| *left == 0), "{kinds:?}");
    assert_eq!(seen.len(), CROWD);
    assert!(
        denied
            .iter()
            .map(|(name, rule)| (name, rule.as_str()))
            .eq(planned.iter().map(|(name, rule)| (name, *rule))),
        "{denied:?}"
    );
    assert_eq!(
        report["summary"],
        json!({
            "objects": CROWD, "denied": planned.len(), "warned": 0,
            "allowed": CROWD - planned.len(), "filled": 0, "exempted": 0, "errors": 0, "known": 0,
        })
    );
    // What lists only what was found counts the rest.
    let text = Command::new(BINARY)
        .args(["audit", "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .env_clear()
        .output()?;
    let text = String::from_utf8(text.stdout)?;
    let counts = text.lines().last().context("a last line")?;
    assert!(
        counts.contains(&format!("{CROWD} objects")) && counts.contains(&planned.len().to_string()),
        "{counts}"
    );
    Ok(())
}

/// Between the first page and the second time passes: objects come, and the API server forgets what was
/// before.
struct Later<'c> {
    cluster: &'c Cluster,
    pages: AtomicUsize,
}

impl Progress for Later<'_> {
    fn reviewed(&self, _: &Kind, _: usize, _: Option<u64>) {
        if self.pages.fetch_add(1, Ordering::Relaxed) > 0 {
            return;
        }
        let kubectl = self.cluster.kubectl().in_namespace("later");
        for name in ["a-came-before", "z-came-behind"] {
            let made = hpa(name, "vllm:num_requests_waiting").to_string();
            kubectl.create(&made).unwrap().success().unwrap();
        }
        self.cluster.compact().unwrap();
    }
}

#[test]
fn a_list_that_the_server_has_forgotten_goes_on_behind_what_was_seen() -> Result<()> {
    // Without the copies of old states that newer API servers keep for a while.
    let flags = ["--feature-gates=ListFromCacheSnapshot=false"];
    let cluster = Cluster::start_with(&Assets::find()?, &flags)?;
    let namespace = ["create", "namespace", "later"];
    cluster.kubectl().run(&namespace, None)?.success()?;
    let names: BTreeSet<String> = (0..1_200).map(|number| format!("o-{number:04}")).collect();
    let objects = names.iter().map(|name| {
        let mut object = hpa(name, "vllm:num_requests_waiting");
        object["metadata"]["namespace"] = json!("later");
        object
    });
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(fleet::create(cluster.kubeconfig(), objects))?;
    let judge = Arc::new(ByPolicy {
        policy: Arc::new(Policy::default()),
        facts: Arc::new(Facts::unknown()),
        now: Timestamp::now(),
        rules: Vec::new(),
        clean: true,
        identity: false,
    });
    let plan = Plan {
        kinds: vec![&kinds::HORIZONTAL_POD_AUTOSCALER],
        ..Plan::default()
    };
    let later = Later {
        cluster: &cluster,
        pages: AtomicUsize::new(0),
    };
    let seen = runtime.block_on(async {
        let client = client(cluster.kubeconfig()).await?;
        anyhow::Ok(audit::run(&client, &plan, &judge, &later).await)
    })?;
    assert!(seen.unseen.is_empty(), "{:?}", seen.unseen);
    assert_eq!(later.pages.into_inner(), 3);
    let met: Vec<String> = seen
        .told
        .into_iter()
        .filter_map(|one| one.object.name)
        .collect();
    let each: BTreeSet<String> = met.iter().cloned().collect();
    assert_eq!(each.len(), met.len(), "something was counted twice");
    // What came behind is only seen in a list that was forgotten and goes on as things are now; what
    // came before is only seen in one that was begun anew.
    let mut expected = names;
    expected.insert("z-came-behind".to_owned());
    assert_eq!(each, expected);
    Ok(())
}

/// The reports in the cluster by their names, without their times.
async fn reports(cluster: &Cluster) -> Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for api in apis(cluster).await? {
        for report in api.list(&ListParams::default()).await? {
            let name = report.metadata.name.clone().context("a name")?;
            let mut value = report.data.clone();
            for result in value["results"].as_array_mut().context("results")? {
                result
                    .as_object_mut()
                    .context("a result")?
                    .remove("timestamp");
            }
            value["labels"] = json!(report.metadata.labels);
            value["owners"] = json!(report.metadata.owner_references);
            ensure!(all.insert(name, value).is_none(), "twice");
        }
    }
    Ok(all)
}

/// The reports of a namespace, and those that are in none.
async fn apis(cluster: &Cluster) -> Result<[Api<DynamicObject>; 2]> {
    let client = client(cluster.kubeconfig()).await?;
    Ok(
        [("Report", "reports"), ("ClusterReport", "clusterreports")].map(|(kind, plural)| {
            let resource = ApiResource {
                group: "openreports.io".to_owned(),
                version: "v1alpha1".to_owned(),
                api_version: "openreports.io/v1alpha1".to_owned(),
                kind: kind.to_owned(),
                plural: plural.to_owned(),
            };
            Api::all_with(client.clone(), &resource)
        }),
    )
}

fn report(cluster: &Cluster, policy: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(["audit", "--report", "--policy"])
        .arg(policy)
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .env_clear();
    command
}

/// Says what the reports of a whole run are like; the counts it gives are `written` and `unchanged`.
fn reported(cluster: &Cluster, policy: &Path) -> Result<(usize, usize)> {
    let output = report(cluster, policy).output()?;
    let said = String::from_utf8(output.stderr)?;
    let counts: Vec<usize> = said
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    match counts[..] {
        [written, unchanged, 0] => Ok((written, unchanged)),
        _ => Err(anyhow!("{said}")),
    }
}

/// Kills a run when it has written some of its reports and not all: `done` counts those.
fn cut_off(
    cluster: &Cluster,
    policy: &Path,
    all: usize,
    done: impl Fn() -> Result<usize>,
) -> Result<()> {
    let mut run = report(cluster, policy)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    eventually("some reports are written", SOON, || {
        done().is_ok_and(|done| done >= 10).then_some(())
    })?;
    // SIGKILL: there is no time to tidy up.
    run.kill()?;
    run.wait()?;
    let done = done()?;
    ensure!(
        done < all,
        "{done} of {all}: the run was over before it was killed"
    );
    Ok(())
}

#[test]
fn reports_that_were_cut_off_are_whole_and_the_next_run_completes_them() -> Result<()> {
    let cluster = crowd()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let there = || runtime.block_on(reports(cluster));
    let policy = |name: &str, rules: Value| -> Result<_> {
        let path = cluster.dir().join(name);
        let policy =
            json!({"apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy", "rules": rules});
        fs::write(&path, policy.to_string())?;
        Ok(path)
    };
    let deny = policy("deny.yaml", json!({}))?;
    let lax = json!({"level": "warn"});
    let warn = policy(
        "warn.yaml",
        json!({
            "gpu-utilization-signal": lax, "gpu-memory-signal": lax, "parallelism-fits-pod": lax,
            "gpu-pool-consolidation": lax,
        }),
    )?;
    // What runs that nobody disturbs make of it, by one policy and by another.
    let all = planned().len();
    assert_eq!(reported(cluster, &warn)?, (all, 0));
    let of_warn = there()?;
    assert_eq!(reported(cluster, &deny)?, (all, 0));
    let of_deny = there()?;
    assert_eq!((of_warn.len(), of_deny.len()), (all, all));

    // Cut off while the reports change: each is the old or the new one.
    let changed = || -> Result<usize> {
        let now = there()?;
        Ok(now
            .iter()
            .filter(|(name, one)| of_warn.get(*name) == Some(one))
            .count())
    };
    cut_off(cluster, &warn, all, changed)?;
    let between = there()?;
    assert_eq!(between.len(), all);
    for (name, one) in &between {
        assert!(
            [&of_warn[name], &of_deny[name]].contains(&one),
            "{name} is neither: {one}"
        );
    }
    let before = changed()?;
    assert_eq!(reported(cluster, &warn)?, (all - before, before));
    assert_eq!(there()?, of_warn);

    // Cut off while they are made.
    for resource in ["reports.openreports.io", "clusterreports.openreports.io"] {
        let delete = [
            "delete",
            resource,
            "--all",
            "--all-namespaces",
            "--wait=false",
        ];
        cluster.kubectl().run(&delete, None)?.success()?;
    }
    assert!(there()?.is_empty());
    cut_off(cluster, &deny, all, || Ok(there()?.len()))?;
    let between = there()?;
    for (name, one) in &between {
        assert_eq!(one, &of_deny[name]);
    }
    assert_eq!(
        reported(cluster, &deny)?,
        (all - between.len(), between.len())
    );
    assert_eq!(there()?, of_deny);
    Ok(())
}

/// Runs a command line of the shell on a terminal of its own: `script` is of util-linux, and the only
/// program for this that every Linux has.
fn on_a_terminal(command: &str) -> Result<(i32, String)> {
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", command, "/dev/null"])
        .env("TERM", "xterm")
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::null())
        .output()
        .context("script is missing: install util-linux")?;
    Ok((
        output.status.code().context("a code")?,
        String::from_utf8_lossy(&output.stdout).into_owned(),
    ))
}

#[test]
fn a_bar_is_shown_on_a_terminal_and_goes_away() -> Result<()> {
    let cluster = crowd()?;
    let report = cluster.dir().join("of-a-terminal.json");
    let audit = format!(
        "stty cols 100 rows 24; exec {BINARY} audit --output=json --kubeconfig={} > {}",
        cluster.kubeconfig().display(),
        report.display()
    );
    let (code, screen) = on_a_terminal(&audit)?;
    assert_eq!(code, 1, "{screen}");
    assert!(screen.contains(" objects, "), "{screen:?}");
    // At the end its line is empty again.
    let last = screen.rsplit("\u{1b}[2K").next().unwrap_or(&screen);
    assert_eq!(last.trim(), "", "{screen:?}");
    // It is no part of the report.
    let report: Value = serde_json::from_slice(&fs::read(&report)?)?;
    assert_eq!(report["summary"]["objects"], CROWD);
    Ok(())
}
