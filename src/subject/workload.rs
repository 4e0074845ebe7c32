//! One view of everything that runs pods: Deployments and their like, Jobs, LeaderWorkerSets, Ray
//! clusters, and the services of KServe, Grove and Dynamo; and what a workload that serves a model
//! needs of its pods.

use serde_json::Value;

use super::{
    MODEL_SERVER_LABEL as MODEL_SERVER, Subject, at,
    pod_template::{Accelerators, Count, PodTemplate},
};
use crate::{
    budget::Budget,
    catalog::engines::Engines,
    engine::{self, ConfigMaps, Degree, Parallelism, Server, Surroundings},
    facts::Facts,
    finding::FieldPath,
};

mod dynamo;
mod grove;
mod kserve;

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
    /// serving.kserve.io InferenceService.
    InferenceService,
    /// serving.kserve.io LLMInferenceService.
    LlmInferenceService,
    /// grove.io PodCliqueSet.
    PodCliqueSet,
    /// nvidia.com DynamoGraphDeployment.
    DynamoGraph,
}

impl Kind {
    /// Whether the workload's pods are alike and make no groups by themselves.
    pub const fn is_flat(self) -> bool {
        matches!(
            self,
            Self::Deployment | Self::StatefulSet | Self::ReplicaSet | Self::Rollout | Self::Job
        )
    }

    /// Whether its controller takes the labels of the object to the pods, or the scheduler reads them
    /// there. KServe passes on few of an LLMInferenceService's (kserve/kserve
    /// pkg/controller/v1alpha2/llmisvc, `propagateTopLevelLeaderWorkerSetMetadata`).
    pub const fn passes_labels_on(self) -> bool {
        !matches!(self, Self::LlmInferenceService)
    }

    /// Whether its controller, and not the API server, decides the scheduler of pods that name none:
    /// Grove's configuration has a default, Dynamo puts KAI or Volcano where it finds them
    /// (ai-dynamo/grove operator/api/config/v1alpha1/types.go; ai-dynamo/dynamo
    /// deploy/operator/internal/dynamo/grove.go).
    pub const fn picks_scheduler(self) -> bool {
        matches!(self, Self::PodCliqueSet | Self::DynamoGraph)
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
    /// `pod`, `leader`, `worker`, `head`, `clique`, `member` of a scaling group, `node`.
    pub role: &'static str,
    /// A controller completes these pods from elsewhere: what the template leaves out is unknown.
    pub merged: bool,
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
    /// Groups that it runs: the LeaderWorkerSet's replicas; 1 for what makes none.
    pub groups: u64,
    /// Its controller makes groups of the pods that schedulers know as such.
    pub grouped: bool,
    /// Which of an object's several workloads this is; empty for an object that is one.
    pub component: &'a str,
    /// Nothing that cannot be seen from here changes what the object says of its pods and ranks.
    pub certain: bool,
    /// The ranks, where the object says them beside the command line.
    pub stated: Option<Stated>,
}

/// Degrees of parallelism that an object states in fields of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// Tensor parallel size.
    pub tensor: Degree,
    /// Pipeline parallel size, where it counts.
    pub pipeline: Option<Degree>,
    /// Data parallel size, where it counts.
    pub data: Option<Degree>,
}

impl<'a> Workload<'a> {
    const fn new(kind: Kind, value: &'a Value) -> Self {
        Self {
            kind,
            value,
            pods: Vec::new(),
            groups: 1,
            grouped: false,
            component: "",
            certain: true,
            stated: None,
        }
    }

    /// The workloads that an object is: one, or several under one name; none where it is of no kind
    /// that runs pods.
    pub fn all(group: &str, kind: &str, value: &'a Value) -> Vec<Self> {
        match (group, kind) {
            ("serving.kserve.io", "InferenceService") => kserve::inference_service(value),
            ("serving.kserve.io", "LLMInferenceService") => kserve::llm_inference_service(value),
            ("grove.io", "PodCliqueSet") => grove::pod_clique_set(value),
            ("nvidia.com", "DynamoGraphDeployment") => dynamo::graph(value),
            _ => Self::of(group, kind, value).into_iter().collect(),
        }
    }

    /// The workload that an object of a kind is that only ever is one.
    fn of(group: &str, kind: &str, value: &'a Value) -> Option<Self> {
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
            pods,
            groups,
            grouped: !kind.is_flat(),
            ..Self::new(kind, value)
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
        merged: false,
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

/// Steps that a model server takes, beside its command line: every rule about workloads judges it.
const SERVING: usize = 20_000;
/// Steps that it takes to copy a pod set.
const POD_SET: usize = 60;

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
    /// Those of them that the server's own container sees, and its ranks can use.
    pub own: Accelerators,
    /// How one instance lies over pods.
    pub spread: Spread,
    /// Servers in other containers of the same pods, each with ranks and accelerators of its own.
    pub beside: Vec<Self>,
    /// It is such a server, and an instance by itself.
    alone: bool,
}

impl<'a> Serving<'a> {
    /// What each workload of an object under review serves; none where it serves nothing on an
    /// accelerator.
    pub fn all(
        subject: &'a Subject,
        facts: &'a Facts,
        engines: &'a Engines,
        budget: &'a Budget,
    ) -> Vec<Self> {
        Workload::all(subject.group(), &subject.kind, &subject.value)
            .into_iter()
            .filter_map(|workload| {
                let namespace = subject.namespace.as_deref();
                let serving = Self::of_workload(workload, namespace, facts, engines, budget);
                budget.spend(serving.as_ref().map_or(0, |_| SERVING));
                serving.filter(|_| !budget.is_spent())
            })
            .collect()
    }

    /// What a workload serves; `None` where it serves nothing on an accelerator.
    pub fn of_workload(
        workload: Workload<'a>,
        namespace: Option<&'a str>,
        facts: &'a Facts,
        engines: &'a Engines,
        budget: &'a Budget,
    ) -> Option<Self> {
        let declared = workload.declared();
        if declared == Some(false) {
            return None;
        }
        let size = Count::Known(workload.size());
        let is_kserve = matches!(
            workload.kind,
            Kind::InferenceService | Kind::LlmInferenceService
        );
        let by_lws = workload.kind == Kind::LeaderWorkerSet
            || (workload.kind == Kind::LlmInferenceService && workload.grouped);
        let injected = if by_lws {
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
            // An inference service serves a model by its kind.
            declared: declared == Some(true) || is_kserve,
            budget,
        };
        let mut found: Vec<Vec<Server<'a>>> = workload
            .pods
            .iter()
            .map(|set| engine::servers(&set.template, &around))
            .collect();
        // The set that says the most: a group's workers often only join their leader. Cliques have
        // no roles that we know, and the first is the leader; KServe's head comes first too.
        let (_, chosen) = workload
            .pods
            .iter()
            .zip(&found)
            .enumerate()
            .flat_map(|(index, (set, servers))| servers.iter().map(move |one| (index, set, one)))
            .map(|(index, set, server)| {
                let led = matches!(workload.kind, Kind::PodCliqueSet | Kind::InferenceService);
                let leads = set.role == "leader" || (led && index == 0);
                let several = server.parallelism.has_several_ranks();
                ((several, leads, server.confidence), index)
            })
            .max()?;
        let set = workload.pods.get(chosen)?.clone();
        let mut servers = found.get_mut(chosen).map(std::mem::take)?;
        let main = servers.iter_mut().rev().max_by_key(|one| one.confidence)?;
        if workload.kind == Kind::Ray {
            engine::ray_serve(workload.value, main);
        }
        if let Some(stated) = &workload.stated {
            engine::stated(stated, main);
        }
        let (first, mut beside) = lead(&workload, &set, servers, engines)?;
        // In the pods that follow, the container like it only joins.
        for (other, servers) in workload.pods.iter().zip(found) {
            let joins = |one: &Server<'_>| {
                one.container.name() == first.container.name()
                    || one.container.image() == first.container.image()
            };
            if servers.len() > 1 {
                let apart = servers.into_iter().filter(|one| !joins(one));
                beside.extend(apart.map(|server| (other.clone(), server)));
            }
        }
        let together = twins(&set, &first, &beside, engines);
        let accelerators = set.template.accelerators(engines)?;
        let own = set.template.accelerators_of(engines, &first.container)?;
        let mut workload = workload;
        let spread = if workload.kind == Kind::InferenceService && workload.pods.len() > 1 {
            let (spread, certain) = head_and_workers(&workload, &first, &own, engines);
            workload.certain = certain;
            spread
        } else {
            match together {
                Some(gpus) => spread_of_twins(&workload, &set, &first, gpus, engines),
                None => spread(&workload, &set, &first, &own, engines),
            }
        };
        let beside = beside
            .into_iter()
            .take_while(|_| {
                // Each has the whole workload beside it.
                budget.spend(SERVING + POD_SET * workload.pods.len());
                !budget.is_spent()
            })
            .filter_map(|(set, server)| {
                let own = set.template.accelerators_of(engines, &server.container)?;
                let alone = together.is_none() || !server.is_twin_of(&first);
                Some(Self {
                    workload: workload.clone(),
                    accelerators: set.template.accelerators(engines)?,
                    spread: if alone {
                        in_its_pod(&server.parallelism, &own)
                    } else {
                        spread
                    },
                    own,
                    set,
                    server,
                    beside: Vec::new(),
                    alone,
                })
            })
            .collect();
        Some(Self {
            workload,
            set,
            server: first,
            accelerators,
            own,
            spread,
            beside,
            alone: false,
        })
    }

    /// Whether the kind makes one instance, or several, of the pods of a group.
    pub fn joins_pods(&self) -> bool {
        !self.alone && joins_pods(&self.workload)
    }

    /// Whether the label, and not what runs, makes this a model server.
    pub fn is_declared(&self) -> bool {
        self.workload.declared() == Some(true)
    }
}

/// The server among those of a pod that decides how the pod is placed, and the rest: the one that
/// reaches out for other pods, else one with several ranks, else the best known.
fn lead<'a>(
    workload: &Workload<'_>,
    set: &PodSet<'a>,
    mut servers: Vec<Server<'a>>,
    engines: &Engines,
) -> Option<(Server<'a>, Vec<(PodSet<'a>, Server<'a>)>)> {
    let joins = joins_pods(workload);
    let (_, index) = servers
        .iter()
        .enumerate()
        .map(|(index, server)| {
            let own = set
                .template
                .accelerators_of(engines, &server.container)
                .and_then(|own| own.gpus.known());
            let ranks = server.parallelism.world.known();
            let beyond = ranks.zip(own).is_some_and(|(ranks, own)| ranks > own);
            let reaches_out = server.parallelism.is_multi_node() || (joins && beyond);
            let several = server.parallelism.has_several_ranks();
            let known = server.engine.is_some();
            // The group's own is the greatest of a group.
            let most = ranks.filter(|_| joins);
            let key = (known, reaches_out, several, most, server.confidence);
            ((key, std::cmp::Reverse(index)), index)
        })
        .max()?;
    let first = (index < servers.len()).then(|| servers.remove(index))?;
    // Without an engine, only the owner's label made them servers: it means one of them.
    let beside = servers
        .into_iter()
        .filter(|server| server.engine.is_some())
        .map(|server| (set.clone(), server))
        .collect();
    Some((first, beside))
}

/// The GPUs of all containers of a pod that may run the nodes of one instance: the same engine with
/// the same ranks over several nodes. `None` where there is but one.
fn twins(
    set: &PodSet<'_>,
    first: &Server<'_>,
    beside: &[(PodSet<'_>, Server<'_>)],
    engines: &Engines,
) -> Option<Count> {
    let mut all = beside
        .iter()
        .filter(|(other, server)| {
            other.template.path() == set.template.path() && server.is_twin_of(first)
        })
        .map(|(_, server)| server)
        .peekable();
    all.peek()?;
    let sum = all.chain([first]).try_fold(0_u64, |sum, server| {
        let own = set.template.accelerators_of(engines, &server.container)?;
        sum.checked_add(own.gpus.known()?)
    });
    Some(sum.map_or(Count::Unknown, Count::Known))
}

/// How twins lie: several nodes in one pod, or one node each of several instances. Where the pod has
/// GPUs for all ranks, nobody can tell which.
fn spread_of_twins(
    workload: &Workload<'_>,
    set: &PodSet<'_>,
    first: &Server<'_>,
    gpus: Count,
    engines: &Engines,
) -> Spread {
    let Some(own) = set.template.accelerators_of(engines, &first.container) else {
        return Spread::Unknown;
    };
    if !joins_pods(workload) {
        let ranks = first.parallelism.world.known().zip(gpus.known());
        return match ranks {
            Some((ranks, gpus)) if ranks > gpus => spread(workload, set, first, &own, engines),
            _ => Spread::Unknown,
        };
    }
    spread(workload, set, first, &Accelerators { gpus, ..own }, engines)
}

/// How an instance lies that another server of its pod does not make one of several pods.
fn in_its_pod(parallelism: &Parallelism, own: &Accelerators) -> Spread {
    let (Some(ranks), false) = (parallelism.world.known(), parallelism.is_multi_node()) else {
        return Spread::Unknown;
    };
    match own.gpus.known() {
        _ if ranks <= 1 => Spread::One,
        Some(gpus) if ranks > gpus => Spread::Misfit { ranks, gpus },
        _ => Spread::SinglePod,
    }
}

/// How KServe spreads an instance over its head and its workers, and whether that can be told from
/// the object: the runtime may have GPUs of its own, and chooses between Ray, which fills pods of as
/// many GPUs as they have, and a pod for each pipeline stage (kserve/kserve
/// pkg/controller/v1beta1/inferenceservice/components/predictor.go, `multiNodeProcess`).
fn head_and_workers(
    workload: &Workload<'_>,
    server: &Server<'_>,
    accelerators: &Accelerators,
    engines: &Engines,
) -> (Spread, bool) {
    let parallelism = &server.parallelism;
    let Some(ranks) = parallelism.world.known() else {
        return (Spread::Unknown, false);
    };
    let worker = workload
        .pods
        .iter()
        .find(|set| set.role == "worker")
        .and_then(|set| {
            let like = &server.container;
            set.template.accelerators_like(engines, like)?.gpus.known()
        });
    match (accelerators.gpus.known(), worker) {
        (Some(head), Some(_)) if ranks <= head => (Spread::SinglePod, false),
        (Some(_), Some(each)) => {
            let pods = ranks.div_ceil(each.max(1));
            let certain = parallelism.tensor.count == Count::Known(each);
            (Spread::Group(pods), certain && pods > 1)
        }
        _ => match parallelism.pipeline.count {
            Count::Known(stages) if stages > 1 => (Spread::Group(stages), false),
            _ => (Spread::Unknown, false),
        },
    }
}

/// Whether the pods of a workload are one instance, or hold whole ones, by its kind.
fn joins_pods(workload: &Workload<'_>) -> bool {
    match workload.kind {
        Kind::LeaderWorkerSet | Kind::Ray => true,
        Kind::LlmInferenceService | Kind::DynamoGraph => workload.grouped,
        Kind::PodCliqueSet => workload.pods.iter().any(|set| set.role == "member"),
        _ => false,
    }
}

/// The accelerators that Ray has in a pod: those of its first container, which is Ray's
/// (ray-project/kuberay ray-operator/controllers/ray/utils/constant.go, `RayContainerIndex`).
fn ray_container(set: &PodSet<'_>, engines: &Engines) -> Option<Accelerators> {
    match set.template.containers().next() {
        Some(first) if set.template.container_has_accelerator(engines, &first) => {
            set.template.accelerators_of(engines, &first)
        }
        _ => set.template.accelerators(engines),
    }
}

fn spread(
    workload: &Workload<'_>,
    own_set: &PodSet<'_>,
    server: &Server<'_>,
    accelerators: &Accelerators,
    engines: &Engines,
) -> Spread {
    let parallelism = &server.parallelism;
    let ranks = parallelism.world.known();
    if joins_pods(workload) {
        let pods = workload.size();
        let gpus = workload.pods.iter().try_fold(0_u64, |sum, set| {
            let taking_part = if set.template.path() == own_set.template.path() {
                Some(accelerators.clone())
            } else if workload.kind == Kind::Ray {
                ray_container(set, engines)
            } else {
                set.template.accelerators_like(engines, &server.container)
            };
            let each = match taking_part {
                None if set.merged => return None,
                None => 0,
                Some(asked) => asked.gpus.known()?,
            };
            sum.checked_add(each.checked_mul(set.count)?)
        });
        // These may well hold several independent instances.
        let holds_several = matches!(workload.kind, Kind::Ray | Kind::PodCliqueSet);
        return match (ranks, gpus) {
            (Some(ranks), Some(gpus)) if ranks > gpus && workload.kind != Kind::Ray => {
                Spread::Misfit { ranks, gpus }
            }
            (Some(1), _) => Spread::One,
            (Some(ranks), _)
                if holds_several && accelerators.gpus.known().is_some_and(|gpus| ranks <= gpus) =>
            {
                Spread::SinglePod
            }
            (None, _) if holds_several => Spread::Unknown,
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
        let budget = Budget::default();
        let servings = Serving::all(&subject, &facts, Engines::builtin(), &budget);
        servings.first().map(|serving| serving.spread)
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
    fn every_kind_says_in_its_own_way_how_an_instance_lies() {
        let template = |args: &[&str]| pod(args, "nvidia.com/gpu", 8);
        let flat = |args: &[&str], field: &str| {
            let mut spec = json!({"template": template(args)});
            spec[field] = json!(2);
            spec
        };
        let ray = |args: &[&str]| {
            let mut groups = json!([]);
            if args.contains(&"-pp") {
                groups = json!([{"groupName": "g", "replicas": 1, "template": template(&[])}]);
            }
            json!({"headGroupSpec": {"template": template(args)}, "workerGroupSpecs": groups})
        };
        let lws = |args: &[&str]| {
            let size = if args.contains(&"-pp") { 2 } else { 1 };
            json!({"leaderWorkerTemplate": {"size": size, "workerTemplate": template(args)}})
        };
        let of = |api: &str, kind: &str, spec: Value| {
            let mut object = json!({"apiVersion": api, "kind": kind});
            object["spec"] = spec;
            spread_of(object)
        };
        for (args, spread) in [
            (&["-tp", "8"][..], Spread::SinglePod),
            (&["-tp", "8", "-pp", "2", "--nnodes", "2"], Spread::Group(2)),
        ] {
            for (api, kind, spec) in [
                ("apps/v1", "Deployment", flat(args, "replicas")),
                ("apps/v1", "StatefulSet", flat(args, "replicas")),
                ("apps/v1", "ReplicaSet", flat(args, "replicas")),
                ("argoproj.io/v1alpha1", "Rollout", flat(args, "replicas")),
                ("batch/v1", "Job", flat(args, "parallelism")),
                ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", lws(args)),
                ("ray.io/v1", "RayCluster", ray(args)),
                (
                    "ray.io/v1",
                    "RayService",
                    json!({"rayClusterConfig": ray(args)}),
                ),
                ("ray.io/v1", "RayJob", json!({"rayClusterSpec": ray(args)})),
            ] {
                assert_eq!(of(api, kind, spec), Some(spread), "{kind} {args:?}");
            }
        }
        // KServe's, Grove's and Dynamo's have tables of their own below.
        for (api, kind) in [
            ("batch/v1", "CronJob"),
            ("v1", "Pod"),
            ("ray.io/v1", "Other"),
        ] {
            assert_eq!(
                of(api, kind, flat(&["-tp", "8"], "replicas")),
                None,
                "{kind}"
            );
        }
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

    /// A container of a pod with several.
    fn part(name: &str, image: &str, args: &[&str], resources: Value) -> Value {
        let mut part = json!({"name": name, "image": image, "args": args});
        part["resources"] = resources;
        part
    }

    fn whole(gpus: u64) -> Value {
        json!({"limits": {"nvidia.com/gpu": gpus}})
    }

    /// Where each server of a Deployment's pod stands, and how its instance lies.
    fn parts(spec: Value) -> Vec<(String, Spread)> {
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "spec": {"replicas": 2, "template": {}}
        });
        object["spec"]["template"]["spec"] = spec;
        let subject = Subject::from_manifest(Arc::new(object)).unwrap();
        let facts = Facts::unknown();
        let budget = Budget::default();
        let servings = Serving::all(&subject, &facts, Engines::builtin(), &budget);
        servings
            .iter()
            .flat_map(|serving| std::iter::once(serving).chain(&serving.beside))
            .map(|one| {
                let path = one.server.path.to_string();
                let place = path.trim_start_matches("spec.template.spec.").to_owned();
                (place, one.spread)
            })
            .collect()
    }

    const VLLM: &str = "vllm/vllm-openai";

    #[test]
    fn each_engine_of_a_pod_is_measured_by_its_own_gpus() {
        let at = |place: &str, spread| (place.to_owned(), spread);
        let containers = |all: Value| parts(json!({"containers": all}));
        // The second has too few, although the pod would have enough.
        assert_eq!(
            containers(json!([
                part("one", VLLM, &["-tp", "2"], whole(2)),
                part("two", VLLM, &["-tp", "4"], whole(2)),
            ])),
            [
                at("containers[0]", Spread::SinglePod),
                at("containers[1]", Spread::Misfit { ranks: 4, gpus: 2 })
            ]
        );
        // The one that reaches out decides where the pod goes, wherever it stands.
        let reaching = ["-tp", "16", "--nnodes", "2"];
        assert_eq!(
            containers(json!([
                part("small", VLLM, &[], whole(1)),
                part("large", VLLM, &reaching, whole(8)),
            ])),
            [
                at("containers[1]", Spread::Group(2)),
                at("containers[0]", Spread::One)
            ]
        );
        // Prefill and decode, a router without GPUs, and GPUs without an engine.
        assert_eq!(
            containers(json!([
                part("router", "vllm/vllm-router:v1", &["-tp", "8"], json!({})),
                part("prefill", VLLM, &["-tp", "4"], whole(4)),
                part("decode", VLLM, &["-tp", "4"], whole(4)),
                part("exporter", "example/exporter", &[], whole(1)),
            ])),
            [
                at("containers[1]", Spread::SinglePod),
                at("containers[2]", Spread::SinglePod)
            ]
        );
        // A sidecar that keeps running is a server as well; one that ends before the others is none.
        let beside = |policy: Value| {
            let mut side = part("side", VLLM, &["-tp", "2"], whole(1));
            side["restartPolicy"] = policy;
            let main = part("main", VLLM, &["-tp", "8"], whole(8));
            parts(json!({"initContainers": [side], "containers": [main]}))
        };
        assert_eq!(beside(json!(null)).len(), 1);
        assert!(beside(json!("Always")).contains(&at(
            "initContainers[0]",
            Spread::Misfit { ranks: 2, gpus: 1 }
        )));
        // What a claim gives cannot be told, and is not what another container asks for.
        assert_eq!(
            parts(json!({
                "resourceClaims": [{"name": "gpus", "resourceClaimTemplateName": "eight"}],
                "containers": [
                    part("one", VLLM, &["-tp", "1"], whole(1)),
                    part("two", VLLM, &["-tp", "8"], json!({"claims": [{"name": "gpus"}]})),
                ],
            })),
            [
                at("containers[1]", Spread::SinglePod),
                at("containers[0]", Spread::One)
            ]
        );
    }

    #[test]
    fn two_containers_may_be_two_nodes_of_one_instance() {
        let pair = |gpus: u64| {
            let node = |name: &str, rank: &str| {
                let args = ["-tp", "8", "--nnodes", "2", "--node-rank", rank];
                part(name, VLLM, &args, whole(gpus))
            };
            parts(json!({"containers": [node("a", "0"), node("b", "1")]}))
                .into_iter()
                .map(|(_, spread)| spread)
                .collect::<Vec<_>>()
        };
        // The pod has GPUs for all ranks: whose they are nobody can tell.
        assert_eq!(pair(4), [Spread::Unknown, Spread::Unknown]);
        assert_eq!(pair(2), [Spread::Group(4), Spread::Group(4)]);
    }

    #[test]
    fn a_group_has_the_gpus_of_the_containers_that_take_part() {
        let lws = |args: &[&str], beside: Value| {
            let pod = |name: &str, args: &[&str]| json!({"spec": {"containers": [part(name, VLLM, args, whole(7)), beside]}});
            let subject = Subject::from_manifest(Arc::new(json!({
                "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet",
                "spec": {"leaderWorkerTemplate": {
                    "size": 2, "leaderTemplate": pod("leader", args),
                    "workerTemplate": pod("worker", &["--headless"])
                }}
            })))
            .unwrap();
            let facts = Facts::unknown();
            let budget = Budget::default();
            let servings = Serving::all(&subject, &facts, Engines::builtin(), &budget);
            servings
                .iter()
                .flat_map(|serving| std::iter::once(serving).chain(&serving.beside))
                .map(|one| one.spread)
                .collect::<Vec<_>>()
        };
        let probe = || part("probe", "example/probe", &[], whole(1));
        let misfit = |ranks, gpus| Spread::Misfit { ranks, gpus };
        assert_eq!(lws(&["-tp", "16"], probe()), [misfit(16, 14)]);
        assert_eq!(lws(&["-tp", "14"], probe()), [Spread::Group(2)]);
        // An engine beside it is an instance by itself in each pod.
        let embeddings = |tensor: &str| part("embed", "sgl", &["--tp", tensor], whole(1));
        let embeddings = |tensor| {
            let mut container = embeddings(tensor);
            container["command"] = json!(["python3", "-m", "sglang.launch_server"]);
            container
        };
        assert_eq!(
            lws(&["-tp", "14"], embeddings("1")),
            [Spread::Group(2), Spread::One, Spread::One]
        );
        assert_eq!(
            lws(&["-tp", "14"], embeddings("2")),
            [Spread::Group(2), misfit(2, 1), misfit(2, 1)]
        );
        let ray = |gpus: u64| {
            let pod = |args: &[&str], gpus| json!({"spec": {"containers": [part("ray", VLLM, args, whole(gpus)), probe()]}});
            spread_of(json!({
                "apiVersion": "ray.io/v1", "kind": "RayCluster",
                "spec": {
                    "headGroupSpec": {"template": pod(&["-tp", "16"], gpus)}, "workerGroupSpecs": []
                }
            }))
        };
        assert_eq!(ray(15), Some(misfit(16, 15)));
        assert_eq!(ray(16), Some(Spread::SinglePod));
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

    /// The workloads of an object: component, how its instance lies, whether that is certain.
    fn components(object: Value) -> Vec<(String, Spread, bool)> {
        let subject = Subject::from_manifest(Arc::new(object)).unwrap();
        let facts = Facts::unknown();
        Serving::all(&subject, &facts, Engines::builtin(), &Budget::default())
            .into_iter()
            .map(|serving| {
                let workload = &serving.workload;
                (
                    workload.component.to_owned(),
                    serving.spread,
                    workload.certain,
                )
            })
            .collect()
    }

    fn one(spread: Spread, certain: bool) -> Vec<(String, Spread, bool)> {
        vec![(String::new(), spread, certain)]
    }

    #[test]
    fn an_inference_service_spreads_as_kserve_makes_its_deployments() {
        let isvc = |mode: &str, predictor: Value| {
            components(json!({
                "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
                "metadata": {"annotations": {"serving.kserve.io/deploymentMode": mode}},
                "spec": {"predictor": predictor}
            }))
        };
        let gpus = |number: u64| json!({"limits": {"nvidia.com/gpu": number}});
        let workers = |head: u64, tensor: u64, pipeline: u64, each: u64| {
            isvc(
                "Standard",
                json!({
                    "model": {"modelFormat": {"name": "huggingface"}, "resources": gpus(head)},
                    "workerSpec": {
                        "tensorParallelSize": tensor, "pipelineParallelSize": pipeline,
                        "containers": [{"name": "worker-container", "resources": gpus(each)}]
                    }
                }),
            )
        };
        assert_eq!(workers(8, 8, 2, 8), one(Spread::Group(2), true));
        assert_eq!(workers(1, 1, 4, 1), one(Spread::Group(4), true));
        // Ray would fill two pods, and a pod for each stage makes four.
        assert_eq!(workers(4, 2, 4, 4), one(Spread::Group(2), false));
        assert_eq!(workers(8, 4, 2, 4), one(Spread::SinglePod, false));
        let silent = |worker: Value| {
            isvc(
                "Standard",
                json!({"model": {"modelFormat": {"name": "huggingface"}}, "workerSpec": worker}),
            )
        };
        let both = json!({"tensorParallelSize": 4, "pipelineParallelSize": 2});
        assert_eq!(silent(both), one(Spread::Group(2), false));
        for unsaid in [
            json!({}),
            json!({"tensorParallelSize": 8}),
            json!({"pipelineParallelSize": 2}),
            json!({"tensorParallelSize": "8", "pipelineParallelSize": 2}),
        ] {
            assert_eq!(silent(unsaid), one(Spread::Unknown, false));
        }
        let custom = json!({"containers": [{
            "name": "kserve-container", "image": "vllm/vllm-openai", "args": ["-tp", "8"],
            "resources": gpus(8)
        }]});
        for (mode, certain) in [
            ("Standard", true),
            ("RawDeployment", true),
            ("Knative", false),
            ("", false),
        ] {
            assert_eq!(isvc(mode, custom.clone()), one(Spread::SinglePod, certain));
        }
        // Where KServe's runtime says what runs, only ranks that are said are known.
        let model = |args: Value| json!({"model": {"args": args, "resources": gpus(8)}});
        let flag = json!(["--tensor-parallel-size=8"]);
        assert_eq!(isvc("Standard", model(flag)), one(Spread::SinglePod, false));
        assert_eq!(
            isvc("Standard", model(json!(["--model_name=m"]))),
            one(Spread::Unknown, false)
        );
        assert_eq!(isvc("Standard", json!({"model": {"resources": {}}})), []);
    }

    #[test]
    fn an_llm_inference_service_has_a_part_for_each_role() {
        let llm = |spec: Value| {
            components(json!({
                "apiVersion": "serving.kserve.io/v1alpha2", "kind": "LLMInferenceService",
                "spec": spec
            }))
        };
        let pod = |gpus: u64| json!({"containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": gpus}}}]});
        let wide = json!({"tensor": 1, "data": 32, "dataLocal": 8});
        assert_eq!(
            llm(json!({"parallelism": wide, "template": pod(8), "worker": pod(8)})),
            one(Spread::Group(4), true)
        );
        assert_eq!(
            llm(json!({"parallelism": wide, "worker": pod(8)})),
            one(Spread::Group(4), true)
        );
        // Without workers KServe passes on the tensor parallelism alone.
        assert_eq!(
            llm(json!({"parallelism": {"tensor": 8, "pipeline": 2}, "template": pod(8)})),
            one(Spread::SinglePod, true)
        );
        let stages = json!({"tensor": 8, "pipeline": 2});
        assert_eq!(
            llm(json!({"parallelism": stages, "template": pod(8), "worker": pod(4)})),
            one(
                Spread::Misfit {
                    ranks: 16,
                    gpus: 12
                },
                true
            )
        );
        // What the object's own command says wins over the fields.
        let mut own = pod(8);
        own["containers"][0]["command"] = json!(["vllm", "serve", "m", "-tp", "4"]);
        assert_eq!(
            llm(json!({"parallelism": {"tensor": 16}, "template": own})),
            one(Spread::SinglePod, true)
        );
        let mut more = pod(8);
        more["containers"][0]["env"] = json!([{"name": "VLLM_ADDITIONAL_ARGS", "value": "-tp 4"}]);
        assert_eq!(
            llm(json!({"parallelism": {"tensor": 8}, "template": more})),
            one(Spread::SinglePod, false)
        );
        let two = llm(json!({
            "baseRefs": [{"name": "b"}], "parallelism": {"tensor": 8}, "template": pod(8),
            "prefill": {"parallelism": {"tensor": 2}, "template": pod(1)}
        }));
        let misfit = Spread::Misfit { ranks: 2, gpus: 1 };
        assert_eq!(
            two,
            [
                (String::new(), Spread::SinglePod, false),
                ("prefill".to_owned(), misfit, false)
            ]
        );
        assert_eq!(llm(json!({"parallelism": wide, "template": {}})), []);
    }

    #[test]
    fn cliques_are_one_instance_only_in_a_scaling_group() {
        let set = |groups: Value, cliques: &[(&str, u64, &[&str])]| {
            let cliques: Vec<Value> = cliques
                .iter()
                .map(|(name, replicas, args)| {
                    let mut spec = json!({"roleName": name, "replicas": replicas});
                    spec["podSpec"] = pod(args, "nvidia.com/gpu", 8)["spec"].clone();
                    json!({"name": name, "spec": spec})
                })
                .collect();
            components(json!({
                "apiVersion": "grove.io/v1alpha1", "kind": "PodCliqueSet",
                "spec": {"template": {"cliques": cliques, "podCliqueScalingGroups": groups}}
            }))
        };
        let named = |name: &str, spread: Spread| (name.to_owned(), spread, true);
        let wide: &[&str] = &["-tp", "16"];
        let group = json!([{"name": "decode", "cliqueNames": ["l", "w"]}]);
        assert_eq!(
            set(
                group.clone(),
                &[("l", 1, wide), ("w", 1, wide), ("p", 4, &["-tp", "8"])]
            ),
            [
                named("decode", Spread::Group(2)),
                named("p", Spread::SinglePod)
            ]
        );
        assert_eq!(
            set(group.clone(), &[("l", 1, &["-tp", "32"]), ("w", 1, &[])]),
            [named(
                "decode",
                Spread::Misfit {
                    ranks: 32,
                    gpus: 16
                }
            )]
        );
        // Single pods that are scaled together, and ranks that cannot be read.
        assert_eq!(
            set(
                group.clone(),
                &[("l", 1, &["-tp", "8"]), ("w", 2, &["-tp", "8"])]
            ),
            [named("decode", Spread::SinglePod)]
        );
        assert_eq!(
            set(
                group,
                &[("l", 1, &["-tp", "$(X)"]), ("w", 1, &["-tp", "$(X)"])]
            ),
            [named("decode", Spread::Unknown)]
        );
        // Alone nothing joins them but what they say.
        assert_eq!(
            set(json!([]), &[("l", 2, wide)]),
            [named("l", Spread::Misfit { ranks: 16, gpus: 8 })]
        );
        assert_eq!(
            set(json!(null), &[("l", 1, &["-tp", "16", "--nnodes", "2"])]),
            [named("l", Spread::Group(2))]
        );
    }

    #[test]
    fn a_graphs_services_take_as_many_nodes_as_they_say() {
        let older = |service: Value| {
            components(json!({
                "apiVersion": "nvidia.com/v1alpha1", "kind": "DynamoGraphDeployment",
                "spec": {"services": {"Decode": service, "Frontend": {"extraPodSpec": {}}}}
            }))
        };
        let service = |gpus: Value, nodes: Value, tensor: &str| {
            json!({
                "multinode": nodes, "resources": {"limits": gpus},
                "extraPodSpec": {"mainContainer": {
                    "command": ["python3", "-m", "dynamo.vllm"],
                    "args": ["--model", "m", "--tensor-parallel-size", tensor]
                }}
            })
        };
        let eight = json!({"gpu": "8"});
        let two = json!({"nodeCount": 2});
        let decode = |spread: Spread| vec![("Decode".to_owned(), spread, true)];
        let misfit = |ranks, gpus| decode(Spread::Misfit { ranks, gpus });
        let of = |gpus: &Value, nodes: &Value, tensor| {
            older(service(gpus.clone(), nodes.clone(), tensor))
        };
        assert_eq!(of(&eight, &json!(null), "8"), decode(Spread::SinglePod));
        assert_eq!(of(&eight, &json!(null), "16"), misfit(16, 8));
        assert_eq!(of(&eight, &two, "16"), decode(Spread::Group(2)));
        assert_eq!(of(&eight, &json!({}), "16"), decode(Spread::Group(2)));
        assert_eq!(of(&eight, &two, "32"), misfit(32, 16));
        assert_eq!(of(&json!({"gpu": "0"}), &json!(null), "8"), []);
        // Of another type, how many ranks they take is not known.
        let other = json!({"gpu": "4", "gpuType": "gpu.intel.com/xe"});
        assert_eq!(of(&other, &json!(null), "8"), decode(Spread::SinglePod));
        let mut shared = service(eight, json!(null), "16");
        shared["gpuMemoryService"] = json!({"enabled": true});
        assert!(!older(shared)[0].2);

        let newer = components(json!({
            "apiVersion": "nvidia.com/v1beta1", "kind": "DynamoGraphDeployment",
            "spec": {"components": [
                {"name": "frontend", "podTemplate": {"spec": {"containers": [{"name": "main"}]}}},
                {"name": "decode", "multinode": two,
                    "podTemplate": pod(&["-tp", "16"], "nvidia.com/gpu", 8)}
            ]}
        }));
        assert_eq!(newer, [("decode".to_owned(), Spread::Group(2), true)]);
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
        let odd = [
            json!(null),
            json!(5),
            json!("x"),
            json!([]),
            json!([5]),
            json!({"a": 5}),
        ];
        let nested = |value: &Value| {
            json!({
                "predictor": value, "template": value, "worker": value, "prefill": value,
                "services": value, "components": value, "parallelism": value
            })
        };
        for (api, kind) in [
            ("serving.kserve.io/v1beta1", "InferenceService"),
            ("serving.kserve.io/v1alpha2", "LLMInferenceService"),
            ("grove.io/v1alpha1", "PodCliqueSet"),
            ("nvidia.com/v1alpha1", "DynamoGraphDeployment"),
        ] {
            for value in &odd {
                let inner = json!({
                    "model": value, "workerSpec": value, "containers": value, "template": value,
                    "cliques": value, "podCliqueScalingGroups": value, "Decode": value
                });
                for spec in [value.clone(), nested(value), nested(&inner)] {
                    let object = json!({"apiVersion": api, "kind": kind, "spec": spec});
                    let unknown = |found: &(String, Spread, bool)| found.1 == Spread::Unknown;
                    assert!(components(object).iter().all(unknown), "{kind} {spec}");
                }
            }
        }
    }
}
