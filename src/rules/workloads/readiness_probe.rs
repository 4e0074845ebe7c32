//! readiness-probe: see the declaration.

use serde_json::Value;

use crate::{
    declare_rule,
    finding::Finding,
    rules::{Context, Findings, NoParams, kinds},
    subject::workload::{Kind, Serving},
};

declare_rule! {
    /// # What it finds
    ///
    /// Model servers on accelerators with neither a readiness nor a startup probe.
    ///
    /// # Why it hurts
    ///
    /// The pod counts as Ready as soon as its process runs, minutes before the weights are loaded: a
    /// rollout ends the old pods by then, and requests go to servers that cannot answer.
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
    ///           lifecycle: { preStop: { sleep: { seconds: 15 } } }
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
    ///           readinessProbe: { httpGet: { path: /health, port: 8000 } }
    ///           startupProbe: { httpGet: { path: /health, port: 8000 }, failureThreshold: 60 }
    /// ```
    ///
    /// # Sources
    ///
    /// - Kubernetes, pod lifecycle: a container without a readiness probe is Ready when it runs.
    /// - llm-d, readiness probes of model servers.
    pub static READINESS_PROBE = Rule {
        id: "readiness-probe",
        summary: "A model server counts as Ready before its weights are loaded",
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
    let has = |probe: &str| container.value.get(probe).is_some_and(Value::is_object);
    // KServe and Dynamo put probes of their own where there are none.
    let brought = serving.set.merged || serving.workload.kind == Kind::InferenceService;
    if brought || has("readinessProbe") || has("startupProbe") {
        return;
    }
    let port = container
        .value
        .get("ports")
        .and_then(|ports| ports.get(0)?.get("containerPort")?.as_u64())
        .unwrap_or(8000);
    out.report(
        Finding::new(
            serving.server.path.clone().key("readinessProbe"),
            format!(
                "{} counts as Ready before its weights are loaded: a rollout ends the old pods, and \
                 requests go to a server that cannot answer yet.",
                serving.server.title()
            ),
        )
        .instead(format!(
            "readinessProbe:\n  httpGet:\n    path: /health\n    port: {port}\nstartupProbe:\n  \
             httpGet:\n    path: /health\n    port: {port}\n  periodSeconds: 10\n  \
             failureThreshold: 60\n"
        ))
        .confidence(serving.server.confidence)
        .fingerprint("readiness-probe"),
    );
}
