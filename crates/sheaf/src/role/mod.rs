//! The roles that run until they are told to stop, and what they share: the runtime, the log, the signals.

pub(crate) mod agent;
pub(crate) mod server;
pub(crate) mod storage;

use std::future::Future;
use std::io::IsTerminal;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Runs a role to its end. Two workers: the work is waiting, and each thread costs memory.
pub(crate) fn block_on(role: impl Future<Output = Result<()>>) -> Result<()> {
    start_log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let _small = runtime.spawn(crate::memory::keep_small());
    let result = runtime.block_on(role);
    // What still runs in the background has been asked to end; what does not hear is not waited for.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// How this machine's storage process is started: by the program that runs now. Port 0: not at all.
fn storage_config(
    data: &std::path::Path,
    address: std::net::IpAddr,
    port: u16,
) -> Result<Option<sheaf_agent::storage::StorageConfig>> {
    if port == 0 {
        return Ok(None);
    }
    let program = std::env::current_exe().context("finding the program that runs")?;
    // It lives in other directories than ours.
    let data = std::path::absolute(data).with_context(|| format!("finding {}", data.display()))?;
    Ok(Some(sheaf_agent::storage::StorageConfig { program, dir: data.join("storage"), address, port }))
}

/// Log lines on standard error; `SHEAF_LOG` chooses levels as `RUST_LOG` does elsewhere, `SHEAF_LOG_FORMAT=json` the form.
fn start_log() {
    let filter = EnvFilter::try_from_env("SHEAF_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("SHEAF_LOG_FORMAT").is_ok_and(|f| f == "json") {
        log.json().init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
    }
}

/// Resolves at SIGTERM or SIGINT.
pub(crate) async fn told_to_stop() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// The machine's host name, for a node's name where none is given.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let short = name.trim().to_ascii_lowercase();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if !short.is_empty() && short.chars().all(fits) { short } else { "node-1".into() }
}
