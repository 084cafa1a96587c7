//! The grammar of JSON (RFC 8259), checked to the last byte.
//!
//! Each function takes the whole record and the position at which an element must start, and
//! returns the position after that element. The caller has checked that the record is UTF-8, so
//! text needs no further check.

use super::fault::{Fault, FaultKind, fail};

/// The maximal nesting of values. The record itself is the first level.
pub(super) const MAX_DEPTH: u32 = 64;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// The end of a string.
#[derive(Clone, Copy)]
pub(super) struct Text {
    /// The position of the closing quote.
    pub(super) end: usize,
    pub(super) escaped: bool,
}

#[inline]
pub(super) fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(at) {
        at += 1;
    }
    at
}

/// The eight bytes from `at`; `None` if fewer are left.
#[inline]
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Finds the end of the string whose first character is at `start`.
#[inline]
pub(super) fn string(bytes: &[u8], start: usize) -> Result<Text, Fault> {
    let at = plain(bytes, start);
    if bytes.get(at) == Some(&b'"') {
        Ok(Text { end: at, escaped: false })
    } else {
        special(bytes, at)
    }
}

/// Finds the end of a string that has a backslash or a fault at `at`.
#[inline(never)]
fn special(bytes: &[u8], mut at: usize) -> Result<Text, Fault> {
    let mut escaped = false;
    loop {
        match bytes.get(at) {
            Some(b'"') => return Ok(Text { end: at, escaped }),
            Some(b'\\') => {
                escaped = true;
                at = escape(bytes, at)?;
            }
            Some(_) | None => return fail(at, FaultKind::Control),
        }
        at = plain(bytes, at);
    }
}

/// The first position from `at` on with a quote, a backslash or a control character, or the end.
#[inline]
fn plain(bytes: &[u8], mut at: usize) -> usize {
    // A borrow can mark a byte wrongly, but only above a correctly marked one. The lowest mark is
    // used.
    let zeros = |x: u64| x.wrapping_sub(ONES) & !x;
    while let Some(word) = word(bytes, at) {
        let quote = zeros(word ^ (ONES * b'"' as u64));
        let backslash = zeros(word ^ (ONES * b'\\' as u64));
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let marks = (quote | backslash | control) & HIGHS;
        if marks != 0 {
            return at + (marks.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(&byte) = bytes.get(at) {
        if byte == b'"' || byte == b'\\' || byte < 0x20 {
            break;
        }
        at += 1;
    }
    at
}

/// Skips the escape whose backslash is at `at`.
fn escape(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    match bytes.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u') => match unit(bytes, at)? {
            0xd800..=0xdbff
                if bytes.get(at + 6) == Some(&b'\\') && bytes.get(at + 7) == Some(&b'u') =>
            {
                match unit(bytes, at + 6)? {
                    0xdc00..=0xdfff => Ok(at + 12),
                    _ => fail(at, FaultKind::Surrogate),
                }
            }
            0xd800..=0xdfff => fail(at, FaultKind::Surrogate),
            _ => Ok(at + 6),
        },
        Some(_) | None => fail(at, FaultKind::Escape),
    }
}

/// The code unit of the `\uXXXX` at `at`.
fn unit(bytes: &[u8], at: usize) -> Result<u32, Fault> {
    let digits = bytes.get(at + 2..at + 6).ok_or(Fault { at, kind: FaultKind::Escape })?;
    digits.iter().try_fold(0, |unit, &byte| match char::from(byte).to_digit(16) {
        Some(digit) => Ok(unit * 16 + digit),
        None => fail(at, FaultKind::Escape),
    })
}

/// Appends the unescaped text of a checked string.
pub(super) fn unescape(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let bytes = rest.as_bytes();
        let (character, length) = match bytes.get(at + 1) {
            Some(b'b') => ('\u{8}', 2),
            Some(b'f') => ('\u{c}', 2),
            Some(b'n') => ('\n', 2),
            Some(b'r') => ('\r', 2),
            Some(b't') => ('\t', 2),
            Some(b'u') => match (unit(bytes, at), unit(bytes, at + 6)) {
                (Ok(high @ 0xd800..=0xdbff), Ok(low)) => {
                    let scalar = 0x1_0000 + ((high - 0xd800) << 10) + (low & 0x3ff);
                    (char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER), 12)
                }
                (Ok(unit), _) => (char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER), 6),
                (Err(_), _) => (char::REPLACEMENT_CHARACTER, 2),
            },
            Some(&byte) => (char::from(byte), 2),
            None => ('\\', 1),
        };
        out.push(character);
        rest = &rest[at + length..];
    }
    out.push_str(rest);
}

/// Skips one of `true`, `false` and `null`.
#[inline]
pub(super) fn word_literal(bytes: &[u8], at: usize, literal: &[u8]) -> Result<usize, Fault> {
    if bytes[at..].starts_with(literal) {
        Ok(at + literal.len())
    } else {
        fail(at, FaultKind::Value)
    }
}

/// Skips a number.
#[inline]
fn number(bytes: &[u8], mut at: usize) -> Result<usize, Fault> {
    let digits = |mut at: usize| {
        let start = at;
        while let Some(b'0'..=b'9') = bytes.get(at) {
            at += 1;
        }
        if at == start { fail(at, FaultKind::Digit) } else { Ok(at) }
    };
    if bytes.get(at) == Some(&b'-') {
        at += 1;
    }
    let start = at;
    at = digits(at)?;
    if at - start > 1 && bytes[start] == b'0' {
        return fail(start, FaultKind::LeadingZero);
    }
    if bytes.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        at += 1;
        if let Some(b'+' | b'-') = bytes.get(at) {
            at += 1;
        }
        at = digits(at)?;
    }
    Ok(at)
}

/// Skips a value that is neither object nor array.
#[inline]
fn scalar(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    match bytes.get(at) {
        Some(b'"') => Ok(string(bytes, at + 1)?.end + 1),
        Some(b'-' | b'0'..=b'9') => number(bytes, at),
        Some(b't') => word_literal(bytes, at, b"true"),
        Some(b'f') => word_literal(bytes, at, b"false"),
        Some(b'n') => word_literal(bytes, at, b"null"),
        Some(_) | None => fail(at, FaultKind::Value),
    }
}

/// Skips the value of one of the record's keys.
#[inline]
pub(super) fn skip_value(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    match bytes.get(at) {
        Some(b'{' | b'[') => nested(bytes, at),
        Some(_) | None => scalar(bytes, at),
    }
}

/// Skips an object or array without recursion: one bit per level says whether an object or an array
/// is open.
#[inline(never)]
fn nested(bytes: &[u8], mut at: usize) -> Result<usize, Fault> {
    let mut objects: u64 = 0;
    let mut depth = 0;
    loop {
        // A value starts at `at`.
        match bytes.get(at) {
            Some(&open @ (b'{' | b'[')) => {
                depth += 1;
                if depth >= MAX_DEPTH {
                    return fail(at, FaultKind::Depth);
                }
                let object = open == b'{';
                objects = objects << 1 | u64::from(object);
                at = skip_space(bytes, at + 1);
                match bytes.get(at) {
                    Some(b'}') if object => {}
                    Some(b']') if !object => {}
                    Some(_) | None => {
                        if object {
                            at = key(bytes, at)?;
                        }
                        continue;
                    }
                }
            }
            Some(_) | None => at = skip_space(bytes, scalar(bytes, at)?),
        }
        // The value has ended; close the objects and arrays that end here.
        loop {
            let object = objects & 1 == 1;
            match bytes.get(at) {
                Some(b',') => {
                    at = skip_space(bytes, at + 1);
                    if object {
                        at = key(bytes, at)?;
                    }
                    break;
                }
                Some(&close) if close == if object { b'}' } else { b']' } => {
                    depth -= 1;
                    objects >>= 1;
                    if depth == 0 {
                        return Ok(at + 1);
                    }
                    at = skip_space(bytes, at + 1);
                }
                Some(_) | None if object => return fail(at, FaultKind::CommaOrBrace),
                Some(_) | None => return fail(at, FaultKind::CommaOrBracket),
            }
        }
    }
}

/// Skips a key, its colon and the white space around the colon.
fn key(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    if bytes.get(at) != Some(&b'"') {
        return fail(at, FaultKind::Key);
    }
    let end = string(bytes, at + 1)?.end;
    colon(bytes, end + 1)
}

/// Skips the colon after a key and the white space around it.
pub(super) fn colon(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    let at = skip_space(bytes, at);
    if bytes.get(at) != Some(&b':') {
        return fail(at, FaultKind::Colon);
    }
    Ok(skip_space(bytes, at + 1))
}
