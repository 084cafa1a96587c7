//! A stream, a view and the names that go with them.

use std::{path::Path, sync::Arc, time::Duration};

use headwater_engine::ViewPlan;
use headwater_sql::{parse_stream, parse_view, plan_view};
use headwater_types::{GenerationId, Name, PartitionId};

pub(crate) const STREAM_SQL: &str = "
    CREATE STREAM orders (
      user_id BIGINT, amount DOUBLE, ts TIMESTAMP,
      WATERMARK FOR ts AS ts - INTERVAL '5 seconds'
    ) WITH (topic = 'orders', format = 'json', key = 'user_id', partitions = 1)";
pub(crate) const VIEW_SQL: &str = "
    CREATE MATERIALIZED VIEW spend WITH (retention = 'forever') AS
    SELECT user_id, count(*) AS orders, sum(amount) AS spend FROM orders GROUP BY user_id";

pub(crate) const P0: PartitionId = PartitionId(0);
/// How long a test waits for something that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn generation(number: u64) -> GenerationId {
    format!("{number:016x}").parse().unwrap()
}

pub(crate) fn plan() -> Arc<ViewPlan> {
    plan_of(1)
}

/// The plan of the view over a stream with so many partitions.
pub(crate) fn plan_of(partitions: u32) -> Arc<ViewPlan> {
    let stream = parse_stream(&stream_sql(partitions)).unwrap();
    Arc::new(plan_view(&parse_view(VIEW_SQL).unwrap(), &stream).unwrap())
}

pub(crate) fn stream_sql(partitions: u32) -> String {
    STREAM_SQL.replace("partitions = 1", &format!("partitions = {partitions}"))
}

/// Copies a database as a crash at this moment leaves it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        if entry.file_name() != "LOCK" {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
