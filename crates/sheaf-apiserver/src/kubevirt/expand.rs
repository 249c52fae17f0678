//! expand-spec and expand-vm-spec: a VM with its instance type and its preference applied, as it would run. Nothing is
//! written.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Map, Value, json};
use sheaf_meta::status::{FieldError, Status};
use sheaf_plan::vm::instancetype::{Conflict, apply};

use super::{VM, object_path};
use crate::{
    core::Core,
    http::{Outcome, json as answer_json},
    internal,
};

/// `GET .../virtualmachines/NAME/expand-spec`.
pub(super) async fn stored(core: &Arc<Core>, namespace: &str, name: &str) -> Outcome {
    let path = object_path("virtualmachines", namespace, name);
    let vm = internal::get(core, &path).await?.ok_or_else(|| Status::not_found(VM, name))?;
    Ok(answer_json(StatusCode::OK, &expanded(core, namespace, vm).await?))
}

/// `PUT .../expand-vm-spec`, with the VM as body.
pub(super) async fn given(core: &Arc<Core>, namespace: &str, vm: Value) -> Outcome {
    if vm["kind"] != "VirtualMachine" {
        let text = format!("Object is not a valid VirtualMachine: its kind is {}", vm["kind"]);
        return Err(Status::bad_request(text));
    }
    let own = vm.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    if !own.is_empty() && own != namespace {
        let text = format!("VM namespace must be empty or {namespace}");
        return Err(Status::bad_request(text));
    }
    Ok(answer_json(StatusCode::OK, &expanded(core, namespace, vm).await?))
}

async fn expanded(core: &Arc<Core>, namespace: &str, mut vm: Value) -> Result<Value, Status> {
    let (instancetype, preference) = (
        matched(core, namespace, &vm, "instancetype").await?,
        matched(core, namespace, &vm, "preference").await?,
    );
    if instancetype.is_none() && preference.is_none() {
        return Ok(vm);
    }
    let mut spec = vm.pointer("/spec/template/spec").cloned().unwrap_or_else(|| json!({}));
    apply(&mut spec, &mut Map::new(), instancetype.as_ref(), preference.as_ref()).map_err(refused)?;
    vm["spec"]["template"]["spec"] = spec;
    if let Some(spec) = vm["spec"].as_object_mut() {
        spec.remove("instancetype");
        spec.remove("preference");
    }
    Ok(vm)
}

/// Why a VM cannot have what it names.
pub(super) fn refused(conflicts: Vec<Conflict>) -> Status {
    let text: Vec<String> = conflicts.iter().map(|c| c.why.clone()).collect();
    let mut status = Status::bad_request(text.join(", "));
    status.reason = "BadRequest";
    status
}

/// The same as errors of fields, for admission.
pub(super) fn field_errors(conflicts: &[Conflict]) -> Vec<FieldError> {
    conflicts
        .iter()
        .map(|c| FieldError {
            field: c.field.clone(),
            reason: "FieldValueInvalid".into(),
            message: c.why.clone(),
        })
        .collect()
}

/// The spec of the instance type or preference that a VM names; `None` if it names none.
pub(super) async fn matched(
    core: &Arc<Core>,
    namespace: &str,
    vm: &Value,
    what: &str,
) -> Result<Option<Value>, Status> {
    let matcher = &vm["spec"][what];
    let name = matcher["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    let path = match_path(namespace, what, matcher["kind"].as_str().unwrap_or_default(), name);
    match internal::get(core, &path).await? {
        Some(found) => Ok(found.get("spec").cloned()),
        None => Err(Status::bad_request(format!("{path} not found: the VM's spec.{what} names it"))),
    }
}

/// Where a matcher points; without a kind it is one of the cluster.
pub(super) fn match_path(namespace: &str, what: &str, kind: &str, name: &str) -> String {
    let plural = if what == "instancetype" { "instancetypes" } else { "preferences" };
    let base = "/apis/instancetype.kubevirt.io/v1beta1";
    let kind = kind.to_ascii_lowercase();
    if kind.is_empty() || kind.starts_with("virtualmachinecluster") {
        format!("{base}/virtualmachinecluster{plural}/{name}")
    } else {
        format!("{base}/namespaces/{namespace}/virtualmachine{plural}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matchers_point_to_the_cluster_unless_they_say_otherwise() {
        for (kind, want) in [
            ("", "/apis/instancetype.kubevirt.io/v1beta1/virtualmachineclusterinstancetypes/m"),
            (
                "VirtualMachineClusterInstancetype",
                "/apis/instancetype.kubevirt.io/v1beta1/virtualmachineclusterinstancetypes/m",
            ),
            (
                "VirtualMachineInstancetype",
                "/apis/instancetype.kubevirt.io/v1beta1/namespaces/n/virtualmachineinstancetypes/m",
            ),
        ] {
            assert_eq!(match_path("n", "instancetype", kind, "m"), want);
        }
    }
}
