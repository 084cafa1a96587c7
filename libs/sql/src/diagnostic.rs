//! Refusals of definitions: position, reason, and what to write instead.

use std::fmt;

use headwater_types::Remedy;
use sqlparser::tokenizer::Location;

/// One refusal of a definition.
///
/// Lines and columns count characters from 1, in the text that was given to [`crate::parse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub line: u32,
    pub column: u32,
    /// The fault, without a full stop.
    pub reason: String,
    /// The advice, in the imperative: "write VARCHAR".
    pub instead: Option<String>,
}

impl Diagnostic {
    pub(crate) fn at(at: Location, reason: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { instead: Some(instead.into()), ..Self::bare(at, reason) }
    }

    /// A refusal whose reason needs no advice.
    pub(crate) fn bare(at: Location, reason: impl Into<String>) -> Self {
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).max(1);
        Self {
            line: number(at.line),
            column: number(at.column),
            reason: reason.into(),
            instead: None,
        }
    }

    /// Only the author of a definition can correct it.
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

/// All refusals of a text: at least one, at most one [`Diagnostic`] per statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// Only the author of a definition can correct it.
    pub fn remedy(&self) -> Remedy {
        Remedy::Correct
    }
}

/// Prints one line per diagnostic.
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
