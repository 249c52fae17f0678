//! VirtualMachineRestore and VirtualMachineClone: a VM as it was, in place or beside.
//!
//! What is decided is in `sheaf_plan::snapshot`. A restore stops its VM, gives it the restored claims and the old spec, and
//! starts it again as it was; a clone is a snapshot and a restore into a new VM. Owns their status, the claims they make, and
//! of a VM `status.restoreInProgress`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Map, Value, json};
use sheaf_api::kubevirt::{
    VirtualMachine, VirtualMachineClone, VirtualMachineRestore, VirtualMachineSnapshot,
};
use sheaf_plan::snapshot::{
    MEMORY, RESTORE_FINALIZER, RESUME_FROM, RUN_STRATEGY, claim, clone_patches, content_name, passes,
    restored_claim, vm_spec,
};
use sheaf_runtime::patch::gone;
use sheaf_runtime::{
    Controller, Driver, EventRecorder, Index, Next, ObjectKey, Severity, StepError, TaskGroup,
};
use tracing::info;

use crate::snapshots::{condition, lock, params};
use crate::world::World;

const AGAIN: Duration = Duration::from_secs(1);
/// How long a VM that is to be stopped by its user may run on.
const GRACE: f64 = 300.0;

struct Restores {
    client: Client,
    world: Arc<World>,
    events: EventRecorder,
}

struct Clones {
    client: Client,
    world: Arc<World>,
    events: EventRecorder,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, events: &EventRecorder, group: &TaskGroup) {
    let restores = Restores { client: client.clone(), world: world.clone(), events: events.clone() };
    // What a restore waits for wakes it: its VM, the instance that is to end, the claims that it makes.
    let of_target = Index::over(&world.restores, |r: &VirtualMachineRestore| {
        let open = r.status.as_ref().and_then(|s| s.complete) != Some(true);
        let target = ObjectKey::new(r.namespace().unwrap_or_default(), r.spec.target.name.clone());
        if open { vec![target] } else { Vec::new() }
    });
    let of_instance = of_target.clone();
    Driver::new(restores)
        .for_each(&world.restores)
        .on(&world.vms, move |vm| of_target.users(&ObjectKey::of(&**vm)))
        .on(&world.instances, move |vmi| of_instance.users(&ObjectKey::of(&**vmi)))
        .on(&world.claims, |claim| {
            let namespace = claim.namespace().unwrap_or_default();
            let restore = claim.annotations().get("restore.kubevirt.io/name");
            restore.map(|name| ObjectKey::new(namespace, name.clone())).into_iter().collect()
        })
        .after(&world.snapshots)
        .after(&world.contents)
        .spawn(group);
    let clones = Clones { client: client.clone(), world: world.clone(), events: events.clone() };
    Driver::new(clones).for_each(&world.clones).after(&world.snapshots).after(&world.restores).spawn(group);
}

/// How far a restore is.
enum Progress {
    Waiting(String),
    Failed(String),
    Complete,
}

impl Controller for Restores {
    const NAME: &'static str = "vmrestores";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(restore) = self.world.restores.get(key) else { return Ok(Next::Done) };
        let api: Api<VirtualMachineRestore> = Api::namespaced(self.client.clone(), &key.namespace);
        let vm = self.world.vms.get(&ObjectKey::new(&key.namespace, &restore.spec.target.name));
        let held = restore.finalizers().iter().any(|f| f == RESTORE_FINALIZER);
        let complete = restore.status.as_ref().and_then(|s| s.complete) == Some(true);
        if restore.metadata.deletion_timestamp.is_some() {
            if let Some(vm) = &vm {
                lock(&self.client, vm, "restoreInProgress", &key.name, false).await?;
                if !complete {
                    let back = restore.annotations().get(RUN_STRATEGY).cloned().unwrap_or_default();
                    self.give_back(&back, vm).await?;
                }
            }
            let left: Vec<&String> =
                restore.finalizers().iter().filter(|f| *f != RESTORE_FINALIZER).collect();
            if held {
                let patch = json!({"metadata": {"finalizers": left}});
                gone(api.patch(&key.name, &params(), &Patch::Merge(patch)).await, "letting a restore go")?;
            }
            return Ok(Next::Done);
        }
        if complete {
            return Ok(Next::Done);
        }
        if !held {
            let mut all = restore.finalizers().to_vec();
            all.push(RESTORE_FINALIZER.into());
            let patch = json!({"metadata": {"finalizers": all, "resourceVersion": restore.metadata.resource_version}});
            gone(api.patch(&key.name, &params(), &Patch::Merge(patch)).await, "holding a restore")?;
            return Ok(Next::Done);
        }
        let progress = Box::pin(self.advance(key, &restore, vm.as_deref())).await?;
        self.report(&api, &restore, &progress).await?;
        Ok(match progress {
            Progress::Complete => Next::Done,
            _ => Next::After(AGAIN),
        })
    }
}

/// Whether the VM is as the restore makes it. Written together with its spec.
fn is_restored(vm: &VirtualMachine, restore: &VirtualMachineRestore) -> bool {
    let by = vm.annotations().get("restore.kubevirt.io/lastRestoreUID");
    by.is_some() && by == restore.metadata.uid.as_ref()
}

/// The content's name, if the guest's memory is in it.
fn memory_of(content: &Value) -> Option<&str> {
    let has =
        content.pointer("/metadata/annotations").and_then(|a| a.get(MEMORY)).is_some_and(|m| m == "true");
    content.pointer("/metadata/name").and_then(Value::as_str).filter(|_| has)
}

impl Restores {
    async fn advance(
        &self,
        key: &ObjectKey,
        restore: &VirtualMachineRestore,
        vm: Option<&VirtualMachine>,
    ) -> Result<Progress, StepError> {
        let waiting = |why: &str| Ok(Progress::Waiting(why.to_owned()));
        let name = &restore.spec.virtual_machine_snapshot_name;
        let Some(snapshot) = self.world.snapshots.get(&ObjectKey::new(&key.namespace, name)) else {
            return waiting(&format!("VMSnapshot {name} does not exist"));
        };
        let status = snapshot.status.clone().unwrap_or_default();
        if status.ready_to_use != Some(true) {
            return waiting(&format!("VMSnapshot {name} is not ready"));
        }
        let uid = snapshot.metadata.uid.clone().unwrap_or_default();
        let Some(content) = self.world.contents.get(&ObjectKey::new(&key.namespace, content_name(&uid)))
        else {
            return Ok(Progress::Failed(format!("the content of VMSnapshot {name} does not exist any more")));
        };
        let content = serde_json::to_value(&*content).unwrap_or_default();
        let as_json = serde_json::to_value(restore).unwrap_or_default();
        if let Some(vm) = vm {
            if vm.metadata.deletion_timestamp.is_some() {
                return waiting("the target is being deleted");
            }
            let source = content.pointer("/spec/source/virtualMachine/metadata/uid").and_then(Value::as_str);
            let ours = vm.annotations().get("restore.kubevirt.io/name") == Some(&key.name);
            if !ours && source != vm.metadata.uid.as_deref() {
                let why = "restore source and restore target are different but restore target already exists";
                return Ok(Progress::Failed(why.into()));
            }
            if is_restored(vm, restore) {
                // It may run again already: what is left is to say so.
                return self.machine(key, restore, &as_json, &content, Some(vm)).await;
            }
            if let Some(progress) = self.stop(key, restore, vm).await? {
                return Ok(progress);
            }
            if !lock(&self.client, vm, "restoreInProgress", &key.name, true).await? {
                return waiting("another operation on the target is in progress");
            }
        }
        if let Some(progress) = self.claims(key, &as_json, &content).await? {
            return Ok(progress);
        }
        self.machine(key, restore, &as_json, &content, vm).await
    }

    /// Sees that the VM does not run: stops it, or waits for its user, as the policy says.
    async fn stop(
        &self,
        key: &ObjectKey,
        restore: &VirtualMachineRestore,
        vm: &VirtualMachine,
    ) -> Result<Option<Progress>, StepError> {
        let runs = self.world.instances.get(&ObjectKey::new(&key.namespace, vm.name_any())).is_some();
        let noted = restore.annotations().contains_key(RUN_STRATEGY);
        let policy = restore.spec.target_readiness_policy.as_str();
        let strategy = if vm.spec.run_strategy.is_empty() {
            if vm.spec.running == Some(true) { "Always" } else { "Halted" }
        } else {
            vm.spec.run_strategy.as_str()
        };
        if runs && !noted {
            match policy {
                "FailImmediate" => {
                    return Ok(Some(Progress::Failed(
                        "the target is running; policy FailImmediate does not wait".into(),
                    )));
                }
                "WaitEventually" | "WaitGracePeriod" => {
                    let created = restore.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second());
                    let age = (Timestamp::now().as_second() - created) as f64;
                    if policy == "WaitGracePeriod" && age > GRACE {
                        let why = "the target was not stopped within 5 minutes, the grace period";
                        return Ok(Some(Progress::Failed(why.into())));
                    }
                    return Ok(Some(Progress::Waiting(
                        "Waiting for target to be ready: it is running".into(),
                    )));
                }
                _ => {}
            }
        }
        if !noted {
            // What the VM is to be again, once.
            let back = if runs || strategy == "Always" { strategy } else { "" };
            let patch = json!({"metadata": {"annotations": {RUN_STRATEGY: back}}});
            let api: Api<VirtualMachineRestore> = Api::namespaced(self.client.clone(), &key.namespace);
            gone(api.patch(&key.name, &params(), &Patch::Merge(patch)).await, "noting a VM's run strategy")?;
            return Ok(Some(Progress::Waiting("Operation in progress".into())));
        }
        let wants = !restore.annotations().get(RUN_STRATEGY).is_none_or(String::is_empty);
        if wants && strategy != "Halted" {
            let api: Api<VirtualMachine> = Api::namespaced(self.client.clone(), &key.namespace);
            let seen = &vm.metadata.resource_version;
            let patch = json!({"metadata": {"resourceVersion": seen}, "spec": {"runStrategy": "Halted", "running": null}});
            gone(
                api.patch(&vm.name_any(), &params(), &Patch::Merge(patch)).await,
                "stopping a VM that is restored",
            )?;
            let text = format!(
                "Stopping the virtual machine to restore it from snapshot {}",
                restore.spec.virtual_machine_snapshot_name
            );
            self.events.record(vm, Severity::Normal, "RestoreTargetStopping", text);
        }
        if runs {
            return Ok(Some(Progress::Waiting("Waiting for target to be ready: it is shutting down".into())));
        }
        Ok(None)
    }

    /// Makes the restored claims; `None` when all are bound.
    async fn claims(
        &self,
        key: &ObjectKey,
        restore: &Value,
        content: &Value,
    ) -> Result<Option<Progress>, StepError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        let uid = restore.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
        let mut unbound = Vec::new();
        for backup in content.pointer("/spec/volumeBackups").and_then(Value::as_array).into_iter().flatten() {
            let volume = backup["volumeName"].as_str().unwrap_or_default();
            let name = restored_claim(restore, content, volume);
            let there = api.get_opt(&name).await.map_err(StepError::api("reading a restored claim"))?;
            let ours = |c: &PersistentVolumeClaim| {
                c.annotations().get("restore.kubevirt.io/lastRestoreUID").is_some_and(|u| u == uid)
            };
            match there {
                Some(there) if ours(&there) => {
                    if there.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
                        unbound.push(name);
                    }
                }
                // In place: what was there makes room.
                Some(there) => {
                    if there.metadata.deletion_timestamp.is_none() {
                        gone(
                            api.delete(&name, &DeleteParams::default()).await,
                            "making room for a restored claim",
                        )?;
                    }
                    unbound.push(name);
                }
                None => {
                    let made: PersistentVolumeClaim = serde_json::from_value(claim(restore, content, backup))
                        .map_err(StepError::other("composing a restored claim"))?;
                    match api.create(&PostParams::default(), &made).await {
                        Ok(_) => info!(claim = name, "restored claim made"),
                        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
                        Err(error) => return Err(StepError::api("making a restored claim")(error)),
                    }
                    unbound.push(name);
                }
            }
        }
        let waiting = |name| Progress::Waiting(format!("Waiting for new PVCs: {name} is not bound yet"));
        Ok(unbound.first().map(waiting))
    }

    /// Gives the VM its spec, unlocks it and starts it again.
    async fn machine(
        &self,
        key: &ObjectKey,
        restore: &VirtualMachineRestore,
        as_json: &Value,
        content: &Value,
        vm: Option<&VirtualMachine>,
    ) -> Result<Progress, StepError> {
        let resource = ApiResource::erase::<VirtualMachine>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let back = restore.annotations().get(RUN_STRATEGY).cloned().unwrap_or_default();
        let Some(vm) = vm else {
            let spec = match vm_spec(as_json, content, None) {
                Ok(spec) => spec,
                Err(why) => return Ok(Progress::Failed(why)),
            };
            let source = &content["spec"]["source"]["virtualMachine"]["metadata"];
            let annotations = json!({"restore.kubevirt.io/name": key.name, "restore.kubevirt.io/lastRestoreUID": restore.uid()});
            let made = json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
                "metadata": {"name": restore.spec.target.name, "namespace": key.namespace, "annotations": annotations,
                    "labels": source.get("labels").cloned().unwrap_or_else(|| json!({}))},
                "spec": spec,
            });
            let made: DynamicObject =
                serde_json::from_value(made).map_err(StepError::other("composing a VM"))?;
            return match api.create(&PostParams::default(), &made).await {
                Ok(_) => self.complete(key, restore, content, None, "").await,
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                    Ok(Progress::Waiting("Operation in progress".into()))
                }
                Err(kube::Error::Api(status)) if status.code == 422 => Ok(Progress::Failed(status.message)),
                Err(error) => Err(StepError::api("making the restored VM")(error)),
            };
        };
        if !is_restored(vm, restore) {
            // The strategy stays as it is: the lock holds it.
            let strategy =
                if vm.spec.run_strategy.is_empty() { "Halted" } else { vm.spec.run_strategy.as_str() };
            let mut spec = match vm_spec(as_json, content, Some(strategy)) {
                Ok(spec) => spec,
                Err(why) => return Ok(Progress::Failed(why)),
            };
            if let (Some(running), Some(map)) = (vm.spec.running, spec.as_object_mut()) {
                map.remove("runStrategy");
                map.insert("running".into(), json!(running));
            }
            let mut whole =
                api.get(&vm.name_any()).await.map_err(StepError::api("reading the VM to restore"))?;
            whole.data["spec"] = spec;
            let annotations = whole.metadata.annotations.get_or_insert_default();
            annotations
                .insert("restore.kubevirt.io/lastRestoreUID".into(), restore.uid().unwrap_or_default());
            if let Some(from) = memory_of(content) {
                annotations.insert(RESUME_FROM.into(), from.to_owned());
            }
            return match api.replace(&vm.name_any(), &PostParams::default(), &whole).await {
                Ok(_) => Ok(Progress::Waiting("Operation in progress".into())),
                Err(kube::Error::Api(status)) if status.code == 422 => Ok(Progress::Failed(status.message)),
                Err(error) => Err(StepError::api("writing the restored VM")(error)),
            };
        }
        lock(&self.client, vm, "restoreInProgress", &key.name, false).await?;
        self.complete(key, restore, content, Some(vm), &back).await
    }

    async fn complete(
        &self,
        key: &ObjectKey,
        restore: &VirtualMachineRestore,
        content: &Value,
        vm: Option<&VirtualMachine>,
        back: &str,
    ) -> Result<Progress, StepError> {
        if let Some(vm) = vm {
            // What was kept in the middle of its work goes on with it, even if its VM was stopped meanwhile.
            let kept =
                content.pointer("/spec/source/virtualMachine/spec/runStrategy").and_then(Value::as_str);
            let kept = kept.filter(|_| memory_of(content).is_some()).unwrap_or_default();
            let back = if back.is_empty() { kept } else { back };
            self.give_back(back, vm).await?;
        }
        let as_json = serde_json::to_value(restore).unwrap_or_default();
        let restores: Vec<Value> = content
            .pointer("/spec/volumeBackups")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|b| {
                let volume = b["volumeName"].as_str().unwrap_or_default();
                json!({"volumeName": volume, "volumeSnapshotName": b["volumeSnapshotName"],
                    "persistentVolumeClaim": restored_claim(&as_json, content, volume)})
            })
            .collect();
        let api: Api<VirtualMachineRestore> = Api::namespaced(self.client.clone(), &key.namespace);
        let now = sheaf_plan::conditions::whole_seconds(Timestamp::now()).to_string();
        let seen = &restore.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": seen}, "status": {"complete": true, "restoreTime": now, "restores": restores,
            "conditions": [condition("Progressing", false, "Operation complete"), condition("Ready", true, "Operation complete")]}});
        gone(
            api.patch_status(&key.name, &params(), &Patch::Merge(patch)).await,
            "writing a restore's status",
        )?;
        let text = format!("Successfully completed VirtualMachineRestore {}", key.name);
        self.events.record(restore, Severity::Normal, "VirtualMachineRestoreComplete", text);
        info!(restore = %key, "VM restored");
        Ok(Progress::Complete)
    }

    /// The run strategy that the VM had.
    async fn give_back(&self, back: &str, vm: &VirtualMachine) -> Result<(), StepError> {
        if back.is_empty() || vm.spec.run_strategy == back {
            return Ok(());
        }
        let api: Api<VirtualMachine> =
            Api::namespaced(self.client.clone(), &vm.namespace().unwrap_or_default());
        let seen = &vm.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": seen}, "spec": {"runStrategy": back}});
        gone(api.patch(&vm.name_any(), &params(), &Patch::Merge(patch)).await, "starting a VM again")
    }

    async fn report(
        &self,
        api: &Api<VirtualMachineRestore>,
        restore: &VirtualMachineRestore,
        progress: &Progress,
    ) -> Result<(), StepError> {
        let (going, why) = match progress {
            Progress::Complete => return Ok(()),
            Progress::Waiting(why) => (true, why),
            Progress::Failed(why) => (false, why),
        };
        let said =
            restore.status.as_ref().and_then(|s| s.conditions.iter().find(|c| c.r#type == "Progressing"));
        if said.is_some_and(|c| c.reason == *why) {
            return Ok(());
        }
        let mut conditions = vec![condition("Progressing", going, why), condition("Ready", false, why)];
        if !going {
            conditions.push(condition("Failure", true, why));
            self.events.record(restore, Severity::Warning, "VirtualMachineRestoreError", why.clone());
        }
        let patch = json!({"status": {"complete": false, "conditions": conditions}});
        gone(
            api.patch_status(&restore.name_any(), &params(), &Patch::Merge(patch)).await,
            "writing a restore's status",
        )
    }
}

impl Controller for Clones {
    const NAME: &'static str = "vmclones";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(clone) = self.world.clones.get(key) else { return Ok(Next::Done) };
        let phase = clone.status.as_ref().map_or("", |s| s.phase.as_str());
        if clone.metadata.deletion_timestamp.is_some() || matches!(phase, "Succeeded" | "Failed") {
            return Ok(Next::Done);
        }
        let uid = clone.metadata.uid.clone().unwrap_or_default();
        let target = clone.spec.target.as_ref().map(|t| t.name.clone()).filter(|n| !n.is_empty());
        let target = target
            .unwrap_or_else(|| format!("clone-{}-{}", clone.spec.source.name, uid.get(..5).unwrap_or("x")));
        let of_snapshot = clone.spec.source.kind == "VirtualMachineSnapshot";
        let (snapshot, restore) = (format!("tmp-snapshot-{uid}"), format!("tmp-restore-{uid}"));
        let used = if of_snapshot { clone.spec.source.name.clone() } else { snapshot.clone() };
        let owner = json!([{"apiVersion": "clone.kubevirt.io/v1beta1", "kind": "VirtualMachineClone", "name": key.name,
            "uid": uid, "controller": true, "blockOwnerDeletion": true}]);

        let found = self.world.snapshots.get(&ObjectKey::new(&key.namespace, &used));
        let Some(found) = found else {
            if of_snapshot {
                return self
                    .say(
                        key,
                        &clone,
                        "",
                        &used,
                        &restore,
                        &target,
                        Some("the source snapshot does not exist"),
                    )
                    .await;
            }
            if self.world.vms.get(&ObjectKey::new(&key.namespace, &clone.spec.source.name)).is_none() {
                return self.say(key, &clone, "", "", "", &target, Some("the source does not exist")).await;
            }
            let made = json!({"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineSnapshot",
                "metadata": {"name": snapshot, "namespace": key.namespace, "ownerReferences": owner},
                "spec": {"source": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": clone.spec.source.name}}});
            self.make::<VirtualMachineSnapshot>(&key.namespace, made).await?;
            self.events.record(
                &*clone,
                Severity::Normal,
                "SnapshotCreated",
                format!("created snapshot {snapshot}"),
            );
            return self.say(key, &clone, "SnapshotInProgress", &used, "", &target, None).await;
        };
        if found.status.as_ref().and_then(|s| s.ready_to_use) != Some(true) {
            let failed = found.status.as_ref().is_some_and(|s| s.phase == "Failed");
            let phase = if failed { "Failed" } else { "SnapshotInProgress" };
            return self.say(key, &clone, phase, &used, "", &target, None).await;
        }
        let there = self.world.restores.get(&ObjectKey::new(&key.namespace, &restore));
        let Some(there) = there else {
            let content = content_name(found.metadata.uid.as_deref().unwrap_or_default());
            let Some(content) = self.world.contents.get(&ObjectKey::new(&key.namespace, content)) else {
                return Ok(Next::After(AGAIN));
            };
            let content = serde_json::to_value(&*content).unwrap_or_default();
            let patches: Vec<String> =
                clone_patches(&serde_json::to_value(&*clone).unwrap_or_default(), &content)
                    .iter()
                    .map(Value::to_string)
                    .collect();
            let made = json!({"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineRestore",
                "metadata": {"name": restore, "namespace": key.namespace, "ownerReferences": owner},
                "spec": {"target": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": target},
                    "virtualMachineSnapshotName": used, "patches": patches}});
            self.make::<VirtualMachineRestore>(&key.namespace, made).await?;
            self.events.record(
                &*clone,
                Severity::Normal,
                "RestoreCreated",
                format!("created restore {restore}"),
            );
            return self.say(key, &clone, "RestoreInProgress", &used, &restore, &target, None).await;
        };
        if there.status.as_ref().and_then(|s| s.complete) != Some(true) {
            let failure =
                there.status.as_ref().and_then(|s| s.conditions.iter().find(|c| c.r#type == "Failure"));
            let why = failure.map(|c| c.reason.clone());
            return self
                .say(key, &clone, "RestoreInProgress", &used, &restore, &target, why.as_deref())
                .await;
        }
        self.tidy(key, &clone, &target).await?;
        // What was only needed on the way.
        if !of_snapshot {
            let api: Api<VirtualMachineSnapshot> = Api::namespaced(self.client.clone(), &key.namespace);
            gone(api.delete(&snapshot, &DeleteParams::default()).await, "removing a clone's snapshot")?;
        }
        let api: Api<VirtualMachineRestore> = Api::namespaced(self.client.clone(), &key.namespace);
        gone(api.delete(&restore, &DeleteParams::default()).await, "removing a clone's restore")?;
        self.events.record(
            &*clone,
            Severity::Normal,
            "TargetVMCreated",
            format!("created target VM {target}"),
        );
        self.say(key, &clone, "Succeeded", "", "", &target, None).await
    }
}

impl Clones {
    async fn make<K>(&self, namespace: &str, object: Value) -> Result<(), StepError>
    where
        K: kube::Resource<DynamicType = ()>,
    {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<K>(&()));
        let object = serde_json::from_value(object).map_err(StepError::other("composing a clone's part"))?;
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
            Err(error) => Err(StepError::api("making a clone's part")(error)),
        }
    }

    /// Labels and annotations of the new VM itself that the filters do not let through.
    async fn tidy(
        &self,
        key: &ObjectKey,
        clone: &VirtualMachineClone,
        target: &str,
    ) -> Result<(), StepError> {
        let Some(vm) = self.world.vms.get(&ObjectKey::new(&key.namespace, target)) else { return Ok(()) };
        let mut labels = Map::new();
        for label in vm.labels().keys().filter(|k| !passes(k, &clone.spec.label_filters)) {
            labels.insert(label.clone(), Value::Null);
        }
        let mut annotations = Map::new();
        for name in ["restore.kubevirt.io/name", "restore.kubevirt.io/lastRestoreUID"] {
            annotations.insert(name.into(), Value::Null);
        }
        let api: Api<VirtualMachine> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = json!({"metadata": {"labels": labels, "annotations": annotations}});
        gone(api.patch(target, &params(), &Patch::Merge(patch)).await, "tidying a clone")
    }

    #[allow(clippy::too_many_arguments)] // One status, field by field.
    async fn say(
        &self,
        key: &ObjectKey,
        clone: &VirtualMachineClone,
        phase: &str,
        snapshot: &str,
        restore: &str,
        target: &str,
        why: Option<&str>,
    ) -> Result<Next, StepError> {
        let done = phase == "Succeeded";
        let next = if done || phase == "Failed" { Next::Done } else { Next::After(AGAIN) };
        let reason = why.unwrap_or(if done { "Operation complete" } else { "Operation in progress" });
        let status = clone.status.clone().unwrap_or_default();
        let said = status.conditions.iter().find(|c| c.r#type == "Progressing").map(|c| c.reason.as_str());
        if status.phase == phase && said == Some(reason) {
            return Ok(next);
        }
        let now = sheaf_plan::conditions::whole_seconds(Timestamp::now()).to_string();
        let patch = json!({"status": {
            "phase": phase, "snapshotName": snapshot, "restoreName": restore, "targetName": target,
            "creationTime": if done { json!(now) } else { Value::Null },
            "conditions": [condition("Progressing", !done && phase != "Failed", reason), condition("Ready", done, reason)],
        }});
        let api: Api<VirtualMachineClone> = Api::namespaced(self.client.clone(), &key.namespace);
        gone(api.patch_status(&key.name, &params(), &Patch::Merge(patch)).await, "writing a clone's status")?;
        Ok(next)
    }
}
