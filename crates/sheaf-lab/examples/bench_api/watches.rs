//! From a write to those who watch: one watcher, and a thousand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use crate::{Failure, Setting, load, objects};

const MAPS: &str = "/api/v1/namespaces/bench/configmaps";
/// Watches that share a connection.
const SHARED: usize = 50;
const WRITES: u64 = 100;

pub(crate) async fn run(setting: &Setting) -> Result<(), Failure> {
    load::namespace(&setting.server).await?;
    println!(
        "| watchers | writes | to a watcher, median ms | p99 ms | to the last of them, median ms | p99 ms |\n|---|---|---|---|---|---|"
    );
    for watchers in [1, 1000] {
        one(setting, watchers).await?;
    }
    println!();
    Ok(())
}

async fn one(setting: &Setting, watchers: usize) -> Result<(), Failure> {
    let mut writer = setting.server.connect().await?;
    let (_, list) = writer.call(Method::GET, &format!("{MAPS}?limit=1"), &[], Bytes::new()).await?;
    let list: serde_json::Value = serde_json::from_slice(&list)?;
    let from = list["metadata"]["resourceVersion"].as_str().ok_or("no resourceVersion")?.to_owned();
    let path = format!("{MAPS}?watch=true&resourceVersion={from}");
    let (seen, mut arrivals) = mpsc::unbounded_channel();
    let written = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::new();
    for number in 0..watchers {
        if number % SHARED == 0 {
            clients.push(setting.server.connect().await?);
        }
        let client = clients.last_mut().ok_or("no connection")?;
        let mut body = client.open(Method::GET, &path, &[], Bytes::new()).await?.into_body();
        let (seen, written) = (seen.clone(), written.clone());
        tokio::spawn(async move {
            let mut told = 0;
            while let Some(Ok(frame)) = body.frame().await {
                let lines = frame.data_ref().map_or(0, |d| d.iter().filter(|b| **b == b'\n').count());
                for _ in 0..lines {
                    told += 1;
                    debug_assert!(told <= written.load(Ordering::Relaxed));
                    let _ = seen.send((told, Instant::now()));
                }
            }
        });
    }
    let (mut each, mut last) = (Vec::new(), Vec::new());
    for number in 1..=WRITES {
        let body = objects::config_map(&format!("seen-{watchers}-{number}-{from}")).to_string();
        written.store(number, Ordering::Relaxed);
        let begin = Instant::now();
        writer.call(Method::POST, MAPS, &[("content-type", "application/json")], body.into()).await?;
        let mut latest = Duration::ZERO;
        for _ in 0..watchers {
            let (_, at) = arrivals.recv().await.ok_or("a watch ended")?;
            let took = at.duration_since(begin);
            each.push(took);
            latest = latest.max(took);
        }
        last.push(latest);
    }
    let at = |all: &mut Vec<Duration>, part: f64| {
        all.sort_unstable();
        all.get((all.len() as f64 * part) as usize).copied().unwrap_or_default().as_secs_f64() * 1000.0
    };
    println!(
        "| {watchers} | {WRITES} | {:.2} | {:.2} | {:.2} | {:.2} |",
        at(&mut each, 0.5),
        at(&mut each, 0.99),
        at(&mut last, 0.5),
        at(&mut last, 0.99),
    );
    Ok(())
}
