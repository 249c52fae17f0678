//! Replicated volumes as objects: claims become volumes, volumes get replicas and an engine, users get attachments.
//!
//! ```text
//! claim -> longhorn.io Volume -> Replicas, Engine -> (agents make them) -> PersistentVolume, bound
//! instance on a node -> VolumeAttachment -> Volume.spec.nodeID -> Engine -> (its agent attaches) -> attached
//! ```
//!
//! What is decided is `sheaf_plan::storage`. Who owns what: [`claims`] claims of these classes, their PersistentVolumes and
//! the spec of their Volumes; [`attach`] VolumeAttachments; [`volumes`] the rest of a Volume, the spec and existence of its
//! Replicas and its Engine; [`snapshots`] VolumeSnapshots and their contents; [`machines`] those of whole machines. Statuses of Replicas, Engines, Nodes and
//! Snapshots are the agents'.

mod attach;
mod claims;
pub(crate) mod classes;
mod machines;
mod provision;
mod snapshots;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::{Client, ResourceExt};
use sheaf_api::longhorn::{self, DRIVER, NAMESPACE};
use sheaf_api::volumesnapshot::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
use sheaf_plan::place::ready;
use sheaf_plan::storage::Settings;
use sheaf_plan::storage::place::{Place, place_of};
use sheaf_runtime::{EventRecorder, Informer, ObjectKey, Selection, StepError, TaskGroup};

use crate::vm::claims_of;
use crate::world::World;

/// The caches of these controllers.
pub(crate) struct Storage {
    client: Client,
    world: Arc<World>,
    events: EventRecorder,
    volumes: Arc<Informer<longhorn::Volume>>,
    engines: Arc<Informer<longhorn::Engine>>,
    replicas: Arc<Informer<longhorn::Replica>>,
    nodes: Arc<Informer<longhorn::Node>>,
    settings: Arc<Informer<longhorn::Setting>>,
    moments: Arc<Informer<longhorn::Snapshot>>,
    attachments: Arc<Informer<VolumeAttachment>>,
    snapshots: Arc<Informer<VolumeSnapshot>>,
    contents: Arc<Informer<VolumeSnapshotContent>>,
    snapshot_classes: Arc<Informer<VolumeSnapshotClass>>,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, events: &EventRecorder, group: &TaskGroup) {
    let all = Selection::all();
    let storage = Arc::new(Storage {
        client: client.clone(),
        world: world.clone(),
        events: events.clone(),
        volumes: Informer::spawn(client, group, &all),
        engines: Informer::spawn(client, group, &all),
        replicas: Informer::spawn(client, group, &all),
        nodes: Informer::spawn(client, group, &all),
        settings: Informer::spawn(client, group, &all),
        moments: Informer::spawn(client, group, &all),
        attachments: Informer::spawn(client, group, &all),
        snapshots: Informer::spawn(client, group, &all),
        contents: Informer::spawn(client, group, &all),
        snapshot_classes: Informer::spawn(client, group, &all),
    });
    classes::spawn(client, group);
    claims::spawn(&storage, group);
    volumes::spawn(&storage, group);
    attach::spawn(&storage, group);
    snapshots::spawn(&storage, group);
    machines::spawn(&storage, group);
}

/// Key of an object of Longhorn's.
fn key(name: impl Into<String>) -> ObjectKey {
    ObjectKey::new(NAMESPACE, name.into())
}

/// The volume behind a PersistentVolume, if it is one of ours.
pub(crate) fn handle(volume: &PersistentVolume) -> Option<&str> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    (csi.driver == DRIVER).then_some(csi.volume_handle.as_str())
}

/// The claim that a PersistentVolume is bound to.
fn claim_of(volume: &PersistentVolume) -> Option<ObjectKey> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(reference.namespace.clone()?, reference.name.clone()?))
}

/// Fine if the object went away meanwhile.
fn gone<T>(result: Result<T, kube::Error>, context: &'static str) -> Result<(), StepError> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(StepError::api(context)(error)),
        Ok(_) => Ok(()),
    }
}

/// Fine if somebody was faster.
fn made<T>(result: Result<T, kube::Error>, context: &'static str) -> Result<(), StepError> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(StepError::api(context)(error)),
        Ok(_) => Ok(()),
    }
}

impl Storage {
    fn settings(&self) -> Settings {
        let values: BTreeMap<String, String> =
            self.settings.list().iter().map(|s| (s.name_any(), s.value.clone())).collect();
        Settings::read(&values)
    }

    /// Nodes that the cluster has, and those of them that answer.
    fn alive(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let nodes = self.world.nodes.list();
        let all = nodes.iter().map(|n| n.name_any()).collect();
        (all, nodes.iter().filter(|n| ready(n)).map(|n| n.name_any()).collect())
    }

    /// Places for replicas.
    fn places(&self, settings: &Settings) -> Vec<Place> {
        let mut scheduled: BTreeMap<String, u64> = BTreeMap::new();
        for replica in self.replicas.list() {
            let bytes = replica.spec.volume_size.parse().unwrap_or(0_u64);
            let sum = scheduled.entry(replica.spec.disk_id.clone()).or_default();
            *sum = sum.saturating_add(bytes);
        }
        let nodes = self.nodes.list();
        nodes
            .iter()
            .map(|node| {
                let of = self.world.nodes.get(&ObjectKey::new("", node.name_any()));
                let alive = match of {
                    None => Err("the cluster has no such node".to_owned()),
                    Some(of) if !ready(&of) => Err("nodes are unavailable: it does not answer".to_owned()),
                    Some(of)
                        if settings.not_on_cordoned
                            && of.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) =>
                    {
                        Err("it is cordoned (disable-scheduling-on-cordoned-node)".to_owned())
                    }
                    Some(_) => Ok(()),
                };
                place_of(node, alive, &scheduled)
            })
            .collect()
    }

    /// Nodes on which machines use a claim.
    fn users(&self, claim: &ObjectKey) -> BTreeSet<String> {
        let uses = |vmi: &sheaf_api::kubevirt::VirtualMachineInstance| {
            let status = vmi.status.as_ref();
            let held = status
                .into_iter()
                .flat_map(|s| &s.volume_status)
                .any(|v| v.persistent_volume_claim_info.as_ref().is_some_and(|c| c.claim_name == claim.name));
            let over = status.is_some_and(|s| matches!(s.phase.as_str(), "Succeeded" | "Failed"));
            !over && (held || claims_of(&vmi.spec).contains(&claim.name))
        };
        let all = self.world.instances.list_namespace(&claim.namespace);
        let node = |vmi: &sheaf_api::kubevirt::VirtualMachineInstance| {
            vmi.status.as_ref().map(|s| s.node_name.clone()).filter(|n| !n.is_empty())
        };
        all.iter().filter(|vmi| uses(vmi)).filter_map(|vmi| node(vmi)).collect()
    }

    /// The PersistentVolume of a volume.
    fn persistent(&self, volume: &str) -> Option<Arc<PersistentVolume>> {
        let named = self.world.volumes.get(&ObjectKey::new("", volume)).filter(|v| handle(v) == Some(volume));
        named.or_else(|| self.world.volumes.list().into_iter().find(|v| handle(v) == Some(volume)))
    }
}
