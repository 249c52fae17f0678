//! What a namespace allows: quotas, limits, priorities, evictions; and how things go.

use serde_json::{Value, json};

use crate::harness::{Answer, Server};

const PODS: &str = "/api/v1/namespaces/default/pods";
const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";

fn pod(name: &str, resources: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

async fn quota(server: &Server, name: &str, spec: Value) -> Answer {
    let made = server.call("POST", QUOTAS, json!({"metadata": {"name": name}, "spec": spec})).await;
    assert_eq!(made.code, 201, "{:#}", made.body);
    made
}

#[tokio::test]
async fn a_quota_refuses_before_anything_is_stored() {
    let server = Server::start().await;
    quota(&server, "q", json!({"hard": {"pods": "2", "requests.cpu": "1", "count/configmaps": "1"}})).await;
    let cpu = |n: &str| json!({"requests": {"cpu": n}});
    let silent = server.call("POST", PODS, pod("a", json!({}))).await;
    assert_eq!(silent.code, 403);
    assert_eq!(
        silent.text("/message"),
        "pods \"a\" is forbidden: failed quota: q: must specify requests.cpu for: c"
    );
    assert_eq!(server.call("POST", PODS, pod("a", cpu("600m"))).await.code, 201);
    let much = server.call("POST", PODS, pod("b", cpu("500m"))).await;
    assert_eq!(
        much.text("/message"),
        "pods \"b\" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"
    );
    assert_eq!((much.code.as_u16(), much.text("/reason")), (403, "Forbidden"));
    let dry = server.call("POST", &format!("{PODS}?dryRun=All"), pod("b", cpu("400m"))).await;
    assert_eq!(dry.code, 201, "{:#}", dry.body);
    assert_eq!(server.call("POST", PODS, pod("b", cpu("400m"))).await.code, 201, "a dry run uses nothing");
    let third = server.call("POST", PODS, pod("c", cpu("0"))).await;
    assert!(
        third.text("/message").contains("requested: pods=1, used: pods=2, limited: pods=2"),
        "{:#}",
        third.body
    );
    assert_eq!(server.call("DELETE", &format!("{PODS}/a"), None).await.code, 200);
    assert_eq!(server.call("POST", PODS, pod("c", cpu("100m"))).await.code, 201, "what is gone uses nothing");

    server.config_map("one", json!({})).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let second = server.call("POST", maps, json!({"metadata": {"name": "two"}})).await;
    assert!(
        second.text("/message").contains("exceeded quota: q, requested: count/configmaps=1"),
        "{:#}",
        second.body
    );
    let taken = server.call("POST", PODS, pod("c", cpu("0"))).await;
    assert_eq!(taken.code, 409, "what is there already is told as that");
    let elsewhere = server
        .call("POST", "/api/v1/namespaces/kube-system/configmaps", json!({"metadata": {"name": "two"}}))
        .await;
    assert_eq!(elsewhere.code, 201, "other namespaces have quotas of their own");
}

#[tokio::test]
async fn many_at_once_overrun_nothing() {
    let server = Server::start().await;
    quota(&server, "q", json!({"hard": {"pods": "5", "limits.memory": "10Gi"}})).await;
    let memory = || json!({"limits": {"memory": "1Gi"}});
    let bodies: Vec<Value> = (0..40).map(|i| pod(&format!("p{i}"), memory())).collect();
    let calls = bodies.into_iter().map(|body| server.call("POST", PODS, body));
    let answers = futures_util::future::join_all(calls).await;
    let made = answers.iter().filter(|a| a.code == 201).count();
    assert_eq!(made, 5, "{:?}", answers.iter().map(|a| a.text("/message")).collect::<Vec<_>>());
    assert!(answers.iter().all(|a| a.code == 201 || a.code == 403));
    // What failed for other reasons holds nothing.
    for _ in 0..3 {
        assert_eq!(server.call("DELETE", &format!("{PODS}?labelSelector=none%3Dnone"), None).await.code, 200);
    }
    assert_eq!(server.call("DELETE", PODS, None).await.code, 200);
    for i in 0..5 {
        let again = server.call("POST", PODS, pod(&format!("n{i}"), memory())).await;
        assert_eq!(again.code, 201, "{:#}", again.body);
    }
}

#[tokio::test]
async fn scopes_and_claims_and_services() {
    let server = Server::start().await;
    quota(&server, "best", json!({"hard": {"pods": "1"}, "scopes": ["BestEffort"]})).await;
    quota(
        &server,
        "sizes",
        json!({"hard": {"requests.storage": "3Gi", "services.nodeports": "1",
        "gold.storageclass.storage.k8s.io/requests.storage": "1Gi"}}),
    )
    .await;
    assert_eq!(server.call("POST", PODS, pod("a", json!({}))).await.code, 201);
    assert_eq!(server.call("POST", PODS, pod("b", json!({}))).await.code, 403);
    assert_eq!(server.call("POST", PODS, pod("b", json!({"requests": {"cpu": "1"}}))).await.code, 201);

    let class = json!({"metadata": {"name": "gold", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "x.io/y", "allowVolumeExpansion": true});
    assert_eq!(server.call("POST", "/apis/storage.k8s.io/v1/storageclasses", class).await.code, 201);
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str, size: &str| {
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}}}})
    };
    let made = server.call("POST", claims, claim("c", "1Gi")).await;
    assert_eq!(
        (made.code.as_u16(), made.text("/spec/storageClassName")),
        (201, "gold"),
        "the default class is given at once"
    );
    let refused = server.call("POST", claims, claim("d", "1Gi")).await;
    assert!(
        refused.text("/message").contains(
            "exceeded quota: sizes, requested: gold.storageclass.storage.k8s.io/requests.storage=1Gi"
        ),
        "{:#}",
        refused.body
    );
    let mut none = claim("e", "1Gi");
    none["spec"]["storageClassName"] = json!("");
    assert_eq!(server.call("POST", claims, none).await.code, 201, "no class is a choice");
    let bound = json!({"status": {"phase": "Bound"}});
    assert_eq!(server.patch(&format!("{claims}/e/status"), "merge", bound).await.code, 200);
    let grow = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
    let too_large = server.patch(&format!("{claims}/e"), "merge", grow("3Gi")).await;
    assert!(
        too_large.text("/message").contains("requested: requests.storage=2Gi, used: requests.storage=2Gi"),
        "{:#}",
        too_large.body
    );
    assert_eq!(server.patch(&format!("{claims}/e"), "merge", grow("2Gi")).await.code, 200);

    let service =
        |ports: Value| json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": ports}});
    let services = "/api/v1/namespaces/default/services";
    let two = json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}]);
    assert_eq!(server.call("POST", services, service(two)).await.code, 403);
    assert_eq!(server.call("POST", services, service(json!([{"port": 1}]))).await.code, 201);
}

#[tokio::test]
async fn limits_fill_in_and_refuse() {
    let server = Server::start().await;
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "2"}},
        {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}}]}});
    assert_eq!(server.call("POST", "/api/v1/namespaces/default/limitranges", range).await.code, 201);
    let made = server.call("POST", PODS, pod("a", json!({}))).await;
    let resources = &made.body["spec"]["containers"][0]["resources"];
    assert_eq!(
        resources,
        &json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}),
        "{:#}",
        made.body
    );
    assert_eq!(
        made.text("/metadata/annotations/kubernetes.io~1limit-ranger"),
        "LimitRanger plugin set: cpu limit for container c; cpu request for container c"
    );
    assert_eq!(made.text("/status/qosClass"), "Burstable");
    let much = server.call("POST", PODS, pod("b", json!({"limits": {"cpu": "3"}}))).await;
    assert_eq!(
        (much.code.as_u16(), much.text("/message")),
        (403, "pods \"b\" is forbidden: maximum cpu usage per Container is 2, but limit is 3")
    );
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    let small = server.call("POST", "/api/v1/namespaces/default/persistentvolumeclaims", claim).await;
    assert!(
        small
            .text("/message")
            .contains("minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"),
        "{:#}",
        small.body
    );
}

#[tokio::test]
async fn priorities_of_pods() {
    let server = Server::start().await;
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let class = |name: &str, value: i64, default: bool| json!({"metadata": {"name": name}, "value": value, "globalDefault": default});
    let plain = server.call("POST", PODS, pod("plain", json!({}))).await;
    assert_eq!(
        (&plain.body["spec"]["priority"], plain.text("/spec/preemptionPolicy")),
        (&json!(0), "PreemptLowerPriority")
    );
    assert_eq!(plain.body["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
    assert_eq!(server.call("POST", classes, class("usual", 7, true)).await.code, 201);
    let second = server.call("POST", classes, class("other", 8, true)).await;
    assert!(
        second
            .text("/message")
            .contains("PriorityClass usual is already marked as default. Only one default can exist"),
        "{:#}",
        second.body
    );
    let pod_of = |name: &str, class: &str| {
        let mut pod = pod(name, json!({}));
        pod["spec"]["priorityClassName"] = json!(class);
        pod
    };
    let usual = server.call("POST", PODS, pod("usual", json!({}))).await;
    assert_eq!(
        (&usual.body["spec"]["priority"], usual.text("/spec/priorityClassName")),
        (&json!(7), "usual")
    );
    let unknown = server.call("POST", PODS, pod_of("x", "nothing")).await;
    assert_eq!(
        unknown.text("/message"),
        "pods \"x\" is forbidden: no PriorityClass with name nothing was found"
    );
    let reserved = server.call("POST", classes, class("system-mine", 1, false)).await;
    assert_eq!(reserved.code, 422, "{:#}", reserved.body);
}

/// A pod that serves on a node.
async fn serving(server: &Server, name: &str) {
    let mut body = pod(name, json!({}));
    body["metadata"]["labels"] = json!({"app": "x"});
    assert_eq!(server.call("POST", PODS, body).await.code, 201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": "n"}});
    let bound = server.call("POST", &format!("{PODS}/{name}/binding"), binding.clone()).await;
    assert_eq!(bound.code, 201, "{:#}", bound.body);
    let again = server.call("POST", &format!("{PODS}/{name}/binding"), binding).await;
    assert!(again.text("/message").contains("is already assigned to node \"n\""), "{:#}", again.body);
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(server.patch(&format!("{PODS}/{name}/status"), "merge", status).await.code, 200);
}

#[tokio::test]
async fn evictions_honour_budgets() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        serving(&server, name).await;
    }
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "x"}}}});
    assert_eq!(server.call("POST", budgets, budget.clone()).await.code, 201);
    let evict = async |name: &str, options: Value| {
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}, "deleteOptions": options});
        server.call("POST", &format!("{PODS}/{name}/eviction"), body).await
    };
    let early = evict("a", json!({})).await;
    assert_eq!((early.code.as_u16(), early.text("/reason")), (429, "TooManyRequests"));
    assert_eq!(
        early.text("/details/causes/0/message"),
        "The disruption budget b is still being processed by the server."
    );
    assert_eq!(early.headers["retry-after"], "10");
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 3, "desiredHealthy": 2, "expectedPods": 3}});
    assert_eq!(server.patch(&format!("{budgets}/b/status"), "merge", status).await.code, 200);
    let dry = evict("a", json!({"dryRun": ["All"]})).await;
    assert_eq!(dry.code, 201, "{:#}", dry.body);
    let wrong = evict("a", json!({"preconditions": {"uid": "other"}})).await;
    assert_eq!(wrong.code, 409, "{:#}", wrong.body);
    let first = evict("a", json!({"gracePeriodSeconds": 0})).await;
    assert_eq!((first.code.as_u16(), first.text("/status")), (201, "Success"), "{:#}", first.body);
    assert_eq!(server.call("GET", &format!("{PODS}/a"), None).await.code, 404);
    let charged = server.call("GET", &format!("{budgets}/b"), None).await;
    assert_eq!(charged.body["status"]["disruptionsAllowed"], 0);
    assert!(charged.body["status"]["disruptedPods"]["a"].is_string(), "{:#}", charged.body);
    let second = evict("b", json!({})).await;
    assert_eq!(second.text("/message"), "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(second.text("/details/causes/0/reason"), "DisruptionBudget");
    assert_eq!(
        second.text("/details/causes/0/message"),
        "The disruption budget b needs 2 healthy pods and has 3 currently"
    );
    let mut other = budget;
    other["metadata"]["name"] = json!("other");
    assert_eq!(server.call("POST", budgets, other).await.code, 201);
    let two = evict("b", json!({})).await;
    assert_eq!(two.code, 500, "{:#}", two.body);
    let named = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "b"}});
    assert_eq!(server.call("POST", &format!("{PODS}/c/eviction"), named).await.code, 400);
}

#[tokio::test]
async fn pods_take_their_time_to_end() {
    let server = Server::start().await;
    serving(&server, "a").await;
    let path = format!("{PODS}/a");
    let going = server.call("DELETE", &path, None).await;
    assert_eq!(going.body["metadata"]["deletionGracePeriodSeconds"], 30, "{:#}", going.body);
    let end = |a: &Answer| a.text("/metadata/deletionTimestamp").parse::<jiff::Timestamp>().unwrap();
    let sooner = server.call("DELETE", &path, json!({"gracePeriodSeconds": 10})).await;
    assert_eq!(sooner.body["metadata"]["deletionGracePeriodSeconds"], 10);
    assert_eq!(end(&going).as_second() - end(&sooner).as_second(), 20, "the end comes sooner");
    let later = server.call("DELETE", &path, json!({"gracePeriodSeconds": 60})).await;
    assert_eq!(later.body["metadata"]["deletionGracePeriodSeconds"], 10, "and never later");
    let stopped = json!({"status": {"phase": "Succeeded"}});
    assert_eq!(
        server.patch(&format!("{path}/status"), "merge", stopped).await.code,
        200,
        "it is there to be written"
    );
    assert_eq!(server.call("DELETE", &path, json!({"gracePeriodSeconds": 0})).await.code, 200);
    assert_eq!(server.call("GET", &path, None).await.code, 404);
    assert_eq!(server.call("POST", PODS, pod("b", json!({}))).await.code, 201);
    assert_eq!(server.call("DELETE", &format!("{PODS}/b"), None).await.code, 200);
    assert_eq!(
        server.call("GET", &format!("{PODS}/b"), None).await.code,
        404,
        "what runs nowhere goes at once"
    );
}

#[tokio::test]
async fn options_of_deletions() {
    let server = Server::start().await;
    server.config_map("m", json!({})).await;
    let path = "/api/v1/namespaces/default/configmaps/m";
    let both =
        server.call("DELETE", path, json!({"propagationPolicy": "Orphan", "orphanDependents": true})).await;
    assert_eq!(both.code, 422, "{:#}", both.body);
    assert!(
        both.text("/message").contains("orphanDependents and deletionPropagation cannot be both set"),
        "{:#}",
        both.body
    );
    let unknown = server.call("DELETE", path, json!({"propagationPolicy": "Later"})).await;
    assert_eq!(
        unknown.text("/message"),
        "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Later\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
    );
    let kept = server.call("DELETE", path, json!({"propagationPolicy": "Foreground"})).await;
    assert_eq!(kept.body["metadata"]["finalizers"], json!(["foregroundDeletion"]), "{:#}", kept.body);
    assert_eq!(kept.body["metadata"]["deletionGracePeriodSeconds"], 0);
    let turned = server.call("DELETE", path, json!({"orphanDependents": true})).await;
    assert_eq!(
        turned.body["metadata"]["finalizers"],
        json!(["orphan"]),
        "a later deletion may say otherwise"
    );
    assert_eq!(server.call("DELETE", path, json!({"propagationPolicy": "Background"})).await.code, 200);
    assert_eq!(server.call("GET", path, None).await.code, 404);

    let job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    assert_eq!(server.call("POST", jobs, job).await.code, 201);
    let going = server.call("DELETE", &format!("{jobs}/j"), None).await;
    assert_eq!(
        going.body["metadata"]["finalizers"],
        json!(["orphan"]),
        "dependents of jobs stay unless somebody says otherwise"
    );
}
