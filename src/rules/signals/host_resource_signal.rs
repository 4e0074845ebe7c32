//! host-resource-signal

use std::collections::BTreeMap;

use super::{Target, is_kedas};
use crate::{
    declare_rule,
    finding::{FieldPath, Finding, Level},
    rules::{
        Context, Findings, NoParams,
        kinds::{HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT},
    },
    signal::{Advice, Class, Doubt, Shape, Source},
    subject::{
        ROLE_LABEL, Subject,
        hpa::{self, METRICS_ANNOTATION, SourceType},
        scaled_object,
    },
};

declare_rule! {
    /// # What it finds
    /// An autoscaler that scales a model server on the CPU or memory of its host: resource metrics
    /// of an HPA, KEDA's `cpu` and `memory` triggers, queries of container or node figures, and an
    /// HPA without metrics, which the API server takes for 80 % of the CPU. It is denied where
    /// nothing else is scaled on, and warned about beside other signals.
    ///
    /// It speaks only where the target is known to serve a model on accelerators: in the same files,
    /// or in the cluster that `serve` watches. A router, a tokenizer or a client of GPUs may well
    /// scale on CPU. In the HPA that KEDA makes of a ScaledObject it only warns.
    ///
    /// # Why it hurts
    /// A model server makes its tokens on the GPU. Its CPU spins or idles much the same with one
    /// request and with a hundred waiting, and its memory holds the weights, which never shrink:
    /// replicas follow neither the queue nor the latency that users feel.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   selector: {matchLabels: {app: chat}}
    ///   template:
    ///     metadata: {labels: {app: chat}}
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///       - name: vllm
    ///         image: vllm/vllm-openai:v0.11.0
    ///         resources: {limits: {nvidia.com/gpu: 1}}
    /// ---
    /// apiVersion: autoscaling/v2
    /// kind: HorizontalPodAutoscaler
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: chat}
    ///   maxReplicas: 8
    ///   metrics:
    ///   - type: Resource
    ///     resource:
    ///       name: cpu
    ///       target: {type: Utilization, averageUtilization: 70}
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   selector: {matchLabels: {app: chat}}
    ///   template:
    ///     metadata: {labels: {app: chat}}
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///       - name: vllm
    ///         image: vllm/vllm-openai:v0.11.0
    ///         resources: {limits: {nvidia.com/gpu: 1}}
    /// ---
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
    /// - Google Cloud, best practices for autoscaling LLM inference on GKE: CPU and memory are not
    ///   to be the only indicators
    /// - kubernetes/kubernetes pkg/apis/autoscaling/v2/defaults.go (an HPA without metrics)
    pub static HOST_RESOURCE_SIGNAL = Rule {
        id: "host-resource-signal",
        summary: "A model server on GPUs is scaled on CPU or memory of the host",
        group: Signals,
        kinds: &[&HORIZONTAL_POD_AUTOSCALER, &SCALED_OBJECT],
        labels: &[ROLE_LABEL],
        annotations: &[METRICS_ANNOTATION],
        level: Deny,
        fills: None,
        params: NoParams,
        check: check,
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let Some(target) = Target::of(cx) else { return };
    let Some(served) = target.served() else {
        return;
    };
    let catalog = cx.policy.catalog().metrics();
    let sources = cx.sources();
    let advice = Advice::new(catalog, cx.facts, cx.subject, sources);
    let only = !has_other(cx.subject, sources);
    let report = |out: &mut Findings, finding: Finding| {
        if only && !is_kedas(cx) {
            out.report(finding.severity(2));
        } else {
            out.report_at(Level::Warn, finding.severity(1));
        }
    };
    let named = &target.named;
    if cx.subject.kind == "HorizontalPodAutoscaler" && hpa::is_silent(cx.subject) {
        let path = FieldPath::of(&["spec", "metrics"]);
        let silence = Source {
            path: path.clone(),
            value: "cpu".to_owned(),
            signals: Vec::new(),
            note: None,
            shape: Shape::Metric(SourceType::Resource),
        };
        let message = format!(
            "an HPA without metrics scales on 80 % of the host's CPU, but {named} serves {served}: \
             tokens are made on the GPU, and the CPU hardly moves while requests pile up. {}",
            advice.remedy()
        );
        let instead = format!("metrics:\n{}", advice.instead(&silence));
        report(
            out,
            Finding::new(path, message)
                .instead(instead)
                .fingerprint("Resource:cpu".to_owned()),
        );
        return;
    }
    for source in sources.iter().filter(|source| is_host(source)) {
        let Some(signal) = source.signals.first() else {
            continue;
        };
        let (what, why) = match signal.name.as_str() {
            "cpu" => (
                "the host's CPU",
                "the CPU hardly moves while requests pile up",
            ),
            "memory" => (
                "the host's memory",
                "host memory, which is not the GPU's, hardly moves while requests pile up",
            ),
            name => (name, "the host hardly moves while requests pile up"),
        };
        let how = if only { "only" } else { "also" };
        let message = format!(
            "{how} {what} scales {named}, which serves {served}: tokens are made on the GPU, and \
             {why}. {}",
            advice.remedy()
        );
        report(
            out,
            Finding::new(source.path.clone(), message)
                .value(source.value.as_str())
                .instead(advice.instead(source))
                .fingerprint(format!("{}:{}", source.scope(), signal.identity)),
        );
    }
}

/// Whether a source reads nothing but the host.
fn is_host(source: &Source) -> bool {
    !source.signals.is_empty()
        && source
            .signals
            .iter()
            .all(|signal| signal.class == Class::Host && !signal.doubt.is_some_and(Doubt::spares))
}

/// Whether something else than the host has a say, queues and clocks included.
fn has_other(subject: &Subject, sources: &[Source]) -> bool {
    if subject.kind == "HorizontalPodAutoscaler" {
        let hosts = sources.iter().filter(|source| is_host(source)).count();
        return hpa::metrics(subject).len() > hosts;
    }
    // The triggers that read something, and whether each reads of the host only.
    let mut read: BTreeMap<&FieldPath, bool> = BTreeMap::new();
    for source in sources {
        if let Shape::Trigger(trigger) = &source.shape {
            *read.entry(&trigger.path).or_insert(true) &= is_host(source);
        }
    }
    scaled_object::triggers(subject)
        .iter()
        .filter(|trigger| !trigger.inert)
        .any(|trigger| read.get(&trigger.path) != Some(&true))
}
