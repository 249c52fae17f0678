//! The dialogue with the agent inside a guest (`qemu-guest-agent`).
//!
//! The guest is not trusted and may be slow, silent or mad: every call has a deadline, answers have a bound, and one
//! call at a time is under way. After a call that went wrong the stream is brought back into step with
//! `guest-sync-delimited` before the next. Nothing here is kept; who asks decides what to remember.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::qmp::wire::{self, Decoder, Message, Refusal};

/// How long a call may take if the caller does not say.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub enum QgaError {
    /// The channel cannot be reached: QEMU is gone.
    #[error("cannot reach the guest agent's channel {channel}")]
    Channel {
        /// The socket.
        channel: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No agent answers; most likely none runs in the guest.
    #[error("the guest agent did not answer {command:?} within {} s", after.as_secs_f32())]
    Silent {
        /// The command.
        command: String,
        /// The deadline.
        after: Duration,
    },
    /// The agent refused.
    #[error("the guest agent refused {command:?}: {}", refusal.desc)]
    Refused {
        /// The command.
        command: String,
        /// Its words.
        refusal: Refusal,
    },
    /// The answer has an unexpected form.
    #[error("the guest agent answered {command:?} in a form that is not understood")]
    Shape {
        /// The command.
        command: String,
        /// What was not understood.
        #[source]
        source: serde_json::Error,
    },
}

/// A guest agent. Connects when first asked, and again after an error.
#[derive(Debug)]
pub struct Qga {
    socket: PathBuf,
    stream: Mutex<Option<Stream>>,
    syncs: AtomicU64,
}

#[derive(Debug)]
struct Stream {
    socket: UnixStream,
    decoder: Decoder,
    messages: Vec<Message>,
}

/// `guest-info`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Version of the agent.
    pub version: String,
    /// What it can do.
    #[serde(default)]
    pub supported_commands: Vec<Supported>,
}

/// A command of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supported {
    /// Its name.
    pub name: String,
    /// Whether it may be used.
    #[serde(default)]
    pub enabled: bool,
}

/// One of `guest-network-get-interfaces`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name in the guest.
    pub name: String,
    /// Hardware address; loopback has none, or zeros.
    #[serde(default, rename = "hardware-address")]
    pub mac: Option<String>,
    /// Addresses.
    #[serde(default, rename = "ip-addresses")]
    pub addresses: Vec<Address>,
}

/// An address of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// As text, IPv4 or IPv6.
    #[serde(rename = "ip-address")]
    pub ip: String,
    /// Length of the prefix.
    #[serde(default)]
    pub prefix: u8,
}

/// `guest-get-osinfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct OsInfo {
    /// `debian`.
    pub id: String,
    /// `Debian GNU/Linux`.
    pub name: String,
    /// With version.
    pub pretty_name: String,
    /// With code name.
    pub version: String,
    /// `12`.
    pub version_id: String,
    /// Kernel's release.
    pub kernel_release: String,
    /// Kernel's build.
    pub kernel_version: String,
    /// `x86_64`.
    pub machine: String,
}

/// One of `guest-get-users`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct User {
    /// Name.
    pub user: String,
    /// Windows domain.
    #[serde(default)]
    pub domain: Option<String>,
    /// Seconds since 1970.
    #[serde(default)]
    pub login_time: f64,
}

/// One of `guest-get-fsinfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileSystem {
    /// Device name.
    pub name: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// `ext4`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes in use.
    #[serde(default)]
    pub used_bytes: Option<u64>,
    /// Size in bytes.
    #[serde(default)]
    pub total_bytes: Option<u64>,
    /// The disks under it.
    #[serde(default)]
    pub disk: Vec<FsDisk>,
}

/// A disk under a file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FsDisk {
    /// Serial number.
    #[serde(default)]
    pub serial: Option<String>,
    /// `virtio`, `scsi`, ...
    #[serde(default)]
    pub bus_type: String,
}

/// `guest-get-timezone`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timezone {
    /// Name, if the guest has one.
    #[serde(default)]
    pub zone: Option<String>,
    /// Seconds east of UTC.
    #[serde(default)]
    pub offset: i64,
}

#[derive(Deserialize)]
struct HostName {
    #[serde(rename = "host-name")]
    host_name: String,
}

impl Qga {
    /// An agent behind this socket. Does not connect yet.
    pub fn new(socket: &Path) -> Self {
        let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Ids need to differ from those of an earlier connection, no more.
        let start = u64::from(seed.subsec_nanos()) << 20;
        Self { socket: socket.into(), stream: Mutex::new(None), syncs: AtomicU64::new(start) }
    }

    /// Any command. `deadline` includes waiting for calls before this one.
    pub async fn call(
        &self,
        name: &str,
        arguments: Option<Value>,
        deadline: Duration,
    ) -> Result<Value, QgaError> {
        let channel = |source| QgaError::Channel { channel: self.socket.display().to_string(), source };
        let exchange = async {
            let mut guard = self.stream.lock().await;
            // Taken out: if this future is dropped half way, the next call starts with a new connection, in step.
            let mut stream = match guard.take() {
                Some(stream) => stream,
                None => self.open().await?,
            };
            stream.socket.write_all(&wire::command(name, arguments.as_ref(), None)).await?;
            let answer = stream.answer().await?;
            *guard = Some(stream);
            Ok(answer)
        };
        match timeout(deadline, exchange).await {
            Err(_) => Err(QgaError::Silent { command: name.into(), after: deadline }),
            Ok(Err(source)) => Err(channel(source)),
            Ok(Ok(Err(refusal))) => Err(QgaError::Refused { command: name.into(), refusal }),
            Ok(Ok(Ok(value))) => Ok(value),
        }
    }

    async fn open(&self) -> std::io::Result<Stream> {
        let socket = UnixStream::connect(&self.socket).await?;
        let mut stream = Stream { socket, decoder: Decoder::default(), messages: Vec::new() };
        let id = self.syncs.fetch_add(1, Ordering::Relaxed) & 0x7fff_ffff_ffff;
        // The byte makes the agent forget half a command that it may hold.
        let mut hello = vec![0xff];
        hello.extend(wire::command("guest-sync-delimited", Some(&json!({"id": id})), None));
        stream.socket.write_all(&hello).await?;
        // Whatever was under way before is read and dropped here.
        while stream.answer().await? != Ok(json!(id)) {}
        Ok(stream)
    }

    async fn typed<T: for<'de> Deserialize<'de>>(&self, command: &str) -> Result<T, QgaError> {
        let value = self.call(command, None, CALL_DEADLINE).await?;
        serde_json::from_value(value).map_err(|source| QgaError::Shape { command: command.into(), source })
    }

    /// Version and abilities.
    pub async fn info(&self) -> Result<Info, QgaError> {
        self.typed("guest-info").await
    }
    /// Network interfaces with their addresses.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, QgaError> {
        self.typed("guest-network-get-interfaces").await
    }
    /// The operating system.
    pub async fn os_info(&self) -> Result<OsInfo, QgaError> {
        self.typed("guest-get-osinfo").await
    }
    /// Who is logged in.
    pub async fn users(&self) -> Result<Vec<User>, QgaError> {
        self.typed("guest-get-users").await
    }
    /// Mounted file systems.
    pub async fn file_systems(&self) -> Result<Vec<FileSystem>, QgaError> {
        self.typed("guest-get-fsinfo").await
    }
    /// Host name.
    pub async fn host_name(&self) -> Result<String, QgaError> {
        self.typed::<HostName>("guest-get-host-name").await.map(|h| h.host_name)
    }
    /// Time zone.
    pub async fn timezone(&self) -> Result<Timezone, QgaError> {
        self.typed("guest-get-timezone").await
    }
    /// Asks the guest to power off or to reboot (`mode`: `powerdown`, `reboot`). There is no answer to wait for if it works.
    pub async fn shutdown(&self, mode: &str) -> Result<(), QgaError> {
        match self.call("guest-shutdown", Some(json!({"mode": mode})), Duration::from_millis(500)).await {
            Ok(_) | Err(QgaError::Silent { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

impl Stream {
    async fn answer(&mut self) -> std::io::Result<Result<Value, Refusal>> {
        let mut buffer = vec![0; 8 << 10];
        loop {
            while !self.messages.is_empty() {
                if let Message::Answer { result, .. } = self.messages.remove(0) {
                    return Ok(result);
                }
            }
            let n = self.socket.read(&mut buffer).await?;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.decoder.feed(&buffer[..n], &mut self.messages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn finds_its_step_in_the_middle_of_old_answers() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("qga.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let serve = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.expect("accept");
            let (read, mut write) = socket.into_split();
            let mut read = BufReader::new(read);
            let mut line = Vec::new();
            read.read_until(b'\n', &mut line).await.expect("sync");
            assert_eq!(line[0], 0xff);
            let sync: Value = serde_json::from_slice(&line[1..]).expect("json");
            let id = &sync["arguments"]["id"];
            let noise = "half a li\n{\"return\": [\"an old answer\"]}\n\u{7f}";
            write.write_all(noise.as_bytes()).await.expect("noise");
            write.write_all(b"\xff").await.expect("delimiter");
            write.write_all(format!("{{\"return\": {id}}}\n").as_bytes()).await.expect("sync answer");
            line.clear();
            read.read_until(b'\n', &mut line).await.expect("command");
            let answer = r#"{"return":[{"name":"eth0","hardware-address":"52:54:00:12:34:56","ip-addresses":
                [{"ip-address-type":"ipv4","ip-address":"10.0.0.7","prefix":24}]}]}"#
                .replace('\n', " ");
            write.write_all(format!("{answer}\n").as_bytes()).await.expect("answer");
            line.clear();
            read.read_until(b'\n', &mut line).await.expect("second command");
            let refusal = "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"disabled\"}}\n";
            write.write_all(refusal.as_bytes()).await.expect("refusal");
            read.read_until(b'\n', &mut line).await.expect("end");
        });
        let qga = Qga::new(&path);
        let found = qga.interfaces().await.expect("interfaces");
        assert_eq!(found[0].addresses[0].ip, "10.0.0.7");
        let err = qga.os_info().await.expect_err("refused");
        assert_eq!(err.to_string(), "the guest agent refused \"guest-get-osinfo\": disabled");
        drop(qga);
        serve.await.expect("peer");
    }

    #[tokio::test]
    async fn a_guest_without_agent_costs_the_deadline() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("qga.sock");
        let _listener = UnixListener::bind(&path).expect("bind");
        let qga = Qga::new(&path);
        let err = qga.call("guest-ping", None, Duration::from_millis(20)).await.expect_err("silence");
        assert!(matches!(err, QgaError::Silent { .. }), "{err}");
    }
}
