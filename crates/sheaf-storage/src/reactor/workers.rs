//! A few threads for disk work that is many requests in a row: parts of layers, for rebuilds and folds. What ends is taken
//! out by the reactor, which is told by an eventfd. Bounded by what the state machines have under way.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use sheaf_block_core::disk::{Done, Failure};
use sheaf_block_core::ids::OpId;
use sheaf_disk::part::PartJob;
use sheaf_disk::real::RealFile;

use super::io::Key;

const THREADS: usize = 2;

/// Work for a replica.
type Job = (Key, OpId, PartJob<RealFile>);
/// How it ended.
pub(crate) type Outcome = (Key, OpId, Result<Done, Failure>);

/// See the module.
#[derive(Debug)]
pub(crate) struct Workers {
    jobs: Sender<Job>,
    outcomes: Receiver<Outcome>,
    signal: Arc<OwnedFd>,
}

impl Workers {
    pub(crate) fn new() -> std::io::Result<Self> {
        let signal = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let (jobs, todo) = channel::<Job>();
        let (ended, outcomes) = channel::<Outcome>();
        let todo = Arc::new(Mutex::new(todo));
        for number in 0..THREADS {
            let (todo, ended, signal) = (Arc::clone(&todo), ended.clone(), Arc::clone(&signal));
            let work = move || {
                loop {
                    let next = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((key, op, job)) = next else { return };
                    if ended.send((key, op, job.run())).is_err() {
                        return;
                    }
                    let _ = rustix::io::write(&signal, &1u64.to_ne_bytes());
                }
            };
            std::thread::Builder::new().name(format!("layers-{number}")).stack_size(256 << 10).spawn(work)?;
        }
        Ok(Self { jobs, outcomes, signal })
    }

    pub(crate) fn submit(&self, key: Key, op: OpId, job: PartJob<RealFile>) {
        // The threads end only after this end is gone.
        let _ = self.jobs.send((key, op, job));
    }

    /// What has ended.
    pub(crate) fn reap(&self) -> impl Iterator<Item = Outcome> + '_ {
        let _ = rustix::io::read(&self.signal, &mut [0; 8]);
        self.outcomes.try_iter()
    }
}

impl AsFd for Workers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}
