//! What autoscalers scale on.
