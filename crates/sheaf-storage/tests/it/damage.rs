//! Damage in the last good copy: what can be read is restored, the rest is known, and fails until it is written anew.

use std::os::unix::fs::FileExt;
use std::path::Path;

use sheaf_storage::api::{Answer, Ask, DamagedAt, ReplicaAt, ReplicaStatus};

use crate::client::{Client, READ, WRITE};
use crate::node::{Node, PATIENCE, VOLUME, base, until};

const BYTES: u64 = 8 << 20;
const SEGMENT: u64 = 256 << 10;
/// A block of the third segment, and all of the sixth.
const LOST: u64 = 2 * SEGMENT + 4096;
const WHOLE: u64 = 5 * SEGMENT;
const EIO: u32 = 5;

fn replica(node: &Node) -> ReplicaStatus {
    match node.ask(&Ask::List) {
        Ok(Answer::List { replicas, .. }) => replicas.into_iter().next().expect("has a replica"),
        other => panic!("{other:?}"),
    }
}

fn flip(path: &Path, offset: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("reads");
    file.write_all_at(&[byte[0] ^ 4], offset).expect("writes");
    file.sync_all().expect("syncs");
}

#[test]
fn a_rebuild_from_a_damaged_copy_restores_all_the_rest() {
    let base = base();
    let mut nodes: Vec<Node> = (0..2).map(|at| Node::start(base.path(), &format!("n{at}"), None)).collect();
    nodes[0].create(1, BYTES, &[1]);
    nodes[0].done(&nodes[0].attachment(BYTES, &[ReplicaAt { id: 1, address: None }]));
    let mut client = Client::connect(&nodes[0].nbd());
    let data: Vec<u8> = (0..BYTES).map(|at| (at / 512 * 31 + 7) as u8).collect();
    for (at, chunk) in (0..).zip(data.chunks(1 << 20)) {
        client.write(at << 20, chunk);
    }
    nodes[0].done(&Ask::Snapshot {
        volume: VOLUME.into(),
        name: "s1".into(),
        labels: Default::default(),
        system: false,
    });
    nodes[0].done(&Ask::Scrub { volume: VOLUME.into() });
    // A block rots, and nobody else has it.
    flip(&nodes[0].replica_path().join("volume-snap-s1.img"), LOST + 904);
    // So do all of a segment whose single checksums are lost.
    let sums =
        std::fs::read_dir(nodes[0].replica_path()).expect("lists").map(|entry| entry.expect("lists").path());
    let sums =
        sums.into_iter().find(|path| path.to_string_lossy().contains("sheaf-sums.")).expect("is there");
    let file = std::fs::OpenOptions::new().write(true).open(&sums).expect("opens");
    file.write_all_at(&[0; 512], 5 * 512).expect("writes");
    file.sync_all().expect("syncs");
    flip(&nodes[0].replica_path().join("volume-snap-s1.img"), WHOLE + 70_000);
    nodes[1].create(2, BYTES, &[]);
    let second = ReplicaAt { id: 2, address: Some(nodes[1].listen.to_string()) };
    nodes[0].done(&Ask::AddReplica { volume: VOLUME.into(), replica: second });
    let healthy = |node: &Node| {
        until("the volume is healthy", PATIENCE, || {
            let volume = node.volume();
            if volume.healthy && volume.in_sync == [1, 2] { Ok(()) } else { Err(format!("{volume:?}")) }
        });
    };
    healthy(&nodes[0]);
    let at = |snapshot: Option<&str>, offset, bytes| DamagedAt {
        snapshot: snapshot.map(str::to_owned),
        offset,
        bytes,
    };
    let expected = [at(Some("s1"), LOST, 4096), at(Some("s1"), WHOLE, SEGMENT)];
    let known = |nodes: &[Node]| {
        for node in nodes {
            let replica = replica(node);
            assert_eq!((&replica.damaged[..], replica.damaged_bytes), (&expected[..], 4096 + SEGMENT));
            let report = sheaf_storage::inspect::look(&node.replica_path()).expect("looks");
            assert_eq!(report.belief.expect("ours").damaged, expected);
        }
    };
    known(&nodes);
    // Exactly that fails, as far as it was not written anew since; all else is read.
    let look = |client: &mut Client, healed: u64| {
        for at in (0..BYTES).step_by(4096) {
            let read = client.ask(0, READ, at, 4096, &[]);
            match at {
                WHOLE.. if at < WHOLE + healed => assert_eq!(read, Ok(vec![0xaa; 4096]), "at {at}"),
                LOST => assert_eq!(read, Err(EIO), "at {at}"),
                WHOLE.. if at < WHOLE + SEGMENT => assert_eq!(read, Err(EIO), "at {at}"),
                _ => assert!(read.expect("reads") == data[at as usize..at as usize + 4096], "at {at}"),
            }
        }
    };
    look(&mut client, 0);
    for node in &mut nodes {
        node.kill();
        node.again();
    }
    healthy(&nodes[0]);
    known(&nodes);
    look(&mut client, 0);
    // A part of a block does not heal it, whole blocks do, in the head; the snapshot stays as it is.
    assert_eq!(client.ask(0, WRITE, WHOLE, 512, &[0xaa; 512]), Err(EIO));
    client.write(WHOLE, &[0xaa; 32768]);
    look(&mut client, 32768);
    known(&nodes);
    // Both replicas say the same, whoever is asked alone.
    nodes[1].kill();
    look(&mut client, 32768);
    nodes[1].again();
    healthy(&nodes[0]);
    // The snapshot is given up: its damage goes to the head, but for what is written there.
    nodes[0].done(&Ask::RemoveSnapshot { volume: VOLUME.into(), name: "s1".into() });
    until("the snapshot is folded away", PATIENCE, || match &nodes[0].volume().snapshots[..] {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    });
    let left = [at(None, LOST, 4096), at(None, WHOLE + 32768, SEGMENT - 32768)];
    nodes.iter().for_each(|node| assert_eq!(replica(node).damaged, left));
    look(&mut client, 32768);
    client.write(WHOLE, &[0xaa; SEGMENT as usize]);
    look(&mut client, SEGMENT);
    nodes.iter().for_each(|node| assert_eq!(replica(node).damaged_bytes, 4096));
    for node in &mut nodes {
        node.kill();
        node.again();
    }
    healthy(&nodes[0]);
    look(&mut client, SEGMENT);
}
