//! The same world, without chance in what goes wrong: a test says it, step by step.
//!
//! Delays are still drawn from a seed. The guest asks only what it is told to; everything is checked as ever.

use std::collections::BTreeMap;

use super::{Asked, CoordEvent, Ev, Failure, Mode, Phase, ReplicaId, Request, Sim, Token, Which};
use crate::coordinator::{Coordinator, RequestError};
use crate::disk::{Metadata, Op};
use crate::ids::{SECTOR_BYTES, SEGMENT_BLOCKS, SegmentIndex};
use crate::structure::{Kind, LayerId, SnapshotName};

impl Sim {
    /// A world with so many replicas, in which nothing goes wrong and nothing is asked by itself, served.
    pub fn scripted(seed: u64, replicas: u32) -> Result<Self, String> {
        let mut sim = Self::new(seed, Mode::ALL);
        while sim.processes.len() != replicas as usize {
            sim = Self::new(sim.dice.below(u64::MAX), Mode::ALL);
        }
        (sim.faulty, sim.quiet, sim.scripted) = (false, true, true);
        sim.until("it is served", |sim| sim.is_healthy())?;
        Ok(sim)
    }

    /// Lets so many microseconds pass.
    pub fn pass(&mut self, micros: u64) -> Result<(), String> {
        let end = self.now + micros;
        while self.now < end {
            self.step()?;
        }
        Ok(())
    }

    /// Until something holds; at most two simulated minutes.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<(), String> {
        let limit = self.now + 120_000_000;
        while !holds(self) {
            if self.now > limit {
                let live = self.coordinators.get(&self.current);
                let phase = live.map(|live| (live.coordinator.phase(), live.coordinator.membership()));
                return Err(format!("never: {what}; last: {phase:?}, counts {:?}", self.counts()));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Everybody is in sync.
    pub fn healthy(&self) -> bool {
        self.is_healthy()
    }

    /// The coordinator that attached last, if it lives.
    pub fn coordinator(&self) -> Option<&Coordinator> {
        self.coordinators.get(&self.current).map(|live| &live.coordinator)
    }

    /// What it counted.
    pub fn counts(&self) -> Option<crate::coordinator::Counts> {
        self.coordinator().map(Coordinator::counts)
    }

    /// What a replica keeps durably.
    pub fn metadata(&self, id: u32) -> Option<&Metadata> {
        self.processes.get(&ReplicaId(id)).map(|process| &process.disk.meta)
    }

    /// Whether a replica is in the in-sync set, as the coordinator knows it.
    pub fn is_member(&self, id: u32) -> bool {
        self.coordinator().is_some_and(|c| c.membership().in_sync.contains(ReplicaId(id)))
    }

    fn ask(&mut self, asked: Asked, request: Request) -> Result<Token, String> {
        let token = self.guest.token();
        if let Asked::Write { first, count } = asked {
            let zero = matches!(request, Request::WriteZeroes { .. } | Request::Discard { .. });
            self.guest.write(token, first, count, zero);
        }
        // A write's content is its number.
        let request = match request {
            Request::Write { offset, data } => {
                Request::Write { offset, data: token.0.to_le_bytes().repeat(data.len() / 8).into() }
            }
            other => other,
        };
        self.guest.asked.insert(token, (asked, request.clone()));
        self.coordinate(self.current, CoordEvent::Guest(token, request))?;
        Ok(token)
    }

    /// The guest begins to write so many sectors.
    pub fn write(&mut self, first: u64, count: u64) -> Result<Token, String> {
        let (offset, bytes) = (first * u64::from(SECTOR_BYTES), (count * u64::from(SECTOR_BYTES)) as usize);
        let request = Request::Write { offset, data: vec![0; bytes].into() };
        self.ask(Asked::Write { first, count }, request)
    }

    /// The guest begins to discard so many sectors, whole blocks of them.
    pub fn discard(&mut self, first: u64, count: u64) -> Result<Token, String> {
        let (offset, len) = (first * u64::from(SECTOR_BYTES), count as u32 * SECTOR_BYTES);
        self.ask(Asked::Write { first, count }, Request::Discard { offset, len })
    }

    /// The guest begins to read so many sectors.
    pub fn read(&mut self, first: u64, count: u64) -> Result<Token, String> {
        let (offset, len) = (first * u64::from(SECTOR_BYTES), count as u32 * SECTOR_BYTES);
        self.ask(Asked::Read { first, count }, Request::Read { offset, len })
    }

    /// The guest begins a flush.
    pub fn flush(&mut self) -> Result<Token, String> {
        self.ask(Asked::Flush, Request::Flush)
    }

    /// A check of all snapshots begins.
    pub fn scrub(&mut self) -> Result<Token, String> {
        self.ask(Asked::Scrub, Request::Scrub)
    }

    /// An operation on the layers begins.
    pub fn operate(&mut self, kind: Kind) -> Result<Token, String> {
        let head = self.coordinator().and_then(Coordinator::structure).map(|s| s.head).unwrap_or_default();
        self.ask(Asked::Operate(kind.clone(), head), Request::Operate(kind))
    }

    /// A snapshot is begun and ends; the layer that it froze.
    pub fn snapshot(&mut self, name: &str) -> Result<LayerId, String> {
        let name = SnapshotName::new(name).map_err(|error| error.to_string())?;
        let kind =
            Kind::Snapshot { name: name.clone(), created: self.now, user: true, labels: BTreeMap::new() };
        let token = self.operate(kind)?;
        self.done(token)?;
        let structure = self.coordinator().and_then(Coordinator::structure).ok_or("not served")?;
        structure.snapshot(&name).map(|layer| layer.id).ok_or_else(|| "there is no snapshot".into())
    }

    /// Whether a request is answered, and if so, how.
    pub fn outcome(&self, token: Token) -> Option<Result<(), RequestError>> {
        self.outcomes.get(&token).copied()
    }

    /// Until a request is answered, with success.
    pub fn done(&mut self, token: Token) -> Result<(), String> {
        self.until("the request is answered", |sim| sim.outcome(token).is_some())?;
        match self.outcome(token) {
            Some(Ok(())) => Ok(()),
            other => Err(format!("{token:?} failed: {other:?}")),
        }
    }

    /// A replica's process dies, and stays dead until it is started.
    pub fn stop(&mut self, id: u32) {
        self.kill(ReplicaId(id), false);
        self.hold(id);
    }

    /// A replica's machine goes down, and stays down until it is started.
    pub fn power_off(&mut self, id: u32) {
        self.kill(ReplicaId(id), true);
        self.hold(id);
    }

    fn hold(&mut self, id: u32) {
        self.payload.retain(|_, ev| !matches!(ev, Ev::Start(of) if of.0 == id));
    }

    /// A replica's process is started.
    pub fn start_again(&mut self, id: u32) {
        self.at(0, Ev::Start(ReplicaId(id)));
    }

    /// Nothing passes between a replica and the current coordinator, in these directions.
    pub fn cut(&mut self, id: u32, to_replica: bool, from_replica: bool) {
        for (cut, way) in [(to_replica, true), (from_replica, false)] {
            if cut {
                self.cut.insert((ReplicaId(id), self.current, way));
            }
        }
    }

    /// All links are whole again.
    pub fn mend(&mut self) {
        self.cut.clear();
    }

    /// A replica's disk fails in this way, or not any more.
    pub fn break_disk(&mut self, id: u32, failure: Option<Failure>) {
        if let Some(process) = self.processes.get_mut(&ReplicaId(id)) {
            process.disk.broken = failure;
        }
    }

    /// What a replica's disk has on its way does not end, unless its process does.
    pub fn stick(&mut self, id: u32, which: impl Fn(&Op) -> bool) {
        let Some(process) = self.processes.get(&ReplicaId(id)) else { return };
        let stuck: Vec<_> = process.disk.on_the_way().filter(|(_, op)| which(op)).map(|(op, _)| op).collect();
        self.payload.retain(|_, ev| !matches!(ev, Ev::Disk(of, _, op) if of.0 == id && stuck.contains(op)));
    }

    /// A bit of what a replica has checksums for flips.
    pub fn rot(&mut self, id: u32) -> Result<(), String> {
        let process = self.processes.get_mut(&ReplicaId(id)).ok_or("no such replica")?;
        let spoilt = process.disk.rot(&mut self.dice).ok_or("nothing has a checksum")?;
        self.spoilt.insert(spoilt);
        Ok(())
    }

    /// A block of a replica, as the guest sees it now, cannot be read any more.
    pub fn lose_block(&mut self, id: u32, block: u64) -> Result<(), String> {
        let process = self.processes.get_mut(&ReplicaId(id)).ok_or("no such replica")?;
        if !process.disk.lose_block(block) {
            return Err("the block is in no layer".into());
        }
        self.spoilt.insert(SegmentIndex(u32::try_from(block).unwrap_or(0) / SEGMENT_BLOCKS));
        Ok(())
    }

    /// All linked clones are gone.
    pub fn clones_gone(&mut self) {
        self.processes.values_mut().for_each(|process| process.disk.unshare());
    }

    /// Damaged blocks that a replica knows of.
    pub fn damaged_blocks(&self, id: u32) -> u64 {
        self.metadata(id).map_or(0, |meta| meta.damage.blocks())
    }

    /// Whether the API answers.
    pub fn api(&mut self, up: bool) {
        self.api_up = up;
    }

    /// The coordinator's process dies; the next one attaches, and the guest lives on or not. If the old one is only cut
    /// off, it lives on too.
    pub fn take_over(&mut self, guest_lives: bool, old_lives: bool) {
        if !old_lives {
            self.coordinators.remove(&self.current);
        }
        self.at(1, Ev::Attach(guest_lives));
        let next = self.current + 1;
        let arrived = |sim: &Self| sim.current == next;
        while !arrived(self) && self.step().is_ok() {}
    }

    /// An earlier coordinator is asked to write; it must not succeed.
    pub fn old_write(&mut self, back: Which) -> Result<(), String> {
        let token = self.guest.token();
        let which = self.current - back;
        if let Some(live) = self.coordinators.get_mut(&which) {
            live.forbidden.insert(token);
        }
        let data = vec![0xee; 4096].into();
        self.coordinate(which, CoordEvent::Guest(token, Request::Write { offset: 0, data }))
    }

    /// Whether an earlier coordinator knows that it is fenced.
    pub fn is_fenced(&self, back: Which) -> bool {
        let which = self.current - back;
        self.coordinators.get(&which).is_some_and(|l| matches!(l.coordinator.phase(), Phase::Fenced(_)))
    }

    /// The link to a replica is whole again.
    pub fn uncut(&mut self, id: u32) {
        self.cut.retain(|(of, ..)| of.0 != id);
    }

    /// Whether a change of the membership is on its way.
    pub fn is_proposing(&self) -> bool {
        self.coordinator().is_some_and(Coordinator::is_proposing)
    }

    /// A replica is lost for good; another one, empty, takes its place.
    pub fn lose_for_good(&mut self, id: u32) -> Result<(), String> {
        self.replace(ReplicaId(id))
    }

    /// The guest finds out what became of an operation whose end it did not hear of.
    pub fn learn(&mut self) -> Result<(), String> {
        self.until("no operation is on its way", |sim| {
            sim.coordinator().is_some_and(|c| c.structure().is_some() && !c.is_operating())
        })?;
        let structure = self.coordinator().and_then(Coordinator::structure).cloned();
        structure.map_or(Ok(()), |structure| self.guest.resolve(&structure))
    }

    /// This, then as [`Self::finish`].
    pub fn finish_with(mut self, last: impl FnOnce(&mut Self) -> Result<(), String>) -> Result<(), String> {
        last(&mut self)?;
        self.finish()
    }

    /// All faults end; the volume must get healthy, and everything be right.
    pub fn finish(mut self) -> Result<(), String> {
        self.heal();
        self.audit()
    }
}
