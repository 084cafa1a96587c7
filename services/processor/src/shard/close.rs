//! How a shard's life here ends: handed over, abandoned, or deleted.

use std::time::Instant;

use headwater_control::ControlState;
use headwater_service::Shutdown;
use headwater_types::Remedy;

use crate::{
    assignment::lease::ClosedShard,
    checkpoint::local::remove_local,
    error::ShardError,
    publish::outbox::Permit,
    shard::{
        task::{Orders, ShardTask},
        thread::{ShardThread, ThreadEnd},
    },
};

impl ShardThread {
    /// Commits, leaves a checkpoint in the store and closes the shard, by then. What cannot be done in time
    /// the next owner does: it has the log.
    pub(super) fn hand_over(
        &mut self,
        mut task: ShardTask,
        until: Instant,
        shutdown: &Shutdown,
    ) -> ThreadEnd {
        let begun = Instant::now();
        let closed = self.try_hand_over(&mut task, until, shutdown);
        if let Err(error) = task.close() {
            tracing::warn!(shard = %self.identity, reason = error.reason, "shard not closed properly; the log has what is missing");
        }
        match closed {
            Ok((closed, status)) => {
                let written =
                    self.context.status_reporter.write(&self.lease, Some(&status), Some(until));
                if let Err(error) = written {
                    tracing::info!(shard = %self.identity, reason = error.reason, "last status not written");
                }
                self.lease.closed(closed);
                tracing::info!(
                    shard = %self.identity,
                    position = closed.position,
                    uploaded = closed.uploaded,
                    outbox = closed.outbox,
                    seconds = begun.elapsed().as_secs_f64(),
                    "shard handed over"
                );
            }
            Err(error) => {
                tracing::warn!(shard = %self.identity, reason = error.reason, "shard closed without a proper hand-over");
            }
        }
        ThreadEnd::Stopped
    }

    fn try_hand_over(
        &mut self,
        task: &mut ShardTask,
        until: Instant,
        shutdown: &Shutdown,
    ) -> Result<(ClosedShard, headwater_proto::status::v1::ShardStatus), ShardError> {
        task.commit()?;
        // Time is left for closing the database and for leaving the group.
        let upload_until = until - self.context.config.hand_over_timeout / 4;
        if let Err(error) = self.lease.check()
            && error.remedy == Remedy::StandDown
        {
            return Err(error);
        }
        let uploaded = task.upload_last(upload_until, shutdown)?;
        self.lease.check()?;
        self.group.committed(self.identity.partition, task.progress().position);
        let status = self.status(task, task.epoch(), 0.0)?;
        let (position, outbox) = (task.progress().position.0, task.waiting()?);
        Ok((ClosedShard { position, uploaded, outbox }, status))
    }

    /// The shard is somebody else's already: nothing is said, and what is on this disk stays for later.
    pub(super) fn abandon(&mut self, task: ShardTask) -> ThreadEnd {
        let position = task.progress().position.0;
        if let Err(error) = task.close() {
            tracing::debug!(shard = %self.identity, reason = error.reason, "abandoned shard not closed properly");
        }
        tracing::info!(shard = %self.identity, position, "shard abandoned");
        ThreadEnd::Stopped
    }

    /// Publishes what this generation owns and has not published: nobody else ever will.
    fn drain(&mut self, state: &ControlState, shutdown: &Shutdown) -> Result<(), ShardError> {
        let (generation, partition) = (self.identity.generation, self.identity.partition);
        let windows = state.output_windows(generation, partition);
        let Some(until) = windows.last().and_then(|window| window.until) else { return Ok(()) };
        let board = self.context.control.board();
        let said = board.get(generation, partition);
        if said.is_some_and(|status| status.published >= until.0 && status.position >= until.0) {
            return Ok(());
        }
        let mut task = self.open(state, shutdown)?;
        let permit = Permit { windows, muted_at: None };
        let orders = Orders { hold_at: Some(until), checkpoints: Vec::new(), permit };
        while !self.interrupted(shutdown) && task.published()? < until {
            self.lease.beat();
            self.lease.check()?;
            task.step(&orders)?;
        }
        if !self.interrupted(shutdown) {
            // Whoever has to delete the shard after us need not do this again.
            let status = self.status(&task, task.epoch(), 0.0)?;
            self.context.status_reporter.write(&self.lease, Some(&status), None)?;
        }
        task.close()
    }

    fn interrupted(&self, shutdown: &Shutdown) -> bool {
        self.lease.is_over() || self.leaving(shutdown).is_some()
    }

    /// Removes the shard for ever. What it says of itself goes last, so that whatever interrupts this, the
    /// next owner sees that there is something left to do.
    pub(super) fn delete(
        &mut self,
        state: &ControlState,
        shutdown: &Shutdown,
    ) -> Result<ThreadEnd, ShardError> {
        match self.drain(state, shutdown) {
            Err(error) if matches!(error.remedy, Remedy::Retry | Remedy::StandDown) => {
                return Err(error);
            }
            // It will not get better, and the shard is to go.
            Err(error) => {
                tracing::error!(shard = %self.identity, reason = error.reason, "shard deleted before all of its outputs were published");
            }
            Ok(()) if self.interrupted(shutdown) => return Ok(ThreadEnd::Stopped),
            Ok(()) => {}
        }
        self.lease.confirm()?;
        if let Some(checkpoint_store) = &self.context.checkpoint_store {
            let removed =
                self.context.runtime.block_on(checkpoint_store.store().remove(&self.identity));
            match removed {
                Err(error) if error.remedy() == Remedy::Retry => return Err(error.into()),
                Err(error) => {
                    let reason = ShardError::from(error).reason;
                    tracing::error!(shard = %self.identity, reason, "the shard's checkpoints stay in the store");
                }
                Ok(()) => {}
            }
        }
        remove_local(&self.context.data, &self.identity)?;
        self.context.status_reporter.write(&self.lease, None, None)?;
        tracing::info!(shard = %self.identity, "shard deleted");
        Ok(ThreadEnd::Deleted)
    }
}
