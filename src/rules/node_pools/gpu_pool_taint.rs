//! GPU nodes without a taint.

use serde_json::{Value, json};

use super::{Judged, gpu_pool, is_new};
use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    provenance,
    rules::{Context, Edits, Findings, NoParams, kinds},
    subject::{Operation, at, node_pool::TAINTS},
};

declare_rule! {
    /// # What it finds
    /// A NodePool that buys GPU nodes only and puts no `NoSchedule` or `NoExecute` taint on them.
    ///
    /// On CREATE the taint `<resource>=present:NoSchedule` is filled in, where the pool's
    /// accelerators have one resource name: with that key, the admission plugin
    /// ExtendedResourceToleration gives every pod that asks for the resource its toleration. It is
    /// filled neither in static pools nor beside a startup taint of the same key and effect, which
    /// Karpenter refuses. On UPDATE nothing is added, for a changed template replaces every node of
    /// the pool; a taint that was filled in is kept where a file without it is put again.
    ///
    /// GKE node classes can taint their GPU nodes by themselves (`autoGPUTaint`), which does not show
    /// in the NodePool: their pools are let be.
    ///
    /// # Why it hurts
    /// Pods without a GPU in mind land on GPU nodes, take the processors and memory that a model
    /// server needs, and keep an idle GPU node from ever being empty.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: karpenter.sh/v1
    /// kind: NodePool
    /// metadata: {name: inference}
    /// spec:
    ///   replicas: 2
    ///   template:
    ///     spec:
    ///       nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: inference}
    ///       requirements:
    ///       - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5]}
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: karpenter.sh/v1
    /// kind: NodePool
    /// metadata: {name: inference}
    /// spec:
    ///   replicas: 2
    ///   template:
    ///     spec:
    ///       nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: inference}
    ///       requirements:
    ///       - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5]}
    ///       taints:
    ///       - {key: nvidia.com/gpu, value: present, effect: NoSchedule}
    /// ```
    /// Pods that get their GPU by a DRA claim are given no toleration and must bring it.
    ///
    /// # Sources
    /// - aws/karpenter-provider-aws issue 8447: stray pods keep GPU nodes alive under WhenEmpty.
    /// - Kubernetes documentation, admission controllers, ExtendedResourceToleration.
    /// - karpenter.sh `pkg/apis/v1/nodeclaim_validation.go`, v1.14.1: duplicate taints.
    /// - cloudpilot-ai/karpenter-provider-gcp docs/gpu-nodes.md.
    pub static GPU_POOL_TAINT = Rule {
        id: "gpu-pool-taint",
        summary: "GPU nodes that any pod may land on",
        group: NodePools,
        kinds: &[&kinds::NODE_POOL],
        labels: &[],
        annotations: &[],
        level: Warn,
        fills: Some("`<resource>=present:NoSchedule` on CREATE"),
        params: NoParams,
        check: check,
        fill: fill,
    }
}

const EFFECT: &str = "NoSchedule";

/// Whether the pool's nodes go without a taint that keeps pods off.
fn is_open(judged: &Judged<'_>) -> bool {
    !judged.machines.taints_itself && !judged.pool.taints().any(|taint| taint.is_hard())
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let Some(judged) = gpu_pool(cx) else { return };
    if !is_open(judged) {
        return;
    }
    let catalog = &cx.policy.catalog().instances;
    let resources = judged.machines.resources(catalog);
    let mut yaml = String::from("spec:\n  template:\n    spec:\n      taints:");
    for resource in &resources {
        yaml.push_str("\n      - {key: ");
        yaml.push_str(resource);
        yaml.push_str(", value: present, effect: NoSchedule}");
    }
    if resources.len() > 1 {
        yaml.push_str("\n# only the one whose devices you mean");
    }
    let update = if cx.subject.operation == Operation::Update {
        "; adding one replaces the nodes"
    } else {
        ""
    };
    out.report(
        Finding::new(
            FieldPath::of(TAINTS),
            format!(
                "no NoSchedule taint: any pod may land on these GPU nodes, take what a model server needs and keep the node from ever being empty{update} (GPU pool: {})",
                judged.machines.evidence
            ),
        )
        .instead(yaml)
        .confidence(judged.confidence())
        .fingerprint("GPU nodes without a taint"),
    );
}

fn fill(cx: &Context<'_, NoParams>, edits: &mut Edits) {
    let Some(judged) = gpu_pool(cx) else { return };
    if !is_open(judged) || judged.pool.replicas().is_some() {
        return;
    }
    let Some(resource) = judged.machines.resource(&cx.policy.catalog().instances) else {
        return;
    };
    let twice = judged
        .pool
        .startup_taints()
        .any(|taint| taint.key == resource && taint.effect == EFFECT);
    let taint = json!({"key": resource, "value": "present", "effect": EFFECT});
    if !twice && (is_new(cx) || was_reset(cx, &taint)) {
        edits.append(
            FieldPath::of(TAINTS),
            taint,
            format!(
                "no taint keeps other pods off these GPU nodes; pods that ask for {resource} \
                 tolerate this one by themselves"
            ),
        );
    }
}

/// Whether this UPDATE takes away the very taint that was filled in and nothing else of the list,
/// as putting the file again does that the pool was created from.
fn was_reset(cx: &Context<'_, NoParams>, taint: &Value) -> bool {
    let Some(old) = cx.subject.old.as_deref() else {
        return false;
    };
    let list = |object: &Value| -> Vec<Value> {
        at(object, TAINTS)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let mut before = list(old);
    if before.pop().as_ref() != Some(taint) || before != list(&cx.subject.value) {
        return false;
    }
    // Not where the taint was the user's own: the document that was applied has it, or the list
    // that a server-side applier owns would have been empty without it.
    match provenance::last_applied(old) {
        Some(document) => !list(&document).contains(taint),
        None => !before.is_empty() || provenance::was_named(old, TAINTS) != Some(true),
    }
}
