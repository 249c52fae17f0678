//! What Kubernetes' own conformance tests look at and no other test here does: pods and their accounts, the paths on
//! which parts of them change, policies, strict errors of a typed body, statuses without what their schema asks for.

use serde_json::{Value, json};

use crate::harness::{Server, eventually};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str, resources: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

#[tokio::test]
async fn a_pod_has_its_account() {
    let server = Server::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let quiet = json!({"metadata": {"name": "quiet"}, "automountServiceAccountToken": false,
        "imagePullSecrets": [{"name": "registry"}]});
    assert_eq!(server.call("POST", accounts, quiet).await.code, 201);
    let made = server.call("POST", PODS, pod("a", json!({}))).await;
    assert_eq!(made.code, 201, "{:#}", made.body);
    let mount = made.text("/spec/containers/0/volumeMounts/0/mountPath");
    assert_eq!(mount, "/var/run/secrets/kubernetes.io/serviceaccount");
    let volume = made.text("/spec/volumes/0/name");
    assert!(volume.starts_with("kube-api-access-") && volume.len() == 21, "{volume}");
    assert_eq!(volume, made.text("/spec/containers/0/volumeMounts/0/name"));
    assert_eq!(made.text("/spec/serviceAccountName"), "default");

    let mut other = pod("b", json!({}));
    other["spec"]["serviceAccountName"] = json!("quiet");
    let made = server.call("POST", PODS, other.clone()).await;
    assert_eq!(made.body["spec"]["containers"][0].get("volumeMounts"), None, "{:#}", made.body);
    assert_eq!(made.text("/spec/imagePullSecrets/0/name"), "registry");

    other["metadata"]["name"] = json!("c");
    other["spec"]["serviceAccountName"] = json!("none");
    let refused = server.call("POST", PODS, other).await;
    let why = "pods \"c\" is forbidden: error looking up service account default/none: serviceaccount \"none\" not found";
    assert_eq!((refused.code.as_u16(), refused.text("/message")), (403, why));
}

#[tokio::test]
async fn parts_of_a_pod_change_on_their_own_paths() {
    let server = Server::start().await;
    let cpu = |n: &str| json!({"requests": {"cpu": n, "memory": "1Gi"}});
    let made = server.call("POST", PODS, pod("a", cpu("1"))).await;
    assert_eq!(made.code, 201, "{:#}", made.body);
    let at = format!("{PODS}/a");
    let change = json!({"spec": {"containers": [{"name": "c", "resources": cpu("2")}]}});
    let refused = server.patch(&at, "strategic-merge", change.clone()).await;
    assert_eq!((refused.code.as_u16(), refused.text("/reason")), (422, "Invalid"));
    assert!(refused.text("/message").contains("spec.containers[0].resources"), "{:#}", refused.body);
    let resized = server.patch(&format!("{at}/resize"), "strategic-merge", change).await;
    assert_eq!(resized.code, 200, "{:#}", resized.body);
    assert_eq!(resized.text("/spec/containers/0/resources/requests/cpu"), "2");
    assert_eq!(resized.body["metadata"]["generation"], 2);

    let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "busybox"}]}});
    let refused = server.patch(&at, "strategic-merge", debug.clone()).await;
    assert_eq!(refused.code, 422, "{:#}", refused.body);
    let added = server.patch(&format!("{at}/ephemeralcontainers"), "strategic-merge", debug).await;
    assert_eq!(added.text("/spec/ephemeralContainers/0/name"), "debug", "{:#}", added.body);
    let gone = json!([{"op": "remove", "path": "/spec/ephemeralContainers/0"}]);
    let refused = server.patch(&format!("{at}/ephemeralcontainers"), "json", gone).await;
    assert!(refused.text("/message").contains("may not be removed"), "{:#}", refused.body);
}

#[tokio::test]
async fn a_typed_body_names_unknown_and_duplicate_fields() {
    let server = Server::start().await;
    let body = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"unknownField":"foo",
        "replicas":2,"replicas":3,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},
        "spec":{"containers":[{"name":"n","image":"i"}]}}}}"#;
    let path = "/apis/apps/v1/namespaces/default/deployments?fieldValidation=Strict";
    let user = sheaf_apiserver::UserInfo::new("admin", [sheaf_apiserver::authn::MASTERS]);
    let headers = [("content-type", "application/json")];
    let refused = server.send_as(user, "POST", path, &headers, body.into()).await;
    let why = "strict decoding error: unknown field \"spec.unknownField\", duplicate field \"spec.replicas\"";
    assert!(refused.code == 400 && refused.text("/message").ends_with(why), "{:#}", refused.body);
}

#[tokio::test]
async fn a_status_may_lack_what_its_schema_requires() {
    let server = Server::start().await;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let crd = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Cluster",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    assert_eq!(server.call("POST", crds, crd).await.code, 201);
    let patch = json!({"status": {"conditions": [{"message": "patched"}]}});
    let at = format!("{crds}/things.example.com/status");
    let patched = server.patch(&at, "merge", patch).await;
    assert_eq!(patched.text("/status/conditions/0/message"), "patched", "{:#}", patched.body);
}

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn a_policy_judges_what_its_bindings_name() {
    let server = Server::start().await;
    let policy = json!({"metadata": {"name": "sizes"}, "spec": {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
            "operations": ["CREATE", "UPDATE", "DELETE"], "resources": ["configmaps"]}],
            "objectSelector": {"matchLabels": {"judged": "yes"}}},
        "variables": [{"name": "n", "expression": "request.operation == 'DELETE' ? 0 : size(object.data)"}],
        "validations": [{"expression": "variables.n <= int(params.data.max)",
            "messageExpression": "'at most ' + params.data.max + ' in ' + namespaceObject.metadata.name"},
            {"expression": "request.operation != 'DELETE' || authorizer.group('').resource('secrets').check('x').allowed()",
             "message": "stays", "reason": "Forbidden"}]}});
    let mut wrong = policy.clone();
    wrong["spec"]["validations"][0]["expression"] = json!("variables.n <=");
    let refused = server.call("POST", POLICIES, wrong).await;
    assert_eq!(refused.code, 422, "{:#}", refused.body);
    assert_eq!(refused.text("/details/causes/0/field"), "spec.validations[0].expression");
    assert_eq!(server.call("POST", POLICIES, policy).await.code, 201);

    let map = |name: &str, count: usize| {
        let data: serde_json::Map<String, Value> =
            (0..count).map(|i| (format!("k{i}"), json!("v"))).collect();
        json!({"metadata": {"name": name, "labels": {"judged": "yes"}}, "data": data})
    };
    assert_eq!(
        server.call("POST", MAPS, map("free", 5)).await.code,
        201,
        "without a binding nothing is judged"
    );
    let limits = json!({"metadata": {"name": "limits"}, "data": {"max": "2"}});
    assert_eq!(server.call("POST", MAPS, limits).await.code, 201);
    let binding = json!({"metadata": {"name": "sizes-here"}, "spec": {"policyName": "sizes",
        "paramRef": {"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"},
        "validationActions": ["Deny", "Audit"]}});
    assert_eq!(server.call("POST", BINDINGS, binding).await.code, 201);
    eventually("the policy is in force", async || {
        let refused = server.call("POST", &format!("{MAPS}?dryRun=All"), map("much", 3)).await;
        let why = "configmaps \"much\" is forbidden: ValidatingAdmissionPolicy 'sizes' with binding 'sizes-here' denied \
                   request: at most 2 in default";
        match (refused.code.as_u16(), refused.text("/reason"), refused.text("/message")) {
            (422, "Invalid", message) if message == why => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(server.call("POST", MAPS, map("few", 2)).await.code, 201);
    let grown = server.call("PUT", &format!("{MAPS}/few"), map("few", 3)).await;
    assert_eq!(grown.code, 422, "{:#}", grown.body);
    assert_eq!(
        server.call("DELETE", &format!("{MAPS}/few"), None).await.code,
        200,
        "a master may everything"
    );

    // Warned of instead, and parameters that are gone refuse.
    let warn = json!({"spec": {"validationActions": ["Warn"]}});
    assert_eq!(server.patch(&format!("{BINDINGS}/sizes-here"), "merge", warn).await.code, 200);
    eventually("the binding warns", async || {
        let made = server.call("POST", &format!("{MAPS}?dryRun=All"), map("much", 3)).await;
        let warned = made.warnings();
        let told = warned.iter().any(|w| w.contains("with binding 'sizes-here': at most 2 in default"));
        if made.code == 201 && told { Ok(()) } else { Err(format!("{} {warned:?}", made.code)) }
    })
    .await;
    let deny = json!({"spec": {"validationActions": ["Deny"]}});
    assert_eq!(server.patch(&format!("{BINDINGS}/sizes-here"), "merge", deny).await.code, 200);
    assert_eq!(server.call("DELETE", &format!("{MAPS}/limits"), None).await.code, 200);
    eventually("missing parameters refuse", async || {
        let refused = server.call("POST", &format!("{MAPS}?dryRun=All"), map("few", 1)).await;
        let told = refused.text("/message").contains("no params found for policy binding");
        if told { Ok(()) } else { Err(format!("{:#}", refused.body)) }
    })
    .await;
}
