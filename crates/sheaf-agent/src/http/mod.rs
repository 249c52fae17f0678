//! The agent's HTTPS listener: streams of machines, image uploads and exports.
//!
//! Every client shows a certificate of the cluster's CA; each route says which organizations may call it. Users do
//! not come here: the API server authenticates and authorises them, and relays the request with its path unchanged.
//! HTTP/1.1 only, since streams are upgrades. Other modules add their handlers to [`Routes`] before the listener
//! starts. Owns nothing but the connections, of which there are at most [`CONNECTIONS_MAX`].

mod route;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::StatusCode;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use sheaf_meta::status::Status;
use sheaf_runtime::TaskGroup;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

pub use route::{Params, Routes};

/// Connections at the same time.
pub const CONNECTIONS_MAX: usize = 1024;
/// For the TLS handshake, and for the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// Organization in the API server's certificate towards nodes.
pub const API_SERVER: &str = "sheaf:apiserver";
/// Organization in the certificates of nodes.
pub const NODES: &str = "system:nodes";

/// Any error of a body.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A request as it comes in.
pub type Request = http::Request<Incoming>;
/// An answer.
pub type Response = http::Response<BoxBody<Bytes, BodyError>>;
/// What a route leads to.
pub type Handler = Arc<dyn Fn(Request, Params) -> BoxFuture<'static, Response> + Send + Sync>;

/// An answer with a whole body.
pub fn answer(code: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(Full::new(body.into()).map_err(|e| match e {}).boxed());
    *response.status_mut() = code;
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(http::header::CONTENT_TYPE, value);
    }
    response
}

/// An answer in JSON.
pub fn answer_json(code: StatusCode, body: &serde_json::Value) -> Response {
    answer(code, "application/json", body.to_string())
}

/// An error, as Kubernetes clients read it.
pub fn answer_error(status: &Status) -> Response {
    if let Some(internal) = &status.internal {
        warn!(code = status.code, internal, "a request failed");
    }
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer_json(code, &status.to_json())
}

/// Answers on `listener` until the group is cancelled. `tls` comes from [`crate::identity::Identity::server_config`].
pub fn serve(listener: TcpListener, tls: Arc<ServerConfig>, routes: Routes, group: &TaskGroup) {
    let (acceptor, routes, inner) = (TlsAcceptor::from(tls), Arc::new(routes), group.clone());
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    if let Ok(address) = listener.local_addr() {
        info!(%address, "streams are served");
    }
    group.spawn(async move {
        loop {
            // Waits here rather than taking connections that it has no place for.
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let (tcp, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: others have to end first.
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, routes) = (acceptor.clone(), routes.clone());
            inner.spawn(async move {
                connection(tcp, from, acceptor, routes).await;
                drop(slot);
            });
        }
    });
}

async fn connection(tcp: TcpStream, from: SocketAddr, acceptor: TlsAcceptor, routes: Arc<Routes>) {
    let _ = tcp.set_nodelay(true);
    let tls = match timeout(HEAD_DEADLINE, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return debug!(%from, %error, "refused: no TLS, or no certificate of this cluster"),
        Err(_) => return debug!(%from, "refused: the TLS handshake took too long"),
    };
    let organizations = Arc::new(organizations(&tls));
    let service = service_fn(move |request: Request| {
        let answer = routes.dispatch(request, &organizations);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(tls), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        debug!(%from, %error, "a connection ended early");
    }
}

/// The organizations in the client's certificate, whose signature rustls has checked.
fn organizations(tls: &tokio_rustls::server::TlsStream<TcpStream>) -> Vec<String> {
    let (_, session) = tls.get_ref();
    let Some(der) = session.peer_certificates().and_then(<[_]>::first) else { return Vec::new() };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return Vec::new() };
    certificate.subject().iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect()
}
