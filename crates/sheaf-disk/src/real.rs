//! The kernel's file system: direct I/O, extents by FIEMAP, locks. Owns open files; decides nothing.
//!
//! A writable layer is held by an exclusive lock of its open file. The kernel lets go of it only when the last request
//! on that file has ended, also after its process was killed: so what a dead process had under way cannot land on top
//! of what its successor writes.
#![allow(unsafe_code, reason = "the ioctl FIEMAP is in no safe crate that we use")]

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation};

use crate::buffer::Buffer;
use crate::fs::{Dir, DiskError, Extent, File, Result, Stat};

/// How long a predecessor's last requests are waited for.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// The space of a file of so many bytes is not given back while anybody waits.
const LARGE: u64 = 64 << 20;

/// A directory on this machine.
#[derive(Debug)]
pub struct RealDir {
    path: PathBuf,
    handle: fs::File,
    lock: Option<fs::File>,
}

/// Directories that are being made have this behind their name, which no replica has.
pub const HALF_MADE: &str = "~making";
/// And those that are being deleted this.
pub const DELETED: &str = "~deleted";

/// Takes a replica's directory away. Unnamed first, so that half of it is never taken for one.
pub fn delete(path: &Path) -> Result<()> {
    let doomed = beside(path, DELETED);
    match fs::remove_dir_all(&doomed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("deleting", &doomed)(error));
        }
        _ => {}
    }
    fs::rename(path, &doomed).map_err(failed("renaming", path))?;
    fs::remove_dir_all(&doomed).map_err(failed("deleting", &doomed))
}

/// Takes away what was begun to be made under this name, if anything was.
pub fn abandon(root: &Path, name: &str) -> Result<()> {
    let path = root.join(format!("{name}{HALF_MADE}"));
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("deleting", &path)(error)),
        _ => Ok(()),
    }
}

/// Takes away what was left, in a directory of replicas, by making and deleting that was interrupted. Says what.
pub fn sweep(root: &Path) -> Result<Vec<PathBuf>> {
    let mut swept = Vec::new();
    for entry in fs::read_dir(root).map_err(failed("listing", root))? {
        let path = entry.map_err(failed("listing", root))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(HALF_MADE) || name.ends_with(DELETED) {
            fs::remove_dir_all(&path).map_err(failed("deleting", &path))?;
            swept.push(path);
        }
    }
    Ok(swept)
}

/// Makes what others have written to the files of a directory durable. Takes as long as that takes.
pub fn sync_files(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(failed("listing", path))? {
        let file = entry.map_err(failed("listing", path))?.path();
        if fs::symlink_metadata(&file).is_ok_and(|meta| meta.is_file()) {
            let synced = fs::File::open(&file).and_then(|opened| opened.sync_all());
            synced.map_err(failed("syncing", &file))?;
        }
    }
    RealDir::open_shared(path)?.sync()
}

/// The path with more behind its last name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// An open file on this machine.
#[derive(Debug, Clone)]
pub struct RealFile {
    file: Arc<fs::File>,
    path: Arc<Path>,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_path_buf();
    move |source| DiskError::Io { doing, path, source }
}

impl RealDir {
    /// Opens a directory that exists, and locks it: one process at a time.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let mut this = Self::open_shared(path)?;
        let lock = this.path.join("sheaf-lock");
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock);
        let file = file.map_err(failed("opening", &lock))?;
        lock_within(&file, &lock)?;
        this.lock = Some(file);
        Ok(this)
    }

    /// Opens a directory only to look at it.
    pub fn open_shared(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let handle = fs::File::open(&path).map_err(failed("opening", &path))?;
        Ok(Self { path, handle, lock: None })
    }

    /// Makes a new, empty directory in `root` that is to have this name once it is filled ([`Dir::finish`]). What was left of an earlier one goes.
    pub fn half_made(root: &Path, name: &str) -> Result<Self> {
        abandon(root, name)?;
        let path = root.join(format!("{name}{HALF_MADE}"));
        rustix::fs::mkdir(&path, rustix::fs::Mode::from_raw_mode(0o700))
            .map_err(io::Error::from)
            .map_err(failed("creating", &path))?;
        Self::open_shared(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn parent(&self) -> PathBuf {
        self.path.parent().unwrap_or(Path::new(".")).to_path_buf()
    }
}

/// A small file with this content, not synced.
fn put(path: &Path, bytes: &[u8]) -> Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o644);
    let mut file = options.open(path).map_err(failed("creating", path))?;
    file.write_all(bytes).map_err(failed("writing", path))?;
    Ok(file)
}

fn lock_within(file: &fs::File, path: &Path) -> Result<()> {
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if Instant::now() < end => {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            Err(rustix::io::Errno::AGAIN) => {
                return Err(DiskError::Refused {
                    path: path.to_path_buf(),
                    reason: format!("another process holds it for longer than {} s", LOCK_WAIT.as_secs()),
                });
            }
            Err(errno) => return Err(failed("locking", path)(errno.into())),
        }
    }
}

/// With O_DIRECT where the file system has it.
fn open_direct(options: &mut fs::OpenOptions, path: &Path, doing: &'static str) -> Result<RealFile> {
    let flags = libc::O_DIRECT | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    let file = match options.custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            options.custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW).open(path)
        }
        other => other,
    };
    let file = file.map_err(failed(doing, path))?;
    Ok(RealFile { file: Arc::new(file), path: path.into() })
}

impl Dir for RealDir {
    type File = RealFile;

    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn list(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed("listing", &self.path))? {
            let entry = entry.map_err(failed("listing", &self.path))?;
            if let Ok(name) = entry.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>> {
        match fs::symlink_metadata(self.at(name)) {
            Ok(meta) => Ok(Some(stat_of(&meta))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("looking at", &self.at(name))(error)),
        }
    }

    fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>> {
        let path = self.at(name);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("opening", &path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(limit as u64).read_to_end(&mut bytes).map_err(failed("reading", &path))?;
        Ok(Some(bytes))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.at(name);
        put(&path, bytes)?.sync_all().map_err(failed("syncing", &path))
    }

    fn write_together(&self, small: &[(String, Vec<u8>)], also: &[&RealFile]) -> Result<()> {
        let mut files = Vec::with_capacity(small.len());
        for (name, bytes) in small {
            let path = self.at(name);
            files.push((put(&path, bytes)?, path));
        }
        let sync = |(file, path): &(fs::File, PathBuf)| file.sync_all().map_err(failed("syncing", path));
        // Asked for at the same time they share what a file system does for a sync: a commit of its journal, a flush of the disk.
        std::thread::scope(|scope| {
            let (mut result, mut threads) = (Ok(()), Vec::new());
            for file in &files {
                let thread = std::thread::Builder::new().stack_size(64 << 10);
                match thread.spawn_scoped(scope, move || sync(file)) {
                    Ok(thread) => threads.push(thread),
                    Err(_) => result = result.and(sync(file)),
                }
            }
            result = result.and(also.iter().try_for_each(|file| file.sync()));
            threads.into_iter().fold(result, |result, thread| match thread.join() {
                Ok(other) => result.and(other),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        fs::rename(self.at(from), self.at(to)).map_err(failed("renaming", &self.at(from)))
    }

    fn link(&self, from: &str, to: &str) -> Result<()> {
        fs::hard_link(self.at(from), self.at(to)).map_err(failed("linking", &self.at(from)))
    }

    fn unlink(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.at(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("removing", &self.at(name))(error))
            }
            _ => Ok(()),
        }
    }

    fn sync(&self) -> Result<()> {
        self.handle.sync_all().map_err(failed("syncing", &self.path))
    }

    fn open(&self, name: &str, writable: bool) -> Result<RealFile> {
        let path = self.at(name);
        let opened = open_direct(fs::OpenOptions::new().read(true).write(writable), &path, "opening")?;
        if writable {
            lock_within(&opened.file, &path)?;
        }
        Ok(opened)
    }

    fn open_shared_layer(&self, name: &str) -> Result<RealFile> {
        open_direct(fs::OpenOptions::new().read(true).write(true), &self.at(name), "opening")
    }

    fn open_path(&self, path: &str) -> Result<RealFile> {
        open_direct(fs::OpenOptions::new().read(true), Path::new(path), "opening")
    }

    fn create(&self, name: &str, bytes: u64) -> Result<RealFile> {
        let path = self.at(name);
        // By two calls: a file system without O_DIRECT refuses the open that would make the file, but has made it by then.
        let new = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
        drop(new.map_err(failed("creating", &path))?);
        let made = open_direct(fs::OpenOptions::new().read(true).write(true), &path, "creating")?;
        lock_within(&made.file, &path)?;
        made.set_len(bytes)?;
        Ok(made)
    }

    fn adopt(&self, from: &Self, names: &[(String, String)]) -> Result<()> {
        for (there, here) in names {
            let source = from.at(there);
            fs::hard_link(&source, self.at(here)).map_err(failed("linking", &source))?;
        }
        Ok(())
    }

    fn let_go(&self, file: Arc<RealFile>) {
        let large = file.stat().is_ok_and(|stat| stat.links == 0 && stat.allocated >= LARGE);
        if large {
            // If there is no thread to be had, it is dropped here.
            let _ = std::thread::Builder::new()
                .name("letting-go".into())
                .stack_size(64 << 10)
                .spawn(move || drop(file));
        }
    }

    fn sibling(&self, name: &str) -> Result<Self> {
        Self::half_made(&self.parent(), name)
    }

    fn has_sibling(&self, name: &str) -> Result<bool> {
        let path = self.parent().join(name);
        fs::exists(&path).map_err(failed("looking at", &path))
    }

    fn finish(self, name: &str) -> Result<()> {
        let parent = self.parent();
        fs::rename(&self.path, parent.join(name)).map_err(failed("renaming", &self.path))?;
        let handle = fs::File::open(&parent).map_err(failed("opening", &parent))?;
        handle.sync_all().map_err(failed("syncing", &parent))
    }
}

fn stat_of(meta: &fs::Metadata) -> Stat {
    Stat {
        inode: meta.ino(),
        links: meta.nlink(),
        bytes: meta.len(),
        allocated: meta.blocks() * 512,
        changed: (meta.ctime(), u32::try_from(meta.ctime_nsec()).unwrap_or(0)),
    }
}

impl RealFile {
    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> DiskError {
        failed(doing, &self.path)
    }

    /// The open file.
    pub(crate) fn file(&self) -> &fs::File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for RealFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for RealFile {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

impl File for RealFile {
    fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(self.failed("looking at"))?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut aligned = Buffer::any(buffer.len());
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut aligned[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("reading")(error)),
            }
        }
        buffer[..done].copy_from_slice(&aligned[..done]);
        buffer[done..].fill(0);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let aligned = Buffer::from_slice(bytes);
        self.file.write_all_at(&aligned, offset).map_err(self.failed("writing"))
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&*self.file, flags, offset, len)
            .map_err(io::Error::from)
            .map_err(self.failed("punching a hole into"))
    }

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        let end = offset.saturating_add(len).min(self.len()?);
        if offset >= end {
            return Ok(Vec::new());
        }
        fiemap(&self.file, offset, end - offset, limit).map_err(self.failed("listing the extents of"))
    }

    fn set_len(&self, bytes: u64) -> Result<()> {
        self.file.set_len(bytes).map_err(self.failed("setting the length of"))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(self.failed("syncing"))
    }

    fn stat(&self) -> Result<Stat> {
        Ok(stat_of(&self.file.metadata().map_err(self.failed("looking at"))?))
    }
}

/// One extent as `struct fiemap_extent` has it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const EXTENTS: usize = 256;

/// `struct fiemap` with room for extents.
#[repr(C)]
struct RawMap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [RawExtent; EXTENTS],
}

const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
const FLAG_SYNC: u32 = 0x1;
const EXTENT_LAST: u32 = 0x1;
const EXTENT_UNWRITTEN: u32 = 0x800;

/// What has storage in a range. Somebody else may have written the file a moment ago, as who copies a directory here does: data that waits in the
/// page cache is told as storage that was never written to, or not at all, until it is on the disk. Our own writes are direct; for
/// them the kernel has nothing to wait for.
fn fiemap(file: &fs::File, offset: u64, len: u64, limit: usize) -> io::Result<Vec<Extent>> {
    let end = offset + len;
    let mut found: Vec<Extent> = Vec::new();
    let mut at = offset;
    let mut map = Box::new(RawMap {
        start: 0,
        length: 0,
        flags: FLAG_SYNC,
        mapped: 0,
        count: 0,
        reserved: 0,
        extents: [RawExtent::default(); EXTENTS],
    });
    while at < end && found.len() < limit {
        map.start = at;
        map.length = end - at;
        // The kernel takes off what it has done.
        map.flags = FLAG_SYNC;
        map.mapped = 0;
        map.count = u32::try_from(EXTENTS.min(limit - found.len())).unwrap_or(1);
        // SAFETY: the pointer is to a `struct fiemap` followed by `count` extents, all ours, alive during the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut *map) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOTTY) => seek(file, offset, end, limit),
                _ => Err(error),
            };
        }
        let mapped = (map.mapped as usize).min(EXTENTS);
        if mapped == 0 {
            break;
        }
        for raw in &map.extents[..mapped] {
            let (from, to) = (raw.logical.max(offset), raw.logical.saturating_add(raw.length).min(end));
            at = at.max(raw.logical.saturating_add(raw.length));
            if from >= to {
                continue;
            }
            let unwritten = raw.flags & EXTENT_UNWRITTEN != 0;
            match found.last_mut() {
                Some(last) if last.start + last.len == from && last.unwritten == unwritten => {
                    last.len += to - from
                }
                _ => found.push(Extent { start: from, len: to - from, unwritten }),
            }
        }
        if map.extents[mapped - 1].flags & EXTENT_LAST != 0 {
            break;
        }
    }
    Ok(found)
}

/// For file systems without FIEMAP (tmpfs): data as `lseek` finds it.
fn seek(file: &fs::File, offset: u64, end: u64, limit: usize) -> io::Result<Vec<Extent>> {
    use rustix::fs::SeekFrom;
    let mut found = Vec::new();
    let mut at = offset;
    while at < end && found.len() < limit {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.max(at),
            Err(rustix::io::Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let stop = rustix::fs::seek(file, SeekFrom::Hole(start)).map_err(io::Error::from)?.min(end);
        if start >= end {
            break;
        }
        found.push(Extent { start, len: stop - start, unwritten: false });
        at = stop;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_data_and_prepared_space_are_told_apart() {
        let here = tempfile::tempdir_in(".").expect("a directory on a real file system");
        let dir = RealDir::open(here.path()).expect("opens");
        let file = dir.create("volume-head-000.img", 1 << 20).expect("creates");
        assert_eq!(file.extents(0, 1 << 20, 10).expect("lists"), vec![]);
        file.write_at(8192, &[7; 4096]).expect("writes");
        file.write_at(16384, &[8; 8192]).expect("writes");
        rustix::fs::fallocate(&*file.file, FallocateFlags::KEEP_SIZE, 65536, 4096).expect("allocates");
        let found = file.extents(0, 1 << 20, 10).expect("lists");
        let expected = [(8192, 4096, false), (16384, 8192, false), (65536, 4096, true)];
        assert_eq!(found, expected.map(|(start, len, unwritten)| Extent { start, len, unwritten }));
        assert_eq!(file.extents(12288, 8192, 10).expect("lists")[0].start, 16384, "cut to what was asked");
        file.punch(8192, 4096).expect("punches");
        assert_eq!(file.extents(0, 16384, 10).expect("lists"), vec![]);
        let mut buffer = [1; 12288];
        file.read_at(12288, &mut buffer).expect("reads");
        assert!(buffer[..4096].iter().all(|b| *b == 0) && buffer[4096..].iter().all(|b| *b == 8));
    }

    /// As who copies a directory here, and has it taken over at once.
    #[test]
    fn what_somebody_else_has_just_written_is_data() {
        const BYTES: u64 = 32 << 20;
        let here = tempfile::tempdir_in(".").expect("a directory on a real file system");
        let name = "volume-head-000.img";
        fs::write(here.path().join(name), vec![7; BYTES as usize]).expect("writes");
        let dir = RealDir::open(here.path()).expect("opens");
        let found = dir.open(name, true).expect("opens").extents(0, BYTES, 10_000).expect("lists");
        let data: u64 = found.iter().filter(|extent| !extent.unwritten).map(|extent| extent.len).sum();
        assert_eq!(data, BYTES, "{found:?}");
        sync_files(here.path()).expect("syncs");
    }

    #[test]
    fn a_writable_layer_is_open_once() {
        let here = tempfile::tempdir_in(".").expect("a directory");
        let dir = RealDir::open(here.path()).expect("opens");
        let file = dir.create("volume-head-000.img", 4096).expect("creates");
        let again = fs::OpenOptions::new().read(true).write(true).open(file.path()).expect("opens");
        let locked = rustix::fs::flock(&again, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(locked, Err(rustix::io::Errno::AGAIN));
    }
}
