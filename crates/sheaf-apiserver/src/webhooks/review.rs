//! The AdmissionReview that a webhook is sent, and what its answer means. Pure.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sheaf_meta::status::{Cause, Status};

/// What a webhook is told of a request.
pub(super) struct Asking<'a> {
    /// Names the exchange.
    pub(super) uid: &'a str,
    /// Kind as the webhook is shown it: group, version, kind.
    pub(super) kind: [&'a str; 3],
    /// Resource as the webhook is shown it: group, version, plural.
    pub(super) resource: [&'a str; 3],
    /// Kind of the request itself.
    pub(super) request_kind: [&'a str; 3],
    /// Resource of the request itself.
    pub(super) request_resource: [&'a str; 3],
    /// The subresource, or empty.
    pub(super) subresource: &'a str,
    /// Name of the object.
    pub(super) name: &'a str,
    /// Its namespace, or empty.
    pub(super) namespace: &'a str,
    /// `CREATE`, ...
    pub(super) operation: &'a str,
    /// Who asks.
    pub(super) user: Value,
    /// The new object; null where there is none.
    pub(super) object: &'a Value,
    /// The stored object; null where there is none.
    pub(super) old: &'a Value,
    /// Whether nothing will be stored.
    pub(super) dry_run: bool,
    /// `CreateOptions`, ...
    pub(super) options: &'a Value,
}

impl Asking<'_> {
    /// `request` of the review.
    pub(super) fn request(&self) -> Value {
        let kind =
            |[group, version, kind]: [&str; 3]| json!({"group": group, "version": version, "kind": kind});
        let resource =
            |[group, version, name]: [&str; 3]| json!({"group": group, "version": version, "resource": name});
        let mut out = json!({
            "uid": self.uid,
            "kind": kind(self.kind),
            "resource": resource(self.resource),
            "requestKind": kind(self.request_kind),
            "requestResource": resource(self.request_resource),
            "operation": self.operation,
            "userInfo": self.user,
            "object": self.object,
            "oldObject": self.old,
            "dryRun": self.dry_run,
            "options": self.options,
        });
        for (key, value) in [
            ("name", self.name),
            ("namespace", self.namespace),
            ("subResource", self.subresource),
            ("requestSubResource", self.subresource),
        ] {
            if !value.is_empty() {
                out[key] = json!(value);
            }
        }
        out
    }

    /// The whole body.
    pub(super) fn review(&self, version: &str) -> Value {
        json!({
            "kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": self.request(),
        })
    }
}

/// What a webhook said.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Answer {
    /// Yes or no.
    pub(super) allowed: bool,
    /// Why not, as a Status.
    pub(super) status: Value,
    /// A JSON patch, or null.
    pub(super) patch: Value,
    /// Sentences for the user.
    pub(super) warnings: Vec<String>,
    /// For the audit log.
    pub(super) annotations: BTreeMap<String, String>,
}

/// Reads an answer. The error says what is wrong with it.
pub(super) fn read(body: &[u8], version: &str, uid: &str, mutating: bool) -> Result<Answer, String> {
    let review: Value =
        serde_json::from_slice(body).map_err(|e| format!("the answer is not valid JSON: {e}"))?;
    let text = |key: &str| review.get(key).and_then(Value::as_str).unwrap_or_default();
    let wanted = format!("admission.k8s.io/{version}");
    if version == "v1" && (text("apiVersion"), text("kind")) != (&*wanted, "AdmissionReview") {
        let got = format!("{}, Kind={}", text("apiVersion"), text("kind"));
        return Err(format!("expected webhook response of {wanted}, Kind=AdmissionReview, got {got}"));
    }
    let response = review.get("response").filter(|r| r.is_object()).ok_or("webhook response was absent")?;
    let text = |key: &str| response.get(key).and_then(Value::as_str).unwrap_or_default();
    if version == "v1" && text("uid") != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text("uid")));
    }
    let patch = patch(text("patch"), text("patchType"), version, mutating)?;
    let words = |key: &str| response.get(key).and_then(Value::as_array).into_iter().flatten();
    let annotations = response.get("auditAnnotations").and_then(Value::as_object).into_iter().flatten();
    Ok(Answer {
        allowed: response.get("allowed").and_then(Value::as_bool).unwrap_or(false),
        status: response.get("status").cloned().unwrap_or_default(),
        patch,
        warnings: words("warnings").filter_map(|w| w.as_str().map(String::from)).take(WARNINGS).collect(),
        annotations: annotations.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.into()))).collect(),
    })
}

/// Most warnings that one answer may bring.
const WARNINGS: usize = 64;

fn patch(encoded: &str, kind: &str, version: &str, mutating: bool) -> Result<Value, String> {
    if !mutating {
        return match (encoded, kind) {
            ("", "") => Ok(Value::Null),
            ("", _) => Err("validating webhook may not return response.patchType".into()),
            _ => Err("validating webhook may not return response.patch".into()),
        };
    }
    match (encoded, kind) {
        ("", "") => return Ok(Value::Null),
        ("", _) => return Err("webhook returned response.patchType but not response.patch".into()),
        (_, "") if version == "v1" => {
            return Err("webhook returned response.patch but not response.patchType".into());
        }
        (_, "" | "JSONPatch") => {}
        (_, other) => {
            return Err(format!("webhook returned invalid response.patchType of {other:?}"));
        }
    }
    let raw = STANDARD.decode(encoded).map_err(|e| format!("response.patch is not base64: {e}"))?;
    serde_json::from_slice(&raw).map_err(|e| format!("response.patch is not a JSON patch: {e}"))
}

/// The failure that a refusal is, with all that the webhook said of it.
pub(super) fn refusal(webhook: &str, status: &Value) -> Status {
    let mut status = match status {
        Value::Object(_) => status.clone(),
        _ => json!({}),
    };
    let text = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let denied = format!("admission webhook \"{webhook}\" denied the request");
    let message = match (text("message").as_str(), text("reason").as_str()) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = status.get("code").and_then(Value::as_u64).and_then(|c| u16::try_from(c).ok());
    // No refusal says that all went well.
    let code = code.filter(|c| (400..600).contains(c)).unwrap_or(400);
    status["kind"] = json!("Status");
    status["apiVersion"] = json!("v1");
    status["status"] = json!("Failure");
    status["message"] = json!(message);
    status["code"] = json!(code);
    if status.get("metadata").is_none() {
        status["metadata"] = json!({});
    }
    let mut out = Status::new(code, "Forbidden", message);
    out.foreign = Some(Box::new(status));
    out
}

/// 500 for a webhook that could not be asked, where that is no reason to go on.
pub(super) fn failure(webhook: &str, why: &str) -> Status {
    internal(&format!("failed calling webhook \"{webhook}\": {why}"))
}

/// An internal error whose cause clients may see.
pub(super) fn internal(why: &str) -> Status {
    let mut status = Status::new(500, "InternalError", format!("Internal error occurred: {why}"));
    status.details.causes.push(Cause { reason: String::new(), message: why.into(), field: String::new() });
    status
}

/// 400 for a dry run that a webhook would not know to be one.
pub(super) fn no_dry_run(webhook: &str) -> Status {
    Status::bad_request(format!("admission webhook \"{webhook}\" does not support dry run"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(response: Value) -> Vec<u8> {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn answers_as_a_table() {
        let patch = STANDARD.encode(r#"[{"op":"add","path":"/a","value":1}]"#);
        for (body, mutating, expected) in [
            (body(json!({"uid": "u", "allowed": true})), true, Ok(true)),
            (body(json!({"uid": "u"})), true, Ok(false)),
            (
                body(json!({"uid": "u", "allowed": true, "patch": patch, "patchType": "JSONPatch"})),
                true,
                Ok(true),
            ),
            (body(json!({"uid": "x", "allowed": true})), true, Err("expected response.uid=\"u\"")),
            (body(Value::Null), true, Err("webhook response was absent")),
            (body(json!({"uid": "u", "allowed": true, "patch": patch})), true, Err("not response.patchType")),
            (body(json!({"uid": "u", "patchType": "JSONPatch"})), true, Err("but not response.patch")),
            (
                body(json!({"uid": "u", "patch": patch, "patchType": "Merge"})),
                true,
                Err("invalid response.patchType"),
            ),
            (body(json!({"uid": "u", "patch": "!", "patchType": "JSONPatch"})), true, Err("not base64")),
            (
                body(json!({"uid": "u", "patch": patch, "patchType": "JSONPatch"})),
                false,
                Err("may not return"),
            ),
            (b"<html>".to_vec(), true, Err("not valid JSON")),
            (br#"{"kind":"Pod","apiVersion":"v1"}"#.to_vec(), true, Err("got v1, Kind=Pod")),
        ] {
            let got = read(&body, "v1", "u", mutating);
            match (got, expected) {
                (Ok(answer), Ok(allowed)) => assert_eq!(answer.allowed, allowed),
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (got, expected) => panic!("{got:?}, not {expected:?}"),
            }
        }
        let old = json!({"response": {"allowed": true, "patch": patch}}).to_string();
        assert!(read(old.as_bytes(), "v1beta1", "u", true).unwrap().patch.is_array());
    }

    #[test]
    fn refusals_keep_what_the_webhook_said() {
        for (status, code, message) in [
            (Value::Null, 400, "admission webhook \"w\" denied the request without explanation"),
            (json!({"message": "no", "code": 403}), 403, "admission webhook \"w\" denied the request: no"),
            (json!({"reason": "Why"}), 400, "admission webhook \"w\" denied the request: Why"),
            (
                json!({"message": "no", "code": 200, "status": "Success"}),
                400,
                "admission webhook \"w\" denied the request: no",
            ),
        ] {
            let refusal = refusal("w", &status).to_json();
            assert_eq!((&refusal["code"], &refusal["message"]), (&json!(code), &json!(message)));
            assert_eq!(refusal["status"], "Failure");
        }
        let details = json!({"code": 422, "reason": "Own", "details": {"causes": [{"field": "x"}]}});
        let refusal = refusal("w", &details).to_json();
        assert_eq!((&refusal["reason"], &refusal["details"]), (&json!("Own"), &details["details"]));
    }
}
