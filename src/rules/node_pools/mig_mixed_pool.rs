//! Partitioned and whole GPUs on one pool.

use super::{Judged, gpu_pool};
use crate::{
    catalog::instances::InstanceCatalog,
    declare_rule,
    finding::{FieldPath, Finding},
    rules::{Context, Findings, NoParams, kinds},
    subject::node_pool::LIMITS,
};

/// The label that NVIDIA's MIG manager partitions a node's GPUs by (NVIDIA/mig-parted,
/// deployments/gpu-operator).
const MIG_CONFIG: &str = "nvidia.com/mig.config";

/// The configuration under which GPUs stay whole.
const DISABLED: &str = "all-disabled";

declare_rule! {
    /// # What it finds
    /// A NodePool that buys GPU nodes only, partitions them (the template label
    /// `nvidia.com/mig.config`, or a limit on `nvidia.com/mig-*`), and serves whole GPUs too: it
    /// limits `nvidia.com/gpu`, or may buy types whose GPUs cannot be partitioned.
    ///
    /// # Why it hurts
    /// A pod for a slice may cause a node to be bought that has none and wait for ever, and a pod for
    /// a whole GPU one whose GPUs are cut up. Changing a node's partitions resets its GPUs under
    /// whatever runs on them.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: karpenter.sh/v1
    /// kind: NodePool
    /// metadata: {name: slices}
    /// spec:
    ///   template:
    ///     metadata:
    ///       labels: {nvidia.com/mig.config: all-1g.10gb}
    ///     spec:
    ///       nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: slices}
    ///       requirements:
    ///       - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5, g6e]}
    ///   limits: {nvidia.com/mig-1g.10gb: 56}
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: karpenter.sh/v1
    /// kind: NodePool
    /// metadata: {name: slices}
    /// spec:
    ///   template:
    ///     metadata:
    ///       labels: {nvidia.com/mig.config: all-1g.10gb}
    ///     spec:
    ///       nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: slices}
    ///       requirements:
    ///       - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5]}
    ///   limits: {nvidia.com/mig-1g.10gb: 56}
    /// ```
    ///
    /// # Sources
    /// - NVIDIA GPU Operator documentation, MIG Manager: GPU clients are stopped for a change.
    /// - NVIDIA Multi-Instance GPU User Guide, supported GPUs.
    /// - NVIDIA/k8s-device-plugin README.md, MIG strategies.
    pub static MIG_MIXED_POOL = Rule {
        id: "mig-mixed-pool",
        summary: "Partitioned and whole GPUs on one pool",
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

/// Where the pool says that its GPUs are partitioned.
fn partitioned(judged: &Judged<'_>) -> Option<FieldPath> {
    let label = judged
        .pool
        .template_labels()
        .find(|(key, _)| *key == MIG_CONFIG);
    if let Some((_, config)) = label {
        return (config != DISABLED)
            .then(|| FieldPath::of(&["spec", "template", "metadata", "labels", MIG_CONFIG]));
    }
    let limit = |(name, limit): &(&str, crate::subject::quantity::Quantity)| {
        name.starts_with("nvidia.com/mig-") && !limit.is_zero_or_less()
    };
    let (name, _) = judged.pool.limits().find(limit)?;
    Some(FieldPath::of(LIMITS).key(name))
}

/// What of the pool serves whole GPUs.
fn whole(judged: &Judged<'_>, catalog: &InstanceCatalog) -> Option<String> {
    let limit = judged.pool.limits().find(|(name, limit)| {
        !limit.is_zero_or_less()
            && catalog
                .resource(name)
                .is_some_and(|resource| resource.whole && &*resource.vendor == "nvidia")
    });
    if let Some((name, _)) = limit {
        return Some(format!("it counts whole GPUs too (limits {name})"));
    }
    let machine = judged
        .machines
        .machines
        .iter()
        .find(|machine| machine.row.is_some_and(|row| row.mig == Some(false)))?;
    let name = machine.type_name.as_ref().or(machine.family.as_ref())?;
    Some(format!(
        "it may buy {name}, whose GPUs cannot be partitioned"
    ))
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let Some(judged) = gpu_pool(cx) else { return };
    let Some(path) = partitioned(judged) else {
        return;
    };
    let Some(whole) = whole(judged, &cx.policy.catalog().instances) else {
        return;
    };
    let value = path.lookup(&cx.subject.value).cloned().unwrap_or_default();
    out.report(
        Finding::new(
            path,
            format!(
                "this pool partitions its GPUs, and {whole}: a pod for a slice may get a node that \
                 has none and wait for ever, a pod for a whole GPU one that is cut up"
            ),
        )
        .value(value)
        .instead(
            "# one pool for slices, of types that can be partitioned, and one for whole GPUs:\n\
             spec:\n  template:\n    metadata:\n      labels: {nvidia.com/mig.config: all-1g.10gb}\n  \
             limits: {nvidia.com/mig-1g.10gb: <the most it may have>}"
                .to_owned(),
        )
        .confidence(judged.confidence())
        .fingerprint("partitioned and whole GPUs"),
    );
}
