//! One view of everything that runs pods: Deployments and their like, Jobs, LeaderWorkerSets and
//! Ray clusters; and what a workload that serves a model needs of its pods.

use serde_json::Value;

use super::{
    MODEL_SERVER_LABEL as MODEL_SERVER, Subject, at,
    pod_template::{Accelerators, Count, PodTemplate},
};
use crate::{
    catalog::engines::Engines,
    engine::{self, ConfigMaps, Server, Surroundings},
    facts::Facts,
    finding::FieldPath,
};

/// What runs the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// apps Deployment.
    Deployment,
    /// apps StatefulSet.
    StatefulSet,
    /// apps ReplicaSet.
    ReplicaSet,
    /// Argo Rollout.
    Rollout,
    /// batch Job.
    Job,
    /// leaderworkerset.x-k8s.io LeaderWorkerSet.
    LeaderWorkerSet,
    /// ray.io RayCluster, RayService or RayJob.
    Ray,
}

impl Kind {
    /// Whether the workload's pods are alike and make no groups by themselves.
    pub const fn is_flat(self) -> bool {
        !matches!(self, Self::LeaderWorkerSet | Self::Ray)
    }
}

/// Pods made from one template.
#[derive(Clone, Debug)]
pub struct PodSet<'a> {
    /// Their template.
    pub template: PodTemplate<'a>,
    /// How many of them each instance of the workload has.
    pub count: u64,
    /// Whether that number is moved without the template being written, and judged, again: through
    /// the scale subresource, or by Ray's autoscaler.
    pub resizes: bool,
    /// `pod`, `leader`, `worker`, `head`.
    pub role: &'static str,
}

/// A workload.
#[derive(Clone, Debug)]
pub struct Workload<'a> {
    /// What runs the pods.
    pub kind: Kind,
    /// The raw object.
    pub value: &'a Value,
    /// Its pods. For flat kinds one set of `replicas` pods, for the others the pods of one group.
    pub pods: Vec<PodSet<'a>>,
    /// Groups that it runs: the LeaderWorkerSet's replicas; 1 for everything else.
    pub groups: u64,
}

impl<'a> Workload<'a> {
    /// The workload that an object is, if it is of a kind that runs pods.
    pub fn of(group: &str, kind: &str, value: &'a Value) -> Option<Self> {
        let kind = match (group, kind) {
            ("apps", "Deployment") => Kind::Deployment,
            ("apps", "StatefulSet") => Kind::StatefulSet,
            ("apps", "ReplicaSet") => Kind::ReplicaSet,
            ("argoproj.io", "Rollout") => Kind::Rollout,
            ("batch", "Job") => Kind::Job,
            ("leaderworkerset.x-k8s.io", "LeaderWorkerSet") => Kind::LeaderWorkerSet,
            ("ray.io", "RayCluster" | "RayService" | "RayJob") => Kind::Ray,
            _ => return None,
        };
        let mut groups = 1;
        let pods = match kind {
            Kind::LeaderWorkerSet => {
                groups = number(value, &["spec", "replicas"]).unwrap_or(1);
                leader_worker(value)?
            }
            Kind::Ray => ray(value)?,
            _ => {
                let field = if kind == Kind::Job {
                    "parallelism"
                } else {
                    "replicas"
                };
                let count = number(value, &["spec", field]).unwrap_or(1);
                let path = FieldPath::of(&["spec", "template"]);
                vec![PodSet {
                    resizes: true,
                    ..pod_set(value, path, count, "pod")?
                }]
            }
        };
        Some(Self {
            kind,
            value,
            pods,
            groups,
        })
    }

    /// Pods of one group; for flat kinds, all pods.
    pub fn size(&self) -> u64 {
        self.pods
            .iter()
            .fold(0, |sum, set| sum.saturating_add(set.count))
    }

    /// The pod sets that have pods or may come to have some; one of them where none has.
    pub fn live_sets(&self) -> impl Iterator<Item = &PodSet<'a>> {
        let lives = |set: &PodSet<'_>| set.count > 0 || set.resizes;
        let any = self.pods.iter().any(lives);
        self.pods
            .iter()
            .enumerate()
            .filter(move |(index, set)| lives(set) || (!any && *index == 0))
            .map(|(_, set)| set)
    }

    /// One of the owner's labels.
    pub fn label(&self, key: &str) -> Option<&'a str> {
        super::metadata_text(self.value, "labels", key)
    }

    /// One of the owner's annotations.
    pub fn annotation(&self, key: &str) -> Option<&'a str> {
        super::metadata_text(self.value, "annotations", key)
    }

    /// What the owner or a template declares of serving a model.
    pub fn declared(&self) -> Option<bool> {
        let label = self.label(MODEL_SERVER).or_else(|| {
            self.pods
                .iter()
                .find_map(|set| set.template.label(MODEL_SERVER))
        })?;
        match label {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }
}

fn number(value: &Value, keys: &[&str]) -> Option<u64> {
    at(value, keys)?.as_u64()
}

fn pod_set<'a>(
    value: &'a Value,
    path: FieldPath,
    count: u64,
    role: &'static str,
) -> Option<PodSet<'a>> {
    let template = path.lookup(value).filter(|template| template.is_object())?;
    Some(PodSet {
        template: PodTemplate::new(template, path),
        count,
        resizes: false,
        role,
    })
}

fn leader_worker(value: &Value) -> Option<Vec<PodSet<'_>>> {
    let base = FieldPath::of(&["spec", "leaderWorkerTemplate"]);
    let size = number(value, &["spec", "leaderWorkerTemplate", "size"])
        .unwrap_or(1)
        .max(1);
    let leader = pod_set(value, base.clone().key("leaderTemplate"), 1, "leader");
    let worker = base.key("workerTemplate");
    match leader {
        Some(leader) => {
            let workers = pod_set(value, worker, size.saturating_sub(1), "worker");
            Some(std::iter::once(leader).chain(workers).collect())
        }
        None => Some(vec![pod_set(value, worker, size, "worker")?]),
    }
}

/// Ray's head and worker groups (ray-project/kuberay, apis/ray/v1/raycluster_types.go).
fn ray(value: &Value) -> Option<Vec<PodSet<'_>>> {
    let base = [
        &["spec", "rayClusterConfig"][..],
        &["spec", "rayClusterSpec"],
        &["spec"],
    ]
    .into_iter()
    .find(|keys| at(value, keys).is_some_and(|spec| spec.get("headGroupSpec").is_some()))?;
    let autoscales = at(value, base)
        .and_then(|spec| spec.get("enableInTreeAutoscaling"))
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let base = FieldPath::of(base);
    let head = pod_set(
        value,
        base.clone().keys(&["headGroupSpec", "template"]),
        1,
        "head",
    );
    let groups = base.key("workerGroupSpecs");
    let workers = groups
        .lookup(value)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, group)| {
            let replicas = number(group, &["replicas"])
                .or_else(|| number(group, &["minReplicas"]))
                .unwrap_or(1);
            let hosts = number(group, &["numOfHosts"]).unwrap_or(1).max(1);
            let path = groups.clone().index(index).key("template");
            let set = pod_set(value, path, replicas.saturating_mul(hosts), "worker")?;
            Some(PodSet {
                resizes: autoscales && number(group, &["maxReplicas"]) != Some(0),
                ..set
            })
        });
    Some(head.into_iter().chain(workers).collect())
}

/// How one instance of a model lies over pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// One rank: nothing to keep together.
    One,
    /// Several ranks in one pod, which is placed as a whole or not at all.
    SinglePod,
    /// This many pods, all of which are needed.
    Group(u64),
    /// More ranks than the GPUs of its pods, and nothing joins it to other pods: it cannot start.
    Misfit {
        /// Ranks.
        ranks: u64,
        /// GPUs.
        gpus: u64,
    },
    /// It cannot be told.
    Unknown,
}

/// A workload that serves a model on accelerators.
#[derive(Clone, Debug)]
pub struct Serving<'a> {
    /// The workload.
    pub workload: Workload<'a>,
    /// Which of its pod sets holds the server.
    pub set: PodSet<'a>,
    /// The server.
    pub server: Server<'a>,
    /// The accelerators of the server's pod.
    pub accelerators: Accelerators,
    /// How one instance lies over pods.
    pub spread: Spread,
}

impl<'a> Serving<'a> {
    /// What an object under review serves; `None` where it serves nothing on an accelerator.
    pub fn of(subject: &'a Subject, facts: &'a Facts, engines: &'a Engines) -> Option<Self> {
        let workload = Workload::of(subject.group(), &subject.kind, &subject.value)?;
        Self::of_workload(workload, subject.namespace.as_deref(), facts, engines)
    }

    /// What a workload serves; `None` where it serves nothing on an accelerator.
    pub fn of_workload(
        workload: Workload<'a>,
        namespace: Option<&'a str>,
        facts: &'a Facts,
        engines: &'a Engines,
    ) -> Option<Self> {
        let declared = workload.declared();
        if declared == Some(false) {
            return None;
        }
        let size = Count::Known(workload.size());
        let injected = if workload.kind == Kind::LeaderWorkerSet {
            vec![
                ("LWS_GROUP_SIZE", size),
                ("LWS_LEADER_ADDRESS", Count::Unknown),
                ("LWS_WORKER_INDEX", Count::Unknown),
            ]
        } else {
            Vec::new()
        };
        let around = Surroundings {
            engines,
            config_maps: ConfigMaps { facts, namespace },
            injected,
            declared: declared == Some(true),
        };
        let (set, server) = workload
            .pods
            .iter()
            .filter_map(|set| Some((set.clone(), engine::server(&set.template, &around)?)))
            // The set that says the most: a group's workers often only join their leader.
            .max_by_key(|(set, server)| {
                let several = server
                    .parallelism
                    .world
                    .known()
                    .is_some_and(|ranks| ranks > 1);
                (several, set.role == "leader", server.confidence)
            })?;
        let mut server = server;
        if workload.kind == Kind::Ray {
            engine::ray_serve(workload.value, &mut server);
        }
        let accelerators = set.template.accelerators(engines)?;
        let spread = spread(&workload, &set, &server, &accelerators, engines);
        Some(Self {
            workload,
            set,
            server,
            accelerators,
            spread,
        })
    }

    /// Whether the label, and not what runs, makes this a model server.
    pub fn is_declared(&self) -> bool {
        self.workload.declared() == Some(true)
    }
}

fn spread(
    workload: &Workload<'_>,
    set: &PodSet<'_>,
    server: &Server<'_>,
    accelerators: &Accelerators,
    engines: &Engines,
) -> Spread {
    let parallelism = &server.parallelism;
    let ranks = parallelism.world.known();
    if !workload.kind.is_flat() {
        // The kind itself makes the group.
        let pods = workload.size();
        let gpus = workload.pods.iter().try_fold(0_u64, |sum, set| {
            let each = match set.template.accelerators(engines) {
                None => 0,
                Some(asked) => asked.gpus.known()?,
            };
            sum.checked_add(each.checked_mul(set.count)?)
        });
        return match (ranks, gpus) {
            (Some(ranks), Some(gpus)) if ranks > gpus && workload.kind == Kind::LeaderWorkerSet => {
                Spread::Misfit { ranks, gpus }
            }
            (Some(1), _) => Spread::One,
            // A Ray cluster may well hold several independent instances.
            (Some(ranks), _)
                if workload.kind == Kind::Ray
                    && accelerators.gpus.known().is_some_and(|gpus| ranks <= gpus) =>
            {
                Spread::SinglePod
            }
            (None, _) if workload.kind == Kind::Ray => Spread::Unknown,
            _ if pods > 1 => Spread::Group(pods),
            // A head alone, and more ranks than its GPUs: workers that are not there now may come,
            // where there is a group for them.
            (Some(ranks), Some(gpus)) if workload.kind == Kind::Ray => {
                if workload.pods.len() > 1 {
                    Spread::Group(ranks.div_ceil(gpus.max(1)))
                } else {
                    Spread::Misfit { ranks, gpus }
                }
            }
            (Some(_), _) => Spread::SinglePod,
            (None, _) => Spread::Unknown,
        };
    }
    let _ = set;
    let gpus = accelerators.gpus.known();
    let needed = ranks
        .zip(gpus)
        .map(|(ranks, gpus)| ranks.div_ceil(gpus.max(1)));
    match parallelism.nodes.as_ref().map(|nodes| nodes.count) {
        Some(Count::Known(nodes)) if nodes > 1 => {
            return Spread::Group(needed.map_or(nodes, |needed| needed.max(nodes)));
        }
        _ => {}
    }
    match (ranks, gpus) {
        (Some(0 | 1), _) => Spread::One,
        (Some(ranks), Some(gpus)) if ranks <= gpus => Spread::SinglePod,
        (Some(ranks), Some(gpus)) => match (&parallelism.multi_node, needed) {
            (Some(_), Some(pods)) => Spread::Group(pods),
            _ => Spread::Misfit { ranks, gpus },
        },
        (Some(_), None) if parallelism.multi_node.is_none() => Spread::SinglePod,
        _ => Spread::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn spread_of(object: Value) -> Option<Spread> {
        let subject = Subject::from_manifest(Arc::new(object)).unwrap();
        let facts = Facts::unknown();
        Serving::of(&subject, &facts, Engines::builtin()).map(|serving| serving.spread)
    }

    fn pod(args: &[&str], resource: &str, amount: u64) -> Value {
        json!({"spec": {"containers": [{
            "image": "vllm/vllm-openai", "args": args, "resources": {"limits": {resource: amount}}
        }]}})
    }

    fn deployment(args: &[&str], gpus: u64) -> Option<Spread> {
        spread_of(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "spec": {"replicas": 2, "template": pod(args, "nvidia.com/gpu", gpus)}
        }))
    }

    #[test]
    fn a_ray_cluster_of_a_head_alone_is_one_pod_or_none() {
        let cluster = |tensor: &str, groups: Value| {
            spread_of(json!({
                "apiVersion": "ray.io/v1", "kind": "RayCluster",
                "spec": {
                    "headGroupSpec": {"template": pod(&["-tp", tensor], "nvidia.com/gpu", 8)},
                    "workerGroupSpecs": groups,
                }
            }))
        };
        let group = |replicas: u64| {
            json!([{
                "groupName": "gpu", "replicas": replicas, "template": pod(&[], "nvidia.com/gpu", 8),
            }])
        };
        for none in [json!(null), json!([])] {
            assert_eq!(cluster("8", none.clone()), Some(Spread::SinglePod));
            let short = Spread::Misfit { ranks: 16, gpus: 8 };
            assert_eq!(cluster("16", none), Some(short));
        }
        // One that sleeps keeps the shape that it has awake.
        assert_eq!(cluster("16", group(0)), Some(Spread::Group(2)));
        assert_eq!(cluster("16", group(1)), Some(Spread::Group(2)));
        assert_eq!(cluster("8", group(0)), Some(Spread::SinglePod));
    }

    #[test]
    fn an_instance_spreads_by_ranks_gpus_and_signs() {
        assert_eq!(deployment(&[], 1), Some(Spread::One));
        assert_eq!(deployment(&["-tp", "8"], 8), Some(Spread::SinglePod));
        assert_eq!(deployment(&["-tp", "4"], 8), Some(Spread::SinglePod));
        assert_eq!(
            deployment(&["-tp", "8"], 7),
            Some(Spread::Misfit { ranks: 8, gpus: 7 })
        );
        assert_eq!(
            deployment(&["-tp", "16", "--nnodes", "2"], 8),
            Some(Spread::Group(2))
        );
        assert_eq!(
            deployment(&["-tp", "8", "--nnodes", "2"], 8),
            Some(Spread::Group(2))
        );
        assert_eq!(
            deployment(&["-tp", "$(X)", "--nnodes", "2"], 8),
            Some(Spread::Group(2))
        );
        assert_eq!(
            deployment(&["-tp", "4", "--distributed-executor-backend", "ray"], 1),
            Some(Spread::Group(4))
        );
        assert_eq!(
            deployment(&["-tp", "8", "--distributed-executor-backend", "ray"], 8),
            Some(Spread::SinglePod)
        );
        assert_eq!(deployment(&["-tp", "$(X)"], 8), Some(Spread::Unknown));
    }

    #[test]
    fn accelerators_that_are_no_whole_gpus_never_misfit() {
        let of = |resource: &str, args: &[&str]| {
            spread_of(json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "spec": {"template": pod(args, resource, 1)}
            }))
        };
        assert_eq!(
            of("nvidia.com/mig-1g.10gb", &["-tp", "2"]),
            Some(Spread::SinglePod)
        );
        assert_eq!(
            of("aws.amazon.com/neuron", &["-tp", "8"]),
            Some(Spread::SinglePod)
        );
        assert_eq!(
            of("google.com/tpu", &["-tp", "8", "--headless"]),
            Some(Spread::Unknown)
        );
        assert_eq!(of("cpu", &["-tp", "8"]), None);
    }

    #[test]
    fn a_leader_worker_set_is_a_group_by_itself() {
        let lws = |size: u64, args: &[&str], gpus: u64| {
            spread_of(json!({
                "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet",
                "spec": {"replicas": 2, "leaderWorkerTemplate": {
                    "size": size,
                    "leaderTemplate": pod(args, "nvidia.com/gpu", gpus),
                    "workerTemplate": pod(&["--headless"], "nvidia.com/gpu", gpus)
                }}
            }))
        };
        assert_eq!(lws(2, &["-tp", "8", "-pp", "2"], 8), Some(Spread::Group(2)));
        assert_eq!(lws(1, &["-tp", "8"], 8), Some(Spread::SinglePod));
        assert_eq!(
            lws(2, &["-tp", "8", "-pp", "4"], 8),
            Some(Spread::Misfit {
                ranks: 32,
                gpus: 16
            })
        );
        assert_eq!(lws(2, &["-tp", "$(X)"], 8), Some(Spread::Group(2)));
    }

    #[test]
    fn what_may_grow_counts_whatever_its_size_is() {
        let live = |group: &str, kind: &str, object: &Value| {
            let workload = Workload::of(group, kind, object).unwrap();
            workload
                .live_sets()
                .map(|set| (set.role, set.count))
                .collect::<Vec<_>>()
        };
        let template = pod(&[], "nvidia.com/gpu", 8);
        let asleep = json!({"spec": {"replicas": 0, "template": template}});
        assert_eq!(live("apps", "Deployment", &asleep), [("pod", 0)]);
        let lws = |size: u64| {
            json!({"spec": {"leaderWorkerTemplate": {
                "size": size, "leaderTemplate": template, "workerTemplate": template
            }}})
        };
        let of_lws = |size| live("leaderworkerset.x-k8s.io", "LeaderWorkerSet", &lws(size));
        assert_eq!(of_lws(1), [("leader", 1)]);
        assert_eq!(of_lws(2), [("leader", 1), ("worker", 1)]);
        let ray = |autoscales: bool, head: Value| {
            json!({"spec": {
                "enableInTreeAutoscaling": autoscales,
                "headGroupSpec": {"template": head},
                "workerGroupSpecs": [
                    {"replicas": 0, "minReplicas": 0, "maxReplicas": 4, "template": template},
                    {"replicas": 0, "minReplicas": 0, "maxReplicas": 0, "template": template}
                ]
            }})
        };
        let of_ray = |autoscales, head| live("ray.io", "RayCluster", &ray(autoscales, head));
        assert_eq!(of_ray(false, template.clone()), [("head", 1)]);
        assert_eq!(of_ray(true, template.clone()), [("head", 1), ("worker", 0)]);
        assert_eq!(of_ray(false, json!(null)), [("worker", 0)]);
    }

    #[test]
    fn the_label_decides_against_what_runs() {
        let labelled = |value: &str| {
            spread_of(json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"labels": {MODEL_SERVER: value}},
                "spec": {"template": pod(&["-tp", "8"], "nvidia.com/gpu", 8)}
            }))
        };
        assert_eq!(labelled("false"), None);
        assert_eq!(labelled("true"), Some(Spread::SinglePod));
    }

    #[test]
    fn fields_of_the_wrong_type_make_no_workload() {
        for spec in [
            json!(null),
            json!([]),
            json!({"template": "x"}),
            json!({"template": {"spec": []}}),
        ] {
            assert_eq!(
                spread_of(json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec})),
                None
            );
        }
    }
}
