//! Runs Gangplank against a real API server on this machine.
fn main() {}
