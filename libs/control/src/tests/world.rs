//! A small model of shards, operator and coordinator around one control topic.

use std::collections::BTreeMap;

use headwater_proto::{
    control::v1::{HoldBefore, Phase, ReplayEnded, SwapCancelled},
    status::v1::{Checkpoint, ShardStatus},
};

use super::*;
use crate::{
    Action, CheckpointAt, CheckpointId, LogEnds, Reach, ReplayEntry, ShardDuty, StatusBoard,
    SwapId, decide,
};

pub(super) struct Shard {
    /// The part of the control topic that this shard's processor has read.
    view: ControlState,
    pub(super) position: u64,
    checkpoints: BTreeMap<CheckpointId, u64>,
    muted: Option<(SwapId, u64)>,
}

pub(super) struct World {
    pub(super) control: Vec<ControlRecord>,
    /// The fold of the whole topic.
    pub(super) truth: ControlState,
    statuses: Vec<ShardStatus>,
    pub(super) ends: [u64; PARTITIONS as usize],
    pub(super) shards: BTreeMap<(GenerationId, PartitionId), Shard>,
    /// The state that the coordinator has folded.
    state: ControlState,
    board: StatusBoard,
    read: usize,
    pub(super) now_ms: i64,
    next_generation: u64,
    promote: bool,
    /// The phase before which every replay is held.
    hold: HoldBefore,
    pub(super) diffs: usize,
}

impl World {
    pub(super) fn new(promote: bool) -> Self {
        Self::holding(promote, HoldBefore::Unspecified)
    }

    /// A world whose replays are held before a phase.
    pub(super) fn holding(promote: bool, hold: HoldBefore) -> Self {
        let mut world = Self {
            control: Vec::new(),
            truth: ControlState::default(),
            statuses: Vec::new(),
            ends: [0; PARTITIONS as usize],
            shards: BTreeMap::new(),
            state: ControlState::default(),
            board: StatusBoard::default(),
            read: 0,
            now_ms: 0,
            next_generation: 1,
            promote,
            hold,
            diffs: 0,
        };
        world.append(record(stream_declared()));
        world.append(record(view_created(0)));
        world
    }

    pub(super) fn append(&mut self, record: ControlRecord) {
        self.truth.fold(Offset(self.control.len() as u64), &record).unwrap();
        check_laws(&self.truth);
        if let Some(Event::Swapped(swap)) = &record.event {
            for fence in &swap.fence {
                let to = &self.shards[&(swap.to.parse().unwrap(), PartitionId(fence.partition))];
                assert!(
                    to.position >= fence.offset,
                    "{} has not reached the fence {fence:?}",
                    swap.to
                );
            }
        }
        self.control.push(record);
        for entry in self.truth.generations().values() {
            for (&partition, floor) in &entry.floor {
                self.shards.entry((entry.id, partition)).or_insert_with(|| Shard {
                    view: ControlState::default(),
                    position: floor.0,
                    checkpoints: BTreeMap::new(),
                    muted: None,
                });
            }
        }
        self.state = self.truth.clone();
    }

    pub(super) fn keys(&self) -> Vec<(GenerationId, PartitionId)> {
        self.shards.keys().copied().collect()
    }

    pub(super) fn see(&mut self, key: (GenerationId, PartitionId), records: usize) {
        let shard = self.shards.get_mut(&key).unwrap();
        let from = shard.view.position().0 as usize;
        for (offset, record) in self.control.iter().enumerate().skip(from).take(records) {
            shard.view.fold(Offset(offset as u64), record).unwrap();
        }
    }

    /// A processor carries out its duty by the records that it has read, and reads up to `records`
    /// events.
    pub(super) fn work(&mut self, key: (GenerationId, PartitionId), records: u64) {
        let end = self.ends[key.1.0 as usize];
        let shard = self.shards.get_mut(&key).unwrap();
        let ShardDuty::Run { hold_at, checkpoints, muted_for } =
            shard.view.shard_duty(key.0, key.1)
        else {
            return;
        };
        shard.checkpoints.retain(|id, _| checkpoints.iter().any(|duty| duty.id == *id));
        let mut limit = end.min(shard.position + records);
        for duty in checkpoints {
            match duty.at {
                _ if shard.checkpoints.contains_key(&duty.id) => {}
                CheckpointAt::Now => {
                    shard.checkpoints.insert(duty.id, shard.position);
                }
                CheckpointAt::Exactly(Offset(fence)) if shard.position == fence => {
                    shard.checkpoints.insert(duty.id, fence);
                }
                CheckpointAt::Exactly(Offset(fence)) if shard.position < fence => {
                    limit = limit.min(fence)
                }
                CheckpointAt::Exactly(_) => {}
            }
        }
        match muted_for {
            Some(swap) if shard.muted.as_ref().is_none_or(|(muted, _)| *muted != swap) => {
                shard.muted = Some((swap, shard.position));
            }
            Some(_) => {}
            None => shard.muted = None,
        }
        limit = limit.min(hold_at.map_or(u64::MAX, |hold| hold.0));
        shard.position = shard.position.max(limit);
    }

    pub(super) fn report(&mut self, key: (GenerationId, PartitionId)) {
        let shard = &self.shards[&key];
        let checkpoint = |(id, position): (&CheckpointId, &u64)| Checkpoint {
            replay_id: id.to_string(),
            position: *position,
            location: String::new(),
        };
        self.statuses.push(ShardStatus {
            generation: key.0.to_string(),
            partition: key.1.0,
            position: shard.position,
            log_end: self.ends[key.1.0 as usize],
            checkpoints: shard.checkpoints.iter().map(checkpoint).collect(),
            muted_for: shard.muted.as_ref().map(|(swap, _)| swap.to_string()).unwrap_or_default(),
            muted_at: shard.muted.as_ref().map_or(0, |(_, at)| *at),
            ..ShardStatus::default()
        });
    }

    /// The processor restarts: it loses its memory and folds the control topic to its end.
    pub(super) fn restart_shard(&mut self, key: (GenerationId, PartitionId)) {
        let shard = self.shards.get_mut(&key).unwrap();
        shard.view = self.truth.clone();
        shard.muted = None;
    }

    pub(super) fn restart_coordinator(&mut self) {
        let mut state = ControlState::default();
        for (offset, record) in self.control.iter().enumerate() {
            state.fold(Offset(offset as u64), record).unwrap();
        }
        assert_eq!(state, self.truth, "a fold from the start is the state");
        self.state = state;
        self.board = StatusBoard::default();
        self.read = 0;
    }

    pub(super) fn read_statuses(&mut self, count: usize) {
        for status in self.statuses.iter().skip(self.read).take(count) {
            self.board.fold(status.clone());
        }
        self.read = self.statuses.len().min(self.read.saturating_add(count));
    }

    /// Carries out the first action, if any.
    pub(super) fn decide(&mut self) -> bool {
        let mut ends = LogEnds::default();
        for partition in partitions() {
            let end = Offset(self.ends[partition.0 as usize]);
            ends.set(&Name::new("s").unwrap(), partition, Reach { start: Offset::ZERO, end });
        }
        let actions = decide(&self.state, &self.board, &ends, self.now_ms);
        assert_eq!(actions, decide(&self.state, &self.board, &ends, self.now_ms));
        let Some(action) = actions.into_iter().next() else { return false };
        match action {
            Action::Append(record) => self.append(record),
            Action::Diff { replay_id, checkpoint } => {
                let replay = self.truth.replays()[&replay_id].clone();
                self.check_alignment(&replay, &checkpoint);
                self.diffs += 1;
                let verdict = if self.promote { Verdict::Pass } else { Verdict::Inconclusive };
                self.append(record(diff(replay_id.as_str(), verdict)));
            }
        }
        true
    }

    /// Asserts that both sides have a checkpoint at the fence in every partition.
    fn check_alignment(&self, replay: &ReplayEntry, checkpoint: &CheckpointId) {
        for (&partition, fence) in replay.fence.as_ref().unwrap() {
            for side in [replay.old, replay.new] {
                let found = self.shards[&(side, partition)].checkpoints.get(checkpoint);
                assert_eq!(found, Some(&fence.0), "{side} partition {partition} at {checkpoint}");
            }
        }
    }

    /// Runs an operator's verb if the coordinator's API would allow it.
    pub(super) fn operate(&mut self, verb: u32) {
        if verb == 5 {
            return self.delete_or_create();
        }
        let Some(entry) = self.truth.views().get(&view()).cloned() else { return };
        let newest = self.truth.find_replay("v").cloned();
        let number =
            |generation: GenerationId| u64::from_str_radix(&generation.to_string(), 16).unwrap();
        match (verb, newest, &entry.pending_swap) {
            (0, _, None) if entry.open_replay.is_none() => {
                let id = self.truth.next_replay_id(&view());
                let event = replay_started_held(
                    id.as_str(),
                    self.next_generation,
                    number(entry.serving),
                    self.promote,
                    self.hold,
                );
                self.next_generation += 1;
                self.append(record(event));
            }
            // A promote that is held until somebody resumes it.
            (1, Some(replay), None)
                if replay.phase == Phase::Hold
                    && !replay.may_enter(HoldBefore::Commit)
                    && replay.held_before().is_none() =>
            {
                self.append(record(held_before(replay.id.as_str(), HoldBefore::Commit)));
            }
            (1, Some(replay), None)
                if (replay.phase == Phase::Hold && replay.may_enter(HoldBefore::Commit))
                    || (replay.phase == Phase::Undone && entry.open_replay.is_none()) =>
            {
                let (from, to) = (number(entry.serving), number(replay.new));
                self.append(record(swap_requested(
                    replay.id.as_str(),
                    replay.swaps + 1,
                    from,
                    to,
                    false,
                )));
            }
            (2, Some(replay), None)
                if replay.phase == Phase::Retain && entry.previous == Some(replay.old) =>
            {
                let (from, to) = (number(entry.serving), number(replay.old));
                self.append(record(swap_requested(
                    replay.id.as_str(),
                    replay.swaps + 1,
                    from,
                    to,
                    true,
                )));
            }
            (4, Some(replay), None) if replay.held_before().is_some() => {
                self.append(record(resumed(replay.id.as_str())));
                if replay.held_before() == Some(HoldBefore::Commit) {
                    self.operate(1);
                }
            }
            (3, _, Some(swap)) => self.append(record(Event::SwapCancelled(SwapCancelled {
                swap_id: swap.swap_id.to_string(),
                view: "v".into(),
                reason: "abort".into(),
            }))),
            (3, Some(replay), None) if crate::is_open(replay.phase) => {
                self.append(record(Event::ReplayEnded(ReplayEnded {
                    replay_id: replay.id.to_string(),
                    failed: false,
                    reason: "abort".into(),
                })));
            }
            _ => {}
        }
    }

    /// Deletes the view where the coordinator's API allows it, and creates it again if it is
    /// deleted.
    fn delete_or_create(&mut self) {
        match self.truth.views().get(&view()) {
            None => {
                let number = self.next_generation;
                self.next_generation += 1;
                self.append(record(view_created(number)));
            }
            Some(entry) if entry.open_replay.is_none() => self.append(record(view_deleted())),
            Some(_) => {}
        }
    }

    /// Without further failures, input or requests, everything that was started must end.
    pub(super) fn settle(&mut self) {
        for _ in 0..60 {
            for key in self.keys() {
                self.see(key, usize::MAX);
                self.work(key, 1_000_000);
                self.work(key, 1_000_000);
                self.report(key);
            }
            self.read_statuses(usize::MAX);
            while self.decide() {}
        }
    }
}
