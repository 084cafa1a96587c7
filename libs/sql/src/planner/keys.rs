//! GROUP BY: the key of a row.

use datafusion::logical_expr::Expr;
use headwater_engine::plan::WINDOW_COLUMNS;
use sqlparser::{
    ast::{Expr as SqlExpr, Value},
    tokenizer::Location,
};

use super::{
    names::Names,
    prepare::{Prepared, prepare},
};
use crate::{
    lexer::{Result, refuse, shorten},
    scalar::{self, Clause},
    scope::Scope,
    view::{Item, Select},
};

/// A GROUP BY expression.
pub(super) struct GroupKey {
    /// The expression as DataFusion resolved it, to find it in the select list.
    pub(super) resolved: Expr,
    pub(super) name: String,
    pub(super) prepared: Prepared,
}

/// The keys of GROUP BY without the window's columns. A view over windows must group by its window.
pub(super) fn keys(select: &Select, names: &Names<'_>, scope: &Scope) -> Result<Vec<GroupKey>> {
    let mut keys: Vec<GroupKey> = Vec::new();
    let mut by_window = false;
    for group in &select.group {
        let at = scalar::location(group, select.group_at);
        let sql = group_expression(group, select, names, at)?;
        let window = match bare(sql) {
            SqlExpr::Identifier(ident) => Some(ident),
            SqlExpr::CompoundIdentifier(parts) => parts.last(),
            _ => None,
        };
        if let Some(ident) = window.filter(|ident| WINDOW_COLUMNS.contains(&&*ident.value)) {
            names.check_column(ident, Clause::GroupBy, &[])?;
            by_window = true;
            continue;
        }
        names.check(sql, Clause::GroupBy, &[], at)?;
        let resolved = scope.resolve(sql, at)?;
        if resolved.column_refs().iter().any(|column| WINDOW_COLUMNS.contains(&&*column.name)) {
            let instead = "group by window_start and window_end themselves";
            return refuse(
                at,
                format!(
                    "GROUP BY cannot compute with the window's columns: {}",
                    shorten(&sql.to_string())
                ),
                instead,
            );
        }
        if keys.iter().any(|other| other.resolved == resolved) {
            return refuse(
                at,
                format!("{} is grouped by twice", shorten(&sql.to_string())),
                "keep one of the two",
            );
        }
        let selected = select.items.iter().find(|item| {
            scope.resolve(bare(&item.expr), item.at).is_ok_and(|expr| expr == resolved)
        });
        let Some(item) = selected else {
            let sql = sql.to_string();
            let instead = format!("add {} to the select list", shorten(&sql));
            return refuse(
                at,
                format!("the key {} is not selected, and it names the row", shorten(&sql)),
                instead,
            );
        };
        let prepared = prepare(scope, resolved.clone(), sql.to_string(), "a key", at)?;
        keys.push(GroupKey { resolved, name: item.name.clone(), prepared });
    }
    if names.windowed {
        if !by_window {
            let reason = "a view over windows must group by them";
            return refuse(select.group_at, reason, "write GROUP BY …, window_start, window_end");
        }
        let plain = |item: &Item| match bare(&item.expr) {
            SqlExpr::Identifier(ident) => {
                ident.value == item.name
                    && ident.value != WINDOW_COLUMNS[2]
                    && WINDOW_COLUMNS.contains(&&*ident.value)
            }
            SqlExpr::CompoundIdentifier(parts) => parts.last().is_some_and(|ident| {
                ident.value == item.name && WINDOW_COLUMNS[..2].contains(&&*ident.value)
            }),
            _ => false,
        };
        if !select.items.iter().any(plain) {
            let reason = "the window is not selected, and it names the row";
            return refuse(
                select.group_at,
                reason,
                "add window_start or window_end, without another name, to the select list",
            );
        }
        for item in &select.items {
            if WINDOW_COLUMNS.contains(&&*item.name)
                && !bare(&item.expr).to_string().ends_with(&item.name)
            {
                let reason = format!("{} is what the window calls its own column", item.name);
                return refuse(item.at, reason, "write … AS another name");
            }
        }
    }
    Ok(keys)
}

/// Resolves a GROUP BY item: the column of the select list with that number; or, if the stream has
/// no such column, the column of the select list with that name; otherwise the item itself.
fn group_expression<'a>(
    group: &'a SqlExpr,
    select: &'a Select,
    names: &Names<'_>,
    at: Location,
) -> Result<&'a SqlExpr> {
    let item = match group {
        SqlExpr::Value(value) => match &value.value {
            Value::Number(text, _) => {
                let place = text.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                let Some(item) = place.and_then(|place| select.items.get(place)) else {
                    let reason = format!("GROUP BY {text} is not a place in the select list");
                    return refuse(
                        at,
                        reason,
                        format!("write a number from 1 to {}", select.items.len()),
                    );
                };
                Some(item)
            }
            _ => {
                return refuse(
                    at,
                    format!("GROUP BY {} would make one group of all", value.value),
                    "write the columns to group by",
                );
            }
        },
        SqlExpr::Identifier(ident)
            if !names.has(&ident.value) && !WINDOW_COLUMNS.contains(&&*ident.value) =>
        {
            select.items.iter().find(|item| item.name == ident.value)
        }
        _ => None,
    };
    let Some(item) = item else { return Ok(group) };
    let mut checked = item.expr.clone();
    match scalar::check(&mut checked, Clause::GroupBy, at) {
        Ok(()) => Ok(bare(&item.expr)),
        Err(refused) => refuse(at, refused.reason, refused.instead.unwrap_or_default()),
    }
}

/// The expression without parentheses around it.
fn bare(expr: &SqlExpr) -> &SqlExpr {
    match expr {
        SqlExpr::Nested(inner) => bare(inner),
        other => other,
    }
}
