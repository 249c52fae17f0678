//! Every behaviour of the membership protocol within bounds: an exhaustive search over the production
//! [`Ledger`](sheaf_block_core::membership::Ledger) and [`Proposer`](sheaf_block_core::membership::Proposer).
//!
//! `SHEAF_EXPLORE=large` explores larger bounds (minutes). See `world.rs` for what is modelled and what is checked.

mod durable;
mod search;
mod world;

use search::{Found, explore, wander};
use world::{Bounds, Flaw};

fn prove(name: &str, bounds: Bounds) {
    let start = std::time::Instant::now();
    match explore(bounds) {
        Found::Nothing(count) => println!(
            "{name}: {} states, {} steps, {} durable states each attached from every set of voters ({} attaches), {:.1?}",
            count.states,
            count.steps,
            count.durable,
            count.attaches,
            start.elapsed()
        ),
        Found::Violation { what, trace } => panic!("{name}: {what}\n{}", trace.join("\n")),
    }
}

/// The explorer must see what it is there for: each of these flaws is one rule of the protocol left out.
fn refute(name: &str, bounds: Bounds) {
    match std::panic::catch_unwind(|| wander(bounds, 200_000)) {
        Ok(Found::Violation { what, trace }) => {
            println!("{name}: found after {} steps: {what}", trace.len())
        }
        Ok(Found::Nothing(count)) => panic!("{name}: not found in {} steps", count.steps),
        Err(_) => println!("{name}: found by an assertion"),
    }
}

const SMALL: Bounds = Bounds {
    replicas: 2,
    coordinators: 2,
    writes: 1,
    leaves: [1, 0, 0],
    joins: [0; 3],
    power: 0,
    late: false,
    api: true,
    flaw: Flaw::None,
};
const WIDE: Bounds = Bounds { writes: 2, leaves: [1; 3], joins: [1; 3], ..SMALL };

/// One coordinator that records a loss while a machine goes down.
const ALONE: Bounds = Bounds { writes: 2, coordinators: 1, power: 1, late: true, ..SMALL };

#[test]
fn two_replicas_a_takeover() {
    prove("two replicas, another takes over", Bounds { writes: 0, leaves: [0; 3], ..SMALL });
}

#[test]
fn two_replicas_a_loss_and_a_rebuild() {
    let bounds = Bounds { coordinators: 1, joins: [1, 0, 0], ..SMALL };
    prove("two replicas, a loss and a rebuild", bounds);
}

#[test]
fn two_replicas_a_machine_goes_down() {
    prove("two replicas, a machine goes down, a loss", Bounds { coordinators: 1, power: 1, ..SMALL });
}

#[test]
fn three_replicas_a_loss() {
    prove("three replicas, a loss", Bounds { replicas: 3, coordinators: 1, writes: 0, ..SMALL });
}

/// Nobody leaves, so the set stays odd, and the API has no vote.
#[test]
fn three_replicas_two_coordinators() {
    let bounds = Bounds { replicas: 3, writes: 0, leaves: [0; 3], api: false, ..SMALL };
    prove("three replicas, another takes over", bounds);
}

#[test]
fn larger() {
    if std::env::var("SHEAF_EXPLORE").as_deref() != Ok("large") {
        println!("skipped: set SHEAF_EXPLORE=large");
        return;
    }
    let one = Bounds { coordinators: 1, ..SMALL };
    prove("two replicas, a loss is recorded, another takes over", Bounds { writes: 0, ..SMALL });
    prove("three replicas, a write and a loss", Bounds { replicas: 3, ..one });
    prove("two replicas, a loss, a rebuild, two writes", Bounds { writes: 2, joins: [1, 0, 0], ..one });
    prove(
        "two replicas, two losses and rebuilds",
        Bounds { writes: 2, leaves: [2; 3], joins: [2; 3], ..one },
    );
    prove("two replicas, both record a loss", Bounds { writes: 0, leaves: [1, 1, 0], ..SMALL });
    prove("two replicas, a write, a loss, another takes over", SMALL);
    prove(
        "two replicas, a write, another takes over and records a loss",
        Bounds { leaves: [0, 1, 0], ..SMALL },
    );
    prove("three replicas, two losses", Bounds { replicas: 3, leaves: [2, 0, 0], ..one });
    prove("three replicas, a loss and a rebuild", Bounds { replicas: 3, joins: [1, 0, 0], ..one });
    prove("two replicas, everything", WIDE);
}

/// Beyond what can be visited wholly: random walks, each state checked in the same way.
#[test]
fn random_walks() {
    for replicas in [2, 3] {
        match wander(Bounds { replicas, coordinators: 3, ..WIDE }, 2_000) {
            Found::Nothing(count) => {
                println!("{replicas} replicas, three coordinators: {} random steps", count.steps)
            }
            Found::Violation { what, trace } => panic!("{what}\n{}", trace.join("\n")),
        }
    }
}

/// A machine goes down, while everybody is in sync, and whatever follows.
#[test]
fn random_walks_while_machines_go_down() {
    for replicas in [2, 3] {
        match wander(Bounds { replicas, coordinators: 3, power: 1, ..WIDE }, 2_000) {
            Found::Nothing(count) => {
                println!("{replicas} replicas, a machine goes down: {} random steps", count.steps)
            }
            Found::Violation { what, trace } => panic!("{what}\n{}", trace.join("\n")),
        }
    }
}

#[test]
fn flaw_ack_before_the_loss_is_recorded() {
    refute("ack before commit", Bounds { flaw: Flaw::AckBeforeCommit, ..WIDE });
}

#[test]
fn flaw_joining_replica_need_not_ack() {
    refute("joining replica need not ack", Bounds { flaw: Flaw::JoinerNeedNotAck, ..WIDE });
}

#[test]
fn flaw_no_sessions() {
    refute("no sessions", Bounds { flaw: Flaw::NoSessions, coordinators: 1, ..WIDE });
}

#[test]
fn flaw_data_without_epochs() {
    refute("data without epochs", Bounds { flaw: Flaw::NoEpochs, joins: [0; 3], leaves: [0; 3], ..WIDE });
}

#[test]
fn flaw_recover_from_any_replica() {
    refute(
        "recovery from any replica",
        Bounds { flaw: Flaw::AnySource, joins: [0; 3], leaves: [1, 0, 0], ..WIDE },
    );
}

#[test]
fn flaw_promise_not_durable() {
    refute("promise not durable", Bounds { flaw: Flaw::PromiseForgotten, ..WIDE });
}

#[test]
fn flaw_attach_without_a_record_of_its_own() {
    refute("no seal", Bounds { replicas: 3, coordinators: 3, flaw: Flaw::NoSeal, ..WIDE });
}

#[test]
fn flaw_anyone_leaves_a_replica_alone() {
    refute("anyone leaves alone", Bounds { flaw: Flaw::AnyoneLeavesAlone, ..ALONE });
}

#[test]
fn flaw_a_suspect_replica_votes() {
    refute("suspect votes", Bounds { flaw: Flaw::SuspectVotes, ..ALONE });
}

#[test]
fn flaw_old_acknowledgements_count() {
    refute("old acknowledgements count", Bounds { flaw: Flaw::OldAcksCount, ..ALONE });
}

#[test]
fn flaw_vote_before_sync() {
    refute("vote before sync", Bounds { flaw: Flaw::VoteBeforeSync, ..ALONE });
}
