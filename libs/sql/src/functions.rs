//! Which functions there are, and which of them a view may call.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
};

use datafusion::{
    execution::SessionStateDefaults,
    logical_expr::{AggregateUDF, ScalarUDF, Volatility},
};

/// The aggregates of a view.
pub(crate) const AGGREGATES: [&str; 5] = ["count", "sum", "min", "max", "avg"];

/// What a name can stand for in a call.
#[derive(Debug)]
pub(crate) enum Function {
    /// One of [`AGGREGATES`].
    Aggregate,
    /// Depends on its arguments alone.
    Scalar,
    /// Does not depend on its arguments alone.
    Unrepeatable,
    /// An aggregate that is known, but not here.
    OtherAggregate,
    /// It would need OVER.
    Window,
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Functions {
    scalars: BTreeMap<String, Arc<ScalarUDF>>,
    aggregates: BTreeMap<String, Arc<AggregateUDF>>,
    windows: BTreeSet<String>,
}

pub(crate) static FUNCTIONS: LazyLock<Functions> = LazyLock::new(|| {
    let names = |name: &str, aliases: &[String]| {
        std::iter::once(name.to_owned()).chain(aliases.iter().cloned()).collect::<Vec<_>>()
    };
    let scalars =
        SessionStateDefaults::default_scalar_functions().into_iter().flat_map(|function| {
            let names = names(function.name(), function.aliases());
            names.into_iter().map(move |name| (name, Arc::clone(&function)))
        });
    let aggregates =
        SessionStateDefaults::default_aggregate_functions().into_iter().flat_map(|function| {
            let names = names(function.name(), function.aliases());
            names.into_iter().map(move |name| (name, Arc::clone(&function)))
        });
    let windows = SessionStateDefaults::default_window_functions();
    let windows = windows.iter().map(|function| function.name().to_owned()).collect();
    Functions { scalars: scalars.collect(), aggregates: aggregates.collect(), windows }
});

/// Functions that DataFusion calls immutable, or does not know, and whose value depends on the
/// program, the session or the moment.
const UNREPEATABLE: [&str; 14] = [
    "version",
    "current_timestamp",
    "localtimestamp",
    "localtime",
    "clock_timestamp",
    "statement_timestamp",
    "transaction_timestamp",
    "current_user",
    "session_user",
    "user",
    "current_catalog",
    "current_schema",
    "gen_random_uuid",
    "rand",
];

impl Functions {
    /// `name` is folded.
    pub(crate) fn find(&self, name: &str) -> Function {
        if AGGREGATES.contains(&name) {
            return Function::Aggregate;
        }
        if UNREPEATABLE.contains(&name) {
            return Function::Unrepeatable;
        }
        match self.scalars.get(name) {
            Some(scalar) => match scalar.signature().volatility {
                Volatility::Immutable => Function::Scalar,
                Volatility::Stable | Volatility::Volatile => Function::Unrepeatable,
            },
            None if self.aggregates.contains_key(name) => Function::OtherAggregate,
            None if self.windows.contains(name) => Function::Window,
            None => Function::Unknown,
        }
    }

    pub(crate) fn scalar(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.scalars.get(name).cloned()
    }

    pub(crate) fn aggregate(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.aggregates.get(name).cloned()
    }

    /// All that a view may call.
    pub(crate) fn callable(&self) -> impl Iterator<Item = &str> + Clone {
        let scalars = self.scalars.keys().map(|name| &**name);
        scalars.filter(|name| matches!(self.find(name), Function::Scalar)).chain(AGGREGATES)
    }
}
