//! The coordinator and its replicas: sessions, losses, membership.

use super::{Coordinator, Goal, Link, Output, Peer, Phase, Purpose, Stage};
use crate::ids::{ReplicaId, ReplicaSet, SessionId, Time, Version};
use crate::membership::{Ask, Change, Standing, Voter};
use crate::wire::{Body, Frame, Introduction};

impl Coordinator {
    pub(super) fn add_peer(&mut self, id: ReplicaId) {
        let now = self.now;
        self.peers.entry(id).or_insert_with(|| Peer {
            link: Link::Opening(None),
            newest: SessionId(0),
            since: 0,
            trouble: Some(now),
            strikes: 0,
            introduction: None,
            asked: None,
            owes: None,
            rest_until: Time::default(),
            rest: 0,
            forgets: Version(0),
        });
    }

    /// It is not wanted any more: as a member it leaves when another can go on without it; then it is forgotten.
    pub(super) fn retire(&mut self, id: ReplicaId) {
        self.retired = self.retired.with(id).unwrap_or(self.retired);
        self.abandon_join(id);
    }

    pub(super) fn session(&self, id: ReplicaId) -> Option<SessionId> {
        match self.peers.get(&id)?.link {
            Link::Open { session, .. } => Some(session),
            Link::Opening(_) => None,
        }
    }

    /// Whether it lost unsynced writes, and was not made equal since.
    pub(super) fn is_suspect(&self, id: ReplicaId) -> bool {
        self.introduction(id).is_none_or(|introduction| introduction.suspect)
    }

    pub(super) fn introduction(&self, id: ReplicaId) -> Option<&Introduction> {
        self.peers.get(&id)?.introduction.as_ref()
    }

    /// Whether data may be sent to it and read from it (if it is also in sync).
    pub(super) fn is_usable(&self, id: ReplicaId) -> bool {
        let lost = self.phase == Phase::Serving && self.members().contains(id) && self.is_suspect(id);
        self.session(id).is_some() && !lost && !self.leaving.contains(id) && self.proposer.is_current(id)
    }

    pub(super) fn members(&self) -> ReplicaSet {
        self.proposer.membership().in_sync
    }

    /// Members in the order in which they are read from: the local one first.
    pub(super) fn readers(&self) -> impl Iterator<Item = ReplicaId> {
        let members = self.members();
        let local = self.local.filter(|id| members.contains(*id));
        let others: Vec<ReplicaId> = members.iter().filter(|id| Some(*id) != local).collect();
        local.into_iter().chain(others)
    }

    /// Whether its stamps tell what was written in records after this one.
    pub(super) fn knows_since(&self, id: ReplicaId, since: Version) -> bool {
        let forgotten = self.introduction(id).map(|introduction| introduction.forgotten);
        let told = self.peers.get(&id).map(|peer| peer.forgets);
        forgotten.max(told).is_some_and(|forgotten| forgotten <= since)
    }

    /// The session is gone, or not to be trusted: another is opened.
    pub(super) fn lose(&mut self, id: ReplicaId) {
        self.sweep = true;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.link = Link::Opening(None);
            peer.owes = None;
            peer.trouble.get_or_insert(self.now);
        }
        self.abandon_join(id);
    }

    /// The connection broke. If that happens again and again before any work is done, work is what breaks it.
    pub(super) fn dropped(&mut self, id: ReplicaId) {
        let session = self.session(id);
        let owes = self.jobs.values().any(|job| match &job.stage {
            Stage::Waiting => false,
            Stage::Asking { sent } => sent.is_some_and(|(from, of, _)| from == id && Some(of) == session),
            Stage::Spreading { sent, acked, .. } => {
                sent.get(id).is_some_and(|sent| Some(sent.session) == session) && !acked.contains(id)
            }
        });
        if owes && session.is_some() { self.strike(id, 1) } else { self.lose(id) }
    }

    pub(super) fn opened(&mut self, id: ReplicaId, session: SessionId, introduction: Introduction) {
        let generation = self.generation;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        // A handshake that was overtaken by a later one.
        if peer.newest >= session {
            return;
        }
        self.sweep = true;
        (peer.newest, peer.since) = (session, generation);
        peer.link = Link::Open { session, seq: 0, heard: 0 };
        peer.trouble = None;
        peer.introduction = Some(introduction);
        self.abandon_join(id);
        if self.members().contains(id) {
            self.fold_again();
        }
        if matches!(self.phase, Phase::Recovering(_)) && self.members().contains(id) {
            // What was copied to it may be lost again: from the beginning.
            self.recover_again();
        }
    }

    /// It was made equal to the others, and knows it.
    pub(super) fn trust(&mut self, id: ReplicaId) {
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

    /// Whether a member other than this one is there, and has everything.
    fn another(&self, id: ReplicaId) -> bool {
        self.members().iter().any(|other| other != id && self.is_usable(other) && !self.is_suspect(other))
    }

    /// Its loss is to be recorded, if another is there that has everything.
    pub(super) fn leave(&mut self, id: ReplicaId) {
        if self.members().contains(id) && self.another(id) {
            self.leaving = self.leaving.with(id).unwrap_or(self.leaving);
        }
    }

    pub(super) fn send(&mut self, id: ReplicaId, body: Body, out: &mut Vec<Output>) {
        let (volume, epoch) = (self.volume, self.proposer.epoch());
        if let Some(Peer { link: Link::Open { session, seq, .. }, .. }) = self.peers.get_mut(&id) {
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
        if self.proposer.standing() == Standing::Holding {
            members.iter().for_each(|id| self.add_peer(id));
            self.losses();
            self.forget(out);
        }
        self.overdue();
        let retired = self.retired;
        self.peers.retain(|id, _| members.contains(*id) || !retired.contains(*id));
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
                let body = Body::Ask(Box::new(ask));
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

    /// Data waits for who does not know the newest record yet. Who is silent about it for too long is silent: its session ends, as
    /// if it had not done what it was sent.
    fn overdue(&mut self) {
        let (now, patience) = (self.now, self.limits.reply_deadline);
        let mut late = vec![];
        for (id, peer) in &mut self.peers {
            let owes =
                matches!(peer.link, Link::Open { .. }) && self.proposer.ask(Voter::Replica(*id)).is_some();
            peer.owes = owes.then(|| peer.owes.unwrap_or(now));
            if peer.owes.is_some_and(|since| now >= since.after(patience)) {
                late.push(*id);
            }
        }
        late.into_iter().for_each(|id| self.lose(id));
    }

    /// Who is to be removed, one after the other; and when nobody is left who has everything.
    fn losses(&mut self) {
        let members = self.members();
        let leaving = ReplicaSet::of(self.leaving.iter().filter(|id| members.contains(*id)));
        self.leaving = leaving.unwrap_or_default();
        if self.proposer.proposed().is_some() {
            return;
        }
        if self.phase == Phase::Serving {
            let known = |id: &ReplicaId| self.session(*id).is_some() && self.is_suspect(*id);
            if members.iter().all(|id| known(&id)) {
                self.phase = Phase::LostUnsynced;
                return;
            }
            members.iter().filter(known).collect::<Vec<_>>().into_iter().for_each(|id| self.leave(id));
        }
        for id in members.iter() {
            let away =
                self.peers[&id].trouble.is_some_and(|since| self.now >= since.after(self.limits.grace));
            if (away && self.session(id).is_none()) || self.retired.contains(id) {
                self.leave(id);
            }
        }
        // Whoever was to be the other one may be gone by now: then nobody leaves, it comes back as what it was.
        let mut stay = vec![];
        for id in self.leaving.iter() {
            if self.another(id) {
                self.sweep |= self.proposer.propose(Change::Leave(id)).is_ok();
                break;
            }
            stay.push(id);
        }
        for id in stay {
            self.leaving = self.leaving.without(id);
            self.lose(id);
        }
    }

    /// Somebody tried to attach elsewhere, without a majority, and who promised it cannot be worked with. Once a flush has shown
    /// that all members answer to us, and so that nobody else had the volume by then, it is attached again above that.
    pub(super) fn confirm_step(&mut self) {
        let serving = self.phase == Phase::Serving && !self.confirming;
        if serving && self.proposer.outbid().is_some_and(|other| other > self.proposer.epoch()) {
            self.confirming = true;
            self.start_flush(None, Purpose::Confirm);
        }
    }

    /// When everybody is in sync nobody will ask for what was written before.
    fn forget(&mut self, out: &mut Vec<Output>) {
        let version = self.proposer.membership().version;
        if !self.is_healthy() || self.retired.iter().any(|id| self.members().contains(id)) {
            return;
        }
        for id in self.members().iter() {
            let told = self.peers.get(&id).is_some_and(|peer| peer.forgets >= version);
            if !told {
                self.send(id, Body::Forget { upto: version }, out);
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.forgets = version;
                }
            }
        }
    }

    /// Jobs are dropped, and what was sent for them may still be under way: new sessions are opened after it has ended.
    pub(super) fn drop_jobs(&mut self) {
        debug_assert!(self.jobs.values().all(|job| job.token.is_none()), "guests wait in the queue");
        debug_assert!(
            !self.jobs.values().any(|job| matches!(job.goal, Goal::Read { .. })),
            "nobody reads yet"
        );
        self.jobs.clear();
        self.todo.clear();
        self.order = Default::default();
        self.flushing = 0;
        self.members().iter().for_each(|id| self.lose(id));
    }
}
