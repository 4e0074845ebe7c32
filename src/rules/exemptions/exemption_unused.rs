//! Exemptions from what is not wrong.

use super::sound;
use crate::{
    declare_rule,
    finding::Finding,
    rules::{Context, Findings, NoParams, kinds},
};

declare_rule! {
    /// # What it finds
    /// An annotation `exempt.gangplank.dev/<rule-id>` on an object in which that rule finds nothing:
    /// it was mended, the rule is off, or does not speak of such objects. What the rule cannot know at
    /// the moment, such as a target that is not there yet, counts as nothing found.
    ///
    /// # Why it hurts
    /// Nothing is wrong yet. But the next mistake of that kind will be exempt without anybody having
    /// asked for it, and whoever reads the object takes it for broken.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: autoscaling/v2
    /// kind: HorizontalPodAutoscaler
    /// metadata:
    ///   name: llm
    ///   annotations:
    ///     exempt.gangplank.dev/gpu-utilization-signal: "until=2027-01-31; owner=team-llm; reason=load test"
    /// spec:
    ///   scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: llm}
    ///   maxReplicas: 4
    ///   metrics:
    ///   - type: Pods
    ///     pods:
    ///       metric: {name: "vllm:num_requests_waiting"}
    ///       target: {type: AverageValue, averageValue: "5"}
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: autoscaling/v2
    /// kind: HorizontalPodAutoscaler
    /// metadata: {name: llm}
    /// spec:
    ///   scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: llm}
    ///   maxReplicas: 4
    ///   metrics:
    ///   - type: Pods
    ///     pods:
    ///       metric: {name: "vllm:num_requests_waiting"}
    ///       target: {type: AverageValue, averageValue: "5"}
    /// ```
    ///
    /// # Sources
    /// - Gangplank's own form.
    pub static EXEMPTION_UNUSED = Rule {
        id: "exemption-unused",
        summary: "An exemption from a rule that finds nothing",
        group: Exemptions,
        kinds: kinds::ALL,
        labels: &[],
        annotations: &[],
        level: Audit,
        fills: None,
        params: NoParams,
        check: check,
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    for (annotation, rule, terms) in sound(cx) {
        if terms.is_over(cx.now) || cx.memo.fired(rule.id) != Some(false) {
            continue;
        }
        let (id, kind) = (rule.id, &cx.subject.kind);
        let message = if rule.covers(cx.subject.group(), kind) {
            format!("{id} finds nothing here: the exemption can go")
        } else {
            format!("{id} does not speak of a {kind}: the exemption can go")
        };
        out.report(
            Finding::new(annotation.path(), message)
                .value(annotation.value.clone())
                .fingerprint(format!("{id}: {}", annotation.value)),
        );
    }
}
