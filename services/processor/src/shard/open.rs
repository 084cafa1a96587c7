//! How a shard's life here begins: restored, opened, claimed.

use std::time::Instant;

use headwater_control::{ControlState, ShardDuty};
use headwater_service::Shutdown;
use headwater_state::Identity;
use headwater_types::{ENGINE_VERSION, Remedy};

use crate::{
    checkpoint::{restore, setup::ShardSetup},
    error::ShardError,
    shard::{
        claim::{FormerStatus, claim},
        status::muted,
        task::ShardTask,
        thread::ShardThread,
    },
};

impl ShardThread {
    pub(super) fn open(
        &mut self,
        state: &ControlState,
        shutdown: &Shutdown,
    ) -> Result<ShardTask, ShardError> {
        let context = self.context.clone();
        let Identity { generation, partition } = self.identity;
        let entry = state.generations().get(&generation).ok_or_else(|| {
            ShardError::new(Remedy::Retry, format!("generation {generation} is not known yet"))
        })?;
        if entry.engine_version != ENGINE_VERSION {
            let reason = format!(
                "generation {generation} belongs to engine version {}, and this is version {ENGINE_VERSION}: run the \
                 Headwater that began it, or start a replay of view {}",
                entry.engine_version, entry.view
            );
            return Err(ShardError::new(Remedy::Correct, reason));
        }
        let setup = ShardSetup {
            identity: self.identity,
            view: entry.view.clone(),
            plan: context.plans.get(entry)?,
            floor: entry.floor.get(&partition).copied().unwrap_or_default(),
            data: context.data.clone(),
            log: context.log.clone(),
            lease: self.lease.clone(),
            checkpoint_store: context.checkpoint_store.clone(),
            runtime: context.runtime.clone(),
            options: context.options.clone(),
            config: context.config.clone(),
        };
        context.partition_check.check(&*context.log, &setup.plan.stream)?;
        let opened = restore::open(&setup, shutdown, |reason| self.wait_for(reason))?;
        if let Some((bytes, took)) = opened.fetched {
            context.metrics.restored(bytes, took);
        }
        // Before the shard's new metrics: it takes its own away.
        self.halted = None;
        let mut task =
            ShardTask::open(setup, opened, context.metrics.shard(&entry.view, &self.identity))?;

        let (own, lease) = (self.muted.clone(), self.lease.clone());
        let (writer, status) = claim(&context, &lease, |epoch, former| {
            self.muted = own.clone();
            if let Some(FormerStatus { status, stopped_at }) = former {
                task.inherit(status)?;
                self.muted = muted(status).or(self.muted.take());
                // The swap that is under way may rest on it already.
                if let (Some(at), ShardDuty::Run { muted_for: Some(swap), .. }) =
                    (stopped_at, self.duty(&context.control.current()))
                    && self.muted.as_ref().is_none_or(|(muted, _)| *muted != swap)
                {
                    self.muted = Some((swap, at));
                }
            }
            self.status(&task, Some(epoch), 0.0)
        })?;
        self.epoch = Some(writer.epoch());
        task.claimed(writer);
        self.reported = status;
        (self.reported_at, self.sent_at) = (Some(Instant::now()), Some(Instant::now()));
        context.log_outage.over(self.identity);
        self.interrupted_by = None;
        if let Some(condition) = self.condition.take() {
            condition.remove();
        }
        task.metrics().stopped(false);
        let position = task.progress().position;
        self.group.committed(partition, position);
        tracing::info!(
            shard = %self.identity,
            view = %entry.view,
            position = position.0,
            epoch = ?self.epoch.map(|epoch| epoch.0),
            "shard opened"
        );
        Ok(task)
    }

    /// The process is not ready for this reason, though alive.
    pub(super) fn wait_for(&mut self, reason: String) {
        let Identity { generation, partition } = self.identity;
        let name = format!("shard-{generation}-{partition}");
        let health = &self.context.health;
        self.condition.get_or_insert_with(|| health.condition(name)).not_ready(reason);
    }
}
