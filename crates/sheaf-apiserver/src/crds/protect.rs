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

    fn review<'a>(
        &'a self,
        core: &'a Core,
        _cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(review(core, write, object)))
    }
}

fn admit(core: &Core, cx: &Cx, write: &Write<'_>, object: &mut Value) -> Result<(), Status> {
    if !is_definition(write.row) {
        return Ok(());
    }
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
            let names = json!({"plural": "", "kind": ""});
            object["status"] = json!({"conditions": [], "acceptedNames": names, "storedVersions": []});
        }
        Some(_) => {}
    }
    sheaf_crd::default_crd(object);
    Ok(())
}

/// Whether a definition may be stored. The program's own are as they are.
fn review(core: &Core, write: &Write<'_>, object: &Value) -> Result<(), Status> {
    if !is_definition(write.row) || is_own(core, object::name(object)) {
        return Ok(());
    }
    let errors = sheaf_crd::validate_crd(object, write.old);
    if errors.is_empty() {
        return Ok(());
    }
    let info = &write.row.info;
    Err(Status::invalid(&info.group, &info.kind, object::name(object), &errors))
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
