//! Rules about objects that rest on other objects: quotas and limits of a namespace, priorities, default classes, and
//! evictions. Each decides by pure functions of `sheaf-plan` over what the watch cache holds.
//!
//! Order matters: what limits fill in decides a pod's quality of service, and quotas count what is stored in the end.

mod accounts;
mod claims;
pub(crate) mod evictions;
mod limits;
pub(crate) mod pods;
mod quotas;

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};
use sheaf_meta::status::Status;
use sheaf_store::cache::At;

use crate::{core::Core, extension::Admission, handler, internal, registry::Row};

/// Priority classes that every cluster has, their values, and what they are for.
const CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// All of them, in their order.
pub(crate) fn plugins() -> Vec<Arc<dyn Admission>> {
    vec![
        Arc::new(claims::Classes),
        Arc::new(limits::Limits),
        Arc::new(pods::Pods),
        Arc::new(accounts::Accounts),
        Arc::new(quotas::Quotas::default()),
    ]
}

/// Makes the priority classes that every cluster has; those that are there are left alone. A failure is told and no
/// reason not to start.
pub(crate) async fn bootstrap(core: &Arc<Core>) {
    const PATH: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
    if core.registry.snapshot().find_any_version("scheduling.k8s.io", "priorityclasses").is_none() {
        return;
    }
    for (name, value, description) in CLASSES {
        let class = json!({"metadata": {"name": name}, "value": value, "description": description});
        match internal::call(core, Method::POST, PATH, "application/json", Some(&class)).await {
            Err(status) if status.reason != "AlreadyExists" => {
                tracing::warn!(name, message = %status, "a priority class is not there");
            }
            _ => {}
        }
    }
}

/// Whether a row is this resource of the group.
fn is(row: &Row, group: &str, plural: &str) -> bool {
    row.info.group == group && row.info.plural == plural
}

/// Objects of a resource from the cache: of a namespace, or all where it is empty. None if nobody serves it.
async fn all(
    core: &Core,
    group: &str,
    plural: &str,
    namespace: &str,
    at: At,
) -> Result<Vec<(String, Value)>, Status> {
    let rows = core.registry.snapshot();
    let Some(row) = rows.find_any_version(group, plural) else { return Ok(Vec::new()) };
    let kind = core.kind(row).await?;
    // A collection's key ends with a slash: `a` is no part of `ab`.
    let listed = kind.list(&row.key(namespace, ""), "", 0, at).await.map_err(handler::store_failure)?;
    let one = |item: &handler::Item| Ok((item.key.to_string(), handler::view(row, item)?.into_owned()));
    listed.objects.iter().map(one).collect()
}

/// 403 as Kubernetes' admission says it.
fn forbidden(row: &Row, name: &str, why: &str) -> Status {
    Status::forbidden(row.info.resource(), name, why)
}
