//! Measures a running `sheaf server` over its real socket, and an etcd beside it: what `make bench-api` runs.
//!
//! `bench_api KUBECONFIG SERVER_PID ETCD_URL ETCD_PID [SECONDS] [OBJECTS]`. Every client has a connection of its own (TLS and
//! HTTP/2; etcd's without TLS, in its favour) and sends one request after the other. The same bytes go to both in turns,
//! and the middle of three runs counts. All writes are durable on both sides before they are answered.
//!
//! The clients' work runs on the same processors as the servers', on one thread. Both kinds of client are thrifty: bodies
//! are texts in which a few bytes are replaced, answers are not parsed. TLS and longer answers make it dearer for Sheaf.

mod api;
mod etcd;
mod lists;
mod load;
mod memory;
mod objects;
mod watches;

use std::time::Duration;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a run is told.
pub(crate) struct Setting {
    pub(crate) server: api::Server,
    pub(crate) etcd: String,
    pub(crate) pid: u32,
    pub(crate) etcd_pid: u32,
    /// Of one run.
    pub(crate) time: Duration,
    /// Objects of the largest measurement of memory.
    pub(crate) objects: usize,
}

/// Whether a part is among those that a variable names; all are where it names none.
pub(crate) fn chosen(variable: &str, part: &str) -> bool {
    let only = std::env::var(variable).unwrap_or_default();
    only.is_empty() || only.split(',').any(|p| p == part)
}

// One thread: what the clients use is taken from the servers.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kubeconfig, pid, etcd, etcd_pid, rest @ ..] = &arguments[..] else {
        return Err("usage: bench_api KUBECONFIG SERVER_PID ETCD_URL ETCD_PID [SECONDS] [OBJECTS]".into());
    };
    let seconds = rest.first().map_or(Ok(5.0), |s| s.parse())?;
    let objects = rest.get(1).map_or(Ok(100_000), |s| s.parse())?;
    let setting = Setting {
        server: api::Server::read(kubeconfig)?,
        etcd: etcd.clone(),
        pid: pid.parse()?,
        etcd_pid: etcd_pid.parse()?,
        time: Duration::from_secs_f64(seconds),
        objects,
    };
    let wanted = |part: &str| chosen("SHEAF_BENCH_ONLY", part);
    println!("Load average before: {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    println!("Resident memory of the server, empty: {}\n", memory::megabytes(memory::resident(setting.pid)?));
    if wanted("writes") {
        load::writes(&setting).await?;
    }
    if wanted("reads") {
        load::reads(&setting).await?;
    }
    if wanted("watches") {
        watches::run(&setting).await?;
    }
    if wanted("lists") {
        lists::run(&setting).await?;
    }
    if wanted("memory") {
        memory::run(&setting).await?;
    }
    println!("Load average after: {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    Ok(())
}
