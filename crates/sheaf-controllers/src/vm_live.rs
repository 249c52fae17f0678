//! What of a VM's changed template reaches its running instance; start revisions.
//!
//! The rules are `sheaf_plan::vm::live`; here they are fed from caches and carried out. A start revision is a
//! ControllerRevision that keeps the template as it was when an instance was made: without it nobody could tell a default
//! from a change. Owned by its VM; older ones go when a newer one is made.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheaf_api::kubevirt::{VirtualMachine, VirtualMachineInstance};
use sheaf_plan::snapshot::RESUME_FROM;
use sheaf_plan::vm::live::{LivePlan, LiveWorld, plan_absent, plan_live};
use sheaf_plan::vm::{GENERATION_ANNOTATION, PORTS_ANNOTATION, fill_addresses, settled_addresses};
use sheaf_runtime::{ObjectKey, StepError};
use tracing::info;

use crate::vm_types::Types;
use crate::world::World;

/// How the names of start revisions begin.
const START: &str = "revision-start-vm-";

/// Name of the start revision of a VM as it is.
pub(crate) fn revision_name(vm: &VirtualMachine) -> String {
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    format!("{START}{uid}-{}", vm.metadata.generation.unwrap_or_default())
}

fn started(world: &World, vmi: &VirtualMachineInstance) -> Option<Value> {
    let name = &vmi.status.as_ref()?.virtual_machine_revision_name;
    let key = ObjectKey::new(vmi.metadata.namespace.clone().unwrap_or_default(), name);
    let revision = world.revisions.get(&key)?;
    let data = &revision.data.as_ref()?.0;
    data.get("expanded").or_else(|| data.pointer("/spec/template")).cloned()
}

/// The template of a view as JSON: what defaults and unknown fields there are is left out on both sides alike.
fn as_json(template: &Value) -> Value {
    let typed: Option<sheaf_api::kubevirt::VirtualMachineInstanceTemplateSpec> =
        serde_json::from_value(template.clone()).ok();
    typed.and_then(|t| serde_json::to_value(t).ok()).unwrap_or_else(|| template.clone())
}

/// What follows from the template for the instance that runs; `None` if there is no such instance, or nobody knows what it
/// was made of.
pub(crate) fn look(
    world: &World,
    vm: &VirtualMachine,
    vmi: &VirtualMachineInstance,
    types: &Types,
) -> Option<LivePlan> {
    let phase = vmi.status.as_ref().map_or("", |s| s.phase.as_str());
    if vmi.metadata.deletion_timestamp.is_some() || matches!(phase, "Succeeded" | "Failed") {
        return None;
    }
    let mut started = as_json(&started(world, vmi)?);
    let template = types.expand(&serde_json::to_value(&vm.spec.template).ok()?).ok()?;
    let mut template = as_json(&template);
    // Addresses that the VM's spec leaves open: as they are settled, and as the instance got them.
    fill_addresses(&mut template, &settled_addresses(vm));
    let interfaces = &vmi.spec.domain.devices.interfaces;
    let has = interfaces.iter().map(|i| (i.name.clone(), i.mac_address.clone())).collect();
    fill_addresses(&mut started, &has);
    let instance = serde_json::to_value(vmi).ok()?;
    Some(plan_live(&LiveWorld { template: &template, started: &started, vmi: &instance }))
}

/// Carries out what follows; true if something was written.
pub(crate) async fn carry_out(
    client: &Client,
    key: &ObjectKey,
    vm: &VirtualMachine,
    vmi: &VirtualMachineInstance,
    plan: &LivePlan,
) -> Result<bool, StepError> {
    let mut patch = plan.vmi.clone().unwrap_or_else(|| json!({}));
    let annotation = |key: &str| vmi.metadata.annotations.as_ref().and_then(|a| a.get(key)).cloned();
    let generation = vm.metadata.generation.unwrap_or_default().to_string();
    if plan.unchanged && annotation(GENERATION_ANNOTATION).is_some_and(|g| g != generation) {
        patch["metadata"]["annotations"][GENERATION_ANNOTATION] = json!(generation);
    }
    let mut wrote = false;
    if patch != json!({}) {
        patch["metadata"]["resourceVersion"] = json!(vmi.metadata.resource_version);
        let api: Api<VirtualMachineInstance> = Api::namespaced(client.clone(), &key.namespace);
        let written = api.patch(&key.name, &params(), &Patch::Merge(patch)).await;
        written.map_err(StepError::api("changing a running instance"))?;
        if plan.vmi.is_some() {
            info!("the running instance follows the template");
        }
        wrote = true;
    }
    let mut own = json!({});
    if let Some(ports) = annotation(PORTS_ANNOTATION)
        && vm.metadata.annotations.as_ref().and_then(|a| a.get(PORTS_ANNOTATION)) != Some(&ports)
    {
        own["metadata"] = json!({"annotations": {PORTS_ANNOTATION: ports}});
    }
    let wrote_vm = write_vm(client, key, vm, Some(vmi), own).await?;
    Ok(wrote || wrote_vm)
}

/// Entries of NICs that were unplugged go from the VM's template.
pub(crate) async fn tidy(
    client: &Client,
    key: &ObjectKey,
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
) -> Result<bool, StepError> {
    write_vm(client, key, vm, vmi, json!({})).await
}

async fn write_vm(
    client: &Client,
    key: &ObjectKey,
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
    mut patch: Value,
) -> Result<bool, StepError> {
    let interfaces = &vm.spec.template.spec.domain.devices.interfaces;
    if interfaces.iter().any(|i| i.state == "absent") {
        let template = serde_json::to_value(&vm.spec.template).unwrap_or_default();
        let instance = vmi.and_then(|v| serde_json::to_value(v).ok());
        if let Some(spec) = plan_absent(&template, instance.as_ref()) {
            patch["spec"] = spec;
        }
    }
    // Once, and not at the starts that follow.
    if vmi.is_some() && vm.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(RESUME_FROM)) {
        patch["metadata"]["annotations"][RESUME_FROM] = Value::Null;
    }
    if patch == json!({}) {
        return Ok(false);
    }
    patch["metadata"]["resourceVersion"] = json!(vm.metadata.resource_version);
    let api: Api<VirtualMachine> = Api::namespaced(client.clone(), &key.namespace);
    match api.patch(&key.name, &params(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(StepError::api("writing what the VM's machine has")(error)),
    }
}

/// Keeps the template that an instance is about to be made of, and lets earlier ones go.
pub(crate) async fn keep_start(
    client: &Client,
    world: &Arc<World>,
    key: &ObjectKey,
    vm: &VirtualMachine,
    spec: &Value,
    expanded: &Value,
) -> Result<(), StepError> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &key.namespace);
    let name = revision_name(vm);
    let revision = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision",
        "metadata": {
            "name": name, "namespace": key.namespace,
            "ownerReferences": [{
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": key.name, "uid": vm.metadata.uid,
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "revision": vm.metadata.generation.unwrap_or_default(),
        "data": {"spec": spec},
    });
    let mut revision = revision;
    if spec.get("template") != Some(expanded) {
        revision["data"]["expanded"] = expanded.clone();
    }
    let revision: ControllerRevision =
        serde_json::from_value(revision).map_err(StepError::other("composing a start revision"))?;
    match api.create(&PostParams::default(), &revision).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
        Err(error) => return Err(StepError::api("keeping a start revision")(error)),
    }
    let prefix = format!("{START}{}-", vm.metadata.uid.as_deref().unwrap_or_default());
    for old in world.revisions.list_namespace(&key.namespace) {
        let old = old.metadata.name.clone().unwrap_or_default();
        if old.starts_with(&prefix) && old != name {
            match api.delete(&old, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(StepError::api("removing an old start revision")(error)),
            }
        }
    }
    Ok(())
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(crate::vm::MANAGER.into()), ..PatchParams::default() }
}
