//! How a shard's life here ends: handed over, abandoned, or deleted.

use std::time::Instant;

use headwater_control::ControlState;
use headwater_service::Shutdown;
use headwater_types::Remedy;

use super::{Closed, End, Permit, Trouble, Work, Worker, remove_local};
use crate::work::Orders;

impl Worker {
    /// Commits, leaves a checkpoint in the store and closes the shard, by then. What cannot be done in time
    /// the next owner does: it has the log.
    pub(super) fn hand_over(&mut self, mut work: Work, until: Instant, shutdown: &Shutdown) -> End {
        let begun = Instant::now();
        let closed = self.try_hand_over(&mut work, until, shutdown);
        if let Err(trouble) = work.close() {
            tracing::warn!(shard = %self.identity, reason = trouble.reason, "shard not closed properly; the log has what is missing");
        }
        match closed {
            Ok((closed, status)) => {
                let written = self.shared.reports.write(&self.lease, Some(&status), Some(until));
                if let Err(trouble) = written {
                    tracing::info!(shard = %self.identity, reason = trouble.reason, "last status not written");
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
            Err(trouble) => {
                tracing::warn!(shard = %self.identity, reason = trouble.reason, "shard closed without a proper hand-over");
            }
        }
        End::Stopped
    }

    fn try_hand_over(
        &mut self,
        work: &mut Work,
        until: Instant,
        shutdown: &Shutdown,
    ) -> Result<(Closed, headwater_proto::status::v1::ShardStatus), Trouble> {
        work.commit()?;
        // Time is left for closing the database and for leaving the group.
        let upload_until = until - self.shared.config.hand_over_timeout / 4;
        if let Err(trouble) = self.lease.check()
            && trouble.remedy == Remedy::StandDown
        {
            return Err(trouble);
        }
        let uploaded = work.upload_last(upload_until, shutdown)?;
        self.lease.check()?;
        self.group.committed(self.identity.partition, work.progress().position);
        let status = self.status(work, work.epoch(), 0.0)?;
        let (position, outbox) = (work.progress().position.0, work.waiting()?);
        Ok((Closed { position, uploaded, outbox }, status))
    }

    /// The shard is somebody else's already: nothing is said, and what is on this disk stays for later.
    pub(super) fn abandon(&mut self, work: Work) -> End {
        let position = work.progress().position.0;
        if let Err(trouble) = work.close() {
            tracing::debug!(shard = %self.identity, reason = trouble.reason, "abandoned shard not closed properly");
        }
        tracing::info!(shard = %self.identity, position, "shard abandoned");
        End::Stopped
    }

    /// Publishes what this generation owns and has not published: nobody else ever will.
    fn drain(&mut self, state: &ControlState, shutdown: &Shutdown) -> Result<(), Trouble> {
        let (generation, partition) = (self.identity.generation, self.identity.partition);
        let windows = state.output_windows(generation, partition);
        let Some(until) = windows.last().and_then(|window| window.until) else { return Ok(()) };
        let board = self.shared.control.board();
        let said = board.get(generation, partition);
        if said.is_some_and(|status| status.published >= until.0 && status.position >= until.0) {
            return Ok(());
        }
        let mut work = self.open(state, shutdown)?;
        let permit = Permit { windows, muted_at: None };
        let orders = Orders { hold_at: Some(until), checkpoints: Vec::new(), permit };
        while !self.interrupted(shutdown) && work.published()? < until {
            self.lease.beat();
            self.lease.check()?;
            work.step(&orders)?;
        }
        if !self.interrupted(shutdown) {
            // Whoever has to delete the shard after us need not do this again.
            let status = self.status(&work, work.epoch(), 0.0)?;
            self.shared.reports.write(&self.lease, Some(&status), None)?;
        }
        work.close()
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
    ) -> Result<End, Trouble> {
        match self.drain(state, shutdown) {
            Err(trouble) if matches!(trouble.remedy, Remedy::Retry | Remedy::StandDown) => {
                return Err(trouble);
            }
            // It will not get better, and the shard is to go.
            Err(trouble) => {
                tracing::error!(shard = %self.identity, reason = trouble.reason, "shard deleted before all of its outputs were published");
            }
            Ok(()) if self.interrupted(shutdown) => return Ok(End::Stopped),
            Ok(()) => {}
        }
        self.lease.confirm()?;
        if let Some(uploads) = &self.shared.uploads {
            let removed = self.shared.runtime.block_on(uploads.store().remove(&self.identity));
            match removed {
                Err(error) if error.remedy() == Remedy::Retry => return Err(error.into()),
                Err(error) => {
                    let reason = Trouble::from(error).reason;
                    tracing::error!(shard = %self.identity, reason, "the shard's checkpoints stay in the store");
                }
                Ok(()) => {}
            }
        }
        remove_local(&self.shared.data, &self.identity)?;
        self.shared.reports.write(&self.lease, None, None)?;
        tracing::info!(shard = %self.identity, "shard deleted");
        Ok(End::Deleted)
    }
}
