//! Explains to a person why the brokers cannot be reached or refuse us, and what to do about it.

use super::fault::{Fault, FaultKind};
use crate::config::KafkaConfig;

/// Which brokers we connect to, and as which user. Has no secrets.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionInfo {
    servers: String,
    protocol: String,
    mechanism: String,
    token_endpoint: String,
    user: String,
    principal: String,
}

impl ConnectionInfo {
    pub(crate) fn new(config: &KafkaConfig) -> Self {
        let mechanism = config.mechanism().unwrap_or_default().to_uppercase();
        let name = match mechanism.as_str() {
            "OAUTHBEARER" => config
                .setting("sasl.oauthbearer.client.id")
                .or_else(|| config.setting("sasl.oauthbearer.client.credentials.client.id")),
            _ => config.setting("sasl.username"),
        };
        let endpoint = config.setting("sasl.oauthbearer.token.endpoint.url");
        Self {
            servers: config.bootstrap_servers.clone(),
            protocol: config.protocol(),
            token_endpoint: without_login(endpoint.unwrap_or_default()),
            user: match (name, config.protocol().as_str()) {
                (Some(name), "sasl_plaintext" | "sasl_ssl") => format!("user {name:?}"),
                (None, "sasl_plaintext" | "sasl_ssl") => "our user".into(),
                (_, "ssl") => "the owner of our certificate".into(),
                _ => "clients that do not log in".into(),
            },
            principal: match (name, config.protocol().as_str()) {
                (Some(name), "sasl_plaintext" | "sasl_ssl") => format!("User:{name}"),
                (None, "sasl_plaintext" | "sasl_ssl") | (_, "ssl") => "User:NAME".into(),
                _ => "User:ANONYMOUS".into(),
            },
            mechanism,
        }
    }

    /// Our user, in words.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// Our user as ACLs write it; `User:NAME` if only the brokers know its name.
    pub(crate) fn principal(&self) -> &str {
        &self.principal
    }

    /// One sentence with the address, the user, what librdkafka said, and what to do.
    pub(crate) fn explain(&self, fault: &Fault) -> String {
        let Self { servers, protocol, mechanism, token_endpoint, user, .. } = self;
        let reason = &fault.reason;
        match fault.kind {
            FaultKind::Network if fault.is_protocol_mismatch() => format!(
                "Kafka at {servers} cannot be reached: {reason}; unless that passes, set \
                 security.protocol in kafka.settings, now {protocol}, to what the brokers' listener \
                 at this address speaks: plaintext, ssl, sasl_plaintext or sasl_ssl"
            ),
            FaultKind::Network => format!("Kafka at {servers} cannot be reached: {reason}"),
            FaultKind::Tls if reason.contains("verify failed") => format!(
                "Kafka at {servers} is not trusted: {reason}; set ssl.ca.location in \
                 kafka.settings to the certificate of the authority that signed the brokers', and \
                 write kafka.bootstrap-servers and the brokers' advertised.listeners with host \
                 names that their certificates are made out to"
            ),
            FaultKind::Tls => format!(
                "Kafka at {servers} and we do not agree on TLS: {reason}; compare \
                 security.protocol={protocol} and ssl.* in kafka.settings with the brokers' \
                 listener at this address"
            ),
            FaultKind::Login if reason.contains("OAUTHBEARER token") => format!(
                "Kafka at {servers} waits for a token, and {token_endpoint} issues none for \
                 {user}: {reason}; correct sasl.oauthbearer.* in kafka.settings, or that client \
                 where tokens are issued; it is tried again"
            ),
            FaultKind::Login if reason.contains("supported mechanisms") => format!(
                "Kafka at {servers} does not know the login of {user}: {reason}; set \
                 sasl.mechanism in kafka.settings, now {mechanism}, to one of these, or have the \
                 brokers offer it (sasl.enabled.mechanisms)"
            ),
            FaultKind::Login => format!(
                "Kafka at {servers} refuses {user} with {mechanism}: {reason}; correct {} in \
                 kafka.settings, or create that user or give it this password at the brokers; it \
                 is tried again",
                match mechanism.as_str() {
                    "OAUTHBEARER" => "sasl.oauthbearer.*",
                    _ => "sasl.username and sasl.password",
                }
            ),
        }
    }
}

/// Removes `name:secret@` from an address.
fn without_login(url: &str) -> String {
    match (url.find("://"), url.find('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}://{}", &url[..scheme], &url[at + 1..])
        }
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kind: FaultKind, reason: &str, settings: &[(&str, &str)]) -> String {
        let mut config =
            KafkaConfig { bootstrap_servers: "kafka:9093".into(), ..KafkaConfig::default() };
        for (name, value) in settings {
            config.settings.insert((*name).into(), (*value).into());
        }
        ConnectionInfo::new(&config).explain(&Fault { kind, reason: reason.into() })
    }

    const SCRAM: &[(&str, &str)] = &[
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "scram-sha-512"),
        ("sasl.username", "headwater"),
        ("sasl.password", "hunter2"),
    ];

    #[test]
    fn a_refusal_names_address_user_mechanism_and_remedy_and_no_secret() {
        let text = told(FaultKind::Login, "SASL authentication error: no", SCRAM);
        for part in ["kafka:9093", "\"headwater\"", "SCRAM-SHA-512", "sasl.password in kafka"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
        let text = told(
            FaultKind::Login,
            "Failed to acquire SASL OAUTHBEARER token: no",
            &[
                ("security.protocol", "sasl_ssl"),
                ("sasl.mechanism", "OAUTHBEARER"),
                ("sasl.oauthbearer.client.id", "headwater"),
                ("sasl.oauthbearer.token.endpoint.url", "https://me:hunter2@issuer/token"),
            ],
        );
        assert!(text.contains("https://issuer/token issues none for user \"headwater\""), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn each_kind_of_trouble_has_its_remedy() {
        let verify = "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed";
        for (kind, reason, remedy) in [
            (FaultKind::Network, "Connection refused", "cannot be reached: Connection refused"),
            (FaultKind::Network, "Disconnected", "now sasl_ssl, to"),
            (
                FaultKind::Network,
                "SSL handshake failed: Disconnected: connecting to",
                "now sasl_ssl, to",
            ),
            (FaultKind::Tls, verify, "set ssl.ca.location"),
            (
                FaultKind::Tls,
                "SSL handshake failed: wrong version number",
                "security.protocol=sasl_ssl",
            ),
            (FaultKind::Login, "broker's supported mechanisms: PLAIN", "now SCRAM-SHA-512"),
        ] {
            let text = told(kind, reason, SCRAM);
            assert!(text.contains(remedy) && text.contains(reason), "{text}");
        }
    }
}
