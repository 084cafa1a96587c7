//! The generation that answers one request, and how fresh each of its shards has to be.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use headwater_proto::query::v1::{PartitionFreshness, Provenance};
use headwater_types::{Epoch, Offset, PartitionId};

use crate::{
    error::Error,
    read_plan::{FreshnessGoal, ReadPlan},
    snapshot::{
        generation::Generation, served_positions::ServedPositions, shard_snapshot::ShardSnapshot,
    },
};

/// The generation that answers one request.
pub(crate) struct Pin {
    pub generation: Arc<Generation>,
    /// The epoch of the swap that made the generation serve; 0 if it does not serve.
    pub(super) epoch: Epoch,
    /// `None` if the request named the generation: its answer is not part of what the view has
    /// served.
    pub(super) served: Option<Arc<ServedPositions>>,
    /// The positions that the request asks for, and the words that say so.
    pub(super) wanted: BTreeMap<PartitionId, Offset>,
    pub(super) wanted_by: &'static str,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
    pub(super) instance: Arc<str>,
}

impl Pin {
    /// Takes a snapshot of one shard, or of all in the order of their partitions, each as fresh as
    /// was asked for.
    pub(crate) async fn snapshot(
        &self,
        only: Option<PartitionId>,
        plan: &ReadPlan,
    ) -> Result<Vec<ShardSnapshot>, Error> {
        let shards = &self.generation.shards;
        let one = match only {
            Some(partition) => shards.get(partition.0 as usize),
            None => shards.first().filter(|_| shards.len() == 1),
        };
        if let Some(shard) = one {
            return Ok(vec![shard.snapshot(self.goal(shard.partition()), plan).await?]);
        }
        let reached = self.reach(plan).await?;
        self.snapshot_reached(reached, plan).await
    }

    /// Waits until each shard has reached its goal, so that no snapshot on this disk is kept while
    /// another shard is waited for. Snapshots at peers are kept: they delay no shard there.
    async fn reach(&self, plan: &ReadPlan) -> Result<Vec<Option<ShardSnapshot>>, Error> {
        let each = self.generation.shards.iter().map(|shard| async {
            let snapshot = shard.snapshot(self.goal(shard.partition()), plan).await?;
            Ok(Some(snapshot).filter(ShardSnapshot::is_remote))
        });
        futures::future::try_join_all(each).await
    }

    /// Takes a snapshot of all shards, after [`Pin::reach`].
    async fn snapshot_reached(
        &self,
        reached: Vec<Option<ShardSnapshot>>,
        plan: &ReadPlan,
    ) -> Result<Vec<ShardSnapshot>, Error> {
        let mut all = Vec::with_capacity(reached.len());
        for (shard, reached) in self.generation.shards.iter().zip(reached) {
            let goal = self.goal(shard.partition());
            let snapshot = match reached {
                // Another answer may have shown a greater position in the meantime.
                Some(snapshot) if snapshot.position >= goal.position => snapshot,
                Some(_) | None => shard.snapshot(goal, plan).await?,
            };
            all.push(snapshot);
        }
        Ok(all)
    }

    /// Asks for a position of each shard, in place of what tokens ask for.
    pub(crate) fn require(&mut self, positions: &[Offset], wanted_by: &'static str) {
        self.wanted = (0..).map(PartitionId).zip(positions.iter().copied()).collect();
        self.wanted_by = wanted_by;
    }

    fn goal(&self, partition: PartitionId) -> FreshnessGoal {
        let asked = self.wanted.get(&partition).copied().unwrap_or_default();
        let served = self.served.as_ref().map_or(Offset::ZERO, |served| served.position(partition));
        let (position, reason) = if served > asked {
            (served, "an earlier answer had already shown")
        } else {
            (asked, self.wanted_by)
        };
        FreshnessGoal { since: self.since, position, reason, deadline: self.deadline }
    }

    /// Says where an answer comes from. No later answer about this view is older.
    pub(crate) fn provenance(&self, snapshots: &[ShardSnapshot]) -> Provenance {
        let partitions = snapshots
            .iter()
            .map(|snapshot| {
                if let Some(served) = &self.served {
                    served.raise(snapshot.partition, snapshot.position);
                }
                PartitionFreshness {
                    partition: snapshot.partition.0,
                    offset: snapshot.position.0,
                    watermark_micros: snapshot.watermark.known().map(|watermark| watermark.0),
                    served_by: snapshot.served_by().unwrap_or_default().to_owned(),
                }
            })
            .collect();
        Provenance {
            view: self.generation.view.to_string(),
            generation: self.generation.id.to_string(),
            epoch: self.epoch.0,
            partitions,
            served_by: self.instance.to_string(),
        }
    }
}

/// Takes snapshots of all shards of several views: first each view reaches its goals, so that no
/// snapshot of one view is kept while another view is waited for.
pub(crate) async fn snapshot_views(
    pins: &[Pin],
    plans: &[Arc<ReadPlan>],
) -> Result<Vec<Vec<ShardSnapshot>>, Error> {
    if let ([pin], [plan]) = (pins, plans) {
        return Ok(vec![pin.snapshot(None, plan).await?]);
    }
    let reach = pins.iter().zip(plans).map(|(pin, plan)| pin.reach(plan));
    let reached = futures::future::try_join_all(reach).await?;
    let mut all = Vec::with_capacity(pins.len());
    for ((pin, plan), reached) in pins.iter().zip(plans).zip(reached) {
        all.push(pin.snapshot_reached(reached, plan).await?);
    }
    Ok(all)
}
