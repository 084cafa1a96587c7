//! Asking for a shard that is not on our disk.

use std::time::{Duration, Instant};

use headwater_proto::query::v1::{OpenShard, ScanRange};
use tracing::Instrument as _;

use crate::{
    error::Error,
    peers::pool::{Peer, PeerRefusal},
    peers::session::PeerSession,
    peers::shard_locator::{RemoteShard, ShardLocation},
    snapshot::generation_cache::Source,
    snapshot::shard_snapshot::{FreshnessGoal, ReadPlan, ScanPlan, ShardSnapshot},
    snapshot::shard_source::ShardSource,
};

/// How often it is checked whether a shard that a peer is asked for has moved on.
const MOVED_PAUSE: Duration = Duration::from_millis(20);
/// A peer answers this much earlier than the deadline, so that its answer arrives.
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(100);
/// How much longer than the deadline its answer is waited for: it says how far the shard is.
const GRACE: Duration = Duration::from_millis(500);

impl ShardSource {
    /// Asks the peers that share the shard's directory, one after the other.
    pub(crate) async fn forward(
        &self,
        place: &RemoteShard,
        wanted: FreshnessGoal,
        reads: &ReadPlan,
    ) -> Result<ShardSnapshot, Error> {
        let mut problem = "no query instance says that it shares that directory".to_owned();
        let Source { locator, peers, .. } = &*self.source;
        for peer in peers.sharing(&locator.board(), &place.directory) {
            let span = tracing::debug_span!(
                "forward",
                generation = %self.generation(),
                partition = %self.partition(),
                instance = %peer.instance,
            );
            let ask = self.ask(&peer, place, wanted, reads).instrument(span);
            let asked = tokio::select! {
                asked = tokio::time::timeout_at((wanted.deadline + GRACE).into(), ask) => asked,
                () = self.leaves(place) => {
                    problem = "it has just moved".into();
                    break;
                }
            };
            let Peer { instance, address } = &peer;
            match asked {
                Ok(Ok(held)) => return Ok(held),
                Ok(Err(PeerRefusal { status, down })) => {
                    problem = format!("{instance} at {address} says: {}", status.message());
                    if !down && is_final(status.code()) {
                        return Err(Error::Peer {
                            generation: self.generation(),
                            partition: self.partition(),
                            instance: instance.to_string(),
                            address: address.to_string(),
                            code: status.code(),
                            message: status.message().to_owned(),
                        });
                    }
                }
                Err(_) => {
                    problem = format!("{instance} at {address} did not answer in time");
                    break;
                }
            }
        }
        Err(Error::ShardUnreachable {
            view: self.view.to_string(),
            generation: self.generation(),
            partition: self.partition(),
            processor: place.processor.clone(),
            directory: place.directory.clone(),
            problem,
        })
    }

    async fn ask(
        &self,
        peer: &Peer,
        place: &RemoteShard,
        wanted: FreshnessGoal,
        reads: &ReadPlan,
    ) -> Result<ShardSnapshot, PeerRefusal> {
        let began = Instant::now();
        let left = wanted.deadline.saturating_duration_since(began);
        let partition = self.partition();
        let range = |scan: &ScanPlan| ScanRange {
            start: scan.range.start.clone(),
            end: scan.range.end.clone(),
            changed_since: scan
                .changed_since
                .as_ref()
                .map(|since| since.get(partition.0 as usize).map_or(0, |position| position.0)),
        };
        let open = OpenShard {
            generation: self.generation().to_string(),
            partition: partition.0,
            directory: place.directory.clone(),
            epoch: place.epoch,
            position: wanted.position.0,
            max_age_micros: micros(began.saturating_duration_since(wanted.since)),
            timeout_ms: millis(left.saturating_sub(ROUND_TRIP.min(left / 4))),
            duration_ms: millis(reads.duration),
            key: reads.key.clone(),
            scans: reads.scans.iter().map(range).collect(),
        };
        let first_rows: Vec<u32> = reads
            .scans
            .iter()
            .map(|scan| u32::try_from(scan.first_rows.max(1)).unwrap_or(u32::MAX))
            .collect();
        let opened = self.source.peers.open(peer, open, &first_rows).await;
        self.source.metrics.forwarded(began, opened.as_ref().map(drop).map_err(|it| &it.status));
        let (opened, stream) = opened?;
        let peer = Peer { instance: opened.instance.as_str().into(), ..peer.clone() };
        let session = PeerSession::new(self.generation(), partition, peer, stream, first_rows);
        Ok(ShardSnapshot::at_peer(opened, session))
    }

    /// Resolves when the shard is no longer where it was.
    async fn leaves(&self, place: &RemoteShard) {
        loop {
            tokio::time::sleep(MOVED_PAUSE).await;
            match self.source.locator.of(&self.identity) {
                ShardLocation::Remote(now)
                    if now.directory == place.directory && now.epoch == place.epoch => {}
                ShardLocation::Remote(_) | ShardLocation::Local { .. } => return,
            }
        }
    }
}

/// Whether asking again, here or elsewhere, would not help.
fn is_final(code: tonic::Code) -> bool {
    use tonic::Code;
    match code {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss
        | Code::PermissionDenied
        | Code::Unauthenticated => true,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Unimplemented
        | Code::Unavailable => false,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
