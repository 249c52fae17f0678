//! Bodies in protobuf: what the real kubectl generates, and what has no such form.

use serde_json::{Value, json};

use crate::harness::Server;

/// Whether a stored value has all that is wanted.
fn has(got: &Value, wanted: &Value) -> bool {
    match (got, wanted) {
        (Value::Object(got), Value::Object(wanted)) => {
            wanted.iter().all(|(key, w)| got.get(key).is_some_and(|g| has(g, w)))
        }
        (Value::Array(got), Value::Array(wanted)) => {
            got.len() == wanted.len() && got.iter().zip(wanted).all(|(g, w)| has(g, w))
        }
        (got, wanted) => got == wanted,
    }
}

/// Everything that `kubectl create` can make, of kinds that are served: it arrives as it would in JSON.
#[tokio::test]
async fn kubectl_creates() {
    let server = Server::start().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["x".to_string()]).unwrap().self_signed(&key).unwrap();
    let (cert, pem) = (server.dir.path().join("c.pem"), server.dir.path().join("k.pem"));
    std::fs::write(&cert, certificate.pem()).unwrap();
    std::fs::write(&pem, key.serialize_pem()).unwrap();
    let tls = format!("secret tls t --cert={} --key={}", cert.display(), pem.display());
    for (args, path, wanted) in [
        ("namespace web", "/api/v1/namespaces/web", json!({"status": {"phase": "Active"}})),
        (&tls, "/api/v1/namespaces/default/secrets/t", json!({"type": "kubernetes.io/tls"})),
        (
            "secret docker-registry r --docker-server=h --docker-username=u --docker-password=p",
            "/api/v1/namespaces/default/secrets/r",
            json!({"type": "kubernetes.io/dockerconfigjson"}),
        ),
        (
            "configmap m --from-literal=a=1",
            "/api/v1/namespaces/default/configmaps/m",
            json!({"data": {"a": "1"}}),
        ),
        ("serviceaccount sa", "/api/v1/namespaces/default/serviceaccounts/sa", json!({})),
        (
            "role r --verb=get --verb=list --resource=pods --resource-name=p",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/r",
            json!({"rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"],
                "resourceNames": ["p"]}]}),
        ),
        (
            "clusterrole c --verb=get --non-resource-url=/x",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/c",
            json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
        ),
        (
            "rolebinding b --role=r --serviceaccount=default:sa --user=u",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings/b",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [
                {"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"},
                {"kind": "ServiceAccount", "name": "sa", "namespace": "default"}]}),
        ),
        (
            "deployment d --image=nginx:1 --replicas=0 --port=80",
            "/apis/apps/v1/namespaces/default/deployments/d",
            json!({"spec": {"replicas": 0, "template": {"spec": {"containers": [
                {"name": "nginx", "image": "nginx:1", "ports": [{"containerPort": 80}]}]}}}}),
        ),
        (
            "job j --image=busybox -- sh -c true",
            "/apis/batch/v1/namespaces/default/jobs/j",
            json!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [
                {"name": "j", "command": ["sh", "-c", "true"]}]}}}}),
        ),
        (
            "quota q --hard=cpu=1,memory=1G",
            "/api/v1/namespaces/default/resourcequotas/q",
            json!({"spec": {"hard": {"cpu": "1", "memory": "1G"}}}),
        ),
        (
            "priorityclass p --value=0 --description=x",
            "/apis/scheduling.k8s.io/v1/priorityclasses/p",
            json!({"value": 0, "description": "x", "preemptionPolicy": "PreemptLowerPriority"}),
        ),
        (
            "poddisruptionbudget b --selector=a=b --min-available=50%",
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets/b",
            json!({"spec": {"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}}}),
        ),
        (
            "service clusterip s --tcp=80:8080",
            "/api/v1/namespaces/default/services/s",
            json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}], "selector": {"app": "s"}}}),
        ),
        (
            "ingress i --rule=h/p*=s:80",
            "/apis/networking.k8s.io/v1/namespaces/default/ingresses/i",
            json!({"spec": {"rules": [{"host": "h"}]}}),
        ),
    ] {
        server.kubectl(&format!("create {args}")).await;
        let got = server.call("GET", path, None).await;
        assert!(has(&got.body, &wanted), "create {args}: {}", got.body);
    }
}

/// Cordons and taints are patches; pods that are deleted by a drain have options in protobuf.
#[tokio::test]
async fn kubectl_drains() {
    let server = Server::start().await;
    let node = json!({"metadata": {"name": "n1"}});
    assert_eq!(server.call("POST", "/api/v1/nodes", node).await.code, 201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    let made = server.call("POST", pods, pod).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    server.kubectl("taint node n1 a=b:NoSchedule").await;
    server.kubectl("cordon n1").await;
    let node = server.call("GET", "/api/v1/nodes/n1", None).await;
    assert_eq!(node.body["spec"]["unschedulable"], true, "{:?}", node.body);
    server.kubectl("drain n1 --force --disable-eviction --grace-period=0 --timeout=20s").await;
    assert_eq!(server.call("GET", &format!("{pods}/p"), None).await.code, 404);
}

/// A kind of our own has no such form: the client hears what it may send.
#[tokio::test]
async fn kinds_without_protobuf_are_told_so() {
    let server = Server::start().await;
    // The envelope of a VirtualMachine without fields.
    let body = "k8s\0\x0a\x20\x0a\x0ekubevirt.io/v1\x12\x0eVirtualMachine".to_string();
    let user = || sheaf_apiserver::UserInfo::new("admin", [sheaf_apiserver::authn::MASTERS]);
    let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
    for (content_type, code, says) in [
        ("application/vnd.kubernetes.protobuf", 415, "application/json, application/yaml"),
        ("application/cbor", 415, "application/vnd.kubernetes.protobuf"),
        ("application/json", 400, "JSON"),
    ] {
        let headers = [("content-type", content_type)];
        let answer = server.send_as(user(), "POST", path, &headers, body.clone()).await;
        assert_eq!(answer.code, code, "{content_type}: {:?}", answer.body);
        assert!(answer.text("/message").contains(says), "{:?}", answer.body);
    }
    let headers = [("content-type", "application/vnd.kubernetes.protobuf")];
    let path = "/api/v1/namespaces/default/configmaps";
    let answer = server.send_as(user(), "POST", path, &headers, "k8s\0\x0a\x7f".into()).await;
    assert_eq!(answer.code, 400, "{:?}", answer.body);
}
