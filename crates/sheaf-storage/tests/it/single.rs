//! One replica, on this node.

use std::process::Command;

use sheaf_storage::api::{Ask, ReplicaAt};

use crate::client::{Client, READ, Verifier, WRITE};
use crate::node::{Node, PATIENCE, VOLUME, base, until};

const BYTES: u64 = 64 << 20;

fn local(id: u32) -> ReplicaAt {
    ReplicaAt { id, address: None }
}

fn attached(node: &Node) {
    node.create(1, BYTES, &[1]);
    node.done(&node.attachment(BYTES, &[local(1)]));
}

#[test]
fn what_is_written_is_read_also_after_the_process_was_killed() {
    let base = base();
    let mut node = Node::start(base.path(), "a", None);
    attached(&node);
    let mut guest = Verifier::new(&node.nbd(), 1);
    assert_eq!(guest.client.bytes, BYTES);
    for round in 0..6 {
        for _ in 0..150 {
            guest.step();
        }
        match round % 3 {
            0 => node.kill(),
            1 => node.end(),
            _ => continue,
        }
        node.again();
    }
    guest.check_all();
    assert!(guest.client.reconnects >= 4, "{}", guest.client.reconnects);
    let volume = node.volume();
    assert_eq!((volume.phase.as_str(), volume.healthy, volume.clients), ("serving", true, 1));
    assert_eq!(volume.epoch, 5, "each start took a higher one");
}

#[test]
fn many_requests_at_a_time_and_large_ones() {
    let base = base();
    let node = Node::start(base.path(), "a", None);
    attached(&node);
    let threads: Vec<_> = (0..4u64)
        .map(|part| {
            let path = node.nbd();
            std::thread::spawn(move || {
                let mut client = Client::connect(&path);
                let len = 16u64 << 20;
                let data: Vec<u8> = (0..len).map(|at| (at / 4096 * 7 + part) as u8).collect();
                client.write(part * len, &data);
                assert!(client.read(part * len, len as u32) == data, "part {part}");
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("verifies"));
    let mut client = Client::connect(&node.nbd());
    assert_eq!(client.ask(0, READ, BYTES, 512, &[]), Err(22), "behind the end");
    assert_eq!(client.ask(0, WRITE, BYTES - 512, 1024, &[0; 1024]), Err(28), "over the end");
    assert_eq!(client.ask(0, READ, 1, 512, &[]), Err(22), "not a sector");
    assert_eq!(client.ask(0, 77, 0, 512, &[]), Err(95), "unknown");
    assert_eq!(client.read(0, 512).len(), 512, "the connection goes on");
    // A client that vanishes in the middle of a write hurts nobody.
    let mut rude = Client::connect(&node.nbd());
    rude.send(0, WRITE, 0, 1 << 20, &[1; 5000]).expect("sends");
    drop(rude);
    let volume = until("the rude client is gone", PATIENCE, || {
        let volume = node.volume();
        if volume.clients == 1 && volume.requests == 0 { Ok(volume) } else { Err(format!("{volume:?}")) }
    });
    assert_eq!(volume.phase, "serving");
}

#[test]
fn orders_that_contradict_what_is_there_are_refused() {
    let base = base();
    let mut node = Node::start(base.path(), "a", None);
    attached(&node);
    node.create(1, BYTES, &[1]);
    let create = |replica, bytes| Ask::CreateReplica {
        volume: VOLUME.into(),
        name: "vol".into(),
        replica,
        bytes,
        disk: None,
        together_with: vec![replica],
        directory: None,
        base: None,
    };
    assert!(node.refused(&create(1, BYTES * 2)).contains("67108864 bytes"));
    assert!(node.refused(&create(2, 1000)).contains("multiple of 4096"));
    assert!(node.refused(&create(0, BYTES)).contains("begins at 1"));
    assert!(node.refused(&node.attachment(BYTES * 2, &[local(1)])).contains("has 67108864 bytes"));
    assert!(
        node.refused(&node.attachment(BYTES, &[local(1), local(2)])).contains("replica 2 cannot be used")
    );
    assert!(node.refused(&node.attachment(BYTES, &[])).contains("at least one"));
    assert!(node.refused(&Ask::DeleteReplica { volume: VOLUME.into(), replica: 1 }).contains("in sync"));
    let mut client = Client::connect(&node.nbd());
    client.write(4096, &[5; 4096]);
    node.done(&Ask::Detach { volume: VOLUME.into() });
    node.done(&Ask::Detach { volume: VOLUME.into() });
    assert!(!node.nbd().exists());
    // A directory that says it is another volume's, or that lost a file, is left alone and said.
    let path = node.replica_path();
    node.end();
    std::fs::write(
        path.join("volume.meta"),
        "{\"Size\":4096,\"Head\":\"volume-head-000.img\",\"Error\":\"x\"}",
    )
    .expect("damages");
    node.again();
    let refused = node.refused(&node.attachment(BYTES, &[local(1)]));
    assert!(refused.contains("not on this node"), "{refused}");
    let report = sheaf_storage::inspect::look(&path).expect("looks");
    assert!(report.refused.expect("is refused").contains("carries the error"));
    assert_eq!(report.belief.expect("ours").replica, 1);
}

#[test]
fn qemu_tools_agree() {
    if Command::new("qemu-io").arg("--version").output().is_err() {
        eprintln!("qemu-io is not on this machine");
        return;
    }
    let base = base();
    let node = Node::start(base.path(), "a", None);
    attached(&node);
    let url = format!("nbd+unix:///vol?socket={}", node.nbd().display());
    let run = |command: &str, args: &[&str]| {
        let output = Command::new(command).args(args).output().expect("runs");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command} {args:?}: {text}");
        text
    };
    assert!(run("qemu-img", &["info", "-f", "raw", &url]).contains("64 MiB"));
    let out = run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 0xab 1M 3M",
            "-c",
            "write -P 0xcd 5000k 1k",
            "-c",
            "flush",
            "-c",
            "write -z 2M 1M",
            "-c",
            "discard 1M 512k",
            "-c",
            "read -P 0 2M 1M",
            "-c",
            "read -P 0xab 3M 1M",
            "-c",
            "read -P 0xcd 5000k 1k",
            "-c",
            "read -P 0 1M 512k",
            "-c",
            "write -f -P 0x11 60M 4M",
            "-c",
            "read -P 0x11 60M 4M",
            &url,
        ],
    );
    assert!(!out.contains("failed"), "{out}");
    let raw = base.path().join("copy.raw");
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &url, raw.to_str().expect("text")]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &url, raw.to_str().expect("text")]);
}

#[test]
fn a_directory_of_longhorns_is_taken_over() {
    let base = base();
    let mut node = Node::start(base.path(), "a", None);
    // The worked example of the format: s1 has 64 KiB of A, s2 4 KiB of B over it, the head C at 128 KiB.
    let path = node.root.join("disk/replicas/old-0a1b2c3d");
    std::fs::create_dir_all(&path).expect("makes it");
    let image = |name: &str, offset: u64, byte: u8, len: usize| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::create(path.join(name)).expect("creates");
        file.set_len(1 << 20).expect("sizes");
        file.write_all_at(&vec![byte; len], offset).expect("writes");
        file.sync_all().expect("syncs");
    };
    image("volume-snap-s1.img", 0, b'A', 65536);
    image("volume-snap-s2.img", 0, b'B', 4096);
    image("volume-head-002.img", 131_072, b'C', 4096);
    let meta = |name: &str, old: &str, parent: &str, user: bool| {
        let text = format!(
            "{{\"Name\":\"{old}\",\"Parent\":\"{parent}\",\"Removed\":false,\"UserCreated\":{user},\"Created\":\"2026-01-01T00:00:02Z\",\"Labels\":null}}\n"
        );
        std::fs::write(path.join(format!("{name}.meta")), text).expect("writes");
    };
    meta("volume-head-002.img", "volume-head-002.img", "volume-snap-s2.img", false);
    meta("volume-snap-s2.img", "volume-head-001.img", "volume-snap-s1.img", true);
    meta("volume-snap-s1.img", "volume-head-000.img", "", true);
    let volume_meta = |dirty: bool| {
        let text = format!(
            "{{\"Size\":1048576,\"Head\":\"volume-head-002.img\",\"Dirty\":{dirty},\"Rebuilding\":false,\"Error\":\"\",\"Parent\":\"volume-snap-s2.img\",\"SectorSize\":512,\"BackingFilePath\":\"\",\"Encrypted\":false}}\n"
        );
        std::fs::write(path.join("volume.meta"), &text).expect("writes");
        text
    };
    volume_meta(true);
    let adopt = |dirty| Ask::Adopt { path: path.clone(), volume: VOLUME.into(), replica: 1, dirty };
    assert!(node.refused(&adopt(false)).contains("not closed properly"));
    let clean = volume_meta(false);
    node.done(&adopt(false));
    assert!(node.refused(&adopt(false)).contains("ours already"));
    node.done(&node.attachment(1 << 20, &[local(1)]));
    let mut client = Client::connect(&node.nbd());
    let expected = |at: usize| match at {
        0..4096 => b'B',
        4096..65536 => b'A',
        131_072..135_168 => b'C',
        _ => 0,
    };
    let read = client.read(0, 1 << 20);
    assert!(read.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
    // A discard over a snapshot reads as zeros, also after a restart; then it is given back as Longhorn left it.
    client.ask(0, crate::client::TRIM, 0, 8192, &[]).expect("trims");
    client.write(131_072, &[b'D'; 4096]);
    drop(client);
    node.kill();
    node.again();
    let mut client = Client::connect(&node.nbd());
    let read = client.read(0, 16384);
    assert!(read[..8192].iter().all(|byte| *byte == 0) && read[8192..].iter().all(|byte| *byte == b'A'));
    drop(client);
    node.done(&Ask::Detach { volume: VOLUME.into() });
    node.end();
    assert_eq!(std::fs::read_to_string(path.join("volume.meta")).expect("reads"), clean);
    let report = sheaf_storage::inspect::look(&path).expect("looks");
    assert_eq!((report.refused, report.layers.len(), report.dirty), (None, 3, false));
}

#[test]
fn snapshots_reverts_and_growth_outlive_kills() {
    let base = base();
    let mut node = Node::start(base.path(), "a", None);
    attached(&node);
    let named = |name: &str| (VOLUME.to_owned(), name.to_owned());
    let snapshot = |name: &str| {
        let (volume, name) = named(name);
        Ask::Snapshot { volume, name, labels: [("why".to_owned(), "test".to_owned())].into(), system: false }
    };
    let mut client = Client::connect(&node.nbd());
    client.write(0, &[1; 8192]);
    node.done(&snapshot("s1"));
    client.write(4096, &[2; 8192]);
    node.done(&snapshot("s2"));
    client.write(8192, &[3; 4096]);
    client.ask(0, crate::client::TRIM, 0, 4096, &[]).expect("trims");
    assert!(node.refused(&snapshot("s2")).contains("already"));
    assert!(node.refused(&snapshot("../s")).contains("letters"));
    let content = |client: &mut Client| {
        let read = client.read(0, 16384);
        [read[0], read[4096], read[8192], read[12288]]
    };
    assert_eq!(content(&mut client), [0, 2, 3, 0]);
    node.kill();
    node.again();
    assert_eq!(content(&mut client), [0, 2, 3, 0]);
    let (volume, name) = named("s1");
    assert!(node.refused(&Ask::Revert { volume, name }).contains("guests are connected"));
    drop(client);
    until("the guest is gone", PATIENCE, || match node.volume().clients {
        0 => Ok(()),
        clients => Err(clients.to_string()),
    });
    let (volume, name) = named("s1");
    node.done(&Ask::Revert { volume, name });
    node.kill();
    node.again();
    let mut client = Client::connect(&node.nbd());
    assert_eq!(content(&mut client), [1, 1, 0, 0]);
    // Longer, at once, for whoever connects from now on.
    node.done(&Ask::Expand { volume: VOLUME.into(), bytes: 2 * BYTES });
    assert!(node.refused(&Ask::Expand { volume: VOLUME.into(), bytes: BYTES }).contains("cannot shrink"));
    let mut client = Client::connect(&node.nbd());
    assert_eq!(client.bytes, 2 * BYTES);
    client.write(2 * BYTES - 4096, &[9; 4096]);
    // Both snapshots are given up and folded away; what is read stays.
    for name in ["s1", "s2"] {
        let (volume, name) = named(name);
        node.done(&Ask::RemoveSnapshot { volume, name });
    }
    until("the snapshots are folded away", PATIENCE, || match &node.volume().snapshots[..] {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    });
    node.kill();
    node.again();
    assert_eq!(content(&mut client), [1, 1, 0, 0]);
    assert_eq!(client.read(2 * BYTES - 4096, 4096), [9; 4096]);
    let report = sheaf_storage::inspect::look(&node.replica_path()).expect("looks");
    assert_eq!((report.refused, report.layers.len(), report.bytes), (None, 1, 2 * BYTES));
}
