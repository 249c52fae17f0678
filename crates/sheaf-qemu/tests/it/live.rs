//! A machine that is changed while it runs, without a guest's help as far as QEMU needs none.

use std::time::{Duration, Instant};

use sheaf_qemu::args::{disk_device, disk_id, drives, place_all};
use sheaf_qemu::pci;
use sheaf_qemu::process::{Found, find};
use sheaf_qemu::qmp::Qmp;
use sheaf_qemu::spec::{Disk, DiskBus, Limits, MachineSpec, Rare, Rate, Source};

use crate::real::{DEADLINE, start, talk};
use crate::sample::{bare, disk, uncached};

/// Plugs in a disk as the agent does: a place for it first.
async fn plug(qmp: &Qmp, spec: &mut MachineSpec, disk: Disk) {
    spec.disks.push(disk.clone());
    if disk.bus == DiskBus::Virtio {
        spec.ports = pci::plug(&spec.ports, &disk_id(&disk.name)).expect("a free port");
    }
    spec.ports.units = pci::units(&spec.ports, &drives(spec));
    let device = disk_device(spec, &disk).expect("a place");
    qmp.plug_disk(&disk, &device).await.expect("plugged in");
    qmp.plug_disk(&disk, &device).await.expect("there already");
}

async fn gone(qmp: &Qmp, id: &str) {
    let until = Instant::now() + DEADLINE;
    while qmp.devices().await.expect("devices").contains(id) {
        assert!(Instant::now() < until, "{id} is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn disks_come_grow_and_go() {
    let dir = tempfile::tempdir().expect("dir");
    let file = |name: &str, size: u64| {
        let path = dir.path().join(name);
        std::fs::File::create(&path).and_then(|f| f.set_len(size)).expect("file");
        path
    };
    let mut spec = bare(dir.path());
    spec.rare = Rare::default();
    let mut cd = disk("cd", Source::Raw(file("unused", 1 << 20)), DiskBus::Sata);
    (cd.cdrom, cd.read_only, cd.source) = (true, true, None);
    spec.disks = vec![cd.clone()];
    let mut spec = place_all(spec).expect("places");
    let started = start(spec.clone());
    let (qmp, _events) = talk(dir.path()).await;
    qmp.cont().await.expect("cont");

    let data = file("data.img", 1 << 20);
    plug(&qmp, &mut spec, disk("data", Source::Raw(data.clone()), DiskBus::Scsi)).await;
    let mut fast = disk("fast", Source::Raw(file("fast.img", 1 << 20)), DiskBus::Virtio);
    fast.cache = uncached(&dir.path().join("fast.img"));
    plug(&qmp, &mut spec, fast).await;
    let there = qmp.devices().await.expect("devices");
    assert!(there.contains("disk-data") && there.contains("disk-fast"), "{there:?}");

    assert_eq!(qmp.node_size("data").await.expect("size"), Some(1 << 20));
    qmp.resize("data", 3 << 20).await.expect("resize");
    assert_eq!(std::fs::metadata(&data).expect("file").len(), 3 << 20);
    let rate = |steady| Rate { steady, burst: 2 * steady, burst_seconds: 3 };
    let limits = Limits { iops: rate(100), bytes_read: rate(1 << 20), ..Limits::default() };
    for limits in [limits, Limits::default()] {
        qmp.throttle("data", &limits).await.expect("limits");
    }
    let stats = qmp.block_stats().await.expect("counters");
    let mut named: Vec<&str> = stats.iter().map(|s| s.disk.as_str()).collect();
    named.sort_unstable();
    assert_eq!(named, ["cd", "data", "fast"]);

    // A disc in, another in its place, and out.
    cd.source = Some(Source::Raw(file("a.iso", 1 << 20)));
    qmp.insert(&cd).await.expect("insert");
    qmp.insert(&cd).await.expect("there already");
    qmp.eject("cd").await.expect("eject");
    cd.source = Some(Source::Raw(file("b.iso", 2 << 20)));
    qmp.insert(&cd).await.expect("another");
    assert_eq!(qmp.node_size("cd").await.expect("size"), Some(2 << 20));
    qmp.eject("cd").await.expect("eject");
    qmp.eject("cd").await.expect("empty already");
    assert_eq!(qmp.node_size("cd").await.expect("size"), None);

    // A SCSI disk needs no guest to go.
    qmp.request_unplug("disk-data").await.expect("unplug");
    gone(&qmp, "disk-data").await;
    let until = Instant::now() + DEADLINE;
    // The file is closed a moment after the device is gone.
    while let Err(error) = qmp.drop_node("data").await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    qmp.request_unplug("disk-data").await.expect("gone already");
    qmp.drop_node("data").await.expect("gone already");
    assert!(qmp.block_nodes().await.expect("nodes").iter().all(|n| n != "b-data"));

    // What cannot be opened is said, and leaves nothing behind.
    let bad = disk("bad", Source::Raw("/nowhere".into()), DiskBus::Scsi);
    let mut with_bad = spec.clone();
    with_bad.disks.push(bad.clone());
    with_bad.ports.units = pci::units(&with_bad.ports, &drives(&with_bad));
    let device = disk_device(&with_bad, &bad).expect("a place");
    let err = qmp.plug_disk(&bad, &device).await.expect_err("no file");
    assert!(err.to_string().contains("/nowhere"), "{err}");
    started.process.kill().expect("kill");
    started.process.exited().await;
}

#[tokio::test]
async fn processors_and_memory_are_plugged_in() {
    let dir = tempfile::tempdir().expect("dir");
    let mut spec = bare(dir.path());
    spec.memory_bytes = 256 << 20;
    spec.rare = Rare { memory_max_bytes: 1 << 30, ..Rare::default() };
    (spec.cpu.max_sockets, spec.cpu.cores, spec.balloon) = (4, 2, true);
    let started = start(place_all(spec).expect("places"));
    let (qmp, _events) = talk(dir.path()).await;
    qmp.cont().await.expect("cont");
    assert_eq!(qmp.cpu_threads().await.expect("cpus").len(), 2);
    assert_eq!(qmp.plug_cpus(3).await.expect("plug"), 4, "two sockets of two cores");
    assert_eq!(qmp.plug_cpus(3).await.expect("plug"), 0, "there already");
    assert_eq!(qmp.cpu_threads().await.expect("cpus").len(), 6);
    // The guest is asked; this one has no driver that could take it.
    qmp.request_memory(128 << 20).await.expect("request");
    assert_eq!(qmp.plugged_memory().await.expect("size"), 0);
    let err = qmp.request_memory(1 << 30).await.expect_err("more than there is room for");
    assert!(err.to_string().contains("size"), "{err}");
    qmp.poll_guest_memory(10).await.expect("balloon");
    assert_eq!(qmp.guest_memory().await.expect("balloon").actual, Some(256 << 20));

    let dump = dir.path().join("memory.dump");
    qmp.begin_dump(std::fs::File::create(&dump).expect("file").into()).await.expect("dump");
    let until = Instant::now() + DEADLINE;
    loop {
        let state = qmp.dump_state().await.expect("state");
        if state == "completed" {
            break;
        }
        assert!(state == "active" && Instant::now() < until, "the dump is {state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(std::fs::read(&dump).expect("dump").starts_with(b"\x7fELF"));
    started.process.kill().expect("kill");
    started.process.exited().await;
}

/// The TPM's emulator comes with the machine and goes with it, also when nobody had time to say good-bye.
#[tokio::test]
async fn a_tpm_keeps_its_state_and_ends_with_its_machine() {
    let dir = tempfile::tempdir().expect("dir");
    let state = dir.path().join("state");
    let mut spec = bare(dir.path());
    spec.rare.tpm = Some(state.clone());
    let spec = place_all(spec).expect("places");
    for _ in 0..2 {
        let started = start(spec.clone());
        let (qmp, _events) = talk(dir.path()).await;
        qmp.cont().await.expect("cont");
        let pid = std::fs::read_to_string(dir.path().join("tpm.pid")).expect("pid");
        let alive = || std::fs::read(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|c| !c.is_empty());
        assert!(alive(), "swtpm runs (package swtpm)");
        started.process.kill().expect("kill");
        started.process.exited().await;
        sheaf_qemu::process::clean(&spec.uuid, dir.path());
        let until = Instant::now() + DEADLINE;
        while alive() {
            assert!(Instant::now() < until, "swtpm still runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(matches!(find(dir.path()).expect("find"), Found::Gone(_)));
    }
    assert!(state.join("tpm2-00.permall").exists(), "its state is kept");
}
