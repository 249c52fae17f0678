//! What the format needs of a file system, as two traits: [`Dir`] and [`File`]. [`crate::real`] is the kernel's,
//! [`crate::sim`] a twin in memory that forgets what was not synced. Errors name the file. No state.

use std::io;
use std::path::PathBuf;

/// Why something on a disk failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file system said no.
    #[error("{doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory is not what it must be. Nothing was changed.
    #[error("replica directory {path}: {reason}")]
    Refused {
        /// Which.
        path: PathBuf,
        /// The rule that is broken, and what would help.
        reason: String,
    },
}

impl DiskError {
    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
            }
            Self::Refused { .. } => false,
        }
    }

    /// Whether something that is there could not be read: the medium, or what checks it, has said so. Another copy helps, or a write.
    pub fn is_unreadable(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_unreadable(source),
            Self::Refused { .. } => false,
        }
    }

    /// With its source, for a log line or an answer.
    pub fn explain(&self) -> String {
        match self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            Self::Refused { .. } => self.to_string(),
        }
    }
}

/// Whether a read failed because of what was to be read. The kernel has several words for it, by which of its layers found out.
pub fn is_unreadable(error: &io::Error) -> bool {
    const MEDIUM: [i32; 6] =
        [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EREMOTEIO, libc::EBADMSG, libc::EUCLEAN];
    error.raw_os_error().is_some_and(|number| MEDIUM.contains(&number))
}

/// The result of an operation on a disk.
pub type Result<T> = std::result::Result<T, DiskError>;

/// What a file system knows of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stat {
    /// The file's identity, whatever its names.
    pub inode: u64,
    /// Its names.
    pub links: u64,
    /// Its length.
    pub bytes: u64,
    /// Space that it takes.
    pub allocated: u64,
    /// When it changed: seconds and nanoseconds.
    pub changed: (i64, u32),
}

/// A range of a file that has storage. What has none is a hole, through which the layer below is seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
    /// Storage that was never written to: it reads as zeros, and hides what is below.
    pub unwritten: bool,
}

/// One replica directory. Names have no path.
pub trait Dir: Send {
    /// An open layer.
    type File: File;

    /// Where it is, for messages.
    fn path(&self) -> PathBuf;
    /// Names of all files, sorted.
    fn list(&self) -> Result<Vec<String>>;
    /// About a file; none if there is no such name.
    fn stat(&self, name: &str) -> Result<Option<Stat>>;
    /// All of a small file, at most `limit` bytes of it; none if there is no such name.
    fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>>;
    /// A small file with this content, synced; what had the name is replaced. Not atomic: see [`replace`].
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()>;
    /// Several small files with this content, and these files, synced together: what waits for one waits for all. Not atomic, in no order.
    fn write_together(&self, small: &[(String, Vec<u8>)], also: &[&Self::File]) -> Result<()>;
    /// Gives the file another name; what had that is replaced, in one step.
    fn rename(&self, from: &str, to: &str) -> Result<()>;
    /// Gives the file one more name, which must be free.
    fn link(&self, from: &str, to: &str) -> Result<()>;
    /// Takes a name away; it is no error if there is none.
    fn unlink(&self, name: &str) -> Result<()>;
    /// Makes names durable.
    fn sync(&self) -> Result<()>;
    /// Opens a layer. A writable one is locked, and opened only when no other process has requests on it.
    fn open(&self, name: &str, writable: bool) -> Result<Self::File>;
    /// Opens a layer that is shared with others, to be written to: it is not locked, whoever writes there writes the same.
    fn open_shared_layer(&self, name: &str) -> Result<Self::File>;
    /// Opens a file by its path on the machine, to read: a backing file.
    fn open_path(&self, path: &str) -> Result<Self::File>;
    /// A new, empty file of this length; none with the name may exist.
    fn create(&self, name: &str, bytes: u64) -> Result<Self::File>;
    /// Links files of the directory `from` into this one: `(name there, name here)`.
    fn adopt(&self, from: &Self, names: &[(String, String)]) -> Result<()>;
    /// Closes a layer. The last one to close a file that has no name any more gives back its space, which takes long for a large one.
    fn let_go(&self, file: std::sync::Arc<Self::File>) {
        drop(file);
    }
    /// A new, empty directory beside this one, that is to have this name once it is filled. What was left of an earlier one goes.
    fn sibling(&self, name: &str) -> Result<Self>
    where
        Self: Sized;
    /// Whether there is a directory of this name beside this one.
    fn has_sibling(&self, name: &str) -> Result<bool>;
    /// Gives a directory made by [`Dir::sibling`] its name, durably.
    fn finish(self, name: &str) -> Result<()>
    where
        Self: Sized;
}

/// An open layer. Offsets and lengths are multiples of a block, except where a file ends.
pub trait File: Send + Sync {
    /// Its length.
    fn len(&self) -> Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads; what lies behind the end reads as zeros.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// Writes all of it.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Makes a hole.
    fn punch(&self, offset: u64, len: u64) -> Result<()>;
    /// At most `limit` extents that touch the range, in order, cut to it. Whatever was written before is told as data, by whomever.
    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>>;
    /// Makes it longer or shorter.
    fn set_len(&self, bytes: u64) -> Result<()>;
    /// Makes its content durable, and what is needed to find it.
    fn sync(&self) -> Result<()>;
    /// About it.
    fn stat(&self) -> Result<Stat>;
}

/// Puts a small file in its place in one step that survives a power cut.
pub fn replace<D: Dir>(dir: &D, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = temporary(name);
    dir.write(&temporary, bytes)?;
    dir.rename(&temporary, name)?;
    dir.sync()
}

/// The same for several, of which any may be in its place after a power cut before this returns.
pub fn replace_together<D: Dir>(dir: &D, files: Vec<(String, Vec<u8>)>) -> Result<()> {
    let files: Vec<_> = files.into_iter().map(|(name, bytes)| (temporary(&name), name, bytes)).collect();
    let (names, small): (Vec<_>, Vec<_>) = files
        .into_iter()
        .map(|(temporary, name, bytes)| ((temporary.clone(), name), (temporary, bytes)))
        .unzip();
    dir.write_together(&small, &[])?;
    names.iter().try_for_each(|(temporary, name)| dir.rename(temporary, name))?;
    dir.sync()
}

/// The name under which a small file waits for its place.
pub fn temporary(name: &str) -> String {
    format!("{name}.tmp")
}

/// Calls `each` for every extent of a range, in order.
pub fn each_extent<F: File>(
    file: &F,
    offset: u64,
    len: u64,
    mut each: impl FnMut(Extent) -> Result<()>,
) -> Result<()> {
    const BATCH: usize = 256;
    let end = offset.saturating_add(len);
    let mut at = offset;
    while at < end {
        let batch = file.extents(at, end - at, BATCH)?;
        let full = batch.len() >= BATCH;
        for extent in batch {
            at = extent.start + extent.len;
            each(extent)?;
        }
        if !full {
            return Ok(());
        }
    }
    Ok(())
}
