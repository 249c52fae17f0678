//! What is written: as users have it.

use serde_json::{Value, json};

/// Stands for a name in what is sent.
pub(crate) const NAME: &str = "name-to-be";

/// A config map of 1 KiB.
pub(crate) fn config_map(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "bench", "labels": {"app": "bench"}},
        "data": {"text": "x".repeat(1024)},
    })
}

/// A machine as users have them, halted, so that nothing but the API is measured.
pub(crate) fn machine(name: &str) -> Value {
    let disk = |name: &str| json!({"name": name, "disk": {"bus": "virtio"}, "bootOrder": 1});
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {
            "name": name, "namespace": "bench",
            "labels": {"harvesterhci.io/creator": "harvester", "tag.harvesterhci.io/role": "bench"},
            "annotations": {"harvesterhci.io/reservedMemory": "", "field.cattle.io/description": "a machine of the bench"},
        },
        "spec": {"runStrategy": "Halted", "template": {
            "metadata": {"labels": {"harvesterhci.io/vmName": name}},
            "spec": {
                "evictionStrategy": "LiveMigrate", "hostname": name, "terminationGracePeriodSeconds": 120,
                "domain": {
                    "machine": {"type": "q35"},
                    "cpu": {"cores": 2, "sockets": 1, "threads": 1},
                    "memory": {"guest": "3996Mi"},
                    "devices": {
                        "disks": [disk("root"), {"name": "cloudinit", "disk": {"bus": "virtio"}}],
                        "interfaces": [{"name": "default", "model": "virtio", "bridge": {}, "macAddress": "52:54:00:12:34:56"}],
                        "inputs": [{"name": "tablet", "bus": "usb", "type": "tablet"}],
                    },
                    "features": {"acpi": {"enabled": true}},
                    "resources": {"limits": {"cpu": "2", "memory": "4Gi"}},
                },
                "networks": [{"name": "default", "multus": {"networkName": "default/vlan100"}}],
                "volumes": [
                    {"name": "root", "persistentVolumeClaim": {"claimName": format!("{name}-root")}},
                    {"name": "cloudinit", "cloudInitNoCloud": {"userData": "#cloud-config\npackage_update: true\npackages: [qemu-guest-agent]\nruncmd:\n- systemctl enable --now qemu-guest-agent\n"}},
                ],
            },
        }},
    })
}
