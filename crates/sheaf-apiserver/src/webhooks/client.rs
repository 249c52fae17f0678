//! Connections to one webhook: HTTPS with the authorities that its configuration names, reused, and bounded.
//!
//! A webhook that hangs, sends garbage or sends without end costs the request that asked it, and nothing else.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioIo},
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::{net::TcpStream, sync::Semaphore};

use super::trust::Trust;

/// Calls of one webhook under way at once; more wait, within the time that they have.
const AT_ONCE: usize = 64;
/// Connections kept for the next call.
const IDLE: usize = 8;
/// How long an idle connection is kept.
const IDLE_FOR: Duration = Duration::from_secs(60);
/// Largest answer. A patch is not larger than what it patches.
const MAX_ANSWER: usize = 4 << 20;
/// How much of a wrong answer is shown.
const SHOWN: usize = 200;

/// The connections.
pub(super) struct Client {
    http: legacy::Client<HttpsConnector<Dial>, Full<Bytes>>,
    dial: Dial,
    turns: Semaphore,
}

impl Client {
    /// A client that trusts these authorities (PEM), or those of the system if there are none.
    pub(super) fn new(authorities: &[u8]) -> Result<Self, String> {
        let named = certificates_of(authorities)?;
        let roots = if authorities.is_empty() { system_roots() } else { Arc::new(roots_of(&named)?) };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trust = Trust::new(roots, named, provider.clone())?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(trust))
            .with_no_client_auth();
        let dial = Dial::default();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http1()
            .wrap_connector(dial.clone());
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE)
            .pool_idle_timeout(IDLE_FOR)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(connector);
        Ok(Self { http, dial, turns: Semaphore::new(AT_ONCE) })
    }

    /// Posts a body and gives the answer's. `at` is where to connect instead of where the URL's host leads.
    pub(super) async fn post(
        &self,
        url: &str,
        at: Option<SocketAddr>,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, String> {
        let what = |why: &str| format!("Post \"{url}\": {why}");
        tokio::time::timeout(within, self.exchange(url, at, body))
            .await
            .map_err(|_| what("context deadline exceeded"))?
            .map_err(|why| what(&why))
    }

    async fn exchange(&self, url: &str, at: Option<SocketAddr>, body: Bytes) -> Result<Bytes, String> {
        let uri = Uri::try_from(url).map_err(|e| e.to_string())?;
        let _turn = self.turns.acquire().await.map_err(|e| e.to_string())?;
        self.dial.direct(at);
        let mut request = http::Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json.clone());
        request.headers_mut().insert(header::ACCEPT, json);
        let agent = HeaderValue::from_static("kube-apiserver-admission");
        request.headers_mut().insert(header::USER_AGENT, agent);
        let response = self.http.request(request).await.map_err(|e| chain(&e))?;
        let code = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|e| format!("the answer cannot be read: {e}"))?.to_bytes();
        match code {
            StatusCode::OK => Ok(body),
            code => {
                let text: String = String::from_utf8_lossy(&body).chars().take(SHOWN).collect();
                Err(format!("the server answered {code}: {}", text.trim()))
            }
        }
    }
}

/// An error with what led to it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        let text = next.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        source = next.source();
    }
    out
}

fn certificates_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    read.map_err(|e| format!("clientConfig.caBundle: {e}"))
}

fn roots_of(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).map_err(|e| format!("clientConfig.caBundle: {e}"))?;
    }
    if roots.is_empty() {
        return Err("clientConfig.caBundle has no certificate".into());
    }
    Ok(roots)
}

/// Read once: there are many, and they seldom change.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(error = %error, "certificates of the system cannot be read");
        }
        roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    };
    ROOTS.get_or_init(read).clone()
}

/// Opens connections: to where it was directed, or else to where the name leads.
#[derive(Clone, Default)]
struct Dial(Arc<Mutex<Option<SocketAddr>>>);

impl Dial {
    fn direct(&self, at: Option<SocketAddr>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

impl tower::Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<TcpStream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Box::pin(async move {
            let stream = match at {
                Some(address) => TcpStream::connect(address).await,
                None => {
                    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                    TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await
                }
            }?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}
