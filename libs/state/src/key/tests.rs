use std::cmp::Ordering;

use proptest::prelude::*;

use super::*;

fn encoded(parts: &[OwnedKeyPart]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        encode(part.as_part(), &mut bytes);
    }
    bytes
}

fn double() -> impl Strategy<Value = f64> {
    let special = [
        0.0,
        -0.0,
        f64::NAN,
        -f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MIN_POSITIVE,
        5e-324,
        -5e-324,
    ];
    prop_oneof![
        proptest::sample::select(special.to_vec()),
        any::<f64>(),
        any::<u64>().prop_map(f64::from_bits)
    ]
}

fn integer() -> impl Strategy<Value = i64> {
    prop_oneof![any::<i64>(), -3i64..3, Just(i64::MIN), Just(i64::MAX)]
}

/// Short text of few characters, so that ties, prefixes and zeros are frequent.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[\\x00\\x01ab\u{ff}\u{10ffff}]{0,4}", any::<String>()]
}

fn part(data_type: DataType) -> BoxedStrategy<OwnedKeyPart> {
    let value = match data_type {
        DataType::Boolean => any::<bool>().prop_map(OwnedKeyPart::Boolean).boxed(),
        DataType::Integer | DataType::BigInt => integer().prop_map(OwnedKeyPart::Integer).boxed(),
        DataType::Double => double().prop_map(OwnedKeyPart::Double).boxed(),
        DataType::Decimal { .. } => {
            prop_oneof![any::<i128>(), -3i128..3].prop_map(OwnedKeyPart::Decimal).boxed()
        }
        DataType::Varchar => text().prop_map(OwnedKeyPart::Text).boxed(),
        DataType::Timestamp => integer().prop_map(OwnedKeyPart::Timestamp).boxed(),
    };
    prop_oneof![1 => Just(OwnedKeyPart::Null), 6 => value].boxed()
}

fn data_type() -> impl Strategy<Value = DataType> {
    proptest::sample::select(vec![
        DataType::Boolean,
        DataType::Integer,
        DataType::BigInt,
        DataType::Double,
        DataType::Decimal { precision: 38, scale: 2 },
        DataType::Varchar,
        DataType::Timestamp,
    ])
}

/// Two keys with the same column types.
fn two_keys() -> impl Strategy<Value = (Vec<DataType>, Vec<OwnedKeyPart>, Vec<OwnedKeyPart>)> {
    proptest::collection::vec(data_type(), 1..4).prop_flat_map(|types| {
        let key = || types.iter().map(|&data_type| part(data_type)).collect::<Vec<_>>();
        (Just(types.clone()), key(), key())
    })
}

/// The order of SQL: NULL first, NaN last and equal to itself, -0.0 equal to 0.0.
fn order(a: &OwnedKeyPart, b: &OwnedKeyPart) -> Ordering {
    use OwnedKeyPart::{Boolean, Decimal, Double, Integer, Null, Text, Timestamp};
    match (a, b) {
        (Null, Null) => Ordering::Equal,
        (Null, _) => Ordering::Less,
        (_, Null) => Ordering::Greater,
        (Boolean(a), Boolean(b)) => a.cmp(b),
        (Integer(a), Integer(b)) | (Timestamp(a), Timestamp(b)) => a.cmp(b),
        (Decimal(a), Decimal(b)) => a.cmp(b),
        (Text(a), Text(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Double(a), Double(b)) => a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())),
        _ => panic!("two types in one column"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_order_of_bytes_is_the_order_of_values((_, a, b) in two_keys()) {
        let values = a.iter().zip(&b).map(|(a, b)| order(a, b)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal);
        prop_assert_eq!(encoded(&a).cmp(&encoded(&b)), values);
    }

    #[test]
    fn a_key_reads_back_what_was_written((types, key, _) in two_keys()) {
        let bytes = encoded(&key);
        let mut rest = bytes.as_slice();
        let read: Vec<_> = types.iter().map(|&data_type| decode(&mut rest, data_type).unwrap()).collect();
        prop_assert!(rest.is_empty());
        for (read, written) in read.iter().zip(&key) {
            prop_assert_eq!(order(read, written), Ordering::Equal, "{:?} of {:?}", read, written);
        }
        prop_assert_eq!(encoded(&read), bytes);
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_read_but_never_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..24),
        data_type in data_type(),
    ) {
        let mut rest = bytes.as_slice();
        if decode(&mut rest, data_type).is_err() {
            prop_assert_eq!(rest, bytes.as_slice(), "a refusal takes nothing");
        }
    }
}

#[test]
fn keys_of_version_1_are_read_for_ever() {
    let decimal = DataType::Decimal { precision: 10, scale: 2 };
    let stored: [(&[u8], DataType, OwnedKeyPart); 10] = [
        (b"\x00", DataType::Varchar, OwnedKeyPart::Null),
        (b"\x01\x01", DataType::Boolean, OwnedKeyPart::Boolean(true)),
        (b"\x01\x80\0\0\0\0\0\0\x05", DataType::Integer, OwnedKeyPart::Integer(5)),
        (b"\x01\x7f\xff\xff\xff\xff\xff\xff\xff", DataType::BigInt, OwnedKeyPart::Integer(-1)),
        (b"\x01\xbf\xf8\0\0\0\0\0\0", DataType::Double, OwnedKeyPart::Double(1.5)),
        (b"\x01\x40\x07\xff\xff\xff\xff\xff\xff", DataType::Double, OwnedKeyPart::Double(-1.5)),
        (b"\x01\x80\0\0\0\0\0\0\0", DataType::Double, OwnedKeyPart::Double(0.0)),
        (b"\x01\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x02", decimal, OwnedKeyPart::Decimal(258)),
        (b"\x01a\x00\xffb\x00\x01", DataType::Varchar, OwnedKeyPart::Text("a\0b".into())),
        (b"\x01\x80\0\0\0\0\0\x0f\x42", DataType::Timestamp, OwnedKeyPart::Timestamp(3906)),
    ];
    for (bytes, data_type, part) in stored {
        let mut rest = bytes;
        assert_eq!(decode(&mut rest, data_type), Ok(part.clone()));
        assert!(rest.is_empty());
        assert_eq!(encoded(&[part]), bytes);
    }
    let mut nan = b"\x01\xff\xf8\0\0\0\0\0\0".as_slice();
    assert!(
        matches!(decode(&mut nan, DataType::Double), Ok(OwnedKeyPart::Double(value)) if value.is_nan())
    );
}
