//! disruption-annotation: see the declaration.

use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    rules::{Context, Findings, NoParams, kinds},
    subject::{duration::parse_go, workload::PodSet},
};

declare_rule! {
    /// # What it finds
    ///
    /// Model servers on accelerators that ask a node autoscaler to let their pods be, in a way that it
    /// does not read: `karpenter.sh/do-not-disrupt` with another value than `"true"` or a positive
    /// duration in Go's spelling; `cluster-autoscaler.kubernetes.io/safe-to-evict` with another value
    /// than `"true"`, `"false"` or `"on-completion"`; either of them on the workload instead of its
    /// pods; and `karpenter.sh/do-not-evict`, which Karpenter no longer reads.
    ///
    /// # Why it hurts
    ///
    /// Somebody meant the pods to be left alone, and they are not: Karpenter treats a value that it
    /// cannot read as if it were absent and leaves an event behind; the cluster autoscaler does so
    /// silently. The node is drained with the model on it.
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
    ///     metadata:
    ///       labels: { app: llama }
    ///       annotations: { karpenter.sh/do-not-disrupt: "yes" }
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
    ///     metadata:
    ///       labels: { app: llama }
    ///       annotations: { karpenter.sh/do-not-disrupt: "true" }
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-8B-Instruct]
    ///           resources: { limits: { nvidia.com/gpu: 1 } }
    /// ```
    ///
    /// # Sources
    ///
    /// - Karpenter, `pkg/utils/pod/scheduling.go`, `IsDoNotDisruptActive`: `"true"`, or a duration
    ///   counted from the pod's start (read from v1.12.0 on). `do-not-evict` went with v1alpha5 (pull
    ///   request 1292).
    /// - Cluster autoscaler, `utils/drain/drain.go`: the texts `true` and `false`, compared as they
    ///   are; `simulator/drainability/rules/oncompletion` for the third.
    pub static DISRUPTION_ANNOTATION = Rule {
        id: "disruption-annotation",
        summary: "A request to leave the pods alone that no node autoscaler reads",
        group: Workloads,
        kinds: kinds::TEMPLATED,
        labels: &["gangplank.dev/model-server"],
        annotations: &[
            "karpenter.sh/do-not-disrupt",
            "cluster-autoscaler.kubernetes.io/safe-to-evict",
            "karpenter.sh/do-not-evict",
        ],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check
    }
}

const DO_NOT_DISRUPT: &str = "karpenter.sh/do-not-disrupt";
const DO_NOT_EVICT: &str = "karpenter.sh/do-not-evict";
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let [serving] = cx.servings() else {
        return;
    };
    for set in serving.workload.live_sets() {
        if set
            .template
            .accelerators(cx.policy.catalog().engines())
            .is_some()
        {
            of_the_pods(set, out);
        }
    }
    of_the_workload(cx, &serving.set, out);
}

/// What stands where it would be read, in words that are not.
fn of_the_pods(set: &PodSet<'_>, out: &mut Findings) {
    let mut report = |key: &str, found: &str, message: String, instead: (&str, &str)| {
        out.report(
            Finding::new(annotations(set).key(key), message)
                .value(found)
                .instead(format!("{}: \"{}\"", instead.0, instead.1))
                .fingerprint(format!("{key}:{}", set.role)),
        );
    };
    let protects = set.template.annotation(DO_NOT_DISRUPT);
    if let Some(found) = protects
        && !is_read_by_karpenter(found)
    {
        let message = format!(
            "Karpenter reads \"true\" or a duration such as \"4h\" here and ignores \"{found}\": it \
             drains the node with the model on it."
        );
        report(
            DO_NOT_DISRUPT,
            found,
            message,
            (DO_NOT_DISRUPT, &meant(found)),
        );
    }
    if let (None, Some(found)) = (protects, set.template.annotation(DO_NOT_EVICT))
        && found != "false"
    {
        let message =
            "Karpenter no longer reads this annotation: it drains the node with the model on it.";
        report(
            DO_NOT_EVICT,
            found,
            message.to_owned(),
            (DO_NOT_DISRUPT, "true"),
        );
    }
    if let Some(found) = set.template.annotation(SAFE_TO_EVICT)
        && !matches!(found, "true" | "false" | "on-completion")
    {
        let message = format!(
            "The cluster autoscaler compares with \"true\" and \"false\" as they are, and takes \
             \"{found}\" for nothing: the pods are moved as if the annotation were not there."
        );
        let right = match found.to_ascii_lowercase().as_str() {
            "true" | "yes" | "1" | "y" => "true",
            _ => "false",
        };
        report(SAFE_TO_EVICT, found, message, (SAFE_TO_EVICT, right));
    }
}

/// What stands on the workload, where nobody looks for it.
fn of_the_workload(cx: &Context<'_, NoParams>, set: &PodSet<'_>, out: &mut Findings) {
    for (key, reader) in [
        (DO_NOT_DISRUPT, "Karpenter"),
        (SAFE_TO_EVICT, "The cluster autoscaler"),
    ] {
        let Some(found) = cx.subject.annotation(key) else {
            continue;
        };
        // Only what asks for protection is missed by somebody.
        let asks = match key {
            SAFE_TO_EVICT => found == "false",
            _ => found != "false",
        };
        if !asks || set.template.annotation(key).is_some() {
            continue;
        }
        let right = if key == DO_NOT_DISRUPT {
            meant(found)
        } else {
            found.to_owned()
        };
        let mut lines = String::new();
        for (depth, step) in annotations(set).steps().iter().enumerate() {
            lines.push_str(&"  ".repeat(depth));
            lines.push_str(step);
            lines.push_str(":\n");
        }
        let depth = annotations(set).steps().len();
        out.report(
            Finding::new(
                FieldPath::of(&["metadata", "annotations", key]),
                format!(
                    "{reader} reads this annotation on pods, and a {} does not hand it down: its pods \
                     are moved like any other.",
                    cx.subject.kind
                ),
            )
            .value(found)
            .instead(format!("{lines}{}{key}: \"{right}\"\n", "  ".repeat(depth)))
            .fingerprint(format!("{key}:owner")),
        );
    }
}

fn annotations(set: &PodSet<'_>) -> FieldPath {
    set.template
        .path()
        .clone()
        .keys(&["metadata", "annotations"])
}

/// Whether Karpenter takes the value for what it says. `false` is ignored too, which is what is meant.
fn is_read_by_karpenter(value: &str) -> bool {
    matches!(value, "true" | "false") || parse_go(value).is_some_and(|duration| !duration.is_zero())
}

/// What somebody probably meant: a number of days in hours, everything else for good.
fn meant(value: &str) -> String {
    let days = value
        .strip_suffix('d')
        .and_then(|days| days.trim().parse::<u64>().ok())
        .filter(|days| (1..=3650).contains(days));
    match days {
        Some(days) => format!("{}h", days * 24),
        None if is_read_by_karpenter(value) => value.to_owned(),
        None => "true".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_karpenter_does() {
        for value in ["true", "30m", "1h30m", "0.5h", "false"] {
            assert!(is_read_by_karpenter(value), "{value}");
        }
        for value in ["True", "yes", "1", "1d", "0s", "-5m", "", "30", "always"] {
            assert!(!is_read_by_karpenter(value), "{value}");
        }
    }

    #[test]
    fn what_is_to_be_written_keeps_the_time_that_was_meant() {
        assert_eq!(meant("2d"), "48h");
        assert_eq!(meant("4h"), "4h");
        assert_eq!(meant("True"), "true");
    }
}
