//! Images over the agent's HTTPS listener: uploads in, copies for other nodes out.
//!
//! Users do not come here; the API server has authenticated and authorised them, and relays the request with its path
//! unchanged (harvester.md 6.6: bare body or multipart form, 200 and an empty body on success, text otherwise).

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame};
use kube::ResourceExt;
use sheaf_api::harvester::VirtualMachineImage;
use sheaf_image::digest::Checksum;
use sheaf_image::explain;
use sheaf_image::fetch::Progress;
use sheaf_image::intake::{Demands, IntakeError};
use sheaf_image::upload::{UploadError, receive};
use sheaf_runtime::ObjectKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::plan::is_imported;
use super::{CHECKSUM_HEADER, IMAGE_NODE, Images, Work};
use crate::http::{API_SERVER, BodyError, NODES, Response, Routes};

/// How long an upload waits until this node knows of its image.
const IMAGE_WAIT: Duration = Duration::from_secs(60);
/// How long an upload may send nothing.
const STALL: Duration = Duration::from_secs(60);
/// What is read from a file at once.
const CHUNK: usize = 256 << 10;

/// How long, and how much, is read of a body that is of no use, so that its sender reads the answer.
const DRAIN: (Duration, usize) = (Duration::from_secs(20), 1 << 30);

/// Why a request is refused: status and text.
type Refusal = (StatusCode, String);

/// An upload whose head is in order.
struct Expected {
    uid: String,
    demands: Demands,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
}

/// Reads a body to its end, within limits. A connection that is closed while its client still sends is reset, and the
/// client never sees why.
async fn drain<B: Body<Data = Bytes> + Unpin>(body: &mut B) {
    let reading = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > DRAIN.1 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN.0, reading).await;
}

impl Images {
    /// Adds what this module serves.
    pub fn routes(self: &Arc<Self>, routes: &mut Routes) {
        let images = Arc::clone(self);
        let upload = "/v1/harvester/harvesterhci.io.virtualmachineimages/{namespace}/{name}";
        routes.add(Method::POST, upload, &[API_SERVER], move |request, params| {
            let images = Arc::clone(&images);
            async move { images.upload(request, params.get("namespace"), params.get("name")).await }
        });
        let images = Arc::clone(self);
        routes.add(Method::GET, "/v1/images/{namespace}/{name}/file", &[NODES], move |request, params| {
            let images = Arc::clone(&images);
            async move { images.export(request.headers(), params.get("namespace"), params.get("name")).await }
        });
    }

    /// `POST /v1/harvester/harvesterhci.io.virtualmachineimages/NAMESPACE/NAME?action=upload&size=N`.
    pub async fn upload<B>(self: Arc<Self>, request: Request<B>, namespace: &str, name: &str) -> Response
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let key = ObjectKey::new(namespace, name);
        let (head, mut body) = request.into_parts();
        let expected = match self.expect_upload(&head, &key).await {
            Ok(expected) => expected,
            Err((status, message)) => {
                drain(&mut body).await;
                return text(status, message);
            }
        };
        self.wake(&key);
        let kind = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (images, dest) = (Arc::clone(&self), self.files.base(&expected.uid));
        // A task of its own: this future is dropped when the connection ends, and the outcome has to be told still.
        let receiving = tokio::spawn(async move {
            let Expected { uid, demands, progress, cancel } = expected;
            let received = receive(&mut body, kind.as_deref(), &dest, demands, STALL, &progress);
            let outcome = tokio::select! {
                () = cancel.cancelled() => return text(StatusCode::CONFLICT, format!("image {key} is being deleted")),
                outcome = received => outcome,
            };
            let (status, message) =
                outcome.as_ref().map_or_else(refusal, |_| (StatusCode::OK, String::new()));
            let outcome = outcome.map_err(|error| format!("cannot be taken: {}", explain(&error)));
            images.ended(&uid, &key, "", outcome);
            if status != StatusCode::OK {
                drain(&mut body).await;
            }
            text(status, message)
        });
        receiving.await.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    }

    /// Checks an upload's head against its image, and takes note that it has begun.
    async fn expect_upload(
        self: &Arc<Self>,
        head: &http::request::Parts,
        key: &ObjectKey,
    ) -> Result<Expected, Refusal> {
        let bad = |message: String| (StatusCode::BAD_REQUEST, message);
        let query = |name| query(head.uri.query().unwrap_or_default(), name);
        match query("action") {
            Some("upload") => {}
            other => {
                let other = other.unwrap_or_default();
                return Err(bad(format!("unknown action {other:?}: only upload is possible here")));
            }
        }
        let size = query("size").and_then(|size| size.parse().ok()).filter(|size| *size > 0_u64);
        let size = size.ok_or_else(|| {
            bad("the query parameter size must give the file's length in bytes, a positive number".to_owned())
        })?;
        let image = self.image_of_this_node(key).await?;
        let uid = image.uid().unwrap_or_default();
        if image.spec.source_type != "upload" {
            let kind = &image.spec.source_type;
            return Err(bad(format!(
                "image {key} has sourceType {kind}; only sourceType upload takes uploads"
            )));
        }
        if image.status.as_ref().is_some_and(is_imported) || self.files.get(&uid).is_some() {
            return Err((StatusCode::CONFLICT, format!("image {key} is complete already")));
        }
        let checksum: Option<Checksum> = match image.spec.checksum.trim() {
            "" => None,
            sum => {
                let sum = sum.parse();
                Some(sum.map_err(|e| bad(format!("spec.checksum of image {key} is not valid: {e}")))?)
            }
        };
        let progress = watch::Sender::new(Progress { connected: true, received: 0, total: Some(size) });
        let cancel = CancellationToken::new();
        let mut work = self.work();
        if work.get(&uid).is_some_and(|work| work.failed.is_none()) {
            return Err((StatusCode::CONFLICT, format!("another upload of image {key} is at work")));
        }
        let begun = Work {
            url: String::new(),
            copy: false,
            progress: progress.subscribe(),
            cancel: cancel.clone(),
            failed: None,
            told: None,
        };
        work.insert(uid.clone(), begun);
        let demands = Demands { checksum, len: Some(size), keep_free: self.keep_free() };
        Ok(Expected { uid, demands, progress, cancel })
    }

    /// The image, as soon as this node knows that it is to have it.
    async fn image_of_this_node(&self, key: &ObjectKey) -> Result<Arc<VirtualMachineImage>, Refusal> {
        let mut changes = self.changes();
        let waiting = async {
            loop {
                changes.mark_unchanged();
                let image = self.images.get(key);
                match image {
                    Some(image) if image.annotations().get(IMAGE_NODE) == Some(&self.node) => {
                        return Some(image);
                    }
                    _ => changes.changed().await.ok()?,
                }
            }
        };
        let found = tokio::time::timeout(IMAGE_WAIT, waiting).await.ok().flatten();
        found.ok_or_else(|| match self.images.get(key) {
            None => (
                StatusCode::NOT_FOUND,
                format!("there is no image {key}; create it with sourceType upload first"),
            ),
            Some(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "image {key} has not been given to node {} within {} s",
                    self.node,
                    IMAGE_WAIT.as_secs()
                ),
            ),
        })
    }

    /// `GET /v1/images/NAMESPACE/NAME/file`: for other nodes.
    pub async fn export(self: Arc<Self>, headers: &HeaderMap, namespace: &str, name: &str) -> Response {
        let key = ObjectKey::new(namespace, name);
        let Some(image) = self.images.get(&key) else {
            return text(StatusCode::NOT_FOUND, format!("there is no image {key}"));
        };
        let uid = image.uid().unwrap_or_default();
        let Some(kept) = self.files.get(&uid) else {
            return text(StatusCode::NOT_FOUND, format!("image {key} is not on node {}", self.node));
        };
        let opened = std::fs::File::open(self.files.base(&uid)).and_then(|file| {
            let len = file.metadata()?.len();
            Ok((file, len))
        });
        let (file, len) = match opened {
            Ok(opened) => opened,
            Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("image {key}: {error}")),
        };
        // What was padded to whole sectors is given as it came, so that its checksum holds.
        let len = len.min(kept.stored.len);
        let tag = format!("\"{}\"", kept.stored.sha512);
        let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
        let same = headers.get(header::IF_RANGE).is_none_or(|version| version.as_bytes() == tag.as_bytes());
        let start = match range.filter(|_| same).map(range_start) {
            None | Some(None) => 0,
            Some(Some(start)) if start < len => start,
            Some(Some(start)) => {
                return text(
                    StatusCode::RANGE_NOT_SATISFIABLE,
                    format!("image {key} has {len} bytes, not {start}"),
                );
            }
        };
        let mut response = http::Response::new(body(file, start, len));
        let mut put = |name: header::HeaderName, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        };
        put(header::CONTENT_TYPE, "application/octet-stream".to_owned());
        put(header::CONTENT_LENGTH, (len - start).to_string());
        put(header::ACCEPT_RANGES, "bytes".to_owned());
        put(header::ETAG, tag);
        put(CHECKSUM_HEADER, kept.stored.sha512);
        if start > 0 {
            put(header::CONTENT_RANGE, format!("bytes {start}-{}/{len}", len - 1));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        response
    }
}

fn text(status: StatusCode, message: String) -> Response {
    let mut response = http::Response::new(Full::from(message).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// Whose fault it is decides about the status.
fn refusal(error: &UploadError) -> Refusal {
    let status = match error {
        UploadError::Intake(IntakeError::NoSpace { .. }) => StatusCode::INSUFFICIENT_STORAGE,
        UploadError::Intake(IntakeError::Io { .. }) => StatusCode::INTERNAL_SERVER_ERROR,
        UploadError::Intake(IntakeError::Busy) => StatusCode::CONFLICT,
        UploadError::Form(_) | UploadError::Broken { .. } | UploadError::Intake(_) => StatusCode::BAD_REQUEST,
        UploadError::Stalled { .. } => StatusCode::REQUEST_TIMEOUT,
    };
    (status, format!("the image cannot be taken: {}", explain(error)))
}

fn query<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

/// `bytes=N-`, the only kind of range that our own client asks for; others get the whole.
fn range_start(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// Streams a file's bytes from `start` to `len`; one piece is read at a time, when the one before has been taken.
fn body(file: std::fs::File, start: u64, len: u64) -> BoxBody<Bytes, BodyError> {
    let pieces = stream::unfold((Arc::new(file), start), move |(file, at)| async move {
        if at >= len {
            return None;
        }
        let piece = CHUNK.min(usize::try_from(len - at).unwrap_or(CHUNK));
        let reader = Arc::clone(&file);
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; piece];
            reader.read_exact_at(&mut buffer, at).map(|()| Bytes::from(buffer))
        });
        let frame = match read.await {
            Ok(Ok(bytes)) => Ok(Frame::data(bytes)),
            Ok(Err(error)) => Err(BodyError::from(error)),
            Err(error) => Err(BodyError::from(error)),
        };
        // After an error the stream ends.
        let next = if frame.is_ok() { at + piece as u64 } else { len };
        Some((frame, (file, next)))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}
