//! Pruning, defaulting and validation by the row's schema, and what `fieldValidation` makes of unknown fields.

use serde_json::Value;
use sheaf_meta::status::{FieldError, Status};

use super::options::{FieldValidation, WriteOptions};
use crate::{core::Cx, registry::Row};

/// Brings an object into the shape of its schema. Gives the fields that break it; unknown fields are dealt with as the
/// options say.
pub(crate) fn shape(
    cx: &mut Cx,
    row: &Row,
    options: &WriteOptions,
    object: &mut Value,
) -> Result<Vec<FieldError>, Status> {
    let unknown = row.schema().prune(object);
    match options.validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => cx.warnings.extend(options.problems(&unknown)),
        FieldValidation::Strict => options.refuse_problems((&row.info.kind, &row.info.version), &unknown)?,
    }
    if row.info.is_crd {
        // What is published as default of Kubernetes' own kinds is Go's zero value, and is not stored.
        row.schema().default(object);
    }
    Ok(row.schema().validate(object))
}
