//! What the reactor waits for: one `epoll`, level-triggered. Knows names of sources, not what they mean.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// A source of readiness. The number is an index into a table of its kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Source {
    /// The disk engine.
    Engine,
    /// Orders from other threads.
    Inbox,
    /// Work on layers.
    Workers,
    /// Peers that want to connect.
    PeerListener,
    /// A connection to or from a peer.
    Link(u32),
    /// A place where guests connect.
    GuestListener(u32),
    /// A guest's connection.
    Guest(u32),
    /// A guest's queue was kicked: device, queue.
    Kick(u32, u16),
}

impl Source {
    fn to_u64(self) -> u64 {
        let (kind, index, extra) = match self {
            Self::Engine => (0, 0, 0),
            Self::Inbox => (1, 0, 0),
            Self::PeerListener => (2, 0, 0),
            Self::Link(index) => (3, index, 0),
            Self::GuestListener(index) => (4, index, 0),
            Self::Guest(index) => (5, index, 0),
            Self::Kick(index, queue) => (6, index, queue),
            Self::Workers => (7, 0, 0),
        };
        (kind << 56) | (u64::from(extra) << 32) | u64::from(index)
    }

    fn from_u64(value: u64) -> Self {
        let index = (value & 0xffff_ffff) as u32;
        match value >> 56 {
            0 => Self::Engine,
            1 => Self::Inbox,
            2 => Self::PeerListener,
            3 => Self::Link(index),
            4 => Self::GuestListener(index),
            5 => Self::Guest(index),
            7 => Self::Workers,
            _ => Self::Kick(index, (value >> 32 & 0xffff) as u16),
        }
    }
}

/// What a source is ready for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ready {
    pub(crate) source: Source,
    /// It can be read, or has ended.
    pub(crate) readable: bool,
    /// It can be written.
    pub(crate) writable: bool,
}

/// See the module.
pub(crate) struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl std::fmt::Debug for Poll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poll").field("epoll", &self.epoll).finish_non_exhaustive()
    }
}

fn flags(readable: bool, writable: bool) -> EventFlags {
    let mut flags = EventFlags::empty();
    flags.set(EventFlags::IN | EventFlags::RDHUP, readable);
    flags.set(EventFlags::OUT, writable);
    flags
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        let empty = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: vec![empty; 128] })
    }

    pub(crate) fn add(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(source.to_u64()), flags(true, false))?)
    }

    pub(crate) fn change(
        &self,
        fd: impl AsFd,
        source: Source,
        readable: bool,
        writable: bool,
    ) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(source.to_u64()), flags(readable, writable))?)
    }

    pub(crate) fn remove(&self, fd: impl AsFd) {
        // It may have been closed by the other side already; then nothing is registered.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for something, at most so long.
    pub(crate) fn wait(&mut self, at_most: Duration, out: &mut Vec<Ready>) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: i64::try_from(at_most.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(at_most.subsec_nanos()),
        };
        let count = match epoll::wait(&self.epoll, &mut self.events[..], Some(&timeout)) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        out.extend(self.events[..count].iter().map(|event| {
            let (data, flags) = (event.data, event.flags);
            let ended = flags.intersects(EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP);
            Ready {
                source: Source::from_u64(data.u64()),
                readable: flags.contains(EventFlags::IN) || ended,
                writable: flags.contains(EventFlags::OUT),
            }
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_the_kernel() {
        for source in [
            Source::Engine,
            Source::Inbox,
            Source::Workers,
            Source::Link(7),
            Source::Guest(u32::MAX),
            Source::Kick(3, 65535),
        ] {
            assert_eq!(Source::from_u64(source.to_u64()), source);
        }
    }
}
