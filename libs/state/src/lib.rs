//! The state of a shard: one RocksDB database, its writer, its readers and its checkpoints.
//!
//! A shard's database holds everything that the shard knows. One [`ShardDb::commit`] writes rows,
//! progress (position, watermark, tallies, horizon) and new outbox entries at once. So no row ever
//! counts an event that the position has not passed.
//!
//! ```text
//! rows     0x00 'f'        format            outbox   position, index -> record to be published
//!          0x00 'i'        identity
//!          0x00 'p'        progress
//!          0x00 'c'        outbox cursor
//!          0x00 's'        sequence
//!          0x01 key...     header, payload
//! ```
//!
//! Progress lies in the column family of the rows, so that one iterator sees rows and progress of
//! the same commit.
//!
//! # Laws
//!
//! 1. *Atomic*: a crash at any moment leaves the database at some commit.
//! 2. *Rebuildable*: a commit is not fsynced. A power cut may leave the database at an older
//!    commit; the processor then reads the log again from there. Therefore compaction must not act
//!    on a commit that a power cut could still undo (see [`ShardDb::sync`]).
//! 3. *Rows expire by event time*: by the horizon in a commit, never by a clock. Readers hide
//!    expired rows whether or not compaction has removed them.
//! 4. *Readable for ever*: every stored form that was ever released can be read.
//!
//! # Which file to open
//!
//! | file | what it does |
//! | --- | --- |
//! | `shard.rs` | [`ShardDb`]: open, load, commit, outbox, checkpoint, sync, compact |
//! | `reader.rs` | [`ShardReader`] of a live shard or a checkpoint; [`ReadView`] of a commit |
//! | `store.rs`, `store/` | [`Store`]: upload, fetch and prune checkpoints |
//! | `key.rs`, `row.rs`, `meta.rs` | the bytes of keys, rows and progress |
//! | `expiry.rs` | the compaction filter that removes expired rows |
//! | `options.rs`, `layout.rs` | RocksDB options, and directories under the data directory |
//! | `digest.rs` | the digest that compares two shards (law 2 of `ARCHITECTURE.md`) |
//!
//! # Elsewhere
//!
//! `headwater-engine` gives a row's payload its meaning. Besides this crate only the embedded log
//! knows RocksDB.

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
