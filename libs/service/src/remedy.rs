//! The one place where a [`Remedy`] becomes a gRPC status or an exit code.

use std::fmt::Display;

use headwater_types::Remedy;
use tonic::{Code, Status};

/// The gRPC status of an error.
///
/// | remedy | code | what clients do |
/// | --- | --- | --- |
/// | retry | `UNAVAILABLE` | try again with backoff |
/// | correct | `INVALID_ARGUMENT` | show it to a person |
/// | stand down | `ABORTED` | look up who serves now |
/// | repair | `DATA_LOSS` | stop, and page a person |
pub fn status(remedy: Remedy, message: impl Display) -> Status {
    let code = match remedy {
        Remedy::Retry => Code::Unavailable,
        Remedy::Correct => Code::InvalidArgument,
        Remedy::StandDown => Code::Aborted,
        Remedy::Repair => Code::DataLoss,
    };
    Status::new(code, message.to_string())
}

/// The status of an error of the log, with the causes that it has.
pub fn log_status(error: &headwater_log::Error) -> Status {
    status(error.remedy(), chain(error))
}

/// The exit code of a process that ends with an error: 1 failed, 2 wrong usage or definition, 3 not
/// available now.
pub fn exit_code(remedy: Remedy) -> u8 {
    match remedy {
        Remedy::Retry => 3,
        Remedy::Correct => 2,
        Remedy::StandDown | Remedy::Repair => 1,
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_remedy_has_its_own_status() {
        let codes = [Remedy::Retry, Remedy::Correct, Remedy::StandDown, Remedy::Repair]
            .map(|r| status(r, "x").code());
        assert_eq!(
            codes,
            [Code::Unavailable, Code::InvalidArgument, Code::Aborted, Code::DataLoss]
        );
    }

    #[test]
    fn causes_are_told_with_their_error() {
        #[derive(Debug, thiserror::Error)]
        #[error("the log is unavailable")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(
            chain(&Outer(std::io::Error::other("no space"))),
            "the log is unavailable: no space"
        );
    }
}
