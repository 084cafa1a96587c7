mod render;

use std::time::Duration;

use headwater_proto::control::v1::{
    AbortRequest, GetReplayRequest, ListReplaysRequest, Phase, PlanRequest, PromoteRequest, Replay,
    ResumeRequest, StartRequest, UndoRequest, Verdict,
};

use super::plan::{plan_json, print_plan};
use crate::{
    cli::{DecisionArgs, Output, ReplayCommand},
    client::{Server, request_id},
    failure::{Exit, Failure, Result},
    output,
};

pub(super) async fn run(server: &Server, command: ReplayCommand) -> Result {
    match command {
        ReplayCommand::Plan(args) => {
            let request = PlanRequest { view: args.view, view_sql: read(args.file)? };
            let plan = server.replays().plan(request).await?.into_inner();
            if args.output == Output::Table {
                print_plan(&plan);
                return Ok(());
            }
            output::objects(
                args.output,
                &["view", "records", "bytes", "disk_bytes", "seconds"],
                &[plan_json(&plan)],
            )
        }
        ReplayCommand::Start(args) => {
            let request = StartRequest {
                view: args.view,
                view_sql: read(args.file)?,
                options: Some(args.options.into()),
                request_id: request_id(),
            };
            let replay = server.replays().start(request).await?.into_inner();
            if args.wait {
                let last = wait(server, &replay.replay_id, true).await;
                return finish(server, &replay.replay_id, args.output, last).await;
            }
            render::one(args.output, &replay)
        }
        ReplayCommand::List { view, output } => {
            let request = ListReplaysRequest { view: view.unwrap_or_default() };
            let replays = server.replays().list(request).await?.into_inner().replays;
            render::list(output, &replays)
        }
        ReplayCommand::Get { replay, output } => {
            let request = GetReplayRequest { replay };
            render::one(output, &server.replays().get(request).await?.into_inner())
        }
        ReplayCommand::Watch { replay } => {
            let last = wait(server, &replay, true).await;
            finish(server, &replay, Output::Table, last).await
        }
        ReplayCommand::Promote { replay, accept_failed, decision } => {
            let DecisionArgs { reason, wait, output } = decision;
            let request =
                PromoteRequest { replay, accept_failed, reason, request_id: request_id() };
            let replay = server.replays().promote(request).await?.into_inner();
            decided(server, replay, wait, output).await
        }
        ReplayCommand::Abort { replay, decision } => {
            let DecisionArgs { reason, wait: _, output } = decision;
            let request = AbortRequest { replay, reason, request_id: request_id() };
            render::one(output, &server.replays().abort(request).await?.into_inner())
        }
        ReplayCommand::Undo { replay, decision } => {
            let DecisionArgs { reason, wait, output } = decision;
            let request = UndoRequest { view: replay, reason, request_id: request_id() };
            let replay = server.replays().undo(request).await?.into_inner();
            decided(server, replay, wait, output).await
        }
        ReplayCommand::Resume { replay, decision } => {
            let DecisionArgs { reason, wait: wait_for_it, output } = decision;
            let request = ResumeRequest { replay, reason, request_id: request_id() };
            let replay = server.replays().resume(request).await?.into_inner();
            if wait_for_it {
                let last = wait(server, &replay.replay_id, true).await;
                return finish(server, &replay.replay_id, output, last).await;
            }
            render::one(output, &replay)
        }
        ReplayCommand::Pause(_)
        | ReplayCommand::Throttle(_)
        | ReplayCommand::Verify(_)
        | ReplayCommand::Retry(_) => check(&command),
    }
}

/// Refuses the verbs that no server of this version has, before one is asked.
pub(super) fn check(command: &ReplayCommand) -> Result {
    let verb = match command {
        ReplayCommand::Pause(_) => "pause",
        ReplayCommand::Throttle(_) => "throttle",
        ReplayCommand::Verify(_) => "verify",
        ReplayCommand::Retry(_) => "retry",
        ReplayCommand::Plan(_)
        | ReplayCommand::Start(_)
        | ReplayCommand::List { .. }
        | ReplayCommand::Get { .. }
        | ReplayCommand::Watch { .. }
        | ReplayCommand::Promote { .. }
        | ReplayCommand::Abort { .. }
        | ReplayCommand::Resume { .. }
        | ReplayCommand::Undo { .. } => return Ok(()),
    };
    Err(Failure::usage(format!(
        "replay {verb} is not available in this version; `replay abort` and `replay start` are"
    )))
}

fn read(file: Option<std::path::PathBuf>) -> Result<String> {
    let Some(file) = file else { return Ok(String::new()) };
    std::fs::read_to_string(&file)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))
}

async fn decided(server: &Server, replay: Replay, wait_for_it: bool, output: Output) -> Result {
    if wait_for_it && let Some(held) = held(&replay) {
        render::one(output, &replay)?;
        return Err(held);
    }
    let replay = if wait_for_it && replay.phase() == Phase::Commit {
        wait(server, &replay.replay_id, false).await?;
        server.replays().get(GetReplayRequest { replay: replay.replay_id }).await?.into_inner()
    } else {
        replay
    };
    render::one(output, &replay)
}

/// Prints the replay, and returns how waiting for it ended.
async fn finish(server: &Server, replay: &str, output: Output, last: Result) -> Result {
    let state =
        server.replays().get(GetReplayRequest { replay: replay.to_owned() }).await?.into_inner();
    render::one(output, &state)?;
    last
}

/// Follows a replay until it is done or a person must decide. The exit code says which.
pub(super) async fn wait(server: &Server, replay: &str, show: bool) -> Result {
    let mut progress = show.then(render::Progress::new);
    loop {
        let request = GetReplayRequest { replay: replay.to_owned() };
        let mut states = server.replays().watch(request).await?.into_inner();
        while let Some(state) = states.message().await? {
            if let Some(progress) = &mut progress {
                progress.show(&state);
            }
            if let Some(outcome) = outcome(&state) {
                if let Some(progress) = progress.take() {
                    progress.finish();
                }
                return outcome;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What a script must notice of a replay that its operator holds before a phase.
fn held(replay: &Replay) -> Option<Failure> {
    let phase = render::held_before(replay)?;
    let id = &replay.replay_id;
    Some(Failure::new(
        Exit::Inconclusive,
        format!(
            "replay {id} is held before {phase}: go on with `headwater replay resume {id}`, or end it with \
             `headwater replay abort {id}`"
        ),
    ))
}

/// `None` while the replay goes on by itself.
fn outcome(replay: &Replay) -> Option<Result> {
    if let Some(held) = held(replay) {
        return Some(Err(held));
    }
    let id = &replay.replay_id;
    let promotes = replay.options.as_ref().is_some_and(|options| options.promote);
    match replay.phase() {
        Phase::Unspecified | Phase::Replay | Phase::Align | Phase::Diff | Phase::Commit => None,
        Phase::Retain | Phase::Undone | Phase::Retired => Some(Ok(())),
        Phase::Aborted => Some(Err(Failure::new(
            Exit::Failed,
            format!("replay {id} was aborted: {}", replay.reason),
        ))),
        Phase::Failed => {
            Some(Err(Failure::new(Exit::Failed, format!("replay {id} failed: {}", replay.reason))))
        }
        Phase::Hold => match replay.verdict() {
            Verdict::Pass if promotes => None,
            Verdict::Pass => Some(Ok(())),
            Verdict::Fail => Some(Err(Failure::new(
                Exit::Failed,
                format!(
                    "the diff is outside the thresholds; look at it, then `headwater replay abort {id}` or `headwater replay promote {id} --accept-failed`"
                ),
            ))),
            Verdict::Unspecified | Verdict::Inconclusive => Some(Err(Failure::new(
                Exit::Inconclusive,
                format!(
                    "a person must decide: `headwater replay promote {id}` or `headwater replay abort {id}`"
                ),
            ))),
        },
    }
}

#[cfg(test)]
mod tests {
    use headwater_proto::control::v1::HoldBefore;

    use super::*;

    fn exit(phase: Phase, verdict: Verdict) -> Option<Option<Exit>> {
        let replay = Replay { phase: phase.into(), verdict: verdict.into(), ..Replay::default() };
        outcome(&replay).map(|outcome| outcome.err().map(|failure| failure.exit))
    }

    #[test]
    fn the_exit_code_says_whether_a_person_must_decide() {
        assert_eq!(exit(Phase::Replay, Verdict::Unspecified), None);
        assert_eq!(exit(Phase::Hold, Verdict::Pass), Some(None));
        assert_eq!(exit(Phase::Hold, Verdict::Fail), Some(Some(Exit::Failed)));
        assert_eq!(exit(Phase::Hold, Verdict::Inconclusive), Some(Some(Exit::Inconclusive)));
        assert_eq!(exit(Phase::Failed, Verdict::Unspecified), Some(Some(Exit::Failed)));
        assert_eq!(exit(Phase::Retain, Verdict::Pass), Some(None));
    }

    #[test]
    fn a_held_replay_is_a_persons_to_decide_on_and_the_message_names_the_command() {
        for (before, phase, name) in [
            (HoldBefore::Align, Phase::Replay, "ALIGN"),
            (HoldBefore::Diff, Phase::Align, "DIFF"),
            (HoldBefore::Commit, Phase::Hold, "COMMIT"),
        ] {
            let replay = Replay {
                replay_id: "v-1".into(),
                phase: phase.into(),
                verdict: Verdict::Pass.into(),
                held_before: before.into(),
                ..Replay::default()
            };
            let failure = outcome(&replay).unwrap().unwrap_err();
            assert_eq!(failure.exit, Exit::Inconclusive);
            let says =
                format!("v-1 is held before {name}: go on with `headwater replay resume v-1`");
            assert!(failure.message.contains(&says), "{}", failure.message);
        }
    }
}
