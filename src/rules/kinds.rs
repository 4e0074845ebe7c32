//! The kinds that rules speak of.

use super::Kind;

/// What of an object tells the API server whether a rule may speak of it, and whether one may deny it,
/// without calling us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relevance {
    /// Nothing: every object of the kind is ours.
    Always,
    /// The names of its metrics.
    Metrics,
    /// The types of its triggers.
    Triggers,
    /// The machines that it asks for.
    Machines,
    /// What its pod templates ask for.
    Accelerator(&'static Pods),
}

/// The pods of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pods {
    /// Where their templates are.
    pub templates: &'static [PodTemplates],
    /// Where else it is said how many pods there are, and what they run.
    pub beside: &'static [&'static [&'static str]],
}

/// Where an object of a kind has pod templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodTemplates {
    /// The list whose elements each have one; empty where the object itself has it.
    pub list: &'static [&'static str],
    /// The template, below the object or the list's element.
    pub path: &'static [&'static str],
    /// What stands there.
    pub shape: Shape,
    /// Where in the list's element it is said how many pods there are, and what they run. One of the
    /// templates of each list has it.
    pub beside: &'static [&'static [&'static str]],
}

/// What may ask for an accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A pod template, with `metadata` and `spec`.
    Template,
    /// A pod spec.
    Spec,
    /// A container.
    Container,
    /// Something whose `labels` and `annotations` are the pod's.
    Metadata,
    /// Something that is only there for accelerators.
    Any,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 5] = [
        Self::Template,
        Self::Spec,
        Self::Container,
        Self::Metadata,
        Self::Any,
    ];
}

/// Karpenter's NodePool (karpenter.sh, pkg/apis/v1/nodepool.go, v1.14.1). `v1beta1` left the CRD
/// with v1.1.0.
pub static NODE_POOL: Kind = Kind {
    group: "karpenter.sh",
    kind: "NodePool",
    resource: "nodepools",
    versions: &["v1", "v1beta1"],
    namespaced: false,
    relevance: Relevance::Machines,
};

/// The built-in HorizontalPodAutoscaler; v1 writes arrive as v2 under `matchPolicy: Equivalent`
/// (k8s.io/api admissionregistration/v1).
pub static HORIZONTAL_POD_AUTOSCALER: Kind = Kind {
    group: "autoscaling",
    kind: "HorizontalPodAutoscaler",
    resource: "horizontalpodautoscalers",
    versions: &["v2"],
    namespaced: true,
    relevance: Relevance::Metrics,
};

/// KEDA's ScaledObject (keda.sh/v1alpha1, KEDA 2.20).
pub static SCALED_OBJECT: Kind = Kind {
    group: "keda.sh",
    kind: "ScaledObject",
    resource: "scaledobjects",
    versions: &["v1alpha1"],
    namespaced: true,
    relevance: Relevance::Triggers,
};

/// KEDA's ScaledJob (keda.sh/v1alpha1, KEDA 2.20).
pub static SCALED_JOB: Kind = Kind {
    group: "keda.sh",
    kind: "ScaledJob",
    resource: "scaledjobs",
    versions: &["v1alpha1"],
    namespaced: true,
    relevance: Relevance::Triggers,
};

/// AIBrix's PodAutoscaler (autoscaling.aibrix.ai/v1alpha1, v0.5).
pub static POD_AUTOSCALER: Kind = Kind {
    group: "autoscaling.aibrix.ai",
    kind: "PodAutoscaler",
    resource: "podautoscalers",
    versions: &["v1alpha1"],
    namespaced: true,
    relevance: Relevance::Metrics,
};

/// kthena's AutoscalingPolicy (workload.serving.volcano.sh/v1alpha1).
pub static AUTOSCALING_POLICY: Kind = Kind {
    group: "workload.serving.volcano.sh",
    kind: "AutoscalingPolicy",
    resource: "autoscalingpolicies",
    versions: &["v1alpha1"],
    namespaced: true,
    relevance: Relevance::Always,
};

/// Everything that says what to scale on.
pub static AUTOSCALERS: &[&Kind] = &[
    &HORIZONTAL_POD_AUTOSCALER,
    &SCALED_OBJECT,
    &SCALED_JOB,
    &POD_AUTOSCALER,
    &AUTOSCALING_POLICY,
];

/// The built-in Deployment.
pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    resource: "deployments",
    versions: &["v1"],
    namespaced: true,
    relevance: POD_TEMPLATE,
};

const POD_TEMPLATE: Relevance = Relevance::Accelerator(&Pods {
    templates: &[one(&["spec", "template"])],
    beside: &[&["spec", "replicas"]],
});

const fn part(path: &'static [&'static str], shape: Shape) -> PodTemplates {
    PodTemplates {
        list: &[],
        path,
        shape,
        beside: &[],
    }
}

const fn one(path: &'static [&'static str]) -> PodTemplates {
    part(path, Shape::Template)
}

const fn spec(path: &'static [&'static str]) -> PodTemplates {
    part(path, Shape::Spec)
}

/// The worker groups of Ray (ray-project/kuberay, apis/ray/v1/raycluster_types.go).
const fn worker_groups(list: &'static [&'static str]) -> PodTemplates {
    PodTemplates {
        list,
        path: &["template"],
        shape: Shape::Template,
        beside: &[
            &["replicas"],
            &["minReplicas"],
            &["maxReplicas"],
            &["numOfHosts"],
        ],
    }
}

/// The built-in StatefulSet.
pub static STATEFUL_SET: Kind = Kind {
    group: "apps",
    kind: "StatefulSet",
    resource: "statefulsets",
    versions: &["v1"],
    namespaced: true,
    relevance: POD_TEMPLATE,
};

/// The built-in ReplicaSet; those of a Deployment are judged there.
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    kind: "ReplicaSet",
    resource: "replicasets",
    versions: &["v1"],
    namespaced: true,
    relevance: POD_TEMPLATE,
};

/// The built-in Job.
pub static JOB: Kind = Kind {
    group: "batch",
    kind: "Job",
    resource: "jobs",
    versions: &["v1"],
    namespaced: true,
    relevance: Relevance::Accelerator(&Pods {
        templates: &[one(&["spec", "template"])],
        beside: &[&["spec", "parallelism"], &["spec", "completions"]],
    }),
};

/// Argo's Rollout (argoproj.io/v1alpha1).
pub static ROLLOUT: Kind = Kind {
    group: "argoproj.io",
    kind: "Rollout",
    resource: "rollouts",
    versions: &["v1alpha1"],
    namespaced: true,
    relevance: POD_TEMPLATE,
};

/// The LeaderWorkerSet (leaderworkerset.x-k8s.io/v1, v0.10).
pub static LEADER_WORKER_SET: Kind = Kind {
    group: "leaderworkerset.x-k8s.io",
    kind: "LeaderWorkerSet",
    resource: "leaderworkersets",
    versions: &["v1"],
    namespaced: true,
    relevance: Relevance::Accelerator(&Pods {
        templates: &[
            one(&["spec", "leaderWorkerTemplate", "leaderTemplate"]),
            one(&["spec", "leaderWorkerTemplate", "workerTemplate"]),
        ],
        beside: &[
            &["spec", "replicas"],
            &["spec", "leaderWorkerTemplate", "size"],
        ],
    }),
};

/// KubeRay's RayCluster (ray.io/v1).
pub static RAY_CLUSTER: Kind = Kind {
    group: "ray.io",
    kind: "RayCluster",
    resource: "rayclusters",
    versions: &["v1"],
    namespaced: true,
    relevance: Relevance::Accelerator(&Pods {
        templates: &[
            one(&["spec", "headGroupSpec", "template"]),
            worker_groups(&["spec", "workerGroupSpecs"]),
        ],
        beside: &[&["spec", "enableInTreeAutoscaling"]],
    }),
};

/// KubeRay's RayService (ray.io/v1).
pub static RAY_SERVICE: Kind = Kind {
    group: "ray.io",
    kind: "RayService",
    resource: "rayservices",
    versions: &["v1"],
    namespaced: true,
    relevance: Relevance::Accelerator(&Pods {
        templates: &[
            one(&["spec", "rayClusterConfig", "headGroupSpec", "template"]),
            worker_groups(&["spec", "rayClusterConfig", "workerGroupSpecs"]),
        ],
        beside: &[
            &["spec", "serveConfigV2"],
            &["spec", "rayClusterConfig", "enableInTreeAutoscaling"],
        ],
    }),
};

/// KubeRay's RayJob (ray.io/v1).
pub static RAY_JOB: Kind = Kind {
    group: "ray.io",
    kind: "RayJob",
    resource: "rayjobs",
    versions: &["v1"],
    namespaced: true,
    relevance: Relevance::Accelerator(&Pods {
        templates: &[
            one(&["spec", "rayClusterSpec", "headGroupSpec", "template"]),
            worker_groups(&["spec", "rayClusterSpec", "workerGroupSpecs"]),
        ],
        beside: &[
            &["spec", "entrypoint"],
            &["spec", "rayClusterSpec", "enableInTreeAutoscaling"],
        ],
    }),
};

/// KServe's InferenceService (serving.kserve.io/v1beta1, 2026-08).
pub static INFERENCE_SERVICE: Kind = Kind {
    group: "serving.kserve.io",
    kind: "InferenceService",
    resource: "inferenceservices",
    versions: &["v1beta1"],
    namespaced: true,
    relevance: Relevance::Accelerator(&Pods {
        templates: &[
            spec(&["spec", "predictor"]),
            part(&["spec", "predictor", "model"], Shape::Container),
            part(&["spec", "predictor", "huggingface"], Shape::Container),
            part(&["spec", "predictor", "triton"], Shape::Container),
            part(&["spec", "predictor", "pytorch"], Shape::Container),
            part(&["spec", "predictor"], Shape::Metadata),
            part(&["spec", "predictor", "workerSpec"], Shape::Any),
            spec(&["spec", "transformer"]),
            part(&["spec", "transformer"], Shape::Metadata),
            spec(&["spec", "explainer"]),
            part(&["spec", "explainer"], Shape::Metadata),
        ],
        beside: &[
            &["spec", "predictor", "minReplicas"],
            &["spec", "predictor", "model", "runtime"],
            &["spec", "predictor", "model", "modelFormat"],
        ],
    }),
};

/// KServe's LLMInferenceService (serving.kserve.io, 2026-08).
pub static LLM_INFERENCE_SERVICE: Kind = Kind {
    group: "serving.kserve.io",
    kind: "LLMInferenceService",
    resource: "llminferenceservices",
    versions: &["v1alpha2", "v1alpha1"],
    namespaced: true,
    relevance: Relevance::Accelerator(&Pods {
        templates: &[
            spec(&["spec", "template"]),
            spec(&["spec", "worker"]),
            part(&["spec"], Shape::Metadata),
            spec(&["spec", "prefill", "template"]),
            spec(&["spec", "prefill", "worker"]),
            part(&["spec", "prefill"], Shape::Metadata),
        ],
        beside: &[
            &["spec", "replicas"],
            &["spec", "parallelism"],
            &["spec", "baseRefs"],
            &["spec", "prefill", "replicas"],
            &["spec", "prefill", "parallelism"],
        ],
    }),
};

/// Grove's PodCliqueSet (grove.io/v1alpha1, 2026-08).
pub static POD_CLIQUE_SET: Kind = Kind {
    group: "grove.io",
    kind: "PodCliqueSet",
    resource: "podcliquesets",
    versions: &["v1alpha1"],
    namespaced: true,
    relevance: Relevance::Accelerator(&Pods {
        templates: &[
            PodTemplates {
                list: &["spec", "template", "cliques"],
                path: &["spec", "podSpec"],
                shape: Shape::Spec,
                beside: CLIQUE,
            },
            PodTemplates {
                list: &["spec", "template", "cliques"],
                path: &[],
                shape: Shape::Metadata,
                beside: &[],
            },
        ],
        beside: &[
            &["spec", "replicas"],
            &["spec", "template", "podCliqueScalingGroups"],
            &["spec", "template", "startupType"],
        ],
    }),
};

/// What says how many pods a clique has.
const CLIQUE: &[&[&str]] = &[&["name"], &["spec", "replicas"], &["spec", "minAvailable"]];

/// Dynamo's DynamoGraphDeployment (nvidia.com, 2026-08): some service of a graph always is on GPUs.
pub static DYNAMO_GRAPH_DEPLOYMENT: Kind = Kind {
    group: "nvidia.com",
    kind: "DynamoGraphDeployment",
    resource: "dynamographdeployments",
    versions: &["v1beta1", "v1alpha1"],
    namespaced: true,
    relevance: Relevance::Always,
};

/// Kinds that are judged and never filled: their controllers merge them with what we do not see, and
/// make gangs by themselves or not at all.
static NEVER_FILLED: &[&Kind] = &[
    &INFERENCE_SERVICE,
    &LLM_INFERENCE_SERVICE,
    &POD_CLIQUE_SET,
    &DYNAMO_GRAPH_DEPLOYMENT,
];

/// Whether silence of that kind's objects may be filled.
pub fn is_filled(group: &str, kind: &str) -> bool {
    !NEVER_FILLED
        .iter()
        .any(|never| never.group == group && never.kind == kind)
}

/// Kinds whose pods are as their templates say: nobody adds to them or passes the owner's metadata on.
pub static TEMPLATED: &[&Kind] = &[
    &DEPLOYMENT,
    &STATEFUL_SET,
    &REPLICA_SET,
    &JOB,
    &ROLLOUT,
    &LEADER_WORKER_SET,
    &RAY_CLUSTER,
    &RAY_SERVICE,
    &RAY_JOB,
];

/// Kinds that run pods and that the workload rules speak of.
pub static WORKLOADS: &[&Kind] = &[
    &DEPLOYMENT,
    &STATEFUL_SET,
    &REPLICA_SET,
    &JOB,
    &ROLLOUT,
    &LEADER_WORKER_SET,
    &RAY_CLUSTER,
    &RAY_SERVICE,
    &RAY_JOB,
    &INFERENCE_SERVICE,
    &LLM_INFERENCE_SERVICE,
    &POD_CLIQUE_SET,
    &DYNAMO_GRAPH_DEPLOYMENT,
];

/// Kinds that run pods for as long as they are wanted: what a serving rule speaks of.
pub static LONG_RUNNING: &[&Kind] = &[
    &DEPLOYMENT,
    &STATEFUL_SET,
    &REPLICA_SET,
    &ROLLOUT,
    &LEADER_WORKER_SET,
    &INFERENCE_SERVICE,
    &LLM_INFERENCE_SERVICE,
    &POD_CLIQUE_SET,
    &DYNAMO_GRAPH_DEPLOYMENT,
];

/// Every kind that some rule speaks of: what an exemption may stand on.
pub static ALL: &[&Kind] = &[
    &NODE_POOL,
    &HORIZONTAL_POD_AUTOSCALER,
    &SCALED_OBJECT,
    &SCALED_JOB,
    &POD_AUTOSCALER,
    &AUTOSCALING_POLICY,
    &DEPLOYMENT,
    &STATEFUL_SET,
    &REPLICA_SET,
    &JOB,
    &ROLLOUT,
    &LEADER_WORKER_SET,
    &RAY_CLUSTER,
    &RAY_SERVICE,
    &RAY_JOB,
    &INFERENCE_SERVICE,
    &LLM_INFERENCE_SERVICE,
    &POD_CLIQUE_SET,
    &DYNAMO_GRAPH_DEPLOYMENT,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Group, RULES};

    #[test]
    fn exemptions_may_stand_on_whatever_a_rule_speaks_of() {
        let others = RULES
            .iter()
            .filter(|rule| !matches!(rule.group, Group::Objects | Group::Exemptions));
        for kind in others.flat_map(|rule| rule.kinds) {
            assert!(ALL.contains(kind), "{kind:?}");
        }
        for kind in ALL {
            let others = RULES
                .iter()
                .filter(|rule| !matches!(rule.group, Group::Objects | Group::Exemptions));
            assert!(
                others
                    .flat_map(|rule| rule.kinds)
                    .any(|other| other == kind),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn the_rules_about_exemptions_come_last() {
        let about = |rule: &&&crate::rules::Rule| rule.group == Group::Exemptions;
        let first = RULES.iter().position(|rule| about(&rule)).unwrap();
        assert!(RULES[first..].iter().all(|rule| about(&rule)));
    }
}
