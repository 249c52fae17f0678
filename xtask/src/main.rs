//! Repository chores, a thin dispatcher: one module for each.

mod tidy;

use std::process::ExitCode;

use clap::Parser;

/// Chores of the repository.
#[derive(Parser)]
#[command(name = "xtask")]
enum Chore {
    /// Checks what no compiler checks: floors, file headers, length of files, words that must not appear.
    Tidy,
}

fn main() -> anyhow::Result<ExitCode> {
    match Chore::parse() {
        Chore::Tidy => tidy::run(),
    }
}
