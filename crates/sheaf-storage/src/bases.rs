//! Files that volumes begin as ([`Base`](crate::api::Base)): made ready under a name that nobody takes for one, then put in their place. Who
//! writes them, and when they go, is the caller's business. Blocking.

use std::fs;
use std::path::{Path, PathBuf};

use sheaf_disk::base::settle;
use sheaf_disk::fs::{Dir, DiskError};
use sheaf_disk::real::{HALF_MADE, RealDir, beside};

/// Why a file could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A name could not be changed.
    #[error("putting {path} in its place")]
    Place {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Where bases are, on a disk.
pub fn directory(disk: &Path) -> PathBuf {
    disk.join("bases")
}

/// The name that a file has while it is being made.
pub fn half_made(file: &Path) -> PathBuf {
    beside(file, HALF_MADE)
}

/// The file that one with this name was being made into; none: it is whole.
pub fn of_half_made(name: &str) -> Option<&str> {
    name.strip_suffix(HALF_MADE)
}

/// Makes what was written as [`half_made`] of `file` a base, in its place, durably. Says how many bytes it holds.
pub fn finish(file: &Path) -> Result<u64, BaseError> {
    let half = half_made(file);
    let root = file.parent().unwrap_or(Path::new("."));
    let dir = RealDir::open_shared(root)?;
    let name = half.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let held = settle(&dir.open(&name, true)?)?;
    fs::rename(&half, file).map_err(|source| BaseError::Place { path: half, source })?;
    dir.sync()?;
    Ok(held)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_base_is_there_when_it_is_whole() {
        let base = tempfile::tempdir().expect("a directory");
        let file = directory(base.path()).join("b.img");
        fs::create_dir(directory(base.path())).expect("makes it");
        let mut bytes = vec![0; 3 << 20];
        bytes[(2 << 20) + 5] = 7;
        bytes.truncate((3 << 20) - 512);
        fs::write(half_made(&file), &bytes).expect("writes");
        assert_eq!(of_half_made("b.img~making"), Some("b.img"));
        assert_eq!((of_half_made("b.img"), file.exists()), (None, false));
        assert_eq!(finish(&file).expect("finishes"), 4096);
        let meta = fs::metadata(&file).expect("is there");
        assert!(meta.len() == 3 << 20 && meta.blocks() <= 16, "{meta:?}");
        assert!(!half_made(&file).exists() && fs::read(&file).expect("reads")[..bytes.len()] == bytes);
        assert!(finish(&file).is_err(), "nothing is being made");
    }

    /// A file system tells of storage that was never written to as long as what was written is on its way there.
    #[test]
    fn nothing_is_lost_that_is_being_written() {
        let base = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory(base.path())).expect("makes it");
        for round in 0..24u8 {
            let file = directory(base.path()).join(format!("{round}.img"));
            let bytes = vec![round + 1; 1 << 20];
            fs::write(half_made(&file), &bytes).expect("writes");
            let written = fs::File::open(half_made(&file)).expect("opens");
            let writing = std::thread::spawn(move || written.sync_all());
            assert_eq!(finish(&file).expect("finishes"), 1 << 20, "round {round}");
            writing.join().expect("joins").expect("syncs");
            assert!(fs::read(&file).expect("reads") == bytes, "round {round}");
        }
    }
}
