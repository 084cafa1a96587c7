//! `Scan`: a key prefix and a range of windows, in key order, page by page.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use arrow::{array::BooleanArray, compute::filter_record_batch};
use futures::Stream;
use headwater_engine::read::{self, OutputBatch};
use headwater_proto::{
    common::v1::Row,
    query::v1::{ScanRequest, ScanResponse},
};
use headwater_state::{
    KeyRange,
    key::{self, KeyPart},
};
use prost::Message;

use crate::{
    Service,
    error::Error,
    snapshot::cursor::{Cursor, Selection},
    snapshot::generation_cache::Generation,
    snapshot::shard_snapshot::{ReadPlan, ScanPlan},
    value,
};

/// One message has about this many bytes of rows at most, well below the 4 MiB that clients accept.
pub(crate) const MESSAGE_BYTES: usize = 1 << 20;

impl Service {
    pub(crate) async fn scan(
        self: &Arc<Self>,
        request: &ScanRequest,
    ) -> Result<impl Stream<Item = Result<ScanResponse, Error>> + Send + use<>, Error> {
        let wish = self.wish(request.freshness.as_ref())?;
        let pin = self.pin(&request.view, &wish).await?;
        let generation = pin.generation.clone();
        let windows = Windows::of(request, &generation)?;
        let range = range(request, &generation, &windows)?;

        let permit = self.scans.permits(1, wish.deadline).await?.pop().ok_or(Error::Panicked)?;
        let page_size = (request.page_size > 0).then_some(request.page_size);
        let batch_rows = self.config.batch_rows.get();
        let batch_rows = page_size
            .map_or(batch_rows, |size| batch_rows.min(usize::try_from(size).unwrap_or(usize::MAX)));
        let reads = ReadPlan {
            // One more row says whether there is another page.
            scans: vec![ScanPlan { range, changed_since: None, first_rows: batch_rows + 1 }],
            duration: self.config.max_duration,
            ..ReadPlan::default()
        };
        let held = pin.hold(None, &reads).await?;
        self.metrics.staleness(&held);
        let selection = Selection {
            generation: generation.clone(),
            reads: Arc::new(reads),
            scan: 0,
            changes: None,
            batch_rows,
            until: Instant::now() + self.config.max_duration,
        };
        let cursor = Cursor::open(permit, selection, &held).await?;
        let first = ScanResponse {
            columns: generation.columns.clone(),
            provenance: Some(pin.provenance(&held)),
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
}

/// Which windows are wanted, as the last bytes of keys: a window's start has a fixed length and sorts.
struct Windows {
    from: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
}

impl Windows {
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
    windows: &Windows,
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

/// `1 | length of the signature (u16, big-endian) | signature of the key's types | first key of the next page`
struct PageToken<'a> {
    signature: &'a [u8],
    key: &'a [u8],
}

impl<'a> PageToken<'a> {
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        // A key has fewer columns than would make this too long; a token cut short is refused.
        let length = u16::try_from(self.signature.len()).unwrap_or(u16::MAX);
        [&[Self::VERSION], length.to_be_bytes().as_slice(), self.signature, self.key].concat()
    }

    fn decode(bytes: &'a [u8]) -> Result<Self, Error> {
        let (head, rest) = bytes.split_first_chunk::<3>().ok_or(Error::PageToken)?;
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        if head[0] != Self::VERSION || rest.len() < length {
            return Err(Error::PageToken);
        }
        let (signature, key) = rest.split_at(length);
        Ok(Self { signature, key })
    }
}

struct Pages {
    cursor: Cursor,
    generation: Arc<Generation>,
    windows: Windows,
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
        for rows in split(value::rows(&batch)?) {
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

/// Cuts rows into messages.
pub(crate) fn split(rows: Vec<Row>) -> Vec<Vec<Row>> {
    let mut messages: Vec<Vec<Row>> = Vec::new();
    let mut bytes = MESSAGE_BYTES;
    for row in rows {
        let size = row.encoded_len() + 4;
        match messages.last_mut() {
            Some(message) if bytes + size <= MESSAGE_BYTES => {
                message.push(row);
                bytes += size;
            }
            Some(_) | None => {
                messages.push(vec![row]);
                bytes = size;
            }
        }
    }
    messages
}
