//! Writing: create, update and patch. Each ends in one compare-and-swap on the store.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;
use sheaf_meta::{
    apply, names, object, objectmeta,
    status::{FieldError, Status},
};
use sheaf_store::{Entry, Revision, StoreError, cache::At};

use super::{
    object::{Encoded, decode, encode_over, store_failure, view},
    options::{WriteOptions, invalid},
    patching::Patch,
    pipeline::{self, Prepared, Subject},
    render, strategy,
};
use crate::{
    body,
    core::{Core, Cx, accepts},
    http::{Outcome, Request},
    namespaces, random,
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
    // Before anything is written: an answer that nobody can read must not come after the deed.
    accepts(cx)?;
    let mut options = WriteOptions::parse(cx)?;
    let read = body::object(request.into_body(), &cx.headers).await?;
    (options.strange, options.body) = (read.strange, read.twice);
    let stored = create_object(core, cx, row, &options, read.value, false).await?;
    render::written(cx, row, StatusCode::CREATED, stored)
}

/// An object after a write: how it is answered.
pub(crate) struct Stored {
    pub(crate) value: Arc<Value>,
    /// What the store has, and since when; answers are made from it without writing the tree again. `None`: nothing was
    /// stored.
    pub(crate) bytes: Option<(Arc<Encoded>, Revision)>,
}

impl Stored {
    /// After a write that the store took: whoever writes the object next finds it at hand. What was just made is written
    /// again soon where a controller answers to it. Of other kinds the tree would only push out those that are needed,
    /// and be dropped later, from memory that no processor has at hand any more.
    fn keep(core: &Core, row: &Row, key: &str, mut value: Value, mut encoded: Encoded, entry: Entry) -> Self {
        let again = entry.created != entry.modified || row.info.status_subresource;
        let at = entry.modified;
        object::set_resource_version(&mut value, &at.0.to_string());
        // The store's bytes are the same, and kept by others too.
        encoded.bytes = entry.value;
        let (value, encoded) = (Arc::new(value), Arc::new(encoded));
        if again {
            core.lately.put(row, key, at, &value, &encoded);
        }
        Self { value, bytes: Some((encoded, at)) }
    }
}

impl From<Arc<Value>> for Stored {
    fn from(value: Arc<Value>) -> Self {
        Self { value, bytes: None }
    }
}

impl From<Value> for Stored {
    fn from(value: Value) -> Self {
        Arc::new(value).into()
    }
}

/// Creates an object that was decoded. Also the way in which an apply, and a PUT of some kinds, create.
async fn create_object(
    core: &Core,
    cx: &mut Cx,
    row: &Row,
    options: &WriteOptions,
    mut object: Value,
    applied: bool,
) -> Result<Stored, Status> {
    pipeline::identify(row, cx, &mut object, "")?;
    if !matches!(object::resource_version(&object), "" | "0") {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    objectmeta::reset_for_create(&mut object);
    object::set_uid(&mut object, &random::uuid()?);
    object::set_creation_timestamp(&mut object, cx.now);
    if row.info.generation {
        object::set_generation(&mut object, 1);
    }
    if row.info.status_subresource {
        object::as_map(&mut object).remove("status");
    }
    let base = object::generate_name(&object).to_string();
    let generate = object::name(&object).is_empty() && !base.is_empty();
    let warned = cx.warnings.len();
    for attempt in 1.. {
        let mut candidate = if generate { object.clone() } else { std::mem::take(&mut object) };
        if generate {
            cx.warnings.truncate(warned);
            object::set_name(&mut candidate, &names::generate_name(&base, random()?));
        }
        let subject = Subject { row, old: None, subresource: "", applied, settled: true };
        let _prepared = pipeline::prepare(core, cx, &subject, options, &mut candidate).await?;
        let key = row.key(object::namespace(&candidate), object::name(&candidate));
        if options.dry_run {
            return match core.store.get(&key, Revision(0)).await.map_err(store_failure)? {
                Some(there) => Err(taken(row, object::name(&candidate), Some(&there))),
                None => Ok(candidate.into()),
            };
        }
        let encoded = encode_over(row, &candidate, None)?;
        core.underway.put(&encoded);
        match core.store.create(&key, encoded.bytes.clone()).await {
            Ok(entry) => return Ok(Stored::keep(core, row, &key, candidate, encoded, entry)),
            Err(StoreError::Exists(_)) if generate && attempt < NAME_TRIES => {}
            Err(StoreError::Exists(_)) if generate => return Err(no_name(row, object::name(&candidate))),
            Err(StoreError::Exists(_)) => {
                let there = core.store.get(&key, Revision(0)).await.map_err(store_failure)?;
                return Err(taken(row, object::name(&candidate), there.as_ref()));
            }
            Err(e) => return Err(store_failure(e)),
        }
    }
    unreachable!("the loop ends by returning")
}

/// 409 for a name that is taken; says so if it will be free soon.
fn taken(row: &Row, name: &str, there: Option<&Entry>) -> Status {
    let mut status = Status::already_exists(row.info.resource(), name);
    let going = there.and_then(|entry| decode(row, entry).ok()).is_some_and(|o| object::is_deleting(&o));
    if going {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}

/// 409 for names that were drawn and all taken.
fn no_name(row: &Row, last: &str) -> Status {
    let mut status = Status::already_exists(row.info.resource(), last);
    status.message.push_str(", the server was not able to generate a unique name for the object");
    status.details.retry_after_seconds = Some(1);
    status
}

/// What a drawn suffix of a name is made of.
pub(crate) fn random() -> Result<[u32; names::SUFFIX_LEN], Status> {
    let mut out = [0u32; names::SUFFIX_LEN];
    for word in &mut out {
        *word = u32::from_le_bytes(random::bytes()?);
    }
    Ok(out)
}

/// PUT of an object or a subresource.
pub(crate) async fn update(core: &Arc<Core>, cx: &mut Cx, row: &Row, request: Request) -> Outcome {
    accepts(cx)?;
    let mut options = WriteOptions::parse(cx)?;
    let read = body::object(request.into_body(), &cx.headers).await?;
    (options.strange, options.body) = (read.strange, read.twice);
    let mut object = read.value;
    let name = cx.path.name.clone();
    if object::name(&object).is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    pipeline::identify(row, cx, &mut object, &name)?;
    if !(cx.path.subresource.is_empty() && strategy::creates_on_update(row)) {
        let written = mutate(core, cx, row, &options, &mut Change::Replace(object)).await?;
        return render::written(cx, row, StatusCode::OK, written);
    }
    for _ in 0..RETRIES {
        match mutate(core, cx, row, &options, &mut Change::Replace(object.clone())).await {
            Err(status) if status.code == 404 => {
                let mut object = object.clone();
                refuse_uid_of_nobody(row, &object)?;
                object::set_resource_version(&mut object, "");
                core.may_create(cx).await?;
                match create_object(core, cx, row, &options, object, false).await {
                    // Somebody else created it in between.
                    Err(status) if status.reason == "AlreadyExists" => {}
                    other => return render::written(cx, row, StatusCode::CREATED, other?),
                }
            }
            other => return render::written(cx, row, StatusCode::OK, other?),
        }
    }
    Err(Status::conflict(row.info.resource(), &name, Status::STALE))
}

/// 409 where an object that is to be made insists on being an older one.
fn refuse_uid_of_nobody(row: &Row, object: &Value) -> Result<(), Status> {
    let uid = object::uid(object);
    if uid.is_empty() {
        return Ok(());
    }
    let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: ");
    Err(Status::conflict(row.info.resource(), object::name(object), &why))
}

/// PATCH of an object or a subresource.
pub(crate) async fn patch(core: &Arc<Core>, cx: &mut Cx, row: &Row, request: Request) -> Outcome {
    accepts(cx)?;
    let mut options = WriteOptions::parse(cx)?;
    let content_type = body::content_type(&cx.headers);
    let bytes = body::read(request.into_body()).await?;
    let patch = Patch::parse(row, &content_type, &bytes, &mut options.strange)?;
    if let Patch::Apply(config) = patch {
        return apply(core, cx, row, options, config).await;
    }
    if options.force {
        let why = "may not be specified for non-apply patch";
        return Err(invalid("PatchOptions", &[FieldError::forbidden("force", why)]));
    }
    let written = mutate(core, cx, row, &options, &mut Change::Patch(patch)).await?;
    render::written(cx, row, StatusCode::OK, written)
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
        let why = "is required for apply patch";
        return Err(invalid("PatchOptions", &[FieldError::required("fieldManager", why)]));
    }
    options.refuse_twice()?;
    let name = cx.path.name.clone();
    pipeline::identify(row, cx, &mut config, &name)?;
    refuse_undeclared(row, &config)?;
    let mut change = Change::Apply(config);
    for _ in 0..RETRIES {
        match mutate(core, cx, row, &options, &mut change).await {
            Err(status) if status.code == 404 && cx.path.subresource.is_empty() => {}
            other => return render::written(cx, row, StatusCode::OK, other?),
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
        core.may_create(cx).await?;
        match create_object(core, cx, row, &options, object, true).await {
            // Somebody else created it in between.
            Err(status) if status.reason == "AlreadyExists" => {}
            other => return render::written(cx, row, StatusCode::CREATED, other?),
        }
    }
    Err(Status::conflict(row.info.resource(), &name, Status::STALE))
}

/// What is applied has owners for each field, and a field that the schema does not declare can have none. Clients know
/// this refusal by its words.
fn refuse_undeclared(row: &Row, config: &Value) -> Result<(), Status> {
    let unknown = row.schema().unknown_fields(config);
    let sentences: Vec<String> =
        unknown.iter().map(|field| format!(".{field}: field not declared in schema")).collect();
    let list = match &sentences[..] {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let (namespace, name) = (object::namespace(config), object::name(config));
    // The core group is the empty one: `/v1`.
    let (version, kind) = (format!("{}/{}", row.info.group, row.info.version), &row.info.kind);
    let place = if namespace.is_empty() { format!("/{name}") } else { format!("{namespace}/{name}") };
    Err(Status::new(
        500,
        "",
        format!("failed to create typed patch object ({place}; {version}, Kind={kind}): {list}"),
    ))
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
    /// Whether it is a whole object that says of itself that it follows this state. It is tried once: then it is stored, or
    /// refused, or somebody else was first; and so it need not be kept for another try.
    fn follows(&self, state: &Value) -> bool {
        let of = |object| Some(object::resource_version(object)).filter(|v| !matches!(*v, "" | "0"));
        matches!(self, Self::Replace(object) if of(object).is_some_and(|v| v == object::resource_version(state)))
    }

    /// What it makes of `current`. One that [`follows`](Self::follows) it is used up.
    fn on(
        &mut self,
        row: &Row,
        current: Option<&Value>,
        cx: &Cx,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let follows = current.is_some_and(|state| self.follows(state));
        match (self, current) {
            (Self::Replace(object), _) if follows => Ok(std::mem::take(object)),
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

/// An object as it is known before a write.
struct Known {
    value: Arc<Value>,
    modified: Revision,
    /// Whether it is known to be the newest state there is. One from the cache may be a moment old: then a refusal, or
    /// the finding that nothing changes, is only believed after a look into the store. What is written is checked by
    /// the store anyway.
    newest: bool,
    /// Its bytes, if they are at hand.
    encoded: Option<Arc<Encoded>>,
}

impl Known {
    fn read(row: &Row, entry: &Entry) -> Result<Self, Status> {
        let value = Arc::new(decode(row, entry)?);
        Ok(Self { value, modified: entry.modified, newest: true, encoded: None })
    }

    /// From the cache, which costs no disk and no thread.
    async fn recall(core: &Core, row: &Row, key: &str) -> Result<Option<Self>, Status> {
        let kind = core.kind(row).await?;
        // In this order: if the cache had reached by then what the store has of the kind now, what it gives is the newest.
        let reached = kind.revision();
        let item = kind.get(key, At::Any).await.map_err(store_failure)?;
        let changed = core.store.changed(&row.prefix).await.map_err(store_failure)?;
        if let Some((modified, value, encoded)) = core.lately.get(row, key)
            && modified >= item.as_ref().map_or(reached, |item| item.modified)
        {
            let newest = modified.max(reached) >= changed;
            return Ok(Some(Self { value, modified, newest, encoded: Some(encoded) }));
        }
        let Some(item) = item else { return Ok(None) };
        let value = Arc::new(view(row, &item)?.into_owned());
        Ok(Some(Self { value, modified: item.modified, newest: reached >= changed, encoded: None }))
    }

    /// As new as the store: from the cache, once it has come so far, which is a moment; or from the store itself.
    async fn fetch(core: &Core, row: &Row, key: &str) -> Result<Option<Self>, Status> {
        if let Ok(found) = core.kind(row).await?.get(key, At::Latest).await {
            let known = |item| {
                let value = Arc::new(view(row, &item)?.into_owned());
                Ok(Self { value, modified: item.modified, newest: true, encoded: None })
            };
            return found.map(known).transpose();
        }
        let entry = core.store.get(key, Revision(0)).await.map_err(store_failure)?;
        entry.map(|entry| Self::read(row, &entry)).transpose()
    }
}

/// Reads an object, changes it, and writes it back; again from the start when somebody else wrote in between and the
/// change did not insist on a resourceVersion.
pub(crate) async fn mutate(
    core: &Core,
    cx: &mut Cx,
    row: &Row,
    options: &WriteOptions,
    change: &mut Change,
) -> Result<Stored, Status> {
    let name = cx.path.name.clone();
    let key = row.key(&cx.path.namespace, &name);
    let warned = cx.warnings.len();
    // A dry run stores nothing that would show that its view was old.
    let mut known = if options.dry_run { None } else { Known::recall(core, row, &key).await? };
    for _ in 0..RETRIES {
        let old = match known.take() {
            Some(old) => old,
            None => match Known::fetch(core, row, &key).await? {
                Some(old) => old,
                None => return Err(Status::not_found(row.info.resource(), &name)),
            },
        };
        let follows = change.follows(&old.value);
        match attempt(core, cx, row, options, change, &key, &old).await {
            Ok(Written::Done(stored)) => return Ok(stored),
            Ok(Written::Nothing(value)) if old.newest => return Ok(value.into()),
            Err(status) if old.newest => return Err(status),
            outcome if follows => return settle(core, row, &key, &name, &old, outcome).await,
            // Lost a race. If the change insists on a revision, the next turn refuses it.
            Ok(Written::Lost(Some(entry))) => known = Some(Known::read(row, &entry)?),
            Ok(Written::Lost(None) | Written::Nothing(_)) | Err(_) => {}
        }
        cx.warnings.truncate(warned);
    }
    Err(Status::conflict(row.info.resource(), &name, Status::STALE))
}

/// What came of a change that [follows](Change::follows) a state which may be old: it holds if that is the newest one.
async fn settle(
    core: &Core,
    row: &Row,
    key: &str,
    name: &str,
    old: &Known,
    outcome: Result<Written, Status>,
) -> Result<Stored, Status> {
    match (Known::fetch(core, row, key).await?, outcome) {
        (None, _) => Err(Status::not_found(row.info.resource(), name)),
        (Some(now), Ok(Written::Nothing(value))) if now.modified == old.modified => Ok(value.into()),
        (Some(now), Err(status)) if now.modified == old.modified => Err(status),
        (Some(_), _) => Err(Status::conflict(row.info.resource(), name, Status::STALE)),
    }
}

/// What came of trying to write.
enum Written {
    /// It is stored.
    Done(Stored),
    /// There was nothing to store.
    Nothing(Arc<Value>),
    /// Somebody else wrote first, and this is what is there now.
    Lost(Option<Entry>),
}

async fn attempt(
    core: &Core,
    cx: &mut Cx,
    row: &Row,
    options: &WriteOptions,
    change: &mut Change,
    key: &str,
    known: &Known,
) -> Result<Written, Status> {
    let (name, old) = (cx.path.name.clone(), &*known.value);
    let subresource = cx.path.subresource.clone();
    let mut new = change.on(row, Some(old), cx, options)?;
    // A whole object was identified when it came.
    if !matches!(change, Change::Replace(_)) {
        pipeline::identify(row, cx, &mut new, &name)?;
    }
    let asked = object::resource_version(&new);
    let pinned = !matches!(asked, "" | "0");
    if pinned && asked != object::resource_version(old) {
        return Err(Status::conflict(row.info.resource(), &name, Status::STALE));
    }
    let asked_uid = object::uid(&new);
    if !asked_uid.is_empty() && asked_uid != object::uid(old) {
        let why = format!(
            "Precondition failed: UID in precondition: {asked_uid}, UID in object meta: {}",
            object::uid(old)
        );
        return Err(Status::conflict(row.info.resource(), &name, &why));
    }
    if !pinned && matches!(change, Change::Replace(_)) && !strategy::updates_unconditionally(row) {
        let error = FieldError {
            field: "metadata.resourceVersion".into(),
            reason: "FieldValueInvalid".into(),
            message: "Invalid value: 0x0: must be specified for an update".into(),
        };
        return Err(Status::invalid(&row.info.group, &row.info.plural, &name, &[error]));
    }
    let applied = matches!(change, Change::Apply(_));
    let settled = known.modified > core.begun && row.is_settled(known.modified);
    let subject = Subject { row, old: Some(old), subresource: &subresource, applied, settled };
    let prepared = pipeline::prepare(core, cx, &subject, options, &mut new).await?;
    store(core, row, key, known, new, prepared, options).await
}

/// Writes the new state, or removes the object if nothing holds it any more.
async fn store(
    core: &Core,
    row: &Row,
    key: &str,
    known: &Known,
    mut new: Value,
    prepared: Prepared,
    options: &WriteOptions,
) -> Result<Written, Status> {
    let old = &known.value;
    if pipeline::unchanged(&new, old, prepared.changes.as_ref()) {
        return Ok(Written::Nothing(old.clone()));
    }
    if options.dry_run {
        object::set_resource_version(&mut new, object::resource_version(old));
        return Ok(Written::Nothing(Arc::new(new)));
    }
    let outcome = if object::is_deleting(&new) && !namespaces::held(row, &new) {
        core.store.delete(key, known.modified).await.map(|at| {
            core.lately.forget(key);
            object::set_resource_version(&mut new, &at.0.to_string());
            new.into()
        })
    } else {
        let encoded = encode_over(row, &new, known.encoded.as_deref().zip(prepared.changes.as_ref()))?;
        core.underway.put(&encoded);
        let written = core.store.update(key, known.modified, encoded.bytes.clone()).await;
        written.map(|entry| Stored::keep(core, row, key, new, encoded, entry))
    };
    match outcome {
        Ok(stored) => Ok(Written::Done(stored)),
        Err(StoreError::Conflict(there)) => Ok(Written::Lost(there)),
        Err(e) => Err(store_failure(e)),
    }
}
