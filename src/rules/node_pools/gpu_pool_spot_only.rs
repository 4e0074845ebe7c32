//! GPU pools of spot capacity.

use super::gpu_pool;
use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    rules::{Context, Findings, NoParams, kinds},
    subject::{
        node_pool::{NodePool, REQUIREMENTS},
        requirement::{Allowed, Operator},
    },
};

/// Karpenter's label for how a node is paid for (karpenter.sh `pkg/apis/v1/labels.go`).
const CAPACITY_TYPE: &str = "karpenter.sh/capacity-type";

declare_rule! {
    /// # What it finds
    /// A NodePool that buys GPU nodes only, and only spot capacity.
    ///
    /// # Why it hurts
    /// Spot capacity goes at a notice of two minutes or less, which is shorter than a model takes to
    /// load elsewhere, and GPU spot capacity of one type tends to go everywhere at once: with no
    /// other capacity allowed, the service is down until some comes back. A replica that spans
    /// several GPU nodes is lost with any one of them.
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
    ///       - {key: karpenter.sh/capacity-type, operator: In, values: [spot]}
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
    ///       - {key: karpenter.sh/capacity-type, operator: In, values: [on-demand]}
    /// ```
    /// Or `[reserved, on-demand, spot]`, of which Karpenter takes the first that is to be had by
    /// price. Under WhenEmpty an on-demand node is not exchanged for spot.
    ///
    /// # Sources
    /// - Amazon EC2 User Guide, Spot Instance interruption notices: two minutes.
    /// - Amazon EKS Best Practices Guide, AI/ML compute.
    /// - karpenter.sh `pkg/controllers/disruption/consolidation.go`, v1.14.1: on-demand nodes are
    ///   replaced by spot under Underutilized.
    pub static GPU_POOL_SPOT_ONLY = Rule {
        id: "gpu-pool-spot-only",
        summary: "A GPU pool without any capacity but spot",
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

/// The place of what leaves only spot.
fn spot_only(pool: &NodePool<'_>) -> Option<FieldPath> {
    let rows = pool
        .requirements()
        .filter(|row| row.key == CAPACITY_TYPE)
        .map(|row| (FieldPath::of(REQUIREMENTS).index(row.index), row.allowed));
    let labels = pool
        .template_labels()
        .filter(|(key, _)| *key == CAPACITY_TYPE)
        .filter_map(|(key, value)| {
            let path = FieldPath::of(&["spec", "template", "metadata", "labels", key]);
            Some((path, Allowed::new(Operator::In, &[value.to_owned()])?))
        });
    let (path, left) = rows
        .chain(labels)
        .reduce(|(path, left), (_, more)| (path, left.and(more)))?;
    (left.has("spot") && !left.has("on-demand") && !left.has("reserved")).then_some(path)
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let Some(judged) = gpu_pool(cx) else { return };
    let Some(path) = spot_only(&judged.pool) else {
        return;
    };
    let value = path.lookup(&cx.subject.value).cloned().unwrap_or_default();
    out.report(
        Finding::new(
            path,
            format!(
                "only spot capacity: it goes at two minutes' notice, less than a model takes to load elsewhere, and nothing else may take its place (GPU pool: {})",
                judged.machines.evidence
            ),
        )
        .value(value)
        .instead(format!(
            "spec:\n  template:\n    spec:\n      requirements:\n      \
             - {{key: {CAPACITY_TYPE}, operator: In, values: [on-demand]}}\n\
             # or [reserved, on-demand, spot]"
        ))
        .confidence(judged.confidence())
        .fingerprint("only spot capacity"),
    );
}
