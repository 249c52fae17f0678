//! Disks, CD-ROM drives and network cards: the node behind each and the device in front of it, for the start as for
//! later. Pure.

use serde_json::{Value, json};

use super::device::Device;
use super::{Args, Handles, OpenLayer, SpecError, nic_id, place, set_path};
use crate::chain::Format;
use crate::pci::{SATA_PORTS, SCSI_UNITS};
use crate::spec::{Cache, Disk, DiskBus, ErrorPolicy, Io, Limits, MachineSpec, Nic, NicModel, Rate, Source};
use crate::version::Version;

/// QEMU's limit for the name of a block node.
const NODE_NAME_MAX: usize = 31;

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

/// Driver of a virtio device: the form without what older guests need, unless they are to be served.
fn virtio(spec: &MachineSpec, driver: &str) -> String {
    format!("{driver}-{}", if spec.rare.transitional { "transitional" } else { "non-transitional" })
}

/// How many queues a controller has that got one for each processor, where QEMU would give it another number now.
fn first_queues(spec: &MachineSpec) -> Option<u32> {
    spec.rare.first_cpus.filter(|n| *n != spec.cpu.count())
}

pub(super) fn disks(
    spec: &MachineSpec,
    handles: &Handles,
    version: Version,
    a: &mut Args,
) -> Result<(), SpecError> {
    if super::needs_scsi(spec) {
        let mut scsi =
            Device::new(virtio(spec, "virtio-scsi-pci")).text("id", "scsi0").all(&place(spec, "scsi0")?);
        scsi = scsi.number_if("num_queues", first_queues(spec));
        if spec.rare.iothreads > 0 {
            scsi = scsi.text("iothread", "iothread1");
        }
        a.opt("-device", scsi.to_arg());
    }
    for disk in &spec.disks {
        let id = disk_id(&disk.name);
        if let Some(Source::VhostUser(socket)) = &disk.source {
            if disk.bus != DiskBus::Virtio {
                return Err(SpecError::VhostUserBus { disk: disk.name.clone() });
            }
            let dir =
                super::handle(handles.sockets.get(&disk.name).copied(), &format!("disk {:?}", disk.name))?;
            let file = socket.file_name().unwrap_or_default().to_string_lossy();
            // By way of the directory's descriptor: QEMU's user need not get through those above it, and when the server
            // comes back, so does its socket.
            let path = format!("/proc/self/fd/{dir}/{}", super::escaped(&file));
            a.opt("-chardev", format!("socket,id=char-{id},path={path},{}", version.reconnect()));
            a.opt("-device", disk_device(spec, disk)?.to_arg());
            continue;
        }
        if disk.source.is_some() {
            let layers = handles.disks.get(&disk.name).map(Vec::as_slice).unwrap_or_default();
            let node = block_node(disk, layers)
                .ok_or_else(|| SpecError::NoHandle { what: format!("disk {:?}", disk.name) })?;
            a.opt("-blockdev", node.to_string());
        }
        if disk.bus == DiskBus::Usb {
            a.opt("-device", format!("usb-bot,id=bot-{id},bus=usb.0"));
        }
        a.opt("-device", disk_device(spec, disk)?.to_arg());
    }
    Ok(())
}

/// The device of a disk.
pub fn disk_device(spec: &MachineSpec, disk: &Disk) -> Result<Device, SpecError> {
    let id = disk_id(&disk.name);
    if let Some(Source::VhostUser(_)) = &disk.source {
        return Ok(Device::new(virtio(spec, "vhost-user-blk-pci"))
            .text("id", id.clone())
            .text("chardev", format!("char-{id}"))
            .all(&place(spec, &id)?)
            .number_if("bootindex", disk.boot_order));
    }
    let kind = if disk.cdrom { "cd" } else { "hd" };
    let unit = || spec.ports.units.get(&id).copied();
    let device = match disk.bus {
        DiskBus::Virtio if disk.cdrom => return Err(SpecError::CdromBus { disk: disk.name.clone() }),
        DiskBus::Virtio => {
            let mut d = Device::new(virtio(spec, "virtio-blk-pci")).text("id", id.clone());
            d = match &disk.tuning.pci {
                Some(by_hand) => d.all(&by_hand_place(&disk.name, by_hand)?),
                None => d.all(&place(spec, &id)?),
            };
            d = d.number_if("num-queues", disk.tuning.queues.or(first_queues(spec)));
            match disk.tuning.iothread {
                Some(n) => d.text("iothread", format!("iothread{n}")),
                None => d,
            }
        }
        DiskBus::Scsi => {
            let lun =
                unit().filter(|u| *u < SCSI_UNITS).ok_or(SpecError::NoAddress { device: id.clone() })?;
            Device::new(format!("scsi-{kind}"))
                .text("id", id)
                .text("bus", "scsi0.0")
                .number("channel", 0_u32)
                .number("scsi-id", 0_u32)
                .number("lun", lun)
        }
        DiskBus::Sata => {
            let port = unit().filter(|u| *u < SATA_PORTS);
            let port = port.ok_or_else(|| SpecError::SataFull { disk: disk.name.clone() })?;
            Device::new(format!("ide-{kind}")).text("id", id).text("bus", format!("ide.{port}"))
        }
        DiskBus::Usb => Device::new(format!("scsi-{kind}"))
            .text("bus", format!("bot-{id}.0"))
            .text("id", id)
            .number("scsi-id", 0_u32)
            .number("lun", 0_u32),
    };
    Ok(properties(device, disk))
}

fn properties(mut device: Device, disk: &Disk) -> Device {
    if disk.source.is_some() {
        device = device.text("drive", node_name(&disk.name));
        if !disk.cdrom {
            device = device.switch("write-cache", disk.cache != Cache::Writethrough);
        }
    }
    if !disk.cdrom {
        let (write, read) = match disk.errors {
            ErrorPolicy::Stop => ("stop", "stop"),
            ErrorPolicy::Report => ("report", "report"),
            ErrorPolicy::Ignore => ("ignore", "ignore"),
            ErrorPolicy::Enospace => ("enospc", "report"),
        };
        device = device.text("werror", write).text("rerror", read);
    }
    if let Some(serial) = &disk.serial {
        device = device.text("serial", serial.clone());
    }
    if let Some((logical, physical)) = disk.tuning.block_sizes {
        device = device.number("logical_block_size", logical).number("physical_block_size", physical);
    }
    device = device.number_if("discard_granularity", disk.tuning.discard_granularity);
    if disk.tuning.shareable {
        device = device.switch("share-rw", true);
    }
    device.number_if("bootindex", disk.boot_order)
}

/// The block node of a disk with files or a socket behind it, as `-blockdev` and `blockdev-add` take it: the first layer
/// is written to, the others lie below. `None` if there is neither.
pub fn block_node(disk: &Disk, layers: &[OpenLayer]) -> Option<Value> {
    match disk.source.as_ref() {
        Some(Source::Nbd(socket)) => return Some(nbd_node(disk, socket)),
        Some(Source::VhostUser(_)) => return None,
        _ => {}
    }
    let (top, below) = layers.split_first()?;
    let mut lower = Value::Null;
    for layer in below.iter().rev() {
        lower = node(disk, layer, lower, None);
    }
    Some(node(disk, top, lower, Some(node_name(&disk.name))))
}

/// One layer over those below it; the top one has a name.
fn node(disk: &Disk, layer: &OpenLayer, below: Value, name: Option<String>) -> Value {
    let read_only = disk.read_only || name.is_none();
    let aio = match disk.io {
        Io::Threads => "threads",
        Io::Native => "native",
    };
    let cache = json!({"direct": disk.cache == Cache::None, "no-flush": false});
    let discard = if disk.tuning.keep_discarded { "ignore" } else { "unmap" };
    // A block device of the host is one to QEMU only by this driver.
    let protocol = if layer.host_device { "host_device" } else { "file" };
    let mut file = json!({
        "driver": protocol, "filename": set_path(layer.set), "aio": aio, "cache": cache, "discard": discard,
        "read-only": read_only,
    });
    if disk.tuning.shareable && !layer.host_device {
        file["locking"] = json!("off");
    }
    let mut out = json!({
        "driver": layer.format.word(), "read-only": read_only, "discard": discard, "cache": cache, "file": file,
    });
    if let Some(name) = name {
        out["node-name"] = json!(name);
    }
    if layer.format == Format::Qcow2 {
        // Said in any case, so that QEMU does not look for what the header names.
        out["backing"] = below;
    }
    out
}

/// Requests wait for a server that is away, and are sent again when it is back: it is ours, and always comes back. QEMU wants a
/// number of seconds; this one is 68 years.
const RECONNECT: u32 = i32::MAX as u32;

/// A socket as QEMU finds it from its working directory: `DIRECTORY/NAME`.
fn from_within(socket: &std::path::Path) -> std::path::PathBuf {
    let dir = socket.parent().and_then(std::path::Path::file_name).unwrap_or_default();
    std::path::Path::new(dir).join(socket.file_name().unwrap_or_default())
}

fn nbd_node(disk: &Disk, socket: &std::path::Path) -> Value {
    let socket = from_within(socket);
    let discard = if disk.tuning.keep_discarded { "ignore" } else { "unmap" };
    // Nothing is kept back here: the server has the cache, and flushes are honoured.
    let cache = json!({"direct": false, "no-flush": false});
    json!({
        "driver": "raw",
        "node-name": node_name(&disk.name),
        "read-only": disk.read_only,
        "discard": discard,
        "cache": cache,
        "file": {
            "driver": "nbd", "server": {"type": "unix", "path": socket}, "reconnect-delay": RECONNECT,
            "cache": cache, "discard": discard, "read-only": disk.read_only,
        },
    })
}

/// The arguments of `block_set_io_throttle` for a disk.
pub fn throttle(disk: &str, limits: &Limits) -> Value {
    let mut out = json!({"id": disk_id(disk)});
    let all: [(&str, &Rate); 6] = [
        ("bps", &limits.bytes),
        ("bps_rd", &limits.bytes_read),
        ("bps_wr", &limits.bytes_write),
        ("iops", &limits.iops),
        ("iops_rd", &limits.iops_read),
        ("iops_wr", &limits.iops_write),
    ];
    for (key, rate) in all {
        out[key] = json!(rate.steady);
        if rate.steady > 0 && rate.burst > rate.steady {
            out[format!("{key}_max")] = json!(rate.burst);
            out[format!("{key}_max_length")] = json!(rate.burst_seconds.max(1));
        }
    }
    out
}

pub(super) fn nics(spec: &MachineSpec, handles: &Handles, a: &mut Args) -> Result<(), SpecError> {
    for (i, nic) in spec.nics.iter().enumerate() {
        let id = nic_id(&nic.name);
        let no_tap = || SpecError::NoHandle { what: format!("network card {:?}", nic.name) };
        let queues = handles.taps.get(i).ok_or_else(no_tap)?;
        let fds: Vec<String> = queues.iter().map(ToString::to_string).collect();
        match &fds[..] {
            [] => return Err(no_tap()),
            [fd] => a.opt("-netdev", format!("tap,id=host-{id},fd={fd}")),
            more => a.opt("-netdev", format!("tap,id=host-{id},fds={}", more.join(":"))),
        };
        a.opt("-device", nic_device(spec, nic)?.to_arg());
    }
    Ok(())
}

/// The device of a network card.
pub fn nic_device(spec: &MachineSpec, nic: &Nic) -> Result<Device, SpecError> {
    let id = nic_id(&nic.name);
    let driver = match nic.model {
        NicModel::Virtio => virtio(spec, "virtio-net-pci"),
        NicModel::E1000 => "e1000".into(),
        NicModel::E1000e => "e1000e".into(),
        NicModel::Ne2kPci => "ne2k_pci".into(),
        NicModel::Pcnet => "pcnet".into(),
        NicModel::Rtl8139 => "rtl8139".into(),
        NicModel::Igb => "igb".into(),
    };
    let mut device = Device::new(driver)
        .text("netdev", format!("host-{id}"))
        .text("id", id.clone())
        .text("mac", nic.mac.clone());
    device = match &nic.tuning.pci {
        Some(by_hand) => device.all(&by_hand_place(&nic.name, by_hand)?),
        None => device.all(&place(spec, &id)?),
    };
    if let (NicModel::Virtio, Some(mtu)) = (nic.model, nic.mtu) {
        device = device.number("host_mtu", mtu);
    }
    if let (NicModel::Virtio, Some(queues @ 2..)) = (nic.model, nic.tuning.queues) {
        // One interrupt for each direction of each queue, one for the configuration, one for control.
        device = device.switch("mq", true).number("vectors", 2 * queues + 2);
    }
    device = device.number_if("acpi-index", nic.tuning.acpi_index);
    Ok(match nic.boot_order {
        // Only a card that is booted from needs its ROM.
        None => device.text("romfile", ""),
        Some(order) => device.number("bootindex", order),
    })
}

/// A place that the user chose. Only the root bus can be named: what lies behind a port has no number before the guest
/// has counted its buses.
fn by_hand_place(device: &str, address: &str) -> Result<Vec<(String, String)>, SpecError> {
    let wrong = || SpecError::PciAddress { device: device.into(), address: address.into() };
    let (domain_bus, slot_function) = address.rsplit_once(':').ok_or_else(wrong)?;
    let (slot, function) = slot_function.split_once('.').ok_or_else(wrong)?;
    let slot = u8::from_str_radix(slot, 16).map_err(|_| wrong())?;
    // The first slots are the host bridge, the screen and the ports; the last is the chipset's.
    if domain_bus != "0000:00" || !(crate::pci::FIRST_FREE_SLOT..=0x1e).contains(&slot) {
        return Err(wrong());
    }
    Ok(vec![("bus".into(), "pcie.0".into()), ("addr".into(), format!("0x{slot:x}.0x{function}"))])
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
    fn an_nbd_disk_waits_for_its_server() {
        let disk = Disk {
            name: "d".into(),
            source: Some(Source::Nbd("/state/guests/v/nbd".into())),
            bus: DiskBus::Virtio,
            cdrom: false,
            read_only: false,
            boot_order: None,
            serial: None,
            cache: Cache::Writeback,
            io: Io::Threads,
            errors: ErrorPolicy::Stop,
            tuning: crate::spec::Tuning::default(),
        };
        let node = block_node(&disk, &[]).expect("a node");
        // From QEMU's working directory.
        assert_eq!(node["file"]["server"], json!({"type": "unix", "path": "v/nbd"}));
        assert_eq!((&node["file"]["driver"], &node["driver"]), (&json!("nbd"), &json!("raw")));
        assert_eq!(node["file"]["reconnect-delay"], i32::MAX);
    }

    #[test]
    fn limits_are_as_qemu_wants_them() {
        let limits = Limits {
            iops: Rate { steady: 100, burst: 200, burst_seconds: 5 },
            bytes_read: Rate { steady: 1 << 20, burst: 0, burst_seconds: 0 },
            ..Limits::default()
        };
        assert_eq!(
            throttle("root", &limits),
            json!({"id": "disk-root", "bps": 0, "bps_rd": 1 << 20, "bps_wr": 0, "iops": 100, "iops_max": 200,
                "iops_max_length": 5, "iops_rd": 0, "iops_wr": 0})
        );
    }

    #[test]
    fn places_by_hand_are_on_the_root_bus() {
        let place = by_hand_place("d", "0000:00:1a.0").expect("free");
        assert_eq!(
            place,
            [("bus".to_owned(), "pcie.0".to_owned()), ("addr".to_owned(), "0x1a.0x0".to_owned())]
        );
        for wrong in ["0000:81:01.0", "0000:00:01.0", "0000:00:1f.0", "x"] {
            assert!(by_hand_place("d", wrong).is_err(), "{wrong}");
        }
    }
}
