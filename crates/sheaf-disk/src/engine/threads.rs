//! The engine without io_uring: a few threads, a bounded number of requests, an eventfd. For old kernels and for
//! machines whose policy forbids io_uring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::FallocateFlags;

use super::{Ending, Task};
use crate::real::RealFile;

const THREADS: usize = 8;

#[derive(Debug, Default)]
struct Queue {
    tasks: VecDeque<(u64, Task)>,
    ended: Vec<Ending>,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    signal: OwnedFd,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Threads {
    shared: Arc<Shared>,
    pending: usize,
}

impl Threads {
    pub(super) fn new() -> io::Result<Self> {
        let signal = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { queue: Mutex::default(), more: Condvar::new(), signal });
        for number in 0..THREADS {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("disk-{number}"))
                .stack_size(128 << 10)
                .spawn(move || work(&shared))?;
        }
        Ok(Self { shared, pending: 0 })
    }

    pub(super) fn submit(&mut self, tag: u64, task: Task) {
        self.pending += 1;
        self.shared.queue().tasks.push_back((tag, task));
        self.shared.more.notify_one();
    }

    pub(super) fn reap(&mut self, out: &mut Vec<Ending>) {
        let _ = rustix::io::read(&self.shared.signal, &mut [0; 8]);
        let ended = std::mem::take(&mut self.shared.queue().ended);
        self.pending -= ended.len();
        out.extend(ended);
    }

    pub(super) fn pending(&self) -> usize {
        self.pending
    }
}

impl AsFd for Threads {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.signal.as_fd()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.more.notify_all();
    }
}

fn work(shared: &Shared) {
    loop {
        let mut queue = shared.queue();
        let (tag, task) = loop {
            if let Some(next) = queue.tasks.pop_front() {
                break next;
            }
            if queue.closed {
                return;
            }
            queue = shared.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        let ending = act(tag, task);
        shared.queue().ended.push(ending);
        // Full only if it is readable anyway.
        let _ = rustix::io::write(&shared.signal, &1u64.to_ne_bytes());
    }
}

fn act(tag: u64, task: Task) -> Ending {
    let (mut buffer, mut written) = (None, None);
    let result = match task {
        Task::Read(file, offset, to) => {
            let to = buffer.insert(to);
            read(&file, offset, to)
        }
        Task::Write(file, offset, data) => file.file().write_all_at(written.insert(data), offset),
        Task::WriteSync(file, offset, data) => {
            let data = written.insert(data);
            file.file().write_all_at(data, offset).and_then(|()| file.file().sync_data())
        }
        Task::Punch(file, offset, len) => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, flags, offset, len).map_err(io::Error::from)
        }
        Task::Sync(file) => file.file().sync_data(),
    };
    Ending { tag, result, buffer, written }
}

fn read(file: &RealFile, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.file().read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[done..].fill(0);
    Ok(())
}
