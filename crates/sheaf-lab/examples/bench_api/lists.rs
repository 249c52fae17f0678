//! Ten thousand machines, listed in all the ways clients list.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use crate::{Failure, Setting, api, load, objects};

const MACHINES: usize = 10_000;
const VMS: &str = "/apis/kubevirt.io/v1/virtualmachines";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// Creates so many objects by 64 hands.
pub(crate) async fn fill(
    server: &api::Server,
    path: &'static str,
    object: fn(&str) -> serde_json::Value,
    prefix: &str,
    count: usize,
) -> Result<Duration, Failure> {
    const HANDS: usize = 64;
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for hand in 0..HANDS {
        let (mut client, prefix) = (server.connect().await?, prefix.to_owned());
        let template = object(objects::NAME).to_string();
        tasks.push(tokio::spawn(async move {
            for number in (hand..count).step_by(HANDS) {
                let body = template.replace(objects::NAME, &format!("{prefix}-{number:06}"));
                client.call(Method::POST, path, &[("content-type", "application/json")], body.into()).await?;
            }
            Ok::<_, Failure>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(begin.elapsed())
}

pub(crate) async fn run(setting: &Setting) -> Result<(), Failure> {
    load::namespace(&setting.server).await?;
    let path = "/apis/kubevirt.io/v1/namespaces/bench/virtualmachines";
    let took = fill(&setting.server, path, objects::machine, "list", MACHINES).await?;
    println!("{MACHINES} machines created by 64 clients in {:.1} s\n", took.as_secs_f64());
    // Controllers note the state of each; what is measured is lists.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut client = setting.server.connect().await?;
    println!("| list of all machines | median ms | MB |\n|---|---|---|");
    for (what, query, headers) in [
        ("whole", "", &[][..]),
        ("whole, compressed", "", &[("accept-encoding", "gzip")]),
        ("whole, from the cache (resourceVersion=0)", "?resourceVersion=0", &[]),
        ("in chunks of 500", "?limit=500", &[]),
        ("as table", "", &[("accept", TABLE)]),
        ("as table in chunks of 500, as kubectl does", "?limit=500", &[("accept", TABLE)]),
        ("metadata only", "", &[("accept", METADATA)]),
        ("by a label that none has", "?labelSelector=none%3Dyes", &[]),
    ] {
        let (mut times, mut bytes) = (Vec::new(), 0);
        for _ in 0..5 {
            let begin = Instant::now();
            bytes = pages(&mut client, query, headers).await?;
            times.push(begin.elapsed());
        }
        times.sort_unstable();
        println!("| {what} | {:.0} | {:.1} |", times[2].as_secs_f64() * 1000.0, bytes as f64 / 1e6);
    }
    println!();
    Ok(())
}

async fn pages(
    client: &mut api::Client,
    query: &str,
    headers: &[(&'static str, &str)],
) -> Result<usize, Failure> {
    let (mut total, mut token) = (0, String::new());
    loop {
        let path = match token.as_str() {
            "" => format!("{VMS}{query}"),
            token => format!("{VMS}{query}&continue={token}"),
        };
        let (_, answer) = client.call(Method::GET, &path, headers, Bytes::new()).await?;
        total += answer.len();
        token = next(&answer).unwrap_or_default();
        if token.is_empty() {
            return Ok(total);
        }
    }
}

/// The continue token; it stands in the first kilobyte or in the last.
fn next(answer: &[u8]) -> Option<String> {
    let edge = answer.get(..1024).unwrap_or(answer);
    let text = String::from_utf8_lossy(edge);
    let (_, rest) = text.split_once("\"continue\":\"")?;
    rest.split_once('"').map(|(token, _)| token.to_owned())
}
