//! What each kind of client is told.

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

use super::{KafkaConfig, property};

impl KafkaConfig {
    /// What every client has.
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
        // Why a connection ends is information only, to librdkafka.
        config.set_log_level(match self.setting("debug") {
            Some(_) => RDKafkaLogLevel::Debug,
            None => RDKafkaLogLevel::Info,
        });
        config
    }

    /// A client that only asks.
    pub(crate) fn asker(&self, client: &str) -> ClientConfig {
        let mut config = self.client(client);
        config
            .set("allow.auto.create.topics", "false")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false");
        config
    }

    /// A client that reads partitions which it chooses itself.
    pub(crate) fn reader(&self, client: &str) -> ClientConfig {
        let mut config = self.asker(client);
        config
            // Without one librdkafka assigns no partitions; nothing is ever committed to it.
            .set("group.id", "headwater-readers")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            // Checked by the broker when they were written, and by TCP since; the batches that we hand on
            // have checksums of their own.
            .set("check.crcs", "false")
            .set("max.poll.interval.ms", "86400000")
            .set("fetch.wait.max.ms", "50")
            .set("fetch.error.backoff.ms", "100")
            .set("fetch.queue.backoff.ms", "1")
            .set("fetch.message.max.bytes", "1048576")
            .set("queued.min.messages", "100000")
            .set("queued.max.messages.kbytes", "16384")
            // Taking many records at once passes by rdkafka, and with it by the context: what librdkafka says
            // would go to stderr as it is. The client that asks hears the same of the brokers.
            .set_log_level(RDKafkaLogLevel::Emerg);
        config
    }

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

    pub(crate) fn member(&self, client: &str, group: &str) -> ClientConfig {
        let mut config = self.asker(client);
        let session = self.session_timeout.as_millis();
        config
            .set("group.id", group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", session.to_string())
            .set("heartbeat.interval.ms", self.heartbeat().as_millis().to_string())
            // A hand-over takes place inside a poll.
            .set("max.poll.interval.ms", (session.max(120_000)).to_string())
            .set("enable.auto.offset.store", "false");
        config
    }
}
