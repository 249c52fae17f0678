//! What is left if everything stops at once, and every attach that can follow.

use sheaf_block_core::ids::{CoordinatorId, Epoch, ReplicaId};
use sheaf_block_core::membership::{Change, Ledger, Membership, Proposer, Standing, Voter};

use crate::world::{Mask, World, index, voters};

/// What survives if everything stops now.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Durable {
    ledgers: Vec<Ledger>,
    content: Vec<Mask>,
    suspect: Vec<bool>,
    acknowledged: Mask,
    power: bool,
}

impl Durable {
    pub(crate) fn of(world: &World) -> Self {
        Self {
            ledgers: world.ledgers.clone(),
            content: world.content.clone(),
            suspect: world.suspect.clone(),
            acknowledged: world.acknowledged,
            power: world.bounds.power > 0,
        }
    }

    /// A new coordinator tries to attach, from every set of voters that may be up. Returns how often it did.
    ///
    /// Safety: whoever attaches finds every acknowledged write in every in-sync replica it reaches. Progress: with the
    /// newest record known to any voter in the set, and a majority of its voters and of what follows from a vote in
    /// the set, it attaches, removes who is missing, and holds a majority that can acknowledge.
    pub(crate) fn attach_from_everywhere(&self) -> Result<usize, String> {
        let n = self.content.len() as u32;
        let all: Vec<Voter> = voters(n).collect();
        let mut attached = 0;
        for set in 1u32..1 << all.len() {
            let up: Vec<Voter> = all.iter().copied().filter(|v| set & 1 << index(*v, n) != 0).collect();
            let epoch = Epoch { number: 1000, holder: CoordinatorId(99) };
            let (mut proposer, mut ledgers) = (Proposer::new(epoch), self.ledgers.clone());
            run(&mut proposer, &mut ledgers, &up, &self.suspect);
            let holds = proposer.standing() == Standing::Holding;
            // The promise of progress, computed without the proposer.
            let newest = up.iter().map(|v| self.ledgers[index(*v, n)].committed).max().unwrap_or_default();
            let voted = up.iter().filter_map(|v| {
                let ledger = &self.ledgers[index(*v, n)];
                ledger.accepted.filter(|_| ledger.committed == newest && newest.is_voter(*v))
            });
            let follows = voted.map(|vote| Membership { version: newest.version, in_sync: vote.in_sync });
            let healthy = newest.has_majority(&up) && follows.into_iter().all(|next| next.has_majority(&up));
            if healthy && !holds {
                return Err(format!("no progress: {up:?} are up, hold {newest:?}, and nobody can attach"));
            }
            if up.len() == all.len() && !holds {
                return Err("no progress although everything is up".into());
            }
            if !holds {
                continue;
            }
            attached += 1;
            let members = proposer.membership().in_sync;
            let reached: Vec<ReplicaId> = members.iter().filter(|id| proposer.has_promised(*id)).collect();
            if reached.is_empty() {
                return Err(format!("attached from {up:?} without any in-sync replica"));
            }
            let sound = |id: &ReplicaId| !self.suspect[id.0 as usize];
            for id in reached.iter().filter(|id| sound(id) || members.len() == 1) {
                if self.acknowledged & !self.content[id.0 as usize] != 0 {
                    return Err(format!(
                        "attached from {up:?}: in-sync replica {id} lacks an acknowledged write"
                    ));
                }
            }
            // The missing are removed one by one; a majority of each record in turn must be up.
            for missing in members.iter().filter(|id| !reached.contains(id)) {
                if self.power && !reached.iter().any(sound) {
                    break;
                }
                proposer
                    .propose(Change::Leave(missing))
                    .map_err(|e| format!("cannot remove {missing}: {e}"))?;
                let able = proposer.membership().has_majority(&up);
                run(&mut proposer, &mut ledgers, &up, &self.suspect);
                if able && proposer.proposed().is_some() {
                    return Err(format!("no progress: {up:?} cannot record the loss of {missing}"));
                }
                if proposer.proposed().is_some() {
                    break;
                }
            }
        }
        Ok(attached)
    }
}

/// A network without faults between the proposer and who is up.
fn run(proposer: &mut Proposer, ledgers: &mut [Ledger], up: &[Voter], suspect: &[bool]) {
    let n = suspect.len() as u32;
    for _ in 0..20 {
        for voter in up {
            if let Some(ask) = proposer.ask(*voter) {
                let ledger = &mut ledgers[index(*voter, n)];
                let answer = match voter {
                    Voter::Replica(id) => ledger.on_replica(ask, *id, suspect[id.0 as usize]),
                    Voter::Api => ledger.on(ask),
                };
                proposer.on(*voter, answer);
            }
        }
    }
}
