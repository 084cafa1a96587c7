//! `Scan`: a key prefix and a range of windows, in key order, page by page.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use arrow::{array::BooleanArray, compute::filter_record_batch};
use futures::Stream;
use headwater_engine::read::{self, OutputBatch};
use headwater_proto::query::v1::{ScanRequest, ScanResponse};
use headwater_state::{
    KeyRange,
    key::{self, KeyPart},
};

use crate::{
    api::page_token::PageToken,
    context::RequestContext,
    error::Error,
    messages::split,
    read_plan::{ReadPlan, ScanPlan},
    row_values,
    snapshot::{
        cursor::{Cursor, Selection},
        freshness::FreshnessRequest,
        generation::Generation,
        shard_snapshot::ShardSnapshot,
    },
};

pub(super) async fn scan(
    context: &RequestContext,
    request: &ScanRequest,
) -> Result<impl Stream<Item = Result<ScanResponse, Error>> + Send + use<>, Error> {
    let RequestContext { config, catalog, scans, metrics, .. } = context;
    let freshness = FreshnessRequest::new(config, request.freshness.as_ref())?;
    let pin = catalog.pin(&request.view, &freshness).await?;
    let generation = pin.generation.clone();
    let windows = WindowRange::of(request, &generation)?;
    let range = range(request, &generation, &windows)?;

    let permit = scans.permit(freshness.deadline).await?;
    let page_size = (request.page_size > 0).then_some(request.page_size);
    let batch_rows = config.batch_rows.get();
    let batch_rows = page_size
        .map_or(batch_rows, |size| batch_rows.min(usize::try_from(size).unwrap_or(usize::MAX)));
    let plan = ReadPlan {
        // One more row says whether there is another page.
        scans: vec![ScanPlan { range, changed_since: None, first_rows: batch_rows + 1 }],
        duration: config.max_duration,
        ..ReadPlan::default()
    };
    let snapshots = pin.snapshot(None, &plan).await?;
    metrics.staleness(snapshots.iter().filter_map(ShardSnapshot::caught_up));
    let selection = Selection {
        generation: generation.clone(),
        plan: Arc::new(plan),
        scan: 0,
        changes: None,
        batch_rows,
        until: Instant::now() + config.max_duration,
    };
    let cursor = Cursor::open(permit, selection, &snapshots).await?;
    let first = ScanResponse {
        columns: generation.columns.clone(),
        provenance: Some(pin.provenance(&snapshots)),
        ..ScanResponse::default()
    };
    let pages = Pages {
        cursor,
        generation,
        windows,
        left: page_size,
        ready: VecDeque::from([first]),
        ended: false,
    };
    Ok(futures::stream::try_unfold(pages, |mut pages| async move {
        let next = pages.next().await?;
        Ok(next.map(|response| (response, pages)))
    }))
}

/// A range of windows, as the last bytes of keys: the start of a window has a fixed length and
/// sorts.
struct WindowRange {
    from: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
}

impl WindowRange {
    fn of(request: &ScanRequest, generation: &Generation) -> Result<Self, Error> {
        let (from, to) = (request.window_from_micros, request.window_to_micros);
        if (from.is_some() || to.is_some()) && !generation.key.windowed() {
            return Err(Error::NoWindow { view: generation.view.to_string() });
        }
        Ok(Self { from: from.map(encode_start), to: to.map(encode_start) })
    }

    fn contain(&self, key: &[u8]) -> bool {
        let last = |bound: &[u8]| key.len().checked_sub(bound.len()).map(|at| &key[at..]);
        self.from
            .as_ref()
            .is_none_or(|from| last(from).is_some_and(|start| start >= from.as_slice()))
            && self.to.as_ref().is_none_or(|to| last(to).is_some_and(|start| start < to.as_slice()))
    }

    fn all(&self) -> bool {
        self.from.is_none() && self.to.is_none()
    }
}

fn encode_start(micros: i64) -> Vec<u8> {
    let mut encoded = Vec::new();
    key::encode(KeyPart::Timestamp(micros), &mut encoded);
    encoded
}

fn range(
    request: &ScanRequest,
    generation: &Generation,
    windows: &WindowRange,
) -> Result<KeyRange, Error> {
    let parts = generation.key.prefix(&request.prefix)?;
    let prefix = read::encode_key(&generation.plan, &parts)?;
    let mut range = if parts.is_empty() { KeyRange::all() } else { KeyRange::prefix(&prefix) };
    // With all other parts given, the windows are one range of keys.
    if generation.key.windowed() && parts.len() + 1 == generation.key.len() {
        let at = |start: &Vec<u8>| [prefix.as_slice(), start].concat();
        if let Some(from) = &windows.from {
            range.start = at(from);
        }
        if let Some(to) = &windows.to {
            range.end = Some(at(to));
        }
    }
    if !request.page_token.is_empty() {
        let next = PageToken::decode(&request.page_token)?;
        if next.signature != generation.key.signature().as_bytes() {
            return Err(Error::PageTokenOutdated { view: generation.view.to_string() });
        }
        range.start = range.start.max(next.key.to_vec());
    }
    Ok(range)
}

/// The answer to a scan, in parts.
struct Pages {
    cursor: Cursor,
    generation: Arc<Generation>,
    windows: WindowRange,
    /// Rows that the page still takes; `None` without a bound.
    left: Option<u64>,
    ready: VecDeque<ScanResponse>,
    ended: bool,
}

impl Pages {
    async fn next(&mut self) -> Result<Option<ScanResponse>, Error> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(Some(response));
            }
            if self.ended {
                return Ok(None);
            }
            match self.cursor.next().await.transpose()? {
                Some(batch) => self.take(&batch.rows)?,
                None => self.ended = true,
            }
        }
    }

    fn take(&mut self, rows: &OutputBatch) -> Result<(), Error> {
        let mut keep = Vec::with_capacity(rows.len());
        let mut next_page_token = Vec::new();
        for row in 0..rows.len() {
            let wanted = self.windows.all() || self.windows.contain(rows.key(row));
            if wanted && self.left == Some(0) {
                let signature = self.generation.key.signature();
                next_page_token =
                    PageToken { signature: signature.as_bytes(), key: rows.key(row) }.encode();
                self.ended = true;
                break;
            }
            if let (true, Some(left)) = (wanted, &mut self.left) {
                *left -= 1;
            }
            keep.push(wanted);
        }
        let mut batch = rows.batch.slice(0, keep.len());
        if keep.contains(&false) {
            batch = filter_record_batch(&batch, &BooleanArray::from(keep))?;
        }
        for rows in split(row_values::rows(&batch)?) {
            self.ready.push_back(ScanResponse { rows, ..ScanResponse::default() });
        }
        if !next_page_token.is_empty() {
            match self.ready.back_mut() {
                Some(last) => last.next_page_token = next_page_token,
                None => self
                    .ready
                    .push_back(ScanResponse { next_page_token, ..ScanResponse::default() }),
            }
        }
        Ok(())
    }
}
