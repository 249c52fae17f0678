//! Roles and bindings: what they allow, who may give them, and what every cluster has of them.

use serde_json::{Value, json};
use sheaf_apiserver::UserInfo;

use crate::harness::{Answer, Server, eventually};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn user(name: &str, groups: &[&str]) -> UserInfo {
    UserInfo::new(name, groups.iter().copied())
}

/// A request as somebody, with a JSON body.
pub(super) async fn send(server: &Server, user: &UserInfo, method: &str, path: &str, body: Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let content_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    server.send_as(user.clone(), method, path, &[("content-type", content_type)], body).await
}

pub(super) fn rule(verbs: &[&str], group: &str, resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": [group], "resources": resources})
}

pub(super) async fn make(server: &Server, path: &str, body: Value) {
    let made = server.call("POST", path, body).await;
    assert_eq!(made.code, 201, "{path}: {:?}", made.body);
}

/// Makes a cluster role, and binds a user to it: for the cluster, or in a namespace.
pub(super) async fn grant(server: &Server, name: &str, user: &str, namespace: &str, rules: Value) {
    make(server, &format!("{RBAC}/clusterroles"), json!({"metadata": {"name": name}, "rules": rules})).await;
    let path = match namespace {
        "" => format!("{RBAC}/clusterrolebindings"),
        ns => format!("{RBAC}/namespaces/{ns}/rolebindings"),
    };
    make(
        server,
        &path,
        json!({
            "metadata": {"name": name}, "roleRef": {"kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "User", "name": user}],
        }),
    )
    .await;
}

#[tokio::test]
async fn what_is_granted_counts_at_once_and_what_is_taken_no_longer() {
    let server = Server::start().await;
    let joe = user("joe", &[]);
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(send(&server, &joe, "GET", maps, Value::Null).await.code, 403);
    grant(&server, "maps", "joe", "default", json!([rule(&["get", "list"], "", &["configmaps"])])).await;
    for (method, path, code) in [
        ("GET", maps, 200),
        ("GET", "/api/v1/namespaces/kube-system/configmaps", 403),
        ("GET", "/api/v1/configmaps", 403),
        ("POST", maps, 403),
        ("GET", "/api/v1/namespaces/default/secrets", 403),
    ] {
        assert_eq!(send(&server, &joe, method, path, Value::Null).await.code, code, "{method} {path}");
    }
    let binding = format!("{RBAC}/namespaces/default/rolebindings/maps");
    let answer = send(&server, &user("admin", &["system:masters"]), "DELETE", &binding, Value::Null).await;
    assert_eq!(answer.code, 200);
    eventually("the binding no longer counts", async || {
        let code = send(&server, &joe, "GET", maps, Value::Null).await.code;
        if code == 403 { Ok(()) } else { Err(code.to_string()) }
    })
    .await;
    make(
        &server,
        &format!("{RBAC}/namespaces/default/rolebindings"),
        json!({
            "metadata": {"name": "dangling"}, "roleRef": {"kind": "Role", "name": "gone"},
            "subjects": [{"kind": "User", "name": "joe"}],
        }),
    )
    .await;
    let answer = send(&server, &joe, "GET", maps, Value::Null).await;
    assert!(
        answer.text("/message").ends_with(": RBAC: role.rbac.authorization.k8s.io \"gone\" not found"),
        "{:?}",
        answer.body
    );
}

#[tokio::test]
async fn an_apply_that_creates_needs_both_rights() {
    let server = Server::start().await;
    grant(&server, "patches", "joe", "default", json!([rule(&["patch", "get"], "", &["configmaps"])])).await;
    let path = "/api/v1/namespaces/default/configmaps/a?fieldManager=t&force=true";
    let body =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let headers = [("content-type", "application/apply-patch+yaml")];
    let apply = async || server.send_as(user("joe", &[]), "PATCH", path, &headers, body.to_string()).await;
    let refused = apply().await;
    assert_eq!(
        refused.text("/message"),
        "configmaps \"a\" is forbidden: User \"joe\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    server.config_map("a", json!({})).await;
    assert_eq!(apply().await.code, 200);
}

#[tokio::test]
async fn names_of_objects_narrow_a_rule() {
    let server = Server::start().await;
    server.config_map("mine", json!({})).await;
    let mut named = rule(&["get", "list", "watch"], "", &["configmaps"]);
    named["resourceNames"] = json!(["mine"]);
    grant(&server, "mine", "joe", "default", json!([named])).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let joe = user("joe", &[]);
    for (path, code) in [
        (format!("{maps}/mine"), 200),
        (format!("{maps}/other"), 403),
        (maps.to_string(), 403),
        (format!("{maps}?fieldSelector=metadata.name%3Dmine"), 200),
        (format!("{maps}?fieldSelector=metadata.name%3Dother"), 403),
        (format!("{maps}?fieldSelector=metadata.name%21%3Dmine"), 403),
    ] {
        assert_eq!(send(&server, &joe, "GET", &path, Value::Null).await.code, code, "{path}");
    }
}

#[tokio::test]
async fn nobody_gives_what_they_do_not_hold() {
    let server = Server::start().await;
    let pods = rule(&["get"], "", &["pods"]);
    grant(
        &server,
        "writer",
        "joe",
        "",
        json!([
            pods,
            rule(
                &["*"],
                "rbac.authorization.k8s.io",
                &["clusterroles", "clusterrolebindings", "roles", "rolebindings"]
            )
        ]),
    )
    .await;
    // "*" includes escalate and bind; without these two the check begins.
    let verbs = ["create", "get", "update", "patch", "delete"];
    let kinds = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];
    grant(&server, "careful", "ann", "", json!([pods, rule(&verbs, "rbac.authorization.k8s.io", &kinds)]))
        .await;
    let (joe, ann) = (user("joe", &[]), user("ann", &["staff"]));
    let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
    let roles = format!("{RBAC}/clusterroles");

    let held = send(&server, &ann, "POST", &roles, role("held", json!([pods]))).await;
    assert_eq!(held.code, 201, "{:?}", held.body);
    let more = json!([pods, rule(&["get", "list"], "", &["secrets", "pods"])]);
    let refused = send(&server, &ann, "POST", &roles, role("more", more.clone())).await;
    assert_eq!(
        refused.text("/message"),
        "clusterroles.rbac.authorization.k8s.io \"more\" is forbidden: user \"ann\" (groups=[\"staff\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\"]}\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}"
    );
    assert_eq!(
        send(&server, &joe, "POST", &roles, role("more", more.clone())).await.code,
        201,
        "may escalate"
    );
    let path = format!("{roles}/held");
    assert_eq!(send(&server, &ann, "PATCH", &path, json!({"rules": more})).await.code, 403);
    let labelled = send(&server, &ann, "PATCH", &path, json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!(labelled.code, 200, "what changes no rule needs no right: {:?}", labelled.body);

    let bindings = format!("{RBAC}/clusterrolebindings");
    let binding = |name: &str, role: &str| {
        json!({
            "metadata": {"name": name}, "roleRef": {"kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "Group", "name": "all"}],
        })
    };
    assert_eq!(send(&server, &ann, "POST", &bindings, binding("a", "held")).await.code, 201);
    let refused = send(&server, &ann, "POST", &bindings, binding("b", "cluster-admin")).await;
    assert_eq!(refused.code, 403);
    assert!(
        refused
            .text("/message")
            .contains("not currently held:\n{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}"),
        "{:?}",
        refused.body
    );
    assert_eq!(
        send(&server, &joe, "POST", &bindings, binding("c", "cluster-admin")).await.code,
        201,
        "may bind"
    );
    let missing = send(&server, &ann, "POST", &bindings, binding("d", "gone")).await;
    assert_eq!(
        (missing.code.as_u16(), missing.text("/message")),
        (404, "clusterrole.rbac.authorization.k8s.io \"gone\" not found")
    );
    let mut aggregated = role("sum", json!([]));
    aggregated["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"x": "y"}}]});
    let refused = send(&server, &ann, "POST", &roles, aggregated.clone()).await;
    assert!(
        refused.text("/message").ends_with("must have cluster-admin privileges to use an aggregationRule"),
        "{:?}",
        refused.body
    );
    assert_eq!(send(&server, &joe, "POST", &roles, aggregated).await.code, 201);
}

#[tokio::test]
async fn the_kinds_are_checked() {
    let server = Server::start().await;
    for (path, body, why) in [
        (
            "clusterroles",
            json!({"metadata": {"name": "a"}, "rules": [{"verbs": ["get"]}]}),
            "ClusterRole.rbac.authorization.k8s.io \"a\" is invalid: [rules[0].apiGroups: Required value: resource rules must supply at least one api group, rules[0].resources: Required value: resource rules must supply at least one resource]",
        ),
        (
            "clusterrolebindings",
            json!({"metadata": {"name": "a"}, "roleRef": {"kind": "Role", "name": "x"}}),
            "ClusterRoleBinding.rbac.authorization.k8s.io \"a\" is invalid: roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
        ),
    ] {
        let refused = server.call("POST", &format!("{RBAC}/{path}"), body).await;
        assert_eq!((refused.code.as_u16(), refused.text("/message")), (422, why));
    }
    make(&server, &format!("{RBAC}/clusterrolebindings"), json!({
        "metadata": {"name": "a"}, "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "joe"}, {"kind": "ServiceAccount", "name": "a", "namespace": "b"}],
    }))
    .await;
    let path = format!("{RBAC}/clusterrolebindings/a");
    let stored = server.call("GET", &path, None).await;
    assert_eq!(stored.text("/roleRef/apiGroup"), "rbac.authorization.k8s.io");
    assert_eq!(stored.text("/subjects/0/apiGroup"), "rbac.authorization.k8s.io");
    assert!(stored.body.pointer("/subjects/1/apiGroup").is_none());
    let moved = server.patch(&path, "merge", json!({"roleRef": {"name": "edit"}})).await;
    assert!(moved.text("/message").ends_with("cannot change roleRef"), "{:?}", moved.body);
}

#[tokio::test]
async fn every_cluster_has_roles_and_gets_them_back() {
    let server = Server::start().await;
    let view = server.call("GET", &format!("{RBAC}/clusterroles/view"), None).await;
    let rules = view.body["rules"].to_string();
    assert!(rules.contains("virtualmachines") && rules.contains("configmaps"), "{rules}");
    assert_eq!(view.text("/metadata/labels/kubernetes.io~1bootstrapping"), "rbac-defaults");
    let admin = server.call("GET", &format!("{RBAC}/clusterroles/admin"), None).await;
    assert!(admin.body["rules"].to_string().contains("rolebindings"));

    // A role of one's own that is collected.
    let mut own = json!({"metadata": {"name": "own"}, "rules": [rule(&["get"], "example.com", &["things"])]});
    own["metadata"]["labels"] = json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"});
    make(&server, &format!("{RBAC}/clusterroles"), own).await;
    eventually("admin collects it from edit, which collects it from view", async || {
        let admin = server.call("GET", &format!("{RBAC}/clusterroles/admin"), None).await;
        if admin.body["rules"].to_string().contains("example.com") {
            Ok(())
        } else {
            Err(admin.body.to_string())
        }
    })
    .await;

    let basic = format!("{RBAC}/clusterroles/system:basic-user");
    server.patch(&basic, "merge", json!({"rules": []})).await;
    let discovery = format!("{RBAC}/clusterrolebindings/system:discovery");
    server.call("DELETE", &discovery, None).await;
    let monitoring = format!("{RBAC}/clusterroles/system:monitoring");
    let off = json!({"metadata": {"annotations": {"rbac.authorization.kubernetes.io/autoupdate": "false"}}, "rules": []});
    server.patch(&monitoring, "merge", off).await;
    let revision = server.call("GET", &format!("{RBAC}/clusterroles/cluster-admin"), None).await;
    let Server { api, dir, store } = server;
    api.shutdown().await;
    drop(store);
    let server = Server::start_again(dir).await;
    assert_eq!(server.call("GET", &basic, None).await.body["rules"].as_array().map(Vec::len), Some(2));
    assert_eq!(server.call("GET", &discovery, None).await.code, 200);
    assert_eq!(server.call("GET", &monitoring, None).await.body["rules"], json!([]));
    let again = server.call("GET", &format!("{RBAC}/clusterroles/cluster-admin"), None).await;
    assert_eq!(
        again.text("/metadata/resourceVersion"),
        revision.text("/metadata/resourceVersion"),
        "left alone"
    );
}

#[tokio::test]
async fn nodes_keep_to_themselves() {
    let server = Server::start().await;
    let node = user("system:node:one", &["system:nodes"]);
    let machine = |name: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {"domain": {"devices": {}, "memory": {"guest": "64Mi"}}, "volumes": [
                {"name": "c", "cloudInitNoCloud": {"secretRef": {"name": format!("{name}-secret")}}}]},
        })
    };
    let vmis = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
    for (name, on) in [("a", "one"), ("b", "two")] {
        make(&server, vmis, machine(name)).await;
        // As the scheduler does; the label that says the same is nobody's to set.
        let placed = json!({"status": {"nodeName": on}});
        let answer = server.patch(&format!("{vmis}/{name}"), "merge", placed).await;
        assert_eq!(answer.code, 200, "{:?}", answer.body);
        let secret = json!({"metadata": {"name": format!("{name}-secret")}, "stringData": {"userdata": "x"}});
        make(&server, "/api/v1/namespaces/default/secrets", secret).await;
    }
    let named = |name: &str| json!({"metadata": {"name": name}});
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let secret = "/api/v1/namespaces/default/secrets";
    let leases = "/apis/coordination.k8s.io/v1/namespaces";
    for (method, path, body, code) in [
        ("POST", "/api/v1/nodes".to_string(), named("two"), 403),
        ("POST", "/api/v1/nodes".into(), named("one"), 201),
        ("PATCH", "/api/v1/nodes/one".into(), label.clone(), 200),
        (
            "PATCH",
            "/api/v1/nodes/one".into(),
            json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
            403,
        ),
        ("GET", format!("{secret}/a-secret"), Value::Null, 200),
        ("GET", format!("{secret}/b-secret"), Value::Null, 403),
        ("GET", secret.into(), Value::Null, 403),
        ("PATCH", format!("{vmis}/a"), label.clone(), 200),
        ("PATCH", format!("{vmis}/b"), label.clone(), 403),
        ("POST", format!("{leases}/kube-node-lease/leases"), named("one"), 201),
        ("POST", format!("{leases}/kube-node-lease/leases"), named("two"), 403),
        ("POST", format!("{leases}/default/leases"), named("one"), 403),
        ("POST", vmis.into(), machine("c"), 403),
        ("GET", "/api/v1/nodes".into(), Value::Null, 200),
        ("GET", format!("{RBAC}/clusterroles"), Value::Null, 403),
    ] {
        let answer = send(&server, &node, method, &path, body).await;
        assert_eq!(answer.code, code, "{method} {path}: {:?}", answer.body);
    }
}
