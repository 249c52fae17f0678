//! Watching: a stream of changes, one JSON document for each line.
//!
//! The stream is pulled by the connection: a client that reads slowly falls behind in the watch cache's window, and
//! gets 410 when that has passed it. Nothing is buffered here beyond one batch.

use std::{borrow::Cow, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::StatusCode;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::{Value, json};
use sheaf_meta::status::{FieldError, Status};
use sheaf_store::{
    Revision, StoreError,
    cache::{self, At, Watcher, What},
};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    list::{self, forbidden_option, number},
    object::{self, Cached, Item, store_failure, view_at},
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
/// Who hears of identities looks for changes not more often than this: it follows every kind, and need not be woken by each write.
const IDENTITIES_EVERY: Duration = Duration::from_millis(5);
/// A bookmark comes so long before the end of a watch.
const BEFORE_END: Duration = Duration::from_secs(2);
/// So much is handed to the connection at once where there is much to say.
const PIECE: usize = 32 * 1024;
/// A watch lasts this long where the client does not say, and up to twice as long.
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
    let selection = Selection::parse(&cx.query, row, &cx.path.name)?;
    let bookmarks = cx.query.flag("allowWatchBookmarks");
    let start = start(cx, bookmarks)?;
    let timeout = match cx.query.number("timeoutSeconds")?.filter(|s| *s > 0) {
        Some(seconds) => Duration::from_secs(seconds.min(MAX_TIMEOUT_S)),
        // Spread, so that those who began together do not come back together.
        None => Duration::from_secs(
            DEFAULT_TIMEOUT_S + u64::from(cx.now.subsec_nanosecond().unsigned_abs()) % DEFAULT_TIMEOUT_S,
        ),
    };

    let collection = row.key(&cx.path.namespace, "");
    let prefix = selection.range(row, &collection);
    let kind = core.kind(row).await?;
    let writer = EventWriter { row: row.clone(), form, cx: ViewOptions::of(cx), first: true };
    let mut running = Running {
        initial: Vec::new().into_iter(),
        announce: None,
        source: None,
        selection,
        writer,
        failed: None,
        bookmarks,
        timer: Box::pin(sleep_until(Instant::now())),
        deadline: Instant::now() + timeout,
        stop: core.stop.clone(),
        retired: row.retired.clone(),
        looked: None,
        over: false,
    };
    running.set_timer();
    let seen = match start {
        Start::After(revision) => revision,
        Start::Existing { at, announce } => {
            let listed = list::all(core, row, &collection, &running.selection, at).await?;
            running.initial = listed.items.into_iter();
            running.announce = announce.then_some(listed.at);
            listed.at
        }
        Start::Now => kind.list(&prefix, "", 1, At::Latest).await.map_err(store_failure)?.at,
    };
    match kind.watch(&prefix, seen).await {
        Ok(source) => running.source = Some(source),
        // As an event, since some clients take a refused watch for a broken server, and know this one.
        Err(error @ StoreError::Compacted { .. }) => running.failed = Some(store_failure(error)),
        Err(error) => return Err(store_failure(error)),
    }
    let pieces = stream::unfold(running, |mut running| async move {
        let piece = running.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Frame::data(piece)), running))
    });
    let mut response = Response::new(boxed(StreamBody::new(pieces)));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(http::header::CONTENT_TYPE, JSON);
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
            identities: cx.identities,
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
    /// Writes the event of an object as it is (or was) at a revision; nothing if that fails.
    fn line(
        &mut self,
        kind: &'static str,
        item: &Item,
        at: Revision,
        out: &mut Vec<u8>,
    ) -> Result<(), Status> {
        let begun = out.len();
        let written = self.write_line(kind, item, at, out);
        if written.is_err() {
            out.truncate(begun);
        }
        written
    }

    fn write_line(
        &mut self,
        kind: &'static str,
        item: &Item,
        at: Revision,
        out: &mut Vec<u8>,
    ) -> Result<(), Status> {
        for part in ["{\"type\":\"", kind, "\",\"object\":"] {
            out.extend_from_slice(part.as_bytes());
        }
        match self.form {
            Form::Json | Form::Yaml => object::write(&self.row, item, at, out)?,
            Form::Metadata { beta } if object::as_stored(&self.row, item) => {
                let meta = render::meta_version(beta);
                object::write_metadata(item, meta, at, self.cx.0.identities, out)?;
            }
            Form::Metadata { .. } | Form::Table { .. } => {
                self.cx.0.now = jiff::Timestamp::now();
                let tree = Cow::Owned(view_at(&self.row, item, at)?);
                let mut shown = render::one(&self.cx.0, &self.row, self.form, tree)?;
                if matches!(self.form, Form::Table { .. }) && !std::mem::take(&mut self.first) {
                    shown.to_mut()["columnDefinitions"] = json!([]);
                }
                serde_json::to_writer(&mut *out, &shown).map_err(Status::internal)?;
            }
        }
        out.extend_from_slice(b"}\n");
        Ok(())
    }

    /// Writes the line for a change, for a watcher that sees what `selection` matches, if it sees anything of it.
    fn change(
        &mut self,
        change: &cache::Event<Cached>,
        selection: &Selection,
        out: &mut Vec<u8>,
    ) -> Result<(), Status> {
        let row = self.row.clone();
        let visible = selection.selects(&row, &change.object)?;
        let (kind, item, at) = match (change.what, &change.previous) {
            (What::Deleted, _) if visible => ("DELETED", &change.object, change.at),
            (What::Created, _) | (What::Updated, None) if visible => ("ADDED", &change.object, change.at),
            (What::Updated, Some(previous)) => match (selection.selects(&row, previous)?, visible) {
                (true, true) if self.knows(previous, &change.object) => return Ok(()),
                (true, true) => ("MODIFIED", &change.object, change.at),
                (false, true) => ("ADDED", &change.object, change.at),
                // The last state that was in view, at the revision at which it left.
                (true, false) => ("DELETED", previous, change.at),
                (false, false) => return Ok(()),
            },
            _ => return Ok(()),
        };
        if self.form != Form::Json || !selection.is_everything() || !object::is_own_version(&row, item) {
            return self.line(kind, item, at, out);
        }
        // The same bytes for all who watch the whole kind: written by the first of them.
        let mut failed = None;
        let line = change.encoded(|_| {
            let mut line = Vec::new();
            failed = self.line(kind, item, at, &mut line).err();
            line.into()
        });
        out.extend_from_slice(line);
        failed.map_or(Ok(()), Err)
    }

    /// Whether nothing changed of what this watcher is told.
    fn knows(&self, before: &Item, now: &Item) -> bool {
        self.cx.0.identities
            && matches!(self.form, Form::Metadata { .. })
            && object::same_identity(before, now)
    }

    /// A bookmark has the watched kind: clients skip any other.
    fn bookmark(&mut self, at: Revision, initial_end: bool, out: &mut Vec<u8>) {
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
        event("BOOKMARK", &object, out);
    }
}

fn event(kind: &'static str, object: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(json!({"type": kind, "object": object}).to_string().as_bytes());
    out.push(b'\n');
}

/// A watch that goes on.
struct Running {
    /// What existed and was not yet told.
    initial: std::vec::IntoIter<Item>,
    /// The revision of the bookmark that follows what existed.
    announce: Option<Revision>,
    /// `None`: the watch could not begin, and `failed` says why.
    source: Option<Watcher<Cached>>,
    selection: Selection,
    writer: EventWriter,
    /// What the last event will say.
    failed: Option<Status>,
    bookmarks: bool,
    /// For the next bookmark, or the end. Kept, since thousands of watches would otherwise set it at each event.
    timer: Pin<Box<Sleep>>,
    deadline: Instant,
    stop: CancellationToken,
    retired: CancellationToken,
    /// When a watcher of identities was last told of changes, or of none.
    looked: Option<Instant>,
    over: bool,
}

impl Running {
    /// The next lines, as many as are there and fit a piece. `None` at the end. Cancel-safe: it waits only while it
    /// holds nothing.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() {
            if self.over {
                return None;
            }
            if let Err(status) = self.existing(&mut out) {
                self.failed = Some(status);
            }
            if out.is_empty() && self.failed.is_none() {
                self.step(&mut out).await;
            }
            if let Some(status) = self.failed.take() {
                self.fail(&status, &mut out);
            }
        }
        Some(out.into())
    }

    /// What existed, a piece at a time: a client that takes it slowly costs no memory.
    fn existing(&mut self, out: &mut Vec<u8>) -> Result<(), Status> {
        while out.len() < PIECE {
            let Some(item) = self.initial.next() else {
                if let Some(at) = self.announce.take() {
                    self.writer.bookmark(at, true, out);
                }
                return Ok(());
            };
            self.writer.line("ADDED", &item, item.modified, out)?;
        }
        Ok(())
    }

    /// Waits for something to say, or for the end.
    async fn step(&mut self, out: &mut Vec<u8>) {
        let Some(source) = &mut self.source else {
            self.over = true;
            return;
        };
        if let Some(looked) = self.looked {
            sleep_until(looked + IDENTITIES_EVERY).await;
        }
        let changes = tokio::select! {
            changes = source.next() => changes,
            () = &mut self.timer => {
                if Instant::now() >= self.deadline {
                    self.over = true;
                // Where events wait there is no need of one.
                } else if let Some(at) = source.progress() {
                    self.writer.bookmark(at, false, out);
                }
                return self.set_timer();
            }
            () = self.stop.cancelled() => {
                self.over = true;
                return;
            }
            // The kind is gone, or has another schema: clients list or watch again.
            () = self.retired.cancelled() => {
                let rest = source.next().now_or_never();
                self.over = rest.is_none();
                rest.unwrap_or_else(|| Ok(Vec::new()))
            }
        };
        match changes {
            Ok(changes) => {
                self.looked = self.writer.cx.0.identities.then(Instant::now);
                let told = changes.iter().try_for_each(|c| self.writer.change(c, &self.selection, out));
                self.failed = told.err();
            }
            Err(StoreError::Closed) => self.over = true,
            Err(error) => self.failed = Some(store_failure(error)),
        }
    }

    /// Sets the time of the next bookmark or of the end, whichever is first. A bookmark comes each minute, and once more
    /// shortly before the end, so that the next watch of this client begins where this one ended.
    fn set_timer(&mut self) {
        let now = Instant::now();
        let mut next = self.deadline;
        if self.bookmarks {
            next = next.min(now + BOOKMARK_EVERY);
            if let Some(last) = self.deadline.checked_sub(BEFORE_END).filter(|last| *last > now) {
                next = next.min(last);
            }
        }
        self.timer.as_mut().reset(next);
    }

    /// The last event of a watch that cannot go on.
    fn fail(&mut self, status: &Status, out: &mut Vec<u8>) {
        if let Some(internal) = &status.internal {
            tracing::error!(cause = %internal, "a watch ended");
        }
        event("ERROR", &status.to_json(), out);
        self.over = true;
    }
}
