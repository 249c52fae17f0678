//! `snapshot.storage.k8s.io/v1`: moments of volumes as Kubernetes' clients ask for them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::Value;

use crate::object::{objects, resource};

objects! {
    /// A moment of a claim's volume.
    VolumeSnapshot {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: VolumeSnapshotSpec [required],
        status: Option<VolumeSnapshotStatus>,
    }
    /// Which moment.
    VolumeSnapshotSpec {
        source: VolumeSnapshotSource [required],
        volume_snapshot_class_name: Option<String>,
    }
    /// A claim, or a content that is there already; exactly one of them.
    VolumeSnapshotSource {
        persistent_volume_claim_name: Option<String>,
        volume_snapshot_content_name: Option<String>,
    }
    /// How the snapshot is.
    VolumeSnapshotStatus {
        bound_volume_snapshot_content_name: Option<String>,
        creation_time: Option<Time>,
        error: Option<VolumeSnapshotError>,
        ready_to_use: Option<bool>,
        restore_size: Option<Quantity>,
        volume_group_snapshot_name: Option<String>,
    }
    /// What went wrong last.
    VolumeSnapshotError {
        message: Option<String>,
        time: Option<Time>,
    }
    /// What a snapshot is made of, by the driver's name for it.
    VolumeSnapshotContent {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: VolumeSnapshotContentSpec [required],
        status: Option<VolumeSnapshotContentStatus>,
    }
    /// Whose it is, and what becomes of it.
    VolumeSnapshotContentSpec {
        deletion_policy: String [required; one_of "Delete" "Retain"],
        driver: String [required],
        source: VolumeSnapshotContentSource [required],
        source_volume_mode: Option<String>,
        volume_snapshot_class_name: Option<String>,
        volume_snapshot_ref: Option<Value> [required],
    }
    /// A volume, or a snapshot that is there already; exactly one of them.
    VolumeSnapshotContentSource {
        snapshot_handle: Option<String>,
        volume_handle: Option<String>,
    }
    /// How it is.
    VolumeSnapshotContentStatus {
        /// Nanoseconds since 1970.
        creation_time: Option<i64>,
        error: Option<VolumeSnapshotError>,
        ready_to_use: Option<bool>,
        restore_size: Option<i64> [min "0"],
        snapshot_handle: Option<String>,
        volume_group_snapshot_handle: Option<String>,
    }
    /// How snapshots are made.
    VolumeSnapshotClass {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        deletion_policy: String [required; one_of "Delete" "Retain"],
        driver: String [required],
        parameters: BTreeMap<String, String>,
    }
}

resource!(VolumeSnapshot, "snapshot.storage.k8s.io", "v1", "volumesnapshots", NamespaceResourceScope);
resource!(
    VolumeSnapshotContent,
    "snapshot.storage.k8s.io",
    "v1",
    "volumesnapshotcontents",
    ClusterResourceScope
);
resource!(
    VolumeSnapshotClass,
    "snapshot.storage.k8s.io",
    "v1",
    "volumesnapshotclasses",
    ClusterResourceScope
);
