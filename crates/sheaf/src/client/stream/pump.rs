//! Bytes between a WebSocket and something else. The wire knows no half-closed connections: when this side has no
//! more to send, what still comes is taken until it pauses.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

/// Largest piece that is sent as one frame.
pub(super) const PIECE: usize = 16 << 10;
/// How long answers may pause after our end of input, before the connection is closed.
const LINGER: Duration = Duration::from_secs(2);

/// Standard input and output as streams that do not block the runtime.
pub(super) fn stdio() -> std::io::Result<(tokio::fs::File, tokio::fs::File)> {
    use std::os::fd::AsFd;
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    let output = std::io::stdout().as_fd().try_clone_to_owned()?;
    Ok((tokio::fs::File::from_std(input.into()), tokio::fs::File::from_std(output.into())))
}

/// Carries bytes both ways until one side ends.
pub(super) async fn pump<S>(
    socket: S,
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> Result<()>
where
    S: Stream<Item = Result<Message, WsError>> + Sink<Message, Error = WsError> + Unpin,
{
    let (mut give, mut take) = socket.split();
    let mut buffer = vec![0; PIECE];
    let mut ended = false;
    loop {
        tokio::select! {
            frame = take.next() => match received(frame)? {
                Received::Bytes(bytes) => {
                    writer.write_all(&bytes).await?;
                    writer.flush().await?;
                }
                Received::Nothing => {}
                Received::End => break,
            },
            count = reader.read(&mut buffer), if !ended => match count? {
                0 => ended = true,
                count => give.send(Message::binary(buffer[..count].to_vec())).await?,
            },
            // Begins anew with every frame.
            () = tokio::time::sleep(LINGER), if ended => {
                let _ = give.close().await;
                break;
            }
        }
    }
    // The other side of this may be a socket, which is to see the end.
    let _ = writer.shutdown().await;
    Ok(())
}

/// What a frame means.
pub(super) enum Received {
    Bytes(bytes::Bytes),
    /// Pings and texts.
    Nothing,
    /// The regular end.
    End,
}

/// Reads a frame; an end that is not regular is an error.
pub(super) fn received(frame: Option<Result<Message, WsError>>) -> Result<Received> {
    match frame {
        Some(Ok(Message::Binary(bytes))) => Ok(Received::Bytes(bytes)),
        Some(Ok(Message::Close(Some(close))))
            if !matches!(close.code, CloseCode::Normal | CloseCode::Away) =>
        {
            match close.reason.as_str() {
                "" => bail!("the server closed the connection ({})", u16::from(close.code)),
                reason => bail!("the server closed the connection: {reason}"),
            }
        }
        Some(Ok(Message::Close(_))) | Some(Err(WsError::ConnectionClosed)) => Ok(Received::End),
        None => bail!("the connection was lost"),
        Some(Ok(_)) => Ok(Received::Nothing),
        Some(Err(error)) => Err(anyhow::Error::new(error).context("the connection was lost")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

    async fn pair() -> (WebSocketStream<tokio::io::DuplexStream>, WebSocketStream<tokio::io::DuplexStream>) {
        let (a, b) = duplex(1 << 16);
        let client = WebSocketStream::from_raw_socket(a, Role::Client, None).await;
        (client, WebSocketStream::from_raw_socket(b, Role::Server, None).await)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_answers_after_the_end_of_input_still_come() {
        let (client, mut server) = pair().await;
        let far = async {
            let asked = server.next().await.unwrap().unwrap();
            assert_eq!(asked.into_data().as_ref(), b"question");
            tokio::time::sleep(Duration::from_millis(50)).await;
            server.send(Message::binary(b"answer".to_vec())).await.unwrap();
            server.close(None).await.unwrap();
            while server.next().await.is_some() {}
        };
        let mut out = Vec::new();
        let (result, ()) = tokio::join!(pump(client, &b"question"[..], &mut out), far);
        result.unwrap();
        assert_eq!(out, b"answer");
    }

    #[tokio::test]
    async fn an_end_with_a_reason_is_an_error() {
        let (client, mut server) = pair().await;
        let close = CloseFrame { code: CloseCode::Error, reason: "the guest is gone".into() };
        server.send(Message::Close(Some(close))).await.unwrap();
        let error = pump(client, tokio::io::empty(), tokio::io::sink()).await.unwrap_err();
        assert!(error.to_string().contains("the guest is gone"), "{error:#}");
    }
}
