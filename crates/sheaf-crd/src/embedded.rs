//! Resources inside of objects (`x-kubernetes-embedded-resource`): their apiVersion, kind and metadata follow the rules of
//! any resource.

use serde_json::{Value, json};
use sheaf_meta::kind::Scope;
use sheaf_meta::names::{self, NameRule};
use sheaf_meta::objectmeta;
use sheaf_meta::status::FieldError;

use crate::json::{flag, object, properties, property, schema};

/// The rules that embedded resources in a value break. `path` is that of the value.
pub(crate) fn validate(
    definition: &Value,
    value: &Value,
    path: &str,
    embedded: bool,
    errors: &mut Vec<FieldError>,
) {
    let map = object(definition);
    let is_embedded = |s: &Value| flag(object(s), "x-kubernetes-embedded-resource");
    match value {
        Value::Object(fields) => {
            if embedded {
                resource(value, path, errors);
            }
            let additional = schema(map, "additionalProperties");
            for (key, value) in fields {
                let child = property(map, key).or(additional);
                if let Some(child) = child.filter(|_| value.is_object() || value.is_array()) {
                    validate(child, value, &join(path, key), is_embedded(child), errors);
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = schema(map, "items") else { return };
            for (i, value) in list.iter().enumerate() {
                validate(items, value, &format!("{path}[{i}]"), is_embedded(items), errors);
            }
        }
        _ => {}
    }
}

/// Whether a schema has embedded resources at all.
pub(crate) fn has_any(definition: &Value) -> bool {
    let map = object(definition);
    flag(map, "x-kubernetes-embedded-resource")
        || properties(map).any(|(_, s)| has_any(s))
        || ["items", "additionalProperties"].iter().any(|k| schema(map, k).is_some_and(has_any))
}

pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn resource(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for key in ["apiVersion", "kind"] {
        let place = join(path, key);
        match value.get(key) {
            None => errors.push(FieldError::required(place, "must not be empty")),
            Some(Value::String(s)) if s.is_empty() => {
                errors.push(FieldError::invalid(place, &json!(s), "must not be empty"));
            }
            Some(Value::String(s)) if key == "apiVersion" && s.matches('/').count() > 1 => {
                errors.push(FieldError::invalid(
                    place,
                    &json!(s),
                    &format!("unexpected GroupVersion string: {s}"),
                ));
            }
            Some(Value::String(s)) if key == "kind" => {
                let broken = names::dns1035_label(&s.to_ascii_lowercase());
                if !broken.is_empty() {
                    let why =
                        format!("may have mixed case, but should otherwise match: {}", broken.join(","));
                    errors.push(FieldError::invalid(place, &json!(s), &why));
                }
            }
            // The schema says that it is no text.
            Some(_) => {}
        }
    }
    let Some(metadata) = value.get("metadata").filter(|m| m.is_object()) else { return };
    let mut whole = json!({"metadata": metadata});
    if sheaf_meta::object::name(&whole).is_empty() {
        // A resource in a template need not have a name yet.
        sheaf_meta::object::set_name(&mut whole, "unnamed");
    }
    let namespaced = !sheaf_meta::object::namespace(&whole).is_empty();
    let scope = if namespaced { Scope::Namespaced } else { Scope::Cluster };
    for mut error in objectmeta::validate(&whole, scope, NameRule::PathSegment) {
        error.field = join(path, &error.field);
        errors.push(error);
    }
}
