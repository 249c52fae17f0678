//! What [`super::plan`] decides, done: files made and removed, objects created and patched. Each step may be repeated.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use sheaf_image::explain;
use sheaf_plan::claim::{self, PROVISIONED, RESIZING};
use sheaf_runtime::patch::{Target, found, gone, write};
use sheaf_runtime::{Next, ObjectKey, Severity, StepError};
use tracing::info;

use super::Volumes;
use super::files::{Content, Volume};
use super::plan::{Hold, PROVISIONER, VOLUME_FINALIZER, text_of, volume_name, volume_object};
use crate::parts::PartError;

const MANAGER: &str = "sheaf-volumes";

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

impl Volumes {
    fn claims_api(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default())
    }

    fn volumes_api(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    /// Makes the file and the PersistentVolume, and binds both sides.
    pub(super) async fn create(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        bytes: u64,
        content: &Content,
    ) -> Result<Next, StepError> {
        let (name, key) = (volume_name(claim), ObjectKey::of(claim));
        let image = match content {
            Content::Blank => None,
            Content::Image { name, .. } => Some(name.clone()),
            Content::Snapshot { dir } => {
                let of = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                self.files.snapshot(&of).and_then(|(volume, _)| volume.image)
            }
        };
        let volume = Volume { claim_uid: claim.uid().unwrap_or_default(), claim: key.to_string(), image };
        let (files, content) = (self.files.clone(), content.clone());
        let (record, on_disk) = (volume.clone(), name.clone());
        let made =
            tokio::task::spawn_blocking(move || files.create(&on_disk, &record, &content, bytes)).await;
        let made = made.map_err(StepError::other("making a volume's file"))?;
        if let Err(error) = made {
            let message =
                format!("the volume's file cannot be made on node {}: {}", self.node, explain(&error));
            self.hold(claim, &Hold { reason: "Failed", message, soon: false }).await?;
            return Err(StepError::other("making a volume's file")(error));
        }
        let path = self.files.disk(&name, volume.format());
        let object = serde_json::from_value(volume_object(claim, class, &self.node, &path, bytes))
            .map_err(StepError::other("composing a PersistentVolume"))?;
        let created = match self.volumes_api().create(&PostParams::default(), &object).await {
            Ok(created) => created,
            // From an attempt that was interrupted.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.volumes_api().get(&name).await.map_err(StepError::api("reading a PersistentVolume"))?
            }
            Err(error) => return Err(StepError::api("creating a PersistentVolume")(error)),
        };
        let next = self.bind(claim, &created).await?;
        let what = volume.image.map_or_else(String::new, |image| format!(" from image {image}"));
        info!(claim = %key, volume = name, bytes, "volume made{what}");
        let message = format!("made volume {name} of {} on node {}{what}", text_of(bytes), self.node);
        self.events.record(claim, Severity::Normal, "ProvisioningSucceeded", message);
        Ok(next)
    }

    /// Writes what binds a claim and a volume, on both sides.
    pub(super) async fn bind(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<Next, StepError> {
        if !super::plan::belongs(volume, claim) {
            let why = format!("volume {} belongs to another claim", volume.name_any());
            return Err(StepError::other("binding a claim")(why));
        }
        let (claims, name) = (self.claims_api(claim), claim.name_any());
        let patch = Patch::Merge(claim::binding(claim, &volume.name_any(), PROVISIONER));
        let patched = found(claims.patch(&name, &params(), &patch).await, "binding a claim")?;
        let Some(patched) = patched else { return Ok(Next::Done) };
        let mut after = patched.clone();
        claim::bound(&mut after, volume);
        write(&claims, MANAGER, Target::Status, &patched, &after).await?;
        self.phase(volume, "Bound").await?;
        Ok(Next::Done)
    }

    async fn phase(&self, volume: &PersistentVolume, phase: &str) -> Result<(), StepError> {
        let patch = json!({"metadata": {"uid": volume.metadata.uid}, "status": {"phase": phase}});
        let patched =
            self.volumes_api().patch_status(&volume.name_any(), &params(), &Patch::Merge(patch)).await;
        gone(patched, "writing a volume's phase")
    }

    /// Says why a claim does not progress, once.
    pub(super) async fn hold(&self, claim: &PersistentVolumeClaim, hold: &Hold) -> Result<(), StepError> {
        if self.condition(claim, PROVISIONED, Some(("False", hold.reason, &hold.message))).await? {
            let (severity, reason) = if hold.soon {
                (Severity::Normal, hold.reason)
            } else {
                (Severity::Warning, "ProvisioningFailed")
            };
            self.events.record(claim, severity, reason, hold.message.clone());
        }
        Ok(())
    }

    /// Sets or removes a condition of a claim; whether that changed anything.
    pub(super) async fn condition(
        &self,
        claim: &PersistentVolumeClaim,
        kind: &str,
        state: Option<(&str, &str, &str)>,
    ) -> Result<bool, StepError> {
        let mut after = claim.clone();
        if !claim::set_condition(&mut after, kind, state, Timestamp::now()) {
            return Ok(false);
        }
        write(&self.claims_api(claim), MANAGER, Target::Status, claim, &after).await
    }

    /// Makes a volume larger that nobody uses.
    pub(super) async fn grow(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
        bytes: u64,
    ) -> Result<Next, StepError> {
        let (key, name) = (ObjectKey::of(claim), volume.name_any());
        let Some(record) = self.files.get(&name) else {
            let message = format!("the file of volume {name} is missing on node {}", self.node);
            self.condition(claim, RESIZING, Some(("True", "Failed", &message))).await?;
            return Ok(Next::Done);
        };
        let grown = {
            // While this is held no machine can begin to use it.
            let attached = self.attached();
            // It may be larger already: grown when it was attached, or by the machine that has it open.
            match self.files.size(&name, record.format()) {
                Ok(has) if has >= bytes => Ok(()),
                _ if attached.contains(&key) => return Ok(Next::After(std::time::Duration::from_secs(1))),
                _ => self.files.grow(&name, record.format(), bytes),
            }
        };
        if let Err(error) = grown {
            let message = format!("the volume cannot grow: {}", explain(&error));
            self.condition(claim, RESIZING, Some(("True", "Failed", &message))).await?;
            return Err(StepError::other("growing a volume")(error));
        }
        let capacity = json!({"storage": text_of(bytes)});
        let patch = json!({"metadata": {"uid": volume.metadata.uid}, "spec": {"capacity": capacity}});
        self.volumes_api()
            .patch(&name, &params(), &Patch::Merge(patch))
            .await
            .map_err(StepError::api("writing a volume's capacity"))?;
        let mut after = claim.clone();
        let status = after.status.get_or_insert_default();
        let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text_of(bytes));
        status.capacity.get_or_insert_default().insert("storage".to_owned(), quantity);
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|condition| condition.type_ != RESIZING);
        }
        write(&self.claims_api(claim), MANAGER, Target::Status, claim, &after).await?;
        let message = format!("volume {name} has {} now", text_of(bytes));
        self.events.record(claim, Severity::Normal, "VolumeResizeSuccessful", message);
        Ok(Next::Done)
    }

    /// Lets a claim go that is being deleted.
    pub(super) async fn unprotect(&self, claim: &PersistentVolumeClaim) -> Result<Next, StepError> {
        let patch = Patch::Merge(claim::let_go(claim));
        let patched = self.claims_api(claim).patch(&claim.name_any(), &params(), &patch).await;
        gone(patched, "letting a claim go")?;
        Ok(Next::Done)
    }

    /// Whether the claim of a volume exists, by the API itself.
    pub(super) async fn claim_exists(&self, volume: &PersistentVolume) -> Result<bool, StepError> {
        let Some(key) = super::claim_of(volume) else { return Ok(false) };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        let found = claims.get_opt(&key.name).await.map_err(StepError::api("reading a claim"))?;
        Ok(found.is_some_and(|claim| super::plan::belongs(volume, &claim)))
    }

    /// A claim, by the API itself.
    pub(super) async fn claim_now(
        &self,
        key: &ObjectKey,
    ) -> Result<Option<PersistentVolumeClaim>, PartError> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        let found = claims.get_opt(&key.name).await;
        found.map_err(|source| PartError::Failed {
            context: format!("reading claim {key}"),
            source: Box::new(source),
        })
    }

    /// A PersistentVolume, by the API itself.
    pub(super) async fn volume_now(&self, name: &str) -> Result<Option<PersistentVolume>, PartError> {
        let found = self.volumes_api().get_opt(name).await;
        found.map_err(|source| PartError::Failed {
            context: format!("reading volume {name}"),
            source: Box::new(source),
        })
    }

    pub(super) async fn release(&self, volume: &PersistentVolume) -> Result<Next, StepError> {
        self.phase(volume, "Released").await?;
        Ok(Next::Done)
    }

    /// Removes a volume's object, and its file before that if `data`.
    pub(super) async fn destroy(&self, volume: &PersistentVolume, data: bool) -> Result<Next, StepError> {
        let (name, volumes) = (volume.name_any(), self.volumes_api());
        if data {
            if volume.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Released") {
                self.phase(volume, "Released").await?;
            }
            let (files, on_disk) = (self.files.clone(), name.clone());
            let removed = tokio::task::spawn_blocking(move || files.remove(&on_disk)).await;
            removed
                .map_err(StepError::other("removing a volume's file"))?
                .map_err(StepError::other(format!("removing the file of volume {name}")))?;
            info!(volume = name, "volume removed");
        }
        let uid = Preconditions { uid: volume.metadata.uid.clone(), resource_version: None };
        let delete = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
        if volume.metadata.deletion_timestamp.is_none() {
            gone(volumes.delete(&name, &delete).await, "deleting a PersistentVolume")?;
        }
        let left: Vec<_> = volume.finalizers().iter().filter(|f| *f != VOLUME_FINALIZER).collect();
        let patch = json!({"metadata": {"uid": volume.metadata.uid, "finalizers": left}});
        let patched = volumes.patch(&name, &params(), &Patch::Merge(patch)).await;
        gone(patched, "letting a PersistentVolume go")?;
        Ok(Next::Done)
    }
}
