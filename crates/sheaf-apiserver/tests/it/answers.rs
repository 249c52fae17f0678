//! Where an answer is one thing for some kinds and another for others, or the same whatever is asked: deletions, verbs that a
//! kind does not do, query parameters, keys of lists that are filled in.

use serde_json::{Value, json};

use crate::harness::{Server, eventually};

const HERE: &str = "/api/v1/namespaces/default";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const STORAGE: &str = "/apis/storage.k8s.io/v1";

#[tokio::test]
async fn some_kinds_answer_a_deletion_with_what_went() {
    let server = Server::start().await;
    let container = json!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
    let claim =
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let volume = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}});
    let attachment =
        json!({"spec": {"attacher": "a.io", "nodeName": "n", "source": {"persistentVolumeName": "v"}}});
    for (collection, body, kind) in [
        (format!("{HERE}/pods"), container.clone(), "Pod"),
        (format!("{HERE}/podtemplates"), json!({"template": container}), "PodTemplate"),
        (format!("{HERE}/services"), json!({"spec": {"ports": [{"port": 80}]}}), "Service"),
        (format!("{HERE}/serviceaccounts"), json!({}), "ServiceAccount"),
        (format!("{HERE}/resourcequotas"), json!({"spec": {"hard": {"pods": "1"}}}), "ResourceQuota"),
        (format!("{HERE}/persistentvolumeclaims"), claim, "PersistentVolumeClaim"),
        ("/api/v1/persistentvolumes".into(), volume, "PersistentVolume"),
        (format!("{STORAGE}/storageclasses"), json!({"provisioner": "p"}), "StorageClass"),
        (format!("{STORAGE}/csinodes"), json!({"spec": {"drivers": []}}), "CSINode"),
        (format!("{STORAGE}/csidrivers"), json!({"spec": {}}), "CSIDriver"),
        (format!("{STORAGE}/volumeattachments"), attachment, "VolumeAttachment"),
        (MAPS.into(), json!({}), "Status"),
        (format!("{HERE}/limitranges"), json!({"spec": {"limits": []}}), "Status"),
    ] {
        let mut body = body;
        body["metadata"] = json!({"name": "one"});
        let made = server.call("POST", &collection, body).await;
        assert_eq!(made.code, 201, "{collection}: {:#}", made.body);
        let tried = server.call("DELETE", &format!("{collection}/one?dryRun=All"), None).await;
        assert_eq!(tried.text("/kind"), kind, "{:#}", tried.body);
        let gone = server.call("DELETE", &format!("{collection}/one"), None).await;
        assert_eq!((gone.code.as_u16(), gone.text("/kind")), (200, kind), "{:#}", gone.body);
        let uid = if kind == "Status" { "/details/uid" } else { "/metadata/uid" };
        assert_eq!(gone.text(uid), made.text("/metadata/uid"), "{:#}", gone.body);
        assert_eq!(server.call("GET", &format!("{collection}/one"), None).await.code, 404);
    }
}

#[tokio::test]
async fn what_a_kind_does_not_do_is_405_and_not_in_discovery() {
    let server = Server::start().await;
    let refused = server.call("DELETE", "/api/v1/namespaces?labelSelector=a%3Db", None).await;
    assert_eq!(refused.code, 405, "{:#}", refused.body);
    assert_eq!(server.call("GET", "/api/v1/namespaces/default", None).await.code, 200);
    let listed = server.call("GET", "/api/v1", None).await.body;
    let all = listed["resources"].as_array().unwrap();
    let verbs = |name: &str| all.iter().find(|r| r["name"] == name).unwrap()["verbs"].clone();
    assert_eq!(verbs("namespaces"), json!(["create", "delete", "get", "list", "patch", "update", "watch"]));
    assert_eq!(server.call("GET", "/api/v1/namespaces/default/finalize", None).await.code, 405);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(server.call("POST", &format!("{HERE}/pods"), pod).await.code, 201);
    for sub in ["eviction", "binding"] {
        let refused = server.call("GET", &format!("{HERE}/pods/p/{sub}"), None).await;
        assert_eq!(refused.code, 405, "{sub}: {:#}", refused.body);
    }
}

#[tokio::test]
async fn one_object_is_read_whether_a_watch_is_asked_for_or_not() {
    let server = Server::start().await;
    let made = server.config_map("a", json!({})).await;
    let read = server.call("GET", &format!("{MAPS}/a?watch=true&timeoutSeconds=1"), None).await;
    assert_eq!((read.code.as_u16(), read.text("/kind")), (200, "ConfigMap"), "{:#}", read.body);
    assert_eq!(read.text("/metadata/uid"), made.text("/metadata/uid"));
}

#[tokio::test]
async fn numbers_of_a_list() {
    let server = Server::start().await;
    server.config_map("a", json!({})).await;
    server.config_map("b", json!({})).await;
    for (query, code, items) in
        [("limit=-1", 200, 2), ("limit=0", 200, 2), ("limit=x", 400, 0), ("timeoutSeconds=x", 400, 0)]
    {
        let listed = server.call("GET", &format!("{MAPS}?{query}"), None).await;
        let count = listed.body["items"].as_array().map_or(0, Vec::len);
        assert_eq!((listed.code.as_u16(), count), (code, items), "{query}: {:#}", listed.body);
    }
}

#[tokio::test]
async fn ports_are_told_apart_by_the_protocol_that_they_have_unsaid() {
    let server = Server::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = |ports: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i", "ports": ports}]}}}})
    };
    let apply = async |ports: Value| {
        let path = format!("{deployments}/d?fieldManager=m");
        server.patch(&path, "apply", deployment(ports)).await
    };
    let made = apply(json!([{"containerPort": 80}])).await;
    assert_eq!(made.code, 201, "{:#}", made.body);
    let ports = "/spec/template/spec/containers/0/ports";
    assert_eq!(made.body.pointer(ports), Some(&json!([{"containerPort": 80, "protocol": "TCP"}])));
    let two = json!([{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]);
    let more = apply(two).await;
    let all = json!([{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}]);
    assert_eq!(more.body.pointer(ports), Some(&all), "{:#}", more.body);
    let twice = apply(json!([{"containerPort": 80}, {"containerPort": 80, "protocol": "TCP"}])).await;
    assert_eq!(twice.code, 500, "{:#}", twice.body);
    assert!(twice.text("/message").contains("duplicate entries for key"), "{:#}", twice.body);

    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 53}]}});
    let made = server.patch(&format!("{HERE}/services/s?fieldManager=m"), "apply", service).await;
    assert_eq!((made.code.as_u16(), made.text("/spec/ports/0/protocol")), (201, "TCP"), "{:#}", made.body);
}

#[tokio::test]
async fn a_namespace_keeps_the_finalizers_that_it_was_made_with() {
    let server = Server::start().await;
    let body = json!({"metadata": {"name": "held"}, "spec": {"finalizers": ["example.com/hold"]}});
    let made = server.call("POST", "/api/v1/namespaces", body).await;
    assert_eq!(made.body["spec"]["finalizers"], json!(["example.com/hold", "kubernetes"]), "{:#}", made.body);
}

#[tokio::test]
async fn a_policy_says_what_fits_not_the_kinds_that_it_names() {
    let server = Server::start().await;
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let rule = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]});
    let policy = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": "object.spec.replicas > 1"}, {"expression": "object.none"}]}});
    assert_eq!(server.call("POST", policies, policy).await.code, 201);
    let path = format!("{policies}/p");
    let told = async |generation: i64, warnings: usize| {
        eventually("the policy is checked", async || {
            let status = server.call("GET", &path, None).await.body["status"].clone();
            let found = status["typeChecking"]["expressionWarnings"].as_array().map_or(0, Vec::len);
            let done = status["observedGeneration"] == generation && found == warnings;
            if done { Ok(status) } else { Err(status.to_string()) }
        })
        .await
    };
    let status = told(1, 1).await;
    let warning = &status["typeChecking"]["expressionWarnings"][0];
    assert_eq!(warning["fieldRef"], "spec.validations[1].expression");
    let text = warning["warning"].as_str().unwrap();
    assert!(
        text.starts_with("apps/v1, Kind=Deployment: ") && text.contains("undefined field 'none'"),
        "{text}"
    );
    let right = json!({"spec": {"validations": [{"expression": "object.spec.replicas > 1"}]}});
    assert_eq!(server.patch(&path, "merge", right).await.code, 200);
    assert_eq!(told(2, 0).await["typeChecking"], json!({}));
}

#[tokio::test]
async fn an_autoscaler_made_by_the_first_version_is_filled_in_like_one_of_the_second() {
    let server = Server::start().await;
    let at =
        |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
    let body = json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "scaleTargetRef": target}});
    let made = server.call("POST", &at("v1"), body).await;
    assert_eq!(made.code, 201, "{:#}", made.body);
    let seen = server.call("GET", &format!("{}/a", at("v2")), None).await;
    assert_eq!(seen.body["spec"]["minReplicas"], 1, "{:#}", seen.body);
    let cpu = &seen.body["spec"]["metrics"][0]["resource"];
    assert_eq!(cpu["target"]["averageUtilization"], 80, "{:#}", seen.body);
}

/// As fields of another type, for the same reason: what is read into a type fails there.
#[tokio::test]
async fn bytes_times_and_quantities_that_are_none_cannot_be_read() {
    let server = Server::start().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "many"}}});
    let lease = json!({"metadata": {"name": "l"}, "spec": {"renewTime": "yesterday"}});
    for (path, body, why) in [
        (format!("{HERE}/secrets"), json!({"metadata": {"name": "s"}, "data": {"a": "!!"}}), "data.a"),
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases".into(), lease, "spec.renewTime"),
        (format!("{HERE}/resourcequotas"), quota, "spec.hard[pods]"),
    ] {
        let refused = server.call("POST", &path, body).await;
        assert_eq!(
            (refused.code.as_u16(), refused.text("/reason")),
            (400, "BadRequest"),
            "{:#}",
            refused.body
        );
        assert!(refused.text("/message").contains(why), "{:#}", refused.body);
    }
}

#[tokio::test]
async fn keys_that_come_twice_in_a_configuration_are_told_of_first_and_by_line() {
    let server = Server::start().await;
    let user = || sheaf_apiserver::UserInfo::new("admin", [sheaf_apiserver::authn::MASTERS]);
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\nnone: 1\ndata:\n  a: one\n  a: two\n";
    let json = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m"},"none":1,"data":{"a":"one","a":"two"}}"#;
    for (body, line) in [(yaml, 7), (json, 1)] {
        let path = format!("{MAPS}/m?fieldManager=x&fieldValidation=Strict");
        let headers = [("content-type", "application/apply-patch+yaml")];
        let refused = server.send_as(user(), "PATCH", &path, &headers, body.to_owned()).await;
        let why = format!(
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line {line}: key \"a\" already set in map"
        );
        assert_eq!(
            (refused.code.as_u16(), refused.text("/message")),
            (400, why.as_str()),
            "{:#}",
            refused.body
        );
        let once = body.replace("none: 1\n", "").replace("\"none\":1,", "");
        let warned = server
            .send_as(user(), "PATCH", &format!("{MAPS}/m?fieldManager=x&dryRun=All"), &headers, once)
            .await;
        assert_eq!(warned.code, 201, "{:#}", warned.body);
        let (told, wanted) = (warned.warnings(), "key \"a\" already set in map");
        assert!(told.len() == 1 && told[0].ends_with(wanted), "{told:?}");
    }
}
