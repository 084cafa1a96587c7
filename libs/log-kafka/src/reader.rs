use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use headwater_log::{Chunk, Ends, Error, Reader};
use headwater_types::{Name, Offset, PartitionId};

use crate::{
    Inner, error,
    lane::{Borrowed, Failure, Lane, Taken},
    pump::Pump,
};

/// A cursor. It has a place in a consumer from its first read on.
pub(crate) struct KafkaReader {
    inner: Arc<Inner>,
    topic: Name,
    partition: PartitionId,
    position: Offset,
    attached: Option<(Arc<Pump>, Arc<Lane>)>,
}

impl KafkaReader {
    pub(crate) fn new(
        inner: Arc<Inner>,
        topic: Name,
        partition: PartitionId,
        position: Offset,
    ) -> Self {
        Self { inner, topic, partition, position, attached: None }
    }

    fn attach(&mut self) -> Result<(Arc<Pump>, Arc<Lane>), Error> {
        if let Some(attached) = &self.attached {
            return Ok(attached.clone());
        }
        let lane = Arc::new(Lane::new(
            self.topic.clone(),
            self.partition,
            self.position,
            self.inner.spares.clone(),
        ));
        let pump = self.inner.attach(&lane, self.position)?;
        Ok(self.attached.insert((pump, lane)).clone())
    }

    fn detach(&mut self) {
        if let Some((pump, lane)) = self.attached.take() {
            pump.detach(&lane);
        }
    }

    fn fail(&mut self, failure: Failure) -> Result<(), Error> {
        self.detach();
        let (topic, partition) = (self.topic.clone(), self.partition);
        match failure {
            Failure::Corrupt(detail) => Err(Error::Corrupt {
                topic: Some(topic),
                partition: Some(partition),
                offset: self.position,
                detail,
            }),
            Failure::UnknownTopic => {
                // It may have been away for a moment, or be gone.
                self.inner.admin.check(&self.topic, self.partition).map(drop)
            }
            Failure::NotRead(reason) => Err(self.inner.unavailable(reason)),
            Failure::Refused => Err(Error::Refused {
                topic,
                reason: error::denied("Read", &self.topic, &self.inner.context.trouble).into(),
            }),
            Failure::OutOfRange => {
                let ends = self.inner.admin.ends(&self.topic, self.partition)?;
                check(&self.topic, self.partition, self.position, ends)
            }
        }
    }
}

/// Whether a reader may stand there.
pub(crate) fn check(
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
        // Who does not wait gets what is in the log all the same: the way to it takes a moment.
        let mut known_end = None;
        loop {
            let (pump, lane) = self.attach()?;
            let left = match known_end {
                None => wait.saturating_sub(begun.elapsed()),
                Some(_) => self.inner.config.request_timeout.saturating_sub(begun.elapsed()),
            };
            let (taken, freed) = lane.take(self.position, left);
            if freed > 0 {
                pump.made_room();
            }
            match taken {
                Taken::Batch(batch) => {
                    let end = batch.end();
                    self.position = end;
                    let bytes = Bytes::from_owner(Borrowed::new(batch, &self.inner.spares));
                    let chunk = Chunk::new(bytes, end).verified();
                    return Ok(Some(chunk.of(self.topic.clone(), self.partition)));
                }
                Taken::Passed(end) => {
                    self.position = end;
                    // With something behind the gap that was asked for at once, go on.
                    if known_end.is_none_or(|known| end >= known) {
                        return Ok(None);
                    }
                }
                Taken::Failed(failure) => self.fail(failure)?,
                Taken::Nothing if wait.is_zero() && known_end.is_none() => {
                    let end = self.inner.admin.ends(&self.topic, self.partition)?.end;
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
                    return Err(self.inner.unavailable(reason));
                }
                Taken::Nothing => {
                    if let Some(reason) = self.inner.unreachable() {
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
