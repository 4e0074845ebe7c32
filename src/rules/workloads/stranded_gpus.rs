//! stranded-gpus: see the declaration.

use serde_json::json;

use crate::{
    declare_rule,
    finding::{Confidence, Finding},
    rules::workloads::parallelism_fits_pod::{amount, resource_key},
    rules::{Context, Findings, NoParams, kinds},
    subject::workload::{Serving, Spread},
};

declare_rule! {
    /// # What it finds
    ///
    /// Model servers whose pod asks for more whole NVIDIA or AMD GPUs than the engine starts ranks.
    ///
    /// # Why it hurts
    ///
    /// The GPUs without a rank do nothing, and nobody else can have them.
    ///
    /// # Example
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: { name: llama, namespace: inference, labels: { kai.scheduler/queue: inference } }
    /// spec:
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-70B-Instruct, --tensor-parallel-size=4]
    ///           resources: { limits: { nvidia.com/gpu: 8 } }
    /// ```
    ///
    /// # Instead
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: { name: llama, namespace: inference, labels: { kai.scheduler/queue: inference } }
    /// spec:
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-70B-Instruct, --tensor-parallel-size=4]
    ///           resources: { limits: { nvidia.com/gpu: 4 } }
    /// ```
    ///
    /// # Sources
    ///
    /// - The engines' own defaults: one rank where nothing is said (vLLM `arg_utils.py`, SGLang
    ///   `server_args.py`).
    pub static STRANDED_GPUS = Rule {
        id: "stranded-gpus",
        summary: "Fewer ranks than GPUs: some of the pod's GPUs stay idle",
        group: Workloads,
        kinds: kinds::WORKLOADS,
        labels: &["gangplank.dev/model-server"],
        annotations: &[],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    cx.each_server(out, |serving, out| judge(cx, serving, out));
}

fn judge(cx: &Context<'_, NoParams>, serving: &Serving<'_>, out: &mut Findings) {
    let server = &serving.server;
    // Several servers may share the pod, and a group's ranks lie over all of its pods.
    if server.processes > 1 || !matches!(serving.spread, Spread::One | Spread::SinglePod) {
        return;
    }
    let accelerators = &serving.own;
    let container = server.path.clone().key("resources").to_string();
    let its_own = accelerators.path.to_string().starts_with(&container)
        || serving.set.template.is_asked_beside();
    if !its_own {
        return;
    }
    let (Some(ranks), Some(gpus)) = (server.parallelism.world.known(), accelerators.gpus.known())
    else {
        return;
    };
    if ranks >= gpus {
        return;
    }
    let path = accelerators.path.clone();
    let value = path.lookup(&cx.subject.value).cloned();
    let idle = gpus - ranks;
    let resource = resource_key(serving);
    let instead = json!({"resources": {"limits": {resource: amount(resource, ranks)}}});
    let finding = Finding::new(
        path,
        format!(
            "{} starts {} on {gpus} GPUs: {idle} of them {}.",
            server.title(),
            match ranks {
                1 => "one rank".to_owned(),
                _ => format!("{ranks} ranks ({})", server.parallelism.describe()),
            },
            match idle {
                1 => "stays idle, and nobody else can have it",
                _ => "stay idle, and nobody else can have them",
            }
        ),
    )
    .instead(serde_saphyr::to_string(&instead).unwrap_or_default())
    .confidence(if server.engine.is_some() {
        server.confidence
    } else {
        Confidence::Unknown
    })
    .fingerprint("stranded")
    .severity(u32::try_from(idle).unwrap_or(u32::MAX));
    out.report(Finding { value, ..finding });
}
