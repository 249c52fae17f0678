//! CustomResourceDefinitions (apiextensions.k8s.io/v1): what is filled in, and what is refused.
//!
//! Only what one definition says of itself, and may change of itself. Whether names collide with other kinds is the
//! server's to find out, and to say in `status.conditions`.

use serde_json::{Value, json};
use sheaf_meta::names;
use sheaf_meta::status::FieldError;

use crate::json::{Object, flag, list, object, some, text, texts};

mod defaults;
mod schema;
mod structural;
mod version;

/// What a definition may cost at worst, by one rule and by all.
const RULE_LIMIT: u64 = 10_000_000;
const DEFINITION_LIMIT: u64 = 100_000_000;
const APPROVED: &str = "api-approved.kubernetes.io";

pub(crate) type Errors = Vec<FieldError>;

/// Fills in what a definition leaves open: singular name, kind of lists, conversion; and which versions are stored.
pub fn default_crd(new: &mut Value) {
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let kind = spec.get("names").map(|n| text(object(n), "kind").to_owned()).unwrap_or_default();
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut)
        && !kind.is_empty()
    {
        let mut fill = |key: &str, value: String| {
            if text(names, key).is_empty() {
                names.insert(key.into(), value.into());
            }
        };
        fill("singular", kind.to_lowercase());
        fill("listKind", format!("{kind}List"));
    }
    if some(spec, "conversion").is_none() {
        spec.insert("conversion".into(), json!({"strategy": "None"}));
    }
    let stored: Vec<Value> = list(spec, "versions")
        .iter()
        .filter(|v| flag(object(v), "storage"))
        .map(|v| text(object(v), "name").into())
        .collect();
    let status = sheaf_meta::object::entry_map(sheaf_meta::object::as_map(new), "status");
    let known = status.entry("storedVersions").or_insert_with(|| json!([]));
    if !known.is_array() {
        *known = json!([]);
    }
    if let Some(known) = known.as_array_mut() {
        for version in stored {
            if !known.contains(&version) {
                known.push(version);
            }
        }
    }
}

/// The rules that a definition breaks, as a replacement of `old` if there is one. `new` is defaulted already.
pub fn validate_crd(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = Value::Null;
    let spec = object(new.get("spec").unwrap_or(&empty));
    let names_map = object(spec.get("names").unwrap_or(&empty));
    let group = text(spec, "group");
    let wanted = format!("{}.{group}", text(names_map, "plural"));
    let name = sheaf_meta::object::name(new);
    if old.is_none() && name != wanted {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", &json!(name), why));
    }
    validate_spec(spec, old, &mut errors);
    if let Some(old) = old {
        update(new, old, &mut errors);
    }
    let status = object(new.get("status").unwrap_or(&empty));
    if let Some(accepted) = some(status, "acceptedNames") {
        validate_names(object(accepted), "status.acceptedNames", &mut errors);
    }
    stored_versions(status, spec, &mut errors);
    approval(new, old, group, &mut errors);
    if flag(spec, "preserveUnknownFields") {
        let before = old.and_then(|o| o.pointer("/spec/preserveUnknownFields")).and_then(Value::as_bool);
        if before != Some(true) {
            let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                       spec.versions[*].schema instead";
            errors.push(FieldError::invalid("spec.preserveUnknownFields", &json!(true), why));
        }
    }
    errors
}

fn validate_spec(spec: &Object, old: Option<&Value>, errors: &mut Errors) {
    let group = text(spec, "group");
    let broken = names::dns_subdomain(group);
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if !broken.is_empty() {
        errors.push(FieldError::invalid("spec.group", &json!(group), &broken.join(",")));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid(
            "spec.group",
            &json!(group),
            "should be a domain with at least one dot",
        ));
    }
    one_of(spec, "scope", "spec.scope", &["Cluster", "Namespaced"], errors);

    let versions = list(spec, "versions");
    for (i, version) in versions.iter().enumerate() {
        if version.pointer("/schema/openAPIV3Schema").is_none_or(|s| !s.is_object()) {
            errors.push(FieldError::required(
                format!("spec.versions[{i}].schema.openAPIV3Schema"),
                "schemas are required",
            ));
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut unique = true;
    for (i, version) in versions.iter().enumerate() {
        let map = object(version);
        let name = text(map, "name");
        unique &= !seen.contains(&name);
        seen.push(name);
        let broken = names::dns1035_label(name);
        if !broken.is_empty() {
            errors.push(FieldError::invalid(
                format!("spec.versions[{i}].name"),
                &json!(name),
                &broken.join(","),
            ));
        }
        version::deprecation(map, &format!("spec.versions[{i}]"), errors);
    }
    // What all versions say alike is reported once, under the name that it had before versions could differ.
    for (place, schema, status, name) in schemas(versions) {
        let unchanged = old.is_some_and(|o| same_schema(o, name, schema));
        schema::validate(schema, &place, status, unchanged, errors);
    }
    for (place, value) in shared(versions, "subresources") {
        version::subresources(object(value), &place, errors);
    }
    for (place, value) in shared(versions, "additionalPrinterColumns") {
        for (i, column) in value.as_array().into_iter().flatten().enumerate() {
            version::column(object(column), &format!("{place}[{i}]"), errors);
        }
    }
    let alike = all_equal(versions, "selectableFields");
    for (i, version) in versions.iter().enumerate().take(if alike { 1 } else { usize::MAX }) {
        let fields = list(object(version), "selectableFields");
        let place = if alike { "spec".to_owned() } else { format!("spec.versions[{i}]") };
        let Some(schema) = version.pointer("/schema/openAPIV3Schema").filter(|_| !fields.is_empty()) else {
            continue;
        };
        let before = old.and_then(|o| o.pointer("/spec/versions")).and_then(Value::as_array);
        let same = before.into_iter().flatten().any(|v| {
            v.get("name") == version.get("name")
                && v.get("selectableFields") == version.get("selectableFields")
        });
        version::selectable_fields(fields, schema, &format!("{place}.selectableFields"), same, errors);
    }
    if !unique {
        let why = "must contain unique version names";
        errors.push(FieldError::invalid("spec.versions", &json!(versions), why));
    }
    if versions.iter().filter(|v| flag(object(v), "storage")).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", &json!(versions), why));
    }
    let empty = Value::Null;
    let names_map = object(spec.get("names").unwrap_or(&empty));
    for key in ["plural", "singular", "kind", "listKind"] {
        if text(names_map, key).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{key}"), ""));
        }
    }
    validate_names(names_map, "spec.names", errors);
    conversion(object(spec.get("conversion").unwrap_or(&empty)), errors);
}

/// A word out of a few. A word is required.
fn one_of(map: &Object, key: &str, place: &str, allowed: &[&str], errors: &mut Errors) {
    match text(map, key) {
        "" => errors.push(FieldError::required(place, "")),
        word if !allowed.contains(&word) => {
            errors.push(FieldError::not_supported(place, &json!(word), allowed))
        }
        _ => {}
    }
}

fn all_equal(versions: &[Value], key: &str) -> bool {
    let first = versions.first().and_then(|v| v.get(key));
    first.is_some() && versions.iter().all(|v| v.get(key) == first)
}

/// The values of a field of all versions with their places; one value with the old place if all say the same.
fn shared<'v>(versions: &'v [Value], key: &str) -> Vec<(String, &'v Value)> {
    let given = |v: &'v Value| v.get(key).filter(|x| !x.is_null());
    if all_equal(versions, key) {
        return versions.first().and_then(given).map(|v| (format!("spec.{key}"), v)).into_iter().collect();
    }
    let each = versions.iter().enumerate();
    each.filter_map(|(i, v)| given(v).map(|x| (format!("spec.versions[{i}].{key}"), x))).collect()
}

/// The schemas of all versions: place, schema, whether status is a subresource, name of the version.
fn schemas(versions: &[Value]) -> Vec<(String, &Value, bool, &str)> {
    let status = |v: &Value| v.pointer("/subresources/status").is_some_and(|s| !s.is_null());
    let schema = |v| Value::pointer(v, "/schema/openAPIV3Schema").filter(|s| s.is_object());
    let name = |v| text(object(v), "name");
    if all_equal(versions, "schema") {
        let any = versions.iter().any(status);
        let first =
            versions.first().and_then(|v| Some(("spec.validation".to_owned(), schema(v)?, any, name(v))));
        return first.into_iter().collect();
    }
    let each = versions.iter().enumerate();
    each.filter_map(|(i, v)| Some((format!("spec.versions[{i}].schema"), schema(v)?, status(v), name(v))))
        .collect()
}

fn same_schema(old: &Value, version: &str, schema: &Value) -> bool {
    let versions = old.pointer("/spec/versions").and_then(Value::as_array);
    let before = versions.into_iter().flatten().find(|v| text(object(v), "name") == version);
    before.and_then(|v| v.pointer("/schema/openAPIV3Schema")) == Some(schema)
}

fn validate_names(names_map: &Object, place: &str, errors: &mut Errors) {
    let mut check = |key: &str, value: &str, any_case: bool| {
        let broken = names::dns1035_label(&if any_case { value.to_lowercase() } else { value.to_owned() });
        if value.is_empty() || broken.is_empty() {
            return;
        }
        let mixed = if any_case { "may have mixed case, but should otherwise match: " } else { "" };
        errors.push(FieldError::invalid(
            format!("{place}.{key}"),
            &json!(value),
            &format!("{mixed}{}", broken.join(",")),
        ));
    };
    let kind = text(names_map, "kind");
    let list_kind = text(names_map, "listKind");
    check("plural", text(names_map, "plural"), false);
    check("singular", text(names_map, "singular"), false);
    check("kind", kind, true);
    check("listKind", list_kind, true);
    for (i, name) in texts(names_map, "shortNames").into_iter().enumerate() {
        check(&format!("shortNames[{i}]"), name, false);
    }
    for (i, name) in texts(names_map, "categories").into_iter().enumerate() {
        check(&format!("categories[{i}]"), name, false);
    }
    if !kind.is_empty() && kind == list_kind {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(format!("{place}.listKind"), &json!(list_kind), why));
    }
}

fn conversion(map: &Object, errors: &mut Errors) {
    one_of(map, "strategy", "spec.conversion.strategy", &["None", "Webhook"], errors);
    match text(map, "strategy") {
        "Webhook" => {
            let why = "conversion by webhook is not served yet: versions must share one schema and use strategy None";
            errors.push(FieldError::invalid("spec.conversion.strategy", &json!("Webhook"), why));
        }
        "None" => {
            let why = "should not be set when strategy is not set to Webhook";
            if some(map, "webhook").is_some() {
                errors.push(FieldError::forbidden("spec.conversion.webhookClientConfig", why));
            }
        }
        _ => {}
    }
}

fn stored_versions(status: &Object, spec: &Object, errors: &mut Errors) {
    let stored = texts(status, "storedVersions");
    let place = "status.storedVersions";
    if stored.is_empty() {
        errors.push(FieldError::invalid(place, &json!(stored), "must have at least one stored version"));
        return;
    }
    let versions = list(spec, "versions");
    for version in versions.iter().map(object).filter(|v| flag(v, "storage")) {
        let name = text(version, "name");
        if !stored.contains(&name) {
            let why = format!("must have the storage version {name}");
            errors.push(FieldError::invalid(place, &json!(stored), &why));
        }
    }
    for (i, name) in stored.iter().enumerate() {
        if !versions.iter().any(|v| text(object(v), "name") == *name) {
            let why = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in \
                 spec.versions until a storage migration ensures no data remains persisted in {name} and removes \
                 {name} from status.storedVersions"
            );
            errors.push(FieldError::invalid(format!("{place}[{i}]"), &json!(name), &why));
        }
    }
}

/// What can no longer be changed.
fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let conditions = old.pointer("/status/conditions").and_then(Value::as_array);
    let established = conditions
        .into_iter()
        .flatten()
        .map(object)
        .any(|c| text(c, "type") == "Established" && text(c, "status") == "True");
    let fixed: &[(&str, bool)] = &[
        ("/spec/scope", established),
        ("/spec/names/kind", established),
        ("/spec/group", true),
        ("/spec/names/plural", true),
    ];
    for (pointer, fixed) in fixed {
        let value = new.pointer(pointer).unwrap_or(&Value::Null);
        if *fixed && Some(value) != old.pointer(pointer) {
            let place = pointer.trim_start_matches('/').replace('/', ".");
            errors.push(FieldError::invalid(place, value, "field is immutable"));
        }
    }
}

/// Groups of the Kubernetes community need a word of approval.
fn approval(new: &Value, old: Option<&Value>, group: &str, errors: &mut Errors) {
    let community = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    if !community("k8s.io") && !community("kubernetes.io") {
        return;
    }
    #[derive(PartialEq)]
    enum State {
        Missing,
        Invalid,
        Fine,
    }
    let state = |crd: &Value| match sheaf_meta::object::annotation(crd, APPROVED) {
        None | Some("") => State::Missing,
        Some(word) if word.starts_with("unapproved") => State::Fine,
        Some(word) => match word.split_once("://") {
            Some((scheme, host)) if !scheme.is_empty() && !host.is_empty() => State::Fine,
            _ => State::Invalid,
        },
    };
    let now = state(new);
    if old.is_some_and(|o| state(o) == now) {
        return;
    }
    let place = format!("metadata.annotations[{APPROVED}]");
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    match now {
        State::Fine => {}
        State::Missing => {
            let why = format!("protected groups must have approval annotation \"{APPROVED}\", {see}");
            errors.push(FieldError::required(place, &why));
        }
        State::Invalid => {
            let why = format!(
                "protected groups must have approval annotation \"{APPROVED}\" with either a URL or a reason starting \
                 with \"unapproved\", {see}"
            );
            let given = sheaf_meta::object::annotation(new, APPROVED).unwrap_or("");
            errors.push(FieldError::invalid(place, &json!(given), &why));
        }
    }
}
