//! Admission of CertificateSigningRequests: what is asked and by whom never changes, who may approve and who may sign, and what
//! states a request can be in.
//!
//! Not here: who is approved by rule, and the signing, which are a controller's.

mod check;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};

use crate::{
    authz::Attributes,
    core::{Core, Cx},
    extension::{Admission, Write},
};

const GROUP: &str = "certificates.k8s.io";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// What the server says of the requester; nobody else can.
const IDENTITY: &[&str] = &["username", "uid", "groups", "extra"];

/// The admission rules.
pub(crate) struct Requests;

impl Admission for Requests {
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let info = &write.row.info;
            if info.group != GROUP || info.plural != "certificatesigningrequests" {
                return Ok(());
            }
            let errors = match write.old {
                None => {
                    stamp(object, cx);
                    restrict(object, write)?;
                    check::spec(object)
                }
                Some(old) => {
                    keep(object, old, write.subresource, cx);
                    may(core, cx, write, object, old).await?;
                    check::update(object, old, write.subresource)
                }
            };
            match errors.is_empty() {
                true => Ok(()),
                false => Err(Status::invalid(GROUP, &info.kind, object::name(object), &errors)),
            }
        })
    }
}

/// Writes down who asks.
fn stamp(object: &mut Value, cx: &Cx) {
    let spec = sheaf_meta::object::as_map(object).entry("spec").or_insert_with(|| json!({}));
    let spec = sheaf_meta::object::as_map(spec);
    for field in IDENTITY {
        spec.remove(*field);
    }
    if let Value::Object(user) = cx.user.to_json() {
        spec.extend(user);
    }
}

/// A certificate of the masters, who may do everything and cannot be told apart, is made by nobody's request.
fn restrict(object: &Value, write: &Write<'_>) -> Result<(), Status> {
    if object::str_at(object, &["spec", "signerName"]) != CLIENT {
        return Ok(());
    }
    if check::organizations(object).iter().any(|o| o == crate::authn::MASTERS) {
        let why = format!("use of {CLIENT} signer with {} group is not allowed", crate::authn::MASTERS);
        return Err(Status::forbidden(write.row.info.resource(), object::name(object), &why));
    }
    Ok(())
}

/// Keeps what a path may not change, and dates the conditions.
fn keep(object: &mut Value, old: &Value, subresource: &str, cx: &Cx) {
    object["spec"] = old["spec"].clone();
    if subresource == "approval" {
        // Conditions only: the certificate is the signer's.
        let conditions = object.pointer("/status/conditions").cloned();
        let mut status = old.get("status").filter(|s| s.is_object()).cloned().unwrap_or_else(|| json!({}));
        match conditions {
            Some(conditions) => status["conditions"] = conditions,
            None => drop(object::as_map(&mut status).remove("conditions")),
        }
        object["status"] = status;
    }
    let before = check::conditions(old).to_vec();
    let now = json!(object::time(cx.now));
    let list = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in list.into_iter().flatten().filter_map(Value::as_object_mut) {
        let unset = |v: Option<&Value>| v.is_none_or(Value::is_null);
        if unset(condition.get("lastUpdateTime")) {
            condition.insert("lastUpdateTime".into(), now.clone());
        }
        if unset(condition.get("lastTransitionTime")) {
            let same = before.iter().find(|b| {
                b.get("type") == condition.get("type") && b.get("status") == condition.get("status")
            });
            let kept = same.and_then(|b| b.get("lastTransitionTime")).filter(|t| !t.is_null());
            condition.insert("lastTransitionTime".into(), kept.unwrap_or(&now).clone());
        }
    }
}

/// Whether the writer may do with this signer's requests what they do: approve, or sign.
async fn may(core: &Core, cx: &Cx, write: &Write<'_>, object: &Value, old: &Value) -> Result<(), Status> {
    let part = |o: &Value, field: &str| o.pointer(&format!("/status/{field}")).cloned().unwrap_or_default();
    let touched = ["certificate", "conditions"].iter().any(|f| part(object, f) != part(old, f));
    let verb = match write.subresource {
        "approval" => "approve",
        "status" if touched => "sign",
        _ => return Ok(()),
    };
    let signer = object::str_at(old, &["spec", "signerName"]);
    let domain = signer.split('/').next().unwrap_or_default();
    for name in [signer, &format!("{domain}/*")] {
        let what = Attributes { verb, group: GROUP, resource: "signers", name, ..Attributes::default() };
        if core.authorize(&cx.user, what).await.is_ok() {
            return Ok(());
        }
    }
    let why = format!("user not permitted to {verb} requests with signerName \"{signer}\"");
    Err(Status::forbidden(write.row.info.resource(), object::name(object), &why))
}
