//! Definitions: `CREATE STREAM` and `CREATE MATERIALIZED VIEW`, parsed, checked and planned.
//!
//! ```text
//! text --parse--> StreamDefinition, ViewDefinition --plan_view--> ViewPlan (headwater-engine)
//! ```
//!
//! Whatever is not supported is refused with its place, the reason and what to write instead;
//! nothing is passed over in silence. What is accepted has a *normal form*: the statement printed in
//! one way, every default spelled out. White space, comments, the letter case of keywords and of
//! unquoted identifiers, and the order of options change nothing in it, so that equal text means
//! equal meaning, and a generation can be named by a digest of it.
//!
//! # Defaults
//!
//! | of a stream | |
//! | --- | --- |
//! | `topic` | the stream's name |
//! | `format` | `'json'` |
//! | `key` | none: records are spread without one |
//! | `partitions` | 4 |
//! | `max_future` | `'24 hours'` ahead of the record's own timestamp |
//! | `NULL` | every column but the event time and the key |
//!
//! | of a view | |
//! | --- | --- |
//! | `allowed_lateness` | `'0 seconds'` with a window; without one nothing is late |
//! | `retention` | `'forever'` with a window; without one it must be said |
//! | `EMIT` | `ON UPDATE` |
//!
//! # Names
//!
//! As in PostgreSQL, a name that is not quoted folds to lower case. A column is named like the field
//! of the JSON event that it reads, so a field with capital letters needs quotes: `"userId" VARCHAR`.
//!
//! # Semantics
//!
//! Names, types and functions are resolved by DataFusion, with three differences: integers that
//! overflow in `+`, `-`, `*` or a negation are errors (the record becomes a dead letter) instead of
//! wrapping round; `TIMESTAMP` is microseconds in UTC; and a sum of decimals has 38 digits. A column of a view has one of the seven types; what comes
//! out of an expression as another type is widened without loss or refused.
//!
//! # Elsewhere
//!
//! Running a plan is `headwater-engine`'s business. Only this crate and the ad-hoc queries of the
//! query service know DataFusion.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of sqlparser and DataFusion grow; what is not named here is refused"
)]

mod diagnostic;
mod differences;
mod duration;
mod expression;
mod functions;
mod lexer;
mod options;
mod planner;
mod scalar;
mod scope;
mod stream;
mod suggest;
mod types;
mod view;

pub use diagnostic::{Diagnostic, Diagnostics};
pub use differences::differences;
use headwater_engine::plan::ViewPlan;
use headwater_types::StreamDefinition;
use lexer::Cursor;
use sqlparser::tokenizer::Location;
pub use view::ViewDefinition;

/// One statement of a definition file.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are as many of these as a person has written")]
pub enum Statement {
    Stream(StreamDefinition),
    View(ViewDefinition),
}

impl Statement {
    /// The normal form.
    pub fn sql(&self) -> &str {
        match self {
            Self::Stream(stream) => &stream.sql,
            Self::View(view) => &view.sql,
        }
    }
}

/// Parses a text with any number of statements. Every statement is looked at, so that all that is
/// wrong comes at once.
pub fn parse(text: &str) -> Result<Vec<Statement>, Diagnostics> {
    with_room(|| {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let cursors = lexer::statements(text)?;
        let mut statements = Vec::with_capacity(cursors.len());
        let mut diagnostics = Vec::new();
        for cursor in cursors {
            match statement(cursor) {
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
    }
}

/// Parses the one `CREATE MATERIALIZED VIEW` that the text holds, such as a normal form.
pub fn parse_view(text: &str) -> Result<ViewDefinition, Diagnostics> {
    match single(text)? {
        Statement::View(view) => Ok(view),
        Statement::Stream(_) => Err(expected("CREATE MATERIALIZED VIEW", "CREATE STREAM")),
    }
}

/// Resolves a view against its stream, which must be the one that it names.
pub fn plan_view(view: &ViewDefinition, stream: &StreamDefinition) -> Result<ViewPlan, Diagnostic> {
    with_room(|| planner::plan(view, stream))
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

fn statement(mut cursor: Cursor) -> lexer::Result<Statement> {
    cursor.check_size()?;
    let start = cursor.location();
    let statement = read(&mut cursor)?;
    // The normal form is what will be stored and planned again: it must mean the same.
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
    if !cursor.is_word("CREATE") {
        if cursor.is_word("SELECT") {
            return lexer::refuse(
                cursor.location(),
                "a definition file holds no queries",
                "ask with `headwater query`",
            );
        }
        if cursor.is_word("DROP") || cursor.is_word("ALTER") {
            let instead = "change the definition and apply it again";
            return lexer::refuse(
                cursor.location(),
                "a definition file says what there is, not what to do",
                instead,
            );
        }
        return cursor.unexpected("CREATE", instead);
    }
    cursor.eat_word("CREATE");
    if cursor.is_word("OR") {
        return lexer::refuse(
            cursor.location(),
            "OR REPLACE is not needed: to apply again is to replace",
            "leave it out",
        );
    }
    let is_stream = cursor.eat_word("STREAM");
    if !is_stream {
        if cursor.is_word("VIEW") {
            let instead = "write CREATE MATERIALIZED VIEW";
            return lexer::refuse(cursor.location(), "views are always materialized here", instead);
        }
        if !cursor.eat_word("MATERIALIZED") {
            return cursor.unexpected("STREAM or MATERIALIZED VIEW", instead);
        }
        cursor.expect_word("VIEW", instead)?;
    }
    if cursor.is_word("IF") && cursor.is_word_at(1, "NOT") {
        let reason = "IF NOT EXISTS is not needed: to apply the same again changes nothing";
        return lexer::refuse(cursor.location(), reason, "leave it out");
    }
    match is_stream {
        true => stream::read(cursor).map(Statement::Stream),
        false => view::read(cursor).map(Statement::View),
    }
}

/// Runs where trees of the depth that [`Cursor::check_size`] allows can be walked, whatever stack
/// the caller has.
fn with_room<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    const STACK: usize = 64 << 20; // reserved, not used, until it is needed
    let mut work = Some(work);
    let mut done = None;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("definitions".into()).stack_size(STACK);
        let run = || done = work.take().map(|work| work());
        if let Ok(running) = thread.spawn_scoped(scope, run)
            && let Err(panic) = running.join()
        {
            std::panic::resume_unwind(panic);
        }
    });
    // Without a thread it is done here: nearly all definitions are small.
    done.or_else(|| work.take().map(|work| work())).expect("the work is done there or here")
}
