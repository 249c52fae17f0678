//! Kinds that users define, from the first POST of a definition to the last object's end.

use serde_json::{Value, json};

use crate::harness::{Answer, Server, eventually};

pub(crate) const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TABS: &str = "/apis/example.com/v1/namespaces/default/crontabs";

/// A definition of `crontabs.example.com`; `version` is merged into its only version.
pub(crate) fn crontabs(version: Value) -> Value {
    let mut v1 = json!({
        "name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "cronSpec": {"type": "string", "default": "* * * * *"},
                "replicas": {"type": "integer", "minimum": 0},
                "color": {"type": "string", "enum": ["red", "green", "blue"]},
            }},
            "status": {"type": "object", "properties": {
                "replicas": {"type": "integer"}, "selector": {"type": "string"}}},
        }}},
    });
    for (key, value) in version.as_object().unwrap() {
        v1[key] = value.clone();
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "shortNames": ["ct"],
                "categories": ["all", "timers"]},
            "versions": [v1],
        },
    })
}

pub(crate) fn tab(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "CronTab", "metadata": {"name": name}, "spec": spec})
}

fn condition(crd: &Value, kind: &str) -> (String, String) {
    let all = crd.pointer("/status/conditions").and_then(Value::as_array);
    let found = all.into_iter().flatten().find(|c| c["type"] == kind);
    let text = |key: &str| found.and_then(|c| c[key].as_str()).unwrap_or_default().to_string();
    (text("status"), text("reason"))
}

impl Server {
    /// Creates a definition and waits until it is served.
    pub(crate) async fn define(&self, crd: Value) -> Answer {
        let answer = self.call("POST", CRDS, crd).await;
        assert_eq!(answer.code, 201, "{}", answer.body);
        self.established(answer.text("/metadata/name")).await;
        answer
    }

    pub(crate) async fn established(&self, name: &str) -> Value {
        self.crd_when(name, |crd| condition(crd, "Established").0 == "True").await
    }

    async fn crd_when(&self, name: &str, right: impl Fn(&Value) -> bool) -> Value {
        eventually("the definition is as wanted", async || {
            let crd = self.call("GET", &format!("{CRDS}/{name}"), None).await.body;
            if right(&crd) { Ok(crd) } else { Err(crd.to_string()) }
        })
        .await
    }

    async fn gone(&self, path: &str) {
        eventually("it is gone", async || {
            let answer = self.call("GET", path, None).await;
            if answer.code == 404 { Ok(()) } else { Err(answer.body.to_string()) }
        })
        .await;
    }
}

#[tokio::test]
async fn a_kind_comes_lives_and_goes() {
    let server = Server::start().await;
    assert_eq!(server.call("GET", TABS, None).await.code, 404);
    let created = server.call("POST", CRDS, crontabs(json!({"subresources": {"status": {}}}))).await;
    assert_eq!(created.code, 201, "{}", created.body);
    assert_eq!(created.body["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(created.body["spec"]["names"]["listKind"], "CronTabList");
    assert_eq!(created.body["spec"]["conversion"], json!({"strategy": "None"}));
    let crd = server.established("crontabs.example.com").await;
    assert_eq!(condition(&crd, "NamesAccepted"), ("True".into(), "NoConflicts".into()));
    assert_eq!(crd["status"]["acceptedNames"]["plural"], "crontabs");

    // Whoever sees it established is served, in discovery too.
    let list = server.call("GET", "/apis/example.com/v1", None).await.body;
    let names: Vec<&str> =
        list["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["crontabs", "crontabs/status"]);

    let body = tab("a", json!({"color": "red", "nonsense": 1}));
    let created = server.call("POST", TABS, body).await;
    assert_eq!(created.code, 201, "{}", created.body);
    assert_eq!(
        created.body["spec"],
        json!({"color": "red", "cronSpec": "* * * * *"}),
        "pruned and defaulted"
    );
    assert_eq!(created.warnings(), ["unknown field \"spec.nonsense\""]);
    assert_eq!(created.body["metadata"]["generation"], 1);
    let bad = server.call("POST", TABS, tab("b", json!({"color": "pink"}))).await;
    assert_eq!(bad.code, 422, "{}", bad.body);
    assert!(bad.text("/message").contains("spec.color"), "{}", bad.body);
    let strict =
        server.call("POST", &format!("{TABS}?fieldValidation=Strict"), tab("b", json!({"x": 1}))).await;
    assert_eq!(strict.code, 400, "{}", strict.body);
    assert!(strict.text("/message").contains("unknown field \"spec.x\""), "{}", strict.body);

    let status = server
        .patch(
            &format!("{TABS}/a/status"),
            "merge",
            json!({"spec": {"color": "blue"}, "status": {"replicas": 3}}),
        )
        .await;
    assert_eq!(status.code, 200, "{}", status.body);
    assert_eq!(
        (&status.body["spec"]["color"], &status.body["status"]["replicas"]),
        (&json!("red"), &json!(3))
    );
    assert_eq!(status.body["metadata"]["generation"], 1);
    let refused = server.patch(&format!("{TABS}/a"), "strategic-merge", json!({"spec": {}})).await;
    assert_eq!(refused.code, 415, "{}", refused.body);
    let list = server.call("GET", TABS, None).await.body;
    assert_eq!(
        (list["kind"].as_str(), list["items"].as_array().map(Vec::len)),
        (Some("CronTabList"), Some(1))
    );

    let deleted = server.call("DELETE", &format!("{CRDS}/crontabs.example.com"), None).await;
    assert_eq!(deleted.code, 200, "{}", deleted.body);
    assert_eq!(deleted.body["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    assert_eq!(condition(&deleted.body, "Terminating"), ("True".into(), "InstanceDeletionPending".into()));
    server.gone(&format!("{CRDS}/crontabs.example.com")).await;
    server.gone("/apis/example.com/v1").await;
    server.gone("/apis/example.com").await;
    assert_eq!(server.call("GET", TABS, None).await.code, 404);

    // And again, without what was there before.
    server.define(crontabs(json!({}))).await;
    let list = server.call("GET", TABS, None).await.body;
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn objects_that_are_held_hold_their_definition() {
    let server = Server::start().await;
    server.define(crontabs(json!({}))).await;
    let mut held = tab("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/wait"]);
    for body in [held, tab("free", json!({}))] {
        assert_eq!(server.call("POST", TABS, body).await.code, 201);
    }
    server.call("DELETE", &format!("{CRDS}/crontabs.example.com"), None).await;
    let crd = server
        .crd_when("crontabs.example.com", |crd| {
            condition(crd, "Terminating").1 == "InstanceDeletionInProgress"
                && crd.to_string().contains("example.com/wait")
        })
        .await;
    assert!(crd.to_string().contains("1 remaining, such as default/held"), "{crd}");
    let refused = server.call("POST", TABS, tab("late", json!({}))).await;
    assert_eq!(refused.code, 405, "{}", refused.body);
    assert!(
        refused
            .text("/message")
            .contains("create not allowed while custom resource definition is terminating")
    );
    let gone = server.call("GET", &format!("{TABS}/free"), None).await;
    assert_eq!(gone.code, 404);
    let patch = json!({"metadata": {"finalizers": []}});
    assert_eq!(server.patch(&format!("{TABS}/held"), "merge", patch).await.code, 200);
    server.gone(&format!("{CRDS}/crontabs.example.com")).await;
}

#[tokio::test]
async fn several_versions_and_one_storage() {
    let server = Server::start().await;
    let mut crd = crontabs(json!({}));
    let mut beta = crd["spec"]["versions"][0].clone();
    beta["name"] = json!("v1beta1");
    beta["storage"] = json!(false);
    beta["deprecated"] = json!(true);
    let schema = &mut beta["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    schema["old"] = json!({"type": "string", "default": "yes"});
    crd["spec"]["versions"].as_array_mut().unwrap().push(beta);
    server.define(crd.clone()).await;
    let old = TABS.replace("/v1/", "/v1beta1/");
    let mut body = tab("a", json!({}));
    body["apiVersion"] = json!("example.com/v1beta1");
    let created = server.call("POST", &old, body).await;
    assert_eq!(created.code, 201, "{}", created.body);
    assert_eq!(created.body["spec"], json!({"cronSpec": "* * * * *", "old": "yes"}));
    assert_eq!(created.warnings(), ["example.com/v1beta1 CronTab is deprecated; use example.com/v1 CronTab"]);
    let stored = server.store.get("/registry/example.com/crontabs/default/a", sheaf_store::Revision(0)).await;
    let stored: Value = serde_json::from_slice(&stored.unwrap().unwrap().value).unwrap();
    assert_eq!(stored["apiVersion"], "example.com/v1");
    let new = server.call("GET", &format!("{TABS}/a"), None).await;
    assert_eq!(new.body["apiVersion"], "example.com/v1");
    assert_eq!(
        new.body["spec"],
        json!({"cronSpec": "* * * * *"}),
        "what this version does not know is not shown"
    );
    let list = server.call("GET", &old, None).await.body;
    assert_eq!(list["items"][0]["spec"]["old"], "yes");
    assert_eq!(list["apiVersion"], "example.com/v1beta1");
    let group = server.call("GET", "/apis/example.com", None).await.body;
    assert_eq!(group["preferredVersion"]["version"], "v1");

    // The other becomes the one for storing; what is stored is still read.
    let current = server.call("GET", &format!("{CRDS}/crontabs.example.com"), None).await.body;
    let mut changed = current.clone();
    for version in changed["spec"]["versions"].as_array_mut().unwrap() {
        version["storage"] = json!(version["name"] == "v1beta1");
    }
    let put = server.call("PUT", &format!("{CRDS}/crontabs.example.com"), changed).await;
    assert_eq!(put.code, 200, "{}", put.body);
    assert_eq!(put.body["status"]["storedVersions"], json!(["v1", "v1beta1"]));
    eventually("the new version stores", async || {
        let patch = json!({"metadata": {"labels": {"at": current["metadata"]["resourceVersion"]}}});
        server.patch(&format!("{TABS}/a"), "merge", json!({"metadata": {"labels": null}})).await;
        server.patch(&format!("{TABS}/a"), "merge", patch).await;
        let entry =
            server.store.get("/registry/example.com/crontabs/default/a", sheaf_store::Revision(0)).await;
        let stored: Value = serde_json::from_slice(&entry.unwrap().unwrap().value).unwrap();
        if stored["apiVersion"] == "example.com/v1beta1" { Ok(()) } else { Err(stored.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_schema_that_changes_shows_in_what_is_stored() {
    let server = Server::start().await;
    server.define(crontabs(json!({}))).await;
    server.call("POST", TABS, tab("a", json!({"color": "red"}))).await;
    let change = json!([
        {"op": "add", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/zone",
            "value": {"type": "string", "default": "UTC"}},
        {"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/color"},
    ]);
    let patched = server
        .send(
            "PATCH",
            &format!("{CRDS}/crontabs.example.com"),
            &[("content-type", "application/json-patch+json")],
            change,
        )
        .await;
    assert_eq!(patched.code, 200, "{}", patched.body);
    let expected = json!({"cronSpec": "* * * * *", "zone": "UTC"});
    eventually("the new default shows", async || {
        let got = server.call("GET", &format!("{TABS}/a"), None).await.body;
        let listed = server.call("GET", TABS, None).await.body;
        if got["spec"] == expected && listed["items"][0]["spec"] == expected {
            Ok(())
        } else {
            Err(got.to_string())
        }
    })
    .await;
    // It is still there after a restart, and what is written then is read without a second look.
    let Server { api, dir, store } = server;
    drop(store);
    api.shutdown().await;
    let server = Server::start_again(dir).await;
    let got = server.call("GET", &format!("{TABS}/a"), None).await;
    assert_eq!(got.code, 200, "served from the first request on: {}", got.body);
    assert_eq!(got.body["spec"], expected);
}

#[tokio::test]
async fn names_belong_to_whoever_had_them_first() {
    let server = Server::start().await;
    server.define(crontabs(json!({}))).await;
    let mut second = crontabs(json!({}));
    second["metadata"]["name"] = json!("tables.example.com");
    second["spec"]["names"] = json!({"plural": "tables", "kind": "CronTab", "shortNames": ["tb"]});
    assert_eq!(server.call("POST", CRDS, second).await.code, 201);
    let crd = server.crd_when("tables.example.com", |crd| condition(crd, "NamesAccepted").0 == "False").await;
    assert_eq!(condition(&crd, "Established"), ("False".into(), "NotAccepted".into()));
    assert!(crd.to_string().contains("CronTabList\\\" is already in use"), "{crd}");
    assert_eq!(server.call("GET", "/apis/example.com/v1/tables", None).await.code, 404);
    // Once the first goes, the second has them.
    server.call("DELETE", &format!("{CRDS}/crontabs.example.com"), None).await;
    server.established("tables.example.com").await;
    assert_eq!(server.call("GET", "/apis/example.com/v1/tables", None).await.code, 200);
}

#[tokio::test]
async fn built_in_kinds_cannot_be_broken() {
    let server = Server::start().await;
    let vms = format!("{CRDS}/virtualmachines.kubevirt.io");
    server.established("virtualmachines.kubevirt.io").await;
    let refused = server.call("DELETE", &vms, None).await;
    assert_eq!(refused.code, 403, "{}", refused.body);
    let patch = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"names": {"kind": "Broken"}}});
    let patched = server.patch(&vms, "merge", patch).await;
    assert_eq!(patched.code, 200, "{}", patched.body);
    assert_eq!(patched.text("/spec/names/kind"), "VirtualMachine");
    assert_eq!(patched.text("/metadata/labels/a"), "b");
    assert!(patched.warnings()[0].contains("built-in kind"), "{:?}", patched.warnings());
    let all = server.call("DELETE", CRDS, None).await;
    assert_eq!(all.code, 200, "{}", all.body);
    assert_eq!(server.call("GET", &vms, None).await.code, 200);
    // A definition that wants a built-in resource is told so, and removing it removes nothing.
    let mut shadow = crontabs(json!({}));
    shadow["metadata"]["name"] = json!("ingresses.networking.k8s.io");
    shadow["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "https://example.com/1"});
    shadow["spec"]["group"] = json!("networking.k8s.io");
    shadow["spec"]["names"] = json!({"plural": "ingresses", "kind": "Ingress"});
    let ingress = json!({"metadata": {"name": "i"}, "spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}});
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    assert_eq!(server.call("POST", ingresses, ingress).await.code, 201);
    assert_eq!(server.call("POST", CRDS, shadow).await.code, 201);
    server.crd_when("ingresses.networking.k8s.io", |crd| condition(crd, "NamesAccepted").0 == "False").await;
    server.call("DELETE", &format!("{CRDS}/ingresses.networking.k8s.io"), None).await;
    server.gone(&format!("{CRDS}/ingresses.networking.k8s.io")).await;
    assert_eq!(server.call("GET", &format!("{ingresses}/i"), None).await.code, 200);
}

#[tokio::test]
async fn kubectl_knows_a_new_kind() {
    let server = Server::start().await;
    let columns = json!([
        {"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec"},
        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1},
    ]);
    let crd = crontabs(json!({
        "additionalPrinterColumns": columns, "selectableFields": [{"jsonPath": ".spec.color"}],
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
    }));
    let (ok, out, err) = server.try_kubectl("create -f -", &crd.to_string()).await;
    assert!(ok, "{out}{err}");
    server.kubectl("wait --for=condition=Established crd/crontabs.example.com --timeout=20s").await;
    let (ok, out, err) =
        server.try_kubectl("apply -f -", &tab("a", json!({"replicas": 1, "color": "red"})).to_string()).await;
    assert!(ok, "{out}{err}");
    let out = server.kubectl("get ct").await;
    assert!(out.starts_with("NAME   SPEC"), "{out}");
    assert!(!out.contains("REPLICAS"), "{out}");
    assert!(server.kubectl("get crontab -o wide").await.contains("REPLICAS"));
    assert_eq!(server.kubectl("get timers -o name").await.trim(), "crontab.example.com/a");
    assert_eq!(
        server.kubectl("get ct --field-selector spec.color=red -o name").await.trim(),
        "crontab.example.com/a"
    );
    assert_eq!(server.kubectl("get ct --field-selector spec.color=blue -o name").await.trim(), "");
    let out = server.kubectl("scale ct/a --replicas=4").await;
    assert_eq!(out.trim(), "crontab.example.com/a scaled");
    assert_eq!(server.kubectl("get ct a -o jsonpath={.spec.replicas}").await, "4");
    let out = server.kubectl("explain ct.spec --recursive").await;
    assert!(out.contains("cronSpec") && out.contains("enum: red, green, blue"), "{out}");
    let (ok, _, err) =
        server.try_kubectl("apply -f -", &tab("b", json!({"colour": "red"})).to_string()).await;
    assert!(!ok && err.contains("spec.colour"), "{err}");
    let out = server.kubectl("delete crd crontabs.example.com --timeout=20s").await;
    assert!(out.contains("deleted"), "{out}");
    let (ok, _, err) = server.try_kubectl("get ct", "").await;
    // Its discovery may be a cached one still.
    assert!(!ok && (err.contains("doesn't have a resource type") || err.contains("NotFound")), "{err}");
}

#[tokio::test]
async fn a_kind_is_served_quickly() {
    let server = Server::start().await;
    // The figure is for whoever reads the log; the test holds that it does not take a poll of seconds.
    let begun = std::time::Instant::now();
    server.define(crontabs(json!({}))).await;
    assert_eq!(server.call("GET", TABS, None).await.code, 200);
    let took = begun.elapsed();
    println!("served after {took:?}");
}

#[tokio::test]
async fn rules_hold_definitions_and_objects() {
    let server = Server::start().await;
    for (change, field, part) in [
        (json!({"schema": {"openAPIV3Schema": {"properties": {}}}}), "type", "Required"),
        (
            json!({"additionalPrinterColumns": [{"name": "x", "type": "text", "jsonPath": ".a"}]}),
            "type",
            "must be one of",
        ),
        (
            json!({"schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-validations": [{"rule": "self.nope == 1"}]}}}),
            "rule",
            "compilation failed",
        ),
    ] {
        let refused = server.call("POST", CRDS, crontabs(change.clone())).await;
        assert_eq!(refused.code, 422, "{change}: {}", refused.body);
        let causes = refused.body["details"]["causes"].as_array().unwrap();
        let found = causes.iter().any(|c| {
            c["field"].as_str().unwrap_or_default().ends_with(field)
                && c["message"].as_str().unwrap_or_default().contains(part)
        });
        assert!(found, "{change}: {}", refused.body);
    }
    let mut misnamed = crontabs(json!({}));
    misnamed["metadata"]["name"] = json!("tabs.example.com");
    assert_eq!(server.call("POST", CRDS, misnamed).await.code, 422);

    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "min": {"type": "integer"}, "max": {"type": "integer"}, "fixed": {"type": "string"}},
        "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "message": "min must not be above max"},
            {"rule": "self.fixed == oldSelf.fixed", "message": "fixed is fixed", "fieldPath": ".fixed"}]}}});
    server.define(crontabs(json!({"schema": {"openAPIV3Schema": schema}}))).await;
    let refused = server.call("POST", TABS, tab("a", json!({"min": 3, "max": 2, "fixed": "x"}))).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    assert!(refused.text("/message").contains("min must not be above max"), "{}", refused.body);
    let created = server.call("POST", TABS, tab("a", json!({"min": 1, "max": 2, "fixed": "x"}))).await;
    assert_eq!(created.code, 201, "{}", created.body);
    let refused = server.patch(&format!("{TABS}/a"), "merge", json!({"spec": {"fixed": "y"}})).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    assert_eq!(refused.text("/details/causes/0/field"), "spec.fixed", "{}", refused.body);
    assert_eq!(server.patch(&format!("{TABS}/a"), "merge", json!({"spec": {"max": 9}})).await.code, 200);
}

#[tokio::test]
async fn what_no_longer_fits_is_tolerated_while_it_is_not_touched() {
    let server = Server::start().await;
    server.define(crontabs(json!({}))).await;
    server.call("POST", TABS, tab("a", json!({"color": "red"}))).await;
    let narrower = json!([{"op": "replace",
        "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/color/enum", "value": ["blue"]}]);
    let headers = [("content-type", "application/json-patch+json")];
    let crd = format!("{CRDS}/crontabs.example.com");
    assert_eq!(server.send("PATCH", &crd, &headers, narrower).await.code, 200);
    eventually("the new schema holds", async || {
        let refused =
            server.call("POST", &format!("{TABS}?dryRun=All"), tab("b", json!({"color": "red"}))).await;
        if refused.code == 422 { Ok(()) } else { Err(refused.body.to_string()) }
    })
    .await;
    let patched = server.patch(&format!("{TABS}/a"), "merge", json!({"spec": {"replicas": 1}})).await;
    assert_eq!(patched.code, 200, "{}", patched.body);
    let refused = server.patch(&format!("{TABS}/a"), "merge", json!({"spec": {"color": "green"}})).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
}

#[tokio::test]
async fn applied_custom_objects_have_owners() {
    let server = Server::start().await;
    server.define(crontabs(json!({}))).await;
    let path = format!("{TABS}/a?fieldManager=one");
    let applied = server.patch(&path, "apply", tab("a", json!({"color": "red", "replicas": 1}))).await;
    assert_eq!(applied.code, 201, "{}", applied.body);
    let other = format!("{TABS}/a?fieldManager=two");
    let conflict = server.patch(&other, "apply", tab("a", json!({"color": "blue"}))).await;
    assert_eq!(conflict.code, 409, "{}", conflict.body);
    let applied = server.patch(&path, "apply", tab("a", json!({"color": "red"}))).await;
    assert_eq!(applied.body["spec"], json!({"color": "red", "cronSpec": "* * * * *"}), "{}", applied.body);
}
