//! The state of the brokers, as all clients of one log see it together.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::error::RDKafkaErrorCode;

use super::fault::{Fault, FaultKind};

/// The last fault and the last answer of any client, and the user as whom all of them log in.
/// Clones share it.
#[derive(Clone, Default)]
pub(crate) struct ClusterStatus {
    fault: Arc<Mutex<Option<Fault>>>,
    answered: Arc<Mutex<Option<Instant>>>,
    user: Arc<str>,
    principal: Arc<str>,
}

impl ClusterStatus {
    /// `user` is our user in words, `principal` the same user as Kafka's ACLs write it.
    pub(crate) fn new(user: &str, principal: &str) -> Self {
        Self { user: user.into(), principal: principal.into(), ..Self::default() }
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn principal(&self) -> &str {
        &self.principal
    }

    /// Why a client could not reach the brokers, if one could not since [`Self::clear_fault`].
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.lock().clone()
    }

    /// The reason of [`Self::fault`].
    pub(crate) fn reason(&self) -> Option<String> {
        self.fault().map(|fault| fault.reason)
    }

    pub(crate) fn clear_fault(&self) {
        *self.fault.lock() = None;
    }

    /// A broker has answered a request of some client just now.
    ///
    /// Records that a reader gets prove nothing: librdkafka may have fetched them long ago.
    pub(crate) fn note_answer(&self) {
        *self.answered.lock() = Some(Instant::now());
    }

    /// Whether a broker has answered some client within this time.
    pub(crate) fn answered_within(&self, time: Duration) -> bool {
        self.answered.lock().is_some_and(|at| at.elapsed() < time)
    }

    /// Keeps the error if it concerns the way to the brokers and says more than the one before.
    pub(super) fn note(&self, code: Option<RDKafkaErrorCode>, reason: &str) {
        use RDKafkaErrorCode::{
            AllBrokersDown, Authentication, BrokerTransportFailure, Resolve, SSL,
            SaslAuthenticationFailed,
        };
        let kind = match code {
            Some(AllBrokersDown | BrokerTransportFailure | Resolve) => FaultKind::Network,
            Some(SSL) => FaultKind::Tls,
            Some(Authentication | SaslAuthenticationFailed) => FaultKind::Login,
            Some(_) | None => return,
        };
        let mut fault = self.fault.lock();
        if let Some(before) = &*fault {
            // The errors before it said which broker is down, and why.
            if code == Some(AllBrokersDown) {
                return;
            }
            // A refusal says more than the lost connections that follow from it.
            if kind == FaultKind::Network && before.kind != kind && reason.contains("isconnected") {
                return;
            }
        }
        *fault = Some(Fault::new(kind, reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_that_says_most_is_kept() {
        let status = ClusterStatus::default();
        status.note(
            Some(RDKafkaErrorCode::BrokerTransportFailure),
            "[thrd:127.0.0.1:1/bootstrap]: 127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)",
        );
        let refused =
            "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused";
        assert_eq!(status.reason().as_deref(), Some(refused));
        status.note(Some(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(status.reason().as_deref(), Some(refused));
        status.note(Some(RDKafkaErrorCode::Authentication), "SASL authentication error: no");
        status.note(Some(RDKafkaErrorCode::BrokerTransportFailure), "Disconnected");
        assert_eq!(status.reason().as_deref(), Some("SASL authentication error: no"));
        assert_eq!(status.fault().map(|fault| fault.kind), Some(FaultKind::Login));
        status.note(Some(RDKafkaErrorCode::BrokerTransportFailure), "Connection refused");
        assert_eq!(status.fault().map(|fault| fault.kind), Some(FaultKind::Network), "gone since");
    }
}
