//! The real kubectl.

use crate::harness::{Server, eventually, run};

const MAP: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\n  labels:\n    app: x\ndata:\n  a: \"1\"\n";
const KEY: &str = "apiVersion: harvesterhci.io/v1beta1\nkind: KeyPair\nmetadata:\n  name: k\nspec:\n  publicKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8Y9oyyIBTJkuvAMpV1bfwk4oJtdcFJBsdyRQ7W3ysk a@b\n";
const VM: &str = "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata:\n  name: v\nspec:\n  runStrategy: Halted\n  template:\n    spec:\n      domain:\n        devices: {}\n        resources:\n          requests:\n            memory: 64Mi\n";

impl Server {
    async fn feed(&self, args: &str, input: &str) -> String {
        let (ok, out, err) = self.try_kubectl(args, input).await;
        assert!(ok, "kubectl {args}\n{out}\n{err}");
        out
    }
}

#[tokio::test]
async fn get_shows_columns_and_whole_objects() {
    let server = Server::start().await;
    server.feed("create -f -", MAP).await;
    let out = server.kubectl("get cm m -o wide").await;
    assert!(out.starts_with("NAME"), "{out}");
    assert!(out.contains("DATA"), "{out}");
    assert_eq!(server.kubectl("get cm m -o jsonpath={.data.a}").await, "1");
    assert!(server.kubectl("get cm -A --show-labels").await.contains("app=x"));
    assert!(server.kubectl("get cm -A --sort-by=.metadata.name").await.contains("NAMESPACE"));
    assert!(server.kubectl("get cm m -o yaml").await.contains("kind: ConfigMap"));
    let out = server.kubectl("get ns").await;
    assert!(out.contains("kube-system") && out.contains("Active"), "{out}");
    server.feed("create -f -", VM).await;
    let out = server.kubectl("get vm").await;
    assert!(out.contains("STATUS") && out.contains("READY"), "{out}");
    assert!(server.kubectl("get vm v -o wide").await.contains('v'));
}

#[tokio::test]
async fn discovery_and_explanations() {
    let server = Server::start().await;
    let out = server.kubectl("api-resources").await;
    for kind in ["virtualmachines", "vmi", "keypairs", "configmaps", "leases"] {
        assert!(out.contains(kind), "{kind} in\n{out}");
    }
    assert!(server.kubectl("api-versions").await.contains("kubevirt.io/v1"));
    assert!(server.kubectl("version").await.contains("v1.36.2+sheaf"));
    let out = server.kubectl("explain vm.spec.template.spec.domain.devices.disks").await;
    assert!(out.contains("FIELDS") && out.contains("bootOrder"), "{out}");
    for what in ["selfsubjectaccessreviews.spec", "tokenreviews.status.user", "localsubjectaccessreviews"] {
        let out = server.kubectl(&format!("explain {what}")).await;
        assert!(out.contains("FIELDS:"), "{what}: {out}");
    }
    let out = server.kubectl("explain vm.spec --recursive").await;
    assert!(out.contains("terminationGracePeriodSeconds") && out.contains("bootOrder"), "{out}");
    let out = server.kubectl("api-resources -o wide").await;
    let vm = out.lines().find(|line| line.starts_with("virtualmachines ")).unwrap_or_default();
    assert!(vm.contains("kubevirt.io/v1") && vm.contains("create,delete,deletecollection,get,list"), "{vm}");
    let out = server.kubectl("explain configmap.data").await;
    assert!(out.contains("map[string]string"), "{out}");
    assert_eq!(server.kubectl("get --raw /readyz").await, "ok");
}

#[tokio::test]
async fn kinds_of_ours_are_listed_as_definitions() {
    let server = Server::start().await;
    eventually("all are there", async || {
        let out = server.kubectl("get crd").await;
        if out.contains("virtualmachines.kubevirt.io")
            && out.contains("keypairs.harvesterhci.io")
            && out.contains("settings.harvesterhci.io")
        {
            Ok(())
        } else {
            Err(out)
        }
    })
    .await;
    let out = server
        .kubectl("wait --for=condition=Established crd/virtualmachines.kubevirt.io --timeout=20s")
        .await;
    assert!(out.contains("condition met"), "{out}");
    let path =
        "-o=jsonpath={.spec.versions[0].schema.openAPIV3Schema.properties.spec.properties.runStrategy.type}";
    let out = server.kubectl(&format!("get crd virtualmachines.kubevirt.io {path}")).await;
    assert_eq!(out, "string");
    let before =
        server.kubectl("get crd virtualmachines.kubevirt.io -o=jsonpath={.metadata.resourceVersion}").await;
    let Server { api, dir, store } = server;
    drop(store);
    api.shutdown().await;
    let server = Server::start_again(dir).await;
    server.kubectl("wait --for=condition=Established crd/virtualmachines.kubevirt.io --timeout=20s").await;
    let after =
        server.kubectl("get crd virtualmachines.kubevirt.io -o=jsonpath={.metadata.resourceVersion}").await;
    assert_eq!(before, after, "a second start writes nothing");
}

#[tokio::test]
async fn apply_from_the_client() {
    let server = Server::start().await;
    for (manifest, changed, kind) in [
        (MAP, MAP.replace("\"1\"", "\"2\""), "configmap/m"),
        (KEY, KEY.replace("name: k", "name: k\n  labels:\n    x: z"), "keypair.harvesterhci.io/k"),
        (VM, VM.replace("Halted", "Manual"), "virtualmachine.kubevirt.io/v"),
    ] {
        assert_eq!(server.feed("apply -f -", manifest).await.trim(), format!("{kind} created"));
        assert_eq!(server.feed("apply -f -", manifest).await.trim(), format!("{kind} unchanged"));
        assert_eq!(server.feed("apply -f -", &changed).await.trim(), format!("{kind} configured"));
        let (_, diff, err) = server.try_kubectl("diff -f -", &changed).await;
        assert_eq!((diff.as_str(), err.as_str()), ("", ""), "no difference is left");
    }
    let typo = VM.replace("runStrategy", "runStrategie");
    let (ok, _, err) = server.try_kubectl("apply -f -", &typo).await;
    assert!(!ok && err.contains("runStrategie"), "{err}");
}

/// Machines and networks as real installations have them, taken word for word.
#[tokio::test]
async fn manifests_of_real_installations() {
    let server = Server::start().await;
    let disks = "        devices:\n          disks:\n            - name: root\n              disk:\n                bus: virtio\n";
    let volumes = "      volumes:\n        - name: root\n          persistentVolumeClaim:\n            claimName: cp-2-root\n";
    let machine = |name: &str, disks: &str, volumes: &str| {
        format!(
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  running: true\n  template:\n    spec:\n      domain:\n        cpu:\n          cores: 4\n        memory:\n          guest: 16Gi\n{disks}{volumes}      networks:\n        - name: platform\n          multus:\n            networkName: default/platform\n"
        )
    };
    server.feed("apply -f -", &machine("cp-2", disks, volumes)).await;
    server.feed("apply -f -", &machine("bare", "        devices: {}\n", "")).await;
    assert!(server.kubectl("get vm").await.contains("cp-2"));
    server.kubectl("patch vm cp-2 --type=merge -p {\"spec\":{\"running\":false}}").await;

    let network = |name: &str, config: &str| {
        format!(
            "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata:\n  name: {name}\nspec:\n  config: '{config}'\n"
        )
    };
    let vlan = r#"{"cniVersion":"0.3.1","name":"vlan100","type":"bridge","bridge":"mgmt-br","promiscMode":true,"vlan":100}"#;
    let untagged = r#"{"cniVersion":"0.3.1","name":"untagged-network","type":"bridge","bridge":"oob-br","promiscMode":true,"ipam":{}}"#;
    server.feed("apply -f -", &network("vlan100", vlan)).await;
    server.feed("apply -f -", &network("untagged", untagged)).await;
    let comma = vlan.replace("100}", "100,}");
    let (ok, _, err) = server.try_kubectl("apply -f -", &network("comma", &comma)).await;
    assert!(!ok && err.contains("column"), "the position of the mistake: {err}");
}

#[tokio::test]
async fn lists_and_several_documents() {
    let server = Server::start().await;
    let both = format!("{MAP}---\n{KEY}");
    server.feed("apply -f -", &both).await;
    let indented = |text: &str| text.trim_end().replace('\n', "\n  ");
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {}\n- {}\n", indented(MAP), indented(KEY));
    let out = server.feed("apply -f -", &list).await;
    assert!(
        out.contains("configmap/m unchanged") && out.contains("keypair.harvesterhci.io/k unchanged"),
        "{out}"
    );
    assert!(server.kubectl("get cm/m keypair/k -o name").await.contains("keypair"));
}

#[tokio::test]
async fn apply_on_the_server() {
    let server = Server::start().await;
    for (manifest, kind) in
        [(MAP, "configmap/m"), (KEY, "keypair.harvesterhci.io/k"), (VM, "virtualmachine.kubevirt.io/v")]
    {
        let out = server.feed("apply --server-side -f -", manifest).await;
        assert_eq!(out.trim(), format!("{kind} serverside-applied"));
        server.feed("apply --server-side -f -", manifest).await;
    }
    let other = MAP.replace("\"1\"", "\"2\"");
    let (ok, _, err) = server.try_kubectl("apply --server-side --field-manager=other -f -", &other).await;
    assert!(!ok && err.contains("conflict"), "{err}");
    server.feed("apply --server-side --field-manager=other --force-conflicts -f -", &other).await;
    assert_eq!(server.kubectl("get cm m -o jsonpath={.data.a}").await, "2");
}

#[tokio::test]
async fn patch_label_annotate_edit_replace_delete() {
    let server = Server::start().await;
    server.feed("create -f -", MAP).await;
    server.kubectl("label cm m color=red").await;
    server.kubectl("annotate cm m note=hello").await;
    assert_eq!(server.kubectl("get cm m -o jsonpath={.metadata.labels.color}").await, "red");
    assert_eq!(server.kubectl("get cm m -o jsonpath={.metadata.annotations.note}").await, "hello");
    server.kubectl("patch cm m -p {\"data\":{\"b\":\"2\"}}").await;
    server.kubectl("patch cm m --type=json -p [{\"op\":\"add\",\"path\":\"/data/c\",\"value\":\"3\"}]").await;
    assert!(server.kubectl("patch cm m -p {\"data\":{\"b\":\"2\"}}").await.contains("no change"));
    assert_eq!(server.kubectl("get cm m -o jsonpath={.data.b}{.data.c}").await, "23");

    let script = server.dir.path().join("edit.sh");
    std::fs::write(&script, "#!/bin/sh\nsed -i 's/b: \"2\"/b: \"edited\"/' \"$1\"\n").unwrap();
    std::process::Command::new("chmod").arg("+x").arg(&script).status().unwrap();
    let mut command = server.command();
    command.args(["edit", "cm", "m"]).env("EDITOR", &script);
    let (ok, out, err) = run(command, String::new()).await;
    assert!(ok, "{out}\n{err}");
    assert_eq!(server.kubectl("get cm m -o jsonpath={.data.b}").await, "edited");
    server.feed("replace -f -", MAP).await;
    assert_eq!(server.kubectl("get cm m -o jsonpath={.data}").await, "{\"a\":\"1\"}");

    assert!(server.kubectl("delete cm m").await.contains("deleted"));
    let (ok, _, err) = server.try_kubectl("get cm m", "").await;
    assert!(!ok && err.contains("NotFound"), "{err}");
    server.feed("create -f -", KEY).await;
    server
        .kubectl("patch keypair k --type=merge -p {\"metadata\":{\"finalizers\":[\"example.com/x\"]}}")
        .await;
    server.kubectl("delete keypair k --wait=false").await;
    let waiting = server.try_kubectl("wait --for=delete keypair/k --timeout=20s", "");
    let freeing = server.kubectl("patch keypair k --type=merge -p {\"metadata\":{\"finalizers\":null}}");
    let ((ok, out, err), _) = tokio::join!(waiting, freeing);
    assert!(ok, "{out}\n{err}");
}

#[tokio::test]
async fn wait_watch_and_describe() {
    let server = Server::start().await;
    server.feed("create -f -", VM).await;
    let status = serde_json::json!({"status": {"conditions": [{"type": "Ready", "status": "True"}], "printableStatus": "Running"}});
    let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/v/status";
    let waiting = server.try_kubectl("wait --for=condition=Ready vm/v --timeout=20s", "");
    let making = server.patch(path, "merge", status);
    let ((ok, out, err), made) = tokio::join!(waiting, making);
    assert_eq!(made.code, 200, "{:?}", made.body);
    assert!(ok, "{out}\n{err}");
    let out = server.kubectl("describe vm v").await;
    assert!(out.contains("Kind:") && out.contains("Ready"), "{out}");
    assert!(server.kubectl("describe ns default").await.contains("Active"));

    let out = server.dir.path().join("watched");
    let mut watching = server
        .command()
        .args(["get", "cm", "-w", "--output-watch-events"])
        .stdout(std::fs::File::create(&out).unwrap())
        .spawn()
        .unwrap();
    eventually("the watch shows a header", async || {
        let text = std::fs::read_to_string(&out).unwrap();
        server.try_kubectl("delete cm m", "").await;
        server.feed("create -f -", MAP).await;
        if text.contains("EVENT") && text.contains("ADDED") && text.contains("DELETED") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
    watching.kill().unwrap();
    watching.wait().unwrap();
}

/// kubectl 1.32 and later send what they generate themselves as protobuf, and take 415 as final.
#[tokio::test]
async fn generated_objects_come_as_protobuf() {
    let server = Server::start().await;
    server.kubectl("create secret generic s --from-literal=a=b").await;
    assert_eq!(server.kubectl("get secret s -o jsonpath={.data.a}{.type}").await, "Yg==Opaque");
    server.kubectl("create configmap c --from-literal=a=b").await;
    assert_eq!(server.kubectl("get cm c -o jsonpath={.data.a}").await, "b");
    server.kubectl("create namespace n").await;
    assert_eq!(server.kubectl("get ns n -o jsonpath={.status.phase}").await, "Active");
    assert_eq!(server.kubectl("auth can-i create vm").await.trim(), "yes");
    assert!(server.kubectl("auth can-i --list").await.contains("*.*"));
    assert!(server.kubectl("auth whoami").await.contains("sheaf-admin"));
}

#[tokio::test]
async fn describe_finds_what_it_looks_for() {
    let server = Server::start().await;
    server.feed("create -f -", "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n").await;
    server.feed("create -f -", MAP).await;
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  name: c\nspec:\n  accessModes: [ReadWriteOnce]\n  resources:\n    requests:\n      storage: 1Gi\n";
    server.feed("create -f -", claim).await;
    for (what, expected) in [
        ("node n1", "Allocated resources"),
        ("pvc c", "Capacity:"),
        ("cm m", "Data"),
        ("ns default", "Active"),
        ("secret -A", ""),
    ] {
        let out = server.kubectl(&format!("describe {what}")).await;
        assert!(out.contains(expected), "{what}: {out}");
    }
    server.kubectl("cordon n1").await;
    assert!(server.kubectl("get node n1").await.contains("SchedulingDisabled"));
    server.kubectl("taint node n1 a=b:NoSchedule").await;
    server.kubectl("uncordon n1").await;
    server.kubectl("events").await;
    server.kubectl("cluster-info").await;
}

/// Ways to look: chunks, selectors, sorting, columns of one's own, several documents, watching.
#[tokio::test]
async fn ways_to_look() {
    let server = Server::start().await;
    let documents: String = (0..7)
        .map(|i| {
            MAP.replace("name: m", &format!("name: m{i}")).replace("app: x", &format!("app: a{}", i % 2))
                + "---\n"
        })
        .collect();
    let out = server.feed("create -f -", &documents).await;
    assert_eq!(out.matches("created").count(), 7, "{out}");
    for (args, expected) in [
        (
            "get cm --chunk-size=2 -o name -l app",
            "configmap/m0\nconfigmap/m1\nconfigmap/m2\nconfigmap/m3\nconfigmap/m4\nconfigmap/m5\nconfigmap/m6\n",
        ),
        ("get cm -l app=a1 -o name", "configmap/m1\nconfigmap/m3\nconfigmap/m5\n"),
        ("get cm --field-selector=metadata.name=m3 -o name", "configmap/m3\n"),
        ("get cm m0 m6 -o name", "configmap/m0\nconfigmap/m6\n"),
        (
            "get cm -l app=a0 --sort-by=.metadata.name -o custom-columns=N:.metadata.name,A:.data.a --no-headers",
            "m0    1\nm2    1\nm4    1\nm6    1\n",
        ),
        ("get cm m1 -o go-template={{.data.a}}", "1"),
        ("get cm -l app=a1 -o jsonpath={.items[*].metadata.name}", "m1 m3 m5"),
        ("get cm m1 -L app --no-headers -o custom-columns=L:.metadata.labels.app", "a1\n"),
        ("get cm,secret -l app=none -o name", ""),
        ("get --raw /api/v1/namespaces/default/configmaps/m1?pretty=false", ""),
    ] {
        let out = server.kubectl(args).await;
        match expected {
            "" => assert!(out.is_empty() || out.starts_with("{\"apiVersion\":\"v1\""), "{args}: {out}"),
            expected => assert_eq!(out, expected, "{args}"),
        }
    }
    let wide = server.kubectl("get ns -o wide --show-labels").await;
    assert!(wide.contains("kubernetes.io/metadata.name=default"), "{wide}");
    let yaml = server.kubectl("get cm m1 -o yaml --show-managed-fields").await;
    assert!(yaml.contains("managedFields:") && yaml.contains("manager: kubectl-create"), "{yaml}");
    let raw = server.kubectl("get --raw /apis/kubevirt.io/v1/virtualmachines").await;
    assert!(raw.contains("VirtualMachineList") && raw.ends_with('\n'), "{raw}");
    let (ok, _, err) = server.try_kubectl("get cm --field-selector=data.a=1", "").await;
    assert!(!ok && err.contains("field label not supported: data.a"), "{err}");
    let out = server.kubectl("delete cm --all --wait=true").await;
    assert_eq!(out.matches("deleted").count(), 7 + usize::from(out.contains("kube-root-ca.crt")), "{out}");
}

/// Ways to change: replacing, forcing, status, dry runs, differences.
#[tokio::test]
async fn ways_to_change() {
    let server = Server::start().await;
    server.feed("create -f -", VM).await;
    server.feed("create -f -", MAP).await;
    let out = server
        .kubectl(
            "patch vm v --subresource=status --type=merge -p {\"status\":{\"printableStatus\":\"Running\"}}",
        )
        .await;
    assert!(out.contains("patched"), "{out}");
    assert_eq!(server.kubectl("get vm v -o jsonpath={.status.printableStatus}").await, "Running");
    assert_eq!(
        server.kubectl("get vm v --subresource=status -o jsonpath={.spec.runStrategy}").await,
        "Halted"
    );

    let uid = server.kubectl("get vm v -o jsonpath={.metadata.uid}").await;
    server.feed("replace -f -", &VM.replace("Halted", "Manual")).await;
    assert_eq!(
        server.kubectl("get vm v -o jsonpath={.metadata.uid}{.spec.runStrategy}").await,
        format!("{uid}Manual")
    );
    server.feed("replace --force -f -", VM).await;
    assert_ne!(server.kubectl("get vm v -o jsonpath={.metadata.uid}").await, uid, "another object");

    let changed = MAP.replace("\"1\"", "\"2\"");
    let (same, out, err) = server.try_kubectl("diff -f -", &changed).await;
    assert!(!same && out.contains("-  a: \"1\"") && out.contains("+  a: \"2\""), "{out}\n{err}");
    let (same, out, err) = server.try_kubectl("diff --server-side -f -", &changed).await;
    assert!(!same && (out.contains("+  a: \"2\"") || err.contains("conflict")), "{out}\n{err}");
    for args in ["apply --dry-run=server -f -", "replace --dry-run=server -f -"] {
        let out = server.feed(args, &changed).await;
        assert!(out.contains("(server dry run)"), "{out}");
    }
    assert_eq!(server.kubectl("get cm m -o jsonpath={.data.a}").await, "1", "dry runs change nothing");
    let out = server.feed("create --dry-run=server -o yaml -f -", &MAP.replace("name: m", "name: dry")).await;
    assert!(out.contains("uid:") && !out.contains("resourceVersion"), "{out}");
    server.kubectl("delete cm m --dry-run=server").await;
    server.kubectl("get cm m").await;

    server.kubectl("label cm --all tier=one").await;
    server.kubectl("label cm m tier=two --overwrite").await;
    server.kubectl("label cm m tier-").await;
    assert_eq!(server.kubectl("get cm m -o jsonpath={.metadata.labels}").await, "{\"app\":\"x\"}");
    let version = server.kubectl("get cm m -o jsonpath={.metadata.resourceVersion}").await;
    let (ok, _, err) = server.try_kubectl("annotate cm m a=b --resource-version=1", "").await;
    assert!(!ok && err.contains("the object has been modified"), "{err}");
    server.kubectl(&format!("annotate cm m a=b --resource-version={version}")).await;

    // A key that comes twice, and a field that nobody knows.
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: t\ndata:\n  a: x\nsize: 3\n";
    let (ok, _, err) = server.try_kubectl("create --validate=strict -f -", twice).await;
    assert!(!ok && err.contains("unknown field \"size\""), "{err}");
    let (ok, _, err) = server.try_kubectl("create --validate=warn -f -", twice).await;
    assert!(ok && err.contains("unknown field \"size\""), "{err}");
    let (ok, _, err) =
        server.try_kubectl("create --validate=ignore -f -", &twice.replace("name: t", "name: u")).await;
    assert!(ok && err.is_empty(), "{err}");

    // What is applied on the server by one hand, and then changed by another.
    let mine = MAP.replace("name: m", "name: s");
    server.feed("apply --server-side -f -", &mine).await;
    let (same, out, err) = server.try_kubectl("diff --server-side -f -", &mine).await;
    assert!(same && out.is_empty(), "{out}\n{err}");
    let (ok, _, err) = server.try_kubectl("apply --server-side -f -", &(mine.clone() + "size: 3\n")).await;
    assert!(!ok && err.contains("field not declared in schema"), "{err}");
    let waiting = server.try_kubectl("wait --for=jsonpath={.data.done}=yes cm/s --timeout=20s", "");
    let doing = server.kubectl("patch cm s -p {\"data\":{\"done\":\"yes\"}}");
    let ((ok, out, err), _) = tokio::join!(waiting, doing);
    assert!(ok, "{out}\n{err}");
    // No controller runs here that would let the machine go.
    server.kubectl("patch vm v --type=merge -p {\"metadata\":{\"finalizers\":null}}").await;
    server.kubectl("delete cm,vm --all --cascade=background").await;
    let waiting = server.try_kubectl("wait --for=create cm/late --timeout=20s", "");
    let late = MAP.replace("name: m", "name: late");
    let ((ok, out, err), _) = tokio::join!(waiting, server.feed("create -f -", &late));
    assert!(ok, "{out}\n{err}");
}
