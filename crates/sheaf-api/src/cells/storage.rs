//! Rows of claims, volumes, storage classes, secrets and config maps.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{age, count, joined, list, text, text_or};

const DEFAULT_CLASS: [&str; 2] = [
    "/metadata/annotations/storageclass.kubernetes.io~1is-default-class",
    "/metadata/annotations/storageclass.beta.kubernetes.io~1is-default-class",
];

fn access_modes(o: &Value, pointer: &str) -> Value {
    let short = |mode: &Value| match mode.as_str().unwrap_or_default() {
        "ReadWriteOnce" => "RWO".to_string(),
        "ReadOnlyMany" => "ROX".into(),
        "ReadWriteMany" => "RWX".into(),
        "ReadWriteOncePod" => "RWOP".into(),
        other => other.into(),
    };
    joined(list(o, pointer).iter().map(short), "")
}

pub(crate) fn claim(o: &Value, now: Timestamp) -> Vec<Value> {
    let deleting = !text(o, "/metadata/deletionTimestamp").is_empty();
    let bound = !text(o, "/spec/volumeName").is_empty();
    let of_volume = |pointer: &str| if bound { o.pointer(pointer).cloned() } else { None };
    vec![
        json!(if deleting { "Terminating" } else { text(o, "/status/phase") }),
        json!(text(o, "/spec/volumeName")),
        of_volume("/status/capacity/storage").unwrap_or(json!("")),
        if bound { access_modes(o, "/status/accessModes") } else { json!("") },
        json!(text(o, "/spec/storageClassName")),
        json!(text_or(o, "/spec/volumeAttributesClassName", "<unset>")),
        age(o, now),
        json!(text_or(o, "/spec/volumeMode", "<unset>")),
    ]
}

pub(crate) fn volume(o: &Value, now: Timestamp) -> Vec<Value> {
    let deleting = !text(o, "/metadata/deletionTimestamp").is_empty();
    let claim = match text(o, "/spec/claimRef/name") {
        "" => String::new(),
        name => format!("{}/{name}", text(o, "/spec/claimRef/namespace")),
    };
    vec![
        o.pointer("/spec/capacity/storage").cloned().unwrap_or(json!("0")),
        access_modes(o, "/spec/accessModes"),
        json!(text(o, "/spec/persistentVolumeReclaimPolicy")),
        json!(if deleting { "Terminating" } else { text(o, "/status/phase") }),
        json!(claim),
        json!(text(o, "/spec/storageClassName")),
        json!(text_or(o, "/spec/volumeAttributesClassName", "<unset>")),
        json!(text(o, "/status/reason")),
        age(o, now),
        json!(text_or(o, "/spec/volumeMode", "<unset>")),
    ]
}

pub(crate) fn storage_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let name = text(o, "/metadata/name");
    let default = DEFAULT_CLASS.iter().any(|annotation| text(o, annotation) == "true");
    vec![
        json!(if default { format!("{name} (default)") } else { name.to_string() }),
        json!(text(o, "/provisioner")),
        json!(text_or(o, "/reclaimPolicy", "Delete")),
        json!(text_or(o, "/volumeBindingMode", "Immediate")),
        json!(o["allowVolumeExpansion"] == true),
        age(o, now),
    ]
}

pub(crate) fn secret(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(text_or(o, "/type", "Opaque")), json!(count(o, "/data")), age(o, now)]
}

pub(crate) fn config_map(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(count(o, "/data") + count(o, "/binaryData")), age(o, now)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_shows_its_volume_once_it_is_bound() {
        let mut o = json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"storageClassName": "local", "volumeMode": "Block"}, "status": {"phase": "Pending"}});
        let cells = claim(&o, Timestamp::UNIX_EPOCH);
        assert_eq!(cells, ["Pending", "", "", "", "local", "<unset>", "0s", "Block"]);
        o["spec"]["volumeName"] = json!("pv-1");
        o["status"] =
            json!({"phase": "Bound", "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"]});
        assert_eq!(claim(&o, Timestamp::UNIX_EPOCH)[..4], ["Bound", "pv-1", "10Gi", "RWO"]);
    }

    #[test]
    fn the_default_class_says_so() {
        let o = json!({"metadata": {"name": "local",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "local.sheaf.io"});
        assert_eq!(storage_class(&o, Timestamp::UNIX_EPOCH)[0], "local (default)");
    }
}
