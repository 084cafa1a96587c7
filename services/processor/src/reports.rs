//! Shard statuses on their way to the status topic.
//!
//! Most of them are news that the next one replaces: they are gathered and appended together
//! ([`Reports::send`]). On some of them others decide something: these are appended by the shard's thread
//! itself ([`Reports::write`]). Either way nothing leaves for a shard that is not ours any more.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{STATUS_TOPIC, status_key};
use headwater_log::{Appended, BatchBuilder, Log};
use headwater_proto::status::v1::ShardStatus;
use headwater_service::{Node, OnFailure, Shutdown};
use headwater_state::Identity;
use headwater_types::{Clock, Name, PartitionId, Remedy};
use parking_lot::Mutex;
use prost::Message;
use tokio::{runtime::Handle, sync::Notify};

use crate::{lease::Lease, trouble::Trouble};

pub(crate) const ONLY: PartitionId = PartitionId(0);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// A log that takes longer is away.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// Takes statuses of all shards and appends them together. What waits is at most one status per shard:
/// a newer one takes the place of an older one that the log has not taken yet.
#[derive(Clone)]
pub(crate) struct Reports {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    topic: Name,
    runtime: Handle,
    waiting: Arc<Mutex<Waiting>>,
    more: Arc<Notify>,
    /// The last shard has said its last word.
    closing: Shutdown,
}

/// By key.
type Waiting = BTreeMap<String, Entry>;

struct Entry {
    lease: Arc<Lease>,
    status: Vec<u8>,
}

impl Reports {
    pub(crate) fn start(node: &Node) -> anyhow::Result<Self> {
        let reports = Self {
            log: node.log.clone(),
            clock: node.clock.clone(),
            topic: Name::new(STATUS_TOPIC)?,
            runtime: Handle::current(),
            waiting: Arc::default(),
            more: Arc::new(Notify::new()),
            closing: Shutdown::new(),
        };
        let own = reports.clone();
        node.tasks.spawn("shard-statuses", OnFailure::restart(), move |_| {
            let reports = own.clone();
            async move { reports.run().await }
        });
        Ok(reports)
    }

    pub(crate) fn topic(&self) -> &Name {
        &self.topic
    }

    /// Appends the status with others, soon.
    pub(crate) fn send(&self, lease: &Arc<Lease>, status: &ShardStatus) {
        let entry = Entry { lease: lease.clone(), status: status.encode_to_vec() };
        self.waiting.lock().insert(key(&lease.identity()), entry);
        self.more.notify_one();
    }

    /// Appends the status now; without one it says that the shard is no more. It blocks.
    pub(crate) fn write(
        &self,
        lease: &Lease,
        status: Option<&ShardStatus>,
        until: Option<Instant>,
    ) -> Result<Appended, Trouble> {
        let key = key(&lease.identity());
        let status = status.map(Message::encode_to_vec);
        let mut batch = BatchBuilder::new();
        batch.push(self.clock.now_millis(), Some(key.as_bytes()), status.as_deref(), &[]);
        let Some(batch) = batch.build() else {
            return Err(Trouble::new(Remedy::Repair, "a batch of one record is empty"));
        };
        lease.check()?;
        // What waits is older.
        self.waiting.lock().remove(&key);
        let limit = until.map_or(WRITE_DEADLINE, |until| {
            until.saturating_duration_since(Instant::now()).min(WRITE_DEADLINE)
        });
        let append = self.log.append(&self.topic, ONLY, batch);
        let appended = self.runtime.block_on(async { tokio::time::timeout(limit, append).await });
        let appended = appended.map_err(|_| Trouble {
            remedy: Remedy::Retry,
            reason: format!("{} takes no records for now", self.topic),
            away: true,
        })?;
        Ok(appended?)
    }

    /// Appends what waits, and nothing after it.
    pub(crate) fn close(&self) {
        self.closing.begin();
    }

    /// What came meanwhile is newer.
    fn put_back(&self, statuses: Waiting) {
        let mut waiting = self.waiting.lock();
        for (key, status) in statuses {
            waiting.entry(key).or_insert(status);
        }
    }

    async fn run(&self) -> anyhow::Result<()> {
        let mut retry = FIRST_RETRY;
        let mut held = false;
        loop {
            tokio::select! {
                () = self.more.notified() => {}
                () = tokio::time::sleep(FIRST_RETRY), if held => {}
                () = self.closing.cancelled() => {}
            }
            let closing = self.closing.is_cancelled();
            let mut statuses = std::mem::take(&mut *self.waiting.lock());
            statuses.retain(|_, entry| !entry.lease.is_over());
            // Held back until the group has confirmed that the shard is still ours.
            let doubtful: Waiting =
                statuses.extract_if(.., |_, entry| !entry.lease.allows()).collect();
            held = !doubtful.is_empty();
            self.put_back(doubtful);
            let mut batch = BatchBuilder::new();
            for (key, entry) in &statuses {
                batch.push(self.clock.now_millis(), Some(key.as_bytes()), Some(&entry.status), &[]);
            }
            if let Some(batch) = batch.build() {
                match self.log.append(&self.topic, ONLY, batch).await {
                    Ok(_) => retry = FIRST_RETRY,
                    Err(error) => {
                        if retry == FIRST_RETRY {
                            tracing::warn!(%error, "shard statuses cannot be written, trying again");
                        }
                        self.put_back(statuses);
                        held = true;
                        if !closing {
                            tokio::select! {
                                () = tokio::time::sleep(retry) => {}
                                () = self.closing.cancelled() => {}
                            }
                        }
                        retry = (retry * 2).min(LONGEST_RETRY);
                    }
                }
            }
            if closing {
                return Ok(());
            }
        }
    }
}

fn key(identity: &Identity) -> String {
    status_key(identity.generation, identity.partition)
}
