//! Simulates block storage from seeds, for a time, and prints the seed of a failure with the line that runs it again.
//!
//! `cargo run -p sheaf-block-core --example sim -- --seconds 60 --seed 1` (one seed after the other, from there). `--all`: every kind of
//! fault in every seed; without it the seed says which. `--micros N`: simulated time of each. `--trace`: print all events.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use sheaf_block_core::sim::{Mode, Sim, Summary};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let flag = |name: &str| arguments.iter().any(|a| a == name);
    let number = |name: &str, default: u64| {
        let value = arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1));
        value.and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let (first, seconds, micros) =
        (number("--seed", 1), number("--seconds", 0), number("--micros", 5_000_000));
    let (all, go_on) = (flag("--all"), flag("--go-on"));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut total = Summary::default();
    let mut failures = 0;
    let mut seed = first;
    loop {
        let outcome = std::panic::catch_unwind(|| {
            let sim = Sim::new(seed, if all { Mode::ALL } else { Mode::of(seed) });
            let mut sim = if flag("--trace") { sim.traced() } else { sim };
            sim.run(micros)
        });
        let what = match outcome {
            Ok(Ok(summary)) => {
                total += summary;
                None
            }
            Ok(Err(what)) => Some(what),
            Err(_) => Some("panicked".to_owned()),
        };
        if let Some(what) = what {
            let all = if all { " --all" } else { "" };
            println!("seed {seed}: {what}");
            println!(
                "again: cargo run -p sheaf-block-core --example sim -- --seed {seed} --micros {micros}{all}"
            );
            failures += 1;
            if !go_on {
                return ExitCode::FAILURE;
            }
        }
        seed += 1;
        if Instant::now() >= end {
            break;
        }
    }
    println!("seeds {first} to {}: {failures} failed; {total:?}", seed - 1);
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
