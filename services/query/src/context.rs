//! What every verb works with.

use headwater_service::Shutdown;

use crate::{
    config::Config, limit::ConcurrencyLimit, metrics::Metrics, snapshot::catalog::ViewCatalog,
};

/// What the verbs of the gRPC services share.
pub(crate) struct RequestContext {
    pub config: Config,
    pub catalog: ViewCatalog,
    /// Bounds the cursors: those of scans, SQL queries and watchers.
    pub scans: ConcurrencyLimit,
    pub metrics: Metrics,
    pub shutdown: Shutdown,
}
