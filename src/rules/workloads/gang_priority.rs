//! gang-priority: see the declaration.

use serde_json::Value;

use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    policy::SchedulerName,
    rules::{Context, Findings, NoParams, kinds},
    subject::workload::{Kind, Serving, Spread},
};

declare_rule! {
    /// # What it finds
    ///
    /// Model servers that KAI may evict for other work: those whose priority class is `train` or
    /// `build-preemptible`, or silent on a kind for which silence means `train` (everything but a
    /// Deployment).
    ///
    /// # Why it hurts
    ///
    /// KAI takes the GPUs of preemptible pods back whenever a queue asks for its share: the model
    /// stops answering in the middle of its requests, and loads anew when there is room again.
    ///
    /// # Example
    ///
    /// ```yaml
    /// apiVersion: leaderworkerset.x-k8s.io/v1
    /// kind: LeaderWorkerSet
    /// metadata: { name: llama, namespace: inference, labels: { kai.scheduler/queue: llm } }
    /// spec:
    ///   leaderWorkerTemplate:
    ///     size: 2
    ///     workerTemplate:
    ///       spec:
    ///         schedulerName: kai-scheduler
    ///         terminationGracePeriodSeconds: 300
    ///         containers:
    ///           - name: vllm
    ///             image: vllm/vllm-openai:v0.11.0
    ///             args: [--model=m, -tp=8, -pp=2, --nnodes=2]
    ///             resources: { limits: { nvidia.com/gpu: 8 } }
    /// ```
    ///
    /// # Instead
    ///
    /// ```yaml
    /// apiVersion: leaderworkerset.x-k8s.io/v1
    /// kind: LeaderWorkerSet
    /// metadata: { name: llama, namespace: inference, labels: { kai.scheduler/queue: llm, priorityClassName: inference } }
    /// spec:
    ///   leaderWorkerTemplate:
    ///     size: 2
    ///     workerTemplate:
    ///       spec:
    ///         schedulerName: kai-scheduler
    ///         terminationGracePeriodSeconds: 300
    ///         containers:
    ///           - name: vllm
    ///             image: vllm/vllm-openai:v0.11.0
    ///             args: [--model=m, -tp=8, -pp=2, --nnodes=2]
    ///             resources: { limits: { nvidia.com/gpu: 8 } }
    /// ```
    ///
    /// # Sources
    ///
    /// - KAI Scheduler v0.18.0, `docs/priority/README.md` and `pkg/podgrouper/podgrouper/plugins`:
    ///   `train` is 50, below 100 is preemptible; non-preemptible pods may only use what is within
    ///   their queue's quota, so that this is said and not filled.
    pub static GANG_PRIORITY = Rule {
        id: "gang-priority",
        summary: "A model server that the gang scheduler may evict for other work",
        group: Workloads,
        kinds: kinds::LONG_RUNNING,
        labels: &[
            "gangplank.dev/model-server",
            "kai.scheduler/queue",
            "priorityClassName",
            "kai.scheduler/preemptibility",
        ],
        annotations: &[],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check
    }
}

const CLASS: &str = "priorityClassName";
const PREEMPTIBILITY: &str = "kai.scheduler/preemptibility";

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    cx.each_serving(out, |serving, out| judge(cx, serving, out));
}

fn judge(cx: &Context<'_, NoParams>, serving: &Serving<'_>, out: &mut Findings) {
    let declared = &cx.policy.gang_scheduler;
    if !matches!(declared.name, SchedulerName::Kai | SchedulerName::Auto) {
        return;
    }
    // What becomes of KServe's and Dynamo's pods under KAI, and by which class, their controllers
    // decide.
    if matches!(
        serving.workload.kind,
        Kind::InferenceService | Kind::LlmInferenceService | Kind::DynamoGraph
    ) {
        return;
    }
    let template = &serving.set.template;
    let kai = declared
        .scheduler_name
        .as_deref()
        .unwrap_or("kai-scheduler");
    let label = |key: &str| serving.workload.label(key).or_else(|| template.label(key));
    // One that has a queue, or is given one by the policy, and names no scheduler is on its way there.
    let mut schedulers = serving
        .workload
        .pods
        .iter()
        .map(|set| set.template.spec_text("schedulerName"));
    let mapped = || {
        let namespace = cx.subject.namespace.as_deref().unwrap_or_default();
        matches!(serving.spread, Spread::SinglePod | Spread::Group(_))
            && cx.policy.queue_for(namespace).is_some()
    };
    let bound = label("kai.scheduler/queue").is_some() || mapped();
    let goes_there = schedulers.any(|scheduler| match scheduler {
        None | Some("default-scheduler") => bound,
        Some(scheduler) => scheduler == kai,
    });
    if !goes_there {
        return;
    }
    if label(PREEMPTIBILITY) == Some("non-preemptible") {
        return;
    }
    // The owner's label, the pod's label, the pod's class: KAI's own order; Grove has a member for
    // the gang's.
    let owner = FieldPath::of(&["metadata", "labels", CLASS]);
    let gangs = FieldPath::of(&["spec", "template", CLASS]);
    let of_gang = gangs
        .lookup(&cx.subject.value)
        .and_then(Value::as_str)
        .filter(|class| serving.workload.kind == Kind::PodCliqueSet && !class.is_empty());
    let (path, class) = if let Some(class) = serving.workload.label(CLASS) {
        (owner, Some(class))
    } else if let Some(class) = of_gang {
        (gangs, Some(class))
    } else if let Some(class) = template.label(CLASS) {
        (
            template.metadata_path().keys(&["labels", CLASS]),
            Some(class),
        )
    } else if let Some(class) = template.spec_text(CLASS) {
        (template.spec_path().key(CLASS), Some(class))
    } else {
        (owner, None)
    };
    let silent = class.is_none();
    let class = class.unwrap_or(match serving.workload.kind {
        Kind::Deployment => "inference",
        _ => "train",
    });
    let preemptible = label(PREEMPTIBILITY) == Some("preemptible");
    if !preemptible && !matches!(class, "train" | "build-preemptible") {
        return;
    }
    let path = if preemptible && serving.workload.label(PREEMPTIBILITY).is_some() {
        FieldPath::of(&["metadata", "labels", PREEMPTIBILITY])
    } else {
        path
    };
    let value = path.lookup(&cx.subject.value).cloned();
    let because = if preemptible {
        "it is labelled preemptible".to_owned()
    } else if silent {
        format!("a {} without a class is \"train\" to KAI", cx.subject.kind)
    } else {
        format!("its class is \"{class}\"")
    };
    let finding = Finding::new(
        path,
        format!(
            "{} may be evicted whenever another queue asks for its share: {because}.",
            serving.server.title()
        ),
    )
    .instead(
        "metadata:\n  labels:\n    priorityClassName: inference   # its queue needs the quota for it\n",
    )
    .fingerprint("preemptible");
    out.report(Finding { value, ..finding });
}
