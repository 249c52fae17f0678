//! The life of namespaces, as far as the API server holds it: what is created needs a namespace that is there and
//! stays; a namespace goes when nobody holds it any more.
//!
//! Not here: emptying a namespace, which is a controller's (it removes the finalizer `kubernetes` through
//! `/finalize` when nothing is left).

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sheaf_meta::{
    object,
    status::{Cause, ResourceRef, Status},
};
use sheaf_store::cache::At;

use crate::{
    core::{Core, Cx},
    extension::{Admission, Write},
    handler,
    registry::Row,
};

const NAMESPACES: ResourceRef<'static> = ResourceRef { group: "", plural: "namespaces" };

/// Whether a row is the kind Namespace.
pub fn is_namespace(row: &Row) -> bool {
    row.info.group.is_empty() && row.info.plural == "namespaces"
}

/// Of the controller that empties a namespace.
const FINALIZER: &str = "kubernetes";

/// The namespaces that every cluster has and that cannot be deleted.
pub const PERMANENT: &[&str] = &["default", "kube-system", "kube-public"];

/// The admission rules.
#[derive(Default)]
pub struct Lifecycle {
    /// The revision of a namespace that was looked at last and stays. A revision is that of one state of one object.
    stays: AtomicU64,
}

impl Admission for Lifecycle {
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        _cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            if is_namespace(write.row) {
                complete(object, write);
                return Ok(());
            }
            if write.row.namespaced() && write.old.is_none() {
                return self.may_create(core, write.row, object).await;
            }
            Ok(())
        })
    }
}

/// Fills in what every namespace has, and keeps what only `/finalize` may change: otherwise a namespace could go
/// before it is empty.
fn complete(object: &mut Value, write: &Write<'_>) {
    let name = object::name(object).to_string();
    if !name.is_empty() {
        object::set_label(object, "kubernetes.io/metadata.name", Some(&name));
    }
    match write.old {
        None => {
            // Whoever else wants to be asked before it goes may say so from the beginning.
            let mut finalizers = object.pointer("/spec/finalizers").and_then(Value::as_array).cloned();
            let all = finalizers.get_or_insert_default();
            if !all.iter().any(|name| name == FINALIZER) {
                all.push(json!(FINALIZER));
            }
            object["spec"] = json!({"finalizers": all});
            object["status"] = json!({"phase": "Active"});
        }
        Some(old) if write.subresource != "finalize" => object["spec"] = old["spec"].clone(),
        Some(_) => {}
    }
}

impl Lifecycle {
    async fn may_create(&self, core: &Core, row: &Row, object: &Value) -> Result<(), Status> {
        let name = object::namespace(object);
        let rows = core.registry.snapshot();
        let namespaces = rows.find("", "v1", "namespaces").ok_or_else(Status::no_such_path)?;
        let kind = core.kind(namespaces).await?;
        // As new as the store: what was told to be going takes nothing in.
        let there = kind.get(&namespaces.key("", name), At::Latest).await.map_err(handler::store_failure)?;
        let Some(there) = there else { return Err(Status::not_found(NAMESPACES, name)) };
        if self.stays.load(Ordering::Relaxed) == there.modified.0 {
            return Ok(());
        }
        if handler::field(&there, "metadata.deletionTimestamp")?.is_empty() {
            self.stays.store(there.modified.0, Ordering::Relaxed);
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {name} because it is being terminated");
        let mut status = Status::forbidden(row.info.resource(), object::name(object), &why);
        status.details.causes.push(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {name} is being terminated"),
            field: "metadata.namespace".into(),
        });
        Err(status)
    }
}

/// What a deletion adds to a namespace beside its timestamp.
pub fn on_delete(row: &Row, object: &mut Value) {
    if is_namespace(row) {
        object["status"]["phase"] = json!("Terminating");
    }
}

/// Whether anything still holds an object that is being deleted: a finalizer, a namespace's own, or the time that a pod
/// has to end.
pub fn held(row: &Row, object: &Value) -> bool {
    !object::finalizers(object).is_empty()
        || crate::life::runs_on(row, object)
        || (is_namespace(row)
            && object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty()))
}

/// 403 for the namespaces that every cluster has.
pub fn may_delete(row: &Row, name: &str) -> Result<(), Status> {
    if is_namespace(row) && PERMANENT.contains(&name) {
        return Err(Status::forbidden(NAMESPACES, name, "this namespace may not be deleted"));
    }
    Ok(())
}
