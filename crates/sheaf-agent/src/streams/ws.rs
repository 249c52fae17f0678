//! The WebSocket handshake, on a request that hyper has read.

use http::{HeaderMap, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use sheaf_meta::status::Status;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::fail;
use crate::http::{Request, Response, answer};

/// The one subprotocol: raw bytes.
const SUBPROTOCOL: &str = "plain.kubevirt.io";
/// The largest message from a client. Clients send some 10 KiB at a time.
const MESSAGE_MAX: usize = 4 << 20;

/// A WebSocket to a client.
pub(super) type Client = WebSocketStream<TokioIo<Upgraded>>;

/// The rest of the handshake, when the answer has gone out.
pub(super) struct Upgrade(OnUpgrade);

impl Upgrade {
    /// The socket; `None` if the client went away.
    pub(super) async fn finish(self) -> Option<Client> {
        let upgraded = self.0.await.ok()?;
        let config =
            WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
        Some(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await)
    }
}

fn has_word(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(word))
}

/// The answer to a WebSocket request, and the promise of a socket.
pub(super) fn accept(mut request: Request) -> Result<(Response, Upgrade), Box<Status>> {
    let headers = request.headers();
    let upgrade =
        has_word(headers, header::CONNECTION, "upgrade") && has_word(headers, header::UPGRADE, "websocket");
    let version = has_word(headers, header::SEC_WEBSOCKET_VERSION, "13");
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| upgrade && version) else {
        return fail(400, "BadRequest", "this is a stream: ask for it by WebSocket (version 13)");
    };
    let accept_key = derive_accept_key(key.as_bytes());
    let offered = has_word(headers, header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    let mut response = answer(StatusCode::SWITCHING_PROTOCOLS, "application/octet-stream", "");
    let out = response.headers_mut();
    out.clear();
    out.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    out.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    if let Ok(value) = accept_key.parse() {
        out.insert(header::SEC_WEBSOCKET_ACCEPT, value);
    }
    // A browser that offered none must not be given one.
    if offered {
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(SUBPROTOCOL));
    }
    let upgrade = Upgrade(hyper::upgrade::on(&mut request));
    Ok((response, upgrade))
}
