//! Asks the peers for a shard that is not on this instance's disk.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_proto::query::v1::{OpenShard, ScanRange};
use headwater_state::Identity;
use headwater_types::Name;
use tracing::Instrument as _;

use crate::{
    error::Error,
    metrics::Metrics,
    peers::{
        pool::{Peer, PeerPool, PeerRefusal},
        session::PeerSession,
        shard_locator::{RemoteShard, ShardLocation, ShardLocator},
    },
    read_plan::{FreshnessGoal, ReadPlan, ScanPlan},
};

/// How often the forwarder checks whether a shard that it asks for has moved on.
const MOVED_PAUSE: Duration = Duration::from_millis(20);
/// A peer answers this much before the deadline, so that its answer arrives in time.
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(100);
/// How long after the deadline an answer is still awaited: it says how far the shard is.
const GRACE: Duration = Duration::from_millis(500);

/// Opens shards at peers.
pub(crate) struct Forwarder {
    pub locator: Arc<ShardLocator>,
    pub pool: Arc<PeerPool>,
    pub metrics: Metrics,
}

impl Forwarder {
    /// Asks the peers that share the shard's directory, one after the other.
    pub(crate) async fn open(
        &self,
        view: &Name,
        shard: &Identity,
        at: &RemoteShard,
        goal: FreshnessGoal,
        plan: &ReadPlan,
    ) -> Result<PeerSession, Error> {
        let mut problem = "no query instance says that it shares that directory".to_owned();
        for peer in self.pool.sharing(&self.locator.board(), &at.directory) {
            let span = tracing::debug_span!(
                "forward",
                generation = %shard.generation,
                partition = %shard.partition,
                instance = %peer.instance,
            );
            let ask = self.ask(&peer, shard, at, goal, plan).instrument(span);
            let asked = tokio::select! {
                asked = tokio::time::timeout_at((goal.deadline + GRACE).into(), ask) => asked,
                () = self.moves(shard, at) => {
                    problem = "it has just moved".into();
                    break;
                }
            };
            let Peer { instance, address } = &peer;
            match asked {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(PeerRefusal { status, down })) => {
                    problem = format!("{instance} at {address} says: {}", status.message());
                    if !down && is_final(status.code()) {
                        return Err(peer.failed(shard, &status));
                    }
                }
                Err(_) => {
                    problem = format!("{instance} at {address} did not answer in time");
                    break;
                }
            }
        }
        Err(Error::ShardUnreachable {
            view: view.to_string(),
            generation: shard.generation,
            partition: shard.partition,
            processor: at.processor.clone(),
            directory: at.directory.clone(),
            problem,
        })
    }

    async fn ask(
        &self,
        peer: &Peer,
        shard: &Identity,
        at: &RemoteShard,
        goal: FreshnessGoal,
        plan: &ReadPlan,
    ) -> Result<PeerSession, PeerRefusal> {
        let began = Instant::now();
        let left = goal.deadline.saturating_duration_since(began);
        let range = |scan: &ScanPlan| ScanRange {
            start: scan.range.start.clone(),
            end: scan.range.end.clone(),
            changed_since: scan.changed_since.as_ref().map(|since| {
                since.get(shard.partition.0 as usize).map_or(0, |position| position.0)
            }),
        };
        let open = OpenShard {
            generation: shard.generation.to_string(),
            partition: shard.partition.0,
            directory: at.directory.clone(),
            epoch: at.epoch,
            position: goal.position.0,
            max_age_micros: micros(began.saturating_duration_since(goal.since)),
            timeout_ms: millis(left.saturating_sub(ROUND_TRIP.min(left / 4))),
            duration_ms: millis(plan.duration),
            key: plan.key.clone(),
            scans: plan.scans.iter().map(range).collect(),
        };
        let first_rows: Vec<u32> = plan
            .scans
            .iter()
            .map(|scan| u32::try_from(scan.first_rows.max(1)).unwrap_or(u32::MAX))
            .collect();
        let opened = self.pool.open(peer, open, &first_rows).await;
        self.metrics.forwarded(began, opened.as_ref().map(drop).map_err(|it| &it.status));
        let (opened, stream) = opened?;
        let peer = Peer { instance: opened.instance.as_str().into(), ..peer.clone() };
        Ok(PeerSession::new(*shard, peer, opened, stream, first_rows))
    }

    /// Resolves when the shard is no longer where it was.
    async fn moves(&self, shard: &Identity, at: &RemoteShard) {
        loop {
            tokio::time::sleep(MOVED_PAUSE).await;
            match self.locator.locate(shard) {
                ShardLocation::Remote(now)
                    if now.directory == at.directory && now.epoch == at.epoch => {}
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
