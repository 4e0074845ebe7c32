//! The kinds that rules speak of.

use super::Kind;

/// How the API server tells an object that no rule has a say in, without calling us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relevance {
    /// Every object of the kind is ours.
    Always,
    /// Every object; one that scales on nothing but cpu and memory cannot be denied at the door,
    /// where its target is not known, and so must not block.
    Metrics,
    /// Only objects with a pod template, below these members of the object, that asks for an
    /// accelerator or that we could not tell without reading it.
    Accelerator {
        /// Where the pod spec stands.
        pod_spec: &'static [&'static str],
    },
}

/// Karpenter's NodePool (karpenter.sh, pkg/apis/v1/nodepool.go, v1.14.1). `v1beta1` left the CRD
/// with v1.1.0.
pub static NODE_POOL: Kind = Kind {
    group: "karpenter.sh",
    kind: "NodePool",
    resource: "nodepools",
    versions: &["v1", "v1beta1"],
    namespaced: false,
    relevance: Relevance::Always,
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
    relevance: Relevance::Always,
};

/// KEDA's ScaledJob (keda.sh/v1alpha1, KEDA 2.20).
pub static SCALED_JOB: Kind = Kind {
    group: "keda.sh",
    kind: "ScaledJob",
    resource: "scaledjobs",
    versions: &["v1alpha1"],
    namespaced: true,
    relevance: Relevance::Always,
};

/// The built-in Deployment.
pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    resource: "deployments",
    versions: &["v1"],
    namespaced: true,
    relevance: Relevance::Accelerator {
        pod_spec: &["spec", "template", "spec"],
    },
};
