//! Durations in definitions: `'10 minutes'`, `'1 day 12 hours'`, `'0.5 seconds'`.

const SECOND: i64 = 1_000_000;
/// Every unit with its length in microseconds and its other spellings, longest first.
const UNITS: [(&str, i64, &[&str]); 7] = [
    ("week", 7 * 86_400 * SECOND, &["weeks", "w"]),
    ("day", 86_400 * SECOND, &["days", "d"]),
    ("hour", 3_600 * SECOND, &["hours", "h", "hr", "hrs"]),
    ("minute", 60 * SECOND, &["minutes", "min", "mins", "m"]),
    ("second", SECOND, &["seconds", "sec", "secs", "s"]),
    ("millisecond", 1_000, &["milliseconds", "msec", "ms"]),
    ("microsecond", 1, &["microseconds", "usec", "us"]),
];

/// The fault of a duration, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotADuration {
    pub(crate) reason: String,
    pub(crate) instead: &'static str,
}

/// Parses one or more numbers with units into microseconds. The result is negative only if the text
/// has a minus sign.
pub(crate) fn parse(text: &str) -> Result<i64, NotADuration> {
    let example = "write a number and a unit, such as '10 minutes' or '1 day 12 hours'";
    let not = |reason: String| NotADuration { reason, instead: example };
    let too_long = || not(format!("'{text}' is too long"));
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(not("the length of time is empty".into()));
    }
    let mut sum = 0i64;
    while !rest.is_empty() {
        let end =
            rest.find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+')).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let tail = tail.trim_start();
        let end = tail.find(|c: char| !c.is_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        rest = tail.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        let unit = unit.to_lowercase();
        if number.is_empty() {
            return Err(not(format!("'{text}' is not a length of time")));
        }
        if unit.is_empty() {
            return Err(not(format!("'{text}' has a number without a unit")));
        }
        if ["month", "months", "mon", "mons", "year", "years", "y", "quarter", "quarters"]
            .contains(&&*unit)
        {
            let reason = format!("a {} has no fixed length", unit.trim_end_matches('s'));
            return Err(NotADuration { reason, instead: "write days, hours, minutes or seconds" });
        }
        let known =
            UNITS.iter().find(|(name, _, others)| *name == unit || others.contains(&&*unit));
        let Some((_, micros, _)) = known else {
            return Err(not(format!("'{unit}' in '{text}' is not a unit of time")));
        };
        let part = scaled(number, *micros).ok_or_else(|| {
            not(format!(
                "'{number}' in '{text}' is not a number of whole microseconds within reach"
            ))
        })?;
        sum = sum.checked_add(part).ok_or_else(too_long)?;
    }
    Ok(sum)
}

/// A decimal number times a unit; `None` if that is not a whole number of microseconds.
fn scaled(number: &str, micros: i64) -> Option<i64> {
    let (negative, digits) = match number.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 12 {
        return None;
    }
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let value: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let scale = 10i128.pow(fraction.len() as u32);
    let product = value.checked_mul(i128::from(micros))?;
    if product % scale != 0 {
        return None;
    }
    let micros = i64::try_from(product / scale).ok()?;
    Some(if negative { -micros } else { micros })
}

/// The normal form of a duration: a number of the longest unit, up to days, that divides it.
pub(crate) fn print(micros: i64) -> String {
    let unit = UNITS[1..].iter().find(|(_, length, _)| micros != 0 && micros % length == 0);
    let (name, length) = unit.map_or(("second", SECOND), |(name, length, _)| (*name, *length));
    let count = micros / length;
    format!("{count} {name}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_length_of_time_is_read_in_any_unit_and_printed_in_one() {
        let cases = [
            ("10 minutes", 600 * SECOND, "10 minutes"),
            ("600s", 600 * SECOND, "10 minutes"),
            ("1 day 12 hours", 36 * 3600 * SECOND, "36 hours"),
            ("2 WEEKS", 14 * 86_400 * SECOND, "14 days"),
            ("1 hour", 3600 * SECOND, "1 hour"),
            ("0.5 seconds", 500_000, "500 milliseconds"),
            ("0 days", 0, "0 seconds"),
            ("-5 seconds", -5 * SECOND, "-5 seconds"),
            ("1 us", 1, "1 microsecond"),
        ];
        for (text, micros, printed) in cases {
            assert_eq!(parse(text), Ok(micros), "{text}");
            assert_eq!(print(micros), printed, "{text}");
        }
    }

    #[test]
    fn what_is_no_length_of_time_is_refused_with_what_to_write() {
        for (text, reason) in [
            ("", "empty"),
            ("10", "without a unit"),
            ("minutes", "not a length"),
            ("1 fortnight", "not a unit"),
            ("1 month", "no fixed length"),
            ("99999999999999 days", "within reach"),
            ("200000000 days 200000000 days", "within reach"),
            ("0.1 us", "whole microseconds"),
            ("1..5 s", "not a number"),
            ("12:30:00", "without a unit"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.reason.contains(reason), "{text}: {error:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back_the_same(micros in any::<i64>().prop_filter("has a positive twin", |m| *m != i64::MIN)) {
            prop_assert_eq!(parse(&print(micros)), Ok(micros));
        }
    }
}
