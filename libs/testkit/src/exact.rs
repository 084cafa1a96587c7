//! Long integers with schoolbook arithmetic, wide enough for any sum of doubles.

/// A double is a whole multiple of 2^-1074 below 2^1024, which takes 2,098 bits. The other bits are
/// room for the number of addends.
const LIMBS: usize = 36;
/// The exponent of a double's least significant bit.
const UNIT: i32 = -1074;

/// An integer in two's complement, the lowest limb first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wide {
    limbs: [u64; LIMBS],
}

impl Default for Wide {
    fn default() -> Self {
        Self { limbs: [0; LIMBS] }
    }
}

impl Wide {
    pub fn is_negative(&self) -> bool {
        self.limbs[LIMBS - 1] >> 63 == 1
    }

    pub fn add(&mut self, other: &Self) {
        let mut carry = false;
        for (limb, other) in self.limbs.iter_mut().zip(other.limbs) {
            let (sum, first) = limb.overflowing_add(other);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            *limb = sum;
            carry = first | second;
        }
    }

    #[must_use]
    pub fn negated(mut self) -> Self {
        self.limbs.iter_mut().for_each(|limb| *limb = !*limb);
        self.add(&Self::from(1));
        self
    }

    #[must_use]
    pub fn magnitude(self) -> Self {
        if self.is_negative() { self.negated() } else { self }
    }

    /// The product with `factor`, which must fit the width.
    #[must_use]
    pub fn times(self, factor: u64) -> Self {
        let negative = self.is_negative();
        let mut product = self.magnitude();
        let mut carry = 0;
        for limb in &mut product.limbs {
            let wide = u128::from(*limb) * u128::from(factor) + carry;
            *limb = wide as u64;
            carry = wide >> 64;
        }
        if negative { product.negated() } else { product }
    }

    /// The quotient by `divisor`, without the remainder.
    #[must_use]
    pub fn divided(self, divisor: u64) -> Self {
        let negative = self.is_negative();
        let mut quotient = self.magnitude();
        let mut rest = 0;
        for limb in quotient.limbs.iter_mut().rev() {
            let wide = rest << 64 | u128::from(*limb);
            *limb = (wide / u128::from(divisor)) as u64;
            rest = wide % u128::from(divisor);
        }
        if negative { quotient.negated() } else { quotient }
    }

    pub fn to_i128(&self) -> Option<i128> {
        let low = u128::from(self.limbs[0]) | u128::from(self.limbs[1]) << 64;
        let value = low as i128;
        (Self::from(value) == *self).then_some(value)
    }

    fn bit(&self, index: usize) -> bool {
        self.limbs[index / 64] >> (index % 64) & 1 == 1
    }

    /// The number times `2^exponent`, rounded to the nearest double, ties to even; infinite if too
    /// large.
    fn rounded(&self, exponent: i32) -> f64 {
        let negative = self.is_negative();
        let magnitude = self.clone().magnitude();
        let Some(top) = (0..LIMBS * 64).rev().find(|&index| magnitude.bit(index)) else {
            return 0.0;
        };
        // The least significant bit of a double of this magnitude.
        let lowest = (top as i32 - 52).max(UNIT - exponent).max(0) as usize;
        let mut mantissa: u64 = 0;
        for index in (lowest..=top).rev() {
            mantissa = mantissa << 1 | u64::from(magnitude.bit(index));
        }
        if lowest > 0 && magnitude.bit(lowest - 1) {
            let more = (0..lowest - 1).any(|index| magnitude.bit(index));
            mantissa += u64::from(more || mantissa & 1 == 1);
        }
        let value = times_power_of_two(mantissa as f64, lowest as i32 + exponent);
        if negative { -value } else { value }
    }
}

impl From<i128> for Wide {
    fn from(value: i128) -> Self {
        let mut limbs = [if value < 0 { u64::MAX } else { 0 }; LIMBS];
        limbs[0] = value as u64;
        limbs[1] = (value >> 64) as u64;
        Self { limbs }
    }
}

/// `value`, a whole number below 2^54, times `2^exponent`, which is exact or an overflow.
fn times_power_of_two(value: f64, exponent: i32) -> f64 {
    let half = exponent / 2;
    let power = |exponent: i32| 2f64.powi(exponent.clamp(-1022, 1023));
    // It multiplies in steps, none of which overflows before the result does.
    if exponent >= 0 {
        value * power(half) * power(exponent - half)
    } else {
        let first = exponent.max(-1022);
        // The remaining exponent is at most 52, and the mantissa has that many zeros at its end.
        value * power(first) * power(exponent - first)
    }
}

/// The exact sum of doubles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DoubleSum {
    units: Wide,
    nan: bool,
    infinite: bool,
    minus_infinite: bool,
}

impl DoubleSum {
    pub fn add(&mut self, value: f64) {
        self.nan |= value.is_nan();
        self.infinite |= value == f64::INFINITY;
        self.minus_infinite |= value == f64::NEG_INFINITY;
        if !value.is_finite() {
            return;
        }
        let bits = value.to_bits();
        let exponent = (bits >> 52 & 0x7ff) as usize;
        let fraction = bits & ((1 << 52) - 1);
        let (mantissa, shift) =
            if exponent == 0 { (fraction, 0) } else { (fraction | 1 << 52, exponent - 1) };
        let mut units = Wide::default();
        let spread = u128::from(mantissa) << (shift % 64);
        units.limbs[shift / 64] = spread as u64;
        units.limbs[shift / 64 + 1] = (spread >> 64) as u64;
        self.units.add(&if value.is_sign_negative() { units.negated() } else { units });
    }

    fn special(&self) -> Option<f64> {
        match (self.nan, self.infinite, self.minus_infinite) {
            (true, _, _) | (_, true, true) => Some(f64::NAN),
            (_, true, _) => Some(f64::INFINITY),
            (_, _, true) => Some(f64::NEG_INFINITY),
            (false, false, false) => None,
        }
    }

    /// The nearest double. Zero is positive.
    pub fn value(&self) -> f64 {
        self.special().unwrap_or_else(|| self.units.rounded(UNIT))
    }

    /// The rounded sum, divided by `count`, also where the sum alone would be an infinity.
    pub fn mean(&self, count: u64) -> f64 {
        if let Some(special) = self.special() {
            return special;
        }
        match self.units.rounded(UNIT) {
            sum if sum.is_finite() => sum / count as f64,
            _ => self.units.rounded(UNIT - 64) / count as f64 * 2f64.powi(64),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn sum(values: &[f64]) -> f64 {
        let mut sum = DoubleSum::default();
        values.iter().for_each(|value| sum.add(*value));
        sum.value()
    }

    #[test]
    fn a_sum_loses_nothing_on_the_way() {
        assert_eq!(sum(&[1e308, 1.0, -1e308]), 1.0);
        assert_eq!(sum(&[0.1; 10]), 1.0);
        assert_eq!(sum(&[f64::MAX, f64::MAX]), f64::INFINITY);
        assert_eq!(sum(&[f64::MAX, f64::MAX, -f64::MAX]), f64::MAX);
        assert_eq!(sum(&[5e-324, 5e-324]), 1e-323);
        assert_eq!(sum(&[1.0, f64::EPSILON / 2.0]), 1.0);
        assert_eq!(sum(&[1.0, f64::EPSILON / 2.0, 5e-324]), 1.0 + f64::EPSILON);
        assert_eq!(sum(&[9_007_199_254_740_993.0, 1.0]), 9_007_199_254_740_992.0);
        assert_eq!(sum(&[-0.0]).to_bits(), 0);
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        let mut big = DoubleSum::default();
        (0..4).for_each(|_| big.add(f64::MAX));
        assert_eq!(big.mean(4), f64::MAX);
    }

    proptest! {
        #[test]
        fn one_double_is_its_own_sum(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            prop_assert_eq!(sum(&[value]), value);
            prop_assert_eq!(sum(&[value, value, -value]), value);
        }

        #[test]
        fn two_doubles_have_the_sum_that_the_machine_gives(a in any::<f64>(), b in any::<f64>()) {
            prop_assert_eq!(sum(&[a, b]), a + b + 0.0);
        }

        #[test]
        fn whole_numbers_add_multiply_and_divide_as_i128_does(
            values in vec(any::<i64>(), 1..20), factor in 1u64..1 << 40, divisor in 1u64..,
        ) {
            let mut sum = Wide::default();
            values.iter().for_each(|value| sum.add(&Wide::from(i128::from(*value))));
            let expected: i128 = values.iter().map(|value| i128::from(*value)).sum();
            prop_assert_eq!(sum.to_i128(), Some(expected));
            prop_assert_eq!(sum.clone().times(factor).to_i128(), Some(expected * i128::from(factor)));
            prop_assert_eq!(sum.divided(divisor).to_i128(), Some(expected / i128::from(divisor)));
        }
    }
}
