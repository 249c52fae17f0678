//! Writes through the whole API server, in this process and without sockets: for counting instructions, which no noise
//! disturbs. `valgrind --tool=callgrind target/release/examples/drive_api machine update 200`.
//!
//! `drive_api config_map|machine create|update|get|table COUNT`. Prints what one request took. No controllers run.

#[path = "../../sheaf-lab/examples/bench_api/objects.rs"]
mod objects;

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use sheaf_apiserver::{ApiServer, Config, InProcess, UserInfo, authn::MASTERS};
use sheaf_store::sqlite::{Options, SqliteStore};
use tower::ServiceExt;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

async fn call(
    client: &InProcess,
    method: Method,
    path: &str,
    accept: &str,
    body: Bytes,
) -> Result<Bytes, Failure> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .header("accept", accept)
        .header("user-agent", "drive")
        .body(Full::new(body))?;
    let response = client.clone().oneshot(request).await?;
    let code = response.status();
    let answer = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
    if !code.is_success() {
        return Err(format!("{path}: {code}: {}", String::from_utf8_lossy(&answer)).into());
    }
    Ok(answer)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [kind, what, count] = words[..] else {
        return Err("usage: drive_api config_map|machine create|update|get|table COUNT".into());
    };
    let count: usize = count.parse()?;
    let (path, object): (_, fn(&str) -> Value) = match kind {
        "config_map" => ("/api/v1/namespaces/bench/configmaps", objects::config_map),
        "machine" => ("/apis/kubevirt.io/v1/namespaces/bench/virtualmachines", objects::machine),
        other => return Err(format!("{other}: config_map or machine").into()),
    };
    let dir = tempfile::tempdir()?;
    let store = Arc::new(SqliteStore::open(&dir.path().join("state.db"), &Options::default())?);
    let config = Config {
        data_dir: dir.path().into(),
        listen: "127.0.0.1:0".parse()?,
        extra_sans: Vec::new(),
        server_url: None,
    };
    let api = ApiServer::start(config, store, sheaf_api::kinds()).await?;
    let client = api.in_process(UserInfo::new("admin", [MASTERS]));
    let json = "application/json";
    let namespace = json!({"metadata": {"name": "bench"}}).to_string();
    call(&client, Method::POST, "/api/v1/namespaces", json, namespace.into()).await?;
    let template = object(objects::NAME).to_string();
    let mut next =
        call(&client, Method::POST, path, json, template.replace(objects::NAME, "one").into()).await?;
    let one = format!("{path}/one");
    let begin = Instant::now();
    for number in 0..count {
        match what {
            "create" => {
                let body = template.replace(objects::NAME, &format!("n{number}"));
                call(&client, Method::POST, path, json, body.into()).await?;
            }
            "update" => {
                let mut object: Value = serde_json::from_slice(&next)?;
                object["metadata"]["annotations"]["bench"] = json!(number.to_string());
                next = call(&client, Method::PUT, &one, json, object.to_string().into()).await?;
            }
            "get" => drop(call(&client, Method::GET, &one, json, Bytes::new()).await?),
            "table" => drop(call(&client, Method::GET, path, TABLE, Bytes::new()).await?),
            other => return Err(format!("{other}: create, update, get or table").into()),
        }
    }
    println!("{:.1} µs each", begin.elapsed().as_secs_f64() * 1e6 / count.max(1) as f64);
    api.shutdown().await;
    Ok(())
}
