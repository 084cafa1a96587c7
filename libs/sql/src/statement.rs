//! The statements of a definition file.

use headwater_types::StreamDefinition;
use sqlparser::tokenizer::Location;

use crate::{
    diagnostic::{Diagnostic, Diagnostics},
    drop::{self, DropDefinition},
    lexer::{self, Cursor, refuse},
    stack::with_large_stack,
    stream,
    view::{self, ViewDefinition},
};

/// One statement of a definition file.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are as many of these as a person has written")]
pub enum Statement {
    Stream(StreamDefinition),
    View(ViewDefinition),
    Drop(DropDefinition),
}

impl Statement {
    /// The normal form.
    pub fn sql(&self) -> &str {
        match self {
            Self::Stream(stream) => &stream.sql,
            Self::View(view) => &view.sql,
            Self::Drop(drop) => &drop.sql,
        }
    }
}

/// Parses a text with any number of statements. It reads every statement, so that one answer
/// reports all faults.
pub fn parse(text: &str) -> Result<Vec<Statement>, Diagnostics> {
    with_large_stack(|| {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let cursors = lexer::statements(text)?;
        let mut statements = Vec::with_capacity(cursors.len());
        let mut diagnostics = Vec::new();
        for cursor in cursors {
            match checked(cursor) {
                Ok(statement) => statements.push(statement),
                Err(diagnostic) => diagnostics.push(diagnostic),
            }
        }
        if diagnostics.is_empty() { Ok(statements) } else { Err(Diagnostics(diagnostics)) }
    })
}

/// Parses the one `CREATE STREAM` that the text holds, such as a normal form.
pub fn parse_stream(text: &str) -> Result<StreamDefinition, Diagnostics> {
    match single(text)? {
        Statement::Stream(stream) => Ok(stream),
        Statement::View(_) => Err(expected("CREATE STREAM", "CREATE MATERIALIZED VIEW")),
        Statement::Drop(_) => Err(expected("CREATE STREAM", "DROP")),
    }
}

/// Parses the one `CREATE MATERIALIZED VIEW` that the text holds, such as a normal form.
pub fn parse_view(text: &str) -> Result<ViewDefinition, Diagnostics> {
    match single(text)? {
        Statement::View(view) => Ok(view),
        Statement::Stream(_) => Err(expected("CREATE MATERIALIZED VIEW", "CREATE STREAM")),
        Statement::Drop(_) => Err(expected("CREATE MATERIALIZED VIEW", "DROP")),
    }
}

fn single(text: &str) -> Result<Statement, Diagnostics> {
    let mut statements = parse(text)?;
    match (statements.pop(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        _ => Err(expected("one statement", "another number of them")),
    }
}

fn expected(expected: &str, found: &str) -> Diagnostics {
    Diagnostic::bare(Location::new(1, 1), format!("expected {expected}, found {found}")).into()
}

fn checked(mut cursor: Cursor) -> lexer::Result<Statement> {
    cursor.check_size()?;
    let start = cursor.location();
    let statement = read(&mut cursor)?;
    // The normal form is stored and planned again, so it must have the same meaning.
    let again =
        lexer::statements(statement.sql()).and_then(|mut cursors| match cursors.as_mut_slice() {
            [cursor] => read(cursor),
            _ => Err(Diagnostic::bare(start, "there is more than one statement")),
        });
    match again {
        Ok(again) if again.sql() == statement.sql() => Ok(statement),
        Ok(_) => Err(Diagnostic::at(
            start,
            "the statement has no normal form",
            "write it in a simpler way",
        )),
        Err(error) => {
            let reason = format!("the statement has no normal form: {}", error.reason);
            Err(Diagnostic::at(start, reason, "write it in a simpler way"))
        }
    }
}

fn read(cursor: &mut Cursor) -> lexer::Result<Statement> {
    let instead = "write CREATE STREAM or CREATE MATERIALIZED VIEW";
    if cursor.eat_word("DROP") {
        return drop::read(cursor).map(Statement::Drop);
    }
    if !cursor.is_word("CREATE") {
        if cursor.is_word("SELECT") {
            return refuse(
                cursor.location(),
                "a definition file holds no queries",
                "ask with `headwater query`",
            );
        }
        if cursor.is_word("ALTER") {
            let instead = "change the definition and apply it again";
            return refuse(
                cursor.location(),
                "a definition file says what there is, not what to do",
                instead,
            );
        }
        return cursor.unexpected("CREATE", instead);
    }
    cursor.eat_word("CREATE");
    if cursor.is_word("OR") {
        return refuse(
            cursor.location(),
            "OR REPLACE is not needed: to apply again is to replace",
            "leave it out",
        );
    }
    let is_stream = cursor.eat_word("STREAM");
    if !is_stream {
        if cursor.is_word("VIEW") {
            let instead = "write CREATE MATERIALIZED VIEW";
            return refuse(cursor.location(), "views are always materialized here", instead);
        }
        if !cursor.eat_word("MATERIALIZED") {
            return cursor.unexpected("STREAM or MATERIALIZED VIEW", instead);
        }
        cursor.expect_word("VIEW", instead)?;
    }
    if cursor.is_word("IF") && cursor.is_word_at(1, "NOT") {
        let reason = "IF NOT EXISTS is not needed: to apply the same again changes nothing";
        return refuse(cursor.location(), reason, "leave it out");
    }
    match is_stream {
        true => stream::read(cursor).map(Statement::Stream),
        false => view::read(cursor).map(Statement::View),
    }
}
