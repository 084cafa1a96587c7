//! Waiting for a phase of a replay.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use headwater_proto::control::v1::{GetReplayRequest, Phase, Replay};
use tonic::Status;

use crate::{dev::PATIENCE, platform::Platform};

pub async fn get(platform: &impl Platform, replay: &str) -> Result<Replay, Status> {
    let request = GetReplayRequest { replay: replay.into() };
    platform.replays().get(request).await.map(tonic::Response::into_inner)
}

/// Waits until the replay is in one of the phases.
pub async fn wait_for(platform: &impl Platform, replay: &str, phases: &[Phase]) -> Result<Replay> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = get(platform, replay).await?;
        if phases.contains(&state.phase()) {
            return Ok(state);
        }
        let ended = matches!(state.phase(), Phase::Failed | Phase::Aborted);
        ensure!(!ended, "replay {replay} ended: {}", state.reason);
        let waiting = &state.waiting_for;
        ensure!(
            Instant::now() < deadline,
            "replay {replay} is still in {:?}: {waiting}",
            state.phase()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
