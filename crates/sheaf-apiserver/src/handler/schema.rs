//! Pruning, defaulting and validation by the row's schema, and what `fieldValidation` makes of unknown fields.

use serde_json::Value;
use sheaf_meta::{
    changes::Changes,
    status::{FieldError, Status},
};

use super::options::{FieldValidation, WriteOptions};
use crate::{core::Cx, registry::Row};

/// Brings an object that a client sent into the shape of its schema; unknown fields are dealt with as the options say.
/// `changes` say how it differs from one that has that shape, if there is one.
pub(crate) fn shape(
    cx: &mut Cx,
    row: &Row,
    options: &WriteOptions,
    object: &mut Value,
    changes: Option<&Changes>,
) -> Result<(), Status> {
    let unknown = match row.custom_schema() {
        Some(schema) => schema.shape(object),
        None => prune(row, object, changes),
    };
    report_unknown(cx, options, (&row.info.kind, &row.info.version), row.built_in(), &unknown)
}

/// The same for an object that was changed on the way: what is unknown in it goes silently.
pub(crate) fn shape_again(row: &Row, object: &mut Value) {
    match row.custom_schema() {
        Some(schema) => drop(schema.shape(object)),
        None => drop(prune(row, object, None)),
    }
}

fn prune(row: &Row, object: &mut Value, changes: Option<&Changes>) -> Vec<String> {
    let unknown = match changes {
        Some(changes) => row.schema().prune_changed(object, changes),
        None => row.schema().prune(object),
    };
    if row.info.is_crd {
        // What is published as default of Kubernetes' own kinds is Go's zero value, and is not stored.
        row.schema().default(object);
    }
    unknown
}

/// Drops, tells of, or refuses unknown fields of a kind in a version.
pub(crate) fn report_unknown(
    cx: &mut Cx,
    options: &WriteOptions,
    kind_and_version: (&str, &str),
    built_in: bool,
    unknown: &[String],
) -> Result<(), Status> {
    match options.validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => cx.warnings.extend(options.problems(built_in, unknown)),
        FieldValidation::Strict => options.refuse_problems(kind_and_version, built_in, unknown)?,
    }
    Ok(())
}

/// The fields that break the schema, or the rules of a kind that users defined. `changes` say how the object differs from
/// one that breaks neither, if that is known.
pub(crate) fn check(
    cx: &mut Cx,
    row: &Row,
    old: Option<&Value>,
    object: &Value,
    changes: Option<&Changes>,
) -> Vec<FieldError> {
    let Some(schema) = row.custom_schema() else {
        return match changes {
            Some(changes) => row.schema().validate_changed(object, changes),
            None => row.schema().validate(object),
        };
    };
    let (mut errors, warnings) = schema.validate(object, old);
    cx.warnings.extend(warnings);
    if let Some(scale) = &row.scale {
        errors.extend(scale.validate(object));
    }
    errors
}
