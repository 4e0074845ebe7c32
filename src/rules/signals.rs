//! What autoscalers scale on, and how far.

use serde_json::Value;

use super::Context;
use crate::{
    facts::{Digest, Known, Served},
    subject::{Subject, at, hpa, scale_target::ScaleTarget},
};

pub mod gpu_memory_signal;
pub mod gpu_utilization_signal;
pub mod host_resource_signal;
pub mod opaque_signal;
pub mod scale_to_zero;
pub mod shared_role_scaler;
pub mod short_scale_down;

/// An autoscaler's target, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) named: ScaleTarget<'a>,
    pub(super) digest: Known<&'a Digest>,
}

impl<'a> Target<'a> {
    pub(super) fn of<P>(cx: &Context<'a, P>) -> Option<Self> {
        let named = ScaleTarget::of(cx.subject)?;
        let digest = cx.facts.target(&named, cx.subject.namespace.as_deref());
        Some(Self { named, digest })
    }

    /// The model that the target is known to serve on accelerators.
    fn served(&self) -> Option<&'a Served> {
        self.digest.present()?.served.as_deref()
    }
}

/// Whether an HPA is KEDA's own: it is judged at its ScaledObject. A reference to one that is known
/// not to exist is a forged one.
pub(super) fn is_kedas<P>(cx: &Context<'_, P>) -> bool {
    cx.subject.kind == "HorizontalPodAutoscaler"
        && hpa::keda_owner(&cx.subject.value).is_some_and(|owner| {
            cx.facts
                .scaled_object(cx.subject.namespace.as_deref(), owner)
                != Known::Absent
        })
}

/// A number at members of an object, as Kubernetes would take it.
fn number(subject: &Subject, keys: &[&str]) -> Option<u64> {
    subject.at(keys)?.as_u64()
}

/// Where the behavior of the HPA stands: in it, or in the ScaledObject that KEDA makes it from.
fn behavior(subject: &Subject) -> &'static [&'static str] {
    if subject.kind == "ScaledObject" {
        &[
            "spec",
            "advanced",
            "horizontalPodAutoscalerConfig",
            "behavior",
        ]
    } else {
        &["spec", "behavior"]
    }
}

/// Whether scaling down is switched off.
pub(super) fn never_scales_down(subject: &Subject) -> bool {
    subject
        .at(behavior(subject))
        .and_then(|behavior| at(behavior, &["scaleDown", "selectPolicy"])?.as_str())
        == Some("Disabled")
}

/// How few replicas an autoscaler may leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Floor {
    pub(super) replicas: u64,
    /// The member that says so, or that is silent about it.
    pub(super) keys: [&'static str; 2],
}

impl Floor {
    /// While there is something to do; silence means 1 for an HPA (k8s.io/api autoscaling/v2) and 0 for a ScaledObject
    /// (kedacore/keda apis/keda/v1alpha1/scaledobject_types.go).
    pub(super) fn when_active(subject: &Subject) -> Self {
        let (key, silent) = if subject.kind == "HorizontalPodAutoscaler" {
            ("minReplicas", 1)
        } else {
            ("minReplicaCount", 0)
        };
        let keys = ["spec", key];
        Self {
            replicas: number(subject, &keys).unwrap_or(silent),
            keys,
        }
    }

    /// At any time: KEDA may idle at fewer still.
    fn of(subject: &Subject) -> Self {
        let active = Self::when_active(subject);
        let keys = ["spec", "idleReplicaCount"];
        match number(subject, &keys) {
            Some(replicas) if subject.kind == "ScaledObject" && replicas < active.replicas => {
                Self { replicas, keys }
            }
            _ => active,
        }
    }

    /// What is written there.
    pub(super) fn written<'s>(&self, subject: &'s Subject) -> Option<&'s Value> {
        subject.at(&self.keys).filter(|value| !value.is_null())
    }
}

#[cfg(test)]
mod tests;
