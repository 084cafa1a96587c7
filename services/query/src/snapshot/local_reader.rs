//! A shard on this instance's disk: opened when it is first asked for, and caught up on demand.

use std::{sync::Arc, time::Instant};

use headwater_state::{Identity, ShardReader, layout};
use headwater_types::{Name, Remedy};
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::{
    error::Error,
    snapshot::{read_context::ReadContext, shard_snapshot::ShardSnapshot},
};

/// The reader of one shard.
pub(crate) struct LocalReader {
    view: Name,
    shard: Identity,
    context: Arc<ReadContext>,
    open: Mutex<Option<OpenReader>>,
    /// Locked for writing while the reader catches up, and for reading while an answer takes its
    /// view of the shard. An answer never blocks its thread on a catch-up, and everything that it
    /// opens under one guard shows the same commit.
    gate: Arc<RwLock<()>>,
}

#[derive(Clone)]
struct OpenReader {
    reader: Arc<ShardReader>,
    /// When the last successful catch-up began.
    caught_up: Instant,
    /// The epoch of the claim under which the reader was opened. Another owner may have made the
    /// directory anew.
    epoch: u64,
}

impl LocalReader {
    pub(crate) fn new(view: Name, shard: Identity, context: Arc<ReadContext>) -> Self {
        Self { view, shard, context, open: Mutex::default(), gate: Arc::default() }
    }

    /// The shard with every commit that is older than `since`, as the claim with this epoch wrote
    /// it.
    pub(crate) async fn snapshot(
        self: &Arc<Self>,
        since: Instant,
        epoch: u64,
    ) -> Result<ShardSnapshot, Error> {
        let guard = self.gate.clone().read_owned().await;
        if let Some(open) = self.open_since(since, epoch) {
            return Ok(self.snapshot_of(open, guard));
        }
        drop(guard);
        let mut exclusive = self.gate.clone().write_owned().await;
        // Another request that waited for the gate may have caught up meanwhile.
        let open = match self.open_since(since, epoch) {
            Some(open) => open,
            None => {
                let this = Arc::clone(self);
                // The guard moves along: a request that is cancelled must not open the gate early.
                let outcome =
                    tokio::task::spawn_blocking(move || (this.catch_up(epoch), exclusive)).await;
                let outcome = outcome.map_err(|_| Error::Panicked)?;
                exclusive = outcome.1;
                outcome.0?
            }
        };
        Ok(self.snapshot_of(open, exclusive.downgrade()))
    }

    fn snapshot_of(&self, open: OpenReader, guard: OwnedRwLockReadGuard<()>) -> ShardSnapshot {
        ShardSnapshot::on_disk(self.shard.partition, open.reader, open.caught_up, guard)
    }

    /// The reader, if it has every commit that is older than `since`.
    fn open_since(&self, since: Instant, epoch: u64) -> Option<OpenReader> {
        let open = self.open.lock().clone()?;
        (open.epoch == epoch && open.caught_up >= since).then_some(open)
    }

    /// Blocks. Called with the gate locked for writing.
    fn catch_up(&self, epoch: u64) -> Result<OpenReader, Error> {
        let began = Instant::now();
        let present = self.open.lock().clone().filter(|open| open.epoch == epoch);
        let reader = match present {
            Some(OpenReader { reader, .. }) => {
                if let Err(source) = reader.refresh() {
                    // The next request opens a new reader, which may get over what stopped this
                    // one.
                    *self.open.lock() = None;
                    let Identity { generation, partition } = self.shard;
                    return Err(Error::State { generation, partition, source });
                }
                reader
            }
            None => Arc::new(self.open_reader()?),
        };
        self.context.metrics.catch_up.observe(began.elapsed().as_secs_f64());
        let open = OpenReader { reader, caught_up: began, epoch };
        *self.open.lock() = Some(open.clone());
        Ok(open)
    }

    fn open_reader(&self) -> Result<ShardReader, Error> {
        let Identity { generation, partition } = self.shard;
        let ReadContext { data, scratch, instance, options, .. } = &*self.context;
        let primary = layout::shard_dir(data, generation, partition);
        let scratch = layout::reader_dir(scratch, instance, generation, partition);
        let opened = ShardReader::open_live_with(&primary, &scratch, &self.shard, options);
        opened.map_err(|source| match source.remedy() {
            Remedy::Retry => {
                Error::NoState { view: self.view.to_string(), generation, partition, source }
            }
            Remedy::Correct | Remedy::StandDown | Remedy::Repair => {
                Error::State { generation, partition, source }
            }
        })
    }

    /// Closes the reader, and says whether there was one. Answers that still read it keep it until
    /// they end.
    pub(crate) fn close(&self) -> bool {
        let closed = self.open.lock().take().is_some();
        if closed {
            let ReadContext { scratch, instance, .. } = &*self.context;
            let Identity { generation, partition } = self.shard;
            // Only log files of RocksDB are left. What cannot be removed now, the next start
            // removes.
            let _ = std::fs::remove_dir_all(layout::reader_dir(
                scratch, instance, generation, partition,
            ));
        }
        closed
    }
}
