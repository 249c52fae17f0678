//! Between stored bytes and objects. Stored objects have no resourceVersion: the store's revision is it.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use serde_json::Value;
use sheaf_meta::{object, status::Status};
use sheaf_store::{Entry, Revision, StoreError, cache};

use crate::registry::Row;

/// The object of an entry, in the version of the row.
pub(crate) fn decode(row: &Row, entry: &Entry) -> Result<Value, Status> {
    let mut value = parse(entry).map_err(|e| broken(&entry.key, &e.to_string()))?;
    row.read(&mut value, entry.modified);
    Ok(value)
}

/// The bytes to be stored, in the version in which the kind is stored.
pub(crate) fn encode(row: &Row, value: &Value) -> Result<Bytes, Status> {
    let mut stored = value.clone();
    object::set_gvk(&mut stored, &row.stored_as, &row.info.kind);
    object::set_resource_version(&mut stored, "");
    serde_json::to_vec(&stored).map(Bytes::from).map_err(Status::internal)
}

/// A failure of the store, as clients hear of it. Conflicts and taken keys are handled where they arise.
pub(crate) fn store_failure(error: StoreError) -> Status {
    match error {
        StoreError::Compacted { asked, oldest } => {
            Status::expired(format!("too old resource version: {} ({})", asked.0, oldest.0))
        }
        StoreError::Future { asked, current } => too_large(asked, current),
        StoreError::TooLarge { bytes, limit, .. } => {
            let text = format!("the object has {bytes} bytes; at most {limit} can be stored");
            Status::new(413, "RequestEntityTooLarge", text)
        }
        StoreError::Closed => {
            let mut status = Status::new(503, "ServiceUnavailable", "the server is shutting down");
            status.details.retry_after_seconds = Some(1);
            status
        }
        other => {
            let source = std::error::Error::source(&other).map(|s| format!(": {s}")).unwrap_or_default();
            Status::internal(format!("{other}{source}"))
        }
    }
}

/// 504 with the cause by which clients know that their revision lies in the future.
pub(crate) fn too_large(asked: Revision, current: Revision) -> Status {
    let message = format!("Too large resource version: {}, current: {}", asked.0, current.0);
    let mut status = Status::new(504, "Timeout", message);
    status.details.retry_after_seconds = Some(1);
    status.details.causes.push(sheaf_meta::status::Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    });
    status
}

/// An object as the watch cache keeps it.
pub(crate) enum Cached {
    /// Decoded once, with its resourceVersion.
    Object(Value),
    /// Large ones stay bytes, which are a fraction of their decoded form; few are, and they are seldom read.
    Large(Entry),
    /// Cannot be read, and why.
    Broken(String),
}

/// From this size on, objects stay bytes in the cache.
const LARGE: usize = 64 * 1024;

/// A cached object, shared by all who read it.
pub(crate) type Item = Arc<cache::Object<Cached>>;

/// What the watch cache makes of an entry.
pub(crate) fn cached(entry: &Entry) -> Cached {
    if entry.value.len() >= LARGE {
        return Cached::Large(entry.clone());
    }
    match parse(entry) {
        Ok(value) => Cached::Object(value),
        Err(error) => Cached::Broken(error.to_string()),
    }
}

fn parse(entry: &Entry) -> Result<Value, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(&entry.value)?;
    object::set_resource_version(&mut value, &entry.modified.0.to_string());
    Ok(value)
}

fn broken(key: &str, why: &str) -> Status {
    Status::internal(format!("the stored object {key} cannot be read: {why}"))
}

/// A cached object in the version of the row. Copied only if it is large, was stored in another version, or was
/// written before its schema changed.
pub(crate) fn view<'a>(row: &Row, item: &'a Item) -> Result<Cow<'a, Value>, Status> {
    match &item.value {
        Cached::Broken(why) => Err(broken(&item.key, why)),
        Cached::Large(entry) => decode(row, entry).map(Cow::Owned),
        Cached::Object(value)
            if object::api_version(value) == row.api_version
                && object::kind(value) == row.info.kind
                && row.reads_as_stored(item.modified) =>
        {
            Ok(Cow::Borrowed(value))
        }
        Cached::Object(value) => {
            let mut value = value.clone();
            row.read(&mut value, item.modified);
            Ok(Cow::Owned(value))
        }
    }
}

/// The same as an object of one's own, for who decides on it.
pub(crate) fn whole(row: &Row, item: &Item) -> Result<Value, Status> {
    view(row, item).map(Cow::into_owned)
}

/// The same with another resourceVersion: what leaves a watcher's view carries the revision at which it left.
pub(crate) fn view_at(row: &Row, item: &Item, at: Revision) -> Result<Value, Status> {
    let mut value = view(row, item)?.into_owned();
    object::set_resource_version(&mut value, &at.0.to_string());
    Ok(value)
}
