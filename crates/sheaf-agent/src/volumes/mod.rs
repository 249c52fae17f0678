//! Volumes of class `local`: files of this node, made for claims, opened by QEMU itself.
//!
//! Two loops ([`plan`]): one over claims (make the volume, bind it, grow it, let it go), one over PersistentVolumes
//! (remove the file when the claim has gone). And the [`VolumeBackend`] that the machine loop asks. Volumes of other
//! nodes and other provisioners are left alone; claims for PersistentVolumes that somebody made by hand are bound
//! elsewhere.
//!
//! State: the files; and which claims the machines of this process have attached.

pub mod files;
pub mod plan;
mod steps;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::{Client, ResourceExt};
use sheaf_api::harvester::VirtualMachineImage;
use sheaf_api::kubevirt::VirtualMachineInstance;
use sheaf_plan::claim::{PROVISIONED, RESIZING};
use sheaf_runtime::{
    Controller, Driver, EventRecorder, Index, Informer, Next, ObjectKey, StepError, TaskGroup, Waker,
};

use crate::images::{Images, Local, files::keep_free};
use crate::parts::{DiskSource, PartError, VolumeBackend};
use crate::storage::{Replicated, handle};
use files::VolumeFiles;
use plan::{ClaimSeen, ClaimStep, ImageOf, VolumeStep, claims_of, image_of, is_here, is_user, node_of};

/// The caches that the loops look at.
#[derive(Clone)]
pub struct Caches {
    /// All claims.
    pub claims: Arc<Informer<PersistentVolumeClaim>>,
    /// All PersistentVolumes.
    pub volumes: Arc<Informer<PersistentVolume>>,
    /// All classes.
    pub classes: Arc<Informer<StorageClass>>,
    /// All images.
    pub images: Arc<Informer<VirtualMachineImage>>,
    /// Instances, at least those of this node.
    pub instances: Arc<Informer<VirtualMachineInstance>>,
    /// Those by the claims that they name; see [`users_of`].
    pub users: Arc<Index<ObjectKey>>,
}

/// Instances by the claims that they name.
pub fn users_of(instances: &Arc<Informer<VirtualMachineInstance>>) -> Arc<Index<ObjectKey>> {
    Index::over(instances, claims_of)
}

/// The volumes of this node.
pub struct Volumes {
    node: String,
    client: Client,
    files: VolumeFiles,
    caches: Caches,
    images: Arc<Images>,
    events: EventRecorder,
    replicated: Option<Arc<Replicated>>,
    attached: Mutex<BTreeSet<ObjectKey>>,
    waker: OnceLock<Waker>,
}

impl Volumes {
    /// Starts the loops. `agent_dir` is `<data>/agent`; `replicated` has the volumes of the other driver.
    #[allow(clippy::too_many_arguments, reason = "each is a part of the agent, given once")]
    pub fn spawn(
        client: &Client,
        group: &TaskGroup,
        node: &str,
        agent_dir: &Path,
        caches: Caches,
        images: &Arc<Images>,
        events: &EventRecorder,
        replicated: Option<Arc<Replicated>>,
    ) -> Arc<Self> {
        let shared = Arc::new(Volumes {
            node: node.to_owned(),
            client: client.clone(),
            files: VolumeFiles::new(agent_dir),
            caches: caches.clone(),
            images: Arc::clone(images),
            events: events.clone(),
            replicated,
            attached: Mutex::default(),
            waker: OnceLock::new(),
        });
        let of_image = caches.clone();
        let of_class = caches.clone();
        let claims = Driver::new(Claims(Arc::clone(&shared)))
            .for_each(&caches.claims)
            .on(&caches.volumes, |volume| claim_of(volume).into_iter().collect())
            .on(&caches.instances, |instance| claims_of(instance))
            .on(&caches.images, move |image| of_image.claims_of_image(&ObjectKey::of(&**image)))
            .on(&caches.classes, move |class| of_class.claims_of_class(&class.name_any()));
        let _ = shared.waker.set(claims.waker());
        claims.spawn(group);
        Driver::new(PersistentVolumes(Arc::clone(&shared)))
            .for_each(&caches.volumes)
            .on(&caches.claims, |claim| {
                let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
                name.map(|name| ObjectKey::new("", name)).into_iter().collect()
            })
            .after(&caches.instances)
            .spawn(group);
        shared
    }

    /// Where this node keeps its volumes.
    pub fn files(&self) -> &VolumeFiles {
        &self.files
    }

    fn attached(&self) -> MutexGuard<'_, BTreeSet<ObjectKey>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Machines of this node that may have a claim's disk open.
    fn users(&self, claim: &ObjectKey) -> Vec<String> {
        let mut users: Vec<String> = self
            .caches
            .machines_with(claim)
            .filter(|instance| is_user(instance, &self.node))
            .map(|instance| instance.name_any())
            .collect();
        // The instance may have gone from the cache before its machine let go.
        if users.is_empty() && self.attached().contains(claim) {
            users.push("(one that has just ended)".to_owned());
        }
        users
    }

    /// Free bytes beside those that must stay free, and all.
    fn space(&self) -> (u64, u64) {
        let _ = std::fs::create_dir_all(self.files.dir());
        rustix::fs::statvfs(self.files.dir()).map_or((0, 0), |stat| {
            let total = stat.f_blocks.saturating_mul(stat.f_frsize);
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            (free.saturating_sub(keep_free(total)), total)
        })
    }

    /// Where the claim's image is; begins to copy it if it is on another node.
    fn image(&self, claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> ImageOf {
        if let Some(name) = claim.annotations().get(plan::SNAPSHOT) {
            return match self.files.snapshot(name) {
                Some((volume, virtual_size)) => ImageOf::Snapshot {
                    dir: self.files.snapshot_dir(name),
                    virtual_size,
                    image: volume.image,
                },
                None => ImageOf::Missing(format!("snapshot {name} is not on node {}", self.node)),
            };
        }
        let Some(key) = image_of(claim, class) else { return ImageOf::None };
        let Some(image) = self.caches.images.get(&key) else {
            return ImageOf::Missing(format!("image {key} does not exist"));
        };
        match self.images.local(&image) {
            Local::Here { kept, base } => ImageOf::Here {
                name: key.to_string(),
                base,
                format: kept.stored.format,
                virtual_size: kept.stored.virtual_size,
            },
            Local::Coming(message) => ImageOf::Coming(message),
            Local::Missing(message) => ImageOf::Missing(message),
        }
    }

    async fn reconcile_claim(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(claim) = self.caches.claims.get(key) else { return Ok(Next::Done) };
        let spec = claim.spec.as_ref();
        let named = spec.and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        let selected = claim.annotations().get(plan::SELECTED_NODE) == Some(&self.node);
        if named.is_none() && !selected {
            return Ok(Next::Done);
        }
        let volume = named.as_ref().and_then(|name| self.caches.volumes.get(&ObjectKey::new("", name)));
        let class = spec
            .and_then(|spec| spec.storage_class_name.as_deref())
            .and_then(|name| self.caches.classes.get(&ObjectKey::new("", name)));
        // An image is only looked for (and copied) where a volume is to be made of it.
        let ours = class.as_ref().is_some_and(|class| class.provisioner == plan::PROVISIONER);
        let image =
            if named.is_none() && ours { self.image(&claim, class.as_deref()) } else { ImageOf::None };
        let users = self.users(key);
        let disk_bytes = volume.as_ref().and_then(|volume| {
            let name = volume.metadata.name.as_deref()?;
            let format = self.files.get(name)?.format();
            self.files.size(name, format).ok()
        });
        let step = plan::plan_claim(&ClaimSeen {
            disk_bytes,
            claim: &claim,
            class: class.as_deref(),
            volume: volume.as_deref(),
            image: &image,
            users: &users,
            node: &self.node,
            space: self.space(),
        });
        match (step, class, volume) {
            (ClaimStep::Hold(hold), ..) => {
                self.hold(&claim, &hold).await?;
                Ok(Next::After(Duration::from_secs(if hold.soon { 1 } else { 15 })))
            }
            (ClaimStep::Create { bytes, content }, Some(class), _) => {
                Box::pin(self.create(&claim, &class, bytes, &content)).await
            }
            (ClaimStep::Bind, _, Some(volume)) => self.bind(&claim, &volume).await,
            (ClaimStep::Grow { bytes }, _, Some(volume)) => self.grow(&claim, &volume, bytes).await,
            (ClaimStep::GrowLater(message), ..) => {
                self.condition(&claim, RESIZING, Some(("True", "WaitingForMachine", &message))).await?;
                Ok(Next::After(Duration::from_secs(30)))
            }
            (ClaimStep::Unprotect, ..) => self.unprotect(&claim).await,
            _ => Ok(Next::Done),
        }
    }

    async fn reconcile_volume(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(volume) = self.caches.volumes.get(key) else { return Ok(Next::Done) };
        if !is_here(&volume, &self.node) {
            return Ok(Next::Done);
        }
        let claim = claim_of(&volume);
        let cached = claim.as_ref().and_then(|claim| self.caches.claims.get(claim));
        let there = cached.is_some_and(|claim| plan::belongs(&volume, &claim));
        let users = claim.as_ref().map(|claim| self.users(claim)).unwrap_or_default();
        let step = plan::plan_volume(&volume, &self.node, there, &users);
        // What follows cannot be undone, and a cache may be behind.
        if step != VolumeStep::Nothing && self.claim_exists(&volume).await? {
            return Ok(Next::After(Duration::from_secs(1)));
        }
        match step {
            VolumeStep::Nothing if !there && !users.is_empty() => Ok(Next::After(Duration::from_secs(2))),
            VolumeStep::Nothing => Ok(Next::Done),
            VolumeStep::Release => self.release(&volume).await,
            VolumeStep::Destroy => self.destroy(&volume, true).await,
            VolumeStep::Forget => self.destroy(&volume, false).await,
        }
    }

    /// The disk of a bound claim, as large as it is asked to be.
    async fn open(&self, key: &ObjectKey) -> Result<DiskSource, PartError> {
        let missing = |text: String| Err(PartError::Missing(text));
        // Who asks may have seen the claim bound before our cache did.
        let cached = self.caches.claims.get(key).filter(|claim| is_bound(claim));
        let claim = match cached {
            Some(claim) => claim,
            None => match self.claim_now(key).await? {
                Some(claim) => Arc::new(claim),
                None => return missing(format!("claim {key} does not exist")),
            },
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return missing(format!("claim {key} is being deleted"));
        }
        let status = claim.status.as_ref();
        let named =
            claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        let Some(name) = named.filter(|_| is_bound(&claim)) else {
            let conditions = status.and_then(|status| status.conditions.as_ref());
            let told = conditions.and_then(|all| all.iter().find(|c| c.type_ == PROVISIONED));
            let why = told
                .and_then(|c| c.message.clone())
                .unwrap_or_else(|| "its volume is not made yet".to_owned());
            return missing(format!("claim {key} is not bound: {why}"));
        };
        let volume = match self.caches.volumes.get(&ObjectKey::new("", &name)) {
            Some(volume) => volume,
            None => match self.volume_now(&name).await? {
                Some(volume) => Arc::new(volume),
                None => return missing(format!("volume {name} of claim {key} does not exist")),
            },
        };
        if let Some(handle) = handle(&volume) {
            let Some(replicated) = &self.replicated else {
                let why =
                    format!("node {} has no storage process for volume {name} of claim {key}", self.node);
                return Err(PartError::Refused(why));
            };
            return replicated.open(key, handle).await;
        }
        if !is_here(&volume, &self.node) {
            let elsewhere = match node_of(&volume) {
                Some(node) if node != self.node => format!("is on node {node}, not on {}", self.node),
                _ => format!("was not made by {}", plan::PROVISIONER),
            };
            return Err(PartError::Refused(format!("volume {name} of claim {key} {elsewhere}")));
        }
        let Some(record) = self.files.get(&name) else {
            return missing(format!(
                "the file of volume {name} of claim {key} is missing on node {}",
                self.node
            ));
        };
        let format = record.format();
        let fresh = self.attached().insert(key.clone());
        // The last moment at which a disk can grow without QEMU noticing; the loop writes the new size later.
        let runs = self
            .caches
            .machines_with(key)
            .any(|instance| instance.status.as_ref().is_some_and(|status| status.phase == "Running"));
        if fresh
            && !runs
            && let Ok(asked) = plan::requested(&claim)
            && self.files.size(&name, format).is_ok_and(|has| has < asked)
            && asked <= self.space().1
        {
            self.files.grow(&name, format, asked).map_err(|source| {
                self.attached().remove(key);
                PartError::Failed { context: format!("growing volume {name}"), source: Box::new(source) }
            })?;
        }
        Ok(DiskSource::File { path: self.files.disk(&name, format), format, read_only: false })
    }
}

impl VolumeBackend for Volumes {
    fn sockets(&self) -> Option<PathBuf> {
        self.replicated.as_ref().map(|replicated| replicated.guests())
    }

    fn attach<'a>(
        &'a self,
        namespace: &'a str,
        claim: &'a str,
    ) -> BoxFuture<'a, Result<DiskSource, PartError>> {
        Box::pin(async move { self.open(&ObjectKey::new(namespace, claim)).await })
    }

    fn detach<'a>(&'a self, namespace: &'a str, claim: &'a str) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(async move {
            let key = ObjectKey::new(namespace, claim);
            // A deletion or a growth may have waited for this.
            if self.attached().remove(&key)
                && let Some(waker) = self.waker.get()
            {
                waker.wake(key);
            }
            Ok(())
        })
    }

    fn grown(&self, namespace: &str, claim: &str) {
        let key = ObjectKey::new(namespace, claim);
        let cached = self.caches.claims.get(&key);
        let name = cached.and_then(|c| c.spec.as_ref()?.volume_name.clone()).unwrap_or_default();
        let volume = self.caches.volumes.get(&ObjectKey::new("", name));
        if let (Some(replicated), Some(_)) = (&self.replicated, volume.as_deref().and_then(handle)) {
            return replicated.grown(key);
        }
        if let Some(waker) = self.waker.get() {
            waker.wake(ObjectKey::new(namespace, claim));
        }
    }
}

impl Caches {
    /// Instances that name a claim.
    fn machines_with(&self, claim: &ObjectKey) -> impl Iterator<Item = Arc<VirtualMachineInstance>> {
        self.users.users(claim).into_iter().filter_map(|key| self.instances.get(&key))
    }

    fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
        let name = claim.spec.as_ref()?.storage_class_name.as_deref()?;
        self.classes.get(&ObjectKey::new("", name))
    }

    /// Claims without a volume that are to be made of an image.
    fn claims_of_image(&self, image: &ObjectKey) -> Vec<ObjectKey> {
        let waits = |claim: &&Arc<PersistentVolumeClaim>| {
            claim.spec.as_ref().is_some_and(|spec| spec.volume_name.is_none())
                && image_of(claim, self.class_of(claim).as_deref()).as_ref() == Some(image)
        };
        self.claims.list().iter().filter(waits).map(|claim| ObjectKey::of(&**claim)).collect()
    }

    fn claims_of_class(&self, class: &str) -> Vec<ObjectKey> {
        let of_it = |claim: &&Arc<PersistentVolumeClaim>| {
            claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.as_deref() == Some(class))
        };
        self.claims.list().iter().filter(of_it).map(|claim| ObjectKey::of(&**claim)).collect()
    }
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// The claim that a volume is bound to.
fn claim_of(volume: &PersistentVolume) -> Option<ObjectKey> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(reference.namespace.clone()?, reference.name.clone()?))
}

struct Claims(Arc<Volumes>);

impl Controller for Claims {
    const NAME: &'static str = "claims";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        Box::pin(self.0.reconcile_claim(key)).await
    }
}

struct PersistentVolumes(Arc<Volumes>);

impl Controller for PersistentVolumes {
    const NAME: &'static str = "volumes";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        self.0.reconcile_volume(key).await
    }
}
