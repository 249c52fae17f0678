//! Objects that every cluster has, made at start through the ordinary path: what is there already is left alone.

use std::sync::Arc;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::{
    authn::{MASTERS, UserInfo},
    core::{Caller, Core},
    http::full,
    server::StartError,
};

/// Namespaces that clients need. `default` holds events of cluster-scoped objects; `kube-system` tokens;
/// `kube-node-lease` the leases of nodes; `harvester-public` the shared images and templates.
const NAMESPACES: &[&str] = &[
    "default",
    "kube-system",
    "kube-public",
    "kube-node-lease",
    "harvester-system",
    "harvester-public",
    "cattle-system",
];

/// Who makes them.
fn identity() -> UserInfo {
    UserInfo::new("system:apiserver", [MASTERS])
}

/// Makes what is missing.
pub(crate) async fn run(core: &Arc<Core>) -> Result<(), StartError> {
    let rows = core.registry.snapshot();
    if rows.find("", "v1", "namespaces").is_some() {
        for name in NAMESPACES {
            let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            ensure(core, "/api/v1/namespaces", &format!("namespace {name}"), &body).await?;
        }
    }
    Ok(())
}

/// Creates an object; one of that name is good enough.
async fn ensure(core: &Arc<Core>, path: &str, object: &str, body: &Value) -> Result<(), StartError> {
    let mut request = http::Request::new(full(body.to_string()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::try_from(path).unwrap_or_default();
    let response = core.serve(Caller::Inside(identity()), request).await;
    match response.status() {
        StatusCode::CREATED | StatusCode::CONFLICT => Ok(()),
        _ => {
            let bytes = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
            let status = String::from_utf8_lossy(&bytes).into_owned();
            Err(StartError::Bootstrap { object: object.into(), status })
        }
    }
}
