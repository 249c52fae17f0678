//! Rules of all kinds but machines, as tables: an object, and what is said about it.

use serde_json::{Value, json};
use sheaf_meta::kind::KindInfo;

fn kind(name: &str) -> KindInfo {
    let group = |k: &KindInfo| k.group != "events.k8s.io";
    crate::kinds()
        .into_iter()
        .find(|k| k.kind == name && group(k))
        .unwrap_or_else(|| panic!("no kind {name}"))
}

/// What is said about an object after its defaults: `field: message`.
fn said(name: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    let kind = kind(name);
    let mut object = object.clone();
    kind.rules.default(&mut object, old);
    kind.rules.validate(&object, old).iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

fn defaulted(name: &str, object: &Value) -> Value {
    let mut object = object.clone();
    kind(name).rules.default(&mut object, None);
    object
}

/// Each row: kind, object, and a part of what must be said about it (nothing: it must be accepted).
fn table(rows: &[(&str, Value, &str)]) {
    for (name, object, want) in rows {
        let got = said(name, object, None);
        if want.is_empty() {
            assert!(got.is_empty(), "{name} {object}: {got:?}");
        } else {
            assert!(got.iter().any(|m| m.contains(want)), "{name} {object}: wanted {want:?}, got {got:?}");
        }
    }
}

#[test]
fn claims_need_a_mode_and_a_size() {
    let claim = |modes: Value, size: Value| json!({"spec": {"accessModes": modes, "resources": {"requests": {"storage": size}}}});
    table(&[
        ("PersistentVolumeClaim", claim(json!(["ReadWriteOnce"]), json!("10Gi")), ""),
        ("PersistentVolumeClaim", claim(json!(["ReadWriteMany"]), json!(1073741824)), ""),
        ("PersistentVolumeClaim", claim(json!([]), json!("1Gi")), "spec.accessModes: Required value"),
        ("PersistentVolumeClaim", claim(json!(["RWO"]), json!("1Gi")), "spec.accessModes: Unsupported value"),
        ("PersistentVolumeClaim", claim(json!(["ReadWriteOnce"]), json!("0")), "must be greater than zero"),
        (
            "PersistentVolumeClaim",
            claim(json!(["ReadWriteOnce"]), json!("1GB")),
            "spec.resources[storage]: Invalid value",
        ),
        (
            "PersistentVolumeClaim",
            json!({"spec": {"accessModes": ["ReadWriteOnce"]}}),
            "spec.resources[storage]: Required",
        ),
    ]);
    let claim = claim(json!(["ReadWriteOnce"]), json!("1Gi"));
    assert_eq!(defaulted("PersistentVolumeClaim", &claim)["spec"]["volumeMode"], "Filesystem");
    assert_eq!(defaulted("PersistentVolumeClaim", &claim)["status"]["phase"], "Pending");
}

#[test]
fn a_bound_claim_grows_and_nothing_else() {
    let old = json!({"spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "volumeName": "pv",
        "resources": {"requests": {"storage": "10Gi"}}}, "status": {"phase": "Bound"}});
    let with = |pointer: &str, value: Value| {
        let mut claim = old.clone();
        if let Some(place) = claim.pointer_mut(pointer) {
            *place = value;
        }
        said("PersistentVolumeClaim", &claim, Some(&old)).join("; ")
    };
    assert_eq!(with("/spec/resources/requests/storage", json!("20Gi")), "");
    assert!(with("/spec/resources/requests/storage", json!("5Gi")).contains("less than previous value"));
    assert!(with("/spec/volumeName", json!("other")).contains("immutable"));
    assert!(with("/spec/accessModes", json!(["ReadWriteMany"])).contains("immutable"));

    let pending = json!({"spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": "10Gi"}}}, "status": {"phase": "Pending"}});
    let mut bound = pending.clone();
    bound["spec"]["volumeName"] = json!("pv");
    assert!(said("PersistentVolumeClaim", &bound, Some(&pending)).is_empty());
}

#[test]
fn volumes_and_classes() {
    let volume = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "local": {"path": "/v"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{}]}}}});
    let mut without = volume.clone();
    without["spec"].as_object_mut().map(|s| s.remove("nodeAffinity"));
    let mut two = volume.clone();
    two["spec"]["nfs"] = json!({"server": "a", "path": "/"});
    table(&[
        ("PersistentVolume", volume.clone(), ""),
        (
            "PersistentVolume",
            without,
            "spec.nodeAffinity: Required value: Local volume requires node affinity",
        ),
        ("PersistentVolume", two, "may not specify more than 1 volume type"),
        ("StorageClass", json!({"provisioner": "local.sheaf.io"}), ""),
        ("StorageClass", json!({}), "provisioner: Required value"),
        (
            "StorageClass",
            json!({"provisioner": "a", "reclaimPolicy": "Keep"}),
            "reclaimPolicy: Unsupported value",
        ),
    ]);
    let class = defaulted("StorageClass", &json!({"provisioner": "local.sheaf.io"}));
    assert_eq!(
        (&class["reclaimPolicy"], &class["volumeBindingMode"]),
        (&json!("Delete"), &json!("Immediate"))
    );
    let mut other = class.clone();
    other["provisioner"] = json!("b");
    assert_eq!(
        said("StorageClass", &other, Some(&class)),
        ["provisioner: Forbidden: updates to provisioner are forbidden."]
    );
}

#[test]
fn secrets_and_config_maps() {
    let secret =
        defaulted("Secret", &json!({"data": {"a": "MQ=="}, "stringData": {"b": "two", "a": "three"}}));
    assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "dGhyZWU=", "b": "dHdv"}}));
    let big = "a".repeat(1024 * 1024 + 1);
    table(&[
        ("Secret", json!({"data": {"a b": "MQ=="}}), "data[a b]: Invalid value"),
        ("Secret", json!({"data": {"a": "%"}}), "must be base64"),
        ("Secret", json!({"stringData": {"a": big}}), "Too long: may not be more than 1048576 bytes"),
        (
            "Secret",
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
            "data[tls.key]: Required value",
        ),
        ("ConfigMap", json!({"data": {"a": "1"}, "binaryData": {"b": "MQ=="}}), ""),
        ("ConfigMap", json!({"data": {"a": "1"}, "binaryData": {"a": "MQ=="}}), "duplicate of key"),
        ("ConfigMap", json!({"data": {"a": big}}), "Too long"),
    ]);
    let old = json!({"type": "Opaque", "immutable": true, "data": {"a": "MQ=="}});
    let changed = json!({"type": "Opaque", "immutable": true, "data": {"a": "Mg=="}});
    assert!(said("Secret", &changed, Some(&old)).concat().contains("field is immutable when"));
    let other_type = json!({"type": "x/y", "immutable": true, "data": {"a": "MQ=="}});
    assert!(said("Secret", &other_type, Some(&old)).concat().contains("type: Invalid value"));
}

#[test]
fn namespaces_nodes_leases_events_and_requests() {
    let namespace = defaulted("Namespace", &json!({"metadata": {"name": "a"}}));
    assert_eq!(namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], "a");
    assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(namespace["status"]["phase"], "Active");

    let request = |pem: &str| {
        use base64::Engine;
        let request = base64::engine::general_purpose::STANDARD.encode(pem);
        json!({"spec": {"request": request, "signerName": "kubernetes.io/kubelet-serving", "usages": ["server auth"]}})
    };
    table(&[
        ("Lease", json!({"spec": {"leaseDurationSeconds": 15}}), ""),
        ("Lease", json!({"spec": {"leaseDurationSeconds": 0}}), "spec.leaseDurationSeconds: Invalid value"),
        ("Event", json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "a"}}), ""),
        ("Event", json!({"metadata": {"namespace": "default"}, "involvedObject": {"kind": "Node"}}), ""),
        (
            "Event",
            json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}}),
            "does not match event.namespace",
        ),
        ("Node", json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}), ""),
        (
            "Node",
            json!({"spec": {"taints": [{"key": "a", "effect": "Never"}]}}),
            "spec.taints[0].effect: Unsupported value",
        ),
        ("CertificateSigningRequest", request("-----BEGIN CERTIFICATE REQUEST-----\n"), ""),
        ("CertificateSigningRequest", request("nothing"), "PEM block type must be CERTIFICATE REQUEST"),
    ]);
    let old = json!({"spec": {"podCIDR": "10.52.0.0/24"}});
    let new = json!({"spec": {"podCIDR": "10.52.1.0/24"}});
    assert!(said("Node", &new, Some(&old)).concat().contains("spec.podCIDR: Forbidden"));
    assert!(said("Node", &old, Some(&json!({"spec": {}}))).is_empty());
}

#[test]
fn images_say_where_they_come_from() {
    let image = |spec: Value| json!({"metadata": {"name": "i"}, "spec": spec});
    table(&[
        (
            "VirtualMachineImage",
            image(json!({"displayName": "d", "sourceType": "download", "url": "https://a.example/x.img"})),
            "",
        ),
        ("VirtualMachineImage", image(json!({"displayName": "d", "sourceType": "upload"})), ""),
        (
            "VirtualMachineImage",
            image(json!({"displayName": "d", "sourceType": "download"})),
            "spec.url: Required value",
        ),
        (
            "VirtualMachineImage",
            image(json!({"displayName": "d", "sourceType": "download", "url": "ftp://a/b"})),
            "must begin with http",
        ),
        (
            "VirtualMachineImage",
            image(json!({"displayName": "d", "sourceType": "upload", "url": "https://a/b"})),
            "must be empty for sourceType upload",
        ),
        (
            "VirtualMachineImage",
            image(json!({"displayName": "", "sourceType": "upload"})),
            "spec.displayName: Required value",
        ),
        (
            "VirtualMachineImage",
            image(json!({"displayName": "a b", "sourceType": "upload"})),
            "spec.displayName: Invalid value",
        ),
        (
            "VirtualMachineImage",
            image(json!({"displayName": "d", "sourceType": "upload", "checksum": "ab"})),
            "must be SHA-512",
        ),
        (
            "VirtualMachineImage",
            image(json!({"displayName": "d", "sourceType": "export-from-volume"})),
            "spec.pvcName: Required value",
        ),
    ]);
    let old = image(json!({"displayName": "d", "sourceType": "upload"}));
    let new = image(json!({"displayName": "e", "sourceType": "upload"}));
    assert!(said("VirtualMachineImage", &new, Some(&old)).concat().contains("field is immutable"));
    let got = defaulted("VirtualMachineImage", &old);
    assert_eq!(got["metadata"]["labels"]["harvesterhci.io/imageDisplayName"], "d");
    assert_eq!(got["spec"]["backend"], "backingimage");
}

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f somebody@example";

#[test]
fn key_pairs_are_read() {
    let pair = |key: &str| json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"publicKey": key}});
    let cut = &KEY[..60];
    table(&[
        ("KeyPair", pair(KEY), ""),
        ("KeyPair", pair(&format!("no-pty {KEY}\n")), ""),
        ("KeyPair", pair(""), "spec.publicKey: Invalid value: \"\": is empty"),
        ("KeyPair", pair("hello"), "names no algorithm"),
        ("KeyPair", pair(cut), "was the line"),
        ("KeyPair", pair("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret"), "looks like a private key"),
    ]);
    let refused = said("KeyPair", &pair("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret"), None);
    assert!(!refused.concat().contains("secret"), "a private key is not repeated");
    let got = defaulted("KeyPair", &pair(KEY));
    let fingerprint = got["status"]["fingerPrint"].as_str().unwrap_or_default();
    assert_eq!(fingerprint.split(':').count(), 16, "{fingerprint}");
    assert_eq!(got["status"]["conditions"][0]["type"], "validated");
}

#[test]
fn settings_take_what_they_can_use() {
    let setting = |name: &str, value: &str| json!({"metadata": {"name": name}, "value": value});
    table(&[
        ("Setting", setting("log-level", "debug"), ""),
        ("Setting", setting("log-level", "loud"), "must be one of info, debug, trace"),
        ("Setting", setting("max-hotplug-ratio", "21"), "must be an integer from 1 to 20"),
        ("Setting", setting("overcommit-config", r#"{"cpu":1000,"memory":150,"storage":100}"#), ""),
        ("Setting", setting("overcommit-config", r#"{"cpu":50}"#), "cpu must be an integer of at least 100"),
        ("Setting", setting("overcommit-config", "{"), "is no JSON"),
        ("Setting", setting("additional-guest-memory-overhead-ratio", "1.5"), ""),
        ("Setting", setting("additional-guest-memory-overhead-ratio", "0.5"), "must be 0 or a number"),
        ("Setting", setting("default-vm-termination-grace-period-seconds", "-1"), "at least 0"),
        ("Setting", setting("of-somebody-else", "anything"), ""),
    ]);
}

#[test]
fn attachments_say_where_their_json_is_wrong() {
    let attachment = |config: &str| json!({"spec": {"config": config}});
    let vlan = r#"{"cniVersion":"0.3.1","name":"vlan100","type":"bridge","bridge":"mgmt-br","promiscMode":true,"vlan":100}"#;
    let untagged = r#"{"cniVersion":"0.3.1","name":"untagged-network","type":"bridge","bridge":"oob-br","promiscMode":true,"ipam":{}}"#;
    let comma = r#"{"cniVersion":"0.3.1","name":"vlan100","type":"bridge","bridge":"mgmt-br","promiscMode":true,"vlan":100,}"#;
    let kind = "NetworkAttachmentDefinition";
    table(&[
        (kind, attachment(vlan), ""),
        (kind, attachment(untagged), ""),
        (kind, attachment(comma), "not valid JSON at line 1 column 105"),
        (kind, attachment("{\n  \"type\": \"bridge\",\n  \"vlan\": \"x\"\n}"), "at line 3 column"),
        (kind, attachment(r#"{"type":"bridge","bridge":"b","vlan":4095}"#), "vlan: 4095 is no VLAN"),
        (kind, attachment(r#"{"type":"bridge"}"#), "bridge: is required"),
        (kind, attachment(""), "spec.config: Required value"),
    ]);
    assert_eq!(comma.as_bytes()[104] as char, '}', "the position is that of the brace after the comma");
}
