//! Why a request is not answered, in words for the person who sent it.

use std::fmt::Display;

use headwater_service::status;
use headwater_types::{GenerationId, Offset, PartitionId, Remedy, token::InvalidToken};
use tonic::{Code, Status};

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no view {view:?}; {}", listed(.known))]
    UnknownView { view: String, known: Vec<String> },

    #[error("view {view} was deleted{how}: apply a definition of it to have it again")]
    ViewDeleted { view: String, how: String },

    #[error(
        "view {view} has no generation {generation:?}; `headwater get generations {view}` lists those that can be read"
    )]
    UnknownGeneration { view: String, generation: String },

    #[error(
        "generation {generation} of view {view} is {role}: its state is gone or no longer kept up to date"
    )]
    GenerationGone { view: String, generation: GenerationId, role: &'static str },

    #[error("the key of view {view} is ({shape}), but {problem}")]
    Key { view: String, shape: String, problem: String },

    #[error(transparent)]
    InvalidKey(#[from] headwater_engine::read::InvalidKey),

    #[error("view {view} has no window: ask without window_from and window_to")]
    NoWindow { view: String },

    #[error(transparent)]
    Token(#[from] InvalidToken),

    #[error(
        "the token {token} is for stream {stream}, but {reads}: pass tokens of the streams that are read"
    )]
    ForeignToken { token: String, stream: String, reads: String },

    #[error(
        "the token {token} names partition {partition}, but stream {stream} has {partitions} partitions"
    )]
    TokenPartition { token: String, partition: PartitionId, stream: String, partitions: usize },

    #[error("the page token is damaged or belongs to another view: start again without it")]
    PageToken,

    #[error(
        "the definition of view {view} changed its key since this page token was given: start again without it"
    )]
    PageTokenOutdated { view: String },

    #[error(
        "resume_token {token:?} {problem}: pass the resume_token of the last message of a watch of view \
         {view}, or leave it out to begin with what changes now"
    )]
    ResumeToken { view: String, token: String, problem: String },

    #[error(
        "initial and resume_token are both set: initial asks for all rows, resume_token for those that \
         changed since; set one of them"
    )]
    InitialAndResume,

    #[error(
        "generation {generation} of view {view} has not reached what was asked for in time: {reason} \
         position {wanted} in partition {partition}, and its shard is at {present}; ask again, or with a \
         longer timeout"
    )]
    NotReached {
        view: String,
        generation: GenerationId,
        partition: PartitionId,
        wanted: Offset,
        present: Offset,
        reason: &'static str,
    },

    #[error(
        "partition {partition} of generation {generation} of view {view} has no state here yet: {source}; ask again \
         when its processor has started"
    )]
    NoState {
        view: String,
        generation: GenerationId,
        partition: PartitionId,
        #[source]
        source: headwater_state::Error,
    },

    #[error(
        "partition {partition} of generation {generation} of view {view} is not on the disk of this instance: \
         {processor} said last that it keeps it in data directory {directory}, but {problem}; check that \
         {processor} runs, and that a query instance which shares its data directory runs and can be reached \
         from here at the address that it advertises"
    )]
    ShardUnreachable {
        view: String,
        generation: GenerationId,
        partition: PartitionId,
        processor: String,
        directory: String,
        problem: String,
    },

    /// Sent to other instances, which then look again where the shard is.
    #[error("partition {partition} of generation {generation} has moved to another data directory")]
    Moved { generation: GenerationId, partition: PartitionId },

    /// Sent to other instances whose knowledge of this one is outdated.
    #[error("this instance shares data directory {ours:?}, not {asked:?}")]
    OtherDirectory { asked: String, ours: String },

    #[error("a request to read a shard is wrong: {0}")]
    ReadShard(String),

    /// Another instance failed, or its answer cannot be used.
    #[error(
        "partition {partition} of generation {generation} is read by {instance} at {address}, which says: {message}"
    )]
    Peer {
        generation: GenerationId,
        partition: PartitionId,
        instance: String,
        address: String,
        code: Code,
        message: String,
    },

    #[error("partition {partition} of generation {generation}: {source}")]
    State {
        generation: GenerationId,
        partition: PartitionId,
        #[source]
        source: headwater_state::Error,
    },

    #[error("view {view}: {source}")]
    Engine {
        view: String,
        #[source]
        source: headwater_engine::Error,
    },

    #[error(
        "the control records hold a definition of view {view} that this version cannot plan: {reason}"
    )]
    Definition { view: String, reason: String },

    #[error("the control topic cannot be followed: {0}")]
    Control(String),

    #[error("{what} is not a read-only query: send one SELECT, or EXPLAIN of one")]
    NotASelect { what: String },

    #[error("the SQL text has {bytes} bytes, more than the {limit} that are accepted")]
    SqlTooLong { bytes: usize, limit: usize },

    /// DataFusion's own words: the statement is wrong, or cannot be carried out on these rows.
    #[error("{0}")]
    Sql(String),

    /// An [`Error`] that went through DataFusion, or an internal error of DataFusion.
    #[error("{message}")]
    Carried { code: Code, message: String },

    #[error("{0}; select, group or sort less at a time")]
    Memory(String),

    #[error(
        "the answer was not complete within query.max-duration and was stopped; ask for less, or raise that"
    )]
    TooLong,

    #[error("{limit} {what} run now, and that is the limit; ask again")]
    Busy { what: &'static str, limit: usize },

    #[error("rows cannot be sent: {0}")]
    Encode(#[from] arrow::error::ArrowError),

    #[error("the server is shutting down; ask again elsewhere")]
    ShuttingDown,

    #[error("the thread that answered this request ended early; its panic is in the log")]
    Panicked,
}

fn listed(known: &[String]) -> String {
    match known {
        [] => "there are none yet: `headwater apply -f FILE` creates one".into(),
        known => format!("there are: {}", known.join(", ")),
    }
}

impl Error {
    pub(crate) fn engine(view: impl Display, source: headwater_engine::Error) -> Self {
        Self::Engine { view: view.to_string(), source }
    }

    /// Whether the same shard may be read a moment later: its processor may be about to create it,
    /// or the instance that has it may be about to start.
    #[allow(clippy::wildcard_enum_match_arm, reason = "all others say no")]
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::NoState { .. } | Self::ShardUnreachable { .. } => true,
            Self::State { source, .. } => source.remedy() == Remedy::Retry,
            _ => false,
        }
    }

    /// Whether the deletion of the view may be the cause of this error of a shard.
    pub(crate) fn may_follow_from_deletion(&self) -> bool {
        matches!(
            self,
            Self::NotReached { .. }
                | Self::NoState { .. }
                | Self::ShardUnreachable { .. }
                | Self::Peer { .. }
                | Self::State { .. }
        )
    }

    pub(crate) fn code(&self) -> Code {
        match self {
            Self::UnknownView { .. }
            | Self::ViewDeleted { .. }
            | Self::UnknownGeneration { .. } => Code::NotFound,
            Self::GenerationGone { .. } => Code::FailedPrecondition,
            Self::Key { .. }
            | Self::InvalidKey(_)
            | Self::NoWindow { .. }
            | Self::Token(_)
            | Self::ForeignToken { .. }
            | Self::TokenPartition { .. }
            | Self::PageToken
            | Self::PageTokenOutdated { .. }
            | Self::ResumeToken { .. }
            | Self::InitialAndResume
            | Self::NotASelect { .. }
            | Self::SqlTooLong { .. }
            | Self::ReadShard(_)
            | Self::Sql(_) => Code::InvalidArgument,
            Self::NotReached { .. } | Self::TooLong => Code::DeadlineExceeded,
            Self::NoState { .. }
            | Self::ShardUnreachable { .. }
            | Self::Moved { .. }
            | Self::Control(_)
            | Self::ShuttingDown => Code::Unavailable,
            // A code of its own: the peer is at work, and not the instance that was asked for.
            Self::OtherDirectory { .. } => Code::Aborted,
            Self::State { source, .. } => remedy_code(source.remedy()),
            Self::Engine { source, .. } => remedy_code(source.remedy()),
            Self::Carried { code, .. } | Self::Peer { code, .. } => *code,
            Self::Definition { .. } | Self::Encode(_) | Self::Panicked => Code::Internal,
            Self::Memory(_) | Self::Busy { .. } => Code::ResourceExhausted,
        }
    }
}

fn remedy_code(remedy: Remedy) -> Code {
    status(remedy, "").code()
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
