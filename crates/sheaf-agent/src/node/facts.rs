//! What this machine is: processors, memory, disk, kernel, devices. Read from the kernel, never kept.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use sheaf_qemu::version::{PROGRAM, Version};

/// Facts of the machine, as the Node object shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Processors that this process may use.
    pub cpus: usize,
    /// `MemTotal`.
    pub memory_bytes: u64,
    /// Size of the file system that holds the data directory.
    pub disk_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release.
    pub os: String,
    /// Changes with each boot.
    pub boot_id: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// Of the firmware, where readable.
    pub system_uuid: String,
    /// QEMU's version, if it is installed.
    pub qemu: Option<Version>,
    /// /dev/kvm exists and the processor has the extensions for it.
    pub kvm: bool,
    /// /dev/net/tun exists.
    pub tun: bool,
    /// /dev/vhost-net exists.
    pub vhost_net: bool,
}

impl Facts {
    /// Looks at the machine.
    pub fn gather(data_dir: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
        let statvfs = rustix::fs::statvfs(data_dir).ok();
        Self {
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: mem_total(&text("/proc/meminfo")),
            disk_bytes: statvfs.map_or(0, |s| s.f_blocks.saturating_mul(s.f_frsize)),
            kernel: text("/proc/sys/kernel/osrelease"),
            os: pretty_name(&text("/etc/os-release")),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            machine_id: text("/etc/machine-id"),
            system_uuid: text("/sys/class/dmi/id/product_uuid"),
            qemu: Version::of(Path::new(PROGRAM)).ok(),
            kvm: Path::new("/dev/kvm").exists() && has_virtualization(&text("/proc/cpuinfo")),
            tun: Path::new("/dev/net/tun").exists(),
            vhost_net: Path::new("/dev/vhost-net").exists(),
        }
    }
}

fn mem_total(meminfo: &str) -> u64 {
    meminfo_bytes(meminfo, "MemTotal:")
}

/// Memory that could not be had without taking it from somebody.
pub(super) fn mem_used(meminfo: &str) -> u64 {
    mem_total(meminfo).saturating_sub(meminfo_bytes(meminfo, "MemAvailable:"))
}

fn meminfo_bytes(meminfo: &str, of: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|l| l.strip_prefix(of))
        .and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1024))
}

fn pretty_name(os_release: &str) -> String {
    let name = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map(|n| n.trim_matches('"').to_owned()).unwrap_or_else(|| "Linux".into())
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find(|l| l.starts_with("flags"))
        .is_some_and(|l| l.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// The address from which this machine would reach `peer`; the loopback address if it would not. Sends nothing.
pub fn local_address(peer: Option<IpAddr>) -> IpAddr {
    // Connecting a UDP socket only asks the routing table. The documentation range stands for "outside".
    let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    let bind: (IpAddr, u16) = if peer.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED.into(), 0)
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED.into(), 0)
    };
    UdpSocket::bind(bind)
        .and_then(|socket| socket.connect((peer, 9)).and_then(|()| socket.local_addr()))
        .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_texts_are_read() {
        assert_eq!(mem_total("MemTotal:       16384 kB\nMemFree: 1 kB"), 16 * 1024 * 1024);
        assert_eq!(mem_total("garbage"), 0);
        assert_eq!(pretty_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\""), "Debian GNU/Linux 12");
        assert!(has_virtualization("processor: 0\nflags\t\t: fpu svm nx"));
        assert!(!has_virtualization("flags : fpu svmx"));
    }
}
