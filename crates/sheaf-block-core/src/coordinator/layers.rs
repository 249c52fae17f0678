//! What the coordinator does with layers: operations, folding what was removed, checking what is frozen.
//!
//! Folding: a removed snapshot's blocks are copied to its only child, segment by segment, on every member; then an
//! operation drops it. How far that is nobody keeps: after a restart, and after a rebuild, it begins again, and does
//! nothing where it was done. Checking: the members' checksums of one part of a segment are compared with each other
//! and with what was recorded; who is wrong gets a copy of who is right.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Coordinator, Goal, Output, Phase, RequestError, To};
use crate::disk::Digest;
use crate::each::Each;
use crate::ids::{ReplicaId, SegmentIndex, Time, Token};
use crate::jobs::Access;
use crate::structure::{Kind, LayerId, Structure};

/// Parts of segments that wait to be checked; more are found again when they are read again.
const MAX_DOUBTS: usize = 1024;

/// A removed layer that is shared is looked at again after so many times the grace: about a minute.
const SHARED_GRACES: u64 = 8;

/// A removed snapshot on its way out.
#[derive(Debug)]
pub(super) struct Folding {
    /// Whose jobs are whose: shared with rebuilds.
    attempt: u64,
    layer: LayerId,
    child: Option<LayerId>,
    /// Segments from here on are not listed yet.
    from: SegmentIndex,
    ended: bool,
    listed: BTreeSet<SegmentIndex>,
    running: BTreeSet<SegmentIndex>,
    listing: bool,
    /// The operation that drops it was begun.
    dropping: bool,
    /// A member came back since: its machine may have been down, and what was folded but not synced be lost.
    void: bool,
    next: Time,
}

/// All snapshots are being checked.
#[derive(Debug)]
pub(super) struct Scrub {
    pub(super) token: Option<Token>,
    layers: VecDeque<LayerId>,
    from: SegmentIndex,
    ended: bool,
    listed: BTreeSet<SegmentIndex>,
    listing: bool,
}

impl Coordinator {
    /// All members, and the replica that is being rebuilt, have done it.
    pub(super) fn operated(&mut self, next: Structure) {
        let dropped = matches!(next.last.as_ref().map(|last| &last.kind), Some(Kind::Drop(_)));
        self.structure = next;
        if dropped {
            self.folding = None;
        }
        self.join_operated();
        let structure = &self.structure;
        self.doubts.retain(|(layer, _)| structure.layer(*layer).is_some());
        self.shared.retain(|layer, _| structure.layer(*layer).is_some());
        self.sweep = true;
    }

    /// A layer is about to be dropped; nobody may come in meanwhile who has not folded it.
    pub(super) fn is_dropping(&self) -> bool {
        self.folding.as_ref().is_some_and(|folding| folding.dropping)
    }

    /// A member opened a new session.
    pub(super) fn fold_again(&mut self) {
        match &mut self.folding {
            Some(folding) if folding.dropping => folding.void = true,
            _ => self.folding = None,
        }
    }

    /// Whether what is about to be dropped may not have been folded everywhere.
    pub(super) fn is_void(&self) -> bool {
        self.folding.as_ref().is_none_or(|folding| folding.void)
    }

    pub(super) fn fold_failed(&mut self) {
        self.folding = None;
        self.fold_rest = self.now.after(self.limits.grace);
    }

    /// A removed snapshot that can be folded, as far as is known.
    pub(super) fn next_fold(&self) -> Option<(LayerId, Option<LayerId>)> {
        self.structure.foldable_but(|id| self.shared.contains_key(&id))
    }

    /// A linked clone has it, too, at least at one replica. It stays as it is, and costs nothing, until the clone is gone: nobody says when.
    pub(super) fn fold_shared(&mut self, layer: LayerId) {
        self.shared.insert(layer, self.now.after(self.limits.grace * SHARED_GRACES));
    }

    /// It is left as it is; others may be folded now.
    pub(super) fn fold_left(&mut self, attempt: Option<u64>) {
        if self.folding.take_if(|folding| Some(folding.attempt) == attempt).is_some() {
            self.sweep = true;
        }
    }

    pub(super) fn fold_refused(&mut self, kind: &Kind) {
        if matches!(kind, Kind::Drop(_)) {
            self.fold_failed();
        }
    }

    pub(super) fn fold_listed(&mut self, attempt: Option<u64>, list: &[SegmentIndex], ended: bool) {
        if let Some(folding) = self.folding.as_mut().filter(|folding| Some(folding.attempt) == attempt) {
            folding.listing = false;
            folding.listed.extend(list.iter().copied());
            folding.from = SegmentIndex(list.last().map_or(folding.from.0, |last| last.0.saturating_add(1)));
            folding.ended = ended;
        }
    }

    pub(super) fn folded(&mut self, attempt: Option<u64>, segment: SegmentIndex) {
        if let Some(folding) = self.folding.as_mut().filter(|folding| Some(folding.attempt) == attempt) {
            folding.running.remove(&segment);
            folding.listed.remove(&segment);
        }
    }

    pub(super) fn fold_step(&mut self) {
        let now = self.now;
        self.shared.retain(|_, until| *until > now);
        if self.phase != Phase::Serving || self.joining.is_some() {
            return;
        }
        if self.folding.is_none() && self.now >= self.fold_rest {
            let stable = self.proposer.proposed().is_none() && self.leaving.is_empty();
            self.attempts += 1;
            let attempt = self.attempts;
            self.folding = self.next_fold().filter(|_| stable).map(|(layer, child)| Folding {
                attempt,
                layer,
                child,
                from: SegmentIndex(0),
                ended: child.is_none(),
                listed: BTreeSet::new(),
                running: BTreeSet::new(),
                listing: false,
                dropping: false,
                void: false,
                next: self.now,
            });
        }
        let background = self.limits.background(self.is_busy());
        let Some(folding) = &mut self.folding else { return };
        if folding.dropping {
            return;
        }
        let layer = folding.layer;
        let children: Vec<LayerId> = self.structure.children(layer).map(|child| child.id).collect();
        if self.structure.layer(layer).is_none() || children.as_slice() != folding.child.as_slice() {
            // The head was moved away from it, or onto it.
            self.folding = None;
            self.sweep = true;
            return;
        }
        if folding.ended && folding.listed.is_empty() {
            folding.dropping = true;
            self.start_operation(None, Kind::Drop(layer));
            return;
        }
        if background == 1 && self.now < folding.next {
            return;
        }
        folding.next = self.now.after(self.limits.rebuild_pause);
        if folding.listed.is_empty() && !folding.listing {
            folding.listing = true;
            let goal = Goal::FoldList { layer, from: folding.from };
            let attempt = Some(folding.attempt);
            self.start(None, goal, Access::Exclusive, attempt);
            return;
        }
        let attempt = Some(folding.attempt);
        let mut chosen = vec![];
        for segment in &folding.listed {
            if folding.running.len() < background && folding.running.insert(*segment) {
                chosen.push(*segment);
            }
        }
        for segment in chosen {
            self.start_on_segment(Goal::Fold { layer, segment }, segment, true, attempt);
        }
    }

    /// A part of a segment could not be read as it was written: it is checked soon.
    pub(super) fn doubt(&mut self, layer: LayerId, segment: SegmentIndex) {
        if self.doubts.len() < MAX_DOUBTS {
            self.doubts.insert((layer, segment));
        }
    }

    pub(super) fn start_scrub(&mut self, token: Token, out: &mut Vec<Output>) {
        if self.scrub.is_some() {
            out.push(Output::Complete(token, Err(RequestError::Busy)));
            return;
        }
        let layers =
            self.structure.layers.iter().filter(|layer| layer.snapshot.is_some()).map(|layer| layer.id);
        self.scrub = Some(Scrub {
            token: Some(token),
            layers: layers.collect(),
            from: SegmentIndex(0),
            ended: false,
            listed: BTreeSet::new(),
            listing: false,
        });
    }

    pub(super) fn scrub_step(&mut self, out: &mut Vec<Output>) {
        if self.phase != Phase::Serving || self.checking {
            return;
        }
        if let Some(scrub) = &mut self.scrub
            && self.doubts.is_empty()
            && !scrub.listing
        {
            if let Some(segment) = scrub.listed.pop_first() {
                let layer = scrub.layers.front().copied().unwrap_or_default();
                self.doubts.insert((layer, segment));
            } else if scrub.layers.is_empty() {
                let token = self.scrub.take().and_then(|scrub| scrub.token);
                out.extend(token.map(|token| Output::Complete(token, Ok(None))));
            } else if scrub.ended {
                scrub.layers.pop_front();
                (scrub.from, scrub.ended) = (SegmentIndex(0), false);
                self.sweep = true;
            } else if let Some(layer) = scrub.layers.front().copied() {
                if self.structure.layer(layer).is_none() {
                    scrub.ended = true;
                } else {
                    scrub.listing = true;
                    let goal = Goal::CheckList { layer, from: scrub.from };
                    self.start(None, goal, Access::Exclusive, None);
                }
            }
        }
        let Some((layer, segment)) = self.doubts.pop_first() else { return };
        if self.structure.layer(layer).is_none() || self.segment_range(segment).is_none() {
            return;
        }
        self.checking = true;
        self.start_on_segment(Goal::Check { layer, segment }, segment, true, None);
    }

    pub(super) fn check_listed(&mut self, list: &[SegmentIndex], ended: bool) {
        if let Some(scrub) = &mut self.scrub {
            scrub.listing = false;
            scrub.listed.extend(list.iter().copied());
            scrub.from = SegmentIndex(list.last().map_or(scrub.from.0, |last| last.0.saturating_add(1)));
            scrub.ended = ended;
        }
    }

    pub(super) fn check_failed(&mut self) {
        self.checking = false;
        if let Some(scrub) = &mut self.scrub
            && scrub.listing
        {
            // The layer cannot be listed: the next.
            (scrub.listing, scrub.ended) = (false, true);
        }
    }

    /// All members' checksums are there, computed and recorded.
    pub(super) fn checked(&mut self, layer: LayerId, segment: SegmentIndex, digests: &Each<Digest>) {
        self.checking = false;
        // Whether a removed layer is being folded into this one, or was when a coordinator ended.
        let parent = self.structure.layer(layer).and_then(|layer| self.structure.layer(layer.parent?));
        let folding = parent.and_then(|parent| parent.snapshot.as_ref()).is_some_and(|s| s.removed);
        // Who cannot read all of it has no say.
        let whole = digests.iter().filter(|(_, digest)| digest.bad == 0);
        let whole = whole.map(|(id, digest)| (id, (digest.actual, digest.sealed))).collect();
        let Some(right) = judge(&whole, folding) else {
            self.nobody_right(layer, segment, digests);
            return;
        };
        let good = whole.iter().find(|(_, (actual, _))| *actual == right).map(|(id, _)| *id);
        let differs = |digest: &Digest| digest.bad != 0 || digest.actual != right;
        let bad = digests.iter().find(|(_, digest)| differs(digest)).map(|(id, _)| id);
        if let (Some(good), Some(bad)) = (good, bad) {
            if self.repaired == Some((layer, segment, bad)) {
                // Its disk does not keep what it is given.
                self.strike(bad, 2);
                self.repaired = None;
                return;
            }
            self.checking = true;
            self.start_copy(layer, segment, Some(good), To::One(bad));
            return;
        }
        // It was kept: what is damaged there later is another matter.
        self.repaired.take_if(|(of, at, _)| (*of, *at) == (layer, segment));
        let frozen = self.structure.layer(layer).is_some_and(|layer| layer.snapshot.is_some());
        if frozen && digests.iter().any(|(_, digest)| digest.sealed != Some(right)) {
            self.checking = true;
            self.start_on_segment(Goal::Seal { layer, segment, checksum: right }, segment, true, None);
        }
    }

    /// One member was given a good copy; the next look tells whether it kept it.
    pub(super) fn repaired(&mut self, layer: LayerId, segment: SegmentIndex, id: ReplicaId) {
        self.checking = false;
        self.repaired = Some((layer, segment, id));
        self.counts.repaired += 1;
        self.doubt(layer, segment);
    }

    pub(super) fn sealed(&mut self) {
        self.checking = false;
    }
}

/// Which checksum is right: what was recorded, if anything was, and it is there; else what most have. What was recorded
/// and is nowhere any more is not replaced by what is there: that would bless the damage. But for a layer that another is
/// being folded into: who folded found both parts sound, and has no checksum any more; who is damaged refused, and still
/// has the one of before. Among those who folded any is right: what one of them has not folded yet is read from the other layer.
fn judge(digests: &BTreeMap<ReplicaId, (u32, Option<u32>)>, folding: bool) -> Option<u32> {
    let most = |of: &[u32]| {
        let many = |value: &u32| of.iter().filter(|other| *other == value).count();
        of.iter().copied().find(|value| many(value) * 2 > of.len())
    };
    let actual: Vec<u32> = digests.values().map(|(actual, _)| *actual).collect();
    let sealed: Vec<u32> = digests.values().filter_map(|(_, sealed)| *sealed).collect();
    let of = if sealed.is_empty() { &actual } else { &sealed };
    if let Some(right) = most(of).filter(|right| actual.contains(right)) {
        return Some(right);
    }
    let damaged = |(actual, sealed): &(u32, Option<u32>)| sealed.is_none_or(|sealed| sealed != *actual);
    if !folding || !digests.values().all(damaged) {
        return None;
    }
    let folded: Vec<u32> =
        digests.values().filter(|(_, sealed)| sealed.is_none()).map(|(actual, _)| *actual).collect();
    most(&folded).or(folded.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_right() {
        let judge_when = |folding: bool, digests: &[(u32, Option<u32>)]| {
            judge(&(1..).map(ReplicaId).zip(digests.iter().copied()).collect(), folding)
        };
        let judge = |digests: &[(u32, Option<u32>)]| judge_when(false, digests);
        assert_eq!(judge(&[(1, None), (1, None)]), Some(1));
        assert_eq!(judge(&[(1, None), (2, None)]), None, "two, and nothing recorded");
        assert_eq!(judge(&[(1, None), (2, None), (2, None)]), Some(2));
        assert_eq!(judge(&[(1, Some(1)), (2, Some(1))]), Some(1), "the second one rotted");
        assert_eq!(judge(&[(1, Some(1)), (2, None), (2, None)]), Some(1), "what was recorded counts more");
        assert_eq!(judge(&[(1, Some(1)), (2, Some(2))]), None);
        assert_eq!(judge(&[(3, Some(1))]), None, "one alone, and damaged: nobody to ask");
        assert_eq!(judge(&[(3, Some(1)), (2, Some(1))]), None, "both are damaged");
        assert_eq!(judge(&[(3, None)]), Some(3));
        assert_eq!(
            judge(&[(9, None), (3, Some(1))]),
            None,
            "nobody has what was recorded, and nothing changes it"
        );
        let folding = |digests: &[(u32, Option<u32>)]| judge_when(true, digests);
        assert_eq!(
            folding(&[(9, None), (3, Some(1))]),
            Some(9),
            "the first has folded, the second is damaged"
        );
        assert_eq!(
            folding(&[(1, Some(1)), (9, None)]),
            Some(1),
            "the first has not folded yet, and is sound"
        );
        assert_eq!(
            folding(&[(9, None), (8, None), (3, Some(1))]),
            Some(9),
            "both are right, one of them it is"
        );
        assert_eq!(folding(&[(9, None), (8, None), (8, None), (3, Some(1))]), Some(8));
        assert_eq!(folding(&[(3, Some(1))]), None, "one alone, and damaged");
        assert_eq!(folding(&[(3, Some(1)), (2, Some(1))]), None, "both are damaged");
        assert_eq!(folding(&[(1, Some(1)), (2, Some(2)), (9, None)]), None, "sound, and not the same");
    }
}
