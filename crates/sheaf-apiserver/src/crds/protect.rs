//! Admission of definitions: what the server itself says in them, and that nobody breaks the kinds of the program.

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};

use super::{CLEANUP, controller::own_name, is_definition, naming};
use crate::{
    core::{Core, Cx},
    extension::{Admission, Write},
    internal,
    registry::Row,
};

/// The admission rules.
pub(crate) struct Definitions;

impl Admission for Definitions {
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(admit(core, cx, write, object)))
    }
}

fn admit(core: &Core, cx: &Cx, write: &Write<'_>, object: &mut Value) -> Result<(), Status> {
    if !is_definition(write.row) {
        return Ok(());
    }
    complete(object);
    let ours = is_own(core, object::name(object)) && cx.user.username != internal::identity().username;
    match write.old {
        None if ours => {
            return Err(Status::already_exists(write.row.info.resource(), object::name(object)));
        }
        Some(old) if ours => {
            for part in ["spec", "status"] {
                if object.get(part) != old.get(part) {
                    let name = object::name(old);
                    write
                        .said
                        .warn(format!("{part}: {name} defines a built-in kind; what it says stays as it is"));
                    object[part] = old[part].clone();
                }
            }
        }
        None => {
            let stored: Vec<&Value> = storage_version(object).into_iter().collect();
            let status = json!({
                "conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored,
            });
            object["status"] = status;
        }
        Some(_) if write.subresource.is_empty() => remember_storage(object),
        Some(_) => {}
    }
    Ok(())
}

/// Names that follow from others, and the conversion that there is.
fn complete(crd: &mut Value) {
    let Some(spec) = crd.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let kind = spec.get("names").and_then(|n| n.get("kind")).and_then(Value::as_str).map(String::from);
    if let (Some(kind), Some(names)) = (kind, spec.get_mut("names").and_then(Value::as_object_mut)) {
        for (field, value) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
            if names.get(field).is_none_or(|v| v.is_null() || v == "") {
                names.insert(field.into(), json!(value));
            }
        }
    }
    if spec.get("conversion").is_none_or(Value::is_null) {
        spec.insert("conversion".into(), json!({"strategy": "None"}));
    }
}

fn storage_version(crd: &Value) -> Option<&Value> {
    let versions = crd.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten();
    versions.filter(|v| v["storage"] == true).find_map(|v| v.get("name"))
}

/// Objects may be stored in each version that ever was the one for storing.
fn remember_storage(crd: &mut Value) {
    let Some(version) = storage_version(crd).cloned() else { return };
    let status = object::entry_map(object::as_map(crd), "status");
    let stored = status.entry("storedVersions").or_insert_with(|| json!([]));
    if let Some(stored) = stored.as_array_mut()
        && !stored.contains(&version)
    {
        stored.push(version);
    }
}

fn is_own(core: &Core, name: &str) -> bool {
    core.registry.built_in().iter().any(|r| r.info.is_crd && own_name(&r.info) == name)
}

/// 403 for the definitions of the program's own kinds.
pub(crate) fn may_delete(core: &Core, row: &Row, name: &str) -> Result<(), Status> {
    if is_definition(row) && is_own(core, name) {
        let why = "it defines a kind that is built in, which cannot be removed";
        return Err(Status::forbidden(row.info.resource(), name, why));
    }
    Ok(())
}

/// What a deletion adds to a definition beside its timestamp: it waits for its objects.
pub(crate) fn on_delete(row: &Row, object: &mut Value, now: jiff::Timestamp) {
    if !is_definition(row) {
        return;
    }
    object::add_finalizer(object, CLEANUP);
    let status = object::entry_map(object::as_map(object), "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        let why = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        naming::set(conditions, "Terminating", true, "InstanceDeletionPending", why, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_that_stored_is_remembered() {
        let mut crd = json!({"spec": {"versions": [{"name": "v1", "storage": false}, {"name": "v2", "storage": true}]},
            "status": {"storedVersions": ["v1"]}});
        remember_storage(&mut crd);
        remember_storage(&mut crd);
        assert_eq!(crd["status"]["storedVersions"], json!(["v1", "v2"]));
    }
}
