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
    cursor::{Batch, Cursor, Selection},
    error::Error,
    scan::split,
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

struct Sending {
    cursor: Cursor,
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
                match sending.cursor.next().await.transpose()? {
                    Some(batch) => self.take(&batch)?,
                    None => {
                        self.rest = sending.began.elapsed() * REST;
                        self.sending = None;
                    }
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
        let held = pin.hold(None).await?;
        let positions: Vec<Offset> =
            held.iter().map(|held| held.reader.view().progress().position).collect();
        let id = pin.generation.id;
        let before = match &self.seen {
            Some((generation, before)) if *generation == id && *before == positions => {
                return Ok(());
            }
            Some((generation, before)) if *generation == id => Some(before.clone()),
            Some(_) | None => None,
        };
        let first_look = self.seen.is_none();
        let provenance = pin.provenance_of(&held);
        if before.is_none() {
            let columns = pin.generation.columns.clone();
            let provenance = Some(provenance.clone());
            self.ready.push_back(WatchResponse { columns, provenance, rows: Vec::new() });
        }
        if before.is_some() || !first_look || self.all {
            let selection = Selection {
                generation: pin.generation.clone(),
                range: KeyRange::all(),
                batch_rows: service.config.batch_rows.get(),
                changed_since: before,
                until: Instant::now() + service.config.max_duration,
            };
            let cursor = Cursor::open(permit, selection, &held).await?;
            self.sending = Some(Sending { cursor, provenance, began: Instant::now() });
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
