//! Adapts DataFusion's physical expressions to the engine's [`Expression`].

use std::{fmt, sync::Arc};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType as ArrowType, Schema, TimeUnit},
    record_batch::RecordBatch,
};
use datafusion::{
    common::{
        ScalarValue,
        tree_node::{Transformed, TreeNode},
    },
    error::DataFusionError,
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{BinaryExpr, CastExpr, Column, Literal, NegativeExpr},
    },
};
use headwater_engine::plan::{Expression, ExpressionError, arrow_type};
use headwater_types::DataType;

/// An executable expression whose result has one of the seven types.
pub(crate) struct Planned {
    physical: Arc<dyn PhysicalExpr>,
    column: Option<usize>,
    result: ArrowType,
    /// The SQL text, for messages.
    sql: Box<str>,
}

impl Planned {
    /// [`widened`] must turn the type of `physical` into `data_type`.
    pub(crate) fn new(
        physical: Arc<dyn PhysicalExpr>,
        schema: &Schema,
        data_type: DataType,
        sql: &str,
    ) -> Result<Self, DataFusionError> {
        let mut physical = checked(physical, schema)?;
        let result = arrow_type(data_type);
        if physical.data_type(schema)? != result {
            physical = Arc::new(CastExpr::new(physical, result.clone(), None));
        }
        let column = physical.downcast_ref::<Column>().map(Column::index);
        Ok(Self { physical, column, result, sql: sql.into() })
    }

    fn error(&self, error: &DataFusionError) -> ExpressionError {
        ExpressionError(format!("{}: {}", self.sql, plain(error)))
    }
}

impl Expression for Planned {
    fn evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef, ExpressionError> {
        let value = self.physical.evaluate(batch).map_err(|error| self.error(&error))?;
        let array = value.into_array(batch.num_rows()).map_err(|error| self.error(&error))?;
        if *array.data_type() == self.result {
            return Ok(array);
        }
        // A function may return a slightly different type than it declared.
        arrow::compute::cast(&array, &self.result).map_err(|error| self.error(&error.into()))
    }

    fn as_column(&self) -> Option<usize> {
        self.column
    }
}

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.sql, self.physical)
    }
}

/// The message of a DataFusion error without the prefixes of its wrappers.
pub(crate) fn plain(error: &DataFusionError) -> String {
    let text = match error.find_root() {
        DataFusionError::ArrowError(error, _) => error.to_string(),
        root => root.message().into_owned(),
    };
    let text = text.trim_end_matches('.').replace('\n', " ");
    for prefix in [
        "Compute error: ",
        "Arithmetic overflow: ",
        "Cast error: ",
        "Parser error: ",
        "Invalid argument error: ",
    ] {
        if let Some(rest) = text.strip_prefix(prefix) {
            return rest.to_owned();
        }
    }
    text
}

/// Makes integer overflow an error in `+`, `-`, `*` and negation.
pub(crate) fn checked(
    physical: Arc<dyn PhysicalExpr>,
    schema: &Schema,
) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
    let transformed = physical.transform_up(|node| {
        if let Some(binary) = node.downcast_ref::<BinaryExpr>()
            && matches!(binary.op(), Operator::Plus | Operator::Minus | Operator::Multiply)
        {
            let checked = binary.clone().with_fail_on_overflow(true);
            return Ok(Transformed::yes(Arc::new(checked) as Arc<dyn PhysicalExpr>));
        }
        if let Some(negative) = node.downcast_ref::<NegativeExpr>() {
            let data_type = negative.arg().data_type(schema)?;
            if data_type.is_signed_integer() {
                let zero = Arc::new(Literal::new(ScalarValue::new_zero(&data_type)?));
                let minus = BinaryExpr::new(zero, Operator::Minus, Arc::clone(negative.arg()));
                let checked = minus.with_fail_on_overflow(true);
                return Ok(Transformed::yes(Arc::new(checked) as Arc<dyn PhysicalExpr>));
            }
        }
        Ok(Transformed::no(node))
    })?;
    Ok(transformed.data)
}

/// The column type that holds every value of an Arrow type. The error says what to write instead.
pub(crate) fn widened(arrow: &ArrowType) -> Result<DataType, &'static str> {
    Ok(match arrow {
        ArrowType::Boolean => DataType::Boolean,
        ArrowType::Int8
        | ArrowType::Int16
        | ArrowType::Int32
        | ArrowType::UInt8
        | ArrowType::UInt16 => DataType::Integer,
        ArrowType::Int64 | ArrowType::UInt32 => DataType::BigInt,
        ArrowType::UInt64 => DataType::Decimal { precision: 20, scale: 0 },
        ArrowType::Float16 | ArrowType::Float32 | ArrowType::Float64 => DataType::Double,
        ArrowType::Decimal32(precision, scale)
        | ArrowType::Decimal64(precision, scale)
        | ArrowType::Decimal128(precision, scale) => match u8::try_from(*scale) {
            Ok(scale) => DataType::Decimal { precision: *precision, scale },
            Err(_) => return Err("write CAST(… AS DECIMAL(38,0))"),
        },
        ArrowType::Decimal256(..) => return Err("write CAST(… AS DECIMAL(38,s))"),
        ArrowType::Utf8 | ArrowType::LargeUtf8 | ArrowType::Utf8View => DataType::Varchar,
        // Reducing nanoseconds to microseconds loses nothing: TIMESTAMP has microseconds.
        ArrowType::Timestamp(
            TimeUnit::Second | TimeUnit::Millisecond | TimeUnit::Microsecond | TimeUnit::Nanosecond,
            _,
        ) => DataType::Timestamp,
        ArrowType::Date32 | ArrowType::Date64 => {
            return Err("write CAST(… AS TIMESTAMP), or CAST(… AS VARCHAR) for its text");
        }
        ArrowType::Duration(_) | ArrowType::Interval(_) => {
            return Err("write date_part('epoch', a) - date_part('epoch', b), which is seconds");
        }
        ArrowType::Null => return Err("write CAST(NULL AS …) with the type that you mean"),
        ArrowType::Dictionary(_, values) => return widened(values),
        _ => {
            return Err(
                "write CAST(… AS …) with one of BOOLEAN, INTEGER, BIGINT, DOUBLE, DECIMAL(p,s), VARCHAR, TIMESTAMP",
            );
        }
    })
}
