//! What a snapshot of a VM, a restore and a clone need next. Pure.
//!
//! ```text
//!  snapshot: lock the VM -> content (one for all disks; made by the node that has them) -> ready -> unlock
//!  restore:  (stop the VM) -> lock it -> claims from the snapshot -> the VM's spec -> unlock -> (start it again)
//!  clone:    snapshot of the source -> restore into a new VM -> both away again
//! ```
//!
//! Contract: snapshot.kubevirt.io/v1beta1, clone.kubevirt.io/v1beta1. Beyond upstream, a restore stops and starts its VM by
//! itself unless its policy says otherwise.

use serde_json::{Map, Value, json};

/// On a content: the node that has the volumes.
pub const CONTENT_NODE: &str = "sheaf.io/node";
/// On a content: how the guest was brought to rest (`agent`, `no-agent`, `failed`, `paused`, `offline`).
pub const QUIESCED: &str = "sheaf.io/quiesced";
/// On a snapshot, by its user: what the guest has in its memory is kept, too, and a restore goes on from there. On its content:
/// the same, while it is asked for; on a content that is ready: it is there.
pub const MEMORY: &str = "sheaf.io/memory";
/// On a VM that was restored and its next instance: the content of the snapshot whose memory it goes on with.
pub const RESUME_FROM: &str = "sheaf.io/resume-from";
/// Keeps a content until its copies are removed from the node.
pub const LOCAL_FINALIZER: &str = "sheaf.io/local-snapshot";
/// Keeps a snapshot until its content is dealt with.
pub const SNAPSHOT_FINALIZER: &str = "snapshot.kubevirt.io/vmsnapshot-protection";
/// Keeps a restore until its VM is unlocked.
pub const RESTORE_FINALIZER: &str = "snapshot.kubevirt.io/vmrestore-protection";
/// On a restore: the run strategy that its VM gets back, empty for none.
pub const RUN_STRATEGY: &str = "sheaf.io/run-strategy";
/// On a claim: the snapshot of its node that its volume is to be as.
pub const CLAIM_SNAPSHOT: &str = "sheaf.io/local-snapshot";

fn text<'a>(o: &'a Value, pointer: &str) -> &'a str {
    o.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(o: &'a Value, pointer: &str) -> &'a [Value] {
    o.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The claim of a volume, if it has one.
pub fn claim_of(volume: &Value) -> Option<&str> {
    let claim = volume.pointer("/persistentVolumeClaim/claimName").and_then(Value::as_str);
    claim.or_else(|| volume.pointer("/dataVolume/name").and_then(Value::as_str)).filter(|c| !c.is_empty())
}

/// Name of the content of a snapshot.
pub fn content_name(snapshot_uid: &str) -> String {
    format!("vmsnapshot-content-{snapshot_uid}")
}

/// The content of a snapshot: the VM as it is, and its claims. `vm` has the spec that is to be kept; `claims` are those of its
/// volumes, by name.
pub fn content(snapshot: &Value, vm: &Value, claims: &Map<String, Value>, node: &str) -> Value {
    let uid = text(snapshot, "/metadata/uid");
    let mut backups = Vec::new();
    for volume in list(vm, "/spec/template/spec/volumes") {
        let Some(claim) = claim_of(volume).and_then(|c| claims.get(c)) else { continue };
        let name = text(volume, "/name");
        let mut metadata =
            json!({"name": text(claim, "/metadata/name"), "namespace": text(claim, "/metadata/namespace")});
        for key in ["labels", "annotations"] {
            if let Some(value) = claim.pointer(&format!("/metadata/{key}")) {
                metadata[key] = value.clone();
            }
        }
        backups.push(json!({
            "volumeName": name, "volumeSnapshotName": format!("vmsnapshot-{uid}-volume-{name}"),
            "persistentVolumeClaim": {"metadata": metadata, "spec": claim["spec"]},
        }));
    }
    let mut source = json!({
        "metadata": {"name": text(vm, "/metadata/name"), "namespace": text(vm, "/metadata/namespace"), "uid": text(vm, "/metadata/uid")},
        "spec": vm["spec"],
    });
    for key in ["labels", "annotations"] {
        if let Some(value) = vm.pointer(&format!("/metadata/{key}")) {
            source["metadata"][key] = value.clone();
        }
    }
    let mut annotations = json!({CONTENT_NODE: node});
    if snapshot.pointer("/metadata/annotations").and_then(|a| a.get(MEMORY)).is_some_and(|m| m == "true") {
        annotations[MEMORY] = json!("true");
    }
    json!({
        "apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineSnapshotContent",
        "metadata": {
            "name": content_name(uid), "namespace": text(snapshot, "/metadata/namespace"),
            "annotations": annotations,
        },
        "spec": {
            "virtualMachineSnapshotName": text(snapshot, "/metadata/name"),
            "source": {"virtualMachine": source}, "volumeBackups": backups,
        },
    })
}

/// What a snapshot tells about how it was made, for people and for machines.
pub fn indications(online: bool, quiesced: &str) -> Vec<(&'static str, &'static str)> {
    if !online {
        return Vec::new();
    }
    let mut out = vec![("Online", "The snapshot was made while the virtual machine ran")];
    out.push(match quiesced {
        "agent" => ("GuestAgent", "The guest's file systems were frozen for the moment of the snapshot"),
        "memory" => ("Memory", "The guest's memory is part of the snapshot; a restore goes on from there"),
        "paused" => ("Paused", "The virtual machine was paused at the moment of the snapshot"),
        "failed" => (
            "QuiesceFailed",
            "The guest agent could not freeze the file systems; what is on disk is as after a power cut",
        ),
        _ => ("NoGuestAgent", "The guest has no agent; what is on disk is as after a power cut"),
    });
    out
}

/// Names of the volumes that are in a content, and of those that are not.
pub fn volumes_in(content: &Value) -> (Vec<String>, Vec<String>) {
    let included: Vec<String> =
        list(content, "/spec/volumeBackups").iter().map(|b| text(b, "/volumeName").to_owned()).collect();
    let all = list(content, "/spec/source/virtualMachine/spec/template/spec/volumes");
    let excluded =
        all.iter().map(|v| text(v, "/name").to_owned()).filter(|n| !included.contains(n)).collect();
    (included, excluded)
}

/// Name of the claim that a restore makes for a volume.
pub fn restored_claim(restore: &Value, content: &Value, volume: &str) -> String {
    let overrides = list(restore, "/spec/volumeRestoreOverrides");
    let named = overrides.iter().find(|o| text(o, "/volumeName") == volume).map(|o| text(o, "/restoreName"));
    if let Some(named) = named.filter(|n| !n.is_empty()) {
        return named.to_owned();
    }
    let backup = list(content, "/spec/volumeBackups").iter().find(|b| text(b, "/volumeName") == volume);
    let before = backup.map_or("", |b| text(b, "/persistentVolumeClaim/metadata/name"));
    match text(restore, "/spec/volumeRestorePolicy") {
        "InPlace" => before.to_owned(),
        "PrefixTargetName" => format!("{}-{before}", text(restore, "/spec/target/name")),
        _ => format!("restore-{}-{volume}", text(restore, "/metadata/uid")),
    }
}

/// The claim that a restore makes for a volume.
pub fn claim(restore: &Value, content: &Value, backup: &Value) -> Value {
    let volume = text(backup, "/volumeName");
    let name = restored_claim(restore, content, volume);
    let before = &backup["persistentVolumeClaim"];
    let vm = &content["spec"]["source"]["virtualMachine"];
    let mut annotations: Map<String, Value> =
        before.pointer("/metadata/annotations").and_then(Value::as_object).cloned().unwrap_or_default();
    // What binding wrote, and what the first content came from, is not this claim's.
    annotations.retain(|k, _| {
        !k.starts_with("pv.kubernetes.io/")
            && !k.starts_with("volume.kubernetes.io/")
            && k != "harvesterhci.io/imageId"
    });
    let (node, moment) =
        (text(content, "/metadata/annotations/sheaf.io~1node"), text(backup, "/volumeSnapshotName"));
    let mut added = vec![
        ("restore.kubevirt.io/name", text(restore, "/metadata/name")),
        ("restore.kubevirt.io/lastRestoreUID", text(restore, "/metadata/uid")),
    ];
    // Copies of a node are asked for by annotation, moments of replicated volumes as Kubernetes has it.
    if !node.is_empty() {
        added.extend([(CLAIM_SNAPSHOT, moment), ("volume.kubernetes.io/selected-node", node)]);
    }
    for (key, value) in added {
        annotations.insert(key.into(), json!(value));
    }
    let mut labels: Map<String, Value> =
        before.pointer("/metadata/labels").and_then(Value::as_object).cloned().unwrap_or_default();
    labels.insert("restore.kubevirt.io/source-vm-name".into(), json!(text(vm, "/metadata/name")));
    labels.insert("restore.kubevirt.io/source-vm-namespace".into(), json!(text(vm, "/metadata/namespace")));
    for over in
        list(restore, "/spec/volumeRestoreOverrides").iter().filter(|o| text(o, "/volumeName") == volume)
    {
        for (key, into) in [("labels", &mut labels), ("annotations", &mut annotations)] {
            into.extend(over[key].as_object().cloned().unwrap_or_default());
        }
    }
    let mut spec = before["spec"].clone();
    if let Some(spec) = spec.as_object_mut() {
        for key in ["volumeName", "dataSource", "dataSourceRef"] {
            spec.remove(key);
        }
        if node.is_empty() {
            let source =
                json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": moment});
            spec.insert("dataSource".into(), source);
        }
    }
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": text(restore, "/metadata/namespace"), "annotations": annotations, "labels": labels},
        "spec": spec,
    })
}

/// The spec that a restore gives to its VM: the snapshot's, with the restored claims in place of those before. `strategy` is
/// what it is to say while the restore is under way. An operation of the patches that does not fit is named in the error.
pub fn vm_spec(restore: &Value, content: &Value, strategy: Option<&str>) -> Result<Value, String> {
    let mut spec = content["spec"]["source"]["virtualMachine"]["spec"].clone();
    let restored: Vec<String> =
        list(content, "/spec/volumeBackups").iter().map(|b| text(b, "/volumeName").to_owned()).collect();
    let volumes = spec.pointer_mut("/template/spec/volumes").and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten() {
        let name = text(volume, "/name").to_owned();
        if !restored.contains(&name) {
            continue;
        }
        let claim = restored_claim(restore, content, &name);
        let hot = ["persistentVolumeClaim", "dataVolume"].iter().any(|k| volume[*k]["hotpluggable"] == true);
        *volume = json!({"name": name, "persistentVolumeClaim": {"claimName": claim}});
        if hot {
            volume["persistentVolumeClaim"]["hotpluggable"] = json!(true);
        }
    }
    if let Some(map) = spec.as_object_mut() {
        // What they made is among the restored claims.
        map.remove("dataVolumeTemplates");
        map.remove("running");
        if let Some(strategy) = strategy {
            map.insert("runStrategy".into(), json!(strategy));
        }
    }
    let mut whole = json!({"spec": spec});
    for patch in list(restore, "/spec/patches") {
        let operation: Value = serde_json::from_str(patch.as_str().unwrap_or_default())
            .map_err(|e| format!("spec.patches: {e}"))?;
        whole = sheaf_meta::patch::json_patch(&whole, &json!([operation]))
            .map_err(|e| format!("spec.patches: {e}"))?;
    }
    Ok(whole["spec"].clone())
}

/// Whether a key passes filters: patterns with `*`, of which those that begin with `!` exclude. None lets everything through.
pub fn passes(key: &str, filters: &[String]) -> bool {
    let positive: Vec<&String> = filters.iter().filter(|f| !f.starts_with('!')).collect();
    let excluded = filters.iter().filter_map(|f| f.strip_prefix('!')).any(|f| fits(key, f));
    !excluded && (positive.is_empty() || positive.iter().any(|f| fits(key, f)))
}

fn fits(key: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = key.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// The operations by which a clone's VM differs from its source, for the restore that makes it.
pub fn clone_patches(clone: &Value, content: &Value) -> Vec<Value> {
    let spec = &content["spec"]["source"]["virtualMachine"]["spec"];
    let filters = |pointer: &str| -> Vec<String> {
        list(clone, pointer).iter().filter_map(|f| f.as_str().map(str::to_owned)).collect()
    };
    let mut out = Vec::new();
    let mut remove = |path: String| out.push(json!({"op": "remove", "path": path}));
    for (kind, pointer) in
        [("annotations", "/spec/template/annotationFilters"), ("labels", "/spec/template/labelFilters")]
    {
        let all = spec.pointer(&format!("/template/metadata/{kind}")).and_then(Value::as_object);
        for key in all.into_iter().flat_map(Map::keys).filter(|k| !passes(k, &filters(pointer))) {
            let escaped = key.replace('~', "~0").replace('/', "~1");
            remove(format!("/spec/template/metadata/{kind}/{escaped}"));
        }
    }
    for key in ["uuid", "serial"] {
        if spec.pointer(&format!("/template/spec/domain/firmware/{key}")).is_some() {
            remove(format!("/spec/template/spec/domain/firmware/{key}"));
        }
    }
    let serial = text(clone, "/spec/newSMBiosSerial");
    if !serial.is_empty() {
        let path = "/spec/template/spec/domain/firmware";
        if spec.pointer("/template/spec/domain/firmware").is_none() {
            out.push(json!({"op": "add", "path": path, "value": {}}));
        }
        out.push(json!({"op": "add", "path": format!("{path}/serial"), "value": serial}));
    }
    let interfaces = list(spec, "/template/spec/domain/devices/interfaces");
    for (i, interface) in interfaces.iter().enumerate() {
        let path = format!("/spec/template/spec/domain/devices/interfaces/{i}/macAddress");
        let mac = clone.pointer("/spec/newMacAddresses").and_then(|m| m.get(text(interface, "/name")));
        match mac.and_then(Value::as_str).filter(|m| !m.is_empty()) {
            Some(mac) => out.push(json!({"op": "add", "path": path, "value": mac})),
            None if interface.get("macAddress").is_some() => out.push(json!({"op": "remove", "path": path})),
            None => {}
        }
    }
    for patch in list(clone, "/spec/patches") {
        if let Ok(operation) = serde_json::from_str(patch.as_str().unwrap_or_default()) {
            out.push(operation);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> Value {
        json!({"metadata": {"name": "a", "namespace": "x", "uid": "v"}, "spec": {
            "runStrategy": "Always", "dataVolumeTemplates": [{}],
            "template": {"metadata": {"labels": {"app": "x", "keep": "y"}}, "spec": {
                "domain": {"firmware": {"uuid": "u"}, "devices": {"interfaces": [{"name": "default", "macAddress": "m"}]}},
                "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "r"}},
                    {"name": "hot", "dataVolume": {"name": "h", "hotpluggable": true}},
                    {"name": "seed", "cloudInitNoCloud": {"userData": "x"}}]}}}})
    }

    fn made() -> Value {
        let claim = |name: &str| {
            json!({"metadata": {"name": name, "namespace": "x", "annotations": {"pv.kubernetes.io/bind-completed": "yes",
                "harvesterhci.io/imageId": "d/i", "mine": "1"}}, "spec": {"volumeName": "pv", "storageClassName": "local"}})
        };
        let claims = Map::from_iter([("r".to_owned(), claim("r")), ("h".to_owned(), claim("h"))]);
        let snapshot = json!({"metadata": {"name": "s", "namespace": "x", "uid": "su"}});
        content(&snapshot, &vm(), &claims, "n1")
    }

    #[test]
    fn a_content_has_the_machine_and_its_claims() {
        let content = made();
        assert_eq!(content["metadata"]["name"], "vmsnapshot-content-su");
        assert_eq!(content["spec"]["volumeBackups"][0]["volumeSnapshotName"], "vmsnapshot-su-volume-root");
        assert_eq!(
            volumes_in(&content),
            (vec!["root".to_owned(), "hot".to_owned()], vec!["seed".to_owned()])
        );
        let words = |online, how| indications(online, how).iter().map(|i| i.0).collect::<Vec<_>>();
        assert_eq!(words(true, "agent"), ["Online", "GuestAgent"]);
        assert_eq!(words(true, "no-agent"), ["Online", "NoGuestAgent"]);
        assert_eq!(words(false, "offline"), [""; 0]);
    }

    #[test]
    fn a_restore_makes_claims_and_a_spec_that_names_them() {
        let content = made();
        let restore = json!({"metadata": {"name": "r1", "namespace": "x", "uid": "ru"}, "spec": {"target": {"name": "a"},
            "patches": ["{\"op\": \"add\", \"path\": \"/spec/template/spec/hostname\", \"value\": \"b\"}"]}});
        let made = claim(&restore, &content, &content["spec"]["volumeBackups"][0]);
        assert_eq!(made["metadata"]["name"], "restore-ru-root");
        let annotations = made["metadata"]["annotations"].as_object().expect("annotations");
        assert_eq!(annotations[CLAIM_SNAPSHOT], "vmsnapshot-su-volume-root");
        assert_eq!(annotations["mine"], "1");
        assert!(!annotations.contains_key("harvesterhci.io/imageId"));
        assert_eq!(made["spec"], json!({"storageClassName": "local"}));
        let spec = vm_spec(&restore, &content, Some("Halted")).expect("fits");
        assert_eq!(spec["runStrategy"], "Halted");
        assert_eq!(spec.get("dataVolumeTemplates"), None);
        assert_eq!(spec["template"]["spec"]["hostname"], "b");
        let volumes = &spec["template"]["spec"]["volumes"];
        assert_eq!(volumes[0]["persistentVolumeClaim"]["claimName"], "restore-ru-root");
        assert_eq!(
            volumes[1]["persistentVolumeClaim"],
            json!({"claimName": "restore-ru-hot", "hotpluggable": true})
        );
        assert_eq!(volumes[2]["cloudInitNoCloud"]["userData"], "x");
        let policy = |p: &str| {
            let mut r = restore.clone();
            r["spec"]["volumeRestorePolicy"] = json!(p);
            restored_claim(&r, &content, "root")
        };
        assert_eq!((policy("InPlace"), policy("PrefixTargetName")), ("r".to_owned(), "a-r".to_owned()));
    }

    #[test]
    fn filters_and_patches_of_clones() {
        let f = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        for (key, filters, want) in [
            ("app", f(&[]), true),
            ("app", f(&["*"]), true),
            ("app", f(&["*", "!app"]), false),
            ("a/b", f(&["a/*"]), true),
            ("c/b", f(&["a/*"]), false),
            ("x-mid-y", f(&["x*mid*y"]), true),
            ("other", f(&["!app"]), true),
        ] {
            assert_eq!(passes(key, &filters), want, "{key} {filters:?}");
        }
        let clone = json!({"spec": {"template": {"labelFilters": ["*", "!app"]}, "newSMBiosSerial": "S"}});
        let paths: Vec<String> = clone_patches(&clone, &made())
            .iter()
            .map(|p| format!("{} {}", text(p, "/op"), text(p, "/path").trim_start_matches("/spec/template/")))
            .collect();
        assert_eq!(
            paths,
            [
                "remove metadata/labels/app",
                "remove spec/domain/firmware/uuid",
                "add spec/domain/firmware/serial",
                "remove spec/domain/devices/interfaces/0/macAddress",
            ]
        );
    }
}
