//! Who is in sync: the protocol by which a volume's membership is decided, durably and before it matters.
//!
//! Decision note 0010 gives the reasons and the argument; this is the whole protocol, without I/O:
//!
//! - A [`Membership`] is a numbered in-sync set. Its *voters* are its replicas and, where their number is even, the
//!   API's record. Record `v + 1` is decided by the voters of record `v`, each version by a round of Paxos whose
//!   ballots are the epochs.
//! - A [`Ledger`] is what one voter keeps durably. It changes only in [`Ledger::on`]; the owner makes the new ledger
//!   durable *before* the answer leaves.
//! - Whoever attaches *seals*: it has a record of its own epoch decided (the same set again, if nothing was on its
//!   way) before it holds the volume. So no vote from before can ever be decided afterwards.
//! - A record that leaves a single replica is only decided with that replica's own vote, which it gives when what
//!   it holds is synced, and not at all while it is suspected of having lost writes. Its owner sees to this, see
//!   [`Ask::leaves_alone`].
//! - A [`Proposer`] is the coordinator's half. It owns no timer and resends nothing by itself: [`Proposer::ask`] says
//!   at any time what a voter should be asked now, so that loss is healed by asking again.
//!
//! It does not know data. The coordinator keeps two rules with it: a write is acknowledged when every replica of
//! [`Proposer::must_ack`] has it, and a replica is proposed for joining only when it holds all acknowledged data.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Epoch, ReplicaId, ReplicaSet, Version};

/// Who takes part in a decision.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Voter {
    /// A replica, with the ledger in its directory.
    Replica(ReplicaId),
    /// The volume's object in the API; it votes where the in-sync set is even.
    Api,
}

/// A decided, numbered in-sync set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Membership {
    /// Number of the record. Zero: nothing is known (a new directory that waits for its first rebuild).
    pub version: Version,
    /// The replicas that hold every acknowledged write.
    pub in_sync: ReplicaSet,
}

impl Membership {
    /// Whether `voter` has a vote on the successor of this record.
    pub fn is_voter(&self, voter: Voter) -> bool {
        match voter {
            Voter::Replica(id) => self.in_sync.contains(id),
            Voter::Api => !self.in_sync.is_empty() && self.in_sync.len().is_multiple_of(2),
        }
    }

    /// Whether `agreed` voters are a majority. The number of voters is always odd, so two majorities meet and no
    /// vote can end in a tie; and every majority has a replica in it.
    fn is_majority(&self, agreed: usize) -> bool {
        !self.in_sync.is_empty() && agreed > self.in_sync.len() / 2
    }

    /// Whether a record with `next` as its set is decided as the successor once `voters` have voted for it: a majority, and, if
    /// it names one replica only, that one.
    pub fn is_decided<'a>(&self, next: ReplicaSet, voters: impl Iterator<Item = &'a Voter> + Clone) -> bool {
        let sole = if next.len() == 1 { next.iter().next() } else { None };
        self.has_majority(voters.clone())
            && sole.is_none_or(|id| voters.clone().any(|voter| *voter == Voter::Replica(id)))
    }

    /// Whether enough of `voters` have a vote on the successor of this record.
    pub fn has_majority<'a>(&self, voters: impl IntoIterator<Item = &'a Voter>) -> bool {
        self.is_majority(voters.into_iter().filter(|voter| self.is_voter(**voter)).count())
    }
}

/// A voter's answer for the next record, not known to be decided.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vote {
    /// The ballot.
    pub epoch: Epoch,
    /// The successor's in-sync set.
    pub in_sync: ReplicaSet,
}

/// What one voter keeps durably.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ledger {
    /// No lower epoch is answered any more: neither votes nor data.
    pub promised: Epoch,
    /// The newest record that this voter knows to be decided.
    pub committed: Membership,
    /// Its vote for the record after `committed`.
    pub accepted: Option<Vote>,
}

/// What a coordinator asks of a voter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Ask {
    /// Promise to answer no lower epoch, and show the ledger.
    Prepare(Epoch),
    /// Vote for `in_sync` as the successor of `base`.
    Accept {
        /// The asker's epoch, the ballot.
        epoch: Epoch,
        /// The decided record that is to be succeeded.
        base: Membership,
        /// The successor's in-sync set.
        in_sync: ReplicaSet,
    },
    /// Know that this record is decided.
    Learn {
        /// The asker's epoch.
        epoch: Epoch,
        /// The decided record.
        membership: Membership,
    },
}

impl Ask {
    /// The epoch of who asks.
    pub fn epoch(&self) -> Epoch {
        match *self {
            Self::Prepare(epoch) | Self::Accept { epoch, .. } | Self::Learn { epoch, .. } => epoch,
        }
    }

    /// Whether it asks for a vote that removes replicas.
    pub fn removes(&self) -> bool {
        matches!(self, Self::Accept { base, in_sync, .. } if !base.in_sync.is_subset(in_sync))
    }

    /// Whether it asks `replica` for a vote that makes it the only one in sync. Then a replica that lost writes must
    /// refuse, unless it has voted so before it lost them (`ledger`): nobody else's copy may count any more.
    pub fn leaves_alone(&self, replica: ReplicaId, ledger: &Ledger) -> bool {
        let alone = ReplicaSet::EMPTY.with(replica).unwrap_or_default();
        let before = ledger.accepted.is_some_and(|vote| vote.in_sync == alone);
        self.removes() && matches!(self, Self::Accept { in_sync, .. } if *in_sync == alone) && !before
    }
}

/// What a voter answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Answer {
    /// The promise, with the ledger as it was when it was given.
    Promised {
        /// To whom.
        epoch: Epoch,
        /// The ledger, its `promised` included.
        ledger: Ledger,
    },
    /// The vote is durable.
    Accepted {
        /// To whom.
        epoch: Epoch,
        /// The version voted on.
        version: Version,
    },
    /// The decided record is durable.
    Learnt {
        /// To whom.
        epoch: Epoch,
        /// The newest decided version in the ledger.
        version: Version,
    },
    /// A higher epoch holds the volume, or the asker's base is not the newest record.
    Refused {
        /// To whom.
        epoch: Epoch,
        /// What was promised; above `epoch`, the asker is fenced.
        promised: Epoch,
    },
}

impl Ledger {
    /// The ledger of a replica (or of the API's record) that is created together with its volume.
    pub fn created(in_sync: ReplicaSet) -> Self {
        Self { committed: Membership { version: Version(1), in_sync }, ..Self::default() }
    }

    /// Answers one question. If the ledger changed, the owner must make it durable before the answer leaves.
    pub fn on(&mut self, ask: Ask) -> Answer {
        let epoch = ask.epoch();
        if epoch < self.promised {
            return Answer::Refused { epoch, promised: self.promised };
        }
        self.promised = epoch;
        match ask {
            Ask::Prepare(_) => Answer::Promised { epoch, ledger: *self },
            Ask::Accept { base, in_sync, .. } => {
                self.learn(base);
                if self.committed.version != base.version || in_sync.is_empty() {
                    // Behind what is decided (cannot come from the holder of the highest epoch), or the recorded
                    // loss of the last copy: both are refused whoever asks.
                    return Answer::Refused { epoch, promised: self.promised };
                }
                self.accepted = Some(Vote { epoch, in_sync });
                Answer::Accepted { epoch, version: Version(base.version.0 + 1) }
            }
            Ask::Learn { membership, .. } => {
                self.learn(membership);
                Answer::Learnt { epoch, version: self.committed.version }
            }
        }
    }

    /// Answers for a replica, which knows whether it is suspected of having lost writes.
    pub fn on_replica(&mut self, ask: Ask, me: ReplicaId, suspect: bool) -> Answer {
        let epoch = ask.epoch();
        if suspect && epoch >= self.promised && ask.leaves_alone(me, self) {
            return Answer::Refused { epoch, promised: self.promised };
        }
        self.on(ask)
    }

    /// Whether data frames of `epoch` are served: only those of whom the promise was given to.
    pub fn admits(&self, epoch: Epoch) -> bool {
        epoch == self.promised
    }

    fn learn(&mut self, membership: Membership) {
        if membership.version > self.committed.version {
            self.committed = membership;
            self.accepted = None;
        }
    }
}

/// A proposal on its way.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Pending {
    in_sync: ReplicaSet,
    /// It ends the attach.
    seals: bool,
    accepted_by: BTreeSet<Voter>,
}

/// How far an attach is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Standing {
    /// Promises of a majority, the end of a predecessor's proposal, or our own first record are still missing.
    Attaching,
    /// The volume is held: the membership is known, nobody else can change it, no older epoch can write.
    Holding,
    /// One of the voters promised a higher epoch: another has the volume, or will. Nothing may be acknowledged any more.
    Fenced(Epoch),
    /// The replica that was to be left alone refused, having lost writes. The proposal can neither be decided nor taken
    /// back under this epoch; whoever attaches next, with a higher one, can rule it out.
    Stuck,
}

/// Why a change of membership cannot be proposed now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotNow {
    /// The volume is not held.
    #[error("the volume is not held by this coordinator")]
    NotHolding,
    /// One at a time.
    #[error("another change of membership is on its way")]
    Busy,
    /// The loss of the last good copy is never recorded.
    #[error("the last in-sync replica cannot be removed")]
    LastCopy,
    /// Nothing would change.
    #[error("the replica is already where it should be")]
    NoChange,
    /// Too many replicas.
    #[error("the in-sync set is full")]
    Full,
}

/// A change of the in-sync set, one replica at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Change {
    /// It holds all acknowledged data, durably, and gets all writes.
    Join(ReplicaId),
    /// It failed, or missed a write.
    Leave(ReplicaId),
}

/// The coordinator's half: takes an epoch, finds the newest record, changes it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Proposer {
    epoch: Epoch,
    /// Ledgers as they were promised; the first answer of each voter counts.
    promises: BTreeMap<Voter, Ledger>,
    /// Newest version that each voter is known to have learnt, where that is newer than in its promise.
    learnt: BTreeMap<Voter, Version>,
    base: Membership,
    pending: Option<Pending>,
    standing: Standing,
    /// Who refused, having promised a higher epoch, without that meaning that somebody else has the volume; and the highest
    /// of these epochs.
    refused: BTreeSet<Voter>,
    outbid: Option<Epoch>,
}

impl Proposer {
    /// Begins an attach under `epoch`, which must be new (see [`Epoch::next`]).
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            promises: BTreeMap::new(),
            learnt: BTreeMap::new(),
            base: Membership::default(),
            pending: None,
            standing: Standing::Attaching,
            refused: BTreeSet::new(),
            outbid: None,
        }
    }

    /// The epoch under which all data frames go out.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How far the attach is.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// A higher epoch that somebody promised, whose vote it does not take to hold the volume: an attach elsewhere that had no
    /// majority. It gets nothing that we need, but who promised it cannot be worked with before we attach again, above it.
    pub fn outbid(&self) -> Option<Epoch> {
        self.outbid
    }

    /// Whether those that refused keep an attach from a majority, as far as is known by now. An answer that is still to come may know
    /// a newer record, whose voters are others.
    pub fn is_blocked(&self) -> bool {
        let record = self.base;
        let voters = record.in_sync.iter().map(Voter::Replica).chain([Voter::Api]);
        let left: Vec<Voter> = voters.filter(|voter| !self.refused.contains(voter)).collect();
        let known = record.version > Version(0) && self.standing == Standing::Attaching;
        known && !self.refused.is_empty() && !record.has_majority(&left)
    }

    /// Whether it promised a higher epoch instead of ours.
    pub fn has_refused(&self, voter: Voter) -> bool {
        self.refused.contains(&voter)
    }

    /// The newest decided record that this coordinator knows. Meaningful once it holds the volume.
    pub fn membership(&self) -> Membership {
        self.base
    }

    /// The proposed in-sync set on its way.
    pub fn proposed(&self) -> Option<ReplicaSet> {
        self.pending.as_ref().map(|pending| pending.in_sync)
    }

    /// Whether the proposal on its way removes a replica. Until it is decided nothing is acknowledged: the vote of the last one
    /// left vouches for what was acknowledged before.
    pub fn is_removing(&self) -> bool {
        self.proposed().is_some_and(|next| !self.base.in_sync.is_subset(&next))
    }

    /// The replicas that must have a write before it is acknowledged: those in sync, and those about to be. As long as
    /// nobody knows whether a proposal is decided, a write must be where either outcome would look for it.
    pub fn must_ack(&self) -> ReplicaSet {
        let mut set = self.base.in_sync;
        for id in self.proposed().iter().flat_map(ReplicaSet::iter) {
            set = set.with(id).unwrap_or(set);
        }
        set
    }

    /// Whether `replica` promised this epoch: only then may its data be read or written.
    pub fn has_promised(&self, replica: ReplicaId) -> bool {
        self.promises.contains_key(&Voter::Replica(replica))
    }

    /// Whether `replica` durably knows the newest record: only then do its stamps follow it.
    pub fn is_current(&self, replica: ReplicaId) -> bool {
        let voter = Voter::Replica(replica);
        let promised = self.promises.get(&voter).map(|ledger| ledger.committed.version);
        promised.is_some() && promised.max(self.learnt.get(&voter).copied()) >= Some(self.base.version)
    }

    /// What `voter` should be asked now, if anything. The caller asks again until it is answered.
    pub fn ask(&self, voter: Voter) -> Option<Ask> {
        if matches!(self.standing, Standing::Fenced(_) | Standing::Stuck) {
            return None;
        }
        let epoch = self.epoch;
        let Some(promise) = self.promises.get(&voter) else { return Some(Ask::Prepare(epoch)) };
        if let Some(pending) = &self.pending
            && self.base.is_voter(voter)
            && !pending.accepted_by.contains(&voter)
        {
            return Some(Ask::Accept { epoch, base: self.base, in_sync: pending.in_sync });
        }
        let known = self.learnt.get(&voter).copied().unwrap_or_default().max(promise.committed.version);
        (known < self.base.version).then_some(Ask::Learn { epoch, membership: self.base })
    }

    /// Takes a voter's answer. Answers to other epochs, late ones and repeated ones change nothing.
    pub fn on(&mut self, from: Voter, answer: Answer) -> Standing {
        let ours = |epoch: Epoch| epoch == self.epoch;
        match answer {
            Answer::Promised { epoch, ledger } if ours(epoch) => {
                if self.standing == Standing::Attaching {
                    self.promises.entry(from).or_insert(ledger);
                    self.advance();
                } else {
                    // Too late to have a say in what is decided: a majority was heard. Its votes of lower epochs are
                    // not decided and never will be.
                    debug_assert!(
                        ledger.committed.version <= self.base.version,
                        "a majority missed a decision"
                    );
                    self.promises.entry(from).or_insert(ledger);
                }
            }
            Answer::Accepted { epoch, version } if ours(epoch) => {
                if version.0 == self.base.version.0 + 1
                    && let Some(pending) = &mut self.pending
                {
                    pending.accepted_by.insert(from);
                    self.advance();
                }
            }
            Answer::Learnt { epoch, version } if ours(epoch) => {
                let known = self.learnt.entry(from).or_default();
                *known = version.max(*known);
            }
            Answer::Refused { epoch, promised } if ours(epoch) && promised > epoch => {
                // Of one of the voters: whoever has its promise may have those of the others. Anybody else's promise means that
                // somebody tried; and before we know the newest record, we do not know who its voters are.
                if self.standing == Standing::Holding && self.base.is_voter(from) {
                    self.standing = Standing::Fenced(promised);
                } else {
                    self.refused.insert(from);
                    self.outbid = self.outbid.max(Some(promised));
                }
            }
            Answer::Refused { epoch, .. } if ours(epoch) => {
                let alone = self.pending.as_ref().filter(|pending| pending.in_sync.len() == 1);
                if let (Some(pending), Voter::Replica(id)) = (alone, from)
                    && pending.in_sync.contains(id)
                    && !pending.accepted_by.contains(&from)
                {
                    self.standing = Standing::Stuck;
                }
            }
            _ => {}
        }
        self.standing
    }

    /// Begins to change the in-sync set. Once begun it cannot be taken back: a voter may have it already.
    pub fn propose(&mut self, change: Change) -> Result<(), NotNow> {
        if self.standing != Standing::Holding {
            return Err(NotNow::NotHolding);
        }
        if self.pending.is_some() {
            return Err(NotNow::Busy);
        }
        let old = self.base.in_sync;
        let in_sync = match change {
            Change::Join(id) => old.with(id).map_err(|_| NotNow::Full)?,
            Change::Leave(id) => old.without(id),
        };
        if in_sync == old {
            return Err(NotNow::NoChange);
        }
        if in_sync.is_empty() {
            return Err(NotNow::LastCopy);
        }
        self.begin(in_sync, false);
        Ok(())
    }

    fn begin(&mut self, in_sync: ReplicaSet, seals: bool) {
        self.pending = Some(Pending { in_sync, seals, accepted_by: BTreeSet::new() });
    }

    /// Draws every conclusion that the answers so far allow.
    fn advance(&mut self) {
        if self.standing == Standing::Attaching
            && let Some(newest) = self.promises.values().map(|ledger| ledger.committed).max()
            && newest.version > self.base.version
        {
            // Also if that version is just being proposed: then it is what was decided, and its voters know it.
            self.base = newest;
            self.pending = None;
        }
        if let Some(pending) = &self.pending {
            if !self.base.is_decided(pending.in_sync, pending.accepted_by.iter()) {
                return;
            }
            let seals = pending.seals;
            self.base = Membership { version: Version(self.base.version.0 + 1), in_sync: pending.in_sync };
            self.pending = None;
            if self.standing == Standing::Attaching && seals {
                self.standing = Standing::Holding;
            }
        }
        if self.standing != Standing::Attaching || !self.base.has_majority(self.promises.keys()) {
            return;
        }
        // A vote for the successor may be part of a decision that nobody here saw: finish it, whatever it says. Then, or if
        // there is none, seal: or else that vote, or one that was not heard, could be finished later, and a replica
        // come in that has missed what is written meanwhile.
        match self.found() {
            Found::Nothing => self.begin(self.base.in_sync, true),
            Found::Vote(in_sync) => self.begin(in_sync, false),
            Found::Wait => {}
        }
    }

    /// What the promises say of the successor of `base`.
    fn found(&self) -> Found {
        let base = self.base;
        let knows = |ledger: &&Ledger| ledger.committed.version == base.version;
        let votes = self.promises.iter().filter(|(voter, ledger)| base.is_voter(**voter) && knows(ledger));
        let Some(vote) = votes.filter_map(|(_, ledger)| ledger.accepted).max_by_key(|vote| vote.epoch) else {
            return Found::Nothing;
        };
        // Only together with its own vote is a replica left alone; so if it did not vote, nothing was decided.
        let alone = if vote.in_sync.len() == 1 { vote.in_sync.iter().next() } else { None };
        let Some(alone) = alone.filter(|_| base.in_sync.len() > 1) else { return Found::Vote(vote.in_sync) };
        match self.promises.get(&Voter::Replica(alone)) {
            None => Found::Wait,
            Some(ledger)
                if knows(&ledger) && ledger.accepted.is_some_and(|own| own.in_sync == vote.in_sync) =>
            {
                Found::Vote(vote.in_sync)
            }
            Some(_) => Found::Nothing,
        }
    }
}

/// What an attach finds on its way.
enum Found {
    /// No proposal that could be decided.
    Nothing,
    /// This set may be decided.
    Vote(ReplicaSet),
    /// Only a replica that has not promised knows.
    Wait,
}
