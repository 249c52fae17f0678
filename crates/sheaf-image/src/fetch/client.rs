//! One HTTP/1.1 request on a connection of its own, with a limit for every wait.
//!
//! No pool, no cookies, no redirects (that is [`super::plan`]'s matter): a download needs one connection, and wants
//! to know when it stalls.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::{FetchError, plan};

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// For the connection, TLS included.
    pub connect: Duration,
    /// For the head of the answer, and for every next piece of the body.
    pub stall: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Waits { connect: Duration::from_secs(15), stall: Duration::from_secs(30) }
    }
}

/// An answer whose body is still to come; the connection ends with it.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    _connection: Aborted,
}

/// Ends its task when it is dropped.
struct Aborted(JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The certificates that this machine trusts, from where OpenSSL looks for them (`SSL_CERT_FILE`, `SSL_CERT_DIR`,
/// /etc/ssl/certs), together with `extra` ones.
pub fn system_tls(extra: &[rustls::pki_types::CertificateDer<'static>]) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some certificates of the system cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    roots.add_parsable_certificates(extra.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap_or_else(|_| unreachable!("ring has the cipher suites of TLS 1.2 and 1.3"))
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

pub(super) async fn get(
    uri: &Uri,
    mut headers: HeaderMap,
    tls: &Arc<ClientConfig>,
    waits: &Waits,
) -> Result<Answer, FetchError> {
    let url = plan::show(uri);
    let authority = uri.authority().ok_or_else(|| FetchError::Url { url: url.clone() })?;
    let https = uri.scheme_str() == Some("https");
    let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let connect_error = |source: std::io::Error| FetchError::Connect { url: url.clone(), source };

    if let Some((user, _)) = authority.as_str().rsplit_once('@') {
        let user = percent_decoded(user);
        let value = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(user));
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(header::AUTHORIZATION, value);
        }
    }
    let host_header = match authority.port() {
        Some(port) => format!("{}:{port}", authority.host()),
        None => authority.host().to_owned(),
    };
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let mut request =
        Request::get(target).body(Empty::<Bytes>::new()).map_err(|_| FetchError::Url { url: url.clone() })?;
    headers.insert(
        header::HOST,
        HeaderValue::from_str(&host_header).map_err(|_| FetchError::Url { url: url.clone() })?,
    );
    headers
        .insert(header::USER_AGENT, HeaderValue::from_static(concat!("sheaf/", env!("CARGO_PKG_VERSION"))));
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    // Compressed on the way it could not be resumed, and its length would not be known.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    *request.headers_mut() = headers;

    let timed_out = |what| FetchError::Stalled { url: url.clone(), what };
    let connecting = async {
        let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(connect_error)?;
        if !https {
            return handshake(TokioIo::new(tcp), &url).await;
        }
        let name = ServerName::try_from(host.clone()).map_err(|_| FetchError::Url { url: url.clone() })?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await;
        let stream = stream.map_err(|source| FetchError::Tls {
            url: url.clone(),
            no_roots: source.to_string().contains("UnknownIssuer"),
            source,
        })?;
        handshake(TokioIo::new(stream), &url).await
    };
    let (mut sender, connection) =
        tokio::time::timeout(waits.connect, connecting).await.map_err(|_| timed_out("the connection"))??;
    let response = tokio::time::timeout(waits.stall, sender.send_request(request))
        .await
        .map_err(|_| timed_out("an answer"))?
        .map_err(|source| FetchError::Broken { url: url.clone(), source })?;
    Ok(Answer { response, _connection: connection })
}

async fn handshake<T>(
    io: T,
    url: &str,
) -> Result<(hyper::client::conn::http1::SendRequest<Empty<Bytes>>, Aborted), FetchError>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(|source| FetchError::Broken { url: url.to_owned(), source })?;
    // Its errors come out of the body as well.
    let task = tokio::spawn(async move { drop(connection.await) });
    Ok((sender, Aborted(task)))
}

/// `%40` and the like in a user name or a password.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = &tail[2..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}
