//! Statements: which are let through, which views they name, and DataFusion's errors.

use std::sync::Arc;

use datafusion::{
    common::DataFusionError,
    config::Dialect,
    execution::SessionState,
    physical_plan::ExecutionPlan,
    prelude::SQLOptions,
    sql::{parser::Statement, sqlparser::ast::Statement as SqlStatement},
};
use headwater_control::ControlState;
use headwater_types::Name;

use crate::{error::Error, snapshot::catalog::unknown_view};

/// Parses one SELECT, or EXPLAIN of one.
pub(super) fn parse(session: &SessionState, sql: &str) -> Result<Statement, Error> {
    let statement = session.sql_to_statement(sql, &Dialect::Generic).map_err(|error| {
        if matches!(error, DataFusionError::NotImplemented(_)) {
            Error::NotASelect { what: "more than one statement".into() }
        } else {
            sql_error(error)
        }
    })?;
    check(&statement)?;
    Ok(statement)
}

fn check(statement: &Statement) -> Result<(), Error> {
    let refused = |what: &str| Err(Error::NotASelect { what: what.into() });
    match statement {
        Statement::Statement(inner) => {
            if let SqlStatement::Query(_) = &**inner {
                Ok(())
            } else {
                let text = inner.to_string();
                refused(text.split_whitespace().next().unwrap_or("this"))
            }
        }
        Statement::Explain(explain) if explain.options.analyze => refused("EXPLAIN ANALYZE"),
        Statement::Explain(explain) => check(&explain.statement),
        Statement::CreateExternalTable(_) => refused("CREATE EXTERNAL TABLE"),
        Statement::CopyTo(_) => refused("COPY"),
        Statement::Reset(_) => refused("RESET"),
    }
}

pub(super) async fn plan(
    state: &SessionState,
    statement: Statement,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    let plan = state.statement_to_plan(statement).await?;
    // The grammar can write without a statement of its own, as in SELECT INTO.
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false)
        .verify_plan(&plan)?;
    state.create_physical_plan(&plan).await
}

#[allow(clippy::wildcard_enum_match_arm, reason = "DataFusion's errors fall into four classes")]
pub(super) fn sql_error(error: DataFusionError) -> Error {
    let message = error.find_root().strip_backtrace();
    match error.find_root() {
        // A cursor's error, which went through DataFusion.
        DataFusionError::External(inner) => match inner.downcast_ref::<Error>() {
            Some(ours) => Error::Carried { code: ours.code(), message: ours.to_string() },
            None => Error::Sql(message),
        },
        DataFusionError::ResourcesExhausted(_) => Error::Memory(message),
        DataFusionError::Internal(_)
        | DataFusionError::ExecutionJoin(_)
        | DataFusionError::IoError(_) => {
            tracing::error!(error = message, "a query failed inside datafusion");
            Error::Carried { code: tonic::Code::Internal, message }
        }
        _ => Error::Sql(message),
    }
}

/// The view with a name as SQL folded it: the exact one, or else the only one that differs in case
/// alone.
pub(super) fn resolve(control: &ControlState, table: &str) -> Result<Name, Error> {
    let views = control.views();
    if let Some((name, _)) = views.get_key_value(table) {
        return Ok(name.clone());
    }
    let mut alike = views.keys().filter(|name| name.as_str().eq_ignore_ascii_case(table));
    match (alike.next(), alike.next()) {
        (Some(name), None) => Ok(name.clone()),
        (Some(_), Some(_)) | (None, _) => Err(unknown_view(control, table)),
    }
}
