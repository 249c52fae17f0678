//! The audit log, as it is read from its file.

use serde_json::{Value, json};
use sheaf_apiserver::{
    UserInfo,
    audit::{AuditOptions, LogOptions},
};

use super::rbac::send;
use crate::harness::{Server, eventually};

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:apiserver"]
- level: Metadata
  resources: [{group: "", resources: ["secrets"]}]
- level: RequestResponse
  omitManagedFields: true
  resources: [{group: "", resources: ["configmaps"]}]
- level: Metadata
"#;

async fn start(policy: Option<&str>) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let policy_file = policy.map(|text| {
        let path = dir.path().join("policy.yaml");
        std::fs::write(&path, text).unwrap();
        path
    });
    let log = LogOptions {
        path: dir.path().join("audit/audit.log"),
        max_bytes: 100 << 20,
        max_age_days: 0,
        max_backups: 0,
    };
    Server::start_audited(dir, Some(AuditOptions { policy_file, log })).await
}

/// The events about a path, once there are `count` of them.
async fn events(server: &Server, path: &str, count: usize) -> Vec<Value> {
    let file = server.dir.path().join("audit/audit.log");
    eventually("the audit log has the events", async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let about: Vec<Value> = all.filter(|e| e["requestURI"].as_str().unwrap().starts_with(path)).collect();
        if about.len() == count { Ok(about) } else { Err(format!("{about:?}")) }
    })
    .await
}

#[tokio::test]
async fn who_did_what_and_how_it_ended() {
    let server = start(Some(POLICY)).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let body = json!({"metadata": {"name": "a"}, "data": {"k": "v"}}).to_string();
    let headers = [
        ("content-type", "application/json"),
        ("impersonate-user", "joe"),
        ("impersonate-group", "system:masters"),
        ("user-agent", "test/1"),
        ("x-forwarded-for", "192.0.2.7, nonsense"),
    ];
    let admin = UserInfo::new("admin", ["system:masters"]);
    let answer = server.send_as(admin.clone(), "POST", maps, &headers, body).await;
    assert_eq!(answer.code, 201, "{:?}", answer.body);
    let event = events(&server, maps, 1).await.remove(0);
    let id = answer.headers["audit-id"].to_str().unwrap();
    for (pointer, expected) in [
        ("/kind", json!("Event")),
        ("/apiVersion", json!("audit.k8s.io/v1")),
        ("/level", json!("RequestResponse")),
        ("/stage", json!("ResponseComplete")),
        ("/auditID", json!(id)),
        ("/verb", json!("create")),
        ("/user/username", json!("admin")),
        ("/impersonatedUser/username", json!("joe")),
        ("/sourceIPs", json!(["192.0.2.7"])),
        ("/userAgent", json!("test/1")),
        ("/objectRef", json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"})),
        ("/responseStatus/code", json!(201)),
        ("/requestObject/data", json!({"k": "v"})),
        ("/responseObject/metadata/name", json!("a")),
        ("/annotations/authorization.k8s.io~1decision", json!("allow")),
    ] {
        assert_eq!(event.pointer(pointer), Some(&expected), "{pointer}: {event}");
    }
    assert!(event.pointer("/responseObject/metadata/managedFields").is_none(), "{event}");

    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hidden"}});
    server.call("POST", "/api/v1/namespaces/default/secrets", secret).await;
    let event = events(&server, "/api/v1/namespaces/default/secrets", 1).await.remove(0);
    assert!(!event.to_string().contains("hidden") && event.get("requestObject").is_none(), "{event}");

    let refused = send(&server, &UserInfo::new("eve", []), "GET", "/api/v1/nodes/n", Value::Null).await;
    assert_eq!(refused.code, 403);
    let event = events(&server, "/api/v1/nodes/n", 1).await.remove(0);
    assert_eq!(event["responseStatus"]["reason"], "Forbidden");
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(event["objectRef"]["name"], "n");

    let given = server.send("GET", "/version", &[("audit-id", "mine")], None).await;
    assert_eq!(given.headers["audit-id"], "mine");
    assert_eq!(events(&server, "/version", 1).await[0]["auditID"], "mine");
}

#[tokio::test]
async fn a_watch_has_a_beginning_and_an_end() {
    let server = start(Some(POLICY)).await;
    let path = "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=1";
    let answer = server.call("GET", path, None).await;
    assert_eq!(answer.code, 200);
    let both = events(&server, path, 2).await;
    let stages: Vec<&str> = both.iter().map(|e| e["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["ResponseStarted", "ResponseComplete"]);
    assert_eq!(both[0]["verb"], "watch");
    assert_eq!(both[0]["auditID"], both[1]["auditID"]);
}

#[tokio::test]
async fn without_a_policy_the_metadata_of_all_and_without_a_log_an_id() {
    let server = start(None).await;
    server.config_map("a", json!({})).await;
    let event = events(&server, "/api/v1/namespaces/default/configmaps", 1).await.remove(0);
    assert_eq!((event["level"].as_str(), event.get("requestObject")), (Some("Metadata"), None));
    let plain = Server::start().await;
    let answer = plain.call("GET", "/api/v1/nodes", None).await;
    assert_eq!(answer.headers["audit-id"].to_str().unwrap().len(), 36);
}
