//! Quotas and budgets as their controllers keep them, and `kubectl drain`, which needs both sides of an eviction.

use serde_json::{Value, json};

use crate::harness::{World, eventually};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": name, "labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key.as_str()] = value.clone();
    }
    pod
}

async fn used(world: &World, quota: &str, want: Value) {
    let path = format!("/api/v1/namespaces/default/resourcequotas/{quota}");
    eventually(&format!("{quota} uses {want}"), async || {
        let quota = world.get(&path).await.ok_or("it went")?;
        if quota["status"]["used"] == want && quota["status"]["hard"] == quota["spec"]["hard"] {
            Ok(())
        } else {
            Err(quota["status"].to_string())
        }
    })
    .await;
}

#[tokio::test]
async fn the_status_of_a_quota_follows() {
    let world = World::start().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard =
        json!({"pods": "3", "requests.cpu": "2", "count/configmaps": "10", "count/deployments.apps": "5"});
    world.call("POST", quotas, json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
    let maps = world.call("GET", "/api/v1/namespaces/default/configmaps", None).await;
    let before = maps["items"].as_array().unwrap().len();
    let want = |pods: &str, cpu: &str, maps: usize| json!({"pods": pods, "requests.cpu": cpu, "count/configmaps": maps.to_string(), "count/deployments.apps": "0"});
    used(&world, "q", want("0", "0", before)).await;
    let cpu =
        |n: &str| json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": n}}}]});
    world.call("POST", PODS, pod("a", cpu("500m"))).await;
    world.call("POST", PODS, pod("b", cpu("250m"))).await;
    world.map("m", &[]).await;
    used(&world, "q", want("2", "750m", before + 1)).await;
    let ended = json!({"status": {"phase": "Succeeded"}});
    world.call("PATCH", &format!("{PODS}/a/status"), ended).await;
    used(&world, "q", want("1", "250m", before + 1)).await;
    world.call("DELETE", &format!("{PODS}/b"), None).await;
    world.call("DELETE", "/api/v1/namespaces/default/configmaps/m", None).await;
    used(&world, "q", want("0", "0", before)).await;
    // What somebody else writes there stays until something is counted.
    let lie = json!({"status": {"used": {"pods": "3"}, "hard": {"pods": "9"}}});
    world.call("PATCH", &format!("{quotas}/q/status"), lie).await;
    world.call("PATCH", &format!("{quotas}/q"), json!({"metadata": {"labels": {"a": "b"}}})).await;
    world.map("m", &[]).await;
    used(&world, "q", want("0", "0", before + 1)).await;
    world.call("DELETE", "/api/v1/namespaces/default/configmaps/m", None).await;
    used(&world, "q", want("0", "0", before)).await;
    let (ok, table) = world.kubectl("get quota q").await;
    assert!(ok && table.contains("pods: 0/3") && table.contains("REQUEST"), "{table}");
}

/// A pod that serves on the node `n`.
async fn serving(world: &World, name: &str, owner: &Value) {
    let mut body = pod(name, json!({"nodeName": "n", "terminationGracePeriodSeconds": 1}));
    body["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r",
        "uid": owner["metadata"]["uid"], "controller": true}]);
    world.call("POST", PODS, body).await;
    let status = json!({"status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "conditions": [{"type": "Ready", "status": "True"}]}});
    world.call("PATCH", &format!("{PODS}/{name}/status"), status).await;
}

#[tokio::test]
async fn budgets_follow_their_pods_and_drain_honours_them() {
    let world = World::start().await;
    world.call("POST", "/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let set = json!({"metadata": {"name": "r"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let set = world.call("POST", "/apis/apps/v1/namespaces/default/replicasets", set).await;
    for name in ["a", "b", "c"] {
        serving(&world, name, &set).await;
    }
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "x"}}}});
    world.call("POST", budgets, budget).await;
    let status = async |expected: [i64; 4]| {
        eventually(&format!("the budget says {expected:?}"), async || {
            let budget = world.get(&format!("{budgets}/b")).await.ok_or("it went")?;
            let got = ["expectedPods", "desiredHealthy", "currentHealthy", "disruptionsAllowed"]
                .map(|f| budget["status"][f].as_i64().unwrap_or(-1));
            let known = budget["status"]["observedGeneration"] == budget["metadata"]["generation"];
            if got == expected && known { Ok(budget) } else { Err(budget["status"].to_string()) }
        })
        .await
    };
    let said = status([3, 2, 3, 1]).await;
    assert_eq!(said["status"]["conditions"][0]["reason"], "SufficientPods");

    // One may go; the others wait until there is another, and nobody makes one.
    let (ok, out) = world.kubectl("drain n --ignore-daemonsets --timeout=4s").await;
    assert!(!ok && out.contains("Cannot evict pod as it would violate the pod's disruption budget"), "{out}");
    let left = world.call("GET", PODS, None).await;
    assert_eq!(left["items"].as_array().unwrap().len(), 2, "{out}");
    status([3, 2, 2, 0]).await;
    let node = world.get("/api/v1/nodes/n").await.unwrap();
    assert_eq!(node["spec"]["unschedulable"], true);

    let allow = json!({"spec": {"maxUnavailable": "100%"}});
    world.call("PATCH", &format!("{budgets}/b"), allow).await;
    status([3, 0, 2, 2]).await;
    let (ok, out) = world.kubectl("drain n --ignore-daemonsets --timeout=60s").await;
    assert!(ok && out.contains("node/n drained"), "{out}");
    let left = world.call("GET", PODS, None).await;
    assert_eq!(left["items"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn pods_that_nothing_runs_do_not_stay() {
    let world = World::start().await;
    world.call("POST", PODS, pod("a", json!({"nodeName": "n"}))).await;
    let going = world.call("DELETE", &format!("{PODS}/a"), None).await;
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30, "{going}");
    world.gone(&format!("{PODS}/a")).await;
}
