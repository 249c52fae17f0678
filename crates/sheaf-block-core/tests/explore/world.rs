//! The world that is explored: voters with ledgers, coordinators with proposers, one block of data, a network.
//!
//! **Modelled.** Up to three coordinators with epochs of their own take part from any time on, in any order. What was sent stays
//! in the network: a message may be delivered late, twice, out of order or never. So crashes need no steps of
//! their own: a crashed coordinator is one that takes no further step; a replica that is down, or the API that is down,
//! is one to which nothing is delivered; a crash between making the ledger durable and answering is an answer that is
//! never delivered. The block's content is the set of writes that went into it, so "has it or something later made
//! from it" is a subset test.
//!
//! **Checked after every step**: decided records of one version are equal and never empty; a write is acknowledged only if
//! every coordinator that took over later has it, and only on top of everything acknowledged before; a replica that
//! recovery takes its data from has all acknowledged writes. **Checked in every durable state**, for every set of
//! voters that may be up: if a new coordinator can attach, every in-sync replica that it reaches has every
//! acknowledged write; and if a majority is up (see `attach_from_everywhere`), it can attach and write.
//!
//! **Machines that go down** (`Bounds::power`): a replica's content falls back to what was synced, while everybody was in
//! sync before; it then knows that it is suspect, and its sessions are over. So an acknowledged write may be missing
//! in a replica that says so of itself; never in all others, never where it does not know, never where it is alone.
//!
//! **Not modelled**: a loss of only some of what was not synced, partial content.

use std::collections::BTreeSet;

use sheaf_block_core::ids::{CoordinatorId, Epoch, ReplicaId, ReplicaSet, Version};
use sheaf_block_core::membership::{Answer, Ask, Change, Ledger, Membership, Proposer, Standing, Voter};

/// One rule left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flaw {
    None,
    AckBeforeCommit,
    JoinerNeedNotAck,
    NoSessions,
    NoEpochs,
    AnySource,
    PromiseForgotten,
    /// The volume is held as soon as promises of a majority are there.
    NoSeal,
    /// Any majority may leave a replica alone.
    AnyoneLeavesAlone,
    /// A replica that lost writes votes to be left alone.
    SuspectVotes,
    /// A replica votes for a removal before what it holds is synced.
    VoteBeforeSync,
    /// What was written before a removal was decided counts for the write that is acknowledged after it.
    OldAcksCount,
}

/// How much may happen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) replicas: u32,
    pub(crate) coordinators: u8,
    /// Writes of all coordinators together.
    pub(crate) writes: u8,
    /// Removals that each coordinator begins.
    pub(crate) leaves: [u8; 3],
    /// Rebuilds that each coordinator begins.
    pub(crate) joins: [u8; 3],
    /// Machines that go down.
    pub(crate) power: u8,
    /// Losses, and what a second coordinator does, only after a write was acknowledged: where flaws show.
    pub(crate) late: bool,
    /// Whether the API's record is there to be asked. Where sets stay odd it has no vote.
    pub(crate) api: bool,
    pub(crate) flaw: Flaw,
}

pub(crate) type Mask = u8;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Message {
    Ask(Voter, Ask),
    /// With content and suspicion.
    Answer(Voter, Answer, Mask, bool),
    /// Sets the content. `session` 0 is the one of the attach; a rebuild opens the next.
    Write {
        to: ReplicaId,
        epoch: Epoch,
        session: u8,
        seq: u8,
        content: Mask,
        /// Sync it, and be trusted again.
        sync: bool,
    },
    Written {
        from: ReplicaId,
        epoch: Epoch,
        seq: u8,
    },
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Work {
    seq: u8,
    /// The guest's write; none for recovery and rebuild.
    write: Option<u8>,
    content: Mask,
    sync: bool,
    done: BTreeSet<ReplicaId>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Coordinator {
    proposer: Proposer,
    /// What each replica held when it promised.
    found: Vec<Option<(Mask, bool)>>,
    /// Replicas that turned out to have lost writes since.
    suspects: ReplicaSet,
    /// Votes heard, for a flaw only.
    votes: BTreeSet<(u64, Voter)>,
    /// The content that is served; none before recovery chose it.
    view: Option<Mask>,
    recovered: bool,
    work: Option<Work>,
    seq: u8,
    sessions: Vec<u8>,
    joining: Option<ReplicaId>,
    /// Whom the record that it knew last had.
    members: usize,
    leaves: u8,
    joins: u8,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Deliver(usize),
    Recover(u8, ReplicaId),
    Write(u8),
    Leave(u8, ReplicaId),
    Rebuild(u8, ReplicaId),
    /// A machine goes down and comes back.
    PowerCut(ReplicaId),
    /// A session that ended with it is opened anew.
    Reopen(u8, ReplicaId),
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) bounds: Bounds,
    pub(crate) ledgers: Vec<Ledger>,
    pub(crate) content: Vec<Mask>,
    /// What of it is synced.
    synced: Vec<Mask>,
    pub(crate) suspect: Vec<bool>,
    power: u8,
    /// Session and number of the last frame that each replica took.
    sessions: Vec<(u8, u8)>,
    coordinators: Vec<Coordinator>,
    network: BTreeSet<Message>,
    pub(crate) acknowledged: Mask,
    writes: u8,
    /// Ghost: decided records, in order.
    decided: Vec<Option<ReplicaSet>>,
    /// What was done last, for the trace.
    pub(crate) last: String,
}

impl std::hash::Hash for World {
    fn hash<H: std::hash::Hasher>(&self, h: &mut H) {
        (&self.ledgers, &self.content, &self.sessions, &self.coordinators, &self.network).hash(h);
        (self.acknowledged, self.writes, &self.decided, &self.synced, &self.suspect, self.power).hash(h);
    }
}

pub(crate) fn voters(replicas: u32) -> impl Iterator<Item = Voter> {
    (0..replicas).map(|id| Voter::Replica(ReplicaId(id))).chain([Voter::Api])
}

pub(crate) fn index(voter: Voter, replicas: u32) -> usize {
    match voter {
        Voter::Replica(id) => id.0 as usize,
        Voter::Api => replicas as usize,
    }
}

impl World {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let n = bounds.replicas as usize;
        let all = ReplicaSet::of((0..bounds.replicas).map(ReplicaId)).expect("few replicas");
        let mut world = Self {
            bounds,
            ledgers: vec![Ledger::created(all); n + 1],
            content: vec![0; n],
            synced: vec![0; n],
            suspect: vec![false; n],
            power: bounds.power,
            sessions: vec![(0, 0); n],
            coordinators: (0..bounds.coordinators).map(|at| Coordinator::new(at, n)).collect(),
            network: BTreeSet::new(),
            acknowledged: 0,
            writes: 0,
            decided: vec![None, Some(all)],
            last: String::new(),
        };
        // Starting only sends; the messages may arrive at any time. So nothing is lost if all start at once.
        for at in 0..bounds.coordinators {
            world.settle(at).expect("nothing was done yet");
        }
        world
    }

    /// Everything that may happen next.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = (0..self.network.len()).map(Step::Deliver).collect();
        let early = self.bounds.late && self.acknowledged == 0;
        if !early && self.power > 0 && self.is_healthy() {
            let lost = |id: &ReplicaId| self.content[id.0 as usize] != self.synced[id.0 as usize];
            steps.extend((0..self.bounds.replicas).map(ReplicaId).filter(lost).map(Step::PowerCut));
        }
        for (at, c) in (0u8..).zip(&self.coordinators) {
            if c.proposer.standing() != Standing::Holding || early && at > 0 {
                continue;
            }
            let members = c.proposer.membership().in_sync;
            let idle = c.proposer.proposed().is_none();
            for id in (0..self.bounds.replicas).map(ReplicaId) {
                let member = members.contains(id);
                let session = self.sessions[id.0 as usize].0;
                let ours = self.ledgers[id.0 as usize].promised == c.proposer.epoch();
                let open = session == c.sessions[id.0 as usize];
                if c.proposer.has_promised(id) && ours && session > c.sessions[id.0 as usize] {
                    steps.push(Step::Reopen(at, id));
                }
                let sound = |id: ReplicaId| {
                    c.proposer.has_promised(id)
                        && !c.suspects.contains(id)
                        && (c.recovered || c.found[id.0 as usize].is_some_and(|found| !found.1))
                };
                if c.view.is_none()
                    && c.found[id.0 as usize].is_some_and(|found| !found.1 || members.len() == 1)
                    && (open || !ours || self.bounds.power == 0)
                    && (member || self.bounds.flaw == Flaw::AnySource)
                {
                    steps.push(Step::Recover(at, id));
                }
                let another =
                    members.iter().any(|other| other != id && (sound(other) || self.bounds.power == 0));
                if !early && member && idle && another && c.leaves < self.bounds.leaves[usize::from(at)] {
                    steps.push(Step::Leave(at, id));
                }
                let promised = c.proposer.has_promised(id);
                if !member
                    && idle
                    && promised
                    && c.recovered
                    && c.work.is_none()
                    && c.joins < self.bounds.joins[usize::from(at)]
                {
                    steps.push(Step::Rebuild(at, id));
                }
            }
            if c.recovered && c.work.is_none() && self.writes < self.bounds.writes {
                steps.push(Step::Write(at));
            }
        }
        steps
    }

    pub(crate) fn take(&mut self, step: Step) -> Result<(), String> {
        self.last = format!("{step:?}");
        let at = match step {
            Step::Recover(at, source) => {
                let (acknowledged, power) = (self.acknowledged, self.bounds.power);
                let epoch = self.coordinators[usize::from(at)].proposer.epoch();
                // One that was fenced and does not know it may look at what it found; it will acknowledge nothing.
                let current =
                    !self.coordinators.iter().any(|c| c.proposer.epoch() > epoch && c.view.is_some());
                let c = self.holder(at);
                let (content, _) = c.found[source.0 as usize].expect("enabled");
                if current && acknowledged & !content != 0 {
                    return Err(format!("recovery from replica {source}, which lacks an acknowledged write"));
                }
                c.view = Some(content);
                c.start(None, content);
                // Those that have the same content need no copy (where nothing is lost that is not synced); who
                // promises later gets one.
                let same = (0u32..)
                    .map(ReplicaId)
                    .zip(c.found.clone())
                    .filter(|(_, found)| power == 0 && *found == Some((content, false)));
                c.work.as_mut().expect("just started").done.extend(same.map(|(id, _)| id));
                Some(at)
            }
            Step::Write(at) => {
                let write = self.writes;
                self.writes += 1;
                let c = self.holder(at);
                let content = c.view.expect("recovered") | 1 << write;
                c.start(Some(write), content);
                Some(at)
            }
            Step::Leave(at, id) => {
                let c = self.holder(at);
                c.leaves += 1;
                c.proposer.propose(Change::Leave(id)).expect("enabled");
                Some(at)
            }
            Step::Rebuild(at, id) => {
                let c = self.holder(at);
                c.joins += 1;
                c.joining = Some(id);
                c.sessions[id.0 as usize] += 1;
                let content = c.view.expect("recovered");
                c.start(None, content);
                // Only the joining replica gets the copy.
                let members = c.proposer.membership().in_sync;
                c.work.as_mut().expect("just started").done.extend(members.iter());
                Some(at)
            }
            Step::PowerCut(id) => {
                let r = id.0 as usize;
                self.power -= 1;
                (self.content[r], self.suspect[r]) = (self.synced[r], true);
                self.sessions[r] = (self.sessions[r].0 + 1, 0);
                None
            }
            Step::Reopen(at, id) => {
                let r = id.0 as usize;
                let (session, found, suspect) = (self.sessions[r].0, self.content[r], self.suspect[r]);
                let c = self.holder(at);
                c.sessions[r] = session;
                c.found[r] = Some((found, suspect));
                if suspect {
                    c.suspects = c.suspects.with(id).expect("few replicas");
                }
                Some(at)
            }
            Step::Deliver(nth) => {
                let message = *self.network.iter().nth(nth).expect("enabled");
                self.last = format!("{message:?}");
                self.deliver(message)
            }
        };
        if let Some(at) = at {
            self.settle(at)?;
        }
        self.prune();
        self.check_ledgers()
    }

    /// The same; a message that is delivered is not delivered again. Walks get further that way.
    pub(crate) fn take_once(&mut self, step: Step) -> Result<(), String> {
        let message = match step {
            Step::Deliver(nth) => self.network.iter().nth(nth).copied(),
            _ => None,
        };
        let taken = self.take(step);
        if let Some(message) = message {
            self.network.remove(&message);
        }
        taken
    }

    fn holder(&mut self, at: u8) -> &mut Coordinator {
        &mut self.coordinators[usize::from(at)]
    }

    /// Delivers, and says which coordinator has something to think about.
    fn deliver(&mut self, message: Message) -> Option<u8> {
        let flaw = self.bounds.flaw;
        match message {
            Message::Ask(voter, ask) => {
                let at = index(voter, self.bounds.replicas);
                let before = self.ledgers[at].promised;
                let suspect = self.suspect.get(at).is_some_and(|suspect| *suspect);
                let answer = match voter {
                    Voter::Replica(id) if flaw != Flaw::SuspectVotes => {
                        self.ledgers[at].on_replica(ask, id, suspect)
                    }
                    _ => self.ledgers[at].on(ask),
                };
                if ask.removes() && at < self.content.len() && flaw != Flaw::VoteBeforeSync {
                    self.synced[at] = self.content[at];
                }
                if flaw == Flaw::PromiseForgotten {
                    self.ledgers[at].promised = before;
                }
                if self.ledgers[at].promised > before && at < self.content.len() {
                    self.sessions[at] = (0, 0);
                }
                let content = self.content.get(at).copied().unwrap_or_default();
                // Lost here without loss of behaviours: a refusal only stops its reader, as a crash would; that
                // something was learnt only stops the telling.
                if !matches!(answer, Answer::Refused { .. } | Answer::Learnt { .. }) {
                    self.network.insert(Message::Answer(voter, answer, content, suspect));
                }
                None
            }
            Message::Answer(voter, answer, content, suspect) => {
                let (Answer::Promised { epoch, .. }
                | Answer::Accepted { epoch, .. }
                | Answer::Learnt { epoch, .. }
                | Answer::Refused { epoch, .. }) = answer;
                let at = u8::try_from(epoch.holder.0).expect("small");
                let c = &mut self.coordinators[usize::from(at)];
                if let (Voter::Replica(id), Answer::Promised { .. }) = (voter, answer) {
                    c.found[id.0 as usize].get_or_insert((content, suspect));
                }
                c.proposer.on(voter, answer);
                if flaw == Flaw::AnyoneLeavesAlone
                    && let Answer::Accepted { version, .. } = answer
                {
                    c.votes.insert((version.0, voter));
                    let alone = c.proposer.proposed().filter(|next| next.len() == 1);
                    let heard: Vec<Voter> =
                        c.votes.iter().filter(|(of, _)| *of == version.0).map(|(_, v)| *v).collect();
                    if let Some(id) = alone.and_then(|next| next.iter().next())
                        && c.proposer.membership().has_majority(&heard)
                    {
                        c.proposer.on(Voter::Replica(id), answer);
                    }
                }
                Some(at)
            }
            Message::Write { to, epoch, session, seq, content, sync } => {
                let at = to.0 as usize;
                // Within a session frames are numbered: none is taken twice or after a later one.
                let current = (session, seq) >= self.sessions[at] || flaw == Flaw::NoSessions;
                if current
                    && (self.ledgers[at].admits(epoch)
                        || flaw == Flaw::NoEpochs
                        || flaw == Flaw::PromiseForgotten)
                {
                    self.sessions[at] = self.sessions[at].max((session, seq));
                    self.content[at] = content;
                    if sync {
                        (self.synced[at], self.suspect[at]) = (content, false);
                    }
                    self.network.insert(Message::Written { from: to, epoch, seq });
                }
                None
            }
            Message::Written { from, epoch, seq } => {
                let at = u8::try_from(epoch.holder.0).expect("small");
                let c = &mut self.coordinators[usize::from(at)];
                if let Some(work) = &mut c.work
                    && work.seq == seq
                {
                    work.done.insert(from);
                }
                Some(at)
            }
        }
    }

    /// What a coordinator does after every event: complete what is complete, send what is to be sent.
    fn settle(&mut self, at: u8) -> Result<(), String> {
        let bounds = self.bounds;
        let epoch;
        let mut finished = None;
        {
            let c = &mut self.coordinators[usize::from(at)];
            epoch = c.proposer.epoch();
            let base = c.proposer.membership();
            if bounds.flaw == Flaw::NoSeal
                && c.proposer.standing() == Standing::Attaching
                && c.proposer.proposed() == Some(base.in_sync)
            {
                // As if there were no such record: nobody hears of it.
                let version = Version(base.version.0 + 1);
                for voter in voters(bounds.replicas) {
                    c.proposer.on(voter, Answer::Accepted { epoch, version });
                }
            }
            if c.proposer.standing() == Standing::Holding && bounds.flaw != Flaw::NoSeal {
                let record = c.proposer.membership();
                note(&mut self.decided, record)?;
            }
            if c.proposer.standing() == Standing::Holding {
                let record = c.proposer.membership();
                if record.in_sync.len() < c.members
                    && bounds.flaw != Flaw::OldAcksCount
                    && let Some(work) = &mut c.work
                {
                    // Again, by those who are left.
                    c.seq += 1;
                    work.seq = c.seq;
                    work.done.clear();
                }
                c.members = record.in_sync.len();
                if c.joining.is_some_and(|id| record.in_sync.contains(id)) {
                    c.joining = None;
                }
                let must = c.must_ack(bounds.flaw);
                let still = c.proposer.is_removing() && bounds.flaw != Flaw::AckBeforeCommit;
                if let Some(work) = &c.work
                    && !still
                    && must.iter().all(|id| work.done.contains(&id))
                {
                    let work = c.work.take().expect("just seen");
                    c.recovered = true;
                    c.view = Some(work.content);
                    finished = work.write;
                    if let Some(id) = c.joining
                        && work.write.is_none()
                        && work.done.contains(&id)
                    {
                        // A rebuilt replica is proposed; busy means that a removal came first: given up.
                        if c.proposer.propose(Change::Join(id)).is_err() {
                            c.joining = None;
                        }
                    }
                }
            }
            for voter in voters(bounds.replicas).filter(|voter| bounds.api || *voter != Voter::Api) {
                if let Some(ask) = c.proposer.ask(voter) {
                    self.network.insert(Message::Ask(voter, ask));
                }
            }
            if let Some(work) = &c.work {
                let fit = |id: &ReplicaId| c.proposer.has_promised(*id) && !c.suspects.contains(*id);
                for to in c.must_ack(Flaw::None).iter().filter(fit) {
                    let (session, seq, content) = (c.sessions[to.0 as usize], work.seq, work.content);
                    let sync = work.sync;
                    if !work.done.contains(&to) {
                        self.network.insert(Message::Write { to, epoch, session, seq, content, sync });
                    }
                }
            }
        }
        if let Some(write) = finished {
            let view = self.coordinators[usize::from(at)].view.unwrap_or_default();
            if self.acknowledged & !view != 0 {
                return Err(format!(
                    "coordinator {at} acknowledges write {write} without an earlier acknowledged one"
                ));
            }
            for other in self.coordinators.iter().filter(|c| c.proposer.epoch() > epoch) {
                if other.view.is_some_and(|view| view & 1 << write == 0) {
                    return Err(format!(
                        "coordinator {at} acknowledges write {write} after another took over without it"
                    ));
                }
            }
            self.acknowledged |= 1 << write;
        }
        Ok(())
    }

    /// Messages that can have no effect any more are as good as lost.
    fn prune(&mut self) {
        let flaw = self.bounds.flaw;
        if flaw == Flaw::PromiseForgotten {
            return;
        }
        let (ledgers, coordinators, sessions) = (&self.ledgers, &self.coordinators, &self.sessions);
        let n = self.bounds.replicas;
        self.network.retain(|message| match *message {
            Message::Ask(voter, ask) => {
                let ledger = &ledgers[index(voter, n)];
                ask.epoch() >= ledger.promised
                    && match ask {
                        Ask::Learn { membership, .. } => {
                            ask.epoch() > ledger.promised || membership.version > ledger.committed.version
                        }
                        _ => true,
                    }
            }
            Message::Write { .. } if matches!(flaw, Flaw::NoSessions | Flaw::NoEpochs) => true,
            Message::Write { to, epoch, session, seq, .. } => {
                epoch >= ledgers[to.0 as usize].promised
                    && (epoch > ledgers[to.0 as usize].promised || (session, seq) >= sessions[to.0 as usize])
            }
            Message::Answer(voter, answer, ..) => {
                let (Answer::Promised { epoch, .. } | Answer::Accepted { epoch, .. } | Answer::Learnt { epoch, .. }
                | Answer::Refused { epoch, .. }) = answer;
                let c = &coordinators[epoch.holder.0 as usize];
                let mut after = c.proposer.clone();
                after.on(voter, answer);
                after != c.proposer || (matches!(answer, Answer::Accepted { version, .. } if version.0 > after.membership().version.0))
            }
            Message::Written { from, epoch, seq } => coordinators[epoch.holder.0 as usize]
                .work
                .as_ref()
                .is_some_and(|work| work.seq == seq && !work.done.contains(&from)),
        });
    }

    /// Everybody is in sync: the coordinator that holds the volume counts on all, and a removal that it proposes is not
    /// decided, whether or not anybody could know.
    fn is_healthy(&self) -> bool {
        let holding = self.coordinators.iter().filter(|c| c.proposer.standing() == Standing::Holding);
        let all = |c: &&Coordinator| c.proposer.membership().in_sync.len() == self.content.len();
        !self.suspect.contains(&true)
            && holding.max_by_key(|c| c.proposer.epoch()).is_some_and(|c| {
                c.recovered && all(&c) && c.suspects.is_empty() && !self.is_decided(&c.proposer)
            })
    }

    fn is_decided(&self, proposer: &Proposer) -> bool {
        let (base, Some(next)) = (proposer.membership(), proposer.proposed()) else { return false };
        let votes: Vec<Voter> = voters(self.bounds.replicas)
            .filter(|voter| {
                let ledger = &self.ledgers[index(*voter, self.bounds.replicas)];
                ledger.accepted.is_some_and(|vote| vote.epoch == proposer.epoch() && vote.in_sync == next)
            })
            .collect();
        base.is_decided(next, votes.iter())
    }

    fn check_ledgers(&mut self) -> Result<(), String> {
        for at in 0..self.ledgers.len() {
            note(&mut self.decided, self.ledgers[at].committed)?;
        }
        Ok(())
    }
}

fn note(decided: &mut Vec<Option<ReplicaSet>>, record: Membership) -> Result<(), String> {
    let version = record.version.0 as usize;
    if record.in_sync.is_empty() {
        return Err("an empty in-sync set was recorded".into());
    }
    if decided.len() <= version {
        decided.resize(version + 1, None);
    }
    match *decided[version].get_or_insert(record.in_sync) {
        known if known == record.in_sync => Ok(()),
        known => Err(format!("record {version} was decided twice: {known:?}, {:?}", record.in_sync)),
    }
}

impl Coordinator {
    fn new(at: u8, replicas: usize) -> Self {
        let epoch = Epoch { number: u64::from(at) + 1, holder: CoordinatorId(u64::from(at)) };
        Self {
            proposer: Proposer::new(epoch),
            found: vec![None; replicas],
            suspects: ReplicaSet::EMPTY,
            votes: BTreeSet::new(),
            view: None,
            recovered: false,
            work: None,
            seq: 0,
            sessions: vec![0; replicas],
            joining: None,
            members: 0,
            leaves: 0,
            joins: 0,
        }
    }

    fn start(&mut self, write: Option<u8>, content: Mask) {
        self.seq += 1;
        let sync = write.is_none();
        self.work = Some(Work { seq: self.seq, write, content, sync, done: BTreeSet::new() });
    }

    fn must_ack(&self, flaw: Flaw) -> ReplicaSet {
        let mut set = match flaw {
            Flaw::JoinerNeedNotAck => self.proposer.membership().in_sync,
            _ => self.proposer.must_ack(),
        };
        if let Some(id) = self.joining.filter(|_| {
            flaw != Flaw::JoinerNeedNotAck || self.work.as_ref().is_some_and(|w| w.write.is_none())
        }) {
            set = set.with(id).unwrap_or(set);
        }
        if flaw == Flaw::AckBeforeCommit
            && let Some(proposed) = self.proposer.proposed()
        {
            set = proposed;
        }
        set
    }
}
