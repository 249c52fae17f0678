//! Watches, line by line.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use sheaf_apiserver::{UserInfo, authn::MASTERS, http::Body};
use tower::ServiceExt;

use crate::harness::Server;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// An open watch.
struct Lines {
    body: Body,
    buffer: Vec<u8>,
}

impl Lines {
    async fn open(server: &Server, path: &str, accept: &str) -> Result<Self, u16> {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = path.parse().unwrap();
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let client = server.api.in_process(UserInfo::new("admin", [MASTERS]));
        let response = client.oneshot(request).await.unwrap();
        if response.status() != 200 {
            return Err(response.status().as_u16());
        }
        assert_eq!(response.headers()["content-type"], "application/json");
        Ok(Self { body: response.into_body(), buffer: Vec::new() })
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame()).await;
            match frame.expect("an event within ten seconds") {
                Some(frame) => self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap()),
                None => return None,
            }
        }
    }

    /// The next event as `TYPE name`.
    async fn brief(&mut self) -> String {
        let event = self.next().await.expect("the watch goes on");
        format!(
            "{} {}",
            event["type"].as_str().unwrap(),
            event["object"]["metadata"]["name"].as_str().unwrap_or("-")
        )
    }
}

#[tokio::test]
async fn what_exists_comes_first_then_what_changes() {
    let server = Server::start().await;
    server.config_map("old", json!({})).await;
    let mut watch = Lines::open(&server, &format!("{MAPS}?watch=true"), "*/*").await.unwrap();
    assert_eq!(watch.brief().await, "ADDED old");
    server.config_map("new", json!({})).await;
    assert_eq!(watch.brief().await, "ADDED new");
    let changed = server.patch(&format!("{MAPS}/new"), "merge", json!({"data": {"x": "y"}})).await;
    assert_eq!(watch.brief().await, "MODIFIED new");
    server.call("DELETE", &format!("{MAPS}/old"), None).await;
    let gone = watch.next().await.unwrap();
    assert_eq!(gone["type"], "DELETED");
    let number = |text: &str| text.parse::<u64>().unwrap();
    let at = number(gone["object"]["metadata"]["resourceVersion"].as_str().unwrap());
    assert!(at > number(changed.text("/metadata/resourceVersion")), "the revision of the deletion");
}

#[tokio::test]
async fn selectors_turn_changes_into_comings_and_goings() {
    let server = Server::start().await;
    server.config_map("a", json!({"in": "no"})).await;
    let from = server.call("GET", MAPS, None).await.text("/metadata/resourceVersion").to_string();
    let path = format!("{MAPS}?watch=1&resourceVersion={from}&labelSelector=in%3Dyes");
    let mut watch = Lines::open(&server, &path, "*/*").await.unwrap();
    let label = async |value: &str| {
        let patch = json!({"metadata": {"labels": {"in": value}}});
        server.patch(&format!("{MAPS}/a"), "merge", patch).await
    };
    label("yes").await;
    assert_eq!(watch.brief().await, "ADDED a");
    let left = label("no").await;
    let event = watch.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["metadata"]["labels"]["in"], "yes", "the last state that was in view");
    assert_eq!(event["object"]["metadata"]["resourceVersion"], left.body["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn streaming_lists_end_with_a_bookmark_of_the_kind() {
    let server = Server::start().await;
    let path =
        "?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut empty = Lines::open(&server, &format!("{MAPS}{path}"), "*/*").await.unwrap();
    let end = empty.next().await.unwrap();
    assert_eq!((end["type"].as_str(), end["object"]["kind"].as_str()), (Some("BOOKMARK"), Some("ConfigMap")));
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    server.config_map("a", json!({})).await;
    assert_eq!(empty.brief().await, "ADDED a");

    let partial = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let mut watch = Lines::open(&server, &format!("{MAPS}{path}"), partial).await.unwrap();
    for expected in ["ADDED", "BOOKMARK"] {
        let event = watch.next().await.unwrap();
        assert_eq!(event["type"], expected);
        assert_eq!(event["object"]["kind"], "PartialObjectMetadata");
    }
    let without = format!("{MAPS}?watch=true&sendInitialEvents=true");
    assert_eq!(Lines::open(&server, &without, "*/*").await.err(), Some(422));
}

#[tokio::test]
async fn watches_end_and_refuse_as_clients_expect() {
    let server = Server::start().await;
    let mut short =
        Lines::open(&server, &format!("{MAPS}?watch=true&timeoutSeconds=1"), "*/*").await.unwrap();
    assert!(short.next().await.is_none(), "a clean end");
    let future = format!("{MAPS}?watch=true&resourceVersion=99999999");
    assert_eq!(Lines::open(&server, &future, "*/*").await.err(), Some(504));
    let bad = format!("{MAPS}?watch=true&resourceVersion=x");
    assert_eq!(Lines::open(&server, &bad, "*/*").await.err(), Some(422));
    let yaml = Lines::open(&server, &format!("{MAPS}?watch=true"), "application/yaml").await;
    assert_eq!(yaml.err(), Some(406));
}

#[tokio::test]
async fn tables_are_watched_row_by_row() {
    let server = Server::start().await;
    server.config_map("a", json!({})).await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let path = format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Da");
    let mut watch = Lines::open(&server, &path, accept).await.unwrap();
    let first = watch.next().await.unwrap();
    assert_eq!(first["object"]["kind"], "Table");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    assert!(!first["object"]["columnDefinitions"].as_array().unwrap().is_empty());
    server.config_map("b", json!({})).await;
    server.patch(&format!("{MAPS}/a"), "merge", json!({"data": {"x": "y"}})).await;
    let second = watch.next().await.unwrap();
    assert_eq!(
        (second["type"].as_str(), second["object"]["columnDefinitions"].clone()),
        (Some("MODIFIED"), json!([]))
    );
}
