//! Topics and groups: what they are like, and how they come and go.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use headwater_log::{Cleanup, Ends, Error, GroupId, TopicSpec};
use headwater_types::{Name, Offset, PartitionId};
use rdkafka::{
    TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{
    KafkaConfig,
    context::Context,
    error::{About, differs, translate, unavailable},
    known::{Doubtful, Known, Usable},
};

/// How long to wait for what was created to be known to all brokers.
const CREATED_PATIENCE: Duration = Duration::from_secs(10);

/// How long a topic that one broker knows may be unheard of to another.
const UNHEARD_OF: Duration = Duration::from_secs(1);

/// How long librdkafka is listened to each time.
const SERVING: Duration = Duration::from_millis(20);

/// How long to wait for what passes by itself.
const PASSING: Duration = Duration::from_millis(30);

/// Whether the same question may be answered in a moment.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        LeaderNotAvailable, NotLeaderForPartition, OffsetNotAvailable, UnknownLeaderEpoch,
    };
    is_unknown(error)
        || matches!(
            error.rdkafka_error_code(),
            Some(
                LeaderNotAvailable
                    | NotLeaderForPartition
                    | OffsetNotAvailable
                    | UnknownLeaderEpoch
            )
        )
}

/// Whether a broker does not know the topic or the partition. It may be the only one.
pub(crate) fn is_unknown(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
    matches!(
        error.rdkafka_error_code(),
        Some(UnknownTopicOrPartition | UnknownTopic | UnknownPartition)
    )
}

/// It was there a moment ago.
pub(crate) fn not_caught_up(topic: &Name) -> Error {
    let reason = format!(
        "a broker does not know topic {topic} or all of it, which was there before: asking again"
    );
    Error::Unavailable(reason.into())
}

/// Asks the brokers, and has them create and delete. Every call blocks for up to the request timeout.
pub(crate) struct Admin {
    admin: AdminClient<Context>,
    asker: BaseConsumer<AskerContext>,
    context: Context,
    timeout: Duration,
    /// -1: the brokers' default.
    replication: i32,
    known: Arc<Known>,
}

/// Has no callbacks of its own but those of every client.
pub(crate) struct AskerContext(pub(crate) Context);

impl rdkafka::ClientContext for AskerContext {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl rdkafka::consumer::ConsumerContext for AskerContext {}

impl Admin {
    pub(crate) fn new(
        config: &KafkaConfig,
        client: &str,
        context: Context,
        known: Arc<Known>,
    ) -> Result<Self, KafkaError> {
        Ok(Self {
            admin: config
                .asker(client)
                .remove("allow.auto.create.topics")
                .remove("isolation.level")
                .remove("enable.auto.commit")
                .create_with_context(context.clone())?,
            asker: config.asker(client).create_with_context(AskerContext(context.clone()))?,
            context,
            timeout: config.request_timeout,
            replication: match config.replication_factor {
                0 => -1,
                copies => i32::from(copies),
            },
            known,
        })
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.timeout))
            .operation_timeout(Some(self.timeout))
    }

    /// Whether any broker answers; then topics that are appended to are looked at again if that is due, so that
    /// no append has to wait for it.
    pub(crate) fn ping(&self) -> Result<(), Error> {
        let asked = self.asker.client().fetch_metadata(Some("headwater.control"), self.timeout);
        self.serve_callbacks();
        match asked {
            Ok(_) => {
                for topic in self.known.due(Instant::now()) {
                    if let Err(error) = self.count_partitions(&topic) {
                        tracing::debug!(%topic, %error, "topic not looked at");
                    }
                }
                Ok(())
            }
            Err(error) => Err(unavailable(error, &self.context.trouble)),
        }
    }

    /// What librdkafka has to say of the client that asks waits in a queue, and only polling empties it. One poll
    /// that does not wait takes one thing.
    fn serve_callbacks(&self) {
        let begun = Instant::now();
        while begun.elapsed() < SERVING {
            let _ = self.asker.poll(Duration::from_millis(5));
        }
    }

    /// How many partitions the topic has now; `None` if it does not exist.
    pub(crate) fn count_partitions(&self, topic: &Name) -> Result<Option<u32>, Error> {
        let failed =
            |error| translate(error, &About::topic(topic, "Describe"), &self.context.trouble);
        let metadata = self
            .asker
            .client()
            .fetch_metadata(Some(topic.as_str()), self.timeout)
            .map_err(failed)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic.as_str());
        let count = match found.map(|found| (found, found.error().map(RDKafkaErrorCode::from))) {
            None => None,
            Some((found, None)) => u32::try_from(found.partitions().len()).ok(),
            Some((
                _,
                Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic),
            )) => None,
            // Being created, or without a leader for a moment.
            Some((_, Some(code))) => return Err(failed(KafkaError::MetadataFetch(code))),
        };
        let count = count.filter(|count| *count > 0);
        match self.known.said(topic, count, Instant::now()) {
            Ok(()) => Ok(count),
            Err(Doubtful) => Err(not_caught_up(topic)),
        }
    }

    /// Sees to it that the partition exists, and returns how many there are. Mostly answered from memory.
    pub(crate) fn check(&self, topic: &Name, partition: PartitionId) -> Result<u32, Error> {
        let count = match self.known.fresh(topic, partition, Instant::now()) {
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

    /// Learns what an append has to know.
    pub(crate) fn learn(&self, topic: &Name, partition: PartitionId) -> Result<Usable, Error> {
        if self.known.is_outdated(topic) {
            self.spec(topic)?;
        }
        self.check(topic, partition)?;
        self.known.usable(topic, partition, Instant::now()).ok_or_else(|| not_caught_up(topic))
    }

    pub(crate) fn spec(&self, topic: &Name) -> Result<Option<TopicSpec>, Error> {
        let Some(partitions) = self.count_partitions(topic)? else { return Ok(None) };
        let failed = |error| {
            translate(error, &About::topic(topic, "DescribeConfigs"), &self.context.trouble)
        };
        let asked = [ResourceSpecifier::Topic(topic.as_str())];
        let begun = Instant::now();
        let config = loop {
            let answers =
                block_on(self.admin.describe_configs(&asked, &self.options())).map_err(failed)?;
            let Some(answer) = answers.into_iter().next() else { return Ok(None) };
            let config = match answer {
                Ok(config) => config,
                Err(RDKafkaErrorCode::UnknownTopicOrPartition) => return Ok(None),
                Err(code) => return Err(failed(KafkaError::AdminOp(code))),
            };
            // rdkafka keeps to itself why there is nothing: the broker that was asked may not have heard of the
            // topic yet, which passes, or we may not know.
            if !config.entries.is_empty() {
                break config;
            }
            if begun.elapsed() >= UNHEARD_OF {
                return Err(failed(KafkaError::AdminOp(
                    RDKafkaErrorCode::TopicAuthorizationFailed,
                )));
            }
            std::thread::sleep(UNHEARD_OF / 8);
            if self.count_partitions(topic)?.is_none() {
                return Ok(None);
            }
        };
        let value =
            |name| config.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
        let unlimited = |name| value(name).parse().is_ok_and(|limit: i64| limit < 0);
        self.known.takes(topic, value("max.message.bytes").parse().ok());
        let policy = value("cleanup.policy");
        let cleanup = match (policy.contains("compact"), policy.contains("delete")) {
            (true, false) => Cleanup::Compact,
            (false, true) if unlimited("retention.ms") && unlimited("retention.bytes") => {
                Cleanup::Keep
            }
            _ => Cleanup::Expire,
        };
        Ok(Some(TopicSpec { partitions, cleanup }))
    }

    pub(crate) fn create(&self, topic: &Name, spec: TopicSpec) -> Result<(), Error> {
        if spec.partitions == 0 {
            let reason = "it needs at least one partition";
            return Err(Error::Refused { topic: topic.clone(), reason: reason.into() });
        }
        let check = |existing| match existing == spec {
            true => Ok(()),
            false => Err(differs(topic, existing, spec)),
        };
        if let Some(existing) = self.spec(topic)? {
            return check(existing);
        }
        let count = i32::try_from(spec.partitions).unwrap_or(i32::MAX);
        let new = NewTopic::new(topic.as_str(), count, TopicReplication::Fixed(self.replication));
        let new = match spec.cleanup {
            Cleanup::Keep => new
                .set("cleanup.policy", "delete")
                .set("retention.ms", "-1")
                .set("retention.bytes", "-1"),
            Cleanup::Expire => new.set("cleanup.policy", "delete"),
            Cleanup::Compact => new.set("cleanup.policy", "compact"),
        };
        let failed =
            |error| translate(error, &About::topic(topic, "Create"), &self.context.trouble);
        let created =
            block_on(self.admin.create_topics(&[new], &self.options())).map_err(failed)?;
        for outcome in created {
            match outcome {
                // Somebody else did at the same time: then it is compared below.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(failed(KafkaError::AdminOp(code))),
            }
        }
        // Brokers learn of it one after the other.
        let begun = Instant::now();
        loop {
            match self.spec(topic) {
                Ok(Some(existing)) if existing.partitions >= spec.partitions => {
                    return check(existing);
                }
                Ok(_) | Err(Error::Unavailable(_)) if begun.elapsed() < CREATED_PATIENCE => {}
                Ok(_) => {
                    let reason = format!("topic {topic} was created and cannot be found yet");
                    return Err(Error::Unavailable(reason.into()));
                }
                Err(error) => return Err(error),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where the partition starts, and its last stable offset.
    pub(crate) fn ends(&self, topic: &Name, partition: PartitionId) -> Result<Ends, Error> {
        let partitions = self.check(topic, partition)?;
        let about = About::partition(topic, partition, partitions, "Describe");
        let number = i32::try_from(partition.0).unwrap_or(i32::MAX);
        let begun = Instant::now();
        loop {
            match self.asker.client().fetch_watermarks(topic.as_str(), number, self.timeout) {
                Ok((start, end)) => {
                    let offset = |offset: i64| Offset(u64::try_from(offset).unwrap_or(0));
                    return Ok(Ends { start: offset(start), end: offset(end) });
                }
                // A new leader is being chosen, or this client has not heard of it.
                Err(error) if is_passing(&error) && begun.elapsed() < self.timeout => {
                    std::thread::sleep(PASSING);
                }
                Err(error) => {
                    self.known.doubt(topic);
                    if is_unknown(&error) {
                        return Err(not_caught_up(topic));
                    }
                    return Err(translate(error, &about, &self.context.trouble));
                }
            }
        }
    }

    pub(crate) fn trim(
        &self,
        topic: &Name,
        partition: PartitionId,
        before: Offset,
    ) -> Result<(), Error> {
        let ends = self.ends(topic, partition)?;
        if before > ends.end {
            let (topic, requested, end) = (topic.clone(), before, ends.end);
            return Err(Error::OffsetOutOfRange { topic, partition, requested, end });
        }
        if before <= ends.start {
            return Ok(());
        }
        let failed =
            |error| translate(error, &About::topic(topic, "Delete"), &self.context.trouble);
        let mut list = TopicPartitionList::new();
        let number = i32::try_from(partition.0).unwrap_or(i32::MAX);
        let offset = rdkafka::Offset::Offset(i64::try_from(before.0).unwrap_or(i64::MAX));
        list.add_partition_offset(topic.as_str(), number, offset).map_err(failed)?;
        let done = block_on(self.admin.delete_records(&list, &self.options())).map_err(failed)?;
        for element in done.elements() {
            element.error().map_err(failed)?;
        }
        Ok(())
    }

    pub(crate) fn delete_group(&self, group: &GroupId) -> Result<(), Error> {
        let unavailable = |error| unavailable(error, &self.context.trouble);
        let deleted = block_on(self.admin.delete_groups(&[&group.0], &self.options()));
        for outcome in deleted.map_err(unavailable)? {
            match outcome {
                Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound)) => {}
                Err((_, code)) => return Err(unavailable(KafkaError::AdminOp(code))),
            }
        }
        Ok(())
    }
}
