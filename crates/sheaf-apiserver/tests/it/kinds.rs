//! Every kind of Kubernetes that is served: made, read, changed, listed, deleted, each with the least that it needs.

use serde_json::{Value, json};

use crate::harness::Server;

const POD: &str = "{metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}";

/// `apiVersion Kind` and the rest of a manifest.
fn manifests() -> Vec<(&'static str, &'static str, String)> {
    let given = |text: &str| text.replace("POD", POD);
    let rows = [
        ("v1", "ConfigMap", "{data: {a: b}}"),
        ("v1", "Secret", "{stringData: {a: b}}"),
        ("v1", "ServiceAccount", "{}"),
        ("v1", "Service", "{spec: {ports: [{port: 80}]}}"),
        ("v1", "Endpoints", "{subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}]}"),
        ("v1", "Event", "{involvedObject: {kind: Pod, namespace: default, name: p}}"),
        ("v1", "LimitRange", "{spec: {limits: [{type: Container, max: {storage: 1Gi}}]}}"),
        ("v1", "Namespace", "{}"),
        ("v1", "Node", "{}"),
        (
            "v1",
            "PersistentVolumeClaim",
            "{spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}",
        ),
        (
            "v1",
            "PersistentVolume",
            "{spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], nfs: {server: s, path: /p}}}",
        ),
        ("v1", "Pod", "{spec: {containers: [{name: c, image: i}]}}"),
        ("v1", "PodTemplate", "{template: POD}"),
        ("v1", "ReplicationController", "{spec: {template: POD}}"),
        ("v1", "ResourceQuota", "{spec: {hard: {count/widgets.example.com: 5}}}"),
        ("apps/v1", "Deployment", "{spec: {selector: {matchLabels: {a: b}}, template: POD}}"),
        ("apps/v1", "ReplicaSet", "{spec: {selector: {matchLabels: {a: b}}, template: POD}}"),
        (
            "apps/v1",
            "StatefulSet",
            "{spec: {serviceName: s, selector: {matchLabels: {a: b}}, template: POD}}",
        ),
        ("apps/v1", "DaemonSet", "{spec: {selector: {matchLabels: {a: b}}, template: POD}}"),
        ("apps/v1", "ControllerRevision", "{revision: 1, data: {a: 1}}"),
        (
            "batch/v1",
            "Job",
            "{spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}",
        ),
        (
            "batch/v1",
            "CronJob",
            "{spec: {schedule: '@daily', jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}}",
        ),
        ("policy/v1", "PodDisruptionBudget", "{spec: {minAvailable: 1, selector: {}}}"),
        (
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            "{spec: {maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: d}}}",
        ),
        (
            "autoscaling/v1",
            "HorizontalPodAutoscaler",
            "{metadata: {name: one}, spec: {maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: d}}}",
        ),
        ("scheduling.k8s.io/v1", "PriorityClass", "{value: 5}"),
        (
            "networking.k8s.io/v1",
            "Ingress",
            "{spec: {defaultBackend: {service: {name: s, port: {number: 80}}}}}",
        ),
        ("networking.k8s.io/v1", "IngressClass", "{spec: {controller: x.io/y}}"),
        ("networking.k8s.io/v1", "NetworkPolicy", "{spec: {podSelector: {}}}"),
        (
            "networking.k8s.io/v1",
            "IPAddress",
            "{metadata: {name: 10.0.0.9}, spec: {parentRef: {resource: services, name: s, namespace: default}}}",
        ),
        ("networking.k8s.io/v1", "ServiceCIDR", "{spec: {cidrs: [10.9.0.0/16]}}"),
        ("discovery.k8s.io/v1", "EndpointSlice", "{addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}"),
        ("node.k8s.io/v1", "RuntimeClass", "{handler: h}"),
        ("storage.k8s.io/v1", "StorageClass", "{provisioner: x.io/y}"),
        ("storage.k8s.io/v1", "VolumeAttributesClass", "{driverName: x.io}"),
        (
            "storage.k8s.io/v1",
            "VolumeAttachment",
            "{spec: {attacher: a, nodeName: node, source: {persistentVolumeName: v}}}",
        ),
        ("storage.k8s.io/v1", "CSIDriver", "{spec: {}}"),
        ("storage.k8s.io/v1", "CSINode", "{spec: {drivers: [{name: d, nodeID: node}]}}"),
        ("storage.k8s.io/v1", "CSIStorageCapacity", "{storageClassName: c}"),
        ("coordination.k8s.io/v1", "Lease", "{spec: {holderIdentity: h, leaseDurationSeconds: 10}}"),
        (
            "rbac.authorization.k8s.io/v1",
            "Role",
            "{rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]}",
        ),
        ("rbac.authorization.k8s.io/v1", "ClusterRole", "{rules: [{nonResourceURLs: [/x], verbs: [get]}]}"),
        (
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            "{roleRef: {kind: Role, name: r}, subjects: [{kind: User, name: u}]}",
        ),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "{roleRef: {kind: ClusterRole, name: r}}"),
        (
            "admissionregistration.k8s.io/v1",
            "ValidatingAdmissionPolicy",
            "{spec: {matchConstraints: {resourceRules: [{operations: [CREATE], apiGroups: [x.io], apiVersions: [v1], resources: [x]}]}, validations: [{expression: 'true'}]}}",
        ),
        (
            "admissionregistration.k8s.io/v1",
            "ValidatingAdmissionPolicyBinding",
            "{spec: {policyName: p, validationActions: [Deny]}}",
        ),
        ("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicyBinding", "{spec: {policyName: p}}"),
    ];
    rows.into_iter().map(|(version, kind, rest)| (version, kind, given(rest))).collect()
}

fn manifest(version: &str, kind: &str, rest: &str) -> Value {
    let mut object: Value = serde_saphyr::from_str(rest).unwrap_or_else(|e| panic!("{kind}: {e}"));
    object["apiVersion"] = json!(version);
    object["kind"] = json!(kind);
    if object["metadata"]["name"].is_null() {
        object["metadata"]["name"] = json!("thing");
    }
    object
}

#[tokio::test]
async fn every_kind_through_its_life() {
    let server = Server::start().await;
    let kinds = sheaf_api::kinds();
    for (version, kind, rest) in manifests() {
        let row = kinds.iter().find(|k| k.api_version() == version && k.kind == kind);
        let row = row.unwrap_or_else(|| panic!("{version} {kind} is not served"));
        let base = if row.group.is_empty() { "/api/v1".to_string() } else { format!("/apis/{version}") };
        let namespaced = row.scope == sheaf_meta::kind::Scope::Namespaced;
        let place = if namespaced { "/namespaces/default" } else { "" };
        let collection = format!("{base}{place}/{}", row.plural);
        let object = manifest(version, kind, &rest);
        let one = format!("{collection}/{}", object["metadata"]["name"].as_str().unwrap());
        let made = server.call("POST", &format!("{collection}?fieldValidation=Strict"), object).await;
        assert_eq!(made.code, 201, "{kind}: {:#}", made.body);
        assert_eq!((made.text("/apiVersion"), made.text("/kind")), (version, kind));
        let generation = made.body.pointer("/metadata/generation").and_then(Value::as_i64);
        assert_eq!(generation, row.generation.then_some(1), "{kind}");

        let read = server.call("GET", &one, None).await;
        assert_eq!(read.body, made.body, "{kind}: what was answered is what is stored");
        let again = server.call("PUT", &one, read.body.clone()).await;
        assert_eq!(again.code, 200, "{kind}: {:#}", again.body);
        assert_eq!(
            again.text("/metadata/resourceVersion"),
            read.text("/metadata/resourceVersion"),
            "{kind}: nothing changed"
        );
        let labelled =
            server.patch(&one, "strategic-merge", json!({"metadata": {"labels": {"x": "y"}}})).await;
        assert_eq!(labelled.body["metadata"]["labels"]["x"], "y", "{kind}: {:#}", labelled.body);
        if row.status_subresource {
            let status = server.call("GET", &format!("{one}/status"), None).await;
            assert_eq!(status.body["metadata"]["uid"], made.body["metadata"]["uid"], "{kind}");
        }
        let list = server.call("GET", &format!("{collection}?labelSelector=x%3Dy"), None).await;
        assert_eq!(list.text("/kind"), format!("{kind}List"));
        assert_eq!(list.body["items"].as_array().map(Vec::len), Some(1), "{kind}: {:#}", list.body);
        let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
        let table = server.send("GET", &collection, &accept, None).await;
        let columns = table.body["columnDefinitions"].as_array().map_or(0, Vec::len);
        let cells = table.body["rows"][0]["cells"].as_array().map_or(0, Vec::len);
        assert!(columns > 0 && columns == cells, "{kind}: {:#}", table.body);
        let params = json!({"propagationPolicy": "Background"});
        let gone = server.call("DELETE", &one, params).await;
        assert_eq!(gone.code, 200, "{kind}: {:#}", gone.body);
        if kind != "Namespace" {
            assert_eq!(server.call("GET", &one, None).await.code, 404, "{kind}");
        }
    }
}

#[tokio::test]
async fn events_are_seen_through_both_groups() {
    let server = Server::start().await;
    let (core, own) =
        ("/api/v1/namespaces/default/events", "/apis/events.k8s.io/v1/namespaces/default/events");
    let event = json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "namespace": "default", "name": "p"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "x.io/c", "reportingInstance": "i",
        "action": "A", "reason": "R", "type": "Normal", "note": "hello"});
    let made = server.call("POST", own, event).await;
    assert_eq!(made.code, 201, "{:#}", made.body);
    let seen = server.call("GET", &format!("{core}/e"), None).await;
    assert_eq!((seen.text("/message"), seen.text("/involvedObject/name")), ("hello", "p"));
    assert_eq!((seen.text("/apiVersion"), seen.text("/reportingComponent")), ("v1", "x.io/c"));
    assert_eq!(seen.body.get("note"), None);
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}});
    let patched = server.patch(&format!("{own}/e"), "merge", series).await;
    assert_eq!(patched.body["series"]["count"], 2, "{:#}", patched.body);
    assert_eq!(patched.text("/note"), "hello");
    for (path, selector) in [(core, "involvedObject.name%3Dp"), (own, "regarding.name%3Dp")] {
        let list = server.call("GET", &format!("{path}?fieldSelector={selector}"), None).await;
        assert_eq!(list.body["items"].as_array().map(Vec::len), Some(1), "{path}: {:#}", list.body);
        assert_eq!(list.body["items"][0]["series"]["count"], 2);
    }
    assert_eq!(server.call("DELETE", &format!("{core}/e"), None).await.code, 200);
    assert_eq!(server.call("GET", &format!("{own}/e"), None).await.code, 404);
}

#[tokio::test]
async fn autoscalers_are_seen_in_both_versions() {
    let server = Server::start().await;
    let path =
        |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
    let one = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 4, "targetCPUUtilizationPercentage": 60,
        "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
    let made = server.call("POST", &path("v1"), one).await;
    assert_eq!((made.code.as_u16(), &made.body["spec"]["targetCPUUtilizationPercentage"]), (201, &json!(60)));
    let two = server.call("GET", &format!("{}/h", path("v2")), None).await;
    assert_eq!(
        two.body["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 60,
        "{:#}",
        two.body
    );
    let patch = json!({"spec": {"metrics": [{"type": "Resource", "resource": {"name": "memory",
        "target": {"type": "AverageValue", "averageValue": "1Gi"}}}]}});
    assert_eq!(server.patch(&format!("{}/h", path("v2")), "merge", patch).await.code, 200);
    let back = server.call("GET", &format!("{}/h", path("v1")), None).await;
    assert_eq!(back.body["spec"].get("targetCPUUtilizationPercentage"), None);
    assert!(back.text("/metadata/annotations/autoscaling.alpha.kubernetes.io~1metrics").contains("memory"));
    let kept = server.call("PUT", &format!("{}/h", path("v1")), back.body.clone()).await;
    assert_eq!(kept.code, 200, "{:#}", kept.body);
    let two = server.call("GET", &format!("{}/h", path("v2")), None).await;
    assert_eq!(
        two.body["spec"]["metrics"][0]["resource"]["name"], "memory",
        "v1 keeps what it has no field for"
    );
    assert_eq!(server.kubectl("get hpa").await.lines().count(), 2);
}

/// What is refused is refused in words that name the field, over the API as in the table of rules.
#[tokio::test]
async fn wrong_objects_are_refused_with_causes() {
    let server = Server::start().await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": []}});
    let refused = server.call("POST", "/api/v1/namespaces/default/pods", pod).await;
    assert_eq!(refused.code, 422);
    assert_eq!(refused.text("/message"), "Pod \"p\" is invalid: spec.containers: Required value");
    assert_eq!(refused.text("/details/causes/0/field"), "spec.containers");
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    assert_eq!(server.call("POST", path, deployment).await.code, 201);
    let patch = json!({"spec": {"selector": {"matchLabels": {"x": "y"}}}});
    let refused = server.patch(&format!("{path}/d"), "merge", patch).await;
    assert_eq!(refused.code, 422);
    assert!(refused.text("/message").contains("spec.selector: Invalid value"), "{:#}", refused.body);
    assert!(refused.text("/message").contains("field is immutable"), "{:#}", refused.body);
}

/// Fields of selectors, with what they find.
#[tokio::test]
async fn fields_select_as_they_are_shown() {
    let server = Server::start().await;
    let nodes = "/api/v1/nodes";
    for (name, spec) in [
        ("open", json!({"unschedulable": false})),
        ("plain", json!({})),
        ("shut", json!({"unschedulable": true})),
    ] {
        let made = server.call("POST", nodes, json!({"metadata": {"name": name}, "spec": spec})).await;
        assert_eq!(made.code, 201, "{:#}", made.body);
    }
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"namespace": "default"}, "source": {"component": "c"}, "type": "Normal"});
    assert_eq!(server.call("POST", "/api/v1/namespaces/default/events", event).await.code, 201);
    let table: [(&str, &str, &[&str]); 6] = [
        (nodes, "spec.unschedulable=false", &["open", "plain"]),
        (nodes, "spec.unschedulable=true", &["shut"]),
        (nodes, "spec.unschedulable!=true", &["open", "plain"]),
        ("/api/v1/events", "source=c,type=Normal", &["e"]),
        ("/api/v1/events", "source=d", &[]),
        ("/apis/batch/v1/jobs", "status.successful=0", &[]),
    ];
    for (path, selector, want) in table {
        let list =
            server.call("GET", &format!("{path}?fieldSelector={}", selector.replace('=', "%3D")), None).await;
        let names: Vec<&str> = list.body["items"]
            .as_array()
            .unwrap_or_else(|| panic!("{selector}: {:#}", list.body))
            .iter()
            .filter_map(|o| o["metadata"]["name"].as_str())
            .collect();
        assert_eq!(names, want, "{selector}");
    }
}

#[tokio::test]
async fn machines_and_their_snapshots_are_seen_in_older_versions() {
    let server = Server::start().await;
    let vm = |version: &str, name: &str| {
        json!({"apiVersion": version, "kind": "VirtualMachine", "metadata": {"name": name},
            "spec": {"runStrategy": "Halted", "template": {"spec": {"domain": {"memory": {"guest": "64Mi"}, "devices": {}}}}}})
    };
    let path = |version: &str| format!("/apis/kubevirt.io/{version}/namespaces/default/virtualmachines");
    let made = server.call("POST", &path("v1alpha3"), vm("kubevirt.io/v1alpha3", "a")).await;
    assert_eq!(
        (made.code.as_u16(), made.text("/apiVersion")),
        (201, "kubevirt.io/v1alpha3"),
        "{:#}",
        made.body
    );
    let newer = server.call("GET", &format!("{}/a", path("v1")), None).await;
    assert_eq!(newer.text("/apiVersion"), "kubevirt.io/v1");
    assert_eq!(server.call("POST", &path("v1"), vm("kubevirt.io/v1", "b")).await.code, 201);
    let all = server.call("GET", &path("v1alpha3"), None).await;
    assert_eq!(all.body["items"].as_array().map(Vec::len), Some(2), "{:#}", all.body);
    assert_eq!(server.call("DELETE", &format!("{}/b", path("v1alpha3")), None).await.code, 200);
    for path in [
        "/apis/snapshot.kubevirt.io/v1alpha1/virtualmachinesnapshots",
        "/apis/snapshot.kubevirt.io/v1alpha1/virtualmachinerestores",
        "/apis/clone.kubevirt.io/v1alpha1/virtualmachineclones",
    ] {
        assert_eq!(server.call("GET", path, None).await.code, 200, "{path}");
    }
    let group = server.call("GET", "/apis/kubevirt.io", None).await;
    assert_eq!(group.text("/preferredVersion/version"), "v1", "{:#}", group.body);
}
