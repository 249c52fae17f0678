//! A reverse proxy to nodes: a request goes on unchanged over TLS, with the API server's client certificate, and
//! upgrades are carried byte for byte.
//!
//! Knows neither kinds nor what it carries. Owns its client certificate, which it issues to itself and renews.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, StatusCode, header, uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use sheaf_meta::status::Status;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::{
    http::{Outcome, Request, Response, boxed},
    pki::{Ca, PkiError},
    session::life::{self, Life},
};

/// A node has this long to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// And this long to begin its answer, unless the request's body is still on its way.
const ANSWER: Duration = Duration::from_secs(30);
/// The certificate is issued anew when it is older than this.
const RENEW_AFTER_S: i64 = 30 * 86_400;
/// The organization by which agents know the API server.
pub const ORGANIZATION: &str = "sheaf:apiserver";

/// Headers between two neighbours, which a proxy does not pass on.
const HOP_BY_HOP: &[header::HeaderName] = &[
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];

/// Where a request goes.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The node's name, which its certificate carries.
    pub node: String,
    /// Where its agent listens.
    pub address: SocketAddr,
}

/// The proxy.
pub struct Relay {
    ca: Arc<Ca>,
    client: RwLock<(Timestamp, Arc<ClientConfig>)>,
    stop: CancellationToken,
}

impl Relay {
    /// Issues the first certificate. Streams end when `stop` is cancelled.
    pub fn new(ca: Arc<Ca>, stop: CancellationToken) -> Result<Self, PkiError> {
        let config = client_config(&ca)?;
        Ok(Self { ca, client: RwLock::new((Timestamp::now(), config)), stop })
    }

    fn config(&self) -> Result<Arc<ClientConfig>, PkiError> {
        let now = Timestamp::now();
        {
            let (issued, config) = &*self.client.read().unwrap_or_else(PoisonError::into_inner);
            if (now.as_second() - issued.as_second()).abs() < RENEW_AFTER_S {
                return Ok(config.clone());
            }
        }
        let fresh = client_config(&self.ca)?;
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = (now, fresh.clone());
        Ok(fresh)
    }

    /// Sends a request on, with `path` in place of its own, and gives the node's answer.
    pub async fn forward(&self, to: &Destination, path: &PathAndQuery, mut request: Request) -> Outcome {
        let upgrade =
            request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        let life = Life::of(&request);
        let (mut sender, connection) = self.connect(to).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(error = %error, "the connection to a node ended");
            }
        });
        let (parts, body) = request.into_parts();
        let mut onward = http::Request::new(body);
        *onward.method_mut() = parts.method;
        *onward.uri_mut() = path.clone().into();
        *onward.headers_mut() = onward_headers(&parts.headers, to, upgrade.is_some());
        let sending = sender.send_request(onward);
        // A large upload has no answer before its end: only what should be quick is timed.
        let answer = if upgrade.is_some() || parts.headers.get(header::CONTENT_LENGTH).is_none() {
            tokio::time::timeout(ANSWER, sending).await.map_err(|_| {
                unreachable_node(504, to, &format!("it began no answer within {} s", ANSWER.as_secs()))
            })?
        } else {
            sending.await
        };
        let mut answer = answer.map_err(|e| unreachable_node(502, to, &e.to_string()))?;
        match upgrade {
            Some(client) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let node = hyper::upgrade::on(&mut answer);
                tokio::spawn(join(client, node, self.stop.clone(), life));
                Ok(back(answer, true))
            }
            _ => Ok(back(answer, false)),
        }
    }

    async fn connect(
        &self,
        to: &Destination,
    ) -> Result<
        (
            hyper::client::conn::http1::SendRequest<crate::http::Body>,
            hyper::client::conn::http1::Connection<
                TokioIo<tokio_rustls::client::TlsStream<TcpStream>>,
                crate::http::Body,
            >,
        ),
        Status,
    > {
        let connector = TlsConnector::from(self.config().map_err(Status::internal)?);
        let name = ServerName::try_from(to.node.clone())
            .unwrap_or_else(|_| ServerName::IpAddress(to.address.ip().into()));
        let dial = async {
            let stream = TcpStream::connect(to.address).await?;
            stream.set_nodelay(true)?;
            connector.connect(name, stream).await
        };
        let stream = tokio::time::timeout(CONNECT, dial)
            .await
            .map_err(|_| unreachable_node(503, to, &format!("no connection within {} s", CONNECT.as_secs())))?
            .map_err(|e| unreachable_node(503, to, &e.to_string()))?;
        hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| unreachable_node(502, to, &e.to_string()))
    }
}

fn unreachable_node(code: u16, to: &Destination, why: &str) -> Status {
    let reason = match code {
        504 => "Timeout",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    let message = format!("the agent of node {} at {} cannot be reached: {why}", to.node, to.address);
    Status::new(code, reason, message)
}

fn client_config(ca: &Ca) -> Result<Arc<ClientConfig>, PkiError> {
    let tls = |e: Box<dyn std::error::Error + Send + Sync>| PkiError::Tls(e);
    let pair = ca.issue_client("system:apiserver", ORGANIZATION, crate::pki::LEAF_DAYS)?;
    let mut roots = RootCertStore::empty();
    roots.add(ca.cert_der().clone()).map_err(|e| tls(e.into()))?;
    let chain = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| tls(e.into()))?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).map_err(|e| tls(e.into()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| tls(e.into()))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|e| tls(e.into()))?;
    Ok(Arc::new(config))
}

/// The client's headers without its credentials: the node trusts the API server, not the user.
fn onward_headers(from: &HeaderMap, to: &Destination, upgrade: bool) -> HeaderMap {
    let mut headers = from.clone();
    // `Expect` was answered here, when the body was first asked for.
    for name in HOP_BY_HOP.iter().chain(&[header::AUTHORIZATION, header::COOKIE, header::EXPECT]) {
        headers.remove(name);
    }
    if !upgrade {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
    let offered: Vec<String> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|p| p.trim().to_string())
        .filter(|p| !p.is_empty() && !p.starts_with("base64url.bearer.authorization.k8s.io."))
        .collect();
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    if let Ok(value) = HeaderValue::from_str(&offered.join(", "))
        && !offered.is_empty()
    {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    let host = HeaderValue::from_str(&to.address.to_string());
    headers.insert(header::HOST, host.unwrap_or(HeaderValue::from_static("node")));
    headers
}

fn back(answer: http::Response<hyper::body::Incoming>, switched: bool) -> Response {
    let mut response = answer.map(boxed);
    if !switched {
        for name in HOP_BY_HOP.iter().chain(&[header::CONNECTION, header::UPGRADE]) {
            response.headers_mut().remove(name);
        }
    }
    response
}

/// Carries bytes both ways until either side ends, or the session that the stream was opened in.
async fn join(
    client: hyper::upgrade::OnUpgrade,
    node: hyper::upgrade::OnUpgrade,
    stop: CancellationToken,
    life: Option<Life>,
) {
    let both = async {
        let (client, node) = tokio::try_join!(client, node).map_err(|e| e.to_string())?;
        let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
        tokio::io::copy_bidirectional(&mut client, &mut node).await.map_err(|e| e.to_string())
    };
    if let Some(Err(error)) = life::run(&stop, life, both).await {
        tracing::debug!(error, "a relayed stream ended");
    }
}
