//! What every write goes through between decoding and the store: identity, server-owned metadata, status rules,
//! pruning, defaulting, admission, validation, generation.

use serde_json::Value;
use sheaf_meta::{
    apply::{self, Writer},
    changes::Changes,
    object, objectmeta,
    status::{FieldError, Status},
};

use super::options::WriteOptions;
use crate::{
    core::{Core, Cx},
    extension::{Operation, Said, Write},
    registry::Row,
};

/// What is being written.
pub(crate) struct Subject<'a> {
    pub(crate) row: &'a Row,
    /// What is stored; `None` on creation.
    pub(crate) old: Option<&'a Value>,
    /// `status`, ... or empty.
    pub(crate) subresource: &'a str,
    /// Whether the managed fields were settled already, by an apply.
    pub(crate) applied: bool,
    /// Whether what is stored went through this server's schema of the kind; see [`Writer::settled`].
    pub(crate) settled: bool,
}

impl Subject<'_> {
    /// Whether the stored state was pruned and found good by what a new one is held to: what is as it was need not be looked
    /// at again then. A deletion marks objects without looking at them, kinds of users may tolerate what was there before, and where
    /// two kinds are kept in one place, in the form of one of them, the other may have been what was looked at.
    fn is_good(&self) -> bool {
        self.settled
            && self.row.custom.is_none()
            && !self.row.shared
            && self.row.info.rules.twin().is_none()
            && self.old.is_some_and(|old| !object::is_deleting(old))
    }
}

/// Checks that the object is the one that the path names, and fills in what the path says. `name` is empty on
/// creation.
pub(crate) fn identify(row: &Row, cx: &Cx, object: &mut Value, name: &str) -> Result<(), Status> {
    let (api_version, kind) = (object::api_version(object), object::kind(object));
    if api_version.is_empty() && kind.is_empty() {
        object::set_gvk(object, &row.api_version, &row.info.kind);
    } else if kind != row.info.kind {
        return Err(Status::bad_request(format!(
            "the kind of the object ({kind}) does not match the kind of the request ({})",
            row.info.kind
        )));
    } else if api_version != row.api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            row.api_version
        )));
    }
    if object.get("metadata").is_some_and(|m| !m.is_object() && !m.is_null()) {
        return Err(Status::bad_request("metadata is not an object"));
    }
    if row.namespaced() {
        let given = object::namespace(object);
        if given.is_empty() {
            object::set_namespace(object, &cx.path.namespace);
        } else if given != cx.path.namespace {
            return Err(Status::bad_request(if name.is_empty() {
                "the namespace of the provided object does not match the namespace sent on the request".into()
            } else {
                format!(
                    "the namespace of the object ({given}) does not match the namespace on the request ({})",
                    cx.path.namespace
                )
            }));
        }
    } else {
        object::set_namespace(object, "");
    }
    if !name.is_empty() {
        match object::name(object) {
            "" => object::set_name(object, name),
            given if given != name => {
                return Err(Status::bad_request(format!(
                    "the name of the object ({given}) does not match the name on the URL ({name})"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is known of a new state.
pub(crate) struct Prepared {
    /// To be kept until it is stored: admission may have promised something on it.
    pub(crate) _held: Vec<Box<dyn std::any::Any + Send>>,
    /// How it differs from the stored one, but for what the server counts and records itself; if that was found out.
    pub(crate) changes: Option<Changes>,
}

/// Completes and checks a new state. Pure but for admission, which may read.
pub(crate) async fn prepare(
    core: &Core,
    cx: &mut Cx,
    subject: &Subject<'_>,
    options: &WriteOptions,
    new: &mut Value,
) -> Result<Prepared, Status> {
    let Subject { row, old, subresource, applied, settled } = *subject;
    let good = old.filter(|_| subject.is_good());
    if old.is_none() && row.terminating() {
        let why = "create not allowed while custom resource definition is terminating";
        return Err(Status::new(405, "MethodNotAllowed", why));
    }
    if let Some(old) = old {
        confine(row, subresource, old, new);
    }
    let sent = good.map(|old| Changes::between(old, new));
    match (old, &sent) {
        (Some(old), Some(sent)) => objectmeta::carry_over_changed(new, old, sent),
        (Some(old), None) => objectmeta::carry_over(new, old),
        (None, _) => {}
    }
    super::schema::shape(cx, row, options, new, sent.as_ref())?;
    row.info.rules.default(new, old);
    let said = Said::default();
    let operation = if old.is_some() { Operation::Update } else { Operation::Create };
    let as_object = || options.as_object(operation);
    let (dry_run, options_of) = (options.dry_run, &as_object);
    let write = Write { row, operation, old, subresource, dry_run, options: options_of, said: &said };
    for plugin in &core.admission {
        plugin.admit(core, cx, &write, new).await?;
    }
    if said.is_changed() {
        if let Some(old) = old {
            confine(row, subresource, old, new);
            objectmeta::carry_over(new, old);
        }
        super::schema::shape_again(row, new);
        row.info.rules.default(new, old);
    }
    objectmeta::drop_empty(new);
    // Compared anew: defaults and admission may have changed it.
    let changes = good.zip(sent).map(|(old, sent)| sent.again(old, new));
    let (scope, rule) = (row.info.scope, row.name_rule());
    let mut errors = match &changes {
        Some(changes) => objectmeta::validate_changed(new, changes, scope, rule),
        None => objectmeta::validate(new, scope, rule),
    };
    errors.extend(match (old, &changes) {
        (Some(old), Some(changes)) => objectmeta::validate_update_changed(new, old, changes),
        (Some(old), None) => objectmeta::validate_update(new, old),
        (None, _) => Vec::new(),
    });
    errors.extend(super::schema::check(cx, row, old, new, changes.as_ref()));
    if errors.is_empty() {
        errors.extend(row.info.rules.validate(new, old));
    }
    refuse(row, new, &errors)?;
    if let Some(old) = old
        && row.info.generation
        && !changes.as_ref().map_or_else(|| row.same_desired_state(new, old), Changes::leave_desired_state)
    {
        object::set_generation(new, object::generation(old) + 1);
    }
    cx.warnings.extend(row.info.rules.warnings(new));
    if !applied {
        let writer = Writer { settled, ..writer(cx, row, options, subresource) };
        apply::update_changed(old, new, changes.as_ref(), row.schema(), &writer);
    }
    for plugin in &core.admission {
        plugin.review(core, cx, &write, new).await?;
    }
    cx.warnings.extend(said.take_warnings());
    cx.audit.iter().for_each(|record| record.annotate_all(said.take_annotations()));
    Ok(Prepared { _held: said.take_held(), changes })
}

/// Who writes, for the managed fields.
pub(crate) fn writer<'a>(
    cx: &Cx,
    row: &'a Row,
    options: &'a WriteOptions,
    subresource: &'a str,
) -> Writer<'a> {
    let (manager, api_version) = (&options.manager, &row.api_version);
    Writer { manager, api_version, subresource, now: cx.now, settled: false }
}

/// 422 if there is anything to refuse. A field of the wrong type is 400 for Kubernetes' own kinds, whose bodies upstream
/// cannot even read then; custom ones are read first and validated after.
fn refuse(row: &Row, object: &Value, errors: &[FieldError]) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    let (kind, version) = (&row.info.kind, &row.info.version);
    // So is a text that is none of its format: bytes, times, quantities.
    let unread = |e: &&FieldError| {
        e.reason == "FieldValueTypeInvalid"
            || e.message.contains(" in body must be of type ")
            || e.message.contains(": quantities must match the regular expression ")
    };
    let mistyped = errors.iter().find(unread);
    if let (Some(FieldError { field, message, .. }), true) = (mistyped, row.built_in()) {
        return Err(Status::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {field}: {message}"
        )));
    }
    Err(Status::invalid(&row.info.group, kind, object::name(object), errors))
}

/// Keeps a write within what its path may change.
fn confine(row: &Row, subresource: &str, old: &Value, new: &mut Value) {
    match subresource {
        // Of a Scale nothing but its number comes this far.
        "" | "scale" if row.info.status_subresource => take(new, old, "status"),
        "" | "scale" => {}
        "finalize" => {
            let finalizers = new.pointer("/spec/finalizers").cloned();
            let mut kept = old.clone();
            if let Some(spec) = kept.get_mut("spec").and_then(Value::as_object_mut) {
                match finalizers {
                    Some(f) => drop(spec.insert("finalizers".into(), f)),
                    None => drop(spec.remove("finalizers")),
                }
            }
            object::set_resource_version(&mut kept, object::resource_version(new));
            *new = kept;
        }
        "resize" | "ephemeralcontainers" => {
            let mut kept = old.clone();
            crate::policy::pods::take_part(&mut kept, new, subresource);
            if let Some(fields) = object::get(new, &["metadata", "managedFields"]).cloned() {
                object::metadata_mut(&mut kept).insert("managedFields".into(), fields);
            }
            object::set_resource_version(&mut kept, object::resource_version(new));
            *new = kept;
        }
        // `/status` and what works like it (`/approval`).
        _ => {
            let mut kept = old.clone();
            take(&mut kept, new, "status");
            if !row.info.is_crd {
                // Kubernetes' own kinds let labels and annotations through here; kubelets rely on it.
                for field in ["labels", "annotations"] {
                    let value = object::get(new, &["metadata", field]).cloned();
                    let meta = object::metadata_mut(&mut kept);
                    match value {
                        Some(v) => drop(meta.insert(field.into(), v)),
                        None => drop(meta.remove(field)),
                    }
                }
            }
            if let Some(fields) = object::get(new, &["metadata", "managedFields"]).cloned() {
                object::metadata_mut(&mut kept).insert("managedFields".into(), fields);
            }
            object::set_resource_version(&mut kept, object::resource_version(new));
            *new = kept;
        }
    }
}

/// Makes a field of `to` what it is in `from`.
fn take(to: &mut Value, from: &Value, field: &str) {
    let map = object::as_map(to);
    match from.get(field) {
        Some(v) => drop(map.insert(field.into(), v.clone())),
        None => drop(map.remove(field)),
    }
}

/// Whether a write would change nothing that anybody can see. Times of managed fields alone are nothing; who owns
/// what is something.
pub(crate) fn unchanged(new: &Value, old: &Value, changes: Option<&Changes>) -> bool {
    changes.is_none_or(Changes::are_bookkeeping) && object::equal_apart_from_bookkeeping(new, old)
}
