//! Rules of claims, volumes and storage classes. Words as Kubernetes' own validation has them.

use serde_json::Value;
use sheaf_meta::names;
use sheaf_meta::object::find;

use super::{Problems, at, changed, fill, list, map, text};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];

/// Where a volume's data can be; exactly one of them.
const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

pub(super) fn default_claim(o: &mut Value, _: Option<&Value>) {
    if let Some(status) = at(o, &["status"]) {
        fill(status, "phase", "Pending");
    }
}

fn access_modes(o: &Value, problems: &mut Problems) {
    let modes: Vec<&str> = list(o, "/spec/accessModes").iter().filter_map(Value::as_str).collect();
    if modes.is_empty() {
        problems.required("spec.accessModes", "at least 1 access mode is required");
    }
    for mode in &modes {
        problems.one_of("spec.accessModes", mode, MODES);
    }
    if modes.len() > 1 && modes.contains(&"ReadWriteOncePod") {
        problems.forbidden("spec.accessModes", "may not use ReadWriteOncePod with other access modes");
    }
}

/// A size that must be there and more than nothing.
fn size(o: &Value, pointer: &str, field: &str, problems: &mut Problems) {
    let Some(value) = find(o, pointer) else {
        problems.required(field, "");
        return;
    };
    if let Some(quantity) = problems.quantity(field, value)
        && quantity.signum() <= 0
    {
        problems.invalid(field, value.clone(), "must be greater than zero");
    }
}

pub(super) fn validate_claim(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    access_modes(o, problems);
    size(o, "/spec/resources/requests/storage", "spec.resources[storage]", problems);
    let class = text(o, "/spec/storageClassName");
    if !class.is_empty() {
        problems.name("spec.storageClassName", class, names::dns_subdomain);
    }
    let Some(old) = old else { return };
    claim_update(o, old, problems);
}

/// A bound claim keeps its spec; only its size may grow.
fn claim_update(o: &Value, old: &Value, problems: &mut Problems) {
    let (mut new_spec, mut old_spec) = (o["spec"].clone(), old["spec"].clone());
    for spec in [&mut new_spec, &mut old_spec] {
        let Some(spec) = spec.as_object_mut() else { return };
        let requests = spec.get_mut("resources").and_then(|r| r.get_mut("requests"));
        if let Some(requests) = requests.and_then(Value::as_object_mut) {
            requests.remove("storage");
        }
        spec.remove("volumeAttributesClassName");
        // Binding names the volume; a default class may be filled in once.
        for field in ["volumeName", "storageClassName"] {
            if text(old, &format!("/spec/{field}")).is_empty() {
                spec.remove(field);
            }
        }
    }
    if new_spec != old_spec {
        problems.forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let storage = "/spec/resources/requests/storage";
    let sizes =
        [o, old].map(|c| find(c, storage).and_then(|v| problems.quantity("spec.resources[storage]", v)));
    if let [Some(new), Some(before)] = sizes {
        let bound = text(old, "/status/phase") == "Bound";
        if new < before {
            problems.forbidden(
                "spec.resources.requests.storage",
                "field can not be less than previous value: a volume cannot shrink",
            );
        } else if new > before && !bound {
            problems.forbidden("spec.resources.requests.storage", "only a bound claim can grow");
        }
    }
}

pub(super) fn default_volume(o: &mut Value, _: Option<&Value>) {
    if let Some(spec) = at(o, &["spec"]) {
        fill(spec, "persistentVolumeReclaimPolicy", "Retain");
        fill(spec, "volumeMode", "Filesystem");
    }
    if let Some(status) = at(o, &["status"]) {
        fill(status, "phase", "Pending");
    }
}

pub(super) fn validate_volume(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    access_modes(o, problems);
    size(o, "/spec/capacity/storage", "spec.capacity[storage]", problems);
    problems.one_of("spec.volumeMode", text(o, "/spec/volumeMode"), VOLUME_MODES);
    let policy = text(o, "/spec/persistentVolumeReclaimPolicy");
    problems.one_of("spec.persistentVolumeReclaimPolicy", policy, &["Delete", "Recycle", "Retain"]);
    let spec = map(o, "/spec");
    let sources: Vec<&&str> =
        SOURCES.iter().filter(|s| spec.is_some_and(|spec| spec.contains_key(**s))).collect();
    match sources.as_slice() {
        [] => problems.required("spec", "must specify a volume type"),
        [_] => {}
        [_, second, ..] => {
            problems.forbidden(format!("spec.{second}"), "may not specify more than 1 volume type")
        }
    }
    if sources == [&"local"] {
        if text(o, "/spec/local/path").is_empty() {
            problems.required("spec.local.path", "");
        }
        if find(o, "/spec/nodeAffinity/required").is_none() {
            problems.required("spec.nodeAffinity", "Local volume requires node affinity");
        }
    }
    if let Some(old) = old {
        let source_changed = SOURCES.iter().any(|source| changed(o, old, &format!("/spec/{source}")));
        if source_changed {
            problems.forbidden(
                "spec.persistentvolumesource",
                "spec.persistentvolumesource is immutable after creation",
            );
        }
        if changed(o, old, "/spec/volumeMode") {
            problems.invalid("spec.volumeMode", o["spec"]["volumeMode"].clone(), "field is immutable");
        }
    }
}

pub(super) fn default_class(o: &mut Value, _: Option<&Value>) {
    if let Some(class) = o.as_object_mut() {
        fill(class, "reclaimPolicy", "Delete");
        fill(class, "volumeBindingMode", "Immediate");
    }
}

pub(super) fn validate_class(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    let provisioner = text(o, "/provisioner");
    if provisioner.is_empty() {
        problems.required("provisioner", "");
    } else {
        problems.name("provisioner", &provisioner.to_lowercase(), names::qualified_name);
    }
    problems.one_of("reclaimPolicy", text(o, "/reclaimPolicy"), &["Delete", "Retain"]);
    problems.one_of(
        "volumeBindingMode",
        text(o, "/volumeBindingMode"),
        &["Immediate", "WaitForFirstConsumer"],
    );
    let Some(old) = old else {
        super::longhorn::validate_parameters(o, problems);
        return;
    };
    for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        if changed(o, old, &format!("/{field}")) {
            problems.forbidden(field, &format!("updates to {field} are forbidden."));
        }
    }
}
