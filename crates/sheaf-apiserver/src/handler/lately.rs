//! What was written a moment ago, as trees: who updates an object often wrote it last, or a controller answers to what was written,
//! and reading its bytes into a tree again is a fifth of what an update costs.
//!
//! Only a hint: what is stored is checked by the store, and a refusal on its ground is believed only if it is the newest state (see
//! [`super::write`]). Bounded in number and bytes; the oldest goes first. Owns its map.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use sheaf_meta::object;
use sheaf_store::Revision;

use super::object::Encoded;
use crate::registry::Row;

/// Trees that are kept, and their bytes as they are stored, which the watch cache has too; a tree takes some five times as much.
const MOST: usize = 256;
const MOST_BYTES: usize = 768 * 1024;
/// A larger one is not kept: it would push out all others.
const LARGEST: usize = 32 * 1024;

/// See the module.
#[derive(Default)]
pub(crate) struct Lately(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    trees: HashMap<String, Tree>,
    /// In the order of writing; has those, too, that were written again since.
    order: VecDeque<(String, Revision)>,
    bytes: usize,
}

struct Tree {
    at: Revision,
    value: Arc<Value>,
    encoded: Arc<Encoded>,
}

impl Lately {
    /// Remembers what was stored under a key: `value` as a reader of the row finds it, and as it is stored.
    pub(super) fn put(&self, row: &Row, key: &str, at: Revision, value: &Arc<Value>, encoded: &Arc<Encoded>) {
        let bytes = encoded.bytes.len();
        let mut inner = self.lock();
        if inner.trees.get(key).is_some_and(|tree| tree.at > at) {
            return;
        }
        inner.forget(key);
        if bytes > LARGEST || row.info.rules.twin().is_some() {
            return;
        }
        inner.trees.insert(key.to_owned(), Tree { at, value: value.clone(), encoded: encoded.clone() });
        inner.bytes += bytes;
        inner.order.push_back((key.to_owned(), at));
        while inner.trees.len() > MOST || inner.bytes > MOST_BYTES || inner.order.len() > 2 * MOST {
            let Some((oldest, at)) = inner.order.pop_front() else { break };
            if inner.trees.get(&oldest).is_some_and(|tree| tree.at == at) {
                inner.forget(&oldest);
            }
        }
    }

    /// What was written last under a key, if that is what the row would read from the store's bytes.
    pub(super) fn get(&self, row: &Row, key: &str) -> Option<(Revision, Arc<Value>, Arc<Encoded>)> {
        let inner = self.lock();
        let tree = inner.trees.get(key)?;
        let same = object::api_version(&tree.value) == row.api_version && row.is_settled(tree.at);
        same.then(|| (tree.at, tree.value.clone(), tree.encoded.clone()))
    }

    /// The object is gone.
    pub(super) fn forget(&self, key: &str) {
        self.lock().forget(key);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, key: &str) {
        if let Some(tree) = self.trees.remove(key) {
            self.bytes -= tree.encoded.bytes.len();
        }
    }
}
