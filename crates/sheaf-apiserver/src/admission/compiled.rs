//! Configurations of admission, compiled when they change. Owns the compiled form of what it saw last.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::Value;
use sheaf_meta::status::Status;
use sheaf_store::{
    Revision,
    cache::{At, Kind},
};

use super::GROUP;
use crate::{
    core::Core,
    handler::{self, Cached},
};

/// All configurations of one kind.
pub(crate) struct Compiled<T> {
    /// Keys and revisions of the configurations that it was made of.
    made_of: Vec<(Box<str>, Revision)>,
    /// What they are made into, in the order of their names.
    parts: Vec<(Box<str>, Revision, Arc<T>)>,
}

impl<T> Compiled<T> {
    /// The parts, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.parts.iter().map(|(_, _, part)| part)
    }
}

/// Where the compiled form is kept.
pub(crate) struct Slot<T> {
    compiled: Mutex<Option<Arc<Compiled<T>>>>,
    /// The configurations in the watch cache, once they were asked for. Their kinds came with the program and stay.
    kind: OnceLock<Kind<Cached>>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { compiled: Mutex::new(None), kind: OnceLock::new() }
    }
}

impl<T> Slot<T> {
    /// Whether it is known at once that there are none: most clusters have none, and each write asks.
    pub(crate) fn is_empty(&self) -> bool {
        self.kind.get().is_some_and(|kind| kind.count() == 0)
    }

    /// The configurations of a kind as they are now; `None` if there are none. `make` reads one.
    pub(crate) async fn fresh(
        &self,
        core: &Core,
        plural: &str,
        make: impl Fn(&Value) -> Vec<T>,
    ) -> Result<Option<Arc<Compiled<T>>>, Status> {
        if self.is_empty() {
            return Ok(None);
        }
        let rows = core.registry.snapshot();
        let Some(row) = rows.find_any_version(GROUP, plural) else { return Ok(None) };
        let kind = core.kind(row).await?;
        if self.kind.get_or_init(|| kind.clone()).count() == 0 {
            return Ok(None);
        }
        // In order of their names. The cache is a millisecond behind at most.
        let listing = kind.list(&row.prefix, "", 0, At::Any).await.map_err(handler::store_failure)?;
        let lock = || self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let before = lock().clone();
        let same = |c: &Arc<Compiled<T>>| {
            let now = listing.objects.iter().map(|o| (&*o.key, o.modified));
            c.made_of.iter().map(|(key, at)| (&**key, *at)).eq(now)
        };
        if let Some(before) = before.as_ref().filter(|c| same(c)) {
            return Ok(Some(before.clone()));
        }
        let mut fresh = Compiled { made_of: Vec::new(), parts: Vec::new() };
        for item in &listing.objects {
            let (key, at) = (item.key.clone(), item.modified);
            // What did not change keeps what it holds (connections).
            let kept = before.iter().flat_map(|c| &c.parts).filter(|(k, r, _)| (k, *r) == (&key, at));
            let kept: Vec<_> = kept.cloned().collect();
            if kept.is_empty() {
                let configuration = handler::view(row, item)?;
                let parts = make(&configuration).into_iter();
                fresh.parts.extend(parts.map(|part| (key.clone(), at, Arc::new(part))));
            } else {
                fresh.parts.extend(kept);
            }
            fresh.made_of.push((key, at));
        }
        let fresh = Arc::new(fresh);
        *lock() = Some(fresh.clone());
        Ok(Some(fresh))
    }
}
