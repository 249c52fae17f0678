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

/// Before a watch ends by its timeout, whoever wants bookmarks hears how far it got.
#[tokio::test]
async fn the_last_word_of_a_watch_is_a_bookmark() {
    let server = Server::start().await;
    server.config_map("a", json!({})).await;
    let other = server.call("POST", "/api/v1/namespaces", json!({"metadata": {"name": "far"}})).await;
    let newest: u64 = other.text("/metadata/resourceVersion").parse().unwrap();
    let path = format!("{MAPS}?watch=true&timeoutSeconds=4&allowWatchBookmarks=true");
    let mut watch = Lines::open(&server, &path, "*/*").await.unwrap();
    assert_eq!(watch.brief().await, "ADDED a");
    let last = watch.next().await.unwrap();
    assert_eq!(
        (last["type"].as_str(), last["object"]["kind"].as_str()),
        (Some("BOOKMARK"), Some("ConfigMap"))
    );
    let at: u64 = last["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(at >= newest, "it counts what happened elsewhere: {at} < {newest}");
    assert!(watch.next().await.is_none());
    let path = format!("{MAPS}?watch=true&timeoutSeconds=4&resourceVersion={at}");
    let mut quiet = Lines::open(&server, &path, "*/*").await.unwrap();
    assert!(quiet.next().await.is_none(), "nothing is told twice, and no bookmark to who wants none");
}

/// Many hands write; all who watch see the same story, wherever in it they begin.
#[tokio::test]
async fn all_watchers_see_one_order() {
    let server = std::sync::Arc::new(Server::start().await);
    let from = server.call("GET", MAPS, None).await.text("/metadata/resourceVersion").to_owned();
    let whole = format!("{MAPS}?watch=true&resourceVersion={from}");
    let mut first = Lines::open(&server, &whole, "*/*").await.unwrap();
    let mut hands = Vec::new();
    for hand in 0..6 {
        let server = server.clone();
        hands.push(tokio::spawn(async move {
            for round in 0..5 {
                let name = format!("h{hand}-{}", round % 2);
                let path = format!("{MAPS}/{name}");
                let body = json!({"metadata": {"name": name}, "data": {"round": round.to_string()}});
                if server.call("POST", MAPS, body.clone()).await.code == 409 {
                    server.patch(&path, "merge", json!({"data": {"round": round.to_string()}})).await;
                    server.call("DELETE", &path, None).await;
                }
            }
        }));
    }
    for hand in hands {
        hand.await.unwrap();
    }
    let mark = server.config_map("the-end", json!({})).await;
    let story = async |watch: &mut Lines| {
        let mut told = Vec::new();
        loop {
            let event = watch.next().await.unwrap();
            let metadata = &event["object"]["metadata"];
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            told.push((text(&event["type"]), text(&metadata["name"]), text(&metadata["resourceVersion"])));
            if metadata["name"] == "the-end" {
                return told;
            }
        }
    };
    let told = story(&mut first).await;
    let numbers: Vec<u64> = told.iter().map(|(_, _, version)| version.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{told:?}");
    assert_eq!(told.last().unwrap().2, mark.text("/metadata/resourceVersion"));
    for begin in [0, 1, told.len() / 2, told.len() - 2] {
        let path = format!("{MAPS}?watch=true&resourceVersion={}", told[begin].2);
        let mut later = Lines::open(&server, &path, "*/*").await.unwrap();
        assert_eq!(story(&mut later).await, told[begin + 1..], "from the event {begin} on");
    }
}

/// One object, named in the three ways there are.
#[tokio::test]
async fn watches_of_one_object() {
    let server = Server::start().await;
    server.config_map("a", json!({})).await;
    server.config_map("ab", json!({})).await;
    for path in [
        format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Da"),
        "/api/v1/watch/namespaces/default/configmaps/a".into(),
        "/api/v1/watch/namespaces/default/configmaps/a?fieldSelector=metadata.name%3Da".into(),
        "/api/v1/configmaps?watch=true&fieldSelector=metadata.name%3Da,metadata.namespace%3Ddefault".into(),
    ] {
        let mut watch = Lines::open(&server, &path, "*/*").await.unwrap();
        assert_eq!(watch.brief().await, "ADDED a", "{path}");
        for name in ["ab", "a"] {
            server.patch(&format!("{MAPS}/{name}"), "merge", json!({"data": {"path": path}})).await;
        }
        assert_eq!(watch.brief().await, "MODIFIED a", "{path}");
    }
    let other = "/api/v1/watch/namespaces/default/configmaps/a?fieldSelector=metadata.name%3Db";
    assert_eq!(Lines::open(&server, other, "*/*").await.err(), Some(400));
}

/// Metadata alone is what metadata informers need, in each event.
#[tokio::test]
async fn metadata_is_watched_alone() {
    let server = Server::start().await;
    let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let mut watch = Lines::open(&server, &format!("{MAPS}?watch=true"), accept).await.unwrap();
    let made = server.config_map("a", json!({"x": "y"})).await;
    server.call("DELETE", &format!("{MAPS}/a"), None).await;
    let added = watch.next().await.unwrap();
    assert_eq!(added["object"]["metadata"], made.body["metadata"]);
    let gone = watch.next().await.unwrap();
    assert_eq!(
        (gone["type"].as_str(), gone["object"]["kind"].as_str()),
        (Some("DELETED"), Some("PartialObjectMetadata"))
    );
    assert_ne!(gone["object"]["metadata"]["resourceVersion"], made.body["metadata"]["resourceVersion"]);
    assert_eq!(gone["object"].get("data"), None);
}

/// A watch that a client may not begin is refused with the words of upstream.
#[tokio::test]
async fn options_of_watches_that_contradict_each_other() {
    let server = Server::start().await;
    for (query, code, says) in [
        (
            "resourceVersion=1&resourceVersionMatch=NotOlderThan",
            422,
            "is forbidden for watch unless sendInitialEvents is provided",
        ),
        (
            "sendInitialEvents=true",
            422,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        ("sendInitialEvents=true&resourceVersionMatch=Exact", 422, "NotOlderThan"),
        ("timeoutSeconds=x", 400, "timeoutSeconds"),
        ("fieldSelector=spec.x%3D1", 400, "field label not supported"),
    ] {
        let answer = server.call("GET", &format!("{MAPS}?watch=true&{query}"), None).await;
        assert_eq!(answer.code, code, "{query}: {:?}", answer.body);
        assert!(answer.text("/message").contains(says), "{query}: {}", answer.text("/message"));
    }
    let path = "sendInitialEvents=false&resourceVersionMatch=NotOlderThan&timeoutSeconds=1";
    server.config_map("there", json!({})).await;
    let mut watch = Lines::open(&server, &format!("{MAPS}?watch=true&{path}"), "*/*").await.unwrap();
    assert!(watch.next().await.is_none(), "only what happens from now on");
}

/// Who follows every kind hears of what there is, and of nothing that leaves an object what it is.
#[tokio::test]
async fn identities_are_told_when_they_change() {
    let server = Server::start().await;
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.uri_mut() = format!("{MAPS}?watch=true").parse().unwrap();
    let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    request.headers_mut().insert("accept", accept.parse().unwrap());
    let client = server.api.in_process(UserInfo::new("admin", [MASTERS])).identities();
    let response = client.oneshot(request).await.unwrap();
    let mut watch = Lines { body: response.into_body(), buffer: Vec::new() };
    let made = server.config_map("a", json!({"x": "y"})).await;
    let event = watch.next().await.unwrap();
    let metadata = json!({"name": "a", "namespace": "default", "uid": made.text("/metadata/uid"),
        "resourceVersion": made.text("/metadata/resourceVersion")});
    let object =
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
    assert_eq!(event, json!({"type": "ADDED", "object": object}));
    // Neither of these is heard.
    let path = format!("{MAPS}/a");
    server.patch(&path, "merge", json!({"data": {"x": "z"}})).await;
    server.patch(&path, "merge", json!({"metadata": {"labels": {"l": "1"}}})).await;
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "b", "uid": "u"}]);
    server.patch(&path, "merge", json!({"metadata": {"ownerReferences": owner}})).await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["ownerReferences"]),
        (&json!("MODIFIED"), &owner)
    );
    server.patch(&path, "merge", json!({"metadata": {"finalizers": ["x/y"]}})).await;
    assert_eq!(watch.next().await.unwrap()["object"]["metadata"]["finalizers"], json!(["x/y"]));
    server.call("DELETE", &path, None).await;
    let event = watch.next().await.unwrap();
    assert!(event["object"]["metadata"]["deletionTimestamp"].is_string(), "{event}");
    server.patch(&path, "merge", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(watch.brief().await, "DELETED a");
}
