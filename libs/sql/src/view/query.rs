//! Parses the query of a view: one SELECT over one stream, and nothing around it.

use sqlparser::{
    ast::{
        Expr, FunctionArg, FunctionArgExpr, GroupByExpr, Ident, ObjectName, ObjectNamePart, Query,
        Select as SqlSelect, SelectFlavor, SelectItem, SetExpr, TableFactor, TableWithJoins,
    },
    tokenizer::{Location, Token},
};

use super::select::{FromClause, Item, Select, WindowArguments, natural_name};
use crate::{
    duration,
    lexer::{Cursor, Result, fold, refuse, shorten},
    options,
    scalar::{self, Clause},
};

/// Parses the remaining tokens.
pub(super) fn read_select(query: &mut Cursor) -> Result<Select> {
    if query.is_word("WITH") {
        let instead = "write the query without WITH: one SELECT over one stream";
        return refuse(
            query.location(),
            "common table expressions (WITH) are not supported in a view",
            instead,
        );
    }
    if !query.is_word("SELECT") {
        return query.unexpected("SELECT", "write AS SELECT … FROM stream GROUP BY …");
    }
    plain_arguments(query);
    let clauses = ClauseFinder(query.clone());
    let parsed = query.parse("the query", |parser| parser.parse_query())?;
    let select = only_select(*parsed, &clauses)?;
    let SqlSelect { projection, mut from, selection, group_by, .. } = select;
    let [TableWithJoins { relation, joins }] = from.as_mut_slice() else {
        let reason = match from.is_empty() {
            true => "the query reads from nothing",
            false => "a view reads one stream, and joins are not supported yet",
        };
        return refuse(
            clauses.find(&["FROM"]),
            reason,
            "write FROM stream, or FROM TUMBLE(stream, time, INTERVAL '1 minute')",
        );
    };
    if !joins.is_empty() {
        let words = ["JOIN", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "NATURAL"];
        let instead = "put what is needed into the event, or join views when you query them";
        return refuse(clauses.find(&words), "joins are not supported yet", instead);
    }
    let from = read_from(relation, clauses.find(&["FROM"]))?;
    let items = read_items(projection, clauses.find(&["SELECT"]))?;
    let mut filter = selection;
    let where_at = clauses.find(&["WHERE"]);
    filter.iter_mut().try_for_each(|expr| scalar::check(expr, Clause::Where, where_at))?;
    let group_at = clauses.find(&["GROUP"]);
    let group = match group_by {
        GroupByExpr::Expressions(mut group, modifiers) if modifiers.is_empty() => {
            group.iter_mut().try_for_each(|expr| scalar::check(expr, Clause::GroupBy, group_at))?;
            group
        }
        GroupByExpr::Expressions(..) => {
            return refuse(
                group_at,
                "grouping sets are not supported",
                "write one view per grouping",
            );
        }
        GroupByExpr::All(_) => {
            return refuse(
                group_at,
                "GROUP BY ALL leaves open what names a row",
                "list the columns to group by",
            );
        }
    };
    Ok(Select { items, from, filter, group, where_at, group_at })
}

/// Removes the words TABLE and DESCRIPTOR, which Flink writes in `TUMBLE(TABLE stream,
/// DESCRIPTOR(time), …)`.
fn plain_arguments(query: &mut Cursor) {
    let call = (1..query.remaining()).find(|&at| {
        query.is_word_at(at - 1, "FROM")
            && matches!(query.peek_at(at), Token::Word(_))
            && *query.peek_at(at + 1) == Token::LParen
    });
    let Some(open) = call.map(|at| at + 1) else { return };
    if query.is_word_at(open + 1, "TABLE") {
        query.remove(open + 1);
    }
    let descriptor = open + 3;
    if query.is_word_at(descriptor, "DESCRIPTOR")
        && *query.peek_at(descriptor + 1) == Token::LParen
        && *query.peek_at(descriptor + 3) == Token::RParen
    {
        query.remove(descriptor + 3);
        query.remove(descriptor + 1);
        query.remove(descriptor);
    }
}

/// Finds the positions of a query's clauses.
struct ClauseFinder(Cursor);

impl ClauseFinder {
    /// The position of the first of these words outside of parentheses, or of the query's start.
    fn find(&self, words: &[&str]) -> Location {
        let mut cursor = self.0.clone();
        let start = cursor.location();
        cursor.take_until(|cursor| words.iter().any(|word| cursor.is_word(word)));
        if cursor.is_end() { start } else { cursor.location() }
    }
}

/// Refuses everything around the SELECT and every clause that a view does not support.
fn only_select(query: Query, clauses: &ClauseFinder) -> Result<SqlSelect> {
    let Query {
        with: _, // `read_select` has refused it
        body,
        order_by,
        limit_clause,
        fetch,
        locks,
        for_clause,
        settings,
        format_clause,
        pipe_operators,
    } = query;
    let select = match *body {
        SetExpr::Select(select) => *select,
        SetExpr::SetOperation { op, .. } => {
            let at = clauses.find(&["UNION", "INTERSECT", "EXCEPT", "MINUS"]);
            return refuse(
                at,
                format!("{op} is not supported in a view"),
                "write one view per SELECT, and combine them when you query",
            );
        }
        _ => {
            let at = clauses.find(&["SELECT"]);
            return refuse(
                at,
                "a view is one SELECT over one stream",
                "write AS SELECT … FROM stream GROUP BY …",
            );
        }
    };
    let when_querying = "sort and limit when you query the view";
    if order_by.is_some() || !select.sort_by.is_empty() {
        return refuse(clauses.find(&["ORDER", "SORT"]), "a view has no order", when_querying);
    }
    if limit_clause.is_some() || fetch.is_some() || select.top.is_some() {
        let at = clauses.find(&["LIMIT", "OFFSET", "FETCH", "TOP"]);
        return refuse(at, "a view has all of its rows", when_querying);
    }
    if select.having.is_some() {
        let instead = "filter when you query the view: its rows change while events come in";
        return refuse(clauses.find(&["HAVING"]), "HAVING is not supported in a view", instead);
    }
    if select.distinct.is_some() {
        let instead = "write GROUP BY with the same columns";
        return refuse(
            clauses.find(&["DISTINCT"]),
            "SELECT DISTINCT is not supported in a view",
            instead,
        );
    }
    if select.qualify.is_some() {
        let at = clauses.find(&["QUALIFY"]);
        return refuse(at, "QUALIFY is not supported in a view", "filter when you query the view");
    }
    if !select.named_window.is_empty() {
        let at = clauses.find(&["WINDOW"]);
        return refuse(
            at,
            "window functions are not supported in a view",
            "write an aggregate with GROUP BY",
        );
    }
    let plain = locks.is_empty()
        && for_clause.is_none()
        && settings.is_none()
        && format_clause.is_none()
        && pipe_operators.is_empty()
        && select.optimizer_hints.is_empty()
        && select.select_modifiers.is_none()
        && select.exclude.is_none()
        && select.into.is_none()
        && select.lateral_views.is_empty()
        && select.prewhere.is_none()
        && select.connect_by.is_empty()
        && select.cluster_by.is_empty()
        && select.distribute_by.is_empty()
        && select.value_table_mode.is_none()
        && matches!(select.flavor, SelectFlavor::Standard);
    if plain {
        return Ok(select);
    }
    let instead = "write SELECT … FROM … WHERE … GROUP BY … only";
    let words = [
        "FOR",
        "SETTINGS",
        "FORMAT",
        "INTO",
        "LATERAL",
        "PREWHERE",
        "CONNECT",
        "CLUSTER",
        "DISTRIBUTE",
    ];
    refuse(clauses.find(&words), "the query has a clause that a view does not support", instead)
}

fn read_from(relation: &mut TableFactor, from_at: Location) -> Result<FromClause> {
    let form = "write FROM stream, or FROM TUMBLE(stream, time, INTERVAL '1 minute')";
    let TableFactor::Table {
        name,
        alias,
        args,
        with_hints,
        version,
        with_ordinality,
        partitions,
        json_path,
        sample,
        index_hints,
    } = relation
    else {
        let reason = match relation {
            TableFactor::Derived { .. } => "subqueries are not supported in a view",
            _ => "a view reads one stream",
        };
        return refuse(from_at, reason, form);
    };
    let decorated = !with_hints.is_empty()
        || version.is_some()
        || *with_ordinality
        || !partitions.is_empty()
        || json_path.is_some()
        || sample.is_some()
        || !index_hints.is_empty();
    let alias = match alias.take() {
        Some(alias) if alias.columns.is_empty() && alias.at.is_none() && !decorated => {
            Some(fold(alias.name))
        }
        None if !decorated => None,
        _ => return refuse(from_at, "FROM has a part that a view does not support", form),
    };
    let relation = single(name, from_at, form)?;
    let at = relation.span.start;
    let Some(args) = args else {
        return Ok(FromClause { stream: fold(relation), alias, window: None });
    };
    match &*relation.value.to_ascii_lowercase() {
        "tumble" => {}
        kind @ ("hop" | "cumulate" | "session") => {
            let reason = format!("{} windows are not supported yet", kind.to_ascii_uppercase());
            return refuse(at, reason, "write TUMBLE(stream, time, INTERVAL '1 minute')");
        }
        other => return refuse(at, format!("there is no window function {other}"), form),
    }
    let mut arguments = Vec::new();
    for argument in &args.args {
        match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => arguments.push(expr),
            other => {
                let reason = format!("TUMBLE does not take {}", shorten(&other.to_string()));
                return refuse(at, reason, "write TUMBLE(stream, time, INTERVAL '1 minute')");
            }
        }
    }
    let form = "write TUMBLE(stream, time, INTERVAL '1 minute'), with an offset as fourth argument if need be";
    let [Expr::Identifier(stream), Expr::Identifier(time), size, rest @ ..] = arguments.as_slice()
    else {
        return refuse(
            at,
            "TUMBLE takes a stream, its event-time column and a length of time",
            form,
        );
    };
    let size_micros = window_length(size, at, form)?;
    if size_micros <= 0 {
        let reason = format!("a window of {} contains nothing", duration::print(size_micros));
        return refuse(scalar::location(size, at), reason, "write a length of time above zero");
    }
    let offset_micros = match rest {
        [] => 0,
        [offset] => window_length(offset, at, form)?.rem_euclid(size_micros),
        _ => return refuse(at, format!("TUMBLE has {} arguments", arguments.len()), form),
    };
    let window = WindowArguments { time: fold(time.clone()), size_micros, offset_micros };
    Ok(FromClause { stream: fold(stream.clone()), alias, window: Some(window) })
}

fn window_length(expr: &Expr, otherwise: Location, form: &str) -> Result<i64> {
    let at = scalar::location(expr, otherwise);
    match expr {
        Expr::Interval(interval) => options::micros(&scalar::interval_text(interval, at)?, at),
        other => {
            refuse(at, format!("{} is not a length of time", shorten(&other.to_string())), form)
        }
    }
}

fn single(name: &ObjectName, at: Location, form: &str) -> Result<Ident> {
    match name.0.as_slice() {
        [ObjectNamePart::Identifier(ident)] => Ok(ident.clone()),
        _ => refuse(
            at,
            format!("{} has more parts than the name of a stream", shorten(&name.to_string())),
            form,
        ),
    }
}

fn read_items(projection: Vec<SelectItem>, select_at: Location) -> Result<Vec<Item>> {
    let mut items: Vec<Item> = Vec::new();
    for item in projection {
        let (mut expr, alias) = match item {
            SelectItem::UnnamedExpr(expr) => (expr, None),
            SelectItem::ExprWithAlias { expr, alias } => (expr, Some(fold(alias))),
            SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => {
                let instead = "list the keys and the aggregates";
                return refuse(
                    select_at,
                    "SELECT * does not say what the columns of the view are",
                    instead,
                );
            }
            SelectItem::ExprWithAliases { .. } => {
                return refuse(
                    select_at,
                    "a column has more than one name",
                    "write expression AS name",
                );
            }
        };
        let at = scalar::location(&expr, select_at);
        scalar::check(&mut expr, Clause::Select, at)?;
        let Some(name) = alias.map(|alias| alias.value).or_else(|| natural_name(&expr)) else {
            let reason = format!("the column {} has no name", shorten(&expr.to_string()));
            return refuse(at, reason, "write … AS name");
        };
        if items.iter().any(|other| other.name == name) {
            let reason = format!("two columns are called {name}");
            return refuse(at, reason, "write … AS another_name");
        }
        items.push(Item { expr, name, at });
    }
    Ok(items)
}
