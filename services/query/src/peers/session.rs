//! A shard that a peer holds at one commit for this instance.
//!
//! The open stream keeps the peer at the commit. No lease has to be renewed, and an asker that dies
//! releases the commit, because its stream ends. The peer opens every scan of the request under
//! that commit before it answers, so that it delays no catch-up of its own afterwards.
//!
//! All scans share the stream. Each message of a scan is asked for, so that a scan that is not read
//! keeps at most one message waiting and never blocks another scan.

use std::collections::VecDeque;

use headwater_proto::query::v1::{
    NextRows, ReadShardRequest, ReadShardResponse, RowChunk, ShardOpened, read_shard_request::Step,
    read_shard_response::Answer,
};
use headwater_state::Identity;
use tokio::sync::{Mutex, mpsc};
use tonic::{Code, Status};

use crate::{
    error::Error,
    peers::pool::{Peer, PeerStream},
};

/// A shard at a peer, at one commit until this is dropped.
pub(crate) struct PeerSession {
    pub shard: Identity,
    pub peer: Peer,
    /// The peer's answer when it opened the shard.
    pub opened: ShardOpened,
    requests: mpsc::Sender<ReadShardRequest>,
    answers: Mutex<Answers>,
    /// How many rows the first message of each scan may have.
    first_rows: Vec<u32>,
}

struct Answers {
    stream: tonic::Streaming<ReadShardResponse>,
    /// Messages that arrived while another scan waited for its own, by scan.
    ready: Vec<VecDeque<RowChunk>>,
}

impl PeerSession {
    /// `first_rows` has one number per scan that was opened.
    pub(super) fn new(
        shard: Identity,
        peer: Peer,
        opened: ShardOpened,
        stream: PeerStream,
        first_rows: Vec<u32>,
    ) -> Self {
        let ready = first_rows.iter().map(|_| VecDeque::new()).collect();
        let PeerStream { requests, answers } = stream;
        let answers = Mutex::new(Answers { stream: answers, ready });
        Self { shard, peer, opened, requests, answers, first_rows }
    }

    pub(crate) fn damaged(&self) -> Error {
        self.failed(&Status::data_loss("it sent bytes that are no rows"))
    }

    fn failed(&self, status: &Status) -> Error {
        self.peer.failed(&self.shard, status)
    }

    /// How many rows the first message of a scan may have.
    pub(super) fn first_rows(&self, scan: usize) -> u32 {
        self.first_rows.get(scan).copied().unwrap_or(1)
    }

    /// Asks for the next message of a scan.
    pub(super) fn ask(&self, scan: usize, max_rows: u32) {
        let scan = u32::try_from(scan).unwrap_or(u32::MAX);
        let request = ReadShardRequest { step: Some(Step::Next(NextRows { scan, max_rows })) };
        // If the request cannot be sent, the stream has ended, and the next answer says why.
        let _ = self.requests.try_send(request);
    }

    /// The next message of a scan, which has been asked for.
    pub(super) async fn chunk(&self, scan: usize) -> Result<RowChunk, Error> {
        loop {
            // The scan that holds the lock reads for all scans. It gives the lock up after each
            // message.
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
                // The connection broke: to the client that is a peer that is away.
                Err(status) if std::error::Error::source(&status).is_some() => {
                    return Err(self.failed(&Status::new(Code::Unavailable, status.message())));
                }
                Err(status) => return Err(self.failed(&status)),
            }
        }
    }
}
