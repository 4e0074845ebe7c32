//! Exemptions that have ended.

use super::sound;
use crate::{
    declare_rule,
    finding::Finding,
    rules::{Context, Findings, NoParams, kinds},
};

declare_rule! {
    /// # What it finds
    /// An annotation `exempt.gangplank.dev/<rule-id>` whose end is over.
    ///
    /// # Why it hurts
    /// The object lives on as it is, but its next change is judged by the rule again, and what was
    /// exempt is denied then, most likely in the middle of a rollout.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: karpenter.sh/v1
    /// kind: NodePool
    /// metadata:
    ///   name: inference
    ///   annotations:
    ///     exempt.gangplank.dev/gpu-pool-limits: "until=2026-01-31; owner=team-llm; reason=load test"
    /// spec:
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
    ///   template:
    ///     spec:
    ///       nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: inference}
    ///       requirements:
    ///       - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5]}
    ///   limits: {nvidia.com/gpu: 16}
    /// ```
    /// Mend what it was for and remove the annotation in the same change, or have its end moved by
    /// somebody who may exempt.
    ///
    /// # Sources
    /// - Gangplank's own form.
    pub static EXEMPTION_EXPIRED = Rule {
        id: "exemption-expired",
        summary: "An exemption that has ended",
        group: Exemptions,
        kinds: kinds::ALL,
        labels: &[],
        annotations: &[],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check,
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    for (annotation, rule, terms) in sound(cx) {
        if !terms.is_over(cx.now) {
            continue;
        }
        let (until, owner, id) = (terms.until, &terms.owner, rule.id);
        let message = if cx.memo.fired(id) == Some(false) {
            format!("ended with {until} and {id} finds nothing any more: remove it (owner {owner})")
        } else {
            format!(
                "ended with {until}: {id} holds again, and the next change of what it finds is judged by it (owner {owner})"
            )
        };
        out.report(
            Finding::new(annotation.path(), message)
                .value(annotation.value.clone())
                .fingerprint(format!("{id}: {}", annotation.value)),
        );
    }
}
