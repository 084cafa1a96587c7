//! One shard, wherever it is: on this instance's disk, or at a peer that shares its directory.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_state::Identity;
use headwater_types::{GenerationId, Name, PartitionId};

use crate::{
    error::Error,
    peers::{forward::ROUND_TRIP, shard_locator::ShardLocation},
    read_plan::{FreshnessGoal, ReadPlan},
    snapshot::{
        local_reader::LocalReader, read_context::ReadContext, shard_snapshot::ShardSnapshot,
    },
};

/// Pauses between two looks at a shard that has not reached a position yet.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// One shard of a generation.
pub(crate) struct ShardSource {
    pub(super) view: Name,
    shard: Identity,
    pub(super) context: Arc<ReadContext>,
    local: Arc<LocalReader>,
}

/// On whose behalf a shard is read.
#[derive(Clone, Copy)]
enum Requester<'a> {
    /// A client. Any instance that has the shard may answer.
    Client(&'a ReadPlan),
    /// A peer that knows the claim with this epoch. The answer comes from this disk or not at all.
    Peer { epoch: u64 },
}

impl ShardSource {
    pub(crate) fn new(view: Name, shard: Identity, context: Arc<ReadContext>) -> Self {
        let local = Arc::new(LocalReader::new(view.clone(), shard, context.clone()));
        Self { view, shard, context, local }
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.shard.partition
    }

    pub(crate) fn generation(&self) -> GenerationId {
        self.shard.generation
    }

    /// Takes a snapshot once the shard has reached the goal, and waits for that until the goal's
    /// deadline.
    pub(crate) async fn snapshot(
        &self,
        goal: FreshnessGoal,
        plan: &ReadPlan,
    ) -> Result<ShardSnapshot, Error> {
        self.snapshot_for(goal, Requester::Client(plan)).await
    }

    /// As [`ShardSource::snapshot`], for a peer to which the claim with this epoch said that the
    /// shard is here.
    pub(crate) async fn local_snapshot(
        &self,
        goal: FreshnessGoal,
        epoch: u64,
    ) -> Result<ShardSnapshot, Error> {
        self.snapshot_for(goal, Requester::Peer { epoch }).await
    }

    async fn snapshot_for(
        &self,
        goal: FreshnessGoal,
        requester: Requester<'_>,
    ) -> Result<ShardSnapshot, Error> {
        let mut since = goal.since;
        let mut pause = FIRST_PAUSE;
        let mut round_trip = Duration::ZERO;
        let mut before = None;
        loop {
            let missed = match self.snapshot_now(since, goal, requester).await {
                Ok(snapshot) if snapshot.position >= goal.position => return Ok(snapshot),
                Ok(snapshot) => {
                    // A peer has waited for as long as its answer had time.
                    round_trip = if snapshot.is_remote() { ROUND_TRIP * 2 } else { Duration::ZERO };
                    Error::NotReached {
                        view: self.view.to_string(),
                        generation: self.generation(),
                        partition: self.partition(),
                        wanted: goal.position,
                        present: snapshot.position,
                        reason: goal.reason,
                    }
                }
                // The processor may be about to create or move the shard, and a peer may be about
                // to start. An attempt that the deadline cut off says less than the one before it.
                Err(error) if error.is_passing() => match before.take() {
                    Some(before)
                        if matches!(error, Error::ShardUnreachable { .. })
                            && goal.deadline <= Instant::now() =>
                    {
                        before
                    }
                    Some(_) | None => error,
                },
                Err(error) => return Err(self.explain(error).await),
            };
            if let Some(deleted) = self.deleted() {
                return Err(deleted);
            }
            let left = goal.deadline.saturating_duration_since(Instant::now());
            if left <= round_trip {
                return Err(missed);
            }
            before = Some(missed);
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            since = Instant::now();
        }
    }

    /// One attempt, where the shard is now.
    async fn snapshot_now(
        &self,
        since: Instant,
        goal: FreshnessGoal,
        requester: Requester<'_>,
    ) -> Result<ShardSnapshot, Error> {
        let ReadContext { locator, forwarder, .. } = &*self.context;
        match requester {
            Requester::Client(plan) => match locator.locate(&self.shard) {
                ShardLocation::Local { epoch } => self.local.snapshot(since, epoch).await,
                ShardLocation::Remote(at) => {
                    let session = forwarder.open(&self.view, &self.shard, &at, goal, plan).await?;
                    Ok(ShardSnapshot::at_peer(session))
                }
            },
            Requester::Peer { epoch } => match locator.local_epoch(&self.shard, epoch) {
                Some(epoch) => self.local.snapshot(since, epoch).await,
                None => {
                    Err(Error::Moved { generation: self.generation(), partition: self.partition() })
                }
            },
        }
    }

    /// Closes the reader on this disk.
    pub(crate) fn close(&self) {
        self.local.close();
    }

    /// Closes the reader of a copy that a former owner left behind.
    pub(crate) fn close_if_moved(&self) {
        if let ShardLocation::Remote(at) = self.context.locator.locate(&self.shard)
            && self.local.close()
        {
            tracing::info!(
                generation = %self.generation(),
                partition = %self.partition(),
                processor = at.processor,
                directory = at.directory,
                "shard closed, it has moved"
            );
        }
    }
}
