//! A cgroup (version 2) for each machine, where the host lets us make one. Best effort: accounting and a clean
//! separation from the agent's own group, never a reason not to run a guest.

use std::path::PathBuf;

/// Directory below the root of the hierarchy that holds the machines' groups.
const PARENT: &str = "sheaf-machines";

fn root() -> Option<PathBuf> {
    // The second is where hosts with the older hierarchies keep the new one.
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .map(PathBuf::from)
        .find(|root| root.join("cgroup.controllers").exists())
}

/// Moves a process into the machine's group.
pub(super) fn place(uuid: &str, pid: u32) {
    let Some(root) = root() else { return };
    let dir = root.join(PARENT).join(uuid);
    let moved = std::fs::create_dir_all(&dir)
        .and_then(|()| std::fs::write(dir.join("cgroup.procs"), pid.to_string()));
    if let Err(error) = moved {
        tracing::debug!(group = %dir.display(), %error, "the machine stays in the agent's cgroup");
    }
}

/// Removes the machine's group, which is empty.
pub(super) fn remove(uuid: &str) {
    if let Some(root) = root() {
        let _ = std::fs::remove_dir(root.join(PARENT).join(uuid));
    }
}
