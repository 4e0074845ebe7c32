//! A Karpenter cluster whose nodes are all gone comes back with Gangplank down, write by write: by the
//! real kube-controller-manager, and as the users that Karpenter, KEDA, kube-scheduler, kubelets and people
//! are. Nothing of it waits for Gangplank; what a rule could really deny does.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    enforce::{hpa, node_pool, queue, scaled_object},
    harness::{Answer, Cluster, Kubectl, SOON, eventually},
    release::{BAD, NAMESPACE, Release},
};

const CONTROLLERS: [&str; 13] = [
    "clusterrole-aggregation-controller",
    "cronjob-controller",
    "daemonset-controller",
    "deployment-controller",
    "disruption-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "horizontal-pod-autoscaler-controller",
    "job-controller",
    "node-lifecycle-controller",
    "replicaset-controller",
    "resourcequota-controller",
    "statefulset-controller",
];

const KARPENTER: &str = "system:serviceaccount:kube-system:karpenter";
const KEDA: &str = "system:serviceaccount:keda:keda-operator";
const HPA_CONTROLLER: &str = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";
const SCHEDULER: &str = "system:kube-scheduler";
/// Whoever edits what is in the namespaces of the teams.
const DEVELOPER: &str = "developer";
/// Whoever administers the cluster.
const ADMIN: &str = "admin";

/// The writes of the recovery, and those of them that were refused.
struct Recovery<'c> {
    admin: &'c Kubectl,
    taken: usize,
    refused: Vec<String>,
}

impl<'c> Recovery<'c> {
    fn of(cluster: &'c Cluster) -> Self {
        Self {
            admin: cluster.kubectl(),
            taken: 0,
            refused: Vec::new(),
        }
    }

    /// Counts a write; whether it was taken.
    fn wrote(&mut self, what: &str, answer: Result<Answer>) -> Result<bool> {
        let answer = answer.with_context(|| what.to_owned())?;
        if answer.accepted() {
            self.taken += 1;
        } else {
            let why = answer.stderr.trim().replace('\n', " ");
            self.refused.push(format!("{what}: {why}"));
        }
        Ok(answer.accepted())
    }

    /// Runs a command of kubectl as a user, in a namespace; its words are parted by blanks.
    fn run(&mut self, user: &str, namespace: &str, command: &str) -> Result<bool> {
        let kubectl = self.admin.as_user(user).in_namespace(namespace);
        let words: Vec<&str> = command.split(' ').collect();
        self.wrote(&format!("{user}: {command}"), kubectl.run(&words, None))
    }

    /// Writes an object as a user, by server-side apply.
    fn apply(&mut self, user: &str, object: &Value) -> Result<bool> {
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("default");
        let kubectl = self.admin.as_user(user).in_namespace(namespace);
        let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
        let answer = kubectl.apply_server_side(&object.to_string());
        self.wrote(&format!("{user}: apply {kind} {name}"), answer)
    }

    /// Merges a patch into an object as a user, its main resource or a subresource.
    fn patch(&mut self, user: &str, place: &[&str], patch: &Value) -> Result<bool> {
        let text = format!("--patch={patch}");
        let args = [&["patch", "--type=merge", &text], place].concat();
        let kubectl = self.admin.as_user(user);
        let what = format!("{user}: patch {} {patch}", place.join(" "));
        self.wrote(&what, kubectl.run(&args, None))
    }

    /// Writes as the kubelet of a node.
    fn kubelet(&mut self, node: &str, args: &[&str], stdin: Option<&Value>) -> Result<bool> {
        let user = format!("system:node:{node}");
        let text = stdin.map(Value::to_string);
        let args = [&["--as-group=system:nodes"], args].concat();
        let kubectl = self.admin.as_user(&user);
        let answer = kubectl.run(&args, text.as_deref());
        self.wrote(&format!("{user}: {}", args.join(" ")), answer)
    }

    /// The names of the pods of an app, once there are so many that are not going away.
    fn pods(&self, namespace: &str, selector: &str, count: usize) -> Result<Vec<String>> {
        let what = format!("there are {count} pods of {selector} in {namespace}");
        eventually(what, SOON, || {
            let kubectl = self.admin.in_namespace(namespace);
            let args = ["get", "pods", "--selector", selector, "--output=json"];
            let listed: Value =
                serde_json::from_str(&kubectl.run(&args, None).ok()?.stdout).ok()?;
            let pods = listed["items"].as_array()?.iter();
            let names = pods
                .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
                .filter_map(|pod| pod["metadata"]["name"].as_str())
                .map(str::to_owned);
            let names: Vec<String> = names.collect();
            (names.len() == count).then_some(names)
        })
    }

    /// The objects of a kind in a namespace.
    fn list(&self, namespace: &str, kind: &str) -> Option<Vec<Value>> {
        let kubectl = self.admin.in_namespace(namespace);
        let answer = kubectl.run(&["get", kind, "--output=json"], None).ok()?;
        let mut listed: Value = serde_json::from_str(&answer.stdout).ok()?;
        listed["items"].as_array_mut().map(std::mem::take)
    }

    /// The kubelet of a node has ended the containers of pods that are going away.
    fn pods_end(&mut self, namespace: &str, node: &str) -> Result<()> {
        let pods = self.list(namespace, "pods").context("pods")?;
        let going = (pods.iter())
            .filter(|pod| pod["spec"]["nodeName"] == node)
            .filter(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
        let names = going.filter_map(|pod| pod["metadata"]["name"].as_str());
        let mut args = vec![
            "delete",
            "pods",
            "--force",
            "--ignore-not-found",
            "--namespace",
            namespace,
        ];
        args.extend(names);
        if args.len() > 6 {
            self.kubelet(node, &args, None)?;
        }
        Ok(())
    }

    /// A node comes: Karpenter claims it, its kubelet registers it, Karpenter adopts it.
    fn node_joins(&mut self, name: &str, pool: &str, gpus: u32) -> Result<bool> {
        let claim = json!({
            "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
            "metadata": {"name": format!("{pool}-{name}"), "finalizers": ["karpenter.sh/termination"],
                "labels": {"karpenter.sh/nodepool": pool}},
            "spec": {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"}},
        });
        self.apply(KARPENTER, &claim)?;
        let path = format!("nodeclaim/{pool}-{name}");
        let launched =
            json!({"status": {"providerID": format!("aws:///zone/{name}"), "nodeName": name}});
        self.patch(KARPENTER, &[&path, "--subresource=status"], &launched)?;
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"karpenter.sh/nodepool": pool}},
            "spec": {"taints": [{"key": "karpenter.sh/unregistered", "effect": "NoExecute"}]},
        });
        self.kubelet(name, &["create", "--filename=-"], Some(&node))?;
        let mut capacity = json!({"cpu": "8", "memory": "32Gi", "pods": "110"});
        if gpus > 0 {
            capacity["nvidia.com/gpu"] = json!(gpus.to_string());
        }
        let status = json!({"status": {"capacity": capacity, "allocatable": capacity,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                "lastHeartbeatTime": "2027-01-01T00:00:00Z", "lastTransitionTime": "2027-01-01T00:00:00Z"}]}});
        let text = format!("--patch={status}");
        let object = format!("node/{name}");
        let args = [
            "patch",
            &object,
            "--subresource=status",
            "--type=merge",
            &text,
        ];
        self.kubelet(name, &args, None)?;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40},
        });
        self.kubelet(name, &["create", "--filename=-"], Some(&lease))?;
        let adopted = json!({"spec": {"taints": null},
            "metadata": {"labels": {"karpenter.sh/registered": "true"}, "finalizers": ["karpenter.sh/termination"]}});
        self.patch(KARPENTER, &[&object], &adopted)
    }

    /// A node goes for ever: the cloud has taken the machine, Karpenter lets its objects go.
    fn node_is_lost(&mut self, name: &str, pool: &str) -> Result<()> {
        let none = json!({"metadata": {"finalizers": null}});
        for object in [format!("nodeclaim/{pool}-{name}"), format!("node/{name}")] {
            self.run(
                KARPENTER,
                "default",
                &format!("delete {object} --wait=false"),
            )?;
            self.patch(KARPENTER, &[&object], &none)?;
        }
        Ok(())
    }

    /// kube-scheduler binds a pod, and the kubelet says that it runs.
    fn pod_runs(&mut self, namespace: &str, pod: &str, node: &str) -> Result<bool> {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod, "namespace": namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/binding");
        let args = ["create", "--raw", &path, "--filename=-"];
        let kubectl = self.admin.as_user(SCHEDULER);
        let answer = kubectl.run(&args, Some(&binding.to_string()));
        self.wrote(&format!("{SCHEDULER}: bind {pod}"), answer)?;
        let running = json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2027-01-01T00:00:00Z"}]}});
        let text = format!("--patch={running}");
        let object = format!("pod/{pod}");
        let args = [
            "patch",
            &object,
            "--namespace",
            namespace,
            "--subresource=status",
            "--type=merge",
            &text,
        ];
        self.kubelet(node, &args, None)
    }
}

/// The API server refuses a write because nobody could be asked about it.
fn waits(what: &str, answer: &Answer) -> Result<()> {
    let asked = answer.stderr.contains("failed calling webhook \"enforce")
        && answer.stderr.contains("gangplank.dev\"");
    ensure!(
        !answer.accepted() && asked,
        "{what} does not wait for Gangplank: {}{}",
        answer.stdout,
        answer.stderr
    );
    Ok(())
}

/// A kind of Karpenter's that no rule reads, with any content.
fn crd(group: &str, kind: &str, plural: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Cluster",
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural,
                "singular": kind.to_lowercase()},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object",
                    "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
}

/// The cluster as it was: controllers, nodes, pods that run.
fn build(release: &mut Release) -> Result<()> {
    let admin = release.cluster.kubectl();
    for crd in [
        crd("karpenter.sh", "NodeClaim", "nodeclaims"),
        crd("karpenter.k8s.aws", "EC2NodeClass", "ec2nodeclasses"),
    ] {
        admin.create(&crd.to_string())?.success()?;
        let name = crd["metadata"]["name"].as_str().context("a name")?;
        let args = [
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            &format!("crd/{name}"),
        ];
        admin.run(&args, None)?.success()?;
    }
    queue(&release.cluster, "llm")?;
    release.cluster.start_controllers(&CONTROLLERS)?;
    let manifest = std::fs::read_to_string(manifest())?;
    release.cluster.kubectl().apply(&manifest)?.success()?;
    eventually("the role of the teams is put together", SOON, || {
        let kubectl = release.cluster.kubectl().as_user(DEVELOPER);
        let may = |what: &str| {
            let args = ["auth", "can-i", "patch", what, "--namespace=web"];
            kubectl
                .run(&args, None)
                .is_ok_and(|answer| answer.accepted())
        };
        (may("deployments.apps") && may("scaledobjects.keda.sh")).then_some(())
    })?;
    let mut before = Recovery::of(&release.cluster);
    before.node_joins("cpu-1", "general", 0)?;
    before.node_joins("gpu-1", "h100", 8)?;
    for (namespace, selector, count, node) in PODS {
        for pod in before.pods(namespace, selector, count)? {
            before.pod_runs(namespace, &pod, node)?;
        }
    }
    ensure!(before.refused.is_empty(), "{}", before.refused.join("\n"));
    Ok(())
}

fn manifest() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/recovery/cluster.yaml")
}

/// Where the controllers keep how many pods of which label, and which node they are on.
const PODS: [(&str, &str, usize, &str); 6] = [
    ("kube-system", "k8s-app=kube-dns", 2, "cpu-1"),
    (NAMESPACE, "app.kubernetes.io/name=gangplank", 2, "cpu-1"),
    ("web", "app=shop", 2, "cpu-1"),
    ("web", "app=kafka", 1, "cpu-1"),
    ("inference", "app=chat", 2, "gpu-1"),
    ("inference", "app=large", 8, "gpu-1"),
];

#[test]
fn a_cluster_that_lost_its_nodes_comes_back_with_gangplank_down() -> Result<()> {
    let values = json!({"audit": {"enabled": false}});
    let mut release = Release::install(&values)?;
    build(&mut release)?;

    // Every node is gone, and Gangplank with them. What it registered stays.
    while !release.pods.is_empty() {
        release.kill(0)?;
    }
    release.lead();
    let mut recovery = Recovery::of(&release.cluster);
    let steps = [
        nodes_and_pods_go_and_come,
        karpenter_may_buy_again,
        the_rest_of_the_world_goes_on,
        models_are_served_again,
        autoscalers_go_on,
        people_apply_what_is_in_git,
    ];
    let done = (steps.iter()).try_for_each(|step| step(&mut recovery));
    done.with_context(|| format!("refused so far:\n{}", recovery.refused.join("\n")))?;
    let log = release.cluster.dir().join("kube-controller-manager.log");
    let log = std::fs::read_to_string(log)?;
    let failed = log
        .lines()
        .filter(|line| line.contains("failed calling webhook"));
    recovery
        .refused
        .extend(failed.map(|line| format!("a controller: {line}")));
    let counts = (recovery.taken, recovery.refused);
    what_could_be_denied_waits(&release.cluster)?;

    // It comes back by itself, and takes up its work.
    release.start()?;
    release.asked()?;
    let kubectl = release.cluster.kubectl().in_namespace("inference");
    let denied = kubectl.create(&hpa("bad", BAD).to_string())?;
    ensure!(
        denied
            .stderr
            .contains("denied the request: gpu-utilization-signal"),
        "{}",
        denied.stderr
    );
    let (taken, refused) = counts;
    ensure!(
        refused.is_empty(),
        "{} of {} writes wait for Gangplank:\n{}",
        refused.len(),
        refused.len() + taken,
        refused.join("\n")
    );
    Ok(())
}

/// Nodes and NodeClaims are finalised, pods of lost nodes are deleted, and the controllers make new ones.
fn nodes_and_pods_go_and_come(recovery: &mut Recovery<'_>) -> Result<()> {
    recovery.node_is_lost("cpu-1", "general")?;
    recovery.node_is_lost("gpu-1", "h100")?;
    for (namespace, selector, count, _) in PODS {
        let before = recovery.pods(namespace, selector, count)?;
        let force = format!("delete pods --force --grace-period=0 --selector {selector}");
        recovery.run(ADMIN, namespace, &force)?;
        let after = recovery.pods(namespace, selector, count)?;
        // A StatefulSet's pods have the same names again.
        let kept = before.iter().filter(|name| after.contains(name)).count();
        ensure!(selector == "app=kafka" || kept == 0, "{before:?} {after:?}");
    }
    Ok(())
}

/// The deadlock that there must not be: the CPU pool is at its limit, and the pods of Gangplank are pending.
fn karpenter_may_buy_again(recovery: &mut Recovery<'_>) -> Result<()> {
    let cpu = json!({"spec": {"limits": {"cpu": "500"}}});
    recovery.patch(ADMIN, &["nodepool/general"], &cpu)?;
    let mut spare = json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "spare"},
        "spec": {
            "disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "1m"},
            "limits": {"cpu": "200"},
            "template": {"spec": {
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
                "requirements": [
                    {"key": "karpenter.k8s.aws/instance-category", "operator": "In", "values": ["c", "m", "r"]},
                    {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]},
                ],
            }},
        },
    });
    let answer = recovery.admin.create(&spare.to_string());
    recovery.wrote("admin: create NodePool spare", answer)?;
    spare["metadata"]["name"] = json!("by-family");
    spare["spec"]["template"]["spec"]["requirements"] = json!([
        {"key": "karpenter.k8s.aws/instance-family", "operator": "In", "values": ["m7i", "r7i"]},
    ]);
    let answer = recovery.admin.apply_server_side(&spare.to_string());
    recovery.wrote("admin: apply NodePool by-family", answer)?;
    let gpus = json!({"spec": {"limits": {"nvidia.com/gpu": "128"}}});
    recovery.patch(ADMIN, &["nodepool/h100"], &gpus)?;
    for pool in ["general", "h100"] {
        let object = format!("nodepool/{pool}");
        let status = json!({"status": {"resources": {"cpu": "8"}, "conditions": [
            {"type": "Ready", "status": "True", "reason": "Ready", "message": "",
                "lastTransitionTime": "2027-01-01T00:00:00Z"}]}});
        recovery.patch(KARPENTER, &[&object, "--subresource=status"], &status)?;
        let hash = json!({"metadata": {"annotations": {"karpenter.sh/nodepool-hash": "1234",
            "karpenter.sh/nodepool-hash-version": "v3"}}});
        recovery.patch(KARPENTER, &[&object], &hash)?;
    }
    let class = json!({
        "apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass", "metadata": {"name": "spare"},
        "spec": {"role": "KarpenterNodeRole", "amiSelectorTerms": [{"alias": "al2023@latest"}]},
    });
    let answer = recovery.admin.create(&class.to_string());
    recovery.wrote("admin: create EC2NodeClass spare", answer)?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "karpenter-leader-election", "namespace": "kube-system"},
        "spec": {"holderIdentity": "karpenter-2", "leaseDurationSeconds": 15},
    });
    recovery.apply(KARPENTER, &lease)?;
    recovery.node_joins("cpu-2", "general", 0)?;
    recovery.node_joins("gpu-2", "h100", 8)?;
    for (namespace, selector, count, node) in PODS {
        for pod in recovery.pods(namespace, selector, count)? {
            recovery.pod_runs(namespace, &pod, &node.replace('1', "2"))?;
        }
    }
    Ok(())
}

/// A Deployment whose pods ask for these resources.
fn deployment(name: &str, resources: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "web"},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "main", "image": "example.com/main:1", "resources": resources}]},
        }},
    })
}

fn job(name: &str, resources: &Value, command: &[&str]) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "training"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{
            "name": "main", "image": "pytorch/pytorch:2.8.0", "command": command, "resources": resources,
        }]}}},
    })
}

/// What has nothing to do with model servers.
fn the_rest_of_the_world_goes_on(recovery: &mut Recovery<'_>) -> Result<()> {
    recovery.apply(
        DEVELOPER,
        &deployment("cart", &json!({"limits": {"cpu": "1", "memory": "1Gi"}})),
    )?;
    // A device that no rule counts among accelerators.
    let fuse = json!({"limits": {"smarter-devices/fuse": 1}});
    if recovery.apply(DEVELOPER, &deployment("builder", &fuse))? {
        recovery.pods("web", "app=builder", 1)?;
    }
    let huge = json!({"requests": {"hugepages-2Mi": "64Mi", "memory": "1Gi"}, "limits": {"hugepages-2Mi": "64Mi"}});
    recovery.apply(DEVELOPER, &deployment("database", &huge))?;
    recovery.run(
        DEVELOPER,
        "web",
        "set image deployment/shop shop=example.com/shop:1.1",
    )?;
    recovery.run(DEVELOPER, "web", "set env deployment/shop MODE=recovery")?;
    recovery.run(DEVELOPER, "web", "rollout undo deployment/shop")?;
    recovery.run(DEVELOPER, "web", "scale statefulset/kafka --replicas=2")?;
    recovery.pods("web", "app=kafka", 2)?;
    recovery.run(DEVELOPER, "web", "create job by-hand --from=cronjob/report")?;
    recovery.apply(
        DEVELOPER,
        &job("migrate", &json!({"limits": {"cpu": "1"}}), &["migrate"]),
    )?;
    for object in [
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "flags", "namespace": "web"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token", "namespace": "web"}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "cart", "namespace": "web"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "cart", "namespace": "web"},
            "spec": {"selector": {"app": "cart"}, "ports": [{"port": 80}]}}),
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": "cart", "namespace": "web"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "cart"}}}}),
    ] {
        recovery.apply(DEVELOPER, &object)?;
    }
    Ok(())
}

/// Model servers whose content stays: another tag of their image, more replicas, a restart, a label.
fn models_are_served_again(recovery: &mut Recovery<'_>) -> Result<()> {
    let inference = "inference";
    for server in ["chat", "large"] {
        let object = format!("deployment/{server}");
        recovery.run(DEVELOPER, inference, &format!("rollout restart {object}"))?;
        let image = "vllm=vllm/vllm-openai:v0.11.1";
        recovery.run(DEVELOPER, inference, &format!("set image {object} {image}"))?;
        recovery.run(DEVELOPER, inference, &format!("label {object} team=llm"))?;
        recovery.run(
            DEVELOPER,
            inference,
            &format!("annotate {object} example.com/incident=17"),
        )?;
        if recovery.run(DEVELOPER, inference, &format!("rollout pause {object}"))? {
            recovery.run(DEVELOPER, inference, &format!("rollout resume {object}"))?;
        }
        // By digest, as a deployment tool pins it.
        let digest = format!("vllm=vllm/vllm-openai@sha256:{}", "a".repeat(64));
        recovery.run(
            DEVELOPER,
            inference,
            &format!("set image {object} {digest}"),
        )?;
    }
    recovery.run(DEVELOPER, inference, "scale deployment/chat --replicas=3")?;
    recovery.run(DEVELOPER, inference, "scale deployment/large --replicas=0")?;
    recovery.run(DEVELOPER, inference, "scale deployment/large --replicas=8")?;
    if !recovery.refused.is_empty() {
        return Ok(());
    }
    // The Deployment controller follows: ReplicaSets of the new image, once the kubelet has ended the pods
    // of a gang, which is recreated as a whole.
    eventually("the ReplicaSets of another image are there", SOON, || {
        recovery.pods_end(inference, "gpu-2").ok()?;
        let sets = recovery.list(inference, "replicasets")?;
        let digest = |set: &Value| {
            let image = &set["spec"]["template"]["spec"]["containers"][0]["image"];
            image.as_str().is_some_and(|image| image.contains('@'))
        };
        let new = sets.iter().filter(|set| digest(set));
        (new.count() == 2).then_some(())
    })
}

fn autoscalers_go_on(recovery: &mut Recovery<'_>) -> Result<()> {
    let mut web = hpa("shop", "http_requests_per_second");
    web["metadata"]["namespace"] = json!("web");
    web["spec"]["scaleTargetRef"]["name"] = json!("cart");
    recovery.apply(DEVELOPER, &web)?;
    web["spec"]["maxReplicas"] = json!(40);
    recovery.apply(DEVELOPER, &web)?;
    let mut on_cpu = web.clone();
    on_cpu["metadata"]["name"] = json!("builder");
    on_cpu["spec"]["scaleTargetRef"]["name"] = json!("builder");
    on_cpu["spec"]["metrics"] = json!([{"type": "Resource", "resource": {
        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80},
    }}]);
    recovery.apply(DEVELOPER, &on_cpu)?;
    // The real controller writes what it finds; here there are no metrics to be had.
    eventually(
        "the HPA controller writes the status of an HPA",
        SOON,
        || {
            let held = recovery.admin.in_namespace("web").get("hpa/builder").ok()?;
            held["status"]["conditions"].is_array().then_some(())
        },
    )?;
    let path = "/apis/apps/v1/namespaces/inference/deployments/chat/scale";
    let scale = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": {"name": "chat", "namespace": "inference"}, "spec": {"replicas": 4},
    });
    let args = ["replace", "--raw", path, "--filename=-"];
    let answer = (recovery.admin.as_user(HPA_CONTROLLER)).run(&args, Some(&scale.to_string()));
    recovery.wrote(&format!("{HPA_CONTROLLER}: scale chat to 4"), answer)?;
    recovery.run(
        DEVELOPER,
        "inference",
        "annotate hpa/chat example.com/incident=17",
    )?;

    // KEDA: what is scaled on a queue or the clock, and what it makes of it.
    let kafka = |topic: &str, lag: &str| {
        json!([{"type": "kafka", "metadata": {"bootstrapServers": "kafka.web:9092",
            "consumerGroup": "shop", "topic": topic, "lagThreshold": lag}}])
    };
    let cron = json!([{"type": "cron", "metadata": {"timezone": "Etc/UTC", "start": "0 6 * * *",
        "end": "0 20 * * *", "desiredReplicas": "10"}}]);
    for (name, triggers, changed) in [
        ("returns", kafka("returns", "50"), kafka("returns", "100")),
        ("daytime", cron.clone(), {
            let mut later = cron;
            later[0]["metadata"]["end"] = json!("0 22 * * *");
            later
        }),
    ] {
        let mut object = scaled_object(name, "");
        object["metadata"]["namespace"] = json!("web");
        object["spec"]["scaleTargetRef"]["name"] = json!("cart");
        object["spec"]["triggers"] = triggers;
        recovery.apply(DEVELOPER, &object)?;
        object["spec"]["triggers"] = changed;
        recovery.apply(DEVELOPER, &object)?;
    }
    let more = json!({"spec": {"maxReplicaCount": 30}});
    recovery.patch(
        DEVELOPER,
        &["scaledobject/orders", "--namespace=web"],
        &more,
    )?;
    let finalizer = json!({"metadata": {"finalizers": ["finalizer.keda.sh"]}});
    recovery.patch(
        KEDA,
        &["scaledobject/orders", "--namespace=web"],
        &finalizer,
    )?;
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let orders = [
        "scaledobject/orders",
        "--namespace=web",
        "--subresource=status",
    ];
    recovery.patch(KEDA, &orders, &status)?;
    let owner = recovery
        .admin
        .in_namespace("web")
        .get("scaledobject/orders")?;
    let made = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "keda-hpa-orders", "namespace": "web", "ownerReferences": [{
            "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "orders",
            "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true}]},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"},
            "maxReplicas": 30,
            "metrics": [{"type": "External", "external": {
                "metric": {"name": "s0-kafka-orders",
                    "selector": {"matchLabels": {"scaledobject.keda.sh/name": "orders"}}},
                "target": {"type": "AverageValue", "averageValue": "50"},
            }}],
        },
    });
    recovery.apply(KEDA, &made)?;
    Ok(())
}

/// A GitOps engine or a person applies again what is there.
fn people_apply_what_is_in_git(recovery: &mut Recovery<'_>) -> Result<()> {
    // Another number of replicas in the file than in the cluster is another gang, and may be denied.
    recovery.run(DEVELOPER, "inference", "scale deployment/chat --replicas=2")?;
    let text = std::fs::read_to_string(manifest())?;
    for document in text.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document)?;
        // The model servers go back from a digest to the tag.
        let answer = recovery.admin.apply(document);
        let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
        recovery.wrote(&format!("admin: apply {kind} {name} again"), answer)?;
    }
    Ok(())
}

/// The counterpart: what a rule could deny.
fn what_could_be_denied_waits(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl().in_namespace("inference");
    let evicting =
        json!({"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "5m"});
    let server = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "new"},
        "spec": {"selector": {"matchLabels": {"app": "new"}}, "template": {
            "metadata": {"labels": {"app": "new"}},
            "spec": {"containers": [{"name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
                "args": ["--model=m", "--tensor-parallel-size=8"],
                "resources": {"limits": {"nvidia.com/gpu": 8}}}]},
        }},
    });
    // Nothing outside of its arguments tells a launcher of training from one that serves.
    let gpu = json!({"limits": {"nvidia.com/gpu": 8}});
    let mut train = job(
        "train",
        &gpu,
        &["torchrun", "--nproc-per-node=8", "train.py"],
    );
    train["metadata"]["namespace"] = json!("inference");
    for object in [
        hpa("bad", BAD),
        scaled_object("bad", "avg(DCGM_FI_DEV_GPU_UTIL)"),
        node_pool("bad", Some(evicting)),
        server,
        train,
    ] {
        let what = format!("create {}", object["kind"]);
        waits(&what, &kubectl.create(&object.to_string())?)?;
    }
    for (object, patch) in [
        (
            "nodepool/h100",
            json!({"spec": {"disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized"}}}),
        ),
        (
            "hpa/chat",
            json!({"spec": {"metrics": hpa("bad", BAD)["spec"]["metrics"]}}),
        ),
        (
            "deployment/chat",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "vllm",
            "image": "vllm/vllm-openai:v0.11.0", "args": ["--model=m", "--tensor-parallel-size=8"],
            "resources": {"limits": {"nvidia.com/gpu": 1}}}]}}}}),
        ),
        ("deployment/large", json!({"spec": {"replicas": 7}})),
        (
            "deployment/large",
            json!({"spec": {"template": {"spec": {"schedulerName": "default-scheduler"}}}}),
        ),
    ] {
        waits(&format!("patch {object}"), &kubectl.patch(object, &patch)?)?;
    }
    Ok(())
}
