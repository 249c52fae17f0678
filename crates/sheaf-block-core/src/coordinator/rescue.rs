//! What nobody can read: a copy that no member could answer is done with what can be read of it, and the rest is known as damaged from then
//! on, at all members and at whom it is for ([`crate::damage`], decision note 0032).
//!
//! So neither a rebuild nor an attach waits for ever for a block that is gone. Members are asked one after the other, until together they have
//! everything or nobody is left; each marks what it cannot read, durably, before it answers. It begins only when all who could answer have failed, so
//! never while a good copy is known.

use super::{Coordinator, Goal, JobId, Salvage, Stage, To};
use crate::disk::{Digest, Part};
use crate::each::Each;
use crate::ids::{ReplicaId, ReplicaSet, SegmentIndex};
use crate::structure::LayerId;

impl Coordinator {
    /// Nobody could read what is to be copied: whether it goes on with what can be read.
    pub(super) fn rescue(&mut self, id: JobId) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else { return false };
        let asked = !job.tried.is_empty();
        let Goal::Copy { salvage, to, .. } = &mut job.goal else { return false };
        match std::mem::take(salvage) {
            Salvage::No if asked && !matches!(to, To::One(_)) => {
                *salvage = Salvage::Wanted;
                (job.tried, job.stage) = (ReplicaSet::EMPTY, Stage::Asking { sent: None });
                self.todo.insert(id);
                true
            }
            Salvage::Have(part, from) => {
                self.part_known(id, from, *part);
                true
            }
            Salvage::No | Salvage::Wanted => false,
        }
    }

    /// One member has read what it could.
    pub(super) fn salvaged(&mut self, id: JobId, from: ReplicaId, part: Part) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.tried = job.tried.with(from).unwrap_or(job.tried);
        let Goal::Copy { salvage, .. } = &mut job.goal else { return };
        // What is put together of several is nobody's: all of them get it.
        let (part, from) = match std::mem::take(salvage) {
            Salvage::Have(before, _) => (before.filled(&part), None),
            _ => (part, Some(from)),
        };
        if part.bad == 0 {
            return self.part_known(id, from, part);
        }
        *salvage = Salvage::Have(Box::new(part), from);
        job.stage = Stage::Asking { sent: None };
        self.todo.insert(id);
    }

    /// It is known what is to be written: from whom, if it is one member's.
    pub(super) fn part_known(&mut self, id: JobId, from: Option<ReplicaId>, part: Part) {
        let generation = self.generation;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Goal::Copy { layer, segment, to, source, salvage } = &mut job.goal else { return };
        (*source, *salvage) = (from, Salvage::No);
        self.counts.damaged += u64::from(part.bad != 0);
        if matches!(to, To::One(_) | To::All) {
            self.active.insert(*segment, generation);
        }
        // A recovery's copy is a write like any other until it is synced; a rebuild's is synced before it counts.
        let generation = (*to != To::Joiner).then_some(generation);
        job.stage = super::work::spread(crate::wire::Work::WritePart {
            layer: *layer,
            segment: *segment,
            part,
            generation,
        });
        self.todo.insert(id);
    }

    /// A check has found no good copy. What is damaged at every member is marked, so that all of them say the same of it.
    pub(super) fn nobody_right(&mut self, layer: LayerId, segment: SegmentIndex, digests: &Each<Digest>) {
        let all = |is: fn(&Digest) -> bool| digests.iter().all(|(_, digest)| is(digest));
        if !all(Digest::is_damaged) {
            self.counts.undecided += 1;
            return;
        }
        let first = digests.iter().next().map(|(_, digest)| digest.actual);
        let equal = digests.iter().all(|(_, digest)| Some(digest.actual) == first);
        if equal && all(|digest| digest.bad != 0 && !digest.fresh) {
            return; // It is known.
        }
        self.checking = true;
        self.start_copy_with(layer, segment, None, To::All, Salvage::Wanted);
    }
}
