//! A shard that a peer holds for us.
//!
//! The open stream is what keeps the peer at one commit: there is no lease to be renewed, to run out too
//! early or to be forgotten, and a requester that dies lets go by dying. The peer opens every scan of the
//! request under that commit before it answers, so that it holds up nobody else's catching up meanwhile. All
//! scans share the stream, and each gets one message for each that it asks for: one that is not read on keeps
//! at most one message waiting, and never another one.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use headwater_proto::query::v1::{
    NextRows, ReadShardRequest, ReadShardResponse, RowChunk, read_shard_request::Step,
    read_shard_response::Answer,
};
use headwater_state::Row;
use headwater_types::{GenerationId, PartitionId};
use tokio::{runtime::Handle, sync::Mutex};
use tonic::{Code, Status};

use crate::{
    error::Error,
    peers::pool::{Peer, PeerStream},
    peers::row_codec::EncodedRows,
};

/// Each further message of a scan has up to this many times the rows of the one before, so that a small page is
/// read for little and a long scan in few steps.
const GROWTH: u32 = 4;

/// A shard at a peer, held at one commit until this is dropped.
pub(crate) struct PeerSession {
    pub generation: GenerationId,
    pub partition: PartitionId,
    pub peer: Peer,
    requests: tokio::sync::mpsc::Sender<ReadShardRequest>,
    answers: Mutex<Answers>,
    /// How many rows the first message of each scan may have.
    first_rows: Vec<u32>,
}

struct Answers {
    stream: tonic::Streaming<ReadShardResponse>,
    /// Messages that arrived while another scan was waiting for its own, by scan.
    ready: Vec<VecDeque<RowChunk>>,
}

impl PeerSession {
    pub(crate) fn new(
        generation: GenerationId,
        partition: PartitionId,
        peer: Peer,
        stream: PeerStream,
        first_rows: Vec<u32>,
    ) -> Self {
        let ready = first_rows.iter().map(|_| VecDeque::new()).collect();
        let PeerStream { requests, answers } = stream;
        let answers = Mutex::new(Answers { stream: answers, ready });
        Self { generation, partition, peer, requests, answers, first_rows }
    }

    pub(crate) fn failed(&self, status: &Status) -> Error {
        Error::Peer {
            generation: self.generation,
            partition: self.partition,
            instance: self.peer.instance.to_string(),
            address: self.peer.address.to_string(),
            code: status.code(),
            message: status.message().to_owned(),
        }
    }

    pub(crate) fn damaged(&self) -> Error {
        self.failed(&Status::data_loss("it sent bytes that are no rows"))
    }

    /// The next message of a scan, which has been asked for.
    async fn chunk(&self, scan: usize) -> Result<RowChunk, Error> {
        loop {
            // Whoever waits here reads for all; the lock goes round after each message.
            let mut answers = self.answers.lock().await;
            if let Some(chunk) = answers.ready.get_mut(scan).and_then(VecDeque::pop_front) {
                return Ok(chunk);
            }
            match answers.stream.message().await {
                Ok(Some(ReadShardResponse { answer: Some(Answer::Rows(chunk)) })) => {
                    let queue = usize::try_from(chunk.scan)
                        .ok()
                        .and_then(|scan| answers.ready.get_mut(scan));
                    queue.ok_or_else(|| self.damaged())?.push_back(chunk);
                }
                Ok(Some(_)) => return Err(self.damaged()),
                Ok(None) => {
                    return Err(
                        self.failed(&Status::unavailable("it ended in the middle of a scan"))
                    );
                }
                // What its own connection broke by is said as a peer that is away.
                Err(status) if std::error::Error::source(&status).is_some() => {
                    return Err(self.failed(&Status::new(Code::Unavailable, status.message())));
                }
                Err(status) => return Err(self.failed(&status)),
            }
        }
    }
}

/// The rows of one scan at a peer. Blocks: for threads.
pub(crate) struct PeerRows {
    session: Arc<PeerSession>,
    scan: usize,
    handle: Handle,
    until: Instant,
    rows: EncodedRows,
    max_rows: u32,
    ended: bool,
}

impl PeerRows {
    /// `scan` counts as the session's.
    pub(crate) fn new(
        session: Arc<PeerSession>,
        scan: usize,
        handle: Handle,
        until: Instant,
    ) -> Self {
        let max_rows = session.first_rows.get(scan).copied().unwrap_or(1);
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
            // Read ahead: it arrives while these are merged.
            self.max_rows = self.max_rows.saturating_mul(GROWTH);
            let scan = u32::try_from(self.scan).unwrap_or(u32::MAX);
            let step = Step::Next(NextRows { scan, max_rows: self.max_rows });
            let ask = ReadShardRequest { step: Some(step) };
            // If it cannot be sent, the stream has ended, and the answers say why.
            let _ = self.session.requests.try_send(ask);
        }
        Ok(())
    }
}
