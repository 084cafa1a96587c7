//! The rows of one scan at a peer.

use std::{sync::Arc, time::Instant};

use headwater_state::Row;
use tokio::runtime::Handle;

use crate::{
    error::Error,
    peers::{row_codec::EncodedRows, session::PeerSession},
};

/// Each further message of a scan has up to this many times the rows of the one before, so that a
/// small page costs little and a long scan takes few steps.
const GROWTH: u32 = 4;

/// The rows of one scan at a peer. Blocks, so it is for threads.
pub(crate) struct RemoteRows {
    session: Arc<PeerSession>,
    scan: usize,
    handle: Handle,
    until: Instant,
    rows: EncodedRows,
    max_rows: u32,
    ended: bool,
}

impl RemoteRows {
    /// `scan` is the number of the scan in the session.
    pub(crate) fn new(
        session: Arc<PeerSession>,
        scan: usize,
        handle: Handle,
        until: Instant,
    ) -> Self {
        let max_rows = session.first_rows(scan);
        Self { session, scan, handle, until, rows: EncodedRows::default(), max_rows, ended: false }
    }

    pub(crate) fn next(&mut self) -> Option<Result<Row<'_>, Error>> {
        while self.rows.is_empty() {
            if self.ended {
                return None;
            }
            if let Err(error) = self.fill() {
                self.ended = true;
                return Some(Err(error));
            }
        }
        let Self { rows, session, .. } = self;
        rows.next().map(|row| row.map_err(|_| session.damaged()))
    }

    fn fill(&mut self) -> Result<(), Error> {
        let chunk = self.session.chunk(self.scan);
        let chunk = self.handle.block_on(tokio::time::timeout_at(self.until.into(), chunk));
        let chunk = chunk.map_err(|_| Error::TooLong)??;
        self.rows = EncodedRows::new(chunk.rows);
        self.ended = chunk.last;
        if !self.ended {
            // Read ahead: the next message arrives while these rows are merged.
            self.max_rows = self.max_rows.saturating_mul(GROWTH);
            self.session.ask(self.scan, self.max_rows);
        }
        Ok(())
    }
}
