//! Machine specification to QEMU's argument vector. Pure; held by golden files in `tests/golden`.
//!
//! Works with QEMU 7.2 and later. The process starts paused (`-S`) and does not exit when the guest powers off
//! (`-no-shutdown`): whoever looks later, even after a restart of the agent, sees how the guest ended, and says `quit`.

mod device;
mod disks;

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use serde_json::json;

pub use device::Device;
pub use disks::{block_node, disk_device, disk_id, nic_device, node_name, throttle};

use crate::accel::Accel;
use crate::chain::Format;
use crate::pci::{self, Drive, Ports, SATA_PORTS, SCSI_UNITS};
use crate::spec::{
    Clock, CpuModel, DiskBus, Firmware, InputBus, MachineSpec, PanicDevice, Sound, Source, Video,
    WatchdogAction,
};
use crate::version::Version;

/// Id of the memory that is plugged in later.
pub const PLUGGED_MEMORY: &str = "vmem0";
/// Memory is plugged in in parts of this size, or of a huge page if those are larger.
const MEMORY_BLOCK: u64 = 2 << 20;
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
    /// Open taps, the queues of each of [`MachineSpec::nics`], in their order.
    pub taps: Vec<Vec<RawFd>>,
    /// Open files that QEMU names by a set (`/dev/fdset/1` is the first), each with a note for who looks at them.
    pub sets: Vec<(RawFd, String)>,
    /// What each disk shows, by its name: sets, the layer that is written to first.
    pub disks: BTreeMap<String, Vec<OpenLayer>>,
    /// For each vhost-user disk, by its name: the directory that its socket is in.
    pub sockets: BTreeMap<String, RawFd>,
    /// Sets of the firmware: code, variables.
    pub firmware: Vec<u32>,
    /// Set of the serial port's log.
    pub serial_log: Option<u32>,
    /// Listening sockets for USB devices that viewers pass in.
    pub usb: Vec<RawFd>,
    /// The connection to the TPM's emulator.
    pub tpm: Option<RawFd>,
    /// The host's end of vsock.
    pub vsock: Option<RawFd>,
    /// What the memory is filled with before the guest goes on.
    pub incoming: Option<RawFd>,
    /// Files of [`crate::spec::Rare::acpi_tables`].
    pub acpi_tables: Vec<RawFd>,
    /// Files of [`crate::spec::Rare::firmware_files`].
    pub firmware_files: Vec<RawFd>,
}

/// A layer of a disk that is open in QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenLayer {
    /// How it is read.
    pub format: Format,
    /// The set that names it.
    pub set: u32,
    /// It is a block device of the host.
    pub host_device: bool,
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
    /// A place on the PCI bus that cannot be taken.
    #[error(
        "device {device:?}: the PCI address {address:?} cannot be given; a place on the root bus from 0000:00:06.0 to \
         0000:00:1e.7 can"
    )]
    PciAddress {
        /// The device.
        device: String,
        /// The address.
        address: String,
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
    let mut ids: Vec<String> =
        spec.nics.iter().filter(|n| n.tuning.pci.is_none()).map(|n| nic_id(&n.name)).collect();
    if needs_usb(spec) {
        ids.push("usb".into());
    }
    if needs_scsi(spec) {
        ids.push("scsi0".into());
    }
    if spec.guest_agent {
        ids.push("vserial0".into());
    }
    let on_ports = spec.disks.iter().filter(|d| d.bus == DiskBus::Virtio && d.tuning.pci.is_none());
    ids.extend(on_ports.map(|d| disk_id(&d.name)));
    let optional = [
        (spec.tablet == Some(InputBus::Virtio), "tablet0"),
        (spec.balloon, "balloon0"),
        (spec.rng, "rng0"),
        (spec.watchdog.is_some(), "watchdog0"),
        (spec.rare.sound.is_some(), "sound0"),
        (spec.rare.vsock_cid.is_some(), "vsock0"),
        (grows(spec), PLUGGED_MEMORY),
    ];
    ids.extend(optional.iter().filter(|(there, _)| *there).map(|(_, id)| (*id).to_string()));
    ids
}

/// Ports that stay free for what is plugged in later.
pub fn spare_ports(spec: &MachineSpec) -> u8 {
    if spec.rare.fixed { 0 } else { pci::spare(spec.memory_bytes, port_ids(spec).len()) }
}

/// The machine with a place for each of its devices: what had one keeps it.
pub fn place_all(mut spec: MachineSpec) -> Result<MachineSpec, pci::NoPort> {
    let mut ports = pci::assign(&spec.ports, &port_ids(&spec), spare_ports(&spec))?;
    ports.units = pci::units(&spec.ports, &drives(&spec));
    spec.ports = ports;
    Ok(spec)
}

/// Drives that share a controller.
pub fn drives(spec: &MachineSpec) -> Vec<Drive> {
    let shared = |bus| match bus {
        DiskBus::Scsi => Some((0, SCSI_UNITS)),
        DiskBus::Sata => Some((1, SATA_PORTS)),
        DiskBus::Virtio | DiskBus::Usb => None,
    };
    let drive = |(controller, units), name: &str| Drive { id: disk_id(name), units, controller };
    spec.disks.iter().filter_map(|d| shared(d.bus).map(|s| drive(s, &d.name))).collect()
}

/// Whether memory can be plugged in later.
pub fn grows(spec: &MachineSpec) -> bool {
    spec.rare.memory_max_bytes > spec.memory_bytes
}

/// Memory of a machine whose guest has huge pages of this size is plugged in in parts of so many bytes.
pub fn memory_block(hugepages: Option<u64>) -> u64 {
    hugepages.unwrap_or(0).max(MEMORY_BLOCK)
}

fn needs_scsi(spec: &MachineSpec) -> bool {
    !spec.rare.fixed || spec.disks.iter().any(|d| d.bus == DiskBus::Scsi)
}

/// Device id of a network card, as QMP wants it.
pub fn nic_id(name: &str) -> String {
    format!("net-{name}")
}

/// The argument vector for a QEMU of this version, without the program's name.
pub fn argv(spec: &MachineSpec, handles: &Handles, version: Version) -> Result<Vec<String>, SpecError> {
    let mut a = Args::default();
    base(spec, handles, &mut a)?;
    for n in 1..=spec.rare.iothreads {
        a.opt("-object", format!("iothread,id=iothread{n}"));
    }
    a.flag("-nodefaults").flag("-no-user-config").flag("-S").flag("-no-shutdown");
    for port in 1..=spec.ports.total {
        a.opt("-device", Ports::root_port(port));
    }
    consoles(spec, handles, &mut a)?;
    if needs_usb(spec) {
        a.opt("-device", format!("qemu-xhci,id=usb,{}", place_text(spec, "usb")?));
    }
    disks::nics(spec, handles, &mut a)?;
    disks::disks(spec, handles, version, &mut a)?;
    extras(spec, handles, &mut a)?;
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

/// The name that QEMU opens a set by.
fn set_path(set: u32) -> String {
    format!("/dev/fdset/{set}")
}

fn handle(fd: Option<RawFd>, what: &str) -> Result<RawFd, SpecError> {
    fd.ok_or_else(|| SpecError::NoHandle { what: what.into() })
}

fn place(spec: &MachineSpec, id: &str) -> Result<Vec<(String, String)>, SpecError> {
    spec.ports.place(id).ok_or_else(|| SpecError::NoAddress { device: id.into() })
}

fn place_text(spec: &MachineSpec, id: &str) -> Result<String, SpecError> {
    let parts: Vec<String> = place(spec, id)?.iter().map(|(k, v)| format!("{k}={v}")).collect();
    Ok(parts.join(","))
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn needs_usb(spec: &MachineSpec) -> bool {
    spec.tablet == Some(InputBus::Usb)
        || spec.rare.usb_redirections > 0
        || spec.disks.iter().any(|d| d.bus == DiskBus::Usb)
}

fn base(spec: &MachineSpec, handles: &Handles, a: &mut Args) -> Result<(), SpecError> {
    a.opt("-name", format!("guest={},debug-threads=on", escaped(&spec.name)));
    a.opt("-uuid", &spec.uuid);
    a.opt("-msg", "timestamp=on");
    for (n, (fd, note)) in handles.sets.iter().enumerate() {
        a.opt("-add-fd", format!("fd={fd},set={},opaque={}", n + 1, escaped(note)));
    }
    a.opt("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");

    let secure = matches!(spec.firmware, Firmware::Uefi { secure_boot: true, .. });
    let mut machine = format!(
        "{},usb=off,dump-guest-core=off,vmport=off,smm={},acpi={},memory-backend=ram0",
        escaped(&spec.machine),
        on_off(secure || spec.rare.smm),
        on_off(spec.acpi)
    );
    if let Firmware::Uefi { .. } = &spec.firmware {
        machine.push_str(",pflash0=pflash0,pflash1=pflash1");
        let [code, vars] = handles.firmware[..] else {
            return Err(SpecError::NoHandle { what: "the firmware".into() });
        };
        for (node, set, read_only) in [("pflash0", code, true), ("pflash1", vars, false)] {
            let file = json!({"driver": "file", "filename": set_path(set), "read-only": read_only});
            let raw = json!({"driver": "raw", "node-name": node, "file": file, "read-only": read_only});
            a.opt("-blockdev", raw.to_string());
        }
        if secure {
            a.opt("-global", "driver=cfi.pflash01,property=secure,value=on");
        }
    }
    if spec.rare.firmware_on_serial {
        machine.push_str(",graphics=off");
    }
    for flag in &spec.rare.machine_flags {
        machine.push_str(&format!(",{}", escaped(flag)));
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
    memory(spec, a);
    let mut clock = match &spec.clock {
        Clock::Utc => "base=utc".to_string(),
        // The process has the zone in its environment.
        Clock::Localtime | Clock::Zone(_) => "base=localtime".to_string(),
        Clock::At(date) => format!("base={}", escaped(date)),
    };
    if spec.rare.clock_catch_up {
        clock.push_str(",driftfix=slew");
    }
    a.opt("-rtc", clock);
    let menu = spec.rare.boot_menu_ms.map(|ms| format!(",menu=on,splash-time={ms}")).unwrap_or_default();
    a.opt("-boot", format!("strict=on{menu}"));
    smbios(spec, a);
    for (n, (signature, _)) in spec.rare.acpi_tables.iter().enumerate() {
        let fd = handle(handles.acpi_tables.get(n).copied(), "an ACPI table")?;
        a.opt("-acpitable", format!("sig={},file=/proc/self/fd/{fd}", escaped(signature)));
    }
    for (n, (name, _)) in spec.rare.firmware_files.iter().enumerate() {
        let fd = handle(handles.firmware_files.get(n).copied(), "a file of the firmware's interface")?;
        a.opt("-fw_cfg", format!("name={},file=/proc/self/fd/{fd}", escaped(name)));
    }
    if let Some(kernel) = &spec.kernel {
        a.opt("-kernel", kernel.image.to_string_lossy());
        if let Some(initrd) = &kernel.initrd {
            a.opt("-initrd", initrd.to_string_lossy());
        }
        a.opt("-append", &kernel.cmdline);
    }
    a.opt("-chardev", format!("socket,id=qmp,fd={},server=on,wait=off", handles.qmp));
    a.opt("-mon", "chardev=qmp,mode=control");
    if spec.rare.incoming.is_some() {
        a.opt("-incoming", format!("fd:{}", handle(handles.incoming, "the saved memory")?));
    }
    Ok(())
}

fn memory(spec: &MachineSpec, a: &mut Args) {
    let (size, max) = (spec.memory_bytes / 1024, spec.rare.memory_max_bytes / 1024);
    let maximum = if grows(spec) { format!(",maxmem={max}k") } else { String::new() };
    a.opt("-m", format!("size={size}k{maximum}"));
    // Another process (vhost-user) can only serve the guest's memory if it is shared.
    let shared = spec.disks.iter().any(|d| matches!(d.source, Some(Source::VhostUser(_))));
    let backend = match (spec.rare.hugepages, shared) {
        (Some(page), _) => {
            let bytes = if shared { ",share=on" } else { "" };
            format!("memory-backend-memfd,hugetlb=on,hugetlbsize={}k,prealloc=on{bytes}", page / 1024)
        }
        (None, true) => "memory-backend-memfd,share=on".to_string(),
        (None, false) => "memory-backend-ram".to_string(),
    };
    a.opt("-object", format!("{backend},id=ram0,size={size}k"));
    if grows(spec) {
        // Nothing is taken of the host before it is plugged in.
        let backend = backend.replace(",prealloc=on", "");
        a.opt("-object", format!("{backend},id=ram-plugged,reserve=off,size={}k", max - size));
    }
    if spec.rare.memory_locked {
        a.opt("-overcommit", "mem-lock=on");
    }
}

fn smbios(spec: &MachineSpec, a: &mut Args) {
    let given = |table: u8| spec.rare.smbios.iter().filter(move |(t, ..)| *t == table);
    let named = |table: u8, key: &str| given(table).any(|(_, k, _)| k == key);
    let mut system = String::from("type=1");
    for (key, value) in [("manufacturer", "KubeVirt"), ("product", "None"), ("family", "KubeVirt")] {
        if !named(1, key) {
            system.push_str(&format!(",{key}={value}"));
        }
    }
    system.push_str(&format!(",uuid={}", spec.uuid));
    if let Some(serial) = &spec.serial {
        system.push_str(&format!(",serial={}", escaped(serial)));
    }
    let mut chassis = String::from("type=3");
    for (table, key, value) in &spec.rare.smbios {
        let text = format!(",{key}={}", escaped(value));
        if *table == 1 { system.push_str(&text) } else { chassis.push_str(&text) }
    }
    a.opt("-smbios", system);
    if given(3).next().is_some() {
        a.opt("-smbios", chassis);
    }
}

fn cpu_model(spec: &MachineSpec) -> String {
    let emulated = matches!(spec.accel, Accel::Tcg { .. });
    let mut model = match &spec.cpu.model {
        CpuModel::Host if emulated => TCG_MODEL.to_string(),
        CpuModel::Passthrough if emulated => "max".to_string(),
        CpuModel::Host | CpuModel::Passthrough => "host".to_string(),
        CpuModel::Named(name) => escaped(name),
    };
    // Long gone from processors, and still in the older of the named models; as libvirt's models are without it.
    if matches!(spec.cpu.model, CpuModel::Named(_)) && !spec.cpu.features.iter().any(|(f, _)| f == "mpx") {
        model.push_str(",-mpx");
    }
    for (feature, on) in &spec.cpu.features {
        model.push_str(if *on { ",+" } else { ",-" });
        model.push_str(&escaped(feature));
    }
    for flag in &spec.rare.cpu_flags {
        // What Hyper-V's interfaces and KVM's are, emulation has not.
        if !(emulated && (flag.starts_with("hv-") || flag.starts_with("kvm"))) {
            model.push_str(&format!(",{}", escaped(flag)));
        }
    }
    if spec.rare.panic_devices.contains(&PanicDevice::Hyperv) && !emulated {
        model.push_str(",hv-crash=on");
    }
    model
}

fn consoles(spec: &MachineSpec, handles: &Handles, a: &mut Args) -> Result<(), SpecError> {
    if spec.serial_console {
        let fd = handle(handles.serial, "the serial port")?;
        let log = handles.serial_log.map(|set| format!(",logfile={},logappend=on", set_path(set)));
        a.opt("-chardev", format!("socket,id=serial0,fd={fd},server=on,wait=off{}", log.unwrap_or_default()));
        a.opt("-device", "isa-serial,chardev=serial0,id=serial-port0");
    }
    if spec.graphics {
        let uefi = matches!(spec.firmware, Firmware::Uefi { .. });
        let card = match spec.rare.video.unwrap_or(if uefi { Video::Bochs } else { Video::Vga }) {
            Video::Vga => "VGA,id=video0,vgamem_mb=16,bus=pcie.0,addr=0x1",
            Video::Cirrus => "cirrus-vga,id=video0,bus=pcie.0,addr=0x1",
            Video::Virtio => "virtio-vga,id=video0,bus=pcie.0,addr=0x1",
            Video::Bochs => "bochs-display,id=video0,bus=pcie.0,addr=0x1",
            Video::Ramfb => "ramfb,id=video0",
        };
        a.opt("-device", card);
        // Viewers come by the control connection, each with a socket of its own.
        a.opt("-vnc", "none");
    } else {
        a.opt("-display", "none");
    }
    if spec.guest_agent {
        let fd = handle(handles.guest_agent, "the guest agent's channel")?;
        a.opt("-chardev", format!("socket,id=qga0,fd={fd},server=on,wait=off"));
        let place = place_text(spec, "vserial0")?;
        a.opt("-device", format!("virtio-serial-pci-non-transitional,id=vserial0,{place}"));
        a.opt(
            "-device",
            "virtserialport,bus=vserial0.0,nr=1,chardev=qga0,id=agent0,name=org.qemu.guest_agent.0",
        );
    }
    Ok(())
}

fn extras(spec: &MachineSpec, handles: &Handles, a: &mut Args) -> Result<(), SpecError> {
    match spec.tablet {
        Some(InputBus::Usb) => {
            a.opt("-device", "usb-tablet,id=tablet0,bus=usb.0");
        }
        Some(InputBus::Virtio) => {
            a.opt("-device", format!("virtio-tablet-pci,id=tablet0,{}", place_text(spec, "tablet0")?));
        }
        None => {}
    }
    if spec.balloon {
        let place = place_text(spec, "balloon0")?;
        a.opt(
            "-device",
            format!("virtio-balloon-pci-non-transitional,id=balloon0,free-page-reporting=on,{place}"),
        );
    }
    if spec.rng {
        a.opt("-object", "rng-random,id=random0,filename=/dev/urandom");
        a.opt(
            "-device",
            format!("virtio-rng-pci-non-transitional,id=rng0,rng=random0,{}", place_text(spec, "rng0")?),
        );
    }
    if let Some(action) = spec.watchdog {
        let action = match action {
            WatchdogAction::Poweroff => "poweroff",
            WatchdogAction::Reset => "reset",
            WatchdogAction::Shutdown => "shutdown",
        };
        a.opt("-device", format!("i6300esb,id=watchdog0,{}", place_text(spec, "watchdog0")?));
        a.opt("-action", format!("watchdog={action}"));
    }
    rarities(spec, handles, a)?;
    a.opt("-action", "panic=pause");
    if spec.rare.reboot_ends {
        a.opt("-action", "reboot=shutdown");
    }
    Ok(())
}

fn rarities(spec: &MachineSpec, handles: &Handles, a: &mut Args) -> Result<(), SpecError> {
    if spec.rare.tpm.is_some() {
        a.opt("-chardev", format!("socket,id=tpm-socket,fd={}", handle(handles.tpm, "the TPM")?));
        a.opt("-tpmdev", "emulator,id=tpm0,chardev=tpm-socket");
        a.opt("-device", "tpm-crb,tpmdev=tpm0,id=tpm-device0");
    }
    match spec.rare.sound {
        Some(Sound::Ich9) => {
            a.opt("-audiodev", "none,id=audio0");
            a.opt("-device", format!("ich9-intel-hda,id=sound0,{}", place_text(spec, "sound0")?));
            a.opt("-device", "hda-duplex,bus=sound0.0,audiodev=audio0");
        }
        Some(Sound::Ac97) => {
            a.opt("-audiodev", "none,id=audio0");
            a.opt("-device", format!("AC97,id=sound0,audiodev=audio0,{}", place_text(spec, "sound0")?));
        }
        None => {}
    }
    if let Some(cid) = spec.rare.vsock_cid {
        let place = place_text(spec, "vsock0")?;
        let fd = handle(handles.vsock, "vsock")?;
        let device =
            format!("vhost-vsock-pci-non-transitional,id=vsock0,guest-cid={cid},vhostfd={fd},{place}");
        a.opt("-device", device);
    }
    for n in 0..spec.rare.usb_redirections {
        let fd = handle(handles.usb.get(usize::from(n)).copied(), "a slot for a USB device")?;
        a.opt("-chardev", format!("socket,id=usb-redir{n},fd={fd},server=on,wait=off"));
        a.opt("-device", format!("usb-redir,id=redir{n},chardev=usb-redir{n},bus=usb.0"));
    }
    for device in &spec.rare.panic_devices {
        match device {
            PanicDevice::Isa => a.opt("-device", "pvpanic,id=panic0"),
            PanicDevice::Pci => a.opt("-device", "pvpanic-pci,id=panic1,bus=pcie.0"),
            PanicDevice::Hyperv => a,
        };
    }
    if grows(spec) {
        let place = place_text(spec, PLUGGED_MEMORY)?;
        let (block, plugged) = (memory_block(spec.rare.hugepages), spec.rare.memory_plugged_bytes);
        // A guest that is given a huge page which is not there takes QEMU with it; so it is taken first.
        let prealloc = if spec.rare.hugepages.is_some() { ",prealloc=on" } else { "" };
        a.opt(
            "-device",
            format!(
                "virtio-mem-pci,id={PLUGGED_MEMORY},memdev=ram-plugged,node=0,block-size={block},requested-size={plugged}{prealloc},{place}"
            ),
        );
    }
    Ok(())
}
