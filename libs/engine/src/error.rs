use headwater_types::{DataType, Name, Remedy};

use crate::plan::ExpressionError;

/// Why the engine cannot continue. A fault of a single record is never an error here: such a record
/// becomes a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The records could not be read.
    #[error("the records of view {view} cannot be read")]
    Log {
        view: Name,
        #[source]
        source: headwater_log::Error,
    },

    /// The shard database failed.
    #[error("the state of view {view} failed")]
    State {
        view: Name,
        #[source]
        source: headwater_state::Error,
    },

    /// An earlier error interrupted a batch, so the state in memory belongs to no offset.
    #[error(
        "the shard of view {view} has failed before; open it again, it continues from its last commit"
    )]
    Interrupted { view: Name },

    /// A stored row is not in the form that this engine writes for this plan.
    #[error(
        "a stored row of view {view} is damaged ({detail}), key {key}: rebuild the view with `headwater replay start {view}`"
    )]
    Row { view: Name, key: String, detail: &'static str },

    /// The planner and an expression disagree about a type or a length.
    #[error("the plan of view {view} is wrong: {detail}")]
    Plan { view: Name, detail: String },

    /// A sum left the range of its type. The exact sum is still stored.
    #[error(
        "column {column} of view {view} does not fit {data_type} for key {key}: {remedy}",
        remedy = widen(.data_type)
    )]
    Overflow { view: Name, column: String, data_type: DataType, key: String },

    /// An output column has no value for a row.
    #[error(
        "column {column} of view {view} has no value for key {key}: {source}; correct its expression"
    )]
    Output {
        view: Name,
        column: String,
        key: String,
        #[source]
        source: ExpressionError,
    },
}

fn widen(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Boolean
        | DataType::Integer
        | DataType::BigInt
        | DataType::Double
        | DataType::Varchar
        | DataType::Timestamp => "aggregate a wider type, as in sum(CAST(x AS DECIMAL(38,0)))",
        DataType::Decimal { .. } => {
            "more than 38 digits; aggregate fewer behind the point, as in sum(CAST(x AS DECIMAL(38,0))), or CAST(x AS DOUBLE)"
        }
    }
}

impl Error {
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Log { source, .. } => source.remedy(),
            Self::State { source, .. } => source.remedy(),
            Self::Interrupted { .. } => Remedy::Retry,
            Self::Row { .. } => Remedy::Repair,
            Self::Plan { .. } | Self::Overflow { .. } | Self::Output { .. } => Remedy::Correct,
        }
    }
}
