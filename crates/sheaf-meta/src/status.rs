//! The one error that crosses the API: Kubernetes' `Status`, with the reasons and causes that clients branch on.
//!
//! Not for internal failures: those keep their own types and are turned into [`Status::internal`] at the edge.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A field of an object that breaks a rule. `field` is a path as Kubernetes writes it (`spec.disks[0].name`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// Path of the field, without a leading dot.
    pub field: String,
    /// `FieldValueRequired`, `FieldValueInvalid`, `FieldValueDuplicate`, `FieldValueNotSupported`,
    /// `FieldValueForbidden`, `FieldValueTooLong`, `FieldValueNotFound`, `FieldValueTypeInvalid`.
    pub reason: String,
    /// The whole sentence after the path, as in `Invalid value: "x": must be ...`.
    pub message: String,
}

impl FieldError {
    /// A required field is missing or empty.
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let message = if why.is_empty() { "Required value".into() } else { format!("Required value: {why}") };
        Self { field: field.into(), reason: "FieldValueRequired".into(), message }
    }
    /// The value breaks a rule; `why` says which.
    pub fn invalid(field: impl Into<String>, value: &Value, why: &str) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {value}: {why}"),
        }
    }
    /// The value is none of those allowed.
    pub fn not_supported(field: impl Into<String>, value: &Value, allowed: &[&str]) -> Self {
        let allowed: Vec<String> = allowed.iter().map(|a| format!("\"{a}\"")).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", allowed.join(", "));
        Self { field: field.into(), reason: "FieldValueNotSupported".into(), message }
    }
    /// The field may not be set here.
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueForbidden".into(),
            message: format!("Forbidden: {why}"),
        }
    }
    /// The same key appears twice in a list that is a map or a set.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueDuplicate".into(),
            message: format!("Duplicate value: {value}"),
        }
    }
}

/// One entry of `Status.details.causes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Machine-readable (`FieldManagerConflict`, `NamespaceTerminating`, ...).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Path of the field, if one is at fault.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What kind of object an error is about: `kind` is the plural resource, except for `Invalid`, where it is the Kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// Name of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group, empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Plural resource, or Kind where `reason` is `Invalid`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Identity of the object, where it is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// What led here, one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// Seconds after which a blind repeat is right; also sent as the `Retry-After` header.
    #[serde(default, rename = "retryAfterSeconds", skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// A failure as the API answers it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Kubernetes' reason word (`NotFound`, `Conflict`, ...).
    pub reason: &'static str,
    /// For people; names the object, the field and the rule.
    pub message: String,
    /// For programs.
    pub details: Details,
    /// What goes into the log and never to the client.
    pub internal: Option<String>,
    /// Fresh continue token of an expired list (`metadata.continue`).
    pub continue_token: Option<String>,
    /// The whole answer, where somebody else made it and it is passed on as it is.
    pub foreign: Option<Box<Value>>,
}

/// Names the resource an error is about: plural and group, `pods` or `virtualmachines.kubevirt.io`.
#[derive(Debug, Clone, Copy)]
pub struct ResourceRef<'a> {
    /// API group, empty for the core group.
    pub group: &'a str,
    /// Plural name.
    pub plural: &'a str,
}

impl std::fmt::Display for ResourceRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.group.is_empty() {
            f.write_str(self.plural)
        } else {
            write!(f, "{}.{}", self.plural, self.group)
        }
    }
}

impl Status {
    /// A failure with nothing but code, reason and message.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Details::default(),
            internal: None,
            continue_token: None,
            foreign: None,
        }
    }
    fn about(mut self, r: ResourceRef<'_>, name: &str) -> Self {
        self.details.group = r.group.into();
        self.details.kind = r.plural.into();
        self.details.name = name.into();
        self
    }
    /// 404 for an object.
    pub fn not_found(r: ResourceRef<'_>, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{r} \"{name}\" not found")).about(r, name)
    }
    /// 404 for a path that leads nowhere.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }
    /// 409: an object of this name is there already.
    pub fn already_exists(r: ResourceRef<'_>, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{r} \"{name}\" already exists")).about(r, name)
    }
    /// 409: somebody else wrote in between, or a precondition does not hold.
    pub fn conflict(r: ResourceRef<'_>, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {r} \"{name}\": {why}");
        Self::new(409, "Conflict", message).about(r, name)
    }
    /// The sentence that clients match when a resourceVersion is stale.
    pub const STALE: &str =
        "the object has been modified; please apply your changes to the latest version and try again";
    /// 422 with one cause for each field.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let all: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        let list = if all.len() == 1 { all.concat() } else { format!("[{}]", all.join(", ")) };
        let target = if group.is_empty() { kind.to_string() } else { format!("{kind}.{group}") };
        let mut s = Self::new(422, "Invalid", format!("{target} \"{name}\" is invalid: {list}"));
        s.details =
            Details { name: name.into(), group: group.into(), kind: kind.into(), ..Details::default() };
        s.details.causes = errors
            .iter()
            .map(|e| Cause { reason: e.reason.clone(), message: e.message.clone(), field: e.field.clone() })
            .collect();
        s
    }
    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }
    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }
    /// 403 with the sentence of Kubernetes' authorizer in `message`.
    pub fn forbidden(r: ResourceRef<'_>, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{r} is forbidden: {why}")
        } else {
            format!("{r} \"{name}\" is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).about(r, name)
    }
    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }
    /// 410: a revision or a continue token is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }
    /// 415: the body's type is not one of `accepted`.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }
    /// 500; `why` goes to the log only.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let mut s =
            Self::new(500, "InternalError", "an internal error occurred; the server's log has the cause");
        s.internal = Some(why.to_string());
        s
    }
    /// The JSON body that clients decode.
    pub fn to_json(&self) -> Value {
        if let Some(foreign) = &self.foreign {
            return (**foreign).clone();
        }
        let mut metadata = json!({});
        if let Some(token) = &self.continue_token {
            metadata["continue"] = json!(token);
        }
        let mut out = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if self.details != Details::default() {
            out["details"] = json!(self.details);
        }
        out
    }
}
