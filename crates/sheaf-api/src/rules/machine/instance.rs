//! What an instance gets when it is made, and its rules.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sheaf_meta::object;
use sheaf_meta::quantity::Quantity;

use super::super::{at, fill, identity, list, sub, text};
use super::defaults::{self, PCI_TOPOLOGY, PCI_TOPOLOGY_CURRENT};
use super::{Problems, spec};
use crate::kubevirt::VirtualMachineInstance;

/// So many times what a guest begins with it may have while it runs.
const GROWTH: i64 = 4;
/// The most processors that a guest is given room for.
const VCPUS_MAX: i64 = 255;
/// A guest with less memory at its start does not grow.
const GROWS_FROM: i64 = 1 << 30;
/// Keeps an instance until its node says that nothing of it runs any more.
const FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";

pub(super) fn default(o: &mut Value, old: Option<&Value>) {
    if old.is_some() {
        return; // An instance is what it was made as; what changes in it, its controllers change.
    }
    let seed = identity::seed(o);
    let created = object::creation_timestamp(o).to_string();
    object::add_finalizer(o, FINALIZER);
    if object::annotation(o, PCI_TOPOLOGY).is_none() {
        object::set_annotation(o, PCI_TOPOLOGY, Some(PCI_TOPOLOGY_CURRENT));
    }
    let Some(instance) = at(o, &["spec"]) else { return };
    fill(instance, "architecture", defaults::architecture());
    let machine_type = defaults::machine_type(instance);
    default_interfaces(instance);
    default_disks(instance);
    probes(instance);
    pull_policies(instance);
    if let Some(domain) = sub(instance, "domain") {
        if let Some(machine) = sub(domain, "machine") {
            fill(machine, "type", machine_type);
        }
        if let Some(firmware) = sub(domain, "firmware") {
            fill(firmware, "uuid", identity::firmware(&seed, "uuid"));
        }
        defaults::topology(domain);
        memory(domain);
        room_to_grow(domain);
        devices(domain);
        hyperv(domain);
        defaults::addresses(domain, &seed);
    }
    if let Some(status) = at(o, &["status"]) {
        fill(status, "phase", "Pending");
        if !created.is_empty() {
            let first = json!([{"phase": "Pending", "phaseTransitionTimestamp": created}]);
            fill(status, "phaseTransitionTimestamps", first);
        }
    }
}

/// The list under a key of `devices`, made if it is missing.
fn device_list<'a>(spec: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Vec<Value>> {
    let devices = sub(sub(spec, "domain")?, "devices")?;
    let list = devices.entry(key).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut()
}

fn names_in(list: Option<&Value>) -> Vec<String> {
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.map(|item| text(item, "/name").to_string()).collect()
}

/// Without interfaces: one for each network that is named, or one on the management network if none is.
///
/// The first is beyond KubeVirt, which refuses networks without interfaces; manifests of real installations name
/// only the network, and mean this.
fn default_interfaces(spec: &mut Map<String, Value>) {
    let devices = spec.get("domain").and_then(|d| d.get("devices"));
    let given = devices.and_then(|d| d["interfaces"].as_array()).is_some_and(|list| !list.is_empty());
    let refused = devices.is_some_and(|d| d["autoattachPodInterface"] == false);
    if given {
        return;
    }
    let mut networks = names_in(spec.get("networks"));
    if networks.is_empty() {
        if refused {
            return;
        }
        spec.insert("networks".into(), json!([{"name": "default", "pod": {}}]));
        networks.push("default".into());
    }
    if let Some(interfaces) = device_list(spec, "interfaces") {
        interfaces.extend(networks.iter().map(|name| json!({"name": name, "bridge": {}})));
    }
}

/// A disk for each volume that no disk or file system shows, and a bus for each disk that names none.
fn default_disks(spec: &mut Map<String, Value>) {
    let devices = spec.get("domain").and_then(|d| d.get("devices"));
    let mut shown = names_in(devices.and_then(|d| d.get("disks")));
    shown.extend(names_in(devices.and_then(|d| d.get("filesystems"))));
    let hidden = |v: &&Value| v.get("memoryDump").is_none() && v.get("downwardMetrics").is_none();
    let volumes = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let volumes: Vec<Value> = volumes.filter(hidden).cloned().collect();
    let missing = names_in(Some(&Value::Array(volumes))).into_iter().filter(|name| !shown.contains(name));
    let missing: Vec<Value> = missing.map(|name| json!({"name": name})).collect();
    if missing.is_empty() && devices.is_none_or(|d| d.get("disks").is_none()) {
        return;
    }
    let Some(disks) = device_list(spec, "disks") else { return };
    disks.extend(missing);
    for disk in disks.iter_mut().filter_map(Value::as_object_mut) {
        if !["disk", "cdrom", "lun"].iter().any(|target| disk.contains_key(*target)) {
            disk.insert("disk".into(), json!({}));
        }
        for target in ["disk", "cdrom", "lun"] {
            if let Some(target) = disk.get_mut(target).and_then(Value::as_object_mut) {
                fill(target, "bus", "sata");
            }
        }
        if let Some(cdrom) = disk.get_mut("cdrom").and_then(Value::as_object_mut) {
            fill(cdrom, "tray", "closed");
            cdrom.entry("readonly").or_insert(json!(true));
        }
    }
}

fn probes(spec: &mut Map<String, Value>) {
    for probe in ["livenessProbe", "readinessProbe"] {
        if let Some(probe) = spec.get_mut(probe).and_then(Value::as_object_mut) {
            for (field, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                if probe.get(field).is_none_or(|v| v.is_null() || *v == json!(0)) {
                    probe.insert(field.into(), json!(value));
                }
            }
        }
    }
}

/// Images whose name may mean something else tomorrow are fetched each time.
fn pull_policies(spec: &mut Map<String, Value>) {
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(disk) = volume.get_mut("containerDisk").and_then(Value::as_object_mut) else { continue };
        let image = disk.get("image").and_then(Value::as_str).unwrap_or_default();
        let last = image.rsplit('/').next().unwrap_or_default();
        let fixed = last.contains('@') || last.split_once(':').is_some_and(|(_, tag)| tag != "latest");
        fill(disk, "imagePullPolicy", if fixed { "IfNotPresent" } else { "Always" });
    }
}

/// The guest has what it asks for, else what is requested for it, else its limit; and requests what it has.
fn memory(domain: &mut Map<String, Value>) {
    let resources = domain.get("resources");
    let of = |kind: &str| resources.and_then(|r| r[kind].get("memory")).cloned();
    let (request, limit) = (of("requests"), of("limits"));
    let page = domain.get("memory").map(|m| m["hugepages"]["pageSize"].clone()).filter(Value::is_string);
    let wanted = request.clone().or(limit.clone()).or(page);
    let known = domain.get("memory").and_then(|m| m.get("guest")).cloned();
    let Some(guest) = known.or(wanted) else { return };
    if let Some(memory) = sub(domain, "memory") {
        fill(memory, "guest", guest.clone());
    }
    if request.is_none()
        && let Some(requests) = sub(domain, "resources").and_then(|r| sub(r, "requests"))
    {
        fill(requests, "memory", limit.unwrap_or(guest));
    }
}

/// How far processors and memory may grow while the guest runs: as upstream, to four times what there is at first.
fn room_to_grow(domain: &mut Map<String, Value>) {
    let fixed = domain.get("devices").is_some_and(|d| d["disableHotplug"] == true);
    if fixed {
        return;
    }
    let part = |cpu: &Map<String, Value>, key: &str| cpu.get(key).and_then(Value::as_i64).unwrap_or(1).max(1);
    if let Some(cpu) = domain.get_mut("cpu").and_then(Value::as_object_mut)
        && cpu.get("dedicatedCpuPlacement") != Some(&json!(true))
    {
        let (sockets, each) = (part(cpu, "sockets"), part(cpu, "cores") * part(cpu, "threads"));
        let max = (sockets * GROWTH).min(VCPUS_MAX / each).max(sockets);
        if cpu.get("maxSockets").is_none_or(|v| v.is_null() || *v == json!(0)) {
            cpu.insert("maxSockets".into(), json!(max));
        }
    }
    let Some(memory) = domain.get_mut("memory").and_then(Value::as_object_mut) else { return };
    let guest = memory.get("guest").map(|v| v.as_str().map_or_else(|| v.to_string(), String::from));
    let guest = guest.and_then(|g| Quantity::parse(&g).ok()).map(|q| q.value());
    if let Some(guest) = guest.filter(|g| *g >= GROWS_FROM && g.checked_mul(GROWTH).is_some()) {
        let most = guest * GROWTH;
        let mebi = 1024 * 1024;
        let text = if most % mebi == 0 { format!("{}Mi", most / mebi) } else { most.to_string() };
        fill(memory, "maxGuest", text);
    }
}

fn devices(domain: &mut Map<String, Value>) {
    let Some(devices) = sub(domain, "devices") else { return };
    if devices.get("autoattachInputDevice") == Some(&json!(true))
        && devices.get("inputs").is_none_or(|i| i.as_array().is_none_or(Vec::is_empty))
    {
        devices.insert("inputs".into(), json!([{"name": "default-0", "type": "tablet", "bus": "usb"}]));
    }
    for input in devices.get_mut("inputs").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(input) = input.as_object_mut() {
            fill(input, "bus", "usb");
            fill(input, "type", "tablet");
        }
    }
    let watchdog = devices.get_mut("watchdog").and_then(Value::as_object_mut);
    for (name, action) in watchdog.into_iter().flatten() {
        if let Some(action) = action.as_object_mut().filter(|_| name != "name") {
            fill(action, "action", "reset");
        }
    }
}

/// Features for Windows that need one another.
fn hyperv(domain: &mut Map<String, Value>) {
    let hyperv = domain.get_mut("features").and_then(|f| f.get_mut("hyperv"));
    let Some(hyperv) = hyperv.and_then(Value::as_object_mut) else { return };
    let on = |hyperv: &Map<String, Value>, f: &str| {
        hyperv.get(f).is_some_and(|v| v["enabled"] != false && v.is_object())
    };
    // A later row may need what an earlier one switches on, so dependents come first.
    for (feature, needs) in [
        ("synictimer", "synic"),
        ("synic", "vpindex"),
        ("tlbflush", "vpindex"),
        ("ipi", "vpindex"),
        ("evmcs", "vapic"),
    ] {
        if on(hyperv, feature) && !on(hyperv, needs) {
            hyperv.insert(needs.into(), json!({"enabled": true}));
        }
    }
    if on(hyperv, "spinlocks")
        && let Some(spinlocks) = hyperv.get_mut("spinlocks").and_then(Value::as_object_mut)
    {
        spinlocks.entry("spinlocks").or_insert(json!(4096));
    }
}

pub(super) fn validate(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    if old.is_some() {
        return; // Who may change what of a running instance depends on who asks; admission knows, rules do not.
    }
    let instance = match VirtualMachineInstance::deserialize(o) {
        Ok(instance) => instance,
        Err(e) => return problems.invalid("spec", "", e),
    };
    let name = object::name(o);
    if name.len() > 63 {
        problems.invalid(
            "metadata.name",
            name,
            "must be no more than 63 characters: it becomes a label and a host name",
        );
    }
    if list(o, "/spec/domain/devices/disks").len() > 256 {
        problems.invalid("spec.domain.devices.disks", "", "may have at most 256 entries");
    }
    spec::validate("spec", &instance.spec, false, problems);
}
