//! Measures block devices through the sockets that guests use: NBD and vhost-user-blk, one connection, one thread.
//!
//! ```text
//! bench [--seconds S] [--only WORD] NAME=nbd:SOCKET[:PID,PID..] NAME=vhost:SOCKET[:PID..] NAME=file:PATH ...
//! ```
//!
//! All targets take turns within each workload, so that what else the machine does falls on all alike. For each: requests
//! (or MB) a second, p50 and p99 in microseconds, and the processor time of the named processes for one request. Targets
//! lose their content. `storage` as the first word runs a storage process instead, for the script that measures; `rebuild`: see there.

#![allow(unsafe_code, reason = "clocks of other processes are in no safe crate that we use")]

#[path = "../../tests/it/driver.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod driver;
#[path = "../../tests/it/client.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod nbd;
mod rebuild;
mod rest;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// As the program has it: `sheaf storage` is what is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// A write of 4 KiB, then a flush; the flush is measured.
    Flush,
}

struct Load {
    name: &'static str,
    kind: Kind,
    bytes: usize,
    depth: usize,
    sequential: bool,
}

const fn load(name: &'static str, kind: Kind, bytes: usize, depth: usize, sequential: bool) -> Load {
    Load { name, kind, bytes, depth, sequential }
}

const LOADS: &[Load] = &[
    load("r4k QD1", Kind::Read, 4096, 1, false),
    load("w4k QD1", Kind::Write, 4096, 1, false),
    load("r4k QD8", Kind::Read, 4096, 8, false),
    load("w4k QD8", Kind::Write, 4096, 8, false),
    load("r4k QD32", Kind::Read, 4096, 32, false),
    load("w4k QD32", Kind::Write, 4096, 32, false),
    load("r128k QD4", Kind::Read, 128 << 10, 4, true),
    load("w128k QD4", Kind::Write, 128 << 10, 4, true),
    load("r1M QD4", Kind::Read, 1 << 20, 4, true),
    load("w1M QD4", Kind::Write, 1 << 20, 4, true),
    load("flush", Kind::Flush, 4096, 1, false),
];

/// Something to be measured.
trait Device {
    fn bytes(&self) -> u64;
    /// Begins a request in a free slot.
    fn begin(&mut self, slot: usize, kind: Kind, offset: u64, data: &[u8]);
    /// Slots that have ended; waits for one.
    fn ended(&mut self) -> Vec<usize>;
}

struct Nbd {
    stream: UnixStream,
    bytes: u64,
    reads: Vec<usize>,
    input: Vec<u8>,
    out: Vec<u8>,
}

impl Nbd {
    fn new(path: &Path) -> Self {
        let client = nbd::Client::connect_any(path);
        let (stream, bytes) = client.expect("connects");
        Self { stream, bytes, reads: vec![0; 64], input: Vec::new(), out: Vec::new() }
    }
}

impl Device for Nbd {
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn begin(&mut self, slot: usize, kind: Kind, offset: u64, data: &[u8]) {
        let (number, len): (u16, usize) = match kind {
            Kind::Read => (0, data.len()),
            Kind::Write => (1, data.len()),
            Kind::Flush => (3, 0),
        };
        self.reads[slot] = if kind == Kind::Read { len } else { 0 };
        let offset = if kind == Kind::Flush { 0 } else { offset };
        self.out.extend(0x2560_9513u32.to_be_bytes());
        self.out.extend(0u16.to_be_bytes());
        self.out.extend(number.to_be_bytes());
        self.out.extend((slot as u64).to_be_bytes());
        self.out.extend(offset.to_be_bytes());
        self.out.extend((len as u32).to_be_bytes());
        if kind == Kind::Write {
            self.out.extend(data);
        }
    }
    fn ended(&mut self) -> Vec<usize> {
        self.stream.write_all(&self.out).expect("sends");
        self.out.clear();
        let mut ended = Vec::new();
        let mut buffer = vec![0; 256 << 10];
        while ended.is_empty() {
            let count = self.stream.read(&mut buffer).expect("receives");
            assert!(count > 0, "the device has gone");
            self.input.extend_from_slice(&buffer[..count]);
            let mut at = 0;
            while let Some(head) = self.input.get(at..at + 16) {
                assert_eq!(head[4..8], [0; 4], "a request failed");
                let slot = head[15] as usize;
                let whole = at + 16 + self.reads[slot];
                if self.input.len() < whole {
                    break;
                }
                ended.push(slot);
                at = whole;
            }
            self.input.drain(..at);
        }
        ended
    }
}

struct Vhost(driver::Driver);

impl Device for Vhost {
    fn bytes(&self) -> u64 {
        self.0.sectors * 512
    }
    fn begin(&mut self, slot: usize, kind: Kind, offset: u64, data: &[u8]) {
        let slot = slot as u16;
        match kind {
            Kind::Read => self.0.offer(slot, 0, offset / 512, None, data.len() as u32),
            Kind::Write => self.0.offer(slot, 1, offset / 512, Some(data), data.len() as u32),
            Kind::Flush => self.0.offer(slot, 4, 0, None, 0),
        }
    }
    fn ended(&mut self) -> Vec<usize> {
        self.0.kick();
        let answered = self.0.answered();
        answered
            .into_iter()
            .map(|(slot, status)| {
                assert_eq!(status, 0, "a request failed");
                usize::from(slot)
            })
            .collect()
    }
}

/// The file itself, with O_DIRECT; depth by threads, as a program without io_uring would.
struct Direct {
    bytes: u64,
    jobs: std::sync::mpsc::Sender<(usize, Kind, u64, usize)>,
    done: std::sync::mpsc::Receiver<usize>,
}

impl Direct {
    fn new(path: &Path) -> Self {
        let mut options = File::options();
        let file = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(path).expect("opens");
        let bytes = file.metadata().expect("looks").len();
        let file = std::sync::Arc::new(file);
        let (jobs, todo) = std::sync::mpsc::channel::<(usize, Kind, u64, usize)>();
        let todo = std::sync::Arc::new(std::sync::Mutex::new(todo));
        let (ended, done) = std::sync::mpsc::channel();
        for _ in 0..32 {
            let (file, todo, ended) = (file.clone(), todo.clone(), ended.clone());
            std::thread::spawn(move || {
                let mut buffer = sheaf_disk::buffer::Buffer::any(1 << 20);
                loop {
                    let next = todo.lock().expect("is whole").recv();
                    let Ok((slot, kind, offset, len)) = next else { return };
                    match kind {
                        Kind::Read => file.read_exact_at(&mut buffer[..len], offset).expect("reads"),
                        Kind::Write => file.write_all_at(&buffer[..len], offset).expect("writes"),
                        Kind::Flush => file.sync_data().expect("syncs"),
                    }
                    if ended.send(slot).is_err() {
                        return;
                    }
                }
            });
        }
        Self { bytes, jobs, done }
    }
}

impl Device for Direct {
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn begin(&mut self, slot: usize, kind: Kind, offset: u64, data: &[u8]) {
        self.jobs.send((slot, kind, offset, data.len())).expect("is taken");
    }
    fn ended(&mut self) -> Vec<usize> {
        let first = self.done.recv().expect("ends");
        std::iter::once(first).chain(self.done.try_iter()).collect()
    }
}

/// Processor time of processes, in microseconds, by their clocks: those of threads that have ended are part of it.
fn cpu(pids: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
        // SAFETY: both calls write one value each, into variables that live on this stack frame.
        let told = unsafe {
            libc::clock_getcpuclockid(*pid as libc::pid_t, &raw mut clock) == 0
                && libc::clock_gettime(clock, &raw mut time) == 0
        };
        assert!(told, "process {pid} has ended");
        time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
    };
    pids.iter().map(of).sum()
}

struct Target {
    name: String,
    device: Box<dyn Device>,
    pids: Vec<u32>,
}

fn target(text: &str) -> Target {
    let (name, rest) = text.split_once('=').expect("NAME=KIND:PATH");
    let mut parts = rest.splitn(3, ':');
    let (kind, path) = (parts.next().unwrap_or_default(), PathBuf::from(parts.next().unwrap_or_default()));
    let pids = parts.next().unwrap_or_default().split(',').filter_map(|pid| pid.parse().ok()).collect();
    let device: Box<dyn Device> = match kind {
        "nbd" => Box::new(Nbd::new(&path)),
        "vhost" => Box::new(Vhost(driver::Driver::connect(&path))),
        "file" => Box::new(Direct::new(&path)),
        other => panic!("{other}: nbd, vhost or file"),
    };
    Target { name: name.to_owned(), device, pids }
}

struct Result {
    per_second: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
}

fn measure(target: &mut Target, load: &Load, ends: &dyn Fn() -> bool, seed: &mut u64) -> Result {
    let device = &mut *target.device;
    // Within what was written before, so that nothing is read from holes.
    let span = (device.bytes().min(1 << 30) / load.bytes as u64).max(1);
    let data = vec![0x5a; load.bytes];
    let mut next = 0u64;
    let mut place = |seed: &mut u64| {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        next += 1;
        (if load.sequential { next % span } else { *seed % span }) * load.bytes as u64
    };
    let mut began = vec![Instant::now(); load.depth];
    let mut latencies = Vec::new();
    let before = cpu(&target.pids);
    let start = Instant::now();
    let first = if load.kind == Kind::Flush { Kind::Write } else { load.kind };
    for (slot, at) in began.iter_mut().enumerate() {
        *at = Instant::now();
        device.begin(slot, first, place(seed), &data);
    }
    let mut under_way = load.depth;
    let mut flushing = false;
    while under_way > 0 {
        for slot in device.ended() {
            let over = ends();
            if load.kind == Kind::Flush {
                if flushing {
                    latencies.push(began[slot].elapsed().as_micros() as u64);
                }
                flushing = !flushing;
                if over && !flushing {
                    under_way -= 1;
                    continue;
                }
                began[slot] = Instant::now();
                device.begin(slot, if flushing { Kind::Flush } else { Kind::Write }, place(seed), &data);
                continue;
            }
            latencies.push(began[slot].elapsed().as_micros() as u64);
            if over {
                under_way -= 1;
                continue;
            }
            began[slot] = Instant::now();
            device.begin(slot, load.kind, place(seed), &data);
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    let spent = cpu(&target.pids) - before;
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64;
    let count = latencies.len() as f64;
    Result { per_second: count / elapsed, p50: at(0.5), p99: at(0.99), cpu: spent as f64 / count }
}

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "storage") {
        return storage(&args[1..]);
    }
    if args.first().is_some_and(|first| first == "rebuild") {
        return rebuild::run(&args[1..]);
    }
    if args.first().is_some_and(|first| first == "rest") {
        return rest::run(&args[1..]);
    }
    let mut option = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.remove(at);
        Some(args.remove(at))
    };
    let seconds: f64 = option("--seconds").and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let rounds: usize = option("--rounds").and_then(|text| text.parse().ok()).unwrap_or(3);
    let only = option("--only").unwrap_or_default();
    let mut targets: Vec<Target> = args.iter().map(|arg| target(arg)).collect();
    let mut seed = 0x1234_5678_9abc_def1;
    // Everything is written once: nothing measured is an allocation or a hole.
    let data = vec![0xa5; 1 << 20];
    for target in &mut targets {
        for at in 0..target.device.bytes().min(1 << 30) >> 20 {
            target.device.begin(0, Kind::Write, at << 20, &data);
            target.device.ended();
        }
        target.device.begin(0, Kind::Flush, 0, &[]);
        target.device.ended();
    }
    println!("| load | target | /s or MB/s | p50 us | p99 us | CPU us |\n|---|---|---:|---:|---:|---:|");
    for load in LOADS.iter().filter(|load| load.name.contains(&only)) {
        let mut results: Vec<Vec<Result>> = targets.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for (target, results) in targets.iter_mut().zip(&mut results) {
                let end = Instant::now() + Duration::from_secs_f64(seconds);
                results.push(measure(target, load, &|| Instant::now() > end, &mut seed));
            }
        }
        for (target, results) in targets.iter().zip(results) {
            let median = |of: &dyn Fn(&Result) -> f64| {
                let mut all: Vec<f64> = results.iter().map(of).collect();
                all.sort_by(f64::total_cmp);
                all[all.len() / 2]
            };
            let rate = median(&|result| result.per_second);
            let rate = if load.bytes > 4096 { rate * load.bytes as f64 / 1e6 } else { rate };
            println!(
                "| {} | {} | {rate:.0} | {:.0} | {:.0} | {:.1} |",
                load.name,
                target.name,
                median(&|result| result.p50),
                median(&|result| result.p99),
                median(&|result| result.cpu),
            );
        }
    }
}

/// `storage ROOT LISTEN`: a storage process until standard input ends.
fn storage(args: &[String]) {
    let root = PathBuf::from(&args[0]);
    let options = sheaf_storage::Options {
        disks: vec![root.join("disk")],
        state: root.join("state"),
        control: root.join("control.sock"),
        listen: args.get(1).and_then(|listen| listen.parse().ok()),
        tls: None,
        trusted_network: true,
        arbiter: Some(root.join("../votes")),
        votes: None,
        threads: false,
    };
    sheaf_storage::run(&options, || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    })
    .expect("the storage process runs");
}
