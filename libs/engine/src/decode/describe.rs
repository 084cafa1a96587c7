//! Puts a fault into words: what was expected and what was found.

use headwater_types::DataType;

use super::{
    fault::{DecodeError, Fault, FaultKind},
    json, timestamp,
};

impl Fault {
    /// `column` is the current one, for faults that concern a column.
    #[cold]
    pub(super) fn describe(self, text: &str, column: Option<(&str, DataType)>) -> DecodeError {
        match column {
            Some((name, data_type)) if !self.kind.is_grammar() => DecodeError {
                column: Some(name.to_owned()),
                reason: self.of_column(text, data_type),
            },
            Some(_) | None => DecodeError { column: None, reason: self.of_grammar(text) },
        }
    }

    fn of_grammar(self, text: &str) -> String {
        let at = self.at;
        let wanted = match self.kind {
            FaultKind::Object => return object_expected(text, at),
            FaultKind::Depth => {
                return format!(
                    "values are nested more than {} deep at byte {at}: flatten them",
                    json::MAX_DEPTH
                );
            }
            FaultKind::Trailing => "nothing after the object (one record holds one JSON object)",
            FaultKind::Value => "a value",
            FaultKind::Key => "a key in double quotes",
            FaultKind::Colon => "':' after a key",
            FaultKind::CommaOrBrace => "',' or '}' after a value",
            FaultKind::CommaOrBracket => "',' or ']' after a value",
            FaultKind::Control if at >= text.len() => "the quote that ends the text",
            FaultKind::Control => {
                "no control character inside text (write it as an escape such as \\n)"
            }
            FaultKind::Escape => "one of the escapes \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX",
            FaultKind::Surrogate => "a surrogate pair (\\uD800-\\uDBFF, then \\uDC00-\\uDFFF)",
            FaultKind::LeadingZero => "a number without leading zeros",
            FaultKind::Digit => "a digit",
            FaultKind::Type
            | FaultKind::Range
            | FaultKind::Fraction
            | FaultKind::Digits
            | FaultKind::Infinite
            | FaultKind::Time
            | FaultKind::TimeRange
            | FaultKind::Null
            | FaultKind::Missing
            | FaultKind::Twice => "a value",
        };
        format!("not valid JSON at byte {at}: expected {wanted}, found {}", character(text, at))
    }

    fn of_column(self, text: &str, data_type: DataType) -> String {
        let found = || found(text, self.at);
        match self.kind {
            FaultKind::Null => {
                "expected a value, found null: the column is NOT NULL (send a value, or declare the column without NOT NULL)"
                    .to_owned()
            }
            FaultKind::Missing => {
                "missing: the column is NOT NULL (send a value, or declare the column without NOT NULL)".to_owned()
            }
            FaultKind::Twice => "appears twice in the record: send each key once".to_owned(),
            FaultKind::Range => format!("expected {}, found {}: out of range", range(data_type), found()),
            FaultKind::Digits => format!("expected {}, found {}: too large", range(data_type), found()),
            FaultKind::Fraction => match data_type {
                DataType::Decimal { scale, .. } => {
                    format!("expected at most {scale} digits behind the point ({data_type}), found {}", found())
                }
                DataType::Timestamp => {
                    format!("expected whole milliseconds since 1970 ({data_type}), found {}", found())
                }
                DataType::Boolean
                | DataType::Integer
                | DataType::BigInt
                | DataType::Double
                | DataType::Varchar => {
                    format!("expected a whole number ({data_type}), found {}", found())
                }
            },
            FaultKind::Infinite => {
                format!("expected a number within +-1.7976931348623157e308 ({data_type}), found {}", found())
            }
            FaultKind::Time => format!(
                "expected RFC 3339 text with an offset such as 2013-01-01T10:15:00Z, or epoch milliseconds \
                 ({data_type}), found {}",
                found()
            ),
            FaultKind::TimeRange => format!(
                "expected a time from {} to {} ({data_type}; a number is milliseconds since 1970), found {}",
                timestamp::EARLIEST,
                timestamp::LATEST,
                found()
            ),
            FaultKind::Type
            | FaultKind::Value
            | FaultKind::Object
            | FaultKind::Key
            | FaultKind::Colon
            | FaultKind::CommaOrBrace
            | FaultKind::CommaOrBracket
            | FaultKind::Control
            | FaultKind::Escape
            | FaultKind::Surrogate
            | FaultKind::LeadingZero
            | FaultKind::Digit
            | FaultKind::Depth
            | FaultKind::Trailing => format!("expected {} ({data_type}), found {}", expected_kind(data_type), found()),
        }
    }
}

/// The error for a value that is not UTF-8.
#[cold]
pub(super) fn not_utf8(value: &[u8], error: std::str::Utf8Error) -> DecodeError {
    let at = error.valid_up_to();
    let found =
        value.get(at).map_or_else(|| "the end".to_owned(), |byte| format!("byte 0x{byte:02x}"));
    DecodeError {
        column: None,
        reason: format!("not valid UTF-8 at byte {at}: found {found}; events are JSON in UTF-8"),
    }
}

fn expected_kind(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Boolean => "true or false",
        DataType::Integer | DataType::BigInt | DataType::Double | DataType::Decimal { .. } => {
            "a number"
        }
        DataType::Varchar => "text or a number",
        DataType::Timestamp => "RFC 3339 text or epoch milliseconds",
    }
}

fn range(data_type: DataType) -> String {
    match data_type {
        DataType::Integer => format!("a number from {} to {} (INTEGER)", i32::MIN, i32::MAX),
        DataType::BigInt => format!("a number from {} to {} (BIGINT)", i64::MIN, i64::MAX),
        DataType::Decimal { precision, scale } => {
            format!(
                "at most {} digits before the point ({data_type})",
                precision.saturating_sub(scale)
            )
        }
        DataType::Boolean | DataType::Double | DataType::Varchar | DataType::Timestamp => {
            format!("{} ({data_type})", expected_kind(data_type))
        }
    }
}

fn object_expected(text: &str, at: usize) -> String {
    if text.len() == at {
        return "expected a JSON object, found nothing".to_owned();
    }
    if text[at..].starts_with('\u{feff}') {
        return format!("expected a JSON object, found a byte order mark at byte {at}: remove it");
    }
    let found = match json::skip_value(text.as_bytes(), at) {
        Ok(_) => found(text, at),
        Err(_) => character(text, at),
    };
    format!("expected a JSON object, found {found}")
}

/// A short text for the value at `at`, however long the value is.
fn found(text: &str, at: usize) -> String {
    let bytes = text.as_bytes();
    match bytes.get(at) {
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "an array".to_owned(),
        Some(b'"') => match json::string(bytes, at + 1) {
            Ok(string) => format!("text \"{}\"", excerpt(&text[at + 1..string.end])),
            Err(_) => "text".to_owned(),
        },
        Some(_) => match json::skip_value(bytes, at) {
            Ok(end) => excerpt(&text[at..end]),
            Err(_) => character(text, at),
        },
        None => "the end".to_owned(),
    }
}

fn character(text: &str, at: usize) -> String {
    match text.get(at..).and_then(|rest| rest.chars().next()) {
        Some(c) => format!("'{}'", c.escape_debug()),
        None => "the end".to_owned(),
    }
}

/// At most 48 characters, and the length of a longer text.
fn excerpt(text: &str) -> String {
    match text.char_indices().nth(48) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
    }
}
