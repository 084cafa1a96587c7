//! The callbacks that every client has.

use rdkafka::{
    ClientContext,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{cluster_status::ClusterStatus, fault::is_protocol_mismatch};

/// Passes on what librdkafka logs, at low levels: its lines are many and for developers. A person
/// hears of an outage once, from [`crate::health`].
#[derive(Clone, Default)]
pub(crate) struct Context {
    pub(crate) status: ClusterStatus,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // librdkafka takes a connection that ends for no error, even if it knows why it ended.
        if facility == "FAIL" && is_protocol_mismatch(message) {
            self.status.note(Some(RDKafkaErrorCode::BrokerTransportFailure), message);
        }
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "librdkafka", facility, "{message}");
            }
            RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning
            | RDKafkaLogLevel::Notice
            | RDKafkaLogLevel::Info => {
                tracing::debug!(target: "librdkafka", facility, "{message}");
            }
            RDKafkaLogLevel::Debug => tracing::trace!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "client error");
        self.status.note(error.rdkafka_error_code(), reason);
    }

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        Err("set sasl.oauthbearer.method=oidc and the endpoint that issues tokens".into())
    }
}

impl ConsumerContext for Context {}
