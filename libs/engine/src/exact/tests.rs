use proptest::{collection::vec, prelude::*};

use super::*;

/// A whole number of 2^-1074, in two's complement: wide enough for 2^60 of the greatest doubles.
#[derive(Clone, PartialEq, Eq)]
struct Reference([u64; 36]);

impl Reference {
    fn sum(addends: &[f64]) -> Self {
        let mut sum = Self([0; 36]);
        addends.iter().for_each(|addend| sum.add(*addend));
        sum
    }

    fn add(&mut self, addend: f64) {
        let bits = addend.abs().to_bits();
        let (exponent, fraction) = (bits >> 52, bits & ((1 << 52) - 1));
        let (mantissa, shift) =
            if exponent == 0 { (fraction, 0) } else { (fraction | 1 << 52, exponent as usize - 1) };
        let mut other = Self([0; 36]);
        let wide = u128::from(mantissa) << (shift % 64);
        other.0[shift / 64] = wide as u64;
        other.0[shift / 64 + 1] = (wide >> 64) as u64;
        if addend < 0.0 {
            other = other.negated();
        }
        let mut carry = false;
        for (limb, other) in self.0.iter_mut().zip(other.0) {
            let (sum, first) = limb.overflowing_add(other);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*limb, carry) = (sum, first || second);
        }
    }

    fn negated(&self) -> Self {
        let mut result = Self([0; 36]);
        let mut carry = true;
        for (limb, from) in result.0.iter_mut().zip(self.0) {
            (*limb, carry) = (!from).overflowing_add(u64::from(carry));
        }
        result
    }

    fn rounded(&self) -> f64 {
        let negative = self.0[35] >> 63 == 1;
        let magnitude = if negative { self.negated() } else { self.clone() };
        let bit = |place: usize| magnitude.0[place / 64] >> (place % 64) & 1;
        let Some(top) = (0..36 * 64).rev().find(|place| bit(*place) == 1) else { return 0.0 };
        let lowest = top.saturating_sub(52);
        let mut mantissa = (lowest..=top).rev().fold(0_u64, |value, place| value << 1 | bit(place));
        if lowest > 0 && bit(lowest - 1) == 1 {
            let sticky = (0..lowest - 1).any(|place| bit(place) == 1);
            mantissa += u64::from(sticky || mantissa & 1 == 1);
        }
        // mantissa * 2^(lowest - 1074), in two exact steps unless it overflows.
        let value = if lowest == 0 {
            f64::from_bits(mantissa)
        } else {
            let half = lowest as i64 - 1074;
            let first = half / 2;
            mantissa as f64 * power_of_two(first) * power_of_two(half - first)
        };
        if negative { -value } else { value }
    }

    fn canonical(mut self) -> Vec<f64> {
        let mut parts = Vec::new();
        loop {
            let part = self.rounded();
            if part == 0.0 {
                return parts;
            }
            parts.push(part);
            self.add(-part);
        }
    }
}

fn exact(addends: &[f64]) -> ExactSum {
    let mut sum = ExactSum::default();
    addends.iter().for_each(|addend| sum.add(*addend));
    sum
}

fn bytes(sum: &ExactSum) -> Vec<u8> {
    let mut bytes = Vec::new();
    sum.encode(&mut bytes);
    bytes
}

/// Numbers of every magnitude, with many near ties and cancellations.
fn addend() -> impl Strategy<Value = f64> {
    let any_exponent = |low: i32, high: i32| {
        (any::<bool>(), 0..1_u64 << 52, low..high).prop_map(|(negative, fraction, exponent)| {
            let value = f64::from_bits(((exponent as u64) << 52) | fraction);
            if negative { -value } else { value }
        })
    };
    let round_number = (any::<bool>(), 0..0x7ff_u64).prop_map(|(negative, exponent)| {
        let value = f64::from_bits(exponent << 52);
        if negative { -value } else { value }
    });
    prop_oneof![
        any_exponent(0, 0x7ff),
        any_exponent(1023 - 60, 1023 + 60),
        any_exponent(1023 + 830, 0x7ff),
        any_exponent(0, 60),
        round_number,
        (-1_000_000_i64..1_000_000).prop_map(|cents| cents as f64 / 100.0),
        prop::sample::select(vec![
            1.0,
            -1.0,
            f64::MAX,
            f64::MIN,
            f64::MIN_POSITIVE,
            5e-324,
            -0.0,
            0.5
        ]),
        prop::sample::select(vec![
            power_of_two(53),
            -power_of_two(53),
            power_of_two(900),
            -power_of_two(900),
            power_of_two(899),
            -power_of_two(899),
            power_of_two(1023),
            -power_of_two(1023),
            power_of_two(970),
            power_of_two(969),
            -power_of_two(970),
        ]),
    ]
}

fn addends(most: usize) -> impl Strategy<Value = Vec<f64>> {
    (vec(addend(), 0..most), any::<bool>()).prop_map(|(mut addends, cancel)| {
        if cancel {
            // Cancels most of the sum, so that the low parts matter.
            let negated: Vec<f64> = addends.iter().skip(1).map(|addend| -addend).collect();
            addends.extend(negated);
        }
        addends
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_sum_is_the_exact_sum_rounded_once(addends in addends(40)) {
        prop_assert_eq!(exact(&addends).value(), Reference::sum(&addends).rounded());
    }

    #[test]
    fn the_stored_bytes_depend_on_the_exact_sum_alone(
        addends in addends(40),
        cuts in vec(any::<prop::sample::Index>(), 0..4),
        seed in any::<u64>(),
    ) {
        let expected = bytes(&exact(&addends));
        // Stores and loads the sum at arbitrary points.
        let mut stored = bytes(&ExactSum::default());
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(addends.len() + 1)).collect();
        cuts.sort_unstable();
        let mut from = 0;
        for until in cuts.into_iter().chain([addends.len()]) {
            let mut sum = ExactSum::default();
            prop_assert!(sum.merge(&mut &stored[..]).is_some());
            addends[from..until].iter().for_each(|addend| sum.add(*addend));
            stored = bytes(&sum);
            from = until;
        }
        prop_assert_eq!(&stored, &expected);
        // Adds in another order, and merges partial sums.
        let mut shuffled = addends.clone();
        let mut state = seed | 1;
        for index in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(index, (state >> 33) as usize % (index + 1));
        }
        let mut merged = ExactSum::default();
        for chunk in shuffled.chunks(7).rev() {
            prop_assert!(merged.merge(&mut &bytes(&exact(chunk))[..]).is_some());
        }
        prop_assert_eq!(&bytes(&merged), &expected);
        prop_assert_eq!(merged.value(), exact(&addends).value());
    }

    #[test]
    fn the_parts_are_the_greedy_ones(addends in addends(40)) {
        let small: Vec<f64> = addends.iter().copied().filter(|addend| addend.abs() < BIG).collect();
        let big: Vec<f64> = addends.iter().filter(|addend| addend.abs() >= BIG).map(|a| a * DOWN).collect();
        let mut expected = Vec::new();
        let parts = Reference::sum(&small).canonical();
        let big = Reference::sum(&big).canonical();
        expected.push(parts.len() as u8 | u8::from(!big.is_empty()) << 6);
        parts.iter().for_each(|part| expected.extend(part.to_le_bytes()));
        if !big.is_empty() {
            expected.push(big.len() as u8);
            big.iter().for_each(|part| expected.extend(part.to_le_bytes()));
        }
        prop_assert_eq!(bytes(&exact(&addends)), expected);
    }
}

#[test]
fn a_tie_is_broken_by_what_lies_far_below() {
    let one_ulp = power_of_two(-52);
    assert_eq!(exact(&[1.0, one_ulp / 2.0]).value(), 1.0);
    assert_eq!(exact(&[1.0, one_ulp / 2.0, 5e-324]).value(), 1.0 + one_ulp);
    assert_eq!(exact(&[1.0, one_ulp / 2.0, -5e-324]).value(), 1.0);
    assert_eq!(exact(&[1.0 + one_ulp, one_ulp / 2.0, -5e-324]).value(), 1.0 + one_ulp);
    // The same between big and small addends.
    let (big, half) = (power_of_two(1023), power_of_two(970));
    assert_eq!(exact(&[big, half]).value(), big);
    assert_eq!(exact(&[big, half, 5e-324]).value(), big + 2.0 * half);
    assert_eq!(exact(&[big, half, -5e-324]).value(), big);
}

#[test]
fn sums_beyond_the_greatest_double_come_back() {
    let mut sum = exact(&[f64::MAX; 1000]);
    assert_eq!(sum.value(), f64::INFINITY);
    assert_eq!(sum.mean(1000), f64::MAX);
    [f64::MIN; 999].iter().for_each(|addend| sum.add(*addend));
    assert_eq!(sum.value(), f64::MAX);
    sum.add(f64::MIN);
    sum.add(1e-300);
    assert_eq!(sum.value(), 1e-300);
}

#[test]
fn what_is_not_finite_is_counted() {
    assert!(exact(&[1.0, f64::NAN]).value().is_nan());
    assert!(exact(&[f64::INFINITY, f64::NEG_INFINITY]).value().is_nan());
    assert_eq!(exact(&[f64::INFINITY, f64::MIN]).value(), f64::INFINITY);
    assert_eq!(exact(&[f64::NEG_INFINITY, 1.0]).mean(2), f64::NEG_INFINITY);
    let mut twice = exact(&[f64::NAN, f64::INFINITY, 2.5]);
    let once = bytes(&twice);
    assert!(twice.merge(&mut &once[..]).is_some());
    assert_eq!(
        bytes(&twice),
        bytes(&exact(&[5.0, f64::NAN, f64::NAN, f64::INFINITY, f64::INFINITY]))
    );
}

#[test]
fn parts_without_bound_stay_few() {
    let mut sum = ExactSum::default();
    let mut expected = Vec::new();
    for round in 0..200 {
        for exponent in (-1074 + 53..899).step_by(29) {
            let value = if exponent < -1022 {
                f64::from_bits(1 << (exponent + 1074))
            } else {
                power_of_two(exponent)
            };
            sum.add(value * if round % 3 == 0 { -1.0 } else { 1.0 });
            expected.push(value * if round % 3 == 0 { -1.0 } else { 1.0 });
        }
    }
    assert!(sum.rare.as_ref().is_some_and(|rare| rare.more.len() <= MANY + 1));
    assert_eq!(sum.value(), Reference::sum(&expected).rounded());
}

#[test]
fn damaged_sums_are_refused() {
    for part in [f64::MAX, f64::MIN, f64::INFINITY, f64::NAN, power_of_two(965)] {
        let stored = [&[1][..], &part.to_le_bytes()].concat();
        assert_eq!(ExactSum::default().merge(&mut &stored[..]), None);
    }
    let stored = bytes(&exact(&[0.1, 0.2, f64::MAX, f64::NAN]));
    for length in 0..stored.len() {
        assert_eq!(ExactSum::default().merge(&mut &stored[..length]), None);
    }
}

#[test]
fn the_stored_form_of_a_sum_never_changes() {
    assert_eq!(bytes(&ExactSum::default()), [0]);
    assert_eq!(bytes(&exact(&[0.1, 0.2])), hex("02 343333333333d33f 00000000000080bc"));
    assert_eq!(
        bytes(&exact(&[1.0, f64::MAX, f64::NAN])),
        hex("c1 000000000000f03f 01 ffffffffffff6f5a 01 00 00")
    );
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}
