//! Several replicas, in processes of their own, while things happen to them.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use sheaf_storage::api::{Ask, ReplicaAt};

use crate::client::Verifier;
use crate::node::{Node, PATIENCE, VOLUME, base, until};

pub(crate) const BYTES: u64 = 16 << 20;

/// Nodes with a replica each, made together; the volume is attached at the first.
fn cluster(base: &Path, count: u32, tls: Option<&Path>) -> Vec<Node> {
    let nodes: Vec<Node> = (0..count).map(|at| Node::start(base, &format!("n{at}"), tls)).collect();
    let all: Vec<u32> = (1..=count).collect();
    for (id, node) in (1..).zip(&nodes) {
        node.create(id, BYTES, &all);
    }
    nodes[0].done(&attachment(&nodes, 0));
    nodes
}

/// The volume attached at this node.
pub(crate) fn attachment(nodes: &[Node], at: usize) -> Ask {
    let replicas: Vec<ReplicaAt> = (0..)
        .zip(nodes)
        .map(|(of, node)| ReplicaAt {
            id: of as u32 + 1,
            address: (of != at).then(|| node.listen.to_string()),
        })
        .collect();
    nodes[at].attachment(BYTES, &replicas)
}

pub(crate) fn healthy(node: &Node, in_sync: &[u32]) {
    until("the volume is healthy", PATIENCE, || {
        let volume = node.volume();
        if volume.healthy && volume.in_sync == in_sync { Ok(()) } else { Err(format!("{volume:?}")) }
    });
}

/// Detaches, so that nothing is under way, and compares all replicas.
pub(crate) fn all_equal(nodes: &[Node], at: usize) {
    nodes[at].done(&Ask::Detach { volume: VOLUME.into() });
    let first = nodes[0].digest(1);
    for (id, node) in (1..).zip(nodes) {
        assert_eq!(node.digest(id), first, "replica {id} differs from replica 1");
    }
}

pub(crate) fn work(guest: &mut Verifier, operations: u64) {
    (0..operations).for_each(|_| guest.step());
}

#[test]
fn three_replicas_outlive_kills_and_stops_of_each() {
    let base = base();
    let mut nodes = cluster(base.path(), 3, None);
    let mut guest = Verifier::new(&nodes[0].nbd(), 7);
    work(&mut guest, 200);
    for at in [1, 2, 0, 1] {
        nodes[at].kill();
        if at != 0 {
            // The guest goes on once the loss is recorded.
            work(&mut guest, 60);
        }
        nodes[at].again();
        work(&mut guest, 60);
        healthy(&nodes[0], &[1, 2, 3]);
    }
    // Stopped, not dead: it does not answer, and comes back as if nothing had been.
    nodes[2].signal(Signal::STOP);
    work(&mut guest, 60);
    assert_eq!(nodes[0].volume().in_sync, [1, 2]);
    nodes[2].signal(Signal::CONT);
    work(&mut guest, 60);
    healthy(&nodes[0], &[1, 2, 3]);
    guest.check_all();
    all_equal(&nodes, 0);
}

#[test]
fn two_replicas_and_a_vote_take_the_volume_elsewhere() {
    let base = base();
    let mut nodes = cluster(base.path(), 2, None);
    let mut guest = Verifier::new(&nodes[0].nbd(), 9);
    work(&mut guest, 150);
    // The second falls behind; the first goes on alone, by the vote.
    nodes[1].kill();
    work(&mut guest, 60);
    assert_eq!(nodes[0].volume().in_sync, [1]);
    // Only the stale one is there: it must not serve.
    nodes[0].kill();
    nodes[1].again();
    // Again and again, so that it promises itself, and the vote's owner promises it, higher epochs than the first one will ask for.
    for _ in 0..2 {
        let refused = nodes[1].refused(&attachment(&nodes, 1));
        assert!(refused.contains("still attaching"), "{refused}");
        nodes[1].done(&Ask::Detach { volume: VOLUME.into() });
    }
    nodes[0].again();
    work(&mut guest, 60);
    healthy(&nodes[0], &[1, 2]);
    guest.check_all();
    // Taken elsewhere while the first is stopped: fenced when it wakes up.
    nodes[0].done(&Ask::Detach { volume: VOLUME.into() });
    nodes[1].done(&attachment(&nodes, 1));
    let mut there = Verifier::new(&nodes[1].nbd(), 10);
    std::mem::swap(&mut there.client, &mut guest.client);
    work(&mut guest, 60);
    guest.check_all();
    all_equal(&nodes, 1);
}

#[test]
fn a_coordinator_that_was_stopped_is_fenced_when_it_wakes_up() {
    let base = base();
    let nodes = cluster(base.path(), 3, None);
    let mut guest = Verifier::new(&nodes[0].nbd(), 11);
    work(&mut guest, 100);
    nodes[0].signal(Signal::STOP);
    nodes[1].done(&attachment(&nodes, 1));
    let mut there = Verifier::new(&nodes[1].nbd(), 12);
    std::mem::swap(&mut there.client, &mut guest.client);
    // What was acknowledged there is here, and goes on changing here.
    guest.check_all();
    work(&mut guest, 50);
    nodes[0].signal(Signal::CONT);
    until("the old coordinator knows", PATIENCE, || {
        // It notices when it next speaks to a replica: a write of the old guest makes it speak.
        let _ = there.client.send(0, crate::client::WRITE, 0, 512, &[0xee; 512]);
        let volume = nodes[0].volume();
        if volume.phase == "fenced" { Ok(()) } else { Err(format!("{volume:?}")) }
    });
    work(&mut guest, 50);
    guest.check_all();
    nodes[0].done(&Ask::Detach { volume: VOLUME.into() });
    healthy(&nodes[1], &[1, 2, 3]);
    all_equal(&nodes, 1);
}

#[test]
fn a_replica_is_added_while_the_guest_writes_over_tls() {
    let base = base();
    let tls = base.path().join("tls");
    certificates(&tls);
    let nodes: Vec<Node> = (0..2).map(|at| Node::start(base.path(), &format!("n{at}"), Some(&tls))).collect();
    nodes[0].create(1, BYTES, &[1]);
    nodes[0].done(&nodes[0].attachment(BYTES, &[ReplicaAt { id: 1, address: None }]));
    let mut guest = Verifier::new(&nodes[0].nbd(), 13);
    work(&mut guest, 200);
    nodes[1].create(2, BYTES, &[]);
    let replica = ReplicaAt { id: 2, address: Some(nodes[1].listen.to_string()) };
    nodes[0].done(&Ask::AddReplica { volume: VOLUME.into(), replica });
    until("the new replica is in sync", PATIENCE, || {
        work(&mut guest, 5);
        let volume = nodes[0].volume();
        if volume.in_sync == [1, 2] { Ok(()) } else { Err(format!("{volume:?}")) }
    });
    work(&mut guest, 50);
    guest.check_all();
    // Who has no certificate is not heard.
    let mut stranger = std::net::TcpStream::connect(nodes[1].listen).expect("connects");
    stranger.set_read_timeout(Some(Duration::from_secs(30))).expect("sets");
    std::io::Write::write_all(&mut stranger, &[0x5a; 200]).expect("sends");
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stranger, &mut answer);
    assert!(answer.len() < 64, "a TLS alert at most: {answer:?}");
    all_equal(&nodes, 0);
}

#[test]
fn layers_change_while_a_replica_is_away() {
    let base = base();
    let mut nodes = cluster(base.path(), 3, None);
    let mut guest = Verifier::new(&nodes[0].nbd(), 17);
    let snapshot = |name: &str| Ask::Snapshot {
        volume: VOLUME.into(),
        name: name.into(),
        labels: Default::default(),
        system: false,
    };
    work(&mut guest, 100);
    nodes[0].done(&snapshot("before"));
    work(&mut guest, 60);
    nodes[2].kill();
    work(&mut guest, 60);
    nodes[0].done(&snapshot("without"));
    work(&mut guest, 60);
    nodes[0].done(&Ask::RemoveSnapshot { volume: VOLUME.into(), name: "before".into() });
    nodes[0].done(&Ask::Expand { volume: VOLUME.into(), bytes: BYTES + (1 << 20) });
    nodes[2].again();
    work(&mut guest, 100);
    healthy(&nodes[0], &[1, 2, 3]);
    // The coordinator's own process goes in the middle of the next.
    nodes[0].kill();
    nodes[0].again();
    work(&mut guest, 60);
    healthy(&nodes[0], &[1, 2, 3]);
    until("only one snapshot is left", PATIENCE, || {
        let names: Vec<String> =
            nodes[0].volume().snapshots.into_iter().map(|snapshot| snapshot.name).collect();
        if names == ["without"] { Ok(()) } else { Err(format!("{names:?}")) }
    });
    guest.check_all();
    all_equal(&nodes, 0);
}

/// A certificate for every address of this test, and its authority.
fn certificates(dir: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
    std::fs::create_dir_all(dir).expect("makes it");
    let ca_key = KeyPair::generate().expect("makes a key");
    let mut ca = CertificateParams::new(vec![]).expect("is valid");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).expect("signs");
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().expect("makes a key");
    let mut params = CertificateParams::new(vec![]).expect("is valid");
    let host = std::process::id() % 60_000;
    let address = std::net::Ipv4Addr::new(127, 77, (host / 250) as u8, (host % 250 + 1) as u8);
    params.subject_alt_names = vec![SanType::IpAddress(address.into())];
    let cert = params.signed_by(&key, &issuer).expect("signs");
    std::fs::write(dir.join("ca.pem"), ca_cert.pem()).expect("writes");
    std::fs::write(dir.join("cert.pem"), cert.pem()).expect("writes");
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).expect("writes");
}
