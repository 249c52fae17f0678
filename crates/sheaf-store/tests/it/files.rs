//! The file itself: modes, locks, versions, damage, space.

use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use sheaf_store::sqlite::{OpenError, Options, SqliteStore};
use sheaf_store::{Revision, Store, StoreError};

const NOW: Revision = Revision(0);

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = SqliteStore::open(&path, &Options::default()).unwrap();
    let made = store.create("/a", Bytes::from_static(b"1")).await.unwrap();
    let changed = store.update("/a", made.modified, Bytes::from_static(b"2")).await.unwrap();
    store.compact(changed.modified).await.unwrap();
    drop(store);
    for name in ["state.db", "state.db.lock", "state.db.log0", "state.db.log1"] {
        let mode = directory.path().join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let store = SqliteStore::open(&path, &Options::default()).unwrap();
    assert_eq!(store.get("/a", NOW).await.unwrap(), Some(changed.clone()));
    assert_eq!(store.revision().await.unwrap(), changed.modified);
    assert_eq!(store.oldest(), changed.modified);
    assert!(matches!(store.get("/a", made.modified).await, Err(StoreError::Compacted { .. })));
    let next = store.create("/b", Bytes::new()).await.unwrap();
    assert_eq!(next.modified.0, changed.modified.0 + 1);
}

#[tokio::test]
async fn the_log_beside_the_file_is_private_too() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("state.db"), &Options::default()).unwrap();
    store.create("/a", Bytes::new()).await.unwrap();
    for name in ["state.db-wal", "state.db-shm"] {
        let mode = directory.path().join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn two_at_once_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let first = SqliteStore::open(&path, &Options::default()).unwrap();
    let error = SqliteStore::open(&path, &Options::default()).err().unwrap();
    assert!(matches!(&error, OpenError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
    drop(first);
    SqliteStore::open(&path, &Options::default()).unwrap();
}

#[test]
fn other_versions_and_other_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    drop(SqliteStore::open(&path, &Options::default()).unwrap());
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 3).unwrap();
    let error = SqliteStore::open(&path, &Options::default()).err().unwrap();
    assert!(matches!(error, OpenError::FutureFormat { found: 3, known: 2, .. }), "{error:?}");

    let foreign = directory.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE x (y)").unwrap();
    let error = SqliteStore::open(&foreign, &Options::default()).err().unwrap();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");

    let garbage = directory.path().join("garbage.db");
    std::fs::write(&garbage, vec![7u8; 8192]).unwrap();
    let error = SqliteStore::open(&garbage, &Options::default()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");

    let error = SqliteStore::open(&directory.path().join("no/state.db"), &Options::default()).err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
}

/// Format 1 had no log beside the database; what it holds stays, and older programs refuse the file from then on.
#[tokio::test]
async fn the_first_format_is_brought_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = SqliteStore::open(&path, &Options::default()).unwrap();
    let made = store.create("/a", Bytes::from_static(b"1")).await.unwrap();
    drop(store);
    for name in ["state.db.log0", "state.db.log1"] {
        std::fs::remove_file(directory.path().join(name)).unwrap();
    }
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 1).unwrap();
    let store = SqliteStore::open(&path, &Options::default()).unwrap();
    assert_eq!(store.get("/a", NOW).await.unwrap(), Some(made));
    let look = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(look.query_row("PRAGMA user_version", [], |r| r.get::<_, i64>(0)).unwrap(), 2);
}

/// A deadline for what the writer does by itself.
async fn until(what: &str, mut holds: impl FnMut() -> Result<(), String>) {
    let start = std::time::Instant::now();
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(5));
    while let Err(status) = holds() {
        assert!(start.elapsed() < std::time::Duration::from_secs(30), "{what}: {status}");
        tick.tick().await;
    }
}

#[tokio::test]
async fn deleting_and_compacting_gives_space_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = SqliteStore::open(&path, &Options::default()).unwrap();
    let value = Bytes::from(vec![1; 64 << 10]);
    for number in 0..500 {
        let made = store.create(&format!("/{number}"), value.clone()).await.unwrap();
        store.delete(&format!("/{number}"), made.modified).await.unwrap();
    }
    let now = store.revision().await.unwrap();
    store.compact(now).await.unwrap();
    // Looked at through a connection of its own, as the pages may still be in the log.
    let look = rusqlite::Connection::open(&path).unwrap();
    let ask = |sql: &str| look.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap();
    until("the file shrinks", || {
        let (rows, pages) = (ask("SELECT count(*) FROM history"), ask("PRAGMA page_count"));
        // The newest row stays, with what it deleted; 4 MiB are kept for new rows.
        if rows <= 2 && pages < 1200 { Ok(()) } else { Err(format!("{rows} rows, {pages} pages")) }
    })
    .await;
    assert_eq!(store.revision().await.unwrap(), now);
    assert_eq!(store.create("/next", value).await.unwrap().modified.0, now.0 + 1);
}

#[tokio::test]
async fn old_history_is_compacted_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let options =
        Options { keep_for: std::time::Duration::from_millis(50), keep_revisions: 10, ..Options::default() };
    let store = SqliteStore::open(&directory.path().join("state.db"), &options).unwrap();
    for number in 0..100 {
        store.create(&format!("/{number}"), Bytes::new()).await.unwrap();
    }
    let now = store.revision().await.unwrap();
    until("the horizon rises, and leaves ten revisions", || match store.oldest().0 {
        oldest if oldest == now.0 - 10 => Ok(()),
        oldest => Err(format!("oldest {oldest} of {}", now.0)),
    })
    .await;
    assert!(matches!(store.get("/0", Revision(5)).await, Err(StoreError::Compacted { .. })));
    assert_eq!(store.list("/", "", Revision(now.0 - 10), 0).await.unwrap().entries.len(), 90);
}

#[tokio::test]
async fn damage_found_while_running_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = SqliteStore::open(&path, &Options::default()).unwrap();
    for number in 0..200 {
        store.create(&format!("/{number}"), Bytes::from(vec![1; 3000])).await.unwrap();
    }
    drop(store);
    // All but the first pages, which opening needs.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[6 * 4096..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let error = match SqliteStore::open(&path, &Options::default()) {
        Err(error) => {
            assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
            return;
        }
        Ok(store) => store.list("/", "", NOW, 0).await.unwrap_err(),
    };
    assert!(matches!(error, StoreError::Backend { .. }), "{error:?}");
}

#[tokio::test]
async fn a_value_that_is_too_large_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { value_limit_bytes: 10, ..Options::default() };
    let store = SqliteStore::open(&directory.path().join("state.db"), &options).unwrap();
    let error = store.create("/a", Bytes::from_static(b"12345678901")).await.unwrap_err();
    assert_eq!(error.to_string(), "the value of key /a has 11 bytes; the store takes at most 10");
    let made = store.create("/a", Bytes::from_static(b"1234567890")).await.unwrap();
    assert!(store.update("/a", made.modified, Bytes::from_static(b"12345678901")).await.is_err());
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&directory.path().join("state.db"), &Options::default()).unwrap();
    let mut watch = store.watch("/", NOW).await.unwrap();
    store.create("/a", Bytes::new()).await.unwrap();
    store.close();
    // What was committed is still delivered.
    assert_eq!(watch.next().await.unwrap().len(), 1);
    assert!(matches!(watch.next().await, Err(StoreError::Closed)));
    assert!(matches!(store.create("/b", Bytes::new()).await, Err(StoreError::Closed)));
    assert!(matches!(store.get("/a", NOW).await, Err(StoreError::Closed)));
    assert!(matches!(store.watch("/", NOW).await, Err(StoreError::Closed)));
}
