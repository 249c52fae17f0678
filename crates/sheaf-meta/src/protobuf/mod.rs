//! Bodies in Kubernetes' protobuf encoding (`application/vnd.kubernetes.protobuf`), read into the JSON values that the
//! same objects have in JSON. Only reading: answers are JSON, which every client takes.
//!
//! A body is [`MAGIC`] and a message `Unknown`: `{1: {1: apiVersion, 2: kind}, 2: object, 3: encoding, 4: type}`.
//! One generic decoder walks the object along a table of messages, which `cargo xtask protobuf` writes from published
//! sources (`README.md` beside it).
//!
//! **Zero values.** Go's encoder writes every field that is no pointer, set or not, and writes a pointer only if it is
//! set. Go's JSON encoder leaves out empty fields (`omitempty`), but never a message. So, to give what JSON would:
//!
//! - a message on the wire is an object in JSON, also if empty (`status: {}`);
//! - an empty string, `0` or `false` is dropped, unless the schema requires the field or Go has a pointer there
//!   (`replicas: 0`, `storageClassName: ""`), which the table says;
//! - a zero time is dropped (`creationTimestamp: null` in JSON, which means the same);
//! - lists and maps that are empty are not on the wire; where the schema requires them they are written, empty.
//!
//! Fields that the table does not know are passed over, as Go does. Depth, number of values and integers are bounded,
//! size is bounded by the server.

mod decode;
mod table;
mod wire;

#[cfg(test)]
mod tests;

use serde_json::Value;

pub use wire::WireError;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// The first bytes of every body.
pub const MAGIC: &[u8] = b"k8s\0";

/// Levels of objects and lists in what a body becomes: those that the JSON parser reads back.
pub const MAX_DEPTH: usize = 120;

/// Values in what a body becomes. A message of two bytes can stand for many.
pub const MAX_VALUES: usize = 500_000;

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A kind that has no protobuf encoding here (a custom resource, say): the client may send JSON instead.
    #[error("{kind} in version \"{api_version}\" has no protobuf encoding")]
    UnknownKind {
        /// As the envelope says.
        api_version: String,
        /// As the envelope says.
        kind: String,
    },
    /// The first bytes are not [`MAGIC`].
    #[error("it does not begin with the four bytes of the protobuf encoding of Kubernetes (k8s\\0)")]
    NoEnvelope,
    /// The envelope holds something else than plain protobuf.
    #[error("the object within is encoded as \"{0}\", which is not supported")]
    Encoding(String),
    /// The bytes are no message.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// A string is not UTF-8.
    #[error("{0} is not valid UTF-8")]
    NotText(String),
    /// Bytes that must be JSON are not, or a number or time is none that JSON can say.
    #[error("{0} has a value that JSON cannot express")]
    NotJson(String),
    /// More than [`MAX_DEPTH`] levels.
    #[error("it is nested too deeply (at most {MAX_DEPTH} levels)")]
    TooDeep,
    /// More than [`MAX_VALUES`] values.
    #[error("it has too many values (at most {MAX_VALUES})")]
    TooMany,
}

/// Kinds of which every group has its own, all of them alike (`DeleteOptions` of `apps/v1`): one encoding for all.
const EVERYWHERE: &[&str] = &["DeleteOptions"];

/// Reads a body. The result has `apiVersion` and `kind` as the envelope says.
pub fn decode(body: &[u8]) -> Result<Value, DecodeError> {
    let envelope = decode::envelope(body.strip_prefix(MAGIC).ok_or(DecodeError::NoEnvelope)?)?;
    for (given, fine) in [(&envelope.encoding, ""), (&envelope.content_type, MEDIA_TYPE)] {
        if !given.is_empty() && given != fine {
            return Err(DecodeError::Encoding(given.clone()));
        }
    }
    let table = table::Table::get();
    let lookup = if EVERYWHERE.contains(&envelope.kind.as_str()) { "v1" } else { &envelope.api_version };
    let Some(message) = table.kind(lookup, &envelope.kind) else {
        return Err(DecodeError::UnknownKind { api_version: envelope.api_version, kind: envelope.kind });
    };
    let mut object = decode::message(table, message, envelope.object)?;
    object.insert("apiVersion".into(), envelope.api_version.into());
    object.insert("kind".into(), envelope.kind.into());
    Ok(Value::Object(object))
}
