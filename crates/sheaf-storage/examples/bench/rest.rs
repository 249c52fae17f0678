//! What volumes cost that nobody uses, and what does not depend on a volume's size: memory and processor time of idle volumes; snapshots,
//! reverts and clones of a sparse tebibyte; memory for one that has data all over.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sheaf_storage::api::{Answer, Ask, Attach, FrontendAt, ReplicaAt};

use super::{Device, Kind, Vhost, cpu, driver};

const PATIENCE: Duration = Duration::from_secs(60);
const VOLUMES: u64 = 100;
const IDLE: Duration = Duration::from_secs(10);
const TIMES: u64 = 25;
/// Blocks that are written, each in another segment of the tebibyte.
const PLACES: u64 = 1 << 14;

struct Bench {
    control: PathBuf,
    directory: PathBuf,
    pid: u32,
}

fn id(number: u64) -> String {
    format!("00000000-0000-4000-8001-{number:012x}")
}

impl Bench {
    fn ask(&self, ask: &Ask) {
        match sheaf_storage::control::call(&self.control, ask, PATIENCE) {
            Ok(Answer::Done) => {}
            other => panic!("{ask:?}: {other:?}"),
        }
    }

    fn timed(&self, ask: &Ask) -> f64 {
        let start = Instant::now();
        self.ask(ask);
        start.elapsed().as_secs_f64() * 1e3
    }

    fn create(&self, number: u64, bytes: u64) {
        let (volume, name) = (id(number), format!("rest-{number}"));
        let (disk, directory, base) = (None, None, None);
        self.ask(&Ask::CreateReplica {
            volume,
            name,
            replica: 1,
            bytes,
            disk,
            together_with: vec![1],
            directory,
            base,
        });
    }

    fn attach(&self, number: u64, bytes: u64) {
        let frontends = vec![FrontendAt::Vhost(self.socket(number))];
        let replicas = vec![ReplicaAt { id: 1, address: None }];
        let (volume, name) = (id(number), format!("rest-{number}"));
        self.ask(&Ask::Attach(Attach { volume, name, bytes, replicas, frontends }));
    }

    fn socket(&self, number: u64) -> PathBuf {
        self.directory.join(format!("rest-{number}.vhost"))
    }

    /// Resident memory in KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

/// Median, 90 %, worst.
fn spread(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("{:.1}, {:.1}, {:.1} ms", at(0.5), at(0.9), at(1.0))
}

/// `rest CONTROL PID DIRECTORY`: of a storage process that has no volume yet.
pub(super) fn run(args: &[String]) {
    let [control, pid, directory] = args else { panic!("rest CONTROL PID DIRECTORY") };
    let pid = pid.parse().expect("a process's number");
    let bench = Bench { control: control.into(), directory: directory.into(), pid };
    println!("\n| at rest | measured | target |\n|---|---:|---:|");
    let before = bench.memory();
    for number in 0..VOLUMES {
        bench.create(number, 1 << 30);
        bench.attach(number, 1 << 30);
    }
    let memory = bench.memory().saturating_sub(before) as f64 / VOLUMES as f64;
    println!("| memory of an idle volume of 1 GiB, of {VOLUMES} | {memory:.0} KiB | 1024 |");
    let spent = cpu(&[pid]);
    std::thread::sleep(IDLE);
    let spent = (cpu(&[pid]) - spent) as f64 / 1e3;
    println!("| processor time of all {VOLUMES} in {} s | {spent:.1} ms | none |", IDLE.as_secs());

    let (tebibyte, volume) = (1 << 40, id(VOLUMES));
    bench.create(VOLUMES, tebibyte);
    bench.attach(VOLUMES, tebibyte);
    // A little in it, so that each layer is one.
    let mut device = Vhost(driver::Driver::connect(&bench.socket(VOLUMES)));
    let block = vec![0xa5; 4096];
    let write = |device: &mut Vhost, at: u64| {
        device.begin(0, Kind::Write, at, &block);
        device.ended();
    };
    let mut snapshots = Vec::new();
    for number in 0..TIMES {
        write(&mut device, number * 4096);
        let name = format!("s{number}");
        let (labels, system) = (Default::default(), false);
        snapshots.push(bench.timed(&Ask::Snapshot { volume: volume.clone(), name, labels, system }));
    }
    drop(device);
    let revert = |number| bench.timed(&Ask::Revert { volume: volume.clone(), name: format!("s{number}") });
    let reverts = (0..TIMES).map(revert).collect();
    let clone = |number| {
        let (clone, name) = (id(VOLUMES + 1 + number), format!("rest-{}", VOLUMES + 1 + number));
        bench.timed(&Ask::Clone { volume: volume.clone(), snapshot: format!("s{number}"), clone, name })
    };
    let clones = (0..TIMES).map(clone).collect();
    for (what, times) in [("snapshot", snapshots), ("revert", reverts), ("linked clone", clones)] {
        println!("| {what} of 1 TiB, {TIMES} times: median, 90 %, worst | {} | 50 |", spread(times));
    }

    let mut device = Vhost(driver::Driver::connect(&bench.socket(VOLUMES)));
    for place in 0..PLACES {
        write(&mut device, place * (tebibyte / PLACES) + (place * 37 % 4096) * 4096);
    }
    // Memory that was given back within the process serves again: a difference would hide it.
    let memory = bench.memory() as f64 / 1024.0;
    println!(
        "| memory of the process with all of these, {PLACES} blocks all over 1 TiB | {memory:.1} MiB | 256 for each TiB |"
    );
}
