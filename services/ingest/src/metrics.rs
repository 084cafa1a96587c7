use headwater_service::Metrics;
use headwater_types::Name;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabel {
    stream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    stream: String,
    outcome: &'static str,
}

/// The metrics of ingest, for all streams.
#[derive(Clone)]
pub(crate) struct IngestMetrics {
    events: Family<OutcomeLabels, Counter>,
    bytes: Family<StreamLabel, Counter>,
    append_seconds: Family<StreamLabel, Histogram, fn() -> Histogram>,
    pub(crate) in_flight_bytes: Gauge,
    pub(crate) refused: Counter,
}

/// The metrics of one stream, looked up once.
pub(crate) struct StreamMetrics {
    pub(crate) accepted: Counter,
    pub(crate) rejected: Counter,
    pub(crate) bytes: Counter,
    pub(crate) append_seconds: Histogram,
}

impl IngestMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        // From 0.25 ms, well below an fsync, to 8 s.
        let histogram: fn() -> Histogram =
            || Histogram::new(exponential_buckets(0.000_25, 2.0, 16));
        Self {
            events: metrics.register(
                "ingest_events",
                "Events received, by what became of them: accepted (durable) or rejected",
                Family::default(),
            ),
            bytes: metrics.register("ingest_bytes", "Bytes of accepted events", Family::default()),
            append_seconds: metrics.register(
                "ingest_append_seconds",
                "Time from handing a request's events to the log until they are durable",
                Family::new_with_constructor(histogram),
            ),
            in_flight_bytes: metrics.register(
                "ingest_in_flight_bytes",
                "Bytes of requests that are being read, checked or made durable",
                Gauge::default(),
            ),
            refused: metrics.register(
                "ingest_refused",
                "Requests refused because ingest held as much as it may",
                Counter::default(),
            ),
        }
    }

    pub(crate) fn of(&self, stream: &Name) -> StreamMetrics {
        let label = StreamLabel { stream: stream.to_string() };
        let outcome = |outcome| {
            let label = OutcomeLabels { stream: stream.to_string(), outcome };
            self.events.get_or_create(&label).clone()
        };
        StreamMetrics {
            accepted: outcome("accepted"),
            rejected: outcome("rejected"),
            bytes: self.bytes.get_or_create(&label).clone(),
            append_seconds: self.append_seconds.get_or_create(&label).clone(),
        }
    }
}
