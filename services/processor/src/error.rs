use headwater_types::{Remedy, error_chain};

/// Why a shard cannot go on, and what helps.
#[derive(Clone, Debug)]
pub(crate) struct ShardError {
    pub(crate) remedy: Remedy,
    /// The error and its causes, for a person.
    pub(crate) reason: String,
    /// The log is away: what is open may stay open until it is back.
    pub(crate) log_away: bool,
    /// The error comes from the store of checkpoints, which a person may mend without this process
    /// being told.
    pub(crate) from_store: bool,
}

impl ShardError {
    pub(crate) fn new(remedy: Remedy, reason: impl Into<String>) -> Self {
        Self { remedy, reason: reason.into(), log_away: false, from_store: false }
    }

    /// The log is away, as this reason says.
    pub(crate) fn log_away(reason: impl Into<String>) -> Self {
        Self { log_away: true, ..Self::new(Remedy::Retry, reason) }
    }

    fn with_causes(remedy: Remedy, error: &dyn std::error::Error) -> Self {
        Self::new(remedy, error_chain(error))
    }

    fn of_log(remedy: Remedy, error: &dyn std::error::Error) -> Self {
        Self { log_away: remedy == Remedy::Retry, ..Self::with_causes(remedy, error) }
    }
}

impl From<headwater_engine::Error> for ShardError {
    fn from(error: headwater_engine::Error) -> Self {
        Self::with_causes(error.remedy(), &error)
    }
}

impl From<headwater_state::Error> for ShardError {
    fn from(error: headwater_state::Error) -> Self {
        let from_store = error.is_of_store();
        Self { from_store, ..Self::with_causes(error.remedy(), &error) }
    }
}

impl From<headwater_log::Error> for ShardError {
    fn from(error: headwater_log::Error) -> Self {
        Self::of_log(error.remedy(), &error)
    }
}

impl From<headwater_service::follow::Error> for ShardError {
    fn from(error: headwater_service::follow::Error) -> Self {
        Self::of_log(error.remedy(), &error)
    }
}
