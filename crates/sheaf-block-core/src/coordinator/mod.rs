//! The coordinator's side: a state machine that takes a guest's requests and keeps the replicas equal.
//!
//! [`Coordinator::on`] takes one event with the time, and says what is to be sent and answered; the shell owns sockets
//! and calls again at [`Coordinator::wake`]. Events that came together may be taken in one after the other
//! ([`Coordinator::take`]) before all that follows from them is done at once ([`Coordinator::settle`]). It goes through [`Phase`]: attaching (note 0010), recovering (the layers
//! and the segments of the activity logs are made equal), serving. Nothing is resent by timers of its own: after every
//! event `settle` looks at what is owed and does it, so that a lost message is healed by the same code that sent it first.
//!
//! - A write is sent to every in-sync replica, and to one that is being rebuilt where its copy is already made; it is
//!   acknowledged when all of [`Proposer::must_ack`](crate::membership::Proposer::must_ack) have it. A replica that
//!   does not answer is removed first, durably.
//! - Overlapping work runs in order ([`crate::jobs`]); so a read sees only what was acknowledged or was there before.
//! - Requests have a deadline: the guest then gets an error, while the work itself goes on, because replicas may have
//!   it already and must end equal.
//! - Operations on the layers run alone, between a flush and everything later ([`crate::structure`]).
//!
//! A process that holds coordinators may be replaced: whoever kept the unanswered requests gives them to the next
//! coordinator, in their order. A write that is done twice that way was not acknowledged, so nothing later relied on it.
//!
//! Files: `limits`, `io` (requests to jobs), `work` (jobs to frames and back), `member` (sessions, losses), `recover`, `join`
//! (rebuild), `layers` (operations, folding, checks), `rescue` (what nobody can read).

mod counts;
mod io;
mod join;
mod layers;
mod limits;
mod member;
mod recover;
mod rescue;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::disk::{Data, Digest, Part};
use crate::each::Each;
use crate::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, Epoch, JobId, ReplicaId, ReplicaSet, SegmentIndex, SessionId, Time,
    Token, Version, VolumeId,
};
use crate::jobs::{ActiveJobs, MAX_JOB_BLOCKS};
use crate::membership::{Answer, Ask, Proposer, Standing, Voter};
use crate::structure::{Kind, LayerId, Operation, Refused, Structure};
use crate::wire::{Body, Frame, Introduction, Work};
pub use counts::Counts;
use join::Joining;
use layers::{Folding, Scrub};
pub use limits::Limits;

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
    /// Change the layers, once everything before is durable. Not by the guest, but in order with what it does.
    Operate(Kind),
    /// Compare all replicas' snapshots with each other and with their checksums, record checksums that are missing, and
    /// repair what can be told to be wrong.
    Scrub,
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
    /// All replicas failed.
    #[error("no replica could do it, because their disks report errors")]
    Io,
    /// All replicas are full. The write may be done later, when there is space; it is the same on all replicas.
    #[error("the disks of all replicas are full")]
    NoSpace,
    /// The volume is attached elsewhere.
    #[error("the volume was taken over by another coordinator")]
    Fenced,
    /// The in-sync replicas came back without writes that were acknowledged but not flushed.
    #[error("the in-sync replicas lost unsynced writes; detach and attach the volume")]
    LostUnsynced,
    /// The operation is not possible.
    #[error("{0}")]
    Refused(#[from] Refused),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The guest asks, or who manages the volume.
    Guest(Token, Request),
    /// A frame came from a replica.
    Frame(ReplicaId, Frame),
    /// The API's record answers a question of membership.
    Api(Answer),
    /// The connection to a replica is gone; sending tries to connect again.
    Lost(ReplicaId),
    /// A replica was added to the volume, empty.
    Added(ReplicaId),
    /// A replica was taken out of the volume for good. One that is in sync is removed only if another is.
    Retired(ReplicaId),
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
    /// The members are being made equal.
    Recovering(Recovering),
    /// Requests are served.
    Serving,
    /// Another has the volume.
    Fenced(Epoch),
    /// Unsynced writes are lost; only a new attach helps, as for a disk that lost power.
    LostUnsynced,
    /// The volume must be attached again, above [`Coordinator::seen`], and given the unanswered requests.
    Again,
}

/// What is left to make the members equal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recovering {
    /// These have not done the last operation on the layers.
    Layers(BTreeSet<ReplicaId>),
    /// These segments are still to be copied to the others, from this replica.
    Segments {
        /// The replica whose content counts.
        source: ReplicaId,
        /// Segments of the head.
        left: BTreeSet<SegmentIndex>,
    },
    /// All of it is being synced.
    Sync,
}

/// The conversation with one replica.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Link {
    /// A session is being opened; when it was asked for.
    Opening(Option<Time>),
    /// It is open.
    Open {
        session: SessionId,
        /// The last frame sent, the last answer heard.
        seq: u64,
        heard: u64,
    },
}

#[derive(Debug)]
struct Peer {
    link: Link,
    /// The newest session that it has opened.
    newest: SessionId,
    /// Flushes begun before that.
    since: u64,
    /// Since when nothing good was heard.
    trouble: Option<Time>,
    /// Times in a row that it failed.
    strikes: u32,
    introduction: Option<Introduction>,
    asked: Option<(Ask, Time)>,
    /// Since when it owes an answer to a question of membership, in an open session.
    owes: Option<Time>,
    /// Not before this time is a rebuild begun, and how long the next pause will be.
    rest_until: Time,
    rest: u64,
    /// It has been told to forget the stamps up to this record.
    forgets: Version,
}

/// Work on the way; see `work`.
#[derive(Debug)]
struct Job {
    token: Option<Token>,
    deadline: Time,
    goal: Goal,
    stage: Stage,
    /// The attempt at a rebuild whose replica must have it too, or for which it is done.
    attempt: Option<u64>,
    /// Replicas that could not read it.
    tried: ReplicaSet,
    /// Not sent again before this time.
    retry_at: Time,
}

/// Whom a copy is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum To {
    /// All other members, when they are made equal.
    Members,
    /// The replica that is being rebuilt.
    Joiner,
    /// One member whose copy is damaged.
    One(ReplicaId),
    /// All members, whose copies are all damaged.
    All,
}

/// How far a copy is that no member could read whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum Salvage {
    /// It is not known that nobody can.
    #[default]
    No,
    /// What can be read is asked for.
    Wanted,
    /// That much is known, from this member alone or from several.
    Have(Box<Part>, Option<ReplicaId>),
}

/// What a flush is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    Guest,
    Recovery,
    Join,
    /// All members answer to us still: nobody else can have the volume.
    Confirm,
}

/// What a job is for.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Goal {
    Read {
        start: BlockIndex,
        count: BlockCount,
        skip: usize,
        len: usize,
    },
    Write {
        start: BlockIndex,
        count: BlockCount,
        skip: usize,
        data: Data,
        generation: u64,
    },
    Zero {
        start: BlockIndex,
        count: BlockCount,
        generation: u64,
    },
    Flush {
        below: u64,
        purpose: Purpose,
    },
    /// First a flush, then the operation; the structure after it once it is being done.
    Operate {
        kind: Kind,
        below: u64,
        next: Option<Box<Structure>>,
    },
    /// One member does an operation that others have done.
    Align {
        operation: Box<Operation>,
        to: ReplicaId,
    },
    Copy {
        layer: LayerId,
        segment: SegmentIndex,
        source: Option<ReplicaId>,
        to: To,
        salvage: Salvage,
    },
    Adopt {
        known: bool,
    },
    /// List segments for the replica that is being rebuilt.
    List {
        layer: LayerId,
        since: Option<Version>,
        from: SegmentIndex,
    },
    Progress {
        layer: LayerId,
        below: SegmentIndex,
    },
    Fold {
        layer: LayerId,
        segment: SegmentIndex,
    },
    FoldList {
        layer: LayerId,
        from: SegmentIndex,
    },
    /// Checksums of all members, then the missing ones recorded.
    Check {
        layer: LayerId,
        segment: SegmentIndex,
    },
    Seal {
        layer: LayerId,
        segment: SegmentIndex,
        checksum: u32,
    },
    CheckList {
        layer: LayerId,
        from: SegmentIndex,
    },
}

/// Work that was sent to a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sent {
    session: SessionId,
    at: Time,
    /// Answers that are still to come in that session; the last one counts.
    owed: u32,
    /// It is to be sent again.
    again: bool,
}

/// How far a job is, and what that stage owes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "a job is boxed, and most of its time it is in the large one")]
enum Stage {
    /// Earlier work first.
    Waiting,
    /// One replica is to answer.
    Asking { sent: Option<(ReplicaId, SessionId, Time)> },
    /// All that must are to do it.
    Spreading {
        work: Work,
        sent: Each<Sent>,
        acked: Each<SessionId>,
        /// Those whose disks were full.
        full: ReplicaSet,
        /// Those that found damage.
        damaged: ReplicaSet,
        /// Checksums that came, computed and recorded.
        digests: Each<Digest>,
    },
}

/// The coordinator of one volume. See the module's documentation.
#[derive(Debug)]
pub struct Coordinator {
    volume: VolumeId,
    local: Option<ReplicaId>,
    limits: Limits,
    now: Time,
    proposer: Proposer,
    peers: BTreeMap<ReplicaId, Peer>,
    api_asked: Option<(Ask, Time)>,
    phase: Phase,
    /// The layers, once they are known.
    structure: Structure,
    /// Requests that came before the volume is served, or wait for room in the activity log.
    queue: VecDeque<(Token, Request, Time)>,
    jobs: BTreeMap<JobId, Box<Job>>,
    order: ActiveJobs,
    next_job: u64,
    /// Jobs to look at after this event; all of them if `sweep`.
    todo: BTreeSet<JobId>,
    sweep: bool,
    /// Members whose loss is to be recorded; they get no data any more.
    leaving: ReplicaSet,
    /// Replicas that are not wanted any more.
    retired: ReplicaSet,
    joining: Option<Joining>,
    attempts: u64,
    folding: Option<Folding>,
    scrub: Option<Scrub>,
    /// Folding failed: not again before this time.
    fold_rest: Time,
    /// Layers that linked clones have, too: not to be folded before this time.
    shared: BTreeMap<LayerId, Time>,
    /// A part of a segment is being checked.
    checking: bool,
    /// Who was given a good copy last, and of what, until it is known to be kept.
    repaired: Option<(LayerId, SegmentIndex, ReplicaId)>,
    /// Parts of segments that could not be read somewhere: to be checked.
    doubts: BTreeSet<(LayerId, SegmentIndex)>,
    /// Flushes begun so far; writes carry it.
    generation: u64,
    /// Segments that replicas have in their activity logs because of us, with the newest write's generation.
    active: BTreeMap<SegmentIndex, u64>,
    flushing: u32,
    /// A flush that confirms that the volume is ours is under way.
    confirming: bool,
    /// When the guest changed anything last, and what the replicas have been told to be settled.
    changed: Time,
    told: u64,
    counts: Counts,
    /// When the attach began.
    began: Time,
}

impl Coordinator {
    /// Begins to attach. `replicas` are all that the volume is known to have; `local` is read from first. The epoch's
    /// holder must never have been used before.
    pub fn new(
        volume: VolumeId,
        epoch: Epoch,
        replicas: ReplicaSet,
        local: Option<ReplicaId>,
        limits: Limits,
        now: Time,
    ) -> Self {
        let mut this = Self {
            volume,
            local,
            limits,
            now,
            proposer: Proposer::new(epoch),
            peers: BTreeMap::new(),
            api_asked: None,
            phase: Phase::Attaching,
            structure: Structure::new(1, None),
            queue: VecDeque::new(),
            jobs: BTreeMap::new(),
            order: ActiveJobs::default(),
            next_job: 0,
            todo: BTreeSet::new(),
            sweep: true,
            leaving: ReplicaSet::EMPTY,
            retired: ReplicaSet::EMPTY,
            joining: None,
            attempts: 0,
            folding: None,
            scrub: None,
            fold_rest: Time::default(),
            shared: BTreeMap::new(),
            checking: false,
            repaired: None,
            doubts: BTreeSet::new(),
            generation: 1,
            active: BTreeMap::new(),
            flushing: 0,
            confirming: false,
            changed: now,
            told: 0,
            counts: Counts::default(),
            began: now,
        };
        replicas.iter().for_each(|id| this.add_peer(id));
        this
    }

    /// How far the volume is.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The epoch under which this coordinator holds, or wants to hold, the volume.
    pub fn epoch(&self) -> Epoch {
        self.proposer.epoch()
    }

    /// The membership as this coordinator knows it.
    pub fn membership(&self) -> crate::membership::Membership {
        self.proposer.membership()
    }

    /// The layers, if the volume is served.
    pub fn structure(&self) -> Option<&Structure> {
        (self.phase == Phase::Serving).then_some(&self.structure)
    }

    /// Whether an operation on the layers waits or is being done.
    pub fn is_operating(&self) -> bool {
        let queued = self.queue.iter().any(|(_, request, _)| matches!(request, Request::Operate(_)));
        queued || self.jobs.values().any(|job| matches!(job.goal, Goal::Operate { .. }))
    }

    /// The highest epoch that this coordinator has heard of; the next attach takes a higher one. Who is to have the volume,
    /// whoever has it now, attaches again as soon as this is not its own; who had it before waits for [`Phase::Fenced`].
    pub fn seen(&self) -> Epoch {
        let fenced = match self.phase {
            Phase::Fenced(by) => Some(by),
            _ => None,
        };
        self.epoch().max(fenced.max(self.proposer.outbid()).unwrap_or_default())
    }

    /// Whether the attach has met a higher epoch in the way of a majority, as far as is known by now.
    fn is_blocked(&self) -> bool {
        let all = self.peers.keys().all(|id| self.proposer.has_refused(Voter::Replica(*id)));
        self.proposer.is_blocked() || all && !self.peers.is_empty()
    }

    /// Whether a change of the membership is being decided.
    pub fn is_proposing(&self) -> bool {
        self.proposer.proposed().is_some()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The replica that is being rebuilt.
    pub fn rebuilding(&self) -> Option<ReplicaId> {
        self.joining.as_ref().map(|joining| joining.replica)
    }

    /// Whether nothing is on its way and every known replica is in sync.
    pub fn is_healthy(&self) -> bool {
        self.phase == Phase::Serving
            && self.joining.is_none()
            && self.proposer.proposed().is_none()
            && self.members().iter().all(|id| self.is_usable(id))
            && self.peers.keys().all(|id| self.members().contains(*id) || self.retired.contains(*id))
    }

    /// When [`Event::Tick`] is wanted next; never, if nothing is on its way.
    pub fn wake(&self) -> Option<Time> {
        let ended = matches!(self.phase, Phase::Fenced(_) | Phase::LostUnsynced | Phase::Again);
        let quiet = self.jobs.is_empty()
            && self.queue.is_empty()
            && self.is_healthy()
            && self.folding.is_none()
            && self.next_fold().is_none()
            && self.scrub.is_none()
            && self.peers.keys().all(|id| self.proposer.ask(Voter::Replica(*id)).is_none())
            && self.proposer.ask(Voter::Api).is_none()
            && self.proposer.outbid().is_none()
            && !self.owes_rest();
        let busy = self.joining.is_some() || self.folding.is_some() || self.scrub.is_some();
        let pause = if busy { self.limits.rebuild_pause.max(1_000) } else { u64::MAX };
        match (ended, quiet) {
            (true, _) => None,
            // It may be due already, and not acted on yet.
            (false, true) => self.shared.values().min().map(|at| (*at).max(self.now.after(1_000))),
            (false, false) => Some(self.now.after(self.limits.resend.min(pause))),
        }
    }

    /// One event, and all that follows from it.
    pub fn on(&mut self, now: Time, event: Event, out: &mut Vec<Output>) {
        self.take(now, event, out);
        self.settle(out);
    }

    /// One event; [`Coordinator::settle`] is owed. Between the two nothing is decided and nothing new is sent, so what this event
    /// changes is to the next one as if it came in the same moment.
    pub fn take(&mut self, now: Time, event: Event, out: &mut Vec<Output>) {
        self.now = now.max(self.now);
        match event {
            Event::Guest(token, request) => self.guest(token, request, out),
            Event::Frame(from, frame) => self.frame(from, frame, out),
            Event::Api(answer) => drop(self.hear(Voter::Api, answer)),
            Event::Lost(id) => self.dropped(id),
            Event::Added(id) => {
                self.retired = self.retired.without(id);
                self.add_peer(id);
            }
            Event::Retired(id) => self.retire(id),
            Event::Tick => self.sweep = true,
        }
    }

    fn hear(&mut self, from: Voter, answer: Answer) -> Standing {
        // A decision may complete what waits for it.
        self.sweep = true;
        let before = self.members();
        let standing = self.proposer.on(from, answer);
        if let Voter::Replica(id) = from
            && self.proposer.has_refused(from)
            && self.session(id).is_some()
        {
            // It promised somebody else: nothing that was to be sent to it will ever be done.
            self.lose(id);
        }
        if !before.is_subset(&self.members()) {
            self.ask_again();
        }
        standing
    }

    fn frame(&mut self, from: ReplicaId, frame: Frame, out: &mut Vec<Output>) {
        if frame.volume != self.volume || frame.replica != from || frame.epoch != self.proposer.epoch() {
            return;
        }
        match frame.body {
            Body::Answer(answer, introduction) => {
                self.hear(Voter::Replica(from), *answer);
                if let (Answer::Promised { .. }, Some(introduction)) = (*answer, introduction) {
                    self.opened(from, frame.session, *introduction);
                }
            }
            // The frame that was refused says which session; a later one is not concerned.
            Body::Closed if self.session(from) == Some(frame.session) => self.lose(from),
            Body::Done(job, result) => {
                let Some(Peer { link: Link::Open { session, heard, .. }, .. }) = self.peers.get_mut(&from)
                else {
                    return;
                };
                if *session != frame.session || frame.seq <= *heard {
                    return;
                }
                if frame.seq != *heard + 1 {
                    // An answer is missing.
                    self.lose(from);
                    return;
                }
                *heard += 1;
                self.reply(from, frame.session, job, result, out);
            }
            _ => {}
        }
    }

    /// Does everything that is owed now. Idempotent; runs after every event, or after several that came together.
    pub fn settle(&mut self, out: &mut Vec<Output>) {
        match self.proposer.standing() {
            Standing::Fenced(by) => self.phase = Phase::Fenced(by),
            Standing::Stuck if self.phase != Phase::LostUnsynced => self.phase = Phase::Again,
            // Who could answer otherwise has had the time to.
            Standing::Attaching
                if self.now >= self.began.after(self.limits.resend * 2) && self.is_blocked() =>
            {
                self.phase = Phase::Fenced(self.seen());
            }
            _ => {}
        }
        let error = match self.phase {
            Phase::Fenced(_) => Some(RequestError::Fenced),
            Phase::LostUnsynced => Some(RequestError::LostUnsynced),
            Phase::Again => return,
            _ => None,
        };
        if let Some(error) = error {
            let waiting = self.queue.drain(..).map(|(token, ..)| token);
            let tokens: Vec<Token> =
                waiting.chain(self.jobs.values_mut().filter_map(|job| job.token.take())).collect();
            out.extend(tokens.into_iter().map(|token| Output::Complete(token, Err(error))));
            out.extend(
                self.scrub.take().and_then(|scrub| scrub.token).map(|t| Output::Complete(t, Err(error))),
            );
            self.jobs.clear();
            self.order = ActiveJobs::default();
            return;
        }
        self.expire(out);
        self.membership_step(out);
        self.recover_step(out);
        self.confirm_step();
        self.rest_step(out);
        self.join_step();
        self.fold_step();
        self.scrub_step(out);
        self.pump(out);
    }

    /// What must hold after every event.
    pub fn check(&self) {
        assert_eq!(self.jobs.len(), self.order.len(), "a job is known to both or to neither");
        let own = self.limits.rebuild_jobs * 3 + 16;
        assert!(self.jobs.len() + self.queue.len() <= self.limits.requests + own, "bounded");
        assert!(self.active.len() <= self.limits.active_segments + 8, "the activity log is bounded");
        if self.phase == Phase::Serving {
            assert_eq!(self.proposer.standing(), Standing::Holding, "only the holder serves");
            assert!(self.structure.is_sound(), "the layers are a tree");
        }
        if matches!(self.phase, Phase::Fenced(_) | Phase::LostUnsynced | Phase::Again) {
            return;
        }
        let members = self.members();
        assert!(self.leaving.iter().all(|id| members.contains(id)), "only members leave");
        assert!(self.leaving.len() < members.len().max(1), "the last copy does not leave");
        assert!(
            self.rebuilt_percent().is_none_or(|percent| percent <= 100),
            "a rebuild is a part of a whole"
        );
        if let Some(joining) = &self.joining {
            assert!(!members.contains(joining.replica), "who is in sync does not join");
        }
    }
}
