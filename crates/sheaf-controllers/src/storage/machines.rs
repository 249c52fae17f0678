//! Snapshots of machines on replicated volumes: one VolumeSnapshot for each volume, with the guest's file systems frozen for the
//! moment if it has an agent. The copies of local volumes are the agents' (note 0020). Keyed by the content.
//!
//! Owns the VolumeSnapshots, and the `status` of contents that name no node.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use sheaf_api::kubevirt::{
    SnapshotContentStatus, SnapshotError, SnapshotOfVolume, VirtualMachineSnapshotContent,
};
use sheaf_api::volumesnapshot::VolumeSnapshot;
use sheaf_plan::conditions::{is_true, whole_seconds};
use sheaf_plan::snapshot::{CONTENT_NODE, QUIESCED};
use sheaf_runtime::patch::{Target, gone, write};
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, StepError, TaskGroup};
use tracing::{info, warn};

use super::{Storage, made};

const MANAGER: &str = "sheaf-machine-snapshots";
const AGAIN: Duration = Duration::from_secs(1);

struct Contents(Arc<Storage>);

pub(super) fn spawn(storage: &Arc<Storage>, group: &TaskGroup) {
    Driver::new(Contents(storage.clone()))
        .for_each(&storage.world.contents)
        .on(&storage.snapshots, |snapshot| {
            let owners = snapshot.owner_references();
            let of = owners.iter().find(|o| o.kind == "VirtualMachineSnapshotContent");
            let namespace = snapshot.namespace().unwrap_or_default();
            of.map(|o| ObjectKey::new(namespace, o.name.clone())).into_iter().collect()
        })
        .after(&storage.world.instances)
        .spawn(group);
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

impl Controller for Contents {
    const NAME: &'static str = "machine-snapshot-contents";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(content) = self.0.world.contents.get(key) else { return Ok(Next::Done) };
        let ours = content.annotations().get(CONTENT_NODE).is_none_or(String::is_empty);
        let ready = content.status.as_ref().and_then(|s| s.ready_to_use) == Some(true);
        let backups = &content.spec.volume_backups;
        if !ours || ready || backups.is_empty() || content.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Done);
        }
        let find = |name: &String| self.0.snapshots.get(&ObjectKey::new(&key.namespace, name));
        let there: Vec<_> = backups.iter().map(|b| find(&b.volume_snapshot_name)).collect();
        let Some(quiesced) = content.annotations().get(QUIESCED).cloned() else {
            let how = self.freeze(key, &content).await;
            let patch = json!({"metadata": {"annotations": {QUIESCED: how}}});
            let api: Api<VirtualMachineSnapshotContent> = self.api(key);
            gone(api.patch(&key.name, &params(), &Patch::Merge(patch)).await, "writing how a guest rests")?;
            return Ok(Next::Done);
        };
        for (backup, found) in backups.iter().zip(&there) {
            if found.is_none() {
                let claim = backup.persistent_volume_claim.metadata.name.clone().unwrap_or_default();
                self.make(key, &content, &backup.volume_snapshot_name, &claim).await?;
            }
        }
        let status =
            |s: &Option<Arc<VolumeSnapshot>>| s.as_ref().and_then(|s| s.status.clone()).unwrap_or_default();
        let problem = there.iter().find_map(|s| status(s).error.and_then(|e| e.message));
        if !there.iter().all(|s| status(s).ready_to_use == Some(true)) {
            if let Some(problem) = problem {
                self.fail(key, &content, &problem).await?;
            }
            return Ok(Next::After(AGAIN));
        }
        if quiesced == "agent" {
            self.subresource(key, &content, "unfreeze", &json!({})).await.unwrap_or_else(|error| {
                warn!(content = %key, %error, "not thawed after a snapshot; the timer will");
            });
        }
        let now = Time(whole_seconds(Timestamp::now()));
        let mut after = (*content).clone();
        let told = |name: &String| SnapshotOfVolume {
            volume_snapshot_name: name.clone(),
            creation_time: Some(now.clone()),
            ready_to_use: Some(true),
            error: None,
        };
        after.status = Some(SnapshotContentStatus {
            creation_time: Some(now.clone()),
            ready_to_use: Some(true),
            error: None,
            volume_snapshot_status: backups.iter().map(|b| told(&b.volume_snapshot_name)).collect(),
        });
        write(&self.api(key), MANAGER, Target::Status, &content, &after).await?;
        info!(content = %key, quiesced, "moments of all volumes are kept");
        Ok(Next::Done)
    }
}

impl Contents {
    fn api(&self, key: &ObjectKey) -> Api<VirtualMachineSnapshotContent> {
        Api::namespaced(self.0.client.clone(), &key.namespace)
    }

    /// Brings the guest to rest, for half a minute at most; says how.
    async fn freeze(&self, key: &ObjectKey, content: &VirtualMachineSnapshotContent) -> &'static str {
        let vm = content.spec.source.virtual_machine.as_ref().and_then(|vm| vm.metadata.name.clone());
        let vmi = self.0.world.instances.get(&ObjectKey::new(&key.namespace, vm.unwrap_or_default()));
        let Some(status) = vmi.as_ref().and_then(|v| v.status.as_ref()).filter(|s| s.phase == "Running")
        else {
            return "offline";
        };
        if is_true(&status.conditions, "Paused") {
            return "paused";
        }
        if !is_true(&status.conditions, "AgentConnected") {
            return "no-agent";
        }
        match self.subresource(key, content, "freeze", &json!({"unfreezeTimeout": "30s"})).await {
            Ok(()) => "agent",
            Err(error) => {
                warn!(content = %key, %error, "not frozen for a snapshot");
                "failed"
            }
        }
    }

    async fn subresource(
        &self,
        key: &ObjectKey,
        content: &VirtualMachineSnapshotContent,
        what: &str,
        body: &serde_json::Value,
    ) -> Result<(), StepError> {
        let vm = content.spec.source.virtual_machine.as_ref().and_then(|vm| vm.metadata.name.clone());
        let path = format!(
            "/apis/subresources.kubevirt.io/v1/namespaces/{}/virtualmachineinstances/{}/{what}",
            key.namespace,
            vm.unwrap_or_default()
        );
        let request = http::Request::put(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(StepError::other("composing a request"))?;
        let answer = self.0.client.request_text(request).await;
        answer.map(drop).map_err(StepError::api("freezing or thawing a guest"))
    }

    async fn make(
        &self,
        key: &ObjectKey,
        content: &VirtualMachineSnapshotContent,
        name: &str,
        claim: &str,
    ) -> Result<(), StepError> {
        let mut object = VolumeSnapshot::new(&key.namespace, name);
        object.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "snapshot.kubevirt.io/v1beta1".into(),
            kind: "VirtualMachineSnapshotContent".into(),
            name: key.name.clone(),
            uid: content.uid().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]);
        object.spec.source.persistent_volume_claim_name = Some(claim.to_owned());
        let api: Api<VolumeSnapshot> = Api::namespaced(self.0.client.clone(), &key.namespace);
        made(api.create(&PostParams::default(), &object).await, "keeping a moment of a volume")
    }

    async fn fail(
        &self,
        key: &ObjectKey,
        content: &VirtualMachineSnapshotContent,
        why: &str,
    ) -> Result<(), StepError> {
        let mut after = content.clone();
        let status = after.status.get_or_insert_default();
        if status.error.as_ref().is_some_and(|e| e.message == why) {
            return Ok(());
        }
        status.ready_to_use = Some(false);
        let now = Time(whole_seconds(Timestamp::now()));
        status.error = Some(SnapshotError { message: why.into(), time: Some(now) });
        write(&self.api(key), MANAGER, Target::Status, content, &after).await.map(drop)
    }
}
