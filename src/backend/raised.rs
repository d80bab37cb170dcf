//! A gauge that is one higher for as long as something lives.

use std::sync::Arc;

use crate::observe::{Metrics, metrics::Gauge};

/// Lowers its gauge when dropped.
pub(super) struct Raised {
    metrics: Arc<Metrics>,
    gauge: fn(&Metrics) -> &Gauge,
}

impl Raised {
    pub(super) fn new(metrics: &Arc<Metrics>, gauge: fn(&Metrics) -> &Gauge) -> Self {
        gauge(metrics).increment();
        Self {
            metrics: metrics.clone(),
            gauge,
        }
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        (self.gauge)(&self.metrics).decrement();
    }
}
