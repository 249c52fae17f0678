//! MutatingAdmissionPolicies.

use serde_json::{Value, json};

use crate::harness::{Answer, Server, eventually};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn applied(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn patched(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

/// Makes a policy over the objects of a resource that ask for it by a label, and a binding that adds nothing.
async fn bound(server: &Server, name: &str, (group, resource): (&str, &str), spec: Value) -> Answer {
    let rule = json!({"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [resource]});
    let mut whole = json!({"matchConstraints": {"resourceRules": [rule],
        "objectSelector": {"matchLabels": {"policy": name}}}, "reinvocationPolicy": "Never"});
    for (key, value) in spec.as_object().unwrap() {
        whole[key.as_str()] = value.clone();
    }
    let policy = json!({"metadata": {"name": name}, "spec": whole});
    let made = server.call("POST", &format!("{GROUP}/mutatingadmissionpolicies"), policy).await;
    if made.code == 201 {
        assert_eq!(made.warnings(), [""; 0]);
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
        let at = format!("{GROUP}/mutatingadmissionpolicybindings");
        let made = server.call("POST", &at, binding).await;
        assert_eq!(made.code, 201, "{:#}", made.body);
    }
    made
}

fn deployment(name: &str, policy: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"policy": policy}}, "spec": {
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

fn map(name: &str, policy: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"policy": policy}}, "data": {"a": "1"}})
}

#[tokio::test]
async fn a_part_is_applied_and_a_patch_carried_out() {
    let server = Server::start().await;
    let sidecar = r#"Object{spec: Object.spec{replicas: variables.wanted, template: Object.spec.template{
        spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: "side", image: "s"}]}}}}"#;
    let label = r#"[JSONPatch{op: "add", path: "/metadata/labels/" + jsonpatch.escapeKey("x.io/by"), value: string(object.spec.replicas)}]"#;
    let spec = json!({"variables": [{"name": "wanted", "expression": "object.spec.replicas + 2"}],
        "mutations": [applied(sidecar), patched(label)],
        "matchConditions": [{"name": "not-that-one", "expression": "object.metadata.name != 'left-alone'"}]});
    let made = bound(&server, "sidecar", ("apps", "deployments"), spec).await;
    assert_eq!(made.code, 201, "{:#}", made.body);
    eventually("the policy is in force", async || {
        let path = format!("{DEPLOYMENTS}?dryRun=All");
        let made = server.call("POST", &path, deployment("d", "sidecar")).await;
        if made.body["spec"]["replicas"] == 3 { Ok(()) } else { Err(format!("{:#}", made.body)) }
    })
    .await;
    let made = server.call("POST", DEPLOYMENTS, deployment("d", "sidecar")).await;
    let names: Vec<&str> = made.body["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["c", "side"], "{:#}", made.body);
    let side = &made.body["spec"]["template"]["spec"]["containers"][1];
    assert_eq!(side["terminationMessagePolicy"], "File", "what is added is filled in too: {side}");
    assert_eq!(made.body["metadata"]["labels"]["x.io/by"], "3", "the second sees what the first did");
    for other in [deployment("e", "none"), deployment("left-alone", "sidecar")] {
        let made = server.call("POST", DEPLOYMENTS, other).await;
        assert_eq!(made.body["spec"]["replicas"], 1, "{:#}", made.body);
    }
}

#[tokio::test]
async fn one_that_cannot_decide_refuses_unless_it_may_be_ignored() {
    let server = Server::start().await;
    let broken = json!({"mutations": [applied("Object{data: {\"b\": object.none.value}}")]});
    assert_eq!(bound(&server, "broken", ("", "configmaps"), broken.clone()).await.code, 201);
    let mut ignored = broken;
    ignored["failurePolicy"] = json!("Ignore");
    assert_eq!(bound(&server, "ignored", ("", "configmaps"), ignored).await.code, 201);
    eventually("the policy is in force", async || {
        let refused = server.call("POST", &format!("{MAPS}?dryRun=All"), map("m", "broken")).await;
        let why = "policy 'broken' with binding 'broken' denied request: no such key: none";
        let told = refused.code == 422 && refused.text("/message").contains(why);
        if told { Ok(()) } else { Err(format!("{:#}", refused.body)) }
    })
    .await;
    let made = server.call("POST", MAPS, map("m", "ignored")).await;
    assert_eq!((made.code.as_u16(), &made.body["data"]), (201, &json!({"a": "1"})), "{:#}", made.body);
    for (mutation, field) in [
        (applied("Object{data: "), "spec.mutations[0].applyConfiguration.expression"),
        (applied("Nothing{}"), "spec.mutations[0].applyConfiguration.expression"),
        (patched(""), "spec.mutations[0].jsonPatch.expression"),
        (json!({"patchType": "Merge"}), "spec.mutations[0].patchType"),
    ] {
        let refused = bound(&server, "wrong", ("", "configmaps"), json!({"mutations": [mutation]})).await;
        assert_eq!(
            (refused.code.as_u16(), refused.text("/details/causes/0/field")),
            (422, field),
            "{:#}",
            refused.body
        );
    }
}

#[tokio::test]
async fn one_that_wants_to_looks_again_after_others() {
    let server = Server::start().await;
    let all = json!({"objectSelector": {}});
    for (name, expression, again) in [
        ("a-counts", r#"Object{data: {"count": string(size(object.data))}}"#, "IfNeeded"),
        ("b-adds", r#"Object{data: {"more": "1"}}"#, "Never"),
    ] {
        let mut spec = json!({"mutations": [applied(expression)], "reinvocationPolicy": again});
        let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]});
        spec["matchConstraints"] = json!({"resourceRules": [rule], "objectSelector": all["objectSelector"],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}});
        assert_eq!(bound(&server, name, ("", "configmaps"), spec).await.code, 201);
    }
    eventually("both have looked", async || {
        let made = server.call("POST", &format!("{MAPS}?dryRun=All"), map("m", "x")).await;
        // First there is one; then its own count and another are there too.
        let wanted = json!({"a": "1", "more": "1", "count": "3"});
        if made.body["data"] == wanted { Ok(()) } else { Err(format!("{:#}", made.body)) }
    })
    .await;
}
