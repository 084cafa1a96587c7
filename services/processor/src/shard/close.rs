//! The end of a shard on this process: handed over, abandoned, or deleted.

use std::time::Instant;

use headwater_control::ControlState;
use headwater_proto::status::v1::ShardStatus;
use headwater_service::Shutdown;
use headwater_types::{Offset, Remedy};

use crate::{
    assignment::lease::ClosedShard,
    checkpoint::local::remove_local,
    error::ShardError,
    publish::outbox::Permit,
    shard::{
        state::ShardState,
        task::{Orders, ShardTask},
        thread::{ShardThread, ThreadEnd},
    },
};

impl ShardThread {
    /// Commits, stores a checkpoint, closes the shard and reports its last status, by the deadline.
    /// The next owner does what is left: the log has it all.
    pub(super) fn hand_over(
        &mut self,
        mut task: ShardTask,
        until: Instant,
        shutdown: &Shutdown,
    ) -> ThreadEnd {
        self.set_state(ShardState::HandingOver);
        let (begun, shard) = (Instant::now(), self.identity);
        let closed = self.try_hand_over(&mut task, until, shutdown);
        if let Err(error) = task.close() {
            tracing::warn!(%shard, reason = error.reason, "shard not closed properly; the log has what is missing");
        }
        match closed {
            Ok((closed, status)) => {
                let reporter = &self.context.status_reporter;
                let written = reporter.write_now(&self.lease, Some(&status), Some(until));
                if let Err(error) = written {
                    tracing::info!(%shard, reason = error.reason, "last status not written");
                }
                self.lease.set_closed(closed);
                tracing::info!(
                    %shard,
                    position = closed.position,
                    uploaded = closed.uploaded,
                    outbox = closed.outbox,
                    seconds = begun.elapsed().as_secs_f64(),
                    "shard handed over"
                );
            }
            Err(error) => {
                tracing::warn!(%shard, reason = error.reason, "shard closed without a proper hand-over");
            }
        }
        ThreadEnd::Stopped
    }

    fn try_hand_over(
        &mut self,
        task: &mut ShardTask,
        until: Instant,
        shutdown: &Shutdown,
    ) -> Result<(ClosedShard, ShardStatus), ShardError> {
        task.commit()?;
        // The rest of the time is for closing the database and for leaving the group.
        let upload_until = until - self.context.config.hand_over_timeout / 4;
        if let Err(error) = self.lease.check()
            && error.remedy == Remedy::StandDown
        {
            return Err(error);
        }
        let uploaded = task.upload_last_checkpoint(upload_until, shutdown)?;
        self.lease.check()?;
        self.group.note_committed(self.identity.partition, task.progress().position);
        let status = self.status(task, task.epoch(), 0.0)?;
        let (position, outbox) = (task.progress().position.0, task.waiting()?);
        Ok((ClosedShard { position, uploaded, outbox }, status))
    }

    /// Closes a shard that another process owns already. Nothing is reported, and the copy on this
    /// disk stays: the shard may come back.
    pub(super) fn abandon(&mut self, task: ShardTask) -> ThreadEnd {
        let (shard, position) = (self.identity, task.progress().position.0);
        if let Err(error) = task.close() {
            tracing::debug!(%shard, reason = error.reason, "abandoned shard not closed properly");
        }
        tracing::info!(%shard, position, "shard abandoned");
        ThreadEnd::Stopped
    }

    /// Publishes what this generation owns and has not published: no other generation ever will. A
    /// generation that served until its view was deleted owns what it has committed, and reads
    /// nothing more. A new owner reads again what a former owner had committed beyond its copy.
    fn drain(&mut self, control: &ControlState, shutdown: &Shutdown) -> Result<(), ShardError> {
        let (generation, partition) = (self.identity.generation, self.identity.partition);
        let windows = control.output_windows(generation, partition);
        let Some(window) = windows.last().copied() else { return Ok(()) };
        let board = self.context.control.board();
        let last = board.get(generation, partition);
        if let (Some(until), Some(last)) = (window.until, last)
            && last.published >= until.0
            && last.position >= until.0
        {
            return Ok(());
        }
        let reported = last.map_or(Offset::ZERO, |last| Offset(last.position));
        let mut task = self.open(control, shutdown)?;
        let until = window.until.unwrap_or(task.progress().position.max(reported));
        let permit = Permit { windows, muted_at: None };
        let orders = Orders { hold_at: Some(until), checkpoints: Vec::new(), permit };
        while !self.is_released(shutdown) && task.published()? < until {
            self.lease.heartbeat();
            self.lease.check()?;
            task.step(&orders)?;
        }
        if !self.is_released(shutdown) {
            // If another process has to delete the shard after all, it need not do this again.
            let status = self.status(&task, task.epoch(), 0.0)?;
            self.context.status_reporter.write_now(&self.lease, Some(&status), None)?;
        }
        task.close()
    }

    fn is_released(&self, shutdown: &Shutdown) -> bool {
        self.lease.is_over() || self.release_deadline(shutdown).is_some()
    }

    /// Removes the shard for ever. Its status goes last: if this is interrupted, the next owner
    /// sees that something is left to do.
    pub(super) fn delete(
        &mut self,
        control: &ControlState,
        shutdown: &Shutdown,
    ) -> Result<ThreadEnd, ShardError> {
        self.set_state(ShardState::Deleting);
        let shard = self.identity;
        match self.drain(control, shutdown) {
            // A store that refuses access may hold the only copy: a person can mend that.
            Err(error)
                if error.from_store
                    || matches!(error.remedy, Remedy::Retry | Remedy::StandDown) =>
            {
                return Err(error);
            }
            // Trying again would not help, and the shard has to go.
            Err(error) => {
                tracing::error!(%shard, reason = error.reason, "shard deleted before all of its outputs were published");
            }
            Ok(()) if self.is_released(shutdown) => return Ok(ThreadEnd::Stopped),
            Ok(()) => {}
        }
        self.lease.confirm()?;
        if let Some(store) = &self.context.checkpoint_store {
            let removed = self.context.runtime.block_on(store.store().remove(&shard));
            match removed {
                Err(error) if error.remedy() == Remedy::Retry => return Err(error.into()),
                Err(error) => {
                    let reason = ShardError::from(error).reason;
                    tracing::error!(%shard, reason, "the shard's checkpoints stay in the store");
                }
                Ok(()) => {}
            }
        }
        remove_local(&self.context.data, &shard)?;
        self.context.status_reporter.write_now(&self.lease, None, None)?;
        tracing::info!(%shard, "shard deleted");
        Ok(ThreadEnd::Deleted)
    }
}
