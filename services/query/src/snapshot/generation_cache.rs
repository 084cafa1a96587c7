//! Every generation that was asked for and can still be read, and what was served of each view.

use std::{collections::HashMap, sync::Arc};

use headwater_control::{ControlState, GenerationEntry};
use headwater_types::{GenerationId, Name};
use parking_lot::{Mutex, RwLock};

use crate::{
    error::Error,
    snapshot::{
        generation::{Generation, is_readable},
        read_context::ReadContext,
        served_positions::ServedPositions,
    },
};

/// Keeps the generations that this instance reads.
pub(crate) struct GenerationCache {
    context: Arc<ReadContext>,
    generations: RwLock<HashMap<GenerationId, Arc<Generation>>>,
    /// Planning takes milliseconds: a second request waits for the plan of the first one.
    planning: tokio::sync::Mutex<()>,
    /// With the ordinal of the view's first generation: a view that was deleted and created again
    /// starts anew.
    served: Mutex<HashMap<Name, (u64, Arc<ServedPositions>)>>,
}

impl GenerationCache {
    pub(crate) fn new(context: Arc<ReadContext>) -> Self {
        Self {
            context,
            generations: RwLock::default(),
            planning: tokio::sync::Mutex::default(),
            served: Mutex::default(),
        }
    }

    pub(crate) async fn generation(
        &self,
        entry: &GenerationEntry,
    ) -> Result<Arc<Generation>, Error> {
        if let Some(planned) = self.planned(entry.id) {
            return Ok(planned);
        }
        let _alone = self.planning.lock().await;
        if let Some(planned) = self.planned(entry.id) {
            return Ok(planned);
        }
        let (id, entry, context) = (entry.id, entry.clone(), self.context.clone());
        let planned = tokio::task::spawn_blocking(move || Generation::plan(&entry, &context)).await;
        let generation = Arc::new(planned.map_err(|_| Error::Panicked)??);
        self.generations.write().insert(id, generation.clone());
        Ok(generation)
    }

    fn planned(&self, id: GenerationId) -> Option<Arc<Generation>> {
        self.generations.read().get(&id).cloned()
    }

    pub(crate) fn served(&self, view: &Name, first_ordinal: u64) -> Arc<ServedPositions> {
        let mut all = self.served.lock();
        match all.get(view) {
            Some((first, served)) if *first == first_ordinal => served.clone(),
            // The request read the control topic before the view was created again.
            Some((first, _)) if *first > first_ordinal => Arc::default(),
            Some(_) | None => {
                let served = Arc::<ServedPositions>::default();
                all.insert(view.clone(), (first_ordinal, served.clone()));
                served
            }
        }
    }

    /// Closes the generations that can no longer be read, and removes what their readers left on
    /// disk.
    pub(crate) fn close_retired(&self, state: &ControlState) {
        let readable = |id: &GenerationId| {
            state.generations().get(id).is_some_and(|entry| is_readable(entry.role))
        };
        let retired: Vec<Arc<Generation>> = self
            .generations
            .write()
            .extract_if(|id, _| !readable(id))
            .map(|(_, generation)| generation)
            .collect();
        for generation in retired {
            tracing::info!(view = %generation.view, generation = %generation.id, "generation closed");
            for shard in &generation.shards {
                shard.close();
            }
        }
    }

    /// Closes the readers of copies that a former owner left behind. If the data directory on this
    /// disk is another one now, it closes all readers.
    pub(crate) fn close_moved(&self, directory_changed: bool) {
        let generations: Vec<_> = self.generations.read().values().cloned().collect();
        for shard in generations.iter().flat_map(|generation| &generation.shards) {
            if directory_changed {
                shard.close();
            } else {
                shard.close_if_moved();
            }
        }
    }
}
