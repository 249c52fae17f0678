//! The conformance suite: what every backend of [`Store`] must do, as cases that any backend can be put through.
//!
//! Call [`all`] from a test with a function that makes an empty store (on a multi-threaded tokio runtime). A case that
//! fails panics with its name. Not here: what differs between backends (files, processes, crashes).

// These are tests: a panic is the report.
#![allow(clippy::unwrap_used)]

mod concurrent;
mod history;
pub mod model;
mod single;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::{Change, Entry, Result, Revision, Store, StoreError, Watch};

/// A case: its name and what it does with an empty store.
pub type Case = (&'static str, fn(Arc<dyn Store>) -> BoxFuture<'static, ()>);

/// What a step may take; the cases themselves never wait for time to pass.
const DEADLINE: Duration = Duration::from_secs(60);

macro_rules! cases {
    ($($module:ident :: $case:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($case)), |store| Box::pin($module::$case(store)))),*]
    };
}

/// Every case of the suite.
pub const CASES: &[Case] = cases![
    single::create_get_update_delete,
    single::preconditions,
    single::revisions_are_one_per_write,
    single::lists_are_ordered_and_bounded_by_the_prefix,
    single::values_are_kept_byte_for_byte,
    single::revision_zero_means_now,
    history::reads_at_old_revisions,
    history::pages_are_consistent_under_writes,
    history::future_revisions_are_refused,
    history::compaction_keeps_what_is_newer,
    history::compaction_is_idempotent,
    history::changes_tell_how_far_they_go,
    history::watch_carries_what_was_before,
    history::watch_from_the_past_joins_without_gap,
    history::watch_of_compacted_history_is_refused,
    history::progress_never_passes_a_change,
    concurrent::one_of_many_creators_wins,
    concurrent::counters_lose_nothing,
    concurrent::watchers_see_every_change_once_in_order,
    concurrent::a_slow_watcher_slows_nobody,
    concurrent::readers_see_their_own_writes,
    concurrent::compaction_disturbs_no_reader_of_newer_revisions,
];

/// Puts stores that `make` makes through every case.
pub async fn all(make: impl Fn() -> Box<dyn Store>) {
    for (name, case) in CASES {
        let store: Arc<dyn Store> = Arc::from(make());
        // On a task of its own, so that a panic comes back with the name of the case.
        let outcome = tokio::time::timeout(DEADLINE, tokio::spawn(case(store))).await;
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("conformance case {name}: {error}"),
            Err(_) => panic!("conformance case {name}: not done after {DEADLINE:?}"),
        }
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Entry {
    match store.get(key, Revision(0)).await.unwrap() {
        None => store.create(key, bytes(value)).await.unwrap(),
        Some(entry) => store.update(key, entry.modified, bytes(value)).await.unwrap(),
    }
}

async fn remove(store: &dyn Store, key: &str) -> Revision {
    let entry = store.get(key, Revision(0)).await.unwrap().unwrap();
    store.delete(key, entry.modified).await.unwrap()
}

async fn keys(store: &dyn Store, prefix: &str, at: Revision) -> Vec<String> {
    let page = store.list(prefix, "", at, 0).await.unwrap();
    page.entries.into_iter().map(|e| e.key).collect()
}

/// The next changes of a watch until `count` are there.
async fn collect(watch: &mut dyn Watch, count: usize) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    while changes.len() < count {
        let batch = watch.next().await?;
        assert!(!batch.is_empty(), "a batch of a watch is never empty");
        changes.extend(batch);
    }
    Ok(changes)
}

fn is_compacted<T>(result: &Result<T>) -> bool {
    matches!(result, Err(StoreError::Compacted { .. }))
}

fn is_future<T>(result: &Result<T>) -> bool {
    matches!(result, Err(StoreError::Future { .. }))
}
