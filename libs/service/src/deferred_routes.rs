//! Routes of a service that is still starting. Until the service has started, every call gets the
//! answer that it should be tried again, with the conditions that the process waits for.

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

/// The routes of one protocol, which are set when the service has started.
#[derive(Clone)]
pub(crate) struct DeferredRoutes {
    health: Health,
    router: Arc<RwLock<Option<Router>>>,
}

impl DeferredRoutes {
    pub(crate) fn new(health: &Health) -> Self {
        Self { health: health.clone(), router: Arc::default() }
    }

    pub(crate) fn set(&self, router: Router) {
        *self.router.write() = Some(router);
    }

    /// The routes of a gRPC server. Until they are set, a call is answered with `UNAVAILABLE`.
    pub(crate) fn grpc(&self) -> RoutesBuilder {
        let routes = self.clone();
        Router::new()
            .fallback(move |request: Request| {
                let routes = routes.clone();
                async move {
                    let refuse = |why: String| Status::unavailable(why).into_http::<Body>();
                    routes.answer(request, refuse).await
                }
            })
            .into()
    }

    /// The routes of an HTTP server. Until they are set, a request is answered with 503.
    pub(crate) fn http(&self) -> Router {
        let routes = self.clone();
        Router::new().fallback(move |request: Request| {
            let routes = routes.clone();
            async move {
                let refuse = |why: String| {
                    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], why + "\n")
                        .into_response()
                };
                routes.answer(request, refuse).await
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
