//! The verbs, as any client sees them.

use serde_json::json;

use crate::harness::Server;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn create_get_update_delete() {
    let server = Server::start().await;
    let made = server.config_map("a", json!({"x": "y"})).await;
    assert!(!made.text("/metadata/uid").is_empty());
    assert!(!made.text("/metadata/creationTimestamp").is_empty());
    let version = made.text("/metadata/resourceVersion").to_string();
    assert!(version.parse::<u64>().unwrap() > 0);
    assert_eq!(made.text("/kind"), "ConfigMap");

    let again = server.call("POST", MAPS, json!({"metadata": {"name": "a"}})).await;
    assert_eq!((again.code.as_u16(), again.text("/reason")), (409, "AlreadyExists"));

    let mut object = server.call("GET", &format!("{MAPS}/a"), None).await.body;
    object["data"]["a"] = json!("2");
    let updated = server.call("PUT", &format!("{MAPS}/a"), object.clone()).await;
    assert_eq!(updated.code, 200, "{:?}", updated.body);
    assert_ne!(updated.text("/metadata/resourceVersion"), version);
    let stale = server.call("PUT", &format!("{MAPS}/a"), object.clone()).await;
    assert_eq!((stale.code.as_u16(), stale.text("/reason")), (409, "Conflict"));
    assert!(stale.text("/message").contains("please apply your changes to the latest version and try again"));

    object["metadata"]["resourceVersion"] = json!("");
    let unconditional = server.call("PUT", &format!("{MAPS}/a"), object).await;
    assert_eq!(unconditional.code, 200);
    assert_eq!(
        unconditional.text("/metadata/resourceVersion"),
        updated.text("/metadata/resourceVersion"),
        "a write that changes nothing is none"
    );

    let gone = server.call("DELETE", &format!("{MAPS}/a"), None).await;
    assert_eq!((gone.code.as_u16(), gone.text("/status")), (200, "Success"));
    assert_eq!(gone.text("/details/uid"), made.text("/metadata/uid"));
    let missing = server.call("GET", &format!("{MAPS}/a"), None).await;
    assert_eq!((missing.code.as_u16(), missing.text("/reason")), (404, "NotFound"));
    assert_eq!(missing.text("/message"), "configmaps \"a\" not found");
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let server = Server::start().await;
    let body = json!({"metadata": {"name": "f", "finalizers": ["example.com/hold"]}});
    assert_eq!(server.call("POST", MAPS, body).await.code, 201);
    let going = server.call("DELETE", &format!("{MAPS}/f"), None).await;
    assert_eq!((going.code.as_u16(), going.text("/kind")), (200, "ConfigMap"));
    assert!(!going.text("/metadata/deletionTimestamp").is_empty());
    let again = server.call("DELETE", &format!("{MAPS}/f"), None).await;
    assert_eq!(again.text("/metadata/resourceVersion"), going.text("/metadata/resourceVersion"));
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/new"]}});
    let refused = server.patch(&format!("{MAPS}/f"), "merge", more).await;
    assert_eq!(refused.code, 422, "no new finalizers while it is being deleted: {:?}", refused.body);
    let freed = server.patch(&format!("{MAPS}/f"), "merge", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(freed.code, 200, "{:?}", freed.body);
    assert_eq!(server.call("GET", &format!("{MAPS}/f"), None).await.code, 404);
}

#[tokio::test]
async fn propagation_policies_are_finalizers() {
    let server = Server::start().await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        server.config_map("p", json!({})).await;
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
        let going = server.call("DELETE", &format!("{MAPS}/p"), options).await;
        assert_eq!(going.text("/metadata/finalizers/0"), finalizer, "{:?}", going.body);
        let background = json!({"propagationPolicy": "Background"});
        assert_eq!(server.call("DELETE", &format!("{MAPS}/p"), background).await.text("/status"), "Success");
    }
    server.config_map("p", json!({})).await;
    let wrong = json!({"preconditions": {"uid": "other"}});
    assert_eq!(server.call("DELETE", &format!("{MAPS}/p"), wrong).await.code, 409);
}

#[tokio::test]
async fn lists_select_and_page() {
    let server = Server::start().await;
    for i in 0..7 {
        server.config_map(&format!("m{i}"), json!({"parity": if i % 2 == 0 { "even" } else { "odd" }})).await;
    }
    let even = server.call("GET", &format!("{MAPS}?labelSelector=parity%3Deven"), None).await;
    assert_eq!(even.body["items"].as_array().unwrap().len(), 4);
    assert_eq!(even.text("/kind"), "ConfigMapList");
    let named = server.call("GET", &format!("{MAPS}?fieldSelector=metadata.name%3Dm3"), None).await;
    assert_eq!(named.body["items"].as_array().unwrap().len(), 1);
    let unknown = server.call("GET", &format!("{MAPS}?fieldSelector=spec.x%3D1"), None).await;
    assert_eq!(unknown.code, 400);

    let first = server.call("GET", &format!("{MAPS}?limit=3"), None).await;
    assert_eq!(first.body["metadata"]["remainingItemCount"], json!(4));
    let token = first.text("/metadata/continue").to_string();
    assert_eq!(server.call("DELETE", &format!("{MAPS}/m4"), None).await.code, 200);
    let second = server.call("GET", &format!("{MAPS}?limit=3&continue={token}"), None).await;
    let names: Vec<&str> = second.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|o| o["metadata"]["name"].as_str())
        .collect();
    assert_eq!(names, ["m3", "m4", "m5"], "pages show the first page's revision");
    assert_eq!(second.text("/metadata/resourceVersion"), first.text("/metadata/resourceVersion"));

    let all = server.call("GET", "/api/v1/configmaps?limit=2&labelSelector=parity%3Dodd", None).await;
    assert_eq!(all.body["items"].as_array().unwrap().len(), 2);
    assert!(!all.text("/metadata/continue").is_empty());
    assert_eq!(all.body["metadata"].get("remainingItemCount"), None);
    let empty = server.call("GET", "/api/v1/namespaces/kube-public/configmaps", None).await;
    assert_eq!(empty.body["items"], json!([]));
    assert!(!empty.text("/metadata/resourceVersion").is_empty());
}

#[tokio::test]
async fn revisions_of_lists() {
    let server = Server::start().await;
    let made = server.config_map("a", json!({})).await;
    let version: u64 = made.text("/metadata/resourceVersion").parse().unwrap();
    let future = server.call("GET", &format!("{MAPS}?resourceVersion={}", version + 1_000_000), None).await;
    assert_eq!((future.code.as_u16(), future.text("/reason")), (504, "Timeout"));
    assert_eq!(future.text("/details/causes/0/reason"), "ResourceVersionTooLarge");
    server.config_map("b", json!({})).await;
    let exact = format!("{MAPS}?resourceVersion={version}&resourceVersionMatch=Exact");
    assert_eq!(server.call("GET", &exact, None).await.body["items"].as_array().unwrap().len(), 1);
    for bad in [
        "resourceVersionMatch=Exact",
        "sendInitialEvents=true",
        "resourceVersion=0&resourceVersionMatch=Exact",
    ] {
        assert_eq!(server.call("GET", &format!("{MAPS}?{bad}"), None).await.code, 422, "{bad}");
    }
}

#[tokio::test]
async fn names_are_generated_and_checked() {
    let server = Server::start().await;
    let made = server.call("POST", MAPS, json!({"metadata": {"generateName": "gen-"}})).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    assert!(made.text("/metadata/name").starts_with("gen-") && made.text("/metadata/name").len() == 9);
    let bad = server.call("POST", MAPS, json!({"metadata": {"name": "No_Good"}})).await;
    assert_eq!((bad.code.as_u16(), bad.text("/reason")), (422, "Invalid"));
    assert_eq!(bad.text("/details/kind"), "ConfigMap");
    assert_eq!(bad.text("/details/causes/0/field"), "metadata.name");
    let none = server.call("POST", MAPS, json!({"metadata": {}})).await;
    assert_eq!(none.code, 422, "{:?}", none.body);
    let wrong = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "a"}});
    assert_eq!(server.call("POST", MAPS, wrong).await.code, 400);
}

#[tokio::test]
async fn namespaces_have_a_life() {
    let server = Server::start().await;
    let missing = server
        .call("POST", "/api/v1/namespaces/nowhere/configmaps", json!({"metadata": {"name": "a"}}))
        .await;
    assert_eq!((missing.code.as_u16(), missing.text("/details/kind")), (404, "namespaces"));
    let made = server.call("POST", "/api/v1/namespaces", json!({"metadata": {"name": "team"}})).await;
    assert_eq!(made.text("/status/phase"), "Active");
    assert_eq!(made.text("/spec/finalizers/0"), "kubernetes");
    let going = server.call("DELETE", "/api/v1/namespaces/team", None).await;
    assert_eq!(going.text("/status/phase"), "Terminating");
    let refused =
        server.call("POST", "/api/v1/namespaces/team/configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!(refused.code, 403);
    assert_eq!(refused.text("/details/causes/0/reason"), "NamespaceTerminating");
    let mut object = going.body;
    object["spec"]["finalizers"] = json!([]);
    let patch = json!({"spec": {"finalizers": null}});
    let kept = server.patch("/api/v1/namespaces/team", "merge", patch).await;
    assert_eq!(kept.text("/spec/finalizers/0"), "kubernetes", "only /finalize removes it");
    let done = server.call("PUT", "/api/v1/namespaces/team/finalize", object).await;
    assert_eq!(done.code, 200, "{:?}", done.body);
    assert_eq!(server.call("GET", "/api/v1/namespaces/team", None).await.code, 404);
    assert_eq!(server.call("DELETE", "/api/v1/namespaces/default", None).await.code, 403);
}

#[tokio::test]
async fn dry_runs_store_nothing() {
    let server = Server::start().await;
    let made = server.call("POST", &format!("{MAPS}?dryRun=All"), json!({"metadata": {"name": "d"}})).await;
    assert_eq!(made.code, 201);
    assert_eq!(made.text("/metadata/resourceVersion"), "");
    assert_eq!(server.call("GET", &format!("{MAPS}/d"), None).await.code, 404);
    server.config_map("d", json!({})).await;
    let patched = server.patch(&format!("{MAPS}/d?dryRun=All"), "merge", json!({"data": {"a": "9"}})).await;
    assert_eq!(patched.text("/data/a"), "9");
    assert_eq!(server.call("GET", &format!("{MAPS}/d"), None).await.text("/data/a"), "1");
    assert_eq!(server.call("DELETE", &format!("{MAPS}/d?dryRun=All"), None).await.code, 200);
    assert_eq!(server.call("GET", &format!("{MAPS}/d"), None).await.code, 200);
    let refused = server.call("POST", &format!("{MAPS}?dryRun=some&fieldValidation=no"), json!({})).await;
    assert_eq!((refused.code.as_u16(), refused.text("/details/kind")), (422, "CreateOptions"));
    assert_eq!(
        refused.text("/message"),
        "CreateOptions.meta.k8s.io \"\" is invalid: [fieldValidation: Unsupported value: \"no\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\", dryRun: Unsupported value: [\"some\"]: supported values: \"All\"]"
    );
}

#[tokio::test]
async fn bodies_and_accept_headers_that_cannot_be_served() {
    let server = Server::start().await;
    let cbor = server.send("POST", MAPS, &[("content-type", "application/cbor")], json!({})).await;
    assert_eq!((cbor.code.as_u16(), cbor.text("/reason")), (415, "UnsupportedMediaType"));
    let png = server.send("GET", MAPS, &[("accept", "image/png")], None).await;
    assert_eq!((png.code.as_u16(), png.text("/reason")), (406, "NotAcceptable"));
    let bare = server.send("POST", MAPS, &[], json!({"metadata": {"name": "bare"}})).await;
    assert_eq!(bare.code, 201, "no Content-Type is JSON");
    assert_eq!(bare.headers["content-type"], "application/json");
    let huge = json!({"metadata": {"name": "huge"}, "data": {"a": "x".repeat(4 << 20)}});
    assert_eq!(server.call("POST", MAPS, huge).await.code, 413);
    let unknown = server.call("GET", "/apis/example.com/v1/things", None).await;
    assert_eq!(unknown.text("/message"), "the server could not find the requested resource");
}

#[tokio::test]
async fn what_was_compacted_is_gone() {
    let server = Server::start().await;
    for i in 0..4 {
        server.config_map(&format!("c{i}"), json!({})).await;
    }
    let page = server.call("GET", &format!("{MAPS}?limit=2"), None).await;
    let token = page.text("/metadata/continue").to_string();
    // The window of the cache still answers; another server on the same data has none.
    let version: u64 = page.text("/metadata/resourceVersion").parse().unwrap();
    server.call("DELETE", &format!("{MAPS}/c0"), None).await;
    server.call("DELETE", &format!("{MAPS}/c1"), None).await;
    let Server { api, dir, store } = server;
    store.compact(sheaf_store::Revision(version + 1)).await.unwrap();
    drop(store);
    api.shutdown().await;
    let server = Server::start_again(dir).await;
    let expired = server.call("GET", &format!("{MAPS}?limit=2&continue={token}"), None).await;
    assert_eq!((expired.code.as_u16(), expired.text("/reason")), (410, "Expired"), "{:?}", expired.body);
    let fresh = expired.text("/metadata/continue").to_string();
    let rest = server.call("GET", &format!("{MAPS}?limit=2&continue={fresh}"), None).await;
    assert_eq!(rest.body["items"].as_array().unwrap().len(), 2, "{:?}", rest.body);
    let watch = server.call("GET", &format!("{MAPS}?watch=true&resourceVersion=1"), None).await;
    assert_eq!((watch.code.as_u16(), watch.text("/type")), (200, "ERROR"), "{:?}", watch.body);
    assert_eq!((watch.text("/object/reason"), &watch.body["object"]["code"]), ("Expired", &json!(410)));
}
