//! `CREATE MATERIALIZED VIEW`.

mod query;
mod select;

use std::fmt::Write;

use headwater_types::Name;
use sqlparser::tokenizer::{Location, Token};

use crate::{
    Diagnostic, duration,
    lexer::{Cursor, Result, is_word, refuse},
    options::{self, Options},
    stream::quoted,
    suggest,
};
pub(crate) use select::{FromClause, Item, Select};

const OPTIONS: &[&str] = &["allowed_lateness", "retention", "output"];

/// A parsed view, checked as far as that is possible without its stream.
#[derive(Clone, Debug)]
pub struct ViewDefinition {
    pub name: Name,
    /// The stream that it reads.
    pub stream: Name,
    /// The normal form of the statement: equal text means equal meaning.
    pub sql: String,
    /// The limit of lateness. `None`, which only a view without windows has, means that no record
    /// is late.
    pub allowed_lateness_micros: Option<i64>,
    /// The time for which rows are kept. `None` means for ever.
    pub retention_micros: Option<i64>,
    pub(crate) select: Select,
}

impl ViewDefinition {
    /// The refusal for a view whose stream does not exist.
    pub fn unknown_stream<'a>(&self, streams: impl IntoIterator<Item = &'a Name>) -> Diagnostic {
        let names: Vec<&str> = streams.into_iter().map(Name::as_str).collect();
        let instead = match names.is_empty() {
            true => "write CREATE STREAM first".to_owned(),
            false => suggest::or_list(self.stream.as_str(), names),
        };
        Diagnostic::at(
            self.select.from.stream.span.start,
            format!("there is no stream {}", self.stream),
            instead,
        )
    }
}

/// Reads the statement after `CREATE MATERIALIZED VIEW`.
pub(crate) fn read(cursor: &mut Cursor) -> Result<ViewDefinition> {
    let form = "write CREATE MATERIALIZED VIEW name WITH (retention = '30 days') AS SELECT …";
    let name_at = cursor.location();
    let name = options::named(&cursor.identifier("the name of the view", form)?, "view")?;
    let mut options = match cursor.eat_word("WITH") {
        true => Options::read(cursor, OPTIONS)?,
        false => Options::none(OPTIONS),
    };
    cursor.expect_word("AS", form)?;
    read_emit(cursor)?;
    let select = query::read_select(cursor)?;
    let stream = options::named(&select.from.stream, "stream")?;

    if let Some(output) = options.take("output") {
        let instead = "leave output out, and read the view by queries or `headwater watch`";
        return refuse(output.at, "outputs are not supported yet", instead);
    }
    let lateness = options.take_duration("allowed_lateness", 0)?;
    let retention = read_retention(&mut options, &select, name_at)?;
    options.finish()?;
    if let (Some((lateness, _)), Some((retention, at))) = (lateness, retention)
        && retention < lateness
    {
        let reason = format!(
            "retention = '{}' is less than allowed_lateness = '{}': rows would expire that events may still change",
            duration::print(retention),
            duration::print(lateness),
        );
        return refuse(
            at,
            reason,
            format!("write retention = '{}' or more", duration::print(lateness)),
        );
    }
    let default_lateness = select.from.window.is_some().then_some(0);
    let mut view = ViewDefinition {
        name,
        stream,
        sql: String::new(),
        allowed_lateness_micros: lateness.map(|(micros, _)| micros).or(default_lateness),
        retention_micros: retention.map(|(micros, _)| micros),
        select,
    };
    view.sql = normal_form(&view);
    Ok(view)
}

/// The retention. `None` means for ever, which is the default with a window. Without a window a
/// person must choose.
fn read_retention(
    options: &mut Options,
    select: &Select,
    name_at: Location,
) -> Result<Option<(i64, Location)>> {
    match options.take("retention") {
        Some(setting) if setting.text.trim().eq_ignore_ascii_case("forever") => Ok(None),
        Some(setting) => {
            let micros = options::micros(&setting.text, setting.at)?;
            if micros <= 0 {
                let reason = format!("retention = '{}' would keep nothing", setting.text);
                return refuse(setting.at, reason, "write a longer time, or retention = 'forever'");
            }
            Ok(Some((micros, setting.at)))
        }
        None if select.from.window.is_none() => {
            let instead =
                "write WITH (retention = '30 days'), or retention = 'forever' if its keys are few";
            refuse(name_at, "a view without a window must say how long it keeps a row", instead)
        }
        None => Ok(None),
    }
}

/// Cuts the EMIT clause off the end of the query.
fn read_emit(query: &mut Cursor) -> Result<()> {
    let mut depth = 0usize;
    let mut found = None;
    for at in 0..query.remaining() {
        match query.peek_at(at) {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            token if depth == 0 && at > 0 && is_word(token, "EMIT") => {
                let before = query.peek_at(at - 1);
                let in_list = *before == Token::Comma
                    || ["SELECT", "BY", "AS"].iter().any(|word| is_word(before, word));
                if !in_list {
                    found = Some(at);
                }
            }
            _ => {}
        }
    }
    let Some(at) = found else { return Ok(()) };
    let mut emit = query.split_off(at);
    let place = emit.location();
    let instead = "write EMIT ON UPDATE, or leave EMIT out";
    emit.expect_word("EMIT", instead)?;
    if emit.eat_word("FINAL") || emit.is_word("ON") && emit.is_word_at(1, "WINDOW") {
        return refuse(
            place,
            "emitting a window once, when it closes, is not supported yet",
            instead,
        );
    }
    if !emit.eat_word("CHANGES") {
        emit.expect_word("ON", instead)?;
        emit.expect_word("UPDATE", instead)?;
    }
    if emit.is_end() { Ok(()) } else { emit.unexpected("the end of the statement", instead) }
}

/// `retention` as an option prints it.
pub(crate) fn print_retention(retention: Option<i64>) -> String {
    retention.map_or_else(|| "forever".to_owned(), duration::print)
}

/// The normal form: every default, in one order, with one spelling.
fn normal_form(view: &ViewDefinition) -> String {
    let Select { items, from, filter, group, .. } = &view.select;
    let mut sql = format!("CREATE MATERIALIZED VIEW {} WITH (", quoted(view.name.as_str()));
    if let Some(lateness) = view.allowed_lateness_micros {
        let _ = write!(sql, "allowed_lateness = '{}', ", duration::print(lateness));
    }
    let _ = write!(sql, "retention = '{}') AS\nSELECT ", print_retention(view.retention_micros));
    for (index, item) in items.iter().enumerate() {
        let _ = write!(sql, "{}{item}", if index == 0 { "" } else { ",\n  " });
    }
    let _ = write!(sql, "\nFROM {from}");
    if let Some(filter) = filter {
        let _ = write!(sql, "\nWHERE {filter}");
    }
    for (index, key) in group.iter().enumerate() {
        let _ = write!(sql, "{}{key}", if index == 0 { "\nGROUP BY " } else { ", " });
    }
    sql.push_str("\nEMIT ON UPDATE");
    sql
}

#[cfg(test)]
mod tests;
