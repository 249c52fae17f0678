//! Volumes that begin as a file that lies on every disk: linked, never copied, never changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sheaf_storage::api::{Answer, Ask, Attach, Base, FrontendAt, ReplicaAt, base_snapshot, parse_volume};
use sheaf_storage::bases;

use crate::client::Client;
use crate::node::{Node, PATIENCE, VOLUME, base, until};

const BYTES: u64 = 8 << 20;
/// The base is shorter than the volume, and its last block is not a whole segment.
const BASE: u64 = (2 << 20) + 4096;
const SECOND: &str = "6f6c0a4e-0000-4000-8000-0000000ba5e2";

/// What the base holds: something at its beginning and end, and every second block of a part between.
fn content() -> Vec<u8> {
    let mut bytes = vec![0; BASE as usize];
    bytes[..4096].fill(1);
    for block in (64..128).step_by(2) {
        bytes[block * 4096..(block + 1) * 4096].fill(block as u8);
    }
    let end = bytes.len() - 4096;
    bytes[end..].fill(2);
    bytes
}

fn file(node: &Node) -> PathBuf {
    node.root.join("disk/bases/b.img")
}

/// Makes a node's base. Who wrote it left zeros where another left holes.
fn make_base(node: &Node) {
    fs::create_dir_all(node.root.join("disk/bases")).expect("makes a directory");
    fs::write(bases::half_made(&file(node)), content()).expect("writes");
    bases::finish(&file(node)).expect("finishes");
}

fn over(node: &Node, volume: &str, id: u32, all: &[u32], bytes: u64, file: PathBuf) -> Ask {
    assert!(node.root.is_dir());
    Ask::CreateReplica {
        volume: volume.into(),
        name: "vol".into(),
        replica: id,
        bytes,
        disk: None,
        together_with: all.to_vec(),
        directory: None,
        base: Some(Base { file, created: 77 }),
    }
}

fn replicas(nodes: &[Node]) -> Vec<ReplicaAt> {
    let at = |(id, node): (u32, &Node)| ReplicaAt { id, address: (id > 1).then(|| node.listen.to_string()) };
    (1..).zip(nodes).map(at).collect()
}

/// Makes a volume over the bases of these nodes, and attaches it at the first.
fn attach(nodes: &[Node], volume: &str) -> Client {
    let all: Vec<u32> = (1..).take(nodes.len()).collect();
    for (id, node) in (1..).zip(nodes) {
        node.done(&over(node, volume, id, &all, BYTES, file(node)));
        node.done(&over(node, volume, id, &all, BYTES, file(node)));
    }
    let path = nodes[0].root.join(format!("{}.sock", &volume[volume.len() - 4..]));
    nodes[0].done(&Ask::Attach(Attach {
        volume: volume.into(),
        name: "vol".into(),
        bytes: BYTES,
        replicas: replicas(nodes),
        frontends: vec![FrontendAt::Nbd(path.clone())],
    }));
    Client::connect(&path)
}

fn snapshots(node: &Node, volume: &str) -> Vec<(String, bool)> {
    match node.ask(&Ask::List) {
        Ok(Answer::List { volumes, .. }) => {
            let found = volumes.into_iter().find(|at| at.volume == volume).expect("it is attached");
            found.snapshots.into_iter().map(|s| (s.name, s.removed)).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn healthy(node: &Node, volume: &str, count: usize) {
    until("the volume is healthy", PATIENCE, || match node.ask(&Ask::List) {
        Ok(Answer::List { volumes, .. }) => match volumes.into_iter().find(|at| at.volume == volume) {
            Some(found) if found.healthy && found.in_sync.len() == count => Ok(()),
            other => Err(format!("{other:?}")),
        },
        other => Err(format!("{other:?}")),
    });
}

/// The layer that a replica of a volume has of its base.
fn layer(node: &Node, volume: &str) -> PathBuf {
    let name = base_snapshot(parse_volume(volume).expect("an id"));
    let dirs = fs::read_dir(node.root.join("disk/replicas")).expect("lists").flatten();
    let mut found = dirs.map(|dir| dir.path().join(format!("volume-snap-{name}.img")));
    found.find(|path| path.exists()).expect("a replica of the volume is here")
}

/// What tells whether a file was changed.
fn state(path: &Path) -> (Vec<u8>, i64, i64, u64) {
    let meta = fs::metadata(path).expect("is there");
    (fs::read(path).expect("reads"), meta.mtime(), meta.mtime_nsec(), meta.blocks())
}

#[test]
fn volumes_begin_as_a_file_and_never_change_it() {
    let base = base();
    let mut nodes: Vec<Node> = (0..3).map(|at| Node::start(base.path(), &format!("n{at}"), None)).collect();
    nodes[..2].iter().for_each(make_base);
    let before: Vec<_> = nodes[..2].iter().map(|node| state(&file(node))).collect();
    assert!(before[0].3 * 512 < BASE / 2, "zeros take no space: {}", before[0].3);
    let mut guest = attach(&nodes[..2], VOLUME);
    let mut other = attach(&nodes[..2], SECOND);
    for node in &nodes[..2] {
        assert_eq!(fs::metadata(file(node)).expect("is there").nlink(), 3);
    }
    let whole = content();
    assert_eq!(guest.bytes, BYTES);
    assert!(guest.read(0, BASE as u32) == whole, "it holds what the base does");
    assert!(guest.read(BASE, 1 << 20).iter().all(|byte| *byte == 0), "and zeros behind it");
    // Both are written to, in what the base has and in what it has not, and across its end.
    guest.write(4096, &[9; 8192]);
    guest.write(BASE - 4096, &[8; 16384]);
    other.write(0, &[7; 4096]);
    let read = |client: &mut Client| {
        let end = client.read(BASE - 4096, 8192);
        (client.read(0, 512)[0], client.read(4096, 512)[0], end[0], end[4096])
    };
    assert_eq!((read(&mut guest), read(&mut other)), ((1, 9, 8, 8), (7, 0, 2, 0)));

    // It lives as other volumes do: compared, snapshotted, killed, rebuilt elsewhere.
    nodes[0].done(&Ask::Scrub { volume: VOLUME.into() });
    let snapshot =
        Ask::Snapshot { volume: VOLUME.into(), name: "s1".into(), labels: Default::default(), system: false };
    nodes[0].done(&snapshot);
    guest.write(0, &[6; 4096]);
    nodes[1].kill();
    guest.write(65536, &[5; 4096]);
    nodes[1].again();
    nodes[0].kill();
    nodes[0].again();
    healthy(&nodes[0], VOLUME, 2);
    healthy(&nodes[0], SECOND, 2);
    assert_eq!((read(&mut guest), read(&mut other)), ((6, 9, 8, 8), (7, 0, 2, 0)));
    nodes[2].create(3, BYTES, &[]);
    let third = ReplicaAt { id: 3, address: Some(nodes[2].listen.to_string()) };
    nodes[0].done(&Ask::AddReplica { volume: VOLUME.into(), replica: third });
    healthy(&nodes[0], VOLUME, 3);
    let copied = state(&layer(&nodes[2], VOLUME));
    assert!(copied.0[..whole.len()] == whole, "the base came over the network, as a layer like others");
    nodes[0].done(&Ask::Scrub { volume: VOLUME.into() });
    let status = match nodes[0].ask(&Ask::List) {
        Ok(Answer::List { volumes, .. }) => volumes.into_iter().find(|at| at.volume == VOLUME),
        other => panic!("{other:?}"),
    };
    let status = status.expect("it is attached");
    assert_eq!((status.repaired, status.undecided), (0, 0), "holes and zeros are the same everywhere");

    // Its snapshot is given up: what others have is not folded, and nothing changes.
    let name = base_snapshot(parse_volume(VOLUME).expect("an id"));
    nodes[0].done(&Ask::RemoveSnapshot { volume: VOLUME.into(), name: name.clone() });
    assert_eq!(snapshots(&nodes[0], VOLUME), [(name, true), ("s1".into(), false)]);
    assert_eq!(read(&mut guest), (6, 9, 8, 8));
    // The image goes, and one of the volumes: the other has what it needs.
    for (node, before) in nodes[..2].iter().zip(&before) {
        assert!(state(&file(node)) == *before, "the base was not changed");
        fs::remove_file(file(node)).expect("removes");
    }
    drop(guest);
    nodes[0].done(&Ask::Detach { volume: VOLUME.into() });
    let digest = |id: u32, node: &Node| match node.ask(&Ask::Digest { volume: VOLUME.into(), replica: id }) {
        Ok(Answer::Digest(digest)) => digest,
        other => panic!("{other:?}"),
    };
    let first = digest(1, &nodes[0]);
    assert!(digest(2, &nodes[1]) == first && digest(3, &nodes[2]) == first);
    for (id, node) in (1..).zip(&nodes) {
        node.done(&Ask::DeleteReplica { volume: VOLUME.into(), replica: id });
    }
    assert_eq!(fs::metadata(layer(&nodes[0], SECOND)).expect("is there").nlink(), 1);
    nodes[0].kill();
    nodes[0].again();
    healthy(&nodes[0], SECOND, 2);
    assert_eq!(read(&mut other), (7, 0, 2, 0));
    // It goes back to what it began as.
    drop(other);
    until("the guest is gone", PATIENCE, || {
        let name = base_snapshot(parse_volume(SECOND).expect("an id"));
        nodes[0].ask(&Ask::Revert { volume: SECOND.into(), name }).map_err(|error| error.to_string())
    });
    let mut other = Client::connect(&nodes[0].root.join("a5e2.sock"));
    assert!(other.read(0, BASE as u32) == whole);
}

#[test]
fn a_replica_over_a_base_that_a_kill_interrupts_is_there_or_not() {
    let base = base();
    let mut nodes = vec![Node::start(base.path(), "n0", None)];
    make_base(&nodes[0]);
    let (mut whole, mut none) = (0, 0);
    for at in 0..12u32 {
        let volume = format!("6f6c0a4e-0000-4000-8000-00ba{at:08x}");
        let ask = over(&nodes[0], &volume, 1, &[1], BYTES, file(&nodes[0]));
        let told = nodes[0].killed_over(ask, Duration::from_millis(u64::from(at) * 2));
        let there = match nodes[0].ask(&Ask::List) {
            Ok(Answer::List { replicas, .. }) => {
                assert!(replicas.iter().all(|replica| replica.state == "open"), "{replicas:?}");
                replicas.iter().any(|replica| replica.volume == volume)
            }
            other => panic!("{other:?}"),
        };
        assert!(there || told.is_err(), "what was told to be done is there");
        let names = fs::read_dir(nodes[0].root.join("disk/replicas")).expect("lists").flatten();
        let half: Vec<_> = names.filter(|e| e.file_name().to_string_lossy().contains('~')).collect();
        assert!(half.is_empty(), "{half:?}");
        if there {
            whole += 1
        } else {
            none += 1
        }
        // Asked again, it is made, whatever was left.
        let mut guest = attach(&nodes, &volume);
        assert!(guest.read(0, BASE as u32) == content());
        drop(guest);
        nodes[0].done(&Ask::Detach { volume: volume.clone() });
        // What the detach has left on its way to the disk ends first.
        let delete = Ask::DeleteReplica { volume, replica: 1 };
        until("the replica is deleted", PATIENCE, || {
            nodes[0].ask(&delete).map(drop).map_err(|error| error.to_string())
        });
    }
    assert_eq!(fs::metadata(file(&nodes[0])).expect("is there").nlink(), 1);
    println!("{whole} were made, {none} were not");
}

#[test]
fn a_base_that_a_replica_cannot_have_is_refused() {
    let base = base();
    let node = Node::start(base.path(), "n0", None);
    make_base(&node);
    let bases = node.root.join("disk/bases");
    let refused = |file: PathBuf, bytes: u64| node.refused(&over(&node, VOLUME, 1, &[1], bytes, file));
    assert!(refused(node.root.join("b.img"), BYTES).contains("does not lie in"));
    assert!(refused(bases.join(".."), BYTES).contains("does not lie in"));
    assert!(refused(bases.join("none.img"), BYTES).contains("looking at"));
    fs::create_dir(bases.join("dir.img")).expect("makes it");
    assert!(refused(bases.join("dir.img"), BYTES).contains("is no file"));
    std::os::unix::fs::symlink("b.img", bases.join("link.img")).expect("links");
    assert!(refused(bases.join("link.img"), BYTES).contains("is no file"));
    fs::write(bases.join("odd.img"), [1; 1000]).expect("writes");
    assert!(refused(bases.join("odd.img"), BYTES).contains("multiple of 4096"));
    assert!(refused(file(&node), 2 << 20).contains("the volume only 2097152"));
    let later = node.refused(&over(&node, VOLUME, 1, &[], BYTES, file(&node)));
    assert!(later.contains("from the others"), "{later}");
    // Another disk's, by a name that leads there.
    let elsewhere = tempfile::tempdir_in("/dev/shm").expect("a directory");
    fs::rename(&bases, node.root.join("disk/before")).expect("renames");
    fs::write(elsewhere.path().join("b.img"), content()).expect("writes");
    std::os::unix::fs::symlink(elsewhere.path(), &bases).expect("links");
    assert!(refused(file(&node), BYTES).contains("another file system"));
    let left = fs::read_dir(node.root.join("disk/replicas")).expect("lists").count();
    assert_eq!(left, 0, "nothing was made");
}
