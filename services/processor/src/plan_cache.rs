use std::{collections::HashMap, sync::Arc};

use headwater_control::GenerationEntry;
use headwater_engine::ViewPlan;
use headwater_sql::{parse_stream, parse_view, plan_view};
use headwater_types::{GenerationId, Remedy};
use parking_lot::Mutex;

use crate::error::ShardError;

/// The plan of each generation, made once for all of its shards.
#[derive(Default)]
pub(crate) struct PlanCache(Mutex<HashMap<GenerationId, Arc<ViewPlan>>>);

impl PlanCache {
    pub(crate) fn get(&self, entry: &GenerationEntry) -> Result<Arc<ViewPlan>, ShardError> {
        let mut plans = self.0.lock();
        if let Some(plan) = plans.get(&entry.id) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(plan(entry)?);
        plans.insert(entry.id, plan.clone());
        Ok(plan)
    }

    /// Drops the plans of all other generations.
    pub(crate) fn retain(&self, needed: impl Fn(GenerationId) -> bool) {
        self.0.lock().retain(|id, _| needed(*id));
    }
}

fn plan(entry: &GenerationEntry) -> Result<ViewPlan, ShardError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        let reason = format!(
            "the definition of {what} that generation {} was begun with is not understood: {error}; run the Headwater \
             that began it, or start a replay of view {}",
            entry.id, entry.view
        );
        ShardError::new(Remedy::Correct, reason)
    };
    let stream = parse_stream(&entry.stream_sql).map_err(|error| failed("the stream", &error))?;
    let view = parse_view(&entry.view_sql).map_err(|error| failed("the view", &error))?;
    plan_view(&view, &stream).map_err(|error| failed("the view", &error))
}
