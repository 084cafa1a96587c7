//! librdkafka's settings for each kind of client.

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

use super::{KafkaConfig, property};

impl KafkaConfig {
    /// The settings of every client.
    pub(crate) fn client(&self, client: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in &self.settings {
            config.set(property(name), value);
        }
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "5000");
        if self.setting("client.id").is_none() {
            config.set("client.id", client);
        }
        // At this level librdkafka says why a connection ended.
        config.set_log_level(match self.setting("debug") {
            Some(_) => RDKafkaLogLevel::Debug,
            None => RDKafkaLogLevel::Info,
        });
        config
    }

    /// The settings of every consumer.
    fn consumer(&self, client: &str) -> ClientConfig {
        let mut config = self.client(client);
        config
            .set("allow.auto.create.topics", "false")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false");
        config
    }

    /// A consumer that only asks for metadata.
    pub(crate) fn metadata_client(&self, client: &str) -> ClientConfig {
        let mut config = self.consumer(client);
        self.limit_silence(&mut config);
        config
    }

    /// A client that creates, deletes and describes topics and groups.
    pub(crate) fn admin_client(&self, client: &str) -> ClientConfig {
        let mut config = self.client(client);
        self.limit_silence(&mut config);
        config
    }

    /// Closes a connection after the first request that is not answered in time. Without it further
    /// requests would be sent over the dead connection, for the minute of librdkafka's default.
    fn limit_silence(&self, config: &mut ClientConfig) {
        const LARGEST: u128 = 300_000;
        if self.setting("socket.timeout.ms").is_none() {
            let timeout = self.request_timeout.as_millis().min(LARGEST);
            config.set("socket.timeout.ms", timeout.to_string());
        }
    }

    /// A consumer that reads partitions which it chooses itself.
    pub(crate) fn reader(&self, client: &str) -> ClientConfig {
        let mut config = self.consumer(client);
        config
            // librdkafka assigns no partitions without a group. Nothing is ever committed to it.
            .set("group.id", "headwater-readers")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            // The broker has checked the records when they were written, and TCP checks them since.
            // The batches that we hand on have their own checksums.
            .set("check.crcs", "false")
            .set("max.poll.interval.ms", "86400000")
            .set("fetch.wait.max.ms", "50")
            .set("fetch.error.backoff.ms", "100")
            .set("fetch.queue.backoff.ms", "1")
            .set("fetch.message.max.bytes", "1048576")
            .set("queued.min.messages", "100000")
            .set("queued.max.messages.kbytes", "16384")
            // Taking many records at once bypasses rdkafka's callbacks: librdkafka would log to
            // stderr. The metadata client reports the same faults.
            .set_log_level(RDKafkaLogLevel::Emerg);
        config
    }

    /// An idempotent producer.
    pub(crate) fn producer(&self, client: &str) -> ClientConfig {
        let mut config = self.client(client);
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", self.delivery_timeout.as_millis().to_string())
            .set("queue.buffering.max.kbytes", "65536")
            .set("queue.buffering.max.messages", "500000");
        for (name, value) in [("linger.ms", "2"), ("compression.type", "lz4")] {
            if !self.settings.keys().any(|own| property(own) == name) {
                config.set(name, value);
            }
        }
        config
    }

    /// A consumer that is a member of a group.
    pub(crate) fn member(&self, client: &str, group: &str) -> ClientConfig {
        let mut config = self.consumer(client);
        let session = self.session_timeout.as_millis();
        config
            .set("group.id", group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", session.to_string())
            .set("heartbeat.interval.ms", self.heartbeat().as_millis().to_string())
            // Partitions are handed over inside a poll.
            .set("max.poll.interval.ms", (session.max(120_000)).to_string())
            .set("enable.auto.offset.store", "false");
        config
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_question_that_is_not_answered_in_time_ends_its_connection_unless_people_set_another_time()
    {
        let mut config =
            KafkaConfig { request_timeout: Duration::from_secs(7), ..KafkaConfig::default() };
        let times = |config: &KafkaConfig| {
            [config.metadata_client("c"), config.admin_client("c"), config.reader("c")]
                .map(|client| client.get("socket.timeout.ms").map(str::to_owned))
        };
        assert_eq!(times(&config), [Some("7000".into()), Some("7000".into()), None]);
        config.settings.insert("socket-timeout-ms".into(), "9000".into());
        assert_eq!(times(&config), [(); 3].map(|()| Some("9000".into())));
        config.settings.clear();
        config.request_timeout = Duration::from_secs(3600);
        assert_eq!(config.check(), Ok(()), "librdkafka takes five minutes at most");
        assert_eq!(times(&config)[0].as_deref(), Some("300000"));
    }
}
