//! Model servers.

pub mod drain_hook;
pub mod gang_priority;
pub mod gang_scaling_floor;
pub mod gang_scheduling;
pub mod model_load_budget;
pub mod parallelism_fits_pod;
pub mod readiness_probe;
pub mod stranded_gpus;
pub mod termination_grace;
