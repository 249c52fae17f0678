//! What the guest asks for, and what goes wrong.

use std::collections::BTreeMap;

use super::{
    Ask, Asked, CoordEvent, Disk, Ev, Failure, Frame, Ledger, LinkId, Metadata, Phase, Process, ReplicaId,
    Request, Sim, Structure, VOLUME, Which,
};
use crate::ids::{CoordinatorId, Epoch, SECTOR_BYTES, SEGMENT_BLOCKS, SessionId, Token, VolumeId};
use crate::structure::{CloneOf, Kind, LayerId, SnapshotName};
use crate::wire::Body;

/// The volume of a linked clone.
const CLONE: VolumeId = VolumeId(8);

impl Sim {
    pub(super) fn guest_step(&mut self) -> Result<(), String> {
        let pause = if self.dice.chance(70) { 50 } else { 5_000 };
        let full = self.quiet || self.guest.asked.len() >= 16 || self.guest.is_operating();
        let pause = if full { 1_000 } else { 20 + self.dice.below(pause) };
        self.at(pause, Ev::Guest);
        let Some(live) = self.coordinators.get(&self.current) else { return Ok(()) };
        let serving = *live.coordinator.phase() == Phase::Serving;
        if self.guest.unsure.is_some()
            && let Some(structure) = live.coordinator.structure().filter(|_| !live.coordinator.is_operating())
        {
            self.guest.resolve(structure)?;
        }
        if full {
            return Ok(());
        }
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
        if self.mode.layers && serving && self.dice.below(80) == 0 {
            return self.any_operation();
        }
        let token = self.guest.token();
        let Some((asked, request)) = self.request(token) else { return Ok(()) };
        self.guest.asked.insert(token, (asked, request.clone()));
        self.coordinate(self.current, CoordEvent::Guest(token, request))
    }

    fn request(&mut self, token: Token) -> Option<(Asked, Request)> {
        // Most of it in few places, so that requests meet.
        let sectors = self.guest.sectors();
        let span = if self.dice.chance(60) { 64 } else { sectors };
        let first = self.dice.below(span.min(sectors - 1));
        let longest = if self.dice.chance(5) { 600 } else { 24 };
        let count = (1 + self.dice.below(longest)).min(sectors - first);
        let (offset, len) = (first * u64::from(SECTOR_BYTES), count as u32 * SECTOR_BYTES);
        match self.dice.below(100) {
            0..45 => {
                self.guest.may(first, count, true).then_some(())?;
                self.guest.write(token, first, count, false);
                let data = token.0.to_le_bytes().repeat(len as usize / 8).into();
                Some((Asked::Write { first, count }, Request::Write { offset, data }))
            }
            45..52 => {
                let discard = self.dice.chance(50);
                // What a discard does not cover wholly stays.
                let (first, count) = if discard {
                    let (from, to) = (first.div_ceil(8) * 8, (first + count) / 8 * 8);
                    (from, to.saturating_sub(from))
                } else {
                    (first, count)
                };
                self.guest.may(first, count, true).then_some(())?;
                self.guest.write(token, first, count, true);
                let request = match discard {
                    true => Request::Discard { offset, len },
                    false => Request::WriteZeroes { offset, len },
                };
                Some((Asked::Write { first, count }, request))
            }
            52..96 => {
                self.guest.may(first, count, false).then_some(())?;
                Some((Asked::Read { first, count }, Request::Read { offset, len }))
            }
            _ => Some((Asked::Flush, Request::Flush)),
        }
    }

    /// Something is done with the layers.
    fn any_operation(&mut self) -> Result<(), String> {
        let Some(structure) =
            self.coordinators.get(&self.current).and_then(|live| live.coordinator.structure()).cloned()
        else {
            return Ok(());
        };
        let token = self.guest.token();
        let snapshots: Vec<LayerId> = self.guest.snapshots().collect();
        let any = snapshots.get(self.dice.below(snapshots.len() as u64) as usize).copied();
        let kind = match (self.dice.below(100), any) {
            (0..20, _) => {
                self.guest.asked.insert(token, (Asked::Scrub, Request::Scrub));
                return self.coordinate(self.current, CoordEvent::Guest(token, Request::Scrub));
            }
            (20..28, _) if structure.blocks < 8 * u64::from(SEGMENT_BLOCKS) => {
                Kind::Expand(structure.blocks + 1 + self.dice.below(70))
            }
            (28..42, Some(layer)) => Kind::Revert(layer),
            (42..68, Some(layer)) => Kind::Remove(layer),
            // A linked clone begins to read through it, or ends to: until then it stays, whoever wants it removed.
            (68..78, Some(layer)) => {
                let pins = structure.layer(layer).and_then(|layer| layer.snapshot.as_ref());
                match pins.is_some_and(|snapshot| snapshot.pins.contains(&CLONE)) {
                    true => Kind::Unpin(layer, CLONE),
                    false => Kind::Pin(layer, CLONE),
                }
            }
            // Another volume begins as the snapshot, and has its layers, too; or all such volumes are gone.
            (78..84, Some(from)) => {
                let Some(live) = self.coordinators.get(&self.current) else { return Ok(()) };
                let members = live.coordinator.membership().in_sync;
                let name = SnapshotName::new(format!("c{}", token.0)).map_err(|error| error.to_string())?;
                let volume = VolumeId(1_000 + u128::from(token.0));
                Kind::Clone(Box::new(CloneOf { from, volume, name, created: self.now, members }))
            }
            (84..88, _) => {
                self.processes.values_mut().for_each(|process| process.disk.unshare());
                return Ok(());
            }
            _ if snapshots.len() < 6 => {
                let name = SnapshotName::new(format!("s{}", token.0)).map_err(|error| error.to_string())?;
                Kind::Snapshot { name, created: self.now, user: true, labels: BTreeMap::new() }
            }
            _ => return Ok(()),
        };
        let request = Request::Operate(kind.clone());
        self.guest.asked.insert(token, (Asked::Operate(kind, structure.head), request.clone()));
        self.coordinate(self.current, CoordEvent::Guest(token, request))
    }

    /// A replica's process dies; with its machine, if the power goes.
    pub(super) fn kill(&mut self, id: ReplicaId, power: bool) {
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
        // Nobody says goodbye for a machine that lost its power.
        if !power {
            for which in self.coordinators.keys().copied().collect::<Vec<Which>>() {
                let delay = self.delay();
                self.at(delay, Ev::Lost(which, id));
            }
        }
    }

    /// The end of all faults.
    pub(super) fn heal(&mut self) {
        (self.faulty, self.api_up) = (false, true);
        self.cut.clear();
        let current = self.current;
        self.coordinators.retain(|which, _| *which == current);
        for process in self.processes.values_mut() {
            (process.disk.broken, process.disk.broken_metadata) = (None, false);
        }
        if !self.coordinators.contains_key(&current) {
            self.at(1, Ev::Attach(false));
        }
        let down: Vec<ReplicaId> =
            self.processes.iter().filter(|(_, p)| p.replica.is_none()).map(|(id, _)| *id).collect();
        down.into_iter().for_each(|id| self.at(1, Ev::Start(id)));
    }

    pub(super) fn fault(&mut self) -> Result<(), String> {
        if !self.faulty {
            return Ok(());
        }
        let pause = self.dice.below(400_000);
        self.at(pause, Ev::Fault);
        self.summary.faults += 1;
        let ids: Vec<ReplicaId> = self.processes.keys().copied().collect();
        let id = ids[self.dice.below(ids.len() as u64) as usize];
        // What is true, which may not be known to anybody yet.
        let whole = |p: &Process| {
            let lost = p.disk.meta.suspect || p.went_down;
            !lost && p.disk.broken.is_none() && p.disk.is_sound() && p.replica.is_some()
        };
        let healthy = self.is_healthy() && self.processes.values().all(whole);
        if self.wounded && healthy {
            self.wounded = false;
            self.retired = None;
        }
        let may_wound = self.mode.wounds && healthy && ids.len() > 1;
        if self.trace {
            eprintln!("{} fault at replica {id}, may wound: {may_wound}", self.now);
        }
        if may_wound && self.dice.chance(40) {
            return self.wound(id);
        }
        match self.dice.below(15) {
            0 | 1 => self.kill(id, false),
            2 | 3 => {
                let current = self.current;
                if self.dice.chance(70) {
                    self.coordinators.retain(|which, _| *which == current);
                }
                if self.dice.chance(50)
                    && let Some(live) = self.coordinators.remove(&current)
                {
                    self.counts.insert(current, live.coordinator.counts());
                }
                let (delay, lives) = (self.dice.below(100_000), self.dice.chance(50));
                self.at(delay, Ev::Attach(lives));
            }
            4 | 5 => {
                let which = self.current;
                let both = self.dice.chance(50);
                let to_replica = self.dice.chance(50);
                self.cut.insert((id, which, to_replica));
                if both {
                    self.cut.insert((id, which, !to_replica));
                }
            }
            6 | 7 => self.cut.clear(),
            8 => self.api_up = !self.api_up,
            9 | 10 => {
                self.stray(id.0);
            }
            11 | 12 => {
                // Full disks hurt nobody who is not alone with it.
                if self.processes.values().all(|process| process.disk.broken.is_none()) {
                    for process in self.processes.values_mut() {
                        process.disk.broken = Some(Failure::NoSpace);
                    }
                }
            }
            _ => {
                for process in self.processes.values_mut() {
                    (process.disk.broken, process.disk.broken_metadata) = (None, false);
                }
            }
        }
        Ok(())
    }

    fn wound(&mut self, id: ReplicaId) -> Result<(), String> {
        self.wounded = true;
        self.summary.wounds += 1;
        match self.dice.below(7) {
            0 | 1 => self.kill(id, true),
            2 => {
                let failure = if self.dice.chance(50) { Failure::Io } else { Failure::NoSpace };
                let metadata = self.dice.chance(30);
                if let Some(process) = self.processes.get_mut(&id) {
                    process.disk.broken = Some(failure);
                    process.disk.broken_metadata = metadata && failure == Failure::Io;
                }
            }
            3..=5 => {
                if let Some(process) = self.processes.get_mut(&id) {
                    self.spoilt.extend(process.disk.rot(&mut self.dice));
                }
            }
            _ => return self.replace(id),
        }
        Ok(())
    }

    /// Somebody tries to attach elsewhere, reaches only a replica that is not in sync, and is gone: that replica has promised
    /// a higher epoch than the one that holds the volume, which must go on.
    /// Whether it was so.
    pub fn stray(&mut self, id: u32) -> bool {
        let id = ReplicaId(id);
        let Some(live) = self.coordinators.get(&self.current) else { return false };
        let idle = *live.coordinator.phase() == Phase::Serving && !live.coordinator.is_proposing();
        let outside = !live.coordinator.membership().in_sync.contains(id)
            && live.coordinator.rebuilding() != Some(id)
            && self.processes.get(&id).is_some_and(|process| process.replica.is_some());
        if !idle || !outside {
            return false;
        }
        self.next += 1;
        let epoch = Epoch { number: self.current, holder: CoordinatorId(u64::MAX / 2 + self.next) };
        let body = Body::Ask(Box::new(Ask::Prepare(epoch)));
        let frame = Frame { volume: VOLUME, replica: id, epoch, session: SessionId(0), seq: 0, body };
        self.summary.strays += 1;
        self.replicate(id, |_| super::ReplicaEvent::Frame(LinkId(0), frame));
        true
    }

    /// Lost for good; another one takes its place, empty.
    pub(super) fn replace(&mut self, id: ReplicaId) -> Result<(), String> {
        self.processes.remove(&id);
        self.retired = Some(id);
        let new = ReplicaId(self.next_replica);
        self.next_replica += 1;
        let blocks = u64::from(SEGMENT_BLOCKS);
        let meta = Metadata::new(VOLUME, new, Structure::new(blocks, None), Ledger::default());
        let disk = Disk::new(meta);
        self.processes.insert(new, Process { disk, replica: None, life: 0, went_down: false });
        self.start(new);
        self.coordinate(self.current, CoordEvent::Lost(id))?;
        self.coordinate(self.current, CoordEvent::Retired(id))?;
        self.coordinate(self.current, CoordEvent::Added(new))
    }
}
