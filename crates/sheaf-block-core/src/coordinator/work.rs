//! The coordinator and its work: from jobs to frames, and from answers to completion.

use super::{Coordinator, Goal, Job, Output, Phase, Purpose, RequestError, Salvage, Sent, Stage, To};
use crate::disk::{Data, Failure, Part};
use crate::each::Each;
use crate::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, JobId, ReplicaId, ReplicaSet, SegmentIndex, SessionId, segments,
};
use crate::structure::{Kind, Operation};
use crate::wire::{Body, Work, Yield};

/// Whom a job in the asking stage may ask.
enum Source {
    Ask(ReplicaId),
    /// Who could answer is away.
    Wait,
    /// Everybody who could answer has failed, or is no member any more.
    Exhausted,
}

impl Coordinator {
    fn range(&self, goal: &Goal) -> (BlockIndex, BlockCount) {
        match goal {
            Goal::Read { start, count, .. }
            | Goal::Write { start, count, .. }
            | Goal::Zero { start, count, .. } => (*start, *count),
            _ => (BlockIndex(0), BlockCount(0)),
        }
    }

    /// Earlier work is done: the first stage.
    pub(super) fn begin(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (start, count) = self.range(&job.goal);
        let mut attempt = job.attempt;
        let asking = Stage::Asking { sent: None };
        let stage = match &job.goal {
            Goal::Read { .. } | Goal::Copy { .. } => asking,
            Goal::List { .. } | Goal::FoldList { .. } | Goal::CheckList { .. } => asking,
            Goal::Write { skip, data, generation, .. } => {
                attempt = self.join_target(start, count);
                if *skip != 0 || data.len() != (count.0 * BLOCK_BYTES) as usize {
                    // The blocks at the edges keep what is not written: read first, under this job's exclusion.
                    asking
                } else {
                    spread(Work::Write { start, data: data.clone(), generation: *generation })
                }
            }
            Goal::Zero { generation, .. } => {
                attempt = self.join_target(start, count);
                spread(Work::Zero { start, count, generation: *generation })
            }
            Goal::Flush { purpose, .. } => {
                spread(Work::Flush { trust: matches!(purpose, Purpose::Recovery | Purpose::Join) })
            }
            Goal::Operate { .. } => {
                attempt = self.adopted();
                spread(Work::Flush { trust: false })
            }
            Goal::Align { operation, .. } => spread(Work::Operate((**operation).clone())),
            Goal::Adopt { known } => {
                spread(Work::Adopt { structure: Box::new(self.structure.clone()), known: *known })
            }
            Goal::Progress { layer, below } => spread(Work::Copied { layer: *layer, below: *below }),
            Goal::Fold { layer, segment } => spread(Work::Fold { layer: *layer, segment: *segment }),
            Goal::Check { layer, segment } => spread(Work::Digest { layer: *layer, segment: *segment }),
            Goal::Seal { layer, segment, checksum } => {
                spread(Work::Seal { layer: *layer, segment: *segment, checksum: *checksum })
            }
        };
        if let Some(job) = self.jobs.get_mut(&id) {
            (job.attempt, job.stage) = (attempt, stage);
        }
        self.todo.insert(id);
    }

    /// Who must do a job of the spreading kind; nobody, if it has become pointless.
    fn required(&self, job: &Job) -> Option<ReplicaSet> {
        let all = self.proposer.must_ack();
        let joiner = self.joining.as_ref().filter(|joining| Some(joining.attempt) == job.attempt);
        let joiner = joiner.map(|joining| ReplicaSet::EMPTY.with(joining.replica).unwrap_or_default());
        let both = || joiner.and_then(|joiner| all.union(joiner).ok()).unwrap_or(all);
        let one = |id: ReplicaId| all.contains(id).then(|| ReplicaSet::EMPTY.with(id).unwrap_or_default());
        match &job.goal {
            Goal::Write { .. } | Goal::Zero { .. } | Goal::Flush { .. } | Goal::Operate { .. } => {
                Some(both())
            }
            Goal::Copy { to: To::Joiner, .. } | Goal::Adopt { .. } | Goal::Progress { .. } => joiner,
            Goal::Copy { to: To::Members | To::All, source, .. } => {
                Some(source.map_or(all, |source| all.without(source)))
            }
            Goal::Copy { to: To::One(id), .. } | Goal::Align { to: id, .. } => one(*id),
            Goal::Fold { .. } | Goal::Check { .. } | Goal::Seal { .. } => Some(all),
            Goal::Read { .. } | Goal::List { .. } | Goal::FoldList { .. } | Goal::CheckList { .. } => None,
        }
    }

    /// Whether a member could answer an asking job, were it there.
    fn could_answer(&self, goal: &Goal, id: ReplicaId) -> bool {
        match goal {
            Goal::Copy { source: Some(source), salvage: Salvage::No, .. } => id == *source,
            Goal::Copy { salvage: Salvage::No, .. } => true,
            // What was lost unsynced is not better than what is damaged.
            Goal::Copy { source, .. } => *source == Some(id) || !self.is_suspect(id),
            Goal::List { since: Some(since), .. } => self.knows_since(id, *since),
            _ => true,
        }
    }

    /// Whom an asking job asks. It waits for a member that is away: that one comes back, or its loss is recorded. For anybody
    /// else it would wait for ever: who is not a member comes in by a rebuild only, which would wait for this job.
    fn source(&self, job: &Job) -> Source {
        let able = |id: &ReplicaId| !job.tried.contains(*id) && self.could_answer(&job.goal, *id);
        match self.readers().filter(able).find(|id| self.is_usable(*id)) {
            Some(id) => Source::Ask(id),
            None if self.readers().any(|id| able(&id)) => Source::Wait,
            None => Source::Exhausted,
        }
    }

    fn question(&self, job: &Job) -> Work {
        let (start, count) = self.range(&job.goal);
        let page = self.limits.page;
        match &job.goal {
            Goal::Copy { layer, segment, salvage: Salvage::No, .. } => {
                Work::ReadPart { layer: *layer, segment: *segment }
            }
            Goal::Copy { layer, segment, .. } => Work::Salvage { layer: *layer, segment: *segment },
            Goal::List { since: Some(since), from, .. } => {
                Work::Dirty { since: *since, from: *from, count: page }
            }
            Goal::List { layer, from, .. }
            | Goal::FoldList { layer, from }
            | Goal::CheckList { layer, from } => Work::Present { layer: *layer, from: *from, count: page },
            _ => Work::Read { start, count },
        }
    }

    /// Sends what is to be sent, and completes what is complete.
    pub(super) fn pump(&mut self, out: &mut Vec<Output>) {
        if std::mem::take(&mut self.sweep) {
            self.todo.extend(self.jobs.keys().copied());
        }
        while let Some(id) = self.todo.pop_first() {
            self.pump_job(id, out);
        }
        self.drain(out);
        while let Some(id) = self.todo.pop_first() {
            self.pump_job(id, out);
        }
    }

    fn pump_job(&mut self, id: JobId, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        if job.stage != Stage::Waiting && self.is_pointless(job) {
            self.given_up(id, out);
            return;
        }
        match &job.stage {
            Stage::Waiting => {}
            Stage::Asking { sent } => {
                let sent = *sent;
                self.pump_asking(id, sent, out);
            }
            Stage::Spreading { .. } => self.pump_spreading(id, out),
        }
    }

    /// Whether an operation took away what a job of our own, which waited for that operation, is about.
    fn is_pointless(&self, job: &Job) -> bool {
        match &job.goal {
            Goal::Copy { layer, .. }
            | Goal::List { layer, .. }
            | Goal::Progress { layer, .. }
            | Goal::FoldList { layer, .. }
            | Goal::Check { layer, .. }
            | Goal::Seal { layer, .. }
            | Goal::CheckList { layer, .. } => self.structure.layer(*layer).is_none(),
            Goal::Fold { layer, .. } => {
                let mut children = self.structure.children(*layer);
                children.next().is_none() || children.next().is_some()
            }
            _ => false,
        }
    }

    fn pump_asking(
        &mut self,
        id: JobId,
        sent: Option<(ReplicaId, SessionId, crate::ids::Time)>,
        out: &mut Vec<Output>,
    ) {
        let now = self.now;
        if let Some((from, session, at)) = sent
            && self.session(from) == Some(session)
        {
            if now < at.after(self.limits.reply_deadline) {
                return;
            }
            self.strike(from, 1);
        }
        let Some(job) = self.jobs.get(&id) else { return };
        let attempted = matches!(job.goal, Goal::Copy { to: To::Joiner, .. } | Goal::List { .. });
        if attempted && job.attempt != self.attempt() {
            self.finish(id, Ok(None), out); // of an attempt that was given up
            return;
        }
        if now < job.retry_at {
            return;
        }
        let work = self.question(job);
        let sent = match self.source(job) {
            Source::Ask(from) => self.session(from).map(|session| (from, session, now)),
            Source::Wait => None,
            Source::Exhausted => {
                self.exhausted(id, out);
                return;
            }
        };
        if let Some((from, ..)) = sent {
            self.send(from, Body::Do(id, work), out);
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            job.stage = Stage::Asking { sent };
        }
    }

    /// Nobody could read it.
    fn exhausted(&mut self, id: JobId, out: &mut Vec<Output>) {
        if self.rescue(id) {
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match job.goal {
            Goal::Read { .. } | Goal::Write { .. } => self.finish(id, Err(RequestError::Io), out),
            Goal::Copy { to: To::Members, .. } => {
                (job.tried, job.retry_at) = (ReplicaSet::EMPTY, self.now.after(self.limits.resend));
                job.stage = Stage::Asking { sent: None };
            }
            Goal::Copy { to: To::Joiner, .. } | Goal::List { .. } => {
                if let Some(replica) = self.rebuilding() {
                    self.abandon_join(replica);
                }
                self.finish(id, Ok(None), out);
            }
            _ => self.given_up(id, out),
        }
    }

    fn pump_spreading(&mut self, id: JobId, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Stage::Spreading { sent, acked, full, damaged, .. } = &job.stage else { return };
        let Some(required) = self.required(job) else {
            self.given_up(id, out);
            return;
        };
        let now = self.now;
        let (mut late, mut todo) = (ReplicaSet::EMPTY, ReplicaSet::EMPTY);
        let answered = |to: &ReplicaId| acked.contains(*to) || full.contains(*to) || damaged.contains(*to);
        for to in required.iter().filter(|to| !answered(to)) {
            match sent.get(to) {
                Some(sent) if self.session(to) == Some(sent.session) && !sent.again => {
                    let is_late = now >= sent.at.after(self.limits.reply_deadline);
                    late = if is_late { late.with(to).unwrap_or(late) } else { late };
                }
                _ if now < job.retry_at => {}
                _ if self.is_usable(to) => todo = todo.with(to).unwrap_or(todo),
                _ => {}
            }
        }
        // Until a removal is decided nothing is complete: who is left vouches for what was, not for what will be.
        let complete = required.iter().all(|to| acked.contains(to)) && !self.proposer.is_removing();
        let settled = required.iter().all(|to| answered(&to));
        let (anybody, is_full) = (required.iter().any(|to| acked.contains(to)), *full);
        let is_damaged = required.iter().any(|to| damaged.contains(to));
        for to in todo.iter() {
            let Some(session) = self.session(to) else { continue };
            let Some(job) = self.jobs.get_mut(&id) else { return };
            let Stage::Spreading { work, sent, .. } = &mut job.stage else { return };
            let owed = sent.get(to).filter(|sent| sent.session == session).map_or(0, |sent| sent.owed);
            sent.insert(to, Sent { session, at: now, owed: owed + 1, again: false });
            let work = work.clone();
            self.send(to, Body::Do(id, work), out);
        }
        late.iter().for_each(|to| self.strike(to, 1));
        if complete {
            self.spread_done(id, out);
        } else if settled && is_damaged {
            self.damaged(id, out);
        } else if settled && !is_full.is_empty() {
            self.full(id, is_full, anybody, out);
        }
    }

    /// A removal is decided. What was on its way is done again by those who are left: an answer from before may be of a
    /// machine that has gone down since, and what it vouched for with its vote is only what was complete by then.
    pub(super) fn ask_again(&mut self) {
        for job in self.jobs.values_mut() {
            if let Stage::Spreading { sent, acked, full, damaged, digests, .. } = &mut job.stage {
                sent.values_mut().for_each(|sent| sent.again = true);
                acked.clear();
                digests.clear();
                (*full, *damaged) = (ReplicaSet::EMPTY, ReplicaSet::EMPTY);
            }
        }
    }

    /// Everybody has answered, some that their disks are full. If others could, those are out; if nobody could, nobody is to
    /// blame: the guest hears of it, and it is tried again, so that all are equal once there is space.
    fn full(&mut self, id: JobId, full: ReplicaSet, anybody: bool, out: &mut Vec<Output>) {
        let retry_at = self.now.after(self.limits.resend);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.retry_at = retry_at;
        if let Stage::Spreading { sent, full: slot, .. } = &mut job.stage {
            *slot = ReplicaSet::EMPTY;
            sent.retain(|id| !full.contains(id));
        }
        if anybody {
            full.iter().for_each(|id| self.strike(id, 2));
            return;
        }
        let token = job.token.take();
        let operation = matches!(job.goal, Goal::Operate { .. });
        out.extend(token.map(|token| Output::Complete(token, Err(RequestError::NoSpace))));
        if operation || matches!(job.goal, Goal::Fold { .. }) {
            self.given_up(id, out);
        }
    }

    /// Everybody has answered, some that what they have there is damaged. Only now nothing is under way in that segment any
    /// more, so that it may be looked at, and written to; and whoever folded it did so with sound data.
    fn damaged(&mut self, id: JobId, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        if matches!(&job.goal, Goal::Fold { layer, .. } if self.shared.contains_key(layer)) {
            let attempt = job.attempt;
            self.fold_left(attempt);
            return self.finish(id, Err(RequestError::Io), out);
        }
        match &job.goal {
            Goal::Fold { layer, segment } => {
                let (layer, segment) = (*layer, *segment);
                let child = self.structure.children(layer).next().map(|child| child.id);
                [Some(layer), child].into_iter().flatten().for_each(|id| self.doubt(id, segment));
            }
            Goal::Seal { layer, segment, .. } => self.doubt(*layer, *segment),
            _ => {}
        }
        self.given_up(id, out);
    }

    /// A job of our own, or an operation that nobody did, ends without having been done.
    fn given_up(&mut self, id: JobId, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        match &job.goal {
            Goal::Fold { .. } | Goal::FoldList { .. } => self.fold_failed(),
            Goal::Check { .. } | Goal::Seal { .. } | Goal::CheckList { .. } => self.check_failed(),
            Goal::Copy { to: To::One(_) | To::All, .. } => self.check_failed(),
            Goal::Copy { to: To::Joiner, .. } | Goal::List { .. } if job.attempt == self.attempt() => {
                let goal = job.goal.clone();
                self.join_missed(&goal);
            }
            Goal::Operate { kind: Kind::Drop(_), .. } => self.fold_failed(),
            _ => {}
        }
        self.finish(id, Err(RequestError::Io), out);
    }

    /// An answer in the open session.
    pub(super) fn reply(
        &mut self,
        from: ReplicaId,
        session: SessionId,
        id: JobId,
        result: Result<Yield, Failure>,
        out: &mut Vec<Output>,
    ) {
        let retry_at = self.now.after(self.limits.resend);
        let current = self.attempt();
        let Some(job) = self.jobs.get_mut(&id) else { return };
        self.todo.insert(id);
        match (&mut job.stage, result) {
            (Stage::Spreading { sent, acked, digests, .. }, Ok(what)) => {
                if !is_last(sent, from, session) {
                    return;
                }
                acked.insert(from, session);
                match what {
                    Yield::Digest(digest) => digests.insert(from, digest),
                    Yield::Missing(missing) if job.attempt == current => self.missing(missing),
                    _ => {}
                }
                self.well(from);
            }
            (Stage::Spreading { sent, full, damaged, .. }, Err(failure)) => {
                if !is_last(sent, from, session) {
                    return;
                }
                match failure {
                    Failure::NoSpace if !matches!(job.goal, Goal::Adopt { .. } | Goal::Align { .. }) => {
                        *full = full.with(from).unwrap_or(*full);
                    }
                    Failure::Corrupt if matches!(job.goal, Goal::Fold { .. } | Goal::Seal { .. }) => {
                        *damaged = damaged.with(from).unwrap_or(*damaged);
                    }
                    // It is not folded anywhere; what has been changes nothing that is read.
                    Failure::Shared if matches!(job.goal, Goal::Fold { .. }) => {
                        *damaged = damaged.with(from).unwrap_or(*damaged);
                        if let Goal::Fold { layer, .. } = job.goal {
                            self.fold_shared(layer);
                        }
                    }
                    // Its disk failed: once is enough, unless it is the last one; then it is tried again.
                    _ => {
                        sent.remove(from);
                        job.retry_at = retry_at;
                        self.strike(from, 2);
                    }
                }
            }
            (Stage::Asking { sent }, Err(failure)) => {
                if *sent != sent.filter(|(of, opened, _)| *of == from && *opened == session) || sent.is_none()
                {
                    return;
                }
                *sent = None;
                job.tried = job.tried.with(from).unwrap_or(job.tried);
                let goal = job.goal.clone();
                if matches!(goal, Goal::Copy { salvage: Salvage::Wanted | Salvage::Have(..), .. }) {
                    // Another one may have more to say.
                } else if failure == Failure::Corrupt {
                    self.doubt_goal(&goal);
                } else {
                    self.strike(from, 2);
                }
            }
            (Stage::Asking { sent: Some((of, opened, _)) }, Ok(what))
                if *of == from && *opened == session =>
            {
                self.well(from);
                match what {
                    Yield::Data(data) => self.answered(id, data, out),
                    Yield::Part(part) => self.part_read(id, from, part),
                    Yield::Segments(list) => self.listed(id, &list, out),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// One replica's data came.
    fn answered(&mut self, id: JobId, read: Data, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (start, count) = self.range(&job.goal);
        if read.len() != (count.0 * BLOCK_BYTES) as usize {
            return;
        }
        let work = match &job.goal {
            Goal::Read { skip, len, .. } => {
                let data = read.slice(*skip..*skip + *len);
                self.finish(id, Ok(Some(data)), out);
                return;
            }
            Goal::Write { skip, data, generation, .. } => {
                let mut whole = read.to_vec();
                whole[*skip..*skip + data.len()].copy_from_slice(data);
                Work::Write { start, data: whole.into(), generation: *generation }
            }
            _ => return,
        };
        if let Some(job) = self.jobs.get_mut(&id) {
            job.stage = spread(work);
        }
    }

    fn part_read(&mut self, id: JobId, from: ReplicaId, part: Part) {
        match self.jobs.get(&id).map(|job| &job.goal) {
            Some(Goal::Copy { salvage: Salvage::No, .. }) if part.bad == 0 => {
                self.part_known(id, Some(from), part);
            }
            // What is damaged there may be whole elsewhere.
            _ => self.salvaged(id, from, part),
        }
    }

    fn listed(&mut self, id: JobId, list: &[SegmentIndex], out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let ended = list.len() < self.limits.page as usize;
        match &job.goal {
            Goal::List { layer, since, .. } => {
                let (layer, dirty) = (*layer, since.is_some());
                if job.attempt == self.attempt() {
                    self.join_listed(layer, dirty, list, ended);
                }
            }
            Goal::FoldList { .. } => {
                let attempt = job.attempt;
                self.fold_listed(attempt, list, ended);
            }
            Goal::CheckList { .. } => self.check_listed(list, ended),
            _ => return,
        }
        self.finish(id, Ok(None), out);
    }

    /// All that must have done it.
    fn spread_done(&mut self, id: JobId, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Stage::Spreading { acked, digests, .. } = &job.stage else { return };
        match job.goal.clone() {
            Goal::Flush { below, purpose } => {
                let acked = acked.clone();
                self.flushed(below, purpose, &acked, out);
            }
            Goal::Operate { kind, next: None, below } => {
                let acked = acked.clone();
                if matches!(kind, Kind::Drop(_)) && self.is_void() {
                    self.fold_failed();
                    self.finish(id, Err(RequestError::Io), out);
                    return;
                }
                self.active.retain(|_, newest| *newest >= below);
                let operation = Operation { id: self.structure.next(self.epoch().holder), kind };
                match self.structure.apply(&operation) {
                    Ok(next) => {
                        self.settled(below, &acked, out);
                        if let Some(job) = self.jobs.get_mut(&id) {
                            if let Goal::Operate { next: slot, .. } = &mut job.goal {
                                *slot = Some(Box::new(next));
                            }
                            job.stage = spread(Work::Operate(operation));
                        }
                        self.todo.insert(id);
                    }
                    Err(refused) => {
                        self.fold_refused(&operation.kind);
                        self.finish(id, Err(RequestError::Refused(refused)), out);
                    }
                }
                return;
            }
            Goal::Operate { next: Some(next), .. } => self.operated(*next),
            Goal::Align { to, .. } => self.aligned(to),
            Goal::Copy { layer, segment, to, .. } => self.copied(layer, segment, to),
            Goal::Fold { segment, .. } => {
                let attempt = job.attempt;
                self.folded(attempt, segment);
            }
            Goal::Check { layer, segment } => {
                let digests = digests.clone();
                self.checked(layer, segment, &digests);
            }
            Goal::Seal { .. } => self.sealed(),
            _ => {}
        }
        self.finish(id, Ok(None), out);
    }

    /// A flush that everybody took part in has ended.
    fn flushed(&mut self, below: u64, purpose: Purpose, acked: &Each<SessionId>, out: &mut Vec<Output>) {
        self.settled(below, acked, out);
        self.active.retain(|_, newest| *newest >= below);
        self.flushing = self.flushing.saturating_sub(1);
        match purpose {
            Purpose::Guest => {}
            Purpose::Recovery => self.recovery_synced(acked),
            Purpose::Join => self.join_synced(acked),
            Purpose::Confirm => self.phase = Phase::Again,
        }
    }

    /// Everything of generations below this one is everywhere and synced. A replica is told only if the flush began after
    /// its session was opened: it does not know the generations of what it wrote in earlier lives, and takes all of
    /// it for older. It keeps the segments in its log for a while, see [`crate::replica`].
    fn settled(&mut self, below: u64, acked: &Each<SessionId>, out: &mut Vec<Output>) {
        for (to, session) in acked.iter() {
            let same = self.session(to) == Some(*session) && self.is_usable(to);
            if same && self.peers.get(&to).is_some_and(|peer| peer.since < below) {
                self.send(to, Body::Settle { below, all: false }, out);
            }
        }
        self.told = self.told.max(below);
    }

    /// Whether replicas keep segments in their logs although the guest may have stopped writing.
    pub(super) fn owes_rest(&self) -> bool {
        self.phase == Phase::Serving && (self.told > 0 || !self.active.is_empty())
    }

    /// The guest rests: the activity logs are emptied, so that nothing has to be compared after whatever comes.
    pub(super) fn rest_step(&mut self, out: &mut Vec<Output>) {
        let rests =
            self.owes_rest() && self.flushing == 0 && self.now >= self.changed.after(self.limits.rest);
        if !rests {
            return;
        }
        let below = self.told;
        let members: Vec<ReplicaId> = self.members().iter().filter(|to| self.is_usable(*to)).collect();
        let since = |to: &ReplicaId| self.peers.get(to).map_or(u64::MAX, |peer| peer.since);
        if !self.active.is_empty() || members.iter().any(|to| since(to) >= below) {
            self.changed = self.now;
            self.start_flush(None, Purpose::Guest);
            return;
        }
        self.told = 0;
        members.into_iter().for_each(|to| self.send(to, Body::Settle { below, all: true }, out));
    }

    pub(super) fn finish(
        &mut self,
        id: JobId,
        result: Result<Option<Data>, RequestError>,
        out: &mut Vec<Output>,
    ) {
        let Some(job) = self.jobs.remove(&id) else { return };
        if let Some(token) = job.token {
            out.push(Output::Complete(token, result));
        }
        let mut ready = vec![];
        self.order.finish(id, &mut ready);
        ready.into_iter().for_each(|id| self.begin(id));
    }

    /// Segments of which a read was damaged, in whatever layer.
    fn doubt_goal(&mut self, goal: &Goal) {
        match goal {
            Goal::Copy { layer, segment, .. } => self.doubt(*layer, *segment),
            Goal::Read { start, count, .. } | Goal::Write { start, count, .. } => {
                let chain: Vec<_> = self.structure.chain(self.structure.head).map(|layer| layer.id).collect();
                for segment in segments(*start, *count) {
                    chain.iter().for_each(|layer| self.doubt(*layer, segment));
                }
            }
            _ => {}
        }
    }

    /// What is on its way and whom it waits for, for who wonders why nothing happens.
    pub fn explain(&self) -> String {
        let mut lines = vec![format!(
            "{:?} under epoch {}, record {:?}, outbid by {:?}, leaving {:?}, rebuilding {:?}, {} in the queue",
            self.phase,
            self.epoch(),
            self.proposer.membership(),
            self.proposer.outbid(),
            self.leaving,
            self.rebuilding(),
            self.queue.len()
        )];
        for (id, job) in self.jobs.iter().take(12) {
            let goal: String = format!("{:?}", job.goal).chars().take(80).collect();
            let waits = match &job.stage {
                Stage::Waiting => "waits for earlier work".to_owned(),
                Stage::Asking { sent } => format!("asks {sent:?}"),
                Stage::Spreading { sent, acked, full, damaged, .. } => {
                    let required = self.required(job);
                    format!(
                        "of {required:?}: done {acked:?}, sent {sent:?}, full {full:?}, damaged {damaged:?}"
                    )
                }
            };
            lines.push(format!("job {id}: {goal}: {waits}"));
        }
        lines.extend(self.peers.iter().map(|(id, peer)| format!("replica {id}: {:?}", peer.link)));
        lines.join("\n")
    }

    /// Whether the guest has anything on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.jobs.values().any(|job| job.token.is_some()) || self.phase != Phase::Serving
    }
}

/// An answer came: whether it is the one that counts.
fn is_last(sent: &mut Each<Sent>, from: ReplicaId, session: SessionId) -> bool {
    let Some(sent) = sent.get_mut(from).filter(|sent| sent.session == session) else { return false };
    sent.owed = sent.owed.saturating_sub(1);
    sent.owed == 0 && !sent.again
}

pub(super) fn spread(work: Work) -> Stage {
    Stage::Spreading {
        work,
        sent: Each::default(),
        acked: Each::default(),
        full: ReplicaSet::EMPTY,
        damaged: ReplicaSet::EMPTY,
        digests: Each::default(),
    }
}
