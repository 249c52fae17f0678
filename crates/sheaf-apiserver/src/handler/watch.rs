//! Watching: a stream of changes, one JSON document for each line.
//!
//! The stream is pulled by the connection: a client that reads slowly falls behind in the watch cache's window, and
//! gets 410 when that has passed it. Nothing is buffered here beyond one batch.

use std::{borrow::Cow, collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::{Value, json};
use sheaf_meta::status::{FieldError, Status};
use sheaf_store::{
    Revision, StoreError,
    cache::{self, At, Watcher, What},
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    list::{self, forbidden_option, number},
    object::{Cached, store_failure, view, view_at},
    options::Selection,
    render,
};
use crate::{
    core::{Core, Cx, accepts},
    http::{JSON, Outcome, Response, boxed},
    negotiate::Form,
    registry::Row,
};

/// How often an idle watch is told how far it is, when it wants to know.
const BOOKMARK_EVERY: Duration = Duration::from_secs(55);
/// A watch lasts this long where the client does not say, spread by a second for each of the last digits.
const DEFAULT_TIMEOUT_S: u64 = 1800;
/// And never longer than this.
const MAX_TIMEOUT_S: u64 = 24 * 3600;
/// Marks the bookmark that ends the initial events.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// How a watch begins.
enum Start {
    /// With the changes after a revision.
    After(Revision),
    /// With what exists, as ADDED.
    Existing {
        /// How fresh that has to be.
        at: At,
        /// Whether the annotated bookmark follows.
        announce: bool,
    },
    /// With the changes from now on.
    Now,
}

/// GET of a collection or an object with `watch`.
pub(crate) async fn watch(core: &Arc<Core>, cx: &Cx, row: &Arc<Row>) -> Outcome {
    let form = accepts(cx)?;
    if form == Form::Yaml {
        return Err(Status::new(406, "NotAcceptable", "a watch is only served as application/json"));
    }
    render::row_object(cx)?;
    let selection = if cx.path.name.is_empty() {
        Selection::parse(&cx.query, row)?
    } else {
        Selection::of_name(&cx.path.name)?
    };
    let bookmarks = cx.query.flag("allowWatchBookmarks");
    let start = start(cx, bookmarks)?;
    let timeout = cx.query.number("timeoutSeconds")?.filter(|s| *s > 0).unwrap_or(DEFAULT_TIMEOUT_S);
    let timeout = Duration::from_secs(timeout.min(MAX_TIMEOUT_S));

    let prefix = row.key(&cx.path.namespace, "");
    let kind = core.kind(row).await?;
    let mut ready = VecDeque::new();
    let mut writer = EventWriter { row: row.clone(), form, cx: ViewOptions::of(cx), first: true };
    let seen = match start {
        Start::After(revision) => revision,
        Start::Existing { at, announce } => {
            let listed = list::all(core, row, &prefix, &selection, at).await?;
            for item in &listed.items {
                ready.push_back(writer.line("ADDED", view(row, item)?)?);
            }
            if announce {
                ready.push_back(writer.bookmark(listed.at, true)?);
            }
            listed.at
        }
        Start::Now => kind.list(&prefix, "", 1, At::Latest).await.map_err(store_failure)?.at,
    };
    let source = kind.watch(&prefix, seen).await.map_err(store_failure)?;
    let running = Running {
        source,
        selection,
        writer,
        ready,
        bookmarks,
        next_bookmark: Instant::now() + BOOKMARK_EVERY,
        deadline: Instant::now() + timeout,
        stop: core.stop.clone(),
        over: false,
    };
    let lines = stream::unfold(running, |mut running| async move {
        let line = running.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Frame::data(line)), running))
    });
    let mut response = Response::new(boxed(StreamBody::new(lines)));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(http::header::CONTENT_TYPE, JSON);
    response
        .headers_mut()
        .insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

fn start(cx: &Cx, bookmarks: bool) -> Result<Start, Status> {
    let q = &cx.query;
    let version = q.get("resourceVersion").map(number).transpose()?;
    let matching = q.get("resourceVersionMatch");
    let existing = |announce| match version {
        None => Start::Existing { at: At::Latest, announce },
        Some(Revision(0)) => Start::Existing { at: At::Any, announce },
        Some(revision) => Start::Existing { at: At::AtLeast(revision), announce },
    };
    let Some(asked) = q.get("sendInitialEvents") else {
        if matching.is_some() {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return Err(forbidden_option("resourceVersionMatch", why));
        }
        return Ok(match version {
            None | Some(Revision(0)) => existing(false),
            Some(revision) => Start::After(revision),
        });
    };
    match matching {
        Some("NotOlderThan") => {}
        None => {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(forbidden_option("resourceVersionMatch", why));
        }
        Some(other) => {
            let error = FieldError::not_supported("resourceVersionMatch", &json!(other), &["NotOlderThan"]);
            return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]));
        }
    }
    let initial = !asked.eq_ignore_ascii_case("false") && asked != "0";
    Ok(match version {
        _ if initial => existing(bookmarks),
        None | Some(Revision(0)) => Start::Now,
        Some(revision) => Start::After(revision),
    })
}

/// What of the request's context rendering needs, for as long as the watch lasts.
struct ViewOptions(Cx);

impl ViewOptions {
    fn of(cx: &Cx) -> Self {
        Self(Cx {
            user: cx.user.clone(),
            verb: cx.verb,
            path: cx.path.clone(),
            query: cx.query.clone(),
            headers: http::HeaderMap::new(),
            now: cx.now,
            warnings: Vec::new(),
            audit_id: String::new(),
            audit: None,
        })
    }
}

/// Makes lines of events.
struct EventWriter {
    row: Arc<Row>,
    form: Form,
    cx: ViewOptions,
    /// Column definitions are sent once.
    first: bool,
}

impl EventWriter {
    fn line(&mut self, kind: &'static str, object: Cow<'_, Value>) -> Result<Bytes, Status> {
        self.cx.0.now = jiff::Timestamp::now();
        let mut object = render::one(&self.cx.0, &self.row, self.form, object)?;
        if matches!(self.form, Form::Table { .. }) && !std::mem::take(&mut self.first) {
            object.to_mut()["columnDefinitions"] = json!([]);
        }
        encode(kind, &object)
    }

    /// The line for a change, for a watcher that sees what `selection` matches; `None` if it sees nothing of it.
    fn change(
        &mut self,
        change: &cache::Event<Cached>,
        selection: &Selection,
    ) -> Result<Option<Bytes>, Status> {
        let row = self.row.clone();
        let last = |item| view_at(&row, item, change.at).map(Cow::Owned);
        let now = view(&row, &change.object)?;
        let visible = selection.matches(&now);
        let (kind, object) = match (change.what, &change.previous) {
            (What::Deleted, _) if visible => ("DELETED", last(&change.object)?),
            (What::Created, _) | (What::Updated, None) if visible => ("ADDED", now),
            (What::Updated, Some(previous)) => match (selection.matches(&*view(&row, previous)?), visible) {
                (true, true) => ("MODIFIED", now),
                (false, true) => ("ADDED", now),
                // The last state that was in view, at the revision at which it left.
                (true, false) => ("DELETED", last(previous)?),
                (false, false) => return Ok(None),
            },
            _ => return Ok(None),
        };
        self.line(kind, object).map(Some)
    }

    /// A bookmark has the watched kind: clients skip any other.
    fn bookmark(&mut self, at: Revision, initial_end: bool) -> Result<Bytes, Status> {
        let mut metadata = json!({"resourceVersion": at.0.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({INITIAL_END: "true"});
        }
        let mut object = json!({
            "kind": self.row.info.kind, "apiVersion": self.row.api_version, "metadata": metadata,
        });
        match self.form {
            Form::Metadata { .. } => {
                object["kind"] = json!("PartialObjectMetadata");
                object["apiVersion"] = json!("meta.k8s.io/v1");
            }
            Form::Table { .. } => {
                object = json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                    "columnDefinitions": [], "rows": [],
                });
            }
            Form::Json | Form::Yaml => {}
        }
        encode("BOOKMARK", &object)
    }
}

fn encode(kind: &'static str, object: &Value) -> Result<Bytes, Status> {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        r#type: &'static str,
        object: &'a Value,
    }
    let mut line = serde_json::to_vec(&Line { r#type: kind, object }).map_err(Status::internal)?;
    line.push(b'\n');
    Ok(line.into())
}

/// A watch that goes on.
struct Running {
    source: Watcher<Cached>,
    selection: Selection,
    writer: EventWriter,
    ready: VecDeque<Bytes>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    stop: CancellationToken,
    over: bool,
}

impl Running {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            let changes = tokio::select! {
                changes = self.source.next() => changes,
                () = sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    // Where events wait there is no need of one.
                    if let Some(at) = self.source.progress() {
                        let line = self.writer.bookmark(at, false);
                        self.queue(line);
                    }
                    continue;
                }
                () = sleep_until(self.deadline) => return None,
                () = self.stop.cancelled() => return None,
            };
            match changes {
                Ok(changes) => self.take(&changes),
                Err(StoreError::Closed) => return None,
                Err(error) => self.fail(&store_failure(error)),
            }
        }
    }

    fn take(&mut self, changes: &[Arc<cache::Event<Cached>>]) {
        for change in changes {
            match self.writer.change(change, &self.selection) {
                Ok(Some(line)) => self.ready.push_back(line),
                Ok(None) => {}
                Err(status) => return self.fail(&status),
            }
        }
    }

    fn queue(&mut self, line: Result<Bytes, Status>) {
        match line {
            Ok(line) => self.ready.push_back(line),
            Err(status) => self.fail(&status),
        }
    }

    /// The last event of a watch that cannot go on.
    fn fail(&mut self, status: &Status) {
        if let Some(internal) = &status.internal {
            tracing::error!(cause = %internal, "a watch ended");
        }
        let mut line = json!({"type": "ERROR", "object": status.to_json()}).to_string();
        line.push('\n');
        self.ready.push_back(line.into());
        self.over = true;
    }
}
