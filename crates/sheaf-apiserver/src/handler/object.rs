//! Between stored bytes and objects. Stored objects have no resourceVersion: the store's revision is it.

use std::{borrow::Cow, cell::RefCell, sync::Arc};

use bytes::Bytes;
use serde_json::Value;
use sheaf_meta::{changes::Changes, object, status::Status, strict, table::MetaVersion};
use sheaf_store::{Entry, Revision, StoreError, cache};

use super::{
    compact,
    raw::{self, Parts, Span},
    underway::Underway,
};
use crate::registry::Row;

/// The object of an entry, in the version of the row.
pub(crate) fn decode(row: &Row, entry: &Entry) -> Result<Value, Status> {
    tree(row, &entry.key, &entry.value, entry.modified, entry.modified)
}

/// The bytes to be stored, in the version in which the kind is stored.
pub(crate) fn encode(row: &Row, value: &Value) -> Result<Bytes, Status> {
    encode_over(row, value, None).map(|encoded| encoded.bytes)
}

/// An object as it is stored, and where things are in its bytes.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Bytes,
    /// As [`Parts::find`] finds them.
    pub(crate) parts: Option<Parts>,
    /// The values of the object's own keys.
    members: Vec<Span>,
}

impl Encoded {
    /// What is stored under one of the object's own keys, if it is what a state that differs by `changes` has there.
    fn unchanged(&self, key: &str, changes: &Changes) -> Option<&[u8]> {
        if changes.touch(&[key]) {
            return None;
        }
        let is_of = |span: &&Span| {
            let before = self.bytes.get(..span.start()).and_then(|b| b.strip_suffix(b"\":"));
            // The quote that opens a key follows a brace or a comma; one inside of a key has a backslash before it.
            matches!(before.and_then(|b| b.strip_suffix(key.as_bytes())), Some([.., b'{' | b',', b'"']))
        };
        self.members.iter().find(is_of).map(|span| span.of(&self.bytes))
    }
}

/// As [`encode`], with what is found on the way. What did not change since `before` is copied from there.
pub(crate) fn encode_over(
    row: &Row,
    value: &Value,
    before: Option<(&Encoded, &Changes)>,
) -> Result<Encoded, Status> {
    if let Some(twin) = row.info.rules.twin() {
        let mut stored = value.clone();
        twin.to_stored(&mut stored);
        return bytes(&stored, object::api_version(&stored), None);
    }
    bytes(value, &row.stored_as, before)
}

fn bytes(value: &Value, api_version: &str, before: Option<(&Encoded, &Changes)>) -> Result<Encoded, Status> {
    thread_local! {
        /// Grown once; what is kept for long is exactly as large as it has to be.
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    /// A larger one is given back.
    const KEEP: usize = 256 * 1024;
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        let written = write_stored(value, api_version, before, scratch);
        let bytes = Bytes::copy_from_slice(scratch);
        scratch.shrink_to(KEEP);
        let (parts, members) = written.map_err(Status::internal)?;
        Ok(Encoded { bytes, parts, members })
    })
}

/// An object as it is stored: in that version, and without its resourceVersion, which the store itself knows. `out` is empty;
/// tells where the parts are in it, and the values of the object's own keys.
fn write_stored(
    value: &Value,
    api_version: &str,
    before: Option<(&Encoded, &Changes)>,
    out: &mut Vec<u8>,
) -> serde_json::Result<(Option<Parts>, Vec<Span>)> {
    let Value::Object(fields) = value else {
        compact::value(value, out)?;
        return Ok((None, Vec::new()));
    };
    let (mut parts, mut members) = (Parts::default(), Vec::with_capacity(fields.len()));
    compact::map(fields.iter(), out, |key, value, out| {
        let start = out.len();
        match value {
            Value::Object(metadata) if key == "metadata" => {
                let kept = metadata.iter().filter(|(key, _)| *key != "resourceVersion");
                compact::map(kept, out, |key, value, out| {
                    let start = out.len();
                    compact::value(value, out)?;
                    if key == "labels" {
                        parts.labels = Span::new(start, out.len());
                    }
                    Ok(())
                })?;
                parts.metadata = Span::new(start, out.len());
            }
            Value::String(_) if key == "apiVersion" => compact::string(api_version, out)?,
            value => match before.and_then(|(before, changes)| before.unchanged(key, changes)) {
                Some(bytes) => out.extend_from_slice(bytes),
                None => compact::value(value, out)?,
            },
        }
        let span = Span::new(start, out.len());
        match key {
            "apiVersion" => parts.api_version = span,
            "kind" => parts.kind = span,
            _ => {}
        }
        members.push(span);
        Ok(())
    })?;
    Ok((Some(parts).filter(|parts| parts.metadata.is_some()), members))
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
        // Whoever asks can do something about this one.
        StoreError::Full => Status::new(500, "InternalError", StoreError::Full.to_string()),
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

/// An object as the watch cache keeps it: the bytes of the store (the same allocation, no copy) and where their parts
/// are. Trees would take several times as much memory, and lists would have to write them again.
pub(crate) enum Cached {
    /// As it was stored.
    Stored {
        /// Without a resourceVersion.
        bytes: Bytes,
        /// Where things are in `bytes`.
        parts: Parts,
    },
    /// Cannot be read.
    Broken,
}

/// A cached object, shared by all who read it.
pub(crate) type Item = Arc<cache::Object<Cached>>;

/// What the watch cache makes of an entry.
pub(crate) fn cached(entry: &Entry, underway: &Underway) -> Cached {
    match underway.take(&entry.value).or_else(|| Parts::find(&entry.value)) {
        Some(parts) => Cached::Stored { bytes: entry.value.clone(), parts },
        None => Cached::Broken,
    }
}

fn broken(key: &str, why: &str) -> Status {
    Status::internal(format!("the stored object {key} cannot be read: {why}"))
}

/// The bytes and parts of a cached object.
pub(crate) fn stored(item: &Item) -> Result<(&Bytes, &Parts), Status> {
    match &item.value {
        Cached::Stored { bytes, parts } => Ok((bytes, parts)),
        Cached::Broken => Err(broken(&item.key, "it is no object with metadata")),
    }
}

/// A field of a cached object as it is stored, as text; empty where there is none.
pub(crate) fn field<'a>(item: &'a Item, path: &str) -> Result<Cow<'a, str>, Status> {
    Ok(raw::field(stored(item)?.0, path))
}

/// Whether an object is answered as it is stored, apart from version, kind and resourceVersion. Where [`translate`]
/// does more, this must say no: the answer is then made from a tree.
pub(crate) fn as_stored(row: &Row, item: &Item) -> bool {
    row.info.rules.twin().is_none() && row.is_settled(item.modified)
}

/// What an object that was stored at a revision becomes on its way to a reader, as a tree.
fn translate(row: &Row, value: &mut Value, modified: Revision) {
    row.settle(value, modified);
    if let Some(twin) = row.info.rules.twin() {
        twin.from_stored(value);
    }
    object::set_gvk(value, &row.api_version, &row.info.kind);
}

/// A cached object as a tree, in the version of the row.
pub(crate) fn view<'a>(row: &Row, item: &'a Item) -> Result<Cow<'a, Value>, Status> {
    view_at(row, item, item.modified).map(Cow::Owned)
}

/// The same with another resourceVersion: what leaves a watcher's view carries the revision at which it left.
pub(crate) fn view_at(row: &Row, item: &Item, at: Revision) -> Result<Value, Status> {
    let (bytes, _) = stored(item)?;
    tree(row, &item.key, bytes, item.modified, at)
}

/// As [`view`], of some members of the object only; more of it where that is not easily had.
pub(crate) fn view_of(row: &Row, item: &Item, wanted: &[String]) -> Result<Value, Status> {
    let (bytes, _) = stored(item)?;
    let Some(picked) = Some(bytes).filter(|_| as_stored(row, item)).and_then(|b| raw::pick(b, wanted)) else {
        return view_at(row, item, item.modified);
    };
    let mut value = Value::Object(picked);
    object::set_gvk(&mut value, &row.api_version, &row.info.kind);
    object::set_resource_version(&mut value, &item.modified.0.to_string());
    Ok(value)
}

/// A cached object as JSON, in the version of the row, written behind what `out` holds.
pub(crate) fn write(row: &Row, item: &Item, at: Revision, out: &mut Vec<u8>) -> Result<(), Status> {
    let (bytes, parts) = stored(item)?;
    if as_stored(row, item) {
        parts.write(bytes, &row.api_version, &row.info.kind, at.0, out);
        return Ok(());
    }
    serde_json::to_writer(out, &view_at(row, item, at)?).map_err(Status::internal)
}

/// Whether the bytes of an object in the version of the row are the same for every row that says so.
pub(crate) fn is_own_version(row: &Row, item: &Item) -> bool {
    as_stored(row, item)
        && matches!(&item.value, Cached::Stored { bytes, parts } if parts.is(bytes, &row.api_version, &row.info.kind))
}

fn tree(row: &Row, key: &str, bytes: &[u8], modified: Revision, at: Revision) -> Result<Value, Status> {
    let mut value = strict::parse(bytes).map_err(|e| broken(key, &e.to_string()))?.value;
    translate(row, &mut value, modified);
    object::set_resource_version(&mut value, &at.0.to_string());
    Ok(value)
}

/// Whether two states of an object have the same [identity](Parts::same_identity).
pub(crate) fn same_identity(before: &Item, now: &Item) -> bool {
    match (stored(before), stored(now)) {
        (Ok((before, parts)), Ok((now, now_parts))) => parts.same_identity(before, now_parts, now),
        _ => false,
    }
}

/// A cached object reduced to its metadata, or to its identity, as JSON. Only where objects are answered [`as_stored`].
pub(crate) fn write_metadata(
    item: &Item,
    meta: MetaVersion,
    at: Revision,
    identity: bool,
    out: &mut Vec<u8>,
) -> Result<(), Status> {
    let (bytes, parts) = stored(item)?;
    out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"");
    out.extend_from_slice(meta.api_version().as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    match identity {
        true => parts.write_identity(bytes, at.0, out),
        false => parts.write_metadata(bytes, at.0, out),
    }
    out.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn encoded(value: &Value, before: Option<(&Encoded, &Changes)>) -> Encoded {
        bytes(value, "v2", before).unwrap()
    }

    fn leaf() -> impl Strategy<Value = Value> {
        let text = prop_oneof![Just("x"), Just(r#","a":1,"b""#), Just(r"\")];
        prop_oneof![
            Just(json!(1)),
            text.prop_map(Value::from),
            Just(json!({"a": [1, {"b": "\"c"}]})),
            Just(json!(null))
        ]
    }

    fn tree() -> impl Strategy<Value = Value> {
        let key = || {
            prop_oneof![
                Just("apiVersion"),
                Just("kind"),
                Just("spec"),
                Just("a"),
                Just(r#"b"a"#),
                Just(r#"b,"a"#),
                Just(r"a\"),
                Just("labels"),
                Just("resourceVersion"),
            ]
        };
        let map = || {
            prop::collection::btree_map(key(), leaf(), 0..6)
                .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Value>())
        };
        (map(), prop_oneof![map(), leaf()], any::<bool>()).prop_map(|(mut object, metadata, has)| {
            if has {
                object["metadata"] = metadata;
            }
            object
        })
    }

    /// The cache has what it would find, of what is at hand and of what is not.
    #[test]
    fn what_is_underway_is_known_by_its_allocation() {
        let underway = Underway::default();
        let one = encoded(&json!({"metadata": {"labels": {"a": "b"}}, "kind": "K"}), None);
        let twin = Bytes::copy_from_slice(&one.bytes);
        underway.put(&one);
        assert_eq!(underway.take(&twin), None, "the same bytes elsewhere");
        assert_eq!(underway.take(&one.bytes.slice(1..)), None);
        assert_eq!(underway.take(&one.bytes.clone()), Parts::find(&one.bytes));
        assert_eq!(underway.take(&one.bytes), None, "once");
        underway.put(&encoded(&json!({"kind": "without metadata"}), None));
        underway.put(&one);
        for _ in 0..64 {
            underway.put(&encoded(&json!({"metadata": {}}), None));
        }
        assert_eq!(underway.take(&one.bytes), None, "pushed out");
    }

    proptest! {
        /// What is known of the bytes is what a look at them finds, and what is copied is what would be written.
        #[test]
        fn encoding_over_is_encoding(old in tree(), new in tree(), part in tree()) {
            let before = encoded(&old, None);
            prop_assert_eq!(before.parts, Parts::find(&before.bytes));
            let mut mixed = old.clone();
            if let (Value::Object(mixed), Value::Object(part)) = (&mut mixed, part) {
                mixed.extend(part);
            }
            for new in [new, mixed, old.clone()] {
                let changes = Changes::between(&old, &new);
                let (long, short) = (encoded(&new, None), encoded(&new, Some((&before, &changes))));
                prop_assert_eq!(&short.bytes, &long.bytes);
                prop_assert_eq!((short.parts, short.members), (long.parts, long.members));
            }
        }
    }
}
