use std::sync::Arc;

use headwater_state::{KeyRange, ShardReader};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    Limits, Shard,
    plan::{AggregateFunction, ColumnRef, OutputColumn},
    testing::*,
};

struct Shards {
    directories: Vec<tempfile::TempDir>,
    readers: Vec<ShardReader>,
}

/// Sends each event to the shard in `places`.
fn shards(plan: &Arc<ViewPlan>, events: &[Event], places: &[usize]) -> Shards {
    let mut result = Shards { directories: Vec::new(), readers: Vec::new() };
    for shard in 0..3 {
        let own: Vec<Event> = events
            .iter()
            .zip(places)
            .filter(|(_, place)| **place == shard)
            .map(|(event, _)| event.clone())
            .collect();
        let directory = tempfile::tempdir().unwrap();
        let mut open: Shard =
            open_partition(directory.path(), shard as u32, plan, Limits::default());
        if !own.is_empty() {
            open.apply(&chunk(&own, 0..own.len(), 5), None).unwrap();
        }
        open.commit().unwrap();
        drop(open);
        result
            .readers
            .push(ShardReader::open_checkpoint(directory.path(), &identity(shard as u32)).unwrap());
        result.directories.push(directory);
    }
    result
}

impl Shards {
    /// Reads the view's rows with the shards in this order and batches of this size.
    fn read(
        &self,
        plan: &ViewPlan,
        order: &[usize],
        rows: usize,
    ) -> Result<Vec<Vec<String>>, Error> {
        let scans =
            order.iter().map(|shard| self.readers[*shard].view().scan(KeyRange::all())).collect();
        let mut scan = MergedScan::new(plan, scans);
        let mut result = Vec::new();
        while let Some(batch) = scan.next_batch(rows)? {
            assert!(batch.len() <= rows && !batch.is_empty());
            result.extend((0..batch.len()).map(|row| row_text(&batch.batch, row)));
        }
        assert!(scan.next_batch(rows)?.is_none());
        Ok(result)
    }
}

fn amount() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "null", "0.1", "1e308", "-1e308", "1e-300", "-0.7", "1e16", "-1e16", "3",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any number of shards in any order give the rows that one shard with all records gives.
    #[test]
    fn partial_rows_merge_to_what_one_shard_would_have(
        inputs in vec((0..3_usize, 0..3_usize, amount(), 0..180_i64, any::<i64>()), 1..50),
        rows in 1..5_usize,
    ) {
        let mut plan = plan(minute(), &[FLAG], all_aggregates());
        plan.allowed_lateness_micros = Some(1000 * SECOND);
        // Sums of these BIGINTs overflow, so this reads the other columns only.
        plan.output.retain(|column| !plan.aggregates.iter().enumerate().any(|(place, aggregate)| {
            column.name == format!("a{place}") && aggregate.input_type == Some(DataType::BigInt)
        }));
        plan.aggregates.iter_mut().for_each(|aggregate| {
            if aggregate.input_type == Some(DataType::BigInt) {
                aggregate.function = AggregateFunction::Count;
                aggregate.output_type = DataType::BigInt;
            }
        });
        let plan = Arc::new(plan);
        let flags = ["null", "true", "false"];
        let events: Vec<Event> = inputs.iter().map(|(_, flag, amount, seconds, big)| {
            at(*seconds as f64, &format!(
                r#""user":"u{}","flag":{},"amount":{amount},"price":{}.25,"number":{},"big":{big}"#,
                big % 7, flags[*flag], big % 1000, big % 99,
            ))
        }).collect();
        let places: Vec<usize> = inputs.iter().map(|input| input.0).collect();
        let expected = shards(&plan, &events, &vec![0; events.len()]).read(&plan, &[0], 1000).unwrap();
        let split = shards(&plan, &events, &places);
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            prop_assert_eq!(&split.read(&plan, &order, rows).unwrap(), &expected);
        }
    }
}

#[test]
fn a_sum_that_leaves_bigint_names_view_column_key_and_remedy() {
    let plan = Arc::new(plan(minute(), &[USER], vec![of(AggregateFunction::Sum, BIG)]));
    let value = r#""user":"ü","big":9223372036854775807"#;
    let events = [at(0.0, value), at(1.0, value), at(2.0, r#""user":"a","big":1"#)];
    let shards = shards(&plan, &events, &[0, 1, 2]);
    let error = shards.read(&plan, &[0, 1, 2], 10).unwrap_err();
    let expected = "column a0 of view spend does not fit BIGINT for key (user = \"ü\", window_start = \
                    2020-01-01T00:00:00Z): aggregate a wider type, as in sum(CAST(x AS DECIMAL(38,0)))";
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.remedy(), headwater_types::Remedy::Correct);
    // The stored sum is exact, so it can return into range.
    let more = [&events[..], &[at(3.0, r#""user":"ü","big":-9223372036854775807"#)]].concat();
    let rows = self::shards(&plan, &more, &[0, 1, 2, 2]).read(&plan, &[0, 1, 2], 10).unwrap();
    assert_eq!(rows[1], ["ü", "2020-01-01T00:00:00Z", "9223372036854775807"]);
}

#[test]
fn a_sum_of_more_than_38_digits_is_an_error_and_an_average_of_them_is_not() {
    let most = r#""price":999999999999999999999999999999999999.99"#;
    let sum = Arc::new(plan(None, &[], vec![of(AggregateFunction::Sum, PRICE)]));
    let events = [at(0.0, most), at(1.0, most), at(2.0, r#""price":0.02"#)];
    let error = shards(&sum, &events, &[0, 1, 0]).read(&sum, &[0, 1, 2], 10).unwrap_err();
    assert!(error.to_string().contains("DECIMAL(38,2)"), "{error}");
    let mut average = of(AggregateFunction::Avg, PRICE);
    average.output_type = DataType::Decimal { precision: 38, scale: 2 };
    let average = Arc::new(plan(None, &[], vec![average]));
    let rows = shards(&average, &events[..2], &[0, 1]).read(&average, &[0, 1, 2], 10).unwrap();
    assert_eq!(rows, [["999999999999999999999999999999999999.99"]]);
}

#[test]
fn an_output_expression_without_a_value_names_its_row() {
    let mut plan = plan(None, &[NUMBER], vec![of(AggregateFunction::Sum, AMOUNT)]);
    #[derive(Debug)]
    struct Picky;
    impl crate::plan::Expression for Picky {
        fn evaluate(
            &self,
            batch: &arrow::record_batch::RecordBatch,
        ) -> Result<arrow::array::ArrayRef, crate::plan::ExpressionError> {
            use arrow::array::AsArray;
            let numbers = batch.column(0).as_primitive::<arrow::datatypes::Int32Type>();
            match numbers.values().contains(&2) {
                true => Err(crate::plan::ExpressionError("not two".into())),
                false => Ok(batch.column(0).clone()),
            }
        }
    }
    plan.output.push(OutputColumn {
        name: "picky".into(),
        data_type: DataType::Integer,
        expression: Arc::new(Picky),
        key: None,
    });
    let plan = Arc::new(plan);
    let events = [at(0.0, r#""number":1"#), at(1.0, r#""number":2"#), at(1.0, r#""number":3"#)];
    let error = shards(&plan, &events, &[0, 1, 2]).read(&plan, &[0, 1, 2], 10).unwrap_err();
    assert_eq!(
        error.to_string(),
        "column picky of view spend has no value for key (number = 2): not two; correct its expression"
    );
}

#[test]
fn a_key_is_encoded_as_its_rows_are() {
    let plan = Arc::new(plan(minute(), &[USER, NUMBER], vec![count_star()]));
    let contents = run(&plan, &[at(61.0, r#""user":"a","number":-3"#)]);
    let parts = [KeyPart::Text("a"), KeyPart::Integer(-3), KeyPart::Timestamp(START + 60 * SECOND)];
    assert_eq!(encode_key(&plan, &parts).unwrap(), contents.dump.rows[0].0);
    assert!(contents.dump.rows[0].0.starts_with(&encode_key(&plan, &parts[..1]).unwrap()));
    assert!(encode_key(&plan, &[KeyPart::Integer(1)]).unwrap_err().to_string().contains("user"));
    let too_long = [parts[0], parts[1], parts[2], parts[2]];
    assert!(
        encode_key(&plan, &too_long)
            .unwrap_err()
            .to_string()
            .contains("user, number, window_start")
    );
}

#[test]
fn a_stream_key_names_the_partition_in_which_ingest_puts_its_records() {
    let plan = plan(minute(), &[FLAG, USER], vec![count_star()]);
    let mut validator = crate::decode::Validator::new(&plan.stream);
    let checked = validator.check(br#"{"user":"\u00fc","ts":0}"#).unwrap();
    let expected = partition_for_key(checked.key.unwrap(), 4);
    let parts = [KeyPart::Null, KeyPart::Text("ü")];
    assert_eq!(stream_key_partition(&plan, &parts), Some(expected));
    assert_eq!(stream_key_partition(&plan, &parts[..1]), None);
    assert_eq!(stream_key_partition(&plan, &[KeyPart::Null, KeyPart::Null]), None);
    let other = ViewPlan { key_is_stream_key: false, ..plan };
    assert_eq!(stream_key_partition(&other, &parts), None);
}

#[test]
fn the_window_columns_are_start_end_and_a_millisecond_before_the_end() {
    let mut plan = plan(minute(), &[], vec![count_star()]);
    for (place, name) in [(1, "window_end"), (2, "window_time")] {
        let expression: Arc<dyn crate::plan::Expression> = Arc::new(ColumnRef(place));
        plan.output.push(OutputColumn {
            name: name.into(),
            data_type: DataType::Timestamp,
            expression,
            key: None,
        });
    }
    let contents = run(&Arc::new(plan.clone()), &[at(1.0, "")]);
    let (key, header, payload) = &contents.dump.rows[0];
    let row = merge_rows(&plan, key, &[(header.last_offset, payload)]).unwrap();
    let expected =
        ["2020-01-01T00:00:00Z", "1", "2020-01-01T00:01:00Z", "2020-01-01T00:00:59.999Z"];
    assert_eq!(row_text(&row.batch, 0), expected);
    assert_eq!(row.key(0), key);
}

#[test]
fn a_damaged_row_is_an_error_that_names_it() {
    let plan = plan(None, &[USER], vec![count_star()]);
    let key = encode_key(&plan, &[KeyPart::Text("a")]).unwrap();
    for payload in [&b""[..], b"\x01\x01", b"\x80"] {
        let error = merge_rows(&plan, &key, &[(Offset(0), payload)]).unwrap_err();
        assert!(error.to_string().contains("user = \"a\""), "{error}");
    }
    assert!(merge_rows(&plan, &key[1..], &[(Offset(0), b"\x01")]).is_err());
}
