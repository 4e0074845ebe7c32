//! The integration tests: one binary, so that one API server serves them all.

#[path = "../apiserver/mod.rs"]
mod harness;

mod admission;
mod apiserver;
mod check;
mod docs;
mod enforce;
mod fixtures;
mod registration;
mod serve;
