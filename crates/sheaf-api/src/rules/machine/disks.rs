//! Rules of disks, and of disks and volumes together.

use std::collections::{BTreeMap, BTreeSet};

use super::Problems;
use crate::kubevirt::{BlockSize, Disk, VirtualMachineInstanceSpec};

const BUSES: &[&str] = &["virtio", "sata", "scsi", "usb"];
const BLOCK_MIN: u32 = 512;
const BLOCK_MAX: u32 = 2 * 1024 * 1024;

pub(super) fn validate(b: &str, spec: &VirtualMachineInstanceSpec, problems: &mut Problems) {
    let base = format!("{b}.domain.devices.disks");
    let volumes: BTreeMap<&str, _> = spec.volumes.iter().map(|v| (v.name.as_str(), v)).collect();
    let mut names = BTreeSet::new();
    for (i, disk) in spec.domain.devices.disks.iter().enumerate() {
        let field = format!("{base}[{i}]");
        if disk.name.is_empty() {
            problems.required(format!("{field}.name"), "the name of the volume that the disk shows");
        } else if !names.insert(disk.name.as_str()) {
            problems.duplicate(format!("{field}.name"), disk.name.as_str());
        }
        match volumes.get(disk.name.as_str()) {
            // A CD-ROM drive without a volume is an empty one.
            None if disk.cdrom.is_none() && !disk.name.is_empty() => problems.invalid(
                format!("{field}.name"),
                disk.name.as_str(),
                format!("no volume of this name in {b}.volumes"),
            ),
            Some(v)
                if disk.lun.is_some() && v.persistent_volume_claim.is_none() && v.data_volume.is_none() =>
            {
                problems.invalid(
                    format!("{field}.lun"),
                    disk.name.as_str(),
                    "a LUN needs a volume that is a persistentVolumeClaim or a dataVolume",
                );
            }
            Some(v) if hotpluggable(v) && disk.cdrom.is_none() => hotplugged(&field, disk, problems),
            _ => {}
        }
        target(&field, &format!("{base}.disk[{i}]"), disk, problems);
        options(&field, disk, problems);
    }
    for (i, filesystem) in spec.domain.devices.filesystems.iter().enumerate() {
        if !volumes.contains_key(filesystem.name.as_str()) {
            // The path is KubeVirt's, although the fault is in devices.filesystems.
            problems.invalid(
                format!("{b}.domain.volumes[{i}].name"),
                filesystem.name.as_str(),
                format!("no volume of this name in {b}.volumes"),
            );
        }
    }
    boot_order(b, spec, problems);
}

fn hotpluggable(volume: &crate::kubevirt::Volume) -> bool {
    let claim = volume.persistent_volume_claim.as_ref().and_then(|c| c.hotpluggable);
    claim.or_else(|| volume.data_volume.as_ref().and_then(|d| d.hotpluggable)) == Some(true)
}

/// A disk that comes and goes while the guest runs.
fn hotplugged(field: &str, disk: &Disk, problems: &mut Problems) {
    let (bus, lun) = match (&disk.disk, &disk.lun) {
        (Some(d), _) => (d.bus.as_str(), false),
        (None, Some(l)) => (l.bus.as_str(), true),
        (None, None) => return,
    };
    if !(bus == "scsi" || bus == "virtio" && !lun) {
        problems.invalid(
            field,
            bus,
            format!(
                "Hotplug configuration for [{}] requires bus to be 'scsi'{}. [{bus}] is not permitted",
                disk.name,
                if lun { "" } else { " or 'virtio'" }
            ),
        );
    }
    if disk.dedicated_io_thread == Some(true) && bus != "virtio" {
        problems.invalid(field, disk.name.as_str(), "scsi bus does not support IOThreads");
    }
}

fn target(field: &str, odd: &str, disk: &Disk, problems: &mut Problems) {
    let targets = [disk.disk.is_some(), disk.lun.is_some(), disk.cdrom.is_some()];
    if targets.iter().filter(|t| **t).count() > 1 {
        problems.invalid(field, disk.name.as_str(), "can only have a single target type defined");
    }
    if let Some(d) = &disk.disk {
        bus(&format!("{field}.disk.bus"), &d.bus, BUSES, problems);
        if d.bus == "sata" && d.readonly == Some(true) {
            problems.invalid(
                format!("{field}.disk.bus"),
                "sata",
                "hard-disk device with SATA bus cannot be read-only",
            );
        }
        if !d.pci_address.is_empty() {
            let address = format!("{odd}.pciAddress");
            if d.bus != "virtio" {
                problems.invalid(
                    address,
                    d.pci_address.as_str(),
                    "only a disk on the bus virtio can have one",
                );
            } else if !is_pci_address(&d.pci_address) {
                problems.invalid(address, d.pci_address.as_str(), "must look like 0000:81:01.0");
            }
        }
    }
    if let Some(lun) = &disk.lun {
        bus(&format!("{field}.lun.bus"), &lun.bus, BUSES, problems);
    }
    if let Some(cdrom) = &disk.cdrom {
        let path = format!("{field}.cdrom.bus");
        if cdrom.bus == "virtio" {
            problems.invalid(
                path,
                "virtio",
                "Bus type virtio is invalid for CD-ROM device; use sata or scsi",
            );
        } else {
            bus(&path, &cdrom.bus, BUSES, problems);
        }
        problems.one_of(format!("{field}.cdrom.tray"), &cdrom.tray, &["open", "closed"]);
    }
    let on_virtio = disk.disk.as_ref().is_some_and(|d| d.bus == "virtio");
    if disk.dedicated_io_thread == Some(true) && !on_virtio {
        problems.invalid(
            field,
            disk.name.as_str(),
            "IOThreads are not supported for disks on a bus other than virtio",
        );
    }
}

fn bus(field: &str, bus: &str, allowed: &[&str], problems: &mut Problems) {
    if bus == "ide" {
        problems.invalid(field, bus, "IDE bus is not supported");
    } else {
        problems.one_of(field, bus, allowed);
    }
}

/// `0000:81:01.0`: domain, bus, slot and function.
pub(super) fn is_pci_address(address: &str) -> bool {
    let hex = |part: &str, digits: usize| part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit());
    let parts: Vec<&str> = address.split(':').collect();
    let [domain, bus, rest] = parts.as_slice() else { return false };
    let Some((slot, function)) = rest.split_once('.') else { return false };
    hex(domain, 4) && hex(bus, 2) && hex(slot, 2) && matches!(function.as_bytes(), [b'0'..=b'7'])
}

fn options(field: &str, disk: &Disk, problems: &mut Problems) {
    if disk.serial.len() > 256 {
        problems.invalid(
            format!("{field}.serial"),
            disk.serial.as_str(),
            "must be less than or equal to 256 in length",
        );
    } else if !disk.serial.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.+-".contains(&b)) {
        problems.invalid(
            format!("{field}.serial"),
            disk.serial.as_str(),
            "must be made up of the following characters [A-Za-z0-9_.+-]",
        );
    }
    problems.one_of(format!("{field}.cache"), &disk.cache, &["none", "writethrough", "writeback"]);
    problems.one_of(format!("{field}.io"), &disk.io, &["native", "threads"]);
    if let Some(policy) = &disk.error_policy {
        problems.one_of(format!("{field}.errorPolicy"), policy, &["stop", "ignore", "report", "enospace"]);
    }
    if disk.shareable == Some(true) && !matches!(disk.cache.as_str(), "" | "none") {
        problems.invalid(format!("{field}.cache"), disk.cache.as_str(), "must be none for a shareable disk");
    }
    if let Some(size) = &disk.block_size {
        block_size(&format!("{field}.blockSize"), size, disk, problems);
    }
}

fn block_size(field: &str, size: &BlockSize, disk: &Disk, problems: &mut Problems) {
    let matching = size.match_volume.as_ref().is_some_and(|m| m.enabled != Some(false));
    let Some(custom) = &size.custom else { return };
    if matching {
        problems.invalid(field, "", "Block size matching can't be enabled together with a custom value");
    }
    let (logical, physical) = (custom.logical.unwrap_or(0), custom.physical.unwrap_or(0));
    for (name, value) in [("logical", logical), ("physical", physical)] {
        if !(BLOCK_MIN..=BLOCK_MAX).contains(&value) || !value.is_power_of_two() {
            problems.invalid(
                format!("{field}.custom.{name}"),
                value,
                format!("must be a power of 2 from {BLOCK_MIN} to {BLOCK_MAX}"),
            );
        }
    }
    if logical > physical {
        problems.invalid(
            format!("{field}.custom.logical"),
            logical,
            "must not be greater than the physical block size",
        );
    }
    if disk.disk.as_ref().is_some_and(|d| d.bus == "sata") && logical != 512 {
        problems.invalid(format!("{field}.custom.logical"), logical, "must be 512 on the bus sata");
    }
    if let Some(discard) = custom.discard_granularity.filter(|d| logical != 0 && d % logical != 0) {
        problems.invalid(
            format!("{field}.custom.discardGranularity"),
            discard,
            "must be a multiple of the logical block size",
        );
    }
}

/// Disks and interfaces share one order, and no place in it is given twice.
fn boot_order(b: &str, spec: &VirtualMachineInstanceSpec, problems: &mut Problems) {
    let mut taken = BTreeSet::new();
    let devices = &spec.domain.devices;
    let disks = devices.disks.iter().enumerate().map(|(i, d)| (format!("disks[{i}]"), d.boot_order));
    let nics = devices.interfaces.iter().enumerate().map(|(i, n)| (format!("interfaces[{i}]"), n.boot_order));
    for (device, order) in disks.chain(nics) {
        let Some(order) = order else { continue };
        let field = format!("{b}.domain.devices.{device}.bootOrder");
        if order == 0 {
            problems.invalid(field, 0, "must have a boot order > 0, if supplied");
        } else if !taken.insert(order) {
            problems.invalid(field, order, "is given to another disk or interface already");
        }
    }
}
