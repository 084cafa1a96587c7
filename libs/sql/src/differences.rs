//! Describes the changes between two definitions of a view.

use crate::{
    duration,
    view::{Item, ViewDefinition, print_retention},
};

/// Returns one line per change.
pub fn differences(old: &ViewDefinition, new: &ViewDefinition) -> Vec<String> {
    let mut lines = Vec::new();
    let mut changed = |what: &str, old: String, new: String| {
        if old != new {
            lines.push(format!("{what}: {old} -> {new}"));
        }
    };
    let none = || "none".to_owned();
    let lateness = |view: &ViewDefinition| {
        view.allowed_lateness_micros.map_or_else(|| "without limit".to_owned(), duration::print)
    };
    let filter =
        |view: &ViewDefinition| view.select.filter.as_ref().map_or_else(none, ToString::to_string);
    let group = |view: &ViewDefinition| {
        let keys: Vec<String> = view.select.group.iter().map(ToString::to_string).collect();
        if keys.is_empty() { none() } else { keys.join(", ") }
    };
    changed("name", old.name.to_string(), new.name.to_string());
    changed("FROM", old.select.from.to_string(), new.select.from.to_string());
    changed("WHERE", filter(old), filter(new));
    changed("GROUP BY", group(old), group(new));
    changed("allowed_lateness", lateness(old), lateness(new));
    changed(
        "retention",
        print_retention(old.retention_micros),
        print_retention(new.retention_micros),
    );
    let before = &old.select.items;
    let after = &new.select.items;
    let find = |items: &'_ [Item], name: &str| {
        items.iter().find(|item| item.name == name).map(|item| item.expr.to_string())
    };
    for item in before {
        match find(after, &item.name) {
            None => lines.push(format!("column {} is gone: {}", item.name, item.expr)),
            Some(expr) if expr != item.expr.to_string() => {
                lines.push(format!("column {}: {} -> {expr}", item.name, item.expr));
            }
            Some(_) => {}
        }
    }
    for item in after.iter().filter(|item| find(before, &item.name).is_none()) {
        lines.push(format!("column {} is new: {}", item.name, item.expr));
    }
    if lines.is_empty() && old.sql != new.sql {
        lines.push("the order of the columns".to_owned());
    }
    lines
}
