//! `Describe`: columns, key, definition and freshness of a view.

use headwater_proto::query::v1::{DescribeRequest, DescribeResponse};

use crate::{
    context::RequestContext, error::Error, read_plan::ReadPlan,
    snapshot::freshness::FreshnessRequest,
};

pub(super) async fn describe(
    context: &RequestContext,
    request: &DescribeRequest,
) -> Result<DescribeResponse, Error> {
    let freshness = FreshnessRequest::new(&context.config, request.freshness.as_ref())?;
    let pin = context.catalog.pin(&request.view, &freshness).await?;
    let snapshots = pin.snapshot(None, &ReadPlan::default()).await?;
    Ok(DescribeResponse {
        columns: pin.generation.columns.clone(),
        key: pin.generation.key.names(),
        stream: pin.generation.stream.name.to_string(),
        sql: pin.generation.view_sql.clone(),
        provenance: Some(pin.provenance(&snapshots)),
    })
}
