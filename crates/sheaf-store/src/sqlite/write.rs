//! The writer: one thread that owns the counter of revisions and the keeper of what is written.
//!
//! Round: take what the queue holds, see what of it holds, append that to the log (one sync for all), publish to the hub, answer, and write the
//! rows while those who were answered go on. Rows are committed when there are enough of them, when they have waited for [`COMMIT_AFTER`], or
//! when a reader asks. A write whose precondition does not hold
//! is answered for itself and touches nothing. If the disk fails, nothing of the group remains and every write in it is answered with the error.
//!
//! Compaction: raising the horizon is one small write; the rows that it makes superfluous are swept in small portions,
//! beside the groups when there are writes and by themselves when there are none, so that no writer waits for long.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Options;
use super::keeper::{Failure, Keeper};
use super::queue::{Action, Job, Queue, Taken, Written};
use super::read::Horizon;
use crate::hub::Hub;
use crate::{Change, Entry, Result, Revision, StoreError};

/// Rows wait so long for others with which they are committed.
const COMMIT_AFTER: Duration = Duration::from_millis(100);
/// Rows that are swept beside a group of writes: for each of its own so many, and not fewer than the second; and by themselves when nobody
/// writes.
const SWEEP_BESIDE: (u64, u64) = (2, 8);
const SWEEP_ALONE: u64 = 512;
/// Free pages that are kept for new rows before they are given back to the file system, and how many at a time.
const KEEP_FREE_PAGES: i64 = 1024;
const GIVE_BACK_PAGES: i64 = 256;
/// A group of so many writes says that many clients write at the same time. Then the next one may gather for as long as this one
/// took, up to a limit: half as many groups cost everybody half as many syncs and wake-ups. Eight clients are too few for that: they wait
/// for each other while the processors have nothing to do.
const GATHER_FROM: usize = 12;
const GATHER_MOST: Duration = Duration::from_millis(1);
/// So many samples of (time, revision) cover `keep_for`.
const SAMPLES: u32 = 10;

/// A `map_err` for what SQLite says.
pub(super) fn failed(context: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Backend { context, source: source.into() }
}

/// What the writer begins with.
pub(super) struct Start {
    pub(super) keeper: Keeper,
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

/// An answer that is held back until the group is durable.
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

    fn fail(self, failure: &Failure) {
        // What was refused stays refused: it depended on nothing in this group that could not be repeated.
        match self {
            Owed::Written(answer, _) => drop(answer.send(Err(backend(failure)))),
            Owed::Compacted(answer, _) => drop(answer.send(Err(backend(failure)))),
        }
    }
}

/// What one failure says to each of those who wait.
fn backend(failure: &Failure) -> StoreError {
    if failure.is_full() {
        return StoreError::Full;
    }
    let mut text = failure.to_string();
    let mut source = std::error::Error::source(failure);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    StoreError::Backend { context: "commit a write", source: text.into() }
}

struct Loop {
    keeper: Keeper,
    /// The newest revision given out; that of the keeper but for the group that is being made.
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
    /// The disk has no room for another row.
    full: bool,
    /// Until when the next group gathers.
    gather: Option<Instant>,
    /// Rows were deleted since it was last seen that there are few free pages.
    untidy: bool,
}

impl Loop {
    fn new(start: Start) -> Self {
        let Start { mut keeper, queue, hub, horizon, options } = start;
        let current = keeper.current();
        let samples = VecDeque::from([(Instant::now(), current)]);
        // If it cannot be read nothing is swept before the horizon rises, and then from the start.
        let (swept, stalled) = keeper.rows().swept().map_or((Revision(0), true), |swept| (swept, false));
        Loop {
            keeper,
            current,
            swept,
            queue,
            hub,
            horizon,
            options,
            samples,
            stalled,
            full: false,
            gather: None,
            untidy: true,
        }
    }

    fn run(mut self) {
        loop {
            let now = Instant::now();
            // What is done in idle moments waits until the rows have been committed: under load no moment is idle for long.
            let deadline = match self.commit_at() {
                Some(at) => Some(at),
                None if self.sweepable() || self.untidy => Some(now),
                None => self.next_sample(),
            };
            let gather = self.gather.take();
            match self.queue.take(self.options.group.max(1), deadline, gather) {
                Taken::Closed => break,
                Taken::Jobs(jobs) => {
                    let (many, begun) = (jobs.len() >= GATHER_FROM, Instant::now());
                    self.group(jobs);
                    self.gather = many.then(|| Instant::now() + begun.elapsed().min(GATHER_MOST));
                }
                Taken::Nothing if self.commit_at().is_some() => {
                    // A failure is told to who writes or reads next.
                    let _ = self.commit();
                }
                Taken::Nothing if self.sweepable() => self.sweep_alone(),
                Taken::Nothing if self.untidy => self.give_back(),
                Taken::Nothing => {}
            }
            self.sample(Instant::now());
        }
        if let Err(error) = self.keeper.close() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what was written last stays in the log until the next start"
            );
        }
    }

    /// When what waits has waited long enough.
    fn commit_at(&mut self) -> Option<Instant> {
        self.keeper.rows().waiting().map(|(since, ..)| since + COMMIT_AFTER)
    }

    fn commit(&mut self) -> std::result::Result<(), Failure> {
        let result = self.keeper.commit();
        if let Err(error) = &result {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "rows could not be committed; the log has them"
            );
        }
        result
    }

    fn group(&mut self, jobs: Vec<Job>) {
        let sweep = (jobs.len() as u64 * SWEEP_BESIDE.0).max(SWEEP_BESIDE.1);
        let (mut owed, mut settling) = (Vec::with_capacity(jobs.len()), Vec::new());
        let mut changes = Vec::with_capacity(jobs.len());
        let ready = self.ready().and_then(|()| self.room());
        let touches = ready.is_ok();
        match self.write(ready.err(), jobs, &mut owed, &mut settling, &mut changes) {
            Ok(()) => {
                self.hub.publish(&changes);
                owed.into_iter().for_each(Owed::pay);
                if let Err(error) = self.keeper.carry(&changes) {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "rows could not be written; the log has them"
                    );
                }
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a group of writes failed");
                if touches {
                    self.keeper.failed();
                }
                self.current = self.keeper.current();
                owed.into_iter().for_each(|o| o.fail(&error));
            }
        }
        // From here on nobody who writes waits.
        if self.sweepable()
            && let Err(error) = self.sweep(sweep)
        {
            self.stalled(&error);
        }
        if self.keeper.is_due() || !settling.is_empty() {
            let result = self.commit();
            for answer in settling {
                let _ = answer.send(result.as_ref().map_err(backend).copied());
            }
        }
    }

    /// Makes a group durable, if nothing has failed already. After an error none of it is, as far as anybody was told.
    fn write(
        &mut self,
        mut failure: Option<Failure>,
        jobs: Vec<Job>,
        owed: &mut Vec<Owed>,
        settling: &mut Vec<oneshot::Sender<Result<()>>>,
        changes: &mut Vec<Arc<Change>>,
    ) -> std::result::Result<(), Failure> {
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
                Job::Settle { answer } => settling.push(answer),
            }
        }
        match failure {
            Some(error) => Err(error),
            None => self.keeper.keep(changes),
        }
    }

    /// What was lost with a failed transaction is there again.
    fn ready(&mut self) -> std::result::Result<(), Failure> {
        if self.keeper.ready()? {
            self.current = self.keeper.current();
            let (rows, horizon) = (self.keeper.rows(), self.horizon.get());
            match rows.set_horizon(horizon).and_then(|()| rows.swept()) {
                Ok(swept) => self.swept = swept,
                Err(error) => {
                    // So that it is asked again.
                    self.keeper.failed();
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Whether there is room. If not, each write is refused for itself, so that those are told apart that would be refused anyway.
    fn room(&mut self) -> std::result::Result<(), Failure> {
        let full = match self.keeper.room() {
            Ok(()) => false,
            Err(error) if error.is_full() => true,
            Err(error) => return Err(error),
        };
        if full != self.full {
            self.full = full;
            match full {
                true => {
                    tracing::error!("no room is left on the disk with the server's data; writes are refused")
                }
                false => tracing::info!("there is room again on the disk with the server's data"),
            }
        }
        Ok(())
    }

    /// One write. The outer error is the database's, the inner one an unmet precondition.
    fn apply(
        &mut self,
        key: String,
        action: Action,
        changes: &mut Vec<Arc<Change>>,
    ) -> std::result::Result<Result<Written>, Failure> {
        let at = Revision(self.current.0 + 1);
        let keeper = &mut self.keeper;
        let (previous, value) = match action {
            Action::Create(value) => {
                if keeper.exists(&key)? {
                    return Ok(Err(StoreError::Exists(key)));
                }
                (None, Some(value))
            }
            Action::Update(expected, value) => match keeper.entry(&key)? {
                Some(entry) if entry.modified == expected => (Some(entry), Some(value)),
                other => return Ok(Err(StoreError::Conflict(other))),
            },
            Action::Delete(expected) => match keeper.entry(&key)? {
                Some(entry) if entry.modified == expected => (Some(entry), None),
                other => return Ok(Err(StoreError::Conflict(other))),
            },
        };
        if self.full {
            return Ok(Err(StoreError::Full));
        }
        let created = previous.as_ref().map_or(at, |previous| previous.created);
        let entry = value.map(|value| Entry { key, value, created, modified: at });
        let change = match (&entry, previous) {
            (Some(entry), previous) => Change::Put { entry: entry.clone(), previous },
            (None, Some(previous)) => Change::Delete { previous, at },
            // Only what is there is deleted.
            (None, None) => return Ok(Err(StoreError::Conflict(None))),
        };
        self.keeper.note(&change);
        self.current = at;
        changes.push(Arc::new(change));
        Ok(Ok(Written { at, entry }))
    }

    /// Raises the horizon to `before`; lower or equal changes nothing.
    fn raise(&mut self, before: Revision) -> std::result::Result<Result<()>, Failure> {
        if before > self.current {
            return Ok(Err(StoreError::Future { asked: before, current: self.current }));
        }
        if before > self.horizon.get() {
            self.keeper.rows().set_horizon(before)?;
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
        !self.stalled && !self.full && self.swept < self.sweep_end()
    }

    /// Deletes what the next `most` revisions below the horizon make superfluous. Each row is looked at once in its life. That writes, too:
    /// not on a full disk, where the room is for what was acknowledged.
    fn sweep(&mut self, most: u64) -> std::result::Result<(), Failure> {
        self.ready()?;
        self.room()?;
        if self.full {
            return Ok(());
        }
        let until = Revision(self.sweep_end().0.min(self.swept.0 + most));
        self.untidy |= self.keeper.rows().sweep(self.swept, until)?;
        self.swept = until;
        Ok(())
    }

    fn sweep_alone(&mut self) {
        if let Err(error) = self.sweep(SWEEP_ALONE).and_then(|()| self.keeper.commit()) {
            self.stalled(&error);
        }
    }

    /// Compaction must not disturb writes, and must not become a busy loop on a full disk.
    fn stalled(&mut self, error: &Failure) {
        tracing::error!(
            error = error as &dyn std::error::Error,
            "sweeping old revisions failed; it is tried again with the next compaction"
        );
        self.keeper.failed();
        self.stalled = true;
    }

    /// Gives free pages back to the file system, some at a time, when there is nothing else to do.
    fn give_back(&mut self) {
        self.untidy =
            self.keeper.rows().give_back(KEEP_FREE_PAGES, GIVE_BACK_PAGES).unwrap_or_else(|error| {
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
            self.group(vec![Job::Compact { before: target, answer }]);
        }
    }
}
