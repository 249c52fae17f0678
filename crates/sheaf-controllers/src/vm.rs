//! VirtualMachine: keeps an instance running, or not, as its run strategy and its users say.
//!
//! The rules are `sheaf_plan::vm`; here they are fed from caches and carried out. Also makes the claims that a VM brings
//! along in the annotation `harvesterhci.io/volumeClaimTemplates`, and deletes those that were marked to go with it.
//! Owns the VM's status, its finalizer and the existence of its instance.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheaf_api::kubevirt::{VirtualMachine, VirtualMachineInstance};
use sheaf_plan::claim::claims_of;
use sheaf_plan::snapshot::RESUME_FROM;
use sheaf_plan::vm::dump::without_dumps;
use sheaf_plan::vm::order;
use sheaf_plan::vm::{
    GENERATION_ANNOTATION, PORTS_ANNOTATION, VM_FINALIZER, VMI_FINALIZER, VmStep, VmWorld, fill_addresses,
    plan_vm, settled_addresses,
};
use sheaf_runtime::patch::{self, Target};
use sheaf_runtime::{Controller, Driver, EventRecorder, Next, ObjectKey, Severity, StepError, TaskGroup};
use tracing::info;

use crate::world::World;

pub(crate) const MANAGER: &str = "sheaf-vm";
/// JSON array of claims that a VM brings along; written by Harvester's clients.
const CLAIM_TEMPLATES: &str = "harvesterhci.io/volumeClaimTemplates";
/// An instance that was refused is tried again after this.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);
/// Names of claims, comma-separated, that are deleted together with the VM.
const REMOVED_CLAIMS: &str = "harvesterhci.io/removedPersistentVolumeClaims";

struct Vms {
    client: Client,
    world: Arc<World>,
    events: EventRecorder,
    /// Why the instance of a VM was refused when it was made last, until one is made.
    refused: Mutex<BTreeMap<ObjectKey, String>>,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, events: &EventRecorder, group: &TaskGroup) {
    let vms = Vms {
        client: client.clone(),
        world: world.clone(),
        events: events.clone(),
        refused: Mutex::default(),
    };
    let (of_claim, of_vm) = (world.clone(), world.clone());
    Driver::new(vms)
        .for_each(&world.vms)
        .for_each(&world.instances)
        .on(&world.claims, move |claim| of_claim.vms_of_claim.users(&ObjectKey::of(&**claim)))
        .on(&world.vms, move |vm| of_vm.followers.users(&ObjectKey::of(&**vm)))
        .after(&world.revisions)
        .spawn(group);
}

impl Controller for Vms {
    const NAME: &'static str = "vm";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(vm) = self.world.vms.get(key) else {
            self.refused(|all| all.remove(key));
            return Ok(Next::Done);
        };
        let named = self.world.instances.get(key);
        let own = named.as_ref().filter(|vmi| owned_by(vmi, &vm)).cloned();
        // An instance is made without dumps of memory: a claim of one keeps nobody from starting.
        let mut template = vm.spec.template.spec.clone();
        template.volumes.retain(|v| v.memory_dump.is_none());
        let claims = claims_of(&template);
        let claim = |name: &String| self.world.claims.get(&ObjectKey::new(&key.namespace, name));
        let missing: Vec<String> = claims.iter().filter(|c| claim(c).is_none()).cloned().collect();
        let unbound: Vec<String> =
            claims.iter().filter(|c| claim(c).is_some_and(|c| !bound(&c))).cloned().collect();
        if vm.metadata.deletion_timestamp.is_none() && self.make_claims(key, &vm).await? {
            return Ok(Next::Done);
        }
        let types = crate::vm_types::find(&self.client, &self.world, key, &vm).await?;
        let live = own.as_deref().and_then(|vmi| crate::vm_live::look(&self.world, &vm, vmi, &types));
        let problem = match (&types.problem, own.is_some()) {
            (Some((reason, why)), _) => Some((*reason, why.clone())),
            (None, false) => {
                types.expand(&json!({"spec": vm.spec.template.spec})).err().map(|e| ("FailedCreate", e))
            }
            (None, true) => None,
        };
        let refused = self.refused(|all| match own {
            Some(_) => all.remove(key),
            None => all.get(key).cloned(),
        });
        let waits = if own.is_none() { self.waits(key) } else { None };
        let plan = plan_vm(&VmWorld {
            waits: waits.as_deref(),
            refused: refused.as_deref(),
            problem: problem.as_ref().map(|(reason, why)| (*reason, why.as_str())),
            restart: live.as_ref().map(|l| l.restart.as_deref()),
            vm: &vm,
            vmi: own.as_deref(),
            foreign_vmi: named.is_some() && own.is_none(),
            missing_claims: &missing,
            unbound_claims: &unbound,
            now: Timestamp::now(),
            jitter: chance(),
        });
        let api: Api<VirtualMachine> = Api::namespaced(self.client.clone(), &key.namespace);
        match &plan.step {
            // These two write the VM itself; the status follows with the next look.
            VmStep::AddFinalizer => return self.finalizer(&api, &vm, true).await,
            VmStep::RemoveFinalizer => {
                self.remove_claims(key, &vm).await?;
                return self.finalizer(&api, &vm, false).await;
            }
            _ => {}
        }
        let mut after = (*vm).clone();
        after.status = Some(plan.status);
        if let Some(status) = &mut after.status {
            status.instancetype_ref = types.instancetype.as_ref().map(|t| t.reference.clone());
            status.preference_ref = types.preference.as_ref().map(|t| t.reference.clone());
        }
        let wrote = patch::write(&api, MANAGER, Target::Status, &vm, &after).await?;
        // With the VM as it is after that write, should there have been one.
        if !wrote && crate::vm_dump::advance(&self.client, key, &vm, own.as_deref()).await? {
            return Ok(Next::Done);
        }
        if let (Some(live), Some(vmi)) = (&live, own.as_deref())
            && vm.metadata.deletion_timestamp.is_none()
        {
            crate::vm_live::carry_out(&self.client, key, &vm, vmi, live).await?;
        } else if own.is_none() {
            crate::vm_live::tidy(&self.client, key, &vm, None).await?;
        }
        match plan.step {
            VmStep::CreateVmi { paused } => self.create(key, &vm, paused, &types).await,
            VmStep::DeleteVmi { uid } => self.delete(key, &vm, &uid).await,
            // Written since, it comes again as it is now.
            VmStep::Run if wrote => Ok(Next::Done),
            VmStep::Run => {
                let mut after = (*vm).clone();
                match &mut after.spec.running {
                    Some(running) => *running = true,
                    None => after.spec.run_strategy = "Always".into(),
                }
                patch::write(&api, MANAGER, Target::Main, &vm, &after).await?;
                Ok(Next::Done)
            }
            VmStep::WaitUntil(at) => {
                let wait = at.duration_since(Timestamp::now());
                Ok(Next::After(Duration::try_from(wait).unwrap_or_default()))
            }
            VmStep::Wait | VmStep::AddFinalizer | VmStep::RemoveFinalizer => Ok(Next::Done),
        }
    }
}

impl Vms {
    /// What a VM waits for before it starts.
    fn waits(&self, key: &ObjectKey) -> Option<String> {
        let mut after = BTreeMap::new();
        let mut next = vec![key.name.clone()];
        while let Some(name) = next.pop().filter(|_| after.len() < order::FOLLOWED_MAX) {
            let vm = self.world.vms.get(&ObjectKey::new(&key.namespace, &name));
            let names = vm.map(|vm| after_of(&vm)).unwrap_or_default();
            next.extend(names.iter().filter(|n| !after.contains_key(*n)).cloned());
            after.insert(name, names);
        }
        order::waits(&key.name, &after, |name| {
            let vm = self.world.vms.get(&ObjectKey::new(&key.namespace, name))?;
            let status = vm.status.as_ref();
            Some(status.is_some_and(|s| sheaf_plan::conditions::is_true(&s.conditions, "Ready")))
        })
    }

    fn refused<T>(&self, f: impl FnOnce(&mut BTreeMap<ObjectKey, String>) -> T) -> T {
        f(&mut self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the instance from the template as it is stored: a field that no view knows reaches the instance, too.
    async fn create(
        &self,
        key: &ObjectKey,
        vm: &VirtualMachine,
        paused: bool,
        types: &crate::vm_types::Types,
    ) -> Result<Next, StepError> {
        let resource = ApiResource::erase::<VirtualMachine>(&());
        let raw: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let stored = raw.get(&key.name).await.map_err(StepError::api("reading the VM's template"))?;
        if stored.metadata.resource_version != vm.metadata.resource_version
            && stored.metadata.generation != vm.metadata.generation
        {
            return Err(StepError::Conflict);
        }
        let spec = &stored.data["spec"];
        let template = match types.expand(&spec["template"]) {
            Ok(mut template) => {
                fill_addresses(&mut template, &settled_addresses(vm));
                without_dumps(&mut template);
                template
            }
            Err(why) => {
                self.events.record(vm, Severity::Warning, "FailedCreate", why);
                return Ok(Next::Done);
            }
        };
        crate::vm_live::keep_start(&self.client, &self.world, key, vm, spec, &template).await?;
        let instance = instance_of(key, vm, &template, paused);
        let resource = ApiResource::erase::<VirtualMachineInstance>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let instance: DynamicObject =
            serde_json::from_value(instance).map_err(StepError::other("composing the instance"))?;
        match api.create(&PostParams::default(), &instance).await {
            Ok(_) => {
                info!("instance created");
                let text = format!(
                    "Started the virtual machine by creating the new virtual machine instance {}",
                    key.name
                );
                self.events.record(vm, Severity::Normal, "SuccessfulCreate", text);
                Ok(Next::Done)
            }
            // The cache does not show it yet.
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(Next::Done),
            // A quota or a policy is against it. The VM says so, and it is tried again: who makes room tells nobody here.
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
                let before = self.refused(|all| all.insert(key.clone(), status.message.clone()));
                if before.as_ref() != Some(&status.message) {
                    self.events.record(vm, Severity::Warning, "FailedCreate", status.message.clone());
                    return Ok(Next::After(Duration::ZERO));
                }
                Ok(Next::After(REFUSED_AGAIN))
            }
            Err(error) => {
                self.events.record(vm, Severity::Warning, "FailedCreate", error.to_string());
                Err(StepError::api("creating the instance")(error))
            }
        }
    }

    async fn delete(&self, key: &ObjectKey, vm: &VirtualMachine, uid: &str) -> Result<Next, StepError> {
        let api: Api<VirtualMachineInstance> = Api::namespaced(self.client.clone(), &key.namespace);
        let preconditions = Preconditions { uid: Some(uid.into()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&key.name, &params).await {
            Ok(_) => {
                info!(uid, "instance deleted");
                let text =
                    format!("Stopped the virtual machine by deleting the virtual machine instance {uid}");
                self.events.record(vm, Severity::Normal, "SuccessfulDelete", text);
                Ok(Next::Done)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Next::Done),
            Err(error) => Err(StepError::api("deleting the instance")(error)),
        }
    }

    async fn finalizer(
        &self,
        api: &Api<VirtualMachine>,
        vm: &VirtualMachine,
        there: bool,
    ) -> Result<Next, StepError> {
        let mut list = vm.metadata.finalizers.clone().unwrap_or_default();
        list.retain(|f| f != VM_FINALIZER);
        if there {
            list.push(VM_FINALIZER.into());
        }
        let name = vm.metadata.name.clone().unwrap_or_default();
        let patch =
            json!({"metadata": {"finalizers": list, "resourceVersion": vm.metadata.resource_version}});
        match api.patch(&name, &params(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Next::Done),
            Err(error) => Err(StepError::api("writing the VM's finalizer")(error)),
            Ok(_) => Ok(Next::Done),
        }
    }

    /// Makes claims that the VM brings along and that do not exist; true if one was made.
    async fn make_claims(&self, key: &ObjectKey, vm: &VirtualMachine) -> Result<bool, StepError> {
        let api: Api<DynamicObject> = Api::namespaced_with(
            self.client.clone(),
            &key.namespace,
            &ApiResource::erase::<PersistentVolumeClaim>(&()),
        );
        let mut made = false;
        for claim in claim_templates(vm) {
            let name = claim["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if name.is_empty() || self.world.claims.get(&ObjectKey::new(&key.namespace, &name)).is_some() {
                continue;
            }
            let object = serde_json::from_value(claim).map_err(StepError::other("composing a claim"))?;
            match api.create(&PostParams::default(), &object).await {
                Ok(_) => {
                    made = true;
                    self.events.record(
                        vm,
                        Severity::Normal,
                        "SuccessfulCreate",
                        format!("Created claim {name}"),
                    );
                }
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
                Err(error) => {
                    let text = format!("claim {name} of {CLAIM_TEMPLATES} cannot be created: {error}");
                    self.events.record(vm, Severity::Warning, "FailedCreate", text);
                    return Err(StepError::api("creating a claim of the VM")(error));
                }
            }
        }
        Ok(made)
    }

    async fn remove_claims(&self, key: &ObjectKey, vm: &VirtualMachine) -> Result<(), StepError> {
        let annotations = vm.metadata.annotations.as_ref();
        let names = annotations.and_then(|a| a.get(REMOVED_CLAIMS)).map_or("", String::as_str);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        for name in names.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match api.delete(name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(StepError::api("deleting a claim with its VM")(error)),
            }
        }
        Ok(())
    }
}

/// The VMs that a VM waits for before it starts.
pub(crate) fn after_of(vm: &VirtualMachine) -> Vec<String> {
    let annotations = vm.metadata.annotations.as_ref();
    order::names(annotations.and_then(|a| a.get(order::START_AFTER)).map(String::as_str))
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

fn owned_by(vmi: &VirtualMachineInstance, vm: &VirtualMachine) -> bool {
    let uid = vm.metadata.uid.as_deref();
    vmi.metadata
        .owner_references
        .iter()
        .flatten()
        .any(|o| o.controller == Some(true) && Some(o.uid.as_str()) == uid)
}

fn bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

/// Claims of the annotation, as objects to create. What does not parse is refused by the API server on the VM's write.
fn claim_templates(vm: &VirtualMachine) -> Vec<Value> {
    let annotations = vm.metadata.annotations.as_ref();
    let text = annotations.and_then(|a| a.get(CLAIM_TEMPLATES)).map_or("", String::as_str);
    let templates: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    templates
        .into_iter()
        .map(|template| {
            let meta = &template["metadata"];
            json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {
                    "name": meta["name"],
                    "annotations": meta.get("annotations").cloned().unwrap_or_else(|| json!({})),
                    "labels": meta.get("labels").cloned().unwrap_or_else(|| json!({})),
                },
                "spec": template["spec"],
            })
        })
        .collect()
}

fn instance_of(key: &ObjectKey, vm: &VirtualMachine, template: &Value, paused: bool) -> Value {
    let mut annotations: BTreeMap<String, Value> =
        serde_json::from_value(template["metadata"]["annotations"].clone()).unwrap_or_default();
    let generation = vm.metadata.generation.unwrap_or_default();
    annotations.insert(GENERATION_ANNOTATION.into(), json!(generation.to_string()));
    // Devices are where they were.
    if let Some(ports) = vm.metadata.annotations.as_ref().and_then(|a| a.get(PORTS_ANNOTATION)) {
        annotations.insert(PORTS_ANNOTATION.into(), json!(ports));
    }
    // It goes on where a snapshot has it.
    if let Some(from) = vm.metadata.annotations.as_ref().and_then(|a| a.get(RESUME_FROM)) {
        annotations.insert(RESUME_FROM.into(), json!(from));
    }
    let mut labels: BTreeMap<String, Value> =
        serde_json::from_value(template["metadata"]["labels"].clone()).unwrap_or_default();
    labels.entry("vm.kubevirt.io/name".into()).or_insert_with(|| json!(key.name));
    let mut spec = if template["spec"].is_object() { template["spec"].clone() } else { json!({}) };
    if paused {
        spec["startStrategy"] = json!("Paused");
    }
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {
            "name": key.name, "namespace": key.namespace, "labels": labels, "annotations": annotations,
            "finalizers": [VMI_FINALIZER],
            "ownerReferences": [{
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": key.name,
                "uid": vm.metadata.uid, "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": spec,
        "status": {"virtualMachineRevisionName": crate::vm_live::revision_name(vm)},
    })
}

/// A number from 0 to 1; good enough to keep many VMs from starting at the same moment.
fn chance() -> f64 {
    let random = RandomState::new().hash_one(0u8);
    (random >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_takes_the_template_whole() {
        let mut vm = VirtualMachine::default();
        vm.metadata.uid = Some("u".into());
        vm.metadata.generation = Some(3);
        let template = json!({
            "metadata": {"labels": {"app": "x"}, "annotations": {"a": "b"}},
            "spec": {"domain": {"unknownField": 1}},
        });
        let made = instance_of(&ObjectKey::new("ns", "a"), &vm, &template, true);
        assert_eq!(made["spec"], json!({"domain": {"unknownField": 1}, "startStrategy": "Paused"}));
        assert_eq!(made["metadata"]["labels"], json!({"app": "x", "vm.kubevirt.io/name": "a"}));
        assert_eq!(made["metadata"]["annotations"], json!({"a": "b", GENERATION_ANNOTATION: "3"}));
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "u");
    }

    #[test]
    fn claim_templates_keep_annotations_and_drop_what_is_no_claim() {
        let mut vm = VirtualMachine::default();
        let text = json!([{"metadata": {"name": "d", "annotations": {"harvesterhci.io/imageId": "ns/i"}},
            "spec": {"storageClassName": "lh-1"}, "targetVolume": "x"}]);
        vm.metadata.annotations = Some(BTreeMap::from([(CLAIM_TEMPLATES.to_owned(), text.to_string())]));
        let made = claim_templates(&vm);
        assert_eq!(made[0]["metadata"]["annotations"]["harvesterhci.io/imageId"], "ns/i");
        assert_eq!(made[0]["spec"]["storageClassName"], "lh-1");
        assert_eq!(made[0].get("targetVolume"), None);
        vm.metadata.annotations = Some(BTreeMap::from([(CLAIM_TEMPLATES.to_owned(), "{broken".to_owned())]));
        assert!(claim_templates(&vm).is_empty());
    }
}
