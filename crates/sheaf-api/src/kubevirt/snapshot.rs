//! `snapshot.kubevirt.io` and `clone.kubevirt.io`, `v1beta1`: a machine as it was, brought back, or made twice. Who makes them
//! is `sheaf_controllers::snapshots`; what is decided on the way is `sheaf_plan::snapshot`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaimSpec, TypedLocalObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::{Condition, VirtualMachineSpec, VirtualMachineStatus};
use crate::object::{objects, resource};

objects! {
    VirtualMachineSnapshot {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: SnapshotSpec [required],
        status: Option<SnapshotStatus>,
    }
    VirtualMachineSnapshotContent {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: SnapshotContentSpec [required],
        status: Option<SnapshotContentStatus>,
    }
    VirtualMachineRestore {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: RestoreSpec [required],
        status: Option<RestoreStatus>,
    }
    VirtualMachineClone {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: CloneSpec [required],
        status: Option<CloneStatus>,
    }
    SnapshotSpec {
        deletion_policy: String,
        failure_deadline: String,
        source: TypedLocalObjectReference [required],
    }
    SnapshotStatus {
        conditions: Vec<Condition> [atomic],
        creation_time: Option<Time>,
        error: Option<SnapshotError>,
        indications: Vec<String> [set],
        phase: String,
        ready_to_use: Option<bool>,
        snapshot_volumes: Option<SnapshotVolumesLists>,
        source_indications: Vec<SnapshotIndication> [atomic],
        source_uid as "sourceUID": String,
        virtual_machine_snapshot_content_name: String,
    }
    SnapshotContentSpec {
        source: SnapshotSource [required],
        virtual_machine_snapshot_name: String,
        volume_backups: Vec<VolumeBackup> [atomic],
    }
    SnapshotContentStatus {
        creation_time: Option<Time>,
        error: Option<SnapshotError>,
        ready_to_use: Option<bool>,
        volume_snapshot_status: Vec<SnapshotOfVolume> [atomic],
    }
    RestoreSpec {
        patches: Vec<String> [atomic],
        target: TypedLocalObjectReference [required],
        target_readiness_policy: String,
        virtual_machine_snapshot_name: String [required],
        volume_ownership_policy: String,
        volume_restore_overrides: Vec<VolumeRestoreOverride> [atomic],
        volume_restore_policy: String,
    }
    RestoreStatus {
        complete: Option<bool>,
        conditions: Vec<Condition> [atomic],
        deleted_data_volumes: Vec<String> [set],
        restore_time: Option<Time>,
        restores: Vec<VolumeRestore> [atomic],
    }
    CloneSpec {
        annotation_filters: Vec<String> [atomic],
        label_filters: Vec<String> [atomic],
        new_mac_addresses: BTreeMap<String, String>,
        new_sm_bios_serial as "newSMBiosSerial": String,
        patches: Vec<String> [atomic],
        source: TypedLocalObjectReference [required],
        target: Option<TypedLocalObjectReference>,
        template: Option<CloneTemplateFilters>,
        volume_name_policy: String,
    }
    CloneStatus {
        conditions: Vec<Condition> [atomic],
        creation_time: Option<Time>,
        phase: String,
        restore_name: String,
        snapshot_name: String,
        target_name: String,
    }
    SnapshotError {
        message: String,
        time: Option<Time>,
    }
    SnapshotVolumesLists {
        excluded_volumes: Vec<String> [set],
        included_volumes: Vec<String> [set],
    }
    SnapshotIndication {
        indication: String [required],
        message: String [required],
    }
    SnapshotSource {
        virtual_machine: Option<SnapshotVirtualMachine>,
    }
    VolumeBackup {
        persistent_volume_claim: SnapshotClaim [required],
        volume_name: String [required],
        volume_snapshot_name: String,
    }
    SnapshotOfVolume {
        creation_time: Option<Time>,
        error: Option<SnapshotError>,
        ready_to_use: Option<bool>,
        volume_snapshot_name: String [required],
    }
    VolumeRestoreOverride {
        annotations: BTreeMap<String, String>,
        labels: BTreeMap<String, String>,
        restore_name: String,
        volume_name: String,
    }
    VolumeRestore {
        data_volume_name: String,
        persistent_volume_claim: String [required],
        volume_name: String [required],
        volume_snapshot_name: String [required],
    }
    CloneTemplateFilters {
        annotation_filters: Vec<String> [atomic],
        label_filters: Vec<String> [atomic],
    }
    SnapshotVirtualMachine {
        metadata: ObjectMeta,
        spec: Option<VirtualMachineSpec>,
        status: Option<VirtualMachineStatus>,
    }
    SnapshotClaim {
        metadata: ObjectMeta,
        spec: Option<PersistentVolumeClaimSpec>,
    }
}

resource!(
    VirtualMachineSnapshot,
    "snapshot.kubevirt.io",
    "v1beta1",
    "virtualmachinesnapshots",
    NamespaceResourceScope
);
resource!(
    VirtualMachineSnapshotContent,
    "snapshot.kubevirt.io",
    "v1beta1",
    "virtualmachinesnapshotcontents",
    NamespaceResourceScope
);
resource!(
    VirtualMachineRestore,
    "snapshot.kubevirt.io",
    "v1beta1",
    "virtualmachinerestores",
    NamespaceResourceScope
);
resource!(
    VirtualMachineClone,
    "clone.kubevirt.io",
    "v1beta1",
    "virtualmachineclones",
    NamespaceResourceScope
);
