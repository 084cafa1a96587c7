//! The names that expressions can refer to, resolved by DataFusion's planner.

use std::sync::Arc;

use arrow::{
    array::{Int8Array, RecordBatchOptions},
    datatypes::{DataType as ArrowType, Field, FieldRef, Schema},
    record_batch::RecordBatch,
};
use datafusion::{
    common::{
        DFSchema, TableReference,
        config::ConfigOptions,
        plan_err,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    error::{DataFusionError, Result as DataFusionResult},
    execution::{SessionStateDefaults, context::ExecutionProps},
    logical_expr::{
        AggregateUDF, Expr, ExprSchemable, HigherOrderUDF, Operator, ScalarUDF, TableSource,
        WindowUDF,
        planner::{ContextProvider, ExprPlanner, TypePlanner},
        simplify::SimplifyContext,
    },
    optimizer::simplify_expressions::ExprSimplifier,
    physical_expr::{PhysicalExpr, create_physical_expr},
    sql::planner::{ParserOptions, PlannerContext, SqlToRel},
};
use headwater_engine::plan::arrow_type;
use sqlparser::{
    ast::{DataType as SqlType, Expr as SqlExpr},
    tokenizer::Location,
};

use crate::{
    Diagnostic, expression,
    functions::FUNCTIONS,
    lexer::{Result, refuse},
    types,
};

/// Columns with their types, and a DataFusion session that plans expressions over them.
#[derive(Debug)]
pub(crate) struct Scope {
    schema: Arc<DFSchema>,
    context: Context,
}

impl Scope {
    /// `qualifier` is the table name in qualified column names.
    pub(crate) fn new(qualifier: Option<&str>, fields: Vec<Field>) -> DataFusionResult<Self> {
        let schema = Schema::new(fields);
        let schema = match qualifier {
            Some(qualifier) => {
                DFSchema::try_from_qualified_schema(TableReference::bare(qualifier), &schema)?
            }
            None => DFSchema::try_from(schema)?,
        };
        let options = Arc::new(ConfigOptions::new());
        let context = Context {
            expr_planners: SessionStateDefaults::default_expr_planners(),
            type_planner: Arc::new(Types),
            options,
        };
        Ok(Self { schema: Arc::new(schema), context })
    }

    /// Resolves names and functions.
    pub(crate) fn resolve(&self, sql: &SqlExpr, at: Location) -> Result<Expr> {
        let options = ParserOptions::new().with_map_string_types_to_utf8view(false);
        let planner = SqlToRel::new_with_options(&self.context, options);
        let planned = planner.sql_to_expr(sql.clone(), &self.schema, &mut PlannerContext::new());
        planned.map_err(|error| not_understood(&error, at))
    }

    /// Coerces the types of operands and arguments, folds constants, and brings the expression into
    /// the form that DataFusion can execute.
    pub(crate) fn prepare(&self, expr: Expr, at: Location) -> Result<Expr> {
        let context = SimplifyContext::builder()
            .with_schema(Arc::clone(&self.schema))
            .with_config_options(Arc::clone(&self.context.options))
            .build();
        let simplifier = ExprSimplifier::new(context);
        let coerced =
            simplifier.coerce(expr, &self.schema).map_err(|error| not_understood(&error, at))?;
        self.check_constants(&coerced, at)?;
        simplifier.simplify(coerced).map_err(|error| not_understood(&error, at))
    }

    pub(crate) fn data_type(&self, expr: &Expr, at: Location) -> Result<ArrowType> {
        expr.get_type(&self.schema).map_err(|error| not_understood(&error, at))
    }

    pub(crate) fn nullable(&self, expr: &Expr) -> bool {
        expr.nullable(self.schema.as_ref()).unwrap_or(true)
    }

    /// The executable expression over batches of this scope's columns.
    pub(crate) fn physical(&self, expr: &Expr) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
        let mut properties = ExecutionProps::new();
        properties.config_options = Some(Arc::clone(&self.context.options));
        create_physical_expr(expr, &self.schema, &properties, &Default::default())
    }

    pub(crate) fn arrow(&self) -> &Schema {
        self.schema.as_arrow()
    }

    /// Evaluates constants with overflow checks. DataFusion's constant folding would wrap integers
    /// round.
    fn check_constants(&self, expr: &Expr, at: Location) -> Result<()> {
        let mut failed = None;
        let walked = expr.apply(|node| {
            let Expr::BinaryExpr(binary) = node else { return Ok(TreeNodeRecursion::Continue) };
            let wraps = matches!(binary.op, Operator::Plus | Operator::Minus | Operator::Multiply);
            if !wraps
                || !node.column_refs().is_empty()
                || node.exists(|part| Ok(matches!(part, Expr::AggregateFunction(_))))?
            {
                return Ok(TreeNodeRecursion::Continue);
            }
            // A batch of one row, over which the constant is evaluated. Most functions need their
            // simplified form.
            let simplified = match self.physical(node) {
                Ok(physical) => expression::checked(physical, self.arrow())?,
                Err(_) => return Ok(TreeNodeRecursion::Continue),
            };
            let one_row = RecordBatchOptions::new().with_row_count(Some(1));
            let row = RecordBatch::try_new_with_options(
                Arc::new(Schema::new(vec![Field::new("row", ArrowType::Int8, false)])),
                vec![Arc::new(Int8Array::from(vec![0]))],
                &one_row,
            )?;
            if let Err(error) = simplified.evaluate(&row) {
                let message = expression::plain(&error);
                if message.to_lowercase().contains("overflow") {
                    failed = Some(message);
                    return Ok(TreeNodeRecursion::Stop);
                }
            }
            Ok(TreeNodeRecursion::Jump)
        });
        walked.map_err(|error| not_understood(&error, at))?;
        match failed {
            None => Ok(()),
            Some(message) => refuse(
                at,
                format!("a constant is out of reach: {message}"),
                "write CAST(… AS DECIMAL(38,0)), or a smaller constant",
            ),
        }
    }
}

fn not_understood(error: &DataFusionError, at: Location) -> Diagnostic {
    Diagnostic::bare(at, expression::plain(error))
}

#[derive(Debug)]
struct Context {
    expr_planners: Vec<Arc<dyn ExprPlanner>>,
    type_planner: Arc<Types>,
    options: Arc<ConfigOptions>,
}

/// Maps SQL types to the seven types: `TIMESTAMP` is always microseconds in UTC, and so on.
#[derive(Debug)]
struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, sql: &SqlType) -> DataFusionResult<Option<FieldRef>> {
        let arrow = match sql {
            SqlType::Date => ArrowType::Date32,
            other => match types::data_type(other, Location::empty()) {
                Ok(data_type) => arrow_type(data_type),
                Err(refused) => return plan_err!("{}", refused.reason),
            },
        };
        Ok(Some(Arc::new(Field::new("", arrow, true))))
    }
}

impl ContextProvider for Context {
    fn get_table_source(&self, name: TableReference) -> DataFusionResult<Arc<dyn TableSource>> {
        plan_err!("{name} cannot be read here")
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.expr_planners
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::<Types>::clone(&self.type_planner))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        FUNCTIONS.scalar(name)
    }

    fn get_higher_order_meta(&self, _name: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        FUNCTIONS.aggregate(name)
    }

    fn get_window_meta(&self, _name: &str) -> Option<Arc<WindowUDF>> {
        None
    }

    fn get_variable_type(&self, _names: &[String]) -> Option<ArrowType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        FUNCTIONS.callable().map(str::to_owned).collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        crate::functions::AGGREGATES.map(str::to_owned).to_vec()
    }

    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}
