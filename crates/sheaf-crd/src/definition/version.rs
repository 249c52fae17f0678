//! What a version says beside its schema: deprecation, subresources, printer columns, selectable fields.

use serde_json::{Value, json};
use sheaf_meta::status::FieldError;

use super::Errors;
use crate::field_path;
use crate::json::{Object, flag, object, some, text};

/// Most fields that one version may offer to field selectors.
const MAX_SELECTABLE: usize = 8;

pub(super) fn deprecation(version: &Object, place: &str, errors: &mut Errors) {
    let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) else { return };
    let mut push = |why: &str| {
        errors.push(FieldError::invalid(format!("{place}.deprecationWarning"), &json!(warning), why));
    };
    if !flag(version, "deprecated") {
        return push("can only be set for deprecated versions");
    }
    if warning.len() > 256 {
        push("must be <= 256 characters long");
    }
    if warning.is_empty() {
        push("must not be an empty string");
    }
    if let Some((i, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        push(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {i}"
        ));
    }
}

pub(super) fn subresources(map: &Object, place: &str, errors: &mut Errors) {
    let Some(scale) = some(map, "scale").map(object) else { return };
    let mut path = |key: &str, roots: &[&str], required: bool, why: &str| {
        let place = format!("{place}.scale.{key}");
        let value = text(scale, key);
        if value.is_empty() {
            if required {
                errors.push(FieldError::required(place, ""));
            }
        } else if let Some(error) = simple_path(value, &place) {
            errors.push(error);
        } else if !roots.iter().any(|root| value.starts_with(root)) {
            errors.push(FieldError::invalid(place, &json!(value), why));
        }
    };
    path("specReplicasPath", &[".spec."], true, "should be a json path under .spec");
    path("statusReplicasPath", &[".status."], true, "should be a json path under .status");
    path(
        "labelSelectorPath",
        &[".spec.", ".status."],
        false,
        "should be a json path under either .spec or .status",
    );
}

/// Paths that begin with a dot.
fn simple_path(path: &str, place: &str) -> Option<FieldError> {
    (!path.starts_with('.'))
        .then(|| FieldError::invalid(place, &json!(path), "must be a simple json path starting with ."))
}

pub(super) fn column(map: &Object, place: &str, errors: &mut Errors) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 9] =
        ["byte", "date", "date-time", "double", "float", "int32", "int64", "password", "binary"];
    if text(map, "name").is_empty() {
        errors.push(FieldError::required(format!("{place}.name"), ""));
    }
    let one_of = format!("must be one of {}", TYPES.join(","));
    match text(map, "type") {
        "" => errors.push(FieldError::required(format!("{place}.type"), &one_of)),
        word if !TYPES.contains(&word) => {
            errors.push(FieldError::invalid(format!("{place}.type"), &json!(word), &one_of));
        }
        _ => {}
    }
    let format = text(map, "format");
    if !format.is_empty() && !FORMATS.contains(&format) {
        let mut sorted = FORMATS;
        sorted.sort_unstable();
        let why = format!("must be one of {}", sorted.join(","));
        errors.push(FieldError::invalid(format!("{place}.format"), &json!(format), &why));
    }
    let place = format!("{place}.JSONPath");
    match text(map, "jsonPath") {
        "" => errors.push(FieldError::required(place, "")),
        path => match simple_path(path, &place) {
            Some(error) => errors.push(error),
            None => {
                if let Err(error) = sheaf_meta::jsonpath::JsonPath::parse(path) {
                    errors.push(FieldError::invalid(place, &json!(path), &error.problem));
                }
            }
        },
    }
}

/// `unchanged`: more fields than are allowed are tolerated where they were there before.
pub(super) fn selectable_fields(
    fields: &[Value],
    schema: &Value,
    place: &str,
    unchanged: bool,
    errors: &mut Errors,
) {
    let mut seen: Vec<Vec<String>> = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let place = format!("{place}[{i}].jsonPath");
        let path = text(object(field), "jsonPath");
        if path.is_empty() {
            errors.push(FieldError::required(place, ""));
            continue;
        }
        let (steps, found) = match field_path::resolve(path, schema) {
            Ok(found) => found,
            Err(why) => {
                let why = format!("is an invalid path: {why}");
                errors.push(FieldError::invalid(place, &json!(path), &why));
                continue;
            }
        };
        if steps.first().is_some_and(|s| s == "metadata") {
            let why = "must not point to fields in metadata";
            errors.push(FieldError::invalid(place.clone(), &json!(path), why));
        }
        if !matches!(text(object(found), "type"), "string" | "boolean" | "integer") {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with \
                       formats are allowed.";
            errors.push(FieldError::invalid(place.clone(), &json!(path), why));
        }
        if seen.contains(&steps) {
            errors.push(FieldError::duplicate(place, &json!(path)));
        } else {
            seen.push(steps);
        }
    }
    if seen.len() > MAX_SELECTABLE && !unchanged {
        errors.push(FieldError {
            field: place.to_owned(),
            reason: "FieldValueTooMany".into(),
            message: format!("Too many: {}: must have at most {MAX_SELECTABLE} items", seen.len()),
        });
    }
}
