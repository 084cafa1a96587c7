//! Creates and deletes topics and groups, and asks how topics are configured.

mod metadata_client;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_log::{Cleanup, Ends, Error, GroupId, TopicSpec, block_on};
use headwater_types::{Name, Offset, PartitionId};
use rdkafka::{
    TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    error::{KafkaError, RDKafkaErrorCode},
};

use self::metadata_client::MetadataClient;
use crate::{
    client::{
        cluster_status::ClusterStatus,
        context::Context,
        error::{RequestTarget, differs, not_caught_up, translate, unavailable},
        rebootstrap::Rebootstrap,
        renewable::Renewable,
    },
    config::KafkaConfig,
    topic_metadata::{TopicLimits, TopicMetadata},
};

/// How long to wait until all brokers know a topic that was created.
const CREATED: Duration = Duration::from_secs(10);

/// How long a broker may not know a topic that another broker knows.
const PROPAGATION: Duration = Duration::from_secs(1);

/// Every call blocks for up to the request timeout.
pub(crate) struct Admin {
    client: Renewable<AdminClient<Context>>,
    metadata: MetadataClient,
    status: ClusterStatus,
    timeout: Duration,
    /// -1: the brokers' default.
    replication: i32,
    topics: Arc<TopicMetadata>,
}

impl Admin {
    pub(crate) fn new(
        config: &KafkaConfig,
        client: &str,
        context: Context,
        topics: Arc<TopicMetadata>,
    ) -> Result<Self, KafkaError> {
        let (settings, own) = (config.admin_client(client), context.clone());
        Ok(Self {
            client: Renewable::new(move || settings.create_with_context(own.clone()))?,
            status: context.status.clone(),
            metadata: MetadataClient::new(config, client, context, topics.clone())?,
            timeout: config.request_timeout,
            replication: match config.replication_factor {
                0 => -1,
                copies => i32::from(copies),
            },
            topics,
        })
    }

    /// See [`MetadataClient::ping`].
    pub(crate) fn ping(&self) -> Result<(), Error> {
        self.metadata.ping()
    }

    /// See [`MetadataClient::refresh_topics`].
    pub(crate) fn refresh_topics(&self) {
        self.metadata.refresh_topics();
    }

    /// Keeps both clients alive; `rebootstraps` has one part for each.
    pub(crate) fn restore_brokers(&self, rebootstraps: &mut [Rebootstrap; 2]) {
        let [own, metadata] = rebootstraps;
        own.check(self.client.get().inner());
        self.metadata.restore_brokers(metadata);
    }

    /// Goes on with new clients.
    pub(crate) fn renew(&self) -> Result<(), KafkaError> {
        self.client.renew()?;
        self.metadata.renew()
    }

    /// See [`MetadataClient::check`].
    pub(crate) fn check(&self, topic: &Name, partition: PartitionId) -> Result<u32, Error> {
        self.metadata.check(topic, partition)
    }

    /// See [`MetadataClient::ends`].
    pub(crate) fn ends(&self, topic: &Name, partition: PartitionId) -> Result<Ends, Error> {
        self.metadata.ends(topic, partition)
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.timeout))
            .operation_timeout(Some(self.timeout))
    }

    /// Asks for what an append has to know of the topic.
    pub(crate) fn learn(&self, topic: &Name, partition: PartitionId) -> Result<TopicLimits, Error> {
        if self.topics.is_outdated(topic) {
            self.spec(topic)?;
        }
        self.check(topic, partition)?;
        self.topics.limits(topic, partition, Instant::now()).ok_or_else(|| not_caught_up(topic))
    }

    /// How the topic is configured; `None` if it does not exist.
    pub(crate) fn spec(&self, topic: &Name) -> Result<Option<TopicSpec>, Error> {
        let Some(partitions) = self.metadata.count_partitions(topic)? else { return Ok(None) };
        let failed =
            |error| translate(error, &RequestTarget::topic(topic, "DescribeConfigs"), &self.status);
        let asked = [ResourceSpecifier::Topic(topic.as_str())];
        let begun = Instant::now();
        let config = loop {
            let answers = block_on(self.client.get().describe_configs(&asked, &self.options()))
                .map_err(failed)?;
            let Some(answer) = answers.into_iter().next() else { return Ok(None) };
            let config = match answer {
                Ok(config) => config,
                Err(RDKafkaErrorCode::UnknownTopicOrPartition) => return Ok(None),
                Err(code) => return Err(failed(KafkaError::AdminOp(code))),
            };
            // rdkafka drops the error of an empty answer: the broker that was asked may not know
            // the topic yet, which passes, or we may not describe it.
            if !config.entries.is_empty() {
                break config;
            }
            if begun.elapsed() >= PROPAGATION {
                return Err(failed(KafkaError::AdminOp(
                    RDKafkaErrorCode::TopicAuthorizationFailed,
                )));
            }
            std::thread::sleep(PROPAGATION / 8);
            if self.metadata.count_partitions(topic)?.is_none() {
                return Ok(None);
            }
        };
        let value =
            |name| config.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
        let unlimited = |name| value(name).parse().is_ok_and(|limit: i64| limit < 0);
        self.topics.set_max_batch(topic, value("max.message.bytes").parse().ok());
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

    /// Creates the topic unless it exists with the same specification.
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
        let failed = |error| translate(error, &RequestTarget::topic(topic, "Create"), &self.status);
        let created =
            block_on(self.client.get().create_topics(&[new], &self.options())).map_err(failed)?;
        for outcome in created {
            match outcome {
                // Another process created it at the same time: its specification is compared below.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(failed(KafkaError::AdminOp(code))),
            }
        }
        // The brokers learn of the topic one after the other.
        let begun = Instant::now();
        loop {
            match self.spec(topic) {
                Ok(Some(existing)) if existing.partitions >= spec.partitions => {
                    return check(existing);
                }
                Ok(_) | Err(Error::Unavailable(_)) if begun.elapsed() < CREATED => {}
                Ok(_) => {
                    let reason = format!("topic {topic} was created and cannot be found yet");
                    return Err(Error::Unavailable(reason.into()));
                }
                Err(error) => return Err(error),
            }
            std::thread::sleep(Duration::from_millis(20));
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
        let failed = |error| translate(error, &RequestTarget::topic(topic, "Delete"), &self.status);
        let mut list = TopicPartitionList::new();
        let number = i32::try_from(partition.0).unwrap_or(i32::MAX);
        let offset = rdkafka::Offset::Offset(i64::try_from(before.0).unwrap_or(i64::MAX));
        list.add_partition_offset(topic.as_str(), number, offset).map_err(failed)?;
        let done =
            block_on(self.client.get().delete_records(&list, &self.options())).map_err(failed)?;
        for element in done.elements() {
            element.error().map_err(failed)?;
        }
        Ok(())
    }

    pub(crate) fn delete_group(&self, group: &GroupId) -> Result<(), Error> {
        let unavailable = |error| unavailable(error, &self.status);
        let deleted = block_on(self.client.get().delete_groups(&[&group.0], &self.options()));
        for outcome in deleted.map_err(unavailable)? {
            match outcome {
                Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound)) => {}
                Err((_, code)) => return Err(unavailable(KafkaError::AdminOp(code))),
            }
        }
        Ok(())
    }
}
