//! Cases with one client and no history.

use std::sync::Arc;

use bytes::Bytes;

use super::{bytes, keys, put, remove};
use crate::{Revision, Store, StoreError};

const NOW: Revision = Revision(0);

pub(super) async fn create_get_update_delete(store: Arc<dyn Store>) {
    assert_eq!(store.get("/a", NOW).await.unwrap(), None);
    let made = store.create("/a", bytes("1")).await.unwrap();
    assert_eq!((made.key.as_str(), &made.value[..]), ("/a", &b"1"[..]));
    assert_eq!(made.created, made.modified);
    assert_eq!(store.get("/a", NOW).await.unwrap(), Some(made.clone()));

    let changed = store.update("/a", made.modified, bytes("2")).await.unwrap();
    assert_eq!(changed.created, made.created);
    assert!(changed.modified > made.modified);
    assert_eq!(store.get("/a", NOW).await.unwrap(), Some(changed.clone()));

    let gone = store.delete("/a", changed.modified).await.unwrap();
    assert!(gone > changed.modified);
    assert_eq!(store.get("/a", NOW).await.unwrap(), None);

    let again = store.create("/a", bytes("3")).await.unwrap();
    assert!(again.created > gone, "a key that is made again has a new life");
}

pub(super) async fn preconditions(store: Arc<dyn Store>) {
    let made = store.create("/a", bytes("1")).await.unwrap();
    let revision = store.revision().await.unwrap();
    match store.create("/a", bytes("x")).await {
        Err(StoreError::Exists(key)) => assert_eq!(key, "/a"),
        other => panic!("{other:?}"),
    }
    for expected in [Revision(0), Revision(made.modified.0 + 1), Revision(made.modified.0 - 1)] {
        match store.update("/a", expected, bytes("x")).await {
            Err(StoreError::Conflict(Some(current))) => assert_eq!(current, made),
            other => panic!("{other:?}"),
        }
        match store.delete("/a", expected).await {
            Err(StoreError::Conflict(Some(current))) => assert_eq!(current, made),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(store.update("/b", made.modified, bytes("x")).await, Err(StoreError::Conflict(None))));
    assert!(matches!(store.delete("/b", made.modified).await, Err(StoreError::Conflict(None))));
    assert_eq!(store.revision().await.unwrap(), revision, "what is refused takes no revision");

    let gone = remove(&*store, "/a").await;
    assert!(matches!(store.update("/a", gone, bytes("x")).await, Err(StoreError::Conflict(None))));
    assert!(matches!(store.update("/a", made.modified, bytes("x")).await, Err(StoreError::Conflict(None))));
    assert!(matches!(store.delete("/a", gone).await, Err(StoreError::Conflict(None))));
}

pub(super) async fn revisions_are_one_per_write(store: Arc<dyn Store>) {
    let mut last = store.revision().await.unwrap();
    assert!(last > Revision(0), "0 means now, and is no revision");
    for round in 0..20 {
        let key = format!("/k{}", round % 5);
        let at = match round % 7 {
            6 => remove(&*store, &key).await,
            _ => put(&*store, &key, "v").await.modified,
        };
        assert_eq!(at, Revision(last.0 + 1));
        assert_eq!(store.revision().await.unwrap(), at);
        last = at;
    }
}

pub(super) async fn lists_are_ordered_and_bounded_by_the_prefix(store: Arc<dyn Store>) {
    let all = ["/a", "/a/1", "/a/10", "/a/2", "/a/\u{e9}", "/a0", "/b/1", "\u{10ffff}"];
    for key in ["/b/1", "/a/2", "/a", "\u{10ffff}", "/a0", "/a/\u{e9}", "/a/10", "/a/1"] {
        store.create(key, bytes(key)).await.unwrap();
    }
    let now = store.revision().await.unwrap();
    assert_eq!(keys(&*store, "", NOW).await, all);
    assert_eq!(keys(&*store, "/a/", NOW).await, ["/a/1", "/a/10", "/a/2", "/a/\u{e9}"]);
    assert_eq!(keys(&*store, "/a", now).await, all[..6]);
    assert_eq!(keys(&*store, "/c", NOW).await, [""; 0]);
    assert_eq!(keys(&*store, "\u{10ffff}", NOW).await, ["\u{10ffff}"]);

    let page = store.list("/a/", "", NOW, 3).await.unwrap();
    assert_eq!((page.entries.len(), page.more, page.remaining, page.at), (3, true, 1, now));
    let rest = store.list("/a/", &page.entries[2].key, page.at, 3).await.unwrap();
    assert_eq!((rest.entries.len(), rest.more, rest.remaining, rest.at), (1, false, 0, now));
    // `after` need not exist, nor lie within the prefix.
    assert_eq!(store.list("/a/", "/a/11", NOW, 0).await.unwrap().entries.len(), 2);
    assert_eq!(store.list("/a/", "/", NOW, 0).await.unwrap().entries.len(), 4);
    assert_eq!(store.list("/a/", "/b", NOW, 0).await.unwrap().entries.len(), 0);
    // Exactly full pages end the listing.
    let full = store.list("/a/", "", NOW, 4).await.unwrap();
    assert_eq!((full.entries.len(), full.more, full.remaining), (4, false, 0));

    remove(&*store, "/a/10").await;
    assert_eq!(keys(&*store, "/a/", NOW).await, ["/a/1", "/a/2", "/a/\u{e9}"]);
}

pub(super) async fn values_are_kept_byte_for_byte(store: Arc<dyn Store>) {
    let values = [
        Bytes::new(),
        Bytes::from(vec![0u8; 3]),
        Bytes::from((0..=255u8).cycle().take(1 << 20).collect::<Vec<_>>()),
    ];
    for (number, value) in values.iter().enumerate() {
        let key = format!("/v{number}");
        let made = store.create(&key, value.clone()).await.unwrap();
        assert_eq!(&made.value, value);
        assert_eq!(&store.get(&key, NOW).await.unwrap().unwrap().value, value);
    }
}

pub(super) async fn revision_zero_means_now(store: Arc<dyn Store>) {
    // Also in an empty store, whose revision a client may hand back.
    let empty = store.list("/", "", NOW, 0).await.unwrap();
    assert_eq!(empty.at, store.revision().await.unwrap());
    assert!(empty.entries.is_empty() && !empty.more);
    let mut watch = store.watch("/", empty.at).await.unwrap();
    let made = store.create("/a", bytes("1")).await.unwrap();
    let first = super::collect(&mut *watch, 1).await.unwrap();
    assert_eq!(first[0].revision(), made.modified);

    let mut late = store.watch("/", NOW).await.unwrap();
    let second = store.create("/b", bytes("2")).await.unwrap();
    assert_eq!(super::collect(&mut *late, 1).await.unwrap()[0].revision(), second.modified);
}
