//! An update of what was looked at before is looked at as any other: only what is as it was is not looked at again.

use serde_json::{Value, json};

use crate::{
    harness::{Answer, Server},
    writes::vm,
};

const MAP: &str = "/api/v1/namespaces/default/configmaps/m";
const VM: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/v";

/// Code, warnings and body, without what differs from one moment to the next.
fn told(answer: Answer) -> (u16, Vec<String>, Value) {
    let (code, warnings) = (answer.code.as_u16(), answer.warnings());
    let mut body = answer.body;
    for entry in
        body.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut).into_iter().flatten()
    {
        entry.as_object_mut().unwrap().remove("time");
    }
    (code, warnings, body)
}

/// What clients may make of an object: merged into what they were given.
fn edits() -> Vec<Value> {
    let strings = |key: &str, value: Value| json!({"metadata": {key: value}});
    let mut all = vec![
        json!({}),
        json!({"unknown": {"a": 1}, "metadata": {"unknown": 1, "labels": {"b": "2"}}}),
        strings("annotations", json!({"note": "changed"})),
        strings("annotations", json!({"": "no key"})),
        strings("annotations", json!(null)),
        strings("annotations", json!({"number": 1})),
        strings("labels", json!({"a": "not a value!"})),
        strings("labels", json!([])),
        strings("labels", json!(null)),
        strings("finalizers", json!(["no finalizer!"])),
        strings("finalizers", json!(["x.io/a", "x.io/a"])),
        strings("ownerReferences", json!([{"kind": "A"}])),
        strings("creationTimestamp", json!("2001-01-01T00:00:00Z")),
        strings("creationTimestamp", json!(null)),
        strings("deletionTimestamp", json!("2001-01-01T00:00:00Z")),
        strings("generation", json!(7)),
        strings("uid", json!(null)),
        strings("selfLink", json!("/a")),
        strings("managedFields", json!(null)),
        strings("managedFields", json!([])),
        strings("managedFields", json!([{}])),
        strings("managedFields", json!([null])),
        strings(
            "managedFields",
            json!([{"manager": "m", "operation": "Update", "apiVersion": "v1", "extra": 1}]),
        ),
        strings("managedFields", json!("no list")),
        json!({"metadata": 1}),
        json!({"data": {"a": "2", "b": null}}),
        json!({"data": {"a": 1}}),
        json!({"data": {"not a key": "1"}}),
        json!({"data": null, "immutable": true}),
        json!({"spec": {"runStrategy": "Always"}, "status": {"ready": true}}),
        json!({"spec": {"runStrategy": "Sometimes"}}),
        json!({"spec": {"runStrategy": null}}),
    ];
    let inside = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
    all.extend([
        inside(json!({"hostname": "other", "unknown": 1})),
        inside(json!({"domain": {"cpu": {"cores": "two"}}})),
        inside(json!({"domain": {"cpu": {"cores": 2}, "devices": {"disks": [{"name": "d", "unknown": {}, "disk": {}}]}}})),
        inside(json!({"networks": [{"name": "n", "pod": null}], "volumes": [1]})),
        inside(json!(null)),
    ]);
    all
}

/// Tries all edits on the object at a path; nothing is stored.
async fn tried(server: &Server, path: &str, validation: &str) -> Vec<(u16, Vec<String>, Value)> {
    let object = server.call("GET", path, None).await.body;
    let mut out = Vec::new();
    for edit in edits() {
        let sent = sheaf_meta::patch::merge_patch(&object, &edit);
        // A merge takes nulls out; here they are sent.
        let sent = with_nulls(sent, &edit);
        let path = format!("{path}?dryRun=All&fieldValidation={validation}");
        out.push(told(server.call("PUT", &path, sent).await));
    }
    out
}

fn with_nulls(mut object: Value, edit: &Value) -> Value {
    if let (Value::Object(object), Value::Object(edit)) = (&mut object, edit) {
        for (key, value) in edit {
            let below = object.remove(key).unwrap_or_default();
            object.insert(key.clone(), if value.is_null() { Value::Null } else { with_nulls(below, value) });
        }
    }
    object
}

/// After a new start nothing counts as looked at: every update goes the long way.
#[tokio::test]
async fn what_was_looked_at_before_is_judged_alike() {
    let server = Server::start().await;
    server.config_map("m", json!({"a": "1"})).await;
    let machine = vm("v", "Halted");
    let made = server.call("POST", VM.strip_suffix("/v").unwrap(), machine).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    for path in [MAP, VM] {
        let annotated = json!({"metadata": {"annotations": {"note": "here"}}});
        assert_eq!(server.patch(path, "merge", annotated).await.code, 200);
    }
    let mut short = Vec::new();
    for path in [MAP, VM] {
        for validation in ["Warn", "Strict"] {
            short.push(tried(&server, path, validation).await);
        }
    }
    let Server { api, dir, store } = server;
    api.shutdown().await;
    drop(store);
    let server = Server::start_again(dir).await;
    let mut short = short.into_iter();
    for path in [MAP, VM] {
        for validation in ["Warn", "Strict"] {
            let (short, long) = (short.next().unwrap(), tried(&server, path, validation).await);
            for ((short, long), edit) in short.iter().zip(&long).zip(edits()) {
                assert_eq!(short, long, "{path} {validation} {edit}");
            }
            assert!(long.iter().any(|(code, ..)| *code == 200) && long.iter().any(|(code, ..)| *code >= 400));
        }
    }
}

/// What is not written again is copied from what was stored: it is what was sent all the same.
#[tokio::test]
async fn many_updates_leave_what_was_sent_last() {
    let server = Server::start().await;
    let machine = vm("v", "Halted");
    let mut object = server.call("POST", VM.strip_suffix("/v").unwrap(), machine).await.body;
    let parts: [fn(&mut Value, u32); 4] = [
        |o, n| o["metadata"]["annotations"]["n"] = json!(n.to_string()),
        |o, n| o["spec"]["template"]["spec"]["hostname"] = json!(format!("host{n}")),
        |o, n| o["metadata"]["labels"] = json!({"n": n.to_string()}),
        |o, n| o["spec"]["template"]["spec"]["domain"]["cpu"]["cores"] = json!(n + 1),
    ];
    for number in 0..16 {
        parts[number as usize % parts.len()](&mut object, number);
        let answer = server.call("PUT", VM, object.clone()).await;
        assert_eq!(answer.code, 200, "{:?}", answer.body);
        for part in ["spec", "status"] {
            assert_eq!(answer.body[part], object[part], "{number}");
        }
        for part in ["annotations", "labels"] {
            assert_eq!(answer.body["metadata"][part], object["metadata"][part], "{number}");
        }
        let status = json!({"status": {"printableStatus": format!("Step{number}")}});
        let written = server.patch(&format!("{VM}/status"), "merge", status).await.body;
        object = server.call("GET", VM, None).await.body;
        assert_eq!(object, written, "the answer to a write is what is stored");
        assert_eq!(object["status"]["printableStatus"], json!(format!("Step{number}")));
        assert_eq!(object["spec"], answer.body["spec"]);
    }
}
