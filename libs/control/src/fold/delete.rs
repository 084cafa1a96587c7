//! Streams and views that are deleted. Their records stay, and so do their generations and replays.

use headwater_proto::control::v1 as proto;
use headwater_types::Name;

use super::{Refusal, name};
use crate::{ControlState, Deleted, Effect, Role};

impl ControlState {
    pub(super) fn view_deleted(
        &mut self,
        event: &proto::ViewDeleted,
        at_ms: i64,
        actor: &str,
    ) -> Result<Option<Effect>, Refusal> {
        let name = name(&event.view)?;
        let view = self.view(name.as_str())?;
        if let Some(open) = &view.open_replay {
            return Err(format!("replay {open} of view {name} is open"));
        }
        let first = view.first_ordinal;
        let sql = self.known(view.serving)?.view_sql.clone();
        for entry in self.generations.values_mut() {
            if entry.view != name || entry.ordinal < first {
                continue;
            }
            match entry.role {
                Role::Serving | Role::Replaying | Role::Retained => {
                    entry.role = Role::Ended;
                    entry.retain_until_ms = None;
                }
                Role::Ended | Role::Retired => {}
            }
        }
        self.views.remove(&name);
        self.deleted_views.insert(name.clone(), deleted(at_ms, sql, &event.reason, actor));
        Ok(Some(Effect::ViewDeleted { view: name }))
    }

    pub(super) fn stream_deleted(
        &mut self,
        event: &proto::StreamDeleted,
        at_ms: i64,
        actor: &str,
    ) -> Result<Option<Effect>, Refusal> {
        let name = name(&event.stream)?;
        let Some(stream) = self.streams.get(&name) else {
            return Err(format!("stream {name} does not exist"));
        };
        if let Some((view, _)) = self.views.iter().find(|(_, view)| view.stream == name) {
            return Err(format!("view {view} reads stream {name}"));
        }
        let deleted = deleted(at_ms, stream.sql.clone(), &event.reason, actor);
        self.streams.remove(&name);
        self.deleted_streams.insert(name.clone(), deleted);
        Ok(Some(Effect::StreamDeleted { stream: name }))
    }

    /// How many replays there were of all views that ever had this name.
    pub(super) fn replays_named(&self, view: &Name) -> u32 {
        let named = self.replays.values().filter(|replay| replay.view == *view).count();
        u32::try_from(named).unwrap_or(u32::MAX)
    }
}

fn deleted(at_ms: i64, sql: String, reason: &str, actor: &str) -> Deleted {
    Deleted { at_ms, sql, reason: reason.to_owned(), actor: actor.to_owned() }
}
