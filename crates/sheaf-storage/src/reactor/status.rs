//! What is here, for whoever asks: replicas, volumes, metrics. Changes nothing.

use std::path::Path;

use sheaf_block_core::coordinator::Phase;
use sheaf_block_core::structure::Structure;

use super::Reactor;
use crate::api::{Answer, ReplicaStatus, SnapshotStatus, VolumeStatus, show_volume};
use crate::damaged;

/// The volume's name in a directory's: all before the last hyphen.
fn name_of(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.rsplit_once('-').map(|(volume, _)| volume.to_owned()).unwrap_or(name)
}

impl Reactor {
    pub(super) fn list(&self) -> Answer {
        let open = self.replicas.values().map(|shell| {
            let meta = shell.metadata();
            ReplicaStatus {
                volume: show_volume(shell.key().0),
                name: name_of(&shell.path()),
                replica: shell.key().1.0,
                bytes: shell.dir().bytes(),
                path: shell.path(),
                state: "open".into(),
                layers: shell.dir().chain().len(),
                version: meta.ledger.committed.version.0,
                in_sync: meta.ledger.committed.in_sync.iter().map(|id| id.0).collect(),
                notes: shell.dir().notes().to_vec(),
                damaged_bytes: damaged::bytes(meta),
                damaged: damaged::ranges(meta),
            }
        });
        let closed = self.closed.iter().map(|closed| ReplicaStatus {
            volume: closed.key.map(|key| show_volume(key.0)).unwrap_or_default(),
            name: name_of(&closed.path),
            replica: closed.key.map_or(0, |key| key.1.0),
            bytes: 0,
            path: closed.path.clone(),
            state: closed.reason.clone(),
            layers: 0,
            version: 0,
            in_sync: vec![],
            notes: vec![],
            damaged_bytes: 0,
            damaged: vec![],
        });
        let volumes = self.volumes.values().map(|shell| {
            let membership = shell.machine.membership();
            VolumeStatus {
                volume: show_volume(shell.id),
                name: shell.attach.name.clone(),
                bytes: shell.attach.bytes,
                phase: phase_name(shell.machine.phase()).into(),
                healthy: shell.machine.is_healthy(),
                version: membership.version.0,
                in_sync: membership.in_sync.iter().map(|id| id.0).collect(),
                replicas: shell.attach.replicas.clone(),
                epoch: shell.epoch.number,
                frontends: shell.attach.frontends.clone(),
                clients: self.guests_of(shell.id),
                requests: shell.requests(),
                snapshots: snapshots(shell.machine.structure()),
                rebuilding: shell.machine.rebuilding().map(|id| id.0),
                rebuilt: shell.machine.rebuilt_percent(),
                copied: shell.machine.counts().copied,
                repaired: shell.machine.counts().repaired,
                undecided: shell.machine.counts().undecided,
            }
        });
        Answer::List { replicas: open.chain(closed).collect(), volumes: volumes.collect() }
    }

    pub(super) fn metrics(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        let gauge = |text: &mut String, name: &str, help: &str| {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        };
        gauge(&mut text, "longhorn_volume_capacity_bytes", "Configured size in bytes for this volume");
        for shell in self.volumes.values() {
            let _ = writeln!(
                text,
                "longhorn_volume_capacity_bytes{{volume=\"{}\"}} {}",
                shell.attach.name, shell.attach.bytes
            );
        }
        gauge(&mut text, "longhorn_volume_robustness", "Robustness of this volume");
        for shell in self.volumes.values() {
            // Longhorn's numbers: unknown, healthy, degraded, faulted.
            let value = match shell.machine.phase() {
                Phase::Serving if shell.machine.is_healthy() => 1,
                Phase::Serving => 2,
                Phase::Fenced(_) | Phase::LostUnsynced => 3,
                _ => 0,
            };
            let _ = writeln!(text, "longhorn_volume_robustness{{volume=\"{}\"}} {value}", shell.attach.name);
        }
        gauge(&mut text, "sheaf_storage_requests", "Requests of guests that are not answered");
        for shell in self.volumes.values() {
            let _ = writeln!(
                text,
                "sheaf_storage_requests{{volume=\"{}\"}} {}",
                shell.attach.name,
                shell.requests()
            );
        }
        let _ = write!(
            text,
            "# HELP sheaf_storage_answered_total Requests answered\n# TYPE sheaf_storage_answered_total counter\n"
        );
        for shell in self.volumes.values() {
            let name = &shell.attach.name;
            let _ = writeln!(text, "sheaf_storage_answered_total{{volume=\"{name}\"}} {}", shell.answered);
        }
        let _ = write!(
            text,
            "# HELP sheaf_storage_failed_total Requests answered with an error\n# TYPE sheaf_storage_failed_total counter\n"
        );
        for shell in self.volumes.values() {
            let name = &shell.attach.name;
            let _ = writeln!(text, "sheaf_storage_failed_total{{volume=\"{name}\"}} {}", shell.failures);
        }
        gauge(
            &mut text,
            "sheaf_storage_damaged_bytes",
            "Bytes of a replica that cannot be read and of which no replica had a good copy",
        );
        for shell in self.replicas.values() {
            let (path, bytes) = (shell.path(), damaged::bytes(shell.metadata()));
            let _ = writeln!(text, "sheaf_storage_damaged_bytes{{path=\"{}\"}} {bytes}", path.display());
        }
        gauge(&mut text, "sheaf_storage_map_pages", "Pages of layer maps in memory");
        for shell in self.replicas.values() {
            let _ = writeln!(
                text,
                "sheaf_storage_map_pages{{path=\"{}\"}} {}",
                shell.path().display(),
                shell.dir().map_pages()
            );
        }
        text
    }
}

fn snapshots(structure: Option<&Structure>) -> Vec<SnapshotStatus> {
    let Some(structure) = structure else { return vec![] };
    let name = |id| {
        let snapshot = structure.layer(id).and_then(|layer| layer.snapshot.as_ref());
        snapshot.map(|snapshot| snapshot.name.as_str().to_owned())
    };
    let status = |layer: &sheaf_block_core::structure::Layer| {
        let snapshot = layer.snapshot.as_ref()?;
        Some(SnapshotStatus {
            name: snapshot.name.as_str().to_owned(),
            parent: layer.parent.and_then(name),
            created: snapshot.created,
            user: snapshot.user,
            removed: snapshot.removed,
            labels: snapshot.labels.clone(),
        })
    };
    structure.layers.iter().filter_map(status).collect()
}

pub(super) fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Attaching => "attaching",
        Phase::Recovering(_) => "recovering",
        Phase::Serving => "serving",
        Phase::Fenced(_) => "fenced",
        Phase::LostUnsynced => "lost-unsynced",
        Phase::Again => "attaching",
    }
}
