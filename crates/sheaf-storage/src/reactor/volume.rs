//! A volume attached here: its coordinator, and guests' requests cut to what a coordinator takes. Owned by the reactor.
//!
//! A guest's request is a *parent*: its parts are given to the coordinator, at most [`PARTS`] of one at a time and
//! [`REQUESTS`] of the volume; what is beyond waits here. With FUA a flush follows the last part. The parent is answered
//! once, when nothing of it is under way.

use std::collections::{BTreeMap, HashMap, VecDeque};

use sheaf_block_core::coordinator::{Coordinator, Event, Limits, Output, Phase, Request, RequestError};
use sheaf_block_core::disk::Data;
use sheaf_block_core::ids::{
    BLOCK_BYTES, CoordinatorId, Epoch, ReplicaId, ReplicaSet, Time, Token, VolumeId,
};
use sheaf_block_core::membership::Ask;
use sheaf_block_core::structure::Kind;
use sheaf_block_core::wire::Frame;

use super::io::{Io, Work};
use crate::api::{Attach, ReplicaAt};
use crate::frontend::{Asked, Completion, Failed};

/// Parts of one request under way.
const PARTS: u32 = 16;
/// Parts of all requests of a volume under way.
const REQUESTS: usize = 512;
/// Bytes of a part.
const PART: u64 = 512 << 10;

/// What the reactor must do for it.
#[derive(Debug)]
pub(crate) enum Need {
    Send(ReplicaId, Frame),
    AskApi(Ask),
    /// It must be attached again, with a higher epoch.
    Again,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Read,
    Zero,
    Discard,
}

#[derive(Debug)]
struct Parent {
    guest: u32,
    cookie: u64,
    /// More parts come from the frontend.
    open: bool,
    under_way: u32,
    /// What is still to be cut: kind, offset, bytes.
    rest: Option<(What, u64, u64)>,
    fua: bool,
    failed: Option<Failed>,
    /// What was read, by part.
    data: Vec<Option<Data>>,
}

/// Why a coordinator is asked.
#[derive(Clone, Copy, Debug)]
enum Cause {
    Part(u32, u32),
    /// Not a guest's: what was asked over the control socket, by its number there; zero is the flush before a detach.
    Order(u64),
}

/// A connection to a peer, or when one may be tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Peer {
    Link(u32),
    Rest(Time),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct VolumeShell {
    pub(crate) id: VolumeId,
    pub(crate) attach: Attach,
    pub(crate) epoch: Epoch,
    pub(crate) machine: Coordinator,
    pub(crate) peers: HashMap<ReplicaId, Peer>,
    pub(crate) next_tick: Time,
    pub(crate) arbiter_asked: bool,
    /// Who waits for the flush before the detach.
    pub(crate) detaching: bool,
    parents: Vec<Option<Parent>>,
    free: Vec<u32>,
    /// The write that each guest is in the middle of.
    writing: HashMap<u32, u32>,
    /// What the coordinator has not answered, in the order in which it was asked: another coordinator is asked again.
    causes: BTreeMap<u64, (Cause, Request)>,
    next_order: u64,
    /// Answers to orders that nobody has taken yet.
    pub(crate) ordered: HashMap<u64, Result<(), RequestError>>,
    waiting: VecDeque<(Cause, Request)>,
    next_token: u64,
    unsettled: bool,
    /// Room for what the coordinator says.
    out: Vec<Output>,
    /// Requests of guests answered, and failed.
    pub(crate) answered: u64,
    pub(crate) failures: u64,
}

fn failed(error: RequestError) -> Failed {
    match error {
        RequestError::Invalid => Failed::Invalid,
        RequestError::NoSpace => Failed::NoSpace,
        _ => Failed::Io,
    }
}

impl VolumeShell {
    pub(crate) fn new(
        id: VolumeId,
        attach: Attach,
        number: u64,
        holder: CoordinatorId,
        local: Option<ReplicaId>,
        now: Time,
    ) -> Self {
        let epoch = Epoch { number, holder };
        let replicas = attach.replicas.iter().map(|at| ReplicaId(at.id));
        // Longer lists were refused before.
        let replicas = ReplicaSet::of(replicas).unwrap_or_default();
        let machine = Coordinator::new(id, epoch, replicas, local, Limits::default(), now);
        Self {
            id,
            attach,
            epoch,
            machine,
            peers: HashMap::new(),
            next_tick: now,
            arbiter_asked: false,
            detaching: false,
            parents: Vec::new(),
            free: Vec::new(),
            writing: HashMap::new(),
            causes: BTreeMap::new(),
            next_order: 0,
            ordered: HashMap::new(),
            waiting: VecDeque::new(),
            next_token: 0,
            unsettled: false,
            out: Vec::new(),
            answered: 0,
            failures: 0,
        }
    }

    /// Where a replica is.
    pub(crate) fn replica(&self, id: ReplicaId) -> Option<&ReplicaAt> {
        self.attach.replicas.iter().find(|at| at.id == id.0)
    }

    /// Guests' requests that are not answered.
    pub(crate) fn requests(&self) -> usize {
        self.parents.len() - self.free.len()
    }

    /// One event for the coordinator, which acts on it when it is settled: once for all that came together.
    pub(crate) fn on(&mut self, io: &mut Io, event: Event, needs: &mut Vec<Need>) {
        if !std::mem::replace(&mut self.unsettled, true) {
            io.unsettled.push(self.id);
        }
        let mut out = std::mem::take(&mut self.out);
        self.machine.take(io.now(), event, &mut out);
        self.outputs(io, &mut out, needs);
        self.out = out;
    }

    /// All that follows from what has come.
    pub(crate) fn settled(&mut self, io: &mut Io, needs: &mut Vec<Need>) {
        if !std::mem::take(&mut self.unsettled) {
            return;
        }
        let mut out = std::mem::take(&mut self.out);
        self.machine.settle(&mut out);
        self.outputs(io, &mut out, needs);
        self.out = out;
        if *self.machine.phase() == Phase::Again {
            needs.push(Need::Again);
        }
        // An idle volume costs nothing.
        let now = io.now();
        let pause = self.machine.wake().map_or(60_000_000, |at| at.0.saturating_sub(now.0).max(1_000));
        self.next_tick = now.after(pause);
    }

    fn outputs(&mut self, io: &mut Io, out: &mut Vec<Output>, needs: &mut Vec<Need>) {
        for output in out.drain(..) {
            match output {
                Output::Send(to, frame) => needs.push(Need::Send(to, frame)),
                Output::AskApi(ask) => needs.push(Need::AskApi(ask)),
                Output::Complete(token, result) => self.completed(io, token, result),
            }
        }
    }

    /// Another coordinator takes over, with a higher epoch: what was not answered is asked again, in order.
    pub(crate) fn succeed(
        &mut self,
        io: &mut Io,
        number: u64,
        holder: CoordinatorId,
        local: Option<ReplicaId>,
    ) {
        self.epoch = Epoch { number, holder };
        let replicas =
            ReplicaSet::of(self.attach.replicas.iter().map(|at| ReplicaId(at.id))).unwrap_or_default();
        self.machine = Coordinator::new(self.id, self.epoch, replicas, local, Limits::default(), io.now());
        self.next_tick = io.now();
        // What the old one was still to be asked is among them.
        let id = self.id;
        io.work.retain(|work| !matches!(work, Work::Volume(of, _) if *of == id));
        for (token, (_, request)) in &self.causes {
            io.work.push_back(Work::Volume(self.id, Event::Guest(Token(*token), request.clone())));
        }
    }

    /// What a guest asks.
    pub(crate) fn asked(&mut self, io: &mut Io, guest: u32, asked: Asked) {
        match asked {
            Asked::Read { cookie, offset, len } => {
                let parent = self.open(guest, cookie, false);
                self.cut(io, parent, What::Read, offset, len);
            }
            Asked::Zero { cookie, offset, len, fua } => {
                let parent = self.open(guest, cookie, fua);
                self.cut(io, parent, What::Zero, offset, len);
            }
            Asked::Discard { cookie, offset, len, fua } => {
                let parent = self.open(guest, cookie, fua);
                self.cut(io, parent, What::Discard, offset, len);
            }
            Asked::Flush { cookie } => {
                let parent = self.open(guest, cookie, false);
                self.part(io, parent, Request::Flush);
                self.close(io, parent);
            }
            Asked::WriteBegin { cookie, fua } => {
                let parent = self.open(guest, cookie, fua);
                self.writing.insert(guest, parent);
            }
            Asked::WritePart { offset, data } => {
                if let Some(parent) = self.writing.get(&guest).copied() {
                    self.part(io, parent, Request::Write { offset, data });
                }
            }
            Asked::WriteEnd => {
                if let Some(parent) = self.writing.remove(&guest) {
                    self.close(io, parent);
                }
            }
            Asked::Fail { cookie, with } => {
                io.work.push_back(Work::Guest(guest, Completion { cookie, result: Err(with) }));
            }
            Asked::Leave => {}
        }
    }

    /// A guest has gone: its requests go on, nobody hears of them.
    pub(crate) fn gone(&mut self, io: &mut Io, guest: u32) {
        if let Some(parent) = self.writing.remove(&guest) {
            self.close(io, parent);
        }
        for parent in self.parents.iter_mut().flatten().filter(|parent| parent.guest == guest) {
            parent.guest = u32::MAX;
            parent.rest = None;
        }
    }

    fn open(&mut self, guest: u32, cookie: u64, fua: bool) -> u32 {
        let parent = Parent {
            guest,
            cookie,
            open: true,
            under_way: 0,
            rest: None,
            fua,
            failed: None,
            data: Vec::new(),
        };
        if let Some(slot) = self.free.pop() {
            self.parents[slot as usize] = Some(parent);
            return slot;
        }
        self.parents.push(Some(parent));
        u32::try_from(self.parents.len() - 1).unwrap_or(u32::MAX)
    }

    fn cut(&mut self, io: &mut Io, id: u32, what: What, offset: u64, len: u32) {
        if let Some(parent) = &mut self.parents[id as usize] {
            parent.rest = Some((what, offset, u64::from(len)));
        }
        self.cut_more(io, id);
        self.close(io, id);
    }

    fn cut_more(&mut self, io: &mut Io, id: u32) {
        while let Some(parent) = &mut self.parents[id as usize]
            && parent.under_way < PARTS
            && let Some((what, offset, left)) = parent.rest
        {
            // At borders of parts, so that blocks are not cut.
            let len = left.min(PART - offset % PART);
            parent.rest = (left > len).then_some((what, offset + len, left - len));
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            let request = match what {
                What::Read => Request::Read { offset, len },
                What::Zero => Request::WriteZeroes { offset, len },
                What::Discard => Request::Discard { offset, len },
            };
            self.part(io, id, request);
        }
    }

    fn part(&mut self, io: &mut Io, id: u32, request: Request) {
        let Some(parent) = &mut self.parents[id as usize] else { return };
        parent.under_way += 1;
        let number = u32::try_from(parent.data.len()).unwrap_or(u32::MAX);
        if matches!(request, Request::Read { .. }) {
            parent.data.push(None);
        }
        self.ask(io, Cause::Part(id, number), request);
    }

    fn ask(&mut self, io: &mut Io, cause: Cause, request: Request) {
        if self.causes.len() >= REQUESTS {
            self.waiting.push_back((cause, request));
            return;
        }
        self.next_token += 1;
        self.causes.insert(self.next_token, (cause, request.clone()));
        io.work.push_back(Work::Volume(self.id, Event::Guest(Token(self.next_token), request)));
    }

    /// Something that is not a guest's; the answer will be in `ordered`, by the number that is returned.
    pub(crate) fn order(&mut self, io: &mut Io, request: Request) -> u64 {
        self.next_order += 1;
        self.ask(io, Cause::Order(self.next_order), request);
        self.next_order
    }

    fn completed(&mut self, io: &mut Io, token: Token, result: Result<Option<Data>, RequestError>) {
        let Some((cause, request)) = self.causes.remove(&token.0) else { return };
        if let Some((cause, next)) = self.waiting.pop_front() {
            self.ask(io, cause, next);
        }
        let (id, number) = match cause {
            Cause::Part(id, number) => (id, number),
            Cause::Order(number) => {
                if let (Ok(_), Request::Operate(Kind::Expand(blocks))) = (&result, &request) {
                    self.attach.bytes = blocks * u64::from(BLOCK_BYTES);
                }
                self.ordered.insert(number, result.map(drop));
                return;
            }
        };
        let Some(parent) = &mut self.parents[id as usize] else { return };
        parent.under_way -= 1;
        match result {
            Ok(data) => {
                if let (Some(data), Some(place)) = (data, parent.data.get_mut(number as usize)) {
                    *place = Some(data);
                }
            }
            Err(error) => {
                tracing::warn!(volume = self.attach.name, %error, "a guest's request failed");
                parent.failed.get_or_insert(failed(error));
                parent.rest = None;
            }
        }
        self.cut_more(io, id);
        self.settle(io, id);
    }

    fn close(&mut self, io: &mut Io, id: u32) {
        if let Some(parent) = &mut self.parents[id as usize] {
            parent.open = false;
        }
        self.settle(io, id);
    }

    /// Answers a parent of which nothing is left.
    fn settle(&mut self, io: &mut Io, id: u32) {
        let Some(parent) = &mut self.parents[id as usize] else { return };
        if parent.open || parent.under_way > 0 || parent.rest.is_some() {
            return;
        }
        if std::mem::take(&mut parent.fua) && parent.failed.is_none() {
            return self.part(io, id, Request::Flush);
        }
        let Some(parent) = self.parents[id as usize].take() else { return };
        self.free.push(id);
        self.answered += 1;
        let result = match parent.failed {
            Some(failed) => Err(failed),
            None => Ok(parent.data.into_iter().flatten().collect()),
        };
        self.failures += u64::from(result.is_err());
        io.work.push_back(Work::Guest(parent.guest, Completion { cookie: parent.cookie, result }));
    }
}
