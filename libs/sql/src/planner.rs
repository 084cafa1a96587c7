//! Plans a view over its stream: resolves names, types and aggregates, and makes expressions
//! executable.

mod calls;
mod keys;
mod names;
mod prepare;

use std::{collections::BTreeSet, sync::Arc};

use arrow::datatypes::{Field, Schema};
use datafusion::logical_expr::Expr;
use headwater_engine::plan::{
    Aggregate, KeyColumn, OutputColumn, Tumble, ViewPlan, WINDOW_COLUMNS, arrow_type,
};
use headwater_types::{Column, DataType, StreamDefinition};

use crate::{
    ViewDefinition,
    lexer::{Result, refuse},
    scalar::Clause,
    scope::Scope,
    view::{FromClause, Item},
};
use calls::{Call, after_grouping};
use keys::{GroupKey, keys};
use names::Names;
use prepare::{Prepared, condition, prepare, run, unexpected};

pub(crate) fn plan(view: &ViewDefinition, stream: &StreamDefinition) -> Result<ViewPlan> {
    let select = &view.select;
    let names = Names::new(&select.from, stream)?;
    let scope = input_scope(&select.from, stream)?;
    let filter = match &select.filter {
        Some(filter) => {
            names.check(filter, Clause::Where, &[], select.where_at)?;
            Some(condition(&scope, filter, "WHERE", select.where_at)?)
        }
        None => None,
    };
    let keys = keys(select, &names, &scope)?;
    let window = select.from.window.as_ref();
    let window = window.map(|window| Tumble {
        size_micros: window.size_micros,
        offset_micros: window.offset_micros,
    });
    let mut calls = Vec::new();
    let mut outputs = Vec::with_capacity(select.items.len());
    for item in &select.items {
        names.check(&item.expr, Clause::Select, &[], item.at)?;
        let resolved = scope.resolve(&item.expr, item.at)?;
        outputs.push(after_grouping(resolved, &keys, &mut calls, &scope, item, window.is_some())?);
    }
    if keys.is_empty() && window.is_none() && calls.is_empty() {
        let instead = "write GROUP BY and an aggregate such as count(*)";
        return refuse(
            select.items.first().map_or(select.group_at, |item| item.at),
            "a view that neither groups nor aggregates would be a copy of its stream",
            instead,
        );
    }

    let input = input_columns(stream, filter.iter(), &keys, &calls);
    let fields = input.iter().map(|&place| field(&stream.columns[place])).collect::<Vec<_>>();
    let input_schema = Arc::new(Schema::new(fields.clone()));
    let qualifier = names.qualifier.clone();
    let input_scope = Scope::new(Some(&qualifier), fields)
        .map_err(|error| unexpected(&error, select.group_at))?;
    let mut plan = ViewPlan {
        view: view.name.clone(),
        stream: Arc::new(stream.clone()),
        filter: filter.map(|filter| run(&input_scope, filter)).transpose()?,
        keys: Vec::with_capacity(keys.len()),
        window,
        aggregates: Vec::with_capacity(calls.len()),
        output: Vec::with_capacity(outputs.len()),
        allowed_lateness_micros: view.allowed_lateness_micros,
        retention_micros: view.retention_micros,
        key_is_stream_key: false,
        input,
        input_schema,
    };
    for key in keys {
        let data_type = key.prepared.data_type;
        plan.keys.push(KeyColumn {
            name: key.name,
            data_type,
            expression: run(&input_scope, key.prepared)?,
        });
    }
    for call in calls {
        plan.aggregates.push(Aggregate {
            function: call.function,
            input_type: call.argument.as_ref().map(|argument| argument.data_type),
            argument: call.argument.map(|argument| run(&input_scope, argument)).transpose()?,
            filter: call.filter.map(|filter| run(&input_scope, filter)).transpose()?,
            output_type: call.output_type,
        });
    }
    plan.key_is_stream_key = stream.key.is_some_and(|stream_key| {
        let place = plan.input.iter().position(|&column| column == stream_key);
        place.is_some() && plan.keys.iter().any(|key| key.expression.as_column() == place)
    });
    let output_scope =
        plan.post_schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    let output_scope =
        Scope::new(None, output_scope).map_err(|error| unexpected(&error, select.group_at))?;
    for (item, expr) in select.items.iter().zip(outputs) {
        plan.output.push(output(&plan, &output_scope, item, expr)?);
    }
    Ok(plan)
}

fn field(column: &Column) -> Field {
    Field::new(&column.name, arrow_type(column.data_type), column.nullable)
}

/// The scope of the input: the stream's columns, and the window's columns as if each record had
/// them.
fn input_scope(from: &FromClause, stream: &StreamDefinition) -> Result<Scope> {
    let time = stream.columns.get(stream.event_time).map_or("ts", |column| &column.name);
    if let Some(window) = &from.window
        && window.time.value != time
    {
        let at = window.time.span.start;
        let reason = format!("{} is not the event time of {}", window.time, stream.name);
        return refuse(at, reason, format!("write TUMBLE({}, {time}, …)", from.stream));
    }
    let mut fields: Vec<Field> = stream.columns.iter().map(field).collect();
    if from.window.is_some() {
        let timestamp = arrow_type(DataType::Timestamp);
        fields.extend(WINDOW_COLUMNS.map(|name| Field::new(name, timestamp.clone(), false)));
    }
    let qualifier = from.alias.as_ref().unwrap_or(&from.stream);
    Scope::new(Some(&qualifier.value), fields)
        .map_err(|error| unexpected(&error, from.stream.span.start))
}

/// The indices of the stream's columns that the view needs.
fn input_columns<'a>(
    stream: &StreamDefinition,
    filter: impl Iterator<Item = &'a Prepared>,
    keys: &'a [GroupKey],
    calls: &'a [Call],
) -> Vec<usize> {
    let keys = keys.iter().map(|key| &key.prepared);
    let arguments = calls.iter().flat_map(|call| call.argument.iter().chain(&call.filter));
    let mut input = BTreeSet::from([stream.event_time]);
    for prepared in filter.chain(keys).chain(arguments) {
        input.extend(
            prepared.expr.column_refs().iter().filter_map(|column| stream.column(&column.name)),
        );
    }
    input.into_iter().collect()
}

fn output(plan: &ViewPlan, scope: &Scope, item: &Item, expr: Expr) -> Result<OutputColumn> {
    let expr = expr.unalias_nested().data;
    let key = match &expr {
        Expr::Column(column) if plan.window.is_some() && column.name == WINDOW_COLUMNS[0] => {
            Some(plan.keys.len())
        }
        Expr::Column(column) => {
            (0..plan.keys.len()).find(|place| column.name == format!("k{place}"))
        }
        _ => None,
    };
    let prepared =
        prepare(scope, expr, item.name.clone(), &format!("the column {}", item.name), item.at)?;
    let data_type = prepared.data_type;
    Ok(OutputColumn { name: item.name.clone(), data_type, expression: run(scope, prepared)?, key })
}

#[cfg(test)]
mod tests;
