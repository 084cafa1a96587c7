//! Checks which columns an expression may name in its clause.

use std::ops::ControlFlow;

use headwater_engine::plan::WINDOW_COLUMNS;
use headwater_types::StreamDefinition;
use sqlparser::{
    ast::{Expr as SqlExpr, Ident, visit_expressions},
    tokenizer::Location,
};

use crate::{
    lexer::{Result, refuse},
    scalar::Clause,
    suggest,
    view::FromClause,
};

/// The names that the expressions of a view may use.
pub(super) struct Names<'a> {
    pub(super) qualifier: String,
    columns: Vec<&'a str>,
    pub(super) windowed: bool,
}

impl<'a> Names<'a> {
    pub(super) fn new(from: &FromClause, stream: &'a StreamDefinition) -> Result<Self> {
        if from.stream.value != stream.name.as_str() {
            let at = from.stream.span.start;
            return refuse(
                at,
                format!("the view reads {}, not {}", from.stream, stream.name),
                "plan it with its own stream",
            );
        }
        Ok(Self {
            qualifier: from.alias.as_ref().unwrap_or(&from.stream).value.clone(),
            columns: stream.columns.iter().map(|column| &*column.name).collect(),
            windowed: from.window.is_some(),
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.columns.contains(&name)
    }

    /// Checks that all columns of an expression exist and are allowed in its clause.
    pub(super) fn check(
        &self,
        expr: &SqlExpr,
        clause: Clause,
        aliases: &[&str],
        at: Location,
    ) -> Result<()> {
        let mut refused = None;
        let _ = visit_expressions(expr, |part| {
            let checked = match part {
                SqlExpr::Identifier(ident) => self.check_column(ident, clause, aliases),
                SqlExpr::CompoundIdentifier(parts) => match parts.as_slice() {
                    [qualifier, column] if qualifier.value == self.qualifier => {
                        self.check_column(column, clause, &[])
                    }
                    [qualifier, _] => refuse(
                        qualifier.span.start,
                        format!("there is no {qualifier} to take a column from"),
                        format!("write {}.column, or the column alone", self.qualifier),
                    ),
                    _ => refuse(at, "a column has too many parts", "write the column alone"),
                },
                _ => Ok(()),
            };
            match checked {
                Ok(()) => ControlFlow::Continue(()),
                Err(diagnostic) => {
                    refused = Some(diagnostic);
                    ControlFlow::Break(())
                }
            }
        });
        refused.map_or(Ok(()), Err)
    }

    pub(super) fn check_column(
        &self,
        ident: &Ident,
        clause: Clause,
        aliases: &[&str],
    ) -> Result<()> {
        let name = &*ident.value;
        let at = ident.span.start;
        if self.has(name) || aliases.contains(&name) {
            return Ok(());
        }
        if WINDOW_COLUMNS.contains(&name) {
            if !self.windowed {
                let instead =
                    format!("write FROM TUMBLE({}, time, INTERVAL '1 minute')", self.qualifier);
                return refuse(at, format!("{name} needs a window"), instead);
            }
            if clause == Clause::Where {
                let instead = "compare the event time, or filter when you query the view";
                return refuse(at, format!("WHERE cannot use {name}"), instead);
            }
            return Ok(());
        }
        let window = WINDOW_COLUMNS.iter().copied().filter(|_| self.windowed);
        let known = self.columns.iter().copied().chain(window);
        refuse(at, format!("there is no column {name}"), suggest::or_list(name, known))
    }
}
