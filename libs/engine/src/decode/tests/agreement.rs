//! The scanner with predictions, the scanner without, and serde_json agree.

use std::collections::BTreeMap;

use headwater_testkit::{Datum, Event, Mix, events::generate};
use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::{Value, value::RawValue};

use super::*;
use crate::decode::{cell::Cell, scan::Scanner};

fn space() -> impl Strategy<Value = &'static str> {
    prop_oneof![8 => Just(""), 2 => Just(" "), 1 => Just("\n\t "), 1 => Just("\r\n")]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-zA-Z0-9 ]{0,20}",
        1 => "\\PC{0,12}",
        1 => Just("\u{0}\u{1f}\"\\/\u{8}😀\u{10ffff}".to_owned()),
        1 => Just("2013-01-01T10:15:00Z".to_owned()),
    ]
}

/// The text as a JSON string: plain, or with every character escaped that can be.
fn quoted(text: &str, escape: bool) -> String {
    if !escape {
        return serde_json::to_string(text).unwrap();
    }
    let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    format!("\"{units}\"")
}

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        (text(), any::<bool>()).prop_map(|(text, escape)| quoted(&text, escape)),
        any::<i64>().prop_map(|n| n.to_string()),
        (-1000i64..1000).prop_map(|n| n.to_string()),
        "-?(0|[1-9][0-9]{0,21})(\\.[0-9]{1,21})?([eE][+-]?[0-9]{1,3})?",
        prop_oneof![Just("true"), Just("false"), Just("null")].prop_map(str::to_owned),
    ]
}

fn value() -> impl Strategy<Value = String> {
    scalar().prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            (vec(inner.clone(), 0..4), space())
                .prop_map(|(items, s)| format!("[{s}{}{s}]", items.join(&format!("{s},{s}")))),
            (vec((text(), inner), 0..4), space()).prop_map(|(entries, s)| {
                let entry = |(key, value): &(String, String)| {
                    format!("{}{s}:{s}{value}", quoted(key, false))
                };
                let entries: Vec<_> = entries.iter().map(entry).collect();
                format!("{{{s}{}{s}}}", entries.join(&format!("{s},{s}")))
            }),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    let column =
        prop_oneof![Just("b"), Just("i"), Just("l"), Just("d"), Just("m"), Just("v"), Just("t")];
    prop_oneof![
        12 => column.clone().prop_map(|key| quoted(key, false)),
        1 => column.prop_map(|key| quoted(key, true)),
        2 => Just("\"extra\"".to_owned()),
        1 => text().prop_map(|key| quoted(&key, false)),
    ]
}

/// Keys in any order, values of any kind.
fn wild() -> impl Strategy<Value = String> {
    (vec((key(), value()), 0..8), space(), space()).prop_map(|(entries, a, b)| {
        let entries: Vec<_> =
            entries.iter().map(|(key, value)| format!("{a}{key}{b}:{a}{value}{b}")).collect();
        format!("{b}{{{}{a}}}{a}", entries.join(","))
    })
}

/// Keys in the schema's order with valid values, some left out: the case that predictions are for.
fn tame() -> impl Strategy<Value = String> {
    let fitting = (
        any::<bool>(),
        any::<i32>(),
        any::<i64>(),
        any::<i32>(),
        -999_999i32..999_999,
        text(),
        0i64..1 << 40,
    );
    (fitting, any::<u8>()).prop_map(|((b, i, l, d, m, v, t), left_out)| {
        let entries = [
            format!("\"b\":{b}"),
            format!("\"i\":{i}"),
            format!("\"l\":{l}"),
            format!("\"d\":{}", f64::from(d) / 8.0),
            format!("\"m\":{m}e-2"),
            format!("\"v\":{}", quoted(&v, left_out == 255)),
            format!("\"t\":{t}"),
        ];
        let kept = |(index, entry): (usize, String)| {
            (index == 6 || left_out < 128 || left_out >> index & 1 == 0).then_some(entry)
        };
        let entries: Vec<String> = entries.into_iter().enumerate().filter_map(kept).collect();
        format!("{{{}}}", entries.join(","))
    })
}

#[derive(Clone, Debug)]
enum Damage {
    None,
    Set(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Cut(Index),
    Double(Index, Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let byte =
        || prop_oneof![any::<u8>(), proptest::sample::select(b"\"\\{}[],:0-.eE \nutn".to_vec())];
    prop_oneof![
        6 => Just(Damage::None),
        1 => (any::<Index>(), byte()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => (any::<Index>(), byte()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        1 => any::<Index>().prop_map(Damage::Remove),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Damage::Double(a, b)),
    ]
}

fn damaged(record: &str, damage: &Damage) -> Vec<u8> {
    let mut bytes = record.as_bytes().to_vec();
    let length = bytes.len();
    match damage {
        Damage::None => {}
        Damage::Set(at, byte) => bytes[at.index(length)] = *byte,
        Damage::Insert(at, byte) => bytes.insert(at.index(length), *byte),
        Damage::Remove(at) => drop(bytes.remove(at.index(length))),
        Damage::Cut(at) => bytes.truncate(at.index(length)),
        Damage::Double(a, b) => {
            let (a, b) = (a.index(length), b.index(length));
            let piece = bytes[a.min(b)..a.max(b)].to_vec();
            bytes.splice(a..a, piece);
        }
    }
    bytes
}

fn records() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let record = (prop_oneof![3 => tame(), 2 => wild()], damage());
    vec(record.prop_map(|(record, damage)| damaged(&record, &damage)), 1..24)
}

/// The whole result of a scan of a record.
fn outcome(
    scanner: &mut Scanner,
    record: &[u8],
    wanted: &[usize],
) -> Result<Vec<(Cell, String)>, DecodeError> {
    let text = scanner.scan(record)?.to_owned();
    let cell = |&column: &usize| {
        let cell = scanner.cell(column);
        let text = match cell {
            Cell::Text { start, end } => text[start..end].to_owned(),
            Cell::Unescaped { start, end } => scanner.unescaped()[start..end].to_owned(),
            Cell::Null
            | Cell::Boolean(_)
            | Cell::Integer(_)
            | Cell::Double(_)
            | Cell::Decimal(_) => String::new(),
        };
        (cell, text)
    };
    Ok(wanted.iter().map(cell).collect())
}

/// Whether serde_json accepts the bytes as one JSON object. `None` if it stopped early: its numbers
/// have a range, those of JSON do not.
fn is_object(record: &[u8]) -> Option<bool> {
    match serde_json::from_slice::<Value>(record) {
        Ok(value) => Some(value.is_object()),
        Err(error) => (!error.to_string().contains("number out of range")).then_some(false),
    }
}

/// The value of a column as serde_json reads it, if that is exact.
fn oracle(raw: Option<&RawValue>, data_type: DataType) -> Option<(Cell, String)> {
    let none = String::new();
    let value: Value = serde_json::from_str(raw.map_or("null", RawValue::get)).ok()?;
    match (value, data_type) {
        (Value::Null, _) => Some((Cell::Null, none)),
        (Value::Bool(value), DataType::Boolean) => Some((Cell::Boolean(value), none)),
        (Value::Number(n), DataType::BigInt | DataType::Integer) => {
            Some((Cell::Integer(n.as_i64()?), none))
        }
        (Value::Number(_), DataType::Double) => {
            Some((Cell::Double(raw?.get().parse().ok()?), none))
        }
        (Value::Number(n), DataType::Timestamp) => Some((Cell::Integer(n.as_i64()? * 1000), none)),
        (Value::Number(_), DataType::Varchar) => Some((Cell::Null, raw?.get().to_owned())),
        (Value::String(text), DataType::Varchar) => Some((Cell::Null, text)),
        (_, _) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn guesses_change_nothing(records in records(), mask in 0u8..128) {
        let stream = one_of_each();
        let wanted: Vec<usize> = (0..7).filter(|index| mask >> index & 1 == 1).collect();
        let mut guessing = Scanner::new(&stream, &wanted);
        for record in &records {
            let mut plain = Scanner::new(&stream, &wanted).without_predictions();
            let (guessed, read) = (outcome(&mut guessing, record, &wanted), outcome(&mut plain, record, &wanted));
            // JSON has no NaN, so equal cells are equal values.
            prop_assert_eq!(guessed, read, "{}", String::from_utf8_lossy(record));
        }
    }

    #[test]
    fn what_is_json_is_what_serde_json_takes_for_json(records in records()) {
        let mut scanner = Scanner::new(&one_of_each(), &[]);
        for record in &records {
            match scanner.scan(record) {
                Ok(_) => prop_assert!(is_object(record) != Some(false), "{}", String::from_utf8_lossy(record)),
                Err(error) if error.reason.contains("twice") || error.reason.contains("64 deep") => {}
                Err(error) => prop_assert!(is_object(record) != Some(true), "{}: {error}", String::from_utf8_lossy(record)),
            }
        }
    }

    #[test]
    fn values_are_those_that_serde_json_reads(records in records()) {
        let stream = one_of_each();
        let wanted: Vec<usize> = (0..7).collect();
        let mut scanner = Scanner::new(&stream, &wanted);
        for record in &records {
            let Ok(cells) = outcome(&mut scanner, record, &wanted) else { continue };
            let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(record).unwrap();
            for ((cell, text), column) in cells.into_iter().zip(&stream.columns) {
                let raw = fields.get(&column.name).map(Box::as_ref);
                let Some((expected, expected_text)) = oracle(raw, column.data_type) else { continue };
                prop_assert_eq!(&text, &expected_text);
                if column.data_type != DataType::Varchar {
                    prop_assert_eq!(cell, expected, "{} of {}", column.name, String::from_utf8_lossy(record));
                }
            }
        }
    }

    #[test]
    fn ingest_accepts_what_the_decoder_of_all_columns_accepts(records in records()) {
        let stream = one_of_each();
        let mut validator = Validator::new(&stream);
        let mut decoder = JsonDecoder::new(&stream, &(0..7).collect::<Vec<_>>());
        let mut good = 0;
        for record in &records {
            let checked = validator.check(record).map(|_| ());
            good += usize::from(checked.is_ok());
            prop_assert_eq!(checked, decoder.decode(record));
        }
        prop_assert_eq!(decoder.take().num_rows(), good);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..64)) {
        let _ = Validator::new(&one_of_each()).check(&bytes);
        let text: String = bytes.iter().map(|byte| b"{}[]\",:\\u0d8c1-.eE tfn"[usize::from(*byte) % 22] as char).collect();
        let _ = Validator::new(&one_of_each()).check(format!("{{\"v\":{text}").as_bytes());
        let _ = Validator::new(&one_of_each()).check(text.as_bytes());
    }
}

/// The value in the reference's type.
fn datum(cell: Cell, text: &str, data_type: DataType) -> Datum {
    match cell {
        Cell::Null => Datum::Null,
        Cell::Boolean(value) => Datum::Boolean(value),
        Cell::Integer(value) if data_type == DataType::Timestamp => Datum::Timestamp(value),
        Cell::Integer(value) => Datum::Integer(value),
        Cell::Double(value) => Datum::Double(value),
        Cell::Decimal(units) => {
            let DataType::Decimal { scale, .. } = data_type else {
                panic!("a decimal in {data_type}")
            };
            Datum::Decimal { units, scale }
        }
        Cell::Text { .. } | Cell::Unescaped { .. } => Datum::Text(text.to_owned()),
    }
}

#[test]
fn generated_events_decode_as_the_reference_reads_them() {
    let stream = StreamDefinition { max_future_micros: 3_600_000_000, ..one_of_each() };
    let mix = Mix { unfit: 0.1, malformed: 0.1, extreme: 0.3, ..Mix::default().records(4_000) };
    for wanted in [vec![0, 1, 2, 3, 4, 5, 6], vec![4, 6], vec![3, 5, 6]] {
        let mut scanner = Scanner::new(&stream, &wanted);
        let (mut good, mut bad) = (0, 0);
        for value in
            generate(&stream, &mix, 11).into_iter().flatten().filter_map(|record| record.value)
        {
            let shown = String::from_utf8_lossy(&value).into_owned();
            match (outcome(&mut scanner, &value, &wanted), Event::decode(&stream, &wanted, &value))
            {
                (Ok(cells), Ok(event)) => {
                    good += 1;
                    for (column, (cell, text)) in wanted.iter().zip(cells) {
                        let Column { name, data_type, .. } = &stream.columns[*column];
                        assert_eq!(
                            datum(cell, &text, *data_type),
                            event.get(name),
                            "{name} of {shown}"
                        );
                    }
                }
                (Err(error), Err(fault)) => {
                    bad += 1;
                    let column = fault.column.map(|index| stream.columns[index].name.as_str());
                    // If a record has several faults, each side names the first that it finds.
                    assert!(
                        error.column.as_deref() == column
                            || error.column.is_none()
                            || column.is_none(),
                        "{shown}"
                    );
                }
                (ours, reference) => panic!("{shown}: {ours:?}, but {reference:?}"),
            }
        }
        assert!(good > 2_000 && bad > 100, "{good} good, {bad} bad");
    }
}
