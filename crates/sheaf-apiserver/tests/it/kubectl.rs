//! The real kubectl.

use crate::harness::Server;

const MAP: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\n  labels:\n    app: x\ndata:\n  a: \"1\"\n";

#[tokio::test]
async fn get_shows_columns_and_whole_objects() {
    let server = Server::start().await;
    let (ok, _, err) = server.try_kubectl("create -f -", MAP).await;
    assert!(ok, "{err}");
    let out = server.kubectl("get cm m -o wide").await;
    assert!(out.starts_with("NAME"), "{out}");
    assert!(out.contains("DATA"), "{out}");
    assert_eq!(server.kubectl("get cm m -o jsonpath={.data.a}").await, "1");
    assert!(server.kubectl("get cm -A --show-labels").await.contains("app=x"));
    assert!(server.kubectl("get cm m -o yaml").await.contains("kind: ConfigMap"));
    let out = server.kubectl("get ns").await;
    assert!(out.contains("kube-system") && out.contains("Active"), "{out}");
    assert!(server.kubectl("api-resources").await.contains("virtualmachines"));
    assert!(server.kubectl("api-versions").await.contains("kubevirt.io/v1"));
    let out = server.kubectl("version").await;
    assert!(out.contains("v1.36.2+sheaf"), "{out}");
}

#[tokio::test]
async fn label_annotate_delete() {
    let server = Server::start().await;
    server.try_kubectl("create -f -", MAP).await;
    server.kubectl("label cm m color=red").await;
    server.kubectl("annotate cm m note=hello").await;
    assert_eq!(server.kubectl("get cm m -o jsonpath={.metadata.labels.color}").await, "red");
    assert_eq!(server.kubectl("get cm m -o jsonpath={.metadata.annotations.note}").await, "hello");
    assert!(server.kubectl("delete cm m").await.contains("deleted"));
    let (ok, _, err) = server.try_kubectl("get cm m", "").await;
    assert!(!ok && err.contains("NotFound"), "{err}");
}
