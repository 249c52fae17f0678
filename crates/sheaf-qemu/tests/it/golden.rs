//! Argument vectors, held by files. `UPDATE_GOLDEN=1` writes them anew; the difference is then reviewed as code.

use std::path::{Path, PathBuf};

use sheaf_qemu::accel::Accel;
use sheaf_qemu::args::{Handles, OpenLayer, SpecError, argv};
use sheaf_qemu::chain::Format;
use sheaf_qemu::spec::{
    Cache, Clock, CpuModel, DiskBus, Firmware, InputBus, Io, MachineSpec, NicModel, PanicDevice, Rare, Sound,
    Source, Video, WatchdogAction,
};

use sheaf_qemu::version::Version;

use crate::sample::{bare, disk, nic, placed};

/// The oldest that is supported.
const OLDEST: Version = Version::new(7, 2, 0);

fn check(name: &str, spec: &MachineSpec) {
    let handles = handles(spec);
    let args = argv(spec, &handles, OLDEST).expect("a valid machine");
    // One option with its value to a line.
    let mut text = String::new();
    for arg in args {
        text.push_str(if text.is_empty() {
            ""
        } else if arg.starts_with('-') {
            "\n"
        } else {
            " "
        });
        text.push_str(&arg);
    }
    text.push('\n');
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &text).expect("write the golden file");
    }
    let want = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, want, "{}: UPDATE_GOLDEN=1 accepts the difference", file.display());
}

/// Descriptors for all that a machine needs, as the agent would open it.
fn handles(spec: &MachineSpec) -> Handles {
    let mut out = Handles { qmp: 10, serial: Some(11), guest_agent: Some(12), ..Handles::default() };
    let mut fd = 20;
    let mut next = || {
        fd += 1;
        fd
    };
    out.taps =
        spec.nics.iter().map(|n| (0..n.tuning.queues.unwrap_or(1)).map(|_| next()).collect()).collect();
    let mut set = |note: &str| {
        out.sets.push((next(), note.into()));
        u32::try_from(out.sets.len()).expect("few")
    };
    out.serial_log = Some(set("serial-log"));
    out.firmware = vec![set("pflash0"), set("pflash1")];
    for disk in &spec.disks {
        let note = sheaf_qemu::args::node_name(&disk.name);
        let mut layer = |format, host_device| OpenLayer { format, set: set(&note), host_device };
        let layers = match &disk.source {
            Some(Source::Raw(path)) => vec![layer(Format::Raw, path.starts_with("/dev"))],
            Some(Source::Qcow2(_)) => vec![layer(Format::Qcow2, false), layer(Format::Raw, false)],
            Some(Source::Nbd(_) | Source::VhostUser(_)) | None => vec![],
        };
        out.disks.insert(disk.name.clone(), layers);
    }
    if !matches!(spec.firmware, Firmware::Uefi { .. }) {
        out.firmware.clear();
    }
    out.sockets = spec.disks.iter().map(|d| (d.name.clone(), 13)).collect();
    (out.usb, out.tpm, out.vsock, out.incoming) = (vec![14, 15], Some(16), Some(17), Some(18));
    (out.acpi_tables, out.firmware_files) = (vec![19], vec![20]);
    out
}

fn dir() -> &'static Path {
    Path::new("/var/lib/sheaf/agent/machines/0a1b")
}

#[test]
fn the_least_machine() {
    check("bare.args", &placed(bare(dir())));
}

#[test]
fn what_the_dashboard_makes() {
    let mut s = bare(dir());
    s.memory_bytes = 2 << 30;
    s.accel = Accel::Kvm;
    s.serial = Some("d1, by hand".into());
    s.cpu.cores = 2;
    s.cpu.max_sockets = 4;
    (s.graphics, s.guest_agent, s.rng, s.balloon) = (true, true, true, true);
    s.tablet = Some(InputBus::Usb);
    let mut root = disk("disk-0", Source::Qcow2("/volumes/root.qcow2".into()), DiskBus::Virtio);
    root.boot_order = Some(1);
    root.cache = Cache::None;
    let mut data = disk("data", Source::Raw("/volumes/data.img".into()), DiskBus::Scsi);
    data.serial = Some("DATA-1".into());
    let mut cd = disk("cloudinitdisk", Source::Raw("/machines/0a1b/cloud-init.iso".into()), DiskBus::Sata);
    (cd.cdrom, cd.read_only) = (true, true);
    let mut empty = cd.clone();
    (empty.name, empty.source) = ("cdrom".into(), None);
    s.disks = vec![root, data, cd, empty];
    let mut second = nic("vlan-100", "52:54:00:aa:bb:02", NicModel::E1000e);
    second.boot_order = Some(2);
    let mut first = nic("default", "52:54:00:aa:bb:01", NicModel::Virtio);
    first.mtu = Some(1450);
    s.nics = vec![first, second];
    check("dashboard.args", &placed(s));
}

#[test]
fn firmware_vhost_user_and_rarities() {
    let mut s = bare(dir());
    s.serial_console = false;
    s.acpi = false;
    s.cpu.model = CpuModel::Named("Nehalem".into());
    s.cpu.features = vec![("vmx".into(), false), ("aes".into(), true)];
    s.firmware = Firmware::Uefi {
        code: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd".into(),
        vars: "/machines/0a1b/OVMF_VARS.fd".into(),
        secure_boot: true,
    };
    s.tablet = Some(InputBus::Virtio);
    s.watchdog = Some(WatchdogAction::Shutdown);
    let fast = disk("fast", Source::VhostUser("/run/sheaf/v1.sock".into()), DiskBus::Virtio);
    let mut stick = disk("stick", Source::Raw("/volumes/stick.img".into()), DiskBus::Usb);
    (stick.cache, stick.io) = (Cache::None, Io::Native);
    s.disks = vec![fast, stick];
    check("rarities.args", &placed(s));
}

/// Everything that few machines have, and room to grow.
#[test]
fn what_few_machines_have() {
    let mut s = bare(dir());
    (s.memory_bytes, s.accel) = (1 << 30, Accel::Kvm);
    (s.guest_agent, s.graphics, s.cpu.max_sockets) = (true, true, 4);
    s.clock = Clock::At("2026-11-28T09:30:00".into());
    s.rare = Rare {
        memory_max_bytes: 4 << 30,
        hugepages: Some(2 << 20),
        iothreads: 2,
        tpm: Some("/var/lib/sheaf/agent/state/0a1b/tpm".into()),
        sound: Some(Sound::Ich9),
        vsock_cid: Some(42),
        video: Some(Video::Virtio),
        usb_redirections: 2,
        panic_devices: vec![PanicDevice::Pci, PanicDevice::Hyperv],
        cpu_flags: vec!["hv-relaxed".into(), "hv-spinlocks=0x1fff".into(), "kvm=off".into()],
        clock_catch_up: true,
        machine_flags: vec!["hpet=off".into()],
        boot_menu_ms: Some(10_000),
        firmware_on_serial: true,
        reboot_ends: true,
        incoming: Some("/var/lib/sheaf/agent/machine-state/0a1b/memory".into()),
        acpi_tables: vec![("MSDM".into(), "/x/msdm.bin".into())],
        firmware_files: vec![("opt/com.coreos/config".into(), "{}".into())],
        smbios: vec![(1, "product".into(), "A, B".into()), (3, "asset".into(), "7".into())],
        transitional: true,
        ..Rare::default()
    };
    let mut root = disk("root", Source::Raw("/dev/mapper/root".into()), DiskBus::Virtio);
    (root.tuning.iothread, root.tuning.queues, root.tuning.shareable) = (Some(2), Some(4), true);
    root.tuning.block_sizes = Some((512, 4096));
    let mut by_hand = disk("by-hand", Source::Raw("/x".into()), DiskBus::Virtio);
    by_hand.tuning.pci = Some("0000:00:1a.0".into());
    s.disks = vec![root, by_hand];
    let mut card = nic("default", "52:54:00:aa:bb:01", NicModel::Virtio);
    card.tuning.queues = Some(4);
    s.nics = vec![card];
    check("rare.args", &placed(s));
}

/// What differs from version to version, and nothing else.
#[test]
fn newer_ones_are_told_in_their_words() {
    let mut s = bare(dir());
    s.disks = vec![disk("fast", Source::VhostUser("/run/sheaf/v1.sock".into()), DiskBus::Virtio)];
    let (s, handles) = (placed(s.clone()), handles(&s));
    let of = |version| argv(&s, &handles, version).expect("a valid machine");
    let (old, new) = (of(OLDEST), of(Version::new(10, 0, 2)));
    let differ: Vec<_> = old.iter().zip(&new).filter(|(a, b)| a != b).collect();
    assert_eq!(old.len(), new.len());
    assert!(
        matches!(&differ[..], [(a, b)] if a.ends_with(",reconnect=1") && b.ends_with(",reconnect-ms=1000")),
        "{differ:?}"
    );
}

#[test]
fn what_cannot_be_is_said() {
    let handles = Handles { serial: Some(11), ..Handles::default() };
    let mut s = bare(dir());
    s.disks = (0..7).map(|i| disk(&format!("d{i}"), Source::Raw("/x".into()), DiskBus::Sata)).collect();
    let all = self::handles(&s);
    assert_eq!(argv(&placed(s), &all, OLDEST), Err(SpecError::SataFull { disk: "d6".into() }));

    let mut s = bare(dir());
    s.nics = vec![nic("default", "52:54:00:aa:bb:01", NicModel::Virtio)];
    let err = argv(&placed(s.clone()), &handles, OLDEST).expect_err("no tap");
    assert_eq!(err.to_string(), "network card \"default\" has no open descriptor");
    let err = argv(&s, &Handles { taps: vec![vec![9]], ..handles }, OLDEST).expect_err("no address");
    assert_eq!(err.to_string(), "device \"net-default\" has no PCI address");
}
