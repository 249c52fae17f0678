//! Patches, server-side apply, field validation, status.

use serde_json::{Value, json};

use crate::harness::Server;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const KEYS: &str = "/apis/harvesterhci.io/v1beta1/namespaces/default/keypairs";
const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
pub(crate) const PUBLIC_KEY: &str =
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

/// An update that names the state it follows, which the server has at hand from the write before.
#[tokio::test]
async fn an_update_follows_the_state_that_it_names() {
    let server = Server::start().await;
    server.config_map("count", json!({})).await;
    let path = format!("{MAPS}/count");
    let mut object = server.call("GET", &path, None).await.body;
    for count in 0..5 {
        object["data"]["count"] = json!(count.to_string());
        object = server.call("PUT", &path, object).await.body;
        assert_eq!(object["data"]["count"], json!(count.to_string()));
    }
    let same = server.call("PUT", &path, object.clone()).await.body;
    assert_eq!(same, object, "it writes nothing");
    let mut old = object.clone();
    old["metadata"]["resourceVersion"] = json!("1");
    assert_eq!(server.call("PUT", &path, old).await.code, 409);
    let mut wrong = object.clone();
    wrong["data"]["not a key"] = json!("1");
    assert_eq!(server.call("PUT", &path, wrong).await.code, 422);
    assert_eq!(server.call("DELETE", &path, json!({})).await.code, 200);
    assert_eq!(server.call("PUT", &path, object.clone()).await.code, 404);
    server.config_map("count", json!({})).await;
    assert_eq!(server.call("PUT", &path, object).await.code, 409, "another object of that name");
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

/// What `fieldValidation` makes of fields that nobody knows and of keys that come twice, by the way they come.
#[tokio::test]
async fn strange_fields_in_every_kind_of_body() {
    let server = Server::start().await;
    let admin = || sheaf_apiserver::UserInfo::new("admin", ["system:masters"]);
    server.config_map("m", json!({})).await;
    let one = format!("{MAPS}/m");
    let json_body = r#"{"metadata": {"name": "NAME", "colour": "red", "labels": {"a": "1", "a": "2"}}, "data": {}, "size": 7}"#;
    let yaml_body =
        "metadata:\n  name: NAME\n  colour: red\n  labels:\n    a: '1'\n    a: '2'\ndata: {}\nsize: 7\n";
    let merge_body = r#"{"metadata": {"colour": "red", "labels": {"a": "1", "a": "2"}}, "size": 7}"#;
    let operations = r#"[{"op": "add", "path": "/size", "value": 7, "why": "x"}, {"op": "add", "path": "/metadata/labels", "value": {"a": "2"}, "value": {"a": "2"}}]"#;
    for (what, method, path, content_type, body, says) in [
        (
            "json",
            "POST",
            MAPS,
            "application/json",
            json_body,
            // In the order of the body.
            &[
                "unknown field \"metadata.colour\"",
                "duplicate field \"metadata.labels.a\"",
                "unknown field \"size\"",
            ][..],
        ),
        (
            "yaml",
            "POST",
            MAPS,
            "application/yaml",
            yaml_body,
            &[
                "line 6: key \"a\" already set in map",
                "unknown field \"metadata.colour\"",
                "unknown field \"size\"",
            ],
        ),
        (
            "merge",
            "PATCH",
            &one,
            "application/merge-patch+json",
            merge_body,
            &[
                "duplicate field \"metadata.labels.a\"",
                "unknown field \"metadata.colour\"",
                "unknown field \"size\"",
            ],
        ),
        (
            "strategic",
            "PATCH",
            &one,
            "application/strategic-merge-patch+json",
            merge_body,
            &[
                "duplicate field \"metadata.labels.a\"",
                "unknown field \"metadata.colour\"",
                "unknown field \"size\"",
            ],
        ),
        (
            "operations",
            "PATCH",
            &one,
            "application/json-patch+json",
            operations,
            &[
                "json patch duplicate field \"[1].value\"",
                "json patch unknown field \"[0].why\"",
                "unknown field \"size\"",
            ],
        ),
    ] {
        let headers = [("content-type", content_type)];
        let body = |name: &str| body.replace("NAME", name);
        let query = |mode: &str| format!("{path}?fieldValidation={mode}");
        let strict =
            server.send_as(admin(), method, &query("Strict"), &headers, body(&format!("{what}-s"))).await;
        assert_eq!(
            (strict.code.as_u16(), strict.text("/reason")),
            (400, "BadRequest"),
            "{what}: {:?}",
            strict.body
        );
        for sentence in says {
            assert!(
                strict.text("/message").contains(sentence),
                "{what}: {sentence} in {}",
                strict.text("/message")
            );
        }
        let begin = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: ";
        assert!(strict.text("/message").starts_with(begin), "{what}: {}", strict.text("/message"));
        for (mode, warned) in [("Warn", true), ("", true), ("Ignore", false)] {
            let name = format!("{what}-{}", mode.to_lowercase()).trim_end_matches('-').to_owned();
            let answer = server.send_as(admin(), method, &query(mode), &headers, body(&name)).await;
            assert!(answer.code.is_success(), "{what} {mode}: {:?}", answer.body);
            assert_eq!(answer.body.get("size"), None, "{what} {mode}: dropped");
            assert_eq!(answer.text("/metadata/labels/a"), "2", "{what} {mode}: the last one counts");
            let expected: Vec<&str> = if warned { says.to_vec() } else { Vec::new() };
            assert_eq!(answer.warnings(), expected, "{what} {mode}");
        }
    }
    let undeclared = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\nsize: 7\n";
    let headers = [("content-type", "application/apply-patch+yaml")];
    let path = format!("{one}?fieldManager=x");
    let refused = server.send_as(admin(), "PATCH", &path, &headers, undeclared.into()).await;
    assert_eq!(refused.code, 500, "{:?}", refused.body);
    assert_eq!(
        refused.text("/message"),
        "failed to create typed patch object (default/m; /v1, Kind=ConfigMap): .size: field not declared in schema"
    );
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\n  name: m\n";
    let refused = server
        .send_as(admin(), "PATCH", &format!("{path}&fieldValidation=Strict"), &headers, twice.into())
        .await;
    assert!(
        refused.text("/message").contains("line 5: key \"name\" already set in map"),
        "{:?}",
        refused.body
    );
}

/// Writers of one object do not lose each other's changes, and those who read first do not either.
#[tokio::test]
async fn many_hands_change_one_object() {
    let server = std::sync::Arc::new(Server::start().await);
    server.config_map("shared", json!({})).await;
    let path = format!("{MAPS}/shared");
    let mut hands = Vec::new();
    for hand in 0..6 {
        let (server, path) = (server.clone(), path.clone());
        hands.push(tokio::spawn(async move {
            for round in 0..5 {
                let key = format!("{hand}-{round}");
                if hand % 2 == 0 {
                    // Blindly: the server finds the present state itself.
                    loop {
                        let answer = server.patch(&path, "merge", json!({"data": {&key: "1"}})).await;
                        match answer.code.as_u16() {
                            200 => break,
                            code => assert_eq!(code, 409, "{:?}", answer.body),
                        }
                    }
                    continue;
                }
                loop {
                    let mut object = server.call("GET", &path, None).await.body;
                    object["data"][&key] = json!("1");
                    let answer = server.call("PUT", &path, object).await;
                    match answer.code.as_u16() {
                        200 => break,
                        code => assert_eq!(code, 409, "{:?}", answer.body),
                    }
                }
            }
        }));
    }
    for hand in hands {
        hand.await.unwrap();
    }
    let object = server.call("GET", &path, None).await;
    assert_eq!(object.body["data"].as_object().unwrap().len(), 31, "{:?}", object.body["data"]);
}

/// Custom objects that are applied as YAML with fields that nobody declared, or twice the same, in every mode that
/// clients know.
#[tokio::test]
async fn custom_objects_are_applied_strictly() {
    let server = Server::start().await;
    let admin = || sheaf_apiserver::UserInfo::new("admin", ["system:masters"]);
    let foo = json!({"type": "string"});
    let ports = json!({
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["containerPort", "protocol"],
        "items": {"type": "object", "required": ["containerPort", "protocol"], "properties": {
            "containerPort": {"type": "integer", "format": "int32"}, "name": foo, "protocol": foo}},
    });
    let closed = json!({"type": "object", "properties": {"foo": foo, "ports": ports}});
    let template = json!({
        "type": "object", "x-kubernetes-embedded-resource": true, "properties": {
            "metadata": {"type": "object", "properties": {"name": foo}}, "spec": {"type": "object"}},
    });
    let open = json!({
        "type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"foo": foo, "ports": ports, "template": template},
    });
    for (version, spec) in [("closed", closed), ("open", open)] {
        let mut crd = crate::crds::crontabs(json!({
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}));
        crd["metadata"]["name"] = json!(format!("{version}s.example.com"));
        crd["spec"]["names"] =
            json!({"plural": format!("{version}s"), "singular": version, "kind": version.to_uppercase()});
        server.define(crd).await;
    }
    let fine = "spec:\n  foo: foo1\n  ports:\n  - name: x\n    containerPort: 80\n    protocol: TCP\n";
    let embedded = "spec:\n  template:\n    apiVersion: foo/v1\n    kind: Sub\n    metadata:\n      unknownSubMeta: x\n      name: y\n";
    for (version, name, meta, rest, code, says) in [
        ("closed", "fine", "", fine.to_owned(), 201, ""),
        ("open", "fine", "", fine.replace("spec:\n", "spec:\n  unknown: x\n"), 201, ""),
        (
            "closed",
            "root",
            "",
            format!("unknownField: x\n{fine}"),
            500,
            ".unknownField: field not declared in schema",
        ),
        (
            "closed",
            "spec",
            "",
            fine.replace("spec:\n", "spec:\n  unknown: x\n"),
            500,
            ".spec.unknown: field not declared in schema",
        ),
        (
            "open",
            "meta",
            "  unknownMeta: x\n",
            fine.to_owned(),
            500,
            ".metadata.unknownMeta: field not declared in schema",
        ),
        (
            "open",
            "sub",
            "",
            embedded.to_owned(),
            500,
            ".spec.template.metadata.unknownSubMeta: field not declared in schema",
        ),
        (
            "open",
            "twice",
            "",
            fine.replace("  foo: foo1\n", "  foo: foo1\n  foo: foo2\n"),
            400,
            "line 8: key \"foo\" already set in map",
        ),
    ] {
        let kind = version.to_uppercase();
        let body =
            format!("\napiVersion: example.com/v1\nkind: {kind}\nmetadata:\n  name: {name}\n{meta}{rest}");
        let path = format!(
            "/apis/example.com/v1/namespaces/default/{version}s/{name}?fieldManager=m&fieldValidation=Strict"
        );
        let headers = [("content-type", "application/apply-patch+yaml")];
        let answer = server.send_as(admin(), "PATCH", &path, &headers, body).await;
        assert_eq!(answer.code, code, "{version} {name}: {:?}", answer.body);
        assert!(answer.text("/message").contains(says), "{version} {name}: {}", answer.text("/message"));
    }
}

/// Wrong types are no JSON of Kubernetes' own kinds (400), and break the schema of all others (422).
#[tokio::test]
async fn wrong_types() {
    let server = Server::start().await;
    let map = server.call("POST", MAPS, json!({"metadata": {"name": "w"}, "data": {"a": 1}})).await;
    assert_eq!((map.code.as_u16(), map.text("/reason")), (400, "BadRequest"), "{:?}", map.body);
    let begin = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: data.a: ";
    assert!(map.text("/message").starts_with(begin), "{}", map.text("/message"));
    let mut machine = vm("w", "Halted");
    machine["spec"]["template"]["spec"]["domain"]["cpu"] = json!({"cores": "two"});
    let machine = server.call("POST", VMS, machine).await;
    assert_eq!((machine.code.as_u16(), machine.text("/reason")), (422, "Invalid"), "{:?}", machine.body);
    assert_eq!(machine.text("/details/causes/0/field"), "spec.template.spec.domain.cpu.cores");
}
