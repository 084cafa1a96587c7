//! What the laws work with: a log, a fresh topic in it, and records that can be told apart.

use std::{sync::Arc, time::Duration};

use headwater_types::{Name, Offset, PartitionId};

use super::{Seen, Subject, batch, fresh};
use crate::{Error, Log, TopicSpec, block_on};

/// What a law puts into a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) timestamp_ms: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

impl Default for Content {
    fn default() -> Self {
        // Not zero: Kafka's client library takes that for "now".
        Self { timestamp_ms: 1, key: None, value: None, headers: Vec::new() }
    }
}

pub(super) fn keyed(key: &str, value: &str) -> Content {
    Content { key: Some(key.into()), value: Some(value.into()), ..Content::default() }
}

/// Records "label 0", "label 1", …
pub(super) fn numbered(label: &str, count: usize) -> Vec<Content> {
    (0..count).map(|n| keyed(&format!("{n}"), &format!("{label} {n}"))).collect()
}

/// A log and a fresh topic in it.
pub(super) struct Bench<'a> {
    subject: &'a dyn Subject,
    pub(super) log: Arc<dyn Log>,
    pub(super) topic: Name,
}

impl<'a> Bench<'a> {
    pub(super) fn new(subject: &'a dyn Subject, label: &str, spec: TopicSpec) -> Self {
        let bench = Self { subject, log: subject.open(), topic: fresh(label) };
        block_on(bench.log.create_topic(&bench.topic, spec)).expect("a fresh topic can be created");
        bench
    }

    /// Closes the log and opens it again.
    pub(super) fn reopen(self) -> Self {
        let Self { subject, log, topic } = self;
        drop(log);
        Self { subject, log: subject.open(), topic }
    }

    pub(super) fn append(&self, partition: u32, contents: &[Content]) -> u64 {
        self.try_append(partition, contents).expect("an append succeeds")
    }

    /// Appends them in batches of up to `batch` records.
    pub(super) fn append_in(&self, batch: usize, partition: u32, contents: &[Content]) {
        for part in contents.chunks(batch) {
            self.append(partition, part);
        }
    }

    pub(super) fn try_append(&self, partition: u32, contents: &[Content]) -> Result<u64, Error> {
        let appended = self.log.append(&self.topic, PartitionId(partition), batch(contents));
        block_on(appended).map(|appended| appended.first().0)
    }

    pub(super) fn ends(&self, partition: u32) -> (u64, u64) {
        let ends = block_on(self.log.ends(&self.topic, PartitionId(partition)))
            .expect("the partition has ends");
        (ends.start.0, ends.end.0)
    }

    /// Everything from `from` to the end, in pieces of about `max_bytes`.
    pub(super) fn read(&self, partition: u32, from: u64, max_bytes: usize) -> Vec<Seen> {
        let partition = PartitionId(partition);
        let end =
            block_on(self.log.ends(&self.topic, partition)).expect("the partition has ends").end;
        let mut reader = block_on(self.log.reader(&self.topic, partition, Offset(from)))
            .expect("the range is readable");
        assert_eq!(reader.position(), Offset(from), "a reader begins where it was told to");
        let mut seen = Vec::new();
        while reader.position() < end {
            let position = reader.position();
            let chunk = reader.read(max_bytes, Duration::ZERO).expect("the range is readable");
            let Some(chunk) = chunk else {
                assert!(reader.position() > position, "there is something before the end");
                continue;
            };
            assert_eq!(reader.position(), chunk.end(), "a reader moves behind what it returned");
            assert!(chunk.end() > position, "a reader gets on");
            for record in chunk.records(position) {
                let record = record.expect("stored records are intact");
                assert!(
                    record.offset >= position && record.offset < chunk.end(),
                    "records lie within their chunk"
                );
                let headers = record.headers.iter();
                seen.push(Seen {
                    offset: record.offset.0,
                    content: Content {
                        timestamp_ms: record.timestamp_ms,
                        key: record.key.map(Into::into),
                        value: record.value.map(Into::into),
                        headers: headers
                            .map(|(name, value)| (name.into(), value.unwrap_or(b"absent").into()))
                            .collect(),
                    },
                });
            }
        }
        let last = reader.read(max_bytes, Duration::ZERO).expect("the end can be asked for");
        assert!(last.is_none_or(|chunk| chunk.end() > end), "there is nothing to read at the end");
        seen
    }

    /// All of it, as offset and content.
    #[track_caller]
    pub(super) fn expect(&self, partition: u32, from: u64, contents: &[Content]) {
        for max_bytes in [1, 300, 1 << 20] {
            let seen = self.read(partition, from, max_bytes);
            let offsets: Vec<_> = seen.iter().map(|seen| seen.offset).collect();
            let expected: Vec<_> = (from..from + contents.len() as u64).collect();
            assert_eq!(
                offsets, expected,
                "offsets of partition {partition}, {max_bytes} bytes at a time"
            );
            for (seen, content) in seen.iter().zip(contents) {
                assert_eq!(&seen.content, content, "the record at {}", seen.offset);
            }
        }
    }
}
