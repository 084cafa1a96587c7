//! Converts RFC 3339 text to microseconds.

/// 0000-01-01T00:00:00Z. Years have four digits, so that every stored time can be printed.
const MIN_MICROS: i64 = -62_167_219_200_000_000;
/// 9999-12-31T23:59:59.999999Z.
const MAX_MICROS: i64 = 253_402_300_799_999_999;

/// [`MIN_MICROS`] as text for messages.
pub(super) const EARLIEST: &str = "0000-01-01T00:00:00Z";
/// [`MAX_MICROS`] as text for messages.
pub(super) const LATEST: &str = "9999-12-31T23:59:59.999999Z";

/// `None` outside the years 0000 to 9999.
#[inline]
pub(super) fn in_range(micros: i128) -> Option<i64> {
    (i128::from(MIN_MICROS)..=i128::from(MAX_MICROS)).contains(&micros).then_some(micros as i64)
}

/// Microseconds since 1970 of a date-time with an offset: RFC 3339, section 5.6.
///
/// Digits after the sixth of a fraction are dropped. A leap second is the same instant as the
/// second after it, as in POSIX and PostgreSQL. The result may lie outside of the years 0000 to
/// 9999.
#[inline]
pub(super) fn micros(text: &[u8]) -> Option<i64> {
    let (head, rest) = text.split_first_chunk::<19>()?;
    let pair = |at: usize| -> Option<i64> {
        let (tens, ones) = (head[at].wrapping_sub(b'0'), head[at + 1].wrapping_sub(b'0'));
        (tens <= 9 && ones <= 9).then(|| i64::from(tens) * 10 + i64::from(ones))
    };
    let separated = head[4] == b'-'
        && head[7] == b'-'
        && matches!(head[10], b'T' | b't' | b' ')
        && head[13] == b':'
        && head[16] == b':';
    let (year, month, day) = (pair(0)? * 100 + pair(2)?, pair(5)?, pair(8)?);
    let (hour, minute, second) = (pair(11)?, pair(14)?, pair(17)?);
    if !separated
        || hour > 23
        || minute > 59
        || second > 60
        || day < 1
        || day > days_in_month(year, month)
    {
        return None;
    }
    let (fraction, rest) = fraction(rest)?;
    let offset = offset_minutes(rest)?;
    let seconds =
        days_from_civil(year, month, day) * 86_400 + hour * 3_600 + (minute - offset) * 60 + second;
    // Only the last minute of a UTC day can have a leap second.
    if second == 60 && seconds.rem_euclid(86_400) != 0 {
        return None;
    }
    Some(seconds * 1_000_000 + if second == 60 { 0 } else { fraction })
}

/// The microseconds of an optional fraction such as `.123`.
#[inline]
fn fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let Some((b'.', digits)) = text.split_first() else { return Some((0, text)) };
    let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if length == 0 {
        return None;
    }
    let (digits, rest) = digits.split_at(length);
    let micros = (0..6).fold(0, |value, at| {
        value * 10 + digits.get(at).map_or(0, |digit| i64::from(digit - b'0'))
    });
    Some((micros, rest))
}

#[inline]
fn offset_minutes(text: &[u8]) -> Option<i64> {
    match *text {
        [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2]
            if [h1, h2, m1, m2].iter().all(u8::is_ascii_digit) =>
        {
            let hours = i64::from(h1 - b'0') * 10 + i64::from(h2 - b'0');
            let minutes = i64::from(m1 - b'0') * 10 + i64::from(m2 - b'0');
            let offset = hours * 60 + minutes;
            (hours <= 23 && minutes <= 59).then_some(if sign == b'-' { -offset } else { offset })
        }
        _ => None,
    }
}

/// 0 for a month that does not exist.
const fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        1..=12 => 31,
        _ => 0,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant).
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}
