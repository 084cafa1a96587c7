//! `Watch`: the rows of a view as they change.
//!
//! It looks at the shards again and again, and where a position moved it sends the rows that a record
//! since the last look has changed. A row may be sent once more than it changed, never once less. Rows
//! that expire are not announced. When another generation serves, all of its rows are sent.

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
    Service,
    api::scan::split,
    error::Error,
    snapshot::cursor::{Batch, Cursor, Selection},
    snapshot::shard_snapshot::{ReadPlan, ScanPlan, ShardSnapshot},
    value,
};

/// A look that found changes reads all rows; this many times as long passes until the next one.
const REST: u32 = 9;

impl Service {
    pub(crate) async fn watch(
        self: &Arc<Self>,
        request: &WatchRequest,
    ) -> Result<impl Stream<Item = Result<WatchResponse, Error>> + Send + use<>, Error> {
        let mut watcher = Watcher {
            service: self.clone(),
            view: request.view.clone(),
            all: request.initial,
            seen: None,
            sending: None,
            ready: VecDeque::new(),
            rest: Duration::ZERO,
        };
        // What is wrong with the request is said at once.
        watcher.look().await?;
        Ok(futures::stream::try_unfold(watcher, |mut watcher| async move {
            let next = watcher.next().await?;
            Ok(Some((next, watcher)))
        }))
    }
}

struct Watcher {
    service: Arc<Service>,
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
fn reads(service: &Service, reading: bool, since: Option<Vec<Offset>>) -> ReadPlan {
    let scan = |changed_since| ScanPlan {
        range: KeyRange::all(),
        changed_since,
        first_rows: service.config.batch_rows.get(),
    };
    let mut scans = Vec::new();
    if reading {
        scans.push(scan(None));
        scans.extend(since.map(|since| scan(Some(since))));
    }
    ReadPlan { scans, duration: service.config.max_duration, ..ReadPlan::default() }
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
        let shutdown = self.service.shutdown.clone();
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
                () = tokio::time::sleep(self.service.config.watch_interval.max(self.rest)) => {}
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
        let service = &self.service;
        let wish = service.wish(None)?;
        let pin = service.pin(&self.view, &wish).await?;
        let permit = service.scans.permits(1, wish.deadline).await?.pop().ok_or(Error::Panicked)?;
        let id = pin.generation.id;
        let positions_of =
            |held: &[ShardSnapshot]| held.iter().map(|held| held.position).collect::<Vec<Offset>>();
        let before = match &self.seen {
            Some((generation, before)) if *generation == id => {
                // Mostly nothing has changed: then no peer needs to open any scan.
                let held = pin.hold(None, &ReadPlan::default()).await?;
                if *before == positions_of(&held) {
                    return Ok(());
                }
                Some(before.clone())
            }
            Some(_) | None => None,
        };
        let first_look = self.seen.is_none();
        let reading = before.is_some() || !first_look || self.all;
        let reads = Arc::new(reads(service, reading, before.clone()));
        let held = pin.hold(None, &reads).await?;
        let positions = positions_of(&held);
        let provenance = pin.provenance(&held);
        if before.is_none() {
            let columns = pin.generation.columns.clone();
            let provenance = Some(provenance.clone());
            self.ready.push_back(WatchResponse { columns, provenance, rows: Vec::new() });
        }
        if reading {
            let selection = Selection {
                generation: pin.generation.clone(),
                reads,
                scan: 0,
                changes: before.map(|_| 1),
                batch_rows: service.config.batch_rows.get(),
                until: Instant::now() + service.config.max_duration,
            };
            let cursor = Cursor::open(permit, selection, &held).await?;
            let before = self.seen.take();
            self.sending = Some(Sending { cursor, before, provenance, began: Instant::now() });
        }
        self.seen = Some((id, positions));
        Ok(())
    }

    fn take(&mut self, batch: &Batch) -> Result<(), Error> {
        let provenance = self.sending.as_ref().map(|sending| sending.provenance.clone());
        let rows = match &batch.changed {
            Some(changed) => {
                &filter_record_batch(&batch.rows.batch, &BooleanArray::from(changed.clone()))?
            }
            None => &batch.rows.batch,
        };
        let messages = split(value::rows(rows)?).into_iter();
        self.ready.extend(messages.map(|rows| WatchResponse {
            rows,
            provenance: provenance.clone(),
            ..WatchResponse::default()
        }));
        Ok(())
    }
}
