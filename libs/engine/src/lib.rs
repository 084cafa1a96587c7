//! The engine: from a partition's records to a view's rows.
//!
//! A functional core. It is synchronous and knows no clock, no network and no SQL: a [`Shard`] is
//! given chunks of one partition's log and keeps one shard database up to date, and [`read`] turns the
//! rows of several shards into the rows of the view.
//!
//! ```text
//!  chunk ──► decode ──► event time ──► WHERE ──► expressions ──► late? ──► group ──► aggregates
//!              │            │            │            │            │                     │
//!              └────────────┴─ dead letters ──────────┴────────────┘          commit: rows, progress,
//!                                                                             tallies, dead letters
//! ```
//!
//! # Laws
//!
//! 1. *Replay is live*: what a shard database holds after offset X is a function of the plan and of
//!    the partition's records before X. How the records were cut into chunks and batches, when commits
//!    happened, what was cached and where a crash struck leaves no trace in a stored byte. So every
//!    decision is made record by record ([`Shard::apply`] has the order), every stored form is
//!    canonical, and sums of floating-point numbers are exact until they are read.
//! 2. *Every record counts once*: as applied, filtered, late or dead-lettered, in the same commit as
//!    the position behind it.
//! 3. *Partial rows merge*: the rows that several shards keep under one key have one merged result,
//!    whatever the order.
//!
//! # Elsewhere
//!
//! SQL becomes a [`plan::ViewPlan`] in `headwater-sql`. Bytes on disk, expiry and what readers may see
//! are `headwater-state`'s business, the layout of records `headwater-log`'s.

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

pub use dead_letter::{DeadLetter, Stage};
pub use error::Error;
pub use plan::{ViewPlan, arrow_type};
pub use shard::{Limits, Shard};
