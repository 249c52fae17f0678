//! Simulated worlds by seed. `--example sim` runs as many as one likes.

use sheaf_block_core::sim::{Sim, Summary};

/// Open: replicas differ at the end of this one (processes killed, links cut; no machine went down).
const OPEN: [u64; 1] = [11];

fn run(seeds: impl Iterator<Item = u64>, machines: bool) {
    let mut total = Summary::default();
    for seed in seeds {
        let sim = Sim::new(seed);
        let mut sim = if machines { sim.with_machine_failures() } else { sim };
        match sim.run(2_000_000) {
            Ok(summary) => total += summary,
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
    println!("{total:?}");
}

#[test]
fn fixed_seeds() {
    run((1..=100).filter(|seed| !OPEN.contains(seed)), false);
}

#[test]
#[ignore = "open: replicas differ, see OPEN"]
fn open_seeds() {
    run(OPEN.into_iter(), false);
}

#[test]
#[ignore = "open: an acknowledged, unflushed write is missing on a replica whose machine went down (seeds 6, 8, 14, 17, 20)"]
fn machines_go_down() {
    run(1..=100, true);
}
