//! From held to served: the members are made equal before anything of them is read.
//!
//! First the layers: a member may lack the last operation; it does it now. Then the segments in anybody's activity
//! log, from one member to the others. Then all of it is synced, and who had lost unsynced writes says durably that it
//! is whole again: only then is a request taken up, so that a second machine may go down after the first.
//! Whatever changes meanwhile, it begins again from who is there then.

use std::collections::BTreeSet;

use super::{Coordinator, Goal, Output, Phase, Purpose, Recovering, To};
use crate::each::Each;
use crate::ids::{ReplicaId, SegmentIndex, SessionId};
use crate::jobs::Access;
use crate::membership::Standing;

/// Segments copied at a time.
const COPIES: usize = 8;

impl Coordinator {
    pub(super) fn recover_step(&mut self, out: &mut Vec<Output>) {
        if self.proposer.standing() != Standing::Holding {
            return;
        }
        if self.phase == Phase::Attaching {
            self.begin_recovery();
        }
        if let Phase::Recovering(Recovering::Layers(behind)) = &self.phase {
            let members = self.members();
            if behind.iter().all(|id| !members.contains(*id)) {
                self.begin_segments();
            }
        }
        if let Phase::Recovering(Recovering::Segments { source, left }) = &self.phase {
            let (source, left) = (*source, left.clone());
            let members = self.members();
            if !members.contains(source) || self.leaving.contains(source) {
                self.recover_again();
                return;
            }
            if left.is_empty() || members.len() == 1 {
                self.phase = Phase::Recovering(Recovering::Sync);
                self.start_flush(None, Purpose::Recovery);
                return;
            }
            let running: Vec<SegmentIndex> = self
                .jobs
                .values()
                .filter_map(|job| match job.goal {
                    Goal::Copy { segment, .. } => Some(segment),
                    _ => None,
                })
                .collect();
            let room = COPIES.saturating_sub(running.len());
            let head = self.structure.head;
            for segment in left.iter().filter(|segment| !running.contains(segment)).take(room) {
                self.start_copy(head, *segment, Some(source), To::Members);
            }
        }
        if self.phase == Phase::Serving {
            self.drain(out);
        }
    }

    fn begin_recovery(&mut self) {
        let members = self.members();
        let here = members.iter().all(|id| self.is_usable(id));
        if !here || self.proposer.proposed().is_some() || !self.leaving.is_empty() {
            return;
        }
        let Some(newest) = members
            .iter()
            .filter_map(|id| Some(self.introduction(id)?.structure.clone()))
            .max_by_key(|s| s.at)
        else {
            return;
        };
        let behind: BTreeSet<ReplicaId> = members
            .iter()
            .filter(|id| self.introduction(*id).is_some_and(|i| i.structure.at != newest.at))
            .collect();
        self.structure = newest;
        self.phase = Phase::Recovering(Recovering::Layers(behind.clone()));
        let Some(last) = self.structure.last.clone() else { return };
        for to in behind {
            self.start(None, Goal::Align { operation: Box::new(last.clone()), to }, Access::Alone, None);
        }
    }

    /// A member has done the last operation.
    pub(super) fn aligned(&mut self, id: ReplicaId) {
        if let Phase::Recovering(Recovering::Layers(behind)) = &mut self.phase {
            behind.remove(&id);
        }
        // What it had in its activity log before is everywhere and synced: the operation was begun after that.
        let structure = self.structure.clone();
        if let Some(introduction) = self.peers.get_mut(&id).and_then(|peer| peer.introduction.as_mut()) {
            introduction.active.clear();
            introduction.structure = structure;
        }
    }

    fn begin_segments(&mut self) {
        let members = self.members();
        let sound = |id: &ReplicaId| !self.is_suspect(*id);
        let Some(source) = self.readers().find(sound).or_else(|| self.readers().next()) else { return };
        let introductions = members.iter().filter_map(|id| self.introduction(id));
        let left: BTreeSet<SegmentIndex> = introductions.flat_map(|i| i.active.iter().copied()).collect();
        if left.is_empty() && members.iter().all(|id| sound(&id)) {
            self.serve();
            return;
        }
        let left = left.into_iter().filter(|segment| self.segment_range(*segment).is_some()).collect();
        self.phase = Phase::Recovering(Recovering::Segments { source, left });
    }

    /// A segment was copied to the other members.
    pub(super) fn segment_recovered(&mut self, segment: SegmentIndex) {
        if let Phase::Recovering(Recovering::Segments { left, .. }) = &mut self.phase
            && left.remove(&segment)
        {
            self.counts.recovered += 1;
        }
    }

    /// Everything is synced, in these sessions.
    pub(super) fn recovery_synced(&mut self, acked: &Each<SessionId>) {
        if self.phase != Phase::Recovering(Recovering::Sync) {
            return;
        }
        for id in self.members().iter() {
            if acked.get(id).copied() != self.session(id) || self.session(id).is_none() {
                self.recover_again();
                return;
            }
        }
        self.members().iter().for_each(|id| self.trust(id));
        self.serve();
    }

    fn serve(&mut self) {
        self.phase = Phase::Serving;
        self.sweep = true;
    }

    /// From the beginning, with new sessions.
    pub(super) fn recover_again(&mut self) {
        self.phase = Phase::Attaching;
        self.drop_jobs();
    }
}
