//! The files that volumes are made of: thin overlays of images, blank sparse disks; making them longer.
//!
//! An overlay's backing file is a hard link to the image in the overlay's own directory, under the name
//! [`BASE_NAME`]. So the image's data lives exactly as long as somebody needs it, whatever happens to the image's own
//! directory, and the directories may be moved. Blocking.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::intake::sync_dir_of;
use crate::probe::Format;
use crate::qcow2::{self, OverlayError, Qcow2Error};

/// Name of the image within an overlay's directory.
pub const BASE_NAME: &str = "base";

/// Why a volume's file could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The request cannot work.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The file is no overlay of ours.
    #[error(transparent)]
    Header(#[from] Qcow2Error),
    /// Disks are not made shorter: what a guest has there would be lost.
    #[error("the disk has {has} bytes and cannot be shrunk to {asked}")]
    Shrink {
        /// What it has.
        has: u64,
        /// What was asked for.
        asked: u64,
    },
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

fn io_at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io { action, path, source }
}

/// Makes `dir/name` an overlay of `virtual_size` bytes over `image`, which is linked into `dir`. Takes no longer for
/// large images than for small ones. Whatever had that name is replaced.
pub fn create_overlay(
    dir: &Path,
    name: &str,
    image: &Path,
    image_format: Format,
    virtual_size: u64,
) -> Result<(), VolumeError> {
    let overlay = qcow2::new_overlay(BASE_NAME, image_format == Format::Qcow2, virtual_size)?;
    fs::create_dir_all(dir).map_err(io_at("create", dir))?;
    let base = dir.join(BASE_NAME);
    match fs::hard_link(image, &base) {
        // From an attempt that was interrupted; perhaps of another image.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&base).map_err(io_at("replace", &base))?;
            fs::hard_link(image, &base).map_err(io_at("link", image))?;
        }
        other => other.map_err(io_at("link", image))?,
    }
    create(&dir.join(name), overlay.len, &overlay.bytes)
}

/// Makes a blank disk of `size` bytes that takes no space. Whatever had that name is replaced.
pub fn create_blank(path: &Path, size: u64) -> Result<(), VolumeError> {
    if size == 0 || !size.is_multiple_of(512) {
        return Err(OverlayError::Unaligned(size).into());
    }
    create(path, size, &[])
}

/// Appears under its name only when it is complete and durable.
fn create(path: &Path, len: u64, head: &[u8]) -> Result<(), VolumeError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io_at("create", parent))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&new)
        .map_err(io_at("create", &new))?;
    file.set_len(len).map_err(io_at("extend", &new))?;
    file.write_all_at(head, 0).map_err(io_at("write", &new))?;
    file.sync_all().map_err(io_at("write", &new))?;
    fs::rename(&new, path).map_err(io_at("rename", &new))?;
    sync_dir_of(path).map_err(io_at("make durable", path))
}

/// Size of the disk that a guest sees, in bytes. `overlay` says which of the two the file is; it is never guessed.
pub fn size(path: &Path, overlay: bool) -> Result<u64, VolumeError> {
    let file = File::open(path).map_err(io_at("open", path))?;
    if overlay {
        Ok(read_header(&file, path)?.virtual_size)
    } else {
        Ok(file.metadata().map_err(io_at("look at", path))?.len())
    }
}

fn read_header(file: &File, path: &Path) -> Result<qcow2::Header, VolumeError> {
    let mut head = Vec::new();
    file.take(64 << 10).read_to_end(&mut head).map_err(io_at("read", path))?;
    Ok(qcow2::parse_own_overlay(&head)?)
}

/// Makes a volume's file longer. Nobody may have it open: QEMU would not notice. Idempotent.
pub fn grow(path: &Path, overlay: bool, asked: u64) -> Result<(), VolumeError> {
    if asked == 0 || !asked.is_multiple_of(512) {
        return Err(OverlayError::Unaligned(asked).into());
    }
    let has = size(path, overlay)?;
    if asked < has {
        return Err(VolumeError::Shrink { has, asked });
    }
    if asked == has {
        return Ok(());
    }
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(io_at("open", path))?;
    if overlay {
        if !qcow2::can_grow_in_place(&read_header(&file, path)?, asked) {
            return Err(OverlayError::TooLarge(asked).into());
        }
        // Eight bytes within one sector: they change together, or not at all.
        file.write_all_at(&asked.to_be_bytes(), qcow2::SIZE_OFFSET).map_err(io_at("write", path))?;
    } else {
        file.set_len(asked).map_err(io_at("extend", path))?;
    }
    file.sync_all().map_err(io_at("write", path))
}
