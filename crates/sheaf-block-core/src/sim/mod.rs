//! The world in which coordinator and replica are tested: clock, network, disks, crashes and guest, from one seed.
//!
//! The state machines are the production ones. **Survivable, so that any other outcome is a bug** (`faults.rs`):
//!
//! - messages late, lost, twice, reordered, damaged; links cut in one direction or both, between any two;
//! - any process killed and started again, at any moment, any number of them, stuck or slow; the API away;
//! - an attach elsewhere that reaches only replicas that are not in sync, and comes to nothing;
//! - a takeover by another coordinator while the old one lives on, cut off or not; a coordinator's process replaced
//!   under a guest that lives on and gives its unanswered requests to the next one;
//! - one *wound* at a time, when all replicas are in sync: the machine of one replica goes down (losing unsynced writes, also in
//!   part), the disk of one replica fails or is full, a bit of one replica's checked data flips, or one replica is
//!   lost for good and another one made in its place; the next wound only when all are in sync and sound again. (Damage that nobody found
//!   before all other replicas were out is not survivable: exactly that must then be known as damaged; such worlds are counted);
//! - the disks of all replicas full at once.
//!
//! Snapshots, reverts, removals, expansions and checks happen meanwhile, in any of these.
//!
//! Checked: every read against the guest's history (no acknowledged write lost, no unrepeatable read, no torn sector);
//! that an old coordinator acknowledges nothing begun after a new one serves; `Coordinator::check` after each step;
//! frames survive encoding, damaged ones are refused; after the faults end: that the volume gets healthy, that a flush
//! ends, that every sector is legal, that snapshots are what was there, and that all replicas are equal in everything
//! that can be read of them.

mod disk;
mod faults;
mod guest;
mod script;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::coordinator::{
    Coordinator, Counts, Event as CoordEvent, Limits, Output as CoordOutput, Phase, Request,
};
use crate::disk::{Failure, Metadata, Op};
use crate::ids::{
    BLOCK_BYTES, CoordinatorId, Epoch, LinkId, OpId, ReplicaId, ReplicaSet, SECTOR_BYTES, SEGMENT_BLOCKS,
    SegmentIndex, Time, Token, VolumeId,
};
use crate::membership::{Answer, Ask, Ledger};
use crate::replica::{Event as ReplicaEvent, Output as ReplicaOutput, Replica};
use crate::structure::Structure;
use crate::wire::Frame;
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

/// What may happen beside what always may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    /// Wounds: machines go down, disks fail.
    pub wounds: bool,
    /// Snapshots and other operations on the layers, and checks of them.
    pub layers: bool,
}

impl Mode {
    /// Everything.
    pub const ALL: Self = Self { wounds: true, layers: true };

    /// The mode in which a seed is run if nothing else is said.
    pub fn of(seed: u64) -> Self {
        Self { wounds: seed & 1 == 1, layers: seed & 2 == 2 }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Writes acknowledged.
    pub writes: u64,
    /// Reads checked.
    pub reads: u64,
    /// Operations on the layers.
    pub operations: u64,
    /// Requests that failed, as they may.
    pub failed: u64,
    /// Faults injected.
    pub faults: u64,
    /// Of these, wounds.
    pub wounds: u64,
    /// Worlds that ended with something known as damaged, which the only replica left could not read.
    pub lost: u64,
    /// Attaches that were tried elsewhere and had no majority.
    pub strays: u64,
    /// Attaches.
    pub attaches: u64,
    /// Rebuilds that ended.
    pub rebuilt: u64,
    /// Parts of segments repaired.
    pub repaired: u64,
    /// Records of membership decided.
    pub records: u64,
    /// Events handled.
    pub events: u64,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.operations += other.operations;
        self.failed += other.failed;
        self.faults += other.faults;
        self.wounds += other.wounds;
        self.lost += other.lost;
        self.strays += other.strays;
        self.attaches += other.attaches;
        self.rebuilt += other.rebuilt;
        self.repaired += other.repaired;
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
    /// A connection broke.
    Lost(Which, ReplicaId),
    /// An operation of one life of a replica ends.
    Disk(ReplicaId, u64, OpId),
    Start(ReplicaId),
    Tick(Which),
    /// A coordinator acts on what it has taken in.
    Settle(Which),
    Guest,
    Fault,
    /// Another coordinator; true if the guest lives on.
    Attach(bool),
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
    ticks: bool,
    /// It has taken in something and not acted on it.
    unsettled: bool,
}

/// One simulated world.
pub struct Sim {
    dice: Dice,
    mode: Mode,
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
    /// How requests ended, in scripted worlds.
    outcomes: BTreeMap<Token, Result<(), crate::coordinator::RequestError>>,
    scripted: bool,
    faulty: bool,
    quiet: bool,
    /// A wound has not healed yet.
    wounded: bool,
    retired: Option<ReplicaId>,
    /// Segments of which something was damaged, ever.
    spoilt: BTreeSet<SegmentIndex>,
    next_replica: u32,
    counts: BTreeMap<Which, Counts>,
    trace: bool,
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
        rebuild_jobs: 2,
        page: 2,
        progress: 2,
        rest: 30_000,
    }
}

impl Sim {
    /// A world with a volume that was just made, of 1 to 3 replicas.
    pub fn new(seed: u64, mode: Mode) -> Self {
        let mut dice = Dice::new(seed);
        let replicas = 1 + u32::try_from(dice.below(3)).unwrap_or(0);
        let blocks = u64::from(SEGMENT_BLOCKS) * (3 + dice.below(3)) + dice.below(60);
        let set = ReplicaSet::of((1..=replicas).map(ReplicaId)).unwrap_or_default();
        let ledger = Ledger::created(set);
        let processes = set.iter().map(|id| {
            let disk = Disk::new(Metadata::new(VOLUME, id, Structure::new(blocks, None), ledger));
            (id, Process { disk, replica: None, life: 0, went_down: false })
        });
        let mut sim = Self {
            dice,
            mode,
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
            guest: Guest::new(blocks * u64::from(BLOCK_BYTES / SECTOR_BYTES)),
            outcomes: BTreeMap::new(),
            scripted: false,
            faulty: true,
            quiet: false,
            wounded: false,
            retired: None,
            spoilt: BTreeSet::new(),
            next_replica: replicas + 1,
            counts: BTreeMap::new(),
            trace: false,
            summary: Summary::default(),
        };
        set.iter().for_each(|id| sim.at(0, Ev::Start(id)));
        sim.at(10, Ev::Attach(false));
        sim.at(1_000, Ev::Guest);
        sim.at(20_000, Ev::Fault);
        sim
    }

    /// Prints every event, to standard error.
    pub fn traced(mut self) -> Self {
        self.trace = true;
        self
    }

    fn at(&mut self, delay: u64, ev: Ev) {
        self.next += 1;
        self.events.push(Reverse((self.now + delay, self.next)));
        self.payload.insert(self.next, ev);
    }

    /// Runs with faults for so many simulated microseconds, then heals and demands health. An error is a bug.
    pub fn run(&mut self, micros: u64) -> Result<Summary, String> {
        while self.now < micros {
            self.step()?;
        }
        self.heal();
        self.audit()?;
        let live = self.coordinators.get(&self.current).map(|live| live.coordinator.counts());
        self.counts.extend(live.map(|counts| (self.current, counts)));
        self.summary.rebuilt = self.counts.values().map(|counts| counts.rebuilt).sum();
        self.summary.repaired = self.counts.values().map(|counts| counts.repaired).sum();
        self.summary.writes = self.guest.acknowledged;
        self.summary.reads = self.guest.read;
        self.summary.operations = self.guest.operations;
        self.summary.failed = self.guest.failed;
        self.summary.records = self.api.committed.version.0;
        Ok(self.summary)
    }

    fn is_healthy(&self) -> bool {
        let live = self.coordinators.get(&self.current);
        self.retired.is_none_or(|id| live.is_some_and(|l| !l.coordinator.membership().in_sync.contains(id)))
            && live.is_some_and(|live| live.coordinator.is_healthy())
    }

    fn until_healthy(&mut self) -> Result<(), String> {
        let limit = self.now + 120_000_000;
        while !self.is_healthy() {
            if self.now > limit {
                let why = self.coordinators.get(&self.current).map(|live| live.coordinator.explain());
                return Err(format!(
                    "not healthy two minutes after the last fault: {}",
                    why.unwrap_or_default()
                ));
            }
            self.step()?;
        }
        Ok(())
    }

    /// The guest's requests end; then this one is asked and ends, on a healthy volume.
    fn ask_and_wait(&mut self, asked: Asked, request: Request) -> Result<(), String> {
        let limit = self.now + 120_000_000;
        self.quiet = true;
        // Whom it was asked of: a coordinator that came since may not know of it, if the guest went with the one before.
        let mut of = None;
        loop {
            if self.now > limit {
                return Err(format!("requests do not end on a healthy volume: {:?}", self.guest.asked));
            }
            if self.guest.asked.is_empty() && self.guest.unsure.is_none() && self.is_healthy() {
                if of == Some(self.current) {
                    return Ok(());
                }
                let new = self.guest.token();
                of = Some(self.current);
                self.guest.asked.insert(new, (asked.clone(), request.clone()));
                self.coordinate(self.current, CoordEvent::Guest(new, request.clone()))?;
            }
            self.step()?;
        }
    }

    /// Everything on the disks is legal and equal.
    fn audit(&mut self) -> Result<(), String> {
        self.until_healthy()?;
        if self.mode.layers {
            self.ask_and_wait(Asked::Scrub, Request::Scrub)?;
        }
        self.ask_and_wait(Asked::Flush, Request::Flush)?;
        let mut first: Option<(ReplicaId, Structure)> = None;
        for (id, process) in &self.processes {
            let structure = process.disk.meta.structure.clone();
            if !process.disk.is_sound() && self.processes.len() > 1 {
                return Err(format!("replica {id} has damaged data after a check"));
            }
            if let Some((layer, segment, _)) =
                process.disk.meta.damage.iter().find(|(_, segment, _)| !self.spoilt.contains(segment))
            {
                return Err(format!("replica {id} takes layer {layer} for damaged in segment {segment}"));
            }
            if self.spoilt.is_empty() && !process.disk.keeps_shared() {
                return Err(format!("replica {id} has changed a layer that a clone has, too"));
            }
            if !process.disk.meta.partial.is_empty() {
                return Err(format!("replica {id} is in sync and says that it is not complete"));
            }
            match &first {
                None => first = Some((*id, structure)),
                Some((other, same)) => {
                    if *same != structure {
                        return Err(format!("replicas {other} and {id} differ in their layers"));
                    }
                    for layer in &structure.layers {
                        let (a, b) = (&self.processes[other].disk, &process.disk);
                        let (bad_a, bad_b) = (a.damaged(layer.id), b.damaged(layer.id));
                        let (a, b) = (a.content(layer.id), b.content(layer.id));
                        let block = BLOCK_BYTES as usize;
                        let blocks = (0..).zip(a.chunks(block).zip(b.chunks(block)));
                        let mut known = blocks.filter(|(at, _)| !bad_a.contains(at) && !bad_b.contains(at));
                        if let Some((block, _)) = known.find(|(_, (a, b))| a != b) {
                            return Err(format!(
                                "replicas {other} and {id} differ in block {block}, seen through layer {}",
                                layer.id
                            ));
                        }
                    }
                }
            }
        }
        let Some((_, structure)) = first else { return Ok(()) };
        let snapshots: BTreeSet<_> = self.guest.snapshots().chain(self.guest.pinned()).collect();
        let mut lost = false;
        // What is damaged in one may be whole in another: each is looked at.
        for Process { disk, .. } in self.processes.values() {
            for layer in snapshots.iter().copied() {
                if structure.layer(layer).is_none() {
                    return Err(format!("snapshot {layer} is gone"));
                }
                let mut content = disk.content(layer);
                // It is as large as the volume was.
                content.truncate(self.guest.snapshot_bytes(layer));
                self.guest.see_snapshot(layer, &content, &disk.damaged(layer))?;
            }
            let content = disk.content(structure.head);
            self.guest.see_all(&content, &disk.damaged(structure.head))?;
            lost |= !disk.meta.damage.is_empty();
        }
        self.summary.lost += u64::from(lost);
        Ok(())
    }

    /// Handles the next event.
    fn step(&mut self) -> Result<(), String> {
        let Some(Reverse((time, id))) = self.events.pop() else {
            return Err("nothing happens any more".into());
        };
        self.now = time;
        let Some(ev) = self.payload.remove(&id) else { return Ok(()) };
        self.summary.events += 1;
        if self.trace && !matches!(ev, Ev::Tick(_)) {
            let text = format!("{ev:?}");
            let short: String = text.chars().take(600).collect();
            eprintln!("{time} {short}");
        }
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
            Ev::Lost(which, id) => return self.coordinate(which, CoordEvent::Lost(id)),
            Ev::Disk(id, life, op) => self.disk_done(id, life, op),
            Ev::Start(id) => self.start(id),
            Ev::Settle(which) => {
                if let Some(live) = self.coordinators.get_mut(&which) {
                    live.unsettled = false;
                }
                return self.decided(which, vec![]);
            }
            Ev::Tick(which) => {
                if let Some(live) = self.coordinators.get_mut(&which) {
                    live.ticks = false;
                    return self.coordinate(which, CoordEvent::Tick);
                }
            }
            Ev::Guest => return self.guest_step(),
            Ev::Fault => return self.fault(),
            Ev::Attach(lives) => return self.attach(lives),
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
        let mut replica = Replica::open(process.disk.meta.clone(), went_down, &mut out);
        replica.keep(4, 2);
        process.replica = Some(replica);
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
                process.went_down &= op != OpId(1) || result.is_err();
                self.replicate(id, |_| ReplicaEvent::Disk(op, result));
            }
            None => self.at(2_000, Ev::Disk(id, life, op)),
        }
    }

    fn replica_out(&mut self, id: ReplicaId, out: Vec<ReplicaOutput>) {
        for output in out {
            match output {
                ReplicaOutput::Send(link, frame) => self.carry(id, link.0, false, frame),
                ReplicaOutput::Disk(op, what) => {
                    let slow = if matches!(what, Op::Sync | Op::Persist(_)) { 3 } else { 1 };
                    let mut delay = (20 + self.dice.below(200)) * slow;
                    if self.faulty && self.dice.below(2_000) == 0 {
                        // Slow, or as good as stuck.
                        delay *= if self.dice.chance(20) { 20_000 } else { 3_000 };
                    }
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

    /// A message between a replica and a coordinator: it may arrive, late or twice, or not.
    fn carry(&mut self, id: ReplicaId, which: Which, to_replica: bool, frame: Frame) {
        if self.cut.contains(&(id, which, to_replica)) || self.faulty && self.dice.below(5_000) == 0 {
            return;
        }
        let mut frame = frame;
        if self.dice.below(256) == 0 {
            let bytes = frame.encode();
            if self.faulty && self.dice.below(4) == 0 {
                self.damaged(id, which, bytes);
                return;
            }
            match Frame::decode(&bytes) {
                Ok(same) if same == frame => frame = same,
                other => panic!("{frame:?} is read back as {other:?}"),
            }
        }
        let event = |frame| match to_replica {
            true => Ev::ToReplica(which, id, frame),
            false => Ev::ToCoordinator(which, id, frame),
        };
        let delay = self.in_order(id, which, to_replica);
        let again = self.faulty && self.dice.below(400) == 0;
        if again {
            let delay = self.delay() * 20;
            self.at(delay, event(frame.clone()));
        }
        self.at(delay, event(frame));
    }

    /// A frame is damaged on its way: it is refused, and the connection ends.
    fn damaged(&mut self, id: ReplicaId, which: Which, mut bytes: Vec<u8>) {
        let at = self.dice.below(bytes.len() as u64) as usize;
        if self.dice.chance(50) {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << self.dice.below(8);
        }
        assert!(Frame::decode(&bytes).is_err(), "a damaged frame is taken for a whole one");
        self.at(100, Ev::Lost(which, id));
    }

    fn coordinate(&mut self, which: Which, event: CoordEvent) -> Result<(), String> {
        let now = Time(self.now);
        let Some(live) = self.coordinators.get_mut(&which) else { return Ok(()) };
        let mut out = vec![];
        // What comes together is taken in together by the shell: now and then the next event comes before this one is acted on.
        live.coordinator.take(now, event, &mut out);
        let later = !live.unsettled && self.dice.chance(25);
        live.unsettled |= later;
        if later {
            let delay = self.dice.below(100);
            self.at(delay, Ev::Settle(which));
        }
        self.decided(which, out)
    }

    /// What a coordinator says; all that it owes, unless it is to be settled later.
    fn decided(&mut self, which: Which, mut out: Vec<CoordOutput>) -> Result<(), String> {
        let now = Time(self.now);
        let Some(live) = self.coordinators.get_mut(&which) else { return Ok(()) };
        if !live.unsettled {
            live.coordinator.settle(&mut out);
            live.coordinator.check();
        }
        if let Some(wake) = live.coordinator.wake()
            && !live.ticks
        {
            live.ticks = true;
            self.at(wake.0.saturating_sub(now.0), Ev::Tick(which));
        }
        for output in out {
            match output {
                CoordOutput::Send(id, frame) => self.carry(id, which, true, frame),
                CoordOutput::AskApi(ask) => {
                    let delay = self.delay();
                    self.at(delay, Ev::ToApi(which, ask));
                }
                CoordOutput::Complete(token, result) => self.completed(which, token, result)?,
            }
        }
        let again = self.coordinators.get(&which).is_some_and(|l| *l.coordinator.phase() == Phase::Again);
        if again && which == self.current {
            // As the shell does: attach again, with the unanswered requests.
            self.coordinators.remove(&which);
            self.at(1_000, Ev::Attach(true));
        }
        Ok(())
    }

    fn completed(
        &mut self,
        which: Which,
        token: Token,
        result: Result<Option<crate::disk::Data>, crate::coordinator::RequestError>,
    ) -> Result<(), String> {
        let live = self.coordinators.get(&which);
        let forbidden = live.is_some_and(|live| live.forbidden.contains(&token));
        if forbidden && result.is_ok() {
            return Err(format!("coordinator {which} acknowledged {token:?} after another served"));
        }
        if which != self.current || forbidden {
            return Ok(());
        }
        let structure = live.and_then(|live| live.coordinator.structure());
        if self.scripted {
            self.outcomes.insert(token, result.as_ref().map(drop).map_err(|error| *error));
        }
        let data = result.as_ref().map(|data| data.as_deref()).map_err(|error| *error);
        self.guest.complete(token, data, structure)
    }

    /// A new coordinator takes over; the old one may live on. If the guest does, too, it asks again what was not answered.
    fn attach(&mut self, guest_lives: bool) -> Result<(), String> {
        if let Some(live) = self.coordinators.get(&self.current) {
            self.counts.insert(self.current, live.coordinator.counts());
        }
        self.current += 1;
        let which = self.current;
        self.summary.attaches += 1;
        if !guest_lives {
            self.guest.forget();
        }
        let set = ReplicaSet::of(self.processes.keys().copied()).unwrap_or_default();
        let local = self.processes.keys().copied().nth(self.dice.below(set.len() as u64) as usize);
        let epoch = Epoch { number: which, holder: CoordinatorId(which) };
        let coordinator = Coordinator::new(VOLUME, epoch, set, local, limits(), Time(self.now));
        self.coordinators
            .insert(which, Live { coordinator, forbidden: BTreeSet::new(), ticks: false, unsettled: false });
        self.coordinate(which, CoordEvent::Tick)?;
        if let Some(retired) = self.retired {
            self.coordinate(which, CoordEvent::Retired(retired))?;
        }
        let again: Vec<(Token, Request)> =
            self.guest.asked.iter().map(|(token, (_, request))| (*token, request.clone())).collect();
        for (token, request) in again {
            self.coordinate(which, CoordEvent::Guest(token, request))?;
        }
        Ok(())
    }
}
