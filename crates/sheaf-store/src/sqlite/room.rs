//! Room on the disk for what was promised.
//!
//! What the log holds was acknowledged, and goes into the database later: a disk that is full by then would come too late. So blocks for it are
//! reserved in SQLite's own log (`-wal`, where commits go) before a write is accepted; without them it is refused. They outlive the process, so
//! that a store on a full disk can be opened, too. Owns a descriptor of that file, and nothing that is in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// What both files of the log need in pages at most: their bytes twice over, and for each row a page of the index.
const ROOM: u64 = 16 << 20;
/// Reserved at once, so that it need not be looked for again soon.
const STEP: u64 = 8 << 20;

pub(super) struct Room {
    wal: File,
    /// Its length when it was last looked at, and up to where its blocks are reserved.
    length: u64,
    reserved: u64,
}

impl Room {
    /// Of the database at `path`, which must have been read or written since it was opened: before that there is no such file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push("-wal");
        // No locks are on this file, so that closing the descriptor drops none.
        let wal = OpenOptions::new().read(true).write(true).open(Path::new(&name))?;
        Ok(Room { wal, length: 0, reserved: 0 })
    }

    /// SQLite's log, to sync it.
    pub(super) fn wal(&self) -> &File {
        &self.wal
    }

    /// Makes sure of the room behind what is written.
    pub(super) fn ensure(&mut self) -> io::Result<()> {
        let length = self.wal.metadata()?.len();
        if length < self.length {
            // It was cut back, which gave back what was reserved behind.
            self.reserved = length;
        }
        self.length = length;
        if self.reserved >= length + ROOM {
            return Ok(());
        }
        match fallocate(&self.wal, FallocateFlags::KEEP_SIZE, length, ROOM + STEP) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {
                self.reserved = length + ROOM + STEP;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
