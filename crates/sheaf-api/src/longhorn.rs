//! `longhorn.io/v1beta2`: replicated volumes as objects. Who writes what is said in ARCHITECTURE.md; what is decided about them
//! is `sheaf_plan::storage`.
//!
//! Sizes are text where Longhorn has them so (`int64,string` in Go), numbers elsewhere. Fields of parts that Sheaf does not
//! have (a second data engine, encryption) are kept and not acted upon.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::object::{objects, resource};

/// Namespace of all these objects.
pub const NAMESPACE: &str = "longhorn-system";
/// Finalizer of all that is kept until its data is gone.
pub const FINALIZER: &str = "longhorn.io";
/// Provisioner of the claims, and driver of the volumes.
pub const DRIVER: &str = "driver.longhorn.io";
/// Label of engines, replicas and snapshots: their volume.
pub const OF_VOLUME: &str = "longhornvolume";

objects! {
    /// A replicated volume.
    Volume {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: VolumeSpec [required],
        status: Option<VolumeStatus>,
    }
    /// What the volume shall be.
    VolumeSpec {
        standby as "Standby": Option<bool>,
        access_mode: String [one_of "rwo" "rwop" "rwx" ""],
        backing_image: String,
        backup_block_size: String,
        backup_compression_method: String,
        backup_target_name: String,
        clone_mode: String,
        data_engine: String [one_of "v1" "v2" ""],
        data_locality: String [one_of "disabled" "best-effort" "strict-local" ""],
        /// Where its first content comes from: vol://NAME or snap://NAME/SNAPSHOT.
        data_source: String,
        disable_frontend: Option<bool>,
        disk_selector: Vec<String>,
        encrypted: Option<bool>,
        engine_node_id as "engineNodeID": String,
        freeze_filesystem_for_snapshot: String,
        from_backup: String,
        frontend: String,
        image: String,
        last_attached_by: String,
        migratable: Option<bool>,
        migration_node_id as "migrationNodeID": String,
        /// The node that it is to be attached to.
        node_id as "nodeID": String,
        node_selector: Vec<String>,
        number_of_replicas: Option<i64>,
        offline_rebuilding: String,
        rebuild_concurrent_sync_limit: Option<i64>,
        replica_auto_balance: String,
        replica_disk_soft_anti_affinity: String,
        replica_rebuilding_bandwidth_limit: Option<i64>,
        replica_soft_anti_affinity: String,
        replica_zone_soft_anti_affinity: String,
        restore_volume_recurring_job: String,
        revision_counter_disabled: Option<bool>,
        /// Bytes.
        size: String,
        snapshot_data_integrity: String,
        snapshot_hashing_requested_at: String,
        snapshot_max_count: Option<i64>,
        snapshot_max_size: String,
        /// Minutes after which a replica that has failed is given up; 0: never.
        stale_replica_timeout: Option<i64>,
        topology_requirement: Vec<Value>,
        unmap_mark_snap_chain_removed: String,
    }
    /// How the volume is.
    VolumeStatus {
        /// Bytes of one replica's layers.
        actual_size: Option<i64>,
        clone_status: Option<CloneStatus>,
        conditions: Vec<Condition> [nullable],
        current_engine_node_id as "currentEngineNodeID": String,
        current_image: String,
        current_migration_node_id as "currentMigrationNodeID": String,
        current_node_id as "currentNodeID": String,
        expansion_required: Option<bool>,
        frontend_disabled: Option<bool>,
        is_standby: Option<bool>,
        kubernetes_status: Option<KubernetesStatus>,
        last_auto_salvaged_at: String,
        last_backup: String,
        last_backup_at: String,
        last_degraded_at: String,
        owner_id as "ownerID": String,
        remount_requested_at: String,
        restore_initiated: Option<bool>,
        restore_required: Option<bool>,
        /// healthy, degraded, faulted or unknown.
        robustness: String,
        share_endpoint: String,
        share_state: String,
        /// creating, attached, detached, attaching, detaching or deleting.
        state: String,
    }
    /// How far the copy of another volume is.
    CloneStatus {
        attempt_count: Option<i64>,
        next_allowed_attempt_at: String,
        snapshot: String,
        source_volume: String,
        state: String,
    }
    /// Who uses the volume.
    KubernetesStatus {
        last_pod_ref_at: String,
        last_pvc_ref_at as "lastPVCRefAt": String,
        namespace: String,
        pv_name: String,
        pv_status: String,
        pvc_name: String,
        workloads_status: Vec<WorkloadStatus> [nullable],
    }
    /// One user.
    WorkloadStatus {
        pod_name: String,
        pod_status: String,
        workload_name: String,
        workload_type: String,
    }
    /// A statement about an object. Times are text.
    Condition {
        last_probe_time: String,
        last_transition_time: String,
        message: String,
        reason: String,
        /// True, False or Unknown.
        status: String,
        r#type: String,
    }
    /// Where a volume is attached: its coordinator.
    Engine {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: EngineSpec [required],
        status: Option<EngineStatus>,
    }
    /// What the engine shall do.
    EngineSpec {
        active: Option<bool>,
        backup_volume: String,
        data_engine: String,
        /// running or stopped.
        desire_state: String,
        disable_frontend: Option<bool>,
        frontend: String,
        image: String,
        log_requested: Option<bool>,
        node_id as "nodeID": String,
        rebuild_concurrent_sync_limit: Option<i64>,
        /// Replicas by name, and where their storage processes listen.
        replica_address_map: BTreeMap<String, String>,
        requested_backup_restore: String,
        requested_data_source: String,
        revision_counter_disabled: Option<bool>,
        salvage_requested: Option<bool>,
        snapshot_max_count: Option<i64>,
        snapshot_max_size: String,
        unmap_mark_snap_chain_removed_enabled: Option<bool>,
        upgraded_replica_address_map: BTreeMap<String, String>,
        volume_name: String,
        volume_size: String,
    }
    /// What the engine does.
    EngineStatus {
        backup_status: BTreeMap<String, Value>,
        clone_status: BTreeMap<String, Value>,
        conditions: Vec<Condition> [nullable],
        current_image: String,
        current_replica_address_map: BTreeMap<String, String>,
        current_size: String,
        current_state: String,
        /// Where guests find the volume.
        endpoint: String,
        instance_manager_name: String,
        ip: String,
        is_expanding: Option<bool>,
        last_expansion_error: String,
        last_expansion_failed_at: String,
        last_restored_backup: String,
        log_fetched: Option<bool>,
        owner_id as "ownerID": String,
        port: Option<i64>,
        purge_status: BTreeMap<String, Value>,
        rebuild_status: BTreeMap<String, RebuildStatus>,
        /// RW, WO or ERR of each replica.
        replica_mode_map: BTreeMap<String, String>,
        replica_transition_time_map: BTreeMap<String, String>,
        restore_status: BTreeMap<String, Value>,
        salvage_executed: Option<bool>,
        snapshots: BTreeMap<String, EngineSnapshot>,
        snapshots_error: String,
        started: Option<bool>,
        starting: Option<bool>,
        storage_ip as "storageIP": String,
        unmap_mark_snap_chain_removed_enabled: Option<bool>,
        uuid: String,
    }
    /// How far the rebuild of a replica is.
    RebuildStatus {
        error: String,
        from_replica_address: String,
        is_rebuilding: Option<bool>,
        progress: Option<i64>,
        state: String,
    }
    /// A snapshot as the engine has it.
    EngineSnapshot {
        children: BTreeMap<String, bool>,
        created: String,
        labels: BTreeMap<String, String>,
        name: String,
        parent: String,
        removed: Option<bool>,
        size: String,
        usercreated: Option<bool>,
    }
    /// One copy of a volume, on a disk of a node.
    Replica {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: ReplicaSpec [required],
        status: Option<ReplicaStatus>,
    }
    /// Where the replica shall be.
    ReplicaSpec {
        active: Option<bool>,
        backing_image: String,
        data_directory_name: String,
        data_engine: String,
        /// running or stopped.
        desire_state: String,
        /// UUID of the disk.
        disk_id as "diskID": String,
        disk_path: String,
        engine_name: String,
        eviction_requested: Option<bool>,
        /// When it was found to have failed; empty: it has not.
        failed_at: String,
        hard_node_affinity: String,
        /// When it was found to be in sync first; empty: never.
        healthy_at: String,
        image: String,
        last_failed_at: String,
        last_healthy_at: String,
        linked_clone_src_replica_name: String,
        log_requested: Option<bool>,
        migration_engine_name: String,
        node_id as "nodeID": String,
        rebuild_retry_count: Option<i64>,
        revision_counter_disabled: Option<bool>,
        salvage_requested: Option<bool>,
        snapshot_max_count: Option<i64>,
        snapshot_max_size: String,
        unmap_mark_disk_chain_removed_enabled: Option<bool>,
        volume_name: String,
        volume_size: String,
    }
    /// How the replica is.
    ReplicaStatus {
        conditions: Vec<Condition> [nullable],
        current_image: String,
        /// running, stopped, starting, stopping, error or unknown.
        current_state: String,
        instance_manager_name: String,
        ip: String,
        log_fetched: Option<bool>,
        owner_id as "ownerID": String,
        port: Option<i64>,
        salvage_executed: Option<bool>,
        started: Option<bool>,
        starting: Option<bool>,
        storage_ip as "storageIP": String,
        uuid: String,
    }
    /// A node as a place for replicas.
    Node {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: NodeSpec [required],
        status: Option<NodeStatus>,
    }
    /// What may be put on the node.
    NodeSpec {
        allow_scheduling: Option<bool>,
        disks: BTreeMap<String, DiskSpec>,
        eviction_requested: Option<bool>,
        instance_manager_cpu_request as "instanceManagerCPURequest": Option<i64>,
        name: String,
        tags: Vec<String>,
    }
    /// A directory of the node that replicas may be in.
    DiskSpec {
        allow_scheduling: Option<bool>,
        disk_driver: String,
        disk_type: String [one_of "filesystem" "block" ""],
        eviction_requested: Option<bool>,
        path: String,
        /// Bytes that replicas may not be promised.
        storage_reserved: Option<i64>,
        tags: Vec<String>,
    }
    /// How the node is.
    NodeStatus {
        auto_evicting: Option<bool>,
        conditions: Vec<Condition> [nullable],
        cpu_policy: String,
        disk_status: BTreeMap<String, DiskStatus>,
        region: String,
        snapshot_check_status: Option<Value>,
        zone: String,
    }
    /// How a disk is.
    DiskStatus {
        conditions: Vec<Condition> [nullable],
        disk_driver: String,
        disk_name: String,
        disk_path: String,
        disk_type: String,
        disk_uuid as "diskUUID": String,
        filesystem_type: String,
        health_data: BTreeMap<String, Value>,
        health_data_last_collected_at: String,
        instance_manager_name: String,
        scheduled_backing_image: BTreeMap<String, i64>,
        /// Replicas on it, and the bytes that they were promised.
        scheduled_replica: BTreeMap<String, i64>,
        storage_available: Option<i64>,
        storage_maximum: Option<i64>,
        storage_scheduled: Option<i64>,
    }
    /// A moment of a volume that is kept.
    Snapshot {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: SnapshotSpec [required],
        status: Option<SnapshotStatus>,
    }
    /// Which moment.
    SnapshotSpec {
        /// Make it; else it only stands for one that is there.
        create_snapshot: Option<bool>,
        labels: BTreeMap<String, String> [nullable],
        volume: String,
    }
    /// How the snapshot is.
    SnapshotStatus {
        checksum: String,
        checksum_calculated_at: String,
        children: BTreeMap<String, bool>,
        creation_time: String,
        error: String,
        labels: BTreeMap<String, String>,
        mark_removed: Option<bool>,
        owner_id as "ownerID": String,
        parent: String,
        ready_to_use: Option<bool>,
        requested_time: String,
        restore_size: Option<i64>,
        size: Option<i64>,
        user_created: Option<bool>,
    }
    /// A setting of the storage.
    Setting {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        value: String,
        status: Option<SettingStatus>,
    }
    /// Whether a setting is in force.
    SettingStatus {
        applied: Option<bool>,
    }
}

resource!(Volume, "longhorn.io", "v1beta2", "volumes", NamespaceResourceScope);
resource!(Engine, "longhorn.io", "v1beta2", "engines", NamespaceResourceScope);
resource!(Replica, "longhorn.io", "v1beta2", "replicas", NamespaceResourceScope);
resource!(Node, "longhorn.io", "v1beta2", "nodes", NamespaceResourceScope);
resource!(Snapshot, "longhorn.io", "v1beta2", "snapshots", NamespaceResourceScope);
resource!(Setting, "longhorn.io", "v1beta2", "settings", NamespaceResourceScope);

/// The condition of a type.
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.r#type == kind)
}

/// Sets a condition; `now` is when it changed, if it did: `lastTransitionTime` its status, `lastProbeTime` anything of it. True if
/// anything changed.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    now: &str,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
) -> bool {
    let new = |since: &str| Condition {
        last_probe_time: now.into(),
        last_transition_time: since.into(),
        message: message.into(),
        reason: reason.into(),
        status: status.into(),
        r#type: kind.into(),
    };
    match conditions.iter_mut().find(|c| c.r#type == kind) {
        Some(old) if (&*old.status, &*old.reason, &*old.message) == (status, reason, message) => false,
        Some(old) => {
            let since = if old.status == status { old.last_transition_time.clone() } else { now.into() };
            *old = new(&since);
            true
        }
        None => {
            conditions.push(new(now));
            true
        }
    }
}
