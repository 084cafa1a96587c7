//! `Watch`: the rows of a view as they change.
//!
//! A watcher looks at the shards again and again. Where a position has moved, it sends the rows
//! that a record since the last look has changed. It may send a row once more than the row changed,
//! and never once less. It does not announce rows that expire. When another generation serves, it
//! sends all rows.
//!
//! ```text
//! look 1            look 2                      look 3
//! positions p1      p2: rows changed since p1   p3: rows changed since p2
//!                   part, part, last part       part, last part
//! resume_token p1   p1    p1    p2              p2    p3
//! ```
//!
//! While all rows are sent, after `initial` or because another generation serves, there is no
//! token.
//!
//! A resumed watch is a watcher whose last look was that of its token. It needs no history: every
//! row says which record changed it last.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{array::BooleanArray, compute::filter_record_batch};
use futures::Stream;
use headwater_proto::query::v1::{Provenance, WatchRequest, WatchResponse};
use headwater_state::KeyRange;
use headwater_types::Offset;
use tonic::Code;

use crate::{
    api::watch_position::WatchPosition,
    context::RequestContext,
    error::Error,
    messages::split,
    read_plan::{ReadPlan, ScanPlan},
    row_values,
    snapshot::{
        cursor::{Cursor, CursorBatch, Selection},
        freshness::FreshnessRequest,
        pin::Pin,
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
        initial: request.initial,
        begun: false,
        seen: resumed(request)?,
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

/// The position of the former watch that the request continues.
fn resumed(request: &WatchRequest) -> Result<Option<WatchPosition>, Error> {
    let token = &request.resume_token;
    if token.is_empty() {
        return Ok(None);
    }
    if request.initial {
        return Err(Error::InitialAndResume);
    }
    let position = token.parse();
    position.map(Some).map_err(|_| resume_token(&request.view, token, "is not one".into()))
}

fn resume_token(view: &str, token: &str, problem: String) -> Error {
    Error::ResumeToken { view: view.to_owned(), token: token.to_owned(), problem }
}

struct Watcher {
    context: Arc<RequestContext>,
    view: String,
    /// Whether the first look sends all rows.
    initial: bool,
    /// Whether a look has succeeded.
    begun: bool,
    /// The position of the last look: all changes before it are sent or being sent.
    seen: Option<WatchPosition>,
    sending: Option<Sending>,
    ready: VecDeque<WatchResponse>,
    rest: Duration,
}

/// The rows of one look, on their way.
struct Sending {
    cursor: Cursor,
    /// The position of the look before: if this look is not sent to its end, the next one begins
    /// there. `None` in a reset: a part of all rows is not a state from which changes can be sent.
    before: Option<WatchPosition>,
    provenance: Provenance,
    began: Instant,
    /// Kept back until it is known whether it is the last one, whose token is that of this look.
    last: Option<WatchResponse>,
}

/// A plan for all rows, and for those that changed since the positions.
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

fn positions(snapshots: &[ShardSnapshot]) -> Vec<Offset> {
    snapshots.iter().map(|snapshot| snapshot.position).collect()
}

/// The token of a position; empty if there is none.
fn token(position: Option<&WatchPosition>) -> String {
    position.map(WatchPosition::to_string).unwrap_or_default()
}

/// The part that has the columns; `covered` is the position that its token names.
fn head(
    pin: &Pin,
    provenance: Provenance,
    reset: bool,
    covered: Option<&WatchPosition>,
) -> WatchResponse {
    WatchResponse {
        columns: pin.generation.columns.clone(),
        rows: Vec::new(),
        provenance: Some(provenance),
        reset,
        resume_token: token(covered),
    }
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
                    Ok(None) => self.finish(),
                    // The peer that read a shard for this instance has ended: another one will.
                    Err(error) if error.code() == Code::Unavailable => {
                        tracing::debug!(view = self.view, %error, "a watcher begins a look again");
                        self.begin_again();
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
        let mut pin = context.catalog.pin(&self.view, &freshness).await?;
        if !self.begun {
            self.check_resumed(&pin)?;
        }
        let permit = context.scans.permit(freshness.deadline).await?;
        let id = pin.generation.id;
        let seen = self.seen.as_ref().filter(|seen| seen.generation == id);
        let since = seen.map(|seen| seen.positions.clone());
        if let Some(since) = &since {
            let wanted_by = if self.begun { "the watch is at" } else { "resume_token asks for" };
            pin.require(since, wanted_by);
            // Mostly nothing has changed: then no peer needs to open any scan.
            let snapshots = pin.snapshot(None, &ReadPlan::default()).await?;
            if *since == positions(&snapshots) {
                if !self.begun {
                    let provenance = pin.provenance(&snapshots);
                    self.ready.push_back(head(&pin, provenance, false, self.seen.as_ref()));
                    self.begun = true;
                }
                return Ok(());
            }
        }
        // All rows: of a generation that was not seen before, or because they were asked for.
        let reset = since.is_none() && (self.seen.is_some() || self.initial);
        let reading = since.is_some() || reset;
        let plan = Arc::new(read_plan(context, reading, since.clone()));
        let snapshots = pin.snapshot(None, &plan).await?;
        let now = WatchPosition { generation: id, positions: positions(&snapshots) };
        let provenance = pin.provenance(&snapshots);
        let covered = if reading { since.as_ref().and(self.seen.as_ref()) } else { Some(&now) };
        let head = head(&pin, provenance.clone(), reset, covered);
        if reading {
            let selection = Selection {
                generation: pin.generation.clone(),
                plan,
                scan: 0,
                changes: since.as_ref().map(|_| 1),
                batch_rows: context.config.batch_rows.get(),
                until: Instant::now() + context.config.max_duration,
            };
            let cursor = Cursor::open(permit, selection, &snapshots).await?;
            let before = self.seen.take().filter(|_| !reset);
            let began = Instant::now();
            self.sending = Some(Sending { cursor, before, provenance, began, last: None });
        }
        if since.is_none() || !self.begun {
            self.ready.push_back(head);
        }
        self.seen = Some(now);
        self.begun = true;
        Ok(())
    }

    /// Checks that the position of the former watch belongs to this view.
    fn check_resumed(&self, pin: &Pin) -> Result<(), Error> {
        let Some(seen) = &self.seen else { return Ok(()) };
        let refused = |problem| Err(resume_token(&self.view, &seen.to_string(), problem));
        let partitions = pin.generation.shards.len();
        if seen.generation == pin.generation.id {
            return match seen.positions.len() == partitions {
                true => Ok(()),
                false => refused(format!("does not name all {partitions} partitions")),
            };
        }
        match self.context.catalog.view_of(seen.generation) {
            Some(view) if view == pin.generation.view => Ok(()),
            Some(view) => refused(format!("belongs to view {view}")),
            None => refused("names a generation that does not exist".into()),
        }
    }

    fn take(&mut self, batch: &CursorBatch) -> Result<(), Error> {
        let Some(sending) = &mut self.sending else { return Ok(()) };
        let rows = match &batch.changed {
            Some(changed) => {
                &filter_record_batch(&batch.rows.batch, &BooleanArray::from(changed.clone()))?
            }
            None => &batch.rows.batch,
        };
        for rows in split(row_values::rows(rows)?) {
            let response = WatchResponse {
                rows,
                provenance: Some(sending.provenance.clone()),
                resume_token: token(sending.before.as_ref()),
                ..WatchResponse::default()
            };
            self.ready.extend(sending.last.replace(response));
        }
        Ok(())
    }

    /// The look was not sent to its end: all of it is sent again.
    fn begin_again(&mut self) {
        self.seen = self.sending.take().and_then(|sending| sending.before);
        self.initial |= self.seen.is_none();
    }

    /// All rows of a look are read: the last part has the token of the look.
    fn finish(&mut self) {
        let Some(sending) = self.sending.take() else { return };
        self.rest = sending.began.elapsed() * REST;
        let last = match sending.last {
            Some(last) => Some(last),
            // A view without rows: only the token is left to say.
            None if sending.before.is_none() => Some(WatchResponse {
                provenance: Some(sending.provenance),
                ..WatchResponse::default()
            }),
            None => None,
        };
        let resume_token = token(self.seen.as_ref());
        self.ready.extend(last.map(|last| WatchResponse { resume_token, ..last }));
    }
}
