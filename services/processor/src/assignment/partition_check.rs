//! Whether topics still have the partitions that their streams declare.
//!
//! A record's partition follows from its key and the number of partitions. When that number changes
//! under a live view, new records of a key come to another shard than the one that has its state,
//! and every answer about that key is wrong from then on. So the shards stop, and say what to do.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use headwater_log::{Error, Log, block_on};
use headwater_types::{Name, Remedy, StreamDefinition};
use parking_lot::Mutex;

use crate::error::ShardError;

/// The partitions of topics, asked of the log every so often on behalf of all shards.
pub(crate) struct PartitionCheck {
    interval: Duration,
    missing_grace: Duration,
    topics: Mutex<HashMap<Name, TopicCheck>>,
}

#[derive(Clone, Copy, Default)]
struct TopicCheck {
    /// `None`: the log has not answered yet.
    partitions: Option<u32>,
    asked_at: Option<Instant>,
    /// Since when the log says that there is no such topic.
    missing_since: Option<Instant>,
}

/// A log that knows no such topic is believed after this time: the broker that answers may not have
/// heard of a new topic yet.
const MISSING_GRACE: Duration = Duration::from_secs(30);

impl PartitionCheck {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, missing_grace: MISSING_GRACE, topics: Mutex::default() }
    }

    /// An assigned partition shows that the topic has at least so many.
    pub(crate) fn has_at_least(&self, topic: &Name, partitions: u32) {
        let mut topics = self.topics.lock();
        let entry = topics.entry(topic.clone()).or_default();
        entry.partitions = entry.partitions.max(Some(partitions));
    }

    /// [`Remedy::Correct`] if the stream's topic has another number of partitions than the stream
    /// declares. Asks the log once per interval, and blocks then.
    pub(crate) fn check(&self, log: &dyn Log, stream: &StreamDefinition) -> Result<(), ShardError> {
        let topic = &stream.topic;
        let (known, due) = self.known(topic);
        let mut partitions = known;
        if due {
            match block_on(log.topic(topic)) {
                Ok(Some(spec)) => {
                    self.note(topic, spec.partitions);
                    partitions = Some(spec.partitions);
                }
                // The shard's reader finds a topic that is gone.
                Ok(None) if known.is_none() => return Err(self.missing(topic)),
                Ok(None) => {}
                Err(error) if known.is_none() => {
                    self.forget(topic);
                    return Err(error.into());
                }
                // The next interval asks again; the reader finds a log that is away.
                Err(error) => tracing::debug!(%topic, %error, "topic not checked"),
            }
        }
        match partitions {
            Some(found) if found != stream.partitions => Err(differs(stream, found)),
            Some(_) | None => Ok(()),
        }
    }

    /// Returns the known number, and whether the caller has to ask: one caller at a time does.
    fn known(&self, topic: &Name) -> (Option<u32>, bool) {
        let mut topics = self.topics.lock();
        let entry = topics.entry(topic.clone()).or_default();
        // No shard may go on without an answer, so before the first one each shard asks.
        let due = entry.partitions.is_none()
            || entry.asked_at.is_none_or(|asked_at| asked_at.elapsed() >= self.interval);
        if due {
            entry.asked_at = Some(Instant::now());
        }
        (entry.partitions, due)
    }

    fn missing(&self, topic: &Name) -> ShardError {
        let mut topics = self.topics.lock();
        let entry = topics.entry(topic.clone()).or_default();
        let since = *entry.missing_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.missing_grace {
            let reason = format!("there is no topic {topic} yet, or a broker has not heard of it");
            return ShardError::new(Remedy::Retry, reason);
        }
        topics.remove(topic);
        Error::UnknownTopic { topic: topic.clone() }.into()
    }

    fn note(&self, topic: &Name, partitions: u32) {
        if let Some(entry) = self.topics.lock().get_mut(topic) {
            (entry.partitions, entry.missing_since) = (Some(partitions), None);
        }
    }

    fn forget(&self, topic: &Name) {
        self.topics.lock().remove(topic);
    }
}

fn differs(stream: &StreamDefinition, found: u32) -> ShardError {
    let StreamDefinition { name, topic, partitions, .. } = stream;
    let remedy = if found > *partitions {
        format!(
            "copy its records by their keys to a new topic, and create a new stream with partitions = {found} and its \
             views over that; what this stream's views hold is right up to where they stopped"
        )
    } else {
        format!(
            "give the topic {partitions} partitions, or create a new stream with partitions = {found}"
        )
    };
    ShardError::new(
        Remedy::Correct,
        format!(
            "topic {topic} has {found} partitions and stream {name} declares {partitions}: keys would go to other \
             partitions than the ones that hold their state, so no shard of the stream goes on; {remedy}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use headwater_log::{MemoryLog, TopicSpec};

    use super::*;
    use crate::testing::{name, plan};

    #[test]
    fn a_topic_with_other_partitions_than_declared_is_an_error_that_says_both_and_what_to_do() {
        let (log, plan) = (MemoryLog::new(), plan());
        let mut check = PartitionCheck::new(Duration::ZERO);
        check.missing_grace = Duration::ZERO;
        let missing = check.check(&log, &plan.stream).unwrap_err();
        assert_eq!(missing.remedy, Remedy::Correct);
        assert!(missing.reason.contains("no topic orders"), "{}", missing.reason);

        block_on(log.create_topic(&name("orders"), TopicSpec::keep(3))).unwrap();
        let error = check.check(&log, &plan.stream).unwrap_err();
        assert_eq!(error.remedy, Remedy::Correct);
        for part in ["topic orders has 3 partitions", "stream orders declares 1", "partitions = 3"]
        {
            assert!(error.reason.contains(part), "{}", error.reason);
        }
    }

    #[test]
    fn a_log_that_knows_no_such_topic_is_believed_after_a_while() {
        let (log, mut stream) = (MemoryLog::new(), StreamDefinition::clone(&plan().stream));
        stream.topic = name("late");
        let mut check = PartitionCheck::new(Duration::ZERO);
        for _ in 0..3 {
            let error = check.check(&log, &stream).unwrap_err();
            assert_eq!(error.remedy, Remedy::Retry, "{}", error.reason);
        }
        check.missing_grace = Duration::ZERO;
        let error = check.check(&log, &stream).unwrap_err();
        assert_eq!(error.remedy, Remedy::Correct, "{}", error.reason);
        block_on(log.create_topic(&name("late"), TopicSpec::keep(1))).unwrap();
        check.check(&log, &stream).unwrap();
    }

    #[test]
    fn an_assignment_beyond_the_declared_partitions_is_enough_to_know() {
        let (log, plan) = (MemoryLog::new(), plan());
        block_on(log.create_topic(&name("orders"), TopicSpec::keep(1))).unwrap();
        let check = PartitionCheck::new(Duration::from_secs(3600));
        check.check(&log, &plan.stream).unwrap();
        check.has_at_least(&name("orders"), 2);
        let error = check.check(&log, &plan.stream).unwrap_err();
        assert!(error.reason.contains("has 2 partitions"), "{}", error.reason);
    }
}
