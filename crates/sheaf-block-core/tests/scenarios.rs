//! Named cases: what has gone wrong in storage systems of this kind, and in this one, step by step in the simulated world.
//!
//! The letters are those of the list of failures that the project keeps to: S durability, R rebuild, A attach, T layers.
//! Each ends with all faults gone: the volume gets healthy, and all content, of replicas and snapshots, is right.

use sheaf_block_core::coordinator::RequestError;
use sheaf_block_core::disk::{Failure, Op};
use sheaf_block_core::sim::Sim;
use sheaf_block_core::structure::Kind;

type Outcome = Result<(), String>;

/// The same story with other delays.
fn for_seeds(story: impl Fn(u64) -> Outcome) {
    for seed in 1..=8 {
        if let Err(what) = story(seed) {
            panic!("seed {seed}: {what}");
        }
    }
}

fn written(sim: &mut Sim, first: u64, count: u64) -> Outcome {
    let token = sim.write(first, count)?;
    sim.done(token)
}

fn read(sim: &mut Sim, first: u64, count: u64) -> Outcome {
    let token = sim.read(first, count)?;
    sim.done(token)
}

fn out(sim: &mut Sim, id: u32) -> Outcome {
    sim.until("the replica is out", |sim| !sim.is_member(id))
}

fn whole(sim: &mut Sim) -> Outcome {
    sim.until("all are in sync", Sim::healthy)
}

#[test]
fn s1_what_was_flushed_survives_all_machines() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 64)?;
        let token = sim.flush()?;
        sim.done(token)?;
        (1..=3).for_each(|id| sim.power_off(id));
        (1..=3).for_each(|id| sim.start_again(id));
        sim.take_over(false, false);
        whole(&mut sim)?;
        read(&mut sim, 0, 64)?;
        sim.finish()
    });
}

#[test]
fn s2_writes_on_the_way_when_the_coordinator_dies() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 200)?;
        // They reach one replica, not the others.
        sim.cut(2, true, false);
        sim.cut(3, true, false);
        for at in 0..8 {
            sim.write(at * 20, 11)?;
        }
        sim.pass(3_000)?;
        sim.take_over(false, false);
        sim.mend();
        whole(&mut sim)?;
        read(&mut sim, 0, 200)?;
        // Whoever is asked says the same from now on.
        sim.stop(1);
        read(&mut sim, 0, 200)?;
        sim.finish()
    });
}

#[test]
fn s3_a_replica_left_behind_is_never_promoted() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 64)?;
        sim.cut(3, true, true);
        // Acknowledged without the third; then everything stops at once.
        written(&mut sim, 0, 64)?;
        assert!(!sim.is_member(3), "its loss was recorded before the write was acknowledged");
        (1..=3).for_each(|id| sim.stop(id));
        sim.take_over(false, false);
        sim.start_again(3);
        sim.pass(5_000_000)?;
        assert!(sim.coordinator().is_some_and(|c| c.structure().is_none()), "nobody serves from it alone");
        sim.start_again(1);
        sim.start_again(2);
        whole(&mut sim)?;
        read(&mut sim, 0, 64)?;
        sim.finish()
    });
}

#[test]
fn s4_writes_that_overlap() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        for at in 0..20 {
            sim.write(at % 5, 8 + at % 7)?;
        }
        let last = sim.write(0, 24)?;
        sim.done(last)?;
        sim.finish()
    });
}

#[test]
fn s5_a_write_that_arrives_after_its_replica_came_back() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        written(&mut sim, 0, 32)?;
        let late = sim.write(0, 8)?;
        sim.pass(150)?;
        // What the second has on its way does not end; it is given up, and a later write is acknowledged without it.
        sim.stick(2, |op| matches!(op, Op::Write(..) | Op::Persist(_)));
        sim.done(late)?;
        written(&mut sim, 0, 32)?;
        sim.stop(2);
        sim.start_again(2);
        whole(&mut sim)?;
        sim.stop(1);
        read(&mut sim, 0, 32)?;
        sim.finish()
    });
}

#[test]
fn s6_small_writes_during_a_rebuild() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        for at in 0..6 {
            written(&mut sim, at * 200, 150)?;
        }
        sim.stop(2);
        out(&mut sim, 2)?;
        for at in 0..6 {
            written(&mut sim, at * 200 + 3, 1)?;
        }
        sim.start_again(2);
        let mut at = 0;
        while !sim.healthy() {
            written(&mut sim, (at * 37) % 1_300, 1)?;
            at += 1;
            assert!(at < 20_000, "the rebuild gets on while the guest writes");
        }
        sim.finish()
    });
}

#[test]
fn s8_the_last_replica_does_not_answer() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        written(&mut sim, 0, 8)?;
        sim.cut(1, true, true);
        sim.cut(2, true, true);
        let token = sim.write(0, 8)?;
        sim.until("the guest hears", |sim| sim.outcome(token).is_some())?;
        assert_eq!(sim.outcome(token), Some(Err(RequestError::TimedOut)));
        sim.mend();
        whole(&mut sim)?;
        read(&mut sim, 0, 8)?;
        sim.finish()
    });
}

#[test]
fn s9_one_operation_never_ends() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        let token = sim.write(0, 64)?;
        sim.pass(200)?;
        sim.stick(2, |_| true);
        sim.done(token)?;
        written(&mut sim, 0, 64)?;
        sim.finish_with(|sim| {
            sim.stop(2);
            sim.start_again(2);
            Ok(())
        })
    });
}

#[test]
fn s11_two_coordinators() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 16)?;
        (1..=3).for_each(|id| sim.cut(id, true, true));
        sim.take_over(false, true);
        whole(&mut sim)?;
        written(&mut sim, 0, 16)?;
        sim.old_write(1)?;
        sim.pass(100_000)?;
        sim.mend();
        sim.old_write(1)?;
        sim.until("the old one knows", |sim| sim.is_fenced(1))?;
        read(&mut sim, 0, 16)?;
        sim.finish()
    });
}

#[test]
fn s12_full_disks() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 16)?;
        sim.break_disk(1, Some(Failure::NoSpace));
        written(&mut sim, 0, 64)?;
        assert!(!sim.is_member(1), "the full one is out, and the volume goes on");
        sim.break_disk(1, None);
        whole(&mut sim)?;
        (1..=3).for_each(|id| sim.break_disk(id, Some(Failure::NoSpace)));
        let token = sim.write(100, 64)?;
        sim.until("the guest hears", |sim| sim.outcome(token).is_some())?;
        assert_eq!(sim.outcome(token), Some(Err(RequestError::NoSpace)));
        assert!((1..=3).all(|id| sim.is_member(id)), "nobody is to blame");
        (1..=3).for_each(|id| sim.break_disk(id, None));
        written(&mut sim, 100, 64)?;
        sim.finish()
    });
}

#[test]
fn s13_a_disk_that_cannot_be_read() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 64)?;
        for id in 1..=3 {
            sim.break_disk(id, Some(Failure::Io));
            read(&mut sim, 0, 64)?;
            read(&mut sim, 0, 64)?;
            sim.break_disk(id, None);
            whole(&mut sim)?;
        }
        sim.finish()
    });
}

#[test]
fn r2_r12_a_rebuild_that_is_interrupted_goes_on() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        for at in 0..8 {
            written(&mut sim, at * 190, 180)?;
        }
        sim.lose_for_good(2)?;
        sim.until("half of it is copied", |sim| sim.counts().is_some_and(|counts| counts.copied >= 2))?;
        sim.stop(3);
        sim.pass(1_000_000)?;
        let before = sim.counts().map_or(0, |counts| counts.copied);
        sim.start_again(3);
        whole(&mut sim)?;
        let after = sim.counts().map_or(0, |counts| counts.copied);
        assert!(after - before <= 4, "{before} were copied, then {after}: not from the beginning");
        sim.finish()
    });
}

#[test]
fn r4_the_rebuilt_machine_goes_down_after_it_was_promoted() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        written(&mut sim, 0, 500)?;
        sim.lose_for_good(2)?;
        whole(&mut sim)?;
        sim.power_off(3);
        sim.start_again(3);
        whole(&mut sim)?;
        sim.stop(1);
        read(&mut sim, 0, 500)?;
        sim.finish()
    });
}

#[test]
fn r5_snapshots_during_a_rebuild() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        for at in 0..7 {
            written(&mut sim, at * 190, 180)?;
        }
        let first = sim.snapshot("before")?;
        sim.lose_for_good(2)?;
        for at in 0..5 {
            written(&mut sim, at * 100, 90)?;
            sim.snapshot(&format!("during-{at}"))?;
        }
        let token = sim.operate(Kind::Remove(first))?;
        sim.done(token)?;
        whole(&mut sim)?;
        sim.finish()
    });
}

#[test]
fn r6_the_source_fails_during_a_rebuild() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        for at in 0..8 {
            written(&mut sim, at * 190, 180)?;
        }
        sim.lose_for_good(2)?;
        sim.until("some of it is copied", |sim| sim.counts().is_some_and(|counts| counts.copied >= 1))?;
        sim.stop(1);
        sim.take_over(false, false);
        sim.pass(5_000_000)?;
        assert!(!sim.is_member(3), "what is half built is never served");
        sim.start_again(1);
        whole(&mut sim)?;
        sim.finish()
    });
}

#[test]
fn r8_discards_during_a_rebuild() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        for at in 0..8 {
            written(&mut sim, at * 190, 180)?;
        }
        sim.snapshot("under")?;
        sim.stop(2);
        out(&mut sim, 2)?;
        sim.start_again(2);
        let mut at = 0;
        while !sim.healthy() {
            let token = sim.discard((at * 7 % 100) * 8, 16)?;
            sim.done(token)?;
            at += 1;
        }
        sim.finish()
    });
}

#[test]
fn a_replica_that_was_away_copies_only_what_changed() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        for at in 0..6 {
            written(&mut sim, at * 200, 190)?;
        }
        let token = sim.flush()?;
        sim.done(token)?;
        // The guest rests: everybody hears that all have it.
        sim.pass(200_000)?;
        sim.stop(3);
        out(&mut sim, 3)?;
        written(&mut sim, 0, 8)?;
        let before = sim.counts().map_or(0, |counts| counts.copied);
        sim.start_again(3);
        whole(&mut sim)?;
        let copied = sim.counts().map_or(0, |counts| counts.copied) - before;
        assert!((1..=2).contains(&copied), "one segment was written, {copied} were copied");
        sim.finish()
    });
}

#[test]
fn a_replica_that_was_cut_off_copies_only_what_changed_though_the_guest_never_rested() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        for at in 0..6 {
            written(&mut sim, at * 200, 190)?;
        }
        let token = sim.flush()?;
        sim.done(token)?;
        sim.pass(5_000)?;
        sim.cut(3, true, true);
        // The guest waits until the loss is recorded.
        written(&mut sim, 0, 8)?;
        assert!(!sim.is_member(3));
        let before = sim.counts().map_or(0, |counts| counts.copied);
        sim.mend();
        whole(&mut sim)?;
        let copied = sim.counts().map_or(0, |counts| counts.copied) - before;
        assert!((1..=2).contains(&copied), "one segment was written, {copied} were copied");
        sim.finish()
    });
}

#[test]
fn a_replica_that_promised_somebody_else_meanwhile_comes_back() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 64)?;
        sim.cut(3, true, true);
        written(&mut sim, 5, 20)?;
        assert!(!sim.is_member(3));
        // An attach elsewhere reached only this one, and came to nothing.
        let before = sim.coordinator().map(|c| c.epoch());
        assert!(sim.stray(3), "it is out and may be asked");
        sim.mend();
        written(&mut sim, 10, 30)?;
        sim.until("attached above what it promised", |sim| sim.coordinator().map(|c| c.epoch()) > before)?;
        whole(&mut sim)?;
        read(&mut sim, 0, 64)?;
        sim.finish()
    });
}

#[test]
fn a2_a_machine_that_lost_writes_is_not_the_source() {
    for_seeds(|seed| {
        for lost in [1, 2] {
            let mut sim = Sim::scripted(seed, 2)?;
            written(&mut sim, 0, 200)?;
            // Both are in sync, one lost what was not flushed; the coordinator goes down with it.
            sim.power_off(lost);
            sim.take_over(false, false);
            sim.start_again(lost);
            whole(&mut sim)?;
            read(&mut sim, 0, 200)?;
            // And now the other one: what it gave is durable.
            sim.power_off(3 - lost);
            read(&mut sim, 0, 200)?;
            sim.start_again(3 - lost);
            sim.finish()?;
        }
        Ok(())
    });
}

#[test]
fn a2_who_lost_writes_is_not_left_alone() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        written(&mut sim, 0, 200)?;
        // One machine lost its writes and is back before anybody noticed; then the other, which has all, is cut off.
        sim.power_off(1);
        sim.start_again(1);
        sim.cut(2, true, true);
        let token = sim.write(0, 8)?;
        sim.pass(5_000_000)?;
        assert!(sim.is_member(2), "nobody is left who has everything: it must not go");
        sim.mend();
        sim.until("the guest hears", |sim| sim.outcome(token).is_some())?;
        whole(&mut sim)?;
        read(&mut sim, 0, 200)?;
        sim.finish()
    });
}

#[test]
fn a6_a_single_replica_comes_back() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 1)?;
        written(&mut sim, 0, 64)?;
        let token = sim.flush()?;
        sim.done(token)?;
        for _ in 0..3 {
            sim.power_off(1);
            sim.take_over(false, false);
            sim.start_again(1);
            whole(&mut sim)?;
            read(&mut sim, 0, 64)?;
        }
        sim.finish()
    });
}

#[test]
fn a11_the_coordinator_is_replaced_under_a_guest() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        let mut tokens = vec![];
        for round in 0..5 {
            for at in 0..6 {
                tokens.push(sim.write(at * 9, 12)?);
            }
            sim.pass(round * 150)?;
            sim.take_over(true, round % 2 == 0);
        }
        for token in tokens {
            sim.done(token)?;
        }
        read(&mut sim, 0, 64)?;
        sim.finish()
    });
}

#[test]
fn t3_t4_discards_over_snapshots() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        written(&mut sim, 0, 128)?;
        let first = sim.snapshot("s1")?;
        written(&mut sim, 0, 128)?;
        sim.snapshot("s2")?;
        let token = sim.operate(Kind::Remove(first))?;
        sim.done(token)?;
        let token = sim.discard(0, 128)?;
        sim.done(token)?;
        read(&mut sim, 0, 128)?;
        (1..=2).for_each(|id| sim.stop(id));
        (1..=2).for_each(|id| sim.start_again(id));
        read(&mut sim, 0, 128)?;
        sim.until("the removed snapshot is gone", |sim| {
            sim.coordinator().and_then(|c| c.structure()).is_some_and(|s| s.layer(first).is_none())
        })?;
        sim.finish()
    });
}

#[test]
fn a5_operations_while_everything_dies() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        for round in 0..8u64 {
            written(&mut sim, 0, 100)?;
            let layer = sim.snapshot(&format!("s{round}"))?;
            written(&mut sim, 50, 100)?;
            let token = match round % 3 {
                0 => sim.operate(Kind::Revert(layer))?,
                1 => sim.operate(Kind::Remove(layer))?,
                _ => {
                    let blocks = sim.coordinator().and_then(|c| c.structure()).map_or(0, |s| s.blocks);
                    sim.operate(Kind::Expand(blocks + 3))?
                }
            };
            sim.pass(seed * 90 + round * 40)?;
            sim.stop(1);
            sim.stop(2);
            sim.take_over(round % 2 == 0, false);
            (1..=2).for_each(|id| sim.start_again(id));
            whole(&mut sim)?;
            if round % 2 == 0 {
                sim.until("the operation ends", |sim| sim.outcome(token).is_some())?;
            }
            sim.learn()?;
        }
        sim.finish()
    });
}

#[test]
fn t10_bits_rot() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        written(&mut sim, 0, 300)?;
        sim.snapshot("s")?;
        let token = sim.scrub()?;
        sim.done(token)?;
        let record = sim.coordinator().map(|c| c.membership());
        // The second time is another bit's, though in the same place: the disk kept what it was given.
        for times in 1..=2 {
            sim.rot(1)?;
            // Whoever reads it gets what was written; and it is repaired.
            read(&mut sim, 0, 300)?;
            let token = sim.scrub()?;
            sim.done(token)?;
            sim.until("it is repaired", |sim| sim.counts().is_some_and(|counts| counts.repaired >= times))?;
            let token = sim.scrub()?;
            sim.done(token)?;
        }
        assert_eq!(sim.coordinator().map(|c| c.membership()), record, "one bit costs no replica");
        sim.finish()
    });
}

#[test]
fn pinned_snapshots_stay() {
    let run = || -> Outcome {
        let mut sim = Sim::scripted(3, 2)?;
        written(&mut sim, 0, 64)?;
        let layer = sim.snapshot("s")?;
        let clone = sheaf_block_core::ids::VolumeId(99);
        let token = sim.operate(Kind::Pin(layer, clone))?;
        sim.done(token)?;
        let token = sim.operate(Kind::Remove(layer))?;
        sim.until("it is answered", |sim| sim.outcome(token).is_some())?;
        assert!(matches!(sim.outcome(token), Some(Err(RequestError::Refused(_)))));
        sim.learn()?;
        let token = sim.operate(Kind::Unpin(layer, clone))?;
        sim.done(token)?;
        let token = sim.operate(Kind::Remove(layer))?;
        sim.done(token)?;
        sim.finish()
    };
    run().unwrap();
}

/// A replica that was started again took what it had written itself for older than every flush, and settled it: so a
/// write that had reached only it was in no activity log when the coordinator died, and the replicas stayed unequal.
#[test]
fn a_flush_from_before_a_restart_settles_nothing() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        written(&mut sim, 0, 8)?;
        // The flush reaches both, its answer from the second does not come.
        sim.cut(2, false, true);
        sim.flush()?;
        sim.pass(2_000)?;
        // A write that only the second gets.
        sim.cut(1, true, false);
        sim.write(600, 64)?;
        sim.pass(3_000)?;
        sim.stop(2);
        sim.start_again(2);
        sim.uncut(2);
        sim.pass(300_000)?;
        sim.take_over(false, false);
        sim.mend();
        whole(&mut sim)?;
        read(&mut sim, 600, 64)?;
        sim.finish()
    });
}

/// A vote for letting a replica in that only one voter had heard of was decided after another coordinator had attached
/// without it, and written: the replica came in without these writes.
#[test]
fn a_vote_nobody_heard_of_is_not_decided_later() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 64)?;
        sim.stop(3);
        out(&mut sim, 3)?;
        sim.start_again(3);
        sim.until("it is about to come in", |sim| sim.is_proposing())?;
        sim.api(false);
        sim.cut(1, true, true);
        sim.pass(1_000)?;
        sim.take_over(false, false);
        sim.cut(2, true, true);
        sim.api(true);
        sim.pass(200_000)?;
        sim.mend();
        sim.until("it is served", |sim| sim.coordinator().is_some_and(|c| c.structure().is_some()))?;
        written(&mut sim, 0, 64)?;
        sim.take_over(false, false);
        whole(&mut sim)?;
        read(&mut sim, 0, 64)?;
        sim.finish()
    });
}

#[test]
fn who_knows_what_a_rebuild_lacks_is_lost() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 200)?;
        sim.stop(2);
        out(&mut sim, 2)?;
        written(&mut sim, 0, 64)?;
        // The first is rebuilt while the second is out: it does not know what the second has missed.
        sim.stop(1);
        out(&mut sim, 1)?;
        written(&mut sim, 40, 64)?;
        sim.start_again(1);
        sim.until("the first is back", |sim| sim.is_member(1))?;
        sim.start_again(2);
        let begun = |sim: &Sim| sim.coordinator().is_some_and(|c| c.rebuilding().is_some());
        sim.until("the second is being rebuilt", begun)?;
        let percent = |sim: &Sim| sim.coordinator().and_then(|c| c.rebuilt_percent());
        assert!(percent(&sim).is_some(), "and says how far it is");
        sim.stop(3);
        // Written by the first alone, without waiting for the third to come back.
        written(&mut sim, 80, 64)?;
        sim.until("the second is back", |sim| sim.is_member(2))?;
        assert!(!sim.is_member(3), "it is still down");
        sim.start_again(3);
        whole(&mut sim)?;
        read(&mut sim, 0, 200)?;
        sim.finish()
    });
}

#[test]
fn who_has_the_good_copy_is_lost_during_a_repair() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 300)?;
        sim.snapshot("s")?;
        let token = sim.scrub()?;
        sim.done(token)?;
        sim.rot(3)?;
        sim.scrub()?;
        // The first was to be copied from, and does not answer.
        for _ in 0..5_000 {
            sim.pass(10)?;
            sim.stick(1, |op| matches!(op, Op::ReadPart(..)));
        }
        out(&mut sim, 1)?;
        written(&mut sim, 0, 300)?;
        sim.stop(1);
        sim.start_again(1);
        whole(&mut sim)?;
        read(&mut sim, 0, 300)?;
        sim.finish()
    });
}
