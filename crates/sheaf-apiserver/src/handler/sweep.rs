//! Removing all objects of a kind whose definition goes: without admission, but with respect for finalizers.

use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::Value;
use sheaf_meta::{object, status::Status};
use sheaf_store::{Entry, Revision, StoreError};

use super::{
    delete::{self, DeleteOptions},
    object::{decode, encode, store_failure},
};
use crate::{core::Core, namespaces, registry::Row};

/// Objects looked at in one step.
const STEP: u64 = 500;
/// Writes under way at once: the store commits them together.
const AT_ONCE: usize = 32;

/// What a step left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Objects that are there still.
    pub(crate) count: u64,
    /// Whether some of them were not looked at yet.
    pub(crate) more: bool,
    /// One that is held, and by what.
    held: Option<String>,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} remaining", self.count)?;
        match &self.held {
            Some(held) => write!(f, ", such as {held}"),
            None => Ok(()),
        }
    }
}

/// Deletes some of the objects of a kind.
pub(crate) async fn sweep(core: &Core, row: &Row) -> Result<Left, Status> {
    let page = core.store.list(&row.prefix, "", Revision(0), STEP).await.map_err(store_failure)?;
    let mut left = Left { count: page.remaining, more: false, held: None };
    let mut went = false;
    for entries in page.entries.chunks(AT_ONCE) {
        let mut steps = Vec::with_capacity(entries.len());
        for entry in entries {
            steps.push(one(core, row, entry));
        }
        for outcome in join_all(steps).await {
            match outcome? {
                None => went = true,
                Some(held) => {
                    left.count += 1;
                    left.held.get_or_insert(held);
                }
            }
        }
    }
    // Where a whole step is held, more haste helps nobody.
    left.more = page.more && went;
    Ok(left)
}

/// Deletes one object. If it is held, says by what.
async fn one(core: &Core, row: &Row, entry: &Entry) -> Result<Option<String>, Status> {
    let old = match decode(row, entry) {
        Ok(old) => old,
        // What cannot be read has no finalizers that anybody could remove.
        Err(_) => Value::Null,
    };
    let mut new = old.clone();
    if new.is_object() {
        delete::plan(row, &mut new, &DeleteOptions::default(), Timestamp::now());
    }
    let held = namespaces::held(row, &new);
    let written = match (held, new == old) {
        (true, true) => Ok(()),
        (true, false) => core.store.update(&entry.key, entry.modified, encode(row, &new)?).await.map(drop),
        (false, _) => core.store.delete(&entry.key, entry.modified).await.map(drop),
    };
    match written {
        Ok(()) if !held => Ok(None),
        Ok(()) => {
            let finalizers = object::finalizers(&new).join(", ");
            let name = entry.key.trim_start_matches(row.prefix.as_str());
            Ok(Some(format!("{name}, held by the finalizers [{finalizers}]")))
        }
        // Somebody was faster: the next step sees what became of it.
        Err(StoreError::Conflict(_)) => Ok(Some(entry.key.clone())),
        Err(e) => Err(store_failure(e)),
    }
}

/// Removes what was written while a kind went: requests that had begun before it did. Objects younger than `before`
/// belong to a new kind of that name.
pub(crate) async fn purge(core: &Core, row: &Row, before: Revision) -> Result<(), StoreError> {
    let page = core.store.list(&row.prefix, "", Revision(0), STEP).await?;
    for entry in page.entries.iter().filter(|e| e.created < before) {
        match core.store.delete(&entry.key, entry.modified).await {
            Ok(_) | Err(StoreError::Conflict(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
