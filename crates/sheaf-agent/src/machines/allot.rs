//! What a machine of this node has for itself alone: its user, its number on vsock, processors of the host.
//!
//! State: allotments of machines that are being started or run, by UID of their instance. What runs has them in its record,
//! so that an agent that starts anew knows them by adoption. Choosing is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use sheaf_qemu::process::user;
use sheaf_qemu::spec::MachineSpec;

/// Context ids of vsock below this are the host's.
const FIRST_CID: u32 = 3;

/// What one machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Allotment {
    /// A number that no other machine of the node has; the user of its processes, where the agent may choose one.
    pub(super) user: u32,
    /// Processors that no other guest runs on.
    pub(super) cpus: Vec<u32>,
}

impl Allotment {
    /// Its number on vsock.
    pub(super) fn cid(&self) -> u32 {
        self.user.saturating_sub(user::FIRST) + FIRST_CID
    }
}

/// The allotments of a node.
#[derive(Default)]
pub(super) struct Allotments(Mutex<BTreeMap<String, Allotment>>);

impl Allotments {
    /// What the instance `uid` of the VM `vm` has; the same whenever asked. `running` are the machines that there are.
    pub(super) fn of(
        &self,
        uid: &str,
        vm: &str,
        cpus: usize,
        running: &[std::sync::Arc<MachineSpec>],
    ) -> Result<Allotment, String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = all.get(uid).filter(|own| own.cpus.len() == cpus) {
            return Ok(own.clone());
        }
        let others: Vec<&Allotment> = all.iter().filter(|(other, _)| *other != uid).map(|(_, a)| a).collect();
        let users = running.iter().filter_map(|m| m.rare.user).chain(others.iter().map(|a| a.user)).collect();
        let taken = running.iter().flat_map(|m| &m.rare.pinned).chain(others.iter().flat_map(|a| &a.cpus));
        let taken: BTreeSet<u32> = taken.copied().collect();
        let own = Allotment {
            user: user::pick(vm, &users).ok_or("all users for machines are taken on this node")?,
            cpus: choose(&host_cpus(), &taken, cpus)?,
        };
        all.insert(uid.into(), own.clone());
        Ok(own)
    }

    /// Gives back what an instance had.
    pub(super) fn release(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// So many processors that are free. One of the host's stays for everything else.
fn choose(host: &[u32], taken: &BTreeSet<u32>, count: usize) -> Result<Vec<u32>, String> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let free: Vec<u32> = host.iter().copied().filter(|cpu| !taken.contains(cpu)).collect();
    // The first ones are the busiest with the host's own work.
    let own: Vec<u32> = free.iter().rev().take(count).rev().copied().collect();
    if own.len() < count || free.len() <= count {
        return Err(format!(
            "dedicatedCpuPlacement needs {count} processors of the node for this machine alone; of {} are {} free, and one \
             stays for everybody; use fewer, or another node",
            host.len(),
            free.len()
        ));
    }
    Ok(own)
}

/// The processors that the agent itself may use.
pub(super) fn host_cpus() -> Vec<u32> {
    let Ok(set) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).filter_map(|cpu| u32::try_from(cpu).ok()).collect()
}

fn set_of(cpus: &[u32]) -> CpuSet {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu as usize);
    }
    set
}

/// Lets a thread run on these processors only.
pub(super) fn bind_thread(thread: u32, cpus: &[u32]) -> std::io::Result<()> {
    let thread = i32::try_from(thread).ok().and_then(rustix::process::Pid::from_raw);
    Ok(sched_setaffinity(thread, &set_of(cpus))?)
}

/// Lets all threads of a process run on these processors only, and with them all that they will begin.
pub(super) fn bind_process(pid: u32, cpus: &[u32]) -> std::io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = task?.file_name().to_str().and_then(|name| name.parse().ok());
        match thread.map(|thread| bind_thread(thread, cpus)) {
            Some(Err(e)) if e.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                return Err(e);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gives each thread of a guest's processors the one of the host that is its own, and QEMU's other threads those that are left
/// over; all, if none is.
pub(super) fn bind_machine(pid: u32, threads: &[u32], own: &[u32]) -> std::io::Result<()> {
    let rest = own.get(threads.len()..).filter(|rest| !rest.is_empty()).unwrap_or(own);
    let mut bound = bind_process(pid, rest);
    for (thread, cpu) in threads.iter().zip(own) {
        bound = bound.and(bind_thread(*thread, &[*cpu]));
    }
    bound
}

/// The processors that machines without their own may use.
pub(super) fn common(running: &[std::sync::Arc<MachineSpec>]) -> Vec<u32> {
    let taken: BTreeSet<u32> = running.iter().flat_map(|m| &m.rare.pinned).copied().collect();
    host_cpus().into_iter().filter(|cpu| !taken.contains(cpu)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_given_to_one_machine_and_one_is_left() {
        let host = [0, 1, 2, 3];
        let taken = |cpus: &[u32]| cpus.iter().copied().collect();
        assert_eq!(choose(&host, &taken(&[]), 0), Ok(vec![]));
        assert_eq!(choose(&host, &taken(&[]), 2), Ok(vec![2, 3]));
        assert_eq!(choose(&host, &taken(&[3]), 2), Ok(vec![1, 2]));
        for (taken, count) in [(taken(&[2, 3]), 2), (taken(&[]), 4), (taken(&[0, 1, 2, 3]), 1)] {
            let why = choose(&host, &taken, count).expect_err("too many");
            assert!(why.starts_with(&format!("dedicatedCpuPlacement needs {count} processors")), "{why}");
        }
    }

    #[test]
    fn what_an_instance_has_stays_until_it_is_given_back() {
        let all = Allotments::default();
        let first = all.of("i1", "vm", 0, &[]).expect("first");
        assert_eq!(all.of("i1", "vm", 0, &[]), Ok(first.clone()));
        let second = all.of("i2", "vm", 0, &[]).expect("second");
        assert_ne!((first.user, first.cid()), (second.user, second.cid()));
        assert!(first.cid() >= FIRST_CID);
        all.release("i1");
        assert_eq!(all.of("i3", "vm", 0, &[]), Ok(first));
    }

    #[test]
    fn threads_are_bound() {
        let before = host_cpus();
        let one = &before[..1];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                bind_thread(0, one).expect("bound");
                assert_eq!(host_cpus(), one);
            });
        });
        assert_eq!(host_cpus(), before);
    }
}
