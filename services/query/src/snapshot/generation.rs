//! One generation, ready to be read: its plan, its columns, its shards.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use headwater_control::{GenerationEntry, Role};
use headwater_engine::plan::ViewPlan;
use headwater_proto::common::v1::Column;
use headwater_state::Identity;
use headwater_types::{GenerationId, Name, PartitionId, StreamDefinition};

use crate::{
    error::Error,
    key_shape::KeyShape,
    row_values,
    snapshot::{read_context::ReadContext, shard_source::ShardSource},
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
    /// Plans a generation. Its shards are opened when they are first read. Blocks for milliseconds.
    pub(super) fn plan(entry: &GenerationEntry, context: &Arc<ReadContext>) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Definition { view: entry.view.to_string(), reason };
        let view = headwater_sql::parse_view(&entry.view_sql).map_err(|e| wrong(e.to_string()))?;
        let stream =
            headwater_sql::parse_stream(&entry.stream_sql).map_err(|e| wrong(e.to_string()))?;
        let plan = headwater_sql::plan_view(&view, &stream).map_err(|e| wrong(e.to_string()))?;
        let shard = |partition: PartitionId| {
            let shard = Identity { generation: entry.id, partition };
            Arc::new(ShardSource::new(entry.view.clone(), shard, context.clone()))
        };
        Ok(Self {
            id: entry.id,
            view: entry.view.clone(),
            view_sql: entry.view_sql.clone(),
            stream: plan.stream.clone(),
            key: KeyShape::of(&plan),
            columns: row_values::view_columns(&plan),
            schema: plan.output_schema(),
            shards: entry.partitions().map(shard).collect(),
            plan: Arc::new(plan),
        })
    }
}

/// Whether the shards of a generation are kept up to date.
pub(crate) fn is_readable(role: Role) -> bool {
    match role {
        Role::Serving | Role::Replaying | Role::Retained => true,
        Role::Ended | Role::Retired => false,
    }
}
