//! A pinned view as a table of DataFusion.
//!
//! Planning needs the schema only. While a query is planned its scans are [`PlannedScan`]s. Then
//! snapshots are taken and every scan gets its cursor, so that all scans of a query read one state.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use arrow::datatypes::SchemaRef;
use datafusion::{
    catalog::Session,
    common::{DataFusionError, Result, ScalarValue, tree_node::TreeNodeRecursion},
    datasource::{TableProvider, TableType},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use headwater_state::{
    KeyRange,
    key::{self, KeyPart},
};
use headwater_types::DataType;
use parking_lot::Mutex;

use crate::{
    snapshot::cursor::{Cursor, CursorBatch},
    snapshot::generation::Generation,
};

/// A scan in a plan, which gets its cursor once the whole query is planned.
pub(crate) struct PlannedScan {
    /// The index of the view among those of the query.
    pub view: usize,
    pub range: KeyRange,
    cursor: Mutex<Option<Cursor>>,
}

impl PlannedScan {
    pub(crate) fn fill(&self, cursor: Cursor) {
        *self.cursor.lock() = Some(cursor);
    }
}

/// All scans of a query, in the order in which they were planned.
#[derive(Clone, Default)]
pub(crate) struct PlannedScans(Arc<Mutex<Vec<Weak<PlannedScan>>>>);

impl PlannedScans {
    fn add(&self, view: usize, range: KeyRange) -> Arc<PlannedScan> {
        let planned = Arc::new(PlannedScan { view, range, cursor: Mutex::default() });
        self.0.lock().push(Arc::downgrade(&planned));
        planned
    }

    /// The scans that the plan still has: the optimizer may have dropped some.
    pub(crate) fn alive(&self) -> Vec<Arc<PlannedScan>> {
        self.0.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

/// One view of a query.
pub(crate) struct ViewTable {
    generation: Arc<Generation>,
    view: usize,
    scans: PlannedScans,
}

impl ViewTable {
    pub(crate) fn new(generation: Arc<Generation>, view: usize, scans: PlannedScans) -> Self {
        Self { generation, view, scans }
    }

    /// The key column, operator and literal of a filter that compares a key column with a literal.
    fn comparison<'a>(&self, filter: &'a Expr) -> Option<(usize, Operator, &'a ScalarValue)> {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
        let (column, op, literal) = match (&**left, &**right) {
            (Expr::Column(column), Expr::Literal(literal, _)) => (column, *op, literal),
            (Expr::Literal(literal, _), Expr::Column(column)) => (column, op.swap()?, literal),
            _ => return None,
        };
        let output =
            self.generation.plan.output.iter().find(|output| output.name == column.name)?;
        let key = output.key?;
        let comparable = matches!(
            op,
            Operator::Eq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq
        );
        (comparable && encode(literal, self.generation.key.data_type(key)?).is_some())
            .then_some((key, op, literal))
    }

    /// The smallest range of keys that holds all rows which can pass the filters. DataFusion still
    /// applies the filters to these rows, so a bound may be generous.
    fn range(&self, filters: &[Expr]) -> KeyRange {
        let comparisons: Vec<_> =
            filters.iter().filter_map(|filter| self.comparison(filter)).collect();
        let encoded = |key: usize, wanted: &[Operator]| {
            let (_, op, literal) =
                comparisons.iter().find(|(at, op, _)| *at == key && wanted.contains(op))?;
            Some((*op, encode(literal, self.generation.key.data_type(key)?)?))
        };
        let mut prefix = Vec::new();
        let mut next = 0;
        while let Some((_, part)) = encoded(next, &[Operator::Eq]) {
            prefix.extend(part);
            next += 1;
        }
        let mut range = if prefix.is_empty() { KeyRange::all() } else { KeyRange::prefix(&prefix) };
        let bound = |part: &[u8]| [prefix.as_slice(), part].concat();
        if let Some((_, part)) = encoded(next, &[Operator::Gt, Operator::GtEq]) {
            range.start = bound(&part);
        }
        match encoded(next, &[Operator::Lt, Operator::LtEq]) {
            Some((Operator::LtEq, part)) => range.end = KeyRange::prefix(&bound(&part)).end,
            Some((_, part)) => range.end = Some(bound(&part)),
            None => {}
        }
        range
    }
}

/// A literal as a part of a key of this type; `None` if it is of another type, or NULL.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "literals of other types are not compared by key"
)]
fn encode(literal: &ScalarValue, data_type: DataType) -> Option<Vec<u8>> {
    let part = match (data_type, literal) {
        (DataType::Boolean, ScalarValue::Boolean(Some(value))) => KeyPart::Boolean(*value),
        (DataType::Integer, ScalarValue::Int32(Some(value))) => KeyPart::Integer((*value).into()),
        (DataType::BigInt, ScalarValue::Int64(Some(value))) => KeyPart::Integer(*value),
        (DataType::Double, ScalarValue::Float64(Some(value))) => KeyPart::Double(*value),
        (DataType::Decimal { scale, .. }, ScalarValue::Decimal128(Some(value), _, at))
            if i16::from(*at) == i16::from(scale) =>
        {
            KeyPart::Decimal(*value)
        }
        (
            DataType::Varchar,
            ScalarValue::Utf8(Some(text))
            | ScalarValue::LargeUtf8(Some(text))
            | ScalarValue::Utf8View(Some(text)),
        ) => KeyPart::Text(text),
        (DataType::Timestamp, ScalarValue::TimestampMicrosecond(Some(micros), _)) => {
            KeyPart::Timestamp(*micros)
        }
        _ => return None,
    };
    let mut encoded = Vec::new();
    key::encode(part, &mut encoded);
    Some(encoded)
}

impl fmt::Debug for ViewTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViewTable({})", self.generation.view)
    }
}

#[tonic::async_trait]
impl TableProvider for ViewTable {
    fn schema(&self) -> SchemaRef {
        self.generation.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match self.comparison(filter) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.generation.schema.project(columns)?),
            None => self.generation.schema.clone(),
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(ViewScan {
            name: self.generation.view.to_string(),
            planned: self.scans.add(self.view, self.range(filters)),
            projection: projection.cloned(),
            limit,
            schema,
            properties: Arc::new(properties),
        }))
    }
}

/// Reads a view once.
struct ViewScan {
    name: String,
    planned: Arc<PlannedScan>,
    projection: Option<Vec<usize>>,
    limit: Option<usize>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl fmt::Debug for ViewScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViewScan({})", self.name)
    }
}

impl DisplayAs for ViewScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<&str> =
            self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "ViewScan: view={}, columns=[{}], keys=", self.name, columns.join(", "))?;
        let KeyRange { start, end } = &self.planned.range;
        if start.is_empty() && end.is_none() {
            write!(f, "all")?;
        } else {
            write!(f, "range")?;
        }
        match self.limit {
            Some(limit) => write!(f, ", limit={limit}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for ViewScan {
    fn name(&self) -> &'static str {
        "ViewScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let cursor = self.planned.cursor.lock().take();
        let cursor = cursor.ok_or_else(|| {
            DataFusionError::NotImplemented(format!(
                "this query reads view {} again and again while it runs, which is not supported: write it as a join",
                self.name
            ))
        })?;
        let (projection, left) = (self.projection.clone(), self.limit.unwrap_or(usize::MAX));
        let batches = futures::stream::try_unfold(
            (cursor, projection, left),
            |(mut cursor, projection, left)| async move {
                if left == 0 {
                    return Ok(None);
                }
                let next = cursor
                    .next()
                    .await
                    .transpose()
                    .map_err(|error| DataFusionError::External(Box::new(error)))?;
                let Some(CursorBatch { rows, .. }) = next else { return Ok(None) };
                let taken = rows.len().min(left);
                let mut batch = rows.batch.slice(0, taken);
                if let Some(columns) = &projection {
                    batch = batch.project(columns)?;
                }
                Ok(Some((batch, (cursor, projection, left - taken))))
            },
        );
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches)))
    }
}
