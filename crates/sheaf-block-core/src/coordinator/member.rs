//! The coordinator and its replicas: sessions, losses, recovery, rebuild.

use super::{Coordinator, Goal, JoinStage, Joining, Link, Output, Peer, Phase};
use crate::ids::{JobId, ReplicaId, ReplicaSet, SegmentIndex, SessionId, Time};
use crate::jobs::Access;
use crate::membership::{Ask, Change, Standing, Voter};
use crate::wire::{Body, Frame, Introduction};

impl Coordinator {
    pub(super) fn add_peer(&mut self, id: ReplicaId) {
        self.peers.entry(id).or_insert(Peer {
            link: Link::Opening(None),
            trouble: Some(self.now),
            strikes: 0,
            introduction: None,
            asked: None,
            rest_until: Time::default(),
        });
    }

    pub(super) fn session(&self, id: ReplicaId) -> Option<SessionId> {
        match self.peers.get(&id)?.link {
            Link::Open { session, .. } => Some(session),
            Link::Opening(_) => None,
        }
    }

    /// Whether data may be sent to it and read from it (if it is also in sync).
    pub(super) fn is_usable(&self, id: ReplicaId) -> bool {
        self.session(id).is_some() && !self.leaving.contains(id) && self.proposer.is_current(id)
    }

    pub(super) fn members(&self) -> ReplicaSet {
        self.proposer.membership().in_sync
    }

    /// The session is gone, or not to be trusted: another is opened.
    pub(super) fn lose(&mut self, id: ReplicaId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.link = Link::Opening(None);
            peer.trouble.get_or_insert(self.now);
        }
        self.abandon_join(id);
    }

    fn abandon_join(&mut self, id: ReplicaId) {
        let abandoned = |joining: &mut Joining| joining.replica == id && joining.stage != JoinStage::Proposed;
        if self.joining.take_if(abandoned).is_some() {
            let rest_until = self.now.after(self.limits.grace / 8);
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.rest_until = rest_until;
            }
            self.jobs.values_mut().filter(|job| job.joining == Some(id)).for_each(|job| job.joining = None);
        }
    }

    pub(super) fn opened(&mut self, id: ReplicaId, session: SessionId, introduction: Introduction) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        // A handshake that was overtaken by a later one.
        if matches!(peer.link, Link::Open { session: open, .. } if open >= session) {
            return;
        }
        peer.link = Link::Open { session, seq: 0 };
        peer.trouble = None;
        peer.introduction = Some(introduction);
        self.abandon_join(id);
        if matches!(self.phase, Phase::Recovering { .. }) && self.members().contains(id) {
            // What was copied to it may be lost again: from the beginning.
            self.phase = Phase::Attaching;
            self.drop_jobs();
        }
    }

    /// Members that lost unsynced writes since they were made equal must go, and come back by a rebuild.
    fn drop_suspects(&mut self) {
        for id in self.members().iter() {
            if self.peers.get(&id).and_then(|peer| peer.introduction.as_ref()).is_some_and(|i| i.suspect) {
                self.leave(id);
                if !self.leaving.contains(id) {
                    self.phase = Phase::Failed;
                }
            }
        }
    }

    /// It was made equal to the others in this session.
    fn trust(&mut self, id: ReplicaId) {
        if let Some(introduction) = self.peers.get_mut(&id).and_then(|peer| peer.introduction.as_mut()) {
            introduction.suspect = false;
        }
    }

    /// It did what it was asked.
    pub(super) fn well(&mut self, id: ReplicaId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.strikes = 0;
        }
    }

    /// It did not do in time what it was asked, or its disk failed. Once may be the network's fault: a new session.
    pub(super) fn strike(&mut self, id: ReplicaId, strikes: u32) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.strikes += strikes;
        if peer.strikes >= 2 {
            peer.strikes = 0;
            self.leave(id);
        }
        self.lose(id);
    }

    /// Its loss is to be recorded, unless it is the last that has not been given up.
    pub(super) fn leave(&mut self, id: ReplicaId) {
        let others = self.members().iter().any(|other| other != id && !self.leaving.contains(other));
        if self.members().contains(id) && others {
            self.leaving = self.leaving.with(id).unwrap_or(self.leaving);
        }
    }

    pub(super) fn send(&mut self, id: ReplicaId, body: Body, out: &mut Vec<Output>) {
        let (volume, epoch) = (self.volume, self.proposer.epoch());
        if let Some(Peer { link: Link::Open { session, seq }, .. }) = self.peers.get_mut(&id) {
            *seq += 1;
            out.push(Output::Send(
                id,
                Frame { volume, replica: id, epoch, session: *session, seq: *seq, body },
            ));
        }
    }

    /// Asks what is to be asked, and proposes what is to be decided.
    pub(super) fn membership_step(&mut self, out: &mut Vec<Output>) {
        let members = self.members();
        self.leaving =
            ReplicaSet::of(self.leaving.iter().filter(|id| members.contains(*id))).unwrap_or_default();
        if self.proposer.standing() == Standing::Holding {
            members.iter().for_each(|id| self.add_peer(id));
            if self.phase == Phase::Serving {
                self.drop_suspects();
            }
            // Away for longer than the grace period while somebody else is there: given up.
            for id in members.iter() {
                let away =
                    self.peers[&id].trouble.is_some_and(|since| self.now >= since.after(self.limits.grace));
                let another = members.iter().any(|other| {
                    other != id
                        && self.is_usable(other)
                        && !self.peers[&other]
                            .introduction
                            .as_ref()
                            .is_none_or(|i| i.suspect && self.phase == Phase::Attaching)
                });
                if away && another && self.session(id).is_none() {
                    self.leave(id);
                }
            }
            if self.proposer.proposed().is_none()
                && let Some(id) = self.leaving.iter().next()
            {
                let _busy = self.proposer.propose(Change::Leave(id));
            }
        }
        let (now, resend) = (self.now, self.limits.resend);
        let due = |asked: &Option<(Ask, Time)>, ask: Ask| {
            asked.is_none_or(|(before, at)| before != ask || now >= at.after(resend))
        };
        let (volume, epoch) = (self.volume, self.proposer.epoch());
        for (id, peer) in &mut self.peers {
            let mut ask = self.proposer.ask(Voter::Replica(*id));
            if let Link::Opening(asked) = &mut peer.link {
                if asked.is_none_or(|at| now >= at.after(resend)) {
                    *asked = Some(now);
                    peer.asked = None;
                } else if matches!(ask, None | Some(Ask::Prepare(_))) {
                    continue;
                }
                if peer.asked.is_none() {
                    ask = Some(Ask::Prepare(epoch));
                }
            }
            if let Some(ask) = ask.filter(|ask| due(&peer.asked, *ask)) {
                peer.asked = Some((ask, now));
                let body = Body::Ask(ask);
                let frame = Frame { volume, replica: *id, epoch, session: SessionId(0), seq: 0, body };
                out.push(Output::Send(*id, frame));
            }
        }
        if let Some(ask) = self.proposer.ask(Voter::Api)
            && due(&self.api_asked, ask)
        {
            self.api_asked = Some((ask, now));
            out.push(Output::AskApi(ask));
        }
    }

    /// Attaching to recovering to serving.
    pub(super) fn phase_step(&mut self, out: &mut Vec<Output>) {
        if self.proposer.standing() != Standing::Holding {
            return;
        }
        let members = self.members();
        if self.phase == Phase::Attaching {
            let here = members.iter().all(|id| self.is_usable(id));
            if !here || self.proposer.proposed().is_some() {
                return;
            }
            let of = |id: ReplicaId| self.peers[&id].introduction.as_ref();
            let sound = |id: &ReplicaId| of(*id).is_some_and(|i| !i.suspect);
            let first = self.local.filter(|id| members.contains(*id));
            let candidates = || first.into_iter().chain(members.iter());
            let Some(source) = candidates().find(sound).or_else(|| candidates().next()) else { return };
            let left = match members.len() {
                1 => Default::default(),
                _ => members.iter().filter_map(of).flat_map(|i| i.active.iter().copied()).collect(),
            };
            self.phase = Phase::Recovering { source, left };
        }
        if let Phase::Recovering { source, left } = &self.phase {
            let (source, left) = (*source, left.clone());
            // Whatever changed the membership meanwhile: begin again, from who is there now.
            if !members.contains(source) || self.leaving.contains(source) {
                self.drop_jobs();
                self.phase = Phase::Attaching;
                return;
            }
            let others = members.iter().any(|id| id != source);
            if !left.is_empty() && others {
                let running: Vec<SegmentIndex> = self.copies().collect();
                for segment in
                    left.iter().filter(|segment| !running.contains(segment)).take(4 - running.len().min(4))
                {
                    self.start_copy(*segment, source, None);
                }
                return;
            }
            self.phase = Phase::Serving;
            members.iter().for_each(|id| self.trust(id));
            if !self.recovered {
                self.recovered = true;
                self.start_flush(None, None);
            }
            self.drain(out);
        }
    }

    pub(super) fn copies(&self) -> impl Iterator<Item = SegmentIndex> + '_ {
        self.jobs.values().filter_map(|job| match job.goal {
            Goal::Copy { segment, .. } => Some(segment),
            _ => None,
        })
    }

    fn drop_jobs(&mut self) {
        debug_assert!(self.jobs.values().all(|job| job.token.is_none()), "guests wait in the queue");
        self.jobs.clear();
        self.order = Default::default();
        // What was sent for them may still be under way; a new session is opened only after it ended.
        self.members().iter().for_each(|id| self.lose(id));
    }

    /// Brings back a replica that is out, one at a time.
    pub(super) fn join_step(&mut self, out: &mut Vec<Output>) {
        if self.phase != Phase::Serving {
            return;
        }
        let members = self.members();
        if self.joining.as_ref().is_some_and(|joining| members.contains(joining.replica)) {
            self.joining = None;
        }
        if self.joining.is_none()
            && self.proposer.proposed().is_none()
            && self.leaving.is_empty()
            && let Some((id, since, own)) = self.peers.iter().find_map(|(id, peer)| {
                let ready = !members.contains(*id) && self.is_usable(*id) && self.now >= peer.rest_until;
                let introduction = peer.introduction.as_ref().filter(|_| ready)?;
                Some((*id, introduction.clean_until, introduction.active.clone()))
            })
        {
            let stage = JoinStage::Listing(own.into_iter().collect());
            self.joining = Some(Joining { replica: id, stage, next_copy: self.now });
            self.start(None, Goal::List { since, from: SegmentIndex(0) }, Access::Exclusive, None);
        }
        let busy = self.jobs.values().any(|job| job.token.is_some());
        let copying = self.copies().next().is_some();
        let Some(joining) = &mut self.joining else { return };
        let id = joining.replica;
        match &mut joining.stage {
            JoinStage::Copying(left) => {
                if left.is_empty() {
                    joining.stage = JoinStage::Syncing;
                    self.start_flush(None, Some(id));
                } else if !copying && self.now >= joining.next_copy {
                    let segment = left.iter().next().copied().unwrap_or_default();
                    // A guest that is busy goes first: one copy, then a pause.
                    joining.next_copy =
                        if busy { self.now.after(self.limits.rebuild_pause) } else { self.now };
                    let source = self.reader();
                    if let Some(source) = source {
                        self.start_copy(segment, source, Some(id));
                    }
                }
            }
            JoinStage::Listing(_) | JoinStage::Syncing | JoinStage::Proposed => {}
        }
        let _ = out;
    }

    /// The list of a returning replica is complete, or goes on.
    pub(super) fn listed(&mut self, list: &[SegmentIndex], complete: bool) {
        if let Some(Joining { stage, .. }) = &mut self.joining
            && let JoinStage::Listing(found) = stage
        {
            found.extend(list.iter().copied());
            if complete {
                *stage = JoinStage::Copying(std::mem::take(found));
            }
        }
    }

    /// A segment was copied.
    pub(super) fn copied(&mut self, segment: SegmentIndex, to: Option<ReplicaId>) {
        match (&mut self.phase, to, &mut self.joining) {
            (Phase::Recovering { left, .. }, None, _) => drop(left.remove(&segment)),
            (_, Some(id), Some(Joining { replica, stage: JoinStage::Copying(left), .. }))
                if *replica == id =>
            {
                left.remove(&segment);
            }
            _ => {}
        }
    }

    /// A flush that the returning replica took part in has ended: it holds everything, synced.
    pub(super) fn synced(&mut self, id: ReplicaId) {
        if self.joining.as_ref().is_some_and(|j| j.replica == id && j.stage == JoinStage::Syncing) {
            self.trust(id);
            match self.proposer.propose(Change::Join(id)) {
                Ok(()) => {
                    if let Some(joining) = &mut self.joining {
                        joining.stage = JoinStage::Proposed;
                    }
                }
                Err(_) => self.abandon_join(id),
            }
        }
    }

    /// The replica to read from: the local one, else any.
    pub(super) fn reader(&self) -> Option<ReplicaId> {
        let members = self.members();
        let local = self.local.filter(|id| members.contains(*id));
        local.into_iter().chain(members.iter()).find(|id| self.is_usable(*id))
    }

    pub(super) fn next_job_id(&mut self) -> JobId {
        self.next_job += 1;
        JobId(self.next_job)
    }
}
