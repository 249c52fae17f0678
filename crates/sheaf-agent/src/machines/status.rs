//! An instance's status from what is seen of its machine. Pure.
//!
//! Owns phase, interfaces, guest information, and the conditions Ready, LiveMigratable, AgentConnected, Paused and
//! Synchronized; everything else stays as it is. Words and reasons are KubeVirt's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use sheaf_api::kubevirt as kv;
use sheaf_qemu::qmp::FailedDisk;
use sheaf_qemu::spec::{DiskBus, MachineSpec};

use super::convert;
use super::ledger::LedgerNic;
use super::monitor::{End, Pause, Run, Seen};
use super::plan::is_final;
use super::probes::Verdict;

/// What keeps a machine from being started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Reason of the condition.
    pub reason: &'static str,
    /// For people: what is missing, and what would help.
    pub message: String,
}

/// How far a running machine is from what its instance says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LiveState {
    /// What its guest was asked for and has not done yet: `disk NAME`, `nic NAME`, `cpu`, `memory`.
    pub asked: BTreeSet<String>,
    /// What could not be done, by the same words, and why.
    pub problems: BTreeMap<String, String>,
}

/// All that the status depends on, besides the instance.
#[derive(Debug, Clone, Default)]
pub struct Facts<'a> {
    /// The machine of this instance.
    pub seen: Option<&'a Seen>,
    /// What was started.
    pub machine: Option<&'a MachineSpec>,
    /// Its NICs, with the address that DHCP gave to each.
    pub nics: Vec<(&'a LedgerNic, Option<IpAddr>)>,
    /// Why it was not started.
    pub problem: Option<&'a Problem>,
    /// A machine of an earlier instance is still ending.
    pub waits_for_other: bool,
    /// Its guest's file systems are frozen.
    pub frozen: bool,
    /// What its readiness probe has found, if it has one.
    pub readiness: Option<Verdict>,
    /// Whether credentials are in place in the guest, if some are to be.
    pub credentials: Option<Result<(), String>>,
    /// A dump of its memory.
    pub dump: Option<super::dump::Dump>,
    /// What is being changed in it.
    pub live: Option<&'a LiveState>,
    /// Claims by the disk or drive that they are in.
    pub drives: Option<&'a BTreeMap<String, String>>,
    /// The instance's claims.
    pub claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
}

/// The instance with its status as it should be.
pub fn with_status(
    vmi: &kv::VirtualMachineInstance,
    facts: &Facts<'_>,
    now: Timestamp,
) -> kv::VirtualMachineInstance {
    let mut out = vmi.clone();
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let mut status = out.status.take().unwrap_or_default();
    let unwanted = super::plan::annotation(vmi, sheaf_plan::vm::pod::POD_DELETED).is_some();
    let lost = facts.seen.is_none()
        && !facts.waits_for_other
        && (status.phase == "Running" || unwanted && !is_final(&status.phase));
    let phase = match facts.seen.map(|s| &s.run) {
        _ if is_final(&status.phase) => status.phase.clone(),
        None if lost => "Failed".into(),
        None | Some(Run::Starting) => status.phase.clone(),
        Some(Run::Running | Run::Paused(_)) => "Running".into(),
        Some(Run::Ended(end)) => final_phase(end, vmi).into(),
    };
    if phase != status.phase {
        status.phase_transition_timestamps.push(kv::PhaseTransition {
            phase: phase.clone(),
            phase_transition_timestamp: Some(now.clone()),
        });
        status.phase = phase;
    }
    conditions(&mut status, vmi, facts, lost, &now);
    let alive = facts.seen.filter(|s| !matches!(s.run, Run::Ended(_) | Run::Starting));
    if let (Some(seen), Some(machine)) = (alive, facts.machine) {
        running(&mut status, vmi, seen, machine, facts);
    }
    out.status = Some(status);
    out
}

fn final_phase(end: &End, vmi: &kv::VirtualMachineInstance) -> &'static str {
    let acpi = vmi.spec.domain.features.as_ref().and_then(|f| f.acpi.as_ref());
    let acpi = acpi.and_then(|a| a.enabled).unwrap_or(true);
    match end {
        End::Shutdown => "Succeeded",
        // A guest that had no chance to power off did nothing wrong.
        End::Forced { grace } if *grace == 0 || !acpi => "Succeeded",
        End::Forced { .. } | End::Panicked | End::Watchdog | End::Crashed(_) | End::Unborn => "Failed",
    }
}

/// Why a machine is over, for people.
pub fn end_text(end: &End) -> String {
    match end {
        End::Shutdown => "The VirtualMachineInstance was shut down.".into(),
        End::Unborn => "The VirtualMachineInstance was not started; it is being started again.".into(),
        End::Panicked => "The VirtualMachineInstance crashed: the guest's kernel panicked.".into(),
        End::Watchdog => {
            "The VirtualMachineInstance crashed: its watchdog powered it off, as the guest had stopped feeding it.".into()
        }
        End::Forced { grace } => {
            format!("The VirtualMachineInstance did not power off within {grace} s and was ended.")
        }
        End::Crashed(words) => format!("The VirtualMachineInstance crashed: {words}"),
    }
}

/// Which disks keep a guest from going on, in upstream's words.
pub fn io_error_text(disks: &[FailedDisk]) -> String {
    let texts = disks.iter().map(|d| match d.full {
        true => format!("VM Paused due to not enough space on volume: {}", d.disk),
        false => format!("VM Paused due to IO error at the volume: {}", d.disk),
    });
    texts.collect::<Vec<_>>().join("; ")
}

fn running(
    status: &mut kv::VirtualMachineInstanceStatus,
    vmi: &kv::VirtualMachineInstance,
    seen: &Seen,
    machine: &MachineSpec,
    facts: &Facts<'_>,
) {
    status.fs_freeze_status = if facts.frozen { "frozen".into() } else { String::new() };
    status.interfaces = interfaces(seen, machine, &facts.nics);
    if let Some(os) = &seen.guest.os {
        status.guest_os_info = Some(kv::GuestOsInfo {
            id: os.id.clone(),
            kernel_release: os.kernel_release.clone(),
            kernel_version: os.kernel_version.clone(),
            machine: os.machine.clone(),
            name: os.name.clone(),
            pretty_name: os.pretty_name.clone(),
            version: os.version.clone(),
            version_id: os.version_id.clone(),
        });
    }
    if !seen.machine_type.is_empty() {
        status.machine = Some(kv::Machine { r#type: seen.machine_type.clone() });
    }
    let cpu = &machine.cpu;
    status.current_cpu_topology = Some(kv::CpuTopology {
        cores: Some(cpu.cores),
        sockets: Some(cpu.sockets),
        threads: Some(cpu.threads),
    });
    let asked = vmi.spec.domain.memory.as_ref().and_then(|m| m.guest.clone());
    let in_mib = |bytes: u64| Quantity(format!("{}Mi", bytes >> 20));
    let boot = match status.memory.as_ref().and_then(|m| m.guest_at_boot.clone()) {
        Some(known) => known,
        None => asked.clone().unwrap_or_else(|| in_mib(machine.memory_bytes)),
    };
    let current = match seen.memory_plugged {
        0 => boot.clone(),
        more => in_mib(machine.memory_bytes + more),
    };
    status.memory = Some(kv::MemoryStatus {
        guest_at_boot: Some(boot.clone()),
        guest_current: Some(current),
        guest_requested: Some(asked.unwrap_or(boot)),
        memory_overhead: Some(in_mib(overhead(machine))),
    });
    status.volume_status = volumes(vmi, machine, &status.volume_status, facts);
    status.migration_method = if status.migration_method.is_empty() {
        "BlockMigration".into()
    } else {
        status.migration_method.clone()
    };
    status.migration_transport = "Unix".into();
    status.vsock_cid = machine.rare.vsock_cid.map(i64::from);
}

fn volumes(
    vmi: &kv::VirtualMachineInstance,
    machine: &MachineSpec,
    before: &[kv::VolumeStatus],
    facts: &Facts<'_>,
) -> Vec<kv::VolumeStatus> {
    let known = |name: &str| before.iter().find(|v| v.name == name);
    let mut taken: BTreeSet<String> = before.iter().map(|v| v.target.clone()).collect();
    let mut out = Vec::new();
    for disk in &machine.disks {
        let volume = vmi.spec.volumes.iter().find(|v| v.name == disk.name);
        // Names stay with their disks, however many come and go.
        let prefix = if disk.bus == DiskBus::Virtio { "vd" } else { "sd" };
        let target = match known(&disk.name).map(|v| v.target.clone()).filter(|t| t.starts_with(prefix)) {
            Some(target) => target,
            None => free_target(prefix, &taken),
        };
        taken.insert(target.clone());
        let leaving = disk.tuning.hotplugged && volume.is_none();
        if volume.is_none() && !leaving {
            continue;
        }
        let claim = facts.drives.and_then(|d| d.get(&disk.name));
        let mut status = kv::VolumeStatus {
            name: disk.name.clone(),
            target,
            persistent_volume_claim_info: claim.map(|c| claim_info(c, facts.claims.get(c))),
            ..known(&disk.name).cloned().unwrap_or_default()
        };
        (status.phase, status.reason, status.message) = Default::default();
        status.hotplug_volume = None;
        // A disc is plugged into a drive that was there at the start.
        if disk.tuning.hotplugged || volume.is_some_and(super::disks::hotpluggable) {
            let name = &disk.name;
            let (phase, reason, message) = match (leaving, disk.source.is_some()) {
                (true, _) => (
                    "Detaching",
                    "VolumeDetaching",
                    format!("Waiting for the guest to release volume {name}"),
                ),
                (false, true) => {
                    ("Ready", "VolumeReady", format!("Successfully attach hotplugged volume {name} to VM"))
                }
                (false, false) => ("Pending", "VolumePending", "The drive is empty".into()),
            };
            (status.phase, status.reason, status.message) = (phase.into(), reason.into(), message);
            status.hotplug_volume = Some(kv::HotplugVolumeStatus::default());
        }
        if let Some(problem) = facts.live.and_then(|l| l.problems.get(&format!("disk {}", disk.name))) {
            (status.reason, status.message) = ("FailedHotplugSync".into(), problem.clone());
        }
        out.push(status);
    }
    // What is wanted and not there yet.
    for volume in vmi.spec.volumes.iter().filter(|v| super::disks::hotpluggable(v)) {
        if machine.disks.iter().any(|d| d.name == volume.name) {
            continue;
        }
        let claim = volume.persistent_volume_claim.as_ref().map(|c| c.claim_name.as_str());
        let claim =
            claim.or_else(|| volume.data_volume.as_ref().map(|d| d.name.as_str())).unwrap_or_default();
        let pvc = facts.claims.get(claim);
        let bound = pvc.and_then(|p| p.status.as_ref()?.phase.as_deref()) == Some("Bound");
        let problem = facts.live.and_then(|l| l.problems.get(&format!("disk {}", volume.name)));
        out.push(kv::VolumeStatus {
            name: volume.name.clone(),
            phase: if bound { "Bound" } else { "Pending" }.into(),
            reason: if problem.is_some() { "FailedHotplugSync" } else { "PVCNotReady" }.into(),
            message: problem.cloned().unwrap_or_else(|| format!("PVC {claim} is not ready yet")),
            hotplug_volume: Some(kv::HotplugVolumeStatus::default()),
            persistent_volume_claim_info: Some(claim_info(claim, pvc)),
            ..kv::VolumeStatus::default()
        });
    }
    if let Some(dump) = &facts.dump {
        out.push(dump.status());
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

/// The first name of a disk that is free: `vda` to `vdz`, then `vdaa` and on.
fn free_target(prefix: &str, taken: &BTreeSet<String>) -> String {
    let letter = |n: u32| char::from(b'a' + u8::try_from(n % 26).unwrap_or(0));
    (0_u32..)
        .map(|n| match n {
            0..26 => format!("{prefix}{}", letter(n)),
            _ => format!("{prefix}{}{}", letter(n / 26 - 1), letter(n)),
        })
        .find(|name| !taken.contains(name))
        .unwrap_or_default()
}

fn claim_info(name: &str, claim: Option<&Arc<PersistentVolumeClaim>>) -> kv::ClaimInfo {
    let spec = claim.and_then(|c| c.spec.as_ref());
    kv::ClaimInfo {
        claim_name: name.into(),
        access_modes: spec.and_then(|s| s.access_modes.clone()).unwrap_or_default(),
        capacity: claim.and_then(|c| c.status.as_ref()?.capacity.clone()).unwrap_or_default(),
        requests: spec.and_then(|s| s.resources.as_ref()?.requests.clone()).unwrap_or_default(),
        volume_mode: spec.and_then(|s| s.volume_mode.clone()),
        filesystem_overhead: Some("0".into()),
        preallocated: None,
    }
}

/// An address that says nothing to others.
pub(super) fn is_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_loopback() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || (v6.segments()[0] & 0xffc0) == 0xfe80,
    }
}

fn interfaces(
    seen: &Seen,
    machine: &MachineSpec,
    nics: &[(&LedgerNic, Option<IpAddr>)],
) -> Vec<kv::InterfaceStatus> {
    let told: &[_] = if seen.guest.connected { &seen.guest.interfaces } else { &[] };
    let mut out = Vec::new();
    for (nic, lease) in nics {
        let mac = nic.mac.to_string();
        let agent = told.iter().find(|i| i.mac.as_deref().is_some_and(|m| m.eq_ignore_ascii_case(&mac)));
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in agent.iter().flat_map(|i| &i.addresses).filter_map(|a| a.ip.parse().ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        // What can be reached comes first, the older protocol before the newer.
        ips.sort_by_key(|ip| (is_local(ip), ip.is_ipv6()));
        if let Some(lease) = lease
            && ips.iter().all(is_local)
        {
            ips.insert(0, *lease);
        }
        let texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
        out.push(kv::InterfaceStatus {
            info_source: if agent.is_some() { "domain, guest-agent".into() } else { "domain".into() },
            interface_name: agent.map(|a| a.name.clone()).unwrap_or_default(),
            ip_address: texts.first().cloned().unwrap_or_default(),
            ip_addresses: texts,
            link_state: if machine.nics.iter().any(|n| n.name == nic.name && !n.link_up) {
                "down".into()
            } else {
                "up".into()
            },
            mac,
            name: nic.name.clone(),
            pod_interface_name: String::new(),
            queue_count: machine
                .nics
                .iter()
                .find(|n| n.name == nic.name)
                .and_then(|n| i32::try_from(n.tuning.queues.unwrap_or(1)).ok()),
        });
    }
    for extra in told {
        let Some(mac) = extra.mac.as_deref().filter(|m| *m != "00:00:00:00:00:00") else { continue };
        if out.iter().any(|i| i.mac.eq_ignore_ascii_case(mac)) {
            continue;
        }
        let texts: Vec<String> = extra.addresses.iter().map(|a| a.ip.clone()).collect();
        out.push(kv::InterfaceStatus {
            info_source: "guest-agent".into(),
            interface_name: extra.name.clone(),
            ip_address: texts.first().cloned().unwrap_or_default(),
            ip_addresses: texts,
            mac: mac.into(),
            ..kv::InterfaceStatus::default()
        });
    }
    out
}

fn conditions(
    status: &mut kv::VirtualMachineInstanceStatus,
    vmi: &kv::VirtualMachineInstance,
    facts: &Facts<'_>,
    lost: bool,
    now: &Time,
) {
    let list = &mut status.conditions;
    let run = facts.seen.map(|s| &s.run);
    let up = matches!(run, Some(Run::Running | Run::Paused(_)));
    let why_not = match run {
        Some(Run::Ended(end)) => end_text(end),
        _ if lost => "The machine was gone when the node's agent came back.".into(),
        _ => "Guest VM is not reported as running".into(),
    };
    let ready = match &facts.readiness {
        _ if !up => ("False", "GuestNotRunning", why_not),
        Some(verdict) if verdict.passed != Some(true) => {
            let why = if verdict.why.is_empty() { "has not passed yet".into() } else { verdict.why.clone() };
            ("False", "ContainersNotReady", format!("readiness probe: {why}"))
        }
        _ => ("True", "", String::new()),
    };
    let credentials = facts.credentials.as_ref().filter(|_| up).map(|c| match c {
        Ok(()) => ("True", "", String::new()),
        Err(why) => ("False", "AccessCredentialsSyncFailed", why.clone()),
    });
    set(list, "AccessCredentialsSynchronized", credentials, now);
    // What is over stays as it was last told.
    let settled = is_final(&status.phase) && facts.seen.is_none() && !lost;
    if !settled {
        set(list, "Ready", Some(ready), now);
    }
    let paused = match run {
        Some(Run::Paused(Pause::ByUser)) => Some(("True", "PausedByUser", "VMI was paused by user".into())),
        Some(Run::Paused(Pause::IoError(_))) => {
            Some(("True", "PausedIOError", "VMI was paused, low-level IO error detected".into()))
        }
        Some(Run::Paused(Pause::Other(word))) => {
            Some(("True", "PausedByQemu", format!("VMI was paused by QEMU: {word}")))
        }
        _ => None,
    };
    set(list, "Paused", paused, now);
    let agent = facts.seen.is_some_and(|s| s.guest.connected && up);
    set(list, "AgentConnected", agent.then(|| ("True", "", String::new())), now);
    if up {
        let (ok, reason, message) = migratable(vmi);
        set(list, "LiveMigratable", Some((if ok { "True" } else { "False" }, reason, message)), now);
    }
    if let (true, Some(machine)) = (up, facts.machine) {
        plugging(list, vmi, machine, facts, now);
    } else if !settled {
        set(list, "HotVCPUChange", None, now);
        set(list, "HotMemoryChange", None, now);
    }
    let live_problem = facts.live.and_then(|l| l.problems.iter().next());
    let synchronized = match (facts.problem, run) {
        (_, Some(Run::Running | Run::Paused(_))) => match live_problem {
            Some((about, why)) => {
                Some(("False", "Synchronizing with the Domain failed.", format!("{about}: {why}")))
            }
            None => Some(("True", "", String::new())),
        },
        _ if facts.waits_for_other => Some((
            "False",
            "WaitingForPreviousInstance",
            "an earlier machine of this name is still shutting down on this node".into(),
        )),
        (Some(p), None) if !is_final(&status.phase) => Some(("False", p.reason, p.message.clone())),
        _ => return,
    };
    set(list, "Synchronized", synchronized, now);
}

/// Conditions that are there while processors or memory are being plugged in.
fn plugging(
    list: &mut Vec<kv::Condition>,
    vmi: &kv::VirtualMachineInstance,
    machine: &MachineSpec,
    facts: &Facts<'_>,
    now: &Time,
) {
    let problem = |about: &str| facts.live.and_then(|l| l.problems.get(about)).cloned();
    let asked = vmi.spec.domain.cpu.as_ref().and_then(|c| c.sockets).unwrap_or(0);
    let cpu = match problem("cpu") {
        Some(why) => Some(("False", "HotPlugCPUError", why)),
        None if asked > machine.cpu.sockets => Some(("True", "", String::new())),
        None => None,
    };
    set(list, "HotVCPUChange", cpu, now);
    let plugged = facts.seen.map_or(0, |s| s.memory_plugged);
    let memory = match problem("memory") {
        Some(why) => Some(("False", "Memory Hotplug failed", why)),
        None if plugged != machine.rare.memory_plugged_bytes => Some(("True", "", String::new())),
        None => None,
    };
    set(list, "HotMemoryChange", memory, now);
}

fn migratable(vmi: &kv::VirtualMachineInstance) -> (bool, &'static str, String) {
    for interface in &vmi.spec.domain.devices.interfaces {
        let pod = vmi.spec.networks.iter().any(|n| n.name == interface.name && n.pod.is_some());
        if pod && interface.bridge.is_some() {
            let message = "cannot migrate VMI which does not use masquerade, bridge with kubevirt.io/allow-pod-bridge-network-live-migration VM annotation or a migratable plugin to connect to the pod network".into();
            return (false, "InterfaceNotLiveMigratable", message);
        }
    }
    let claim = vmi.spec.volumes.iter().find_map(|v| {
        let claim = v.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone());
        claim.or_else(|| v.data_volume.as_ref().map(|d| d.name.clone()))
    });
    match claim {
        Some(claim) => (
            false,
            "DisksNotLiveMigratable",
            format!(
                "cannot migrate VMI: PVC {claim} is not shared, live migration requires that all PVCs must be shared (using ReadWriteMany access mode)"
            ),
        ),
        None => (false, "NotMigratable", "live migration is not supported yet".into()),
    }
}

/// Sets or removes a condition; the time of its last change stays if its status does.
fn set(list: &mut Vec<kv::Condition>, kind: &str, value: Option<(&str, &str, String)>, now: &Time) {
    let at = list.iter().position(|c| c.r#type == kind);
    match (at, value) {
        (Some(at), None) => drop(list.remove(at)),
        (None, None) => {}
        (at, Some((status, reason, message))) => {
            let since = at.map(|i| &list[i]).filter(|c| c.status == status);
            let fresh = kv::Condition {
                last_probe_time: None,
                last_transition_time: since
                    .and_then(|c| c.last_transition_time.clone())
                    .or_else(|| Some(now.clone())),
                message,
                reason: reason.into(),
                status: status.into(),
                r#type: kind.into(),
            };
            match at {
                Some(i) => list[i] = fresh,
                None => list.push(fresh),
            }
        }
    }
}

/// Memory that QEMU itself takes beside the guest's, in bytes: measured for TCG with its cache, rounded up.
pub fn overhead(machine: &MachineSpec) -> u64 {
    let cache = match machine.accel {
        sheaf_qemu::accel::Accel::Tcg { cache_mib } => u64::from(cache_mib),
        sheaf_qemu::accel::Accel::Kvm => 0,
    };
    (96 + cache + 8 * u64::from(machine.cpu.count())) << 20
}

/// Whether a machine fits into the node's memory, in bytes; the text says why not.
pub fn fits(needed: u64, overhead: u64, available: u64, promised: u64) -> Result<(), String> {
    let left = available.saturating_sub(promised);
    if needed + overhead <= left {
        return Ok(());
    }
    let gib = |b: u64| format!("{:.1} GiB", b as f64 / f64::from(1 << 30));
    Err(format!(
        "the machine needs {} ({} for the guest and {} for QEMU), and this node has {} left ({} available, of which {} are \
         promised to guests that run); ask for less memory, or stop another machine",
        gib(needed + overhead),
        gib(needed),
        gib(overhead),
        gib(left),
        gib(available),
        gib(promised)
    ))
}

/// The guest's memory, for the sum of what is promised.
pub fn promised(machine: &MachineSpec, resident: u64) -> u64 {
    (ordinary(machine) + overhead(machine)).saturating_sub(resident)
}

/// The guest's memory as far as it is of the kind that everybody shares: huge pages are set aside for guests, are not counted
/// as available, nor as resident.
pub(super) fn ordinary(machine: &MachineSpec) -> u64 {
    if machine.rare.hugepages.is_some() {
        0
    } else {
        machine.memory_bytes + machine.rare.memory_plugged_bytes
    }
}

/// Memory asked for by the instance; zero if it does not say. For messages only.
pub fn asked_memory(vmi: &kv::VirtualMachineInstance) -> u64 {
    convert::memory(&vmi.spec.domain).unwrap_or(0)
}
