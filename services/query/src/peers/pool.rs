//! Connections to the other query instances: which of them share a directory, and which answer.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use headwater_control::StatusBoard;
use headwater_proto::query::v1::{
    NextRows, OpenShard, ReadShardRequest, ReadShardResponse, ShardOpened,
    read_shard_request::Step, read_shard_response::Answer,
    shard_service_client::ShardServiceClient,
};
use headwater_state::Identity;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::error::Error;

/// The service under whose name query instances announce themselves.
pub(crate) const SERVICE: &str = "query";

/// For this long a peer that did not answer is asked after all others.
pub(crate) const DOWN: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(1);
/// A peer that is stuck is given up after the sum of the two.
const PING: Duration = Duration::from_secs(2);
const PONG: Duration = Duration::from_secs(2);

/// Unlimited in effect: scans that no client reads at the moment must not keep other scans from
/// arriving. Each scan has at most one message on its way, which bounds the memory.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
const STREAM_WINDOW: u32 = 1 << 20;

/// A single row may be larger than the usual bound on messages.
const LARGEST_MESSAGE: usize = 256 << 20;

/// Another query instance, as it announced itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub instance: Arc<str>,
    pub address: Arc<str>,
}

/// Connections to peers, and which peers do not answer.
pub(crate) struct PeerPool {
    ours: Arc<str>,
    connections: Mutex<HashMap<Arc<str>, PeerChannels>>,
    /// Addresses at which nothing answered, and until when they are asked last.
    down: Mutex<HashMap<Arc<str>, Instant>>,
    /// Spreads the reads over the instances that share a directory.
    turn: AtomicUsize,
}

/// Two connections to one peer. Scans stay open for as long as a client reads, and point reads must
/// not wait behind them for a stream.
#[derive(Clone)]
struct PeerChannels {
    points: Channel,
    scans: Channel,
}

/// An open stream to a peer.
pub(crate) struct PeerStream {
    pub requests: mpsc::Sender<ReadShardRequest>,
    pub answers: Streaming<ReadShardResponse>,
}

/// Why a peer did not open a shard.
#[derive(Debug)]
pub(crate) struct PeerRefusal {
    pub status: Status,
    /// Nothing that could know the shard was reached. The next peer is asked, and this one is asked
    /// last for a while.
    pub down: bool,
}

impl Peer {
    /// An answer of this peer that ends a request.
    pub(super) fn failed(&self, shard: &Identity, status: &Status) -> Error {
        Error::Peer {
            generation: shard.generation,
            partition: shard.partition,
            instance: self.instance.to_string(),
            address: self.address.to_string(),
            code: status.code(),
            message: status.message().to_owned(),
        }
    }
}

impl PeerPool {
    pub(crate) fn new(ours: Arc<str>) -> Self {
        Self {
            ours,
            connections: Mutex::default(),
            down: Mutex::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// The peers that share the directory, in the order in which they are to be asked.
    pub(crate) fn sharing(&self, board: &StatusBoard, directory: &str) -> Vec<Peer> {
        let mut peers: Vec<Peer> = board
            .instances(SERVICE)
            .filter(|status| status.directory == directory && !status.address.is_empty())
            .filter(|status| *status.instance != *self.ours)
            .map(|status| Peer {
                instance: status.instance.as_str().into(),
                address: status.address.as_str().into(),
            })
            .collect();
        if peers.len() > 1 {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % peers.len();
            peers.rotate_left(turn);
            let (now, down) = (Instant::now(), self.down.lock());
            peers.sort_by_key(|peer| down.get(&peer.address).is_some_and(|until| *until > now));
        }
        peers
    }

    /// Closes the connections to addresses that no instance announces any more.
    pub(crate) fn keep_announced(&self, board: &StatusBoard) {
        let announced =
            |address: &str| board.instances(SERVICE).any(|status| status.address == address);
        self.connections.lock().retain(|address, _| announced(address));
        self.down.lock().retain(|address, _| announced(address));
    }

    /// Opens a shard at a peer, and asks at once for the first rows of each scan.
    pub(crate) async fn open(
        &self,
        peer: &Peer,
        open: OpenShard,
        first_rows: &[u32],
    ) -> Result<(ShardOpened, PeerStream), PeerRefusal> {
        let opened = self.try_open(peer, open, first_rows).await;
        let mut down = self.down.lock();
        match &opened {
            Ok(_) => {
                down.remove(&peer.address);
            }
            Err(refused) if refused.down => {
                let until = Instant::now() + DOWN;
                if down.insert(peer.address.clone(), until).is_none() {
                    tracing::warn!(
                        instance = %peer.instance,
                        address = %peer.address,
                        error = refused.status.message(),
                        "a query instance does not answer"
                    );
                }
            }
            Err(_) => {}
        }
        opened
    }

    async fn try_open(
        &self,
        peer: &Peer,
        open: OpenShard,
        first_rows: &[u32],
    ) -> Result<(ShardOpened, PeerStream), PeerRefusal> {
        let connections = self.connections(peer)?;
        // Never full: each scan has at most one request on its way.
        let (requests, outgoing) = mpsc::channel(1 + first_rows.len() * 2);
        let steps = std::iter::once(Step::Open(open)).chain(
            (0..).zip(first_rows).map(|(scan, &max_rows)| Step::Next(NextRows { scan, max_rows })),
        );
        for step in steps {
            let _ = requests.try_send(ReadShardRequest { step: Some(step) });
        }
        let channel = if first_rows.is_empty() { connections.points } else { connections.scans };
        let mut client =
            ShardServiceClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
        let answers = client.read_shard(ReceiverStream::new(outgoing)).await;
        let mut answers = answers.map_err(PeerRefusal::of)?.into_inner();
        match answers.message().await.map_err(PeerRefusal::of)? {
            Some(ReadShardResponse { answer: Some(Answer::Opened(opened)) }) => {
                Ok((opened, PeerStream { requests, answers }))
            }
            Some(_) | None => Err(PeerRefusal {
                status: Status::unknown("it does not say where the shard is"),
                down: true,
            }),
        }
    }

    fn connections(&self, peer: &Peer) -> Result<PeerChannels, PeerRefusal> {
        let mut connections = self.connections.lock();
        if let Some(open) = connections.get(&peer.address) {
            return Ok(open.clone());
        }
        let endpoint =
            Endpoint::from_shared(peer.address.to_string()).map_err(|error| PeerRefusal {
                status: Status::invalid_argument(format!("its address is no URL: {error}")),
                down: true,
            })?;
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .tcp_nodelay(true);
        let open = PeerChannels { points: endpoint.connect_lazy(), scans: endpoint.connect_lazy() };
        connections.insert(peer.address.clone(), open.clone());
        Ok(open)
    }
}

impl PeerRefusal {
    fn of(status: Status) -> Self {
        // A status that the peer sent has no source; an error of the connection has one.
        let unreached = std::error::Error::source(&status).is_some();
        // The address belongs to another instance now, or to one of an older version.
        let other = matches!(status.code(), tonic::Code::Aborted | tonic::Code::Unimplemented);
        Self { status, down: unreached || other }
    }
}
