use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::{
    encoding::text,
    registry::{Metric, Registry},
};

/// The process's metrics, as `/metrics` shows them. Cheap to clone; all clones are one registry.
///
/// Every name begins with `headwater_` and the service (`headwater_ingest_events_total`). Units are
/// base units and part of the name: `_seconds`, `_bytes`.
#[derive(Clone)]
pub struct Metrics {
    state: Arc<MetricsState>,
}

struct MetricsState {
    registry: Mutex<Registry>,
    before_encode: Mutex<Vec<Box<dyn Fn() + Send>>>,
}

/// The content type of the answer to `/metrics`.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Metrics {
    pub fn new() -> Self {
        let registry = Mutex::new(Registry::with_prefix("headwater"));
        Self { state: Arc::new(MetricsState { registry, before_encode: Mutex::default() }) }
    }

    /// Adds a metric and hands it back: keep the returned clone and change that.
    ///
    /// Give `name` without the `headwater_` prefix and a counter's `_total`, and `help` without a
    /// full stop at its end: all three are added.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.state.registry.lock().register(name, help, metric.clone());
        metric
    }

    /// Calls `refresh` before each answer, for gauges that are cheaper to compute than to keep
    /// current.
    pub fn before_encode(&self, refresh: impl Fn() + Send + 'static) {
        self.state.before_encode.lock().push(Box::new(refresh));
    }

    /// Forgets all metrics: the service that registered them has ended, and the next one registers
    /// its own.
    pub(crate) fn clear(&self) {
        self.state.before_encode.lock().clear();
        *self.state.registry.lock() = Registry::with_prefix("headwater");
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        for refresh in &*self.state.before_encode.lock() {
            refresh();
        }
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode(&mut text, &self.state.registry.lock());
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

    use super::*;

    #[test]
    fn every_metric_is_named_after_the_project() {
        let metrics = Metrics::new();
        let events: Counter =
            metrics.register("ingest_events", "Events received", Counter::default());
        events.inc_by(3);

        let text = metrics.encode();

        assert!(text.contains("# HELP headwater_ingest_events Events received.\n"), "{text}");
        assert!(text.contains("\nheadwater_ingest_events_total 3\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn gauges_can_be_refreshed_when_they_are_asked_for() {
        let metrics = Metrics::new();
        let size: Gauge = metrics.register("state_bytes", "Bytes on disk", Gauge::default());
        metrics.before_encode(move || {
            size.inc();
        });

        metrics.encode();

        assert!(metrics.encode().contains("\nheadwater_state_bytes 2\n"));
    }
}
