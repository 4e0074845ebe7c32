//! gpu-utilization-signal

use crate::{
    catalog::metrics::Meaning,
    declare_rule,
    rules::{Context, Findings, NoParams, kinds::AUTOSCALERS},
    signal::{self, Class, Signal},
    subject::{ROLE_LABEL, hpa::METRICS_ANNOTATION},
};

declare_rule! {
    /// # What it finds
    /// An autoscaler that scales on how busy an accelerator is: duty cycle, SM, tensor or engine
    /// activity, occupancy, and what follows from them, power, temperature and clocks. The metric is
    /// known under the names of every exporter and cloud in `policies/catalog/metrics.yaml`, in an
    /// adapter's spelling, renamed by a recording rule as long as the name still says so, and inside
    /// the queries and metadata of KEDA's triggers. Of several metrics each one is judged: the
    /// largest answer wins.
    ///
    /// It warns where a query only counts the series, where a scaling formula leaves the trigger
    /// out, and where a metric tells a device's faults, size or links.
    ///
    /// # Why it hurts
    /// GPU utilization is the share of time in which any kernel ran. A server that decodes one
    /// request reads as busy as one that turns requests away, so replicas follow neither the queue
    /// nor the latency that users feel.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: autoscaling/v2
    /// kind: HorizontalPodAutoscaler
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: chat}
    ///   maxReplicas: 8
    ///   metrics:
    ///   - type: Pods
    ///     pods:
    ///       metric: {name: DCGM_FI_DEV_GPU_UTIL}
    ///       target: {type: AverageValue, averageValue: "70"}
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: autoscaling/v2
    /// kind: HorizontalPodAutoscaler
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: chat}
    ///   maxReplicas: 8
    ///   metrics:
    ///   - type: Pods
    ///     pods:
    ///       metric: {name: "vllm:num_requests_waiting"}
    ///       target: {type: AverageValue, averageValue: "5"}
    /// ```
    ///
    /// # Sources
    /// - Google Cloud, best practices for autoscaling LLM inference on GKE: utilization measures the
    ///   duty cycle, not the work done
    /// - NVIDIA/dcgm-exporter etc/default-counters.csv
    pub static GPU_UTILIZATION_SIGNAL = Rule {
        id: "gpu-utilization-signal",
        summary: "An autoscaler scales on how busy the GPU is",
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
    let wanted = |class| {
        matches!(
            class,
            Class::Utilization | Class::PowerThermal | Class::DeviceOther
        )
    };
    signal::report(cx, out, wanted, why);
}

fn why(signal: &Signal) -> &'static str {
    match signal.meaning {
        Some(Meaning::PowerThermal) => {
            "a GPU's power, temperature and clocks follow its duty cycle, not the requests that \
             wait for it"
        }
        Some(Meaning::Health) => {
            "a device's faults and settings do not follow demand, so replicas would not either"
        }
        Some(Meaning::Capacity) => {
            "the size of a device or of its limits does not change with demand, so replicas would \
             not either"
        }
        Some(Meaning::Interconnect) => {
            "traffic between devices follows the model and its parallelism, not the requests that \
             wait"
        }
        _ => {
            "it is the share of time in which the GPU ran anything at all, as high for one request \
             as for a full batch, so replicas follow neither the queue nor latency"
        }
    }
}
