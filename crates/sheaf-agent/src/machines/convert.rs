//! From a VirtualMachineInstance to what QEMU shall be, and to the parts that have to be there first. Pure; held by
//! golden files in `tests/machines`.
//!
//! What cannot be done is refused with the field's path; nothing is left out silently that the guest would miss.
//! Does not look at the node: which files, taps and accelerations there are is filled in by [`super::start`].

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sha2::{Digest, Sha256};
use sheaf_api::kubevirt as kv;
use sheaf_net::Mac;
use sheaf_qemu::accel::Accel;
use sheaf_qemu::pci::Ports;
use sheaf_qemu::spec as q;

use super::disks::{self, DiskWish};
use super::hardware;

/// Memory of the largest guest that is tried, to keep arithmetic away from the border.
const MEMORY_MAX: u64 = 1 << 46;

/// Upstream's annotation for the configuration of a guest that sets itself up by Ignition.
const IGNITION: &str = "kubevirt.io/ignitiondata";

/// Queues of a network card; as upstream, the kernel's limit for a tap.
const QUEUES_MAX: u32 = 256;

/// The instance asks for something that cannot be, or not yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Refused {
    /// Path of the field.
    pub field: String,
    /// What is wrong, and what would help.
    pub why: String,
}

pub(super) fn refused<T>(field: impl Into<String>, why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { field: field.into(), why: why.into() })
}

/// What an instance asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The machine without what only the node knows: disks and NICs are filled from the wishes.
    pub machine: q::MachineSpec,
    /// UEFI firmware, to be found on the node.
    pub uefi: Option<Uefi>,
    /// A TPM: whether its state outlives the instance.
    pub tpm: Option<bool>,
    /// ACPI tables: signature, name of the volume, key in its secret.
    pub acpi_tables: Vec<(&'static str, String, &'static str)>,
    /// Secrets of the volumes that are ones, by volume.
    pub acpi_secrets: BTreeMap<String, String>,
    /// Seconds by which the guest's clock is shifted.
    pub clock_shift: i64,
    /// Disks, in order.
    pub disks: Vec<DiskWish>,
    /// NICs, in order.
    pub nics: Vec<NicWish>,
    /// Host name of the guest.
    pub hostname: String,
    /// The guest stays paused after its start.
    pub start_paused: bool,
    /// Number of the host's processors that it has for itself; 0 if it shares them.
    pub dedicated: usize,
    /// It sees the host's NUMA nodes.
    pub numa: bool,
    /// It is reached by vsock.
    pub vsock: bool,
}

/// UEFI firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uefi {
    /// It checks signatures.
    pub secure_boot: bool,
    /// Its variables outlive the instance.
    pub persistent: bool,
}

/// A NIC and where it shall be plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicWish {
    /// The card.
    pub card: q::Nic,
    /// Its address.
    pub mac: Mac,
    /// The network.
    pub network: NetworkWish,
}

/// A network, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkWish {
    /// The node's management network.
    Management,
    /// A network attachment definition.
    Definition {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// Reads an instance. `dir` is the machine's directory.
pub fn wanted(vmi: &kv::VirtualMachineInstance, dir: &Path) -> Result<Wanted, Refused> {
    let namespace = vmi.metadata.namespace.as_deref().unwrap_or("default");
    let name = vmi.metadata.name.as_deref().unwrap_or_default();
    let domain = &vmi.spec.domain;
    unsupported(domain)?;
    let uuid = uuid(vmi);
    let hostname = if vmi.spec.hostname.is_empty() { name } else { &vmi.spec.hostname };
    let devices = &domain.devices;
    let memory_bytes = memory(domain)?;
    let (clock, clock_shift) = hardware::clock(domain);
    let machine_type = domain.machine.as_ref().map(|m| m.r#type.as_str()).filter(|t| !t.is_empty());
    let machine = q::MachineSpec {
        name: format!("{namespace}_{name}"),
        uuid: uuid.clone(),
        serial: domain.firmware.as_ref().map(|f| f.serial.clone()).filter(|s| !s.is_empty()),
        dir: dir.into(),
        memory_bytes,
        cpu: cpu(domain)?,
        machine: machine_type.unwrap_or("q35").into(),
        accel: Accel::Tcg { cache_mib: 0 },
        firmware: q::Firmware::Bios,
        // KubeVirt turns ACPI off where `features` is absent. Then no guest can be shut down in an orderly way, and
        // PCI Express works by halves; so here it takes an explicit `enabled: false`.
        acpi: enabled(domain.features.as_ref().and_then(|f| f.acpi.as_ref())).unwrap_or(true),
        kernel: None,
        disks: Vec::new(),
        nics: Vec::new(),
        serial_console: devices.autoattach_serial_console.unwrap_or(true),
        graphics: devices.autoattach_graphics_device.unwrap_or(true),
        guest_agent: true,
        rng: devices.rng.is_some(),
        balloon: devices.autoattach_mem_balloon.unwrap_or(true),
        tablet: tablet(devices)?,
        watchdog: watchdog(devices)?,
        clock,
        ports: Ports::default(),
        rare: hardware::rare(&vmi.spec, memory_bytes)?,
        extra: Vec::new(),
    };
    let mut machine = machine;
    machine.rare.io_weight = io_weight(vmi)?;
    machine.rare.firmware_files = ignition(vmi);
    let vcpus = machine.cpu.count();
    let mut disks = disks::wishes(vmi)?;
    limits(vmi, &mut disks)?;
    machine.rare.iothreads = threads(vmi, &machine, &mut disks);
    Ok(Wanted {
        uefi: uefi(domain),
        tpm: devices
            .tpm
            .as_ref()
            .filter(|t| t.enabled.unwrap_or(true))
            .map(|t| t.persistent.unwrap_or(false)),
        acpi_tables: acpi_tables(domain),
        acpi_secrets: vmi
            .spec
            .volumes
            .iter()
            .filter_map(|v| Some((v.name.clone(), v.secret.as_ref()?.secret_name.clone())))
            .collect(),
        clock_shift,
        disks,
        machine,
        nics: nics(vmi, namespace, &uuid, vcpus)?,
        hostname: hostname.into(),
        start_paused: vmi.spec.start_strategy.as_deref() == Some("Paused"),
        dedicated: dedicated(domain, vcpus),
        numa: domain
            .cpu
            .as_ref()
            .and_then(|c| c.numa.as_ref())
            .is_some_and(|n| n.guest_mapping_passthrough.is_some()),
        vsock: devices.autoattach_vsock == Some(true),
    })
}

/// The SMBIOS UUID: as given, else one that stays the same for an instance of this name.
pub fn uuid(vmi: &kv::VirtualMachineInstance) -> String {
    let given = vmi.spec.domain.firmware.as_ref().map(|f| f.uuid.as_str()).filter(|u| !u.is_empty());
    if let Some(given) = given {
        return given.to_lowercase();
    }
    let mut h = Sha256::new();
    h.update("sheaf firmware uuid\0");
    h.update(vmi.metadata.namespace.as_deref().unwrap_or("default"));
    h.update("\0");
    h.update(vmi.metadata.name.as_deref().unwrap_or_default());
    let mut b: [u8; 16] = [0; 16];
    b.copy_from_slice(&h.finalize()[..16]);
    // Version 8: made by a rule of our own.
    b[6] = b[6] & 0x0f | 0x80;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

pub(super) fn enabled(state: Option<&kv::FeatureState>) -> Option<bool> {
    state.map(|s| s.enabled.unwrap_or(true))
}

fn unsupported(domain: &kv::DomainSpec) -> Result<(), Refused> {
    let d = &domain.devices;
    let base = "spec.domain.devices";
    if domain.firmware.as_ref().is_some_and(|f| f.kernel_boot.is_some()) {
        let why = "kernels from container images are not supported; boot from a disk, or remove it to run this machine";
        return refused("spec.domain.firmware.kernelBoot", why);
    }
    let asked = [
        (!d.gpus.is_empty(), format!("{base}.gpus")),
        (!d.host_devices.is_empty(), format!("{base}.hostDevices")),
        (!d.filesystems.is_empty(), format!("{base}.filesystems")),
        (d.downward_metrics.is_some(), format!("{base}.downwardMetrics")),
        (domain.launch_security.is_some(), "spec.domain.launchSecurity".into()),
    ];
    match asked.into_iter().find(|(there, _)| *there) {
        Some((_, field)) => refused(field, "is not supported yet; remove it to run this machine"),
        None => Ok(()),
    }
}

pub(super) fn bytes(field: &str, quantity: &Quantity) -> Result<u64, Refused> {
    let parsed = sheaf_meta::quantity::Quantity::parse(&quantity.0).ok().and_then(|q| q.bytes());
    match parsed {
        Some(bytes) => Ok(bytes),
        None => refused(field, format!("{:?} is not an amount of bytes, as 2Gi", quantity.0)),
    }
}

/// Guest memory: as given, else what is requested, else what is the limit.
pub fn memory(domain: &kv::DomainSpec) -> Result<u64, Refused> {
    let resources = domain.resources.as_ref();
    let guest = domain.memory.as_ref().and_then(|m| m.guest.as_ref());
    let request = resources.and_then(|r| r.requests.get("memory"));
    let limit = resources.and_then(|r| r.limits.get("memory"));
    let (field, quantity) = match (guest, request, limit) {
        (Some(q), ..) => ("spec.domain.memory.guest", q),
        (None, Some(q), _) => ("spec.domain.resources.requests.memory", q),
        (None, None, Some(q)) => ("spec.domain.resources.limits.memory", q),
        _ => return refused("spec.domain.memory.guest", "no memory is asked for; for example 2Gi"),
    };
    let bytes = bytes(field, quantity)?;
    // QEMU wants whole pages; a processor, at least what its firmware needs.
    let bytes = bytes.next_multiple_of(2 << 20);
    if !(16 << 20..=MEMORY_MAX).contains(&bytes) {
        return refused(field, format!("{:?} is not between 16Mi and 64Ti", quantity.0));
    }
    Ok(bytes)
}

fn cpu(domain: &kv::DomainSpec) -> Result<q::Cpu, Refused> {
    let c = domain.cpu.clone().unwrap_or_default();
    let mut sockets = c.sockets.unwrap_or(0);
    if sockets == 0 && c.cores.unwrap_or(0) == 0 && c.threads.unwrap_or(0) == 0 {
        let resources = domain.resources.as_ref();
        let of = |m: &BTreeMap<String, Quantity>| m.get("cpu").cloned();
        let amount = resources.and_then(|r| of(&r.limits).or_else(|| of(&r.requests)));
        let milli =
            amount.and_then(|q| sheaf_meta::quantity::Quantity::parse(&q.0).ok()).map_or(0, |q| q.milli());
        sockets = u32::try_from(milli.max(0).unsigned_abs().div_ceil(1000)).unwrap_or(1);
    }
    let (sockets, cores) = (sockets.max(1), c.cores.unwrap_or(1).max(1));
    let threads = c.threads.unwrap_or(1).max(1);
    let max_sockets = c.max_sockets.unwrap_or(sockets).max(sockets);
    let most = u64::from(max_sockets) * u64::from(cores) * u64::from(threads);
    if most > 255 {
        return refused(
            "spec.domain.cpu",
            format!("sockets x cores x threads is {most}; this kind of machine has at most 255 processors"),
        );
    }
    let model = match c.model.as_str() {
        "" | "host-model" => q::CpuModel::Host,
        "host-passthrough" => q::CpuModel::Passthrough,
        name => q::CpuModel::Named(name.into()),
    };
    let mut features = Vec::new();
    for f in &c.features {
        match f.policy.as_str() {
            "" | "require" | "force" => features.push((f.name.clone(), true)),
            // A host that has what is forbidden shows the guest none of it.
            "disable" | "forbid" => features.push((f.name.clone(), false)),
            // `optional` may be left out.
            _ => {}
        }
    }
    Ok(q::Cpu { sockets, cores, threads, max_sockets, model, features })
}

/// Processors of the host that the machine has for itself: one for each of its own, and one for QEMU's other work if that
/// is to be kept apart.
fn dedicated(domain: &kv::DomainSpec, vcpus: u32) -> usize {
    let Some(cpu) = domain.cpu.as_ref().filter(|c| c.dedicated_cpu_placement == Some(true)) else { return 0 };
    vcpus as usize + usize::from(cpu.isolate_emulator_thread == Some(true))
}

/// The share of the host's disks, from the annotation [`IO_WEIGHT`](sheaf_api::kubevirt::IO_WEIGHT).
fn io_weight(vmi: &kv::VirtualMachineInstance) -> Result<Option<u16>, Refused> {
    let Some(text) = super::plan::annotation(vmi, sheaf_api::kubevirt::IO_WEIGHT) else { return Ok(None) };
    match text.parse() {
        Ok(weight @ 1..=10_000) => Ok(Some(weight)),
        _ => refused(
            format!("metadata.annotations[{}]", sheaf_api::kubevirt::IO_WEIGHT),
            format!("{text:?} is no weight; a number from 1 to 10000, where others have 100"),
        ),
    }
}

/// Ignition's configuration, from upstream's annotation: the guest finds it by the name that Ignition looks for.
fn ignition(vmi: &kv::VirtualMachineInstance) -> Vec<(String, String)> {
    let data = super::plan::annotation(vmi, IGNITION).filter(|data| !data.is_empty());
    data.map(|data| ("opt/com.coreos/config".to_owned(), data.to_owned())).into_iter().collect()
}

fn uefi(domain: &kv::DomainSpec) -> Option<Uefi> {
    let efi = domain.firmware.as_ref()?.bootloader.as_ref()?.efi.as_ref()?;
    let persistent = efi.persistent.unwrap_or(false);
    Some(Uefi { secure_boot: efi.secure_boot.unwrap_or(true), persistent })
}

fn acpi_tables(domain: &kv::DomainSpec) -> Vec<(&'static str, String, &'static str)> {
    let Some(acpi) = domain.firmware.as_ref().and_then(|f| f.acpi.as_ref()) else { return Vec::new() };
    let tables = [("SLIC", &acpi.slic_name_ref, "slic.bin"), ("MSDM", &acpi.msdm_name_ref, "msdm.bin")];
    tables.into_iter().filter(|(_, v, _)| !v.is_empty()).map(|(s, v, k)| (s, v.clone(), k)).collect()
}

/// Threads and queues of the disks; the number of threads.
fn threads(vmi: &kv::VirtualMachineInstance, machine: &q::MachineSpec, disks: &mut [DiskWish]) -> u32 {
    let domain = &vmi.spec.domain;
    let vcpus = machine.cpu.count();
    if domain.devices.block_multi_queue.unwrap_or(false) {
        for wish in disks.iter_mut().filter(|w| w.drive.bus == q::DiskBus::Virtio) {
            wish.drive.tuning.queues = Some(vcpus);
        }
    }
    let own = |name: &str| {
        let disk = domain.devices.disks.iter().find(|d| d.name == name);
        disk.and_then(|d| d.dedicated_io_thread).unwrap_or(false)
    };
    let mut refs: Vec<(bool, &mut q::Disk)> =
        disks.iter_mut().map(|w| (own(&w.drive.name), &mut w.drive)).collect();
    let pool = domain.io_threads.as_ref().and_then(|t| t.supplemental_pool_thread_count);
    hardware::assign_iothreads(domain.io_threads_policy.as_deref(), pool, vcpus, &mut refs)
}

/// Limits of disks' use, from the annotation [`DISK_LIMITS`].
fn limits(vmi: &kv::VirtualMachineInstance, disks: &mut [DiskWish]) -> Result<(), Refused> {
    let Some(text) = super::plan::annotation(vmi, sheaf_api::kubevirt::DISK_LIMITS) else { return Ok(()) };
    let field = format!("metadata.annotations[{}]", sheaf_api::kubevirt::DISK_LIMITS);
    let all = match sheaf_api::kubevirt::DiskLimits::parse(text) {
        Ok(all) => all,
        Err(why) => return refused(field, why),
    };
    for (name, limits) in all {
        // A limit for a disk that is not there (yet) limits nothing.
        if let Some(wish) = disks.iter_mut().find(|w| w.drive.name == name) {
            let rate = |r: sheaf_api::kubevirt::Limit| q::Rate {
                steady: r.steady,
                burst: r.burst,
                burst_seconds: r.burst_seconds,
            };
            wish.drive.tuning.limits = q::Limits {
                iops: rate(limits.iops),
                iops_read: rate(limits.iops_read),
                iops_write: rate(limits.iops_write),
                bytes: rate(limits.bytes),
                bytes_read: rate(limits.bytes_read),
                bytes_write: rate(limits.bytes_write),
            };
        }
    }
    Ok(())
}

fn tablet(devices: &kv::Devices) -> Result<Option<q::InputBus>, Refused> {
    if devices.inputs.is_empty() {
        return Ok(devices.autoattach_input_device.unwrap_or(false).then_some(q::InputBus::Usb));
    }
    if devices.inputs.len() > 1 {
        return refused("spec.domain.devices.inputs", "one input device at most is supported yet");
    }
    match devices.inputs[0].bus.as_str() {
        "" | "usb" => Ok(Some(q::InputBus::Usb)),
        "virtio" => Ok(Some(q::InputBus::Virtio)),
        other => refused(
            "spec.domain.devices.inputs[0].bus",
            format!("{other:?} is no bus for input; usb or virtio"),
        ),
    }
}

fn watchdog(devices: &kv::Devices) -> Result<Option<q::WatchdogAction>, Refused> {
    let Some(dog) = &devices.watchdog else { return Ok(None) };
    let Some(i6300) = &dog.i6300esb else {
        return refused("spec.domain.devices.watchdog", "this kind of machine has the i6300esb only");
    };
    match i6300.action.as_str() {
        "" | "reset" => Ok(Some(q::WatchdogAction::Reset)),
        "poweroff" => Ok(Some(q::WatchdogAction::Poweroff)),
        "shutdown" => Ok(Some(q::WatchdogAction::Shutdown)),
        other => refused(
            "spec.domain.devices.watchdog.i6300esb.action",
            format!("{other:?} is none of poweroff, reset, shutdown"),
        ),
    }
}

fn nics(
    vmi: &kv::VirtualMachineInstance,
    namespace: &str,
    uuid: &str,
    vcpus: u32,
) -> Result<Vec<NicWish>, Refused> {
    let spec = &vmi.spec;
    let devices = &spec.domain.devices;
    let mut interfaces = devices.interfaces.clone();
    let mut networks = spec.networks.clone();
    if interfaces.is_empty() && networks.is_empty() {
        if !devices.autoattach_pod_interface.unwrap_or(true) {
            return Ok(Vec::new());
        }
        let pod = Some(kv::PodNetwork::default());
        networks.push(kv::Network { name: "default".into(), pod, ..kv::Network::default() });
    }
    // A network that no interface names gets one: that is what manifests without `interfaces` mean.
    for network in &networks {
        if !interfaces.iter().any(|i| i.name == network.name) {
            interfaces.push(kv::Interface { name: network.name.clone(), ..kv::Interface::default() });
        }
    }
    let mut out = Vec::new();
    for (i, interface) in interfaces.iter().enumerate() {
        let field = |leaf: &str| format!("spec.domain.devices.interfaces[{i}].{leaf}");
        if interface.state == "absent" {
            continue;
        }
        let Some((at, network)) = networks.iter().enumerate().find(|(_, n)| n.name == interface.name) else {
            return refused(field("name"), format!("no network is named {:?}", interface.name));
        };
        let no = ["sriov", "slirp", "macvtap", "passt"];
        let has = [&interface.sriov, &interface.slirp, &interface.macvtap, &interface.passt];
        if let Some((name, _)) = no.iter().zip(has).find(|(_, binding)| binding.is_some()) {
            return refused(field(name), "is not supported; use bridge or masquerade");
        }
        let mac = mac(interface, namespace, vmi, uuid)
            .map_err(|why| Refused { field: field("macAddress"), why })?;
        let model = match interface.model.as_str() {
            "" | "virtio" => q::NicModel::Virtio,
            "e1000" => q::NicModel::E1000,
            "e1000e" => q::NicModel::E1000e,
            "ne2k_pci" => q::NicModel::Ne2kPci,
            "pcnet" => q::NicModel::Pcnet,
            "rtl8139" => q::NicModel::Rtl8139,
            "igb" => q::NicModel::Igb,
            other => return refused(field("model"), format!("{other:?} is no model of a network card")),
        };
        let card = q::Nic {
            name: interface.name.clone(),
            mac: mac.to_string(),
            model,
            boot_order: interface.boot_order,
            mtu: None,
            link_up: interface.state != "down",
            tuning: q::NicTuning {
                hotplugged: false,
                queues: (devices.network_interface_multiqueue == Some(true) && model == q::NicModel::Virtio)
                    .then(|| vcpus.clamp(1, QUEUES_MAX)),
                acpi_index: interface.acpi_index.and_then(|n| u32::try_from(n).ok()),
                pci: Some(interface.pci_address.clone()).filter(|a| !a.is_empty()),
            },
        };
        out.push(NicWish { card, mac, network: network_wish(network, at, namespace)? });
    }
    Ok(out)
}

fn network_wish(network: &kv::Network, at: usize, namespace: &str) -> Result<NetworkWish, Refused> {
    if let Some(pod) = &network.pod {
        if !pod.vm_ipv6_network_cidr.is_empty() {
            let why = "guests have no IPv6 on the management network yet; remove it, or use a multus network whose bridge has IPv6";
            return refused(format!("spec.networks[{at}].pod.vmIPv6NetworkCIDR"), why);
        }
        return Ok(NetworkWish::Management);
    }
    let Some(multus) = &network.multus else {
        return refused(format!("spec.networks[{}]", network.name), "is neither pod nor multus");
    };
    let (namespace, name) =
        multus.network_name.split_once('/').unwrap_or((namespace, multus.network_name.as_str()));
    Ok(NetworkWish::Definition { namespace: namespace.into(), name: name.into() })
}

/// The card's address: as given, else one that belongs to this interface of this machine for ever.
fn mac(
    interface: &kv::Interface,
    namespace: &str,
    vmi: &kv::VirtualMachineInstance,
    uuid: &str,
) -> Result<Mac, String> {
    let given = &interface.mac_address;
    if given.is_empty() {
        let mut h = Sha256::new();
        for part in [namespace, vmi.metadata.name.as_deref().unwrap_or_default(), &interface.name, uuid] {
            h.update(part);
            h.update("\0");
        }
        let h = h.finalize();
        // Locally administered, one station.
        return Ok(Mac([0x02, h[0], h[1], h[2], h[3], h[4]]));
    }
    let parts: Vec<&str> = given.split([':', '-']).collect();
    let bytes: Option<Vec<u8>> =
        parts.iter().map(|p| (p.len() == 2).then(|| u8::from_str_radix(p, 16).ok()).flatten()).collect();
    match bytes.and_then(|b| <[u8; 6]>::try_from(b).ok()) {
        Some(bytes) if bytes[0] & 1 == 0 => Ok(Mac(bytes)),
        Some(_) => Err(format!("{given:?} is an address of a group, not of one card")),
        None => Err(format!("{given:?} is no hardware address, as 52:54:00:12:34:56")),
    }
}
