//! The engine by io_uring. Requests sit in a slab that owns their files and buffers until the kernel is done with them;
//! short transfers go on where they stopped.
#![allow(
    unsafe_code,
    reason = "what io_uring reads and writes must outlive the request; the compiler cannot see that"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::{IoUring, Probe, opcode, types};

use super::{Ending, IN_FLIGHT, Task};
use crate::real::RealFile;

/// A request under way.
#[derive(Debug)]
struct Entry {
    tag: u64,
    task: Task,
    /// Bytes transferred so far.
    done: usize,
}

/// See the module.
pub struct Uring {
    ring: IoUring,
    slab: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Beyond what may be under way.
    waiting: VecDeque<(u64, Task)>,
    failed: Vec<Ending>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

impl Uring {
    pub(super) fn new() -> io::Result<Self> {
        // Completions need not interrupt a thread that is at work: it takes them in when it next asks the kernel anything.
        let coop = IoUring::builder()
            .setup_clamp()
            .setup_cqsize(IN_FLIGHT * 2)
            .setup_coop_taskrun()
            .build(IN_FLIGHT);
        let ring = match coop {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().setup_clamp().setup_cqsize(IN_FLIGHT * 2).build(IN_FLIGHT)?
            }
            other => other?,
        };
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let slab = (0..IN_FLIGHT).map(|_| None).collect();
        let free = (0..IN_FLIGHT).rev().collect();
        Ok(Self { ring, slab, free, waiting: VecDeque::new(), failed: Vec::new() })
    }

    pub(super) fn submit(&mut self, tag: u64, task: Task) {
        let Some(slot) = self.free.pop() else {
            self.waiting.push_back((tag, task));
            return;
        };
        self.slab[slot as usize] = Some(Entry { tag, task, done: 0 });
        self.push(slot);
    }

    /// Hands a slab entry to the kernel.
    fn push(&mut self, slot: u32) {
        let Some(entry) = &mut self.slab[slot as usize] else { return };
        let done = entry.done;
        let fd = |file: &RealFile| types::Fd(file.as_raw_fd());
        let rest = |bytes: &[u8]| u32::try_from(bytes.len() - done).unwrap_or(u32::MAX);
        let request = match &mut entry.task {
            Task::Read(file, offset, buffer) => {
                let len = rest(buffer);
                let to = buffer[done..].as_mut_ptr();
                opcode::Read::new(fd(file), to, len).offset(*offset + done as u64).build()
            }
            Task::Write(file, offset, data) => {
                let len = rest(data);
                let from = data[done..].as_ptr();
                opcode::Write::new(fd(file), from, len).offset(*offset + done as u64).build()
            }
            Task::WriteSync(file, offset, data) => {
                let len = rest(data);
                let from = data[done..].as_ptr();
                let request = opcode::Write::new(fd(file), from, len).offset(*offset + done as u64);
                request.rw_flags(libc::RWF_DSYNC).build()
            }
            Task::Punch(file, offset, len) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd(file), *len).offset(*offset).mode(mode).build()
            }
            Task::Sync(file) => opcode::Fsync::new(fd(file)).flags(types::FsyncFlags::DATASYNC).build(),
        };
        let request = request.user_data(u64::from(slot));
        // SAFETY: the file descriptor and the memory are owned by the slab entry, of shared memory as one of its owners, which
        // stays in place, untouched, until the completion with this number has been seen; `Drop` waits for all of them.
        let mut pushed = unsafe { self.ring.submission().push(&request) };
        if pushed.is_err() {
            // The queue is as long as the slab; it is full only of requests that the kernel has not been shown yet.
            let _ = self.ring.submit();
            // SAFETY: as above.
            pushed = unsafe { self.ring.submission().push(&request) };
        }
        if pushed.is_err()
            && let Some(entry) = self.slab[slot as usize].take()
        {
            self.free.push(slot);
            self.failed.push(end(entry, Err(io::ErrorKind::ResourceBusy.into())));
        }
    }

    pub(super) fn kick(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        match self.ring.submit() {
            Ok(_) => Ok(()),
            // Completions wait to be taken out first; what was not shown yet is shown at the next kick.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::EINTR)) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn reap(&mut self, out: &mut Vec<Ending>) {
        out.append(&mut self.failed);
        let mut again = Vec::new();
        let mut freed = 0;
        for completion in self.ring.completion() {
            let slot = u32::try_from(completion.user_data()).unwrap_or(u32::MAX);
            let Some(place) = self.slab.get_mut(slot as usize) else { continue };
            let Some(entry) = place else { continue };
            let result = completion.result();
            if matches!(-result, libc::EINTR | libc::EAGAIN) {
                again.push(slot);
                continue;
            }
            match settle(entry, result) {
                None => again.push(slot),
                Some(result) => {
                    if let Some(entry) = place.take() {
                        out.push(end(entry, result));
                        self.free.push(slot);
                        freed += 1;
                    }
                }
            }
        }
        for slot in again {
            self.push(slot);
        }
        for _ in 0..freed {
            let Some((tag, task)) = self.waiting.pop_front() else { break };
            self.submit(tag, task);
        }
    }

    pub(super) fn pending(&self) -> usize {
        self.slab.len() - self.free.len() + self.waiting.len() + self.failed.len()
    }
}

/// What a completion means for a request: how it ended, or none if it goes on.
fn settle(entry: &mut Entry, result: i32) -> Option<io::Result<()>> {
    if result < 0 {
        return Some(Err(io::Error::from_raw_os_error(-result)));
    }
    let count = result as usize;
    match &mut entry.task {
        Task::Read(_, _, buffer) if count == 0 => {
            buffer[entry.done..].fill(0);
            Some(Ok(()))
        }
        Task::Write(..) | Task::WriteSync(..) if count == 0 => Some(Err(io::ErrorKind::WriteZero.into())),
        Task::Read(_, _, buffer) => {
            entry.done += count;
            (entry.done >= buffer.len()).then_some(Ok(()))
        }
        Task::Write(_, _, data) | Task::WriteSync(_, _, data) => {
            entry.done += count;
            (entry.done >= data.len()).then_some(Ok(()))
        }
        Task::Punch(..) | Task::Sync(..) => Some(Ok(())),
    }
}

fn end(entry: Entry, result: io::Result<()>) -> Ending {
    let (buffer, written) = match entry.task {
        Task::Read(_, _, buffer) => (Some(buffer), None),
        Task::Write(_, _, data) | Task::WriteSync(_, _, data) => (None, Some(data)),
        Task::Punch(..) | Task::Sync(..) => (None, None),
    };
    Ending { tag: entry.tag, result, buffer, written }
}

impl AsFd for Uring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open as long as the ring is, which is borrowed here.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel may still write into buffers of ours: they must not be freed before it is done.
        self.waiting.clear();
        let mut out = Vec::new();
        while self.pending() > 0 {
            if self.ring.submit_and_wait(1).is_err_and(|error| error.raw_os_error() != Some(libc::EINTR)) {
                // Cannot wait: better lose the memory than have it overwritten.
                std::mem::forget(std::mem::take(&mut self.slab));
                return;
            }
            self.reap(&mut out);
        }
    }
}
