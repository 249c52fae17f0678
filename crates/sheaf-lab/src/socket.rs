//! WebSockets to the API server, as virtctl opens them: what consoles and forwarded ports have in common, and the latter.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use kube::client::ConfigExt;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::run::Lab;
use crate::wait::Deadline;

/// A port of a guest, forwarded: each message is a datagram, or a part of a stream.
#[derive(Debug)]
pub struct Forward(WebSocketStream<TlsStream<TcpStream>>);

impl Forward {
    /// Sends one message.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.send(Message::binary(bytes.to_vec())).await.context("sending to the forwarded port")
    }

    /// The next message.
    pub async fn receive(&mut self, deadline: Deadline) -> Result<Vec<u8>> {
        let next = async {
            loop {
                match self.0.next().await.context("the forwarded port has closed")?? {
                    Message::Binary(bytes) => return Ok(bytes.to_vec()),
                    Message::Close(frame) => bail!("the forwarded port was closed: {frame:?}"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(deadline.here().0, next)
            .await
            .context("nothing comes from the forwarded port")?
    }
}

/// Path of a subresource of a VMI of `default`.
pub(crate) fn instance_path(name: &str, tail: &str) -> String {
    format!("/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances/{name}/{tail}")
}

impl Lab {
    /// Opens a port of the guest of a VMI of `default`: `80/tcp`, `7/udp`.
    pub async fn forward(&self, name: &str, port: &str) -> Result<Forward> {
        self.websocket(&instance_path(name, &format!("portforward/{port}"))).await.map(Forward)
    }

    pub(crate) async fn websocket(&self, path: &str) -> Result<WebSocketStream<TlsStream<TcpStream>>> {
        let tls = tokio_rustls::TlsConnector::from(Arc::new(self.tls().await?));
        let tcp = TcpStream::connect("127.0.0.1:6443").await.context("connecting to the API server")?;
        let server = ServerName::try_from("127.0.0.1").context("a server name")?;
        let stream = tls.connect(server, tcp).await.context("TLS to the API server")?;
        let mut request = format!("wss://127.0.0.1:6443{path}").into_client_request().context("a request")?;
        let protocol = http::HeaderValue::from_static("plain.kubevirt.io");
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let (socket, _) =
            tokio_tungstenite::client_async(request, stream).await.context("opening the websocket")?;
        Ok(socket)
    }

    /// TLS as the administrator's kubeconfig has it.
    async fn tls(&self) -> Result<rustls::ClientConfig> {
        let mut tls = self.config().await?.rustls_client_config().context("TLS from the kubeconfig")?;
        // A websocket begins with an HTTP/1.1 upgrade.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(tls)
    }
}
