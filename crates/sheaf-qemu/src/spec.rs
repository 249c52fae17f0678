//! What a machine is, in QEMU's terms: the input of [`crate::args::argv`] and part of the machine's record.
//!
//! Plain data, serialised into the record so that an agent that starts anew knows what it finds running. File
//! descriptors are not in here (they do not survive): see [`crate::args::Handles`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::accel::Accel;
use crate::pci::Ports;

/// Everything that decides a machine's argument vector, apart from open file descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Shown by `ps` and in QEMU's log; `NAMESPACE_NAME`.
    pub name: String,
    /// SMBIOS UUID, and what identifies the process when it is adopted.
    pub uuid: String,
    /// SMBIOS serial number.
    pub serial: Option<String>,
    /// Directory of this machine: sockets, logs, record.
    pub dir: PathBuf,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Processors.
    pub cpu: Cpu,
    /// Machine type, `q35` or a versioned name (`pc-q35-7.2`).
    pub machine: String,
    /// How instructions are run.
    pub accel: Accel,
    /// What runs before the operating system.
    pub firmware: Firmware,
    /// Whether the guest sees ACPI. Without it there is no orderly power-off.
    pub acpi: bool,
    /// Kernel given from the host in place of a boot loader; for tests and `kernelBoot`.
    pub kernel: Option<Kernel>,
    /// Disks and CD-ROM drives, in the order in which the guest should find them.
    pub disks: Vec<Disk>,
    /// Network cards, in the order in which the guest should find them.
    pub nics: Vec<Nic>,
    /// A serial port on a unix socket, with a log.
    pub serial_console: bool,
    /// A VGA card, shown by VNC on a unix socket.
    pub graphics: bool,
    /// The channel of the guest agent.
    pub guest_agent: bool,
    /// Gives the guest the host's randomness.
    pub rng: bool,
    /// Memory balloon with free page reporting.
    pub balloon: bool,
    /// A pointing device with absolute coordinates.
    pub tablet: Option<InputBus>,
    /// What an expired watchdog does; no watchdog if `None`.
    pub watchdog: Option<WatchdogAction>,
    /// Shift of the guest's clock.
    pub clock: Clock,
    /// Where devices sit; assigned once by [`crate::pci::assign`] and kept, so that names do not move.
    pub ports: Ports,
    /// Appended as they are. For tests and experiments.
    pub extra: Vec<String>,
}

/// Topology and model of the processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Sockets present at start.
    pub sockets: u32,
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
    /// Sockets up to which more may be plugged in; at least `sockets`.
    pub max_sockets: u32,
    /// What the guest sees.
    pub model: CpuModel,
    /// Added (`true`) or removed features.
    pub features: Vec<(String, bool)>,
}

impl Cpu {
    /// Number of virtual processors at start.
    pub fn count(&self) -> u32 {
        self.sockets.saturating_mul(self.cores).saturating_mul(self.threads)
    }
}

/// Model of the processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuModel {
    /// The nearest to the host that QEMU can offer; under emulation a fixed, cheap one.
    Host,
    /// The host's own, with everything it has; under emulation everything that QEMU emulates.
    Passthrough,
    /// By QEMU's name.
    Named(String),
}

/// Firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Firmware {
    /// SeaBIOS, which QEMU brings.
    Bios,
    /// OVMF: code (shared, read only) and variables (one file per machine).
    Uefi {
        /// `OVMF_CODE*.fd`.
        code: PathBuf,
        /// The machine's own copy of `OVMF_VARS*.fd`.
        vars: PathBuf,
        /// Only signed loaders; needs system management mode.
        secure_boot: bool,
    },
}

/// A kernel loaded by QEMU itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Kernel image.
    pub image: PathBuf,
    /// Initial file system.
    pub initrd: Option<PathBuf>,
    /// Command line.
    pub cmdline: String,
}

/// One disk or CD-ROM drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Name, unique in the machine; device and node names derive from it.
    pub name: String,
    /// What the guest reads and writes; `None` is an empty CD-ROM drive.
    pub source: Option<Source>,
    /// How it is attached.
    pub bus: DiskBus,
    /// A CD-ROM drive rather than a disk.
    pub cdrom: bool,
    /// The guest may not write.
    pub read_only: bool,
    /// The lower, the earlier it is tried; at least 1.
    pub boot_order: Option<u32>,
    /// Serial number that the guest sees.
    pub serial: Option<String>,
    /// Host page cache and flushes.
    pub cache: Cache,
    /// How QEMU reads and writes.
    pub io: Io,
    /// What an I/O error does to the machine.
    pub errors: ErrorPolicy,
}

/// What QEMU opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Bytes as they are.
    Raw(PathBuf),
    /// QEMU's copy-on-write format.
    Qcow2(PathBuf),
    /// A vhost-user-blk server's socket; virtio only.
    VhostUser(PathBuf),
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskBus {
    /// virtio-blk, each on a port of its own.
    Virtio,
    /// On the machine's one virtio-scsi controller.
    Scsi,
    /// On the chipset's AHCI controller, six at most.
    Sata,
    /// usb-storage.
    Usb,
}

/// Host page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cache {
    /// Past the host's page cache.
    None,
    /// Through the page cache, durable on each write.
    Writethrough,
    /// Through the page cache, durable on flush.
    Writeback,
}

/// How QEMU reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Io {
    /// Worker threads.
    Threads,
    /// Linux AIO; needs [`Cache::None`].
    Native,
}

/// What an I/O error does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorPolicy {
    /// The machine pauses, to be continued when the cause is gone.
    Stop,
    /// The guest sees the error.
    Report,
    /// Writes are taken for done. Loses data.
    Ignore,
    /// Pauses when there is no space, else reports.
    Enospace,
}

/// One network card. Its tap is handed over as an open descriptor ([`crate::args::Handles::taps`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Name, unique in the machine.
    pub name: String,
    /// Hardware address, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// Model.
    pub model: NicModel,
    /// The lower, the earlier it is tried; without it the card has no boot ROM.
    pub boot_order: Option<u32>,
    /// Largest packet, told to virtio guests.
    pub mtu: Option<u16>,
    /// `false`: the cable is pulled at start.
    pub link_up: bool,
}

/// Model of a network card, by KubeVirt's words, which are QEMU's for the emulated ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NicModel {
    /// virtio-net.
    Virtio,
    /// Intel 82540EM.
    E1000,
    /// Intel 82574L.
    E1000e,
    /// NE2000 on PCI.
    Ne2kPci,
    /// AMD PCnet.
    Pcnet,
    /// Realtek 8139.
    Rtl8139,
}

/// Bus of an input device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InputBus {
    /// On the USB controller, which it brings.
    Usb,
    /// virtio-input.
    Virtio,
}

/// What an expired watchdog does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchdogAction {
    /// Pulls the plug.
    Poweroff,
    /// Presses reset.
    Reset,
    /// Presses the power button.
    Shutdown,
}

/// The guest's hardware clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Clock {
    /// Coordinated universal time.
    #[default]
    Utc,
    /// The host's time zone.
    Localtime,
}

/// Names of the files in a machine's directory.
#[derive(Debug, Clone)]
pub struct Files(pub PathBuf);

impl Files {
    /// QMP socket. It listens before QEMU starts, so nobody has to wait for it to appear.
    pub fn qmp(&self) -> PathBuf {
        self.0.join("qmp.sock")
    }
    /// Serial port.
    pub fn serial(&self) -> PathBuf {
        self.0.join("serial.sock")
    }
    /// What the guest wrote to its serial port.
    pub fn serial_log(&self) -> PathBuf {
        self.0.join("serial.log")
    }
    /// VNC.
    pub fn vnc(&self) -> PathBuf {
        self.0.join("vnc.sock")
    }
    /// Guest agent.
    pub fn guest_agent(&self) -> PathBuf {
        self.0.join("qga.sock")
    }
    /// QEMU's own words.
    pub fn log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }
    /// Written and locked by QEMU.
    pub fn pid(&self) -> PathBuf {
        self.0.join("qemu.pid")
    }
    /// See [`crate::process::Record`].
    pub fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }
    /// Cloud-init's disk.
    pub fn cloud_init(&self) -> PathBuf {
        self.0.join("cloud-init.iso")
    }
    /// Where QEMU draws the screen.
    pub fn screenshot(&self) -> PathBuf {
        self.0.join("screen.png")
    }
}
