//! The faults that a record can have. `describe.rs` puts them into words.

/// A fault and its position. It is small, so that results stay in registers; the text is made only
/// when the record is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) kind: FaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultKind {
    // Faults in the grammar of JSON.
    Value,
    Object,
    Key,
    Colon,
    CommaOrBrace,
    CommaOrBracket,
    Control,
    Escape,
    Surrogate,
    LeadingZero,
    Digit,
    Depth,
    Trailing,
    // Faults of a column; `at` is where its value starts.
    Type,
    Range,
    Fraction,
    Digits,
    Infinite,
    Time,
    TimeRange,
    Null,
    Missing,
    Twice,
}

#[inline]
pub(super) fn fail<T>(at: usize, kind: FaultKind) -> Result<T, Fault> {
    Err(Fault { at, kind })
}

impl FaultKind {
    /// Whether the fault concerns the grammar of JSON, not a column.
    pub(super) fn is_grammar(self) -> bool {
        match self {
            Self::Value
            | Self::Object
            | Self::Key
            | Self::Colon
            | Self::CommaOrBrace
            | Self::CommaOrBracket
            | Self::Control
            | Self::Escape
            | Self::Surrogate
            | Self::LeadingZero
            | Self::Digit
            | Self::Depth
            | Self::Trailing => true,
            Self::Type
            | Self::Range
            | Self::Fraction
            | Self::Digits
            | Self::Infinite
            | Self::Time
            | Self::TimeRange
            | Self::Null
            | Self::Missing
            | Self::Twice => false,
        }
    }
}

/// Why a record was refused. The text is short, however long the record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The column that is wrong; `None` when the record as a whole is.
    pub column: Option<String>,
    /// Names the expected and the found value.
    pub reason: String,
}

impl std::error::Error for DecodeError {}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.column {
            Some(column) => write!(f, "column {column}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}
