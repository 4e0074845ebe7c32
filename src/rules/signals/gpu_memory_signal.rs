//! gpu-memory-signal

use crate::{
    catalog::metrics::Meaning,
    declare_rule,
    rules::{Context, Findings, NoParams, kinds::AUTOSCALERS},
    signal::{self, Class, Signal},
    subject::{ROLE_LABEL, hpa::METRICS_ANNOTATION},
};

declare_rule! {
    /// # What it finds
    /// An autoscaler that scales on the memory of an accelerator: used, free or reserved, as bytes
    /// or as a share, or on its bandwidth (`DCGM_FI_PROF_DRAM_ACTIVE`, `DCGM_FI_DEV_MEM_COPY_UTIL`),
    /// under any name and in any query, as gpu-utilization-signal does for utilization.
    ///
    /// The use of a KV cache is not GPU memory, whatever its name says: `vllm:gpu_cache_usage_perc`
    /// is a good signal and passes, as do queue metrics with "gpu" in their names.
    ///
    /// # Why it hurts
    /// Engines take the memory for weights and KV cache when they start and keep it. What is used
    /// stands near its limit whatever the load, so the autoscaler either never moves or stays at its
    /// maximum and pays for idle GPUs.
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
    ///       query: avg(DCGM_FI_DEV_FB_USED{namespace="inference"})
    ///       threshold: "60000"
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
    ///       query: avg(vllm:kv_cache_usage_perc{namespace="inference"})
    ///       threshold: "0.8"
    /// ```
    ///
    /// # Sources
    /// - Google Cloud, best practices for autoscaling LLM inference on GKE: memory only scales up on
    ///   servers that allocate it in advance
    /// - vllm-project/vllm docs/design/metrics.md
    pub static GPU_MEMORY_SIGNAL = Rule {
        id: "gpu-memory-signal",
        summary: "An autoscaler scales on GPU memory",
        group: Signals,
        kinds: AUTOSCALERS,
        labels: &[ROLE_LABEL],
        annotations: &[METRICS_ANNOTATION],
        level: Deny,
        fills: None,
        params: NoParams,
        check: check,
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    signal::report(cx, out, |class| class == Class::Memory, why);
}

fn why(signal: &Signal) -> &'static str {
    match signal.meaning {
        Some(Meaning::Bandwidth) => {
            "how much a GPU's memory is read and written follows the batch that runs, not the \
             requests that wait for it"
        }
        _ => {
            "engines take their GPU memory at start and keep it, so it stands near its limit \
             whatever the load, and replicas never move or stay at the maximum"
        }
    }
}
