//! Objects that every cluster has, made at start through the ordinary path: what is there already is left alone.

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};

use crate::{core::Core, internal, server::StartError};

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
    match internal::call(core, Method::POST, path, "application/json", Some(body)).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        Err(status) => Err(StartError::Bootstrap { object: object.into(), status: status.message }),
    }
}
