//! The functions of DataFusion, and which of them a view may call.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
};

use datafusion::{
    execution::SessionStateDefaults,
    logical_expr::{AggregateUDF, ScalarUDF, Volatility},
};

/// The aggregates that a view may use.
pub(crate) const AGGREGATES: [&str; 5] = ["count", "sum", "min", "max", "avg"];

/// The kind of function that a name refers to.
#[derive(Debug)]
pub(crate) enum Function {
    /// One of [`AGGREGATES`].
    Aggregate,
    /// A function whose value depends on its arguments alone.
    Scalar,
    /// A function whose value depends on more than its arguments.
    Unrepeatable,
    /// An aggregate of DataFusion that views do not support.
    OtherAggregate,
    /// A window function, which needs OVER.
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

/// Functions that DataFusion declares immutable, or does not know, although their value depends on
/// the program, the session or the time.
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
    /// Looks up a function. `name` is already folded to lower case.
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

    /// The names of all functions that a view may call.
    pub(crate) fn callable(&self) -> impl Iterator<Item = &str> + Clone {
        let scalars = self.scalars.keys().map(|name| &**name);
        scalars.filter(|name| matches!(self.find(name), Function::Scalar)).chain(AGGREGATES)
    }
}
