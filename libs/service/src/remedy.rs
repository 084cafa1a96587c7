//! The one place where a [`Remedy`] becomes a gRPC status or an exit code.

use std::fmt::Display;

use headwater_types::{Remedy, error_chain};
use tonic::{Code, Status};

use crate::{DataDirError, config, follow, task_failure::TaskFailure};

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

/// The status of an error of the log. Its message has the causes too.
pub fn log_status(error: &headwater_log::Error) -> Status {
    status(error.remedy(), error_chain(error))
}

/// The exit code of a process that ends with an error: 1 failed; 2 wrong usage or definition; 3 not
/// available now.
pub fn exit_code(remedy: Remedy) -> u8 {
    match remedy {
        Remedy::Retry => 3,
        Remedy::Correct => 2,
        Remedy::StandDown | Remedy::Repair => 1,
    }
}

/// Why a service does not start, and what would help. A service makes one from an error of a
/// library that this crate does not know.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    pub reason: String,
    pub remedy: Remedy,
}

/// The remedy of the outermost cause that has one; `None` if no cause has one.
pub fn remedy_of(error: &anyhow::Error) -> Option<Remedy> {
    error.chain().find_map(|cause| {
        let log = cause.downcast_ref::<headwater_log::Error>().map(headwater_log::Error::remedy);
        let follow = || cause.downcast_ref::<follow::Error>().map(follow::Error::remedy);
        let data = || cause.downcast_ref::<DataDirError>().map(DataDirError::remedy);
        let config = || cause.downcast_ref::<config::Error>().map(config::Error::remedy);
        let failure = || cause.downcast_ref::<TaskFailure>().and_then(|failure| failure.remedy);
        let refusal = || cause.downcast_ref::<Refusal>().map(|refusal| refusal.remedy);
        log.or_else(follow).or_else(data).or_else(config).or_else(failure).or_else(refusal)
    })
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
    fn the_remedy_is_found_among_the_causes() {
        let away = || headwater_log::Error::Unavailable("no broker".into());
        let cases = [
            (anyhow::Error::new(away()).context("cannot start"), Some(Remedy::Retry)),
            (
                follow::Error::Log { topic: "headwater.control", source: away() }.into(),
                Some(Remedy::Retry),
            ),
            (anyhow::anyhow!("nobody knows"), None),
        ];
        for (error, expected) in cases {
            assert_eq!(remedy_of(&error), expected, "{error:#}");
        }
    }
}
