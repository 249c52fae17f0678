//! The program: one binary, whose first word says which role it plays.
//!
//! `sheaf server` and `sheaf agent` are the cluster; all other words are a client of its API. Here are roles,
//! configuration and command line only; what they do is in the packages below.

mod args;
mod client;
mod memory;
mod role;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// Objects are trees of small pieces, and each request makes and drops several: a fifth of the processor time was the C library's
/// allocator (decision note 0022).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match args.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = client::fail::chain(error.as_ref());
            if !text.is_empty() {
                // Nobody may be there to read it.
                let _ = writeln!(std::io::stderr(), "sheaf: {text}");
            }
            ExitCode::from(client::fail::code(&error))
        }
    }
}
