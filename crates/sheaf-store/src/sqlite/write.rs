//! The writer: one thread that owns the writing connection and the counter of revisions.
//!
//! Round: take what the queue holds, apply it in one transaction, commit (one sync for all), publish to the hub, answer.
//! A write whose precondition does not hold is answered for itself and touches nothing. If SQLite fails, the
//! transaction is rolled back and every write in it is answered with the error.
//!
//! Compaction: raising the horizon is one small write; the rows that it makes superfluous are swept in small portions,
//! beside the groups when there are writes and by themselves when there are none, so that no writer waits for long.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use super::Options;
use super::checkpoint::Checkpointer;
use super::queue::{Action, Job, Queue, Taken, Written};
use super::read::Horizon;
use super::schema::{newest, revision, stored};
use crate::hub::Hub;
use crate::{Change, Entry, Result, Revision, StoreError};

const BEGIN: &str = "BEGIN IMMEDIATE";
const COMMIT: &str = "COMMIT";
/// Rows that are swept beside a group of writes, and by themselves when nobody writes.
const SWEEP_BESIDE: u64 = 64;
const SWEEP_ALONE: u64 = 512;
/// Free pages that are kept for new rows before they are given back to the file system, and how many at a time.
const KEEP_FREE_PAGES: i64 = 1024;
const GIVE_BACK_PAGES: i64 = 256;
/// A group of so many writes says that many clients write at the same time. Then the next one may gather for as long as this one
/// took, up to a limit: half as many groups cost everybody half as many syncs, pages and wake-ups.
const GATHER_FROM: usize = 6;
const GATHER_MOST: Duration = Duration::from_millis(1);
/// So many samples of (time, revision) cover `keep_for`.
const SAMPLES: u32 = 10;

/// A `map_err` for what SQLite says.
pub(super) fn failed(context: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Backend { context, source: source.into() }
}

/// What the writer begins with.
pub(super) struct Start {
    pub(super) connection: Connection,
    pub(super) checkpointer: Checkpointer,
    pub(super) current: Revision,
    pub(super) swept: Revision,
    pub(super) queue: Arc<Queue>,
    pub(super) hub: Arc<Hub>,
    pub(super) horizon: Arc<Horizon>,
    pub(super) options: Options,
}

/// Handle of the thread.
pub(super) struct Writer(Option<JoinHandle<()>>);

impl Writer {
    pub(super) fn spawn(start: Start) -> std::io::Result<Self> {
        let thread = std::thread::Builder::new().name("store-write".into()).spawn(move || {
            // However the loop ends: nobody must wait for an answer that will not come.
            let _abandon = Abandon(start.queue.clone(), start.hub.clone());
            Loop::new(start).run();
        })?;
        Ok(Writer(Some(thread)))
    }

    /// Waits for the end of the thread; the queue must be closed.
    pub(super) fn join(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic was already printed by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Abandon(Arc<Queue>, Arc<Hub>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.abandon();
        self.1.close();
    }
}

/// An answer that is held back until the commit.
enum Owed {
    Written(oneshot::Sender<Result<Written>>, Result<Written>),
    Compacted(oneshot::Sender<Result<()>>, Result<()>),
}

impl Owed {
    fn pay(self) {
        // A caller that went away does not want the answer.
        match self {
            Owed::Written(answer, result) => drop(answer.send(result)),
            Owed::Compacted(answer, result) => drop(answer.send(result)),
        }
    }

    fn fail(self, error: &rusqlite::Error) {
        let error = || StoreError::Backend { context: "commit a write", source: error.to_string().into() };
        match self {
            // What was refused stays refused: it depended on nothing in this group that could not be repeated.
            Owed::Written(answer, _) => drop(answer.send(Err(error()))),
            Owed::Compacted(answer, _) => drop(answer.send(Err(error()))),
        }
    }
}

struct Loop {
    // Before the connection, so that the last to close the file is the one that wrote it.
    checkpointer: Checkpointer,
    connection: Connection,
    current: Revision,
    /// Rows up to this revision have been swept; follows the horizon.
    swept: Revision,
    queue: Arc<Queue>,
    hub: Arc<Hub>,
    horizon: Arc<Horizon>,
    options: Options,
    /// When which revision was the newest; oldest first.
    samples: VecDeque<(Instant, Revision)>,
    /// A sweep failed; it is tried again when the horizon rises.
    stalled: bool,
    /// Until when the next group gathers.
    gather: Option<Instant>,
    /// Rows were deleted since it was last seen that there are few free pages.
    untidy: bool,
}

impl Loop {
    fn new(start: Start) -> Self {
        let samples = VecDeque::from([(Instant::now(), start.current)]);
        let Start { connection, checkpointer, current, swept, queue, hub, horizon, options } = start;
        Loop {
            checkpointer,
            connection,
            current,
            swept,
            queue,
            hub,
            horizon,
            options,
            samples,
            stalled: false,
            gather: None,
            untidy: true,
        }
    }

    fn run(mut self) {
        loop {
            let now = Instant::now();
            let busy = self.sweepable() || self.untidy;
            let deadline = if busy { Some(now) } else { self.next_sample() };
            let gather = self.gather.take();
            match self.queue.take(self.options.group.max(1), deadline, gather) {
                Taken::Closed => return,
                Taken::Jobs(jobs) => {
                    let (many, begun) = (jobs.len() >= GATHER_FROM, Instant::now());
                    self.commit_group(jobs);
                    self.gather = many.then(|| Instant::now() + begun.elapsed().min(GATHER_MOST));
                }
                Taken::Nothing if self.sweepable() => self.sweep_alone(),
                Taken::Nothing if self.untidy => self.give_back(),
                Taken::Nothing => {}
            }
            self.sample(Instant::now());
        }
    }

    fn commit_group(&mut self, jobs: Vec<Job>) {
        let before = (self.current, self.swept);
        let mut owed = Vec::with_capacity(jobs.len());
        let mut changes = Vec::with_capacity(jobs.len());
        match self.transact(jobs, &mut owed, &mut changes) {
            Ok(()) => {
                let bytes = changes.iter().map(Change::bytes).sum();
                self.checkpointer.committed(changes.len(), bytes);
                self.hub.publish(changes);
                owed.into_iter().for_each(Owed::pay);
            }
            Err(error) => {
                tracing::error!(error = %error, "a group of writes failed");
                (self.current, self.swept) = before;
                self.recover();
                owed.into_iter().for_each(|o| o.fail(&error));
            }
        }
    }

    fn transact(
        &mut self,
        jobs: Vec<Job>,
        owed: &mut Vec<Owed>,
        changes: &mut Vec<Change>,
    ) -> rusqlite::Result<()> {
        let mut failure = self.bound(BEGIN).err();
        for job in jobs {
            // After a failure the rest is not tried, but is owed the error all the same.
            match job {
                Job::Write { key, action, answer } => {
                    let result = match failure {
                        Some(_) => Err(StoreError::Closed),
                        None => self.apply(key, action, changes).unwrap_or_else(|error| {
                            failure = Some(error);
                            Err(StoreError::Closed)
                        }),
                    };
                    owed.push(Owed::Written(answer, result));
                }
                Job::Compact { before, answer } => {
                    let result = match failure {
                        Some(_) => Err(StoreError::Closed),
                        None => self.raise(before).unwrap_or_else(|error| {
                            failure = Some(error);
                            Err(StoreError::Closed)
                        }),
                    };
                    owed.push(Owed::Compacted(answer, result));
                }
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        if self.sweepable()
            && let Err(error) = self.sweep(SWEEP_BESIDE)
        {
            self.stalled(&error);
            if self.connection.is_autocommit() {
                // The error was of the kind that ends the whole transaction.
                return Err(error);
            }
        }
        self.bound(COMMIT)
    }

    /// A boundary of a transaction; prepared once, since each group has two.
    fn bound(&self, word: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(word)?.execute([]).map(drop)
    }

    /// After a failed transaction: nothing of it remains, and the counter is what the file says.
    fn recover(&mut self) {
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        if let Ok(current) = newest(&self.connection) {
            self.current = current;
        }
    }

    /// One write. The outer error is SQLite's, the inner one an unmet precondition.
    fn apply(
        &mut self,
        key: String,
        action: Action,
        changes: &mut Vec<Change>,
    ) -> rusqlite::Result<Result<Written>> {
        let at = Revision(self.current.0 + 1);
        let (previous, value) = match action {
            Action::Create(value) => {
                if self.exists(&key)? {
                    return Ok(Err(StoreError::Exists(key)));
                }
                (None, Some(value))
            }
            Action::Update(expected, value) => match self.entry(&key)? {
                Some(entry) if entry.modified == expected => (Some(entry), Some(value)),
                other => return Ok(Err(StoreError::Conflict(other))),
            },
            Action::Delete(expected) => match self.entry(&key)? {
                Some(entry) if entry.modified == expected => (Some(entry), None),
                other => return Ok(Err(StoreError::Conflict(other))),
            },
        };
        let created = match (&value, &previous) {
            (None, _) => Revision(0),
            (Some(_), None) => at,
            (Some(_), Some(previous)) => previous.created,
        };
        let before = previous.as_ref().map_or(Revision(0), |p| p.modified);
        self.connection
            .prepare_cached(
                "INSERT INTO history (rev, key, created, previous, value) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![stored(at), key, stored(created), stored(before), value.as_deref()])?;
        self.current = at;
        Ok(Ok(match value {
            Some(value) => {
                let entry = Entry { key, value, created, modified: at };
                changes.push(Change::Put { entry: entry.clone(), previous });
                Written { at, entry: Some(entry) }
            }
            None => {
                changes.extend(previous.map(|previous| Change::Delete { previous, at }));
                Written { at, entry: None }
            }
        }))
    }

    fn exists(&self, key: &str) -> rusqlite::Result<bool> {
        let created: Option<i64> = self
            .connection
            .prepare_cached("SELECT created FROM history WHERE key = ?1 ORDER BY rev DESC LIMIT 1")?
            .query_row([key], |r| r.get(0))
            .optional()?;
        Ok(created.is_some_and(|created| created != 0))
    }

    fn entry(&self, key: &str) -> rusqlite::Result<Option<Entry>> {
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

    /// Raises the horizon to `before`; lower or equal changes nothing.
    fn raise(&mut self, before: Revision) -> rusqlite::Result<Result<()>> {
        if before > self.current {
            return Ok(Err(StoreError::Future { asked: before, current: self.current }));
        }
        if before > self.horizon.get() {
            self.connection
                .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'compacted'")?
                .execute([stored(before)])?;
            // Before the commit: a reader must not find rows missing that it was not warned about.
            self.horizon.raise(before);
            self.stalled = false;
        }
        Ok(Ok(()))
    }

    /// The newest row stays, because it holds the counter.
    fn sweep_end(&self) -> Revision {
        self.horizon.get().min(Revision(self.current.0.saturating_sub(1)))
    }

    fn sweepable(&self) -> bool {
        !self.stalled && self.swept < self.sweep_end()
    }

    /// Deletes what the next `most` revisions below the horizon make superfluous: the row before each, and
    /// deletions themselves. Each row is looked at once in its life.
    fn sweep(&mut self, most: u64) -> rusqlite::Result<()> {
        let until = Revision(self.sweep_end().0.min(self.swept.0 + most));
        let range = params![stored(self.swept), stored(until)];
        let before = "DELETE FROM history WHERE rev IN
            (SELECT previous FROM history WHERE rev > ?1 AND rev <= ?2 AND previous <> 0)";
        let gone = "DELETE FROM history WHERE rev > ?1 AND rev <= ?2 AND created = 0";
        let mut deleted = self.connection.prepare_cached(before)?.execute(range)?;
        deleted += self.connection.prepare_cached(gone)?.execute(range)?;
        self.connection
            .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'swept'")?
            .execute([stored(until)])?;
        self.untidy |= deleted > 0;
        self.swept = until;
        Ok(())
    }

    fn sweep_alone(&mut self) {
        let before = self.swept;
        let result: rusqlite::Result<()> = (|| {
            self.bound(BEGIN)?;
            self.sweep(SWEEP_ALONE)?;
            self.bound(COMMIT)
        })();
        if let Err(error) = result {
            self.recover();
            self.swept = before;
            self.stalled(&error);
        }
    }

    /// Compaction must not disturb writes, and must not become a busy loop on a full disk.
    fn stalled(&mut self, error: &rusqlite::Error) {
        tracing::error!(error = %error, "sweeping old revisions failed; it is tried again with the next compaction");
        self.stalled = true;
    }

    /// Gives free pages back to the file system, some at a time, when there is nothing else to do.
    fn give_back(&mut self) {
        let result = (|| {
            let free: i64 = self.connection.query_row("PRAGMA freelist_count", [], |r| r.get(0))?;
            let pages = (free - KEEP_FREE_PAGES).min(GIVE_BACK_PAGES);
            if pages > 0 {
                // Each step frees one page.
                let mut statement =
                    self.connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
                let mut steps = statement.query([])?;
                while steps.next()?.is_some() {}
            }
            Ok::<_, rusqlite::Error>(free - pages.max(0) > KEEP_FREE_PAGES)
        })();
        self.untidy = result.unwrap_or_else(|error| {
            // The pages stay in the file and are used for new rows.
            tracing::warn!(error = %error, "free pages could not be given back");
            false
        });
    }

    /// When the automatic compaction has to look again; `None` while nothing happens.
    fn next_sample(&self) -> Option<Instant> {
        let (taken, at) = self.samples.back()?;
        let idle = *at == self.current && self.samples.len() == 1;
        (!idle).then(|| *taken + self.options.keep_for / SAMPLES)
    }

    /// Automatic compaction: remembers how far the store was when, and raises the horizon to where it was
    /// `keep_for` ago.
    fn sample(&mut self, now: Instant) {
        let step = self.options.keep_for / SAMPLES;
        match self.samples.back() {
            Some((taken, _)) if now.duration_since(*taken) < step => return,
            _ => self.samples.push_back((now, self.current)),
        }
        let mut target = None;
        while let Some((taken, at)) = self.samples.front()
            && now.duration_since(*taken) >= self.options.keep_for
        {
            target = Some(*at);
            self.samples.pop_front();
        }
        let Some(target) = target else { return };
        let target = target.min(Revision(self.current.0.saturating_sub(self.options.keep_revisions)));
        if target > self.horizon.get() {
            let (answer, _) = oneshot::channel();
            self.commit_group(vec![Job::Compact { before: target, answer }]);
        }
    }
}
