//! A machine goes on only as the one that was saved.

use std::path::Path;

use sheaf_qemu::spec::{MachineSpec, Source};

use super::memory::alike;
use crate::machines::convert::wanted;

/// A machine as it is started, apart from what the node adds.
fn machine() -> MachineSpec {
    let vmi = serde_json::from_value(serde_json::json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "a", "namespace": "x", "uid": "u"},
        "spec": {
            "domain": {"memory": {"guest": "128Mi"}, "devices": {
                "disks": [{"name": "root", "disk": {"bus": "virtio"}}], "interfaces": [{"name": "default", "masquerade": {}}]}},
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "r"}}],
        },
    }))
    .expect("an instance");
    let wanted = wanted(&vmi, Path::new("/machines/u")).expect("wanted");
    let mut machine = wanted.machine;
    machine.disks = wanted.disks.into_iter().map(|w| w.drive).collect();
    machine.nics = wanted.nics.into_iter().map(|w| w.card).collect();
    machine.disks[0].source = Some(Source::Qcow2("/volumes/r/disk.qcow2".into()));
    sheaf_qemu::args::place_all(machine).expect("places")
}

#[test]
fn what_the_guest_cannot_see_may_differ() {
    let mut saved = machine();
    saved.machine = "pc-q35-7.2".into();
    saved.rare.user = Some(1);
    let mut wanted = machine();
    wanted.dir = "/machines/v".into();
    wanted.disks[0].source = Some(Source::Raw("/volumes/s/disk.img".into()));
    wanted.ports.devices.clear();
    let out = alike(&wanted, &saved).expect("alike");
    assert_eq!((out.machine.as_str(), &out.ports, &out.dir), ("pc-q35-7.2", &saved.ports, &wanted.dir));
    assert_eq!(out.disks, wanted.disks);
}

/// Processors that were plugged in since do not make it another machine: controllers keep the queues of the start.
#[test]
fn controllers_keep_their_queues() {
    let (mut saved, mut wanted) = (machine(), machine());
    (saved.rare.first_cpus, saved.cpu.sockets) = (Some(1), 2);
    (wanted.rare.first_cpus, wanted.cpu.sockets) = (Some(2), 2);
    saved.disks[0].tuning.queues = Some(1);
    wanted.disks[0].tuning.queues = Some(2);
    let out = alike(&wanted, &saved).expect("alike");
    assert_eq!((out.rare.first_cpus, out.disks[0].tuning.queues, out.cpu.sockets), (Some(1), Some(1), 2));
}

#[test]
fn what_it_can_see_may_not() {
    let saved = machine();
    let changes: [(&str, fn(&mut MachineSpec)); 4] = [
        ("processors", |m| m.cpu.sockets += 1),
        ("memory", |m| m.memory_bytes *= 2),
        ("disks", |m| m.disks.clear()),
        ("network interfaces", |m| m.nics[0].mac = "02:00:00:00:00:09".into()),
    ];
    for (what, change) in changes {
        let mut wanted = machine();
        change(&mut wanted);
        let why = alike(&wanted, &saved).expect_err(what);
        assert_eq!(why, format!("the machine has other {what} than the one that was saved"));
    }
    let mut wanted = machine();
    wanted.rng = true;
    assert!(alike(&wanted, &saved).expect_err("devices").contains("other devices"));
}
