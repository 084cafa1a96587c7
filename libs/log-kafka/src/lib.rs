//! The log on Kafka. No other crate knows rdkafka.
//!
//! | part | does | in |
//! | --- | --- | --- |
//! | reading | the bytes of a partition from an offset on, as batches | `pump`, `lane`, `reader` |
//! | membership | which partitions of a generation are ours | `membership` |
//! | appending | one idempotent producer, acks=all | `produce` |
//! | fenced writers | one transactional producer per claim | `writer` |
//! | asking | topics, ends, groups | `admin`, `known` |
//!
//! ConsumerLoop and membership know nothing of each other, so that a reader which speaks Fetch itself can take
//! the place of librdkafka's.
//!
//! ```text
//! broker ══> librdkafka's queue ──> one thread per consumer ──> lane per reader ──> Reader::read
//!            bounded in bytes       many records at once        whole batches,
//!                                   made into batches again     bounded in bytes
//! ```
//!
//! # What Kafka does in another way
//!
//! - Offsets have gaps: markers of transactions, aborted records, compaction. A reader's position passes
//!   over them; the end of a partition is its last stable offset.
//! - A batch may be stored in pieces, with others' records between them: [`Appended`] says where.
//! - An append that times out may be stored nevertheless: [`Error::Uncertain`].
//! - A record has a limit of its own: [`Log::record_limit`].
//! - Retention may remove what was not read yet: [`Error::Trimmed`] says from where on there is something.
//! - A timestamp of zero, 1970-01-01T00:00:00Z, becomes one millisecond: librdkafka takes zero for "now".
//! - Every question takes a network's time: [`Log::is_remote`].
//!
//! What brokers acknowledge (acks=all) is on the page caches of all replicas in sync, not on their disks: a
//! power cut on all of them at once may lose it. That is Kafka's contract.

mod admin;
mod client;
mod config;
mod health;
mod log;
mod membership;
mod produce;
mod read;
mod topic_metadata;
mod writer;

pub use config::{KafkaConfig, Placement, is_secret};
pub use log::KafkaLog;
