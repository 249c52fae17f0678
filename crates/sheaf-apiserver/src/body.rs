//! Request bodies: reading them within limits, and decoding them into JSON values.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;
use sheaf_meta::{
    protobuf::{self, DecodeError},
    status::Status,
    strict,
};

use crate::http::Body;

/// Largest request body: objects may have 1 MiB and more, and etcd's own limit is 1.5 MiB.
pub const MAX_BODY: usize = 3 * 1024 * 1024;

/// What a plain body may be.
const ACCEPTED: &[&str] = &["application/json", "application/yaml", protobuf::MEDIA_TYPE];
/// What the body of a kind may be that has no protobuf form.
const ACCEPTED_OF_ALL_KINDS: &[&str] = &["application/json", "application/yaml"];

/// A client that sends nothing of its body for so long is not waited for.
const SILENCE: Duration = Duration::from_secs(15);

/// So much of a body that is too large is taken and dropped.
const DRAINED: usize = 8 * MAX_BODY;
/// Whoever pauses for so long while that is done has sent what they will, or waits for the answer.
const LINGER: Duration = Duration::from_millis(500);

/// Room that is made for a body on its word alone.
const AT_FIRST: usize = 64 * 1024;

/// Reads the whole body; 413 beyond [`MAX_BODY`], 408 if it stops coming.
pub async fn read(mut body: Body) -> Result<Bytes, Status> {
    let announced = body.size_hint().upper().and_then(|n| usize::try_from(n).ok()).unwrap_or_default();
    let mut whole = Vec::new();
    loop {
        let silent = |_| {
            let text = format!("the body of the request did not come: nothing for {} s", SILENCE.as_secs());
            Status::new(408, "RequestTimeout", text)
        };
        let Some(frame) = tokio::time::timeout(SILENCE, body.frame()).await.map_err(silent)? else { break };
        let frame = frame
            .map_err(|e| Status::bad_request(format!("the body of the request could not be read: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > MAX_BODY {
            drop(whole);
            drain(body).await;
            let message = format!("Request entity too large: limit is {MAX_BODY}");
            return Err(Status::new(413, "RequestEntityTooLarge", message));
        }
        // Most bodies come in one piece, which is taken as it is.
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        if whole.is_empty() {
            whole.reserve_exact(announced.min(AT_FIRST));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.into())
}

/// Reads what still comes and keeps nothing of it: many clients look at an answer only when they have sent everything, and see a
/// broken connection if that is not taken.
async fn drain<B: hyper::body::Body<Data = Bytes> + Unpin>(mut body: B) {
    let mut left = DRAINED;
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(LINGER, body.frame()).await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        left = left.saturating_sub(length);
        if left == 0 {
            return;
        }
    }
}

/// The body of a request over HTTP/1.1, which comes back if nobody read it to its end. A connection on which it was not taken whole
/// cannot be used again, and clients that keep theirs find out with their next request only.
#[derive(Debug)]
pub struct Lent {
    body: Option<Incoming>,
    back: Unread,
}

/// Where a body that was lent comes back.
#[derive(Debug, Clone, Default)]
pub struct Unread(Arc<Mutex<Option<Incoming>>>);

impl Unread {
    /// Lends a body.
    pub fn lend(&self, body: Incoming) -> Lent {
        Lent { body: Some(body), back: self.clone() }
    }
    /// Takes what nobody read, if it came back.
    pub async fn drain(self) {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(body) = body {
            drain(body).await;
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.back.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }
    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }
    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, hyper::body::Body::size_hint)
    }
}

/// The media type of the body without parameters; JSON where none is given.
pub fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match value.split(';').next().unwrap_or_default().trim() {
        "" => "application/json".into(),
        other => other.to_ascii_lowercase(),
    }
}

/// Decodes a body of a plain type (no patch). An empty one is `None`.
pub fn decode(bytes: &[u8], content_type: &str) -> Result<Option<Value>, Status> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    match content_type {
        "application/json" | "text/json" => json(bytes).map(Some),
        "application/yaml" | "text/yaml" | "application/x-yaml" => yaml(bytes).map(Some),
        protobuf::MEDIA_TYPE => match protobuf::decode(bytes) {
            Ok(value) => Ok(Some(value)),
            Err(DecodeError::UnknownKind { .. }) => {
                Err(Status::unsupported_media_type(ACCEPTED_OF_ALL_KINDS))
            }
            Err(e) => Err(Status::bad_request(format!("the object provided is not valid protobuf: {e}"))),
        },
        _ => Err(Status::unsupported_media_type(ACCEPTED)),
    }
}

/// Parses JSON.
pub fn json(bytes: &[u8]) -> Result<Value, Status> {
    Ok(json_strictly(bytes)?.value)
}

/// Parses JSON, and says which keys came twice.
pub fn json_strictly(bytes: &[u8]) -> Result<strict::Parsed, Status> {
    strict::parse(bytes)
        .map_err(|e| Status::bad_request(format!("the object provided is not valid JSON: {e}")))
}

/// Parses YAML (or JSON, which is YAML). Of a key that comes twice, the last value counts.
pub fn yaml(bytes: &[u8]) -> Result<Value, Status> {
    Ok(yaml_strictly(bytes)?.value)
}

/// What was read of a body, and what was strange in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The value.
    pub value: Value,
    /// Sentences on keys that came twice, as `fieldValidation` has them told.
    pub strange: Vec<String>,
    /// The whole, if it was JSON in which keys came twice.
    pub twice: Option<Bytes>,
}

impl From<strict::Parsed> for Read {
    fn from(parsed: strict::Parsed) -> Self {
        Self { strange: strict::problems(&[], &parsed.duplicates), value: parsed.value, twice: None }
    }
}

/// Parses YAML, and says which keys came twice, by their lines.
pub fn yaml_strictly(bytes: &[u8]) -> Result<Read, Status> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Status::bad_request("the object provided is not valid UTF-8"))?;
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
    let node: Node = serde_saphyr::from_str_with_options(text, options)
        .map_err(|e| Status::bad_request(format!("the object provided is not valid YAML: {e}")))?;
    let mut strange = Vec::new();
    let value = node.into_value(&mut strange);
    Ok(Read { value, strange, twice: None })
}

/// A YAML node before its duplicate keys are dropped.
enum Node {
    Plain(Value),
    List(Vec<Node>),
    Map(Vec<(serde_saphyr::Spanned<String>, Node)>),
}

impl Node {
    fn into_value(self, strange: &mut Vec<String>) -> Value {
        match self {
            Self::Plain(value) => value,
            Self::List(items) => items.into_iter().map(|item| item.into_value(strange)).collect(),
            Self::Map(entries) => {
                let mut map = serde_json::Map::new();
                for (key, node) in entries {
                    let value = node.into_value(strange);
                    let line = key.referenced.line();
                    if strange.len() < strict::MAX_REPORTED && map.contains_key(&key.value) {
                        strange.push(format!("line {line}: key \"{}\" already set in map", key.value));
                    }
                    map.insert(key.value, value);
                }
                Value::Object(map)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any YAML node")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Node, E> {
        Ok(Node::Plain(v.into()))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Node, E> {
        Ok(Node::Plain(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Node, E> {
        Ok(Node::Plain(v.into()))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Node, E> {
        Ok(Node::Plain(v.into()))
    }
    fn visit_str<E>(self, v: &str) -> Result<Node, E> {
        Ok(Node::Plain(v.into()))
    }
    fn visit_string<E>(self, v: String) -> Result<Node, E> {
        Ok(Node::Plain(v.into()))
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Plain(Value::Null))
    }
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Plain(Value::Null))
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

/// An object body that must be there and be a map.
pub async fn object(body: Body, headers: &HeaderMap) -> Result<Read, Status> {
    let content_type = content_type(headers);
    let bytes = read(body).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Status::bad_request("the request has no body; it needs an object"));
    }
    let read = match content_type.as_str() {
        "application/json" | "text/json" => {
            let read = Read::from(json_strictly(&bytes)?);
            let twice = (!read.strange.is_empty()).then(|| bytes.clone());
            Read { twice, ..read }
        }
        "application/yaml" | "text/yaml" | "application/x-yaml" => yaml_strictly(&bytes)?,
        other => Read { value: decode(&bytes, other)?.unwrap_or_default(), strange: Vec::new(), twice: None },
    };
    match read.value {
        Value::Object(_) => Ok(read),
        _ => Err(Status::bad_request("the object provided is not a JSON object")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_tells_of_keys_that_come_twice_by_their_line() {
        let text = b"\na: 1\nspec:\n  foo: x\n  foo: z\n  list:\n  - k: [1, 2.5, true, null]\n    k: \"3\"\nempty: {}\n";
        let read = yaml_strictly(text).unwrap();
        assert_eq!(read.value, json!({"a": 1, "spec": {"foo": "z", "list": [{"k": "3"}]}, "empty": {}}));
        assert_eq!(
            read.strange,
            ["line 5: key \"foo\" already set in map", "line 8: key \"k\" already set in map"]
        );
        assert!(yaml_strictly(b"a: [").is_err());
        assert!(yaml_strictly(&b"[".repeat(100_000)).is_err(), "too deep");
    }
}
