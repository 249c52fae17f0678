//! The watch cache above a store whose watch breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sheaf_store::cache::{At, Options};
use sheaf_store::{Change, Entry, History, Page, Result, Revision, Store, StoreError, Watch};
use tokio::sync::Notify;

use super::cache::{collect, start};
use super::{NOW, put, remove, scratch};

/// A store whose watches can be cut, and whose lists can be made to fail.
struct Breaking {
    inner: Arc<dyn Store>,
    cut: Arc<Notify>,
    /// The last revision that the feed hears of.
    hears_until: Arc<AtomicU64>,
    unreadable: AtomicBool,
}

struct BreakingWatch(Box<dyn Watch>, Arc<Notify>, Arc<AtomicU64>);

impl Watch for BreakingWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>>> {
        Box::pin(async move {
            let broken = || StoreError::Compacted { asked: Revision(1), oldest: Revision(2) };
            let mut batch = tokio::select! {
                batch = self.0.next() => batch?,
                () = self.1.notified() => return Err(broken()),
            };
            // By revision and not by time: it does not matter when the feed asks.
            batch.retain(|change| change.revision().0 <= self.2.load(Ordering::SeqCst));
            if batch.is_empty() {
                self.1.notified().await;
                return Err(broken());
            }
            Ok(batch)
        })
    }
}

impl Store for Breaking {
    fn revision(&self) -> BoxFuture<'_, Result<Revision>> {
        self.inner.revision()
    }
    fn get<'a>(&'a self, key: &'a str, at: Revision) -> BoxFuture<'a, Result<Option<Entry>>> {
        self.inner.get(key, at)
    }
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
        at: Revision,
        limit: u64,
    ) -> BoxFuture<'a, Result<Page>> {
        if self.unreadable.swap(false, Ordering::SeqCst) {
            let error = StoreError::Backend { context: "list keys", source: "out of order".into() };
            return Box::pin(async { Err(error) });
        }
        self.inner.list(prefix, after, at, limit)
    }
    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Entry>> {
        self.inner.create(key, value)
    }
    fn update<'a>(&'a self, key: &'a str, expected: Revision, value: Bytes) -> BoxFuture<'a, Result<Entry>> {
        self.inner.update(key, expected, value)
    }
    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<Revision>> {
        self.inner.delete(key, expected)
    }
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            let watch = self.inner.watch(prefix, from).await?;
            Ok(Box::new(BreakingWatch(watch, self.cut.clone(), self.hears_until.clone())) as Box<dyn Watch>)
        })
    }
    fn changes<'a>(&'a self, prefix: &'a str, from: Revision, limit: u64) -> BoxFuture<'a, Result<History>> {
        self.inner.changes(prefix, from, limit)
    }
    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<()>> {
        self.inner.compact(before)
    }
}

const PODS: &str = "/registry/core/pods/";

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_feed_loads_again_and_sends_watchers_back_to_list() {
    let (_directory, inner) = scratch();
    let (cut, hears_until) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(u64::MAX)));
    let unreadable = AtomicBool::new(false);
    let breaking =
        Arc::new(Breaking { inner, cut: cut.clone(), hears_until: hears_until.clone(), unreadable });
    let store: Arc<dyn Store> = breaking.clone();
    let cache = start(&store, Options { wait: Duration::from_secs(30), ..Options::default() }).await;
    let pods = cache.kind(PODS).await.unwrap();
    put(&*store, &format!("{PODS}a/stays"), "1").await;
    put(&*store, &format!("{PODS}a/goes"), "1").await;
    let mut watcher = pods.watch(PODS, NOW).await.unwrap();
    let before = pods.list(PODS, "", 0, At::Latest).await.unwrap().at;

    // The feed hears of one change, and of none after it.
    hears_until.store(before.0 + 1, Ordering::SeqCst);
    put(&*store, &format!("{PODS}a/last-heard"), "1").await;
    pods.list(PODS, "", 0, At::Latest).await.unwrap();
    remove(&*store, &format!("{PODS}a/goes")).await;
    put(&*store, &format!("{PODS}a/new"), "1").await;
    let stale = pods.list(PODS, "", 0, At::Any).await.unwrap();
    assert_eq!(stale.objects.len(), 3);

    // It breaks, and the first attempt to load again fails.
    breaking.unreadable.store(true, Ordering::SeqCst);
    cut.notify_one();
    let list = pods.list(PODS, "", 0, At::Latest).await.unwrap();
    hears_until.store(u64::MAX, Ordering::SeqCst);
    let keys: Vec<_> = list.objects.iter().map(|o| o.key.strip_prefix(PODS).unwrap().to_owned()).collect();
    assert_eq!(keys, ["a/last-heard", "a/new", "a/stays"]);
    let error = loop {
        match watcher.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Compacted { .. }), "{error:?}");

    // And everything works again.
    let mut again = pods.watch(PODS, list.at).await.unwrap();
    let made = put(&*store, &format!("{PODS}a/later"), "1").await;
    assert_eq!(collect(&mut again, 1).await[0].at, made.modified);
}
