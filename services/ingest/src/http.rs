//! `POST /v1/streams/{stream}/events`.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use headwater_proto::ingest::v1::{AppendResponse, AppendResult, append_result::Outcome};
use serde::{Serialize, Serializer, ser::SerializeSeq as _};
use tracing::Instrument as _;

use crate::{
    append::Appender,
    body::{self, Format},
    refusal::Refusal,
};

pub(crate) fn router(appender: Arc<Appender>) -> Router {
    // axum's own limit is not used: ours also holds for a decompressed body.
    Router::new().route("/v1/streams/{stream}/events", post(events)).with_state(appender)
}

async fn events(
    State(appender): State<Arc<Appender>>,
    Path(stream): Path<String>,
    request: Request,
) -> Response {
    let span = tracing::info_span!("append", stream, http = true);
    match append(&appender, &stream, request).instrument(span).await {
        Ok(response) => answer(&appender, &response),
        Err(refusal) => refuse(&appender, &refusal),
    }
}

async fn append(
    appender: &Appender,
    stream: &str,
    request: Request,
) -> Result<AppendResponse, Refusal> {
    let (parts, body) = request.into_parts();
    let config = appender.config();
    // Whatever can be refused without reading the body is refused before that.
    let format = Format::of(&parts.headers)?;
    let stream = appender.catalog().stream(stream).await?;
    let (body, reserved) = body::read(&parts.headers, body, config, appender.budget()).await?;
    let events = format.split(&body, config.max_events.get())?;
    Ok(appender.submit(stream, events, reserved).await?.finish().await)
}

/// The status is 200 if all events were accepted, 207 if some were, 422 if none was, and 503 if
/// none was and sending them again may help.
fn answer(appender: &Appender, response: &AppendResponse) -> Response {
    let retryable = |result: &AppendResult| match &result.outcome {
        Some(Outcome::Rejected(rejected)) => rejected.retryable,
        Some(Outcome::Accepted(_)) | None => false,
    };
    let status = match (response.accepted, response.rejected) {
        (_, 0) => StatusCode::OK,
        (0, _) if response.results.iter().any(retryable) => StatusCode::SERVICE_UNAVAILABLE,
        (0, _) => StatusCode::UNPROCESSABLE_ENTITY,
        (_, _) => StatusCode::MULTI_STATUS,
    };
    let body = AppendBody {
        accepted: response.accepted,
        rejected: response.rejected,
        token: &response.token,
        results: Results(&response.results),
    };
    json(appender, status, status == StatusCode::SERVICE_UNAVAILABLE, &body)
}

fn refuse(appender: &Appender, refusal: &Refusal) -> Response {
    #[derive(Serialize)]
    struct Error {
        error: String,
    }
    let (status, retry) = refusal.http();
    let mut response = json(appender, status, retry, &Error { error: refusal.to_string() });
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        // The rest of the body is not read, so the connection cannot be used again.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn json(appender: &Appender, status: StatusCode, retry: bool, body: &impl Serialize) -> Response {
    let mut text = match serde_json::to_vec(body) {
        Ok(text) => text,
        Err(error) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        }
    };
    text.push(b'\n');
    let mut response = (status, text).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if retry {
        let seconds = appender.config().retry_after.as_secs_f64().ceil().max(1.0) as u64;
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

#[derive(Serialize)]
struct AppendBody<'a> {
    accepted: u64,
    rejected: u64,
    token: &'a str,
    results: Results<'a>,
}

struct Results<'a>(&'a [AppendResult]);

/// One event's result: its place in the log, or why it was rejected.
#[derive(Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Line<'a> {
    Accepted { partition: u32, offset: u64 },
    Rejected { field: &'a str, reason: &'a str, retryable: bool },
}

impl Serialize for Results<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(Some(self.0.len()))?;
        for result in self.0 {
            match &result.outcome {
                Some(Outcome::Accepted(place)) => sequence.serialize_element(&Line::Accepted {
                    partition: place.partition,
                    offset: place.offset,
                })?,
                Some(Outcome::Rejected(rejected)) => {
                    sequence.serialize_element(&Line::Rejected {
                        field: &rejected.field,
                        reason: &rejected.reason,
                        retryable: rejected.retryable,
                    })?
                }
                None => {}
            }
        }
        sequence.end()
    }
}
