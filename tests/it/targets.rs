//! What `serve` knows of the cluster, on a real API server: rules that depend on other objects, and
//! what becomes of them when the watches fail.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    enforce::{deployment, gang, guard, guarded, hpa, queue, scaled_object},
    harness::{Answer, Assets, Cluster, Gangplank, Kubectl, SOON, eventually, service::Service},
};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

fn dry(kubectl: &Kubectl, object: &Value) -> Result<Answer> {
    let args = ["create", "--dry-run=server", "--filename=-"];
    kubectl.run(&args, Some(&object.to_string()))
}

/// What Gangplank says of an object, once it knows enough to say it.
fn comes_to_say(kubectl: &Kubectl, object: &Value, accepted: bool, rule: &str) -> Result<()> {
    let says = || {
        let answer = dry(kubectl, object).ok()?;
        let found = if accepted && !rule.is_empty() {
            answer.warnings().iter().any(|line| line.starts_with(rule))
        } else {
            answer.stderr.contains(rule)
        };
        (answer.accepted() == accepted && found).then_some(())
    };
    eventually(
        format_args!("{} is answered with {rule:?}", object["metadata"]["name"]),
        SOON,
        says,
    )
    .with_context(|| match dry(kubectl, object) {
        Ok(answer) => format!("{}{}", answer.stdout, answer.stderr),
        Err(error) => error.to_string(),
    })
}

fn denied(kubectl: &Kubectl, object: &Value, rule: &str) -> Result<()> {
    comes_to_say(
        kubectl,
        object,
        false,
        &format!("denied the request: {rule}: "),
    )
}

fn warned(kubectl: &Kubectl, object: &Value, rule: &str) -> Result<()> {
    comes_to_say(kubectl, object, true, &format!("{rule}: "))
}

/// An HPA of a target on the CPU of its host.
fn on_cpu(target: (&str, &str, &str)) -> Value {
    let (api_version, kind, name) = target;
    let mut object = hpa("on-cpu", "any");
    object["spec"]["scaleTargetRef"] =
        json!({"apiVersion": api_version, "kind": kind, "name": name});
    object["spec"]["metrics"] = json!([{"type": "Resource", "resource": {
        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80},
    }}]);
    object
}

const HOST: &str = "host-resource-signal";

#[test]
fn the_host_of_a_model_server_is_no_signal_once_the_server_is_known() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("host")?;
    let on_deployment = on_cpu(("apps/v1", "Deployment", "llm"));
    assert!(
        dry(&kubectl, &on_deployment)?.accepted(),
        "nothing is there yet"
    );
    kubectl
        .create(&deployment("llm", 1, 1, &[]).to_string())?
        .success()?;
    denied(&kubectl, &on_deployment, HOST)?;
    // The API server itself writes 80 % of the CPU where nothing is said.
    let silent = json!({
        "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "silent"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"}, "maxReplicas": 4},
    });
    denied(&kubectl, &silent, HOST)?;
    let mut trigger = scaled_object("trigger", "up");
    trigger["spec"]["triggers"] =
        json!([{"type": "cpu", "metricType": "Utilization", "metadata": {"value": "80"}}]);
    denied(&kubectl, &trigger, HOST)?;
    let mut beside = on_deployment.clone();
    let more = hpa("x", "vllm:num_requests_waiting")["spec"]["metrics"][0].clone();
    beside["spec"]["metrics"]
        .as_array_mut()
        .context("metrics")?
        .push(more);
    warned(&kubectl, &beside, HOST)?;

    // What the server becomes is followed.
    let none = json!([{"op": "remove", "path": "/spec/template/spec/containers/0/resources"}]);
    let args = ["patch", "deployment/llm", "--type=json", "--patch"];
    kubectl
        .run(&[&args[..], &[&none.to_string()]].concat(), None)?
        .success()?;
    comes_to_say(&kubectl, &on_deployment, true, "")?;
    kubectl
        .apply(&deployment("llm", 1, 1, &[]).to_string())?
        .success()?;
    denied(&kubectl, &on_deployment, HOST)?;
    kubectl.delete("deployment/llm")?.success()?;
    comes_to_say(&kubectl, &on_deployment, true, "")
}

#[test]
fn stateful_sets_and_leader_worker_sets_are_followed_too() -> Result<()> {
    let kubectl = guarded()?.cluster.namespace("kinds-of-targets")?;
    let mut set = deployment("set", 1, 1, &[]);
    set["kind"] = json!("StatefulSet");
    set["spec"]["serviceName"] = json!("set");
    kubectl.create(&set.to_string())?.success()?;
    denied(&kubectl, &on_cpu(("apps/v1", "StatefulSet", "set")), HOST)?;
    let server = deployment("groups", 1, 1, &[]);
    let groups = json!({
        "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet",
        "metadata": {"name": "groups"},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {
            "size": 1, "workerTemplate": server["spec"]["template"],
        }},
    });
    kubectl.create(&groups.to_string())?.success()?;
    let target = ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "groups");
    denied(&kubectl, &on_cpu(target), HOST)?;
    // A CPU program beside them is nobody's business.
    let mut web = deployment("web", 1, 1, &[]);
    web["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({});
    kubectl.create(&web.to_string())?.success()?;
    assert!(dry(&kubectl, &on_cpu(("apps/v1", "Deployment", "web")))?.accepted());
    Ok(())
}

#[test]
fn floors_windows_and_roles_are_judged_by_the_target() -> Result<()> {
    let guarded = guarded()?;
    let kubectl = guarded.cluster.namespace("warned")?;
    let mut server = deployment("llm", 1, 1, &[]);
    server["spec"]["template"]["metadata"]["labels"]["llm-d.ai/role"] = json!("decode");
    kubectl.create(&server.to_string())?.success()?;
    let mut zero = scaled_object("zero", "avg(vllm:kv_cache_usage_perc)");
    zero["spec"]["minReplicaCount"] = json!(0);
    warned(&kubectl, &zero, "scale-to-zero")?;
    let mut short = hpa("short", "vllm:kv_cache_usage_perc");
    short["spec"]["behavior"] = json!({"scaleDown": {"stabilizationWindowSeconds": 30}});
    warned(&kubectl, &short, "short-scale-down")?;
    let waiting = hpa("waiting", "vllm:num_requests_waiting");
    warned(&kubectl, &waiting, "shared-role-scaler")?;
    kubectl.apply(&gang("gang").to_string())?.success()?;
    let mut below = hpa("below", "vllm:num_requests_waiting");
    below["spec"]["scaleTargetRef"]["name"] = json!("gang");
    below["spec"]["minReplicas"] = json!(4);
    warned(&kubectl, &below, "gang-scaling-floor")?;
    below["spec"]["minReplicas"] = json!(8);
    let answer = dry(&kubectl, &below)?;
    assert!(
        !answer.stderr.contains("gang-scaling-floor"),
        "{}",
        answer.stderr
    );
    Ok(())
}

#[test]
fn production_is_what_the_namespaces_labels_say_now() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let policy = folder.path().join("policy.yaml");
    let document = json!({
        "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
        "production": {"namespaceSelector": {"matchLabels": {"tier": "production"}}},
    });
    fs::write(&policy, document.to_string())?;
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds()?;
    let _gangplank = guard(&cluster, &[&format!("--policy={}", policy.display())])?;
    let kubectl = cluster.namespace("tier")?;
    kubectl
        .create(&deployment("llm", 1, 1, &[]).to_string())?
        .success()?;
    let mut zero = scaled_object("zero", "sum(vllm:num_requests_waiting)");
    zero["spec"]["minReplicaCount"] = json!(0);
    warned(&kubectl, &zero, "scale-to-zero")?;
    let namespaces = kubectl
        .run(&["get", "namespaces", "--output=name"], None)?
        .success()?;
    let namespace = namespaces
        .lines()
        .find(|name| name.starts_with("namespace/tier-"))
        .context("the namespace")?;
    kubectl.label(namespace, "tier=production")?.success()?;
    denied(&kubectl, &zero, "scale-to-zero")?;
    zero["metadata"]["annotations"] = json!({"gangplank.dev/warm-pool": "Deployment/warm"});
    let missing = || {
        let answer = dry(&kubectl, &zero).ok()?;
        let says = answer
            .stderr
            .contains("its warm pool Deployment \"warm\" is not there");
        (answer.accepted() && says).then_some(())
    };
    eventually("the warm pool is missed", SOON, missing)?;
    let mut warm = deployment("warm", 1, 1, &[]);
    warm["spec"]["template"]["spec"]["containers"][0]["image"] = json!("registry.k8s.io/pause");
    kubectl.create(&warm.to_string())?.success()?;
    let quiet = || {
        let answer = dry(&kubectl, &zero).ok()?;
        (answer.accepted() && !answer.stderr.contains("scale-to-zero")).then_some(())
    };
    eventually("the warm pool is known", SOON, quiet)
}

#[test]
fn a_queue_and_a_pod_group_count_from_when_they_are_there() -> Result<()> {
    let guarded = guarded()?;
    let kubectl = guarded.cluster.namespace("queues")?;
    let mut waits = gang("waits");
    waits["metadata"]["labels"] = json!({"kai.scheduler/queue": "to-come"});
    // What is applied together may arrive in any order: a warning, and no denial.
    comes_to_say(
        &kubectl,
        &waits,
        true,
        "gang-scheduling: metadata.labels[kai.scheduler/queue]: There is no queue \"to-come\" yet",
    )?;
    queue(&guarded.cluster, "to-come")?;
    falls_silent(&kubectl, &waits, "There is no queue")?;

    let mut external = gang("external");
    external["metadata"]["annotations"] = json!({"kai.scheduler/skip-podgrouper": "true"});
    external["spec"]["template"]["metadata"]["annotations"] = json!({"pod-group-name": "ranks"});
    external["spec"]["template"]["spec"]["schedulerName"] = json!("kai-scheduler");
    external["spec"]["strategy"] = json!({"type": "Recreate"});
    comes_to_say(
        &kubectl,
        &external,
        true,
        "gang-scheduling: spec.template.metadata.annotations.pod-group-name: There is no PodGroup \"ranks\" yet",
    )?;
    let group = json!({
        "apiVersion": "scheduling.run.ai/v2alpha2", "kind": "PodGroup",
        "metadata": {"name": "ranks"}, "spec": {"minMember": 8, "queue": "llm"},
    });
    kubectl.create(&group.to_string())?.success()?;
    falls_silent(&kubectl, &external, "There is no PodGroup")?;
    kubectl
        .patch("podgroup/ranks", &json!({"spec": {"minMember": 7}}))?
        .success()?;
    denied(&kubectl, &external, "gang-scheduling")
}

/// Waits until an object passes without this being said.
fn falls_silent(kubectl: &Kubectl, object: &Value, text: &str) -> Result<()> {
    let dry = ["create", "--dry-run=server", "--filename=-"];
    let silent = || {
        let answer = kubectl.run(&dry, Some(&object.to_string())).ok()?;
        (answer.accepted() && !answer.stderr.contains(text)).then_some(())
    };
    eventually(format_args!("nobody says {text:?}"), SOON, silent)
}

/// `GET` on the admin port.
fn get(gangplank: &Gangplank, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(gangplank.admin())?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("a response")?;
    let code = head.split(' ').nth(1).context("a status")?.parse()?;
    Ok((code, body.to_owned()))
}

fn says(gangplank: &Gangplank, path: &str, wanted: &str) -> Result<()> {
    let said = || get(gangplank, path).ok()?.1.contains(wanted).then_some(());
    eventually(format_args!("{path} says {wanted:?}"), SOON, said)
        .with_context(|| get(gangplank, path).map_or_else(|e| e.to_string(), |(_, text)| text))
}

#[test]
fn kinds_that_are_not_served_are_picked_up_when_they_appear() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    let gangplank = Gangplank::register::<&str>(Path::new(BINARY), &cluster, &[])?;
    let (code, text) = get(&gangplank, "/readyz?verbose")?;
    assert_eq!(code, 200, "{text}");
    assert!(text.contains("watch deployments.apps: ok\n"), "{text}");
    let unserved = "watch queues.scheduling.run.ai: not served by this cluster\n";
    assert!(text.contains(unserved), "{text}");
    let synced =
        |kind: &str, value: u8| format!("gangplank_watch_synced{{resource=\"{kind}\"}} {value}\n");
    says(&gangplank, "/metrics", &synced("deployments.apps", 1))?;
    says(
        &gangplank,
        "/metrics",
        &synced("queues.scheduling.run.ai", 0),
    )?;
    // A single pod may stay on its scheduler while nobody serves another.
    let kubectl = cluster.namespace("unserved")?;
    let mut server = deployment("llm", 8, 1, &["--tensor-parallel-size=8"]);
    server["spec"]["template"]["spec"]["schedulerName"] = json!("some-scheduler");
    warned(&kubectl, &server, "gang-scheduling")?;

    cluster.install_crds()?;
    queue(&cluster, "llm")?;
    says(
        &gangplank,
        "/readyz?verbose",
        "watch queues.scheduling.run.ai: ok\n",
    )?;
    let objects = "gangplank_watch_objects{resource=\"queues.scheduling.run.ai\"} 1\n";
    says(&gangplank, "/metrics", objects)?;
    denied(&kubectl, &server, "gang-scheduling")
}

#[test]
fn a_watch_that_is_cut_is_taken_up_again_and_refuses_nobody() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds()?;
    let relay = Service::listen("127.0.0.1:0".parse()?)?;
    let text = fs::read_to_string(cluster.kubeconfig())?;
    let direct = cluster.apiserver_address().to_string();
    ensure!(text.contains(&direct), "{text}");
    let kubeconfig = cluster.dir().join("by-the-relay");
    fs::write(
        &kubeconfig,
        text.replace(&direct, &relay.address().to_string()),
    )?;
    // Nobody answers at first: it comes up all the same, after a while and knowing nothing.
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let gangplank = Gangplank::start(Path::new(BINARY), &["--watch", &kubeconfig])?;
    let (code, text) = get(&gangplank, "/readyz?verbose")?;
    assert_eq!(code, 200, "{text}");
    assert!(
        text.contains("watch deployments.apps: unknown, failing for"),
        "{text}"
    );
    assert!(gangplank.log().contains("not all of the cluster is known"));

    relay.lead_to(vec![cluster.apiserver_address()]);
    says(
        &gangplank,
        "/readyz?verbose",
        "watch deployments.apps: ok\n",
    )?;
    let failing = "gangplank_watch_failing_seconds{resource=\"deployments.apps\"} 0.0\n";
    says(&gangplank, "/metrics", failing)?;

    relay.lead_to(Vec::new());
    relay.cut();
    says(
        &gangplank,
        "/readyz?verbose",
        "watch deployments.apps: not current, failing for",
    )?;
    assert_eq!(get(&gangplank, "/readyz")?.0, 200, "no reason to leave");
    cluster
        .kubectl()
        .create(&deployment("llm", 1, 1, &[]).to_string())?
        .success()?;
    relay.lead_to(vec![cluster.apiserver_address()]);
    let objects = "gangplank_watch_objects{resource=\"deployments.apps\"} 1\n";
    says(&gangplank, "/metrics", objects)
}
