//! Services that are not there yet: until they are, who calls them is told so and tries again.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use parking_lot::RwLock;
use tonic::{Status, service::RoutesBuilder};
use tower::ServiceExt as _;

use crate::Health;

/// The routes of one protocol, that come when the service has started.
#[derive(Clone)]
pub(crate) struct Late {
    health: Health,
    router: Arc<RwLock<Option<Router>>>,
}

impl Late {
    pub(crate) fn new(health: &Health) -> Self {
        Self { health: health.clone(), router: Arc::default() }
    }

    pub(crate) fn set(&self, router: Router) {
        *self.router.write() = Some(router);
    }

    /// A gRPC server's routes; what has not come yet is `UNAVAILABLE`.
    pub(crate) fn grpc(&self) -> RoutesBuilder {
        let late = self.clone();
        Router::new()
            .fallback(move |request: Request| {
                let late = late.clone();
                async move {
                    late.answer(request, |why| Status::unavailable(why).into_http::<Body>()).await
                }
            })
            .into()
    }

    /// An HTTP server's routes; what has not come yet is 503.
    pub(crate) fn http(&self) -> Router {
        let late = self.clone();
        Router::new().fallback(move |request: Request| {
            let late = late.clone();
            async move {
                late.answer(request, |why| {
                    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], why + "\n")
                        .into_response()
                })
                .await
            }
        })
    }

    async fn answer(
        &self,
        request: Request,
        refuse: impl FnOnce(String) -> Response,
    ) -> Result<Response, Infallible> {
        let router = self.router.read().clone();
        match router {
            Some(router) => router.oneshot(request).await,
            None => Ok(refuse(self.reason())),
        }
    }

    fn reason(&self) -> String {
        let unmet = self.health.conditions().into_iter();
        let reasons: Vec<_> =
            unmet.filter_map(|(name, reason)| Some(format!("{name}: {}", reason?))).collect();
        format!("starting, retry in a moment ({})", reasons.join("; "))
    }
}
