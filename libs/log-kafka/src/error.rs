//! librdkafka's errors in the log's terms.

use headwater_log::{Error, TopicSpec};
use headwater_types::{BoxError, Name, PartitionId};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::context::Trouble;

/// What a request was about.
pub(crate) struct About<'a> {
    pub(crate) topic: &'a Name,
    pub(crate) partition: Option<PartitionId>,
    pub(crate) partitions: u32,
}

impl<'a> About<'a> {
    pub(crate) fn topic(topic: &'a Name) -> Self {
        Self { topic, partition: None, partitions: 0 }
    }

    pub(crate) fn partition(topic: &'a Name, partition: PartitionId, partitions: u32) -> Self {
        Self { topic, partition: Some(partition), partitions }
    }
}

/// The brokers cannot be asked, with what is known of the reason.
pub(crate) fn unavailable(error: impl Into<BoxError>, trouble: &Trouble) -> Error {
    match trouble.last() {
        Some(reason) => Error::Unavailable(reason.into()),
        None => Error::Unavailable(error.into()),
    }
}

/// The error of a request about a topic.
pub(crate) fn translate(error: KafkaError, about: &About<'_>, trouble: &Trouble) -> Error {
    let topic = about.topic.clone();
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            match about.partition {
                Some(partition) if about.partitions > 0 => {
                    Error::UnknownPartition { topic, partition, partitions: about.partitions }
                }
                _ => Error::UnknownTopic { topic },
            }
        }
        Some(RDKafkaErrorCode::UnknownPartition) => Error::UnknownPartition {
            topic,
            partition: about.partition.unwrap_or_default(),
            partitions: about.partitions,
        },
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
        ) => Error::Refused { topic, reason: "the brokers' ACLs do not let this user do that" },
        Some(RDKafkaErrorCode::PolicyViolation) => {
            Error::Refused { topic, reason: "it is against a policy of the brokers" }
        }
        Some(RDKafkaErrorCode::InvalidRecord) => {
            let reason = "it keeps the latest record of each key, and a record has no key";
            Error::Refused { topic, reason }
        }
        Some(RDKafkaErrorCode::InvalidReplicationFactor) => Error::Refused {
            topic,
            reason: "there are fewer brokers than kafka.replication-factor asks for",
        },
        Some(RDKafkaErrorCode::InvalidTopic) => {
            Error::Refused { topic, reason: "Kafka does not allow this name" }
        }
        Some(RDKafkaErrorCode::KafkaStorageError) => Error::Full(error.into()),
        _ => unavailable(error, trouble),
    }
}

/// A topic that is there in another form than was asked for.
pub(crate) fn differs(topic: &Name, existing: TopicSpec, requested: TopicSpec) -> Error {
    Error::TopicDiffers { topic: topic.clone(), existing, requested }
}
