//! Counters and histograms of the query service.

use std::time::Instant;

use headwater_service::Metrics as Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
};
use tonic::{Code, Status};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ForwardedOutcome {
    code: &'static str,
}

/// Counters and histograms of the query service.
#[derive(Clone)]
pub(crate) struct Metrics {
    requests: Family<Outcome, Counter>,
    seconds: Family<Method, Histogram>,
    rows: Family<Method, Counter>,
    staleness: Histogram,
    forwarded: Family<ForwardedOutcome, Counter>,
    forwarded_seconds: Histogram,
    pub catch_up: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        // 50 µs to 26 s.
        let seconds = || Histogram::new(exponential_buckets(0.000_05, 2.0, 20));
        Self {
            requests: registry.register(
                "query_requests",
                "Requests answered, by outcome",
                Family::default(),
            ),
            seconds: registry.register(
                "query_request_seconds",
                "Time from a request to the end of its answer, its waits included",
                Family::new_with_constructor(seconds as fn() -> Histogram),
            ),
            rows: registry.register("query_rows", "Rows sent", Family::default()),
            catch_up: registry.register(
                "query_catch_up_seconds",
                "Time that a shard's reader took to catch up with its processor",
                Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            ),
            forwarded: registry.register(
                "query_forwarded_reads",
                "Shards that another instance was asked for, by outcome; what it answers others counts as its \
                 requests of the method read_shard",
                Family::default(),
            ),
            forwarded_seconds: registry.register(
                "query_forwarded_read_seconds",
                "Time until another instance had opened a shard or refused, its waits included",
                Histogram::new(exponential_buckets(0.000_1, 2.0, 18)),
            ),
            staleness: registry.register(
                "query_staleness_seconds",
                "How long before an answer its shards had last been caught up with, per shard read",
                Histogram::new(exponential_buckets(0.000_1, 2.0, 14)),
            ),
        }
    }

    /// Shards were read that had last been caught up with at these moments.
    pub(crate) fn staleness(&self, caught_up: impl IntoIterator<Item = Instant>) {
        for caught_up in caught_up {
            self.staleness.observe(caught_up.elapsed().as_secs_f64());
        }
    }

    /// A read was forwarded, and its shard opened or not.
    pub(crate) fn forwarded(&self, began: Instant, outcome: Result<(), &Status>) {
        let code = outcome.map_or_else(Status::code, |()| Code::Ok);
        self.forwarded.get_or_create(&ForwardedOutcome { code: code_name(code) }).inc();
        self.forwarded_seconds.observe(began.elapsed().as_secs_f64());
    }

    pub(crate) fn begin(&self, method: &'static str) -> Measured {
        Measured {
            metrics: self.clone(),
            method,
            began: Instant::now(),
            code: Code::Cancelled,
            rows: 0,
        }
    }
}

/// One request. It is counted when this is dropped: as cancelled, unless [`Measured::end`] gave
/// another code.
pub(crate) struct Measured {
    metrics: Metrics,
    method: &'static str,
    began: Instant,
    code: Code,
    rows: u64,
}

impl Measured {
    pub(crate) fn rows(&mut self, rows: usize) {
        self.rows += rows as u64;
    }

    pub(crate) fn end(&mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let Self { metrics, method, began, code, rows } = self;
        metrics.requests.get_or_create(&Outcome { method, code: code_name(*code) }).inc();
        metrics.seconds.get_or_create(&Method { method }).observe(began.elapsed().as_secs_f64());
        if *rows > 0 {
            metrics.rows.get_or_create(&Method { method }).inc_by(*rows);
        }
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
