//! Snapshots of volumes attached here: made, told, and given up.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch};
use serde_json::json;
use sheaf_api::longhorn::{FINALIZER, NAMESPACE, Snapshot};
use sheaf_plan::storage::{engine_name, volume_id};
use sheaf_runtime::patch::{self, Target, gone};
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, Severity, StepError, TaskGroup};
use sheaf_storage::api::{Ask, SnapshotStatus, VolumeStatus};
use tracing::{info, warn};

use super::{Kind, MANAGER, Replicated, params, released};

const AGAIN: Duration = Duration::from_secs(2);

struct Moments(Arc<Replicated>);

pub(super) fn spawn(shared: &Arc<Replicated>, group: &TaskGroup) {
    let s = shared.clone();
    let driver =
        Driver::new(Moments(shared.clone())).for_each(&shared.moments).on(&shared.engines, move |engine| {
            let all = s.moments.list();
            let of = all.iter().filter(|m| m.spec.volume == engine.spec.volume_name);
            of.map(|m| ObjectKey::of(&**m)).collect()
        });
    shared.add_waker(Kind::Moment, driver.waker());
    driver.spawn(group);
}

impl Controller for Moments {
    const NAME: &'static str = "snapshots-of-volumes";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let shared = &self.0;
        let Some(moment) = shared.moments.get(key) else { return Ok(Next::Done) };
        let engine = shared.engines.get(&ObjectKey::new(NAMESPACE, engine_name(&moment.spec.volume)));
        if engine.is_none_or(|e| e.spec.node_id != shared.node || e.spec.desire_state != "running") {
            return Ok(Next::Done);
        }
        let volume = shared.volumes.get(&ObjectKey::new(NAMESPACE, &moment.spec.volume));
        let id = volume.as_deref().and_then(volume_id).unwrap_or_default();
        let Some(listed) = shared.listed() else { return Ok(Next::After(AGAIN)) };
        let serving = listed.volumes.iter().find(|v| v.volume == id && v.phase == "serving");
        let Some(serving) = serving else { return Ok(Next::After(AGAIN)) };
        let there = serving.snapshots.iter().find(|s| s.name == key.name);
        let deleting = moment.metadata.deletion_timestamp.is_some();
        if !deleting && !moment.finalizers().iter().any(|f| f == FINALIZER) {
            let mut all = moment.finalizers().to_vec();
            all.push(FINALIZER.into());
            let patch =
                json!({"metadata": {"finalizers": all, "resourceVersion": moment.metadata.resource_version}});
            let api: Api<Snapshot> = Api::namespaced(shared.client.clone(), NAMESPACE);
            gone(api.patch(&key.name, &params(), &Patch::Merge(patch)).await, "holding a snapshot")?;
            return Ok(Next::Done);
        }
        match (deleting, there) {
            (true, Some(found)) if !found.removed => {
                let ask = Ask::RemoveSnapshot { volume: id.to_owned(), name: key.name.clone() };
                if let Err(error) = shared.ask(ask).await {
                    warn!(snapshot = %key, %error, "a snapshot cannot be given up yet");
                } else {
                    info!(snapshot = %key, "snapshot given up");
                }
                shared.look().await;
                self.report(&moment, serving, there).await?;
                Ok(Next::After(AGAIN))
            }
            (true, Some(_)) => Ok(Next::After(AGAIN)),
            (true, None) => {
                let api: Api<Snapshot> = Api::namespaced(shared.client.clone(), NAMESPACE);
                let patch = released(moment.finalizers());
                gone(api.patch(&key.name, &params(), &patch).await, "letting a snapshot go")?;
                Ok(Next::Done)
            }
            (false, Some(found)) => {
                self.report(&moment, serving, Some(found)).await?;
                Ok(Next::Done)
            }
            (false, None) => self.make(&moment, id, serving).await,
        }
    }
}

impl Moments {
    async fn make(&self, moment: &Snapshot, id: &str, serving: &VolumeStatus) -> Result<Next, StepError> {
        let shared = &self.0;
        let status = moment.status.clone().unwrap_or_default();
        let asked = moment.spec.create_snapshot == Some(true) && status.error.is_empty();
        if !asked || status.creation_time != String::new() {
            self.report(moment, serving, None).await?;
            return Ok(Next::Done);
        }
        let ask = Ask::Snapshot {
            volume: id.to_owned(),
            name: moment.name_any(),
            labels: moment.spec.labels.clone(),
            system: false,
        };
        match shared.ask(ask).await {
            Ok(_) => {
                info!(snapshot = moment.name_any(), volume = moment.spec.volume, "snapshot made");
                shared.look().await;
                Ok(Next::After(Duration::ZERO))
            }
            Err(error) => {
                let text = error.to_string();
                shared.events.record(moment, Severity::Warning, "SnapshotFailed", text);
                Ok(Next::After(AGAIN))
            }
        }
    }

    async fn report(
        &self,
        moment: &Snapshot,
        serving: &VolumeStatus,
        found: Option<&SnapshotStatus>,
    ) -> Result<(), StepError> {
        let shared = &self.0;
        let name = moment.name_any();
        let mut after = moment.clone();
        let status = after.status.get_or_insert_default();
        status.owner_id.clone_from(&shared.node);
        status.ready_to_use = Some(found.is_some_and(|f| !f.removed));
        match found {
            Some(found) => {
                let created = i64::try_from(found.created).ok().and_then(|s| Timestamp::from_second(s).ok());
                status.creation_time = created.map(|t| t.to_string()).unwrap_or_default();
                status.parent = found.parent.clone().unwrap_or_default();
                status.user_created = Some(found.user);
                status.mark_removed = Some(found.removed);
                status.labels.clone_from(&found.labels);
                status.restore_size = i64::try_from(serving.bytes).ok();
                status.error = String::new();
                let children = serving.snapshots.iter().filter(|s| s.parent.as_ref() == Some(&name));
                status.children = children.map(|s| (s.name.clone(), true)).collect();
                if serving.snapshots.last().is_some_and(|s| s.name == name) {
                    status.children.insert("volume-head".into(), true);
                }
                let size = shared.sizes(&serving.volume).get(&name).map(|size| size.own);
                status.size = size.and_then(|s| i64::try_from(s).ok()).or(status.size);
            }
            None => {
                let volume = &moment.spec.volume;
                status.error = format!("volume {volume} has no snapshot {name}");
            }
        }
        let api: Api<Snapshot> = Api::namespaced(shared.client.clone(), NAMESPACE);
        patch::write(&api, MANAGER, Target::Status, moment, &after).await.map(drop)
    }
}
