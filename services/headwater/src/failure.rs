//! The failure of a command: a message for the person and an exit code for scripts.

use std::fmt;

use tonic::Code;

/// The exit codes, on which scripts rely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Failed = 1,
    Usage = 2,
    Unavailable = 3,
    Inconclusive = 4,
}

/// A failure with the message that the person at the terminal reads.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
    /// The server does not have the method that was called.
    pub unimplemented: bool,
}

impl Failure {
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string(), unimplemented: false }
    }

    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let exit = match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::OutOfRange
            | Code::Unimplemented => Exit::Usage,
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Cancelled => Exit::Unavailable,
            Code::Ok
            | Code::Unknown
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Exit::Failed,
        };
        let message = match status.message() {
            "" => format!("the server answered {}", status.code()),
            message => message.to_owned(),
        };
        Self { exit, message, unimplemented: status.code() == Code::Unimplemented }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

pub type Result<T = ()> = std::result::Result<T, Failure>;
