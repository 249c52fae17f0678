//! `sheaf console`: the serial console of a VM, on this terminal or through pipes.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::Message;

use super::super::print::say;
use super::super::progress::duration;
use super::super::{Connection, EXIT_CODES, Session};
use super::pump::{PIECE, Received, received, stdio};
use super::terminal::Raw;
use super::ws::{Socket, connect_when_running};

/// Ctrl-], as telnet and virtctl have it.
const LEAVE: u8 = 0x1d;

/// Options of `sheaf console`.
#[derive(Args)]
#[command(after_help = format!("Example:
  sheaf console web

Ctrl-] leaves; the guest does not notice. If the guest shows nothing, press Enter.
Where standard input is no terminal, it is sent as it comes, and output goes on after its end until the guest ends or Ctrl-C is pressed:
  sheaf console web </dev/null >boot.log

{EXIT_CODES}"))]
pub(crate) struct ConsoleArgs {
    #[command(flatten)]
    connection: Connection,
    /// Name of the VM.
    vm: String,
    /// How long to wait for a VM that does not run yet, as 90s or 5m.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    timeout: Duration,
}

/// Runs until the user leaves or the guest ends.
pub(crate) fn run(args: ConsoleArgs) -> Result<()> {
    super::super::run(&args.connection, async |session| console(session, &args).await)
}

async fn console(session: &Session, args: &ConsoleArgs) -> Result<()> {
    let (namespace, name) = session.name(&args.vm);
    let socket = connect_when_running(session, namespace, name, "console", args.timeout)
        .await
        .with_context(|| format!("console of VM {namespace}/{name}"))?;
    let raw = Raw::enter()?;
    if raw.is_some() {
        // Raw mode: a line feed alone does not return to the first column.
        say(&format!("Connected to the serial console of {namespace}/{name}. Ctrl-] leaves.\r"));
    }
    let end = converse(socket, raw.is_some()).await;
    let terminal = raw.is_some();
    drop(raw);
    match end {
        Ok(why) => {
            if terminal {
                say(&format!("\n{why}"));
            }
            Ok(())
        }
        Err(error) => Err(error.context(format!(
            "console of VM {namespace}/{name}: the VM was shut down, or somebody else took the console"
        ))),
    }
}

/// Carries bytes until one side ends; how it ended.
async fn converse(mut socket: Socket, terminal: bool) -> Result<&'static str> {
    let (mut input, mut output) = stdio()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut buffer = vec![0; PIECE];
    let mut open = true;
    let why = loop {
        tokio::select! {
            frame = socket.next() => match received(frame)? {
                Received::Bytes(bytes) => {
                    let written = async {
                        output.write_all(&bytes).await?;
                        output.flush().await
                    };
                    match written.await {
                        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break "Nobody reads.",
                        other => other?,
                    }
                }
                Received::Nothing => {}
                Received::End => break "The connection was closed.",
            },
            count = input.read(&mut buffer), if open => {
                let count = count?;
                open = count > 0;
                let (bytes, leave) = typed(&buffer[..count], terminal);
                if !bytes.is_empty() {
                    socket.send(Message::binary(bytes.to_vec())).await?;
                }
                if leave {
                    break "Left.";
                }
            }
            _ = terminate.recv() => break "Ended by a signal.",
            _ = hang_up.recv() => break "The terminal is gone.",
            // A raw terminal sends Ctrl-C to the guest instead.
            _ = interrupt.recv() => break "Interrupted.",
        }
    };
    let _ = socket.close(None).await;
    Ok(why)
}

/// What of the input is for the guest, and whether the user wants to leave.
fn typed(input: &[u8], terminal: bool) -> (&[u8], bool) {
    match input.iter().position(|byte| terminal && *byte == LEAVE) {
        Some(at) => (&input[..at], true),
        None => (input, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_that_leaves() {
        assert_eq!(typed(b"ls\r", true), (&b"ls\r"[..], false));
        assert_eq!(typed(b"ls\x1dmore", true), (&b"ls"[..], true));
        assert_eq!(typed(b"\x1d", false), (&b"\x1d"[..], false), "pipes carry every byte");
    }
}
