//! Starting the storage process, and ending it: sockets, the reactor's thread, the way between the two.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use sheaf_block_core::ids::ReplicaId;

use crate::api::{Answer, Ask, parse_volume};
use crate::arbiter::{Arbiter, ArbiterError};
use crate::control;
use crate::inspect;
use crate::reactor::{Order, Reactor, Security, Setup};
use crate::votes::{Asker as VoteAsker, Votes};

/// Orders that wait for the reactor.
const ORDERS: usize = 64;

/// What the process is started with.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Roots of the disks; replicas lie in `replicas/` below.
    pub disks: Vec<PathBuf>,
    /// Where the process keeps what it must remember.
    pub state: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// Where peers connect; none: only replicas of this node.
    pub listen: Option<SocketAddr>,
    /// How peers know each other.
    pub tls: Option<Tls>,
    /// The network between the nodes is trusted: no TLS.
    pub trusted_network: bool,
    /// Directory of the tie-breaking votes.
    pub arbiter: Option<PathBuf>,
    /// Socket of whoever keeps these votes in the API; instead of a directory.
    pub votes: Option<PathBuf>,
    /// Do not use io_uring.
    pub threads: bool,
}

/// Certificates and keys, as files in PEM.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// What is shown to peers that connect here, and its key.
    pub server: (PathBuf, PathBuf),
    /// What is shown to peers that are connected to, and its key.
    pub client: (PathBuf, PathBuf),
    /// The authority that signs both.
    pub ca: PathBuf,
    /// Organization that a peer's certificate must name; the authority may sign others' certificates, too.
    pub group: Option<String>,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A contradiction in the options.
    #[error("{0}")]
    Options(&'static str),
    /// A file or socket.
    #[error("{doing} {path}")]
    Io {
        /// What.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something of the kernel's.
    #[error("starting the storage process")]
    Kernel(#[from] io::Error),
    /// The votes.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    /// Certificates.
    #[error("the certificates: {0}")]
    Tls(String),
}

fn failed(doing: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_path_buf();
    move |source| StartError::Io { doing, path, source }
}

fn security(options: &Options) -> Result<Security, StartError> {
    let Some(files) = &options.tls else {
        return if options.trusted_network || options.listen.is_none() {
            Ok(Security::Plain)
        } else {
            Err(StartError::Options(
                "peers can connect, so give certificates, or say that the network between the nodes is trusted",
            ))
        };
    };
    let tls = |error: &dyn std::fmt::Display| StartError::Tls(error.to_string());
    let chain = |of: &PathBuf| -> Result<Vec<CertificateDer<'static>>, StartError> {
        let found = CertificateDer::pem_file_iter(of).map_err(|error| tls(&error))?;
        found.collect::<Result<_, _>>().map_err(|error| tls(&error))
    };
    let secret = |of: &PathBuf| PrivateKeyDer::from_pem_file(of).map_err(|error| tls(&error));
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(&files.ca).map_err(|error| tls(&error))? {
        roots.add(root.map_err(|error| tls(&error))?).map_err(|error| tls(&error))?;
    }
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| tls(&error))?
        .with_webpki_verifier(verifier.build().map_err(|error| tls(&error))?)
        .with_client_auth_cert(chain(&files.client.0)?, secret(&files.client.1)?)
        .map_err(|error| tls(&error))?;
    let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| tls(&error))?
        .with_client_cert_verifier(Members::of(
            clients.build().map_err(|error| tls(&error))?,
            files.group.clone(),
        ))
        .with_single_cert(chain(&files.server.0)?, secret(&files.server.1)?)
        .map_err(|error| tls(&error))?;
    Ok(Security::Tls(Arc::new(client), Arc::new(server)))
}

/// Peers: whoever has a certificate of the authority in which the group is named.
#[derive(Debug)]
struct Members {
    inner: Arc<dyn ClientCertVerifier>,
    group: Option<String>,
}

impl Members {
    fn of(inner: Arc<dyn ClientCertVerifier>, group: Option<String>) -> Arc<dyn ClientCertVerifier> {
        Arc::new(Self { inner, group })
    }
}

impl ClientCertVerifier for Members {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let Some(group) = &self.group else { return Ok(verified) };
        let not_ours = || rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let (_, certificate) = x509_parser::parse_x509_certificate(end_entity).map_err(|_| not_ours())?;
        let mut groups = certificate.subject().iter_organization().filter_map(|name| name.as_str().ok());
        if groups.any(|name| name == group) { Ok(verified) } else { Err(not_ours()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Runs the process until `stop` returns.
pub fn run(options: &Options, stop: impl FnOnce()) -> Result<(), StartError> {
    if options.disks.is_empty() {
        return Err(StartError::Options("at least one disk is needed"));
    }
    let security = security(options)?;
    fs::create_dir_all(&options.state).map_err(failed("creating", &options.state))?;
    for disk in &options.disks {
        fs::create_dir_all(disk.join("replicas")).map_err(failed("creating", disk))?;
    }
    // One process for a state directory: the lock lasts as long as it does.
    let _lock = sheaf_disk::real::RealDir::open(&options.state)
        .map_err(|error| failed("locking", &options.state)(io::Error::other(error.explain())))?;
    let listener = match options.listen {
        None => None,
        Some(address) => {
            let path = PathBuf::from(address.to_string());
            Some(TcpListener::bind(address).map_err(failed("listening on", &path))?)
        }
    };
    let (votes, asked) = match (&options.arbiter, &options.votes) {
        (Some(directory), _) => (Some(Votes::Here(Arbiter::open(directory)?)), None),
        (None, Some(socket)) => {
            let (asker, asked) = VoteAsker::new();
            (Some(Votes::Elsewhere(asker)), Some((socket.clone(), asked)))
        }
        (None, None) => (None, None),
    };
    let (orders, inbox) = sync_channel::<Order>(ORDERS);
    let setup = Setup {
        disks: options.disks.clone(),
        state: options.state.clone(),
        listener,
        security,
        votes,
        threads: options.threads,
        inbox,
    };
    let (started, start) = sync_channel(1);
    let reactor =
        std::thread::Builder::new().name("reactor".into()).spawn(move || match Reactor::new(setup) {
            Ok((reactor, wake)) => {
                let _guard = AbortOnPanic;
                let _ = started.send(Ok(Arc::clone(&wake)));
                if let Err(error) = reactor.run(&wake) {
                    // Guests wait for a process that works; this one does not any more.
                    tracing::error!(%error, "the reactor cannot go on");
                    std::process::abort();
                }
            }
            Err(error) => drop(started.send(Err(error))),
        })?;
    let wake = start.recv().map_err(|_| io::Error::other("the reactor did not start"))??;
    let asker = Asker { orders, wake: Arc::clone(&wake) };
    if let Some((socket, asked)) = asked {
        let telling = asker.clone();
        asked.answer_by(socket, move |volume, answer| drop(telling.ask(Ask::Voted { volume, answer })))?;
    }
    let answering = asker.clone();
    control::serve(&options.control, move |ask| answering.answer(ask))
        .map_err(failed("listening on", &options.control))?;
    tracing::info!(control = %options.control.display(), "the storage process is ready");
    stop();
    asker.end();
    let _ = reactor.join();
    let _ = fs::remove_file(&options.control);
    Ok(())
}

/// A process whose reactor has broken an invariant must not go on without it: guests wait for the next one.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

#[derive(Clone)]
struct Asker {
    orders: SyncSender<Order>,
    wake: Arc<std::os::fd::OwnedFd>,
}

impl Asker {
    fn ask(&self, ask: Ask) -> Answer {
        let (reply, answer) = sync_channel(1);
        if self.orders.send((ask, reply)).is_err() {
            return Answer::Error("the storage process is ending".into());
        }
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        answer.recv().unwrap_or_else(|_| Answer::Error("the storage process is ending".into()))
    }

    fn answer(&self, ask: Ask) -> Answer {
        if let Ask::Adopt { path, .. } = &ask
            && path.is_dir()
        {
            // Whoever brought it may have written it a moment ago. Long, so by the caller's thread; no guest waits for it.
            if let Err(error) = sheaf_disk::real::sync_files(path) {
                return Answer::Error(error.explain());
            }
        }
        let Ask::Digest { volume, replica } = &ask else { return self.ask(ask) };
        // Long, and of files only: by the caller's thread.
        let result = parse_volume(volume).and_then(|volume| {
            let Answer::List { replicas, .. } = self.ask(Ask::List) else { return Err("no list".into()) };
            let wanted = (crate::api::show_volume(volume), ReplicaId(*replica).0);
            let found = replicas.into_iter().find(|at| (&at.volume, at.replica) == (&wanted.0, wanted.1));
            let found = found.ok_or_else(|| format!("replica {replica} is not on this node"))?;
            inspect::digest(&found.path)
        });
        result.map_or_else(Answer::Error, Answer::Digest)
    }

    /// Tells the reactor to end.
    fn end(self) {
        let (reply, _answer) = sync_channel(1);
        let _ = self.orders.send((Ask::End, reply));
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}
