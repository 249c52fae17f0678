//! Carries on a dump of a guest's memory: the rules are `sheaf_plan::vm::dump`; here they are fed and written down.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use sheaf_api::kubevirt::{VirtualMachine, VirtualMachineInstance};
use sheaf_plan::vm::dump::{CLAIM_NOTE, plan_dump};
use sheaf_runtime::{ObjectKey, StepError};

/// Takes a step if there is one; true if something was written.
pub(crate) async fn advance(
    client: &Client,
    key: &ObjectKey,
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
) -> Result<bool, StepError> {
    if vm.status.as_ref().is_none_or(|s| s.memory_dump_request.is_none()) {
        return Ok(false);
    }
    let now = sheaf_plan::conditions::whole_seconds(Timestamp::now()).to_string();
    let (as_json, instance) = (serde_json::to_value(vm).unwrap_or_default(), vmi.map(serde_json::to_value));
    let instance = instance.and_then(Result::ok);
    let Some(step) = plan_dump(&as_json, instance.as_ref(), &now) else { return Ok(false) };
    let vms: Api<VirtualMachine> = Api::namespaced(client.clone(), &key.namespace);
    if let (Some(volumes), Some(vmi)) = (&step.instance_volumes, vmi) {
        let api: Api<VirtualMachineInstance> = Api::namespaced(client.clone(), &key.namespace);
        let patch = json!({
            "metadata": {"resourceVersion": vmi.metadata.resource_version}, "spec": {"volumes": volumes},
        });
        let written = api.patch(&key.name, &params(), &Patch::Merge(patch)).await;
        written.map_err(StepError::api("changing the volumes of an instance for a memory dump"))?;
    }
    let claim = vm.status.as_ref().and_then(|s| s.memory_dump_request.as_ref()).map(|r| r.claim_name.clone());
    if let (Some(note), Some(claim)) = (&step.note, claim) {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &key.namespace);
        let patch = json!({"metadata": {"annotations": {CLAIM_NOTE: note}}});
        match api.patch(&claim, &params(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            written => drop(written.map_err(StepError::api("noting a memory dump on its claim"))?),
        }
    }
    if let Some(volumes) = &step.template_volumes {
        let patch = json!({
            "metadata": {"resourceVersion": vm.metadata.resource_version},
            "spec": {"template": {"spec": {"volumes": volumes}}},
        });
        let written = vms.patch(&key.name, &params(), &Patch::Merge(patch)).await;
        written.map_err(StepError::api("changing the volumes of a VM for a memory dump"))?;
    } else if let Some(request) = &step.request {
        let patch = json!({
            "metadata": {"resourceVersion": vm.metadata.resource_version}, "status": {"memoryDumpRequest": request},
        });
        let written = vms.patch_status(&key.name, &params(), &Patch::Merge(patch)).await;
        written.map_err(StepError::api("writing the request of a memory dump"))?;
    }
    Ok(true)
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(crate::vm::MANAGER.into()), ..PatchParams::default() }
}
