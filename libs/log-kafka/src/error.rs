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
    /// As Kafka's ACLs call it.
    pub(crate) operation: &'static str,
}

impl<'a> About<'a> {
    pub(crate) fn topic(topic: &'a Name, operation: &'static str) -> Self {
        Self { topic, partition: None, partitions: 0, operation }
    }

    pub(crate) fn partition(
        topic: &'a Name,
        partition: PartitionId,
        partitions: u32,
        operation: &'static str,
    ) -> Self {
        Self { topic, partition: Some(partition), partitions, operation }
    }
}

/// Why the brokers' ACLs do not let us do something with a topic, and what would.
pub(crate) fn denied(operation: &str, topic: &Name, trouble: &Trouble) -> String {
    let (user, principal) = (trouble.user(), trouble.principal());
    format!(
        "the brokers' ACLs do not let {user} do {operation}; grant it, for example with \
         kafka-acls --add --allow-principal {principal} --operation {operation} --topic {topic}"
    )
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
    // rdkafka knows no code of those.
    let code = if let KafkaError::AdminOp(code) = &error {
        Some(*code)
    } else {
        error.rdkafka_error_code()
    };
    match code {
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
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        ) => {
            let reason = denied(about.operation, &topic, trouble).into();
            Error::Refused { topic, reason }
        }
        Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed) => {
            let reason = format!(
                "the brokers' ACLs do not let {} use a transactional id of Headwater; grant Write \
                 and Describe on all that begin with headwater/, for example with kafka-acls --add \
                 --allow-principal {} --operation Write --operation Describe \
                 --transactional-id headwater/ --resource-pattern-type prefixed",
                trouble.user(),
                trouble.principal()
            );
            Error::Refused { topic, reason: reason.into() }
        }
        Some(RDKafkaErrorCode::PolicyViolation) => {
            Error::Refused { topic, reason: "it is against a policy of the brokers".into() }
        }
        Some(RDKafkaErrorCode::InvalidRecord) => {
            let reason = "it keeps the latest record of each key, and a record has no key";
            Error::Refused { topic, reason: reason.into() }
        }
        Some(RDKafkaErrorCode::InvalidReplicationFactor) => Error::Refused {
            topic,
            reason: "there are fewer brokers than kafka.replication-factor asks for".into(),
        },
        Some(RDKafkaErrorCode::InvalidTopic) => {
            Error::Refused { topic, reason: "Kafka does not allow this name".into() }
        }
        Some(RDKafkaErrorCode::KafkaStorageError) => Error::Full(error.into()),
        _ => unavailable(error, trouble),
    }
}

/// A topic that is there in another form than was asked for.
pub(crate) fn differs(topic: &Name, existing: TopicSpec, requested: TopicSpec) -> Error {
    Error::TopicDiffers { topic: topic.clone(), existing, requested }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_brokers_answer_for_one_topic_is_understood() {
        let topic = Name::new("orders").unwrap();
        let trouble = Trouble::new("user \"alice\"", "User:alice");
        for (code, part) in [
            (RDKafkaErrorCode::InvalidReplicationFactor, "kafka.replication-factor"),
            (RDKafkaErrorCode::PolicyViolation, "a policy of the brokers"),
            (
                RDKafkaErrorCode::TopicAuthorizationFailed,
                "user \"alice\" do Create; grant it, for example with kafka-acls --add \
                 --allow-principal User:alice --operation Create --topic orders",
            ),
        ] {
            let error = KafkaError::AdminOp(code);
            let error = translate(error, &About::topic(&topic, "Create"), &trouble);
            assert!(matches!(error, Error::Refused { .. }), "{error:?}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
