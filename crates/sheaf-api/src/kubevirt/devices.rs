//! Devices of an instance: disks, interfaces, screens, inputs and what is passed through.

use crate::object::{Empty, objects};

use super::FeatureState;

objects! {
    /// Devices. Those that are attached by themselves can be refused one by one.
    Devices {
        autoattach_graphics_device: Option<bool>,
        autoattach_input_device: Option<bool>,
        autoattach_mem_balloon: Option<bool>,
        /// Whether an instance without networks gets one on the management network; it does if not given.
        autoattach_pod_interface: Option<bool>,
        autoattach_serial_console: Option<bool>,
        autoattach_vsock as "autoattachVSOCK": Option<bool>,
        /// As many queues for each disk as there are CPUs.
        block_multi_queue: Option<bool>,
        /// Let a client bring USB devices.
        client_passthrough: Option<Empty>,
        /// Keep no room for devices that come later.
        disable_hotplug: Option<bool>,
        /// Disks, each with the name of a volume.
        disks: Vec<Disk>,
        downward_metrics: Option<Empty>,
        filesystems: Vec<Filesystem> [atomic],
        gpus: Vec<Gpu> [atomic],
        host_devices: Vec<HostDevice> [atomic],
        inputs: Vec<Input>,
        /// Interfaces, each with the name of a network.
        interfaces: Vec<Interface>,
        log_serial_console: Option<bool>,
        /// As many queues for each interface as there are CPUs.
        network_interface_multiqueue: Option<bool>,
        panic_devices: Vec<PanicDevice>,
        /// A source of random numbers.
        rng: Option<Empty>,
        sound: Option<SoundDevice>,
        tpm: Option<Tpm>,
        use_virtio_transitional: Option<bool>,
        video: Option<VideoDevice>,
        watchdog: Option<Watchdog>,
    }
    /// A disk, CD-ROM or LUN that shows the volume of its name.
    Disk {
        block_size: Option<BlockSize>,
        /// Order in which disks and interfaces are tried at boot, from 1.
        boot_order: Option<u32>,
        /// none, writethrough or writeback.
        cache: String,
        cdrom: Option<CdRomTarget>,
        changed_block_tracking: Option<bool>,
        dedicated_io_thread as "dedicatedIOThread": Option<bool>,
        /// An ordinary disk; what is meant if none of disk, cdrom and lun is given.
        disk: Option<DiskTarget>,
        /// What the guest sees of a failed request: stop, report, ignore or enospace.
        error_policy: Option<String>,
        /// native or threads.
        io: String,
        lun: Option<LunTarget>,
        name: String [required],
        serial: String,
        /// Whether several machines may write at a time.
        shareable: Option<bool>,
        /// Hint for the guest about what the disk is for.
        tag: String,
    }
    /// An ordinary disk.
    DiskTarget {
        /// virtio, sata, scsi or usb.
        bus: String,
        pci_address: String,
        readonly: Option<bool>,
    }
    /// A CD-ROM drive; empty if there is no volume of its name.
    CdRomTarget {
        /// sata or scsi.
        bus: String,
        /// True if not given.
        readonly: Option<bool>,
        /// open or closed.
        tray: String,
    }
    /// A SCSI unit of the host, with commands passed through.
    LunTarget {
        bus: String,
        readonly: Option<bool>,
        /// Whether the guest may take persistent reservations.
        reservation: Option<bool>,
    }
    /// Size of the blocks that the guest sees.
    BlockSize {
        custom: Option<CustomBlockSize>,
        match_volume: Option<FeatureState>,
    }
    /// Sizes in bytes.
    CustomBlockSize {
        discard_granularity: Option<u32>,
        logical: Option<u32>,
        physical: Option<u32>,
    }
    /// A volume shown as a file system.
    Filesystem {
        name: String [required],
        virtiofs: Empty [required],
    }
    /// A graphics card of the host.
    Gpu {
        claim_name: Option<String>,
        device_name: String,
        name: String [required],
        request_name: Option<String>,
        tag: String,
        virtual_gpu_options as "virtualGPUOptions": Option<VgpuOptions>,
    }
    /// How a shared graphics card shows a screen.
    VgpuOptions {
        display: Option<VgpuDisplay>,
    }
    /// Screen of a shared graphics card.
    VgpuDisplay {
        enabled: Option<bool>,
        ram_fb as "ramFB": Option<FeatureState>,
    }
    /// A device of the host.
    HostDevice {
        claim_name: Option<String>,
        device_name: String,
        name: String [required],
        request_name: Option<String>,
        tag: String,
    }
    /// A tablet or keyboard.
    Input {
        /// usb or virtio; usb if empty.
        bus: String,
        name: String [required],
        /// tablet or keyboard.
        r#type: String [required],
    }
    /// A network interface on the network of its name. At most one way of binding.
    Interface {
        acpi_index: Option<i32>,
        binding: Option<PluginBinding>,
        /// Order in which disks and interfaces are tried at boot, from 1.
        boot_order: Option<u32>,
        /// A port of the node's bridge: the guest is on the network itself.
        bridge: Option<Empty>,
        dhcp_options: Option<DhcpOptions>,
        /// Hardware address; given once and kept.
        mac_address: String,
        macvtap: Option<Empty>,
        /// Behind address translation of the node.
        masquerade: Option<Empty>,
        /// virtio, e1000, e1000e, rtl8139, ne2k_pci or pcnet; virtio if empty.
        model: String,
        name: String [required],
        passt: Option<Empty>,
        passt_binding: Option<Empty>,
        pci_address: String,
        port_ranges: Vec<PortRange> [atomic],
        /// Ports to be let through; all if empty.
        ports: Vec<Port>,
        slirp: Option<Empty>,
        /// A function of the host's network card.
        sriov: Option<Empty>,
        /// up, down, or absent for one that is to be unplugged.
        state: String,
        /// Hint for the guest about what the interface is for.
        tag: String,
    }
    /// A binding that the cluster's configuration names.
    PluginBinding {
        name: String [required],
    }
    /// What DHCP tells the guest beside its address.
    DhcpOptions {
        boot_file_name: String,
        ntp_servers: Vec<String>,
        private_options: Vec<DhcpPrivateOption>,
        tftp_server_name: String,
    }
    /// A DHCP option by number, from 224 to 254.
    DhcpPrivateOption {
        option: i32 [required],
        value: String [required],
    }
    /// A port that is let through.
    Port {
        name: String,
        port: i32 [required],
        /// TCP or UDP; TCP if empty.
        protocol: String,
    }
    /// Ports that are let through.
    PortRange {
        end: i32 [required],
        protocol: String [required],
        start: i32 [required],
    }
    /// Tells the host that the guest has crashed.
    PanicDevice {
        /// isa, hyperv or pvpanic.
        model: Option<String>,
    }
    /// A sound card.
    SoundDevice {
        /// ich9 or ac97.
        model: String,
        name: String [required],
    }
    /// A trusted platform module.
    Tpm {
        enabled: Option<bool>,
        /// Keep its content over a restart.
        persistent: Option<bool>,
    }
    /// The graphics adapter.
    VideoDevice {
        /// vga, virtio, bochs, cirrus or ramfb.
        r#type: String,
    }
    /// Acts when the guest is silent.
    Watchdog {
        diag288: Option<WatchdogAction>,
        i6300esb: Option<WatchdogAction>,
        name: String [required],
    }
    /// What happens then.
    WatchdogAction {
        /// reset, poweroff or shutdown; reset if empty.
        action: String,
    }
}
