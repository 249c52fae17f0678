//! The task of a machine, with real QEMU. The guest is a boot sector that halts: it ignores the power button.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use sheaf_qemu::accel::Accel;
use sheaf_qemu::process::{self, Found, Record};
use sheaf_qemu::spec as q;
use sheaf_qemu::version::PROGRAM;
use sheaf_runtime::TaskGroup;

use super::monitor::{Begin, End, Machine, Pause, Run, watch_machine};
use super::requests::{Ask, Denied};

const DEADLINE: Duration = Duration::from_secs(60);

fn spec(dir: &Path) -> q::MachineSpec {
    let instance = json!({
        "metadata": {"name": "m", "namespace": "test", "uid": "1"},
        "spec": {"domain": {"memory": {"guest": "32Mi"}, "devices": {"autoattachGraphicsDevice": false}}},
    });
    let vmi = serde_json::from_value(instance).expect("instance");
    let mut spec = super::convert::wanted(&vmi, dir).expect("valid").machine;
    spec.accel = Accel::Tcg { cache_mib: 32 };
    // cli; again: hlt; jmp again
    let mut sector = vec![0xfa, 0xf4, 0xeb, 0xfd];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    let image = dir.join("boot.img");
    std::fs::write(&image, sector).expect("image");
    spec.disks = vec![q::Disk {
        name: "boot".into(),
        source: Some(q::Source::Raw(image)),
        bus: q::DiskBus::Virtio,
        cdrom: false,
        read_only: false,
        boot_order: Some(1),
        serial: None,
        cache: q::Cache::Writeback,
        io: q::Io::Threads,
        errors: q::ErrorPolicy::Stop,
        tuning: q::Tuning::default(),
    }];
    sheaf_qemu::args::place_all(spec).expect("few devices")
}

/// Ends the machine however the test ends.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("dir"))
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Ok(Found::Running(_, process)) = process::find(self.0.path()) {
            let _ = process.kill();
        }
    }
}

fn start(spec: q::MachineSpec, begin: Begin, group: &TaskGroup) -> Machine {
    let record = Record::new(spec, json!(null));
    let started = process::spawn(Path::new(PROGRAM), record, &[]).expect("package qemu-system-x86");
    watch_machine(started.record.machine, started.process, begin, group, || {})
}

async fn until(machine: &Machine, what: &str, want: impl Fn(&Run) -> bool) -> Run {
    let mut changes = machine.changes();
    let waited = tokio::time::timeout(DEADLINE, changes.wait_for(|s| want(&s.run))).await;
    match waited {
        Ok(Ok(seen)) => seen.run.clone(),
        _ => panic!("not {what} within {DEADLINE:?}; last seen: {:?}", machine.seen()),
    }
}

#[tokio::test]
async fn a_life_with_a_change_of_agents() {
    let dir = Directory::new();
    let group = TaskGroup::new();
    let machine = start(spec(dir.path()), Begin::Fresh { paused: true }, &group);
    until(&machine, "paused at its start", |r| *r == Run::Paused(Pause::ByUser)).await;
    assert_eq!(machine.ask(Ask::SoftReboot).await, Err(Denied::Paused));

    // The first agent goes away before the guest has begun. The second leaves it as it is.
    // QEMU talks to one at a time.
    drop(machine);
    group.shutdown().await;
    let group = TaskGroup::new();
    let Ok(Found::Running(record, process)) = process::find(dir.path()) else { panic!("not found") };
    let machine = watch_machine(record.machine, process, Begin::Adopted { paused: true }, &group, || {});
    until(&machine, "paused after its adoption", |r| *r == Run::Paused(Pause::ByUser)).await;
    machine.ask(Ask::Resume).await.expect("resume");
    until(&machine, "running", |r| *r == Run::Running).await;
    machine.ask(Ask::Pause).await.expect("pause");
    until(&machine, "paused", |r| *r == Run::Paused(Pause::ByUser)).await;

    // A third finds it paused.
    drop(machine);
    group.shutdown().await;
    let group = TaskGroup::new();
    let Ok(Found::Running(record, process)) = process::find(dir.path()) else { panic!("not found") };
    let machine = watch_machine(record.machine, process, Begin::Adopted { paused: false }, &group, || {});
    until(&machine, "paused after its second adoption", |r| *r == Run::Paused(Pause::ByUser)).await;
    assert!(machine.seen().machine_type.starts_with("pc-q35") || machine.seen().machine_type.is_empty());

    // The guest does not hear the power button; less time counts more.
    machine.power_down(3600).await.expect("power down");
    assert_eq!(machine.ask(Ask::Pause).await, Err(Denied::Ending));
    machine.power_down(1).await.expect("power down, faster");
    let end = until(&machine, "ended", |r| matches!(r, Run::Ended(_))).await;
    assert_eq!(end, Run::Ended(End::Forced { grace: 1 }));
    assert_eq!(machine.power_down(1).await, Err(Denied::Ended));
}

#[tokio::test]
async fn a_machine_that_cannot_start_says_why() {
    let dir = Directory::new();
    let mut spec = spec(dir.path());
    spec.machine = "pc-q35-0.1".into();
    let machine = start(spec, Begin::Fresh { paused: false }, &TaskGroup::new());
    let end = until(&machine, "ended", |r| matches!(r, Run::Ended(_))).await;
    let Run::Ended(End::Crashed(words)) = end else { panic!("{end:?}") };
    assert!(words.contains("unsupported machine type"), "{words}");
}
