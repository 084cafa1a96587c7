//! An error together with its causes.

use std::error::Error;

/// The error and its causes in one line, the root cause last: `the log is unavailable: timed out`.
pub fn error_chain(error: &dyn Error) -> String {
    let links: Vec<String> = error_links(error).map(ToString::to_string).collect();
    links.join(": ")
}

/// The error itself, then each cause of the one before, the root cause last.
pub fn error_links<'a>(error: &'a (dyn Error + 'a)) -> impl Iterator<Item = &'a (dyn Error + 'a)> {
    std::iter::successors(Some(error), |&link| Some(link.source()? as _))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Self>>,
    }

    #[test]
    fn an_error_is_printed_with_all_its_causes_the_root_last() {
        let root = Link { text: "no space left", source: None };
        let middle = Link { text: "cannot write segment 7", source: Some(root.into()) };
        let error = Link { text: "the log is unavailable", source: Some(middle.into()) };
        assert_eq!(
            error_chain(&error),
            "the log is unavailable: cannot write segment 7: no space left"
        );
    }

    #[test]
    fn an_error_without_a_cause_is_printed_alone() {
        assert_eq!(error_chain(&std::io::Error::other("no space left")), "no space left");
    }
}
