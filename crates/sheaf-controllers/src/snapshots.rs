//! VirtualMachineSnapshot: locks its VM, makes the content that the VM's node fills, and says how it went.
//!
//! What is decided is in `sheaf_plan::snapshot`. Owns a snapshot's status and finalizer, the existence of its content, and of
//! a VM `status.snapshotInProgress`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Map, Value, json};
use sheaf_api::kubevirt::{VirtualMachine, VirtualMachineSnapshot, VirtualMachineSnapshotContent};
use sheaf_api::rules::duration;
use sheaf_plan::snapshot::{
    MEMORY, QUIESCED, SNAPSHOT_FINALIZER, claim_of, content, content_name, indications, volumes_in,
};
use sheaf_runtime::patch::gone;
use sheaf_runtime::{Controller, Driver, EventRecorder, Next, ObjectKey, Severity, StepError, TaskGroup};
use tracing::info;

use crate::world::World;

const MANAGER: &str = "sheaf-snapshots";
/// A snapshot that is not ready within this has failed, unless it says otherwise.
const DEADLINE: f64 = 300.0;
const AGAIN: Duration = Duration::from_secs(2);

struct Snapshots {
    client: Client,
    world: Arc<World>,
    events: EventRecorder,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, events: &EventRecorder, group: &TaskGroup) {
    let controller = Snapshots { client: client.clone(), world: world.clone(), events: events.clone() };
    Driver::new(controller)
        .for_each(&world.snapshots)
        .on(&world.contents, |content| {
            let namespace = content.metadata.namespace.clone().unwrap_or_default();
            vec![ObjectKey::new(namespace, &content.spec.virtual_machine_snapshot_name)]
        })
        .after(&world.claims)
        .after(&world.vms)
        .spawn(group);
}

pub(crate) fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

pub(crate) fn condition(kind: &str, status: bool, reason: &str) -> Value {
    let now = sheaf_plan::conditions::whole_seconds(Timestamp::now()).to_string();
    let status = if status { "True" } else { "False" };
    // The reason holds the words for people, as upstream has it.
    json!({"type": kind, "status": status, "reason": reason, "lastTransitionTime": now})
}

/// Locks a VM for an operation, or lets it go; false if another operation has it.
pub(crate) async fn lock(
    client: &Client,
    vm: &VirtualMachine,
    field: &str,
    name: &str,
    locked: bool,
) -> Result<bool, StepError> {
    let status = vm.status.clone().unwrap_or_default();
    let holds = [&status.snapshot_in_progress, &status.restore_in_progress];
    let mine = if field == "snapshotInProgress" { holds[0] } else { holds[1] };
    if locked && holds.iter().any(|h| h.as_ref().is_some_and(|h| !h.is_empty() && h != name)) {
        return Ok(false);
    }
    let has = mine.as_deref() == Some(name);
    if has == locked {
        return Ok(true);
    }
    let api: Api<VirtualMachine> = Api::namespaced(client.clone(), &vm.namespace().unwrap_or_default());
    let value = if locked { json!(name) } else { Value::Null };
    let patch =
        json!({"metadata": {"resourceVersion": vm.metadata.resource_version}, "status": {field: value}});
    gone(api.patch_status(&vm.name_any(), &params(), &Patch::Merge(patch)).await, "locking a VM")?;
    Ok(true)
}

impl Controller for Snapshots {
    const NAME: &'static str = "vmsnapshots";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(snapshot) = self.world.snapshots.get(key) else { return Ok(Next::Done) };
        let api: Api<VirtualMachineSnapshot> = Api::namespaced(self.client.clone(), &key.namespace);
        let uid = snapshot.metadata.uid.clone().unwrap_or_default();
        let vm = self.world.vms.get(&ObjectKey::new(&key.namespace, &snapshot.spec.source.name));
        let found = self.world.contents.get(&ObjectKey::new(&key.namespace, content_name(&uid)));
        let phase = snapshot.status.as_ref().map_or("", |s| s.phase.as_str()).to_owned();
        if snapshot.metadata.deletion_timestamp.is_some() {
            return self.delete(&api, &snapshot, vm.as_deref(), found.as_deref()).await;
        }
        if !snapshot.metadata.finalizers.iter().flatten().any(|f| f == SNAPSHOT_FINALIZER) {
            let mut all = snapshot.metadata.finalizers.clone().unwrap_or_default();
            all.push(SNAPSHOT_FINALIZER.into());
            let patch = json!({"metadata": {"finalizers": all, "resourceVersion": snapshot.metadata.resource_version}});
            gone(api.patch(&key.name, &params(), &Patch::Merge(patch)).await, "holding a snapshot")?;
            return Ok(Next::Done);
        }
        if matches!(phase.as_str(), "Succeeded" | "Failed") {
            if let Some(vm) = &vm {
                lock(&self.client, vm, "snapshotInProgress", &key.name, false).await?;
            }
            return Ok(Next::Done);
        }
        if let Some(ready) =
            found.as_deref().filter(|c| c.status.as_ref().and_then(|s| s.ready_to_use) == Some(true))
        {
            self.succeed(&api, &snapshot, ready).await?;
            return Ok(Next::After(Duration::ZERO));
        }
        if let Some(late) = late(&snapshot) {
            let error =
                found.as_ref().and_then(|c| c.status.as_ref()?.error.as_ref().map(|e| e.message.clone()));
            let why = format!(
                "snapshot deadline exceeded after {late} s{}",
                error.map(|e| format!(": {e}")).unwrap_or_default()
            );
            let now = sheaf_plan::conditions::whole_seconds(Timestamp::now()).to_string();
            let patch = json!({"status": {
                "phase": "Failed", "readyToUse": false, "error": {"message": why, "time": now},
                "conditions": [condition("Progressing", false, "Operation failed"), condition("Ready", false, "Operation failed"),
                    condition("Failure", true, &why)],
            }});
            gone(
                api.patch_status(&key.name, &params(), &Patch::Merge(patch)).await,
                "writing a snapshot's status",
            )?;
            if let Some(content) = &found {
                self.delete_content(content).await?;
            }
            return Ok(Next::After(Duration::ZERO));
        }
        let waiting = self.advance(key, &snapshot, vm.as_deref(), found.is_some()).await?;
        self.progress(&api, &snapshot, vm.as_deref(), &waiting).await?;
        Ok(Next::After(AGAIN))
    }
}

/// Seconds that a snapshot has had, if that is more than it may have.
fn late(snapshot: &VirtualMachineSnapshot) -> Option<i64> {
    let text = &snapshot.spec.failure_deadline;
    let limit = if text.is_empty() { DEADLINE } else { duration(text).unwrap_or(DEADLINE) };
    let created = snapshot.metadata.creation_timestamp.as_ref()?.0.as_second();
    let age = Timestamp::now().as_second() - created;
    (limit > 0.0 && age as f64 > limit).then_some(age)
}

impl Snapshots {
    /// Takes the next step; says what is waited for.
    async fn advance(
        &self,
        key: &ObjectKey,
        snapshot: &VirtualMachineSnapshot,
        vm: Option<&VirtualMachine>,
        has_content: bool,
    ) -> Result<String, StepError> {
        let Some(vm) = vm else { return Ok("Source does not exist".into()) };
        if has_content {
            return Ok("Operation in progress".into());
        }
        if !lock(&self.client, vm, "snapshotInProgress", &key.name, true).await? {
            return Ok("Source not locked, another operation is in progress".into());
        }
        let vmi = self.world.instances.get(&ObjectKey::new(&key.namespace, vm.name_any()));
        let running = vmi.as_ref().filter(|v| v.metadata.deletion_timestamp.is_none());
        let mut whole = serde_json::to_value(vm).unwrap_or_default();
        // A machine that runs is kept as it was started, and not as it shall be some day.
        let revision =
            running.and_then(|v| v.status.as_ref()).map(|s| s.virtual_machine_revision_name.clone());
        let started = revision.and_then(|r| self.world.revisions.get(&ObjectKey::new(&key.namespace, &r)));
        let restart = vm
            .status
            .as_ref()
            .is_some_and(|s| sheaf_plan::conditions::is_true(&s.conditions, "RestartRequired"));
        if let Some(spec) = started.filter(|_| restart).and_then(|r| r.data.as_ref()?.0.get("spec").cloned())
        {
            let strategy = whole["spec"]["runStrategy"].clone();
            whole["spec"] = spec;
            whole["spec"]["runStrategy"] = strategy;
        }
        let mut claims = Map::new();
        let (mut nodes, mut replicated): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        let volumes = whole.pointer("/spec/template/spec/volumes").and_then(Value::as_array).cloned();
        for name in volumes.iter().flatten().filter_map(claim_of) {
            let Some(claim) = self.world.claims.get(&ObjectKey::new(&key.namespace, name)) else {
                return Ok(format!("Source not ready: PVC {name} does not exist"));
            };
            let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
            let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
            if !bound || volume.is_empty() || claim.metadata.deletion_timestamp.is_some() {
                return Ok(format!("Source not ready: PVC {name} is not bound"));
            }
            let persistent = self.world.volumes.get(&ObjectKey::new("", &volume));
            if persistent.as_deref().and_then(crate::storage::handle).is_some() {
                replicated.push(name.to_owned());
                claims.insert(name.to_owned(), serde_json::to_value(&*claim).unwrap_or_default());
                continue;
            }
            let node = persistent.and_then(|v| node_of(&v));
            let Some(node) = node else {
                return Ok(format!(
                    "Source not ready: volume {volume} of PVC {name} cannot be copied: it is neither a file of a node nor replicated"
                ));
            };
            nodes.push(node);
            claims.insert(name.to_owned(), serde_json::to_value(&*claim).unwrap_or_default());
        }
        nodes.sort();
        nodes.dedup();
        if nodes.len() > 1 {
            return Ok(format!("Source not ready: its volumes are on several nodes: {}", nodes.join(", ")));
        }
        let node = nodes.pop().unwrap_or_default();
        let memory = running.is_some() && snapshot.annotations().get(MEMORY).is_some_and(|m| m == "true");
        if let Some(why) = refusal(&replicated, &node, memory) {
            return Ok(format!("Source not ready: {why}"));
        }
        let snapshot_json = serde_json::to_value(snapshot).unwrap_or_default();
        let mut made = content(&snapshot_json, &whole, &claims, &node);
        made["metadata"]["annotations"]["sheaf.io/online"] = json!(running.is_some().to_string());
        if running.is_none()
            && let Some(annotations) = made["metadata"]["annotations"].as_object_mut()
        {
            annotations.remove(MEMORY);
        }
        let made: DynamicObject =
            serde_json::from_value(made).map_err(StepError::other("composing a content"))?;
        let resource = kube::api::ApiResource::erase::<VirtualMachineSnapshotContent>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        match api.create(&PostParams::default(), &made).await {
            Ok(made) => {
                info!(content = made.name_any(), "content of a snapshot made");
                let text = format!("Successfully created VirtualMachineSnapshotContent {}", made.name_any());
                self.events.record(
                    snapshot,
                    Severity::Normal,
                    "SuccessfulVirtualMachineSnapshotContentCreate",
                    text,
                );
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
            Err(error) => return Err(StepError::api("making a snapshot's content")(error)),
        }
        // Without volumes there is nothing to do; replicated ones are `storage::machines`' work.
        if node.is_empty() && replicated.is_empty() {
            let api: Api<VirtualMachineSnapshotContent> =
                Api::namespaced(self.client.clone(), &key.namespace);
            let now = sheaf_plan::conditions::whole_seconds(Timestamp::now()).to_string();
            let patch = json!({"status": {"readyToUse": true, "creationTime": now}});
            let name = content_name(snapshot.metadata.uid.as_deref().unwrap_or_default());
            gone(
                api.patch_status(&name, &params(), &Patch::Merge(patch)).await,
                "writing a content's status",
            )?;
        }
        Ok("Operation in progress".into())
    }

    async fn progress(
        &self,
        api: &Api<VirtualMachineSnapshot>,
        snapshot: &VirtualMachineSnapshot,
        vm: Option<&VirtualMachine>,
        why: &str,
    ) -> Result<(), StepError> {
        let status = snapshot.status.clone().unwrap_or_default();
        let going = why == "Operation in progress";
        let said = status.conditions.iter().find(|c| c.r#type == "Progressing").map(|c| c.reason.as_str());
        if said == Some(why) && status.phase == "InProgress" {
            return Ok(());
        }
        let patch = json!({"status": {
            "phase": "InProgress", "readyToUse": false, "sourceUID": vm.and_then(|v| v.metadata.uid.clone()),
            "conditions": [condition("Progressing", going, why), condition("Ready", false, "Not ready")],
        }});
        gone(
            api.patch_status(&snapshot.name_any(), &params(), &Patch::Merge(patch)).await,
            "writing a snapshot's status",
        )
    }

    async fn succeed(
        &self,
        api: &Api<VirtualMachineSnapshot>,
        snapshot: &VirtualMachineSnapshot,
        content: &VirtualMachineSnapshotContent,
    ) -> Result<(), StepError> {
        let annotations = content.annotations();
        let get = |key: &str| annotations.get(key).map_or("", String::as_str);
        let how = indications(get("sheaf.io/online") == "true" && get(QUIESCED) != "offline", get(QUIESCED));
        let names: Vec<&str> = how.iter().map(|i| i.0).collect();
        let told: Vec<Value> = how.iter().map(|(i, m)| json!({"indication": i, "message": m})).collect();
        let (included, excluded) = volumes_in(&serde_json::to_value(content).unwrap_or_default());
        let at = content.status.as_ref().and_then(|s| s.creation_time.clone());
        let patch = json!({"status": {
            "phase": "Succeeded", "readyToUse": true, "creationTime": at, "error": null, "indications": names,
            "sourceIndications": told, "virtualMachineSnapshotContentName": content.name_any(),
            "snapshotVolumes": {"includedVolumes": included, "excludedVolumes": excluded},
            "conditions": [condition("Progressing", false, "Operation complete"), condition("Ready", true, "Operation complete")],
        }});
        let written = api.patch_status(&snapshot.name_any(), &params(), &Patch::Merge(patch)).await;
        gone(written, "writing a snapshot's status")
    }

    async fn delete(
        &self,
        api: &Api<VirtualMachineSnapshot>,
        snapshot: &VirtualMachineSnapshot,
        vm: Option<&VirtualMachine>,
        content: Option<&VirtualMachineSnapshotContent>,
    ) -> Result<Next, StepError> {
        if let Some(vm) = vm {
            lock(&self.client, vm, "snapshotInProgress", &snapshot.name_any(), false).await?;
        }
        if let Some(content) = content.filter(|_| snapshot.spec.deletion_policy != "Retain") {
            self.delete_content(content).await?;
            // Its copies go first: then nothing is left that nobody knows of.
            return Ok(Next::After(AGAIN));
        }
        let left: Vec<&String> = snapshot.finalizers().iter().filter(|f| *f != SNAPSHOT_FINALIZER).collect();
        let patch = json!({"metadata": {"finalizers": left}});
        gone(
            api.patch(&snapshot.name_any(), &params(), &Patch::Merge(patch)).await,
            "letting a snapshot go",
        )?;
        Ok(Next::Done)
    }

    async fn delete_content(&self, content: &VirtualMachineSnapshotContent) -> Result<(), StepError> {
        let namespace = content.namespace().unwrap_or_default();
        let api: Api<VirtualMachineSnapshotContent> = Api::namespaced(self.client.clone(), &namespace);
        gone(api.delete(&content.name_any(), &DeleteParams::default()).await, "deleting a snapshot's content")
    }
}

/// Why volumes cannot be kept together: the claims of replicated ones, the node that has files, whether the guest's memory is wanted.
fn refusal(replicated: &[String], node: &str, memory: bool) -> Option<String> {
    let one = replicated.first()?;
    if !node.is_empty() {
        return Some(format!(
            "the volume of PVC {one} is replicated, others are files of node {node}; a snapshot takes volumes of one kind"
        ));
    }
    memory.then(|| {
        format!(
            "{MEMORY}: what the guest has in memory is kept with volumes of class local only, and that of PVC {one} is replicated"
        )
    })
}

/// The node that has a volume, if it is a file of one.
fn node_of(volume: &k8s_openapi::api::core::v1::PersistentVolume) -> Option<String> {
    let spec = volume.spec.as_ref()?;
    spec.local.as_ref()?;
    let required = spec.node_affinity.as_ref()?.required.as_ref()?;
    let term = required.node_selector_terms.iter().flat_map(|t| t.match_expressions.iter().flatten());
    let found = term.clone().find(|r| r.key == "kubernetes.io/hostname")?;
    found.values.as_ref()?.first().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_together_is_refused_by_name() {
        let one = ["root".to_owned()];
        assert_eq!(refusal(&[], "a", true), None);
        assert_eq!(refusal(&one, "", false), None);
        let mixed = refusal(&one, "a", false).unwrap_or_default();
        assert!(mixed.contains("PVC root") && mixed.contains("node a"), "{mixed}");
        let memory = refusal(&one, "", true).unwrap_or_default();
        assert!(memory.starts_with("sheaf.io/memory: ") && memory.contains("PVC root"), "{memory}");
    }
}
