//! Downloads: over HTTP(S), resumed where they broke off, through the checks of [`crate::intake`].
//!
//! One call of [`Fetcher::fetch`] brings one file here, or says in one sentence why not. It goes on by itself after
//! short interruptions ([`plan::plan_retry`]); whether to try again after that is the caller's decision. Dropping the
//! future stops it; a later call goes on where it was, also in another process.
//!
//! State: `<dest>.part` and `<dest>.part.json` ([`plan::PartState`]), which say no more than what is durable.

mod client;
pub mod plan;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use rustls::ClientConfig;
use tokio::sync::watch;

pub use client::{Waits, system_tls};
pub use plan::{PartState, Patience, Version};

use crate::digest::Checksum;
use crate::intake::{Demands, Intake, IntakeError, Stored, part_path};
use crate::upload::Pipe;
use plan::{Reply, Resume};

/// Redirects in a row.
const MAX_REDIRECTS: usize = 10;
/// What came in is made durable and recorded whenever this many bytes have come.
const RECORD_BYTES: u64 = 64 << 20;

/// Why a file could not be fetched. The texts complete "cannot be fetched: ".
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No address that we can ask at.
    #[error("{url:?} is not a valid http or https address")]
    Url {
        /// What was given.
        url: String,
    },
    /// No such host, or nobody listens there.
    #[error("cannot connect to {url}")]
    Connect {
        /// Where.
        url: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// No trust in the server.
    #[error("no secure connection to {url}{hint}",
        hint = if *no_roots { " (its certificate is signed by an authority that this node does not know)" } else { "" })]
    Tls {
        /// Where.
        url: String,
        /// Whether it is about an unknown authority.
        no_roots: bool,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The server says no.
    #[error("HTTP {status} from {url}")]
    Status {
        /// What it says.
        status: StatusCode,
        /// Which.
        url: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// A redirect that leads nowhere.
    #[error("{url} redirects, but {why}")]
    Redirect {
        /// Where.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// We do not unpack.
    #[error("{url} sends the file compressed (Content-Encoding: {coding})")]
    Encoded {
        /// How.
        coding: String,
        /// Where.
        url: String,
    },
    /// The server does not keep to the protocol.
    #[error("{url} gave {what}")]
    Protocol {
        /// Where.
        url: String,
        /// What it did.
        what: &'static str,
    },
    /// Nothing came for too long.
    #[error("waited too long for {what} of {url}")]
    Stalled {
        /// Where.
        url: String,
        /// For what.
        what: &'static str,
    },
    /// The connection broke.
    #[error("the transfer from {url} broke off")]
    Broken {
        /// Where.
        url: String,
        /// How.
        #[source]
        source: hyper::Error,
    },
    /// The file is not acceptable, or cannot be stored.
    #[error(transparent)]
    Intake(#[from] IntakeError),
}

impl FetchError {
    /// Whether waiting a little may help.
    pub fn is_transient(&self) -> bool {
        match self {
            FetchError::Connect { .. } | FetchError::Stalled { .. } | FetchError::Broken { .. } => true,
            FetchError::Status { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            // A transfer that was just given up still writes its last bytes.
            FetchError::Intake(IntakeError::Busy) => true,
            // Ended too early: a proxy that gave up does that.
            FetchError::Intake(IntakeError::Length { declared, received }) => received < declared,
            _ => false,
        }
    }
}

/// What to fetch.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where it is; `http` or `https`. A user and password in it are sent as basic authentication.
    pub url: String,
    /// Its checksum, if the user gave one.
    pub checksum: Option<Checksum>,
    /// A header with which the server tells the file's SHA-512; used between nodes.
    pub checksum_header: Option<HeaderName>,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the server has answered and sends.
    pub connected: bool,
    /// Bytes that came, those of earlier attempts included.
    pub received: u64,
    /// Length of the whole, if the server tells.
    pub total: Option<u64>,
}

impl Progress {
    /// From 0 to 99: 100 is for files that are complete, checked and named.
    pub fn percent(&self) -> u8 {
        match self.total {
            Some(total) if total > 0 => (u128::from(self.received) * 100 / u128::from(total)).min(99) as u8,
            _ => 0,
        }
    }
}

/// Fetches files.
#[derive(Clone)]
pub struct Fetcher {
    /// Whom to trust, and as whom to appear.
    pub tls: Arc<ClientConfig>,
    /// How long to wait for what.
    pub waits: Waits,
    /// How often to try.
    pub patience: Patience,
    /// Bytes that must stay free on the file system.
    pub keep_free: u64,
}

impl Fetcher {
    /// With the usual limits.
    pub fn new(tls: Arc<ClientConfig>, keep_free: u64) -> Self {
        Fetcher { tls, waits: Waits::default(), patience: Patience::default(), keep_free }
    }

    /// Brings the file to `dest`.
    pub async fn fetch(
        &self,
        source: &Source,
        dest: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<Stored, FetchError> {
        let uri: Uri = source.url.parse().map_err(|_| FetchError::Url { url: source.url.clone() })?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(FetchError::Url { url: source.url.clone() });
        }
        let mut transfer = Transfer { fetcher: self, source, dest, progress, checksum: source.checksum };
        let mut fruitless = 0;
        let mut resumed_whole = false;
        loop {
            let state = read_state(dest);
            let resume = plan::plan_resume(state.as_ref(), &source.url, transfer.checksum.is_some());
            let resumed = resume.offset > 0;
            let before = resume.offset;
            let error = match transfer.attempt(&uri, resume).await {
                Ok(stored) => {
                    remove_state(dest);
                    return Ok(stored);
                }
                Err(error) => error,
            };
            match &error {
                // The pieces may not have fitted together, which a fresh start will show. Once.
                FetchError::Intake(IntakeError::Checksum { .. }) if resumed && !resumed_whole => {
                    resumed_whole = true;
                    discard(dest);
                    continue;
                }
                // Nothing of it is worth keeping.
                FetchError::Intake(
                    IntakeError::Checksum { .. } | IntakeError::Refused(_) | IntakeError::Length { .. },
                ) => discard(dest),
                _ => {}
            }
            let brought = read_state(dest).map_or(0, |state| state.durable) > before;
            fruitless = if brought { 0 } else { fruitless + 1 };
            let Some(wait) = plan::plan_retry(&self.patience, fruitless, &error) else { return Err(error) };
            tracing::info!(url = %plan::show(&uri), %error, ?wait, "transfer interrupted, will go on");
            progress.send_modify(|progress| progress.connected = false);
            tokio::time::sleep(wait).await;
        }
    }
}

struct Transfer<'a> {
    fetcher: &'a Fetcher,
    source: &'a Source,
    dest: &'a Path,
    progress: &'a watch::Sender<Progress>,
    checksum: Option<Checksum>,
}

impl Transfer<'_> {
    async fn attempt(&mut self, first: &Uri, mut resume: Resume) -> Result<Stored, FetchError> {
        let mut uri = first.clone();
        let mut redirects = 0;
        // The partial file is locked first, and says where it ends.
        let mut intake = self.open(resume.offset).await?;
        resume.offset = intake.received();
        loop {
            let headers = range_headers(&resume);
            let answer = client::get(&uri, headers, &self.fetcher.tls, &self.fetcher.waits).await?;
            let (head, body) = (answer.response.status(), answer.response.headers());
            let (total, version) = match plan::on_reply(&uri, head, body, resume.offset)? {
                Reply::Redirect(next) => {
                    redirects += 1;
                    if redirects > MAX_REDIRECTS {
                        let why = format!("it was the redirect number {redirects} in a row");
                        return Err(FetchError::Redirect { url: plan::show(first), why });
                    }
                    uri = next;
                    continue;
                }
                Reply::StartOver => {
                    resume = Resume::default();
                    continue;
                }
                Reply::Whole { total, version } => {
                    resume.offset = 0;
                    (total, version)
                }
                Reply::Rest { total, version } => (total, version.or(resume.version.clone())),
            };
            let told = self.source.checksum_header.as_ref().and_then(|name| body.get(name));
            let told = told.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
            if told.is_some() && self.checksum != told {
                self.checksum = told;
                drop(intake);
                intake = self.open(resume.offset).await?;
            }
            if resume.offset == 0 && intake.received() > 0 {
                intake.restart()?;
            }
            if let Some(total) = total {
                intake.declare_len(total)?;
            }
            let state =
                PartState { url: self.source.url.clone(), version, total, durable: intake.received() };
            return self.receive(intake, state, &uri, answer).await;
        }
    }

    async fn open(&self, offset: u64) -> Result<Intake, FetchError> {
        let (dest, keep_free) = (self.dest.to_owned(), self.fetcher.keep_free);
        let demands = Demands { checksum: self.checksum, len: None, keep_free };
        Ok(blocking(move || Intake::open(&dest, demands, offset)).await?)
    }

    async fn receive(
        &self,
        intake: Intake,
        mut state: PartState,
        uri: &Uri,
        mut answer: client::Answer,
    ) -> Result<Stored, FetchError> {
        let report = |received| {
            self.progress.send_replace(Progress { connected: true, received, total: state.total });
        };
        report(intake.received());
        let mut received = intake.received();
        let mut pipe = Pipe::new(intake);
        let body = answer.response.body_mut();
        let mut recorded = received;
        let ended = loop {
            match self.next(body, uri).await {
                Ok(Some(bytes)) => {
                    received += bytes.len() as u64;
                    pipe.push(bytes).await?;
                    report(received);
                    if received - recorded >= RECORD_BYTES {
                        recorded = received;
                        state.durable = pipe.sync().await?;
                        write_state(self.dest, &state);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // A server that closes the connection too early is caught by the length.
        if ended.is_err() || state.total.is_some_and(|total| received < total) {
            state.durable = pipe.sync().await?;
            write_state(self.dest, &state);
        }
        ended?;
        if let Some(declared) = state.total.filter(|total| received < *total) {
            let url = plan::show(uri);
            tracing::debug!(url, received, declared, "the server ended too early");
            return Err(FetchError::Stalled { url, what: "the rest" });
        }
        Ok(pipe.finish().await?)
    }

    async fn next(&self, body: &mut Incoming, uri: &Uri) -> Result<Option<Bytes>, FetchError> {
        loop {
            let frame = tokio::time::timeout(self.fetcher.waits.stall, body.frame()).await;
            let stalled = |_| FetchError::Stalled { url: plan::show(uri), what: "the next bytes" };
            match frame.map_err(stalled)? {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(source)) => return Err(FetchError::Broken { url: plan::show(uri), source }),
            }
        }
    }
}

fn range_headers(resume: &Resume) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if resume.offset > 0 {
        if let Ok(value) = HeaderValue::from_str(&format!("bytes={}-", resume.offset)) {
            headers.insert(header::RANGE, value);
        }
        let version = resume.version.as_ref().map(|version| HeaderValue::from_str(version.if_range()));
        if let Some(Ok(value)) = version {
            headers.insert(header::IF_RANGE, value);
        }
    }
    headers
}

/// Runs what blocks elsewhere; a panic there is one here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only while the runtime shuts down, when nobody waits for the value any more.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Where a transfer's [`PartState`] is kept.
pub fn state_path(dest: &Path) -> PathBuf {
    part_path(dest).with_extension("part.json")
}

/// What cannot be read is as good as nothing: the transfer starts over.
fn read_state(dest: &Path) -> Option<PartState> {
    serde_json::from_slice(&std::fs::read(state_path(dest)).ok()?).ok()
}

/// If it fails, less can be resumed; no reason to stop.
fn write_state(dest: &Path, state: &PartState) {
    let path = state_path(dest);
    let new = path.with_extension("json.new");
    let result = serde_json::to_vec(state)
        .map_err(std::io::Error::from)
        .and_then(|bytes| std::fs::write(&new, bytes))
        .and_then(|()| std::fs::rename(&new, &path));
    if let Err(error) = result {
        tracing::warn!(path = %path.display(), %error, "cannot record how far a transfer is");
    }
}

fn remove_state(dest: &Path) {
    let _ = std::fs::remove_file(state_path(dest));
}

/// Throws a partial file away.
pub fn discard(dest: &Path) {
    remove_state(dest);
    let _ = std::fs::remove_file(part_path(dest));
}
