//! The patches of the API: JSON patch, merge patch, strategic merge patch.
//!
//! All pure: document and patch in, new document out. Server-side apply is in [`crate::apply`]. Nothing here checks
//! the result; the server prunes, defaults and validates it as it does any write.

use serde_json::Value;

use crate::status::Status;

mod json;
mod strategic;

pub(crate) use json::same;
pub use json::{MAX_COPIED, MAX_OPERATIONS, json_patch};
pub use strategic::strategic_merge_patch;

/// Deepest document that a patch may build (what the JSON parser accepts).
pub const MAX_DEPTH: usize = 128;

/// Why a patch was not applied. The document is unchanged then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch cannot be read: 400.
    #[error("{0}")]
    Malformed(String),
    /// A `test` operation found another value: 422, with the sentence on which clients retry.
    #[error("testing value {path} failed")]
    TestFailed {
        /// JSON pointer of the operation.
        path: String,
    },
    /// The document has no such place, or the patch contradicts itself: 422.
    #[error("{0}")]
    Inapplicable(String),
    /// Too many operations, or too much that is copied: 413.
    #[error("{0}")]
    TooLarge(String),
}

impl PatchError {
    /// The answer of the API. Kubernetes gives one fixed sentence for patches that do not apply, and clients match
    /// it; what exactly failed goes to the log.
    pub fn status(&self) -> Status {
        match self {
            PatchError::Malformed(why) => Status::bad_request(why.clone()),
            PatchError::TestFailed { .. } | PatchError::Inapplicable(_) => {
                let mut s = Status::new(
                    422,
                    "Invalid",
                    "the server rejected our request due to an error in our request",
                );
                s.internal = Some(self.to_string());
                s
            }
            PatchError::TooLarge(why) => {
                Status::new(413, "RequestEntityTooLarge", format!("Request entity is too large: {why}"))
            }
        }
    }
}

/// Applies a merge patch (RFC 7386): objects merge, null removes, everything else replaces. Null removes in objects of a
/// list too, which the RFC leaves alone, and upstream's library does not.
pub fn merge_patch(document: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return without_nulls(patch) };
    let mut out = match document {
        Value::Object(map) => map.clone(),
        _ => serde_json::Map::new(),
    };
    for (key, value) in patch {
        if value.is_null() {
            out.remove(key);
            continue;
        }
        let merged = merge_patch(out.get(key).unwrap_or(&Value::Null), value);
        out.insert(key.clone(), merged);
    }
    Value::Object(out)
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let there = map.iter().filter(|(_, value)| !value.is_null());
            there.map(|(key, value)| (key.clone(), without_nulls(value))).collect()
        }
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}
