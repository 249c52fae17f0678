//! Rules about objects that rest on other objects: quotas and limits of a namespace, priorities, default classes, and
//! evictions. Each decides by pure functions of `sheaf-plan` over what the watch cache holds.
//!
//! Order matters: defaults come before limits, limits before quotas, which count what is stored in the end.

mod claims;
pub(crate) mod evictions;
mod limits;
mod pods;
mod quotas;

use std::sync::Arc;

use serde_json::Value;
use sheaf_meta::status::Status;
use sheaf_store::cache::At;

use crate::{core::Core, extension::Admission, handler, registry::Row};

/// All of them, in their order.
pub(crate) fn plugins() -> Vec<Arc<dyn Admission>> {
    vec![
        Arc::new(pods::Pods),
        Arc::new(claims::Classes),
        Arc::new(limits::Limits),
        Arc::new(quotas::Quotas::default()),
    ]
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
