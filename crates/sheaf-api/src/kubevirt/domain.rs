//! The virtual hardware of an instance, except its devices: processors, memory, firmware, clock and features.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::Devices;
use crate::object::{Empty, objects};

objects! {
    /// The virtual hardware.
    DomainSpec {
        /// What the firmware tells the guest about its case.
        chassis: Option<Chassis>,
        clock: Option<Clock>,
        /// Processors; one core if not given.
        cpu: Option<Cpu>,
        devices: Devices [required],
        features: Option<Features>,
        firmware: Option<Firmware>,
        io_threads: Option<DiskIoThreads>,
        /// shared (one thread for all disks), auto, or supplementalPool.
        io_threads_policy: Option<String>,
        launch_security: Option<LaunchSecurity>,
        machine: Option<Machine>,
        memory: Option<Memory>,
        /// What a reboot of the guest does: Reboot, or Terminate for a new start by the run strategy.
        reboot_policy: Option<String>,
        /// What the instance takes from its node.
        resources: Option<ResourceRequirements>,
    }
    /// What the firmware tells the guest about its case.
    Chassis {
        asset: String,
        manufacturer: String,
        serial: String,
        sku: String,
        version: String,
    }
    /// The guest's clock: an offset from UTC or a time zone.
    Clock {
        timer: Option<Timers>,
        /// Name of a time zone, as Europe/Berlin.
        timezone: Option<String>,
        utc: Option<ClockOffset>,
    }
    /// Offset from UTC.
    ClockOffset {
        offset_seconds: Option<i32>,
    }
    /// Timers that the guest sees.
    Timers {
        hpet: Option<TickTimer>,
        hyperv: Option<Timer>,
        kvm: Option<Timer>,
        pit: Option<TickTimer>,
        rtc: Option<RtcTimer>,
    }
    /// A timer that is there or not.
    Timer {
        present: Option<bool>,
    }
    /// A timer with ticks, and what happens to those that were missed.
    TickTimer {
        present: Option<bool>,
        /// delay, catchup, merge or discard.
        tick_policy: String,
    }
    /// The real time clock.
    RtcTimer {
        present: Option<bool>,
        /// delay or catchup.
        tick_policy: String,
        /// guest or wall.
        track: String,
    }
    /// Processors: their number is sockets times cores times threads.
    Cpu {
        /// Cores in each socket; 1 if not given.
        cores: Option<u32>,
        /// Give each virtual CPU a host CPU of its own.
        dedicated_cpu_placement: Option<bool>,
        features: Vec<CpuFeature>,
        isolate_emulator_thread: Option<bool>,
        /// Sockets that the guest can grow to while it runs.
        max_sockets: Option<u32>,
        /// A model by name, host-model or host-passthrough.
        model: String,
        numa: Option<Numa>,
        realtime: Option<Realtime>,
        /// Sockets; 1 if not given.
        sockets: Option<u32>,
        /// Threads in each core; 1 if not given.
        threads: Option<u32>,
    }
    /// A feature of the processor.
    CpuFeature {
        name: String [required],
        /// force, require, optional, disable or forbid; require if empty.
        policy: String,
    }
    /// How memory is laid out over the host's nodes.
    Numa {
        guest_mapping_passthrough: Option<Empty>,
    }
    /// Virtual CPUs that run with real-time priority.
    Realtime {
        /// CPUs as a list of ranges; all if empty.
        mask: String,
    }
    /// A feature that can be switched; on if it is named without a value.
    FeatureState {
        enabled: Option<bool>,
    }
    /// Features of the machine.
    Features {
        acpi: Option<FeatureState>,
        apic: Option<FeatureApic>,
        hyperv: Option<FeatureHyperv>,
        hyperv_passthrough: Option<FeatureState>,
        kvm: Option<FeatureKvm>,
        pvspinlock: Option<FeatureState>,
        smm: Option<FeatureState>,
    }
    /// The interrupt controller.
    FeatureApic {
        enabled: Option<bool>,
        end_of_interrupt: Option<bool>,
    }
    /// Hints to the guest about its hypervisor.
    FeatureKvm {
        /// Hide that there is one.
        hidden: Option<bool>,
    }
    /// What makes Windows guests run better.
    FeatureHyperv {
        evmcs: Option<FeatureState>,
        frequencies: Option<FeatureState>,
        ipi: Option<FeatureState>,
        reenlightenment: Option<FeatureState>,
        relaxed: Option<FeatureState>,
        reset: Option<FeatureState>,
        runtime: Option<FeatureState>,
        spinlocks: Option<FeatureSpinlocks>,
        synic: Option<FeatureState>,
        synictimer: Option<SynicTimer>,
        tlbflush: Option<TlbFlush>,
        vapic: Option<FeatureState>,
        vendorid: Option<FeatureVendorId>,
        vpindex: Option<FeatureState>,
    }
    /// How often a guest tries a lock before it yields.
    FeatureSpinlocks {
        enabled: Option<bool>,
        /// At least 4096.
        spinlocks: Option<u32>,
    }
    /// Synthetic timers.
    SynicTimer {
        direct: Option<FeatureState>,
        enabled: Option<bool>,
    }
    /// Flushes of address translations on other CPUs.
    TlbFlush {
        direct: Option<FeatureState>,
        enabled: Option<bool>,
        extended: Option<FeatureState>,
    }
    /// The name by which the hypervisor introduces itself.
    FeatureVendorId {
        enabled: Option<bool>,
        /// At most 12 characters.
        vendorid: String,
    }
    /// Firmware, identity and boot.
    Firmware {
        acpi: Option<Acpi>,
        bootloader: Option<Bootloader>,
        kernel_boot: Option<KernelBoot>,
        /// Serial number of the system; given once and kept.
        serial: String,
        /// Identity of the system as the guest sees it; given once and kept.
        uuid: String,
    }
    /// Tables that are handed to the guest: names of volumes with a secret each.
    Acpi {
        msdm_name_ref: String,
        slic_name_ref: String,
    }
    /// BIOS (the default) or UEFI.
    Bootloader {
        bios: Option<Bios>,
        efi: Option<Efi>,
    }
    /// A classic BIOS.
    Bios {
        /// Show its messages on the serial console.
        use_serial: Option<bool>,
    }
    /// UEFI firmware.
    Efi {
        /// Keep its variables over a restart.
        persistent: Option<bool>,
        /// Boot only what is signed; true if not given, and needs the feature smm.
        secure_boot: Option<bool>,
    }
    /// Boot a kernel without a boot loader.
    KernelBoot {
        container: Option<KernelBootContainer>,
        kernel_args: String,
    }
    /// An image that holds kernel and initial file system.
    KernelBootContainer {
        image: String [required],
        image_pull_policy: String [one_of "Always" "IfNotPresent" "Never"],
        image_pull_secret: String,
        initrd_path: String,
        kernel_path: String,
    }
    /// Threads that serve disks together.
    DiskIoThreads {
        /// Number of threads of the policy supplementalPool.
        supplemental_pool_thread_count: Option<u32>,
    }
    /// Memory encryption; at most one.
    LaunchSecurity {
        sev: Option<Sev>,
        snp: Option<Empty>,
        tdx: Option<Empty>,
    }
    /// AMD's first form of memory encryption.
    Sev {
        attestation: Option<Empty>,
        dh_cert: String,
        policy: Option<SevPolicy>,
        session: String,
    }
    /// What SEV protects beyond memory.
    SevPolicy {
        encrypted_state: Option<bool>,
    }
    /// Type of the machine.
    Machine {
        /// q35 or virt, with or without a version.
        r#type: String,
    }
    /// Memory of the guest.
    Memory {
        /// What the guest has; the request of the resources if not given.
        guest: Option<Quantity>,
        hugepages: Option<Hugepages>,
        /// What the guest can grow to while it runs.
        max_guest: Option<Quantity>,
        reserved_overhead: Option<ReservedOverhead>,
    }
    /// Pages that back the guest's memory.
    Hugepages {
        /// 2Mi or 1Gi.
        page_size: String,
    }
    /// What the instance needs beside the guest's memory.
    ReservedOverhead {
        added_overhead: Option<Quantity>,
        mem_lock: Option<String>,
    }
    /// What the instance takes from its node.
    ResourceRequirements {
        /// Upper bounds for cpu and memory.
        limits: BTreeMap<String, Quantity>,
        /// Do not count what the instance needs beside the guest's memory.
        overcommit_guest_overhead: Option<bool>,
        /// What is set aside for cpu and memory.
        requests: BTreeMap<String, Quantity>,
    }
}
