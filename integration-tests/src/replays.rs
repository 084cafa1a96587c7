//! Replays from their start to their end, also while the coordinator comes and goes.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use headwater_proto::control::v1::{
    AbortRequest, GetReplayRequest, HoldBefore, Phase, PromoteRequest, Replay, ReplayOptions,
    ResumeRequest, UndoRequest,
};
use tonic::Status;

use crate::{
    feed::is_passing,
    patience::{PATIENCE, eventually, found},
    platform::Platform,
};

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
    let what = format!("replay {replay} comes to what is waited for");
    let state = eventually(&what, async || match get(platform, replay).await {
        Err(status) if !passes(&status) => Err(status.into()),
        state => {
            let ended = |state: &Replay| matches!(state.phase(), Phase::Failed | Phase::Aborted);
            if let Ok(state) = &state
                && !wanted(state)
            {
                ensure!(!ended(state), "replay {replay} ended: {}", state.reason);
            }
            Ok(found(state, |state| state.as_ref().is_ok_and(&wanted)))
        }
    });
    Ok(state.await??)
}

/// Whether the replay has read something, and by far not all.
pub fn in_the_middle(replay: &Replay) -> bool {
    replay.phase() == Phase::Replay
        && replay.records_done > 0
        && replay.records_done < replay.records_total / 2
}

/// Applies definitions that change a view; the replay which that starts. The request has an id, so
/// a coordinator that went away is asked again.
pub async fn start(platform: &impl Platform, id: &str, sql: &[&str]) -> Result<String> {
    start_held(platform, id, sql, HoldBefore::Unspecified).await
}

/// As [`start`], and the replay is held before a phase.
pub async fn start_held(
    platform: &impl Platform,
    id: &str,
    sql: &[&str],
    hold_before: HoldBefore,
) -> Result<String> {
    let options = ReplayOptions { hold_before: hold_before.into(), ..ReplayOptions::default() };
    let applied = again(async || platform.apply_with(id, sql, options.clone()).await).await?;
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

/// Lets a held replay go on, without waiting for anything.
pub async fn resume(platform: &impl Platform, replay: &str, id: &str) -> Result<Replay> {
    let request =
        ResumeRequest { replay: replay.into(), request_id: id.into(), reason: "the test".into() };
    let answer = again(async || platform.replays().resume(request.clone()).await).await?;
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
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}
