//! The parsed query of a view: its clauses, and how they are printed.

use sqlparser::{
    ast::{Expr, Ident},
    tokenizer::Location,
};

use crate::{duration, stream::quoted};

/// The query of a view.
#[derive(Clone, Debug)]
pub(crate) struct Select {
    pub(crate) items: Vec<Item>,
    pub(crate) from: FromClause,
    pub(crate) filter: Option<Expr>,
    pub(crate) group: Vec<Expr>,
    /// The positions at which clauses begin.
    pub(crate) where_at: Location,
    pub(crate) group_at: Location,
}

/// One column of the select list.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) expr: Expr,
    pub(crate) name: String,
    pub(crate) at: Location,
}

#[derive(Clone, Debug)]
pub(crate) struct FromClause {
    pub(crate) stream: Ident,
    pub(crate) alias: Option<Ident>,
    pub(crate) window: Option<WindowArguments>,
}

/// The arguments of TUMBLE.
#[derive(Clone, Debug)]
pub(crate) struct WindowArguments {
    pub(crate) time: Ident,
    pub(crate) size_micros: i64,
    /// The offset, at least 0 and less than the size.
    pub(crate) offset_micros: i64,
}

/// The name that PostgreSQL would give the column; `None` where that would be "?column?".
pub(super) fn natural_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) => Some(ident.value.clone()),
        Expr::CompoundIdentifier(parts) => parts.last().map(|ident| ident.value.clone()),
        Expr::Function(function) => Some(function.name.to_string()),
        Expr::Nested(inner) => natural_name(inner),
        _ => None,
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match natural_name(&self.expr) {
            Some(name) if name == self.name => write!(f, "{}", self.expr),
            _ => write!(f, "{} AS {}", self.expr, quoted(&self.name)),
        }
    }
}

impl std::fmt::Display for FromClause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.window {
            None => write!(f, "{}", self.stream)?,
            Some(window) => {
                let size = duration::print(window.size_micros);
                write!(f, "TUMBLE({}, {}, INTERVAL '{size}'", self.stream, window.time)?;
                if window.offset_micros != 0 {
                    write!(f, ", INTERVAL '{}'", duration::print(window.offset_micros))?;
                }
                f.write_str(")")?;
            }
        }
        match &self.alias {
            Some(alias) => write!(f, " AS {alias}"),
            None => Ok(()),
        }
    }
}
