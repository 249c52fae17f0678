//! A cgroup for each machine, where the host lets us make one: its share of the processors, and a clean separation from the
//! agent's own group. Best effort, never a reason not to run a guest.
//!
//! Version 2 where the host has it; where it has the older hierarchies (or both, with the controllers in the older ones), a
//! group in the hierarchy of each controller that is used.

use std::path::{Path, PathBuf};

use crate::spec::Rare;

/// Directory below the root of a hierarchy that holds the machines' groups.
const PARENT: &str = "sheaf-machines";
/// Hierarchies of version 1 that a machine gets a group in.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "blkio"];

/// Where the groups of a machine are, and whether they are of version 2.
fn groups(root: &Path, uuid: &str) -> Vec<(PathBuf, bool)> {
    let below = |hierarchy: PathBuf| hierarchy.join(PARENT).join(uuid);
    if root.join("cgroup.controllers").exists() {
        return vec![(below(root.into()), true)];
    }
    let mut out: Vec<(PathBuf, bool)> = CONTROLLERS
        .iter()
        .map(|c| root.join(c))
        .filter(|h| h.join("cgroup.procs").exists())
        .map(|h| (below(h), false))
        .collect();
    // Hosts with the older hierarchies keep the new one here, for keeping processes apart.
    let unified = root.join("unified");
    if unified.join("cgroup.controllers").exists() {
        out.push((below(unified), true));
    }
    out
}

/// What version 2 calls a share, for one of version 1 (2 to 262144).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// What a machine has that asks for nothing: one processor's.
const CPU_SHARES: u64 = 1024;
/// What QEMU has while it comes up, unless its machine has more: as one with sixteen processors.
const STARTING_SHARES: u64 = 16 * CPU_SHARES;

/// What of the host a machine gets beside others.
pub(super) struct Shares {
    /// Of the processors: 1024 for each that it asks for.
    pub(super) cpu: Option<u64>,
    /// Of the disks: 100 is what others have.
    pub(super) io: Option<u16>,
}

impl Shares {
    /// Those of a machine, as its record has them.
    pub(super) fn of(rare: &Rare) -> Self {
        Self { cpu: rare.cpu_shares, io: rare.io_weight }
    }

    /// Those of a QEMU that comes up. That takes little, and somebody waits for it: beside many guests that are busy, with a
    /// share like theirs, it would take as long as they let it.
    pub(super) fn starting(self) -> Self {
        Self { cpu: Some(self.cpu.unwrap_or(CPU_SHARES).max(STARTING_SHARES)), ..self }
    }
}

/// Moves a process into the machine's groups and gives it its shares.
pub(super) fn place(uuid: &str, pid: u32, shares: &Shares) {
    place_in(Path::new("/sys/fs/cgroup"), uuid, Some(pid), shares);
}

/// Gives the machine the shares that it has from now on.
pub(super) fn settle(uuid: &str, shares: &Shares) {
    let cpu = shares.cpu.unwrap_or(CPU_SHARES);
    place_in(Path::new("/sys/fs/cgroup"), uuid, None, &Shares { cpu: Some(cpu), io: None });
}

fn place_in(root: &Path, uuid: &str, pid: Option<u32>, shares: &Shares) {
    for (dir, second) in groups(root, uuid) {
        if let Some(pid) = pid
            && !enter(&dir, second, pid)
        {
            continue;
        }
        for (file, value) in settings(second, shares) {
            if dir.join(file).exists() {
                let _ = std::fs::write(dir.join(file), value.to_string());
            }
        }
    }
}

/// Makes a group and moves a process into it.
fn enter(dir: &Path, second: bool, pid: u32) -> bool {
    let made = std::fs::create_dir_all(dir);
    if second && let Some(parent) = dir.parent() {
        // A controller works in a group if its parents hand it down.
        for above in [parent.parent().unwrap_or(parent), parent] {
            for controller in ["+cpu", "+io"] {
                let _ = std::fs::write(above.join("cgroup.subtree_control"), controller);
            }
        }
    }
    let moved = made.and_then(|()| std::fs::write(dir.join("cgroup.procs"), pid.to_string()));
    if let Err(error) = &moved {
        tracing::debug!(group = %dir.display(), %error, "the machine stays in the agent's cgroup");
    }
    moved.is_ok()
}

/// The files that say so, of one version. Which of those for disks is there depends on the host's I/O scheduler.
fn settings(second: bool, shares: &Shares) -> Vec<(&'static str, u64)> {
    let mut out = Vec::new();
    match (second, shares.cpu) {
        (true, Some(cpu)) => out.push(("cpu.weight", weight(cpu))),
        (false, Some(cpu)) => out.push(("cpu.shares", cpu.clamp(2, 262_144))),
        (_, None) => {}
    }
    if let Some(io) = shares.io {
        let io = u64::from(io).clamp(1, 10_000);
        match second {
            true => out.extend([("io.weight", io), ("io.bfq.weight", io.min(1000))]),
            // Here 500 is what others have, with BFQ 100.
            false => {
                out.extend([("blkio.weight", (io * 5).clamp(10, 1000)), ("blkio.bfq.weight", io.min(1000))])
            }
        }
    }
    out
}

/// Removes the machine's groups, which are empty.
pub(super) fn remove(uuid: &str) {
    for (dir, _) in groups(Path::new("/sys/fs/cgroup"), uuid) {
        let _ = std::fs::remove_dir(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_both_versions() {
        let both = Shares { cpu: Some(2048), io: Some(300) };
        assert_eq!(settings(true, &both), [("cpu.weight", 79), ("io.weight", 300), ("io.bfq.weight", 300)]);
        assert_eq!(
            settings(false, &both),
            [("cpu.shares", 2048), ("blkio.weight", 1000), ("blkio.bfq.weight", 300)]
        );
        assert_eq!(settings(true, &Shares { cpu: None, io: None }), []);
        assert_eq!((weight(2), weight(1024), weight(262_144), weight(0)), (1, 39, 10_000, 1));
    }

    #[test]
    fn groups_are_found_as_the_host_has_them() {
        let dir = tempfile::tempdir().expect("dir");
        let root = dir.path();
        assert_eq!(groups(root, "u"), []);
        std::fs::create_dir_all(root.join("cpu")).expect("dir");
        std::fs::write(root.join("cpu/cgroup.procs"), "").expect("file");
        assert_eq!(groups(root, "u"), [(root.join("cpu/sheaf-machines/u"), false)]);
        // The kernel makes these files with the directory.
        std::fs::create_dir_all(root.join("cpu/sheaf-machines/u")).expect("dir");
        std::fs::write(root.join("cpu/sheaf-machines/u/cpu.shares"), "1024").expect("file");
        place_in(root, "u", Some(77), &Shares { cpu: Some(512), io: Some(300) });
        let read =
            |file: &str| std::fs::read_to_string(root.join("cpu/sheaf-machines/u").join(file)).expect("file");
        assert_eq!((read("cgroup.procs"), read("cpu.shares")), ("77".into(), "512".into()));
        let few = Shares { cpu: Some(512), io: None };
        assert_eq!(few.starting().cpu, Some(16_384));
        assert_eq!(Shares { cpu: Some(20_480), io: None }.starting().cpu, Some(20_480));
        place_in(root, "u", None, &Shares { cpu: Some(1024), io: None });
        assert_eq!((read("cgroup.procs"), read("cpu.shares")), ("77".into(), "1024".into()));
        std::fs::write(root.join("cgroup.controllers"), "cpu").expect("file");
        assert_eq!(groups(root, "u"), [(root.join("sheaf-machines/u"), true)]);
    }
}
