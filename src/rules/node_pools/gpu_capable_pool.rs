//! General pools that may buy GPU nodes.

use super::in_state;
use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    rules::{Context, Findings, NoParams, kinds},
    subject::{Operation, gpu::State, node_pool::REQUIREMENTS},
};

declare_rule! {
    /// # What it finds
    /// A new NodePool that may buy GPU nodes beside others, without saying that it is meant to: no
    /// requirement that decides, or an explicit mix. Such a pool is never denied and never filled;
    /// consolidating its other nodes is what it is for.
    ///
    /// # Why it hurts
    /// A pod that asks for a GPU may land here instead of in the GPU pool, on a node that is
    /// consolidated, expires and is shared like any other. With `minValues`, or where nothing else
    /// is to be had, GPU nodes may even be bought for pods that need none.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: karpenter.sh/v1
    /// kind: NodePool
    /// metadata: {name: general}
    /// spec:
    ///   template:
    ///     spec:
    ///       nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: general}
    ///       requirements:
    ///       - {key: kubernetes.io/arch, operator: In, values: [amd64]}
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: karpenter.sh/v1
    /// kind: NodePool
    /// metadata: {name: general}
    /// spec:
    ///   template:
    ///     spec:
    ///       nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: general}
    ///       requirements:
    ///       - {key: kubernetes.io/arch, operator: In, values: [amd64]}
    ///       - {key: karpenter.k8s.aws/instance-gpu-count, operator: DoesNotExist}
    ///       - {key: karpenter.k8s.aws/instance-accelerator-count, operator: DoesNotExist}
    /// ```
    ///
    /// # Sources
    /// - aws/karpenter-provider-aws `pkg/providers/instance/filter/filter.go`,
    ///   ExoticInstanceTypeFilter; issue 8447.
    pub static GPU_CAPABLE_POOL = Rule {
        id: "gpu-capable-pool",
        summary: "A general pool that may buy GPU nodes without saying so",
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
    // Said once: nothing is to be done about it in a hurry.
    if cx.subject.operation == Operation::Update {
        return;
    }
    let Some(judged) = in_state(cx, State::GpuCapable) else {
        return;
    };
    let rows = match judged.pool.node_class_group() {
        Some("karpenter.azure.com") => {
            "- {key: karpenter.azure.com/sku-gpu-count, operator: Lt, values: [\"1\"]}".to_owned()
        }
        Some("karpenter.k8s.gcp") => {
            "- {key: karpenter.k8s.gcp/instance-gpu-count, operator: DoesNotExist}".to_owned()
        }
        Some("karpenter.k8s.alibabacloud") => {
            "- {key: karpenter.k8s.alibabacloud/instance-gpu-count, operator: DoesNotExist}"
                .to_owned()
        }
        Some("oci.oraclecloud.com") => {
            "- {key: oci.oraclecloud.com/gpu-shape, operator: DoesNotExist}".to_owned()
        }
        Some("karpenter.k8s.oracle") => {
            "- {key: karpenter.k8s.oracle/instance-gpu, operator: DoesNotExist}".to_owned()
        }
        Some(domain @ ("karpenter.k8s.aws" | "eks.amazonaws.com")) => format!(
            "- {{key: {domain}/instance-gpu-count, operator: DoesNotExist}}\n      \
             - {{key: {domain}/instance-accelerator-count, operator: DoesNotExist}}"
        ),
        _ => "- {key: node.kubernetes.io/instance-type, operator: In, values: [<types without \
              GPUs>]}"
            .to_owned(),
    };
    out.report(
        Finding::new(
            FieldPath::of(REQUIREMENTS),
            format!(
                "this pool may buy GPU nodes beside others ({}); a model server that lands on one \
                 is consolidated and expires like any pod. Leave GPUs out here, or split the pool",
                judged.machines.evidence
            ),
        )
        .instead(format!(
            "spec:\n  template:\n    spec:\n      requirements:\n      {rows}"
        ))
        .confidence(judged.confidence())
        .fingerprint("may buy GPU nodes"),
    );
}
