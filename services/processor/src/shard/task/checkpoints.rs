//! The checkpoints that a shard takes while it runs: for replays, and for the store.

use std::time::Instant;

use headwater_control::{CheckpointAt, CheckpointDuty};
use headwater_proto::status::v1::{Checkpoint, ShardStatus};
use headwater_service::Shutdown;
use headwater_state::layout;
use headwater_types::Offset;

use super::{Orders, ShardTask};
use crate::{
    checkpoint::{
        replay::{ReplayCheckpoint, file_url},
        upload::{UploadPurpose, UploadRequest},
    },
    error::ShardError,
};

impl ShardTask {
    /// The ordered checkpoints that have not been taken.
    pub(super) fn missing_checkpoints<'a>(
        &self,
        orders: &'a Orders,
    ) -> impl Iterator<Item = &'a CheckpointDuty> {
        orders.checkpoints.iter().filter(|duty| !self.checkpoints.contains_key(duty.id.as_str()))
    }

    /// A checkpoint that is to be taken at this very position.
    pub(super) fn due_checkpoint<'a>(&self, orders: &'a Orders) -> Option<&'a CheckpointDuty> {
        let position = self.shard.position();
        self.missing_checkpoints(orders).find(|duty| match duty.at {
            CheckpointAt::Now => true,
            CheckpointAt::Exactly(at) => at == position,
        })
    }

    /// Takes the checkpoints that are due and removes those that are no longer ordered. Returns
    /// whether there were any.
    pub(super) fn take_and_remove_checkpoints(
        &mut self,
        orders: &Orders,
    ) -> Result<bool, ShardError> {
        let mut changed = false;
        while let Some(duty) = self.due_checkpoint(orders) {
            self.commit()?;
            let directory = self.setup.checkpoint_dir(duty.id.as_str());
            let progress = self.shard.db().checkpoint(&directory)?;
            tracing::info!(
                shard = %self.setup.identity,
                checkpoint = %duty.id,
                position = progress.position.0,
                "checkpoint taken"
            );
            // Without a store all processes share this disk, and find the checkpoint here.
            let location = self.uploader.is_none().then(|| file_url(&directory));
            let checkpoint = ReplayCheckpoint { position: progress.position, location };
            self.checkpoints.insert(duty.id.to_string(), checkpoint);
            changed = true;
        }
        let ordered = |id: &str| orders.checkpoints.iter().any(|duty| duty.id.as_str() == id);
        while let Some(id) = self.checkpoints.keys().find(|id| !ordered(id)).cloned() {
            layout::remove(&self.setup.checkpoint_dir(&id))?;
            self.checkpoints.remove(&id);
            changed = true;
        }
        Ok(changed)
    }

    /// Takes over the checkpoints that the former owner has stored for a replay that goes on.
    pub(crate) fn adopt_checkpoints(&mut self, former: &ShardStatus) -> Result<(), ShardError> {
        let Some(uploader) = &self.uploader else { return Ok(()) };
        for Checkpoint { replay_id, position, location } in &former.checkpoints {
            if !uploader.store().has(location) {
                continue;
            }
            let position = Offset(*position);
            if uploader.manifest(location)?.is_none_or(|manifest| manifest.position() != position) {
                continue;
            }
            let own = self.checkpoints.get(replay_id);
            if own.is_some_and(|own| own.position != position) {
                // The fence is at the former owner's checkpoint.
                layout::remove(&self.setup.checkpoint_dir(replay_id))?;
            }
            let checkpoint = ReplayCheckpoint { position, location: Some(location.clone()) };
            self.checkpoints.insert(replay_id.clone(), checkpoint);
        }
        Ok(())
    }

    /// Begins an upload if one is due. Returns whether a checkpoint for a replay has arrived in the
    /// store.
    pub(super) fn upload_checkpoints(&mut self, orders: &Orders) -> Result<bool, ShardError> {
        let arrived = self.collect_upload()?;
        let Some(uploader) = &mut self.uploader else { return Ok(arrived) };
        let Some(epoch) = self.publisher.epoch() else { return Ok(arrived) };
        if uploader.is_running() || uploader.is_backing_off() || !self.setup.lease.may_write() {
            return Ok(arrived);
        }
        let position = self.shard.progress().position;
        let waiting = self.checkpoints.iter().find(|(_, checkpoint)| checkpoint.location.is_none());
        let (purpose, directory, position) = if let Some((id, checkpoint)) = waiting {
            let directory = self.setup.checkpoint_dir(id);
            (UploadPurpose::Replay(id.clone()), directory, checkpoint.position)
        } else if uploader.is_due(position) && position > self.setup.floor {
            let directory = uploader.checkpoint_dir(position);
            let progress = self.shard.db().checkpoint(&directory)?;
            (UploadPurpose::HandOver, directory, progress.position)
        } else {
            return Ok(arrived);
        };
        let mut replays: Vec<_> = self.checkpoints.keys().cloned().collect();
        replays.extend(orders.checkpoints.iter().map(|duty| duty.id.to_string()));
        uploader.begin(UploadRequest { purpose, directory, position, epoch, replays });
        Ok(arrived)
    }

    /// Notes where the checkpoint is that has arrived in the store. Returns whether one has.
    fn collect_upload(&mut self) -> Result<bool, ShardError> {
        let Some(uploader) = &mut self.uploader else { return Ok(false) };
        let Some((id, manifest)) = uploader.take_finished()? else { return Ok(false) };
        let Some(checkpoint) = self.checkpoints.get_mut(&id) else { return Ok(false) };
        checkpoint.location = Some(manifest.url().to_owned());
        Ok(true)
    }

    /// Stores a checkpoint of everything that is committed, if there is time for that before the
    /// deadline. Returns whether the store has it.
    pub(crate) fn upload_last_checkpoint(
        &mut self,
        until: Instant,
        shutdown: &Shutdown,
    ) -> Result<bool, ShardError> {
        loop {
            self.collect_upload()?;
            match &self.uploader {
                None => return Ok(false),
                Some(uploader) if uploader.is_running() => {
                    if Instant::now() >= until || !uploader.wait_briefly(shutdown) {
                        return Ok(false);
                    }
                }
                Some(_) => break,
            }
        }
        let Some(uploader) = &mut self.uploader else { return Ok(false) };
        let position = self.shard.progress().position;
        if uploader.has_stored(position) {
            return Ok(true);
        }
        let Some(epoch) = self.publisher.epoch() else { return Ok(false) };
        if position <= self.setup.floor || Instant::now() >= until {
            return Ok(false);
        }
        let directory = uploader.checkpoint_dir(position);
        let position = self.shard.db().checkpoint(&directory)?.position;
        let replays = self.checkpoints.keys().cloned().collect();
        let purpose = UploadPurpose::HandOver;
        let request = UploadRequest { purpose, directory, position, epoch, replays };
        Ok(uploader.upload_now(&request, until, shutdown))
    }

    /// The checkpoints that others can find.
    pub(crate) fn visible_checkpoints(&self) -> Vec<Checkpoint> {
        let visible = |(id, checkpoint): (&String, &ReplayCheckpoint)| {
            Some(Checkpoint {
                replay_id: id.clone(),
                position: checkpoint.position.0,
                location: checkpoint.location.clone()?,
            })
        };
        self.checkpoints.iter().filter_map(visible).collect()
    }
}
