//! The log. All other state is derived from the log.
//!
//! Every event enters through [`Log::append`]. When a view and the log disagree, the view is wrong
//! and is rebuilt.
//!
//! ```text
//! offset   0   1   2   3   4   5
//!         [-] [-] [a] [b] [c]
//!                  ^           ^
//!                start        end: the next offset to be written
//! ```
//!
//! Records are stored and read as *batches*: one contiguous buffer in the layout of Kafka's record
//! batch v2, built by [`BatchBuilder`], stored as it is, handed out as a [`Chunk`] of whole batches
//! and walked in place by [`Records`]. Nothing is allocated per record.
//!
//! # Laws
//!
//! An implementation is correct when it passes [`conformance`]. In words:
//!
//! 1. *Durable*: an acknowledged record survives a crash, and so do topics, trims and claims.
//! 2. *Ordered*: a batch gets rising offsets, consecutive ones if no other client appends
//!    meanwhile; appends are stored in the order in which they were called, and a partition is read
//!    in offset order without skipping a record. Some offsets may hold no record.
//! 3. *Repeatable*: two reads of one readable range return the same records. Replay rests on it.
//! 4. *Readable*: what was acknowledged can be read at once, and nothing at or beyond `end` can.
//! 5. *Isolated*: partitions and topics do not see each other's records.
//! 6. *Faithful*: key, value, headers and timestamp come back as they went in; absent is not empty.
//! 7. *Waiting*: a reader at the end waits and is woken by the next append; beyond the end is an
//!    error.
//! 8. *Trimmed*: what was trimmed is refused with the new start, and what follows is untouched.
//! 9. *Fenced*: after a claim of a writer no older claim stores anything, also after a restart.
//! 10. *Compacted*: a topic that compacts keeps at least the latest record of each key, at its
//!     offset and in order. What is gone leaves a gap in the offsets.
//! 11. *Reported*: an unknown topic or partition, another specification, a batch or a record that
//!     is too large is an error that names it, and nothing of it is stored.
//!
//! # Which file to open
//!
//! | file | what it does |
//! | --- | --- |
//! | `lib.rs` | the traits [`Log`], [`Reader`] and [`FencedWriter`]; [`TopicSpec`] |
//! | `answer.rs` | [`Answer`]: futures that need no runtime |
//! | `batch.rs`, `batch/` | record batches: building, checking, walking |
//! | `appended.rs` | [`Appended`]: the offsets that a batch got |
//! | `partitioner.rs` | the partition of a key |
//! | `limit.rs` | [`RecordLimit`]: how large a record may be |
//! | `compaction.rs` | which batches of a compacted partition must stay |
//! | `membership.rs` | [`Membership`]: which partitions this process works on |
//! | `error.rs` | [`Error`] |
//! | `memory.rs` | the log in memory |
//! | `conformance.rs`, `conformance/` | the laws as tests for any implementation |
//!
//! # Elsewhere
//!
//! What a payload means is `headwater-proto`'s and `headwater-engine`'s business. The durable log
//! in one process is `headwater-log-embedded`; Kafka is known to `headwater-log-kafka` only.

mod answer;
mod appended;
mod batch;
mod compaction;
pub mod conformance;
mod error;
mod limit;
mod membership;
mod memory;
mod partitioner;

use std::{fmt, sync::Arc, time::Duration};

pub use answer::{Answer, answered, block_on};
pub use appended::Appended;
pub use batch::{
    BatchBuilder, BatchHeader, Chunk, EncodedBatch, HEADER_LEN, HeaderIter, Headers, Record,
    Records, RelayBuilder, Relayed,
};
pub use compaction::Compaction;
pub use error::Error;
use headwater_types::{Epoch, Name, Offset, PartitionId};
pub use limit::RecordLimit;
pub use membership::{Alone, Assignee, GroupId, Member, Membership};
pub use memory::MemoryLog;
pub use partitioner::{murmur2, partition_for_key};

/// The largest batch that a log takes unless it is told otherwise, in bytes.
pub const DEFAULT_MAX_BATCH_BYTES: usize = 16 << 20;

/// Topics of partitions of records.
///
/// Questions and orders are futures, since the log may be on another machine: a call waits for
/// nothing that a network does, so any thread may make it. A log in this process may do the work
/// within the call. A future that is dropped may or may not have had its effect. Only [`Reader`] is
/// synchronous: it hands out what has arrived, on a thread that has nothing else to do.
pub trait Log: Send + Sync + 'static {
    /// Creates the topic unless it exists with the same specification.
    ///
    /// [`Error::TopicDiffers`] if it exists with another one.
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Answer<()>;

    /// How the topic was created; `None` if it was not.
    fn topic(&self, topic: &Name) -> Answer<Option<TopicSpec>>;

    /// Where the partition starts and ends now.
    fn ends(&self, topic: &Name, partition: PartitionId) -> Answer<Ends>;

    /// How large a record of this topic may be, as far as the log knows now without asking anybody;
    /// `None` if only the batch has a limit.
    fn record_limit(&self, _topic: &Name) -> Option<RecordLimit> {
        None
    }

    /// Stores the batch; the future resolves to the offsets of its records once they are durable.
    ///
    /// The order of calls is the order of records, whenever the futures are polled. When the log
    /// has more to write than it may hold, the future waits for room. A batch with a record over
    /// the limit is refused as a whole.
    fn append(&self, topic: &Name, partition: PartitionId, batch: EncodedBatch)
    -> Answer<Appended>;

    /// A cursor whose first record is the first at or after `from`. Cheap; one per reading task.
    fn reader(&self, topic: &Name, partition: PartitionId, from: Offset)
    -> Answer<Box<dyn Reader>>;

    /// Claims the writer with the next epoch: once this resolves, every older claim is fenced for
    /// ever.
    fn writer(&self, id: &WriterId) -> Answer<Arc<dyn FencedWriter>>;

    /// Removes the records before `before`, which may be the end. Durable when it resolves.
    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Answer<()>;

    /// The bytes stored from `from` to before `to`, to the nearest batch or so. What lies outside
    /// the partition counts as nothing.
    fn size(&self, topic: &Name, partition: PartitionId, from: Offset, to: Offset) -> Answer<u64>;
}

/// A cursor over one partition.
pub trait Reader: Send {
    /// The offset before which everything was handed out.
    fn position(&self) -> Offset;

    /// The next whole batches, about `max_bytes` of them and at least one, and moves behind them.
    ///
    /// At the end it blocks for up to `wait`; `None` says that there is still nothing to read. The
    /// position may have moved nevertheless, over offsets that hold no record. The first batch may
    /// begin before the position: see [`Chunk::records`].
    fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error>;
}

/// A claim to be the only writer of something, until a newer claim.
pub trait FencedWriter: Send + Sync {
    fn epoch(&self) -> Epoch;

    /// As [`Log::append`]; [`Error::Fenced`] once there is a newer claim.
    fn append(&self, topic: &Name, partition: PartitionId, batch: EncodedBatch)
    -> Answer<Appended>;
}

/// The name under which successive processes claim to be one writer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriterId(pub String);

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How a topic is laid out and what happens to its old records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    pub partitions: u32,
    pub cleanup: Cleanup,
}

impl TopicSpec {
    pub const fn keep(partitions: u32) -> Self {
        Self { partitions, cleanup: Cleanup::Keep }
    }

    pub const fn compact(partitions: u32) -> Self {
        Self { partitions, cleanup: Cleanup::Compact }
    }
}

impl fmt::Display for TopicSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (one, many) = match self.cleanup {
            Cleanup::Keep => ("keeps every record", "keep every record"),
            Cleanup::Expire => ("deletes old records", "delete old records"),
            Cleanup::Compact => {
                ("keeps the latest record of each key", "keep the latest record of each key")
            }
        };
        match self.partitions {
            1 => write!(f, "1 partition that {one}"),
            n => write!(f, "{n} partitions that {many}"),
        }
    }
}

/// What happens to records that are not trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// They stay.
    Keep,
    /// They go by a rule that the topic's owner made, such as their age. Headwater never asks for
    /// it; topics that others created may have it.
    Expire,
    /// A record goes once a later one has its key. Every record must have a key; one without a
    /// value says that the key is gone, and stays.
    Compact,
}

/// The readable part of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The first offset that was not trimmed.
    pub start: Offset,
    /// The next offset to be written: the last stable offset.
    pub end: Offset,
}
