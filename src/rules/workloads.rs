//! Model servers.

pub mod gang_scheduling;
pub mod parallelism_fits_pod;
pub mod stranded_gpus;
pub mod termination_grace;
