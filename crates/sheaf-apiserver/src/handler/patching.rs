//! PATCH bodies: which of the four kinds, and what they make of an object.

use serde_json::Value;
use sheaf_meta::{object, patch, status::Status, strict};

use crate::{body, registry::Row};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// A patch that was parsed.
pub(crate) enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own, guided by the schema.
    Strategic(Value),
    /// Server-side apply: the fields that a manager wants to own.
    Apply(Value),
}

impl Patch {
    /// Reads a patch; 415 for a type that the kind does not take.
    ///
    /// Keys that come twice in it are told in `strange`.
    pub(crate) fn parse(
        row: &Row,
        content_type: &str,
        bytes: &[u8],
        strange: &mut Vec<String>,
    ) -> Result<Self, Status> {
        let mut json = || {
            let read = body::Read::from(body::json_strictly(bytes)?);
            *strange = read.strange;
            Ok(read.value)
        };
        match content_type {
            JSON => {
                let parsed = body::json_strictly(bytes)?;
                strange.extend(strange_operations(&parsed));
                Ok(Self::Json(parsed.value))
            }
            MERGE => Ok(Self::Merge(json()?)),
            // Never a silent merge for a custom resource: kubectl chooses by this answer.
            STRATEGIC if row.built_in() => Ok(Self::Strategic(json()?)),
            APPLY => {
                // JSON mostly, under the type of YAML. Keys that come twice are told of by their lines in both.
                let mut value = if bytes.first() == Some(&b'{') { json()? } else { Value::Null };
                if value.is_null() || !strange.is_empty() {
                    let read = body::yaml_strictly(bytes)?;
                    *strange = read.strange;
                    value = read.value;
                }
                if !value.is_object() {
                    return Err(Status::bad_request("the applied configuration is not an object"));
                }
                Ok(Self::Apply(value))
            }
            _ => Err(Status::unsupported_media_type(if row.built_in() {
                &[JSON, MERGE, STRATEGIC, APPLY]
            } else {
                &[JSON, MERGE, APPLY]
            })),
        }
    }

    /// The object after the patch. A resourceVersion in it is a precondition only if the patch set one.
    pub(crate) fn apply(&self, row: &Row, current: &Value) -> Result<Value, Status> {
        let mut base = current.clone();
        if !matches!(self, Self::Json(_)) {
            // What the patch does not mention is no precondition.
            object::set_resource_version(&mut base, "");
        }
        let failed = |e: patch::PatchError| e.status();
        let mut out = match self {
            Self::Json(p) => patch::json_patch(&base, p).map_err(failed)?,
            Self::Merge(p) => patch::merge_patch(&base, p),
            Self::Strategic(p) => patch::strategic_merge_patch(&base, p, row.schema()).map_err(failed)?,
            // Needs to know who applies, and may create: not done here.
            Self::Apply(_) => return Err(Status::internal("an apply was taken for a patch")),
        };
        if !out.is_object() {
            return Err(Status::bad_request("the patch leaves no object"));
        }
        if let Self::Json(operations) = self
            && !touches_version(operations)
        {
            object::set_resource_version(&mut out, "");
        }
        Ok(out)
    }
}

/// What `fieldValidation` tells of a JSON patch: keys of operations that came twice, or that no operation has.
fn strange_operations(patch: &strict::Parsed) -> Vec<String> {
    let mut out: Vec<String> =
        patch.duplicates.iter().map(|path| format!("json patch duplicate field \"{path}\"")).collect();
    let operations = patch.value.as_array().into_iter().flatten().enumerate();
    for (i, operation) in operations {
        let keys = operation.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        for key in keys.filter(|key| !matches!(*key, "op" | "path" | "from" | "value")) {
            out.push(format!("json patch unknown field \"[{i}].{key}\""));
        }
    }
    out.truncate(strict::MAX_REPORTED);
    out
}

/// Whether a JSON patch writes (or tests) `/metadata/resourceVersion`.
fn touches_version(operations: &Value) -> bool {
    let paths = operations.as_array().into_iter().flatten().filter_map(|o| o.get("path")?.as_str());
    paths.into_iter().any(|p| matches!(p, "/metadata/resourceVersion" | "/metadata" | ""))
}
