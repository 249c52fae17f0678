//! The coordinator and its guest: from requests to jobs.

use super::{
    Coordinator, Goal, Job, MAX_REQUEST_BYTES, Output, Phase, Purpose, Request, RequestError, Salvage, Stage,
    To,
};
use crate::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, JobId, ReplicaSet, SECTOR_BYTES, SEGMENT_BLOCKS, SegmentIndex, Time,
    Token, segments,
};
use crate::jobs::{Access, MAX_JOB_BLOCKS};
use crate::structure::Kind;

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
        let span = (MAX_JOB_BLOCKS / SEGMENT_BLOCKS) as usize + 1;
        while self.phase == Phase::Serving {
            if self.active.len() + span > self.limits.active_segments {
                if self.flushing == 0 {
                    self.start_flush(None, Purpose::Guest);
                }
                return;
            }
            let Some((token, request, deadline)) = self.queue.pop_front() else { return };
            self.accept(token, request, deadline, out);
        }
    }

    /// Turns a request into a job.
    fn accept(&mut self, token: Token, request: Request, deadline: Time, out: &mut Vec<Output>) {
        let (block, sector) = (u64::from(BLOCK_BYTES), u64::from(SECTOR_BYTES));
        let (offset, len) = match &request {
            Request::Read { offset, len }
            | Request::WriteZeroes { offset, len }
            | Request::Discard { offset, len } => (*offset, *len),
            Request::Write { offset, data } => (*offset, u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Request::Flush => {
                self.start_flush(Some((token, deadline)), Purpose::Guest);
                return;
            }
            Request::Operate(kind) => {
                self.start_operation(Some((token, deadline)), kind.clone());
                return;
            }
            Request::Scrub => {
                self.start_scrub(token, out);
                return;
            }
        };
        let end = offset.checked_add(u64::from(len));
        let size = self.structure.blocks * block;
        let fits = end.is_some_and(|end| end <= size) && len > 0 && len <= MAX_REQUEST_BYTES;
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
                self.changed = self.now;
                for segment in segments(*start, *count) {
                    self.active.insert(segment, generation);
                }
                Access::Change(*start, *count)
            }
            _ => return,
        };
        self.start(Some((token, deadline)), goal, access, None);
        if self.active.len() > self.limits.active_segments / 2 && self.flushing == 0 {
            self.start_flush(None, Purpose::Guest);
        }
    }

    pub(super) fn start(
        &mut self,
        token: Option<(Token, Time)>,
        goal: Goal,
        access: Access,
        attempt: Option<u64>,
    ) -> JobId {
        self.next_job += 1;
        let id = JobId(self.next_job);
        let ready = self.order.add(id, access);
        let deadline = token.map_or(Time(u64::MAX), |(_, deadline)| deadline);
        let token = token.map(|(token, _)| token);
        let (tried, retry_at) = (ReplicaSet::EMPTY, Time::default());
        let job = Job { token, deadline, goal, stage: Stage::Waiting, attempt, tried, retry_at };
        self.jobs.insert(id, Box::new(job));
        if ready {
            self.begin(id);
        }
        id
    }

    pub(super) fn start_flush(&mut self, token: Option<(Token, Time)>, purpose: Purpose) {
        self.generation += 1;
        self.flushing += 1;
        let attempt = match purpose {
            Purpose::Join => self.attempt(),
            _ => None,
        };
        self.start(token, Goal::Flush { below: self.generation, purpose }, Access::Barrier, attempt);
    }

    pub(super) fn start_operation(&mut self, token: Option<(Token, Time)>, kind: Kind) {
        self.generation += 1;
        let goal = Goal::Operate { kind, below: self.generation, next: None };
        self.start(token, goal, Access::Alone, None);
    }

    /// What the blocks of a segment are.
    pub(super) fn segment_range(&self, segment: SegmentIndex) -> Option<(BlockIndex, BlockCount)> {
        let start = u64::from(segment.0) * u64::from(SEGMENT_BLOCKS);
        let rest = self.structure.blocks.checked_sub(start).filter(|rest| *rest > 0)?;
        let count = rest.min(u64::from(SEGMENT_BLOCKS));
        Some((BlockIndex(start), BlockCount(u32::try_from(count).unwrap_or(SEGMENT_BLOCKS))))
    }

    /// A job on one segment of a layer: it excludes writes there, and other such jobs, if they could touch what it touches.
    pub(super) fn start_on_segment(
        &mut self,
        goal: Goal,
        segment: SegmentIndex,
        excludes: bool,
        attempt: Option<u64>,
    ) {
        let Some((start, count)) = self.segment_range(segment) else { return };
        let access = if excludes { Access::Change(start, count) } else { Access::Read(start, count) };
        self.start(None, goal, access, attempt);
    }

    pub(super) fn start_copy(
        &mut self,
        layer: crate::structure::LayerId,
        segment: SegmentIndex,
        source: Option<crate::ids::ReplicaId>,
        to: To,
    ) {
        self.start_copy_with(layer, segment, source, to, Salvage::No);
    }

    pub(super) fn start_copy_with(
        &mut self,
        layer: crate::structure::LayerId,
        segment: SegmentIndex,
        source: Option<crate::ids::ReplicaId>,
        to: To,
        salvage: Salvage,
    ) {
        let attempt = if to == To::Joiner { self.attempt() } else { None };
        let head = layer == self.structure.head || to != To::Joiner;
        let goal = Goal::Copy { layer, segment, source, to, salvage };
        self.start_on_segment(goal, segment, head, attempt);
    }

    /// Guests do not wait for ever; the work goes on without them, and reads are given up.
    pub(super) fn expire(&mut self, out: &mut Vec<Output>) {
        let now = self.now;
        while let Some((token, _, _)) = self.queue.pop_front_if(|(_, _, deadline)| *deadline <= now) {
            out.push(Output::Complete(token, Err(RequestError::TimedOut)));
        }
        if !self.sweep {
            return;
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
