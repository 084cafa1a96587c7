//! Turns errors of the `object_store` client into messages for a person.
//!
//! The client reports a failure as a chain of errors. Each link repeats those below it, with times,
//! counts and the server's whole answer, which may contain the id of an access key. The message
//! made here is short, contains no secret, and is equal for equal failures, so that a caller that
//! retries can log it once.

use headwater_types::error_links;

use crate::Error;

/// The address at which a machine in Amazon's cloud asks for its own role.
const MACHINE_ROLE: &str = "http://169.254.169.254";

/// Error codes with which a server refuses access, whatever the HTTP status.
const REFUSALS: &[&str] = &[
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
];

/// The error of a write, a list or a removal.
pub(super) fn store_error(location: &str, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let links: Vec<String> = error_links(&error).map(ToString::to_string).collect();
    let answer = links.iter().find_map(|link| ServerAnswer::of(link));
    let origin = links.iter().find_map(|link| origin(link));
    let location = location.to_owned();
    if let Some(answer) = &answer
        && answer.code == "NoSuchBucket"
    {
        return Error::NoBucket { url: location };
    }
    if answer.is_none() && origin.as_deref() == Some(MACHINE_ROLE) {
        let source = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, and the machine has no role of its own";
        return Error::StoreRefused { location, source: source.into() };
    }
    let refused = match &answer {
        Some(answer) => answer.is_refusal(),
        None => matches!(error, E::PermissionDenied { .. } | E::Unauthenticated { .. }),
    };
    let text = match answer {
        Some(answer) => answer.text,
        None => links.into_iter().next_back().unwrap_or_default(),
    };
    let source = match origin {
        Some(origin) => format!("{origin}: {text}").into(),
        None => text.into(),
    };
    match refused {
        true => Error::StoreRefused { location, source },
        false => Error::Store { location, source },
    }
}

/// The error of a read. A missing object existed before, so it is [`Error::Gone`].
pub(super) fn read_error(location: &str, error: object_store::Error) -> Error {
    let missing = matches!(error, object_store::Error::NotFound { .. });
    let error = store_error(location, error);
    if missing && matches!(error, Error::Store { .. }) {
        return Error::Gone { location: location.to_owned() };
    }
    error
}

/// A server's refusal of a request.
struct ServerAnswer {
    status: u16,
    /// The error code of S3; empty if the answer has none.
    code: String,
    /// For a person.
    text: String,
}

impl ServerAnswer {
    /// Parses the text of an error. The client exposes the server's answer in no other way.
    fn of(link: &str) -> Option<Self> {
        if let Some(rest) = link.strip_prefix("Server returned non-2xx status code: ") {
            let (status, body) = rest.split_once(": ").unwrap_or((rest, ""));
            let number = status.split(' ').next()?.parse().ok()?;
            return Some(Self::new(number, status, body));
        }
        if let Some(body) = link.strip_prefix("Server returned error response: ") {
            return Some(Self::new(200, "200 OK", body));
        }
        // One key of a batch deletion failed.
        let rest = link.strip_prefix("DeleteObjects request failed for key ")?;
        let (rest, code) = rest.strip_suffix(')')?.rsplit_once(" (code: ")?;
        let text = format!("{code}: {rest}");
        Some(Self { status: 200, code: code.to_owned(), text })
    }

    fn new(number: u16, status: &str, body: &str) -> Self {
        let code = element(body, "Code").unwrap_or_default();
        let text = match element(body, "Message") {
            Some(message) if !code.is_empty() => format!("{code}: {message}"),
            Some(_) | None if !code.is_empty() => code.clone(),
            // The answer is not S3's XML; the server may not be a store at all.
            Some(_) | None => format!("it answers {status}"),
        };
        Self { status: number, code, text }
    }

    fn is_refusal(&self) -> bool {
        matches!(self.status, 401 | 403) || REFUSALS.contains(&self.code.as_str())
    }
}

/// The text of the first element with that name; `None` if it is long or nested.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    (text.len() <= 300 && !text.contains('<')).then(|| text.trim().to_owned())
}

/// The server of a request, out of the error that summarises its attempts.
fn origin(link: &str) -> Option<String> {
    let rest = link.strip_prefix("Error performing ")?;
    let (method, rest) = rest.split_once(' ')?;
    let url = rest.split(' ').next()?;
    let shouted = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    let url = url::Url::parse(url).ok().filter(|_| shouted)?;
    let origin = url.origin();
    origin.is_tuple().then(|| origin.ascii_serialization())
}

#[cfg(test)]
mod tests {
    use std::error::Error as StdError;

    use headwater_types::{Remedy, error_chain};

    use super::*;

    #[derive(Debug)]
    struct Link(&'static str, Option<Box<Link>>);

    impl std::fmt::Display for Link {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl StdError for Link {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            self.1.as_deref().map(|link| link as _)
        }
    }

    /// An error as the client wraps it after the server has answered.
    fn answered(text: &'static str) -> object_store::Error {
        let root = Link(text, None);
        let tries = Link(
            "Error performing GET http://store:9000/b/x?list-type=2 in 3.14ms - …",
            Some(root.into()),
        );
        object_store::Error::Generic { store: "S3", source: Box::new(tries) }
    }

    #[test]
    fn a_refusal_is_one_by_status_or_by_code_and_repeats_neither_key_nor_signature() {
        for text in [
            "Server returned non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch\
             </Code><Message>They do not match.</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>",
            "Server returned non-2xx status code: 400 Bad Request: <Error><Code>ExpiredToken</Code></Error>",
            "Server returned non-2xx status code: 401 Unauthorized: ",
            "DeleteObjects request failed for key a/b: Access Denied (code: AccessDenied)",
        ] {
            let error = store_error("s3://b/x", answered(text));
            assert!(matches!(error, Error::StoreRefused { .. }), "{text}: {error:?}");
            assert_eq!(error.remedy(), Remedy::Correct);
            let text = error_chain(&error);
            assert!(text.contains("check the credentials") && !text.contains("AKIA"), "{text}");
            assert!(text.contains("http://store:9000: "), "{text}");
        }
    }

    #[test]
    fn a_bucket_that_is_missing_is_not_taken_for_a_file_that_was_removed() {
        let text = "Server returned non-2xx status code: 404 Not Found: <Error><Code>NoSuchBucket</Code></Error>";
        let source = Box::new(Link(text, None));
        let missing = object_store::Error::NotFound { path: "x".into(), source };
        let error = read_error("s3://nowhere/x/y", missing);
        assert!(error.to_string().contains("bucket of s3://nowhere/x/y does not exist"), "{error}");
        assert_eq!(error.remedy(), Remedy::Correct);
        let listed = store_error("s3://nowhere/x", answered(text));
        assert!(matches!(listed, Error::NoBucket { .. }), "{listed:?}");

        let key = "Server returned non-2xx status code: 404 Not Found: <Error><Code>NoSuchKey</Code></Error>";
        let gone = || {
            let source = Box::new(Link(key, None));
            object_store::Error::NotFound { path: "x".into(), source }
        };
        assert!(matches!(read_error("s3://b/x", gone()), Error::Gone { .. }));
        assert!(
            matches!(store_error("s3://b/x", gone()), Error::Store { .. }),
            "a failed write is not a missing file"
        );
    }

    #[test]
    fn a_server_that_is_away_is_named_with_the_root_of_it_and_always_in_the_same_words() {
        let away = |took: &'static str| {
            let root = Link("Connection refused (os error 111)", None);
            let sending = Link("HTTP error: error sending request", Some(root.into()));
            let source = Box::new(Link(took, Some(sending.into())));
            error_chain(&store_error(
                "s3://b/x",
                object_store::Error::Generic { store: "S3", source },
            ))
        };
        let one = away(
            "Error performing PUT http://store:9000/b/x in 2.1s, after 4 retries - HTTP error",
        );
        assert_eq!(
            one,
            "the store of checkpoints cannot be used at s3://b/x: http://store:9000: Connection refused (os error 111)"
        );
        assert_eq!(
            away(
                "Error performing PUT http://store:9000/b/x in 3.7s, after 5 retries - HTTP error"
            ),
            one
        );
    }

    #[test]
    fn without_credentials_it_says_so_instead_of_naming_an_address_that_nobody_knows() {
        let root = Link("operation timed out", None);
        let link =
            "Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error";
        let source = Box::new(Link(link, Some(root.into())));
        let error = store_error("s3://b/x", object_store::Error::Generic { store: "S3", source });
        assert!(
            error_chain(&error).contains("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set"),
            "{error:?}"
        );
    }
}
