//! What the world calls things: metrics, instance types, model servers, schedulers, controllers.
//! The tables are data (`policies/catalog/*.yaml`), embedded, and a policy may add to them.

pub mod controllers;
pub mod engines;
pub mod schedulers;

/// The catalogues as one policy sees them.
#[derive(Debug, Default)]
pub struct Catalog {}
