//! Merged rows of a generation's shards, read by a thread of their own.

use std::{collections::HashSet, sync::Arc, time::Instant};

use headwater_engine::read::{MergedScan, OutputBatch};
use headwater_state::{KeyRange, RowScan, ShardReader};
use headwater_types::{GenerationId, Offset, PartitionId};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
};

use crate::{error::Error, generation::Generation, shard::Held};

/// Batches that wait for whoever reads slower than the thread scans.
const READ_AHEAD: usize = 2;

/// Rows in key order, all from the commit at which the shards were held. Dropping it ends the thread.
pub(crate) struct Cursor {
    batches: mpsc::Receiver<Item>,
    until: Instant,
    ended: bool,
}

/// `Ok(None)` is the end.
type Item = Result<Option<Batch>, Error>;

/// Some rows.
pub(crate) struct Batch {
    pub rows: OutputBatch,
    /// Which of them changed, if only those were asked for.
    pub changed: Option<Vec<bool>>,
}

/// How many threads may scan.
pub(crate) struct Scans {
    what: &'static str,
    permits: Arc<Semaphore>,
    limit: usize,
}

impl Scans {
    pub(crate) fn new(what: &'static str, limit: usize) -> Self {
        Self { what, permits: Arc::new(Semaphore::new(limit)), limit }
    }

    /// A permit for each of `count` cursors, all or none: two requests never wait for each other.
    pub(crate) async fn permits(
        &self,
        count: usize,
        deadline: Instant,
    ) -> Result<Vec<OwnedSemaphorePermit>, Error> {
        let busy = || Error::Busy { what: self.what, limit: self.limit };
        let number = u32::try_from(count).ok().filter(|_| count <= self.limit).ok_or_else(busy)?;
        let acquire = self.permits.clone().acquire_many_owned(number);
        let Ok(Ok(mut all)) = tokio::time::timeout_at(deadline.into(), acquire).await else {
            return Err(busy());
        };
        // Splits one off as often as there are some left.
        Ok(std::iter::from_fn(|| all.split(1)).collect())
    }
}

/// What a cursor reads.
pub(crate) struct Selection {
    pub generation: Arc<Generation>,
    pub range: KeyRange,
    pub batch_rows: usize,
    /// Only rows that a record at or behind the position of its partition changed; one position per
    /// shard.
    pub changed_since: Option<Vec<Offset>>,
    /// When the thread gives up, whether or not somebody still wants the rows.
    pub until: Instant,
}

impl Cursor {
    /// Opens a cursor over shards that are held; they may be released once this has returned.
    pub(crate) async fn open(
        permit: OwnedSemaphorePermit,
        selection: Selection,
        held: &[Held],
    ) -> Result<Self, Error> {
        let readers: Readers =
            held.iter().map(|held| (held.partition, held.reader.clone())).collect();
        let (opened, is_open) = oneshot::channel();
        let (sender, batches) = mpsc::channel(READ_AHEAD);
        let (handle, until) = (Handle::current(), selection.until);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            scan(&selection, &readers, opened, &Sender { sender, handle, until });
        });
        is_open.await.map_err(|_| Error::Panicked)?;
        Ok(Self { batches, until, ended: false })
    }

    /// The next rows; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Result<Batch, Error>> {
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
            // The thread ends with `Ok(None)` or an error; anything else would be a part taken for the whole.
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
    /// Whether somebody still wants more.
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

type Readers = Vec<(PartitionId, Arc<ShardReader>)>;

fn scan(selection: &Selection, readers: &Readers, opened: oneshot::Sender<()>, sender: &Sender) {
    let open = || {
        readers
            .iter()
            .map(|(_, reader)| reader.view().scan(selection.range.clone()))
            .collect::<Vec<_>>()
    };
    let scans = open();
    let changes = selection.changed_since.as_ref().map(|since| (since, open()));
    if opened.send(()).is_err() {
        return;
    }
    let generation = &selection.generation;
    let changed = match changes
        .map(|(since, scans)| changed_keys(generation.id, readers, since, scans))
        .transpose()
    {
        Ok(changed) => changed,
        Err(error) => {
            sender.send(Err(error));
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
                Ok(Some(Batch { rows, changed }))
            }
            Ok(None) => Ok(None),
            Err(source) => Err(Error::engine(&generation.view, source)),
        };
        let last = !matches!(item, Ok(Some(_)));
        if !sender.send(item) || last {
            return;
        }
    }
}

/// A merged row has changed if one of its parts has, each judged by the positions of its own shard.
fn changed_keys(
    generation: GenerationId,
    readers: &Readers,
    since: &[Offset],
    scans: Vec<RowScan<'_>>,
) -> Result<HashSet<Vec<u8>>, Error> {
    let mut changed = HashSet::new();
    for (((partition, _), since), mut rows) in readers.iter().zip(since).zip(scans) {
        let failed = |source| Error::State { generation, partition: *partition, source };
        while let Some(row) = rows.next() {
            let (key, header, _) = row.map_err(failed)?;
            if header.last_offset >= *since && !changed.contains(key) {
                changed.insert(key.to_vec());
            }
        }
    }
    Ok(changed)
}
