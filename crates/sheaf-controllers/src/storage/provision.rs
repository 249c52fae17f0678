//! From a claim and its class to a volume, and from a volume to a PersistentVolume. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde_json::{Value, json};
use sheaf_api::longhorn::{DRIVER, NAMESPACE, Volume};
use sheaf_meta::quantity::Quantity;
use sheaf_plan::storage::{CONTENT, Settings};
use sheaf_runtime::ObjectKey;

/// Volumes are whole multiples of this.
const STEP: u64 = 2 << 20;
/// The smallest volume.
const SMALLEST: u64 = 10 << 20;
/// Why a volume cannot be made: one word and a sentence.
pub(super) type Refused = (&'static str, String);

/// Bytes of a volume of which so many are asked for.
pub(super) fn rounded(bytes: u64) -> u64 {
    bytes.max(SMALLEST).next_multiple_of(STEP)
}

/// Bytes that a claim asks for, as its volume has them.
pub(super) fn requested(claim: &PersistentVolumeClaim) -> Result<u64, Refused> {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let text = requests.and_then(|requests| requests.get("storage")).map_or("", |quantity| &quantity.0);
    let bytes = Quantity::parse(text).ok().and_then(|q| q.bytes()).filter(|b| *b > 0 && *b < 1 << 50);
    bytes.map(rounded).ok_or_else(|| {
        let why =
            format!("spec.resources.requests.storage {text:?} is no number of bytes above 0 and below 1 PiB");
        ("InvalidSize", why)
    })
}

/// Name of the volume of a claim.
pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid().unwrap_or_default())
}

/// NAMESPACE/NAME of the image of a claim.
pub(super) fn image_of(claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> Option<ObjectKey> {
    let (namespace, name) = sheaf_plan::claim::image_of(claim, class)?;
    Some(ObjectKey::new(namespace, name))
}

/// What a claim's volume holds at first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nothing.
    Blank,
    /// An image, whose backing image Longhorn would call so.
    Image(ObjectKey, String),
    /// `vol://NAME` or `snap://NAME/SNAPSHOT`, with the bytes that the source has.
    Copy(String, u64),
}

/// The volume of a claim.
pub(super) fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    origin: &Origin,
    settings: &Settings,
) -> Result<Volume, Refused> {
    let parameters = class.parameters.clone().unwrap_or_default();
    let get = |name: &str| parameters.get(name).map_or("", String::as_str);
    let unsupported = |what: &str| Err(("NotSupported", what.to_owned()));
    if get("encrypted") == "true" {
        return unsupported("parameters.encrypted: encrypted volumes are not supported");
    }
    if get("dataEngine") == "v2" {
        return unsupported("parameters.dataEngine: only v1 is served");
    }
    if !get("fromBackup").is_empty() {
        return unsupported("parameters.fromBackup: volumes from backups are not supported yet");
    }
    let spec = claim.spec.clone().unwrap_or_default();
    let modes = spec.access_modes.unwrap_or_default();
    let many = modes.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany");
    if many && spec.volume_mode.as_deref() != Some("Block") {
        let what = "a file system that several nodes share (ReadWriteMany with volumeMode Filesystem) is not supported; \
            use volumeMode Block";
        return unsupported(what);
    }
    let bytes = match origin {
        Origin::Copy(_, bytes) => requested(claim)?.max(*bytes),
        _ => requested(claim)?,
    };
    let number = |name: &str| get(name).parse::<i64>().ok();
    let list = |name: &str| {
        let parts = get(name).split(',').map(str::trim).filter(|t| !t.is_empty());
        parts.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut volume = Volume::new(NAMESPACE, &volume_name(claim));
    volume.spec.size = bytes.to_string();
    volume.spec.number_of_replicas =
        Some(number("numberOfReplicas").unwrap_or(settings.replicas).clamp(1, 8));
    volume.spec.stale_replica_timeout = Some(number("staleReplicaTimeout").unwrap_or(2880));
    volume.spec.data_locality =
        if get("dataLocality").is_empty() { "disabled".into() } else { get("dataLocality").into() };
    volume.spec.access_mode = if many { "rwx".into() } else { "rwo".into() };
    volume.spec.migratable = Some(many && get("migratable") == "true");
    volume.spec.data_engine = "v1".into();
    volume.spec.frontend = "blockdev".into();
    volume.spec.backup_target_name = "default".into();
    volume.spec.disk_selector = list("diskSelector");
    volume.spec.node_selector = list("nodeSelector");
    volume.spec.replica_soft_anti_affinity = get("replicaSoftAntiAffinity").into();
    volume.spec.replica_zone_soft_anti_affinity = get("replicaZoneSoftAntiAffinity").into();
    volume.spec.replica_disk_soft_anti_affinity = get("replicaDiskSoftAntiAffinity").into();
    volume.spec.revision_counter_disabled = Some(true);
    volume.metadata.finalizers = Some(vec![sheaf_api::longhorn::FINALIZER.into()]);
    let mut annotations = BTreeMap::new();
    match origin {
        Origin::Blank => volume.spec.backing_image = get("backingImage").into(),
        Origin::Image(image, backing) => {
            volume.spec.backing_image.clone_from(backing);
            annotations.insert(CONTENT.to_owned(), super::volumes::image_content(image));
        }
        Origin::Copy(source, _) => {
            volume.spec.data_source.clone_from(source);
            annotations.insert(CONTENT.to_owned(), source.clone());
        }
    }
    volume.metadata.annotations = Some(annotations);
    Ok(volume)
}

/// The PersistentVolume of a claim's volume.
pub(super) fn persistent(claim: &PersistentVolumeClaim, class: &StorageClass, bytes: u64) -> Value {
    let spec = claim.spec.clone().unwrap_or_default();
    let mut attributes: BTreeMap<String, String> = class.parameters.clone().unwrap_or_default();
    attributes.insert("storage.kubernetes.io/csiProvisionerIdentity".into(), format!("sheaf-{DRIVER}"));
    let mode = spec.volume_mode.as_deref().unwrap_or("Filesystem");
    let fs = attributes.get("fsType").cloned().unwrap_or_else(|| "ext4".into());
    let mut csi =
        json!({"driver": DRIVER, "volumeHandle": volume_name(claim), "volumeAttributes": attributes});
    if mode == "Filesystem" {
        csi["fsType"] = json!(fs);
    }
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": volume_name(claim),
            "finalizers": ["kubernetes.io/pv-protection", "external-provisioner.volume.kubernetes.io/finalizer"],
            "annotations": {
                "pv.kubernetes.io/provisioned-by": DRIVER,
                "volume.kubernetes.io/provisioner-deletion-secret-name": "",
                "volume.kubernetes.io/provisioner-deletion-secret-namespace": "",
            },
        },
        "spec": {
            "capacity": {"storage": Quantity::from_bytes(bytes).to_string()},
            "accessModes": spec.access_modes, "volumeMode": mode, "storageClassName": class_name(claim, class),
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": claim.namespace(), "name": claim.name_any(), "uid": claim.uid(),
            },
            "csi": csi,
        },
    })
}

/// The class as the claim names it: an old name of an image's class stays what it is.
fn class_name(claim: &PersistentVolumeClaim, class: &StorageClass) -> String {
    let named = claim.spec.as_ref().and_then(|s| s.storage_class_name.clone());
    named.unwrap_or_else(|| class.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: Value) -> PersistentVolumeClaim {
        serde_json::from_value(
            json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"}, "spec": spec}),
        )
        .expect("a claim")
    }

    fn class(parameters: Value) -> StorageClass {
        serde_json::from_value(
            json!({"metadata": {"name": "longhorn"}, "provisioner": DRIVER, "parameters": parameters}),
        )
        .expect("a class")
    }

    fn sized(size: &str) -> PersistentVolumeClaim {
        claim(json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}))
    }

    #[test]
    fn sizes_are_rounded_as_longhorn_does() {
        assert_eq!(requested(&sized("1Gi")), Ok(1 << 30));
        assert_eq!(requested(&sized("1")), Ok(10 << 20));
        assert_eq!(requested(&sized("11Mi")), Ok(12 << 20));
        assert_eq!(requested(&sized("0")).map_err(|e| e.0), Err("InvalidSize"));
    }

    #[test]
    fn parameters_become_the_spec() {
        let parameters = json!({"numberOfReplicas": "2", "staleReplicaTimeout": "30", "diskSelector": "fast, ssd",
            "dataLocality": "best-effort", "migratable": "true"});
        let made =
            volume(&sized("1Gi"), &class(parameters), &Origin::Blank, &Settings::default()).expect("made");
        assert_eq!(made.metadata.name.as_deref(), Some("pvc-u"));
        assert_eq!((made.spec.size.as_str(), made.spec.number_of_replicas), ("1073741824", Some(2)));
        assert_eq!(made.spec.disk_selector, ["fast", "ssd"]);
        assert_eq!((made.spec.access_mode.as_str(), made.spec.migratable), ("rwo", Some(false)));
        let block = claim(json!({"accessModes": ["ReadWriteMany"], "volumeMode": "Block",
            "resources": {"requests": {"storage": "1Gi"}}}));
        let image = Origin::Image(ObjectKey::new("ns", "i"), "vmi-1".into());
        let made = volume(&block, &class(json!({"migratable": "true"})), &image, &Settings::default())
            .expect("made");
        assert_eq!((made.spec.access_mode.as_str(), made.spec.migratable), ("rwx", Some(true)));
        assert_eq!(made.spec.number_of_replicas, Some(3), "the setting's");
        assert_eq!(made.annotations().get(CONTENT).map(String::as_str), Some("image:ns/i"));
        for (claim, parameters) in [
            (sized("1Gi"), json!({"encrypted": "true"})),
            (sized("1Gi"), json!({"fromBackup": "s3://x"})),
            (
                claim(
                    json!({"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}),
                ),
                json!({}),
            ),
        ] {
            let refused = volume(&claim, &class(parameters), &Origin::Blank, &Settings::default());
            assert_eq!(refused.map_err(|e| e.0).err(), Some("NotSupported"));
        }
    }

    #[test]
    fn a_persistent_volume_names_its_driver() {
        let pv = persistent(&sized("1Gi"), &class(json!({"numberOfReplicas": "2"})), 1 << 30);
        assert_eq!(pv["spec"]["csi"]["volumeHandle"], "pvc-u");
        assert_eq!(pv["spec"]["csi"]["fsType"], "ext4");
        assert_eq!(pv["spec"]["csi"]["volumeAttributes"]["numberOfReplicas"], "2");
        assert_eq!(pv["spec"]["capacity"]["storage"], "1Gi");
        assert!(pv["spec"].get("nodeAffinity").is_none());
    }
}
