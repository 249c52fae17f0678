//! A VM that runs. Its disk is empty, so its firmware is all that ever runs in it, which is enough for its life cycle
//! and its streams; guests with a system are the lab's.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use crate::cluster::Cluster;

#[test]
fn a_life() {
    let Some(cluster) = Cluster::start("life") else { return };
    let created =
        cluster.sheaf(&["vm", "create", "a", "--memory", "128Mi", "--disk", "64Mi", "--timeout", "60s"]);
    created.ends(0).says("VM a runs on node n1");
    let listed = cluster.sheaf(&["vm", "list", "-o", "wide"]).ends(0).out;
    assert!(
        listed.lines().any(|l| l.starts_with("a ") && l.contains("Running") && l.contains("n1")),
        "{listed}"
    );

    cluster.sheaf(&["vm", "pause", "a", "--wait"]).ends(0).says("is paused");
    let status = cluster.sheaf(&["status", "-o", "json"]).ends(0).json();
    assert_eq!(status["virtualMachines"]["Paused"], 1, "{status}");
    assert_eq!(status["nodes"][0]["memoryBytes"]["promised"], 128 << 20, "{status}");
    cluster.sheaf(&["vm", "unpause", "a", "--wait"]).ends(0).says("runs");

    // The screen, as a viewer sees it.
    let mut vnc = cluster
        .command(env!("CARGO_BIN_EXE_sheaf"))
        .args(["vnc", "a", "--proxy-only"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("sheaf");
    let mut line = String::new();
    BufReader::new(vnc.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let port: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let hello = format!("exec 3<>/dev/tcp/127.0.0.1/{} && head -c 12 <&3", port["port"]);
    let output = cluster.command("timeout").args(["20", "bash", "-c", &hello]).output().expect("bash");
    assert_eq!(output.stdout, b"RFB 003.008\n", "{output:?}");
    vnc.kill().expect("the proxy ends");
    vnc.wait().expect("the proxy has ended");

    // The console on a terminal, which is raw meanwhile: its own key leaves, and all is as before.
    let sheaf = env!("CARGO_BIN_EXE_sheaf");
    let mut script = cluster
        .command("script")
        .args(["-qec", &format!("stty -g; {sheaf} console a; echo code $?; stty -g"), "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script; Debian's package is bsdutils");
    let mut shown = BufReader::new(script.stdout.take().expect("its output"));
    let mut modes = String::new();
    shown.read_line(&mut modes).expect("the terminal's modes");
    let mut line = String::new();
    shown.read_line(&mut line).expect("what the console says");
    assert!(line.contains("Ctrl-] leaves"), "{line}");
    script.stdin.as_mut().expect("its input").write_all(b"\r\x1d").expect("keys");
    let mut rest = String::new();
    shown.read_to_string(&mut rest).expect("the rest");
    assert!(rest.contains("Left.") && rest.contains("code 0"), "{rest}");
    assert!(rest.trim_end().ends_with(modes.trim_end()), "{modes:?} before, {rest:?} after");
    script.wait().expect("script ends");

    // The console, from a script: it ends with its input here, since nobody reads on.
    let mut console = cluster
        .command(env!("CARGO_BIN_EXE_sheaf"))
        .args(["console", "a"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sheaf");
    cluster.sheaf(&["vm", "restart", "a", "--force", "--wait"]).ends(0).says("runs again");
    let ended = console.wait().expect("the console ends with its instance");
    let mut said = String::new();
    console.stderr.take().expect("its errors").read_to_string(&mut said).expect("text");
    assert!(matches!(ended.code(), Some(0 | 1)), "{ended}: {said}");

    cluster.sheaf(&["vm", "stop", "a", "--force", "--wait"]).ends(0).says("is stopped");
    cluster.sheaf(&["console", "a"]).ends(1).says("is stopped; `sheaf vm start a` starts it");
    cluster.sheaf(&["ssh", "x@a"]).ends(1).says("does not run");
    cluster.sheaf(&["vm", "start", "a", "--wait"]).ends(0).says("runs");
    cluster.sheaf(&["vm", "delete", "a", "--force"]).ends(0).says("is gone");
    let left = cluster.kubectl(&["get", "vmi,pvc", "-o", "name"]).ends(0).out;
    assert!(!left.contains("virtualmachineinstance"), "{left}");
}
