//! Storage processes with a network between them that is cut, slow, or open in one direction; and a disk that is full. Each
//! lives in a network namespace of its own, at a bridge in another. Needs root and `ip`; without, it says so and passes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::client::Verifier;
use crate::node::{Node, PATIENCE, base, until};
use crate::replicated::{BYTES, all_equal, attachment, healthy, work};
use crate::wire::{Ends, Wire, run};

/// Namespaces and the wires between them; gone at the end.
struct Net {
    name: String,
    count: u32,
}

impl Net {
    /// None: it cannot be made here, and why.
    fn new(count: u32) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root may make network namespaces".into());
        }
        // Unique on this machine: of this process and this test.
        let net = Self { name: format!("sbl{}", std::process::id()), count };
        net.make().map(|()| net)
    }

    fn switch(&self) -> String {
        format!("{}s", self.name)
    }

    fn space(&self, at: u32) -> String {
        format!("{}n{at}", self.name)
    }

    fn address(at: u32) -> SocketAddr {
        SocketAddr::from(([10, 77, 0, u8::try_from(at + 1).expect("few")], 20_000))
    }

    fn make(&self) -> Result<(), String> {
        let switch = self.switch();
        run("ip", &["netns", "add", &switch])?;
        run("ip", &["-n", &switch, "link", "add", "name", "br0", "type", "bridge"])?;
        run("ip", &["-n", &switch, "link", "set", "br0", "up"])?;
        for at in 0..self.count {
            let (space, port) = (self.space(at), format!("port{at}"));
            let address = format!("{}/24", Self::address(at).ip());
            run("ip", &["netns", "add", &space])?;
            let wire =
                ["link", "add", "name", &port, "type", "veth", "peer", "name", "eth0", "netns", &space];
            run("ip", &[&["-n", &switch][..], &wire].concat())?;
            run("ip", &["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
            run("ip", &["-n", &space, "addr", "add", &address, "dev", "eth0"])?;
            run("ip", &["-n", &space, "link", "set", "eth0", "up"])?;
            run("ip", &["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    /// Does something with the wire of a node.
    fn wire<T>(&self, at: u32, what: impl FnOnce(Ends<'_>) -> T) -> T {
        let (space, switch, port) = (self.space(at), self.switch(), format!("port{at}"));
        what(Ends { switch: (&switch, &port), node: (&space, "eth0") })
    }

    fn spoil(&self, at: u32, wire: Wire) {
        self.wire(at, |ends| ends.spoil(wire)).expect("is spoilt");
    }

    fn mend(&self, at: u32) {
        self.wire(at, |ends| ends.mend());
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let spaces = (0..self.count).map(|at| self.space(at)).chain([self.switch()]);
        spaces.for_each(|space| drop(run("ip", &["netns", "del", &space])));
    }
}

fn cluster(net: &Net, base: &Path) -> Vec<Node> {
    let start = |at: u32| Node::start_in(base, &format!("n{at}"), &net.space(at), Net::address(at));
    let nodes: Vec<Node> = (0..net.count).map(start).collect();
    let all: Vec<u32> = (1..=net.count).collect();
    for (id, node) in (1..).zip(&nodes) {
        node.create(id, BYTES, &all);
    }
    nodes[0].done(&attachment(&nodes, 0));
    nodes
}

#[test]
fn wires_are_cut_slow_and_one_way_and_every_replica_ends_with_the_same() {
    let net = match Net::new(3) {
        Ok(net) => net,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let base = base();
    let nodes = cluster(&net, base.path());
    let mut guest = Verifier::new(&nodes[0].nbd(), 21);
    work(&mut guest, 120);
    for (at, wire) in [(1, Wire::Cut), (2, Wire::Mute), (1, Wire::Deaf), (2, Wire::Slow)] {
        println!("node {at}: {wire:?}, after {} operations", guest.operations);
        net.spoil(at, wire);
        work(&mut guest, 60);
        net.mend(at);
        work(&mut guest, 30);
        healthy(&nodes[0], &[1, 2, 3]);
    }
    // The coordinator's own node: nothing can be decided, so the guest waits, and goes on when the wire is whole again.
    net.spoil(0, Wire::Cut);
    std::thread::scope(|scope| {
        let working = scope.spawn(|| work(&mut guest, 40));
        until("a request waits", PATIENCE, || {
            let volume = nodes[0].volume();
            let waits = volume.requests > 0 && !volume.healthy;
            if waits || working.is_finished() { Ok(()) } else { Err(format!("{volume:?}")) }
        });
        assert_eq!(nodes[0].volume().in_sync, [1, 2, 3], "no loss can be recorded");
        net.mend(0);
    });
    work(&mut guest, 30);
    healthy(&nodes[0], &[1, 2, 3]);
    // Taken elsewhere while the first node is cut off: what it goes on to ask for comes to nothing.
    net.spoil(0, Wire::Cut);
    nodes[1].done(&attachment(&nodes, 1));
    let mut there = Verifier::new(&nodes[1].nbd(), 22);
    std::mem::swap(&mut there.client, &mut guest.client);
    guest.check_all();
    work(&mut guest, 60);
    net.mend(0);
    until("the first node knows that it is fenced", PATIENCE, || {
        let _ = there.client.send(0, crate::client::WRITE, 0, 512, &[0xee; 512]);
        let volume = nodes[0].volume();
        if volume.phase == "fenced" { Ok(()) } else { Err(format!("{volume:?}")) }
    });
    nodes[0].done(&sheaf_storage::api::Ask::Detach { volume: crate::node::VOLUME.into() });
    healthy(&nodes[1], &[1, 2, 3]);
    guest.check_all();
    println!("{} operations, every read as written", guest.operations);
    all_equal(&nodes, 1);
}

#[test]
fn a_volume_at_rest_misses_a_replica_behind_a_cut_wire() {
    let net = match Net::new(3) {
        Ok(net) => net,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let base = base();
    let nodes = cluster(&net, base.path());
    let mut guest = Verifier::new(&nodes[0].nbd(), 24);
    work(&mut guest, 40);
    healthy(&nodes[0], &[1, 2, 3]);
    // Only then nothing is owed any more, and no answer can be missed.
    until("the volume rests", PATIENCE, || {
        for node in &nodes {
            let report = sheaf_storage::inspect::look(&node.replica_path())?;
            let active = report.belief.as_ref().map_or(0, |belief| belief.active_segments);
            if active > 0 {
                return Err(format!("{active} segments are active at {}", node.root.display()));
            }
        }
        Ok(())
    });
    net.spoil(1, Wire::Cut);
    until("the one that is gone is missed", PATIENCE, || {
        let volume = nodes[0].volume();
        if volume.in_sync == [1, 3] { Ok(()) } else { Err(format!("{volume:?}")) }
    });
    work(&mut guest, 20);
    net.mend(1);
    healthy(&nodes[0], &[1, 2, 3]);
    guest.check_all();
    all_equal(&nodes, 0);
}

/// A small file system in a file; unmounted at the end.
struct Small(PathBuf);

impl Small {
    fn mount(image: &Path, at: &Path, bytes: u64) -> Result<Self, String> {
        let show = |path: &Path| path.display().to_string();
        std::fs::create_dir_all(at).map_err(|error| error.to_string())?;
        let file = std::fs::File::create(image).map_err(|error| error.to_string())?;
        file.set_len(bytes).map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-m", "0", "-J", "size=4", &show(image)])?;
        run("mount", &["-o", "loop", &show(image), &show(at)])?;
        Ok(Self(at.to_path_buf()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.0.display().to_string()]);
    }
}

#[test]
fn a_disk_that_is_full_costs_one_replica_until_there_is_space() {
    let base = base();
    let disk = base.path().join("n1/disk");
    let _small = match Small::mount(&base.path().join("small.img"), &disk, 48 << 20) {
        Ok(small) => small,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let nodes: Vec<Node> = (0..2).map(|at| Node::start(base.path(), &format!("n{at}"), None)).collect();
    for (id, node) in (1..).zip(&nodes) {
        node.create(id, BYTES, &[1, 2]);
    }
    nodes[0].done(&attachment(&nodes, 0));
    let mut guest = Verifier::new(&nodes[0].nbd(), 23);
    work(&mut guest, 20);
    // Somebody else's file takes what is left.
    let junk = disk.join("junk");
    let mut bytes = 64 << 20;
    let file = std::fs::File::create(&junk).expect("creates");
    while bytes >= 4096 {
        let taken = file.metadata().expect("looks").len();
        let more = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), taken, bytes);
        if more.is_err() {
            bytes /= 2;
        }
    }
    until("the full one is out", PATIENCE, || {
        work(&mut guest, 20);
        let volume = nodes[0].volume();
        if volume.in_sync == [1] { Ok(()) } else { Err(format!("{volume:?}")) }
    });
    work(&mut guest, 60);
    drop(file);
    std::fs::remove_file(&junk).expect("gives the space back");
    work(&mut guest, 30);
    until("it is back", 2 * PATIENCE, || {
        let volume = nodes[0].volume();
        if volume.healthy && volume.in_sync == [1, 2] { Ok(()) } else { Err(format!("{volume:?}")) }
    });
    guest.check_all();
    all_equal(&nodes, 0);
    drop(nodes);
}
