//! The registry that runtimes on this node ask.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::{Method, Request, Response};
use tracing::{debug, info};

use crate::answer::{self, Body};
use crate::asked::{Asked, Not};
use crate::counts::Reason;
use crate::forward::Forward;

/// The endpoint. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Endpoint(pub(crate) Arc<Forward>);

impl hyper::service::Service<Request<hyper::body::Incoming>> for Endpoint {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Self::Future {
        let forward = Arc::clone(&self.0);
        // The body is dropped unread: nothing that is served here has one.
        let (parts, _) = request.into_parts();
        Box::pin(async move { Ok(answer(&forward, &parts).await) })
    }
}

async fn answer(forward: &Forward, request: &http::request::Parts) -> Response<Body> {
    forward.counts.request();
    let answered = match Asked::read(request) {
        Ok(asked) => forward.answer(asked).await,
        // Podman asks this before anything else, and goes on to the upstream if it fails.
        Err(Not::Base) if forward.replicas.may_answer() => Ok(answer::base()),
        Err(Not::Base) => Err(Reason::NoReplica),
        Err(Not::Supported) => Ok(answer::unsupported()),
        Err(Not::Found) => Ok(answer::not_found()),
    };
    let (method, uri) = (&request.method, &request.uri);
    let mut response = match answered {
        Ok(response) => {
            debug!(status = response.status().as_u16(), "{method} {uri}");
            response
        }
        Err(reason) => {
            forward.counts.fallback(reason);
            info!(reason = reason.as_str(), "not here: {method} {uri}");
            answer::fallback(reason)
        }
    };
    if request.method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}
