use headwater_types::Remedy;

/// Why a shard cannot go on, and what helps.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) remedy: Remedy,
    /// For a person: the error and its causes.
    pub(crate) reason: String,
}

impl Trouble {
    pub(crate) fn new(remedy: Remedy, reason: impl Into<String>) -> Self {
        Self { remedy, reason: reason.into() }
    }

    fn of(remedy: Remedy, error: &dyn std::error::Error) -> Self {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason.push_str(": ");
            reason.push_str(&cause.to_string());
            source = cause.source();
        }
        Self { remedy, reason }
    }
}

macro_rules! from {
    ($($error:ty),*) => {$(
        impl From<$error> for Trouble {
            fn from(error: $error) -> Self {
                Self::of(error.remedy(), &error)
            }
        }
    )*};
}

from!(headwater_engine::Error, headwater_log::Error, headwater_state::Error);
