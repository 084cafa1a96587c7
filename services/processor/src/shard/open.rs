//! Opening a shard: restored, opened, claimed.

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
        status::muted_by,
        task::ShardTask,
        thread::ShardThread,
    },
};

impl ShardThread {
    pub(super) fn open(
        &mut self,
        control: &ControlState,
        shutdown: &Shutdown,
    ) -> Result<ShardTask, ShardError> {
        let context = self.context.clone();
        let Identity { generation, partition } = self.identity;
        let entry = control.generations().get(&generation).ok_or_else(|| {
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
        let opened = restore::open(&setup, shutdown, |reason| self.set_not_ready(reason))?;
        if let Some((bytes, took)) = opened.fetched {
            context.metrics.restored(bytes, took);
        }
        // Dropped before the new metrics of the shard are made: the drop removes them by name.
        self.halted = None;
        let mut task =
            ShardTask::open(setup, opened, context.metrics.shard(&entry.view, &self.identity))?;

        let (own, lease) = (self.muted.clone(), self.lease.clone());
        let (writer, status) = claim(&context, &lease, |epoch, former| {
            self.muted = own.clone();
            if let Some(FormerStatus { status, stopped_at }) = former {
                task.adopt_checkpoints(status)?;
                self.muted = muted_by(status).or(self.muted.take());
                // A swap that is under way may rest on the position at which the former owner
                // stopped.
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
        task.set_writer(writer);
        self.reported = status;
        (self.status_made_at, self.reported_at) = (Some(Instant::now()), Some(Instant::now()));
        context.log_outage.end(self.identity);
        self.logged_reason = None;
        if let Some(condition) = self.condition.take() {
            condition.remove();
        }
        task.metrics().stopped(false);
        let position = task.progress().position;
        self.group.note_committed(partition, position);
        tracing::info!(
            shard = %self.identity,
            view = %entry.view,
            position = position.0,
            epoch = ?self.epoch.map(|epoch| epoch.0),
            "shard opened"
        );
        Ok(task)
    }

    /// The process is alive but not ready, for this reason.
    pub(super) fn set_not_ready(&mut self, reason: String) {
        let Identity { generation, partition } = self.identity;
        let name = format!("shard-{generation}-{partition}");
        let health = &self.context.health;
        self.condition.get_or_insert_with(|| health.condition(name)).not_ready(reason);
    }
}
