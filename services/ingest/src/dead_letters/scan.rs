//! Reads the dead letters of a stream, oldest first.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::try_join_all;
use headwater_engine::Stage;
use headwater_log::{Error as LogError, Log, Reader, Record};
use headwater_proto::{
    headers,
    ingest::v1::{DeadLetter, ListDeadLettersRequest},
};
use headwater_types::{Name, Offset, PartitionId};
use tonic::Status;

const READ_BYTES: usize = 256 << 10;
const READ_WAIT: Duration = Duration::from_millis(100);

/// How long to wait for records that the log has and that have not arrived.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Which dead letters a request asks for.
pub(super) struct Selection {
    stage: Option<Stage>,
    view: Option<String>,
    partition: Option<u32>,
    offset: Option<u64>,
    limit: u64,
}

impl TryFrom<ListDeadLettersRequest> for Selection {
    type Error = Status;
    fn try_from(request: ListDeadLettersRequest) -> Result<Self, Status> {
        let ListDeadLettersRequest { stream: _, stage, view, limit, partition, offset } = request;
        let stage = (!stage.is_empty()).then(|| stage.parse()).transpose();
        let stage = stage.map_err(|error| Status::invalid_argument(format!("stage: {error}")))?;
        let view = (!view.is_empty()).then_some(view);
        Ok(Self {
            stage,
            view,
            partition,
            offset,
            limit: if limit == 0 { u64::MAX } else { limit },
        })
    }
}

impl Selection {
    fn has(&self, letter: &DeadLetter) -> bool {
        self.stage.is_none_or(|stage| stage.as_str() == letter.stage)
            && self.view.as_ref().is_none_or(|view| *view == letter.view)
            && self.partition.is_none_or(|partition| partition == letter.partition)
            && self.offset.is_none_or(|offset| offset == letter.offset)
    }
}

/// The selected dead letters from the start of the topic to where it ended when the scan was
/// opened.
pub(super) struct Scan {
    selection: Selection,
    partitions: Vec<PartitionScan>,
    /// How many letters may still be handed out.
    left: u64,
}

impl Scan {
    /// Without the topic there is no dead letter yet.
    pub(super) async fn open(
        log: &dyn Log,
        topic: &Name,
        selection: Selection,
    ) -> Result<Self, LogError> {
        let partitions = log.topic(topic).await?.map_or(0, |spec| spec.partitions);
        let partitions = (0..partitions).map(|p| PartitionScan::open(log, topic, PartitionId(p)));
        let partitions = try_join_all(partitions).await?;
        Ok(Self { left: selection.limit, selection, partitions })
    }

    /// The next letter; `None` after the last one, and when `stopped` says so. It blocks.
    pub(super) fn next(
        &mut self,
        stopped: &impl Fn() -> bool,
    ) -> Result<Option<DeadLetter>, LogError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        for partition in &mut self.partitions {
            partition.fill(&self.selection, stopped)?;
        }
        let oldest = self
            .partitions
            .iter_mut()
            .filter(|partition| !partition.letters.is_empty())
            .min_by_key(|partition| partition.letters.front().map(|letter| letter.timestamp_ms));
        match oldest {
            Some(partition) if !stopped() => Ok(partition.letters.pop_front()),
            Some(_) | None => Ok(None),
        }
    }
}

/// One partition of the dead-letter topic.
struct PartitionScan {
    name: String,
    reader: Box<dyn Reader>,
    end: Offset,
    letters: VecDeque<DeadLetter>,
}

impl PartitionScan {
    async fn open(log: &dyn Log, topic: &Name, partition: PartitionId) -> Result<Self, LogError> {
        let ends = log.ends(topic, partition).await?;
        let reader = log.reader(topic, partition, ends.start).await?;
        let name = format!("{topic}[{partition}]");
        Ok(Self { name, reader, end: ends.end, letters: VecDeque::new() })
    }

    /// Reads until there is a selected letter or nothing is left.
    fn fill(&mut self, selection: &Selection, stopped: &impl Fn() -> bool) -> Result<(), LogError> {
        let mut moved = Instant::now();
        while self.letters.is_empty() && self.reader.position() < self.end && !stopped() {
            let from = self.reader.position();
            let chunk = self.reader.read(READ_BYTES, READ_WAIT)?;
            if self.reader.position() > from {
                moved = Instant::now();
            } else if moved.elapsed() >= ARRIVAL_TIMEOUT {
                let what = format!("nothing of {} arrived for {ARRIVAL_TIMEOUT:?}", self.name);
                return Err(LogError::Unavailable(what.into()));
            }
            let Some(chunk) = chunk else { continue };
            for record in chunk.records(from) {
                let record = record?;
                if record.offset >= self.end {
                    break;
                }
                match letter(&record) {
                    Some(letter) if selection.has(&letter) => self.letters.push_back(letter),
                    Some(_) => {}
                    None => {
                        tracing::warn!(offset = %record.offset, "a record in a dead-letter topic is not a dead letter")
                    }
                }
            }
        }
        Ok(())
    }
}

/// The dead letter in a record; `None` if another program wrote the record.
fn letter(record: &Record<'_>) -> Option<DeadLetter> {
    let text = |name: &str| {
        let value = record.headers.iter().find(|(header, _)| *header == name)?.1?;
        std::str::from_utf8(value).ok().map(str::to_owned)
    };
    Some(DeadLetter {
        stream: text(headers::STREAM)?,
        topic: text(headers::TOPIC)?,
        partition: text(headers::PARTITION)?.parse().ok()?,
        offset: text(headers::OFFSET)?.parse().ok()?,
        stage: text(headers::STAGE)?,
        reason: text(headers::REASON)?,
        view: text(headers::VIEW)?,
        generation: text(headers::GENERATION)?,
        key: record.key.map(Bytes::copy_from_slice),
        value: Bytes::copy_from_slice(record.value.unwrap_or_default()),
        timestamp_ms: record.timestamp_ms,
    })
}
