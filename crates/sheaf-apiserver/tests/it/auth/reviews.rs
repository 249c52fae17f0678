//! Questions about access, as clients ask them.

use serde_json::{Value, json};
use sheaf_apiserver::UserInfo;

use super::rbac::{grant, rule, send};
use crate::harness::Server;

const GROUP: &str = "/apis/authorization.k8s.io/v1";

#[tokio::test]
async fn what_may_somebody() {
    let server = Server::start().await;
    grant(&server, "maps", "joe", "default", json!([rule(&["get", "list"], "", &["configmaps"])])).await;
    let (admin, joe) = (UserInfo::new("admin", ["system:masters"]), UserInfo::new("joe", []));
    let maps = |namespace: &str| json!({"verb": "list", "resource": "configmaps", "namespace": namespace});
    let reason = "RBAC: allowed by RoleBinding \"maps/default\" of ClusterRole \"maps\" to User \"joe\"";
    // Who asks, where, what; whether it is allowed, and why.
    for (who, path, spec, allowed, why) in [
        (&joe, "selfsubjectaccessreviews", json!({"resourceAttributes": maps("default")}), true, reason),
        (&joe, "selfsubjectaccessreviews", json!({"resourceAttributes": maps("other")}), false, ""),
        (&joe, "selfsubjectaccessreviews", json!({"resourceAttributes": maps("*")}), false, ""),
        (&admin, "selfsubjectaccessreviews", json!({"resourceAttributes": maps("*")}), true, ""),
        (
            &admin,
            "subjectaccessreviews",
            json!({"user": "joe", "resourceAttributes": maps("default")}),
            true,
            reason,
        ),
        (
            &admin,
            "subjectaccessreviews",
            json!({"groups": ["system:masters"], "resourceAttributes": maps("x")}),
            true,
            "",
        ),
        (
            &admin,
            "subjectaccessreviews",
            json!({"user": "ann", "nonResourceAttributes": {"path": "/metrics", "verb": "get"}}),
            false,
            "",
        ),
        (
            &admin,
            "namespaces/default/localsubjectaccessreviews",
            json!({"user": "joe", "resourceAttributes": maps("default")}),
            true,
            reason,
        ),
    ] {
        let body = json!({"spec": spec});
        let answer = send(&server, who, "POST", &format!("{GROUP}/{path}"), body).await;
        assert_eq!(answer.code, 201, "{:?}", answer.body);
        assert_eq!(
            (&answer.body["status"]["allowed"], answer.text("/status/reason")),
            (&json!(allowed), why),
            "{path} {spec}"
        );
        assert_eq!(answer.text("/apiVersion"), "authorization.k8s.io/v1");
    }
    for (who, path, spec, code) in [
        (&joe, "subjectaccessreviews", json!({"user": "joe", "resourceAttributes": maps("default")}), 403),
        (&admin, "subjectaccessreviews", json!({"resourceAttributes": maps("default")}), 422),
        (
            &admin,
            "localsubjectaccessreviews",
            json!({"user": "joe", "resourceAttributes": maps("default")}),
            404,
        ),
        (
            &admin,
            "namespaces/default/localsubjectaccessreviews",
            json!({"user": "joe", "resourceAttributes": maps("x")}),
            422,
        ),
        (&joe, "selfsubjectrulesreviews", json!({}), 400),
    ] {
        let answer = send(&server, who, "POST", &format!("{GROUP}/{path}"), json!({"spec": spec})).await;
        assert_eq!(answer.code, code, "{path}: {:?}", answer.body);
    }
}

#[tokio::test]
async fn what_may_i() {
    let server = Server::start().await;
    let mut named = rule(&["get"], "", &["configmaps"]);
    named["resourceNames"] = json!(["mine"]);
    grant(&server, "maps", "joe", "default", json!([named])).await;
    let joe = UserInfo::new("joe", []);
    let path = format!("{GROUP}/selfsubjectrulesreviews");
    let answer = send(&server, &joe, "POST", &path, json!({"spec": {"namespace": "default"}})).await;
    let status = &answer.body["status"];
    assert_eq!(status["incomplete"], json!(false));
    let expected =
        json!({"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"]});
    assert!(status["resourceRules"].as_array().unwrap().contains(&expected), "{status}");
    assert!(status["nonResourceRules"].to_string().contains("/healthz"), "{status}");
    let nobody =
        send(&server, &UserInfo::new("x", []), "POST", &path, json!({"spec": {"namespace": "kube-system"}}))
            .await;
    assert!(!nobody.body["status"]["resourceRules"].to_string().contains("configmaps"), "{:?}", nobody.body);
    let node = UserInfo::new("system:node:a", ["system:nodes"]);
    let answer = send(&server, &node, "POST", &path, json!({"spec": {"namespace": "default"}})).await;
    assert_eq!(answer.body["status"]["incomplete"], json!(true));
}

#[tokio::test]
async fn who_am_i() {
    let server = Server::start().await;
    let headers = [
        ("impersonate-user", "joe"),
        ("impersonate-uid", "u-1"),
        ("impersonate-extra-example.com%2fteam", "blue"),
    ];
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = server.send("POST", path, &headers, json!({})).await;
    assert_eq!(
        answer.body["status"]["userInfo"],
        json!({"username": "joe", "uid": "u-1", "groups": ["system:authenticated"], "extra": {"example.com/team": ["blue"]}})
    );
    assert_eq!(answer.body["metadata"]["creationTimestamp"], Value::Null);
}

#[tokio::test]
async fn each_part_of_another_identity_is_allowed_by_itself() {
    let server = Server::start().await;
    let mut users = rule(&["impersonate"], "", &["users"]);
    users["resourceNames"] = json!(["ann"]);
    let mut groups = rule(&["impersonate"], "", &["groups"]);
    groups["resourceNames"] = json!(["staff"]);
    let extra = rule(&["impersonate"], "authentication.k8s.io", &["userextras/team"]);
    let accounts = rule(&["impersonate"], "", &["serviceaccounts"]);
    grant(&server, "actor", "joe", "", json!([users, groups, extra])).await;
    grant(&server, "robots", "joe", "default", json!([accounts])).await;
    let joe = UserInfo::new("joe", []);
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    for (headers, expected) in [
        (vec![("impersonate-user", "ann")], ""),
        (
            vec![
                ("impersonate-user", "ann"),
                ("impersonate-group", "staff"),
                ("impersonate-extra-team", "blue"),
            ],
            "",
        ),
        (vec![("impersonate-user", "system:serviceaccount:default:robot")], ""),
        (
            vec![("impersonate-user", "bob")],
            "users \"bob\" is forbidden: User \"joe\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
        ),
        (
            vec![("impersonate-user", "ann"), ("impersonate-group", "system:masters")],
            "groups \"system:masters\" is forbidden: User \"joe\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope",
        ),
        (
            vec![("impersonate-user", "ann"), ("impersonate-extra-scopes", "all")],
            "userextras.authentication.k8s.io \"all\" is forbidden: User \"joe\" cannot impersonate resource \"userextras/scopes\" in API group \"authentication.k8s.io\" at the cluster scope",
        ),
        (
            vec![("impersonate-user", "ann"), ("impersonate-uid", "u")],
            "uids.authentication.k8s.io \"u\" is forbidden: User \"joe\" cannot impersonate resource \"uids\" in API group \"authentication.k8s.io\" at the cluster scope",
        ),
        (
            vec![("impersonate-user", "system:serviceaccount:kube-system:robot")],
            "serviceaccounts \"robot\" is forbidden: User \"joe\" cannot impersonate resource \"serviceaccounts\" in API group \"\" in the namespace \"kube-system\"",
        ),
    ] {
        let answer = server.send_as(joe.clone(), "POST", path, &headers, "{}".into()).await;
        assert_eq!(answer.text("/message"), expected, "{headers:?} {:?}", answer.body);
        assert_eq!(answer.code.as_u16(), if expected.is_empty() { 201 } else { 403 });
    }
}
