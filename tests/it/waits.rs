//! Which writes may have to wait while nobody answers, on a real API server.

use anyhow::{Context as _, Result};
use gangplank::policy::Policy;
use serde_json::{Value, json};

use crate::{
    conditions::without_schemas,
    enforce::{deployment, evicting, gang, hpa, node_pool, reference, scaled_object},
    overheard::Overheard,
};

/// A change of an object.
type Change = (&'static str, fn(&mut Value));

/// Which entry is asked about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// The one that may block it while nobody answers.
    Enforce,
    /// The one that blocks nothing.
    Advise,
    /// None.
    Nobody,
}

impl Overheard {
    /// Which entry was asked about an object in the last write of it.
    fn entry(&self, object: &Value) -> Entry {
        let about = self.about(&reference(object));
        let last = about.iter().rfind(|one| one.path != "/mutate");
        match last.map(|one| one.path.as_str()) {
            Some("/validate") => Entry::Enforce,
            Some(_) => Entry::Advise,
            None => Entry::Nobody,
        }
    }
}

/// A NodePool that requires this.
fn pool(requirement: &Value) -> Value {
    let mut pool = node_pool("pool", Some(evicting()));
    let spec = &mut pool["spec"]["template"]["spec"];
    spec["requirements"] = json!([requirement]);
    spec["taints"] = json!([]);
    pool
}

/// A NodePool of GPU machines with this disruption.
fn gpu_pool(disruption: Value) -> Value {
    node_pool("pool", Some(disruption))
}

fn triggered(kind: &str) -> Value {
    let mut object = scaled_object("scaler", "q");
    object["spec"]["triggers"][0]["type"] = json!(kind);
    object
}

/// A Deployment whose container asks for one of these.
fn asking(resource: &str) -> Value {
    let mut object = deployment("asking", 1, 1, &[]);
    object["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({"limits": {resource: "1"}});
    object
}

fn resource_metric(name: &str) -> Value {
    let mut object = hpa("resource", "x");
    object["spec"]["metrics"] = json!([{"type": "Resource", "resource": {
        "name": name, "target": {"type": "Utilization", "averageUtilization": 80}}}]);
    object
}

fn ray_cluster() -> Value {
    let template = &deployment("x", 8, 1, &[])["spec"]["template"];
    json!({
        "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "ray"},
        "spec": {
            "headGroupSpec": {"rayStartParams": {}, "template": template},
            "workerGroupSpecs": [{"groupName": "w", "replicas": 1, "minReplicas": 1,
                "maxReplicas": 1, "numOfHosts": 1, "rayStartParams": {}, "template": template}],
        },
    })
}

fn inference_service() -> Value {
    json!({
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": "served"},
        "spec": {"predictor": {"minReplicas": 1, "model": {
            "modelFormat": {"name": "huggingface"}, "image": "kserve/huggingfaceserver:v1",
            "args": ["--tensor-parallel-size=8"],
            "resources": {"limits": {"nvidia.com/gpu": "8"}}}}},
    })
}

const CONTAINER: &str = "/spec/template/spec/containers/0";

fn set(object: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).expect("a place");
    match parent {
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
        members => members[key.replace("~1", "/")] = value,
    }
}

/// While nobody answers, only a write that a rule could deny for what stands in the object waits. What
/// leaves `enforce` goes to `advise`, where it is judged, and denied, while somebody answers.
#[test]
fn only_what_could_be_denied_may_have_to_wait() -> Result<()> {
    use Entry::{Advise, Enforce, Nobody};
    let overheard = Overheard::start(false, Policy::default(), without_schemas)?;
    let kubectl = overheard.cluster.namespace("waits")?;
    let family = "karpenter.k8s.aws/instance-family";
    let category = "karpenter.k8s.aws/instance-category";
    let kind = "node.kubernetes.io/instance-type";
    let requires = |key: &str, operator: &str, values: &[&str]| {
        pool(&json!({"key": key, "operator": operator, "values": values}))
    };
    let labelled = {
        let mut object = requires("kubernetes.io/arch", "In", &["amd64"]);
        object["spec"]["template"]["metadata"] =
            json!({"labels": {"nvidia.com/gpu.present": "true"}});
        object
    };
    let tainted = {
        let mut object = requires("kubernetes.io/arch", "In", &["amd64"]);
        object["spec"]["template"]["spec"]["taints"] =
            json!([{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]);
        object
    };
    let exempt = {
        let mut object = asking("cpu");
        object["metadata"]["annotations"] = json!({"exempt.gangplank.dev/gang-scheduling": "x"});
        object
    };
    let when_empty = json!({"consolidationPolicy": "WhenEmpty", "consolidateAfter": "1h"});
    let never =
        json!({"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "Never"});
    let creates: Vec<(&str, Value, Entry)> = vec![
        (
            "a family without GPUs",
            requires(family, "In", &["m5", "c6i"]),
            Advise,
        ),
        (
            "a pool that leaves GPUs out",
            requires(category, "NotIn", &["g", "p"]),
            Advise,
        ),
        (
            "a pool of machines without GPUs",
            requires("karpenter.k8s.aws/instance-gpu-count", "DoesNotExist", &[]),
            Advise,
        ),
        (
            "GCP machines without GPUs",
            requires(kind, "In", &["n2-standard-8"]),
            Advise,
        ),
        (
            "a family with GPUs",
            requires(family, "In", &["m5", "p5"]),
            Enforce,
        ),
        (
            "a category with GPUs",
            requires(category, "In", &["g"]),
            Enforce,
        ),
        (
            "a type of an unknown family",
            requires(kind, "In", &["p99.48xlarge"]),
            Enforce,
        ),
        (
            "an Azure type with GPUs",
            requires(kind, "In", &["Standard_NC24ads_A100_v4"]),
            Enforce,
        ),
        (
            "a GCP type with GPUs",
            requires(kind, "In", &["a3-highgpu-8g"]),
            Enforce,
        ),
        (
            "a count of GPUs",
            requires("karpenter.k8s.aws/instance-gpu-count", "Gt", &["0"]),
            Enforce,
        ),
        ("a label of GPUs", labelled, Enforce),
        ("a taint of GPUs", tainted, Enforce),
        (
            "a GPU pool that evicts nobody",
            gpu_pool(when_empty),
            Advise,
        ),
        (
            "a GPU pool that is never consolidated",
            gpu_pool(never),
            Advise,
        ),
        ("a GPU pool that evicts", gpu_pool(evicting()), Enforce),
        ("Kafka", triggered("kafka"), Advise),
        ("the clock", triggered("cron"), Advise),
        ("Redis", triggered("redis-cluster-streams"), Advise),
        ("the CPU", triggered("cpu"), Advise),
        ("a query", triggered("prometheus"), Enforce),
        ("an external scaler", triggered("external"), Enforce),
        ("a URL", triggered("metrics-api"), Enforce),
        ("requests", hpa("x", "http_requests_per_second"), Advise),
        ("a queue", hpa("x", "vllm:num_requests_waiting"), Advise),
        ("a device", hpa("x", "DCGM_FI_DEV_GPU_UTIL"), Enforce),
        ("a device in humps", hpa("x", "nodeGpuBusy"), Enforce),
        (
            "letters that look like others",
            hpa("x", "\u{0433}pu_busy"),
            Enforce,
        ),
        ("CPU", resource_metric("cpu"), Advise),
        (
            "a resource of GPUs",
            resource_metric("nvidia.com/gpu"),
            Enforce,
        ),
        ("GPUs", asking("nvidia.com/gpu"), Enforce),
        (
            "a slice of a GPU",
            asking("nvidia.com/mig-1g.10gb"),
            Enforce,
        ),
        ("another device", asking("smarter-devices/fuse"), Advise),
        ("no device", asking("cpu"), Nobody),
        ("no device, with an exemption", exempt, Advise),
        ("Ray on GPUs", ray_cluster(), Enforce),
        ("KServe on GPUs", inference_service(), Enforce),
    ];
    for (index, (what, mut object, entry)) in creates.into_iter().enumerate() {
        object["metadata"]["name"] = json!(format!("c-{index}"));
        let args = ["create", "--dry-run=server", "--filename=-"];
        kubectl
            .run(&args, Some(&object.to_string()))?
            .success()
            .context(what)?;
        assert_eq!(overheard.entry(&object), entry, "{what}");
    }

    let tag: Change = ("another tag", |object| {
        set(
            object,
            &format!("{CONTAINER}/image"),
            json!("vllm/vllm-openai:v0.12.0"),
        );
    });
    let changes: Vec<(Value, Vec<(Change, Entry)>)> = vec![
        (
            gpu_pool(evicting()),
            vec![
                (
                    ("limits", |o| {
                        o["spec"]["limits"] = json!({"nvidia.com/gpu": "64"});
                    }),
                    Advise,
                ),
                (("weight", |o| o["spec"]["weight"] = json!(5)), Advise),
                (
                    ("the policy", |o| {
                        o["spec"]["disruption"]["consolidateAfter"] = json!("6m");
                    }),
                    Enforce,
                ),
                (
                    ("the machines", |o| {
                        o["spec"]["template"]["spec"]["requirements"][0]["values"] = json!(["p4d"]);
                    }),
                    Enforce,
                ),
            ],
        ),
        (
            gang("changed"),
            vec![
                (tag, Advise),
                (
                    ("a digest", |o| {
                        let digest = "a".repeat(64);
                        let image = format!("vllm/vllm-openai:v0.11.0@sha256:{digest}");
                        set(o, &format!("{CONTAINER}/image"), json!(image));
                    }),
                    Advise,
                ),
                (
                    ("another image", |o| {
                        set(
                            o,
                            &format!("{CONTAINER}/image"),
                            json!("mirror:5000/vllm:v0.11.0"),
                        );
                    }),
                    Enforce,
                ),
                (
                    ("a restart", |o| {
                        o["spec"]["template"]["metadata"]["annotations"] =
                            json!({"kubectl.kubernetes.io/restartedAt": "now"});
                    }),
                    Advise,
                ),
                (("paused", |o| o["spec"]["paused"] = json!(true)), Advise),
                (("replicas", |o| o["spec"]["replicas"] = json!(7)), Enforce),
                (
                    ("arguments", |o| {
                        set(o, &format!("{CONTAINER}/args"), json!(["-tp=4"]));
                    }),
                    Enforce,
                ),
                (
                    ("a command", |o| {
                        set(o, &format!("{CONTAINER}/command"), json!(["vllm"]));
                    }),
                    Enforce,
                ),
                (
                    ("the environment", |o| {
                        set(
                            o,
                            &format!("{CONTAINER}/env"),
                            json!([{"name": "A", "value": "b"}]),
                        );
                    }),
                    Enforce,
                ),
                (
                    ("resources", |o| {
                        let limits = json!({"limits": {"nvidia.com/gpu": "2"}});
                        set(o, &format!("{CONTAINER}/resources"), limits);
                    }),
                    Enforce,
                ),
                (
                    ("the scheduler", |o| {
                        o["spec"]["template"]["spec"]["schedulerName"] = json!("other-scheduler");
                    }),
                    Enforce,
                ),
                (
                    ("a minimum", |o| {
                        o["metadata"]["annotations"] =
                            json!({"kai.scheduler/batch-min-member": "7"});
                    }),
                    Enforce,
                ),
                (
                    ("the pods' queue", |o| {
                        o["spec"]["template"]["metadata"]["labels"]["kai.scheduler/queue"] =
                            json!("q");
                    }),
                    Enforce,
                ),
                (
                    ("an annotation of somebody else", |o| {
                        o["metadata"]["annotations"] = json!({"example.com/a": "b"});
                    }),
                    Nobody,
                ),
            ],
        ),
        (
            ray_cluster(),
            vec![
                (
                    ("a worker's tag", |o| {
                        let image = "/spec/workerGroupSpecs/0/template/spec/containers/0/image";
                        set(o, image, json!("vllm/vllm-openai:v0.12.0"));
                    }),
                    Advise,
                ),
                (
                    ("a worker's arguments", |o| {
                        let args = "/spec/workerGroupSpecs/0/template/spec/containers/0/args";
                        set(o, args, json!(["-tp=4"]));
                    }),
                    Enforce,
                ),
                (
                    ("hosts", |o| {
                        set(o, "/spec/workerGroupSpecs/0/numOfHosts", json!(2));
                    }),
                    Enforce,
                ),
            ],
        ),
        (
            inference_service(),
            vec![
                (
                    ("a tag", |o| {
                        let image = json!("kserve/huggingfaceserver:v2");
                        set(o, "/spec/predictor/model/image", image);
                    }),
                    Advise,
                ),
                (
                    ("its arguments", |o| {
                        set(o, "/spec/predictor/model/args", json!([]));
                    }),
                    Enforce,
                ),
                (
                    ("its least", |o| {
                        set(o, "/spec/predictor/minReplicas", json!(2));
                    }),
                    Enforce,
                ),
            ],
        ),
    ];
    for (number, (object, changes)) in changes.into_iter().enumerate() {
        for (index, ((what, change), entry)) in changes.into_iter().enumerate() {
            let mut object = object.clone();
            object["metadata"]["name"] = json!(format!("u-{number}-{index}"));
            kubectl
                .create(&object.to_string())?
                .success()
                .context(what)?;
            let before = overheard.about(&reference(&object)).len();
            let mut held = kubectl.get(&reference(&object))?;
            change(&mut held);
            kubectl
                .replace(&held.to_string())?
                .success()
                .context(what)?;
            let asked = overheard.about(&reference(&object)).len() > before;
            let found = if asked {
                overheard.entry(&object)
            } else {
                Nobody
            };
            assert_eq!(found, entry, "{}: {what}", object["kind"]);
        }
    }
    Ok(())
}
