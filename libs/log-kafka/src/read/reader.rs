//! A reader: a cursor over one partition.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use headwater_log::{Chunk, Ends, Error, Reader};
use headwater_types::{BoxError, Name, Offset, PartitionId};

use super::{
    buffer_pool::{BufferPool, PooledBatch},
    consumer_thread::ConsumerThread,
    consumers::Consumers,
    fetch_failure::FetchFailure,
    partition_buffer::{PartitionBuffer, Taken},
};
use crate::{
    admin::Admin,
    client::{
        cluster_status::ClusterStatus,
        error::{denied, unavailable},
    },
    health::Health,
};

/// The parts of the log that all its readers use.
pub(crate) struct ReadContext {
    pub(crate) consumers: Consumers,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) admin: Arc<Admin>,
    pub(crate) health: Arc<Health>,
    pub(crate) status: ClusterStatus,
    pub(crate) request_timeout: Duration,
}

/// Attaches to a consumer at its first read, and again after a failure.
pub(crate) struct KafkaReader {
    context: Arc<ReadContext>,
    topic: Name,
    partition: PartitionId,
    position: Offset,
    attached: Option<(Arc<ConsumerThread>, Arc<PartitionBuffer>)>,
}

impl KafkaReader {
    pub(crate) fn new(
        context: Arc<ReadContext>,
        topic: Name,
        partition: PartitionId,
        position: Offset,
    ) -> Self {
        Self { context, topic, partition, position, attached: None }
    }

    fn attach(&mut self) -> Result<(Arc<ConsumerThread>, Arc<PartitionBuffer>), Error> {
        if let Some(attached) = &self.attached {
            return Ok(attached.clone());
        }
        let buffer = Arc::new(PartitionBuffer::new(
            self.topic.clone(),
            self.partition,
            self.position,
            self.context.pool.clone(),
        ));
        let consumer = self
            .context
            .consumers
            .attach(&buffer, self.position)
            .map_err(|error| self.unavailable(error))?;
        Ok(self.attached.insert((consumer, buffer)).clone())
    }

    fn detach(&mut self) {
        if let Some((consumer, buffer)) = self.attached.take() {
            consumer.detach(&buffer);
        }
    }

    fn unavailable(&self, error: impl Into<BoxError>) -> Error {
        unavailable(error, &self.context.status)
    }

    fn fail(&mut self, failure: FetchFailure) -> Result<(), Error> {
        self.detach();
        let (topic, partition) = (self.topic.clone(), self.partition);
        match failure {
            FetchFailure::Corrupt(detail) => Err(Error::Corrupt {
                topic: Some(topic),
                partition: Some(partition),
                offset: self.position,
                detail,
            }),
            FetchFailure::UnknownTopic => {
                // The topic may be gone, or was unknown to one broker for a moment.
                self.context.admin.check(&self.topic, self.partition).map(drop)
            }
            FetchFailure::NotRead(reason) => Err(self.unavailable(reason)),
            FetchFailure::Refused => Err(Error::Refused {
                topic,
                reason: denied("Read", &self.topic, &self.context.status).into(),
            }),
            FetchFailure::OutOfRange => {
                let ends = self.context.admin.ends(&self.topic, self.partition)?;
                check_position(&self.topic, self.partition, self.position, ends)
            }
        }
    }
}

/// Whether a reader may begin at `requested`.
pub(crate) fn check_position(
    topic: &Name,
    partition: PartitionId,
    requested: Offset,
    ends: Ends,
) -> Result<(), Error> {
    let topic = topic.clone();
    if requested < ends.start {
        return Err(Error::Trimmed { topic, partition, requested, start: ends.start });
    }
    if requested > ends.end {
        return Err(Error::OffsetOutOfRange { topic, partition, requested, end: ends.end });
    }
    Ok(())
}

impl Reader for KafkaReader {
    fn position(&self) -> Offset {
        self.position
    }

    fn read(&mut self, _max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error> {
        let begun = Instant::now();
        // A caller that does not wait still gets what the log has: fetching it takes a moment. Then
        // this is the end of the partition that was asked for.
        let mut known_end = None;
        loop {
            let (consumer, buffer) = self.attach()?;
            let left = match known_end {
                None => wait.saturating_sub(begun.elapsed()),
                Some(_) => self.context.request_timeout.saturating_sub(begun.elapsed()),
            };
            let (taken, freed) = buffer.take(self.position, left);
            if freed > 0 {
                consumer.made_room();
            }
            match taken {
                Taken::Batch(batch) => {
                    let end = batch.end();
                    self.position = end;
                    let bytes = Bytes::from_owner(PooledBatch::new(batch, &self.context.pool));
                    let chunk = Chunk::new(bytes, end).verified();
                    return Ok(Some(chunk.of(self.topic.clone(), self.partition)));
                }
                Taken::Passed(end) => {
                    self.position = end;
                    // A caller that does not wait wants the records behind the gap.
                    if known_end.is_none_or(|known| end >= known) {
                        return Ok(None);
                    }
                }
                Taken::Failed(failure) => self.fail(failure)?,
                Taken::Nothing if wait.is_zero() && known_end.is_none() => {
                    let end = self.context.admin.ends(&self.topic, self.partition)?.end;
                    if end <= self.position {
                        return Ok(None);
                    }
                    known_end = Some(end);
                }
                Taken::Nothing if known_end.is_some() => {
                    let reason = format!(
                        "{}[{}] cannot be read at {}",
                        self.topic, self.partition, self.position
                    );
                    return Err(self.unavailable(reason));
                }
                Taken::Nothing => {
                    if let Some(reason) = self.context.health.unreachable() {
                        return Err(Error::Unavailable(reason.into()));
                    }
                    return Ok(None);
                }
            }
        }
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        self.detach();
    }
}
