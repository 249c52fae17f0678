//! Admission of machines, where it needs to know who asks or what else there is.
//!
//! - An instance's spec is changed by the control plane and its nodes only.
//! - A VM that names an instance type or a preference has to fit it, and what is to be inferred from a volume is.
//! - A new VM has its controller's finalizer from the start, which spares each of them a write, and a deletion that comes before that write.
//! - Labels and annotations by which instances are led are not for users to set.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use sheaf_meta::{object, status::Status};
use sheaf_plan::vm::{VM_FINALIZER, instancetype::apply, order};
use sheaf_store::Revision;

use super::expand;
use crate::{
    core::{Core, Cx},
    extension::{Admission, Write},
};

/// Labels of instances that the control plane alone sets.
const RESERVED: [&str; 6] = [
    "kubevirt.io/created-by",
    "kubevirt.io/migrationJobUID",
    "kubevirt.io/nodeName",
    "kubevirt.io/migrationTargetNodeName",
    "kubevirt.io/schedulable",
    "kubevirt.io/install-strategy",
];
const INFER_KIND: &str = "-kind";

/// See the module.
pub struct Machines;

impl Admission for Machines {
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let kind = (write.row.info.group.as_str(), write.row.info.plural.as_str());
        match kind {
            ("kubevirt.io", "virtualmachineinstances") => {
                let refused = if control_plane(cx) { Ok(()) } else { instance(write.old, object) };
                Box::pin(std::future::ready(refused))
            }
            ("kubevirt.io", "virtualmachines") if write.subresource.is_empty() => {
                Box::pin(machine(core, write.old, object))
            }
            _ => Box::pin(std::future::ready(Ok(()))),
        }
    }
}

/// Controllers, agents and the server itself.
fn control_plane(cx: &Cx) -> bool {
    let name = cx.user.username.as_str();
    name.starts_with("system:node:")
        || name == "system:apiserver"
        || name.starts_with("system:sheaf")
        || cx.user.groups.iter().any(|g| g == "system:nodes" || g == "sheaf:controllers")
}

/// An object as it is stored, by its path: admission reads, and asks nobody's leave.
async fn stored(core: &Core, path: &str) -> Result<Option<Value>, Status> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(Status::no_such_path()),
    };
    let (namespace, plural, name) = match rest {
        ["namespaces", namespace, plural, name] => (*namespace, *plural, *name),
        [plural, name] => ("", *plural, *name),
        _ => return Err(Status::no_such_path()),
    };
    let registry = core.registry.snapshot();
    let row = registry.find(group, version, plural).ok_or_else(Status::no_such_path)?;
    let entry = core.store.get(&row.key(namespace, name), Revision(0)).await.map_err(Status::internal)?;
    entry.map(|e| serde_json::from_slice(&e.value).map_err(Status::internal)).transpose()
}

/// What a user may do to an instance.
fn instance(old: Option<&Value>, new: &Value) -> Result<(), Status> {
    let name = object::name(new);
    let refuse = |field: &str, why: String| {
        let error = sheaf_meta::status::FieldError {
            field: field.into(),
            reason: "FieldValueNotSupported".into(),
            message: why,
        };
        Err(Status::invalid("kubevirt.io", "VirtualMachineInstance", name, &[error]))
    };
    for label in RESERVED {
        let before = old.and_then(|o| object::label(o, label));
        if object::label(new, label) != before {
            return refuse(
                "metadata.labels",
                format!("creation of or change to label {label} is reserved: it is set by the system"),
            );
        }
    }
    let Some(old) = old else { return Ok(()) };
    if old.get("spec") != new.get("spec") {
        let text = "update of VMI object is restricted: change the VirtualMachine instead, from where changes reach its instance";
        return refuse("spec", text.into());
    }
    Ok(())
}

/// Refuses a start order that goes round in a circle.
async fn start_order(core: &Core, old: Option<&Value>, vm: &Value) -> Result<(), Status> {
    let given = object::annotation(vm, order::START_AFTER);
    if given.is_none() || old.is_some_and(|old| object::annotation(old, order::START_AFTER) == given) {
        return Ok(());
    }
    let (namespace, name) = (object::namespace(vm), object::name(vm));
    let mut after = BTreeMap::from([(name.to_owned(), order::names(given))]);
    let mut next = order::names(given);
    while let Some(other) = next.pop().filter(|_| after.len() < order::FOLLOWED_MAX) {
        if after.contains_key(&other) {
            continue;
        }
        let path = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachines/{other}");
        let found = stored(core, &path).await?;
        let names = order::names(found.as_ref().and_then(|o| object::annotation(o, order::START_AFTER)));
        next.extend(names.iter().cloned());
        after.insert(other, names);
    }
    let Some(circle) = order::circle(name, &after) else { return Ok(()) };
    let error = sheaf_meta::status::FieldError {
        field: format!("metadata.annotations[{}]", order::START_AFTER),
        reason: "FieldValueInvalid".into(),
        message: format!(
            "Invalid value: {:?}: would have the start go round in a circle: {}",
            given.unwrap_or_default(),
            circle.join(" -> ")
        ),
    };
    Err(Status::invalid("kubevirt.io", "VirtualMachine", name, &[error]))
}

async fn machine(core: &Core, old: Option<&Value>, vm: &mut Value) -> Result<(), Status> {
    if old.is_none() {
        hold(vm);
    }
    start_order(core, old, vm).await?;
    for what in ["instancetype", "preference"] {
        if old.is_none_or(|old| old["spec"][what] != vm["spec"][what]) {
            infer(core, vm, what).await?;
        }
    }
    let named = |what: &str| vm["spec"][what]["name"].as_str().is_some_and(|n| !n.is_empty());
    if !named("instancetype") && !named("preference") {
        return Ok(());
    }
    // What was accepted stays acceptable: somebody may have removed the type since.
    if old.is_some_and(|old| old["spec"] == vm["spec"]) {
        return Ok(());
    }
    let namespace = object::namespace(vm).to_owned();
    let mut found = Vec::new();
    for what in ["instancetype", "preference"] {
        found.push(match lookup(core, &namespace, vm, what).await {
            Ok(spec) => spec,
            // Upstream accepts a name that nobody knows yet; the VM then says so, and waits.
            Err(status) if status.code == 404 => return Ok(()),
            Err(status) => return Err(status),
        });
    }
    let (instancetype, preference) = (found.remove(0), found.remove(0));
    let mut spec = vm.pointer("/spec/template/spec").cloned().unwrap_or_else(|| json!({}));
    match apply(&mut spec, &mut Map::new(), instancetype.as_ref(), preference.as_ref()) {
        Ok(()) => Ok(()),
        Err(conflicts) => {
            let errors = expand::field_errors(&conflicts);
            Err(Status::invalid("kubevirt.io", "VirtualMachine", object::name(vm), &errors))
        }
    }
}

/// Puts the finalizer on a new VM, behind those that it came with. What is no list is refused by the schema.
fn hold(vm: &mut Value) {
    let list = object::metadata_mut(vm).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|finalizer| finalizer == VM_FINALIZER)
    {
        list.push(VM_FINALIZER.into());
    }
}

async fn lookup(core: &Core, namespace: &str, vm: &Value, what: &str) -> Result<Option<Value>, Status> {
    let matcher = &vm["spec"][what];
    let name = matcher["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    let path = expand::match_path(namespace, what, matcher["kind"].as_str().unwrap_or_default(), name);
    let found = stored(core, &path).await?;
    found.map(|o| o.get("spec").cloned()).ok_or_else(Status::no_such_path)
}

/// Fills in name and kind from the labels of the claim behind a volume.
async fn infer(core: &Core, vm: &mut Value, what: &str) -> Result<(), Status> {
    let matcher = vm["spec"][what].clone();
    let volume = matcher["inferFromVolume"].as_str().unwrap_or_default().to_owned();
    if volume.is_empty() || matcher["name"].as_str().is_some_and(|n| !n.is_empty()) {
        return Ok(());
    }
    let ignore = matcher["inferFromVolumeFailurePolicy"] == "Ignore";
    let label = format!("instancetype.kubevirt.io/default-{what}");
    match labels_of(core, vm, &volume).await {
        Ok(labels) => match labels.get(&label).and_then(Value::as_str) {
            Some(name) => {
                vm["spec"][what] = json!({"name": name});
                let kind = labels.get(&format!("{label}{INFER_KIND}")).and_then(Value::as_str);
                if let Some(kind) = kind {
                    vm["spec"][what]["kind"] = json!(kind);
                }
                Ok(())
            }
            None if ignore => forget(vm, what),
            None => {
                let text = format!(
                    "unable to find required {label} label on the volume {volume} of spec.{what}.inferFromVolume"
                );
                Err(Status::bad_request(text))
            }
        },
        Err(_) if ignore => forget(vm, what),
        Err(why) => Err(Status::bad_request(why)),
    }
}

fn forget(vm: &mut Value, what: &str) -> Result<(), Status> {
    if let Some(spec) = vm["spec"].as_object_mut() {
        spec.remove(what);
    }
    Ok(())
}

/// Labels of what a volume of the template is made of: the claim, or the template of a claim that is to be made.
async fn labels_of(core: &Core, vm: &Value, volume: &str) -> Result<Map<String, Value>, String> {
    let volumes = vm.pointer("/spec/template/spec/volumes").and_then(Value::as_array);
    let found = volumes.into_iter().flatten().find(|v| v["name"] == volume);
    let Some(found) = found else {
        return Err(format!("unable to find volume {volume} to infer defaults"));
    };
    let claim = found.pointer("/persistentVolumeClaim/claimName").and_then(Value::as_str);
    let Some(claim) = claim.or_else(|| found.pointer("/dataVolume/name").and_then(Value::as_str)) else {
        return Err(format!("unable to infer defaults from volume {volume} as type is not supported"));
    };
    let labels =
        |o: &Value| o.pointer("/metadata/labels").and_then(Value::as_object).cloned().unwrap_or_default();
    let templates = vm.pointer("/spec/dataVolumeTemplates").and_then(Value::as_array);
    let template = templates.into_iter().flatten().find(|t| t["metadata"]["name"] == claim);
    if let Some(template) = template.filter(|t| !labels(t).is_empty()) {
        return Ok(labels(template));
    }
    let namespace = object::namespace(vm);
    let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}");
    match stored(core, &path).await {
        Ok(Some(pvc)) => Ok(labels(&pvc)),
        Ok(None) => Err(format!("persistentvolumeclaims \"{claim}\" not found")),
        Err(status) => Err(status.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_machine_is_held_once() {
        let mut vm = json!({"metadata": {"finalizers": ["x/y"]}});
        hold(&mut vm);
        hold(&mut vm);
        assert_eq!(vm["metadata"]["finalizers"], json!(["x/y", VM_FINALIZER]));
    }

    #[test]
    fn users_do_not_change_instances() {
        let old = json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {"domain": {}}});
        let mut new = old.clone();
        new["metadata"]["labels"]["x"] = json!("2");
        assert!(instance(Some(&old), &new).is_ok());
        let mut changed = new.clone();
        changed["spec"]["hostname"] = json!("b");
        let refused = instance(Some(&old), &changed).unwrap_err();
        assert_eq!((refused.code, refused.details.causes[0].field.as_str()), (422, "spec"));
        new["metadata"]["labels"]["kubevirt.io/nodeName"] = json!("n");
        assert_eq!(instance(Some(&old), &new).unwrap_err().details.causes[0].field, "metadata.labels");
        assert!(instance(None, &json!({"metadata": {"name": "a"}})).is_ok());
    }
}
