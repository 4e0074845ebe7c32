//! drain-hook: see the declaration.

use serde_json::Value;

use crate::{
    declare_rule,
    finding::Finding,
    rules::{Context, Findings, NoParams, kinds},
    subject::{at, workload::Serving},
};

declare_rule! {
    /// # What it finds
    ///
    /// Model servers on accelerators without a preStop hook.
    ///
    /// # Why it hurts
    ///
    /// A pod that ends and the Services and gateways that send to it learn of it at the same time.
    /// Without a pause before SIGTERM, requests still arrive at a server that no longer takes any,
    /// on every rollout, drain and scale-down.
    ///
    /// # Example
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: { name: llama, namespace: inference }
    /// spec:
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-8B-Instruct]
    ///           resources: { limits: { nvidia.com/gpu: 1 } }
    /// ```
    ///
    /// # Instead
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: { name: llama, namespace: inference }
    /// spec:
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-8B-Instruct]
    ///           resources: { limits: { nvidia.com/gpu: 1 } }
    ///           lifecycle: { preStop: { sleep: { seconds: 15 } } }
    /// ```
    ///
    /// # Sources
    ///
    /// - Kubernetes, container lifecycle hooks (`sleep` since 1.30); KServe pull requests 5485 and
    ///   5496 (15 s); the production stack's charts (30 s); gateway-api-inference-extension issue 549.
    pub static DRAIN_HOOK = Rule {
        id: "drain-hook",
        summary: "A model server without a pause before it ends: requests arrive at a closed door",
        group: Workloads,
        kinds: kinds::LONG_RUNNING,
        labels: &["gangplank.dev/model-server"],
        annotations: &[],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    cx.each_server(out, judge);
}

fn judge(serving: &Serving<'_>, out: &mut Findings) {
    let container = &serving.server.container;
    let hook = at(container.value, &["lifecycle", "preStop"]);
    // What a controller merges these pods with may bring a hook.
    if hook.is_some_and(Value::is_object) || serving.set.merged {
        return;
    }
    out.report(
        Finding::new(
            serving.server.path.clone().keys(&["lifecycle", "preStop"]),
            format!(
                "{} gets SIGTERM at once when its pod ends, while Services still send to it: those \
                 requests fail on every rollout and drain.",
                serving.server.title()
            ),
        )
        .instead("lifecycle:\n  preStop:\n    sleep:\n      seconds: 15\n")
        .confidence(serving.server.confidence)
        .fingerprint("drain-hook"),
    );
}
