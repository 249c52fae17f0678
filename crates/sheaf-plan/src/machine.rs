//! What one machine takes from its node: memory with overhead, processor share. Pure.
//!
//! The overhead follows `kubevirt.io`'s accounting for the parts that Sheaf has too (page tables, QEMU, per vCPU, I/O
//! thread, graphics) and leaves out those that it has not (launcher, libvirt). In bytes.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sheaf_api::kubevirt::VirtualMachineInstanceSpec;
use sheaf_meta::quantity;

const MIB: u64 = 1 << 20;

/// vCPUs of an instance: sockets x cores x threads, each 1 if absent.
pub fn vcpus(spec: &VirtualMachineInstanceSpec) -> u64 {
    let Some(cpu) = &spec.domain.cpu else { return 1 };
    [cpu.sockets, cpu.cores, cpu.threads].into_iter().map(|n| u64::from(n.unwrap_or(1).max(1))).product()
}

/// Bytes that the guest sees: `memory.guest`, else what is requested, else the limit. `None` if none is given or one
/// does not parse.
pub fn guest_memory(spec: &VirtualMachineInstanceSpec) -> Option<u64> {
    let from = |q: &Quantity| bytes(q);
    let domain = &spec.domain;
    let guest = domain.memory.as_ref().and_then(|m| m.guest.as_ref()).and_then(from);
    let resource = |map: &std::collections::BTreeMap<String, Quantity>| map.get("memory").and_then(from);
    guest
        .or_else(|| domain.resources.as_ref().and_then(|r| resource(&r.requests)))
        .or_else(|| domain.resources.as_ref().and_then(|r| resource(&r.limits)))
}

/// Bytes that the machine takes beside the guest's memory.
pub fn overhead(guest_bytes: u64, vcpus: u64) -> u64 {
    guest_bytes / 512 + 50 * MIB + vcpus * 8 * MIB + 8 * MIB + 32 * MIB
}

/// Bytes that the machine takes in all.
pub fn memory_demand(spec: &VirtualMachineInstanceSpec) -> u64 {
    let guest = guest_memory(spec).unwrap_or(0);
    guest.saturating_add(overhead(guest, vcpus(spec)))
}

/// A quantity in whole bytes; `None` if it does not parse or is negative.
pub fn bytes(q: &Quantity) -> Option<u64> {
    quantity::Quantity::parse(&q.0).ok().and_then(|q| q.bytes())
}
