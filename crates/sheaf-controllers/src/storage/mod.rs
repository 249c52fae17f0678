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

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt};
use sheaf_api::kubevirt::VirtualMachineInstance;
use sheaf_api::longhorn::{self, DRIVER, NAMESPACE};
use sheaf_api::volumesnapshot::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
use sheaf_plan::claim::claims_of;
use sheaf_plan::place::ready;
use sheaf_plan::storage::Settings;
use sheaf_plan::storage::place::{Place, place_of};
use sheaf_runtime::{EventRecorder, Index, Informer, ObjectKey, Selection, StepError, TaskGroup};

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
    /// Instances by the claims that they name, or still hold.
    users_of_claim: Arc<Index<ObjectKey>>,
    /// PersistentVolumes by the volumes that they stand for.
    persistent_of: Arc<Index<String>>,
    /// Replicas by their volumes.
    replicas_of: Arc<Index<String>>,
    /// Replicas by their nodes.
    replicas_on: Arc<Index<String>>,
    /// Snapshots by their volumes.
    moments_of: Arc<Index<String>>,
    /// VolumeAttachments by their PersistentVolumes.
    attachments_of: Arc<Index<String>>,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, events: &EventRecorder, group: &TaskGroup) {
    let all = Selection::all();
    let replicas = Informer::spawn(client, group, &all);
    let moments = Informer::spawn(client, group, &all);
    let attachments = Informer::spawn(client, group, &all);
    let storage = Arc::new(Storage {
        client: client.clone(),
        world: world.clone(),
        events: events.clone(),
        users_of_claim: Index::over(&world.instances, claims_held),
        persistent_of: Index::over(&world.volumes, |pv| handle(pv).map(str::to_owned).into_iter().collect()),
        replicas_of: Index::over(&replicas, |r: &longhorn::Replica| vec![r.spec.volume_name.clone()]),
        replicas_on: Index::over(&replicas, |r: &longhorn::Replica| vec![r.spec.node_id.clone()]),
        moments_of: Index::over(&moments, |m: &longhorn::Snapshot| vec![m.spec.volume.clone()]),
        attachments_of: Index::over(&attachments, |va| attach::persistent_of(va).into_iter().collect()),
        volumes: Informer::spawn(client, group, &all),
        engines: Informer::spawn(client, group, &all),
        replicas,
        nodes: Informer::spawn(client, group, &all),
        settings: Informer::spawn(client, group, &all),
        moments,
        attachments,
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

/// Claims that an instance names, and those of volumes that its machine has still.
fn claims_held(vmi: &VirtualMachineInstance) -> Vec<ObjectKey> {
    let held = vmi.status.iter().flat_map(|s| &s.volume_status);
    let held = held.filter_map(|v| Some(v.persistent_volume_claim_info.as_ref()?.claim_name.clone()));
    let mut names = claims_of(&vmi.spec);
    names.extend(held);
    let namespace = vmi.namespace().unwrap_or_default();
    names.into_iter().map(|name| ObjectKey::new(namespace.clone(), name)).collect()
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

    /// Nodes that do not answer, and since when.
    fn silent(&self) -> BTreeMap<String, Timestamp> {
        let nodes = self.world.nodes.list();
        let since = |node: &Arc<Node>| {
            let conditions = node.status.as_ref()?.conditions.as_ref()?;
            let told = conditions.iter().find(|c| c.type_ == "Ready")?;
            told.last_transition_time.as_ref().map(|t| t.0)
        };
        let silent = nodes.iter().filter(|n| !ready(n));
        silent.filter_map(|n| Some((n.name_any(), since(n)?))).collect()
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
        let of = self.users_of_claim.users(claim);
        let machines = of.iter().filter_map(|key| self.world.instances.get(key));
        let statuses = machines.filter_map(|vmi| vmi.status.clone());
        let on = statuses.filter(|s| !matches!(s.phase.as_str(), "Succeeded" | "Failed"));
        on.map(|s| s.node_name).filter(|node| !node.is_empty()).collect()
    }

    /// The PersistentVolume of a volume.
    fn persistent(&self, volume: &str) -> Option<Arc<PersistentVolume>> {
        let of = self.persistent_of.users(&volume.to_owned());
        // The one that was made with it, before those that were made by hand.
        let named = of.iter().find(|key| key.name == volume).or(of.first())?;
        self.world.volumes.get(named)
    }

    /// The attachments of a PersistentVolume.
    fn attachments(&self, pv: &str) -> Vec<Arc<VolumeAttachment>> {
        let of = self.attachments_of.users(&pv.to_owned());
        of.iter().filter_map(|key| self.attachments.get(key)).collect()
    }

    /// The replicas of a volume.
    fn replicas(&self, volume: &str) -> Vec<Arc<longhorn::Replica>> {
        let of = self.replicas_of.users(&volume.to_owned());
        of.iter().filter_map(|key| self.replicas.get(key)).collect()
    }

    /// The snapshots of a volume.
    fn moments(&self, volume: &str) -> Vec<Arc<longhorn::Snapshot>> {
        let of = self.moments_of.users(&volume.to_owned());
        of.iter().filter_map(|key| self.moments.get(key)).collect()
    }
}
