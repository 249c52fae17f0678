//! Bytes between a WebSocket and the far end, both ways, until one of them ends.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::ws::Client;

/// How often a client of a port-forward is asked whether it is still there, and how many silences end it.
pub(super) const KEEP_ALIVE: KeepAlive = KeepAlive { every: Duration::from_secs(1), silences: 60 };
/// Bytes of one message.
const CHUNK: usize = 10_240;

/// See [`KEEP_ALIVE`].
#[derive(Debug, Clone, Copy)]
pub(super) struct KeepAlive {
    every: Duration,
    silences: u32,
}

/// What is on the other side.
pub(super) enum Far {
    /// A stream of bytes.
    Stream(Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>),
    /// Datagrams, one for each message.
    Datagrams(UdpSocket),
}

impl Far {
    pub(super) fn stream(s: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (read, write) = tokio::io::split(s);
        Self::Stream(Box::new(read), Box::new(write))
    }
}

/// How a direction ended.
#[derive(PartialEq, Eq)]
enum End {
    /// The far end has no more.
    Eof,
    /// The client said goodbye, or is gone.
    Client,
}

/// Relays until an end, or until `taken_over` resolves; `first` goes to the client before anything else. At the far
/// end's end the client is told so (1000); at a take-over the connection just breaks (1006 to the client).
pub(super) async fn relay(
    client: Client,
    far: Far,
    first: Vec<u8>,
    taken_over: impl Future<Output = ()>,
    keep_alive: Option<KeepAlive>,
) {
    let (mut sink, mut source) = client.split();
    let heard = Arc::new(AtomicBool::new(true));
    let (mut reader, mut writer, datagrams) = match far {
        Far::Stream(reader, writer) => (Some(reader), Some(writer), None),
        Far::Datagrams(socket) => (None, None, Some(Arc::new(socket))),
    };
    let (from_far, to_far) = (datagrams.clone(), datagrams);

    let out = async {
        if !first.is_empty() && sink.send(Message::Binary(first.into())).await.is_err() {
            return End::Client;
        }
        let mut buffer = vec![0; if from_far.is_some() { 64 << 10 } else { CHUNK }];
        let every = keep_alive.map_or(Duration::from_secs(3600), |k| k.every);
        let mut tick = tokio::time::interval(every);
        let mut silent = 0;
        loop {
            let received = async {
                match (&mut reader, &from_far) {
                    (Some(r), _) => r.read(&mut buffer).await,
                    (None, Some(socket)) => socket.recv(&mut buffer).await,
                    (None, None) => Ok(0),
                }
            };
            let sent = tokio::select! {
                received = received => match received {
                    // An empty datagram is none; a refused one (ICMP) is no end either.
                    Ok(0) | Err(_) if from_far.is_some() => continue,
                    Ok(0) | Err(_) => return End::Eof,
                    Ok(n) => sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n]))).await,
                },
                _ = tick.tick(), if keep_alive.is_some() => {
                    silent = if heard.swap(false, Ordering::Relaxed) { 0 } else { silent + 1 };
                    if keep_alive.is_some_and(|k| silent >= k.silences) {
                        return End::Client;
                    }
                    sink.send(Message::Ping(Bytes::new())).await
                }
            };
            if sent.is_err() {
                return End::Client;
            }
        }
    };
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            heard.store(true, Ordering::Relaxed);
            let data = match message {
                Message::Binary(data) => data,
                Message::Close(_) => return End::Client,
                // Text is dropped, as the protocol says; pings are answered below us.
                _ => continue,
            };
            let written = match (&mut writer, &to_far) {
                (Some(w), _) => match w.write_all(&data).await {
                    Ok(()) => w.flush().await,
                    error => error,
                },
                (None, Some(socket)) => {
                    let _ = socket.send(&data).await;
                    Ok(())
                }
                (None, None) => Ok(()),
            };
            if written.is_err() {
                return End::Eof;
            }
        }
        End::Client
    };
    let end = tokio::select! {
        end = out => Some(end),
        end = inward => Some(end),
        () = taken_over => None,
    };
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let goodbye = async {
        match end {
            Some(End::Eof) => drop(sink.send(Message::Close(Some(frame))).await),
            Some(End::Client) => drop(sink.close().await),
            None => {}
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), goodbye).await;
}
