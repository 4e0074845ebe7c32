//! gang-scaling-floor: see the declaration.

use serde_json::{Value, json};

use crate::{
    declare_rule,
    facts::Known,
    finding::{FieldPath, Finding},
    rules::{Context, Findings, NoParams, kinds},
    subject::{
        at, group_of,
        workload::{Kind, Serving, Spread, Workload},
    },
};

declare_rule! {
    /// # What it finds
    ///
    /// Autoscalers that may scale a workload whose pods are one gang below the size of the gang.
    /// Judged where the workload is known, too.
    ///
    /// # Why it hurts
    ///
    /// A gang below its minimum serves nothing, and KAI evicts what is left of it after 60 s; from
    /// there it only starts again when a scaler asks for all of its pods at once.
    ///
    /// # Example
    ///
    /// ```yaml
    /// apiVersion: keda.sh/v1alpha1
    /// kind: ScaledObject
    /// metadata: { name: llama, namespace: inference }
    /// spec:
    ///   scaleTargetRef: { name: llama }
    ///   minReplicaCount: 1
    ///   triggers:
    ///     - type: prometheus
    ///       metadata: { serverAddress: "http://prometheus:9090", query: "sum(vllm:num_requests_waiting)", threshold: "5" }
    /// ---
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata:
    ///   name: llama
    ///   namespace: inference
    ///   labels: { kai.scheduler/queue: llm }
    ///   annotations: { kai.scheduler/batch-min-member: "2" }
    /// spec:
    ///   replicas: 2
    ///   strategy: { type: Recreate }
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       schedulerName: kai-scheduler
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=m, -tp=8, -pp=2, --nnodes=2]
    ///           resources: { limits: { nvidia.com/gpu: 8 } }
    /// ```
    ///
    /// # Instead
    ///
    /// ```yaml
    /// apiVersion: keda.sh/v1alpha1
    /// kind: ScaledObject
    /// metadata: { name: llama, namespace: inference }
    /// spec:
    ///   scaleTargetRef: { name: llama }
    ///   minReplicaCount: 2
    ///   triggers:
    ///     - type: prometheus
    ///       metadata: { serverAddress: "http://prometheus:9090", query: "sum(vllm:num_requests_waiting)", threshold: "5" }
    /// ---
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata:
    ///   name: llama
    ///   namespace: inference
    ///   labels: { kai.scheduler/queue: llm }
    ///   annotations: { kai.scheduler/batch-min-member: "2" }
    /// spec:
    ///   replicas: 2
    ///   strategy: { type: Recreate }
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       schedulerName: kai-scheduler
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=m, -tp=8, -pp=2, --nnodes=2]
    ///           resources: { limits: { nvidia.com/gpu: 8 } }
    /// ```
    ///
    /// # Sources
    ///
    /// - KAI Scheduler v0.18.0, `pkg/scheduler/actions/stalegangeviction`: 60 s of grace.
    pub static GANG_SCALING_FLOOR = Rule {
        id: "gang-scaling-floor",
        summary: "An autoscaler that may scale a gang below its size",
        group: Workloads,
        kinds: &[&kinds::HORIZONTAL_POD_AUTOSCALER, &kinds::SCALED_OBJECT],
        labels: &[],
        annotations: &[],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let subject = cx.subject;
    let text = |key: &str| {
        subject
            .at(&["spec", "scaleTargetRef", key])
            .and_then(Value::as_str)
    };
    let Some(name) = text("name") else { return };
    let scaled_object = subject.group() == "keda.sh";
    let kind = text("kind").unwrap_or("Deployment");
    let group = group_of(text("apiVersion").unwrap_or("apps/v1"));
    let namespace = subject.namespace.as_deref();
    let Known::Present(target) = cx.facts.object(group, kind, namespace, name) else {
        return;
    };
    let Some(workload) = Workload::of(group, kind, target) else {
        return;
    };
    // A LeaderWorkerSet scales by whole groups.
    if !matches!(
        workload.kind,
        Kind::Deployment | Kind::StatefulSet | Kind::ReplicaSet | Kind::Rollout
    ) {
        return;
    }
    let engines = cx.policy.catalog().engines();
    let Some(serving) = Serving::of_workload(workload, namespace, cx.facts, engines) else {
        return;
    };
    let Spread::Group(members) = serving.spread else {
        return;
    };
    let (field, silent) = if scaled_object {
        ("minReplicaCount", 0)
    } else {
        ("minReplicas", 1)
    };
    let path = FieldPath::of(&["spec", field]);
    let written = path.lookup(&subject.value).filter(|value| !value.is_null());
    let Some(floor) = written.map_or(Some(silent), Value::as_u64) else {
        return;
    };
    // None at all is a gang that sleeps, not a broken one.
    let idle = at(&subject.value, &["spec", "idleReplicaCount"]).and_then(Value::as_u64);
    if floor >= members && idle.is_none_or(|idle| idle == 0 || idle >= members) {
        return;
    }
    let finding = Finding::new(
        path,
        format!(
            "{kind} \"{name}\" is one gang of {members} pods ({}), and {} may leave {floor}: they serve \
             nothing, and the scheduler evicts them.",
            serving.server.parallelism.describe(),
            subject.kind
        ),
    )
    .instead(serde_saphyr::to_string(&json!({"spec": {field: members}})).unwrap_or_default())
    .fingerprint(format!("floor:{members}"))
    .severity(u32::try_from(members.saturating_sub(floor)).unwrap_or(u32::MAX));
    out.report(Finding {
        value: written.cloned(),
        ..finding
    });
}
