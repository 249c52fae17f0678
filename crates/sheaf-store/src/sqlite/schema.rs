//! The file: how it is opened, checked and laid out.
//!
//! Format 2 (`user_version` 2, `application_id` "Shea"; format 1 was without the log of `log.rs`):
//!
//! | table | row |
//! |---|---|
//! | `history` | one per write: `rev` (the revision, row id), `key`, `created` (revision that created the key; 0: this row is a deletion), `previous` (row of the entry before; 0: none), `value` (null in a deletion) |
//! | `meta` | `compacted`: oldest readable revision; `swept`: deletion of superseded rows has got to here |
//!
//! The index `history_key (key, rev, created)` answers "which revision of this key is the newest until R" by itself.
//! The newest row of `history` is never deleted: its `rev` is the store's revision. An empty store is at revision 1.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::checkpoint::LOG_PAGES;
use crate::Revision;

/// Version of the format that this program writes.
pub const FORMAT: i64 = 2;
/// The oldest format that it reads, and brings up to the present one.
const OLDEST: i64 = 1;
/// "Shea" in ASCII: marks the file as ours.
const APPLICATION: i64 = 0x5368_6561;
/// The revision of an empty store; not 0, because 0 means "now" to callers.
const FIRST: u64 = 1;

/// The log is cut back to this size when it is reset.
const LOG_LIMIT_BYTES: i64 = 24 << 20;

const TABLES: &str = "
CREATE TABLE history (
  rev INTEGER PRIMARY KEY,
  key TEXT NOT NULL,
  created INTEGER NOT NULL,
  previous INTEGER NOT NULL,
  value BLOB
);
CREATE INDEX history_key ON history (key, rev, created);
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('compacted', 0), ('swept', 0);
PRAGMA application_id = 1399350625;
PRAGMA user_version = 2;
";

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{path} is in use by another process{}; stop that one first, or use another data directory",
        .pid.as_deref().map(|p| format!(" (pid {p})")).unwrap_or_default())]
    InUse {
        /// The store's file.
        path: PathBuf,
        /// Who has it, if that is known.
        pid: Option<String>,
    },
    /// Written by a newer version of this program.
    #[error(
        "{path} has format {found}; this version of Sheaf reads formats up to {known}: use the newer version"
    )]
    FutureFormat {
        /// The store's file.
        path: PathBuf,
        /// The format found.
        found: i64,
        /// The newest format known.
        known: i64,
    },
    /// A database, but not one of ours.
    #[error("{path} is a database of another program; Sheaf does not touch it")]
    Foreign {
        /// The store's file.
        path: PathBuf,
    },
    /// The file is damaged or no database at all.
    #[error("{path} is damaged or not a database; restore it from a backup, or move it away to start empty")]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// What was acknowledged last could not be brought into the database.
    #[error("what was written last to {path} cannot be brought back from its log ({path}.log0, {path}.log1)")]
    Log {
        /// The store's file.
        path: PathBuf,
        /// What stood in the way.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file system refused.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("cannot open the database {path}")]
    Sqlite {
        /// The store's file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
}

/// An open store's file.
pub(super) struct Opened {
    pub(super) connection: Connection,
    /// Held as long as the store is open.
    pub(super) lock: File,
    pub(super) compacted: Revision,
}

/// Opens the file for writing, after making sure that nobody else has it.
pub(super) fn open(path: &Path, page_cache_kib: u32) -> Result<Opened, OpenError> {
    let lock = take_lock(path)?;
    make_file(path)?;
    let wrong = |source: rusqlite::Error| refused(path, source);
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, page_cache_kib).map_err(wrong)?;
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |r| r.get::<_, i64>(0));
    let version = pragma("user_version").map_err(wrong)?;
    let application = pragma("application_id").map_err(wrong)?;
    let tables = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get::<_, i64>(0))
        .map_err(wrong)?;
    match (version, application, tables) {
        (0, 0, 0) => create(&connection).map_err(wrong)?,
        (_, APPLICATION, _) if version > FORMAT => {
            return Err(OpenError::FutureFormat { path: path.to_owned(), found: version, known: FORMAT });
        }
        (OLDEST..=FORMAT, APPLICATION, _) => {
            set_journal(&connection).map_err(wrong)?;
            // From now on an older program would not see all that was written.
            if version < FORMAT {
                connection.pragma_update(None, "user_version", FORMAT).map_err(wrong)?;
            }
        }
        _ => return Err(OpenError::Foreign { path: path.to_owned() }),
    }
    let meta = |name: &str| {
        connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |r| r.get::<_, i64>(0))
    };
    let compacted = meta("compacted").map_err(wrong)?;
    // So far each commit was synced; from now on the log answers for what is not.
    connection.pragma_update(None, "synchronous", "NORMAL").map_err(wrong)?;
    Ok(Opened { lock, compacted: revision(compacted), connection })
}

/// What SQLite's refusal says of the file.
pub(super) fn refused(path: &Path, source: rusqlite::Error) -> OpenError {
    match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            OpenError::Damaged { path: path.to_owned(), source }
        }
        _ => OpenError::Sqlite { path: path.to_owned(), source },
    }
}

/// A connection with the settings that readers and the writer share.
pub(super) fn connect(path: &Path, mode: OpenFlags, page_cache_kib: u32) -> rusqlite::Result<Connection> {
    // Each connection stays on one thread; SQLite's own mutexes would be overhead.
    let connection = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.pragma_update(None, "cache_size", -i64::from(page_cache_kib))?;
    // Plans do not depend on what is bound: without this SQLite prepares each look-up anew for each key, which was a third of
    // what it did for a write.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(24);
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(connection)
}

/// The newest revision in the connection's snapshot.
pub(super) fn newest(connection: &Connection) -> rusqlite::Result<Revision> {
    let newest = connection
        .prepare_cached("SELECT max(rev) FROM history")?
        .query_row([], |r| r.get::<_, Option<i64>>(0))?;
    Ok(newest.map_or(Revision(FIRST), revision))
}

/// Revisions are never negative; a file that says so is damaged and reads as revision 0.
pub(super) fn revision(stored: i64) -> Revision {
    Revision(u64::try_from(stored).unwrap_or_default())
}

/// As SQLite stores it. Reaching the end of `i64` takes 200,000 years at a million writes per second.
pub(super) fn stored(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn set_journal(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // FULL while the file is opened: its format must be durable before anything is acknowledged.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // What is left of it when the log is that long; most is done beside, by the checkpointer.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", LOG_PAGES, |_| Ok(()))?;
    // After a burst the log shrinks again.
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_LIMIT_BYTES, |_| Ok(()))?;
    Ok(())
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    // Must be set before the first table is made.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    set_journal(connection)?;
    connection.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} COMMIT;"))
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> OpenError {
    move |source| OpenError::Io { what, source }
}

/// A lock file of its own: closing any descriptor of the database itself would drop SQLite's locks on it.
fn take_lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(io("open the store's lock file"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let read = (&mut file).take(20).read_to_string(&mut text);
            let pid = Some(text.trim().to_owned()).filter(|t| read.is_ok() && !t.is_empty());
            return Err(OpenError::InUse { path: path.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => {
            return Err(OpenError::Io { what: "lock the store's lock file", source });
        }
    }
    // Only for the message above; losing it does no harm.
    let _ =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// Makes the file readable for its owner only; SQLite gives the files beside it the same mode.
fn make_file(path: &Path) -> Result<(), OpenError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(source) => return Err(OpenError::Io { what: "create the store's file", source }),
    }
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|d| d.sync_all()).map_err(io("sync the store's directory"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    /// Our own log promises that an acknowledged write survives a power cut; the database must not fall behind it unnoticed.
    #[test]
    fn commits_are_synced_by_whoever_needs_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        // Freshly made, and found again.
        for _ in 0..2 {
            let opened = super::open(&path, 64).unwrap();
            let ask = |name: &str| {
                opened
                    .connection
                    .query_row(&format!("PRAGMA {name}"), [], |r| r.get::<_, rusqlite::types::Value>(0))
                    .unwrap()
            };
            assert_eq!(ask("journal_mode"), "wal".to_owned().into());
            assert_eq!(ask("synchronous"), 1.into(), "NORMAL");
            assert_eq!(ask("user_version"), 2.into());
            assert_eq!(ask("auto_vacuum"), 2.into(), "INCREMENTAL");
        }
    }
}
