//! Against a broker that fails as real ones do.

use std::{sync::mpsc, time::Instant};

use super::*;
use crate::{
    client::{
        context::Context,
        fake_broker::{FakeBroker, Mode},
    },
    topic_metadata::TopicMetadata,
};

/// Far beyond what any machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

struct Watched {
    health: Arc<Health>,
    status: ClusterStatus,
    heard: mpsc::Receiver<Result<(), String>>,
}

impl Watched {
    fn new(broker: &FakeBroker) -> Self {
        let config = KafkaConfig {
            bootstrap_servers: broker.bootstrap_servers(),
            request_timeout: Duration::from_secs(1),
            ..KafkaConfig::default()
        };
        let context = Context::default();
        let status = context.status.clone();
        let topics = Arc::<TopicMetadata>::default();
        let admin = Arc::new(Admin::new(&config, "test", context, topics).unwrap());
        let health = Arc::new(Health::default());
        let (tell, heard) = mpsc::channel();
        // The receiver goes with the test, the thread a moment later.
        health.on_reachable(Box::new(move |reached| drop(tell.send(reached))));
        health.watch(admin, status.clone(), &config);
        Self { health, status, heard }
    }

    /// Waits until the state is this one.
    fn wait_for(&self, reached: bool) {
        loop {
            let said = self.heard.recv_timeout(PATIENCE);
            match said {
                Ok(said) if said.is_ok() == reached => return,
                Ok(_) => {}
                Err(_) => panic!("it never says reached: {reached}"),
            }
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.health.stop();
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn brokers_are_reached_again_after_they_listed_no_broker_for_a_while() {
    let broker = FakeBroker::start();
    let watched = Watched::new(&broker);
    watched.wait_for(true);
    broker.set(Mode::Fenced);
    watched.wait_for(false);
    broker.set(Mode::Serving);
    watched.wait_for(true);
}

#[test]
fn a_connection_that_went_deaf_is_replaced() {
    let broker = FakeBroker::start();
    let watched = Watched::new(&broker);
    watched.wait_for(true);
    broker.set(Mode::DeafToOldConnections);
    wait_until("no question was answered over a new connection", || broker.answered() > 0);
}

#[test]
fn brokers_that_answer_another_client_are_reached() {
    let broker = FakeBroker::start();
    let watched = Watched::new(&broker);
    watched.wait_for(true);
    broker.set(Mode::DeafToAll);
    // A question fails after a second, and the next one follows two seconds later.
    let begun = Instant::now();
    wait_until("the broker is not asked", || {
        watched.status.note_answer();
        broker.asked() > 0 && begun.elapsed() > Duration::from_secs(8)
    });
    assert_eq!(watched.heard.try_recv(), Err(mpsc::TryRecvError::Empty), "it was always reached");
    // Without a sign of life it is not.
    watched.wait_for(false);
}
