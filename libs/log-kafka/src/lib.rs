//! The log on Kafka. No other crate but the integration tests uses rdkafka.
//!
//! ```text
//! Log::append ───> Appender ─────> thread ─────────────> producer per size of batches ══╗
//! Log::writer ───> KafkaWriter ──> thread per claim ───> transactional producer ════════╣
//! Log::reader ───> KafkaReader <── thread per consumer <─ consumer ═════════════════════╬═ brokers
//! join ──────────> KafkaMember ──> thread per member ──> consumer that only joins ══════╣
//! questions ─────> Admin ────────> pool of threads ────> metadata and admin client ═════╣
//! on_reachable <── Health <─────── thread ─────────────> the same two clients ══════════╝
//! ```
//!
//! [`KafkaLog`] owns all of it. A double line is a client of librdkafka. A client is polled by the
//! one thread beside it, and shares its callbacks and what it learns of the brokers with the others
//! (`client.rs`). Consumers are started when readers need them, producers at the first append.
//!
//! | to change | open |
//! | --- | --- |
//! | how a partition is read ahead | `read.rs`, `read/consumer_thread.rs` |
//! | how its records become batches | `read/partition_buffer.rs` |
//! | how appends are ordered, limited and answered | `produce.rs` |
//! | how a writer is claimed and fenced | `writer.rs` |
//! | how partitions are shared among processes, and positions committed | `membership.rs` |
//! | how topics and groups are created, described and deleted | `admin.rs` |
//! | what is cached of topics, and for how long | `topic_metadata.rs` |
//! | when the brokers count as reached | `health.rs` |
//! | what a person reads when they are not | `client/connection_info.rs`, `client/error.rs` |
//! | which settings each client gets, and which are refused | `config.rs` |
//! | how blocking calls leave the caller's thread | `client/off_thread.rs` |
//!
//! # Laws
//!
//! - Whatever the brokers do, only [`Reader::read`](headwater_log::Reader::read), dropping a
//!   member, which leaves its group, and [`KafkaLog::close`] block the caller's thread.
//! - A client that has lost its brokers gets them again (`client/rebootstrap.rs`).
//! - What is read ahead, in flight and kept in buffers is bounded in bytes.
//!
//! # How Kafka differs from other logs
//!
//! - Offsets have gaps: transaction markers, aborted records, compaction. A reader's position
//!   passes over them. The end of a partition is its last stable offset.
//! - A batch may be stored in pieces with other records between them:
//!   [`Appended`](headwater_log::Appended) names each offset.
//! - An append that times out may be stored nevertheless:
//!   [`Error::Uncertain`](headwater_log::Error::Uncertain).
//! - A single record has a limit: [`Log::record_limit`](headwater_log::Log::record_limit).
//! - Retention may remove records before they are read:
//!   [`Error::Trimmed`](headwater_log::Error::Trimmed) says where the partition starts now.
//! - A timestamp of zero, 1970-01-01T00:00:00Z, is stored as one millisecond: librdkafka takes zero
//!   for "now".
//! - Acknowledged records (acks=all) are in the page caches of all in-sync replicas, not on their
//!   disks: a power cut on all of them at once may lose them.

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
