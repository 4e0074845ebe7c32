//! The API server of the tests itself: that it is what the other tests take it for.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::leash::{self, Leashed, Signal};
use crate::harness::{Assets, Cluster, Gangplank, SOON, eventually, shared_cluster};

/// A NodePool that says nothing about disruption.
fn silent_node_pool(name: &str) -> Value {
    json!({
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {"template": {"spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"},
            "requirements": [{
                "key": "karpenter.k8s.aws/instance-gpu-count",
                "operator": "Gte",
                "values": ["8"],
            }],
        }}},
    })
}

#[test]
fn serves_its_version_and_checks_permissions() -> Result<()> {
    let kubectl = shared_cluster()?.kubectl();
    let version = kubectl.run(&["get", "--raw=/version"], None)?.success()?;
    assert!(version.contains("\"gitVersion\": \"v1."), "{version}");

    let admin = kubectl.run(&["auth", "can-i", "create", "pods"], None)?;
    assert_eq!(admin.stdout.trim(), "yes", "{}", admin.stderr);
    let anybody = kubectl.run(&["auth", "can-i", "create", "pods", "--as=somebody"], None)?;
    assert_eq!(anybody.stdout.trim(), "no", "{}", anybody.stderr);
    Ok(())
}

#[test]
fn fills_the_node_pool_defaults_of_karpenter() -> Result<()> {
    let kubectl = shared_cluster()?.kubectl();
    kubectl
        .create(&silent_node_pool("silent").to_string())?
        .success()?;
    let pool = kubectl.get("nodepool/silent")?;
    assert_eq!(
        pool.pointer("/spec/disruption"),
        Some(&json!({
            "budgets": [{"nodes": "10%"}],
            "consolidateAfter": "0s",
            "consolidationPolicy": "WhenEmptyOrUnderutilized",
        }))
    );
    assert_eq!(
        pool.pointer("/spec/template/spec/expireAfter"),
        Some(&json!("720h"))
    );
    Ok(())
}

#[test]
fn refuses_node_pools_as_karpenter_does() -> Result<()> {
    let kubectl = shared_cluster()?.kubectl();
    let cases = [
        // consolidateAfter has no default of its own.
        (
            "disruption",
            json!({"consolidationPolicy": "WhenEmpty"}),
            "consolidateAfter",
        ),
        (
            "disruption",
            json!({"consolidationPolicy": "WhenUnderutilized", "consolidateAfter": "1h"}),
            "Unsupported value",
        ),
        (
            "disruption",
            json!({"consolidateAfter": "1d"}),
            "consolidateAfter",
        ),
        ("weight", json!(0), "weight"),
    ];
    for (field, value, complaint) in cases {
        let mut pool = silent_node_pool("refused");
        pool["spec"][field] = value;
        let answer = kubectl.create(&pool.to_string())?;
        assert!(!answer.accepted(), "{field}: {}", answer.stdout);
        assert!(answer.stderr.contains(complaint), "{}", answer.stderr);
    }
    Ok(())
}

#[test]
fn serves_the_custom_kinds() -> Result<()> {
    let kubectl = shared_cluster()?.namespace("kinds")?;
    let objects = [
        json!({
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": "queue-depth"},
            "spec": {
                "scaleTargetRef": {"name": "llm"},
                "triggers": [{
                    "type": "prometheus",
                    "metadata": {"query": "vllm:num_requests_waiting", "threshold": "5"},
                }],
            },
        }),
        json!({
            "apiVersion": "scheduling.run.ai/v2",
            "kind": "Queue",
            "metadata": {"name": "serves-the-custom-kinds"},
            "spec": {"resources": {"gpu": {"quota": -1, "limit": -1, "overQuotaWeight": 1}}},
        }),
        json!({
            "apiVersion": "scheduling.run.ai/v2alpha2",
            "kind": "PodGroup",
            "metadata": {"name": "gang"},
            "spec": {"minMember": 8, "queue": "serves-the-custom-kinds"},
        }),
    ];
    for object in objects {
        // Strict: a field that a schema forgot would be refused.
        kubectl.apply_server_side(&object.to_string())?.success()?;
        let kind = object["kind"].as_str().context("kind")?;
        let name = object["metadata"]["name"].as_str().context("name")?;
        let held = kubectl.get(&format!("{kind}/{name}"))?;
        assert_eq!(held["spec"], object["spec"]);
    }
    Ok(())
}

#[test]
fn a_number_as_trigger_metadata_is_refused() -> Result<()> {
    let kubectl = shared_cluster()?.namespace("metadata")?;
    let answer = kubectl.create(
        &json!({
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": "number"},
            "spec": {
                "scaleTargetRef": {"name": "llm"},
                "triggers": [{"type": "prometheus", "metadata": {"threshold": 5}}],
            },
        })
        .to_string(),
    )?;
    assert!(!answer.accepted());
    assert!(answer.stderr.contains("threshold"), "{}", answer.stderr);
    Ok(())
}

#[test]
fn gangplank_registers_and_ends_when_asked() -> Result<()> {
    // A cluster of its own: the configurations stay when the server ends.
    let cluster = Cluster::start(&Assets::find()?)?;
    let binary = Path::new(env!("CARGO_BIN_EXE_gangplank"));
    let mut gangplank = Gangplank::register::<&str>(binary, &cluster, &[])?;
    for address in [gangplank.webhook(), gangplank.admin()] {
        TcpStream::connect(address).with_context(|| format!("{address} should answer"))?;
    }
    for kind in [
        "mutatingwebhookconfiguration",
        "validatingwebhookconfiguration",
    ] {
        cluster.kubectl().get(&format!("{kind}/gangplank"))?;
    }

    gangplank.signal(Signal::Terminate)?;
    let status = gangplank.wait(SOON)?;
    assert!(status.success(), "{status}\n{}", gangplank.log());

    let unrelated = ["create", "configmap", "unrelated", "--from-literal=a=b"];
    cluster.kubectl().run(&unrelated, None)?.success()?;
    Ok(())
}

#[test]
fn nothing_is_left_behind_by_a_killed_process() -> Result<()> {
    ends_with(|holder| holder.kill().context("cannot kill the holder"))
}

#[test]
fn nothing_is_left_behind_after_ctrl_c() -> Result<()> {
    ends_with(|holder| {
        let status = Command::new("sh")
            .args(["-c", r#"kill -s INT "$1""#, "sh", &holder.id().to_string()])
            .status()?;
        ensure!(status.success(), "cannot interrupt the holder: {status}");
        Ok(())
    })
}

/// Has another process start a cluster, ends that process, and waits until the servers and their
/// folder are gone.
fn ends_with(end: impl FnOnce(&mut Child) -> Result<()>) -> Result<()> {
    let mut holder = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "apiserver::holds_a_cluster",
            "--ignored",
            "--nocapture",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = holder.stdout.take().context("stdout is piped")?;
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let line = lines
        .find(|line| line.starts_with(HOLDING))
        .context("the holder holds nothing")?;
    let mut words = line.split_whitespace().skip(1);
    let dir = Path::new(words.next().context("dir")?);
    let servers = words
        .map(str::parse)
        .collect::<Result<Vec<SocketAddr>, _>>()?;
    assert_eq!(servers.len(), 2);
    assert!(dir.join("kubeconfig").is_file());
    for server in &servers {
        TcpStream::connect(server).with_context(|| format!("{server} should answer"))?;
    }

    end(&mut holder)?;
    holder.wait()?;
    for server in &servers {
        let refused = || TcpStream::connect(server).is_err().then_some(());
        eventually(format_args!("{server} is silent"), SOON, refused)?;
    }
    eventually(format_args!("{} is gone", dir.display()), SOON, || {
        (!dir.exists()).then_some(())
    })
}

const HOLDING: &str = "holding:";

#[test]
#[ignore = "the other half of the tests of what is left behind, which run it"]
fn holds_a_cluster() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    println!(
        "\n{HOLDING} {} {} {}",
        cluster.dir().display(),
        cluster.apiserver_address(),
        cluster.etcd_address()
    );
    // Until we are killed, or whoever started us is gone.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

#[test]
fn a_leashed_process_reports_its_own_status() -> Result<()> {
    let mut command = leash::command(Path::new("sh"), None);
    command.args(["-c", "exit 7"]);
    assert_eq!(Leashed::spawn(command)?.wait(SOON)?.code(), Some(7));

    let mut command = leash::command(Path::new("sh"), None);
    command.args([
        "-c",
        "trap 'exit 9' TERM; echo ready >&2; while :; do sleep 0.01; done",
    ]);
    command.stderr(Stdio::piped());
    let mut process = Leashed::spawn(command)?;
    let mut line = String::new();
    BufReader::new(process.take_stderr().context("stderr")?).read_line(&mut line)?;
    process.signal(Signal::Terminate)?;
    assert_eq!(process.wait(SOON)?.code(), Some(9));
    Ok(())
}
