//! The caches that the controllers share: one informer for each kind that somebody looks at. Owns them.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::{Client, Resource};
use sheaf_api::harvester::VirtualMachineImage;
use sheaf_api::kubevirt::{
    VirtualMachine, VirtualMachineClone, VirtualMachineInstance, VirtualMachineRestore,
    VirtualMachineSnapshot, VirtualMachineSnapshotContent,
};
use sheaf_plan::claim::claims_of;
use sheaf_plan::vm::pod::pod_name;
use sheaf_runtime::{Index, Informer, ObjectKey, Selection, TaskGroup};

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
    /// VMs by the VMs that they wait for.
    pub(crate) followers: Arc<Index<ObjectKey>>,
    /// VMs by the claims that their templates name.
    pub(crate) vms_of_claim: Arc<Index<ObjectKey>>,
    /// Instances by the claims that they name.
    pub(crate) instances_of_claim: Arc<Index<ObjectKey>>,
    /// Instances by the Pods that stand for them.
    pub(crate) instances_of_pod: Arc<Index<ObjectKey>>,
    /// Instances that are to be placed yet.
    pub(crate) unplaced: Arc<Index<()>>,
}

impl World {
    pub(crate) fn spawn(client: &Client, group: &TaskGroup) -> Arc<Self> {
        let all = Selection::all();
        let vms = Informer::spawn(client, group, &all);
        let instances = Informer::spawn(client, group, &all);
        Arc::new(Self {
            followers: Index::over(&vms, |vm| siblings(vm, crate::vm::after_of(vm))),
            vms_of_claim: Index::over(&vms, |vm: &VirtualMachine| {
                siblings(vm, claims_of(&vm.spec.template.spec))
            }),
            instances_of_claim: Index::over(&instances, |vmi: &VirtualMachineInstance| {
                siblings(vmi, claims_of(&vmi.spec))
            }),
            instances_of_pod: Index::over(&instances, |vmi| siblings(vmi, vec![pod_name(vmi)])),
            unplaced: Index::over(&instances, |vmi| {
                if crate::schedule::unplaced(vmi) { vec![()] } else { Vec::new() }
            }),
            vms,
            instances,
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

/// Names in the namespace of an object, as keys.
fn siblings<K: Resource>(object: &K, names: Vec<String>) -> Vec<ObjectKey> {
    let namespace = object.meta().namespace.as_deref().unwrap_or_default();
    names.into_iter().map(|name| ObjectKey::new(namespace, name)).collect()
}
