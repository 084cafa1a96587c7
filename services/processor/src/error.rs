use headwater_types::Remedy;

/// Why a shard cannot go on, and what helps.
#[derive(Clone, Debug)]
pub(crate) struct ShardError {
    pub(crate) remedy: Remedy,
    /// For a person: the error and its causes.
    pub(crate) reason: String,
    /// The log is away: what is open may stay open until it is back.
    pub(crate) away: bool,
    /// It lies with the store of checkpoints: what is wrong there may be put right without this process being told.
    pub(crate) store: bool,
}

impl ShardError {
    pub(crate) fn new(remedy: Remedy, reason: impl Into<String>) -> Self {
        Self { remedy, reason: reason.into(), away: false, store: false }
    }

    fn of(remedy: Remedy, error: &dyn std::error::Error) -> Self {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason.push_str(": ");
            reason.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::new(remedy, reason)
    }
}

macro_rules! from {
    ($($error:ty),*) => {$(
        impl From<$error> for ShardError {
            fn from(error: $error) -> Self {
                Self::of(error.remedy(), &error)
            }
        }
    )*};
}

from!(headwater_engine::Error);

impl From<headwater_state::Error> for ShardError {
    fn from(error: headwater_state::Error) -> Self {
        Self { store: error.is_of_store(), ..Self::of(error.remedy(), &error) }
    }
}

macro_rules! from_log {
    ($($error:ty),*) => {$(
        impl From<$error> for ShardError {
            fn from(error: $error) -> Self {
                let error = Self::of(error.remedy(), &error);
                Self { away: error.remedy == Remedy::Retry, ..error }
            }
        }
    )*};
}

from_log!(headwater_log::Error, headwater_service::follow::Error);
