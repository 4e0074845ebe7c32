//! GPU pools without a limit.

use super::gpu_pool;
use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    rules::{Context, Findings, NoParams, kinds},
    subject::node_pool::LIMITS,
};

/// The limit on the number of nodes (karpenter.sh `pkg/apis/v1/nodepool.go`, since v1.8.0).
const NODES: &str = "nodes";

declare_rule! {
    /// # What it finds
    /// A NodePool that buys GPU nodes only and sets no limit on accelerators or nodes. Limits on
    /// processors and memory do not count: they say little about GPUs.
    ///
    /// # Why it hurts
    /// A scaler that runs away, or a Deployment with a wrong number in it, buys GPU nodes until the
    /// cloud's quota or the budget is gone.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: karpenter.sh/v1
    /// kind: NodePool
    /// metadata: {name: inference}
    /// spec:
    ///   template:
    ///     spec:
    ///       nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: inference}
    ///       requirements:
    ///       - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5]}
    ///   limits: {cpu: "1000"}
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: karpenter.sh/v1
    /// kind: NodePool
    /// metadata: {name: inference}
    /// spec:
    ///   template:
    ///     spec:
    ///       nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: inference}
    ///       requirements:
    ///       - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5]}
    ///   limits: {nvidia.com/gpu: 16}
    /// ```
    /// Static pools take `nodes` only.
    ///
    /// # Sources
    /// - Amazon EKS Best Practices Guide, AI/ML compute: the example NodePool limits
    ///   `nvidia.com/gpu`.
    /// - karpenter.sh v1.14, Concepts, NodePools, spec.limits.
    pub static GPU_POOL_LIMITS = Rule {
        id: "gpu-pool-limits",
        summary: "A GPU pool that may grow without a limit on GPUs",
        group: NodePools,
        kinds: &[&kinds::NODE_POOL],
        labels: &[],
        annotations: &[],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check,
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let Some(judged) = gpu_pool(cx) else { return };
    let catalog = &cx.policy.catalog().instances;
    let limited = judged.pool.limits().any(|(name, _)| {
        name == NODES
            || catalog
                .resource(name)
                .is_some_and(|resource| judged.machines.vendors.contains(&resource.vendor))
    });
    if limited {
        return;
    }
    let (name, number) = if judged.pool.replicas().is_some() {
        (NODES, "<the most nodes it may have>")
    } else {
        let resources = judged.machines.resources(catalog);
        (
            resources.first().copied().unwrap_or(NODES),
            "<the most it may have>",
        )
    };
    let finding = Finding::new(
        FieldPath::of(LIMITS),
        format!(
            "no limit on accelerators: a scaler that runs away buys GPU nodes until the cloud's quota is gone (GPU pool: {})",
            judged.machines.evidence
        ),
    )
    .instead(format!("spec:\n  limits:\n    {name}: {number}"))
    .confidence(judged.confidence())
    .fingerprint("no limit on accelerators");
    out.report(match cx.subject.at(LIMITS) {
        Some(written) => finding.value(written.clone()),
        None => finding,
    });
}
