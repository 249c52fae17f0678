//! The audit log: who did what, when, and how it ended, as lines of `audit.k8s.io/v1` Events.
//!
//! A [`Record`] goes along with a request and is told of its stages; how much it keeps is up to the [`policy`]. [`log`] writes the
//! lines, and never holds a request up. Not here: what requests mean.

mod body;
mod log;
mod policy;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, header};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sheaf_meta::{object, path::ResourcePath, status::Status};

use log::Log;
pub use log::LogOptions;
use policy::{Extent, Level, Policy, Stage};

use crate::{
    authn::UserInfo,
    authz::{Attributes, Decision},
    http::{Request, Response},
};

/// How requests are written down.
#[derive(Debug, Clone)]
pub struct AuditOptions {
    /// The policy; where there is none, the metadata of all requests.
    pub policy_file: Option<PathBuf>,
    /// The file.
    pub log: LogOptions,
}

/// Why there can be no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy cannot be read.
    #[error("cannot read the audit policy {path}")]
    Read {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The policy makes no sense.
    #[error("the audit policy {path} cannot be used: {why}")]
    Policy {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The log cannot be opened.
    #[error("cannot open the audit log {path}")]
    Open {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Who asks for what, as far as the policy looks at it.
pub(crate) struct Subject<'a> {
    pub(crate) user: &'a UserInfo,
    pub(crate) what: Attributes<'a>,
}

/// The audit log.
pub(crate) struct Audit {
    policy: Policy,
    log: Log,
}

impl Audit {
    /// Reads the policy, and opens the log.
    pub(crate) fn open(options: AuditOptions) -> Result<Arc<Self>, AuditError> {
        let policy = match options.policy_file {
            None => Policy::plain(),
            Some(path) => {
                let text = std::fs::read_to_string(&path)
                    .map_err(|source| AuditError::Read { path: path.clone(), source })?;
                Policy::parse(&text).map_err(|why| AuditError::Policy { path, why })?
            }
        };
        let path = options.log.path.clone();
        let log = Log::open(options.log).map_err(|source| AuditError::Open { path, source })?;
        Ok(Arc::new(Self { policy, log }))
    }

    /// Begins the record of a request; `None` if the policy wants nothing of it.
    pub(crate) fn begin(
        self: &Arc<Self>,
        request: &Request,
        peer: Option<SocketAddr>,
        subject: &Subject<'_>,
        id: &str,
        now: Timestamp,
    ) -> Option<Arc<Record>> {
        let extent = self.policy.extent(subject);
        if extent.level == Level::None {
            return None;
        }
        let mut event = Map::new();
        let mut set = |key: &str, value: Value| drop(event.insert(key.into(), value));
        set("level", json!(extent.level.as_str()));
        set("auditID", json!(id));
        set("requestURI", json!(request.uri().path_and_query().map_or("", |p| p.as_str())));
        set("verb", json!(subject.what.verb));
        set("user", subject.user.to_json());
        set("sourceIPs", json!(sources(request.headers(), peer)));
        let agent = request.headers().get(header::USER_AGENT).and_then(|v| v.to_str().ok());
        set("userAgent", json!(agent.unwrap_or_default()));
        set("requestReceivedTimestamp", json!(object::micro_time(now)));
        let record = Arc::new(Record {
            audit: self.clone(),
            extent,
            state: Mutex::new(State { event, ..State::default() }),
        });
        Some(record)
    }
}

/// Addresses that a request came from: those that proxies name, then the one at the other end.
fn sources(headers: &HeaderMap, peer: Option<SocketAddr>) -> Vec<String> {
    let of = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
        let all = values.flat_map(|v| v.split(',')).map(str::trim);
        all.filter(|a| a.parse::<std::net::IpAddr>().is_ok()).map(String::from).collect()
    };
    let mut found = of("x-forwarded-for");
    found.extend(of("x-real-ip"));
    found.extend(peer.map(|p| p.ip().to_string()));
    let mut seen = std::collections::HashSet::new();
    found.retain(|a| seen.insert(a.clone()));
    found.truncate(16);
    found
}

#[derive(Default)]
struct State {
    /// What all stages have in common.
    event: Map<String, Value>,
    annotations: Map<String, Value>,
    sent: Vec<u8>,
    content_type: String,
    answered: Vec<u8>,
    status: Option<Value>,
    done: bool,
}

/// What is being written down of one request.
pub(crate) struct Record {
    audit: Arc<Audit>,
    extent: Extent,
    state: Mutex<State>,
}

impl Record {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object that the request is about.
    pub(crate) fn about(&self, path: &ResourcePath) {
        let mut about = Map::new();
        let version = path.version.as_str();
        for (key, value) in [
            ("resource", path.resource.as_str()),
            ("namespace", &path.namespace),
            ("name", &path.name),
            ("apiGroup", &path.group),
            ("apiVersion", version),
            ("subresource", &path.subresource),
        ] {
            if !value.is_empty() {
                about.insert(key.into(), json!(value));
            }
        }
        self.state().event.insert("objectRef".into(), Value::Object(about));
    }

    /// As whom the requester acts.
    pub(crate) fn impersonated(&self, user: &UserInfo) {
        self.state().event.insert("impersonatedUser".into(), user.to_json());
    }

    /// How access was decided.
    pub(crate) fn decided(&self, decision: &Decision) {
        let word = if decision.allowed { "allow" } else { "forbid" };
        self.annotate("authorization.k8s.io/decision", word);
        self.annotate("authorization.k8s.io/reason", &decision.reason);
    }

    /// Adds an annotation; the first one of a key stays.
    pub(crate) fn annotate(&self, key: &str, value: &str) {
        self.state().annotations.entry(key).or_insert_with(|| json!(value));
    }

    /// Adds what admission has to say.
    pub(crate) fn annotate_all(&self, annotations: BTreeMap<String, String>) {
        annotations.iter().for_each(|(key, value)| self.annotate(key, value));
    }

    /// The request as the handler gets it: what it reads of the body is kept, if the policy wants it.
    pub(crate) fn received(self: &Arc<Self>, request: Request, streaming: bool) -> Request {
        self.stage(Stage::RequestReceived);
        if self.extent.level < Level::Request || streaming {
            return request;
        }
        self.state().content_type = crate::body::content_type(request.headers());
        let record = self.clone();
        request.map(|inner| body::seen(inner, move |data: &Bytes| record.keep(data, |s| &mut s.sent)))
    }

    fn keep(&self, data: &[u8], of: impl Fn(&mut State) -> &mut Vec<u8>) {
        let mut state = self.state();
        let kept = of(&mut state);
        // One byte more than may be shown tells that it was too much.
        let room = (crate::body::MAX_BODY + 1).saturating_sub(kept.len());
        kept.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
    }

    /// The answer as the client gets it; the record ends with it.
    pub(crate) fn answered(
        self: &Arc<Self>,
        response: Response,
        failure: Option<&Status>,
        streaming: bool,
    ) -> Response {
        let code = response.status().as_u16();
        let mut status = json!({"metadata": {}, "code": code});
        if let Some(failure) = failure {
            status = failure.to_json();
            for field in ["kind", "apiVersion"] {
                object::as_map(&mut status).remove(field);
            }
        }
        self.state().status = Some(status);
        if streaming {
            self.stage(Stage::ResponseStarted);
        }
        let whole = self.extent.level == Level::RequestResponse && !streaming;
        let (seen, ended) = (self.clone(), End(self.clone()));
        response.map(|inner| {
            body::seen(inner, move |data: &Bytes| {
                let _until_dropped = &ended;
                if whole {
                    seen.keep(data, |s| &mut s.answered);
                }
            })
        })
    }

    /// The handler failed with a panic.
    pub(crate) fn panicked(&self) {
        self.stage(Stage::Panic);
    }

    fn stage(&self, stage: Stage) {
        let mut state = self.state();
        if matches!(stage, Stage::ResponseComplete | Stage::Panic) && std::mem::replace(&mut state.done, true)
        {
            return;
        }
        if self.extent.omit_stages.contains(&stage) {
            return;
        }
        let mut event = Map::new();
        event.insert("kind".into(), json!("Event"));
        event.insert("apiVersion".into(), json!("audit.k8s.io/v1"));
        event.extend(state.event.clone());
        event.insert("stage".into(), json!(stage.as_str()));
        event.insert("stageTimestamp".into(), json!(object::micro_time(Timestamp::now())));
        if stage != Stage::RequestReceived {
            if let Some(status) = &state.status {
                event.insert("responseStatus".into(), status.clone());
            }
            if !state.annotations.is_empty() {
                event.insert("annotations".into(), Value::Object(state.annotations.clone()));
            }
            let sent = read(&std::mem::take(&mut state.sent), &state.content_type);
            let answered = read(&unzipped(std::mem::take(&mut state.answered)), "application/json");
            for (key, read) in [("requestObject", sent), ("responseObject", answered)] {
                let Some(mut object) = read else { continue };
                if self.extent.omit_managed_fields {
                    without_managed_fields(&mut object);
                }
                event.insert(key.into(), object);
            }
        }
        drop(state);
        self.audit.log.put(Value::Object(event).to_string().into_bytes());
    }
}

/// Ends the record when the last of the answer was sent, or nobody reads it any more.
struct End(Arc<Record>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.stage(Stage::ResponseComplete);
    }
}

/// An object from the bytes of a body; `None` for nothing, and for what is too large or no object.
fn read(bytes: &[u8], content_type: &str) -> Option<Value> {
    if bytes.is_empty() || bytes.len() > crate::body::MAX_BODY {
        return None;
    }
    let plain = match content_type {
        patch if patch.ends_with("patch+json") => "application/json",
        patch if patch.ends_with("patch+yaml") => "application/yaml",
        other => other,
    };
    crate::body::decode(bytes, plain).ok().flatten()
}

/// Large answers are sent compressed to whoever reads that.
fn unzipped(bytes: Vec<u8>) -> Vec<u8> {
    use std::io::Read;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return bytes;
    }
    let mut plain = Vec::new();
    let most = crate::body::MAX_BODY as u64 + 1;
    // Cut off in the middle, it is no object any more, and is left out.
    let _ = flate2::read::GzDecoder::new(bytes.as_slice()).take(most).read_to_end(&mut plain);
    plain
}

fn without_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        without_managed_fields(item);
    }
}
