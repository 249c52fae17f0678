//! The generic API server without its sockets: a request and an identity go in, an answer comes out.
//!
//! Authenticates, finds the route, authorises, and hands over to the handler of the verb. Knows no kind. Owns the
//! registry of rows and the handle of the store; all objects are in the store.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use serde_json::json;
use sheaf_meta::{
    path::{self, ResourcePath, Target},
    status::Status,
};
use sheaf_store::{
    Entry, Revision, Store, StoreError,
    cache::{self, Cache, Options as CacheOptions},
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{Audit, Record, Subject},
    authn::{self, UserInfo, impersonation::Impersonation},
    authz::{self, Attributes, Authorizer},
    discovery,
    extension::{Admission, Extension},
    fair::{Full, Limits, Turn, Turns},
    handler::{self, Cached, Lately, Underway},
    health,
    http::{self as answers, Body, Outcome, Request, Response},
    in_process::Identities,
    negotiate, openapi,
    pages::{self, Pages},
    pki::Ca,
    query::Query,
    random,
    rbac::Access,
    registry::{Registry, Row},
    session::{Known, Sessions, life::Life},
    tokens::Tokens,
    verb::Verb,
};

/// Names a request.
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// Requests that are worked on at the same time; watches and streams do not count. Each costs a few milliseconds, so
/// more at once would only make all of them slower.
const REQUESTS: Limits = Limits { seats: 400, per_user: 300, waiting_per_user: 1000, waiting: 4000 };
/// Watches and streams that are open at the same time. They last, so nobody waits for one.
const STREAMS: Limits = Limits { seats: 8000, per_user: 6000, waiting_per_user: 0, waiting: 0 };
/// A request that is no watch and no stream takes at most this long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Who sends a request, as far as the transport knows.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Over the network; with the identity of the client certificate, if one was presented and verified.
    Remote(Option<UserInfo>),
    /// In this process, as this user. Bearer tokens are not looked at.
    Inside(UserInfo),
}

/// What handlers know of a request beside its body.
pub struct Cx {
    /// Who asks.
    pub user: UserInfo,
    /// What for.
    pub verb: Verb,
    /// The resource; empty for other paths.
    pub path: ResourcePath,
    /// Query parameters.
    pub query: Query,
    /// Headers.
    pub headers: HeaderMap,
    /// When the request came.
    pub now: Timestamp,
    /// Sentences for `Warning` headers.
    pub warnings: Vec<String>,
    /// Whether a watch of metadata tells [identities](crate::InProcess::identities) only.
    pub(crate) identities: bool,
    /// Names the request in the audit log and in the answer.
    pub(crate) audit_id: String,
    /// What is being written down of it.
    pub(crate) audit: Option<Arc<Record>>,
}

/// The server's state, shared by all requests.
pub struct Core {
    /// For writes.
    pub(crate) store: Arc<dyn Store>,
    /// Where the store was when this server began: what was written since went through the kinds as they are here.
    pub(crate) begun: Revision,
    /// For reads: lists and watches cost the store nothing.
    cache: Cache<Cached>,
    /// What was written last, for those who write it again.
    pub(crate) lately: Lately,
    /// What is being written, for the cache.
    pub(crate) underway: Arc<Underway>,
    pub(crate) registry: Registry,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    /// The same, with what it remembers.
    pub(crate) access: Arc<Access>,
    pub(crate) tokens: Arc<Tokens>,
    audit: Option<Arc<Audit>>,
    pub(crate) extensions: Vec<Arc<dyn Extension>>,
    pub(crate) admission: Vec<Arc<dyn Admission>>,
    pub(crate) ca: Arc<Ca>,
    pub(crate) stop: CancellationToken,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) pages: OnceLock<Pages>,
    /// Which extension answers for `group/version/resource`.
    virtuals: OnceLock<HashMap<String, usize>>,
    requests: Arc<Turns>,
    streams: Arc<Turns>,
}

/// What a [`Core`] is made of.
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) registry: Registry,
    pub(crate) access: Arc<Access>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) audit: Option<Arc<Audit>>,
    pub(crate) extensions: Vec<Arc<dyn Extension>>,
    pub(crate) admission: Vec<Arc<dyn Admission>>,
    pub(crate) ca: Arc<Ca>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) stop: CancellationToken,
}

impl Core {
    /// Puts the parts together.
    pub(crate) async fn new(parts: Parts) -> Result<Arc<Self>, StoreError> {
        let Parts { store, registry, access, tokens, audit, extensions, admission, ca, sessions, stop } =
            parts;
        let begun = store.revision().await?;
        let underway = Arc::new(Underway::default());
        let known = underway.clone();
        let decode = move |entry: &Entry| handler::cached(entry, &known);
        let cache = Cache::start(store.clone(), "/registry/", CacheOptions::default(), decode).await?;
        Ok(Arc::new(Self {
            store,
            begun,
            cache,
            lately: Lately::default(),
            underway,
            registry,
            authorizer: access.clone(),
            access,
            tokens,
            audit,
            extensions,
            admission,
            ca,
            stop,
            sessions,
            pages: OnceLock::new(),
            virtuals: OnceLock::new(),
            requests: Turns::new(REQUESTS),
            streams: Turns::new(STREAMS),
        }))
    }

    /// A kind in the watch cache.
    pub(crate) async fn kind(&self, row: &Row) -> Result<cache::Kind<Cached>, Status> {
        self.cache.kind(&row.prefix).await.map_err(handler::store_failure)
    }

    /// Drops a kind that is gone from the watch cache; its watches end.
    pub(crate) fn forget(&self, prefix: &str) {
        self.cache.forget(prefix);
    }

    /// Answers a request. Never fails: failures are answers.
    pub async fn serve(self: &Arc<Self>, caller: Caller, request: Request) -> Response {
        if let Some(response) = self.pages.get().and_then(|pages| pages::answer(pages, &request)) {
            return response;
        }
        let mut cx = Cx {
            user: UserInfo::anonymous(),
            verb: Verb::Get,
            path: ResourcePath::default(),
            query: Query::parse(request.uri().query()),
            headers: request.headers().clone(),
            now: Timestamp::now(),
            warnings: Vec::new(),
            identities: request.extensions().get::<Identities>().is_some(),
            audit_id: audit_id(request.headers()),
            audit: None,
        };
        let lasting = is_streaming(&cx, &request);
        let (method, path) = (request.method().clone(), request.uri().path().to_string());
        let begun = std::time::Instant::now();
        // A panic is a bug of ours, and must not take the client's other requests and watches with it.
        let handled = AssertUnwindSafe(self.limited(&mut cx, caller, request, lasting)).catch_unwind().await;
        let outcome = handled.unwrap_or_else(|_| {
            cx.audit.iter().for_each(|record| record.panicked());
            Err(Status::internal("the handler panicked"))
        });
        let failure = outcome.as_ref().err().filter(|_| cx.audit.is_some()).cloned();
        let mut response = outcome.unwrap_or_else(|status| answers::failure(&status));
        if let Some(record) = cx.audit.take() {
            response = record.answered(response, failure.as_ref(), lasting);
        }
        if let Ok(mut id) = HeaderValue::from_str(&cx.audit_id) {
            // No secret, but never the same twice: HTTP/2 is told not to put it into its tables, which would cost both ends
            // an entry for each answer, and push out those that come again.
            id.set_sensitive(true);
            response.headers_mut().insert(AUDIT_ID, id);
        }
        tracing::debug!(
            %method, path, user = cx.user.username, code = response.status().as_u16(),
            took_ms = begun.elapsed().as_millis(), "request"
        );
        answers::add_warnings(&mut response, &cx.warnings);
        // No cache on the way may answer for the server. Who knows better (schemas) has said so.
        let headers = response.headers_mut();
        if !headers.contains_key(header::CACHE_CONTROL) && !headers.contains_key(header::ETAG) {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        }
        response
    }

    async fn limited(
        self: &Arc<Self>,
        cx: &mut Cx,
        caller: Caller,
        request: Request,
        lasting: bool,
    ) -> Outcome {
        let session = match caller {
            Caller::Remote(None) => {
                let now_s = cx.now.as_second();
                let known = self.sessions.authenticate(&request, now_s)?;
                self.sessions.confirm(self, known, now_s).await?
            }
            _ => None,
        };
        let (session, life) = session.map(|Known { user, life, .. }| (user, life)).unzip();
        if lasting {
            let mut request = self.identify(cx, caller, session, request).await?;
            let turn = self.streams.take(&cx.user.username).await.map_err(|Full| too_many())?;
            let Some(life) = life else {
                let response = Box::pin(self.dispatch(cx, request)).await?;
                return Ok(response.map(|body| answers::boxed(Held { body, _turn: turn, end: None })));
            };
            request.extensions_mut().insert(life.clone());
            let work = life.run(Box::pin(self.dispatch(cx, request))).await;
            let response = work.unwrap_or_else(|| Err(Status::unauthorized()))?;
            let end: Option<BoxFuture<'static, ()>> = Some(Box::pin(Life::ended(life)));
            return Ok(response.map(|body| answers::boxed(Held { body, _turn: turn, end })));
        }
        let whole = async {
            let request = self.identify(cx, caller, session, request).await?;
            let _turn = match health::is_health(request.uri().path()) {
                // Whoever asks whether the server is well must not hear that it is busy.
                true => None,
                false => Some(self.requests.take(&cx.user.username).await.map_err(|Full| too_many())?),
            };
            Box::pin(self.dispatch(cx, request)).await
        };
        tokio::time::timeout(REQUEST_TIMEOUT, Box::pin(whole)).await.unwrap_or_else(|_| {
            let text = format!("the request took longer than {} s", REQUEST_TIMEOUT.as_secs());
            Err(Status::new(504, "Timeout", text))
        })
    }

    /// Finds out who asks, and as whom; gives the request back as the audit log sees it pass.
    async fn identify(
        &self,
        cx: &mut Cx,
        caller: Caller,
        session: Option<UserInfo>,
        mut request: Request,
    ) -> Result<Request, Status> {
        let known = self.authenticate(caller, &cx.headers, session, cx.now).await;
        if let Some(audit) = &self.audit {
            cx.user = known.as_ref().map_or_else(|_| UserInfo::default(), UserInfo::clone);
            request = begin_record(audit, cx, request);
        }
        cx.user = known?;
        if let Some(other) = Impersonation::of(&cx.headers)? {
            cx.user = self.impersonate(&cx.user, other).await?;
            cx.audit.iter().for_each(|record| record.impersonated(&cx.user));
        }
        Ok(request)
    }

    async fn dispatch(self: &Arc<Self>, cx: &mut Cx, request: Request) -> Outcome {
        let path = request.uri().path().to_string();
        match path::parse(&path)
            .ok_or_else(|| Status::bad_request("the path of the request cannot be read"))?
        {
            Target::Resource(resource) => {
                cx.path = resource;
                if let Some(extension) = self.extensions.iter().find(|e| e.claims(&path)).cloned() {
                    return extension.path(self, cx, request).await;
                }
                self.resource(cx, request).await
            }
            other => {
                let clean = clean_path(&path);
                if let Some(extension) = self.extensions.iter().find(|e| e.claims(&clean)).cloned() {
                    return extension.path(self, cx, request).await;
                }
                let what = Attributes { verb: verb_of(&request), path: &clean, ..Attributes::default() };
                self.authorize_request(cx, what).await?;
                if !matches!(*request.method(), Method::GET | Method::HEAD) {
                    return Err(Status::method_not_allowed());
                }
                self.other(cx, other).await
            }
        }
    }

    /// As [`authz::check`], but whoever is nobody is asked to say who they are.
    pub(crate) fn check(&self, user: &UserInfo, what: Attributes<'_>) -> Result<(), Status> {
        authz::check(self.authorizer.as_ref(), user, what)
            .map_err(|status| if user.is_anonymous() { Status::unauthorized() } else { status })
    }

    /// As [`Core::check`], but a refusal is no older than the store: what was written before the request counts.
    pub(crate) async fn authorize(&self, user: &UserInfo, what: Attributes<'_>) -> Result<(), Status> {
        if self.check(user, what).is_ok() {
            return Ok(());
        }
        self.access.settle().await;
        self.check(user, what)
    }

    /// For a change that makes the object where it is missing: who asks has to be allowed that, too.
    pub(crate) async fn may_create(&self, cx: &Cx) -> Result<(), Status> {
        let path = &cx.path;
        let what = Attributes {
            verb: "create",
            group: &path.group,
            resource: &path.resource,
            namespace: &path.namespace,
            name: &path.name,
            ..Attributes::default()
        };
        self.authorize(&cx.user, what).await
    }

    /// As [`Core::authorize`], for what the request itself asks for; written down in the audit log.
    pub(crate) async fn authorize_request(&self, cx: &Cx, what: Attributes<'_>) -> Result<(), Status> {
        let outcome = self.authorize(&cx.user, what).await;
        if let Some(record) = &cx.audit {
            record.decided(&self.authorizer.decide(&cx.user, what));
        }
        outcome
    }

    async fn authenticate(
        &self,
        caller: Caller,
        headers: &HeaderMap,
        session: Option<UserInfo>,
        now: Timestamp,
    ) -> Result<UserInfo, Status> {
        match caller {
            Caller::Inside(user) | Caller::Remote(Some(user)) => Ok(user),
            Caller::Remote(None) if session.is_some() => Ok(session.unwrap_or_default()),
            Caller::Remote(None) => match authn::bearer(headers) {
                Some(token) => match self.tokens.check(self, &token, &[], now).await {
                    Ok(Some(proof)) => Ok(proof.user),
                    Ok(None) => Err(Status::unauthorized()),
                    Err(why) => {
                        tracing::info!("a bearer token was refused: {why}");
                        Err(Status::unauthorized())
                    }
                },
                None if headers.contains_key(header::AUTHORIZATION) => Err(Status::unauthorized()),
                None => Ok(UserInfo::anonymous()),
            },
        }
    }

    /// Each part of another identity has to be allowed by itself.
    async fn impersonate(&self, user: &UserInfo, other: Impersonation) -> Result<UserInfo, Status> {
        for what in other.parts() {
            self.authorize(user, what).await?;
        }
        Ok(other.into_user())
    }

    async fn other(self: &Arc<Self>, cx: &Cx, route: Target) -> Outcome {
        let accept = cx.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
        match route {
            Target::CoreVersions | Target::Groups => {
                let known = cx.headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
                Ok(discovery::root(self, &route, accept, known.unwrap_or_default()))
            }
            Target::Group(group) => discovery::group(self, &group),
            Target::Resources { group, version } => discovery::group_version(self, &group, &version),
            Target::Resource(_) => Err(Status::no_such_path()),
            Target::Other(segments) => match format!("/{}", segments.join("/")).as_str() {
                "/" => Ok(discovery::paths(self)),
                "/version" => Ok(answers::json(StatusCode::OK, &health::version())),
                "/cacerts" => Ok(answers::text(StatusCode::OK, self.ca.cert_pem().to_string())),
                p if health::is_health(p) => health::answer(self, p, &cx.query).await,
                p if p.starts_with("/openapi/") => openapi::serve(self, p, cx).await,
                _ => Err(Status::no_such_path()),
            },
        }
    }

    async fn resource(self: &Arc<Self>, cx: &mut Cx, request: Request) -> Outcome {
        let extension = self.virtual_owner(&cx.path);
        cx.verb = Verb::of(request.method(), &cx.path, &cx.query)?;
        let subresource = match extension {
            Some(e) => e.authorization_subresource(&cx.path),
            None => cx.path.subresource.clone(),
        };
        // Who may only see some names may list and watch them one by one.
        let only = match cx.verb {
            Verb::List | Verb::Watch => handler::only_name(&cx.query),
            _ => None,
        };
        let what = Attributes {
            verb: cx.verb.as_str(),
            group: &cx.path.group,
            resource: &cx.path.resource,
            subresource: &subresource,
            namespace: &cx.path.namespace,
            name: only.as_deref().filter(|_| cx.path.name.is_empty()).unwrap_or(&cx.path.name),
            path: "",
        };
        self.authorize_request(cx, what).await?;
        if let Some(extension) = extension.cloned() {
            // What is answered and not stored has neither columns nor metadata to show alone.
            if cx.verb == Verb::Create {
                accepts_whole(cx)?;
            }
            return extension.resource(self, cx, request).await;
        }
        let row = self.row(&cx.path)?;
        handler::handle(self, cx, row, request).await
    }

    /// The extension that answers for a resource that is not stored, or for a subresource of one that is. What extensions
    /// serve is told at start and stays.
    fn virtual_owner(&self, path: &ResourcePath) -> Option<&Arc<dyn Extension>> {
        let served = self.virtuals.get_or_init(|| {
            let all = self.extensions.iter().enumerate();
            all.flat_map(|(i, e)| e.groups().into_iter().map(move |g| (i, g)))
                .flat_map(|(i, g)| {
                    let place = format!("{}/{}", g.group, g.version);
                    g.resources.into_iter().flat_map(move |r| {
                        let resource = r.name.split('/').next().unwrap_or_default();
                        [(format!("{place}/{resource}"), i), (format!("{place}/{}", r.name), i)]
                    })
                })
                .collect()
        });
        let stored = self.registry.snapshot().find(&path.group, &path.version, &path.resource).is_some();
        if stored && path.subresource.is_empty() {
            return None;
        }
        let mut key = format!("{}/{}/{}", path.group, path.version, path.resource);
        if stored {
            key = format!("{key}/{}", path.subresource);
        }
        served.get(&key).and_then(|i| self.extensions.get(*i))
    }

    /// The row of a path, or 404.
    fn row(&self, path: &ResourcePath) -> Result<Arc<Row>, Status> {
        let rows = self.registry.snapshot();
        let row = rows.find(&path.group, &path.version, &path.resource).ok_or_else(Status::no_such_path)?;
        // A request for a Namespace itself carries its own name as namespace.
        let itself = crate::namespaces::is_namespace(row);
        let misplaced = if row.namespaced() {
            path.namespace.is_empty() && !path.name.is_empty()
        } else {
            !path.namespace.is_empty() && !itself
        };
        let sub = path.subresource.as_str();
        if misplaced || !path.rest.is_empty() || !(sub.is_empty() || row.subresources().contains(&sub)) {
            return Err(Status::no_such_path());
        }
        Ok(row.clone())
    }
}

/// The verb of a request for a path that is no resource: its method. Who may read a page may ask for its head.
fn verb_of(request: &Request) -> &'static str {
    match *request.method() {
        Method::GET | Method::HEAD => "get",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

/// The name of a request: the client's, if it gives one, so that both ends can be found together.
fn audit_id(headers: &HeaderMap) -> String {
    let given = headers.get(AUDIT_ID).and_then(|v| v.to_str().ok());
    match given.filter(|id| !id.is_empty() && id.len() <= 64) {
        Some(id) => id.to_owned(),
        // Without a name nobody is refused.
        None => random::uuid().unwrap_or_default(),
    }
}

/// Begins to write a request down, as far as the policy wants it.
fn begin_record(audit: &Arc<Audit>, cx: &mut Cx, request: Request) -> Request {
    let target = path::parse(request.uri().path());
    let resource = match &target {
        Some(Target::Resource(resource)) => Some(resource.clone()),
        _ => None,
    };
    let clean = clean_path(request.uri().path());
    let verb = match &resource {
        Some(path) => Verb::of(request.method(), path, &cx.query).map_or("", Verb::as_str),
        None => verb_of(&request),
    };
    let what = match &resource {
        Some(path) => Attributes {
            verb,
            group: &path.group,
            resource: &path.resource,
            subresource: &path.subresource,
            namespace: &path.namespace,
            name: &path.name,
            path: "",
        },
        None => Attributes { verb, path: &clean, ..Attributes::default() },
    };
    let peer = request.extensions().get::<crate::session::Ends>().map(|ends| ends.peer);
    let subject = Subject { user: &cx.user, what };
    let Some(record) = audit.begin(&request, peer, &subject, &cx.audit_id, cx.now) else { return request };
    if let Some(path) = &resource {
        record.about(path);
    }
    let lasting = is_streaming(cx, &request);
    let request = record.received(request, lasting);
    cx.audit = Some(record);
    request
}

fn clean_path(path: &str) -> String {
    match path.trim_end_matches('/') {
        "" => "/".into(),
        p => p.into(),
    }
}

fn too_many() -> Status {
    let mut status = Status::new(
        429,
        "TooManyRequests",
        "the server has received too many requests and has asked us to try again later",
    );
    status.details.retry_after_seconds = Some(1);
    status
}

/// Whether the answer goes on for as long as the client likes.
fn is_streaming(cx: &Cx, request: &Request) -> bool {
    cx.query.flag("watch")
        || request.headers().contains_key(header::UPGRADE)
        || request.uri().path().split('/').skip(3).take(2).any(|s| s == "watch")
        || request.uri().query().is_some_and(|q| q.contains("action=upload"))
}

/// A body that holds its place among the streams until it is dropped, and ends with the session that it was asked for in.
struct Held {
    body: Body,
    _turn: Turn,
    end: Option<BoxFuture<'static, ()>>,
}

impl hyper::body::Body for Held {
    type Data = bytes::Bytes;
    type Error = answers::BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        if self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready()) {
            self.end = None;
            self.body = answers::full("");
            return std::task::Poll::Ready(None);
        }
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// The answer to a POST of a review and the like: the object with 201.
pub(crate) fn created(object: &serde_json::Value) -> Response {
    answers::json(StatusCode::CREATED, object)
}

/// `Success`, as deletions answer it.
pub(crate) fn success(row: &Row, name: &str, uid: &str) -> serde_json::Value {
    let mut details = json!({"name": name, "kind": row.info.plural, "uid": uid});
    if !row.info.group.is_empty() {
        details["group"] = json!(row.info.group);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// Refuses an Accept header that leaves no way to answer with a whole object.
fn accepts_whole(cx: &Cx) -> Result<(), Status> {
    use negotiate::{Form, form};
    accepts(cx)?;
    let accept = cx.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    if accept.split(',').any(|one| matches!(form(one), Ok(Form::Json | Form::Yaml))) {
        return Ok(());
    }
    form("application/x-nothing").map(drop)
}

/// Refuses an Accept header that cannot be met.
pub(crate) fn accepts(cx: &Cx) -> Result<negotiate::Form, Status> {
    let accept = cx.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    negotiate::form(accept)
}
