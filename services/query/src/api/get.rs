//! `Get` and `Describe`: one row, and what a view looks like.

use headwater_engine::read;
use headwater_proto::query::v1::{DescribeRequest, DescribeResponse, GetRequest, GetResponse};

use crate::{
    Service,
    error::Error,
    snapshot::pin::Pin,
    snapshot::shard_snapshot::{ReadPlan, ShardSnapshot},
    value,
};

impl Service {
    pub(crate) async fn get(&self, request: &GetRequest) -> Result<GetResponse, Error> {
        let wish = self.wish(request.freshness.as_ref())?;
        let pin = self.pin(&request.view, &wish).await?;
        let plan = &pin.generation.plan;
        let parts = pin.generation.key.whole(&request.key)?;
        let key = read::encode_key(plan, &parts)?;
        // A row whose key names its partition is in one shard: the others need not even be fresh.
        let only = read::stream_key_partition(plan, &parts);
        let reads = ReadPlan { key: Some(key), ..ReadPlan::default() };
        let held = pin.hold(only, &reads).await?;
        self.metrics.staleness(&held);
        row(&pin, &reads.key.unwrap_or_default(), &held)
    }

    pub(crate) async fn describe(
        &self,
        request: &DescribeRequest,
    ) -> Result<DescribeResponse, Error> {
        let wish = self.wish(request.freshness.as_ref())?;
        let pin = self.pin(&request.view, &wish).await?;
        let held = pin.hold(None, &ReadPlan::default()).await?;
        Ok(DescribeResponse {
            columns: pin.generation.columns.clone(),
            key: pin.generation.key.names(),
            stream: pin.generation.stream.name.to_string(),
            sql: pin.generation.view_sql.clone(),
            provenance: Some(pin.provenance(&held)),
        })
    }
}

/// Reads a row where it stands: microseconds, so on the calling thread.
fn row(pin: &Pin, key: &[u8], held: &[ShardSnapshot]) -> Result<GetResponse, Error> {
    let generation = &pin.generation;
    let mut payloads = Vec::with_capacity(held.len());
    for held in held {
        let found = held.row(generation.id, key)?;
        payloads.extend(found.map(|(header, payload)| (header.last_offset, payload)));
    }
    let row = if payloads.is_empty() {
        None
    } else {
        let payloads: Vec<_> =
            payloads.iter().map(|(offset, payload)| (*offset, payload.as_slice())).collect();
        let merged = read::merge_rows(&generation.plan, key, &payloads)
            .map_err(|source| Error::engine(&generation.view, source))?;
        value::rows(&merged.batch)?.pop()
    };
    let provenance = pin.provenance(held);
    Ok(GetResponse { columns: generation.columns.clone(), row, provenance: Some(provenance) })
}
