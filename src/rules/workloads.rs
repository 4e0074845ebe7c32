//! Model servers.

use serde_json::json;

use crate::{
    finding::Confidence,
    provenance::{Provenance, of_field},
    subject::{Subject, at, pod_template::PodTemplate},
};

pub mod disruption_annotation;
pub mod drain_hook;
pub mod gang_priority;
pub mod gang_scaling_floor;
pub mod gang_scheduling;
pub mod gang_topology;
pub mod gpu_requests_equal_limits;
pub mod gpu_toleration;
pub mod model_load_budget;
pub mod parallelism_fits_pod;
pub mod readiness_probe;
pub mod rollout_capacity;
pub mod shared_memory;
pub mod stranded_gpus;
pub mod termination_grace;

#[cfg(test)]
mod properties;

/// The replicas that somebody wants, and how sure that is. `None` where nobody says: silence means
/// one, and an autoscaler may make it any number.
fn desired_replicas(subject: &Subject) -> Option<(u64, Confidence)> {
    let path = ["spec", "replicas"];
    let number = at(&subject.value, &path)?.as_u64()?;
    match of_field(subject, &path, &json!(1), None) {
        Provenance::Explicit | Provenance::Unchanged => Some((number, Confidence::Certain)),
        Provenance::Unknown => Some((number, Confidence::Unknown)),
        Provenance::Defaulted | Provenance::Presumed => None,
    }
}

/// Whether pods go to a scheduler, or name none and may still be sent there: a fill must not bring a
/// finding that was not there before it.
fn may_go_to(template: &PodTemplate<'_>, scheduler: &str) -> bool {
    match template.spec_text("schedulerName") {
        None | Some("default-scheduler") => true,
        Some(named) => named == scheduler,
    }
}
