//! Claims of replicated classes, and the PersistentVolumes that they get.
//!
//! ```text
//! claim:  (its node, if the class waits for one) -> Volume -> made and filled -> PersistentVolume -> Bound -> ... -> deleted
//!                                                                               (held while a machine uses it)
//! volume: Bound -> its claim has gone -> Released -> reclaim policy Delete: Volume deleted -> gone
//! ```

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use sheaf_api::longhorn::{DRIVER, NAMESPACE, Volume, condition};
use sheaf_plan::claim::{self, IMAGE_ID, PROTECTION, PROVISIONED, RESIZING, claims_of};
use sheaf_plan::storage::{CONTENT, FILL_PROBLEM, FILLED, MADE, engine_name};
use sheaf_runtime::patch::{Target, found, gone, write};
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, Severity, StepError, TaskGroup};
use tracing::info;

use super::provision::{Origin, Refused, image_of, persistent, requested, volume, volume_name};
use super::volumes::capacity;
use super::{Storage, claim_of, handle, key, made};
use crate::schedule::SELECTED_NODE;

const MANAGER: &str = "sheaf-claims-longhorn";
const VOLUME_FINALIZERS: [&str; 2] =
    ["kubernetes.io/pv-protection", "external-provisioner.volume.kubernetes.io/finalizer"];
/// Condition of a claim whose volume has grown, and whose machine has not seen it yet.
const PENDING: &str = "FileSystemResizePending";

struct Claims(Arc<Storage>);
struct Persistent(Arc<Storage>);

pub(super) fn spawn(storage: &Arc<Storage>, group: &TaskGroup) {
    let world = &storage.world;
    let of_volume = |s: &Arc<Storage>| {
        let s = s.clone();
        move |volume: &str| {
            let bound = s.persistent(volume).and_then(|pv| claim_of(&pv));
            // Before that, the claim's UID is in the name.
            let by_name = || {
                let uid = volume.strip_prefix("pvc-")?;
                let all = s.world.claims.list();
                all.iter().find(|c| c.metadata.uid.as_deref() == Some(uid)).map(|c| ObjectKey::of(&**c))
            };
            bound.or_else(by_name).into_iter().collect::<Vec<_>>()
        }
    };
    let (by_volume, by_engine) = (of_volume(storage), of_volume(storage));
    let (of_class, of_image) = (storage.clone(), storage.clone());
    let undecided = |c: &PersistentVolumeClaim| c.spec.as_ref().is_some_and(|s| s.volume_name.is_none());
    Driver::new(Claims(storage.clone()))
        .for_each(&world.claims)
        .on(&world.volumes, |pv| claim_of(pv).filter(|_| handle(pv).is_some()).into_iter().collect())
        .on(&storage.volumes, move |v| by_volume(&v.name_any()))
        .on(&storage.engines, move |e| by_engine(&e.spec.volume_name))
        .on(&world.classes, move |_| {
            let all = of_class.world.claims.list();
            all.iter().filter(|c| undecided(c)).map(|c| ObjectKey::of(&**c)).collect()
        })
        .on(&world.images, move |_| {
            let all = of_image.world.claims.list();
            all.iter().filter(|c| undecided(c)).map(|c| ObjectKey::of(&**c)).collect()
        })
        .on(&world.instances, |vmi| {
            let namespace = vmi.namespace().unwrap_or_default();
            claims_of(&vmi.spec).into_iter().map(|c| ObjectKey::new(namespace.clone(), c)).collect()
        })
        .after(&storage.contents)
        .after(&storage.snapshots)
        .spawn(group);
    let s = storage.clone();
    Driver::new(Persistent(storage.clone()))
        .for_each(&world.volumes)
        .on(&world.claims, |claim| {
            let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
            name.map(|name| ObjectKey::new("", name)).into_iter().collect()
        })
        .on(&storage.volumes, move |v| {
            let pv = s.persistent(&v.name_any());
            pv.map(|pv| ObjectKey::new("", pv.name_any())).into_iter().collect()
        })
        .on(&storage.attachments, |va| {
            super::attach::persistent_of(va).map(|pv| ObjectKey::new("", pv)).into_iter().collect()
        })
        .after(&storage.contents)
        .spawn(group);
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

fn is_bound_to(pv: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = pv.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|r| {
        r.name == claim.metadata.name
            && r.namespace == claim.metadata.namespace
            && (r.uid.is_none() || r.uid == claim.metadata.uid)
    })
}

impl Controller for Claims {
    const NAME: &'static str = "replicated-claims";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        Box::pin(self.look(key)).await
    }
}

impl Claims {
    fn api(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.0.client.clone(), &claim.namespace().unwrap_or_default())
    }

    async fn look(&self, at: &ObjectKey) -> Result<Next, StepError> {
        let storage = &self.0;
        let Some(claim) = storage.world.claims.get(at) else { return Ok(Next::Done) };
        let named = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| !n.is_empty());
        if let Some(named) = named {
            let Some(pv) = storage.world.volumes.get(&ObjectKey::new("", &named)) else {
                return Ok(Next::Done);
            };
            let Some(handle) = handle(&pv).map(str::to_owned) else { return Ok(Next::Done) };
            return self.bound(&claim, &pv, &handle).await;
        }
        let Some(class) = self.class(&claim).filter(|c| c.provisioner == DRIVER) else {
            return Ok(Next::Done);
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return self.give_up(&claim).await;
        }
        let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        if waits && !claim.annotations().contains_key(SELECTED_NODE) {
            return Ok(Next::Done);
        }
        if !claim.finalizers().iter().any(|f| f == PROTECTION) {
            // Before its volume is made: so that none is left that nobody knows of.
            let mut finalizers = claim.finalizers().to_vec();
            finalizers.push(PROTECTION.to_owned());
            let patch = json!({"metadata": {
                "resourceVersion": claim.metadata.resource_version, "uid": claim.metadata.uid, "finalizers": finalizers,
            }});
            gone(self.api(&claim).patch(&at.name, &params(), &Patch::Merge(patch)).await, "holding a claim")?;
            return Ok(Next::Done);
        }
        match Box::pin(self.provide(&claim, &class)).await? {
            Ok(next) => Ok(next),
            Err((reason, message)) => {
                self.hold(&claim, reason, &message).await?;
                Ok(Next::After(Duration::from_secs(5)))
            }
        }
    }

    /// The class of a claim. Clients know an image's class by an old name, too.
    fn class(&self, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
        let world = &self.0.world;
        let name = claim.spec.as_ref()?.storage_class_name.clone()?;
        let found = world.classes.get(&ObjectKey::new("", &name));
        if found.is_some() || !name.starts_with("longhorn-") || !claim.annotations().contains_key(IMAGE_ID) {
            return found;
        }
        let image = world.images.get(&image_of(claim, None)?)?;
        world.classes.get(&ObjectKey::new("", crate::images::class_name(&image)))
    }

    /// What the claim's volume holds at first.
    fn origin(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<Origin, Refused> {
        let storage = &self.0;
        let spec = claim.spec.clone().unwrap_or_default();
        let of = spec.data_source.map(|s| (s.kind, s.name, None));
        let of = of.or_else(|| spec.data_source_ref.map(|s| (s.kind, s.name, s.namespace)));
        let namespace = claim.namespace().unwrap_or_default();
        match of {
            Some((kind, name, other)) if kind == "PersistentVolumeClaim" => {
                let at = ObjectKey::new(other.unwrap_or(namespace), name);
                let source = storage.world.claims.get(&at);
                let source = source.ok_or_else(|| {
                    ("SourceMissing", format!("claim {at}, its spec.dataSource, does not exist"))
                })?;
                let pv = source.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
                let pv = storage.world.volumes.get(&ObjectKey::new("", pv));
                let Some(handle) = pv.as_deref().and_then(handle) else {
                    let why = format!("claim {at}, its spec.dataSource, has no replicated volume (yet)");
                    return Err(("SourceNotReady", why));
                };
                let replicated = storage.volumes.get(&key(handle));
                let bytes = replicated.and_then(|v| v.spec.size.parse().ok()).unwrap_or(0);
                Ok(Origin::Copy(format!("vol://{handle}"), bytes))
            }
            Some((kind, name, other)) if kind == "VolumeSnapshot" => {
                let at = ObjectKey::new(other.unwrap_or(namespace), name);
                let snapshot = storage.snapshots.get(&at);
                let missing =
                    || ("SourceMissing", format!("VolumeSnapshot {at}, its spec.dataSource, does not exist"));
                let status = snapshot.ok_or_else(missing)?.status.clone().unwrap_or_default();
                let content =
                    status.bound_volume_snapshot_content_name.filter(|_| status.ready_to_use == Some(true));
                let content = content.and_then(|name| storage.contents.get(&ObjectKey::new("", name)));
                let content = content.and_then(|c| c.status.clone());
                let Some((handle, bytes)) = content.and_then(|c| Some((c.snapshot_handle?, c.restore_size)))
                else {
                    return Err((
                        "SourceNotReady",
                        format!("VolumeSnapshot {at}, its spec.dataSource, is not ready"),
                    ));
                };
                let bytes = bytes.and_then(|b| u64::try_from(b).ok()).unwrap_or(0);
                if !handle.starts_with("snap://") {
                    return Err(("NotSupported", format!("a volume cannot be made of {handle}")));
                }
                Ok(Origin::Copy(handle, bytes))
            }
            Some((kind, name, _)) => {
                Err(("NotSupported", format!("spec.dataSource: a volume cannot be made of {kind} {name}")))
            }
            None => {
                let Some(at) = image_of(claim, Some(class)) else { return Ok(Origin::Blank) };
                let image = storage.world.images.get(&at);
                let image = image.ok_or_else(|| ("ImageMissing", format!("image {at} does not exist")))?;
                let bytes = image.status.as_ref().and_then(|s| s.virtual_size).unwrap_or(0);
                let asked = requested(claim)?;
                if u64::try_from(bytes).is_ok_and(|bytes| asked < bytes) {
                    let why = format!(
                        "spec.resources.requests.storage is {asked} bytes, less than the {bytes} bytes of image {at}; \
                         ask for at least as much"
                    );
                    return Err(("TooSmall", why));
                }
                let uid = image.metadata.uid.clone().unwrap_or_default();
                Ok(Origin::Image(at, format!("vmi-{uid}")))
            }
        }
    }

    /// Makes the volume, waits for it, and binds.
    async fn provide(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
    ) -> Result<Result<Next, Refused>, StepError> {
        let storage = &self.0;
        let volumes: Api<Volume> = Api::namespaced(storage.client.clone(), NAMESPACE);
        let name = volume_name(claim);
        let Some(found) = storage.volumes.get(&key(name.clone())) else {
            let object = match self
                .origin(claim, class)
                .and_then(|origin| volume(claim, class, &origin, &storage.settings()))
            {
                Ok(object) => object,
                Err(refused) => return Ok(Err(refused)),
            };
            match volumes.create(&PostParams::default(), &object).await {
                Err(kube::Error::Api(status)) if status.code != 409 && (400..500).contains(&status.code) => {
                    return Ok(Err(("ProvisioningFailed", status.message.clone())));
                }
                other => made(other, "making a volume")?,
            }
            info!(claim = %ObjectKey::of(claim), volume = name, "volume made");
            return Ok(Ok(Next::Done));
        };
        let annotations = found.annotations();
        let ready = annotations.contains_key(MADE)
            && (!annotations.contains_key(CONTENT) || annotations.contains_key(FILLED));
        if !ready {
            return Ok(Err(self.why_not(&found)));
        }
        let bytes = found.spec.size.parse().unwrap_or(0);
        let object = serde_json::from_value(persistent(claim, class, bytes));
        let object: PersistentVolume = object.map_err(StepError::other("composing a PersistentVolume"))?;
        let api: Api<PersistentVolume> = Api::all(storage.client.clone());
        let pv = match api.create(&PostParams::default(), &object).await {
            Ok(pv) => pv,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                api.get(&name).await.map_err(StepError::api("reading a PersistentVolume"))?
            }
            Err(error) => return Err(StepError::api("creating a PersistentVolume")(error)),
        };
        self.bind(claim, &pv).await?;
        let message = format!("Successfully provisioned volume {name}");
        storage.events.record(claim, Severity::Normal, "ProvisioningSucceeded", message);
        Ok(Ok(Next::Done))
    }

    /// What a volume that is not ready waits for.
    fn why_not(&self, volume: &Volume) -> Refused {
        let conditions = volume.status.clone().unwrap_or_default().conditions;
        let bad = |kind: &str, status: &str| condition(&conditions, kind).filter(|c| c.status == status);
        if let Some(scheduled) =
            bad("Scheduled", "False").filter(|_| !volume.annotations().contains_key(MADE))
        {
            return ("ReplicaSchedulingFailure", scheduled.message.clone());
        }
        if let Some(waits) = bad("WaitForBackingImage", "True") {
            return ("WaitingForContent", waits.message.clone());
        }
        let engine = self.0.engines.get(&key(engine_name(&volume.name_any())));
        if let Some(problem) = engine.as_ref().and_then(|e| e.annotations().get(FILL_PROBLEM)) {
            return ("FillingFailed", problem.clone());
        }
        if let Some(what) =
            volume.annotations().get(CONTENT).filter(|_| volume.annotations().contains_key(MADE))
        {
            return ("Filling", format!("the volume is filled from {what}"));
        }
        let replicas = self.0.replicas(&volume.name_any());
        let held = replicas.iter().find_map(|replica| {
            let conditions = &replica.status.as_ref()?.conditions;
            let waits = condition(conditions, "InstanceCreation").filter(|c| c.status == "False")?;
            Some(format!("its replica on node {} is not made yet: {}", replica.spec.node_id, waits.message))
        });
        ("Creating", held.unwrap_or_else(|| "the volume's replicas are being made".to_owned()))
    }

    /// Writes what binds a claim and a volume, on both sides.
    async fn bind(&self, claim: &PersistentVolumeClaim, pv: &PersistentVolume) -> Result<(), StepError> {
        let (claims, name) = (self.api(claim), claim.name_any());
        if !is_bound_to(pv, claim) {
            let free = pv.spec.as_ref().is_some_and(|s| s.claim_ref.is_none());
            if !free {
                let why = format!("PersistentVolume {} belongs to another claim", pv.name_any());
                return self.hold(claim, "VolumeTaken", &why).await;
            }
        }
        let volumes: Api<PersistentVolume> = Api::all(self.0.client.clone());
        let reference = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace(), "name": name,
            "uid": claim.uid(),
        });
        let patch = json!({"metadata": {"resourceVersion": pv.metadata.resource_version}, "spec": {"claimRef": reference}});
        let of = pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|r| r.uid.clone());
        if of != claim.uid() {
            let patched = volumes.patch(&pv.name_any(), &params(), &Patch::Merge(patch)).await;
            gone(patched, "binding a volume")?;
        }
        let patch = claim::binding(claim, &pv.name_any(), DRIVER);
        let patched = claims.patch(&name, &params(), &Patch::Merge(patch)).await;
        let Some(patched) = found(patched, "binding a claim")? else { return Ok(()) };
        let mut after = patched.clone();
        claim::bound(&mut after, pv);
        write(&claims, MANAGER, Target::Status, &patched, &after).await?;
        phase(&self.0, pv, "Bound").await
    }

    /// A claim that has a volume: bound, held, grown, let go.
    async fn bound(
        &self,
        claim: &PersistentVolumeClaim,
        pv: &PersistentVolume,
        handle: &str,
    ) -> Result<Next, StepError> {
        let storage = &self.0;
        let at = ObjectKey::of(claim);
        if claim.metadata.deletion_timestamp.is_some() {
            if !storage.users(&at).is_empty() || !storage.attachments(&pv.name_any()).is_empty() {
                return Ok(Next::After(Duration::from_secs(5)));
            }
            return self.give_up(claim).await;
        }
        let status = claim.status.clone().unwrap_or_default();
        let volume_bound = pv.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let protected = claim.finalizers().iter().any(|f| f == PROTECTION);
        if status.phase.as_deref() != Some("Bound") || !volume_bound || !protected {
            self.bind(claim, pv).await?;
            return Ok(Next::Done);
        }
        let Some(volume) = storage.volumes.get(&key(handle)) else { return Ok(Next::Done) };
        self.grow(claim, pv, &volume).await
    }

    /// Lets a volume grow with its claim: the volume first, then the PersistentVolume, then the machine, then the claim.
    async fn grow(
        &self,
        claim: &PersistentVolumeClaim,
        pv: &PersistentVolume,
        volume: &Volume,
    ) -> Result<Next, StepError> {
        let Ok(asked) = requested(claim) else { return Ok(Next::Done) };
        let has = capacity(claim).unwrap_or(0);
        if asked <= has {
            return Ok(Next::Done);
        }
        let size: u64 = volume.spec.size.parse().unwrap_or(0);
        if size < asked {
            let api: Api<Volume> = Api::namespaced(self.0.client.clone(), NAMESPACE);
            let patch = json!({"spec": {"size": asked.to_string()}});
            gone(api.patch(&volume.name_any(), &params(), &Patch::Merge(patch)).await, "growing a volume")?;
            let message = format!("the volume grows from {has} to {asked} bytes");
            self.condition(claim, RESIZING, Some(("True", "", &message))).await?;
            return Ok(Next::Done);
        }
        let engine = self.0.engines.get(&key(engine_name(&volume.name_any())));
        let now = engine.and_then(|e| e.status.as_ref()?.current_size.parse::<u64>().ok()).unwrap_or(0);
        if now < asked {
            let conditions = volume.status.clone().unwrap_or_default().conditions;
            let refused = condition(&conditions, "ExpansionRefused").filter(|c| c.status == "True");
            let message = refused.map_or_else(|| "the volume grows".to_owned(), |c| c.message.clone());
            self.condition(claim, RESIZING, Some(("True", "", &message))).await?;
            return Ok(Next::After(Duration::from_secs(10)));
        }
        let text = sheaf_meta::quantity::Quantity::from_bytes(now).to_string();
        let told = pv.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage").map(|q| q.0.clone()));
        if told.as_ref() != Some(&text) {
            let api: Api<PersistentVolume> = Api::all(self.0.client.clone());
            let patch = json!({"spec": {"capacity": {"storage": text}}});
            gone(
                api.patch(&pv.name_any(), &params(), &Patch::Merge(patch)).await,
                "writing a volume's capacity",
            )?;
        }
        if !self.0.users(&ObjectKey::of(claim)).is_empty() {
            // The agent writes the capacity when the machine has seen it.
            let message =
                "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";
            self.condition(claim, PENDING, Some(("True", "", message))).await?;
            return Ok(Next::After(Duration::from_secs(30)));
        }
        let mut after = claim.clone();
        let status = after.status.get_or_insert_default();
        status.capacity.get_or_insert_default().insert("storage".to_owned(), Quantity(text));
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|c| c.type_ != RESIZING && c.type_ != PENDING);
        }
        write(&self.api(claim), MANAGER, Target::Status, claim, &after).await?;
        self.0.events.record(claim, Severity::Normal, "VolumeResizeSuccessful", "Volume resize succeeded");
        Ok(Next::Done)
    }

    /// Lets a claim go that is being deleted.
    async fn give_up(&self, claim: &PersistentVolumeClaim) -> Result<Next, StepError> {
        if !claim.finalizers().iter().any(|f| f == PROTECTION) {
            return Ok(Next::Done);
        }
        // Without a PersistentVolume nobody else removes its volume.
        let name = volume_name(claim);
        let unbound = claim.spec.as_ref().is_some_and(|s| s.volume_name.is_none());
        if unbound && self.0.persistent(&name).is_none() && self.0.volumes.get(&key(name.clone())).is_some() {
            self.remove(&name).await?;
        }
        let patch = Patch::Merge(claim::let_go(claim));
        let patched = self.api(claim).patch(&claim.name_any(), &params(), &patch).await;
        gone(patched, "letting a claim go")?;
        Ok(Next::Done)
    }

    async fn remove(&self, volume: &str) -> Result<(), StepError> {
        let api: Api<Volume> = Api::namespaced(self.0.client.clone(), NAMESPACE);
        gone(api.delete(volume, &DeleteParams::default()).await, "deleting a volume")
    }

    /// Says why a claim does not progress, once.
    async fn hold(
        &self,
        claim: &PersistentVolumeClaim,
        reason: &str,
        message: &str,
    ) -> Result<(), StepError> {
        if self.condition(claim, PROVISIONED, Some(("False", reason, message))).await? {
            let soon = matches!(reason, "Creating" | "Filling" | "WaitingForContent" | "SourceNotReady");
            let (severity, reason) =
                if soon { (Severity::Normal, reason) } else { (Severity::Warning, "ProvisioningFailed") };
            self.0.events.record(claim, severity, reason, message);
        }
        Ok(())
    }

    /// Sets a condition of a claim; whether that changed anything.
    async fn condition(
        &self,
        claim: &PersistentVolumeClaim,
        kind: &str,
        state: Option<(&str, &str, &str)>,
    ) -> Result<bool, StepError> {
        let mut after = claim.clone();
        if !claim::set_condition(&mut after, kind, state, Timestamp::now()) {
            return Ok(false);
        }
        write(&self.api(claim), MANAGER, Target::Status, claim, &after).await
    }
}

async fn phase(storage: &Storage, pv: &PersistentVolume, phase: &str) -> Result<(), StepError> {
    if pv.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase) {
        return Ok(());
    }
    let api: Api<PersistentVolume> = Api::all(storage.client.clone());
    let patch = json!({"metadata": {"uid": pv.metadata.uid}, "status": {"phase": phase}});
    gone(api.patch_status(&pv.name_any(), &params(), &Patch::Merge(patch)).await, "writing a volume's phase")
}

impl Controller for Persistent {
    const NAME: &'static str = "replicated-persistent-volumes";

    async fn reconcile(&self, at: &ObjectKey) -> Result<Next, StepError> {
        let storage = &self.0;
        let Some(pv) = storage.world.volumes.get(at) else { return Ok(Next::Done) };
        let Some(name) = handle(&pv).map(str::to_owned) else { return Ok(Next::Done) };
        let deleting = pv.metadata.deletion_timestamp.is_some();
        let Some(reference) = pv.spec.as_ref().and_then(|s| s.claim_ref.clone()) else {
            if deleting {
                return self.forget(&pv).await;
            }
            phase(storage, &pv, "Available").await?;
            return Ok(Next::Done);
        };
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(storage.client.clone(), reference.namespace.as_deref().unwrap_or("default"));
        let is = |claim: &PersistentVolumeClaim| is_bound_to(&pv, claim);
        let cached = claim_of(&pv).and_then(|key| storage.world.claims.get(&key));
        if cached.is_some_and(|claim| is(&claim)) || reference.uid.is_none() {
            return Ok(Next::Done);
        }
        // What follows cannot be undone, and a cache may be behind.
        let found = claims.get_opt(reference.name.as_deref().unwrap_or_default()).await;
        if found.map_err(StepError::api("reading a claim"))?.is_some_and(|claim| is(&claim)) {
            return Ok(Next::After(Duration::from_secs(1)));
        }
        phase(storage, &pv, "Released").await?;
        let policy = pv.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        if policy != Some("Delete") {
            return if deleting { self.forget(&pv).await } else { Ok(Next::Done) };
        }
        if !storage.attachments(&at.name).is_empty() {
            return Ok(Next::After(Duration::from_secs(1)));
        }
        // A moment of it that somebody keeps is nothing without it.
        let kept = storage.contents.list();
        let of = |c: &Arc<sheaf_api::volumesnapshot::VolumeSnapshotContent>| {
            c.spec.source.volume_handle.as_ref() == Some(&name) && c.metadata.deletion_timestamp.is_none()
        };
        if let Some(kept) = kept.iter().find(|c| of(c)) {
            let text =
                format!("the volume is kept until VolumeSnapshotContent {} is deleted", kept.name_any());
            storage.events.record(&*pv, Severity::Normal, "VolumeHasSnapshots", text);
            return Ok(Next::After(Duration::from_secs(10)));
        }
        let volumes: Api<Volume> = Api::namespaced(storage.client.clone(), NAMESPACE);
        let left = volumes.get_opt(&name).await.map_err(StepError::api("reading a volume"))?;
        let Some(left) = left else {
            info!(volume = name, "volume removed");
            return self.forget(&pv).await;
        };
        if left.metadata.deletion_timestamp.is_none() {
            gone(volumes.delete(&name, &DeleteParams::default()).await, "deleting a volume")?;
        }
        Ok(Next::After(Duration::from_secs(2)))
    }
}

impl Persistent {
    /// Removes the object.
    async fn forget(&self, pv: &PersistentVolume) -> Result<Next, StepError> {
        let api: Api<PersistentVolume> = Api::all(self.0.client.clone());
        let name = pv.name_any();
        if pv.metadata.deletion_timestamp.is_none() {
            let uid = Preconditions { uid: pv.metadata.uid.clone(), resource_version: None };
            let delete = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
            gone(api.delete(&name, &delete).await, "deleting a PersistentVolume")?;
        }
        let left: Vec<_> =
            pv.finalizers().iter().filter(|f| !VOLUME_FINALIZERS.contains(&f.as_str())).collect();
        let patch = json!({"metadata": {"uid": pv.metadata.uid, "finalizers": left}});
        gone(api.patch(&name, &params(), &Patch::Merge(patch)).await, "letting a PersistentVolume go")?;
        Ok(Next::Done)
    }
}
