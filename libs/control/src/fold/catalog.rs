//! Folds the records about streams, views and their generations.

use std::collections::BTreeMap;

use headwater_proto::control::v1::{self as proto, Phase};
use headwater_types::{Epoch, Offset};

use super::{Refusal, generation_id, name, positions};
use crate::{
    ControlState, Effect, GenerationEntry, Hold, OutputWindow, ReplayEntry, Role, StreamEntry,
    ViewEntry,
};

impl ControlState {
    pub(super) fn stream_declared(
        &mut self,
        event: &proto::StreamDeclared,
        at_ms: i64,
    ) -> Result<Option<Effect>, Refusal> {
        let name = name(&event.name)?;
        ensure!(!event.sql.is_empty(), "stream {name} has no definition");
        let before = self.streams.get(&name);
        ensure!(
            before.is_none_or(|entry| entry.sql != event.sql),
            "stream {name} is declared like this already"
        );
        let extended = before.is_some();
        let declared_at_ms = before.map_or(at_ms, |entry| entry.declared_at_ms);
        self.streams.insert(name.clone(), StreamEntry { sql: event.sql.clone(), declared_at_ms });
        self.deleted_streams.remove(&name);
        Ok(Some(Effect::StreamDeclared { stream: name, extended }))
    }

    pub(super) fn view_created(
        &mut self,
        event: &proto::ViewCreated,
        at_ms: i64,
    ) -> Result<Option<Effect>, Refusal> {
        let mut entry = self.generation(event.generation.as_ref(), Role::Serving, at_ms)?;
        ensure!(!self.views.contains_key(&entry.view), "view {} exists", entry.view);
        for (&partition, &from) in &entry.floor {
            entry.windows.insert(partition, vec![OutputWindow { from, until: None }]);
        }
        let view = entry.view.clone();
        let generation = entry.id;
        self.views.insert(
            view.clone(),
            ViewEntry {
                stream: entry.stream.clone(),
                serving: generation,
                epoch: Epoch(1),
                previous: None,
                open_replay: None,
                pending_swap: None,
                replays: self.replays_named(&view),
                first_ordinal: entry.ordinal,
            },
        );
        self.deleted_views.remove(&view);
        self.generations.insert(generation, entry);
        Ok(Some(Effect::ViewCreated { view, generation }))
    }

    pub(super) fn replay_started(
        &mut self,
        event: &proto::ReplayStarted,
        offset: Offset,
        at_ms: i64,
    ) -> Result<Option<Effect>, Refusal> {
        let entry = self.generation(event.generation.as_ref(), Role::Replaying, at_ms)?;
        let replaces = generation_id(&event.replaces)?;
        let Some(view) = self.views.get(&entry.view) else {
            return Err(format!("view {} does not exist", entry.view));
        };
        let id = self.next_replay_id(&entry.view);
        ensure!(
            event.replay_id == id.as_str(),
            "replay {} is not the view's next, {id}",
            event.replay_id
        );
        ensure!(
            view.stream == entry.stream,
            "view {} reads stream {}, not {}",
            entry.view,
            view.stream,
            entry.stream
        );
        ensure!(
            view.serving == replaces,
            "view {} is served by {}, not {replaces}",
            entry.view,
            view.serving
        );
        if let Some(open) = &view.open_replay {
            return Err(format!("replay {open} of view {} is open", entry.view));
        }
        let serving = self.known(replaces)?;
        ensure!(
            serving.floor.keys().eq(entry.floor.keys()),
            "generation {} has other partitions than {replaces}",
            entry.id
        );
        let replay = ReplayEntry {
            id: id.clone(),
            view: entry.view.clone(),
            old: replaces,
            new: entry.id,
            options: event.options.clone().unwrap_or_default(),
            hold: Hold::Ahead,
            phase: Phase::Replay,
            attempt: 0,
            fence: None,
            diff: None,
            verdict: None,
            swaps: 0,
            swap_fence: None,
            started: offset,
            started_at_ms: at_ms,
            reason: String::new(),
            actor: String::new(),
        };
        let generation = entry.id;
        if let Some(view) = self.views.get_mut(&entry.view) {
            view.open_replay = Some(id.clone());
            view.replays += 1;
        }
        self.generations.insert(generation, entry);
        self.replays.insert(id.clone(), replay);
        Ok(Some(Effect::ReplayStarted { replay: id, generation }))
    }

    pub(super) fn generation_retired(
        &mut self,
        event: &proto::GenerationRetired,
        at_ms: i64,
    ) -> Result<Option<Effect>, Refusal> {
        let id = generation_id(&event.generation)?;
        let entry = self.known(id)?;
        match entry.role {
            Role::Ended => {}
            Role::Retained => ensure!(
                entry.retain_until_ms.is_none_or(|until| until <= at_ms),
                "generation {id} is retained for undo until later"
            ),
            Role::Serving | Role::Replaying | Role::Retired => {
                return Err(format!("generation {id} is {}", entry.role.as_str()));
            }
        }
        let view_name = entry.view.clone();
        let pending = self.view_of(id).and_then(|view| view.pending_swap.as_ref());
        ensure!(pending.is_none_or(|swap| swap.to != id), "generation {id} is about to serve");
        if let Some(entry) = self.generations.get_mut(&id) {
            entry.role = Role::Retired;
            entry.retain_until_ms = None;
        }
        if let Some(view) = self.views.get_mut(&view_name)
            && view.previous == Some(id)
        {
            view.previous = None;
        }
        for replay in self.replays.values_mut() {
            let done = (replay.phase == Phase::Retain && replay.old == id)
                || (replay.phase == Phase::Undone && replay.new == id);
            if done {
                replay.phase = Phase::Retired;
            }
        }
        Ok(None)
    }

    /// A new generation, checked against the catalog.
    fn generation(
        &self,
        message: Option<&proto::Generation>,
        role: Role,
        created_at_ms: i64,
    ) -> Result<GenerationEntry, Refusal> {
        let message = message.ok_or("it has no generation")?;
        let id = generation_id(&message.id)?;
        let (view, stream) = (name(&message.view)?, name(&message.stream)?);
        ensure!(!self.generations.contains_key(&id), "generation {id} was named before");
        let Some(declared) = self.streams.get(&stream) else {
            return Err(format!("stream {stream} does not exist"));
        };
        ensure!(declared.sql == message.stream_sql, "stream {stream} is declared otherwise");
        ensure!(!message.view_sql.is_empty(), "view {view} has no definition");
        ensure!(!message.floor.is_empty(), "generation {id} has no partitions");
        let floor = positions(&message.floor)?;
        ensure!(
            floor.keys().map(|p| p.0 as usize).eq(0..floor.len()),
            "the floor of generation {id} leaves out a partition"
        );
        Ok(GenerationEntry {
            id,
            view,
            stream,
            view_sql: message.view_sql.clone(),
            stream_sql: message.stream_sql.clone(),
            floor,
            engine_version: message.engine_version,
            role,
            created_at_ms,
            retain_until_ms: None,
            ordinal: self.next_ordinal(),
            windows: BTreeMap::new(),
        })
    }
}
