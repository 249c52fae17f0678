//! The server as a whole: opens the PKI, listens, and owns the tasks of its connections.
//!
//! Does not know what a request means ([`Core`] does). HTTP/1.1 and HTTP/2 share one TLS port by ALPN; upgrades
//! (WebSocket) come over HTTP/1.1.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use jiff::Timestamp;
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use sheaf_meta::kind::KindInfo;
use sheaf_store::{Store, StoreError};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::{Audit, AuditError, AuditOptions},
    authn::UserInfo,
    body::Unread,
    bootstrap,
    core::{Caller, Core, Parts},
    crds, csr,
    extension::Admission,
    http::{Body, BoxError, boxed},
    in_process::InProcess,
    kubevirt, namespaces,
    pages::Pages,
    pki::{Ca, PkiError, kubeconfig, serving::Serving},
    policy,
    rbac::{self, Access},
    registry::Registry,
    reviews,
    session::{Ends, Sessions},
    tokens::{self, Tokens},
    webhooks::Webhooks,
};

/// Connections that may be open at the same time.
const MAX_CONNECTIONS: usize = 4096;
/// A client has this long for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// And this long for each request's headers, the wait on an idle HTTP/1.1 connection included.
const HEADERS: Duration = Duration::from_secs(60);
/// A connection on which nothing was asked for so long is closed, if it can be told so without harm (HTTP/2; on HTTP/1.1
/// `HEADERS` does it).
const IDLE: Duration = Duration::from_secs(300);
/// Requests that a client may reset at once before its connection is closed.
const MAX_RESETS: usize = 100;
/// Bytes of one answer that wait for the client to take them.
const MAX_UNSENT: usize = 256 * 1024;
/// Bytes of request headers.
const MAX_HEADER: usize = 64 * 1024;
/// How long open requests may go on after a shutdown has begun.
const GRACE: Duration = Duration::from_secs(5);
/// How often the serving certificate is looked at. By the clock of the wall, since a machine that slept for a month
/// has not waited a day by the monotonic one.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

/// How a server is started.
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds `pki/` and `admin.kubeconfig`.
    pub data_dir: PathBuf,
    /// Where to listen. Port 0 takes any.
    pub listen: SocketAddr,
    /// Names and addresses for the serving certificate beyond those found on the machine.
    pub extra_sans: Vec<String>,
    /// The URL in the administrator's kubeconfig; made from the address where it is `None`.
    pub server_url: Option<String>,
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificates.
    #[error("the certificates cannot be prepared")]
    Pki(#[from] PkiError),
    /// The socket.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The store.
    #[error("the store cannot be read")]
    Store(#[from] StoreError),
    /// The audit log.
    #[error("requests cannot be written down")]
    Audit(#[from] AuditError),
    /// TLS.
    #[error("the TLS configuration cannot be made")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The objects that every cluster has could not be made.
    #[error("cannot make {object}: {status}")]
    Bootstrap {
        /// What was to be made.
        object: String,
        /// What the server answered itself.
        status: String,
    },
}

/// A running server.
pub struct ApiServer {
    core: Arc<Core>,
    address: SocketAddr,
    url: String,
    ca: Arc<Ca>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl ApiServer {
    /// Opens the PKI, makes the objects that every cluster has, and listens. When this returns, the server is ready.
    pub async fn start(
        config: Config,
        store: Arc<dyn Store>,
        rows: Vec<KindInfo>,
    ) -> Result<Self, StartError> {
        Self::start_with(config, store, rows, None).await
    }

    /// As [`ApiServer::start`], writing an audit log.
    pub async fn start_with(
        config: Config,
        store: Arc<dyn Store>,
        rows: Vec<KindInfo>,
        audit: Option<AuditOptions>,
    ) -> Result<Self, StartError> {
        let audit = audit.map(Audit::open).transpose()?;
        let pki_dir = config.data_dir.join("pki");
        let ca = Ca::load_or_create(&pki_dir)?;
        let mut extra = config.extra_sans.clone();
        if !config.listen.ip().is_unspecified() {
            extra.push(config.listen.ip().to_string());
        }
        let serving = Serving::open(ca.clone(), pki_dir.clone(), extra)?;
        let tls = tls_config(&ca, serving.clone())?;
        let failed = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let url = config.server_url.clone().unwrap_or_else(|| default_url(address));
        let kubeconfig_path = config.data_dir.join("admin.kubeconfig");
        kubeconfig::ensure_admin(&kubeconfig_path, &url, &ca, Timestamp::now())?;

        let stop = CancellationToken::new();
        let machines = Arc::new(kubevirt::Kubevirt::new(&ca, stop.clone())?);
        let sessions = Arc::new(Sessions::new(&config.data_dir, Timestamp::now().as_second()));
        let tokens = Arc::new(Tokens::open(&pki_dir, &url)?);
        let access = Access::start(store.clone(), stop.clone()).await?;
        let core = Core::new(Parts {
            store,
            registry: Registry::new(rows),
            access,
            tokens: tokens.clone(),
            audit,
            extensions: vec![
                Arc::new(reviews::Reviews),
                Arc::new(tokens::Endpoints(tokens.clone())),
                Arc::new(tokens::Reviews(tokens.clone())),
                machines.clone(),
                sessions.clone(),
            ],
            admission: admission_plugins(),
            ca: ca.clone(),
            sessions: sessions.clone(),
            stop: stop.clone(),
        })
        .await?;
        let definitions = crds::Controller::load(&core).await?;
        bootstrap::run(&core).await?;
        policy::bootstrap(&core).await;
        if let Err(status) = sessions.start(&core, &url).await {
            tracing::warn!(message = %status, cause = status.internal, "signing in to the dashboard is not prepared");
        }
        let tasks = TaskTracker::new();
        let (using, until) = (machines.keep_usage(core.clone()), stop.clone());
        tasks.spawn(async move { until.run_until_cancelled(using).await });
        let (keeping, until) = (sessions.keep(core.clone()), stop.clone());
        tasks.spawn(async move { until.run_until_cancelled(keeping).await });
        tasks.spawn(accept(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            core.clone(),
            stop.clone(),
            tasks.clone(),
        ));
        tasks.spawn(renew(serving, ca.clone(), kubeconfig_path, url.clone(), stop.clone()));
        let (defining, until) = (crds::ensure(core.clone()), stop.clone());
        tasks.spawn(async move { until.run_until_cancelled(defining).await });
        let (aggregating, until) = (rbac::keep_aggregated(core.clone()), stop.clone());
        tasks.spawn(async move { until.run_until_cancelled(aggregating).await });
        let (filling, until) = (tokens::keep_filled(core.clone(), tokens), stop.clone());
        tasks.spawn(async move { until.run_until_cancelled(filling).await });
        let (checking, until) = (crate::policies::keep_checked(core.clone()), stop.clone());
        tasks.spawn(async move { until.run_until_cancelled(checking).await });
        let until = stop.clone();
        tasks.spawn(async move { until.run_until_cancelled(definitions.run()).await });
        tracing::info!(%address, "the API server listens");
        Ok(Self { core, address, url, ca, stop, tasks })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The URL in the administrator's kubeconfig.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The certificate authority, for the certificates controller and for join tokens.
    pub fn ca(&self) -> &Arc<Ca> {
        &self.ca
    }

    /// A client in this process, as `user`. See [`UserInfo::new`].
    pub fn in_process(&self, user: UserInfo) -> InProcess {
        InProcess::new(self.core.clone(), user)
    }

    /// Gives what is no API to the dashboard from now on. The first call counts.
    pub fn serve_pages(&self, pages: Pages) {
        let _ = self.core.pages.set(pages);
    }

    /// Ends watches, lets open requests finish for a short while, and closes.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!("connections were still open at the end of the grace period");
        }
    }
}

/// What looks at every write, in this order.
fn admission_plugins() -> Vec<Arc<dyn Admission>> {
    let mut plugins: Vec<Arc<dyn Admission>> = vec![
        Arc::new(namespaces::Lifecycle::default()),
        Arc::new(csr::Requests),
        Arc::new(crds::Definitions),
    ];
    plugins.push(Arc::new(crate::kubevirt::Machines));
    let mut policies = policy::plugins();
    let last = policies.pop();
    plugins.extend(policies);
    // After all that the server itself does to an object, and before what counts it.
    plugins.push(Arc::new(crate::policies::Mutating::default()));
    plugins.push(Arc::new(Webhooks::default()));
    // These judge what is going to be stored, whoever changed it.
    plugins.push(Arc::new(crate::policies::Policies::default()));
    plugins.extend([Arc::new(rbac::Escalation) as Arc<dyn Admission>, Arc::new(rbac::node::Restriction)]);
    plugins.extend(last);
    plugins
}

fn default_url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    format!("https://{}", SocketAddr::new(ip, address.port()))
}

fn tls_config(ca: &Ca, serving: Arc<Serving>) -> Result<rustls::ServerConfig, StartError> {
    let wrong = |e: Box<dyn std::error::Error + Send + Sync>| StartError::Tls(e);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.cert_der().clone()).map_err(|e| wrong(e.into()))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| wrong(e.into()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(e.into()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

async fn renew(
    serving: Arc<Serving>,
    ca: Arc<Ca>,
    kubeconfig_path: PathBuf,
    url: String,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(tokio::time::sleep(RENEWAL_CHECK)).await.is_some() {
        let now = Timestamp::now();
        match serving.ensure(now) {
            Ok(true) => tracing::info!("the serving certificate was renewed"),
            Ok(false) => {}
            Err(error) => tracing::error!(error = %error, "the serving certificate cannot be renewed"),
        }
        if let Err(error) = kubeconfig::ensure_admin(&kubeconfig_path, &url, &ca, now) {
            tracing::error!(error = %error, "the administrator's kubeconfig cannot be renewed");
        }
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    core: Arc<Core>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match stop.run_until_cancelled(listener.accept()).await {
            None => return,
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) => {
                // Out of file descriptors, most likely: wait for some to come back.
                tracing::warn!(error = %error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, core, stop) = (acceptor.clone(), core.clone(), stop.clone());
        tasks.spawn(async move {
            connection(stream, acceptor, core, stop).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, core: Arc<Core>, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let ends = stream.peer_addr().and_then(|peer| Ok(Ends { peer, local: stream.local_addr()? })).ok();
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(error = %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let user = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(UserInfo::from_certificate);
    let open = Arc::new(Open::default());
    let counted = open.clone();
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        let busy = Busy::begin(&counted);
        if let Some(ends) = ends {
            request.extensions_mut().insert(ends);
        }
        let (core, caller) = (core.clone(), Caller::Remote(user.clone()));
        async move {
            let unread = Unread::default();
            let lent = request.version() < http::Version::HTTP_2;
            let request = request.map(|body| if lent { boxed(unread.lend(body)) } else { boxed(body) });
            let response = core.serve(caller, request).await;
            unread.drain().await;
            // An answer that streams counts until its end.
            Ok::<_, std::convert::Infallible>(response.map(|body| Counted { body, _busy: busy }))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(MAX_HEADER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(MAX_HEADER).unwrap_or(u32::MAX))
        .max_concurrent_streams(250)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .max_send_buf_size(MAX_UNSENT)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    // In a set of its own, which is looked into when something in it was woken: each request wakes this task several times.
    let mut end = FuturesUnordered::from_iter([end_of(&open, &stop)]);
    let result = tokio::select! {
        result = &mut serving => result,
        _ = end.next() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = %error, "connection ended");
    }
}

/// Waits until a connection is to end: the server stops, or nobody asks for anything.
async fn end_of(open: &Open, stop: &CancellationToken) {
    let idle = async {
        let mut look = tokio::time::interval(IDLE / 4);
        while open.idle() < IDLE {
            look.tick().await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = idle => {}
    }
}

/// What is being answered on a connection, and since when nothing is.
struct Open {
    answers: AtomicUsize,
    /// Milliseconds since `begun`.
    last: AtomicU64,
    begun: Instant,
}

impl Default for Open {
    fn default() -> Self {
        Self { answers: AtomicUsize::new(0), last: AtomicU64::new(0), begun: Instant::now() }
    }
}

impl Open {
    fn idle(&self) -> Duration {
        if self.answers.load(Ordering::Acquire) > 0 {
            return Duration::ZERO;
        }
        self.begun.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Acquire)))
    }
}

/// An answer on its way.
struct Busy(Arc<Open>);

impl Busy {
    fn begin(open: &Arc<Open>) -> Self {
        open.answers.fetch_add(1, Ordering::AcqRel);
        Self(open.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last.store(now, Ordering::Release);
        self.0.answers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A body that counts as an answer until it is dropped.
struct Counted {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
