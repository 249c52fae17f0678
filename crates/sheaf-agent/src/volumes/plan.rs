//! What follows for a claim and for a volume of class `local`: pure.
//!
//! ```text
//! claim:  selected-node is this node -> (wait for its image) -> file -> PV -> Bound -> ... -> deleted
//!                                                                              (held while a machine uses it)
//! volume: Bound -> its claim has gone -> Released -> reclaim policy Delete: file removed -> PV removed
//!                                                    reclaim policy Retain: stays, also after the PV has gone
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde_json::{Value, json};
use sheaf_api::kubevirt::VirtualMachineInstance;
use sheaf_image::human_bytes;
use sheaf_image::probe::Format;
use sheaf_meta::quantity::Quantity;
use sheaf_plan::claim::{self, PROTECTION};
use sheaf_runtime::ObjectKey;

use super::files::Content;

/// Provisioner of volumes that are files of one node.
pub const PROVISIONER: &str = "local.sheaf.io";
/// Annotation of a claim: the node that its volume is to be on. Written by the scheduler.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Annotation of a claim: the snapshot of its node that its volume is to be as.
pub const SNAPSHOT: &str = "sheaf.io/local-snapshot";
/// Keeps a PersistentVolume until its file has been removed.
pub const VOLUME_FINALIZER: &str = "sheaf.io/local-volume";
/// Volumes are whole pages, since disks with sectors of 4096 bytes exist.
const PAGE: u64 = 4096;

/// The image of a claim, as far as this node is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageOf {
    /// It asks for none.
    None,
    /// It is here.
    Here {
        /// NAMESPACE/NAME.
        name: String,
        /// Its data.
        base: PathBuf,
        /// Its format.
        format: Format,
        /// Size of its disk in bytes.
        virtual_size: u64,
    },
    /// It is to be as a snapshot of this node.
    Snapshot {
        /// The snapshot's directory.
        dir: PathBuf,
        /// Size of its disk in bytes.
        virtual_size: u64,
        /// The image below it.
        image: Option<String>,
    },
    /// It is on its way.
    Coming(String),
    /// It is not.
    Missing(String),
}

/// Why a claim does not progress; written into its condition and an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// Whether it ends by itself before long.
    pub soon: bool,
}

/// What to do with a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimStep {
    /// Nothing.
    Nothing,
    /// Say why nothing can be done.
    Hold(Hold),
    /// Make the volume and bind it.
    Create {
        /// Its size.
        bytes: u64,
        /// What it shows.
        content: Content,
    },
    /// The volume is there: write what is missing on both sides.
    Bind,
    /// Make it larger.
    Grow {
        /// Its new size.
        bytes: u64,
    },
    /// Say that it will grow.
    GrowLater(String),
    /// Let it go.
    Unprotect,
}

/// What is known of a claim.
#[derive(Debug, Clone, Copy)]
pub struct ClaimSeen<'a> {
    /// The claim.
    pub claim: &'a PersistentVolumeClaim,
    /// Its class.
    pub class: Option<&'a StorageClass>,
    /// The volume of `spec.volumeName`.
    pub volume: Option<&'a PersistentVolume>,
    /// Its image.
    pub image: &'a ImageOf,
    /// Machines of this node that use it, by name.
    pub users: &'a [String],
    /// This node.
    pub node: &'a str,
    /// Size of its disk, if it is a file here: a machine may have made it larger.
    pub disk_bytes: Option<u64>,
    /// Free bytes on the volumes' file system beside what must stay free, and its size.
    pub space: (u64, u64),
}

/// Decides about a claim.
pub fn plan_claim(seen: &ClaimSeen<'_>) -> ClaimStep {
    let claim = seen.claim;
    let spec = claim.spec.clone().unwrap_or_default();
    let bound_to = spec.volume_name.as_deref().filter(|name| !name.is_empty());
    if claim.metadata.deletion_timestamp.is_some() {
        let here = seen.volume.is_some_and(|volume| is_here(volume, seen.node));
        let protected = claim.finalizers().iter().any(|f| f == PROTECTION);
        let may = here && protected && seen.users.is_empty();
        return if may { ClaimStep::Unprotect } else { ClaimStep::Nothing };
    }
    let asked = match requested(claim) {
        Ok(bytes) => bytes,
        Err(why) => return hold("InvalidSize", why),
    };
    if bound_to.is_some() {
        let Some(volume) = seen.volume.filter(|volume| is_here(volume, seen.node) && belongs(volume, claim))
        else {
            return ClaimStep::Nothing;
        };
        return plan_bound(seen, volume, asked);
    }
    let ours = seen.class.is_some_and(|class| class.provisioner == PROVISIONER);
    let selected = claim.annotations().get(SELECTED_NODE).is_some_and(|node| node == seen.node);
    if !ours || !selected {
        return ClaimStep::Nothing;
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        let why = "spec.dataSource is not supported by class local: the claim can be blank or of an image";
        return hold("NotSupported", why.to_owned());
    }
    let (free, total) = seen.space;
    // Overlays and sparse files begin small, but what can never be filled is no disk.
    if asked > total || free < (16 << 20) {
        let message = format!(
            "no space on node {}: the claim asks for {}, of {} on the file system of the volumes {} are free",
            seen.node,
            human_bytes(asked),
            human_bytes(total),
            human_bytes(free)
        );
        return hold("NoSpace", message);
    }
    match seen.image {
        ImageOf::None => ClaimStep::Create { bytes: asked, content: Content::Blank },
        ImageOf::Coming(message) => {
            let message = message.clone();
            ClaimStep::Hold(Hold { reason: "WaitingForImage", message, soon: true })
        }
        ImageOf::Missing(message) => hold("ImageMissing", message.clone()),
        ImageOf::Snapshot { dir, virtual_size, .. } => ClaimStep::Create {
            bytes: asked.max(*virtual_size),
            content: Content::Snapshot { dir: dir.clone() },
        },
        ImageOf::Here { name, virtual_size, .. } if asked < *virtual_size => hold(
            "TooSmall",
            format!(
                "spec.resources.requests.storage is {} ({asked} bytes), less than the {} ({virtual_size} bytes) of \
                 image {name}; ask for at least as much",
                human_bytes(asked),
                human_bytes(*virtual_size)
            ),
        ),
        ImageOf::Here { name, base, format, .. } => {
            let content = Content::Image { name: name.clone(), base: base.clone(), format: *format };
            ClaimStep::Create { bytes: asked, content }
        }
    }
}

fn hold(reason: &'static str, message: String) -> ClaimStep {
    ClaimStep::Hold(Hold { reason, message, soon: false })
}

fn plan_bound(seen: &ClaimSeen<'_>, volume: &PersistentVolume, asked: u64) -> ClaimStep {
    let claim = seen.claim;
    let status = claim.status.clone().unwrap_or_default();
    let capacity = status.capacity.as_ref().and_then(|c| bytes_of(c.get("storage").map(|q| q.0.as_str())?));
    let phase_is = |phase: &str| status.phase.as_deref() == Some(phase);
    let volume_bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let protected = claim.finalizers().iter().any(|f| f == PROTECTION);
    let Some(has) = capacity.filter(|_| phase_is("Bound") && volume_bound && protected) else {
        return ClaimStep::Bind;
    };
    if asked <= has {
        return ClaimStep::Nothing;
    }
    if seen.disk_bytes.is_some_and(|bytes| bytes >= asked) {
        return ClaimStep::Grow { bytes: asked };
    }
    if let Some(user) = seen.users.first() {
        return ClaimStep::GrowLater(format!(
            "the volume grows from {} to {} in machine {user}, or when that is stopped",
            human_bytes(has),
            human_bytes(asked)
        ));
    }
    if asked > seen.space.1 {
        return ClaimStep::GrowLater(format!(
            "no space on node {}: {} are asked for, the file system of the volumes has {}",
            seen.node,
            human_bytes(asked),
            human_bytes(seen.space.1)
        ));
    }
    ClaimStep::Grow { bytes: asked }
}

/// What to do with a PersistentVolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeStep {
    /// Nothing.
    Nothing,
    /// Say that its claim has gone.
    Release,
    /// Remove its file, then the object.
    Destroy,
    /// Remove the object, and leave the file where it is.
    Forget,
}

/// Decides about a PersistentVolume of this node. `claim_there`: whether the claim that it is bound to exists.
pub fn plan_volume(volume: &PersistentVolume, node: &str, claim_there: bool, users: &[String]) -> VolumeStep {
    if !is_here(volume, node) || claim_there || !users.is_empty() {
        return VolumeStep::Nothing;
    }
    let spec = volume.spec.as_ref();
    let delete = spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
    let deleting = volume.metadata.deletion_timestamp.is_some();
    let was_bound = spec.is_some_and(|s| s.claim_ref.as_ref().is_some_and(|c| c.uid.is_some()));
    let released = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Released");
    match (delete, deleting) {
        (true, true) => VolumeStep::Destroy,
        (true, false) if was_bound => VolumeStep::Destroy,
        (false, true) => VolumeStep::Forget,
        (false, false) if was_bound && !released => VolumeStep::Release,
        _ => VolumeStep::Nothing,
    }
}

/// Name of the volume of a claim.
pub fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid().unwrap_or_default())
}

/// Whether a volume is one of ours, on this node.
pub fn is_here(volume: &PersistentVolume, node: &str) -> bool {
    let ours = volume.annotations().get("pv.kubernetes.io/provisioned-by").is_some_and(|p| p == PROVISIONER);
    ours && node_of(volume).as_deref() == Some(node)
}

/// The node that a volume's affinity names.
pub fn node_of(volume: &PersistentVolume) -> Option<String> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let mut expressions =
        affinity.node_selector_terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
    let host = expressions.find(|e| e.key == "kubernetes.io/hostname" && e.operator == "In")?;
    host.values.as_ref()?.first().cloned()
}

/// Whether a volume is bound to this very claim.
pub fn belongs(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|r| r.uid.is_some() && r.uid == claim.metadata.uid)
}

/// What a claim asks for, in whole pages.
pub fn requested(claim: &PersistentVolumeClaim) -> Result<u64, String> {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let text = requests.and_then(|requests| requests.get("storage")).map_or("", |quantity| &quantity.0);
    match bytes_of(text) {
        Some(bytes) if bytes > 0 => Ok(bytes.next_multiple_of(PAGE)),
        _ => Err(format!("spec.resources.requests.storage {text:?} is no positive number of bytes")),
    }
}

fn bytes_of(text: &str) -> Option<u64> {
    Quantity::parse(text).ok()?.bytes().filter(|bytes| *bytes < 1 << 60)
}

/// NAMESPACE/NAME of the image that a claim's volume is to be made of.
pub fn image_of(claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> Option<ObjectKey> {
    let (namespace, name) = claim::image_of(claim, class)?;
    Some(ObjectKey::new(namespace, name))
}

/// The claims that an instance uses.
pub fn claims_of(instance: &VirtualMachineInstance) -> Vec<ObjectKey> {
    let namespace = instance.namespace().unwrap_or_default();
    let names = claim::claims_of(&instance.spec).into_iter();
    names.map(|name| ObjectKey::new(namespace.clone(), name)).collect()
}

/// Whether an instance may have its disks open on a node.
pub fn is_user(instance: &VirtualMachineInstance, node: &str) -> bool {
    instance.status.as_ref().is_some_and(|status| {
        status.node_name == node && !matches!(status.phase.as_str(), "Succeeded" | "Failed")
    })
}

/// The PersistentVolume of a new volume.
pub fn volume_object(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &str,
    path: &std::path::Path,
    bytes: u64,
) -> Value {
    let spec = claim.spec.clone().unwrap_or_default();
    let labels: BTreeMap<&str, &str> = BTreeMap::from([("sheaf.io/node", node)]);
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": volume_name(claim), "labels": labels, "finalizers": [VOLUME_FINALIZER],
            "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
        },
        "spec": {
            "capacity": {"storage": text_of(bytes)},
            "accessModes": spec.access_modes, "volumeMode": spec.volume_mode.as_deref().unwrap_or("Filesystem"),
            "storageClassName": class.name_any(),
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": claim.namespace(), "name": claim.name_any(), "uid": claim.uid(),
            },
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
            ]}]}},
        },
    })
}

/// A number of bytes as a quantity.
pub fn text_of(bytes: u64) -> String {
    Quantity::from_bytes(bytes).to_string()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
