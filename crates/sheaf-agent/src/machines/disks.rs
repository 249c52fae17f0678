//! Volumes and disks of an instance: which file or claim becomes which drive. Pure.

use sheaf_api::kubevirt as kv;
use sheaf_qemu::spec as q;

use super::convert::{Refused, bytes, refused};

/// A drive and what shall be in it.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskWish {
    /// The drive, without its source.
    pub drive: q::Disk,
    /// Whether the specification left the cache to us.
    pub cache_is_ours: bool,
    /// What is in it.
    pub content: Content,
}

/// What is in a drive.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Nothing: a CD-ROM drive without a disc.
    Nothing,
    /// A claim of the instance's namespace.
    Claim(String),
    /// A copy-on-write layer over a claim, lost at the end.
    Ephemeral(String),
    /// A blank disk of this size, lost at the end.
    Empty(u64),
    /// Cloud-init's disk.
    CloudInit(CloudInitKind, Box<kv::CloudInit>),
    /// A disk with a file for each of these facts about the instance: file name and text.
    Facts(Vec<(String, String)>),
    /// A disk with the token of a service account.
    ServiceAccount(String),
    /// A disk with a file for each key of a ConfigMap or a Secret.
    Files {
        /// Where the keys come from.
        source: FilesSource,
        /// Absent is no error.
        optional: bool,
        /// Label of the disk.
        label: String,
    },
}

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesSource {
    /// A ConfigMap.
    ConfigMap(String),
    /// A Secret.
    Secret(String),
}

/// Which of cloud-init's formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudInitKind {
    /// `cidata`.
    NoCloud,
    /// `config-2`.
    ConfigDrive,
}

/// The drives of an instance, in the order of its disks; volumes that no disk names come last.
pub(super) fn wishes(vmi: &kv::VirtualMachineInstance) -> Result<Vec<DiskWish>, Refused> {
    let (spec, mut out) = (&vmi.spec, Vec::new());
    let content = |volume: &kv::Volume, field: &str| match &volume.downward_api {
        Some(api) => Ok(Content::Facts(facts(vmi, &api.fields, &format!("{field}.downwardAPI"))?)),
        None => content(volume, field),
    };
    let disks = &spec.domain.devices.disks;
    for (i, disk) in disks.iter().enumerate() {
        let field = format!("spec.domain.devices.disks[{i}]");
        let volume = spec.volumes.iter().enumerate().find(|(_, v)| v.name == disk.name);
        let content = match volume {
            Some((at, volume)) => content(volume, &format!("spec.volumes[{at}]"))?,
            None if disk.cdrom.is_some() => Content::Nothing,
            None => return refused(format!("{field}.name"), format!("no volume is named {:?}", disk.name)),
        };
        out.push(wish(disk, content, volume.map(|(_, v)| v), &field)?);
    }
    for (i, volume) in spec.volumes.iter().enumerate() {
        let named = disks.iter().any(|d| d.name == volume.name)
            || spec.domain.devices.filesystems.iter().any(|f| f.name == volume.name)
            || volume.memory_dump.is_some();
        if !named {
            let field = format!("spec.volumes[{i}]");
            let disk = kv::Disk { name: volume.name.clone(), ..kv::Disk::default() };
            out.push(wish(&disk, content(volume, &field)?, Some(volume), &field)?);
        }
    }
    Ok(out)
}

/// Facts about the instance, as files of these names.
fn facts(
    vmi: &kv::VirtualMachineInstance,
    files: &[k8s_openapi::api::core::v1::DownwardAPIVolumeFile],
    field: &str,
) -> Result<Vec<(String, String)>, Refused> {
    let meta = &vmi.metadata;
    let lines = |map: Option<&std::collections::BTreeMap<String, String>>| {
        let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
        lines.join("\n")
    };
    let in_brackets = |path: &str, map: Option<&std::collections::BTreeMap<String, String>>| {
        let key = path.split_once("['")?.1.strip_suffix("']")?;
        Some(map.and_then(|m| m.get(key)).cloned().unwrap_or_default())
    };
    let mut out = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let value = match file.field_ref.as_ref().map(|f| f.field_path.as_str()) {
            Some("metadata.name") => meta.name.clone(),
            Some("metadata.namespace") => meta.namespace.clone(),
            Some("metadata.uid") => meta.uid.clone(),
            Some("metadata.labels") => Some(lines(meta.labels.as_ref())),
            Some("metadata.annotations") => Some(lines(meta.annotations.as_ref())),
            Some(path) if path.starts_with("metadata.labels[") => in_brackets(path, meta.labels.as_ref()),
            Some(path) if path.starts_with("metadata.annotations[") => {
                in_brackets(path, meta.annotations.as_ref())
            }
            _ => None,
        };
        let Some(value) = value else {
            let why =
                "names no field that an instance has: metadata.name, namespace, uid, labels, annotations";
            return refused(format!("{field}.fields[{i}].fieldRef.fieldPath"), why);
        };
        out.push((file.path.clone(), value));
    }
    Ok(out)
}

fn wish(
    disk: &kv::Disk,
    content: Content,
    volume: Option<&kv::Volume>,
    field: &str,
) -> Result<DiskWish, Refused> {
    let (bus, cdrom, asked) = match (&disk.cdrom, &disk.lun, &disk.disk) {
        (Some(cd), ..) => (cd.bus.as_str(), true, cd.readonly.unwrap_or(true)),
        (None, Some(lun), _) => (lun.bus.as_str(), false, lun.readonly.unwrap_or(false)),
        (None, None, Some(d)) => (d.bus.as_str(), false, d.readonly.unwrap_or(false)),
        (None, None, None) => ("", false, false),
    };
    let bus = match bus {
        "virtio" => q::DiskBus::Virtio,
        "" | "sata" => q::DiskBus::Sata,
        "scsi" => q::DiskBus::Scsi,
        "usb" => q::DiskBus::Usb,
        other => {
            return refused(field, format!("{other:?} is no bus of a disk; virtio, scsi, sata or usb"));
        }
    };
    if cdrom && bus == q::DiskBus::Virtio {
        return refused(field, "a CD-ROM drive cannot be on the virtio bus; use sata or scsi");
    }
    let claim_read_only =
        volume.and_then(|v| v.persistent_volume_claim.as_ref()).is_some_and(|c| c.read_only.unwrap_or(false));
    let ours = matches!(
        content,
        Content::CloudInit(..) | Content::Files { .. } | Content::Facts(_) | Content::ServiceAccount(_)
    );
    // A SATA disk has no way to tell the guest that it cannot be written to; QEMU refuses such a one.
    let read_only = cdrom || ((asked || claim_read_only || ours) && bus != q::DiskBus::Sata);
    let cache = match disk.cache.as_str() {
        "" | "writeback" => q::Cache::Writeback,
        "none" => q::Cache::None,
        "writethrough" => q::Cache::Writethrough,
        other => {
            return refused(
                format!("{field}.cache"),
                format!("{other:?} is none of none, writethrough, writeback"),
            );
        }
    };
    let io = match disk.io.as_str() {
        "" | "threads" => q::Io::Threads,
        "native" => q::Io::Native,
        other => return refused(format!("{field}.io"), format!("{other:?} is neither threads nor native")),
    };
    let errors = match disk.error_policy.as_deref() {
        None | Some("stop") => q::ErrorPolicy::Stop,
        Some("report") => q::ErrorPolicy::Report,
        Some("ignore") => q::ErrorPolicy::Ignore,
        Some("enospace") => q::ErrorPolicy::Enospace,
        Some(other) => {
            let why = format!("{other:?} is none of stop, report, ignore, enospace");
            return refused(format!("{field}.errorPolicy"), why);
        }
    };
    Ok(DiskWish {
        drive: q::Disk {
            name: disk.name.clone(),
            source: None,
            bus,
            cdrom,
            read_only,
            boot_order: disk.boot_order,
            serial: Some(disk.serial.clone()).filter(|s| !s.is_empty()),
            cache,
            io,
            errors,
            tuning: tuning(disk, volume, field)?,
        },
        cache_is_ours: disk.cache.is_empty() && disk.io.is_empty(),
        content,
    })
}

/// Whether a volume may come and go while the guest runs.
pub(super) fn hotpluggable(volume: &kv::Volume) -> bool {
    let claim = volume.persistent_volume_claim.as_ref().and_then(|c| c.hotpluggable);
    claim.or_else(|| volume.data_volume.as_ref().and_then(|d| d.hotpluggable)).unwrap_or(false)
}

fn tuning(disk: &kv::Disk, volume: Option<&kv::Volume>, field: &str) -> Result<q::Tuning, Refused> {
    let custom = disk.block_size.as_ref().and_then(|b| b.custom.as_ref());
    let sizes = custom.and_then(|c| Some((c.logical?, c.physical?)));
    if disk.lun.as_ref().and_then(|l| l.reservation) == Some(true) {
        let why =
            "persistent reservations are not supported: this kind of volume is no SCSI device of the host";
        return refused(format!("{field}.lun.reservation"), why);
    }
    Ok(q::Tuning {
        hotplugged: volume.is_some_and(hotpluggable),
        block_sizes: sizes,
        discard_granularity: custom.and_then(|c| c.discard_granularity),
        keep_discarded: false,
        iothread: None,
        queues: None,
        shareable: disk.shareable.unwrap_or(false),
        tray_open: disk.cdrom.as_ref().is_some_and(|c| c.tray == "open"),
        pci: disk.disk.as_ref().map(|d| d.pci_address.clone()).filter(|a| !a.is_empty()),
        limits: q::Limits::default(),
    })
}

fn content(volume: &kv::Volume, field: &str) -> Result<Content, Refused> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Ok(Content::Claim(claim.claim_name.clone()));
    }
    if let Some(dv) = &volume.data_volume {
        // A DataVolume's claim has its name.
        return Ok(Content::Claim(dv.name.clone()));
    }
    if let Some(ci) = &volume.cloud_init_no_cloud {
        return Ok(Content::CloudInit(CloudInitKind::NoCloud, Box::new(ci.clone())));
    }
    if let Some(ci) = &volume.cloud_init_config_drive {
        return Ok(Content::CloudInit(CloudInitKind::ConfigDrive, Box::new(ci.clone())));
    }
    if let Some(empty) = &volume.empty_disk {
        return Ok(Content::Empty(bytes(&format!("{field}.emptyDisk.capacity"), &empty.capacity)?));
    }
    if let Some(ephemeral) = &volume.ephemeral
        && let Some(claim) = &ephemeral.persistent_volume_claim
    {
        return Ok(Content::Ephemeral(claim.claim_name.clone()));
    }
    let label = |given: &str| if given.is_empty() { "cfgdata".to_string() } else { given.to_string() };
    if let Some(map) = &volume.config_map {
        return Ok(Content::Files {
            source: FilesSource::ConfigMap(map.name.clone()),
            optional: map.optional.unwrap_or(false),
            label: label(&map.volume_label),
        });
    }
    if let Some(secret) = &volume.secret {
        return Ok(Content::Files {
            source: FilesSource::Secret(secret.secret_name.clone()),
            optional: secret.optional.unwrap_or(false),
            label: label(&secret.volume_label),
        });
    }
    if let Some(sysprep) = &volume.sysprep {
        let source = match (&sysprep.secret, &sysprep.config_map) {
            (Some(secret), _) => FilesSource::Secret(secret.name.clone()),
            (None, Some(map)) => FilesSource::ConfigMap(map.name.clone()),
            (None, None) => {
                return refused(format!("{field}.sysprep"), "names neither a secret nor a configMap");
            }
        };
        return Ok(Content::Files { source, optional: false, label: "unattendCD".into() });
    }
    if let Some(account) = &volume.service_account {
        return Ok(Content::ServiceAccount(account.service_account_name.clone()));
    }
    if volume.container_disk.is_some() {
        let why = "disks from container images are not supported; import the image as a VirtualMachineImage and \
                   use a persistentVolumeClaim of it";
        return refused(format!("{field}.containerDisk"), why);
    }
    refused(
        field,
        format!(
            "volume {:?} has a source that is not supported; use persistentVolumeClaim, dataVolume, cloudInitNoCloud, \
             cloudInitConfigDrive, emptyDisk, ephemeral, configMap, secret, downwardAPI, serviceAccount or sysprep",
            volume.name
        ),
    )
}
