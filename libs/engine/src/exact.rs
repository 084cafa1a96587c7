//! Exact sums of doubles.
//!
//! Floating-point addition is not associative, so a rounded running sum would depend on how its
//! input was batched and merged. [`ExactSum`] keeps the sum exactly, as a few doubles whose sum it
//! is (Shewchuk, "Adaptive Precision Floating-Point Arithmetic", 1997; usually one to three), and
//! rounds once, when it is read.
//!
//! In memory these parts are in any form. Stored, they are *canonical*: the first part is the exact
//! sum rounded to the nearest double (ties to even), the second is the remainder, rounded, and so
//! on until nothing remains. So the bytes are a function of the exact sum alone.
//!
//! Addends of 2^900 and more are kept separately, scaled by 2^-600, so that no number of addends
//! can overflow. Infinities and NaN are counted.

use crate::varint;

/// Addends from here on are scaled.
const BIG: f64 = power_of_two(900);
const GREATEST_PART: f64 = power_of_two(965);
const DOWN: f64 = power_of_two(-600);
const UP: f64 = power_of_two(600);
/// Scaled sums below this limit can be scaled back without overflow.
const SCALED_BACK: f64 = power_of_two(422);
/// The number of extra parts from which they are made canonical; canonical parts are at most 40.
const MANY: usize = 64;
const INLINE: usize = 3;

const fn power_of_two(exponent: i64) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// The exact sum of any number of doubles.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExactSum {
    parts: [f64; INLINE],
    rare: Option<Box<Rare>>,
}

#[derive(Clone, Debug, Default)]
struct Rare {
    /// More parts of the sum.
    more: Vec<f64>,
    /// Parts of the sum of big addends, scaled.
    big: Vec<f64>,
    nan: u64,
    plus_infinity: u64,
    minus_infinity: u64,
}

/// A sum rounded to the nearest double, times 2^600 if it is scaled.
struct Rounded {
    value: f64,
    scaled: bool,
}

impl ExactSum {
    #[inline]
    pub(crate) fn add(&mut self, addend: f64) {
        // This is false for NaN too.
        if addend.abs() < BIG {
            self.add_part(addend);
        } else {
            self.add_rare(addend);
        }
    }

    #[inline]
    fn add_part(&mut self, addend: f64) {
        let (first, rest) = two_sum(self.parts[0], addend);
        let (second, rest) = two_sum(self.parts[1], rest);
        self.parts[0] = first;
        self.parts[1] = second;
        if rest != 0.0 {
            let (third, rest) = two_sum(self.parts[2], rest);
            self.parts[2] = third;
            if rest != 0.0 {
                self.spill(rest);
            }
        }
    }

    #[cold]
    fn spill(&mut self, rest: f64) {
        let more = &mut self.rare.get_or_insert_default().more;
        push_part(more, rest);
        if self.rare.as_ref().is_some_and(|rare| rare.more.len() < 3 || rare.more.len() > MANY) {
            let parts = self.canonical_parts();
            self.parts = [0.0; INLINE];
            for (slot, part) in self.parts.iter_mut().zip(&parts) {
                *slot = *part;
            }
            let more = &mut self.rare.get_or_insert_default().more;
            more.clear();
            more.extend(parts.iter().skip(INLINE));
        }
    }

    #[cold]
    fn add_rare(&mut self, addend: f64) {
        let rare = self.rare.get_or_insert_default();
        if addend.is_nan() {
            rare.nan += 1;
        } else if addend == f64::INFINITY {
            rare.plus_infinity += 1;
        } else if addend == f64::NEG_INFINITY {
            rare.minus_infinity += 1;
        } else {
            // Exact: the last bit of the addend is at least 2^848.
            rare.add_big(addend * DOWN);
        }
    }

    /// The sum as a double, correctly rounded; what lies beyond the greatest double is an infinity.
    pub(crate) fn value(&self) -> f64 {
        let rounded = self.rounded();
        if rounded.scaled { rounded.value * UP } else { rounded.value }
    }

    /// The rounded sum divided by `count`, also where the sum alone would be an infinity.
    pub(crate) fn mean(&self, count: u64) -> f64 {
        let rounded = self.rounded();
        let mean = rounded.value / count as f64;
        if rounded.scaled { mean * UP } else { mean }
    }

    fn rounded(&self) -> Rounded {
        let unscaled = |value| Rounded { value, scaled: false };
        let small = self.canonical_parts();
        let Some(rare) = &self.rare else {
            return unscaled(small.first().copied().unwrap_or_default());
        };
        if rare.nan > 0 || (rare.plus_infinity > 0 && rare.minus_infinity > 0) {
            return unscaled(f64::NAN);
        } else if rare.plus_infinity > 0 {
            return unscaled(f64::INFINITY);
        } else if rare.minus_infinity > 0 {
            return unscaled(f64::NEG_INFINITY);
        }
        let big = canonical(&rare.big);
        let Some(greatest) = big.first() else {
            return unscaled(small.first().copied().unwrap_or_default());
        };
        let mut all = Vec::with_capacity(big.len() + small.len());
        if greatest.abs() < SCALED_BACK {
            // The big parts are below 2^1022 and the small addends together below 2^964, so nothing
            // overflows, and the two may cancel.
            all.extend(big.iter().map(|part| part * UP));
            all.extend(small);
            return unscaled(round(&all));
        }
        // The result is at least 2^1021. A small part below one can only decide a tie by its sign,
        // and would be lost by the scaling.
        all.extend(big);
        for part in small {
            if part.abs() < 1.0 {
                all.push(power_of_two(-700).copysign(part));
                break;
            }
            all.push(part * DOWN);
        }
        Rounded { value: round(&all), scaled: true }
    }

    fn canonical_parts(&self) -> Vec<f64> {
        match &self.rare {
            None => canonical(&self.parts),
            Some(rare) => canonical(&[&self.parts[..], &rare.more[..]].concat()),
        }
    }

    /// Appends the canonical form: a head byte (bits 0 to 5: number of parts, bit 6: big parts
    /// follow, bit 7: counts of what is not finite follow), then the parts, greatest first.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Some(rare) = &self.rare else {
            if let Some((parts, count)) = canonical_few(self.parts) {
                out.push(count as u8);
                parts[..count].iter().for_each(|part| out.extend(part.to_le_bytes()));
                return;
            }
            let parts = canonical(&self.parts);
            out.push(parts.len() as u8);
            parts.iter().for_each(|part| out.extend(part.to_le_bytes()));
            return;
        };
        let parts = self.canonical_parts();
        let big = canonical(&rare.big);
        let odd = [rare.nan, rare.plus_infinity, rare.minus_infinity];
        let has_odd = odd != [0; 3];
        // At most 40 parts of 53 bits fit into the 2098 bits of a double's range.
        out.push(parts.len() as u8 | u8::from(!big.is_empty()) << 6 | u8::from(has_odd) << 7);
        parts.iter().for_each(|part| out.extend(part.to_le_bytes()));
        if !big.is_empty() {
            out.push(big.len() as u8);
            big.iter().for_each(|part| out.extend(part.to_le_bytes()));
        }
        if has_odd {
            odd.into_iter().for_each(|count| varint::put(count, out));
        }
    }

    /// Adds a sum that [`ExactSum::encode`] wrote; `None` for other bytes.
    pub(crate) fn merge(&mut self, bytes: &mut &[u8]) -> Option<()> {
        let head = varint::take_byte(bytes)?;
        for _ in 0..head & 0x3f {
            self.add_part(take_part(bytes)?);
        }
        if head & 0x40 != 0 {
            let rare = self.rare.get_or_insert_default();
            for _ in 0..varint::take_byte(bytes)? {
                rare.add_big(take_part(bytes)?);
            }
        }
        if head & 0x80 != 0 {
            let rare = self.rare.get_or_insert_default();
            for count in [&mut rare.nan, &mut rare.plus_infinity, &mut rare.minus_infinity] {
                *count = count.checked_add(varint::take(bytes)?)?;
            }
        }
        Some(())
    }
}

impl Rare {
    fn add_big(&mut self, scaled: f64) {
        push_part(&mut self.big, scaled);
        if self.big.len() > MANY {
            self.big = canonical(&self.big);
        }
    }
}

/// Reads a stored part. 2^64 addends below 2^900 stay below 2^964, so a greater part is damage.
fn take_part(bytes: &mut &[u8]) -> Option<f64> {
    let value = f64::from_le_bytes(varint::take_array(bytes)?);
    (value.abs() < GREATEST_PART).then_some(value)
}

/// `a + b`, rounded, and the rounding error. Exact unless the sum overflows (Knuth).
#[inline]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// Adds to a list of parts in any form.
fn push_part(parts: &mut Vec<f64>, mut rest: f64) {
    for part in parts.iter_mut() {
        if rest == 0.0 {
            return;
        }
        (*part, rest) = two_sum(*part, rest);
    }
    if rest != 0.0 {
        parts.push(rest);
    }
}

/// Adds to parts that do not overlap and grow in magnitude, and keeps them so (Shewchuk's
/// GROW-EXPANSION, with zeros left out).
fn grow(parts: &mut Vec<f64>, mut rest: f64) {
    let mut kept = 0;
    for index in 0..parts.len() {
        let (sum, lost) = two_sum(rest, parts[index]);
        if lost != 0.0 {
            parts[kept] = lost;
            kept += 1;
        }
        rest = sum;
    }
    parts.truncate(kept);
    if rest != 0.0 {
        parts.push(rest);
    }
}

/// The nearest double to the sum of parts that do not overlap and grow in magnitude.
fn round_grown(parts: &[f64]) -> f64 {
    let Some((&last, rest)) = parts.split_last() else { return 0.0 };
    let mut sum = last;
    let mut rest = rest.iter().rev();
    while let Some(&part) = rest.next() {
        let (high, low) = two_sum(sum, part);
        sum = high;
        if low != 0.0 {
            // The sum is now rounded once. If that broke a tie and the rest has the other sign,
            // there was no tie.
            if let Some(next) = rest.next()
                && (low < 0.0) == (*next < 0.0)
            {
                let double = low * 2.0;
                let other = sum + double;
                if other - sum == double {
                    return other;
                }
            }
            return sum;
        }
    }
    sum
}

fn grown(parts: &[f64]) -> Vec<f64> {
    let mut result = Vec::with_capacity(parts.len() + 1);
    parts.iter().filter(|part| **part != 0.0).for_each(|part| grow(&mut result, *part));
    result
}

/// The nearest double to the sum of the parts.
fn round(parts: &[f64]) -> f64 {
    round_grown(&grown(parts))
}

/// The canonical parts of three at most, greatest first; `None` in the rare cases that need
/// [`canonical`].
#[inline]
fn canonical_few(parts: [f64; INLINE]) -> Option<([f64; INLINE], usize)> {
    let (low, lowest) = two_sum(parts[1], parts[2]);
    let (high, middle) = two_sum(parts[0], low);
    let (middle, lowest) = two_sum(middle, lowest);
    let double = middle * 2.0;
    let nearest = high + middle == high && (lowest == 0.0 || (high + double) - high != double);
    if !nearest {
        return None;
    }
    let count = if lowest != 0.0 {
        3
    } else if middle != 0.0 {
        2
    } else {
        usize::from(high != 0.0)
    };
    Some(([high, middle, lowest], count))
}

/// The canonical parts of a sum, greatest first.
fn canonical(parts: &[f64]) -> Vec<f64> {
    let mut rest = grown(parts);
    let mut result = Vec::with_capacity(rest.len());
    while !rest.is_empty() {
        let part = round_grown(&rest);
        result.push(part);
        grow(&mut rest, -part);
    }
    result
}

#[cfg(test)]
mod tests;
