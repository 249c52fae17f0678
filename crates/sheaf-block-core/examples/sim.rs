//! Simulates block storage from seeds, for a time, and prints the seed of a failure: run it again with `--seed`.
//!
//! `cargo run -p sheaf-block-core --example sim -- --seconds 60 --seed 1` (one seed after the other, from there).
//! `--machines`: machines go down, too, and lose what was not synced.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use sheaf_block_core::sim::{Sim, Summary};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: u64| {
        let value = arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1));
        value.and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let (first, seconds, micros) =
        (number("--seed", 1), number("--seconds", 0), number("--micros", 5_000_000));
    let machines = arguments.iter().any(|a| a == "--machines");
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut total = Summary::default();
    let mut seed = first;
    loop {
        let outcome = std::panic::catch_unwind(|| {
            let sim = Sim::new(seed);
            let mut sim = if machines { sim.with_machine_failures() } else { sim };
            sim.run(micros)
        });
        match outcome {
            Ok(Ok(summary)) => total += summary,
            Ok(Err(what)) => {
                println!("seed {seed}: {what}");
                return ExitCode::FAILURE;
            }
            Err(_) => {
                println!("seed {seed}: panicked");
                return ExitCode::FAILURE;
            }
        }
        seed += 1;
        if Instant::now() >= end {
            break;
        }
    }
    println!("seeds {first} to {}: {total:?}", seed - 1);
    ExitCode::SUCCESS
}
