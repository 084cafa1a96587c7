//! Plans views, also from the stored definitions of a generation.

use std::fmt;

use headwater_engine::plan::ViewPlan;
use headwater_types::{Remedy, StreamDefinition};

use crate::{
    diagnostic::{Diagnostic, Diagnostics},
    planner,
    stack::with_large_stack,
    statement::{parse_stream, parse_view},
    view::ViewDefinition,
};

/// Plans a view over `stream`, which must be the stream that the view names.
pub fn plan_view(view: &ViewDefinition, stream: &StreamDefinition) -> Result<ViewPlan, Diagnostic> {
    with_large_stack(|| planner::plan(view, stream))
}

/// Parses a stream and a view, such as the normal forms in a generation's control record, and plans
/// the view.
///
/// ```
/// let plan = headwater_sql::compile(
///     "CREATE STREAM orders (user_id BIGINT, ts TIMESTAMP, WATERMARK FOR ts AS ts)",
///     "CREATE MATERIALIZED VIEW orders_per_user WITH (retention = 'forever') AS
///      SELECT user_id, count(*) AS orders FROM orders GROUP BY user_id",
/// )?;
/// assert_eq!(plan.key_names(), ["user_id"]);
/// # Ok::<(), headwater_sql::CompileError>(())
/// ```
pub fn compile(stream_sql: &str, view_sql: &str) -> Result<ViewPlan, CompileError> {
    let stream = parse_stream(stream_sql).map_err(CompileError::Stream)?;
    let view = parse_view(view_sql).map_err(CompileError::View)?;
    plan_view(&view, &stream).map_err(|diagnostic| CompileError::View(diagnostic.into()))
}

/// Names the definition that [`compile`] refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileError {
    Stream(Diagnostics),
    View(Diagnostics),
}

impl CompileError {
    /// `the stream` or `the view`, for a message.
    pub fn object(&self) -> &'static str {
        match self {
            Self::Stream(_) => "the stream",
            Self::View(_) => "the view",
        }
    }

    pub fn diagnostics(&self) -> &Diagnostics {
        match self {
            Self::Stream(diagnostics) | Self::View(diagnostics) => diagnostics,
        }
    }

    /// A definition is wrong, so only its author can correct it.
    pub fn remedy(&self) -> Remedy {
        self.diagnostics().remedy()
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the definition of {}: {}", self.object(), self.diagnostics())
    }
}

impl std::error::Error for CompileError {}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "CREATE STREAM s (k VARCHAR, ts TIMESTAMP, WATERMARK FOR ts AS ts)";

    fn view(select: &str) -> String {
        format!("CREATE MATERIALIZED VIEW v WITH (retention = 'forever') AS {select}")
    }

    #[test]
    fn normal_forms_compile_to_the_plan_of_what_was_written() {
        let written = view("SELECT k, count(*) AS n FROM s GROUP BY k");
        let stream = parse_stream(STREAM).unwrap();
        let parsed = parse_view(&written).unwrap();
        let plan = compile(&stream.sql, &parsed.sql).unwrap();
        assert_eq!(plan.view.as_str(), "v");
        assert_eq!(*plan.stream, stream);
        assert_eq!(plan.output_schema(), compile(STREAM, &written).unwrap().output_schema());
    }

    #[test]
    fn an_error_names_the_definition_that_is_wrong() {
        let good = view("SELECT k, count(*) AS n FROM s GROUP BY k");
        let unknown_column = view("SELECT x, count(*) AS n FROM s GROUP BY x");
        let cases = [
            (compile("CREATE STREAM s (k VARCHAR)", &good), "the definition of the stream: line 1"),
            (compile(STREAM, "SELECT 1"), "the definition of the view: line 1"),
            (compile(STREAM, &unknown_column), "there is no column x"),
        ];
        for (compiled, message) in cases {
            let error = compiled.unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            assert_eq!(error.remedy(), Remedy::Correct);
        }
    }
}
