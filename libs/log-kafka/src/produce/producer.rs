//! A producer and the thread that serves its reports.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use headwater_log::Error;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, Producer, PurgeConfig},
};

use super::{delivery::DeliveryContext, in_flight_budget::InFlightBudget};
use crate::client::{error::unavailable, rebootstrap::Rebootstrap};

/// How long the thread waits for reports before it looks whether to end. Each wait ends with a
/// millisecond of busy polling inside librdkafka, so it should be long.
const POLL: Duration = Duration::from_millis(500);

/// Dropping it ends the thread, and the producer with what it still holds.
pub(super) struct PolledProducer {
    pub(super) producer: Arc<BaseProducer<DeliveryContext>>,
    pub(super) budget: Arc<InFlightBudget>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PolledProducer {
    pub(super) fn start(
        config: &ClientConfig,
        deliveries: DeliveryContext,
        rebootstrap: Rebootstrap,
    ) -> Result<Self, Error> {
        let context = deliveries.context.clone();
        let failed = |error: KafkaError| unavailable(error, &context.status);
        let producer = config.create_with_context::<_, BaseProducer<_>>(deliveries);
        let producer = Arc::new(producer.map_err(failed)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (served, ended) = (producer.clone(), stop.clone());
        let thread = thread::Builder::new()
            .name("kafka-reports".into())
            .spawn(move || serve(&served, &ended, rebootstrap))
            .map_err(|error| Error::Unavailable(error.into()))?;
        Ok(Self { producer, budget: Arc::default(), stop, thread: Some(thread) })
    }

    /// Why this producer can send nothing more.
    pub(super) fn fatal_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.producer.client().fatal_error()
    }
}

impl Drop for PolledProducer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    producer: &BaseProducer<DeliveryContext>,
    stop: &AtomicBool,
    mut rebootstrap: Rebootstrap,
) {
    let mut broken = false;
    while !stop.load(Ordering::Relaxed) {
        producer.poll(POLL);
        rebootstrap.check(producer.client());
        if !broken && producer.client().fatal_error().is_some() {
            broken = true;
            // Nothing of it will be sent any more: answer its batches now. The next append gets a
            // new producer.
            producer.purge(PurgeConfig::default().queue().inflight());
        }
    }
}
