//! The directories in which guests find the sockets of their volumes: one for everybody's feet, in it one for each volume that is attached
//! here, which belongs to the guest that has it. Not the sockets: those are the storage process's.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

const SOCKET: &str = "nbd";

/// See the module.
#[derive(Debug)]
pub(super) struct Ways {
    guests: PathBuf,
}

/// True if it was not there.
fn make(dir: &Path, mode: u32) -> io::Result<bool> {
    match std::fs::DirBuilder::new().mode(mode).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true),
    }
}

impl Ways {
    pub(super) fn new(state: &Path) -> Self {
        Self { guests: state.join("guests") }
    }

    /// Where all of them are.
    pub(super) fn guests(&self) -> &Path {
        &self.guests
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.guests.join(id.chars().filter(|c| *c != '-').take(16).collect::<String>())
    }

    /// Where guests find a volume.
    pub(super) fn socket(&self, id: &str) -> PathBuf {
        self.dir(id).join(SOCKET)
    }

    /// Makes the directory of all.
    pub(super) fn begin(&self) -> io::Result<()> {
        self.guests.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        if make(&self.guests, 0o711)? {
            // Whatever the mask says.
            std::fs::set_permissions(&self.guests, std::fs::Permissions::from_mode(0o711))?;
        }
        Ok(())
    }

    /// Makes a volume's directory, nobody's yet: before it is attached.
    pub(super) fn open(&self, id: &str) -> io::Result<()> {
        self.begin()?;
        make(&self.dir(id), 0o700).map(drop)
    }

    /// Removes it, once the volume is detached. One in which there is still something is left alone.
    pub(super) fn close(&self, id: &str) -> io::Result<()> {
        match std::fs::remove_dir(self.dir(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_leaves_no_directory_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let ways = Ways::new(&dir.path().join("state"));
        let id = "6f6c0a4e-0000-4000-8000-000000000001";
        assert_eq!(ways.socket(id), ways.guests().join("6f6c0a4e00004000").join("nbd"));
        ways.close(id).expect("what is not there need not go");
        for _ in 0..2 {
            ways.open(id).expect("is made, or is there");
        }
        let mode = |path: &Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        let own = ways.socket(id).parent().map(Path::to_path_buf).expect("has a directory");
        assert_eq!((mode(ways.guests()), mode(&own)), (0o711, 0o700));
        std::fs::write(ways.socket(id), []).expect("writes");
        assert!(ways.close(id).is_err(), "a socket is still there");
        std::fs::remove_file(ways.socket(id)).expect("removes");
        ways.close(id).expect("goes");
        assert!(!own.exists() && ways.guests().exists());
    }
}
