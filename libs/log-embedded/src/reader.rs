use std::{sync::Arc, time::Duration};

use headwater_log::{BatchHeader, Chunk, Ends, Error, Reader};
use headwater_types::{Offset, PartitionId};
use rocksdb::DBRawIterator;

use crate::{Shared, keys::BatchKey, partition::Topic};

/// A cursor over one partition. Holds nothing of the database between reads.
pub(crate) struct EmbeddedReader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) topic: Arc<Topic>,
    pub(crate) partition: PartitionId,
    pub(crate) position: Offset,
}

impl Reader for EmbeddedReader {
    fn position(&self) -> Offset {
        self.position
    }

    fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error> {
        let partition = self.topic.partition(self.partition)?;
        partition.wait_for(self.position, wait, || self.shared.is_closed());
        loop {
            let ends = partition.ends();
            self.topic.check(self.partition, self.position, ends)?;
            if self.position == ends.end {
                return if self.shared.is_closed() { Err(crate::closed()) } else { Ok(None) };
            }
            if let Some(chunk) = self.fetch(max_bytes, ends)? {
                self.position = chunk.end();
                return Ok(Some(chunk));
            }
            // The records were trimmed meanwhile, or compacted because of a later one.
            if partition.ends() == ends {
                let detail = format!("nothing is stored between here and the end at {}", ends.end);
                return Err(self.topic.corrupt(self.partition, self.position, detail));
            }
        }
    }
}

impl EmbeddedReader {
    /// Batches from the position to before the end; `None` if there are none.
    fn fetch(&self, max_bytes: usize, ends: Ends) -> Result<Option<Chunk>, Error> {
        let db = self.shared.store.read()?;
        let mut batches = self.topic.batches(&db, self.partition)?;
        // The batch with the position begins there or earlier.
        batches.seek_for_prev(BatchKey::upper(self.partition.0, self.position));
        match self.topic.key_at(&batches, self.partition)? {
            Some(key) if key.end() > self.position => {}
            Some(_) => batches.next(),
            None => batches.seek(BatchKey::lower(self.partition.0, self.position)),
        }
        let stored = self.topic.partition(self.partition)?.bytes();
        let mut bytes = Vec::new();
        let mut end = self.position;
        while let Some(key) = self.topic.key_at(&batches, self.partition)? {
            if key.base >= ends.end {
                break;
            }
            let gap = key.base > end || (!bytes.is_empty() && key.base != end);
            if gap && !self.topic.compacts() {
                // What is trimmed while it is read is missing for a reason.
                if self.topic.partition(self.partition)?.ends().start > end {
                    break;
                }
                let detail = format!("the records up to {} are missing", key.base);
                return Err(self.topic.corrupt(self.partition, end, detail));
            }
            let batch = self.batch(&key, &batches)?;
            if bytes.is_empty() {
                let left = usize::try_from(stored.saturating_sub(key.before)).unwrap_or(usize::MAX);
                bytes.reserve(max_bytes.min(left).max(batch.len()));
            }
            bytes.extend_from_slice(batch);
            end = key.end();
            // Guessing that the next one is as long: asking would read it.
            if bytes.len() + batch.len() > max_bytes {
                break;
            }
            batches.next();
        }
        let chunk =
            |bytes: Vec<u8>| Chunk::new(bytes, end).of(self.topic.name.clone(), self.partition);
        Ok((!bytes.is_empty()).then(|| chunk(bytes)))
    }

    /// The batch under the key, if it is what the key says.
    fn batch<'a>(&self, key: &BatchKey, batches: &'a DBRawIterator<'_>) -> Result<&'a [u8], Error> {
        let corrupt = |detail: &str| self.topic.corrupt(self.partition, key.base, detail);
        let batch = batches.value().unwrap_or_default();
        let header = match BatchHeader::read(batch) {
            Ok(header) => header,
            Err(Error::Corrupt { detail, .. }) => return Err(corrupt(&detail)),
            Err(error) => return Err(error),
        };
        if header.base_offset != key.base || header.end() != key.end() || header.len != batch.len()
        {
            return Err(corrupt("it is another batch than its key says"));
        }
        Ok(batch)
    }
}
