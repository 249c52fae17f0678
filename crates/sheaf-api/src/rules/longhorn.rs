//! Rules of replicated volumes and of the objects by which Kubernetes' clients ask for moments of them.

use serde_json::{Value, json};
use sheaf_meta::object::find;

use super::{Problems, at, changed, fill, text};
use crate::longhorn::DRIVER;

/// Replicas that a volume can have at a time.
const REPLICAS_MAX: i64 = 8;
const LOCALITIES: &[&str] = &["disabled", "best-effort", "strict-local"];

pub(super) fn default_volume(o: &mut Value, old: Option<&Value>) {
    if old.is_some() {
        return;
    }
    if let Some(spec) = at(o, &["spec"]) {
        for (field, value) in [
            ("accessMode", "rwo"),
            ("dataEngine", "v1"),
            ("dataLocality", "disabled"),
            ("frontend", "blockdev"),
            ("backupTargetName", "default"),
        ] {
            fill(spec, field, value);
        }
        spec.entry("staleReplicaTimeout").or_insert(json!(2880));
    }
}

pub(super) fn validate_volume(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    let size = text(o, "/spec/size");
    let bytes = size.parse::<u64>().unwrap_or(0);
    if bytes == 0 {
        problems.invalid("spec.size", size, "must be a number of bytes above 0, as text");
    }
    if let Some(count) = find(o, "/spec/numberOfReplicas").and_then(Value::as_i64) {
        replicas("spec.numberOfReplicas", count, problems);
    }
    problems.one_of("spec.dataLocality", text(o, "/spec/dataLocality"), LOCALITIES);
    if text(o, "/spec/dataEngine") == "v2" {
        problems.invalid("spec.dataEngine", "v2", "only v1 is served");
    }
    if find(o, "/spec/encrypted") == Some(&json!(true)) {
        problems.invalid("spec.encrypted", true, "encrypted volumes are not supported");
    }
    let Some(old) = old else { return };
    let before = text(old, "/spec/size").parse::<u64>().unwrap_or(0);
    if bytes < before {
        problems.forbidden("spec.size", "a volume cannot shrink");
    }
    for field in ["backingImage", "dataEngine", "encrypted", "dataSource", "fromBackup"] {
        if changed(o, old, &format!("/spec/{field}")) {
            problems.invalid(format!("spec.{field}"), o["spec"][field].clone(), "field is immutable");
        }
    }
}

fn replicas(field: &str, count: i64, problems: &mut Problems) {
    if !(1..=REPLICAS_MAX).contains(&count) {
        problems.invalid(field, count, format!("must be between 1 and {REPLICAS_MAX}"));
    }
}

/// Parameters of a class of replicated volumes; text, all of them.
pub(super) fn validate_parameters(class: &Value, problems: &mut Problems) {
    if text(class, "/provisioner") != DRIVER {
        return;
    }
    let get = |name: &str| text(class, &format!("/parameters/{name}"));
    let count = get("numberOfReplicas");
    match count.parse::<i64>() {
        _ if count.is_empty() => {}
        Ok(number) => replicas("parameters.numberOfReplicas", number, problems),
        Err(_) => problems.invalid("parameters.numberOfReplicas", count, "must be a number, as text"),
    }
    let stale = get("staleReplicaTimeout");
    if !stale.is_empty() && stale.parse::<u32>().is_err() {
        problems.invalid("parameters.staleReplicaTimeout", stale, "must be a number of minutes, as text");
    }
    problems.one_of("parameters.dataLocality", get("dataLocality"), LOCALITIES);
    if get("encrypted") == "true" {
        problems.invalid("parameters.encrypted", "true", "encrypted volumes are not supported");
    }
    if get("dataEngine") == "v2" {
        problems.invalid("parameters.dataEngine", "v2", "only v1 is served");
    }
}

pub(super) fn validate_snapshot(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    let claim = text(o, "/spec/source/persistentVolumeClaimName");
    let content = text(o, "/spec/source/volumeSnapshotContentName");
    if claim.is_empty() == content.is_empty() {
        let why = "exactly one of persistentVolumeClaimName and volumeSnapshotContentName must be set";
        problems.invalid("spec.source", o["spec"]["source"].clone(), why);
    }
    if old.is_some_and(|old| changed(o, old, "/spec/source")) {
        problems.invalid("spec.source", o["spec"]["source"].clone(), "field is immutable");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(check: fn(&Value, Option<&Value>, &mut Problems), o: &Value, old: Option<&Value>) -> String {
        let mut problems = Problems::default();
        check(o, old, &mut problems);
        problems.list.iter().map(|p| format!("{}: {}; ", p.field, p.message)).collect()
    }

    #[test]
    fn volumes_classes_and_snapshots_are_judged() {
        let volume = |spec: Value| json!({"spec": spec});
        let good = volume(json!({"size": "1073741824", "numberOfReplicas": 3}));
        assert_eq!(said(validate_volume, &good, None), "");
        for (spec, field) in [
            (json!({"size": "1Gi"}), "spec.size"),
            (json!({"size": "4096", "numberOfReplicas": 0}), "spec.numberOfReplicas"),
            (json!({"size": "4096", "dataLocality": "near"}), "spec.dataLocality"),
            (json!({"size": "4096", "dataEngine": "v2"}), "spec.dataEngine"),
            (json!({"size": "4096", "encrypted": true}), "spec.encrypted"),
        ] {
            assert!(said(validate_volume, &volume(spec), None).starts_with(field), "{field}");
        }
        let smaller = volume(json!({"size": "4096"}));
        assert!(said(validate_volume, &smaller, Some(&good)).contains("cannot shrink"));

        let class = |parameters: Value| json!({"provisioner": DRIVER, "parameters": parameters});
        let check = |o: &Value| said(|o, _, p| validate_parameters(o, p), o, None);
        assert_eq!(check(&class(json!({"numberOfReplicas": "2", "staleReplicaTimeout": "30"}))), "");
        assert!(check(&class(json!({"numberOfReplicas": "many"}))).contains("must be a number"));
        assert!(check(&class(json!({"numberOfReplicas": "9"}))).contains("between 1 and 8"));
        assert!(check(&class(json!({"dataLocality": "x"}))).starts_with("parameters.dataLocality"));

        let snapshot = |source: Value| json!({"spec": {"source": source}});
        let good = snapshot(json!({"persistentVolumeClaimName": "a"}));
        assert_eq!(said(validate_snapshot, &good, None), "");
        assert!(said(validate_snapshot, &snapshot(json!({})), None).contains("exactly one"));
        let other = snapshot(json!({"persistentVolumeClaimName": "b"}));
        assert!(said(validate_snapshot, &other, Some(&good)).contains("immutable"));
    }
}
