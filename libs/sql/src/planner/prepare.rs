//! Resolved expressions, and the step that makes them executable.

use std::sync::Arc;

use arrow::datatypes::DataType as ArrowType;
use datafusion::{error::DataFusionError, logical_expr::Expr};
use headwater_engine::plan::Expression;
use headwater_types::DataType;
use sqlparser::{ast::Expr as SqlExpr, tokenizer::Location};

use crate::{
    Diagnostic,
    expression::{self, Planned, widened},
    lexer::{Result, refuse},
    scalar,
    scope::Scope,
    view::Item,
};

/// A resolved expression that is not executable yet.
pub(super) struct Prepared {
    pub(super) expr: Expr,
    pub(super) data_type: DataType,
    pub(super) sql: String,
    pub(super) at: Location,
}

/// Resolves and prepares a condition.
pub(super) fn condition(
    scope: &Scope,
    sql: &SqlExpr,
    what: &str,
    at: Location,
) -> Result<Prepared> {
    let at = scalar::location(sql, at);
    let item = Item { expr: sql.clone(), name: format!("{what} {sql}"), at };
    prepare_condition(scope, scope.resolve(sql, at)?, what, &item)
}

pub(super) fn prepare_condition(
    scope: &Scope,
    resolved: Expr,
    what: &str,
    item: &Item,
) -> Result<Prepared> {
    let sql = if item.name.starts_with(what) {
        item.name.clone()
    } else {
        format!("{}, {what}", item.name)
    };
    let at = item.at;
    let expr = scope.prepare(resolved, at)?;
    match scope.data_type(&expr, at)? {
        // A condition that is NULL throughout is never true.
        ArrowType::Boolean | ArrowType::Null => {
            Ok(Prepared { expr, data_type: DataType::Boolean, sql, at })
        }
        other => {
            let found = widened(&other)
                .map_or_else(|_| other.to_string(), |data_type| data_type.to_string());
            refuse(
                at,
                format!("{what} takes a condition, and this is {found}"),
                "write a comparison, such as x <> 0",
            )
        }
    }
}

pub(super) fn prepare(
    scope: &Scope,
    resolved: Expr,
    sql: String,
    what: &str,
    at: Location,
) -> Result<Prepared> {
    let expr = scope.prepare(resolved, at)?;
    let data_type = column_type(scope, &expr, what, at)?;
    Ok(Prepared { expr, data_type, sql, at })
}

fn column_type(scope: &Scope, expr: &Expr, what: &str, at: Location) -> Result<DataType> {
    let arrow = scope.data_type(expr, at)?;
    widened(&arrow).or_else(|instead| {
        let found = match arrow {
            ArrowType::Date32 | ArrowType::Date64 => "DATE".to_owned(),
            ArrowType::Null => "NULL, which has no type".to_owned(),
            ArrowType::Interval(_) => "INTERVAL".to_owned(),
            other => other.to_string(),
        };
        refuse(at, format!("{what} cannot be {found}"), instead)
    })
}

/// Makes a prepared expression executable.
pub(super) fn run(scope: &Scope, prepared: Prepared) -> Result<Arc<dyn Expression>> {
    let Prepared { expr, data_type, sql, at } = prepared;
    let planned = scope
        .physical(&expr)
        .and_then(|physical| Planned::new(physical, scope.arrow(), data_type, &sql));
    match planned {
        Ok(planned) => Ok(Arc::new(planned)),
        Err(error) => Err(unexpected(&error, at)),
    }
}

pub(super) fn unexpected(error: &DataFusionError, at: Location) -> Diagnostic {
    Diagnostic::bare(at, expression::plain(error))
}
