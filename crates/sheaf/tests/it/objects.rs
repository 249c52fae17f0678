//! Images and VMs as objects: made, shown, refused, removed. Nothing runs here.

use serde_json::Value;

use crate::cluster::Cluster;

#[test]
fn images_come_and_go() {
    let Some(cluster) = Cluster::start("images") else { return };
    cluster.sheaf(&["image", "list"]).ends(0).says("There are no images in namespace default");

    let text = cluster.file("text", "this is no disk\n".repeat(100));
    let refused = cluster.sheaf(&["image", "upload", "text", &text.to_string_lossy()]).ends(1);
    assert!(refused.err.contains("text file, not a disk image"), "{refused:#?}");
    cluster.upload_blank("blank");
    let list = cluster.sheaf(&["image", "list"]).ends(0).out;
    let mut lines = list.lines();
    assert_eq!(lines.next().unwrap_or_default().split_whitespace().next(), Some("NAME"), "{list}");
    assert!(
        list.lines().any(|l| l.starts_with("blank ") && l.contains("Ready") && l.contains("1 MiB")),
        "{list}"
    );
    assert!(list.lines().any(|l| l.starts_with("text ") && l.contains("Failed")), "{list}");
    // The reason is in the status, too.
    let status = cluster.sheaf(&["status", "-o", "json", "--exit-code"]).ends(1).json();
    assert_eq!(status["attention"][0]["object"], "image default/text", "{status}");

    let path = cluster.home().join("blank.img");
    cluster.sheaf(&["image", "upload", "blank", &path.to_string_lossy()]).ends(1).says("already");
    cluster.sheaf(&["image", "upload", "nothing", "/nonexistent"]).ends(1).says("/nonexistent");
    // The same command again, with the right file.
    cluster.sheaf(&["image", "upload", "text", &path.to_string_lossy()]).ends(0).says("is ready");

    // Nobody listens there: the attempt fails, and says why while it is tried again.
    let url = "http://127.0.0.1:9/x.img";
    cluster.sheaf(&["image", "import", "far", url, "--timeout", "3s"]).ends(4).says("Last seen");
    cluster.sheaf(&["image", "import", "bad", "ftp://x/y"]).ends(1).says("spec.url");

    for name in ["text", "far", "blank"] {
        cluster.sheaf(&["image", "delete", name]).ends(0);
    }
    cluster.sheaf(&["image", "delete", "blank"]).ends(3);
}

#[test]
fn vms_are_made_shown_and_removed() {
    let Some(cluster) = Cluster::start("vms") else { return };
    cluster.upload_blank("blank");
    let key = cluster.file("key.pub", "ssh-ed25519 AAAA me\n");
    let key = key.to_string_lossy().into_owned();

    let halted = |name: &str| -> Vec<String> {
        ["vm", "create", name, "--image", "blank", "--disk", "2Gi", "--disk", "1Gi", "--ssh-key", &key]
            .into_iter()
            .chain(["--run-strategy", "halted", "--memory", "256Mi"])
            .map(str::to_owned)
            .collect()
    };
    let run = |args: &[String]| cluster.sheaf(&args.iter().map(String::as_str).collect::<Vec<_>>());

    // What would be made is what kubectl can make.
    let mut dry = halted("dry");
    dry.push("--dry-run".into());
    let manifest = run(&dry).ends(0).out;
    let file = cluster.file("dry.yaml", &manifest);
    cluster.kubectl(&["apply", "--dry-run=server", "-f", &file.to_string_lossy()]).ends(0);
    cluster.sheaf(&["vm", "show", "dry"]).ends(3).says("there is no VM dry in namespace default");

    run(&halted("a")).ends(0).says("VM default/a is created");
    run(&halted("a")).ends(1).says("already exists");
    let claims = || {
        let done = cluster.kubectl(&["get", "pvc,secret", "-o", "name"]).ends(0);
        done.out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let three = ["persistentvolumeclaim/a-data1", "persistentvolumeclaim/a-root", "secret/a-cloudinit"];
    cluster.until("the claims", || if claims() == three { Ok(()) } else { Err(format!("{:?}", claims())) });
    let shown = cluster.sheaf(&["vm", "show", "a"]).ends(0).out;
    for part in
        ["default/a", "Halted", "256 MiB", "a-root", "2 GiB", "default/blank", "a-cloudinit", "management"]
    {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let secret = cluster.kubectl(&["get", "secret", "a-cloudinit", "-o", "jsonpath={.data.userdata}"]).out;
    assert!(!secret.is_empty());

    // Both programs see the same.
    let ours = cluster.sheaf(&["vm", "list", "-o", "json"]).ends(0).json();
    let theirs = cluster.kubectl(&["get", "vm", "-o", "json"]).ends(0).json();
    assert_eq!(ours["items"], theirs["items"]);
    assert_eq!(cluster.sheaf(&["vm", "ls", "-A", "-o", "name"]).out, "virtualmachine.kubevirt.io/a\n");
    let yaml: Value =
        serde_saphyr::from_str(&cluster.sheaf(&["vm", "list", "-o", "yaml"]).out).expect("YAML");
    assert_eq!(yaml["items"], theirs["items"]);

    cluster.sheaf(&["vm", "stop", "a"]).ends(1).says("Halted does not support manual stop requests");
    cluster.sheaf(&["vm", "delete", "a", "--keep-disks"]).ends(0).says("kept: claim a-root, a-data1");
    let two = ["persistentvolumeclaim/a-data1", "persistentvolumeclaim/a-root"];
    cluster
        .until("the secret to go", || if claims() == two { Ok(()) } else { Err(format!("{:?}", claims())) });
    run(&halted("a")).ends(0);
    cluster.sheaf(&["vm", "delete", "a"]).ends(0).says("VM default/a is gone");
    cluster.until("everything to go", || {
        if claims().is_empty() { Ok(()) } else { Err(format!("{:?}", claims())) }
    });
    cluster.sheaf(&["vm", "delete", "a"]).ends(3);
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let Some(cluster) = Cluster::start("refused") else { return };
    cluster.upload_blank("blank");
    let script = cluster.file("script", "#!/bin/sh\n");
    let script = script.to_string_lossy().into_owned();
    let key = cluster.file("key.pub", "ssh-ed25519 AAAA me\n");
    let key = key.to_string_lossy().into_owned();
    let table: &[(&[&str], i32, &str)] = &[
        (&["Web_1"], 1, "metadata.name"),
        (&["a", "--image", "nope"], 3, "there is no image nope in namespace default. There are: blank."),
        (&["a", "--memory", "much"], 2, "is no size"),
        (&["a", "--cpus", "0"], 2, "--cpus"),
        (&["a", "--ssh-key", "nobody"], 3, "--ssh-key nobody"),
        (&["a", "--ssh-key", &script], 2, "no public SSH key"),
        (&["a", "--ssh-key", &key, "--user-data", &script], 2, "#cloud-config"),
        (&["a", "--run-strategy", "Sometimes"], 2, "Sometimes"),
        (&["a", "-n", "nowhere", "--no-wait"], 3, "nowhere"),
    ];
    for (args, code, says) in table {
        cluster.sheaf(&[&["vm", "create"], *args].concat()).ends(*code).says(says);
    }
    // Told why it waits, and that it goes on waiting.
    let done = cluster.sheaf(&["vm", "create", "big", "--memory", "9Ti", "--timeout", "5s"]).ends(4);
    assert!(done.err.contains("Insufficient memory"), "{done:#?}");
    let status = cluster.sheaf(&["status"]).ends(0).out;
    assert!(status.contains("VM default/big: ErrorUnschedulable"), "{status}");
    cluster.sheaf(&["vm", "delete", "big"]).ends(0);
    let left = cluster.kubectl(&["get", "vm,secret", "-o", "name"]).ends(0).out;
    assert_eq!(left, "");
}
