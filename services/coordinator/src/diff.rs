//! The comparison of two generations at the fence, row by row.
//!
//! Both sides are read from their checkpoints, which lie on this machine's disk or are fetched from
//! the store. They are read in key order and a batch at a time, so that memory is bounded and live
//! shards are not touched. Rows are matched by their stored keys; that needs equal key columns. A
//! row is the same if it is equal in every column that both sides have: exact types by value,
//! doubles by their bits.

mod cell;
mod side;
mod tally;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, bail};
use headwater_control::{CheckpointId, ControlState, ReplayEntry, StatusBoard};
use headwater_proto::control::v1::{DiffReport, ReplayOptions, Verdict};
use headwater_service::failpoint;
use headwater_state::Store;

use crate::context::Context;
use side::{FetchedCheckpoints, Rows, Side};
use tally::Tally;

/// Two sides, ready to be compared.
pub(crate) struct Comparison {
    old: Side,
    new: Side,
    /// The directory for the checkpoints that are fetched.
    scratch: PathBuf,
    store: Option<Store>,
    options: ReplayOptions,
    samples: usize,
}

impl Comparison {
    /// Collects where both sides' checkpoints lie. Reads nothing yet.
    pub(crate) fn prepare(
        context: &Context,
        state: &ControlState,
        board: &StatusBoard,
        replay: &ReplayEntry,
    ) -> anyhow::Result<Self> {
        let fence = replay.fence.as_ref().context("the fence is not known")?;
        let id: CheckpointId = replay.checkpoint_id();
        let side = |generation| {
            let entry = state.generations().get(&generation).context("a generation is unknown")?;
            Side::new(entry, board, fence, &id, context.store.as_ref())
        };
        Ok(Self {
            old: side(replay.old)?,
            new: side(replay.new)?,
            // A comparison that was stopped may still be removing its directory.
            scratch: context
                .scratch
                .join(format!("{id}-{}", STARTED.fetch_add(1, Ordering::Relaxed))),
            store: context.store.clone(),
            options: replay.options.clone(),
            samples: context.config.diff_samples as usize,
        })
    }
}

/// Comparisons that this process has begun.
static STARTED: AtomicU64 = AtomicU64::new(0);

/// Whether the comparison failed because the store is away.
pub(crate) fn may_succeed_later(error: &anyhow::Error) -> bool {
    let away =
        |cause: &headwater_state::Error| matches!(cause, headwater_state::Error::Store { .. });
    error.chain().any(|cause| cause.downcast_ref().is_some_and(away))
}

/// Compares until it is done or stopped. It blocks its thread, and fetches from the store on the
/// runtime that it is called in.
pub(crate) fn compare(
    comparison: &Comparison,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<(DiffReport, Verdict)> {
    let Comparison { old, new, scratch, store, options, samples } = comparison;
    let (old_plan, new_plan) = (old.plan()?, new.plan()?);
    // Dropped after the readers, which read its files.
    let fetched = FetchedCheckpoints::new(store.as_ref(), scratch, stop);
    let (old_readers, new_readers) = (old.open(&fetched)?, new.open(&fetched)?);
    let mut old_rows = Rows::new(&old_plan, &old_readers)?;
    let mut new_rows = Rows::new(&new_plan, &new_readers)?;
    let mut tally = Tally::new(&old_rows, &new_rows, *samples);
    if !tally.matched {
        tally.report.note = format!(
            "the key columns differ, ({}) before and ({}) now, so no row can be matched: every row counts as only old or \
             only new",
            old_rows.key_types().join(", "),
            new_rows.key_types().join(", ")
        );
    }
    while failpoint::stands("coordinator.diff", || true) && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(failpoint::PAUSE);
    }
    let mut steps: u64 = 0;
    loop {
        steps += 1;
        if steps.is_multiple_of(1024) && stop.load(Ordering::Relaxed) {
            bail!("it was stopped");
        }
        let order = match (old_rows.key()?, new_rows.key()?) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(_), Some(_)) if !tally.matched => std::cmp::Ordering::Less,
            (Some(old), Some(new)) => old.cmp(new),
        };
        match order {
            std::cmp::Ordering::Less => {
                tally.only_old(&old_rows)?;
                old_rows.advance();
            }
            std::cmp::Ordering::Greater => {
                tally.only_new(&new_rows)?;
                new_rows.advance();
            }
            std::cmp::Ordering::Equal => {
                tally.both(&old_rows, &new_rows)?;
                old_rows.advance();
                new_rows.advance();
            }
        }
    }
    let report = tally.finish();
    let verdict = verdict(&report, options);
    Ok((report, verdict))
}

/// The verdict by the thresholds. Shares are of the old generation's rows.
pub(crate) fn verdict(report: &DiffReport, options: &ReplayOptions) -> Verdict {
    let old_rows = report.same + report.changed + report.only_old;
    let share = |rows: u64| match (rows, old_rows) {
        (0, _) => 0.0,
        (_, 0) => f64::INFINITY,
        (rows, old_rows) => rows as f64 / old_rows as f64,
    };
    let limits = [
        (report.changed, options.max_changed),
        (report.only_old, options.max_only_old),
        (report.only_new, options.max_only_new),
    ];
    let (mut fails, mut unsure) = (false, !report.note.is_empty());
    for (rows, limit) in limits {
        match limit {
            Some(limit) => fails |= share(rows) > limit,
            // Without a limit, a person decides.
            None => unsure |= rows > 0,
        }
    }
    match (fails, unsure) {
        (true, _) => Verdict::Fail,
        (false, true) => Verdict::Inconclusive,
        (false, false) => Verdict::Pass,
    }
}

#[cfg(test)]
mod tests;
