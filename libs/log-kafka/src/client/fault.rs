//! A fault between us and the brokers, as librdkafka reports it.

/// The kind of a fault decides which remedy a person is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// No broker answers.
    Network,
    /// The TLS handshake fails, or one side does not trust the other's certificate.
    Tls,
    /// The brokers do not know our user, or no token is issued for it.
    Login,
}

/// Why the brokers could not be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// librdkafka's words, with the broker's address where there is one.
    pub(crate) reason: String,
}

impl Fault {
    pub(crate) fn new(kind: FaultKind, reason: &str) -> Self {
        Self { kind, reason: shorten(reason) }
    }

    /// Whether `security.protocol` may be wrong: a listener hangs up on a client that speaks
    /// plaintext to TLS or does not log in.
    pub(crate) fn is_protocol_mismatch(&self) -> bool {
        is_protocol_mismatch(&self.reason)
    }
}

/// See [`Fault::is_protocol_mismatch`].
pub(crate) fn is_protocol_mismatch(reason: &str) -> bool {
    reason.contains("isconnected") || reason.contains("security.protocol")
}

/// Removes what only librdkafka's developers need: the client's name in front, counts behind, and
/// advice; ours is in [`super::connection_info`].
fn shorten(reason: &str) -> String {
    let reason = reason.split_once("]: ").map_or(reason, |(_, rest)| rest);
    let reason = reason.split(" (after ").next().unwrap_or(reason);
    let reason =
        reason.split(": broker certificate could not be verified").next().unwrap_or(reason);
    reason.trim().to_owned()
}
