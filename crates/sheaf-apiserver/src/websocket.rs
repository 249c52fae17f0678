//! Watching over a WebSocket (RFC 6455), as browsers do: each event is one text message.
//!
//! Only the transport: what is watched, and how an event looks, is the same as over plain HTTP. A token that came as
//! a subprotocol was taken off by authentication and is not chosen.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sheaf_meta::status::Status;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    http::{Body, Outcome, Request, bare},
    session::life::{self, Life},
};

/// A token in place of an Authorization header.
const BEARER: &str = "base64url.bearer.authorization.k8s.io.";
/// Largest message that a client may send; it has nothing to say.
const MAX_MESSAGE: usize = 64 * 1024;
/// Between two pings of a client from which nothing is heard otherwise.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a client may take for one event before it is given up.
const SLOWEST: Duration = Duration::from_secs(60);

/// A client that asked for a WebSocket.
pub(crate) struct Asked {
    key: String,
    protocol: Option<String>,
    life: Option<Life>,
    upgrade: OnUpgrade,
}

impl Asked {
    /// Reads the handshake; `None` if the request is an ordinary one. 400 for one that is no proper handshake.
    pub(crate) fn of(request: &mut Request) -> Result<Option<Self>, Status> {
        let headers = request.headers();
        if !names(headers, header::UPGRADE, "websocket") || !names(headers, header::CONNECTION, "upgrade") {
            return Ok(None);
        }
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if text(header::SEC_WEBSOCKET_VERSION) != "13" {
            return Err(Status::bad_request("Sec-WebSocket-Version must be 13"));
        }
        let key = text(header::SEC_WEBSOCKET_KEY).to_string();
        if key.is_empty() {
            return Err(Status::bad_request("Sec-WebSocket-Key is missing"));
        }
        let protocol = protocol(headers);
        Ok(Some(Self { key, protocol, life: Life::of(request), upgrade: hyper::upgrade::on(request) }))
    }

    /// Answers with the switch of protocols, and sends the lines of a body as messages.
    pub(crate) fn switch(self, events: Body, stop: CancellationToken) -> Outcome {
        let mut response = bare(StatusCode::SWITCHING_PROTOCOLS);
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let accept = derive_accept_key(self.key.as_bytes());
        headers
            .insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).map_err(Status::internal)?);
        if let Some(protocol) = &self.protocol {
            let value = HeaderValue::from_str(protocol).map_err(Status::internal)?;
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
        let Self { upgrade, life, .. } = self;
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE));
            let io = TokioIo::new(upgraded);
            let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
            let _ = life::run(&stop, life, pump(socket, events)).await;
        });
        Ok(response)
    }
}

fn names(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// The first subprotocol on offer that is no token.
fn protocol(headers: &HeaderMap) -> Option<String> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let mut offered = offered.flat_map(|v| v.split(',')).map(str::trim);
    offered.find(|p| !p.is_empty() && !p.starts_with(BEARER)).map(String::from)
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Sends lines until either side has had enough.
async fn pump(mut socket: Socket, mut events: Body) {
    let mut rest = BytesMut::new();
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    loop {
        tokio::select! {
            frame = events.frame() => {
                let Some(Ok(frame)) = frame else { break };
                if let Ok(data) = frame.into_data() {
                    rest.extend_from_slice(&data);
                }
                for line in lines(&mut rest) {
                    let sent = tokio::time::timeout(SLOWEST, socket.send(Message::Text(line))).await;
                    if !matches!(sent, Ok(Ok(()))) {
                        return;
                    }
                }
            }
            message = socket.next() => match message {
                // It is answered by the library when something is sent next; what it says is of no interest.
                Some(Ok(message)) if !message.is_close() => {}
                _ => return,
            },
            _ = ping.tick() => {
                if !matches!(tokio::time::timeout(SLOWEST, socket.send(Message::Ping(Bytes::new()))).await, Ok(Ok(()))) {
                    return;
                }
            }
        }
    }
    let end = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
    let _ = tokio::time::timeout(SLOWEST, socket.close(Some(end))).await;
}

/// Takes whole lines out of what has come so far.
fn lines(rest: &mut BytesMut) -> Vec<Utf8Bytes> {
    let mut out = Vec::new();
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let line = rest.split_to(end).freeze();
        rest.advance(1);
        out.extend(Utf8Bytes::try_from(line));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_never_chosen() {
        for (offered, expected) in [
            ("base64.binary.k8s.io", Some("base64.binary.k8s.io")),
            (
                "base64url.bearer.authorization.k8s.io.YWJj, base64.binary.k8s.io",
                Some("base64.binary.k8s.io"),
            ),
            ("base64url.bearer.authorization.k8s.io.YWJj", None),
            ("a, b", Some("a")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offered.parse().unwrap());
            assert_eq!(protocol(&headers).as_deref(), expected, "{offered}");
        }
        assert_eq!(protocol(&HeaderMap::new()), None);
    }

    #[test]
    fn lines_may_come_in_pieces() {
        let mut rest = BytesMut::from(&b"{\"a\":1}\n{\"b\""[..]);
        assert_eq!(lines(&mut rest).iter().map(|l| l.as_str()).collect::<Vec<_>>(), ["{\"a\":1}"]);
        rest.extend_from_slice(b":2}\n");
        assert_eq!(lines(&mut rest).iter().map(|l| l.as_str()).collect::<Vec<_>>(), ["{\"b\":2}"]);
        assert!(rest.is_empty());
    }
}
