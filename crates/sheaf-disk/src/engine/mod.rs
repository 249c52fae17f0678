//! Asynchronous I/O on open layers: requests go in, endings come out, nobody waits.
//!
//! One engine belongs to one thread. io_uring where the kernel lets us, else a few threads that do the same with plain
//! calls. Both signal on a file descriptor, so that one `epoll` can wait for disks and sockets alike. A request's
//! file stays open, and its buffer untouched, until its ending is taken out.

mod threads;
mod uring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use sheaf_block_core::disk::Data;

use crate::buffer::Buffer;
use crate::real::RealFile;

/// Requests under way at a time in one engine; more wait inside.
pub const IN_FLIGHT: u32 = 256;

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Fill the buffer; what lies behind the end of the file becomes zeros.
    Read(RealFile, u64, Buffer),
    /// Write all of it. It lies at an aligned address ([`crate::buffer::aligned`]).
    Write(RealFile, u64, Data),
    /// Write all of it, durably.
    WriteSync(RealFile, u64, Data),
    /// Make a hole: offset, length.
    Punch(RealFile, u64, u64),
    /// Make the content durable.
    Sync(RealFile),
}

/// A request that ended.
#[derive(Debug)]
pub struct Ending {
    /// What it was submitted with.
    pub tag: u64,
    /// How it ended. All of it was done, or it failed.
    pub result: io::Result<()>,
    /// The buffer that was to be filled.
    pub buffer: Option<Buffer>,
    /// What was written: it is given up by who asked for it, whose thread may keep the memory.
    pub written: Option<Data>,
}

/// Either kind.
#[derive(Debug)]
pub enum Engine {
    /// The kernel's rings.
    Uring(Box<uring::Uring>),
    /// Threads of our own.
    Threads(threads::Threads),
}

impl Engine {
    /// io_uring if this kernel has what we need of it, else threads.
    pub fn new() -> io::Result<Self> {
        match uring::Uring::new() {
            Ok(ring) => Ok(Self::Uring(Box::new(ring))),
            Err(_) => Self::with_threads(),
        }
    }

    /// Threads, whatever the kernel has.
    pub fn with_threads() -> io::Result<Self> {
        threads::Threads::new().map(Self::Threads)
    }

    /// Which it is, for a log line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uring(_) => "io_uring",
            Self::Threads(_) => "threads",
        }
    }

    /// Takes a request. It need not begin before [`Engine::kick`].
    pub fn submit(&mut self, tag: u64, task: Task) {
        match self {
            Self::Uring(ring) => ring.submit(tag, task),
            Self::Threads(threads) => threads.submit(tag, task),
        }
    }

    /// Begins everything that was taken.
    pub fn kick(&mut self) -> io::Result<()> {
        match self {
            Self::Uring(ring) => ring.kick(),
            Self::Threads(_) => Ok(()),
        }
    }

    /// Moves what has ended to `out`.
    pub fn reap(&mut self, out: &mut Vec<Ending>) {
        match self {
            Self::Uring(ring) => ring.reap(out),
            Self::Threads(threads) => threads.reap(out),
        }
    }

    /// Requests that have not ended.
    pub fn pending(&self) -> usize {
        match self {
            Self::Uring(ring) => ring.pending(),
            Self::Threads(threads) => threads.pending(),
        }
    }
}

impl AsFd for Engine {
    /// Readable when something has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Uring(ring) => ring.as_fd(),
            Self::Threads(threads) => threads.as_fd(),
        }
    }
}
