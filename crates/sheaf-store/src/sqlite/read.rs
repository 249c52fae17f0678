//! Readers: a few threads with connections of their own, so that reads block neither writers nor the async runtime.
//!
//! Each read runs in one transaction and sees one revision. It checks the compaction horizon when it begins and again
//! when it ends: the writer raises the horizon before it deletes, so a read that passes both checks missed nothing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rusqlite::{Connection, OpenFlags, Row, params};
use tokio::sync::{mpsc, oneshot};

use super::queue::Queue;
use super::schema::{self, newest, revision, stored};
use super::{Options, write::failed};
use crate::hub::{Hub, Replay};
use crate::{Change, Entry, History, Page, Result, Revision, StoreError};

/// Jobs that may wait for a reader; more have to wait for a place.
const QUEUE: usize = 256;

/// The oldest readable revision, shared between the writer and the readers.
pub(super) struct Horizon(AtomicU64);

impl Horizon {
    pub(super) fn new(at: Revision) -> Self {
        Horizon(AtomicU64::new(at.0))
    }

    pub(super) fn get(&self) -> Revision {
        Revision(self.0.load(Ordering::SeqCst))
    }

    pub(super) fn raise(&self, to: Revision) {
        self.0.fetch_max(to.0, Ordering::SeqCst);
    }

    fn check(&self, asked: Revision) -> Result<()> {
        let oldest = self.get();
        if asked < oldest { Err(StoreError::Compacted { asked, oldest }) } else { Ok(()) }
    }
}

/// What readers may not miss: everything that was published before they were asked.
pub(super) struct Settled {
    /// What they find.
    pub(super) committed: Arc<AtomicU64>,
    pub(super) hub: Arc<Hub>,
    pub(super) queue: Arc<Queue>,
}

/// A bounded read of the history ends after so many bytes of values, however many changes it may give.
const HISTORY_BYTES: usize = 8 << 20;

type Job = Box<dyn FnOnce(&mut std::result::Result<Reader, rusqlite::Error>) + Send>;

/// The pool.
pub(super) struct Readers {
    path: PathBuf,
    page_cache_kib: u32,
    most: usize,
    horizon: Arc<Horizon>,
    settled: Settled,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    feed: Arc<Mutex<mpsc::Receiver<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Readers {
    pub(super) fn new(path: &Path, options: &Options, horizon: Arc<Horizon>, settled: Settled) -> Self {
        let (jobs, feed) = mpsc::channel(QUEUE);
        Readers {
            path: path.to_owned(),
            page_cache_kib: (options.page_cache_kib / 4).max(64),
            most: options.readers.max(1),
            horizon,
            settled,
            jobs: Mutex::new(Some(jobs)),
            feed: Arc::new(Mutex::new(feed)),
            threads: Mutex::default(),
        }
    }

    pub(super) fn horizon(&self) -> Revision {
        self.horizon.get()
    }

    /// Runs `read` on a reader thread.
    pub(super) fn run<T: Send + 'static>(
        &self,
        context: &'static str,
        read: impl FnOnce(&mut Reader) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |reader| {
            let result = match reader {
                Ok(reader) => reader.run(context, read),
                Err(error) => Err(StoreError::Backend { context, source: error.to_string().into() }),
            };
            let _ = answer.send(result);
        });
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let started = self.ensure_started();
        let behind = self.settled.committed.load(Ordering::Acquire) < self.settled.hub.revision().0;
        let settling = behind.then(|| self.settled.queue.clone());
        Box::pin(async move {
            if let Some(queue) = settling {
                queue.settle().await?;
            }
            started.map_err(|source| StoreError::Backend { context, source: source.into() })?;
            let jobs = jobs.ok_or(StoreError::Closed)?;
            jobs.send(job).await.map_err(|_| StoreError::Closed)?;
            answered.await.unwrap_or(Err(StoreError::Closed))
        })
    }

    /// The threads start with the first read.
    fn ensure_started(&self) -> std::io::Result<()> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        while threads.len() < self.most {
            let (path, cache) = (self.path.clone(), self.page_cache_kib);
            let (feed, horizon) = (self.feed.clone(), self.horizon.clone());
            let name = format!("store-read-{}", threads.len());
            let thread = std::thread::Builder::new().name(name).spawn(move || {
                let mut reader = Reader::open(&path, cache, horizon.clone());
                loop {
                    let next = feed.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
                    let Some(job) = next else { return };
                    if reader.is_err() {
                        // It may heal: for example when the process was out of file descriptors.
                        reader = Reader::open(&path, cache, horizon.clone());
                    }
                    job(&mut reader);
                }
            })?;
            threads.push(thread);
        }
        Ok(())
    }

    /// Ends the threads after the jobs that they have.
    pub(super) fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panicked reader has nothing to hand over.
            let _ = thread.join();
        }
    }
}

impl Replay for Readers {
    fn replay<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
        until: Revision,
        limit: usize,
    ) -> BoxFuture<'a, Result<History>> {
        let prefix = prefix.to_owned();
        self.run("read the history", move |r| r.changes(&prefix, from, until, limit as u64))
    }
}

/// The smallest string above all that start with `prefix`; `None`: there is none.
fn end_of(prefix: &str) -> Option<String> {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        // The range of chars skips the surrogates, as UTF-8 does.
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

/// One connection; used by one thread.
pub(super) struct Reader {
    connection: Connection,
    horizon: Arc<Horizon>,
}

impl Reader {
    fn open(path: &Path, page_cache_kib: u32, horizon: Arc<Horizon>) -> rusqlite::Result<Self> {
        let connection = schema::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, page_cache_kib)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(Reader { connection, horizon })
    }

    /// Runs one read in one transaction.
    fn run<T>(&mut self, context: &'static str, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.connection.execute_batch("BEGIN").map_err(failed(context))?;
        let result = read(self);
        // Nothing was written; ending a read transaction can fail only if the next one fails too.
        let _ = self.connection.execute_batch("COMMIT");
        result
    }

    /// The revision to read at, in this snapshot.
    fn resolve(&self, at: Revision) -> Result<Revision> {
        let current = newest(&self.connection).map_err(failed("read the newest revision"))?;
        if at == Revision(0) {
            return Ok(current);
        }
        if at > current {
            return Err(StoreError::Future { asked: at, current });
        }
        self.horizon.check(at)?;
        Ok(at)
    }

    /// Whether the history after `from` is there.
    pub(super) fn check(&mut self, from: Revision) -> Result<()> {
        self.resolve(from).map(|_| ())
    }

    pub(super) fn get(&mut self, key: &str, at: Revision) -> Result<Option<Entry>> {
        let at = self.resolve(at)?;
        let error = failed("read a key");
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT rev, created, value FROM history WHERE key = ?1 AND rev <= ?2 ORDER BY rev DESC LIMIT 1",
            )
            .map_err(&error)?;
        let mut rows = statement.query(params![key, stored(at)]).map_err(&error)?;
        let found = match rows.next().map_err(&error)? {
            Some(row) => entry(key, row, 0).map_err(&error)?,
            None => None,
        };
        self.horizon.check(at)?;
        Ok(found)
    }

    pub(super) fn list(&mut self, prefix: &str, after: &str, at: Revision, limit: u64) -> Result<Page> {
        let at = self.resolve(at)?;
        let error = failed("list keys");
        let mut newest = self
            .connection
            .prepare_cached(
                "SELECT key, max(rev), created FROM history INDEXED BY history_key
                 WHERE key >= ?1 AND (?2 IS NULL OR key < ?2) AND key > ?3 AND rev <= ?4
                 GROUP BY key ORDER BY key",
            )
            .map_err(&error)?;
        let mut fetch = self
            .connection
            .prepare_cached("SELECT rev, created, value FROM history WHERE rev = ?1")
            .map_err(&error)?;
        let mut page = Page { entries: Vec::new(), at, more: false, remaining: 0 };
        let start = if after > prefix { after } else { prefix };
        let mut rows = newest.query(params![start, end_of(prefix), after, stored(at)]).map_err(&error)?;
        while let Some(row) = rows.next().map_err(&error)? {
            if row.get::<_, i64>(2).map_err(&error)? == 0 {
                continue;
            }
            if limit != 0 && page.entries.len() as u64 >= limit {
                page.remaining += 1;
                continue;
            }
            let key = row.get_ref(0).and_then(|k| Ok(k.as_str()?)).map_err(&error)?;
            let rev: i64 = row.get(1).map_err(&error)?;
            let found = fetch.query_row([rev], |row| entry(key, row, 0)).map_err(&error)?;
            page.entries.extend(found);
        }
        page.more = page.remaining > 0;
        self.horizon.check(at)?;
        Ok(page)
    }

    /// Changes after `from` until `until` (0 = now).
    pub(super) fn changes(
        &mut self,
        prefix: &str,
        from: Revision,
        until: Revision,
        limit: u64,
    ) -> Result<History> {
        self.resolve(from)?;
        let until = self.resolve(until)?;
        let error = failed("read the history");
        // The plus signs keep the planner on the range of revisions.
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT h.rev, h.created, h.value, h.key, p.rev, p.created, p.value
                 FROM history h LEFT JOIN history p ON p.rev = h.previous
                 WHERE h.rev > ?1 AND h.rev <= ?2 AND +h.key >= ?3 AND (?4 IS NULL OR +h.key < ?4)
                 ORDER BY h.rev LIMIT ?5",
            )
            .map_err(&error)?;
        let most = if limit == 0 { i64::MAX } else { i64::try_from(limit).unwrap_or(i64::MAX) };
        let bounds = params![stored(from), stored(until), prefix, end_of(prefix), most];
        let mut rows = statement.query(bounds).map_err(&error)?;
        let mut history = History { changes: Vec::new(), through: until };
        let mut bytes = 0;
        while let Some(row) = rows.next().map_err(&error)? {
            match change(row).map_err(&error)? {
                Some(change) => {
                    bytes += change.bytes();
                    history.changes.push(change);
                    if limit != 0 && bytes > HISTORY_BYTES {
                        break;
                    }
                }
                None => {
                    // Its predecessor was swept away a moment ago, or the file is damaged.
                    self.horizon.check(from)?;
                    let source = "a row of the history lacks its predecessor".into();
                    return Err(StoreError::Backend { context: "read the history", source });
                }
            }
        }
        let cut = limit != 0 && (history.changes.len() as u64 == limit || bytes > HISTORY_BYTES);
        if cut && let Some(last) = history.changes.last() {
            history.through = last.revision();
        }
        self.horizon.check(from)?;
        Ok(history)
    }
}

/// `rev, created, value` from column `first` on; `None` for a deletion.
fn entry(key: &str, row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Entry>> {
    let created: i64 = row.get(first + 1)?;
    if created == 0 {
        return Ok(None);
    }
    let value = Bytes::copy_from_slice(row.get_ref(first + 2)?.as_blob()?);
    let modified = revision(row.get(first)?);
    Ok(Some(Entry { key: key.to_owned(), value, created: revision(created), modified }))
}

/// A row of [`Reader::changes`]; `None` when the row lacks a predecessor that it must have.
fn change(row: &Row<'_>) -> rusqlite::Result<Option<Change>> {
    let key = row.get_ref(3)?.as_str()?;
    let previous = match row.get::<_, Option<i64>>(4)? {
        Some(_) => entry(key, row, 4)?,
        None => None,
    };
    Ok(match entry(key, row, 0)? {
        Some(entry) if previous.is_none() && entry.created != entry.modified => None,
        Some(entry) => Some(Change::Put { entry, previous }),
        None => previous
            .map(|previous| Ok::<_, rusqlite::Error>((previous, row.get(0)?)))
            .transpose()?
            .map(|(previous, at)| Change::Delete { previous, at: revision(at) }),
    })
}

#[cfg(test)]
mod tests {
    use super::end_of;

    #[test]
    fn the_end_of_a_prefix_is_above_all_that_start_with_it() {
        for (prefix, end) in [
            ("", None),
            ("a", Some("b")),
            ("/registry/", Some("/registry0")),
            ("a\u{d7ff}", Some("a\u{e000}")),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}", None),
        ] {
            assert_eq!(end_of(prefix).as_deref(), end, "{prefix:?}");
        }
    }
}
