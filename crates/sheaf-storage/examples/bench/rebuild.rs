//! How fast a new replica is filled, and what a guest feels of it: a volume whose content lies in several snapshots, one replica in this
//! machine's first process, the new one in another, alone and while a guest works.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sheaf_storage::api::{Answer, Ask, ReplicaAt};

use super::{Device, Kind, Load, Vhost, cpu, driver, load, measure};

/// Layers that the content lies in.
const SNAPSHOTS: u64 = 8;
const GUESTS: &[Load] =
    &[load("w4k QD1", Kind::Write, 4096, 1, false), load("w4k QD32", Kind::Write, 4096, 32, false)];
const PATIENCE: Duration = Duration::from_secs(60);
/// No rebuild takes longer here.
const DEADLINE: Duration = Duration::from_secs(300);

struct Place {
    control: PathBuf,
    pid: u32,
}

struct Bench {
    volume: String,
    source: Place,
    target: Place,
    address: String,
    bytes: u64,
    next: u32,
}

fn ask(place: &Place, ask: &Ask) -> Answer {
    match sheaf_storage::control::call(&place.control, ask, PATIENCE) {
        Ok(Answer::Error(reason)) => panic!("{ask:?}: {reason}"),
        Ok(answer) => answer,
        Err(error) => panic!("{ask:?}: {error}"),
    }
}

impl Bench {
    /// Adds a replica and waits until it is in sync: seconds, and seconds of both processes.
    fn rebuild(&mut self) -> (f64, f64, f64) {
        let replica = self.next;
        self.next += 1;
        let (source, target) = (&self.source, &self.target);
        ask(
            target,
            &Ask::CreateReplica {
                volume: self.volume.clone(),
                name: "rebuilt".into(),
                replica,
                bytes: self.bytes,
                disk: None,
                together_with: vec![],
                directory: None,
                base: None,
            },
        );
        let before = (cpu(&[source.pid]), cpu(&[target.pid]));
        let start = Instant::now();
        let at = ReplicaAt { id: replica, address: Some(self.address.clone()) };
        ask(source, &Ask::AddReplica { volume: self.volume.clone(), replica: at });
        loop {
            let Answer::List { volumes, .. } = ask(source, &Ask::List) else { panic!("a list") };
            let ours = volumes.into_iter().find(|v| v.volume == self.volume).expect("the volume");
            if ours.in_sync.contains(&replica) {
                break;
            }
            assert!(start.elapsed() < DEADLINE, "not rebuilt in time: {ours:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let seconds = start.elapsed().as_secs_f64();
        let spent = |pid: u32, before: u64| (cpu(&[pid]) - before) as f64 / 1e6;
        let took = (spent(source.pid, before.0), spent(target.pid, before.1));
        ask(source, &Ask::RetireReplica { volume: self.volume.clone(), replica });
        self.forget(replica);
        (seconds, took.0, took.1)
    }

    /// Deletes the replica, as soon as its last requests are through.
    fn forget(&self, replica: u32) {
        let delete = Ask::DeleteReplica { volume: self.volume.clone(), replica };
        let start = Instant::now();
        loop {
            match sheaf_storage::control::call(&self.target.control, &delete, PATIENCE) {
                Ok(Answer::Done) => return,
                other => assert!(start.elapsed() < PATIENCE, "not deleted: {other:?}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// `rebuild VOLUME VHOST SOURCE-CONTROL SOURCE-PID TARGET-CONTROL TARGET-PID TARGET-ADDRESS`.
pub(super) fn run(args: &[String]) {
    let [volume, vhost, source, source_pid, target, target_pid, address] = args else {
        panic!("rebuild VOLUME VHOST SOURCE-CONTROL SOURCE-PID TARGET-CONTROL TARGET-PID TARGET-ADDRESS");
    };
    let place = |control: &String, pid: &String| Place {
        control: control.into(),
        pid: pid.parse().expect("a process's number"),
    };
    let mut device = Vhost(driver::Driver::connect(vhost.as_ref()));
    let bytes = device.bytes();
    let mut bench = Bench {
        volume: volume.clone(),
        source: place(source, source_pid),
        target: place(target, target_pid),
        address: address.clone(),
        bytes,
        next: 2,
    };
    let part = bytes / SNAPSHOTS;
    let data = vec![0xa5; 1 << 20];
    for at in 0..SNAPSHOTS {
        for offset in (at * part..(at + 1) * part).step_by(data.len()) {
            device.begin(0, Kind::Write, offset, &data);
            device.ended();
        }
        let name = format!("s{at}");
        ask(
            &bench.source,
            &Ask::Snapshot { volume: volume.clone(), name, labels: Default::default(), system: false },
        );
    }
    println!(
        "\n| rebuild of {} MiB in {SNAPSHOTS} snapshots, the guest | MB/s | source, CPU s/GB | target, CPU s/GB | guest p50, p99 us alone | meanwhile |",
        bytes >> 20
    );
    println!("|---|---:|---:|---:|---:|---:|");
    let gigabytes = bytes as f64 / 1e9;
    let row = |name: &str, (seconds, source, target): (f64, f64, f64), alone: &str, meanwhile: &str| {
        println!(
            "| {name} | {:.0} | {:.2} | {:.2} | {alone} | {meanwhile} |",
            bytes as f64 / 1e6 / seconds,
            source / gigabytes,
            target / gigabytes,
        );
    };
    for _ in 0..3 {
        let took = bench.rebuild();
        row("idle", took, "", "");
    }
    let mut seed = 0x1234_5678_9abc_def1;
    for load in GUESTS {
        let mut target = super::Target { name: load.name.to_owned(), device: Box::new(device), pids: vec![] };
        let second = Instant::now() + Duration::from_secs(1);
        let alone = measure(&mut target, load, &|| Instant::now() > second, &mut seed);
        let over = AtomicBool::new(false);
        let (took, meanwhile) = std::thread::scope(|scope| {
            let (bench, over) = (&mut bench, &over);
            let rebuilt = scope.spawn(move || {
                let took = bench.rebuild();
                over.store(true, Ordering::Relaxed);
                took
            });
            let ends = || over.load(Ordering::Relaxed) || rebuilt.is_finished();
            let meanwhile = measure(&mut target, load, &ends, &mut seed);
            (rebuilt.join().expect("is rebuilt"), meanwhile)
        });
        let show = |result: &super::Result| format!("{:.0}, {:.0}", result.p50, result.p99);
        row(load.name, took, &show(&alone), &show(&meanwhile));
        drop(target);
        device = Vhost(driver::Driver::connect(vhost.as_ref()));
    }
}
