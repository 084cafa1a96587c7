//! Checks scalar expressions, and brings them into their normal form.
//!
//! The list of allowed expressions is closed: everything else is refused, so that a new version of
//! the parser cannot add expressions that nobody has considered.

use sqlparser::{
    ast::{
        BinaryOperator, CastKind, DataType as SqlType, DuplicateTreatment, Expr, Function,
        FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Interval, ObjectNamePart, Spanned,
        UnaryOperator, Value,
    },
    tokenizer::Location,
};

use crate::{
    functions::{self, FUNCTIONS},
    lexer::{Result, fold, refuse, shorten},
    suggest, types,
};

/// The clause of an expression, which decides what it may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    Select,
    Where,
    GroupBy,
    /// The argument of an aggregate, or its FILTER.
    Aggregate,
}

/// The start of an expression, or `otherwise` if the parser does not know it.
pub(crate) fn location(expr: &Expr, otherwise: Location) -> Location {
    let start = expr.span().start;
    if start.line == 0 { otherwise } else { start }
}

/// Refuses expressions that a view cannot compute, and rewrites the rest into its normal form.
pub(crate) fn check(expr: &mut Expr, clause: Clause, otherwise: Location) -> Result<()> {
    let at = location(expr, otherwise);
    match expr {
        Expr::Identifier(ident) => replace(ident),
        Expr::CompoundIdentifier(parts) => {
            if parts.len() != 2 {
                let reason =
                    format!("{} has more parts than a column of a stream", shorten(&show(parts)));
                return refuse(at, reason, "write column, or alias.column");
            }
            parts.iter_mut().for_each(replace);
        }
        Expr::IsFalse(inner)
        | Expr::IsNotFalse(inner)
        | Expr::IsTrue(inner)
        | Expr::IsNotTrue(inner)
        | Expr::IsNull(inner)
        | Expr::IsNotNull(inner)
        | Expr::IsUnknown(inner)
        | Expr::IsNotUnknown(inner)
        | Expr::Nested(inner)
        | Expr::Extract { expr: inner, .. }
        | Expr::Ceil { expr: inner, .. }
        | Expr::Floor { expr: inner, .. } => check(inner, clause, at)?,
        Expr::IsDistinctFrom(left, right)
        | Expr::IsNotDistinctFrom(left, right)
        | Expr::Position { expr: left, r#in: right }
        | Expr::AtTimeZone { timestamp: left, time_zone: right } => {
            check(left, clause, at)?;
            check(right, clause, at)?;
        }
        Expr::InList { expr: inner, list, .. } => {
            check(inner, clause, at)?;
            list.iter_mut().try_for_each(|item| check(item, clause, at))?;
        }
        Expr::Between { expr: inner, low, high, .. } => {
            [inner, low, high].into_iter().try_for_each(|part| check(part, clause, at))?;
        }
        Expr::BinaryOp { left, op, right } => {
            check(left, clause, at)?;
            check_operator(op, at)?;
            check(right, clause, at)?;
        }
        Expr::Like { any: false, expr: inner, pattern, .. }
        | Expr::ILike { any: false, expr: inner, pattern, .. }
        | Expr::SimilarTo { expr: inner, pattern, .. } => {
            check(inner, clause, at)?;
            check(pattern, clause, at)?;
        }
        Expr::UnaryOp {
            op: UnaryOperator::Plus | UnaryOperator::Minus | UnaryOperator::Not,
            expr: inner,
        } => {
            check(inner, clause, at)?;
            // Without a space, "--1" would be a comment.
            if matches!(**inner, Expr::UnaryOp { .. }) {
                let signed = std::mem::replace(&mut **inner, Expr::value(Value::Null));
                **inner = Expr::Nested(Box::new(signed));
            }
        }
        Expr::Cast { kind, expr: inner, data_type, array: false, format: None } => {
            check(inner, clause, at)?;
            *data_type = check_cast(data_type, at)?;
            if *kind == CastKind::DoubleColon {
                *kind = CastKind::Cast;
            }
        }
        Expr::TypedString(typed) => {
            let (SqlType::Date | SqlType::Timestamp(..)) = typed.data_type else {
                let reason = format!("{} in front of a text is not supported", typed.data_type);
                return refuse(
                    at,
                    reason,
                    "write CAST('…' AS TYPE), TIMESTAMP '…', DATE '…' or INTERVAL '…'",
                );
            };
            typed.data_type = check_cast(&typed.data_type, at)?;
            typed.uses_odbc_syntax = false;
            check_value(&mut typed.value.value, at)?;
        }
        Expr::Substring { expr: inner, substring_from, substring_for, special, shorthand } => {
            check(inner, clause, at)?;
            let parts = [substring_from.as_mut(), substring_for.as_mut()];
            parts.into_iter().flatten().try_for_each(|part| check(part, clause, at))?;
            *shorthand = false;
            *special = substring_from.is_some();
        }
        Expr::Trim { trim_what, expr: inner, trim_characters, .. } => {
            check(inner, clause, at)?;
            trim_what.iter_mut().try_for_each(|part| check(part, clause, at))?;
            trim_characters.iter_mut().flatten().try_for_each(|part| check(part, clause, at))?;
        }
        Expr::Overlay { expr: inner, overlay_what, overlay_from, overlay_for } => {
            let parts = [inner, overlay_what, overlay_from];
            parts.into_iter().try_for_each(|part| check(part, clause, at))?;
            overlay_for.iter_mut().try_for_each(|part| check(part, clause, at))?;
        }
        Expr::Value(value) => check_value(&mut value.value, at)?,
        Expr::Interval(interval) => check_interval(interval, at)?,
        Expr::Case { operand, conditions, else_result, .. } => {
            operand.iter_mut().try_for_each(|part| check(part, clause, at))?;
            for branch in conditions {
                check(&mut branch.condition, clause, at)?;
                check(&mut branch.result, clause, at)?;
            }
            else_result.iter_mut().try_for_each(|part| check(part, clause, at))?;
        }
        Expr::Function(function) => check_function(function, clause, at)?,
        Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => {
            let instead = "write a view per step, and combine views when you query them";
            return refuse(at, "subqueries are not supported in a view", instead);
        }
        Expr::GroupingSets(_) | Expr::Cube(_) | Expr::Rollup(_) => {
            return refuse(at, "grouping sets are not supported", "write one view per grouping");
        }
        other => {
            let reason = format!("{} is not supported in a view", shorten(&other.to_string()));
            return refuse(
                at,
                reason,
                "write it with columns, operators, CASE, CAST and functions",
            );
        }
    }
    Ok(())
}

fn replace(ident: &mut Ident) {
    let folded = fold(std::mem::replace(ident, Ident::new("")));
    *ident = folded;
}

fn show(parts: &[Ident]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(".")
}

fn check_operator(op: &BinaryOperator, at: Location) -> Result<()> {
    let allowed = [
        BinaryOperator::Plus,
        BinaryOperator::Minus,
        BinaryOperator::Multiply,
        BinaryOperator::Divide,
        BinaryOperator::Modulo,
        BinaryOperator::StringConcat,
        BinaryOperator::Gt,
        BinaryOperator::Lt,
        BinaryOperator::GtEq,
        BinaryOperator::LtEq,
        BinaryOperator::Eq,
        BinaryOperator::NotEq,
        BinaryOperator::And,
        BinaryOperator::Or,
        BinaryOperator::BitwiseAnd,
        BinaryOperator::BitwiseOr,
        BinaryOperator::PGBitwiseXor,
        BinaryOperator::PGBitwiseShiftLeft,
        BinaryOperator::PGBitwiseShiftRight,
        BinaryOperator::PGRegexMatch,
        BinaryOperator::PGRegexIMatch,
        BinaryOperator::PGRegexNotMatch,
        BinaryOperator::PGRegexNotIMatch,
    ];
    if allowed.contains(op) {
        return Ok(());
    }
    let instead = match op {
        BinaryOperator::PGExp => "write power(x, y)",
        _ => "write it with the operators + - * / % || = <> < <= > >= AND OR ~, or with a function",
    };
    refuse(at, format!("the operator {op} is not supported"), instead)
}

/// Checks the type of a CAST. DATE is allowed for values, but not for columns.
fn check_cast(sql: &SqlType, at: Location) -> Result<SqlType> {
    match sql {
        SqlType::Date => Ok(SqlType::Date),
        other => Ok(types::canonical(types::data_type(other, at)?)),
    }
}

fn check_value(value: &mut Value, at: Location) -> Result<()> {
    match value {
        Value::Number(_, false)
        | Value::SingleQuotedString(_)
        | Value::Boolean(_)
        | Value::Null => {}
        Value::EscapedStringLiteral(text) | Value::UnicodeStringLiteral(text) => {
            *value = Value::SingleQuotedString(std::mem::take(text));
        }
        Value::DollarQuotedString(text) => {
            *value = Value::SingleQuotedString(std::mem::take(&mut text.value));
        }
        Value::Placeholder(name) => {
            return refuse(
                at,
                format!("a definition has no parameters, and {name} is one"),
                "write the value",
            );
        }
        other => {
            let reason = format!("the literal {} is not supported", shorten(&other.to_string()));
            return refuse(
                at,
                reason,
                "write a number, a text in single quotes, TRUE, FALSE or NULL",
            );
        }
    }
    Ok(())
}

/// `INTERVAL '1' HOUR` becomes `INTERVAL '1 hour'`.
fn check_interval(interval: &mut Interval, at: Location) -> Result<()> {
    let text = interval_text(interval, at)?;
    *interval.value = Expr::value(Value::SingleQuotedString(text));
    interval.leading_field = None;
    Ok(())
}

pub(crate) fn interval_text(interval: &Interval, at: Location) -> Result<String> {
    let instead =
        "write INTERVAL and a length of time in single quotes, such as INTERVAL '10 minutes'";
    let plain = interval.leading_precision.is_none()
        && interval.last_field.is_none()
        && interval.fractional_seconds_precision.is_none();
    let value = match &*interval.value {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::Number(text, _) => Some(text),
            _ => None,
        },
        _ => None,
    };
    let Some(text) = value.filter(|_| plain) else {
        return refuse(at, "the interval is not a constant", instead);
    };
    let unit = interval.leading_field.as_ref().map(ToString::to_string).unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().chain(unit.split_whitespace()).collect();
    Ok(words.join(" ").to_lowercase())
}

fn check_function(function: &mut Function, clause: Clause, at: Location) -> Result<()> {
    let [ObjectNamePart::Identifier(name)] = function.name.0.as_mut_slice() else {
        let reason = format!("{} is not the name of a function", function.name);
        return refuse(at, reason, "write the function's name without a schema");
    };
    name.value.make_ascii_lowercase();
    name.quote_style = None;
    let name = name.value.clone();
    if function.over.is_some() {
        let instead = "write an aggregate with GROUP BY, or use OVER when you query the view";
        return refuse(at, "window functions (OVER) are not supported in a view", instead);
    }
    let aggregate = match FUNCTIONS.find(&name) {
        functions::Function::Aggregate => true,
        functions::Function::Scalar => false,
        functions::Function::Unrepeatable => {
            let reason = format!(
                "{name} has another value at every run, and a view must come out the same when history is replayed"
            );
            return refuse(
                at,
                reason,
                "write the event-time column, or let the producer put the value into the event",
            );
        }
        functions::Function::OtherAggregate => {
            let instead =
                "write count, sum, min, max or avg, each with FILTER (WHERE …) if need be";
            return refuse(at, format!("the aggregate {name} is not supported yet"), instead);
        }
        functions::Function::Window => {
            let instead = "write an aggregate with GROUP BY, or use OVER when you query the view";
            return refuse(
                at,
                format!("{name} is a window function, and those are not supported in a view"),
                instead,
            );
        }
        functions::Function::Unknown => {
            let instead = match suggest::nearest(&name, FUNCTIONS.callable()) {
                Some(other) => format!("did you mean {other}?"),
                None => {
                    "write one of DataFusion's scalar functions, or count, sum, min, max or avg"
                        .to_owned()
                }
            };
            return refuse(at, format!("there is no function {name}"), instead);
        }
    };
    let extras = function.null_treatment.is_some()
        || !function.within_group.is_empty()
        || function.uses_odbc_syntax
        || !matches!(function.parameters, FunctionArguments::None);
    let FunctionArguments::List(list) = &mut function.args else {
        return refuse(
            at,
            format!("{name} needs its arguments in parentheses"),
            format!("write {name}(…)"),
        );
    };
    if aggregate {
        match clause {
            Clause::Select => {}
            Clause::Where => {
                let instead =
                    "write FILTER (WHERE …) behind an aggregate, or filter when you query the view";
                return refuse(at, format!("WHERE cannot contain the aggregate {name}"), instead);
            }
            Clause::GroupBy => {
                return refuse(
                    at,
                    format!("GROUP BY cannot contain the aggregate {name}"),
                    "group by columns and expressions over them",
                );
            }
            Clause::Aggregate => {
                return refuse(
                    at,
                    format!("the aggregate {name} stands inside of another"),
                    "write one aggregate per column",
                );
            }
        }
    }
    if matches!(list.duplicate_treatment, Some(DuplicateTreatment::Distinct)) {
        let reason = format!("{name}(DISTINCT …) is not supported yet");
        return refuse(
            at,
            reason,
            "group by the column, and count the rows when you query the view",
        );
    }
    list.duplicate_treatment = None;
    if extras || !list.clauses.is_empty() {
        let reason = format!("{name} takes no ORDER BY, WITHIN GROUP or NULLS clause here");
        return refuse(at, reason, format!("write {name}(…)"));
    }
    if function.filter.is_some() && !aggregate {
        return refuse(
            at,
            format!("{name} is not an aggregate and has no FILTER"),
            "write CASE WHEN … THEN … END",
        );
    }
    if aggregate && list.args.len() != 1 {
        return refuse(
            at,
            format!("{name} takes one argument, and has {}", list.args.len()),
            format!("write {name}(x)"),
        );
    }
    let inside = if aggregate { Clause::Aggregate } else { clause };
    for argument in &mut list.args {
        match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(inner)) => check(inner, inside, at)?,
            FunctionArg::Unnamed(FunctionArgExpr::Wildcard) if name == "count" => {}
            _ => {
                return refuse(
                    at,
                    format!("{name} takes plain arguments"),
                    format!("write {name}(x)"),
                );
            }
        }
    }
    if let Some(filter) = &mut function.filter {
        check(filter, Clause::Aggregate, at)?;
    }
    Ok(())
}
