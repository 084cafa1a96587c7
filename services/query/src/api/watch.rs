//! `Watch`: the rows of a view as they change.
//!
//! A watcher looks at the shards again and again. Where a position has moved, it sends the rows that a
//! record since the last look has changed. It may send a row once more than the row changed, and never
//! once less. It does not announce rows that expire. When another generation serves, it sends all rows.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{array::BooleanArray, compute::filter_record_batch};
use futures::Stream;
use headwater_proto::query::v1::{Provenance, WatchRequest, WatchResponse};
use headwater_state::KeyRange;
use headwater_types::{GenerationId, Offset};
use tonic::Code;

use crate::{
    context::RequestContext,
    error::Error,
    messages::split,
    read_plan::{ReadPlan, ScanPlan},
    row_values,
    snapshot::{
        cursor::{Cursor, CursorBatch, Selection},
        freshness::FreshnessRequest,
        shard_snapshot::ShardSnapshot,
    },
};

/// A look that found changes reads all rows; this many times as long passes until the next one.
const REST: u32 = 9;

pub(super) async fn watch(
    context: &Arc<RequestContext>,
    request: &WatchRequest,
) -> Result<impl Stream<Item = Result<WatchResponse, Error>> + Send + use<>, Error> {
    let mut watcher = Watcher {
        context: context.clone(),
        view: request.view.clone(),
        all: request.initial,
        seen: None,
        sending: None,
        ready: VecDeque::new(),
        rest: Duration::ZERO,
    };
    // An error of the first look is the answer itself.
    watcher.look().await?;
    Ok(futures::stream::try_unfold(watcher, |mut watcher| async move {
        let next = watcher.next().await?;
        Ok(Some((next, watcher)))
    }))
}

struct Watcher {
    context: Arc<RequestContext>,
    view: String,
    /// Whether the rows that are there at the first look are sent.
    all: bool,
    /// What was looked at last: all changes before these positions are sent or being sent.
    seen: Option<(GenerationId, Vec<Offset>)>,
    sending: Option<Sending>,
    ready: VecDeque<WatchResponse>,
    rest: Duration,
}

/// All rows, and after them those that changed since the positions.
fn read_plan(context: &RequestContext, reading: bool, since: Option<Vec<Offset>>) -> ReadPlan {
    let scan = |changed_since| ScanPlan {
        range: KeyRange::all(),
        changed_since,
        first_rows: context.config.batch_rows.get(),
    };
    let mut scans = Vec::new();
    if reading {
        scans.push(scan(None));
        scans.extend(since.map(|since| scan(Some(since))));
    }
    ReadPlan { scans, duration: context.config.max_duration, ..ReadPlan::default() }
}

struct Sending {
    cursor: Cursor,
    /// What was looked at before: if this is not sent to its end, all of it is sent again.
    before: Option<(GenerationId, Vec<Offset>)>,
    provenance: Provenance,
    began: Instant,
}

impl Watcher {
    async fn next(&mut self) -> Result<WatchResponse, Error> {
        let shutdown = self.context.shutdown.clone();
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(response);
            }
            if let Some(sending) = &mut self.sending {
                match sending.cursor.next().await.transpose() {
                    Ok(Some(batch)) => self.take(&batch)?,
                    Ok(None) => {
                        self.rest = sending.began.elapsed() * REST;
                        self.sending = None;
                    }
                    // An instance that read a shard for us has ended: another one will.
                    Err(error) if error.code() == Code::Unavailable => {
                        tracing::debug!(view = self.view, %error, "a watcher begins a look again");
                        self.seen = self.sending.take().and_then(|sending| sending.before);
                    }
                    Err(error) => return Err(error),
                }
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => return Err(Error::ShuttingDown),
                () = tokio::time::sleep(self.context.config.watch_interval.max(self.rest)) => {}
            }
            match self.look().await {
                Ok(()) => {}
                // A generation that begins to serve may have to catch up first; a watcher has time.
                Err(error)
                    if matches!(
                        error.code(),
                        Code::DeadlineExceeded | Code::Unavailable | Code::ResourceExhausted
                    ) =>
                {
                    tracing::debug!(view = self.view, %error, "a watcher waits");
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn look(&mut self) -> Result<(), Error> {
        let context = &self.context;
        let freshness = FreshnessRequest::new(&context.config, None)?;
        let pin = context.catalog.pin(&self.view, &freshness).await?;
        let permit = context.scans.permit(freshness.deadline).await?;
        let id = pin.generation.id;
        let positions_of = |snapshots: &[ShardSnapshot]| -> Vec<Offset> {
            snapshots.iter().map(|snapshot| snapshot.position).collect()
        };
        let before = match &self.seen {
            Some((generation, before)) if *generation == id => {
                // Mostly nothing has changed: then no peer needs to open any scan.
                let snapshots = pin.snapshot(None, &ReadPlan::default()).await?;
                if *before == positions_of(&snapshots) {
                    return Ok(());
                }
                Some(before.clone())
            }
            Some(_) | None => None,
        };
        let first_look = self.seen.is_none();
        let reading = before.is_some() || !first_look || self.all;
        let plan = Arc::new(read_plan(context, reading, before.clone()));
        let snapshots = pin.snapshot(None, &plan).await?;
        let positions = positions_of(&snapshots);
        let provenance = pin.provenance(&snapshots);
        if before.is_none() {
            let columns = pin.generation.columns.clone();
            let provenance = Some(provenance.clone());
            self.ready.push_back(WatchResponse { columns, provenance, rows: Vec::new() });
        }
        if reading {
            let selection = Selection {
                generation: pin.generation.clone(),
                plan,
                scan: 0,
                changes: before.map(|_| 1),
                batch_rows: context.config.batch_rows.get(),
                until: Instant::now() + context.config.max_duration,
            };
            let cursor = Cursor::open(permit, selection, &snapshots).await?;
            let before = self.seen.take();
            self.sending = Some(Sending { cursor, before, provenance, began: Instant::now() });
        }
        self.seen = Some((id, positions));
        Ok(())
    }

    fn take(&mut self, batch: &CursorBatch) -> Result<(), Error> {
        let provenance = self.sending.as_ref().map(|sending| sending.provenance.clone());
        let rows = match &batch.changed {
            Some(changed) => {
                &filter_record_batch(&batch.rows.batch, &BooleanArray::from(changed.clone()))?
            }
            None => &batch.rows.batch,
        };
        let messages = split(row_values::rows(rows)?).into_iter();
        self.ready.extend(messages.map(|rows| WatchResponse {
            rows,
            provenance: provenance.clone(),
            ..WatchResponse::default()
        }));
        Ok(())
    }
}
