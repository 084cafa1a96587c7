//! The reads that a request makes of each shard, and how fresh each shard has to be.

use std::time::{Duration, Instant};

use headwater_state::KeyRange;
use headwater_types::Offset;

/// How fresh one shard has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FreshnessGoal {
    /// The answer has every commit that is older than this.
    pub since: Instant,
    /// The answer has every record before this.
    pub position: Offset,
    /// The first words of "… position 17 in partition 3": they name what asks for the position.
    pub reason: &'static str,
    pub deadline: Instant,
}

/// The reads that a request makes of each shard. The plan is made before a snapshot is taken,
/// because a peer opens all of it at once.
#[derive(Default)]
pub(crate) struct ReadPlan {
    /// One row.
    pub key: Option<Vec<u8>>,
    pub scans: Vec<ScanPlan>,
    /// How long the snapshot may be read.
    pub duration: Duration,
}

/// One scan of every shard.
pub(crate) struct ScanPlan {
    pub range: KeyRange,
    /// Keeps only rows that a record at or behind the position of its partition changed. One
    /// position per shard.
    pub changed_since: Option<Vec<Offset>>,
    /// About how many rows are read at first.
    pub first_rows: usize,
}
