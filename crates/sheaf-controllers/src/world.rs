//! The caches that the controllers share: one informer for each kind that somebody looks at. Owns them.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use sheaf_api::harvester::VirtualMachineImage;
use sheaf_api::kubevirt::{
    VirtualMachine, VirtualMachineClone, VirtualMachineInstance, VirtualMachineRestore,
    VirtualMachineSnapshot, VirtualMachineSnapshotContent,
};
use sheaf_runtime::{Informer, Selection, TaskGroup};

/// See the module.
pub(crate) struct World {
    pub(crate) vms: Arc<Informer<VirtualMachine>>,
    pub(crate) instances: Arc<Informer<VirtualMachineInstance>>,
    pub(crate) snapshots: Arc<Informer<VirtualMachineSnapshot>>,
    pub(crate) contents: Arc<Informer<VirtualMachineSnapshotContent>>,
    pub(crate) restores: Arc<Informer<VirtualMachineRestore>>,
    pub(crate) clones: Arc<Informer<VirtualMachineClone>>,
    /// Those that stand for instances.
    pub(crate) pods: Arc<Informer<Pod>>,
    pub(crate) revisions: Arc<Informer<ControllerRevision>>,
    pub(crate) claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(crate) volumes: Arc<Informer<PersistentVolume>>,
    pub(crate) classes: Arc<Informer<StorageClass>>,
    pub(crate) nodes: Arc<Informer<Node>>,
    pub(crate) leases: Arc<Informer<Lease>>,
    pub(crate) signing_requests: Arc<Informer<CertificateSigningRequest>>,
    pub(crate) images: Arc<Informer<VirtualMachineImage>>,
}

impl World {
    pub(crate) fn spawn(client: &Client, group: &TaskGroup) -> Arc<Self> {
        let all = Selection::all();
        Arc::new(Self {
            vms: Informer::spawn(client, group, &all),
            instances: Informer::spawn(client, group, &all),
            snapshots: Informer::spawn(client, group, &all),
            contents: Informer::spawn(client, group, &all),
            restores: Informer::spawn(client, group, &all),
            clones: Informer::spawn(client, group, &all),
            pods: Informer::spawn(client, group, &Selection::labels("kubevirt.io=virt-launcher")),
            revisions: Informer::spawn(client, group, &all),
            claims: Informer::spawn(client, group, &all),
            volumes: Informer::spawn(client, group, &all),
            classes: Informer::spawn(client, group, &all),
            nodes: Informer::spawn(client, group, &all),
            leases: Informer::spawn(client, group, &all),
            signing_requests: Informer::spawn(client, group, &all),
            images: Informer::spawn(client, group, &all),
        })
    }
}
