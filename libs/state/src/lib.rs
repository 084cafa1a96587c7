//! The state of a shard: one RocksDB database, its writer, its readers and its checkpoints.
//!
//! Whatever a shard knows lies in one database, and one [`ShardDb::commit`] writes all of it at once:
//! rows, position, watermark, tallies and the records that are to be published. So there is no moment
//! at which a row has counted an event that the position has not passed.
//!
//! ```text
//! rows     0x00 'f'        format            outbox   position, index -> what is to be published
//!          0x00 'i'        identity
//!          0x00 'p'        progress
//!          0x00 'c'        outbox cursor
//!          0x00 's'        sequence
//!          0x01 key...     header, payload
//! ```
//!
//! Progress lies among the rows, so that one iterator sees the two as one commit left them.
//!
//! # Laws
//!
//! 1. *Atomic*: a crash at any moment leaves the database as some commit left it.
//! 2. *Rebuildable*: a commit is not fsynced. After a power cut an older commit is found, and the log is
//!    read again from there. Therefore nothing that a later commit allowed may have happened to the
//!    rows of an earlier one (see [`ShardDb::sync`]).
//! 3. *Time is the shard's*: rows expire by the horizon that a commit states, never by a clock. A
//!    reader hides what has expired whether or not compaction has removed it.
//! 4. *Readable for ever*: the bytes of every stored form that was ever released can be read.
//!
//! # Readers
//!
//! [`ShardReader`] reads a shard that another process (or thread) writes, as a RocksDB secondary, or a
//! checkpoint. It catches up on demand only. A [`ReadView`] is one commit.
//!
//! # Machines
//!
//! A checkpoint moves to another machine through a [`Store`].
//!
//! # Elsewhere
//!
//! What a payload means is `headwater-engine`'s. Where the directories lie is [`layout`]'s. No other
//! crate but the embedded log knows RocksDB.

mod digest;
mod error;
mod expiry;
pub mod key;
pub mod layout;
mod meta;
mod options;
mod reader;
mod row;
mod shard;
pub mod store;

pub use digest::{Dump, digest, dump};
pub use error::Error;
pub use meta::{FORMAT, Identity, Progress};
pub use options::{Cache, Options};
pub use reader::{ReadView, Row, RowScan, ShardReader};
pub use row::{
    KeyRange, NEVER_EXPIRES, OutboxKey, ROW_HEADER_LEN, RowHeader, decode_row, encode_header,
};
pub use shard::{Commit, ShardDb};
pub use store::{Manifest, Purpose, Store};
