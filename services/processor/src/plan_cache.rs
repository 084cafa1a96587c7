use std::{collections::HashMap, sync::Arc};

use headwater_control::GenerationEntry;
use headwater_engine::ViewPlan;
use headwater_sql::compile;
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
    compile(&entry.stream_sql, &entry.view_sql).map_err(|error| {
        let reason = format!(
            "the definition of {} that generation {} was begun with is not understood: {}; run the Headwater that \
             began it, or start a replay of view {}",
            error.object(),
            entry.id,
            error.diagnostics(),
            entry.view
        );
        ShardError::new(Remedy::Correct, reason)
    })
}
