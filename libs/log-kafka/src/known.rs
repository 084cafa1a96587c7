//! What the brokers said of topics, kept so that nobody who appends has to wait for it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use headwater_types::{Name, PartitionId};
use parking_lot::Mutex;

/// A topic's number of partitions is looked up again after this time: it may grow.
const AGE: Duration = Duration::from_secs(30);

/// A topic that was there is taken for gone, or smaller, when brokers have said so for this long: one that has
/// not caught up with the others says so, too.
const CONFIRMED: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(crate) struct Known {
    topics: Mutex<HashMap<Name, Topic>>,
}

struct Topic {
    partitions: u32,
    /// When the brokers said so; `None` if there is reason to ask them again.
    asked: Option<Instant>,
    batch: BatchLimit,
    /// Since when brokers say that it is gone, or smaller.
    doubted: Option<Instant>,
    /// Somebody relied on this since it was last asked.
    used: bool,
}

/// The largest batch that a topic takes (`max.message.bytes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatchLimit {
    Unknown,
    Bytes(usize),
    /// The brokers have refused a batch within it.
    Outdated,
}

/// What an append has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usable {
    pub(crate) max_batch: Option<usize>,
}

/// One answer is not enough to say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doubtful;

impl Topic {
    fn is_gone(&self, now: Instant) -> bool {
        self.doubted.is_some_and(|since| now.duration_since(since) >= CONFIRMED)
    }
}

impl Known {
    /// What is known for an append, however old it is: the brokers say it if something has changed.
    pub(crate) fn usable(
        &self,
        topic: &Name,
        partition: PartitionId,
        now: Instant,
    ) -> Option<Usable> {
        let mut topics = self.topics.lock();
        let known = topics.get_mut(topic)?;
        known.used = true;
        if partition.0 >= known.partitions || known.is_gone(now) {
            return None;
        }
        match known.batch {
            BatchLimit::Unknown => Some(Usable { max_batch: None }),
            BatchLimit::Bytes(bytes) => Some(Usable { max_batch: Some(bytes) }),
            BatchLimit::Outdated => None,
        }
    }

    /// How many partitions the topic has, if that was asked not long ago and this is one of them.
    pub(crate) fn fresh(&self, topic: &Name, partition: PartitionId, now: Instant) -> Option<u32> {
        let topics = self.topics.lock();
        let known = topics.get(topic).filter(|known| partition.0 < known.partitions)?;
        known.asked.is_some_and(|at| now.duration_since(at) < AGE).then_some(known.partitions)
    }

    /// A broker says that the topic has so many partitions; `None`: that there is no such topic.
    pub(crate) fn said(
        &self,
        topic: &Name,
        partitions: Option<u32>,
        now: Instant,
    ) -> Result<(), Doubtful> {
        let mut topics = self.topics.lock();
        if let Some(known) = topics.get_mut(topic)
            && partitions.is_none_or(|partitions| partitions < known.partitions)
        {
            known.doubted.get_or_insert(now);
            if !known.is_gone(now) {
                return Err(Doubtful);
            }
            topics.remove(topic);
        }
        let Some(partitions) = partitions else { return Ok(()) };
        let known = topics.entry(topic.clone()).or_insert(Topic {
            partitions,
            asked: None,
            batch: BatchLimit::Unknown,
            doubted: None,
            used: false,
        });
        (known.partitions, known.asked, known.doubted) = (partitions, Some(now), None);
        Ok(())
    }

    /// The largest batch that a topic takes.
    pub(crate) fn takes(&self, topic: &Name, max_batch: Option<usize>) {
        if let Some(known) = self.topics.lock().get_mut(topic) {
            known.batch = max_batch.map_or(BatchLimit::Unknown, BatchLimit::Bytes);
        }
    }

    pub(crate) fn max_batch(&self, topic: &Name) -> Option<usize> {
        match self.topics.lock().get(topic)?.batch {
            BatchLimit::Bytes(bytes) => Some(bytes),
            BatchLimit::Unknown | BatchLimit::Outdated => None,
        }
    }

    /// Whether the limit must be asked for before anything is appended.
    pub(crate) fn is_outdated(&self, topic: &Name) -> bool {
        self.topics.lock().get(topic).is_some_and(|known| known.batch == BatchLimit::Outdated)
    }

    /// The brokers refused a batch for its size.
    pub(crate) fn refused_for_size(&self, topic: &Name) {
        if let Some(known) = self.topics.lock().get_mut(topic) {
            known.batch = BatchLimit::Outdated;
        }
    }

    /// A broker did not find what should be there: the next one who can wait asks again.
    pub(crate) fn doubt(&self, topic: &Name) {
        if let Some(known) = self.topics.lock().get_mut(topic) {
            known.asked = None;
        }
    }

    /// The topics that somebody used and that were not asked for lately.
    pub(crate) fn due(&self, now: Instant) -> Vec<Name> {
        let mut topics = self.topics.lock();
        let due = topics.iter_mut().filter(|(_, known)| {
            known.used && known.asked.is_none_or(|at| now.duration_since(at) >= AGE)
        });
        due.map(|(topic, known)| {
            known.used = false;
            topic.clone()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: PartitionId = PartitionId(0);

    fn topic() -> Name {
        Name::new("orders").unwrap()
    }

    #[test]
    fn a_topic_that_was_there_is_gone_only_when_brokers_say_so_for_long() {
        let (known, begun) = (Known::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(known.said(&topic(), None, at(0)), Ok(()), "nobody ever saw it");
        known.said(&topic(), Some(4), at(0)).unwrap();
        for partitions in [None, Some(2)] {
            // One that has not caught up, and then another.
            assert_eq!(known.said(&topic(), partitions, at(10)), Err(Doubtful));
            assert_eq!(known.said(&topic(), partitions, at(39)), Err(Doubtful));
            assert_eq!(known.usable(&topic(), ZERO, at(39)), Some(Usable { max_batch: None }));
            known.said(&topic(), Some(4), at(39)).unwrap();
            assert_eq!(known.said(&topic(), partitions, at(41)), Err(Doubtful), "it begins anew");
            assert_eq!(known.usable(&topic(), ZERO, at(71)), None, "who appends asks");
            assert_eq!(known.said(&topic(), partitions, at(71)), Ok(()));
            known.said(&topic(), Some(4), at(72)).unwrap();
        }
    }

    #[test]
    fn what_is_known_serves_appends_however_old_and_questions_while_it_is_fresh() {
        let (known, begun) = (Known::default(), Instant::now());
        known.said(&topic(), Some(2), begun).unwrap();
        let later = begun + 100 * AGE;
        assert_eq!(known.fresh(&topic(), ZERO, begun), Some(2));
        assert_eq!(known.fresh(&topic(), ZERO, later), None);
        assert_eq!(known.due(later), [], "nobody needs it");
        assert!(known.usable(&topic(), PartitionId(1), later).is_some());
        assert_eq!(known.usable(&topic(), PartitionId(2), later), None);
        assert_eq!(known.due(begun), []);
        assert_eq!(known.due(later), [topic()]);
        assert_eq!(known.due(later), []);
        known.doubt(&topic());
        assert_eq!(known.fresh(&topic(), ZERO, begun), None);
    }

    #[test]
    fn a_limit_within_which_the_brokers_refused_is_asked_for_before_the_next_append() {
        let (known, now) = (Known::default(), Instant::now());
        known.said(&topic(), Some(1), now).unwrap();
        known.takes(&topic(), Some(1000));
        assert_eq!(known.usable(&topic(), ZERO, now), Some(Usable { max_batch: Some(1000) }));
        known.refused_for_size(&topic());
        assert!(known.usable(&topic(), ZERO, now).is_none() && known.is_outdated(&topic()));
        known.takes(&topic(), Some(500));
        assert_eq!(known.max_batch(&topic()), Some(500));
    }
}
