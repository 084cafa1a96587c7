//! librdkafka's errors in the log's terms.

use headwater_log::{Error, TopicSpec};
use headwater_types::{BoxError, Name, PartitionId};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::cluster_status::ClusterStatus;

/// The subject of a request.
pub(crate) struct RequestTarget<'a> {
    pub(crate) topic: &'a Name,
    pub(crate) partition: Option<PartitionId>,
    pub(crate) partitions: u32,
    /// As Kafka's ACLs call it.
    pub(crate) operation: &'static str,
}

impl<'a> RequestTarget<'a> {
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

/// Says that the brokers' ACLs deny us an operation on a topic, and which ACL would allow it.
pub(crate) fn denied(operation: &str, topic: &Name, status: &ClusterStatus) -> String {
    let (user, principal) = (status.user(), status.principal());
    format!(
        "the brokers' ACLs do not let {user} do {operation}; grant it, for example with \
         kafka-acls --add --allow-principal {principal} --operation {operation} --topic {topic}"
    )
}

/// The brokers cannot be asked. The last fault of any client says more than the error of this call.
pub(crate) fn unavailable(error: impl Into<BoxError>, status: &ClusterStatus) -> Error {
    match status.reason() {
        Some(reason) => Error::Unavailable(reason.into()),
        None => Error::Unavailable(error.into()),
    }
}

/// The error of a request about a topic.
pub(crate) fn translate(
    error: KafkaError,
    about: &RequestTarget<'_>,
    status: &ClusterStatus,
) -> Error {
    let topic = about.topic.clone();
    // rdkafka returns no code for errors of the admin API.
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
            let reason = denied(about.operation, &topic, status).into();
            Error::Refused { topic, reason }
        }
        Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed) => {
            let reason = format!(
                "the brokers' ACLs do not let {} use a transactional id of Headwater; grant Write \
                 and Describe on all that begin with headwater/, for example with kafka-acls --add \
                 --allow-principal {} --operation Write --operation Describe \
                 --transactional-id headwater/ --resource-pattern-type prefixed",
                status.user(),
                status.principal()
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
        _ => unavailable(error, status),
    }
}

/// A topic that is there in another form than was asked for.
pub(crate) fn differs(topic: &Name, existing: TopicSpec, requested: TopicSpec) -> Error {
    Error::TopicDiffers { topic: topic.clone(), existing, requested }
}

/// Whether the same question may succeed in a moment.
pub(crate) fn is_passing(error: &KafkaError) -> bool {
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

/// Whether a broker does not know the topic or the partition. The other brokers may know it.
pub(crate) fn is_unknown(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
    matches!(
        error.rdkafka_error_code(),
        Some(UnknownTopicOrPartition | UnknownTopic | UnknownPartition)
    )
}

/// One broker does not know a topic that existed a moment ago.
pub(crate) fn not_caught_up(topic: &Name) -> Error {
    let reason = format!(
        "a broker does not know topic {topic} or all of it, which was there before: asking again"
    );
    Error::Unavailable(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_brokers_answer_for_one_topic_is_understood() {
        let topic = Name::new("orders").unwrap();
        let status = ClusterStatus::new("user \"alice\"", "User:alice");
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
            let error = translate(error, &RequestTarget::topic(&topic, "Create"), &status);
            assert!(matches!(error, Error::Refused { .. }), "{error:?}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
