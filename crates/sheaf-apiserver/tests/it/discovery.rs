//! Discovery, OpenAPI and health checks, as clients read them.

use serde_json::{Value, json};

use crate::{
    crds::crontabs,
    harness::{Answer, Server, eventually},
};

const V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

fn group<'a>(list: &'a Value, name: &str) -> &'a Value {
    let items = list["items"].as_array().unwrap();
    let named = |g: &&Value| g["metadata"]["name"].as_str().unwrap_or_default() == name;
    items.iter().find(named).unwrap_or(&Value::Null)
}

fn resource<'a>(group: &'a Value, version: &str, plural: &str) -> &'a Value {
    let versions = group["versions"].as_array().unwrap();
    let version = versions.iter().find(|v| v["version"] == version).unwrap();
    let all = version["resources"].as_array().unwrap();
    all.iter().find(|r| r["resource"] == plural).unwrap_or(&Value::Null)
}

impl Server {
    async fn asked(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send("GET", path, headers, None).await
    }
}

#[tokio::test]
async fn aggregated_discovery_has_a_tag_and_follows_new_kinds() {
    let server = Server::start().await;
    let first = server.asked("/apis", &[("accept", V2)]).await;
    assert_eq!(first.headers["content-type"], V2);
    let tag = first.headers["etag"].to_str().unwrap().to_string();
    let same = server.asked("/apis", &[("accept", V2), ("if-none-match", &tag)]).await;
    assert_eq!((same.code.as_u16(), &same.body), (304, &json!("")));
    assert_eq!(same.headers["etag"].to_str().unwrap(), tag);

    server
        .define(crontabs(json!({"subresources": {"status": {}, "scale": {
        "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}}})))
        .await;
    let after = server.asked("/apis", &[("accept", V2), ("if-none-match", &tag)]).await;
    assert_eq!(after.code, 200);
    let tabs = resource(group(&after.body, "example.com"), "v1", "crontabs");
    assert_eq!(tabs["responseKind"], json!({"group": "example.com", "version": "v1", "kind": "CronTab"}));
    assert_eq!(
        (&tabs["scope"], &tabs["singularResource"], &tabs["shortNames"], &tabs["categories"]),
        (&json!("Namespaced"), &json!("crontab"), &json!(["ct"]), &json!(["all", "timers"]))
    );
    let subs: Vec<(&str, &str)> = tabs["subresources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["subresource"].as_str().unwrap(), s["responseKind"]["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(subs, [("scale", "Scale"), ("status", "CronTab")]);
    let old = V2.replace("v=v2;", "v=v2beta1;");
    assert_eq!(
        server.asked("/apis", &[("accept", &old)]).await.body["apiVersion"],
        "apidiscovery.k8s.io/v2beta1"
    );
    assert_eq!(server.asked("/apis", &[]).await.body["kind"], "APIGroupList");
}

#[tokio::test]
async fn every_resource_says_what_it_answers() {
    let server = Server::start().await;
    for root in ["/api", "/apis"] {
        let list = server.asked(root, &[("accept", V2)]).await.body;
        for group in list["items"].as_array().unwrap() {
            for version in group["versions"].as_array().unwrap() {
                for resource in version["resources"].as_array().unwrap() {
                    assert!(resource["responseKind"]["kind"].is_string(), "{resource}");
                    for sub in resource["subresources"].as_array().into_iter().flatten() {
                        assert!(sub["responseKind"]["kind"].is_string(), "{sub}");
                        assert!(!sub["verbs"].as_array().unwrap().is_empty(), "{sub}");
                    }
                }
            }
        }
    }
    let core = server.asked("/api/v1", &[]).await.body;
    let named = |name: &str| {
        core["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).cloned().unwrap_or_default()
    };
    let scale = named("replicationcontrollers/scale");
    assert_eq!(
        (&scale["kind"], &scale["group"], &scale["version"]),
        (&json!("Scale"), &json!("autoscaling"), &json!("v1"))
    );
    let eviction = named("pods/eviction");
    assert_eq!(
        (&eviction["kind"], &eviction["group"], &eviction["version"]),
        (&json!("Eviction"), &json!("policy"), &json!("v1"))
    );
    assert_eq!(named("pods")["singularName"], "pod");
}

#[tokio::test]
async fn openapi_of_group_versions() {
    let server = Server::start().await;
    let index = server.asked("/openapi/v3", &[]).await.body;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_string();
    let document = server.asked(&url, &[]).await;
    assert_eq!(document.code, 200);
    assert!(document.headers["cache-control"].to_str().unwrap().contains("immutable"));
    let patch = &document.body["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-action"], "patch");
    let stale = server.asked("/openapi/v3/apis/apps/v1?hash=OLD", &[]).await;
    assert_eq!(stale.code, 301);
    assert_eq!(stale.headers["location"].to_str().unwrap(), url);

    // A new kind is in it, and leaves the others' hashes alone.
    server.define(crontabs(json!({}))).await;
    let after = server.asked("/openapi/v3", &[]).await.body;
    assert_eq!(after["paths"]["apis/apps/v1"], index["paths"]["apis/apps/v1"]);
    let url = after["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = server.asked(url, &[]).await.body;
    let shape = &document["components"]["schemas"]["com.example.v1.CronTab"];
    assert_eq!(shape["properties"]["spec"]["properties"]["color"]["enum"], json!(["red", "green", "blue"]));
    assert_eq!(shape["x-kubernetes-group-version-kind"][0]["kind"], "CronTab");
    let metadata = &shape["properties"]["metadata"]["allOf"][0]["$ref"];
    assert_eq!(metadata, "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    server
        .call("DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/crontabs.example.com", None)
        .await;
    eventually("it is out of the index", async || {
        let index = server.asked("/openapi/v3", &[]).await.body;
        if index["paths"].get("apis/example.com/v1").is_none() { Ok(()) } else { Err(index.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn the_whole_document_in_both_encodings() {
    let server = Server::start().await;
    server.define(crontabs(json!({}))).await;
    let json = server.asked("/openapi/v2", &[("accept", "application/json")]).await;
    assert_eq!((json.code.as_u16(), json.text("/swagger")), (200, "2.0"));
    // What the definition says, and what every object has besides.
    let mut shape = json.body["definitions"]["com.example.v1.CronTab"].clone();
    for field in ["apiVersion", "kind", "metadata"] {
        assert!(shape["properties"].as_object_mut().unwrap().remove(field).is_some(), "{field}");
    }
    assert!(shape.as_object_mut().unwrap().remove("x-kubernetes-group-version-kind").is_some());
    assert_eq!(shape, crontabs(json!({}))["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    let tag = json.headers["etag"].to_str().unwrap();
    assert_eq!(server.asked("/openapi/v2", &[("if-none-match", tag)]).await.code, 304);
    let kind = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let protobuf = server.asked("/openapi/v2", &[("accept", kind)]).await;
    assert_eq!(
        protobuf.headers["content-type"],
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    );
    let packed = server.asked("/openapi/v2", &[("accept", kind), ("accept-encoding", "gzip")]).await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    assert_eq!(server.asked("/openapi/v2", &[("accept", "image/png")]).await.code, 406);
}

#[tokio::test]
async fn kubectl_explains_from_either_version() {
    let server = Server::start().await;
    server.define(crontabs(json!({}))).await;
    for (what, word) in [
        ("deployment.spec.template.spec.containers --recursive", "livenessProbe"),
        ("crontab.spec", "cronSpec"),
        ("crontab", "APIVersion defines"),
        ("crontab.metadata", "CreationTimestamp is a timestamp"),
        ("vm --recursive", "bootOrder"),
        ("crd.spec.versions", "additionalPrinterColumns"),
        ("pods --output=plaintext-openapiv2 --recursive", "initContainers"),
        ("validatingwebhookconfigurations --recursive", "caBundle"),
    ] {
        let out = server.kubectl(&format!("explain {what}")).await;
        assert!(out.contains(word), "{what}: {out}");
    }
    // Lists are taken apart with the help of the old form.
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}},
        {"apiVersion": "example.com/v1", "kind": "CronTab", "metadata": {"name": "b"}, "spec": {"color": "red"}}]});
    let (ok, out, err) = server.try_kubectl("apply -f -", &list.to_string()).await;
    assert!(
        ok && out.contains("configmap/a created") && out.contains("crontab.example.com/b created"),
        "{out}{err}"
    );
    let out = server.kubectl("api-resources -o wide --api-group=example.com").await;
    assert!(out.contains("create,delete,deletecollection,get,list,patch,update,watch"), "{out}");
    assert!(server.kubectl("api-versions").await.contains("example.com/v1"));
}

#[tokio::test]
async fn health_checks() {
    let server = Server::start().await;
    for path in ["/healthz", "/livez", "/readyz", "/readyz/etcd", "/livez/ping", "/healthz/log"] {
        let answer = server.asked(path, &[]).await;
        assert_eq!((answer.code.as_u16(), &answer.body), (200, &json!("ok")), "{path}");
    }
    assert_eq!(server.asked("/readyz/none", &[]).await.code, 404);
    let verbose = server.asked("/readyz?verbose", &[]).await.body;
    let text = verbose.as_str().unwrap();
    assert!(text.contains("[+]etcd ok\n") && text.ends_with("readyz check passed\n"), "{text}");
    let version = server.asked("/version/", &[]).await.body;
    assert_eq!((version["major"].as_str(), version["minor"].as_str()), (Some("1"), Some("36")));
}
