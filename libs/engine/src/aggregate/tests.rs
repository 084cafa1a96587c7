use proptest::prelude::*;

use super::{
    finish::{decimal, from_ordered},
    stored::{put_wide_integer, take_wide_integer},
    *,
};

proptest! {
    #[test]
    fn doubles_keep_their_order_as_numbers(a in any::<f64>(), b in any::<f64>()) {
        if let Some(order) = a.partial_cmp(&b) && a != b {
            prop_assert_eq!(ordered(a).cmp(&ordered(b)), order);
        }
        if !a.is_nan() {
            prop_assert_eq!(from_ordered(ordered(a)).to_bits(), a.to_bits());
            prop_assert!(ordered(a) < ordered(f64::NAN) && ordered(a) < ordered(-f64::NAN));
        }
    }

    #[test]
    fn a_wide_integer_reads_back_from_its_fewest_bytes(low in any::<u128>(), high in any::<i128>(), shift in 0..=255_u8) {
        let value = i256::from_parts(low, high) >> shift;
        let mut bytes = Vec::new();
        put_wide_integer(value, &mut bytes);
        prop_assert_eq!(take_wide_integer(&mut &bytes[..]), Some(value));
        // One byte fewer encodes another value.
        if let Some(shorter) = bytes[0].checked_sub(1) {
            bytes[0] = shorter;
            bytes.pop();
            prop_assert_ne!(take_wide_integer(&mut &bytes[..]), Some(value));
        }
    }
}

#[test]
fn a_decimal_average_is_cut_off_behind_its_last_digit() {
    let ten = i256::from_i128(10);
    assert_eq!(decimal(ten, 4, 3, 38), Some(33_333));
    assert_eq!(decimal(ten.wrapping_neg(), 4, 3, 38), Some(-33_333));
    assert_eq!(decimal(i256::from_i128(i128::MAX), 0, 1, 38), None);
    assert_eq!(decimal(i256::from_i128(99), 0, 1, 1), None);
}
