//! This node's machines and replicated volumes in numbers, for Prometheus: `/metrics` on the agent's listener. The API server asks for it and merges
//! all nodes'. Gathered when somebody asks; nothing is kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use sheaf_api::kubevirt::VirtualMachineInstance;
use sheaf_plan::metrics::Families;
use sheaf_plan::metrics::instance::{self, Disk, Nic, Stats};
use sheaf_qemu::qmp::GuestMemory;
use sheaf_runtime::Informer;

use super::monitor::{Machine, Run};
use super::table::{Entry, Machines};
use crate::http::{API_SERVER, Routes, answer};
use crate::node::load::TICKS;
use crate::storage::Replicated;

/// A machine that does not answer within this is left out.
const MACHINE_DEADLINE: Duration = Duration::from_secs(3);

/// Adds the route.
pub fn routes(
    machines: &Machines,
    node: &str,
    instances: &Arc<Informer<VirtualMachineInstance>>,
    replicated: Option<&Arc<Replicated>>,
    routes: &mut Routes,
) {
    let (machines, node, instances) = (machines.clone(), node.to_owned(), instances.clone());
    let replicated = replicated.cloned();
    routes.add(Method::GET, "/metrics", &[API_SERVER], move |_, _| {
        let (machines, node, instances) = (machines.clone(), node.clone(), instances.clone());
        let replicated = replicated.clone();
        async move {
            let mut out = gather(&machines, &node, &instances).await;
            if let Some(replicated) = replicated {
                out.merge(&replicated.families().await.render());
            }
            answer(StatusCode::OK, "text/plain; version=0.0.4", out.render())
        }
    });
}

async fn gather(machines: &Machines, node: &str, instances: &Informer<VirtualMachineInstance>) -> Families {
    let mut out = Families::default();
    for key in machines.keys() {
        let Some(entry) = machines.entry(&key) else { continue };
        let Some(machine) = entry.machine.clone() else { continue };
        if !matches!(machine.seen().run, Run::Running | Run::Paused(_)) {
            continue;
        }
        let Ok(stats) = tokio::time::timeout(MACHINE_DEADLINE, look(&machine, &entry)).await else {
            continue;
        };
        let labels = instances.get(&key).and_then(|vmi| vmi.metadata.labels.clone()).unwrap_or_default();
        instance::add(&mut out, node, &key.namespace, &key.name, &labels, &stats);
    }
    out
}

async fn look(machine: &Machine, entry: &Entry) -> Stats {
    let pid = machine.pid();
    let spec = machine.spec();
    let mut stats = Stats {
        cpu_seconds: times(&format!("/proc/{pid}/stat")).unwrap_or_default(),
        resident: machine.resident_bytes(),
        given: spec.memory_bytes + machine.seen().memory_plugged,
        ..Stats::default()
    };
    if let Some(qmp) = machine.qmp() {
        for thread in qmp.cpu_threads().await.unwrap_or_default() {
            let task = format!("/proc/{pid}/task/{}", thread.thread);
            let (user, system) = times(&format!("{task}/stat")).unwrap_or_default();
            stats.vcpus.push((thread.index, user + system, waited(&format!("{task}/schedstat"))));
        }
        for disk in qmp.block_stats().await.unwrap_or_default() {
            let seconds = |ns: u64| ns as f64 / 1e9;
            stats.disks.push(Disk {
                drive: disk.disk,
                operations: [disk.reads, disk.writes, disk.flushes],
                bytes: [disk.read_bytes, disk.written_bytes],
                seconds: [seconds(disk.read_ns), seconds(disk.write_ns), seconds(disk.flush_ns)],
            });
        }
        if spec.balloon {
            stats.guest_memory = balloon(&qmp.guest_memory().await.unwrap_or_default());
        }
    }
    for nic in entry.ledger.nics.iter().filter(|n| !n.tap.is_empty()) {
        let count = |what: &str| number(&format!("/sys/class/net/{}/statistics/{what}", nic.tap));
        let way =
            |way: &str| ["bytes", "packets", "errors", "dropped"].map(|what| count(&format!("{way}_{what}")));
        // What the host's end sends, the guest receives.
        stats.nics.push(Nic { interface: nic.name.clone(), received: way("tx"), sent: way("rx") });
    }
    stats.file_systems = machine
        .seen()
        .guest
        .file_systems
        .iter()
        .map(|f| {
            (
                f.name.clone(),
                f.mountpoint.clone(),
                f.kind.clone(),
                f.total_bytes.unwrap_or(0),
                f.used_bytes.unwrap_or(0),
            )
        })
        .collect();
    stats
}

/// What the balloon driver tells, by metric.
fn balloon(memory: &GuestMemory) -> BTreeMap<&'static str, u64> {
    let known = [
        ("actual_balloon_bytes", memory.actual),
        ("available_bytes", memory.total),
        ("unused_bytes", memory.free),
        ("usable_bytes", memory.available),
        ("cached_bytes", memory.caches),
        ("swap_in_traffic_bytes", memory.swap_in),
        ("swap_out_traffic_bytes", memory.swap_out),
        ("pgmajfault_total", memory.major_faults),
        ("pgminfault_total", memory.minor_faults),
    ];
    let mut out: BTreeMap<&'static str, u64> = known.into_iter().filter_map(|(k, v)| Some((k, v?))).collect();
    if let (Some(total), Some(available)) = (memory.total, memory.available) {
        out.insert("used_bytes", total.saturating_sub(available));
    }
    out
}

/// Seconds in user mode and in the kernel: fields 14 and 15, counted from the last `)` as the name may hold anything.
pub(super) fn times(path: &str) -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string(path).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11).map(|f| f.parse::<f64>().unwrap_or(0.0));
    Some((fields.next()? / TICKS, fields.next()? / TICKS))
}

/// Seconds that a thread waited to run: the second number.
fn waited(path: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn number(path: &str) -> u64 {
    std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_process_has_times() {
        let (user, system) = times("/proc/self/stat").expect("times");
        assert!(user >= 0.0 && system >= 0.0);
        assert_eq!(times("/nowhere"), None);
    }

    #[test]
    fn what_the_guest_does_not_tell_is_left_out() {
        let memory = GuestMemory { total: Some(10), available: Some(4), ..GuestMemory::default() };
        let told = balloon(&memory);
        assert_eq!(told, BTreeMap::from([("available_bytes", 10), ("usable_bytes", 4), ("used_bytes", 6)]));
    }
}
