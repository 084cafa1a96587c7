//! Shard statuses on their way to the status topic.
//!
//! Most statuses are replaced by the next one. They are gathered and appended together
//! ([`StatusReporter::enqueue`]). On some statuses others decide something; these are appended by
//! the shard's thread itself ([`StatusReporter::write_now`]). Neither appends a status of a shard
//! that this process does not own any more.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{STATUS_TOPIC, status_key};
use headwater_log::{Answer, Appended, BatchBuilder, Log};
use headwater_proto::status::v1::ShardStatus;
use headwater_service::{Health, Node, OnFailure, Shutdown};
use headwater_state::Identity;
use headwater_types::{Clock, Name, PartitionId, Remedy};
use parking_lot::Mutex;
use prost::Message;
use tokio::{runtime::Handle, sync::Notify};

use crate::{assignment::lease::Lease, blocking::wait_within, error::ShardError};

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// A log that takes longer is away.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// Appends the statuses of all shards. At most one status per shard waits: a newer status replaces
/// one that the log has not taken yet.
///
/// The statuses of a shard come to the topic in the order in which they were given: the last one
/// counts, and binds the next owner.
#[derive(Clone)]
pub(crate) struct StatusReporter {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    health: Health,
    topic: Name,
    runtime: Handle,
    pending: Arc<Mutex<PendingStatuses>>,
    /// Held from the choice of what is appended until the log has been given it.
    append_order: Arc<Mutex<()>>,
    more: Arc<Notify>,
    /// All shards have ended.
    closing: Shutdown,
}

#[derive(Default)]
struct PendingStatuses {
    by_key: StatusesByKey,
    /// How often a status of the shard was written past the pending ones, by key.
    written: BTreeMap<String, u64>,
}

type StatusesByKey = BTreeMap<String, PendingStatus>;

struct PendingStatus {
    lease: Arc<Lease>,
    status: Vec<u8>,
    /// [`PendingStatuses::written`] of the shard when the status was given.
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
            pending: Arc::default(),
            append_order: Arc::default(),
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

    /// Appends the status soon, together with others.
    pub(crate) fn enqueue(&self, lease: &Arc<Lease>, status: &ShardStatus) {
        let (key, status) = (key(&lease.identity()), status.encode_to_vec());
        let mut pending = self.pending.lock();
        let turn = pending.written.get(&key).copied().unwrap_or_default();
        pending.by_key.insert(key, PendingStatus { lease: lease.clone(), status, turn });
        drop(pending);
        self.more.notify_one();
    }

    /// Appends the status now; `None` deletes the shard's status. Blocks.
    pub(crate) fn write_now(
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
        let late = || format!("{} takes no records for now", self.topic);
        let begun = Instant::now();
        let order = self.append_order.try_lock_for(limit);
        let order = order.ok_or_else(|| ShardError::log_away(late()))?;
        if lease.is_over() {
            return Err(lease.not_owned());
        }
        // The pending status is older. So is one that the log was given and does not take.
        let mut pending = self.pending.lock();
        pending.by_key.remove(&key);
        *pending.written.entry(key).or_default() += 1;
        drop(pending);
        let append = self.log.append(&self.topic, PartitionId::ONLY, batch);
        drop(order);
        let left = limit.saturating_sub(begun.elapsed());
        wait_within(&self.runtime, left, append, late)
    }

    /// Appends what is pending, and nothing after that.
    pub(crate) fn close(&self) {
        self.closing.begin();
    }

    /// Makes statuses pending again, unless newer ones were given since.
    fn put_back(&self, statuses: StatusesByKey) {
        let mut pending = self.pending.lock();
        for (key, status) in statuses {
            if pending.written.get(&key).copied().unwrap_or_default() == status.turn {
                pending.by_key.entry(key).or_insert(status);
            }
        }
    }

    /// Gives the log what is pending. Returns what that was, the append, and whether a status is
    /// held back.
    fn append_pending(&self) -> (StatusesByKey, Option<Answer<Appended>>, bool) {
        let _order = self.append_order.lock();
        let mut statuses = std::mem::take(&mut self.pending.lock().by_key);
        statuses.retain(|_, status| !status.lease.is_over());
        // Held back until the group has confirmed that this process still owns the shard.
        let in_doubt: StatusesByKey =
            statuses.extract_if(.., |_, status| !status.lease.may_write()).collect();
        let held_back = !in_doubt.is_empty();
        self.put_back(in_doubt);
        let mut batch = BatchBuilder::new();
        for (key, status) in &statuses {
            batch.push(self.clock.now_millis(), Some(key.as_bytes()), Some(&status.status), &[]);
        }
        let append =
            batch.build().map(|batch| self.log.append(&self.topic, PartitionId::ONLY, batch));
        (statuses, append, held_back)
    }

    async fn run(&self) -> anyhow::Result<()> {
        let mut retry = FIRST_RETRY;
        let mut held_back = false;
        loop {
            tokio::select! {
                () = self.more.notified() => {}
                () = tokio::time::sleep(FIRST_RETRY), if held_back => {}
                () = self.closing.cancelled() => {}
            }
            let closing = self.closing.is_cancelled();
            let (statuses, append);
            (statuses, append, held_back) = self.append_pending();
            if let Some(append) = append {
                match append.await {
                    Ok(_) => retry = FIRST_RETRY,
                    Err(error) => {
                        if retry == FIRST_RETRY && !self.health.log_is_away() {
                            tracing::warn!(%error, "shard statuses cannot be written, trying again");
                        }
                        self.put_back(statuses);
                        held_back = true;
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
    use crate::testing::{P0, PATIENCE, TestLog, generation, read_board};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_status_that_the_log_did_not_take_never_comes_after_a_later_one() {
        let (log, dir) = (TestLog::new(), TempDir::new().unwrap());
        create_topics(&*log).await.unwrap();
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

        log.lost_statuses.store(1, Ordering::Relaxed);
        reporter.enqueue(&lease, &at(1));
        while log.lost_statuses.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let (own, own_lease, second) = (reporter.clone(), lease.clone(), at(2));
        let write = move || own.write_now(&own_lease, Some(&second), None).map(drop);
        tokio::task::spawn_blocking(write).await.unwrap().unwrap();
        tokio::time::sleep(FIRST_RETRY * 3).await;
        assert_eq!(last().map(|position| position.0), Some(2));

        reporter.enqueue(&lease, &at(3));
        reporter.close();
        assert!(node.tasks.stop(PATIENCE).await.is_clean());
        assert_eq!(last().map(|position| position.0), Some(3));
    }
}
