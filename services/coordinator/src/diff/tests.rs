use std::path::Path;

use headwater_engine::Shard;
use headwater_log::{BatchBuilder, Chunk};
use headwater_proto::common::v1::{Value, value::Kind};
use headwater_state::{Identity, Options, ShardDb};
use headwater_types::{GenerationId, Offset, PartitionId};

use super::*;

const STREAM: &str = "CREATE STREAM orders (
    user_id BIGINT NOT NULL, place VARCHAR, amount DOUBLE, price DECIMAL(10,2), ts TIMESTAMP NOT NULL,
    WATERMARK FOR ts AS ts - INTERVAL '5 seconds'
) WITH (topic = 'orders', format = 'json', key = 'user_id', partitions = 2);";

fn view(select: &str) -> String {
    format!(
        "CREATE MATERIALIZED VIEW v WITH (retention = 'forever') AS SELECT {select} EMIT ON UPDATE;"
    )
}

fn order(user: i64, place: &str, amount: f64, price: &str) -> (i64, String) {
    let event = format!(
        r#"{{"user_id":{user},"place":"{place}","amount":{amount:?},"price":{price},"ts":"2024-01-01T00:00:00Z"}}"#
    );
    (user, event)
}

/// A generation's checkpoints after these orders, built by real shards.
fn side(directory: &Path, generation: u64, select: &str, orders: &[(i64, String)]) -> Side {
    let generation: GenerationId = format!("{generation:016x}").parse().unwrap();
    let stream = headwater_sql::parse_stream(STREAM).unwrap();
    let view = headwater_sql::parse_view(&view(select)).unwrap();
    let plan = Arc::new(headwater_sql::plan_view(&view, &stream).unwrap());
    let checkpoints = [0, 1].map(|partition| {
        let identity = Identity { generation, partition: PartitionId(partition) };
        let path = directory.join(format!("{generation}-{partition}"));
        let db = ShardDb::open(&path.join("db"), &identity, &Options::default()).unwrap();
        let mut shard = Shard::open(plan.clone(), db).unwrap();
        let mut batch = BatchBuilder::new();
        for (_, event) in
            orders.iter().filter(|(user, _)| user.rem_euclid(2) == i64::from(partition))
        {
            batch.push(1_704_067_200_000, None, Some(event.as_bytes()), &[]);
        }
        if let Some(mut batch) = batch.build() {
            batch.assign(Offset::ZERO);
            let end = Offset(batch.records().into());
            shard.apply(&Chunk::new(batch.into_bytes(), end), None).unwrap();
        }
        shard.commit().unwrap();
        shard.db().checkpoint(&path.join("checkpoint")).unwrap();
        (PartitionId(partition), shard.progress().position, path.join("checkpoint"))
    });
    Side::at(generation, &view.sql, &stream.sql, checkpoints)
}

fn compared(old: Side, new: Side, options: ReplayOptions) -> anyhow::Result<(DiffReport, Verdict)> {
    let scratch = PathBuf::from("/nonexistent");
    let comparison = Comparison { old, new, scratch, store: None, options, samples: 20 };
    compare(&comparison, &Arc::new(AtomicBool::new(false)))
}

fn orders() -> Vec<(i64, String)> {
    vec![
        order(1, "a", 1.5, "2.50"),
        order(2, "b", 2.5, "0.05"),
        order(3, "a", -1.0, "1.00"),
        order(3, "b", 4.0, "null"),
    ]
}

const PER_USER: &str =
    "user_id, count(*) AS orders, sum(amount) AS amount FROM orders GROUP BY user_id";

#[test]
fn the_same_definition_over_the_same_records_differs_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let old = side(directory.path(), 1, PER_USER, &orders());
    let new = side(directory.path(), 2, PER_USER, &orders());
    let (report, verdict) = compared(old, new, ReplayOptions::default()).unwrap();
    assert_eq!((report.same, report.changed, report.only_old, report.only_new), (3, 0, 0, 0));
    assert_eq!((verdict, report.note.as_str(), report.samples.len()), (Verdict::Pass, "", 0));
    assert_eq!(report.columns[1].sum_old, Some(7.0));
}

#[test]
fn partial_rows_of_several_shards_are_compared_as_the_one_row_that_they_are() {
    let per_place = "place, count(*) AS orders, min(user_id) AS first FROM orders GROUP BY place";
    let directory = tempfile::tempdir().unwrap();
    let mut fewer = orders();
    fewer.remove(1);
    let old = side(directory.path(), 1, per_place, &orders());
    let new = side(directory.path(), 2, per_place, &fewer);
    let (report, _) = compared(old, new, ReplayOptions::default()).unwrap();
    assert_eq!((report.same, report.changed), (1, 1));
    assert_eq!(report.samples[0].key[0].kind, Some(Kind::Text("b".into())));
    let values = |values: &[Value]| {
        values.iter().map(|value| value.kind.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(values(&report.samples[0].old_values), [Kind::Integer(2), Kind::Integer(2)]);
    assert_eq!(values(&report.samples[0].new_values), [Kind::Integer(1), Kind::Integer(3)]);
    assert_eq!((report.columns[1].changed, report.columns[1].max_delta), (1, Some(1.0)));
}

#[test]
fn columns_of_one_side_are_named_and_the_rest_is_compared() {
    let directory = tempfile::tempdir().unwrap();
    let old = side(directory.path(), 1, PER_USER, &orders());
    let select = "user_id, count(*) AS orders, max(price) AS dearest FROM orders WHERE amount > 0 GROUP BY user_id";
    let new = side(directory.path(), 2, select, &orders());
    let (report, verdict) = compared(old, new, ReplayOptions::default()).unwrap();
    assert_eq!(
        (report.columns_only_old, report.columns_only_new),
        (vec!["amount".into()], vec!["dearest".into()])
    );
    assert_eq!((report.same, report.changed, verdict), (2, 1, Verdict::Inconclusive));
    assert_eq!(report.columns.iter().map(|c| c.column.as_str()).collect::<Vec<_>>(), ["orders"]);
}

#[test]
fn a_column_that_changes_its_type_is_compared_by_value_and_said() {
    let directory = tempfile::tempdir().unwrap();
    let old =
        side(directory.path(), 1, "user_id, count(*) AS n FROM orders GROUP BY user_id", &orders());
    let select = "user_id, CAST(count(*) AS DOUBLE) AS n FROM orders GROUP BY user_id";
    let new = side(directory.path(), 2, select, &orders());
    let (report, verdict) = compared(old, new, ReplayOptions::default()).unwrap();
    assert_eq!((report.same, report.changed), (3, 0));
    assert_eq!(
        report.note,
        "column n changes its type from BIGINT to DOUBLE and is compared by value"
    );
    assert_eq!(verdict, Verdict::Inconclusive, "a person should know");
}

#[test]
fn other_key_columns_match_no_row_and_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let old = side(directory.path(), 1, PER_USER, &orders());
    let per_place = "place, count(*) AS orders FROM orders GROUP BY place";
    let new = side(directory.path(), 2, per_place, &orders());
    let (report, verdict) = compared(old, new, ReplayOptions::default()).unwrap();
    assert_eq!((report.same, report.changed, report.only_old, report.only_new), (0, 0, 3, 2));
    assert!(
        report.note.contains("(user_id BIGINT) before and (place VARCHAR) now"),
        "{}",
        report.note
    );
    assert_eq!(verdict, Verdict::Inconclusive);
    assert_eq!(report.samples.len(), 5);
}

#[test]
fn a_checkpoint_that_is_not_at_the_fence_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let old = side(directory.path(), 1, PER_USER, &orders());
    let new = side(directory.path(), 2, PER_USER, &orders()).with_fence(Offset(7));
    let error = compared(old, new, ReplayOptions::default()).unwrap_err().to_string();
    assert!(error.contains("is at 1, not at the fence 7"), "{error}");
}

#[test]
fn a_comparison_larger_than_a_batch_meets_every_row_once_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let many = |skip: i64| -> Vec<_> {
        (0..5_000).filter(|n| n % skip != 0).map(|n| order(n, "a", 1.0, "1")).collect()
    };
    let old = side(directory.path(), 1, PER_USER, &many(3));
    let new = side(directory.path(), 2, PER_USER, &many(7));
    let (report, _) = compared(old, new, ReplayOptions::default()).unwrap();
    let count = |holds: fn(i64) -> bool| (0..5_000).filter(|&n| holds(n)).count() as u64;
    assert_eq!(report.same, count(|n| n % 3 != 0 && n % 7 != 0));
    assert_eq!(report.only_old, count(|n| n % 3 != 0 && n % 7 == 0));
    assert_eq!(report.only_new, count(|n| n % 3 == 0 && n % 7 != 0));
    let keys: Vec<_> = report.samples.iter().map(|sample| sample.key[0].kind.clone()).collect();
    assert_eq!(keys[..3], [3, 6, 7].map(|n| Some(Kind::Integer(n))));
}

#[test]
fn thresholds_are_shares_of_the_old_rows() {
    let report = |changed, only_old, only_new| DiffReport {
        same: 100 - changed - only_old,
        changed,
        only_old,
        only_new,
        ..DiffReport::default()
    };
    let limits = |changed, only_old, only_new| ReplayOptions {
        max_changed: changed,
        max_only_old: only_old,
        max_only_new: only_new,
        ..ReplayOptions::default()
    };
    let cases = [
        (report(0, 0, 0), limits(None, None, None), Verdict::Pass),
        (report(1, 0, 0), limits(None, None, None), Verdict::Inconclusive),
        (report(1, 0, 0), limits(Some(0.01), None, None), Verdict::Pass),
        (report(2, 0, 0), limits(Some(0.01), None, None), Verdict::Fail),
        (report(1, 1, 0), limits(Some(0.01), None, None), Verdict::Inconclusive),
        (report(2, 1, 0), limits(Some(0.01), None, None), Verdict::Fail),
        (report(0, 0, 1), limits(Some(0.0), Some(0.0), Some(0.0)), Verdict::Fail),
        (report(5, 5, 5), limits(Some(0.05), Some(0.05), Some(0.05)), Verdict::Pass),
    ];
    for (report, options, expected) in cases {
        assert_eq!(verdict(&report, &options), expected, "{report:?} {options:?}");
    }
    let empty = DiffReport { only_new: 3, ..DiffReport::default() };
    assert_eq!(verdict(&empty, &limits(None, None, Some(1e9))), Verdict::Fail, "everything is new");
}
