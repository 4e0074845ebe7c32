//! GPU pools of one node.

use super::{Judged, gpu_pool};
use crate::{
    catalog::instances::{InstanceCatalog, Meaning, Resource},
    declare_rule,
    finding::{FieldPath, Finding},
    rules::{Context, Findings, NoParams, kinds},
    subject::{node_pool::LIMITS, quantity::Quantity},
};

declare_rule! {
    /// # What it finds
    /// A NodePool that buys GPU nodes of one instance type only and whose limits never leave room
    /// for a second node: `nodes: 1`, one GPU, or the GPUs of one such machine.
    ///
    /// # Why it hurts
    /// Karpenter has nothing to choose and nothing to scale here, yet brings expiry, drift and a
    /// node that is bought after the pod that needs it is waiting. When that one type is not to be
    /// had, nothing runs. A node that is always there, or a service that sells GPUs by the request,
    /// fits better.
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
    ///       - {key: node.kubernetes.io/instance-type, operator: In, values: [g6e.xlarge]}
    ///   limits: {nvidia.com/gpu: 1}
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
    ///       - {key: node.kubernetes.io/instance-type, operator: In, values: [g6e.xlarge, g6.xlarge]}
    ///   limits: {nvidia.com/gpu: 4}
    /// ```
    /// Or a node group of a fixed size, or a static pool (`replicas: 1`).
    ///
    /// # Sources
    /// - karpenter.sh v1.14, Concepts, NodePools, spec.limits;
    ///   `pkg/controllers/provisioning/scheduling/scheduler.go` filterByRemainingResources, v1.14.1.
    pub static GPU_POOL_SINGLE_NODE = Rule {
        id: "gpu-pool-single-node",
        summary: "A GPU pool that can never exceed one node of one type",
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
    let mut types = judged.machines.machines.iter();
    let (Some(machine), None) = (types.next(), types.next()) else {
        return;
    };
    let Some(type_name) = &machine.type_name else {
        return;
    };
    if judged.pool.replicas().is_some() || lists_other_types(judged, catalog, type_name) {
        return;
    }
    // Two machines need twice the devices of one, and each has one at least.
    let second = Quantity::whole(i64::from(machine.gpus().unwrap_or(1)) * 2);
    let binding = judged.pool.limits().find(|(name, limit)| {
        let whole =
            |resource: &Resource| resource.whole && Some(&resource.vendor) == machine.vendor();
        (*name == "nodes" && *limit < Quantity::whole(2))
            || (catalog.resource(name).is_some_and(whole) && *limit < second)
    });
    let Some((name, limit)) = binding else { return };
    let path = FieldPath::of(LIMITS).key(name);
    let value = path.lookup(&cx.subject.value).cloned().unwrap_or_default();
    out.report(
        Finding::new(
            path,
            format!(
                "with {limit} {name} this pool never has a second node, and {type_name} is the only \
                 type it may buy: Karpenter has nothing to choose or to scale, and when that type \
                 is not to be had nothing runs"
            ),
        )
        .value(value)
        .instead(
            "# a node group of a fixed size, a static pool, or a service that sells GPUs by the \
             request; or room for more:\nspec:\n  template:\n    spec:\n      requirements:\n      \
             - {key: node.kubernetes.io/instance-type, operator: In, values: [<several types>]}"
                .to_owned(),
        )
        .confidence(judged.confidence())
        .fingerprint("never more than one node"),
    );
}

/// Whether types are listed beside that one, known to the table or not.
fn lists_other_types(judged: &Judged<'_>, catalog: &InstanceCatalog, one: &str) -> bool {
    judged.pool.requirements().any(|row| {
        catalog.meaning(row.key) == Some(Meaning::Type)
            && row
                .allowed
                .listed()
                .is_some_and(|values| values.iter().any(|value| value != one))
    })
}
