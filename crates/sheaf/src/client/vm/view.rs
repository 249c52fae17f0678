//! A VM and its instance, read for people: its state, where it runs, and what holds it up. Pure.

use serde_json::Value;
use sheaf_meta::object::{self, str_at};
use sheaf_meta::quantity::Quantity;

use super::super::print::{Tone, size};

/// A VM with the instance of the same name, if that exists.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VmView<'a> {
    pub(crate) vm: &'a Value,
    pub(crate) instance: Option<&'a Value>,
}

impl<'a> VmView<'a> {
    /// Finds the instances of VMs.
    pub(crate) fn pair(vms: &'a [Value], instances: &'a [Value]) -> Vec<Self> {
        let key = |o: &'a Value| (object::namespace(o), object::name(o));
        let of = |vm: &'a Value| instances.iter().find(|i| key(i) == key(vm));
        vms.iter().map(|vm| Self { vm, instance: of(vm) }).collect()
    }

    /// One word, KubeVirt's printable status.
    pub(crate) fn status(&self) -> &'a str {
        match str_at(self.vm, &["status", "printableStatus"]) {
            "" => "New",
            word => word,
        }
    }

    pub(crate) fn tone(&self) -> Tone {
        match self.status() {
            "Running" => Tone::Good,
            "Stopped" | "New" => Tone::Plain,
            "Paused"
            | "Provisioning"
            | "Starting"
            | "Stopping"
            | "Terminating"
            | "Migrating"
            | "WaitingForVolumeBinding" => Tone::Busy,
            _ => Tone::Bad,
        }
    }

    /// Phase of the instance; empty without one.
    pub(crate) fn phase(&self) -> &'a str {
        self.instance.map_or("", |i| str_at(i, &["status", "phase"]))
    }

    pub(crate) fn node(&self) -> &'a str {
        self.instance.map_or("", |i| str_at(i, &["status", "nodeName"]))
    }

    /// Interfaces as they are observed.
    pub(crate) fn interfaces(&self) -> &'a [Value] {
        let list = self.instance.and_then(|i| i.pointer("/status/interfaces")).and_then(Value::as_array);
        list.map_or(&[], Vec::as_slice)
    }

    /// The first address under which others reach it: not one that is valid on its link only.
    pub(crate) fn address(&self) -> &'a str {
        self.interfaces().iter().flat_map(addresses).find(|ip| !ip.starts_with("fe80:")).unwrap_or("")
    }

    /// What the guest agent says runs inside.
    pub(crate) fn guest_os(&self) -> &'a str {
        self.instance.map_or("", |i| str_at(i, &["status", "guestOSInfo", "prettyName"]))
    }

    /// `runStrategy`, or what the older `running` means.
    pub(crate) fn run_strategy(&self) -> &'a str {
        match (str_at(self.vm, &["spec", "runStrategy"]), self.vm["spec"]["running"].as_bool()) {
            ("", Some(true)) => "Always",
            ("", _) => "Halted",
            (strategy, _) => strategy,
        }
    }

    fn domain(&self) -> &'a Value {
        &self.vm["spec"]["template"]["spec"]["domain"]
    }

    /// Number of virtual processors.
    pub(crate) fn cpus(&self) -> u64 {
        cpus(self.domain())
    }

    /// Memory of the guest, as it was written; empty if nothing says.
    pub(crate) fn memory(&self) -> &'a str {
        memory(self.domain())
    }

    /// Volumes: name, what kind of thing it is, and the name of that thing.
    pub(crate) fn volumes(&self) -> Vec<(&'a str, &'static str, &'a str)> {
        let volumes = self.vm.pointer("/spec/template/spec/volumes").and_then(Value::as_array);
        volumes
            .into_iter()
            .flatten()
            .map(|volume| {
                let (what, of) = if volume.get("persistentVolumeClaim").is_some() {
                    ("claim", str_at(volume, &["persistentVolumeClaim", "claimName"]))
                } else if volume.get("dataVolume").is_some() {
                    ("data volume", str_at(volume, &["dataVolume", "name"]))
                } else if volume.get("cloudInitNoCloud").is_some()
                    || volume.get("cloudInitConfigDrive").is_some()
                {
                    let source =
                        volume.get("cloudInitNoCloud").or_else(|| volume.get("cloudInitConfigDrive"));
                    ("cloud-init", source.map_or("", |s| str_at(s, &["secretRef", "name"])))
                } else {
                    let kind = volume.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
                    ("other", kind.clone().find(|key| *key != "name").unwrap_or(""))
                };
                (str_at(volume, &["name"]), what, of)
            })
            .collect()
    }

    /// What holds the VM up, as its conditions say: the most telling one first, each sentence once.
    pub(crate) fn why(&self) -> Vec<String> {
        let mut found: Vec<(usize, String)> = Vec::new();
        for object in [self.instance, Some(self.vm)].into_iter().flatten() {
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
            for condition in conditions.into_iter().flatten() {
                let text = |field: &str| condition[field].as_str().unwrap_or_default();
                let Some(rank) = rank(text("type"), text("status"), text("reason")) else { continue };
                let sentence = match (text("message"), text("reason")) {
                    ("", "") => continue,
                    ("", reason) => reason,
                    (message, _) => message,
                };
                if !found.iter().any(|(_, known)| known == sentence) {
                    found.push((rank, sentence.to_owned()));
                }
            }
        }
        found.sort_by_key(|(rank, _)| *rank);
        found.into_iter().map(|(_, sentence)| sentence).collect()
    }
}

/// Number of virtual processors of a domain.
pub(crate) fn cpus(domain: &Value) -> u64 {
    let of = |field: &str| domain["cpu"][field].as_u64().unwrap_or(1).max(1);
    of("sockets").saturating_mul(of("cores")).saturating_mul(of("threads"))
}

/// Memory of a domain's guest, as it was written; empty if nothing says.
pub(crate) fn memory(domain: &Value) -> &str {
    let places = [
        str_at(domain, &["memory", "guest"]),
        str_at(domain, &["resources", "requests", "memory"]),
        str_at(domain, &["resources", "limits", "memory"]),
    ];
    places.into_iter().find(|text| !text.is_empty()).unwrap_or("")
}

/// Addresses of an interface.
pub(crate) fn addresses(interface: &Value) -> Vec<&str> {
    let all = interface["ipAddresses"].as_array().map(|list| list.iter().filter_map(Value::as_str).collect());
    match all {
        Some(list) if !Vec::is_empty(&list) => list,
        _ => interface["ipAddress"].as_str().into_iter().filter(|ip| !ip.is_empty()).collect(),
    }
}

/// Whether a condition tells of something that is wrong; the lower, the more it says.
fn rank(kind: &str, status: &str, reason: &str) -> Option<usize> {
    match (kind, status) {
        ("Failure" | "ManualRecoveryRequired", "True") => Some(0),
        ("PodScheduled" | "Provisioned", "False") => Some(1),
        ("Synchronized" | "Initialized" | "DataVolumesReady", "False") => Some(2),
        // Says only that the guest is not up, which the status says as well.
        ("Ready", "False") if reason == "GuestNotRunning" || reason == "VMINotExists" => None,
        ("Ready", "False") => Some(3),
        _ => None,
    }
}

/// A quantity of bytes in the form of [`size`]; as it stands if it is none.
pub(crate) fn bytes(text: &str) -> String {
    Quantity::parse(text).ok().and_then(|q| q.bytes()).map_or_else(|| text.to_owned(), size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_running_vm_shows() {
        let vm = json!({
            "metadata": {"name": "a", "namespace": "x"},
            "spec": {"running": true, "template": {"spec": {
                "domain": {"cpu": {"cores": 2, "sockets": 2}, "memory": {"guest": "2Gi"}},
                "volumes": [
                    {"name": "root", "persistentVolumeClaim": {"claimName": "a-root"}},
                    {"name": "seed", "cloudInitNoCloud": {"secretRef": {"name": "s"}}},
                    {"name": "cd", "containerDisk": {"image": "i"}},
                ],
            }}},
            "status": {"printableStatus": "Running"},
        });
        let instance = json!({
            "metadata": {"name": "a", "namespace": "x"},
            "status": {
                "phase": "Running", "nodeName": "n1", "guestOSInfo": {"prettyName": "Debian"},
                "interfaces": [{"ipAddresses": ["fe80::1", "10.52.0.9"]}],
            },
        });
        let (vms, instances) = ([vm], [json!({"metadata": {"name": "b", "namespace": "x"}}), instance]);
        let view = VmView::pair(&vms, &instances)[0];
        assert_eq!(
            (view.status(), view.node(), view.address(), view.cpus(), view.memory(), view.run_strategy()),
            ("Running", "n1", "10.52.0.9", 4, "2Gi", "Always")
        );
        assert_eq!(view.guest_os(), "Debian");
        assert_eq!(
            view.volumes(),
            [("root", "claim", "a-root"), ("seed", "cloud-init", "s"), ("cd", "other", "containerDisk")]
        );
        assert!(view.why().is_empty());
    }

    #[test]
    fn why_a_vm_waits() {
        let vm = json!({"status": {"conditions": [
            {"type": "Ready", "status": "False", "reason": "GuestNotRunning", "message": "Guest VM is not reported as running"},
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node has 64Gi"},
        ]}});
        let instance = json!({"status": {"conditions": [
            {"type": "Synchronized", "status": "False", "message": "claim x/a is not bound"},
            {"type": "PodScheduled", "status": "False", "message": "no node has 64Gi"},
            {"type": "AgentConnected", "status": "False", "message": "no agent"},
        ]}});
        let view = VmView { vm: &vm, instance: Some(&instance) };
        assert_eq!(view.why(), ["no node has 64Gi", "claim x/a is not bound"]);
        let new = json!({});
        let view = VmView { vm: &new, instance: None };
        assert_eq!((view.status(), view.why().len(), view.cpus(), view.memory()), ("New", 0, 1, ""));
    }

    #[test]
    fn quantities_of_bytes() {
        assert_eq!(bytes("2048Mi"), "2 GiB");
        assert_eq!(bytes("a lot"), "a lot");
    }
}
