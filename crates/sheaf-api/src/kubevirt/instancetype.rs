//! `instancetype.kubevirt.io/v1beta1`: sizes and preferences of machines, named once and used by many. How they are applied
//! is `sheaf_plan::vm::instancetype`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    BlockSize, ClockOffset, CpuFeature, DiskIoThreads, Efi, FeatureApic, FeatureHyperv, FeatureKvm,
    FeatureState, Gpu, HostDevice, Hugepages, LaunchSecurity, Numa, Realtime, Timers, Tpm, VgpuOptions,
};
use crate::object::{Empty, objects, resource};

objects! {
    /// A size, for the machines of its namespace.
    VirtualMachineInstancetype {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        /// Processors, memory and what comes with them.
        spec: InstancetypeSpec [required],
    }
    /// A size, for the machines of all namespaces.
    VirtualMachineClusterInstancetype {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        /// Processors, memory and what comes with them.
        spec: InstancetypeSpec [required],
    }
    /// What a guest likes, for the machines of its namespace.
    VirtualMachinePreference {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        /// Values for what a machine leaves open.
        spec: PreferenceSpec [required],
    }
    /// What a guest likes, for the machines of all namespaces.
    VirtualMachineClusterPreference {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        /// Values for what a machine leaves open.
        spec: PreferenceSpec [required],
    }
    InstancetypeSpec {
        annotations: BTreeMap<String, String>,
        cpu: CpuInstancetype [required],
        gpus: Vec<Gpu> [atomic],
        host_devices: Vec<HostDevice> [atomic],
        io_threads: Option<DiskIoThreads>,
        io_threads_policy: String,
        launch_security: Option<LaunchSecurity>,
        memory: MemoryInstancetype [required],
        node_selector: BTreeMap<String, String>,
        scheduler_name: String,
    }
    PreferenceSpec {
        annotations: BTreeMap<String, String>,
        clock: Option<ClockPreferences>,
        cpu: Option<CpuPreferences>,
        devices: Option<DevicePreferences>,
        features: Option<FeaturePreferences>,
        firmware: Option<FirmwarePreferences>,
        machine: Option<MachinePreferences>,
        prefer_spread_socket_to_core_ratio: Option<i64>,
        preferred_architecture: String,
        preferred_launch_security: Option<LaunchSecurity>,
        preferred_subdomain: String,
        preferred_termination_grace_period_seconds: Option<i64>,
        requirements: Option<PreferenceRequirements>,
        volumes: Option<VolumePreferences>,
    }
    CpuInstancetype {
        dedicated_cpu_placement as "dedicatedCPUPlacement": Option<bool>,
        guest: u32 [required],
        isolate_emulator_thread: Option<bool>,
        max_sockets: Option<u32>,
        model: String,
        numa: Option<Numa>,
        realtime: Option<Realtime>,
    }
    MemoryInstancetype {
        guest: Quantity [required],
        hugepages: Option<Hugepages>,
        max_guest: Option<Quantity>,
        overcommit_percent: Option<i32>,
    }
    ClockPreferences {
        preferred_clock_offset: Option<ClockOffset>,
        preferred_timer: Option<Timers>,
    }
    CpuPreferences {
        preferred_cpu_features as "preferredCPUFeatures": Vec<CpuFeature>,
        preferred_cpu_topology as "preferredCPUTopology": String,
        spread_options: Option<SpreadOptions>,
    }
    DevicePreferences {
        preferred_autoattach_graphics_device: Option<bool>,
        preferred_autoattach_input_device: Option<bool>,
        preferred_autoattach_mem_balloon: Option<bool>,
        preferred_autoattach_pod_interface: Option<bool>,
        preferred_autoattach_serial_console: Option<bool>,
        preferred_block_multi_queue: Option<bool>,
        preferred_cdrom_bus: String,
        preferred_disable_hotplug: Option<bool>,
        preferred_disk_block_size: Option<BlockSize>,
        preferred_disk_bus: String,
        preferred_disk_cache: String,
        preferred_disk_dedicated_io_thread: Option<bool>,
        preferred_disk_io as "preferredDiskIO": String,
        preferred_input_bus: String,
        preferred_input_type: String,
        preferred_interface_masquerade: Option<Empty>,
        preferred_interface_model: String,
        preferred_lun_bus: String,
        preferred_network_interface_multi_queue: Option<bool>,
        preferred_panic_device_model: String,
        preferred_rng: Option<Empty>,
        preferred_sound_model: String,
        preferred_tpm as "preferredTPM": Option<Tpm>,
        preferred_use_virtio_transitional: Option<bool>,
        preferred_video_type: String,
        preferred_virtual_gpu_options as "preferredVirtualGPUOptions": Option<VgpuOptions>,
    }
    FeaturePreferences {
        preferred_acpi: Option<FeatureState>,
        preferred_apic: Option<FeatureApic>,
        preferred_hyperv: Option<FeatureHyperv>,
        preferred_kvm: Option<FeatureKvm>,
        preferred_pvspinlock: Option<FeatureState>,
        preferred_smm: Option<FeatureState>,
    }
    FirmwarePreferences {
        preferred_efi: Option<Efi>,
        preferred_use_bios: Option<bool>,
        preferred_use_bios_serial: Option<bool>,
        preferred_use_efi: Option<bool>,
        preferred_use_secure_boot: Option<bool>,
    }
    MachinePreferences {
        preferred_machine_type: String,
    }
    PreferenceRequirements {
        architecture: String,
        cpu: Option<CpuPreferenceRequirement>,
        memory: Option<MemoryPreferenceRequirement>,
    }
    VolumePreferences {
        preferred_storage_class_name: String,
    }
    SpreadOptions {
        across: String,
        ratio: Option<i64>,
    }
    CpuPreferenceRequirement {
        guest: u32 [required],
    }
    MemoryPreferenceRequirement {
        guest: Quantity [required],
    }
}

resource!(
    VirtualMachineInstancetype,
    "instancetype.kubevirt.io",
    "v1beta1",
    "virtualmachineinstancetypes",
    NamespaceResourceScope
);
resource!(
    VirtualMachineClusterInstancetype,
    "instancetype.kubevirt.io",
    "v1beta1",
    "virtualmachineclusterinstancetypes",
    ClusterResourceScope
);
resource!(
    VirtualMachinePreference,
    "instancetype.kubevirt.io",
    "v1beta1",
    "virtualmachinepreferences",
    NamespaceResourceScope
);
resource!(
    VirtualMachineClusterPreference,
    "instancetype.kubevirt.io",
    "v1beta1",
    "virtualmachineclusterpreferences",
    ClusterResourceScope
);
