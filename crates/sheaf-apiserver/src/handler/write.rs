//! Writing: create, update and patch. Each ends in one compare-and-swap on the store.

use std::{borrow::Cow, sync::Arc};

use http::StatusCode;
use serde_json::Value;
use sheaf_meta::{
    apply, names, object, objectmeta,
    status::{FieldError, Status},
};
use sheaf_store::{Entry, Revision, StoreError};

use super::{
    object::{decode, encode, store_failure},
    options::WriteOptions,
    patching::Patch,
    pipeline::{self, Subject},
    render,
};
use crate::{
    body,
    core::{Core, Cx},
    http::{Outcome, Request},
    namespaces,
    registry::Row,
};

/// Writes that lost a race against another are computed again at most this often.
const RETRIES: usize = 8;
/// Names drawn for one `generateName` before giving up.
const NAME_TRIES: usize = 8;

/// POST to a collection.
pub(crate) async fn create(core: &Arc<Core>, cx: &mut Cx, row: &Row, request: Request) -> Outcome {
    if !cx.path.name.is_empty() || (row.namespaced() && cx.path.namespace.is_empty()) {
        return Err(Status::method_not_allowed());
    }
    let mut options = WriteOptions::parse(cx)?;
    let parsed = body::object(request.into_body(), &cx.headers).await?;
    options.duplicates = parsed.duplicates;
    let stored = create_object(core, cx, row, &options, parsed.value, false).await?;
    render::object(cx, row, StatusCode::CREATED, Cow::Owned(stored))
}

/// Creates an object that was decoded. Also the way in which an apply creates.
async fn create_object(
    core: &Core,
    cx: &mut Cx,
    row: &Row,
    options: &WriteOptions,
    mut object: Value,
    applied: bool,
) -> Result<Value, Status> {
    pipeline::identify(row, cx, &mut object, "")?;
    if !object::resource_version(&object).is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    objectmeta::reset_for_create(&mut object);
    object::set_uid(&mut object, &uuid::Uuid::new_v4().to_string());
    object::set_creation_timestamp(&mut object, cx.now);
    if row.info.generation {
        object::set_generation(&mut object, 1);
    }
    if row.info.status_subresource {
        object::as_map(&mut object).remove("status");
    }
    let base = object::generate_name(&object).to_string();
    let generate = object::name(&object).is_empty() && !base.is_empty();
    for attempt in 1.. {
        let mut candidate = object.clone();
        if generate {
            object::set_name(&mut candidate, &names::generate_name(&base, random()?));
        }
        let subject = Subject { row, old: None, subresource: "", applied };
        pipeline::prepare(core, cx, &subject, options, &mut candidate).await?;
        let key = row.key(object::namespace(&candidate), object::name(&candidate));
        if options.dry_run {
            if core.store.get(&key, Revision(0)).await.map_err(store_failure)?.is_some() {
                return Err(Status::already_exists(row.info.resource(), object::name(&candidate)));
            }
            return Ok(candidate);
        }
        match core.store.create(&key, encode(row, &candidate)?).await {
            Ok(entry) => {
                object::set_resource_version(&mut candidate, &entry.modified.0.to_string());
                return Ok(candidate);
            }
            Err(StoreError::Exists(_)) if generate && attempt < NAME_TRIES => {}
            Err(StoreError::Exists(_)) => {
                return Err(Status::already_exists(row.info.resource(), object::name(&candidate)));
            }
            Err(e) => return Err(store_failure(e)),
        }
    }
    unreachable!("the loop ends by returning")
}

fn random() -> Result<[u32; names::SUFFIX_LEN], Status> {
    use ring::rand::SecureRandom;
    let mut out = [0u32; names::SUFFIX_LEN];
    let rng = ring::rand::SystemRandom::new();
    for word in &mut out {
        let mut bytes = [0u8; 4];
        rng.fill(&mut bytes).map_err(|_| Status::internal("the system gives no random bytes"))?;
        *word = u32::from_le_bytes(bytes);
    }
    Ok(out)
}

/// PUT of an object or a subresource.
pub(crate) async fn update(core: &Arc<Core>, cx: &mut Cx, row: &Row, request: Request) -> Outcome {
    let mut options = WriteOptions::parse(cx)?;
    let parsed = body::object(request.into_body(), &cx.headers).await?;
    options.duplicates = parsed.duplicates;
    let mut object = parsed.value;
    let name = cx.path.name.clone();
    pipeline::identify(row, cx, &mut object, &name)?;
    let written = mutate(core, cx, row, &options, &Change::Replace(object)).await?;
    render::object(cx, row, StatusCode::OK, Cow::Owned(written))
}

/// PATCH of an object or a subresource.
pub(crate) async fn patch(core: &Arc<Core>, cx: &mut Cx, row: &Row, request: Request) -> Outcome {
    let mut options = WriteOptions::parse(cx)?;
    let content_type = body::content_type(&cx.headers);
    let bytes = body::read(request.into_body()).await?;
    let patch = Patch::parse(row, &content_type, &bytes, &mut options.duplicates)?;
    if let Patch::Apply(config) = patch {
        return apply(core, cx, row, options, config).await;
    }
    if options.force {
        return Err(invalid_option(FieldError::forbidden(
            "force",
            "may not be specified for non-apply patch",
        )));
    }
    let written = mutate(core, cx, row, &options, &Change::Patch(patch)).await?;
    render::object(cx, row, StatusCode::OK, Cow::Owned(written))
}

fn invalid_option(error: FieldError) -> Status {
    Status::invalid("meta.k8s.io", "PatchOptions", "", &[error])
}

/// Server-side apply: updates the object, or creates it.
async fn apply(
    core: &Arc<Core>,
    cx: &mut Cx,
    row: &Row,
    options: WriteOptions,
    mut config: Value,
) -> Outcome {
    if cx.query.get("fieldManager").is_none() {
        return Err(invalid_option(FieldError::required("fieldManager", "is required for apply patch")));
    }
    let name = cx.path.name.clone();
    pipeline::identify(row, cx, &mut config, &name)?;
    let change = Change::Apply(config);
    for _ in 0..RETRIES {
        match mutate(core, cx, row, &options, &change).await {
            Err(status) if status.code == 404 && cx.path.subresource.is_empty() => {}
            other => return render::object(cx, row, StatusCode::OK, Cow::Owned(other?)),
        }
        let mut object = change.on(row, None, cx, &options)?;
        if !object::uid(&object).is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                object::uid(&object)
            );
            return Err(Status::conflict(row.info.resource(), &name, &why));
        }
        object::set_resource_version(&mut object, "");
        match create_object(core, cx, row, &options, object, true).await {
            // Somebody else created it in between.
            Err(status) if status.reason == "AlreadyExists" => {}
            other => return render::object(cx, row, StatusCode::CREATED, Cow::Owned(other?)),
        }
    }
    Err(Status::conflict(row.info.resource(), &name, Status::STALE))
}

/// What a subresource makes of the present object.
type Compute = Box<dyn Fn(&Value) -> Result<Value, Status> + Send + Sync>;

/// What a write makes of the stored object.
pub(crate) enum Change {
    /// PUT.
    Replace(Value),
    /// One of the three patches.
    Patch(Patch),
    /// Server-side apply of a configuration.
    Apply(Value),
    /// What another representation of the object asks for.
    Computed(Compute),
}

impl Change {
    fn on(
        &self,
        row: &Row,
        current: Option<&Value>,
        cx: &Cx,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        match (self, current) {
            (Self::Replace(object), _) => Ok(object.clone()),
            (Self::Patch(patch), Some(current)) => patch.apply(row, current),
            (Self::Computed(compute), Some(current)) => compute(current),
            (Self::Patch(_) | Self::Computed(_), None) => {
                Err(Status::not_found(row.info.resource(), &cx.path.name))
            }
            (Self::Apply(config), current) => {
                let sub = cx.path.subresource.as_str();
                let part = match (row.info.status_subresource, sub) {
                    (_, "status") => apply::Part::Status,
                    (true, _) => apply::Part::WithoutStatus,
                    (false, _) => apply::Part::Whole,
                };
                let writer = pipeline::writer(cx, row, options, sub);
                let mut base = current.cloned();
                if let Some(base) = &mut base {
                    // What the configuration does not mention is no precondition.
                    object::set_resource_version(base, "");
                }
                apply::apply(base.as_ref(), config, part, options.force, row.schema(), &writer)
                    .map_err(|e| e.status())
            }
        }
    }
}

/// Reads an object, changes it, and writes it back; again from the start when somebody else wrote in between and the
/// change did not insist on a resourceVersion.
pub(crate) async fn mutate(
    core: &Core,
    cx: &mut Cx,
    row: &Row,
    options: &WriteOptions,
    change: &Change,
) -> Result<Value, Status> {
    let name = cx.path.name.clone();
    let key = row.key(&cx.path.namespace, &name);
    let subresource = cx.path.subresource.clone();
    for _ in 0..RETRIES {
        let entry = core.store.get(&key, Revision(0)).await.map_err(store_failure)?;
        let entry = entry.ok_or_else(|| Status::not_found(row.info.resource(), &name))?;
        let old = decode(row, &entry)?;
        let warned = cx.warnings.len();
        let mut new = change.on(row, Some(&old), cx, options)?;
        pipeline::identify(row, cx, &mut new, &name)?;
        let asked = object::resource_version(&new).to_string();
        let pinned = !asked.is_empty() && asked != "0";
        if pinned && asked != object::resource_version(&old) {
            return Err(Status::conflict(row.info.resource(), &name, Status::STALE));
        }
        let asked_uid = object::uid(&new);
        if !asked_uid.is_empty() && asked_uid != object::uid(&old) {
            let why = format!(
                "Precondition failed: UID in precondition: {asked_uid}, UID in object meta: {}",
                object::uid(&old)
            );
            return Err(Status::conflict(row.info.resource(), &name, &why));
        }
        let applied = matches!(change, Change::Apply(_));
        let subject = Subject { row, old: Some(&old), subresource: &subresource, applied };
        pipeline::prepare(core, cx, &subject, options, &mut new).await?;
        match store(core, row, &key, &entry, &old, new, options).await? {
            Some(written) => return Ok(written),
            // Lost a race. If the change insists on a revision, the next turn refuses it.
            None => cx.warnings.truncate(warned),
        }
    }
    Err(Status::conflict(row.info.resource(), &name, Status::STALE))
}

/// Writes the new state, or removes the object if nothing holds it any more. `None`: somebody else wrote first.
async fn store(
    core: &Core,
    row: &Row,
    key: &str,
    entry: &Entry,
    old: &Value,
    mut new: Value,
    options: &WriteOptions,
) -> Result<Option<Value>, Status> {
    if pipeline::unchanged(&new, old) {
        return Ok(Some(old.clone()));
    }
    if options.dry_run {
        object::set_resource_version(&mut new, object::resource_version(old));
        return Ok(Some(new));
    }
    if object::is_deleting(&new) && !namespaces::held(row, &new) {
        return match core.store.delete(key, entry.modified).await {
            Ok(at) => {
                object::set_resource_version(&mut new, &at.0.to_string());
                Ok(Some(new))
            }
            Err(StoreError::Conflict(_)) => Ok(None),
            Err(e) => Err(store_failure(e)),
        };
    }
    match core.store.update(key, entry.modified, encode(row, &new)?).await {
        Ok(entry) => {
            object::set_resource_version(&mut new, &entry.modified.0.to_string());
            Ok(Some(new))
        }
        Err(StoreError::Conflict(_)) => Ok(None),
        Err(e) => Err(store_failure(e)),
    }
}
