//! A producer and the thread that serves its reports.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use headwater_log::Error;
use parking_lot::{Condvar, Mutex};
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, Producer, PurgeConfig},
};

use super::Deliveries;

/// How long the thread waits for reports, and so how late it sees that it shall end. Each wait ends with a
/// millisecond of asking over and over, so it should be long.
const POLL: Duration = Duration::from_millis(500);

/// What one producer may hold; a single batch may exceed it.
const ROOM_BYTES: usize = 64 << 20;
const ROOM_RECORDS: usize = 500_000;

/// What of a producer's room is taken: a batch is handed over when there is room for all of it, or it would be
/// stored in part if the rest comes too late.
#[derive(Debug, Default)]
pub(crate) struct Room {
    taken: Mutex<Taken>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct Taken {
    bytes: usize,
    records: usize,
}

impl Room {
    /// Waits for room until the deadline, and says whether there was.
    pub(super) fn enter(&self, bytes: usize, records: usize, until: Instant) -> bool {
        let mut taken = self.taken.lock();
        while taken.records > 0
            && (taken.bytes + bytes > ROOM_BYTES || taken.records + records > ROOM_RECORDS)
        {
            if self.left.wait_until(&mut taken, until).timed_out() {
                return false;
            }
        }
        taken.bytes += bytes;
        taken.records += records;
        true
    }

    pub(super) fn leave(&self, bytes: usize, records: usize) {
        let mut taken = self.taken.lock();
        taken.bytes = taken.bytes.saturating_sub(bytes);
        taken.records = taken.records.saturating_sub(records);
        self.left.notify_all();
    }

    /// Waits until nothing is on its way.
    pub(super) fn wait_empty(&self, until: Instant) -> bool {
        let mut taken = self.taken.lock();
        while taken.records > 0 {
            if self.left.wait_until(&mut taken, until).timed_out() {
                return false;
            }
        }
        true
    }
}

pub(super) struct Line {
    pub(super) producer: Arc<BaseProducer<Deliveries>>,
    pub(super) room: Arc<Room>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Line {
    pub(super) fn start(config: &ClientConfig, deliveries: Deliveries) -> Result<Self, Error> {
        let context = deliveries.context.clone();
        let failed = |error: KafkaError| crate::error::unavailable(error, &context.trouble);
        let producer = config.create_with_context::<_, BaseProducer<_>>(deliveries);
        let producer = Arc::new(producer.map_err(failed)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (served, ended) = (producer.clone(), stop.clone());
        let thread = thread::Builder::new()
            .name("kafka-reports".into())
            .spawn(move || serve(&served, &ended))
            .map_err(|error| Error::Unavailable(error.into()))?;
        Ok(Self { producer, room: Arc::default(), stop, thread: Some(thread) })
    }

    /// Why librdkafka can go on no more.
    pub(super) fn broken(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.producer.client().fatal_error()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(producer: &BaseProducer<Deliveries>, stop: &AtomicBool) {
    let mut broken = false;
    while !stop.load(Ordering::Relaxed) {
        producer.poll(POLL);
        if !broken && producer.client().fatal_error().is_some() {
            broken = true;
            // Nobody shall wait for what cannot happen any more. Another takes its place with the next append.
            producer.purge(PurgeConfig::default().queue().inflight());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_enters_when_there_is_room_for_all_of_it() {
        let room = Arc::<Room>::default();
        let now = Instant::now;
        assert!(room.enter(2 * ROOM_BYTES, 1, now()), "what is larger than the room goes alone");
        assert!(!room.enter(1, 1, now()) && !room.wait_empty(now()));
        room.leave(2 * ROOM_BYTES, 1);
        assert!(room.enter(ROOM_BYTES - 10, 1, now()));
        assert!(!room.enter(11, 2, now()) && room.enter(10, 2, now()));
        assert!(!room.enter(0, ROOM_RECORDS, now()));
        let waits = room.clone();
        let waiting = thread::spawn(move || waits.enter(11, 2, now() + Duration::from_secs(60)));
        room.leave(ROOM_BYTES - 10, 1);
        assert!(waiting.join().unwrap());
        room.leave(10, 2);
        room.leave(11, 2);
        assert!(room.wait_empty(now()));
    }
}
