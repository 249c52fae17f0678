//! `VirtualMachineInstance`: one run of a machine, from being placed to its end. The spec is the same as in a
//! machine's template; the status is written by the scheduler and by the agent of the instance's node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, ExecAction, HTTPGetAction, PodDNSConfig, TCPSocketAction, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::{
    AccessCredential, ChangedBlockTrackingStatus, ClaimInfo, DomainSpec, Machine, MigratedVolume,
    MigrationState, Network, UtilityVolume, Volume,
};
use crate::object::{Empty, objects, resource};

objects! {
    /// One run of a virtual machine.
    VirtualMachineInstance {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        /// What runs. Most of it cannot change while it runs.
        spec: VirtualMachineInstanceSpec [required],
        /// What was observed last.
        status: Option<VirtualMachineInstanceStatus> [nullable],
    }
    /// What runs, with what, and where it may run.
    VirtualMachineInstanceSpec {
        /// SSH keys and passwords to be put into the guest.
        access_credentials: Vec<AccessCredential> [atomic],
        /// Rules of placement.
        affinity: Option<Affinity>,
        /// amd64, arm64 or s390x; that of the cluster if empty.
        architecture: String,
        dns_config: Option<PodDNSConfig>,
        dns_policy: String [one_of "ClusterFirst" "ClusterFirstWithHostNet" "Default" "None"],
        /// The virtual hardware.
        domain: DomainSpec [required],
        /// What a drain of the node means: LiveMigrate, LiveMigrateIfPossible, External or None.
        eviction_strategy: Option<String>,
        /// Name that the guest is given; that of the object if empty.
        hostname: String,
        /// The guest is restarted when this fails.
        liveness_probe: Option<Probe>,
        /// Networks that interfaces are connected to, by name.
        networks: Vec<Network>,
        /// Labels that the node must have.
        node_selector: BTreeMap<String, String>,
        priority_class_name: String,
        /// The guest counts as ready while this succeeds.
        readiness_probe: Option<Probe>,
        resource_claims: Vec<ResourceClaim> [map "name"],
        scheduler_name: String,
        service_account_name: String,
        /// Paused starts with the CPUs stopped.
        start_strategy: Option<String>,
        subdomain: String,
        /// Seconds that the guest has to shut down before it is forced to; 30 if not given.
        termination_grace_period_seconds: Option<i64>,
        tolerations: Vec<Toleration>,
        topology_spread_constraints: Vec<TopologySpreadConstraint> [map "topologyKey" "whenUnsatisfiable"],
        utility_volumes: Vec<UtilityVolume> [map "name"],
        /// Data that disks and file systems show, by name.
        volumes: Vec<Volume>,
    }
    /// A check of the guest, repeated.
    Probe {
        exec: Option<ExecAction>,
        failure_threshold: Option<i32>,
        guest_agent_ping: Option<Empty>,
        http_get: Option<HTTPGetAction>,
        initial_delay_seconds: Option<i32>,
        period_seconds: Option<i32>,
        success_threshold: Option<i32>,
        tcp_socket: Option<TCPSocketAction>,
        timeout_seconds: Option<i32>,
    }
    /// A claim on a device that is shared out by name.
    ResourceClaim {
        name: String [required],
        resource_claim_name: Option<String>,
        resource_claim_template_name: Option<String>,
    }
    /// A statement about an object that is true, false or unknown.
    Condition {
        last_probe_time: Option<Time> [nullable],
        last_transition_time: Option<Time> [nullable],
        message: String,
        reason: String,
        /// True, False or Unknown.
        status: String [required],
        r#type: String [required],
    }
    /// What was observed of an instance.
    VirtualMachineInstanceStatus {
        vsock_cid as "VSOCKCID": Option<i64>,
        /// Processes that hold the instance, by uid; the value is the node.
        active_pods: BTreeMap<String, String>,
        changed_block_tracking: Option<ChangedBlockTrackingStatus>,
        conditions: Vec<Condition>,
        /// CPUs that the guest has now.
        current_cpu_topology as "currentCPUTopology": Option<CpuTopology>,
        /// Node from which the instance has to move away.
        evacuation_node_name: String,
        /// frozen while the guest's file systems are held still.
        fs_freeze_status: String,
        /// What the guest agent says of the system.
        guest_os_info as "guestOSInfo": Option<GuestOsInfo>,
        /// Interfaces as the host and the guest agent see them.
        interfaces: Vec<InterfaceStatus>,
        kernel_boot_status: Option<KernelBootStatus>,
        launcher_container_image_version: String,
        machine: Option<Machine>,
        memory: Option<MemoryStatus>,
        migrated_volumes: Vec<MigratedVolume> [atomic],
        /// LiveMigration or BlockMigration.
        migration_method: String,
        migration_state: Option<MigrationState>,
        migration_transport: String,
        /// Node that runs the instance.
        node_name: String,
        /// Pending, Scheduling, Scheduled, Running, Succeeded, Failed, WaitingForSync or Unknown.
        phase: String,
        phase_transition_timestamps: Vec<PhaseTransition> [atomic],
        qos_class: Option<String> [one_of "BestEffort" "Burstable" "Guaranteed"],
        /// One word on why the instance is in its phase.
        reason: String,
        runtime_user: Option<i64>,
        selinux_context: String,
        topology_hints: Option<TopologyHints>,
        virtual_machine_revision_name: String,
        /// Volumes as they are attached.
        volume_status: Vec<VolumeStatus> [atomic],
    }
    /// CPUs of a guest.
    CpuTopology {
        cores: Option<u32>,
        sockets: Option<u32>,
        threads: Option<u32>,
    }
    /// The guest's operating system.
    GuestOsInfo {
        id: String,
        kernel_release: String,
        kernel_version: String,
        machine: String,
        name: String,
        pretty_name: String,
        version: String,
        version_id: String,
    }
    /// An interface as observed.
    InterfaceStatus {
        /// Who says so: domain, guest-agent, multus-status, parted by commas.
        info_source: String,
        /// Name inside the guest.
        interface_name: String,
        /// The first address.
        ip_address: String,
        ip_addresses: Vec<String>,
        /// up or down.
        link_state: String,
        mac: String,
        /// Name in the spec.
        name: String,
        pod_interface_name: String,
        queue_count: Option<i32>,
    }
    /// What was booted without a disk.
    KernelBootStatus {
        initrd_info: Option<Checksum>,
        kernel_info: Option<Checksum>,
    }
    /// Checksum of a file that was read from an image.
    Checksum {
        checksum: Option<u32>,
    }
    /// Memory of a guest.
    MemoryStatus {
        guest_at_boot: Option<Quantity>,
        guest_current: Option<Quantity>,
        guest_requested: Option<Quantity>,
        memory_overhead: Option<Quantity>,
    }
    /// When a phase began.
    PhaseTransition {
        phase: String,
        phase_transition_timestamp: Option<Time>,
    }
    /// Properties of the processor that a guest was started with.
    TopologyHints {
        tsc_frequency: Option<i64>,
    }
    /// A volume as it is attached.
    VolumeStatus {
        container_disk_volume: Option<Checksum>,
        hotplug_volume: Option<HotplugVolumeStatus>,
        memory_dump_volume: Option<MemoryDumpInfo>,
        message: String,
        name: String [required],
        persistent_volume_claim_info: Option<ClaimInfo>,
        /// Pending, Bound, AttachedToNode, MountedToPod, Ready, Detaching or UnMountedFromPod.
        phase: String,
        reason: String,
        /// Bytes.
        size: Option<i64>,
        /// Name of the device, as sda.
        target: String,
    }
    /// Who holds a plugged volume.
    HotplugVolumeStatus {
        attach_pod_name: String,
        attach_pod_uid as "attachPodUID": String,
    }
    /// A dump of the guest's memory.
    MemoryDumpInfo {
        claim_name: String,
        end_timestamp: Option<Time>,
        start_timestamp: Option<Time>,
        target_file_name: String,
    }
}

resource!(VirtualMachineInstance, "kubevirt.io", "v1", "virtualmachineinstances", NamespaceResourceScope);
