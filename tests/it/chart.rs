//! The chart: what Helm makes of it, and its life in a real cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result, ensure};
use gangplank::{facts::Watched, rules::kinds};
use promql_parser::parser::{self, Expr};
use serde_json::{Value, json};

use crate::{
    enforce::{hpa, node_pool},
    harness::{Helm, SOON, eventually, shared_cluster},
    release::{BAD, GOOD, NAME, NAMESPACE, Release, Writes, chart},
    serve::get,
};

/// `helm template` with these arguments; what it said where it refused.
fn render(args: &[&str]) -> Result<Result<Vec<Value>, String>> {
    let helm = Helm::of(shared_cluster()?)?;
    let path = chart();
    let mut all = vec!["template", NAME, path.to_str().context("a path")?];
    all.extend(["--namespace", NAMESPACE]);
    all.extend(args);
    let answer = helm.run(&all)?;
    if !answer.accepted() {
        return Ok(Err(answer.stderr));
    }
    let mut objects = Vec::new();
    for text in answer.stdout.split("\n---\n") {
        let value: Value = serde_saphyr::from_str(text)?;
        if value.is_object() {
            objects.push(value);
        }
    }
    Ok(Ok(objects))
}

fn rendered(args: &[&str]) -> Result<Vec<Value>> {
    render(args)?.map_err(anyhow::Error::msg)
}

fn one<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let mut found = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.next().with_context(|| format!("no {kind} {name}"))
}

/// Everything the chart can render at once.
const ALL: &[&str] = &[
    "--set-json=metrics={\"serviceMonitor\":{\"enabled\":true},\"prometheusRule\":{\"enabled\":true},\
     \"dashboard\":{\"enabled\":true}}",
];

#[test]
fn what_the_schema_does_not_know_is_refused_before_anything_is_installed() -> Result<()> {
    for (set, complaint) in [
        ("polcy.mode=dryRun", "polcy"),
        ("policy.mode=dryrun", "/policy/mode"),
        (
            "policy.rules.gpu-utilisation-signal.level=warn",
            "gpu-utilisation-signal",
        ),
        ("failurePolicy=fail", "failurePolicy"),
        ("audit.period=hourly", "/audit/period"),
        ("replicas=0", "replicas"),
        ("limits.bodyBytes=8MiB", "/limits/bodyBytes"),
        ("tls.mode=secret", "give tls.secretName"),
    ] {
        let said = render(&["--set", set])?
            .err()
            .with_context(|| format!("{set} is taken"))?;
        assert!(said.contains(complaint), "{set}: {said}");
    }
    Ok(())
}

/// A value without a word on it, or one that the schema forgot, is a value that nobody can use.
#[test]
fn every_value_is_documented_and_in_the_schema() -> Result<()> {
    fn walk(values: &Value, schema: &Value, path: &str, missing: &mut Vec<String>) {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
            return;
        };
        let values = values.as_object().unwrap();
        let known = |key: &&String| path.is_empty() && matches!(key.as_str(), "global" | "enabled");
        let (there, named): (BTreeSet<_>, BTreeSet<_>) = (
            values.keys().collect(),
            properties.keys().filter(|key| !known(key)).collect(),
        );
        let differing = there.symmetric_difference(&named);
        missing.extend(differing.map(|key| format!("{path}.{key}: in one of the two only")));
        for (key, value) in values {
            let (schema, path) = (&properties[key], format!("{path}.{key}"));
            if schema.get("properties").is_none()
                && schema["description"].as_str().is_none_or(str::is_empty)
            {
                missing.push(format!("{path}: no description"));
            }
            walk(value, schema, &path, missing);
        }
    }
    let text = fs::read_to_string(chart().join("values.yaml"))?;
    let values: Value = serde_saphyr::from_str(&text)?;
    let schema = fs::read_to_string(chart().join("values.schema.json"))?;
    let mut missing = Vec::new();
    walk(&values, &serde_json::from_str(&schema)?, "", &mut missing);
    // What the schema says of a value is what values.yaml says.
    let mut comment = String::new();
    for line in text.lines().map(str::trim_start) {
        if let Some(more) = line.strip_prefix("# ") {
            comment.push_str(if comment.is_empty() { "" } else { " " });
            comment.push_str(more);
        } else {
            let said = serde_json::to_string(&comment)?;
            if !comment.is_empty() && !line.is_empty() && !schema.contains(&said) {
                missing.push(format!("the schema says something else of {line}"));
            }
            comment.clear();
        }
    }
    ensure!(missing.is_empty(), "{}", missing.join("\n"));
    Ok(())
}

#[test]
fn limits_reach_the_command_line() -> Result<()> {
    let args = |more: &[&str]| -> Result<Vec<String>> {
        let objects = rendered(more)?;
        let container =
            &one(&objects, "Deployment", NAME)?["spec"]["template"]["spec"]["containers"][0];
        let args: Vec<String> = serde_json::from_value(container["args"].clone())?;
        Ok(args
            .into_iter()
            .filter(|arg| arg.starts_with("--max-"))
            .collect())
    };
    assert!(args(&[])?.is_empty());
    let set = "limits.connections=3000000,limits.inFlight=2000,limits.bodyBytes=64Mi";
    assert_eq!(
        args(&["--set", set])?,
        [
            "--max-connections=3000000",
            "--max-in-flight=2000",
            "--max-body-bytes-in-flight=64Mi",
        ]
    );
    Ok(())
}

/// Group and resource of what a role allows a verb on.
fn allowed(role: &Value, verb: &str) -> BTreeSet<(String, String)> {
    let texts = |value: &Value| -> Vec<String> {
        serde_json::from_value(value.clone()).unwrap_or_default()
    };
    let rules = role["rules"].as_array().into_iter().flatten();
    let with_verb = rules.filter(|rule| texts(&rule["verbs"]).iter().any(|it| it == verb));
    with_verb
        .flat_map(|rule| {
            let groups = texts(&rule["apiGroups"]);
            let resources = texts(&rule["resources"]);
            groups.into_iter().flat_map(move |group| {
                let pair = move |resource: &String| (group.clone(), resource.clone());
                resources.iter().map(pair).collect::<Vec<_>>()
            })
        })
        .collect()
}

#[test]
fn the_role_covers_what_is_judged_and_nothing_else() -> Result<()> {
    let pair = |group: &str, resource: &str| (group.to_owned(), resource.to_owned());
    let judged: BTreeSet<_> = (kinds::ALL.iter())
        .map(|kind| pair(kind.group, kind.resource))
        .collect();
    let watched: BTreeSet<_> = (Watched::ALL.into_iter().map(Watched::resource))
        .map(|(group, _, resource)| pair(group, resource))
        .collect();
    let reports: BTreeSet<_> = [
        ("openreports.io", "reports"),
        ("openreports.io", "clusterreports"),
        ("wgpolicyk8s.io", "policyreports"),
        ("wgpolicyk8s.io", "clusterpolicyreports"),
    ]
    .map(|(group, resource)| pair(group, resource))
    .into();

    let objects = rendered(&[])?;
    let role = one(&objects, "ClusterRole", NAME)?;
    // The webhook configurations, by name.
    let ours: BTreeSet<_> = ["mutating", "validating"]
        .map(|side| {
            let resource = format!("{side}webhookconfigurations");
            pair("admissionregistration.k8s.io", &resource)
        })
        .into();
    let limited = |role: &Value| {
        let rules = role["rules"].as_array().into_iter().flatten();
        let mut rules = rules.filter(|rule| rule["apiGroups"][0] == "admissionregistration.k8s.io");
        rules.all(|rule| rule["resourceNames"] == serde_json::json!([NAME]))
    };
    assert!(limited(role));
    assert_eq!(allowed(role, "update"), ours);
    let seen: BTreeSet<_> = judged.union(&watched).chain(&ours).cloned().collect();
    assert_eq!(allowed(role, "watch"), seen);
    let listed: BTreeSet<_> = seen.union(&reports).cloned().collect();
    assert_eq!(allowed(role, "list"), listed);

    let quiet = ["--set", "watch=false,audit.enabled=false"];
    let objects = rendered(&quiet)?;
    let role = one(&objects, "ClusterRole", NAME)?;
    assert_eq!(allowed(role, "list"), ours);
    assert_eq!(allowed(role, "watch"), ours);
    assert!(allowed(role, "get").is_superset(&judged));
    assert!(objects.iter().all(|object| object["kind"] != "Job"));
    for object in &objects {
        let wide = object["rules"].to_string().contains("\"*\"");
        assert!(!wide, "{}", object["metadata"]["name"]);
    }
    Ok(())
}

/// Who may call the port of the webhook, and what the pods may reach, by the NetworkPolicy.
#[test]
fn only_the_api_server_is_let_in_where_it_is_known() -> Result<()> {
    let policy = |more: &[&str]| -> Result<Value> {
        let objects = rendered(more)?;
        Ok(one(&objects, "NetworkPolicy", NAME)?["spec"].clone())
    };
    let silent = policy(&[])?;
    let webhook = json!([{"port": "webhook", "protocol": "TCP"}]);
    assert_eq!(silent["ingress"][0], json!({"ports": webhook}), "anybody");
    assert_eq!(silent["egress"], json!([{}]), "anywhere");

    let blocks = |cidrs: &[&str]| -> Vec<Value> {
        let block = |cidr: &&str| json!({"ipBlock": {"cidr": cidr}});
        cidrs.iter().map(block).collect()
    };
    let cidrs = ["10.0.0.10/32", "10.0.0.11/32"];
    let set = [
        "--set",
        "networkPolicy.apiServerCIDRs={10.0.0.10/32,10.0.0.11/32}",
    ];
    let known = policy(&set)?;
    assert_eq!(known["ingress"][0]["from"], json!(blocks(&cidrs)));
    assert_eq!(known["egress"][0]["to"], json!(blocks(&cidrs)));

    // The agents of a tunnel call on behalf of an API server that is reached elsewhere.
    let agents = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "konnectivity-agent"}},
    });
    let from = format!("networkPolicy.apiServerFrom=[{agents}]");
    let tunnelled = policy(&["--set-json", &from])?;
    assert_eq!(tunnelled["ingress"][0]["from"], json!([agents]));
    assert_eq!(tunnelled["ingress"][0]["ports"], webhook);
    assert_eq!(tunnelled["egress"], json!([{}]));
    let both = policy(&["--set-json", &from, set[0], set[1]])?;
    let mut all = blocks(&cidrs);
    all.push(agents);
    assert_eq!(both["ingress"][0]["from"], json!(all));
    Ok(())
}

/// What `helm install` says with these values.
fn notes(more: &[&str]) -> Result<String> {
    let helm = Helm::of(shared_cluster()?)?;
    let path = chart();
    let mut all = vec!["install", NAME, path.to_str().context("a path")?];
    all.extend(["--namespace", NAMESPACE, "--dry-run=client"]);
    all.extend(more);
    let said = helm.run(&all)?.success()?;
    let (_, notes) = said.split_once("NOTES:\n").context("notes")?;
    // A sentence may be broken anywhere.
    Ok(notes.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn the_notes_say_who_can_reach_the_port_and_what_to_set() -> Result<()> {
    let anybody = "Any pod of the cluster can reach port 8443, which only the API server has to";
    let silent = notes(&[])?;
    ensure!(silent.contains(anybody), "{silent}");
    ensure!(
        silent.contains("networkPolicy.apiServerCIDRs={10.0.0.10/32"),
        "{silent}"
    );
    ensure!(silent.contains("networkPolicy.apiServerFrom"), "{silent}");
    for (set, says, not) in [
        (
            "networkPolicy.apiServerCIDRs={10.0.0.10/32}",
            None,
            Some("can reach port"),
        ),
        (
            "networkPolicy.enabled=false",
            Some("there is no NetworkPolicy"),
            None,
        ),
        (
            "networkPolicy.enabled=false,networkPolicy.apiServerCIDRs={10.0.0.10/32}",
            Some(anybody),
            None,
        ),
        (
            "hostNetwork=true,networkPolicy.apiServerCIDRs={10.0.0.10/32}",
            Some("Whoever reaches the nodes reaches port 8443 too"),
            None,
        ),
        (
            "tls.clientCA.configMap=api-server-ca",
            Some("Only clients with a certificate of the ConfigMap api-server-ca are answered"),
            Some(anybody),
        ),
        ("ports.webhook=10250", Some("can reach port 10250"), None),
    ] {
        let said = notes(&["--set", set])?;
        ensure!(says.is_none_or(|says| said.contains(says)), "{set}: {said}");
        ensure!(not.is_none_or(|not| !said.contains(not)), "{set}: {said}");
    }
    let agents = "networkPolicy.apiServerFrom=[{\"podSelector\": {}}]";
    let said = notes(&["--set-json", agents])?;
    ensure!(!said.contains("can reach port"), "{said}");
    Ok(())
}

/// What the notes and the alert say of an outage is what the registration does.
#[test]
fn the_notes_and_the_alert_say_of_an_outage_what_is_true() -> Result<()> {
    const REFUSED: &str = "a write that may have to be denied is refused";
    const DELETE: &str = "kubectl delete validatingwebhookconfiguration gangplank";
    let enforced = "policy.overrides=[{\"namespaces\": [\"team-a\"], \"mode\": \"enforce\"}]";
    let alert = "metrics.prometheusRule.enabled=true";
    for (values, says, not, severity) in [
        (
            &[][..],
            &[REFUSED, DELETE, "The policy enforces"][..],
            &["dryRun: nothing"][..],
            "critical",
        ),
        (
            &["--set", "policy.mode=dryRun"],
            &[
                "nothing is denied or filled",
                "While no replica answers, no write is refused",
            ],
            &[REFUSED, DELETE],
            "warning",
        ),
        (
            &["--set", "policy.mode=dryRun", "--set-json", enforced],
            &[
                "enforce in the namespaces of some overrides",
                REFUSED,
                "those in dryRun among them",
            ],
            &["nothing is denied or filled, writers"],
            "critical",
        ),
        (
            &["--set", "failurePolicy=Ignore"],
            &["a write that may have to be denied is let through"],
            &[REFUSED],
            "warning",
        ),
    ] {
        let said = notes(values)?;
        for text in says {
            ensure!(said.contains(text), "{values:?}: no {text:?} in {said}");
        }
        for text in not {
            ensure!(!said.contains(text), "{values:?}: {text:?} in {said}");
        }
        let objects = rendered(&[values, &["--set", alert]].concat())?;
        let rule = one(&objects, "PrometheusRule", NAME)?;
        let down = &rule["spec"]["groups"][0]["rules"][0];
        assert_eq!(down["labels"]["severity"], severity, "{values:?}");
        let refused = down["annotations"]["description"]
            .to_string()
            .contains("are refused");
        assert_eq!(refused, severity == "critical", "{values:?}");
    }
    Ok(())
}

/// The names of the series of an expression.
fn series(expr: &Expr, names: &mut BTreeSet<String>) {
    match expr {
        Expr::VectorSelector(selector) => names.extend(selector.name.clone()),
        Expr::MatrixSelector(selector) => names.extend(selector.vs.name.clone()),
        Expr::Aggregate(it) => series(&it.expr, names),
        Expr::Unary(it) => series(&it.expr, names),
        Expr::Paren(it) => series(&it.expr, names),
        Expr::Subquery(it) => series(&it.expr, names),
        Expr::Binary(it) => {
            series(&it.lhs, names);
            series(&it.rhs, names);
        }
        Expr::Call(it) => {
            for arg in &it.args.args {
                series(arg, names);
            }
        }
        _ => {}
    }
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_are_there() -> Result<()> {
    let objects = rendered(ALL)?;
    let mut queries = Vec::new();
    let rule = one(&objects, "PrometheusRule", NAME)?;
    for alert in rule["spec"]["groups"][0]["rules"]
        .as_array()
        .context("alerts")?
    {
        let text = |key: &str| alert["annotations"][key].as_str().unwrap_or_default();
        ensure!(
            !text("summary").is_empty() && !text("description").is_empty(),
            "{alert}"
        );
        queries.push(alert["expr"].as_str().context("an expression")?.to_owned());
    }
    let map = one(&objects, "ConfigMap", "gangplank-dashboard")?;
    let dashboard = map["data"]["gangplank.json"]
        .as_str()
        .context("a dashboard")?;
    let dashboard: Value = serde_json::from_str(dashboard)?;
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().context("targets")? {
            let expr = target["expr"].as_str().context("an expression")?;
            queries.push(
                expr.replace("$__rate_interval", "5m")
                    .replace("$__range", "1h"),
            );
        }
    }
    let mut names = BTreeSet::new();
    for query in &queries {
        let expr = parser::parse(query).map_err(|error| anyhow::anyhow!("{query}: {error}"))?;
        series(&expr, &mut names);
    }
    ensure!(names.len() > 10, "{names:?}");
    // What Prometheus itself adds is not ours.
    names.remove("up");
    let source = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/metrics.rs"))?;
    for name in names {
        let short = name
            .strip_prefix("gangplank_")
            .context("a metric of ours")?;
        let family = short.trim_end_matches("_total").trim_end_matches("_bucket");
        ensure!(
            source.contains(&format!("\"{family}\"")),
            "there is no {name}"
        );
    }
    Ok(())
}

/// The API server itself judges the pod by the restricted profile of its Pod Security.
#[test]
fn the_pods_are_allowed_where_restricted_ones_are() -> Result<()> {
    let cluster = shared_cluster()?;
    let kubectl = cluster.namespace("restricted")?;
    let name = kubectl.namespace().to_owned();
    let label = "pod-security.kubernetes.io/enforce=restricted";
    cluster
        .kubectl()
        .label(&format!("namespace/{name}"), label)?
        .success()?;
    for set in [
        "replicas=2",
        "tls.mode=secret,tls.secretName=x",
        "tls.clientCA.configMap=ca",
    ] {
        let objects = rendered(&["--set", set])?;
        let template = &one(&objects, "Deployment", NAME)?["spec"]["template"];
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gangplank"}});
        pod["spec"] = template["spec"].clone();
        // The namespace has neither the account nor its quota.
        pod["spec"]["serviceAccountName"] = json!("default");
        let dry = [
            "create",
            "--dry-run=server",
            "--validate=strict",
            "--filename=-",
        ];
        kubectl.run(&dry, Some(&pod.to_string()))?.success()?;
    }
    Ok(())
}

fn values() -> Value {
    // Where there is no kubelet a projected volume cannot fill a Secret: the replicas do.
    json!({"audit": {"enabled": true, "period": "1h"}})
}

#[test]
fn a_release_goes_through_its_life() -> Result<()> {
    let mut release = Release::install(&values())?;
    release
        .cluster
        .start_controllers(&["garbage-collector-controller"])?;
    let kubectl = release.cluster.namespace("life")?;

    // Installed: what is wrong is denied through the Service, what is silent is filled.
    let denied = kubectl.create(&hpa("wrong", BAD).to_string())?;
    assert!(
        denied.stderr.contains("gpu-utilization-signal"),
        "{}",
        denied.stderr
    );
    kubectl.create(&hpa("right", GOOD).to_string())?.success()?;
    kubectl
        .create(&node_pool("release-life", None).to_string())?
        .success()?;
    let pool = kubectl.get("nodepool/release-life")?;
    assert_eq!(
        pool["spec"]["disruption"]["consolidationPolicy"],
        "WhenEmpty"
    );
    for index in 0..release.pods.len() {
        release.readyz(index, "webhook configurations: ok")?;
        for line in get(&release.pods[index].gangplank, "/readyz?verbose")?
            .1
            .lines()
        {
            ensure!(!line.contains("failing"), "{line}");
        }
        let log = release.pods[index].gangplank.log();
        ensure!(
            !log.contains("Forbidden") && !log.contains("forbidden"),
            "{log}"
        );
    }
    audited(&release)?;

    // Upgraded: the policy of the ConfigMap holds without a restart.
    let mut lax = values();
    lax["policy"] = json!({"rules": {"gpu-utilization-signal": {"level": "warn"}}});
    release.upgrade(&lax)?.success()?;
    release.sync_policy()?;
    eventually("the new policy holds", SOON, || {
        let answer = kubectl.run(
            &["create", "--dry-run=server", "--filename=-"],
            Some(&hpa("wrong", BAD).to_string()),
        );
        answer.ok()?.accepted().then_some(())
    })?;
    release.upgrade(&values())?.success()?;
    release.sync_policy()?;
    release.asked()?;

    // Rolled, a new one before an old one goes, under writes.
    let writes = Writes::begin(&release.cluster)?;
    for _ in 0..2 {
        release.start()?;
        release.stop(0)?;
        writes.more(6)?;
    }
    writes.end_well()?;

    // Uninstalled: nothing is left that could block a write, with every pod gone at once.
    let answer = release
        .helm
        .run(&["uninstall", NAME, "--namespace", NAMESPACE])?;
    answer.success()?;
    while !release.pods.is_empty() {
        release.kill(0)?;
    }
    eventually("the configurations are collected", SOON, || {
        let listed = kubectl.run(
            &[
                "get",
                "validatingwebhookconfigurations,mutatingwebhookconfigurations",
                "--output=name",
            ],
            None,
        );
        listed.ok()?.stdout.trim().is_empty().then_some(())
    })?;
    kubectl.create(&hpa("wrong", BAD).to_string())?.success()?;
    Ok(())
}

/// One of the replicas audits, and may do all that this takes.
fn audited(release: &Release) -> Result<()> {
    eventually("one replica audits all of it", SOON, || {
        let metrics: BTreeMap<String, String> = (release.pods.iter())
            .filter_map(|pod| get(&pod.gangplank, "/metrics").ok())
            .flat_map(|(_, text)| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|line| {
                let (name, value) = line.split_once(' ')?;
                Some((name.to_owned(), value.to_owned()))
            })
            .filter(|(_, value)| value == "1")
            .collect();
        (metrics.contains_key("gangplank_audit_leading")
            && metrics.contains_key("gangplank_audit_complete"))
        .then_some(())
    })
}
