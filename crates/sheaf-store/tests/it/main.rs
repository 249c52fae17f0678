//! Integration tests of the store: the suite against SQLite, the property tests, crashes, files, the watch cache.

#![allow(clippy::unwrap_used)]

mod cache;
mod cache_faults;
mod conformance;
mod crash;
mod files;
mod model;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use sheaf_store::sqlite::{Options, SqliteStore};
use sheaf_store::{Entry, Revision, Store};

const NOW: Revision = Revision(0);

/// An empty store in a directory that lives as long as the first value.
fn scratch() -> (tempfile::TempDir, Arc<dyn Store>) {
    let (directory, path) = scratch_path();
    let store = SqliteStore::open(&path, &Options::default()).unwrap();
    (directory, Arc::new(store))
}

fn scratch_path() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    (directory, path)
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Entry {
    let value = Bytes::copy_from_slice(value.as_bytes());
    match store.get(key, NOW).await.unwrap() {
        None => store.create(key, value).await.unwrap(),
        Some(entry) => store.update(key, entry.modified, value).await.unwrap(),
    }
}

async fn remove(store: &dyn Store, key: &str) -> Revision {
    let entry = store.get(key, NOW).await.unwrap().unwrap();
    store.delete(key, entry.modified).await.unwrap()
}
