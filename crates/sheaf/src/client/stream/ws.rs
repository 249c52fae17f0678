//! A WebSocket to a subresource of an instance. The handshake is made here and not by `kube`, which offers the
//! subprotocols of pods only; KubeVirt's is `plain.kubevirt.io`: binary frames, nothing else.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use kube::core::Status;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::api::{VMS, missing, subresource};
use super::super::fail::{self, Exit};
use super::super::{Session, print::say};

/// A connected WebSocket.
pub(crate) type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

const PROTOCOL: &str = "plain.kubevirt.io";
/// Text of a refusal that is read.
const REFUSAL_MAX: usize = 64 << 10;

/// Connects to a subresource of an instance, once.
pub(crate) async fn connect(session: &Session, namespace: &str, name: &str, sub: &str) -> Result<Socket> {
    let key = generate_key();
    let request = Request::get(subresource("virtualmachineinstances", namespace, name, sub))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .body(Body::empty())?;
    let response = session.client.send(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(response).await);
    }
    let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
    if accept != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        bail!(
            "the server's answer is no WebSocket handshake; is a proxy in between that knows no WebSockets?"
        );
    }
    let upgraded = hyper::upgrade::on(response).await.context("switching to a WebSocket")?;
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await)
}

/// Connects as soon as the instance runs: 400 means "not yet" and is tried again each second.
pub(crate) async fn connect_when_running(
    session: &Session,
    namespace: &str,
    name: &str,
    sub: &str,
    timeout: Duration,
) -> Result<Socket> {
    let begun = Instant::now();
    let mut told = String::new();
    loop {
        let error = match connect(session, namespace, name, sub).await {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
        let why = match fail::status(&error) {
            Some(status) if status.code == 400 => status.message.clone(),
            Some(status) if status.code == 404 => not_there(session, namespace, name).await?,
            _ => return Err(error),
        };
        if begun.elapsed() >= timeout {
            let text = format!(
                "VM {namespace}/{name} does not run after {} s (--timeout): {why}",
                timeout.as_secs()
            );
            return Err(Exit::error(fail::TIMED_OUT, text));
        }
        if told != why {
            say(&format!("waiting: {why}"));
            told = why;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// There is no instance: the VM is stopped, or about to start, or does not exist.
async fn not_there(session: &Session, namespace: &str, name: &str) -> Result<String> {
    let vm = session.find(VMS, namespace, name).await?.ok_or_else(|| missing(VMS, namespace, name))?;
    let view = super::super::vm::VmView { vm: &vm, instance: None };
    if view.status() == "Stopped" {
        bail!("VM {namespace}/{name} is stopped; `sheaf vm start {name}` starts it");
    }
    Ok(format!("VM {namespace}/{name} is {}", view.status()))
}

/// The words of a refusal, as an error of the API: a Status, or plain text.
async fn refusal(response: Response<Body>) -> anyhow::Error {
    let code = response.status();
    let body = Limited::new(response.into_body(), REFUSAL_MAX).collect().await;
    let text = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).trim().to_owned()).unwrap_or_default();
    let status =
        serde_json::from_str::<Status>(&text).ok().filter(|s| !s.message.is_empty()).unwrap_or_else(|| {
            let text = if text.is_empty() { format!("the server answered {code}") } else { text };
            Status::failure(&text, "")
        });
    anyhow::Error::new(kube::Error::Api(status.with_code(code.as_u16()).boxed()))
}
