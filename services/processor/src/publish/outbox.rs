//! What a shard put into its outbox, published exactly once.
//!
//! A record lies in the outbox before it is published, and leaves it after. If the process ends between
//! the two, or the log does not say whether it took a batch, the publisher does not know what was
//! published. Then it claims the shard's writer anew, so that nothing can come from an older claim any more,
//! and reads the topic from where it knows all: what it finds there of its own was published. Its records
//! are published in the order of their sequence, so the last one it finds is all it has to know. A
//! power cut may take commits away, and with them the outbox: the same records lead to the same
//! sequence again, and are found. The same goes for the shard's next owner, which may begin from an older
//! checkpoint.
//!
//! Only the owner claims: the group confirms before every claim that the shard is still ours.

use std::{sync::Arc, time::Duration};

use headwater_control::OutputWindow;
use headwater_engine::DeadLetter;
use headwater_log::{BatchBuilder, Cleanup, Error, FencedWriter, Log, Record, TopicSpec};
use headwater_proto::headers;
use headwater_state::{Identity, OutboxKey, ShardDb};
use headwater_types::{Epoch, Name, Offset, Remedy, StreamDefinition};
use tokio::runtime::Handle;

use crate::{assignment::lease::Lease, error::ShardError, publish::writer_id::writer_id};

/// What is published at once.
const BATCH_BYTES: usize = 1 << 20;
/// Batches of a backlog that are published before the shard gets on with its records.
const BATCHES: usize = 8;
/// A log that takes longer is away: the shard gets on with its records.
const APPEND_DEADLINE: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 1 << 20;
/// Records that are in the log are handed out at once; it is waited only for what a log promised.
const READ_WAIT: Duration = Duration::from_millis(100);

/// What the shard may publish now.
#[derive(Clone, Debug)]
pub(crate) struct Permit {
    /// The parts of the partition whose outputs belong to this generation, in order.
    pub(crate) windows: Vec<OutputWindow>,
    /// Publish nothing from here on, for a swap is under way.
    pub(crate) muted_at: Option<Offset>,
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryAction {
    Publish,
    /// It belongs to another generation for ever: a later window of ours has begun.
    Delete,
    /// Whose it is will be known later.
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

/// Publishes the outbox of one shard to its stream's dead-letter topic, partition by partition alike.
pub(crate) struct Publisher {
    log: Arc<dyn Log>,
    runtime: Handle,
    lease: Arc<Lease>,
    identity: Identity,
    view: Name,
    stream: Name,
    topic: Name,
    partitions: u32,
    /// The right to publish, unless there is a doubt.
    writer: Option<Arc<dyn FencedWriter>>,
    /// Of the latest claim.
    epoch: Option<Epoch>,
    /// What was published already, once it was found out under this claim.
    known: Option<PublishedSoFar>,
    /// The topic is there, and as it has to be.
    topic_seen: bool,
    /// All before it has left the outbox.
    next: OutboxKey,
}

/// What is in the topic.
#[derive(Clone, Copy)]
struct PublishedSoFar {
    /// The last record of ours that is in the topic, if one was found.
    published: Option<OutboxKey>,
    /// All of ours before it in the topic is accounted for.
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
            known: None,
            topic_seen: false,
            next: OutboxKey::default(),
        }
    }

    /// The shard was claimed with this writer.
    pub(crate) fn claimed(&mut self, writer: Arc<dyn FencedWriter>) {
        self.epoch = Some(writer.epoch());
        (self.writer, self.known) = (Some(writer), None);
    }

    /// Of the latest claim.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// How many records wait; a long outbox is counted in part.
    pub(crate) fn waiting(&self, db: &ShardDb) -> Result<usize, ShardError> {
        Ok(db.outbox(self.next, BATCH_BYTES)?.len())
    }

    /// The position before which nothing waits.
    pub(crate) fn published(&self, db: &ShardDb) -> Result<Offset, ShardError> {
        let head = db.outbox(self.next, 1)?;
        Ok(head.first().map_or(db.progress().position, |(key, _)| key.position))
    }

    /// The position after the last record of ours that is in the topic. A power cut may have taken the
    /// shard back to before it; a swap's fence must not lie there, or the next owner of the outputs
    /// would publish these again.
    pub(crate) fn frontier(&mut self, db: &ShardDb) -> Result<Offset, ShardError> {
        let known = self.know(db)?;
        Ok(known.published.map_or(Offset::ZERO, |key| key.position.next()))
    }

    /// Publishes what may be published, a few batches at most, and returns how many records that were.
    /// After an error it may be called again: what happened to the records is then found out first.
    pub(crate) fn publish(&mut self, db: &ShardDb, permit: &Permit) -> Result<u64, ShardError> {
        let mut count = 0;
        for _ in 0..BATCHES {
            // One entry first: the backlog of a generation that owns nothing yet is not for reading.
            let head = db.outbox(self.next, 1)?;
            let Some((head, _)) = head.first() else { return Ok(count) };
            if permit.action_for(head.position) == EntryAction::Keep {
                return Ok(count);
            }
            let entries = db.outbox(self.next, BATCH_BYTES)?;
            let ready = entries
                .iter()
                .take_while(|(key, _)| permit.action_for(key.position) != EntryAction::Keep);
            let ready: Vec<_> = ready.collect();
            let Some((last, _)) = ready.last() else { return Ok(count) };
            let until = last.next();
            let ours = ready
                .iter()
                .filter(|(key, _)| permit.action_for(key.position) == EntryAction::Publish);
            let ours: Vec<_> = ours.collect();
            let mut cursor = None;
            if !ours.is_empty() {
                let published;
                (published, cursor) = self.append(db, &ours)?;
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

    /// Appends those that are not in the topic yet. Returns how many they were and the new cursor.
    ///
    /// There is none while the topic is ahead of the shard, which a power cut took back: what it has of
    /// ours must be found again until the shard has come to the same records.
    fn append(
        &mut self,
        db: &ShardDb,
        entries: &[&&(OutboxKey, Vec<u8>)],
    ) -> Result<(u64, Option<Offset>), ShardError> {
        let mut known = self.know(db)?;
        let mut batch = BatchBuilder::new();
        for (key, bytes) in entries.iter().map(|entry| (entry.0, &entry.1)) {
            if known.published.is_some_and(|published| key <= published) {
                continue;
            }
            let letter = DeadLetter::decode(bytes).map_err(|error| {
                ShardError::new(Remedy::Repair, format!("outbox entry {key:?}: {error}"))
            })?;
            self.push(&mut batch, key, &letter);
            known.published = Some(key);
        }
        let Some(batch) = batch.build() else {
            let last = entries.last().map(|entry| entry.0);
            let cursor = (known.published <= last).then_some(known.cursor);
            return Ok((0, cursor));
        };
        self.require_topic()?;
        self.lease.check()?;
        let count = u64::from(batch.records());
        // Taken out: unless they are put back, an error has left a doubt.
        self.known = None;
        let Some(writer) = self.writer.take() else {
            return Err(ShardError::new(Remedy::Retry, "the shard is not claimed"));
        };
        let append = writer.append(&self.topic, self.identity.partition, batch);
        let deadline = async { tokio::time::timeout(APPEND_DEADLINE, append).await };
        let appended = self.runtime.block_on(deadline).map_err(|_| {
            let reason = format!("{} takes no records for now", self.topic);
            ShardError { away: true, ..ShardError::new(Remedy::Retry, reason) }
        })??;
        known.cursor = appended.end();
        (self.writer, self.known) = (Some(writer), Some(known));
        Ok((count, Some(known.cursor)))
    }

    /// Nobody has to make the topic of dead letters before there is one.
    fn require_topic(&mut self) -> Result<(), ShardError> {
        if self.topic_seen {
            return Ok(());
        }
        let requested = TopicSpec::keep(self.partitions);
        let topic = self.topic.clone();
        match self.log.topic(&topic)? {
            None => self.log.create_topic(&topic, requested)?,
            Some(existing) => {
                // Whoever made it may let old letters go. One letter must not replace another.
                let lossy = existing.cleanup == Cleanup::Compact;
                if lossy || existing.partitions < self.partitions {
                    return Err(Error::TopicDiffers { topic, existing, requested }.into());
                }
            }
        }
        self.topic_seen = true;
        Ok(())
    }

    fn push(&self, batch: &mut BatchBuilder, key: OutboxKey, letter: &DeadLetter<'_>) {
        let generation = self.identity.generation.to_string();
        let partition = letter.partition.to_string();
        let sequence = format!("{}.{}", key.position, key.index);
        let offset = letter.offset.to_string();
        batch.push(
            letter.timestamp_ms,
            letter.key,
            letter.value,
            &[
                (headers::GENERATION, generation.as_bytes()),
                (headers::PARTITION, partition.as_bytes()),
                (headers::SEQUENCE, sequence.as_bytes()),
                (headers::VIEW, self.view.as_str().as_bytes()),
                (headers::STREAM, self.stream.as_str().as_bytes()),
                (headers::TOPIC, letter.topic.as_bytes()),
                (headers::OFFSET, offset.as_bytes()),
                (headers::STAGE, letter.stage.as_str().as_bytes()),
                (headers::REASON, letter.reason.as_bytes()),
            ],
        );
    }

    /// What is in the topic of ours, all that older claims have published included.
    fn know(&mut self, db: &ShardDb) -> Result<PublishedSoFar, ShardError> {
        if self.writer.is_none() {
            self.lease.confirm()?;
            self.claimed(self.log.writer(&writer_id(self.identity))?);
        }
        let known = match self.known {
            Some(known) => known,
            None => self.find_out(db)?,
        };
        self.known = Some(known);
        Ok(known)
    }

    /// Reads what older claims have published. Nothing can come from them any more.
    fn find_out(&self, db: &ShardDb) -> Result<PublishedSoFar, ShardError> {
        let partition = self.identity.partition;
        if self.log.topic(&self.topic)?.is_none() {
            return Ok(PublishedSoFar { published: None, cursor: Offset::ZERO });
        }
        let ends = self.log.ends(&self.topic, partition)?;
        let cursor = db.outbox_cursor()?.and_then(|bytes| self.decode_cursor(&bytes));
        // A topic that was trimmed beyond the cursor, or made anew, holds nothing to be found there.
        let mut cursor =
            cursor.filter(|cursor| *cursor <= ends.end).unwrap_or_default().max(ends.start);
        let mut published = None;
        let mut reader = self.log.reader(&self.topic, partition, cursor)?;
        while cursor < ends.end {
            let Some(chunk) = reader.read(READ_BYTES, READ_WAIT)? else {
                // Some offsets hold no record.
                if reader.position() > cursor {
                    cursor = reader.position();
                    continue;
                }
                let reason =
                    format!("{} ends at {}, and cannot be read at {cursor}", self.topic, ends.end);
                return Err(ShardError::new(Remedy::Retry, reason));
            };
            for record in chunk.records(cursor) {
                published = published.max(self.sequence(&record?));
            }
            cursor = chunk.end();
        }
        Ok(PublishedSoFar { published, cursor })
    }

    /// The sequence of a record that this shard published.
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

    /// `topic@partition:offset`, after a version.
    fn encode_cursor(&self, cursor: Offset) -> Vec<u8> {
        format!("1 {}@{}:{cursor}", self.topic, self.identity.partition).into_bytes()
    }

    /// `None` for a cursor in another topic: nothing is known about this one.
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
