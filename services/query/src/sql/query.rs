//! `Query`: ad-hoc SQL over views, by DataFusion.
//!
//! ```text
//! statement ─► views, each pinned once ─► plan ─► shards held, scans opened, shards let go ─► rows
//! ```
//!
//! A query has a thread of its own, so that its computing never delays a point read, and a thread per
//! scan. Its memory is bounded, its duration too, and nothing but a SELECT is let through.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use arrow::{array::RecordBatch, datatypes::Schema, ipc::writer::StreamWriter};
use datafusion::{
    catalog::{
        CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList,
        MemorySchemaProvider, SchemaProvider,
    },
    common::{DataFusionError, TableReference},
    config::Dialect,
    execution::{
        SessionState, SessionStateBuilder, SessionStateDefaults,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::{GreedyMemoryPool, TrackConsumersPool},
        runtime_env::RuntimeEnvBuilder,
    },
    physical_plan::{ExecutionPlan, execute_stream},
    prelude::{SQLOptions, SessionConfig},
    sql::{parser::Statement, sqlparser::ast::Statement as SqlStatement},
};
use futures::{Stream, StreamExt};
use headwater_control::ControlState;
use headwater_proto::query::v1::{QueryRequest, QueryResponse, ResultFormat};
use headwater_types::Name;
use tokio::{runtime::Handle, sync::mpsc};

use crate::{
    Config, Service,
    api::scan::{MESSAGE_BYTES, split},
    error::Error,
    snapshot::cursor::{Cursor, Selection},
    snapshot::pin::{FreshnessRequest, Pin, check_streams, unknown_view},
    snapshot::shard_snapshot::{ReadPlan, ScanPlan},
    sql::table::{PlannedScan, PlannedScans, ViewTable},
    value,
};

/// Parts of an answer that wait for a client that reads slowly.
const READ_AHEAD: usize = 4;

/// How many consumers an error about memory names.
const NAMED_CONSUMERS: std::num::NonZeroUsize = std::num::NonZeroUsize::new(3).expect("3 > 0");

type Part = Result<Option<QueryResponse>, Error>;

/// A session without tables, to be copied for each query: building one anew costs more than most
/// queries.
pub(crate) fn session(config: &Config) -> anyhow::Result<SessionState> {
    let settings = SessionConfig::new()
        // A query computes on its own thread: more partitions would be tasks on everybody's threads.
        .with_target_partitions(1)
        .with_information_schema(false)
        .with_create_default_catalog_and_schema(false)
        // A scan is read once.
        .set_bool("datafusion.execution.enable_recursive_ctes", false);
    let pool = TrackConsumersPool::new(
        GreedyMemoryPool::new(config.memory_limit.bytes()),
        NAMED_CONSUMERS,
    );
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(
            DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled),
        )
        .build_arc()?;
    // No file formats, table factories or table functions: a query reads views and nothing else.
    Ok(SessionStateBuilder::new()
        .with_config(settings)
        .with_runtime_env(runtime)
        .with_expr_planners(SessionStateDefaults::default_expr_planners())
        .with_scalar_functions(SessionStateDefaults::default_scalar_functions())
        .with_aggregate_functions(SessionStateDefaults::default_aggregate_functions())
        .with_window_functions(SessionStateDefaults::default_window_functions())
        .build())
}

impl Service {
    pub(crate) async fn query(
        self: &Arc<Self>,
        request: QueryRequest,
    ) -> Result<impl Stream<Item = Result<QueryResponse, Error>> + Send + use<>, Error> {
        let wish = self.wish(request.freshness.as_ref())?;
        let (bytes, limit) = (request.sql.len(), self.config.max_sql.bytes());
        if bytes > limit {
            return Err(Error::SqlTooLong { bytes, limit });
        }
        let permit = self.queries.permits(1, wish.deadline).await?.pop();
        let until = Instant::now() + self.config.max_duration;
        let (sender, mut parts) = mpsc::channel(READ_AHEAD);
        let (service, handle) = (self.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            handle.block_on(service.run(&request, &wish, until, sender));
        });
        // An error before the first rows is the answer itself.
        let first = received(&mut parts, until).await?;
        let rest = futures::stream::try_unfold(parts, move |mut parts| async move {
            let part = received(&mut parts, until).await?;
            Ok(part.map(|part| (part, parts)))
        });
        Ok(futures::stream::iter(first.map(Ok)).chain(rest))
    }

    async fn run(
        &self,
        request: &QueryRequest,
        wish: &FreshnessRequest,
        until: Instant,
        sender: mpsc::Sender<Part>,
    ) {
        let answer =
            tokio::time::timeout_at(until.into(), self.answer(request, wish, until, &sender));
        let outcome = tokio::select! {
            outcome = answer => outcome,
            () = sender.closed() => return,
        };
        let last = match outcome {
            Ok(Ok(())) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::TooLong),
        };
        // Without it the receiver takes what it has for a part only.
        let _ = tokio::time::timeout_at(until.into(), sender.send(last)).await;
    }

    async fn answer(
        &self,
        request: &QueryRequest,
        wish: &FreshnessRequest,
        until: Instant,
        sender: &mpsc::Sender<Part>,
    ) -> Result<(), Error> {
        let statement = parse(&self.session, &request.sql)?;
        let (pins, tables) = self.pins(&statement, wish).await?;
        let slots = PlannedScans::default();
        let state = self.session_over(&pins, &tables, &slots).map_err(sql_error)?;
        let plan = plan(&state, statement).await.map_err(sql_error)?;

        let provenance = self.open(&pins, &slots, wish, until).await?;
        let schema = plan.schema();
        let format = ResultFormat::try_from(request.format).unwrap_or(ResultFormat::Unspecified);
        let mut encoder = Encoder::new(format, &schema)?;
        let columns = value::result_columns(&schema);
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

    /// Pins each view that the statement names, once. The tables are the names as the statement has
    /// them, with the place of their pin.
    async fn pins(
        &self,
        statement: &Statement,
        wish: &FreshnessRequest,
    ) -> Result<(Vec<Pin>, BTreeMap<String, usize>), Error> {
        let references = self.session.resolve_table_references(statement).map_err(sql_error)?;
        let control = self.control(wish).await?;
        let mut pins: Vec<Pin> = Vec::new();
        let mut tables = BTreeMap::new();
        for reference in references {
            let TableReference::Bare { table } = &reference else {
                return Err(unknown_view(&control, &reference.to_string()));
            };
            let name = resolve(&control, table)?;
            let place = match pins.iter().position(|pin| pin.generation.view == name) {
                Some(place) => place,
                None => {
                    pins.push(self.pin_in(&control, name.as_str(), wish).await?);
                    pins.len() - 1
                }
            };
            tables.insert(table.to_string(), place);
        }
        check_streams(wish, &pins)?;
        Ok((pins, tables))
    }

    fn session_over(
        &self,
        pins: &[Pin],
        tables: &BTreeMap<String, usize>,
        slots: &PlannedScans,
    ) -> Result<SessionState, DataFusionError> {
        let schema = MemorySchemaProvider::new();
        for (table, &place) in tables {
            let view = ViewTable::new(pins[place].generation.clone(), place, slots.clone());
            schema.register_table(table.clone(), Arc::new(view))?;
        }
        let names = &self.session.config().options().catalog;
        let catalog = MemoryCatalogProvider::new();
        catalog.register_schema(&names.default_schema, Arc::new(schema))?;
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(names.default_catalog.clone(), Arc::new(catalog));
        let builder = SessionStateBuilder::new_from_existing((*self.session).clone());
        let mut state = builder.with_catalog_list(Arc::new(catalogs)).build();
        state.mark_start_execution();
        Ok(state)
    }

    /// Holds the shards of all views at once and opens every scan that was planned.
    async fn open(
        &self,
        pins: &[Pin],
        slots: &PlannedScans,
        wish: &FreshnessRequest,
        until: Instant,
    ) -> Result<Vec<headwater_proto::query::v1::Provenance>, Error> {
        let slots = slots.alive();
        let mut permits = self.scans.permits(slots.len(), wish.deadline).await?;
        let batch_rows = self.config.batch_rows.get();
        let reads: Vec<Arc<ReadPlan>> = (0..pins.len())
            .map(|view| {
                let scan = |slot: &Arc<PlannedScan>| ScanPlan {
                    range: slot.range.clone(),
                    changed_since: None,
                    first_rows: batch_rows,
                };
                Arc::new(ReadPlan {
                    scans: slots.iter().filter(|slot| slot.view == view).map(scan).collect(),
                    duration: until.saturating_duration_since(Instant::now()),
                    ..ReadPlan::default()
                })
            })
            .collect();
        // As in `Pin::hold`: first each view for itself, so that none is held while another is waited for.
        let mut held = Vec::with_capacity(pins.len());
        if let ([pin], [reads]) = (pins, reads.as_slice()) {
            held.push(pin.hold(None, reads).await?);
        } else {
            let reach = pins.iter().zip(&reads).map(|(pin, reads)| pin.reach(reads));
            let reached = futures::future::try_join_all(reach).await?;
            for ((pin, reads), reached) in pins.iter().zip(&reads).zip(reached) {
                held.push(pin.hold_reached(reached, reads).await?);
            }
        }
        let mut scans = vec![0; pins.len()];
        for slot in slots {
            let Some(permit) = permits.pop() else { return Err(Error::Panicked) };
            let selection = Selection {
                generation: pins[slot.view].generation.clone(),
                reads: reads[slot.view].clone(),
                scan: scans[slot.view],
                changes: None,
                batch_rows,
                until,
            };
            scans[slot.view] += 1;
            slot.fill(Cursor::open(permit, selection, &held[slot.view]).await?);
        }
        for held in &held {
            self.metrics.staleness(held);
        }
        Ok(pins.iter().zip(&held).map(|(pin, held)| pin.provenance(held)).collect())
    }
}

/// The next part, or why there is none. The client is told at the deadline, even if the thread is deep
/// in a computation that it cannot be called back from: it keeps its permit until it comes up.
async fn received(parts: &mut mpsc::Receiver<Part>, until: Instant) -> Part {
    match tokio::time::timeout_at(until.into(), parts.recv()).await {
        Ok(Some(part)) => part,
        Err(_) => Err(Error::TooLong),
        // The thread says when it ends; anything else would be a part taken for the whole.
        Ok(None) => Err(Error::Panicked),
    }
}

/// A view by its name as SQL folded it: exactly, or else as the only one that differs in case alone.
fn resolve(control: &ControlState, table: &str) -> Result<Name, Error> {
    let views = control.views();
    if let Some((name, _)) = views.get_key_value(table) {
        return Ok(name.clone());
    }
    let mut alike = views.keys().filter(|name| name.as_str().eq_ignore_ascii_case(table));
    match (alike.next(), alike.next()) {
        (Some(name), None) => Ok(name.clone()),
        (Some(_), Some(_)) | (None, _) => Err(unknown_view(control, table)),
    }
}

/// One SELECT, or EXPLAIN of one.
fn parse(session: &SessionState, sql: &str) -> Result<Statement, Error> {
    let statement = session.sql_to_statement(sql, &Dialect::Generic).map_err(|error| {
        if matches!(error, DataFusionError::NotImplemented(_)) {
            Error::NotASelect { what: "more than one statement".into() }
        } else {
            sql_error(error)
        }
    })?;
    check(&statement)?;
    Ok(statement)
}

fn check(statement: &Statement) -> Result<(), Error> {
    let refused = |what: &str| Err(Error::NotASelect { what: what.into() });
    match statement {
        Statement::Statement(inner) => {
            if let SqlStatement::Query(_) = &**inner {
                Ok(())
            } else {
                let text = inner.to_string();
                refused(text.split_whitespace().next().unwrap_or("this"))
            }
        }
        Statement::Explain(explain) if explain.options.analyze => refused("EXPLAIN ANALYZE"),
        Statement::Explain(explain) => check(&explain.statement),
        Statement::CreateExternalTable(_) => refused("CREATE EXTERNAL TABLE"),
        Statement::CopyTo(_) => refused("COPY"),
        Statement::Reset(_) => refused("RESET"),
    }
}

async fn plan(
    state: &SessionState,
    statement: Statement,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    let plan = state.statement_to_plan(statement).await?;
    // The grammar has other ways to write than statements of their own, such as SELECT INTO.
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false)
        .verify_plan(&plan)?;
    state.create_physical_plan(&plan).await
}

#[allow(clippy::wildcard_enum_match_arm, reason = "DataFusion's errors fall into four classes")]
fn sql_error(error: DataFusionError) -> Error {
    let message = error.find_root().strip_backtrace();
    match error.find_root() {
        // One of ours, on its way through DataFusion.
        DataFusionError::External(inner) => match inner.downcast_ref::<Error>() {
            Some(ours) => Error::Carried { code: ours.code(), message: ours.to_string() },
            None => Error::Sql(message),
        },
        DataFusionError::ResourcesExhausted(_) => Error::Memory(message),
        DataFusionError::Internal(_)
        | DataFusionError::ExecutionJoin(_)
        | DataFusionError::IoError(_) => {
            tracing::error!(error = message, "a query failed inside datafusion");
            Error::Carried { code: tonic::Code::Internal, message }
        }
        _ => Error::Sql(message),
    }
}

/// Batches as they travel.
enum Encoder {
    Rows,
    Arrow(Box<StreamWriter<Vec<u8>>>),
}

impl Encoder {
    fn new(format: ResultFormat, schema: &Schema) -> Result<Self, Error> {
        match format {
            ResultFormat::Unspecified | ResultFormat::Rows => Ok(Self::Rows),
            ResultFormat::Arrow => {
                Ok(Self::Arrow(Box::new(StreamWriter::try_new(Vec::new(), schema)?)))
            }
        }
    }

    /// What belongs to the first part: of an Arrow stream, its schema.
    fn head(&mut self) -> QueryResponse {
        let arrow = match self {
            Self::Rows => Vec::new(),
            Self::Arrow(writer) => std::mem::take(writer.get_mut()),
        };
        QueryResponse { arrow, ..QueryResponse::default() }
    }

    fn parts(&mut self, batch: &RecordBatch) -> Result<Vec<QueryResponse>, Error> {
        match self {
            Self::Rows => {
                let messages = split(value::rows(batch)?).into_iter();
                Ok(messages
                    .map(|rows| QueryResponse { rows, ..QueryResponse::default() })
                    .collect())
            }
            Self::Arrow(writer) => {
                writer.write(batch)?;
                Ok(pieces(std::mem::take(writer.get_mut())))
            }
        }
    }

    fn tail(self) -> Result<Vec<QueryResponse>, Error> {
        match self {
            Self::Rows => Ok(Vec::new()),
            Self::Arrow(mut writer) => {
                writer.finish()?;
                Ok(pieces(std::mem::take(writer.get_mut())))
            }
        }
    }
}

fn pieces(stream: Vec<u8>) -> Vec<QueryResponse> {
    let piece = |arrow: &[u8]| QueryResponse { arrow: arrow.to_vec(), ..QueryResponse::default() };
    stream.chunks(MESSAGE_BYTES).map(piece).collect()
}
