//! opaque-signal

use crate::{
    declare_rule,
    rules::{Context, Findings, NoParams, kinds::AUTOSCALERS},
    signal::{self, Class, Signal},
    subject::{ROLE_LABEL, hpa::METRICS_ANNOTATION},
};

declare_rule! {
    /// # What it finds
    /// A metric source of which it cannot be told what it reads: a template's placeholder that
    /// nobody filled, a query that selects by labels alone (`{job="dcgm-exporter"}`) or by a pattern
    /// that matches device metrics and serving metrics alike, a metric measured on a device
    /// exporter's Service, a query that is kept in a Secret or a saved search, a name that says
    /// "gpu" and nothing else.
    ///
    /// # Why it hurts
    /// It may be GPU utilization or memory; nobody who reads the manifest can tell either. If it is
    /// a metric of the site's own, the policy's `catalog.metrics` can say what it means.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: keda.sh/v1alpha1
    /// kind: ScaledObject
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   scaleTargetRef: {name: chat}
    ///   maxReplicaCount: 8
    ///   triggers:
    ///   - type: prometheus
    ///     metadata:
    ///       serverAddress: http://prometheus.monitoring.svc:9090
    ///       query: sum({job="dcgm-exporter"})
    ///       threshold: "70"
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: keda.sh/v1alpha1
    /// kind: ScaledObject
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   scaleTargetRef: {name: chat}
    ///   maxReplicaCount: 8
    ///   triggers:
    ///   - type: prometheus
    ///     metadata:
    ///       serverAddress: http://prometheus.monitoring.svc:9090
    ///       query: sum(vllm:num_requests_waiting{namespace="inference"})
    ///       threshold: "5"
    /// ```
    ///
    /// # Sources
    /// - kedacore/keda pkg/scalers (where each trigger keeps its query)
    pub static OPAQUE_SIGNAL = Rule {
        id: "opaque-signal",
        summary: "What an autoscaler scales on cannot be told",
        group: Signals,
        kinds: AUTOSCALERS,
        labels: &[ROLE_LABEL],
        annotations: &[METRICS_ANNOTATION],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check,
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    signal::report(cx, out, |class| class == Class::Opaque, why);
}

fn why(_: &Signal) -> &'static str {
    "it may read a device metric; write the metric's name, or tell its meaning in the policy's \
     catalog.metrics"
}
