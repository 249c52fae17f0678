//! The world in which coordinator and replica are tested: clock, network, disks, crashes and guest, from one seed.
//!
//! The state machines are the production ones. **Survivable, so that any other outcome is a bug** (`Sim::faults`):
//!
//! - messages late, lost, twice, reordered; links cut in one direction or both, between any two;
//! - any process killed and started again, at any moment, any number of them; the API away;
//! - a takeover by another coordinator while the old one lives on, cut off or not;
//! - the machine of *one* replica going down (losing unsynced writes, also in part), or the disk of one replica failing
//!   or full, while all replicas are in sync; the next such fault only when all are in sync again.
//!
//! Machines go down only if asked for.
//! Checked: every read against the guest's history (no acknowledged write lost, no unrepeatable read, no torn sector); that an
//! old coordinator acknowledges nothing begun after a new one serves; `Coordinator::check` after each step;
//! after the faults end: that the volume gets healthy, that a flush ends, that every sector is legal, and
//! that all replicas are equal byte for byte.

mod disk;
mod guest;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::coordinator::{Coordinator, Event as CoordEvent, Limits, Output as CoordOutput, Phase, Request};
use crate::ids::{
    BLOCK_BYTES, CoordinatorId, Epoch, LinkId, OpId, ReplicaId, ReplicaSet, SECTOR_BYTES, SEGMENT_BLOCKS,
    Time, Token, VolumeId,
};
use crate::membership::{Answer, Ask, Ledger};
use crate::replica::{Event as ReplicaEvent, Metadata, Op, Output as ReplicaOutput, Replica};
use crate::wire::{Failure, Frame};
use disk::Disk;
use guest::{Asked, Guest};

/// Deterministic chance.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1) | 1)
    }
    /// A number below `limit` (0 if that is 0).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit.max(1)
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Writes acknowledged.
    pub writes: u64,
    /// Reads checked.
    pub reads: u64,
    /// Requests that failed, as they may.
    pub failed: u64,
    /// Faults injected.
    pub faults: u64,
    /// Attaches.
    pub attaches: u64,
    /// Records of membership decided.
    pub records: u64,
    /// Events handled.
    pub events: u64,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.failed += other.failed;
        self.faults += other.faults;
        self.attaches += other.attaches;
        self.records += other.records;
        self.events += other.events;
    }
}

type Which = u64;

#[derive(Debug)]
enum Ev {
    ToReplica(Which, ReplicaId, Frame),
    ToCoordinator(Which, ReplicaId, Frame),
    ToApi(Which, Ask),
    FromApi(Which, Answer),
    /// An operation of one life of a replica ends.
    Disk(ReplicaId, u64, OpId),
    Start(ReplicaId),
    Tick(Which),
    Guest,
    Fault,
    Attach,
    Heal,
}

struct Process {
    disk: Disk,
    replica: Option<Replica>,
    life: u64,
    /// Its machine went down since it ran last.
    went_down: bool,
}

struct Live {
    coordinator: Coordinator,
    /// Requests begun after a newer coordinator served: they must not succeed.
    forbidden: BTreeSet<Token>,
}

/// One simulated world.
pub struct Sim {
    dice: Dice,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    payload: BTreeMap<u64, Ev>,
    next: u64,
    processes: BTreeMap<ReplicaId, Process>,
    coordinators: BTreeMap<Which, Live>,
    current: Which,
    api: Ledger,
    api_up: bool,
    cut: BTreeSet<(ReplicaId, Which, bool)>,
    /// When the newest message of each connection and direction arrives.
    last: BTreeMap<(ReplicaId, Which, bool), u64>,
    guest: Guest,
    sectors: u64,
    faulty: bool,
    machines_fail: bool,
    quiet: bool,
    /// A fault that costs a copy is outstanding until all are in sync again.
    wounded: bool,
    summary: Summary,
}

const VOLUME: VolumeId = VolumeId(7);

fn limits() -> Limits {
    Limits {
        requests: 64,
        active_segments: 12,
        request_deadline: 3_000_000,
        reply_deadline: 400_000,
        grace: 300_000,
        resend: 50_000,
        rebuild_pause: 2_000,
    }
}

impl Sim {
    /// A world with a volume that was just made.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let replicas = 1 + u32::try_from(dice.below(3)).unwrap_or(0);
        let blocks = u64::from(SEGMENT_BLOCKS) * (3 + dice.below(3)) + dice.below(60);
        let set = ReplicaSet::of((1..=replicas).map(ReplicaId)).unwrap_or_default();
        let ledger = Ledger::created(set);
        let processes = set.iter().map(|id| {
            let disk = Disk::new(Metadata::new(VOLUME, id, blocks, ledger));
            (id, Process { disk, replica: None, life: 0, went_down: false })
        });
        let sectors = blocks * u64::from(BLOCK_BYTES / SECTOR_BYTES);
        let mut sim = Self {
            dice,
            now: 0,
            events: BinaryHeap::new(),
            payload: BTreeMap::new(),
            next: 0,
            processes: processes.collect(),
            coordinators: BTreeMap::new(),
            current: 0,
            api: ledger,
            api_up: true,
            cut: BTreeSet::new(),
            last: BTreeMap::new(),
            guest: Guest::new(sectors),
            sectors,
            faulty: true,
            machines_fail: false,
            quiet: false,
            wounded: false,
            summary: Summary::default(),
        };
        set.iter().for_each(|id| sim.at(0, Ev::Start(id)));
        sim.at(10, Ev::Attach);
        sim.at(1_000, Ev::Guest);
        sim.at(20_000, Ev::Fault);
        sim
    }

    fn at(&mut self, delay: u64, ev: Ev) {
        self.next += 1;
        self.events.push(Reverse((self.now + delay, self.next)));
        self.payload.insert(self.next, ev);
    }

    /// Also lets the machine of one replica go down at a time.
    pub fn with_machine_failures(mut self) -> Self {
        self.machines_fail = true;
        self
    }

    /// Runs with faults for so many simulated microseconds, then heals and demands health. An error is a bug.
    pub fn run(&mut self, micros: u64) -> Result<Summary, String> {
        while self.now < micros {
            self.step()?;
        }
        self.heal();
        let limit = self.now + 120_000_000;
        while !self.healthy() {
            if self.now > limit {
                let phase = self.coordinators.get(&self.current).map(|live| live.coordinator.phase().clone());
                return Err(format!("not healthy two minutes after the last fault: {phase:?}"));
            }
            self.step()?;
        }
        self.audit()?;
        self.summary.writes = self.guest.acknowledged;
        self.summary.reads = self.guest.read;
        self.summary.failed = self.guest.failed;
        self.summary.records = self.api.committed.version.0;
        Ok(self.summary)
    }

    fn heal(&mut self) {
        (self.faulty, self.api_up) = (false, true);
        self.cut.clear();
        let current = self.current;
        self.coordinators.retain(|which, _| *which == current);
        for process in self.processes.values_mut() {
            process.disk.broken = None;
        }
        if !self.coordinators.contains_key(&current) {
            self.at(1, Ev::Attach);
        }
        self.at(1, Ev::Heal);
    }

    fn healthy(&self) -> bool {
        self.coordinators.get(&self.current).is_some_and(|live| live.coordinator.is_healthy())
    }

    /// Everything on the disks is legal and equal.
    fn audit(&mut self) -> Result<(), String> {
        let limit = self.now + 60_000_000;
        // The guest stops: what is on its way ends, then a flush.
        self.quiet = true;
        while !self.guest.asked.is_empty() {
            if self.now > limit {
                return Err(format!("requests do not end on a healthy volume: {:?}", self.guest.asked));
            }
            self.step()?;
        }
        let token = self.guest.token();
        self.guest.asked.insert(token, Asked::Flush);
        self.coordinate(self.current, CoordEvent::Guest(token, Request::Flush))?;
        while self.guest.asked.contains_key(&token) {
            if self.now > limit {
                return Err("a flush does not end on a healthy volume".into());
            }
            self.step()?;
        }
        let mut first: Option<(ReplicaId, Vec<u8>)> = None;
        for (id, process) in &self.processes {
            match &first {
                None => first = Some((*id, process.disk.content.clone())),
                Some((other, content)) => {
                    if let Some(at) = content.iter().zip(&process.disk.content).position(|(a, b)| a != b) {
                        let block = at / BLOCK_BYTES as usize;
                        return Err(format!("replicas {other} and {id} differ in block {block}"));
                    }
                }
            }
        }
        let content = first.map(|(_, content)| content).unwrap_or_default();
        self.guest.see(0, self.sectors, &content)
    }

    /// Handles the next event.
    fn step(&mut self) -> Result<(), String> {
        let Some(Reverse((time, id))) = self.events.pop() else {
            return Err("nothing happens any more".into());
        };
        self.now = time;
        let Some(ev) = self.payload.remove(&id) else { return Ok(()) };
        self.summary.events += 1;
        match ev {
            Ev::ToReplica(which, id, frame) => {
                self.replicate(id, |_| ReplicaEvent::Frame(LinkId(which), frame))
            }
            Ev::ToCoordinator(which, id, frame) => {
                return self.coordinate(which, CoordEvent::Frame(id, frame));
            }
            Ev::ToApi(which, ask) => {
                if self.api_up {
                    let answer = self.api.on(ask);
                    let delay = 100 + self.dice.below(3_000);
                    self.at(delay, Ev::FromApi(which, answer));
                }
            }
            Ev::FromApi(which, answer) => {
                if self.api_up {
                    return self.coordinate(which, CoordEvent::Api(answer));
                }
            }
            Ev::Disk(id, life, op) => self.disk_done(id, life, op),
            Ev::Start(id) => self.start(id),
            Ev::Tick(which) => {
                if self.coordinators.contains_key(&which) {
                    self.at(20_000, Ev::Tick(which));
                    return self.coordinate(which, CoordEvent::Tick);
                }
            }
            Ev::Guest => return self.guest_step(),
            Ev::Fault => self.fault(),
            Ev::Attach => self.attach(),
            Ev::Heal => {
                let down: Vec<ReplicaId> =
                    self.processes.iter().filter(|(_, p)| p.replica.is_none()).map(|(id, _)| *id).collect();
                down.into_iter().for_each(|id| self.start(id));
            }
        }
        Ok(())
    }

    fn start(&mut self, id: ReplicaId) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        if process.replica.is_some() {
            return;
        }
        process.life += 1;
        let went_down = process.went_down;
        let mut out = vec![];
        process.replica = Some(Replica::open(process.disk.meta.clone(), went_down, &mut out));
        self.replica_out(id, out);
    }

    fn replicate(&mut self, id: ReplicaId, event: impl FnOnce(&mut Process) -> ReplicaEvent) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let event = event(process);
        let Some(replica) = &mut process.replica else { return };
        let mut out = vec![];
        replica.on(event, &mut out);
        self.replica_out(id, out);
    }

    fn disk_done(&mut self, id: ReplicaId, life: u64, op: OpId) {
        let Some(process) = self.processes.get_mut(&id).filter(|p| p.life == life && p.replica.is_some())
        else {
            return;
        };
        match process.disk.end(op) {
            Some(result) => {
                // Durable now: opened after the machine went down.
                process.went_down &= op != OpId(1);
                self.replicate(id, |_| ReplicaEvent::Disk(op, result));
            }
            None => self.at(50, Ev::Disk(id, life, op)),
        }
    }

    fn replica_out(&mut self, id: ReplicaId, out: Vec<ReplicaOutput>) {
        for output in out {
            match output {
                ReplicaOutput::Send(link, frame) => {
                    if self.travels(id, link.0, false) {
                        let delay = self.in_order(id, link.0, false);
                        self.at(delay, Ev::ToCoordinator(link.0, id, frame.clone()));
                        if self.faulty && self.dice.below(400) == 0 {
                            let delay = self.delay() * 20;
                            self.at(delay, Ev::ToCoordinator(link.0, id, frame));
                        }
                    }
                }
                ReplicaOutput::Disk(op, what) => {
                    let slow = if matches!(what, Op::Sync | Op::Persist(_)) { 3 } else { 1 };
                    let delay = (20 + self.dice.below(200)) * slow;
                    let delay =
                        if self.faulty && self.dice.below(2_000) == 0 { delay * 3_000 } else { delay };
                    if let Some(process) = self.processes.get_mut(&id) {
                        process.disk.begin(op, what);
                        let life = process.life;
                        self.at(delay, Ev::Disk(id, life, op));
                    }
                }
                ReplicaOutput::Stop => self.kill(id, false),
            }
        }
    }

    fn delay(&mut self) -> u64 {
        let base = 30 + self.dice.below(200);
        if self.faulty && self.dice.below(1_000) == 0 { base * 200 } else { base }
    }

    /// The delay of a message on a connection: after what was sent before it, but for a rare exception.
    fn in_order(&mut self, id: ReplicaId, which: Which, to_replica: bool) -> u64 {
        let delay = self.delay();
        if self.faulty && self.dice.below(2_000) == 0 {
            return delay;
        }
        let last = self.last.entry((id, which, to_replica)).or_default();
        *last = (self.now + delay).max(*last + 1);
        *last - self.now
    }

    /// Whether a message between a replica and a coordinator arrives.
    fn travels(&mut self, id: ReplicaId, which: Which, to_replica: bool) -> bool {
        !self.cut.contains(&(id, which, to_replica)) && !(self.faulty && self.dice.below(5_000) == 0)
    }

    fn coordinate(&mut self, which: Which, event: CoordEvent) -> Result<(), String> {
        let now = Time(self.now);
        let Some(live) = self.coordinators.get_mut(&which) else { return Ok(()) };
        let mut out = vec![];
        live.coordinator.on(now, event, &mut out);
        live.coordinator.check();
        for output in out {
            match output {
                CoordOutput::Send(id, frame) => {
                    if self.travels(id, which, true) {
                        let delay = self.in_order(id, which, true);
                        self.at(delay, Ev::ToReplica(which, id, frame.clone()));
                        if self.faulty && self.dice.below(400) == 0 {
                            let delay = self.delay() * 20;
                            self.at(delay, Ev::ToReplica(which, id, frame));
                        }
                    }
                }
                CoordOutput::AskApi(ask) => {
                    let delay = self.delay();
                    self.at(delay, Ev::ToApi(which, ask));
                }
                CoordOutput::Complete(token, result) => {
                    let forbidden =
                        self.coordinators.get(&which).is_some_and(|live| live.forbidden.contains(&token));
                    if forbidden && result.is_ok() {
                        return Err(format!(
                            "coordinator {which} acknowledged {token:?} after another served"
                        ));
                    }
                    if which == self.current && !forbidden {
                        self.guest.complete(
                            token,
                            result.is_ok(),
                            result.as_ref().ok().and_then(|data| data.as_deref()),
                        )?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A new coordinator takes over; the old one may live on.
    fn attach(&mut self) {
        self.current += 1;
        let which = self.current;
        self.summary.attaches += 1;
        // What the guest had asked of the old one: it will not hear of it.
        self.guest.asked.clear();
        let set = ReplicaSet::of(self.processes.keys().copied()).unwrap_or_default();
        let local = self.processes.keys().copied().nth(self.dice.below(set.len() as u64) as usize);
        let epoch = Epoch { number: which, holder: CoordinatorId(which) };
        let blocks = self.sectors / u64::from(BLOCK_BYTES / SECTOR_BYTES);
        let coordinator = Coordinator::new(VOLUME, blocks, epoch, set, local, limits(), Time(self.now));
        self.coordinators.insert(which, Live { coordinator, forbidden: BTreeSet::new() });
        self.at(0, Ev::Tick(which));
    }

    fn guest_step(&mut self) -> Result<(), String> {
        let pause = if self.dice.chance(70) { 50 } else { 5_000 };
        let full = self.quiet || self.guest.asked.len() >= 16;
        let pause = if full { 1_000 } else { 20 + self.dice.below(pause) };
        self.at(pause, Ev::Guest);
        if full {
            return Ok(());
        }
        let serving =
            self.coordinators.get(&self.current).is_some_and(|l| *l.coordinator.phase() == Phase::Serving);
        // An old coordinator's guest goes on writing, too: nothing of it may succeed once the new one serves.
        if serving
            && self.dice.below(20) == 0
            && let Some(old) = self.coordinators.keys().copied().find(|which| *which != self.current)
        {
            let token = self.guest.token();
            let data = vec![0xee; 4096].into();
            if let Some(live) = self.coordinators.get_mut(&old) {
                live.forbidden.insert(token);
            }
            return self.coordinate(old, CoordEvent::Guest(token, Request::Write { offset: 0, data }));
        }
        if !self.coordinators.contains_key(&self.current) {
            return Ok(());
        }
        let token = self.guest.token();
        // Most of it in few places, so that requests meet.
        let span = if self.dice.chance(60) { 64 } else { self.sectors };
        let first = self.dice.below(span.min(self.sectors - 1));
        let longest = if self.dice.chance(5) { 600 } else { 24 };
        let count = (1 + self.dice.below(longest)).min(self.sectors - first);
        let (offset, len) = (first * u64::from(SECTOR_BYTES), count as u32 * SECTOR_BYTES);
        let request = match self.dice.below(100) {
            0..45 => {
                if !self.guest.may_write(first, count) {
                    return Ok(());
                }
                let id = self.guest.write(token, first, count);
                Request::Write { offset, data: id.to_le_bytes().repeat(len as usize / 8).into() }
            }
            45..95 => {
                if !self.guest.may_read(first, count) {
                    return Ok(());
                }
                self.guest.asked.insert(token, Asked::Read { first, count });
                Request::Read { offset, len }
            }
            _ => {
                self.guest.asked.insert(token, Asked::Flush);
                Request::Flush
            }
        };
        self.coordinate(self.current, CoordEvent::Guest(token, request))
    }

    fn kill(&mut self, id: ReplicaId, power: bool) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        if process.replica.take().is_none() {
            return;
        }
        process.went_down |= power;
        if power {
            process.disk.power_cut(&mut self.dice)
        } else {
            process.disk.crash(&mut self.dice)
        }
        let delay = 1_000 + self.dice.below(600_000);
        self.at(delay, Ev::Start(id));
        for which in self.coordinators.keys().copied().collect::<Vec<Which>>() {
            let _later = self.coordinate(which, CoordEvent::Lost(id));
        }
    }

    fn fault(&mut self) {
        if !self.faulty {
            return;
        }
        let pause = self.dice.below(400_000);
        self.at(pause, Ev::Fault);
        self.summary.faults += 1;
        let ids: Vec<ReplicaId> = self.processes.keys().copied().collect();
        let id = ids[self.dice.below(ids.len() as u64) as usize];
        if self.wounded && self.healthy() && self.processes.values().all(|p| p.disk.broken.is_none()) {
            self.wounded = false;
        }
        let may_wound = !self.wounded && self.healthy() && ids.len() > 1;
        let what = self.dice.below(10);
        match what {
            0 | 1 => self.kill(id, false),
            2 => {
                let current = self.current;
                self.coordinators.retain(|which, _| *which == current);
                if self.dice.chance(50) {
                    self.coordinators.remove(&current);
                }
                let delay = self.dice.below(100_000);
                self.at(delay, Ev::Attach);
            }
            3 | 4 => {
                let which = self.current;
                self.cut.insert((id, which, true));
                if self.dice.chance(50) {
                    self.cut.insert((id, which, false));
                }
            }
            5 | 6 => self.cut.clear(),
            7 => self.api_up = !self.api_up,
            8 if may_wound && self.machines_fail => {
                self.wounded = true;
                self.kill(id, true);
            }
            9 if may_wound => {
                self.wounded = true;
                let failure = if self.dice.chance(50) { Failure::Io } else { Failure::NoSpace };
                if let Some(process) = self.processes.get_mut(&id) {
                    process.disk.broken = Some(failure);
                }
            }
            _ => self.processes.values_mut().for_each(|process| process.disk.broken = None),
        }
    }
}
