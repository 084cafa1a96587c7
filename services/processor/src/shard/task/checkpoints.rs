//! Checkpoints of a shard at work: for replays, and for the store.

use std::{collections::BTreeMap, fs, path::Path, time::Instant};

use headwater_control::{CheckpointAt, CheckpointDuty};
use headwater_proto::status::v1::{Checkpoint, ShardStatus};
use headwater_service::Shutdown;
use headwater_state::{ShardReader, layout};
use headwater_types::{Offset, Remedy};

use super::{Orders, ShardTask};
use crate::{
    checkpoint::{
        setup::ShardSetup,
        upload::{UploadPurpose, UploadRequest},
    },
    error::ShardError,
};

/// A checkpoint for a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplayCheckpoint {
    pub(crate) position: Offset,
    /// Where others find it; `None` until it is in the store.
    pub(crate) location: Option<String>,
}

impl ShardTask {
    pub(super) fn wanted<'a>(
        &self,
        orders: &'a Orders,
    ) -> impl Iterator<Item = &'a CheckpointDuty> {
        orders.checkpoints.iter().filter(|duty| !self.checkpoints.contains_key(duty.id.as_str()))
    }

    /// A checkpoint that is to be taken at this very position.
    pub(super) fn due<'a>(&self, orders: &'a Orders) -> Option<&'a CheckpointDuty> {
        let position = self.shard.position();
        self.wanted(orders).find(|duty| match duty.at {
            CheckpointAt::Now => true,
            CheckpointAt::Exactly(at) => at == position,
        })
    }

    /// Takes the checkpoints that are due and removes those that nobody needs.
    pub(super) fn keep_checkpoints(&mut self, orders: &Orders) -> Result<bool, ShardError> {
        let mut happened = false;
        while let Some(duty) = self.due(orders) {
            self.commit()?;
            let directory = self.setup.checkpoint_dir(duty.id.as_str());
            let progress = self.shard.db().checkpoint(&directory)?;
            tracing::info!(
                shard = %self.setup.identity,
                checkpoint = %duty.id,
                position = progress.position.0,
                "checkpoint taken"
            );
            // Without a store it lies where all that need it can see it.
            let location = self.uploader.is_none().then(|| file_url(&directory));
            let taken = ReplayCheckpoint { position: progress.position, location };
            self.checkpoints.insert(duty.id.to_string(), taken);
            happened = true;
        }
        let needed = |id: &str| orders.checkpoints.iter().any(|duty| duty.id.as_str() == id);
        while let Some(id) = self.checkpoints.keys().find(|id| !needed(id)).cloned() {
            layout::remove(&self.setup.checkpoint_dir(&id))?;
            self.checkpoints.remove(&id);
            happened = true;
        }
        Ok(happened)
    }

    /// What the former owner has left in the store for a replay that goes on.
    pub(crate) fn inherit(&mut self, former: &ShardStatus) -> Result<(), ShardError> {
        let Some(uploader) = &self.uploader else { return Ok(()) };
        for Checkpoint { replay_id, position, location } in &former.checkpoints {
            if !uploader.store().has(location) {
                continue;
            }
            let position = Offset(*position);
            if uploader.manifest(location)?.is_none_or(|manifest| manifest.position() != position) {
                continue;
            }
            let present = self.checkpoints.get(replay_id);
            if present.is_some_and(|present| present.position != position) {
                // The fence is where the other one was taken.
                layout::remove(&self.setup.checkpoint_dir(replay_id))?;
            }
            let taken = ReplayCheckpoint { position, location: Some(location.clone()) };
            self.checkpoints.insert(replay_id.clone(), taken);
        }
        Ok(())
    }

    /// Moves checkpoints to the store, in the background. Returns whether one arrived that others wait for.
    pub(super) fn upload(&mut self, orders: &Orders) -> Result<bool, ShardError> {
        let happened = self.collect()?;
        let Some(uploader) = &mut self.uploader else { return Ok(happened) };
        let Some(epoch) = self.publisher.epoch() else { return Ok(happened) };
        if uploader.is_running() || uploader.rests() || !self.setup.lease.allows() {
            return Ok(happened);
        }
        let position = self.shard.progress().position;
        let waiting = self.checkpoints.iter().find(|(_, taken)| taken.location.is_none());
        let (purpose, directory, position) = if let Some((id, taken)) = waiting {
            (UploadPurpose::Replay(id.clone()), self.setup.checkpoint_dir(id), taken.position)
        } else if uploader.is_due(position) && position > self.setup.floor {
            let directory = uploader.place(position);
            let progress = self.shard.db().checkpoint(&directory)?;
            (UploadPurpose::HandOver, directory, progress.position)
        } else {
            return Ok(happened);
        };
        let mut replays: Vec<_> = self.checkpoints.keys().cloned().collect();
        replays.extend(orders.checkpoints.iter().map(|duty| duty.id.to_string()));
        uploader.begin(UploadRequest { purpose, directory, position, epoch, replays });
        Ok(happened)
    }

    /// Notes what has arrived in the store.
    fn collect(&mut self) -> Result<bool, ShardError> {
        let Some(uploader) = &mut self.uploader else { return Ok(false) };
        let Some((id, manifest)) = uploader.finished()? else { return Ok(false) };
        let Some(taken) = self.checkpoints.get_mut(&id) else { return Ok(false) };
        taken.location = Some(manifest.url().to_owned());
        Ok(true)
    }

    /// Sees to it that the store has all that is committed, as far as there is time until then. Returns
    /// whether it has.
    pub(crate) fn upload_last(
        &mut self,
        until: Instant,
        shutdown: &Shutdown,
    ) -> Result<bool, ShardError> {
        loop {
            self.collect()?;
            match &self.uploader {
                None => return Ok(false),
                Some(uploader) if uploader.is_running() => {
                    if Instant::now() >= until || !uploader.linger(shutdown) {
                        return Ok(false);
                    }
                }
                Some(_) => break,
            }
        }
        let Some(uploader) = &mut self.uploader else { return Ok(false) };
        let position = self.shard.progress().position;
        if uploader.has(position) {
            return Ok(true);
        }
        let Some(epoch) = self.publisher.epoch() else { return Ok(false) };
        if position <= self.setup.floor || Instant::now() >= until {
            return Ok(false);
        }
        let directory = uploader.place(position);
        let progress = self.shard.db().checkpoint(&directory)?;
        let replays = self.checkpoints.keys().cloned().collect();
        let (purpose, position) = (UploadPurpose::HandOver, progress.position);
        let upload = UploadRequest { purpose, directory, position, epoch, replays };
        Ok(uploader.last(&upload, until, shutdown))
    }

    /// Those that others can find.
    pub(crate) fn checkpoints(&self) -> Vec<Checkpoint> {
        let told = |(id, taken): (&String, &ReplayCheckpoint)| {
            Some(Checkpoint {
                replay_id: id.clone(),
                position: taken.position.0,
                location: taken.location.clone()?,
            })
        };
        self.checkpoints.iter().filter_map(told).collect()
    }
}

/// The checkpoints that are there since an earlier life.
pub(super) fn find_checkpoints(
    setup: &ShardSetup,
) -> Result<BTreeMap<String, ReplayCheckpoint>, ShardError> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(setup.checkpoint_dir("").as_path()) else { return Ok(found) };
    for entry in entries.flatten() {
        let Ok(id) = entry.file_name().into_string() else { continue };
        match ShardReader::open_checkpoint_with(&entry.path(), &setup.identity, &setup.options) {
            Ok(reader) => {
                let location = setup.checkpoint_store.is_none().then(|| file_url(&entry.path()));
                found.insert(
                    id,
                    ReplayCheckpoint { position: reader.progress().position, location },
                );
            }
            Err(error) if error.remedy() == Remedy::Retry && !is_missing(&error) => {
                return Err(error.into());
            }
            // One that a crash left half done, or damage: another can be taken, this one cannot be used.
            Err(error) => {
                tracing::info!(path = %entry.path().display(), %error, "removing what is no checkpoint");
                layout::remove(&entry.path())?;
            }
        }
    }
    Ok(found)
}

fn is_missing(error: &headwater_state::Error) -> bool {
    matches!(error, headwater_state::Error::Missing { .. })
}

fn file_url(directory: &Path) -> String {
    format!("file://{}", directory.display())
}
