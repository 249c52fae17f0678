//! The replica's side: a state machine that owns one replica directory's metadata and orders what its disk does.
//!
//! [`Replica::on`] takes one event and says what is to be sent and what the disk is to do ([`crate::disk`]); the shell
//! owns sockets and files. Rules it keeps:
//!
//! - What an answer promises is durable before the answer leaves: [`Op::Persist`] first.
//! - A segment is in the durable activity log, stamped with the record's version, before a write to it is begun.
//! - Only frames of the promised epoch, of the session opened last, in their order, are taken. A new session is
//!   answered only after every disk operation of the old one has ended, so nothing old lands later.
//! - What is damaged is marked before anything takes its place, and a mark goes only when what was written there is synced ([`crate::damage`]).
//! - Before it votes for a record that removes a replica, everything that it has acknowledged is synced; and while it is
//!   suspect it does not vote to be left alone (note 0010).
//!
//! Segments stay in the activity log beyond the flush that settled them, as many as [`KEEP`]: the next write to them then waits for
//! no log. They leave it when the guest rests, when the record changes (what is settled needs no stamp), when another coordinator
//! comes, and at an orderly end. Only after a crash they are compared or copied although they are equal.
//!
//! It does not know what is in sync with what; that is the coordinator's business.

use std::collections::{BTreeMap, VecDeque};

use crate::damage::within;
use crate::disk::{Change, Done, Failure, Metadata, Op, Part};
use crate::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, Epoch, JobId, LinkId, OpId, SEGMENT_BLOCKS, SegmentIndex, SessionId,
    segments,
};
use crate::jobs::MAX_JOB_BLOCKS;
use crate::membership::{Answer, Ask, Ledger};
use crate::structure::LayerId;
use crate::wire::{Body, Frame, Introduction, MAX_LIST, Work, Yield};

/// Pieces of work that a session may have on the way. A coordinator that sends more loses it.
pub const MAX_INFLIGHT: usize = 4096;

/// Settled segments that stay in the activity log: 512 MiB to be compared after a crash.
pub const KEEP: usize = 2048;
/// Segments that enter the activity log together: whoever writes to one will write to its neighbours, and the next write to
/// any of them waits for no log. 2 MiB.
pub const GROUP: u32 = 8;

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A frame came over a connection.
    Frame(LinkId, Frame),
    /// A disk operation ended.
    Disk(OpId, Result<Done, Failure>),
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
    Begin(Op, To, Work),
    /// Answer a piece of work after metadata is durable.
    Reply(To, Result<Yield, Failure>),
}

/// Who asked, in which session, and for which job.
#[derive(Clone, Copy, Debug)]
struct To {
    link: LinkId,
    epoch: Epoch,
    session: SessionId,
    job: JobId,
}

/// A disk operation of a session.
#[derive(Debug)]
struct Running {
    to: To,
    /// Without its blocks: the operation has them.
    work: Work,
    /// What becomes true of the metadata with it.
    change: Option<Change>,
    /// What is to be done after it.
    next: Option<Op>,
    /// What is to be durable after all of it, before the answer.
    after: Vec<Change>,
}

/// The replica. See the module's documentation.
#[derive(Debug)]
pub struct Replica {
    meta: Metadata,
    session: SessionId,
    seq: u64,
    sent: u64,
    /// The generation of the newest write of each active segment, as far as it was written in this process under this
    /// epoch; zero for earlier ones, and a session that is newer than they are settles them.
    generations: BTreeMap<SegmentIndex, u64>,
    /// What was written in generations below this one is everywhere and synced.
    settled: u64,
    keep: usize,
    group: u32,
    next_op: u64,
    /// Metadata on its way, oldest first, and what waits for it.
    persisting: VecDeque<(OpId, Vec<Then>)>,
    /// Data operations, and operations on the layers.
    running: BTreeMap<OpId, Box<Running>>,
    /// A promise that waits for the old session's operations to end.
    opening: Option<(LinkId, Frame)>,
    /// A vote that waits for what is acknowledged to be synced.
    voting: Option<(OpId, LinkId, Frame)>,
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
            settled: 0,
            keep: KEEP,
            group: GROUP,
            next_op: 0,
            persisting: VecDeque::new(),
            running: BTreeMap::new(),
            opening: None,
            voting: None,
            stopped: false,
        };
        replica.persist(vec![Change::Opened(went_down)], vec![], out);
        replica.session = SessionId(u64::from(replica.meta.opened) << 32);
        replica
    }

    /// Keeps so many settled segments in the activity log, instead of [`KEEP`], and takes in so many at a time, instead of [`GROUP`].
    pub fn keep(&mut self, segments: usize, group: u32) {
        (self.keep, self.group) = (segments, group.max(1));
    }

    /// The segments that enter the activity log with this one, it included: those around it that are not there, if there is room.
    fn neighbours(&self, segment: SegmentIndex) -> impl Iterator<Item = SegmentIndex> {
        let end = self.meta.structure.blocks.div_ceil(u64::from(SEGMENT_BLOCKS));
        let room = self.meta.active.len() + self.group as usize <= MAX_LIST / 2;
        let group = if room { self.group } else { 1 };
        let first = segment.0 / group * group;
        (first..first.saturating_add(group)).filter(move |at| u64::from(*at) < end).map(SegmentIndex)
    }

    /// Segments of the activity log that are settled.
    fn settled(&self) -> Vec<SegmentIndex> {
        let old = self.generations.iter().filter(|(_, newest)| **newest < self.settled);
        old.map(|(segment, _)| *segment).collect()
    }

    /// What is to be made durable at an orderly end, when nothing is under way: then nothing has to be compared at the next beginning.
    pub fn closing(&self) -> Option<Change> {
        let list = self.settled();
        (!list.is_empty() && self.running.is_empty() && self.persisting.is_empty())
            .then_some(Change::Settled(list))
    }

    /// Takes settled segments out of the log: all, or the oldest of too many.
    fn settle(&mut self, all: bool) -> Option<Change> {
        let mut list = self.settled();
        if !all {
            if self.generations.len() <= self.keep || list.is_empty() {
                return None;
            }
            list.sort_by_key(|segment| self.generations.get(segment).copied());
            list.truncate(self.generations.len() - self.keep / 2);
        }
        for segment in &list {
            self.generations.remove(segment);
        }
        (!list.is_empty()).then_some(Change::Settled(list))
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
                        Body::Ask(ref ask) => self.ask(link, **ask, frame, out),
                        _ => self.data(link, frame, out),
                    }
                }
            }
            Event::Disk(op, result) => self.disk(op, result, out),
        }
        self.answer_opening(out);
    }

    fn ask(&mut self, link: LinkId, ask: Ask, frame: Frame, out: &mut Vec<Output>) {
        if ask.removes() && ask.epoch() >= self.meta.ledger.promised {
            // What it has acknowledged must not depend on its machine any more: it may become the last one.
            if self.voting.is_none() {
                let op = self.op();
                self.voting = Some((op, link, frame));
                out.push(Output::Disk(op, Op::Sync));
            }
            return;
        }
        self.answer(link, ask, frame, out);
    }

    fn answer(&mut self, link: LinkId, ask: Ask, mut frame: Frame, out: &mut Vec<Output>) {
        let before = self.meta.ledger;
        let mut ledger = before;
        let answer = ledger.on_replica(ask, self.meta.replica, self.meta.suspect);
        let mut first = vec![];
        if ledger.promised > before.promised {
            // A new coordinator: everything active is from before it, and settled with what it settles first.
            first.extend(self.settle(true));
            self.generations.values_mut().for_each(|generation| *generation = 0);
            self.settled = 0;
            self.close();
        } else if ledger.committed.version > before.committed.version {
            first.extend(self.settle(true));
        }
        frame.body = Body::Answer(Box::new(answer), None);
        if matches!(answer, Answer::Promised { .. }) {
            self.close();
            frame.session = self.session;
            self.opening = Some((link, frame));
            self.new_ledger(before, ledger, first, vec![], out);
            return;
        }
        self.new_ledger(before, ledger, first, vec![Then::Send(link, frame)], out);
    }

    fn new_ledger(
        &mut self,
        before: Ledger,
        ledger: Ledger,
        mut changes: Vec<Change>,
        then: Vec<Then>,
        out: &mut Vec<Output>,
    ) {
        if ledger == before {
            self.when_durable(then, out);
        } else {
            changes.push(Change::Ledger(ledger));
            self.persist(changes, then, out);
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
            forgotten: self.meta.forgotten,
            structure: self.meta.structure.clone(),
            active: self.meta.active.iter().copied().collect(),
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
            frame.body = Body::Answer(Box::new(Answer::Refused { epoch, promised }), None);
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
        let waiting: usize = self.persisting.iter().map(|(_, then)| then.len()).sum();
        if self.running.len() + waiting >= MAX_INFLIGHT {
            self.close();
            frame.body = Body::Closed;
            out.push(Output::Send(link, frame));
            return;
        }
        match frame.body {
            Body::Do(job, work) => {
                let to = To { link, epoch, session: frame.session, job };
                if let Err(failure) = self.work(work, to, out) {
                    self.reply(to, Err(failure), out);
                }
            }
            Body::Settle { below, all } => {
                self.settled = self.settled.max(below);
                if let Some(change) = self.settle(all) {
                    self.persist(vec![change], vec![], out);
                }
            }
            Body::Forget { upto }
                if upto > self.meta.forgotten && upto <= self.meta.ledger.committed.version =>
            {
                self.persist(vec![Change::Forgotten(upto)], vec![], out);
            }
            _ => {}
        }
    }

    /// Begins one piece of work, or answers it.
    fn work(&mut self, mut work: Work, to: To, out: &mut Vec<Output>) -> Result<(), Failure> {
        match &mut work {
            Work::Write { start, data, generation } => {
                let (start, generation, data) = (*start, *generation, std::mem::take(data));
                let count = self.range(start, (data.len() / BLOCK_BYTES as usize) as u64)?;
                let touched = segments(start, count);
                self.change(vec![], Op::Write(start, data), touched, Some(generation), to, work, out)?;
            }
            Work::Zero { start, count, generation } => {
                let (start, generation) = (*start, *generation);
                let count = self.range(start, u64::from(count.0))?;
                let touched = segments(start, count);
                self.change(vec![], Op::Zero(start, count), touched, Some(generation), to, work, out)?;
            }
            Work::Read { start, count } => {
                let start = *start;
                let count = self.range(start, u64::from(count.0))?;
                self.begin(Op::Read(start, count), to, work, None, out);
            }
            Work::Flush { .. } => self.begin(Op::Sync, to, work, None, out),
            Work::Operate(operation) => {
                if self.meta.structure.last.as_ref() == Some(operation) {
                    self.reply(to, Ok(Yield::Nothing), out);
                    return Ok(());
                }
                self.meta.structure.apply(operation).map_err(|_| Failure::Invalid)?;
                let change = Change::Operated(Box::new(operation.clone()));
                self.begin(Op::Operate(operation.clone()), to, work, Some(change), out);
            }
            Work::Adopt { structure, known } => {
                let change = Change::Adopted(structure.clone(), *known);
                self.begin(Op::Adopt(structure.clone(), *known), to, work, Some(change), out);
            }
            Work::Dirty { since, from, count } => {
                let newer = self.meta.stamps.range(*from..).filter(|(_, stamp)| **stamp > *since);
                let list = newer.map(|(segment, _)| *segment).take(MAX_LIST.min(*count as usize)).collect();
                self.reply(to, Ok(Yield::Segments(list)), out);
            }
            Work::Present { layer, from, count } => {
                let (layer, from) = (*layer, *from);
                self.layer(layer)?;
                let count = (*count).min(u32::try_from(MAX_LIST).unwrap_or(u32::MAX));
                self.begin(Op::Present(layer, from, count), to, work, None, out);
            }
            Work::ReadPart { layer, segment } => {
                let (layer, segment) = (*layer, *segment);
                self.place(layer, segment)?;
                self.begin(Op::ReadPart(layer, segment), to, work, None, out);
            }
            Work::Salvage { layer, segment } => {
                let (layer, segment) = (*layer, *segment);
                self.place(layer, segment)?;
                self.begin(Op::Salvage(layer, segment), to, work, None, out);
            }
            Work::WritePart { layer, segment, part, generation } => {
                let (layer, segment, generation) = (*layer, *segment, *generation);
                self.place(layer, segment)?;
                let first = self.marks(layer, segment, part.bad)?;
                let op = Op::WritePart(layer, segment, std::mem::replace(part, Part::empty()));
                self.change(first, op, std::iter::once(segment), generation, to, work, out)?;
            }
            Work::Copied { layer, .. } => {
                self.layer(*layer)?;
                self.begin(Op::Sync, to, work, None, out);
            }
            Work::Fold { layer, segment } => {
                let (layer, segment) = (*layer, *segment);
                self.place(layer, segment)?;
                if self.meta.structure.children(layer).count() != 1 {
                    return Err(Failure::Invalid);
                }
                self.begin(Op::Fold(layer, segment), to, work, None, out);
            }
            Work::Digest { layer, segment } => {
                let (layer, segment) = (*layer, *segment);
                self.place(layer, segment)?;
                self.begin(Op::Digest(layer, segment), to, work, None, out);
            }
            Work::Seal { layer, segment, checksum } => {
                let next = Some(Op::Seal(*layer, *segment, *checksum));
                self.place(*layer, *segment)?;
                // A checksum must not outlive what it is of.
                self.run(Op::Sync, Running { to, work, change: None, next, after: vec![] }, out);
            }
        }
        Ok(())
    }

    fn range(&self, start: BlockIndex, count: u64) -> Result<BlockCount, Failure> {
        let fits = count >= 1
            && count <= u64::from(MAX_JOB_BLOCKS)
            && start.0.checked_add(count).is_some_and(|end| end <= self.meta.structure.blocks);
        let count = u32::try_from(count).map_err(|_| Failure::Invalid)?;
        if fits { Ok(BlockCount(count)) } else { Err(Failure::Invalid) }
    }

    fn layer(&self, layer: LayerId) -> Result<(), Failure> {
        self.meta.structure.layer(layer).map(drop).ok_or(Failure::Invalid)
    }

    fn place(&self, layer: LayerId, segment: SegmentIndex) -> Result<(), Failure> {
        self.layer(layer)?;
        let inside = u64::from(segment.0) * u64::from(SEGMENT_BLOCKS) < self.meta.structure.blocks;
        if inside { Ok(()) } else { Err(Failure::Invalid) }
    }

    /// What is to be said of damage there that is not known yet; too much of it is an error of the disk.
    fn marks(&self, layer: LayerId, segment: SegmentIndex, bad: u64) -> Result<Vec<Change>, Failure> {
        let new = bad & !self.meta.damage.of(layer, segment);
        match new {
            0 => Ok(vec![]),
            _ if self.meta.damage.has_room(layer, segment) => Ok(vec![Change::Damaged(layer, segment, new)]),
            _ => Err(Failure::Io),
        }
    }

    /// What is not damaged any more once this is done, and synced.
    fn heals(&self, op: &Op) -> Vec<Change> {
        let (head, damage) = (self.meta.structure.head, &self.meta.damage);
        let heal = |layer, segment, written| {
            let healed = damage.of(layer, segment) & written;
            (healed != 0).then_some(Change::Healed(layer, segment, healed))
        };
        let (start, count) = match op {
            _ if damage.is_empty() => return vec![],
            Op::WritePart(layer, segment, part) => {
                return heal(*layer, *segment, !part.bad).into_iter().collect();
            }
            Op::Write(start, data) => {
                (*start, BlockCount(u32::try_from(data.len() / BLOCK_BYTES as usize).unwrap_or(0)))
            }
            Op::Zero(start, count) => (*start, *count),
            _ => return vec![],
        };
        segments(start, count).filter_map(|at| heal(head, at, within(at, start, count))).collect()
    }

    /// A write or zeroing, after these changes of the metadata and those that it needs itself.
    fn change(
        &mut self,
        mut changes: Vec<Change>,
        op: Op,
        touched: impl Iterator<Item = SegmentIndex>,
        generation: Option<u64>,
        to: To,
        work: Work,
        out: &mut Vec<Output>,
    ) -> Result<(), Failure> {
        for segment in touched {
            let stamped = self.meta.is_stamped(segment);
            if let Some(generation) = generation {
                let active = self.meta.active.contains(&segment);
                if !active && self.meta.active.len() >= MAX_LIST {
                    return Err(Failure::Invalid);
                }
                if !active {
                    for near in self.neighbours(segment).collect::<Vec<_>>() {
                        if near != segment && !self.meta.active.contains(&near) {
                            self.generations.entry(near).or_default();
                            changes.push(Change::Entered(near));
                        }
                    }
                }
                let newest = self.generations.entry(segment).or_default();
                *newest = generation.max(*newest);
                if !stamped || !active {
                    changes.push(Change::Touched(segment));
                }
            } else if !stamped {
                changes.push(Change::Stamped(segment));
            }
        }
        if changes.is_empty() && self.persisting.is_empty() {
            self.begin(op, to, work, None, out);
            return Ok(());
        }
        let then = vec![Then::Begin(op, to, work)];
        if changes.is_empty() {
            self.when_durable(then, out)
        } else {
            self.persist(changes, then, out)
        }
        Ok(())
    }

    fn begin(&mut self, op: Op, to: To, work: Work, change: Option<Change>, out: &mut Vec<Output>) {
        // A mark goes only when what was written in its place cannot be lost any more.
        let after = self.heals(&op);
        let next = (!after.is_empty()).then_some(Op::Sync);
        self.run(op, Running { to, work, change, next, after }, out);
    }

    fn run(&mut self, op: Op, running: Running, out: &mut Vec<Output>) {
        let id = self.op();
        self.running.insert(id, Box::new(running));
        out.push(Output::Disk(id, op));
    }

    fn op(&mut self) -> OpId {
        self.next_op += 1;
        OpId(self.next_op)
    }

    fn reply(&mut self, to: To, result: Result<Yield, Failure>, out: &mut Vec<Output>) {
        self.sent += 1;
        let To { link, epoch, session, job } = to;
        let (volume, replica) = (self.meta.volume, self.meta.replica);
        let body = Body::Done(job, result);
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
                Then::Begin(op, to, work) => self.begin(op, to, work, None, out),
                Then::Reply(to, result) => self.reply(to, result, out),
            }
        }
    }

    fn disk(&mut self, op: OpId, result: Result<Done, Failure>, out: &mut Vec<Output>) {
        if let Some((_, link, frame)) = self.voting.take_if(|(id, ..)| *id == op) {
            // Without the sync there is no vote; it will be asked for again.
            if let (Ok(_), Body::Ask(ask)) = (result, &frame.body) {
                let ask = **ask;
                self.answer(link, ask, frame, out);
            }
            return;
        }
        if let Some(running) = self.running.remove(&op) {
            self.ended(*running, result, out);
            return;
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

    /// An operation of a session ended: that session may be over.
    fn ended(&mut self, running: Running, result: Result<Done, Failure>, out: &mut Vec<Output>) {
        let Running { to, work, change, next, after } = running;
        if let (Ok(_), Some(change)) = (&result, change) {
            // It is done whoever asked for it.
            self.meta.apply(&change);
            self.generations.clear();
        }
        if to.session != self.session {
            return;
        }
        if let (Ok(_), Some(next)) = (&result, next) {
            self.run(next, Running { to, work, change: None, next: None, after }, out);
            return;
        }
        let damaged = match (&work, &result) {
            (Work::Salvage { layer, segment }, Ok(Done::Part(part))) => {
                self.marks(*layer, *segment, part.bad)
            }
            (Work::Fold { layer, segment }, Ok(Done::Damaged(bad))) => {
                let child = self.meta.structure.children(*layer).next().map(|child| child.id);
                child.map_or(Err(Failure::Invalid), |child| self.marks(child, *segment, *bad))
            }
            _ => Ok(vec![]),
        };
        let result = damaged.and_then(|damaged| result.map(|done| (damaged, done)));
        let mut changes = after;
        let result = result.and_then(|(damaged, done)| {
            changes.extend(damaged);
            self.yields(&work, done)
        });
        match (&work, &result) {
            (Work::Flush { trust: true }, Ok(_)) if self.meta.suspect => changes.push(Change::Trusted),
            (Work::Copied { layer, below }, Ok(_)) => changes.push(Change::Copied(*layer, *below)),
            (_, Ok(_)) => {}
            (_, Err(_)) => changes.clear(),
        }
        if changes.is_empty() {
            self.reply(to, result, out);
        } else {
            self.persist(changes, vec![Then::Reply(to, result)], out);
        }
    }

    /// The answer to a piece of work that is done.
    fn yields(&self, work: &Work, done: Done) -> Result<Yield, Failure> {
        match (work, done) {
            (Work::Read { .. }, Done::Data(data)) => Ok(Yield::Data(data)),
            (Work::ReadPart { .. } | Work::Salvage { .. }, Done::Part(part)) => Ok(Yield::Part(part)),
            (Work::Present { layer, from, count }, Done::Segments(list)) => {
                let limit = MAX_LIST.min(*count as usize);
                Ok(Yield::Segments(self.meta.damage.listed(*layer, *from, list, limit)))
            }
            (Work::Digest { .. }, Done::Digest(digest)) => Ok(Yield::Digest(digest)),
            (Work::Adopt { .. }, _) => {
                let missing = self.meta.partial.iter().map(|(id, partial)| (*id, partial.clone()));
                Ok(Yield::Missing(missing.collect()))
            }
            (_, Done::Nothing) | (Work::Fold { .. }, Done::Damaged(_)) => Ok(Yield::Nothing),
            _ => Err(Failure::Io),
        }
    }
}
