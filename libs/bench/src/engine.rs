//! Measures decoding, filtering, tumbling count, sum, min and max, and commits: from chunks in
//! memory to a shard database.
//!
//! One thread applies the records. The figure is the CPU time of the whole process, so it includes
//! RocksDB's background threads.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, ensure};
use headwater_engine::Shard;
use headwater_state::{Identity, Options, ShardDb};
use headwater_types::{GenerationInputs, PartitionId};

use crate::{
    events,
    figures::{Better, Figure, cpu_time, quantile},
};

const EVENTS: u64 = 1_000_000;
const EVENTS_PER_COMMIT: u64 = 200_000;
const ROUNDS: usize = 5;

pub fn measure() -> anyhow::Result<Vec<Figure>> {
    let stream =
        headwater_sql::parse_stream(events::STREAM).map_err(|error| anyhow::anyhow!("{error}"))?;
    let view =
        headwater_sql::parse_view(events::VIEW).map_err(|error| anyhow::anyhow!("{error}"))?;
    let plan = Arc::new(
        headwater_sql::plan_view(&view, &stream).map_err(|error| anyhow::anyhow!("{error}"))?,
    );
    let inputs = GenerationInputs {
        stream_sql: &stream.sql,
        view_sql: view.sql.as_str(),
        floor: &[],
        ordinal: 0,
    };
    let identity = Identity { generation: inputs.digest(), partition: PartitionId(0) };
    let chunks = events::chunks(EVENTS);

    let (mut cpu, mut wall) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let directory = tempfile::tempdir()?;
        let db = ShardDb::open(directory.path(), &identity, &Options::default())?;
        let mut shard = Shard::open(plan.clone(), db)?;
        let (started, cpu_before) = (Instant::now(), cpu_time());
        for chunk in &chunks {
            shard.apply(chunk, None)?;
            if chunk.end().0.is_multiple_of(EVENTS_PER_COMMIT) {
                shard.commit()?;
            }
        }
        let progress = shard.commit()?;
        cpu.push((cpu_time() - cpu_before).as_nanos() as f64 / EVENTS as f64);
        wall.push(started.elapsed().as_nanos() as f64 / EVENTS as f64);
        let tallies = progress.tallies;
        ensure!(
            tallies.applied == EVENTS / 100 * 99 && tallies.filtered == EVENTS / 100,
            "unexpected tallies {tallies:?}"
        );
    }
    let best = |values: &mut [f64]| quantile(values, 0.0) / 1_000.0;
    let median = |values: &mut [f64]| quantile(values, 0.5) / 1_000.0;
    cpu.first().context("no round")?;
    Ok(vec![
        Figure::new("engine: CPU per event, median of 5", median(&mut cpu), "µs", Better::Lower)
            .must(1.2)
            .goal(0.6),
        Figure::new("engine: CPU per event, best of 5", best(&mut cpu), "µs", Better::Lower),
        Figure::new("engine: wall per event, median of 5", median(&mut wall), "µs", Better::Lower),
    ])
}
