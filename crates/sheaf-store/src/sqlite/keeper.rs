//! The keeper: makes a group of writes durable by the log, and sees to it that all of the log gets into the database.
//!
//! The rule that everything here serves: what was acknowledged is in the log's files, or durable in the database. Rows are written after
//! the acknowledgement: nobody waits for them, and who asks what is under a key is told from memory until they are there. A file of the log is
//! written over only when the database is durable beyond its last row. When the database fails (its disk is full, say), the transaction that was open is gone:
//! the keeper is behind, accepts nothing, and with the next job brings the rows back from the log.
//!
//! Owns the rows, the log and the room. Not here: who asked, what a write must find, when to compact.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::checkpoint::Checkpointer;
use super::log::{self, Log, Row};
use super::recent::Recent;
use super::room::Room;
use super::rows::Rows;
use crate::{Change, Entry, Revision};

/// So many rows, or bytes, are committed at once: few enough that nobody notices how long it takes.
const COMMIT_ROWS: usize = 128;
const COMMIT_BYTES: usize = 512 << 10;

/// Why something could not be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Database(#[from] rusqlite::Error),
    #[error("cannot {what}")]
    File { what: &'static str, source: io::Error },
    #[error(transparent)]
    Malformed(#[from] log::Malformed),
    #[error(
        "the log goes on after revision {after}, and the database ends at {newest}: one of them was replaced"
    )]
    Gap { newest: u64, after: u64 },
    #[error(
        "the disk did not write what it had taken; what was acknowledged is in the log, and a restart brings it back"
    )]
    Broken,
}

impl Failure {
    /// The disk has no room.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Failure::Database(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            Failure::File { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

fn file(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::File { what, source }
}

enum State {
    Opening,
    Whole,
    /// Rows that were acknowledged are missing in the database.
    Behind,
    /// A sync of SQLite's log failed: nobody knows what of it is on the disk, and asking again does not tell.
    Broken,
}

pub(super) struct Keeper {
    // Before the rows, so that the last to close the database is the one that wrote it.
    checkpointer: Checkpointer,
    rows: Rows,
    recent: Recent,
    log: Log,
    room: Room,
    /// The newest acknowledged revision.
    current: Revision,
    /// What readers find in the database.
    committed: Arc<AtomicU64>,
    state: State,
    /// Rows were brought back, and what was written beside them is lost.
    renewed: bool,
}

impl Keeper {
    /// Brings what only the log has into the database.
    pub(super) fn open(
        path: &Path,
        rows: Rows,
        committed: Arc<AtomicU64>,
        log_bytes: u64,
    ) -> Result<Self, Failure> {
        let mut room = Room::open(path).map_err(file("open SQLite's log"))?;
        let log = Log::open(path, log_bytes).map_err(file("open the log"))?;
        // What was reserved is still there; a disk that is full is no reason not to open.
        let _ = room.ensure();
        let checkpointer = room
            .wal()
            .try_clone()
            .and_then(|wal| Checkpointer::spawn(path, wal))
            .map_err(file("start the checkpointer"))?;
        let (current, state) = (Revision(u64::MAX), State::Opening);
        let (recent, renewed) = (Recent::default(), false);
        let mut keeper = Keeper { checkpointer, rows, recent, log, room, current, committed, state, renewed };
        keeper.catch_up()?;
        Ok(keeper)
    }

    pub(super) fn current(&self) -> Revision {
        self.current
    }

    /// For look-ups, and for what needs no log. After an error: [`Keeper::failed`].
    pub(super) fn rows(&mut self) -> &mut Rows {
        &mut self.rows
    }

    /// Before rows are written: there is room for them, also when they go from the log into the database.
    pub(super) fn room(&mut self) -> Result<(), Failure> {
        self.room.ensure().map_err(file("reserve room for writes"))
    }

    /// Before a group: everything acknowledged is in the rows, and the log takes more. Whether rows had to be brought back, and with them was lost
    /// what is not in the log.
    pub(super) fn ready(&mut self) -> Result<bool, Failure> {
        self.whole()?;
        if self.log.is_full() {
            self.turn()?;
        }
        Ok(std::mem::take(&mut self.renewed))
    }

    fn whole(&mut self) -> Result<(), Failure> {
        match self.state {
            State::Whole => Ok(()),
            State::Opening | State::Behind => self.catch_up(),
            State::Broken => Err(Failure::Broken),
        }
    }

    /// What is under a key, with the rows of the group that is being made.
    pub(super) fn entry(&mut self, key: &str) -> Result<Option<Entry>, Failure> {
        match self.recent.get(key) {
            Some(known) => Ok(known.cloned()),
            None => Ok(self.rows.entry(key)?),
        }
    }

    /// Whether there is anything under a key.
    pub(super) fn exists(&mut self, key: &str) -> Result<bool, Failure> {
        match self.recent.get(key) {
            Some(known) => Ok(known.is_some()),
            None => Ok(self.rows.exists(key)?),
        }
    }

    /// A change of the group that is being made: those that follow it find what it leaves behind.
    pub(super) fn note(&mut self, change: &Change) {
        self.recent.note(change);
    }

    /// Makes a group durable.
    pub(super) fn keep(&mut self, changes: &[Arc<Change>]) -> Result<(), Failure> {
        let rows = changes.iter().map(|change| of(change));
        self.log.append(self.current, rows).map_err(file("write the log"))?;
        if let Some(last) = changes.last() {
            self.current = last.revision();
        }
        Ok(())
    }

    /// Writes the rows of a group that was kept. After an error the next job brings them back from the log.
    pub(super) fn carry(&mut self, changes: &[Arc<Change>]) -> Result<(), Failure> {
        for change in changes {
            if let Err(error) = self.rows.insert(change.revision(), &of(change)) {
                self.failed();
                return Err(error.into());
            }
        }
        self.recent.trim();
        Ok(())
    }

    /// The group, or what was done to the rows, did not succeed: none of it may remain.
    pub(super) fn failed(&mut self) {
        self.rows.roll_back();
        self.recent.clear();
        if let State::Whole = self.state {
            self.state = State::Behind;
        }
    }

    /// There is as much as is committed at once.
    pub(super) fn is_due(&self) -> bool {
        self.rows.waiting().is_some_and(|(_, rows, bytes)| rows >= COMMIT_ROWS || bytes >= COMMIT_BYTES)
    }

    /// Makes the rows visible to readers.
    pub(super) fn commit(&mut self) -> Result<(), Failure> {
        self.whole()?;
        match self.rows.commit() {
            Ok(done) => {
                self.checkpointer.committed(done.rows, done.bytes);
                self.committed.store(self.current.0, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                self.failed();
                Err(error.into())
            }
        }
    }

    /// Goes on in the log's other file. What that holds is durable in the database by then: the thread beside has synced it in the meantime.
    fn turn(&mut self) -> Result<(), Failure> {
        self.commit()?;
        if self.checkpointer.synced() < self.log.other() {
            self.sync()?;
        }
        self.checkpointer.sync(self.current);
        self.log.turn().map_err(|source| {
            self.failed();
            Failure::File { what: "turn to the other file of the log", source }
        })
    }

    fn sync(&mut self) -> Result<(), Failure> {
        if self.checkpointer.sync_failed() || self.room.wal().sync_data().is_err() {
            tracing::error!(
                "the disk did not write what it had taken; the store accepts nothing more until it is restarted"
            );
            self.state = State::Broken;
            return Err(Failure::Broken);
        }
        Ok(())
    }

    /// Brings back from the log what the database lacks, up to the last acknowledged revision, and begins a new log.
    fn catch_up(&mut self) -> Result<(), Failure> {
        self.rows.roll_back();
        self.recent.clear();
        let contents = self.log.contents().map_err(file("read the log"))?;
        let mut chains = Vec::new();
        for bytes in &contents {
            chains.extend(log::read(bytes)?);
        }
        chains.sort_by_key(|chain| chain.after);
        let mut newest = self.rows.newest()?;
        let before = newest;
        let result = (|| {
            for chain in &chains {
                if chain.after > newest && chain.after < self.current {
                    return Err(Failure::Gap { newest: newest.0, after: chain.after.0 });
                }
                for (at, row) in (chain.after.0 + 1..).map(Revision).zip(&chain.rows) {
                    if at > newest && at <= self.current {
                        self.rows.insert(at, row)?;
                        newest = at;
                    }
                }
            }
            Ok(self.rows.commit()?)
        })();
        if let Err(error) = result {
            self.rows.roll_back();
            return Err(error);
        }
        if !(chains.is_empty() && matches!(self.state, State::Opening)) {
            self.sync()?;
            self.log.clear().map_err(file("begin a new log"))?;
        }
        if newest > before {
            tracing::info!(
                rows = newest.0 - before.0,
                "brought back from the log what was not in the database yet"
            );
        }
        self.current = newest;
        self.committed.store(newest.0, Ordering::Release);
        (self.state, self.renewed) = (State::Whole, true);
        Ok(())
    }

    /// Before the end: with this the log has nothing that the database lacks.
    pub(super) fn close(&mut self) -> Result<(), Failure> {
        self.commit()?;
        self.sync()?;
        self.log.clear().map_err(file("empty the log"))
    }
}

fn of(change: &Change) -> Row<'_> {
    match change {
        Change::Put { entry, previous } => Row {
            key: &entry.key,
            created: entry.created,
            previous: previous.as_ref().map_or(Revision(0), |previous| previous.modified),
            value: Some(&entry.value),
        },
        Change::Delete { previous, .. } => {
            Row { key: &previous.key, created: Revision(0), previous: previous.modified, value: None }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;

    use super::*;
    use crate::Entry;
    use crate::sqlite::schema;

    const LOG_BYTES: u64 = 8 << 10;

    fn open(path: &Path) -> Keeper {
        let rows = Rows::new(schema::open(path, 64).unwrap().connection);
        Keeper::open(path, rows, Arc::default(), LOG_BYTES).unwrap()
    }

    fn change(at: Revision) -> Change {
        let value = Bytes::from(vec![at.0 as u8; 100 + at.0 as usize * 37 % 900]);
        let entry = Entry { key: format!("/{at:?}"), value, created: at, modified: at };
        Change::Put { entry, previous: None }
    }

    fn group(keeper: &mut Keeper, rows: u64) -> Result<(), Failure> {
        keeper.ready()?;
        let after = keeper.current().0;
        let changes: Vec<_> = (after + 1..=after + rows).map(|at| Arc::new(change(Revision(at)))).collect();
        changes.iter().for_each(|change| keeper.note(change));
        keeper.keep(&changes)?;
        keeper.carry(&changes)
    }

    /// All rows until the newest, and each with its content.
    fn holds(keeper: &mut Keeper, first: Revision) {
        for at in first.0 + 1..=keeper.current().0 {
            let Change::Put { entry, .. } = change(Revision(at)) else { continue };
            assert_eq!(keeper.rows().entry(&entry.key).unwrap(), Some(entry));
        }
        assert_eq!(keeper.rows().newest().unwrap(), keeper.current());
    }

    fn copy(path: &Path, to: &Path, names: &[&str]) {
        for name in names {
            let from = path.with_file_name(format!("state.db{name}"));
            std::fs::copy(from, to.join(format!("state.db{name}"))).unwrap();
        }
    }

    /// After a power cut the database and SQLite's log may be what they were when they were last synced, which happened at the turn before the last.
    #[test]
    fn a_power_cut_loses_nothing_that_was_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let mut keeper = open(&path);
        let first = keeper.current();
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        copy(&path, old.path(), &["", "-wal"]);
        copy(&path, new.path(), &["", "-wal"]);
        let mut turns = 0;
        for number in 0..400 {
            if keeper.log.is_full() {
                // What the coming turn makes durable at the latest is what the last one committed.
                copy(new.path().join("state.db").as_path(), old.path(), &["", "-wal"]);
                keeper.commit().unwrap();
                copy(&path, new.path(), &["", "-wal"]);
                turns += 1;
            }
            group(&mut keeper, 1 + number % 5).unwrap();
            if keeper.is_due() {
                keeper.commit().unwrap();
            }
            if number % 7 == 0 {
                let cut = tempfile::tempdir().unwrap();
                let cut_path = cut.path().join("state.db");
                copy(&old.path().join("state.db"), cut.path(), &["", "-wal"]);
                copy(&path, cut.path(), &[".log0", ".log1"]);
                let mut found = open(&cut_path);
                assert_eq!(found.current(), keeper.current(), "after group {number}");
                holds(&mut found, first);
            }
        }
        assert!(turns > 20, "{turns}");
    }

    #[test]
    fn rows_come_back_from_the_log_after_the_database_has_failed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let mut keeper = open(&path);
        let first = keeper.current();
        assert!(keeper.ready().unwrap());
        for number in 0..100u64 {
            group(&mut keeper, 1 + number % 4).unwrap();
            let before = keeper.current();
            // A group that came as far as memory, or as the rows.
            let next = Arc::new(change(Revision(before.0 + 1)));
            keeper.note(&next);
            assert!(keeper.exists(next.key()).unwrap());
            if number % 2 == 0 {
                keeper.carry(std::slice::from_ref(&next)).unwrap();
            }
            keeper.failed();
            assert!(!keeper.exists(next.key()).unwrap());
            if number % 3 == 0 {
                keeper.commit().unwrap();
            }
            assert!(keeper.ready().unwrap(), "the caller is told");
            assert!(!keeper.ready().unwrap(), "once");
            assert_eq!(keeper.current(), before);
            holds(&mut keeper, first);
        }
        keeper.close().unwrap();
        assert!(keeper.log.contents().unwrap().iter().all(|bytes| log::read(bytes) == Ok(None)));
    }

    #[test]
    fn a_database_that_was_replaced_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let mut keeper = open(&path);
        group(&mut keeper, 3).unwrap();
        keeper.commit().unwrap();
        keeper.log.clear().unwrap();
        group(&mut keeper, 3).unwrap();
        let other = tempfile::tempdir().unwrap();
        copy(&path, other.path(), &[".log0", ".log1"]);
        let rows = Rows::new(schema::open(&other.path().join("state.db"), 64).unwrap().connection);
        let error =
            Keeper::open(&other.path().join("state.db"), rows, Arc::default(), LOG_BYTES).err().unwrap();
        assert!(matches!(error, Failure::Gap { newest: 1, after: 4 }), "{error:?}");
    }

    #[test]
    fn a_sync_that_failed_ends_all_writing() {
        let directory = tempfile::tempdir().unwrap();
        let mut keeper = open(&directory.path().join("state.db"));
        group(&mut keeper, 3).unwrap();
        keeper.state = State::Broken;
        assert!(matches!(group(&mut keeper, 1), Err(Failure::Broken)));
        assert!(matches!(keeper.commit(), Err(Failure::Broken)));
        drop(keeper);
        let mut found = open(&directory.path().join("state.db"));
        assert_eq!(found.current(), Revision(4));
        holds(&mut found, Revision(1));
    }
}
