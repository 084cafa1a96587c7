use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::{
    DeadLetter,
    plan::{AggregateFunction, KeyColumn, Tumble},
    testing::*,
};
use headwater_state::OutboxKey;
use headwater_types::{DataType, EventTime, Tallies};

fn arc(plan: ViewPlan) -> Arc<ViewPlan> {
    Arc::new(plan)
}

fn stages(contents: &Contents) -> Vec<(u64, Stage)> {
    let letter = |(key, bytes): &(OutboxKey, Vec<u8>)| {
        let letter = DeadLetter::decode(bytes).unwrap();
        assert_eq!(key, &OutboxKey::at(letter.offset));
        (letter.offset.0, letter.stage)
    };
    contents.outbox.iter().map(letter).collect()
}

/// The rows as the view's readers see them.
fn rows(plan: &ViewPlan, contents: &Contents) -> Vec<Vec<String>> {
    let row = |(key, header, payload): &(Vec<u8>, headwater_state::RowHeader, Vec<u8>)| {
        let merged = crate::read::merge_rows(plan, key, &[(header.last_offset, payload)]).unwrap();
        row_text(&merged.batch, 0)
    };
    contents.dump.rows.iter().map(row).collect()
}

#[test]
fn records_are_counted_in_the_windows_of_their_event_times() {
    let plan = arc(plan(minute(), &[USER], vec![count_star(), of(AggregateFunction::Sum, AMOUNT)]));
    let events = [
        at(0.0, r#""user":"a","amount":0.1"#),
        at(59.999, r#""user":"a","amount":0.2"#),
        at(60.0, r#""user":"a","amount":7"#),
        at(30.0, r#""user":"b","amount":null"#),
        at(30.0, r#""user":null"#),
        at(61.0, r#""user":"a","amount":-1"#),
        at(62.0, r#""user":"a","amount":0.5"#),
    ];
    let contents = run(&plan, &events);
    let expected = [
        ["NULL", "2020-01-01T00:00:00Z", "1", "NULL"],
        ["a", "2020-01-01T00:00:00Z", "2", "0.30000000000000004"],
        ["a", "2020-01-01T00:01:00Z", "3", "6.5"],
        ["b", "2020-01-01T00:00:00Z", "1", "NULL"],
    ];
    assert_eq!(rows(&plan, &contents), expected);
    assert_eq!(contents.dump.progress.tallies, Tallies { applied: 7, ..Tallies::default() });
    assert_eq!(contents.dump.progress.position, Offset(7));
    let last_offsets: Vec<u64> = contents.dump.rows.iter().map(|row| row.1.last_offset.0).collect();
    assert_eq!(last_offsets, [4, 1, 6, 3]);
}

#[test]
fn a_record_is_late_once_the_watermark_before_it_passed_its_window_and_the_allowed_lateness() {
    let mut plan = plan(minute(), &[], vec![count_star()]);
    plan.allowed_lateness_micros = Some(10 * SECOND);
    let plan = arc(plan);
    // The watermark is 5 s behind, so window [0, 60) is open until the watermark is 70: until an
    // event at 75.
    let events =
        [at(0.0, ""), at(74.999, ""), at(1.0, ""), at(75.0, ""), at(1.0, ""), at(61.0, "")];
    let contents = run(&plan, &events);
    assert_eq!(stages(&contents), [(4, Stage::Late)]);
    let tallies = contents.dump.progress.tallies;
    assert_eq!(tallies, Tallies { applied: 5, late: 1, ..Tallies::default() });
    assert_eq!(
        rows(&plan, &contents),
        [["2020-01-01T00:00:00Z", "2"], ["2020-01-01T00:01:00Z", "3"]]
    );
    let letter = DeadLetter::decode(&contents.outbox[0].1).unwrap();
    assert_eq!(letter.value, events[4].value.as_deref());
    assert_eq!(
        (letter.key, letter.timestamp_ms, letter.topic),
        (Some(&b"k"[..]), START / 1000, "orders")
    );
}

#[test]
fn without_a_window_a_record_is_late_beyond_the_allowed_lateness_only() {
    let mut plan = plan(None, &[], vec![count_star()]);
    plan.allowed_lateness_micros = Some(10 * SECOND);
    // The watermark is 95.
    let events = [at(100.0, ""), at(85.0, ""), at(84.999, "")];
    let contents = run(&arc(plan.clone()), &events);
    assert_eq!(stages(&contents), [(2, Stage::Late)]);
    plan.allowed_lateness_micros = None;
    let contents = run(&arc(plan), &events);
    assert_eq!(contents.dump.progress.tallies.applied, 3);
}

#[test]
fn a_row_that_has_expired_starts_from_nothing() {
    let mut plan = plan(None, &[USER], vec![count_star()]);
    plan.retention_micros = Some(100 * SECOND);
    let plan = arc(plan);
    let a = |seconds| at(seconds, r#""user":"a""#);
    // With the watermark 5 s behind, a row of time 0 lives until an event at 105.
    let kept = run(&plan, &[a(0.0), a(104.999)]);
    assert_eq!(rows(&plan, &kept), [["a", "2"]]);
    let reset = run(&plan, &[a(0.0), a(105.0), a(106.0)]);
    assert_eq!(rows(&plan, &reset), [["a", "2"]]);
    let by_another = run(&plan, &[a(0.0), at(105.0, r#""user":"b""#), a(50.0), a(2.0)]);
    assert_eq!(rows(&plan, &by_another), [["a", "2"], ["b", "1"]]);
    let hidden = run(&plan, &[a(0.0), at(105.0, r#""user":"b""#)]);
    assert_eq!(rows(&plan, &hidden), [["b", "1"]]);
    // The watermark is 195, so the row of an event at 95 would expire at once.
    let late = run(&plan, &[a(200.0), a(95.0), a(95.001)]);
    assert_eq!(stages(&late), [(1, Stage::Late)]);
}

#[test]
fn what_cannot_be_processed_is_kept_with_its_stage() {
    let mut plan = plan(None, &[USER], vec![count_star()]);
    plan.filter = Some(Arc::new(NotNegative));
    plan.keys.push(KeyColumn {
        name: "quotient".into(),
        expression: Arc::new(Quotient),
        data_type: DataType::Double,
    });
    plan.output.clear();
    let plan = arc(plan);
    let far = Event { timestamp_ms: 0, ..at(0.0, "") };
    let events = [
        event("{"),
        Event { timestamp_ms: 0, value: None },
        event(r#"{"user":"no time"}"#),
        event(r#"{"ts":"soon"}"#),
        far,
        at(1.0, r#""number":-1"#),
        at(1.0, r#""number":-5"#),
        at(1.0, r#""number":null"#),
        at(1.0, r#""number":0,"amount":3"#),
        at(1.0, r#""number":2,"amount":3"#),
        event(r#"{"user":7,"flag":"yes","ts":1577836800000}"#),
    ];
    let contents = run(&plan, &events);
    let expected = [
        (0, Stage::Decode),
        (1, Stage::Decode),
        (2, Stage::Time),
        (3, Stage::Time),
        (4, Stage::Time),
        (5, Stage::Filter),
        (8, Stage::Expression),
        (10, Stage::Decode),
    ];
    assert_eq!(stages(&contents), expected);
    let tallies = contents.dump.progress.tallies;
    assert_eq!(
        tallies,
        Tallies { applied: 1, filtered: 2, dead_lettered: 8, ..Tallies::default() }
    );
    let reason =
        |index: usize| DeadLetter::decode(&contents.outbox[index].1).unwrap().reason.to_owned();
    assert_eq!(reason(5), "WHERE: minus one");
    assert_eq!(reason(6), "quotient: 3 / 0");
    assert!(
        reason(4).contains("ts is 2020-01-01T00:00:00Z, more than 3600 s ahead"),
        "{}",
        reason(4)
    );
    assert!(reason(7).contains("flag"), "{}", reason(7));
    assert_eq!(contents.dump.progress.watermark, EventTime(START - 4 * SECOND));
}

#[test]
fn a_record_too_far_in_the_future_does_not_move_the_watermark() {
    let plan = arc(plan(minute(), &[], vec![count_star()]));
    let contents = run(&plan, &[at(0.0, ""), at(3600.001, ""), at(1.0, ""), at(3600.0, "")]);
    assert_eq!(stages(&contents), [(1, Stage::Time)]);
    assert_eq!(contents.dump.progress.watermark, EventTime(START + 3595 * SECOND));
    assert_eq!(contents.dump.progress.max_event_time, EventTime(START + 3600 * SECOND));
}

#[test]
fn a_filtered_or_failing_record_still_moves_the_watermark() {
    let mut plan = plan(minute(), &[], vec![count_star()]);
    plan.filter = Some(Arc::new(NotNegative));
    let contents = run(&arc(plan), &[at(300.0, r#""number":-7"#), at(0.0, r#""number":1"#)]);
    assert_eq!(stages(&contents), [(1, Stage::Late)]);
    assert_eq!(
        contents.dump.progress.tallies,
        Tallies { filtered: 1, late: 1, ..Tallies::default() }
    );
}

#[test]
fn an_argument_is_not_asked_where_its_filter_is_not_true() {
    let quotient = || {
        let argument: Option<Arc<dyn crate::plan::Expression>> = Some(Arc::new(Quotient));
        crate::plan::Aggregate { argument, ..of(AggregateFunction::Sum, AMOUNT) }
    };
    let guarded = crate::plan::Aggregate { filter: Some(Arc::new(NotNegative)), ..quotient() };
    let guarded = arc(plan(None, &[USER], vec![guarded, count_star()]));
    let events = [
        at(0.0, r#""user":"a","number":2,"amount":3"#),
        at(0.0, r#""user":"a","number":-2,"amount":3"#),
        at(0.0, r#""user":"a","number":-1,"amount":3"#),
        at(0.0, r#""user":"b","number":null,"amount":3"#),
        at(0.0, r#""user":"c","number":0,"amount":3"#),
    ];
    let contents = run(&guarded, &events);
    // -1 has no FILTER and 0 no argument. -2 has neither, and its group exists.
    assert_eq!(stages(&contents), [(2, Stage::Expression), (4, Stage::Expression)]);
    assert_eq!(rows(&guarded, &contents), [["a", "1.5", "2"], ["b", "NULL", "1"]]);
}

#[test]
fn no_rows_are_null_for_every_aggregate_but_count() {
    let plan = arc(plan(None, &[], all_aggregates()));
    let contents = run(&plan, &[at(0.0, "")]);
    for (value, aggregate) in rows(&plan, &contents)[0].iter().zip(&plan.aggregates) {
        let expected = match (aggregate.function, aggregate.input_type, aggregate.filter.is_some())
        {
            (AggregateFunction::CountStar, None, false)
            | (AggregateFunction::Count, Some(DataType::Timestamp), _) => "1",
            (AggregateFunction::CountStar | AggregateFunction::Count, _, _) => "0",
            (_, Some(DataType::Timestamp), _) => "2020-01-01T00:00:00Z",
            (_, _, _) => "NULL",
        };
        assert_eq!(value, expected, "{aggregate:?}");
    }
}

#[test]
fn extreme_event_times_neither_overflow_nor_wrap() {
    let year =
        |text: &str| Event { timestamp_ms: i64::MAX, ..event(format!(r#"{{"ts":"{text}"}}"#)) };
    let millis =
        |value: i64| Event { timestamp_ms: i64::MAX, ..event(format!(r#"{{"ts":{value}}}"#)) };
    let events = [
        millis(i64::MIN),
        millis(i64::MAX),
        millis(-62_167_219_200_001),
        year("0000-01-01T00:00:00Z"),
        year("9999-12-31T23:59:59.999999Z"),
        millis(253_402_300_800_000),
    ];
    let huge = Some(Tumble { size_micros: i64::MAX, offset_micros: i64::MIN + 1 });
    for (window, retention) in
        [(minute(), Some(1)), (None, Some(i64::MAX)), (huge, None), (None, None)]
    {
        let mut plan = plan(window, &[], all_aggregates());
        plan.retention_micros = retention;
        plan.allowed_lateness_micros = Some(i64::MAX);
        let contents = run(&arc(plan), &events);
        let tallies = contents.dump.progress.tallies;
        assert_eq!(tallies.read(), 6);
        assert_eq!(tallies.dead_lettered, if window == huge { 5 } else { 4 }, "{window:?}");
    }
}

#[test]
fn offsets_without_records_are_passed_over() {
    let plan = arc(plan(None, &[], vec![count_star()]));
    let directory = tempfile::tempdir().unwrap();
    let mut shard = open(directory.path(), &plan, Limits::default());
    let events = [at(0.0, ""), at(1.0, ""), at(2.0, "")];
    assert_eq!(shard.apply(&chunk(&events, 1..3, 10), None).unwrap(), 2);
    assert_eq!(shard.position(), Offset(3));
    shard.skip_to(Offset(9));
    shard.skip_to(Offset(4));
    assert!(shard.has_uncommitted());
    assert_eq!(shard.commit().unwrap().position, Offset(9));
    assert!(!shard.has_uncommitted());
    // Records before the position are not applied again.
    assert_eq!(shard.apply(&chunk(&events, 0..3, 10), None).unwrap(), 0);
    assert_eq!(shard.position(), Offset(9));
}

#[test]
fn a_window_that_had_just_begun_goes_on_after_a_restart() {
    let plan = arc(plan(minute(), &[USER], vec![count_star()]));
    let events = [at(60.0, r#""user":"a""#), at(60.0, r#""user":"a""#)];
    let directory = tempfile::tempdir().unwrap();
    for record in 0..2 {
        let mut shard = open(directory.path(), &plan, Limits::default());
        shard.apply(&chunk(&events, record..record + 1, 1), None).unwrap();
        shard.commit().unwrap();
    }
    let contents = contents(open(directory.path(), &plan, Limits::default()), directory.path());
    assert_eq!(rows(&plan, &contents), [["a", "2020-01-01T00:01:00Z", "2"]]);
}

#[test]
fn an_unreadable_chunk_is_applied_up_to_its_fault() {
    let plan = arc(plan(None, &[], vec![count_star()]));
    let events = [at(0.0, ""), at(1.0, ""), at(2.0, "")];
    let whole = chunk(&events, 0..3, 2);
    let mut bytes = whole.bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let directory = tempfile::tempdir().unwrap();
    let mut shard = open(directory.path(), &plan, Limits::default());
    let error = shard.apply(&Chunk::new(bytes, whole.end()), None).unwrap_err();
    assert!(matches!(error, Error::Log { .. }), "{error}");
    assert_eq!(shard.position(), Offset(2));
    assert_eq!(shard.commit().unwrap().tallies.applied, 2);
}

#[test]
fn the_stored_form_of_a_row_never_changes() {
    let plan = arc(plan(minute(), &[USER], all_aggregates()));
    let value =
        r#""user":"ü","amount":0.1,"price":-12.34,"number":-7,"big":9007199254740993,"flag":true"#;
    let contents = run(&plan, &[at(0.0, value), at(1.0, value)]);
    let (key, header, payload) = &contents.dump.rows[0];
    assert_eq!(key, b"\x01\xc3\xbc\x00\x01\x01\x80\x05\x9b\x08\xc1\xfa\x40\x00");
    assert_eq!((header.time, header.last_offset), (EventTime(START + 60 * SECOND), Offset(1)));
    let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("row.hex").trim());
}

#[test]
fn a_row_of_version_1_is_read_for_ever() {
    let plan = plan(None, &[], all_aggregates());
    let hex = include_str!("row.hex").trim();
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect();
    let row = crate::read::merge_rows(&plan, b"", &[(Offset(1), &bytes)]).unwrap();
    let expected = "2 | 2 0.2 0.1 0.1 0.1 | 2 -24.68 -12.34 -12.34 -12.340000 | 2 -14 -7 -7 -7.0 \
                    | 2 18014398509481986 9007199254740993 9007199254740993 9007199254740992.0 | 2 ü ü \
                    | 2 true true | 2 2020-01-01T00:00:00Z 2020-01-01T00:00:01Z | 0.2 | 2";
    assert_eq!(row_text(&row.batch, 0).join(" "), expected.replace("| ", ""));
}

#[test]
fn an_expression_that_always_fails_fails_for_the_records_that_ask_it() {
    #[derive(Debug)]
    struct Never;
    impl crate::plan::Expression for Never {
        fn evaluate(
            &self,
            _: &arrow::record_batch::RecordBatch,
        ) -> Result<arrow::array::ArrayRef, crate::plan::ExpressionError> {
            Err(crate::plan::ExpressionError("never".into()))
        }
    }
    let never = crate::plan::Aggregate {
        argument: Some(Arc::new(Never)),
        filter: Some(Arc::new(crate::plan::ColumnRef(FLAG))),
        ..of(AggregateFunction::Sum, AMOUNT)
    };
    let guarded = arc(plan(None, &[], vec![never, count_star()]));
    let no = [at(0.0, r#""flag":false"#), at(0.0, r#""flag":null"#)];
    assert_eq!(rows(&guarded, &run(&guarded, &no)), [["NULL", "2"]]);
    let contents = run(&guarded, &[&no[..], &[at(0.0, r#""flag":true"#)]].concat());
    assert_eq!(stages(&contents), [(2, Stage::Expression)]);
    // A batch in which no record has a valid time.
    let filtered =
        arc(ViewPlan { filter: Some(Arc::new(Never)), ..plan(None, &[], vec![count_star()]) });
    assert_eq!(stages(&run(&filtered, &[at(3601.0, "")])), [(0, Stage::Time)]);
    assert_eq!(
        stages(&run(&filtered, &[at(3601.0, ""), at(1.0, "")])),
        [(0, Stage::Time), (1, Stage::Filter)]
    );
}

/// The interruptions of a history on its way into a shard.
#[derive(Clone, Debug)]
struct Course {
    /// The ends of chunks, and the event at each end.
    stops: Vec<(Index, Stop)>,
    log_batch: usize,
    limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stop {
    Chunk,
    Commit,
    /// The shard is dropped without a commit and opened again.
    Crash,
    /// Compaction removes expired rows.
    Compact,
    /// The chunk is applied up to this offset only.
    Until,
}

fn course() -> impl Strategy<Value = Course> {
    let stop = prop::sample::select(vec![
        Stop::Chunk,
        Stop::Commit,
        Stop::Crash,
        Stop::Compact,
        Stop::Until,
    ]);
    let limits = (1..9_usize, prop::sample::select(vec![0, 1_000, usize::MAX]), 1..400_usize);
    let limits = limits.prop_map(|(batch_rows, cached_bytes, batch_bytes)| Limits {
        batch_rows,
        batch_bytes,
        cached_bytes,
    });
    (vec((any::<Index>(), stop), 0..12), 1..7_usize, limits)
        .prop_map(|(stops, log_batch, limits)| Course { stops, log_batch, limits })
}

fn run_course(plan: &Arc<ViewPlan>, events: &[Event], course: &Course) -> Contents {
    let directory = tempfile::tempdir().unwrap();
    let mut shard = open(directory.path(), plan, course.limits);
    let mut stops: Vec<(usize, Stop)> =
        course.stops.iter().map(|(index, stop)| (index.index(events.len() + 1), *stop)).collect();
    stops.sort_by_key(|stop| stop.0);
    for (at, stop) in stops.into_iter().chain([(events.len(), Stop::Commit)]) {
        // After a crash, everything since the last commit is read again.
        let from = shard.position().0 as usize;
        if stop == Stop::Until && from < at {
            shard
                .apply(
                    &chunk(events, from..events.len(), course.log_batch),
                    Some(Offset(at as u64)),
                )
                .unwrap();
        } else if from < at {
            let chunk = chunk(events, from..at, course.log_batch);
            shard.apply(&chunk, None).unwrap();
        }
        assert_eq!(shard.position(), Offset(at as u64));
        match stop {
            Stop::Chunk | Stop::Until => {}
            Stop::Commit => drop(shard.commit().unwrap()),
            Stop::Crash => {
                drop(shard);
                shard = open(directory.path(), plan, course.limits);
            }
            Stop::Compact => {
                shard.commit().unwrap();
                shard.db().sync().unwrap();
                shard.db().compact().unwrap();
            }
        }
    }
    contents(shard, directory.path())
}

fn json_event() -> impl Strategy<Value = Event> {
    let user = prop::sample::select(vec![
        "null",
        r#""a""#,
        r#""b""#,
        r#""ü€😀""#,
        r#""a\u0000b""#,
        r#""""#,
        r#""\ud83d\ude00""#,
    ]);
    let amount = prop::sample::select(vec![
        "null",
        "0.1",
        "0.2",
        "-0.0",
        "1e308",
        "-1e308",
        "1.7976931348623157e308",
        "5e-324",
        "1e-300",
        "3.5",
        "9007199254740993",
        "-9e300",
        "123456.78",
    ]);
    let price = prop::sample::select(vec![
        "null",
        "0.01",
        "-999999999999999999999999999999999999.99",
        "999999999999999999999999999999999999.99",
    ]);
    let number =
        prop::sample::select(vec!["null", "0", "1", "-1", "-2", "2147483647", "-2147483648"]);
    let big =
        prop::sample::select(vec!["null", "9223372036854775807", "-9223372036854775808", "12"]);
    let flag = prop::sample::select(vec!["null", "true", "false"]);
    let good = (user, amount, price, number, big, flag, time()).prop_map(
        |(user, amount, price, number, big, flag, time)| {
            event(format!(
                r#"{{"user":{user},"amount":{amount},"price":{price},"number":{number},"big":{big},"flag":{flag},"ts":{time}}}"#
            ))
        },
    );
    let bad = prop::sample::select(vec![
        event(""),
        event("{"),
        event("null"),
        event(r#"{"user":"a"}"#),
        event(r#"{"user":"a","ts":null}"#),
        event(r#"{"user":"a","ts":"2020-13-01T00:00:00Z"}"#),
        event(r#"{"ts":"9999-12-31T23:59:59.999999Z"}"#),
        event(r#"{"ts":"0000-01-01T00:00:00Z","user":"old"}"#),
        event(r#"{"number":2147483648,"ts":1577836800000}"#),
        event(r#"{"ts":9223372036854775807}"#),
        Event { value: Some(b"{\"user\":\"\xff\",\"ts\":1577836800000}".to_vec()), ..event("") },
        Event { value: None, ..event("") },
        event(r#"{"extra":{"nested":[1,{"ts":2}]},"ts":1577836800000,"user":"z"}"#),
    ]);
    prop_oneof![9 => good, 1 => bad]
}

/// Event times in milliseconds: mostly increasing, sometimes far ahead or behind.
fn time() -> impl Strategy<Value = i64> {
    let seconds = prop_oneof![
        6 => 0..200_i64,
        2 => 200..1_200_i64,
        1 => -3_000_000_000..0_i64,
        1 => 3_590..3_610_i64,
    ];
    (seconds, 0..1000_i64).prop_map(|(seconds, millis)| START / 1000 + seconds * 1000 + millis)
}

/// Plans of every kind: with and without windows, keys, retention, lateness, filters and failures.
fn plans() -> Vec<Arc<ViewPlan>> {
    let sum = |argument: Arc<dyn crate::plan::Expression>| crate::plan::Aggregate {
        argument: Some(argument),
        ..of(AggregateFunction::Sum, AMOUNT)
    };
    let mut windows = plan(minute(), &[USER], all_aggregates());
    windows.allowed_lateness_micros = Some(60 * SECOND);
    windows.filter = Some(Arc::new(NotNegative));
    let mut expiring_windows = plan(
        Some(Tumble { size_micros: 7 * SECOND, offset_micros: -SECOND }),
        &[FLAG, PRICE],
        all_aggregates(),
    );
    expiring_windows.retention_micros = Some(100 * SECOND);
    expiring_windows.allowed_lateness_micros = Some(20 * SECOND);
    let mut expiring = plan(None, &[USER], all_aggregates());
    expiring.retention_micros = Some(120 * SECOND);
    let mut forever = plan(None, &[USER, NUMBER, BIG, AMOUNT], all_aggregates());
    forever.allowed_lateness_micros = Some(600 * SECOND);
    let guarded =
        crate::plan::Aggregate { filter: Some(Arc::new(NotNegative)), ..sum(Arc::new(Quotient)) };
    let by_flag = crate::plan::Aggregate {
        filter: Some(Arc::new(crate::plan::ColumnRef(FLAG))),
        ..sum(Arc::new(Quotient))
    };
    let guarding = plan(minute(), &[USER], vec![count_star(), guarded, by_flag]);
    let mut failing = plan(minute(), &[], vec![sum(Arc::new(Quotient)), count_star()]);
    failing.keys.push(KeyColumn {
        name: "quotient".into(),
        expression: Arc::new(Quotient),
        data_type: DataType::Double,
    });
    failing.output.clear();
    [windows, expiring_windows, expiring, forever, guarding, failing].map(Arc::new).into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Law 2: chunks, batches, commits, caches, compactions and crashes leave no trace.
    #[test]
    fn what_a_shard_holds_depends_on_the_records_alone(
        events in vec(json_event(), 1..60),
        course in course(),
        plan in prop::sample::select(plans()),
    ) {
        let expected = run(&plan, &events);
        let found = run_course(&plan, &events, &course);
        prop_assert_eq!(&found, &expected);
    }

    /// Law 5: every record is counted once, and what was not applied or filtered can be read back.
    #[test]
    fn tallies_add_up_and_nothing_is_lost(
        events in vec(json_event(), 1..60),
        plan in prop::sample::select(plans()),
    ) {
        let contents = run(&plan, &events);
        let tallies = contents.dump.progress.tallies;
        prop_assert_eq!(tallies.read(), events.len() as u64);
        let late = stages(&contents).iter().filter(|(_, stage)| *stage == Stage::Late).count();
        prop_assert_eq!(tallies.late, late as u64);
        prop_assert_eq!(tallies.dead_lettered, (contents.outbox.len() - late) as u64);
        for (key, bytes) in &contents.outbox {
            let letter = DeadLetter::decode(bytes).unwrap();
            let event = &events[key.position.0 as usize];
            prop_assert_eq!(letter.value, event.value.as_deref());
        }
        // With nothing expired, the counts of all groups add up to the applied records.
        if plan.retention_micros.is_none() && !plan.output.is_empty() {
            let counted: u64 = contents.dump.rows.iter().map(|(_, _, payload)| {
                crate::varint::take(&mut &payload[..]).unwrap()
            }).sum();
            prop_assert_eq!(counted, tallies.applied);
        }
    }
}
