//! Requests of the server to itself, by the ordinary path: what a subresource changes goes through the same
//! decoding, admission and validation as what a client changes.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use http_body_util::BodyExt;
use serde_json::Value;
use sheaf_meta::status::{Details, Status};

use crate::{
    authn::{MASTERS, UserInfo},
    core::{Caller, Core},
    http::full,
};

/// The server's own identity.
pub(crate) fn identity() -> UserInfo {
    UserInfo::new("system:apiserver", [MASTERS])
}

/// Sends a request and reads its answer. A failure comes back as the status it is.
pub(crate) async fn call(
    core: &Arc<Core>,
    method: Method,
    path: &str,
    content_type: &'static str,
    body: Option<&Value>,
) -> Result<Value, Status> {
    let body = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
    let mut request = http::Request::new(full(body));
    *request.method_mut() = method;
    *request.uri_mut() = http::Uri::try_from(path).map_err(Status::internal)?;
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("sheaf-apiserver"));
    // Boxed: the path leads back here.
    let response = Box::pin(core.serve(Caller::Inside(identity()), request)).await;
    let code = response.status();
    let bytes = response.into_body().collect().await.map_err(Status::internal)?.to_bytes();
    let value: Value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
    if code.is_success() { Ok(value) } else { Err(status(code.as_u16(), &value)) }
}

/// Reads an object.
pub(crate) async fn get(core: &Arc<Core>, path: &str) -> Result<Option<Value>, Status> {
    match call(core, Method::GET, path, "application/json", None).await {
        Ok(object) => Ok(Some(object)),
        Err(status) if status.code == 404 => Ok(None),
        Err(status) => Err(status),
    }
}

/// Merge-patches an object.
pub(crate) async fn merge(core: &Arc<Core>, path: &str, patch: &Value) -> Result<Value, Status> {
    call(core, Method::PATCH, path, "application/merge-patch+json", Some(patch)).await
}

/// The failure that an answer's body tells of.
fn status(code: u16, body: &Value) -> Status {
    let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default();
    let reason = match text("reason") {
        "NotFound" => "NotFound",
        "Conflict" => "Conflict",
        "AlreadyExists" => "AlreadyExists",
        "Invalid" => "Invalid",
        "Forbidden" => "Forbidden",
        "BadRequest" => "BadRequest",
        "TooManyRequests" => "TooManyRequests",
        "Timeout" => "Timeout",
        _ => "InternalError",
    };
    let mut status = Status::new(code, reason, text("message"));
    let details = body.get("details").cloned().unwrap_or_default();
    status.details = serde_json::from_value::<Details>(details).unwrap_or_default();
    status
}
