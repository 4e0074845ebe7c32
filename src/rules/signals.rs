//! What autoscalers scale on.

pub mod gpu_memory_signal;
pub mod gpu_utilization_signal;
pub mod opaque_signal;
