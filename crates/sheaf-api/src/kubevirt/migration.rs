//! `VirtualMachineInstanceMigration`: one move of a running instance to another node, and what an instance's
//! status says of it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::{Condition, PhaseTransition};
use crate::object::{objects, resource};

objects! {
    /// One move of a running instance to another node.
    VirtualMachineInstanceMigration {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: VirtualMachineInstanceMigrationSpec [required],
        status: Option<VirtualMachineInstanceMigrationStatus> [nullable],
    }
    /// What should move.
    VirtualMachineInstanceMigrationSpec {
        /// Labels that the target must have beside those of the instance.
        added_node_selector: BTreeMap<String, String>,
        priority: Option<String>,
        receive: Option<MigrationReceive>,
        send_to: Option<MigrationSend>,
        /// Instance, in the same namespace.
        vmi_name: String,
    }
    /// Accept an instance of another cluster.
    MigrationReceive {
        migration_id as "migrationID": String [required],
    }
    /// Send the instance to another cluster.
    MigrationSend {
        connect_url as "connectURL": String [required],
        migration_id as "migrationID": String [required],
    }
    /// How far the move is.
    VirtualMachineInstanceMigrationStatus {
        conditions: Vec<Condition>,
        migration_state: Option<MigrationState>,
        phase: String,
        phase_transition_timestamps: Vec<PhaseTransition> [atomic],
        synchronization_addresses: Vec<String> [atomic],
    }
    /// The current or last move of an instance.
    MigrationState {
        abort_requested: Option<bool>,
        abort_status: String,
        completed: Option<bool>,
        end_timestamp: Option<Time> [nullable],
        failed: Option<bool>,
        failure_reason: String,
        migration_configuration: Option<MigrationConfiguration>,
        migration_network_type: String,
        migration_policy_name: Option<String>,
        migration_uid: String,
        /// PreCopy, PostCopy or Paused.
        mode: String,
        source_node: String,
        source_persistent_state_pvc_name as "sourcePersistentStatePVCName": String,
        source_pod: String,
        source_state: Option<MigrationSourceState>,
        start_timestamp: Option<Time> [nullable],
        target_attachment_pod_uid as "targetAttachmentPodUID": String,
        target_cpu_set as "targetCPUSet": Vec<i32> [atomic],
        target_direct_migration_node_ports: BTreeMap<String, i32>,
        target_memory_overhead: Option<Quantity>,
        target_node: String,
        target_node_address: String,
        target_node_domain_detected: Option<bool>,
        target_node_domain_ready_timestamp: Option<Time>,
        target_node_topology: String,
        target_persistent_state_pvc_name as "targetPersistentStatePVCName": String,
        target_pod: String,
        target_state: Option<MigrationTargetState>,
    }
    /// Limits in force for a move.
    MigrationConfiguration {
        allow_auto_converge: Option<bool>,
        allow_post_copy: Option<bool>,
        allow_workload_disruption: Option<bool>,
        /// Bytes a second; 0 is no limit.
        bandwidth_per_migration: Option<Quantity>,
        completion_timeout_per_gi_b as "completionTimeoutPerGiB": Option<i64>,
        disable_tls as "disableTLS": Option<bool>,
        experimental: Option<ExperimentalMigrationOptions>,
        match_selinux_level_on_migration as "matchSELinuxLevelOnMigration": Option<bool>,
        max_downtime_ms: Option<i64>,
        network: Option<String>,
        node_drain_taint_key: Option<String>,
        parallel_migrations_per_cluster: Option<u32>,
        parallel_outbound_migrations_per_node: Option<u32>,
        /// Seconds without progress after which a move is given up.
        progress_timeout: Option<i64>,
        unsafe_migration_override: Option<bool>,
        utility_volumes_timeout: Option<i64>,
    }
    /// Options whose meaning may still change.
    ExperimentalMigrationOptions {
        compression: Option<String>,
        downtime_tuning: Option<DowntimeTuning>,
        stall_detector: Option<StallDetector>,
    }
    /// How the pause at the end may grow.
    DowntimeTuning {
        cooldown_seconds: Option<i32>,
        initial_ms: Option<i64>,
        start_after_iteration: Option<i64>,
        steps: Option<i32>,
    }
    /// When a move counts as stuck.
    StallDetector {
        completion_timeout_factor: Option<Quantity>,
        ewma_alpha: Option<Quantity>,
        patience_window_decay_factor: Option<Quantity>,
        precopy_possible_factor: Option<Quantity>,
        search_local_minima: Option<bool>,
        stall_margin: Option<i64>,
        stall_progress_timeout: Option<i64>,
        switchover_timeout: Option<i64>,
    }
    /// The side that gives.
    MigrationSourceState {
        domain_name: Option<String>,
        domain_namespace: Option<String>,
        migration_uid as "migrationUID": String,
        node: String,
        node_selectors: BTreeMap<String, String>,
        persistent_state_pvc_name as "persistentStatePVCName": String,
        pod: String,
        selinux_context: String,
        sync_address: Option<String>,
        virtual_machine_instance_uid as "virtualMachineInstanceUID": Option<String>,
    }
    /// The side that takes.
    MigrationTargetState {
        attachment_pod_uid as "attachmentPodUID": Option<String>,
        cpu_set: Vec<i32> [atomic],
        direct_migration_node_ports: BTreeMap<String, i32>,
        domain_detected: Option<bool>,
        domain_name: Option<String>,
        domain_namespace: Option<String>,
        domain_ready_timestamp: Option<Time>,
        migration_uid as "migrationUID": String,
        node: String,
        node_address: Option<String>,
        node_topology: Option<String>,
        persistent_state_pvc_name as "persistentStatePVCName": String,
        pod: String,
        selinux_context: String,
        sync_address: Option<String>,
        virtual_machine_instance_uid as "virtualMachineInstanceUID": Option<String>,
    }
}

resource!(
    VirtualMachineInstanceMigration,
    "kubevirt.io",
    "v1",
    "virtualmachineinstancemigrations",
    NamespaceResourceScope
);
