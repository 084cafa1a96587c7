//! Publishes the outbox of a shard, each record exactly once.
//!
//! A record lies in the outbox before it is published, and leaves the outbox after that. If the
//! process ends in between, or the log does not say whether it took a batch, the publisher does not
//! know what was published. Then it claims the shard's writer anew, so that nothing can come from
//! an older claim any more, and reads the topic back from the last position that it is sure of:
//! what it finds there of its own was published. A shard publishes its records in the order of
//! their sequence, so the last one that is found is enough. A power cut may take commits away, and
//! the outbox with them: then the same records lead to the same sequence again, and are found. The
//! same holds for the shard's next owner, which may begin from an older checkpoint.
//!
//! Only the owner claims: the group confirms the lease before every claim.

use std::{sync::Arc, time::Duration};

use headwater_control::OutputWindow;
use headwater_engine::DeadLetter;
use headwater_log::{
    BatchBuilder, Cleanup, DEFAULT_MAX_BATCH_BYTES, Error, FencedWriter, Log, Record, RecordLimit,
    TopicSpec, block_on,
};
use headwater_proto::headers;
use headwater_state::{Identity, OutboxKey, ShardDb};
use headwater_types::{Epoch, Name, Offset, Remedy, StreamDefinition};
use tokio::runtime::Handle;

use crate::{
    assignment::lease::Lease,
    blocking::{read_until, wait_within},
    error::ShardError,
    publish::writer_id::writer_id,
};

/// The most that one batch takes from the outbox.
const BATCH_BYTES: usize = 1 << 20;
/// The most that one batch gives to the log. Headers make small letters many times as large.
const APPEND_BYTES: usize = DEFAULT_MAX_BATCH_BYTES / 2;
/// Batches of a backlog that are published before the shard reads on.
const MAX_BATCHES: usize = 8;
/// A log that takes longer is away: the shard goes on with its records.
const APPEND_DEADLINE: Duration = Duration::from_secs(5);
/// The headers of a dead letter that are not Kafka Connect's. They come first.
const OWN_HEADERS: usize = 9;

/// The outputs that the shard may publish now.
#[derive(Clone, Debug)]
pub(crate) struct Permit {
    /// The parts of the partition whose outputs belong to this generation, in order.
    pub(crate) windows: Vec<OutputWindow>,
    /// Publish nothing from here on: a swap is under way.
    pub(crate) muted_at: Option<Offset>,
}

/// How an entry of the outbox is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryAction {
    Publish,
    /// Another generation owns it for ever: a later window of this one has begun.
    Delete,
    /// Its owner is not known yet.
    Keep,
}

impl Permit {
    fn action_for(&self, position: Offset) -> EntryAction {
        let owned = |window: &&OutputWindow| {
            window.from <= position && window.until.is_none_or(|until| position < until)
        };
        if self.windows.iter().find(owned).is_some() {
            let muted = self.muted_at.is_some_and(|muted_at| position >= muted_at);
            return if muted { EntryAction::Keep } else { EntryAction::Publish };
        }
        match self.windows.iter().any(|window| window.from > position) {
            true => EntryAction::Delete,
            false => EntryAction::Keep,
        }
    }
}

/// Publishes the outbox of one shard to the same partition of its stream's dead-letter topic.
pub(crate) struct Publisher {
    log: Arc<dyn Log>,
    runtime: Handle,
    lease: Arc<Lease>,
    identity: Identity,
    view: Name,
    stream: Name,
    topic: Name,
    partitions: u32,
    /// The claim that this publisher writes under; `None` while it is in doubt.
    writer: Option<Arc<dyn FencedWriter>>,
    /// The epoch of the latest claim.
    epoch: Option<Epoch>,
    /// `None` until the topic was read back under this claim.
    published: Option<PublishedSoFar>,
    /// The topic exists and can hold dead letters.
    topic_checked: bool,
    /// Everything before it has left the outbox.
    next: OutboxKey,
}

/// The records of this shard that the topic has.
#[derive(Clone, Copy)]
struct PublishedSoFar {
    /// The last record of this shard that was found in the topic.
    last: Option<OutboxKey>,
    /// All records of this shard before it in the topic are accounted for.
    cursor: Offset,
}

impl Publisher {
    pub(crate) fn new(
        log: Arc<dyn Log>,
        runtime: Handle,
        lease: Arc<Lease>,
        view: Name,
        stream: &StreamDefinition,
    ) -> Self {
        Self {
            log,
            runtime,
            identity: lease.identity(),
            lease,
            view,
            stream: stream.name.clone(),
            topic: stream.dead_letter_topic(),
            partitions: stream.partitions,
            writer: None,
            epoch: None,
            published: None,
            topic_checked: false,
            next: OutboxKey::default(),
        }
    }

    /// The shard was claimed with this writer.
    pub(crate) fn set_writer(&mut self, writer: Arc<dyn FencedWriter>) {
        self.epoch = Some(writer.epoch());
        (self.writer, self.published) = (Some(writer), None);
    }

    /// The epoch of the latest claim.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// How many records wait to be published; a long outbox is counted in part.
    pub(crate) fn waiting(&self, db: &ShardDb) -> Result<usize, ShardError> {
        Ok(db.outbox(self.next, BATCH_BYTES)?.len())
    }

    /// The position before which no record waits.
    pub(crate) fn published(&self, db: &ShardDb) -> Result<Offset, ShardError> {
        let head = db.outbox(self.next, 1)?;
        Ok(head.first().map_or(db.progress().position, |(key, _)| key.position))
    }

    /// The position after the last record of this shard that is in the topic. A power cut may have
    /// taken the shard back to before it. A swap's fence must not lie there, or the next owner of
    /// the outputs would publish these records again.
    pub(crate) fn frontier(&mut self, db: &ShardDb) -> Result<Offset, ShardError> {
        let last = self.published_so_far(db)?.last;
        Ok(last.map_or(Offset::ZERO, |key| key.position.next()))
    }

    /// Publishes what the permit allows, a few batches at most, and returns how many records that
    /// were. It may be called again after an error, and then reads the topic back first.
    pub(crate) fn publish(&mut self, db: &ShardDb, permit: &Permit) -> Result<u64, ShardError> {
        let mut count = 0;
        for _ in 0..MAX_BATCHES {
            // One entry first: a generation that owns nothing yet need not read its whole backlog.
            let head = db.outbox(self.next, 1)?;
            let Some((head, _)) = head.first() else { return Ok(count) };
            if permit.action_for(head.position) == EntryAction::Keep {
                return Ok(count);
            }
            let entries = db.outbox(self.next, BATCH_BYTES)?;
            let mut bytes = 0;
            let ready = entries.iter().take_while(|(key, entry)| {
                let first = bytes == 0;
                bytes += self.published_bytes(entry);
                (first || bytes <= APPEND_BYTES)
                    && permit.action_for(key.position) != EntryAction::Keep
            });
            let ready: Vec<_> = ready.collect();
            let Some((last, _)) = ready.last() else { return Ok(count) };
            let until = last.next();
            let own = ready
                .iter()
                .filter(|(key, _)| permit.action_for(key.position) == EntryAction::Publish);
            let own: Vec<_> = own.collect();
            let mut cursor = None;
            if !own.is_empty() {
                let published;
                (published, cursor) = self.append(db, &own)?;
                count += published;
            }
            let cursor = match cursor {
                Some(cursor) => self.encode_cursor(cursor),
                None => db.outbox_cursor()?.unwrap_or_default(),
            };
            db.outbox_published(until, &cursor)?;
            self.next = until;
        }
        Ok(count)
    }

    /// Appends the entries that are not in the topic yet. Returns how many they were and the new
    /// cursor.
    ///
    /// There is no new cursor while the topic is ahead of the shard, which a power cut took back:
    /// the records must be found again until the shard has come to them.
    fn append(
        &mut self,
        db: &ShardDb,
        entries: &[&&(OutboxKey, Vec<u8>)],
    ) -> Result<(u64, Option<Offset>), ShardError> {
        let mut so_far = self.published_so_far(db)?;
        let is_new = |key: OutboxKey| so_far.last.is_none_or(|last| key > last);
        let new: Vec<_> = entries.iter().filter(|entry| is_new(entry.0)).collect();
        if !new.is_empty() {
            // The log knows the limit of a topic that was looked at.
            self.ensure_topic()?;
        }
        let limit = self.log.record_limit(&self.topic);
        let mut batch = BatchBuilder::new();
        for (key, bytes) in new.into_iter().map(|entry| (entry.0, &entry.1)) {
            let letter = DeadLetter::decode(bytes).map_err(|error| {
                ShardError::new(Remedy::Repair, format!("outbox entry {key:?}: {error}"))
            })?;
            self.push(&mut batch, key, &letter, limit);
            so_far.last = Some(key);
        }
        let Some(batch) = batch.build() else {
            let last = entries.last().map(|entry| entry.0);
            let cursor = (so_far.last <= last).then_some(so_far.cursor);
            return Ok((0, cursor));
        };
        self.lease.check()?;
        let count = u64::from(batch.records());
        // Both are put back after a success only: an error leaves a doubt.
        self.published = None;
        let Some(writer) = self.writer.take() else {
            return Err(ShardError::new(Remedy::Retry, "the shard is not claimed"));
        };
        let append = writer.append(&self.topic, self.identity.partition, batch);
        let late = || format!("{} takes no records for now", self.topic);
        let appended = wait_within(&self.runtime, APPEND_DEADLINE, append, late)?;
        so_far.cursor = appended.end();
        (self.writer, self.published) = (Some(writer), Some(so_far));
        Ok((count, Some(so_far.cursor)))
    }

    /// Creates the topic of dead letters before the first one, unless it exists.
    fn ensure_topic(&mut self) -> Result<(), ShardError> {
        if self.topic_checked {
            return Ok(());
        }
        let requested = TopicSpec::keep(self.partitions);
        let topic = self.topic.clone();
        match block_on(self.log.topic(&topic))? {
            None => block_on(self.log.create_topic(&topic, requested))?,
            Some(existing) => {
                // It may delete old letters. A compacted topic would replace letters by others.
                let lossy = existing.cleanup == Cleanup::Compact;
                if lossy || existing.partitions < self.partitions {
                    return Err(Error::TopicDiffers { topic, existing, requested }.into());
                }
            }
        }
        self.topic_checked = true;
        Ok(())
    }

    /// The most that an entry of the outbox takes in a batch.
    fn published_bytes(&self, entry: &[u8]) -> usize {
        const NAMES_AND_NUMBERS: usize = 1024;
        // The topic and the reason are part of the entry, and are written twice.
        2 * (entry.len() + self.view.as_str().len())
            + self.stream.as_str().len()
            + NAMES_AND_NUMBERS
    }

    /// Adds a dead letter. Its headers follow from the record and the definition alone. Connect's
    /// are left out of a record that would be over the topic's limit with them.
    fn push(
        &self,
        batch: &mut BatchBuilder,
        key: OutboxKey,
        letter: &DeadLetter<'_>,
        limit: Option<RecordLimit>,
    ) {
        let generation = self.identity.generation.to_string();
        let partition = letter.partition.to_string();
        let sequence = format!("{}.{}", key.position, key.index);
        let offset = letter.offset.to_string();
        let connect = letter.stage.connect();
        let headers: [(&str, &[u8]); 18] = [
            (headers::GENERATION, generation.as_bytes()),
            (headers::PARTITION, partition.as_bytes()),
            (headers::SEQUENCE, sequence.as_bytes()),
            (headers::VIEW, self.view.as_str().as_bytes()),
            (headers::STREAM, self.stream.as_str().as_bytes()),
            (headers::TOPIC, letter.topic.as_bytes()),
            (headers::OFFSET, offset.as_bytes()),
            (headers::STAGE, letter.stage.as_str().as_bytes()),
            (headers::REASON, letter.reason.as_bytes()),
            (headers::connect::TOPIC, letter.topic.as_bytes()),
            (headers::connect::PARTITION, partition.as_bytes()),
            (headers::connect::OFFSET, offset.as_bytes()),
            (headers::connect::CONNECTOR_NAME, self.view.as_str().as_bytes()),
            (headers::connect::TASK_ID, partition.as_bytes()),
            (headers::connect::STAGE, connect.stage.as_bytes()),
            (headers::connect::CLASS_NAME, connect.class.as_bytes()),
            (headers::connect::EXCEPTION_CLASS_NAME, connect.exception.as_bytes()),
            (headers::connect::EXCEPTION_MESSAGE, letter.reason.as_bytes()),
        ];
        let fits = |limit: RecordLimit| limit.takes(letter.key, letter.value, &headers);
        let headers = match limit.is_none_or(fits) {
            true => &headers[..],
            false => &headers[..OWN_HEADERS],
        };
        batch.push(letter.timestamp_ms, letter.key, letter.value, headers);
    }

    /// Finds the records of this shard in the topic, of all its owners.
    fn published_so_far(&mut self, db: &ShardDb) -> Result<PublishedSoFar, ShardError> {
        if self.writer.is_none() {
            self.lease.confirm()?;
            self.set_writer(block_on(self.log.writer(&writer_id(self.identity)))?);
        }
        let so_far = match self.published {
            Some(so_far) => so_far,
            None => self.read_back(db)?,
        };
        self.published = Some(so_far);
        Ok(so_far)
    }

    /// Reads what was published under older claims. They are fenced, so nothing is added any more.
    fn read_back(&self, db: &ShardDb) -> Result<PublishedSoFar, ShardError> {
        let partition = self.identity.partition;
        if block_on(self.log.topic(&self.topic))?.is_none() {
            return Ok(PublishedSoFar { last: None, cursor: Offset::ZERO });
        }
        let ends = block_on(self.log.ends(&self.topic, partition))?;
        let cursor = db.outbox_cursor()?.and_then(|bytes| self.decode_cursor(&bytes));
        // A topic that was trimmed beyond the cursor, or created anew, has nothing before `from`.
        let from = cursor.filter(|cursor| *cursor <= ends.end).unwrap_or_default().max(ends.start);
        let mut last = None;
        let cursor = read_until(&*self.log, &self.topic, partition, from, ends.end, |record| {
            last = last.max(self.sequence(record));
        })?;
        if cursor < ends.end {
            let reason =
                format!("{} ends at {}, and cannot be read at {cursor}", self.topic, ends.end);
            return Err(ShardError::new(Remedy::Retry, reason));
        }
        Ok(PublishedSoFar { last, cursor })
    }

    /// The sequence of the record, if this shard published it.
    fn sequence(&self, record: &Record<'_>) -> Option<OutboxKey> {
        let text =
            |name| record.headers.get(name).and_then(|bytes| std::str::from_utf8(bytes).ok());
        if text(headers::GENERATION)?.parse() != Ok(self.identity.generation)
            || text(headers::PARTITION)?.parse() != Ok(self.identity.partition.0)
        {
            return None;
        }
        let (position, index) = text(headers::SEQUENCE)?.split_once('.')?;
        Some(OutboxKey { position: Offset(position.parse().ok()?), index: index.parse().ok()? })
    }

    /// Version 1: `1 topic@partition:offset`.
    fn encode_cursor(&self, cursor: Offset) -> Vec<u8> {
        format!("1 {}@{}:{cursor}", self.topic, self.identity.partition).into_bytes()
    }

    /// `None` for a cursor in another topic or partition.
    fn decode_cursor(&self, bytes: &[u8]) -> Option<Offset> {
        let place = std::str::from_utf8(bytes).ok()?.strip_prefix("1 ")?;
        let (topic, place) = place.rsplit_once('@')?;
        let (partition, offset) = place.split_once(':')?;
        let here =
            topic == self.topic.as_str() && partition.parse() == Ok(self.identity.partition.0);
        here.then(|| offset.parse().ok().map(Offset)).flatten()
    }
}

#[cfg(test)]
mod tests;
