//! The SQLite backend: one file, one writer thread that works in groups, one that carries SQLite's log over, a few readers.
//!
//! A write is answered when the log ([`log`]) that has it was synced. While one group is being synced the next one gathers in the queue, so that many
//! clients share one sync. The rows are in a transaction that many groups share. Reads run on connections of their own; one that would
//! miss what was acknowledged asks for a commit first.
//!
//! Owns: the file `state.db` beside `state.db-wal`, `state.db-shm`, `state.db.log0`, `state.db.log1` and `state.db.lock`. The format is in [`schema`].
//! Not here: what keys and values mean.

mod checkpoint;
mod keeper;
pub mod log;
mod queue;
mod read;
mod recent;
mod room;
mod rows;
pub mod schema;
mod write;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use schema::OpenError;

use crate::hub::Hub;
use crate::{Entry, History, Page, Result, Revision, Store, StoreError, Watch};
use queue::{Action, Queue};
use read::Readers;

/// Limits and habits of a [`SqliteStore`]. The default suits a server with a few thousand objects.
#[derive(Debug, Clone)]
pub struct Options {
    /// History that is younger than this is kept.
    pub keep_for: Duration,
    /// At least so many revisions of history are kept, however old.
    pub keep_revisions: u64,
    /// Writes that may wait for the writer; more have to wait for a place.
    pub queue: usize,
    /// Writes that are committed together at most.
    pub group: usize,
    /// Largest value in bytes.
    pub value_limit_bytes: usize,
    /// Changes that a watcher may leave unread before it is sent back to the history.
    pub watch_buffer: usize,
    /// Reader threads, each with a connection of its own, started when first needed.
    pub readers: usize,
    /// Size of each of the two files of the log.
    pub log_bytes: u64,
    /// Page cache of the writer in KiB; a reader has a quarter of it.
    pub page_cache_kib: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            // As long as upstream: clients that page or resume are written for this, and test that it ends.
            keep_for: Duration::from_secs(300),
            keep_revisions: 0,
            queue: 1024,
            group: 512,
            value_limit_bytes: 3 << 20,
            watch_buffer: 1024,
            readers: 2,
            log_bytes: 2 << 20,
            page_cache_kib: 2048,
        }
    }
}

/// A store in one SQLite file. Dropping it ends its threads and waits for them; what was acknowledged is on disk.
pub struct SqliteStore {
    // Fields are dropped in this order: the threads end before the lock on the file is given back.
    writer: write::Writer,
    readers: Arc<Readers>,
    queue: Arc<Queue>,
    hub: Arc<Hub>,
    limit: usize,
    _lock: std::fs::File,
}

impl SqliteStore {
    /// Opens the store at `path` (the file is made if it is absent; its directory must exist). Blocks for the time of
    /// some disk reads.
    pub fn open(path: &Path, options: &Options) -> std::result::Result<Self, OpenError> {
        Self::start(path, schema::open(path, options.page_cache_kib)?, options)
    }

    fn start(path: &Path, opened: schema::Opened, options: &Options) -> std::result::Result<Self, OpenError> {
        let committed = Arc::new(AtomicU64::new(0));
        let rows = rows::Rows::new(opened.connection);
        let keeper =
            keeper::Keeper::open(path, rows, committed.clone(), options.log_bytes).map_err(|failure| {
                match failure {
                    keeper::Failure::Database(source) => schema::refused(path, source),
                    other => OpenError::Log { path: path.to_owned(), source: other.into() },
                }
            })?;
        let hub = Arc::new(Hub::new(keeper.current(), options.watch_buffer.max(1)));
        let queue = Arc::new(Queue::new(options.queue.max(1)));
        let horizon = Arc::new(read::Horizon::new(opened.compacted));
        let settled = read::Settled { committed, hub: hub.clone(), queue: queue.clone() };
        let readers = Arc::new(Readers::new(path, options, horizon.clone(), settled));
        let start = write::Start {
            keeper,
            queue: queue.clone(),
            hub: hub.clone(),
            horizon,
            options: options.clone(),
        };
        let writer = write::Writer::spawn(start)
            .map_err(|source| OpenError::Io { what: "start the writer", source })?;
        Ok(SqliteStore { writer, readers, queue, hub, limit: options.value_limit_bytes, _lock: opened.lock })
    }

    /// Refuses new work, commits what is queued and ends the threads. Called by `Drop` too.
    pub fn close(&mut self) {
        self.queue.close();
        self.writer.join();
        self.readers.close();
        self.hub.close();
    }

    fn check_size(&self, key: &str, value: &Bytes) -> Result<()> {
        if value.len() > self.limit {
            return Err(StoreError::TooLarge { key: key.to_owned(), bytes: value.len(), limit: self.limit });
        }
        Ok(())
    }

    async fn put(&self, key: &str, action: Action) -> Result<Entry> {
        let written = self.queue.write(key, action).await?;
        written.entry.ok_or(StoreError::Closed)
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for SqliteStore {
    fn revision(&self) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async move { Ok(self.hub.revision()) })
    }

    fn get<'a>(&'a self, key: &'a str, at: Revision) -> BoxFuture<'a, Result<Option<Entry>>> {
        let key = key.to_owned();
        self.readers.run("read a key", move |r| r.get(&key, at))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
        at: Revision,
        limit: u64,
    ) -> BoxFuture<'a, Result<Page>> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        self.readers.run("list keys", move |r| r.list(&prefix, &after, at, limit))
    }

    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move {
            self.check_size(key, &value)?;
            self.put(key, Action::Create(value)).await
        })
    }

    fn update<'a>(&'a self, key: &'a str, expected: Revision, value: Bytes) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move {
            self.check_size(key, &value)?;
            self.put(key, Action::Update(expected, value)).await
        })
    }

    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<Revision>> {
        Box::pin(async move { Ok(self.queue.write(key, Action::Delete(expected)).await?.at) })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            // Checked now, so that a caller learns at once that it has to list again; the replay checks once more.
            if from != Revision(0) && from != self.hub.revision() {
                self.readers.run("start a watch", move |r| r.check(from)).await?;
            }
            let watch = self.hub.watch(self.readers.clone(), prefix, from)?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn changes<'a>(&'a self, prefix: &'a str, from: Revision, limit: u64) -> BoxFuture<'a, Result<History>> {
        let prefix = prefix.to_owned();
        self.readers.run("read the history", move |r| r.changes(&prefix, from, Revision(0), limit))
    }

    fn changed<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Revision>> {
        Box::pin(std::future::ready(Ok(self.hub.changed(prefix))))
    }

    fn oldest(&self) -> Revision {
        self.readers.horizon()
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.queue.compact(before))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A database that takes no page more, though there was room for what was acknowledged.
    #[tokio::test]
    async fn what_the_database_does_not_take_is_in_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let options = Options::default();
        let opened = schema::open(&path, 64).unwrap();
        opened.connection.pragma_update_and_check(None, "max_page_count", 60, |_| Ok(())).unwrap();
        let store = SqliteStore::start(&path, opened, &options).unwrap();
        let value = Bytes::from(vec![1; 8000]);
        let mut made = Vec::new();
        let error = loop {
            match store.create(&format!("/{}", made.len()), value.clone()).await {
                Ok(entry) => made.push(entry),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StoreError::Full), "{error:?}");
        // Nobody is shown less than was acknowledged.
        let list = store.list("/", "", Revision(0), 0).await;
        assert!(matches!(list, Err(StoreError::Full)), "{list:?}");
        // Nothing of what was refused remains, all that was acknowledged is there, and a store that has room again goes on.
        drop(store);
        let store = SqliteStore::open(&path, &options).unwrap();
        let page = store.list("/", "", Revision(0), 0).await.unwrap();
        assert_eq!(Some(page.at), made.last().map(|entry| entry.modified));
        let mut found = page.entries;
        found.sort_by_key(|entry| entry.modified);
        assert_eq!(found, made);
        let next = store.create("/next", value).await.unwrap();
        assert_eq!(next.modified.0, page.at.0 + 1);
    }
}
