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
    /// What few machines have, and what came later than the first records.
    #[serde(default)]
    pub rare: Rare,
    /// Appended as they are. For tests and experiments.
    pub extra: Vec<String>,
}

/// What few machines have, each off by default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rare {
    /// No devices are plugged in later: no spare ports, no SCSI controller without SCSI disks.
    pub fixed: bool,
    /// Memory in bytes up to which the guest can be given more while it runs; 0 or the machine's own: it cannot.
    pub memory_max_bytes: u64,
    /// Memory in bytes that was plugged in since the start.
    pub memory_plugged_bytes: u64,
    /// The host's huge pages that hold the guest's memory: their size in bytes.
    pub hugepages: Option<u64>,
    /// Threads for disks' I/O.
    pub iothreads: u32,
    /// A TPM 2.0: the directory of its state. Its emulator listens at [`Files::tpm`].
    pub tpm: Option<PathBuf>,
    /// A sound card.
    pub sound: Option<Sound>,
    /// Context id on the host's vsock.
    pub vsock_cid: Option<u32>,
    /// Kind of graphics card; the firmware's usual one if `None`.
    pub video: Option<Video>,
    /// Number of USB devices that viewers may pass in.
    pub usb_redirections: u8,
    /// How a dying kernel tells the host.
    pub panic_devices: Vec<PanicDevice>,
    /// Properties of the processors as QEMU spells them (`hv-relaxed`, `kvm=off`).
    pub cpu_flags: Vec<String>,
    /// Ticks that a guest missed are made up for.
    pub clock_catch_up: bool,
    /// Properties of the machine as QEMU spells them (`hpet=off`).
    pub machine_flags: Vec<String>,
    /// System management mode although nothing needs it.
    pub smm: bool,
    /// The firmware shows a boot menu for this many milliseconds.
    pub boot_menu_ms: Option<u32>,
    /// The firmware writes to the serial port.
    pub firmware_on_serial: bool,
    /// A reboot of the guest ends the machine.
    pub reboot_ends: bool,
    /// Further fields of SMBIOS, by table: 1 (system) and 3 (chassis).
    pub smbios: Vec<(u8, String, String)>,
    /// ACPI tables: signature and file.
    pub acpi_tables: Vec<(String, PathBuf)>,
    /// What the guest reads through the firmware's interface: name and text.
    pub firmware_files: Vec<(String, String)>,
    /// Virtio devices that older guests know, too.
    pub transitional: bool,
    /// User and group that QEMU runs as; the agent's own if `None`.
    pub user: Option<u32>,
    /// QEMU's working directory; the root if `None`. Each NBD socket lies in a directory of its own below it: QEMU connects
    /// anew when its server was away, and its user needs no way through the directories above.
    pub sockets: Option<PathBuf>,
    /// Its share of the host's processors: 1024 for each that it asks for.
    pub cpu_shares: Option<u64>,
    /// Its share of the host's disks, 1 to 10000; others have 100.
    pub io_weight: Option<u16>,
    /// The host's processors that its own run on, one for each; none is bound if this is empty.
    pub pinned: Vec<u32>,
    /// What was in its memory when it was last seen: it goes on from there.
    pub incoming: Option<PathBuf>,
    /// Memory is never swapped out.
    pub memory_locked: bool,
    /// Processors that it had when its guest was switched on, if it has others now: controllers got as many queues.
    pub first_cpus: Option<u32>,
}

/// A sound card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sound {
    /// Intel HD Audio.
    Ich9,
    /// AC97.
    Ac97,
}

/// A graphics card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Video {
    /// Standard VGA with 16 MiB.
    Vga,
    /// Cirrus Logic.
    Cirrus,
    /// virtio-gpu with VGA.
    Virtio,
    /// A plain frame buffer without VGA.
    Bochs,
    /// A frame buffer in the guest's memory, set up by its firmware.
    Ramfb,
}

/// How a dying kernel tells the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PanicDevice {
    /// On the ISA bus.
    Isa,
    /// On the PCI bus.
    Pci,
    /// By Hyper-V's crash registers.
    Hyperv,
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
    /// What few disks have.
    #[serde(default)]
    pub tuning: Tuning,
}

/// What few disks have, each off by default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tuning {
    /// It was plugged in while the guest ran, or may be unplugged.
    pub hotplugged: bool,
    /// Sizes of blocks as the guest sees them: logical, physical.
    pub block_sizes: Option<(u32, u32)>,
    /// The smallest part that can be discarded.
    pub discard_granularity: Option<u32>,
    /// Discards of the guest do not reach the file.
    pub keep_discarded: bool,
    /// The I/O thread that serves it, by number.
    pub iothread: Option<u32>,
    /// Queues of a virtio disk.
    pub queues: Option<u32>,
    /// Other machines may have it open, too.
    pub shareable: bool,
    /// The tray of the drive is open at start.
    pub tray_open: bool,
    /// Its place on the PCI bus, by hand: `0000:00:1a.0`.
    pub pci: Option<String>,
    /// Limits of its use.
    pub limits: Limits,
}

/// Limits of a disk's use; 0 is none. The `burst` is what it may reach for `burst_seconds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Operations per second.
    pub iops: Rate,
    /// Reads per second.
    pub iops_read: Rate,
    /// Writes per second.
    pub iops_write: Rate,
    /// Bytes per second.
    pub bytes: Rate,
    /// Bytes per second, reading.
    pub bytes_read: Rate,
    /// Bytes per second, writing.
    pub bytes_write: Rate,
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rate {
    /// In the long run.
    pub steady: u64,
    /// For a while.
    pub burst: u64,
    /// For how many seconds.
    pub burst_seconds: u32,
}

/// What QEMU opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Bytes as they are.
    Raw(PathBuf),
    /// QEMU's copy-on-write format.
    Qcow2(PathBuf),
    /// An NBD server's unix socket.
    Nbd(PathBuf),
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
    /// What few cards have.
    #[serde(default)]
    pub tuning: NicTuning,
}

/// What few network cards have, each off by default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NicTuning {
    /// It was plugged in while the guest ran.
    pub hotplugged: bool,
    /// Queues of a virtio card, beyond one.
    pub queues: Option<u32>,
    /// Number from which guests make the name `enoN`.
    pub acpi_index: Option<u32>,
    /// Its place on the PCI bus, by hand: `0000:00:1a.0`.
    pub pci: Option<String>,
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
    /// Intel 82576.
    Igb,
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Clock {
    /// Coordinated universal time.
    #[default]
    Utc,
    /// The host's time zone.
    Localtime,
    /// The time of this zone, `Europe/Berlin`.
    Zone(String),
    /// Begins at this date, `2026-11-28T09:30:00`: a shift.
    At(String),
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
    /// Guest agent.
    pub fn guest_agent(&self) -> PathBuf {
        self.0.join("qga.sock")
    }
    /// QEMU's own words.
    pub fn log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }
    /// See [`crate::process::Record`].
    pub fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }
    /// Cloud-init's disk.
    pub fn cloud_init(&self) -> PathBuf {
        self.0.join("cloud-init.iso")
    }
    /// The TPM emulator's socket.
    pub fn tpm(&self) -> PathBuf {
        self.0.join("tpm.sock")
    }
    /// What the TPM emulator says.
    pub fn tpm_log(&self) -> PathBuf {
        self.0.join("tpm.log")
    }
    /// Socket of a USB device that a viewer passes in, by number.
    pub fn usb_redirection(&self, number: u8) -> PathBuf {
        self.0.join(format!("usb{number}.sock"))
    }
}
