//! short-scale-down

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Floor, Target, behavior, is_kedas, never_scales_down, number};
use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    rules::{
        Context, Findings,
        kinds::{HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT},
    },
};

declare_rule! {
    /// # What it finds
    /// A stabilization window for scaling down (`behavior.scaleDown.stabilizationWindowSeconds`), or
    /// KEDA's `cooldownPeriod` before the last replica goes, that is shorter than `leastSeconds`, on
    /// a target that is known to serve a model on accelerators. Silence already means 300 seconds in
    /// both places. A cooldown matters only where the ScaledObject may go to zero.
    ///
    /// # Why it hurts
    /// Loading a model takes minutes. A replica that goes in the first pause between two bursts is
    /// missed in the second, and its prefix cache is lost: the fleet flaps, and pays for GPUs that
    /// load weights instead of serving.
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
    /// apiVersion: autoscaling/v2
    /// kind: HorizontalPodAutoscaler
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: chat}
    ///   maxReplicas: 8
    ///   behavior: {scaleDown: {stabilizationWindowSeconds: 30}}
    ///   metrics:
    ///   - type: Pods
    ///     pods:
    ///       metric: {name: "vllm:num_requests_waiting"}
    ///       target: {type: AverageValue, averageValue: "5"}
    /// ```
    ///
    /// # Instead
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
    /// apiVersion: autoscaling/v2
    /// kind: HorizontalPodAutoscaler
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: chat}
    ///   maxReplicas: 8
    ///   metrics:
    ///   - type: Pods
    ///     pods:
    ///       metric: {name: "vllm:num_requests_waiting"}
    ///       target: {type: AverageValue, averageValue: "5"}
    /// ```
    ///
    /// # Sources
    /// - kubernetes.io, Horizontal Pod Autoscaling: a scale-down window of 300 seconds by default
    /// - kedacore/keda apis/keda/v1alpha1/scaledobject_types.go: a cooldown of 300 seconds by default
    pub static SHORT_SCALE_DOWN = Rule {
        id: "short-scale-down",
        summary: "A model server on GPUs is scaled down sooner than a model loads",
        group: Signals,
        kinds: &[&HORIZONTAL_POD_AUTOSCALER, &SCALED_OBJECT],
        labels: &[],
        annotations: &[],
        level: Warn,
        fills: None,
        params: Params,
        check: check,
    }
}

/// Parameters of the rule.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Params {
    /// Seconds that demand has to stay low before a replica goes.
    pub least_seconds: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self { least_seconds: 300 }
    }
}

fn check(cx: &Context<'_, Params>, out: &mut Findings) {
    if is_kedas(cx) {
        return;
    }
    let Some(target) = Target::of(cx) else { return };
    let Some(served) = target.served() else {
        return;
    };
    let least = u64::from(cx.params.least_seconds);
    let mut report = |path: FieldPath, seconds: u64, what: &str| {
        let key = path.to_string();
        let key = key.rsplit('.').next().unwrap_or_default();
        let message = format!(
            "{what} of {seconds} s is shorter than a model takes to load: replicas of {}, which \
             serves {served}, go in one pause between bursts and are missed in the next",
            target.named
        );
        out.report(
            Finding::new(path, message)
                .value(seconds)
                .instead(format!("{key}: {least}\n"))
                .fingerprint(key.to_owned())
                .severity(u32::try_from(least - seconds).unwrap_or(u32::MAX)),
        );
    };
    let window = [
        behavior(cx.subject),
        &["scaleDown", "stabilizationWindowSeconds"],
    ]
    .concat();
    if let Some(seconds) = number(cx.subject, &window)
        && seconds < least
        && !never_scales_down(cx.subject)
    {
        report(FieldPath::of(&window), seconds, "A scale-down window");
    }
    let cooldown = ["spec", "cooldownPeriod"];
    if cx.subject.kind == "ScaledObject"
        && Floor::of(cx.subject).replicas == 0
        && let Some(seconds) = number(cx.subject, &cooldown)
        && seconds < least
    {
        report(FieldPath::of(&cooldown), seconds, "A cooldown");
    }
}
