//! How much one producer may hold. librdkafka's own limits would refuse a batch halfway.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// A single batch may exceed these.
const MAX_BYTES: usize = 64 << 20;
const MAX_RECORDS: usize = 500_000;

/// A batch enters as a whole before its first record is sent: if the rest of it came too late, a
/// part of it would be stored.
#[derive(Debug, Default)]
pub(crate) struct InFlightBudget {
    in_use: Mutex<InUse>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct InUse {
    bytes: usize,
    records: usize,
}

impl InFlightBudget {
    /// Waits for room until the deadline. Returns whether there was room.
    pub(super) fn enter(&self, bytes: usize, records: usize, until: Instant) -> bool {
        let mut in_use = self.in_use.lock();
        while in_use.records > 0
            && (in_use.bytes + bytes > MAX_BYTES || in_use.records + records > MAX_RECORDS)
        {
            if self.left.wait_until(&mut in_use, until).timed_out() {
                return false;
            }
        }
        in_use.bytes += bytes;
        in_use.records += records;
        true
    }

    pub(super) fn leave(&self, bytes: usize, records: usize) {
        let mut in_use = self.in_use.lock();
        in_use.bytes = in_use.bytes.saturating_sub(bytes);
        in_use.records = in_use.records.saturating_sub(records);
        self.left.notify_all();
    }

    /// Waits until all batches have left. False if the deadline passes first.
    pub(super) fn wait_empty(&self, until: Instant) -> bool {
        let mut in_use = self.in_use.lock();
        while in_use.records > 0 {
            if self.left.wait_until(&mut in_use, until).timed_out() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread, time::Duration};

    use super::*;

    #[test]
    fn a_batch_enters_when_there_is_room_for_all_of_it() {
        let budget = Arc::<InFlightBudget>::default();
        let now = Instant::now;
        assert!(budget.enter(2 * MAX_BYTES, 1, now()), "what is larger than the budget goes alone");
        assert!(!budget.enter(1, 1, now()) && !budget.wait_empty(now()));
        budget.leave(2 * MAX_BYTES, 1);
        assert!(budget.enter(MAX_BYTES - 10, 1, now()));
        assert!(!budget.enter(11, 2, now()) && budget.enter(10, 2, now()));
        assert!(!budget.enter(0, MAX_RECORDS, now()));
        let waits = budget.clone();
        let waiting = thread::spawn(move || waits.enter(11, 2, now() + Duration::from_secs(60)));
        budget.leave(MAX_BYTES - 10, 1);
        assert!(waiting.join().unwrap());
        budget.leave(10, 2);
        budget.leave(11, 2);
        assert!(budget.wait_empty(now()));
    }
}
