//! Prints a replay for people and for programs.

use std::io::{self, IsTerminal, Write};

use headwater_proto::{
    common::v1::{PartitionOffset, Value},
    control::v1::{DiffReport, HoldBefore, Phase, Replay, Verdict},
};
use headwater_types::EventTime;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};

use crate::{
    cli::Output,
    failure::Result,
    output::{self, new_table, text, thousands},
};

/// Samples that a table shows. JSON has all samples.
const SHOWN_SAMPLES: usize = 8;

/// The name of a phase in every output.
pub(super) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "UNKNOWN",
        Phase::Replay => "REPLAY",
        Phase::Align => "ALIGN",
        Phase::Diff => "DIFF",
        Phase::Hold => "HOLD",
        Phase::Commit => "COMMIT",
        Phase::Retain => "RETAIN",
        Phase::Undone => "UNDONE",
        Phase::Retired => "RETIRED",
        Phase::Aborted => "ABORTED",
        Phase::Failed => "FAILED",
    }
}

/// The phase before which the replay stands, if its operator holds it there.
pub(super) fn held_before(replay: &Replay) -> Option<&'static str> {
    match replay.held_before() {
        HoldBefore::Unspecified => None,
        HoldBefore::Align => Some("ALIGN"),
        HoldBefore::Diff => Some("DIFF"),
        HoldBefore::Commit => Some("COMMIT"),
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Unspecified => "",
        Verdict::Pass => "PASS",
        Verdict::Fail => "FAIL",
        Verdict::Inconclusive => "INCONCLUSIVE",
    }
}

pub(super) fn list(output: Output, replays: &[Replay]) -> Result {
    let rows: Vec<_> = replays.iter().map(to_json).collect();
    let columns = [
        "replay",
        "view",
        "phase",
        "verdict",
        "done",
        "total",
        "old",
        "new",
        "started_at",
        "held_before",
    ];
    output::objects(output, &columns, &rows)
}

pub(super) fn one(output: Output, replay: &Replay) -> Result {
    if output != Output::Table {
        return output::objects(
            output,
            &["replay", "view", "phase", "verdict", "done", "total", "held_before"],
            &[to_json(replay)],
        );
    }
    let mut out = io::stdout().lock();
    writeln!(out, "replay {} of {}: {}", replay.replay_id, replay.view, phase(replay.phase()))?;
    writeln!(out, "  {} -> {}", replay.old_generation, replay.new_generation)?;
    if let Some(phase) = held_before(replay) {
        let id = &replay.replay_id;
        writeln!(out, "  held before {phase}; go on with `headwater replay resume {id}`")?;
    }
    if !replay.waiting_for.is_empty() {
        writeln!(out, "  waiting for {}", replay.waiting_for)?;
    }
    if !replay.reason.is_empty() {
        writeln!(out, "  {}", replay.reason)?;
    }
    if !replay.swap_fence.is_empty() {
        writeln!(out, "  swapped at {}, epoch {}", fence(&replay.swap_fence), replay.epoch)?;
    }
    if let Some(diff) = &replay.diff {
        writeln!(out, "  compared at {}", fence(&replay.fence))?;
        diff_table(&mut out, diff, replay.verdict())?;
    }
    if replay.phase() == Phase::Retain && replay.retain_until_ms > 0 {
        let until = EventTime::from_millis(replay.retain_until_ms);
        writeln!(out, "  undo until {until}: headwater replay undo {}", replay.view)?;
    }
    Ok(())
}

fn fence(fence: &[PartitionOffset]) -> String {
    let parts: Vec<_> = fence.iter().map(|p| format!("{}:{}", p.partition, p.offset)).collect();
    parts.join(" ")
}

fn diff_table(out: &mut impl Write, diff: &DiffReport, decided: Verdict) -> Result {
    writeln!(
        out,
        "  {} rows: {} same, {} changed, {} only old, {} only new",
        verdict(decided),
        thousands(diff.same),
        thousands(diff.changed),
        thousands(diff.only_old),
        thousands(diff.only_new)
    )?;
    if !diff.note.is_empty() {
        writeln!(out, "  note: {}", diff.note)?;
    }
    for (side, columns) in [("old", &diff.columns_only_old), ("new", &diff.columns_only_new)] {
        if !columns.is_empty() {
            writeln!(out, "  columns only in the {side} definition: {}", columns.join(", "))?;
        }
    }
    let changed: Vec<_> = diff.columns.iter().filter(|column| column.changed > 0).collect();
    if !changed.is_empty() {
        let number =
            |x: Option<f64>| x.map(|x| format!("{}", (x * 1e6).round() / 1e6)).unwrap_or_default();
        let mut table = new_table(
            ["column", "rows changed", "sum old", "sum new", "largest change"].into_iter(),
        );
        for column in changed {
            table.add_row([
                column.column.clone(),
                thousands(column.changed),
                number(column.sum_old),
                number(column.sum_new),
                number(column.max_delta),
            ]);
        }
        writeln!(out, "{table}")?;
    }
    if !diff.samples.is_empty() {
        let header = diff.key.iter().chain(&diff.sample_columns).map(String::as_str);
        let mut table = new_table(header);
        for sample in diff.samples.iter().take(SHOWN_SAMPLES) {
            let cell =
                |index: usize| match (sample.old_values.get(index), sample.new_values.get(index)) {
                    (Some(old), Some(new)) if old == new => text(new),
                    (Some(old), Some(new)) => format!("{} → {}", shown(old), shown(new)),
                    (Some(old), None) => format!("- {}", shown(old)),
                    (None, Some(new)) => format!("+ {}", shown(new)),
                    (None, None) => String::new(),
                };
            let cells = sample.key.iter().map(text).chain((0..diff.sample_columns.len()).map(cell));
            table.add_row(cells);
        }
        writeln!(out, "{table}")?;
        if diff.samples.len() > SHOWN_SAMPLES {
            writeln!(out, "  … `-o json` has {} samples", diff.samples.len())?;
        }
    }
    Ok(())
}

fn shown(value: &Value) -> String {
    if value.kind.is_none() { "NULL".into() } else { text(value) }
}

fn to_json(replay: &Replay) -> Json {
    let positions = |positions: &[PartitionOffset]| {
        positions
            .iter()
            .map(|p| json!({"partition": p.partition, "offset": p.offset}))
            .collect::<Vec<_>>()
    };
    let time = |millis: i64| (millis > 0).then(|| EventTime::from_millis(millis).to_string());
    json!({
        "replay": replay.replay_id,
        "view": replay.view,
        "phase": phase(replay.phase()),
        "held_before": held_before(replay),
        "verdict": verdict(replay.verdict()),
        "old": replay.old_generation,
        "new": replay.new_generation,
        "done": replay.records_done,
        "total": replay.records_total,
        "per_second": replay.records_per_second,
        "eta_seconds": replay.eta_seconds,
        "waiting_for": replay.waiting_for,
        "reason": replay.reason,
        "actor": replay.actor,
        "epoch": replay.epoch,
        "fence": positions(&replay.fence),
        "swap_fence": positions(&replay.swap_fence),
        "started_at": time(replay.started_at_ms),
        "retain_until": time(replay.retain_until_ms),
        "diff": replay.diff.as_ref().map(diff_json),
    })
}

fn diff_json(diff: &DiffReport) -> Json {
    let values =
        |values: &[Value]| values.iter().map(|value| Json::from(text(value))).collect::<Vec<_>>();
    json!({
        "same": diff.same,
        "changed": diff.changed,
        "only_old": diff.only_old,
        "only_new": diff.only_new,
        "note": diff.note,
        "columns": diff.columns.iter().map(|c| json!({
            "column": c.column, "changed": c.changed, "sum_old": c.sum_old, "sum_new": c.sum_new, "max_delta": c.max_delta,
        })).collect::<Vec<_>>(),
        "columns_only_old": diff.columns_only_old,
        "columns_only_new": diff.columns_only_new,
        "key": diff.key,
        "sample_columns": diff.sample_columns,
        "samples": diff.samples.iter().map(|s| json!({
            "key": values(&s.key), "old": values(&s.old_values), "new": values(&s.new_values),
        })).collect::<Vec<_>>(),
    })
}

/// Shows progress: on a terminal as a bar with rate and time left, elsewhere as a line for each
/// phase and each tenth.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    last: Option<(Phase, HoldBefore, u64)>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template(
                "{prefix:>8} {bar:28.cyan/blue} {percent:>3} % · {wide_msg}",
            ) {
                bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
            }
            bar
        });
        Self { bar, last: None }
    }

    pub(super) fn show(&mut self, replay: &Replay) {
        let total = replay.records_total.max(1);
        let rate = match replay.records_per_second {
            rate if rate >= 1.0 => format!(" · {}/s", thousands(rate as u64)),
            _ => String::new(),
        };
        let eta = match (replay.phase(), replay.eta_seconds) {
            (Phase::Replay, Some(seconds)) => format!(" · eta {seconds:.0} s"),
            (Phase::Replay, None) if replay.records_per_second > 0.0 => " · eta unknown".into(),
            _ => String::new(),
        };
        let waiting = match (held_before(replay), replay.waiting_for.as_str()) {
            (Some(phase), _) => {
                let id = &replay.replay_id;
                format!(" · held before {phase}; go on with `headwater replay resume {id}`")
            }
            (None, "") => String::new(),
            (None, waiting_for) => format!(" · waits for {waiting_for}"),
        };
        let message = format!(
            "{} of {} records{rate}{eta}{waiting}",
            thousands(replay.records_done.min(replay.records_total)),
            thousands(replay.records_total)
        );
        match &self.bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(replay.records_done.min(total));
                bar.set_prefix(phase(replay.phase()));
                bar.set_message(message);
            }
            None => {
                let tenth = replay.records_done * 10 / total;
                let now = (replay.phase(), replay.held_before(), tenth);
                if self.last != Some(now) {
                    self.last = Some(now);
                    eprintln!("{} {message}", phase(replay.phase()));
                }
            }
        }
    }

    pub(super) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.abandon();
        }
    }
}
