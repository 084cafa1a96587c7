//! The conformance suite notices a log that breaks a law.
//!
//! Every fault here breaks one law of an otherwise sound log, and the law of that name must fail on
//! it.

#![allow(clippy::wildcard_enum_match_arm, reason = "a fault changes one thing and leaves the rest")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use futures::FutureExt;
use headwater_log::{
    Answer, Appended, BatchBuilder, Chunk, Cleanup, EncodedBatch, Ends, Error, FencedWriter, Log,
    MemoryLog, Reader, RecordLimit, TopicSpec, WriterId, answered, block_on,
    conformance::{self, Subject},
};
use headwater_types::{Epoch, Name, Offset, PartitionId};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Sound,
    AcknowledgesWithoutStoring,
    StoresWhenPolled,
    StoresSomeTwice,
    StoresWhatComesBeforeTheTooLarge,
    TakesAnySize,
    MixesPartitions,
    MakesEmptyAbsent,
    LosesHeaders,
    RoundsTimestamps,
    IgnoresTheSizeOfChunks,
    AcknowledgesBeforeStoring,
    BeginsAtTheNextBatch,
    ReadsOtherRecordsTheNextTime,
    SleepsThroughAppends,
    NeverWaits,
    TakesAnyOffset,
    CreatesWhatIsMissing,
    ForgetsSpecifications,
    MeasuresNothing,
    TrimsNothing,
    TrimsTooMuch,
    KeepsTheFirstOfEachKey,
    InventsKeys,
    FencesNobody,
    FencesOthers,
    ForgetsEverything,
    ForgetsTheLastAppend,
}

use Fault::*;

/// Which law must notice which fault.
const NOTICED: &[(&str, &[Fault])] = &[
    ("a batch gets consecutive offsets", &[AcknowledgesWithoutStoring, StoresSomeTwice]),
    ("appends are stored in the order of calls", &[StoresWhenPolled]),
    ("concurrent appends are all stored once", &[StoresSomeTwice, AcknowledgesWithoutStoring]),
    ("partitions and topics are apart", &[MixesPartitions]),
    ("records come back as they went in", &[MakesEmptyAbsent, LosesHeaders, RoundsTimestamps]),
    ("a chunk is whole batches within its size", &[IgnoresTheSizeOfChunks]),
    ("what was acknowledged can be read at once", &[AcknowledgesBeforeStoring]),
    ("reading begins in the middle of a batch", &[BeginsAtTheNextBatch]),
    ("two reads return the same", &[ReadsOtherRecordsTheNextTime]),
    ("a waiting reader is woken by an append", &[SleepsThroughAppends]),
    ("a reader at the end waits no longer than asked", &[NeverWaits]),
    ("an offset beyond the end is an error", &[TakesAnyOffset]),
    ("what is unknown is named", &[CreatesWhatIsMissing]),
    ("a topic is created once", &[ForgetsSpecifications]),
    (
        "a record over the limit is refused with its batch",
        &[StoresWhatComesBeforeTheTooLarge, TakesAnySize],
    ),
    ("size follows the bytes", &[MeasuresNothing]),
    ("what was trimmed is refused", &[TrimsNothing, TrimsTooMuch]),
    ("a partition is trimmed to its end", &[TrimsNothing]),
    ("compaction keeps the latest of each key", &[KeepsTheFirstOfEachKey]),
    ("compaction refuses records without a key", &[InventsKeys]),
    ("a newer claim fences the older ones", &[FencesNobody, FencesOthers]),
    ("what was acknowledged survives", &[ForgetsEverything, ForgetsTheLastAppend]),
    ("offsets go on after opening again", &[ForgetsEverything, ForgetsTheLastAppend]),
    ("a trim survives", &[ForgetsEverything]),
    ("a claim survives", &[ForgetsEverything]),
    ("compaction survives", &[ForgetsEverything, ForgetsTheLastAppend]),
];

const LIMIT: RecordLimit = RecordLimit { bytes: 500_000, overhead: 50, set_by: "the test" };

/// A log that lives on between openings, except for its fault.
struct Broken {
    fault: Fault,
    log: Mutex<MemoryLog>,
}

impl Subject for Broken {
    fn open(&self) -> Arc<dyn Log> {
        let mut log = self.log.lock().unwrap();
        if self.fault == ForgetsEverything {
            *log = MemoryLog::new();
        }
        Arc::new(Faulty {
            log: log.clone(),
            fault: self.fault,
            calls: AtomicU64::new(0),
            last: Mutex::new(None),
        })
    }
    fn durable(&self) -> bool {
        true
    }
}

struct Faulty {
    log: MemoryLog,
    fault: Fault,
    calls: AtomicU64,
    /// Not yet in the log, where the fault is to forget it.
    last: Mutex<Option<(Name, PartitionId, EncodedBatch)>>,
}

impl Faulty {
    /// The batch as the fault changes it.
    fn change(&self, batch: EncodedBatch) -> EncodedBatch {
        if !matches!(self.fault, MakesEmptyAbsent | LosesHeaders | RoundsTimestamps | InventsKeys) {
            return batch;
        }
        let mut builder = BatchBuilder::new();
        for record in batch.walk().map(Result::unwrap) {
            let headers: Vec<_> =
                record.headers.iter().map(|(name, value)| (name, value.unwrap())).collect();
            let (mut timestamp, mut key, mut headers) =
                (record.timestamp_ms, record.key, &headers[..]);
            match self.fault {
                MakesEmptyAbsent => key = key.filter(|key| !key.is_empty()),
                InventsKeys => key = key.or(Some(b"")),
                LosesHeaders => headers = &[],
                _ => timestamp = timestamp / 1000 * 1000,
            }
            builder.push(timestamp, key, record.value, headers);
        }
        builder.build().unwrap()
    }

    fn missing(&self, topic: &Name) {
        if self.fault == CreatesWhatIsMissing {
            let _ = block_on(self.log.create_topic(topic, TopicSpec::keep(9)));
        }
    }

    /// What was held back comes into the log with the next call that shows it.
    fn settle(&self) {
        if let Some((topic, partition, batch)) = self.last.lock().unwrap().take() {
            block_on(self.log.append(&topic, partition, batch)).unwrap();
        }
    }
}

impl Log for Faulty {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Answer<()> {
        answered(|| {
            if self.fault == ForgetsSpecifications && block_on(self.log.topic(topic))?.is_some() {
                return Ok(());
            }
            block_on(self.log.create_topic(topic, spec))
        })
    }

    fn topic(&self, topic: &Name) -> Answer<Option<TopicSpec>> {
        answered(|| block_on(self.log.topic(topic)))
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Answer<Ends> {
        answered(|| {
            self.settle();
            self.missing(topic);
            block_on(self.log.ends(topic, partition))
        })
    }

    fn record_limit(&self, _: &Name) -> Option<RecordLimit> {
        Some(LIMIT)
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        self.missing(topic);
        if self.fault != TakesAnySize
            && let Err(error) = LIMIT.check(topic, &batch)
        {
            if self.fault == StoresWhatComesBeforeTheTooLarge {
                let first = batch.walk().next().unwrap().unwrap();
                let mut before = BatchBuilder::new();
                before.push(first.timestamp_ms, first.key, first.value, &[]);
                drop(self.log.append(topic, partition, before.build().unwrap()));
            }
            return std::future::ready(Err(error)).boxed();
        }
        let batch = self.change(batch);
        let (log, topic) = (self.log.clone(), topic.clone());
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let records = batch.records();
        let end = || {
            let ends = block_on(log.ends(&topic, partition));
            ends.map(|ends| Appended::consecutive(ends.end, records))
        };
        match self.fault {
            AcknowledgesWithoutStoring if call % 3 == 2 => {
                let end = end();
                async move { end }.boxed()
            }
            StoresWhenPolled => async move { log.append(&topic, partition, batch).await }.boxed(),
            StoresSomeTwice if call % 3 == 1 => {
                drop(log.append(&topic, partition, batch.clone()));
                log.append(&topic, partition, batch)
            }
            MixesPartitions => log.append(&topic, PartitionId(partition.0 / 2), batch),
            AcknowledgesBeforeStoring => {
                let end = end();
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(20));
                    block_on(log.append(&topic, partition, batch))
                });
                async move { end }.boxed()
            }
            KeepsTheFirstOfEachKey
                if block_on(log.topic(&topic)).unwrap().unwrap().cleanup == Cleanup::Compact
                    && call > 20 =>
            {
                let first = BatchBuilder::new();
                let first = batch.walk().map(Result::unwrap).fold(first, |mut builder, record| {
                    builder.push(0, Some(&[record.key.unwrap(), b"?"].concat()), record.value, &[]);
                    builder
                });
                log.append(&topic, partition, first.build().unwrap())
            }
            ForgetsTheLastAppend => {
                self.settle();
                let end = end();
                if end.is_ok() {
                    *self.last.lock().unwrap() = Some((topic, partition, batch));
                }
                async move { end }.boxed()
            }
            _ => log.append(&topic, partition, batch),
        }
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Answer<Box<dyn Reader>> {
        answered(|| -> Result<Box<dyn Reader>, Error> {
            self.settle();
            self.missing(topic);
            let ends = block_on(self.log.ends(topic, partition))?;
            let from = match self.fault {
                TakesAnyOffset => from.clamp(ends.start, ends.end),
                BeginsAtTheNextBatch => Offset(from.0.next_multiple_of(10)).min(ends.end),
                _ => from,
            };
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            let reader = block_on(self.log.reader(topic, partition, from))?;
            Ok(Box::new(FaultyReader { reader, fault: self.fault, call }))
        })
    }

    fn writer(&self, id: &WriterId) -> Answer<Arc<dyn FencedWriter>> {
        answered(|| -> Result<Arc<dyn FencedWriter>, Error> {
            let id = if self.fault == FencesOthers { &WriterId("everybody".into()) } else { id };
            let writer = block_on(self.log.writer(id))?;
            let free = (self.fault == FencesNobody).then(|| self.log.clone());
            Ok(Arc::new(FaultyWriter { writer, free }))
        })
    }

    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Answer<()> {
        answered(|| {
            self.missing(topic);
            match self.fault {
                TrimsNothing => Ok(()),
                TrimsTooMuch => {
                    block_on(self.log.trim(topic, partition, Offset(before.0.next_multiple_of(10))))
                }
                _ => block_on(self.log.trim(topic, partition, before)),
            }
        })
    }

    fn size(&self, topic: &Name, partition: PartitionId, from: Offset, to: Offset) -> Answer<u64> {
        answered(|| {
            self.missing(topic);
            let size = block_on(self.log.size(topic, partition, from, to))?;
            Ok(if self.fault == MeasuresNothing { 0 } else { size })
        })
    }
}

struct FaultyReader {
    reader: Box<dyn Reader>,
    fault: Fault,
    call: u64,
}

impl Reader for FaultyReader {
    fn position(&self) -> Offset {
        self.reader.position()
    }

    fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error> {
        let (max_bytes, wait) = match self.fault {
            IgnoresTheSizeOfChunks => (usize::MAX, wait),
            NeverWaits => (max_bytes, Duration::ZERO),
            SleepsThroughAppends => {
                thread::sleep(wait);
                (max_bytes, Duration::ZERO)
            }
            _ => (max_bytes, wait),
        };
        let chunk = self.reader.read(max_bytes, wait)?;
        Ok(chunk.map(|chunk| {
            let mut bytes = chunk.bytes().to_vec();
            if self.fault == ReadsOtherRecordsTheNextTime && self.call % 2 == 1 {
                // The last bit of the first timestamp.
                bytes[34] ^= 1;
            }
            Chunk::new(bytes, chunk.end()).verified()
        }))
    }
}

struct FaultyWriter {
    writer: Arc<dyn FencedWriter>,
    free: Option<MemoryLog>,
}

impl FencedWriter for FaultyWriter {
    fn epoch(&self) -> Epoch {
        self.writer.epoch()
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        match &self.free {
            Some(log) => log.append(topic, partition, batch),
            None => self.writer.append(topic, partition, batch),
        }
    }
}

fn keeps(fault: Fault, law: fn(&dyn Subject)) -> bool {
    let subject = Broken { fault, log: Mutex::default() };
    catch_unwind(AssertUnwindSafe(|| law(&subject))).is_ok()
}

#[test]
fn every_law_notices_its_faults() {
    conformance::all(&Broken { fault: Sound, log: Mutex::default() });
    // The panics are expected and would bury the one that is not.
    std::panic::set_hook(Box::new(|_| {}));
    let mut unnoticed = Vec::new();
    for (name, law) in conformance::LAWS {
        let faults =
            NOTICED.iter().find(|(noticing, _)| noticing == name).map(|(_, faults)| *faults);
        match faults {
            Some(faults) => unnoticed.extend(
                faults.iter().filter(|fault| keeps(**fault, *law)).map(|fault| (*name, *fault)),
            ),
            None => unnoticed.push((*name, Sound)),
        }
    }
    let _ = std::panic::take_hook();
    assert!(unnoticed.is_empty(), "laws that no fault breaks: {unnoticed:?}");
    assert_eq!(NOTICED.len(), conformance::LAWS.len());
}
