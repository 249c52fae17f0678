//! Cases about old revisions, compaction and watches of one writer.

use std::sync::Arc;

use super::{bytes, collect, is_compacted, is_future, keys, put, remove};
use crate::{Change, Revision, Store, StoreError};

const NOW: Revision = Revision(0);

pub(super) async fn reads_at_old_revisions(store: Arc<dyn Store>) {
    let start = store.revision().await.unwrap();
    let first = put(&*store, "/a", "1").await;
    let second = put(&*store, "/a", "2").await;
    let other = put(&*store, "/b", "x").await;
    let gone = remove(&*store, "/a").await;
    let third = put(&*store, "/a", "3").await;

    for (at, expected) in [
        (start, None),
        (first.modified, Some(&first)),
        (second.modified, Some(&second)),
        (other.modified, Some(&second)),
        (gone, None),
        (third.modified, Some(&third)),
    ] {
        assert_eq!(store.get("/a", at).await.unwrap().as_ref(), expected, "{at:?}");
        let listed = store.list("/a", "", at, 0).await.unwrap();
        assert_eq!(listed.entries.first(), expected, "{at:?}");
        assert_eq!(listed.at, at);
    }
    assert_eq!(keys(&*store, "/", first.modified).await, ["/a"]);
    assert_eq!(keys(&*store, "/", gone).await, ["/b"]);
}

pub(super) async fn pages_are_consistent_under_writes(store: Arc<dyn Store>) {
    for number in 0..50 {
        put(&*store, &format!("/p/{number:03}"), "old").await;
    }
    let expected = store.list("/p/", "", NOW, 0).await.unwrap();
    let mut seen = Vec::new();
    let (mut after, mut at) = (String::new(), NOW);
    loop {
        let page = store.list("/p/", &after, at, 7).await.unwrap();
        at = page.at;
        assert_eq!(page.remaining as usize, 50 - seen.len() - page.entries.len());
        seen.extend(page.entries);
        if !page.more {
            break;
        }
        after.clone_from(&seen.last().unwrap().key);
        // Behind, at and before the cursor.
        let turn = seen.len();
        put(&*store, &format!("/p/{:03}", turn + 1), "new").await;
        remove(&*store, &format!("/p/{turn:03}")).await;
        put(&*store, &format!("/p/{turn:03}x"), "new").await;
        put(&*store, &format!("/p/{turn:03}"), "again").await;
        put(&*store, "/p/000", "new").await;
    }
    assert_eq!(at, expected.at);
    assert_eq!(seen, expected.entries);
}

pub(super) async fn future_revisions_are_refused(store: Arc<dyn Store>) {
    put(&*store, "/a", "1").await;
    let future = Revision(store.revision().await.unwrap().0 + 1);
    assert!(is_future(&store.get("/a", future).await));
    assert!(is_future(&store.list("/", "", future, 0).await));
    assert!(is_future(&store.watch("/", future).await));
    assert!(is_future(&store.changes("/", future, 0).await));
    assert!(is_future(&store.compact(future).await));
    match store.get("/a", future).await {
        Err(StoreError::Future { asked, current }) => assert_eq!((asked, current.0), (future, future.0 - 1)),
        other => panic!("{other:?}"),
    }
}

pub(super) async fn compaction_keeps_what_is_newer(store: Arc<dyn Store>) {
    let mut at = Vec::new();
    for round in 0..30 {
        at.push(put(&*store, "/a", &round.to_string()).await.modified);
        at.push(put(&*store, "/b", &round.to_string()).await.modified);
        at.push(remove(&*store, "/b").await);
    }
    let untouched = store.get("/a", at[0]).await.unwrap().unwrap();
    assert_eq!(&untouched.value[..], b"0");
    store.compact(at[60]).await.unwrap();
    for (index, revision) in at.iter().enumerate() {
        let (got, listed) = (store.get("/a", *revision).await, store.list("/", "", *revision, 0).await);
        if index < 60 {
            assert!(is_compacted(&got) && is_compacted(&listed), "{index}: {got:?} {listed:?}");
            continue;
        }
        assert_eq!(got.unwrap().unwrap().value, bytes(&(index / 3).to_string()));
        assert_eq!(listed.unwrap().entries.len(), if index % 3 == 1 { 2 } else { 1 });
    }
    match store.get("/a", at[59]).await {
        Err(StoreError::Compacted { asked, oldest }) => assert_eq!((asked, oldest), (at[59], at[60])),
        other => panic!("{other:?}"),
    }
    // Everything: only the present remains readable.
    let now = store.revision().await.unwrap();
    store.compact(now).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), now, "compaction takes no revision");
    assert!(is_compacted(&store.get("/a", Revision(now.0 - 1)).await));
    assert_eq!(store.get("/a", now).await.unwrap().unwrap().value, bytes("29"));
    let next = put(&*store, "/b", "later").await;
    assert_eq!(next.modified, Revision(now.0 + 1));
    assert_eq!(keys(&*store, "/", NOW).await, ["/a", "/b"]);
}

pub(super) async fn compaction_is_idempotent(store: Arc<dyn Store>) {
    let first = put(&*store, "/a", "1").await.modified;
    let second = put(&*store, "/a", "2").await.modified;
    store.compact(second).await.unwrap();
    store.compact(second).await.unwrap();
    store.compact(first).await.unwrap();
    store.compact(NOW).await.unwrap();
    assert!(is_compacted(&store.get("/a", first).await), "the horizon never goes back");
    assert!(store.get("/a", second).await.unwrap().is_some());
}

pub(super) async fn changes_tell_how_far_they_go(store: Arc<dyn Store>) {
    let start = store.revision().await.unwrap();
    for number in 0..6 {
        put(&*store, &format!("/a/{number}"), "1").await;
        put(&*store, &format!("/b/{number}"), "1").await;
    }
    let now = store.revision().await.unwrap();
    let all = store.changes("/a/", start, 0).await.unwrap();
    assert_eq!((all.changes.len(), all.through), (6, now));
    let some = store.changes("/a/", start, 2).await.unwrap();
    assert_eq!(some.through, some.changes[1].revision());
    let rest = store.changes("/a/", some.through, 100).await.unwrap();
    assert_eq!((rest.changes.len(), rest.through), (4, now));
    assert_eq!(store.changes("/c/", start, 2).await.unwrap().through, now);
    assert!(store.changes("/", now, 0).await.unwrap().changes.is_empty());
    store.compact(now).await.unwrap();
    assert!(is_compacted(&store.changes("/a/", start, 0).await));
}

pub(super) async fn watch_carries_what_was_before(store: Arc<dyn Store>) {
    let start = store.revision().await.unwrap();
    let mut live = store.watch("/a", start).await.unwrap();
    let first = put(&*store, "/a", "1").await;
    let second = put(&*store, "/a", "2").await;
    put(&*store, "/b", "other").await;
    let gone = remove(&*store, "/a").await;
    let third = put(&*store, "/a", "3").await;
    let expected = vec![
        Change::Put { entry: first.clone(), previous: None },
        Change::Put { entry: second.clone(), previous: Some(first) },
        Change::Delete { previous: second, at: gone },
        Change::Put { entry: third, previous: None },
    ];
    assert_eq!(collect(&mut *live, 4).await.unwrap(), expected);
    let mut replayed = store.watch("/a", start).await.unwrap();
    assert_eq!(collect(&mut *replayed, 4).await.unwrap(), expected);
    assert_eq!(store.changes("/a", start, 0).await.unwrap().changes, expected);
}

pub(super) async fn watch_from_the_past_joins_without_gap(store: Arc<dyn Store>) {
    let start = store.revision().await.unwrap();
    for number in 0..700 {
        put(&*store, &format!("/w/{}", number % 10), &number.to_string()).await;
    }
    let mut watch = store.watch("/w/", start).await.unwrap();
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 700..1400 {
                put(&*store, &format!("/w/{}", number % 10), &number.to_string()).await;
            }
        })
    };
    let changes = collect(&mut *watch, 1400).await.unwrap();
    writer.await.unwrap();
    assert_eq!(changes.len(), 1400);
    for (number, change) in changes.iter().enumerate() {
        let Change::Put { entry, .. } = change else { panic!("{change:?}") };
        assert_eq!(entry.value, bytes(&number.to_string()));
    }
}

pub(super) async fn watch_of_compacted_history_is_refused(store: Arc<dyn Store>) {
    let first = put(&*store, "/a", "1").await.modified;
    let second = put(&*store, "/a", "2").await.modified;
    put(&*store, "/a", "3").await;
    store.compact(second).await.unwrap();
    assert!(is_compacted(&store.watch("/", first).await));
    // What lies after the horizon is complete, with what was before.
    let mut watch = store.watch("/", second).await.unwrap();
    match &collect(&mut *watch, 1).await.unwrap()[0] {
        Change::Put { entry, previous: Some(previous) } => {
            assert_eq!((&entry.value[..], &previous.value[..]), (&b"3"[..], &b"2"[..]));
        }
        other => panic!("{other:?}"),
    }
}

pub(super) async fn progress_never_passes_a_change(store: Arc<dyn Store>) {
    let mut watch = store.watch("/w/", NOW).await.unwrap();
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0..200 {
                put(&*store, if number % 3 == 0 { "/w/a" } else { "/other" }, &number.to_string()).await;
            }
        })
    };
    // 67 changes under the prefix, between others that only move the revision.
    let (mut seen, mut told) = (0, Revision(0));
    while seen < 67 {
        if let Some(progress) = watch.progress() {
            assert!(progress >= told, "{progress:?} after {told:?}");
            told = progress;
        }
        for change in watch.next().await.unwrap() {
            assert!(change.revision() > told, "{:?} came after a progress of {told:?}", change.revision());
            seen += 1;
        }
    }
    writer.await.unwrap();
    let now = store.revision().await.unwrap();
    // A backend that cannot tell says nothing rather than something old.
    if let Some(progress) = watch.progress() {
        assert_eq!(progress, now);
    }
}
