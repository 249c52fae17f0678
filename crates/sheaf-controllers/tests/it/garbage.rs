//! Garbage collection, over every way in which an owner goes.

use serde_json::{Value, json};

use crate::harness::{World, eventually, owner};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn at(name: &str) -> String {
    format!("{MAPS}/{name}")
}

fn policy(word: &str) -> Value {
    json!({"propagationPolicy": word})
}

#[tokio::test]
async fn background_foreground_and_orphan() {
    let world = World::start().await;
    // In the background: the owner at once, the others after it.
    let a = world.map("a", &[]).await;
    let b = world.map("b", &[owner("a", &a, false)]).await;
    world.map("c", &[owner("b", &b, false)]).await;
    world.call("DELETE", &at("a"), policy("Background")).await;
    assert!(world.get(&at("a")).await.is_none());
    world.gone(&at("b")).await;
    world.gone(&at("c")).await;

    // In the foreground: the owner last. A finalizer on what depends holds all.
    let a = world.map("a", &[]).await;
    world.map("b", &[owner("a", &a, true)]).await;
    world.call("PATCH", &at("b"), json!({"metadata": {"finalizers": ["x.io/wait"]}})).await;
    world.call("DELETE", &at("a"), policy("Foreground")).await;
    eventually("b is asked to go", async || {
        let b = world.get(&at("b")).await.ok_or("b went")?;
        b["metadata"]["deletionTimestamp"].as_str().map(drop).ok_or(b.to_string())
    })
    .await;
    let held = world.get(&at("a")).await.expect("the owner waits");
    assert_eq!(held["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    world.call("PATCH", &at("b"), json!({"metadata": {"finalizers": null}})).await;
    world.gone(&at("a")).await;
    world.gone(&at("b")).await;

    // Orphans stay, and forget whom they belonged to. They are many, and the last was made just now.
    let a = world.map("a", &[]).await;
    for i in 0..20 {
        world.map(&format!("o{i}"), &[owner("a", &a, true)]).await;
    }
    world.call("DELETE", &at("a"), policy("Orphan")).await;
    world.gone(&at("a")).await;
    for i in 0..20 {
        let orphan = world.get(&at(&format!("o{i}"))).await.expect("it stays");
        assert_eq!(orphan["metadata"].get("ownerReferences"), None, "{orphan}");
    }
}

#[tokio::test]
async fn one_owner_that_stays_is_enough() {
    let world = World::start().await;
    let stays = world.map("stays", &[]).await;
    let goes = world.map("goes", &[]).await;
    world.map("both", &[owner("stays", &stays, true), owner("goes", &goes, true)]).await;
    world.call("DELETE", &at("goes"), policy("Foreground")).await;
    world.gone(&at("goes")).await;
    let both = world.get(&at("both")).await.expect("it has another owner");
    let owners = both["metadata"]["ownerReferences"].as_array().unwrap();
    assert_eq!((owners.len(), &owners[0]["name"]), (1, &json!("stays")), "{both}");
}

#[tokio::test]
async fn circles_end() {
    let world = World::start().await;
    let names = ["r0", "r1", "r2"];
    let mut uids = Vec::new();
    for name in names {
        uids.push(world.map(name, &[]).await);
    }
    for i in 0..3 {
        let next = (i + 1) % 3;
        let owners = json!({"metadata": {"ownerReferences": [owner(names[next], &uids[next], true)]}});
        world.call("PATCH", &at(names[i]), owners).await;
    }
    world.call("DELETE", &at("r0"), policy("Foreground")).await;
    for name in names {
        world.gone(&at(name)).await;
    }
}

#[tokio::test]
async fn owners_that_are_not_there() {
    let world = World::start().await;
    // Never there, under that name or that uid.
    world.map("stray", &[owner("nobody", "11111111-1111-1111-1111-111111111111", false)]).await;
    world.gone(&at("stray")).await;
    let a = world.map("a", &[]).await;
    world.map("older", &[owner("a", "11111111-1111-1111-1111-111111111111", false)]).await;
    world.gone(&at("older")).await;
    // In another namespace.
    let body = json!({"metadata": {"name": "far", "ownerReferences": [owner("a", &a, false)]}});
    world.call("POST", "/api/v1/namespaces/kube-system/configmaps", body).await;
    world.gone("/api/v1/namespaces/kube-system/configmaps/far").await;
    eventually("it is said", async || {
        let events = world.call("GET", "/api/v1/namespaces/kube-system/events", None).await;
        let said = events["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["reason"] == "OwnerRefInvalidNamespace" && e["involvedObject"]["name"] == "far");
        if said { Ok(()) } else { Err(events.to_string()) }
    })
    .await;
    // Of a kind that nobody serves: it cannot be judged, and stays.
    let mut strange = owner("a", &a, false);
    strange["apiVersion"] = json!("none.example.com/v1");
    world.map("kept", &[strange]).await;
    // Of the whole cluster.
    let class = json!({"metadata": {"name": "h"}, "handler": "h"});
    let class = world.call("POST", "/apis/node.k8s.io/v1/runtimeclasses", class).await;
    let reference = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "name": "h", "uid": class["metadata"]["uid"]});
    world.map("of-class", &[reference]).await;
    world.call("DELETE", "/apis/node.k8s.io/v1/runtimeclasses/h", None).await;
    world.gone(&at("of-class")).await;
    assert!(world.get(&at("kept")).await.is_some());
    assert!(world.get(&at("a")).await.is_some());
}

#[tokio::test]
async fn jobs_leave_their_pods_unless_told_otherwise() {
    let world = World::start().await;
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let pods = "/api/v1/namespaces/default/pods";
    let spec = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}});
    for (name, options, stays) in [("usual", json!({}), true), ("all", policy("Background"), false)] {
        let job = world.call("POST", jobs, json!({"metadata": {"name": name}, "spec": spec})).await;
        let reference = json!({"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"], "controller": true});
        let pod = json!({"metadata": {"name": name, "ownerReferences": [reference]}, "spec": spec["template"]["spec"]});
        world.call("POST", pods, pod).await;
        world.call("DELETE", &format!("{jobs}/{name}"), options).await;
        world.gone(&format!("{jobs}/{name}")).await;
        if !stays {
            world.gone(&format!("{pods}/{name}")).await;
        }
    }
    assert!(world.get(&format!("{pods}/usual")).await.is_some());
}

#[tokio::test]
async fn kubectl_cascades() {
    let world = World::start().await;
    for word in ["background", "foreground", "orphan"] {
        let a = world.map("a", &[]).await;
        world.map("b", &[owner("a", &a, true)]).await;
        let (ok, said) = world.kubectl(&format!("delete cm a --cascade={word} --timeout=60s")).await;
        assert!(ok, "{word}: {said}");
        assert!(world.get(&at("a")).await.is_none(), "{word}");
        if word == "orphan" {
            assert!(world.get(&at("b")).await.is_some());
        } else {
            world.gone(&at("b")).await;
        }
    }
}
