//! What all of the reactor's tables use: the disk engine, the clock, work to be done.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use sheaf_block_core::coordinator;
use sheaf_block_core::ids::{OpId, ReplicaId, Time, VolumeId};
use sheaf_block_core::replica;
use sheaf_disk::engine::{Engine, Task};

use super::poll::Poll;
use super::workers::Workers;
use crate::frontend::Completion;

/// A replica on this node.
pub(crate) type Key = (VolumeId, ReplicaId);

/// Something to be taken up, in order.
#[derive(Debug)]
pub(crate) enum Work {
    Replica(Key, replica::Event),
    Volume(VolumeId, coordinator::Event),
    Guest(u32, Completion),
}

/// Why the engine works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purpose {
    pub(crate) key: Key,
    /// The operation, or none for metadata.
    pub(crate) op: Option<OpId>,
    /// Where in the operation's data the piece belongs.
    pub(crate) offset: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Io {
    pub(crate) engine: Engine,
    pub(crate) workers: Workers,
    pub(crate) poll: Poll,
    pub(crate) work: VecDeque<Work>,
    /// Volumes whose coordinators have taken in something, and have not acted on it yet.
    pub(crate) unsettled: Vec<VolumeId>,
    /// Guests with bytes to be sent.
    pub(crate) to_flush: Vec<u32>,
    purposes: Vec<Option<Purpose>>,
    free: Vec<u32>,
    start: Instant,
    now: Time,
}

impl Io {
    pub(crate) fn new(engine: Engine, poll: Poll, workers: Workers) -> Self {
        Self {
            engine,
            workers,
            poll,
            work: VecDeque::new(),
            unsettled: Vec::new(),
            to_flush: Vec::new(),
            purposes: Vec::new(),
            free: Vec::new(),
            start: Instant::now(),
            now: Time::default(),
        }
    }

    /// The machines' clock. It stands still within a turn of the reactor: what came together came at the same time.
    pub(crate) fn now(&self) -> Time {
        self.now
    }

    /// Another turn begins.
    pub(crate) fn turn(&mut self) {
        self.now = Time(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX));
    }

    /// Begins disk work.
    pub(crate) fn submit(&mut self, purpose: Purpose, task: Task) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.purposes.push(None);
            u32::try_from(self.purposes.len() - 1).unwrap_or(u32::MAX)
        });
        self.purposes[slot as usize] = Some(purpose);
        self.engine.submit(u64::from(slot), task);
    }

    /// Why that work was begun; once.
    pub(crate) fn purpose(&mut self, tag: u64) -> Option<Purpose> {
        let slot = u32::try_from(tag).ok()?;
        let purpose = self.purposes.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        Some(purpose)
    }
}

/// A number that nobody else has.
pub(crate) fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
