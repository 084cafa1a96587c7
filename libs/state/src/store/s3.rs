//! Opens an S3-compatible store with the environment variables that all S3 clients share.

use std::time::Duration;

use object_store::{
    BackoffConfig, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
};
use url::Url;

/// Retries of one request, and the time limit for all of them. The callers of the store retry at
/// longer intervals and have other work while the store is unavailable.
const RETRIES: usize = 4;
const RETRYING: Duration = Duration::from_secs(20);

/// Configures the client from the variables; an empty one counts as not set. Returns the reason if
/// they cannot be used.
pub(super) fn open(
    bucket: &str,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<AmazonS3, String> {
    let mut builder = AmazonS3Builder::new().with_retry(RetryConfig {
        max_retries: RETRIES,
        retry_timeout: RETRYING,
        backoff: BackoffConfig::default(),
    });
    for (name, value) in variables {
        let name = name.to_ascii_lowercase();
        if name.starts_with("aws_")
            && !value.is_empty()
            && let Ok(key) = name.parse()
        {
            builder = builder.with_config(key, value);
        }
    }
    builder = builder.with_bucket_name(bucket);
    let value = |key| builder.get_config_value(&key);
    match (value(AmazonS3ConfigKey::AccessKeyId), value(AmazonS3ConfigKey::SecretAccessKey)) {
        (Some(_), None) => {
            return Err("AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not".into());
        }
        (None, Some(_)) => {
            return Err("AWS_SECRET_ACCESS_KEY is set, and AWS_ACCESS_KEY_ID is not".into());
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    let endpoint = value(AmazonS3ConfigKey::S3Endpoint).or(value(AmazonS3ConfigKey::Endpoint));
    if let Some(endpoint) = endpoint {
        let url = Url::parse(&endpoint).ok().filter(|url| url.has_host());
        // The message does not repeat the value: it may be a secret that was put into the wrong
        // variable.
        let Some(url) = url else {
            return Err("AWS_ENDPOINT_URL is not a URL: write https://host:port".into());
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "AWS_ENDPOINT_URL must not have credentials: they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                    .into(),
            );
        }
        // An explicit http:// is taken as consent to an unencrypted connection.
        if url.scheme() == "http" {
            builder = builder.with_allow_http(true);
        }
    }
    builder.build().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_that_cannot_work_is_refused_with_the_variable_and_without_what_it_holds() {
        let opened = |variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|&(name, value)| (name.into(), value.into()));
            open("bucket", variables).map(drop)
        };
        let (id, key) = (("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "hush"));
        opened(&[id, key]).unwrap();
        opened(&[id, key, ("AWS_ENDPOINT_URL", ""), ("AWS_REGION", "")]).unwrap();
        opened(&[id, key, ("AWS_ENDPOINT_URL_S3", "http://store:9000")]).unwrap();
        for (variables, reason) in [
            (&[id][..], "AWS_SECRET_ACCESS_KEY is not"),
            (&[key, ("AWS_ACCESS_KEY_ID", "")], "AWS_ACCESS_KEY_ID is not"),
            (&[id, key, ("AWS_ENDPOINT_URL", "hush")], "AWS_ENDPOINT_URL is not a URL"),
            (&[id, key, ("AWS_ENDPOINT", "http://AKIA:hush@store")], "must not have credentials"),
        ] {
            let error = opened(variables).unwrap_err();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("AKIA") && !error.contains("hush"), "{error}");
        }
    }
}
