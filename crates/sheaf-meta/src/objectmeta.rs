//! `metadata`: the schema of ObjectMeta, and the rules that hold for it on create and update whatever the kind.
//!
//! The schema drives pruning, strict decoding, strategic merge and server-side apply of `metadata`, whose fields no
//! custom schema can describe otherwise.

use std::borrow::Cow;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::changes::Changes;
use crate::kind::Scope;
use crate::names::{self, NameRule};
use crate::object::{self, OwnerRef};
use crate::status::FieldError;

/// Most bytes that all annotations of an object may have together.
pub const MAX_ANNOTATIONS: usize = 256 * 1024;

/// The OpenAPI v3 schema of `io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta`, references resolved.
pub fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let string = || json!({"type": "string"});
        let time = || json!({"type": "string", "format": "date-time"});
        let strings = || json!({"type": "object", "additionalProperties": {"type": "string", "default": ""}});
        json!({"type": "object", "properties": {
            "annotations": strings(),
            "creationTimestamp": time(),
            "deletionGracePeriodSeconds": {"type": "integer", "format": "int64"},
            "deletionTimestamp": time(),
            "finalizers": {"type": "array", "items": {"type": "string"},
                "x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge"},
            "generateName": string(),
            "generation": {"type": "integer", "format": "int64"},
            "labels": strings(),
            "managedFields": {"type": "array", "x-kubernetes-list-type": "atomic",
                "items": {"type": "object", "properties": {
                    "apiVersion": string(), "fieldsType": string(),
                    "fieldsV1": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "manager": string(), "operation": string(), "subresource": string(), "time": time()}}},
            "name": string(),
            "namespace": string(),
            "ownerReferences": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["uid"],
                "x-kubernetes-patch-merge-key": "uid", "x-kubernetes-patch-strategy": "merge",
                "items": {"type": "object", "x-kubernetes-map-type": "atomic",
                    "required": ["apiVersion", "kind", "name", "uid"],
                    "properties": {
                        "apiVersion": string(), "blockOwnerDeletion": {"type": "boolean"},
                        "controller": {"type": "boolean"}, "kind": string(), "name": string(),
                        "uid": string()}}},
            "resourceVersion": string(),
            "selfLink": string(),
            "uid": string(),
        }})
    })
}

fn text(value: &str) -> Value {
    Value::String(value.into())
}

/// The rules of ObjectMeta on any write: names, labels, annotations, owners, finalizers.
pub fn validate(object: &Value, scope: Scope, rule: NameRule) -> Vec<FieldError> {
    judge(object, scope, rule, |_| true)
}

/// As [`validate`], of an object that differs by `changes` from one that breaks no rule.
pub fn validate_changed(object: &Value, changes: &Changes, scope: Scope, rule: NameRule) -> Vec<FieldError> {
    judge(object, scope, rule, |key| changes.touch(&["metadata", key]))
}

/// The rules of those fields of metadata that are `asked` for.
fn judge(object: &Value, scope: Scope, rule: NameRule, asked: impl Fn(&str) -> bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if asked("name") || asked("generateName") || asked("namespace") || asked("generation") {
        validate_identity(object, scope, rule, &mut errors);
    }
    if asked("labels") {
        validate_labels(object::strings(object, "labels"), "metadata.labels", &mut errors);
    }
    if asked("annotations") {
        validate_annotations(object, &mut errors);
    }
    if asked("ownerReferences") {
        validate_owners(&object::owner_references(object), &mut errors);
    }
    if asked("finalizers") {
        validate_finalizers(object, &mut errors);
    }
    errors
}

fn validate_identity(object: &Value, scope: Scope, rule: NameRule, errors: &mut Vec<FieldError>) {
    let generate_name = object::generate_name(object);
    if !generate_name.is_empty() {
        for why in rule.check(generate_name, true) {
            errors.push(FieldError::invalid("metadata.generateName", &text(generate_name), &why));
        }
    }
    let name = object::name(object);
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        for why in rule.check(name, false) {
            errors.push(FieldError::invalid("metadata.name", &text(name), &why));
        }
    }
    let namespace = object::namespace(object);
    match (scope, namespace.is_empty()) {
        (Scope::Namespaced, true) => errors.push(FieldError::required("metadata.namespace", "")),
        (Scope::Namespaced, false) => {
            for why in names::dns_label(namespace) {
                errors.push(FieldError::invalid("metadata.namespace", &text(namespace), &why));
            }
        }
        (Scope::Cluster, true) => {}
        (Scope::Cluster, false) => {
            errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
        }
    }
    let generation = object::generation(object);
    if generation < 0 {
        errors.push(FieldError::invalid(
            "metadata.generation",
            &json!(generation),
            "must be greater than or equal to 0",
        ));
    }
}

/// The rules of labels at any place (`metadata.labels`, `spec.template.metadata.labels`).
pub fn validate_labels<'a>(
    labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    field: &str,
    errors: &mut Vec<FieldError>,
) {
    for (key, value) in labels {
        for why in names::label_key(key) {
            errors.push(FieldError::invalid(field, &text(key), &why));
        }
        for why in names::label_value(value) {
            errors.push(FieldError::invalid(field, &text(value), &why));
        }
    }
}

fn validate_annotations(object: &Value, errors: &mut Vec<FieldError>) {
    let mut total = 0;
    for (key, value) in object::strings(object, "annotations") {
        let lower = match key.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(key.to_ascii_lowercase()),
            false => Cow::Borrowed(key),
        };
        for why in names::qualified_name(&lower) {
            errors.push(FieldError::invalid("metadata.annotations", &text(key), &why));
        }
        total += key.len() + value.len();
    }
    if total > MAX_ANNOTATIONS {
        errors.push(FieldError {
            field: "metadata.annotations".into(),
            reason: "FieldValueTooLong".into(),
            message: format!("Too long: may not be more than {MAX_ANNOTATIONS} bytes"),
        });
    }
}

fn validate_owners(owners: &[OwnerRef<'_>], errors: &mut Vec<FieldError>) {
    const FIELD: &str = "metadata.ownerReferences";
    let mut controller: Option<&OwnerRef<'_>> = None;
    for owner in owners {
        if owner.api_version.is_empty() {
            errors.push(FieldError::invalid(
                format!("{FIELD}.apiVersion"),
                &text(owner.api_version),
                "version must not be empty",
            ));
        }
        for (key, value) in [("kind", owner.kind), ("name", owner.name), ("uid", owner.uid)] {
            if value.is_empty() {
                let why = format!("{key} must not be empty");
                errors.push(FieldError::invalid(format!("{FIELD}.{key}"), &text(value), &why));
            }
        }
        if owner.api_version == "v1" && owner.kind == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(FIELD, &owner.to_json(), why));
        }
        if owner.controller {
            if let Some(other) = controller {
                let show = |o: &OwnerRef<'_>| format!("{}/{}", o.kind, o.name);
                errors.push(FieldError::invalid(
                    FIELD,
                    &owner.to_json(),
                    &format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for \
                         {} and {}",
                        show(other),
                        show(owner)
                    ),
                ));
            } else {
                controller = Some(owner);
            }
        }
    }
}

fn validate_finalizers(object: &Value, errors: &mut Vec<FieldError>) {
    const FIELD: &str = "metadata.finalizers";
    let finalizers = object::finalizers(object);
    for finalizer in &finalizers {
        for why in names::qualified_name(finalizer) {
            errors.push(FieldError::invalid(FIELD, &text(finalizer), &why));
        }
    }
    if finalizers.contains(&"orphan") && finalizers.contains(&"foregroundDeletion") {
        errors.push(FieldError::invalid(
            FIELD,
            &json!(finalizers),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
}

/// Fields of metadata that never change.
const FIXED: [&str; 6] =
    ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];

/// As [`validate_update`], where it is known how `new` differs from `old`.
pub fn validate_update_changed(new: &Value, old: &Value, changes: &Changes) -> Vec<FieldError> {
    let mut concerned = FIXED.iter().chain(&["finalizers", "generation"]);
    match concerned.any(|key| changes.touch(&["metadata", key])) {
        true => validate_update(new, old),
        false => Vec::new(),
    }
}

/// The rules of ObjectMeta when `new` is to replace `old`. Fields that the server sets itself (uid, timestamps) are
/// compared only where the new object has them: carry them over first with [`carry_over`].
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    const NULL: &Value = &Value::Null;
    fn get<'a>(object: &'a Value, key: &str) -> &'a Value {
        object::get(object, &["metadata", key]).unwrap_or(NULL)
    }
    if object::is_deleting(old) {
        let before = object::finalizers(old);
        let added: Vec<&str> = object::finalizers(new).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|f| format!("\"{f}\"")).collect();
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    list.join(", ")
                ),
            ));
        }
    }
    for key in FIXED {
        let value = get(new, key);
        if value != get(old, key) {
            errors.push(FieldError::invalid(format!("metadata.{key}"), value, "field is immutable"));
        }
    }
    let generation = object::generation(new);
    if generation < object::generation(old) {
        errors.push(FieldError::invalid(
            "metadata.generation",
            &json!(generation),
            "must not be decremented",
        ));
    }
    errors
}

/// Puts the fields that only the server may change from the stored object into the one to be written: uid (only
/// where the client gave none: another one is a conflict), creation and deletion timestamps, grace period,
/// generation, selfLink.
pub fn carry_over(new: &mut Value, old: &Value) {
    carry(new, old, |_| true);
}

/// As [`carry_over`], where it is known how `new` differs from `old`.
pub fn carry_over_changed(new: &mut Value, old: &Value, changes: &Changes) {
    carry(new, old, |key| changes.touch(&["metadata", key]));
}

fn carry(new: &mut Value, old: &Value, changed: impl Fn(&str) -> bool) {
    const KEEP: [&str; 5] =
        ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"];
    let keep_uid = object::uid(new).is_empty();
    let before = object::metadata(old);
    let meta = object::metadata_mut(new);
    let fields = KEEP.iter().chain(keep_uid.then_some(&"uid"));
    for key in fields.filter(|key| changed(key)) {
        match before.and_then(|before| before.get(*key)) {
            Some(v) if !v.is_null() => {
                // Most clients send back what they were given.
                if meta.get(*key) != Some(v) {
                    meta.insert((*key).into(), v.clone());
                }
            }
            _ => {
                meta.remove(*key);
            }
        }
    }
}

/// Removes lists and maps of metadata that hold nothing: absence says the same, and is what is kept.
pub fn drop_empty(object: &mut Value) {
    const FIELDS: [&str; 4] = ["labels", "annotations", "finalizers", "ownerReferences"];
    let empty = |value: &Value| match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Null => true,
        _ => false,
    };
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in FIELDS {
            if meta.get(field).is_some_and(empty) {
                meta.remove(field);
            }
        }
    }
}

/// Removes what a client may not choose on create: uid, resourceVersion, timestamps, generation, selfLink.
pub fn reset_for_create(object: &mut Value) {
    const DROP: [&str; 7] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
    ];
    let meta = object::metadata_mut(object);
    for key in DROP {
        meta.remove(key);
    }
}
