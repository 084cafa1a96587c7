//! A cache of topic metadata, so that no append waits for metadata.
//!
//! | what | is used for | until |
//! | --- | --- | --- |
//! | number of partitions | appends | a broker reports that it has changed |
//! | number of partitions | questions | it is [`MAX_AGE`] old |
//! | largest batch | appends | a broker refuses a batch for its size |
//!
//! Nothing else that the brokers say is kept: offsets and specifications are asked for every time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use headwater_types::{Name, PartitionId};
use parking_lot::Mutex;

/// How long a number of partitions answers questions: it may grow.
const MAX_AGE: Duration = Duration::from_secs(30);

/// How long brokers must report that a topic is gone, or smaller, before it is believed: a broker
/// that lags behind the others reports it, too.
const CONFIRMED: Duration = Duration::from_secs(30);

/// Answers of the brokers about topics.
#[derive(Default)]
pub(crate) struct TopicMetadata {
    topics: Mutex<HashMap<Name, Topic>>,
}

struct Topic {
    partitions: u32,
    /// When the brokers said so; `None` if there is a reason to ask them again.
    asked: Option<Instant>,
    batch: BatchLimit,
    /// Since when brokers report that the topic is gone, or smaller.
    doubted: Option<Instant>,
    /// An append relied on this since [`TopicMetadata::due`] last returned it.
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

/// The limits of a topic that an append has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TopicLimits {
    pub(crate) max_batch: Option<usize>,
}

/// The topic may be gone, or smaller; one answer does not prove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unconfirmed;

impl Topic {
    fn is_gone(&self, now: Instant) -> bool {
        self.doubted.is_some_and(|since| now.duration_since(since) >= CONFIRMED)
    }
}

impl TopicMetadata {
    /// The limits for an append, however old they are: a broker refuses an append beyond its
    /// limits.
    pub(crate) fn limits(
        &self,
        topic: &Name,
        partition: PartitionId,
        now: Instant,
    ) -> Option<TopicLimits> {
        let mut topics = self.topics.lock();
        let known = topics.get_mut(topic)?;
        known.used = true;
        if partition.0 >= known.partitions || known.is_gone(now) {
            return None;
        }
        match known.batch {
            BatchLimit::Unknown => Some(TopicLimits { max_batch: None }),
            BatchLimit::Bytes(bytes) => Some(TopicLimits { max_batch: Some(bytes) }),
            BatchLimit::Outdated => None,
        }
    }

    /// How many partitions the topic has, if the answer is not older than [`MAX_AGE`] and this is
    /// one of them.
    pub(crate) fn recent_partitions(
        &self,
        topic: &Name,
        partition: PartitionId,
        now: Instant,
    ) -> Option<u32> {
        let topics = self.topics.lock();
        let known = topics.get(topic).filter(|known| partition.0 < known.partitions)?;
        known.asked.is_some_and(|at| now.duration_since(at) < MAX_AGE).then_some(known.partitions)
    }

    /// Keeps what a broker says: so many partitions, or `None` for no such topic.
    pub(crate) fn observe(
        &self,
        topic: &Name,
        partitions: Option<u32>,
        now: Instant,
    ) -> Result<(), Unconfirmed> {
        let mut topics = self.topics.lock();
        if let Some(known) = topics.get_mut(topic)
            && partitions.is_none_or(|partitions| partitions < known.partitions)
        {
            known.doubted.get_or_insert(now);
            if !known.is_gone(now) {
                return Err(Unconfirmed);
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

    /// Keeps the largest batch that the topic takes.
    pub(crate) fn set_max_batch(&self, topic: &Name, max_batch: Option<usize>) {
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

    /// Whether the limit must be asked for before the next append.
    pub(crate) fn is_outdated(&self, topic: &Name) -> bool {
        self.topics.lock().get(topic).is_some_and(|known| known.batch == BatchLimit::Outdated)
    }

    /// The brokers have refused a batch for its size.
    pub(crate) fn refused_for_size(&self, topic: &Name) {
        if let Some(known) = self.topics.lock().get_mut(topic) {
            known.batch = BatchLimit::Outdated;
        }
    }

    /// A broker did not know the topic or a partition of it: the next question asks again.
    pub(crate) fn doubt(&self, topic: &Name) {
        if let Some(known) = self.topics.lock().get_mut(topic) {
            known.asked = None;
        }
    }

    /// The topics that appends used and that were not asked for within [`MAX_AGE`].
    pub(crate) fn due(&self, now: Instant) -> Vec<Name> {
        let mut topics = self.topics.lock();
        let due = topics.iter_mut().filter(|(_, known)| {
            known.used && known.asked.is_none_or(|at| now.duration_since(at) >= MAX_AGE)
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
        let (known, begun) = (TopicMetadata::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(known.observe(&topic(), None, at(0)), Ok(()), "no broker ever had it");
        known.observe(&topic(), Some(4), at(0)).unwrap();
        for partitions in [None, Some(2)] {
            // One broker lags behind, and then another.
            assert_eq!(known.observe(&topic(), partitions, at(10)), Err(Unconfirmed));
            assert_eq!(known.observe(&topic(), partitions, at(39)), Err(Unconfirmed));
            assert_eq!(known.limits(&topic(), ZERO, at(39)), Some(TopicLimits { max_batch: None }));
            known.observe(&topic(), Some(4), at(39)).unwrap();
            assert_eq!(
                known.observe(&topic(), partitions, at(41)),
                Err(Unconfirmed),
                "the time begins anew"
            );
            assert_eq!(known.limits(&topic(), ZERO, at(71)), None, "an append asks again");
            assert_eq!(known.observe(&topic(), partitions, at(71)), Ok(()));
            known.observe(&topic(), Some(4), at(72)).unwrap();
        }
    }

    #[test]
    fn an_old_answer_serves_appends_and_only_a_recent_one_serves_questions() {
        let (known, begun) = (TopicMetadata::default(), Instant::now());
        known.observe(&topic(), Some(2), begun).unwrap();
        let later = begun + 100 * MAX_AGE;
        assert_eq!(known.recent_partitions(&topic(), ZERO, begun), Some(2));
        assert_eq!(known.recent_partitions(&topic(), ZERO, later), None);
        assert_eq!(known.due(later), [], "no append needs it");
        assert!(known.limits(&topic(), PartitionId(1), later).is_some());
        assert_eq!(known.limits(&topic(), PartitionId(2), later), None);
        assert_eq!(known.due(begun), []);
        assert_eq!(known.due(later), [topic()]);
        assert_eq!(known.due(later), []);
        known.doubt(&topic());
        assert_eq!(known.recent_partitions(&topic(), ZERO, begun), None);
    }

    #[test]
    fn a_limit_within_which_the_brokers_refused_is_asked_for_before_the_next_append() {
        let (known, now) = (TopicMetadata::default(), Instant::now());
        known.observe(&topic(), Some(1), now).unwrap();
        known.set_max_batch(&topic(), Some(1000));
        assert_eq!(known.limits(&topic(), ZERO, now), Some(TopicLimits { max_batch: Some(1000) }));
        known.refused_for_size(&topic());
        assert!(known.limits(&topic(), ZERO, now).is_none() && known.is_outdated(&topic()));
        known.set_max_batch(&topic(), Some(500));
        assert_eq!(known.max_batch(&topic()), Some(500));
    }
}
