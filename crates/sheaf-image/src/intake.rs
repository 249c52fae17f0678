//! Through which every image comes in: looks at its first bytes, hashes, writes sparsely, watches the disk's free space,
//! checks the whole, and gives the file its name.
//!
//! Blocking (file I/O and hashing): the async shells run it on tokio's blocking threads. It knows nothing of where the
//! bytes come from. State: `<dest>.part`, locked while an [`Intake`] lives.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::digest::{Checksum, Hashes, hex};
use crate::human_bytes;
use crate::probe::{self, Format, Look, Refused};
use crate::sparse::SparseWriter;

/// Free space is looked at whenever this many bytes came in.
const SPACE_CHECK_BYTES: u64 = 16 << 20;

/// What is asked of the file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Demands {
    /// Its checksum, if the user gave one.
    pub checksum: Option<Checksum>,
    /// Its length in bytes, if it is known.
    pub len: Option<u64>,
    /// Bytes that must stay free on the file system for others.
    pub keep_free: u64,
}

/// A complete image.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// How it is to be opened.
    pub format: Format,
    /// Length of the file in bytes.
    pub len: u64,
    /// Bytes that it takes on the disk.
    pub allocated: u64,
    /// Size of the disk that a guest sees, in bytes.
    pub virtual_size: u64,
    /// SHA-512 of the file as it was sent, in hexadecimal.
    pub sha512: String,
}

/// Why an image was not taken.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// It is none that we take.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It is not what the user asked for.
    #[error("the checksum is wrong: {expected} was asked for, the file has {actual}")]
    Checksum {
        /// What was asked for.
        expected: String,
        /// What the file has.
        actual: String,
    },
    /// Ended too early, or did not end.
    #[error("{received} bytes came, {declared} were announced")]
    Length {
        /// What was announced.
        declared: u64,
        /// What came (so far).
        received: u64,
    },
    /// The disk is full, or would be.
    #[error("not enough space on the node: {needed} needed, {free} free (beside {reserve} kept in reserve)",
        needed = human_bytes(*needed), free = human_bytes(*free), reserve = human_bytes(*reserve))]
    NoSpace {
        /// What is still to be written, in bytes.
        needed: u64,
        /// What may be used, in bytes.
        free: u64,
        /// What must stay free, in bytes.
        reserve: u64,
    },
    /// Another transfer into the same file is at work.
    #[error("another transfer of this image is at work")]
    Busy,
    /// The file system failed.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A file that is coming in.
pub struct Intake {
    dest: PathBuf,
    part: PathBuf,
    demands: Demands,
    writer: SparseWriter,
    hashes: Hashes,
    head: Vec<u8>,
    look: Option<Look>,
    tail: Vec<u8>,
    space_checked_at: Option<u64>,
}

/// Where a file that is to become `dest` is collected.
pub fn part_path(dest: &Path) -> PathBuf {
    let mut name = dest.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    dest.with_file_name(name)
}

impl Intake {
    /// Begins at `offset`: with 0 anew, otherwise with what an earlier intake had made durable, which is read again
    /// to be hashed. If the file is shorter than that, the intake begins where it ends (see [`Intake::received`]).
    pub fn open(dest: &Path, demands: Demands, offset: u64) -> Result<Self, IntakeError> {
        let part = part_path(dest);
        let io = |action| {
            let path = part.clone();
            move |source| IntakeError::Io { action, path, source }
        };
        if let Some(parent) = dest.parent() {
            fs::create_dir_all(parent).map_err(io("create the directory of"))?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .map_err(io("open"))?;
        // Goes away with the file descriptor, thus also with the process.
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(IntakeError::Busy),
            Err(errno) => return Err(io("lock")(errno.into())),
        }
        let offset = offset.min(file.metadata().map_err(io("look at"))?.len());
        let old = file.try_clone().map_err(io("open"))?;
        let mut intake = Intake {
            dest: dest.to_owned(),
            demands,
            writer: SparseWriter::new(file, offset).map_err(io("truncate"))?,
            hashes: Hashes::new(demands.checksum.as_ref()),
            head: Vec::new(),
            look: None,
            tail: Vec::new(),
            space_checked_at: None,
            part: part.clone(),
        };
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < offset {
            let len = buffer.len().min(usize::try_from(offset - at).unwrap_or(buffer.len()));
            old.read_exact_at(&mut buffer[..len], at).map_err(io("read"))?;
            intake.take_note(&buffer[..len], at)?;
            at += len as u64;
        }
        Ok(intake)
    }

    /// Bytes that came so far.
    pub fn received(&self) -> u64 {
        self.writer.position()
    }

    /// Learns how long the file is to be; an error if it is too long already.
    pub fn declare_len(&mut self, len: u64) -> Result<(), IntakeError> {
        self.demands.len = Some(len);
        self.space_checked_at = None;
        self.check_len(self.received())
    }

    fn check_len(&self, received: u64) -> Result<(), IntakeError> {
        match self.demands.len {
            Some(declared) if received > declared => Err(IntakeError::Length { declared, received }),
            _ => Ok(()),
        }
    }

    /// Takes the next bytes. After an error the intake is of no further use, except after [`IntakeError::Io`] and
    /// [`IntakeError::NoSpace`] what was made durable may be resumed from.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), IntakeError> {
        let at = self.received();
        self.check_len(at + bytes.len() as u64)?;
        self.take_note(bytes, at)?;
        self.check_space()?;
        self.writer.write(bytes).map_err(|source| self.io_or_full("write to", source))
    }

    /// Everything that is done with bytes except writing them.
    fn take_note(&mut self, bytes: &[u8], at: u64) -> Result<(), IntakeError> {
        if self.look.is_none() {
            let room = probe::HEAD_LEN - self.head.len();
            self.head.extend(&bytes[..bytes.len().min(room)]);
            let complete = self.demands.len == Some(at + bytes.len() as u64);
            if self.head.len() == probe::HEAD_LEN || complete {
                self.look = Some(probe::look(&self.head)?);
            }
        }
        self.hashes.update(bytes);
        self.tail.extend(&bytes[bytes.len().saturating_sub(probe::TAIL_LEN)..]);
        self.tail.drain(..self.tail.len().saturating_sub(probe::TAIL_LEN));
        Ok(())
    }

    /// Stops before the disk is full. How much a raw file will take is not known before (it may be mostly zeroes), so
    /// only what cannot be sparse is refused at once.
    fn check_space(&mut self) -> Result<(), IntakeError> {
        let received = self.received();
        let due = self.space_checked_at.is_none_or(|last| received >= last + SPACE_CHECK_BYTES);
        if !due {
            return Ok(());
        }
        let free = free_bytes(&self.part)?.saturating_sub(self.demands.keep_free);
        let dense = matches!(self.look, Some(Look::Qcow2(_) | Look::Iso));
        let needed = match (dense, self.demands.len) {
            (true, Some(len)) => len.saturating_sub(received),
            _ => SPACE_CHECK_BYTES.min(self.demands.len.map_or(SPACE_CHECK_BYTES, |len| len - received)),
        };
        if needed > free {
            return Err(IntakeError::NoSpace { needed, free, reserve: self.demands.keep_free });
        }
        // Until the format is known the question stays open.
        if self.look.is_some() {
            self.space_checked_at = Some(received);
        }
        Ok(())
    }

    fn io_or_full(&self, action: &'static str, source: io::Error) -> IntakeError {
        if source.kind() == io::ErrorKind::StorageFull {
            let needed = self.demands.len.map_or(0, |len| len.saturating_sub(self.received()));
            return IntakeError::NoSpace { needed, free: 0, reserve: self.demands.keep_free };
        }
        IntakeError::Io { action, path: self.part.clone(), source }
    }

    /// Makes what came so far durable, so that an intake that begins at [`Intake::received`] finds it.
    pub fn sync(&mut self) -> Result<(), IntakeError> {
        self.writer.sync().map_err(|source| self.io_or_full("write", source))
    }

    /// Throws away what came so far.
    pub fn restart(&mut self) -> Result<(), IntakeError> {
        self.writer.restart().map_err(|source| self.io_or_full("truncate", source))?;
        self.hashes = Hashes::new(self.demands.checksum.as_ref());
        self.head.clear();
        self.tail.clear();
        self.look = None;
        self.demands.len = None;
        self.space_checked_at = None;
        Ok(())
    }

    /// All bytes are here: checks the whole and gives the file its name. On error the partial file is left behind.
    pub fn finish(mut self) -> Result<Stored, IntakeError> {
        let len = self.received();
        if let Some(declared) = self.demands.len.filter(|declared| *declared != len) {
            return Err(IntakeError::Length { declared, received: len });
        }
        let look = match self.look.take() {
            Some(look) => look,
            None => probe::look(&self.head)?,
        };
        let probed = probe::judge(&look, &self.tail, len)?;
        let (sha512, actual) = self.hashes.clone().finish();
        if let Some(expected) = self.demands.checksum.filter(|expected| *expected != actual) {
            let (expected, actual) = (expected.to_string(), actual.to_string());
            return Err(IntakeError::Checksum { expected, actual });
        }
        self.sync()?;
        let file = self.writer.file();
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| IntakeError::Io { action, path, source }
        };
        // A disk that was cut within its last sector reads as zeroes there, for everyone alike.
        if matches!(probed.format, Format::Raw | Format::Iso) && probed.virtual_size != len {
            file.set_len(probed.virtual_size).map_err(io("extend", &self.part))?;
            file.sync_all().map_err(io("extend", &self.part))?;
        }
        let allocated = file.metadata().map_err(io("look at", &self.part))?.blocks() * 512;
        fs::rename(&self.part, &self.dest).map_err(io("rename", &self.part))?;
        sync_dir_of(&self.dest).map_err(io("make durable", &self.dest))?;
        Ok(Stored {
            format: probed.format,
            len,
            allocated,
            virtual_size: probed.virtual_size,
            sha512: hex(&sha512),
        })
    }
}

/// Makes a file's name durable.
pub(crate) fn sync_dir_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Bytes that an unprivileged writer may still use on the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64, IntakeError> {
    let stat = rustix::fs::statvfs(path).map_err(|errno| IntakeError::Io {
        action: "ask for the free space of",
        path: path.to_owned(),
        source: errno.into(),
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn disk(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes[len - 1] = 7;
        bytes
    }

    #[test]
    fn a_file_is_taken_checked_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("deep/base");
        let bytes = disk(3 << 20);
        let demands = Demands { len: Some(bytes.len() as u64), ..Demands::default() };
        let mut intake = Intake::open(&dest, demands, 0).unwrap();
        assert!(matches!(Intake::open(&dest, demands, 0), Err(IntakeError::Busy)), "it is locked");
        for chunk in bytes.chunks(100_001) {
            intake.push(chunk).unwrap();
        }
        let stored = intake.finish().unwrap();
        assert_eq!((stored.format, stored.virtual_size), (Format::Raw, 3 << 20));
        assert!(stored.allocated < 1 << 20);
        assert_eq!(fs::read(&dest).unwrap(), bytes);
        assert!(!part_path(&dest).exists());
    }

    #[test]
    fn an_intake_goes_on_where_the_last_one_was_durable() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("base");
        let bytes = disk(1 << 20);
        let mut whole = Intake::open(&dest, Demands::default(), 0).unwrap();
        whole.push(&bytes).unwrap();
        let sha512 = whole.finish().unwrap().sha512;

        let checksum = Some(sha512.parse().unwrap());
        let mut first = Intake::open(&dest, Demands::default(), 0).unwrap();
        first.push(&bytes[..300_000]).unwrap();
        first.sync().unwrap();
        first.push(&[0xff; 1000]).unwrap();
        drop(first);
        let mut second = Intake::open(&dest, Demands { checksum, ..Demands::default() }, 300_000).unwrap();
        assert_eq!(second.received(), 300_000);
        second.push(&bytes[300_000..]).unwrap();
        assert_eq!(second.finish().unwrap().sha512, sha512);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("base");
        let take = |demands: Demands, bytes: &[u8]| {
            let mut intake = Intake::open(&dest, demands, 0).unwrap();
            bytes.chunks(70_000).try_for_each(|chunk| intake.push(chunk))?;
            intake.finish()
        };
        let page = b"<html><body>please log in</body></html>";
        let one = |len| Demands { len: Some(len), ..Demands::default() };
        let table = [
            (take(Demands::default(), page), "HTML page"),
            (take(one(page.len() as u64), page), "HTML page"),
            (take(one(1 << 20), &disk(1 << 19)), "524288 bytes came, 1048576 were announced"),
            (take(one(1 << 19), &disk(1 << 20)), "bytes came, 524288 were announced"),
            (
                take(
                    Demands { checksum: Some(Checksum::Sha256([1; 32])), ..Demands::default() },
                    &disk(1 << 20),
                ),
                "the checksum is wrong: 0101",
            ),
            (
                take(Demands { keep_free: 1 << 60, ..Demands::default() }, &disk(1 << 20)),
                "not enough space on the node: 16.0 MiB needed, 0 B free (beside 1.0 EiB kept in reserve)",
            ),
        ];
        for (result, text) in table {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(text), "{error:?} does not say {text:?}");
            assert!(!dest.exists());
        }
    }
}
