//! The subresource `scale` of built-in kinds.

use serde_json::{Value, json};

use crate::harness::Server;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "a"}},
        "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[tokio::test]
async fn a_deployment_is_scaled() {
    let server = Server::start().await;
    assert_eq!(server.call("POST", DEPLOYMENTS, deployment("a")).await.code, 201);
    let path = format!("{DEPLOYMENTS}/a/scale");
    let got = server.call("GET", &path, None).await;
    assert_eq!(got.code, 200, "{}", got.body);
    assert_eq!(
        (&got.body["kind"], &got.body["spec"], &got.body["status"]),
        (&json!("Scale"), &json!({"replicas": 2}), &json!({"replicas": 0, "selector": "app=a"}))
    );
    assert_eq!(got.body["metadata"].get("managedFields"), None, "they are the object's");
    let mut wanted = got.body.clone();
    wanted["spec"]["replicas"] = json!(5);
    let put = server.call("PUT", &path, wanted.clone()).await;
    assert_eq!((put.code.as_u16(), &put.body["spec"]["replicas"]), (200, &json!(5)), "{}", put.body);
    let stale = server.call("PUT", &path, wanted).await;
    assert_eq!(stale.code, 409, "the resourceVersion of a Scale is a precondition: {}", stale.body);
    let whole = server.call("GET", &format!("{DEPLOYMENTS}/a"), None).await.body;
    assert_eq!((&whole["spec"]["replicas"], &whole["metadata"]["generation"]), (&json!(5), &json!(2)));
    let entries = whole["metadata"]["managedFields"].as_array().unwrap();
    assert!(entries.iter().any(|e| e["subresource"] == "scale"), "{entries:?}");

    for (kind, patch) in [
        ("merge", json!({"spec": {"replicas": 6}})),
        ("strategic-merge", json!({"spec": {"replicas": 7}})),
        ("json", json!([{"op": "replace", "path": "/spec/replicas", "value": 8}])),
    ] {
        let patched = server.patch(&path, kind, patch).await;
        assert_eq!(patched.code, 200, "{kind}: {}", patched.body);
        assert_eq!(patched.body["kind"], "Scale");
    }
    let apply = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "a"}, "spec": {"replicas": 9}});
    let applied = server.patch(&format!("{path}?fieldManager=hpa"), "apply", apply.clone()).await;
    assert_eq!(applied.code, 409, "others own the number: {}", applied.body);
    let applied = server.patch(&format!("{path}?fieldManager=hpa&force=true"), "apply", apply).await;
    assert_eq!(
        (applied.code.as_u16(), &applied.body["spec"]["replicas"]),
        (200, &json!(9)),
        "{}",
        applied.body
    );
    for (body, code) in [(json!({"spec": {"replicas": -1}}), 422), (json!({"spec": {"replicas": "x"}}), 422)]
    {
        assert_eq!(server.patch(&path, "merge", body).await.code, code);
    }
    assert_eq!(server.call("DELETE", &path, None).await.code, 405);
    assert_eq!(server.call("GET", &format!("{DEPLOYMENTS}/none/scale"), None).await.code, 404);
    let table = server
        .send(
            "GET",
            &path,
            &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")],
            None,
        )
        .await;
    assert_eq!(table.body["rows"][0]["cells"][1], 9, "{}", table.body);
}

#[tokio::test]
async fn kubectl_scales() {
    let server = Server::start().await;
    for (plural, api) in [("deployments", "apps/v1"), ("statefulsets", "apps/v1"), ("replicasets", "apps/v1")]
    {
        let mut body = deployment("a");
        body["spec"]["serviceName"] = json!("s");
        if plural != "statefulsets" {
            body["spec"].as_object_mut().unwrap().remove("serviceName");
        }
        let path = format!("/apis/{api}/namespaces/default/{plural}");
        assert_eq!(server.call("POST", &path, body).await.code, 201);
        let out = server.kubectl(&format!("scale {plural}/a --replicas=3 --current-replicas=2")).await;
        assert!(out.contains("scaled"), "{out}");
        assert_eq!(server.kubectl(&format!("get {plural} a -o jsonpath={{.spec.replicas}}")).await, "3");
    }
    let rc = json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "selector": {"b": "2", "a": "1"},
        "template": {"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/api/v1/namespaces/default/replicationcontrollers";
    assert_eq!(server.call("POST", path, rc).await.code, 201);
    assert!(server.kubectl("scale rc/a --replicas=0").await.contains("scaled"));
    let scale = server.call("GET", &format!("{path}/a/scale"), None).await.body;
    assert_eq!((&scale["spec"], &scale["status"]["selector"]), (&json!({}), &json!("a=1,b=2")));
    let out = server.kubectl("get deployment a --subresource=scale").await;
    assert!(out.contains("DESIRED"), "{out}");
}
