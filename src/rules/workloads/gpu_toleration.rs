//! gpu-toleration: see the declaration.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    catalog::engines::Engines,
    declare_rule,
    facts::Facts,
    finding::{Confidence, Finding},
    rules::{Context, Findings, NoParams, kinds},
    subject::{at, pod_template::PodTemplate},
};

declare_rule! {
    /// # What it finds
    ///
    /// Model servers that get their accelerators through resource claims (DRA) and tolerate no taint.
    /// Pods that ask for an extended resource such as `nvidia.com/gpu` are left alone: where the
    /// admission plugin `ExtendedResourceToleration` runs, they get theirs by themselves. A pod with
    /// any toleration of its own is taken to know its nodes.
    ///
    /// # Why it hurts
    ///
    /// GPU nodes are tainted so that nothing else lands on them, and that plugin knows nothing of
    /// claims: the pods stay Pending beside free GPUs, or a node autoscaler buys nodes that they never
    /// use.
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
    ///       resourceClaims: [{ name: gpu, resourceClaimTemplateName: one-gpu }]
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-8B-Instruct]
    ///           resources: { claims: [{ name: gpu }] }
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
    ///       tolerations: [{ key: nvidia.com/gpu, operator: Exists, effect: NoSchedule }]
    ///       resourceClaims: [{ name: gpu, resourceClaimTemplateName: one-gpu }]
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-8B-Instruct]
    ///           resources: { claims: [{ name: gpu }] }
    /// ```
    ///
    /// # Sources
    ///
    /// - Kubernetes, `plugin/pkg/admission/extendedresourcetoleration`: it looks at the containers'
    ///   extended resources only.
    /// - NVIDIA's DRA driver (kubernetes-sigs/dra-driver-nvidia-gpu) and its users: examples tolerate
    ///   `nvidia.com/gpu` by hand.
    pub static GPU_TOLERATION = Rule {
        id: "gpu-toleration",
        summary: "A model server that claims GPUs and tolerates no taint",
        group: Workloads,
        kinds: kinds::TEMPLATED,
        labels: &["gangplank.dev/model-server"],
        annotations: &[],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check
    }
}

/// What the taint of GPU nodes is mostly called.
const USUAL: &str = "nvidia.com/gpu";

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let [serving] = cx.servings() else {
        return;
    };
    let engines = cx.policy.catalog().engines();
    for set in serving.workload.live_sets() {
        let Some(accelerators) = set.template.accelerators(engines) else {
            continue;
        };
        if accelerators.resource != "resourceClaims" || tolerates(&set.template) {
            continue;
        }
        let namespace = cx.subject.namespace.as_deref();
        let claimed = Claimed::of(&set.template, cx.facts, namespace, engines);
        let (key, confidence) = match &claimed {
            Claimed::Accelerator(key) => (key.as_str(), Confidence::Presumed),
            Claimed::Unknown => (USUAL, Confidence::Unknown),
            Claimed::Other => continue,
        };
        let path = set.template.spec_path().key("tolerations");
        out.report(
            Finding::new(
                path,
                format!(
                    "{} gets its accelerators by a claim, and no toleration comes with one: on nodes \
                     tainted for GPUs its pods stay Pending.",
                    serving.server.title()
                ),
            )
            .instead(format!(
                "tolerations:\n- key: {key}   # the taint of your GPU nodes\n  operator: Exists\n  \
                 effect: NoSchedule\n"
            ))
            .confidence(confidence)
            .fingerprint(format!("untolerated:{}", set.role)),
        );
    }
}

/// Whether the pods tolerate something beyond what every pod does.
fn tolerates(template: &PodTemplate<'_>) -> bool {
    template
        .spec("tolerations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|toleration| {
            at(toleration, &["key"])
                .and_then(Value::as_str)
                .is_none_or(|key| !key.starts_with("node.kubernetes.io/"))
        })
}

/// What a pod's claims are for.
enum Claimed {
    /// An accelerator, whose nodes are tainted with this key.
    Accelerator(String),
    /// Something else.
    Other,
    /// The claims are not to be seen.
    Unknown,
}

impl Claimed {
    fn of(
        template: &PodTemplate<'_>,
        facts: &Facts,
        namespace: Option<&str>,
        engines: &Engines,
    ) -> Self {
        let claims = template
            .spec("resourceClaims")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let mut unseen = false;
        let mut classes = BTreeSet::new();
        for claim in claims {
            let named = |field: &str| {
                // `source` held both until Kubernetes 1.31.
                at(claim, &[field])
                    .or_else(|| at(claim, &["source", field]))?
                    .as_str()
            };
            let found = [
                (
                    "ResourceClaimTemplate",
                    named("resourceClaimTemplateName"),
                    &["spec", "spec", "devices", "requests"][..],
                ),
                (
                    "ResourceClaim",
                    named("resourceClaimName"),
                    &["spec", "devices", "requests"][..],
                ),
            ]
            .into_iter()
            .find_map(|(kind, name, requests)| {
                let object = facts.object("resource.k8s.io", kind, namespace, name?);
                at(object.present()?, requests)?.as_array()
            });
            match found {
                Some(requests) => classes.extend(requests.iter().flat_map(device_classes)),
                None => unseen = true,
            }
        }
        let key = classes.iter().find_map(|class| {
            engines
                .accelerators
                .iter()
                .find(|row| row.device_classes.iter().any(|known| known == class))
        });
        match key {
            Some(row) => Self::Accelerator(row.resource.clone()),
            // A class that nobody knows may well be a GPU under another name.
            None if unseen || !classes.is_empty() => Self::Unknown,
            None => Self::Other,
        }
    }
}

/// The classes of one request, in every version of the API: `exactly` and `firstAvailable` came with
/// resource.k8s.io/v1beta2.
fn device_classes(request: &Value) -> Vec<&str> {
    let alternatives = at(request, &["firstAvailable"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    std::iter::once(request)
        .chain(at(request, &["exactly"]))
        .chain(alternatives)
        .filter_map(|one| at(one, &["deviceClassName"])?.as_str())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::finding::FieldPath;

    fn claimed(class: Option<&str>) -> Claimed {
        let template = json!({"spec": {"resourceClaims": [
            {"name": "device", "resourceClaimTemplateName": "one"}
        ]}});
        let made = class.map(|class| {
            Arc::new(json!({
                "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
                "metadata": {"name": "one"},
                "spec": {"spec": {"devices": {"requests": [
                    {"name": "d", "exactly": {"deviceClassName": class}}
                ]}}}
            }))
        });
        let facts = Facts::from_documents(made.as_ref());
        let template = PodTemplate::new(&template, FieldPath::new());
        Claimed::of(&template, &facts, None, Engines::builtin())
    }

    #[test]
    fn a_claim_in_the_same_world_tells_whose_taint_it_is() {
        assert!(
            matches!(claimed(Some("gpu.nvidia.com")), Claimed::Accelerator(key) if key == "nvidia.com/gpu")
        );
        assert!(
            matches!(claimed(Some("gpu.amd.com")), Claimed::Accelerator(key) if key == "amd.com/gpu")
        );
        assert!(matches!(claimed(Some("house-gpus")), Claimed::Unknown));
        assert!(matches!(claimed(None), Claimed::Unknown));
    }

    #[test]
    fn classes_are_read_in_every_version() {
        for request in [
            json!({"deviceClassName": "gpu.nvidia.com"}),
            json!({"exactly": {"deviceClassName": "gpu.nvidia.com"}}),
            json!({"firstAvailable": [{"deviceClassName": "gpu.nvidia.com"}]}),
        ] {
            assert_eq!(device_classes(&request), ["gpu.nvidia.com"]);
        }
        assert!(device_classes(&json!("gpu")).is_empty());
    }
}
