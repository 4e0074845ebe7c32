//! gang-scaling-floor: see the declaration.

use crate::{
    catalog::schedulers::Schedulers,
    declare_rule,
    facts::{Gang, KAI_GROUP, Known},
    finding::{FieldPath, Finding},
    rules::{
        Context, Findings, NoParams, kinds,
        signals::{Floor, Target, is_kedas, never_scales_down},
    },
};

declare_rule! {
    /// # What it finds
    ///
    /// An HPA or ScaledObject that may leave a gang with fewer pods than it needs: the pods that one
    /// instance of the model spans, the minimum that the workload's annotation gives its gang
    /// scheduler, or the minimum of the PodGroup that its pods name. Judged where the workload is
    /// known: in the same files, or in the cluster that `serve` watches. LeaderWorkerSets scale by
    /// whole groups and have no such floor; nothing is said where scaling down is switched off.
    ///
    /// # Why it hurts
    ///
    /// What is left of an instance serves nothing and holds its GPUs, and KAI evicts a gang that has
    /// been below its minimum for 60 s. From there it only starts again when a scaler asks for all of
    /// its pods at once: one that adds them one by one never gets there.
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
    // No replica at all is a gang that sleeps: from `idleReplicaCount` KEDA goes to the minimum.
    let floor = Floor::when_active(cx.subject);
    // KEDA goes to zero by itself, whatever the behavior says.
    if is_kedas(cx) || never_scales_down(cx.subject) && floor.replicas > 0 {
        return;
    }
    let Some(target) = Target::of(cx) else { return };
    let gang = target
        .digest
        .present()
        .and_then(|digest| digest.gang.as_deref());
    let Some((minimum, evicts)) = gang.and_then(|gang| minimum(cx, &target, gang)) else {
        return;
    };
    if floor.replicas >= minimum {
        return;
    }
    let left = floor.replicas;
    let consequence = if evicts {
        "KAI evicts what is left of a gang 60 s after it falls below its minimum, and starts none \
         until all of it finds a place"
    } else {
        "what is left of it holds its GPUs and serves nothing"
    };
    let message = format!(
        "may leave {left} of the {minimum} pods that {} needs together: {consequence}",
        target.named
    );
    let (least, set) = if cx.subject.kind == "ScaledObject" {
        (
            "minReplicaCount",
            "LeaderWorkerSet: one replica is one group",
        )
    } else {
        ("minReplicas", "LeaderWorkerSet: one replica is one group")
    };
    out.report(
        Finding {
            value: floor.written(cx.subject).cloned(),
            ..Finding::new(FieldPath::of(&floor.keys), message)
        }
        .instead(format!(
            "spec:\n  {least}: {minimum}\n# or scale whole instances, with a {set}\n"
        ))
        .fingerprint(format!("floor:{minimum}"))
        .severity(u32::try_from(minimum - left).unwrap_or(u32::MAX)),
    );
}

/// The pods that have to be there together, and whether KAI watches over them.
fn minimum(cx: &Context<'_, NoParams>, target: &Target<'_>, gang: &Gang) -> Option<(u64, bool)> {
    // A version that does not read the annotation makes no gang of it.
    let annotated = gang.minimum.filter(|(_, scheduler)| {
        let declared = &cx.policy.gang_scheduler;
        declared.name.as_str() != *scheduler
            || Schedulers::builtin()
                .find(scheduler)
                .is_some_and(|row| row.minimum(target.named.kind, declared.version).is_some())
    });
    let grouped = gang.group.as_ref().and_then(|(group, name)| {
        let namespace = cx.subject.namespace.as_deref();
        match cx.facts.pod_group(group, namespace, name) {
            Known::Present(found) => Some((found.minimum?, *group == KAI_GROUP)),
            Known::Absent | Known::Unknown => None,
        }
    });
    let annotated = annotated.map(|(minimum, scheduler)| (minimum, scheduler == "kai"));
    let members = gang.members.map(|members| (members, false));
    let watched = annotated.or(grouped).is_some_and(|(_, kai)| kai);
    let most = [annotated, grouped, members]
        .into_iter()
        .flatten()
        .map(|(minimum, _)| minimum)
        .max()?;
    (most > 1).then_some((most, watched))
}
