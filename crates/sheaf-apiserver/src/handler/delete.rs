//! Deleting: at once, or by a deletionTimestamp while finalizers hold the object.

use std::{borrow::Cow, sync::Arc};

use http::StatusCode;
use serde_json::{Value, json};
use sheaf_meta::{
    object,
    status::{FieldError, Status},
};
use sheaf_store::{Entry, Revision, StoreError, cache::At};

use super::{
    list,
    object::{decode, encode, store_failure, view},
    options::{self, Selection},
    render,
};
use crate::{
    body,
    core::{Core, Cx, success},
    crds,
    extension::{Operation, Said, Write},
    http::{Outcome, Request},
    life, namespaces,
    registry::Row,
};

/// Computed again at most this often when others write in between.
const RETRIES: usize = 16;
/// Finalizer of a deletion that waits for dependants.
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of a deletion that lets dependants go free.
const ORPHAN: &str = "orphan";

/// What the client wants of a deletion.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    dry_run: bool,
    grace_seconds: Option<i64>,
    uid: Option<String>,
    resource_version: Option<String>,
    finalizer: Propagation,
}

/// What happens to dependants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Propagation {
    /// They are deleted later, by the garbage collector. Finalizers of an earlier deletion stay.
    #[default]
    Unsaid,
    /// The same, said aloud.
    Background,
    /// The object waits for them.
    Foreground,
    /// They stay.
    Orphan,
}

impl DeleteOptions {
    async fn read(cx: &Cx, request: Request) -> Result<Self, Status> {
        let content_type = body::content_type(&cx.headers);
        let bytes = body::read(request.into_body()).await?;
        let given = body::decode(&bytes, &content_type)?.unwrap_or(Value::Null);
        let text = |p: &str| given.pointer(p).and_then(Value::as_str);
        let in_body =
            given.get("dryRun").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let dry_run = options::dry_run(cx.query.all("dryRun").chain(in_body))?;
        let grace = given.get("gracePeriodSeconds").and_then(Value::as_i64);
        let grace_query = cx.query.get("gracePeriodSeconds").map(|s| {
            s.parse().map_err(|_| Status::bad_request(format!("gracePeriodSeconds={s} is not a number")))
        });
        let orphan = given
            .get("orphanDependents")
            .and_then(Value::as_bool)
            .or_else(|| cx.query.raw("orphanDependents").map(|_| cx.query.flag("orphanDependents")));
        let policy = text("/propagationPolicy").or_else(|| cx.query.get("propagationPolicy"));
        let finalizer = match (policy, orphan) {
            (Some(policy), Some(_)) => {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                let error = FieldError::invalid("propagationPolicy", &json!(policy), why);
                return Err(options::invalid("DeleteOptions", &[error]));
            }
            (None, None) => Propagation::Unsaid,
            (None, Some(true)) | (Some("Orphan"), None) => Propagation::Orphan,
            (None, Some(false)) | (Some("Background"), None) => Propagation::Background,
            (Some("Foreground"), None) => Propagation::Foreground,
            (Some(other), None) => {
                let allowed = ["Foreground", "Background", "Orphan", "nil"];
                let error = FieldError::not_supported("propagationPolicy", &json!(other), &allowed);
                return Err(options::invalid("DeleteOptions", &[error]));
            }
        };
        Ok(Self {
            dry_run,
            grace_seconds: grace_query.transpose()?.or(grace),
            uid: text("/preconditions/uid").map(String::from),
            resource_version: text("/preconditions/resourceVersion").map(String::from),
            finalizer,
        })
    }

    /// As an object of `meta.k8s.io/v1`, which admission webhooks are shown.
    fn as_object(&self) -> Value {
        let mut out = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if self.dry_run {
            out["dryRun"] = json!(["All"]);
        }
        if let Some(seconds) = self.grace_seconds {
            out["gracePeriodSeconds"] = json!(seconds);
        }
        let policy = match self.finalizer {
            Propagation::Unsaid => None,
            Propagation::Background => Some("Background"),
            Propagation::Foreground => Some("Foreground"),
            Propagation::Orphan => Some("Orphan"),
        };
        if let Some(policy) = policy {
            out["propagationPolicy"] = json!(policy);
        }
        for (key, value) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
            if let Some(value) = value {
                out["preconditions"][key] = json!(value);
            }
        }
        out
    }

    fn check(&self, row: &Row, old: &Value) -> Result<(), Status> {
        let name = object::name(old);
        let refuse = |what: &str, wanted: &str, there: &str| {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {there}"
            );
            Err(Status::conflict(row.info.resource(), name, &why))
        };
        match (&self.uid, &self.resource_version) {
            (Some(uid), _) if uid != object::uid(old) => refuse("UID", uid, object::uid(old)),
            (_, Some(version)) if version != object::resource_version(old) => {
                refuse("ResourceVersion", version, object::resource_version(old))
            }
            _ => Ok(()),
        }
    }
}

/// DELETE of an object.
pub(crate) async fn delete(core: &Arc<Core>, cx: &mut Cx, row: &Row, request: Request) -> Outcome {
    if !cx.path.subresource.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let name = cx.path.name.clone();
    namespaces::may_delete(row, &name)?;
    crds::may_delete(core, row, &name)?;
    let options = DeleteOptions::read(cx, request).await?;
    let key = row.key(&cx.path.namespace, &name);
    match delete_key(core, cx, row, &key, &name, &options).await? {
        Deletion::Gone(last) if life::shows_deleted(row) => {
            render::object(cx, row, StatusCode::OK, Cow::Owned(last))
        }
        Deletion::Gone(last) => {
            let done = success(row, &name, object::uid(&last));
            render::respond(cx, crate::negotiate::Form::Json, StatusCode::OK, &done)
        }
        Deletion::Going(object) => render::object(cx, row, StatusCode::OK, Cow::Owned(object)),
    }
}

/// What a deletion came to.
enum Deletion {
    /// The object is gone; the state in which it went.
    Gone(Value),
    /// The object is there until its finalizers are gone.
    Going(Value),
}

async fn delete_key(
    core: &Core,
    cx: &mut Cx,
    row: &Row,
    key: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deletion, Status> {
    for _ in 0..RETRIES {
        let entry = core.store.get(key, Revision(0)).await.map_err(store_failure)?;
        let entry = entry.ok_or_else(|| Status::not_found(row.info.resource(), name))?;
        if let Some(outcome) = delete_entry(core, cx, row, &entry, options).await? {
            return Ok(outcome);
        }
    }
    Err(Status::conflict(row.info.resource(), name, Status::STALE))
}

/// `None`: somebody else wrote first.
async fn delete_entry(
    core: &Core,
    cx: &mut Cx,
    row: &Row,
    entry: &Entry,
    options: &DeleteOptions,
) -> Result<Option<Deletion>, Status> {
    let old = decode(row, entry)?;
    options.check(row, &old)?;
    review(core, cx, row, &old, options).await?;
    let mut new = old.clone();
    plan(row, &mut new, options, cx.now);
    let write = if namespaces::held(row, &new) {
        if new == old || options.dry_run {
            return Ok(Some(Deletion::Going(new)));
        }
        core.store.update(&entry.key, entry.modified, encode(row, &new)?).await.map(|e| {
            object::set_resource_version(&mut new, &e.modified.0.to_string());
            Deletion::Going(new)
        })
    } else {
        let mut last = life::last_state(row, &old, &new).clone();
        if options.dry_run {
            return Ok(Some(Deletion::Gone(last)));
        }
        core.store.delete(&entry.key, entry.modified).await.map(|at| {
            object::set_resource_version(&mut last, &at.0.to_string());
            Deletion::Gone(last)
        })
    };
    match write {
        Ok(outcome) => Ok(Some(outcome)),
        Err(StoreError::Conflict(_)) => Ok(None),
        Err(e) => Err(store_failure(e)),
    }
}

/// Asks admission whether an object may go.
async fn review(
    core: &Core,
    cx: &mut Cx,
    row: &Row,
    old: &Value,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let said = Said::default();
    let as_object = || options.as_object();
    let write = Write {
        row,
        operation: Operation::Delete,
        old: Some(old),
        subresource: "",
        dry_run: options.dry_run,
        options: &as_object,
        said: &said,
    };
    for plugin in &core.admission {
        plugin.delete(core, cx, &write).await?;
    }
    cx.warnings.extend(said.take_warnings());
    cx.audit.iter().for_each(|record| record.annotate_all(said.take_annotations()));
    Ok(())
}

/// Marks an object as being deleted. A later deletion may shorten the grace period and change what happens to
/// dependants, nothing else.
pub(crate) fn plan(row: &Row, object: &mut Value, options: &DeleteOptions, now: jiff::Timestamp) {
    let wanted = match options.finalizer {
        // An earlier deletion has said it, or the kind has a custom of its own.
        Propagation::Unsaid if life::orphans(row) && !object::has_finalizer(object, FOREGROUND) => {
            Some(Some(ORPHAN))
        }
        Propagation::Unsaid => None,
        Propagation::Background => Some(None),
        Propagation::Foreground => Some(Some(FOREGROUND)),
        Propagation::Orphan => Some(Some(ORPHAN)),
    };
    if let Some(wanted) = wanted {
        for finalizer in [FOREGROUND, ORPHAN] {
            if wanted == Some(finalizer) {
                object::add_finalizer(object, finalizer);
            } else {
                object::remove_finalizer(object, finalizer);
            }
        }
    }
    if object::is_deleting(object) {
        if let (Some(asked), Some(set)) =
            (options.grace_seconds, object::deletion_grace_period_seconds(object))
            && asked.max(0) < set
        {
            let end = object::deletion_timestamp(object).parse::<jiff::Timestamp>().ok();
            let sooner = jiff::SignedDuration::from_secs(set - asked.max(0));
            if let Some(end) = end.and_then(|end| end.checked_sub(sooner).ok()) {
                object::set_deletion_timestamp(object, Some(end));
            }
            object::set_deletion_grace_period_seconds(object, Some(asked.max(0)));
        }
        return;
    }
    let grace = life::grace_seconds(row, object, options.grace_seconds);
    let end = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
    object::set_deletion_timestamp(object, Some(end));
    object::set_deletion_grace_period_seconds(object, Some(grace));
    if row.info.generation {
        object::set_generation(object, object::generation(object) + 1);
    }
    namespaces::on_delete(row, object);
    crds::on_delete(row, object, now);
}

/// DELETE of a collection: everything that is selected, one by one; answers what was found.
pub(crate) async fn delete_collection(
    core: &Arc<Core>,
    cx: &mut Cx,
    row: &Arc<Row>,
    request: Request,
) -> Outcome {
    if row.namespaced() && cx.path.namespace.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let selection = Selection::parse(&cx.query, row, "")?;
    let options = DeleteOptions::read(cx, request).await?;
    let listed = list::all(core, row, &row.key(&cx.path.namespace, ""), &selection, At::Latest).await?;
    for item in &listed.items {
        let object = &*view(row, item)?;
        let name = object::name(object);
        if namespaces::may_delete(row, name).is_err() || crds::may_delete(core, row, name).is_err() {
            continue;
        }
        let key = row.key(object::namespace(object), name);
        match delete_key(core, cx, row, &key, name, &options).await {
            Ok(_) => {}
            // Somebody else was faster: that is what was wanted.
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    let metadata = serde_json::json!({"resourceVersion": listed.at.0.to_string()});
    let form = crate::core::accepts(cx)?;
    render::list(cx, row, form, listed.items, metadata)
}
