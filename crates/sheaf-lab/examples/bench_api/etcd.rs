//! The smallest client of etcd that there can be: `KV/Put` over gRPC, which is one HTTP/2 request of a few bytes around
//! key and value.

use bytes::{BufMut, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::Failure;

/// One connection.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    url: String,
}

impl Client {
    pub(crate) async fn connect(url: &str) -> Result<Self, Failure> {
        let uri: http::Uri = url.parse()?;
        let stream = TcpStream::connect(uri.authority().ok_or("etcd's URL has no address")?.as_str()).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, url: format!("{}/etcdserverpb.KV/Put", url.trim_end_matches('/')) })
    }

    pub(crate) async fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Failure> {
        let mut message = BytesMut::with_capacity(key.len() + value.len() + 32);
        field(1, key.as_bytes(), &mut message);
        field(2, value, &mut message);
        let mut framed = BytesMut::with_capacity(message.len() + 5);
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len())?);
        framed.extend_from_slice(&message);
        let request = Request::post(&self.url)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(framed.freeze()))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let at_once = response.headers().get("grpc-status").cloned();
        let end = response.into_body().collect().await?;
        let status = at_once.or_else(|| end.trailers().and_then(|t| t.get("grpc-status").cloned()));
        match status {
            Some(code) if code == "0" => Ok(()),
            other => Err(format!("etcd refused a put: {other:?}").into()),
        }
    }
}

/// A protobuf field of bytes.
fn field(number: u8, bytes: &[u8], out: &mut BytesMut) {
    out.put_u8(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
    out.extend_from_slice(bytes);
}
