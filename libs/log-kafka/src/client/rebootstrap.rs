//! Brings a client back that has forgotten all brokers.
//!
//! A fenced broker, such as one that was paused for longer than its session, lists no brokers when
//! it is asked for metadata. librdkafka (since 2.10) then removes every broker that it has learned.
//! It means to begin again with `bootstrap.servers`, but the handler of the same answer stops the
//! timer for that (librdkafka's issue 5301, open in 2.12): the client has no brokers, and gets none
//! for as long as it lives. A client that asks at another moment is not hit, so one client of a
//! process may be deaf while the others work.

#![allow(unsafe_code, reason = "rdkafka has no safe way to see or to add brokers")]

use std::{
    ffi::CString,
    ptr,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext,
    bindings::{rd_kafka_brokers_add, rd_kafka_brokers_learned_ids, rd_kafka_mem_free},
    client::Client,
};

use crate::config::KafkaConfig;

/// How often a client is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// The longest wait between two times of adding brokers to a client that still has none. librdkafka
/// keeps a copy of what is added.
const LONGEST: Duration = Duration::from_secs(30);

/// Looks after one client. The thread that polls the client calls [`Rebootstrap::check`].
pub(crate) struct Rebootstrap {
    servers: CString,
    /// The client has learned brokers before.
    has_learned: bool,
    next: Instant,
    wait: Duration,
}

impl Rebootstrap {
    pub(crate) fn new(config: &KafkaConfig) -> Self {
        Self {
            // An address with a zero byte is refused when the client is created.
            servers: CString::new(config.bootstrap_servers.as_str()).unwrap_or_default(),
            has_learned: false,
            next: Instant::now(),
            wait: INTERVAL,
        }
    }

    /// Gives the client its bootstrap servers again if it had brokers and has none. Cheap when
    /// called too often.
    pub(crate) fn check<C: ClientContext>(&mut self, client: &Client<C>) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        if has_brokers(client) {
            (self.has_learned, self.wait) = (true, INTERVAL);
        } else if self.has_learned {
            tracing::debug!(
                "a client has lost all brokers and begins with bootstrap-servers again"
            );
            // SAFETY: the client is alive, and the text ends with a zero byte.
            unsafe { rd_kafka_brokers_add(client.native_ptr(), self.servers.as_ptr()) };
            self.wait = (self.wait * 2).min(LONGEST);
        }
        self.next = now + self.wait;
    }
}

/// Whether the last metadata listed any broker.
fn has_brokers<C: ClientContext>(client: &Client<C>) -> bool {
    let mut count = 0;
    // SAFETY: the client is alive. What librdkafka returns is ours, and is given back once.
    unsafe {
        let ids = rd_kafka_brokers_learned_ids(client.native_ptr(), ptr::from_mut(&mut count));
        rd_kafka_mem_free(client.native_ptr(), ids.cast());
    }
    count > 0
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        config::FromClientConfigAndContext,
        consumer::{BaseConsumer, Consumer},
        producer::{BaseProducer, DefaultProducerContext, Producer},
    };

    use super::*;
    use crate::client::{
        context::Context,
        fake_broker::{FakeBroker, Mode},
    };

    /// Far beyond what any machine needs.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn config(broker: &FakeBroker) -> KafkaConfig {
        KafkaConfig { bootstrap_servers: broker.bootstrap_servers(), ..KafkaConfig::default() }
    }

    fn comes_back<C: ClientContext>(broker: &FakeBroker, client: &Client<C>) {
        let mut rebootstrap = Rebootstrap::new(&config(broker));
        let asks = |wait| client.fetch_metadata(Some("headwater.control"), wait);
        asks(PATIENCE).unwrap();
        rebootstrap.check(client);
        assert!(rebootstrap.has_learned);

        broker.set(Mode::Fenced);
        assert!(asks(PATIENCE).unwrap().brokers().is_empty());
        broker.set(Mode::Serving);
        // If this fails, librdkafka comes back by itself now, and this module can go.
        assert!(asks(Duration::from_secs(2)).is_err());

        let begun = Instant::now();
        while asks(Duration::from_secs(1)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the client has no brokers");
            rebootstrap.check(client);
        }
        assert!(has_brokers(client));
    }

    #[test]
    fn a_consumer_that_has_lost_all_brokers_comes_back() {
        let broker = FakeBroker::start();
        let settings = config(&broker).metadata_client("test");
        let consumer = BaseConsumer::from_config_and_context(&settings, Context::default());
        comes_back(&broker, consumer.unwrap().client());
    }

    #[test]
    fn a_producer_that_has_lost_all_brokers_comes_back() {
        let broker = FakeBroker::start();
        let settings = config(&broker).producer("test");
        let producer: BaseProducer =
            FromClientConfigAndContext::from_config_and_context(&settings, DefaultProducerContext)
                .unwrap();
        comes_back(&broker, producer.client());
    }
}
