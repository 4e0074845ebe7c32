//! scale-to-zero

use super::{Floor, Target, is_kedas};
use crate::{
    declare_rule,
    facts::Known,
    finding::{Confidence, FieldPath, Finding, Level},
    rules::{
        Context, Findings, NoParams,
        kinds::{HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT},
    },
    signal::{Advice, words},
    subject::WARM_POOL_ANNOTATION,
};

declare_rule! {
    /// # What it finds
    /// An autoscaler that may leave a model server on accelerators without any replica:
    /// `minReplicas`, `minReplicaCount` or `idleReplicaCount` of 0, and a ScaledObject that is silent
    /// about `minReplicaCount`, which means 0. It is denied in the namespaces that the policy calls
    /// `production`, and warned about elsewhere.
    ///
    /// A declared warm pool satisfies it: the annotation `gangplank.dev/warm-pool: <kind>/<name>` on
    /// the autoscaler or on what it scales, or the policy's `warmPools` for the namespace. Where the
    /// target is not known, it warns if metrics or names speak of a model server.
    ///
    /// # Why it hurts
    /// The first request after zero waits for a node, an image of tens of gigabytes and the weights:
    /// minutes, in which every client times out, and in a GPU shortage there may be no node at all.
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
    /// apiVersion: keda.sh/v1alpha1
    /// kind: ScaledObject
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   scaleTargetRef: {name: chat}
    ///   minReplicaCount: 0
    ///   maxReplicaCount: 8
    ///   triggers:
    ///   - type: prometheus
    ///     metadata:
    ///       serverAddress: http://prometheus.monitoring.svc:9090
    ///       query: sum(vllm:num_requests_waiting{namespace="inference"})
    ///       threshold: "5"
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: keda.sh/v1alpha1
    /// kind: ScaledObject
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   scaleTargetRef: {name: chat}
    ///   minReplicaCount: 1
    ///   maxReplicaCount: 8
    ///   triggers:
    ///   - type: prometheus
    ///     metadata:
    ///       serverAddress: http://prometheus.monitoring.svc:9090
    ///       query: sum(vllm:num_requests_waiting{namespace="inference"})
    ///       threshold: "5"
    /// ```
    ///
    /// # Sources
    /// - kedacore/keda apis/keda/v1alpha1/scaledobject_types.go (silence means 0)
    /// - k8s.io/api autoscaling/v2 (`minReplicas` may be 0 with an Object or External metric)
    pub static SCALE_TO_ZERO = Rule {
        id: "scale-to-zero",
        summary: "A model server on GPUs may be scaled to zero without a warm pool",
        group: Signals,
        kinds: &[&HORIZONTAL_POD_AUTOSCALER, &SCALED_OBJECT],
        labels: &[],
        annotations: &[WARM_POOL_ANNOTATION],
        level: Deny,
        fills: None,
        params: NoParams,
        check: check,
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let floor = Floor::of(cx.subject);
    if floor.replicas > 0 || is_kedas(cx) {
        return;
    }
    let Some(target) = Target::of(cx) else { return };
    let (who, confidence) = match target.served() {
        Some(served) => (
            format!("{}, which serves {served},", target.named),
            Confidence::Certain,
        ),
        None => match speaks_of_a_server(cx, &target) {
            Some(engine) => (
                format!(
                    "{}, by its names and metrics a server of {engine},",
                    target.named
                ),
                Confidence::Unknown,
            ),
            None => return,
        },
    };
    let pool = warm_pool(cx, &target);
    let but = match &pool {
        Pool::Declared => return,
        Pool::None => String::new(),
        Pool::Nowhere(name) => format!(", and its warm pool {name} is not there"),
        Pool::Itself => ", and cannot be its own warm pool".to_owned(),
        Pool::Malformed(text) => format!(", and \"{text}\" is no warm pool (<kind>/<name>)"),
    };
    let [_, key] = floor.keys;
    let silent = if floor.written(cx.subject).is_none() {
        format!(" ({key} is silent, which means 0)")
    } else {
        String::new()
    };
    let path = FieldPath::of(&floor.keys);
    let message = format!(
        "{who} may be left without a replica{silent}{but}: the next request waits minutes for a node, \
         an image and the weights, if there is a GPU at all"
    );
    let finding = Finding {
        value: floor.written(cx.subject).cloned(),
        ..Finding::new(path, message)
    }
    .instead(instead(key))
    .fingerprint("zero".to_owned())
    .confidence(confidence);
    let production = cx
        .subject
        .namespace
        .as_deref()
        .is_some_and(|namespace| cx.policy.is_production(namespace, cx.facts));
    // A pool that is not there yet may be on its way.
    if production && !matches!(pool, Pool::Nowhere(_)) {
        out.report(finding);
    } else {
        out.report_at(Level::Warn, finding);
    }
}

fn instead(key: &str) -> String {
    let keep = if key == "idleReplicaCount" {
        "spec:\n  minReplicaCount: 1 # and no idleReplicaCount\n".to_owned()
    } else {
        format!("spec:\n  {key}: 1\n")
    };
    format!(
        "{keep}# or name what keeps capacity warm:\n# metadata:\n#   annotations:\n#     \
         {WARM_POOL_ANNOTATION}: Deployment/warm\n"
    )
}

/// The engine that metrics and names speak of, where the target itself is not known.
fn speaks_of_a_server(cx: &Context<'_, NoParams>, target: &Target<'_>) -> Option<String> {
    const BESIDE: &[&str] = &[
        "router",
        "gateway",
        "proxy",
        "client",
        "frontend",
        "tokenizer",
        "ui",
        "web",
        "emulator",
        "benchmark",
    ];
    if target.digest.present().is_some() {
        return None;
    }
    let beside = [target.named.name, &cx.subject.name].iter().any(|name| {
        words(name)
            .iter()
            .any(|word| BESIDE.contains(&word.as_str()))
    });
    let catalog = cx.policy.catalog().metrics();
    let sources = cx.sources();
    let advice = Advice::new(catalog, cx.facts, cx.subject, sources);
    advice.engine().filter(|_| !beside).map(str::to_owned)
}

/// What is declared to keep capacity warm.
enum Pool {
    None,
    Declared,
    Nowhere(String),
    Itself,
    Malformed(String),
}

fn warm_pool(cx: &Context<'_, NoParams>, target: &Target<'_>) -> Pool {
    let own = cx.subject.namespace.as_deref().unwrap_or_default();
    let is_target = |namespace: &str, kind: &str, name: &str| {
        (namespace, kind, name) == (own, target.named.kind, target.named.name)
    };
    let by_policy = cx
        .policy
        .warm_pools(own)
        .any(|(kind, name)| !is_target(own, kind, name));
    if by_policy {
        return Pool::Declared;
    }
    let annotation = cx.subject.annotation(WARM_POOL_ANNOTATION).or_else(|| {
        let digest = target.digest.present()?;
        digest.warm_pool.as_deref()
    });
    let Some(text) = annotation else {
        return Pool::None;
    };
    let parts: Vec<&str> = text.trim().split('/').collect();
    let (namespace, kind, name) = match parts.as_slice() {
        [kind, name] if !kind.is_empty() && !name.is_empty() => (own, *kind, *name),
        [namespace, kind, name] if parts.iter().all(|part| !part.is_empty()) => {
            (*namespace, *kind, *name)
        }
        _ => return Pool::Malformed(text.to_owned()),
    };
    if is_target(namespace, kind, name) {
        return Pool::Itself;
    }
    let group = match kind {
        "Deployment" | "StatefulSet" => "apps",
        "LeaderWorkerSet" => "leaderworkerset.x-k8s.io",
        _ => return Pool::Declared,
    };
    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
    match cx.facts.workload(group, kind, namespace, name) {
        Known::Absent => Pool::Nowhere(format!("{kind} \"{name}\"")),
        Known::Present(_) | Known::Unknown => Pool::Declared,
    }
}
