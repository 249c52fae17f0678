//! Named cases of damage that nobody can repair: the last good copy has it. The letter D is for them; L for layers that clones share.
//!
//! As in `scenarios.rs` each ends with all faults gone: the volume gets healthy, and all content is right, but for what is known as damaged, which
//! may only be where something was damaged.

use sheaf_block_core::coordinator::RequestError;
use sheaf_block_core::ids::{Token, VolumeId};
use sheaf_block_core::sim::Sim;
use sheaf_block_core::structure::{CloneOf, Kind, SnapshotName};

type Outcome = Result<(), String>;

fn for_seeds(story: impl Fn(u64) -> Outcome) {
    for seed in 1..=8 {
        if let Err(what) = story(seed) {
            panic!("seed {seed}: {what}");
        }
    }
}

fn done(sim: &mut Sim, token: Result<Token, String>) -> Outcome {
    let token = token?;
    sim.done(token)
}

fn written(sim: &mut Sim, first: u64, count: u64) -> Outcome {
    let token = sim.write(first, count);
    done(sim, token)
}

fn read(sim: &mut Sim, first: u64, count: u64) -> Outcome {
    let token = sim.read(first, count);
    done(sim, token)
}

/// It fails because the data is damaged.
fn fails(sim: &mut Sim, token: Result<Token, String>) -> Outcome {
    let token = token?;
    sim.until("the request is answered", |sim| sim.outcome(token).is_some())?;
    match sim.outcome(token) {
        Some(Err(RequestError::Io)) => Ok(()),
        other => Err(format!("{token:?}: {other:?}")),
    }
}

fn whole(sim: &mut Sim) -> Outcome {
    sim.until("all are in sync", Sim::healthy)
}

/// Two replicas with eight segments' worth of blocks, the second lost for good, a block of the first unreadable.
fn left_alone(seed: u64, lost: &[u64]) -> Result<Sim, String> {
    let mut sim = Sim::scripted(seed, 2)?;
    written(&mut sim, 0, 1_000)?;
    sim.stop(2);
    sim.until("the second is out", |sim| !sim.is_member(2))?;
    lost.iter().try_for_each(|block| sim.lose_block(1, *block))?;
    sim.lose_for_good(2)?;
    Ok(sim)
}

#[test]
fn d1_a_rebuild_goes_on_around_a_block_that_cannot_be_read() {
    for_seeds(|seed| {
        let mut sim = left_alone(seed, &[5, 70, 71])?;
        whole(&mut sim)?;
        assert_eq!((sim.damaged_blocks(1), sim.damaged_blocks(3)), (3, 3), "exactly these, at both");
        assert!(sim.counts().is_some_and(|counts| counts.abandoned == 0 && counts.damaged >= 2));
        // All around them is read, they are not, whoever is asked.
        read(&mut sim, 0, 40)?;
        read(&mut sim, 48, 512)?;
        let token = sim.read(40, 8);
        fails(&mut sim, token)?;
        sim.stop(1);
        read(&mut sim, 48, 512)?;
        let token = sim.read(40, 1);
        fails(&mut sim, token)?;
        sim.start_again(1);
        whole(&mut sim)?;
        // A part of the block does not heal it: the rest would be invented.
        let token = sim.write(40, 1);
        fails(&mut sim, token)?;
        // The whole block does, durably, at both.
        written(&mut sim, 40, 8)?;
        read(&mut sim, 0, 48)?;
        assert_eq!((sim.damaged_blocks(1), sim.damaged_blocks(3)), (2, 2));
        let token = sim.discard(560, 16);
        done(&mut sim, token)?;
        read(&mut sim, 0, 1_000)?;
        (1..=3).filter(|id| *id != 2).for_each(|id| sim.power_off(id));
        (1..=3).filter(|id| *id != 2).for_each(|id| sim.start_again(id));
        sim.take_over(false, false);
        whole(&mut sim)?;
        assert_eq!((sim.damaged_blocks(1), sim.damaged_blocks(3)), (0, 0));
        read(&mut sim, 40, 8)?;
        sim.finish()
    });
}

#[test]
fn d2_what_rotted_in_the_last_copy_is_known_and_can_be_left_behind() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        written(&mut sim, 0, 1_000)?;
        sim.snapshot("s1")?;
        written(&mut sim, 8, 8)?;
        let scrub = sim.scrub();
        done(&mut sim, scrub)?;
        sim.stop(2);
        sim.until("the second is out", |sim| !sim.is_member(2))?;
        sim.rot(1)?;
        sim.lose_for_good(2)?;
        whole(&mut sim)?;
        let damaged = sim.damaged_blocks(1);
        assert!(damaged > 0 && damaged == sim.damaged_blocks(3));
        // What is above it is read; and above it new things are written.
        read(&mut sim, 8, 8)?;
        let token = sim.write(0, 1_000);
        done(&mut sim, token)?;
        read(&mut sim, 0, 1_000)?;
        sim.finish()
    });
}

#[test]
fn d3_a_replica_that_comes_back_with_a_good_copy_heals_the_others() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 400)?;
        sim.snapshot("s1")?;
        let scrub = sim.scrub();
        done(&mut sim, scrub)?;
        for id in [2, 3] {
            sim.stop(id);
            sim.until("it is out", |sim| !sim.is_member(id))?;
        }
        sim.rot(1)?;
        // The third is replaced, and copied from what is damaged; then the second is back with what it had.
        sim.lose_for_good(3)?;
        sim.until("it is in", |sim| sim.is_member(4))?;
        assert!(sim.damaged_blocks(1) > 0 && sim.damaged_blocks(4) == sim.damaged_blocks(1));
        sim.start_again(2);
        whole(&mut sim)?;
        let scrub = sim.scrub();
        done(&mut sim, scrub)?;
        assert_eq!([1, 2, 4].map(|id| sim.damaged_blocks(id)), [0; 3]);
        read(&mut sim, 0, 400)?;
        sim.finish()
    });
}

#[test]
fn d4_damage_goes_with_a_fold_and_is_not_read_through() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        written(&mut sim, 0, 512)?;
        let first = sim.snapshot("s1")?;
        written(&mut sim, 0, 16)?;
        let second = sim.snapshot("s2")?;
        sim.stop(2);
        sim.until("the second is out", |sim| !sim.is_member(2))?;
        // One of the upper layer, over what the lower one has, and two of the lower one.
        [1, 9, 10].into_iter().try_for_each(|block| sim.lose_block(1, block))?;
        sim.lose_for_good(2)?;
        whole(&mut sim)?;
        assert_eq!((sim.damaged_blocks(1), sim.damaged_blocks(3)), (3, 3));
        let token = sim.read(8, 8);
        fails(&mut sim, token)?;
        // A block of the lower layer is written above: only through the snapshot it is damaged.
        written(&mut sim, 72, 8)?;
        read(&mut sim, 72, 8)?;
        for layer in [first, second] {
            let token = sim.operate(Kind::Remove(layer));
            done(&mut sim, token)?;
        }
        sim.until("both are folded", |sim| {
            sim.coordinator().and_then(|c| c.structure()).is_some_and(|s| s.layers.len() == 1)
        })?;
        assert_eq!((sim.damaged_blocks(1), sim.damaged_blocks(3)), (2, 2), "the others are in the head now");
        for block in [1, 10] {
            let token = sim.read(block * 8, 8);
            fails(&mut sim, token)?;
        }
        read(&mut sim, 72, 8)?;
        written(&mut sim, 0, 128)?;
        assert_eq!((sim.damaged_blocks(1), sim.damaged_blocks(3)), (0, 0));
        sim.finish()
    });
}

#[test]
fn d5_a_block_that_cannot_be_read_does_not_keep_a_volume_from_being_attached() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 2)?;
        written(&mut sim, 0, 200)?;
        // In the segments of the activity log, which are compared at the next attach.
        for at in 0..6 {
            sim.write(at * 16, 16)?;
        }
        sim.pass(5_000)?;
        (1..=2).for_each(|id| sim.stop(id));
        sim.lose_block(1, 3)?;
        sim.lose_block(2, 4)?;
        (1..=2).for_each(|id| sim.start_again(id));
        sim.take_over(false, false);
        whole(&mut sim)?;
        // Each had what the other lacked.
        read(&mut sim, 0, 200)?;
        let scrub = sim.scrub();
        done(&mut sim, scrub)?;
        sim.finish()
    });
}

#[test]
fn d6_one_unreadable_block_does_not_cost_a_replica() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 64)?;
        (1..=3).try_for_each(|id| sim.lose_block(id, u64::from(id)))?;
        (1..=3).try_for_each(|block| read(&mut sim, block * 8, 8))?;
        sim.pass(1_000_000)?;
        // One of them was met, and so all of it looked at: together they had everything.
        read(&mut sim, 0, 64)?;
        assert!((1..=3).all(|id| sim.is_member(id)));
        let damaged: u64 = (1..=3).map(|id| sim.damaged_blocks(id)).sum();
        assert_eq!(damaged, 0, "somebody had each of them");
        sim.finish()
    });
}

#[test]
fn d7_a_kill_anywhere_in_it_loses_no_mark_and_invents_none() {
    for seed in 1..=60 {
        let story = || -> Outcome {
            let mut sim = left_alone(seed, &[5, 70])?;
            sim.pass(seed * 700)?;
            for id in [1, 3] {
                sim.stop(id);
                sim.start_again(id);
                sim.pass(seed * 300)?;
            }
            whole(&mut sim)?;
            assert_eq!((sim.damaged_blocks(1), sim.damaged_blocks(3)), (2, 2));
            let token = sim.write(40, 8)?;
            sim.pass(seed * 30)?;
            let id = if seed % 2 == 0 { 1 } else { 3 };
            if seed % 3 == 0 {
                sim.power_off(id)
            } else {
                sim.stop(id)
            }
            sim.start_again(id);
            sim.done(token)?;
            whole(&mut sim)?;
            read(&mut sim, 0, 48)?;
            assert_eq!((sim.damaged_blocks(1), sim.damaged_blocks(3)), (1, 1));
            sim.finish()
        };
        if let Err(what) = story() {
            panic!("seed {seed}: {what}");
        }
    }
}

#[test]
fn l1_a_layer_that_a_clone_has_is_folded_when_the_clone_is_gone() {
    for_seeds(|seed| {
        let mut sim = Sim::scripted(seed, 3)?;
        written(&mut sim, 0, 200)?;
        let first = sim.snapshot("s1")?;
        written(&mut sim, 8, 16)?;
        let members = sim.coordinator().map(|c| c.membership().in_sync).unwrap_or_default();
        let name = SnapshotName::new("c1").map_err(|error| error.to_string())?;
        let clone = CloneOf { from: first, volume: VolumeId(99), name, created: 1, members };
        let token = sim.operate(Kind::Clone(Box::new(clone)));
        done(&mut sim, token)?;
        let token = sim.operate(Kind::Remove(first));
        done(&mut sim, token)?;
        // Another one, which is nobody else's, is folded meanwhile.
        let second = sim.snapshot("s2")?;
        written(&mut sim, 0, 8)?;
        let token = sim.operate(Kind::Remove(second));
        done(&mut sim, token)?;
        let layers = |sim: &Sim| sim.coordinator().and_then(|c| c.structure()).map_or(0, |s| s.layers.len());
        sim.until("the other one is folded", |sim| layers(sim) == 2)?;
        // A member that comes back changes nothing in that.
        sim.stop(2);
        sim.until("it is out", |sim| !sim.is_member(2))?;
        sim.start_again(2);
        whole(&mut sim)?;
        sim.pass(10_000_000)?;
        assert_eq!(layers(&sim), 2);
        sim.clones_gone();
        sim.until("it is folded", |sim| layers(sim) == 1)?;
        read(&mut sim, 0, 200)?;
        sim.finish()
    });
}
