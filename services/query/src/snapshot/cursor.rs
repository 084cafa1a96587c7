//! Merged rows of a generation's shards, read by a thread of its own.

use std::{collections::HashSet, sync::Arc, time::Instant};

use headwater_engine::{
    ViewPlan,
    read::{MergedScan, OutputBatch, ShardRows},
};
use headwater_state::{Row, RowScan};
use headwater_types::{GenerationId, Offset, PartitionId};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
};

use crate::{
    error::Error,
    peers::remote_rows::RemoteRows,
    read_plan::ReadPlan,
    snapshot::{
        generation::Generation,
        shard_snapshot::{ShardSnapshot, SnapshotReader},
    },
};

/// Batches that wait for a client that reads slower than the thread scans.
const READ_AHEAD: usize = 2;

/// Rows in key order, all of the commits of the snapshots. Dropping the cursor ends its thread.
pub(crate) struct Cursor {
    batches: mpsc::Receiver<Item>,
    until: Instant,
    ended: bool,
}

/// `Ok(None)` is the end.
type Item = Result<Option<CursorBatch>, Error>;

/// Rows that a cursor hands out at a time.
pub(crate) struct CursorBatch {
    pub rows: OutputBatch,
    /// Which of the rows changed, if only those were asked for.
    pub changed: Option<Vec<bool>>,
}

/// The rows that a cursor reads.
pub(crate) struct Selection {
    pub generation: Arc<Generation>,
    /// The plan for which the snapshots were taken.
    pub plan: Arc<ReadPlan>,
    /// The scan of the plan that has the rows.
    pub scan: usize,
    /// The scan of the plan that says which rows changed, if only those are wanted.
    pub changes: Option<usize>,
    pub batch_rows: usize,
    /// When the thread stops, even if the client still wants rows.
    pub until: Instant,
}

impl Cursor {
    /// Opens a cursor over snapshots. They may be dropped once this has returned.
    pub(crate) async fn open(
        permit: OwnedSemaphorePermit,
        selection: Selection,
        snapshots: &[ShardSnapshot],
    ) -> Result<Self, Error> {
        let shards: Shards =
            snapshots.iter().map(|snapshot| (snapshot.partition, snapshot.reader())).collect();
        let (opened, is_open) = oneshot::channel();
        let (sender, batches) = mpsc::channel(READ_AHEAD);
        let (handle, until) = (Handle::current(), selection.until);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            scan(&selection, &shards, opened, &Sender { sender, handle, until });
        });
        is_open.await.map_err(|_| Error::Panicked)?;
        Ok(Self { batches, until, ended: false })
    }

    /// The next rows; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Result<CursorBatch, Error>> {
        if self.ended {
            return None;
        }
        match self.batches.recv().await {
            Some(Ok(Some(batch))) => Some(Ok(batch)),
            Some(Ok(None)) => {
                self.ended = true;
                None
            }
            Some(Err(error)) => {
                self.ended = true;
                Some(Err(error))
            }
            // The thread ends with `Ok(None)` or an error. Without either the rows are a part, and
            // must not be taken for the whole.
            None => {
                self.ended = true;
                let late = Instant::now() >= self.until;
                Some(Err(if late { Error::TooLong } else { Error::Panicked }))
            }
        }
    }
}

struct Sender {
    sender: mpsc::Sender<Item>,
    handle: Handle,
    until: Instant,
}

impl Sender {
    /// Whether the client wants more.
    fn send(&self, item: Item) -> bool {
        match self.sender.try_send(item) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(item)) => {
                let send = tokio::time::timeout_at(self.until.into(), self.sender.send(item));
                matches!(self.handle.block_on(send), Ok(Ok(())))
            }
        }
    }
}

type Shards = Vec<(PartitionId, SnapshotReader)>;

/// The rows of one shard, wherever it is.
enum ShardScan<'a> {
    Disk { rows: RowScan<'a>, generation: GenerationId, partition: PartitionId },
    Peer(RemoteRows),
}

impl ShardScan<'_> {
    fn next(&mut self) -> Option<Result<Row<'_>, Error>> {
        match self {
            Self::Disk { rows, generation, partition } => {
                let (generation, partition) = (*generation, *partition);
                let failed = |source| Error::State { generation, partition, source };
                rows.next().map(|row| row.map_err(failed))
            }
            Self::Peer(rows) => rows.next(),
        }
    }
}

/// Why rows cannot be merged.
enum ScanError {
    Rows(Error),
    Merge(headwater_engine::Error),
}

impl From<headwater_engine::Error> for ScanError {
    fn from(error: headwater_engine::Error) -> Self {
        Self::Merge(error)
    }
}

impl ShardRows for ShardScan<'_> {
    type Error = ScanError;

    fn next_row(&mut self, _: &ViewPlan) -> Option<Result<Row<'_>, ScanError>> {
        self.next().map(|row| row.map_err(ScanError::Rows))
    }
}

fn scan(selection: &Selection, shards: &Shards, opened: oneshot::Sender<()>, sender: &Sender) {
    let Selection { generation, plan, until, .. } = selection;
    let open = |number: usize| -> Vec<ShardScan<'_>> {
        let shards = shards.iter().map(|(partition, reader)| match reader {
            SnapshotReader::Disk(reader) => ShardScan::Disk {
                rows: reader.view().scan(plan.scans[number].range.clone()),
                generation: generation.id,
                partition: *partition,
            },
            SnapshotReader::Peer(session) => {
                let (session, handle) = (session.clone(), sender.handle.clone());
                ShardScan::Peer(RemoteRows::new(session, number, handle, *until))
            }
        });
        shards.collect()
    };
    let scans = open(selection.scan);
    let changes = selection.changes.map(|number| (number, open(number)));
    if opened.send(()).is_err() {
        return;
    }
    let changed = changes.map(|(number, scans)| {
        changed_keys(plan.scans[number].changed_since.as_deref().unwrap_or_default(), scans)
    });
    let explained = |error| match generation.shards.first() {
        Some(shard) => sender.handle.block_on(shard.explain(error)),
        None => error,
    };
    let changed = match changed.transpose() {
        Ok(changed) => changed,
        Err(error) => {
            sender.send(Err(explained(error)));
            return;
        }
    };
    if changed.as_ref().is_some_and(HashSet::is_empty) {
        sender.send(Ok(None));
        return;
    }
    let mut merged = MergedScan::new(&generation.plan, scans);
    loop {
        let item = match merged.next_batch(selection.batch_rows) {
            Ok(Some(rows)) => {
                let changed = changed.as_ref();
                let changed = changed.map(|keys| {
                    (0..rows.len()).map(|row| keys.contains(rows.key(row))).collect::<Vec<_>>()
                });
                if changed.as_ref().is_some_and(|changed| !changed.contains(&true)) {
                    continue;
                }
                Ok(Some(CursorBatch { rows, changed }))
            }
            Ok(None) => Ok(None),
            Err(ScanError::Rows(error)) => Err(explained(error)),
            Err(ScanError::Merge(source)) => Err(Error::engine(&generation.view, source)),
        };
        let last = !matches!(item, Ok(Some(_)));
        if !sender.send(item) || last {
            return;
        }
    }
}

/// A merged row has changed if one of its parts has, each judged by the positions of its own shard.
fn changed_keys(since: &[Offset], scans: Vec<ShardScan<'_>>) -> Result<HashSet<Vec<u8>>, Error> {
    let mut changed = HashSet::new();
    for (since, mut rows) in since.iter().zip(scans) {
        while let Some(row) = rows.next() {
            let (key, header, _) = row?;
            if header.last_offset >= *since && !changed.contains(key) {
                changed.insert(key.to_vec());
            }
        }
    }
    Ok(changed)
}
