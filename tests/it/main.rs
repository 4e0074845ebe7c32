//! The integration tests: one binary, so that one API server serves them all.

#[path = "../apiserver/mod.rs"]
mod harness;

mod apiserver;
