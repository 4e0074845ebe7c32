//! What the world calls things: metrics, instance types, model servers, schedulers, controllers.
//! The tables are data (`policies/catalog/*.yaml`), embedded, and a policy may add to them.

use std::sync::Arc;

use engines::Engines;
use instances::InstanceCatalog;
use metrics::MetricCatalog;

pub mod controllers;
pub mod engines;
pub mod instances;
pub mod metrics;
pub mod schedulers;

/// The catalogues as one policy sees them.
#[derive(Debug)]
pub struct Catalog {
    /// What instance types hold.
    pub instances: Arc<InstanceCatalog>,
    /// With what the site adds; none where it adds nothing.
    pub(crate) site_engines: Option<Arc<Engines>>,
    /// With what the site adds; none where it adds nothing.
    pub(crate) site_metrics: Option<MetricCatalog>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            instances: InstanceCatalog::builtin(),
            site_engines: None,
            site_metrics: None,
        }
    }
}

impl Catalog {
    /// Model servers and accelerators.
    pub fn engines(&self) -> &Engines {
        self.site_engines
            .as_deref()
            .unwrap_or_else(|| Engines::builtin())
    }

    /// Model servers and accelerators with what the site adds; none where it adds nothing.
    pub fn site_engines(&self) -> Option<Arc<Engines>> {
        self.site_engines.clone()
    }

    /// What metric names mean.
    pub fn metrics(&self) -> &MetricCatalog {
        self.site_metrics
            .as_ref()
            .unwrap_or_else(|| MetricCatalog::builtin())
    }
}
