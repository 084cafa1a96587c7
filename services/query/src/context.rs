//! The parts that the verbs of the gRPC services share.

use headwater_service::Shutdown;

use crate::{
    config::Config, limit::ConcurrencyLimit, metrics::Metrics, snapshot::catalog::ViewCatalog,
};

/// The parts that every verb works with.
pub(crate) struct RequestContext {
    pub config: Config,
    pub catalog: ViewCatalog,
    /// Bounds the cursors: those of scans, SQL queries and watchers.
    pub scans: ConcurrencyLimit,
    pub metrics: Metrics,
    pub shutdown: Shutdown,
}
