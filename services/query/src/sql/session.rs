//! DataFusion's session: what a query may use, and the tables that it sees.

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc};

use datafusion::{
    catalog::{
        CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList,
        MemorySchemaProvider, SchemaProvider,
    },
    common::DataFusionError,
    execution::{
        SessionState, SessionStateBuilder, SessionStateDefaults,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::{GreedyMemoryPool, TrackConsumersPool},
        runtime_env::RuntimeEnvBuilder,
    },
    prelude::SessionConfig,
};

use crate::{
    config::Config,
    snapshot::pin::Pin,
    sql::table::{PlannedScans, ViewTable},
};

/// How many consumers an error about memory names.
const NAMED_CONSUMERS: NonZeroUsize = NonZeroUsize::new(3).expect("3 > 0");

/// A session without tables, which each query copies: building one costs more than most queries.
pub(super) fn session(config: &Config) -> anyhow::Result<SessionState> {
    let settings = SessionConfig::new()
        // A query computes on its own thread. More partitions would be tasks on shared threads.
        .with_target_partitions(1)
        .with_information_schema(false)
        .with_create_default_catalog_and_schema(false)
        // A scan is read once.
        .set_bool("datafusion.execution.enable_recursive_ctes", false);
    let pool = TrackConsumersPool::new(
        GreedyMemoryPool::new(config.memory_limit.bytes()),
        NAMED_CONSUMERS,
    );
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(
            DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled),
        )
        .build_arc()?;
    // No file formats, table factories or table functions: a query reads views and nothing else.
    Ok(SessionStateBuilder::new()
        .with_config(settings)
        .with_runtime_env(runtime)
        .with_expr_planners(SessionStateDefaults::default_expr_planners())
        .with_scalar_functions(SessionStateDefaults::default_scalar_functions())
        .with_aggregate_functions(SessionStateDefaults::default_aggregate_functions())
        .with_window_functions(SessionStateDefaults::default_window_functions())
        .build())
}

/// A copy of the session that sees the pinned views as tables. `tables` has, for each name in the
/// statement, the index of its pin.
pub(super) fn session_over(
    session: &SessionState,
    pins: &[Pin],
    tables: &BTreeMap<String, usize>,
    scans: &PlannedScans,
) -> Result<SessionState, DataFusionError> {
    let schema = MemorySchemaProvider::new();
    for (table, &index) in tables {
        let view = ViewTable::new(pins[index].generation.clone(), index, scans.clone());
        schema.register_table(table.clone(), Arc::new(view))?;
    }
    let names = &session.config().options().catalog;
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(&names.default_schema, Arc::new(schema))?;
    let catalogs = MemoryCatalogProviderList::new();
    catalogs.register_catalog(names.default_catalog.clone(), Arc::new(catalog));
    let builder = SessionStateBuilder::new_from_existing(session.clone());
    let mut state = builder.with_catalog_list(Arc::new(catalogs)).build();
    state.mark_start_execution();
    Ok(state)
}
