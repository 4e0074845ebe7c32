//! gpu-requests-equal-limits: see the declaration.

use serde_json::Value;

use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    rules::{Context, Findings, NoParams, kinds},
    subject::{Door, at, quantity::Quantity, workload::Workload},
};

declare_rule! {
    /// # What it finds
    ///
    /// Containers that ask for accelerators in a way that the API server refuses: a request without a
    /// limit, a request that differs from its limit, a part of a device. Only `gangplank check` and
    /// audits say so; a live API server refuses such pods by itself.
    ///
    /// # Why it hurts
    ///
    /// An accelerator cannot be overcommitted. A Deployment that says so is refused when it is
    /// applied; a LeaderWorkerSet or a Ray cluster is taken, and its pods are then refused one by one.
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
    ///           resources: { requests: { nvidia.com/gpu: 1 }, limits: { nvidia.com/gpu: 2 } }
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
    ///           resources: { limits: { nvidia.com/gpu: 2 } }
    /// ```
    ///
    /// # Sources
    ///
    /// - Kubernetes, `pkg/apis/core/validation`, `ValidateContainerResourceRequirements`: extended
    ///   resources need a limit, a request equal to it, and whole numbers.
    pub static GPU_REQUESTS_EQUAL_LIMITS = Rule {
        id: "gpu-requests-equal-limits",
        summary: "A request for accelerators that the API server refuses",
        group: Workloads,
        kinds: kinds::TEMPLATED,
        labels: &[],
        annotations: &[],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    if !matches!(cx.subject.door, Door::Check | Door::Audit) {
        return;
    }
    let subject = cx.subject;
    let workloads = Workload::all(subject.group(), &subject.kind, &subject.value);
    for set in workloads.iter().flat_map(|workload| &workload.pods) {
        let template = &set.template;
        for container in template.list("initContainers").chain(template.containers()) {
            let path = template.container_path(&container).key("resources");
            let mut names: Vec<&String> = ["requests", "limits"]
                .into_iter()
                .filter_map(|kind| at(container.value, &["resources", kind])?.as_object())
                .flat_map(serde_json::Map::keys)
                .filter(|name| cx.policy.catalog().engines().accelerator(name).is_some())
                .collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                let of = |kind: &str| {
                    at(container.value, &["resources", kind, name]).filter(|value| !value.is_null())
                };
                judge(name, of("requests"), of("limits"), &path, out);
            }
        }
    }
}

fn judge(
    name: &str,
    request: Option<&Value>,
    limit: Option<&Value>,
    resources: &FieldPath,
    out: &mut Findings,
) {
    let amount = |value: Option<&Value>| value.and_then(Quantity::of);
    let (asked, allowed) = (amount(request), amount(limit));
    let at = |kind: &str| resources.clone().keys(&[kind, name]);
    let part = |amount: Option<Quantity>| {
        amount.is_some_and(|amount| Quantity::whole(amount.ceil()) != amount)
    };
    let (path, value, fault) = if part(allowed) {
        (at("limits"), limit, "is no whole number of devices")
    } else if part(asked) {
        (at("requests"), request, "is no whole number of devices")
    } else if request.is_some() && limit.is_none() {
        (at("requests"), request, "has no limit beside it")
    } else if let (Some(asked), Some(allowed)) = (asked, allowed)
        && asked != allowed
    {
        (at("requests"), request, "is not equal to the limit")
    } else {
        return;
    };
    let wanted = allowed.or(asked).unwrap_or_default().ceil().max(1);
    let finding = Finding::new(
        path,
        format!(
            "What is asked for of {name} {fault}; accelerators cannot be overcommitted, and the API server \
             refuses every such pod."
        ),
    )
    .instead(format!("resources:\n  limits:\n    {name}: {wanted}\n"))
    .fingerprint(format!("{name}:{fault}"));
    out.report(Finding {
        value: value.cloned(),
        ..finding
    });
}
