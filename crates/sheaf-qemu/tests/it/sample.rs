//! A specification to start from.

use std::path::Path;

use sheaf_qemu::accel::Accel;
use sheaf_qemu::args::place_all;
use sheaf_qemu::pci::Ports;
use sheaf_qemu::spec::{
    Cache, Clock, Cpu, CpuModel, Disk, DiskBus, ErrorPolicy, Firmware, Io, MachineSpec, Nic, NicModel, Source,
};

/// The least machine: a serial console and nothing else.
pub(crate) fn bare(dir: &Path) -> MachineSpec {
    MachineSpec {
        name: "default_vm-a".into(),
        uuid: "6f5dfbd4-29b8-4b7e-9d2c-5d7d9a1f4b10".into(),
        serial: None,
        dir: dir.into(),
        memory_bytes: 64 << 20,
        cpu: Cpu {
            sockets: 1,
            cores: 1,
            threads: 1,
            max_sockets: 1,
            model: CpuModel::Host,
            features: vec![],
        },
        machine: "q35".into(),
        accel: Accel::Tcg { cache_mib: 64 },
        firmware: Firmware::Bios,
        acpi: true,
        kernel: None,
        disks: vec![],
        nics: vec![],
        serial_console: true,
        graphics: false,
        guest_agent: false,
        rng: false,
        balloon: false,
        tablet: None,
        watchdog: None,
        clock: Clock::Utc,
        ports: Ports::default(),
        rare: sheaf_qemu::spec::Rare { fixed: true, ..Default::default() },
        extra: vec![],
    }
}

pub(crate) fn disk(name: &str, source: Source, bus: DiskBus) -> Disk {
    Disk {
        name: name.into(),
        source: Some(source),
        bus,
        cdrom: false,
        read_only: false,
        boot_order: None,
        serial: None,
        cache: Cache::Writeback,
        io: Io::Threads,
        errors: ErrorPolicy::Stop,
        tuning: sheaf_qemu::spec::Tuning::default(),
    }
}

/// Past the host's cache, as the agent has it wherever the file system can.
pub(crate) fn uncached(file: &Path) -> Cache {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = std::fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(file);
    if opened.is_ok() { Cache::None } else { Cache::Writeback }
}

pub(crate) fn nic(name: &str, mac: &str, model: NicModel) -> Nic {
    Nic {
        name: name.into(),
        mac: mac.into(),
        model,
        boot_order: None,
        mtu: None,
        link_up: true,
        tuning: Default::default(),
    }
}

/// Gives every device its place.
pub(crate) fn placed(spec: MachineSpec) -> MachineSpec {
    place_all(spec).expect("few devices")
}
