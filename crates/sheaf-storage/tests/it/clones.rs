//! Linked clones: made in no time, and from then on volumes of their own, whatever happens to either.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sheaf_storage::api::{Answer, Ask, Attach, Digest, FrontendAt, ReplicaAt, VolumeStatus};

use crate::client::Client;
use crate::node::{Node, PATIENCE, VOLUME, base, until};

const BYTES: u64 = 8 << 20;
const CLONE: &str = "6f6c0a4e-0000-4000-8000-0000000c10e1";
const SECOND: &str = "6f6c0a4e-0000-4000-8000-0000000c10e2";

fn snapshot(name: &str) -> Ask {
    Ask::Snapshot { volume: VOLUME.into(), name: name.into(), labels: Default::default(), system: false }
}

fn clone(snapshot: &str, clone: &str) -> Ask {
    Ask::Clone { volume: VOLUME.into(), snapshot: snapshot.into(), clone: clone.into(), name: "vol".into() }
}

fn replicas(nodes: &[Node]) -> Vec<ReplicaAt> {
    let at = |(at, node): (usize, &Node)| ReplicaAt {
        id: at as u32 + 1,
        address: (at > 0).then(|| node.listen.to_string()),
    };
    nodes.iter().enumerate().map(at).collect()
}

fn socket(node: &Node, volume: &str) -> PathBuf {
    node.root.join(format!("{}.sock", &volume[volume.len() - 4..]))
}

/// Attaches a clone at the first node, and connects to it.
fn attach(nodes: &[Node], volume: &str, bytes: u64) -> Client {
    let path = socket(&nodes[0], volume);
    nodes[0].done(&Ask::Attach(Attach {
        volume: volume.into(),
        name: "vol".into(),
        bytes,
        replicas: replicas(nodes),
        frontends: vec![FrontendAt::Nbd(path.clone())],
    }));
    Client::connect(&path)
}

fn cluster(base: &std::path::Path, count: u32, bytes: u64) -> Vec<Node> {
    let nodes: Vec<Node> = (0..count).map(|at| Node::start(base, &format!("n{at}"), None)).collect();
    let all: Vec<u32> = (1..=count).collect();
    for (id, node) in (1..).zip(&nodes) {
        node.create(id, bytes, &all);
    }
    nodes[0].done(&nodes[0].attachment(bytes, &replicas(&nodes)));
    nodes
}

fn status(node: &Node, volume: &str) -> VolumeStatus {
    match node.ask(&Ask::List) {
        Ok(Answer::List { volumes, .. }) => {
            volumes.into_iter().find(|at| at.volume == volume).expect("the volume is attached")
        }
        other => panic!("{other:?}"),
    }
}

fn digests(nodes: &[Node], volume: &str) -> Vec<Digest> {
    let digest =
        |(id, node): (u32, &Node)| match node.ask(&Ask::Digest { volume: volume.into(), replica: id }) {
            Ok(Answer::Digest(digest)) => digest,
            other => panic!("{other:?}"),
        };
    (1..).zip(nodes).map(digest).collect()
}

fn directories(node: &Node) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(node.root.join("disk/replicas")).expect("lists");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("lists").path()).collect();
    paths.sort();
    paths
}

fn healthy(node: &Node, volume: &str) {
    until("the volume is healthy", PATIENCE, || {
        let volume = status(node, volume);
        if volume.healthy { Ok(()) } else { Err(format!("{volume:?}")) }
    });
}

fn bytes_of(client: &mut Client) -> [u8; 4] {
    let read = client.read(0, 16384);
    [read[0], read[4096], read[8192], read[12288]]
}

#[test]
fn a_clone_and_its_source_go_their_own_ways() {
    let base = base();
    let mut nodes = cluster(base.path(), 2, BYTES);
    let mut source = Client::connect(&nodes[0].nbd());
    source.write(0, &[1; 16384]);
    nodes[0].done(&snapshot("s1"));
    source.write(4096, &[2; 4096]);
    nodes[0].done(&snapshot("s2"));
    source.write(8192, &[3; 4096]);
    nodes[0].done(&clone("s2", CLONE));
    nodes[0].done(&clone("s2", CLONE));
    assert!(nodes[0].refused(&clone("s3", SECOND)).contains("no snapshot s3"));
    assert!(nodes[0].refused(&clone("s2", VOLUME)).contains("id of its own"));
    let mut copy = attach(&nodes, CLONE, BYTES);
    healthy(&nodes[0], CLONE);
    assert_eq!(bytes_of(&mut copy), [1, 2, 1, 1]);
    let names: Vec<String> = status(&nodes[0], CLONE).snapshots.into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["s1", "s2"]);
    // No data was copied, and Longhorn's reader finds an ordinary chain.
    for node in &nodes {
        let made = directories(node);
        assert_eq!(made.len(), 2, "{made:?}");
        let inode =
            |dir: &PathBuf| std::fs::metadata(dir.join("volume-snap-s2.img")).expect("is there").ino();
        assert_eq!(inode(&made[0]), inode(&made[1]));
        for dir in &made {
            let report = sheaf_storage::inspect::look(dir).expect("looks");
            assert_eq!((report.refused, report.layers.len()), (None, 3));
        }
    }
    // Both are written to.
    copy.write(0, &[7; 4096]);
    source.write(0, &[8; 4096]);
    assert_eq!((bytes_of(&mut source), bytes_of(&mut copy)), ([8, 2, 3, 1], [7, 2, 1, 1]));
    // The source gives up its snapshots: they are not folded while the clone has them, and nothing is changed.
    for name in ["s1", "s2"] {
        nodes[0].done(&Ask::RemoveSnapshot { volume: VOLUME.into(), name: name.into() });
    }
    nodes[0].done(&snapshot("s3"));
    source.write(12288, &[4; 4096]);
    nodes[0].done(&Ask::RemoveSnapshot { volume: VOLUME.into(), name: "s3".into() });
    until("what is the source's alone is folded", PATIENCE, || {
        let left: Vec<String> = status(&nodes[0], VOLUME).snapshots.into_iter().map(|s| s.name).collect();
        if left == ["s1", "s2"] { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert_eq!((bytes_of(&mut source), bytes_of(&mut copy)), ([8, 2, 3, 4], [7, 2, 1, 1]));
    // Everybody is killed; a replica of the clone is left behind and comes back.
    nodes[1].kill();
    copy.write(8192, &[9; 4096]);
    nodes[1].again();
    nodes[0].kill();
    nodes[0].again();
    healthy(&nodes[0], VOLUME);
    healthy(&nodes[0], CLONE);
    assert_eq!((bytes_of(&mut source), bytes_of(&mut copy)), ([8, 2, 3, 4], [7, 2, 9, 1]));
    nodes[0].done(&Ask::Scrub { volume: CLONE.into() });
    // The source goes; the clone is then alone with its layers, and folds them.
    drop(source);
    nodes[0].done(&Ask::Detach { volume: VOLUME.into() });
    for (id, node) in (1..).zip(&nodes) {
        node.done(&Ask::DeleteReplica { volume: VOLUME.into(), replica: id });
        assert_eq!(directories(node).len(), 1);
    }
    for name in ["s1", "s2"] {
        nodes[0].done(&Ask::RemoveSnapshot { volume: CLONE.into(), name: name.into() });
    }
    until("the clone has folded its layers", PATIENCE, || match &status(&nodes[0], CLONE).snapshots[..] {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    });
    assert_eq!(bytes_of(&mut copy), [7, 2, 9, 1]);
    drop(copy);
    nodes[0].done(&Ask::Detach { volume: CLONE.into() });
    let digests = digests(&nodes, CLONE);
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn a_clone_that_a_kill_interrupts_is_there_or_not_and_half_of_it_is_swept() {
    let base = base();
    let mut nodes = cluster(base.path(), 1, BYTES);
    let mut source = Client::connect(&nodes[0].nbd());
    source.write(0, &[1; 16384]);
    nodes[0].done(&snapshot("s1"));
    // What a process leaves that dies in the middle of making one, and of deleting one.
    for half in ["vol-00000001~making", "vol-00000002~deleted"] {
        let path = nodes[0].root.join("disk/replicas").join(half);
        std::fs::create_dir_all(&path).expect("makes it");
        std::fs::write(path.join("volume.meta"), "{}").expect("writes");
    }
    let (mut whole, mut none) = (0, 0);
    for at in 0..14u32 {
        let id = format!("6f6c0a4e-0000-4000-8000-00aa{at:08x}");
        let told = nodes[0].killed_over(clone("s1", &id), Duration::from_millis(u64::from(at) * 3));
        let there = until("the source serves", PATIENCE, || match nodes[0].ask(&Ask::List) {
            Ok(Answer::List { replicas, volumes }) if volumes.iter().all(|volume| volume.healthy) => {
                let bad = replicas.iter().find(|replica| replica.state != "open");
                assert!(bad.is_none(), "{bad:?}");
                Ok(replicas.iter().any(|replica| replica.volume == id))
            }
            other => Err(format!("{other:?}")),
        });
        assert!(there || told.is_err(), "what was told to be done is there");
        let half = |path: &PathBuf| !path.to_string_lossy().contains('~');
        assert!(directories(&nodes[0]).iter().all(half));
        if !there {
            none += 1;
            continue;
        }
        whole += 1;
        let mut copy = attach(&nodes, &id, BYTES);
        assert_eq!(bytes_of(&mut copy), [1; 4]);
        copy.write(4096, &[5; 4096]);
        assert_eq!((bytes_of(&mut source), bytes_of(&mut copy)), ([1; 4], [1, 5, 1, 1]));
        drop(copy);
        nodes[0].done(&Ask::Detach { volume: id.clone() });
        nodes[0].done(&Ask::DeleteReplica { volume: id, replica: 1 });
    }
    println!("{whole} were made, {none} were not");
}

#[test]
fn a_source_that_is_degraded_is_cloned_where_it_is_in_sync() {
    let base = base();
    let mut nodes = cluster(base.path(), 3, BYTES);
    let mut source = Client::connect(&nodes[0].nbd());
    source.write(0, &[1; 16384]);
    nodes[2].kill();
    source.write(0, &[2; 4096]);
    nodes[0].done(&snapshot("s1"));
    nodes[0].done(&clone("s1", CLONE));
    let mut copy = attach(&nodes[..2], CLONE, BYTES);
    healthy(&nodes[0], CLONE);
    assert_eq!(bytes_of(&mut copy), [2, 1, 1, 1]);
    nodes[2].again();
    healthy(&nodes[0], VOLUME);
    assert_eq!(directories(&nodes[2]).len(), 1, "it was not in sync: it has no replica of the clone");
    assert_eq!(status(&nodes[0], CLONE).in_sync, [1, 2]);
    // A clone of a clone, from a snapshot that its own source has given up.
    nodes[0].done(&Ask::RemoveSnapshot { volume: VOLUME.into(), name: "s1".into() });
    nodes[0].done(&Ask::Clone {
        volume: CLONE.into(),
        snapshot: "s1".into(),
        clone: SECOND.into(),
        name: "vol".into(),
    });
    let mut second = attach(&nodes[..2], SECOND, BYTES);
    second.write(0, &[3; 4096]);
    assert_eq!((bytes_of(&mut copy), bytes_of(&mut second)), ([2, 1, 1, 1], [3, 1, 1, 1]));
}

/// How long it takes at a tebibyte; what it measures it prints. It must not depend on the size, whatever this disk takes for a sync.
#[test]
fn layers_of_a_tebibyte() {
    let base = base();
    let bytes = 1 << 40;
    let nodes = cluster(base.path(), 1, bytes);
    let mut source = Client::connect(&nodes[0].nbd());
    (0..64).for_each(|at| source.write(at * (bytes / 64), &[at as u8 + 1; 65536]));
    let timed = |ask: &Ask| {
        let begin = Instant::now();
        nodes[0].done(ask);
        begin.elapsed()
    };
    let mut times: [Vec<Duration>; 3] = Default::default();
    for round in 0..8u32 {
        source.write(u64::from(round) << 30, &[round as u8; 4096]);
        times[0].push(timed(&snapshot(&format!("s{round}"))));
        times[1]
            .push(timed(&clone(&format!("s{round}"), &format!("6f6c0a4e-0000-4000-8000-00ff{round:08x}"))));
    }
    let mut copy = attach(&nodes, "6f6c0a4e-0000-4000-8000-00ff00000007", bytes);
    assert_eq!(copy.read(bytes / 64, 65536), source.read(bytes / 64, 65536));
    drop(source);
    until("the guest is gone", PATIENCE, || match status(&nodes[0], VOLUME).clients {
        0 => Ok(()),
        clients => Err(clients.to_string()),
    });
    for round in (0..8u32).rev() {
        times[2].push(timed(&Ask::Revert { volume: VOLUME.into(), name: format!("s{round}") }));
    }
    for (what, times) in ["snapshot", "clone", "revert"].into_iter().zip(&mut times) {
        times.sort();
        let ms = |at: usize| times[at].as_secs_f64() * 1000.0;
        println!("{what}: best {:.1} ms, median {:.1} ms, worst {:.1} ms", ms(0), ms(4), ms(7));
        assert!(times[4] < Duration::from_secs(5), "{what}: {times:?}");
    }
}
