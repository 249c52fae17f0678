//! Request bodies: reading them within limits, and decoding them into JSON values.

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde_json::Value;
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

/// Reads the whole body; 413 beyond [`MAX_BODY`].
pub async fn read(mut body: Body) -> Result<Bytes, Status> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|e| Status::bad_request(format!("the body of the request could not be read: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > MAX_BODY {
            let message = format!("Request entity too large: limit is {MAX_BODY}");
            return Err(Status::new(413, "RequestEntityTooLarge", message));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.into())
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

/// Parses YAML (or JSON, which is YAML).
pub fn yaml(bytes: &[u8]) -> Result<Value, Status> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Status::bad_request("the object provided is not valid UTF-8"))?;
    serde_saphyr::from_str(text)
        .map_err(|e| Status::bad_request(format!("the object provided is not valid YAML: {e}")))
}

/// An object body that must be there and be a map. Duplicate keys of JSON are reported; YAML that has any is refused
/// by its parser.
pub async fn object(body: Body, headers: &HeaderMap) -> Result<strict::Parsed, Status> {
    let content_type = content_type(headers);
    let bytes = read(body).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Status::bad_request("the request has no body; it needs an object"));
    }
    let parsed = match content_type.as_str() {
        "application/json" | "text/json" => json_strictly(&bytes)?,
        other => strict::Parsed { value: decode(&bytes, other)?.unwrap_or_default(), duplicates: Vec::new() },
    };
    match parsed.value {
        Value::Object(_) => Ok(parsed),
        _ => Err(Status::bad_request("the object provided is not a JSON object")),
    }
}
