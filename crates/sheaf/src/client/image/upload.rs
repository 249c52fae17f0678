//! Sends a file as an image, as Harvester's dashboard does: the object first, then a form with the file as its part
//! `chunk` (harvester.md 6.6). The file is read piece by piece, as the connection takes them.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, SizeHint};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use indicatif::ProgressBar;
use kube::client::ConfigExt;
use serde_json::Value;
use tokio::sync::mpsc;
use tower::{BoxError, ServiceBuilder, ServiceExt};

use super::super::Session;
use super::super::api::IMAGES;
use super::super::fail::{self, Exit};
use super::super::print::{say, size};
use super::super::progress::Progress;
use super::state::{Stage, image_state};

/// What is read from the file at once; two of these wait to be sent.
const PIECE: usize = 256 << 10;
/// Text of an answer that is shown.
const ANSWER_MAX: usize = 64 << 10;
/// How long the status of an image whose file has been taken may still tell of an earlier failure.
const STALE: Duration = Duration::from_secs(10);
/// How long the reason of a failed upload may take to appear in the image's status.
const REASON_WAIT: Duration = Duration::from_secs(5);

/// Creates the image unless it waits for its upload already, sends the file, and waits until it can be used.
pub(super) async fn upload(
    session: &Session,
    namespace: &str,
    name: &str,
    path: &Path,
    image: &Value,
    wait: Option<Duration>,
) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let about = file.metadata().with_context(|| format!("reading {}", path.display()))?;
    if !about.is_file() {
        bail!("{} is no file; an image is one file, raw, qcow2 or iso", path.display());
    }
    let len = about.len();
    if len == 0 {
        bail!("{} is empty; an image is a raw, qcow2 or iso file", path.display());
    }
    prepare(session, namespace, name, image).await?;

    let mut progress = Progress::bytes(len);
    progress.tell(&format!("uploading image {namespace}/{name} ({})", size(len)));
    let sent = send(session, namespace, name, path, file, len, progress.bar()).await;
    drop(progress);
    if let Err(error) = sent {
        // The connection may have been cut in the middle of the file; the reason is in the image's status.
        let told = reason(session, namespace, name).await;
        let known = format!("{error:#}");
        let why = told.filter(|why| !known.contains(why.as_str()));
        return match why {
            Some(why) => Err(Exit::error(fail::FAILED, format!("image {namespace}/{name}: {why}"))),
            None => Err(error.context(format!("uploading image {namespace}/{name}"))),
        };
    }
    match wait {
        Some(timeout) => {
            super::follow(session, namespace, name, &mut Progress::spinner(), timeout, STALE).await
        }
        None => {
            say(&format!("image {namespace}/{name} is uploaded"));
            Ok(())
        }
    }
}

/// The object, new or left over from an upload that did not come through.
async fn prepare(session: &Session, namespace: &str, name: &str, image: &Value) -> Result<()> {
    let Some(existing) = session.find(IMAGES, namespace, name).await? else {
        session
            .create(IMAGES, namespace, image, false)
            .await
            .with_context(|| format!("creating image {name}"))?;
        return Ok(());
    };
    let state = image_state(&existing);
    if existing["spec"]["sourceType"] != "upload" {
        bail!(
            "there is an image {namespace}/{name} already, and it is no upload; choose another name or delete it"
        );
    }
    match state.stage {
        Stage::Ready => {
            bail!("there is an image {namespace}/{name} already; `sheaf image delete {name}` removes it")
        }
        Stage::Deleting => bail!("an image {namespace}/{name} is being deleted; try again when it has gone"),
        Stage::Waiting | Stage::Failed | Stage::Importing => {
            if existing["spec"]["checksum"].as_str().unwrap_or("")
                != image["spec"]["checksum"].as_str().unwrap_or("")
            {
                bail!("there is an image {namespace}/{name} already, with another checksum; delete it first");
            }
            say(&format!("image {namespace}/{name} exists and waits for its file"));
            Ok(())
        }
    }
}

async fn reason(session: &Session, namespace: &str, name: &str) -> Option<String> {
    let deadline = tokio::time::Instant::now() + REASON_WAIT;
    loop {
        let state = image_state(&session.find(IMAGES, namespace, name).await.ok()??);
        if state.stage == Stage::Failed && !state.why.is_empty() {
            return Some(state.why);
        }
        if tokio::time::Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// POSTs the form. Bodies that are not in memory need a client of their own, with the same way to the server.
async fn send(
    session: &Session,
    namespace: &str,
    name: &str,
    path: &Path,
    file: File,
    len: u64,
    bar: ProgressBar,
) -> Result<()> {
    let boundary = format!("sheaf-{:016x}{:016x}", len, std::process::id());
    let uri = format!(
        "/v1/harvester/harvesterhci.io.virtualmachineimages/{namespace}/{name}?action=upload&size={len}"
    );
    let body = FormBody::new(&boundary, path, file, len, bar);
    let request = Request::post(uri)
        .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
        .header(header::ACCEPT, "*/*")
        .body(body)?;
    let connector = session.config.rustls_https_connector().context("the kubeconfig's certificates")?;
    let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(session.config.base_uri_layer())
        .option_layer(session.config.auth_layer().context("the kubeconfig's credentials")?)
        .map_err(BoxError::from)
        .service(http);
    let response = service
        .oneshot(request)
        .await
        .map_err(|error| anyhow::anyhow!("the transfer broke off: {}", fail::chain(&*error)))?;
    let status = response.status();
    let text = match Limited::new(response.into_body(), ANSWER_MAX).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(_) => String::new(),
    };
    if status.is_success() { Ok(()) } else { Err(anyhow::anyhow!(refusal(status, &text))) }
}

/// The words of a refusal: plain text, or the message of a Status.
fn refusal(status: http::StatusCode, text: &str) -> String {
    let parsed: Value = serde_json::from_str(text).unwrap_or_default();
    match (parsed["message"].as_str(), text) {
        (Some(message), _) => message.to_owned(),
        (None, "") => format!("the server answered {status}"),
        (None, text) => text.to_owned(),
    }
}

/// A form with one file, whose length is known beforehand.
struct FormBody {
    pieces: mpsc::Receiver<std::io::Result<Bytes>>,
    left: u64,
}

impl FormBody {
    fn new(boundary: &str, path: &Path, file: File, len: u64, bar: ProgressBar) -> Self {
        let (head, tail) = frame(boundary, path);
        let left = head.len() as u64 + len + tail.len() as u64;
        let (give, pieces) = mpsc::channel(2);
        // Ends when the file does, or when nobody takes the pieces any more.
        std::thread::spawn(move || {
            let _ = give.blocking_send(Ok(head.into()));
            let mut rest = file.take(len);
            let mut read = 0;
            loop {
                let mut piece = vec![0; PIECE];
                let piece = match rest.read(&mut piece) {
                    Ok(0) if read < len => {
                        let text =
                            format!("the file became shorter while it was sent: {read} of {len} bytes");
                        Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text))
                    }
                    Ok(0) => break,
                    Ok(count) => {
                        piece.truncate(count);
                        read += count as u64;
                        Ok(Bytes::from(piece))
                    }
                    Err(error) => Err(error),
                };
                let failed = piece.is_err();
                if give.blocking_send(piece).is_err() || failed {
                    return;
                }
                bar.set_position(read);
            }
            let _ = give.blocking_send(Ok(tail.into()));
        });
        Self { pieces, left }
    }
}

/// What stands before and after the file.
fn frame(boundary: &str, path: &Path) -> (String, String) {
    let name: String = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
        .chars()
        .map(|c| if c == '"' || c == '\\' || c.is_control() { '_' } else { c })
        .collect();
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"chunk\"; filename=\"{name}\"\r\nContent-Type: application/octet-stream\r\n\r\n"
    );
    (head, format!("\r\n--{boundary}--\r\n"))
}

impl Body for FormBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(match ready!(self.pieces.poll_recv(cx)) {
            None => None,
            Some(Err(error)) => Some(Err(error)),
            Some(Ok(piece)) => {
                self.left = self.left.saturating_sub(piece.len() as u64);
                Some(Ok(Frame::data(piece)))
            }
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn a_form_has_the_length_that_it_tells() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content = vec![7; PIECE + 3];
        file.write_all(&content).unwrap();
        let body = FormBody::new(
            "b",
            Path::new("/x/a\"b.img"),
            file.reopen().unwrap(),
            content.len() as u64,
            ProgressBar::hidden(),
        );
        let told = body.size_hint().exact().unwrap();
        let bytes = body.collect().await.unwrap().to_bytes();
        assert_eq!(bytes.len() as u64, told);
        let (head, tail) = frame("b", Path::new("/x/a\"b.img"));
        assert!(head.contains("filename=\"a_b.img\""), "{head}");
        assert!(bytes.starts_with(head.as_bytes()) && bytes.ends_with(tail.as_bytes()));
        assert_eq!(&bytes[head.len()..head.len() + content.len()], &content[..]);
    }

    #[tokio::test]
    async fn a_file_that_shrinks_ends_the_transfer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let body = FormBody::new("b", Path::new("a"), file.reopen().unwrap(), 10, ProgressBar::hidden());
        let error = body.collect().await.unwrap_err().to_string();
        assert!(error.contains("0 of 10 bytes"), "{error}");
    }

    #[test]
    fn refusals_in_words() {
        let status = http::StatusCode::BAD_REQUEST;
        assert_eq!(refusal(status, "no image"), "no image");
        assert_eq!(refusal(status, r#"{"kind":"Status","message":"gone"}"#), "gone");
        assert_eq!(refusal(status, ""), "the server answered 400 Bad Request");
    }
}
