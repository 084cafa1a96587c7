//! Shard statuses on their way to the status topic.
//!
//! Most of them are news that the next one replaces: they are gathered and appended together
//! ([`StatusReporter::send`]). On some of them others decide something: these are appended by the shard's thread
//! itself ([`StatusReporter::write`]). Either way nothing leaves for a shard that is not ours any more.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{STATUS_TOPIC, status_key};
use headwater_log::{Appended, BatchBuilder, BoxFuture, Error, Log};
use headwater_proto::status::v1::ShardStatus;
use headwater_service::{Health, Node, OnFailure, Shutdown};
use headwater_state::Identity;
use headwater_types::{Clock, Name, PartitionId, Remedy};
use parking_lot::Mutex;
use prost::Message;
use tokio::{runtime::Handle, sync::Notify};

use crate::{assignment::lease::Lease, error::ShardError};

pub(crate) const ONLY: PartitionId = PartitionId(0);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
type Append = BoxFuture<'static, Result<Appended, Error>>;

/// A log that takes longer is away.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// Takes statuses of all shards and appends them together. What waits is at most one status per shard:
/// a newer one takes the place of an older one that the log has not taken yet.
///
/// What is said of a shard comes to the topic in the order in which it was said: the last word counts, and the
/// next owner is bound by it.
#[derive(Clone)]
pub(crate) struct StatusReporter {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    health: Health,
    topic: Name,
    runtime: Handle,
    waiting: Arc<Mutex<PendingStatuses>>,
    /// Held from the choice of what is appended until the log has been given it.
    order: Arc<Mutex<()>>,
    more: Arc<Notify>,
    /// The last shard has said its last word.
    closing: Shutdown,
}

#[derive(Default)]
struct PendingStatuses {
    /// By key.
    statuses: StatusesByKey,
    /// How often a shard's status was written past those that wait, by key.
    written: BTreeMap<String, u64>,
}

type StatusesByKey = BTreeMap<String, PendingStatus>;

struct PendingStatus {
    lease: Arc<Lease>,
    status: Vec<u8>,
    /// Of [`PendingStatuses::written`], when it was said.
    turn: u64,
}

impl StatusReporter {
    pub(crate) fn start(node: &Node) -> anyhow::Result<Self> {
        let reporter = Self {
            log: node.log.clone(),
            clock: node.clock.clone(),
            health: node.health.clone(),
            topic: Name::new(STATUS_TOPIC)?,
            runtime: Handle::current(),
            waiting: Arc::default(),
            order: Arc::default(),
            more: Arc::new(Notify::new()),
            closing: Shutdown::new(),
        };
        let own = reporter.clone();
        node.tasks.spawn("shard-statuses", OnFailure::restart(), move |_| {
            let reporter = own.clone();
            async move { reporter.run().await }
        });
        Ok(reporter)
    }

    pub(crate) fn topic(&self) -> &Name {
        &self.topic
    }

    /// Appends the status with others, soon.
    pub(crate) fn send(&self, lease: &Arc<Lease>, status: &ShardStatus) {
        let (key, status) = (key(&lease.identity()), status.encode_to_vec());
        let mut waiting = self.waiting.lock();
        let turn = waiting.written.get(&key).copied().unwrap_or_default();
        waiting.statuses.insert(key, PendingStatus { lease: lease.clone(), status, turn });
        drop(waiting);
        self.more.notify_one();
    }

    /// Appends the status now; without one it says that the shard is no more. It blocks.
    pub(crate) fn write(
        &self,
        lease: &Lease,
        status: Option<&ShardStatus>,
        until: Option<Instant>,
    ) -> Result<Appended, ShardError> {
        let key = key(&lease.identity());
        let status = status.map(Message::encode_to_vec);
        let mut batch = BatchBuilder::new();
        batch.push(self.clock.now_millis(), Some(key.as_bytes()), status.as_deref(), &[]);
        let Some(batch) = batch.build() else {
            return Err(ShardError::new(Remedy::Repair, "a batch of one record is empty"));
        };
        lease.check()?;
        let limit = until.map_or(WRITE_DEADLINE, |until| {
            until.saturating_duration_since(Instant::now()).min(WRITE_DEADLINE)
        });
        let late = || {
            let reason = format!("{} takes no records for now", self.topic);
            ShardError { away: true, ..ShardError::new(Remedy::Retry, reason) }
        };
        let begun = Instant::now();
        let order = self.order.try_lock_for(limit).ok_or_else(late)?;
        if lease.is_over() {
            return Err(lease.not_ours());
        }
        // What waits is older, and so is what the log was given and does not take.
        let mut waiting = self.waiting.lock();
        waiting.statuses.remove(&key);
        *waiting.written.entry(key).or_default() += 1;
        drop(waiting);
        let append = self.log.append(&self.topic, ONLY, batch);
        drop(order);
        let left = limit.saturating_sub(begun.elapsed());
        let appended = self.runtime.block_on(async { tokio::time::timeout(left, append).await });
        Ok(appended.map_err(|_| late())??)
    }

    /// Appends what waits, and nothing after it.
    pub(crate) fn close(&self) {
        self.closing.begin();
    }

    /// What came meanwhile is newer.
    fn put_back(&self, statuses: StatusesByKey) {
        let mut waiting = self.waiting.lock();
        for (key, entry) in statuses {
            if waiting.written.get(&key).copied().unwrap_or_default() == entry.turn {
                waiting.statuses.entry(key).or_insert(entry);
            }
        }
    }

    /// Gives the log what waits, and says what that was and whether something is held back.
    fn give(&self) -> (StatusesByKey, Option<Append>, bool) {
        let _order = self.order.lock();
        let mut statuses = std::mem::take(&mut self.waiting.lock().statuses);
        statuses.retain(|_, entry| !entry.lease.is_over());
        // Held back until the group has confirmed that the shard is still ours.
        let doubtful: StatusesByKey =
            statuses.extract_if(.., |_, entry| !entry.lease.allows()).collect();
        let held = !doubtful.is_empty();
        self.put_back(doubtful);
        let mut batch = BatchBuilder::new();
        for (key, entry) in &statuses {
            batch.push(self.clock.now_millis(), Some(key.as_bytes()), Some(&entry.status), &[]);
        }
        let append = batch.build().map(|batch| self.log.append(&self.topic, ONLY, batch));
        (statuses, append, held)
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
            let (statuses, append);
            (statuses, append, held) = self.give();
            if let Some(append) = append {
                match append.await {
                    Ok(_) => retry = FIRST_RETRY,
                    Err(error) => {
                        if retry == FIRST_RETRY && !self.health.log_is_away() {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use headwater_service::follow::create_topics;
    use tempfile::TempDir;

    use super::*;
    use crate::testing::{P0, TestLog, generation, read_board};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_status_that_the_log_did_not_take_never_comes_after_a_later_one() {
        let (log, dir) = (TestLog::new(), TempDir::new().unwrap());
        create_topics(&*log).unwrap();
        let node = Node::new(log.clone(), dir.path(), "test");
        let reporter = StatusReporter::start(&node).unwrap();
        let identity = Identity { generation: generation(1), partition: P0 };
        let lease = Lease::new(identity, Arc::default(), Duration::from_secs(600));
        let at = |position| ShardStatus {
            generation: identity.generation.to_string(),
            position,
            ..ShardStatus::default()
        };
        let last = || read_board(&log.memory).position(identity.generation, P0);

        log.lost.store(1, Ordering::Relaxed);
        reporter.send(&lease, &at(1));
        while log.lost.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let (own, own_lease, second) = (reporter.clone(), lease.clone(), at(2));
        let write = move || own.write(&own_lease, Some(&second), None).map(drop);
        tokio::task::spawn_blocking(write).await.unwrap().unwrap();
        tokio::time::sleep(FIRST_RETRY * 3).await;
        assert_eq!(last().map(|position| position.0), Some(2));

        reporter.send(&lease, &at(3));
        reporter.close();
        assert!(node.tasks.stop(Duration::from_secs(5)).await.is_clean());
        assert_eq!(last().map(|position| position.0), Some(3));
    }
}
