//! Starting the storage process, and ending it: sockets, the reactor's thread, the way between the two.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sheaf_block_core::ids::ReplicaId;

use crate::api::{Answer, Ask, parse_volume};
use crate::arbiter::{Arbiter, ArbiterError};
use crate::control;
use crate::inspect;
use crate::reactor::{Order, Reactor, Security, Setup};

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
    /// Certificate, key and the authority of peers, PEM.
    pub tls: Option<(PathBuf, PathBuf, PathBuf)>,
    /// The network between the nodes is trusted: no TLS.
    pub trusted_network: bool,
    /// Directory of the tie-breaking votes.
    pub arbiter: Option<PathBuf>,
    /// Do not use io_uring.
    pub threads: bool,
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
    let Some((cert, key, ca)) = &options.tls else {
        return if options.trusted_network || options.listen.is_none() {
            Ok(Security::Plain)
        } else {
            Err(StartError::Options(
                "peers can connect, so give certificates, or say that the network between the nodes is trusted",
            ))
        };
    };
    let tls = |error: &dyn std::fmt::Display| StartError::Tls(error.to_string());
    let chain = || -> Result<Vec<CertificateDer<'static>>, StartError> {
        let found = CertificateDer::pem_file_iter(cert).map_err(|error| tls(&error))?;
        found.collect::<Result<_, _>>().map_err(|error| tls(&error))
    };
    let secret = || PrivateKeyDer::from_pem_file(key).map_err(|error| tls(&error));
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca).map_err(|error| tls(&error))? {
        roots.add(root.map_err(|error| tls(&error))?).map_err(|error| tls(&error))?;
    }
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| tls(&error))?
        .with_webpki_verifier(verifier.build().map_err(|error| tls(&error))?)
        .with_client_auth_cert(chain()?, secret()?)
        .map_err(|error| tls(&error))?;
    let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| tls(&error))?
        .with_client_cert_verifier(clients.build().map_err(|error| tls(&error))?)
        .with_single_cert(chain()?, secret()?)
        .map_err(|error| tls(&error))?;
    Ok(Security::Tls(Arc::new(client), Arc::new(server)))
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
    let arbiter = options.arbiter.clone().map(Arbiter::open).transpose()?;
    let (orders, inbox) = sync_channel::<Order>(ORDERS);
    let setup = Setup {
        disks: options.disks.clone(),
        state: options.state.clone(),
        listener,
        security,
        arbiter,
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
