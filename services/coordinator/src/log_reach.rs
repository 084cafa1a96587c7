//! How far the log goes for the streams that are replayed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use headwater_control::{ControlState, LogEnds, Reach, ReplayEntry, ReplayId, is_open};
use headwater_log::Log;
use tokio::time::Instant;
use tonic::Status;

use crate::definitions::StreamCache;

#[derive(Debug, Default)]
pub(crate) struct LogReach {
    pub(crate) known: LogEnds,
    /// Why the ends of the other partitions are not known.
    pub(crate) unknown: Vec<headwater_log::Error>,
}

impl LogReach {
    /// Asks the log for the ends of the stream that this replay reads.
    pub(crate) async fn add(
        &mut self,
        log: &dyn Log,
        streams: &StreamCache,
        state: &ControlState,
        replay: &ReplayEntry,
    ) -> Result<(), Status> {
        let Some(generation) = state.generations().get(&replay.new) else { return Ok(()) };
        let stream = streams.parse(&generation.stream_sql)?;
        // All at once: brokers that are away cost one time-out, however many partitions there are.
        let asked = generation.partitions().map(|partition| {
            let ends = log.ends(&stream.topic, partition);
            async move { (partition, ends.await) }
        });
        for (partition, ends) in join_all(asked).await {
            match ends {
                Ok(found) => {
                    let reach = Reach { start: found.start, end: found.end };
                    self.known.set(&generation.stream, partition, reach);
                }
                Err(error) => self.unknown.push(error),
            }
        }
        Ok(())
    }
}

/// The reach for all open replays, asked at most once per `keep` as long as the same replays are
/// open.
///
/// Only the leader's next step rests on it, which is due as often. An answer to a request always
/// asks the log.
pub(crate) struct CachedReach {
    keep: Duration,
    last: Option<(Instant, BTreeSet<ReplayId>, Arc<LogReach>)>,
}

impl CachedReach {
    pub(crate) fn new(keep: Duration) -> Self {
        Self { keep, last: None }
    }

    pub(crate) async fn get(
        &mut self,
        log: &dyn Log,
        streams: &StreamCache,
        state: &ControlState,
    ) -> Result<Arc<LogReach>, Status> {
        let open = || state.replays().values().filter(|replay| is_open(replay.phase));
        let ids: BTreeSet<_> = open().map(|replay| replay.id.clone()).collect();
        if let Some((at, of, reach)) = &self.last
            && at.elapsed() < self.keep
            && *of == ids
        {
            return Ok(reach.clone());
        }
        let mut reach = LogReach::default();
        for replay in open() {
            reach.add(log, streams, state, replay).await?;
        }
        let reach = Arc::new(reach);
        self.last = Some((Instant::now(), ids, reach.clone()));
        Ok(reach)
    }
}
