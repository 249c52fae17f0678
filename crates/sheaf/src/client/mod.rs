//! The commands that are clients of a cluster's API: all but `server` and `agent`.
//!
//! They do what any user with a kubeconfig may do, by the same API; none looks into a data directory except for
//! the kubeconfig that lies there. No state of their own. Objects are whole JSON values here, so that `-o yaml`
//! shows what the server has, with fields that this program does not know.

mod api;
mod connect;
pub(crate) mod fail;
pub(crate) mod image;
pub(crate) mod kubeconfig;
mod print;
mod progress;
pub(crate) mod status;
pub(crate) mod stream;
pub(crate) mod token;
pub(crate) mod vm;
pub(crate) mod volume;

use anyhow::{Context, Result};

pub(crate) use connect::{Connection, Session};

/// What the help of every command ends with.
pub(crate) const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the named object does not exist; 4 it took longer than --timeout.";

/// Connects, and runs a command to its end. Errors come back as people read them.
pub(crate) fn run(connection: &Connection, command: impl AsyncFnOnce(&Session) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(async {
        let session = Session::open(connection).await?;
        command(&session).await.map_err(|error| fail::explain(error, Some(&session)))
    });
    // A thread may be waiting for standard input for ever.
    runtime.shutdown_background();
    result
}

/// Prints a completion script.
pub(crate) fn completion(shell: clap_complete::Shell, command: &mut clap::Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "sheaf", &mut script);
    print::put(&String::from_utf8_lossy(&script))
}
