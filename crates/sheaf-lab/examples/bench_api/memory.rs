//! What objects cost in memory beside their own bytes.

use std::time::Duration;

use bytes::Bytes;
use http::Method;

use crate::{Failure, Setting, lists, load, objects};

const MAPS: &str = "/api/v1/namespaces/bench/configmaps";

/// Resident bytes of a process.
pub(crate) fn resident(pid: u32) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("Rss:")).ok_or("no Rss")?;
    Ok(line.split_whitespace().next().ok_or("no number")?.parse::<u64>()? * 1024)
}

/// Processor time that a process has used, its threads together.
pub(crate) fn processor_time(pid: u32) -> Result<Duration, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(") ").ok_or("no command in stat")?;
    let mut ticks = 0;
    // utime and stime, in hundredths of a second.
    for word in rest.split(' ').skip(11).take(2) {
        ticks += word.parse::<u64>()?;
    }
    Ok(Duration::from_millis(ticks * 10))
}

pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

pub(crate) async fn run(setting: &Setting) -> Result<(), Failure> {
    load::namespace(&setting.server).await?;
    println!("| config maps of 1 KiB | resident | each beside its own bytes |\n|---|---|---|");
    let mut client = setting.server.connect().await?;
    let sample = client.call(
        Method::POST,
        MAPS,
        &[("content-type", "application/json")],
        objects::config_map(&format!("size-{}", setting.objects)).to_string().into(),
    );
    let own = sample.await?.1.len() as i64;
    // Longer than events stay in the cache.
    let settle = Duration::from_secs(90);
    let begin = resident(setting.pid)? as i64;
    println!("| before | {} | |", megabytes(begin as u64));
    for (name, count) in [("a", 10_000), ("b", setting.objects.saturating_sub(10_000))] {
        if count == 0 {
            continue;
        }
        lists::fill(&setting.server, MAPS, objects::config_map, &format!("memory-{name}"), count).await?;
        tokio::time::sleep(settle).await;
        let all = if name == "a" { 10_000 } else { setting.objects } as i64;
        let now = resident(setting.pid)? as i64;
        println!("| {all} more | {} | {} bytes |", megabytes(now as u64), (now - begin) / all - own);
    }
    println!();
    let _ = client.call(Method::GET, "/readyz", &[], Bytes::new()).await?;
    Ok(())
}
