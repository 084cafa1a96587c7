//! The life of a shard on its thread.
//!
//! | from | to | when |
//! | --- | --- | --- |
//! | Created | Opening | its duty is to run |
//! | | Deleting | its generation is retired |
//! | | Closed | it has no duty, or the lease has ended |
//! | Opening | Running | the database is open and the shard is claimed |
//! | | BackingOff | the log or the store is away, or the shard is to be released |
//! | | Halted | a person has to act |
//! | | Closed | another processor owns the shard |
//! | Running | LogAway | the log does not answer |
//! | | HandingOver | the group or shutdown wants the shard back |
//! | | Deleting | its generation is retired |
//! | | BackingOff | any other error that may pass |
//! | | Halted | a person has to act |
//! | | Closed | it has no duty any more, or another processor owns the shard |
//! | LogAway | Running | the log answers |
//! | | all that follows Running | |
//! | BackingOff | Opening, Deleting | the wait is over; which of the two is up to the duty |
//! | | Closed | the duty or the lease has ended |
//! | Halted | Opening, Deleting | the duty has changed, or the store is to be tried again |
//! | | Closed | the duty or the lease has ended |
//! | HandingOver | Closed | in time or not |
//! | Deleting | Closed | nothing is left, or the shard is to be released |
//! | | BackingOff | the log or the store is away |
//! | | Halted | a person has to act |
//!
//! A panic of the thread starts the table from Created.

/// Where a shard's thread is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShardState {
    /// Nothing has begun.
    Created,
    /// The database is restored and opened, and the shard is claimed.
    Opening,
    /// Rounds of reading, applying, committing and publishing.
    Running,
    /// As Running, but the log is away. The database stays open.
    LogAway,
    /// The database is closed; the thread opens it again after a wait.
    BackingOff,
    /// The database is closed and the status names the error. A person has to act.
    Halted,
    /// The last commit, checkpoint and status before another processor goes on.
    HandingOver,
    /// The last outputs are published, then all copies and the status are removed.
    Deleting,
    /// The thread has ended, or is about to.
    Closed,
}

impl ShardState {
    /// The table above.
    fn successors(self) -> &'static [Self] {
        use ShardState::*;
        match self {
            Created => &[Opening, Deleting, Closed],
            Opening => &[Running, BackingOff, Halted, Closed],
            Running => &[LogAway, HandingOver, Deleting, BackingOff, Halted, Closed],
            LogAway => &[Running, HandingOver, Deleting, BackingOff, Halted, Closed],
            BackingOff | Halted => &[Opening, Deleting, Closed],
            HandingOver => &[Closed],
            Deleting => &[BackingOff, Halted, Closed],
            Closed => &[],
        }
    }

    pub(crate) fn can_become(self, next: Self) -> bool {
        self.successors().contains(&next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn reachable(from: ShardState) -> BTreeSet<String> {
        let (mut found, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(state) = open.pop() {
            if found.insert(format!("{state:?}")) {
                open.extend(state.successors());
            }
        }
        found
    }

    #[test]
    fn every_state_is_reached_from_created_and_leads_to_closed() {
        use ShardState::*;
        let all =
            [Created, Opening, Running, LogAway, BackingOff, Halted, HandingOver, Deleting, Closed];
        assert_eq!(reachable(Created).len(), all.len());
        for state in all {
            assert!(reachable(state).contains("Closed"), "{state:?}");
        }
        assert!(!HandingOver.can_become(Running), "a shard that is handed over stays so");
    }
}
