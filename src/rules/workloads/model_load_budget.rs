//! model-load-budget: see the declaration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    declare_rule,
    finding::Finding,
    rules::{Context, Findings, kinds},
    subject::{at, workload::Serving},
};

declare_rule! {
    /// # What it finds
    ///
    /// Model servers on accelerators whose probes kill them before a model of ordinary size is
    /// loaded: a startup probe that gives up, or a liveness probe without one, within
    /// `minimumSeconds`.
    ///
    /// # Why it hurts
    ///
    /// Weights come over the network and are compiled for the GPU: minutes, and more when many pods
    /// start at once. A pod that is killed while loading starts again from nothing, for ever.
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
    ///           startupProbe: { httpGet: { path: /health, port: 8000 }, periodSeconds: 5, failureThreshold: 30 }
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
    ///           startupProbe: { httpGet: { path: /health, port: 8000 }, periodSeconds: 10, failureThreshold: 60 }
    /// ```
    ///
    /// # Sources
    ///
    /// - Kubernetes, probes: a period of 10 s and 3 failures where nothing is said.
    /// - Budgets that projects ship: NIM operator 30 s + 120 × 10 s, KServe 60 × 10 s, the
    ///   production stack 600 × 1 s.
    pub static MODEL_LOAD_BUDGET = Rule {
        id: "model-load-budget",
        summary: "Probes that kill a model server before its weights are loaded",
        group: Workloads,
        kinds: kinds::LONG_RUNNING,
        labels: &["gangplank.dev/model-server"],
        annotations: &[],
        level: Warn,
        fills: None,
        params: Params,
        check: check
    }
}

/// Parameters of the rule.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Params {
    /// The least time to load a model that is not warned about, in seconds.
    #[schemars(range(min = 1, max = 86_400))]
    pub minimum_seconds: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            minimum_seconds: 300,
        }
    }
}

fn check(cx: &Context<'_, Params>, out: &mut Findings) {
    cx.each_server(out, |serving, out| judge(cx, serving, out));
}

fn judge(cx: &Context<'_, Params>, serving: &Serving<'_>, out: &mut Findings) {
    let container = serving.server.container.value;
    // Liveness begins when the startup probe is done.
    let Some((name, probe)) = ["startupProbe", "livenessProbe"]
        .into_iter()
        .find_map(|name| Some((name, container.get(name).filter(|probe| probe.is_object())?)))
    else {
        return;
    };
    let budget = budget(probe);
    let wanted = cx.params.minimum_seconds;
    if budget >= wanted {
        return;
    }
    let period = at(probe, &["periodSeconds"])
        .and_then(Value::as_u64)
        .filter(|s| *s > 0)
        .unwrap_or(10);
    let path = serving.server.path.clone().key(name);
    let instead = if name == "startupProbe" {
        format!(
            "startupProbe:\n  failureThreshold: {}\n",
            wanted.saturating_mul(2).div_ceil(period)
        )
    } else {
        format!(
            "startupProbe:   # with the liveness probe's own request\n  periodSeconds: 10\n  \
             failureThreshold: {}\n",
            wanted.saturating_mul(2).div_ceil(10)
        )
    };
    out.report(
        Finding::new(
            path,
            format!(
                "{} is killed after {budget} s of loading its model, and starts again from nothing; \
                 give it {wanted} s or more.",
                serving.server.title()
            ),
        )
        .instead(instead)
        .confidence(serving.server.confidence)
        .fingerprint("model-load-budget")
        .severity(u32::try_from(wanted - budget).unwrap_or(u32::MAX)),
    );
}

/// Seconds from the container's start until the probe gives up.
fn budget(probe: &Value) -> u64 {
    let number = |key: &str, silent: u64| {
        at(probe, &[key])
            .and_then(Value::as_u64)
            .filter(|number| *number > 0)
            .unwrap_or(silent)
    };
    let tries = number("periodSeconds", 10).saturating_mul(number("failureThreshold", 3));
    number("initialDelaySeconds", 0).saturating_add(tries)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::budget;

    #[test]
    fn silence_means_three_tries_ten_seconds_apart() {
        assert_eq!(budget(&json!({})), 30);
        assert_eq!(
            budget(
                &json!({"initialDelaySeconds": 180, "periodSeconds": 30, "failureThreshold": 5})
            ),
            330
        );
        assert_eq!(
            budget(&json!({"periodSeconds": u64::MAX, "failureThreshold": 9})),
            u64::MAX
        );
        assert_eq!(budget(&json!({"periodSeconds": "10"})), 30);
    }
}
