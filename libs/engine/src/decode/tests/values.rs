//! The values that each type accepts and refuses.

use proptest::prelude::*;

use super::*;

#[test]
fn every_accepted_spelling_gives_its_value() {
    let cases: &[(DataType, &[(&str, &str)])] = &[
        (DataType::Boolean, &[("true", "true"), ("false", "false"), ("null", "NULL")]),
        (
            DataType::Integer,
            &[
                ("0", "0"),
                ("-0", "0"),
                ("12.0", "12"),
                ("1.2e1", "12"),
                ("120000e-4", "12"),
                ("2147483647", "2147483647"),
                ("-2147483648", "-2147483648"),
                ("0e99999999999999999999", "0"),
                ("0.000000000000000000000000000000000000000000000000000", "0"),
            ],
        ),
        (
            DataType::BigInt,
            &[
                ("9223372036854775807", "9223372036854775807"),
                ("-9223372036854775808", "-9223372036854775808"),
                ("9223372036854775807.000", "9223372036854775807"),
                ("9.223372036854775807E+18", "9223372036854775807"),
                ("12345678", "12345678"),
                ("1234567812345678", "1234567812345678"),
            ],
        ),
        (
            DECIMAL,
            &[
                ("0", "0.00"),
                ("1.5", "1.50"),
                ("-1.25", "-1.25"),
                ("1.2500000000000000000000000000000000000000", "1.25"),
                ("99999999.99", "99999999.99"),
                ("-99999999.99", "-99999999.99"),
                ("1e7", "10000000.00"),
                ("125e-2", "1.25"),
            ],
        ),
        (
            DataType::Decimal { precision: 38, scale: 0 },
            &[
                (
                    "99999999999999999999999999999999999999",
                    "99999999999999999999999999999999999999",
                ),
                (
                    "-99999999999999999999999999999999999999",
                    "-99999999999999999999999999999999999999",
                ),
            ],
        ),
        (
            DataType::Decimal { precision: 38, scale: 38 },
            &[("0.5", "0.50000000000000000000000000000000000000")],
        ),
        (
            DataType::Varchar,
            &[
                (r#""""#, ""),
                (r#""a\"b\\c\/d""#, "a\"b\\c/d"),
                (r#""\b\f\n\r\t""#, "\u{8}\u{c}\n\r\t"),
                (r#""\u0041\u00e9\u20ac\ud83d\ude00\u0000""#, "Aé€😀\0"),
                (r#""\uD83D\uDE00\uD83D\uDE00""#, "😀😀"),
                (r#""0123456789abcde\"""#, "0123456789abcde\""),
                ("\"日本語\u{7f}\"", "日本語\u{7f}"),
                ("12", "12"),
                ("-1.50e3", "-1.50e3"),
            ],
        ),
        (
            DataType::Timestamp,
            &[
                ("0", "1970-01-01T00:00:00Z"),
                ("-1", "1969-12-31T23:59:59.999Z"),
                ("1357035300000", "2013-01-01T10:15:00Z"),
                ("1357035300000.0", "2013-01-01T10:15:00Z"),
                (r#""2013-01-01T10:15:00Z""#, "2013-01-01T10:15:00Z"),
                (r#""2013-01-01t10:15:00z""#, "2013-01-01T10:15:00Z"),
                (r#""2013-01-01 10:15:00+00:00""#, "2013-01-01T10:15:00Z"),
                (r#""2013-01-01T10:15:00\u005a""#, "2013-01-01T10:15:00Z"),
                (r#""2013-01-01T10:15:00.1Z""#, "2013-01-01T10:15:00.100Z"),
                (r#""2013-01-01T10:15:00.123456Z""#, "2013-01-01T10:15:00.123456Z"),
                (r#""2013-01-01T10:15:00.123456999Z""#, "2013-01-01T10:15:00.123456Z"),
                (r#""2013-01-01T10:15:00-05:30""#, "2013-01-01T15:45:00Z"),
                (r#""2013-01-01T00:15:00+23:59""#, "2012-12-31T00:16:00Z"),
                (r#""2016-12-31T23:59:60Z""#, "2017-01-01T00:00:00Z"),
                (r#""2017-01-01T05:29:60.5+05:30""#, "2017-01-01T00:00:00Z"),
                (r#""2000-02-29T00:00:00Z""#, "2000-02-29T00:00:00Z"),
                (r#""0000-01-01T00:00:00Z""#, "0000-01-01T00:00:00Z"),
                (r#""9999-12-31T23:59:59.999999Z""#, "9999-12-31T23:59:59.999999Z"),
            ],
        ),
    ];
    for (data_type, spellings) in cases {
        for (spelling, value) in *spellings {
            assert_eq!(
                decode_one(*data_type, spelling).as_deref(),
                Ok(*value),
                "{data_type} {spelling}"
            );
        }
    }
}

#[test]
fn every_unfit_value_is_refused_and_the_reason_says_what_fits() {
    let cases: &[(DataType, &[(&str, &str)])] = &[
        (
            DataType::Boolean,
            &[
                ("1", "expected true or false (BOOLEAN), found 1"),
                ("\"true\"", "expected true or false (BOOLEAN), found text \"true\""),
            ],
        ),
        (
            DataType::Integer,
            &[
                ("\"12\"", "expected a number (INTEGER), found text \"12\""),
                (
                    "2147483648",
                    "expected a number from -2147483648 to 2147483647 (INTEGER), found 2147483648: out of range",
                ),
                ("1e10", "found 1e10: out of range"),
                ("1e99999999999999999999", "out of range"),
                ("1.5", "expected a whole number (INTEGER), found 1.5"),
                ("1e-99999999999999999999", "expected a whole number (INTEGER)"),
                ("true", "found true"),
                ("{\"a\":1}", "found an object"),
                ("[1]", "found an array"),
            ],
        ),
        (
            DataType::BigInt,
            &[
                ("9223372036854775808", "out of range"),
                ("-9223372036854775809", "out of range"),
                ("18446744073709551616", "out of range"),
                ("100000000000000000000000000000000000000000000", "out of range"),
            ],
        ),
        (
            DataType::Double,
            &[
                ("1e999", "expected a number within"),
                ("-1e309", "found -1e309"),
                ("\"1\"", "found text"),
            ],
        ),
        (
            DECIMAL,
            &[
                (
                    "1.255",
                    "expected at most 2 digits behind the point (DECIMAL(10,2)), found 1.255",
                ),
                (
                    "100000000",
                    "expected at most 8 digits before the point (DECIMAL(10,2)), found 100000000: too large",
                ),
                ("1e300", "too large"),
                ("1e-300", "digits behind the point"),
                ("\"1\"", "expected a number (DECIMAL(10,2)), found text \"1\""),
            ],
        ),
        (
            DataType::Decimal { precision: 38, scale: 0 },
            &[("100000000000000000000000000000000000000", "too large")],
        ),
        (
            DataType::Varchar,
            &[
                ("true", "expected text or a number (VARCHAR), found true"),
                ("{}", "found an object"),
            ],
        ),
        (
            DataType::Timestamp,
            &[
                ("\"2013-01-01T10:15:00\"", "expected RFC 3339 text with an offset such as"),
                ("\"2013-02-29T10:15:00Z\"", "RFC 3339"),
                ("\"1900-02-29T10:15:00Z\"", "RFC 3339"),
                ("\"2013-13-01T10:15:00Z\"", "RFC 3339"),
                ("\"2013-00-01T10:15:00Z\"", "RFC 3339"),
                ("\"2013-01-00T10:15:00Z\"", "RFC 3339"),
                ("\"2013-01-01T24:00:00Z\"", "RFC 3339"),
                ("\"2013-01-01T10:60:00Z\"", "RFC 3339"),
                ("\"2013-01-01T10:15:60Z\"", "RFC 3339"),
                ("\"2013-01-01T10:15:00.Z\"", "RFC 3339"),
                ("\"2013-01-01T10:15:00+0100\"", "RFC 3339"),
                ("\"2013-01-01T10:15:00+24:00\"", "RFC 3339"),
                ("\"2013-01-01T10:15:00Zx\"", "RFC 3339"),
                ("\"\"", "RFC 3339"),
                ("\"é\"", "RFC 3339"),
                ("\"0000-01-01T00:00:00+00:01\"", "expected a time from 0000-01-01"),
                ("1.5", "expected whole milliseconds"),
                ("253402300800000", "expected a time from"),
                ("-99999999999999999999999999999999999999", "expected a time from"),
                ("1e40", "expected a time from"),
                ("true", "expected RFC 3339 text or epoch milliseconds (TIMESTAMP), found true"),
            ],
        ),
    ];
    for (data_type, values) in cases {
        for (value, reason) in *values {
            let error = decode_one(*data_type, value).unwrap_err();
            assert_eq!(error.column.as_deref(), Some("c"));
            assert!(error.reason.contains(reason), "{data_type} {value}: {error}");
        }
    }
}

#[test]
fn null_and_missing_are_refused_where_the_schema_says_so() {
    let stream =
        stream(&[("a!", DataType::Varchar), ("b!", DataType::Double), ("c", DataType::Double)]);
    let mut decoder = JsonDecoder::new(&stream, &[0, 2]);
    assert_eq!(decoder.decode(br#"{"a":"x"}"#), Ok(()), "b is not wanted");
    for (value, reason) in [
        (&b"{\"a\":null}"[..], "expected a value, found null: the column is NOT NULL"),
        (b"{\"c\":1}", "missing: the column is NOT NULL"),
    ] {
        let error = decoder.decode(value).unwrap_err();
        assert_eq!(error.column.as_deref(), Some("a"));
        assert!(error.reason.starts_with(reason), "{error}");
    }
}

fn double(literal: &str) -> f64 {
    use arrow::{array::AsArray, datatypes::Float64Type};
    let mut decoder = JsonDecoder::new(&stream(&[("c", DataType::Double)]), &[0]);
    decoder.decode(format!("{{\"c\":{literal}}}").as_bytes()).unwrap();
    decoder.take().column(0).as_primitive::<Float64Type>().value(0)
}

#[test]
fn doubles_at_the_edges_are_the_nearest() {
    for literal in [
        "-0.0",
        "9007199254740993",
        "9007199254740993e0",
        "9007199254740992e22",
        "9007199254740992e23",
        "1e22",
        "1e23",
        "5e-324",
        "2e-324",
        "2.2250738585072011e-308",
        "1.7976931348623157e308",
        "123456789012345678901234567890",
        "0.30000000000000004",
        "18446744073709551616",
        "1e-99999999999999999999",
        "0e99999999999999999999",
    ] {
        assert_eq!(
            double(literal).to_bits(),
            literal.parse::<f64>().unwrap().to_bits(),
            "{literal}"
        );
    }
}

proptest! {
    #[test]
    fn a_double_is_the_nearest_to_its_literal(
        literal in "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?([eE][+-]?[0-9]{1,2})?",
        bits in any::<u64>(),
    ) {
        prop_assert_eq!(double(&literal).to_bits(), literal.parse::<f64>().unwrap().to_bits());
        let any = f64::from_bits(bits);
        if any.is_finite() {
            prop_assert_eq!(double(&format!("{any:e}")).to_bits(), bits);
            prop_assert_eq!(double(&format!("{any}")).to_bits(), bits);
        }
    }

    #[test]
    fn a_decimal_is_exact_however_it_is_spelt(
        units in -9_999_999_999i128..=9_999_999_999,
        shift in 0i32..6,
        zeros in 0usize..30,
    ) {
        let expected = format!("{}{}.{:02}", if units < 0 { "-" } else { "" }, units.abs() / 100, units.abs() % 100);
        let spellings = [
            format!("{expected}{}", "0".repeat(zeros)),
            format!("{units}e-2"),
            format!("{units}{}E-{}", "0".repeat(shift as usize), shift + 2),
            format!("{}{}.{:03}e{}", if units < 0 { "-" } else { "" }, units.abs() / 1000, units.abs() % 1000, 1),
        ];
        for spelling in spellings {
            prop_assert_eq!(decode_one(DECIMAL, &spelling), Ok(expected.clone()), "{}", spelling);
        }
    }

    #[test]
    fn a_whole_number_is_exact_or_out_of_range(value in any::<i128>(), shift in 0u32..127) {
        let value = value >> shift;
        let read = decode_one(DataType::BigInt, &value.to_string());
        match i64::try_from(value) {
            Ok(value) => prop_assert_eq!(read, Ok(value.to_string())),
            Err(_) => prop_assert!(read.is_err()),
        }
    }

    #[test]
    fn a_time_reads_back_what_it_prints(micros in -62_167_219_200_000_000i64..=253_402_300_799_999_999) {
        let text = EventTime(micros).to_string();
        prop_assert_eq!(decode_one(DataType::Timestamp, &format!("\"{text}\"")), Ok(text));
        let millis = micros.div_euclid(1_000);
        prop_assert_eq!(
            decode_one(DataType::Timestamp, &millis.to_string()),
            Ok(EventTime::from_millis(millis).to_string())
        );
    }
}
