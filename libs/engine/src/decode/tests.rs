mod agreement;
mod values;

use arrow::{array::Array, util::display::array_value_to_string};
use headwater_types::{Column, DataType, EventTime, Name, StreamDefinition};

use super::*;

const DECIMAL: DataType = DataType::Decimal { precision: 10, scale: 2 };

/// A stream with these columns. A `!` at the end of a name means NOT NULL and is cut off.
fn stream(columns: &[(&str, DataType)]) -> StreamDefinition {
    let name = Name::new("s").unwrap();
    let column = |&(name, data_type): &(&str, DataType)| Column {
        name: name.trim_end_matches('!').to_owned(),
        data_type,
        nullable: !name.ends_with('!'),
    };
    let columns: Vec<Column> = columns.iter().map(column).collect();
    StreamDefinition {
        sql: String::new(),
        event_time: columns.iter().position(|column| column.name == "t").unwrap_or(0),
        watermark_delay_micros: 0,
        topic: name.clone(),
        name,
        partitions: 1,
        key: Some(0),
        max_future_micros: 0,
        columns,
    }
}

fn one_of_each() -> StreamDefinition {
    stream(&[
        ("b", DataType::Boolean),
        ("i", DataType::Integer),
        ("l", DataType::BigInt),
        ("d", DataType::Double),
        ("m", DECIMAL),
        ("v", DataType::Varchar),
        ("t!", DataType::Timestamp),
    ])
}

fn row(batch: &RecordBatch, row: usize) -> Vec<String> {
    let value = |column: &ArrayRef| match column.is_null(row) {
        true => "NULL".to_owned(),
        false => array_value_to_string(column, row).unwrap(),
    };
    batch.columns().iter().map(value).collect()
}

/// The row of one record in which only `column` is wanted.
fn decode_one(data_type: DataType, value: &str) -> Result<String, DecodeError> {
    let stream = stream(&[("c", data_type)]);
    let mut decoder = JsonDecoder::new(&stream, &[0]);
    decoder.decode(format!("{{\"c\":{value}}}").as_bytes())?;
    Ok(row(&decoder.take(), 0).remove(0))
}

#[test]
fn columns_may_be_reordered_missing_null_and_among_others() {
    let stream = one_of_each();
    let mut decoder = JsonDecoder::new(&stream, &[1, 5, 6]);
    let records = [
        r#"{"b":true,"i":1,"l":2,"d":1.5,"m":2.5,"v":"x","t":0}"#,
        r#" { "t" : 1000 , "nested" : { "v" : [ 1, {"i":[]}, {} ] } , "v" : "y\n\ud83d\ude00" , "i" : -7 } "#,
        "{\"t\":\"1970-01-01T00:00:02Z\",\"v\":null}\n",
        r#"{"t":3000,"i":4,"v":""}"#,
        r#"{"\u0074":4000,"i":5,"v":"ünï"}"#,
        r#"{"t":5000,"i":6,"v":"z","I":7,"":8}"#,
    ];
    for record in records {
        decoder.decode(record.as_bytes()).unwrap();
    }
    assert_eq!(decoder.rows(), 6);
    let batch = decoder.take();
    assert_eq!(decoder.rows(), 0);
    let rows: Vec<_> = (0..6).map(|index| row(&batch, index).join("|")).collect();
    assert_eq!(
        rows,
        [
            "1|x|1970-01-01T00:00:00Z",
            "-7|y\n😀|1970-01-01T00:00:01Z",
            "NULL|NULL|1970-01-01T00:00:02Z",
            "4||1970-01-01T00:00:03Z",
            "5|ünï|1970-01-01T00:00:04Z",
            "6|z|1970-01-01T00:00:05Z",
        ]
    );
}

#[test]
fn keys_that_begin_alike_are_told_apart() {
    let names = ["shipping_address_line_1", "shipping_address_line_2", "s", "sh"];
    let stream = stream(&names.map(|name| (name, DataType::Integer)));
    let mut decoder = JsonDecoder::new(&stream, &[0, 1, 2, 3]);
    // Each form comes where another one was predicted.
    for shift in [0, 0, 1, 2, 3, 0, 2] {
        let member =
            |index: usize| format!("\"{}\": {}", names[(index + shift) % 4], (index + shift) % 4);
        let members: Vec<String> = (0..4).map(member).collect();
        decoder.decode(format!("{{{}}}", members.join(", ")).as_bytes()).unwrap();
    }
    let batch = decoder.take();
    for index in 0..7 {
        assert_eq!(row(&batch, index), ["0", "1", "2", "3"]);
    }
}

#[test]
fn a_refused_record_leaves_the_rows_as_they_were() {
    let stream = one_of_each();
    let mut decoder = JsonDecoder::new(&stream, &[2, 5, 6]);
    for record in [
        r#"{"l":1,"v":"a","t":0}"#,
        r#"{"l":2,"v":"b","t":0}x"#,
        r#"{"l":3,"v":"c"}"#,
        r#"{"l":4,"v":"d","t":0"#,
        r#"{"l":5,"v":"e","t":"yesterday"}"#,
        r#"{"l":6,"v":"f","t":0}"#,
    ] {
        let _ = decoder.decode(record.as_bytes());
    }
    let batch = decoder.take();
    assert_eq!(batch.num_rows(), 2);
    assert_eq!(row(&batch, 0)[..2], ["1", "a"]);
    assert_eq!(row(&batch, 1)[..2], ["6", "f"]);
    assert_eq!(decoder.take().num_rows(), 0);
}

#[test]
fn rows_are_counted_even_if_no_column_is_wanted() {
    let mut decoder = JsonDecoder::new(&one_of_each(), &[]);
    decoder.decode(b"{}").unwrap();
    decoder.decode(b"{\"i\":\"not looked at\"}").unwrap();
    assert_eq!(decoder.take().num_rows(), 2);
}

#[test]
fn what_is_not_one_json_object_is_refused_with_position_and_reason() {
    let cases: &[(&[u8], &str)] = &[
        (b"", "expected a JSON object, found nothing"),
        (b"  ", "expected a JSON object, found nothing"),
        (b"[1]", "expected a JSON object, found an array"),
        (b"\"x\"", "expected a JSON object, found text \"x\""),
        (b"nonsense", "expected a JSON object, found 'n'"),
        ("\u{feff}{}".as_bytes(), "byte order mark"),
        (b"{\"a\":1", "byte 6: expected ',' or '}' after a value, found the end"),
        (b"{\"a\":1,}", "byte 7: expected a key in double quotes, found '}'"),
        (b"{\"a\" 1}", "byte 5: expected ':' after a key, found '1'"),
        (b"{\"a\":}", "byte 5: expected a value, found '}'"),
        (b"{\"a\":1}{}", "byte 7: expected nothing after the object"),
        (b"{\"a\":1}\0", "byte 7: expected nothing after the object"),
        (b"{a:1}", "byte 1: expected a key in double quotes, found 'a'"),
        (b"{'a':1}", "expected a key in double quotes, found '\\''"),
        (b"{\"a\":01}", "byte 5: expected a number without leading zeros"),
        (b"{\"a\":-}", "byte 6: expected a digit, found '}'"),
        (b"{\"a\":1.}", "byte 7: expected a digit"),
        (b"{\"a\":.5}", "byte 5: expected a value, found '.'"),
        (b"{\"a\":1e}", "byte 7: expected a digit"),
        (b"{\"a\":+1}", "byte 5: expected a value"),
        (b"{\"a\":NaN}", "byte 5: expected a value, found 'N'"),
        (b"{\"a\":nul}", "byte 5: expected a value"),
        (b"{\"a\":\"x}", "byte 8: expected the quote that ends the text, found the end"),
        (b"{\"a\":\"\t\"}", "byte 6: expected no control character"),
        (b"{\"a\":\"\\x\"}", "byte 6: expected one of the escapes"),
        (b"{\"a\":\"\\u12g4\"}", "byte 6: expected one of the escapes"),
        (b"{\"a\":\"\\ud800\"}", "byte 6: expected a surrogate pair"),
        (b"{\"a\":\"\\ud800\\u0041\"}", "byte 6: expected a surrogate pair"),
        (b"{\"a\":\"\\udc00\"}", "byte 6: expected a surrogate pair"),
        (b"{\"a\":[1,2}", "byte 9: expected ',' or ']' after a value, found '}'"),
        (b"{\"a\":{\"b\":1]}", "byte 11: expected ',' or '}' after a value, found ']'"),
        (b"{\"a\":[1,]}", "byte 8: expected a value"),
        (b"{\"a\":{,}}", "byte 6: expected a key in double quotes"),
        (b"{\"a\":\"\xff\"}", "not valid UTF-8 at byte 6: found byte 0xff"),
        (b"{\"a\":\"\xed\xa0\x80\"}", "not valid UTF-8"),
    ];
    for wanted in [&[0][..], &[]] {
        let mut decoder = JsonDecoder::new(&stream(&[("a", DataType::Double)]), wanted);
        for (value, reason) in cases {
            let error = decoder.decode(value).unwrap_err();
            assert!(error.reason.contains(reason), "{}\n{error}", String::from_utf8_lossy(value));
            assert_eq!(error.column, None);
        }
    }
}

#[test]
fn nesting_has_a_limit_and_needs_no_stack() {
    let mut decoder = JsonDecoder::new(&stream(&[("a", DataType::Double)]), &[]);
    let nested =
        |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    assert_eq!(decoder.decode(nested(64).as_bytes()), Ok(()));
    for depth in [65, 66, 1_000_000] {
        let error = decoder.decode(nested(depth).as_bytes()).unwrap_err();
        assert!(error.reason.contains("nested more than 64 deep at byte 68"), "{error}");
    }
    let open = format!("{{\"a\":{}", "{\"a\":[".repeat(100_000));
    assert!(decoder.decode(open.as_bytes()).unwrap_err().reason.contains("64 deep"));
}

#[test]
fn a_column_that_comes_twice_is_refused_and_another_key_is_not() {
    let stream = stream(&[("a", DataType::Double), ("b", DataType::Double)]);
    for wanted in [&[0][..], &[1]] {
        let mut decoder = JsonDecoder::new(&stream, wanted);
        for _ in 0..3 {
            let error = decoder.decode(br#"{"a":1,"b":2,"a":1}"#).unwrap_err();
            assert_eq!(
                error.to_string(),
                "column a: appears twice in the record: send each key once"
            );
            assert_eq!(decoder.decode(br#"{"a":1,"x":2,"x":3}"#), Ok(()));
        }
    }
}

#[test]
fn an_error_is_short_even_for_a_huge_value() {
    let mut validator = Validator::new(&one_of_each());
    let huge = "9".repeat(8 << 20);
    for record in [
        format!("{{\"t\":0,\"i\":\"{huge}\"}}"),
        format!("{{\"t\":0,\"i\":{huge}}}"),
        format!("{{\"t\":0,\"d\":{huge}}}"),
        format!("{{\"t\":0,\"m\":{huge}.5}}"),
        format!("{{\"t\":\"{huge}\"}}"),
        format!("{{\"t\":0,\"{huge}\":x}}"),
        format!("{{\"{huge}"),
    ] {
        let error = validator.check(record.as_bytes()).unwrap_err().to_string();
        assert!(error.len() < 300, "{error}");
    }
}

#[test]
fn ingest_checks_every_column_and_yields_key_and_event_time() {
    let stream = one_of_each();
    let check = |stream: &StreamDefinition, value: &str| {
        let mut validator = Validator::new(stream);
        validator.check(value.as_bytes()).map(|checked| {
            (checked.key.map(|key| String::from_utf8(key.to_vec()).unwrap()), checked.event_time)
        })
    };
    let keyed = |key: usize, value: &str| {
        check(&StreamDefinition { key: Some(key), ..stream.clone() }, value).unwrap()
    };
    let record = r#"{"b":true,"i":-1.20e1,"l":9223372036854775807,"d":-0.0,"m":-0.5,"v":"\u00fc\n","t":"2013-01-01T10:15:00Z"}"#;
    let keys: Vec<_> = (0..7).map(|key| keyed(key, record).0.unwrap()).collect();
    assert_eq!(
        keys,
        ["true", "-12", "9223372036854775807", "0", "-0.50", "ü\n", "2013-01-01T10:15:00Z"]
    );
    assert_eq!(keyed(0, record).1, EventTime(1_357_035_300_000_000));
    assert_eq!(keyed(0, r#"{"t":1,"b":null}"#), (None, EventTime(1_000)));
    assert_eq!(keyed(5, r#"{"t":1,"v":12}"#), keyed(5, r#"{"t":1,"v":"12"}"#));
    assert_eq!(keyed(2, r#"{"t":1,"l":12}"#), keyed(2, r#"{"t":1,"l":12.0}"#));
    assert_eq!(check(&StreamDefinition { key: None, ..stream.clone() }, record).unwrap().0, None);

    let error = check(&stream, r#"{"t":1,"v":true}"#).unwrap_err();
    assert_eq!(error.column.as_deref(), Some("v"));
    let error = check(&stream, r#"{"b":true}"#).unwrap_err();
    assert_eq!(error.column.as_deref(), Some("t"));
    assert!(error.reason.starts_with("missing: the column is NOT NULL"), "{error}");
}
