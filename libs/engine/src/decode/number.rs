//! Reads JSON numbers without loss.

use super::{
    fault::{Fault, FaultKind, fail},
    json::word,
};

/// A parsed number. With at most 19 digits its value is `mantissa * 10^(exponent - fraction)`. With
/// more, `mantissa` has wrapped and the literal must be read again.
#[derive(Clone, Copy)]
pub(super) struct Number {
    pub(super) end: usize,
    negative: bool,
    mantissa: u64,
    digits: usize,
    fraction: usize,
    /// Saturates instead of overflowing.
    exponent: i64,
}

/// Why a number is not a whole multiple of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    Fraction,
    TooLarge,
}

/// The greatest number of digits that always fits a `u64`.
const EXACT_DIGITS: usize = 19;

pub(super) const fn power_of_ten(exponent: u32) -> i128 {
    10i128.pow(exponent)
}

/// The powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/// Reads the number at `at`.
#[inline]
pub(super) fn number(bytes: &[u8], mut at: usize) -> Result<Number, Fault> {
    let negative = bytes.get(at) == Some(&b'-');
    at += usize::from(negative);
    let start = at;
    let mut mantissa = 0;
    at = digits(bytes, at, &mut mantissa)?;
    let mut count = at - start;
    if count > 1 && bytes[start] == b'0' {
        return fail(start, FaultKind::LeadingZero);
    }
    let mut fraction = 0;
    if bytes.get(at) == Some(&b'.') {
        let start = at + 1;
        at = digits(bytes, start, &mut mantissa)?;
        fraction = at - start;
        count += fraction;
    }
    let mut exponent = 0;
    if let Some(b'e' | b'E') = bytes.get(at) {
        (at, exponent) = power(bytes, at + 1)?;
    }
    Ok(Number { end: at, negative, mantissa, digits: count, fraction, exponent })
}

/// Reads one digit or more.
#[inline]
fn digits(bytes: &[u8], start: usize, value: &mut u64) -> Result<usize, Fault> {
    let mut at = start;
    let mut total = *value;
    while let Some(word) = word(bytes, at)
        && eight_digits(word)
    {
        total = total.wrapping_mul(100_000_000).wrapping_add(eight(word));
        at += 8;
    }
    while let Some(&digit @ b'0'..=b'9') = bytes.get(at) {
        total = total.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        at += 1;
    }
    *value = total;
    if at == start { fail(at, FaultKind::Digit) } else { Ok(at) }
}

/// Whether all eight bytes are ASCII digits.
#[inline]
const fn eight_digits(word: u64) -> bool {
    const HIGH: u64 = 0xf0f0_f0f0_f0f0_f0f0;
    let carried = word.wrapping_add(0x0606_0606_0606_0606);
    (word & HIGH) | ((carried & HIGH) >> 4) == 0x3333_3333_3333_3333
}

/// The value of eight ASCII digits, the first one in the lowest byte, by three multiplications.
#[inline]
const fn eight(word: u64) -> u64 {
    const MASK: u64 = 0x0000_00ff_0000_00ff;
    let digits = word.wrapping_sub(0x3030_3030_3030_3030);
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let left = (pairs & MASK).wrapping_mul(0x000f_4240_0000_0064);
    let right = ((pairs >> 16) & MASK).wrapping_mul(0x0000_2710_0000_0001);
    left.wrapping_add(right) >> 32
}

/// Reads the exponent after an `e`.
fn power(bytes: &[u8], mut at: usize) -> Result<(usize, i64), Fault> {
    let negative = bytes.get(at) == Some(&b'-');
    if let Some(b'+' | b'-') = bytes.get(at) {
        at += 1;
    }
    let start = at;
    let mut value: i64 = 0;
    while let Some(&digit @ b'0'..=b'9') = bytes.get(at) {
        value = value.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
        at += 1;
    }
    if at == start {
        return fail(at, FaultKind::Digit);
    }
    Ok((at, if negative { -value } else { value }))
}

impl Number {
    /// The nearest double; `None` if it is infinite. `literal` is the number's text.
    #[inline]
    pub(super) fn double(&self, literal: &str) -> Option<f64> {
        // Both operands are exact, so the one operation rounds correctly (Clinger).
        if self.digits <= EXACT_DIGITS && self.mantissa <= 1 << 53 {
            let exponent = self.exponent.saturating_sub(self.fraction as i64);
            let magnitude =
                match usize::try_from(exponent.unsigned_abs()).ok().and_then(|e| POWERS.get(e)) {
                    Some(power) if exponent < 0 => Some(self.mantissa as f64 / power),
                    Some(power) => Some(self.mantissa as f64 * power),
                    None => None,
                };
            if let Some(magnitude) = magnitude {
                return Some(if self.negative { -magnitude } else { magnitude });
            }
        }
        literal.parse().ok().filter(|value: &f64| value.is_finite())
    }

    /// The number times `10^scale`, exactly. `literal` is the number's text.
    #[inline]
    pub(super) fn scaled(&self, literal: &[u8], scale: u8) -> Result<i128, Unfit> {
        let scale = usize::from(scale);
        if self.exponent == 0 && self.digits <= EXACT_DIGITS && self.fraction <= scale {
            let shift = (scale - self.fraction) as u32;
            let magnitude = match shift {
                0 => i128::from(self.mantissa),
                _ => i128::from(self.mantissa)
                    .checked_mul(power_of_ten(shift))
                    .ok_or(Unfit::TooLarge)?,
            };
            return Ok(if self.negative { -magnitude } else { magnitude });
        }
        self.scaled_in_full(literal, scale)
    }

    /// The same for any number of digits and any exponent.
    #[inline(never)]
    fn scaled_in_full(&self, literal: &[u8], scale: usize) -> Result<i128, Unfit> {
        let mantissa = literal.split(|byte| matches!(byte, b'e' | b'E')).next().unwrap_or_default();
        let digits = mantissa
            .iter()
            .filter(|byte| byte.is_ascii_digit())
            .map(|byte| i128::from(byte - b'0'));
        let leading = digits.clone().take_while(|&digit| digit == 0).count();
        if leading == self.digits {
            return Ok(0);
        }
        let trailing = digits.clone().rev().take_while(|&digit| digit == 0).count();
        let significant = self.digits - leading - trailing;
        let power =
            i128::from(self.exponent) - self.fraction as i128 + trailing as i128 + scale as i128;
        if power < 0 {
            return Err(Unfit::Fraction);
        }
        if significant as i128 + power > 38 {
            return Err(Unfit::TooLarge);
        }
        let magnitude =
            digits.skip(leading).take(significant).fold(0, |value, digit| value * 10 + digit)
                * power_of_ten(power as u32);
        Ok(if self.negative { -magnitude } else { magnitude })
    }
}
