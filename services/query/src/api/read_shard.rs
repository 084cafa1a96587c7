//! `ReadShard`: rows of shards that are on this instance's disk, for instances that share another
//! data directory.
//!
//! An instance never asks a third one. It refuses a shard that is not on its disk, and the asker
//! looks again where the shard is.

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
    context::RequestContext,
    error::Error,
    limit::ConcurrencyLimit,
    peers::{row_codec, shard_locator::ShardLocator},
    read_plan::FreshnessGoal,
    snapshot::{
        shard_snapshot::{ShardSnapshot, SnapshotReader},
        shard_source::ShardSource,
    },
};

/// About how much one message has at most. An asker keeps two messages for each scan and shard.
const CHUNK_BYTES: usize = 256 << 10;
/// How many scans one request may open: more than any query has of one view.
const MOST_SCANS: usize = 256;

type Parts = mpsc::Sender<Result<ReadShardResponse, Error>>;

/// Opens a shard, and hands out its rows as the requests ask for them.
pub(super) async fn read_shard(
    context: &RequestContext,
    locator: &ShardLocator,
    limit: &ConcurrencyLimit,
    mut requests: Streaming<ReadShardRequest>,
) -> Result<impl Stream<Item = Result<ReadShardResponse, Error>> + Send + use<>, Error> {
    let config = &context.config;
    let began = Instant::now();
    let first = tokio::time::timeout(config.default_timeout, requests.message()).await;
    let Ok(Ok(Some(ReadShardRequest { step: Some(Step::Open(open)) }))) = first else {
        return Err(Error::ReadShard("it does not begin with open".into()));
    };
    if open.scans.len() > MOST_SCANS {
        return Err(Error::ReadShard(format!("it opens more than {MOST_SCANS} scans")));
    }
    let timeout = Duration::from_millis(open.timeout_ms).min(config.max_timeout);
    let deadline = began + timeout;
    let shard = own_shard(context, locator, &open, deadline).await?;
    let age = Duration::from_micros(open.max_age_micros);
    let goal = FreshnessGoal {
        since: began.checked_sub(age).unwrap_or(began),
        position: Offset(open.position),
        reason: "another instance asks for",
        deadline,
    };
    let until = began + Duration::from_millis(open.duration_ms).min(config.max_duration);

    let instance = context.catalog.instance.to_string();
    let (sender, parts) = mpsc::channel(1 + open.scans.len());
    let (opened, snapshot) = match shard.local_snapshot(goal, open.epoch).await {
        Ok(snapshot) => {
            let row = open.key.as_deref().map(|key| encoded_row(&shard, key, &snapshot));
            let opened = ShardOpened {
                instance,
                position: snapshot.position.0,
                watermark_micros: snapshot.watermark.known().map(|watermark| watermark.0),
                row: row.transpose()?.unwrap_or_default().into(),
            };
            (opened, Some(snapshot))
        }
        // An answer and no error: the asker says it in its own words.
        Err(Error::NotReached { present, .. }) => {
            let opened = ShardOpened { instance, position: present.0, ..ShardOpened::default() };
            (opened, None)
        }
        Err(error) => return Err(error),
    };
    let opened = ReadShardResponse { answer: Some(Answer::Opened(opened)) };
    let _ = sender.try_send(Ok(opened));
    if !open.scans.is_empty()
        && let Some(snapshot) = snapshot
        && let SnapshotReader::Disk(reader) = snapshot.reader()
    {
        let permit = limit.permit_now()?;
        context.metrics.staleness(snapshot.caught_up());
        let (is_open, opened) = oneshot::channel();
        let reading = ShardReading {
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
        // The scans are open, and stay at the commit of the snapshot without it.
        drop(snapshot);
    }
    Ok(ReceiverStream::new(parts))
}

/// The shard, if it is one of the data directory on this disk.
async fn own_shard(
    context: &RequestContext,
    locator: &ShardLocator,
    open: &OpenShard,
    deadline: Instant,
) -> Result<Arc<ShardSource>, Error> {
    let ours = locator.directory();
    if *open.directory != *ours {
        let asked = open.directory.clone();
        return Err(Error::OtherDirectory { asked, ours: ours.to_string() });
    }
    let unknown =
        |reason: &str| Error::ReadShard(format!("generation {:?}: {reason}", open.generation));
    let id: GenerationId = open.generation.parse().map_err(|_| unknown("it is no id"))?;
    let generation = context.catalog.generation(id, deadline).await?;
    let generation = generation.ok_or_else(|| unknown("there is none"))?;
    let shard = generation.shards.get(open.partition as usize).cloned();
    shard.ok_or_else(|| unknown("it has fewer partitions"))
}

/// The row with a key; empty if there is none.
fn encoded_row(
    shard: &ShardSource,
    key: &[u8],
    snapshot: &ShardSnapshot,
) -> Result<Vec<u8>, Error> {
    let mut row = Vec::new();
    if let Some((header, payload)) = snapshot.row(shard.generation(), key)? {
        row_codec::encode_row(key, &header, &payload, &mut row);
    }
    Ok(row)
}

/// The scans of one request, read by a thread of its own.
struct ShardReading {
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

impl ShardReading {
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
                // The asker has all that it needs, or is gone.
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
                None => row_codec::encode_row(key, &header, payload, &mut bytes),
                Some(since) if header.last_offset.0 >= *since => {
                    row_codec::encode_row(key, &header, &[], &mut bytes);
                }
                Some(_) => continue,
            }
            count += 1;
        }
        Ok(RowChunk { scan: next.scan, rows: bytes.into(), last })
    }
}
