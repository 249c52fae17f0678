//! The user that a machine's processes run as: one of its own, without a name, a home or a group.
//!
//! Such a user can open nothing of ours: what its QEMU works with is opened by the agent and handed over as descriptors.
//! Only devices that everybody who runs guests needs (`/dev/kvm`) are reached by a group. Where the agent itself has no
//! privileges, machines run as the agent's user. Which user a machine has stands in its record.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::process::{Gid, Resource, Rlimit, Uid};

/// The first user. Nothing else gives out numbers here: they lie above those of containers, and below the sign bit.
pub const FIRST: u32 = 1_900_000_000;
/// Number of users. More than machines fit on a node by far.
pub const COUNT: u32 = 1 << 16;
/// Group of `/dev/kvm` where the system has none for it.
const KVM_GROUP: u32 = FIRST - 1;

/// Whether this process may start others as another user.
pub fn can_change() -> bool {
    rustix::process::geteuid().is_root()
}

/// A user that is not taken: always the same for the same VM, unless another has it.
pub fn pick(vm: &str, taken: &BTreeSet<u32>) -> Option<u32> {
    let hash = vm.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    (0..COUNT).map(|n| FIRST + hash.wrapping_add(n) % COUNT).find(|user| !taken.contains(user))
}

/// Groups beside its own that a machine's user needs.
pub(super) fn groups(kvm: bool) -> std::io::Result<Vec<u32>> {
    let device = Path::new("/dev/kvm");
    if !kvm {
        return Ok(Vec::new());
    }
    let found = device.metadata()?;
    let mode = found.mode();
    if mode & 0o006 == 0o006 {
        return Ok(Vec::new());
    }
    // The group of the administrator opens more than this device.
    if mode & 0o060 == 0o060 && found.gid() != 0 {
        return Ok(vec![found.gid()]);
    }
    chown(device, None, Some(KVM_GROUP))?;
    std::fs::set_permissions(device, std::fs::Permissions::from_mode(0o660))?;
    Ok(vec![KVM_GROUP])
}

/// Gives a file or a socket to a machine's user, and nobody else: for what its QEMU cannot be handed open, because it may
/// have to open it again (the socket of a storage process that comes back). The directories above are its owner's
/// business: QEMU gets the one that it lies in as a descriptor.
pub fn hand_over(path: &Path, user: u32) -> std::io::Result<()> {
    std::os::unix::fs::lchown(path, Some(user), Some(user))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

/// Gives the directory of a socket to a machine's user, and thereby the socket, which others cannot come near: it is made
/// anew when its server comes back, and stays the user's.
pub fn hand_over_socket(socket: &Path, user: u32) -> std::io::Result<()> {
    let dir = socket.parent().unwrap_or(Path::new("."));
    std::os::unix::fs::lchown(dir, Some(user), Some(user))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

/// Gives a directory with all that is in it to a machine's user. Links are given, not followed.
pub(super) fn hand_over_tree(dir: &Path, user: u32) -> std::io::Result<()> {
    std::os::unix::fs::lchown(dir, Some(user), Some(user))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            hand_over_tree(&entry.path(), user)?;
        } else {
            std::os::unix::fs::lchown(entry.path(), Some(user), Some(user))?;
        }
    }
    Ok(())
}

/// Becomes this user, in a child between fork and exec. System calls only.
pub(super) fn become_user(user: u32, groups: &[Gid]) -> std::io::Result<()> {
    rustix::thread::set_thread_groups(groups)?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Lets the process lock any amount of memory, in a child between fork and exec. System calls only.
pub(super) fn may_lock_memory() -> std::io::Result<()> {
    let all = Rlimit { current: None, maximum: None };
    Ok(rustix::process::setrlimit(Resource::Memlock, all)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_keeps_its_user_unless_another_has_it() {
        let mut taken = BTreeSet::new();
        let first = pick("6f5d", &taken).expect("one");
        assert!((FIRST..FIRST + COUNT).contains(&first));
        assert_eq!(pick("6f5d", &taken), Some(first));
        taken.insert(first);
        let second = pick("6f5d", &taken).expect("another");
        assert_ne!(first, second);
        assert_eq!(pick("6f5d", &(FIRST..FIRST + COUNT).collect()), None);
    }
}
