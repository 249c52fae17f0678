//! A storage process of a test: its directory, its control socket, its end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use sheaf_storage::Options;
use sheaf_storage::api::{Answer, Ask, Attach, Digest, FrontendAt, ReplicaAt, VolumeStatus};
use sheaf_storage::control::{CallError, call};

const ROOT: &str = "SHEAF_TEST_STORAGE_ROOT";
const LISTEN: &str = "SHEAF_TEST_STORAGE_LISTEN";
const ARBITER: &str = "SHEAF_TEST_STORAGE_ARBITER";
const TLS: &str = "SHEAF_TEST_STORAGE_TLS";

/// The volume that tests use.
pub(crate) const VOLUME: &str = "6f6c0a4e-0000-4000-8000-000000000001";

pub(crate) fn run_if_asked() {
    let Ok(root) = std::env::var(ROOT) else { return };
    let root = PathBuf::from(root);
    let tls = std::env::var(TLS).ok().map(PathBuf::from);
    let options = Options {
        disks: vec![root.join("disk")],
        state: root.join("state"),
        control: root.join("control.sock"),
        listen: std::env::var(LISTEN).ok().and_then(|listen| listen.parse().ok()),
        trusted_network: tls.is_none(),
        tls: tls.map(|dir| {
            let pair = (dir.join("cert.pem"), dir.join("key.pem"));
            sheaf_storage::Tls { server: pair.clone(), client: pair, ca: dir.join("ca.pem"), group: None }
        }),
        arbiter: std::env::var(ARBITER).ok().map(PathBuf::from),
        votes: None,
        threads: false,
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    sheaf_storage::run(&options, || {
        // Until the test closes our standard input, properly; or kills us.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    })
    .expect("the storage process runs");
}

/// Waits until something is so.
pub(crate) fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + patience;
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) if Instant::now() > end => panic!("{what}: not within {patience:?}; last: {last}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
        }
    }
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    pub(crate) root: PathBuf,
    pub(crate) listen: SocketAddr,
    arbiter: PathBuf,
    tls: Option<PathBuf>,
    /// The network namespace that it lives in; none: ours.
    space: Option<String>,
    child: Option<Child>,
}

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// A port that nobody listens on now, on an address of this test process alone.
fn address() -> SocketAddr {
    let host = std::process::id() % 60_000;
    let port = 20_000 + NEXT_PORT.fetch_add(1, Ordering::SeqCst);
    SocketAddr::from(([127, 77, (host / 250) as u8, (host % 250 + 1) as u8], port))
}

impl Node {
    /// Starts one in `base/name`.
    pub(crate) fn start(base: &Path, name: &str, tls: Option<&Path>) -> Self {
        let root = base.join(name);
        std::fs::create_dir_all(root.join("disk")).expect("makes a directory");
        let arbiter = base.join("votes");
        let tls = tls.map(Path::to_path_buf);
        let mut node = Self { root, listen: address(), arbiter, tls, space: None, child: None };
        node.again();
        node
    }

    /// Starts one in a network namespace, at this address.
    pub(crate) fn start_in(base: &Path, name: &str, space: &str, listen: SocketAddr) -> Self {
        let root = base.join(name);
        std::fs::create_dir_all(root.join("disk")).expect("makes a directory");
        let (arbiter, space) = (base.join("votes"), Some(space.to_owned()));
        let mut node = Self { root, listen, arbiter, tls: None, space, child: None };
        node.again();
        node
    }

    /// Starts it after it ended.
    pub(crate) fn again(&mut self) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.root.join("log")).expect("opens");
        let program = std::env::current_exe().expect("is a program");
        let mut command = match &self.space {
            None => Command::new(program),
            Some(space) => {
                // It becomes the program: the child's pid is the storage process's.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", space]).arg(program);
                command
            }
        };
        command.args(["--exact", "is_the_process_of_other_tests", "--nocapture"]);
        command.env(ROOT, &self.root).env(LISTEN, self.listen.to_string()).env(ARBITER, &self.arbiter);
        if let Some(tls) = &self.tls {
            command.env(TLS, tls);
        }
        command.stdin(Stdio::piped()).stdout(log.try_clone().expect("clones")).stderr(log);
        self.child = Some(command.spawn().expect("starts"));
        until("the storage process answers", PATIENCE, || {
            self.ask(&Ask::List).map_err(|error| self.explain(&error))
        });
    }

    fn explain(&self, error: &CallError) -> String {
        let log = std::fs::read_to_string(self.root.join("log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        format!("{error}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        let child = self.child.as_ref().expect("runs");
        rustix::process::Pid::from_child(child)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("signals");
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends it properly.
    pub(crate) fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            let status = child.wait().expect("ends");
            assert!(status.success(), "{status}");
        }
    }

    pub(crate) fn ask(&self, ask: &Ask) -> Result<Answer, CallError> {
        call(&self.root.join("control.sock"), ask, Duration::from_secs(90))
    }

    pub(crate) fn done(&self, ask: &Ask) {
        match self.ask(ask) {
            Ok(Answer::Done) => {}
            Ok(other) => panic!("{ask:?}: {other:?}"),
            Err(error) => panic!("{ask:?}: {}", self.explain(&error)),
        }
    }

    /// Asks, kills the process so long after, and starts it again; what was answered.
    pub(crate) fn killed_over(&mut self, ask: Ask, after: Duration) -> Result<Answer, CallError> {
        let control = self.root.join("control.sock");
        let asking = std::thread::spawn(move || call(&control, &ask, Duration::from_secs(90)));
        std::thread::park_timeout(after);
        self.kill();
        let told = asking.join().expect("asks");
        self.again();
        told
    }

    pub(crate) fn refused(&self, ask: &Ask) -> String {
        match self.ask(ask) {
            Err(CallError::Refused(reason)) => reason,
            other => panic!("{ask:?} was not refused: {other:?}"),
        }
    }

    pub(crate) fn create(&self, replica: u32, bytes: u64, together_with: &[u32]) {
        self.done(&Ask::CreateReplica {
            volume: VOLUME.into(),
            name: "vol".into(),
            replica,
            bytes,
            disk: None,
            together_with: together_with.to_vec(),
            directory: None,
            base: None,
        });
    }

    pub(crate) fn nbd(&self) -> PathBuf {
        self.root.join("nbd.sock")
    }

    pub(crate) fn attachment(&self, bytes: u64, replicas: &[ReplicaAt]) -> Ask {
        Ask::Attach(Attach {
            volume: VOLUME.into(),
            name: "vol".into(),
            bytes,
            replicas: replicas.to_vec(),
            frontends: vec![FrontendAt::Nbd(self.nbd())],
        })
    }

    pub(crate) fn volume(&self) -> VolumeStatus {
        match self.ask(&Ask::List) {
            Ok(Answer::List { volumes, .. }) => volumes.into_iter().next().expect("the volume is attached"),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn digest(&self, replica: u32) -> Digest {
        match self.ask(&Ask::Digest { volume: VOLUME.into(), replica }) {
            Ok(Answer::Digest(digest)) => digest,
            other => panic!("{other:?}"),
        }
    }

    /// The only replica directory.
    pub(crate) fn replica_path(&self) -> PathBuf {
        let mut entries = std::fs::read_dir(self.root.join("disk/replicas")).expect("lists");
        entries.next().expect("has a replica").expect("lists").path()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            // It may be stopped.
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_child(child),
                rustix::process::Signal::CONT,
            );
        }
        self.kill();
    }
}

/// A directory on the disk that tests run on; gone at the end.
pub(crate) fn base() -> tempfile::TempDir {
    let here = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::Builder::new().prefix("storage-").tempdir_in(here).expect("a directory")
}
