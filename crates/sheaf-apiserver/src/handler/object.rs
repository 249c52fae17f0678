//! Between stored bytes and objects. Stored objects have no resourceVersion: the store's revision is it.

use bytes::Bytes;
use serde_json::Value;
use sheaf_meta::{object, status::Status};
use sheaf_store::{Change, Entry, Revision, StoreError};

use crate::registry::Row;

/// The object of an entry, in the version of the row.
pub(crate) fn decode(row: &Row, entry: &Entry) -> Result<Value, Status> {
    decode_at(row, entry, entry.modified)
}

/// The same with another resourceVersion: a deleted object carries the revision of its deletion.
pub(crate) fn decode_at(row: &Row, entry: &Entry, at: Revision) -> Result<Value, Status> {
    let mut value: Value = serde_json::from_slice(&entry.value)
        .map_err(|e| Status::internal(format!("the stored object {} cannot be read: {e}", entry.key)))?;
    object::set_gvk(&mut value, &row.api_version, &row.info.kind);
    object::set_resource_version(&mut value, &at.0.to_string());
    Ok(value)
}

/// The bytes to be stored.
pub(crate) fn encode(value: &Value) -> Result<Bytes, Status> {
    let mut stored = value.clone();
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

/// A change as a watcher of some of the objects sees it.
pub(crate) enum Event {
    /// Came into view.
    Added(Value),
    /// Changed within view.
    Modified(Value),
    /// Went out of view, or was deleted.
    Deleted(Value),
}

/// What a change means to a watcher that sees the objects for which `visible` holds.
pub(crate) fn event(
    row: &Row,
    change: &Change,
    visible: impl Fn(&Value) -> bool,
) -> Result<Option<Event>, Status> {
    Ok(match change {
        Change::Delete { previous, at } => {
            let last = decode_at(row, previous, *at)?;
            visible(&last).then_some(Event::Deleted(last))
        }
        Change::Put { entry, previous } => {
            let new = decode(row, entry)?;
            let old = previous.as_ref().map(|p| decode_at(row, p, entry.modified)).transpose()?;
            match (old.filter(&visible), visible(&new)) {
                (None, true) => Some(Event::Added(new)),
                (Some(_), true) => Some(Event::Modified(new)),
                // The last state that was in view, at the revision at which it left.
                (Some(old), false) => Some(Event::Deleted(old)),
                (None, false) => None,
            }
        }
    })
}
