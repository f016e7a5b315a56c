//! What a server does not serve is said before anybody is asked who they are: the contract is of all services.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use crate::status;

/// A service behind which there are only these gRPC services.
#[derive(Clone, Debug)]
pub(super) struct Served<S> {
    names: Arc<[&'static str]>,
    inner: S,
}

impl<S> Served<S> {
    pub(super) fn new(names: impl IntoIterator<Item = &'static str>, inner: S) -> Self {
        Self {
            names: names.into_iter().collect(),
            inner,
        }
    }

    fn has(&self, path: &str) -> bool {
        let service = path
            .strip_prefix('/')
            .and_then(|rest| rest.split_once('/'))
            .map(|(service, _)| service);
        service.is_some_and(|service| self.names.contains(&service))
    }
}

impl<S> Service<Request<Body>> for Served<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if self.has(request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        let refusal = status::not_served(request.uri().path());
        Box::pin(async { Ok(refusal.into_http()) })
    }
}
