use headwater_service::Metrics;
use headwater_state::{Identity, Progress};
use headwater_types::{Name, Tallies};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
};
use std::{sync::atomic::AtomicU64, time::Duration};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShardLabels {
    view: String,
    generation: String,
    partition: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    view: String,
    generation: String,
    partition: u32,
    outcome: &'static str,
}

type FloatGauge = Gauge<f64, AtomicU64>;

/// The metrics of all shards.
#[derive(Clone)]
pub(crate) struct ProcessorMetrics {
    lag: Family<ShardLabels, Gauge>,
    watermark: Family<ShardLabels, FloatGauge>,
    records: Family<OutcomeLabels, Counter>,
    commits: Family<ShardLabels, Counter>,
    commit_seconds: Histogram,
    state_bytes: Family<ShardLabels, Gauge>,
    rate: Family<ShardLabels, FloatGauge>,
    published: Family<ShardLabels, Counter>,
    stopped: Family<ShardLabels, Gauge>,
    restored_bytes: Counter,
    restore_seconds: Histogram,
    uploaded_bytes: Counter,
    upload_seconds: Histogram,
    failed_uploads: Counter,
    hand_overs: Family<HandOverLabels, Counter>,
}

/// How a shard left this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandOverOutcome {
    /// It was closed by the deadline.
    InTime,
    /// It was not closed by the deadline.
    Late,
    /// The group had given it to another process before this one knew.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandOverLabels {
    outcome: &'static str,
}

const OUTCOMES: [&str; 5] = ["applied", "filtered", "late", "duplicate", "dead_lettered"];

impl ProcessorMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            lag: metrics.register(
                "processor_lag_records",
                "Records in the log that the shard has not committed",
                Family::default(),
            ),
            watermark: metrics.register(
                "processor_watermark_seconds",
                "The shard's watermark, in seconds since 1970",
                Family::default(),
            ),
            records: metrics.register(
                "processor_records",
                "Records committed since the start, by what became of them",
                Family::default(),
            ),
            commits: metrics.register(
                "processor_commits",
                "Commits since the start",
                Family::default(),
            ),
            commit_seconds: metrics.register(
                "processor_commit_seconds",
                "How long a commit takes",
                Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            ),
            state_bytes: metrics.register(
                "processor_state_bytes",
                "The shard's state on disk",
                Family::default(),
            ),
            rate: metrics.register(
                "processor_records_per_second",
                "Records that the shard committed per second, over the last few seconds",
                Family::default(),
            ),
            published: metrics.register(
                "processor_published",
                "Output records appended to their topics since the start",
                Family::default(),
            ),
            stopped: metrics.register(
                "processor_shard_stopped",
                "1 if the shard has stopped for an error",
                Family::default(),
            ),
            restored_bytes: metrics.register(
                "processor_restored_bytes",
                "Bytes of checkpoints that were fetched from the store",
                Counter::default(),
            ),
            restore_seconds: metrics.register(
                "processor_restore_seconds",
                "How long it takes to fetch a shard's checkpoint and to open it",
                Histogram::new(exponential_buckets(0.01, 2.0, 16)),
            ),
            uploaded_bytes: metrics.register(
                "processor_uploaded_bytes",
                "Bytes of checkpoints that were sent to the store; what it had already is not sent",
                Counter::default(),
            ),
            upload_seconds: metrics.register(
                "processor_upload_seconds",
                "How long it takes to store a checkpoint",
                Histogram::new(exponential_buckets(0.01, 2.0, 16)),
            ),
            failed_uploads: metrics.register(
                "processor_failed_uploads",
                "Checkpoints that could not be stored, each try counted",
                Counter::default(),
            ),
            hand_overs: metrics.register(
                "processor_hand_overs",
                "Shards that this process gave up: closed in time, late, or lost to another owner",
                Family::default(),
            ),
        }
    }

    pub(crate) fn restored(&self, bytes: u64, took: Duration) {
        self.restored_bytes.inc_by(bytes);
        self.restore_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn uploaded(&self, bytes: u64, took: Duration) {
        self.uploaded_bytes.inc_by(bytes);
        self.upload_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn upload_failed(&self) {
        self.failed_uploads.inc();
    }

    pub(crate) fn handed_over(&self, how: HandOverOutcome) {
        let outcome = match how {
            HandOverOutcome::InTime => "closed",
            HandOverOutcome::Late => "late",
            HandOverOutcome::Lost => "lost",
        };
        self.hand_overs.get_or_create(&HandOverLabels { outcome }).inc();
    }

    /// The metrics of one shard.
    pub(crate) fn shard(&self, view: &Name, identity: &Identity) -> ShardMetrics {
        let shard = ShardLabels {
            view: view.to_string(),
            generation: identity.generation.to_string(),
            partition: identity.partition.0,
        };
        ShardMetrics { all: self.clone(), shard }
    }
}

/// The metrics of one shard. Dropping it removes them.
pub(crate) struct ShardMetrics {
    all: ProcessorMetrics,
    shard: ShardLabels,
}

impl ShardMetrics {
    pub(crate) fn committed(&self, seconds: f64, progress: &Progress, new: Tallies) {
        self.all.commits.get_or_create(&self.shard).inc();
        self.all.commit_seconds.observe(seconds);
        if let Some(watermark) = progress.watermark.known() {
            self.all.watermark.get_or_create(&self.shard).set(watermark.0 as f64 / 1e6);
        }
        let Tallies { applied, filtered, late, duplicate, dead_lettered } = new;
        for (outcome, count) in
            OUTCOMES.into_iter().zip([applied, filtered, late, duplicate, dead_lettered])
        {
            self.all.records.get_or_create(&self.outcome(outcome)).inc_by(count);
        }
    }

    pub(crate) fn lag(&self, records: u64) {
        self.all.lag.get_or_create(&self.shard).set(records.cast_signed());
    }

    pub(crate) fn measured(&self, state_bytes: u64, records_per_second: f64) {
        self.all.state_bytes.get_or_create(&self.shard).set(state_bytes.cast_signed());
        self.all.rate.get_or_create(&self.shard).set(records_per_second);
    }

    pub(crate) fn published(&self, records: u64) {
        self.all.published.get_or_create(&self.shard).inc_by(records);
    }

    pub(crate) fn stopped(&self, stopped: bool) {
        self.all.stopped.get_or_create(&self.shard).set(i64::from(stopped));
    }

    fn outcome(&self, outcome: &'static str) -> OutcomeLabels {
        let ShardLabels { view, generation, partition } = self.shard.clone();
        OutcomeLabels { view, generation, partition, outcome }
    }
}

impl Drop for ShardMetrics {
    fn drop(&mut self) {
        let all = &self.all;
        for gauge in [&all.lag, &all.state_bytes, &all.stopped] {
            gauge.remove(&self.shard);
        }
        for gauge in [&all.watermark, &all.rate] {
            gauge.remove(&self.shard);
        }
        for counter in [&all.commits, &all.published] {
            counter.remove(&self.shard);
        }
        for outcome in OUTCOMES {
            all.records.remove(&self.outcome(outcome));
        }
    }
}
