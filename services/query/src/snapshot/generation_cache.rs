//! The generations that this instance reads: their plans, and their shards.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::datatypes::SchemaRef;
use headwater_control::{ControlState, GenerationEntry, Role};
use headwater_engine::plan::ViewPlan;
use headwater_log::Log;
use headwater_proto::common::v1::Column;
use headwater_state::{Identity, Options};
use headwater_types::{GenerationId, Name, Offset, PartitionId, StreamDefinition};
use parking_lot::{Mutex, RwLock};

use crate::{
    error::Error,
    metrics::Metrics,
    peers::pool::PeerPool,
    peers::shard_locator::ShardLocator,
    snapshot::shard_source::ShardSource,
    value::{self, KeyShape},
};

/// One generation, ready to be read.
pub(crate) struct Generation {
    pub id: GenerationId,
    pub view: Name,
    pub view_sql: String,
    pub stream: Arc<StreamDefinition>,
    pub plan: Arc<ViewPlan>,
    pub key: KeyShape,
    pub columns: Vec<Column>,
    pub schema: SchemaRef,
    /// One per partition, by its number.
    pub shards: Vec<Arc<ShardSource>>,
}

impl Generation {
    fn open(entry: &GenerationEntry, source: &Arc<Source>) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Definition { view: entry.view.to_string(), reason };
        let view = headwater_sql::parse_view(&entry.view_sql).map_err(|e| wrong(e.to_string()))?;
        let stream =
            headwater_sql::parse_stream(&entry.stream_sql).map_err(|e| wrong(e.to_string()))?;
        let plan = headwater_sql::plan_view(&view, &stream).map_err(|e| wrong(e.to_string()))?;
        let shard = |partition: PartitionId| {
            let identity = Identity { generation: entry.id, partition };
            let (view, topic) = (entry.view.clone(), plan.stream.topic.clone());
            Arc::new(ShardSource::new(view, identity, topic, source.clone()))
        };
        Ok(Self {
            id: entry.id,
            view: entry.view.clone(),
            view_sql: entry.view_sql.clone(),
            stream: plan.stream.clone(),
            key: KeyShape::of(&plan),
            columns: value::view_columns(&plan),
            schema: plan.output_schema(),
            shards: entry.partitions().map(shard).collect(),
            plan: Arc::new(plan),
        })
    }
}

/// The greatest position of a view that was ever part of an answer, by partition. Answers from the next
/// serving generation wait until it is there, so that time never runs backwards for a reader.
#[derive(Debug, Default)]
pub(crate) struct ServedPositions(RwLock<Vec<AtomicU64>>);

impl ServedPositions {
    pub(crate) fn position(&self, partition: PartitionId) -> Offset {
        self.0
            .read()
            .get(partition.0 as usize)
            .map_or(Offset::ZERO, |served| Offset(served.load(Ordering::Acquire)))
    }

    pub(crate) fn raise(&self, partition: PartitionId, position: Offset) {
        let index = partition.0 as usize;
        {
            let served = self.0.read();
            if let Some(served) = served.get(index) {
                served.fetch_max(position.0, Ordering::AcqRel);
                return;
            }
        }
        let mut served = self.0.write();
        while served.len() <= index {
            served.push(AtomicU64::new(0));
        }
        served[index].fetch_max(position.0, Ordering::AcqRel);
    }
}

/// Where shards are, and what they are read with.
pub(crate) struct Source {
    /// The directory whose shards are on our disk.
    pub data: PathBuf,
    /// For what readers write.
    pub scratch: PathBuf,
    pub instance: String,
    pub options: Options,
    /// What shards are made from: a shard that has all of it cannot be behind.
    pub log: Arc<dyn Log>,
    pub locator: Arc<ShardLocator>,
    pub peers: PeerPool,
    pub metrics: Metrics,
}

/// Every generation that was asked for and is not retired, and what was served of each view.
pub(crate) struct GenerationCache {
    source: Arc<Source>,
    generations: RwLock<HashMap<GenerationId, Arc<Generation>>>,
    /// Planning takes milliseconds: the second request waits for the first one's plan.
    planning: tokio::sync::Mutex<()>,
    served: Mutex<HashMap<Name, Arc<ServedPositions>>>,
}

impl GenerationCache {
    pub(crate) fn new(source: Arc<Source>) -> Self {
        Self {
            source,
            generations: RwLock::default(),
            planning: tokio::sync::Mutex::default(),
            served: Mutex::default(),
        }
    }

    pub(crate) async fn generation(
        &self,
        entry: &GenerationEntry,
    ) -> Result<Arc<Generation>, Error> {
        if let Some(open) = self.opened(entry.id) {
            return Ok(open);
        }
        let _alone = self.planning.lock().await;
        if let Some(open) = self.opened(entry.id) {
            return Ok(open);
        }
        let (id, entry, source) = (entry.id, entry.clone(), self.source.clone());
        let planned = tokio::task::spawn_blocking(move || Generation::open(&entry, &source)).await;
        let generation = Arc::new(planned.map_err(|_| Error::Panicked)??);
        self.generations.write().insert(id, generation.clone());
        Ok(generation)
    }

    fn opened(&self, id: GenerationId) -> Option<Arc<Generation>> {
        self.generations.read().get(&id).cloned()
    }

    pub(crate) fn served(&self, view: &Name) -> Arc<ServedPositions> {
        let mut served = self.served.lock();
        if let Some(served) = served.get(view) {
            return served.clone();
        }
        served.entry(view.clone()).or_default().clone()
    }

    /// Gives up what nobody may read any more, and what its readers left on disk.
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

    /// Closes the readers of copies that were left behind; all of them if our directory is another one now.
    pub(crate) fn close_moved(&self, all: bool) {
        let generations: Vec<_> = self.generations.read().values().cloned().collect();
        for shard in generations.iter().flat_map(|generation| &generation.shards) {
            if all {
                shard.close();
            } else {
                shard.close_if_moved();
            }
        }
    }
}

/// Whether the shards of a generation are kept up to date.
pub(crate) fn is_readable(role: Role) -> bool {
    match role {
        Role::Serving | Role::Replaying | Role::Retained => true,
        Role::Ended | Role::Retired => false,
    }
}
