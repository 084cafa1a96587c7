//! Runs `Query`: ad-hoc SQL over views.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use datafusion::{
    common::TableReference, execution::SessionState, physical_plan::execute_stream,
    sql::parser::Statement,
};
use futures::{Stream, StreamExt};
use headwater_proto::query::v1::{Provenance, QueryRequest, QueryResponse, ResultFormat};
use tokio::{runtime::Handle, sync::mpsc};

use crate::{
    context::RequestContext,
    error::Error,
    limit::ConcurrencyLimit,
    read_plan::{ReadPlan, ScanPlan},
    row_values,
    snapshot::{
        catalog::{check_streams, unknown_view},
        cursor::{Cursor, Selection},
        freshness::FreshnessRequest,
        pin::{Pin, snapshot_views},
        shard_snapshot::ShardSnapshot,
    },
    sql::{
        encoder::Encoder,
        session::{session, session_over},
        statement::{parse, plan, resolve, sql_error},
        table::{PlannedScan, PlannedScans},
    },
};

/// Parts of an answer that wait for a client that reads slowly.
const READ_AHEAD: usize = 4;

type Part = Result<Option<QueryResponse>, Error>;

/// Runs SQL queries, each on a thread of its own.
pub(crate) struct SqlEngine {
    context: Arc<RequestContext>,
    session: SessionState,
    limit: ConcurrencyLimit,
}

impl SqlEngine {
    pub(crate) fn new(context: Arc<RequestContext>) -> anyhow::Result<Self> {
        Ok(Self {
            session: session(&context.config)?,
            limit: ConcurrencyLimit::new("SQL queries", context.config.max_queries.get()),
            context,
        })
    }

    /// Begins a query. An error before its first rows is returned here.
    pub(crate) async fn run(
        self: &Arc<Self>,
        request: QueryRequest,
    ) -> Result<impl Stream<Item = Result<QueryResponse, Error>> + Send + use<>, Error> {
        let config = &self.context.config;
        let freshness = FreshnessRequest::new(config, request.freshness.as_ref())?;
        let (bytes, limit) = (request.sql.len(), config.max_sql.bytes());
        if bytes > limit {
            return Err(Error::SqlTooLong { bytes, limit });
        }
        let permit = self.limit.permit(freshness.deadline).await?;
        let until = Instant::now() + config.max_duration;
        let (sender, mut parts) = mpsc::channel(READ_AHEAD);
        let (engine, handle) = (self.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            handle.block_on(engine.answer_until(&request, &freshness, until, sender));
        });
        let first = received(&mut parts, until).await?;
        let rest = futures::stream::try_unfold(parts, move |mut parts| async move {
            let part = received(&mut parts, until).await?;
            Ok(part.map(|part| (part, parts)))
        });
        Ok(futures::stream::iter(first.map(Ok)).chain(rest))
    }

    async fn answer_until(
        &self,
        request: &QueryRequest,
        freshness: &FreshnessRequest,
        until: Instant,
        sender: mpsc::Sender<Part>,
    ) {
        let answer =
            tokio::time::timeout_at(until.into(), self.answer(request, freshness, until, &sender));
        let outcome = tokio::select! {
            outcome = answer => outcome,
            () = sender.closed() => return,
        };
        let last = match outcome {
            Ok(Ok(())) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::TooLong),
        };
        // Without this last item the receiver takes what it has for a part only.
        let _ = tokio::time::timeout_at(until.into(), sender.send(last)).await;
    }

    async fn answer(
        &self,
        request: &QueryRequest,
        freshness: &FreshnessRequest,
        until: Instant,
        sender: &mpsc::Sender<Part>,
    ) -> Result<(), Error> {
        let statement = parse(&self.session, &request.sql)?;
        let (pins, tables) = self.pins(&statement, freshness).await?;
        let scans = PlannedScans::default();
        let state = session_over(&self.session, &pins, &tables, &scans).map_err(sql_error)?;
        let plan = plan(&state, statement).await.map_err(sql_error)?;

        let provenance = self.open(&pins, &scans, freshness, until).await?;
        let schema = plan.schema();
        let format = ResultFormat::try_from(request.format).unwrap_or(ResultFormat::Unspecified);
        let mut encoder = Encoder::new(format, &schema)?;
        let columns = row_values::result_columns(&schema);
        let head = QueryResponse { columns, provenance, ..encoder.head() };
        let send = async |part| sender.send(Ok(Some(part))).await.is_ok();
        if !send(head).await {
            return Ok(());
        }
        let mut batches = execute_stream(plan, state.task_ctx()).map_err(sql_error)?;
        while let Some(batch) = batches.next().await {
            for part in encoder.parts(&batch.map_err(sql_error)?)? {
                if !send(part).await {
                    return Ok(());
                }
            }
        }
        for part in encoder.tail()? {
            if !send(part).await {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Pins each view that the statement names, once. The map has, for each name in the statement,
    /// the index of its pin.
    async fn pins(
        &self,
        statement: &Statement,
        freshness: &FreshnessRequest,
    ) -> Result<(Vec<Pin>, BTreeMap<String, usize>), Error> {
        let catalog = &self.context.catalog;
        let references = self.session.resolve_table_references(statement).map_err(sql_error)?;
        let control = catalog.control(freshness).await?;
        let mut pins: Vec<Pin> = Vec::new();
        let mut tables = BTreeMap::new();
        for reference in references {
            let TableReference::Bare { table } = &reference else {
                return Err(unknown_view(&control, &reference.to_string()));
            };
            let name = resolve(&control, table)?;
            let index = match pins.iter().position(|pin| pin.generation.view == name) {
                Some(index) => index,
                None => {
                    pins.push(catalog.pin_in(&control, name.as_str(), freshness).await?);
                    pins.len() - 1
                }
            };
            tables.insert(table.to_string(), index);
        }
        check_streams(freshness, &pins)?;
        Ok((pins, tables))
    }

    /// Takes the snapshots of all views, and opens every scan that was planned.
    async fn open(
        &self,
        pins: &[Pin],
        scans: &PlannedScans,
        freshness: &FreshnessRequest,
        until: Instant,
    ) -> Result<Vec<Provenance>, Error> {
        let RequestContext { config, scans: limit, metrics, .. } = &*self.context;
        let scans = scans.alive();
        let mut permits = limit.permits(scans.len(), freshness.deadline).await?;
        let batch_rows = config.batch_rows.get();
        let plans: Vec<Arc<ReadPlan>> = (0..pins.len())
            .map(|view| {
                let scan = |planned: &Arc<PlannedScan>| ScanPlan {
                    range: planned.range.clone(),
                    changed_since: None,
                    first_rows: batch_rows,
                };
                Arc::new(ReadPlan {
                    scans: scans.iter().filter(|planned| planned.view == view).map(scan).collect(),
                    duration: until.saturating_duration_since(Instant::now()),
                    ..ReadPlan::default()
                })
            })
            .collect();
        let snapshots = snapshot_views(pins, &plans).await?;
        let mut opened = vec![0; pins.len()];
        for planned in scans {
            let Some(permit) = permits.pop() else { return Err(Error::Panicked) };
            let selection = Selection {
                generation: pins[planned.view].generation.clone(),
                plan: plans[planned.view].clone(),
                scan: opened[planned.view],
                changes: None,
                batch_rows,
                until,
            };
            opened[planned.view] += 1;
            planned.fill(Cursor::open(permit, selection, &snapshots[planned.view]).await?);
        }
        metrics.staleness(snapshots.iter().flatten().filter_map(ShardSnapshot::caught_up));
        Ok(pins.iter().zip(&snapshots).map(|(pin, snapshots)| pin.provenance(snapshots)).collect())
    }
}

/// The next part, or why there is none. At the limit the client gets an error, even if the thread
/// computes and cannot be interrupted. The thread keeps its permit until it ends.
async fn received(parts: &mut mpsc::Receiver<Part>, until: Instant) -> Part {
    match tokio::time::timeout_at(until.into(), parts.recv()).await {
        Ok(Some(part)) => part,
        Err(_) => Err(Error::TooLong),
        // The thread ends with `Ok(None)` or an error. Without either the rows are a part, and must
        // not be taken for the whole.
        Ok(None) => Err(Error::Panicked),
    }
}
