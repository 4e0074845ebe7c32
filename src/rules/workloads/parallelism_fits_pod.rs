//! parallelism-fits-pod: see the declaration.

use serde_json::{Value, json};

use crate::{
    declare_rule,
    finding::{Finding, Segment},
    rules::{Context, Findings, NoParams, kinds},
    subject::{
        pod_template::Count,
        workload::{Kind, Serving, Spread},
    },
};

declare_rule! {
    /// # What it finds
    ///
    /// Model servers that start more ranks than their pods have GPUs, with nothing that would join
    /// further pods to the instance. Only whole NVIDIA and AMD GPUs are counted; MIG slices, claims,
    /// shares and other accelerators are left alone, as is everything that cannot be read.
    ///
    /// # Why it hurts
    ///
    /// The engine cannot start: it finds 7 GPUs for 8 ranks, exits, and restarts for ever, holding
    /// the 7.
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
    ///           args: [--model=meta-llama/Llama-3.1-70B-Instruct, --tensor-parallel-size=8]
    ///           resources: { limits: { nvidia.com/gpu: 7 } }
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
    ///           args: [--model=meta-llama/Llama-3.1-70B-Instruct, --tensor-parallel-size=8]
    ///           resources: { limits: { nvidia.com/gpu: 8 } }
    /// ```
    ///
    /// # Sources
    ///
    /// - vLLM: the executor no longer falls back to Ray where the GPUs do not suffice (pull request
    ///   25775; the error text of 30140).
    /// - SGLang `server_args.py`, TensorRT-LLM `serve.py`, text-generation-inference
    ///   `launcher/src/main.rs`.
    pub static PARALLELISM_FITS_POD = Rule {
        id: "parallelism-fits-pod",
        summary: "More ranks than the pod has GPUs: the engine cannot start",
        group: Workloads,
        kinds: kinds::WORKLOADS,
        labels: &["gangplank.dev/model-server"],
        annotations: &[],
        level: Deny,
        fills: None,
        params: NoParams,
        check: check
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    cx.each_server(out, |serving, out| judge(cx, serving, out));
}

fn judge(cx: &Context<'_, NoParams>, serving: &Serving<'_>, out: &mut Findings) {
    let Spread::Misfit { ranks, gpus } = serving.spread else {
        return;
    };
    let accelerators = &serving.own;
    let parallelism = &serving.server.parallelism;
    let title = serving.server.title();
    let described = parallelism.describe();
    let size = serving.workload.size();
    let needed = accelerators
        .gpus
        .known()
        .map_or(size, |each| ranks.div_ceil(each.max(1)));
    let resource = resource_key(serving);
    let (message, instead) = if serving.joins_pods() {
        (
            format!(
                "{title}'s {described} starts {ranks} ranks, and a group of {size} pods has {gpus} GPUs \
                 for it: it cannot start, and restarts for ever holding them."
            ),
            match serving.workload.kind {
                Kind::LeaderWorkerSet => {
                    json!({"spec": {"leaderWorkerTemplate": {"size": needed}}})
                }
                Kind::DynamoGraph => json!({"multinode": {"nodeCount": needed}}),
                Kind::LlmInferenceService => json!({"parallelism": {"pipeline": needed}}),
                _ => {
                    json!({"resources": {"limits": {resource: amount(resource, ranks.div_ceil(size.max(1)))}}})
                }
            },
        )
    } else {
        (
            format!(
                "{title}'s {described} starts {ranks} ranks, and {} and nothing that joins it to other \
                 pods: it cannot start, and restarts for ever holding them.",
                holding(serving, gpus)
            ),
            match serving.workload.kind {
                Kind::DynamoGraph if ranks.is_multiple_of(gpus.max(1)) => {
                    json!({"multinode": {"nodeCount": ranks / gpus.max(1)}})
                }
                _ => json!({"resources": {"limits": {resource: amount(resource, ranks)}}}),
            },
        )
    };
    let path = accelerators.path.clone();
    let value: Option<Value> = path.lookup(&cx.subject.value).cloned();
    let alternative = match parallelism.tensor.count.known() {
        Some(tensor) if ranks == tensor && fitting(gpus) > 1 => {
            let fitting = fitting(gpus);
            if serving.workload.stated.is_some() {
                format!("# or {fitting} ranks, as parallelism.tensor: {fitting}\n")
            } else {
                format!("# or {fitting} ranks, as --tensor-parallel-size={fitting}\n")
            }
        }
        _ => String::new(),
    };
    let yaml = serde_saphyr::to_string(&instead).unwrap_or_default();
    let finding = Finding::new(path, message)
        .instead(format!("{yaml}{alternative}"))
        .confidence(serving.server.confidence)
        .fingerprint(format!("misfit:{ranks}"))
        .severity(u32::try_from(ranks.saturating_sub(gpus)).unwrap_or(u32::MAX));
    out.report(Finding { value, ..finding });
}

/// The GPUs that the engine gets, in words: a container sees its own and none of its neighbours'.
fn holding(serving: &Serving<'_>, gpus: u64) -> String {
    let noun = if gpus == 1 { "GPU" } else { "GPUs" };
    match serving.accelerators.gpus {
        Count::Known(pod) if pod != gpus => {
            format!("its container has {gpus} of the pod's {pod} GPUs")
        }
        _ => format!("the pod has {gpus} {noun}"),
    }
}

/// What the resource is called where it is asked for: Dynamo's services have a member of their own.
pub(super) fn resource_key<'a>(serving: &'a Serving<'_>) -> &'a str {
    match serving.own.path.segments().last() {
        Some(Segment::Key(key)) if key == DYNAMO_GPUS => DYNAMO_GPUS,
        _ => &serving.own.resource,
    }
}

const DYNAMO_GPUS: &str = "gpu";

/// An amount as that member takes it.
pub(super) fn amount(resource: &str, number: u64) -> Value {
    if resource == DYNAMO_GPUS {
        Value::from(number.to_string())
    } else {
        Value::from(number)
    }
}

/// The greatest power of two of ranks that these GPUs can take: engines divide attention heads.
const fn fitting(gpus: u64) -> u64 {
    if gpus == 0 { 0 } else { 1 << gpus.ilog2() }
}

#[cfg(test)]
mod tests {
    use super::fitting;

    #[test]
    fn suggests_a_size_that_divides_heads() {
        assert_eq!([0, 1, 2, 3, 7, 8].map(fitting), [0, 1, 2, 2, 4, 8]);
    }
}
