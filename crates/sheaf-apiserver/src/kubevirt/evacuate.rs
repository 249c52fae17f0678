//! What concerns moving a machine: migrate, evacuate/cancel, and the refusal of SEV, which no node here has.

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};
use sheaf_meta::{
    object,
    status::{ResourceRef, Status},
};

use super::{RETRIES, VM, VMI, dry_run, get_vmi, object_path, phase};
use crate::{core::Core, internal};

/// `PUT .../virtualmachines/NAME/migrate`: asks for a migration, as an object of its own.
pub(super) async fn migrate(
    core: &Arc<Core>,
    namespace: &str,
    name: &str,
    options: &Value,
) -> Result<(), Status> {
    let dry = dry_run(options)?;
    let path = object_path("virtualmachines", namespace, name);
    internal::get(core, &path).await?.ok_or_else(|| Status::not_found(VM, name))?;
    let vmi = get_vmi(core, namespace, name).await?.ok_or_else(|| Status::not_found(VMI, name))?;
    if phase(&vmi) != "Running" {
        return Err(Status::conflict(VM, name, "VM is not running"));
    }
    let conditions = vmi.pointer("/status/conditions").and_then(Value::as_array);
    let blocked =
        conditions.into_iter().flatten().find(|c| c["type"] == "LiveMigratable" && c["status"] == "False");
    if let Some(condition) = blocked {
        let (reason, why) = (condition["reason"].as_str(), condition["message"].as_str());
        let text = format!(
            "Internal error occurred: admission webhook \"migration-create-validator.kubevirt.io\" denied the request: Cannot \
             migrate VMI, Reason: {}, Message: {}",
            reason.unwrap_or_default(),
            why.unwrap_or_default()
        );
        return Err(Status::new(500, "InternalError", text));
    }
    let mut migration = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
        "metadata": {"generateName": "kubevirt-migrate-vm-", "namespace": namespace},
        "spec": {"vmiName": name},
    });
    if let Some(selector) = options.get("addedNodeSelector").filter(|s| s.is_object()) {
        migration["spec"]["addedNodeSelector"] = selector.clone();
    }
    let path = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstancemigrations{dry}");
    let made = internal::call(core, Method::POST, &path, "application/json", Some(&migration)).await;
    made.map(drop)
        .map_err(|s| Status::new(500, "InternalError", format!("Internal error occurred: {}", s.message)))
}

/// `PUT .../evacuate/cancel`: the machine need not leave its node any more.
pub(super) async fn cancel(
    core: &Arc<Core>,
    resource: &str,
    namespace: &str,
    name: &str,
    options: &Value,
) -> Result<(), Status> {
    let dry = dry_run(options)?;
    if resource == "virtualmachines" {
        let path = object_path("virtualmachines", namespace, name);
        internal::get(core, &path).await?.ok_or_else(|| Status::not_found(VM, name))?;
    }
    let asked = options["evacuationNodeName"].as_str().unwrap_or_default();
    for _ in 0..RETRIES {
        let vmi = get_vmi(core, namespace, name).await?.ok_or_else(|| Status::not_found(VMI, name))?;
        let marked = object::str_at(&vmi, &["status", "evacuationNodeName"]).to_owned();
        if !asked.is_empty() && asked != marked {
            let text = format!(
                "Internal error occurred: the evacuation node name {marked:?} of the instance is not {asked:?}"
            );
            return Err(Status::new(500, "InternalError", text));
        }
        if marked.is_empty() {
            return Ok(());
        }
        if drains(core, &marked).await? {
            let text =
                format!("node {marked} is still being drained: remove its taint kubevirt.io/drain first");
            return Err(Status::bad_request(text));
        }
        let patch = json!({
            "metadata": {"resourceVersion": object::resource_version(&vmi)},
            "status": {"evacuationNodeName": null},
        });
        let path = object_path("virtualmachineinstances", namespace, name);
        match internal::merge(core, &format!("{path}{dry}"), &patch).await {
            Err(status) if status.reason == "Conflict" => {}
            other => return other.map(drop),
        }
    }
    Err(Status::conflict(VMI, name, Status::STALE))
}

/// What an eviction of an instance's Pod comes to.
#[derive(Debug, PartialEq, Eq)]
enum Evicted {
    /// The guest is shut down.
    Allowed,
    /// The machine has to leave first, and cannot.
    Stuck,
    /// The machine is to leave; it may be marked already.
    Leaves {
        /// It was marked before.
        marked: bool,
    },
}

fn plan_eviction(vmi: &Value) -> Evicted {
    let conditions = vmi.pointer("/status/conditions").and_then(Value::as_array);
    let migratable =
        conditions.into_iter().flatten().any(|c| c["type"] == "LiveMigratable" && c["status"] == "True");
    match object::str_at(vmi, &["spec", "evictionStrategy"]) {
        "LiveMigrate" if !migratable => Evicted::Stuck,
        "LiveMigrateIfPossible" if !migratable => Evicted::Allowed,
        "LiveMigrate" | "LiveMigrateIfPossible" | "External" => {
            Evicted::Leaves { marked: !object::str_at(vmi, &["status", "evacuationNodeName"]).is_empty() }
        }
        _ => Evicted::Allowed,
    }
}

/// Stands between an eviction and the Pod of an instance. The texts are what `kubectl drain` and the descheduler look for.
pub(crate) async fn intercept_eviction(core: &Arc<Core>, pod: &Value, dry_run: bool) -> Result<(), Status> {
    let over = matches!(object::str_at(pod, &["status", "phase"]), "Succeeded" | "Failed");
    if object::label(pod, "kubevirt.io") != Some("virt-launcher") || over {
        return Ok(());
    }
    let (namespace, name) = (object::namespace(pod), pod.pointer("/metadata/ownerReferences/0/name"));
    let name = name.and_then(Value::as_str).unwrap_or_default();
    let Some(vmi) = get_vmi(core, namespace, name).await? else { return Ok(()) };
    let refuse = |text: String| Err(Status::new(429, "TooManyRequests", text));
    let triggered = format!("Eviction triggered evacuation of VMI \"{namespace}/{name}\"");
    match plan_eviction(&vmi) {
        Evicted::Allowed => Ok(()),
        Evicted::Stuck => {
            refuse(format!("VMI {name} is configured with an eviction strategy but is not live-migratable"))
        }
        Evicted::Leaves { marked: true } => refuse(format!("Evacuation in progress: {triggered}")),
        Evicted::Leaves { marked: false } => {
            if !dry_run {
                let node = object::str_at(&vmi, &["status", "nodeName"]);
                let patch = json!({"status": {"evacuationNodeName": node}});
                internal::merge(core, &object_path("virtualmachineinstances", namespace, name), &patch)
                    .await?;
            }
            refuse(triggered)
        }
    }
}

async fn drains(core: &Arc<Core>, node: &str) -> Result<bool, Status> {
    let node = internal::get(core, &format!("/api/v1/nodes/{node}")).await?;
    let taints = node.as_ref().and_then(|n| n.pointer("/spec/taints")).and_then(Value::as_array);
    Ok(taints.into_iter().flatten().any(|t| t["key"] == "kubevirt.io/drain"))
}

/// SEV's subresources: there are no machines that have it.
pub(super) async fn no_sev(core: &Arc<Core>, namespace: &str, name: &str) -> Status {
    match get_vmi(core, namespace, name).await {
        Ok(Some(_)) => {
            const SEV: ResourceRef<'static> = VMI;
            Status::conflict(SEV, name, "Attestation not requested for VMI")
        }
        Ok(None) => Status::not_found(VMI, name),
        Err(status) => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evictions_follow_the_strategy() {
        let vmi = |strategy: &str, migratable: &str| {
            json!({"spec": {"evictionStrategy": strategy},
                "status": {"conditions": [{"type": "LiveMigratable", "status": migratable}]}})
        };
        for (strategy, migratable, want) in [
            ("", "False", Evicted::Allowed),
            ("None", "True", Evicted::Allowed),
            ("LiveMigrate", "False", Evicted::Stuck),
            ("LiveMigrate", "True", Evicted::Leaves { marked: false }),
            ("LiveMigrateIfPossible", "False", Evicted::Allowed),
            ("LiveMigrateIfPossible", "True", Evicted::Leaves { marked: false }),
            ("External", "False", Evicted::Leaves { marked: false }),
        ] {
            assert_eq!(plan_eviction(&vmi(strategy, migratable)), want, "{strategy} {migratable}");
        }
        let mut marked = vmi("External", "False");
        marked["status"]["evacuationNodeName"] = json!("n");
        assert_eq!(plan_eviction(&marked), Evicted::Leaves { marked: true });
    }
}
