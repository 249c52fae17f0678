//! Kinds that users define have the same life: owned, counted, and emptied out of namespaces.

use serde_json::{Value, json};

use crate::harness::{World, eventually, owner};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

async fn define(world: &World) {
    let definition = json!({"metadata": {"name": "widgets.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    world.call("POST", CRDS, definition).await;
    eventually("widgets are served", async || {
        let list = world.try_call("GET", "/apis/example.com/v1/widgets", None).await;
        list.map(drop).map_err(|status| status.to_string())
    })
    .await;
}

fn widgets(namespace: &str) -> String {
    format!("/apis/example.com/v1/namespaces/{namespace}/widgets")
}

fn widget(name: &str, metadata: Value) -> Value {
    let mut object = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}});
    for (key, value) in metadata.as_object().unwrap() {
        object["metadata"][key.as_str()] = value.clone();
    }
    object
}

#[tokio::test]
async fn they_own_and_are_owned() {
    let world = World::start().await;
    define(&world).await;
    let path = widgets("default");
    let made = world.call("POST", &path, widget("w", json!({}))).await;
    let reference = json!({"apiVersion": "example.com/v1", "kind": "Widget", "name": "w", "uid": made["metadata"]["uid"]});
    let map = world.map("of-widget", &[reference]).await;
    let owners = json!({"ownerReferences": [owner("of-widget", &map, true)]});
    world.call("POST", &path, widget("last", owners)).await;
    world.call("DELETE", &format!("{path}/w"), json!({"propagationPolicy": "Background"})).await;
    world.gone("/api/v1/namespaces/default/configmaps/of-widget").await;
    world.gone(&format!("{path}/last")).await;
}

#[tokio::test]
async fn they_are_counted_and_go_with_their_namespace() {
    let world = World::start().await;
    define(&world).await;
    world.call("POST", "/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let quotas = "/api/v1/namespaces/n/resourcequotas";
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/widgets.example.com": "1"}}});
    world.call("POST", quotas, quota).await;
    let path = widgets("n");
    world.call("POST", &path, widget("w", json!({"finalizers": ["example.com/wait"]}))).await;
    let refused = world.try_call("POST", &path, Some(widget("v", json!({})))).await.unwrap_err();
    assert_eq!(
        refused["message"],
        "widgets.example.com \"v\" is forbidden: exceeded quota: q, requested: count/widgets.example.com=1, used: \
         count/widgets.example.com=1, limited: count/widgets.example.com=1"
    );
    eventually("the quota says so", async || {
        let quota = world.get(&format!("{quotas}/q")).await.ok_or("it went")?;
        let used = &quota["status"]["used"];
        if *used == json!({"count/widgets.example.com": "1"}) { Ok(()) } else { Err(used.to_string()) }
    })
    .await;
    world.call("DELETE", "/api/v1/namespaces/n", None).await;
    eventually("the widget is named", async || {
        let namespace = world.get("/api/v1/namespaces/n").await.ok_or("it went")?;
        let text = namespace["status"].to_string();
        let said = text.contains("widgets.example.com has 1 resource instances")
            && text.contains("example.com/wait in 1");
        if said { Ok(()) } else { Err(text) }
    })
    .await;
    world.call("PATCH", &format!("{path}/w"), json!({"metadata": {"finalizers": null}})).await;
    world.gone("/api/v1/namespaces/n").await;
}
