//! What has to change in a machine that runs, so that it is as its instance says. Pure.
//!
//! The instance's spec is what is wanted; what there is stands in the machine's record (and was asked of QEMU, where the
//! two may differ after a crash). Every difference is one [`Change`]; those that cannot be made in a running machine never
//! reach an instance: the VM controller keeps them back and says `RestartRequired`.

use std::collections::{BTreeMap, BTreeSet};

use sheaf_qemu::args::{disk_id, nic_id};
use sheaf_qemu::spec::{DiskBus, Limits, MachineSpec};

use super::convert::Wanted;
use super::disks::{Content, DiskWish};
use super::ledger::{Ledger, LedgerNic};

/// One difference, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Take a disk out.
    UnplugDisk(String),
    /// Put a disk in.
    PlugDisk(String),
    /// Take the disc out of a drive.
    Eject(String),
    /// Put a disc into a drive.
    Insert(String),
    /// Limit the use of a disk.
    Limit(String),
    /// A disk is larger now: its name, its claim, its size in bytes.
    Resize(String, String, u64),
    /// Take a NIC out.
    UnplugNic(String),
    /// Put a NIC in.
    PlugNic(String),
    /// Plug a NIC into another network.
    MoveNic(String),
    /// Plug or pull the cable of a NIC.
    Link(String, bool),
    /// Add sockets up to this number.
    Sockets(u32),
    /// Give the guest so much memory beside that of its start, in bytes.
    Memory(u64),
}

impl Change {
    /// What it is about, for messages and for remembering what went wrong: `disk NAME`, `nic NAME`, `cpu`, `memory`.
    pub fn about(&self) -> String {
        match self {
            Self::UnplugDisk(n)
            | Self::PlugDisk(n)
            | Self::Eject(n)
            | Self::Insert(n)
            | Self::Limit(n)
            | Self::Resize(n, ..) => format!("disk {n}"),
            Self::UnplugNic(n) | Self::PlugNic(n) | Self::MoveNic(n) | Self::Link(n, _) => format!("nic {n}"),
            Self::Sockets(_) => "cpu".into(),
            Self::Memory(_) => "memory".into(),
        }
    }
}

/// What there is.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// The machine's record.
    pub machine: &'a MachineSpec,
    /// Its parts.
    pub ledger: &'a Ledger,
    /// Ids of the devices that QEMU has.
    pub devices: &'a BTreeSet<String>,
    /// Claims that ask for more than they have: name, and the bytes that are asked for.
    pub growths: &'a BTreeMap<String, u64>,
}

/// The claim in a drive, if there is one.
pub fn claim_of(wish: &DiskWish) -> Option<&str> {
    match &wish.content {
        Content::Claim(claim) => Some(claim),
        _ => None,
    }
}

/// All differences, those that free something first. `targets` are the networks of the wanted NICs, resolved; a NIC whose
/// network is not known yet is not there.
pub fn plan_changes(wanted: &Wanted, targets: &BTreeMap<String, LedgerNic>, now: &Now<'_>) -> Vec<Change> {
    let mut out = Vec::new();
    disks(wanted, now, &mut out);
    nics(wanted, targets, now, &mut out);
    let (cpu, asked) = (&now.machine.cpu, &wanted.machine.cpu);
    if asked.sockets > cpu.sockets && asked.sockets <= cpu.max_sockets {
        out.push(Change::Sockets(asked.sockets));
    }
    let rare = &now.machine.rare;
    if rare.memory_max_bytes > now.machine.memory_bytes {
        let block = sheaf_qemu::args::memory_block(rare.hugepages);
        let most = rare.memory_max_bytes - now.machine.memory_bytes;
        let more = wanted.machine.memory_bytes.saturating_sub(now.machine.memory_bytes) / block * block;
        if more.min(most) != rare.memory_plugged_bytes {
            out.push(Change::Memory(more.min(most)));
        }
    }
    out.sort();
    out
}

fn disks(wanted: &Wanted, now: &Now<'_>, out: &mut Vec<Change>) {
    for disk in &now.machine.disks {
        let name = &disk.name;
        let wish = wanted.disks.iter().find(|w| w.drive.name == *name);
        let held = now.ledger.drives.get(name).map(String::as_str);
        match wish {
            None if disk.tuning.hotplugged && !disk.cdrom => out.push(Change::UnplugDisk(name.clone())),
            // The drive stays, and is empty.
            None if disk.cdrom && held.is_some() => out.push(Change::Eject(name.clone())),
            None => {}
            Some(wish) => {
                let claim = claim_of(wish);
                if disk.cdrom && claim != held {
                    // What was started with a disc of another kind keeps it.
                    if held.is_some() {
                        out.push(Change::Eject(name.clone()));
                    } else if claim.is_some() && disk.source.is_none() {
                        out.push(Change::Insert(name.clone()));
                    }
                } else if disk.tuning.hotplugged && !disk.cdrom && claim != held {
                    out.push(Change::UnplugDisk(name.clone()));
                } else if !now.devices.contains(&disk_id(name)) {
                    // In the record and not in QEMU: an attempt was cut short.
                    if disk.tuning.hotplugged {
                        out.push(Change::PlugDisk(name.clone()));
                    }
                } else {
                    if disk.tuning.limits != wish.drive.tuning.limits && disk.source.is_some() {
                        out.push(Change::Limit(name.clone()));
                    }
                    if let Some((claim, bytes)) = held.and_then(|c| now.growths.get_key_value(c)) {
                        out.push(Change::Resize(name.clone(), claim.clone(), *bytes));
                    }
                }
            }
        }
    }
    for wish in &wanted.disks {
        let there = now.machine.disks.iter().any(|d| d.name == wish.drive.name);
        let pluggable = matches!(wish.drive.bus, DiskBus::Virtio | DiskBus::Scsi) && !wish.drive.cdrom;
        if !there && pluggable && claim_of(wish).is_some() {
            out.push(Change::PlugDisk(wish.drive.name.clone()));
        }
    }
}

fn nics(wanted: &Wanted, targets: &BTreeMap<String, LedgerNic>, now: &Now<'_>, out: &mut Vec<Change>) {
    for nic in &now.machine.nics {
        let Some(wish) = wanted.nics.iter().find(|w| w.card.name == nic.name) else {
            out.push(Change::UnplugNic(nic.name.clone()));
            continue;
        };
        if !now.devices.contains(&nic_id(&nic.name)) {
            out.push(Change::PlugNic(nic.name.clone()));
            continue;
        }
        let held = now.ledger.nics.iter().find(|n| n.name == nic.name);
        if let (Some(held), Some(target)) = (held, targets.get(&nic.name))
            && (&held.bridge, held.vlan) != (&target.bridge, target.vlan)
        {
            out.push(Change::MoveNic(nic.name.clone()));
        }
        if wish.card.link_up != nic.link_up {
            out.push(Change::Link(nic.name.clone(), wish.card.link_up));
        }
    }
    for wish in &wanted.nics {
        let name = &wish.card.name;
        if targets.contains_key(name) && !now.machine.nics.iter().any(|n| n.name == *name) {
            out.push(Change::PlugNic(name.clone()));
        }
    }
}

/// Whether a disk has limits that have to be set when its machine starts.
pub fn limited(limits: &Limits) -> bool {
    *limits != Limits::default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};
    use sheaf_api::kubevirt as kv;
    use sheaf_net::Mac;
    use sheaf_qemu::spec::Source;

    use super::super::convert;
    use super::*;

    fn vmi(spec: Value) -> kv::VirtualMachineInstance {
        let mut out = kv::VirtualMachineInstance::new("default", "a");
        let mut whole = json!({
            "domain": {"memory": {"guest": "1Gi", "maxGuest": "4Gi"}, "cpu": {"sockets": 1, "maxSockets": 4},
                "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}, {"name": "cd", "cdrom": {"bus": "sata"}}],
                    "interfaces": [{"name": "default", "masquerade": {}}]}},
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "root"}}],
        });
        merge(&mut whole, &spec);
        out.spec = serde_json::from_value(whole).expect("a spec");
        out
    }

    /// Lists are appended to.
    fn merge(to: &mut Value, from: &Value) {
        match (to, from) {
            (Value::Object(to), Value::Object(from)) => {
                for (key, value) in from {
                    merge(to.entry(key).or_insert(Value::Null), value);
                }
            }
            (Value::Array(to), Value::Array(from)) => to.extend(from.iter().cloned()),
            (to, from) => *to = from.clone(),
        }
    }

    fn target(nic: &str, bridge: Option<&str>) -> LedgerNic {
        let hostname = "a".into();
        LedgerNic {
            name: nic.into(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            bridge: bridge.map(Into::into),
            vlan: None,
            hostname,
            tap: String::new(),
            queues: 1,
        }
    }

    /// A machine that was started as `vmi` says, and all its devices.
    fn started(vmi: &kv::VirtualMachineInstance) -> (MachineSpec, Ledger, BTreeSet<String>) {
        let wanted = convert::wanted(vmi, Path::new("/m")).expect("wanted");
        let mut machine = wanted.machine.clone();
        let mut drives = BTreeMap::new();
        for wish in &wanted.disks {
            let mut drive = wish.drive.clone();
            if let Some(claim) = claim_of(wish) {
                drives.insert(drive.name.clone(), claim.to_owned());
                drive.source = Some(Source::Raw(format!("/v/{claim}").into()));
            }
            machine.disks.push(drive);
        }
        machine.nics = wanted.nics.iter().map(|n| n.card.clone()).collect();
        let nics = machine.nics.iter().map(|n| target(&n.name, None)).collect();
        let mut devices: BTreeSet<String> = machine.disks.iter().map(|d| disk_id(&d.name)).collect();
        devices.extend(machine.nics.iter().map(|n| nic_id(&n.name)));
        let ledger = Ledger {
            namespace: "default".into(),
            name: "a".into(),
            uid: "u".into(),
            claims: drives.values().cloned().collect(),
            drives,
            nics,
            paused: false,
            frozen_until: None,
        };
        (machine, ledger, devices)
    }

    fn check(from: Value, to: Value, growths: &[(&str, u64)], want: &[Change]) {
        let (machine, ledger, devices) = started(&vmi(from));
        let after = vmi(to.clone());
        let wanted = convert::wanted(&after, Path::new("/m")).expect("wanted");
        let bridge = |n: &str| (n == "vlan").then_some("br1");
        let targets =
            wanted.nics.iter().map(|n| (n.card.name.clone(), target(&n.card.name, bridge(&n.card.name))));
        let growths: BTreeMap<String, u64> = growths.iter().map(|(c, b)| ((*c).to_owned(), *b)).collect();
        let now = Now { machine: &machine, ledger: &ledger, devices: &devices, growths: &growths };
        assert_eq!(plan_changes(&wanted, &targets.collect(), &now), want, "{to}");
    }

    #[test]
    fn differences_become_changes() {
        use Change::*;
        let none = || json!({});
        let data = |claim: &str| {
            json!({"domain": {"devices": {"disks": [{"name": "data", "disk": {"bus": "scsi"}}]}},
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim, "hotpluggable": true}}]})
        };
        let disc = |claim: &str| json!({"volumes": [{"name": "cd", "persistentVolumeClaim": {"claimName": claim, "hotpluggable": true}}]});
        let vlan = |state: &str| {
            json!({"domain": {"devices": {"interfaces": [{"name": "vlan", "bridge": {}, "state": state}]}},
                "networks": [{"name": "vlan", "multus": {"networkName": "n"}}]})
        };
        let s = || "data".to_owned();
        check(none(), none(), &[], &[]);
        check(none(), data("d"), &[], &[PlugDisk(s())]);
        check(data("d"), none(), &[], &[UnplugDisk(s())]);
        check(data("d"), data("e"), &[], &[UnplugDisk(s())]);
        check(data("d"), data("d"), &[("d", 7), ("x", 1)], &[Resize(s(), "d".into(), 7)]);
        check(none(), disc("iso"), &[], &[Insert("cd".into())]);
        check(disc("iso"), none(), &[], &[Eject("cd".into())]);
        check(disc("iso"), disc("other"), &[], &[Eject("cd".into())]);
        check(none(), vlan(""), &[], &[PlugNic("vlan".into())]);
        check(vlan(""), vlan("absent"), &[], &[UnplugNic("vlan".into())]);
        check(vlan(""), vlan("down"), &[], &[MoveNic("vlan".into()), Link("vlan".into(), false)]);
        check(none(), json!({"domain": {"cpu": {"sockets": 3}}}), &[], &[Sockets(3)]);
        check(none(), json!({"domain": {"cpu": {"sockets": 5, "maxSockets": 8}}}), &[], &[]);
        check(none(), json!({"domain": {"memory": {"guest": "2Gi"}}}), &[], &[Memory(1 << 30)]);
        check(none(), json!({"domain": {"memory": {"guest": "9Gi"}}}), &[], &[Memory(3 << 30)]);
        let late = json!({"domain": {"devices": {"disks": [{"name": "data", "disk": {"bus": "sata"}}]}},
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "d", "hotpluggable": true}}]});
        check(none(), late, &[], &[]);
    }

    #[test]
    fn limits_follow_their_annotation() {
        let before = vmi(json!({}));
        let (machine, ledger, devices) = started(&before);
        let mut after = before.clone();
        let text = r#"{"root": {"iops": 100}, "gone": {"iops": 1}}"#;
        after.metadata.annotations = Some(BTreeMap::from([(kv::DISK_LIMITS.to_owned(), text.to_owned())]));
        let wanted = convert::wanted(&after, Path::new("/m")).expect("wanted");
        let targets = BTreeMap::from([("default".to_owned(), target("default", None))]);
        let now = Now { machine: &machine, ledger: &ledger, devices: &devices, growths: &BTreeMap::new() };
        assert_eq!(plan_changes(&wanted, &targets, &now), [Change::Limit("root".into())]);
    }

    /// An agent that died between writing down a disk and plugging it in does it again.
    #[test]
    fn what_was_cut_short_is_done_again() {
        let with = json!({"domain": {"devices": {"disks": [{"name": "data", "disk": {"bus": "scsi"}}]}},
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "d", "hotpluggable": true}}]});
        let instance = vmi(with);
        let (machine, ledger, mut devices) = started(&instance);
        devices.remove("disk-data");
        devices.remove("net-default");
        let wanted = convert::wanted(&instance, Path::new("/m")).expect("wanted");
        let targets = BTreeMap::from([("default".to_owned(), target("default", None))]);
        let now = Now { machine: &machine, ledger: &ledger, devices: &devices, growths: &BTreeMap::new() };
        let want = [Change::PlugDisk("data".into()), Change::PlugNic("default".into())];
        assert_eq!(plan_changes(&wanted, &targets, &now), want);
    }
}
