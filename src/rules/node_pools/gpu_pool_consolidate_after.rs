//! Idle GPU nodes given up early.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    SAFE, Span, after_is_silent, gpu_pool, gpu_pool_consolidation::GPU_POOL_CONSOLIDATION,
    policy_is_filled,
};
use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    policy::RuleLevel,
    rules::{Context, Edits, Findings, kinds},
    subject::{
        duration::Lapse,
        node_pool::{AFTER, Version},
    },
};

declare_rule! {
    /// # What it finds
    /// A NodePool that buys GPU nodes only and gives one up after less than an hour without work.
    /// Where nobody wrote a wait beside `WhenEmpty`, one hour is filled in.
    ///
    /// Static pools (`replicas`), `consolidateAfter: Never`, and budgets that always forbid both
    /// reasons are let be: the wait has no effect there.
    ///
    /// # Why it hurts
    /// The next replica waits for a GPU node to be bought, if there is one to be had, for an image of
    /// many gigabytes and for the weights. While a large image is pulled the node has no running pod
    /// and may be taken away again.
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
    ///   disruption:
    ///     consolidationPolicy: WhenEmpty
    ///     consolidateAfter: 30s
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
    ///   disruption:
    ///     consolidationPolicy: WhenEmpty
    ///     consolidateAfter: 1h
    /// ```
    ///
    /// # Sources
    /// - Amazon EKS Best Practices Guide, AI/ML compute: `consolidateAfter: 60m`.
    /// - aws/karpenter-provider-aws issues 7414 and 7356: nodes taken away during an image pull.
    /// - karpenter.sh `pkg/utils/disruption`, v1.14.1: the wait counts from the last change of pods
    ///   on the node.
    pub static GPU_POOL_CONSOLIDATE_AFTER = Rule {
        id: "gpu-pool-consolidate-after",
        summary: "A GPU node that is given up after less than an hour without work",
        group: NodePools,
        kinds: &[&kinds::NODE_POOL],
        labels: &[],
        annotations: &[],
        level: Warn,
        fills: Some("consolidateAfter: 1h"),
        params: Params,
        check: check,
        fill: fill,
    }
}

/// What may be set in the policy file.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Params {
    /// The shortest wait that is fine, and the one that is filled in.
    pub at_least: Span,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            at_least: Span::hours(1),
        }
    }
}

fn check(cx: &Context<'_, Params>, out: &mut Findings) {
    let Some(judged) = gpu_pool(cx) else { return };
    let nothing_goes = || {
        ["Empty", "Underutilized"]
            .iter()
            .all(|reason| judged.pool.always_forbids(reason))
    };
    if !judged.is_consolidated() || nothing_goes() {
        return;
    }
    let written = judged.pool.after();
    let after = match (judged.pool.consolidate_after(), judged.pool.version) {
        (Some(after), _) => after,
        // Not written, the default is 0s; in v1beta1 there is none beside a policy that evicts, and
        // that is another rule's.
        (None, Version::V1) if written.is_none() => Lapse::After(std::time::Duration::ZERO),
        (None, _) => return,
    };
    let Lapse::After(seconds) = after else { return };
    if !after.is_under(cx.params.at_least.0) {
        return;
    }
    let short_of = cx.params.at_least.0.saturating_sub(seconds).as_secs();
    let finding = Finding::new(
        FieldPath::of(AFTER),
        format!(
            "a GPU node goes after {after} without work; the next replica then waits for a new node, the image and the weights (GPU pool: {})",
            judged.machines.evidence
        ),
    )
    .instead(format!(
        "spec:\n  disruption:\n    consolidateAfter: {}",
        cx.params.at_least
    ))
    .confidence(judged.confidence())
    .fingerprint("gives idle GPU nodes up early")
    .severity(u32::try_from(short_of).unwrap_or(u32::MAX));
    out.report(match written {
        Some(written) => finding.value(written.clone()),
        None => finding,
    });
}

fn fill(cx: &Context<'_, Params>, edits: &mut Edits) {
    let Some(judged) = gpu_pool(cx) else { return };
    if !judged.is_consolidated() || !after_is_silent(cx, judged) {
        return;
    }
    // Beside a policy that evicts a longer wait mends nothing, and v1beta1 refuses it.
    let policy_rule = || {
        cx.policy
            .effective(&GPU_POOL_CONSOLIDATION, cx.subject, cx.facts)
    };
    let becomes_safe = policy_is_filled(cx, judged)
        && policy_rule().is_some_and(|rule| rule.level >= RuleLevel::Warn);
    if judged.policy() != SAFE && !becomes_safe {
        return;
    }
    if ["Empty", "Underutilized"]
        .iter()
        .all(|reason| judged.pool.always_forbids(reason))
    {
        return;
    }
    edits.set(
        FieldPath::of(AFTER),
        cx.params.at_least.to_string(),
        "nobody chose how long a GPU node stays without work, and the default gives it up at once",
    );
}
