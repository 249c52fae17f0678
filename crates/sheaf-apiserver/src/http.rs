//! The HTTP vocabulary of this package: one body type, and answers made from objects and statuses.
//!
//! Not here: what is answered, and content negotiation.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde_json::Value;
use sheaf_meta::status::Status;

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every request and answer, streaming or not.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// A request with that body.
pub type Request = http::Request<Body>;
/// An answer with that body.
pub type Response = http::Response<Body>;
/// What a handler gives: an answer, or a failure that becomes one.
pub type Outcome = Result<Response, Status>;

/// `application/json`, as every plain answer has it: no charset, no parameters.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A body of known bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Boxes any body.
pub fn boxed<B>(body: B) -> Body
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// An answer of bytes.
pub fn answer(code: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(full(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// A JSON answer.
pub fn json(code: StatusCode, value: &Value) -> Response {
    // A `Value` has only string keys and finite numbers: it always serialises.
    answer(code, JSON, serde_json::to_vec(value).unwrap_or_default())
}

/// Plain text.
pub fn text(code: StatusCode, body: impl Into<Bytes>) -> Response {
    answer(code, HeaderValue::from_static("text/plain; charset=utf-8"), body)
}

/// An answer without a body.
pub fn bare(code: StatusCode) -> Response {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = code;
    response
}

/// The answer for a failure. What is internal goes to the log, here and only here.
pub fn failure(status: &Status) -> Response {
    if let Some(internal) = &status.internal {
        tracing::error!(reason = status.reason, message = %status.message, cause = %internal, "request failed");
    }
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &status.to_json());
    // Clients repeat by themselves, up to ten times, when a 429 or 5xx has it: it is set only where that is right.
    if let Some(seconds) = status.details.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status.code == 401 {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Appends `Warning: 299 - "text"` headers, as kubectl prints them.
pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    /// Beyond this much the rest is dropped: proxies limit headers.
    const LIMIT_BYTES: usize = 4096;
    let mut total = 0;
    for text in warnings {
        let clean: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .flat_map(|c| matches!(c, '"' | '\\').then_some('\\').into_iter().chain([c]))
            .collect();
        total += clean.len();
        if total > LIMIT_BYTES {
            break;
        }
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{clean}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
