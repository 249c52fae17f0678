//! The dialogue with a QEMU over its QMP socket.
//!
//! [`Qmp`] is a handle to a task that owns the connection; handles are cheap to clone. Commands carry ids, so several
//! may be under way, and a deadline each. Events go to one receiver; if that falls behind by more than
//! [`EVENTS_MAX`], the surplus is dropped and [`Happening::Lost`] says so: the receiver then asks for the state.
//! QEMU serves one QMP connection at a time, so there is one [`Qmp`] per machine.

mod backup;
mod devices;
mod files;
mod send;
pub mod wire;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub use backup::{Backup, Copies};
pub use devices::{BlockStats, CpuThread, FailedDisk, GuestMemory};
use send::Sender;
use wire::{Decoder, Message};
pub use wire::{Event, Refusal};

use crate::version::Version;

/// Events that wait for the receiver.
pub const EVENTS_MAX: usize = 256;
/// Commands that wait to be sent, and that wait for an answer.
const COMMANDS_MAX: usize = 64;
/// How long a command may take if the caller does not say.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// A command, or the connection, failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// No connection could be made, or QEMU did not greet.
    #[error("cannot talk to QEMU at {socket}")]
    Connect {
        /// The socket.
        socket: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// QEMU is gone, or has closed the connection.
    #[error("QEMU closed its control socket while {command:?} was under way")]
    Closed {
        /// The command.
        command: String,
    },
    /// QEMU did not answer in time. The command may still take effect.
    #[error("QEMU did not answer {command:?} within {} s", after.as_secs_f32())]
    Late {
        /// The command.
        command: String,
        /// The deadline.
        after: Duration,
    },
    /// QEMU refused.
    #[error("QEMU refused {command:?}: {}", refusal.desc)]
    Refused {
        /// The command.
        command: String,
        /// Its words.
        refusal: Refusal,
    },
    /// A file that it is to work with cannot be opened.
    #[error(transparent)]
    File(#[from] crate::chain::ChainError),
    /// QEMU answered with something unexpected.
    #[error("QEMU answered {command:?} in a form that is not understood")]
    Shape {
        /// The command.
        command: String,
    },
}

impl QmpError {
    /// Whether QEMU said that it knows no such device, node or object.
    pub fn is_not_found(&self) -> bool {
        let Self::Refused { refusal, .. } = self else { return false };
        let desc = refusal.desc.as_str();
        refusal.class == "DeviceNotFound"
            || desc.contains("not found")
            || desc.contains("Failed to find node")
            || desc.contains("does not exist")
    }
}

/// What the receiver of events hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// An event.
    Event(Event),
    /// Events were dropped; ask for the state.
    Lost,
    /// The connection ended. Nothing follows.
    Closed,
}

/// Whether the guest runs, and if not, why not. QEMU's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// Runs.
    Running,
    /// Started with `-S` and not continued yet.
    Prelaunch,
    /// Stopped by `stop`.
    Paused,
    /// The guest has powered off; the process waits for `quit`.
    Shutdown,
    /// The guest has crashed and said so.
    GuestPanicked,
    /// Stopped by an I/O error of a disk.
    IoError,
    /// Stopped by an error inside QEMU.
    InternalError,
    /// Anything else (`inmigrate`, `save-vm`, `watchdog`, ...).
    Other(String),
}

impl RunState {
    fn from_word(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "prelaunch" => Self::Prelaunch,
            "paused" => Self::Paused,
            "shutdown" => Self::Shutdown,
            "guest-panicked" => Self::GuestPanicked,
            "io-error" => Self::IoError,
            "internal-error" => Self::InternalError,
            other => Self::Other(other.into()),
        }
    }
}

struct Command {
    name: String,
    arguments: Option<Value>,
    /// An open descriptor that QEMU gets with it.
    fd: Option<OwnedFd>,
    answer: oneshot::Sender<Result<Value, Refusal>>,
}

/// A handle to the control connection of one QEMU. The connection ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Qmp {
    commands: mpsc::Sender<Command>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Qmp {
    /// Connects, waits for the greeting and leaves the negotiation mode, all within `deadline`.
    pub async fn connect(
        socket: &Path,
        deadline: Duration,
    ) -> Result<(Self, mpsc::Receiver<Happening>), QmpError> {
        let failed = |source| QmpError::Connect { socket: socket.display().to_string(), source };
        let talk = async {
            let mut stream = UnixStream::connect(socket).await?;
            let decoder = negotiate(&mut stream).await?;
            Ok((stream, decoder))
        };
        let (stream, decoder) = match timeout(deadline, talk).await {
            Ok(result) => result.map_err(failed)?,
            Err(_) => return Err(failed(std::io::ErrorKind::TimedOut.into())),
        };
        let (reader, writer) = stream.into_split();
        Ok(Self::over(reader, writer, decoder))
    }

    fn over<R, W>(reader: R, writer: W, decoder: Decoder) -> (Self, mpsc::Receiver<Happening>)
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: Sender + Send + 'static,
    {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (events, happenings) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(
            Connection { inbox, events, decoder, waiting: HashMap::new(), lost: false, next: 0 }
                .run(reader, writer),
        );
        (Self { commands }, happenings)
    }

    /// Any command, with a deadline of its own.
    pub async fn execute(
        &self,
        name: &str,
        arguments: Option<Value>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.send(name, arguments, None, deadline).await
    }

    async fn send(
        &self,
        name: &str,
        arguments: Option<Value>,
        fd: Option<OwnedFd>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let closed = || QmpError::Closed { command: name.into() };
        let (answer, result) = oneshot::channel();
        let exchange = async {
            let command = Command { name: name.into(), arguments, fd, answer };
            self.commands.send(command).await.map_err(|_| closed())?;
            result
                .await
                .map_err(|_| closed())?
                .map_err(|refusal| QmpError::Refused { command: name.into(), refusal })
        };
        match timeout(deadline, exchange).await {
            Ok(result) => result,
            Err(_) => Err(QmpError::Late { command: name.into(), after: deadline }),
        }
    }

    async fn plain(&self, name: &str) -> Result<(), QmpError> {
        self.execute(name, None, COMMAND_DEADLINE).await.map(drop)
    }

    /// Lets the guest run.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.plain("cont").await
    }
    /// Stops the guest's processors.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.plain("stop").await
    }
    /// Presses the power button.
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.plain("system_powerdown").await
    }
    /// Presses reset.
    pub async fn system_reset(&self) -> Result<(), QmpError> {
        self.plain("system_reset").await
    }
    /// Ends the process. That the connection closes before the answer comes is no error.
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.plain("quit").await {
            Err(QmpError::Closed { .. }) => Ok(()),
            other => other,
        }
    }
    /// Whether the guest runs.
    pub async fn query_status(&self) -> Result<RunState, QmpError> {
        let v = self.execute("query-status", None, COMMAND_DEADLINE).await?;
        let word = v.get("status").and_then(Value::as_str);
        word.map(RunState::from_word).ok_or_else(|| QmpError::Shape { command: "query-status".into() })
    }
    /// The machine's UUID.
    pub async fn query_uuid(&self) -> Result<String, QmpError> {
        let v = self.execute("query-uuid", None, COMMAND_DEADLINE).await?;
        let uuid = v.get("UUID").and_then(Value::as_str).map(str::to_string);
        uuid.ok_or_else(|| QmpError::Shape { command: "query-uuid".into() })
    }
    /// QEMU's version.
    pub async fn query_version(&self) -> Result<Version, QmpError> {
        let v = self.execute("query-version", None, COMMAND_DEADLINE).await?;
        let part = |key: &str| u16::try_from(v.pointer(&format!("/qemu/{key}"))?.as_u64()?).ok();
        match (part("major"), part("minor"), part("micro")) {
            (Some(major), Some(minor), Some(micro)) => Ok(Version { major, minor, micro }),
            _ => Err(QmpError::Shape { command: "query-version".into() }),
        }
    }
    /// The machine type by its versioned name (`pc-q35-7.2`).
    pub async fn machine_type(&self) -> Result<String, QmpError> {
        let args = json!({"path": "/machine", "property": "type"});
        let v = self.execute("qom-get", Some(args), COMMAND_DEADLINE).await?;
        let name = v.as_str().map(|t| t.trim_end_matches("-machine").to_string());
        name.ok_or_else(|| QmpError::Shape { command: "qom-get".into() })
    }
    /// The block devices, as QEMU lists them.
    pub async fn query_block(&self) -> Result<Value, QmpError> {
        self.execute("query-block", None, COMMAND_DEADLINE).await
    }
    /// Plugs or pulls the cable of a network card, given its device id.
    pub async fn set_link(&self, device: &str, up: bool) -> Result<(), QmpError> {
        let args = json!({"name": device, "up": up});
        self.execute("set_link", Some(args), COMMAND_DEADLINE).await.map(drop)
    }
    /// Whether the guest has opened the port behind a character device (`qga0`: the guest agent's).
    pub async fn port_open(&self, chardev: &str) -> Result<bool, QmpError> {
        let v = self.execute("query-chardev", None, COMMAND_DEADLINE).await?;
        let devices = v.as_array().ok_or_else(|| QmpError::Shape { command: "query-chardev".into() })?;
        let found = devices.iter().find(|c| c.get("label").and_then(Value::as_str) == Some(chardev));
        Ok(found.and_then(|c| c.get("frontend-open")).and_then(Value::as_bool).unwrap_or(false))
    }
}

/// Reads the greeting and sends `qmp_capabilities`. Returns the decoder with what was read beyond the answer; events
/// that came in between are none that matter, as the caller asks for the state first.
async fn negotiate(stream: &mut UnixStream) -> std::io::Result<Decoder> {
    let (mut decoder, mut messages) = (Decoder::default(), Vec::new());
    let mut buffer = vec![0; 4096];
    let mut greeted = false;
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        decoder.feed(&buffer[..n], &mut messages);
        for message in messages.drain(..) {
            match message {
                Message::Greeting if !greeted => {
                    greeted = true;
                    stream.write_all(&wire::command("qmp_capabilities", None, None)).await?;
                }
                Message::Answer { result: Ok(_), .. } if greeted => return Ok(decoder),
                Message::Answer { result: Err(r), .. } => return Err(std::io::Error::other(r.desc)),
                _ => {}
            }
        }
    }
}

struct Connection {
    inbox: mpsc::Receiver<Command>,
    events: mpsc::Sender<Happening>,
    decoder: Decoder,
    waiting: HashMap<u64, oneshot::Sender<Result<Value, Refusal>>>,
    lost: bool,
    next: u64,
}

impl Connection {
    async fn run<R: AsyncRead + Unpin, W: Sender>(mut self, mut reader: R, mut writer: W) {
        let mut buffer = vec![0; 16 << 10];
        let mut messages = Vec::new();
        let events = self.events.clone();
        loop {
            let may_send = self.waiting.len() < COMMANDS_MAX;
            tokio::select! {
                read = reader.read(&mut buffer) => {
                    let Ok(n @ 1..) = read else { break };
                    self.decoder.feed(&buffer[..n], &mut messages);
                    for message in messages.drain(..) {
                        self.on(message);
                    }
                }
                permit = events.reserve(), if self.lost => {
                    let Ok(permit) = permit else { break };
                    permit.send(Happening::Lost);
                    self.lost = false;
                }
                command = self.inbox.recv(), if may_send => {
                    let Some(command) = command else { break };
                    let (line, fd) = self.register(command);
                    // A local socket whose reader lives takes a line at once; one whose reader hangs ends in the
                    // callers' deadlines.
                    if writer.send(&line, fd).await.is_err() {
                        break;
                    }
                }
            }
        }
        // The receiver learns of the end even when it is behind; commands under way fail as `self` is dropped.
        drop(self);
        let _ = events.send(Happening::Closed).await;
    }

    fn register(&mut self, command: Command) -> (Vec<u8>, Option<OwnedFd>) {
        self.waiting.retain(|_, answer| !answer.is_closed());
        self.next += 1;
        self.waiting.insert(self.next, command.answer);
        (wire::command(&command.name, command.arguments.as_ref(), Some(self.next)), command.fd)
    }

    fn on(&mut self, message: Message) {
        match message {
            Message::Event(event) => {
                if self.lost || self.events.try_send(Happening::Event(event)).is_err() {
                    self.lost = true;
                }
            }
            Message::Answer { id: Some(id), result } => {
                if let Some(answer) = self.waiting.remove(&id) {
                    let _ = answer.send(result);
                }
            }
            Message::Answer { id: None, .. } | Message::Greeting => {}
        }
    }
}

#[cfg(test)]
mod tests;
