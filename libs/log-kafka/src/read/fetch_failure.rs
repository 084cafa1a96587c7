//! Errors that end the reading of a partition.

use rdkafka::bindings::rd_kafka_resp_err_t as Code;

use super::message::Message;

/// Why a buffer gets no more records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FetchFailure {
    /// The partition does not have the position, or no longer has it.
    OutOfRange,
    /// The broker's or librdkafka's own words.
    Corrupt(String),
    /// The topic was deleted.
    UnknownTopic,
    Refused,
    /// librdkafka does not take the partition on.
    NotRead(String),
}

/// The failure that an error is for the reader; `None` if librdkafka tries again by itself.
#[allow(clippy::wildcard_enum_match_arm, reason = "librdkafka handles all others itself")]
pub(super) fn fetch_failure(code: Code, message: &Message) -> Option<FetchFailure> {
    match code {
        Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
        | Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => Some(FetchFailure::OutOfRange),
        Code::RD_KAFKA_RESP_ERR__BAD_MSG
        | Code::RD_KAFKA_RESP_ERR__BAD_COMPRESSION
        | Code::RD_KAFKA_RESP_ERR_INVALID_MSG
        | Code::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED => Some(FetchFailure::Corrupt(message.detail())),
        Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
        | Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
        | Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART => Some(FetchFailure::UnknownTopic),
        Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => Some(FetchFailure::Refused),
        _ => {
            tracing::debug!(code = ?code, detail = message.detail(), "librdkafka tries again");
            None
        }
    }
}
