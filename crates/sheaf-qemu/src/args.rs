//! Machine specification to QEMU's argument vector. Pure; held by golden files in `tests/golden`.
//!
//! Works with QEMU 7.2 and later. The process starts paused (`-S`) and does not exit when the guest powers off
//! (`-no-shutdown`): whoever looks later, even after a restart of the agent, sees how the guest ended, and says `quit`.

use std::os::fd::RawFd;
use std::path::Path;

use serde_json::{Value, json};

use crate::accel::Accel;
use crate::pci::Ports;
use crate::spec::{
    Cache, Clock, CpuModel, Disk, DiskBus, ErrorPolicy, Files, Firmware, InputBus, Io, MachineSpec, Nic,
    NicModel, Source, WatchdogAction,
};

/// SATA ports of the chipset.
const SATA_PORTS: usize = 6;
/// QEMU's limit for the name of a block node.
const NODE_NAME_MAX: usize = 31;
/// What QEMU calls x86-64-v2, on top of its own base model: what current distributions are built for, and cheap.
const TCG_MODEL: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt";

/// Open descriptors that the process inherits under the same numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Handles {
    /// Listening socket for QMP.
    pub qmp: RawFd,
    /// Listening socket of the serial port, if the machine has one.
    pub serial: Option<RawFd>,
    /// Listening socket of the guest agent's channel, if the machine has one.
    pub guest_agent: Option<RawFd>,
    /// Open taps, one for each of [`MachineSpec::nics`], in their order.
    pub taps: Vec<RawFd>,
}

/// The specification contradicts itself or asks for what the machine type cannot do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// More SATA drives than the controller has ports.
    #[error(
        "disk {disk:?}: the SATA controller has {SATA_PORTS} ports and all are taken; use bus virtio or scsi for some disks"
    )]
    SataFull {
        /// The first that does not fit.
        disk: String,
    },
    /// A vhost-user disk on a bus that is not virtio.
    #[error("disk {disk:?}: a vhost-user socket needs bus virtio")]
    VhostUserBus {
        /// The disk.
        disk: String,
    },
    /// A CD-ROM drive on a bus that has none.
    #[error("disk {disk:?}: a CD-ROM drive needs bus sata, scsi or usb")]
    CdromBus {
        /// The disk.
        disk: String,
    },
    /// [`MachineSpec::ports`] was not made for these devices.
    #[error("device {device:?} has no PCI address")]
    NoAddress {
        /// The device.
        device: String,
    },
    /// [`Handles`] was not made for these devices.
    #[error("{what} has no open descriptor")]
    NoHandle {
        /// The device.
        what: String,
    },
}

/// Ids of the devices that need a PCIe port, in the order in which the guest should see them: the input of
/// [`crate::pci::assign`]. Network cards come first, so that the first of them is `enp1s0`.
pub fn port_ids(spec: &MachineSpec) -> Vec<String> {
    let mut ids: Vec<String> = spec.nics.iter().map(|n| nic_id(&n.name)).collect();
    if needs_usb(spec) {
        ids.push("usb".into());
    }
    if spec.disks.iter().any(|d| d.bus == DiskBus::Scsi) {
        ids.push("scsi0".into());
    }
    if spec.guest_agent {
        ids.push("vserial0".into());
    }
    ids.extend(spec.disks.iter().filter(|d| d.bus == DiskBus::Virtio).map(|d| disk_id(&d.name)));
    let optional = [
        (spec.tablet == Some(InputBus::Virtio), "tablet0"),
        (spec.balloon, "balloon0"),
        (spec.rng, "rng0"),
        (spec.watchdog.is_some(), "watchdog0"),
    ];
    ids.extend(optional.iter().filter(|(there, _)| *there).map(|(_, id)| (*id).to_string()));
    ids
}

/// Device id of a network card, as QMP wants it.
pub fn nic_id(name: &str) -> String {
    format!("net-{name}")
}

/// Device id of a disk, as QMP wants it.
pub fn disk_id(name: &str) -> String {
    format!("disk-{name}")
}

/// Block node of a disk, as QMP wants it. QEMU limits its length, so long names are shortened by a hash.
pub fn node_name(disk: &str) -> String {
    let plain = format!("b-{disk}");
    if plain.len() <= NODE_NAME_MAX {
        return plain;
    }
    let hash = disk
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("b-{}-{hash:016x}", disk.get(..12).unwrap_or("x"))
}

/// The argument vector, without the program's name.
pub fn argv(spec: &MachineSpec, handles: &Handles) -> Result<Vec<String>, SpecError> {
    let mut a = Args::default();
    base(spec, handles, &mut a);
    a.flag("-nodefaults").flag("-no-user-config").flag("-S").flag("-no-shutdown");
    for port in 1..=spec.ports.total {
        a.opt("-device", Ports::root_port(port));
    }
    consoles(spec, handles, &mut a)?;
    if needs_usb(spec) {
        a.opt("-device", format!("qemu-xhci,id=usb,{}", place(spec, "usb")?));
    }
    nics(spec, handles, &mut a)?;
    disks(spec, &mut a)?;
    extras(spec, &mut a)?;
    a.0.extend(spec.extra.iter().cloned());
    Ok(a.0)
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }
    fn opt(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.into());
        self
    }
}

/// QEMU splits at commas and reads a doubled one as one.
fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

fn path(p: &Path) -> String {
    escaped(&p.to_string_lossy())
}

fn place(spec: &MachineSpec, id: &str) -> Result<String, SpecError> {
    spec.ports.place(id).ok_or_else(|| SpecError::NoAddress { device: id.into() })
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn needs_usb(spec: &MachineSpec) -> bool {
    spec.tablet == Some(InputBus::Usb) || spec.disks.iter().any(|d| d.bus == DiskBus::Usb)
}

fn base(spec: &MachineSpec, handles: &Handles, a: &mut Args) {
    a.opt("-name", format!("guest={},debug-threads=on", escaped(&spec.name)));
    a.opt("-uuid", &spec.uuid);
    a.opt("-pidfile", Files(spec.dir.clone()).pid().to_string_lossy());
    a.opt("-msg", "timestamp=on");
    a.opt("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");

    let secure = matches!(spec.firmware, Firmware::Uefi { secure_boot: true, .. });
    let mut machine = format!(
        "{},usb=off,dump-guest-core=off,vmport=off,smm={},acpi={},memory-backend=ram0",
        escaped(&spec.machine),
        on_off(secure),
        on_off(spec.acpi)
    );
    if let Firmware::Uefi { code, vars, .. } = &spec.firmware {
        machine.push_str(",pflash0=pflash0,pflash1=pflash1");
        for (node, file, read_only) in [("pflash0", code, true), ("pflash1", vars, false)] {
            let file = json!({"driver": "file", "filename": file, "read-only": read_only});
            let raw = json!({"driver": "raw", "node-name": node, "file": file, "read-only": read_only});
            a.opt("-blockdev", raw.to_string());
        }
        if secure {
            a.opt("-global", "driver=cfi.pflash01,property=secure,value=on");
        }
    }
    a.opt("-machine", machine);
    match spec.accel {
        Accel::Kvm => a.opt("-accel", "kvm"),
        Accel::Tcg { cache_mib } => a.opt("-accel", format!("tcg,tb-size={cache_mib}")),
    };
    a.opt("-cpu", cpu_model(spec));
    let c = &spec.cpu;
    let max = c.max_sockets.max(c.sockets).saturating_mul(c.cores).saturating_mul(c.threads);
    let sockets = c.max_sockets.max(c.sockets);
    let (cores, threads) = (c.cores, c.threads);
    a.opt(
        "-smp",
        format!("{},maxcpus={max},sockets={sockets},dies=1,cores={cores},threads={threads}", c.count()),
    );
    a.opt("-m", format!("size={}k", spec.memory_bytes / 1024));
    // Another process (vhost-user) can only serve the guest's memory if it is shared.
    let shared = spec.disks.iter().any(|d| matches!(d.source, Some(Source::VhostUser(_))));
    let backend = if shared { "memory-backend-memfd,share=on" } else { "memory-backend-ram" };
    a.opt("-object", format!("{backend},id=ram0,size={}k", spec.memory_bytes / 1024));
    let clock = match spec.clock {
        Clock::Utc => "base=utc",
        Clock::Localtime => "base=localtime",
    };
    a.opt("-rtc", clock);
    a.opt("-boot", "strict=on");
    let serial = spec.serial.as_ref().map(|s| format!(",serial={}", escaped(s))).unwrap_or_default();
    a.opt(
        "-smbios",
        format!("type=1,manufacturer=KubeVirt,product=None,family=KubeVirt,uuid={}{serial}", spec.uuid),
    );
    if let Some(kernel) = &spec.kernel {
        a.opt("-kernel", kernel.image.to_string_lossy());
        if let Some(initrd) = &kernel.initrd {
            a.opt("-initrd", initrd.to_string_lossy());
        }
        a.opt("-append", &kernel.cmdline);
    }
    a.opt("-chardev", format!("socket,id=qmp,fd={},server=on,wait=off", handles.qmp));
    a.opt("-mon", "chardev=qmp,mode=control");
}

fn cpu_model(spec: &MachineSpec) -> String {
    let emulated = matches!(spec.accel, Accel::Tcg { .. });
    let mut model = match &spec.cpu.model {
        CpuModel::Host if emulated => TCG_MODEL.to_string(),
        CpuModel::Passthrough if emulated => "max".to_string(),
        CpuModel::Host | CpuModel::Passthrough => "host".to_string(),
        CpuModel::Named(name) => escaped(name),
    };
    for (feature, on) in &spec.cpu.features {
        model.push_str(if *on { ",+" } else { ",-" });
        model.push_str(&escaped(feature));
    }
    model
}

fn consoles(spec: &MachineSpec, handles: &Handles, a: &mut Args) -> Result<(), SpecError> {
    let files = Files(spec.dir.clone());
    if spec.serial_console {
        let fd = handles.serial.ok_or_else(|| SpecError::NoHandle { what: "the serial port".into() })?;
        // Opened for appending, so that the agent can cut the log short while QEMU writes to it.
        a.opt(
            "-chardev",
            format!(
                "socket,id=serial0,fd={fd},server=on,wait=off,logfile={},logappend=on",
                path(&files.serial_log())
            ),
        );
        a.opt("-device", "isa-serial,chardev=serial0,id=serial-port0");
    }
    if spec.graphics {
        a.opt("-device", "VGA,id=video0,vgamem_mb=16,bus=pcie.0,addr=0x1");
        a.opt("-vnc", format!("unix:{}", path(&files.vnc())));
    } else {
        a.opt("-display", "none");
    }
    if spec.guest_agent {
        let fd = handles
            .guest_agent
            .ok_or_else(|| SpecError::NoHandle { what: "the guest agent's channel".into() })?;
        a.opt("-chardev", format!("socket,id=qga0,fd={fd},server=on,wait=off"));
        let place = place(spec, "vserial0")?;
        a.opt("-device", format!("virtio-serial-pci-non-transitional,id=vserial0,{place}"));
        a.opt(
            "-device",
            "virtserialport,bus=vserial0.0,nr=1,chardev=qga0,id=agent0,name=org.qemu.guest_agent.0",
        );
    }
    Ok(())
}

fn nics(spec: &MachineSpec, handles: &Handles, a: &mut Args) -> Result<(), SpecError> {
    for (i, nic) in spec.nics.iter().enumerate() {
        let id = nic_id(&nic.name);
        let no_tap = || SpecError::NoHandle { what: format!("network card {:?}", nic.name) };
        let fd = handles.taps.get(i).ok_or_else(no_tap)?;
        a.opt("-netdev", format!("tap,id=host-{id},fd={fd}"));
        a.opt("-device", nic_device(nic, &id, &place(spec, &id)?));
    }
    Ok(())
}

fn nic_device(nic: &Nic, id: &str, place: &str) -> String {
    let driver = match nic.model {
        NicModel::Virtio => "virtio-net-pci-non-transitional",
        NicModel::E1000 => "e1000",
        NicModel::E1000e => "e1000e",
        NicModel::Ne2kPci => "ne2k_pci",
        NicModel::Pcnet => "pcnet",
        NicModel::Rtl8139 => "rtl8139",
    };
    let mut device = format!("{driver},netdev=host-{id},id={id},mac={},{place}", nic.mac);
    if let (NicModel::Virtio, Some(mtu)) = (nic.model, nic.mtu) {
        device.push_str(&format!(",host_mtu={mtu}"));
    }
    match nic.boot_order {
        // Only a card that is booted from needs its ROM.
        None => device.push_str(",romfile="),
        Some(order) => device.push_str(&format!(",bootindex={order}")),
    }
    device
}

fn disks(spec: &MachineSpec, a: &mut Args) -> Result<(), SpecError> {
    if spec.disks.iter().any(|d| d.bus == DiskBus::Scsi) {
        a.opt("-device", format!("virtio-scsi-pci-non-transitional,id=scsi0,{}", place(spec, "scsi0")?));
    }
    let (mut sata, mut scsi) = (0_usize, 0_usize);
    for disk in &spec.disks {
        let id = disk_id(&disk.name);
        if let Some(Source::VhostUser(socket)) = &disk.source {
            if disk.bus != DiskBus::Virtio {
                return Err(SpecError::VhostUserBus { disk: disk.name.clone() });
            }
            a.opt("-chardev", format!("socket,id=char-{id},path={}", path(socket)));
            let boot = disk.boot_order.map(|o| format!(",bootindex={o}")).unwrap_or_default();
            let place = place(spec, &id)?;
            a.opt(
                "-device",
                format!("vhost-user-blk-pci-non-transitional,id={id},chardev=char-{id},{place}{boot}"),
            );
            continue;
        }
        if let Some(node) = block_node(disk) {
            a.opt("-blockdev", node.to_string());
        }
        let kind = if disk.cdrom { "cd" } else { "hd" };
        let attach = match disk.bus {
            DiskBus::Virtio if disk.cdrom => return Err(SpecError::CdromBus { disk: disk.name.clone() }),
            DiskBus::Virtio => format!("virtio-blk-pci-non-transitional,id={id},{}", place(spec, &id)?),
            DiskBus::Scsi => {
                scsi += 1;
                format!("scsi-{kind},id={id},bus=scsi0.0,channel=0,scsi-id=0,lun={}", scsi - 1)
            }
            DiskBus::Sata => {
                if sata == SATA_PORTS {
                    return Err(SpecError::SataFull { disk: disk.name.clone() });
                }
                sata += 1;
                format!("ide-{kind},id={id},bus=ide.{}", sata - 1)
            }
            DiskBus::Usb => {
                a.opt("-device", format!("usb-bot,id=bot-{id},bus=usb.0"));
                format!("scsi-{kind},id={id},bus=bot-{id}.0,scsi-id=0,lun=0")
            }
        };
        a.opt("-device", attach + &disk_properties(disk));
    }
    Ok(())
}

fn disk_properties(disk: &Disk) -> String {
    let mut p = String::new();
    if disk.source.is_some() {
        p.push_str(&format!(",drive={}", node_name(&disk.name)));
        if !disk.cdrom {
            p.push_str(&format!(",write-cache={}", on_off(disk.cache != Cache::Writethrough)));
            let (write, read) = match disk.errors {
                ErrorPolicy::Stop => ("stop", "stop"),
                ErrorPolicy::Report => ("report", "report"),
                ErrorPolicy::Ignore => ("ignore", "ignore"),
                ErrorPolicy::Enospace => ("enospc", "report"),
            };
            p.push_str(&format!(",werror={write},rerror={read}"));
        }
    }
    if let Some(serial) = &disk.serial {
        p.push_str(&format!(",serial={}", escaped(serial)));
    }
    if let Some(order) = disk.boot_order {
        p.push_str(&format!(",bootindex={order}"));
    }
    p
}

/// The block node of a disk with a file behind it, as `-blockdev` and `blockdev-add` take it.
pub fn block_node(disk: &Disk) -> Option<Value> {
    let (driver, file) = match disk.source.as_ref()? {
        Source::Raw(file) => ("raw", file),
        Source::Qcow2(file) => ("qcow2", file),
        Source::VhostUser(_) => return None,
    };
    let aio = match disk.io {
        Io::Threads => "threads",
        Io::Native => "native",
    };
    let cache = json!({"direct": disk.cache == Cache::None, "no-flush": false});
    Some(json!({
        "driver": driver,
        "node-name": node_name(&disk.name),
        "read-only": disk.read_only,
        "discard": "unmap",
        "cache": cache,
        "file": {
            "driver": "file", "filename": file, "aio": aio, "cache": cache, "discard": "unmap",
            "read-only": disk.read_only,
        },
    }))
}

fn extras(spec: &MachineSpec, a: &mut Args) -> Result<(), SpecError> {
    match spec.tablet {
        Some(InputBus::Usb) => {
            a.opt("-device", "usb-tablet,id=tablet0,bus=usb.0");
        }
        Some(InputBus::Virtio) => {
            a.opt("-device", format!("virtio-tablet-pci,id=tablet0,{}", place(spec, "tablet0")?));
        }
        None => {}
    }
    if spec.balloon {
        let place = place(spec, "balloon0")?;
        a.opt(
            "-device",
            format!("virtio-balloon-pci-non-transitional,id=balloon0,free-page-reporting=on,{place}"),
        );
    }
    if spec.rng {
        a.opt("-object", "rng-random,id=random0,filename=/dev/urandom");
        a.opt(
            "-device",
            format!("virtio-rng-pci-non-transitional,id=rng0,rng=random0,{}", place(spec, "rng0")?),
        );
    }
    if let Some(action) = spec.watchdog {
        let action = match action {
            WatchdogAction::Poweroff => "poweroff",
            WatchdogAction::Reset => "reset",
            WatchdogAction::Shutdown => "shutdown",
        };
        a.opt("-device", format!("i6300esb,id=watchdog0,{}", place(spec, "watchdog0")?));
        a.opt("-action", format!("watchdog={action}"));
    }
    a.opt("-action", "panic=pause");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_fit_and_differ() {
        assert_eq!(node_name("root"), "b-root");
        let (a, b) = (
            "a-volume-whose-name-is-as-long-as-it-may-be-1",
            "a-volume-whose-name-is-as-long-as-it-may-be-2",
        );
        assert!(node_name(a).len() <= NODE_NAME_MAX, "{}", node_name(a));
        assert_ne!(node_name(a), node_name(b));
    }

    #[test]
    fn commas_do_not_split() {
        assert_eq!(path(Path::new("/a,b/c")), "/a,,b/c");
    }
}
