//! memorydump and removememorydump: a request in the VM's status, which the VM controller carries on. Decisions are
//! `sheaf_plan::vm::dump`; what has to be there is looked up here.

use std::sync::Arc;

use serde_json::{Value, json};
use sheaf_meta::{
    object,
    status::{ResourceRef, Status},
};

use super::{Round, VM, VMI, get_vmi, object_path, phase, until_written};
use crate::{core::Core, internal};

const CLAIM: ResourceRef<'static> = ResourceRef { group: "", plural: "persistentvolumeclaims" };

/// Carries out a subresource.
pub(super) async fn change(
    core: &Arc<Core>,
    namespace: &str,
    name: &str,
    options: &Value,
    remove: bool,
) -> Result<(), Status> {
    let path = object_path("virtualmachines", namespace, name);
    until_written(VM, name, || {
        Box::pin(async {
            let vm = internal::get(core, &path).await?.ok_or_else(|| Status::not_found(VM, name))?;
            let associated = vm.pointer("/status/memoryDumpRequest/claimName").and_then(Value::as_str);
            let claim =
                options["claimName"].as_str().filter(|c| !c.is_empty()).or(associated).unwrap_or_default();
            if !remove {
                ready(core, namespace, name, claim).await?;
            }
            let request = sheaf_plan::vm::dump::ask(&vm, claim, remove);
            let request = request.map_err(|why| Status::conflict(VM, name, &why))?;
            let patch = json!({
                "metadata": {"resourceVersion": object::resource_version(&vm)},
                "status": {"memoryDumpRequest": request},
            });
            internal::merge(core, &format!("{path}/status"), &patch).await.map(drop).map_err(Round::Overtaken)
        })
    })
    .await
}

/// Whether there is something to dump, and a place for it.
async fn ready(core: &Arc<Core>, namespace: &str, name: &str, claim: &str) -> Result<(), Status> {
    if claim.is_empty() {
        return Err(Status::bad_request(
            "memory dump needs claimName, the PersistentVolumeClaim that is to hold it",
        ));
    }
    let vmi = get_vmi(core, namespace, name).await?.ok_or_else(|| Status::not_found(VMI, name))?;
    if phase(&vmi) != "Running" {
        return Err(Status::conflict(VMI, name, "VM is not running"));
    }
    let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}");
    match internal::get(core, &path).await? {
        Some(_) => Ok(()),
        None => Err(Status::not_found(CLAIM, claim)),
    }
}
