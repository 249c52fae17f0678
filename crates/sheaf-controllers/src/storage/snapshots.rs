//! VolumeSnapshots and their contents: moments of volumes as Kubernetes' clients ask for them.
//!
//! ```text
//! VolumeSnapshot -> VolumeSnapshotContent -> longhorn.io Snapshot -> (the agent of the engine makes it) -> ready, back up
//! ```
//!
//! Three loops, each over its own kind; deletion goes the same way and waits for what is below. A moment from which a volume
//! is being filled is kept until that is done.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use sheaf_api::longhorn::{DRIVER, FINALIZER, NAMESPACE, OF_VOLUME, Snapshot};
use sheaf_api::volumesnapshot::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
use sheaf_plan::storage::{CONTENT, FILLED};
use sheaf_runtime::patch::{Target, gone, write};
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, Severity, StepError, TaskGroup};

use super::{Storage, handle, key, made};

const MANAGER: &str = "sheaf-volume-snapshots";
const BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
const CONTENT_BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
const DEFAULT_CLASS: &str = "snapshot.storage.kubernetes.io/is-default-class";
const AGAIN: Duration = Duration::from_secs(2);

struct Snapshots(Arc<Storage>);
struct Contents(Arc<Storage>);
struct Moments(Arc<Storage>);

pub(super) fn spawn(storage: &Arc<Storage>, group: &TaskGroup) {
    let of_claim = storage.clone();
    Driver::new(Snapshots(storage.clone()))
        .for_each(&storage.snapshots)
        .on(&storage.contents, |content| snapshot_of(content).into_iter().collect())
        .on(&storage.world.claims, move |claim| {
            let name = claim.name_any();
            let all = of_claim.snapshots.list_namespace(&claim.namespace().unwrap_or_default());
            let of =
                |s: &&Arc<VolumeSnapshot>| s.spec.source.persistent_volume_claim_name.as_ref() == Some(&name);
            all.iter().filter(of).map(|s| ObjectKey::of(&**s)).collect()
        })
        .after(&storage.snapshot_classes)
        .spawn(group);
    let of_moment = storage.clone();
    Driver::new(Contents(storage.clone()))
        .for_each(&storage.contents)
        .on(&storage.moments, move |moment| {
            let name = moment.name_any();
            let all = of_moment.contents.list();
            let of = |c: &&Arc<VolumeSnapshotContent>| target(c).is_some_and(|(_, m)| m == name);
            all.iter().filter(of).map(|c| ObjectKey::of(&**c)).collect()
        })
        .after(&storage.volumes)
        .spawn(group);
    let of_volume = storage.clone();
    Driver::new(Moments(storage.clone()))
        .for_each(&storage.moments)
        .on(&storage.volumes, move |volume| of_volume.moments_of.users(&volume.name_any()))
        .spawn(group);
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

fn snapshot_of(content: &VolumeSnapshotContent) -> Option<ObjectKey> {
    let of = content.spec.volume_snapshot_ref.as_ref()?;
    Some(ObjectKey::new(of["namespace"].as_str()?, of["name"].as_str()?))
}

/// Volume and moment of a content.
fn target(content: &VolumeSnapshotContent) -> Option<(String, String)> {
    if let Some(handle) = &content.spec.source.snapshot_handle {
        let (volume, moment) = handle.strip_prefix("snap://")?.split_once('/')?;
        return Some((volume.to_owned(), moment.to_owned()));
    }
    let volume = content.spec.source.volume_handle.clone()?;
    let uid = content.spec.volume_snapshot_ref.as_ref()?["uid"].as_str()?;
    Some((volume, format!("snapshot-{uid}")))
}

fn held(finalizers: &[String], finalizer: &str) -> bool {
    finalizers.iter().any(|f| f == finalizer)
}

fn without(finalizers: &[String], finalizer: &str) -> Patch<Value> {
    let left: Vec<&String> = finalizers.iter().filter(|f| *f != finalizer).collect();
    Patch::Merge(json!({"metadata": {"finalizers": left}}))
}

impl Controller for Snapshots {
    const NAME: &'static str = "volume-snapshots";

    async fn reconcile(&self, at: &ObjectKey) -> Result<Next, StepError> {
        let Some(snapshot) = self.0.snapshots.get(at) else { return Ok(Next::Done) };
        let api: Api<VolumeSnapshot> = Api::namespaced(self.0.client.clone(), &at.namespace);
        let name = snapshot.spec.source.volume_snapshot_content_name.clone();
        let name = name.unwrap_or_else(|| format!("snapcontent-{}", snapshot.uid().unwrap_or_default()));
        let content = self.0.contents.get(&ObjectKey::new("", name.clone()));
        let contents: Api<VolumeSnapshotContent> = Api::all(self.0.client.clone());
        if snapshot.metadata.deletion_timestamp.is_some() {
            if !held(snapshot.finalizers(), BOUND) {
                return Ok(Next::Done);
            }
            let ours = content.as_deref().filter(|c| snapshot_of(c).as_ref() == Some(at));
            if let Some(content) = ours.filter(|c| c.spec.deletion_policy == "Delete") {
                if content.metadata.deletion_timestamp.is_none() {
                    gone(contents.delete(&name, &DeleteParams::default()).await, "deleting a content")?;
                }
                return Ok(Next::After(AGAIN));
            }
            let left = without(snapshot.finalizers(), BOUND);
            gone(api.patch(&at.name, &params(), &left).await, "letting a snapshot go")?;
            return Ok(Next::Done);
        }
        let Some(content) = content else { return self.make(at, &snapshot, &name).await };
        if content.spec.driver != DRIVER {
            return Ok(Next::Done);
        }
        if !held(snapshot.finalizers(), BOUND) {
            let mut all = snapshot.finalizers().to_vec();
            all.push(BOUND.into());
            let patch = json!({"metadata": {"finalizers": all, "resourceVersion": snapshot.metadata.resource_version}});
            gone(api.patch(&at.name, &params(), &Patch::Merge(patch)).await, "holding a snapshot")?;
            return Ok(Next::Done);
        }
        let mut after = (*snapshot).clone();
        let status = after.status.get_or_insert_default();
        let of = content.status.clone().unwrap_or_default();
        status.bound_volume_snapshot_content_name = Some(name);
        status.ready_to_use = Some(of.ready_to_use == Some(true));
        status.error = of.error;
        let created = of.creation_time.and_then(|ns| Timestamp::from_second(ns / 1_000_000_000).ok());
        status.creation_time = created.map(Time);
        let size = of.restore_size.and_then(|b| u64::try_from(b).ok());
        status.restore_size = size.map(|b| {
            k8s_openapi::apimachinery::pkg::api::resource::Quantity(
                sheaf_meta::quantity::Quantity::from_bytes(b).to_string(),
            )
        });
        write(&api, MANAGER, Target::Status, &snapshot, &after).await?;
        Ok(Next::Done)
    }
}

impl Snapshots {
    /// Makes the content, or says why that cannot be.
    async fn make(&self, at: &ObjectKey, snapshot: &VolumeSnapshot, name: &str) -> Result<Next, StepError> {
        let object = match self.compose(at, snapshot, name) {
            Ok(None) => return Ok(Next::Done),
            Ok(Some(object)) => object,
            Err(why) => {
                let api: Api<VolumeSnapshot> = Api::namespaced(self.0.client.clone(), &at.namespace);
                let mut after = snapshot.clone();
                let status = after.status.get_or_insert_default();
                let said = status.error.as_ref().and_then(|e| e.message.as_ref()) == Some(&why);
                if !said {
                    status.ready_to_use = Some(false);
                    status.error = Some(sheaf_api::volumesnapshot::VolumeSnapshotError {
                        message: Some(why.clone()),
                        time: Some(Time(Timestamp::now())),
                    });
                    write(&api, MANAGER, Target::Status, snapshot, &after).await?;
                    self.0.events.record(snapshot, Severity::Warning, "SnapshotContentCreationFailed", why);
                }
                return Ok(Next::After(AGAIN * 5));
            }
        };
        let object: VolumeSnapshotContent =
            serde_json::from_value(object).map_err(StepError::other("composing a content"))?;
        let contents: Api<VolumeSnapshotContent> = Api::all(self.0.client.clone());
        made(contents.create(&PostParams::default(), &object).await, "making a content")?;
        Ok(Next::Done)
    }

    fn class(&self, snapshot: &VolumeSnapshot) -> Result<Option<Arc<VolumeSnapshotClass>>, String> {
        let named = snapshot.spec.volume_snapshot_class_name.clone().filter(|n| !n.is_empty());
        if let Some(name) = named {
            let found = self.0.snapshot_classes.get(&ObjectKey::new("", name.clone()));
            return found.map(Some).ok_or_else(|| format!("VolumeSnapshotClass {name} does not exist"));
        }
        let all = self.0.snapshot_classes.list();
        let ours = || all.iter().filter(|c| c.driver == DRIVER);
        let default = ours().find(|c| c.annotations().get(DEFAULT_CLASS).is_some_and(|v| v == "true"));
        Ok(default.or_else(|| ours().next()).cloned())
    }

    fn compose(
        &self,
        at: &ObjectKey,
        snapshot: &VolumeSnapshot,
        name: &str,
    ) -> Result<Option<Value>, String> {
        let Some(claim) = &snapshot.spec.source.persistent_volume_claim_name else {
            return Err(format!("VolumeSnapshotContent {name} does not exist"));
        };
        let claim_key = ObjectKey::new(at.namespace.clone(), claim.clone());
        let found = self.0.world.claims.get(&claim_key);
        let found = found.ok_or_else(|| format!("PersistentVolumeClaim {claim_key} does not exist"))?;
        let pv = found.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let Some(pv) = self.0.world.volumes.get(&ObjectKey::new("", pv)) else {
            return Err(format!("PersistentVolumeClaim {claim_key} is not bound yet"));
        };
        let Some(handle) = handle(&pv) else {
            return Err(format!(
                "the volume of PersistentVolumeClaim {claim_key} is no replicated one and has no snapshots of this kind"
            ));
        };
        let class = self.class(snapshot)?.ok_or("there is no VolumeSnapshotClass of this driver")?;
        if class.driver != DRIVER {
            return Err(format!(
                "VolumeSnapshotClass {} is of driver {}, the volume of {DRIVER}",
                class.name_any(),
                class.driver
            ));
        }
        let kind = class.parameters.get("type").map_or("snap", String::as_str);
        if kind != "snap" {
            return Err(format!(
                "VolumeSnapshotClass {}: type {kind:?} is not supported yet; use snap",
                class.name_any()
            ));
        }
        Ok(Some(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": name, "finalizers": [CONTENT_BOUND]},
            "spec": {
                "deletionPolicy": class.deletion_policy, "driver": DRIVER, "source": {"volumeHandle": handle},
                "sourceVolumeMode": pv.spec.as_ref().and_then(|s| s.volume_mode.clone()),
                "volumeSnapshotClassName": class.name_any(),
                "volumeSnapshotRef": {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
                    "namespace": at.namespace, "name": at.name, "uid": snapshot.uid()},
            },
        })))
    }
}

impl Controller for Contents {
    const NAME: &'static str = "volume-snapshot-contents";

    async fn reconcile(&self, at: &ObjectKey) -> Result<Next, StepError> {
        let Some(content) = self.0.contents.get(at).filter(|c| c.spec.driver == DRIVER) else {
            return Ok(Next::Done);
        };
        let api: Api<VolumeSnapshotContent> = Api::all(self.0.client.clone());
        let moments: Api<Snapshot> = Api::namespaced(self.0.client.clone(), NAMESPACE);
        let Some((volume, name)) = target(&content) else { return Ok(Next::Done) };
        let moment = self.0.moments.get(&key(name.clone()));
        if content.metadata.deletion_timestamp.is_some() {
            if !held(content.finalizers(), CONTENT_BOUND) {
                return Ok(Next::Done);
            }
            if let Some(moment) = moment.filter(|_| content.spec.deletion_policy == "Delete") {
                let what = format!("snap://{volume}/{name}");
                let reads = |v: &Arc<sheaf_api::longhorn::Volume>| {
                    let annotations = v.annotations();
                    annotations.get(CONTENT) == Some(&what)
                        && !annotations.contains_key(FILLED)
                        && v.metadata.deletion_timestamp.is_none()
                };
                let used = self.0.volumes.list().iter().any(reads);
                if !used && moment.metadata.deletion_timestamp.is_none() {
                    gone(moments.delete(&name, &DeleteParams::default()).await, "deleting a moment")?;
                }
                return Ok(Next::After(AGAIN));
            }
            let left = without(content.finalizers(), CONTENT_BOUND);
            gone(api.patch(&at.name, &params(), &left).await, "letting a content go")?;
            return Ok(Next::Done);
        }
        let Some(moment) = moment else {
            if content.spec.source.snapshot_handle.is_some()
                || content.status.as_ref().and_then(|s| s.ready_to_use) == Some(true)
            {
                return self
                    .report(&api, &content, Err(format!("snapshot {name} of volume {volume} does not exist")))
                    .await;
            }
            let mut object = Snapshot::new(NAMESPACE, &name);
            object.metadata.labels = Some([(OF_VOLUME.to_owned(), volume.clone())].into());
            object.metadata.finalizers = Some(vec![FINALIZER.into()]);
            object.spec.volume = volume;
            object.spec.create_snapshot = Some(true);
            made(moments.create(&PostParams::default(), &object).await, "keeping a moment")?;
            return Ok(Next::Done);
        };
        let status = moment.status.clone().unwrap_or_default();
        if !status.error.is_empty() {
            return self.report(&api, &content, Err(status.error)).await;
        }
        if status.ready_to_use != Some(true) {
            return Ok(Next::Done);
        }
        let created = status.creation_time.parse::<Timestamp>().unwrap_or_else(|_| Timestamp::now());
        let handle = format!("snap://{volume}/{name}");
        self.report(&api, &content, Ok((handle, created, status.restore_size.unwrap_or(0)))).await
    }
}

impl Contents {
    async fn report(
        &self,
        api: &Api<VolumeSnapshotContent>,
        content: &VolumeSnapshotContent,
        found: Result<(String, Timestamp, i64), String>,
    ) -> Result<Next, StepError> {
        let mut after = content.clone();
        let status = after.status.get_or_insert_default();
        status.ready_to_use = Some(found.is_ok());
        match found {
            Ok((handle, created, size)) => {
                status.snapshot_handle = Some(handle);
                status.creation_time = Some(created.as_second().saturating_mul(1_000_000_000));
                status.restore_size = Some(size);
                status.error = None;
            }
            Err(why) => {
                let said = status.error.as_ref().and_then(|e| e.message.as_ref()) == Some(&why);
                if !said {
                    status.error = Some(sheaf_api::volumesnapshot::VolumeSnapshotError {
                        message: Some(why),
                        time: Some(Time(Timestamp::now())),
                    });
                }
            }
        }
        write(api, MANAGER, Target::Status, content, &after).await?;
        Ok(Next::Done)
    }
}

impl Controller for Moments {
    const NAME: &'static str = "moments";

    /// A moment whose volume has gone, has gone with it.
    async fn reconcile(&self, at: &ObjectKey) -> Result<Next, StepError> {
        let Some(moment) = self.0.moments.get(at) else { return Ok(Next::Done) };
        let there = self.0.volumes.get(&key(moment.spec.volume.clone())).is_some();
        let api: Api<Snapshot> = Api::namespaced(self.0.client.clone(), &at.namespace);
        if there {
            return Ok(Next::Done);
        }
        if moment.metadata.deletion_timestamp.is_some() {
            let left = without(moment.finalizers(), FINALIZER);
            gone(api.patch(&at.name, &params(), &left).await, "letting a moment go")?;
            return Ok(Next::Done);
        }
        let mut after = (*moment).clone();
        let status = after.status.get_or_insert_default();
        status.ready_to_use = Some(false);
        status.error = format!("volume {} does not exist", moment.spec.volume);
        write(&api, MANAGER, Target::Status, &moment, &after).await?;
        Ok(Next::Done)
    }
}
