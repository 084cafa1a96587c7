//! Definitions: `CREATE STREAM`, `CREATE MATERIALIZED VIEW` and `DROP`, parsed, checked and
//! planned.
//!
//! ```text
//! text --parse--> StreamDefinition, ViewDefinition --plan_view--> ViewPlan (headwater-engine)
//! stored texts --------------------compile----------------------> ViewPlan
//! ```
//!
//! # Laws
//!
//! 1. *Nothing is ignored*: unsupported SQL is refused with its position, the reason and what to
//!    write instead.
//! 2. *Equal text means equal meaning*: an accepted statement has a *normal form* with every
//!    default spelled out. White space, comments, the letter case of keywords and of unquoted
//!    identifiers, and the order of options do not change it. A generation is named by a digest of
//!    it.
//! 3. *The normal form is stable*: parsed again, it gives the same normal form.
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
//! | `retention` | `'forever'` with a window; required without one |
//! | `EMIT` | `ON UPDATE` |
//!
//! # Names
//!
//! As in PostgreSQL, an unquoted name folds to lower case. A column has the name of the field of
//! the JSON event that it reads, so a field with capital letters needs quotes: `"userId" VARCHAR`.
//!
//! # Semantics
//!
//! DataFusion resolves names, types and functions, with three differences: integers that overflow
//! in `+`, `-`, `*` or a negation are errors (the record becomes a dead letter) instead of wrapping
//! round; `TIMESTAMP` is microseconds in UTC; and a sum of decimals has 38 digits. A column of a
//! view has one of the seven types. An expression of another type is widened without loss or
//! refused.
//!
//! # Which file to open
//!
//! | file | what it does |
//! | --- | --- |
//! | `statement.rs` | splits a definition file into statements and parses each |
//! | `stream.rs` | `CREATE STREAM` |
//! | `view.rs`, `view/select.rs` | `CREATE MATERIALIZED VIEW`; parsing its `SELECT` |
//! | `view/query.rs` | the parsed `SELECT`, and how it is printed |
//! | `drop.rs` | `DROP STREAM` and `DROP VIEW` |
//! | `scalar.rs` | the list of scalar SQL that is allowed |
//! | `compile.rs`, `planner.rs` | from definitions to a plan |
//! | `scope.rs`, `expression.rs` | the calls into DataFusion: names, and executable expressions |
//! | `differences.rs` | what changed between two versions of a view |
//! | `diagnostic.rs`, `suggest.rs` | refusals: line, column, reason, remedy |
//!
//! # Elsewhere
//!
//! `headwater-engine` runs a plan. Only this crate and the ad-hoc queries of the query service know
//! DataFusion.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of sqlparser and DataFusion grow; what is not named here is refused"
)]

mod compile;
mod diagnostic;
mod differences;
mod drop;
mod duration;
mod expression;
mod functions;
mod lexer;
mod options;
mod planner;
mod scalar;
mod scope;
mod stack;
mod statement;
mod stream;
mod suggest;
mod types;
mod view;

pub use compile::{CompileError, compile, plan_view};
pub use diagnostic::{Diagnostic, Diagnostics};
pub use differences::differences;
pub use drop::{DropDefinition, Dropped};
pub use statement::{Statement, parse, parse_stream, parse_view};
pub use view::ViewDefinition;
