//! The laws of the log as tests that run against any implementation.
//!
//! Every law is a function that panics when the law is broken; [`LAWS`] names them all. A log that
//! outlives its process is also closed and opened again in the middle of them.

mod appending;
mod bench;
mod reading;
mod removing;
mod surviving;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use headwater_types::{Name, Offset, PartitionId};

use crate::{BatchBuilder, EncodedBatch, Log, TopicSpec};
use bench::{Bench, Content};

/// What the suite is run against.
pub trait Subject: Sync {
    /// Opens the log. It is called again only after everything of the one before was dropped, and
    /// then a durable log holds what was acknowledged.
    fn open(&self) -> Arc<dyn Log>;

    /// Whether what was acknowledged outlives the log. Otherwise the laws about that are not run.
    fn durable(&self) -> bool;
}

/// A law by name.
pub type Law = (&'static str, fn(&dyn Subject));

/// Every law. Each may run alone, also in a log in which others ran before.
pub const LAWS: &[Law] = &[
    ("a batch gets consecutive offsets", appending::a_batch_gets_consecutive_offsets),
    (
        "appends are stored in the order of calls",
        appending::appends_are_stored_in_the_order_of_calls,
    ),
    ("concurrent appends are all stored once", appending::concurrent_appends_are_all_stored_once),
    ("partitions and topics are apart", appending::partitions_and_topics_are_apart),
    ("records come back as they went in", reading::records_come_back_as_they_went_in),
    ("a chunk is whole batches within its size", reading::a_chunk_is_whole_batches_within_its_size),
    (
        "what was acknowledged can be read at once",
        reading::what_was_acknowledged_can_be_read_at_once,
    ),
    ("reading begins in the middle of a batch", reading::reading_begins_in_the_middle_of_a_batch),
    ("two reads return the same", reading::two_reads_return_the_same),
    ("a waiting reader is woken by an append", reading::a_waiting_reader_is_woken_by_an_append),
    (
        "a reader at the end waits no longer than asked",
        reading::a_reader_at_the_end_waits_no_longer_than_asked,
    ),
    ("an offset beyond the end is an error", reading::an_offset_beyond_the_end_is_an_error),
    ("what is unknown is named", reading::what_is_unknown_is_named),
    ("a topic is created once", appending::a_topic_is_created_once),
    (
        "a record over the limit is refused with its batch",
        appending::a_record_over_the_limit_is_refused_with_its_batch,
    ),
    ("size follows the bytes", reading::size_follows_the_bytes),
    ("what was trimmed is refused", removing::what_was_trimmed_is_refused),
    ("a partition is trimmed to its end", removing::a_partition_is_trimmed_to_its_end),
    ("compaction keeps the latest of each key", removing::compaction_keeps_the_latest_of_each_key),
    (
        "compaction refuses records without a key",
        removing::compaction_refuses_records_without_a_key,
    ),
    ("a newer claim fences the older ones", appending::a_newer_claim_fences_the_older_ones),
    ("what was acknowledged survives", surviving::what_was_acknowledged_survives),
    ("offsets go on after opening again", surviving::offsets_go_on_after_opening_again),
    ("a trim survives", surviving::a_trim_survives),
    ("a claim survives", surviving::a_claim_survives),
    ("compaction survives", surviving::compaction_survives),
];

/// Runs every law and says which one is broken.
pub fn all(subject: &dyn Subject) {
    for (name, law) in LAWS {
        eprintln!("law: {name}");
        law(subject);
    }
}

/// A record as the suite compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    offset: u64,
    content: Content,
}

/// A topic name that no other law and no earlier run uses.
fn fresh(label: &str) -> Name {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Name::new(format!("law.{label}.{}.{number}", std::process::id()))
        .expect("labels are legal names")
}

fn batch(contents: &[Content]) -> EncodedBatch {
    let mut builder = BatchBuilder::new();
    for content in contents {
        let headers: Vec<_> =
            content.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        builder.push(
            content.timestamp_ms,
            content.key.as_deref(),
            content.value.as_deref(),
            &headers,
        );
    }
    builder.build().expect("laws append no empty batch")
}

/// How long the suite waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(10);

const ZERO: PartitionId = PartitionId(0);

fn at(offset: u64) -> Offset {
    Offset(offset)
}

fn one() -> TopicSpec {
    TopicSpec::keep(1)
}
