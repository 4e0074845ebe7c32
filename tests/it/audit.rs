//! `gangplank audit` and `gangplank policy diff` against a real API server that Gangplank does not
//! guard: what runs there has never been judged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::{
    enforce::{deployment, evicting, gang, hpa, node_pool},
    harness::{Assets, Cluster, fleet, shared_cluster},
};

/// Objects made of each of the three shapes, in each namespace: more than two pages of HPAs in all.
const EACH: usize = 180;

const NAMESPACES: [&str; 3] = ["team-a", "team-b", "team-c"];

struct Lived {
    cluster: Cluster,
    /// What was made, by kind.
    made: Vec<Value>,
}

/// A cluster with some thousands of objects.
fn lived() -> Result<&'static Lived> {
    static LIVED: OnceLock<Result<Lived, String>> = OnceLock::new();
    let start = || -> Result<Lived> {
        let cluster = Cluster::start(&Assets::find()?)?;
        cluster.install_crds()?;
        let mut made = Vec::new();
        for namespace in NAMESPACES {
            let create = ["create", "namespace", namespace];
            cluster.kubectl().run(&create, None)?.success()?;
            for number in 0..EACH {
                let mut all = vec![
                    hpa(&format!("gpu-{number}"), "DCGM_FI_DEV_GPU_UTIL"),
                    hpa(&format!("queue-{number}"), "vllm:num_requests_waiting"),
                    web(&format!("web-{number}")),
                ];
                if number % 10 == 0 {
                    all.push(deployment(
                        &format!("seven-{number}"),
                        7,
                        1,
                        &["--tensor-parallel-size=8"],
                    ));
                    all.push(gang(&format!("gang-{number}")));
                }
                for mut object in all {
                    object["metadata"]["namespace"] = json!(namespace);
                    if number % 2 == 0 {
                        object["metadata"]["annotations"]["meta.helm.sh/release-name"] =
                            json!("even");
                    }
                    object["metadata"]["labels"]["parity"] =
                        json!(if number % 2 == 0 { "even" } else { "odd" });
                    made.push(object);
                }
            }
        }
        made.push(node_pool("evicting", Some(evicting())));
        made.push(node_pool("silent", None));
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(fleet::create(cluster.kubeconfig(), made.iter().cloned()))?;
        Ok(Lived { cluster, made })
    };
    LIVED
        .get_or_init(|| start().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("{error}"))
}

/// A Deployment that has nothing to do with GPUs.
fn web(name: &str) -> Value {
    let mut web = deployment(name, 1, 1, &[]);
    let container = &mut web["spec"]["template"]["spec"]["containers"][0];
    container["image"] = json!("nginx:1.29");
    container["args"] = json!([]);
    container["resources"] = json!({});
    web
}

fn gangplank(args: &[&str], kubeconfig: &Path) -> Result<(i32, String, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_gangplank"))
        .args(args)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .env_clear()
        .output()?;
    Ok((
        output.status.code().context("a code")?,
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    ))
}

fn audit(args: &[&str], kubeconfig: &Path) -> Result<(i32, Value)> {
    let all = [&["audit", "--output=json"], args].concat();
    let (code, out, err) = gangplank(&all, kubeconfig)?;
    ensure!(err.is_empty(), "{err}");
    Ok((code, serde_json::from_str(&out)?))
}

/// `kind namespace/name` of the results with this verdict.
fn named(report: &Value, verdict: &str) -> Vec<String> {
    let results = report["results"].as_array().unwrap();
    let mut names: Vec<String> = results
        .iter()
        .filter(|result| result["verdict"] == verdict)
        .map(|result| {
            let text = |key: &str| result["object"][key].as_str().unwrap_or("-").to_owned();
            format!("{} {}/{}", text("kind"), text("namespace"), text("name"))
        })
        .collect();
    names.sort();
    names
}

#[test]
fn an_audit_counts_what_an_independent_recount_counts() -> Result<()> {
    let lived = lived()?;
    let (code, report) = audit(&[], lived.cluster.kubeconfig())?;
    assert_eq!(code, 1);
    // By what each was made to be. Silence became the API server's own default, which evicts.
    let bad = ["gpu-", "seven-", "gang-", "evicting", "silent"];
    let mut expected: Vec<String> = lived
        .made
        .iter()
        .map(|object| {
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            let metadata = &object["metadata"];
            (
                text(&object["kind"]),
                text(&metadata["namespace"]),
                text(&metadata["name"]),
            )
        })
        .filter(|(_, _, name)| bad.iter().any(|bad| name.starts_with(bad)))
        .map(|(kind, namespace, name)| format!("{kind} {namespace}/{name}"))
        .collect();
    expected.sort();
    let found = named(&report, "deny");
    let one_sided: Vec<&String> = (found.iter().filter(|name| !expected.contains(name)))
        .chain(expected.iter().filter(|name| !found.contains(name)))
        .collect();
    assert!(one_sided.is_empty(), "{one_sided:?}");
    let summary = &report["summary"];
    assert_eq!(summary["objects"], lived.made.len());
    assert_eq!(summary["denied"], found.len());
    assert_eq!(summary["errors"], 0);
    assert!(found.len() > NAMESPACES.len() * EACH, "{}", found.len());
    // Nothing was written.
    let pool = lived.cluster.kubectl().get("nodepool/silent")?;
    assert_eq!(pool["metadata"]["generation"], 1);
    Ok(())
}

#[test]
fn an_audit_looks_at_what_it_is_told_to() -> Result<()> {
    let lived = lived()?;
    let kubeconfig = lived.cluster.kubeconfig();
    let (_, of_one) = audit(&["-n", "team-a"], kubeconfig)?;
    let per_namespace = (lived.made.len() - 2) / NAMESPACES.len();
    assert_eq!(of_one["summary"]["objects"], per_namespace);
    let hpas = [
        "-n",
        "team-a",
        "-l",
        "parity=odd",
        "--kind",
        "horizontalpodautoscalers",
    ];
    let (_, odd) = audit(&hpas, kubeconfig)?;
    assert_eq!(odd["summary"]["objects"], EACH);
    let (code, pools) = audit(
        &["--kind", "nodepools", "--rule", "gpu-pool-limits"],
        kubeconfig,
    )?;
    assert_eq!((code, &pools["summary"]["objects"]), (0, &json!(2)));
    let rules: Vec<&Value> = pools["results"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|result| result["findings"].as_array().unwrap())
        .map(|finding| &finding["rule"])
        .collect();
    assert_eq!(rules, ["gpu-pool-limits", "gpu-pool-limits"]);
    for (args, complaint) in [
        (&["--kind", "Pods"][..], "no rule speaks of \"Pods\""),
        (
            &["--rule", "gpu-pool-limit"],
            "did you mean gpu-pool-limits?",
        ),
        (&["-n", "team-a", "--kind", "nodepools"], "in no namespace"),
        (&["-l", "a in ("], "list"),
    ] {
        let all = [&["audit"], args].concat();
        let (code, _, err) = gangplank(&all, kubeconfig)?;
        let (_, out, _) = gangplank(&all, kubeconfig)?;
        assert!(
            code == 2 && (err.contains(complaint) || out.contains(complaint)),
            "{args:?}: {err}{out}"
        );
    }
    Ok(())
}

/// A kubeconfig by which somebody else asks.
fn as_user(kubeconfig: &Path, user: &str, folder: &Path) -> Result<PathBuf> {
    let text = fs::read_to_string(kubeconfig)?;
    let mut config: Value = serde_saphyr::from_str(&text)?;
    for entry in config["users"].as_array_mut().context("users")? {
        entry["user"]["as"] = json!(user);
    }
    let path = folder.join(format!("{user}.json"));
    fs::write(&path, config.to_string())?;
    Ok(path)
}

#[test]
fn whoever_may_not_see_everything_is_told_what_was_not_seen() -> Result<()> {
    let lived = lived()?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = as_user(lived.cluster.kubeconfig(), "carol", folder.path())?;
    let (code, nothing) = audit(&[], &kubeconfig)?;
    assert_eq!((code, &nothing["summary"]["objects"]), (2, &json!(0)));
    let told = nothing["results"].to_string();
    for kind in [
        "nodepools.karpenter.sh",
        "horizontalpodautoscalers.autoscaling",
    ] {
        assert!(told.contains(kind), "{told}");
    }
    let rules = |verbs: &[&str], group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let subjects = json!([{"kind": "User", "name": "carol",
        "apiGroup": "rbac.authorization.k8s.io"}]);
    let rbac = |kind: &str, namespace: Option<&str>, body: Value| {
        let mut object = body;
        object["apiVersion"] = json!("rbac.authorization.k8s.io/v1");
        object["kind"] = json!(kind);
        object["metadata"] = json!({"name": "carol", "namespace": namespace});
        object
    };
    let reference = |kind: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "carol"});
    for object in [
        rbac(
            "ClusterRole",
            None,
            json!({"rules": [rules(&["list"], "", &["namespaces"])]}),
        ),
        rbac(
            "ClusterRoleBinding",
            None,
            json!({"subjects": subjects, "roleRef": reference("ClusterRole")}),
        ),
        rbac(
            "Role",
            Some("team-b"),
            json!({"rules": [rules(&["list"], "autoscaling", &["horizontalpodautoscalers"])]}),
        ),
        rbac(
            "RoleBinding",
            Some("team-b"),
            json!({"subjects": subjects, "roleRef": reference("Role")}),
        ),
    ] {
        lived
            .cluster
            .kubectl()
            .create(&object.to_string())?
            .success()?;
    }
    let (code, some) = audit(&["--kind", "HorizontalPodAutoscaler"], &kubeconfig)?;
    assert_eq!((code, &some["summary"]["objects"]), (2, &json!(2 * EACH)));
    assert_eq!(some["summary"]["denied"], EACH);
    assert!(
        some["results"].to_string().contains("namespaces)"),
        "{}",
        some["summary"]
    );
    Ok(())
}

#[test]
fn the_report_for_people_is_by_namespace_and_owner() -> Result<()> {
    let lived = lived()?;
    let kubeconfig = lived.cluster.kubeconfig();
    let args = [
        "audit",
        "-n",
        "team-c",
        "-l",
        "parity",
        "--kind",
        "Deployment",
    ];
    let (code, out, err) = gangplank(&args, kubeconfig)?;
    assert_eq!((code, err.as_str()), (1, ""));
    assert!(
        out.starts_with("namespace team-c\n  Helm release even\n    Deployment gang-0\n"),
        "{out}"
    );
    let objects = out
        .lines()
        .filter(|line| line.starts_with("    Deployment "))
        .count();
    assert_eq!(objects, 2 * EACH / 10, "{out}");
    assert!(
        out.contains("\nWhat it costs to leave it\n  gang-scheduling (deny, "),
        "{out}"
    );
    let (_, pools, _) = gangplank(&["audit", "--kind", "NodePool"], kubeconfig)?;
    insta::assert_snapshot!("audit-text", pools);
    let (code, sarif, _) = gangplank(&["audit", "--kind", "NodePool", "-o", "sarif"], kubeconfig)?;
    let sarif: Value = serde_json::from_str(&sarif)?;
    assert_eq!(code, 1);
    let place = &sarif["runs"][0]["results"][0]["locations"][0]["logicalLocations"][0];
    assert_eq!(place["fullyQualifiedName"], "NodePool/evicting");
    Ok(())
}

#[test]
fn every_form_tells_of_the_same_objects() -> Result<()> {
    let lived = lived()?;
    let form = |form: &str| -> Result<String> {
        let args = ["audit", "--kind=NodePool", "--output", form];
        let (code, out, err) = gangplank(&args, lived.cluster.kubeconfig())?;
        assert_eq!((code, err.as_str()), (1, ""), "{form}");
        Ok(out)
    };
    let junit = form("junit")?;
    assert!(
        junit.contains(r#"<testsuites name="gangplank" tests="2" failures="2" errors="0">"#),
        "{junit}"
    );
    assert_eq!(junit.matches("<testcase classname=\"cluster\"").count(), 2);
    let page = form("html")?;
    let objects = page.matches("data-namespace=\"(none)\" data-verdict=\"deny\"");
    assert_eq!(objects.count(), 2, "{page}");
    // Those of which there is nothing to say are cases, too.
    let clean = [
        "audit",
        "--output=junit",
        "-n=team-a",
        "--kind=HorizontalPodAutoscaler",
    ];
    let (_, junit, _) = gangplank(&clean, lived.cluster.kubeconfig())?;
    let counts = format!("tests=\"{}\" failures=\"{EACH}\" errors=\"0\"", 2 * EACH);
    assert!(junit.contains(&counts), "{counts}");
    Ok(())
}

#[test]
fn the_cluster_is_that_of_the_file_the_context_or_the_environment() -> Result<()> {
    let lived = lived()?;
    let folder = tempfile::tempdir()?;
    let text = fs::read_to_string(lived.cluster.kubeconfig())?;
    let mut config: Value = serde_saphyr::from_str(&text)?;
    // The present context is that of a cluster that is gone.
    let live = config["current-context"].take();
    config["current-context"] = json!("gone");
    let user = config["users"][0]["name"].clone();
    config["contexts"]
        .as_array_mut()
        .context("contexts")?
        .push(json!({
            "name": "gone", "context": {"cluster": "gone", "user": user},
        }));
    config["clusters"]
        .as_array_mut()
        .context("clusters")?
        .push(json!({
            "name": "gone", "cluster": {"server": "https://127.0.0.1:9"},
        }));
    let path = folder.path().join("two");
    fs::write(&path, config.to_string())?;
    let pools = [
        "audit",
        "--output=json",
        "--kind=NodePool",
        "--all-namespaces",
    ];
    let objects = |out: &str| -> Result<Value> {
        let report: Value = serde_json::from_str(out)?;
        Ok(report["summary"]["objects"].clone())
    };
    let (code, out, _) = gangplank(&pools, &path)?;
    assert_eq!((code, objects(&out)?), (2, json!(0)));
    let context = format!("--context={}", live.as_str().context("a context")?);
    let (code, out, _) = gangplank(&[&pools[..], &[&context]].concat(), &path)?;
    assert_eq!((code, objects(&out)?), (1, json!(2)));
    let by_environment = |path: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gangplank"));
        command
            .args(pools)
            .env_clear()
            .env("KUBECONFIG", path)
            .output()
    };
    let output = by_environment(lived.cluster.kubeconfig())?;
    let out = String::from_utf8(output.stdout)?;
    assert_eq!((output.status.code(), objects(&out)?), (Some(1), json!(2)));
    // All namespaces and one are a contradiction.
    let (code, _, err) = gangplank(&["audit", "-A", "-n", "team-a"], &path)?;
    assert!(code == 2 && err.contains("cannot be used with"), "{err}");
    Ok(())
}

#[test]
fn what_is_exempt_what_was_and_what_would_be_filled_is_told() -> Result<()> {
    let cluster = shared_cluster()?;
    let kubectl = cluster.namespace("standing")?;
    let until = (jiff::Zoned::now().date() + jiff::ToSpan::days(30)).to_string();
    for (name, until) in [("exempt", until.as_str()), ("expired", "2026-01-31")] {
        let mut hpa = hpa(name, "DCGM_FI_DEV_GPU_UTIL");
        hpa["metadata"]["annotations"] = json!({
            "exempt.gangplank.dev/gpu-utilization-signal":
                format!("until={until}; owner=team-llm; reason=load test"),
        });
        kubectl.create(&hpa.to_string())?.success()?;
    }
    // Of what is applied it is known who wrote what.
    let server = deployment("silent", 1, 1, &[]).to_string();
    kubectl.apply_server_side(&server)?.success()?;
    let kubeconfig = cluster.kubeconfig();
    let (code, report) = audit(&["-n", kubectl.namespace()], kubeconfig)?;
    assert_eq!(code, 1);
    let namespace = kubectl.namespace();
    let hpa = |name: &str| vec![format!("HorizontalPodAutoscaler {namespace}/{name}")];
    assert_eq!(named(&report, "deny"), hpa("expired"));
    assert_eq!(named(&report, "allow"), hpa("exempt"));
    assert_eq!(report["summary"]["exempted"], 1);
    assert_eq!(report["summary"]["filled"], 0, "nothing is");
    let (_, text, _) = gangplank(&["audit", "-n", namespace], kubeconfig)?;
    for line in [
        &format!("exempt until {until} (team-llm): gpu-utilization-signal: "),
        "would be denied: gpu-utilization-signal: ",
        "warning: exemption-expired: ",
        "would be filled: termination-grace: \
         spec.template.spec.terminationGracePeriodSeconds with 180",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert_eq!(text.matches("would be denied").count(), 1, "{text}");
    Ok(())
}

#[test]
fn a_diff_of_policies_asks_the_cluster() -> Result<()> {
    let lived = lived()?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str, members: Value| -> Result<String> {
        let mut policy = json!({"apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy"});
        policy["rules"] = members;
        let path = folder.path().join(name);
        fs::write(&path, policy.to_string())?;
        Ok(path.display().to_string())
    };
    let strict = file("strict", json!({}))?;
    let lax = file("lax", json!({"gpu-utilization-signal": {"level": "warn"}}))?;
    let diff = |old: &str, new: &str| {
        gangplank(
            &["policy", "diff", old, new, "-o", "json"],
            lived.cluster.kubeconfig(),
        )
    };
    let (code, out, err) = diff(&lax, &strict)?;
    let report: Value = serde_json::from_str(&out).context(err)?;
    let newly = NAMESPACES.len() * EACH;
    assert_eq!(code, 1);
    assert_eq!(
        report["summary"],
        json!({"objects": lived.made.len(), "changed": newly, "newlyDenied": newly,
            "noLongerDenied": 0, "errors": 0})
    );
    assert_eq!(diff(&strict, &lax)?.0, 0);
    Ok(())
}

#[test]
fn no_cluster_is_an_error_that_says_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let missing = folder.path().join("none");
    let (code, out, err) = gangplank(&["audit"], &missing)?;
    assert!(
        code == 2 && out.is_empty() && err.contains("no access to a cluster"),
        "{err}"
    );
    let dead = folder.path().join("dead");
    fs::write(
        &dead,
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        })
        .to_string(),
    )?;
    let (code, out, err) = gangplank(&["audit", "--kind", "NodePool"], &dead)?;
    assert!(
        code == 2 && format!("{out}{err}").contains("nodepools.karpenter.sh"),
        "{out}{err}"
    );
    Ok(())
}
