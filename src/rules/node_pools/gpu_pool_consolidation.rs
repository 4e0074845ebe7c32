//! Consolidation that evicts running pods.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Effect, Judged, SAFE, Span, after_is_silent, effect, gpu_pool,
    gpu_pool_consolidate_after::{self, GPU_POOL_CONSOLIDATE_AFTER},
    policy_is_filled,
};
use crate::{
    declare_rule,
    finding::{Confidence, FieldPath, Finding, Level},
    policy::RuleLevel,
    rules::{Context, Edits, Findings, kinds},
    subject::{
        duration::Lapse,
        node_pool::{AFTER, POLICY, Version},
    },
};

declare_rule! {
    /// # What it finds
    /// A NodePool that buys GPU nodes only, under a consolidation policy that evicts running pods:
    /// `WhenEmptyOrUnderutilized`, its v1beta1 name `WhenUnderutilized`, or `Balanced`. Whether the
    /// pool buys GPUs is judged from its requirements, template labels, limits and taints by
    /// Karpenter's own algebra; names say nothing.
    ///
    /// What counts is the effect. The policy is let be where `consolidateAfter: Never` switches
    /// consolidation off, where a budget of `"0"` without a schedule always forbids
    /// `Underutilized` disruption, and in static pools (`replicas`). A zero budget with a schedule
    /// protects at some hours only. A policy that is not known is warned about.
    ///
    /// Where nobody wrote a policy, Karpenter's default would evict: `WhenEmpty` is filled in, and
    /// a written policy is never changed.
    ///
    /// # Why it hurts
    /// Karpenter does not look at how busy a GPU is. It takes a node away when the requests of its
    /// pods fit elsewhere, or when a cheaper type would hold them, also under a GPU at full load;
    /// the model server on it drops its requests in flight and loads tens or hundreds of gigabytes
    /// of weights again.
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
    ///     consolidationPolicy: WhenEmptyOrUnderutilized
    ///     consolidateAfter: 5m
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
    /// Or `consolidateAfter: Never`, or a budget `{nodes: "0", reasons: [Underutilized]}`.
    /// `WhenEmpty` is no absolute promise: since v1.14.0 a node counts as empty when no pod on it
    /// costs anything to evict, so that a `pod-deletion-cost` of -134217728 or less leaves a running
    /// pod unprotected.
    ///
    /// # Sources
    /// - Amazon EKS Best Practices Guide, AI/ML compute: `WhenEmpty` with 60 minutes for jobs that
    ///   must not be interrupted, real-time inference among them; Karpenter may consolidate nodes
    ///   whose GPU is fully used.
    /// - karpenter.sh v1.14, Concepts, Disruption; `pkg/controllers/disruption/consolidation.go`
    ///   and `types.go`, v1.14.1; designs/balanced-consolidation.md.
    pub static GPU_POOL_CONSOLIDATION = Rule {
        id: "gpu-pool-consolidation",
        summary: "A consolidation policy that evicts running pods from GPU nodes",
        group: NodePools,
        kinds: &[&kinds::NODE_POOL],
        labels: &[],
        annotations: &[],
        level: Deny,
        fills: Some("consolidationPolicy: WhenEmpty"),
        params: Params,
        check: check,
        fill: fill,
    }
}

/// What may be set in the policy file.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Params {
    /// What becomes of `Balanced`, which evicts running pods where it saves enough.
    pub balanced: Balanced,
}

/// What becomes of the policy `Balanced`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Balanced {
    /// The rule's level holds.
    #[default]
    Deny,
    /// A warning.
    Warn,
    /// Nothing is said.
    Allow,
}

fn check(cx: &Context<'_, Params>, out: &mut Findings) {
    let Some(judged) = gpu_pool(cx) else { return };
    let effect = effect(judged);
    let policy = judged.policy();
    let found = |message: String| {
        let finding = Finding::new(FieldPath::of(POLICY), message)
            .instead(instead(judged))
            .confidence(judged.confidence())
            .fingerprint("evicts running pods of a GPU pool");
        match judged.pool.policy() {
            Some(written) => finding.value(written),
            None => finding,
        }
    };
    let subject = match judged.pool.policy() {
        Some(_) => policy.to_owned(),
        None => format!("{policy}, the default,"),
    };
    let why = format!(
        "however busy the GPU: the model server drops its requests and loads its weights again \
         (GPU pool: {})",
        judged.machines.evidence
    );
    match effect {
        Effect::Stay => {}
        Effect::Evicted => out.report(
            found(format!(
                "{subject} evicts running pods from GPU nodes to save a node, {why}"
            ))
            .severity(2),
        ),
        Effect::EvictedWhenBalanced => {
            let finding = found(format!(
                "{subject} evicts running pods from GPU nodes where that saves enough, {why}"
            ))
            .severity(1);
            match cx.params.balanced {
                Balanced::Deny => out.report(finding),
                Balanced::Warn => out.report_at(Level::Warn, finding),
                Balanced::Allow => {}
            }
        }
        Effect::Unknown => out.report_at(
            Level::Warn,
            found(format!(
                "{policy} is not a policy that is known here; it may evict running pods from GPU \
                 nodes, {why}"
            ))
            .confidence(Confidence::Unknown),
        ),
    }
}

/// The YAML to write: the safe policy with the wait the object has if that is long enough, then the
/// other ways out.
fn instead(judged: &Judged<'_>) -> String {
    let least = Span::hours(1);
    let after = match judged.pool.consolidate_after() {
        Some(written) if !written.is_under(least.0) => written.to_string(),
        Some(Lapse::Never | Lapse::After(_)) | None => least.to_string(),
    };
    let budget = match judged.pool.version {
        Version::V1 => "{nodes: \"0\", reasons: [Underutilized]}",
        // Budgets had no reasons yet.
        Version::V1Beta1 => "{nodes: \"0\"}",
    };
    let mut yaml = String::new();
    let _ = write!(
        yaml,
        "spec:\n  disruption:\n    consolidationPolicy: {SAFE}\n    consolidateAfter: {after}\n\
         # or keep the policy, with one of these under disruption:\n\
         #   consolidateAfter: Never\n\
         #   budgets: [{budget}]"
    );
    yaml
}

fn fill(cx: &Context<'_, Params>, edits: &mut Edits) {
    let Some(judged) = gpu_pool(cx) else { return };
    if !policy_is_filled(cx, judged) {
        return;
    }
    edits.set(
        FieldPath::of(POLICY),
        SAFE,
        format!(
            "nobody chose a consolidation policy, and {} would evict running pods from GPU nodes",
            judged.pool.default_policy()
        ),
    );
    // The CRD wants both fields or none (v1 up to v1.14.1), and WhenEmpty never without a wait
    // (v1beta1). Where the rule for the wait fills it, it says so itself.
    let other = cx
        .policy
        .effective(&GPU_POOL_CONSOLIDATE_AFTER, cx.subject, cx.facts);
    let filled_there = other.is_some_and(|other| other.level >= RuleLevel::Warn);
    if !filled_there && judged.pool.after().is_none() && after_is_silent(cx, judged) {
        edits.set(
            FieldPath::of(AFTER),
            gpu_pool_consolidate_after::Params::default()
                .at_least
                .to_string(),
            format!("{SAFE} is valid only together with a wait"),
        );
    }
}
