//! The log on Kafka. No other crate knows rdkafka.
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
//! (`client`). Consumers are started when readers need them, producers at the first append.
//!
//! | to change | open |
//! | --- | --- |
//! | how a partition is read ahead, or how its records become batches | `read` |
//! | how appends are ordered, limited and answered | `produce` |
//! | how a writer is claimed and fenced | `writer` |
//! | how partitions are shared among processes, and positions committed | `membership` |
//! | how topics and groups are created, described and deleted | `admin` |
//! | what is cached of topics, and for how long | `topic_metadata` |
//! | when the brokers count as reached | `health` |
//! | what a person reads when they are not | `client/connection_info`, `client/error` |
//! | which settings each client gets, and which are refused | `config` |
//! | how blocking calls leave the caller's thread | `client/off_thread` |
//!
//! # Laws
//!
//! - Whatever the brokers do, only [`Reader::read`](headwater_log::Reader::read), and dropping a
//!   member, which leaves its group, block the caller's thread.
//! - A client that has lost its brokers gets them again (`client/rebootstrap`).
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
