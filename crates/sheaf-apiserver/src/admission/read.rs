//! Objects that a decision needs, from the watch cache.

use std::borrow::Cow;

use serde_json::Value;
use sheaf_store::cache::At;

use crate::{core::Core, handler};

/// An object, in the first version in which its kind is served.
pub(crate) async fn get(
    core: &Core,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
    at: At,
) -> Result<Option<Value>, String> {
    let rows = core.registry.snapshot();
    let Some(row) = rows.find_any_version(group, plural) else { return Ok(None) };
    let kind = core.kind(row).await.map_err(|s| s.to_string())?;
    let item = kind.get(&row.key(namespace, name), at).await.map_err(|e| e.to_string())?;
    item.map(|item| handler::view(row, &item).map(Cow::into_owned).map_err(|s| s.to_string())).transpose()
}

/// All objects of a namespace.
pub(crate) async fn list(
    core: &Core,
    group: &str,
    plural: &str,
    namespace: &str,
) -> Result<Vec<Value>, String> {
    let rows = core.registry.snapshot();
    let Some(row) = rows.find_any_version(group, plural) else { return Ok(Vec::new()) };
    let kind = core.kind(row).await.map_err(|s| s.to_string())?;
    let listing = kind.list(&row.key(namespace, ""), "", 0, At::Any).await.map_err(|e| e.to_string())?;
    listing
        .objects
        .iter()
        .map(|item| handler::view(row, item).map(Cow::into_owned).map_err(|s| s.to_string()))
        .collect()
}
