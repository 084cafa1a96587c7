//! The streams that events may go to.

use std::{collections::HashMap, sync::Arc};

use headwater_control::ControlState;
use headwater_engine::decode::Validator;
use headwater_log::{Log, TopicSpec};
use headwater_service::follow::ControlView;
use headwater_types::{Name, StreamDefinition};
use parking_lot::{Mutex, RwLock};

use crate::{
    metrics::{IngestMetrics, StreamMetrics},
    refusal::Refusal,
};

/// A stream as this service uses it.
pub(crate) struct Stream {
    pub(crate) definition: StreamDefinition,
    pub(crate) metrics: StreamMetrics,
    // Validators learn the usual order of fields and keep buffers, so they are worth keeping.
    idle: Mutex<Vec<Validator>>,
}

impl Stream {
    /// A validator for the length of one request.
    pub(crate) fn validator(&self) -> Validator {
        self.idle.lock().pop().unwrap_or_else(|| Validator::new(&self.definition))
    }

    pub(crate) fn give_back(&self, validator: Validator) {
        self.idle.lock().push(validator);
    }
}

/// Follows the catalog, and parses a definition when it is first used or has changed.
pub(crate) struct Catalog {
    control: ControlView,
    log: Arc<dyn Log>,
    metrics: IngestMetrics,
    streams: RwLock<HashMap<Name, Arc<Stream>>>,
}

impl Catalog {
    pub(crate) fn new(control: ControlView, log: Arc<dyn Log>, metrics: IngestMetrics) -> Self {
        Self { control, log, metrics, streams: RwLock::default() }
    }

    /// The stream of this name. One that was declared a moment ago is found: before "unknown" is said,
    /// the catalog is read to its present end.
    pub(crate) async fn stream(&self, name: &str) -> Result<Arc<Stream>, Refusal> {
        if let Some(stream) = self.find(&self.control.current(), name)? {
            return Ok(stream);
        }
        let state = self.control.wait_current().await?;
        self.find(&state, name)?.ok_or_else(|| Refusal::UnknownStream {
            stream: name.chars().take(200).collect(),
            known: state.streams().keys().cloned().collect(),
        })
    }

    fn find(&self, state: &ControlState, name: &str) -> Result<Option<Arc<Stream>>, Refusal> {
        let Some((name, entry)) = state.streams().get_key_value(name) else { return Ok(None) };
        if let Some(stream) = self.streams.read().get(name)
            && stream.definition.sql == entry.sql
        {
            return Ok(Some(stream.clone()));
        }
        let definition = headwater_sql::parse_stream(&entry.sql).map_err(|error| {
            Refusal::Definition { stream: name.clone(), reason: error.to_string() }
        })?;
        // Whoever declared it may have died before its topic was there.
        self.log.create_topic(&definition.topic, TopicSpec::keep(definition.partitions))?;
        let metrics = self.metrics.of(name);
        let stream = Arc::new(Stream { definition, metrics, idle: Mutex::default() });
        self.streams.write().insert(name.clone(), stream.clone());
        Ok(Some(stream))
    }
}
