//! The integration tests: one binary, so that one API server serves them all.

// The helpers of tests are tests too: what fails in them fails the test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper of a test may fail like the test"
)]

#[path = "../apiserver/mod.rs"]
mod harness;

mod admission;
mod apiserver;
mod audit;
mod break_glass;
mod certificates;
mod chart;
mod check;
mod conditions;
mod conformance;
mod crowd;
mod docs;
mod drift;
mod enforce;
mod exemptions;
mod faults;
mod fix;
mod fixtures;
mod formats;
mod fuzz;
mod helm;
mod hostile;
mod html;
mod kinds;
mod large;
mod limits;
mod node_pools;
mod overheard;
mod patrol;
mod policy;
mod ratchet;
mod recovery;
mod registration;
mod release;
mod reload;
mod replay;
mod reports;
mod serve;
mod signals;
mod strangers;
mod targets;
mod v1beta1;
mod waits;
mod workloads;
