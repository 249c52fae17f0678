//! `longhorn_*` metrics of this node, and the process's own: part of the agent's `/metrics`.
//!
//! Each node tells of the volumes attached to it, its replicas and its disks; so that a cluster's metrics are the sum of its
//! nodes'. The values are those of the objects, which are those of the process.

use kube::ResourceExt;
use sheaf_api::longhorn::condition;
use sheaf_plan::metrics::{Families, Kind};
use sheaf_storage::api::{Answer, Ask};

use super::Replicated;

const STATES: [&str; 6] = ["creating", "attached", "detached", "attaching", "detaching", "deleting"];
const ROBUSTNESS: [&str; 4] = ["unknown", "healthy", "degraded", "faulted"];

type Page = Families;

/// One sample.
fn add(page: &mut Page, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
    page.add(name, Kind::Gauge, help, labels, value);
}

impl Replicated {
    /// This node's numbers.
    pub(crate) async fn families(&self) -> Families {
        let mut page = Page::default();
        self.volumes_page(&mut page);
        self.disks_page(&mut page);
        // The process's own.
        if let Ok(Answer::Text(own)) = self.ask(Ask::Metrics).await {
            let ours: Vec<&str> = own.lines().filter(|line| line.contains("sheaf_storage_")).collect();
            page.merge(&ours.join("\n"));
        }
        page
    }

    fn volumes_page(&self, page: &mut Page) {
        let node = self.node.as_str();
        for volume in self.volumes.list() {
            let status = volume.status.clone().unwrap_or_default();
            // A volume that is nowhere is told of by the node of its first replica.
            let replicas = self.replicas.list();
            let first = replicas.iter().find(|r| r.spec.volume_name == volume.name_any());
            let owner = match status.current_engine_node_id.as_str() {
                "" => first.map(|r| r.spec.node_id.clone()).unwrap_or_default(),
                at => at.to_owned(),
            };
            if owner != node {
                continue;
            }
            let name = volume.name_any();
            let kubernetes = status.kubernetes_status.clone().unwrap_or_default();
            let base = [
                ("node", node),
                ("volume", &name),
                ("pvc", &kubernetes.pvc_name),
                ("pvc_namespace", &kubernetes.namespace),
            ];
            add(
                page,
                "longhorn_volume_capacity_bytes",
                "Configured size in bytes for this volume",
                &base,
                volume.spec.size.parse().unwrap_or(0.0),
            );
            add(
                page,
                "longhorn_volume_actual_size_bytes",
                "Actual space used by each replica of the volume",
                &base,
                status.actual_size.unwrap_or(0) as f64,
            );
            for state in STATES {
                let labels = [&base[..], &[("state", state)]].concat();
                add(
                    page,
                    "longhorn_volume_state",
                    "State of this volume",
                    &labels,
                    f64::from(u8::from(status.state == state)),
                );
            }
            for state in ROBUSTNESS {
                let labels = [&base[..], &[("state", state)]].concat();
                add(
                    page,
                    "longhorn_volume_robustness",
                    "Robustness of this volume",
                    &labels,
                    f64::from(u8::from(status.robustness == state)),
                );
            }
            let encrypted = f64::from(u8::from(volume.spec.encrypted == Some(true)));
            add(page, "longhorn_volume_encrypted", "Whether the volume is encrypted", &base, encrypted);
        }
        for engine in self.engines.list().iter().filter(|e| e.spec.node_id == node) {
            let (name, volume) = (engine.name_any(), engine.spec.volume_name.clone());
            let status = engine.status.clone().unwrap_or_default();
            let base = [("engine", name.as_str()), ("volume", volume.as_str()), ("node", node)];
            let info = [
                &base[..],
                &[("data_engine", "v1"), ("frontend", &engine.spec.frontend), ("image", "sheaf")],
            ]
            .concat();
            add(page, "longhorn_engine_info", "Static information of this engine", &info, 1.0);
            for state in ["running", "stopped", "starting"] {
                let labels = [&base[..], &[("state", state)]].concat();
                add(
                    page,
                    "longhorn_engine_state",
                    "State of this engine",
                    &labels,
                    f64::from(u8::from(status.current_state == state)),
                );
            }
            for (replica, mode) in &status.replica_mode_map {
                let labels =
                    [("engine", name.as_str()), ("volume", &volume), ("replica", replica), ("mode", mode)];
                add(page, "longhorn_engine_replica_mode", "Mode of a replica of this engine", &labels, 1.0);
            }
            for (snapshot, seen) in &status.snapshots {
                let user = seen.usercreated.unwrap_or(false).to_string();
                let labels = [("snapshot", snapshot.as_str()), ("volume", &volume), ("user_created", &user)];
                let size = seen.size.parse().unwrap_or(0.0);
                add(
                    page,
                    "longhorn_snapshot_actual_size_bytes",
                    "Space that this snapshot takes",
                    &labels,
                    size,
                );
            }
        }
        for replica in self.replicas.list().iter().filter(|r| r.spec.node_id == node) {
            let (name, volume) = (replica.name_any(), replica.spec.volume_name.clone());
            let status = replica.status.clone().unwrap_or_default();
            let base = [("replica", name.as_str()), ("volume", volume.as_str()), ("node", node)];
            let info = [&base[..], &[("disk_path", replica.spec.disk_path.as_str()), ("data_engine", "v1")]]
                .concat();
            add(page, "longhorn_replica_info", "Static information of this replica", &info, 1.0);
            for state in ["running", "stopped", "error", "starting"] {
                let labels = [&base[..], &[("state", state)]].concat();
                add(
                    page,
                    "longhorn_replica_state",
                    "State of this replica",
                    &labels,
                    f64::from(u8::from(status.current_state == state)),
                );
            }
        }
    }

    fn disks_page(&self, page: &mut Page) {
        let all = self.nodes.list();
        // Told by one of them: the cluster's numbers are the sum of its nodes'.
        if all.first().is_some_and(|n| n.name_any() == self.node) {
            add(page, "longhorn_node_count_total", "Number of nodes", &[], all.len() as f64);
        }
        let Some(node) = all.iter().find(|n| n.name_any() == self.node) else { return };
        let status = node.status.clone().unwrap_or_default();
        let name = self.node.as_str();
        for kind in ["Ready", "Schedulable"] {
            let found = condition(&status.conditions, kind);
            let reason = found.map(|c| c.reason.clone()).unwrap_or_default();
            let labels =
                [("node", name), ("condition", &kind.to_lowercase()), ("condition_reason", reason.as_str())];
            let holds = f64::from(u8::from(found.is_some_and(|c| c.status == "True")));
            add(page, "longhorn_node_status", "Status of this node", &labels, holds);
        }
        let allows = f64::from(u8::from(node.spec.allow_scheduling != Some(false)));
        let labels = [("node", name), ("condition", "allowScheduling"), ("condition_reason", "")];
        add(page, "longhorn_node_status", "Status of this node", &labels, allows);
        let mut sums = [0_i64; 4];
        for (disk, seen) in &status.disk_status {
            let (all, free) = (seen.storage_maximum.unwrap_or(0), seen.storage_available.unwrap_or(0));
            let reserved = node.spec.disks.get(disk).and_then(|d| d.storage_reserved).unwrap_or(0);
            let labels = [("node", name), ("disk", disk.as_str())];
            add(page, "longhorn_disk_capacity_bytes", "Size of this disk", &labels, all as f64);
            add(page, "longhorn_disk_usage_bytes", "Used space of this disk", &labels, (all - free) as f64);
            add(
                page,
                "longhorn_disk_reservation_bytes",
                "Space of this disk that is not for replicas",
                &labels,
                reserved as f64,
            );
            for (kind, word) in [("Ready", "ready"), ("Schedulable", "schedulable")] {
                let found = condition(&seen.conditions, kind);
                let reason = found.map(|c| c.reason.clone()).unwrap_or_default();
                let labels = [&labels[..], &[("condition", word), ("condition_reason", &reason)]].concat();
                let holds = f64::from(u8::from(found.is_some_and(|c| c.status == "True")));
                add(page, "longhorn_disk_status", "Status of this disk", &labels, holds);
            }
            let parts = [all, all - free, reserved, seen.storage_scheduled.unwrap_or(0)];
            sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum = sum.saturating_add(part));
        }
        let labels = [("node", name)];
        add(
            page,
            "longhorn_node_storage_capacity_bytes",
            "Size of this node's disks",
            &labels,
            sums[0] as f64,
        );
        add(
            page,
            "longhorn_node_storage_usage_bytes",
            "Used space of this node's disks",
            &labels,
            sums[1] as f64,
        );
        add(
            page,
            "longhorn_node_storage_reservation_bytes",
            "Space of this node's disks that is not for replicas",
            &labels,
            sums[2] as f64,
        );
        add(
            page,
            "longhorn_node_storage_scheduled_bytes",
            "Space of this node's disks promised to replicas",
            &labels,
            sums[3] as f64,
        );
    }
}
