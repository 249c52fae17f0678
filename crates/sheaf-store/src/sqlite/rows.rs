//! The rows: the writer's connection, and the transaction that stays open over many groups of writes.
//!
//! What is written here is not durable by itself: the log has it first (`log.rs`), so a commit need not wait for the disk and many
//! groups share one. Readers see what was committed. Owns the connection; knows neither callers nor the log.

use std::time::Instant;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

use super::log::Row;
use super::schema::{newest, revision, stored};
use crate::{Entry, Revision};

const BEGIN: &str = "BEGIN IMMEDIATE";
const COMMIT: &str = "COMMIT";

pub(super) struct Rows {
    connection: Connection,
    /// Since when the transaction is open, and what it has.
    open: Option<Open>,
}

struct Open {
    since: Instant,
    rows: usize,
    bytes: usize,
}

/// What a commit made visible.
#[derive(Clone, Copy, Default)]
pub(super) struct Committed {
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

impl Rows {
    pub(super) fn new(connection: Connection) -> Self {
        Rows { connection, open: None }
    }

    /// Since when rows wait for a commit, how many they are (those that go, too), and their bytes.
    pub(super) fn waiting(&self) -> Option<(Instant, usize, usize)> {
        self.open.as_ref().map(|open| (open.since, open.rows, open.bytes))
    }

    fn begin(&mut self) -> rusqlite::Result<()> {
        if self.open.is_none() {
            self.connection.prepare_cached(BEGIN)?.execute([])?;
            self.open = Some(Open { since: Instant::now(), rows: 0, bytes: 0 });
        }
        Ok(())
    }

    /// Makes visible what was written. After an error nothing of it is.
    pub(super) fn commit(&mut self) -> rusqlite::Result<Committed> {
        let Some(open) = &self.open else { return Ok(Committed::default()) };
        self.connection.prepare_cached(COMMIT)?.execute([])?;
        let done = Committed { rows: open.rows, bytes: open.bytes };
        self.open = None;
        Ok(done)
    }

    /// Forgets what was not committed.
    pub(super) fn roll_back(&mut self) {
        self.open = None;
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    pub(super) fn newest(&self) -> rusqlite::Result<Revision> {
        newest(&self.connection)
    }

    pub(super) fn exists(&mut self, key: &str) -> rusqlite::Result<bool> {
        // A look-up in a transaction of its own would take and give back SQLite's locks.
        self.begin()?;
        let created: Option<i64> = self
            .connection
            .prepare_cached("SELECT created FROM history WHERE key = ?1 ORDER BY rev DESC LIMIT 1")?
            .query_row([key], |r| r.get(0))
            .optional()?;
        Ok(created.is_some_and(|created| created != 0))
    }

    pub(super) fn entry(&mut self, key: &str) -> rusqlite::Result<Option<Entry>> {
        self.begin()?;
        let mut statement = self.connection.prepare_cached(
            "SELECT rev, created, value FROM history WHERE key = ?1 ORDER BY rev DESC LIMIT 1",
        )?;
        let mut rows = statement.query([key])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let created: i64 = row.get(1)?;
        if created == 0 {
            return Ok(None);
        }
        let value = Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?);
        let modified = revision(row.get(0)?);
        Ok(Some(Entry { key: key.to_owned(), value, created: revision(created), modified }))
    }

    pub(super) fn insert(&mut self, at: Revision, row: &Row<'_>) -> rusqlite::Result<()> {
        self.begin()?;
        self.connection
            .prepare_cached(
                "INSERT INTO history (rev, key, created, previous, value) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![stored(at), row.key, stored(row.created), stored(row.previous), row.value])?;
        if let Some(open) = &mut self.open {
            open.rows += 1;
            open.bytes += row.key.len() + row.value.map_or(0, <[u8]>::len);
        }
        Ok(())
    }

    pub(super) fn set_horizon(&mut self, to: Revision) -> rusqlite::Result<()> {
        self.set("compacted", to)
    }

    fn set(&mut self, name: &str, to: Revision) -> rusqlite::Result<()> {
        self.begin()?;
        self.connection
            .prepare_cached("UPDATE meta SET value = ?2 WHERE name = ?1")?
            .execute(params![name, stored(to)])
            .map(drop)
    }

    /// Up to where rows have been swept.
    pub(super) fn swept(&self) -> rusqlite::Result<Revision> {
        let swept = self
            .connection
            .prepare_cached("SELECT value FROM meta WHERE name = 'swept'")?
            .query_row([], |r| r.get(0))?;
        Ok(revision(swept))
    }

    /// Deletes what the revisions after `from` until `until` make superfluous: the row before each, and deletions themselves. Whether
    /// there was any.
    pub(super) fn sweep(&mut self, from: Revision, until: Revision) -> rusqlite::Result<bool> {
        self.begin()?;
        let range = params![stored(from), stored(until)];
        let before = "DELETE FROM history WHERE rev IN
            (SELECT previous FROM history WHERE rev > ?1 AND rev <= ?2 AND previous <> 0)";
        let gone = "DELETE FROM history WHERE rev > ?1 AND rev <= ?2 AND created = 0";
        let mut deleted = self.connection.prepare_cached(before)?.execute(range)?;
        deleted += self.connection.prepare_cached(gone)?.execute(range)?;
        self.set("swept", until)?;
        if let Some(open) = &mut self.open {
            open.rows += deleted;
        }
        Ok(deleted > 0)
    }

    /// Gives free pages back to the file system, at most `pages` and all but `keep`; whether there are more. Nothing may wait for a commit.
    pub(super) fn give_back(&mut self, keep: i64, pages: i64) -> rusqlite::Result<bool> {
        let free: i64 = self.connection.query_row("PRAGMA freelist_count", [], |r| r.get(0))?;
        let pages = (free - keep).min(pages);
        if pages > 0 {
            // Each step frees one page.
            let mut statement = self.connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            let mut steps = statement.query([])?;
            while steps.next()?.is_some() {}
        }
        Ok(free - pages.max(0) > keep)
    }
}
