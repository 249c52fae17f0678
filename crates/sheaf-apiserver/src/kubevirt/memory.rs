//! memorydump and removememorydump: a request in the VM's status, which the VM controller and the machine's node carry out.

use std::sync::Arc;

use serde_json::{Value, json};
use sheaf_meta::{
    object,
    quantity::Quantity,
    status::{ResourceRef, Status},
};

use super::{RETRIES, VM, VMI, get_vmi, object_path, phase};
use crate::{core::Core, internal};

const CLAIM: ResourceRef<'static> = ResourceRef { group: "", plural: "persistentvolumeclaim" };
/// What a dump takes beside the guest's memory.
const OVERHEAD: i64 = 100 << 20;

/// Carries out a subresource.
pub(super) async fn change(
    core: &Arc<Core>,
    namespace: &str,
    name: &str,
    action: &str,
    options: &Value,
) -> Result<(), Status> {
    let path = object_path("virtualmachines", namespace, name);
    for _ in 0..RETRIES {
        let vm = internal::get(core, &path).await?.ok_or_else(|| Status::not_found(VM, name))?;
        let request = match action {
            "memorydump" => {
                let claim = claim_name(&vm, options)?;
                let vmi =
                    get_vmi(core, namespace, name).await?.ok_or_else(|| Status::not_found(VMI, name))?;
                if phase(&vmi) != "Running" {
                    return Err(Status::conflict(VMI, name, "VMI is not running"));
                }
                let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}");
                let pvc =
                    internal::get(core, &path).await?.ok_or_else(|| Status::not_found(CLAIM, &claim))?;
                fits(&pvc, &vmi, &claim)?;
                add(&vm, &claim)?
            }
            _ => remove(&vm)?,
        };
        let patch = json!({
            "metadata": {"resourceVersion": object::resource_version(&vm)},
            "status": {"memoryDumpRequest": request},
        });
        match internal::merge(core, &format!("{path}/status"), &patch).await {
            Err(status) if status.reason == "Conflict" => {}
            other => return other.map(drop),
        }
    }
    Err(Status::conflict(VM, name, Status::STALE))
}

fn known(vm: &Value) -> Option<&Value> {
    vm.pointer("/status/memoryDumpRequest").filter(|r| r.is_object())
}

/// The claim that is meant: the one in the request, else the one that was used before.
fn claim_name(vm: &Value, options: &Value) -> Result<String, Status> {
    let asked = options["claimName"].as_str().unwrap_or_default();
    let before = known(vm).and_then(|r| r["claimName"].as_str()).unwrap_or_default();
    match (asked, before) {
        ("", "") => Err(Status::bad_request("Memory dump requires claim name to be set")),
        ("", before) => Ok(before.into()),
        (asked, "") => Ok(asked.into()),
        (asked, before) if asked != before => Err(Status::conflict(
            VM,
            object::name(vm),
            &format!(
                "can't request memory dump for pvc [{asked}] while pvc [{before}] is still associated as the memory dump pvc"
            ),
        )),
        (asked, _) => Ok(asked.into()),
    }
}

fn fits(pvc: &Value, vmi: &Value, claim: &str) -> Result<(), Status> {
    let refuse = |why: &str| Err(Status::conflict(CLAIM, claim, why));
    if pvc.pointer("/spec/volumeMode").and_then(Value::as_str) == Some("Block") {
        return refuse("pvc should be filesystem pvc");
    }
    let modes = pvc.pointer("/spec/accessModes").and_then(Value::as_array);
    if modes.is_some_and(|m| m.iter().all(|m| m == "ReadOnlyMany")) {
        return refuse("pvc access mode can't be read only");
    }
    let bytes = |v: Option<&Value>| {
        let text = v.map(|v| v.as_str().map_or_else(|| v.to_string(), String::from))?;
        Quantity::parse(&text).ok()
    };
    let has = bytes(pvc.pointer("/spec/resources/requests/storage"));
    let guest = bytes(vmi.pointer("/spec/domain/memory/guest"))
        .or_else(|| bytes(vmi.pointer("/spec/domain/resources/requests/memory")));
    if let (Some(has), Some(guest)) = (has, guest)
        && has.value() < guest.value() + OVERHEAD
    {
        return refuse(&format!(
            "pvc size [{has}] should be bigger then [{}Mi]",
            (guest.value() + OVERHEAD) / (1 << 20)
        ));
    }
    Ok(())
}

fn add(vm: &Value, claim: &str) -> Result<Value, Status> {
    let phase = known(vm).map(|r| r["phase"].as_str().unwrap_or_default());
    let why = match phase {
        None | Some("Completed" | "Failed") => {
            let fresh = json!({"claimName": claim, "phase": "Associating", "remove": null, "startTimestamp": null,
                "endTimestamp": null, "fileName": null, "message": null});
            return Ok(fresh);
        }
        Some("Dissociating") => {
            format!("can't dump memory for pvc [{claim}] a remove memory dump request is in progress")
        }
        Some(_) => format!("memory dump request for pvc [{claim}] already in progress"),
    };
    Err(Status::conflict(VM, object::name(vm), &why))
}

fn remove(vm: &Value) -> Result<Value, Status> {
    let name = object::name(vm);
    let Some(request) = known(vm) else {
        let why = format!("can't remove memory dump association for vm {name}, no association found");
        return Err(Status::conflict(VM, name, &why));
    };
    let claim = request["claimName"].as_str().unwrap_or_default();
    if request["remove"] == true {
        let why = format!("memory dump remove request for pvc [{claim}] already exists");
        return Err(Status::conflict(VM, name, &why));
    }
    Ok(json!({"claimName": claim, "phase": "Dissociating", "remove": true}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_follow_one_another() {
        let vm =
            |request: Value| json!({"metadata": {"name": "a"}, "status": {"memoryDumpRequest": request}});
        let none = json!({"metadata": {"name": "a"}});
        assert_eq!(claim_name(&none, &json!({})).unwrap_err().code, 400);
        assert_eq!(claim_name(&none, &json!({"claimName": "c"})).unwrap(), "c");
        let done = vm(json!({"claimName": "c", "phase": "Completed"}));
        assert_eq!(claim_name(&done, &json!({})).unwrap(), "c");
        assert_eq!(claim_name(&done, &json!({"claimName": "d"})).unwrap_err().code, 409);
        assert_eq!(add(&done, "c").unwrap()["phase"], "Associating");
        assert_eq!(add(&vm(json!({"claimName": "c", "phase": "InProgress"})), "c").unwrap_err().code, 409);
        assert_eq!(remove(&none).unwrap_err().code, 409);
        assert_eq!(remove(&done).unwrap()["phase"], "Dissociating");
        assert_eq!(remove(&vm(json!({"claimName": "c", "remove": true}))).unwrap_err().code, 409);
    }

    #[test]
    fn a_claim_has_to_hold_the_guest() {
        let vmi = json!({"spec": {"domain": {"memory": {"guest": "1Gi"}}}});
        let pvc = |size: &str, mode: &str| {
            json!({"spec": {"volumeMode": mode, "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": size}}}})
        };
        assert!(fits(&pvc("2Gi", "Filesystem"), &vmi, "c").is_ok());
        assert!(fits(&pvc("1Gi", "Filesystem"), &vmi, "c").unwrap_err().message.contains("[1124Mi]"));
        assert!(fits(&pvc("2Gi", "Block"), &vmi, "c").unwrap_err().message.contains("filesystem"));
    }
}
