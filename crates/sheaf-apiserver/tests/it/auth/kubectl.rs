//! The real kubectl on who may what.

use crate::harness::{Server, eventually};

#[tokio::test]
async fn can_i() {
    let server = Server::start().await;
    server.kubectl("create role reader --verb=get,list --resource=configmaps,pods/log").await;
    server.kubectl("create rolebinding joe-reads --role=reader --user=joe").await;
    server.kubectl("create clusterrole lister --verb=list --resource=nodes").await;
    server.kubectl("create clusterrolebinding staff-lists --clusterrole=lister --group=staff").await;
    server.kubectl("create serviceaccount robot").await;
    server.kubectl("create rolebinding robot-edits --clusterrole=edit --serviceaccount=default:robot").await;
    // Arguments, and what kubectl says.
    for (args, expected) in [
        ("get configmaps --as joe", "yes"),
        ("get configmaps/x --as joe", "yes"),
        ("get pods --subresource=log --as joe", "yes"),
        ("create configmaps --as joe", "no"),
        ("get configmaps --as joe -n kube-system", "no"),
        ("get configmaps --as joe -A", "no"),
        ("list nodes --as joe", "no"),
        ("list nodes --as joe --as-group staff", "yes"),
        ("create vm --as system:serviceaccount:default:robot", "yes"),
        ("create roles --as system:serviceaccount:default:robot", "no"),
        ("get /healthz --as joe", "yes"),
        ("get /metrics --as joe", "no"),
        ("* * ", "yes"),
        ("* * --as joe", "no"),
    ] {
        let (ok, out, err) = server.try_kubectl(&format!("auth can-i {args}"), "").await;
        assert_eq!(
            (out.lines().next().unwrap_or_default().split(' ').next(), ok),
            (Some(expected), expected == "yes"),
            "{args}: {out} {err}"
        );
    }
    let list = server.kubectl("auth can-i --list --as joe").await;
    for line in ["configmaps", "pods/log", "selfsubjectaccessreviews.authorization.k8s.io", "[/healthz]"] {
        assert!(list.contains(line), "{line}: {list}");
    }
    let (_, out, _) = server.try_kubectl("get nodes --as joe", "").await;
    assert_eq!(out, "");
    let (_, _, err) = server.try_kubectl("get nodes --as joe", "").await;
    assert_eq!(
        err.trim(),
        "Error from server (Forbidden): nodes is forbidden: User \"joe\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"
    );
}

#[tokio::test]
async fn tokens_and_who_comes_with_them() {
    let server = Server::start().await;
    server.kubectl("create serviceaccount robot").await;
    let token = server
        .kubectl("create token robot --duration=15m --audience=https://kubernetes.default.svc.cluster.local")
        .await;
    let token = token.trim();
    let mut command = server.command();
    command.args(["config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let (_, url, _) = crate::harness::run(command, String::new()).await;
    // Without the administrator's certificate, which would win.
    let bare = server.dir.path().join("bare.kubeconfig");
    std::fs::write(&bare, "").unwrap();
    let mut command = std::process::Command::new("kubectl");
    command.env("KUBECONFIG", &bare).env("HOME", server.dir.path());
    command.args(["--server", &url, "--insecure-skip-tls-verify", "--token", token, "auth", "whoami"]);
    let (ok, out, err) = crate::harness::run(command, String::new()).await;
    assert!(
        ok && out.contains("system:serviceaccount:default:robot") && out.contains("JTI="),
        "{out}\n{err}"
    );
    let whoami = server.kubectl("auth whoami -o jsonpath={.status.userInfo.username}").await;
    assert_eq!(whoami, "sheaf-admin");
    let (ok, _, err) = server.try_kubectl("create token robot --duration=1m", "").await;
    assert!(!ok && err.contains("may not specify a duration less than 10 minutes"), "{err}");
    let bound = server.kubectl("create secret generic s").await;
    assert!(bound.contains("created"));
    server.kubectl("create token robot --bound-object-kind=Secret --bound-object-name=s").await;
}

#[tokio::test]
async fn reconcile_and_aggregate() {
    let server = Server::start().await;
    server.kubectl("create clusterrole sum --aggregation-rule=example.com/sum=true").await;
    server.kubectl("create clusterrole part --verb=get --resource=leases.coordination.k8s.io").await;
    server.kubectl("label clusterrole part example.com/sum=true").await;
    eventually("the sum has the part's rules", async || {
        let rules = server.kubectl("get clusterrole sum -o jsonpath={.rules}").await;
        if rules.contains("leases") { Ok(()) } else { Err(rules) }
    })
    .await;
    let manifest = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: part\nrules:\n- apiGroups: [\"\"]\n  resources: [configmaps]\n  verbs: [list]\n---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata:\n  name: parts\nroleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: ClusterRole\n  name: part\nsubjects:\n- kind: Group\n  name: staff\n  apiGroup: rbac.authorization.k8s.io\n";
    let (ok, out, err) = server.try_kubectl("auth reconcile -f -", manifest).await;
    assert!(ok && out.contains("reconciled"), "{out}\n{err}");
    let rules = server.kubectl("get clusterrole part -o jsonpath={.rules}").await;
    assert!(rules.contains("configmaps") && rules.contains("leases"), "{rules}");
    let (ok, out, err) = server.try_kubectl("auth reconcile --remove-extra-permissions -f -", manifest).await;
    assert!(ok, "{out}\n{err}");
    assert!(!server.kubectl("get clusterrole part -o jsonpath={.rules}").await.contains("leases"));
    assert!(server.kubectl("describe clusterrolebinding parts").await.contains("staff"));
    assert!(
        server
            .kubectl("get rolebindings,clusterroles -A")
            .await
            .contains("clusterrole.rbac.authorization.k8s.io/view")
    );
}
