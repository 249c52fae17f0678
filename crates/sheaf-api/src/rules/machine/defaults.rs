//! What a machine gets when it is written: its identity, hardware addresses, topology, requests and grace period.
//!
//! Everything else that the user left open stays open, so that tools which compare (Argo CD) find what they wrote.

use serde_json::{Map, Value, json};
use sheaf_meta::object::{self, find};
use sheaf_meta::quantity::Quantity;

use super::super::{at, changed, fill, identity, list, sub, text};

/// Last run strategy other than Halted, restored by the start of a halted machine.
const RUN_STRATEGY: &str = "harvesterhci.io/vmRunStrategy";
/// Hardware addresses by interface.
const MAC_ADDRESSES: &str = "harvesterhci.io/mac-address";
/// Memory that is taken off the limit before the guest gets the rest.
const RESERVED_MEMORY: &str = "harvesterhci.io/reservedMemory";
/// Layout of the PCI bus that a machine was made with.
pub(super) const PCI_TOPOLOGY: &str = "kubevirt.io/pci-topology-version";
pub(super) const PCI_TOPOLOGY_CURRENT: &str = "v3";

const MIB: i64 = 1024 * 1024;

/// Settings of the cluster that defaults depend on. `Default` is what holds while nobody changed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineDefaults {
    /// Setting `default-vm-termination-grace-period-seconds`.
    pub termination_grace_seconds: i64,
    /// Setting `overcommit-config`, per cent of a CPU limit over its request.
    pub cpu_overcommit: i64,
    /// Setting `overcommit-config`, per cent of a memory limit over its request.
    pub memory_overcommit: i64,
}

impl Default for MachineDefaults {
    fn default() -> Self {
        Self { termination_grace_seconds: 120, cpu_overcommit: 1000, memory_overcommit: 150 }
    }
}

/// Fills in what a machine keeps for life and what follows from its limits.
pub fn default_virtual_machine(o: &mut Value, old: Option<&Value>, defaults: &MachineDefaults) {
    let seed = identity::seed(o);
    let has_type = find(o, "/spec/instancetype").is_some_and(Value::is_object);
    remember_strategy(o, old);
    let reserved = object::annotation(o, RESERVED_MEMORY).and_then(|v| Quantity::parse(v).ok());
    let limits_changed = old.is_none_or(|old| changed(o, old, "/spec/template/spec/domain/resources/limits"));
    if find(o, "/spec/template").is_none_or(|t| !t.is_object()) {
        return; // Validation says so.
    }
    settle_addresses(o, old, &seed);
    if old.is_none()
        && let Some(annotations) = at(o, &["spec", "template", "metadata", "annotations"])
    {
        fill(annotations, PCI_TOPOLOGY, PCI_TOPOLOGY_CURRENT);
    }
    let kept = |field: &str| {
        let old = old.map(|old| text(old, &format!("/spec/template/spec/domain/firmware/{field}")));
        old.filter(|v| !v.is_empty()).map_or_else(|| identity::firmware(&seed, field), String::from)
    };
    let (uuid, serial) = (kept("uuid"), kept("serial"));
    let Some(spec) = at(o, &["spec", "template", "spec"]) else { return };
    if spec.get("terminationGracePeriodSeconds").is_none_or(Value::is_null) {
        spec.insert("terminationGracePeriodSeconds".into(), json!(defaults.termination_grace_seconds));
    }
    if old.is_none() {
        fill(spec, "architecture", architecture());
    }
    let machine_type = machine_type(spec);
    let Some(domain) = sub(spec, "domain") else { return };
    if let Some(firmware) = sub(domain, "firmware") {
        fill(firmware, "uuid", uuid);
        fill(firmware, "serial", serial);
    }
    if old.is_none()
        && let Some(machine) = sub(domain, "machine")
    {
        fill(machine, "type", machine_type);
    }
    if !has_type {
        topology(domain);
        if limits_changed {
            requests(domain, defaults);
            guest_memory(domain, reserved);
        }
    }
}

/// Architecture of the cluster: that of the server.
pub(super) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// The machine type of an architecture.
pub(super) fn machine_type(spec: &Map<String, Value>) -> &'static str {
    match spec.get("architecture").and_then(Value::as_str) {
        Some("arm64") => "virt",
        Some("s390x") => "s390-ccw-virtio",
        Some("amd64") => "q35",
        _ if architecture() == "arm64" => "virt",
        _ => "q35",
    }
}

/// A machine that is halted keeps in mind what it was, so that a later start restores it.
fn remember_strategy(o: &mut Value, old: Option<&Value>) {
    let Some(before) = old.map(|old| text(old, "/spec/runStrategy")) else { return };
    if text(o, "/spec/runStrategy") == "Halted" && !matches!(before, "" | "Halted") {
        object::set_annotation(o, RUN_STRATEGY, Some(before));
    }
}

/// Settles the hardware address of each interface, once and for good, in an annotation: the spec stays as its user wrote it,
/// so that whoever applies it again changes nothing. What the spec says goes before what was settled.
fn settle_addresses(o: &mut Value, old: Option<&Value>, seed: &str) {
    let known = known_addresses(o, old);
    let mut settled = Map::new();
    for interface in list(o, "/spec/template/spec/domain/devices/interfaces") {
        let (name, given) = (text(interface, "/name"), text(interface, "/macAddress"));
        let mac = match known.get(name).and_then(Value::as_str) {
            _ if !given.is_empty() => given.to_owned(),
            Some(known) => known.to_owned(),
            None => identity::mac(seed, name),
        };
        settled.insert(name.into(), json!(mac));
    }
    let settled = (!settled.is_empty()).then(|| Value::Object(settled).to_string());
    if object::annotation(o, MAC_ADDRESSES) != settled.as_deref() {
        object::set_annotation(o, MAC_ADDRESSES, settled.as_deref());
    }
}

/// Hardware addresses that are given already: in the annotation, or in the stored object's.
fn known_addresses(o: &Value, old: Option<&Value>) -> Map<String, Value> {
    let parsed = |o: &Value| -> Map<String, Value> {
        let text = object::annotation(o, MAC_ADDRESSES);
        text.and_then(|v| serde_json::from_str(v).ok()).unwrap_or_default()
    };
    let mut known = old.map(parsed).unwrap_or_default();
    // An address that the old spec had, and the new one has not, stays.
    for interface in old.map_or(&[][..], |old| list(old, "/spec/template/spec/domain/devices/interfaces")) {
        let (name, mac) = (text(interface, "/name"), text(interface, "/macAddress"));
        if !mac.is_empty() {
            known.insert(name.into(), json!(mac));
        }
    }
    let of_old = old.and_then(|old| object::annotation(old, MAC_ADDRESSES));
    if object::annotation(o, MAC_ADDRESSES) != of_old {
        known.extend(parsed(o));
    }
    known
}

/// Gives each interface of an instance that has none a hardware address.
pub(super) fn addresses(domain: &mut Map<String, Value>, seed: &str) {
    let interfaces = domain.get_mut("devices").and_then(|d| d.get_mut("interfaces"));
    for interface in interfaces.and_then(Value::as_array_mut).into_iter().flatten() {
        let name = text(interface, "/name").to_string();
        if let Some(interface) = interface.as_object_mut() {
            fill(interface, "macAddress", identity::mac(seed, &name));
        }
    }
}

/// One socket, core and thread where nothing is said; without any, as many sockets as the CPU limit has CPUs.
pub(super) fn topology(domain: &mut Map<String, Value>) {
    let of = |kind: &str| domain.get("resources")?.get(kind)?.get("cpu").cloned();
    let wanted = of("limits").or_else(|| of("requests")).and_then(|v| quantity(&v));
    let sockets = wanted.map_or(1, |q| (q.milli() + 999) / 1000).max(1);
    let Some(cpu) = sub(domain, "cpu") else { return };
    let parts = ["sockets", "cores", "threads"];
    let given =
        |cpu: &Map<String, Value>, part: &str| cpu.get(part).and_then(Value::as_i64).is_some_and(|n| n != 0);
    let any = parts.iter().any(|part| given(cpu, part));
    for part in parts {
        if cpu.get(part).is_none_or(|v| v.is_null() || *v == json!(0)) {
            let value = if part == "sockets" && !any { sockets } else { 1 };
            cpu.insert(part.into(), json!(value));
        }
    }
}

fn quantity(value: &Value) -> Option<Quantity> {
    let text = value.as_str().map_or_else(|| value.to_string(), String::from);
    Quantity::parse(&text).ok()
}

/// Requests follow from limits and overcommitment; whole limits where the guest has CPUs or devices of its own.
fn requests(domain: &mut Map<String, Value>, defaults: &MachineDefaults) {
    let dedicated = domain.get("cpu").is_some_and(|cpu| cpu["dedicatedCpuPlacement"] == true);
    let devices = domain.get("devices");
    let passed = |kind: &str| devices.and_then(|d| d[kind].as_array()).is_some_and(|list| !list.is_empty());
    let pinned = dedicated || passed("hostDevices") || passed("gpus");
    let Some(resources) = sub(domain, "resources") else { return };
    let limit = |kind: &str| resources.get("limits")?.get(kind).cloned();
    let (cpu, memory) = (limit("cpu"), limit("memory"));
    if cpu.is_none() && memory.is_none() {
        if resources.is_empty() {
            domain.remove("resources");
        }
        return;
    }
    let Some(requests) = sub(resources, "requests") else { return };
    if let Some(limit) = cpu {
        let share = quantity(&limit)
            .map(|q| json!(Quantity::from_milli(q.milli() * 100 / defaults.cpu_overcommit).to_string()));
        fill(requests, "cpu", if dedicated { limit } else { share.unwrap_or(limit) });
    }
    if let Some(limit) = memory {
        let share = quantity(&limit)
            .map(|q| json!(format!("{}Mi", q.value() / MIB * 100 / defaults.memory_overcommit)));
        fill(requests, "memory", if pinned { limit } else { share.unwrap_or(limit) });
    }
}

/// The guest gets its memory limit less what is reserved, unless it says how much it wants.
fn guest_memory(domain: &mut Map<String, Value>, reserved: Option<Quantity>) {
    let limit = domain.get("resources").and_then(|r| r["limits"].get("memory")).and_then(quantity);
    let Some(limit) = limit else { return };
    let guest = limit.minus(reserved.unwrap_or_else(Quantity::zero)).value() / MIB;
    if let Some(memory) = sub(domain, "memory")
        && guest > 0
        && memory.get("hugepages").is_none()
    {
        fill(memory, "guest", format!("{guest}Mi"));
    }
}
