//! A client of our own NBD sockets, for what is written into a volume before anybody uses it: the content of a snapshot of
//! another volume.
//!
//! One request at a time, over one connection; what fails is begun again by whoever asked, from the beginning. Reads layers
//! as [`crate::inspect`] does: without a lock, past the process that owns them, so only of snapshots, which do not change.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sheaf_disk::chain::plan_open;
use sheaf_disk::fs::{Dir, DiskError, File};
use sheaf_disk::real::RealDir;
use sheaf_disk::replica::{Layer, list, read_layers};

const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
/// Longer than a volume lets a request wait.
const PATIENCE: Duration = Duration::from_secs(90);
/// Bytes copied at a time.
const CHUNK: usize = 512 << 10;

/// Why a copy ended.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source cannot be read.
    #[error("reading {path}: {reason}")]
    Source {
        /// The replica's directory.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The target cannot be written.
    #[error("writing to the volume")]
    Target(#[from] io::Error),
    /// The target says no.
    #[error("the volume answered error {0}")]
    Refused(u32),
    /// The target is smaller.
    #[error("the source has {has} bytes, the volume {room}")]
    TooLarge {
        /// Bytes of the source.
        has: u64,
        /// Bytes of the target.
        room: u64,
    },
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    bytes: u64,
    cookie: u64,
}

impl Client {
    /// Connects to whatever volume is there.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut hello = [0; 18];
        stream.read_exact(&mut hello)?;
        if hello[..16] != *b"NBDMAGICIHAVEOPT" {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no NBD server"));
        }
        // Client flags (fixed newstyle, no zeroes), then EXPORT_NAME with the empty name.
        let mut ask = 3u32.to_be_bytes().to_vec();
        ask.extend(b"IHAVEOPT");
        ask.extend(1u32.to_be_bytes());
        ask.extend(0u32.to_be_bytes());
        stream.write_all(&ask)?;
        let mut size = [0; 8];
        stream.read_exact(&mut size)?;
        stream.read_exact(&mut [0; 2])?;
        Ok(Self { stream, bytes: u64::from_be_bytes(size), cookie: 0 })
    }

    fn ask(&mut self, kind: u16, offset: u64, data: &[u8]) -> Result<(), CopyError> {
        self.cookie += 1;
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let mut head = 0x2560_9513u32.to_be_bytes().to_vec();
        head.extend([0; 2]);
        head.extend(kind.to_be_bytes());
        head.extend(self.cookie.to_be_bytes());
        head.extend(offset.to_be_bytes());
        head.extend(len.to_be_bytes());
        self.stream.write_all(&head)?;
        self.stream.write_all(data)?;
        if kind == DISCONNECT {
            return Ok(());
        }
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        match u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]) {
            0 => Ok(()),
            error => Err(CopyError::Refused(error)),
        }
    }
}

/// The layers of a snapshot, the newest first in time last; and the volume's size when they were looked at.
fn layers(path: &Path, snapshot: &str) -> Result<(Vec<Layer<impl File>>, u64), CopyError> {
    let wrong = |reason: String| CopyError::Source { path: path.display().to_string(), reason };
    let explain = |error: DiskError| wrong(error.explain());
    let dir = RealDir::open_shared(path).map_err(explain)?;
    let plan = plan_open(&list(&dir).map_err(explain)?).map_err(wrong)?;
    let image = format!("volume-snap-{snapshot}.img");
    let mut names = plan.tree.ancestry(&image).map_err(wrong)?;
    names.reverse();
    let mut layers = Vec::new();
    let backing = &plan.tree.volume.backing_file_path;
    if !backing.is_empty() {
        let file = dir.open_path(backing).map_err(explain)?;
        layers.push(Layer { name: backing.clone(), file: Arc::new(file), locked: false });
    }
    for name in names {
        let file = dir.open(&name, false).map_err(explain)?;
        layers.push(Layer { name, file: Arc::new(file), locked: false });
    }
    // Longer layers are from later, when the volume had grown.
    let bytes = layers.last().map(|layer| layer.file.len().map_err(explain)).transpose()?.unwrap_or(0);
    Ok((layers, bytes))
}

/// Writes the content of a snapshot, as a replica's directory has it, into a new volume. What is zero is not written.
/// `progress` is told bytes looked at, and of how many.
pub fn copy_snapshot(
    replica: &Path,
    snapshot: &str,
    socket: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), CopyError> {
    let (layers, bytes) = layers(replica, snapshot)?;
    let explain =
        |error: DiskError| CopyError::Source { path: replica.display().to_string(), reason: error.explain() };
    let mut target = Client::connect(socket)?;
    if bytes > target.bytes {
        return Err(CopyError::TooLarge { has: bytes, room: target.bytes });
    }
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < bytes {
        let len = usize::try_from((bytes - at).min(CHUNK as u64)).unwrap_or(CHUNK);
        let mut any = false;
        for layer in &layers {
            any |= !layer.file.extents(at, len as u64, 1).map_err(explain)?.is_empty();
        }
        if any {
            read_layers(&layers, at / 4096, &mut buffer[..len]).map_err(explain)?;
            if buffer[..len].iter().any(|byte| *byte != 0) {
                target.ask(WRITE, at, &buffer[..len])?;
            }
        }
        at += len as u64;
        progress(at, bytes);
    }
    target.ask(FLUSH, 0, &[])?;
    target.ask(DISCONNECT, 0, &[])
}
