//! The HTTP routes for operators and probes: `/healthz`, `/readyz`, `/metrics`.

use std::fmt::Write as _;

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};

use crate::{Health, Metrics, metrics};

/// `/healthz` answers while the process lives, `/readyz` with 200 if every condition holds and else
/// with 503 and the reasons, `/metrics` with OpenMetrics text.
pub fn admin_router(health: &Health, metrics: &Metrics) -> Router {
    let (health, metrics) = (health.clone(), metrics.clone());
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(move || std::future::ready(readiness(&health))))
        .route(
            "/metrics",
            get(move || {
                std::future::ready(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.encode()))
            }),
        )
}

/// Has one line per condition, so that `curl` shows what is missing.
fn readiness(health: &Health) -> impl IntoResponse + use<> {
    let conditions = health.conditions();
    let ready = conditions.iter().all(|(_, reason)| reason.is_none());
    let mut text = String::from(if ready { "ready\n" } else { "not ready\n" });
    for (name, reason) in &conditions {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name}: {}", reason.as_deref().unwrap_or("ok"));
    }
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: &Router, path: &str) -> (StatusCode, String) {
        let response =
            router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_is_refused_with_its_reasons() {
        let (health, metrics) = (Health::new(), Metrics::new());
        let router = admin_router(&health, &metrics);
        let (log, catalog) = (health.condition("log"), health.condition("catalog"));
        log.ready();
        catalog.not_ready("the control topic is read up to 3 of 17");

        let unready = ask(&router, "/readyz").await;
        catalog.ready();
        let ready = ask(&router, "/readyz").await;

        let text = "not ready\n  catalog: the control topic is read up to 3 of 17\n  log: ok\n";
        assert_eq!(unready, (StatusCode::SERVICE_UNAVAILABLE, text.to_owned()));
        assert_eq!(ready, (StatusCode::OK, "ready\n  catalog: ok\n  log: ok\n".to_owned()));
        assert_eq!(ask(&router, "/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
        assert!(ask(&router, "/metrics").await.1.ends_with("# EOF\n"));
    }
}
