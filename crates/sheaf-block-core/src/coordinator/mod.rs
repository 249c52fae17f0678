//! The coordinator's side: a state machine that takes a guest's requests and keeps the replicas equal.
//!
//! [`Coordinator::on`] takes one event with the time, and says what is to be sent and answered; the shell owns sockets
//! and calls again at [`Coordinator::wake`]. It goes through [`Phase`]: attaching (note 0010), recovering (the
//! segments of the activity logs are made equal), serving. Nothing is resent by timers of its own: after every event
//! `settle` looks at what is owed and does it, so that a lost message is healed by the same code that sent it first.
//!
//! - A write is sent to every in-sync replica, and to one that is being rebuilt where its copy is already made; it is
//!   acknowledged when all of [`Proposer::must_ack`](crate::membership::Proposer::must_ack) have it. A replica that
//!   does not answer is removed first, durably.
//! - Overlapping work runs in order ([`crate::jobs`]); so a read sees only what was acknowledged or was there before.
//! - Requests have a deadline: the guest then gets an error, while the work itself goes on, because replicas may have
//!   it already and must end equal.
//!
//! **Not finished**: the simulator knows a seed after which replicas differ (the ignored test in `tests/sim.rs`). Not
//! to be used for data before that passes.
//!
//! What it does not do yet: snapshots, expansion, checksums with read-repair.

mod io;
mod member;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, Epoch, JobId, ReplicaId, ReplicaSet, SegmentIndex, SessionId, Time,
    Token, VolumeId,
};
use crate::jobs::{Access, ActiveJobs, MAX_JOB_BLOCKS};
use crate::membership::{Answer, Ask, Proposer, Standing, Voter};
use crate::wire::{Body, Data, Frame, Introduction};

#[allow(missing_docs)] // The fields are said here once.
/// What a guest wants. Offsets and lengths in bytes, multiples of a sector; at most [`MAX_REQUEST_BYTES`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Read so many bytes.
    Read { offset: u64, len: u32 },
    /// Write these.
    Write { offset: u64, data: Data },
    /// Make them zero.
    WriteZeroes { offset: u64, len: u32 },
    /// The content is not needed: whole blocks inside become zero, the rest stays.
    Discard { offset: u64, len: u32 },
    /// Make everything acknowledged so far durable on all in-sync replicas.
    Flush,
}

/// Bytes of the largest request; with its edges it fits a job.
pub const MAX_REQUEST_BYTES: u32 = (MAX_JOB_BLOCKS - 1) * BLOCK_BYTES;

/// Why a request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// Outside the volume, over the limit, or not whole sectors.
    #[error("the request does not fit the volume")]
    Invalid,
    /// More requests than [`Limits::requests`] at a time.
    #[error("too many requests at a time")]
    Busy,
    /// No answer in time. A write may or may not be there; it is the same on all replicas.
    #[error("the replicas did not answer in time")]
    TimedOut,
    /// All replicas failed to read it.
    #[error("no replica could read the data")]
    Io,
    /// The volume is attached elsewhere.
    #[error("the volume was taken over by another coordinator")]
    Fenced,
    /// The last in-sync replica came back without writes that were acknowledged but not flushed.
    #[error("the last in-sync replica lost unsynced writes; detach and attach the volume")]
    LostUnsynced,
}

/// Bounds and times, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests at a time.
    pub requests: usize,
    /// Segments in the activity log; at half of it, a flush of our own begins.
    pub active_segments: usize,
    /// How long a guest waits at most.
    pub request_deadline: u64,
    /// How long a replica may take for one piece of work before the session is opened anew.
    pub reply_deadline: u64,
    /// How long a replica may be away before its loss is recorded.
    pub grace: u64,
    /// When a question of membership is asked again.
    pub resend: u64,
    /// Pause between two copies of a rebuild while the guest is busy.
    pub rebuild_pause: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 1024,
            active_segments: 4096,
            request_deadline: 60_000_000,
            reply_deadline: 4_000_000,
            grace: 8_000_000,
            resend: 500_000,
            rebuild_pause: 2_000,
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The guest asks.
    Guest(Token, Request),
    /// A frame came from a replica.
    Frame(ReplicaId, Frame),
    /// The API's record answers a question of membership.
    Api(Answer),
    /// The connection to a replica is gone; sending tries to connect again.
    Lost(ReplicaId),
    /// A replica was added to the volume, empty.
    Added(ReplicaId),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send to a replica.
    Send(ReplicaId, Frame),
    /// Ask the API's record.
    AskApi(Ask),
    /// Answer the guest; a read with its bytes.
    Complete(Token, Result<Option<Data>, RequestError>),
}

/// How far the volume is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Promises are being gathered, or members are missing.
    Attaching,
    /// These segments are still to be made equal, from this replica.
    Recovering {
        /// The replica whose content counts.
        source: ReplicaId,
        /// Segments to copy to the others.
        left: BTreeSet<SegmentIndex>,
    },
    /// Requests are served.
    Serving,
    /// Another has the volume.
    Fenced(Epoch),
    /// Unsynced writes are lost; only a new attach helps, as for a disk that lost power.
    Failed,
}

/// The conversation with one replica.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Link {
    /// A session is being opened; when it was asked for.
    Opening(Option<Time>),
    /// It is open.
    Open { session: SessionId, seq: u64 },
}

#[derive(Debug)]
struct Peer {
    link: Link,
    /// Since when nothing good was heard.
    trouble: Option<Time>,
    /// Times in a row that it failed.
    strikes: u32,
    introduction: Option<Introduction>,
    asked: Option<(Ask, Time)>,
    /// Not before this time is a rebuild begun.
    rest_until: Time,
}

/// Work on the way; see `io`.
#[derive(Debug)]
struct Job {
    token: Option<Token>,
    deadline: Time,
    goal: Goal,
    stage: Stage,
    /// The rebuilding replica that must have it too.
    joining: Option<ReplicaId>,
}

/// What a job is for.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Goal {
    Read { start: BlockIndex, count: BlockCount, skip: usize, len: usize },
    Write { start: BlockIndex, count: BlockCount, skip: usize, data: Data, generation: u64 },
    Zero { start: BlockIndex, count: BlockCount, generation: u64 },
    Flush { below: u64 },
    Copy { segment: SegmentIndex, source: ReplicaId },
    List { since: crate::ids::Version, from: SegmentIndex },
}

/// How far a job is, and what that stage owes.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    /// Earlier work first.
    Waiting,
    /// One replica is to answer.
    Asking { sent: Option<(ReplicaId, SessionId, Time)> },
    /// All that must are to do it.
    Spreading {
        body: Body,
        sent: BTreeMap<ReplicaId, (SessionId, Time)>,
        acked: BTreeMap<ReplicaId, SessionId>,
    },
}

/// A replica on its way back.
#[derive(Debug)]
struct Joining {
    replica: ReplicaId,
    stage: JoinStage,
    next_copy: Time,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum JoinStage {
    /// The list of what it missed is being made; until then nothing of it is trusted.
    Listing(BTreeSet<SegmentIndex>),
    /// These segments are still to be copied.
    Copying(BTreeSet<SegmentIndex>),
    /// Everything is there; it is being synced.
    Syncing,
    /// Its joining is being decided.
    Proposed,
}

/// The coordinator of one volume. See the module's documentation.
#[derive(Debug)]
pub struct Coordinator {
    volume: VolumeId,
    blocks: u64,
    local: Option<ReplicaId>,
    limits: Limits,
    now: Time,
    proposer: Proposer,
    peers: BTreeMap<ReplicaId, Peer>,
    api_asked: Option<(Ask, Time)>,
    phase: Phase,
    /// Requests that came before the volume is served, or wait for room in the activity log.
    queue: VecDeque<(Token, Request, Time)>,
    jobs: BTreeMap<JobId, Job>,
    order: ActiveJobs,
    next_job: u64,
    /// Members whose loss is to be recorded; they get no data any more.
    leaving: ReplicaSet,
    joining: Option<Joining>,
    /// Flushes begun so far; writes carry it.
    generation: u64,
    /// Segments that replicas have in their activity logs because of us, with the newest write's generation.
    active: BTreeMap<SegmentIndex, u64>,
    flushing: bool,
    /// After recovery: the first flush settles what earlier coordinators left.
    recovered: bool,
}

impl Coordinator {
    /// Begins to attach. `replicas` are all that the volume is known to have; `local` is read from first.
    pub fn new(
        volume: VolumeId,
        blocks: u64,
        epoch: Epoch,
        replicas: ReplicaSet,
        local: Option<ReplicaId>,
        limits: Limits,
        now: Time,
    ) -> Self {
        let mut this = Self {
            volume,
            blocks,
            local,
            limits,
            now,
            proposer: Proposer::new(epoch),
            peers: BTreeMap::new(),
            api_asked: None,
            phase: Phase::Attaching,
            queue: VecDeque::new(),
            jobs: BTreeMap::new(),
            order: ActiveJobs::default(),
            next_job: 0,
            leaving: ReplicaSet::EMPTY,
            joining: None,
            generation: 1,
            active: BTreeMap::new(),
            flushing: false,
            recovered: false,
        };
        replicas.iter().for_each(|id| this.add_peer(id));
        this
    }

    /// How far the volume is.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The membership as this coordinator knows it.
    pub fn membership(&self) -> crate::membership::Membership {
        self.proposer.membership()
    }

    /// Whether nothing is on its way and every known replica is in sync.
    pub fn is_healthy(&self) -> bool {
        self.phase == Phase::Serving
            && self.joining.is_none()
            && self.proposer.proposed().is_none()
            && self
                .peers
                .keys()
                .all(|id| self.proposer.membership().in_sync.contains(*id) && self.is_usable(*id))
    }

    /// When [`Event::Tick`] is wanted next.
    pub fn wake(&self) -> Time {
        self.now.after(self.limits.resend.min(self.limits.rebuild_pause.max(1_000)))
    }

    /// The only way in.
    pub fn on(&mut self, now: Time, event: Event, out: &mut Vec<Output>) {
        self.now = now.max(self.now);
        match event {
            Event::Guest(token, request) => self.guest(token, request, out),
            Event::Frame(from, frame) => self.frame(from, frame, out),
            Event::Api(answer) => drop(self.proposer.on(Voter::Api, answer)),
            Event::Lost(id) => self.lose(id),
            Event::Added(id) => self.add_peer(id),
            Event::Tick => {}
        }
        self.settle(out);
    }

    fn frame(&mut self, from: ReplicaId, frame: Frame, out: &mut Vec<Output>) {
        if frame.volume != self.volume || frame.replica != from || frame.epoch != self.proposer.epoch() {
            return;
        }
        match frame.body {
            Body::Answer(answer, introduction) => {
                self.proposer.on(Voter::Replica(from), answer);
                if let (Answer::Promised { .. }, Some(introduction)) = (answer, introduction) {
                    self.opened(from, frame.session, *introduction);
                }
            }
            Body::Closed => {
                // The frame that was refused says which session; a later one is not concerned.
                if self.session(from) == Some(frame.session) {
                    self.lose(from);
                }
            }
            body => {
                if self.session(from) == Some(frame.session) {
                    self.reply(from, frame.session, body, out);
                }
            }
        }
    }

    /// Does everything that is owed now. Idempotent; runs after every event.
    fn settle(&mut self, out: &mut Vec<Output>) {
        if let Standing::Fenced(by) = self.proposer.standing() {
            self.phase = Phase::Fenced(by);
        }
        let error = match self.phase {
            Phase::Fenced(_) => Some(RequestError::Fenced),
            Phase::Failed => Some(RequestError::LostUnsynced),
            _ => None,
        };
        if let Some(error) = error {
            let waiting = self.queue.drain(..).map(|(token, ..)| token);
            let tokens: Vec<Token> =
                waiting.chain(self.jobs.values_mut().filter_map(|job| job.token.take())).collect();
            out.extend(tokens.into_iter().map(|token| Output::Complete(token, Err(error))));
            self.jobs.clear();
            self.order = ActiveJobs::default();
            return;
        }
        self.expire(out);
        self.membership_step(out);
        self.phase_step(out);
        self.join_step(out);
        self.pump(out);
    }

    /// What must hold after every event.
    pub fn check(&self) {
        assert_eq!(self.jobs.len(), self.order.len(), "a job is known to both or to neither");
        assert!(self.jobs.len() + self.queue.len() <= self.limits.requests + 8, "bounded");
        assert!(self.active.len() <= self.limits.active_segments + 8, "the activity log is bounded");
        if self.phase == Phase::Serving {
            assert_eq!(self.proposer.standing(), Standing::Holding, "only the holder serves");
        }
        if matches!(self.phase, Phase::Fenced(_) | Phase::Failed) {
            return;
        }
        let members = self.proposer.membership().in_sync;
        assert!(
            self.leaving.is_empty() || self.leaving.iter().all(|id| members.contains(id)),
            "only members leave"
        );
        assert!(self.leaving.len() < members.len().max(1), "the last copy does not leave");
        if let Some(joining) = &self.joining {
            assert!(!members.contains(joining.replica), "who is in sync does not join");
        }
    }
}
