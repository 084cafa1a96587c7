//! Shard statuses on their way to the status topic.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use headwater_control::{STATUS_TOPIC, StatusBoard, status_key};
use headwater_log::{BatchBuilder, Log};
use headwater_proto::status::v1::ShardStatus;
use headwater_service::{Node, OnFailure, Shutdown, follow};
use headwater_types::{Clock, GenerationId, Name, PartitionId};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;

const ONLY: PartitionId = PartitionId(0);
const RETRY: Duration = Duration::from_millis(250);
const READ_BYTES: usize = 1 << 20;

/// Takes statuses of all shards and appends them together. What waits is at most one status per shard:
/// a newer one takes the place of an older one that the log has not taken yet.
#[derive(Clone)]
pub(crate) struct Reports {
    waiting: Arc<Mutex<Waiting>>,
    more: Arc<Notify>,
}

/// By key; `None` says that the shard is no more.
type Waiting = BTreeMap<String, Option<Vec<u8>>>;

impl Reports {
    pub(crate) fn start(node: &Node) -> anyhow::Result<Self> {
        follow::create_topics(&*node.log)?;
        let reports = Self { waiting: Arc::default(), more: Arc::new(Notify::new()) };
        let (own, log, clock) = (reports.clone(), node.log.clone(), node.clock.clone());
        node.tasks.spawn("shard-statuses", OnFailure::restart(), move |shutdown| {
            let (reports, log, clock) = (own.clone(), log.clone(), clock.clone());
            async move { reports.run(&*log, &*clock, &shutdown).await }
        });
        Ok(reports)
    }

    pub(crate) fn send(&self, status: &ShardStatus) {
        let key = format!("{}/{}", status.generation, status.partition);
        self.waiting.lock().insert(key, Some(status.encode_to_vec()));
        self.more.notify_one();
    }

    /// The shard was deleted, and so is its status.
    pub(crate) fn forget(&self, generation: GenerationId, partition: PartitionId) {
        self.waiting.lock().insert(status_key(generation, partition), None);
        self.more.notify_one();
    }

    /// What came meanwhile is newer.
    fn put_back(&self, statuses: Waiting) {
        let mut waiting = self.waiting.lock();
        for (key, status) in statuses {
            waiting.entry(key).or_insert(status);
        }
        self.more.notify_one();
    }

    async fn run(
        &self,
        log: &dyn Log,
        clock: &dyn Clock,
        shutdown: &Shutdown,
    ) -> anyhow::Result<()> {
        let topic = Name::new(STATUS_TOPIC)?;
        loop {
            tokio::select! {
                () = self.more.notified() => {}
                () = shutdown.cancelled() => {}
            }
            let ending = shutdown.is_cancelled();
            let statuses = std::mem::take(&mut *self.waiting.lock());
            let mut batch = BatchBuilder::new();
            for (key, status) in &statuses {
                batch.push(clock.now_millis(), Some(key.as_bytes()), status.as_deref(), &[]);
            }
            if let Some(batch) = batch.build()
                && let Err(error) = log.append(&topic, ONLY, batch).await
            {
                tracing::warn!(%error, "shard statuses cannot be written");
                self.put_back(statuses);
                if !ending {
                    tokio::time::sleep(RETRY).await;
                }
            }
            if ending {
                return Ok(());
            }
        }
    }
}

/// What the shards said last, as of now: all that is in the status topic at this moment.
pub(crate) fn read_board(log: &dyn Log) -> anyhow::Result<StatusBoard> {
    let topic = Name::new(STATUS_TOPIC)?;
    let ends = log.ends(&topic, ONLY)?;
    let mut reader = log.reader(&topic, ONLY, ends.start)?;
    let mut board = StatusBoard::default();
    while reader.position() < ends.end {
        let from = reader.position();
        let Some(chunk) = reader.read(READ_BYTES, Duration::ZERO)? else { break };
        for record in chunk.records(from) {
            let record = record?;
            match record.value.map(ShardStatus::decode) {
                Some(Ok(status)) => board.fold(status),
                // It is derived, and the next one says it again.
                Some(Err(_)) => {}
                None => board.forget(&String::from_utf8_lossy(record.key.unwrap_or_default())),
            }
        }
    }
    Ok(board)
}
