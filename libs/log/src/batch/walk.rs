use headwater_types::{Name, Offset, PartitionId};

use super::{
    header::{BatchHeader, Flaw, HEADER_LEN},
    varint,
};
use crate::Error;

/// An event at an offset of a partition, borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub offset: Offset,
    /// When it was produced or appended, in milliseconds since 1970-01-01T00:00:00Z.
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    /// `None` says that the key is gone.
    pub value: Option<&'a [u8]>,
    pub headers: Headers<'a>,
}

/// The headers of a record, in order. Names may repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<'a> {
    // Walked once already when the record was read, so that iterating cannot fail.
    bytes: &'a [u8],
}

impl<'a> Headers<'a> {
    pub const EMPTY: Self = Self { bytes: &[] };

    pub fn iter(&self) -> HeaderIter<'a> {
        HeaderIter { bytes: self.bytes }
    }

    /// The value of the first header of this name, if it has one.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.iter().find(|(own, _)| *own == name).and_then(|(_, value)| value)
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl<'a> IntoIterator for Headers<'a> {
    type Item = (&'a str, Option<&'a [u8]>);
    type IntoIter = HeaderIter<'a>;
    fn into_iter(self) -> HeaderIter<'a> {
        self.iter()
    }
}

/// Iterates over [`Headers`]: names and values.
#[derive(Clone, Debug)]
pub struct HeaderIter<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a str, Option<&'a [u8]>);
    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        take_header(&mut self.bytes).ok()
    }
}

/// The one walker over record batches. See [`Chunk::records`](crate::Chunk::records).
#[derive(Clone, Debug)]
pub struct Records<'a> {
    /// The batches that were not entered yet.
    rest: &'a [u8],
    source: Option<&'a (Name, PartitionId)>,
    /// Checksums need not be looked at.
    verified: bool,
    from: u64,
    /// What is left of the batch that was entered.
    records: &'a [u8],
    left: u32,
    base_offset: u64,
    /// Where the next record may be at the earliest, and must be before.
    floor: u64,
    ceiling: u64,
    base_timestamp: i64,
    append_time: Option<i64>,
}

impl<'a> Records<'a> {
    pub(crate) fn new(
        bytes: &'a [u8],
        source: Option<&'a (Name, PartitionId)>,
        from: Offset,
        verified: bool,
    ) -> Self {
        Self {
            rest: bytes,
            source,
            verified,
            from: from.0,
            records: &[],
            left: 0,
            base_offset: 0,
            floor: 0,
            ceiling: 0,
            base_timestamp: 0,
            append_time: None,
        }
    }

    /// Enters the next batch, or passes over it if it holds nothing from `from` on.
    fn enter(&mut self) -> Result<(), Flaw> {
        let header = BatchHeader::parse(self.rest)?;
        let (batch, rest) = self.rest.split_at(header.len);
        let end = header.end().0;
        if header.base_offset.0 < self.ceiling {
            return Err("it begins before the batch in front of it ends".into());
        }
        if end > self.from {
            if !self.verified {
                header.verify(batch)?;
            }
            if !header.is_control() {
                self.records = &batch[HEADER_LEN..];
                self.left = header.records;
                self.base_offset = header.base_offset.0;
                self.floor = header.base_offset.0;
                self.base_timestamp = header.base_timestamp;
                self.append_time = header.log_append_time().then_some(header.max_timestamp);
            }
        }
        self.ceiling = end;
        self.rest = rest;
        Ok(())
    }

    #[inline]
    fn record(&mut self) -> Result<Record<'a>, Flaw> {
        let len = varint::take(&mut self.records).and_then(|len| usize::try_from(len).ok());
        let Some((mut body, rest)) = len.and_then(|len| self.records.split_at_checked(len)) else {
            return Err("a record in it is longer than the batch".into());
        };
        let (record, headers) = self.body(&mut body).ok_or("a record in it ends too early")?;
        if headers != 0 || !body.is_empty() {
            check_headers(body, headers)?;
        }
        if record.offset.0 < self.floor || record.offset.0 >= self.ceiling {
            return Err("its records are not in order".into());
        }
        self.records = rest;
        self.left -= 1;
        self.floor = record.offset.0 + 1;
        Ok(Record { headers: Headers { bytes: body }, ..record })
    }

    /// All of a record but its headers, which `body` keeps, and their number.
    #[inline(always)]
    fn body(&self, body: &mut &'a [u8]) -> Option<(Record<'a>, i64)> {
        // The record's own attributes, which have no meaning yet.
        *body = body.get(1..)?;
        let timestamp_delta = varint::take(body)?;
        let offset_delta = u64::try_from(varint::take(body)?).ok()?;
        let key = take_blob(body)?;
        let value = take_blob(body)?;
        let headers = varint::take(body)?;
        let record = Record {
            offset: Offset(self.base_offset.checked_add(offset_delta)?),
            timestamp_ms: self
                .append_time
                .unwrap_or(self.base_timestamp.wrapping_add(timestamp_delta)),
            key,
            value,
            headers: Headers::EMPTY,
        };
        Some((record, headers))
    }

    #[cold]
    fn fail(&mut self, flaw: Flaw) -> Error {
        let offset = if self.left > 0 || !self.records.is_empty() {
            Offset(self.base_offset)
        } else {
            BatchHeader::claimed_offset(self.rest)
        };
        (self.rest, self.records, self.left) = (&[], &[], 0);
        flaw.at(self.source, offset)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Error>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.left > 0 {
                match self.record() {
                    Ok(record) if record.offset.0 < self.from => {}
                    Ok(record) => return Some(Ok(record)),
                    Err(flaw) => return Some(Err(self.fail(flaw))),
                }
            } else if !self.records.is_empty() {
                return Some(Err(self.fail("bytes follow its last record".into())));
            } else if self.rest.is_empty() {
                return None;
            } else if let Err(flaw) = self.enter() {
                return Some(Err(self.fail(flaw)));
            }
        }
    }
}

/// A length and as many bytes; a negative length is an absent value.
#[inline(always)]
fn take_blob<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let len = varint::take(bytes)?;
    if len < 0 {
        return (len == -1).then_some(None);
    }
    let (blob, rest) = bytes.split_at_checked(usize::try_from(len).ok()?)?;
    *bytes = rest;
    Some(Some(blob))
}

const BAD_HEADERS: &str = "a record in it has unreadable headers";

/// There are `count` headers in `bytes`, all readable, and nothing else.
fn check_headers(mut bytes: &[u8], count: i64) -> Result<(), Flaw> {
    let mut left = count;
    while left > 0 {
        take_header(&mut bytes)?;
        left -= 1;
    }
    if left == 0 && bytes.is_empty() { Ok(()) } else { Err(BAD_HEADERS.into()) }
}

/// Stands for the name of a header that is not UTF-8: Kafka checks no names, and Headwater looks
/// for its own only.
const ILLEGIBLE: &str = "\u{fffd}";

fn take_header<'a>(bytes: &mut &'a [u8]) -> Result<(&'a str, Option<&'a [u8]>), Flaw> {
    let name = take_blob(bytes).flatten().ok_or(BAD_HEADERS)?;
    let name = std::str::from_utf8(name).unwrap_or(ILLEGIBLE);
    Ok((name, take_blob(bytes).ok_or(BAD_HEADERS)?))
}
