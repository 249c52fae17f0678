//! `VirtualMachine`: what somebody wants to exist, running or not, and the claims that come with it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaimSpec, TypedLocalObjectReference, TypedObjectReference, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};

use super::{Condition, DataVolumeName, Disk, PersistentVolumeClaimName, VirtualMachineInstanceSpec};
use crate::object::{Empty, objects, resource};

objects! {
    /// A virtual machine: the template of its instance, and whether that instance should run.
    VirtualMachine {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        /// What the machine should be.
        spec: VirtualMachineSpec [required],
        /// What was observed last.
        status: Option<VirtualMachineStatus> [nullable],
    }
    /// What the machine should be.
    VirtualMachineSpec {
        /// Volumes that are made for this machine and belong to it.
        data_volume_templates: Vec<DataVolumeTemplateSpec>,
        /// Named sizes (CPU, memory) from which the template is completed.
        instancetype: Option<InstancetypeMatcher>,
        /// Named preferences from which the template is completed.
        preference: Option<InstancetypeMatcher>,
        /// When an instance should run: Always, RerunOnFailure, Manual, Halted, Once or WaitAsReceiver.
        run_strategy: String,
        /// Old form of runStrategy: true is Always, false is Halted. Not together with it.
        running: Option<bool>,
        /// The instance to be made.
        template: VirtualMachineInstanceTemplateSpec [required],
        /// What a changed volume means: Replacement at the next start, or Migration of its data while it runs.
        update_volumes_strategy: String,
    }
    /// The instance to be made. Its labels and annotations reach the instance; those of the machine do not.
    VirtualMachineInstanceTemplateSpec {
        metadata: Option<ObjectMeta> [nullable],
        spec: VirtualMachineInstanceSpec,
    }
    /// Names an instance type or a preference.
    InstancetypeMatcher {
        /// Volume from whose labels the name is taken.
        infer_from_volume: String,
        /// What to do when it cannot be taken from there: Reject or Ignore.
        infer_from_volume_failure_policy: String,
        /// Kind; empty means the one that belongs to the whole cluster.
        kind: String,
        name: String,
        /// Revision that was in force when the machine was made.
        revision_name: String,
    }
    /// What was observed of a machine.
    VirtualMachineStatus {
        changed_block_tracking: Option<ChangedBlockTrackingStatus>,
        conditions: Vec<Condition>,
        /// Whether an instance exists.
        created: Option<bool>,
        /// Generation of the spec.
        desired_generation: Option<i64>,
        instancetype_ref: Option<InstancetypeStatusRef>,
        memory_dump_request: Option<MemoryDumpRequest> [nullable],
        /// Generation that the running instance was made from.
        observed_generation: Option<i64>,
        preference_ref: Option<InstancetypeStatusRef>,
        /// One word for people.
        printable_status: String [default "\"Stopped\""],
        /// Whether the instance is ready.
        ready: Option<bool>,
        /// Restore that is under way and locks the spec.
        restore_in_progress: Option<String>,
        /// Run strategy that was in force last.
        run_strategy: String,
        /// Snapshot that is under way and locks the spec.
        snapshot_in_progress: Option<String>,
        /// Failed starts in a row, and when the next one is due.
        start_failure: Option<StartFailure> [nullable],
        /// Starts and stops asked for and not done yet; the first counts.
        state_change_requests: Vec<StateChangeRequest>,
        /// Volumes to be plugged or unplugged.
        volume_requests: Vec<VolumeRequest> [atomic],
        /// For each volume, whether it can be part of a snapshot.
        volume_snapshot_statuses: Vec<VolumeSnapshotStatus>,
        volume_update_state: Option<VolumeUpdateState> [nullable],
    }
    /// Instance type in force.
    InstancetypeStatusRef {
        controller_revision_ref: Option<ControllerRevisionRef>,
        infer_from_volume: String,
        infer_from_volume_failure_policy: String,
        kind: String,
        name: String,
    }
    /// Name of a ControllerRevision.
    ControllerRevisionRef {
        name: String,
    }
    /// A request to write the guest's memory to a claim.
    MemoryDumpRequest {
        claim_name: String [required],
        end_timestamp: Option<Time>,
        file_name: Option<String>,
        message: String,
        /// Associating, InProgress, Unmounting, Completed, Dissociating or Failed.
        phase: String [required],
        remove: Option<bool>,
        start_timestamp: Option<Time>,
    }
    /// Failed starts in a row.
    StartFailure {
        consecutive_fail_count: Option<i32>,
        last_failed_vmi_uid as "lastFailedVMIUID": String,
        /// No start before this time.
        retry_after_timestamp: Option<Time>,
    }
    /// Something that was asked for once, as opposed to the run strategy.
    StateChangeRequest {
        /// Start or Stop.
        action: String [required],
        /// `paused: "true"` starts with the CPUs stopped.
        data: BTreeMap<String, String>,
        /// Instance that is to be stopped.
        uid: Option<String>,
    }
    /// A volume to be plugged or unplugged.
    VolumeRequest {
        add_volume_options: Option<AddVolumeOptions>,
        remove_volume_options: Option<RemoveVolumeOptions>,
    }
    /// A volume to be plugged.
    AddVolumeOptions {
        disk: Disk [required],
        dry_run: Vec<String> [atomic],
        name: String [required],
        volume_source: HotplugVolumeSource [required],
    }
    /// Where a plugged volume has its data.
    HotplugVolumeSource {
        data_volume: Option<DataVolumeName>,
        persistent_volume_claim: Option<PersistentVolumeClaimName>,
    }
    /// A volume to be unplugged.
    RemoveVolumeOptions {
        dry_run: Vec<String> [atomic],
        name: String [required],
    }
    /// Whether a volume can be part of a snapshot, and if not, why.
    VolumeSnapshotStatus {
        enabled: bool [required],
        name: String [required],
        reason: String,
    }
    /// Volumes whose data are moving.
    VolumeUpdateState {
        volume_migration_state: Option<VolumeMigrationState> [nullable],
    }
    /// Volumes whose data are moving.
    VolumeMigrationState {
        migrated_volumes: Vec<MigratedVolume> [atomic],
    }
    /// One volume whose data move from claim to claim.
    MigratedVolume {
        destination_pvc_info as "destinationPVCInfo": Option<ClaimInfo>,
        source_pvc_info as "sourcePVCInfo": Option<ClaimInfo>,
        volume_name: String [required],
    }
    /// What is known of a claim.
    ClaimInfo {
        access_modes: Vec<String> [atomic],
        capacity: BTreeMap<String, Quantity>,
        claim_name: String,
        filesystem_overhead: Option<String>,
        preallocated: Option<bool>,
        requests: BTreeMap<String, Quantity>,
        volume_mode: Option<String>,
    }
    /// Whether changed blocks are recorded for incremental backups.
    ChangedBlockTrackingStatus {
        backup_status: Option<BackupStatus>,
        state: String [required],
    }
    /// The last backup of an instance.
    BackupStatus {
        backup_msg: Option<String>,
        backup_name: String,
        checkpoint_name: Option<String>,
        completed: Option<bool>,
        end_timestamp: Option<Time>,
        failed: Option<bool>,
        quiesce_status: String,
        start_timestamp: Option<Time>,
        volumes: Vec<BackupVolumeInfo> [atomic],
    }
    /// A volume of a backup.
    BackupVolumeInfo {
        volume_name: String [required],
    }
    /// A volume that is made for a machine.
    DataVolumeTemplateSpec {
        api_version: String,
        kind: String,
        metadata: Option<ObjectMeta> [nullable],
        spec: DataVolumeSpec [required],
        status: Option<Empty> [nullable],
    }
    /// A claim, and where its first content comes from.
    DataVolumeSpec {
        checkpoints: Vec<DataVolumeCheckpoint>,
        /// kubevirt (a disk image) or archive.
        content_type: String,
        final_checkpoint: Option<bool>,
        preallocation: Option<bool>,
        priority_class_name: String,
        /// The claim in full; not together with storage.
        pvc: Option<PersistentVolumeClaimSpec>,
        source: Option<DataVolumeSource>,
        source_ref: Option<DataVolumeSourceRef>,
        /// The claim, completed from the profile of its class; not together with pvc.
        storage: Option<StorageSpec>,
    }
    /// Two snapshots of a source, the later of which is copied as a difference.
    DataVolumeCheckpoint {
        current: String [required],
        previous: String [required],
    }
    /// Where the first content comes from; exactly one.
    DataVolumeSource {
        /// Zeros.
        blank: Option<Empty>,
        gcs: Option<BucketSource>,
        http: Option<HttpSource>,
        imageio: Option<ImageIoSource>,
        /// A copy of another claim.
        pvc: Option<ObjectSource>,
        registry: Option<RegistrySource>,
        s3: Option<BucketSource>,
        snapshot: Option<ObjectSource>,
        /// The client sends it.
        upload: Option<Empty>,
        vddk: Option<VddkSource>,
    }
    /// An object store.
    BucketSource {
        cert_config_map: String,
        secret_ref: String,
        url: String [required],
    }
    /// A web server.
    HttpSource {
        cert_config_map: String,
        extra_headers: Vec<String>,
        secret_extra_headers: Vec<String>,
        secret_ref: String,
        url: String [required],
    }
    /// An oVirt image server.
    ImageIoSource {
        cert_config_map: String,
        disk_id: String [required],
        insecure_skip_verify: Option<bool>,
        secret_ref: String,
        url: String [required],
    }
    /// An object of the cluster.
    ObjectSource {
        name: String [required],
        namespace: String [required],
    }
    /// A container registry.
    RegistrySource {
        cert_config_map: Option<String>,
        image_stream: Option<String>,
        platform: Option<Platform>,
        pull_method: Option<String>,
        secret_ref: Option<String>,
        url: Option<String>,
    }
    /// Which build of an image is meant.
    Platform {
        architecture: String,
    }
    /// A VMware host.
    VddkSource {
        backing_file: String,
        extra_args: String,
        init_image_url as "initImageURL": String,
        secret_ref: String,
        thumbprint: String,
        url: String,
        uuid: String,
    }
    /// An object that names the source.
    DataVolumeSourceRef {
        kind: String [required],
        name: String [required],
        namespace: Option<String>,
    }
    /// A claim that the profile of its class completes.
    StorageSpec {
        access_modes: Vec<String>,
        data_source: Option<TypedLocalObjectReference>,
        data_source_ref: Option<TypedObjectReference>,
        resources: Option<VolumeResourceRequirements>,
        selector: Option<LabelSelector>,
        storage_class_name: Option<String>,
        volume_mode: Option<String>,
        volume_name: String,
    }
}

resource!(VirtualMachine, "kubevirt.io", "v1", "virtualmachines", NamespaceResourceScope);
