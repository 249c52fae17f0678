//! Ways to a cluster, and what is said when there is none; tokens; kubeconfigs; pipes.

use std::process::Stdio;

use crate::cluster::Cluster;

#[test]
fn tokens_let_machines_join() {
    let Some(cluster) = Cluster::start("tokens") else { return };
    let token = cluster.sheaf(&["token", "--ttl", "1h"]).ends(0);
    assert_eq!(token.err, "", "nothing but the token where nobody watches");
    let parts: Vec<&str> = token.out.trim_end().split('.').collect();
    assert_eq!(parts.iter().map(|p| p.len()).collect::<Vec<_>>(), [64, 6, 16], "{token:#?}");
    // The server knows it: a kubeconfig with it is somebody, who may do little.
    let bearer = format!("{}.{}", parts[1], parts[2]);
    let text = std::fs::read_to_string(cluster.data().join("admin.kubeconfig")).expect("the kubeconfig");
    let with = |token: &str| {
        let kept = text.lines().filter(|l| !l.trim_start().starts_with("client-"));
        let lines: Vec<&str> = kept.collect();
        cluster.file("token.kubeconfig", format!("{}\n    token: {token}\n", lines.join("\n")))
    };
    let file = with(&bearer);
    let file = file.to_string_lossy();
    cluster.sheaf(&["vm", "list", "--kubeconfig", &file]).ends(1).says("system:bootstrap:");
    with("abcdef.0123456789abcdef");
    cluster.sheaf(&["vm", "list", "--kubeconfig", &file]).ends(1).says("does not accept the credentials");

    // Expired ones are removed by the next call.
    cluster.sheaf(&["token", "--ttl", "0"]).ends(0);
    let tokens =
        || cluster.kubectl(&["get", "secret", "-n", "kube-system", "-o", "name"]).out.lines().count();
    assert_eq!(tokens(), 2);
    cluster.sheaf(&["token"]).ends(0);
    assert_eq!(tokens(), 2, "one has expired, one was made");
}

#[test]
fn kubeconfigs_are_found_merged_and_missed() {
    let Some(cluster) = Cluster::start("ways") else { return };
    let config = cluster.home().join(".kube/config");
    cluster.sheaf(&["kubeconfig", "--merge"]).ends(0).says("has the context sheaf");
    cluster.sheaf(&["kubeconfig", "--merge"]).ends(0).says("had already");
    let mut kubectl = cluster.command("kubectl");
    let output =
        kubectl.env_remove("KUBECONFIG").args(["get", "nodes", "-o", "name"]).output().expect("kubectl");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "node/n1\n", "{output:?}");
    let elsewhere = cluster.sheaf(&["kubeconfig", "--server", "https://10.0.0.1:6443"]).ends(0).out;
    assert!(elsewhere.contains("server: https://10.0.0.1:6443\n"), "{elsewhere}");
    assert!(elsewhere.lines().all(|l| !l.ends_with(">-")), "{elsewhere}");

    let mut lost = cluster.command(env!("CARGO_BIN_EXE_sheaf"));
    lost.env("SHEAF_DATA_DIR", "/nonexistent/d")
        .env("KUBECONFIG", "/nonexistent/k")
        .env("HOME", "/nonexistent/h");
    let output = lost.args(["vm", "list"]).output().expect("sheaf");
    let said = String::from_utf8_lossy(&output.stderr);
    for tried in
        ["/nonexistent/k: no such file", "/nonexistent/d/admin.kubeconfig", "/nonexistent/h/.kube/config"]
    {
        assert!(said.contains(tried), "{said}");
    }
    let gone = std::fs::read_to_string(&config).expect("the merged file").replace(":6443", ":6444");
    let gone = cluster.file("gone.kubeconfig", gone);
    let done = cluster.sheaf(&["status", "--kubeconfig", &gone.to_string_lossy()]).ends(1);
    assert!(done.err.contains("cannot reach the server https://127.0.0.1:6444"), "{done:#?}");
    assert!(done.err.contains("onnection refused"), "{done:#?}");
}

#[test]
fn pipes_and_scripts() {
    let Some(cluster) = Cluster::start("pipes") else { return };
    // A reader that has gone is no error, and nothing is said about it.
    let mut child = cluster
        .command(env!("CARGO_BIN_EXE_sheaf"))
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sheaf");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the end");
    assert_eq!(output.stderr, b"", "{output:?}");
    assert_eq!(output.status.code(), Some(0));
    let script = cluster.sheaf(&["completion", "bash"]).ends(0).out;
    let file = cluster.file("completion", script);
    let mut bash = cluster.command("bash");
    assert!(bash.args(["-n".as_ref(), file.as_os_str()]).status().expect("bash").success());
    cluster.sheaf(&["console", "nobody", "--timeout", "1s"]).ends(3).says("there is no VM nobody");
    cluster.sheaf(&["ssh", "me@nobody"]).ends(3).says("there is no VM nobody");
    cluster.sheaf(&["scp", "a", "me@nobody:b"]).ends(3).says("there is no VM nobody");
    cluster.sheaf(&["scp", "a", "b"]).ends(2).says("none of the paths is in a VM");
    let both = ["vm", "create", "a", "--instancetype", "u1.small", "--cpus", "2"];
    cluster.sheaf(&both).ends(2).says("cannot be used with");
    cluster.sheaf(&["port-forward", "nobody", "x"]).ends(2).says("is no port");
    cluster.sheaf(&["port-forward", "--stdio", "nobody", "22"]).ends(3).says("nobody");
    cluster.sheaf(&["vnc", "nobody", "--proxy-only"]).ends(3).says("there is no VM nobody");
}
