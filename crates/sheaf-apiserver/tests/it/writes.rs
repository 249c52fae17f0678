//! Patches, server-side apply, field validation, status.

use serde_json::{Value, json};

use crate::harness::Server;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const KEYS: &str = "/apis/harvesterhci.io/v1beta1/namespaces/default/keypairs";
const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
const PUBLIC_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8Y9oyyIBTJkuvAMpV1bfwk4oJtdcFJBsdyRQ7W3ysk someone@example";

fn key_pair(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"publicKey": PUBLIC_KEY}})
}

pub(crate) fn vm(name: &str, strategy: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"runStrategy": strategy, "template": {"spec": {"domain": {
        "devices": {}, "resources": {"requests": {"memory": "64Mi"}},
    }}}}})
}

#[tokio::test]
async fn the_four_patches() {
    let server = Server::start().await;
    server.config_map("p", json!({"keep": "1"})).await;
    let path = format!("{MAPS}/p");
    let merged = server.patch(&path, "merge", json!({"data": {"a": null, "b": "2"}})).await;
    assert_eq!(merged.body["data"], json!({"b": "2"}));
    let json_patch = json!([{"op": "test", "path": "/data/b", "value": "2"}, {"op": "add", "path": "/data/c", "value": "3"}]);
    assert_eq!(server.patch(&path, "json", json_patch).await.text("/data/c"), "3");
    let failing = json!([{"op": "test", "path": "/data/b", "value": "9"}]);
    let failed = server.patch(&path, "json", failing).await;
    assert_eq!(failed.code, 422);
    assert_eq!(failed.text("/message"), "the server rejected our request due to an error in our request");
    let stale = json!([{"op": "replace", "path": "/metadata/resourceVersion", "value": "1"}]);
    assert_eq!(server.patch(&path, "json", stale).await.code, 409, "a precondition");
    let strategic = json!({"metadata": {"$patch": "merge", "labels": {"new": "1"}}});
    let answer = server.patch(&path, "strategic-merge", strategic).await;
    assert_eq!(answer.body["metadata"]["labels"], json!({"keep": "1", "new": "1"}), "{:?}", answer.body);

    assert_eq!(server.call("POST", KEYS, key_pair("k")).await.code, 201);
    let refused = server.patch(&format!("{KEYS}/k"), "strategic-merge", json!({})).await;
    assert_eq!(refused.code, 415, "never a silent merge for a custom resource");
}

#[tokio::test]
async fn a_patch_that_changes_nothing_writes_nothing() {
    let server = Server::start().await;
    let before = server.config_map("n", json!({})).await;
    let after = server.patch(&format!("{MAPS}/n"), "merge", json!({"data": {"a": "1"}})).await;
    assert_eq!(after.text("/metadata/resourceVersion"), before.text("/metadata/resourceVersion"));
}

#[tokio::test]
async fn several_hands_apply_one_object() {
    let server = Server::start().await;
    let path = |manager: &str, more: &str| format!("{MAPS}/s?fieldManager={manager}{more}");
    let config = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s"}, "data": data});
    let made = server.patch(&path("one", ""), "apply", config(json!({"a": "1", "b": "1"}))).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    assert_eq!(made.body["metadata"]["managedFields"][0]["manager"], json!("one"));
    assert_eq!(made.body["metadata"]["managedFields"][0]["operation"], json!("Apply"));
    let again = server.patch(&path("one", ""), "apply", config(json!({"a": "1", "b": "1"}))).await;
    assert_eq!(again.code, 200);
    assert_eq!(again.text("/metadata/resourceVersion"), made.text("/metadata/resourceVersion"));
    let conflict = server.patch(&path("two", ""), "apply", config(json!({"a": "2"}))).await;
    assert_eq!((conflict.code.as_u16(), conflict.text("/reason")), (409, "Conflict"));
    assert_eq!(conflict.text("/details/causes/0/reason"), "FieldManagerConflict");
    assert_eq!(conflict.text("/details/causes/0/field"), ".data.a");
    let forced = server.patch(&path("two", "&force=true"), "apply", config(json!({"a": "2"}))).await;
    assert_eq!(forced.body["data"], json!({"a": "2", "b": "1"}), "{:?}", forced.body);
    let dropped = server.patch(&path("one", ""), "apply", config(json!({}))).await;
    assert_eq!(dropped.body["data"], json!({"a": "2"}), "what its only owner leaves out goes");
    let nobody = server.patch(&format!("{MAPS}/s"), "apply", config(json!({}))).await;
    assert_eq!(nobody.code, 422);
    server.patch(&format!("{MAPS}/s?fieldManager=three"), "merge", json!({"data": {"z": "1"}})).await;
    let object = server.call("GET", &format!("{MAPS}/s"), None).await.body;
    let managers: Vec<&str> = object["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|m| m["manager"].as_str())
        .collect();
    assert!(managers.contains(&"three"), "{managers:?}");
}

#[tokio::test]
async fn unknown_and_duplicate_fields() {
    let server = Server::start().await;
    let mut object = key_pair("u");
    object["spec"]["colour"] = json!("red");
    let strict = server.call("POST", &format!("{KEYS}?fieldValidation=Strict"), object.clone()).await;
    assert_eq!((strict.code.as_u16(), strict.text("/reason")), (400, "BadRequest"));
    assert!(strict.text("/message").contains("unknown field \"spec.colour\""), "{}", strict.text("/message"));
    let warned = server.call("POST", KEYS, object).await;
    assert_eq!(warned.code, 201);
    assert!(warned.warnings()[0].contains("spec.colour"), "{:?}", warned.warnings());
    assert_eq!(warned.body["spec"].get("colour"), None, "pruned");
    let twice = r#"{"metadata": {"name": "t"}, "data": {"a": "1", "a": "2"}}"#;
    let user = || sheaf_apiserver::UserInfo::new("admin", ["system:masters"]);
    let path = format!("{MAPS}?fieldValidation=Strict");
    let refused = server.send_as(user(), "POST", &path, &[], twice.into()).await;
    assert!(refused.text("/message").contains("duplicate field \"data.a\""), "{:?}", refused.body);
    let wrong = json!({"metadata": {"name": "w"}, "data": {"a": 1}});
    let refused = server.call("POST", MAPS, wrong).await;
    assert!(refused.code == 422 || refused.code == 400, "{:?}", refused.body);
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let server = Server::start().await;
    let mut object = vm("a", "Halted");
    object["status"] = json!({"printableStatus": "Running"});
    let made = server.call("POST", VMS, object).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    assert_ne!(made.text("/status/printableStatus"), "Running", "status is not the creator's");
    assert_eq!(made.body["metadata"]["generation"], json!(1));
    let path = format!("{VMS}/a");
    let patch =
        json!({"status": {"printableStatus": "Running", "ready": true}, "spec": {"runStrategy": "Always"}});
    let status = server.patch(&format!("{path}/status"), "merge", patch).await;
    assert_eq!(status.text("/status/printableStatus"), "Running", "{:?}", status.body);
    assert_eq!(status.text("/spec/runStrategy"), "Halted");
    assert_eq!(status.body["metadata"]["generation"], json!(1));
    let patch = json!({"status": {"printableStatus": "Stopped"}, "metadata": {"labels": {"x": "y"}}});
    let main = server.patch(&path, "merge", patch).await;
    assert_eq!(main.text("/status/printableStatus"), "Running", "{:?}", main.body);
    assert_eq!(main.body["metadata"]["generation"], json!(1), "metadata is no desired state");
}
