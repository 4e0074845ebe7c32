//! What the world calls things: metrics, instance types, model servers, schedulers, controllers.
//! The tables are data (`policies/catalog/*.yaml`), embedded, and a policy may add to them.

use std::sync::Arc;

use instances::InstanceCatalog;

pub mod instances;

/// The catalogues as one policy sees them.
#[derive(Debug)]
pub struct Catalog {
    /// What instance types hold.
    pub instances: Arc<InstanceCatalog>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            instances: InstanceCatalog::builtin(),
        }
    }
}
