use axum::http::StatusCode;
use headwater_log::Error as LogError;
use headwater_service::{config::ByteSize, follow};
use headwater_types::{Name, Remedy, error_chain};
use tonic::{Code, Status};

/// Why a whole request was refused. None of its events is in the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("there is no stream {stream:?}; {}", known_streams(.known))]
    UnknownStream { stream: String, known: Vec<Name> },

    #[error("stream {stream} was deleted {how}: apply its definition to have it again")]
    StreamDeleted { stream: Name, how: String },

    /// A newer version wrote the definition, or it is damaged.
    #[error("the definition of stream {stream} cannot be used: {reason}")]
    Definition { stream: Name, reason: String },

    #[error(
        "the definition of stream {stream} cannot be used: topic {topic} has {found} partitions and the stream was \
         declared with {declared}; nothing is appended, because a key would go to another partition than before: \
         declare a stream with the topic's number of partitions; if partitions were added to the topic, copy its \
         records by their keys to a new one, and declare the stream over that"
    )]
    Partitions { stream: Name, topic: Name, found: u32, declared: u32 },

    #[error("{what} is over the limit of {limit} (ingest.max-request): send fewer events at once")]
    TooLarge { what: String, limit: ByteSize },

    #[error("the request has more than {limit} events (ingest.max-events): send fewer at once")]
    TooMany { limit: usize },

    #[error("ingest holds {limit} of events already (ingest.in-flight): retry in a moment")]
    Busy { limit: ByteSize },

    #[error("{0}")]
    Malformed(String),

    #[error("{0}")]
    Unsupported(String),

    #[error("ingest is shutting down: retry in a moment")]
    Stopping,

    #[error("{}", error_chain(.0))]
    Log(#[from] LogError),

    #[error("{}", error_chain(.0))]
    Catalog(#[from] follow::Error),
}

fn known_streams(names: &[Name]) -> String {
    match names {
        [] => "no stream is declared yet: `headwater apply` a CREATE STREAM first".into(),
        names => {
            let names: Vec<&str> = names.iter().take(20).map(Name::as_str).collect();
            format!("known streams: {}", names.join(", "))
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::UnknownStream { .. } | Refusal::StreamDeleted { .. } => Code::NotFound,
            Refusal::Definition { .. } | Refusal::Partitions { .. } => Code::FailedPrecondition,
            Refusal::TooLarge { .. } | Refusal::TooMany { .. } => Code::OutOfRange,
            Refusal::Busy { .. } => Code::ResourceExhausted,
            Refusal::Malformed(_) | Refusal::Unsupported(_) => Code::InvalidArgument,
            Refusal::Stopping => Code::Unavailable,
            Refusal::Log(error) => return headwater_service::status(error.remedy(), &refusal),
            Refusal::Catalog(error) => return headwater_service::status(error.remedy(), &refusal),
        };
        Self::new(code, refusal.to_string())
    }
}

impl Refusal {
    /// The HTTP status, and whether the same request may succeed later.
    pub(crate) fn http(&self) -> (StatusCode, bool) {
        match self {
            Self::UnknownStream { .. } | Self::StreamDeleted { .. } => {
                (StatusCode::NOT_FOUND, false)
            }
            Self::Definition { .. } | Self::Partitions { .. } => (StatusCode::CONFLICT, false),
            Self::TooLarge { .. } | Self::TooMany { .. } => (StatusCode::PAYLOAD_TOO_LARGE, false),
            Self::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, true),
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, false),
            Self::Unsupported(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, false),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, true),
            Self::Log(error) => by_remedy(error.remedy()),
            Self::Catalog(error) => by_remedy(error.remedy()),
        }
    }
}

fn by_remedy(remedy: Remedy) -> (StatusCode, bool) {
    match remedy {
        Remedy::Retry | Remedy::StandDown => (StatusCode::SERVICE_UNAVAILABLE, true),
        Remedy::Correct => (StatusCode::CONFLICT, false),
        Remedy::Repair => (StatusCode::INTERNAL_SERVER_ERROR, false),
    }
}
