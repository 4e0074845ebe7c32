//! Gangplank stands at the API server's door and turns away the configurations that burn GPU money
//! or drop requests, and fills in the safe ones.
//!
//! The core is pure: [`review::review`] takes a policy, facts, an object and the time, and says what
//! it finds. The webhook, the audit and `gangplank check` are edges around that one function.

pub mod admin;
pub mod audit;
pub mod budget;
pub mod catalog;
pub(crate) mod cel;
pub mod cli;
pub mod cluster;
pub mod edit;
pub mod engine;
pub mod exempt;
pub mod facts;
pub mod finding;
pub mod metrics;
pub mod policy;
pub mod provenance;
pub mod replay;
pub mod report;
pub mod review;
pub mod rules;
pub mod signal;
pub mod source;
pub mod subject;
pub mod telemetry;
pub mod text;
pub mod tls;
pub mod webhook;
