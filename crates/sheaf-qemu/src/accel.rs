//! How a guest's instructions are run: by the processor (KVM) or by translation (TCG).
//!
//! A usable `/dev/kvm` is not enough: there are hosts (containers on a paravirtualised KVM, for one) where the device
//! opens and an ordinary kernel dies in the guest. KVM is chosen only if the processor also says that it can.

use serde::{Deserialize, Serialize};

/// How instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By translation, with a cache of at most this many MiB. (QEMU's own bound grows to 1 GiB and is filled.)
    Tcg {
        /// Bound of the translation cache.
        cache_mib: u32,
    },
}

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The processor has VMX or SVM.
    pub cpu_virtualization: bool,
    /// `/dev/kvm` opens for reading and writing.
    pub kvm_opens: bool,
}

impl Facts {
    /// Looks at this host. Reads two files; quick.
    pub fn gather() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
        Self { cpu_virtualization: has_virtualization(&cpuinfo), kvm_opens: kvm.is_ok() }
    }
    /// Whether guests run by KVM here.
    pub fn kvm(&self) -> bool {
        self.cpu_virtualization && self.kvm_opens
    }
}

/// Finds `vmx` or `svm` among the flags in `/proc/cpuinfo`.
pub fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|l| l.starts_with("flags"))
        .filter_map(|l| l.split_once(':'))
        .any(|(_, flags)| flags.split_ascii_whitespace().any(|f| f == "vmx" || f == "svm"))
}

/// Chooses for a guest of this size.
pub fn choose(facts: &Facts, memory_bytes: u64) -> Accel {
    if facts.kvm() {
        return Accel::Kvm;
    }
    // Measured: a full distribution fits into 256 MiB of translated code, a small test guest into 64.
    let cache_mib = if memory_bytes > 512 << 20 { 256 } else { 64 };
    Accel::Tcg { cache_mib }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_words() {
        assert!(has_virtualization("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags\t\t: fpu svm\n"));
        assert!(!has_virtualization("flags\t\t: fpu nosvm vmxx\nmodel name: svm\n"));
        assert!(!has_virtualization(""));
    }

    #[test]
    fn both_are_needed() {
        for (cpu, dev, kvm) in [(true, true, true), (true, false, false), (false, true, false)] {
            let facts = Facts { cpu_virtualization: cpu, kvm_opens: dev };
            assert_eq!(choose(&facts, 1 << 30) == Accel::Kvm, kvm, "{facts:?}");
        }
        assert_eq!(choose(&Facts::default(), 128 << 20), Accel::Tcg { cache_mib: 64 });
        assert_eq!(choose(&Facts::default(), 2 << 30), Accel::Tcg { cache_mib: 256 });
    }
}
