//! What the guest tells of itself through its agent. A task of its own for each machine, so that a guest that is slow
//! or silent delays nothing else; it publishes what it heard and knows nothing of the machine.

use std::sync::Arc;
use std::time::Duration;

use sheaf_qemu::qga::{FileSystem, Interface, OsInfo, Qga};
use tokio::sync::watch;

/// The time is set again, once a second, so many times at most.
const SET_TIME_TRIES: u32 = 60;

/// First wait between two rounds of questions, which doubles up to [`POLL_MAX`]: addresses come early.
const POLL_MIN: Duration = Duration::from_secs(5);
const POLL_MAX: Duration = Duration::from_secs(120);
/// How often an agent that has opened its port but does not answer is tried.
const RETRY: Duration = Duration::from_secs(10);

/// What is known of the guest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Guest {
    /// The agent answers.
    pub connected: bool,
    /// Its version.
    pub version: String,
    /// The guest's network interfaces.
    pub interfaces: Vec<Interface>,
    /// The guest's operating system.
    pub os: Option<OsInfo>,
    /// Its mounted file systems.
    pub file_systems: Vec<FileSystem>,
}

/// Asks the agent while the guest holds its port open (`port`), and publishes the answers. Ends when `port` does.
pub(super) async fn watch_guest(qga: Arc<Qga>, mut port: watch::Receiver<bool>, out: watch::Sender<Guest>) {
    loop {
        if port.wait_for(|open| *open).await.is_err() {
            return;
        }
        tokio::select! {
            closed = port.wait_for(|open| !*open) => {
                if closed.is_err() {
                    return;
                }
            }
            () = ask(&qga, &out) => {}
        }
        out.send_if_modified(|g| std::mem::take(&mut g.connected));
    }
}

async fn ask(qga: &Qga, out: &watch::Sender<Guest>) {
    let mut wait = POLL_MIN;
    loop {
        let Ok(info) = qga.info().await else {
            out.send_if_modified(|g| std::mem::take(&mut g.connected));
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let mut fresh = out.borrow().clone();
        (fresh.connected, fresh.version) = (true, info.version);
        // What an agent does not offer stays unknown.
        if let Ok(interfaces) = qga.interfaces().await {
            fresh.interfaces = interfaces;
        }
        if let Ok(file_systems) = qga.file_systems().await {
            fresh.file_systems = file_systems;
        }
        if let Ok(os) = qga.os_info().await {
            fresh.os = Some(os);
        }
        out.send_if_modified(|g| {
            let changed = *g != fresh;
            *g = fresh;
            changed
        });
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(POLL_MAX);
    }
}

/// A guest that stood still learns what time it is, as soon as its agent listens again.
pub(super) async fn set_time(qga: Arc<Qga>) {
    for _ in 0..SET_TIME_TRIES {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let arguments = serde_json::json!({"time": nanoseconds});
        if qga.call("guest-set-time", Some(arguments), Duration::from_secs(1)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
