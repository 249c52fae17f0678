//! Rules for CertificateSigningRequests that need to look into the request, or at what was there before. Pure; words as
//! Kubernetes has them. What can be told from a single field is checked with the kind's other rules.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sheaf_meta::{object, status::FieldError};
use x509_parser::{
    certification_request::X509CertificationRequest, error::X509Error, pem::Pem, prelude::FromDer,
};

/// What can be said of a certificate's use.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// Conditions that settle a request.
const SETTLING: &[&str] = &["Approved", "Denied", "Failed"];
const CONDITIONS: &str = "status.conditions";

/// The conditions of a request.
pub(super) fn conditions(object: &Value) -> &[Value] {
    object.pointer("/status/conditions").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn request_of(object: &Value) -> Result<Pem, String> {
    let encoded = object::str_at(object, &["spec", "request"]);
    let bytes = STANDARD.decode(encoded).map_err(|e| e.to_string())?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&bytes).map_err(|e| e.to_string())?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err("PEM block type must be CERTIFICATE REQUEST".into());
    }
    Ok(pem)
}

/// The organizations that a request names, as far as it can be read.
pub(super) fn organizations(object: &Value) -> Vec<String> {
    let Ok(pem) = request_of(object) else { return Vec::new() };
    let Ok((_, csr)) = X509CertificationRequest::from_der(&pem.contents) else { return Vec::new() };
    let subject = &csr.certification_request_info.subject;
    subject.iter_organization().filter_map(|o| o.as_str().ok().map(String::from)).collect()
}

/// What is wrong with a new request.
pub(super) fn spec(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let request = &object["spec"]["request"];
    if !object::str_at(object, &["spec", "request"]).is_empty() {
        let read = request_of(object).and_then(|pem| {
            let (_, csr) = X509CertificationRequest::from_der(&pem.contents).map_err(|e| e.to_string())?;
            match csr.verify_signature() {
                Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => Ok(()),
                Err(_) => Err("the request is not signed with its own key".into()),
            }
        });
        if let Err(why) = read {
            errors.push(FieldError::invalid("spec.request", request, &why));
        }
    }
    let usages = object.pointer("/spec/usages").and_then(Value::as_array);
    let mut seen = BTreeSet::new();
    for (i, usage) in usages.into_iter().flatten().enumerate() {
        let field = format!("spec.usages[{i}]");
        let word = usage.as_str().unwrap_or_default();
        if !USAGES.contains(&word) {
            errors.push(FieldError::not_supported(field.clone(), usage, USAGES));
        }
        if !seen.insert(word) {
            errors.push(FieldError::duplicate(field, usage));
        }
    }
    if object::str_at(object, &["spec", "signerName"]) == "kubernetes.io/legacy-unknown" {
        let why = "the legacy signerName is not allowed via this API version";
        errors.push(FieldError::invalid("spec.signerName", &object["spec"]["signerName"], why));
    }
    errors
}

/// What is wrong with a change, of the object itself or through a subresource.
pub(super) fn update(object: &Value, old: &Value, subresource: &str) -> Vec<FieldError> {
    let mut errors = form(object);
    let of = |o: &'_ Value, ty: &str| -> Vec<Value> {
        conditions(o).iter().filter(|c| c["type"] == ty).cloned().collect()
    };
    for ty in SETTLING {
        let (before, now) = (of(old, ty), of(object, ty));
        if now.len() < before.len() {
            let why = format!("updates may not remove a condition of type \"{ty}\"");
            errors.push(FieldError::forbidden(CONDITIONS, &why));
        } else if subresource != "approval" && *ty != "Failed" {
            if now.len() > before.len() {
                let why = format!("updates may not add a condition of type \"{ty}\"");
                errors.push(FieldError::forbidden(CONDITIONS, &why));
            } else if now != before {
                let why = format!("updates may not modify a condition of type \"{ty}\"");
                errors.push(FieldError::forbidden(CONDITIONS, &why));
            }
        }
    }
    if !of(object, "Approved").is_empty() && !of(object, "Denied").is_empty() {
        let why = "Approved and Denied conditions are mutually exclusive";
        errors.push(FieldError::invalid(CONDITIONS, &json!("Denied"), why));
    }
    let certificate = |o: &'_ Value| object::str_at(o, &["status", "certificate"]).to_owned();
    let (before, now) = (certificate(old), certificate(object));
    if before != now {
        if !before.is_empty() {
            let why = "updates may not modify existing certificate content";
            errors.push(FieldError::forbidden("status.certificate", why));
        }
        if let Err(why) = chain(&now) {
            errors.push(FieldError::invalid("status.certificate", &json!("<certificate data>"), &why));
        }
    }
    errors
}

/// Each condition by itself.
fn form(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, condition) in conditions(object).iter().enumerate() {
        let text = |field: &str| object::str_at(condition, &[field]);
        let field = |name: &str| format!("{CONDITIONS}[{i}].{name}");
        let (ty, status) = (text("type"), text("status"));
        if ty.is_empty() {
            errors.push(FieldError::required(field("type"), ""));
        } else if !seen.insert(ty) {
            errors.push(FieldError::duplicate(field("type"), &json!(ty)));
        }
        let allowed: &[&str] = if SETTLING.contains(&ty) { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            errors.push(FieldError::required(field("status"), ""));
        } else if !allowed.contains(&status) {
            errors.push(FieldError::not_supported(field("status"), &json!(status), allowed));
        }
    }
    errors
}

/// Whether a certificate is a chain of certificates in PEM form.
fn chain(encoded: &str) -> Result<(), String> {
    if encoded.is_empty() {
        return Ok(());
    }
    let bytes = STANDARD.decode(encoded).map_err(|e| e.to_string())?;
    let mut blocks = 0;
    for pem in Pem::iter_from_buffer(&bytes) {
        let pem = pem.map_err(|e| e.to_string())?;
        if pem.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", pem.label));
        }
        x509_parser::parse_x509_certificate(&pem.contents).map_err(|e| e.to_string())?;
        blocks += 1;
    }
    match blocks {
        0 => Err("must contain at least one CERTIFICATE PEM block".into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::tests::request;

    fn said(errors: &[FieldError]) -> String {
        errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_cannot_be_asked_for() {
        let good = STANDARD.encode(request("joe", &["dev"], &[]));
        let asked = |request: &str, usages: Value, signer: &str| json!({"spec": {"request": request, "usages": usages, "signerName": signer}});
        let client = json!(["client auth"]);
        for (object, expected) in [
            (asked(&good, client.clone(), "example.com/a"), ""),
            (
                asked(&STANDARD.encode("nonsense"), client.clone(), "example.com/a"),
                "spec.request: Invalid value: ",
            ),
            (
                asked(&good, json!(["client auth", "flying"]), "example.com/a"),
                "spec.usages[1]: Unsupported value: \"flying\"",
            ),
            (
                asked(&good, json!(["client auth", "client auth"]), "example.com/a"),
                "spec.usages[1]: Duplicate value: \"client auth\"",
            ),
            (
                asked(&good, client, "kubernetes.io/legacy-unknown"),
                "the legacy signerName is not allowed via this API version",
            ),
        ] {
            let said = said(&spec(&object));
            assert!(if expected.is_empty() { said.is_empty() } else { said.contains(expected) }, "{said}");
        }
        assert_eq!(organizations(&asked(&good, json!([]), "")), ["dev"]);
    }

    #[test]
    fn which_states_follow_which() {
        let with = |types: &[&str]| {
            let list: Vec<Value> = types.iter().map(|t| json!({"type": t, "status": "True"})).collect();
            json!({"status": {"conditions": list}})
        };
        let dir = tempfile::tempdir().unwrap();
        let ca = crate::pki::Ca::load_or_create(dir.path()).unwrap();
        let signed = |text: &str| json!({"status": {"certificate": STANDARD.encode(text)}});
        let real = signed(ca.cert_pem());
        for (old, new, sub, expected) in [
            (with(&[]), with(&["Approved"]), "approval", ""),
            (
                with(&[]),
                with(&["Approved"]),
                "status",
                "updates may not add a condition of type \"Approved\"",
            ),
            (
                with(&["Approved"]),
                with(&[]),
                "approval",
                "updates may not remove a condition of type \"Approved\"",
            ),
            (with(&["Approved"]), with(&["Approved", "Failed"]), "status", ""),
            (
                with(&["Approved"]),
                with(&["Approved", "Denied"]),
                "approval",
                "Approved and Denied conditions are mutually exclusive",
            ),
            (with(&[]), with(&["Custom"]), "status", ""),
            (
                with(&[]),
                with(&["Custom", "Custom"]),
                "status",
                "status.conditions[1].type: Duplicate value: \"Custom\"",
            ),
            (
                with(&[]),
                json!({"status": {"conditions": [{"type": "Approved", "status": "False"}]}}),
                "approval",
                "status.conditions[0].status: Unsupported value: \"False\": supported values: \"True\"",
            ),
            (
                with(&[]),
                json!({"status": {"conditions": [{}]}}),
                "status",
                "status.conditions[0].type: Required value; status.conditions[0].status: Required value",
            ),
            (with(&[]), real.clone(), "status", ""),
            (real.clone(), signed("other"), "status", "updates may not modify existing certificate content"),
            (with(&[]), signed("nonsense"), "status", "must contain at least one CERTIFICATE PEM block"),
            (
                with(&[]),
                signed(&request("joe", &[], &[])),
                "status",
                "only CERTIFICATE PEM blocks are allowed, found \"CERTIFICATE REQUEST\"",
            ),
        ] {
            let said = said(&update(&new, &old, sub));
            assert!(
                if expected.is_empty() { said.is_empty() } else { said.contains(expected) },
                "{old} -> {new} by {sub}: {said}"
            );
        }
    }
}
