use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::{
    ClientContext,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
};

/// What the clients of one log have in common: the last thing that went wrong on the way to the brokers.
#[derive(Clone, Default)]
pub(crate) struct Trouble {
    last: Arc<Mutex<Option<String>>>,
}

impl Trouble {
    /// Why the brokers could not be reached when that was tried last.
    pub(crate) fn last(&self) -> Option<String> {
        self.last.lock().clone()
    }

    pub(crate) fn clear(&self) {
        *self.last.lock() = None;
    }

    fn note(&self, code: Option<RDKafkaErrorCode>, reason: &str) {
        use RDKafkaErrorCode::{
            AllBrokersDown, Authentication, BrokerTransportFailure, Resolve, SSL,
            SaslAuthenticationFailed,
        };
        let mut last = self.last.lock();
        match code {
            // Says nothing that the errors before it did not.
            Some(AllBrokersDown) if last.is_some() => {}
            // A refusal says more than the lost connections that follow from it.
            Some(BrokerTransportFailure | AllBrokersDown)
                if last.as_deref().is_some_and(|last| last.contains("uthenticat")) => {}
            Some(
                AllBrokersDown
                | BrokerTransportFailure
                | Resolve
                | SSL
                | Authentication
                | SaslAuthenticationFailed,
            ) => *last = Some(shorten(reason)),
            Some(_) | None => {}
        }
    }
}

/// Without what only librdkafka's developers need: the client's name in front and counts behind.
fn shorten(reason: &str) -> String {
    let reason = reason.split_once("]: ").map_or(reason, |(_, rest)| rest);
    let reason = reason.split(" (after ").next().unwrap_or(reason);
    reason.trim().to_owned()
}

/// Passes librdkafka's words on. They are many and for developers: a person hears of an outage once, from
/// the log's health.
#[derive(Clone, Default)]
pub(crate) struct Context {
    pub(crate) trouble: Trouble,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
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
        self.trouble.note(error.rdkafka_error_code(), reason);
    }

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        Err("set sasl.oauthbearer.method=oidc and the endpoint that issues tokens".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_that_says_most_is_kept() {
        let trouble = Trouble::default();
        trouble.note(
            Some(RDKafkaErrorCode::BrokerTransportFailure),
            "[thrd:127.0.0.1:1/bootstrap]: 127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)",
        );
        let refused =
            "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused";
        assert_eq!(trouble.last().as_deref(), Some(refused));
        trouble.note(Some(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(trouble.last().as_deref(), Some(refused));
        trouble.note(Some(RDKafkaErrorCode::Authentication), "SASL authentication error: no");
        trouble.note(Some(RDKafkaErrorCode::BrokerTransportFailure), "Disconnected");
        assert_eq!(trouble.last().as_deref(), Some("SASL authentication error: no"));
    }
}
