//! The families of what the API knows: VMs, instances, migrations, snapshots, nodes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;
use sheaf_meta::quantity::Quantity;

use super::{Families, Kind};

/// The objects.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// VirtualMachines.
    pub vms: Vec<Value>,
    /// VirtualMachineInstances.
    pub instances: Vec<Value>,
    /// VirtualMachineInstanceMigrations.
    pub migrations: Vec<Value>,
    /// VirtualMachineSnapshots.
    pub snapshots: Vec<Value>,
    /// Nodes.
    pub nodes: Vec<Value>,
    /// The program's version.
    pub version: String,
}

fn text<'a>(o: &'a Value, pointer: &str) -> &'a str {
    o.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn seconds(time: &str) -> f64 {
    time.parse::<Timestamp>().map(|t| t.as_second() as f64).unwrap_or(0.0)
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

/// The group of a VM's status that alerts go by.
fn group(status: &str) -> &'static str {
    match status {
        "Provisioning" | "Starting" | "WaitingForVolumeBinding" => "starting",
        "Running" => "running",
        "Migrating" => "migrating",
        "Stopped" | "Paused" | "Stopping" | "Terminating" => "non_running",
        _ => "error",
    }
}

fn condition<'a>(o: &'a Value, kind: &str) -> Option<&'a Value> {
    let all = o.pointer("/status/conditions").and_then(Value::as_array)?;
    all.iter().find(|c| c["type"] == kind)
}

/// Adds all families.
pub fn add(out: &mut Families, objects: &Objects) {
    let version = objects.version.as_str();
    out.add(
        "kubevirt_info",
        Kind::Gauge,
        "Version of the program.",
        &[("goversion", "none"), ("kubeversion", version)],
        1.0,
    );
    for part in ["api", "controller", "handler", "operator"] {
        for what in ["ready", "leading"] {
            let name = format!("kubevirt_virt_{part}_{what}_status");
            out.add(&name, Kind::Gauge, "All parts are one program, which answers.", &[], 1.0);
        }
        out.add(&format!("kubevirt_virt_{part}_up"), Kind::Gauge, "Number of parts that are up.", &[], 1.0);
    }
    vms(out, &objects.vms);
    instances(out, &objects.instances);
    migrations(out, &objects.migrations);
    for snapshot in objects.snapshots.iter().filter(|s| text(s, "/status/phase") == "Succeeded") {
        let labels = [
            ("name", text(snapshot, "/spec/source/name")),
            ("snapshot_name", text(snapshot, "/metadata/name")),
            ("namespace", text(snapshot, "/metadata/namespace")),
        ];
        let at = seconds(text(snapshot, "/status/creationTime"));
        out.add(
            "kubevirt_vmsnapshot_succeeded_timestamp_seconds",
            Kind::Gauge,
            "When a snapshot was made.",
            &labels,
            at,
        );
    }
    let ready = |n: &&Value| condition(n, "Ready").is_some_and(|c| c["status"] == "True");
    let kvm = |n: &&Value| {
        let devices = n.pointer("/status/allocatable/devices.kubevirt.io~1kvm");
        devices.is_some_and(|d| d != "0" && *d != 0)
    };
    let count = |n: usize| n as f64;
    let nodes = &objects.nodes;
    out.add(
        "kubevirt_allocatable_nodes",
        Kind::Gauge,
        "Nodes that run machines.",
        &[],
        count(nodes.iter().filter(ready).count()),
    );
    out.add(
        "kubevirt_nodes_with_kvm",
        Kind::Gauge,
        "Nodes with hardware virtualization.",
        &[],
        count(nodes.iter().filter(kvm).count()),
    );
}

fn vms(out: &mut Families, vms: &[Value]) {
    let mut by_namespace: BTreeMap<&str, usize> = BTreeMap::new();
    for vm in vms {
        let (name, namespace) = (text(vm, "/metadata/name"), text(vm, "/metadata/namespace"));
        let base = [("name", name), ("namespace", namespace)];
        *by_namespace.entry(namespace).or_default() += 1;
        let annotation =
            |key: &str| text(vm, &format!("/spec/template/metadata/annotations/vm.kubevirt.io~1{key}"));
        let status = text(vm, "/status/printableStatus");
        let mut labels = base.to_vec();
        labels.extend([
            ("os", or_none(annotation("os"))),
            ("workload", or_none(annotation("workload"))),
            ("flavor", or_none(annotation("flavor"))),
            ("machine_type", text(vm, "/spec/template/spec/domain/machine/type")),
            ("instance_type", or_none(text(vm, "/spec/instancetype/name"))),
            ("preference", or_none(text(vm, "/spec/preference/name"))),
            ("status", status),
            ("status_group", group(status)),
        ]);
        out.add("kubevirt_vm_info", Kind::Gauge, "A virtual machine and its status.", &labels, 1.0);
        let since =
            condition(vm, "Ready").map_or("", |c| c["lastTransitionTime"].as_str().unwrap_or_default());
        for of in ["starting", "running", "migrating", "non_running", "error"] {
            let value = if group(status) == of { seconds(since) } else { 0.0 };
            let name = format!("kubevirt_vm_{of}_status_last_transition_timestamp_seconds");
            out.add(
                &name,
                Kind::Counter,
                "When a VM came to a status of this group; 0 if it is in another.",
                &base,
                value,
            );
        }
        let created = seconds(text(vm, "/metadata/creationTimestamp"));
        out.add(
            "kubevirt_vm_create_date_timestamp_seconds",
            Kind::Gauge,
            "When a VM was made.",
            &base,
            created,
        );
        resources(out, vm, &base);
        // Harvester's own: one sample for each VM, with its status as a label.
        let labels = [("name", name), ("namespace", namespace), ("status", status)];
        out.add("harvester_vm_status", Kind::Gauge, "A virtual machine and its status.", &labels, 1.0);
    }
    for (namespace, count) in by_namespace {
        let labels = [("namespace", namespace)];
        out.add("kubevirt_number_of_vms", Kind::Gauge, "VMs of a namespace.", &labels, count as f64);
    }
}

fn resources(out: &mut Families, vm: &Value, base: &[(&str, &str)]) {
    let domain = "/spec/template/spec/domain";
    let number = |pointer: &str| -> Option<f64> {
        let value = vm.pointer(&format!("{domain}/{pointer}"))?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let milli = Quantity::parse(&text).ok()?.milli();
        Some(milli as f64 / 1000.0)
    };
    let mut put = |metric: &str, resource: &str, unit: &str, source: Option<&str>, value: Option<f64>| {
        let Some(value) = value else { return };
        let mut labels = base.to_vec();
        labels.extend([("resource", resource), ("unit", unit)]);
        labels.extend(source.map(|s| ("source", s)));
        out.add(metric, Kind::Gauge, "What a VM asks for.", &labels, value);
    };
    let requests = "kubevirt_vm_resource_requests";
    put(requests, "memory", "bytes", Some("domain"), number("resources/requests/memory"));
    put(requests, "memory", "bytes", Some("guest"), number("memory/guest"));
    put(requests, "cpu", "cores", Some("requests"), number("resources/requests/cpu"));
    for (part, unit) in [("sockets", "sockets"), ("cores", "cores"), ("threads", "threads")] {
        put(requests, "cpu", unit, Some("domain"), number(&format!("cpu/{part}")));
    }
    put("kubevirt_vm_resource_limits", "memory", "bytes", None, number("resources/limits/memory"));
    put("kubevirt_vm_resource_limits", "cpu", "cores", None, number("resources/limits/cpu"));
}

fn instances(out: &mut Families, instances: &[Value]) {
    let mut phases: BTreeMap<(String, String), usize> = BTreeMap::new();
    for vmi in instances {
        let (name, namespace) = (text(vmi, "/metadata/name"), text(vmi, "/metadata/namespace"));
        let (node, phase) = (text(vmi, "/status/nodeName"), text(vmi, "/status/phase").to_ascii_lowercase());
        *phases.entry((node.to_owned(), phase.clone())).or_default() += 1;
        let annotation = |key: &str| text(vmi, &format!("/metadata/annotations/{}", key.replace('/', "~1")));
        let migratable = condition(vmi, "LiveMigratable").is_some_and(|c| c["status"] == "True");
        let evictable = migratable && text(vmi, "/spec/evictionStrategy").starts_with("LiveMigrate");
        let pod = vmi.pointer("/status/activePods").and_then(Value::as_object).and_then(|p| p.keys().next());
        let itype = [
            annotation("kubevirt.io/cluster-instancetype-name"),
            annotation("kubevirt.io/instancetype-name"),
        ];
        let pref =
            [annotation("kubevirt.io/cluster-preference-name"), annotation("kubevirt.io/preference-name")];
        let labels = [
            ("node", node),
            ("namespace", namespace),
            ("name", name),
            ("phase", phase.as_str()),
            ("os", or_none(annotation("vm.kubevirt.io/os"))),
            ("workload", or_none(annotation("vm.kubevirt.io/workload"))),
            ("flavor", or_none(annotation("vm.kubevirt.io/flavor"))),
            ("instance_type", or_none(itype.iter().find(|t| !t.is_empty()).unwrap_or(&""))),
            ("preference", or_none(pref.iter().find(|t| !t.is_empty()).unwrap_or(&""))),
            ("guest_os_kernel_release", text(vmi, "/status/guestOSInfo/kernelRelease")),
            ("guest_os_machine", text(vmi, "/status/guestOSInfo/machine")),
            ("guest_os_arch", text(vmi, "/spec/architecture")),
            ("guest_os_name", text(vmi, "/status/guestOSInfo/name")),
            ("guest_os_version_id", text(vmi, "/status/guestOSInfo/versionId")),
            ("evictable", if evictable { "true" } else { "false" }),
            ("outdated", "false"),
            ("vmi_pod", pod.map_or("", String::as_str)),
        ];
        out.add("kubevirt_vmi_info", Kind::Gauge, "An instance of a virtual machine.", &labels, 1.0);
        let base = [("node", node), ("namespace", namespace), ("name", name)];
        let wants = text(vmi, "/spec/evictionStrategy") == "LiveMigrate";
        let stuck = if wants && !migratable { 1.0 } else { 0.0 };
        out.add(
            "kubevirt_vmi_non_evictable",
            Kind::Gauge,
            "1 if an instance holds up the draining of its node.",
            &base,
            stuck,
        );
        addresses(out, vmi, &base);
        let overhead = text(vmi, "/status/memory/memoryOverhead");
        if let Some(bytes) = Quantity::parse(overhead).ok().and_then(|q| q.bytes()) {
            let labels = [("namespace", namespace), ("name", name)];
            let help = "Memory that a machine takes beside its guest's.";
            out.add("kubevirt_vmi_launcher_memory_overhead_bytes", Kind::Gauge, help, &labels, bytes as f64);
        }
    }
    for ((node, phase), count) in phases {
        let labels = [("node", node.as_str()), ("phase", phase.as_str())];
        out.add(
            "kubevirt_vmi_phase_count",
            Kind::Gauge,
            "Instances by node and phase.",
            &labels,
            count as f64,
        );
    }
}

fn addresses(out: &mut Families, vmi: &Value, base: &[(&str, &str)]) {
    let all = vmi.pointer("/status/interfaces").and_then(Value::as_array);
    for nic in all.into_iter().flatten() {
        for address in nic["ipAddresses"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let mut labels = base.to_vec();
            labels.extend([
                ("vnic_name", nic["name"].as_str().unwrap_or_default()),
                ("interface_name", nic["interfaceName"].as_str().unwrap_or_default()),
                ("address", address),
                ("type", "InternalIP"),
            ]);
            out.add("kubevirt_vmi_status_addresses", Kind::Gauge, "Addresses of a guest.", &labels, 1.0);
        }
    }
    let networks = vmi.pointer("/spec/networks").and_then(Value::as_array).cloned().unwrap_or_default();
    let interfaces = vmi.pointer("/spec/domain/devices/interfaces").and_then(Value::as_array);
    for nic in interfaces.into_iter().flatten() {
        let name = nic["name"].as_str().unwrap_or_default();
        let network = networks.iter().find(|n| n["name"] == name);
        let multus = network.map_or("", |n| text(n, "/multus/networkName"));
        let binding = ["bridge", "masquerade", "sriov"].into_iter().find(|b| nic.get(*b).is_some());
        let labels = [
            ("name", base.last().map_or("", |b| b.1)),
            ("namespace", base.get(1).map_or("", |b| b.1)),
            ("vnic_name", name),
            ("binding_type", if binding.is_some() { "core" } else { "plugin" }),
            ("network", if multus.is_empty() { "pod networking" } else { multus }),
            ("binding_name", binding.unwrap_or_else(|| text(nic, "/binding/name"))),
            ("model", nic["model"].as_str().filter(|m| !m.is_empty()).unwrap_or("virtio")),
        ];
        out.add("kubevirt_vmi_vnic_info", Kind::Gauge, "NICs of an instance.", &labels, 1.0);
    }
}

fn migrations(out: &mut Families, migrations: &[Value]) {
    let mut phases = BTreeMap::from([("pending", 0), ("scheduling", 0), ("running", 0), ("unset", 0)]);
    for migration in migrations {
        let phase = match text(migration, "/status/phase") {
            "" => "unset",
            "Pending" => "pending",
            "Scheduling" | "Scheduled" => "scheduling",
            "PreparingTarget" | "TargetReady" | "Running" => "running",
            done => {
                let labels = [
                    ("vmi", text(migration, "/spec/vmiName")),
                    ("vmim", text(migration, "/metadata/name")),
                    ("namespace", text(migration, "/metadata/namespace")),
                ];
                let name = if done == "Succeeded" {
                    "kubevirt_vmi_migration_succeeded"
                } else {
                    "kubevirt_vmi_migration_failed"
                };
                out.add(name, Kind::Gauge, "A migration that has ended.", &labels, 1.0);
                continue;
            }
        };
        *phases.entry(phase).or_default() += 1;
    }
    for (phase, count) in phases {
        let name = format!("kubevirt_vmi_migrations_in_{phase}_phase");
        out.add(&name, Kind::Gauge, "Migrations in this phase.", &[], f64::from(count));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_api_knows() {
        let objects = Objects {
            vms: vec![
                json!({"metadata": {"name": "a", "namespace": "x", "creationTimestamp": "1970-01-01T00:00:07Z"},
                "spec": {"template": {"spec": {"domain": {"memory": {"guest": "1Gi"}, "cpu": {"cores": 2}}}}},
                "status": {"printableStatus": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:09Z"}]}}),
            ],
            instances: vec![json!({"metadata": {"name": "a", "namespace": "x"},
                "spec": {"evictionStrategy": "LiveMigrate", "networks": [{"name": "default", "pod": {}}],
                    "domain": {"devices": {"interfaces": [{"name": "default", "masquerade": {}}]}}},
                "status": {"phase": "Running", "nodeName": "n", "memory": {"memoryOverhead": "200Mi"},
                    "interfaces": [{"name": "default", "ipAddresses": ["10.0.0.2"]}]}})],
            migrations: vec![json!({"status": {"phase": "Running"}})],
            ..Objects::default()
        };
        let mut out = Families::default();
        add(&mut out, &objects);
        let text = out.render();
        for line in [
            "harvester_vm_status{name=\"a\",namespace=\"x\",status=\"Running\"} 1",
            "kubevirt_vm_running_status_last_transition_timestamp_seconds{name=\"a\",namespace=\"x\"} 9",
            "kubevirt_vm_error_status_last_transition_timestamp_seconds{name=\"a\",namespace=\"x\"} 0",
            "kubevirt_vm_resource_requests{name=\"a\",namespace=\"x\",resource=\"memory\",unit=\"bytes\",source=\"guest\"} 1073741824",
            "kubevirt_vmi_phase_count{node=\"n\",phase=\"running\"} 1",
            "kubevirt_vmi_non_evictable{node=\"n\",namespace=\"x\",name=\"a\"} 1",
            "kubevirt_vmi_migrations_in_running_phase 1",
            "kubevirt_vmi_launcher_memory_overhead_bytes{namespace=\"x\",name=\"a\"} 209715200",
            "kubevirt_number_of_vms{namespace=\"x\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.contains(
            "kubevirt_vmi_info{node=\"n\",namespace=\"x\",name=\"a\",phase=\"running\",os=\"<none>\""
        ));
    }
}
