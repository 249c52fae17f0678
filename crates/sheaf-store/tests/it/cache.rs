//! The watch cache: reads as new as the store, watches without gaps, slow watchers, exact lists.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use sheaf_store::cache::{At, Cache, Event, Options, Watcher, What};
use sheaf_store::{Revision, Store, StoreError};

use super::{NOW, put, remove, scratch};

const PODS: &str = "/registry/core/pods/";

pub(super) async fn start(store: &Arc<dyn Store>, options: Options) -> Cache<Bytes> {
    Cache::start(store.clone(), "/registry/", options, |entry| entry.value.clone()).await.unwrap()
}

pub(super) async fn collect(watcher: &mut Watcher<Bytes>, count: usize) -> Vec<Arc<Event<Bytes>>> {
    let mut events = Vec::new();
    while events.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(30), watcher.next()).await;
        let Ok(next) = next else { panic!("{} of {count} events came, then none for 30 s", events.len()) };
        events.extend(next.unwrap());
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_lists_show_own_writes() {
    let (_directory, store) = scratch();
    put(&*store, &format!("{PODS}a/before"), "1").await;
    let cache = start(&store, Options::default()).await;
    let pods = cache.kind(PODS).await.unwrap();
    assert_eq!(pods.count(), 1);
    let clients: Vec<_> = (0..16)
        .map(|client| {
            let (store, pods) = (store.clone(), pods.clone());
            tokio::spawn(async move {
                for round in 0..20 {
                    let prefix = format!("{PODS}{client}/");
                    let made = put(&*store, &format!("{prefix}{round:02}"), "v").await;
                    let list = pods.list(&prefix, "", 0, At::Latest).await.unwrap();
                    assert!(list.at >= made.modified);
                    assert_eq!(list.objects.len(), round + 1);
                    assert_eq!(list.objects[round].modified, made.modified);
                    let got = pods.get(&made.key, At::AtLeast(made.modified)).await.unwrap().unwrap();
                    assert_eq!((&got.value, got.created), (&made.value, made.created));
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let page = pods.list(PODS, &format!("{PODS}9/18"), 1, At::Any).await.unwrap();
    assert_eq!((&*page.objects[0].key, page.remaining), (&*format!("{PODS}9/19"), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_is_as_current_as_the_store_though_only_others_change() {
    let (_directory, store) = scratch();
    let cache = start(&store, Options::default()).await;
    let pods = cache.kind(PODS).await.unwrap();
    let mut watcher = pods.watch(PODS, NOW).await.unwrap();
    let other = put(&*store, "/registry/core/nodes/n", "1").await;
    let list = pods.list(PODS, "", 0, At::Latest).await.unwrap();
    assert_eq!(list.at, other.modified);
    // What a bookmark may say.
    assert_eq!(watcher.progress(), Some(other.modified));
    let made = put(&*store, &format!("{PODS}a/x"), "1").await;
    pods.wait(made.modified).await.unwrap();
    assert_eq!(watcher.progress(), None, "an event waits");
    assert_eq!(collect(&mut watcher, 1).await[0].at, made.modified);
    assert_eq!(watcher.progress(), Some(made.modified));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_does_not_come_is_an_error_in_time() {
    let (_directory, store) = scratch();
    let cache = start(&store, Options { wait: Duration::from_millis(20), ..Options::default() }).await;
    let pods = cache.kind(PODS).await.unwrap();
    let future = Revision(pods.revision().0 + 1);
    for at in [At::AtLeast(future), At::Exact(future)] {
        let error = pods.list(PODS, "", 0, at).await.unwrap_err();
        assert!(matches!(error, StoreError::Future { asked, .. } if asked == future), "{error:?}");
    }
    assert!(matches!(pods.watch(PODS, future).await, Err(StoreError::Future { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_from_before_the_window_come_from_the_history() {
    let (_directory, store) = scratch();
    let begin = store.revision().await.unwrap();
    for number in 0..600 {
        put(&*store, &format!("{PODS}a/{}", number % 7), &number.to_string()).await;
    }
    let cache = start(&store, Options { window_events: 4096, ..Options::default() }).await;
    let pods = cache.kind(PODS).await.unwrap();
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 600..1200 {
                put(&*store, &format!("{PODS}a/{}", number % 7), &number.to_string()).await;
            }
        })
    };
    let mut watcher = pods.watch(PODS, begin).await.unwrap();
    let events = collect(&mut watcher, 1200).await;
    writer.await.unwrap();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event.object.value, Bytes::from(number.to_string()));
        let (what, previous) = match number.checked_sub(7) {
            None => (What::Created, None),
            Some(before) => (What::Updated, Some(Bytes::from(before.to_string()))),
        };
        assert_eq!((event.what, event.previous.as_ref().map(|p| p.value.clone())), (what, previous));
    }
    let now = store.revision().await.unwrap();
    store.compact(now).await.unwrap();
    assert!(matches!(pods.watch(PODS, begin).await, Err(StoreError::Compacted { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_watchers_share_each_event_and_its_encoding() {
    let (_directory, store) = scratch();
    let cache = start(&store, Options::default()).await;
    let pods = cache.kind(PODS).await.unwrap();
    let encoded = Arc::new(AtomicUsize::new(0));
    let mut watchers = Vec::new();
    for _ in 0..1000 {
        let mut watcher = pods.watch(PODS, NOW).await.unwrap();
        let encoded = encoded.clone();
        watchers.push(tokio::spawn(async move {
            let events = collect(&mut watcher, 50).await;
            for event in &events {
                event.encoded(|event| {
                    encoded.fetch_add(1, Ordering::Relaxed);
                    event.object.value.clone()
                });
            }
            events.iter().map(|e| e.at.0).collect::<Vec<_>>()
        }));
    }
    let mut slow = pods.watch(&format!("{PODS}other/"), NOW).await.unwrap();
    let mut truth = Vec::new();
    for number in 0..50 {
        truth.push(put(&*store, &format!("{PODS}a/{number}"), "v").await.modified.0);
    }
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), truth);
    }
    assert_eq!(encoded.load(Ordering::Relaxed), 50);
    assert_eq!(slow.progress().unwrap().0, *truth.last().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_is_cut_off_alone() {
    let (_directory, store) = scratch();
    let cache = start(&store, Options { window_events: 32, ..Options::default() }).await;
    let pods = cache.kind(PODS).await.unwrap();
    let mut slow = pods.watch(PODS, NOW).await.unwrap();
    let mut quick = pods.watch(PODS, NOW).await.unwrap();
    for number in 0..40 {
        put(&*store, &format!("{PODS}a/{number}"), "v").await;
        assert_eq!(collect(&mut quick, 1).await.len(), 1);
    }
    assert!(matches!(slow.next().await, Err(StoreError::Compacted { .. })));
    put(&*store, &format!("{PODS}a/last"), "v").await;
    assert_eq!(&*collect(&mut quick, 1).await[0].object.key, format!("{PODS}a/last"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_kind_ends_its_watches_and_can_be_loaded_again() {
    let (_directory, store) = scratch();
    let cache = start(&store, Options::default()).await;
    let pods = cache.kind(PODS).await.unwrap();
    let mut watcher = pods.watch(PODS, NOW).await.unwrap();
    cache.forget(PODS);
    assert!(matches!(watcher.next().await, Err(StoreError::Closed)));
    assert!(matches!(pods.list(PODS, "", 0, At::Latest).await, Err(StoreError::Closed)));
    put(&*store, &format!("{PODS}a/x"), "v").await;
    let again = cache.kind(PODS).await.unwrap();
    assert_eq!(again.list(PODS, "", 0, At::Latest).await.unwrap().objects.len(), 1);
}

/// One random step: what happens to which of a few keys.
fn steps() -> impl Strategy<Value = Vec<(u8, u8)>> {
    proptest::collection::vec((0..4u8, 0..6u8), 1..60)
}

async fn exact_lists_agree(steps: Vec<(u8, u8)>, window_events: usize) {
    let (_directory, store) = scratch();
    let cache = start(&store, Options { window_events, ..Options::default() }).await;
    let pods = cache.kind(PODS).await.unwrap();
    let first = store.revision().await.unwrap();
    let mut watcher = pods.watch(PODS, first).await.unwrap();
    let mut seen = Vec::new();
    for (what, which) in steps {
        let key = format!("{PODS}ns{}/{which}", which % 2);
        match what {
            0 if store.get(&key, NOW).await.unwrap().is_some() => drop(remove(&*store, &key).await),
            1 => drop(put(&*store, "/registry/core/nodes/n", "v").await),
            _ => drop(put(&*store, &key, &format!("{what}{which}")).await),
        }
        let now = store.revision().await.unwrap();
        pods.wait(now).await.unwrap();
        if watcher.progress().is_none() {
            seen.extend(collect(&mut watcher, 1).await);
        }
        for at in first.0..=now.0 {
            for (prefix, after, limit) in [
                (PODS.to_owned(), String::new(), 0),
                (format!("{PODS}ns1/"), String::new(), 1),
                (PODS.to_owned(), format!("{PODS}ns0/2"), 2),
            ] {
                let truth = store.list(&prefix, &after, Revision(at), limit as u64).await.unwrap();
                let mine = pods.list(&prefix, &after, limit, At::Exact(Revision(at))).await.unwrap();
                assert_eq!((mine.at.0, mine.remaining), (at, truth.remaining));
                let truth: Vec<_> = truth.entries.iter().map(|e| (&*e.key, &e.value, e.modified)).collect();
                let mine: Vec<_> = mine.objects.iter().map(|o| (&*o.key, &o.value, o.modified)).collect();
                assert_eq!(mine, truth);
            }
            let key = format!("{PODS}ns0/0");
            let truth = store.get(&key, Revision(at)).await.unwrap().map(|e| e.modified);
            let mine = pods.get(&key, At::Exact(Revision(at))).await.unwrap().map(|o| o.modified);
            assert_eq!(mine, truth);
        }
    }
    let truth = store.changes(PODS, first, 0).await.unwrap().changes;
    assert_eq!(
        seen.iter().map(|e| e.at).collect::<Vec<_>>(),
        truth.iter().map(|c| c.revision()).collect::<Vec<_>>()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn lists_at_any_revision_are_what_the_store_says(steps in steps(), window in prop_oneof![Just(3usize), Just(1000)]) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(exact_lists_agree(steps, window));
    }
}

/// What the store has compacted is refused, also where the window would still know it: a client that pages must not be
/// answered or not by how many other events there were.
#[tokio::test(flavor = "multi_thread")]
async fn the_window_does_not_outlive_the_history() {
    let (_directory, store) = scratch();
    let cache = start(&store, Options::default()).await;
    let pods = cache.kind(PODS).await.unwrap();
    let first = put(&*store, &format!("{PODS}a/x"), "1").await;
    let second = put(&*store, &format!("{PODS}a/x"), "2").await;
    let old = pods.list(PODS, "", 0, At::Exact(first.modified)).await.unwrap();
    assert_eq!(old.objects[0].value, first.value);
    store.compact(second.modified).await.unwrap();
    for error in [
        pods.list(PODS, "", 0, At::Exact(first.modified)).await.map(drop).unwrap_err(),
        pods.get(&first.key, At::Exact(first.modified)).await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Compacted { .. }), "{error:?}");
    }
    let now = pods.list(PODS, "", 0, At::Exact(second.modified)).await.unwrap();
    assert_eq!(now.objects[0].value, second.value);
}
