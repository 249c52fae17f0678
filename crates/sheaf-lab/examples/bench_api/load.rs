//! Requests per second by number of clients: creates, updates, gets and lists; etcd's puts of the same bytes beside.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::{
    Failure, Setting, api, chosen, etcd, memory,
    objects::{NAME, config_map, machine},
};

const JSON: &[(&str, &str)] = &[("content-type", "application/json"), ("user-agent", "bench")];
const ROUNDS: usize = 3;
const CLIENTS: [usize; 3] = [1, 8, 64];

/// What a run came to.
#[derive(Clone, Copy)]
struct Figures {
    per_second: f64,
    median: Duration,
    p99: Duration,
    /// Processor time of the server for each request, in microseconds.
    cpu: f64,
}

fn figures(mut all: Vec<Duration>, took: Duration, cpu: Duration) -> Figures {
    all.sort_unstable();
    let at = |part: f64| all.get((all.len() as f64 * part) as usize).copied().unwrap_or_default();
    let cpu = cpu.as_secs_f64() * 1e6 / all.len().max(1) as f64;
    Figures { per_second: all.len() as f64 / took.as_secs_f64(), median: at(0.5), p99: at(0.99), cpu }
}

fn middle(mut runs: Vec<Figures>) -> Figures {
    runs.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    runs[runs.len() / 2]
}

/// Runs one task for each client until the time is over; each gives its latencies.
async fn together<F>(server: u32, clients: Vec<F>) -> Result<Figures, Failure>
where
    F: Future<Output = Result<Vec<Duration>, Failure>> + Send + 'static,
{
    let (start, before) = (Instant::now(), memory::processor_time(server)?);
    let tasks: Vec<_> = clients.into_iter().map(tokio::spawn).collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    let took = start.elapsed();
    Ok(figures(all, took, memory::processor_time(server)?.saturating_sub(before)))
}

/// A kind that is written, with an object of it.
struct Kind {
    /// By which it is chosen.
    word: &'static str,
    name: &'static str,
    path: &'static str,
    object: fn(&str) -> Value,
}

const KINDS: [Kind; 2] = [
    Kind {
        word: "config_map",
        name: "ConfigMap of 1 KiB",
        path: "/api/v1/namespaces/bench/configmaps",
        object: config_map,
    },
    Kind {
        word: "machine",
        name: "VirtualMachine",
        path: "/apis/kubevirt.io/v1/namespaces/bench/virtualmachines",
        object: machine,
    },
];

pub(crate) async fn namespace(server: &api::Server) -> Result<(), Failure> {
    let mut client = server.connect().await?;
    let body = json!({"metadata": {"name": "bench"}}).to_string();
    match client.call(Method::POST, "/api/v1/namespaces", JSON, body.into()).await {
        Err(failure) if !failure.to_string().contains("AlreadyExists") => Err(failure),
        _ => Ok(()),
    }
}

/// Creates objects one after the other on each connection; gives them as they came back, too.
async fn creates(
    setting: &Setting,
    kind: &'static Kind,
    clients: usize,
    run: usize,
) -> Result<Figures, Failure> {
    let mut tasks = Vec::new();
    for number in 0..clients {
        let (mut client, time) = (setting.server.connect().await?, setting.time);
        let template = (kind.object)(NAME).to_string();
        tasks.push(async move {
            let (start, mut latencies) = (Instant::now(), Vec::new());
            while start.elapsed() < time {
                let name = format!("w{clients}-{run}-{number}-{}", latencies.len());
                let body = Bytes::from(template.replace(NAME, &name));
                let begin = Instant::now();
                client.call(Method::POST, kind.path, JSON, body).await?;
                latencies.push(begin.elapsed());
            }
            Ok(latencies)
        });
    }
    together(setting.pid, tasks).await
}

/// Replaces objects, each client its own, with the resourceVersion of the last answer.
async fn updates(
    setting: &Setting,
    kind: &'static Kind,
    clients: usize,
    run: usize,
) -> Result<Figures, Failure> {
    let mut tasks = Vec::new();
    for number in 0..clients {
        let (mut client, time) = (setting.server.connect().await?, setting.time);
        tasks.push(async move {
            let name = format!("u{clients}-{run}-{number}");
            let path = format!("{}/{name}", kind.path);
            let body = Bytes::from((kind.object)(&name).to_string());
            let (_, answer) = client.call(Method::POST, kind.path, JSON, body).await?;
            let mut object: Value = serde_json::from_slice(&answer)?;
            // What is sent is what came back, with other digits: it carries its resourceVersion.
            object["metadata"]["annotations"][MARK] = json!("00000000");
            let mut next = object.to_string().into_bytes();
            let (start, mut latencies, mut place) = (Instant::now(), Vec::new(), 0);
            while start.elapsed() < time {
                place = mark(&mut next, place, latencies.len())?;
                let begin = Instant::now();
                match client.call(Method::PUT, &path, JSON, next.into()).await {
                    Ok((_, answer)) => {
                        latencies.push(begin.elapsed());
                        next = answer.into();
                    }
                    // A controller wrote in between, as it does once.
                    Err(failure) if failure.to_string().contains("Conflict") => {
                        let (_, answer) = client.call(Method::GET, &path, &[], Bytes::new()).await?;
                        object = serde_json::from_slice(&answer)?;
                        object["metadata"]["annotations"][MARK] = json!("00000000");
                        next = object.to_string().into_bytes();
                    }
                    Err(failure) => return Err(failure),
                }
            }
            Ok(latencies)
        });
    }
    together(setting.pid, tasks).await
}

/// The annotation that changes with every update.
const MARK: &str = "bench";

/// Writes other digits into the annotation, in place; gives the place, which mostly stays.
fn mark(object: &mut [u8], place: usize, number: usize) -> Result<usize, Failure> {
    let key = format!("\"{MARK}\":\"");
    let there = object.get(place..).is_some_and(|rest| rest.starts_with(key.as_bytes()));
    let found = || object.windows(key.len()).position(|w| w == key.as_bytes());
    let place = if there { place } else { found().ok_or("the annotation is gone")? };
    let digits = object.get_mut(place + key.len()..place + key.len() + 8).ok_or("the annotation is cut")?;
    digits.copy_from_slice(format!("{number:08}").as_bytes());
    Ok(place)
}

async fn puts(
    setting: &Setting,
    value: &Bytes,
    clients: usize,
    run: &str,
    same: bool,
) -> Result<Figures, Failure> {
    let mut tasks = Vec::new();
    for number in 0..clients {
        let (mut client, time) = (etcd::Client::connect(&setting.etcd).await?, setting.time);
        let (value, run) = (value.clone(), run.to_owned());
        tasks.push(async move {
            let (start, mut latencies) = (Instant::now(), Vec::new());
            while start.elapsed() < time {
                let count = if same { 0 } else { latencies.len() };
                let key = format!("/registry/bench/{run}/{number}-{count}");
                let begin = Instant::now();
                client.put(&key, &value).await?;
                latencies.push(begin.elapsed());
            }
            Ok(latencies)
        });
    }
    together(setting.etcd_pid, tasks).await
}

/// The bytes that the server stores for an object, as far as a client can know: its answer without resourceVersion.
async fn stored(setting: &Setting, kind: &Kind) -> Result<Bytes, Failure> {
    let mut client = setting.server.connect().await?;
    let body = Bytes::from((kind.object)("sample").to_string());
    let (_, answer) = match client.call(Method::POST, kind.path, JSON, body).await {
        Err(failure) if failure.to_string().contains("AlreadyExists") => {
            client.call(Method::GET, &format!("{}/sample", kind.path), &[], Bytes::new()).await?
        }
        other => other?,
    };
    let mut object: Value = serde_json::from_slice(&answer)?;
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    Ok(object.to_string().into())
}

fn row(what: &str, clients: usize, ours: Figures, theirs: Figures) {
    let ms = |d: Duration| format!("{:.2}", d.as_secs_f64() * 1000.0);
    println!(
        "| {what} | {clients} | {:.0} | {} | {} | {:.0} | {:.0} | {} | {} | {:.0} | {:.2} | {:.2} |",
        ours.per_second,
        ms(ours.median),
        ms(ours.p99),
        ours.cpu,
        theirs.per_second,
        ms(theirs.median),
        ms(theirs.p99),
        theirs.cpu,
        ours.per_second / theirs.per_second,
        ours.p99.as_secs_f64() / theirs.p99.as_secs_f64(),
    );
}

pub(crate) async fn writes(setting: &Setting) -> Result<(), Failure> {
    namespace(&setting.server).await?;
    for kind in KINDS.iter().filter(|kind| chosen("SHEAF_BENCH_KINDS", kind.word)) {
        let value = stored(setting, kind).await?;
        println!("{}: {} bytes as stored\n", kind.name, value.len());
        println!(
            "| | clients | Sheaf /s | median ms | p99 ms | CPU µs | etcd puts/s | median ms | p99 ms | CPU µs | ratio /s | ratio p99 |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
        );
        for clients in CLIENTS.into_iter().filter(|c| chosen("SHEAF_BENCH_CLIENTS", &c.to_string())) {
            let mut all: [Vec<Figures>; 4] = Default::default();
            for run in 0..ROUNDS {
                all[0].push(creates(setting, kind, clients, run).await?);
                all[1].push(puts(setting, &value, clients, &format!("c{clients}-{run}"), false).await?);
                all[2].push(updates(setting, kind, clients, run).await?);
                all[3].push(puts(setting, &value, clients, &format!("u{clients}-{run}"), true).await?);
            }
            let [creates, puts, updates, overwrites] = all.map(middle);
            row("creates", clients, creates, puts);
            row("updates", clients, updates, overwrites);
        }
        println!();
    }
    Ok(())
}

pub(crate) async fn reads(setting: &Setting) -> Result<(), Failure> {
    namespace(&setting.server).await?;
    stored(setting, &KINDS[1]).await?;
    let mut client = setting.server.connect().await?;
    let body = json!({"metadata": {"name": "bench-hundred"}}).to_string();
    // There from an earlier run, perhaps.
    let _ = client.call(Method::POST, "/api/v1/namespaces", JSON, body.into()).await;
    let path = "/apis/kubevirt.io/v1/namespaces/bench-hundred/virtualmachines";
    for number in 0..100 {
        let mut object = machine(&format!("m{number}"));
        object["metadata"]["namespace"] = json!("bench-hundred");
        let _ = client.call(Method::POST, path, JSON, object.to_string().into()).await;
    }
    println!("| reads | clients | /s | median ms | p99 ms | CPU µs |\n|---|---|---|---|---|---|");
    let one = "/apis/kubevirt.io/v1/namespaces/bench/virtualmachines/sample";
    for (what, path) in [("get of a machine", one), ("list of 100 machines", path)] {
        for clients in CLIENTS {
            let mut runs = Vec::new();
            for _ in 0..ROUNDS {
                let mut tasks = Vec::new();
                for _ in 0..clients {
                    let (mut client, time) = (setting.server.connect().await?, setting.time);
                    tasks.push(async move {
                        let (start, mut latencies) = (Instant::now(), Vec::new());
                        while start.elapsed() < time {
                            let begin = Instant::now();
                            client.call(Method::GET, path, &[], Bytes::new()).await?;
                            latencies.push(begin.elapsed());
                        }
                        Ok(latencies)
                    });
                }
                runs.push(together(setting.pid, tasks).await?);
            }
            let Figures { per_second, median, p99, cpu } = middle(runs);
            let ms = |d: Duration| format!("{:.2}", d.as_secs_f64() * 1000.0);
            println!("| {what} | {clients} | {per_second:.0} | {} | {} | {cpu:.0} |", ms(median), ms(p99));
        }
    }
    println!();
    Ok(())
}
