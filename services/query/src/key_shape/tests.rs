use super::*;

#[test]
fn a_decimal_is_taken_exactly_or_not_at_all() {
    for (text, number) in [
        ("0", 0),
        ("12.34", 1234),
        ("-12.3", -1230),
        ("+.5", 50),
        ("7.", 700),
        ("1.2500", 125),
        ("999.99", 99_999),
    ] {
        assert_eq!(decimal(text, 5, 2), Ok(number), "{text}");
    }
    for text in ["", ".", "-", "1.234", "1000", "1e3", "1.2.3", "12a", " 1", "١"] {
        assert!(decimal(text, 5, 2).is_err(), "{text}");
    }
    assert_eq!(decimal(&"9".repeat(38), 38, 0), Ok(10_i128.pow(38) - 1));
    assert!(decimal(&"9".repeat(60), 38, 0).is_err());
}

#[test]
fn a_value_of_another_type_says_what_it_is() {
    let value = |kind| Value { kind: Some(kind) };
    assert_eq!(key_part(&Value { kind: None }, DataType::Varchar), Ok(KeyPart::Null));
    assert_eq!(key_part(&value(Kind::Integer(3)), DataType::Double), Ok(KeyPart::Double(3.0)));
    let wrong = key_part(&value(Kind::Integer(1 << 40)), DataType::Integer).unwrap_err();
    assert_eq!(wrong, "1099511627776, beyond the range of INTEGER");
    let wrong = key_part(&value(Kind::Boolean(true)), DataType::Timestamp).unwrap_err();
    assert_eq!(wrong, "a boolean, not TIMESTAMP");
}
