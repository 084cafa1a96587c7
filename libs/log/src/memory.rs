//! A log in memory, for tests, examples and measurements. It ends with the process.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::FutureExt;
use headwater_types::{Epoch, Name, Offset, PartitionId};
use parking_lot::{Condvar, Mutex, RwLock};

use crate::{
    Answer, Appended, Chunk, Cleanup, Compaction, DEFAULT_MAX_BATCH_BYTES, EncodedBatch, Ends,
    Error, FencedWriter, Log, Reader, TopicSpec, WriterId, answered,
};

/// A [`Log`] in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryLog {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    topics: RwLock<HashMap<Name, Arc<Topic>>>,
    /// Held while a fenced batch is stored, so that a claim never overtakes one.
    claims: Mutex<HashMap<WriterId, Epoch>>,
}

struct Topic {
    name: Name,
    spec: TopicSpec,
    partitions: Vec<Partition>,
}

#[derive(Default)]
struct Partition {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Default)]
struct State {
    ends: Ends,
    batches: VecDeque<Batch>,
    /// Only used where the topic compacts.
    compaction: Compaction,
}

struct Batch {
    base: Offset,
    end: Offset,
    bytes: Bytes,
}

impl MemoryLog {
    pub fn new() -> Self {
        Self::default()
    }

    fn place(&self, name: &Name, partition: PartitionId) -> Result<Place, Error> {
        let Some(topic) = self.shared.topics.read().get(name).cloned() else {
            return Err(Error::UnknownTopic { topic: name.clone() });
        };
        if partition.0 >= topic.spec.partitions {
            let partitions = topic.spec.partitions;
            return Err(Error::UnknownPartition { topic: name.clone(), partition, partitions });
        }
        Ok(Place { topic, partition })
    }
}

/// A partition that exists.
struct Place {
    topic: Arc<Topic>,
    partition: PartitionId,
}

impl Place {
    fn partition(&self) -> &Partition {
        &self.topic.partitions[self.partition.0 as usize]
    }

    /// Reading and trimming need an offset that is neither trimmed nor beyond the end.
    fn check(&self, requested: Offset, ends: Ends) -> Result<(), Error> {
        let (topic, partition) = (&self.topic.name, self.partition);
        if requested < ends.start {
            return Err(Error::Trimmed {
                topic: topic.clone(),
                partition,
                requested,
                start: ends.start,
            });
        }
        if requested > ends.end {
            return Err(Error::OffsetOutOfRange {
                topic: topic.clone(),
                partition,
                requested,
                end: ends.end,
            });
        }
        Ok(())
    }

    fn append(&self, mut batch: EncodedBatch) -> Result<Appended, Error> {
        let topic = &self.topic.name;
        if batch.bytes().len() > DEFAULT_MAX_BATCH_BYTES {
            let (bytes, limit) = (batch.bytes().len(), DEFAULT_MAX_BATCH_BYTES);
            return Err(Error::TooLarge { topic: topic.clone(), bytes, limit });
        }
        let compacts = self.topic.spec.cleanup == Cleanup::Compact;
        if compacts {
            batch.require_keys(topic)?;
        }
        let partition = self.partition();
        let mut state = partition.state.lock();
        let base = state.ends.end;
        batch.assign(base);
        let records = batch.records();
        let end = Offset(base.0 + u64::from(records));
        if compacts {
            for removable in state.compaction.learn(base, batch.walk())? {
                let index = state.batches.partition_point(|batch| batch.base < removable);
                state.batches.remove(index);
            }
        }
        state.batches.push_back(Batch { base, end, bytes: batch.into_bytes().into() });
        state.ends.end = end;
        partition.grown.notify_all();
        Ok(Appended::consecutive(base, records))
    }
}

impl Log for MemoryLog {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Answer<()> {
        answered(|| {
            if spec.partitions == 0 {
                return Err(Error::Refused {
                    topic: topic.clone(),
                    reason: "it needs at least one partition".into(),
                });
            }
            let mut topics = self.shared.topics.write();
            if let Some(existing) = topics.get(topic).map(|topic| topic.spec) {
                let differs =
                    Error::TopicDiffers { topic: topic.clone(), existing, requested: spec };
                return if existing == spec { Ok(()) } else { Err(differs) };
            }
            let partitions = (0..spec.partitions).map(|_| Partition::default()).collect();
            topics.insert(topic.clone(), Arc::new(Topic { name: topic.clone(), spec, partitions }));
            Ok(())
        })
    }

    fn topic(&self, topic: &Name) -> Answer<Option<TopicSpec>> {
        answered(|| Ok(self.shared.topics.read().get(topic).map(|topic| topic.spec)))
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Answer<Ends> {
        answered(|| Ok(self.place(topic, partition)?.partition().state.lock().ends))
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        let offset = self.place(topic, partition).and_then(|place| place.append(batch));
        std::future::ready(offset).boxed()
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Answer<Box<dyn Reader>> {
        answered(|| -> Result<Box<dyn Reader>, Error> {
            let place = self.place(topic, partition)?;
            let ends = place.partition().state.lock().ends;
            place.check(from, ends)?;
            Ok(Box::new(MemoryReader { place, position: from }))
        })
    }

    fn writer(&self, id: &WriterId) -> Answer<Arc<dyn FencedWriter>> {
        answered(|| -> Result<Arc<dyn FencedWriter>, Error> {
            let mut claims = self.shared.claims.lock();
            let epoch = claims.entry(id.clone()).or_default();
            *epoch = epoch.next();
            Ok(Arc::new(MemoryWriter { log: self.clone(), id: id.clone(), epoch: *epoch }))
        })
    }

    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Answer<()> {
        answered(|| {
            let place = self.place(topic, partition)?;
            let mut state = place.partition().state.lock();
            if before <= state.ends.start {
                return Ok(());
            }
            place.check(before, state.ends)?;
            state.ends.start = before;
            let kept = state.batches.partition_point(|batch| batch.end <= before);
            state.batches.drain(..kept);
            if let Some(first) = state.batches.front().map(|batch| batch.base) {
                state.compaction.forget_before(first);
            } else {
                state.compaction = Compaction::default();
            }
            Ok(())
        })
    }

    fn size(&self, topic: &Name, partition: PartitionId, from: Offset, to: Offset) -> Answer<u64> {
        answered(|| {
            let place = self.place(topic, partition)?;
            let state = place.partition().state.lock();
            let inside = state.batches.iter().filter(|batch| batch.end > from && batch.base < to);
            Ok(inside.map(|batch| batch.bytes.len() as u64).sum())
        })
    }
}

struct MemoryReader {
    place: Place,
    position: Offset,
}

impl Reader for MemoryReader {
    fn position(&self) -> Offset {
        self.position
    }

    fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error> {
        let partition = self.place.partition();
        let mut state = partition.state.lock();
        if state.ends.end == self.position && !wait.is_zero() {
            // A wait that no clock can express has no end.
            let deadline = Instant::now().checked_add(wait);
            let at_end = |state: &mut State| state.ends.end == self.position;
            match deadline {
                Some(deadline) => {
                    _ = partition.grown.wait_while_until(&mut state, at_end, deadline)
                }
                None => partition.grown.wait_while(&mut state, at_end),
            }
        }
        self.place.check(self.position, state.ends)?;
        let first = state.batches.partition_point(|batch| batch.end <= self.position);
        let mut batches = state.batches.range(first..).peekable();
        let Some(batch) = batches.next() else { return Ok(None) };
        let (mut bytes, mut end) = (batch.bytes.clone(), batch.end);
        if batches.peek().is_some_and(|next| bytes.len() + next.bytes.len() <= max_bytes) {
            let mut joined = Vec::with_capacity(max_bytes.min(1 << 20));
            joined.extend_from_slice(&bytes);
            while let Some(next) =
                batches.next_if(|next| joined.len() + next.bytes.len() <= max_bytes)
            {
                joined.extend_from_slice(&next.bytes);
                end = next.end;
            }
            bytes = joined.into();
        }
        self.position = end;
        Ok(Some(Chunk::new(bytes, end).of(self.place.topic.name.clone(), self.place.partition)))
    }
}

struct MemoryWriter {
    log: MemoryLog,
    id: WriterId,
    epoch: Epoch,
}

impl MemoryWriter {
    fn try_append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Result<Appended, Error> {
        let claims = self.log.shared.claims.lock();
        let current = claims.get(&self.id).copied().unwrap_or(self.epoch);
        if current != self.epoch {
            return Err(Error::Fenced { writer: self.id.clone(), ours: self.epoch });
        }
        self.log.place(topic, partition)?.append(batch)
    }
}

impl FencedWriter for MemoryWriter {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        std::future::ready(self.try_append(topic, partition, batch)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchBuilder, conformance};

    struct Memory;

    impl conformance::Subject for Memory {
        fn open(&self) -> Arc<dyn Log> {
            Arc::new(MemoryLog::new())
        }
        fn durable(&self) -> bool {
            false
        }
    }

    #[test]
    fn the_log_in_memory_keeps_every_law() {
        conformance::all(&Memory);
    }

    #[test]
    fn a_batch_over_the_limit_is_refused_with_the_limit() {
        let log = MemoryLog::new();
        let topic = Name::new("t").unwrap();
        crate::block_on(log.create_topic(&topic, TopicSpec::keep(1))).unwrap();
        let mut builder = BatchBuilder::new();
        builder.push(0, None, Some(&vec![0; DEFAULT_MAX_BATCH_BYTES]), &[]);
        let appended = log.append(&topic, PartitionId(0), builder.build().unwrap());
        let error = crate::block_on(appended).unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: DEFAULT_MAX_BATCH_BYTES, .. }), "{error}");
    }
}
