//! The positions that answers about a view have shown.

use std::sync::atomic::{AtomicU64, Ordering};

use headwater_types::{Offset, PartitionId};
use parking_lot::RwLock;

/// The greatest position of a view that was ever part of an answer, by partition. Answers from the
/// next serving generation wait for it, so that time never runs backwards for a reader.
#[derive(Debug, Default)]
pub(crate) struct ServedPositions(RwLock<Vec<AtomicU64>>);

impl ServedPositions {
    pub(crate) fn position(&self, partition: PartitionId) -> Offset {
        self.0
            .read()
            .get(partition.0 as usize)
            .map_or(Offset::ZERO, |served| Offset(served.load(Ordering::Acquire)))
    }

    pub(crate) fn raise(&self, partition: PartitionId, position: Offset) {
        let index = partition.0 as usize;
        {
            let served = self.0.read();
            if let Some(served) = served.get(index) {
                served.fetch_max(position.0, Ordering::AcqRel);
                return;
            }
        }
        let mut served = self.0.write();
        while served.len() <= index {
            served.push(AtomicU64::new(0));
        }
        served[index].fetch_max(position.0, Ordering::AcqRel);
    }
}
