//! Admission that needs to know who asks. Rules of single kinds without that need are in their rows.

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sheaf_meta::status::Status;

use crate::{
    core::{Core, Cx},
    extension::{Admission, Write},
};

/// Stamps certificate requests with the requester's identity, which the signer relies on: nobody can write it.
pub struct CertificateRequests;

const IDENTITY: &[&str] = &["username", "uid", "groups", "extra"];

impl Admission for CertificateRequests {
    fn admit<'a>(
        &'a self,
        _core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        if write.row.info.group == "certificates.k8s.io"
            && write.row.info.plural == "certificatesigningrequests"
        {
            stamp(object, write.old, cx);
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

fn stamp(object: &mut Value, old: Option<&Value>, cx: &Cx) {
    match old {
        // The request itself never changes: what was approved is what is signed.
        Some(old) => object["spec"] = old["spec"].clone(),
        None => {
            let spec = sheaf_meta::object::as_map(object).entry("spec").or_insert_with(|| json!({}));
            let spec = sheaf_meta::object::as_map(spec);
            for field in IDENTITY {
                spec.remove(*field);
            }
            spec.insert("username".into(), json!(cx.user.username));
            spec.insert("groups".into(), json!(cx.user.groups));
            if !cx.user.uid.is_empty() {
                spec.insert("uid".into(), json!(cx.user.uid));
            }
        }
    }
}
