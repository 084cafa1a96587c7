//! The engine: from a partition's records to a view's rows.
//!
//! It is a functional core: synchronous, without a clock, network or SQL. A [`Shard`] applies
//! chunks of one partition's log to one shard database. [`read`] turns the rows of several shards
//! into the rows of the view.
//!
//! ```text
//!  chunk ─► decode ─► event time, late? ─► WHERE ─► expressions ─► group ─► aggregates
//!             │           │                  │           │           │          │
//!             └───────────┴─── dead letters ─┴───────────┴─── late ──┘    commit: rows, progress,
//!                                                                         tallies, dead letters
//! ```
//!
//! Lateness is decided at the event time, but counted only after the expressions: a late record
//! that WHERE leaves out counts as filtered, and one whose expression fails as dead-lettered.
//!
//! # Laws
//!
//! 1. *Replay is live*: the content of a shard database after offset X is a function of the plan
//!    and of the partition's records before X. Chunks, batches, commits, caches and crashes do not
//!    change a stored byte. So every decision is made record by record ([`Shard::apply`] gives the
//!    order), every stored form is canonical, and sums of doubles are exact until they are read.
//! 2. *Every record counts once*: as applied, filtered, late or dead-lettered, in the same commit
//!    as the position after it. Nothing finds duplicates yet, so their tally is always 0.
//! 3. *Partial rows merge*: the rows that several shards have under one key have one merged result,
//!    in any order.
//!
//! # Which file to open
//!
//! | file | what it does |
//! | --- | --- |
//! | `shard.rs` | [`Shard`]: apply a chunk, commit |
//! | `shard/batch.rs` | one batch: event times, WHERE, expressions, groups |
//! | `shard/time_rules.rs` | watermark, lateness, windows, expiry |
//! | `shard/uncommitted.rs` | what the next commit writes |
//! | `decode.rs` | JSON to columns; [`Validator`](decode::Validator) for ingest |
//! | `groups.rs` | the write-back cache of groups |
//! | `aggregate.rs`, `exact.rs` | partial states and their merge; exact sums of doubles |
//! | `read.rs`, `read/finish.rs` | from stored rows to output rows |
//! | `plan.rs` | [`ViewPlan`], the input of all of this |
//! | `dead_letter.rs` | the stored form of a refused record |
//!
//! # Elsewhere
//!
//! `headwater-sql` makes a [`plan::ViewPlan`] from SQL. `headwater-state` owns the bytes on disk,
//! expiry, and what readers may see. `headwater-log` owns the layout of records.

mod aggregate;
pub mod dead_letter;
pub mod decode;
mod error;
mod evaluate;
mod exact;
mod groups;
pub mod plan;
pub mod read;
mod shard;
#[cfg(test)]
mod testing;
mod values;
mod varint;

pub use dead_letter::{ConnectStage, DeadLetter, Stage};
pub use error::Error;
pub use plan::{ViewPlan, arrow_type};
pub use shard::{Limits, Shard};
