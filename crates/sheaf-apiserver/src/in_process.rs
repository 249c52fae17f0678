//! The server as a `tower::Service`: clients in the same process, without sockets, with an identity given to them.
//!
//! `kube::Client::new(service, "default")` takes it as it is. Nothing but the transport differs from HTTPS: the same
//! authentication result, authorization, handlers and streaming bodies.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::{
    authn::UserInfo,
    core::{Caller, Core},
    http::{BoxError, Response, boxed},
};

/// A client's end. Cheap to clone.
#[derive(Clone)]
pub struct InProcess {
    core: Arc<Core>,
    user: UserInfo,
    identities: bool,
}

/// Marks a request of [`InProcess::identities`].
#[derive(Clone, Copy)]
pub(crate) struct Identities;

impl InProcess {
    pub(crate) fn new(core: Arc<Core>, user: UserInfo) -> Self {
        Self { core, user, identities: false }
    }

    /// For who follows every kind and needs to know which objects there are, to whom they belong, and whether they go: watches of metadata
    /// tell name, namespace, UID, owners, finalizers and the time of deletion only, and nothing of changes that leave these as they were,
    /// which are most.
    pub fn identities(self) -> Self {
        Self { identities: true, ..self }
    }
}

impl<B> tower::Service<http::Request<B>> for InProcess
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (core, user) = (self.core.clone(), self.user.clone());
        let mut request = request.map(boxed);
        if self.identities {
            request.extensions_mut().insert(Identities);
        }
        Box::pin(async move { Ok(core.serve(Caller::Inside(user), request).await) })
    }
}
