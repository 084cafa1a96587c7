//! What a definition is refused with: where, why, and what to write instead.

use std::fmt;

use headwater_types::Remedy;
use sqlparser::tokenizer::Location;

/// One reason why a definition is refused.
///
/// Lines and columns count characters from 1, in the text that was given to [`crate::parse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub line: u32,
    pub column: u32,
    /// What is wrong, without a full stop.
    pub reason: String,
    /// What to write instead, in the imperative: "write VARCHAR".
    pub instead: Option<String>,
}

impl Diagnostic {
    pub(crate) fn at(at: Location, reason: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { instead: Some(instead.into()), ..Self::bare(at, reason) }
    }

    /// Where the reason says all.
    pub(crate) fn bare(at: Location, reason: impl Into<String>) -> Self {
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).max(1);
        Self {
            line: number(at.line),
            column: number(at.column),
            reason: reason.into(),
            instead: None,
        }
    }

    /// A definition is at fault, so only its author can help.
    pub fn remedy(&self) -> Remedy {
        Remedy::Correct
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.reason)?;
        match &self.instead {
            Some(instead) => write!(f, "; {instead}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostic {}

/// All that is wrong with a text: at most one [`Diagnostic`] per statement, never none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// A definition is at fault, so only its author can help.
    pub fn remedy(&self) -> Remedy {
        Remedy::Correct
    }
}

/// A line per diagnostic.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            write!(f, "{}{diagnostic}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}
