//! Durable writes per second of the SQLite backend, by number of clients.
//!
//! `bench [DIRECTORY] [SECONDS]`: the directory must be on the disk that is to be measured (default: the current one).
//! Each client creates keys with values of 1 KiB, one after the other, and waits for each answer. Prints operations per
//! second and the latency's median and 99th percentile; then the disk's own speed (write + fdatasync of 4 KiB in one
//! file), which bounds what one client can have; then reads and the watch cache.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sheaf_store::cache::{At, Cache};
use sheaf_store::sqlite::{Options, SqliteStore};
use sheaf_store::{Revision, Store};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Processor time of this process so far (proc(5): ticks of 10 ms in fields 14 and 15).
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: u64 = after.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn report(name: &str, mut latencies: Vec<Duration>, took: Duration) {
    latencies.sort_unstable();
    let at = |part: f64| latencies.get((latencies.len() as f64 * part) as usize).copied().unwrap_or_default();
    println!(
        "{name:<28} {:>9.0}/s   median {:>9.1?}   p99 {:>9.1?}   worst {:>9.1?}",
        latencies.len() as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        latencies.last().copied().unwrap_or_default(),
    );
}

async fn puts(store: &Arc<dyn Store>, clients: usize, time: Duration) -> Result<(), Failure> {
    let (start, before) = (Instant::now(), processor());
    let value = Bytes::from(vec![b'x'; 1024]);
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (store, value) = (store.clone(), value.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while start.elapsed() < time {
                    let key =
                        format!("/registry/bench/things/ns-{clients}-{client}/thing-{}", latencies.len());
                    let begin = Instant::now();
                    store.create(&key, value.clone()).await?;
                    latencies.push(begin.elapsed());
                }
                Ok::<_, Failure>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let each = (processor() - before) / u32::try_from(latencies.len().max(1))?;
    report(&format!("durable puts, {clients} clients"), latencies, start.elapsed());
    println!("{:<28} {each:>9.1?} of processor time each", "");
    Ok(())
}

fn disk(directory: &Path, time: Duration) -> Result<(), Failure> {
    let path = directory.join("bench-disk");
    let mut file = std::fs::File::create(&path)?;
    file.write_all(&vec![0; 4 << 20])?;
    file.sync_all()?;
    let (start, mut latencies) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let begin = Instant::now();
        file.write_all_at(&[1; 4096], 4096 * (latencies.len() as u64 % 1024))?;
        file.sync_data()?;
        latencies.push(begin.elapsed());
    }
    report("disk: 4 KiB + fdatasync", latencies, start.elapsed());
    std::fs::remove_file(&path)?;
    Ok(())
}

async fn reads(store: &Arc<dyn Store>, time: Duration) -> Result<(), Failure> {
    let (start, mut latencies) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let begin = Instant::now();
        store.get("/registry/bench/things/ns-1-0/thing-0", Revision(0)).await?;
        latencies.push(begin.elapsed());
    }
    report("gets, 1 client", latencies, start.elapsed());
    let begin = Instant::now();
    let page = store.list("/registry/", "", Revision(0), 500).await?;
    println!("list of 500 of {} keys: {:.1?}", 500 + page.remaining, begin.elapsed());
    let cache =
        Cache::start(store.clone(), "/registry/", Default::default(), |entry| entry.value.clone()).await?;
    let (begin, before) = (Instant::now(), resident_kib());
    let kind = cache.kind("/registry/bench/things/").await?;
    let took = begin.elapsed();
    let each =
        (resident_kib().saturating_sub(before) * 1024).checked_div(kind.count() as u64).unwrap_or_default();
    println!("cache loads {} objects of 1024 bytes: {took:.1?}, {each} bytes of memory each", kind.count());
    let begin = Instant::now();
    let list = kind.list("/registry/bench/", "", 0, At::Latest).await?;
    println!("cache lists {} objects: {:.1?}", list.objects.len(), begin.elapsed());
    Ok(())
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map_or(PathBuf::from("."), PathBuf::from);
    let time = Duration::from_secs_f64(arguments.next().map_or(Ok(5.0), |a| a.parse())?);
    disk(&directory, time.min(Duration::from_secs(3)))?;
    let path = directory.join("bench-state.db");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path, &Options::default())?);
    println!("resident after open: {} KiB", resident_kib());
    for clients in [1, 8, 64] {
        puts(&store, clients, time).await?;
    }
    println!("resident after writes: {} KiB", resident_kib());
    reads(&store, Duration::from_secs(1)).await?;
    drop(store);
    for suffix in ["", "-wal", "-shm", ".lock"] {
        // The log is gone already when the store was closed well.
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    Ok(())
}
