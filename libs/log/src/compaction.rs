//! Which batches of a compacted partition still hold the latest record of some key.

use std::collections::{BTreeMap, HashMap};

use headwater_types::Offset;

use crate::{Error, Records};

/// For every key the batch with its latest record, and for every batch the number of keys that it
/// is the latest for. A batch that is the latest for none can be removed.
///
/// Whole batches go, so a superseded record stays as long as a neighbour in its batch is current.
#[derive(Debug, Default)]
pub struct Compaction {
    latest: HashMap<Box<[u8]>, Offset>,
    current: BTreeMap<Offset, usize>,
}

impl Compaction {
    /// Learns the batch at `base`; batches come in offset order. Returns the bases of the batches
    /// that have become removable.
    pub fn learn(&mut self, base: Offset, records: Records<'_>) -> Result<Vec<Offset>, Error> {
        let mut removable = Vec::new();
        for record in records {
            let key = record?.key.unwrap_or_default();
            let before = match self.latest.get_mut(key) {
                Some(place) => Some(std::mem::replace(place, base)),
                None => self.latest.insert(key.into(), base),
            };
            if before == Some(base) {
                continue;
            }
            *self.current.entry(base).or_default() += 1;
            if let Some(before) = before
                && let Some(keys) = self.current.get_mut(&before)
            {
                *keys -= 1;
                if *keys == 0 {
                    self.current.remove(&before);
                    removable.push(before);
                }
            }
        }
        Ok(removable)
    }

    /// Forgets the batches with a base before `base`, which were trimmed.
    pub fn forget_before(&mut self, base: Offset) {
        self.current = self.current.split_off(&base);
        self.latest.retain(|_, place| *place >= base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BatchBuilder;

    fn learn(compaction: &mut Compaction, base: u64, keys: &[&str]) -> Vec<Offset> {
        let mut builder = BatchBuilder::new();
        for key in keys {
            builder.push(0, Some(key.as_bytes()), None, &[]);
        }
        compaction.learn(Offset(base), builder.build().unwrap().walk()).unwrap()
    }

    #[test]
    fn a_batch_becomes_removable_with_its_last_current_key() {
        let mut compaction = Compaction::default();
        assert_eq!(learn(&mut compaction, 0, &["a", "b", "a"]), []);
        assert_eq!(learn(&mut compaction, 3, &["a"]), []);
        assert_eq!(learn(&mut compaction, 4, &["b", "b"]), [Offset(0)]);
        assert_eq!(learn(&mut compaction, 6, &["b", "a"]), [Offset(4), Offset(3)]);
    }

    #[test]
    fn trimmed_batches_are_forgotten() {
        let mut compaction = Compaction::default();
        learn(&mut compaction, 0, &["a"]);
        learn(&mut compaction, 1, &["b"]);
        compaction.forget_before(Offset(1));
        assert_eq!(learn(&mut compaction, 2, &["a"]), []);
        assert_eq!(learn(&mut compaction, 3, &["b"]), [Offset(1)]);
    }
}
