//! The coordinator and its work: from a guest's request to frames, and from answers to completion.

use std::collections::BTreeMap;

use super::{Access, Coordinator, Goal, Job, MAX_REQUEST_BYTES, Output, Phase, Request, RequestError, Stage};
use crate::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, JobId, ReplicaId, ReplicaSet, SECTOR_BYTES, SEGMENT_BLOCKS,
    SegmentIndex, SessionId, Time, Token, segments,
};
use crate::wire::{Body, Data, Failure, MAX_LIST};

impl Coordinator {
    pub(super) fn guest(&mut self, token: Token, request: Request, out: &mut Vec<Output>) {
        if self.jobs.len() + self.queue.len() >= self.limits.requests {
            out.push(Output::Complete(token, Err(RequestError::Busy)));
            return;
        }
        let deadline = self.now.after(self.limits.request_deadline);
        self.queue.push_back((token, request, deadline));
        self.drain(out);
    }

    /// Takes up what waits, in order, as long as the activity log has room.
    pub(super) fn drain(&mut self, out: &mut Vec<Output>) {
        let span = (crate::jobs::MAX_JOB_BLOCKS / SEGMENT_BLOCKS) as usize + 1;
        while self.phase == Phase::Serving && self.active.len() + span <= self.limits.active_segments {
            let Some((token, request, deadline)) = self.queue.pop_front() else { return };
            self.accept(token, request, deadline, out);
        }
    }

    /// Turns a request into a job.
    fn accept(&mut self, token: Token, request: Request, deadline: Time, out: &mut Vec<Output>) {
        let block = u64::from(BLOCK_BYTES);
        let (offset, len) = match &request {
            Request::Read { offset, len }
            | Request::WriteZeroes { offset, len }
            | Request::Discard { offset, len } => (*offset, *len),
            Request::Write { offset, data } => (*offset, u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Request::Flush => {
                self.start_flush(Some((token, deadline)), None);
                return;
            }
        };
        let sector = u64::from(SECTOR_BYTES);
        let end = offset.checked_add(u64::from(len));
        let fits = end.is_some_and(|end| end <= self.blocks * block) && len > 0 && len <= MAX_REQUEST_BYTES;
        if !fits || !offset.is_multiple_of(sector) || !u64::from(len).is_multiple_of(sector) {
            out.push(Output::Complete(token, Err(RequestError::Invalid)));
            return;
        }
        let end = offset + u64::from(len);
        let start = BlockIndex(offset / block);
        let count = BlockCount(u32::try_from(end.div_ceil(block) - start.0).unwrap_or(u32::MAX));
        let skip = (offset % block) as usize;
        let generation = self.generation;
        let aligned = offset.is_multiple_of(block) && end.is_multiple_of(block);
        let goal = match request {
            Request::Read { .. } => Goal::Read { start, count, skip, len: len as usize },
            Request::Write { data, .. } => Goal::Write { start, count, skip, data, generation },
            Request::WriteZeroes { .. } if !aligned => {
                Goal::Write { start, count, skip, data: vec![0; len as usize].into(), generation }
            }
            _ => {
                // Whole blocks inside: all of it for zeroes; for a discard there may be none.
                let first = offset.div_ceil(block);
                let Some(whole) = (end / block).checked_sub(first).filter(|whole| *whole > 0) else {
                    out.push(Output::Complete(token, Ok(None)));
                    return;
                };
                let count = BlockCount(u32::try_from(whole).unwrap_or(u32::MAX));
                Goal::Zero { start: BlockIndex(first), count, generation }
            }
        };
        let access = match &goal {
            Goal::Read { start, count, .. } => Access::Read(*start, *count),
            Goal::Write { start, count, .. } | Goal::Zero { start, count, .. } => {
                for segment in segments(*start, *count) {
                    self.active.insert(segment, generation);
                }
                Access::Change(*start, *count)
            }
            _ => return,
        };
        self.start(Some((token, deadline)), goal, access, None);
        if self.active.len() > self.limits.active_segments / 2 && !self.flushing {
            self.start_flush(None, None);
        }
    }

    pub(super) fn start(
        &mut self,
        token: Option<(Token, Time)>,
        goal: Goal,
        access: Access,
        joining: Option<ReplicaId>,
    ) -> JobId {
        let id = self.next_job_id();
        let ready = self.order.add(id, access);
        let deadline = token.map_or(Time(u64::MAX), |(_, deadline)| deadline);
        let token = token.map(|(token, _)| token);
        self.jobs.insert(id, Job { token, deadline, goal, stage: Stage::Waiting, joining });
        if ready {
            self.begin(id);
        }
        id
    }

    pub(super) fn start_flush(&mut self, token: Option<(Token, Time)>, joining: Option<ReplicaId>) {
        self.generation += 1;
        self.flushing = true;
        self.start(token, Goal::Flush { below: self.generation }, Access::Barrier, joining);
    }

    pub(super) fn start_copy(
        &mut self,
        segment: SegmentIndex,
        source: ReplicaId,
        joining: Option<ReplicaId>,
    ) {
        let start = BlockIndex(u64::from(segment.0) * u64::from(SEGMENT_BLOCKS));
        let Some(rest) = self.blocks.checked_sub(start.0).filter(|rest| *rest > 0) else {
            self.copied(segment, joining);
            return;
        };
        let count = BlockCount(u32::try_from(rest).unwrap_or(u32::MAX).min(SEGMENT_BLOCKS));
        self.start(None, Goal::Copy { segment, source }, Access::Change(start, count), joining);
    }

    fn range(&self, goal: &Goal) -> (BlockIndex, BlockCount) {
        match goal {
            Goal::Read { start, count, .. }
            | Goal::Write { start, count, .. }
            | Goal::Zero { start, count, .. } => (*start, *count),
            Goal::Copy { segment, .. } => {
                let start = u64::from(segment.0) * u64::from(SEGMENT_BLOCKS);
                let count = (self.blocks - start).min(u64::from(SEGMENT_BLOCKS));
                (BlockIndex(start), BlockCount(u32::try_from(count).unwrap_or(u32::MAX)))
            }
            Goal::Flush { .. } | Goal::List { .. } => (BlockIndex(0), BlockCount(0)),
        }
    }

    /// Earlier work is done: the first stage.
    fn begin(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (start, count) = self.range(&job.goal);
        let stage = match &job.goal {
            Goal::Read { .. } | Goal::Copy { .. } | Goal::List { .. } => Stage::Asking { sent: None },
            Goal::Write { skip, data, .. }
                if *skip != 0 || data.len() != (count.0 * BLOCK_BYTES) as usize =>
            {
                // The blocks at the edges keep what is not written: read first, under this job's exclusion.
                Stage::Asking { sent: None }
            }
            Goal::Write { data, generation, .. } => {
                let (data, generation) = (data.clone(), *generation);
                spread(Body::Write { job: id, start, data, generation, copy: false })
            }
            Goal::Zero { generation, .. } => {
                spread(Body::Zero { job: id, start, count, generation: *generation })
            }
            Goal::Flush { .. } => spread(Body::Flush { job: id }),
        };
        let joining = match &job.goal {
            Goal::Write { .. } | Goal::Zero { .. } => self.join_target(start, count),
            _ => job.joining,
        };
        if let Some(job) = self.jobs.get_mut(&id) {
            job.joining = joining;
            job.stage = stage;
        }
    }

    /// The returning replica, if it must get a write to these blocks: all but those whose copy is still to come.
    fn join_target(&self, start: BlockIndex, count: BlockCount) -> Option<ReplicaId> {
        let joining = self.joining.as_ref()?;
        let copied = match &joining.stage {
            super::JoinStage::Listing(_) => false,
            super::JoinStage::Copying(left) => !segments(start, count).all(|segment| left.contains(&segment)),
            super::JoinStage::Syncing | super::JoinStage::Proposed => true,
        };
        copied.then_some(joining.replica)
    }

    /// Who must do a job of the spreading kind.
    fn required(&self, job: &Job) -> ReplicaSet {
        let all = self.proposer.must_ack();
        match (&job.goal, job.joining) {
            (Goal::Copy { .. }, Some(id)) => ReplicaSet::EMPTY.with(id).unwrap_or_default(),
            (Goal::Copy { source, .. }, None) => all.without(*source),
            (_, Some(id)) => all.with(id).unwrap_or(all),
            (_, None) => all,
        }
    }

    /// Sends what is to be sent, and completes what is complete.
    pub(super) fn pump(&mut self, out: &mut Vec<Output>) {
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            self.pump_job(id, out);
        }
        self.drain(out);
    }

    fn pump_job(&mut self, id: JobId, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let now = self.now;
        match &job.stage {
            Stage::Waiting => {}
            Stage::Asking { sent } => {
                if let Some((from, session, at)) = *sent {
                    if self.session(from) == Some(session) && now < at.after(self.limits.reply_deadline) {
                        return;
                    }
                    if self.session(from) == Some(session) {
                        self.strike(from, 1);
                    }
                }
                let Some(job) = self.jobs.get(&id) else { return };
                let (start, count) = self.range(&job.goal);
                let from = match job.goal {
                    Goal::Copy { source, .. } => Some(source).filter(|source| {
                        self.members().contains(*source) && self.is_usable(*source) || job.joining.is_some()
                    }),
                    _ => None,
                };
                let from = from.filter(|id| self.is_usable(*id)).or_else(|| match job.goal {
                    Goal::Copy { .. } if job.joining.is_none() => None,
                    _ => self.reader(),
                });
                let body = match job.goal {
                    Goal::List { since, from } => Body::ListDirty { job: id, since, from },
                    _ => Body::Read { job: id, start, count },
                };
                let sent = from.and_then(|from| Some((from, self.session(from)?, now)));
                if let Some((from, ..)) = sent {
                    self.send(from, body, out);
                }
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.stage = Stage::Asking { sent };
                }
            }
            Stage::Spreading { body, sent, acked } => {
                let required = self.required(job);
                let body = body.clone();
                let mut late = vec![];
                let mut todo = vec![];
                for to in required.iter().filter(|to| !acked.contains_key(to)) {
                    match sent.get(&to) {
                        Some((session, at)) if self.session(to) == Some(*session) => {
                            if now >= at.after(self.limits.reply_deadline) {
                                late.push(to);
                            }
                        }
                        _ if self.is_usable(to) => todo.push(to),
                        _ => {}
                    }
                }
                let complete = required.iter().all(|to| acked.contains_key(&to));
                for to in todo {
                    let Some(session) = self.session(to) else { continue };
                    self.send(to, body.clone(), out);
                    if let Some(Job { stage: Stage::Spreading { sent, .. }, .. }) = self.jobs.get_mut(&id) {
                        sent.insert(to, (session, now));
                    }
                }
                late.into_iter().for_each(|to| self.strike(to, 1));
                // While a change of membership is being decided, required holds both outcomes; see note 0010.
                if complete {
                    self.spread_done(id, out);
                }
            }
        }
    }

    /// A frame of the open session.
    pub(super) fn reply(&mut self, from: ReplicaId, session: SessionId, body: Body, out: &mut Vec<Output>) {
        let id = match &body {
            Body::Done { job, .. } | Body::Data { job, .. } | Body::Segments { job, .. } => *job,
            _ => return,
        };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match (&mut job.stage, body) {
            (Stage::Spreading { sent, acked, .. }, Body::Done { result, .. }) => {
                if sent.get(&from).is_none_or(|(of, _)| *of != session) {
                    return;
                }
                match result {
                    Ok(()) => {
                        acked.insert(from, session);
                        self.well(from);
                    }
                    // Its disk failed: once is enough, unless it is the last one; then it is tried again.
                    Err(_) => self.strike(from, 2),
                }
            }
            (Stage::Asking { sent: Some((of, ..)) }, Body::Done { result: Err(failure), .. })
                if *of == from =>
            {
                let others = self.members().iter().any(|other| other != from && self.is_usable(other));
                if others || failure != Failure::Io {
                    self.strike(from, 2);
                } else if self.jobs.get(&id).is_some_and(|job| job.token.is_some()) {
                    self.finish(id, Err(RequestError::Io), out);
                } else {
                    self.strike(from, 2);
                }
            }
            (Stage::Asking { sent: Some((of, ..)) }, Body::Data { data, .. }) if *of == from => {
                self.well(from);
                self.answered(id, data, out);
            }
            (Stage::Asking { sent: Some((of, ..)) }, Body::Segments { list, .. }) if *of == from => {
                let complete = list.len() < MAX_LIST;
                self.listed(&list, complete);
                if complete {
                    self.finish(id, Ok(None), out);
                } else if let Some(Job { goal: Goal::List { from, .. }, stage, .. }) = self.jobs.get_mut(&id)
                {
                    *from = SegmentIndex(list.last().map_or(0, |last| last.0 + 1));
                    *stage = Stage::Asking { sent: None };
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
        let body = match &job.goal {
            Goal::Read { skip, len, .. } => {
                let data = if read.len() == *len { read } else { read[*skip..*skip + *len].into() };
                self.finish(id, Ok(Some(data)), out);
                return;
            }
            Goal::Write { skip, data, generation, .. } => {
                let mut whole = read.to_vec();
                whole[*skip..*skip + data.len()].copy_from_slice(data);
                Body::Write { job: id, start, data: whole.into(), generation: *generation, copy: false }
            }
            Goal::Copy { .. } => {
                // A recovery's copy is a write like any other until it is synced; a rebuild's is synced before it counts.
                let copy = job.joining.is_some();
                Body::Write { job: id, start, data: read, generation: self.generation, copy }
            }
            _ => return,
        };
        if let Some(job) = self.jobs.get_mut(&id) {
            job.stage = spread(body);
        }
    }

    /// All that must have done it.
    fn spread_done(&mut self, id: JobId, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (goal, joining) = (job.goal.clone(), job.joining);
        let Stage::Spreading { acked, .. } = &job.stage else { return };
        let acked = acked.clone();
        match goal {
            Goal::Flush { below } => {
                // Only where the session is the one that the flush was done in: a later one may be after a restart.
                for (to, session) in acked {
                    if self.members().contains(to) && self.session(to) == Some(session) && self.is_usable(to)
                    {
                        self.send(to, Body::Settle { below }, out);
                    }
                }
                self.active.retain(|_, newest| *newest >= below);
                self.flushing = false;
                if let Some(id) = joining {
                    self.synced(id);
                }
            }
            Goal::Copy { segment, .. } => self.copied(segment, joining),
            _ => {}
        }
        self.finish(id, Ok(None), out);
    }

    fn finish(&mut self, id: JobId, result: Result<Option<Data>, RequestError>, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.remove(&id) else { return };
        if let Some(token) = job.token {
            out.push(Output::Complete(token, result));
        }
        let mut ready = vec![];
        self.order.finish(id, &mut ready);
        for id in ready {
            self.begin(id);
            self.pump_job(id, out);
        }
    }

    /// Guests do not wait for ever; the work goes on without them, and reads are given up.
    pub(super) fn expire(&mut self, out: &mut Vec<Output>) {
        let now = self.now;
        while let Some((token, _, _)) = self.queue.pop_front_if(|(_, _, deadline)| *deadline <= now) {
            out.push(Output::Complete(token, Err(RequestError::TimedOut)));
        }
        let late = self.jobs.iter_mut().filter(|(_, job)| job.deadline <= now && job.token.is_some());
        let late: Vec<(JobId, Token, bool)> = late
            .filter_map(|(id, job)| Some((*id, job.token.take()?, matches!(job.goal, Goal::Read { .. }))))
            .collect();
        for (id, token, read) in late {
            out.push(Output::Complete(token, Err(RequestError::TimedOut)));
            if read {
                self.finish(id, Ok(None), out);
            }
        }
    }
}

fn spread(body: Body) -> Stage {
    Stage::Spreading { body, sent: BTreeMap::new(), acked: BTreeMap::new() }
}
