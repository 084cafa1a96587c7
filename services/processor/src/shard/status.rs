//! The statuses that a shard reports on the status topic.

use std::time::{Duration, Instant};

use headwater_control::SwapId;
use headwater_log::Ends;
use headwater_proto::status::v1::ShardStatus;
use headwater_state::Identity;
use headwater_types::{Epoch, Offset, Remedy};

use crate::{
    error::ShardError,
    shard::{claim::claim, rate::Rate, task::ShardTask, thread::ShardThread},
};

/// A status that has not changed is reported again after this time: the topic keeps one status per
/// shard, and a late one of a former owner may have replaced it.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
/// How often the state's size is measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(2);

impl ShardThread {
    /// Reports the shard's status: at once if others wait for it, else every report interval if it
    /// has changed.
    pub(super) fn report_status(
        &mut self,
        task: &ShardTask,
        rate: &mut Rate,
        at_once: bool,
    ) -> Result<(), ShardError> {
        let interval = self.context.config.report_interval;
        if !at_once && self.status_made_at.is_some_and(|at| at.elapsed() < interval) {
            return Ok(());
        }
        let now = Instant::now();
        let records_per_second = rate.at(now, task.progress().tallies.read());
        let status = self.status(task, task.epoch(), records_per_second)?;
        self.epoch = task.epoch();
        self.status_made_at = Some(now);
        let outdated = self.reported_at.is_none_or(|at| at.elapsed() >= REFRESH_INTERVAL);
        if outdated || status != self.reported {
            self.context.status_reporter.enqueue(&self.lease, &status);
            self.reported_at = Some(now);
            self.reported = status;
        }
        Ok(())
    }

    /// The shard's status now.
    pub(super) fn status(
        &mut self,
        task: &ShardTask,
        epoch: Option<Epoch>,
        records_per_second: f64,
    ) -> Result<ShardStatus, ShardError> {
        let state_bytes = self.measure(task);
        let ends = self.ends(task)?;
        let progress = task.progress();
        // The shard may have read beyond the end that the log named last.
        let log_end = ends.end.max(progress.position);
        task.metrics().lag(log_end.0 - progress.position.0);
        task.metrics().measured(state_bytes, records_per_second);
        let (muted_for, muted_at) = match &self.muted {
            Some((swap, at)) => (swap.to_string(), at.0),
            None => (String::new(), 0),
        };
        Ok(ShardStatus {
            generation: self.identity.generation.to_string(),
            partition: self.identity.partition.0,
            position: progress.position.0,
            log_end: log_end.0,
            log_start: ends.start.0,
            watermark_micros: progress.watermark.known().map(|time| time.0),
            tallies: Some(progress.tallies.into()),
            records_per_second,
            state_bytes,
            checkpoints: task.visible_checkpoints(),
            muted_for,
            muted_at,
            error: String::new(),
            processor: self.context.instance.clone(),
            published: task.published()?.0,
            commits: task.commits(),
            epoch: epoch.map_or(0, |epoch| epoch.0),
            directory: self.context.directory.clone(),
            look_back: None,
        })
    }

    fn measure(&mut self, task: &ShardTask) -> u64 {
        match self.measured {
            Some((at, bytes)) if at.elapsed() < MEASURE_INTERVAL => bytes,
            Some(_) | None => {
                let bytes = task.state_bytes();
                self.measured = Some((Instant::now(), bytes));
                bytes
            }
        }
    }

    /// Where the partition starts and ends: asked once per report interval. While the log is away
    /// the last answer counts, for reading finds the outage by itself.
    fn ends(&mut self, task: &ShardTask) -> Result<Ends, ShardError> {
        let interval = self.context.config.report_interval;
        if let Some((_, ends)) = self.ends.filter(|(asked_at, _)| asked_at.elapsed() < interval) {
            return Ok(ends);
        }
        let ends = match (task.ends(), self.ends) {
            (Ok(ends), _) => ends,
            (Err(error), Some((_, known))) if error.remedy == Remedy::Retry => known,
            (Err(error), _) => return Err(error),
        };
        self.ends = Some((Instant::now(), ends));
        Ok(ends)
    }

    /// Reports why the shard is halted. A shard that was never opened is claimed for that: readers
    /// of the topic ignore a status with an older epoch.
    pub(super) fn report_halt(&mut self, reason: &str) -> Result<(), ShardError> {
        let Identity { generation, partition } = self.identity;
        let context = self.context.clone();
        let control = context.control.current();
        if let Some(entry) = control.generations().get(&generation) {
            let metrics = context.metrics.shard(&entry.view, &self.identity);
            metrics.stopped(true);
            self.halted = Some(metrics);
        }
        self.set_not_ready(format!(
            "partition {partition} of generation {generation} has stopped: {reason}"
        ));
        if self.epoch.is_some() {
            let status = self.error_status(self.reported.clone(), reason);
            context.status_reporter.enqueue(&self.lease, &status);
            self.reported = status;
        } else {
            let (writer, status) = claim(&context, &self.lease, |epoch, former| {
                let status = former.map(|former| former.status.clone()).unwrap_or_default();
                let mut status = self.error_status(status, reason);
                status.epoch = epoch.0;
                Ok(status)
            })?;
            self.epoch = Some(writer.epoch());
            self.muted = muted_by(&status);
            self.reported = status;
        }
        context.log_outage.end(self.identity);
        Ok(())
    }

    fn error_status(&self, last: ShardStatus, reason: &str) -> ShardStatus {
        ShardStatus {
            generation: self.identity.generation.to_string(),
            partition: self.identity.partition.0,
            processor: self.context.instance.clone(),
            directory: self.context.directory.clone(),
            records_per_second: 0.0,
            error: reason.to_owned(),
            ..last
        }
    }
}

/// The swap for which a shard with this status publishes nothing more, and from which position on.
pub(super) fn muted_by(status: &ShardStatus) -> Option<(SwapId, Offset)> {
    let swap = Some(status.muted_for.as_str()).filter(|swap| !swap.is_empty())?;
    Some((SwapId::from(swap), Offset(status.muted_at)))
}
