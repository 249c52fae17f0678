//! Namespaces: made, emptied in order, gone; and what holds them is said.

use serde_json::{Value, json};

use crate::harness::{World, eventually};

async fn make(world: &World, name: &str) -> Value {
    world.call("POST", "/api/v1/namespaces", json!({"metadata": {"name": name}})).await
}

#[tokio::test]
async fn a_namespace_goes_with_its_content() {
    let world = World::start().await;
    let made = make(&world, "n").await;
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(made["status"]["phase"], "Active");
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
    for kind in ["configmaps", "secrets", "serviceaccounts"] {
        world.call("POST", &format!("/api/v1/namespaces/n/{kind}"), json!({"metadata": {"name": "x"}})).await;
    }
    world.call("DELETE", "/api/v1/namespaces/n", None).await;
    world.gone("/api/v1/namespaces/n").await;
    // The name is free again, and empty.
    make(&world, "n").await;
    let maps = world.call("GET", "/api/v1/namespaces/n/configmaps", None).await;
    let left = maps["items"].as_array().unwrap().iter().filter(|m| m["metadata"]["name"] == "x").count();
    assert_eq!(left, 0, "{maps}");
}

#[tokio::test]
async fn what_holds_a_namespace_is_said_and_waited_for() {
    let world = World::start().await;
    make(&world, "n").await;
    let maps = "/api/v1/namespaces/n/configmaps";
    let held = json!({"metadata": {"name": "held", "finalizers": ["x.io/wait"]}});
    world.call("POST", maps, held).await;
    let pod = json!({"metadata": {"name": "p", "finalizers": ["x.io/wait"]}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    world.call("POST", "/api/v1/namespaces/n/pods", pod).await;
    let going = world.call("DELETE", "/api/v1/namespaces/n", None).await;
    assert_eq!(going["status"]["phase"], "Terminating", "{going}");
    let refused =
        world.try_call("POST", maps, Some(json!({"metadata": {"name": "late"}}))).await.unwrap_err();
    assert_eq!(refused["code"], 403);
    assert_eq!(
        refused["message"],
        "configmaps \"late\" is forbidden: unable to create new content in namespace n because it is being terminated"
    );
    let says = async |what: &str| {
        eventually(what, async || {
            let namespace = world.get("/api/v1/namespaces/n").await.ok_or("it went")?;
            let all = namespace["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = all.iter().find(|c| c["message"].as_str().is_some_and(|m| m.contains(what)));
            found.cloned().ok_or(namespace["status"].to_string())
        })
        .await
    };
    let pods_first = says("Some resources are remaining: pods. has 1 resource instances").await;
    assert_eq!(
        (&pods_first["type"], &pods_first["status"]),
        (&json!("NamespaceContentRemaining"), &json!("True"))
    );
    assert_eq!(pods_first["reason"], "SomeResourcesRemain");
    let map = world.get(&format!("{maps}/held")).await.unwrap();
    assert_eq!(map["metadata"].get("deletionTimestamp"), None, "pods go first and alone");
    world.call("PATCH", "/api/v1/namespaces/n/pods/p", json!({"metadata": {"finalizers": null}})).await;
    says("Some resources are remaining: configmaps. has 1 resource instances").await;
    let finalizers =
        says("Some content in the namespace has finalizers remaining: x.io/wait in 1 resource instances")
            .await;
    assert_eq!(finalizers["reason"], "SomeFinalizersRemain");
    let namespace = world.get("/api/v1/namespaces/n").await.unwrap();
    let types: Vec<&str> = namespace["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|c| c["type"].as_str())
        .collect();
    assert_eq!(
        types,
        [
            "NamespaceDeletionDiscoveryFailure",
            "NamespaceDeletionGroupVersionParsingFailure",
            "NamespaceDeletionContentFailure",
            "NamespaceContentRemaining",
            "NamespaceFinalizersRemaining"
        ]
    );
    world.call("PATCH", &format!("{maps}/held"), json!({"metadata": {"finalizers": null}})).await;
    world.gone("/api/v1/namespaces/n").await;
}

#[tokio::test]
async fn users_finalizers_and_protected_names() {
    let world = World::start().await;
    for name in ["default", "kube-system", "kube-public"] {
        let refused =
            world.try_call("DELETE", &format!("/api/v1/namespaces/{name}"), None).await.unwrap_err();
        assert_eq!(refused["code"], 403);
        assert_eq!(
            refused["message"],
            format!("namespaces \"{name}\" is forbidden: this namespace may not be deleted")
        );
    }
    make(&world, "n").await;
    let mut finalize = world.get("/api/v1/namespaces/n").await.unwrap();
    finalize["spec"]["finalizers"] = json!(["kubernetes", "x.io/mine"]);
    world.call("PUT", "/api/v1/namespaces/n/finalize", finalize).await;
    world.call("DELETE", "/api/v1/namespaces/n", None).await;
    let waiting = eventually("ours is let go", async || {
        let namespace = world.get("/api/v1/namespaces/n").await.ok_or("it went too early")?;
        if namespace["spec"]["finalizers"] == json!(["x.io/mine"]) {
            Ok(namespace)
        } else {
            Err(namespace.to_string())
        }
    })
    .await;
    let mut last = waiting;
    last["spec"]["finalizers"] = json!([]);
    world.call("PUT", "/api/v1/namespaces/n/finalize", last).await;
    world.gone("/api/v1/namespaces/n").await;
}

#[tokio::test]
async fn what_each_namespace_has_comes_back() {
    let world = World::start().await;
    make(&world, "n").await;
    let root = "/api/v1/namespaces/n/configmaps/kube-root-ca.crt";
    let account = "/api/v1/namespaces/n/serviceaccounts/default";
    let there = async |path: &str, old: &str| {
        eventually(path, async || {
            let object = world.get(path).await.ok_or("it is not there")?;
            if object["metadata"]["uid"] == old { Err("it is still the old one".into()) } else { Ok(object) }
        })
        .await
    };
    for path in [root, account] {
        let first = there(path, "").await;
        world.call("DELETE", path, None).await;
        there(path, first["metadata"]["uid"].as_str().unwrap()).await;
    }
    let spoilt = json!({"data": {"ca.crt": "nonsense", "more": "x"}});
    world.call("PATCH", root, spoilt).await;
    eventually("the content is put right", async || {
        let map = world.get(root).await.ok_or("it is not there")?;
        let data = map["data"].as_object().unwrap();
        let right = data.len() == 1 && data["ca.crt"].as_str().unwrap().contains("BEGIN CERTIFICATE");
        if right { Ok(()) } else { Err(map.to_string()) }
    })
    .await;
}
