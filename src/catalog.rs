//! What the world calls things: metrics, instance types, model servers, schedulers, controllers.
//! The tables are data (`policies/catalog/*.yaml`), embedded, and a policy may add to them.

pub mod controllers;
pub mod engines;
pub mod metrics;
pub mod schedulers;

use engines::Engines;
use metrics::MetricCatalog;

/// The catalogues as one policy sees them.
#[derive(Debug, Default)]
pub struct Catalog {
    /// With what the site adds; none where it adds nothing.
    pub(crate) site_engines: Option<Engines>,
    /// With what the site adds; none where it adds nothing.
    pub(crate) site_metrics: Option<MetricCatalog>,
}

impl Catalog {
    /// Model servers and accelerators.
    pub fn engines(&self) -> &Engines {
        self.site_engines
            .as_ref()
            .unwrap_or_else(|| Engines::builtin())
    }

    /// What metric names mean.
    pub fn metrics(&self) -> &MetricCatalog {
        self.site_metrics
            .as_ref()
            .unwrap_or_else(|| MetricCatalog::builtin())
    }
}
