//! The bounded queue between callers (async) and the writer (a thread).
//!
//! A caller waits for a place, puts its job in and waits for the answer; the writer takes all that is there at once.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use crate::{Entry, Result, Revision, StoreError};

/// A job takes one place, and one more for each so many bytes of its value: the queue is bounded in memory, too.
const PLACE_BYTES: usize = 64 << 10;

/// What a write does to its key, and what must hold before.
#[derive(Debug)]
pub(super) enum Action {
    /// The key must not exist.
    Create(Bytes),
    /// The key must be at the revision.
    Update(Revision, Bytes),
    /// The key must be at the revision.
    Delete(Revision),
}

/// What a write did.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) at: Revision,
    /// `None` after a deletion.
    pub(super) entry: Option<Entry>,
}

/// Work for the writer. The answer's receiver may be gone; the work is done all the same.
#[derive(Debug)]
pub(super) enum Job {
    Write {
        key: String,
        action: Action,
        answer: oneshot::Sender<Result<Written>>,
    },
    Compact {
        before: Revision,
        answer: oneshot::Sender<Result<()>>,
    },
    /// Answered when all that was acknowledged can be read.
    Settle {
        answer: oneshot::Sender<Result<()>>,
    },
}

pub(super) struct Queue {
    inner: Mutex<Inner>,
    bell: Condvar,
    places: Semaphore,
    most: usize,
}

#[derive(Default)]
struct Inner {
    /// Each with the places that it takes.
    jobs: VecDeque<(Job, u32)>,
    closed: bool,
}

/// What [`Queue::take`] found.
pub(super) enum Taken {
    Jobs(Vec<Job>),
    /// Nothing came in time.
    Nothing,
    /// Closed, and nothing is left.
    Closed,
}

impl Queue {
    pub(super) fn new(places: usize) -> Self {
        Queue { inner: Mutex::default(), bell: Condvar::new(), places: Semaphore::new(places), most: places }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn write(&self, key: &str, action: Action) -> Result<Written> {
        let (answer, answered) = oneshot::channel();
        self.push(Job::Write { key: key.to_owned(), action, answer }).await?;
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    pub(super) async fn compact(&self, before: Revision) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.push(Job::Compact { before, answer }).await?;
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Waits until readers find what was acknowledged.
    pub(super) async fn settle(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.push(Job::Settle { answer }).await?;
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn push(&self, job: Job) -> Result<()> {
        let bytes = match &job {
            Job::Write { action: Action::Create(value) | Action::Update(_, value), .. } => value.len(),
            _ => 0,
        };
        let weight = (1 + bytes / PLACE_BYTES).min(self.most) as u32;
        // The places are given back by `take`, with the job.
        self.places.acquire_many(weight).await.map_err(|_| StoreError::Closed)?.forget();
        let mut inner = self.lock();
        if inner.closed {
            return Err(StoreError::Closed);
        }
        inner.jobs.push_back((job, weight));
        let first = inner.jobs.len() == 1;
        drop(inner);
        if first {
            self.bell.notify_one();
        }
        Ok(())
    }

    /// Up to `most` jobs, in their order; waits for the first one until `deadline` (`None`: for ever). More of them may gather
    /// until `gather`; a first one that comes later waits for nobody.
    pub(super) fn take(&self, most: usize, deadline: Option<Instant>, gather: Option<Instant>) -> Taken {
        let mut inner = self.lock();
        while inner.jobs.is_empty() {
            if inner.closed {
                return Taken::Closed;
            }
            inner = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                None => self.bell.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Taken::Nothing,
                Some(left) => self.bell.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        while let Some(left) = gather.and_then(|until| until.checked_duration_since(Instant::now()))
            && !left.is_zero()
            && inner.jobs.len() < most
            && !inner.closed
        {
            // Nobody rings for the second job and those after it.
            inner = self.bell.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let count = inner.jobs.len().min(most);
        let mut places = 0;
        let taken = inner.jobs.drain(..count).inspect(|(_, weight)| places += *weight as usize);
        let jobs: Vec<Job> = taken.map(|(job, _)| job).collect();
        drop(inner);
        self.places.add_permits(places);
        Taken::Jobs(jobs)
    }

    /// No more jobs are accepted; those inside will still be done.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.places.close();
        self.bell.notify_one();
    }

    /// As [`Queue::close`], for a writer that cannot go on: what is inside is answered with `Closed`.
    pub(super) fn abandon(&self) {
        self.close();
        self.lock().jobs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> (Job, u32) {
        (Job::Compact { before: Revision(0), answer: oneshot::channel().0 }, 1)
    }

    fn queue(jobs: usize) -> Queue {
        let queue = Queue::new(8);
        queue.lock().jobs.extend((0..jobs).map(|_| job()));
        queue
    }

    #[test]
    fn who_gathers_waits_neither_for_more_than_there_is_room_nor_for_a_time_that_has_passed() {
        let far = Instant::now().checked_add(Duration::from_secs(3600));
        // Full, past, or closed: none of these waits an hour.
        let full = queue(3).take(3, None, far);
        assert!(matches!(full, Taken::Jobs(jobs) if jobs.len() == 3));
        let past = queue(2).take(3, None, Some(Instant::now()));
        assert!(matches!(past, Taken::Jobs(jobs) if jobs.len() == 2));
        let closing = queue(2);
        closing.close();
        assert!(matches!(closing.take(3, None, far), Taken::Jobs(jobs) if jobs.len() == 2));
        assert!(matches!(closing.take(3, None, far), Taken::Closed));
    }

    #[test]
    fn a_queue_that_closes_ends_the_gathering() {
        let queue = queue(1);
        let far = Instant::now().checked_add(Duration::from_secs(3600));
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| queue.take(3, None, far));
            queue.close();
            assert!(matches!(taken.join().unwrap_or(Taken::Nothing), Taken::Jobs(jobs) if jobs.len() == 1));
        });
    }
}
