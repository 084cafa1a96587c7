//! Counts of the records that a shard has read, by outcome.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Counts each record that a shard has read in exactly one field (law 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tallies {
    /// The record changed a row.
    pub applied: u64,
    /// The view's WHERE left the record out.
    pub filtered: u64,
    /// The watermark had passed the end of the record's window by the allowed lateness or more; in
    /// a view without windows, its event time by more than that. Or the row would have expired.
    pub late: u64,
    /// The record repeats an event that was already counted. Always 0 until there is deduplication.
    pub duplicate: u64,
    /// The record could not be processed and went to the dead letters.
    pub dead_lettered: u64,
}

impl Tallies {
    /// The number of records read.
    pub fn read(&self) -> u64 {
        self.applied + self.filtered + self.late + self.duplicate + self.dead_lettered
    }
}

impl AddAssign for Tallies {
    fn add_assign(&mut self, other: Self) {
        self.applied += other.applied;
        self.filtered += other.filtered;
        self.late += other.late;
        self.duplicate += other.duplicate;
        self.dead_lettered += other.dead_lettered;
    }
}
