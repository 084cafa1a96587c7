//! Aggregate calls, and the expressions of the select list over their results.

use datafusion::{
    common::{
        Column as ColumnName,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Expr, expr::AggregateFunction as AggregateCall},
};
use headwater_engine::plan::{AggregateFunction, WINDOW_COLUMNS};
use headwater_types::DataType;

use super::{
    keys::GroupKey,
    prepare::{Prepared, prepare, prepare_condition, unexpected},
};
use crate::{
    Diagnostic,
    lexer::{Result, refuse},
    scope::Scope,
    view::Item,
};

/// An aggregate call.
pub(super) struct Call {
    /// The call as DataFusion resolved it, to find equal calls.
    pub(super) resolved: Expr,
    pub(super) function: AggregateFunction,
    pub(super) argument: Option<Prepared>,
    pub(super) filter: Option<Prepared>,
    pub(super) output_type: DataType,
}

/// Rewrites a column of the select list into an expression over the grouped columns: `k0`, `k1`, …,
/// the window's columns, `a0`, `a1`, …. Adds aggregates that are not in `calls` yet.
pub(super) fn after_grouping(
    resolved: Expr,
    keys: &[GroupKey],
    calls: &mut Vec<Call>,
    scope: &Scope,
    item: &Item,
    windowed: bool,
) -> Result<Expr> {
    let mut refused = None;
    let column = |name: String| {
        Ok(Transformed::new(
            Expr::Column(ColumnName::new_unqualified(name)),
            true,
            TreeNodeRecursion::Jump,
        ))
    };
    let rewritten = resolved.transform_down(|node| {
        if refused.is_some() {
            return Ok(Transformed::new(node, false, TreeNodeRecursion::Stop));
        }
        if let Some(place) = keys.iter().position(|key| key.resolved == node) {
            return column(format!("k{place}"));
        }
        match &node {
            Expr::AggregateFunction(_) => {
                let place = match calls.iter().position(|call| call.resolved == node) {
                    Some(place) => Ok(place),
                    None => call(&node, scope, item).map(|call| {
                        calls.push(call);
                        calls.len() - 1
                    }),
                };
                match place {
                    Ok(place) => column(format!("a{place}")),
                    Err(diagnostic) => {
                        refused = Some(diagnostic);
                        Ok(Transformed::new(node, false, TreeNodeRecursion::Stop))
                    }
                }
            }
            Expr::Column(name) if windowed && WINDOW_COLUMNS.contains(&&*name.name) => {
                column(name.name.clone())
            }
            Expr::Column(name) => {
                let name = &name.name;
                let instead =
                    format!("add {name} to GROUP BY, or write an aggregate such as max({name})");
                let reason = format!("{name} is neither grouped by nor inside an aggregate");
                refused = Some(Diagnostic::at(item.at, reason, instead));
                Ok(Transformed::new(node, false, TreeNodeRecursion::Stop))
            }
            _ => Ok(Transformed::no(node)),
        }
    });
    match (refused, rewritten) {
        (Some(diagnostic), _) => Err(diagnostic),
        (None, Ok(rewritten)) => Ok(rewritten.data),
        (None, Err(error)) => Err(unexpected(&error, item.at)),
    }
}

/// One aggregate call, with the result type that DataFusion would give it.
fn call(resolved: &Expr, scope: &Scope, item: &Item) -> Result<Call> {
    let at = item.at;
    let Expr::AggregateFunction(AggregateCall { func, params }) = resolved else {
        return refuse(at, "this is not an aggregate", "write count, sum, min, max or avg");
    };
    let function = match func.name() {
        "count" => AggregateFunction::Count,
        "sum" => AggregateFunction::Sum,
        "min" => AggregateFunction::Min,
        "max" => AggregateFunction::Max,
        "avg" => AggregateFunction::Avg,
        other => {
            return refuse(
                at,
                format!("the aggregate {other} is not supported yet"),
                "write count, sum, min, max or avg",
            );
        }
    };
    if resolved.column_refs().iter().any(|column| WINDOW_COLUMNS.contains(&&*column.name)) {
        let instead = "aggregate the event time instead";
        return refuse(
            at,
            format!("{} cannot aggregate the window's columns", func.name()),
            instead,
        );
    }
    let filter = match &params.filter {
        Some(filter) => Some(prepare_condition(scope, (**filter).clone(), "FILTER", item)?),
        None => None,
    };
    let [argument] = params.args.as_slice() else {
        return refuse(
            at,
            format!("{} takes one argument", func.name()),
            format!("write {}(x)", func.name()),
        );
    };
    // `count(*)` arrives as the count of a constant.
    let counts_rows = function == AggregateFunction::Count && !scope.nullable(argument);
    if counts_rows {
        let output_type = DataType::BigInt;
        return Ok(Call {
            resolved: resolved.clone(),
            function: AggregateFunction::CountStar,
            argument: None,
            filter,
            output_type,
        });
    }
    let sql = format!("{}, the argument of {}", item.name, func.name());
    let what = format!("the argument of {}", func.name());
    let argument = prepare(scope, argument.clone(), sql, &what, at)?;
    let input = argument.data_type;
    let numeric = matches!(
        input,
        DataType::Integer | DataType::BigInt | DataType::Double | DataType::Decimal { .. }
    );
    let output_type = match (function, input) {
        (AggregateFunction::Count | AggregateFunction::CountStar, _) => DataType::BigInt,
        (AggregateFunction::Min | AggregateFunction::Max, _) => input,
        (AggregateFunction::Sum | AggregateFunction::Avg, _) if !numeric => {
            let reason = format!("{} takes a number, and this is {input}", func.name());
            return refuse(
                at,
                reason,
                format!("write {}(CAST(… AS DOUBLE)), or min, max or count", func.name()),
            );
        }
        (AggregateFunction::Sum, DataType::Double) | (AggregateFunction::Avg, _)
            if !matches!(input, DataType::Decimal { .. }) =>
        {
            DataType::Double
        }
        (AggregateFunction::Sum, DataType::Decimal { scale, .. }) => {
            DataType::Decimal { precision: 38, scale }
        }
        (AggregateFunction::Sum, _) => DataType::BigInt,
        (AggregateFunction::Avg, DataType::Decimal { precision, scale }) => {
            DataType::Decimal { precision: 38.min(precision + 4), scale: 38.min(scale + 4) }
        }
        (AggregateFunction::Avg, _) => DataType::Double,
    };
    Ok(Call { resolved: resolved.clone(), function, argument: Some(argument), filter, output_type })
}
