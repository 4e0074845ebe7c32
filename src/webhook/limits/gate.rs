//! A bound on how many may do something at a time.

use std::sync::atomic::Ordering;

use prometheus_client::metrics::gauge::Gauge;

/// Bounds how many may be inside. One atomic counts them and is the metric as well.
#[derive(Clone, Debug)]
pub struct Gate {
    inside: Gauge,
    limit: i64,
}

impl Gate {
    /// Creates a gate for `limit` at a time, counted in `inside`.
    pub fn new(limit: u32, inside: Gauge) -> Self {
        Self {
            inside,
            limit: limit.into(),
        }
    }

    /// Creates a gate that counts for itself alone.
    pub fn uncounted(limit: u32) -> Self {
        Self::new(limit, Gauge::default())
    }

    /// Lets one in, until what is returned is dropped; `None` where it is full.
    pub fn enter(&self) -> Option<Pass> {
        let one_more = |inside| (inside < self.limit).then_some(inside + 1);
        // Nothing else is ordered by the count.
        self.inside
            .inner()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()
            .map(|_| Pass(self.inside.clone()))
    }

    /// Returns how many are inside.
    pub fn inside(&self) -> i64 {
        self.inside.get()
    }

    /// Returns how many may be inside.
    pub fn limit(&self) -> i64 {
        self.limit
    }
}

/// Somebody whom a [`Gate`] let in.
#[derive(Debug)]
pub struct Pass(Gauge);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_lets_in_as_many_as_it_says_and_again_when_they_leave() {
        let inside = Gauge::default();
        let gate = Gate::new(2, inside.clone());
        let first = gate.enter().unwrap();
        let _second = gate.enter().unwrap();
        assert!(gate.enter().is_none());
        assert_eq!(inside.get(), 2);
        drop(first);
        assert_eq!(inside.get(), 1);
        let _third = gate.enter().unwrap();
        assert!(gate.enter().is_none());
    }
}
