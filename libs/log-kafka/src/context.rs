use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::{
    ClientContext,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::refusal::speaks_otherwise;

/// What kind of thing keeps us from the brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody answers.
    Network,
    /// Who answers is not trusted, or does not trust us.
    Tls,
    /// They do not know us, or nobody vouches for us.
    Login,
}

/// What went wrong on the way to the brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// librdkafka's words, with the broker's address where there is one.
    pub(crate) reason: String,
}

/// What the clients of one log have in common: the last thing that went wrong on the way to the brokers.
#[derive(Clone, Default)]
pub(crate) struct Trouble {
    last: Arc<Mutex<Option<Fault>>>,
    user: Arc<str>,
    principal: Arc<str>,
}

impl Trouble {
    /// As whom the brokers see us: in words, and as their ACLs call it.
    pub(crate) fn new(user: &str, principal: &str) -> Self {
        Self { last: Arc::default(), user: user.into(), principal: principal.into() }
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn principal(&self) -> &str {
        &self.principal
    }

    /// Why the brokers could not be reached when that was tried last.
    pub(crate) fn last(&self) -> Option<String> {
        self.fault().map(|fault| fault.reason)
    }

    pub(crate) fn fault(&self) -> Option<Fault> {
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
        let kind = match code {
            Some(AllBrokersDown | BrokerTransportFailure | Resolve) => Kind::Network,
            Some(SSL) => Kind::Tls,
            Some(Authentication | SaslAuthenticationFailed) => Kind::Login,
            Some(_) | None => return,
        };
        let mut last = self.last.lock();
        if let Some(before) = &*last {
            // Says nothing that the errors before it did not.
            if code == Some(AllBrokersDown) {
                return;
            }
            // A refusal says more than the lost connections that follow from it.
            if kind == Kind::Network && before.kind != kind && reason.contains("isconnected") {
                return;
            }
        }
        *last = Some(Fault { kind, reason: shorten(reason) });
    }
}

/// Without what only librdkafka's developers need: the client's name in front and counts behind.
fn shorten(reason: &str) -> String {
    let reason = reason.split_once("]: ").map_or(reason, |(_, rest)| rest);
    let reason = reason.split(" (after ").next().unwrap_or(reason);
    // Its advice; ours is in `refusal`.
    let reason =
        reason.split(": broker certificate could not be verified").next().unwrap_or(reason);
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
        // A connection that ends is no error to librdkafka, even if it knows why.
        if facility == "FAIL" && speaks_otherwise(message) {
            self.trouble.note(Some(RDKafkaErrorCode::BrokerTransportFailure), message);
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
        assert_eq!(trouble.fault().map(|fault| fault.kind), Some(Kind::Login));
        trouble.note(Some(RDKafkaErrorCode::BrokerTransportFailure), "Connection refused");
        assert_eq!(trouble.fault().map(|fault| fault.kind), Some(Kind::Network), "gone since");
    }
}
