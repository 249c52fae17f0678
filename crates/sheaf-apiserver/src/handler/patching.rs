//! PATCH bodies: which of the four kinds, and what they make of an object.

use serde_json::Value;
use sheaf_meta::status::Status;

use super::options::WriteOptions;
use crate::{body, core::Cx, registry::Row};

/// A patch that was parsed.
pub(crate) enum Patch {
    /// RFC 7386.
    Merge(Value),
}

impl Patch {
    pub(crate) fn parse(_row: &Row, content_type: &str, bytes: &[u8]) -> Result<Self, Status> {
        match content_type {
            "application/merge-patch+json" => Ok(Self::Merge(body::json(bytes)?)),
            _ => Err(Status::unsupported_media_type(&["application/merge-patch+json"])),
        }
    }

    pub(crate) fn apply(
        &self,
        _row: &Row,
        current: &Value,
        _cx: &mut Cx,
        _options: &WriteOptions,
    ) -> Result<Value, Status> {
        match self {
            Self::Merge(patch) => {
                let mut out = current.clone();
                merge(&mut out, patch);
                Ok(out)
            }
        }
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let map = sheaf_meta::object::as_map(target);
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
