//! The replica's side: a state machine that owns one replica directory's metadata and orders what its disk does.
//!
//! [`Replica::on`] takes one event and says what is to be sent and what the disk is to do; the shell owns sockets and
//! files. Rules it keeps:
//!
//! - What an answer promises is durable before the answer leaves: [`Op::Persist`] first.
//! - A segment is in the durable activity log, stamped with the record's version, before a write to it is begun.
//! - Only frames of the promised epoch, of the session opened last, in their order, are taken. A new session is
//!   answered only after every disk operation of the old one has ended, so nothing old lands later.
//!
//! It does not know what is in sync with what; that is the coordinator's business.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, JobId, LinkId, OpId, ReplicaId, SegmentIndex, SessionId, Version,
    VolumeId, segments,
};
use crate::jobs::MAX_JOB_BLOCKS;
use crate::membership::{Answer, Ask, Ledger};
use crate::wire::{Body, Data, Failure, Frame, Introduction, MAX_LIST};

/// What a replica keeps durably beside its data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// The volume.
    pub volume: VolumeId,
    /// This replica.
    pub replica: ReplicaId,
    /// Size of the volume, in blocks.
    pub blocks: u64,
    /// Its vote and its promise.
    pub ledger: Ledger,
    /// How often the directory was opened; the upper half of session numbers.
    pub opened: u32,
    /// Unsynced writes may have been lost, and nobody has made it equal to another replica since.
    pub suspect: bool,
    /// The newest record in which it knows itself in sync.
    pub clean_until: Version,
    /// Segments with writes that are not known to be everywhere and synced.
    pub active: BTreeSet<SegmentIndex>,
    /// The record in which a segment was written last; absent: never.
    pub stamps: BTreeMap<SegmentIndex, Version>,
}

/// One change of [`Metadata`]; the shell may keep a log of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The directory was opened; true if the machine went down since it was open last.
    Opened(bool),
    /// The ledger changed. A newer record stamps all active segments again.
    Ledger(Ledger),
    /// A write to the segment may begin.
    Touched(SegmentIndex),
    /// A copy to the segment may begin.
    Stamped(SegmentIndex),
    /// These segments are everywhere and synced.
    Settled(Vec<SegmentIndex>),
}

impl Metadata {
    /// A new directory. `ledger` is [`Ledger::created`] for a replica that is made with its volume, and the default
    /// for one that is to be rebuilt.
    pub fn new(volume: VolumeId, replica: ReplicaId, blocks: u64, ledger: Ledger) -> Self {
        let clean_until =
            if ledger.committed.in_sync.contains(replica) { ledger.committed.version } else { Version(0) };
        Self {
            volume,
            replica,
            blocks,
            ledger,
            opened: 0,
            suspect: false,
            clean_until,
            active: BTreeSet::new(),
            stamps: BTreeMap::new(),
        }
    }

    /// Applies one change; the same on the way to the disk and when a log is read back.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Opened(went_down) => {
                self.opened += 1;
                self.suspect |= *went_down && !self.active.is_empty();
            }
            Change::Ledger(ledger) => {
                let newer = ledger.committed.version > self.ledger.committed.version;
                self.ledger = *ledger;
                if newer {
                    let version = ledger.committed.version;
                    self.stamps.extend(self.active.iter().map(|segment| (*segment, version)));
                    if ledger.committed.in_sync.contains(self.replica) {
                        self.clean_until = version;
                    }
                }
            }
            Change::Touched(segment) => {
                self.active.insert(*segment);
                self.stamps.insert(*segment, self.ledger.committed.version);
            }
            Change::Stamped(segment) => drop(self.stamps.insert(*segment, self.ledger.committed.version)),
            Change::Settled(list) => {
                self.active.retain(|segment| !list.contains(segment));
                self.suspect = false;
            }
        }
    }
}

/// What the disk is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Make these changes durable, in order, after all earlier ones.
    Persist(Vec<Change>),
    /// Write whole blocks.
    Write(BlockIndex, Data),
    /// Make blocks zero.
    Zero(BlockIndex, BlockCount),
    /// Read whole blocks.
    Read(BlockIndex, BlockCount),
    /// Make all writes that have ended durable.
    Sync,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A frame came over a connection.
    Frame(LinkId, Frame),
    /// A disk operation ended; a read with its data.
    Disk(OpId, Result<Option<Data>, Failure>),
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send over that connection, if it still exists.
    Send(LinkId, Frame),
    /// Do this; answer with [`Event::Disk`].
    Disk(OpId, Op),
    /// The metadata could not be made durable. Nothing may be answered any more: stop, and open again.
    Stop,
}

#[derive(Debug)]
enum Then {
    /// Send after metadata is durable.
    Send(LinkId, Frame),
    /// Begin a data operation after metadata is durable.
    Begin(Op, LinkId, Frame),
}

/// The replica. See the module's documentation.
#[derive(Debug)]
pub struct Replica {
    meta: Metadata,
    session: SessionId,
    seq: u64,
    sent: u64,
    /// The generation of the newest write of each active segment.
    generations: BTreeMap<SegmentIndex, u64>,
    next_op: u64,
    /// Metadata on its way, oldest first, and what waits for it.
    persisting: VecDeque<(OpId, Vec<Then>)>,
    /// Data operations: who is answered.
    running: BTreeMap<OpId, (LinkId, Frame)>,
    /// A promise that waits for the old session's operations to end.
    opening: Option<(LinkId, Frame)>,
    stopped: bool,
}

impl Replica {
    /// Opens a directory; `went_down` if the machine stopped since it was open last (so that unsynced writes may be lost).
    /// Until the first [`Op::Persist`] has ended, the next open must say it again.
    pub fn open(meta: Metadata, went_down: bool, out: &mut Vec<Output>) -> Self {
        let generations = meta.active.iter().map(|segment| (*segment, 0)).collect();
        let mut replica = Self {
            meta,
            session: SessionId(0),
            seq: 0,
            sent: 0,
            generations,
            next_op: 0,
            persisting: VecDeque::new(),
            running: BTreeMap::new(),
            opening: None,
            stopped: false,
        };
        replica.persist(vec![Change::Opened(went_down)], vec![], out);
        replica.session = SessionId(u64::from(replica.meta.opened) << 32);
        replica
    }

    /// What it believes; durable once every [`Op::Persist`] has ended.
    pub fn metadata(&self) -> &Metadata {
        &self.meta
    }

    /// The only way in.
    pub fn on(&mut self, event: Event, out: &mut Vec<Output>) {
        if self.stopped {
            return;
        }
        match event {
            Event::Frame(link, frame) => {
                if frame.volume == self.meta.volume && frame.replica == self.meta.replica {
                    match frame.body {
                        Body::Ask(ask) => self.ask(link, ask, frame, out),
                        _ => self.data(link, frame, out),
                    }
                }
            }
            Event::Disk(op, result) => self.disk(op, result, out),
        }
        self.answer_opening(out);
    }

    fn ask(&mut self, link: LinkId, ask: Ask, mut frame: Frame, out: &mut Vec<Output>) {
        let before = self.meta.ledger;
        let mut ledger = before;
        let answer = ledger.on(ask);
        if ledger.promised > before.promised {
            // A new coordinator: everything active is from before it, and settled with what it settles first.
            self.generations.values_mut().for_each(|generation| *generation = 0);
            self.close();
        }
        frame.body = Body::Answer(answer, None);
        if matches!(answer, Answer::Promised { .. }) {
            self.close();
            frame.session = self.session;
            self.opening = Some((link, frame));
            if ledger != before {
                self.persist(vec![Change::Ledger(ledger)], vec![], out);
            }
            return;
        }
        let then = vec![Then::Send(link, frame)];
        if ledger != before {
            self.persist(vec![Change::Ledger(ledger)], then, out);
        } else {
            self.when_durable(then, out);
        }
    }

    /// No frame of the session so far is taken any more.
    fn close(&mut self) {
        self.session.0 += 1;
        (self.seq, self.sent) = (0, 0);
        self.opening = None;
        // Writes that have not begun will not begin: their session is over.
        for (_, then) in &mut self.persisting {
            then.retain(|then| matches!(then, Then::Send(..)));
        }
    }

    fn answer_opening(&mut self, out: &mut Vec<Output>) {
        if !self.running.is_empty() || !self.persisting.is_empty() {
            return;
        }
        let Some((link, mut frame)) = self.opening.take() else { return };
        let introduction = Introduction {
            suspect: self.meta.suspect,
            clean_until: self.meta.clean_until,
            active: self.meta.active.iter().copied().take(MAX_LIST).collect(),
        };
        if let Body::Answer(_, slot) = &mut frame.body {
            *slot = Some(Box::new(introduction));
        }
        out.push(Output::Send(link, frame));
    }

    fn data(&mut self, link: LinkId, mut frame: Frame, out: &mut Vec<Output>) {
        let epoch = frame.epoch;
        if !self.meta.ledger.admits(epoch) {
            let promised = self.meta.ledger.promised;
            frame.body = Body::Answer(Answer::Refused { epoch, promised }, None);
            self.when_durable(vec![Then::Send(link, frame)], out);
            return;
        }
        if frame.session != self.session || frame.seq != self.seq + 1 || self.opening.is_some() {
            // Of the current session, a frame is missing: it cannot go on. Of another: whoever sent it should know.
            if frame.session == self.session && frame.seq > self.seq {
                self.close();
            }
            if frame.session != self.session {
                frame.body = Body::Closed;
                out.push(Output::Send(link, frame));
            }
            return;
        }
        self.seq = frame.seq;
        let fits = |start: BlockIndex, count: u64| {
            count >= 1
                && count <= u64::from(MAX_JOB_BLOCKS)
                && start.0.checked_add(count).is_some_and(|end| end <= self.meta.blocks)
        };
        match &frame.body {
            Body::Write { job, start, data, generation, copy } => {
                let count = data.len() / BLOCK_BYTES as usize;
                if !fits(*start, count as u64) {
                    return self.reply(link, &frame, done(*job, Err(Failure::Invalid)), out);
                }
                let op = Op::Write(*start, data.clone());
                let (start, count) = (*start, BlockCount(u32::try_from(count).unwrap_or(u32::MAX)));
                self.change(op, start, count, (!copy).then_some(*generation), link, frame, out);
            }
            Body::Zero { job, start, count, generation } => {
                if !fits(*start, u64::from(count.0)) {
                    return self.reply(link, &frame, done(*job, Err(Failure::Invalid)), out);
                }
                let (start, count, generation) = (*start, *count, *generation);
                self.change(Op::Zero(start, count), start, count, Some(generation), link, frame, out);
            }
            Body::Read { job, start, count } => {
                if !fits(*start, u64::from(count.0)) {
                    return self.reply(link, &frame, done(*job, Err(Failure::Invalid)), out);
                }
                self.begin(Op::Read(*start, *count), link, frame, out);
            }
            Body::Flush { .. } => self.begin(Op::Sync, link, frame, out),
            Body::Settle { below } => {
                let old: Vec<SegmentIndex> = self
                    .generations
                    .iter()
                    .filter(|(_, newest)| *newest < below)
                    .map(|(segment, _)| *segment)
                    .collect();
                if !old.is_empty() || self.meta.suspect {
                    self.generations.retain(|_, newest| *newest >= *below);
                    self.persist(vec![Change::Settled(old)], vec![], out);
                }
            }
            Body::ListDirty { job, since, from } => {
                let newer = self.meta.stamps.range(*from..).filter(|(_, stamp)| *stamp > since);
                let list = newer.map(|(segment, _)| *segment).take(MAX_LIST).collect();
                let body = Body::Segments { job: *job, list };
                self.reply(link, &frame, body, out);
            }
            _ => {}
        }
    }

    /// A write or zeroing: metadata first where it says something new.
    fn change(
        &mut self,
        op: Op,
        start: BlockIndex,
        count: BlockCount,
        generation: Option<u64>,
        link: LinkId,
        frame: Frame,
        out: &mut Vec<Output>,
    ) {
        let version = self.meta.ledger.committed.version;
        let mut changes = vec![];
        for segment in segments(start, count) {
            let stamped = self.meta.stamps.get(&segment) == Some(&version);
            if let Some(generation) = generation {
                let newest = self.generations.entry(segment).or_default();
                *newest = generation.max(*newest);
                if !stamped || !self.meta.active.contains(&segment) {
                    changes.push(Change::Touched(segment));
                }
            } else if !stamped {
                changes.push(Change::Stamped(segment));
            }
        }
        let then = vec![Then::Begin(op, link, frame)];
        if changes.is_empty() { self.when_durable(then, out) } else { self.persist(changes, then, out) }
    }

    fn begin(&mut self, op: Op, link: LinkId, frame: Frame, out: &mut Vec<Output>) {
        let id = self.op();
        self.running.insert(id, (link, frame));
        out.push(Output::Disk(id, op));
    }

    fn op(&mut self) -> OpId {
        self.next_op += 1;
        OpId(self.next_op)
    }

    fn reply(&mut self, link: LinkId, to: &Frame, body: Body, out: &mut Vec<Output>) {
        self.sent += 1;
        let Frame { volume, replica, epoch, session, .. } = *to;
        out.push(Output::Send(link, Frame { volume, replica, epoch, session, seq: self.sent, body }));
    }

    fn persist(&mut self, changes: Vec<Change>, then: Vec<Then>, out: &mut Vec<Output>) {
        changes.iter().for_each(|change| self.meta.apply(change));
        let id = self.op();
        self.persisting.push_back((id, then));
        out.push(Output::Disk(id, Op::Persist(changes)));
    }

    /// Does it now, or after the metadata that is on its way.
    fn when_durable(&mut self, then: Vec<Then>, out: &mut Vec<Output>) {
        match self.persisting.back_mut() {
            Some((_, waiting)) => waiting.extend(then),
            None => self.then(then, out),
        }
    }

    fn then(&mut self, then: Vec<Then>, out: &mut Vec<Output>) {
        for then in then {
            match then {
                Then::Send(link, frame) => out.push(Output::Send(link, frame)),
                Then::Begin(op, link, frame) => self.begin(op, link, frame, out),
            }
        }
    }

    fn disk(&mut self, op: OpId, result: Result<Option<Data>, Failure>, out: &mut Vec<Output>) {
        if let Some((link, frame)) = self.running.remove(&op) {
            if frame.session != self.session {
                return;
            }
            let body = match (&frame.body, result) {
                (Body::Read { job, .. }, Ok(Some(data))) => Body::Data { job: *job, data },
                (body, result) => done(job_of(body), result.map(drop)),
            };
            return self.reply(link, &frame, body, out);
        }
        if result.is_err() {
            self.stopped = true;
            out.push(Output::Stop);
            return;
        }
        // Persisted in order; what waits for an older one still waits.
        let Some(at) = self.persisting.iter().position(|(id, _)| *id == op) else { return };
        if at == 0 {
            if let Some((_, then)) = self.persisting.pop_front() {
                self.then(then, out);
            }
        } else if let Some((_, then)) = self.persisting.remove(at) {
            self.persisting[at - 1].1.extend(then);
        }
    }
}

fn done(job: JobId, result: Result<(), Failure>) -> Body {
    Body::Done { job, result }
}

fn job_of(body: &Body) -> JobId {
    match body {
        Body::Write { job, .. }
        | Body::Zero { job, .. }
        | Body::Read { job, .. }
        | Body::Flush { job }
        | Body::ListDirty { job, .. } => *job,
        _ => JobId(0),
    }
}
