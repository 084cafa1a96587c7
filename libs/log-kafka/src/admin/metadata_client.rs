//! The client that asks the brokers for metadata: topics, partitions, offsets.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_log::{Ends, Error};
use headwater_types::{Name, Offset, PartitionId};
use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{
    client::{
        cluster_status::ClusterStatus,
        context::Context,
        error::{RequestTarget, is_passing, is_unknown, not_caught_up, translate, unavailable},
        rebootstrap::Rebootstrap,
        renewable::Renewable,
    },
    config::KafkaConfig,
    topic_metadata::{TopicMetadata, Unconfirmed},
};

/// For how long the callbacks of the client are served after a question.
const SERVE: Duration = Duration::from_millis(20);

/// How long to wait before a question is asked again whose error passes by itself.
const RETRY: Duration = Duration::from_millis(30);

/// A consumer that reads nothing. Every call blocks for up to the request timeout.
pub(crate) struct MetadataClient {
    client: Renewable<BaseConsumer<Context>>,
    status: ClusterStatus,
    timeout: Duration,
    topics: Arc<TopicMetadata>,
}

impl MetadataClient {
    pub(super) fn new(
        config: &KafkaConfig,
        client: &str,
        context: Context,
        topics: Arc<TopicMetadata>,
    ) -> Result<Self, KafkaError> {
        let status = context.status.clone();
        let settings = config.metadata_client(client);
        let client = Renewable::new(move || settings.create_with_context(context.clone()))?;
        Ok(Self { client, status, timeout: config.request_timeout, topics })
    }

    /// Asks whether the brokers are in service.
    pub(super) fn ping(&self) -> Result<(), Error> {
        let consumer = self.client.get();
        let answer = consumer.client().fetch_metadata(Some("headwater.control"), self.timeout);
        serve_callbacks(&consumer);
        match answer {
            Ok(metadata) if metadata.brokers().is_empty() => {
                let reason = "a broker answers, but no broker of its cluster is in service";
                Err(unavailable(reason, &self.status))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(unavailable(error, &self.status)),
        }
    }

    /// Asks again for the topics that appends use, if that is due, so that no append has to wait
    /// for it.
    pub(super) fn refresh_topics(&self) {
        for topic in self.topics.due(Instant::now()) {
            if let Err(error) = self.count_partitions(&topic) {
                tracing::debug!(%topic, %error, "the topic's partitions cannot be counted");
            }
        }
    }

    pub(super) fn restore_brokers(&self, rebootstrap: &mut Rebootstrap) {
        rebootstrap.check(self.client.get().client());
    }

    /// Goes on with a new client.
    pub(super) fn renew(&self) -> Result<(), KafkaError> {
        self.client.renew()
    }

    /// How many partitions the topic has now; `None` if it does not exist.
    pub(crate) fn count_partitions(&self, topic: &Name) -> Result<Option<u32>, Error> {
        let failed =
            |error| translate(error, &RequestTarget::topic(topic, "Describe"), &self.status);
        let consumer = self.client.get();
        let metadata =
            consumer.client().fetch_metadata(Some(topic.as_str()), self.timeout).map_err(failed)?;
        if !metadata.brokers().is_empty() {
            self.status.note_answer();
        }
        let found = metadata.topics().iter().find(|found| found.name() == topic.as_str());
        let count = match found.map(|found| (found, found.error().map(RDKafkaErrorCode::from))) {
            None => None,
            Some((found, None)) => u32::try_from(found.partitions().len()).ok(),
            Some((
                _,
                Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic),
            )) => None,
            // The topic is being created, or has no leader for a moment.
            Some((_, Some(code))) => return Err(failed(KafkaError::MetadataFetch(code))),
        };
        let count = count.filter(|count| *count > 0);
        match self.topics.observe(topic, count, Instant::now()) {
            Ok(()) => Ok(count),
            Err(Unconfirmed) => Err(not_caught_up(topic)),
        }
    }

    /// Fails unless the partition exists; returns how many the topic has. Asks the brokers only
    /// when [`TopicMetadata`] has no recent answer.
    pub(crate) fn check(&self, topic: &Name, partition: PartitionId) -> Result<u32, Error> {
        let count = match self.topics.recent_partitions(topic, partition, Instant::now()) {
            Some(count) => count,
            None => self
                .count_partitions(topic)?
                .ok_or_else(|| Error::UnknownTopic { topic: topic.clone() })?,
        };
        if partition.0 < count {
            Ok(count)
        } else {
            Err(Error::UnknownPartition { topic: topic.clone(), partition, partitions: count })
        }
    }

    /// Where the partition starts, and its last stable offset.
    pub(crate) fn ends(&self, topic: &Name, partition: PartitionId) -> Result<Ends, Error> {
        let partitions = self.check(topic, partition)?;
        let about = RequestTarget::partition(topic, partition, partitions, "Describe");
        let number = i32::try_from(partition.0).unwrap_or(i32::MAX);
        let (consumer, begun) = (self.client.get(), Instant::now());
        loop {
            match consumer.client().fetch_watermarks(topic.as_str(), number, self.timeout) {
                Ok((start, end)) => {
                    self.status.note_answer();
                    let offset = |offset: i64| Offset(u64::try_from(offset).unwrap_or(0));
                    return Ok(Ends { start: offset(start), end: offset(end) });
                }
                // A new leader is being elected, or this client does not know it yet.
                Err(error) if is_passing(&error) && begun.elapsed() < self.timeout => {
                    std::thread::sleep(RETRY);
                }
                Err(error) => {
                    self.topics.doubt(topic);
                    if is_unknown(&error) {
                        return Err(not_caught_up(topic));
                    }
                    return Err(translate(error, &about, &self.status));
                }
            }
        }
    }
}

/// Errors of the client wait in a queue until it is polled. One poll takes one of them.
fn serve_callbacks(consumer: &BaseConsumer<Context>) {
    let begun = Instant::now();
    while begun.elapsed() < SERVE {
        let _ = consumer.poll(Duration::from_millis(5));
    }
}
