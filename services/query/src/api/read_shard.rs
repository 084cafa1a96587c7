//! What other instances ask of this one: rows of shards that are on its disk and not on theirs.
//!
//! It never asks a third: what is not here is refused, and the asker looks again where it is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::Stream;
use headwater_proto::query::v1::{
    NextRows, OpenShard, ReadShardRequest, ReadShardResponse, RowChunk, ScanRange, ShardOpened,
    read_shard_request::Step, read_shard_response::Answer,
};
use headwater_state::{KeyRange, RowScan, ShardReader};
use headwater_types::{GenerationId, Offset, PartitionId};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    Service,
    error::Error,
    peers::row_codec,
    snapshot::generation_cache::is_readable,
    snapshot::shard_snapshot::{FreshnessGoal, ShardSnapshot, SnapshotReader},
    snapshot::shard_source::ShardSource,
};

/// About how much one message has at most. An asker keeps two of them for each scan and shard.
const CHUNK_BYTES: usize = 256 << 10;
/// How many scans one request may open: more than any query has of one view.
const MOST_SCANS: usize = 256;

type Parts = mpsc::Sender<Result<ReadShardResponse, Error>>;

impl Service {
    pub(crate) async fn read_shard(
        self: &Arc<Self>,
        mut requests: Streaming<ReadShardRequest>,
    ) -> Result<impl Stream<Item = Result<ReadShardResponse, Error>> + Send + use<>, Error> {
        let began = Instant::now();
        let first = tokio::time::timeout(self.config.default_timeout, requests.message()).await;
        let Ok(Ok(Some(ReadShardRequest { step: Some(Step::Open(open)) }))) = first else {
            return Err(Error::ReadShard("it does not begin with open".into()));
        };
        if open.scans.len() > MOST_SCANS {
            return Err(Error::ReadShard(format!("it opens more than {MOST_SCANS} scans")));
        }
        let timeout = Duration::from_millis(open.timeout_ms).min(self.config.max_timeout);
        let deadline = began + timeout;
        let shard = self.own_shard(&open, deadline).await?;
        let age = Duration::from_micros(open.max_age_micros);
        let wanted = FreshnessGoal {
            since: began.checked_sub(age).unwrap_or(began),
            position: Offset(open.position),
            reason: "another instance asks for",
            deadline,
        };
        let until = began + Duration::from_millis(open.duration_ms).min(self.config.max_duration);

        let (sender, parts) = mpsc::channel(1 + open.scans.len());
        let (opened, held) = match shard.hold_here(wanted, open.epoch).await {
            Ok(held) => (self.opened(shard.generation(), &open, &held)?, Some(held)),
            // Not an error: the asker says it in its own words.
            Err(Error::NotReached { present, .. }) => (self.behind(present), None),
            Err(error) => return Err(error),
        };
        let opened = ReadShardResponse { answer: Some(Answer::Opened(opened)) };
        let _ = sender.try_send(Ok(opened));
        if !open.scans.is_empty()
            && let Some(held) = held
            && let SnapshotReader::Disk(reader) = held.rest()
        {
            let permit = self.forwarded.permit_now()?;
            self.metrics.staleness(std::slice::from_ref(&held));
            let (is_open, opened) = oneshot::channel();
            let reading = Reading {
                generation: shard.generation(),
                partition: shard.partition(),
                scans: open.scans,
                requests,
                parts: sender,
                handle: Handle::current(),
                until,
            };
            tokio::task::spawn_blocking(move || reading.run(&reader, is_open, permit));
            opened.await.map_err(|_| Error::Panicked)?;
            // From here on the shard may go on: the scans are of the commit that was held.
            drop(held);
        }
        Ok(ReceiverStream::new(parts))
    }

    /// The shard, if it is one of our directory.
    async fn own_shard(
        &self,
        open: &OpenShard,
        deadline: Instant,
    ) -> Result<Arc<ShardSource>, Error> {
        let ours = self.locator.directory();
        if *open.directory != *ours {
            let asked = open.directory.clone();
            return Err(Error::OtherDirectory { asked, ours: ours.to_string() });
        }
        let unknown =
            |reason: &str| Error::ReadShard(format!("generation {:?}: {reason}", open.generation));
        let id: GenerationId = open.generation.parse().map_err(|_| unknown("it is no id"))?;
        let mut state = self.control.current();
        if !state.generations().contains_key(&id) {
            // The asker may be further.
            state = self.control(&self.wish_until(deadline)).await?;
        }
        let entry = state.generations().get(&id).ok_or_else(|| unknown("there is none"))?;
        if !is_readable(entry.role) {
            return Err(Error::GenerationGone {
                view: entry.view.to_string(),
                generation: id,
                role: entry.role.as_str(),
            });
        }
        let generation = self.cache.generation(entry).await?;
        let shard = generation.shards.get(open.partition as usize).cloned();
        shard.ok_or_else(|| unknown("it has fewer partitions"))
    }

    fn opened(
        &self,
        generation: GenerationId,
        open: &OpenShard,
        held: &ShardSnapshot,
    ) -> Result<ShardOpened, Error> {
        let mut row = Vec::new();
        if let Some(key) = &open.key
            && let Some((header, payload)) = held.row(generation, key)?
        {
            row_codec::push(key, &header, &payload, &mut row);
        }
        Ok(ShardOpened {
            instance: self.instance.to_string(),
            position: held.position.0,
            watermark_micros: held.watermark.known().map(|watermark| watermark.0),
            row: row.into(),
        })
    }

    fn behind(&self, present: Offset) -> ShardOpened {
        let instance = self.instance.to_string();
        ShardOpened { instance, position: present.0, ..ShardOpened::default() }
    }
}

/// The scans of one request, read by a thread of their own.
struct Reading {
    generation: GenerationId,
    partition: PartitionId,
    scans: Vec<ScanRange>,
    requests: Streaming<ReadShardRequest>,
    parts: Parts,
    handle: Handle,
    until: Instant,
}

struct OpenScan<'a> {
    rows: RowScan<'a>,
    changed_since: Option<u64>,
}

impl Reading {
    fn run(
        mut self,
        reader: &ShardReader,
        opened: oneshot::Sender<()>,
        _permit: OwnedSemaphorePermit,
    ) {
        let scans = std::mem::take(&mut self.scans).into_iter().map(|scan| OpenScan {
            rows: reader.view().scan(KeyRange { start: scan.start, end: scan.end }),
            changed_since: scan.changed_since,
        });
        let mut scans: Vec<_> = scans.collect();
        if opened.send(()).is_err() {
            return;
        }
        let handle = self.handle.clone();
        loop {
            let next = tokio::time::timeout_at(self.until.into(), self.requests.message());
            let part = match handle.block_on(next) {
                Ok(Ok(Some(ReadShardRequest { step: Some(Step::Next(next)) }))) => {
                    self.chunk(&mut scans, &next)
                }
                Ok(Ok(Some(_))) => Err(Error::ReadShard("a further step is not next".into())),
                // The asker has what it wanted, or is gone.
                Ok(Ok(None) | Err(_)) => return,
                Err(_) => Err(Error::TooLong),
            };
            let failed = part.is_err();
            let part = part.map(|rows| ReadShardResponse { answer: Some(Answer::Rows(rows)) });
            let send = tokio::time::timeout_at(self.until.into(), self.parts.send(part));
            if !matches!(handle.block_on(send), Ok(Ok(()))) || failed {
                return;
            }
        }
    }

    fn chunk(&self, scans: &mut [OpenScan<'_>], next: &NextRows) -> Result<RowChunk, Error> {
        let scan = usize::try_from(next.scan).ok().and_then(|scan| scans.get_mut(scan));
        let Some(OpenScan { rows, changed_since }) = scan else {
            return Err(Error::ReadShard(format!("it opened no scan {}", next.scan)));
        };
        let failed = |source| Error::State {
            generation: self.generation,
            partition: self.partition,
            source,
        };
        let (mut bytes, mut count, mut last) = (Vec::new(), 0, false);
        while count < next.max_rows.max(1) && bytes.len() < CHUNK_BYTES {
            let Some(row) = rows.next() else {
                last = true;
                break;
            };
            let (key, header, payload) = row.map_err(failed)?;
            match changed_since {
                None => row_codec::push(key, &header, payload, &mut bytes),
                Some(since) if header.last_offset.0 >= *since => {
                    row_codec::push(key, &header, &[], &mut bytes);
                }
                Some(_) => continue,
            }
            count += 1;
        }
        Ok(RowChunk { scan: next.scan, rows: bytes.into(), last })
    }
}
