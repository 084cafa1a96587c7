//! Replays from their start to their end, also while the coordinator comes and goes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headwater_proto::control::v1::{
    AbortRequest, GetReplayRequest, Phase, PromoteRequest, Replay, UndoRequest,
};
use tonic::Status;

use crate::{dev::PATIENCE, feed::is_passing, platform::Platform};

pub async fn get(platform: &impl Platform, replay: &str) -> Result<Replay, Status> {
    let request = GetReplayRequest { replay: replay.into() };
    platform.replays().get(request).await.map(tonic::Response::into_inner)
}

/// Waits until the replay is in one of the phases.
pub async fn wait_for(platform: &impl Platform, replay: &str, phases: &[Phase]) -> Result<Replay> {
    until(platform, replay, |state| phases.contains(&state.phase())).await
}

/// As [`wait_for`]; the first question that is not answered ends it.
pub async fn wait_unless_cut_off(
    platform: &impl Platform,
    replay: &str,
    phases: &[Phase],
) -> Result<Replay> {
    let wanted = |state: &Replay| phases.contains(&state.phase());
    poll(platform, replay, wanted, |_| false).await
}

/// Waits until the replay is as wanted, whatever happens to the coordinator meanwhile.
pub async fn until(
    platform: &impl Platform,
    replay: &str,
    wanted: impl Fn(&Replay) -> bool,
) -> Result<Replay> {
    poll(platform, replay, wanted, is_passing).await
}

async fn poll(
    platform: &impl Platform,
    replay: &str,
    wanted: impl Fn(&Replay) -> bool,
    passes: impl Fn(&Status) -> bool,
) -> Result<Replay> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = match get(platform, replay).await {
            Ok(state) if wanted(&state) => return Ok(state),
            Err(status) if !passes(&status) => return Err(status.into()),
            state => state,
        };
        if let Ok(state) = &state {
            let ended = matches!(state.phase(), Phase::Failed | Phase::Aborted);
            ensure!(!ended, "replay {replay} ended: {}", state.reason);
        }
        ensure!(
            Instant::now() < deadline,
            "replay {replay} does not come to what is waited for: {state:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Of a replay which has read something, and by far not all.
pub fn in_the_middle(replay: &Replay) -> bool {
    replay.phase() == Phase::Replay
        && replay.records_done > 0
        && replay.records_done < replay.records_total / 2
}

/// Applies definitions that change a view; the replay which that starts. The request has an id, so a coordinator
/// that went away is asked again.
pub async fn start(platform: &impl Platform, id: &str, sql: &[&str]) -> Result<String> {
    let applied = again(async || platform.apply(id, sql).await).await?;
    let started = applied.changes.into_iter().find(|change| !change.replay_id.is_empty());
    Ok(started.context("no replay was started")?.replay_id)
}

/// Asks for the swap, without waiting for it.
pub async fn promote(platform: &impl Platform, replay: &str, id: &str) -> Result<Replay> {
    let request = PromoteRequest {
        replay: replay.into(),
        request_id: id.into(),
        reason: "the test".into(),
        ..PromoteRequest::default()
    };
    let answer = again(async || platform.replays().promote(request.clone()).await).await?;
    Ok(answer.into_inner())
}

pub async fn abort(platform: &impl Platform, replay: &str, id: &str) -> Result<Replay> {
    let request =
        AbortRequest { replay: replay.into(), request_id: id.into(), reason: "the test".into() };
    let answer = again(async || platform.replays().abort(request.clone()).await).await?;
    Ok(answer.into_inner())
}

pub async fn undo(platform: &impl Platform, view: &str, id: &str) -> Result<Replay> {
    let request =
        UndoRequest { view: view.into(), request_id: id.into(), reason: "the test".into() };
    let answer = again(async || platform.replays().undo(request.clone()).await).await?;
    Ok(answer.into_inner())
}

/// Asks until somebody is there to answer.
async fn again<T>(ask: impl AsyncFn() -> Result<T, Status>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(status) if is_passing(&status) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}
