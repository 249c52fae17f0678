//! Real QEMU: started, talked to, left alone, found again, ended.
//!
//! The guest is a boot sector of 40 bytes that writes to the serial port and halts, so the tests need QEMU and no
//! operating system. They fail, rather than pass unseen, where `qemu-system-x86_64` is missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use sheaf_qemu::process::{self, Exit, Found, Record, Started, find, spawn};
use sheaf_qemu::qmp::{Happening, Qmp, RunState};
use sheaf_qemu::spec::{DiskBus, Files, InputBus, MachineSpec, NicModel, Source, WatchdogAction};
use sheaf_qemu::version::Version;
use tokio::sync::mpsc::Receiver;

use crate::sample::{bare, disk, nic, placed, uncached};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn qemu() -> PathBuf {
    // By PATH, as the agent does: the same tests run with another QEMU.
    PathBuf::from("qemu-system-x86_64")
}

pub(crate) fn start(spec: MachineSpec) -> Started {
    let record = Record::new(placed(spec), json!({"note": "kept"}));
    spawn(&qemu(), record, &[]).expect("start qemu-system-x86_64 (package qemu-system-x86)")
}

pub(crate) async fn talk(dir: &Path) -> (Qmp, Receiver<Happening>) {
    Qmp::connect(&Files(dir.into()).qmp(), DEADLINE).await.expect("control socket")
}

async fn event(events: &mut Receiver<Happening>, name: &str) {
    let wait = async {
        loop {
            match events.recv().await {
                Some(Happening::Event(e)) if e.name == name => return,
                Some(Happening::Event(_) | Happening::Lost) => {}
                Some(Happening::Closed) | None => panic!("the connection ended before the event {name}"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, wait)
        .await
        .unwrap_or_else(|_| panic!("no event {name} within {DEADLINE:?}"));
}

/// A boot sector that prints `text` on the first serial port and halts.
pub(crate) fn boot_sector(text: &str) -> Vec<u8> {
    let mut code = vec![
        0xfa, // cli
        0x31, 0xc0, 0x8e, 0xd8, // ds = 0
        0xbe, 0x00, 0x7d, // si = 0x7d00, where the text is
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x06, // jz halt
        0xba, 0xf8, 0x03, // dx = 0x3f8
        0xee, // out dx, al
        0xeb, 0xf5, // jmp next
        0xf4, // halt: hlt
        0xeb, 0xfd, // jmp halt
    ];
    code.resize(256, 0);
    code.extend_from_slice(text.as_bytes());
    code.resize(510, 0);
    code.extend_from_slice(&[0x55, 0xaa]);
    code.resize(1 << 20, 0);
    code
}

#[tokio::test]
async fn runs_a_guest_and_is_found_again() {
    let dir = tempfile::tempdir().expect("dir");
    let image = dir.path().join("boot.img");
    std::fs::write(&image, boot_sector("hello from the guest\r\n")).expect("image");
    let mut spec = bare(dir.path());
    let cache = uncached(&image);
    let mut boot = disk("boot", Source::Raw(image), DiskBus::Virtio);
    (boot.boot_order, boot.cache) = (Some(1), cache);
    spec.disks = vec![boot];

    let began = Instant::now();
    let started = start(spec);
    let (qmp, mut events) = talk(dir.path()).await;
    assert_eq!(qmp.query_status().await.expect("status"), RunState::Prelaunch);
    qmp.cont().await.expect("cont");
    event(&mut events, "RESUME").await;
    println!("from spawn to running: {:?}", began.elapsed());
    assert_eq!(qmp.query_uuid().await.expect("uuid"), started.record.machine.uuid);
    assert!(qmp.machine_type().await.expect("machine").starts_with("pc-q35-"));
    let version = qmp.query_version().await.expect("version");
    println!("QEMU {version}");
    // What runs is what the arguments were made for.
    assert_eq!(version, Version::of(&qemu()).expect("version"));
    assert!(version >= Version::new(7, 2, 0));

    // The guest speaks; its words are in the log though nobody was connected.
    let log = Files(dir.path().into()).serial_log();
    let until = Instant::now() + DEADLINE;
    let heard = loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.contains("hello from the guest") || Instant::now() > until {
            break text;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(heard.contains("hello from the guest"), "on the serial port: {heard:?}");

    qmp.stop().await.expect("stop");
    event(&mut events, "STOP").await;
    assert_eq!(qmp.query_status().await.expect("status"), RunState::Paused);
    qmp.cont().await.expect("cont");

    // The agent goes away and comes back.
    let pid = started.process.pid();
    drop((qmp, events, started));
    let Found::Running(record, process) = find(dir.path()).expect("find") else { panic!("not found") };
    assert_eq!((process.pid(), &record.extra), (pid, &json!({"note": "kept"})));
    let (qmp, mut events) = talk(dir.path()).await;
    assert_eq!(qmp.query_status().await.expect("status"), RunState::Running);

    // Without its pid in the record it is found by its mark.
    let mut forgetful = Record::read(dir.path()).expect("read").expect("record");
    (forgetful.pid, forgetful.start_ticks) = (None, None);
    forgetful.write().expect("write");
    assert!(matches!(find(dir.path()).expect("find"), Found::Running(..)), "found by its mark");

    qmp.quit().await.expect("quit");
    while !matches!(events.recv().await, Some(Happening::Closed) | None) {}
    let exit = tokio::time::timeout(DEADLINE, process.exited()).await.expect("the end");
    assert_eq!(exit, Exit::Code(0));
    assert!(matches!(find(dir.path()).expect("find"), Found::Gone(_)));
}

#[tokio::test]
async fn a_killed_machine_is_seen_at_once_and_a_stranger_is_left_alone() {
    let dir = tempfile::tempdir().expect("dir");
    let started = start(bare(dir.path()));
    let (_qmp, mut events) = talk(dir.path()).await;
    started.process.kill().expect("kill");
    assert_eq!(
        tokio::time::timeout(DEADLINE, started.process.exited()).await.expect("the end"),
        Exit::Signal(9)
    );
    while !matches!(events.recv().await, Some(Happening::Closed) | None) {}
    assert!(matches!(find(dir.path()).expect("find"), Found::Gone(_)));

    // The number now belongs to someone else: our own process will do.
    let mut record = started.record;
    (record.pid, record.start_ticks) = (Some(std::process::id()), None);
    record.write().expect("write");
    assert!(matches!(find(dir.path()).expect("find"), Found::Gone(_)));
}

#[tokio::test]
async fn a_failed_start_explains_itself() {
    let dir = tempfile::tempdir().expect("dir");
    let mut spec = bare(dir.path());
    spec.disks = vec![disk("root", Source::Raw("/nowhere/root.img".into()), DiskBus::Virtio)];
    let err = spawn(&qemu(), Record::new(placed(spec), json!(null)), &[]).expect_err("no such disk");
    assert_eq!(err.to_string(), "Could not open '/nowhere/root.img'");
    let mut spec = bare(dir.path());
    spec.cpu.model = sheaf_qemu::spec::CpuModel::Named("abacus".into());
    let started = start(spec);
    let exit = tokio::time::timeout(DEADLINE, started.process.exited()).await.expect("the end");
    assert_eq!(exit, Exit::Code(1));
    let words = process::last_words(dir.path()).expect("words");
    assert!(words.contains("unable to find CPU model 'abacus'"), "{words}");
    let err = Qmp::connect(&Files(dir.path().into()).qmp(), DEADLINE).await.expect_err("gone");
    assert!(err.to_string().starts_with("cannot talk to QEMU at "), "{err}");
}

/// Each machine is a user of its own: it has no rights, and what is another's it cannot even see.
#[tokio::test]
async fn a_machine_is_a_user_of_its_own() {
    if !process::user::can_change() {
        println!("left out: only root can start a process as another user");
        return;
    }
    let dirs = [tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir")];
    let mut started = Vec::new();
    for (n, dir) in dirs.iter().enumerate() {
        std::fs::write(dir.path().join("base"), boot_sector("")).expect("image");
        let made = Command::new("qemu-img")
            .current_dir(dir.path())
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", "root.qcow2"])
            .status();
        assert!(made.expect("qemu-img (package qemu-utils)").success());
        let mut spec = bare(dir.path());
        (spec.graphics, spec.guest_agent) = (true, true);
        spec.uuid = format!("6f5dfbd4-29b8-4b7e-9d2c-5d7d9a1f4b1{n}");
        spec.rare.user = Some(process::user::FIRST + u32::try_from(n).expect("few"));
        spec.rare.tpm = Some(dir.path().join("tpm"));
        spec.disks = vec![disk("root", Source::Qcow2(dir.path().join("root.qcow2")), DiskBus::Virtio)];
        started.push(start(spec));
    }
    for (n, dir) in dirs.iter().enumerate() {
        let connected = Qmp::connect(&Files(dir.path().into()).qmp(), DEADLINE).await;
        let (qmp, _events) =
            connected.unwrap_or_else(|e| panic!("{e}: {:?}", process::last_words(dir.path())));
        qmp.cont().await.expect("cont");
        let pid = started[n].process.pid();
        let user = process::user::FIRST + u32::try_from(n).expect("few");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name} in {status}")).split_ascii_whitespace().collect::<Vec<_>>()
        };
        let own = user.to_string();
        assert_eq!((field("Uid:"), field("Gid:")), (vec![own.as_str(); 4], vec![own.as_str(); 4]));
        assert_eq!((field("Groups:"), field("Seccomp:")), (vec![], vec!["2"]));
        assert_eq!((field("CapEff:"), field("NoNewPrivs:")), (vec!["0000000000000000"], vec!["1"]));
        let tpm = std::fs::read_to_string(dir.path().join("tpm.pid")).expect("pid");
        let status = std::fs::read_to_string(format!("/proc/{}/status", tpm.trim())).expect("swtpm runs");
        assert!(status.contains(&format!("Uid:	{own}	")), "{status}");
        // What such a user finds when it looks for its own disk, and for its neighbour's.
        for other in &dirs {
            let tried = Command::new("setpriv")
                .args(["--reuid", &own, "--regid", &own, "--clear-groups", "cat"])
                .arg(other.path().join("root.qcow2"))
                .output()
                .expect("setpriv (package util-linux)");
            let said = String::from_utf8_lossy(&tried.stderr).into_owned();
            assert!(!tried.status.success() && said.contains("Permission denied"), "{said}");
        }
        let Found::Running(record, _) = find(dir.path()).expect("find") else { panic!("not found") };
        assert_eq!(record.machine.rare.user, Some(user));
    }
    for (n, machine) in started.iter().enumerate() {
        machine.process.kill().expect("kill");
        machine.process.exited().await;
        process::clean(&machine.record.machine.uuid, dirs[n].path());
    }
}

/// A machine that was saved goes on where it was, in another process.
#[tokio::test]
async fn a_saved_machine_goes_on() {
    let dir = tempfile::tempdir().expect("dir");
    let memory = dir.path().join("memory");
    let mut spec = bare(dir.path());
    if process::user::can_change() {
        spec.rare.user = Some(process::user::FIRST + 7);
    }
    let first = start(spec.clone());
    let (qmp, _events) = talk(dir.path()).await;
    qmp.cont().await.expect("cont");
    qmp.stop().await.expect("stop");
    qmp.begin_save(std::fs::File::create(&memory).expect("file").into()).await.expect("save");
    let until = Instant::now() + DEADLINE;
    let ended = loop {
        match qmp.save_state().await.expect("state") {
            Some(ended) => break ended,
            None => assert!(Instant::now() < until, "still saving"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(ended, Ok(()));
    // It was only looked at: it may go on, too.
    qmp.cont().await.expect("cont");
    assert_eq!(qmp.query_status().await.expect("status"), RunState::Running);
    first.process.kill().expect("kill");
    first.process.exited().await;

    spec.rare.incoming = Some(memory);
    let second = start(spec);
    let (qmp, mut events) = talk(dir.path()).await;
    while qmp.filling().await.expect("state") {
        assert!(Instant::now() < until, "still filling");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(qmp.query_status().await.expect("status"), RunState::Paused);
    qmp.cont().await.expect("cont");
    event(&mut events, "RESUME").await;
    second.process.kill().expect("kill");
    second.process.exited().await;
}

/// Every device that a specification can name exists in this QEMU and takes its place.
#[tokio::test]
async fn all_devices_are_accepted() {
    let dir = tempfile::tempdir().expect("dir");
    let image = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, boot_sector("")).expect("image");
        Source::Raw(path)
    };
    let qcow2 = dir.path().join("overlay.qcow2");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&qcow2).arg("8M").status();
    assert!(made.expect("qemu-img (package qemu-utils)").success());
    let mut spec = bare(dir.path());
    (spec.graphics, spec.guest_agent, spec.rng, spec.balloon) = (true, true, true, true);
    (spec.cpu.cores, spec.cpu.max_sockets) = (2, 2);
    spec.tablet = Some(InputBus::Usb);
    spec.watchdog = Some(WatchdogAction::Reset);
    let mut cd = disk("cd", image("cd.iso"), DiskBus::Sata);
    (cd.cdrom, cd.read_only) = (true, true);
    let (mut scsi_cd, mut usb_cd, mut empty) = (cd.clone(), cd.clone(), cd.clone());
    (scsi_cd.name, scsi_cd.bus) = ("scsi-cd".into(), DiskBus::Scsi);
    (usb_cd.name, usb_cd.bus) = ("usb-cd".into(), DiskBus::Usb);
    (empty.name, empty.source) = ("empty".into(), None);
    let mut root = disk("root", Source::Qcow2(qcow2.clone()), DiskBus::Virtio);
    root.cache = uncached(&qcow2);
    spec.disks = vec![
        root,
        disk("a-volume-whose-name-is-as-long-as-it-may-well-be", image("b.img"), DiskBus::Virtio),
        disk("sata", image("c.img"), DiskBus::Sata),
        disk("scsi", image("d.img"), DiskBus::Scsi),
        disk("usb", image("e.img"), DiskBus::Usb),
        cd,
        scsi_cd,
        usb_cd,
        empty,
    ];
    let models = [
        NicModel::Virtio,
        NicModel::E1000,
        NicModel::E1000e,
        NicModel::Ne2kPci,
        NicModel::Pcnet,
        NicModel::Rtl8139,
    ];
    spec.nics = models
        .iter()
        .enumerate()
        .map(|(i, m)| nic(&format!("n{i}"), &format!("52:54:00:00:00:0{i}"), *m))
        .collect();
    spec.nics[0].mtu = Some(1450);
    // A tap needs privileges; a pair of connected sockets looks the same to QEMU as far as devices are concerned.
    let mut spec = placed(spec);
    let nics = std::mem::take(&mut spec.nics);
    for n in &nics {
        let id = sheaf_qemu::args::nic_id(&n.name);
        let driver = match n.model {
            NicModel::Virtio => "virtio-net-pci-non-transitional,host_mtu=1450",
            NicModel::E1000 => "e1000",
            NicModel::E1000e => "e1000e",
            NicModel::Ne2kPci => "ne2k_pci",
            NicModel::Pcnet => "pcnet",
            NicModel::Rtl8139 => "rtl8139",
            NicModel::Igb => "igb",
        };
        let port = spec.ports.devices[&id];
        let device = format!("{driver},id={id},mac={},bus=rp{port},addr=0x0,romfile=,netdev=h{id}", n.mac);
        spec.extra.extend(["-netdev".into(), format!("hubport,id=h{id},hubid=0"), "-device".into(), device]);
    }
    let record = Record::new(spec, json!(null));
    let started = spawn(&qemu(), record, &[]).expect("start");
    let connected = Qmp::connect(&Files(dir.path().into()).qmp(), DEADLINE).await;
    let (qmp, mut events) =
        connected.unwrap_or_else(|e| panic!("{e}: {:?}", process::last_words(dir.path())));
    qmp.cont().await.expect("cont");
    event(&mut events, "RESUME").await;
    let screen = dir.path().join("screen.png");
    let canvas = std::fs::File::create(&screen).expect("file");
    qmp.screendump(canvas.into()).await.expect("screendump");
    assert!(std::fs::read(&screen).expect("screenshot").starts_with(b"\x89PNG"));
    assert!(!qmp.port_open("qga0").await.expect("port"), "no agent runs in this guest");
    qmp.set_link("net-n0", false).await.expect("set_link");
    let (mut viewer, theirs) = std::os::unix::net::UnixStream::pair().expect("sockets");
    qmp.show_screen(theirs.into()).await.expect("a viewer");
    let mut hello = [0; 4];
    std::io::Read::read_exact(&mut viewer, &mut hello).expect("hello");
    assert_eq!(&hello, b"RFB ");
    started.process.kill().expect("kill");
    started.process.exited().await;
}
