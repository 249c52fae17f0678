//! A replica comes back, or a new one comes in: one at a time.
//!
//! It takes over the layers of the replicas in sync ([`Work::Adopt`](crate::wire::Work::Adopt)) while nothing else
//! runs, and says what it lacks of each. A [`Todo`] is that of one layer, worked off in pages: list segments, copy them. The listing of a page
//! excludes changes, so that it is known of every segment whether its copy is still to come; a write goes to the
//! replica unless all its segments are still to be copied. Then a flush that it takes part in, then it is proposed
//! as a member (note 0010). How far whole layers are copied is kept durably on the way.
//!
//! It yields to the guest: one copy at a time and pauses while the guest asks for anything. A rebuild that fails is
//! begun again after a pause that grows.

use std::collections::{BTreeSet, VecDeque};

use super::{Coordinator, Goal, Phase, Purpose, To};
use crate::disk::Partial;
use crate::each::Each;
use crate::ids::{
    BlockCount, BlockIndex, ReplicaId, SEGMENT_BLOCKS, SegmentIndex, SessionId, Time, Version, segments,
};
use crate::jobs::Access;
use crate::membership::Change;
use crate::structure::LayerId;

/// A replica on its way in.
#[derive(Debug)]
pub(super) struct Joining {
    pub(super) replica: ReplicaId,
    pub(super) attempt: u64,
    stage: Stage,
    /// What it lacks, layer by layer.
    todos: VecDeque<Todo>,
    /// The newest record in which it was in sync.
    since: Version,
    /// On their way.
    running: BTreeSet<(LayerId, SegmentIndex)>,
    listing: bool,
    /// Copies since the progress was kept last.
    unkept: u32,
    next_copy: Time,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// It is taking over the layers; nothing of it is trusted.
    Adopting,
    /// Segments are copied.
    Copying,
    /// Everything is there; it is being synced.
    Syncing,
    /// Its joining is being decided.
    Proposed,
}

/// What is to be copied of one layer.
#[derive(Debug)]
struct Todo {
    layer: LayerId,
    /// List what was written since, instead of what is there.
    dirty: bool,
    /// Segments from here on are not listed yet.
    from: SegmentIndex,
    /// Nothing more is to be listed.
    ended: bool,
    /// Only segments below this one.
    until: SegmentIndex,
    /// To be copied.
    listed: BTreeSet<SegmentIndex>,
}

impl Todo {
    fn is_copied(&self, segment: SegmentIndex) -> bool {
        segment >= self.until || (self.ended || segment < self.from) && !self.listed.contains(&segment)
    }

    /// Segments that may still have to be copied, of a volume of so many.
    fn left(&self, segments: u64) -> u64 {
        let end = u64::from(self.until.0).min(segments);
        let unlisted = if self.ended { 0 } else { end.saturating_sub(u64::from(self.from.0)) };
        unlisted + self.listed.len() as u64
    }
}

const LAST: SegmentIndex = SegmentIndex(u32::MAX);

impl Coordinator {
    /// The attempt at a rebuild that is going on.
    pub(super) fn attempt(&self) -> Option<u64> {
        self.joining.as_ref().map(|joining| joining.attempt)
    }

    /// How far the rebuild is: percent of the layers, by addresses, that need no copy any more. Where a layer is empty it goes fast.
    pub fn rebuilt_percent(&self) -> Option<u8> {
        let joining = self.joining.as_ref()?;
        let segments = self.structure.blocks.div_ceil(u64::from(SEGMENT_BLOCKS));
        let all = segments * self.structure.layers.len() as u64;
        let left = match joining.stage {
            Stage::Adopting => all,
            _ => joining.todos.iter().map(|todo| todo.left(segments)).sum::<u64>().min(all),
        };
        u8::try_from((all - left) * 100 / all.max(1)).ok()
    }

    /// The same, if the replica has taken over the layers.
    pub(super) fn adopted(&self) -> Option<u64> {
        self.joining
            .as_ref()
            .filter(|joining| joining.stage != Stage::Adopting)
            .map(|joining| joining.attempt)
    }

    pub(super) fn abandon_join(&mut self, id: ReplicaId) {
        let (now, shortest, longest) = (self.now, self.limits.grace / 8, self.limits.grace * 8);
        let abandoned = |joining: &mut Joining| joining.replica == id && joining.stage != Stage::Proposed;
        if self.joining.take_if(abandoned).is_some() {
            self.sweep = true;
            self.counts.abandoned += 1;
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.rest = (peer.rest * 2).clamp(shortest, longest);
                peer.rest_until = now.after(peer.rest);
            }
        }
    }

    /// The attempt whose replica must get a write to these blocks: all but those whose copy is still to come.
    pub(super) fn join_target(&self, start: BlockIndex, count: BlockCount) -> Option<u64> {
        let joining = self.joining.as_ref()?;
        let head = self.structure.head;
        let todos = || joining.todos.iter().filter(|todo| todo.layer == head);
        let there = |segment: SegmentIndex| todos().all(|todo| todo.is_copied(segment));
        let wanted = match joining.stage {
            Stage::Adopting => false,
            Stage::Copying => segments(start, count).any(there),
            Stage::Syncing | Stage::Proposed => true,
        };
        wanted.then_some(joining.attempt)
    }

    pub(super) fn join_step(&mut self) {
        if self.phase != Phase::Serving {
            return;
        }
        let members = self.members();
        if let Some(joining) = self.joining.take_if(|joining| members.contains(joining.replica)) {
            self.counts.rebuilt += 1;
            self.sweep = true;
            let version = self.proposer.membership().version;
            if let Some(peer) = self.peers.get_mut(&joining.replica) {
                peer.rest = 0;
                // What was copied to it as a whole left no stamps; it forgets what was before, and so it said nothing of this
                // when it introduced itself.
                peer.forgets = peer.forgets.max(version);
            }
        }
        if self.joining.is_none() {
            self.begin_join();
        }
        let background = self.limits.background(self.is_busy());
        let Some(joining) = &mut self.joining else { return };
        if joining.stage != Stage::Copying {
            return;
        }
        // Done with a layer: the next.
        while let Some(todo) = joining.todos.front()
            && todo.ended
            && todo.listed.is_empty()
        {
            joining.todos.pop_front();
        }
        if joining.todos.is_empty() {
            joining.stage = Stage::Syncing;
            self.start_flush(None, Purpose::Join);
            return;
        }
        if background == 1 && self.now < joining.next_copy {
            return;
        }
        let since = joining.since;
        let mut copies = vec![];
        let mut list = None;
        if let Some(todo) = joining.todos.front() {
            let layer = todo.layer;
            for segment in &todo.listed {
                if joining.running.len() < background && joining.running.insert((layer, *segment)) {
                    copies.push((layer, *segment));
                }
            }
            if todo.listed.is_empty() && !todo.ended && !joining.listing {
                joining.listing = true;
                list = Some(Goal::List { layer, since: todo.dirty.then_some(since), from: todo.from });
            }
        }
        if background == 1 && !copies.is_empty() {
            joining.next_copy = self.now.after(self.limits.rebuild_pause);
        }
        let attempt = Some(joining.attempt);
        for (layer, segment) in copies {
            self.start_copy(layer, segment, None, To::Joiner);
        }
        if let Some(goal) = list {
            self.start(None, goal, Access::Exclusive, attempt);
        }
    }

    fn begin_join(&mut self) {
        let members = self.members();
        if self.proposer.proposed().is_some() || !self.leaving.is_empty() || self.is_dropping() {
            return;
        }
        let mut ready = self.peers.iter().filter(|(id, peer)| {
            !members.contains(**id)
                && !self.retired.contains(**id)
                && self.is_usable(**id)
                && self.now >= peer.rest_until
        });
        let Some((id, since)) =
            ready.find_map(|(id, peer)| Some((*id, peer.introduction.as_ref()?.clean_until)))
        else {
            return;
        };
        // What is being folded is folded later: it makes the same layers different.
        self.folding = None;
        let known = self.readers().any(|reader| self.is_usable(reader) && self.knows_since(reader, since));
        self.attempts += 1;
        let attempt = self.attempts;
        self.joining = Some(Joining {
            replica: id,
            attempt,
            stage: Stage::Adopting,
            todos: VecDeque::new(),
            since,
            running: BTreeSet::new(),
            listing: false,
            unkept: 0,
            next_copy: self.now,
        });
        self.start(None, Goal::Adopt { known }, Access::Alone, Some(attempt));
    }

    /// The replica has taken over the layers, and lacks this of them.
    pub(super) fn missing(&mut self, missing: Vec<(LayerId, Partial)>) {
        let Some(joining) = &mut self.joining else { return };
        joining.stage = Stage::Copying;
        for (layer, partial) in missing {
            let from = SegmentIndex(0);
            let own = partial.own().clone();
            match partial {
                Partial::Full { below, .. } => {
                    let listed = BTreeSet::new();
                    joining.todos.push_back(Todo {
                        layer,
                        dirty: false,
                        from: below,
                        ended: false,
                        until: LAST,
                        listed,
                    });
                    if below > from {
                        let listed = own.into_iter().filter(|segment| *segment < below).collect();
                        joining.todos.push_back(Todo {
                            layer,
                            dirty: true,
                            from,
                            ended: false,
                            until: below,
                            listed,
                        });
                    }
                }
                Partial::Dirty { .. } => {
                    joining.todos.push_back(Todo {
                        layer,
                        dirty: true,
                        from,
                        ended: false,
                        until: LAST,
                        listed: own,
                    });
                }
            }
        }
    }

    /// A page of segments is listed; `ended`: it is the last.
    pub(super) fn join_listed(&mut self, layer: LayerId, dirty: bool, list: &[SegmentIndex], ended: bool) {
        let Some(joining) = &mut self.joining else { return };
        joining.listing = false;
        let todo = joining.todos.iter_mut().find(|todo| todo.layer == layer && todo.dirty == dirty);
        let Some(todo) = todo else { return };
        let until = todo.until;
        todo.listed.extend(list.iter().copied().filter(|segment| *segment < until));
        todo.from = SegmentIndex(list.last().map_or(todo.from.0, |last| last.0.saturating_add(1)));
        todo.ended = ended || todo.from >= until;
    }

    /// A segment was copied.
    pub(super) fn copied(&mut self, layer: LayerId, segment: SegmentIndex, to: To) {
        match to {
            To::Members => self.segment_recovered(segment),
            To::One(id) => self.repaired(layer, segment, id),
            To::All => self.checking = false,
            To::Joiner => {
                let progress = self.limits.progress;
                let Some(joining) = &mut self.joining else { return };
                joining.running.remove(&(layer, segment));
                joining.unkept += 1;
                let keep = joining.unkept >= progress;
                let mut keeps = None;
                for todo in joining.todos.iter_mut().filter(|todo| todo.layer == layer) {
                    todo.listed.remove(&segment);
                    if !todo.dirty && keep {
                        keeps = todo.listed.first().copied().or(Some(todo.from));
                    }
                }
                self.counts.copied += 1;
                if let Some(below) = keeps {
                    joining.unkept = 0;
                    let attempt = Some(joining.attempt);
                    self.start(None, Goal::Progress { layer, below }, Access::Barrier, attempt);
                }
            }
        }
    }

    /// The layers changed; the replica that is being rebuilt took part.
    pub(super) fn join_operated(&mut self) {
        let structure = &self.structure;
        if let Some(joining) = &mut self.joining {
            joining.todos.retain(|todo| structure.layer(todo.layer).is_some());
            joining.running.retain(|(layer, _)| structure.layer(*layer).is_some());
        }
    }

    /// A copy or a list of this job did not happen.
    pub(super) fn join_missed(&mut self, goal: &Goal) {
        let Some(joining) = &mut self.joining else { return };
        match goal {
            Goal::Copy { layer, segment, to: To::Joiner, .. } => {
                joining.running.remove(&(*layer, *segment));
            }
            Goal::List { .. } => joining.listing = false,
            _ => {}
        }
    }

    /// A flush that the returning replica took part in has ended: it holds everything, synced, and trusts itself.
    pub(super) fn join_synced(&mut self, acked: &Each<SessionId>) {
        let Some(joining) = self.joining.as_ref().filter(|joining| joining.stage == Stage::Syncing) else {
            return;
        };
        let id = joining.replica;
        if acked.get(id).copied() != self.session(id) || self.session(id).is_none() {
            self.abandon_join(id);
            return;
        }
        self.trust(id);
        match self.proposer.propose(Change::Join(id)) {
            Ok(()) => {
                self.sweep = true;
                if let Some(joining) = &mut self.joining {
                    joining.stage = Stage::Proposed;
                }
            }
            Err(_) => self.abandon_join(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_layer() {
        let todo = |from, ended, until, listed: &[u32]| Todo {
            layer: LayerId::default(),
            dirty: false,
            from: SegmentIndex(from),
            ended,
            until,
            listed: listed.iter().copied().map(SegmentIndex).collect(),
        };
        assert_eq!(todo(0, false, LAST, &[]).left(100), 100, "nothing is known yet");
        assert_eq!(todo(30, false, LAST, &[10, 29]).left(100), 72);
        assert_eq!(todo(30, false, SegmentIndex(40), &[]).left(100), 10, "the rest is another's");
        assert_eq!(todo(100, true, LAST, &[99]).left(100), 1);
        assert_eq!(todo(7, true, LAST, &[]).left(100), 0, "the page that ended the list was its last");
        assert_eq!(todo(200, false, LAST, &[]).left(100), 0);
    }
}
