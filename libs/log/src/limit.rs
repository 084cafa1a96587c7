use headwater_types::Name;

use crate::{EncodedBatch, Error, HEADER_LEN, Record};

/// How large a record of a topic may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLimit {
    /// The most bytes of key, value and headers, with `overhead`.
    pub bytes: usize,
    /// What a record may cost beyond them.
    pub overhead: usize,
    /// The setting that says so.
    pub set_by: &'static str,
}

/// The most that a header costs beyond its name and its value: their lengths.
const HEADER_OVERHEAD: usize = 10;

impl RecordLimit {
    /// What a record without headers counts for.
    pub fn count(&self, key: Option<&[u8]>, value: &[u8]) -> usize {
        self.overhead + key.map_or(0, <[u8]>::len) + value.len()
    }

    /// Whether a record with these headers is within the limit.
    pub fn takes(
        &self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> bool {
        let headers = headers.iter().map(|(name, value)| header_bytes(name, value.len()));
        self.count(key, value.unwrap_or_default()) + headers.sum::<usize>() <= self.bytes
    }

    fn count_all(&self, record: &Record<'_>) -> usize {
        let headers = record
            .headers
            .iter()
            .map(|(name, value)| header_bytes(name, value.map_or(0, <[u8]>::len)));
        self.count(record.key, record.value.unwrap_or_default()) + headers.sum::<usize>()
    }

    /// [`Error::RecordTooLarge`] if a record of the batch is over the limit.
    pub fn check(&self, topic: &Name, batch: &EncodedBatch) -> Result<(), Error> {
        // No record has more than all of them together.
        if self.overhead + batch.bytes().len().saturating_sub(HEADER_LEN) <= self.bytes {
            return Ok(());
        }
        for (index, record) in (0..).zip(batch.walk()) {
            let bytes = self.count_all(&record?);
            if bytes > self.bytes {
                let (topic, limit, set_by) = (topic.clone(), self.bytes, self.set_by);
                return Err(Error::RecordTooLarge { topic, index, bytes, limit, set_by });
            }
        }
        Ok(())
    }
}

fn header_bytes(name: &str, value: usize) -> usize {
    HEADER_OVERHEAD + name.len() + value
}
